"""The published method: proximal gradient with unit step length. The iteration is in :func:`proximal_gradient`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from hyperspy_fusion.fusion.result import CostHistory, FusionResult, StopReason, Terms
from hyperspy_fusion.fusion.solvers import kernels
from hyperspy_fusion.fusion.solvers.loop import asked_to_stop, prepared
from hyperspy_fusion.fusion.terms.penalties import fgp_momentum

# the four dual arrays of one band stay within a core's second-level cache
BAND_PIXELS = 80_000
# relative change of the step of the total variation by another weight, or number of inner iterations, that matters
LEAST_EFFECT = 0.25


@dataclass
class State:
    """Everything that changes in a fit. A fit continues from the state it returned.

    Attributes
    ----------
    x
        (n, ny, nx), the normalised maps.
    tv
        The total variation of ``x``; NaN where it is not known yet.
    n_iter
        Iterations behind ``x``.
    change
        ``||x - previous x|| / ||previous x||``.
    terms
        Terms of the objective at iterations 0, 1, ...; those of ``x`` itself may be outstanding.
    """

    x: np.ndarray
    tv: float = np.nan
    n_iter: int = 0
    change: float = np.inf
    terms: list[Terms] = field(default_factory=list)

    def restarted(self, dtype):
        """The same maps, in another dtype where need be, as the start of another objective."""
        return State(self.x.astype(dtype, copy=False))


def proximal_gradient(problem, settings, state=None, callback=None, num_workers=None):
    """Fit by the published method.

    The start ``x`` is the normalised maps ``b``, zero below ``threshold``. One iteration is (Manassa et al., Elemental
    Microscopy EM000003, 2024, algorithm 1)::

        f      = sum_i w_i x_i**gamma
        v_i    = x_i - lambda_haadf gamma w_i x_i**(gamma - 1) (f - h) - lambda_chem (1 - b_i / (x_i + eps))
        x_i    = argmin_{u >= 0} 1/2 ||u - max(v_i, 0)||^2 + lambda_tv TV(u)

    with ``h`` the normalised HAADF image. The last line takes ``tv_iter`` steps of (fast) gradient projection from a
    dual of zero (Beck & Teboulle, IEEE Trans. Image Process. 18, 2419, 2009). It is not solved to the end.

    Parameters
    ----------
    problem
        From :func:`~hyperspy_fusion.fusion.problems.published.published_problem`.
    settings
        The same settings; here ``max_iter``, ``tol``, ``tv_iter``, ``tv_solver``, ``threshold``.
    state
        Of an earlier call, to go on from; it is changed in place. None starts anew.
    callback
        Called with the state after every iteration; may raise ``StopIteration`` to stop.
    num_workers
        Threads; None for all. The result does not depend on it.

    Returns
    -------
    FusionResult, State

    Raises
    ------
    KeyboardInterrupt
        For Ctrl-C before the first iteration. Later, the maps of the last complete iteration are returned.
    """
    if state is None:
        state = _start(problem, settings.threshold)
    reason = StopReason.MAX_ITER if settings.change_tol is None else StopReason.NOT_CONVERGED
    with prepared(problem.maps.dtype, kernels.PUBLISHED, num_workers) as (n_workers, interruption):
        work = _Workspace(problem, settings, n_workers)
        if np.isnan(state.tv):
            _measure_tv(problem, state, work)
        for _ in range(settings.max_iter):
            if interruption.requested:
                reason = StopReason.INTERRUPTED
                break
            _gradient_step(problem, state, work)
            if not np.isfinite(state.terms[-1].total):
                break
            _prox(problem, state, work)
            state.n_iter += 1
            stop = asked_to_stop(callback, state)
            if stop is None and settings.change_tol is not None and state.change <= settings.change_tol:
                stop = StopReason.CONVERGED
            if stop is not None:
                reason = stop
                break
        # for the terms of the last maps
        _gradient_step(problem, state, work)
        if not np.isfinite(state.terms[-1].total):
            reason = StopReason.NOT_FINITE
        result = _result(problem, state, work, reason)
    if reason is StopReason.INTERRUPTED and state.n_iter == 0:
        raise KeyboardInterrupt
    return result, state


def _start(problem, threshold):
    """The normalised maps, zero below ``threshold``."""
    x = problem.normalised_maps()
    if threshold is not None:
        x[x < threshold] = 0
    return State(x)


class _Workspace:
    """Arrays and constants of one call, so that the kernels allocate nothing."""

    def __init__(self, problem, settings, n_workers):
        n, ny, nx = problem.maps.shape
        real = problem.maps.dtype.type
        self.scalar = real
        self.stepped = np.empty_like(problem.maps)
        self.modelled = np.empty_like(problem.haadf)
        self.smooth_sums = np.empty((ny, 2))
        self.prox_sums = np.empty((n, ny, 3))
        self.offsets = problem.map_range.offset.astype(real)
        self.scales = (1 / problem.map_range.scale).astype(real)
        self.weights = problem.haadf_term.weights.astype(real)
        steps = settings.tv_iter if problem.lambda_tv else 0
        self.momentum = (fgp_momentum(steps) if settings.tv_solver == "fgp" else np.zeros(steps)).astype(real)
        self.band = _band_rows(n, ny, nx, steps, n_workers)
        rows = 1 + min(self.band + 2 * (steps + 1), ny)
        n_workers = min(n_workers, n * -(-ny // self.band))
        self.work = np.empty((n_workers, 4, rows, nx), real)
        self.lines = np.empty((n_workers, 6, nx), real)


def _band_rows(n, ny, nx, steps, n_workers):
    """Rows of a band of the prox: as many as the cache holds, in bands alike, as many for each worker."""
    narrow = 2 * (steps + 1)  # below this a band is mostly rim
    fewest = -(-ny // max(narrow, BAND_PIXELS // nx))
    most = max(fewest, min(fewest + n_workers - 1, ny // narrow))
    even = (bands for bands in range(fewest, most + 1) if n * bands % n_workers == 0)
    return -(-ny // next(even, fewest))


def _gradient_step(problem, state, work):
    """``work.stepped = max(v, 0)``; record the terms of the objective at the present maps."""
    real = work.scalar
    kernels.gradient_step(
        state.x,
        problem.maps,
        work.offsets,
        work.scales,
        problem.haadf,
        work.weights,
        real(problem.haadf_term.gamma),
        real(problem.lambda_haadf),
        real(problem.lambda_chem),
        real(problem.noise.background),
        work.stepped,
        work.modelled,
        work.smooth_sums,
    )
    haadf, chem = (float(s) for s in work.smooth_sums.sum(axis=0))
    del state.terms[state.n_iter :]
    state.terms.append(Terms(haadf, chem, state.tv, problem.weigh(haadf, chem, state.tv)))


def _prox(problem, state, work):
    """``x`` from ``work.stepped``, with its total variation and its change."""
    _run_prox(problem, state, work, problem.lambda_tv or 1, work.momentum)


def _measure_tv(problem, state, work):
    """The total variation of the maps: their prox without a step, which leaves them as they are."""
    np.copyto(work.stepped, state.x)
    _run_prox(problem, state, work, 1, work.momentum[:0])
    state.change = np.inf


def _run_prox(problem, state, work, weight, momentum):
    kernels.prox_tv(
        work.stepped,
        state.x,
        work.scalar(weight),
        problem.penalty.is_isotropic,
        momentum,
        work.band,
        work.work,
        work.lines,
        work.prox_sums,
    )
    state.tv, change, size = (float(s) for s in work.prox_sums.sum(axis=(0, 1)))
    state.change = float(np.sqrt(change / size)) if size else (np.inf if change else 0.0)


def inner_iterations_limit_smoothing(problem, settings, maps):
    """True where ``tv_iter`` limits how much the total variation smooths fitted ``maps``, and ``lambda_tv`` does not.

    Then its step from ``maps`` follows the number of inner iterations, and hardly the weight.
    """
    start = problem.map_range.normalise(maps)

    def changed(before, weight=1.0, iterations=1):
        """The maps after a step from ``start``, and their relative change from ``before``."""
        state = State(before.copy())
        work = _Workspace(problem, replace(settings, tv_iter=iterations * settings.tv_iter), 1)
        np.copyto(work.stepped, start)
        _run_prox(problem, state, work, problem.lambda_tv * weight, work.momentum)
        return state.x, state.change

    with prepared(problem.maps.dtype, kernels.PUBLISHED, 1):
        smoothed, step = changed(start)
        by_weight = changed(smoothed, weight=0.5)[1]
        return by_weight < LEAST_EFFECT * step < changed(smoothed, iterations=2)[1]


def _result(problem, state, work, reason):
    """The result in the units of the input; the workspace gives its arrays away."""
    history = {name: np.array([getattr(t, name) for t in state.terms]) for name in ("haadf", "chem", "tv")}
    return FusionResult(
        maps=problem.map_range.restore(state.x, out=work.stepped),
        modelled_haadf=problem.haadf_range.restore(work.modelled, out=work.modelled),
        history=CostHistory(**history, total=problem.weigh(**history)),
        n_iter=state.n_iter,
        reason=reason,
        change=state.change,
    )
