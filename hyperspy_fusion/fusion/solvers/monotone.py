"""The published objective, minimised: accelerated proximal gradient with a guard against every rise.

The published loop stops short of the minimum of its own objective, for the dual of its prox starts at zero each time.
Here the dual is kept, the prox is solved as well as the step needs it, and the step is as long as the terms allow.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from hyperspy_fusion.fusion.result import StopReason, Terms
from hyperspy_fusion.fusion.settings import LARGEST, SMALLEST
from hyperspy_fusion.fusion.solvers.proximal_gradient import (
    cold_prox,
    evaluate,
    gradient_step,
    proximal_gradient,
    run,
    warm_prox,
)

_logger = logging.getLogger(__name__)

DEFAULT_TOL = 1e-5
# inner iterations of one batch and batches of one prox, at the most: what Ctrl-C may have to wait for
MOST_STEPS, MOST_BATCHES = 512, 8
MOST_HALVINGS = 60
LENGTHEN = 1.1
MOST_NATURAL = 1e6  # tau in units of the natural step
# decrease asked of a step in units of its squared length / tau; an exact one from the last maps brings a half
DECREASE = 1e-3
# error of the objective in units of its size and the precision of the dtype; its sums run along rows in the dtype
ROUNDING = 4


def solve(problem, settings, state=None, callback=None, num_workers=None):
    """Fit by ``settings.algorithm``; arguments and results are those of :func:`monotone_proximal_gradient`."""
    solvers = {"published": proximal_gradient, "monotone": monotone_proximal_gradient}
    return solvers[settings.algorithm](problem, settings, state, callback, num_workers)


def monotone_proximal_gradient(problem, settings, state=None, callback=None, num_workers=None):
    """Minimise the published objective F by accelerated proximal gradient, with a guard against every rise.

    From ``y = max(x + (t - 1)/t' (x - previous x), 0)``, with ``t' = (1 + sqrt(1 + 4 t^2))/2``, the step

    ``z = argmin_{u >= 0} 1/2 ||u - y + tau gradient(y)||^2 + tau lambda_tv TV(u)``

    is the next x where it lowers F; else the momentum is dropped and the step taken from x itself (Li & Lin, NeurIPS
    2015, algorithm 2, with a monotone criterion). ``tau`` is halved until the quadratic model of the smooth
    terms lies above them at z (Beck & Teboulle, SIAM J. Imaging Sci. 2, 183, 2009, equation 2.5), and grows by a
    tenth with each iteration.

    The argmin is approached by fast gradient projection from the last dual: ``tv_iter`` inner iterations at first,
    doubled until the duality gap is at most ``1/2 ||z - y||^2``, so the nearer the minimum, the more exact. An inexact
    z cannot raise F, for F itself is asked before z is accepted.

    Stops once ``state.change``, a bound on the relative length of the exact step, is at or below ``tol`` (None: 1e-5):
    ``(||z - y|| + sqrt(2 gap)) / ||y||`` for a ``tau`` of at least the inverse of the curvature of the terms at maps
    in [0, 1]. Where it is zero x is stationary, and for gamma = 1, where F is convex, the minimiser. Differences of F
    and gaps below the rounding of the dtype count as none: in single precision F may rise by 5e-7 of itself.

    Parameters
    ----------
    problem
        From :func:`~hyperspy_fusion.fusion.problems.published.published_problem`, with gamma >= 1.
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
    """
    tol = DEFAULT_TOL if settings.tol is None else settings.tol
    return run(problem, settings, _Iteration, tol, state, callback, num_workers)


def natural_step(problem):
    """The inverse of a bound on the curvature of the smooth terms at the maps and at maps in [0, 1]."""
    haadf = problem.lambda_haadf * problem.haadf_term.gamma**2 * float(np.sum(problem.haadf_term.weights**2))
    chem = problem.lambda_chem / (4 * problem.noise.background)
    return 1 / (haadf + chem)


@dataclass
class Acceleration:
    """Kept beside the maps: those before them, lowest objective, step, inner iterations and momentum."""

    previous: np.ndarray
    lowest: float
    tau: float
    steps: int
    t: float = 1.0

    @property
    def next_t(self):
        """``(1 + sqrt(1 + 4 t^2))/2``."""
        return (1 + np.sqrt(1 + 4 * self.t**2)) / 2

    def extrapolate(self, x, out):
        """``max(x + (t - 1)/t' (x - previous), 0)``: the terms are defined for maps >= 0 alone."""
        np.subtract(x, self.previous, out=out)
        out *= out.dtype.type((self.t - 1) / self.next_t)
        out += x
        np.maximum(out, 0, out=out)


@dataclass(frozen=True)
class _Step:
    """A step: terms where it ends, squared length, bound on its relative length, whether the model bounds the terms."""

    terms: Terms
    length: float
    change: float
    is_modelled: bool


class _Iteration:
    """One iteration at each call, with room for the point it starts from and the trial it ends at."""

    def __init__(self, problem, settings, state, work):
        self.problem, self.state, self.work = problem, state, work
        self.point, self.trial = np.empty_like(state.x), np.empty_like(state.x)
        self.eps = float(np.finfo(state.x.dtype).eps)
        self.natural = natural_step(problem)
        # where the terms are flat nothing else keeps the products with the weights within single precision
        largest = max(problem.lambda_haadf, problem.lambda_chem, problem.lambda_tv)
        self.longest = min(MOST_NATURAL * self.natural, LARGEST / largest)
        if len(state.terms) <= state.n_iter:
            evaluate(problem, state, work)
        if state.acceleration is None:
            total = state.terms[-1].total
            state.acceleration = Acceleration(state.x.copy(), total, self._first_tau(), settings.tv_iter)
        self.memory = state.acceleration

    def __call__(self):
        if not np.isfinite(self.state.terms[-1].total):
            return StopReason.NOT_FINITE
        step = self._accelerated() or self._plain()
        if step is None:
            self.memory.tau = self._first_tau()
            return StopReason.STALLED
        self._accept(step)
        return None

    def _first_tau(self):
        return min(self.natural, self.longest)

    # ---- which step ---------------------------------------------------------------------------

    def _accelerated(self):
        """The step from the extrapolated maps; None where it does not lower the objective."""
        if self.memory.t == 1:
            return None
        self.memory.extrapolate(self.state.x, self.point)
        step = self._shortened(lambda step: step.is_modelled)
        return step if step and self._is_lower(step) else None

    def _plain(self):
        """The step from the maps themselves, so short that it lowers the objective; None where there is none."""
        self.memory.t = 1.0
        np.copyto(self.point, self.state.x)
        return self._shortened(lambda step: step.is_modelled and self._is_lower(step))

    def _shortened(self, is_good):
        """A step with ``tau`` halved until it is good; None where none is."""
        for _ in range(MOST_HALVINGS):
            step = self._step(self.memory.tau)
            if is_good(step):
                return step
            self.memory.tau /= 2
        return None

    def _is_lower(self, step):
        """Whether the objective falls below its lowest value, or differs from it by rounding alone."""
        enough = DECREASE * step.length / self.memory.tau
        return step.terms.total <= self.memory.lowest - enough + self._rounding(step.terms)

    def _rounding(self, terms):
        return ROUNDING * self.eps * self.problem.weigh(terms.haadf, abs(terms.chem), terms.tv)

    def _accept(self, step):
        state, memory = self.state, self.memory
        memory.previous, state.x, self.trial = state.x, self.trial, memory.previous
        memory.t = memory.next_t
        memory.lowest = min(memory.lowest, step.terms.total)
        state.tv, state.change = step.terms.tv, step.change
        state.terms.append(step.terms)
        # below rounding the model is not tested, and nothing would hold tau
        if step.length > memory.tau * self._rounding(step.terms):
            memory.tau = min(LENGTHEN * memory.tau, self.longest)

    # ---- one step -----------------------------------------------------------------------------

    def _step(self, tau):
        """From the point to the trial."""
        problem, work = self.problem, self.work
        before = self._descend(tau)
        tv, length, size, gap = self._prox(tau * problem.lambda_tv)
        slope = _dot(self.point - work.stepped, self.trial - self.point)
        haadf, chem = gradient_step(problem, work, self.trial, 1, work.stepped)
        terms = Terms(haadf, chem, tv, problem.weigh(haadf, chem, tv))
        model = before + (slope + length / 2) / tau + self._rounding(terms)
        change = _ratio(np.sqrt(length) + np.sqrt(2 * gap), np.sqrt(size)) * max(1, self.natural / tau)
        return _Step(terms, length, change, problem.weigh(haadf, chem, 0) <= model)

    def _descend(self, tau):
        """``work.stepped = point - tau gradient``; returns the value of the smooth terms at the point.

        The kernel clips at zero, which the exact prox must not see: a pixel far below zero pulls its neighbours down.
        Of the steps down and up the gradient, one at least is not clipped.
        """
        down, up = self.work.stepped, self.trial
        gradient_step(self.problem, self.work, self.point, -tau, up)
        haadf, chem = gradient_step(self.problem, self.work, self.point, tau, down)
        np.subtract(self.point, up, out=up)
        up += self.point
        np.copyto(down, up, where=down <= 0)
        return self.problem.weigh(haadf, chem, 0)

    def _prox(self, weight):
        """The trial: its total variation, squared length of the step and of the point, duality gap beyond rounding."""
        work, memory = self.work, self.memory
        np.copyto(self.trial, self.point)
        if weight < SMALLEST:
            return *cold_prox(self.problem, work, self.trial, 1, work.momentum[:0]), 0.0
        for batch in range(MOST_BATCHES):
            if batch > 0:
                memory.steps = min(2 * memory.steps, max(MOST_STEPS, memory.steps))
                np.copyto(self.trial, self.point)
            if work.momentum.size != memory.steps:
                work.make_room(memory.steps)
            tv, length, size = warm_prox(self.problem, self.state, work, self.trial, weight)
            gap = self._gap(weight, tv)
            if gap <= length / 2:
                break
        return tv, length, size, gap

    def _gap(self, weight, tv):
        """Duality gap ``weight (TV(z) - <dual, L^T z>)``, where ``weight <dual, L^T z> = <v - z, z>`` by positivity."""
        gap = weight * tv - _dot(self.work.stepped - self.trial, self.trial)
        rounding = self.eps * weight * (tv + float(self.trial.sum(dtype=np.float64)))
        return max(gap - rounding, 0.0)


def _dot(a, b):
    return float(np.einsum("...j,...j->...", a, b).sum(dtype=np.float64))


def _ratio(length, size):
    """``length / size``, where nothing over nothing is nothing."""
    return float(length / size) if size else (np.inf if length else 0.0)
