"""Means of regions by the counts in them, which a fit does not smooth.

A fit moves counts across edges and out of small or weak features. The mean of the fused map plus that of the residual
is free of this: one step from the fit towards the counts of the region. Where a model of the spectra was fitted, the
step is taken to the end, with the maximum-likelihood fit of the summed spectrum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

# an expectation of so many counts gives none in 32 % of the cases; a smaller fraction of a count is rounding
_COUNTS_OF_NONE, _NONE = 1.14, 1e-3
# the highest or the lowest values of a map hold their own noise unless they are nearly all
_NEARLY_ALL = 0.9


@dataclass(frozen=True)
class RegionMean:
    """The mean of one element over a region with its standard error, in the units of the maps.

    Attributes
    ----------
    value, error
        The estimate, and its standard error: the truth is within in 68 of 100 cases.
    fused
        Mean of the fused map.
    measured, measured_error
        Mean of the measured map less its background, over the valid pixels, and its standard error. NaN where all
        pixels are masked: these are filled in, which no count can confirm.
    weight
        How far ``value`` is on the way from the corrected mean to ``measured``, 0 to 1; in the measured part of the
        region.
    """

    value: float
    error: float
    fused: float
    measured: float
    measured_error: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class RegionCounts:
    """Fused maps, and what they leave of the counts. All arrays are in the units of the maps.

    Attributes
    ----------
    maps
        (n, ny, nx) the fitted maps.
    residual
        (n, ny, nx) measured, less background, minus fitted maps; 0 in masked pixels.
    counted
        (n, ny, nx) bool, pixels that are not masked.
    variance
        (n, ny, nx) of the noise of measurements of these maps, 0 in masked pixels.
    counts_scale
        (n,) value of one count, NaN for none.
    systematic
        (n,) relative error of the maps by the model of the spectra, which no bootstrap replicate shows; None for none.
    measured_mean
        Function of pixels (ny, nx) bool and the index of a map: its mean by a fit to the summed spectrum of the pixels,
        which cannot be negative. None for the mean of the measured maps.
    """

    maps: np.ndarray
    residual: np.ndarray
    counted: np.ndarray
    variance: np.ndarray
    counts_scale: np.ndarray
    systematic: np.ndarray | None = None
    measured_mean: Callable | None = None

    @classmethod
    def of(cls, problem, maps):
        """Of the maps (n, ny, nx) of a fit, in units of the input."""
        of_maps = problem.of_largest_weight
        return cls(
            maps=maps,
            residual=of_maps.residual(maps),
            counted=of_maps.valid,
            variance=np.nan_to_num(of_maps.count_variance(maps)),
            counts_scale=of_maps.noise.counts_scale,
            systematic=of_maps.scan.systematic,
            measured_mean=None if of_maps.scan.spectra is None else of_maps.scan.spectra.mean_of,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, without those that are None; the function is none of them."""
        named = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, np.ndarray)}

    def counted_mean(self, mask, index) -> RegionMean:
        """The mean of map ``index`` over the pixels of ``mask``, (ny, nx) bool, by the counts in them."""
        maps, residual = (a[index][mask].astype(np.float64) for a in (self.maps, self.residual))
        counted, fused = self.counted[index][mask], float(maps.mean())
        number = np.count_nonzero(counted)
        if not number:
            return RegionMean(fused, np.nan, fused, np.nan, np.nan, 0.0)
        better = measured = float(np.sum((maps + residual) * counted) / number)
        if self.measured_mean is not None:
            better = self.measured_mean(mask & self.counted[index], index)
        value = fused + float(residual.mean() + (better - measured) * counted.mean())
        one_count = float(self.counts_scale[index])
        # smoothing moves counts into the region or out of it: the variance of those measured is their number
        more = np.nan_to_num(one_count) * (value - fused) * maps.size
        variance = max(float(self.variance[index][mask].sum(dtype=np.float64)) + more, 0.0)
        error = max(np.sqrt(variance) / number, least_error(better, one_count / number))
        # where the region was chosen by chance the mean is between that of the map and that of the counts
        weight = 0.5 if self.is_chosen_by(mask, index) else 1.0
        doubt, value = (1 - weight) * (value - fused), fused + weight * (value - fused)
        systematic = 0.0 if self.systematic is None else float(self.systematic[index]) * value
        total = float(np.sqrt(error**2 + doubt**2 + systematic**2))
        return RegionMean(value, total, fused, better, float(error), weight)

    def is_chosen_by(self, mask, index) -> int:
        """1 or -1 where a region (ny, nx) is where map ``index`` is highest, or lowest; else 0."""
        image = self.maps[index]
        inside, outside = image[mask], image[~mask]
        if not 0 < len(inside) < _NEARLY_ALL * mask.size or inside.min() == inside.max():
            return 0
        return int(inside.min() >= outside.max()) - int(inside.max() <= outside.min())


def least_error(measured, one_count):
    """The least error of a mean: no counts (but for rounding) do not prove that there are none."""
    return _COUNTS_OF_NONE * one_count if measured <= _NONE * one_count else 0.0
