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
    windows
        (n_elements, n_channels) bool, the channels of the model that are within a FWHM of the mapped lines, by which
        maps are looked at before they are fitted. None for none.
    in_windows
        (n_elements, ny, nx) counts in these windows.
    """

    model: SpectralModel
    counts: np.ndarray
    windows: np.ndarray | None = None
    in_windows: np.ndarray | None = None

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

    def mean_of(self, pixels: np.ndarray, index: int, without: np.ndarray | float = 0.0) -> float:
        """Mean counts of the mapped lines of an element, by a fit to the summed spectrum of ``pixels`` (ny, nx).

        Counts ``without`` (n_bands,) are left out of the sum.
        """
        key = pixels.tobytes() + np.asarray(without).tobytes()
        if key not in self._fitted:  # one element after the other of the same pixels
            summed = self.counts[:, pixels].sum(axis=1, dtype=np.float64) - without
            self._fitted.clear()
            self._fitted[key] = poisson_ml(self.model.matrix, np.maximum(summed, 0))
        return float(self._fitted[key][index] * self.main_share[index] / np.count_nonzero(pixels))

    def window_of(self, index: int) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
        """Counts in the window of an element (ny, nx), those of all bands, and (n_bands,) parts of these in the window.

        The first are None where they are not known.
        """
        first = self.model.edges[:-1]
        if self.in_windows is None or self.windows is None:
            return None, self.counts, np.zeros(len(first))
        of_all = np.add.reduceat(self.model.summed, first)
        inside = np.add.reduceat(self.model.summed * self.windows[index], first)
        return self.in_windows[index], self.counts, inside / np.maximum(of_all, 1)

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
