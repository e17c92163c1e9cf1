"""Weights and offset of the linear elastic law from noisy maps and a blurred image, without attenuation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from hyperspy_fusion.fusion.elastic import LinearLaw, haadf_noise

# Larger images are binned to this size: the fit needs their counts, not their pixels.
_MAX_SIZE = 512
# Largest blur looked for, and reach of its kernel, in pixels.
_MAX_BLUR = 4.0
_REACH = 16
# Standard deviation of the half-normal prior on blur**2, in px**2. It decides where the data do not.
_BLUR_PRIOR = 4.0
# Misfit taken for granted, as a fraction of the range of the image: no law is better than that.
_MISFIT = 0.01
# Standard deviations in pixels of the Gaussians that smooth the maps for the instruments.
_INSTRUMENT_SIGMAS = (1.2, 5.0)
# And of those that smooth the image for the regression of the maps on it; its tiles as a fraction of the image.
_FEATURE_SIGMAS = (1.0, 2.0, 4.0, 8.0)
_TILE = 1 / 8


@dataclass(frozen=True)
class LinearFit:
    """A linear law found in the data.

    Attributes
    ----------
    weights, standard_errors
        (n,) HAADF intensity per unit of each map, >= 0, and the standard deviation of its error.
    determined
        (n,) bool: False where the maps do not fix the weight (a map that is a combination of others and a
        constant, or one of noise): it was filled in from the shape of the weights.
    offset, offset_error
        HAADF intensity where there is nothing.
    blur, blur_error
        Standard deviation in pixels of the Gaussian between maps and HAADF image; the error is 0 for a given blur.
    sigma
        Standard deviation of the noise of the HAADF image.
    instruments
        Which of the ways to make instruments was taken.
    """

    weights: np.ndarray
    standard_errors: np.ndarray
    determined: tuple
    offset: float
    offset_error: float
    blur: float
    blur_error: float
    sigma: float
    instruments: int = 0

    @property
    def law(self):
        """The :class:`LinearLaw`."""
        return LinearLaw(self.weights, self.offset, self.blur)


def fit_linear_law(
    maps,
    haadf,
    noise_variance,
    *,
    weights="fit",
    shape_weights=None,
    blur=None,
    valid=None,
    haadf_valid=None,
):
    """Fit ``haadf = blurred(offset + sum_i w_i x_i)`` to noisy maps ``b = x + noise``, without attenuation.

    Least squares of the image on noisy maps takes their noise for contrast, and finds weights too small (errors in
    variables). Here the residual is multiplied by instruments ``u_j``, denoised maps over the variance ``v`` of the
    residual, and the moments ``<u_j, haadf - offset - sum_i w_i G b_i> = 0`` are solved. Filters ``K`` share the noise
    of their pixel with the map, by a mean that is known and subtracted,
    ``E <V K n_j, G n_j> = sum_pq V(q) K(q-p) G(q-p) variance_j(p)`` (moment correction, Fuller, Measurement Error
    Models, 1987); a regression of the maps on the image around a pixel, its coefficients from other tiles, shares
    none. ``v`` is a function of the image alone. Of a few instruments those with the smallest standard errors are
    taken. The blur ``G`` has a moment of its own, with the derivative of the image along it as instrument. Standard
    errors are of the sandwich form, over 8 x 8 blocks of the image, so that what the law does not explain counts,
    and never below the inverse Fisher information.

    Parameters
    ----------
    maps
        (n, ny, nx) in any units. Not denoised: smoothed noise is not white.
    haadf
        (ny, nx) in any units.
    noise_variance
        Of the noise of the maps, white, in their squared units: (n,) or (n, ny, nx). For counts the map itself
        times its quantum.
    weights
        ``"fit"``: all weights. ``"z_gamma"``: the common factor of ``shape_weights`` alone.
    shape_weights
        (n,) ratios of the weights, > 0, e.g. of :func:`z_weights`. With ``"fit"``, what decides where the data do
        not. All equal by default.
    blur
        Standard deviation in pixels of the blur where it is known, up to 4; found by default.
    valid
        (ny, nx) or (n, ny, nx) bool, pixels of the maps to use; not finite ones are left out.
    haadf_valid
        (ny, nx) bool, pixels of the image to use; leave out saturated ones.

    Returns
    -------
    LinearFit

    Raises
    ------
    ValueError
        For another ``weights``, arrays that do not fit together, a constant image, or too few valid pixels.
    UndeterminedLawError
        A ValueError, where image and maps have nothing in common.

    Notes
    -----
    Within three standard deviations of the blur from the border and from invalid pixels of the maps the image is not
    used. No estimate is better than the inverse of ``sum_p (1, x)(1, x)^T / v`` allows,
    ``v = sigma**2 + sum_i w_i**2 variance_i``: a light element beside heavy ones needs many counts. Where all
    structure is of one size, as atomic columns are, blur and weights are hard to tell apart: give ``blur`` if known.
    """
    if weights not in ("fit", "z_gamma"):
        raise ValueError(f"weights is {weights!r}: it must be 'fit' or 'z_gamma'.")
    if blur is not None and not 0 <= blur <= _MAX_BLUR:
        raise ValueError(f"blur is {blur!r}: it must be 0 to {_MAX_BLUR:g} pixels, or None to find it.")
    scan = _scan(maps, haadf, noise_variance, shape_weights, valid, haadf_valid)
    blur = None if blur is None else blur / scan.binning
    try:
        fit = _fit(scan, blur) if weights == "fit" else _spread(_fit(_summed(scan), blur), scan.shape)
    except np.linalg.LinAlgError as error:
        raise UndeterminedLawError(
            "The HAADF image and the maps have too little in common to tell what an atom adds to the image: pass "
            "lambda_haadf=0, or weights."
        ) from error
    return _in_pixels(fit, scan.binning)


def refit_linear_law(
    fit, maps, haadf, noise_variance, *, weights="fit", shape_weights=None, valid=None, haadf_valid=None
):
    """The law of data that were drawn from a law: one round from that law, by the instruments that found it.

    A tenth of the work of :func:`fit_linear_law`, whose parameters these are, and as good where the law is nearly
    right. What it differs by from the law of ``fit`` is an error of :func:`fit_linear_law`, and goes with the noise.

    Parameters
    ----------
    fit
        The :class:`LinearFit` that the data were drawn from.

    Returns
    -------
    LinearLaw
        That of ``fit`` where the data say nothing of it.
    """
    scan = _scan(maps, haadf, noise_variance, shape_weights, valid, haadf_valid)
    start, shape = fit.weights / scan.binning**2, scan.shape
    if weights == "z_gamma":
        scan, start = _summed(scan), start[:1] / shape[:1]
    try:
        # data of nothing divide by nothing
        with np.errstate(divide="ignore", invalid="ignore"):
            weight = _pixel_weight(scan, start, fit.blur / scan.binning)
            found = _estimated(scan, _denoisers(scan)[fit.instruments], weight, start, None)[0]
    except np.linalg.LinAlgError:
        return fit.law
    offset = float(found.offset - found.weights @ scan.means)
    weights = found.weights * (shape if weights == "z_gamma" else 1) * scan.binning**2
    if not np.isfinite([offset, *weights]).all():
        return fit.law
    return LinearLaw(weights, offset, float(found.blur) * scan.binning)


class UndeterminedLawError(ValueError):
    """Image and maps have nothing in common that a law could be fitted to."""


def _spread(fit, shape):
    """The fit of the gain alone, as weights of all elements."""
    weights, errors = fit.weights * shape, fit.standard_errors * shape
    return replace(fit, weights=weights, standard_errors=errors, determined=fit.determined * len(shape))


@dataclass(frozen=True)
class _Scan:
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
        return _Torus(self.haadf.shape, _padded(self))

    @cached_property
    def maps_hat(self):
        return self.torus.transform(self.maps)

    @cached_property
    def variance_hat(self):
        return self.torus.transform(self.variance)


def _scan(maps, haadf, variance, shape, valid, haadf_valid):
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
        raise ValueError("The HAADF image is constant: it says nothing of the weights, pass them instead.")
    shape = np.ones(len(maps)) if shape is None else np.asarray(shape, dtype=np.float64)
    if shape.shape != (len(maps),) or not np.all(shape > 0):
        raise ValueError(f"shape_weights is {shape}: it needs {len(maps)} numbers above 0, one per map.")
    binning = -(-max(haadf.shape) // _MAX_SIZE)
    maps, variance = np.where(valid, maps, 0), np.where(valid, variance, 0)
    arrays = maps, variance, np.where(haadf_valid, haadf, 0) / binning**2, valid, haadf_valid
    maps, variance, haadf, valid, haadf_valid = (_binned(array, binning) for array in arrays)
    means = maps.sum(axis=(1, 2)) / np.maximum(valid.sum(axis=(1, 2)), 1)
    maps = np.where(valid, maps - means[:, None, None], 0)
    variance = np.where(valid, variance, 0)
    return _Scan(maps, means, variance, valid, haadf, haadf_valid, sigma / binning, shape, binning)


def _per_element(variance):
    variance = np.asarray(variance, dtype=np.float64)
    return variance[:, None, None] if variance.ndim == 1 else variance


def _binned(array, factor):
    """Sums over squares (of bool: whether all are True), the remainder at the far edges left out."""
    if factor == 1:
        return array
    ny, nx = (size // factor for size in array.shape[-2:])
    cropped = array[..., : ny * factor, : nx * factor]
    squares = cropped.reshape(*array.shape[:-2], ny, factor, nx, factor)
    return squares.all(axis=(-3, -1)) if array.dtype == bool else squares.sum(axis=(-3, -1))


def _summed(scan):
    """The scan of one map, the sum by the shape of the weights."""
    total = np.tensordot(scan.shape, scan.maps, 1)[None]
    variance = np.tensordot(scan.shape**2, scan.variance, 1)[None]
    valid = scan.valid.all(axis=0, keepdims=True)
    total, variance = np.where(valid, total, 0), np.where(valid, variance, 0)
    return replace(
        scan, maps=total, means=np.array([scan.shape @ scan.means]), variance=variance, valid=valid, shape=np.ones(1)
    )


def _in_pixels(fit, binning):
    """From binned pixels, whose maps are sums and whose image is a mean, to those of the data."""
    return replace(
        fit,
        weights=fit.weights * binning**2,
        standard_errors=fit.standard_errors * binning**2,
        blur=fit.blur * binning,
        blur_error=fit.blur_error * binning,
        sigma=fit.sigma * binning,
    )


# ---- the estimator -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Estimate:
    """Parameters (offset for maps less their mean, weights, blur), their covariance with blur**2 last, and how."""

    offset: float
    weights: np.ndarray
    blur: float
    scale: np.ndarray
    covariance: np.ndarray = None
    determined: tuple = ()


def _fit(scan, blur):
    # in the units of the data: the prior of the blur is weighed against its moment
    scale = scan.shape * scan.haadf[scan.haadf_valid].std() / max(np.tensordot(scan.shape, scan.maps, 1).std(), 1e-30)
    estimate = _Estimate(0.0, scale, 1.0 if blur is None else float(blur), scale)
    weight = _pixel_weight(scan, None, estimate.blur)
    ways = _denoisers(scan)
    # weight of the pixels, instruments and parameters need each other: two rounds to settle, one with the best
    order = range(len(ways))
    for number in (len(ways), len(ways), 1):
        tried = {k: _with_errors(scan, ways[k], weight, estimate, blur) for k in order[:number]}
        order = sorted(tried, key=lambda k: _relative_error(tried[k]))
        estimate = tried[order[0]]
        weight = _pixel_weight(scan, estimate.weights, estimate.blur)
    return replace(_report(scan, estimate, blur), instruments=order[0])


def _relative_error(estimate):
    """Mean logarithm of the variances of the relative weights, by which instruments are chosen."""
    variances = np.diag(estimate.covariance)[1 : 1 + len(estimate.weights)]
    return np.mean(np.log(variances / estimate.scale**2))


def _report(scan, estimate, blur):
    n = len(scan.maps)
    errors = np.sqrt(np.diag(estimate.covariance))
    # the offset of the maps as they are: take back the means
    back = np.concatenate([[1], -scan.means])
    offset_error = np.sqrt(back @ estimate.covariance[: n + 1, : n + 1] @ back)
    s = estimate.blur
    blur_error = 0.0 if blur is not None else errors[-1] / max(2 * s, np.sqrt(errors[-1]))
    return LinearFit(
        weights=estimate.weights,
        standard_errors=errors[1 : n + 1],
        determined=estimate.determined,
        offset=float(estimate.offset - estimate.weights @ scan.means),
        offset_error=float(offset_error),
        blur=float(s),
        blur_error=float(blur_error),
        sigma=scan.sigma,
    )


def _pixel_weight(scan, weights, blur):
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
    return usable / (smooth + scan.sigma**2 + (_MISFIT * (high - low)) ** 2)


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


def _padded(scan):
    """Shape of the transforms: room for the smoothing and for all lags of the blur."""
    from scipy.fft import next_fast_len

    return tuple(next_fast_len(size + 4 * _REACH, real=True) for size in scan.haadf.shape)


def _gaussian(shape, sigma):
    """Kernel of sum 1 with its centre at [0, 0] of a torus of ``shape``."""
    return np.outer(*_gaussian_sides(shape, sigma))


def _gaussian_sides(shape, sigma):
    lags = (np.minimum(np.arange(size), size - np.arange(size)) for size in shape)
    sides = [np.exp(-0.5 * (lag / max(sigma, 1e-3)) ** 2) for lag in lags]
    return [side / side.sum() for side in sides]


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


def _on_torus(kernel, shape):
    """A kernel centred at [0, 0] moved to a larger torus."""
    lags = (np.fft.fftfreq(size, 1 / size).astype(int) for size in kernel.shape)
    larger = np.zeros(shape)
    larger[np.ix_(*lags)] = kernel
    return larger


def _laplacian(kernel):
    """Half the second difference: the derivative of a blurred image along the square of its blur."""
    return 0.5 * (sum(np.roll(kernel, step, axis) for step in (1, -1) for axis in (0, 1)) - 4 * kernel)


class _Torus:
    """Convolutions and short-range correlations of (..., ny, nx) fields, by zero-padded transforms."""

    def __init__(self, size, shape):
        self.size, self.shape = size, shape

    def transform(self, fields):
        from scipy.fft import rfft2

        return rfft2(fields, self.shape)

    def convolve(self, transformed, kernel):
        from scipy.fft import irfft2

        ny, nx = self.size
        return irfft2(transformed * self.transform(kernel), self.shape)[..., :ny, :nx]

    def correlate(self, first, second):
        """``sum_q first(q) second(q + d)`` of two transforms, for all lags d up to the reach."""
        from scipy.fft import irfft2

        return self.window(irfft2(np.conj(first) * second, self.shape))

    def both_halves(self):
        """Factors that make a sum over the half spectrum that of a product over all pixels."""
        columns = np.full(self.shape[1] // 2 + 1, 2.0)
        columns[0] = 1
        if self.shape[1] % 2 == 0:
            columns[-1] = 1
        return columns / np.prod(self.shape)

    @staticmethod
    def window(kernel):
        lags = np.arange(-_REACH, _REACH + 1)
        return kernel[..., lags[:, None], lags]


@dataclass(frozen=True)
class _Moments:
    """Sums over the pixels of instruments times data, at any blur.

    The instruments are those of the offset, of the n weights and of the blur, ``fields`` (n + 2, ny, nx).
    """

    fields: np.ndarray
    ones: np.ndarray  # (n + 2,) sums of the instruments
    target: np.ndarray  # (n + 2,) instruments times image
    spectra: np.ndarray  # (n + 2, frequencies) conjugate, of the instruments, weighted for the half left out
    data: np.ndarray  # (n, frequencies) of the maps
    shared: np.ndarray  # (n + 2, n, lags, lags) mean products of the noise of instruments and maps
    spread: np.ndarray  # (n, n) variances of the matrix from noise in both factors
    shape: tuple

    def at(self, blur):
        """Matrix (n + 2, n + 1) of the linear equations at a blur."""
        rows, columns = _gaussian_sides(self.shape, blur)
        gain = np.outer(np.fft.fft(rows).real, np.fft.rfft(columns).real).ravel()
        products = ((self.spectra * gain) @ self.data.T).real
        window = _Torus.window(_gaussian((2 * _REACH + 1,) * 2, blur))
        return np.column_stack([self.ones, products - np.tensordot(self.shared, window, 2)])


@dataclass(frozen=True)
class _Denoised:
    """Denoised maps to make instruments of, (n, ny, nx), and their derivative along the square of a blur.

    ``kernel`` is the filter that made them, whose noise they share with the maps, ``norm`` the part of it on valid
    pixels; None for fields that do not know the noise of their pixel. ``power`` is the sum of its squares.
    """

    maps: np.ndarray
    curvature: np.ndarray
    power: float
    kernel: np.ndarray = None
    norm: np.ndarray = None


def _denoisers(scan):
    """Ways to denoise the maps, all linear in them: which one serves best depends on the structure."""
    sigmas = [sigma for sigma in _INSTRUMENT_SIGMAS if 4 * sigma < min(scan.haadf.shape)]
    return [_by_features, _by_wiener, *(partial(_by_gaussian, sigma=sigma) for sigma in sigmas)]


def _by_gaussian(scan, weight, weights, sigma):
    return _by_kernel(scan, _gaussian(scan.torus.shape, sigma))


def _by_wiener(scan, weight, weights):
    return _by_kernel(scan, _wiener(scan, weight, weights, scan.torus.shape))


def _by_kernel(scan, kernel):
    torus, data = scan.torus, scan.maps_hat
    norm = torus.convolve(torus.transform(scan.valid.astype(np.float64)), kernel)
    norm = np.where(np.abs(norm) > 0.05, norm, np.inf)
    maps, curvature = (torus.convolve(data, k) / norm for k in (kernel, _laplacian(kernel)))
    return _Denoised(maps, curvature, np.sum(kernel**2), kernel, norm)


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
    return _Denoised(fields, np.zeros(0), len(features) / fields[0].size)


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


def _moments(scan, denoised, weight, weights):
    torus = scan.torus
    fields = np.concatenate([np.ones((1, *weight.shape)), denoised.maps, _along_blur(denoised, weights)]) * weight
    loud = weight * scan.variance
    return _Moments(
        fields=fields,
        ones=fields.sum(axis=(1, 2)),
        target=np.tensordot(fields, scan.haadf, 2),
        spectra=(np.conj(torus.transform(fields)) * torus.both_halves()).reshape(len(fields), -1),
        data=scan.maps_hat.reshape(len(scan.maps), -1),
        shared=_shared_noise(scan, denoised, weight, weights, torus),
        spread=denoised.power * np.tensordot(loud, loud, axes=((1, 2), (1, 2))),
        shape=torus.shape,
    )


def _shared_noise(scan, denoised, weight, weights, torus):
    """Mean product of the noise of instrument j at a pixel and of map i at every lag from it, summed over pixels."""
    n, lags = len(scan.maps), 2 * _REACH + 1
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


def _best_blur(moments, shape):
    """Where the moment of the blur, less the slope of its prior, comes down through zero.

    It is the slope of a log-likelihood along blur**2: of several zeros the one under the largest integral counts.
    """
    blurs = np.linspace(0, _MAX_BLUR, 21)
    squares = blurs**2
    slopes = np.array([_blur_slope(moments, shape, blur) for blur in blurs]) - squares / _BLUR_PRIOR**2
    rises = np.concatenate([[0], np.cumsum((slopes[1:] + slopes[:-1]) / 2 * np.diff(squares))])
    k = int(np.argmax(rises))
    for left in (k - 1, k):
        if 0 <= left < len(blurs) - 1 and slopes[left] > 0 >= slopes[left + 1]:
            part = slopes[left] / (slopes[left] - slopes[left + 1])
            return float(np.sqrt(squares[left] + part * (squares[left + 1] - squares[left])))
    return float(blurs[k])


def _blur_slope(moments, shape, blur):
    matrix = moments.at(blur)
    estimate, _ = _solve(matrix, moments.target, moments.spread, shape, blur)
    return moments.target[-1] - matrix[-1] @ np.concatenate([[estimate.offset], estimate.weights])


def _solve(matrix, target, spread, shape, blur):
    """Non-negative weights: elements whose weight comes out negative are left out, the lowest first.

    Returns the estimate and, for all elements, the directions (n, k) of the weights that the data determine and
    those (n, n - k) that they do not.
    """
    n = len(shape)
    active, first = np.arange(n), None
    while True:
        rows = np.concatenate([[0], active + 1])
        part = matrix[np.ix_(rows, rows)]
        found, directions = _solve_free(part, target[rows], spread[np.ix_(active, active)], shape[active])
        first = directions if first is None else first
        if not np.any(found < 0):
            break
        active = np.delete(active, np.argmin(found / shape[active]))
    weights = np.zeros(n)
    weights[active] = found
    offset = (target[0] - matrix[0, 1:] @ weights) / matrix[0, 0]
    scale = np.linalg.norm(np.hstack(first), axis=1)
    return _Estimate(float(offset), weights, blur, scale), first


def _solve_free(matrix, target, spread, shape):
    """Weights of any sign. What the data do not determine keeps the shape.

    In units of ``gain * shape`` the matrix is the information on relative weights. Directions in which it is below 1
    (an error of 100 %), or below three standard deviations of its own noise, are undetermined.
    """
    inner = matrix[1:, 1:] - np.outer(matrix[1:, 0], matrix[0, 1:]) / matrix[0, 0]
    target = target[1:] - matrix[1:, 0] * target[0] / matrix[0, 0]
    if not len(shape):
        return shape, (np.zeros((0, 0)), np.zeros((0, 0)))
    power = shape @ inner @ shape
    # of either sign: what matters here is the size
    gain = np.abs(shape @ target / power) if power else 1.0
    scale = gain * shape
    relative = scale[:, None] * inner * scale
    values, vectors = np.linalg.eigh((relative + relative.T) / 2)
    loads = (scale[:, None] * vectors) ** 2
    noise = np.sqrt(2 * np.einsum("ik,ij,jk->k", loads, spread, loads))
    kept = values > np.maximum(1, 3 * noise)
    known, unknown = vectors[:, kept], vectors[:, ~kept]
    filled = unknown @ unknown.sum(axis=0)
    answer = np.linalg.solve(known.T @ relative @ known, known.T @ (scale * target - relative @ filled))
    return scale * (known @ answer + filled), (scale[:, None] * known, scale[:, None] * unknown)


def _estimated(scan, way, weight, start, blur):
    """The estimate from one way to denoise, directions that it knows and that it does not, and what it is made of."""
    denoised = way(scan, weight, start)
    moments = _moments(scan, denoised, weight, start)
    found = _best_blur(moments, scan.shape) if blur is None else float(blur)
    estimate, directions = _solve(moments.at(found), moments.target, moments.spread, scan.shape, found)
    return estimate, directions, denoised, moments


def _with_errors(scan, way, weight, start, blur):
    """The estimate from one way to denoise, with its covariance."""
    from scipy.linalg import block_diag

    estimate, (known, unknown), denoised, moments = _estimated(scan, way, weight, start.weights, blur)
    found = estimate.blur
    matrix = moments.at(found)
    parameters = np.concatenate([[estimate.offset], estimate.weights])
    slope = _slope_along_blur(moments, found) @ parameters
    slope[-1] += 1 / _BLUR_PRIOR**2
    jacobian = np.column_stack([matrix, slope])
    free = block_diag(1, known, 1 if blur is None else np.zeros((1, 0)))
    scores = free.T @ _scores(scan, denoised, weight, moments, start.weights, estimate)
    spread = len(scores.T) / (len(scores.T) - len(scores)) * (scores @ scores.T)
    inverse = np.linalg.inv(free.T @ jacobian @ free)
    covariance = inverse @ spread @ inverse.T
    # the moments may pretend to more than the data hold
    bound = np.linalg.inv(free.T @ _information(moments, weight) @ free)
    short = np.sqrt(np.maximum(1, np.diag(bound) / np.diag(covariance)))
    covariance = free @ (short[:, None] * covariance * short) @ free.T
    covariance[1:-1, 1:-1] += unknown @ unknown.T
    filled = np.sum(unknown**2, axis=1) >= 0.01 * estimate.scale**2
    return replace(estimate, covariance=covariance, determined=tuple(bool(d) for d in ~filled))


def _information(moments, weight):
    """Fisher information of all parameters, were the denoised maps true."""
    fields = moments.fields.reshape(len(moments.fields), -1)
    used = weight.ravel() > 0
    information = (fields[:, used] / weight.ravel()[used]) @ fields[:, used].T
    information[-1, -1] += 1 / _BLUR_PRIOR**2
    return information


def _slope_along_blur(moments, blur):
    """Derivative of the matrix with respect to blur**2."""
    blur = max(blur, 0.5)  # below it, pixels hide it
    low, high = blur - 0.1, blur + 0.1
    return (moments.at(high) - moments.at(low)) / (high**2 - low**2)


def _scores(scan, denoised, weight, moments, start, estimate):
    """Moments summed over blocks of the image, less their mean, (n + 2, number of blocks)."""
    torus = scan.torus
    blur = _gaussian(torus.shape, estimate.blur)
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
