"""HyperSpy's progress bar for a fit, and callbacks."""

from __future__ import annotations

import functools
import sys
import time
from typing import Any

_WITH_TIME_LEFT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
# steps of the bar, whole numbers: sums of fractions may exceed their total
_STEPS = 1000
# part of the time of a call that is over when its fits end: checks of the result follow
_FITTED = 0.96


class _Bar:
    """A context with a bar that is made with the first step, so that compilation is not part of its time."""

    def __init__(self, show, **options):
        self.show, self.options = show, options
        self.bar: Any = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def step(self, by: float = 1, text=None):
        import hyperspy.api as hs
        from hyperspy.external.progressbar import progressbar

        if self.bar is None:
            general: Any = hs.preferences.General
            show = general.show_progressbar if self.show is None else self.show
            show = show and sys.stderr is not None  # which programs without a console do not have
            self.bar = progressbar(disable=not show, **self.options)
        if text is not None:  # shown with the update
            self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(by)


class counted(_Bar):
    """Context that yields a function to call after every ``unit``; ``total`` is their number, None where not known."""

    def __init__(self, title, unit, show, total=None):
        super().__init__(show, desc=title, unit=unit, total=total)

    def __call__(self):
        self.step()


class progress(_Bar):
    """Context with one bar for a whole fit: it shows the stage and the time left."""

    def __init__(self, show):
        super().__init__(show, desc="Fusing", total=_STEPS, bar_format=_WITH_TIME_LEFT)
        self.search, self.done, self.begun = 0.0, 0, None

    def choosing(self, n_fits, expected, search):
        """To call after each fit of a search: fits done and expected, and the part of the time that it takes."""
        expected, self.search = max(expected, n_fits), search
        self._show(search * n_fits / expected, f"choosing settings {n_fits}/{expected}")

    def fitting(self, state, max_iter):
        """To call with the state of a solver."""
        fraction = getattr(state, "fraction", state.n_iter / max_iter)
        self._show(self.search + (_FITTED - self.search) * fraction, getattr(state, "stage", "fitting"))

    def _show(self, done, stage):
        now, done = time.perf_counter(), round(_STEPS * max(min(done, _FITTED), self.done / _STEPS))
        if self.begun is None:  # compilation is over
            self.begun = now, done
        since, first = self.begun
        left = (now - since) * (_STEPS - done) / (done - first) if done > first else None
        self.left = left
        self.step(done - self.done, stage if left is None else f"{stage}, about {left:.0f} s left")
        self.done = done

    def __exit__(self, *error):
        if self.bar is not None and not any(error):
            self.step(_STEPS - self.done)
            self.bar.set_postfix_str("done")
        super().__exit__(*error)


def both(first, second):
    """One callback of two, the second of which may be None."""
    if second is None:
        return first

    @functools.wraps(second)
    def call(state):
        first(state)
        second(state)

    return call
