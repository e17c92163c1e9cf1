"""Diagnostics: what is doubtful about the input or the result of a fit, and the one route by which it is reported.

Whoever finds something returns :class:`Diagnostic` objects. Only :func:`report` logs them, once, where the user waits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

_logger = logging.getLogger("hyperspy_fusion")

WARNING, INFORMATION = "warning", "information"
_is_quiet: ContextVar[bool] = ContextVar("_is_quiet", default=False)


@dataclass(frozen=True)
class Diagnostic:
    """One finding.

    Attributes
    ----------
    code
        Short name in kebab case, the same for every sentence of its kind, as ``"totals-changed"``.
    sentence
        What is wrong and what to do, at most 30 words.
    severity
        ``"warning"`` where it changes a decision of the user, else ``"information"``.
    elements
        The elements that it is about; none for all.
    """

    code: str
    sentence: str
    severity: str = WARNING
    elements: tuple = ()

    def __str__(self):
        return self.sentence

    def about_image(self, name: str) -> Diagnostic:
        """The same about another elastic image than the HAADF image."""
        return replace(self, sentence=named(self.sentence, name))


def named(sentence: str, name: str) -> str:
    """A sentence about the HAADF image as one about another elastic image."""
    return sentence.replace("HAADF", name)


def report(diagnostics: Iterable[Diagnostic]) -> None:
    """Log each diagnostic: warnings as warnings, information at the level INFO; records have its ``code``."""
    if _is_quiet.get():
        return
    for diagnostic in diagnostics:
        level = logging.WARNING if diagnostic.severity == WARNING else logging.INFO
        _logger.log(level, diagnostic.sentence, extra={"code": diagnostic.code})


@contextmanager
def unreported():
    """Context in which this thread logs no diagnostics, for whoever reports them together afterwards."""
    token = _is_quiet.set(True)
    try:
        yield
    finally:
        _is_quiet.reset(token)


def warnings_of(diagnostics: Iterable[Diagnostic]) -> list[str]:
    """The sentences of those that are warnings."""
    return [d.sentence for d in diagnostics if d.severity == WARNING]


def as_metadata(diagnostics: Iterable[Diagnostic]) -> dict:
    """Lists of strings for metadata: codes, severities, sentences, and elements joined by commas."""
    found = list(diagnostics)
    return {
        "codes": [d.code for d in found],
        "severities": [d.severity for d in found],
        "sentences": [d.sentence for d in found],
        "elements": [",".join(d.elements) for d in found],
    }
