"""Search for the penalty and its weight by cross-validation on held-out counts, or pixels.

Weights are in natural units, which mean the same at any dose: what is best for four fifths of the counts is used for
all of them. The candidates are fits of low accuracy to all folds but one. In the first fold, a fit that falls far
behind the one it is compared with is given up (paired_comparison). So is one of a larger weight that ends far from its
minimum, unless it predicts significantly better. In pseudo-code::

    split the data into folds (cross_validation);
    for each penalty, at lambda_haadf = 0 and joint = True:
        climb in lambda_reg by factors of 2, on half as many held-out pixels (paired_comparison);
        take the geometric mean of the weights tried, by how likely each predicts best, after this and other climbs;
    best = the best of these, after a climb by factors of the root of 2, first to the side that was better;
    if best with lambda_haadf = 1 is better: best = that, after a climb by factors of the root of 2;
    for each further elastic image, and each of its lambda_haadf in (1, 4), while it is not used:
        if best with it gains more than a standard error and the number of its coefficients: the same;
    if best with joint = False is better: the same;
    of several elastic images, climb in lambda_haadf by factors of 4, of all images that are used and of each;
    for each other penalty, if best gains significantly on the fit of its penalty above:
        replace its fit by that with lambda_haadf and joint of best, if it is better in the first fold;
    candidates = the fit of each penalty, best with the other lambda_haadf, fits to components (spectral_components);
    p = probability that the average by stacking weights is better than the best candidate by a standard error;
    weights = p * stacking weights + (1 - p) * pseudo-BMA+ weights (stacking).

Fits to whole spectra are chosen in the same way, by the held-out counts of all bands. Their penalty is never joint, and
the best is a candidate with half and twice its weight too. Their components are those of all bands (band_components).

The result is the weighted mean of the candidates, fitted to all data (model_averaging).
"""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import ndtr

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.checks import is_open, values_of
from hyperspy_fusion.fusion.selection.cross_validation import (
    HELD_OUT_PIXELS,
    HeldOutCounts,
    folds_for,
    poor_elements,
)
from hyperspy_fusion.fusion.selection.low_accuracy_fits import (
    FITS,
    OPEN,
    Choice,
    scaled_images,
    scaled_weight,
    weight_of,
    with_weight,
)
from hyperspy_fusion.fusion.selection.model_averaging import EnsembleFit, weighted_mean
from hyperspy_fusion.fusion.selection.paired_comparison import (
    FAR_BEHIND,
    SIGNIFICANT,
    PairedComparison,
    in_standard_errors,
)
from hyperspy_fusion.fusion.selection.selection import Selection, best_so_far, in_words, of_defaults
from hyperspy_fusion.fusion.selection.stacking import pseudo_bma_weights, stacking_weights, without_small
from hyperspy_fusion.fusion.solvers.threads import for_each, one_blas_thread

_logger = logging.getLogger(__name__)

# penalties to compare, with the weight at which each is tried first
FIRST_WEIGHTS = {"guided": 1.0, "directional": 2**0.5, "tgv": 2.0, "tv": 2**0.5}
# between two weights of the HAADF terms of several images
IMAGE_FACTOR = 4.0
# between two weights, first and in the end
COARSE, FINE = 2.0, np.sqrt(2)
# of fine steps the first one: a HAADF term, or lengths of each map alone, smooth further
_LESS_FIRST = 1 / FINE, FINE
# of the folds that decide on steps by factors of 2
COARSE_PIXELS = HELD_OUT_PIXELS // 2
# so many times less smoothing than usual is chosen for data that were smoothed before
SMOOTH_DATA = 20


