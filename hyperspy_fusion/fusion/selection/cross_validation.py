"""Data that a fit has not seen: counts split by thinning, or pixels left out of the maps.

Poisson counts split at random into parts are independent Poisson counts of known ratio (Neufeld et al., JMLR 25, 2024),
so that one part is an honest judge of a fit to the others. Its log-likelihood would be decided in the darkest pixels,
where an error of a hundredth of a count is a large fraction of what is expected, and squared errors in the brightest.
The score is the term of the shifted Poisson fits,

    (b + s) log(x + s) - (x + s),

expected to be largest where x is the mean of b, whatever s: no estimate is preferred to the truth. It is the
log-likelihood for s = 0, a scaled squared error for large s, and in between with s a part of the mean of each map.
Where there are no counts, pixels are held out and judged by least squares, which is honest if the noise of a pixel says
nothing of that of its neighbours (Batson & Royer, ICML 97, 524, 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

# parts, each of which is held out once: a fit sees four fifths of the counts, or nine tenths of the pixels
COUNT_PARTS, PIXEL_PARTS = 5, 10
# of the score of counts, as a part of the mean of their map
SHIFT = 0.3


@dataclass(frozen=True)
class HeldOutCounts:
    """Counts in two parts, one of which is held out.

    Attributes
    ----------
    maps
        (n, ny, nx) the part seen, in units of the input.
    valid
        (n, ny, nx) bool, pixels that count.
    rest
        (n, ny, nx) counts held out.
    part
        Of all counts, that is seen.
    counts_scale
        (n,) value of one count.
    background
        (n,) or (n, ny, nx), what a pixel of the part seen holds that is not in fused maps.
    """

    maps: np.ndarray
    valid: np.ndarray
    rest: np.ndarray
    part: float
    counts_scale: np.ndarray
    background: np.ndarray

    def size(self):
        """(n,) counts held out."""
        return np.sum(self.rest, axis=(1, 2), where=self.valid)

    def gains(self, fused):
        """(n, ny, nx) score of the counts held out over that of flat maps; 0 where pixels do not count.

        Parameters
        ----------
        fused
            (n, ny, nx) of a fit to the part seen.
        """
        flat, shift = self._flat, SHIFT * self._flat
        mean = np.maximum(self._mean(fused), 0)
        return np.where(self.valid, (self.rest + shift) * np.log((mean + shift) / (flat + shift)) - (mean - flat), 0)

    def slopes(self, fused):
        """Derivative of :meth:`gains` with respect to ``fused``."""
        mean, shift = self._mean(fused), SHIFT * self._flat
        per_count = (1 - self.part) / self.part / _column(self.counts_scale)
        slopes = (self.rest - mean) / (np.maximum(mean, 0) + shift) * per_count
        return np.where(self.valid & (mean > 0), slopes, 0)

    def _mean(self, fused):
        """Counts expected in the rest."""
        net = (fused.astype(np.float64) + _column(self.background)) / _column(self.counts_scale)
        return net * (1 - self.part) / self.part

    @cached_property
    def _flat(self):
        """(n, 1, 1) mean of the rest."""
        flat = np.sum(self.rest, axis=(1, 2), where=self.valid) / self.valid.sum(axis=(1, 2))
        return _column(np.maximum(flat, 1e-30))


@dataclass(frozen=True)
class HeldOutPixels:
    """Maps with some pixels held out.

    Attributes
    ----------
    maps
        (n, ny, nx) as measured.
    valid
        (n, ny, nx) bool, pixels that are seen.
    out
        (n, ny, nx) bool, pixels that are held out.
    variance, background
        (n,) or (n, ny, nx) of the noise of a pixel, and what it holds that is not in fused maps.
    """

    maps: np.ndarray
    valid: np.ndarray
    out: np.ndarray
    variance: np.ndarray
    background: np.ndarray
    part: float = 1.0  # of the counts that are seen where any are

    def size(self):
        """(n,) pixels held out."""
        return self.out.sum(axis=(1, 2))

    def gains(self, fused):
        """(n, ny, nx) log-likelihood at the pixels held out over that of flat maps; 0 elsewhere."""
        gain = (self.maps - self._flat) ** 2 - self._residual(fused) ** 2
        return np.where(self.out, gain / (2 * _column(self.variance)), 0)

    def slopes(self, fused):
        """Derivative of :meth:`gains` with respect to ``fused``."""
        return np.where(self.out, self._residual(fused) / _column(self.variance), 0)

    @cached_property
    def _flat(self):
        """(n, 1, 1) mean of what is seen."""
        number = np.maximum(self.valid.sum(axis=(1, 2)), 1)
        return _column(np.sum(self.maps, axis=(1, 2), where=self.valid) / number)

    def _residual(self, fused):
        return self.maps - fused.astype(np.float64) - _column(self.background)


def count_parts(maps, valid, counts_scale, background, rng, number=COUNT_PARTS, limit=None):
    """Counts split into as many parts, each of which is held out once.

    Parameters
    ----------
    maps
        (n, ny, nx) whole multiples of ``counts_scale``.
    valid
        (n, ny, nx) bool.
    counts_scale
        (n,) value of one count.
    background
        (n,) or (n, ny, nx), what a pixel holds that is not in fused maps.
    rng
        A ``numpy.random.Generator``.
    number
        Of parts.
    limit
        Parts that are wanted, the first ones; None for all.

    Returns
    -------
    list of HeldOutCounts
    """
    counts = np.rint(maps / _column(counts_scale)).astype(np.int64)
    left, seen = counts.copy(), 1 - 1 / number
    background, parts = np.asarray(background) * seen, []
    for share in range(number, 0, -1)[:limit]:
        rest = rng.binomial(left, 1 / share)
        left -= rest
        parts.append(
            HeldOutCounts((counts - rest) * _column(counts_scale), valid, rest, seen, counts_scale, background)
        )
    return parts


def pixel_parts(maps, valid, variance, background, rng, number=PIXEL_PARTS, limit=None):
    """Pixels dealt at random into as many parts, each of which is held out of all maps once; ``limit`` as above.

    Returns
    -------
    list of HeldOutPixels
    """
    ny, nx = maps.shape[1:]
    part = rng.permutation(np.arange(ny * nx) % number).reshape(ny, nx)
    return [
        HeldOutPixels(maps, valid & (part != k), valid & (part == k), variance, np.asarray(background))
        for k in range(number)[:limit]
    ]


def _column(values):
    """(n,) as (n, 1, 1); (n, ny, nx) as it is."""
    values = np.asarray(values, dtype=np.float64)
    return values if values.ndim == 3 else values[:, None, None]
