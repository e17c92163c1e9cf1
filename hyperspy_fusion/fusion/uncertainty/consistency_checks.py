"""Consistency checks of a fit: do its maps agree with the counts, and the HAADF image with the measured maps?

Sums over squares of pixels are compared with the standard deviation that the noise alone gives them. The counts are
compared with the fused maps. The HAADF image is compared with the forward model of the *measured* maps, whose noise is
known and which no penalty has smoothed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter
from scipy.special import betainc, pdtrc

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.spectra.background import gaussian
from hyperspy_fusion.fusion.terms.haadf_model import LinearHaadfModel
from hyperspy_fusion.fusion.terms.noise_estimation import counts_scale

# sides of the squares in pixels
SIDES = (4, 8, 16)
# standard errors beyond which a sum, or the mean of their squares, is significant
SIGNIFICANT_SUM, SIGNIFICANT_MEAN = 5.5, 6.0
# a map of an element that nobody asked for is worth a fit unless it has fewer counts per pixel than this or no line, at
# least so many pixels along both axes, and in no test such a significance, or so small a probability of noise
FEW, LEAST_PIXELS, LITTLE, CHANCE = 1.0, 8, 3.0, 0.01
# standard errors of the variance of pixels by which it exceeds that of the noise, to be known to a fifth
SURE_EXCESS = 5.0
# net counts that are no line, as a part of the background
TRACE = 0.03
# brightest levels of squares that are looked at
LEVELS = 8
# fraction of the contrast of the HAADF image that may be unexplained
UNEXPLAINED = 0.1
# above it, most of the contrast is of something else
MOSTLY_UNEXPLAINED = 0.6


@dataclass(frozen=True)
class ConsistencyChecks:
    """A fit beside its data.

    Attributes
    ----------
    elements
        n names.
    maps, valid
        (n, ny, nx) measured maps without background, and their valid pixels.
    variance
        (n, ny, nx) of the measured maps.
    fused
        (n, ny, nx).
    haadf, haadf_valid, haadf_noise
        (ny, nx), (ny, nx) bool, and the standard deviation of its noise.
    forward_model
        Of maps in these units.
    counts_scale
        (n,) value of one count, NaN where there are none.
    """

    elements: list
    maps: np.ndarray
    valid: np.ndarray
    variance: np.ndarray
    fused: np.ndarray
    haadf: np.ndarray
    haadf_valid: np.ndarray
    haadf_noise: float
    forward_model: LinearHaadfModel
    counts_scale: np.ndarray

    @classmethod
    def of(cls, scan, fused, problem, k=0, noise=None):
        """From a :class:`~.terms.scan_data.ScanData`, the fused maps, the problem of the fit; and elastic image k.

        ``noise`` is the variance (n, ny, nx) and the value of one count (n,); None for that of the problem.
        """
        problem = problem.of_largest_weight
        seen, calibration, _ = problem.image(k)
        background = problem.background[:, None, None] if scan.background is None else scan.background
        counts_scale = problem.noise.counts_scale[:, None, None]
        mean = np.maximum(fused + background, 0) * counts_scale
        # of Gaussian noise, pixel by pixel where it is known so
        slope = np.where(problem.data.slope > 0, problem.data.slope, 1).astype(np.float64)
        known = np.broadcast_to(problem.scales[:, None, None] ** 2 / slope, mean.shape)
        # a single count is no contradiction of an expectation near 0
        variance = np.where(np.isfinite(counts_scale), np.maximum(mean, 1e-3 * counts_scale**2), known)
        variance, counts_scale = noise or (variance, problem.noise.counts_scale)
        return cls(
            elements=scan.elements,
            maps=np.where(scan.valid, scan.maps - background, 0).astype(np.float64),
            valid=scan.valid,
            variance=variance,
            fused=fused,
            haadf=seen.haadf,
            haadf_valid=seen.haadf_valid,
            haadf_noise=float(calibration.noise),
            forward_model=calibration.forward_model,
            counts_scale=counts_scale,
        )

    def residuals(self) -> np.ndarray:
        """(n, ny, nx) measured minus fused maps in standard deviations of the noise; 0 in pixels that are not valid."""
        return np.where(self.valid, (self.maps - self.fused) / np.sqrt(self.variance), 0)

    def diagnostics(self) -> list[Diagnostic]:
        """Findings: ``"map-contradicts-counts"``, ``"map-without-structure"`` and ``"haadf-unexplained"``."""
        return [*self._about_counts(), *self._about_structure(), *self.about_image()]

    # ---- counts against fused maps -----------------------------------------------------------------

    def _about_counts(self):
        """Maps that are smoother than their counts, or have structure that these do not have."""
        worst = [self._worst_square(i) for i in range(len(self.maps))]
        found = [e for e, (size, *_) in zip(self.elements, worst, strict=True) if size > SIGNIFICANT_SUM]
        if not found:
            return []
        size, side, (y, x) = max(worst)
        sentence = (
            f"The fused map of {', '.join(found)} contradicts its counts, most in {side} x {side} pixels at "
            f"{{place}} ({size:.1f} standard deviations): lower lambda_reg, and see normalised_residuals()."
        )
        return [Diagnostic("map-contradicts-counts", sentence, elements=tuple(found), place=(y, x))]

    def _worst_square(self, i):
        """Largest deviation of a square of map i in standard deviations, the side, and its middle (y, x)."""
        residual, q, worst = self.maps[i] - self.fused[i], self.counts_scale[i], (0.0, 0, (0, 0))
        for side in (side for side in SIDES if side <= min(self.haadf.shape)):
            total, variance = (square_sums(np.where(self.valid[i], a, 0), side) for a in (residual, self.variance[i]))
            if np.isfinite(q):
                size = _poisson_deviation(total / q, variance / q**2)
            else:
                size = np.abs(total) / np.sqrt(np.where(variance > 0, variance, np.inf))
            y, x = np.unravel_index(np.argmax(size), size.shape)
            worst = max(worst, (float(size[y, x]), side, (_middle(y, side), _middle(x, side))), key=lambda w: w[0])
        return worst

    # ---- maps without structure ----------------------------------------------------------------------

    def _about_structure(self):
        """Maps whose squares vary no more than their noise."""
        sides = [side for side in SIDES if 2 * side <= min(self.haadf.shape)]
        flat = [
            element
            for i, element in enumerate(self.elements)
            if sides and all(self._excess_variance(i, side) < SIGNIFICANT_MEAN for side in sides)
        ]
        if not flat:
            return []
        sentence = (
            f"The counts of {', '.join(flat)} are too few, or too even, to show any structure beyond their noise: use "
            "only the mean of the map."
        )
        return [Diagnostic("map-without-structure", sentence, elements=tuple(flat))]

    def structure(self) -> np.ndarray:
        """(n,) part of the structure in the counts that the fused maps show, pixel by pixel, at most 1.

        Of maps smoothed as much as is best it is the part of the variance of the truth that is right. 0 where the
        squares vary no more than noise, and NaN where the pixels are too noisy to show it.
        """
        flat = {element for one in self._about_structure() for element in one.elements}
        found = []
        for element, counts, variance, valid, fused in zip(
            self.elements, self.maps, self.variance, self.valid, self.fused, strict=True
        ):
            noise, number = variance[valid].mean(), np.count_nonzero(valid)
            excess = counts[valid].var(dtype=np.float64) - noise
            is_sure = excess > SURE_EXCESS * noise * np.sqrt(2 / number)
            shown = min(fused[valid].var(dtype=np.float64) / excess, 1.0) if is_sure else np.nan
            found.append(0.0 if element in flat else shown)
        return np.array(found)

    def _excess_variance(self, i, side):
        """Variance of the squares of map i beyond noise, in standard errors."""
        return excess_variance(self.maps[i], self.variance[i], self.valid[i], side)

    # ---- the HAADF image against the forward model ---------------------------------------------------

    def about_image(self):
        """Contrast that no mapped element explains: the root mean square of the residual over that of the image."""
        # blur of the image moves intensity between small squares
        side = next((s for s in SIDES[1:] if s >= 4 * self.forward_model.blur), SIDES[-1])
        if not np.any(self.forward_model.weights) or 2 * side > min(self.haadf.shape):
            return []
        used = self.haadf_valid & self.valid.all(axis=0)
        of_maps = np.tensordot(self.forward_model.weights**2, self.variance, 1)
        arrays = self.haadf, self.forward_model.image(self.maps), of_maps, 1.0
        haadf, modelled, of_maps, number = (square_sums(np.where(used, a, 0), side) for a in arrays)
        full = number > 0
        if np.count_nonzero(full) < 4:
            return []
        mean = modelled / np.maximum(number, 1)
        total = haadf - number * self.forward_model.compressed(mean)
        noise = number * self.haadf_noise**2 + self.forward_model.slope(mean) ** 2 * of_maps
        squares, noise = total[full] ** 2, noise[full]
        significance = np.mean(squares / noise - 1) / np.sqrt(2 / squares.size)
        unexplained = np.mean((squares - noise) / number[full] ** 2)
        part = np.sqrt(max(unexplained, 0) / max(np.var(haadf[full] / number[full]), 1e-300))
        if significance < SIGNIFICANT_MEAN or part < UNEXPLAINED:
            return []
        y, x = np.unravel_index(np.argmax(np.where(full, np.abs(total), 0)), total.shape)
        end, causes = ". ", "unmapped elements, missing k_factors, diffraction, thickness"
        if part > MOSTLY_UNEXPLAINED:
            end, causes = ": trust a feature only where its counts show it. ", "unmapped elements"
        end += f"Causes: {causes}, or a misaligned image (register='shift')."
        sentence = f"HAADF contrast not explained by the mapped elements: {part:.0%} rms, most at {{place}}{end}"
        return [Diagnostic("haadf-unexplained", sentence, place=(_middle(y, side), _middle(x, side)))]


def _poisson_deviation(excess, mean):
    """Root of the deviance of counts, ``mean + excess``, which is near to normal at any mean."""
    counts = np.maximum(mean + excess, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        deviance = np.where(counts > 0, counts * np.log(counts / mean), 0) - (counts - mean)
    return np.sqrt(2 * np.maximum(np.where(mean > 0, deviance, 0), 0))


def _middle(number, side):
    """Pixel in the middle of a square."""
    return int(number * side + side // 2)


def without_structure(maps, valid, haadf, haadf_valid, beside=()):
    """(n,) bool: maps whose counts are noise alone in every test, of one mean or of the background of their line.

    Of one mean only with less than :data:`FEW` counts per pixel. ``beside`` has for each map None, or ``counts``
    (ny, nx) in background windows and the ``ratio`` of the background in the window of the line to these. The map is
    background alone where its net counts are noise or a trace, and all pixels have the same share of counts in that
    window. Maps that are no counts, or are small, are not judged: False.
    """
    image = np.where(haadf_valid, haadf, 0).astype(np.float64)
    beside = beside or [None] * len(maps)
    found = zip(maps, valid, beside, strict=True)
    return np.array(
        [_is_even(m, v, image, haadf_valid) or _is_background(m, v, b, image, haadf_valid) for m, v, b in found]
    )


def _is_even(map, valid, haadf, haadf_valid):
    scale = counts_scale(map, valid)
    if scale is None or min(map.shape) < LEAST_PIXELS:
        return False
    counts = np.where(valid, map, 0) / scale
    mean = counts.sum() / np.count_nonzero(valid)
    return bool(mean < FEW) and not _shows_structure(counts, mean * valid, 0.0, haadf, haadf_valid)


def _is_background(map, valid, beside, haadf, haadf_valid):
    if beside is None or min(map.shape) < LEAST_PIXELS:
        return False
    both = np.stack([map, beside.counts])
    scale = counts_scale(both, np.stack([valid, valid])) if np.isfinite(both[:, valid]).all() else None
    if scale is None:
        return False
    counts, others = np.where(valid, both, 0) / scale
    if not (counts.any() and others.any()):
        return False
    background = beside.ratio * others.sum()
    net, error = counts.sum() - background, np.sqrt(counts.sum() + beside.ratio * background)
    if net > max(LITTLE * error, TRACE * background):
        return False
    # of the counts of both, those in the window of the line are a binomial number
    share = counts.sum() / (counts.sum() + others.sum())
    return not _shows_structure(counts, share * (counts + others), share, haadf, haadf_valid)


def _shows_structure(counts, mean, share, haadf, haadf_valid):
    """Whether counts differ from this mean (ny, nx) by more than noise in any test.

    The noise is Poisson's for a ``share`` of 0, else binomial: ``mean / share`` counts, this share of which is counted.
    """
    sides = [2**i for i in range(min(counts.shape).bit_length() - 1)]
    if any(_squares_vary(counts, mean, share, side) or _has_cluster(counts, mean, share, side) for side in sides):
        return True
    rest, variance, (y, x) = counts - mean, (1 - share) * mean, np.indices(counts.shape)
    trends = ((y, True), (x, True), (haadf, haadf_valid))
    if _is_periodic(rest, variance) or any(abs(_trend(rest, variance, *one)) > LITTLE for one in trends):
        return True
    return _is_in_peaks(counts, mean, share, haadf, haadf_valid)


def _squares_vary(counts, mean, share, side):
    """Whether squares of counts vary more than noise, or too many of them are bright."""
    total, expected = square_sums(counts, side), square_sums(mean, side)
    variance = (1 - share) * expected
    # the variance of the squared deviations
    dispersion = np.sum(2 * variance**2 + variance * (1 - 6 * share * (1 - share)))
    if np.sum((total - expected) ** 2 - variance) > LITTLE * np.sqrt(dispersion):
        return True
    levels = np.unique(np.rint(total[total > 0.5]))[-LEVELS:]
    found = np.count_nonzero(total[..., None] > levels - 0.5, axis=(0, 1))
    chances = np.array([_chance_of(level, expected, share).sum() for level in levels])
    return bool(np.any(pdtrc(found - 1.0, chances) < CHANCE))


def _has_cluster(counts, mean, share, side):
    """Whether a square anywhere has too many counts."""
    total, expected = (side**2 * uniform_filter(a.astype(np.float64), side, mode="constant") for a in (counts, mean))
    # others are no candidates
    bright = total - expected > LITTLE * np.sqrt(np.maximum(expected, 0))
    chances = _chance_of(np.rint(total[bright]), expected[bright], share)
    return bool(total.size * np.min(chances, initial=1.0) < CHANCE)


def _chance_of(level, mean, share):
    """Probability of so many counts or more, Poisson's or binomial."""
    if share == 0:
        return pdtrc(level - 1, mean)
    trials = np.rint(mean / share)
    return np.where(trials < level, 0, betainc(level, np.maximum(trials - level, 0) + 1, share))


