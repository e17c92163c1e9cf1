"""Means of regions by the counts in them, which a fit does not smooth.

A fit moves counts across edges and out of small or weak features. The mean of the fused map plus that of the residual
is free of this: one step from the fit towards the counts of the region. Where a model of the spectra was fitted, the
step is taken to the end, with the maximum-likelihood fit of the summed spectrum. Where the counts themselves chose the
region, those that chance added are left out first: :mod:`~hyperspy_fusion.fusion.uncertainty.chosen_regions`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from hyperspy_fusion.fusion.spectra.scan_spectra import ScanSpectra
from hyperspy_fusion.fusion.uncertainty.chosen_regions import NEARLY_ALL, ChosenRegion

# an expectation of so many counts gives none in 32 % of the cases; a smaller fraction of a count is rounding
_COUNTS_OF_NONE, _NONE = 1.14, 1e-3
# decimals of counts beyond which they are whole but for rounding
_DECIMALS = 3


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
        Mean of the measured map less its background, over the valid pixels, and its standard error. Without what chance
        added where the region is a threshold of the counts. NaN where all pixels are masked: these are filled in, which
        no count can confirm.
    weight
        How far ``value`` is on the way from the corrected mean to ``measured``, 0 to 1; in the measured part of the
        region.
    is_smoothed
        Whether smoothing can explain that ``fused`` differs from ``measured``. Where the counts chose the region, the
        fused map holds what chance added, and is further from the mean of the whole map.
    """

    value: float
    error: float
    fused: float
    measured: float
    measured_error: float
    weight: float
    is_smoothed: bool = True


class MeasuredMean(NamedTuple):
    """The mean of the counts of a region.

    Attributes
    ----------
    plain, mean
        Of the measured map, and without what chance added, by a fit to the summed spectrum where there are spectra.
    of_choice
        Variance of the sum by the choice of the region.
    is_chosen
        Whether the counts chose the region.
    """

    plain: float
    mean: float
    of_choice: float = 0.0
    is_chosen: bool = False


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
    spectra
        Counts whose sum over a region is fitted, which gives no negative mean. None for the mean of the measured maps.
    """

    maps: np.ndarray
    residual: np.ndarray
    counted: np.ndarray
    variance: np.ndarray
    counts_scale: np.ndarray
    systematic: np.ndarray | None = None
    spectra: ScanSpectra | None = None

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
            spectra=of_maps.scan.spectra,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, without those that are None; the spectra are none of them."""
        named = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, np.ndarray)}

    def counted_mean(self, mask, index) -> RegionMean:
        """The mean of map ``index`` over the pixels of ``mask``, (ny, nx) bool, by the counts in them."""
        maps, residual = (a[index][mask].astype(np.float64) for a in (self.maps, self.residual))
        counted, fused = self.counted[index][mask], float(maps.mean())
        number = np.count_nonzero(counted)
        if not number:
            return RegionMean(fused, np.nan, fused, np.nan, np.nan, 0.0)
        found = self.counts_of(mask, index)
        value = fused + float(residual.mean() + (found.mean - found.plain) * counted.mean())
        one_count = float(self.counts_scale[index])
        # smoothing moves counts into the region or out of it: the variance of those measured is their number
        more = np.nan_to_num(one_count) * (value - fused) * maps.size
        variance = max(float(self.variance[index][mask].sum(dtype=np.float64)) + more, 0.0) + found.of_choice
        error = max(np.sqrt(variance) / number, least_error(found.mean, one_count / number))
        # where the region was chosen by chance the mean is between that of the map and that of the counts
        weight = 0.5 if self.is_chosen_by(mask, index) else 1.0
        doubt, value = (1 - weight) * (value - fused), fused + weight * (value - fused)
        systematic = 0.0 if self.systematic is None else float(self.systematic[index]) * value
        total = float(np.sqrt(error**2 + doubt**2 + systematic**2))
        is_further = (fused - found.mean) * (fused - float(self.maps[index].mean())) > 0
        return RegionMean(value, total, fused, found.mean, float(error), weight, not (found.is_chosen and is_further))

    def counts_of(self, mask, index) -> MeasuredMean:
        """The mean of the counts of a region, (ny, nx) bool, that has some of map ``index``."""
        counted = mask & self.counted[index]
        plain = float(np.mean((self.maps[index] + self.residual[index])[counted], dtype=np.float64))
        number, scale = np.count_nonzero(counted), float(self.counts_scale[index])
        if self.spectra is not None:
            image, counts, parts = self.spectra.window_of(index)
        else:  # those of the background as well
            image = np.round(self.residual[index] / scale + self.variance[index] / scale**2, _DECIMALS)
            counts, parts = image[None], np.ones(1)
        is_looked_at = image is not None and np.isfinite(image).all() and not self.is_chosen_by(mask, index)
        chosen = ChosenRegion.of(mask, image) if is_looked_at else None
        added = 0 * parts if chosen is None else parts * chosen.chance(counts)

        def mean_without(added):
            if self.spectra is not None:
                return self.spectra.mean_of(counted, index, added)
            return plain - float(np.nan_to_num(scale) * added[0] / number)

        mean = mean_without(added)
        if chosen is None:
            return MeasuredMean(plain, mean)
        # of each count by which the region was chosen
        total = added.sum()
        per_count = number * (mean_without(0 * added) - mean) / total if abs(total) > _NONE else np.nan_to_num(scale)
        return MeasuredMean(plain, mean, per_count**2 * chosen.variance(image), is_chosen=True)

    def is_chosen_by(self, mask, index) -> int:
        """1 or -1 where a region (ny, nx) is where map ``index`` is highest, or lowest; else 0."""
        image = self.maps[index]
        inside, outside = image[mask], image[~mask]
        if not 0 < len(inside) < NEARLY_ALL * mask.size or inside.min() == inside.max():
            return 0
        return int(inside.min() >= outside.max()) - int(inside.max() <= outside.min())


def least_error(measured, one_count):
    """The least error of a mean: no counts (but for rounding) do not prove that there are none."""
    return _COUNTS_OF_NONE * one_count if measured <= _NONE * one_count else 0.0
