"""The calibrated objective: counts, HAADF forward model and penalty in natural units, convex.

    minimise over x >= 0:  sum D(x_i; b_i) + lambda_haadf / (2 sigma^2) ||h - f(x)||^2 + R(x_1 / s_1, x_2 / s_2, ...)

with D half the deviance of counts, or least squares in units of the noise, f linear, and the total of every map kept.
Everything inside is in units of ``s_i``, ``lambda_reg`` times smaller than the noise of a typical pixel of the map:
there the penalty has the weight 1, and dose, size and scale of the data are gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from hyperspy_fusion.fusion.haadf.calibration import UndeterminedModelError, fit_haadf_model, refit_haadf_model
from hyperspy_fusion.fusion.haadf.guide import Guide
from hyperspy_fusion.fusion.haadf.hot_pixels import about_hot_pixels, hot_pixels
from hyperspy_fusion.fusion.haadf.model_discrepancy import is_explained_by_blur, misfit
from hyperspy_fusion.fusion.scan_data import ScanData, column
from hyperspy_fusion.fusion.settings import working_dtype
from hyperspy_fusion.fusion.terms.data_fidelity import Counts, Gaussian, about_totals, noise_of
from hyperspy_fusion.fusion.terms.haadf_model import LinearHaadfModel, haadf_noise, z_weights
from hyperspy_fusion.fusion.terms.objective import HaadfTerm, Objective
from hyperspy_fusion.fusion.terms.penalties import SECOND_ORDER, CellPenalty

# standard deviation in pixels of a Gaussian that leaves a sampled image nearly as it is
LEAST_BLUR = 0.25
# errors by which a given blur may exceed the one that the image shows
_MORE = 3.0


@dataclass(frozen=True)
class CalibratedProblem(Objective):
    """What is minimised, and what was found of data and forward model on the way.

    Attributes
    ----------
    haadf, haadf_valid
        (ny, nx) the image, 0 where it does not count, and where it counts.
    noise_kind, noise_sentence, counts scale, variance
        Noise of the maps, why, and its measure: value of one count (n,), or mean variance (n,), harmonic; NaN for none.
    background
        (n,) mean over the pixels that count of what the maps hold that is not of the element, in units of the input.
    coefficient_errors, offset_error, prior_scale, haadf_sigma, haadf_noise, lambda_haadf
        Of the HAADF forward model its standard errors (NaN where it was given), how far its weights were taken to be off the
        atomic numbers, the standard deviation of the image about it, that of the noise of the image alone, and the
        weight of its term.
    haadf_blur
        Standard deviation in pixels of the blur that the image shows against the maps, and its standard error; NaN
        where the forward model was given.
    warnings
        Sentences about what was found.
    about_image
        Sentences about the HAADF image, of interest where it has a say.
    refit_forward_model
        The forward model of other measurements of the same, as a function of their maps less background, image, and variance of
        the maps; None where there is none to be found.
    """

    haadf: np.ndarray
    haadf_valid: np.ndarray
    noise_kind: str
    noise_sentence: str
    counts_scale: np.ndarray
    variance: np.ndarray
    background: np.ndarray
    coefficient_errors: np.ndarray
    offset_error: float
    prior_scale: float
    haadf_sigma: float
    haadf_noise: float
    lambda_haadf: float
    haadf_blur: tuple
    warnings: list = field(default_factory=list)
    about_image: list = field(default_factory=list)
    refit_forward_model: Callable | None = None

    @property
    def first(self):
        """Itself, as a mean of fits names the heaviest of its problems."""
        return self

    @property
    def uses_haadf(self):
        """Whether the image has a say in the maps, by its term or as guide."""
        return bool(self.lambda_haadf) or self.penalty.guide is not None


@dataclass(frozen=True)
class Observation:
    """What no weight of the objective changes: the data, the noise of the maps and the HAADF forward model.

    Attributes
    ----------
    scan
        The data.
    noise
        Of the maps: :class:`Counts` or :class:`Gaussian`.
    forward model
        The HAADF forward model with its errors.
    guide
        What a penalty takes from the HAADF image.
    dtype
        Of the fit.
    about_image
        Sentences about the HAADF image.
    """

    scan: ScanData
    noise: Counts | Gaussian
    forward_model: CalibratedHaadf
    guide: Guide
    dtype: np.dtype
    about_image: list = field(default_factory=list)

    @classmethod
    def of(cls, scan, settings, num_workers=None):
        """The observation of a :class:`~hyperspy_fusion.fusion.scan_data.ScanData` as measured.

        The weights of the settings are not used.

        Raises
        ------
        ValueError
            For settings that do not fit the maps, and a background that is given twice.
        """
        dtype = working_dtype(scan.maps, settings.dtype)
        scan = scan.filled()
        noise = noise_of(scan, settings)
        forward_model = _forward_model(scan, noise, settings)
        about_image = about_hot_pixels(hot_pixels(scan, noise, _shape_weights(scan, settings)))
        guide = Guide(scan.haadf, scan.haadf_valid, dtype, num_workers)
        return cls(scan, noise, forward_model, guide, dtype, about_image)

    def part(self, held_out):
        """The observation without what is held out: counts, or pixels of the maps; the forward model scaled to it."""
        scan = replace(self.scan, maps=np.where(held_out.valid, held_out.maps, 0), valid=held_out.valid)
        forward_model = replace(
            self.forward_model.forward_model, weights=self.forward_model.forward_model.weights / held_out.part
        )
        forward_model = replace(self.forward_model, forward_model=forward_model, refit_forward_model=None)
        return replace(self, scan=scan, noise=self.noise.of_part(scan, held_out), forward_model=forward_model)

    def problem(self, settings):
        """The problem under some weights."""
        scan, noise, forward_model, dtype = self.scan, self.noise, self.forward_model, self.dtype
        scales = noise.unit / scan.per_map("lambda_reg", settings.lambda_reg)
        data = noise.terms(scan, scales, dtype, settings.keep_totals)
        return CalibratedProblem(
            shape=scan.maps.shape,
            dtype=dtype,
            haadf=scan.haadf,
            haadf_valid=scan.haadf_valid,
            scales=scales,
            start=_start(scan, noise, scales, dtype),
            data=data,
            haadf_term=_haadf_term(scan, forward_model, scales, settings.lambda_haadf, dtype),
            penalty=_penalty(scan, self.guide, settings, dtype, forward_model.blur),
            noise_kind=noise.kind,
            noise_sentence=noise.sentence,
            counts_scale=noise.counts_scale,
            variance=noise.variance,
            background=scan.means_of(noise.background),
            forward_model=forward_model.forward_model,
            coefficient_errors=forward_model.coefficient_errors,
            offset_error=forward_model.offset_error,
            prior_scale=forward_model.prior_scale,
            haadf_sigma=forward_model.sigma,
            haadf_noise=forward_model.noise,
            lambda_haadf=float(settings.lambda_haadf),
            haadf_blur=forward_model.shown,
            warnings=noise.warnings
            + forward_model.warnings
            + about_totals(scan, data, settings.keep_totals)
            + self.guide.about(settings.regularization, settings),
            about_image=self.about_image,
            refit_forward_model=forward_model.refit_forward_model,
        )


# ---- the HAADF forward model -------------------------------------------------------------------------------


@dataclass(frozen=True)
class CalibratedHaadf:
    """A :class:`LinearHaadfModel`, its standard errors (NaN where given), the spread of the image about it, and warnings.

    ``sigma`` is the spread, ``noise`` the part of it that is the white noise of the image, ``prior_scale`` how far
    the weights were taken to be off the forward model by atomic numbers, NaN where that was not asked; ``refit_forward_model`` is that of
    :class:`CalibratedProblem`. ``shown`` is the blur that the image shows and its standard error, NaN where none was
    looked for; ``blur`` is that of the HAADF term.
    """

    forward_model: LinearHaadfModel
    coefficient_errors: np.ndarray
    offset_error: float
    sigma: float
    warnings: list = field(default_factory=list)
    noise: float = np.nan
    prior_scale: float = np.nan
    refit_forward_model: Callable | None = None
    shown: tuple = (np.nan, np.nan)
    blur: float = 0.0


def _forward_model(scan, noise, settings):
    """The forward model, fitted as far as it is not given, and the spread of the HAADF image about it."""
    variance = noise.noise_variance(scan)
    if not isinstance(settings.weights, str):
        found = _given_model(scan, noise, settings)
    else:
        found = _model_if_any(scan, noise, variance, settings)
    blur, told = _blur_of_term(scan, noise, found, variance, settings.haadf_blur)
    sigma = max(found.sigma, misfit(scan, noise, found.forward_model, variance, blur))
    # where the maps are made to count less than they do, the image must not gain by it
    sigma *= np.sqrt(noise.excess(scan, found.forward_model.weights))
    return replace(found, sigma=sigma, noise=found.sigma, blur=blur, warnings=found.warnings + told)


def _blur_of_term(scan, noise, found, variance, asked):
    """The blur that the HAADF term and the edges of the guide are to have, and sentences about it."""
    shown, error = found.shown
    seems = f"{shown:.2g} +- {error:.1g} pixels"
    if asked != "fit":
        is_more = asked >= LEAST_BLUR and asked - shown > _MORE * max(error, LEAST_BLUR / 2)
        sentence = (
            f"The HAADF image seems blurred by {seems}, and haadf_blur={asked:g} was passed: too large a number draws "
            "bright and dark rims along edges. Compare with haadf_blur='fit' and 0."
        )
        return (float(asked) if asked >= LEAST_BLUR else 0.0), [sentence] * bool(is_more)
    if not shown >= LEAST_BLUR:
        return 0.0, []
    if is_explained_by_blur(scan, noise, found.forward_model, variance, shown, error):
        return float(shown), []
    sentence = (
        f"Whether the HAADF image is blurred the data do not say for sure ({seems}, of which the maps must explain the "
        "image): haadf_blur='fit' is taken for 0. Pass pixels if you know them."
    )
    return 0.0, [sentence]


def _model_if_any(scan, noise, variance, settings):
    """The fitted forward model; none where the image shows nothing of the maps, or too little is there and no forward model is needed."""
    try:
        return _fitted_model(scan, noise, variance, settings)
    except ValueError as error:
        if settings.lambda_haadf not in (0, "auto") and not isinstance(error, UndeterminedModelError):
            raise
        n, level = len(scan.maps), float(np.mean(scan.haadf, where=scan.haadf_valid))
        sentence = f"No HAADF forward model was fitted, and the HAADF term cannot act. {error}"
        spread = haadf_noise(scan.haadf, scan.haadf_valid)
        return CalibratedHaadf(LinearHaadfModel(np.zeros(n), level), np.full(n, np.nan), np.nan, spread, [sentence])


def _given_model(scan, noise, settings):
    weights = scan.per_map("weights", settings.weights)
    refit_forward_model = partial(_model_of_coefficients, weights, float(settings.haadf_blur), scan.valid_in_all)
    forward_model = refit_forward_model(scan.maps - noise.background, scan.haadf)
    nothing = np.full(len(weights), np.nan)
    return CalibratedHaadf(
        forward_model,
        nothing,
        np.nan,
        haadf_noise(scan.haadf, scan.haadf_valid),
        refit_forward_model=refit_forward_model,
    )


def _shape_weights(scan, settings):
    """(n,) weights of the maps by atomic numbers, up to a factor."""
    factors = None if settings.k_factors is None else scan.per_map("k_factors", settings.k_factors)
    return z_weights(scan.atomic_numbers, settings.gamma, factors)


def _fitted_model(scan, noise, variance, settings):
    options = {
        "shape_weights": _shape_weights(scan, settings),
        "valid": scan.valid,
        "haadf_valid": scan.haadf_valid,
    }
    is_given = settings.haadf_blur != "fit" and settings.haadf_blur >= LEAST_BLUR
    blur = settings.haadf_blur if is_given else None
    # a map that the image says nothing of has no finite error
    with np.errstate(divide="ignore", invalid="ignore"):
        net = scan.maps - noise.background
        free = fit_haadf_model(net, scan.haadf, variance, weights=settings.weights, **options)
        fit = free
        if is_given:
            fit = fit_haadf_model(net, scan.haadf, variance, weights=settings.weights, blur=blur, **options)
    warnings = _about_weights(scan, fit, fit.forward_model)
    return CalibratedHaadf(
        forward_model=fit.forward_model,
        coefficient_errors=fit.standard_errors,
        offset_error=fit.offset_error,
        sigma=fit.sigma,
        warnings=warnings,
        prior_scale=fit.spread,
        shown=(free.blur, free.blur_error),
        refit_forward_model=partial(refit_haadf_model, fit, blur=blur, **options) if np.any(fit.weights > 0) else None,
    )


def _about_weights(scan, fit, forward_model):
    if not np.any(forward_model.weights > 0):
        return [
            "The HAADF image does not rise with the maps: no HAADF coefficient was found, and it does not act on them."
        ]
    found = list(zip(scan.elements, forward_model.weights > 0, fit.determined, strict=True))
    dark = [element for element, rises, _ in found if not rises]
    free = [element for element, rises, determined in found if rises and not determined]
    about_dark = f"The HAADF image does not rise with {', '.join(dark)}: no HAADF coefficient was found, and it does not act there."
    about_free = (
        f"The HAADF image does not determine the HAADF coefficient of {', '.join(free)}: it was filled in from the atomic "
        "numbers."
    )
    return [sentence for names, sentence in ((dark, about_dark), (free, about_free)) if names]


def _model_of_coefficients(weights, blur, both, maps, haadf, variance=None):
    """The forward model of given weights and blur; ``both`` are the pixels that count in maps and image."""
    if not both.any():
        raise ValueError("No pixel counts in all maps and in the HAADF image: correct the mask.")
    return LinearHaadfModel(weights, float(np.mean(haadf - np.tensordot(weights, maps, 1), where=both)), blur)


def _haadf_term(scan, found, scales, lambda_haadf, dtype):
    """The HAADF term in units of ``scales``."""
    if lambda_haadf == 0:
        return HaadfTerm.none(scan.haadf.shape, dtype, found.blur)
    factor = np.sqrt(lambda_haadf) / found.sigma
    target = np.where(scan.haadf_valid, factor * (scan.haadf - found.forward_model.offset), 0)
    counted = np.ones((1, scan.haadf.shape[1])) if scan.haadf_valid.all() else scan.haadf_valid
    weights = factor * found.forward_model.weights * scales
    return HaadfTerm(weights.astype(dtype), target.astype(dtype), np.ascontiguousarray(counted, dtype), found.blur)


# ---- penalty and start -----------------------------------------------------------------------------


def _penalty(scan, guide, settings, dtype, blur):
    kind = settings.regularization
    if kind is not None and min(scan.haadf.shape) < 2:
        ny, nx = scan.haadf.shape
        raise ValueError(
            f"The maps have {ny} x {nx} pixels and regularization={kind!r} needs at least two along both axes: pass "
            "regularization=None, or fuse by method='published'."
        )
    second_order = settings.second_order or SECOND_ORDER.get(kind, 0.0)
    return CellPenalty(kind, len(scan.maps), settings.joint, second_order, guide.of(kind, settings, dtype, blur))


def _start(scan, noise, scales, dtype):
    return np.ascontiguousarray(np.maximum(scan.net(noise.background), 0) / column(scales), dtype)
