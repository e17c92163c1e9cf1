"""Which elements emit the lines of EDS spectra: forward selection by score tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hyperspy_fusion.fusion.spectra.artefacts import Spectrum, smooth_continuum
from hyperspy_fusion.fusion.spectra.bands import cramer_rao
from hyperspy_fusion.fusion.spectra.element_evidence import (
    ARTEFACT_ERROR,
    Certainty,
    Evidence,
    least_ratio,
    peak_variance,
)
from hyperspy_fusion.fusion.spectra.line_calibration import SOFT, energy_scale, line_weights
from hyperspy_fusion.fusion.spectra.line_model import SummedFit
from hyperspy_fusion.fusion.spectra.line_shapes import Calibration, ElementLines
from hyperspy_fusion.fusion.spectra.poisson_fit import deviances, poisson_ml

# relative error of the model near its peaks, in the summed spectrum and in those of groups of pixels
MODEL_ERROR, MODEL_ERROR_OF_GROUPS = 0.04, 0.03
# least score of an element, the sum of squares of standard scores, and least standard score of its top family, that
# of highest energy
SCORE, LINE_SEEN = 30.0, 4.0
# relative systematic error of an element that others explain
HIDDEN = 1.0
# keV: elements are added together if their lines are so far apart
APART = 0.3
# the energy scale is calibrated with so many elements
RECALIBRATED = (4, 8, 14)
# standard deviations of its prior that the scale may differ by: lines of elements not yet found would draw others
LARGEST, LARGEST_IN_SEARCH = 2.0, 1.0
# weights of lines are within this factor of those of the tables
WEIGHT = 2.5
# keV: other elements may lie beneath softer lines; largest tail and shelf, which spectra of thick lamellae need
HARD, TAIL, SHELF = 1.5, 1.0, 0.3
# elements that are looked for at most, and rounds of the search in groups
MOST, ROUNDS = 24, 3
# lines with a smaller weight do not matter for a score
STRONG = 0.05
# part of the counts of an element from which on another one overlaps it
OVERLAP = 0.3
# part of the counts of all lines above which an element is clear; less is within the errors of quantification
CLEAR = 0.03


def find_elements(
    groups: np.ndarray,
    energies: np.ndarray,
    candidates: Sequence[ElementLines],
    first: Calibration,
    live: np.ndarray | None = None,
    beyond: Sequence[ElementLines] = (),
    beam: float = np.inf,
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
    live
        (n_channels,) bool: channels that are not dead; None for all.
    beyond
        Lines of families whose main line is not within the spectra.
    beam
        Its energy in keV; infinite where it is not known.
    """
    spectrum = Spectrum.of(groups.sum(axis=0), energies, live, beam)
    candidates = _within(candidates, energies)
    chosen, calibration, fit = _in_sum(spectrum, candidates, first)
    if not chosen:
        return []
    n, known, edges = len(chosen), False, spectrum.edges
    for _ in range(2):
        summed, cleaned = fit.clean, _cleaned(groups, fit)
        chosen = _weighted(SummedFit.of(summed, edges, chosen, calibration, known), cleaned, candidates)
        calibration = _energy_scale(spectrum.fit(chosen, calibration), first, LARGEST, True)
        known = True
        beside = _in_groups(cleaned, summed, edges, candidates, chosen, calibration)[len(chosen) :]
        kept = _pruned(summed, edges, [*chosen, *beside], calibration, n, known)
        n = n - (len(chosen) + len(beside) - len(kept))
        chosen, fit = _plausible(spectrum, kept, calibration)
    cleaned = _cleaned(groups, fit)
    chosen = _weighted(SummedFit.of(fit.clean, edges, chosen, calibration, known), cleaned, candidates)
    found = _evidence(cleaned, spectrum, fit, candidates, chosen, calibration, beyond)
    return sorted(found, key=lambda one: -one.evidence)


def _within(candidates, energies):
    """The candidates without families whose main line is not within the energies."""
    found = []
    for lines in candidates:
        mains = {letter: lines.energies[own & (lines.weights == 1)] for letter, own in lines.families.items()}
        out = [letter for letter, main in mains.items() if not len(main) or not energies[0] <= main[0] <= energies[-1]]
        found.append(_without(lines, [name for name in lines.names if name[0] in out]) if out else lines)
    return [lines for lines in found if lines.names]


