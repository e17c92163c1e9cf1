"""The solver of the calibrated method for a series of frames that are penalised along the series as well.

Problem, for the maps ``z_t`` of frame t, in the natural units of this frame::

    min  sum_t J_t(z_t) + weight sum_t |c_{t+1} z_{t+1} - c_t z_t|_1

J_t is the objective of frame t alone, and ``c_t z_t`` are its maps in units that all frames share. The length is that
of each pixel and element by itself (total variation in time). Without the sum over frames this is frame by frame.

Iteration: that of :mod:`.primal_dual` for every frame, with a dual ``w_t`` for each pair of neighbours:

- ``w_t <- P(w_t + sigma_t (c_{t+1} z_bar_{t+1} - c_t z_bar_t))``, with P the projection onto ``|w| <= weight``;
- in the step of the maps, ``D^T y + theta`` becomes ``D^T y + theta + g_t`` with ``g_t = c_t (w_{t-1} - w_t)``.

The kernel knows of no ``g_t``: it takes the step from ``z_t - tau g_t``, and what it then makes of the starting point
is put right. Step condition: the columns of ``z_t`` have two entries ``c_t`` more.

Gap: as for one frame, with ``g_t`` in the Lagrangian; all frames have one gap.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.result import FusionResult, StopReason, Terms
from hyperspy_fusion.fusion.solvers import kernels
from hyperspy_fusion.fusion.solvers.loop import prepared
from hyperspy_fusion.fusion.solvers.primal_dual import ADAPT_UNTIL, Iteration, history_of, size_about_means
from hyperspy_fusion.fusion.solvers.primal_dual_state import PrimalDualState, Stopping

# ratio of primal to dual steps along the series, over that of their sizes
_RATIO = 3.0


@dataclass(frozen=True)
class Series:
    """Objectives of frames that follow each other, of the same maps on the same pixels.

    Attributes
    ----------
    problems
        List of T :class:`~hyperspy_fusion.fusion.terms.objective.Objective`.
    weight
        Of the differences between neighbouring frames.
    units
        (n,) in units of the input: in these the differences are measured.
    """

    problems: list
    weight: float
    units: np.ndarray

    @property
    def dtype(self):
        """Of the fit."""
        return self.problems[0].dtype

    @property
    def factors(self):
        """(T, n): ``c_t``."""
        return np.array([problem.scales / self.units for problem in self.problems])

    def differences(self, maps, factors):
        """Yield the differences of neighbouring maps (n, ny, nx) times factors (T, n)."""
        scaled = (f.astype(m.dtype)[:, None, None] * m for f, m in zip(factors, maps, strict=True))
        before = next(scaled)
        for after in scaled:
            yield after - before
            before = after


@dataclass
class SeriesState:
    """Everything that changes in a fit of a series; it has what the loop asks of a :class:`PrimalDualState`.

    Attributes
    ----------
    states
        A :class:`PrimalDualState` for each frame.
    w
        (T - 1, n, ny, nx) dual of the differences.
    ratio
        Of primal to dual steps along the series.
    n_iter, records, fraction
        As of a :class:`PrimalDualState`, of all frames together.
    """

    states: list[PrimalDualState]
    w: np.ndarray
    ratio: float = 1.0
    n_iter: int = 0
    records: list = field(default_factory=list)
    fraction: float = 0.0

    @classmethod
    def of(cls, states, w=None, ratio=1.0):
        """The start of a fit from those of the frames."""
        w = np.zeros((len(states) - 1, *states[0].z.shape), states[0].z.dtype) if w is None else w
        return cls([replace(state, n_iter=0, records=[], checked=None, moves=[]) for state in states], w, ratio)

    def restarted(self, series):
        """The start of another series of the same maps: the maps and duals of this one."""
        states = [one.restarted(problem) for one, problem in zip(self.states, series.problems, strict=True)]
        return type(self).of(states, np.clip(self.w, -series.weight, series.weight).astype(series.dtype), self.ratio)

    @property
    def gap(self):
        """The relative duality gap last evaluated."""
        return self.records[-1][2] if self.records else np.inf

    @property
    def standard_errors(self):
        """Those of the first frame; None where any has none."""
        found = [state.standard_errors for state in self.states]
        return None if any(errors is None for errors in found) else found[0]


def fit_series(series, stopping, state, callback=None, num_workers=None):
    """Fit all frames of a series.

    Parameters
    ----------
    series
        The :class:`Series`.
    stopping
        A :class:`Stopping`, or settings that have one.
    state
        The :class:`SeriesState` to start from; it is changed in place.
    callback, num_workers
        As of :func:`~.primal_dual.primal_dual`.

    Returns
    -------
    list of FusionResult, SeriesState
        Of each frame; history and gap are those of the series.

    Raises
    ------
    KeyboardInterrupt
        Where Ctrl-C was pressed before the first iteration.
    """
    with prepared(series.dtype, kernels.CALIBRATED, num_workers) as (n_workers, interruption):
        iteration = _SeriesIteration(series, state, n_workers)
        reason = iteration.run(Stopping.of(stopping), callback, interruption)
        if interruption.requested and reason not in (StopReason.STOPPED, StopReason.NOT_FINITE):
            reason = StopReason.INTERRUPTED
        results = iteration.results(reason)
    if reason is StopReason.INTERRUPTED and state.n_iter == 0:
        raise KeyboardInterrupt
    return results, state


class _FrameIteration(Iteration):
    """The iteration of one frame, whose maps have a further gradient (n, ny, nx)."""

    column = 0.0  # what the series adds to the sum of |K| over the columns of the maps, times its ratio
    image_term: Any = None
    gradient: Any = None  # of the series, where the bound is evaluated

    def set_steps(self):
        super().set_steps()
        self.tau = self.real(1 / (1 / float(self.tau) + self.column))

    def advance_with(self, gradient, rho_duals, rho_maps):
        """One iteration."""
        state, move = self.state, self.tau * gradient
        self.image_term = super()._haadf()  # of the maps before they are moved
        state.z -= move
        self.advance([rho_duals], [rho_maps])
        state.z_bar -= move
        state.z += self.real(1 - rho_maps) * move

    def _haadf(self):
        return self.image_term

    def sums_of_terms(self, factors, upper):
        """As of the iteration of one scan, with ``self.gradient``: map by map, each with a gradient of its own."""
        state, images = self.state, self.images
        haadf = linear = 0.0
        if images.terms:
            residuals, squares, products = images.residuals(state.z * factors[:, None, None])
            of_images, haadf, linear = images.gradients(residuals), squares / 2, squares / 2 + products
        beta, slope, delta, is_poisson, theta = self._terms()
        # one image for each map, of which the gradient alone matters
        data, bound, one = 0.0, 0.0, np.ones((1, 1), self.real)
        target, counted = (np.zeros((1, *shape), self.real) for shape in (state.z.shape[1:], (1, state.z.shape[2])))
        for i in range(len(state.z)):
            k = slice(i, i + 1)
            gradient = self.gradient[i] + (np.tensordot(images.weights[:, i], of_images, 1) if images.terms else 0)
            kernels.data_terms(
                state.z[k], np.ascontiguousarray(state.y[:, k]), beta[k], slope[k], delta[k], is_poisson, theta[k],
                upper[k], one, target, counted, factors[k], gradient[None].astype(self.real), self.map_work,
                self.term_sums,
            )  # fmt: skip
            data += float(self.term_sums[:, 0].sum())
            bound += float(self.term_sums[:, 2].sum())
        return data, haadf, bound, linear


class _SeriesIteration(Iteration):
    """All frames and what couples them."""

    def __init__(self, series, state, n_workers):
        self.problem, self.state = series, state
        pairs = zip(series.problems, state.states, strict=True)
        self.frames = [_FrameIteration(problem, one, n_workers) for problem, one in pairs]
        self.relaxation = min(frame.relaxation for frame in self.frames)
        self.n_valid = sum(frame.n_valid for frame in self.frames)
        self.real = self.frames[0].real
        self.set_steps()

    def set_steps(self):
        c, ratio = self.problem.factors, self.state.ratio
        self.sigma = [(ratio / (a + b)).astype(self.real)[:, None, None] for a, b in zip(c[:-1], c[1:], strict=True)]
        for frame, own in zip(self.frames, c, strict=True):
            frame.column = 2 * float(own.max()) * ratio if self.problem.weight else 0.0
            frame.set_steps()

    def pauses_after(self, number, every):
        return True

    def advance(self, rho_duals, rho_maps):
        (rho_duals,), (rho_maps,) = rho_duals, rho_maps
        state, c, weight = self.state, self.problem.factors, self.real(self.problem.weight)
        stay, rho = self.real(1 - rho_duals), self.real(rho_duals)
        found = self.problem.differences([one.z_bar for one in state.states], c)
        for w, sigma, difference in zip(state.w, self.sigma, found, strict=True):
            difference *= sigma
            difference += w
            np.clip(difference, -weight, weight, out=difference)
            difference *= rho
            w *= stay
            w += difference
        for t, frame in enumerate(self.frames):
            frame.advance_with(self.gradient(t), rho_duals, rho_maps)
        state.n_iter += 1

    def gradient(self, t):
        """(n, ny, nx) ``g_t``."""
        w, total = self.state.w, np.zeros_like(self.state.states[t].z)
        if t > 0:
            total += w[t - 1]
        if t < len(w):
            total -= w[t]
        return self.problem.factors[t].astype(self.real)[:, None, None] * total

    def measure_slack(self):
        for frame in self.frames:
            frame.measure_slack()

    def remaining(self, *every):
        return np.max([frame.remaining(*every) for frame in self.frames], axis=0)

    def adapt(self):
        state = self.state
        for frame in self.frames:
            frame.adapt()
        size = np.linalg.norm([size_about_means(one.z) for one in state.states])
        dual = np.sqrt(np.vdot(state.w, state.w))
        if state.n_iter <= ADAPT_UNTIL and dual > 0 and size > 0:
            state.ratio = float(np.clip(_RATIO * dual / size, 1e-4, 1e6))
        self.set_steps()

    def terms_and_bound(self):
        found = []
        for t, frame in enumerate(self.frames):
            frame.gradient = self.gradient(t)
            found.append(frame.terms_and_bound())
        terms, lower, sizes = zip(*found, strict=True)
        states = self.state.states
        factors = self.problem.factors * [one.factors() for one in states]
        lengths = (
            np.abs(d).sum(dtype=np.float64) for d in self.problem.differences([one.z for one in states], factors)
        )
        along = self.problem.weight * float(sum(lengths))
        haadf, chem, tv, total = (sum(values) for values in zip(*map(astuple, terms), strict=True))
        return Terms(haadf, chem, tv + along, total + along), sum(lower), sum(sizes) + along

    def results(self, reason):
        """A :class:`FusionResult` for each frame."""
        state = self.state
        if not state.records or state.records[-1][0] != state.n_iter:
            self.evaluate()
        history = history_of(state.records)
        found = []
        for problem, one in zip(self.problem.problems, state.states, strict=True):
            maps = one.maps()
            found.append(
                FusionResult(maps, problem.modelled_haadf(maps), history, state.n_iter, reason, gap=float(state.gap))
            )
        return found
