"""The loop around a fit, and the published method: proximal gradient with unit step over an explicit state."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hyperspy_fusion.fusion.result import CostHistory, FusionResult, StopReason, Terms
from hyperspy_fusion.fusion.solvers import kernels
from hyperspy_fusion.fusion.solvers.loop import asked_to_stop, prepared
from hyperspy_fusion.fusion.terms.penalties import fgp_momentum

# the four dual arrays of one band stay within a core's second-level cache
BAND_PIXELS = 80_000


@dataclass
class State:
    """Everything that changes in a fit. A fit continues from the state it returned.

    Attributes
    ----------
    x
        (n, ny, nx), the normalised maps.
    tv
        The total variation of ``x``.
    dual
        (2, n, ny, nx) of a warm-started total variation, else None.
    n_iter
        Iterations behind ``x``.
    change
        ``||x - previous x|| / ||previous x||``.
    terms
        Terms of the objective at iterations 0, 1, ...; those of ``x`` itself may be outstanding.
    acceleration
        What else the accelerated solver keeps from one iteration to the next, else None.
    """

    x: np.ndarray
    tv: float = 0.0
    dual: np.ndarray | None = None
    n_iter: int = 0
    change: float = np.inf
    terms: list[Terms] = field(default_factory=list)
    acceleration: object | None = None

    def restarted(self, dtype):
        """The same maps, in another dtype where need be, as the start of another objective."""
        return State(self.x.astype(dtype, copy=False), tv=np.nan)


class Workspace:
    """Arrays and constants of one call, so that the kernels allocate nothing."""

    def __init__(self, problem, settings, n_workers):
        n, ny, nx = problem.maps.shape
        real = problem.maps.dtype.type
        self.scalar = real
        self.is_fast = settings.tv_solver == "fgp"
        self.n_workers = n_workers
        self.stepped = np.empty_like(problem.maps)
        self.modelled = np.empty_like(problem.haadf)
        self.smooth_sums = np.empty((ny, 2))
        self.prox_sums = np.empty((n, ny, 3))
        self.no_dual = np.zeros((2, n, 0, 0), real)
        self.spare_dual = None
        self.offsets = problem.map_range.offset.astype(real)
        self.scales = (1 / problem.map_range.scale).astype(real)
        self.weights = problem.haadf_term.weights.astype(real)
        self.make_room(settings.tv_iter if problem.lambda_tv else 0)

    def make_room(self, steps):
        """Momentum and bands for ``steps`` inner iterations of the prox."""
        n, ny, nx = self.stepped.shape
        self.momentum = (fgp_momentum(steps) if self.is_fast else np.zeros(steps)).astype(self.scalar)
        self.band = _band_rows(n, ny, nx, steps, self.n_workers)
        rows = 1 + min(self.band + 2 * (steps + 1), ny)
        n_workers = min(self.n_workers, n * -(-ny // self.band))
        self.work = np.empty((n_workers, 4, rows, nx), self.scalar)
        self.lines = np.empty((n_workers, 6, nx), self.scalar)


def _band_rows(n, ny, nx, steps, n_workers):
    """Rows of a band of the prox: as many as the cache holds, in bands alike, as many for each worker."""
    narrow = 2 * (steps + 1)  # below this a band is mostly rim
    fewest = -(-ny // max(narrow, BAND_PIXELS // nx))
    most = max(fewest, min(fewest + n_workers - 1, ny // narrow))
    even = (bands for bands in range(fewest, most + 1) if n * bands % n_workers == 0)
    return -(-ny // next(even, fewest))


def initial_state(problem, threshold=None):
    """The published start: the normalised maps, zero below ``threshold``."""
    x = problem.normalised_maps()
    if threshold is not None:
        x[x < threshold] = 0
    return State(x, tv=np.nan)


def proximal_gradient(problem, settings, state=None, callback=None, num_workers=None):
    """Fit by the published method: gradient step on both data terms, positivity, prox of the total variation.

    ``x <- prox_{lambda_tv TV}(max(x - lambda_haadf grad_haadf(x) - lambda_chem grad_chem(x), 0))``, with the prox taken
    by ``tv_iter`` steps of (fast) gradient projection from a dual of zero (Manassa et al., 2024, algorithm 1), or
    from the last dual where ``settings.warm_start`` is set.

    Parameters
    ----------
    problem
        From :func:`~hyperspy_fusion.fusion.problems.published.published_problem`.
    settings
        The same settings; here ``max_iter``, ``tol``, ``tv_iter``, ``tv_solver``, ``threshold``, ``warm_start``.
    state
        Of an earlier call, to go on from; it is changed in place. None starts anew.
    callback
        Called with the state after every iteration; may raise ``StopIteration`` to stop.
    num_workers
        Threads; None for all. The result does not depend on it.

    Returns
    -------
    FusionResult, State
    """
    return run(problem, settings, _published, settings.tol, state, callback, num_workers)


def run(problem, settings, start, tol, state=None, callback=None, num_workers=None):
    """The loop around an iteration: threads, interruption, callback, stopping and the result.

    Parameters
    ----------
    start
        Called once with problem, settings, state and :class:`Workspace`; returns a function that takes ``state.x``,
        ``state.tv`` and ``state.change`` one iteration on, or leaves them and returns the :class:`StopReason` for that.
    tol
        Stop at a ``state.change`` at or below it; None runs all iterations.
    problem, settings, state, callback, num_workers
        As for :func:`proximal_gradient`.

    Returns
    -------
    FusionResult, State
    """
    if state is None:
        state = initial_state(problem, settings.threshold)
    with prepared(problem.maps.dtype, kernels.PUBLISHED, num_workers) as (n_workers, interruption):
        work = Workspace(problem, settings, n_workers)
        if np.isnan(state.tv):
            _measure_tv(problem, state, work)
        advance = start(problem, settings, state, work)
        reason = _iterate(advance, settings.max_iter, tol, state, callback, interruption)
        evaluate(problem, state, work)
        if not np.isfinite(state.terms[-1].total):
            reason = StopReason.NOT_FINITE
        result = _result(problem, state, work, reason)
    if reason is StopReason.INTERRUPTED and state.n_iter == 0:
        raise KeyboardInterrupt
    return result, state


def _iterate(advance, max_iter, tol, state, callback, interruption):
    """Run the iterations of one call; return why they ended."""
    for _ in range(max_iter):
        if interruption.requested:
            return StopReason.INTERRUPTED
        reason = advance()
        if reason is not None:
            return reason
        state.n_iter += 1
        reason = asked_to_stop(callback, state)
        if reason is not None:
            return reason
        if tol is not None and state.change <= tol:
            return StopReason.CONVERGED
    return StopReason.MAX_ITER if tol is None else StopReason.NOT_CONVERGED


def _published(problem, settings, state, work):
    """Gradient step of length 1, positivity, prox."""
    state.acceleration = None  # of maps that are about to move

    def advance():
        evaluate(problem, state, work)
        if not np.isfinite(state.terms[-1].total):
            return StopReason.NOT_FINITE
        if settings.warm_start and problem.lambda_tv:
            sums = warm_prox(problem, state, work, state.x, problem.lambda_tv)
        else:
            sums = cold_prox(problem, work, state.x, problem.lambda_tv or 1, work.momentum)
        _note(state, *sums)
        return None

    return advance


def evaluate(problem, state, work):
    """Take the gradient step into the workspace; record the terms of the present maps."""
    haadf, chem = gradient_step(problem, work, state.x, 1, work.stepped)
    del state.terms[state.n_iter :]
    state.terms.append(Terms(haadf, chem, state.tv, problem.weigh(haadf, chem, state.tv)))


def gradient_step(problem, work, x, tau, stepped):
    """``stepped = max(x - tau gradient of the smooth terms, 0)``; the values of both terms at ``x``, unweighted."""
    real = work.scalar
    kernels.gradient_step(
        x,
        problem.maps,
        work.offsets,
        work.scales,
        problem.haadf,
        work.weights,
        real(problem.haadf_term.gamma),
        real(tau * problem.lambda_haadf),
        real(tau * problem.lambda_chem),
        real(problem.noise.background),
        stepped,
        work.modelled,
        work.smooth_sums,
    )
    haadf, chem = (float(s) for s in work.smooth_sums.sum(axis=0))
    return haadf, chem


def cold_prox(problem, work, x, weight, momentum):
    """From ``work.stepped`` to the prox in ``x`` from a dual of zero; sums as of :func:`warm_prox`."""
    return _run_prox(problem, work, x, weight, momentum, work.no_dual, work.no_dual)


def warm_prox(problem, state, work, x, weight):
    """From ``work.stepped`` to the prox in ``x`` from the dual of the state, which moves on.

    Returns the total variation of the new ``x``, ``||x - previous x||^2`` and ``||previous x||^2``.
    """
    if state.dual is None:
        state.dual = np.zeros((2, *x.shape), x.dtype)
    if work.spare_dual is None:
        work.spare_dual = np.empty_like(state.dual)
    sums = _run_prox(problem, work, x, weight, work.momentum, state.dual, work.spare_dual)
    state.dual, work.spare_dual = work.spare_dual, state.dual
    return sums


def _measure_tv(problem, state, work):
    """The total variation of the maps: their prox without a step, which leaves them as they are."""
    np.copyto(work.stepped, state.x)
    _note(state, *cold_prox(problem, work, state.x, 1, work.momentum[:0]))
    state.change = np.inf


def _run_prox(problem, work, x, weight, momentum, dual, dual_next):
    kernels.prox_tv(
        work.stepped,
        x,
        work.scalar(weight),
        problem.penalty.is_isotropic,
        momentum,
        work.band,
        dual,
        dual_next,
        work.work,
        work.lines,
        work.prox_sums,
    )
    tv, change, size = (float(s) for s in work.prox_sums.sum(axis=(0, 1)))
    return tv, change, size


def _note(state, tv, change, size):
    state.tv = tv
    state.change = float(np.sqrt(change / size)) if size else (np.inf if change else 0.0)


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