def select(observation, settings, num_workers=None, tick=lambda *counts: None, out_of_window=None):
    """Choose the settings that are left open.

    Parameters
    ----------
    observation
        All data: :class:`~hyperspy_fusion.fusion.problems.calibrated.Observation`.
    settings
        An :class:`~hyperspy_fusion.fusion.settings.AutoSettings`.
    num_workers
        Threads; None for all.
    tick
        Called after every fit with the numbers of fits done and expected, and the part of the time of the whole fit
        that the search takes.
    out_of_window
        (B, ny, nx) out-of-window counts of the spectra, or None.

    Returns
    -------
    ensemble : list of EnsembleFit
        The fits to all data. Fits to maps come first, those to components follow, each in the order of falling weight.
    selection : Selection
    """
    fits, selection = _searched([observation], settings, num_workers, tick, [out_of_window])
    if fits is None:
        return ensemble_of(selection, observation, settings), selection
    return for_each(list(selection.chosen.items()), lambda chosen: fits.final(*chosen), num_workers), selection


def select_together(observations, out_of_window, settings, num_workers=None, tick=lambda *counts: None):
    """Choose one setting of all for several scans of the same elements: their held-out counts are scored together.

    Parameters
    ----------
    observations
        One for each scan.
    out_of_window
        (B, ny, nx) out-of-window counts of each, or None.
    settings, num_workers, tick
        As for :func:`select`.

    Returns
    -------
    Selection
        To be used by :func:`ensemble_of`.
    """
    return _searched(observations, settings, num_workers, tick, out_of_window)[1]


def ensemble_of(selection, observation, settings, out_of_window=None):
    """The fits to a scan by a choice that was made for others; as :func:`select` returns them.

    Elements that were not in the choice have the mean weights of the others.
    """
    if not selection.chosen:
        return [EnsembleFit(settings.chosen(), np.ones(len(observation.scan.maps)), observation)]
    at = {element: i for i, element in enumerate(selection.elements)}
    ensemble = []
    for choice, weights in selection.chosen.items():
        own = np.array([weights[at[e]] if e in at else weights.mean() for e in observation.scan.elements])
        chosen, source = settings.chosen(*choice[: len(OPEN)]), observation
        if choice.components:
            number = replace(settings, components=choice.components)
            spectra = FITS[observation.kind][0].components_of(observation, out_of_window, number)
            if spectra is None:
                continue
            source = spectra.components
        ensemble.append(EnsembleFit(chosen, own, source))
    return ensemble


def _searched(observations, settings, num_workers, tick, out_of_window):
    """The low-accuracy fits, None where there are too few counts for any, and the :class:`Selection`."""
    scan = observations[0].scan
    for observation in observations:
        poor = poor_elements(observation.scan.maps, observation.noise.counts_scale, observation.scan.elements)
        if poor:
            return None, of_defaults(settings, poor)
    part, of_kind, fixed = FITS[observations[0].kind]
    settings = replace(settings, **fixed)
    parts = []
    for i, (observation, others) in enumerate(zip(observations, out_of_window, strict=True)):
        rng = np.random.default_rng(settings.seed if i == 0 else (settings.seed, i))
        parts.append(part.of(observation, settings, others, rng))
    n_folds = max(len(parts[0].folds), len(parts))  # in all, as many as one scan has
    fits = of_kind(parts, settings, n_folds, num_workers)
    expected = _expected(settings, fits)
    comparison = PairedComparison(
        fits.folds, fits, lambda n_fits: tick(n_fits, *expected), fits.sequences_of, num_workers
    )
    try:
        with one_blas_thread:
            found = _Search(comparison, settings).run()
        weights = {choice: weights[: len(scan.elements)] for choice, weights in found.items()}
        selection = _record(comparison, weights, settings, fits.n_components > 0)
    except KeyboardInterrupt:
        weights, selection = best_so_far(comparison, settings, len(scan.elements))
    _logger.info(selection.sentence)
    return fits, replace(selection, chosen=weights, elements=tuple(scan.elements))


def _expected(settings, fits):
    """About so many fits a search takes, and such a part of the time of the whole fit, for a progress bar."""
    penalties, n_folds = len(fits.penalties) if settings.regularization == "auto" else 1, len(fits.folds)
    candidates = penalties * (3 if settings.lambda_reg == "auto" else 1) + (penalties - 1)
    candidates += sum(is_open(getattr(settings, name)) for name in ("lambda_reg", "lambda_haadf", "joint"))
    # fits to all data start from the mean of the folds, which is the nearer the more there are
    return round((candidates + 3 * (fits.n_components > 0)) * (1 + 0.65 * (n_folds - 1))), 1 - 0.5 / n_folds


