"""The mean of several fits of the calibrated method to the same data, with weights for each map."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from hyperspy_fusion.fusion.result import FusionResult, StopReason
from hyperspy_fusion.fusion.selection.spectral_components import ComponentFit, solved, started

_WORST_FIRST = (StopReason.NOT_FINITE, StopReason.INTERRUPTED, StopReason.STOPPED, StopReason.NOT_CONVERGED)


@dataclass(frozen=True)
class MeanProblem:
    """Problems whose solutions are averaged.

    Attributes
    ----------
    problems
        List of :class:`~.CalibratedProblem`, the heaviest first, of one observation,
        and after them of :class:`~.ComponentProblem` of the same counts.
    weights
        (problems, n), >= 0, of sum 1 over the problems.
    starts
        A :class:`~hyperspy_fusion.fusion.solvers.primal_dual.PrimalDualState` or None for each.
    """

    problems: list
    weights: np.ndarray
    starts: list

    @classmethod
    def of(cls, observation, members):
        """From what :func:`~hyperspy_fusion.fusion.selection.search.select` returns."""
        settings, weights, starts = zip(*members, strict=True)
        problems = [s.problem() if isinstance(s, ComponentFit) else observation.problem(s) for s in settings]
        return cls(problems, np.array(weights), list(starts))

    def members(self, state):
        """(problem, state) of those that were reached, and their weights (members, n) of sum 1."""
        weights = self.weights[: len(state.states)] + np.finfo(float).tiny
        pairs = list(zip(self.problems, state.states, strict=False))
        return pairs, weights / weights.sum(axis=0)

    @property
    def first(self):
        """The problem of the largest weight: noise and HAADF forward model are the same in all."""
        return self.problems[0]

    @property
    def uses_haadf(self):
        """Whether the image has a say in any of the fits."""
        return any(problem.uses_haadf for problem in self.problems)


@dataclass
class MeanState:
    """States of all problems, and the maps (n, ny, nx) that each has come to."""

    states: list = field(default_factory=list)
    maps: list = field(default_factory=list)

    @property
    def n_iter(self):
        """Iterations of all."""
        return sum(state.n_iter for state in self.states)

    @property
    def gap(self):
        """The relative duality gap of the one at work."""
        return self.states[-1].gap if self.states else np.inf


def mean_of_fits(problem, settings, state=None, callback=None, num_workers=None):
    """Solve all problems, one after the other, and average their solutions.

    Parameters
    ----------
    problem
        A :class:`MeanProblem`.
    settings
        ``max_iter``, of each problem, and ``tol``.
    state
        Of an earlier call, to go on from; None starts anew.
    callback
        Called with the :class:`MeanState` at every evaluation of a gap; may raise ``StopIteration`` to stop.
    num_workers
        Threads; None for all.

    Returns
    -------
    FusionResult, MeanState
        The gap is the largest of all, the history that of the problem of the largest weight. Where the fit is stopped,
        problems that were not reached are left out of the mean.
    """
    before = [] if state is None else state.states
    state, results = MeanState(), []
    for k, one in enumerate(problem.problems):
        state.states.append(before[k] if k < len(before) else started(one, problem.starts[k]))
        call = None if callback is None else lambda _: callback(state)
        try:
            result, state.states[k] = solved(one, settings, state.states[k], call, num_workers)
        except KeyboardInterrupt:  # before its first iteration
            if not results:
                raise
            state.states.pop()
            results[-1] = replace(results[-1], reason=StopReason.INTERRUPTED)
            break
        results.append(result)
        problem.starts[k] = None  # its memory is needed no more
        if result.reason in (StopReason.INTERRUPTED, StopReason.STOPPED, StopReason.NOT_FINITE):
            break
    state.maps = [r.maps for r in results]
    return _mean(problem, state, results), state


def _mean(problem, state, results):
    maps = weighted_mean(problem.members(state)[1], state.maps)
    reasons = [r.reason for r in results]
    return FusionResult(
        maps=maps,
        modelled_haadf=problem.first.modelled_haadf(maps),
        history=results[0].history,
        n_iter=sum(r.n_iter for r in results),
        reason=next((reason for reason in _WORST_FIRST if reason in reasons), reasons[0]),
        gap=max(r.gap for r in results),
    )


def weighted_mean(weights, maps):
    """Sum over fits of their maps (n, ny, nx) times weights (fits, n), in the dtype of the first."""
    mean = 0.0
    for weight, m in zip(weights, maps, strict=True):
        mean = mean + weight[:, None, None] * m
    return mean.astype(maps[0].dtype, copy=False)
