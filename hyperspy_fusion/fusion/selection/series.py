"""Fits of a series of frames together, and the choice of their weight along the series by cross-validation.

The penalty and all weights of one frame are chosen before, as for frames by themselves. Frames together need less
smoothing within each: in pseudo-code, with fits to a window of frames without a part of their counts,

    best = the weights chosen before, and a first weight along the series;
    climb in the weight along the series, then in lambda_reg, by factors of 2 on half as many held-out pixels;
    climb in both again, in lambda_reg by factors of the root of 2;
    take best if it is better than frame by frame (paired_comparison).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.fusion.checks import is_auto
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.selection.cross_validation import HELD_OUT_PIXELS, N_COUNT_FOLDS, folds_of
from hyperspy_fusion.fusion.selection.low_accuracy_fits import LARGEST_WEIGHT, SMALLEST_WEIGHT, low_accuracy_stopping
from hyperspy_fusion.fusion.selection.model_averaging import AveragedProblem, EnsembleState, weighted_mean
from hyperspy_fusion.fusion.selection.paired_comparison import PairedComparison
from hyperspy_fusion.fusion.selection.search import COARSE, FINE
from hyperspy_fusion.fusion.solvers.primal_dual_state import Stopping
from hyperspy_fusion.fusion.solvers.series import Series, SeriesState, fit_series

# frames in the middle of a series that have the choice made for all; the weight along the series that is tried first
WINDOW, FIRST_WEIGHT = 8, 0.5


class FrameFit(NamedTuple):
    """The fit of one frame of a series: problem, state and result as of a frame by itself."""

    problem: AveragedProblem
    state: EnsembleState
    result: Any


@dataclass(frozen=True)
class SeriesEnsemble:
    """Fits to one series whose maps are averaged.

    Attributes
    ----------
    series
        A :class:`~hyperspy_fusion.fusion.solvers.series.Series` for each fit.
    weights
        (fits, n), >= 0, of sum 1 over the fits.
    """

    series: list
    weights: np.ndarray

    @classmethod
    def of(cls, observations: Sequence[Any], settings: Sequence[Any], weights: Any):
        """Of all observations, with the settings of each fit."""
        return cls([series_of(observations, own) for own in settings], np.asarray(weights))

    def solve(self, settings, states=None, num_workers=None):
        """The :class:`SeriesState` of each fit, and a list of results for each.

        Raises
        ------
        KeyboardInterrupt
            By Ctrl-C.
        FloatingPointError
            Where a fit diverges.
        """
        stopping = Stopping.of(settings).in_ensemble(self.weights)
        found = []
        for k, series in enumerate(self.series):
            start = coarse_start(series, num_workers) if states is None else states[k].restarted(series)
            results, state = fit_series(series, stopping[k], start, num_workers=num_workers)
            if results[0].reason is StopReason.INTERRUPTED:
                raise KeyboardInterrupt
            if results[0].reason is StopReason.NOT_FINITE:
                raise FloatingPointError(results[0].message)
            found.append((state, results))
        return [state for state, _ in found], [results for _, results in found]

    def maps(self, results):
        """(n, ny, nx) averaged maps of each frame."""
        return [weighted_mean(self.weights, [one.maps for one in of_frame]) for of_frame in zip(*results, strict=True)]

    def frames(self, states, results):
        """A :class:`FrameFit` for each frame."""
        found = []
        for t, maps in enumerate(self.maps(results)):
            problem = AveragedProblem([series.problems[t] for series in self.series], self.weights)
            own = [of_fit[t] for of_fit in results]
            state = EnsembleState([state.states[t] for state in states], [one.maps for one in own])
            result = replace(
                own[0],
                maps=maps,
                modelled_haadf=problem.of_largest_weight.modelled_haadf(maps),
                n_iter=sum(one.n_iter for one in own),
                gap=max(one.gap for one in own),
            )
            found.append(FrameFit(problem, state, result))
        return found


def series_of(observations, settings):
    """The :class:`~hyperspy_fusion.fusion.solvers.series.Series` of observations, with ``lambda_stack`` of settings."""
    problems = [observation.problem(settings) for observation in observations]
    return Series(problems, settings.lambda_stack, np.mean([problem.noise.unit for problem in problems], axis=0))


def coarse_start(series, num_workers=None):
    """The state to start from: coarse fits of each frame by itself."""
    return SeriesState.of([problem.coarse_start(num_workers=num_workers) for problem in series.problems])


# ---- the choice of the weight ------------------------------------------------------------------------


class Weights(NamedTuple):
    """A candidate."""

    lambda_reg: float | None  # None for what is given
    lambda_stack: float


def weights_along(observations, settings, chosen, num_workers=None):
    """Choose ``lambda_stack``, and ``lambda_reg`` with it where it is open.

    Parameters
    ----------
    observations
        Of frames that follow each other.
    settings
        An :class:`~hyperspy_fusion.fusion.settings.AutoSettings`.
    chosen
        The settings of the fit of the largest weight, as chosen for frames by themselves.
    num_workers
        Threads; None for all.

    Returns
    -------
    Weights
    """
    first = max((len(observations) - WINDOW) // 2, 0)
    fits = _Fits(observations[first : first + WINDOW], settings, chosen, num_workers)
    comparison = PairedComparison(fits.folds, fits)
    is_open = is_auto(settings.lambda_reg) and chosen.regularization != "none"
    alone = Weights(float(chosen.lambda_reg) if is_open else None, 0.0)
    best = alone._replace(lambda_stack=FIRST_WEIGHT)
    for factor, n_folds in ((COARSE, -(-len(fits.folds) // 2)), (FINE, None)):
        # the score changes little with the weight along the series
        best = comparison.climb(best, _scaled("lambda_stack"), (COARSE, 1 / COARSE), n_folds)
        best = comparison.climb(best, _scaled("lambda_reg"), (1 / factor, factor), n_folds) if is_open else best
    return best if comparison.is_better(best, alone) else alone


def _scaled(name):
    """A step of a climb: a candidate with one of its weights times a factor; None beyond the limits."""

    def step(candidate, factor):
        weight = float(getattr(candidate, name) * factor)
        return candidate._replace(**{name: weight}) if SMALLEST_WEIGHT < weight < LARGEST_WEIGHT else None

    return step


@dataclass(frozen=True)
class _Fold:
    """The folds of several frames as one, whose maps are those of a list."""

    folds: list

    def scores(self, fused):
        return np.concatenate([fold.scores(maps) for fold, maps in zip(self.folds, fused, strict=True)])


class _Fits:
    """Low-accuracy fits to all data of some frames but one fold, each started from the last one of its fold."""

    def __init__(self, observations, settings, chosen, num_workers):
        self.observations = [replace(one, dtype=np.dtype(np.float32)) for one in observations]
        self.chosen, self.num_workers, self.states = chosen, num_workers, {}
        of_each = []
        for t, one in enumerate(observations):
            scan, noise, rng = one.scan, one.noise, np.random.default_rng((settings.seed, t))
            of_each.append(folds_of(scan.maps, scan.valid, noise.counts_scale, noise.variances, noise.background, rng))
        self.n_pixels = len(observations) * observations[0].scan.haadf.size
        number = min(-(-HELD_OUT_PIXELS // self.n_pixels), N_COUNT_FOLDS)
        self.folds = [_Fold(list(folds)) for folds in list(zip(*of_each, strict=False))[:number]]

    def __call__(self, weights, k):
        parts = [one.part(fold) for one, fold in zip(self.observations, self.folds[k].folds, strict=True)]
        changed = {name: value for name, value in weights._asdict().items() if value is not None}
        series = series_of(parts, replace(self.chosen, **changed))
        before = self.states.get(k)
        start = coarse_start(series, self.num_workers) if before is None else before.restarted(series)
        stopping = low_accuracy_stopping(self.n_pixels)
        results, self.states[k] = fit_series(series, stopping, start, num_workers=self.num_workers)
        if results[0].reason is StopReason.INTERRUPTED:
            raise KeyboardInterrupt
        return [one.maps for one in results]
