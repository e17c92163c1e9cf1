"""Counts of a scan in the bands of a model of its spectra."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hyperspy_fusion.fusion.spectra.line_model import SpectralModel
from hyperspy_fusion.fusion.spectra.poisson_fit import poisson_ml

# relative error of an element of which the spectra have no counts
_NO_COUNTS = 10.0


@dataclass(frozen=True)
class ScanSpectra:
    """What a model of spectra is fitted to.

    Attributes
    ----------
    model
        The columns of elements and continuum.
    counts
        (n_bands, ny, nx) float32, C-contiguous: counts in the bands of the model.
    """

    model: SpectralModel
    counts: np.ndarray

    @property
    def elements(self) -> tuple[str, ...]:
        """Symbols of the elements that are mapped."""
        return self.model.names[: self.model.n_elements]

    @property
    def main_share(self) -> np.ndarray:
        """(n_elements,) counts of the mapped lines for each count of the element."""
        return self.model.main_share[: self.model.n_elements]

    @property
    def systematic(self) -> np.ndarray:
        """(n_elements,) relative errors by the lines of other elements; that of an element without counts is large."""
        return np.nan_to_num(self.model.systematic[: self.model.n_elements], posinf=_NO_COUNTS)

    def mean_of(self, pixels: np.ndarray, index: int) -> float:
        """Mean counts of the mapped lines of an element, by a fit to the summed spectrum of ``pixels`` (ny, nx)."""
        if (key := pixels.tobytes()) not in self._fitted:  # one element after the other of the same pixels
            summed = self.counts[:, pixels].sum(axis=1, dtype=np.float64)
            self._fitted.clear()
            self._fitted[key] = poisson_ml(self.model.matrix, summed)
        return float(self._fitted[key][index] * self.main_share[index] / np.count_nonzero(pixels))

    @cached_property
    def _fitted(self):
        """{pixels: columns of their summed spectrum}, of those asked for last."""
        return {}

    def of_pixels(self, valid: np.ndarray) -> ScanSpectra:
        """The same with totals and natural units of the pixels ``valid`` (ny, nx), whose channels have the same shape.

        The columns remain those of all pixels.
        """
        if valid.all():
            return self
        first, inside = self.model.edges[:-1], self.counts.sum(axis=(1, 2), dtype=np.float64, where=valid)
        of_all = np.add.reduceat(self.model.summed, first)
        part = np.divide(inside, of_all, out=np.zeros_like(inside), where=of_all > 0)
        summed = self.model.summed * np.repeat(part, np.diff(self.model.edges))
        return replace(self, model=replace(self.model, summed=summed, n_pixels=float(np.count_nonzero(valid))))
