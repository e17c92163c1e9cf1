"""Which elements emit the lines of EDS spectra: forward selection by score tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hyperspy_fusion.fusion.spectra.bands import cramer_rao
from hyperspy_fusion.fusion.spectra.line_calibration import energy_scale, line_weights
from hyperspy_fusion.fusion.spectra.line_model import SummedFit, channel_edges
from hyperspy_fusion.fusion.spectra.line_shapes import Calibration, ElementLines, continuum_hats
from hyperspy_fusion.fusion.spectra.poisson_fit import deviances, poisson_ml

# relative error of the model near its peaks, in the summed spectrum and in those of groups of pixels
MODEL_ERROR, MODEL_ERROR_OF_GROUPS = 0.05, 0.03
# least score of an element, the sum of squares of standard scores, and least standard score of its top family, that
# of highest energy
SCORE, LINE_SEEN = 30.0, 4.0
# keV: other elements have lines below; how much stronger families there, and elsewhere, may be than the top one
SOFT, STRONGEST_SOFT, STRONGEST = 0.8, 1.5, 5.0
# relative systematic error of an element that others explain
HIDDEN = 1.0
# keV: elements are added together if their lines are so far apart
APART = 0.3
# the energy scale is calibrated with so many elements
RECALIBRATED = (4, 8, 14)
# standard deviations of its prior that the scale may differ by: lines of elements not yet found would draw others
LARGEST = 2.0
# elements that are looked for at most, and rounds of the search in groups
MOST, ROUNDS = 24, 3
# lines with a smaller weight do not matter for a score
STRONG = 0.05
# part of the counts of an element from which on another one overlaps it
OVERLAP = 0.3
# an element is certain with so many standard deviations, by counts and by a tenth of the lines of its neighbours
CERTAIN, CERTAIN_SCORE = 5.0, 8.0
# part of the counts of all lines above which an element is clear; less is within the errors of quantification
CLEAR = 0.03
# lines nearer than this part of the width of a peak are one; an element explains lines as well as another where the
# deviance grows by less than this part of what they explain
SAME_LINE, AS_WELL = 0.4, 0.1
# those of a family that the model leaves out may lie so much of the width away
NEIGHBOUR = 1.0


@dataclass(frozen=True)
class Evidence:
    """What the spectra show of one element.

    Attributes
    ----------
    element
        Its symbol.
    counts
        Of all its lines.
    deviance
        By how much the deviance of the spectra grows without it, to second order.
    systematic
        Relative error of its counts by stronger lines near its main line.
    score
        Excess in its main line over a fit without it, in standard deviations of the counts and of the model.
    lines
        Its main lines within the spectra, such as ``("Ka", "La")``.
    overlaps
        Elements that have much of the counts in the window of its main line, the strongest first.
    rivals
        Elements that explain its lines about as well, and may be there in its place or beside it.
    """

    element: str
    counts: float
    deviance: float
    systematic: float
    score: float
    lines: tuple[str, ...]
    overlaps: tuple[str, ...]
    rivals: tuple[str, ...] = ()

    @property
    def evidence(self) -> float:
        """The deviance, less where stronger lines near may be what is seen; elements are ranked by it."""
        return self.deviance / (1 + (2 * self.systematic) ** 2)

    @property
    def is_certain(self) -> bool:
        """Whether neither noise nor a tenth of the lines near explains it, nor another element.

        Where others overlap its main line, a second family is needed.
        """
        error = 1 / max(self.deviance, 1e-9) + self.systematic**2
        is_seen_alone = not self.rivals and (not self.overlaps or len(self.lines) > 1)
        return is_seen_alone and self.score > CERTAIN_SCORE and error < CERTAIN**-2


def find_elements(
    groups: np.ndarray, energies: np.ndarray, candidates: Sequence[ElementLines], first: Calibration
) -> list[Evidence]:
    """Elements that the spectra show, by their evidence, the largest first.

    Elements are added one by one, each the one that explains most of what the model lacks: first in the summed
    spectrum, then, with lines calibrated, in groups of pixels, where lines under those of others show.

    Parameters
    ----------
    groups
        (n_groups, n_channels) counts of groups of pixels.
    energies
        (n_channels,) of the channels in keV.
    candidates
        The lines of all elements that may be there.
    first
        Calibration of the detector to begin with.
    """
    summed, edges = groups.sum(axis=0), channel_edges(energies)
    chosen, calibration = _in_sum(summed, edges, candidates, first)
    if not chosen:
        return []
    n, known = len(chosen), False
    for _ in range(2):
        chosen = line_weights(SummedFit.of(summed, edges, chosen, calibration, known), groups)
        calibration = energy_scale(summed, edges, chosen, calibration, first, ratios_known=True, largest=LARGEST)
        known = True
        beside = _in_groups(groups, summed, edges, candidates, chosen, calibration)[len(chosen) :]
        kept = _pruned(summed, edges, [*chosen, *beside], calibration, n, known)
        n, chosen = n - (len(chosen) + len(beside) - len(kept)), kept
    chosen = line_weights(SummedFit.of(summed, edges, chosen, calibration, known), groups)
    found = _evidence(groups, summed, edges, candidates, chosen, (calibration, first))
    return sorted(found, key=lambda one: -one.evidence)


def find_missing(
    summed: np.ndarray,
    energies: np.ndarray,
    candidates: Sequence[ElementLines],
    named: Sequence[str],
    first: Calibration,
) -> list[Evidence]:
    """Elements beside those `named` that a summed spectrum shows clearly, the strongest first.

    They are certain, as those of :func:`find_elements`, and have more than :data:`CLEAR` of the counts of all lines.
    The arguments are those of :func:`find_elements`, but for `summed` (n_channels,).
    """
    edges = channel_edges(energies)
    listed = [lines for lines in candidates if lines.element in named]
    chosen, calibration = _added(summed, edges, candidates, listed, first)
    if len(chosen) == len(listed):
        return []
    chosen = line_weights(SummedFit.of(summed, edges, chosen, calibration), summed[None])
    found = _evidence(summed[None], summed, edges, candidates, chosen, (calibration, first))
    least = CLEAR * sum(one.counts for one in found)
    clear = [one for one in found[len(listed) :] if one.is_certain and one.counts > least]
    return sorted(clear, key=lambda one: -one.counts)


def _in_sum(summed, edges, candidates, first):
    chosen, calibration = _added(summed, edges, candidates, [], first)
    return _pruned(summed, edges, chosen, calibration, len(chosen)), calibration


def _added(summed, edges, candidates, chosen, first):
    """The chosen elements, and after them those that the summed spectrum shows beside; and the calibration."""
    calibration = energy_scale(summed, edges, chosen, first, first, largest=LARGEST) if chosen else first
    shapes = CandidateShapes.of(candidates, calibration, edges)
    if chosen:
        expected = SummedFit.of(summed, edges, chosen, calibration).expected
    else:
        hats = continuum_hats(edges)
        expected = hats @ poisson_ml(hats, summed)
    while len(chosen) < MOST:
        scores = shapes.scores(summed, expected, MODEL_ERROR, calibration, edges)
        scores[[lines.element in {own.element for own in chosen} for lines in candidates]] = 0
        best = int(np.argmax(scores))
        if scores[best] < SCORE:
            break
        chosen = [*chosen, candidates[best]]
        if len(chosen) in RECALIBRATED:
            calibration = energy_scale(summed, edges, chosen, calibration, first, largest=LARGEST)
            shapes = CandidateShapes.of(candidates, calibration, edges)
        fit = SummedFit.of(summed, edges, chosen, calibration)
        plausible = [_plausible(fit, number) for number in range(len(chosen))]
        if any(new is not old for new, old in zip(plausible, chosen, strict=True)):
            chosen, fit = plausible, SummedFit.of(summed, edges, plausible, calibration)
        expected = fit.expected
    return chosen, calibration


def _pruned(summed, edges, chosen, calibration, n, ratios_known=False):
    """The chosen elements without those of the first `n` whose lines others explain by now, the worst first."""
    while n > 1:
        fit = SummedFit.of(summed, edges, chosen, calibration, ratios_known)
        columns, errors = fit.columns()[0], fit.systematic()[:n]
        scores = [_own_score(summed, edges, columns, lines, k, calibration) for k, lines in enumerate(chosen[:n])]
        scores = np.where(errors > HIDDEN, 0, scores)
        worst = int(np.argmin(scores))
        if scores[worst] >= LINE_SEEN:
            break
        chosen, n = [*chosen[:worst], *chosen[worst + 1 :]], n - 1
    return chosen


def _own_score(summed, edges, columns, lines, number, calibration):
    """Standard score of the top family of an element about the fit of all others."""
    rest = np.delete(columns, number, axis=1)
    shapes = CandidateShapes.of([lines], calibration, edges)
    scores = shapes.standard_scores(summed, rest @ poisson_ml(rest, summed), MODEL_ERROR, calibration, edges)
    return float(scores[shapes.is_top][0])


def _plausible(fit, number):
    """The lines of an element without families that are far stronger than that of highest energy."""
    lines = fit.elements[number]
    own = np.flatnonzero(fit.owners == number)
    counts = fit.shapes[:, own].sum(axis=0) * fit.line_amplitudes[own]
    of_family = {letter: counts[family].sum() for letter, family in lines.families.items()}
    top = _top_family(lines)
    soft = {k: lines.energies[family].max() < SOFT for k, family in lines.families.items()}
    most = {k: (STRONGEST_SOFT if soft[k] else STRONGEST) * of_family[top] for k in of_family}
    dropped = [k for k in of_family if k != top and of_family[k] > most[k]]
    if not dropped:
        return lines
    kept = np.array([name[0] not in dropped for name in lines.names])
    names = tuple(name for name, keep in zip(lines.names, kept, strict=True) if keep)
    return ElementLines(lines.element, names, lines.energies[kept], lines.weights[kept], lines.mapped[kept])


def _top_family(lines):
    return max(lines.families, key=lambda letter: lines.energies[lines.families[letter]].max())


@dataclass(frozen=True)
class CandidateShapes:
    """Shapes (n_families, n_channels) of the families of candidates, with the candidate and whether it is its top one.

    Families of soft lines are left out but where they are the top one: other elements have lines there.
    """

    shapes: np.ndarray
    owners: np.ndarray
    is_top: np.ndarray

    @classmethod
    def of(cls, candidates, calibration, edges) -> CandidateShapes:
        calibration = replace(calibration, tail=0.0, shelf=0.0)
        shapes, owners, is_top = [], [], []
        for number, lines in enumerate(candidates):
            top = _top_family(lines)
            for letter, family in lines.families.items():
                strong = family & (lines.weights > STRONG * lines.weights[family].max())
                if letter == top or lines.energies[family].max() > SOFT:
                    shapes.append((strong, lines))
                    owners.append(number)
                    is_top.append(letter == top)
        of_lines = calibration.line_shapes(edges, np.concatenate([lines.energies[own] for own, lines in shapes]))
        weights = np.concatenate([lines.weights[own] for own, lines in shapes])
        starts = np.cumsum([0, *(own.sum() for own, _ in shapes)])[:-1]
        summed = np.add.reduceat(of_lines * weights, starts, axis=1).T
        return cls(np.ascontiguousarray(summed), np.array(owners), np.array(is_top))

    def standard_scores(self, counts, expected, error, calibration, edges):
        """(n_families,) or (n_spectra, n_families): excess of each over the expected counts, in standard deviations."""
        inverse = 1 / _variance(expected, error, calibration, edges)
        information = np.maximum(inverse @ (self.shapes**2).T, 1e-300)
        return (inverse * (counts - expected)) @ self.shapes.T / np.sqrt(information)

    def scores(self, *spectrum):
        """(n_candidates,) squares of the standard scores of all families, none above that of the top one."""
        scores = np.maximum(self.standard_scores(*spectrum), 0)
        top = np.where(scores[self.is_top] > LINE_SEEN, scores[self.is_top], 0)
        return np.bincount(self.owners, np.minimum(scores, top[self.owners]) ** 2)

    def scores_of_groups(self, *spectra):
        """(n_candidates,) the same summed over several spectra, of the top family alone."""
        scores = np.maximum(self.standard_scores(*spectra), 0)
        return (scores[:, self.is_top] ** 2).sum(axis=0)


def _variance(expected, error, calibration, edges):
    """Of counts about a model whose peaks are wrong by a part of the highest one near."""
    from scipy.ndimage import maximum_filter1d

    width = int(2 * calibration.fwhm(np.median(edges)) / (edges[1] - edges[0])) | 1
    return np.maximum(expected, 1e-3) + (error * maximum_filter1d(expected, width, axis=-1)) ** 2


def _without(lines, names):
    """The lines of an element but for some of them."""
    own = np.flatnonzero([name not in names for name in lines.names])
    kept = tuple(lines.names[k] for k in own)
    return ElementLines(lines.element, kept, lines.energies[own], lines.weights[own], lines.mapped[own])


def _in_groups(groups, summed, edges, candidates, chosen, calibration):
    """The chosen elements, and after them those that groups of pixels show beside."""
    shapes = CandidateShapes.of(candidates, calibration, edges)
    for _ in range(ROUNDS):
        columns = SummedFit.of(summed, edges, chosen, calibration, True).columns()[0]
        expected = np.stack([columns @ poisson_ml(columns, group) for group in groups])
        scores = shapes.scores_of_groups(groups, expected, MODEL_ERROR_OF_GROUPS, calibration, edges)
        scores[[lines.element in {own.element for own in chosen} for lines in candidates]] = 0
        new = []
        for best in np.argsort(-scores):
            lines = _of_top_family(candidates[best])
            apart = [abs(lines.energies[0] - other.energies[0]) > APART for other in new]
            if scores[best] > SCORE + 2 * len(groups) and all(apart) and (not new or scores[best] > scores.max() / 5):
                new.append(lines)
        if not new:
            break
        chosen = [*chosen, *new]
    return chosen


def _of_top_family(lines):
    """The lines of its family of highest energy, the main line first."""
    own = np.flatnonzero(lines.families[_top_family(lines)])
    own = own[np.argsort(-lines.weights[own])]
    names = tuple(lines.names[k] for k in own)
    return ElementLines(lines.element, names, lines.energies[own], lines.weights[own], lines.mapped[own])


def _evidence(groups, summed, edges, candidates, chosen, calibrations):
    calibration, first = calibrations
    fit = SummedFit.of(summed, edges, chosen, calibration, True)
    columns, errors = fit.columns()[0], fit.systematic()
    counts = np.zeros(columns.shape[1])
    explained = np.zeros(columns.shape[1])
    for group in groups:
        x = poisson_ml(columns, group)
        counts += x
        explained += x**2 / cramer_rao(columns, np.maximum(columns @ x, 1e-3))
    scores = [_own_score(summed, edges, columns, lines, k, calibration) for k, lines in enumerate(chosen)]
    mains = [tuple(_main_lines(lines)) for lines in chosen]
    inside = fit.window_counts()
    overlaps = [_overlaps(inside[k], k, chosen) for k in range(len(chosen))]
    rivals = [_rivals(fit, edges, candidates, k, explained[k], first) for k in range(len(chosen))]
    values = counts.tolist(), explained.tolist(), errors.tolist()
    rows = zip(chosen, *values, scores, mains, overlaps, rivals, strict=False)
    return [Evidence(lines.element, *values) for lines, *values in rows]


def _rivals(fit, edges, candidates, number, explained, first):
    """Elements whose lines in place of those of element `number` fit about as well.

    They are those that nobody named, with a main line at the same energy, and those of the model with the families
    that it leaves out. Soft ones of these are compared near the line, by the first calibration: the element has drawn
    that of the fit.
    """
    lines, found = fit.elements[number], {}
    named = {own.element: own.names for own in fit.elements}
    energy = lines.energies[lines.mapped][0]
    for rival in candidates:
        if rival.element not in named:
            own, reach = _of_top_family(rival), SAME_LINE
        else:
            own, reach = _without(rival, named[rival.element]), NEIGHBOUR
        near = np.abs(own.energies[own.weights == 1] - energy) < reach * fit.calibration.fwhm(energy)
        if rival.element != lines.element and near.any():
            elements = [*fit.elements[:number], own, *fit.elements[number + 1 :]]
            drawn = rival.element in named and energy < SOFT
            other = SummedFit.of(fit.summed, edges, elements, first if drawn else fit.calibration, True)
            grown = deviances(other.expected, fit.summed) - deviances(fit.expected, fit.summed)
            inside = np.abs(edges[1:] - energy) < 2 * first.fwhm(energy) if drawn else slice(None)
            found[rival.element] = grown[inside].sum()
    return tuple(e for e in sorted(found, key=found.__getitem__) if found[e] < max(SCORE, AS_WELL * explained))


def _main_lines(lines):
    for letter, own in lines.families.items():
        alpha = f"{letter}a"
        yield alpha if alpha in lines.names else lines.names[int(np.argmax(lines.weights * own))]


def _overlaps(inside, number, chosen):
    others = [k for k in np.argsort(-inside) if k != number and inside[k] > OVERLAP * inside[number]]
    return tuple(chosen[k].element for k in others)
