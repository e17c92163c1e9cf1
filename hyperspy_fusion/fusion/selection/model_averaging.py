"""Model averaging: the weighted mean of an ensemble of fits to the same data, with weights for each map.

With the weights ``w_ji`` of fit j for map i, >= 0 and of sum 1 over the fits, the averaged map is
``x_i = sum_j w_ji x_ji``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.fusion.result import FusionResult, StopReason
from hyperspy_fusion.fusion.solvers.primal_dual_state import Stopping
from hyperspy_fusion.fusion.solvers.threads import for_each

_WORST_FIRST = (
    *(StopReason.NOT_FINITE, StopReason.INTERRUPTED, StopReason.STOPPED),
    *(StopReason.NOT_CONVERGED, StopReason.NOT_SETTLED),
)


class EnsembleFit(NamedTuple):
    """A fit of an ensemble: its settings, its weights (n,) in each map, its data, and a state of part of the counts.

    ``source.problem(settings)`` makes the problem: an :class:`~hyperspy_fusion.fusion.problems.calibrated.Observation`
    or :class:`~hyperspy_fusion.fusion.selection.spectral_components.Components`.
    """

    settings: Any
    weights: np.ndarray
    source: Any
    state: Any = None
    fraction: float = 1.0


@dataclass
class EnsembleState:
    """States of the fits that were reached, the maps (n, ny, nx) of each, and the expected times of all fits."""

    states: list = field(default_factory=list)
    maps: list = field(default_factory=list)
    times: Sequence[float] = (1.0,)

    @property
    def fraction(self):
        """Of all fits, that is done, as estimated."""
        running = len(self.states) - 1
        return (sum(self.times[:running]) + self.times[running] * self.states[-1].fraction) / sum(self.times)

    @property
    def stage(self):
        """The running fit in words."""
        return f"fitting {len(self.states)}/{len(self.times)}"

    @property
    def n_iter(self):
        """Iterations of all fits."""
        return sum(state.n_iter for state in self.states)

    @property
    def gap(self):
        """The relative duality gap of the running fit."""
        return self.states[-1].gap if self.states else np.inf


@dataclass(frozen=True)
class AveragedProblem:
    """Problems whose solutions are averaged; a :class:`~hyperspy_fusion.fusion.problems.base.FusionProblem`.

    Attributes
    ----------
    problems
        List of :class:`~.CalibratedProblem` of one observation, that of the largest weight first, followed by
        :class:`~.ComponentProblem` of the same counts.
    weights
        (problems, n), >= 0, of sum 1 over the problems.
    """

    problems: list
    weights: np.ndarray

    @classmethod
    def of(cls, ensemble: Sequence[EnsembleFit], num_workers=None):
        """From what :func:`~hyperspy_fusion.fusion.selection.search.select` returns."""
        problems = for_each(ensemble, lambda fit: fit.source.problem(fit.settings), num_workers)
        return cls(problems, np.array([fit.weights for fit in ensemble]))

    def first_state(self, ensemble: Sequence[EnsembleFit], num_workers=None):
        """The :class:`EnsembleState` to solve from: near the fits to part of the counts, where there are any."""

        def start(k):
            fit = ensemble[k]
            return None if fit.state is None or self._alike(k) else self.problems[k].start(fit.state, fit.fraction)

        return EnsembleState(for_each(range(len(ensemble)), start, num_workers))

    @property
    def of_largest_weight(self):
        """The problem of the maps of the largest weight: noise and HAADF forward model are the same in all."""
        return self.problems[0].of_largest_weight

    @property
    def penalty(self):
        """That of the largest weight."""
        return self.of_largest_weight.penalty

    @property
    def image_weights(self):
        """(K,) mean weights of the HAADF terms of all elastic images, in the mean of all maps; 0 for components."""
        shares = self.weights.mean(axis=1) / self.weights.mean(axis=1).sum()
        return sum(share * getattr(p, "image_weights", 0.0) for share, p in zip(shares, self.problems, strict=True))

    @property
    def uses_haadf(self):
        """Whether the HAADF image contributes to any of the fits."""
        return any(problem.uses_haadf for problem in self.problems)

    @property
    def diagnostics(self):
        """Those of all problems, each once."""
        return list(dict.fromkeys(d for problem in self.problems for d in problem.diagnostics))

    def solve(self, settings, state=None, callback=None, num_workers=None):
        """Solve all problems, one after the other, and average their solutions.

        Parameters
        ----------
        settings
            ``max_iter``, of each problem, and ``tol``.
        state
            An :class:`EnsembleState` to continue from; None starts anew.
        callback
            Called with the :class:`EnsembleState` at every evaluation of a gap; may raise ``StopIteration`` to stop.
        num_workers
            Threads; None for all.

        Returns
        -------
        FusionResult, EnsembleState
            The gap is the largest of all, the history that of the problem of the largest weight. Where the fit is
            stopped, the average is that of the problems that were reached.
        """
        before = [] if state is None else state.states
        stopping = Stopping.of(settings).in_ensemble(self.weights)
        state, results, times = EnsembleState(), [], self._expected_times(stopping)
        call = None if callback is None else lambda one: callback(EnsembleState([*state.states, one], times=times))
        for k, problem in enumerate(self.problems):
            start = before[k] if k < len(before) else None
            start = self._near_start(k, state.states) if start is None else start
            try:
                result, fitted = problem.solve(stopping[k], start, call, num_workers)
            except KeyboardInterrupt:  # before its first iteration
                if not results:
                    raise
                results[-1] = replace(results[-1], reason=StopReason.INTERRUPTED)
                break
            results.append(result)
            state.states.append(fitted)
            if result.reason in (StopReason.INTERRUPTED, StopReason.STOPPED, StopReason.NOT_FINITE):
                break
        state.maps = [r.maps for r in results]
        maps, reasons = weighted_mean(self.fits(state)[1], state.maps), [r.reason for r in results]
        result = FusionResult(
            maps=maps,
            modelled_haadf=self.of_largest_weight.modelled_haadf(maps),
            history=results[0].history,
            n_iter=sum(r.n_iter for r in results),
            reason=next((reason for reason in _WORST_FIRST if reason in reasons), reasons[0]),
            gap=max(r.gap for r in results),
        )
        return result, state

    def _expected_times(self, stopping):
        """Of all fits, up to a factor.

        Distances fall exponentially, from about one standard error. In each iteration a slope takes half as long as a
        map.
        """
        n_iter = [float(np.log(max(one.shares) / one.settled)) if one.settled else 1.0 for one in stopping]
        penalties = [problem.penalty for problem in self.problems]
        return [number * (2 * one.n_maps + one.n_fields) for number, one in zip(n_iter, penalties, strict=True)]

    def _near_start(self, k, states):
        """The state to start problem k from, near the last solution for the same components; None without one."""
        alike = self._alike(k)
        return self.problems[k].start(states[alike[-1]]) if alike else None

    def _alike(self, k):
        """Numbers of the problems before k for the same components."""
        components = [getattr(problem, "components", None) for problem in self.problems[: k + 1]]
        return [j for j in range(k) if components[k] is not None and components[j] is components[k]]

    def fits(self, state):
        """(problem, state) of the fits that were reached, and their weights (fits, n) of sum 1."""
        weights = self.weights[: len(state.states)] + np.finfo(float).tiny
        return list(zip(self.problems, state.states, strict=False)), weights / weights.sum(axis=0)

    def attribution(self, state, maps):
        """The averages of those of the fits; terms that a fit does not have are 0."""
        fits, weights = self.fits(state)
        each = [problem.attribution(one, fitted) for (problem, one), fitted in zip(fits, state.maps, strict=True)]
        names, nothing = dict.fromkeys(name for terms in each for name in terms), np.zeros_like(each[0]["bound"])
        return {name: weighted_mean(weights, [terms.get(name, nothing) for terms in each]) for name in names}


def weighted_mean(weights, maps):
    """Sum over fits of their maps (n, ny, nx) times weights (fits, n), in the dtype of the first."""
    mean: Any = 0.0
    for weight, m in zip(weights, maps, strict=True):
        mean = mean + weight.astype(m.dtype)[:, None, None] * m
    return mean.astype(maps[0].dtype, copy=False)
