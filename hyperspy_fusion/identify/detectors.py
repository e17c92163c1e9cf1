"""Which detector an image comes from: the names that instruments write, and the exponent on the atomic number."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Detector:
    """A kind of elastic detector: its name in messages, and a pattern of the names that instruments give it.

    ``gamma`` is the exponent on the atomic number for one atom, to begin with; None where no power law holds. Sources
    are in docs/scans.md.
    """

    name: str
    pattern: re.Pattern
    gamma: float | None


def _words(*words):
    """A pattern of whole words, numbered ones too: "DF4", "BSE 1"."""
    return re.compile(rf"(?<![A-Za-z])(?:{'|'.join(words)})(?![A-Za-z])", re.IGNORECASE)


#: In the order in which they are preferred: the first is the one that the fusion was made for.
DETECTORS = (
    Detector("HAADF", re.compile("haadf|high[- ]angle annular", re.IGNORECASE), 1.7),
    Detector("BSE", _words("BSE", "BSD", "[AQ]BSD", "BEI", "CBS", "EsB", "AsB", "COMPO", r"back-?scatter\w*"), 0.8),
    Detector("MAADF", _words("MAADF"), 1.5),
    Detector("ADF", _words("ADF", "DF", "LAADF", r"(?:annular )?dark[- ]field"), None),
)
_BRIGHT = _words("BF", "ABF", "CBF", r"(?:annular )?bright[- ]field")
# images of other contrast, some of them by Velox
_OTHER = _words("SE", "SEI", "iDPC", "dDPC", "DPC", "DCFI", "FFT")
# an image of the area before, after or around the scan
_SURVEY = re.compile(r"survey|overview|navigation|before|after|drift|reference", re.IGNORECASE)


def detector_of(*names):
    """The `Detector` of the first name of a detector; None where there is none, or where it is of another kind."""
    for name in names:
        found = next((detector for detector in DETECTORS if detector.pattern.search(name)), None)
        if found is not None or _BRIGHT.search(name) or _OTHER.search(name):
            return found
    return None


def is_survey(title):
    """Whether the title is that of an image taken beside the scan."""
    return bool(_SURVEY.search(title))


def is_detector_title(title):
    """Whether a title is that of a detector, dark or bright, and so not of an element map."""
    return detector_of(title) is not None or bool(_BRIGHT.search(title))


def names_no_detector(title):
    """Whether a title leaves open which detector an image is from."""
    return not is_detector_title(title) and not _OTHER.search(title)
