"""What every problem of the calibrated method offers: it can be started, solved and resampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from hyperspy_fusion.diagnostics import Diagnostic
    from hyperspy_fusion.fusion.problems.calibrated import CalibratedProblem
    from hyperspy_fusion.fusion.result import FusionResult
    from hyperspy_fusion.fusion.terms.penalties import CellPenalty


@runtime_checkable
class FusionProblem(Protocol):
    """Fits of one kind to one scan: of the maps, of components of the spectra, or an ensemble of both.

    A state is what the solver keeps of a fit; problem and solver alone look into it.
    """

    @property
    def of_largest_weight(self) -> CalibratedProblem:
        """The problem of the measured maps with the largest weight: noise and HAADF forward model are those of all."""
        ...

    @property
    def penalty(self) -> CellPenalty:
        """The penalty of the problem with the largest weight."""
        ...

    @property
    def uses_haadf(self) -> bool:
        """Whether the HAADF image contributes to the maps, by its term or as guide of the penalty."""
        ...

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """Findings about the data and the HAADF forward model."""
        ...

    def start(self, state: Any) -> Any:
        """The state to start from the maps of ``state``, which is of another problem of this kind."""
        ...

    def solve(
        self, settings: Any, state: Any = None, callback: Callable | None = None, num_workers: int | None = None
    ) -> tuple[FusionResult, Any]:
        """Result, with maps (n, ny, nx) of elements, and state; from ``state``, which is changed in place, or anew.

        ``settings`` say when the fit ends, by ``max_iter`` and ``tol``; or a :class:`~.solvers.primal_dual.Stopping`.
        """
        ...

    def fits(self, state: Any) -> tuple[Sequence[tuple[FusionProblem, Any]], np.ndarray]:
        """The single fits behind a state as (problem, state), and their weights (fits, n) in each map, of sum 1."""
        ...

    def resample(
        self, settings: Any, state: Any, maps: np.ndarray, seed: Any, earlier: Sequence[FusionProblem] = ()
    ) -> FusionProblem:
        """The problem of one bootstrap replicate.

        Parameters
        ----------
        settings
            Those of the fit.
        state
            Of the fit.
        maps
            (n, ny, nx) fitted maps, from which counts and HAADF image are drawn.
        seed
            Of the draw. The same seed draws the same counts and the same image for all fits of an ensemble.
        earlier
            The problems resampled with this seed for the fits of the ensemble before this one. Fits to components of
            the spectra come last.
        """
        ...

    def attribution(self, state: Any, maps: np.ndarray) -> dict[str, np.ndarray]:
        """Name to (n, ny, nx): what moved each pixel from the measured to the fused ``maps``; NaN in masked pixels."""
        ...
