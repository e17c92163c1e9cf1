"""Cross-validation: counts split by binomial thinning, or pixels left out of the maps, and the score of a prediction.

Poisson counts split at random into folds are independent Poisson counts of known ratio (Neufeld et al., JMLR 25, 2024).
A fit to all folds but one is judged by the held-out counts ``b``. With the expected mean ``x`` the score of a pixel is

    s(x) = (b + o) log(x + o) - (x + o),    o = POISSON_OFFSET * mean(b),

less that of the mean of the map. Its expectation is largest where x is the mean of b, whatever the offset o. It is the
log-likelihood for o = 0, which the darkest pixels would decide, and a scaled squared error for large o.

Where there are no counts, pixels are held out and judged by least squares. This is valid if the noise of a pixel is
independent of that of its neighbours (Batson & Royer, ICML 97, 524, 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

# each fold is held out once: a fit sees four fifths of the counts, or nine tenths of the pixels
N_COUNT_FOLDS, N_PIXEL_FOLDS = 5, 10
# of the score of counts, as a fraction of the mean of the held-out counts
POISSON_OFFSET = 0.3
# folds are held out until they have so many pixels: large scans need fewer
HELD_OUT_PIXELS = 2**17
# with fewer counts in a map, none can be held out
FEWEST_COUNTS = 50


@dataclass(frozen=True)
class HeldOutCounts:
    """Counts without one fold, and the counts of that fold.

    Attributes
    ----------
    maps
        (n, ny, nx) the counts that are fitted, in units of the input.
    valid
        (n, ny, nx) bool, valid pixels.
    held_out
        (n, ny, nx) counts of the fold.
    fraction
        Of all counts, that is fitted.
    counts_scale
        (n,) value of one count.
    background
        (n,) or (n, ny, nx), background of a pixel of ``maps``, which fused maps do not have.
    """

    maps: np.ndarray
    valid: np.ndarray
    held_out: np.ndarray
    fraction: float
    counts_scale: np.ndarray
    background: np.ndarray

    def size(self) -> np.ndarray:
        """(n,) held-out counts."""
        return np.sum(self.held_out, axis=(1, 2), where=self.valid)

    def scores(self, fused: np.ndarray) -> np.ndarray:
        """(n, ny, nx) score of the held-out counts less that of flat maps; 0 in pixels that are not valid.

        Parameters
        ----------
        fused
            (n, ny, nx) maps of a fit to ``maps``.
        """
        counts, flat, mean = self._in_precision_of(fused)
        offset, mean = fused.dtype.type(POISSON_OFFSET) * flat, np.maximum(mean, 0)
        scores = (counts + offset) * np.log((mean + offset) / (flat + offset)) - (mean - flat)
        return scores if self._is_all_valid else np.where(self.valid, scores, 0)

    def derivatives(self, fused: np.ndarray):
        """First and second derivatives of :meth:`scores` with respect to ``fused``.

        Returns
        -------
        gradient
            (n, ny, nx).
        curvatures
            Yields ``i, j, curvature``, of each pair of maps j <= i that a score depends on: minus the second derivative
            (ny, nx) with respect to both. Here i = j.
        """
        gradient, curvature = self._derivatives(fused)
        return gradient, _of_each_map(curvature)

    def _derivatives(self, fused):
        """(n, ny, nx) the first, and minus the second one, each of one map."""
        counts, flat, mean = self._in_precision_of(fused)
        per_unit, left_out = self._per_unit.astype(fused.dtype), mean <= 0
        if not self._is_all_valid:
            left_out |= ~self.valid
        np.maximum(mean, 0, out=mean)
        gradient, offset = counts - mean, fused.dtype.type(POISSON_OFFSET) * flat
        mean += offset
        factor = np.divide(per_unit, mean, out=mean)
        gradient *= factor
        curvature = counts + offset
        curvature *= factor
        curvature *= factor
        for derivative in (gradient, curvature):
            np.copyto(derivative, 0, where=left_out)
        return gradient, curvature

    def _in_precision_of(self, fused):
        """Held-out counts, (n, 1, 1) their mean, and those expected of fused maps, all in the dtype of the maps."""
        if fused.dtype not in self._arrays:
            arrays = self.held_out, self._flat, _column(self.background), self._per_unit
            self._arrays[fused.dtype] = [a.astype(fused.dtype) for a in arrays]
        counts, flat, background, per_unit = self._arrays[fused.dtype]
        return counts, flat, (fused + background) * per_unit

    @cached_property
    def _arrays(self):
        return {}

    @cached_property
    def _per_unit(self):
        """(n, 1, 1) held-out counts for one unit of the fused maps."""
        return (1 - self.fraction) / self.fraction / _column(self.counts_scale)

    @cached_property
    def _is_all_valid(self):
        return bool(self.valid.all())

    @cached_property
    def _flat(self):
        """(n, 1, 1) mean of the held-out counts."""
        flat = np.sum(self.held_out, axis=(1, 2), where=self.valid) / self.valid.sum(axis=(1, 2))
        return _column(np.maximum(flat, 1e-30))


@dataclass(frozen=True)
class HeldOutBands(HeldOutCounts):
    """Counts in the bands of whole spectra, which the columns of a fit predict together.

    ``maps``, ``valid`` and ``held_out`` are of bands, and ``matrix`` (bands, n) has the counts of one unit of each
    column. Scores are of bands, and gradients of columns.
    """

    matrix: np.ndarray

    def size(self):
        """(n,) held-out counts, about, of each column."""
        counts = super().size()
        return self.matrix.T @ (counts / np.maximum(self.matrix.sum(axis=1), 1e-30))

    def scores(self, fused):
        """(bands, ny, nx) of columns (n, ny, nx)."""
        return super().scores(self._expected(fused))

    def derivatives(self, fused):
        """Of columns: a band depends on all of them together."""
        gradient, curvature = self._derivatives(self._expected(fused))
        columns = self.matrix.T.astype(fused.dtype)
        pairs = ((i, j) for i in range(len(columns)) for j in range(i + 1) if np.any(columns[i] * columns[j]))
        of_pairs = ((i, j, np.tensordot(columns[i] * columns[j], curvature, 1)) for i, j in pairs)
        return np.tensordot(columns, gradient, 1), of_pairs

    def _expected(self, columns):
        return np.tensordot(self.matrix.astype(columns.dtype), columns, 1)


@dataclass(frozen=True)
class HeldOutPixels:
    """Maps without one fold of their pixels.

    Attributes
    ----------
    maps
        (n, ny, nx) as measured.
    valid
        (n, ny, nx) bool, pixels that are fitted.
    held_out
        (n, ny, nx) bool, pixels of the fold.
    variance, background
        (n,) or (n, ny, nx), noise variance and background of a pixel.
    """

    maps: np.ndarray
    valid: np.ndarray
    held_out: np.ndarray
    variance: np.ndarray
    background: np.ndarray
    fraction: float = 1.0  # of the counts of a fitted pixel

    def size(self) -> np.ndarray:
        """(n,) held-out pixels."""
        return self.held_out.sum(axis=(1, 2))

    def scores(self, fused: np.ndarray) -> np.ndarray:
        """(n, ny, nx) log-likelihood of the held-out pixels less that of flat maps; 0 elsewhere."""
        score = (self.maps - self._flat) ** 2 - self._residual(fused) ** 2
        return np.where(self.held_out, score / (2 * _column(self.variance)), 0)

    def derivatives(self, fused: np.ndarray):
        """As those of :class:`HeldOutCounts`."""
        variance = _column(self.variance)
        first = np.where(self.held_out, self._residual(fused) / variance, 0)
        second = np.where(self.held_out, 1 / variance, 0)
        return first.astype(fused.dtype, copy=False), _of_each_map(second.astype(fused.dtype, copy=False))

    @cached_property
    def _flat(self):
        """(n, 1, 1) mean of the fitted pixels."""
        number = np.maximum(self.valid.sum(axis=(1, 2)), 1)
        return _column(np.sum(self.maps, axis=(1, 2), where=self.valid) / number)

    def _residual(self, fused):
        return self.maps - fused.astype(np.float64) - _column(self.background)


def folds_of(maps, valid, counts_scale, variance, background, rng):
    """Folds of counts where the maps are whole numbers of counts, else folds of pixels."""
    enough = folds_for(HELD_OUT_PIXELS, maps)
    if are_counts(maps, counts_scale):
        return count_folds(maps, valid, counts_scale, background, rng, limit=enough)
    return pixel_folds(maps, valid, variance, background, rng, limit=enough)


def folds_for(pixels, maps):
    """How many folds of these maps have at least so many pixels."""
    return -(-pixels // maps[0].size)


def are_counts(maps, counts_scale):
    """Whether all maps are whole numbers of counts, none of them negative."""
    if not np.all(counts_scale > 0):
        return False
    counts = maps / counts_scale[:, None, None]
    return bool(counts.min() >= 0 and np.allclose(counts, np.rint(counts), rtol=0, atol=1e-3))


def poor_elements(maps, counts_scale, elements):
    """Elements with too few counts to hold some out."""
    if not are_counts(maps, counts_scale):
        return []
    counts = maps.sum(axis=(1, 2)) / counts_scale
    return [e for e, total in zip(elements, counts, strict=True) if total < FEWEST_COUNTS]


def thinned(counts, rng, n_folds, limit=None):
    """Yield the counts of each fold; binomial thinning leaves them independent.

    Parameters
    ----------
    counts
        Array of integers.
    rng
        A ``numpy.random.Generator``.
    n_folds
        Into which the counts are split.
    limit
        Yield the first ones only; None for all.
    """
    left = counts.copy()
    for remaining in range(n_folds, 0, -1)[:limit]:
        fold = rng.binomial(left, 1 / remaining).astype(counts.dtype)
        left -= fold
        yield fold


def count_folds(maps, valid, counts_scale, background, rng, n_folds=N_COUNT_FOLDS, limit=None):
    """Split counts into folds, each of which is held out once.

    Parameters
    ----------
    maps
        (n, ny, nx) whole multiples of ``counts_scale``.
    valid
        (n, ny, nx) bool.
    counts_scale
        (n,) value of one count.
    background
        (n,) or (n, ny, nx), background of a pixel.
    rng, n_folds, limit
        As for :func:`thinned`.

    Returns
    -------
    list of HeldOutCounts
    """
    scale, fraction = _column(counts_scale), 1 - 1 / n_folds
    counts = np.rint(maps / scale).astype(np.int64)
    background = np.asarray(background) * fraction
    return [
        HeldOutCounts((counts - fold) * scale, valid, fold, fraction, counts_scale, background)
        for fold in thinned(counts, rng, n_folds, limit)
    ]


def band_folds(counts, matrix, valid, rng, n_folds=N_COUNT_FOLDS):
    """Split counts (bands, ny, nx) into folds; ``valid`` is (ny, nx), and ``rng`` as for :func:`thinned`.

    Returns
    -------
    list of HeldOutBands
    """
    whole, fraction = np.rint(counts).astype(np.uint32), 1 - 1 / n_folds
    alike = np.broadcast_to(valid, counts.shape), fraction, np.ones(len(counts)), np.zeros(len(counts)), matrix
    folds = thinned(whole, rng, n_folds, folds_for(HELD_OUT_PIXELS, counts))
    return [HeldOutBands((whole - f).astype(np.float32), alike[0], f.astype(np.float32), *alike[1:]) for f in folds]


def pixel_folds(maps, valid, variance, background, rng, n_folds=N_PIXEL_FOLDS, limit=None):
    """Assign pixels at random to folds, each of which is held out of all maps once; ``limit`` as for :func:`thinned`.

    Returns
    -------
    list of HeldOutPixels
    """
    ny, nx = maps.shape[1:]
    fold = rng.permutation(np.arange(ny * nx) % n_folds).reshape(ny, nx)
    return [
        HeldOutPixels(maps, valid & (fold != k), valid & (fold == k), variance, np.asarray(background))
        for k in range(n_folds)[:limit]
    ]


def _of_each_map(curvature):
    return [(i, i, c) for i, c in enumerate(curvature)]


def _column(values):
    """(n,) as (n, 1, 1); (n, ny, nx) as it is."""
    values = np.asarray(values, dtype=np.float64)
    return values if values.ndim == 3 else values[:, None, None]
