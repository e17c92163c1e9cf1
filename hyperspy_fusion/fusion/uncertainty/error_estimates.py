"""Errors of pixels, region means, ratios and shares of fused maps from their bootstrap replicates.

With the fitted maps x and the maps ``x_r`` of R bootstrap replicates, ``e_r = x_r - x`` is an error of the method,
noise and smoothing alike. Fitted maps are smoother than the truth: smoothing changes bootstrap replicates too little.
It changes the maps ``a`` times as much (``bias_scales``), the slope of the measured residual on ``-mean(e)``.

*Pixels*: ``error**2 = var(e) + a**2 bias**2`` with ``bias**2 = mean(e)**2 - var(e) / R``.

*Region means*: with the fused mean m, the bias B of its bootstrap replicates and the measured mean d,

    value = c + w (d - c),                  c = m - a B,
    error**2 = (1 - w)**2 u**2 + mean((eps_r + w delta_r)**2),

where ``eps_r`` is the error of the fused mean in a bootstrap replicate less B, ``delta_r`` the noise of its measured
mean less ``eps_r``, and ``u`` the bias that may be left. The weight w gives the least mean square error, or leaves a
bias ``(1 - w) u`` of at most a third of the scatter, whichever is larger.

A region may be where the map itself is highest, or lowest: its counts are then high or low by chance. In every
bootstrap replicate the region is where its own map is so. What its measured mean has too much, on average, is taken
off d.

Where a model of the spectra was fitted, both squares have that of its systematic error too, a part of the map.

*Ratios and shares*: to first order, with the covariance of ``eps_r + w delta_r`` of all maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import stdtrit

from hyperspy_fusion.fusion.uncertainty.region_counts import MeasuredMean, RegionCounts, RegionMean, least_error

# width in pixels of the average of counts that shows what smoothing takes: less is noise, more hides edges
_RESIDUAL_WIDTH = 3.0
# limit of bias_scales, which are at least 1
_LARGEST_SCALE = 2.0
# width in pixels of the average of squared errors, for those of few bootstrap replicates are themselves uncertain
_ERROR_WIDTH = 0.7
# square of a bias beyond bootstrap replicates, as a fraction of the variance of the measured mean; from phantoms
_HIDDEN_BIAS = 0.05
# counts that contradict a corrected mean by more standard deviations show a bias beyond bootstrap replicates
_CONTRADICTION = 2.5
# error of what chance adds to a region chosen by its map, a part of it: maps without structure show two thirds of it
_CHANCE_DOUBT = 1 / 3
# a bias that is a larger fraction of the scatter would change the coverage of intervals
_HARMLESS = 1 / 3
# of a normal distribution this fraction lies below one standard deviation
_ONE_SIGMA = 0.8413447460685429
# relative noise of bootstrap replicates that is smaller is rounding
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Ratio:
    """The ratio of two elements' region means, in the units of the maps (not of atoms), with its standard error."""

    value: float
    error: float


