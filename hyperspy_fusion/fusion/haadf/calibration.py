"""Weights and offset of the linear HAADF forward model from noisy maps and a blurred image, without attenuation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from hyperspy_fusion.fusion.checks import MAX_BLUR
from hyperspy_fusion.fusion.haadf.estimates import Estimate, UndeterminedModelError, solved, solved_at_all
from hyperspy_fusion.fusion.haadf.moment_equations import (
    CorrelationData,
    EstimatingEquations,
    correlation_data,
    denoisers,
    pixel_weight,
    summed,
)
from hyperspy_fusion.fusion.haadf.partial_pooling import BLUR_PRIOR, WhitenedEquations, pooled
from hyperspy_fusion.fusion.solvers.threads import for_each
from hyperspy_fusion.fusion.terms.haadf_model import LinearHaadfModel

# standard errors from a weight that the data determine at which the shape of the weights is given up: it is then so far
# off (as for maps in units that have nothing to do with each other) that a fit shrunk towards it may not find out
_REFUSED = 5.0


@dataclass(frozen=True)
class LinearFit:
    """A linear forward model found in the data.

    Attributes
    ----------
    weights, standard_errors
        (n,) HAADF intensity per unit of each map, >= 0 unless signed, and the standard deviation of its error.
    determined
        (n,) bool: False where the maps do not fix the weight (a map that is a combination of others and a
        constant, or one of noise), whatever its standard error: the shape of the weights decided.
    offset, offset_error
        HAADF intensity where there is nothing.
    blur, blur_error
        Standard deviation in pixels of the Gaussian between maps and HAADF image; the error is 0 for a given blur.
    sigma
        Standard deviation of the noise of the HAADF image.
    prior_scale
        How far the weights were taken to be off their shape, as a relative standard deviation: 0 if they had to have
        it (also where the data know no weight), infinite if it was not used (also where the data contradict it).
    instruments
        Which of the ways to make instrumental variables was taken.
    """

    weights: np.ndarray
    standard_errors: np.ndarray
    determined: tuple
    offset: float
    offset_error: float
    blur: float
    blur_error: float
    sigma: float
    prior_scale: float
    instruments: int = 0

    @property
    def is_unrelated(self):
        """Whether the data know nothing of any weight: its error is 100 %, but for rounding."""
        return not np.any(self.determined) and not np.any(self.standard_errors < (1 - 1e-9) * np.abs(self.weights))

    @property
    def forward_model(self):
        """The :class:`LinearHaadfModel`."""
        return LinearHaadfModel(self.weights, self.offset, self.blur)


def fit_haadf_model(
    maps,
    haadf,
    noise_variance,
    *,
    weights="fit",
    shape_weights=None,
    prior_scale=None,
    blur=None,
    valid=None,
    haadf_valid=None,
    signed=False,
):
    """Fit ``haadf = blurred(offset + sum_i w_i x_i)`` to noisy maps ``b = x + noise``, without attenuation.

    Least squares of the image on noisy maps finds weights too small (errors in variables). Here instrumental variables
    ``u_j`` are used: denoised maps over the variance ``v`` of the residual. The estimating equations are

        <u_j, haadf - offset - sum_i w_i G b_i> = 0.

    - A filter ``K`` shares the noise of its pixel with the map. The mean of their product is known and subtracted,
      ``E <V K n_j, G n_j> = sum_pq V(q) K(q-p) G(q-p) variance_j(p)`` (Fuller, Measurement Error Models, 1987).
    - A regression of the maps on the image around a pixel, with coefficients from other tiles, shares no noise.
    - Of these families of instrumental variables, the one with the smallest standard errors is used.
    - The blur ``G`` has an estimating equation of its own. Its instrument is the derivative of the image by it.
    - Standard errors have the sandwich form over 8 x 8 blocks of the image, which includes the model discrepancy. They
      are never below the inverse Fisher information.

    Given a shape of the weights, each weight is shrunk towards it by partial pooling: ``w_i`` is normal about
    ``a shape_i`` with a relative standard deviation, the prior scale. It is estimated together with offset, gain ``a``
    and blur (:func:`~.partial_pooling.pooled`). Weights that the data know better than the shape hardly move. Weights
    that the data contradict make the prior scale large.

    Parameters
    ----------
    maps
        (n, ny, nx) in any units. Not denoised: smoothed noise is not white.
    haadf
        (ny, nx) in any units.
    noise_variance
        Of the noise of the maps, white, in their squared units: (n,) or (n, ny, nx). For counts the map itself
        times its counts scale.
    weights
        ``"fit"``: all weights. ``"z_power"``: the common factor of ``shape_weights`` alone.
    shape_weights
        (n,) ratios of the weights, > 0, e.g. of :func:`z_weights`. With ``"fit"``, the weights are shrunk towards it.
        All equal by default, without shrinkage then.
    prior_scale
        Relative standard deviation of the weights about their shape, > 0, for ``"fit"``. None estimates it;
        ``np.inf`` is a fit to the data alone, in which the shape decides only what these do not determine.
    blur
        Standard deviation in pixels of the blur where it is known, up to 4; found by default.
    valid
        (ny, nx) or (n, ny, nx) bool, pixels of the maps to use; not finite ones are left out.
    haadf_valid
        (ny, nx) bool, pixels of the image to use; leave out saturated ones.
    signed
        Whether weights may be negative, as those of a phase or a bright-field image. They are not shrunk then.

    Returns
    -------
    LinearFit

    Raises
    ------
    ValueError
        For another ``weights``, arrays that do not fit together, or a constant image.
    UndeterminedModelError
        A ValueError, where image and maps have nothing in common, or too few valid pixels.

    Notes
    -----
    Within three standard deviations of the blur from the border and from invalid pixels the image is not used. No
    estimate is better than the inverse of ``sum_p (1, x)(1, x)^T / v`` allows, with the variance
    ``v = sigma**2 + sum_i w_i**2 variance_i``: a light element beside heavy ones needs many counts.
    Where all structure has one size, as atomic columns have, blur and weights are hard to separate: give
    ``blur`` if it is known.
    """
    if weights not in ("fit", "z_power"):
        raise ValueError(f"weights is {weights!r}: it must be 'fit' or 'z_power'.")
    if blur is not None and not 0 <= blur <= MAX_BLUR:
        raise ValueError(f"blur is {blur!r}: it must be 0 to {MAX_BLUR:g} pixels, or None to find it.")
    if prior_scale is not None and not prior_scale > 0:
        raise ValueError(f"prior_scale is {prior_scale!r}: it must be above 0, np.inf for none, or None to find it.")
    if shape_weights is None or len(maps) == 1 or signed:
        prior_scale = np.inf
    scan = correlation_data(maps, haadf, noise_variance, shape_weights, valid, haadf_valid, signed)
    blur = None if blur is None else blur / scan.binning
    try:
        return _shrunk(scan, blur, prior_scale) if weights == "fit" else _of_all(scan, blur)
    except np.linalg.LinAlgError as error:
        raise UndeterminedModelError(
            "The HAADF image and the maps have too little in common to tell what an atom adds to the image: pass "
            "lambda_haadf=0, or numbers for haadf_coefficients."
        ) from error


def refit_haadf_model(fit, maps, haadf, noise_variance, *, blur=None, **options):
    """The forward model of a bootstrap replicate: one round from the model that the data were drawn from.

    It takes a tenth of the work of :func:`fit_haadf_model`, whose parameters these are, and uses the same instrumental
    variables. The error of the result is that of :func:`fit_haadf_model`, correlated with the noise of the data.
    ``options`` are its ``shape_weights``, ``valid``, ``haadf_valid`` and ``signed``.
    ``fit`` is the :class:`LinearFit` that these were drawn from; its ``prior_scale`` is kept, and so is the whole of it
    where the data have no information. ``blur`` is that of ``fit`` where it was known, and None estimates it.
    """
    scan = correlation_data(maps, haadf, noise_variance, **options)
    start, shape, at = fit.weights / scan.binning**2, scan.shape, fit.blur / scan.binning
    if fit.prior_scale == 0:
        scan, start = summed(scan), start[:1] / shape[:1]
    start = Estimate(float(fit.offset + start @ scan.means), start, at, start)
    known = None if blur is None else at
    try:
        # data of nothing divide by nothing
        with np.errstate(divide="ignore", invalid="ignore"):
            weight = pixel_weight(scan, start.weights, start.blur)
            moments = EstimatingEquations.of(scan, denoisers(scan)[fit.instruments], weight, start.weights)
            if 0 < fit.prior_scale < np.inf:
                found = _pooled(moments, start, known, fit.prior_scale)
            else:
                found, _ = _estimated(moments, known)
    except np.linalg.LinAlgError:
        return fit.forward_model
    offset = float(found.offset - found.weights @ scan.means)
    weights = found.weights * (shape if fit.prior_scale == 0 else 1) * scan.binning**2
    if not np.isfinite([offset, *weights]).all():
        return fit.forward_model
    return LinearHaadfModel(weights, offset, float(found.blur) * scan.binning)


def _of_all(scan, blur):
    """The fit of the gain alone, as weights of all elements."""
    fit, shape = _fit(_FirstRound.of(summed(scan), blur), np.inf), scan.shape
    weights, errors = fit.weights * shape, fit.standard_errors * shape
    return replace(
        fit, weights=weights, standard_errors=errors, determined=fit.determined * len(shape), prior_scale=0.0
    )


def _shrunk(scan, blur, prior_scale):
    """The fit of all weights, shrunk towards their shape unless the data contradict or do not know them."""
    first = _FirstRound.of(scan, blur)
    fit = _fit(first, np.inf if prior_scale is None else prior_scale)
    if prior_scale is not None:
        return fit
    if fit.is_unrelated:
        return replace(_of_all(scan, blur), determined=fit.determined)
    shrunk = _fit(first, None)
    off = np.abs(shrunk.weights - fit.weights) > _REFUSED * fit.standard_errors
    return fit if np.any(off & fit.determined) else shrunk


# ---- the estimator -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _FirstRound:
    """What fits with and without shrinkage start from: ways to denoise, an estimate, and the equations of each way."""

    scan: CorrelationData
    blur: float | None
    ways: list
    estimate: Estimate
    equations: list

    @classmethod
    def of(cls, scan, blur):
        # in the units of the data: the prior of the blur is weighed against its moment
        image, total = scan.haadf[scan.haadf_valid], np.tensordot(scan.shape, scan.maps, 1)
        scale = scan.shape * image.std() / max(total.std(), 1e-30)
        # the instrumental variable of the blur has the sign of the weights
        if scan.signed and (image - image.mean()) @ total[scan.haadf_valid] < 0:
            scale = -scale
        estimate = Estimate(float(image.mean()), scale, 1.0 if blur is None else float(blur), scale)
        ways, weight = denoisers(scan), pixel_weight(scan, None, estimate.blur)
        equations = for_each(ways, lambda way: EstimatingEquations.of(scan, way, weight, scale))
        return cls(scan, blur, ways, estimate, equations)


def _fit(first, prior_scale):
    """The fit with one prior scale, infinite for no shrinkage, or None to estimate it."""
    scan, blur, estimate = first.scan, first.blur, first.estimate
    step = _with_errors if prior_scale == np.inf else partial(_pooled, prior_scale=prior_scale)
    tried = dict(enumerate(for_each(first.equations, lambda moments: step(moments, estimate, blur))))
    # pixel weights, instrumental variables and parameters depend on each other: two rounds for all, one for the best
    for number in (len(first.ways), 1):
        tried = _finite(tried)
        order = sorted(tried, key=lambda k: _relative_error(tried[k]))
        estimate = tried[order[0]]
        weight = pixel_weight(scan, estimate.weights, estimate.blur)
        # weights of 0 denoise nothing
        weights = estimate.weights if np.any(estimate.weights) else first.estimate.scale
        estimated = partial(_estimated_by, first, step, estimate, weight, weights)
        tried = dict(zip(order, for_each(order[:number], estimated), strict=False))
    ((best, estimate),) = _finite(tried).items()
    return replace(_report(scan, estimate, blur), instruments=best)


def _estimated_by(first, step, estimate, weight, weights, k):
    """The next estimate by way k to denoise."""
    return step(EstimatingEquations.of(first.scan, first.ways[k], weight, weights), estimate, first.blur)


def _finite(tried):
    """The estimates that are numbers: of an image of one bright pixel there may be none."""
    found = {k: one for k, one in tried.items() if np.isfinite([one.offset, *one.weights]).all()}
    if not found:
        raise np.linalg.LinAlgError("no estimate is finite")
    return found


def _relative_error(estimate):
    """Mean logarithm of the variances of the relative weights, by which instrumental variables are chosen."""
    variances = np.diag(estimate.covariance)[1 : 1 + len(estimate.weights)]
    # where nothing is determined all are 0 but for rounding, which must not choose
    return round(float(np.mean(np.log(variances / estimate.scale**2))), 9)


def _report(scan, estimate, blur):
    """The fit in pixels of the data: maps of binned pixels are sums, and the image a mean."""
    n, s, b = len(scan.maps), estimate.blur, scan.binning
    errors = np.sqrt(np.diag(estimate.covariance))
    # the offset of the maps as they are: take back the means
    back = np.concatenate([[1], -scan.means])
    blur_error = 0.0 if blur is not None else errors[-1] / max(2 * s, np.sqrt(errors[-1]))
    return LinearFit(
        weights=estimate.weights * b**2,
        standard_errors=errors[1 : n + 1] * b**2,
        determined=estimate.determined,
        offset=float(estimate.offset - estimate.weights @ scan.means),
        offset_error=float(np.sqrt(back @ estimate.covariance[: n + 1, : n + 1] @ back)),
        blur=float(s) * b,
        blur_error=float(blur_error) * b,
        sigma=scan.sigma * b,
        prior_scale=estimate.prior_scale,
    )


def _best_blur(moments):
    """Where the estimating equation of the blur, less the slope of its prior, comes down through zero.

    It is the slope of a log-likelihood along blur**2: of several zeros the one under the largest integral counts.
    """
    blurs = np.linspace(0, MAX_BLUR, 21)
    squares, matrices, target = blurs**2, moments.at(blurs), moments.target
    found = solved_at_all(
        matrices[:, :-1], target[:-1], moments.matrix_variance, moments.scan.shape, moments.scan.signed
    )
    slopes = target[-1] - np.sum(matrices[:, -1] * found, axis=1) - squares / BLUR_PRIOR**2
    rises = np.concatenate([[0], np.cumsum((slopes[1:] + slopes[:-1]) / 2 * np.diff(squares))])
    k = int(np.argmax(rises))
    for left in (k - 1, k):
        if 0 <= left < len(blurs) - 1 and slopes[left] > 0 >= slopes[left + 1]:
            part = slopes[left] / (slopes[left] - slopes[left + 1])
            return float(np.sqrt(squares[left] + part * (squares[left + 1] - squares[left])))
    return float(blurs[k])


def _solved_at(moments, blur, matrix):
    """The estimate at a blur, and directions that the data determine and that they do not."""
    return solved(matrix, moments.target, moments.matrix_variance, moments.scan.shape, blur, moments.scan.signed)


def _estimated(moments, blur):
    """The estimate at a blur, or at the best one for None, and directions as above."""
    found = _best_blur(moments) if blur is None else float(blur)
    return _solved_at(moments, found, moments.at(found))


def _with_errors(moments, start, blur):
    """The estimate from one way to denoise, with its covariance."""
    from scipy.linalg import block_diag

    estimate, (known, unknown) = _estimated(moments, blur)
    found = estimate.blur
    slope = moments.slope(found) @ np.concatenate([[estimate.offset], estimate.weights])
    # at a bound it may be negative, and the prior make next to nothing of it
    at_bound = not 0 < found < MAX_BLUR
    slope[-1] = (abs(slope[-1]) if at_bound else slope[-1]) + 1 / BLUR_PRIOR**2
    jacobian = np.column_stack([moments.at(found), slope])
    free = np.asarray(block_diag(1, known, 1 if blur is None else np.zeros((1, 0))))
    inverse = np.linalg.inv(free.T @ jacobian @ free)
    covariance = inverse @ _noise(free.T @ moments.block_scores(estimate)) @ inverse.T
    # the estimating equations may pretend to more than the data hold
    information = moments.information()
    information[-1, -1] += 1 / BLUR_PRIOR**2
    bound = np.linalg.inv(free.T @ information @ free)
    short = np.sqrt(np.maximum(1, np.diag(bound) / np.diag(covariance)))
    covariance = free @ (short[:, None] * covariance * short) @ free.T
    covariance[1:-1, 1:-1] += unknown @ unknown.T
    return replace(estimate, covariance=covariance, determined=_determined(unknown, estimate.scale))


def _noise(scores):
    """Covariance of the sum of scores over the blocks, their mean taken out."""
    return len(scores.T) / (len(scores.T) - len(scores)) * (scores @ scores.T)


def _determined(unknown, scale):
    return tuple(bool(share < 0.01) for share in np.sum((unknown / scale[:, None]) ** 2, axis=1))


def _pooled(moments, start, blur, prior_scale):
    """The estimate from one way to denoise with the weights shrunk towards their shape, with its covariance."""
    from scipy.linalg import block_diag

    matrix, scan = moments.at(start.blur), moments.scan
    rough, (known, unknown) = _solved_at(moments, start.blur, matrix)
    if not known.size:  # no weight that others could follow
        return _with_errors(moments, start, blur)
    slope = moments.slope(start.blur) @ np.concatenate([[start.offset], start.weights])
    # the estimating equation of the offset in units of the image's own, as the others are
    free = np.asarray(block_diag(scan.haadf[scan.haadf_valid].std(), _kept(known, unknown, rough.scale), 1))
    jacobian = free.T @ np.column_stack([matrix, slope]) @ free
    noise = _noise(free.T @ moments.block_scores(start))
    whitening = _whitening(noise, jacobian, free.T @ moments.information() @ free) @ free.T
    equations = WhitenedEquations(moments, whitening, rough.scale, unknown / rough.scale[:, None])
    found = pooled(equations, blur, prior_scale)
    return replace(
        rough,
        offset=float(found.mean[0]),
        weights=found.mean[1:],
        blur=found.blur,
        covariance=found.covariance,
        determined=_determined(unknown, rough.scale),
        prior_scale=found.prior_scale,
    )


def _kept(known, unknown, scale):
    """Directions of the estimating equations to use: those that the data determine, and that of the shape."""
    if not unknown.size:
        return known
    return np.column_stack([known, unknown @ (unknown / scale[:, None]).sum(axis=0)])


def _whitening(noise, jacobian, information):
    """Matrix that makes the noise of the estimating equations white, limited by the Fisher information.

    Directions of more information than Fisher's are damped.
    """
    values, vectors = np.linalg.eigh(noise)
    white = (vectors / np.sqrt(np.maximum(values, 1e-12 * values[-1]))).T
    values, vectors = np.linalg.eigh(information)
    root = vectors * np.sqrt(np.maximum(values, 1e-12 * values[-1]))
    turned, claims, _ = np.linalg.svd(np.linalg.solve(root, (white @ jacobian).T).T)
    return (turned / np.maximum(claims, 1)).T @ white
