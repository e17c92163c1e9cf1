"""How certain an element is that EDS spectra show: its lines against all that may be wrong with the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property

import numpy as np
from scipy.optimize import nnls

from hyperspy_fusion.fusion.spectra.artefacts import ABSORBED, JointFit
from hyperspy_fusion.fusion.spectra.line_calibration import PRIOR, SMALL
from hyperspy_fusion.fusion.spectra.line_model import family_shapes
from hyperspy_fusion.fusion.spectra.line_shapes import Calibration, ElementLines

# an element is certain with so many standard deviations; it has rivals where fewer than so many are left beside them
CERTAIN, RIVAL = 8.0, 5.0
# and where a tenth of the counts of others in its main line is no more than this part of its own
RESOLVED = 0.5
# relative standard deviations: of the weight of a line, of all that is free, of counts near a peak, of artefacts
WEIGHT_ERROR, FREE, LOCAL_ERROR, ARTEFACT_ERROR = 0.2, 10.0, 0.01, 0.3
# keV: standard deviation of the energy of a line, which depends on the compound
ENERGY_ERROR = 0.002
# part of the prior of offset, gain, resolution, tail and shelf that calibration leaves uncertain
CALIBRATED = np.array([0.3, 0.3, 0.3, 1.0, 1.0])
# relative, of the shelves of lines, whose shape is not exponential, in humps so many widths of a peak apart
SHELF_ERROR, HUMP = 0.5, 3.0
# of the parts of the continuum
CONTINUUM_ERROR = 0.5
# lines of smaller weight have no error, and are none of a rival
LEAST_WEIGHT, OF_RIVAL = 0.01, 0.1
# least counts of a family for one of another family of the element, but for absorption; keV: families below may be
# absorbed; the detector of half a millimetre lets X-rays above some keV through
RATIO, ABSORBED_BELOW, THROUGH = 0.1, 1.5, 16.0
# the edge of a family by its main line
EDGE = 1.2


def least_ratio(energy: float, other: float, beam: float = np.inf) -> float:
    """Least counts of a family at energy `other` (keV) for one of another family of the same element at `energy`.

    The detector lets hard X-rays through, and a `beam` (keV) that is hardly above them excites few. Soft ones may be
    absorbed in the specimen, all of them.
    """
    if other < min(ABSORBED_BELOW, energy):
        return 0.0
    return RATIO * excited(energy, other, beam) * float(detected(other) / detected(energy))


def excited(energy: float, other: float, beam: float) -> float:
    """How much less than that at `energy` a beam excites a family at energy `other` (all in keV), at most 1.

    Counts grow with the 1.67th power of the overvoltage beyond 1 (Green and Cosslett, Proc. Phys. Soc. 78, 1206, 1961),
    here up to an overvoltage of 2.
    """
    own, others = (min(max(beam / (EDGE * one) - 1, 1e-6), 1.0) ** 1.67 for one in (energy, other))
    return min(others / own, 1.0)


def detected(energies):
    """Part of X-rays that a silicon detector of half a millimetre absorbs, about."""
    return 1 - np.exp(-((THROUGH / np.asarray(energies)) ** 3))


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
        Counts of its most certain family over their standard deviation, by noise and by errors of the model; 0 where
        another family refutes it.
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
        """Whether neither noise nor an error of the model explains it, nor another element."""
        return not self.rivals and self.score > CERTAIN and self.systematic < RESOLVED


@dataclass(frozen=True)
class Certainty:
    """A linear model of a summed spectrum about a fit, with all that may be wrong in it.

    The counts are those of the fit and ``errors @ x``, where x has the standard deviation one: amplitudes of families,
    nearly free; the continuum, weights, energies and shelves of lines, the calibration, artefacts, within their priors.
    ``families`` has the element, the letter, and the energy of the main line of each column of lines; ``covariance``
    and ``mean`` are those of x, ``residual`` is what is left, and ``weighted`` the errors over the variance of counts.
    """

    fit: JointFit
    families: list
    inverse: np.ndarray
    weighted: np.ndarray
    covariance: np.ndarray
    mean: np.ndarray
    residual: np.ndarray

    @classmethod
    def of(cls, fit: JointFit, beyond: Sequence[ElementLines] = ()) -> Certainty:
        """About a fit; families that lie `beyond` the spectrum but for some lines may be there too."""
        spectrum, edges = fit.spectrum, fit.spectrum.edges
        of_families, families = _family_columns(fit)
        errors = [
            FREE * of_families,
            _line_errors(fit),
            _absorption(fit),
            _energy_errors(fit, of_families),
            _tangents(fit),
            _shelf_errors(fit),
            _beyond(fit, families, beyond),
            CONTINUUM_ERROR * fit.smooth,
            fit.cut_off * spectrum.counts[:5].sum(),
            ARTEFACT_ERROR * spectrum.artefacts * fit.amplitudes[-2:],
        ]
        errors = np.concatenate(errors, axis=1)
        variance = peak_variance(fit.expected, LOCAL_ERROR, fit.calibration, edges)
        inverse = np.where(spectrum.live, 1 / variance, 0)
        weighted = errors * inverse[:, None]
        covariance = np.linalg.inv(errors.T @ weighted + np.eye(errors.shape[1]))
        residual = spectrum.counts - fit.expected
        mean = covariance @ (weighted.T @ residual)
        return cls(fit, families, inverse, weighted, covariance, mean, residual - errors @ mean)

    def judged(self, number: int, candidates: Sequence[ElementLines]):
        """``(score, rivals)`` of element `number`, by the family that nothing else explains, or else the clearest."""
        own = [(letter, place, main) for place, (k, letter, main, _) in enumerate(self.families) if k == number]
        amplitudes = {letter: self._amplitude(place) for letter, place, _ in own}
        counts = self._counts(number)
        scores = []
        for letter, place, main in own:
            value, error = amplitudes[letter]
            if any(self._refutes(other, letter, amplitudes, counts, main, e) for other, _, e in own if other != letter):
                return 0.0, ()
            if self._is_whole(main) and value > 0:
                scores.append((value / error / self._misfit, place, main))
        found = [(score, self._rivals(candidates, number, score, place, main)) for score, place, main in scores]
        found.sort(key=lambda one: -one[0])
        alone = [one for one in found if not one[1] and one[0] > CERTAIN]
        return (alone or found or [(0.0, ())])[0]

    def _rivals(self, candidates, number, score, place, main):
        """Elements that explain the family at `place` about as well, the best first."""
        counts, found = max(self._counts(number).values()), []
        for rival in candidates if score > RIVAL else ():
            columns = self._rival_columns(rival, number, main, counts)
            if columns is not None:
                beside = self._score_beside(*columns, place) / self._misfit
                beside = max(beside, score * (1 - self._most(rival) / counts))
                if beside < RIVAL:
                    found.append((beside, rival.element))
        return tuple(name for _, name in sorted(found))

    def _counts(self, number):
        """Of the main line of each family."""
        return {letter: counts for k, letter, _, counts in self.families if k == number}

    def _refutes(self, other, letter, amplitudes, counts, main, energy):
        value, error = amplitudes[other]
        needed = least_ratio(main, energy, self.fit.spectrum.beam) * counts[letter] * amplitudes[letter][0]
        return needed > counts[other] * (value + 4 * error)

    def _amplitude(self, place):
        return 1 + FREE * self.mean[place], FREE * np.sqrt(self.covariance[place, place])

    def _is_whole(self, energy):
        half = self.fit.calibration.fwhm(energy) / 2
        return self.fit.energies[0] + half < energy < self.fit.energies[-1] - half

    @cached_property
    def _misfit(self):
        """Root of chi-square of the fit for each channel, at least 1 (Birge, Phys. Rev. 40, 207, 1932).

        What a fit lacks anywhere moves its continuum and its energy scale, and so the counts of all that is weak.
        """
        left = self.fit.spectrum.counts - self.fit.expected
        return max(float(np.sqrt(np.mean((left**2 * self.inverse)[self.fit.spectrum.live]))), 1.0)

    def _rival_columns(self, rival, number, energy, counts):
        """``(columns, n)`` of the lines of a candidate that is near, of which the first n are not below 0.

        The first has the family that is near with the least of the others, the next n - 1 have more of these, and the
        last ones are errors of weights. None where no family is near.
        """
        fit = self.fit
        elements = fit.lines.elements
        if rival.element == elements[number].element:
            return None
        names = next((own.names for own in elements if own.element == rival.element), ())
        left = np.array([name not in names for name in rival.names])
        is_main = left & (rival.weights == 1)
        families = {letter: own & left for letter, own in rival.families.items() if (own & is_main).any()}
        mains = {letter: float(rival.energies[own & is_main][0]) for letter, own in families.items()}
        strong = np.abs(rival.energies - energy) < fit.calibration.fwhm(energy)
        strong &= rival.weights > OF_RIVAL
        near = [letter for letter, own in families.items() if (own & strong).any()]
        if not near:
            return None
        shapes = fit.calibration.line_shapes(fit.spectrum.edges, rival.energies) * rival.weights * counts
        least = {k: least_ratio(mains[near[0]], main, fit.spectrum.beam) for k, main in mains.items()} | {near[0]: 1.0}
        first = sum(least[k] * shapes[:, own].sum(axis=1) for k, own in families.items())
        more = [shapes[:, own].sum(axis=1) for k, own in families.items() if k != near[0]]
        own = families[near[0]] & (rival.weights < 1) & (rival.weights > LEAST_WEIGHT)
        columns = [FREE * np.stack([first, *more], axis=1), WEIGHT_ERROR * shapes[:, own]]
        return np.concatenate(columns, axis=1), 1 + len(more)

    def _most(self, rival):
        """Counts that a family left out of an element of the model may have, infinite for other elements."""
        names = [lines.element for lines in self.fit.lines.elements]
        if rival.element not in names:
            return np.inf
        return max(self._counts(names.index(rival.element)).values()) / RATIO

    def _score_beside(self, columns, n, place):
        """Root of the growth of chi-square without the family at `place`, with n columns of a rival instead."""
        both = self.weighted.T @ columns
        gain = self.covariance @ both
        own = columns.T @ (columns * self.inverse[:, None])
        covariance = np.linalg.inv(np.eye(len(own)) + own - both.T @ gain)
        found = covariance @ (columns.T @ (self.inverse * self.residual))
        cross = -gain[place] @ covariance
        variance = self.covariance[place, place] - cross @ gain[place]
        of_all = np.block([[np.atleast_2d(variance), cross[None, :n]], [cross[:n, None], covariance[:n, :n]]])
        root = np.linalg.cholesky(np.linalg.inv(of_all)).T
        # amplitudes that must not be negative
        target = root @ np.append(self.mean[place] - gain[place] @ found + 1 / FREE, found[:n])
        return np.sqrt(max(nnls(root[:, 1:], target)[1] ** 2 - nnls(root, target)[1] ** 2, 0.0))


def _family_columns(fit):
    """``(columns, families)``: counts of each family, and its element, letter, main line in keV and counts of that."""
    columns, families = [], []
    for number, lines in enumerate(fit.lines.elements):
        own = np.flatnonzero(fit.lines.owners == number)
        for letter, family in lines.families.items():
            of_lines = fit.line_amplitudes[own[family]]
            main = int(np.argmax(of_lines))
            families.append((number, letter, float(lines.energies[family][main]), float(of_lines[main])))
            columns.append(fit.lines.shapes[:, own[family]] @ of_lines)
    return np.stack(columns, axis=1), families


def _line_errors(fit):
    largest = np.zeros(fit.n)
    np.maximum.at(largest, fit.lines.families, fit.lines.weights)
    part = fit.lines.weights / np.maximum(largest, 1e-300)[fit.lines.families]
    minor = (part < 1) & (part > LEAST_WEIGHT)
    return WEIGHT_ERROR * fit.lines.shapes[:, minor] * fit.line_amplitudes[minor]


def _absorption(fit):
    """Of families of which a part is absorbed as much as the continuum may be: the softer a line, the less is left."""
    lines, amplitudes = fit.lines, fit.line_amplitudes
    depths = (ABSORBED[-1] / np.concatenate([own.energies for own in lines.elements])) ** 2.7
    least = np.full(fit.n, np.inf)
    np.minimum.at(least, lines.families, depths)
    left = np.exp(least[lines.families] - depths)
    means = np.bincount(lines.families, amplitudes * left) / np.bincount(lines.families, amplitudes)
    return family_shapes(lines.shapes, amplitudes * (left / means[lines.families] - 1), lines.families)


def _energy_errors(fit, columns):
    """Of the main line of each family, which the others are shifted with."""
    return ENERGY_ERROR * np.gradient(columns, fit.energies[1] - fit.energies[0], axis=0)


def _shelf_errors(fit):
    """Of the counts in the shelves of all lines, by hat functions wider than a peak."""
    calibration, places = fit.calibration, [float(fit.energies[0])]
    peaks = replace(calibration, shelf=0.0).line_shapes(fit.spectrum.edges, fit.lines.energies) @ fit.line_amplitudes
    shelves = np.maximum(fit.of_lines - (1 - calibration.shelf) * peaks, 0)
    while places[-1] < fit.energies[-1]:
        places.append(places[-1] + HUMP * float(calibration.fwhm(places[-1])))
    number = np.interp(fit.energies, places, np.arange(len(places)))
    hats = np.maximum(1 - np.abs(number[:, None] - np.arange(len(places))), 0)
    return SHELF_ERROR * hats * shelves[:, None]


def _beyond(fit, families, beyond):
    """Lines of the elements of the fit whose main line is not in the spectrum, as many as of the families in it."""
    most = {lines.element: 0.0 for lines in fit.lines.elements}
    for number, _, _, counts in families:
        element = fit.lines.elements[number].element
        most[element] = max(most[element], counts)
    found = [np.zeros((len(fit.energies), 0))]
    for lines in beyond:
        if lines.element in most:
            shapes = fit.calibration.line_shapes(fit.spectrum.edges, lines.energies)
            found.append((shapes @ lines.weights * most[lines.element])[:, None])
    return np.concatenate(found, axis=1)


def _tangents(fit):
    values = np.array(astuple(fit.calibration))
    shifted = [Calibration(*(values + step)) for step in np.diag(SMALL)]
    counts = [one.line_shapes(fit.spectrum.edges, fit.lines.energies) @ fit.line_amplitudes for one in shifted]
    return (np.stack(counts, axis=1) - fit.of_lines[:, None]) / SMALL * PRIOR * CALIBRATED


def peak_variance(expected, error, calibration, edges):
    """Of counts about a model whose peaks are wrong by a part of the highest one near."""
    from scipy.ndimage import maximum_filter1d

    width = int(2 * calibration.fwhm(np.median(edges)) / (edges[1] - edges[0])) | 1
    return np.maximum(expected, 1e-3) + (error * maximum_filter1d(expected, width, axis=-1)) ** 2