# ---- the search ------------------------------------------------------------------------------------


class _Search:
    """The search of the module's docstring, over the settings that are left open."""

    def __init__(self, comparison, settings):
        self.comparison, self.settings = comparison, settings

    def run(self):
        """{choice: weights (n,)}, fits to maps first, each kind in the order of falling weight."""
        is_better, by_penalty = self.comparison.is_better, self._by_penalty()
        best = functools.reduce(lambda a, b: b if is_better(b, a) else a, by_penalty.values())
        best = self._climb(best, self._better_side_first(best))
        if 0 in self._open_images():
            best = self._better(with_weight(best, 0, 1.0), best)
        best = self._with_further_images(best)
        if self.settings.joint == "auto":
            best = self._better(best._replace(joint=False), best)
        best = self._climb_images(best)
        by_penalty = self._alike(by_penalty, best)
        candidates = list(by_penalty.values())
        # what one element loses by an image another may gain; but a further image that was not better stays out
        for k in self._open_images():
            weight = weight_of(best, k)
            if k == 0 or weight:
                candidates.append(with_weight(best, k, 0.0 if weight else 1.0))
        if self.settings.lambda_reg == "auto":
            candidates += self.comparison.fit.beside(best)
        weights = self._average([*dict.fromkeys(candidates), *self._of_components(best)])
        of_maps = {c: w for c, w in weights.items() if not c.components}
        # a fit to the maps comes first, with zero weight if need be
        return (of_maps or {best: np.zeros_like(next(iter(weights.values())))}) | weights

    def _by_penalty(self):
        """{penalty: best choice}, each after a climb by large steps."""
        starts = [self._first(penalty) for penalty in self._penalties()]
        self.comparison.need([(start, 1) for start in starts])
        usual = folds_for(COARSE_PIXELS, self.comparison.folds[0].maps)
        climbs = [self._climbing(s, (COARSE, 1 / COARSE), self._n_folds(s, starts) or usual) for s in starts]
        found = self.comparison.side_by_side(climbs)
        return {best.regularization: best for best in found}

    def _alike(self, by_penalty, best):
        """{penalty: choice}, with the images and ``joint`` of the best where these predict the first fold better.

        This is not tried where the best hardly gains on the fit of its penalty before.
        """
        before, by_penalty = by_penalty[best.regularization], by_penalty | {best.regularization: best}
        self.comparison.need([(before, 1), (best, 1)])
        scores = self.comparison.scores
        gained = sum(one - other for one, other in zip(scores[best], scores[before], strict=False))
        if in_standard_errors(gained) < SIGNIFICANT:
            return by_penalty
        alike = {p: best._replace(regularization=p, lambda_reg=c.lambda_reg) for p, c in by_penalty.items()}
        alike[best.regularization] = best
        changed = [p for p in by_penalty if alike[p] != by_penalty[p]]
        comparisons = [self.comparison.comparing(alike[p], by_penalty[p], 1) for p in changed]
        is_better = dict(zip(changed, self.comparison.side_by_side(comparisons), strict=True))
        return {p: alike[p] if is_better.get(p) else choice for p, choice in by_penalty.items()}

    def _penalties(self):
        given = self.settings.regularization
        return list(self.comparison.fit.penalties) if given == "auto" else [given]

    def _first(self, penalty):
        settings = self.settings
        weight = FIRST_WEIGHTS.get(penalty, 1.0) if settings.lambda_reg == "auto" else values_of(settings.lambda_reg)
        joint = True if settings.joint == "auto" else settings.joint
        return Choice(penalty, weight, settings.chosen(lambda_haadf=self._no_images()).lambda_haadf, joint)

    def _no_images(self):
        """The weight 0, one for each elastic image where there are several."""
        number = len(self.comparison.fit.related)
        return 0.0 if number == 1 else (0.0,) * number

    def _open_images(self):
        """Numbers of the elastic images whose weight is to be chosen; the first one, and further ones of any effect."""
        related, given = self.comparison.fit.related, self.settings.lambda_haadf
        given = given if isinstance(given, tuple) else (given,) * len(related)
        return [k for k, value in enumerate(given) if value == "auto" and (k == 0 or related[k])]

    def _climb_images(self, best):
        """The best weights of the HAADF terms of several images, all at once and then each, by factors of 4.

        One image is trusted or not. Of several, the model discrepancies are of the same noise of the maps, and too
        large for all.
        """
        on = [k for k in self._open_images() if weight_of(best, k) > 0]
        if len(on) < 2:
            return best
        climb = self.comparison.climb
        for images in [on, *([k] for k in on)]:
            best = climb(best, functools.partial(scaled_images, images), (IMAGE_FACTOR, 1 / IMAGE_FACTOR))
        return self._climb(best, _LESS_FIRST)

    def _better(self, other, best):
        return self._climb(other, _LESS_FIRST) if self.comparison.is_better(other, best) else best

    def _with_further_images(self, best):
        """The best with the further images that are worth it.

        A coefficient that is fitted gains up to one unit of log-likelihood by chance (Akaike). An image of another
        place gains less than its coefficients do.
        """
        least = self.comparison.fit.n_elements
        for k in self._open_images():
            for weight in (1.0, IMAGE_FACTOR):
                other = with_weight(best, k, weight)
                if k and not weight_of(best, k) and self.comparison.is_worth(other, best, least):
                    best = self._climb(other, _LESS_FIRST)
        return best

    def _n_folds(self, choice, others):
        """The number of folds for the weight of a penalty: one if it is far behind another there, else None for all."""
        score = self.comparison.score
        behind = min((in_standard_errors(score(choice, 0) - score(other, 0)) for other in others), default=0.0)
        return 1 if behind < -FAR_BEHIND else None

    def _better_side_first(self, choice):
        """Factors of fine steps, first to the side where the nearest weight tried, given up or not, predicts better."""
        weight, scores = choice.lambda_reg, self.comparison.scores
        first = {c.lambda_reg: s[0].sum() for c, s in scores.items() if c._replace(lambda_reg=weight) == choice}
        above = first.get(min((w for w in first if w > weight), default=None), -np.inf)
        below = first.get(max((w for w in first if w < weight), default=None), -np.inf)
        return _LESS_FIRST[::-1] if above > below else _LESS_FIRST

    def _climb(self, choice, factors, n_folds=None):
        return self.comparison.side_by_side([self._climbing(choice, factors, n_folds)])[0]

    def _climbing(self, choice, factors, n_folds=None):
        """The generator of a climb in ``lambda_reg``; see :class:`PairedComparison`."""
        if self.settings.lambda_reg != "auto" or choice.regularization == "none":
            return choice
        best = yield from self.comparison.climbing(choice, scaled_weight, factors, n_folds)
        return self._with_mean_weight(best)

    def _with_mean_weight(self, best):
        """The best with the geometric mean of the weights that were tried, by how likely each predicts best.

        Scores near their maximum differ by chance alone, and the largest one would choose by chance.
        """
        scores, lost = self.comparison.scores, self.comparison.given_up
        # on fewer folds are those that are significantly worse, or of larger steps
        alike = [c for c in scores if c._replace(lambda_reg=best.lambda_reg) == best and c not in lost]
        alike = [c for c in alike if len(scores[c]) >= len(scores[best])]
        likely = pseudo_bma_weights([sum(scores[c][: len(scores[best])]) for c in alike])
        mean = np.exp(likely @ np.log([c.lambda_reg for c in alike]))
        return scaled_weight(best._replace(lambda_reg=mean), 1.0) or best

    def _of_components(self, best):
        """Fits to components of the spectra; each also with less smoothing, for an average smooths further."""
        number, given = self.comparison.fit.n_components, self.settings.regularization
        if not number:
            return []
        # "guided" takes several times as long, and did not predict better in any case that was tried
        penalties = {"directional", best.regularization} - {"guided"} if given == "auto" else {given}
        first = [Choice(*self._first(p)[:2], 0.0, True, number) for p in sorted(penalties)]
        # down by fine steps: the next smaller weight is a candidate in any case
        found = [self._climb(choice, (COARSE, 1 / FINE)) for choice in first]
        if self.settings.lambda_reg != "auto" or given == "none":
            return found
        return found + [less for choice in found if (less := scaled_weight(choice, 1 / FINE)) is not None]

    def _average(self, choices):
        """{choice: weights (n,)}, in the order of falling weight: see the module's docstring."""
        comparison = self.comparison
        fit, score, folds = comparison.fit, comparison.score, comparison.folds
        # by the first fold alone: what is out of the question there is not fitted to the others
        comparison.need([(choice, 1) for choice in choices])
        stacked = stacking_weights(folds[:1], [[fit(choice, 0) for choice in choices]])
        likely = pseudo_bma_weights([score(choice, 0) for choice in choices])
        choices = [choices[j] for j in range(len(choices)) if stacked[j].any() or likely[j] > 0]
        comparison.need([(choice, len(folds)) for choice in choices])
        ensembles = [[fit(choice, k) for choice in choices] for k in range(len(folds))]
        scores = [sum(score(choice, k).astype(np.float64) for k in range(len(folds))) for choice in choices]
        weights = stacking_weights(folds, ensembles)
        pairs = zip(folds, ensembles, strict=True)
        of_average: Any = sum(fold.scores(weighted_mean(weights, maps)).sum(axis=0) for fold, maps in pairs)
        # each free weight gains up to one unit of log-likelihood by chance (Akaike)
        own = np.unique(weights, axis=1)
        by_chance = (np.count_nonzero(own) - own.shape[1]) / of_average.size
        ahead = in_standard_errors(of_average - max(scores, key=np.sum) - by_chance)
        # between both, by the probability that the average by stacking predicts better
        stacked = float(ndtr(ahead - SIGNIFICANT / 2))
        weights = stacked * weights + (1 - stacked) * pseudo_bma_weights(scores)[:, None]
        weights = without_small(weights)
        order = np.argsort(-weights.sum(axis=1), kind="stable")
        return {choices[j]: weights[j] for j in order if weights[j].any()}


