"""The calibrated objective: counts, HAADF forward model and penalty in natural units, convex.

    minimise over x >= 0:  sum D(x_i; b_i) + lambda_haadf / (2 sigma^2) ||h - G f(x)||^2 + R(x_1 / s_1, x_2 / s_2, ...)

D is half the deviance of counts, or least squares in units of the noise; f is linear, G a blur, and the total of every
map is kept. The natural unit ``s_i`` is the noise of a typical pixel of map i over ``lambda_reg``. In these units the
penalty has the weight 1, and the problem no longer depends on dose, size and scale of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from hyperspy_fusion.diagnostics import INFORMATION, Diagnostic
from hyperspy_fusion.fusion.haadf.calibration import fit_haadf_model, refit_haadf_model
from hyperspy_fusion.fusion.haadf.estimates import UndeterminedModelError
from hyperspy_fusion.fusion.haadf.guide import Guide, completed_guide
from hyperspy_fusion.fusion.haadf.hot_pixels import about_hot_pixels, hot_pixels
from hyperspy_fusion.fusion.haadf.model_discrepancy import is_explained_by_blur, model_discrepancy
from hyperspy_fusion.fusion.problems.resampling import resampled
from hyperspy_fusion.fusion.settings import working_dtype
from hyperspy_fusion.fusion.solvers.multilevel import multilevel_start
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual
from hyperspy_fusion.fusion.terms.data_fidelity import Counts, DataTerms, Gaussian, about_totals, noise_of
from hyperspy_fusion.fusion.terms.haadf_model import LinearHaadfModel, constant_in_words, haadf_noise, z_weights
from hyperspy_fusion.fusion.terms.objective import LEAST_BLUR, HaadfTerm, Objective
from hyperspy_fusion.fusion.terms.penalties import SECOND_ORDER, CellPenalty, cell_adjoint
from hyperspy_fusion.fusion.terms.scan_data import ScanData, column

# standard errors by which a given blur may exceed the blur of the image
_MORE = 3.0


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


@dataclass(frozen=True)
class CalibratedProblem(Objective):
    """One objective, with the data, the noise model and the HAADF calibration that it was made from.

    Satisfies :class:`~hyperspy_fusion.fusion.problems.base.FusionProblem`.

    Attributes
    ----------
    scan
        The :class:`ScanData`, as float64, with 0 in masked pixels.
    noise
        Of the maps: :class:`Counts` or :class:`Gaussian`.
    calibration
        The :class:`HaadfCalibration`.
    guide
        The :class:`Guide` behind the penalty.
    lambda_haadf
        Weight of the HAADF term.
    diagnostics
        Findings about the data.
    """

    data: DataTerms
    scan: ScanData
    noise: Counts | Gaussian
    calibration: HaadfCalibration
    guide: Guide
    lambda_haadf: float
    diagnostics: list = field(default_factory=list)

    @property
    def of_largest_weight(self):
        """The problem itself."""
        return self

    @property
    def uses_haadf(self):
        """Whether the HAADF image contributes to the maps, by its term or as guide."""
        return bool(self.lambda_haadf) or self.penalty.guide is not None

    @property
    def fits_haadf_model(self):
        """Whether the HAADF term acts by a forward model that can be fitted again."""
        return self.calibration.refit is not None and self.haadf_term.weights.size > 0

    @property
    def background(self):
        """(n,) mean background of the maps over valid pixels, in units of the input."""
        return self.scan.means_of(self.noise.background)

    # ---- start, solve, resample --------------------------------------------------------------------

    def start(self, state, fraction=1.0):
        """The :class:`PrimalDualState` of the maps of another problem's state, of such a fraction of the counts."""
        return state.restarted(self, fraction)

    def coarse_start(self, alike=None, num_workers=None):
        """The state to start from a coarse fit; its standard errors are those of the state ``alike`` if it is given."""
        return multilevel_start(self, num_workers, alike)

    def solve(self, settings, state=None, callback=None, num_workers=None):
        """Result and state, by :func:`~hyperspy_fusion.fusion.solvers.primal_dual.primal_dual`; see there.

        None starts from a coarse fit.
        """
        state = self.coarse_start(num_workers=num_workers) if state is None else state
        return primal_dual(self, settings, state, callback, num_workers)

    def fits(self, state):
        """One fit, with weights of 1."""
        return [(self, state)], np.ones((1, len(self.scales)))

    def resample(self, settings, state, maps, seed, earlier=()):
        """The problem of one bootstrap replicate; see :meth:`~.base.FusionProblem.resample`."""
        return resampled(self, settings, maps, seed, earlier)

    # ---- counts and residuals of maps in units of the input ----------------------------------------

    @property
    def valid(self):
        """(n, ny, nx) bool: pixels in the data term."""
        return np.broadcast_to(self.data.slope > 0, self.shape)

    def natural(self, maps):
        """(n, ny, nx) maps in natural units, as float64."""
        return maps / column(self.scales).astype(np.float64)

    def measured(self):
        """(n, ny, nx) measured maps less background, as the data term has them; anything in masked pixels."""
        return self.data.net() * column(self.scales)

    def residual(self, maps):
        """(n, ny, nx) measured, less background, minus fitted maps; 0 in masked pixels."""
        return np.where(self.valid, self.measured() - maps, 0)

    def expected_counts(self, maps):
        """(n, ny, nx) mean counts of the maps, those of the background included."""
        slope, delta = (a.astype(np.float64) for a in (self.data.slope, self.data.delta))
        return np.maximum(slope * (self.natural(maps) + delta) - self.noise.shift, 0)

    def count_variance(self, maps):
        """(n, ny, nx) variance of measurements whose truth are ``maps``; NaN in masked pixels."""
        if self.data.is_poisson:
            variance = column(self.noise.counts_scale) ** 2 * self.expected_counts(maps)
        else:
            slope = np.where(self.data.slope > 0, self.data.slope, 1).astype(np.float64)
            variance = np.broadcast_to(column(self.scales) ** 2 / slope, maps.shape)
        return np.where(self.valid, variance, np.nan)

    def attribution(self, state, maps):
        """What moved each pixel from the measured to the fused map.

        At the minimum the gradients of all terms balance. That of the data is ``(x - b) / V``, with ``V`` the variance
        of measurements of mean x (shift included), so that exactly

            x - b = -V (gradient of HAADF term + of penalty + of totals + of the bound at 0).

        Returns
        -------
        dict of numpy.ndarray
            ``"haadf"``, ``"penalty"``, ``"totals"`` and ``"bound"``, (n, ny, nx) in units of the maps, of sum fused
            minus measured (less background). ``"bound"`` includes what the solver has left undone.
        """
        term, z = self.haadf_term, self.natural(maps)
        step = np.where(self.valid, self.data.step_length(z) * column(self.scales), np.nan)
        gradient = np.zeros((1, 1, 1))
        if term.weights.size:
            gradient = np.multiply.outer(term.weights.astype(np.float64), term.gradient(term.image(z)))
        parts = {
            "haadf": -step * gradient,
            "penalty": -step * cell_adjoint(state.y.astype(np.float64)),
            "totals": -step * column(state.theta),
        }
        parts["bound"] = np.where(self.valid, -self.residual(maps), np.nan) - sum(parts.values())
        return parts


