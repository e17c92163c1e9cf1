"""Weights chosen by evidence: counts, or pixels, that a fit has not seen decide how it is done.

Natural weights mean the same at any dose, so that what is best for four fifths of the counts is used for all of them.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.selection.cross_validation import COUNT_PARTS, HeldOutCounts, count_parts, pixel_parts
from hyperspy_fusion.fusion.selection.model_averaging import weighted_mean
from hyperspy_fusion.fusion.selection.paired_comparison import SURE, Race, in_errors, indistinct, stack
from hyperspy_fusion.fusion.selection.spectral_components import ComponentFit, Components, solved, started, thinned

_logger = logging.getLogger(__name__)

# penalties to compare, with the weight at which each is tried first; a penalty that wins ties stands before the others
FIRST_WEIGHTS = {"guided": 1.0, "directional": 2**0.5, "tgv": 2.0, "tv": 1.0}
# of them, those with slopes: they take two to four times as many iterations
SLOW = ("guided", "tgv")
LARGEST_WEIGHT, SMALLEST_WEIGHT = 100.0, 1e-4
# between two weights, first and in the end
COARSE, FINE = 2.0, np.sqrt(2)
# a penalty so many standard errors behind another, in one part, has its weight from that part
FAR_BEHIND = 5.0
# gap of fits that are only compared, and pixels times iterations after which they end, within limits: large scans tell
# more by each fit, and take longer for it
ROUGH_TOL, ROUGH_WORK, ROUGH_ITERATIONS = 6e-3, 5e7, (500, 1500)
# parts are held out until they have so many pixels: large scans tell more by each
RACE_PIXELS = 2**17
# data of which so many times less smoothing than usual is chosen have been smoothed before
SMOOTH_DATA = 20
# with fewer counts in a map than this, nothing can be held out of it
FEWEST_COUNTS = 50


@dataclass(frozen=True)
class Selection:
    """What was tried and what was chosen.

    Attributes
    ----------
    tried
        Settings of the candidates that were left open: {name: list of values}.
    scores, errors, parts
        Of the candidates: mean score per pixel of the data held out (heldout.py) over that of flat maps, the standard
        error of its difference from that of the candidate of the largest weight, and on how many parts.
    weights
        (candidates, n) in the means that are the result, one per element; 0 for most.
    seed
        Of the split.
    sentence
        The choice in words.
    warnings
        Sentences about why it should not be trusted.
    """

    seed: int
    sentence: str
    tried: dict = field(default_factory=dict)
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    errors: np.ndarray = field(default_factory=lambda: np.zeros(0))
    parts: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    weights: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    warnings: list = field(default_factory=list)

    @classmethod
    def of(cls, race, chosen, open_names, seed, sentence):
        """From a race of candidates that are named tuples, {chosen ones: weights}, and the names that were open."""
        candidates, best = list(race.gains), next(iter(chosen))
        scores, errors = np.transpose([race.score(c, best) for c in candidates])
        tried = {name: [getattr(c, name) for c in candidates] for name in open_names}
        parts = np.array([len(gains) for gains in race.gains.values()])
        none = np.zeros_like(next(iter(chosen.values())))
        return cls(seed, sentence, tried, scores, errors, parts, np.array([chosen.get(c, none) for c in candidates]))

    def as_dict(self):
        """Flat arrays, lists of strings and Python scalars for metadata."""
        return {
            **{name: _flat(values) for name, values in self.tried.items()},
            "score": self.scores,
            "score_error": self.errors,
            "n_parts": self.parts,
            "weights": self.weights.ravel(),
            "seed": int(self.seed),
            "sentence": self.sentence,
        }


def _flat(values):
    return [str(v) for v in values] if any(isinstance(v, str) or v is None for v in values) else np.array(values)


# ---- the parts -------------------------------------------------------------------------------------


def held_out(maps, valid, counts_scale, variance, background, rng):
    """Counts where the maps hold whole numbers of them, pixels where they do not."""
    enough = -(-RACE_PIXELS // maps[0].size)
    if _are_counts(maps, counts_scale):
        return count_parts(maps, valid, counts_scale, background, rng, limit=enough)
    return pixel_parts(maps, valid, variance, background, rng, limit=enough)


def _are_counts(maps, counts_scale):
    """Whether all maps are whole numbers of counts, none of them negative."""
    if not np.all(counts_scale > 0):
        return False
    counts = maps / counts_scale[:, None, None]
    return bool(counts.min() >= 0 and np.allclose(counts, np.rint(counts), rtol=0, atol=1e-3))


def poor_elements(maps, counts_scale, elements):
    """Elements with too few counts to hold some out."""
    if not _are_counts(maps, counts_scale):
        return []
    counts = maps.sum(axis=(1, 2)) / counts_scale
    return [e for e, total in zip(elements, counts, strict=True) if total < FEWEST_COUNTS]


def too_few(poor, taken):
    """What is taken instead of a choice, as a sentence."""
    return (
        f"There are fewer than {FEWEST_COUNTS} counts in the map of {', '.join(poor)}, too few to hold some out and "
        f"choose by them: {taken} were taken. Leave the map out, or bin the scan."
    )


def in_words(race, parts, chosen):
    what = "counts" if isinstance(parts[0], HeldOutCounts) else "pixels"
    mean = "the mean of " if len(chosen) > 1 else ""
    return f"Of {len(race.gains)} fits compared by {what} held out, {mean}{'; '.join(chosen)} predicts them best."


# ---- the calibrated method -------------------------------------------------------------------------


class Choice(NamedTuple):
    """What the method ``"auto"`` chooses."""

    regularization: str | None
    lambda_reg: float
    lambda_haadf: float
    joint: bool


class ComponentChoice(NamedTuple):
    """The same of a fit to components of the spectra, and how many there are in the one to all counts."""

    regularization: str | None
    lambda_reg: float
    lambda_haadf: float
    joint: bool
    components: int


def select(observation, settings, num_workers=None, tick=lambda: None, rest=None):
    """Choose what the settings leave open.

    Penalties are compared without the HAADF term, each at the best weight found by factors of 2; the best one then
    with it, and with its edges of each element for themselves, by finer steps of the weight. The result is the mean of
    the best fits of each penalty, weighted so that it predicts best. Where more of the spectra is known than the maps,
    one of them is a fit to their components.

    Parameters
    ----------
    observation
        All data: :class:`~hyperspy_fusion.fusion.problems.calibrated.Observation`.
    settings
        An :class:`~hyperspy_fusion.fusion.settings.AutoSettings`.
    num_workers
        Threads; None for all.
    tick
        Called after every fit.
    rest
        (B, ny, nx) counts of the spectra that are in no map, or None.

    Returns
    -------
    members : list of (CalibratedSettings or ComponentFit, ndarray, PrimalDualState or None)
        The fits to make, with their weights (n,) in the mean of each map, the heaviest first, and what to start from.
        Those to components follow those to the maps.
    selection : Selection
    """
    scan, noise = observation.scan, observation.noise
    poor = poor_elements(scan.maps, noise.counts_scale, scan.elements)
    if poor:
        return _fallback(observation, settings, poor)
    rng = np.random.default_rng(settings.seed)
    parts = held_out(scan.maps, scan.valid, noise.counts_scale, noise.variances, noise.background, rng)
    spectra = None
    if rest is not None and isinstance(parts[0], HeldOutCounts):
        spectra = _Spectra.of(observation, rest, settings, len(parts), rng)
    fits = _Fits(observation, settings, parts, num_workers, spectra)
    race = Race(parts, fits, tick)
    chosen = _Search(race, settings).run()
    sentence = in_words(race, parts, [_one_in_words(c, weights) for c, weights in chosen.items() if weights.any()])
    _logger.info(sentence)
    members = [(fits.member(c), weight, fits.state(c)) for c, weight in chosen.items()]
    open_names = [name for name in Choice._fields if getattr(settings, name) == "auto"]
    selection = Selection.of(race, chosen, open_names, settings.seed, sentence)
    if spectra is not None:
        selection.tried["components"] = [getattr(c, "components", 0) for c in race.gains]
    return members, replace(selection, warnings=_about_smooth_data(parts, chosen))


def _about_smooth_data(parts, chosen):
    """Pixels that tell of their neighbours' noise make any smoothing seem too much."""
    heaviest = next(iter(chosen))
    usual = FIRST_WEIGHTS.get(heaviest.regularization, np.inf)
    if isinstance(parts[0], HeldOutCounts) or np.min(heaviest.lambda_reg) > usual / SMOOTH_DATA:
        return []
    return [
        f"Hardly any smoothing was chosen (lambda_reg={heaviest.lambda_reg:.2g}): the noise of neighbouring pixels is "
        "alike, as after smoothing, interpolation or registration of the maps, and says nothing of how much is needed. "
        "Start from counts, or give lambda_reg."
    ]