def _is_periodic(rest, variance):
    """Whether counts less their mean have a period, as of a lattice."""
    power = np.abs(np.fft.rfft2(rest)) ** 2 / variance.sum()
    return bool(power.size * np.exp(-power.max()) < CHANCE)


def _is_in_peaks(counts, mean, share, image, used):
    """Whether the pixels brightest above their neighbours in an image, such as atoms, have too many counts."""
    if not used.any():
        return False
    image = np.where(used, image, image[used].mean())
    order = np.argsort(np.where(used, gaussian(image, 1) - image, np.inf), axis=None)
    numbers = 2 ** np.arange(2, max(int(used.sum()).bit_length() - 1, 2))
    total, expected = (np.cumsum(a.ravel()[order])[numbers - 1] for a in (counts, mean))
    chances = [_chance_of(np.rint(n), m, share) for n, m in zip(total, expected, strict=True) if n > 0]
    return len(chances) * min(chances, default=1.0) < CHANCE


def _trend(rest, variance, image, used):
    """Standard errors by which counts less their mean rise with an image."""
    weights = np.where(used, variance, 0)
    if not weights.any():
        return 0.0
    image = image - np.average(image, weights=weights)
    error = np.sqrt(np.sum(weights * image**2))
    return float(np.sum(np.where(used, rest * image, 0)) / error) if error > 0 else 0.0


def excess_variance(map, variance, valid, side):
    """Variance of the squares of a map (ny, nx) beyond the noise, in standard errors."""
    total, noise, number = (square_sums(np.where(valid, a, 0), side) for a in (map, variance, 1.0))
    full = number > 0.5 * side**2
    if np.count_nonzero(full) < 4:
        return 0.0
    level, noise = total[full] / number[full], np.mean(noise[full] / number[full] ** 2)
    return float((np.mean((level - level.mean()) ** 2) - noise) / (noise * np.sqrt(2 / level.size)))


def square_sums(image, side):
    """Sums over squares of ``side`` pixels; pixels beyond the last whole square are left out."""
    ny, nx = (size // side for size in image.shape[-2:])
    cut = image[..., : ny * side, : nx * side]
    return cut.reshape(*image.shape[:-2], ny, side, nx, side).sum(axis=(-3, -1))
