"""What replicates of a fit tell of the errors of pixels, of region means, of their ratios and shares.

What a replicate differs by from the maps it was drawn from is an error of the method, noise and smoothing alike. As
fitted maps are smoother than the truth, smoothing costs replicates too little; how much more it costs, the measured
counts tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import stdtrit

# pixels over which counts are averaged to see what smoothing took from them: less is noise, more is no edge
_SEEN_WIDTH = 3.0
# smoothing costs the maps between as much as it costs replicates and so many times as much
_LARGEST_SCALE = 2.0
# pixels over which squared errors are averaged, for the errors of few replicates are themselves uncertain
_ERROR_WIDTH = 0.7
# the square of a bias that no replicate shows, as a part of the variance of the measured mean; found on phantoms, whose
# truth is known
_UNSEEN = 0.05
# counts that contradict a corrected mean by more of their standard deviations show a bias that replicates do not have
_CONTRADICTION = 2.5
# a bias that is a larger part of the scatter would be noticed in how often intervals cover
_HARMLESS = 1 / 3
# of a normal distribution this part lies below one standard deviation
_ONE_SIGMA = 0.8413447460685429
# a mean of so many counts shows none in 32 % of the cases; a part of a count is the rounding of none
_COUNTS_OF_NONE, _NONE = 1.14, 1e-3
# noise of replicates that is smaller is the rounding of none
_ROUNDING = 1e-4


@dataclass(frozen=True)
class RegionMean:
    """The mean of one element over a region with its standard error, in the units of the maps.

    Attributes
    ----------
    value, error
        The estimate, the mean of the fused map corrected for what smoothing takes from it and moved towards that of
        the measured one, and its standard error: the truth is within in 68 of 100 cases.
    fused
        Mean of the fused map.
    measured, measured_error
        Mean of the measured map less its background, over the pixels that count, and its standard error. NaN where
        all pixels are masked: these are filled in, and what was filled in wrongly no count can show.
    weight
        How far ``value`` is on the way from the corrected mean to ``measured``, 0 to 1; in the part of the region that
        was measured.
    """

    value: float
    error: float
    fused: float
    measured: float
    measured_error: float
    weight: float


@dataclass(frozen=True)
class Ratio:
    """The ratio of two elements' region means, in the units of the maps (not of atoms), with its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Replicates:
    """Replicates of a fit. All arrays are in the units of the maps.

    Attributes
    ----------
    maps
        (n, ny, nx) the fitted maps, which the replicates were drawn from.
    residual
        (n, ny, nx) measured, less background, minus fitted maps; 0 in masked pixels.
    counted
        (n, ny, nx) bool, pixels that are not masked.
    variance
        (n, ny, nx) of the noise that was drawn, 0 in masked pixels.
    counts_scale
        (n,) value of one count, NaN for none.
    errors
        (R, n, ny, nx) float32, maps fitted to each replicate minus ``maps``.
    residuals
        (R, n, ny, nx) float32, drawn maps minus the maps fitted to them; 0 in masked pixels.
    """

    maps: np.ndarray
    residual: np.ndarray
    counted: np.ndarray
    variance: np.ndarray
    counts_scale: np.ndarray
    errors: np.ndarray
    residuals: np.ndarray

    def __len__(self):
        return len(self.errors)

    @cached_property
    def bias_scales(self):
        """(n,) how many times as much smoothing costs the maps as it costs the replicates, 1 to 2.

        Replicates are smoothed from ``maps`` by their mean error, of which the measured counts show a multiple: the
        slope of a weighted regression of ``residual`` on it, both averaged over some pixels.
        """
        lost = _blurred(np.where(self.counted, -self.errors.mean(axis=0), 0), _SEEN_WIDTH)
        seen = _blurred(self.residual, _SEEN_WIDTH)
        variance = np.var([_blurred(r, _SEEN_WIDTH).astype(np.float32) for r in self.residuals], axis=0)
        # where next to nothing was measured, nothing is to be learnt
        weight = 1 / np.maximum(variance + 0.05 * _over_pixels(np.mean, variance), np.finfo(np.float32).tiny)
        both, one = _over_pixels(np.sum, weight * lost * seen), _over_pixels(np.sum, weight * lost**2)
        scales = np.divide(both, one, out=np.ones_like(one), where=one > 0)
        return np.clip(scales, 1, _LARGEST_SCALE).ravel()

    def standard_errors(self):
        """(n, ny, nx) root mean square error of every pixel: scatter, and what smoothing costs.

        ``error**2 = variance + (bias_scale * bias)**2`` with the variance and the mean of the replicates' errors, the
        latter's square less what chance adds to it; both averaged over a pixel or so.
        """
        variance = self.errors.var(axis=0, ddof=1, dtype=np.float64)
        squares = self.errors.mean(axis=0, dtype=np.float64) ** 2 - variance / len(self)
        bias = np.maximum(_blurred(squares, _ERROR_WIDTH), 0)
        return np.sqrt(_blurred(variance, _ERROR_WIDTH) + self.bias_scales[:, None, None] ** 2 * bias)

    def region_mean(self, mask, index):
        """The mean of map ``index`` over the pixels of ``mask``, (ny, nx) bool.

        The fused mean is corrected by what smoothing takes from replicates, times ``bias_scales``, and moved towards
        the measured mean until what may be left of the bias, ``(1 - weight) unseen``, is at most a third of the
        scatter, and further where that makes the mean square error less. The square of ``unseen`` is the mean square
        of the corrections of its pixels, which need not cancel in the truth as they do in the mean, and a twentieth of
        the variance of the counts; or what the counts show beyond 2.5 of their standard deviations. Of the errors of
        replicates the part in proportion to the noise of the measured mean is scaled to the variance of the latter,
        which is known: counts have that of their estimated mean.

        Returns
        -------
        RegionMean
        """
        return self._region(mask, index).estimate()

    def ratio(self, mask, index, other):
        """Region mean of map ``index`` over that of map ``other``, with what the errors of both have in common.

        The error is that of first order; it is infinite where the denominator is not above 0.

        Returns
        -------
        Ratio
        """
        regions = [self._region(mask, i) for i in (index, other)]
        over, under = (region.estimate() for region in regions)
        if not under.value > 0:
            return Ratio(np.nan, np.inf)
        value = over.value / under.value
        errors = [r.shared_scatter(m.weight) for r, m in zip(regions, (over, under), strict=True)]
        shared = float(np.mean(errors[0] * errors[1])) if index != other else over.error**2
        square = over.error**2 - 2 * value * shared + (value * under.error) ** 2
        return Ratio(value, float(np.sqrt(max(square, 0))) / under.value)

    def shares(self, mask, factors, order=None):
        """Shares ``f_i I_i / sum_j f_j I_j`` of the region means ``I`` of maps in their sum, times ``factors``.

        Errors are those of first order, with what the maps have in common; NaN and infinite where the sum is not
        above 0.

        Parameters
        ----------
        mask
            (ny, nx) bool.
        factors
            (n,) > 0, of the maps in their order.
        order
            (n,) their indices; all by default.

        Returns
        -------
        values, errors
            (n,) arrays.
        """
        regions = [self._region(mask, i) for i in (range(len(self.maps)) if order is None else order)]
        means = [region.estimate() for region in regions]
        values = factors * [mean.value for mean in means]
        total = values.sum()
        if not total > 0:
            return np.full(len(values), np.nan), np.full(len(values), np.inf)
        values = values / total
        errors = [f * r.shared_scatter(m.weight) for f, r, m in zip(factors, regions, means, strict=True)]
        scatter = np.stack(errors) / total
        # what no replicate shows, such as bias that may be left, is independent
        squares = (factors * [mean.error for mean in means] / total) ** 2
        apart = np.maximum(squares - np.mean(scatter**2, axis=1), 0)
        together = np.mean((scatter - np.outer(values, scatter.sum(axis=0))) ** 2, axis=1)
        return values, np.sqrt(together + (1 - 2 * values) * apart + values**2 * apart.sum())

    def _region(self, mask, index):
        first = self._region_with(mask, index)
        if not np.isfinite(self.counts_scale[index]):
            return first
        # smoothing moves counts into the region or out of it: those measured vary as their estimated mean has it
        change = first.estimate().value - first.fused + first.filled
        return self._region_with(mask, index, change, np.mean(first.differences**2))

    def _region_with(self, mask, index, change=0.0, doubted=np.inf):
        """The :class:`_Region`, with the variance that counts have where ``change`` is added to the fused mean."""
        maps, residual = (a[index][mask].astype(np.float64) for a in (self.maps, self.residual))
        errors, residuals = (a[:, index][:, mask].astype(np.float64) for a in (self.errors, self.residuals))
        counted, scale, size = self.counted[index][mask], self.bias_scales[index], maps.size
        variance = float(self.variance[index][mask].sum())
        if change:
            # there are no fewer than none, and to lose all but one does not make counts any more certain
            more = self.counts_scale[index] * max(change * size, -maps[counted].sum())
            variance = max(variance + more, min(variance, self.counts_scale[index] ** 2))
        moving, still = (np.mean(errors * part, axis=1) for part in (counted, ~counted))
        moving, noise, bias = _parted(moving, moving + np.mean(residuals, axis=1), variance / size**2)
        still, _, filled = _parted(still, np.zeros_like(still), 0.0)
        squares = scale**2 * (errors.mean(axis=0) ** 2 - errors.var(axis=0, ddof=1) / len(errors))
        unseen, of_filled = (max(squares @ part, 0) * np.sum(part) / size**2 for part in (counted, ~counted))
        # of masked pixels alone nothing was measured
        n_counted = np.count_nonzero(counted) or np.nan
        return _Region(
            fused=float(maps.mean()),
            corrected=float(maps.mean() - scale * (bias + filled)),
            filled=float(scale * filled),
            difference=float(residual.mean() + scale * bias),
            unseen=float(unseen + _UNSEEN * np.mean(noise**2)),
            unseen_filled=float(of_filled),
            errors=moving + still,
            differences=noise - moving,
            doubted=float(doubted),
            measured=float(np.sum((maps + residual) * counted) / n_counted),
            measured_error=float(np.sqrt(variance) / n_counted),
            one_count=float(self.counts_scale[index]) / n_counted,
        )


