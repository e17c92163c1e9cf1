"""Noise models of the maps, and the data terms of the objective that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.terms.noise_estimation import (
    choose_noise,
    counts_scales,
    estimate_variance,
    find_counts_scales,
)
from hyperspy_fusion.fusion.terms.scan_data import block_sums, column, crop_of

# of a pixel, relative to the median: fits of spectra that end at a bound have variances near 0
LEAST_VARIANCE = 0.01


def _rows(values, scan, dtype):
    """Values (n, 1, 1) as (n, 1, nx); as (n, ny, nx) with 0 in masked pixels where there are any, or one per pixel."""
    n, _, nx = scan.maps.shape
    if scan.valid.all() and values.shape[1] == 1:
        # a copy also where one column has nothing to repeat: kernels are compiled anew for what is read-only
        return np.array(np.broadcast_to(values, (n, 1, nx)), dtype, order="C")
    return np.ascontiguousarray(np.where(scan.valid, values, 0), dtype)


# ---- the terms -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataTerms:
    """The terms of the maps as the kernels take them; see :func:`~.kernels.descend_maps`.

    Attributes
    ----------
    is_poisson
        Counts, or least squares.
    beta, slope, delta
        (n, ny, nx), (n, 1 or ny, nx), (n, 1 or ny, nx). Slope and beta are 0 in masked pixels.
    upper
        (n,) twice the largest measured value: the duality gap holds for maps below it, or below twice those found.
    totals
        (n,) totals over valid pixels, to be kept; NaN for none.
    offset, variance_share
        Of beta, counts that are not measured, and the variance of the measured ones (of slope, not Poisson) over their
        number: 1 but for binned data.
    """

    is_poisson: bool
    beta: np.ndarray
    slope: np.ndarray
    delta: np.ndarray
    upper: np.ndarray
    totals: np.ndarray
    offset: float = 0.0
    variance_share: float = 1.0
    kind = "maps"

    def with_noise(self, rng):
        """The terms with noise added that is as large as that of the data."""
        variance = np.maximum(self.beta - self.offset, 0) if self.is_poisson else self.slope
        noise = np.sqrt(self.variance_share * variance) * rng.standard_normal(self.beta.shape)
        beta = np.where(self.slope > 0, self.beta + noise, 0)
        beta = np.maximum(beta, 0) if self.is_poisson else beta
        return replace(self, beta=np.ascontiguousarray(beta, self.beta.dtype))

    def coarsened(self, shape):
        """The terms of squares of 2 x 2 pixels, of maps (n, ny, nx) of ``shape``; see :mod:`~.solvers.multilevel`."""
        dtype = self.beta.dtype
        slope = block_sums(np.broadcast_to(self.slope, shape)) / 2
        weighted = block_sums(np.broadcast_to(self.slope * self.delta, shape)) / 2
        delta = np.divide(weighted, slope, out=np.zeros_like(slope), where=slope > 0)
        numbers = np.count_nonzero(np.broadcast_to(self.slope > 0, shape), axis=(1, 2))
        return DataTerms(
            is_poisson=self.is_poisson,
            beta=(block_sums(self.beta) / 2).astype(dtype),
            slope=slope.astype(dtype),
            delta=delta.astype(dtype),
            upper=self.upper,
            totals=self.totals * np.count_nonzero(slope, axis=(1, 2)) / numbers,
            offset=2 * self.offset,
            variance_share=self.variance_share / 2,
        )

    def with_multipliers(self, theta):
        """The terms plus ``theta_i sum z_i`` over valid pixels, with known multipliers (n,) in place of totals to keep.

        A Poisson term takes it into its slope, least squares into beta, and both stay what they are up to a constant.
        """
        theta = np.where(self.slope > 0, column(theta), 0).astype(self.slope.dtype)
        found = replace(self, totals=np.full(len(self.totals), np.nan))
        if not self.is_poisson:
            return replace(found, beta=self.beta - theta)
        # a multiplier stays above minus the slope, or the term would fall without end
        return replace(found, slope=np.where(self.slope > 0, np.maximum(self.slope + theta, 0.01 * self.slope), 0))

    def measuring(self, z):
        """The terms of other maps z (n, ny, nx) of the same noise, which least squares can have without background."""
        beta = np.where(self.slope > 0, self.slope * z, 0).astype(self.beta.dtype)
        return replace(self, beta=beta)

    def net(self):
        """(n, ny, nx) measured maps, less background, in units of z; anything in masked pixels."""
        slope = np.where(self.slope > 0, self.slope, 1).astype(np.float64)
        return self.beta / slope - self.delta

    def step_length(self, z):
        """(n, ny, nx) inverse curvature of the term at z: how far a unit gradient of the others moves a pixel."""
        slope = np.where(self.slope > 0, self.slope, 1).astype(np.float64)
        return (z + self.delta) / slope if self.is_poisson else 1 / slope

    def value(self, z):
        """Half the deviance, or half the squares of the residuals, summed over all valid pixels."""
        beta, slope, delta = (a.astype(np.float64) for a in (self.beta, self.slope, self.delta))
        used = np.broadcast_to(slope > 0, z.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.is_poisson:
                mean = slope * (z + delta)
                terms = mean - np.where(beta > 0, beta + beta * np.log(mean / beta), 0)
            else:
                terms = 0.5 * slope * (z - beta / slope) ** 2
        return float(np.sum(terms, where=used))


# ---- noise of the maps -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """Poisson counts over a background, shifted or not.

    ``background`` is (n, 1, 1), or (n, ny, nx) with 0 in masked pixels; what is one number per map is (n,).
    """

    kind: str
    sentence: str
    counts_scale: np.ndarray
    shift: float
    background: np.ndarray
    unit: np.ndarray
    diagnostics: list

    @property
    def variance(self):
        return np.full(len(self.counts_scale), np.nan)

    @property
    def variances(self):
        """(n, 1, 1) of a typical pixel."""
        return column(self.unit**2)

    def of_part(self, scan, held_out):
        """The noise of the counts that are left where some are held out."""
        background = self.background * held_out.fraction
        return replace(self, background=background, unit=_unit(scan, self.counts_scale, self.shift))

    def cropped(self, window):
        """The same noise, in the same natural units, on the pixels of two slices (y, x)."""
        return replace(self, background=crop_of(self.background, window))

    def of_means(self, means, n_pixels):
        """The same noise in the natural units of a larger scan, of such means (n,)."""
        return replace(self, unit=_unit_of(means, n_pixels, self.counts_scale, self.shift))

    def noise_variance(self, scan):
        """(n, ny, nx) variance of the maps as measured."""
        return column(self.counts_scale) * np.maximum(scan.maps, 0)

    def excess(self, scan, weights):
        """Factor by which the shift overstates the variance of the sum of the maps times ``weights``."""
        squares = (weights * self.counts_scale) ** 2
        noise = squares @ (scan.means() / self.counts_scale)
        return 1 + self.shift * squares.sum() / noise if noise > 0 else 1.0

    def evidence(self, total, mean, other, weights):
        """(ny, nx), log of how much likelier sums ``total`` of maps times ``weights`` are at another mean.

        As if all counts were of the largest weight, of which there are fewest: chance gives no more than this in sums
        of any. Less than half a count is never expected, for no forward model is that good.
        """
        count = np.max(weights * self.counts_scale)
        mean, other = (np.maximum(m / count, 0.5) for m in (mean, other))
        return mean - other - np.maximum(total, 0) / count * np.log(mean / other)

    def terms(self, scan, scales, dtype, keep_totals):
        """The Poisson deviance in units of ``scales``."""
        counts_scale, slope = column(self.counts_scale), column(scales / self.counts_scale)
        beta = np.where(scan.valid, scan.maps / counts_scale + self.shift, 0)
        totals = np.sum(scan.maps - self.background, axis=(1, 2), where=scan.valid) / scales
        delta = (self.background / counts_scale + self.shift) / slope
        return DataTerms(
            is_poisson=True,
            beta=beta.astype(dtype, order="C"),
            slope=_rows(slope, scan, dtype),
            delta=_rows(delta, scan, dtype),
            upper=(2 * (beta.max(axis=(1, 2)) + 1) / slope.ravel()).astype(dtype),
            totals=_kept_totals(totals, keep_totals),
            offset=self.shift,
        )


@dataclass(frozen=True)
class Gaussian:
    """White noise of one variance per map, or of one per pixel.

    ``variances`` and ``background`` are (n, 1, 1) or (n, ny, nx). ``variance`` (n,) is the harmonic mean of the
    former, so that a few pixels of large variance do not make a map noisier.
    """

    sentence: str
    variances: np.ndarray
    variance: np.ndarray
    background: np.ndarray
    kind: str = "gaussian"
    shift: float = 0.0
    diagnostics: list = field(default_factory=list)

    @property
    def unit(self):
        return np.sqrt(self.variance)

    @property
    def counts_scale(self):
        return np.full(len(self.variance), np.nan)

    def of_part(self, scan, held_out):
        """The same: pixels are held out, not counts."""
        return self

    def cropped(self, window):
        """The same noise, in the same natural units, on the pixels of two slices (y, x)."""
        return replace(self, variances=crop_of(self.variances, window), background=crop_of(self.background, window))

    def of_means(self, means, n_pixels):
        """The same: its units are those of the noise alone."""
        return self

    def noise_variance(self, scan):
        """(n, ny, nx)."""
        return np.broadcast_to(self.variances, scan.maps.shape)

    def excess(self, scan, weights):
        """No factor: there is no shift."""
        return 1.0

    def evidence(self, total, mean, other, weights):
        """As that of counts; with no less noise than sums are off the other mean, over all pixels."""
        squares = (total - other) ** 2
        variance = np.maximum(np.tensordot(weights**2, self.variances, 1), squares.mean())
        return 0.5 * ((total - mean) ** 2 - squares) / variance

    def terms(self, scan, scales, dtype, keep_totals):
        """Least squares in units of ``scales``."""
        slope = column(scales**2) / self.variances
        net = (scan.maps - self.background) / column(scales)
        beta = np.where(scan.valid, net * slope, 0)
        return DataTerms(
            is_poisson=False,
            beta=beta.astype(dtype, order="C"),
            slope=_rows(slope, scan, dtype),
            delta=np.zeros((len(scales), 1, scan.maps.shape[2]), dtype),
            upper=(2 * net.max(axis=(1, 2), initial=0) + 10 / np.sqrt(slope.min(axis=(1, 2)))).astype(dtype),
            totals=_kept_totals(np.sum(net, axis=(1, 2), where=scan.valid), keep_totals),
        )


def _kept_totals(totals, keep):
    return np.where(keep & (totals > 0), totals, np.nan)


def about_totals(scan, data, keep):
    """Diagnostics about totals that were to be kept and could not be."""
    lost = tuple(e for e, total in zip(scan.elements, data.totals, strict=True) if keep and np.isnan(total))
    total, remedy = " less its background", "check the map and the background"
    if scan.spectra is not None:  # of which the background is a part
        total, remedy = "", "leave the element out"
    sentence = f"The total of {', '.join(lost)}{total} is not above 0 and was not kept: {remedy}."
    return [Diagnostic("total-not-kept", sentence, elements=lost)] if lost else []


def noise_of(scan, settings):
    """The noise model of the settings, of the noise metadata, or of the data."""
    background = known_background(scan, settings)
    kind, sentence = settings.noise, f"noise={settings.noise!r} as given."
    if kind == "auto" and scan.variance is not None and settings.variance is None:
        kind, sentence = "gaussian", "The maps have a variance: Gaussian noise."
    maps = np.where(scan.valid, scan.maps, np.nan)
    found = [] if kind == "gaussian" else find_counts_scales(maps)
    if kind == "auto":
        kind, sentence = choose_noise(maps, scan.elements, found)
    if kind == "gaussian":
        variances = _variances(scan, settings)
        return Gaussian(sentence, variances, 1 / scan.means_of(1 / variances), background)
    counts_scale, diagnostics = _counts_scale(scan, counts_scales(found))
    shift = settings.poisson_offset if kind == "shifted_poisson" else 0.0
    _check_counts(scan, counts_scale, shift, kind)
    return Counts(kind, sentence, counts_scale, shift, background, _unit(scan, counts_scale, shift), diagnostics)


def _unit(scan, counts_scale, shift):
    """(n,) the noise of a typical pixel; that of one count in the map where a part of the counts has none."""
    return _unit_of(scan.means(), scan.maps[0].size, counts_scale, shift)


def _unit_of(means, n_pixels, counts_scale, shift):
    return counts_scale * np.sqrt(np.maximum(means / counts_scale, 1 / n_pixels) + shift)


def known_background(scan, settings):
    """Background (n, 1, 1), or (n, ny, nx) with 0 in masked pixels from the noise metadata."""
    given = scan.per_map("background", settings.background)
    if scan.background is None:
        return column(given)
    if given.any():
        raise ValueError(
            f"background is {settings.background!r}, and the maps have a background in their metadata: leave the "
            "setting out, or make the maps with background=None."
        )
    background = np.where(scan.valid, scan.background, 0).astype(np.float64)
    if not (np.isfinite(background).all() and background.min() >= 0):
        lowest = background.min()
        raise ValueError(f"The background of the maps goes down to {lowest:.3g}: it must be finite and at least 0.")
    return background


def _variances(scan, settings):
    """Variance (n, 1, 1) as given or estimated, or (n, ny, nx) from the noise metadata."""
    if settings.variance is not None:
        return column(scan.per_map("variance", settings.variance))
    if scan.variance is None:
        return column([estimate_variance(m, v) for m, v in zip(scan.maps, scan.valid, strict=True)])
    known = np.nan_to_num(scan.variance, nan=0, posinf=0, neginf=0)
    used = scan.valid & (known > 0)
    if not used.any(axis=(1, 2)).all():
        raise ValueError("The variance of a map is nowhere above 0: remove it from the maps, and it is estimated.")
    # pixels without a variance have the median, and no pixel decides alone
    typical = column([np.median(values[here]) for values, here in zip(known, used, strict=True)])
    return np.maximum(np.where(used, known, typical), LEAST_VARIANCE * typical).astype(np.float64)


def _counts_scale(scan, found):
    """(n,) counts scale of every map, and a diagnostic where it had to be assumed."""
    unknown = tuple(e for e, q in zip(scan.elements, found, strict=True) if not q > 0)
    if not unknown:
        return found, []
    sentence = f"No counts scale was found for the map of {', '.join(unknown)}, and 1 is used: scale the map to counts."
    return np.where(found > 0, found, 1.0), [Diagnostic("counts-scale-unknown", sentence, elements=unknown)]


def _check_counts(scan, counts_scale, shift, kind):
    counts = scan.maps / column(counts_scale) + shift
    low = [e for e, m in zip(scan.elements, counts.min(axis=(1, 2)), strict=True) if m < 0]
    if low:
        raise ValueError(
            f"noise is {kind!r} and the map of {', '.join(low)} goes down to {counts.min() - shift:.3g} counts: it "
            f"must not go below {-shift:g}; use noise='gaussian', or noise='shifted_poisson' with a larger shift."
        )