@dataclass(frozen=True, kw_only=True)
class BootstrapReplicates(RegionCounts):
    """Bootstrap replicates of a fit, drawn from its maps. All arrays are in the units of the maps.

    Attributes
    ----------
    errors
        (R, n, ny, nx) float32, maps fitted to each bootstrap replicate minus ``maps``.
    residuals
        (R, n, ny, nx) float32, drawn maps minus the maps fitted to them; 0 in masked pixels.
    """

    errors: np.ndarray
    residuals: np.ndarray

    def __len__(self):
        return len(self.errors)

    @cached_property
    def bias_scales(self) -> np.ndarray:
        """(n,) how many times as much smoothing changes the maps as it changes the bootstrap replicates, 1 to 2.

        The slope of a weighted regression of ``residual`` on minus the mean error of the bootstrap replicates, both
        averaged over some pixels.
        """
        lost = _blurred(np.where(self.counted, -self.errors.mean(axis=0), 0), _RESIDUAL_WIDTH)
        shown = _blurred(self.residual, _RESIDUAL_WIDTH)
        variance = np.var([_blurred(r, _RESIDUAL_WIDTH).astype(np.float32) for r in self.residuals], axis=0)
        # pixels with hardly any counts get no large weight
        weight = 1 / np.maximum(variance + 0.05 * _over_pixels(np.mean, variance), np.finfo(np.float32).tiny)
        both, one = _over_pixels(np.sum, weight * lost * shown), _over_pixels(np.sum, weight * lost**2)
        scales = np.divide(both, one, out=np.ones_like(one), where=one > 0)
        return np.clip(scales, 1, _LARGEST_SCALE).ravel()

    def standard_errors(self) -> np.ndarray:
        """(n, ny, nx) root mean square error of every pixel, averaged over a pixel or so."""
        variance = self.errors.var(axis=0, ddof=1, dtype=np.float64)
        squares = self.errors.mean(axis=0, dtype=np.float64) ** 2 - variance / len(self)
        bias = np.maximum(_blurred(squares, _ERROR_WIDTH), 0)
        squares = _blurred(variance, _ERROR_WIDTH) + self.bias_scales[:, None, None] ** 2 * bias
        if self.systematic is not None:
            squares += (self.systematic[:, None, None] * self.maps) ** 2
        return np.sqrt(squares)

    def region_mean(self, mask, index) -> RegionMean:
        """The mean of map ``index`` over the pixels of ``mask``, (ny, nx) bool."""
        return self.region(mask, index).mean

    def ratio(self, mask, index, other) -> Ratio:
        """Region mean of map ``index`` over that of map ``other``; of infinite error if the latter is not above 0."""
        regions = self.region(mask, index), self.region(mask, other)
        over, under = (region.mean for region in regions)
        if not under.value > 0:
            return Ratio(np.nan, np.inf)
        value = over.value / under.value
        shared = float(np.mean(regions[0].scatter * regions[1].scatter)) if index != other else over.error**2
        square = over.error**2 - 2 * value * shared + (value * under.error) ** 2
        return Ratio(value, float(np.sqrt(max(square, 0))) / under.value)

    def shares(self, mask, factors, order=None) -> tuple[np.ndarray, np.ndarray]:
        """Shares ``f_i I_i / sum_j f_j I_j`` of region means ``I`` times ``factors`` (n,), and their errors.

        ``order`` (n,) are the indices of the maps, all by default. NaN and infinite where the sum is not above 0.
        """
        regions = [self.region(mask, i) for i in (range(len(self.maps)) if order is None else order)]
        values = factors * [region.mean.value for region in regions]
        total = values.sum()
        if not total > 0:
            return np.full(len(values), np.nan), np.full(len(values), np.inf)
        values = values / total
        scatter = np.stack([f * region.scatter for f, region in zip(factors, regions, strict=True)]) / total
        # errors that no bootstrap replicate shows, such as a bias that may be left, are independent
        squares = (factors * [region.mean.error for region in regions] / total) ** 2
        independent = np.maximum(squares - np.mean(scatter**2, axis=1), 0)
        together = np.mean((scatter - np.outer(values, scatter.sum(axis=0))) ** 2, axis=1)
        return values, np.sqrt(together + (1 - 2 * values) * independent + values**2 * independent.sum())

    def region(self, mask, index) -> RegionEstimate:
        """What means, ratios and shares of a region, (ny, nx) bool, have in common."""
        first = self.region_with(mask, index)
        if not np.isfinite(self.counts_scale[index]):
            return first
        # smoothing moves counts into the region or out of it: the variance of those measured is their estimated mean
        change = first.mean.value - first.fused + first.filled
        return self.region_with(mask, index, change, float(np.mean(first.differences**2)))

    def region_with(self, mask, index, change=0.0, doubted=np.inf) -> RegionEstimate:
        """The :class:`RegionEstimate`, with the variance of counts where ``change`` is added to the fused mean."""
        maps, residual = (a[index][mask].astype(np.float64) for a in (self.maps, self.residual))
        errors, residuals = (a[:, index][:, mask].astype(np.float64) for a in (self.errors, self.residuals))
        counted, scale, size = self.counted[index][mask], self.bias_scales[index], maps.size
        variance = float(self.variance[index][mask].sum())
        if change:
            # there are no fewer counts than none, and losing all but one does not make counts any more certain
            more = self.counts_scale[index] * max(change * size, -maps[counted].sum())
            variance = max(variance + more, min(variance, self.counts_scale[index] ** 2))
        of_counted, of_masked = (np.mean(errors * part, axis=1) for part in (counted, ~counted))
        noise, chance = of_counted + np.mean(residuals, axis=1), 0.0
        # nothing is measured in masked pixels alone
        n_counted = np.count_nonzero(counted) or np.nan
        found = self.counts_of(mask, index) if counted.any() else MeasuredMean(np.nan, np.nan)
        if sign := self.is_chosen_by(mask, index):
            of_counted, noise = self._chosen_alike(index, size, sign)
            chance = float(noise.mean())
        of_counted, noise, bias = _split(of_counted, noise - chance, (variance + found.of_choice) / size**2)
        of_masked, _, filled = _split(of_masked, np.zeros_like(of_masked), 0.0)
        squares = scale**2 * (errors.mean(axis=0) ** 2 - errors.var(axis=0, ddof=1) / len(errors))
        # biases need not cancel in the truth as they do in the mean
        left, left_in_masked = (max(squares @ part, 0) * np.sum(part) / size**2 for part in (counted, ~counted))
        better = found.mean - chance
        return RegionEstimate(
            fused=float(maps.mean()),
            corrected=float(maps.mean() - scale * (bias + filled)),
            filled=float(scale * filled),
            difference=float(residual.mean() + scale * bias + np.nan_to_num(better - found.plain) * counted.mean()),
            # fused maps share the noise of counts that chose the region, which no bootstrap replicate shows
            unseen=np.inf if found.is_chosen else float(left + _HIDDEN_BIAS * np.mean(noise**2)),
            unseen_filled=float(left_in_masked + (_CHANCE_DOUBT * chance) ** 2),
            errors=of_counted + of_masked,
            differences=noise - of_counted,
            doubted=float(doubted),
            measured=better,
            measured_error=float(np.sqrt(variance + found.of_choice) / n_counted),
            one_count=float(self.counts_scale[index]) / n_counted,
            systematic=0.0 if self.systematic is None else float(self.systematic[index]),
        )

    def _chosen_alike(self, index, size, sign):
        """(R,) errors of the fused and of the measured mean where the map of each is highest, or lowest."""
        found = []
        for errors, residuals in zip(self.errors[:, index], self.residuals[:, index], strict=True):
            highest = np.argpartition(sign * (self.maps[index] + errors), -size, axis=None)[-size:]
            fused = float(errors.ravel()[highest].mean(dtype=np.float64))
            found.append((fused, fused + float(residuals.ravel()[highest].mean(dtype=np.float64))))
        return np.array(found).T


