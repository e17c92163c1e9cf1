"""What a fit returns: frozen, with the reason it stopped as a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np


class StopReason(Enum):
    """Why a fit stopped; each value is a sentence to show."""

    CONVERGED = "The relative change of the maps in one iteration fell to the tolerance."
    MAX_ITER = "All iterations were run."
    NOT_CONVERGED = (
        "All iterations were run without reaching the tolerance: raise max_iter or tol, or, where the change no "
        "longer falls because the maps swing, raise background or lower lambda_chem."
    )
    INTERRUPTED = "Interrupted: the maps are those of the last complete iteration."
    STOPPED = "Stopped by the callback: the maps are those of the last complete iteration."
    NOT_FINITE = "The maps became infinite or NaN: lower lambda_chem or lambda_haadf, or raise background."


@dataclass(frozen=True)
class CostHistory:
    """Terms of the objective at the start (index 0) and after every iteration.

    ``haadf``, ``chem`` and ``tv`` are unweighted, ``total`` is the weighted sum that is minimised.
    Each is a float64 array of ``n_iter + 1`` values.
    """

    haadf: np.ndarray
    chem: np.ndarray
    tv: np.ndarray
    total: np.ndarray

    def as_dict(self):
        """The four arrays by name."""
        return {"haadf": self.haadf, "chem": self.chem, "tv": self.tv, "total": self.total}


@dataclass(frozen=True)
class FusionResult:
    """Fused maps on the scale of the input maps, and how they came about.

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
        Relative change of the maps in the last iteration; infinite before the first.
    """

    maps: np.ndarray
    modelled_haadf: np.ndarray
    history: CostHistory
    n_iter: int
    reason: StopReason
    change: float

    @property
    def success(self) -> bool:
        """True where the fit ended as it was asked to: at the tolerance or, without one, after all iterations."""
        return self.reason in (StopReason.CONVERGED, StopReason.MAX_ITER)

    @property
    def converged(self) -> bool:
        """True where a tolerance was asked for and reached."""
        return self.reason is StopReason.CONVERGED
