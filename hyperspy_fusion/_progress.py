"""HyperSpy's progress bar for a fit."""

from __future__ import annotations

from typing import Any

import numpy as np

# for solvers that stop at a gap, of which the time for all iterations is no estimate
_BY_GAP = "{desc}: {n_fmt}/{total_fmt} at most [{elapsed}, {rate_fmt}{postfix}]"


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

    def step(self, by=1, **options):
        import hyperspy.api as hs
        from hyperspy.external.progressbar import progressbar

        if self.bar is None:
            general: Any = hs.preferences.General
            show = general.show_progressbar if self.show is None else self.show
            self.bar = progressbar(disable=not show, **self.options, **options)
        self.bar.update(by)


class counted(_Bar):
    """Context that yields a function to call after every ``unit``; ``total`` is their number, None where not known."""

    def __init__(self, title, unit, show, total=None):
        super().__init__(show, desc=title, unit=unit, total=total)

    def __call__(self):
        self.step()


class progress(_Bar):
    """Context that yields a callback for solvers, which moves a bar of at most ``total`` iterations.

    ``show`` is whether to draw it; None follows HyperSpy's preference. ``state`` is that which a fit goes on from, and
    ``tol`` the relative duality gap at which a solver stops, usually long before ``total``.
    """

    def __init__(self, total, show, state=None, tol=None):
        super().__init__(show, total=total, desc="Fusing", unit="iteration")
        self.tol, self.done = tol, 0 if state is None else state.n_iter

    def __call__(self, state):
        gap = getattr(state, "gap", np.nan)
        # solvers may report only every few iterations
        self.step(state.n_iter - self.done, **({"bar_format": _BY_GAP} if np.isfinite(gap) else {}))
        self.done = state.n_iter
        if np.isfinite(gap):
            ends = "" if self.tol is None else f", ends at {self.tol:.0e}"
            self.bar.set_postfix_str(f"gap {gap:.1e}{ends}", refresh=False)
