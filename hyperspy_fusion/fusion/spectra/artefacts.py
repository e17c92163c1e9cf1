"""What EDS spectra have beside lines and continuum: dead channels, sum peaks and escape peaks."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from hyperspy_fusion.fusion.spectra.line_calibration import SOFT
from hyperspy_fusion.fusion.spectra.line_model import channel_edges, family_shapes, line_numbers
from hyperspy_fusion.fusion.spectra.line_shapes import SILICON_EDGE, Calibration, continuum_hats
from hyperspy_fusion.fusion.spectra.poisson_fit import poisson_ml

# keV that escape with a photon of the detector
SILICON_KA = 1.740
# a channel without counts is dead where both sides have more than so many counts within so many channels
LEAST, NEAR = 15, 6
# standard deviations by which the counts from a channel on must exceed zero
SEEN = 3.0
# no larger part of X-rays is in sum or escape peaks; counts that hold it there
LARGEST, PINNED = 0.02, 1e8
# counts of a family that is not there: so many, and this part of those of the strongest one of the element
LACKING, LACKING_PART = 1e-6, 0.01
# keV from the first channel: peaks there are cut off
BELOW = np.array([-0.06, -0.03, 0.0])
EXTRA = len(BELOW) + 2
# keV: where half of the continuum is absorbed
ABSORBED = (0.0, 0.2, 0.35, 0.55, 0.8)


def dead_channels(summed: np.ndarray) -> np.ndarray:
    """(n_channels,) bool of a summed spectrum: no counts, with more than :data:`LEAST` on both sides near."""
    padded = np.pad(summed, NEAR)
    windows = np.lib.stride_tricks.sliding_window_view(padded, NEAR).max(axis=1)
    return (summed == 0) & (np.minimum(windows[: len(summed)], windows[-len(summed) :]) > LEAST)


def highest_channel(summed: np.ndarray, energies: np.ndarray) -> int:
    """The last channel (n_channels,) from which on there are more counts than noise and sum peaks explain."""
    beyond, pairs = (np.cumsum(one[::-1])[::-1] for one in (summed, _pairs(summed, energies)))
    shown = beyond - LARGEST * pairs > SEEN * np.sqrt(np.maximum(beyond, 1))
    return int(np.flatnonzero(shown)[-1]) if shown.any() else len(summed) - 1


def _pairs(counts, energies):
    """(n_channels,) counts that would be there if each pair of X-rays were counted as one."""
    pairs = np.convolve(counts, counts) / max(counts.sum(), 1)
    sums = 2 * energies[0] + (energies[1] - energies[0]) * np.arange(len(pairs))
    return np.interp(energies, sums, pairs, 0, 0)


@dataclass(frozen=True)
class Spectrum:
    """A summed spectrum with its artefacts.

    ``counts`` (n_channels,) are within ``edges`` (n_channels + 1,) in keV, and ``live`` (n_channels,) where a channel
    is not dead. ``artefacts`` (n_channels, 2) are all counts that would be there if each pair of X-rays were counted
    as one, and if each X-ray lost one of silicon. ``beam`` is the energy of the beam in keV.
    """

    counts: np.ndarray
    edges: np.ndarray
    live: np.ndarray
    artefacts: np.ndarray
    beam: float = np.inf
    _shapes: dict = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, summed: np.ndarray, energies: np.ndarray, live: np.ndarray | None = None, beam: float = np.inf
    ) -> Spectrum:
        """Of the counts (n_channels,) of channels with such energies in keV."""
        counts = np.asarray(summed, dtype=np.float64)
        live = np.ones(len(counts), bool) if live is None else np.asarray(live)
        filled = np.interp(energies, energies[live], counts[live])
        escaped = filled * np.where(energies > SILICON_EDGE, (SILICON_EDGE / energies) ** 2, 0)
        artefacts = _pairs(filled, energies), np.interp(energies + SILICON_KA, energies, escaped, 0, 0)
        return cls(counts, channel_edges(energies), live, np.stack(artefacts, axis=1), beam)

    def line_shapes(self, lines, calibration) -> np.ndarray:
        """(n_channels, n_lines) of the lines of an element."""
        key = lines.element, lines.names, calibration
        if key not in self._shapes:
            self._shapes[key] = calibration.line_shapes(self.edges, lines.energies)
        return self._shapes[key]

    def fit(self, elements, calibration) -> JointFit:
        """Lines of elements, continuum and artefacts, fitted together."""
        lines = _Lines.of(elements, calibration, self)
        below = calibration.line_shapes(self.edges, self.edges[0] + BELOW)
        matrix = np.concatenate([lines.of_families(), smooth_continuum(self.edges), below, self.artefacts], axis=1)
        rows, counts = matrix[self.live], self.counts[self.live]
        found = poisson_ml(rows, counts)
        if np.any(found[-2:] > LARGEST):  # a row of many counts for each holds it
            pinned = np.zeros((2, matrix.shape[1]))
            pinned[[0, 1], [-2, -1]] = np.where(found[-2:] > LARGEST, PINNED / LARGEST, 0)
            held = PINNED * (found[-2:] > LARGEST)
            found = poisson_ml(np.concatenate([rows, pinned]), np.concatenate([counts, held]))
        return JointFit(self, lines, calibration, matrix, found)


@dataclass(frozen=True)
class _Lines:
    """Shapes (n_channels, n_lines) of all lines of elements, with the numbers of their elements and families."""

    elements: tuple
    shapes: np.ndarray
    weights: np.ndarray
    energies: np.ndarray
    owners: np.ndarray
    families: np.ndarray

    @classmethod
    def of(cls, elements, calibration, spectrum):
        owners, families = line_numbers(elements)
        energies = np.concatenate([np.zeros(0), *(lines.energies for lines in elements)])
        weights = np.concatenate([np.zeros(0), *(lines.weights for lines in elements)])
        shapes = [spectrum.line_shapes(lines, calibration) for lines in elements]
        shapes = np.concatenate([np.zeros((len(spectrum.counts), 0)), *shapes], axis=1)
        return cls(tuple(elements), shapes, weights, energies, owners, families)

    def of_families(self):
        if not self.elements:
            return np.zeros((len(self.shapes), 0))
        return family_shapes(self.shapes, self.weights, self.families)


@dataclass(frozen=True)
class JointFit:
    """Amplitudes of the columns of ``matrix``.

    Families of lines are first, then the continuum, peaks that the first channel cuts off, and at last the artefacts.
    """

    spectrum: Spectrum
    lines: _Lines
    calibration: Calibration
    matrix: np.ndarray
    amplitudes: np.ndarray

    @property
    def n(self) -> int:
        """The number of families."""
        return int(self.lines.families.max(initial=-1)) + 1

    @property
    def energies(self) -> np.ndarray:
        """(n_channels,) of the channels in keV."""
        return (self.spectrum.edges[1:] + self.spectrum.edges[:-1]) / 2

    @cached_property
    def line_amplitudes(self) -> np.ndarray:
        """(n_lines,) counts of all lines; those of a family that the spectrum lacks are next to none."""
        lines, mains = self.lines, np.zeros(self.n)
        np.maximum.at(mains, lines.families, lines.weights)
        strongest = np.zeros(len(lines.elements))
        np.maximum.at(strongest, lines.owners, lines.weights * self.amplitudes[lines.families])
        least = LACKING_PART * strongest[lines.owners] / np.maximum(mains[lines.families], 1e-300)
        return lines.weights * np.maximum(np.maximum(self.amplitudes[lines.families], least), LACKING)

    @cached_property
    def of_lines(self) -> np.ndarray:
        """(n_channels,) counts of all lines."""
        return self.lines.shapes @ self.line_amplitudes

    @cached_property
    def expected(self) -> np.ndarray:
        """(n_channels,) counts of the fit."""
        return self.matrix @ self.amplitudes

    @property
    def of_artefacts(self) -> np.ndarray:
        """(n_channels,) counts of sum and escape peaks, and of peaks that the first channel cuts off."""
        return self.matrix[:, -EXTRA:] @ self.amplitudes[-EXTRA:]

    @property
    def cut_off(self) -> np.ndarray:
        """(n_channels, n) shapes of peaks that the first channel cuts off."""
        return self.matrix[:, -EXTRA:-2]

    @property
    def smooth(self) -> np.ndarray:
        """(n_channels, n) counts of the parts of the continuum."""
        return self.matrix[:, self.n : -EXTRA] * self.amplitudes[self.n : -EXTRA]

    @property
    def continuum(self) -> np.ndarray:
        """(n_channels,) counts that are of no line."""
        return self.matrix[:, self.n :] @ self.amplitudes[self.n :]

    @property
    def clean(self) -> np.ndarray:
        """(n_channels,) counts without artefacts, and as the fit has them in dead channels."""
        counts = np.where(self.spectrum.live, self.spectrum.counts, self.expected)
        return np.maximum(counts - self.of_artefacts, 0)


def smooth_continuum(edges):
    """Shapes (n_channels, n) of the continuum, none of which is like a line: wide hats are narrow at low energies.

    Those of soft lines are Kramers' continuum with different absorption instead.
    """
    middle = (edges[1:] + edges[:-1]) / 2
    hats = continuum_hats(edges)
    peaks = middle[np.argmax(hats, axis=0)]
    wide = peaks > SOFT
    ramp = np.clip((peaks[wide][0] - middle) / (peaks[wide][0] - middle[0]), 0, 1) ** 0.5 if wide.any() else 1.0
    low = np.stack([np.exp(-((k / middle) ** 2.7)) / middle * ramp for k in ABSORBED], axis=1)
    return np.concatenate([low / np.maximum(low.sum(axis=0), 1e-300), hats[:, wide]], axis=1)
