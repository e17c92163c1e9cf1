"""Estimating equations of the linear HAADF forward model, with instrumental variables from noisy maps.

The noise that an instrumental variable shares with the maps is known, and subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from hyperspy_fusion.fusion.terms.haadf_model import haadf_noise

# Larger images are binned to this size: the fit needs their counts, not their pixels.
_MAX_SIZE = 512
# Reach of the kernel of the largest blur, in pixels.
_RADIUS = 16
# Misfit taken for granted, as a fraction of the range of the image: no forward model is better than that.
_DISCREPANCY = 0.01
# Standard deviations in pixels of the Gaussians that smooth the maps for the instrumental variables.
_INSTRUMENT_SIGMAS = (1.2, 5.0)
# And of those that smooth the image for the regression of the maps on it; its tiles as a fraction of the image.
_FEATURE_SIGMAS = (1.0, 2.0, 4.0, 8.0)
_TILE = 1 / 8


# ---- the data ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CorrelationData:
    """Checked data of a fit: maps less their mean and 0 where invalid, as their variance is."""

    maps: np.ndarray
    means: np.ndarray
    variance: np.ndarray
    valid: np.ndarray
    haadf: np.ndarray
    haadf_valid: np.ndarray
    sigma: float
    shape: np.ndarray
    binning: int = 1

    @cached_property
    def torus(self):
        return Torus(self.haadf.shape, _padded(self))

    @cached_property
    def maps_hat(self):
        return self.torus.transform(self.maps)

    @cached_property
    def variance_hat(self):
        return self.torus.transform(self.variance)


def correlation_data(maps, haadf, variance, shape, valid, haadf_valid):
    maps, haadf = np.asarray(maps, dtype=np.float64), np.asarray(haadf, dtype=np.float64)
    if maps.ndim != 3 or haadf.shape != maps.shape[1:]:
        raise ValueError(
            f"The maps have shape {maps.shape}, the HAADF image {haadf.shape}: (n, ny, nx) and (ny, nx) are needed, "
            "crop or rebin one."
        )
    variance = np.broadcast_to(_per_element(variance), maps.shape)
    valid = np.isfinite(maps) & np.isfinite(variance) & (True if valid is None else valid)
    haadf_valid = np.isfinite(haadf) & (True if haadf_valid is None else haadf_valid)
    sigma = haadf_noise(haadf, haadf_valid)
    if not sigma > 0:
        raise ValueError("The HAADF image is constant: it has no information on the weights, pass them instead.")
    shape = np.ones(len(maps)) if shape is None else np.asarray(shape, dtype=np.float64)
    if shape.shape != (len(maps),) or not np.all(shape > 0):
        raise ValueError(f"shape_weights is {shape}: it needs {len(maps)} numbers above 0, one per map.")
    binning = -(-max(haadf.shape) // _MAX_SIZE)
    maps, variance = np.where(valid, maps, 0), np.where(valid, variance, 0)
    arrays = maps, variance, np.where(haadf_valid, haadf, 0) / binning**2, valid, haadf_valid
    maps, variance, haadf, valid, haadf_valid = (_binned(np.asarray(array), binning) for array in arrays)
    means = maps.sum(axis=(1, 2)) / np.maximum(valid.sum(axis=(1, 2)), 1)
    maps = np.where(valid, maps - means[:, None, None], 0)
    variance = np.where(valid, variance, 0)
    return CorrelationData(maps, means, variance, valid, haadf, haadf_valid, sigma / binning, shape, binning)


def _per_element(variance):
    variance = np.asarray(variance, dtype=np.float64)
    return variance[:, None, None] if variance.ndim == 1 else variance


def _binned(array: np.ndarray, factor: int) -> np.ndarray:
    """Sums over squares (of bool: whether all are True), the remainder at the far edges left out."""
    if factor == 1:
        return array
    ny, nx = (size // factor for size in array.shape[-2:])
    cropped = array[..., : ny * factor, : nx * factor]
    squares = cropped.reshape(*array.shape[:-2], ny, factor, nx, factor)
    return np.asarray(squares.all(axis=(-3, -1)) if array.dtype == bool else squares.sum(axis=(-3, -1)))


def summed(scan):
    """The scan of one map, the sum by the shape of the weights."""
    total = np.tensordot(scan.shape, scan.maps, 1)[None]
    variance = np.tensordot(scan.shape**2, scan.variance, 1)[None]
    valid = scan.valid.all(axis=0, keepdims=True)
    total, variance = np.where(valid, total, 0), np.where(valid, variance, 0)
    return replace(
        scan, maps=total, means=np.array([scan.shape @ scan.means]), variance=variance, valid=valid, shape=np.ones(1)
    )


# ---- weight of the pixels ------------------------------------------------------------------------


def pixel_weight(scan, weights, blur):
    """``V``: one over the variance of the residual, as a function of the image; 0 in pixels not used.

    Of the smoothed image without the pixel itself: a weight that knows the pixel's noise biases the offset.
    """
    from scipy.ndimage import gaussian_filter

    usable = _usable(scan, blur)
    if weights is None:
        return usable / np.var(scan.haadf[usable])
    seen = scan.haadf_valid.astype(np.float64)
    own = gaussian_filter(np.pad([[1.0]], 6), 1.5)[6, 6]
    around = gaussian_filter(seen, 1.5) - own * seen
    level = (gaussian_filter(scan.haadf * seen, 1.5) - own * scan.haadf * seen) / np.maximum(around, 1e-6)
    low, high = np.percentile(scan.haadf[usable], (1, 99))
    variance = np.tensordot(weights**2, scan.variance, 1)
    smooth = _by_level(level, variance, usable)
    return usable / (smooth + scan.sigma**2 + (_DISCREPANCY * (high - low)) ** 2)


def _by_level(level, variance, usable):
    """Mean of ``variance`` over pixels of similar ``level``: classes of equal size and of equal width, merged."""
    known = level[usable]
    edges = np.union1d(np.quantile(known, np.linspace(0, 1, 33)), np.linspace(known.min(), known.max(), 17))
    of = np.digitize(known, edges[1:-1])
    size = np.bincount(of, minlength=len(edges) - 1)
    level_sum, variance_sum = (np.bincount(of, values, len(edges) - 1) for values in (known, variance[usable]))
    full = size >= min(16, size.max())
    return np.interp(level, level_sum[full] / size[full], variance_sum[full] / size[full])


def _usable(scan, blur):
    """Pixels of the image whose blurred maps draw on no missing pixel."""
    from scipy.ndimage import minimum_filter

    whole = scan.valid.all(axis=0)
    for reach in (max(2, int(np.ceil(3 * blur))), 1, 0):
        inside = minimum_filter(whole, 2 * reach + 1, mode="constant", cval=False)
        usable = inside & scan.haadf_valid
        if usable.sum() > 0.3 * usable.size:
            break
    if usable.sum() < 8 * (len(scan.maps) + 2):
        raise ValueError(
            f"The maps and the HAADF image share {usable.sum()} valid pixels, fewer than 8 per unknown: give the "
            "weights instead of fitting them."
        )
    return usable


# ---- convolutions --------------------------------------------------------------------------------


def _padded(scan):
    """Shape of the transforms: room for the smoothing and for all lags of the blur."""
    from scipy.fft import next_fast_len

    return tuple(next_fast_len(size + 4 * _RADIUS, real=True) for size in scan.haadf.shape)


def gaussian(shape, sigma):
    """Kernel of sum 1 with its centre at [0, 0] of a torus of ``shape``."""
    return np.outer(*_gaussian_sides(shape, sigma))


def _gaussian_sides(shape, sigma):
    lags = (np.minimum(np.arange(size), size - np.arange(size)) for size in shape)
    sides = [np.exp(-0.5 * (lag / max(sigma, 1e-3)) ** 2) for lag in lags]
    return [side / side.sum() for side in sides]


def _on_torus(kernel, shape):
    """A kernel centred at [0, 0] moved to a larger torus."""
    lags = (np.fft.fftfreq(size, 1 / size).astype(int) for size in kernel.shape)
    larger = np.zeros(shape)
    larger[np.ix_(*lags)] = kernel
    return larger


def _laplacian(kernel):
    """Half the second difference: the derivative of a blurred image along the square of its blur."""
    return 0.5 * (sum(np.roll(kernel, step, axis) for step in (1, -1) for axis in (0, 1)) - 4 * kernel)


class Torus:
    """Convolutions and short-range correlations of (..., ny, nx) fields, by zero-padded transforms."""

    def __init__(self, size, shape):
        self.size, self.shape = size, shape

    def transform(self, fields):
        from scipy.fft import rfft2

        return rfft2(fields, self.shape)

    def convolve(self, transformed, kernel):
        from scipy.fft import irfft2

        ny, nx = self.size
        return np.asarray(irfft2(transformed * self.transform(kernel), self.shape))[..., :ny, :nx]

    def correlate(self, first, second):
        """``sum_q first(q) second(q + d)`` of two transforms, for all lags d up to the reach."""
        from scipy.fft import irfft2

        return self.window(irfft2(np.conj(first) * second, self.shape))

    @staticmethod
    def window(kernel):
        lags = np.arange(-_RADIUS, _RADIUS + 1)
        return kernel[..., lags[:, None], lags]


# ---- instrumental variables ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Denoised:
    """Denoised maps to make instrumental variables of, (n, ny, nx), and their derivative along the square of a blur.

    ``kernel`` is the filter that made them, whose noise they share with the maps, ``norm`` the part of it on valid
    pixels; None for fields that do not know the noise of their pixel. ``power`` is the sum of its squares.
    """

    maps: np.ndarray
    curvature: np.ndarray
    power: float
    kernel: np.ndarray | None = None
    norm: np.ndarray | None = None


def denoisers(scan):
    """Ways to denoise the maps, all linear in them: which one serves best depends on the structure."""
    sigmas = [sigma for sigma in _INSTRUMENT_SIGMAS if 4 * sigma < min(scan.haadf.shape)]
    return [_by_features, _by_wiener, *(partial(_by_gaussian, sigma=sigma) for sigma in sigmas)]


def _by_gaussian(scan, weight, weights, sigma):
    return _by_kernel(scan, gaussian(scan.torus.shape, sigma))


def _by_wiener(scan, weight, weights):
    return _by_kernel(scan, _wiener(scan, weight, weights, scan.torus.shape))


def _by_kernel(scan, kernel):
    torus, data = scan.torus, scan.maps_hat
    norm = torus.convolve(torus.transform(scan.valid.astype(np.float64)), kernel)
    norm = np.where(np.abs(norm) > 0.05, norm, np.inf)
    maps, curvature = (torus.convolve(data, k) / norm for k in (kernel, _laplacian(kernel)))
    return Denoised(maps, curvature, np.sum(kernel**2), kernel, norm)


def _wiener(scan, weight, weights, shape):
    """Filter with the gain ``H / (H + noise)``, ``H`` the power spectrum of the image in units of the maps' own.

    The image has the structure of all maps without their noise: atomic columns pass at their lattice frequencies
    alone. It does not know the noise of the maps, so that the filter is linear in them.
    """
    from scipy.ndimage import gaussian_filter

    used = weight > 0
    total = np.tensordot(weights, scan.maps, 1)[used]
    noise = np.tensordot(weights**2, scan.variance, 1)[used].mean()
    signal = max(total.var() - noise, 0.01 * noise)
    window = np.outer(*(np.hanning(size + 2)[1:-1] for size in scan.haadf.shape)) * used
    level = (scan.haadf * window).sum() / window.sum()
    power = np.abs(np.fft.fft2((scan.haadf - level) * window)) ** 2
    power = gaussian_filter(power, 0.7, mode="wrap")
    power *= signal / power.mean()
    gain = power / (power + noise)
    gain[0, 0] = 1
    return _on_torus(np.fft.ifft2(gain).real, shape)


def _by_features(scan, weight, weights):
    """Regression of the maps on functions of the image around, coefficients from the other half of the tiles."""
    features = _features(scan, weight > 0)
    tile = _TILE * min(scan.haadf.shape)
    rows, columns = (np.arange(size) // max(int(tile), 1) for size in scan.haadf.shape)
    odd = (rows[:, None] + columns) % 2 == 1
    fields = np.zeros_like(scan.maps)
    for here in (odd, ~odd):
        used = features * np.sqrt(np.where(here, 0, weight))
        gram = np.tensordot(used, used, axes=((1, 2), (1, 2)))
        moments = np.tensordot(used, scan.maps * np.sqrt(weight), axes=((1, 2), (1, 2)))
        gram += 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram))
        fields += here * np.tensordot(np.linalg.solve(gram, moments).T, features, 1)
    return Denoised(fields, np.zeros(0), len(features) / fields[0].size)


def _features(scan, used):
    """Products, up to three, of the image smoothed at four scales without the pixel and its neighbours."""
    from itertools import combinations_with_replacement

    from scipy.ndimage import convolve, gaussian_filter

    seen = scan.haadf_valid.astype(np.float64)
    level = scan.haadf[used].mean()
    image = np.where(scan.haadf_valid, scan.haadf - level, 0) / scan.haadf[used].std()
    scales = [np.ones_like(image)]
    for sigma in _FEATURE_SIGMAS:
        near = _inner(sigma)
        smooth, norm = (gaussian_filter(f, sigma) - convolve(f, near) for f in (image, seen))
        scales.append(smooth / np.maximum(norm, 1e-3))
    features = [a * b for a, b in combinations_with_replacement(scales, 2)]
    features += [a * b * c for a, b, c in combinations_with_replacement(scales[1:4], 3)]
    return np.stack(features)


def _inner(sigma):
    from scipy.ndimage import gaussian_filter

    reach = int(5 * sigma) + 1
    return gaussian_filter(np.pad([[1.0]], reach), sigma)[reach - 1 : reach + 2, reach - 1 : reach + 2]


# ---- estimating equations -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EstimatingEquations:
    """Sums over the pixels of instrumental variables times data, at any blur.

    The instrumental variables are those of the offset, of the n weights and of the blur, ``fields`` (n + 2, ny, nx).
    """

    fields: np.ndarray
    ones: np.ndarray  # (n + 2,) sums of the instrumental variables
    target: np.ndarray  # (n + 2,) instrumental variables times image
    products: (
        np.ndarray
    )  # (n + 2, n, lags, lags) instrumental variables times maps at all lags, less the noise they share
    matrix_variance: np.ndarray  # (n, n) variances of the matrix from noise in both factors

    def at(self, blur):
        """Matrix (n + 2, n + 1) of the linear equations at a blur."""
        kernel = Torus.window(gaussian(self.products.shape[-2:], blur))
        return np.column_stack([self.ones, np.tensordot(self.products, kernel, 2)])

    def slope(self, blur):
        """Derivative of the matrix with respect to the square of the blur."""
        blur = max(blur, 0.5)  # below it, pixels hide it
        low, high = blur - 0.1, blur + 0.1
        return (self.at(high) - self.at(low)) / (high**2 - low**2)


def estimating_equations_of(scan, denoised, weight, weights):
    torus = scan.torus
    fields = np.concatenate([np.ones((1, *weight.shape)), denoised.maps, _along_blur(denoised, weights)]) * weight
    loud = weight * scan.variance
    return EstimatingEquations(
        fields=fields,
        ones=fields.sum(axis=(1, 2)),
        target=np.tensordot(fields, scan.haadf, 2),
        products=_products(scan, torus.transform(fields)) - _shared_noise(scan, denoised, weight, weights, torus),
        matrix_variance=denoised.power * np.tensordot(loud, loud, axes=((1, 2), (1, 2))),
    )


def _products(scan, fields_hat):
    """Sums over the pixels of every instrument times every map, at all lags up to the reach."""
    return np.stack([[scan.torus.correlate(field, each) for each in scan.maps_hat] for field in fields_hat])


def _shared_noise(scan, denoised, weight, weights, torus):
    """Mean product of the noise of instrument j at a pixel and of map i at every lag from it, summed over pixels."""
    n, lags = len(scan.maps), 2 * _RADIUS + 1
    shared = np.zeros((n + 2, n, lags, lags))
    if denoised.kernel is not None:
        reach = torus.correlate(torus.transform(weight / denoised.norm), scan.variance_hat)
        shared[np.arange(n) + 1, np.arange(n)] = torus.window(denoised.kernel) * reach
        shared[-1] = weights[:, None, None] * torus.window(_laplacian(denoised.kernel)) * reach
    return shared


def _along_blur(denoised, weights):
    """Derivative of the image of the denoised maps along the square of a blur, (1, ny, nx)."""
    if denoised.kernel is not None:
        return np.tensordot(weights, denoised.curvature, 1)[None]
    from scipy.ndimage import laplace

    return 0.5 * laplace(np.tensordot(weights, denoised.maps, 1))[None]


def information_of(moments, weight):
    """Fisher information of all parameters, were the denoised maps true."""
    fields = moments.fields.reshape(len(moments.fields), -1)
    used = weight.ravel() > 0
    return (fields[:, used] / weight.ravel()[used]) @ fields[:, used].T


def block_scores(scan, denoised, weight, moments, start, estimate):
    """Estimating equations summed over blocks of the image, less their mean, (n + 2, number of blocks)."""
    torus = scan.torus
    blur = gaussian(torus.shape, estimate.blur)
    blurred = torus.convolve(scan.maps_hat, blur)
    residual = scan.haadf - estimate.offset - np.tensordot(estimate.weights, blurred, 1)
    scores = moments.fields * residual
    if denoised.kernel is not None:
        noise, share = scan.variance_hat, weight / denoised.norm
        own, other = (share * torus.convolve(noise, k * blur) for k in (denoised.kernel, _laplacian(denoised.kernel)))
        scores[1:-1] += estimate.weights[:, None, None] * own
        scores[-1] += np.tensordot(start * estimate.weights, other, 1)
    blocks = np.stack([_block_sums(score) for score in scores])
    return blocks - blocks.mean(axis=1, keepdims=True)


def _block_sums(image, number=8):
    rows, columns = (np.arange(min(number, size)) * size // min(number, size) for size in image.shape)
    return np.add.reduceat(np.add.reduceat(image, rows, axis=0), columns, axis=1).ravel()