def _fallback(observation, settings, poor):
    chosen = settings.chosen()
    penalty = f"regularization={chosen.regularization!r} and lambda_reg={chosen.lambda_reg!r}"
    sentence = too_few(poor, penalty)
    selection = Selection(settings.seed, sentence, warnings=[sentence])
    return [(chosen, np.ones(len(observation.scan.maps)), None)], selection


def _one_in_words(choice, weights):
    weight = ", ".join(f"{value:.3g}" for value in np.atleast_1d(choice.lambda_reg))
    penalty = f"{choice.regularization!r} with lambda_reg={weight}"
    if isinstance(choice, ComponentChoice):
        return f"{penalty} of {choice.components} components of the spectra ({_percent(weights)})"
    return f"{penalty}, lambda_haadf={choice.lambda_haadf:g} and joint={choice.joint} ({_percent(weights)})"


def _percent(weights):
    low, high = (f"{100 * w:.0f}" for w in (weights.min(), weights.max()))
    return f"{low} %" if low == high else f"{low} to {high} %"


@dataclass
class _Spectra:
    """What is known of the spectra beside the maps: components of all counts, and the rest without each part."""

    components: Components
    rest: list
    number: int | None
    of_parts: dict = field(default_factory=dict)

    @classmethod
    def of(cls, observation, rest, settings, parts, rng):
        """None where there is no use for it: too few counts, or in another unit, or settings that are of maps alone."""
        number = None if settings.components == "auto" else settings.components
        if number == 0 or rest.sum() < FEWEST_COUNTS or isinstance(settings.lambda_reg, tuple):
            return None
        if not np.allclose(observation.noise.counts_scale, 1, rtol=1e-6):
            _logger.info("The maps are not in counts: the rest of the spectra is not made use of.")
            return None
        components = Components.of(observation, rest, settings.chosen(), number)
        return cls(components, thinned(rest, rng, COUNT_PARTS, parts), number)

    def part(self, k, observation, settings):
        """Components of the counts without part k, whose number is found without it too."""
        if k not in self.of_parts:
            self.of_parts[k] = Components.of(observation, self.rest[k], settings, self.number)
        return self.of_parts[k]


