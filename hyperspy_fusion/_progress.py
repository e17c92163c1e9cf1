"""HyperSpy's progress bar for a fit."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import numpy as np


def _shown(show):
    """Whether to draw a bar; None follows HyperSpy's preference."""
    import hyperspy.api as hs

    general: Any = hs.preferences.General
    return general.show_progressbar if show is None else show


@contextmanager
def progress(total, show, state=None, desc="Fusing", unit="iteration", tol=None):
    """Context that yields a callback for solvers, which moves a bar of ``total`` iterations.

    Parameters
    ----------
    total
        Iterations at the most.
    show
        Whether to draw it; None follows HyperSpy's preference.
    state
        State that the fit goes on from, or None.
    desc, unit
        Title of the bar, and the unit that it counts.
    tol
        Relative duality gap at which a solver stops, usually long before ``total``.
    """
    labels = {"desc": desc, "unit": unit}
    bar = _Bar(total, _shown(show), state, labels, tol)
    try:
        yield bar
    finally:
        bar.close()


@contextmanager
def counted(title, unit, show):
    """Context that yields a function to call after every ``unit``, where their number is not known before."""
    count = _Count(title, unit, _shown(show))
    try:
        yield count
    finally:
        count.close()


class _Count:
    """A bar made with the first call: most fits have nothing to count."""

    def __init__(self, title, unit, show):
        self.title, self.unit, self.show, self.bar = title, unit, show, None

    def __call__(self):
        from hyperspy.external.progressbar import progressbar

        if self.bar is None:
            self.bar = progressbar(disable=not self.show, desc=self.title, unit=self.unit)
        self.bar.update(1)

    def close(self):
        if self.bar is not None:
            self.bar.close()


# for solvers that stop at a gap, of which the time for all iterations is no estimate
_BY_GAP = "{desc}: {n_fmt}/{total_fmt} at most [{elapsed}, {rate_fmt}{postfix}]"


class _Bar:
    """A bar made with the first iteration, so that compilation is not part of its time."""

    def __init__(self, total, show, state, labels, tol=None):
        self.total, self.show, self.labels, self.tol, self.bar = total, show, labels, tol, None
        self.done = 0 if state is None else state.n_iter

    def __call__(self, state):
        from hyperspy.external.progressbar import progressbar

        if self.bar is None:
            ends_by_gap = {"bar_format": _BY_GAP} if np.isfinite(getattr(state, "gap", np.nan)) else {}
            self.bar = progressbar(total=self.total, disable=not self.show, **self.labels, **ends_by_gap)
        # solvers may report only every few iterations
        self.bar.update(state.n_iter - self.done)
        self.done = state.n_iter
        gap = getattr(state, "gap", np.nan)
        if np.isfinite(gap):
            self.bar.set_postfix_str(
                f"gap {gap:.1e}{f', ends at {self.tol:.0e}' if isinstance(self.tol, float) else ''}", refresh=False
            )

    def close(self):
        if self.bar is not None:
            self.bar.close()
