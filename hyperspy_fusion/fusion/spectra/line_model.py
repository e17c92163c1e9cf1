"""The model of EDS spectra: band counts of a pixel are ``Poisson(A x)``, with the counts x of elements and continuum.

A column of A is what one count of an element, all its lines together, adds to each band. Two columns are the continuum,
whose slope may change from pixel to pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from hyperspy_fusion.fusion.spectra.bands import LOSS, band_edges, cramer_rao
from hyperspy_fusion.fusion.spectra.line_shapes import Calibration, ElementLines, continuum_hats, log_position
from hyperspy_fusion.fusion.spectra.poisson_fit import deviances, expected_deviances, poisson_ml

#: shift of the counts of each column in the data term, as in that of maps
SHIFT = 0.3
CONTINUUM = ("continuum low", "continuum high")
# relative error of the counts of other elements in the window of a line
NEIGHBOUR_ERROR = 0.1
# fewer counts in a window are none
LEAST_COUNTS = 1e-3


@dataclass(frozen=True)
class SpectralModel:
    """Columns of the spectra of elements and continuum, their totals in a scan, and bands of channels.

    Attributes
    ----------
    columns
        (n_channels, n_columns) float64, each with the sum one over all channels that are used.
    names
        (n_columns,): the elements that are mapped, those of the system, and ``CONTINUUM``.
    n_elements
        The number of mapped elements, the first columns.
    edges
        (n_bands + 1,) first channels of the bands, and the end of the last; the first is 0.
    first_channel
        Index of the first channel that is used in the spectra of the scan.
    energies
        (n_channels,) of the channels in keV, as the axis of the spectra has them.
    calibration
        Offset, gain and resolution of the detector.
    summed
        (n_channels,) counts of all valid pixels.
    n_pixels
        The number of valid pixels.
    main_share
        (n_columns,) part of the counts of a column that is in the peaks of mapped lines, NaN for the continuum.
    systematic
        (n_columns,) relative systematic error of the counts of each element; infinite where it has none, NaN for the
        continuum.
    lines
        The lines of each element, mapped and of the system, with their weights.
    shift
        Counts that the data term adds to each column of each pixel.
    """

    columns: np.ndarray
    names: tuple[str, ...]
    n_elements: int
    edges: np.ndarray
    first_channel: int
    energies: np.ndarray
    calibration: Calibration
    summed: np.ndarray
    n_pixels: float
    main_share: np.ndarray
    systematic: np.ndarray
    lines: tuple[ElementLines, ...] = field(repr=False)
    shift: float = SHIFT

    @cached_property
    def matrix(self) -> np.ndarray:
        """(n_bands, n_columns) float64: the columns, summed over the channels of each band."""
        return np.add.reduceat(self.columns, self.edges[:-1], axis=0)

    @cached_property
    def totals(self) -> np.ndarray:
        """(n_columns,) counts of the scan in each column, the maximum-likelihood fit of the summed spectrum."""
        return poisson_ml(self.matrix, np.add.reduceat(self.summed, self.edges[:-1]))

    @cached_property
    def units(self) -> np.ndarray:
        """(n_columns,) standard errors of the counts of a typical pixel, given the overlaps (Cramer-Rao bound)."""
        return self._units(1.0)

    def _units(self, fraction):
        mean = self.matrix @ (fraction * self.totals / self.n_pixels + self.shift)
        return np.sqrt(cramer_rao(self.matrix, mean))

    @cached_property
    def expected(self) -> np.ndarray:
        """(n_channels,) counts of the fit of the columns to all channels of the summed spectrum.

        Bands keep the information on mapped elements alone: those of the system need the channels.
        """
        return self.columns @ poisson_ml(self.columns, self.summed)

    @cached_property
    def deviance(self) -> float:
        """Poisson deviance of the summed spectrum over that of noise alone, about one for a model without error."""
        return float(deviances(self.expected, self.summed).sum() / expected_deviances(self.expected).sum())

    def band_counts(self, channel_counts: np.ndarray) -> np.ndarray:
        """Counts of the bands of spectra that have all channels of the scan along their last axis, (..., n_bands)."""
        used = channel_counts[..., self.first_channel : self.first_channel + len(self.energies)]
        dtype = {"b": np.uint64, "u": np.uint64, "i": np.int64}.get(used.dtype.kind, np.float64)
        return np.add.reduceat(used, self.edges[:-1], axis=-1, dtype=dtype)

    def rescaled(self, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """Totals and units of a part of the counts, each (n_columns,)."""
        return fraction * self.totals, self._units(fraction)


def spectral_model(
    summed: np.ndarray,
    energies: np.ndarray,
    elements: Sequence[ElementLines],
    n_elements: int,
    n_pixels: float,
    *,
    first_channel: int = 0,
    calibration: Calibration | None = None,
    ratios_known: bool = False,
    loss: float = LOSS,
) -> SpectralModel:
    """The model of spectra whose lines and calibration are known.

    The shape of the continuum, and the ratios of the families of an element, are fitted to the summed spectrum.

    Parameters
    ----------
    summed
        (n_channels,) counts of all valid pixels.
    energies
        (n_channels,) of the channels in keV, equally far apart and above 0.
    elements
        The lines of the mapped elements, then those of the system.
    n_elements
        How many of the elements are mapped.
    n_pixels
        The number of valid pixels.
    first_channel
        Index of the first channel in the spectra of the scan.
    calibration
        Of the detector; None for the axis as it is, and 130 eV.
    ratios_known
        Whether the weights of lines are relative to the strongest of the element, not of the family.
    loss
        Largest relative growth of the variance of an element by the merging of channels.
    """
    summed = np.asarray(summed, dtype=np.float64)
    energies = np.asarray(energies, dtype=np.float64)
    calibration = calibration or Calibration()
    fit = SummedFit.of(summed, channel_edges(energies), elements, calibration, ratios_known)
    columns, main_share = fit.columns()
    names = (*(lines.element for lines in elements), *CONTINUUM)
    mean = columns @ poisson_ml(columns, summed)
    return SpectralModel(
        columns=columns,
        names=names,
        n_elements=n_elements,
        edges=band_edges(columns, mean, n_elements, loss),
        first_channel=first_channel,
        energies=energies,
        calibration=calibration,
        summed=summed,
        n_pixels=n_pixels,
        main_share=main_share,
        systematic=fit.systematic(),
        lines=tuple(elements),
    )


def channel_edges(energies: np.ndarray) -> np.ndarray:
    """(n + 1,) edges of channels equally far apart, of which `energies` are the middles."""
    width = (energies[-1] - energies[0]) / (len(energies) - 1)
    return energies[0] + width * (np.arange(len(energies) + 1) - 0.5)


@dataclass(frozen=True)
class SummedFit:
    """A fit of the lines of elements and of hat functions to a summed spectrum.

    ``shapes`` (n_channels, n_lines) are those of all lines, with amplitude one. ``owners`` and ``families`` number the
    element and the family of each; where ``ratios_known`` all lines of an element are one family. ``weights``
    (n_lines,) are of the lines in their family, ``amplitudes`` (n_families,) of the families. ``continuum``
    (n_channels,) are its counts, and ``hats`` the shapes that it is made of.
    """

    elements: tuple[ElementLines, ...]
    calibration: Calibration
    shapes: np.ndarray
    owners: np.ndarray
    families: np.ndarray
    weights: np.ndarray
    amplitudes: np.ndarray
    hats: np.ndarray
    continuum: np.ndarray
    energies: np.ndarray
    summed: np.ndarray

    @classmethod
    def of(cls, summed, edges, elements, calibration, ratios_known=False) -> SummedFit:
        """Fit the spectrum `summed` (n_channels,) of channels with `edges` in keV."""
        owners, families = line_numbers(elements)
        families = owners if ratios_known else families
        weights = np.concatenate([lines.weights for lines in elements])
        shapes = calibration.line_shapes(edges, np.concatenate([lines.energies for lines in elements]))
        of_family, hats = family_shapes(shapes, weights, families), continuum_hats(edges)
        n = of_family.shape[1]
        found = poisson_ml(np.concatenate([of_family, hats], axis=1), summed)
        energies = (edges[1:] + edges[:-1]) / 2
        return cls(
            elements=tuple(elements),
            calibration=calibration,
            shapes=shapes,
            owners=owners,
            families=families,
            weights=weights,
            amplitudes=found[:n],
            hats=hats[:, found[n:] > 0],
            continuum=hats @ found[n:],
            energies=energies,
            summed=summed,
        )

    @cached_property
    def line_amplitudes(self) -> np.ndarray:
        """(n_lines,) of all lines; those of an element that the spectrum lacks are their weights, as of one count."""
        own = np.bincount(self.owners, self.weights * self.amplitudes[self.families])
        lacking = own <= 0
        amplitudes = np.where(lacking[self.owners], 1e-9, self.amplitudes[self.families])
        return self.weights * amplitudes

    @cached_property
    def expected(self) -> np.ndarray:
        """(n_channels,) counts of the fit."""
        return self.shapes @ self.line_amplitudes + self.continuum

    @property
    def free_shapes(self) -> np.ndarray:
        """(n_channels, n) of the families and hat functions that have an amplitude above 0."""
        families = family_shapes(self.shapes, self.weights, self.families)[:, self.amplitudes > 0]
        return np.concatenate([families, self.hats], axis=1)

    def expected_with(self, calibration: Calibration, edges: np.ndarray) -> np.ndarray:
        """(n_channels,) counts of the same amplitudes with another calibration."""
        energies = np.concatenate([lines.energies for lines in self.elements])
        return calibration.line_shapes(edges, energies) @ self.line_amplitudes + self.continuum

    def columns(self):
        """``(columns, main_share)`` of the elements and the continuum, each column with the sum one."""
        columns, shares = [], []
        for number, lines in enumerate(self.elements):
            own = self.owners == number
            of_lines = self.shapes[:, own] * self.line_amplitudes[own]
            columns.append(of_lines.sum(axis=1))
            peaks = (1 - self.calibration.shelf) * of_lines[:, lines.mapped].sum()
            shares.append(peaks / max(of_lines.sum(), 1e-300))
        high = log_position(self.energies)
        continuum = np.maximum(self.continuum, 1e-9 * max(self.continuum.max(), 1.0))
        stack = np.stack([*columns, continuum * (1 - high), continuum * high], axis=1)
        return stack / stack.sum(axis=0), np.array([*shares, np.nan, np.nan])

    def systematic(self):
        """(n_columns,) relative errors by a tenth of the counts of other elements in the windows of mapped lines."""
        counts = self.window_counts()
        own = np.diag(counts)
        errors = NEIGHBOUR_ERROR * (counts.sum(axis=1) - own) / np.where(own > LEAST_COUNTS, own, 1)
        return np.array([*np.where(own > LEAST_COUNTS, errors, np.inf), np.nan, np.nan])

    def window_counts(self) -> np.ndarray:
        """(n_elements, n_elements) counts of element j in the windows of the mapped lines of element i, of two FWHM."""
        own_lines = [self.owners == number for number in range(len(self.elements))]
        counts = np.stack([self.shapes[:, own] @ self.line_amplitudes[own] for own in own_lines], axis=1)
        rows = []
        for own, lines in zip(own_lines, self.elements, strict=True):
            main = self.shapes[:, own][:, lines.mapped].sum(axis=1)
            rows.append(counts[main > main.max() / 16].sum(axis=0))
        return np.array(rows)


def line_numbers(elements: Sequence[ElementLines]):
    """``(owners, families)``, the number of the element and of the family of each line."""
    owners, families, n = [], [], 0
    for number, lines in enumerate(elements):
        owners += [number] * len(lines.names)
        groups = np.zeros(len(lines.names), int)
        for own in lines.families.values():
            groups[own], n = n, n + 1
        families += groups.tolist()
    return np.array(owners, dtype=int), np.array(families, dtype=int)


def family_shapes(shapes, weights, families):
    """(n_channels, n_families): the lines of each family, by their weights."""
    found = np.zeros((len(shapes), families.max() + 1))
    for family in range(found.shape[1]):
        own = families == family
        found[:, family] = shapes[:, own] @ weights[own]
    return found