class _Fits:
    """Rough fits to all data but one part, each from the last one of its part and kind."""

    def __init__(self, observation, settings, parts, num_workers, spectra=None):
        # single precision is enough to compare by
        self.observation = replace(observation, dtype=np.dtype(np.float32))
        self.settings, self.parts, self.num_workers, self.spectra = settings, parts, num_workers, spectra
        self.states, self.maps = {}, {}

    @property
    def components(self):
        """How many components of the spectra there are, 0 where these are not known."""
        return len(self.spectra.components.strengths) if self.spectra else 0

    def __call__(self, choice, k):
        if (choice, k) not in self.maps:
            self.maps[choice, k] = self._fit(choice, k)
        return self.maps[choice, k]

    def _fit(self, choice, k):
        iterations = int(np.clip(ROUGH_WORK / self.parts[k].valid[0].size, *ROUGH_ITERATIONS))
        settings = replace(self._chosen(choice), tol=ROUGH_TOL, max_iter=iterations)
        observation = self.observation.part(self.parts[k])
        if isinstance(choice, ComponentChoice):
            observation = self.spectra.part(k, observation, settings)
        problem = observation.problem(settings)
        kind = (k, type(choice), choice.regularization, choice.joint)
        start = started(problem, self.states[kind]) if kind in self.states else None
        result, self.states[kind] = solved(problem, settings, start, num_workers=self.num_workers)
        if result.reason is StopReason.INTERRUPTED:
            raise KeyboardInterrupt
        _logger.debug("%s, part %d: %d iterations", choice, k, result.n_iter)
        return result.maps

    def _chosen(self, choice):
        return self.settings.chosen(*choice[: len(Choice._fields)])

    def member(self, choice):
        """What to fit to all data."""
        settings = self._chosen(choice)
        return ComponentFit(self.spectra.components, settings) if isinstance(choice, ComponentChoice) else settings

    def state(self, choice):
        """To start the fit to all data from, for penalties that take long; None starts anew.

        A fit to four fifths of few counts has noise that a fit to all does not lose on the way to its tolerance.
        Components of a part are others than those of all.
        """
        if type(choice) is not Choice or choice.regularization not in SLOW:
            return None
        return self.states.get((0, Choice, choice.regularization, choice.joint))