def _weighted(fit, groups, candidates):
    """The elements of a fit with weights of their lines, near those of the tables relative to the main line."""
    tables = {lines.element: dict(zip(lines.names, lines.weights, strict=True)) for lines in candidates}
    found = []
    for lines in line_weights(fit, groups):
        table, weights = np.array([tables[lines.element][name] for name in lines.names]), lines.weights.copy()
        for own in lines.families.values():
            main = weights[own][np.argmax(table[own])]
            weights[own] = np.clip(weights[own], main * table[own] / WEIGHT, main * table[own] * WEIGHT)
        found.append(replace(lines, weights=weights / max(weights.max(), 1e-300)))
    return tuple(found)


def _cleaned(groups, fit):
    """Counts of groups of pixels without artefacts, and as the fit has them in dead channels."""
    shares = groups.sum(axis=1, keepdims=True) / max(groups.sum(), 1)
    return np.maximum(np.where(fit.spectrum.live, groups, shares * fit.expected) - shares * fit.of_artefacts, 0)


def find_missing(
    summed: np.ndarray,
    energies: np.ndarray,
    candidates: Sequence[ElementLines],
    named: Sequence[str],
    first: Calibration,
    live: np.ndarray | None = None,
    beyond: Sequence[ElementLines] = (),
    beam: float = np.inf,
) -> list[Evidence]:
    """Elements beside those `named` that a summed spectrum shows clearly, the strongest first.

    They are certain, as those of :func:`find_elements`, and have more than :data:`CLEAR` of the counts of all lines.
    The arguments are those of :func:`find_elements`, but for `summed` (n_channels,).
    """
    spectrum = Spectrum.of(summed, energies, live, beam)
    candidates = _within(candidates, energies)
    listed = [lines for lines in candidates if lines.element in named]
    chosen, calibration, fit = _added(spectrum, candidates, listed, first)
    if len(chosen) == len(listed):
        return []
    chosen = _exchanged(spectrum, candidates, chosen, calibration, len(listed))
    fit = spectrum.fit(chosen, calibration)
    chosen = _weighted(SummedFit.of(fit.clean, spectrum.edges, chosen, calibration), fit.clean[None], candidates)
    found = _evidence(fit.clean[None], spectrum, fit, candidates, chosen, calibration, beyond)
    least = CLEAR * sum(one.counts for one in found)
    clear = [one for one in found[len(listed) :] if one.is_certain and one.counts > least]
    return sorted(clear, key=lambda one: -one.counts)


def _in_sum(spectrum, candidates, first):
    chosen, calibration, fit = _added(spectrum, candidates, [], first)
    chosen = _exchanged(spectrum, candidates, chosen, calibration, 0)
    kept = _pruned(fit.clean, spectrum.edges, chosen, calibration, len(chosen))
    return kept, calibration, spectrum.fit(kept, calibration)


def _added(spectrum, candidates, chosen, first):
    """The chosen elements, and after them those that the summed spectrum shows beside; calibration and fit."""
    calibration, n = first, len(chosen)
    fit = spectrum.fit(chosen, first)
    if chosen:
        calibration = _energy_scale(fit, first, LARGEST)
        fit = spectrum.fit(chosen, calibration)
    shapes = CandidateShapes.of(candidates, calibration, spectrum.edges)
    continuum = _continuum_between(spectrum)
    while len(chosen) < MOST:
        lacking = (
            spectrum.counts - np.minimum(fit.continuum, continuum)
            if len(chosen) < RECALIBRATED[0]
            else spectrum.counts - fit.continuum
        )
        scores = shapes.scores(spectrum, fit, lacking, calibration)
        scores[[lines.element in {own.element for own in chosen} for lines in candidates]] = 0
        best = int(np.argmax(scores))
        if scores[best] < SCORE:
            break
        chosen = [*chosen, candidates[best]]
        if len(chosen) in RECALIBRATED:
            calibration = _energy_scale(spectrum.fit(chosen, calibration), first, LARGEST if n else LARGEST_IN_SEARCH)
            shapes = CandidateShapes.of(candidates, calibration, spectrum.edges)
        chosen, fit = _plausible(spectrum, chosen, calibration)
    return chosen, calibration, fit