@dataclass(frozen=True)
class _Region:
    """Means over a region: fused, corrected, what is measured above this, the errors of both in replicates; and the
    measured one.

    ``filled`` is the correction of masked pixels, ``unseen`` and ``unseen_filled`` are squares of the bias that may be
    left in those that count and in those that are masked. ``doubted`` is the variance of the difference with which
    the counts contradict the corrected mean, if it is less than that of ``differences``.
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

    def estimate(self):
        """The :class:`RegionMean`."""
        moments = _second_moments(self.errors, self.differences)
        unseen = max(self.unseen, self.difference**2 - _CONTRADICTION**2 * min(moments[2], self.doubted))
        # of masked pixels alone nothing is measured that the value could be moved to
        weight = _least_weight(unseen, *moments) if np.isfinite(self.measured) else 0.0
        square = (1 - weight) ** 2 * unseen + self.unseen_filled + np.mean(self.scatter(weight) ** 2)
        least = self._least_error()
        return RegionMean(
            value=self.corrected + weight * self.difference,
            error=max(float(np.sqrt(square)), least),
            fused=self.fused,
            measured=self.measured,
            measured_error=max(self.measured_error, least),
            weight=weight,
        )

    def scatter(self, weight):
        """(R,) errors of the estimate in the replicates."""
        return self.errors + weight * self.differences

    def shared_scatter(self, weight):
        """(R,) what of it may go with that of other maps: less its mean, which noise has that no replicate drew."""
        scatter = self.scatter(weight)
        return scatter - scatter.mean()

    def _least_error(self):
        """No counts (but for rounding) are not known to be none; replicates of none have none."""
        none = self.measured <= _NONE * self.one_count
        return _COUNTS_OF_NONE * self.one_count if none else 0.0


def _parted(errors, noise, variance):
    """Errors of replicates and noise of the measured mean with less chance in them, and the bias of the former.

    The noise has a known variance, to which it is scaled with the part of the errors in proportion to it. The mean of
    the rest is a bias; its scatter is known from the replicates alone, and made as wide as Student has it for one more
    draw less their mean.
    """
    square, number = float(noise @ noise), len(errors)
    # less its mean, for a bias of the errors is not in proportion to noise; of two, any slope is that of chance
    away = noise - noise.mean() if number > 2 else np.zeros_like(noise)
    known = float(away @ away)
    # all draws may be the same, that is, none
    known = known if known > _ROUNDING**2 * max(square, errors @ errors) else 0.0
    slope = float(errors @ away) / known if known else 0.0
    rest = errors - slope * noise
    # mean and mean square of few values are off by chance, and an interval from them too narrow
    free = number - 2 if known else number - 1
    wider = stdtrit(free, _ONE_SIGMA) * np.sqrt((number + 1) / free)
    noise = noise * np.sqrt(variance * number / square) if square else np.full_like(noise, np.sqrt(variance))
    return slope * noise + wider * (rest - rest.mean()), noise, float(rest.mean())


def _least_weight(unseen, error, shared, chance):
    """The weight of the least mean square error; a larger one where this leaves more bias than is harmless.

    The arguments are mean squares: of the bias, of the errors, of these times the differences, and of the differences.
    The bias left is harmless from ``(1 - w)**2 unseen = part (error + 2 w shared + w**2 chance)`` on.
    """
    if not chance > 0:
        return 1.0
    best, part = float(np.clip((unseen - shared) / (unseen + chance), 0, 1)), _HARMLESS**2
    square, half, one = unseen - part * chance, unseen + part * shared, unseen - part * error
    if one - 2 * half * best + square * best**2 <= 0:
        return best
    # the lesser root of a parabola that opens upwards, the larger of one that opens downwards
    return float(np.clip(one / (half + np.sqrt(max(half**2 - square * one, 0))), best, 1))


def _second_moments(a, b):
    return float(np.mean(a * a)), float(np.mean(a * b)), float(np.mean(b * b))


def _blurred(maps, width):
    """Averaged over the last two axes."""
    return gaussian_filter(maps.astype(np.float64), (0,) * (maps.ndim - 2) + (width, width))


def _over_pixels(function, maps):
    return function(maps, axis=(1, 2), keepdims=True)
