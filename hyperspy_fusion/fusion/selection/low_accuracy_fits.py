"""Fits of low accuracy to all data of scans but one fold, by which the candidates of a search are compared."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.selection.band_components import BandComponentsByFold
from hyperspy_fusion.fusion.selection.cross_validation import HeldOutCounts, band_folds, folds_of
from hyperspy_fusion.fusion.selection.model_averaging import EnsembleFit
from hyperspy_fusion.fusion.selection.spectral_components import Components, ComponentsByFold
from hyperspy_fusion.fusion.solvers.primal_dual_state import PrimalDualState, Stopping
from hyperspy_fusion.fusion.solvers.threads import go_on_side_by_side

_logger = logging.getLogger(__name__)

# When low-accuracy fits end: pixels times iterations, within limits, and distance from the final maps. With 50
# iterations, or at a gap of 6e-3, the search took too small weights at a twentieth of the counts of a real scan.
LOW_ACCURACY_WORK, LOW_ACCURACY_ITERATIONS, LOW_ACCURACY_SETTLED = 1e7, (100, 400), 0.2
# a fit of larger weight that ends with a larger relative gap may be far from its minimum: under a large weight of
# "tgv", maps move so slowly that they count as settled where they have hardly left those of a smaller one
LARGEST_GAP = 0.1
# penalties by how long a fit takes, "" for fits to components: side by side, the last one should not be a slow one
_SLOWEST_FIRST = ("", "tgv", "guided", "tv", "directional", "none")


def low_accuracy_stopping(n_pixels):
    """When a fit to so many pixels ends."""
    iterations = np.clip(LOW_ACCURACY_WORK / n_pixels, *LOW_ACCURACY_ITERATIONS)
    return Stopping(int(iterations), settled=LOW_ACCURACY_SETTLED)


# of lambda_reg, and of the weight of each of several images
LARGEST_WEIGHT, SMALLEST_WEIGHT, LARGEST_IMAGE_WEIGHT = 100.0, 1e-4, 256.0
# what the method "auto" may choose
OPEN = ("regularization", "lambda_reg", "lambda_haadf", "joint")


class Choice(NamedTuple):
    """A candidate: a fit to the maps, or to so many components of the spectra."""

    regularization: str
    lambda_reg: Any  # float, or one per element
    lambda_haadf: Any  # float, or one per elastic image
    joint: bool
    components: int = 0


def weight_of(choice, k):
    """The weight of the HAADF term of elastic image k."""
    return choice.lambda_haadf[k] if isinstance(choice.lambda_haadf, tuple) else choice.lambda_haadf


def with_weight(choice, k, weight):
    """The choice with another weight of the HAADF term of elastic image k."""
    given = choice.lambda_haadf
    return choice._replace(lambda_haadf=(*given[:k], weight, *given[k + 1 :]) if isinstance(given, tuple) else weight)


def scaled_images(images, choice, factor):
    """The choice with the weights of the HAADF terms of some images times a factor; None beyond the limits."""
    for k in images:
        weight = weight_of(choice, k) * factor
        if not 1 / LARGEST_IMAGE_WEIGHT <= weight <= LARGEST_IMAGE_WEIGHT:
            return None
        choice = with_weight(choice, k, weight)
    return choice


def scaled_weight(choice, factor):
    """The choice with ``lambda_reg`` times a factor, on powers of the root of 2; None beyond the limits."""
    weight = 2.0 ** (np.round(2 * np.log2(choice.lambda_reg * factor)) / 2)
    return choice._replace(lambda_reg=weight) if SMALLEST_WEIGHT < weight < LARGEST_WEIGHT else None


@dataclass(frozen=True)
class Part:
    """A scan with its folds, the counts of each of which are left out in turn."""

    observation: Any
    single: Any
    folds: list
    spectra: Any

    @classmethod
    def of(cls, observation, settings, out_of_window, rng):
        scan, noise, spectra = observation.scan, observation.noise, None
        folds = folds_of(scan.maps, scan.valid, noise.counts_scale, noise.variances, noise.background, rng)
        if isinstance(folds[0], HeldOutCounts):
            spectra = cls.components_of(observation, out_of_window, settings, len(folds), rng)
        # single precision is enough for a comparison
        return cls(observation, replace(observation, dtype=np.dtype(np.float32)), folds, spectra)

    @staticmethod
    def components_of(observation, out_of_window, settings, n_folds=0, rng=None):
        """Components of the spectra, and of those without each fold; None where there are none."""
        rng = np.random.default_rng() if rng is None else rng
        return ComponentsByFold.of(observation, out_of_window, settings, n_folds, rng)


class LowAccuracyFits:
    """Fits to all data of a scan but one fold, each started from the last one of its fold and kind."""

    # the former wins a tie
    penalties = ("guided", "directional", "tgv", "tv")

    def __init__(self, parts, settings, n_folds, num_workers):
        self.parts, self.settings, self.num_workers = parts, settings, num_workers
        # the folds of all scans in turn, each with the number of its scan and its own number there
        places = sorted((j, i) for i, part in enumerate(parts) for j in range(len(part.folds)))
        self.places = [(i, j) for j, i in places][:n_folds]
        self.folds = [parts[i].folds[j] for i, j in self.places]
        self.states, self.maps, self.all_gaps = {}, {}, {}

    @property
    def related(self):
        """Whether each elastic image has an effect on the maps, in any of the scans."""
        found = [part.observation.effective_images for part in self.parts]
        return np.any(found, axis=0).tolist()

    @property
    def n_elements(self):
        """The number of elements of the first scan."""
        return len(self.parts[0].observation.scan.elements)

    @property
    def n_components(self):
        """The number of components of the spectra, 0 where there are none."""
        return min(len(part.spectra.components.strengths) if part.spectra else 0 for part in self.parts)

    def __call__(self, choice, k):
        """(n, ny, nx) maps, or columns of the spectra, of a fit to the data without fold k."""
        if (choice, k) not in self.maps:
            go_on_side_by_side([iter([self.sequences_of({(choice, k): None})])], self.num_workers)
        return self.maps[choice, k]

    def sequences_of(self, pairs):
        """Sequences of functions of a number of threads, which make the fits that are missing.

        Those of a sequence are of one fold and penalty, or of its components. ``pairs`` are {(choice, fold): trial}. A
        fit whose :class:`~.paired_comparison.Trial` gives it up ends. The next one of its kind starts from it, but its
        maps are not kept.
        """
        groups = {}
        for (choice, k), trial in pairs.items():
            if (choice, k) not in self.maps:
                # fits of one penalty start from each other, joint or not; all to components share these
                group = "" if choice.components else choice.regularization
                groups.setdefault((_SLOWEST_FIRST.index(group), k), []).append((choice, k, trial))
        return [[functools.partial(self._make, *fit) for fit in groups[group]] for group in sorted(groups)]

    def _make(self, choice, k, trial, num_workers):
        maps = self._fit(choice, k, trial, num_workers)
        if trial is None or not trial.is_over:
            self.maps[choice, k] = maps

    def beside(self, best):
        """Further candidates for an average with the best one."""
        return []

    def _fit(self, choice, k, trial, num_workers):
        settings = self._settings(choice)
        i, j = self.places[k]
        part = self.parts[i]
        source = part.single.part(self.folds[k])
        if choice.components:
            source = part.spectra.without(j, source, settings)
        problem = source.problem(settings)
        kind = kind_of(choice)
        near = next((key for key in ((kind, k), (kind_of(choice._replace(joint=True)), k)) if key in self.states), None)
        if near:
            start = problem.start(self.states[near])
        else:  # what another fold starts from has seen the counts of this one: it lends its standard errors alone
            start = problem.coarse_start(self._first_state(choice) if i == 0 else None, num_workers)
        stopping = low_accuracy_stopping(self.folds[k].valid[0].size)
        if trial is not None:
            stopping = replace(stopping, is_given_up=lambda state: trial(problem.columns(state)))
        result, self.states[kind, k] = problem.solve(stopping, start, num_workers=num_workers)
        if result.reason is StopReason.INTERRUPTED:
            raise KeyboardInterrupt
        _logger.debug("%s, fold %d: %d iterations, gap %.1e", choice, k, result.n_iter, result.gap)
        maps = self._kept(problem, result, self.states[kind, k])
        self.all_gaps[choice, k] = result.gap
        if trial is not None and not trial.is_over and self._is_far(choice, k, trial.of):
            trial.end_far_from_the_minimum(maps)
        return maps

    def _kept(self, problem, result, state):
        return result.maps

    def _is_far(self, choice, k, rival):
        """Whether the gap shows that a fit has not left that of a smaller weight.

        With a HAADF term and few counts its bound is loose. But it grows as the weight does where nothing else changes.
        """
        if (rival, k) not in self.all_gaps or choice._replace(lambda_reg=rival.lambda_reg) != rival:
            return False
        growth = np.min(choice.lambda_reg) / np.min(rival.lambda_reg)
        explained = growth * self.all_gaps[rival, k] if np.any(choice.lambda_haadf) else 0.0
        return growth > 1 and self.all_gaps[choice, k] > max(LARGEST_GAP, explained)

    def _settings(self, choice):
        return self.settings.chosen(*choice[: len(OPEN)])

    def final(self, choice, weights):
        """The :class:`EnsembleFit` to all data of the first scan."""
        part, settings, fraction = self.parts[0], self._settings(choice), self.folds[0].fraction
        if choice.components:
            source = part.spectra.components
            return EnsembleFit(settings, weights, source, self._rotated_state(choice, source.problem(settings)))
        return EnsembleFit(settings, weights, part.observation, self._mean_state(kind_of(choice)), fraction)

    def _rotated_state(self, choice, problem):
        """The state of this kind in the first fold, as a start of the components of all counts; None without one."""
        state, components = self.states.get((kind_of(choice), 0)), self.parts[0].spectra.of_folds.get(0)
        if state is None or not isinstance(components, Components) or state.standard_errors is None:
            return None
        return problem.rotated(state, components, self.folds[0].fraction)

    def _mean_state(self, kind):
        """The mean of the states of a kind in the folds of the first scan, which miss different counts."""
        states = [self.states.get((kind, k)) for k, (i, _) in enumerate(self.places) if i == 0]
        return PrimalDualState.mean_of([state for state in states if state is not None])

    def _first_state(self, choice):
        """The state of this kind in the first fold; None for components, which differ between folds."""
        return None if choice.components else self.states.get((kind_of(choice), 0))


@dataclass(frozen=True)
class SpectralPart(Part):
    """A scan whose spectra are fitted, with folds of the counts in all bands."""

    @classmethod
    def of(cls, observation, settings, out_of_window, rng):
        folds = band_folds(observation.counts, observation.matrix, observation.valid, rng)
        spectra = cls.components_of(observation, out_of_window, settings)
        return cls(observation, observation.with_dtype(np.float32), folds, spectra)

    @staticmethod
    def components_of(observation, out_of_window, settings, n_folds=0, rng=None):
        return BandComponentsByFold.of(observation, settings)


class LowAccuracySpectralFits(LowAccuracyFits):
    """Fits to whole spectra, all columns of which are kept: they are judged by the held-out counts of all bands."""

    # "tgv" was far behind in every case that was tried
    penalties = ("directional", "guided")

    def beside(self, best):
        """Fits with more and less smoothing: one weight of the penalty does not suit all maps."""
        factors = () if best.regularization == "none" else (0.5, 2.0)
        return [best._replace(lambda_reg=factor * best.lambda_reg) for factor in factors]

    def _kept(self, problem, result, state):
        return problem.columns(state)

    def _is_far(self, choice, k, rival):
        """Not known: with few counts in many bands, most fits have a large gap."""
        return False


# by the kind of the observation: its folds, its fits, and settings that are not open; spectra have no joint penalty
FITS: dict[str, tuple] = {
    "maps": (Part, LowAccuracyFits, {}),
    "bands": (SpectralPart, LowAccuracySpectralFits, {"joint": False}),
}


def kind_of(choice):
    """Fits of one kind start from each other."""
    return choice.components > 0, choice.regularization, choice.joint
