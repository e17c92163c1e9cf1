"""The calibrated objective: counts, HAADF forward model and penalty in natural units, convex.

    minimise over x >= 0:  sum D(x_i; b_i) + lambda_haadf / (2 sigma^2) ||h - G f(x)||^2 + R(x_1 / s_1, x_2 / s_2, ...)

D is half the deviance of counts, or least squares in units of the noise; f is linear, G a blur, and the total of every
map is kept. The natural unit ``s_i`` is the noise of a typical pixel of map i over ``lambda_reg``. In these units the
penalty has the weight 1, and the problem no longer depends on dose, size and scale of the data.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from hyperspy_fusion.fusion.checks import check_number_of_images
from hyperspy_fusion.fusion.haadf.forward_model import HaadfCalibration, calibrated, shape_weights, without_ramp
from hyperspy_fusion.fusion.haadf.guide import Guide, completed_guide
from hyperspy_fusion.fusion.haadf.hot_pixels import about_hot_pixels, hot_pixels
from hyperspy_fusion.fusion.problems.resampling import resampled, term_of
from hyperspy_fusion.fusion.settings import working_dtype
from hyperspy_fusion.fusion.solvers import kernels
from hyperspy_fusion.fusion.solvers.multilevel import multilevel_start
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual
from hyperspy_fusion.fusion.solvers.threads import one_blas_thread
from hyperspy_fusion.fusion.terms.data_fidelity import Counts, DataTerms, Gaussian, about_totals, noise_of
from hyperspy_fusion.fusion.terms.haadf_model import blurred
from hyperspy_fusion.fusion.terms.objective import Objective
from hyperspy_fusion.fusion.terms.penalties import SECOND_ORDER, CellPenalty, cell_adjoint
from hyperspy_fusion.fusion.terms.scan_data import ScanData, column


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
    further, further_lambdas
        The :class:`HaadfCalibration` and the weight of every further elastic image of the scan.
    """

    data: DataTerms
    scan: ScanData
    noise: Counts | Gaussian
    calibration: HaadfCalibration
    guide: Guide
    lambda_haadf: float
    diagnostics: list = field(default_factory=list)
    further: tuple = ()
    further_lambdas: tuple = ()

    @property
    def of_largest_weight(self):
        """The problem itself."""
        return self

    @property
    def uses_haadf(self):
        """Whether the HAADF image contributes to the maps, by its term or as guide."""
        return bool(self.lambda_haadf or any(self.further_lambdas)) or self.penalty.guide is not None

    @property
    def fits_haadf_model(self):
        """Whether the HAADF term acts by a forward model that can be fitted again."""
        return self.calibration.refit is not None and self.haadf_term.weights.size > 0

    @property
    def n_images(self):
        """The number of elastic images."""
        return 1 + len(self.further)

    @property
    def image_weights(self):
        """(K,) weights of the HAADF terms of all elastic images."""
        return np.array([self.lambda_haadf, *self.further_lambdas])

    def image(self, k):
        """The scan with elastic image k alone, its :class:`HaadfCalibration`, and its term."""
        if k == 0:
            calibration = replace(self.calibration, forward_model=self.forward_model)
            return self.scan.with_image(0), calibration, self.haadf_term
        return self.scan.with_image(k), self.further[k - 1], self.further_terms[k - 1]

    def modelled_image(self, maps, k):
        """(ny, nx) elastic image k of maps (n, ny, nx) in units of the input, with the blur of its term."""
        _, calibration, term = self.image(k)
        model = calibration.forward_model
        return model.compressed(blurred(model.image(maps), term.blur))

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

    def columns(self, state):
        """(n, ny, nx) maps of a fit, which held-out data judge."""
        return state.maps()

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
            minus measured (less background), and the names of further images. ``"bound"`` includes what the solver has
            left undone.
        """
        z = self.natural(maps)
        step = np.where(self.valid, self.data.step_length(z) * column(self.scales), np.nan)
        names = ["haadf", *(image.name for image in self.scan.further)]
        terms = (self.haadf_term, *self.further_terms)
        parts = {
            **{name: -step * _gradient(term, z) for name, term in zip(names, terms, strict=True)},
            "penalty": -step * cell_adjoint(state.y),
            "totals": -step * column(state.theta),
        }
        parts["bound"] = np.where(self.valid, -self.residual(maps), np.nan) - sum(parts.values())
        return parts


def _gradient(term, z):
    """(n, ny, nx) of a HAADF term at maps z."""
    if not term.weights.size:
        return np.zeros((1, 1, 1))
    return np.multiply.outer(term.weights.astype(np.float64), term.gradient(term.image(z)))


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
    further
        The :class:`HaadfCalibration` of every further elastic image.
    """

    scan: ScanData
    noise: Counts | Gaussian
    calibration: HaadfCalibration
    guide: Guide
    dtype: np.dtype
    about_image: list = field(default_factory=list)
    further: tuple = ()
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
        check_number_of_images(settings, 1 + len(scan.further))
        noise, of_haadf = noise_of(scan, settings), settings.of_image(0)
        hot = hot_pixels(scan, noise, shape_weights(scan, of_haadf))
        scan = replace(scan, haadf_valid=scan.haadf_valid & ~hot).filled()
        calibrations = []
        for k in range(1 + len(scan.further)):
            own, about_ramp = settings.of_image(k), []
            if own.remove_ramp:
                image, about_ramp = without_ramp(scan.with_image(k), noise, own)
                scan = scan.replaced(k, image)
            with one_blas_thread, kernels.threads(num_workers):
                found = calibrated(scan.with_image(k), noise, own)
            calibrations.append(replace(found, diagnostics=found.diagnostics + about_ramp))
        calibration, *further = calibrations
        further = [one.about(image.name) for one, image in zip(further, scan.further, strict=True)]
        maps = scan.net(noise.background), scan.valid, noise.noise_variance(scan)
        guide = completed_guide(scan.haadf, scan.haadf_valid, calibration.forward_model, *maps, dtype, num_workers)
        return cls(scan, noise, calibration, guide, dtype, about_hot_pixels(hot), tuple(further))

    @property
    def effective_images(self):
        """Whether the forward model of each elastic image has an effect on the maps."""
        return [bool(one.forward_model.weights.any()) for one in (self.calibration, *self.further)]

    def part(self, held_out):
        """The observation without the held-out counts, or pixels of the maps; the forward model scaled to it."""
        scan = replace(self.scan, maps=np.where(held_out.valid, held_out.maps, 0), valid=held_out.valid)
        calibration, *further = (one.of_part(held_out.fraction) for one in (self.calibration, *self.further))
        noise = self.noise.of_part(scan, held_out)
        return replace(self, scan=scan, noise=noise, calibration=calibration, further=tuple(further))

    def cropped(self, window):
        """The observation of two slices (y, x), with the noise model and the forward model of the whole."""
        scan, noise, guide = (one.cropped(window) for one in (self.scan, self.noise, self.guide))
        return replace(self, scan=scan, noise=noise, guide=guide)

    def problem(self, settings):
        """The :class:`CalibratedProblem` with the weights of ``settings``."""
        scan, noise, calibration, dtype = self.scan, self.noise, self.calibration, self.dtype
        scales = noise.unit / scan.per_map("lambda_reg", settings.lambda_reg)
        data = noise.terms(scan, scales, dtype, settings.keep_totals)
        calibrations = (calibration, *self.further)
        lambdas = [float(settings.of_image(k).lambda_haadf) for k in range(len(calibrations))]
        haadf_term, *further_terms = (
            term_of(scan.with_image(k), one, weight, scales, dtype, one.blur)
            for k, (one, weight) in enumerate(zip(calibrations, lambdas, strict=True))
        )
        penalty = _penalty(scan, self.guide, settings, dtype, calibration.blur)
        uses_haadf = any(lambdas) or penalty.guide is not None
        return CalibratedProblem(
            scales=scales,
            initial_maps=np.ascontiguousarray(np.maximum(scan.net(noise.background), 0) / column(scales), dtype),
            data=data,
            haadf_term=haadf_term,
            penalty=penalty,
            forward_model=calibration.forward_model,
            scan=scan,
            noise=noise,
            calibration=calibration,
            guide=self.guide,
            lambda_haadf=lambdas[0],
            further=self.further,
            further_lambdas=tuple(lambdas[1:]),
            further_terms=tuple(further_terms),
            diagnostics=[
                *noise.diagnostics,
                *(d for one in calibrations for d in one.diagnostics),
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