@dataclass(frozen=True)
class RegionEstimate:
    """The terms of the estimate of a region mean; the symbols are those of the module's docstring.

    Attributes
    ----------
    fused, corrected
        m and c.
    filled
        The correction of masked pixels.
    difference
        d - c, in the measured part of the region.
    unseen, unseen_filled
        ``u**2``, the square of the bias that may be left: in valid pixels; in masked ones, and by choice of the region.
    errors, differences
        (R,) eps and delta.
    doubted
        Variance of the difference for the contradiction of c by the counts, if it is less than that of ``differences``.
    measured, measured_error, one_count
        Of the measured map: d, its standard error, and the mean of one count.
    systematic
        Relative error by the model of the spectra.
    """

    fused: float
    corrected: float
    filled: float
    difference: float
    unseen: float
    unseen_filled: float
    errors: np.ndarray
    differences: np.ndarray
    doubted: float
    measured: float
    measured_error: float
    one_count: float
    systematic: float = 0.0

    @cached_property
    def mean(self) -> RegionMean:
        """The estimate with its error."""
        moments = _second_moments(self.errors, self.differences)
        unseen = max(self.unseen, self.difference**2 - _CONTRADICTION**2 * min(moments[2], self.doubted))
        # without a measured pixel there is no measured mean
        weight = _least_weight(unseen, *moments) if np.isfinite(self.measured) else 0.0
        value = self.corrected + weight * self.difference
        square = self.unseen_filled + np.mean(self.error_of(weight) ** 2)
        square += (1 - weight) ** 2 * unseen if weight < 1 else 0.0
        square += (self.systematic * value) ** 2
        # bootstrap replicates of no counts have none
        least = least_error(self.measured, self.one_count)
        return RegionMean(
            value=value,
            error=max(float(np.sqrt(square)), least),
            fused=self.fused,
            measured=self.measured,
            measured_error=max(self.measured_error, least),
            weight=weight,
        )

    def error_of(self, weight):
        """(R,) errors of the estimate in the bootstrap replicates."""
        return self.errors + weight * self.differences

    @cached_property
    def scatter(self) -> np.ndarray:
        """(R,) errors that may be shared with other maps: less their mean, noise beyond bootstrap replicates."""
        errors = self.error_of(self.mean.weight)
        return errors - errors.mean()


