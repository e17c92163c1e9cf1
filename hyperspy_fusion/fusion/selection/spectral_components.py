"""Fits to the principal components of whole spectra, from which the maps of the elements follow.

Out-of-window counts carry information about the phases too. Window counts ``c_i`` and those of further bands, whitened
by their mean noise, ``y_i = c_i / sqrt(q_i mean c_i)``, lie near a space of few dimensions where few phases are mixed
(Keenan & Kotula, Surf. Interface Anal. 36, 203, 2004). Its axes U are the eigenvectors of the mean product of
*neighbouring* pixels. Their noise is independent, so that the product has none.

The components ``t = U^T y`` are fused as maps are, by the same penalties. With the result x, ``U x`` is the estimate of
all bands, those of the windows among them. It has only the noise along U, but it loses what a single element shows.
The average with fits to the maps has both.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from hyperspy_fusion.fusion.problems.calibrated import CalibratedProblem, Observation
from hyperspy_fusion.fusion.problems.resampling import guided_by
from hyperspy_fusion.fusion.selection.cross_validation import FEWEST_COUNTS, N_COUNT_FOLDS, thinned
from hyperspy_fusion.fusion.solvers.primal_dual_state import PrimalDualState, Stopping
from hyperspy_fusion.fusion.terms.scan_data import ScanData, column

_logger = logging.getLogger(__name__)

# standard deviation in pixels of the Gaussian over neighbours, and of that by which variances are averaged
_WIDTH = 3.0
# variance of a band where it has no counts, as a fraction of its mean
_LEAST_VARIANCE = 0.1
# eigenvalues so many times the largest one of noise are components, within limits
_SIGNIFICANT, MOST_COMPONENTS = 2.0, 8
# a component of p times the signal variance is smoothed p**-0.25 times as much; found by held-out counts
_EXPONENT = 0.25


@dataclass(frozen=True)
class Components:
    """Components of spectra as an observation of their own.

    Attributes
    ----------
    observation
        r components as Gaussian maps.
    strengths
        (r,) signal variance, falling.
    directions
        (r, n) components of one unit of each map.
    readout
        (n, r) maps of one unit of each component.
    offset
        (r,) added to components, which the solver keeps above 0.
    of_maps
        The observation of the maps.
    out_of_window_variance
        (r, ny, nx) variance of components from the out-of-window counts.
    totals
        (n,) of the maps over valid pixels, less their background, to be kept; NaN for none.
    axes
        (bands, r) of the whitened bands.
    """

    observation: Observation
    strengths: np.ndarray
    directions: np.ndarray
    readout: np.ndarray
    offset: np.ndarray
    of_maps: Observation
    out_of_window_variance: np.ndarray
    totals: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, observation, out_of_window, settings, number=None):
        """Components of maps and out-of-window counts.

        Parameters
        ----------
        observation
            Of the maps, counts.
        out_of_window
            (B, ny, nx) counts of other channels.
        settings
            A :class:`~hyperspy_fusion.fusion.settings.CalibratedSettings`: those of HAADF image and precision are used.
        number
            Of components; None for all above the noise.
        """
        scan, noise = observation.scan, observation.noise
        used, n = scan.valid.all(axis=0), len(scan.maps)
        out_of_window = out_of_window[np.any(out_of_window, axis=(1, 2), where=used)]
        bands = np.concatenate([scan.maps, out_of_window])
        means = np.mean(bands, axis=(1, 2), where=used)
        bands[:, ~used] = means[:, None]
        whitening = np.sqrt(np.concatenate([noise.counts_scale, np.ones(len(out_of_window))]) * means)
        bands /= whitening[:, None, None]
        found = found_components(bands, number, used, observation, settings)
        axes = found.axes
        totals = np.sum(scan.maps - noise.background, axis=(1, 2), where=scan.valid)
        return cls(
            observation=found.observation,
            strengths=found.strengths,
            directions=axes[:n].T / whitening[:n],
            readout=axes[:n] * whitening[:n, None],
            offset=found.offset,
            of_maps=observation,
            out_of_window_variance=_variance(axes[n:], bands[n:]),
            totals=np.where(settings.keep_totals, totals, np.nan),
            axes=axes,
        )

    def problem(self, settings):
        """The :class:`ComponentProblem` under the penalty and the weight of some settings."""
        return ComponentProblem(self, problem_of_components(self, settings))

    def maps(self, components):
        """(n, ny, nx) maps of components (r, ny, nx) as they are fitted, with their offset."""
        counts = np.tensordot(self.readout, components - self.offset[:, None, None], 1)
        maps = np.maximum(counts - self.of_maps.noise.background, 0)
        totals = np.sum(maps, axis=(1, 2), where=self.of_maps.scan.valid)
        kept = (self.totals > 0) & (totals > 0)
        factors = np.divide(self.totals, totals, out=np.ones_like(totals), where=kept)
        return (maps * factors[:, None, None]).astype(components.dtype)


class FoundComponents(NamedTuple):
    """Components of whitened bands: as an observation with an offset, their strengths, and the axes (bands, r)."""

    observation: Observation
    strengths: np.ndarray
    axes: np.ndarray
    offset: np.ndarray


def found_components(bands, number, used, observation, settings):
    """The :class:`FoundComponents` of bands (B, ny, nx) with the mean in pixels not ``used``; None for any number."""
    strengths, axes = _signal_axes(bands)
    r = number_of_components(strengths) if number is None else min(number, len(strengths))
    axes = axes[:, :r]
    components, variance = np.tensordot(axes.T, bands, 1), _variance(axes, bands)
    # far above what noise takes it to
    offset = 5 + 2 * np.array([max(-gaussian_filter(c, _WIDTH / 2).min(), 0.0) for c in components])
    offset += 5 * np.sqrt(variance.mean(axis=(1, 2)))
    observed = _observed(components + offset[:, None, None], variance, used, observation, settings)
    return FoundComponents(observed, np.maximum(strengths[:r], 1e-4 * strengths[0]), axes, offset)


def problem_of_components(components, settings):
    """The :class:`CalibratedProblem` of components under the penalty and the weight of some settings."""
    weights = settings.lambda_reg * (components.strengths / components.strengths[0]) ** -_EXPONENT
    return components.observation.problem(_component_settings(settings, weights))


def _component_settings(settings, weights):
    """Settings for Gaussian maps of known variance, without a HAADF term."""
    ones = (1.0,) * len(weights)
    known = {"noise": "gaussian", "variance": None, "background": 0.0, "haadf_coefficients": ones, "k_factors": None}
    known |= {"haadf_blur": 0.0, "remove_ramp": False, "z_exponent": settings.of_image(0).z_exponent}
    return replace(settings, lambda_reg=tuple(weights), lambda_haadf=0.0, joint=True, **known)


def _observed(components, variance, used, observation, settings):
    valid = np.broadcast_to(used, components.shape)
    scan, one = observation.scan, [1.0] * len(components)
    names = [f"component {k + 1}" for k in range(len(components))]
    of_components = ScanData(names, one, components, scan.haadf, valid, scan.haadf_valid, variance=variance)
    found = Observation.of(of_components, _component_settings(replace(settings, lambda_reg=1.0), one))
    calibration = replace(found.calibration, blur=observation.calibration.blur)
    return replace(found, calibration=calibration, guide=observation.guide, dtype=observation.dtype)


def _signal_axes(bands):
    """Eigenvalues, falling, and eigenvectors of the mean product of each pixel with its neighbours."""
    at_itself = gaussian_filter(np.eye(1, 81, 40), (0, _WIDTH), mode="constant").max() ** 2
    product = np.empty((len(bands), len(bands)))
    for k, band in enumerate(bands):
        # zeros beyond the edges, so that no pixel is its own neighbour
        around = gaussian_filter(band, _WIDTH, mode="constant") - at_itself * band
        product[k] = np.tensordot(bands, around, ((1, 2), (0, 1))) / band.size
    values, vectors = np.linalg.eigh((product + product.T) / 2)
    return values[::-1], vectors[:, ::-1]


def number_of_components(strengths):
    """The number of eigenvalues above those of noise, which are as often negative as positive."""
    return int(np.clip(np.count_nonzero(strengths > _SIGNIFICANT * -strengths.min()), 1, MOST_COMPONENTS))


def _variance(axes, bands):
    """(r, ny, nx) variance of components from some whitened bands, proportional to the averaged counts of each."""
    squares = (axes**2).T
    of_counts = gaussian_filter(np.tensordot(squares / bands.mean(axis=(1, 2)), bands, 1), (0, _WIDTH, _WIDTH))
    return (of_counts + _LEAST_VARIANCE * squares.sum(axis=1)[:, None, None]) / (1 + _LEAST_VARIANCE)


@dataclass(frozen=True)
class ComponentProblem:
    """A problem of components, whose solution is maps: part of an ensemble, after the problems of the maps themselves.

    Attributes
    ----------
    components
        The :class:`Components`.
    inner
        A :class:`~hyperspy_fusion.fusion.problems.calibrated.CalibratedProblem` of them.
    """

    components: Components
    inner: CalibratedProblem
    diagnostics = ()

    @property
    def penalty(self):
        """That of the components."""
        return self.inner.penalty

    @property
    def uses_haadf(self):
        """Whether the HAADF image contributes to the components."""
        return self.inner.uses_haadf

    def start(self, state, fraction=1.0):
        """The state to start from the components of ``state``, of such a fraction of the counts."""
        return self.inner.start(state, fraction)

    def rotated(self, state, components, fraction):
        """The state to start from one of other :class:`Components`, of such a fraction of the counts.

        Their axes are nearly the same, but for signs and for the order of components of alike strengths. Gradients with
        respect to components rotate with them, and duals are gradients in natural units. None where axes are of other
        bands, and for penalties with slopes.
        """
        own, inner = self.components, self.inner
        if len(own.axes) != len(components.axes) or inner.penalty.n_fields:
            return None
        rotation, old, new = own.axes.T @ components.axes, column(state.problem.scales), column(inner.scales)
        before = (state.z * old - column(components.offset)) / np.sqrt(fraction)
        z = np.maximum(np.tensordot(rotation, before, 1) + column(own.offset), 0) / new
        of_duals = new[:, :, 0] * rotation / old[:, 0].T
        y = np.moveaxis(np.tensordot(of_duals, state.y, (1, 1)), 0, 1)
        errors = np.linalg.norm(rotation * state.standard_errors * old.ravel(), axis=1) / new.ravel()
        z, y = (np.ascontiguousarray(a, inner.dtype) for a in (z, y))
        start = PrimalDualState.of(inner, z=z, y=y, theta=of_duals @ state.theta, ratios=state.ratios)
        return replace(start, standard_errors=errors)

    def coarse_start(self, alike=None, num_workers=None):
        """The state to start from a coarse fit to the components."""
        return self.inner.coarse_start(alike, num_workers)

    def solve(self, settings, state=None, callback=None, num_workers=None):
        """Result, with maps of the elements, and state; None starts from a coarse fit."""
        state = self.coarse_start(num_workers=num_workers) if state is None else state
        result, state = self.inner.solve(self.stopping(settings, state), state, callback, num_workers)
        return replace(result, maps=self.components.maps(result.maps)), state

    def columns(self, state):
        """(n, ny, nx) maps of a fit."""
        return self.components.maps(state.maps())

    def stopping(self, settings, state):
        """When maps have settled; a weak component takes many more iterations, and hardly moves the maps."""
        stopping = Stopping.of(settings)
        if state.standard_errors is None:
            return stopping
        return stopping.of_columns(self.components.readout, state.standard_errors * self.inner.scales)

    def resample(self, settings, state, maps, seed, earlier=()):
        """The problem of one bootstrap replicate; see :meth:`~.problems.base.FusionProblem.resample`.

        The components move by the counts that were drawn for the maps, and by the noise of the out-of-window counts.
        """
        inner, components, of_maps = self.inner, self.components, earlier[0]
        drawn, rng = np.where(of_maps.valid, of_maps.measured(), maps), np.random.default_rng((*seed, 1))
        fitted = state.z * inner.scales[:, None, None].astype(np.float64)
        # the truth of a bootstrap replicate has the maps that it was drawn from, and the noise of their counts
        moved = np.tensordot(components.directions, drawn - components.maps(fitted), 1)
        noise = np.sqrt(components.out_of_window_variance) * rng.standard_normal(fitted.shape)
        z = (fitted + moved + noise) / inner.scales[:, None, None]
        totals = np.where(np.isfinite(inner.data.totals), np.sum(z, axis=(1, 2), where=inner.valid), np.nan)
        beta = np.where(inner.data.slope > 0, inner.data.slope * z, 0).astype(inner.dtype)
        new = replace(inner, data=replace(inner.data, beta=beta, totals=totals))
        if of_maps.guide is not inner.guide:
            new = replace(new, haadf_term=replace(new.haadf_term, blur=of_maps.haadf_term.blur))
            new = guided_by(of_maps.scan.haadf, new, settings, [of_maps])
        valid = components.of_maps.scan.valid
        totals = np.where(np.isfinite(components.totals), drawn.sum(axis=(1, 2), where=valid), np.nan)
        return ComponentProblem(replace(components, totals=totals), new)

    def attribution(self, state, maps):
        """``{"spectrum": (n, ny, nx)}``, the whole change from the measured to the fused maps; NaN in masked pixels."""
        of_maps = self.components.of_maps
        change = maps - (of_maps.scan.maps - of_maps.noise.background)
        return {"spectrum": np.where(of_maps.scan.valid, change, np.nan)}


@dataclass
class ComponentsByFold:
    """Components of all counts, and of those without each fold.

    Attributes
    ----------
    components
        :class:`Components` of all counts.
    training
        (B, ny, nx) out-of-window counts without each fold.
    number
        Of components; None to find it.
    of_folds
        {fold: components} that were asked for.
    """

    components: Components
    training: list
    number: int | None
    of_folds: dict = field(default_factory=dict)

    @classmethod
    def of(cls, observation, out_of_window, settings, n_folds, rng):
        """None where they cannot be used: few counts, another unit, or a ``lambda_reg`` for each map."""
        number = None if settings.components == "auto" else settings.components
        if number == 0 or out_of_window is None or isinstance(settings.lambda_reg, tuple | dict):
            return None
        if out_of_window.sum() < FEWEST_COUNTS:
            return None
        if not np.allclose(observation.noise.counts_scale, 1, rtol=1e-6):
            _logger.info("The maps are not in counts: out-of-window counts are not used.")
            return None
        components = Components.of(observation, out_of_window, settings.chosen(), number)
        counts = out_of_window.astype(np.uint32)
        return cls(components, [counts - fold for fold in thinned(counts, rng, N_COUNT_FOLDS, n_folds)], number)

    def without(self, k, observation, settings):
        """Components of the counts without fold k, of which their number too is independent."""
        if k not in self.of_folds:
            self.of_folds[k] = Components.of(observation, self.training[k], settings, self.number)
        return self.of_folds[k]