class _Search:
    """What is open in the settings, in a race."""

    def __init__(self, race, settings):
        self.race, self.settings = race, settings

    def run(self):
        """{choice: weight}, the heaviest first."""
        race, by_kind = self.race, {}
        for kind in self._kinds():
            first = self._first(kind)
            by_kind[kind] = self._climb(first, COARSE, self._parts_for(first, by_kind.values()))
        best = functools.reduce(lambda a, b: b if race.is_better(b, a) else a, by_kind.values())
        best = self._climb(best, FINE)
        for change in self._changes():
            best = self._better(best._replace(**change), best)
        # what is best for one penalty is tried with the others
        for kind, choice in by_kind.items():
            alike = best._replace(regularization=kind, lambda_reg=choice.lambda_reg)
            alike = best if kind == best.regularization else alike
            parts = self._parts_for(choice, by_kind.values())
            by_kind[kind] = alike if alike == choice or race.is_better(alike, choice, parts) else choice
        of_maps = list(dict.fromkeys([*by_kind.values(), *self._turned(best)]))
        return _maps_first(self._stacked([*of_maps, *self._of_components(best)]), best)

    def _parts_for(self, choice, others):
        """On how many parts to settle the weight of a penalty that others beat by far: one; None is for all."""
        gain = self.race.gain
        behind = min((in_errors(gain(choice, 0) - gain(other, 0)) for other in others), default=0.0)
        return 1 if behind < -FAR_BEHIND else None

    def _of_components(self, best):
        """Fits to components of the spectra; each also less smooth, for a mean smooths what its fits do not share."""
        number, given = self.race.fit.components, self.settings.regularization
        if not number:
            return []
        # "guided" takes several times as long, and did not predict better in any case that was tried
        kinds = {"directional", best.regularization} - {"guided"} if given == "auto" else {given}
        first = [ComponentChoice(*self._first(kind)[:2], 0.0, True, number) for kind in sorted(kinds, key=str)]
        found = [self._climb(choice, COARSE) for choice in first]
        return found + [less for choice in found if (less := self._less(choice)) is not None]

    def _less(self, choice):
        smooths = self.settings.lambda_reg == "auto" and choice.regularization != "none"
        return step(choice, 1 / FINE) if smooths else None

    def _turned(self, best):
        """The best with the HAADF term turned off, or on: what one element loses by it another may gain."""
        return [best._replace(lambda_haadf=1 - best.lambda_haadf)] if self.settings.lambda_haadf == "auto" else []

    def _kinds(self):
        given = self.settings.regularization
        return list(FIRST_WEIGHTS) if given == "auto" else [given]

    def _first(self, kind):
        settings = self.settings
        weight = FIRST_WEIGHTS.get(kind, 1.0) if settings.lambda_reg == "auto" else settings.lambda_reg
        coupling = 0.0 if settings.lambda_haadf == "auto" else settings.lambda_haadf
        return Choice(kind, weight, coupling, True if settings.joint == "auto" else settings.joint)

    def _changes(self):
        """The HAADF term, and the edges of each element for themselves."""
        changes = {"lambda_haadf": 1.0, "joint": False}
        return [{name: value} for name, value in changes.items() if getattr(self.settings, name) == "auto"]

    def _better(self, other, best):
        return self._climb(other, FINE) if self.race.is_better(other, best) else best

    def _climb(self, choice, factor, parts=None):
        if self.settings.lambda_reg != "auto" or choice.regularization == "none":
            return choice
        return self.race.climb(choice, step, (factor, 1 / factor), parts)

    def _stacked(self, choices):
        """The mean that predicts better than the best fit for sure, or that of what cannot be told from the best."""
        race = self.race
        # by one part first: what is out of the question there is not fitted to the others
        weights = stack(race.parts[:1], [[race.fit(choice, 0) for choice in choices]])
        likely = indistinct([race.gain(choice, 0) for choice in choices])
        choices = [choices[j] for j in range(len(choices)) if weights[j].any() or likely[j] > 0]
        members = [[race.fit(choice, k) for choice in choices] for k in range(len(race.parts))]
        gains = [sum(race.gain(choice, k).astype(np.float64) for k in range(len(race.parts))) for choice in choices]
        weights = stack(race.parts, members)
        mean = sum(p.gains(weighted_mean(weights, m)).sum(axis=0) for p, m in zip(race.parts, members, strict=True))
        # by chance each free weight gains up to one unit, as of log-likelihood (Akaike)
        own = np.unique(weights, axis=1)
        chance = (np.count_nonzero(own) - own.shape[1]) / mean.size
        if in_errors(mean - max(gains, key=np.sum) - chance) <= SURE:
            weights = np.repeat(indistinct(gains)[:, None], weights.shape[1], axis=1)
        heaviest_first = np.argsort(-weights.sum(axis=1), kind="stable")
        return {choices[j]: weights[j] for j in heaviest_first if weights[j].any()}


def _maps_first(chosen, best):
    """{choice: weight} with a fit to the maps themselves before all others, of no weight if need be."""
    of_maps = {c: w for c, w in chosen.items() if isinstance(c, Choice)}
    if not of_maps:
        of_maps = {best: np.zeros_like(next(iter(chosen.values())))}
    return of_maps | chosen


def step(choice, factor, name="lambda_reg"):
    # on powers of the root of 2, that there and back is the same
    weight = 2.0 ** (np.round(2 * np.log2(getattr(choice, name) * factor)) / 2)
    return choice._replace(**{name: weight}) if SMALLEST_WEIGHT < weight < LARGEST_WEIGHT else None