@dataclass(frozen=True)
class Observation:
    """What no weight of the objective changes: the data, the noise of the maps and the HAADF calibration.

    Attributes
    ----------
    scan
        The :class:`ScanData`, as float64, with 0 in masked pixels.
    noise
        Of the maps: :class:`Counts` or :class:`Gaussian`.
    calibration
        The :class:`HaadfCalibration`.
    guide
        The :class:`Guide` of penalties by the HAADF image.
    dtype
        Of the fit.
    about_image
        Diagnostics about the HAADF image, of interest where it contributes.
    """

    scan: ScanData
    noise: Counts | Gaussian
    calibration: HaadfCalibration
    guide: Guide
    dtype: np.dtype
    about_image: list = field(default_factory=list)
    kind = "maps"

    @classmethod
    def of(cls, scan, settings, num_workers=None):
        """The observation of a :class:`~hyperspy_fusion.fusion.terms.scan_data.ScanData` as measured.

        The weights of the settings are not used.

        Raises
        ------
        ValueError
            For settings that do not fit the maps, and a background that is given twice.
        """
        dtype = working_dtype(settings.dtype)
        scan = scan.filled()
        noise = noise_of(scan, settings)
        hot = hot_pixels(scan, noise, shape_weights(scan, settings))
        scan = replace(scan, haadf_valid=scan.haadf_valid & ~hot).filled()
        calibration = _calibrated(scan, noise, settings)
        maps = scan.net(noise.background), scan.valid, noise.noise_variance(scan)
        guide = completed_guide(scan.haadf, scan.haadf_valid, calibration.forward_model, *maps, dtype, num_workers)
        return cls(scan, noise, calibration, guide, dtype, about_hot_pixels(hot))

    def part(self, held_out):
        """The observation without the held-out counts, or pixels of the maps; the forward model scaled to it."""
        scan = replace(self.scan, maps=np.where(held_out.valid, held_out.maps, 0), valid=held_out.valid)
        model = self.calibration.forward_model
        model = replace(model, weights=model.weights / held_out.fraction)
        calibration = replace(self.calibration, forward_model=model, refit=None)
        return replace(self, scan=scan, noise=self.noise.of_part(scan, held_out), calibration=calibration)

    def problem(self, settings):
        """The :class:`CalibratedProblem` with the weights of ``settings``."""
        scan, noise, calibration, dtype = self.scan, self.noise, self.calibration, self.dtype
        scales = noise.unit / scan.per_map("lambda_reg", settings.lambda_reg)
        data = noise.terms(scan, scales, dtype, settings.keep_totals)
        model, blur = calibration.forward_model, calibration.blur
        factor = np.sqrt(settings.lambda_haadf) / calibration.sigma if settings.lambda_haadf != 0 else 0.0
        penalty = _penalty(scan, self.guide, settings, dtype, blur)
        uses_haadf = settings.lambda_haadf != 0 or penalty.guide is not None
        return CalibratedProblem(
            scales=scales,
            initial_maps=np.ascontiguousarray(np.maximum(scan.net(noise.background), 0) / column(scales), dtype),
            data=data,
            haadf_term=HaadfTerm.of(scan, model, factor, scales, dtype, blur),
            penalty=penalty,
            forward_model=model,
            scan=scan,
            noise=noise,
            calibration=calibration,
            guide=self.guide,
            lambda_haadf=float(settings.lambda_haadf),
            diagnostics=[
                *noise.diagnostics,
                *calibration.diagnostics,
                *about_totals(scan, data, settings.keep_totals),
                *self.guide.about(settings.regularization, settings),
                *(self.about_image if uses_haadf else []),
            ],
        )


