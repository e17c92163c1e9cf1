"""Estimating equations of the linear HAADF forward model, with instrumental variables from noisy maps.

The noise that an instrumental variable shares with the maps is known, and subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import combinations_with_replacement

import numpy as np

from hyperspy_fusion.fusion.haadf.estimates import UndeterminedModelError
from hyperspy_fusion.fusion.terms.haadf_model import haadf_noise

# Larger images are binned to this size: the fit needs their counts, not their pixels.
_MAX_SIZE = 512
# Reach of the kernel of the largest blur, in pixels.
_RADIUS = 16
_LAGS = np.arange(-_RADIUS, _RADIUS + 1)
# Misfit taken for granted, as a fraction of the range of the image: no forward model is better than that.
_DISCREPANCY = 0.01
# Standard deviations in pixels of the Gaussians that smooth the maps for the instrumental variables.
_INSTRUMENT_SIGMAS = (1.2, 5.0)
# And of those that smooth the image for the regression of the maps on it; its tiles as a fraction of the image.
_FEATURE_SIGMAS = (1.0, 2.0, 4.0, 8.0)
_TILE = 1 / 8
# Blocks of the image along either axis, over which scores are summed.
_BLOCKS = 8


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
    signed: bool = False

    @cached_property
    def torus(self):
        from scipy.fft import next_fast_len

        # room for the smoothing and for all lags of the blur
        return Torus(self.haadf.shape, tuple(next_fast_len(size + 4 * _RADIUS, real=True) for size in self.haadf.shape))

    @cached_property
    def maps_hat(self):
        return self.torus.transform(self.maps)

    @cached_property
    def variance_hat(self):
        return self.torus.transform(self.variance)

    @cached_property
    def masks(self):
        """(n, ny, nx) or, where all maps have the same valid pixels, (1, ny, nx)."""
        return self.valid[:1] if (self.valid == self.valid[0]).all() else self.valid

    def weighted(self, weights, transforms):
        """Transforms (n, ...) times weights, to be summed; their sum (1, ...) where all maps have one mask."""
        if len(self.masks) == 1:
            return np.tensordot(weights, transforms, 1)[None]
        return weights[:, None, None] * transforms

    @cached_property
    def level(self):
        """(ny, nx) the smoothed image without the pixel itself."""
        from scipy.ndimage import gaussian_filter

        seen = self.haadf_valid.astype(np.float64)
        own = gaussian_filter(np.pad([[1.0]], 6), 1.5)[6, 6]
        around = gaussian_filter(seen, 1.5) - own * seen
        return (gaussian_filter(self.haadf * seen, 1.5) - own * self.haadf * seen) / np.maximum(around, 1e-6)

    @cached_property
    def surroundings(self):
        """Pairs of (ny, nx): the image and its valid pixels, smoothed without the pixel and its neighbours."""
        from scipy.ndimage import convolve, gaussian_filter

        pairs, seen = [], self.haadf_valid.astype(np.float64)
        for sigma in _FEATURE_SIGMAS:
            reach = int(5 * sigma) + 1
            near = gaussian_filter(np.pad([[1.0]], reach), sigma)[reach - 1 : reach + 2, reach - 1 : reach + 2]
            pairs.append([gaussian_filter(f, sigma) - convolve(f, near) for f in (self.haadf * seen, seen)])
        return pairs


def correlation_data(maps, haadf, variance, shape_weights=None, valid=None, haadf_valid=None, signed=False):
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
    shape = np.ones(len(maps)) if shape_weights is None else np.asarray(shape_weights, dtype=np.float64)
    if shape.shape != (len(maps),) or not np.all(shape > 0):
        raise ValueError(f"shape_weights is {shape}: it needs {len(maps)} numbers above 0, one per map.")
    binning = -(-max(haadf.shape) // _MAX_SIZE)
    maps, variance = np.where(valid, maps, 0), np.where(valid, variance, 0)
    arrays = maps, variance, np.where(haadf_valid, haadf, 0) / binning**2, valid, haadf_valid
    maps, variance, haadf, valid, haadf_valid = (binned(np.asarray(array), binning) for array in arrays)
    means = maps.sum(axis=(1, 2)) / np.maximum(valid.sum(axis=(1, 2)), 1)
    maps = np.where(valid, maps - means[:, None, None], 0)
    variance = np.where(valid, variance, 0)
    return CorrelationData(maps, means, variance, valid, haadf, haadf_valid, sigma / binning, shape, binning, signed)


def _per_element(variance):
    variance = np.asarray(variance, dtype=np.float64)
    return variance[:, None, None] if variance.ndim == 1 else variance


def binned(array: np.ndarray, factor: int) -> np.ndarray:
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
    usable = _usable(scan, blur)
    if weights is None:
        return usable / np.var(scan.haadf[usable])
    low, high = np.percentile(scan.haadf[usable], (1, 99))
    smooth = _by_level(scan.level, np.tensordot(weights**2, scan.variance, 1), usable)
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
        raise UndeterminedModelError(
            f"The maps and the HAADF image share {usable.sum()} valid pixels, fewer than 8 per unknown: give numbers "
            "for haadf_coefficients instead of fitting them."
        )
    return usable


# ---- convolutions --------------------------------------------------------------------------------


def gaussian(shape, sigma):
    """Kernels (..., ny, nx) of sum 1 for standard deviations (...), with their centre at [0, 0] of a torus."""
    sigma = np.maximum(sigma, 1e-3)[..., None]
    lags = (np.minimum(np.arange(size), size - np.arange(size)) for size in shape)
    rows, columns = (np.exp(-0.5 * (lag / sigma) ** 2) for lag in lags)
    rows, columns = (side / side.sum(axis=-1, keepdims=True) for side in (rows, columns))
    return rows[..., :, None] * columns[..., None, :]


def _laplacian(kernel):
    """Half the second difference: the derivative of a blurred image along the square of its blur."""
    return 0.5 * (sum(np.roll(kernel, step, axis) for step in (1, -1) for axis in (0, 1)) - 4 * kernel)


class Torus:
    """Convolutions and short-range correlations of (..., ny, nx) fields, by zero-padded transforms."""

    def __init__(self, size, shape):
        self.size, self.shape = size, shape
        # half the second difference: the derivative of a blurred image along the square of its blur
        rows, columns = (np.cos(2 * np.pi * np.fft.fftfreq(n)) - 1 for n in shape)
        self.laplacian = np.add.outer(rows, columns[: shape[1] // 2 + 1])

    def transform(self, fields):
        from scipy.fft import rfft2

        return np.asarray(rfft2(fields, self.shape))

    def convolve(self, transformed, filter):
        """Fields of these transforms after a filter of this transform."""
        from scipy.fft import irfft2

        ny, nx = self.size
        return np.asarray(irfft2(transformed * filter, self.shape))[..., :ny, :nx]

    def correlate(self, first, second):
        """``sum_q first(q) second(q + d)`` of two transforms, for all lags d up to the reach."""
        from scipy.fft import ifft, irfft

        rows = np.asarray(ifft(np.conj(first) * second, axis=-2))[..., _LAGS, :]
        return np.asarray(irfft(rows, self.shape[1], axis=-1))[..., _LAGS]

    @staticmethod
    def window(kernel):
        """A kernel at all lags up to the reach."""
        return kernel[..., _LAGS[:, None], _LAGS]


# ---- instrumental variables ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Denoised:
    """Denoised maps to make instrumental variables of, (n, ny, nx).

    ``kernel`` is the filter that made them, whose noise they share with the maps, ``filter`` its transform, and
    ``norm`` the part of it on valid pixels, (n or 1, ny, nx); None for fields that do not know the noise of their
    pixel. ``power`` is the sum of its squares.
    """

    maps: np.ndarray
    power: float
    kernel: np.ndarray | None = None
    filter: np.ndarray | None = None
    norm: np.ndarray | None = None


def denoisers(scan):
    """Functions of pixel weights and coefficients that denoise the maps, all linear in these.

    Which one serves best depends on the structure.
    """
    sigmas = [sigma for sigma in _INSTRUMENT_SIGMAS if 4 * sigma < min(scan.haadf.shape)]
    gaussians = [cache(partial(_by_kernel, scan, gaussian(scan.torus.shape, sigma))) for sigma in sigmas]
    return [
        partial(_by_features, scan),
        lambda weight, weights: _by_kernel(scan, _wiener(scan, weight, weights)),
        *(lambda weight, weights, smooth=smooth: smooth() for smooth in gaussians),
    ]


def _by_kernel(scan, kernel):
    torus, filter = scan.torus, scan.torus.transform(kernel)
    norm = torus.convolve(torus.transform(scan.masks.astype(np.float64)), filter)
    norm = np.where(np.abs(norm) > 0.05, norm, np.inf)
    return Denoised(torus.convolve(scan.maps_hat, filter) / norm, np.sum(kernel**2), kernel, filter, norm)


def _wiener(scan, weight, weights):
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
    kernel = np.fft.ifft2(gain).real
    # with its centre at [0, 0] of the larger torus
    larger = np.zeros(scan.torus.shape)
    larger[np.ix_(*(np.fft.fftfreq(size, 1 / size).astype(int) for size in kernel.shape))] = kernel
    return larger


def _by_features(scan, weight, weights):
    """Regression of the maps on functions of the image around, coefficients from the other half of the tiles."""
    tile = _TILE * min(scan.haadf.shape)
    rows, columns = (np.arange(size) // max(int(tile), 1) for size in scan.haadf.shape)
    is_odd = ((rows[:, None] + columns) % 2 == 1).ravel()
    pixels, n_odd = np.concatenate([np.flatnonzero(is_odd), np.flatnonzero(~is_odd)]), np.count_nonzero(is_odd)
    features = _features(scan, weight > 0, pixels)
    maps, weight = scan.maps.reshape(len(scan.maps), -1).take(pixels, axis=1), weight.take(pixels)
    halves, fields = (slice(n_odd), slice(n_odd, None)), np.zeros_like(maps)
    for here, elsewhere in (halves, halves[::-1]):
        weighted = features[:, elsewhere] * weight[elsewhere]
        gram, moments = weighted @ features[:, elsewhere].T, weighted @ maps[:, elsewhere].T
        gram += 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram))
        fields[:, pixels[here]] = np.linalg.solve(gram, moments).T @ features[:, here]
    return Denoised(fields.reshape(scan.maps.shape), len(features) / weight.size)


def _features(scan, used, pixels):
    """(number, pixels) products, up to three, of the image smoothed at four scales without pixel and neighbours."""
    level, scale = scan.haadf[used].mean(), scan.haadf[used].std()
    smooth = [(image - level * seen) / (scale * np.maximum(seen, 1e-3)) for image, seen in scan.surroundings]
    scales = [np.ones(len(pixels)), *(image.take(pixels) for image in smooth)]
    pairs = list(combinations_with_replacement(scales, 2))
    triples = list(combinations_with_replacement(scales[1:4], 3))
    features = np.empty((len(pairs) + len(triples), len(pixels)))
    for feature, (a, b, *c) in zip(features, pairs + triples, strict=True):
        np.multiply(a, b, out=feature)
        if c:
            feature *= c[0]
    return features


# ---- estimating equations -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EstimatingEquations:
    """Sums over the pixels of instrumental variables times data, at any blur.

    The instrumental variables are those of the offset, of the n weights and of the blur.

    Attributes
    ----------
    scan, denoised, weight, weights
        What they were made from: data, denoised maps, pixel weights, and HAADF coefficients.
    fields
        (n + 2, ny, nx) instrumental variables times pixel weights.
    target
        (n + 2,) instrumental variables times image.
    products
        (n + 2, n, lags, lags) instrumental variables times maps at all lags, less the noise that they share.
    """

    scan: CorrelationData
    denoised: Denoised
    weight: np.ndarray
    weights: np.ndarray
    fields: np.ndarray
    target: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, scan, denoise, weight, weights):
        """With one of the :func:`denoisers`."""
        denoised = denoise(weight, weights)
        along_blur = _along_blur(scan, denoised, weights)[None]
        fields = np.concatenate([np.ones((1, *weight.shape)), denoised.maps, along_blur]) * weight
        products = np.stack([scan.torus.correlate(field, scan.maps_hat) for field in scan.torus.transform(fields)])
        if denoised.kernel is not None:
            # mean product of the noise of an instrument at a pixel and of a map at every lag, summed over pixels
            n, torus = len(scan.maps), scan.torus
            reach = torus.correlate(torus.transform(weight / denoised.norm), scan.variance_hat)
            products[np.arange(n) + 1, np.arange(n)] -= torus.window(denoised.kernel) * reach
            products[-1] -= weights[:, None, None] * torus.window(_laplacian(denoised.kernel)) * reach
        return cls(scan, denoised, weight, weights, fields, np.tensordot(fields, scan.haadf, 2), products)

    @cached_property
    def matrix_variance(self):
        """(n, n) variances of the matrix from noise in both factors."""
        loud = self.weight * self.scan.variance
        return self.denoised.power * np.tensordot(loud, loud, axes=((1, 2), (1, 2)))

    def at(self, blurs):
        """Matrices (..., n + 2, n + 1) of the linear equations at blurs (...)."""
        kernels = Torus.window(gaussian(self.products.shape[-2:], blurs))
        of_maps = np.tensordot(kernels, self.products, axes=((-2, -1), (-2, -1)))
        ones = self.fields.sum(axis=(1, 2))[:, None]
        return np.concatenate([np.broadcast_to(ones, (*of_maps.shape[:-1], 1)), of_maps], axis=-1)

    def slope(self, blur):
        """Derivative of the matrix with respect to the square of the blur."""
        blur = max(blur, 0.5)  # below it, pixels hide it
        low, high = blur - 0.1, blur + 0.1
        return (self.at(high) - self.at(low)) / (high**2 - low**2)

    def information(self):
        """Fisher information of all parameters, were the denoised maps true."""
        instruments = np.divide(self.fields, self.weight, out=np.zeros_like(self.fields), where=self.weight > 0)
        return instruments.reshape(len(instruments), -1) @ self.fields.reshape(len(instruments), -1).T

    def block_scores(self, estimate):
        """The equations summed over blocks of the image, less their mean, (n + 2, number of blocks)."""
        scan, torus, denoised = self.scan, self.scan.torus, self.denoised
        blur = gaussian(torus.shape, estimate.blur)
        blurred = torus.convolve(np.tensordot(estimate.weights, scan.maps_hat, 1), torus.transform(blur))
        scores = self.fields * (scan.haadf - estimate.offset - blurred)
        if denoised.kernel is not None:
            share = self.weight / denoised.norm
            own, along_blur = (torus.transform(k * blur) for k in (denoised.kernel, _laplacian(denoised.kernel)))
            both = scan.weighted(self.weights * estimate.weights, scan.variance_hat)
            scores[1:-1] += estimate.weights[:, None, None] * share * torus.convolve(scan.variance_hat, own)
            scores[-1] += np.sum(share * torus.convolve(both, along_blur), axis=0)
        rows, columns = (np.arange(min(_BLOCKS, size)) * size // min(_BLOCKS, size) for size in scan.haadf.shape)
        blocks = np.add.reduceat(np.add.reduceat(scores, rows, axis=1), columns, axis=2).reshape(len(scores), -1)
        return blocks - blocks.mean(axis=1, keepdims=True)


def _along_blur(scan, denoised, weights):
    """(ny, nx) derivative of the image of the denoised maps along the square of a blur."""
    if denoised.kernel is None:
        from scipy.ndimage import laplace

        return 0.5 * laplace(np.tensordot(weights, denoised.maps, 1))
    along_blur = denoised.filter * scan.torus.laplacian
    curvature = scan.torus.convolve(scan.weighted(weights, scan.maps_hat), along_blur)
    return np.sum(curvature / denoised.norm, axis=0)
