"""The HAADF forward model of a scan as its settings ask for it: fitted, given, or none; its noise, blur and ramp."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from hyperspy_fusion.diagnostics import INFORMATION, Diagnostic
from hyperspy_fusion.fusion.haadf.calibration import fit_haadf_model, refit_haadf_model
from hyperspy_fusion.fusion.haadf.compression import compression_of
from hyperspy_fusion.fusion.haadf.estimates import UndeterminedModelError
from hyperspy_fusion.fusion.haadf.model_discrepancy import is_explained_by_blur, model_discrepancy
from hyperspy_fusion.fusion.terms.haadf_model import LinearHaadfModel, constant_in_words, haadf_noise, z_weights
from hyperspy_fusion.fusion.terms.objective import LEAST_BLUR

# standard errors by which a given blur may exceed the blur of the image
_MORE = 3.0
# standard errors above which a coefficient is significant
_SIGNIFICANT = 3.0


@dataclass(frozen=True)
class HaadfCalibration:
    """The HAADF forward model of the measured data, its errors, and the discrepancy of the image from it.

    Attributes
    ----------
    forward_model
        The :class:`LinearHaadfModel`, in units of the input.
    coefficient_errors, offset_error
        Standard errors, (n,) and one number; NaN where the coefficients were given.
    noise
        Standard deviation of the white noise of the image.
    sigma
        Standard deviation of the image about the forward model, model discrepancy included: the unit of the HAADF term.
    prior_scale
        Relative standard deviation of the coefficients about those by atomic numbers; NaN where there is no prior.
    found_blur
        Blur in pixels of the image against the maps, and its standard error; NaN where none was fitted.
    blur
        Blur in pixels of the HAADF term.
    refit
        Function of maps less background, image and variance of the maps: the forward model of other data drawn from
        this one; None where there is none to be found.
    diagnostics
        About the fit of the forward model.
    """

    forward_model: LinearHaadfModel
    coefficient_errors: np.ndarray
    offset_error: float
    noise: float
    sigma: float = np.nan
    prior_scale: float = np.nan
    found_blur: tuple = (np.nan, np.nan)
    blur: float = 0.0
    refit: Callable | None = None
    diagnostics: list = field(default_factory=list)

    def of_part(self, fraction):
        """For maps of such a fraction of the counts."""
        model = replace(self.forward_model, weights=self.forward_model.weights / fraction)
        return replace(self, forward_model=model, refit=None)

    def about(self, name):
        """With diagnostics about the image of this name."""
        return replace(self, diagnostics=[d.about_image(name) for d in self.diagnostics])


def calibrated(scan, noise, settings):
    """The :class:`HaadfCalibration` of a scan: fitted as far as it is not given.

    Parameters
    ----------
    scan
        A :class:`~.terms.scan_data.ScanData` of one image, as float64, with 0 in pixels that are not valid.
    noise
        Of the maps.
    settings
        An :class:`~.settings.ImageSettings`.
    """
    if not scan.has_contrast:
        what = constant_in_words(scan.haadf, scan.haadf_valid)
        sentence = f"The HAADF image is {what}: the maps are fused without it; pass one with contrast."
        return _without_model(scan, Diagnostic("haadf-constant", sentence), sigma=np.inf)
    variance = noise.noise_variance(scan)
    found = _found(scan, noise, variance, settings)
    blur, about_blur = _blur_of_term(scan, noise, found, variance, settings.haadf_blur)
    sigma = max(found.noise, model_discrepancy(scan, noise, found.forward_model, variance, blur))
    # the shift of the Poisson term lowers the weight of the maps; that of the image is lowered alike
    sigma *= np.sqrt(noise.excess(scan, found.forward_model.weights))
    model, about = found.forward_model, []
    if isinstance(settings.haadf_coefficients, str) and not settings.is_signed:
        # for the modelled image alone: the HAADF term stays linear, and weak where the image is not
        compression, about = compression_of(scan, scan.net(noise.background), model)
        model = replace(model, compression=compression)
    diagnostics = found.diagnostics + about_blur + about
    return replace(found, forward_model=model, sigma=sigma, blur=blur, diagnostics=diagnostics)


def _blur_of_term(scan, noise, found, variance, asked):
    """Blur in pixels of the HAADF term, as asked for or as far as it is sure, and diagnostics."""
    shown, error = found.found_blur
    seems = f"{shown:.2g} +- {error:.1g} pixels"
    if asked != "fit":
        if asked < LEAST_BLUR:
            return 0.0, []
        sentence = (
            f"haadf_blur={asked:g} is larger than the blur of the HAADF image ({seems}), which draws dark and bright "
            "rims along edges: compare with haadf_blur='fit' and 0."
        )
        is_more = asked - shown > _MORE * max(error, LEAST_BLUR / 2)
        return float(asked), [Diagnostic("haadf-blur-too-large", sentence)] if is_more else []
    if not shown >= LEAST_BLUR:
        return 0.0, []
    if is_explained_by_blur(scan, noise, found.forward_model, variance, shown, error):
        return float(shown), []
    sentence = f"The data do not determine the blur of the HAADF image ({seems}), and 0 is used: pass it in pixels."
    return 0.0, [Diagnostic("haadf-blur-unsure", sentence)]


def _found(scan, noise, variance, settings):
    """The forward model that is given or fitted."""
    if isinstance(settings.haadf_coefficients, str):
        return _fitted_or_none(scan, noise, variance, settings)
    return _given(scan, noise, settings)


def _fitted_or_none(scan, noise, variance, settings):
    """The fitted forward model; one of coefficients 0 where image and maps are unrelated or no model is needed."""
    try:
        return _fitted(scan, noise, variance, settings)
    except ValueError as error:
        if settings.lambda_haadf not in (0, "auto") and not isinstance(error, UndeterminedModelError):
            raise
        sentence = (
            "No HAADF forward model was fitted, and the HAADF term has no effect: image and maps have too little in "
            "common, or too few valid pixels."
        )
        return _without_model(scan, Diagnostic("no-haadf-model", sentence))


def _without_model(scan, diagnostic, sigma=np.nan):
    """A forward model of coefficients 0, and why."""
    level = float(np.mean(scan.haadf, where=scan.haadf_valid)) if scan.haadf_valid.any() else 0.0
    return HaadfCalibration(
        forward_model=LinearHaadfModel(np.zeros(len(scan.maps)), level),
        coefficient_errors=np.full(len(scan.maps), np.nan),
        offset_error=np.nan,
        noise=haadf_noise(scan.haadf, scan.haadf_valid),
        sigma=sigma,
        diagnostics=[diagnostic],
    )


def _given(scan, noise, settings):
    """The forward model of given coefficients, whose offset alone is fitted."""
    coefficients = scan.per_map("haadf_coefficients", settings.haadf_coefficients)
    refit = partial(_model_of_coefficients, coefficients, float(settings.haadf_blur), scan.valid_in_all)
    return HaadfCalibration(
        forward_model=refit(scan.maps - noise.background, scan.haadf),
        coefficient_errors=np.full(len(coefficients), np.nan),
        offset_error=np.nan,
        noise=haadf_noise(scan.haadf, scan.haadf_valid),
        refit=refit,
    )


def _model_of_coefficients(coefficients, blur, both, maps, haadf, variance=None):
    """The forward model of given coefficients and blur; ``both`` are the valid pixels of maps and image."""
    if not both.any():
        raise ValueError("No pixel is valid in all maps and in the HAADF image: correct the mask.")
    offset = float(np.mean(haadf - np.tensordot(coefficients, maps, 1), where=both))
    return LinearHaadfModel(coefficients, offset, blur)


def shape_weights(scan, settings):
    """(n,) HAADF coefficients by atomic numbers, up to a factor."""
    factors = None if settings.k_factors is None else scan.per_map("k_factors", settings.k_factors)
    return z_weights(scan.atomic_numbers, settings.z_exponent, factors)


def _fitted(scan, noise, variance, settings):
    options = {
        "shape_weights": shape_weights(scan, settings),
        "valid": scan.valid,
        "haadf_valid": scan.haadf_valid,
        "signed": settings.is_signed,
    }
    is_given = settings.haadf_blur != "fit" and settings.haadf_blur >= LEAST_BLUR
    blur = settings.haadf_blur if is_given else None
    # a map without contrast in the image has no finite error
    with np.errstate(divide="ignore", invalid="ignore"):
        net = scan.maps - noise.background
        free = fit_haadf_model(net, scan.haadf, variance, weights=settings.haadf_coefficients, **options)
        fit = free
        if is_given:
            fit = fit_haadf_model(net, scan.haadf, variance, weights=settings.haadf_coefficients, blur=blur, **options)
    if settings.is_signed and fit.is_unrelated:
        sentence = "The HAADF image has nothing in common with the maps: it has no effect on them."
        return _without_model(scan, Diagnostic("haadf-unrelated", sentence))
    return HaadfCalibration(
        forward_model=fit.forward_model,
        coefficient_errors=fit.standard_errors,
        offset_error=fit.offset_error,
        noise=fit.sigma,
        prior_scale=fit.prior_scale,
        found_blur=(free.blur, free.blur_error),
        refit=partial(refit_haadf_model, fit, blur=blur, **options) if np.any(fit.weights) else None,
        diagnostics=_about_coefficients(scan, fit),
    )


def _about_coefficients(scan, fit):
    rises = fit.weights != 0  # below 0 only where an image may fall with the maps
    if not np.any(rises):
        sentence = "The HAADF image does not rise with the maps: the HAADF term has no effect on them."
        return [Diagnostic("haadf-unrelated", sentence)]
    pairs = list(zip(scan.elements, rises, fit.determined, strict=True))
    dark = tuple(element for element, is_bright, _ in pairs if not is_bright)
    free = tuple(element for element, is_bright, is_determined in pairs if is_bright and not is_determined)
    found = [
        (dark, "haadf-coefficient-zero", "The HAADF image does not rise with {}: the HAADF term has no effect on it."),
        (free, "haadf-coefficient-prior", "The HAADF coefficient of {} was set by atomic numbers, not by the data."),
    ]
    return [Diagnostic(code, text.format(", ".join(names)), INFORMATION, names) for names, code, text in found if names]


def without_ramp(scan, noise, settings):
    """The image less the plane that its forward model does not explain, and diagnostics.

    The forward model is fitted to the image and the maps, each less its own plane (Frisch and Waugh, Econometrica 1,
    387, 1933): what the maps explain of the plane of the image, such as a wedge of thickness, stays.
    """
    net, used = scan.net(noise.background), scan.valid_in_all
    maps = np.where(scan.valid, scan.maps - np.stack([_plane(one, used) for one in net]), 0)
    flat = replace(scan, maps=maps, haadf=np.where(scan.haadf_valid, scan.haadf - _plane(scan.haadf, used), 0))
    if not flat.has_contrast:
        return np.where(scan.haadf_valid, flat.haadf, 0), []
    found = _found(flat, noise, noise.noise_variance(scan), settings)
    plane = _plane(scan.haadf - found.forward_model.image(net), used)
    return np.where(scan.haadf_valid, scan.haadf - plane, 0), _about_ramp(found, net, used)


def _about_ramp(found, net, used):
    """A diagnostic where errors of the coefficients move the plane by more than the noise, or none is significant."""
    errors, weights = found.coefficient_errors, np.abs(found.forward_model.weights)
    plane = _plane(np.tensordot(np.nan_to_num(errors, posinf=0), net, 1), used)
    is_given = np.isnan(errors).all() and weights.any()
    if is_given or (plane.std() <= found.noise and np.any(weights > _SIGNIFICANT * errors)):
        return []
    sentence = (
        "The HAADF image and the maps share little but a plane, and remove_ramp may have taken a wedge of the specimen "
        "for a ramp: compare with remove_ramp=False."
    )
    return [Diagnostic("haadf-ramp-unsure", sentence)]


def _plane(image, used):
    """The plane, of mean 0, of least squares to pixels of an image; 0 where there are too few."""
    y, x = (place - place.mean() for place in np.indices(image.shape, dtype=np.float64))
    if np.count_nonzero(used) < 3:
        return np.zeros(image.shape)
    basis = np.stack([np.ones(np.count_nonzero(used)), y[used], x[used]], axis=1)
    _, down, right = np.linalg.lstsq(basis, image[used], rcond=None)[0]
    return down * y + right * x