def _penalty(scan, guide, settings, dtype, blur):
    kind = None if settings.regularization == "none" else settings.regularization
    ny, nx = scan.haadf.shape
    if kind is not None and min(ny, nx) < 2:
        raise ValueError(
            f"The maps have {ny} x {nx} pixels and regularization={kind!r} needs at least two along both axes: pass "
            "regularization='none', or fuse by method='published'."
        )
    second_order = settings.second_order or SECOND_ORDER.get(kind or "", 0.0)
    return CellPenalty(kind, len(scan.maps), settings.joint, second_order, guide.of(kind, settings, dtype, blur))


# ---- calibration of the HAADF forward model ----------------------------------------------------------


def _calibrated(scan, noise, settings):
    """The forward model, fitted as far as it is not given, and the dispersion of the HAADF image about it."""
    if not scan.has_contrast:
        what = constant_in_words(scan.haadf, scan.haadf_valid)
        sentence = f"The HAADF image is {what}: the maps are fused without it; pass one with contrast."
        return _without_model(scan, Diagnostic("haadf-constant", sentence), sigma=np.inf)
    variance = noise.noise_variance(scan)
    if isinstance(settings.haadf_coefficients, str):
        found = _fitted_or_none(scan, noise, variance, settings)
    else:
        found = _given(scan, noise, settings)
    blur, about_blur = _blur_of_term(scan, noise, found, variance, settings.haadf_blur)
    sigma = max(found.noise, model_discrepancy(scan, noise, found.forward_model, variance, blur))
    # the shift of the Poisson term lowers the weight of the maps; that of the image is lowered alike
    sigma *= np.sqrt(noise.excess(scan, found.forward_model.weights))
    return replace(found, sigma=sigma, blur=blur, diagnostics=found.diagnostics + about_blur)


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
    return HaadfCalibration(
        forward_model=fit.forward_model,
        coefficient_errors=fit.standard_errors,
        offset_error=fit.offset_error,
        noise=fit.sigma,
        prior_scale=fit.prior_scale,
        found_blur=(free.blur, free.blur_error),
        refit=partial(refit_haadf_model, fit, blur=blur, **options) if np.any(fit.weights > 0) else None,
        diagnostics=_about_coefficients(scan, fit),
    )


def _about_coefficients(scan, fit):
    rises = fit.weights > 0
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