# ---- the record ------------------------------------------------------------------------------------


def _record(comparison, weights, settings, has_spectra):
    """The :class:`Selection` of a finished comparison and {choice: weights (n,)}."""
    candidates, best = list(comparison.scores), next(iter(weights))
    names = [name for name in OPEN if is_open(getattr(settings, name))]
    tried = {name: [getattr(c, name) for c in candidates] for name in names}
    if has_spectra:
        tried["components"] = [c.components for c in candidates]
    scores, errors = np.transpose([comparison.mean_score(c, best) for c in candidates])
    of_counts = isinstance(comparison.folds[0], HeldOutCounts)
    averaged = [in_words(choice, weight) for choice, weight in weights.items() if weight.any()]
    return Selection(
        settings.seed,
        f"Of {len(candidates)} fits compared by held-out {'counts' if of_counts else 'pixels'}, "
        f"{'the mean of ' if len(averaged) > 1 else ''}{'; '.join(averaged)} predicts them best.",
        tried,
        scores,
        errors,
        np.array([len(of_folds) for of_folds in comparison.scores.values()]),
        np.array([weights.get(c, np.zeros_like(weights[best])) for c in candidates]),
        [] if of_counts else _about_smooth_data(best),
    )


def _about_smooth_data(best):
    """Noise that neighbouring pixels share makes any smoothing seem too much."""
    if np.min(best.lambda_reg) > FIRST_WEIGHTS.get(best.regularization, np.inf) / SMOOTH_DATA:
        return []
    sentence = (
        f"Hardly any smoothing was chosen (lambda_reg={np.min(best.lambda_reg):.2g}): neighbouring pixels share their "
        "noise, as after smoothing or interpolation. Start from counts, or give lambda_reg."
    )
    return [Diagnostic("noise-shared-by-neighbours", sentence)]