def _energy_scale(fit, first, largest, known=False):
    """The calibration by hard lines, of which what the fit lacks is cut off: it would draw the scale."""
    counts = np.minimum(fit.clean, fit.expected + 3 * np.sqrt(fit.expected))
    used = slice(int(np.searchsorted(fit.energies, HARD)), None)
    elements, edges = fit.lines.elements, fit.spectrum.edges[used]
    found = energy_scale(counts[used], edges, elements, fit.calibration, first, known, largest=largest)
    return replace(found, tail=min(found.tail, TAIL), shelf=min(found.shelf, SHELF))


def _continuum_between(spectrum):
    """Of a fit to the counts between peaks: those above the fit are cut off there, again and again."""
    hats = smooth_continuum(spectrum.edges)[spectrum.live]
    counts = spectrum.counts[spectrum.live]
    for _ in range(6):
        expected = hats @ poisson_ml(hats, counts)
        counts = np.minimum(counts, expected + np.sqrt(np.maximum(expected, 1)))
    found = np.zeros(len(spectrum.counts))
    found[spectrum.live] = expected
    return found


def _exchanged(spectrum, candidates, chosen, calibration, n):
    """The chosen elements, each after the first n in turn for the one that explains the spectrum best in its place."""
    live, counts = spectrum.live, spectrum.counts
    shapes = CandidateShapes.of(candidates, calibration, spectrum.edges)

    def value(elements):
        plausible, fit = _plausible(spectrum, elements, calibration)
        return deviances(fit.expected[live], counts[live]).sum(), plausible

    best, chosen = value(chosen)
    for number in range(n, len(chosen)):
        others = [*chosen[:number], *chosen[number + 1 :]]
        fit = spectrum.fit(others, calibration)
        scores = shapes.scores(spectrum, fit, counts - fit.continuum, calibration)
        names = {own.element for own in others}
        scores[[lines.element in names for lines in candidates]] = 0
        own = [lines.element for lines in candidates].index(chosen[number].element)
        for rival in np.argsort(-scores)[:3]:
            is_same = candidates[rival] is chosen[number]
            if is_same or scores[rival] < max(scores[own] / 2, SCORE):
                continue
            new, elements = value([*chosen[:number], candidates[rival], *chosen[number + 1 :]])
            if new < best - SCORE:
                best, chosen = new, elements
    return chosen


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
    """Largest standard score of the families of an element about the fit of all others."""
    rest = np.delete(columns, number, axis=1)
    shapes = CandidateShapes.of([lines], calibration, edges)
    variance = peak_variance(rest @ poisson_ml(rest, summed), MODEL_ERROR, calibration, edges)
    scores, _ = shapes.standard_scores(summed - rest @ poisson_ml(rest, summed), variance)
    return float(scores.max())


