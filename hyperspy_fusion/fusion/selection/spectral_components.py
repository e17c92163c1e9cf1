"""Fits to the components of whole spectra, from which the maps of the elements follow.

The counts outside of the windows of the elements say what is where as well. Window counts ``c_i`` and those of further
bands, whitened by the noise that they have on average, ``y_i = c_i / sqrt(q_i mean c_i)``, lie near a space of few
dimensions wherever few phases are mixed (Keenan & Kotula, Surf. Interface Anal. 36, 203, 2004). Its directions
U are found from products of *neighbouring* pixels, whose noise is independent, so that none of it is taken for signal.
The components ``t = U^T y`` of all pixels are fused as maps are, by the same penalties, and ``U x`` is the mean of all
bands, the windows among them: less noise, for it is that of the directions alone, and less detail, for what only one
element shows is lost. The mean with fits to the maps themselves has both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from hyperspy_fusion.fusion.problems.calibrated import CalibratedProblem, Observation
from hyperspy_fusion.fusion.scan_data import ScanData

# pixels over which neighbours are compared, and over which counts are averaged for their variance
_WIDTH = 3.0
# part of the mean of a band that is its variance where it has no counts
_LEAST_VARIANCE = 0.1
# components are as many as have eigenvalues so many times the largest that is of noise, within limits
_SURE, MOST_COMPONENTS = 2.0, 8
# a component of p times the variance of signal is smoothed p**-0.25 times as much; tried on held-out counts
_EXPONENT = 0.25


def thinned(counts, rng, number, limit=None):
    """The counts without each of so many random parts of them, the first ``limit``: a list of (B, ny, nx) uint32."""
    left, without = counts.astype(np.uint32), []
    for share in range(number, 0, -1)[:limit]:
        part = rng.binomial(left, 1 / share).astype(np.uint32)
        left -= part
        without.append(counts.astype(np.uint32) - part)
    return without


@dataclass(frozen=True)
class Components:
    """Components of spectra as an observation of their own.

    Attributes
    ----------
    observation
        r components as Gaussian maps.
    strengths
        (r,) variance of their signal, falling.
    directions
        (r, n) what one unit of each map adds to them.
    readout
        (n, r) maps of components.
    offset
        (r,) added to components, which the solver keeps above 0.
    background
        (n, 1, 1) or (n, ny, nx) of the maps, which is not of the elements.
    rest_variance
        (r, ny, nx) of components by the bands that are no maps.
    counted
        (n, ny, nx) bool, pixels of the maps that are not masked.
    totals
        (n,) of the maps over these, less their background, to be kept; NaN for none.
    """

    observation: Observation
    strengths: np.ndarray
    directions: np.ndarray
    readout: np.ndarray
    offset: np.ndarray
    background: np.ndarray
    rest_variance: np.ndarray
    counted: np.ndarray
    totals: np.ndarray

    @classmethod
    def of(cls, observation, rest, settings, number=None):
        """Components of maps and rest of the spectra.

        Parameters
        ----------
        observation
            Of the maps, counts.
        rest
            (B, ny, nx) counts of other channels.
        settings
            A :class:`~hyperspy_fusion.fusion.settings.CalibratedSettings`, of the HAADF image and precision.
        number
            Of components; None for as many as stand out of the noise.
        """
        scan, noise = observation.scan, observation.noise
        used = scan.valid.all(axis=0)
        rest = rest[np.any(rest, axis=(1, 2), where=used)]
        bands = np.concatenate([scan.maps, rest])
        means = np.mean(bands, axis=(1, 2), where=used)
        bands[:, ~used] = means[:, None]
        whitening = np.sqrt(np.concatenate([noise.counts_scale, np.ones(len(rest))]) * means)
        bands /= whitening[:, None, None]
        strengths, axes = _signal_axes(bands)
        r = number_of_components(strengths) if number is None else min(number, len(strengths))
        axes, n = axes[:, :r], len(scan.maps)
        components = np.tensordot(axes.T, bands, 1)
        of_maps, of_rest = (_variance(axes[part], bands[part]) for part in (slice(n), slice(n, None)))
        of_all = of_maps + of_rest
        # far above what noise takes it to
        offset = 5 + 2 * np.array([max(-gaussian_filter(c, _WIDTH / 2).min(), 0.0) for c in components])
        offset += 5 * np.sqrt(of_all.mean(axis=(1, 2)))
        return cls(
            _observed(components + offset[:, None, None], of_all, used, observation, settings),
            np.maximum(strengths[:r], 1e-4 * strengths[0]),
            axes[:n].T / whitening[:n],
            axes[:n] * whitening[:n, None],
            offset,
            noise.background,
            of_rest,
            scan.valid,
            np.where(settings.keep_totals, np.sum(scan.maps - noise.background, axis=(1, 2), where=scan.valid), np.nan),
        )

    def problem(self, settings):
        """The :class:`ComponentProblem` under the penalty and the weight of some settings."""
        weights = settings.lambda_reg * (self.strengths / self.strengths[0]) ** -_EXPONENT
        return ComponentProblem(self, self.observation.problem(_component_settings(settings, weights)))

    def maps(self, components):
        """(n, ny, nx) maps of components (r, ny, nx) as they are fitted, with their offset."""
        counts = np.tensordot(self.readout, components - self.offset[:, None, None], 1)
        maps = np.maximum(counts - self.background, 0)
        totals = np.sum(maps, axis=(1, 2), where=self.counted)
        kept = (self.totals > 0) & (totals > 0)
        factors = np.divide(self.totals, totals, out=np.ones_like(totals), where=kept)
        return (maps * factors[:, None, None]).astype(components.dtype)


def _component_settings(settings, weights):
    """Of Gaussian maps whose variance is known, and which the HAADF image is no sum of."""
    ones = (1.0,) * len(weights)
    known = {"noise": "gaussian", "variance": None, "background": 0.0, "weights": ones, "k_factors": None}
    known["haadf_blur"] = 0.0
    return replace(settings, lambda_reg=tuple(weights), lambda_haadf=0.0, joint=True, **known)


def _observed(components, variance, used, observation, settings):
    valid = np.broadcast_to(used, components.shape)
    scan, one = observation.scan, np.ones(len(components))
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
        # nothing comes from beyond the edges, so that no pixel is its own neighbour
        around = gaussian_filter(band, _WIDTH, mode="constant") - at_itself * band
        product[k] = np.tensordot(bands, around, ((1, 2), (0, 1))) / band.size
    values, vectors = np.linalg.eigh((product + product.T) / 2)
    return values[::-1], vectors[:, ::-1]


def number_of_components(strengths):
    """How many eigenvalues are above those of noise, which are as often negative as positive."""
    return int(np.clip(np.count_nonzero(strengths > _SURE * -strengths.min()), 1, MOST_COMPONENTS))


def _variance(axes, bands):
    """(r, ny, nx) of components by some of the whitened bands, in proportion to the averaged counts of each."""
    variance = np.zeros((axes.shape[1], *bands.shape[1:]))
    for axis, band in zip(axes, bands, strict=True):
        mean = band.mean()
        of_band = (gaussian_filter(band, _WIDTH) / mean + _LEAST_VARIANCE) / (1 + _LEAST_VARIANCE)
        variance += (axis**2)[:, None, None] * of_band
    return variance


@dataclass(frozen=True)
class ComponentProblem:
    """A problem of components, whose solution is maps.

    Attributes
    ----------
    components
        The :class:`Components`.
    inner
        A :class:`~hyperspy_fusion.fusion.problems.calibrated.CalibratedProblem` of them.
    """

    components: Components
    inner: CalibratedProblem

    @property
    def penalty(self):
        """Of the components."""
        return self.inner.penalty

    @property
    def uses_haadf(self):
        """Whether the image has a say in the components."""
        return self.inner.uses_haadf

    def redrawn(self, state, maps, drawn, rng):
        """The problem of one more measurement: of the counts that were ``drawn`` for the maps, and of others.

        Parameters
        ----------
        state
            Of the fit.
        maps
            (n, ny, nx) from which counts were drawn.
        drawn
            (n, ny, nx) counts less background, in units of the maps.
        rng
            For the bands that are no maps.
        """
        inner, components = self.inner, self.components
        fitted = state.z * inner.scales[:, None, None].astype(np.float64)
        # the truth of a replicate has the maps that it was drawn from, and the noise of their counts
        moved = np.tensordot(components.directions, drawn - components.maps(fitted), 1)
        noise = np.sqrt(components.rest_variance) * rng.standard_normal(fitted.shape)
        z = (fitted + moved + noise) / inner.scales[:, None, None]
        beta = np.where(inner.data.slope > 0, inner.data.slope * z, 0)
        totals = np.sum(z, axis=(1, 2), where=np.broadcast_to(inner.data.slope > 0, z.shape))
        totals = np.where(np.isfinite(inner.data.totals), totals, np.nan)
        data = replace(inner.data, beta=beta.astype(inner.dtype), totals=totals)
        of_maps = np.where(np.isfinite(components.totals), drawn.sum(axis=(1, 2), where=components.counted), np.nan)
        return ComponentProblem(replace(components, totals=of_maps), replace(inner, data=data))


@dataclass(frozen=True)
class ComponentFit:
    """Components with the settings under which they are fitted."""

    components: Components
    settings: object

    def problem(self):
        """The problem."""
        return self.components.problem(self.settings)


def solved(problem, settings, state=None, callback=None, num_workers=None):
    """A problem, of maps or of components, by :func:`~hyperspy_fusion.fusion.solvers.primal_dual.primal_dual`.

    Returns
    -------
    FusionResult, PrimalDualState
        With the maps of elements of either.
    """
    if not isinstance(problem, ComponentProblem):
        return problem.solve(settings, state, callback, num_workers)
    result, state = problem.inner.solve(settings, state, callback, num_workers)
    return replace(result, maps=problem.components.maps(result.maps)), state


def started(problem, state=None):
    """The state to start a problem from, with that of another one of the same kind where it is known."""
    inner = problem.inner if isinstance(problem, ComponentProblem) else problem
    return inner.start(state)