def _split(errors, noise, variance):
    """Split errors of bootstrap replicates into scatter and bias; returns scatter, noise of the measured mean, bias.

    The noise has a known variance, to which it is scaled with the part of the errors in proportion to it. The mean of
    the remainder is the bias. Its scatter is widened by Student's distribution of one more draw less their mean.
    """
    square, number = float(noise @ noise), len(errors)
    # less its mean, for a bias of the errors is not in proportion to noise; of two, any slope is that of chance
    centred = noise - noise.mean() if number > 2 else np.zeros_like(noise)
    known = float(centred @ centred)
    # all draws may be the same, that is, none
    known = known if known > _ROUNDING**2 * max(square, errors @ errors) else 0.0
    slope = float(errors @ centred) / known if known else 0.0
    remainder = errors - slope * noise
    # mean and mean square of few values are off by chance, and an interval from them too narrow
    free = number - 2 if known else number - 1
    wider = stdtrit(free, _ONE_SIGMA) * np.sqrt((number + 1) / free)
    noise = noise * np.sqrt(variance * number / square) if square else np.full_like(noise, np.sqrt(variance))
    return slope * noise + wider * (remainder - remainder.mean()), noise, float(remainder.mean())


def _least_weight(unseen, error, shared, chance):
    """The weight of the least mean square error; a larger one where this leaves more bias than is harmless.

    The arguments are mean squares: of the bias, of the errors, of these times the differences, and of the differences.
    The bias left is harmless from ``(1 - w)**2 unseen = part (error + 2 w shared + w**2 chance)`` on.
    """
    if not chance > 0 or not np.isfinite(unseen):
        return 1.0
    best, part = float(np.clip((unseen - shared) / (unseen + chance), 0, 1)), _HARMLESS**2
    square, half, one = unseen - part * chance, unseen + part * shared, unseen - part * error
    if one - 2 * half * best + square * best**2 <= 0:
        return best
    # the smaller root of a parabola that opens upwards, the larger of one that opens downwards
    return float(np.clip(one / (half + np.sqrt(max(half**2 - square * one, 0))), best, 1))


def _second_moments(a, b):
    return float(np.mean(a * a)), float(np.mean(a * b)), float(np.mean(b * b))


def _blurred(maps, width):
    """Averaged over the last two axes."""
    return gaussian_filter(maps.astype(np.float64), (0,) * (maps.ndim - 2) + (width, width))


def _over_pixels(function, maps):
    return function(maps, axis=(1, 2), keepdims=True)