def _plausible(spectrum, chosen, calibration):
    """The chosen elements without families far stronger than that of highest energy lets them be, and their fit."""
    fit = spectrum.fit(chosen, calibration)
    found, first = [], 0
    for lines in chosen:
        counts = {
            k: fit.amplitudes[first + j] * lines.weights[own].sum() for j, (k, own) in enumerate(lines.families.items())
        }
        first += len(counts)
        top = _top_family(lines)
        mains = {k: lines.energies[own].max() for k, own in lines.families.items()}
        most = {}
        for k, main in mains.items():
            most[k] = counts[top] / least_ratio(main, mains[top], spectrum.beam)
        dropped = [k for k in counts if k != top and counts[k] > most[k]]
        found.append(_without(lines, [name for name in lines.names if name[0] in dropped]) if dropped else lines)
    is_same = all(new is old for new, old in zip(found, chosen, strict=True))
    return found, fit if is_same else spectrum.fit(found, calibration)


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
    mains: np.ndarray

    @classmethod
    def of(cls, candidates, calibration, edges) -> CandidateShapes:
        calibration = replace(calibration, tail=0.0, shelf=0.0)
        shapes, owners, is_top, mains = [], [], [], []
        for number, lines in enumerate(candidates):
            top = _top_family(lines)
            for letter, family in lines.families.items():
                strong = family & (lines.weights > STRONG * lines.weights[family].max())
                if letter == top or lines.energies[family].max() > SOFT:
                    shapes.append((strong, lines))
                    owners.append(number)
                    is_top.append(letter == top)
                    mains.append(lines.energies[family][np.argmax(lines.weights[family])])
        of_lines = calibration.line_shapes(edges, np.concatenate([lines.energies[own] for own, lines in shapes]))
        weights = np.concatenate([lines.weights[own] for own, lines in shapes])
        starts = np.cumsum([0, *(own.sum() for own, _ in shapes)])[:-1]
        summed = np.add.reduceat(of_lines * weights, starts, axis=1).T
        return cls(np.ascontiguousarray(summed), np.array(owners), np.array(is_top), np.array(mains))

    def standard_scores(self, excess, variance):
        """``(scores, errors)`` of the amplitudes of all families, each (n_families,) or (n_spectra, n_families)."""
        inverse = 1 / variance
        information = np.maximum(inverse @ (self.shapes**2).T, 1e-300)
        return (inverse * excess) @ self.shapes.T / np.sqrt(information), 1 / np.sqrt(information)

    def scores(self, spectrum, fit, lacking, calibration):
        """(n_candidates,) squares of the standard scores of all families that no other one of the element refutes.

        A family is refuted where the counts of another one, with all that others have there, are too few for it.
        """
        variance = peak_variance(fit.expected, MODEL_ERROR, calibration, spectrum.edges)
        variance = np.where(spectrum.live, variance, np.inf) + (ARTEFACT_ERROR * fit.of_artefacts) ** 2
        scores, errors = self.standard_scores(spectrum.counts - fit.expected, variance)
        there = self.standard_scores(lacking, variance)[0] * errors
        found = np.zeros(self.owners[-1] + 1)
        for number in range(len(found)):
            own = np.flatnonzero(self.owners == number)
            for k in own[scores[own] > LINE_SEEN]:
                mains, beam = self.mains[own].tolist(), spectrum.beam
                needed = [least_ratio(float(self.mains[k]), main, beam) * scores[k] * errors[k] for main in mains]
                if all(n < there[j] + LINE_SEEN * errors[j] for n, j in zip(needed, own, strict=True) if j != k):
                    found[number] += scores[k] ** 2
        return found

    def scores_of_groups(self, groups, expected, calibration, edges):
        """(n_candidates,) squares of standard scores of the top family, summed over several spectra."""
        variance = peak_variance(expected, MODEL_ERROR_OF_GROUPS, calibration, edges)
        scores = np.maximum(self.standard_scores(groups - expected, variance)[0], 0)
        return (scores[:, self.is_top] ** 2).sum(axis=0)


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
        scores = shapes.scores_of_groups(groups, expected, calibration, edges)
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


def _evidence(groups, spectrum, joint, candidates, chosen, calibration, beyond):
    edges = spectrum.edges
    fit = SummedFit.of(joint.clean, edges, chosen, calibration, True)
    columns, errors = fit.columns()[0], fit.systematic()
    counts = np.zeros(columns.shape[1])
    explained = np.zeros(columns.shape[1])
    for group in groups:
        x = poisson_ml(columns, group)
        counts += x
        explained += x**2 / cramer_rao(columns, np.maximum(columns @ x, 1e-3))
    mains = [tuple(_main_lines(lines)) for lines in chosen]
    inside = fit.window_counts()
    overlaps = [_overlaps(inside[k], k, chosen) for k in range(len(chosen))]
    tested = Certainty.of(spectrum.fit(chosen, calibration), [*beyond, *_left_out(candidates, chosen)])
    judged = [tested.judged(k, candidates) for k in range(len(chosen))]
    values = counts.tolist(), explained.tolist(), errors.tolist()
    rows = zip(chosen, *values, judged, mains, overlaps, strict=False)
    return [
        Evidence(lines.element, c, x, e, score, own, over, rivals)
        for lines, c, x, e, (score, rivals), own, over in rows
    ]


def _left_out(candidates, chosen):
    """Families of the chosen elements that are not in the model, beneath lines of others or implausibly strong."""
    names = {lines.element: lines.names for lines in chosen}
    for lines in candidates:
        for letter in lines.families if lines.element in names else ():
            own = [name for name in lines.names if name[0] == letter]
            if not set(own) & set(names[lines.element]):
                yield _without(lines, [name for name in lines.names if name not in own])


def _main_lines(lines):
    for letter, own in lines.families.items():
        alpha = f"{letter}a"
        yield alpha if alpha in lines.names else lines.names[int(np.argmax(lines.weights * own))]


def _overlaps(inside, number, chosen):
    others = [k for k in np.argsort(-inside) if k != number and inside[k] > OVERLAP * inside[number]]
    return tuple(chosen[k].element for k in others)
