"""The result of a fit, frozen, with the reason why it stopped as a sentence."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum

import numpy as np


class StopReason(Enum):
    """Why a fit stopped; each value is a sentence to show."""

    CONVERGED = "The relative change of the maps in one iteration fell to the tolerance."
    SETTLED = "The maps have settled: by their last moves they are near their final values, within their errors."
    MAX_ITER = "All iterations were run."
    NOT_CONVERGED = (
        "All iterations were run without reaching the tolerance: raise max_iter or the tolerance, or, where the maps "
        "oscillate, raise eps or lower lambda_chem."
    )
    NOT_SETTLED = "All iterations were run before the maps had settled: raise max_iter, or fit again to go on."
    INTERRUPTED = "Interrupted: the maps are those of the last complete iteration."
    STOPPED = "Stopped by the callback: the maps are those of the last complete iteration."
    NOT_FINITE = "The maps became infinite or NaN: lower lambda_chem or lambda_haadf, or raise eps."


# of solvers with a duality gap
_WITH_GAP = {
    StopReason.CONVERGED: "The relative duality gap fell to {gap:.2g}, within the tolerance.",
    StopReason.SETTLED: (
        "The maps have settled to a few per cent of their standard errors; the relative duality gap is {gap:.2g}."
    ),
    StopReason.NOT_CONVERGED: (
        "All iterations were run, and the relative duality gap is {gap:.2g}, above the tolerance: raise max_iter, "
        "fit again to go on, or raise tol."
    ),
    StopReason.NOT_SETTLED: (
        "All iterations were run before the maps had settled, and the relative duality gap is {gap:.2g}: raise "
        "max_iter, or fit again to go on."
    ),
    StopReason.NOT_FINITE: (
        "The maps became infinite or NaN: take settings nearer to the defaults, or dtype='float64'."
    ),
}


@dataclass(frozen=True)
class Terms:
    """Unweighted terms of the objective and their weighted sum."""

    haadf: float
    chem: float
    tv: float
    total: float


@dataclass(frozen=True)
class CostHistory:
    """Terms of the objective at the start (index 0) and after every iteration, or every so many.

    ``total`` is what is minimised: the weighted sum of ``haadf``, ``chem`` and ``tv`` for the published method, their
    plain sum for the calibrated one, whose terms are weighted already. Each is a float64 array of ``n_iter + 1``
    values, or of as many as ``iteration`` has.

    Attributes
    ----------
    iteration
        Iterations at which the terms were evaluated; None for all.
    gap
        Relative duality gap at these; None for a method without.
    """

    haadf: np.ndarray
    chem: np.ndarray
    tv: np.ndarray
    total: np.ndarray
    iteration: np.ndarray | None = None
    gap: np.ndarray | None = None

    def as_dict(self):
        """The arrays by name, without those that are None."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


@dataclass(frozen=True)
class FusionResult:
    """Fused maps on the scale of the input maps, and the record of the fit.

    Attributes
    ----------
    maps
        ``(n_elements, ny, nx)`` in the units of the input maps.
    modelled_haadf
        ``(ny, nx)``, ``f(x)`` in the units of the HAADF image.
    history
        The objective, term by term.
    n_iter
        Iterations run, those of earlier calls of a continued fit included.
    reason
        Why it stopped.
    change
        Relative change of the maps in the last iteration; infinite before the first, NaN for a method with a gap.
    gap
        Relative duality gap of the maps; NaN for a method without.
    """

    maps: np.ndarray
    modelled_haadf: np.ndarray
    history: CostHistory
    n_iter: int
    reason: StopReason
    change: float = np.nan
    gap: float = np.nan

    @property
    def message(self) -> str:
        """The reason as a sentence, with the duality gap where there is one."""
        if self.history.gap is None:
            return self.reason.value
        return _WITH_GAP.get(self.reason, self.reason.value).format(gap=self.gap)

    @property
    def success(self) -> bool:
        """True where the fit reached its tolerance or, without one, ran all iterations."""
        return self.reason in (StopReason.CONVERGED, StopReason.SETTLED, StopReason.MAX_ITER)

    @property
    def converged(self) -> bool:
        """True where a tolerance was asked for and reached."""
        return self.reason in (StopReason.CONVERGED, StopReason.SETTLED)
