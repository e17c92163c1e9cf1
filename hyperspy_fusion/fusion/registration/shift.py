"""The shift between two images of a scan, one of few counts, with its standard error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# standard deviation in pixels of the Gaussian before the search: noise hides the peak otherwise
_SEARCH_SIGMA = 2.0
# and before the first refinement, which starts where the axes put the image and may have to go over some pixels
_START_SIGMA = 3.0
# least overlap of two positions that are compared, as a part of the largest possible one
_SEARCH_OVERLAP = 0.5
# part of the best correlation at which another position is as good, as on a lattice; and part at which its peak ends
_ALIKE, _PEAK_EDGE = 0.8, 0.5
# pixels between two positions that are not the same
_APART = 1.0
# pixels: a shift with a larger standard error is not determined
LARGEST_ERROR = 0.5
# of twice a log-likelihood ratio, for a shift against none and for a position against another
_EVIDENCE = 30.0
_MAX_STEP = 1.0
_SLOPE_STEP = 0.25
_STEPS = 15
# a step to end with: absolute, or as a part of the standard error
_TOLERANCE, _PART_OF_ERROR = 1e-3, 0.03
# smallest variance of a pixel, as a part of the mean one
_LEAST_VARIANCE = 0.05
# to measure a shift on
FEWEST_PIXELS = 64
# edge in pixels of the patches whose gradients are compared
_PATCH = 8
# least information of structure, in units of the information that the noise of the image pretends to have
_LEAST_REAL = 1.0


@dataclass(frozen=True)
class Shift:
    """A shift, its errors and the evidence for it.

    Attributes
    ----------
    shift
        (2,) along y and x in pixels of the reference, positive towards larger indices.
    error
        (2,) standard errors, infinite along an axis in which the shift is not determined.
    correlation
        Of the reference with the shifted image, each pixel weighted by the inverse of its variance, after slow
        variations over the field are removed.
    evidence
        Twice the log of the likelihood ratio to no correlation at all.
    undetermined
        (k, 2) unit vectors (y, x) along which the shift is not determined; along them it is 0.
    is_ambiguous
        Whether another position is as alike, as one period further on a lattice.
    """

    shift: np.ndarray
    error: np.ndarray
    correlation: float
    evidence: float
    undetermined: np.ndarray
    is_ambiguous: bool = False

    @property
    def score(self):
        """The evidence, below 0 where one of the two is like the negative of the other."""
        return np.copysign(self.evidence, self.correlation)

    @property
    def is_found(self):
        """Whether the images are alike and determine the shift in one direction at least."""
        return self.evidence > _EVIDENCE and self.correlation > 0 and len(self.undetermined) < 2


def find_shift(
    reference: np.ndarray, sample: Callable, search: tuple | None = None, slope_noise: Sequence = (0.0, 0.0)
) -> Shift:
    """Shift of an image that makes it most similar to a reference.

    The model of the reference is ``a * image + c`` and noise, with a and c that vary slowly over the field. The
    variance of the noise is a linear function of the mean, fitted to the residuals. The fit is weighted least
    squares in a, c and the shift (Gauss-Newton). It starts from no shift, and from peaks of the masked normalised
    cross-correlation of the smoothed images (Padfield, IEEE Trans. Image Process. 21, 2706, 2012). One of the latter is
    taken where it is clearly more likely. Of positions that are alike, as on a lattice, the nearest is taken unless
    another is clearly more likely on the pixels that both have (Vuong, Econometrica 57, 307, 1989). A
    symmetric blur of one of the two does not bias the shift, nor does another power of the same contrast.

    Parameters
    ----------
    reference
        (ny, nx) such as the Z-weighted sum of maps; NaN where it is missing.
    sample
        Function of a shift (y, x) in pixels. It returns the shifted image on the pixels of the reference, NaN where
        it does not reach.
    search
        The whole image on a grid of the same pixel size, NaN where it is missing. Then the position (y, x) of its
        first pixel on the reference. None searches only near no shift.
    slope_noise
        (2,) variance that the noise of the image has in its `slopes` along y and x. Structure that is no stronger does
        not determine a shift.

    Returns
    -------
    Shift
    """
    smooth = _smoothed(reference, _START_SIGMA)
    start, _ = _refined(smooth, lambda t: _smoothed(sample(t), _START_SIGMA), np.zeros(2))
    starts = [start, np.zeros(2), *([] if search is None else searched_shifts(reference, *search))]
    found = [_measured(reference, sample, start, slope_noise) for start in starts]
    best = found[0]
    for other in found[1:]:
        if other.score > best.score + (_EVIDENCE if _distance(other, best) > _APART else 0):
            best = other
    alike = [other for other in found if other.is_found and other.correlation >= _ALIKE * best.correlation]
    if not best.is_found or len(alike) < 2:
        return best
    taken, *others = sorted(alike, key=lambda other: np.hypot(*other.shift))
    for other in others:
        if _is_clearly_better(reference, *(sample(one.shift) for one in (other, taken))):
            taken = other
    best = best if _distance(taken, best) <= _APART else taken
    return replace(best, is_ambiguous=any(_distance(other, best) > _APART for other in alike))


def _is_clearly_better(reference, image, other):
    """Whether an image explains the pixels that both have better than another, beyond noise (Vuong's test)."""
    used = np.isfinite(reference + image + other)
    target = reference[used]
    if target.size < FEWEST_PIXELS or np.ptp(target) == 0:
        return False
    ratio = np.subtract(*(_log_likelihood(target, one, used) for one in (image, other)))
    return ratio.sum() > max(_EVIDENCE, np.sqrt(_EVIDENCE * np.sum(ratio**2)))


def _distance(one, other):
    return np.abs(one.shift - other.shift).max()


def slopes(sample, shift):
    """Derivatives of ``sample`` along y and x at a shift, by moving it: differences of pixels are coarse at an edge."""
    steps = _SLOPE_STEP * np.eye(2)
    return [(sample(shift - step) - sample(shift + step)) / (2 * _SLOPE_STEP) for step in steps]


def searched_shifts(reference, image, position):
    """Shifts in whole pixels that make an image, with its first pixel at ``position``, alike to a reference.

    Two at most: of the peaks that are about as high as the highest one, the nearest to no shift, and the highest other.
    """
    from scipy.ndimage import label, maximum_position

    correlations = _masked_correlations(*(_smoothed(a, _SEARCH_SIGMA) for a in (reference, image)))
    highest = correlations.max()
    if highest <= 0:
        return []
    labelled: Any = label(correlations >= _PEAK_EDGE * highest)
    peaks, n = labelled
    places = maximum_position(correlations, peaks, np.arange(1, n + 1))
    places = sorted(places, key=lambda place: -correlations[place])
    places = [place for place in places if correlations[place] >= _ALIKE * highest]
    shifts = [np.array(place) - (np.array(image.shape) - 1) - np.asarray(position) for place in places]
    nearest = min(range(len(shifts)), key=lambda k: np.hypot(*shifts[k]))
    return [shifts[nearest], *(shift for k, shift in enumerate(shifts) if k != nearest)][:2]


def _centred(image):
    """Offset and scale change a correlation by nothing but rounding; 0 for pixels that are NaN."""
    values = image[np.isfinite(image)]
    if not values.size:
        return np.zeros(image.shape)
    return np.nan_to_num((image - values.mean()) / (np.ptp(values) or 1.0))


def _masked_correlations(reference, image):
    """Normalised cross-correlation over the pixels that neither lacks; pixel 0 of the image goes from 1 - n on."""
    from scipy.signal import fftconvolve

    masks = [np.isfinite(a).astype(float) for a in (reference, image)]
    first, second = map(_centred, (reference, image))

    def summed(a, b):
        return fftconvolve(a, b[::-1, ::-1])

    n = np.maximum(np.round(summed(*masks)), 1)
    of_first, of_second = summed(first, masks[1]), summed(masks[0], second)
    covariance = summed(first, second) - of_first * of_second / n
    variances = summed(first**2, masks[1]) - of_first**2 / n, summed(masks[0], second**2) - of_second**2 / n
    product = np.prod(np.maximum(variances, 0), axis=0)
    is_used = (n >= _SEARCH_OVERLAP * n.max()) & (product > 1e-12 * product.max())
    return np.divide(covariance, np.sqrt(product), out=np.zeros_like(n), where=is_used)


def _smoothed(image, sigma):
    """A Gaussian over the pixels that are not NaN, which stay NaN."""
    from scipy.ndimage import gaussian_filter

    valid = np.isfinite(image)
    weight = gaussian_filter(valid.astype(float), sigma, mode="constant")
    smooth = gaussian_filter(np.where(valid, image, 0.0), sigma, mode="constant")
    return np.where(valid, smooth / np.maximum(weight, 1e-9), np.nan)


def _measured(reference, sample, start, slope_noise):
    """`Shift` from a start. Its undetermined components are set to 0, and the others found again."""
    shift, state = _refined(reference, sample, start, slope_noise)
    if state is not None and len(state.undetermined):
        free = state.undetermined
        shift, state = _refined(reference, sample, shift - free.T @ (free @ shift), slope_noise)
    if state is None:
        return Shift(np.zeros(2), np.full(2, np.inf), 0.0, 0.0, np.eye(2))
    return Shift(shift, state.error, state.correlation, state.evidence, state.undetermined)


def _refined(reference, sample, shift, slope_noise=(0.0, 0.0)):
    """Gauss-Newton from a start; the shift and the `_Fit` there, None where the images share too few pixels."""
    fit = None
    for _ in range(_STEPS):
        fit = _Fit.of(reference, sample(shift), slopes(sample, shift), slope_noise)
        if fit is None:
            break
        step = np.clip(fit.step, -_MAX_STEP, _MAX_STEP)
        shift = shift + step
        if np.all(np.abs(step) < np.maximum(_TOLERANCE, _PART_OF_ERROR * np.minimum(fit.error, LARGEST_ERROR))):
            break
    return shift, fit


@dataclass(frozen=True)
class _Fit:
    """The fit ``reference = c + a image - a step . gradient``, linear in c, a and a times the step.

    The offset c is a paraboloid and the scale a is a plane. So slow variations over the field, as the thickness of an
    unmapped support, are no sign of a shift. The step (2,) leads to the best shift and is 0 along undetermined
    directions; the rest is that of `Shift`, at the present shift.
    """

    step: np.ndarray
    error: np.ndarray
    correlation: float
    evidence: float
    undetermined: np.ndarray

    @classmethod
    def of(cls, reference, image, slopes, slope_noise):
        """None where the two share too few pixels, or are flat there."""
        used = np.isfinite(reference + image + sum(slopes))
        target, level = reference[used], image[used]
        if target.size < FEWEST_PIXELS or np.ptp(level) == 0 or np.ptp(target) == 0:
            return None
        plane, offsets, smooth = _regressors(image, used)
        deviation = np.sqrt(_variance(smooth, target))
        scale = np.linalg.lstsq((smooth / deviation).T, target / deviation, rcond=None)[0][len(offsets) :] @ plane
        slopes = [scale * s[used] / deviation for s in slopes]
        # what offset and scale explain is projected out
        *slopes, rest = _without(smooth / deviation, np.stack([*slopes, target / deviation]))
        slopes = np.stack(slopes)
        of_noise = np.diag(slope_noise) * np.sum((scale / deviation) ** 2)
        step, error, undetermined = _solved(slopes @ slopes.T, of_noise, -slopes @ rest)
        by_offset = np.sum(_without(offsets / deviation, target / deviation) ** 2)
        correlation = np.sqrt(max(1 - np.sum(rest**2) / by_offset, 0.0)) * np.sign(scale.mean())
        if not len(undetermined):
            error = np.maximum(error, _error_of_patches(slopes, rest, used))
        return cls(step, error, correlation, -target.size * np.log1p(-(correlation**2)), undetermined)


def _regressors(image, used):
    """Rows of a plane, of the offsets, and of all that explains the reference, on the pixels ``used`` (ny, nx)."""
    y, x = (2 * places / (n - 1) - 1 for places, n in zip(np.nonzero(used), image.shape, strict=True))
    plane = np.stack([np.ones_like(y), y, x])
    offsets = np.concatenate([plane, [y * y, x * y, x * x]])
    return plane, offsets, np.concatenate([offsets, plane * image[used]])


def _log_likelihood(target, image, used):
    """Twice the log-likelihood of each pixel of the reference, but for a constant."""
    *_, smooth = _regressors(image, used)
    variance = _variance(smooth, target)
    deviation = np.sqrt(variance)
    return -np.log(variance) - _without(smooth / deviation, target / deviation) ** 2


def _variance(regressors, target):
    """Variance of the noise in each pixel, linear in the mean as for counts, from the squared residuals."""
    rest = _without(regressors, target)
    mean = np.stack([np.ones_like(target), target - rest])
    variance = mean.T @ np.linalg.lstsq(mean.T, rest**2, rcond=None)[0]
    return np.maximum(variance, _LEAST_VARIANCE * np.mean(rest**2))


def _without(regressors, values):
    """Residuals of values (..., n) after least squares in the rows of ``regressors``."""
    basis = np.linalg.qr(regressors.T)[0]
    return values - (values @ basis) @ basis.T


def _error_of_patches(slopes, rest, used):
    """Standard errors from the dispersion of the gradients of patches: residuals that are not noise agree in a patch.

    ``used`` is (ny, nx) bool. ``slopes`` (2, k) and ``rest`` (k,) are of its k pixels, over the noise.
    """
    rows, columns = (places // _PATCH for places in np.nonzero(used))
    patch = rows * (used.shape[-1] // _PATCH + 1) + columns
    gradients = np.stack([np.bincount(patch, slope * rest) for slope in slopes])
    inverse = np.linalg.inv(slopes @ slopes.T)
    return np.sqrt(np.diag(inverse @ (gradients @ gradients.T) @ inverse))


def _solved(information, of_noise, gradient):
    """Step, standard errors and undetermined directions of a (2, 2) information matrix.

    ``of_noise`` is the part that comes from the noise of the image. It adds to the variance of the gradient and has
    no information.
    """
    values, vectors = np.linalg.eigh(information - of_noise)
    false = np.sum(vectors * (of_noise @ vectors), axis=0)
    real = values > _LEAST_REAL * false
    variance = np.divide(values + false, values**2, out=np.full(2, np.inf), where=real & (values > 0))
    determined = variance < LARGEST_ERROR**2
    step = vectors @ (np.divide(1, values + false, out=np.zeros(2), where=determined) * (vectors.T @ gradient))
    # 0 times infinity: the error of the other axis stays finite
    parts = np.multiply(vectors**2, variance, out=np.zeros((2, 2)), where=np.abs(vectors) >= 1e-12)
    return step, np.sqrt(parts.sum(axis=1)), vectors.T[~determined]
