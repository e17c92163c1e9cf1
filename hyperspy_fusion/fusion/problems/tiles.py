"""A field of any size, solved in overlapping tiles that share noise model, HAADF calibration and weights.

All is found on a sample of the field. A tile is then the same problem as the field: in the same units, with the same
forward model, and with the multipliers of the totals that hold in the sample in place of totals of its own. What is
left of the totals is one factor for each map, known when all tiles are done.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.fusion.checks import values_of
from hyperspy_fusion.fusion.haadf.forward_model import HaadfCalibration, shape_weights
from hyperspy_fusion.fusion.haadf.guide import completed_guide
from hyperspy_fusion.fusion.haadf.hot_pixels import hot_pixels
from hyperspy_fusion.fusion.problems.calibrated import Observation
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.settings import working_dtype
from hyperspy_fusion.fusion.solvers.primal_dual_state import Stopping
from hyperspy_fusion.fusion.terms.data_fidelity import Counts, Gaussian, known_background, noise_of
from hyperspy_fusion.fusion.terms.scan_data import column

# How far in pixels the border of a tile changes its maps, at the usual weight of each penalty and one count per pixel:
# on a phantom of few counts what is left there is 3e-4 of the range of a map (root mean square), and 1e-4 for
# "directional"
REACH = {"guided": 64, "tgv": 64, "directional": 32, "tv": 32, "none": 2}
_USUAL_WEIGHT = {"guided": 1.0, "tgv": 2.0, "directional": 2**0.5, "tv": 1.0, "none": 1.0}
_LONGEST = 128
# memory in bytes of a fit, per pixel: of the image, and of each map
_OF_IMAGE, _OF_MAP = 20, 170


class TileFit(NamedTuple):
    """One of the fits that are averaged: its settings and its weights (n,).

    ``theta`` and ``standard_errors`` (n,) are those of the sample, in natural units: the multipliers of the totals, and
    how exact a fit must be.
    """

    settings: Any
    weights: np.ndarray
    theta: np.ndarray
    standard_errors: np.ndarray | None


class SolvedTile(NamedTuple):
    """Maps (n, ny, nx) and modelled image (ny, nx) in the units of the input, hot pixels, iterations and reasons."""

    maps: np.ndarray
    modelled_haadf: np.ndarray
    hot: np.ndarray
    n_iter: int
    results: list


@dataclass(frozen=True)
class FieldModel:
    """What all tiles of a field share.

    Attributes
    ----------
    settings
        Those of the method; weights are those of the fits.
    noise
        Of the maps, without what differs between pixels.
    calibration
        The HAADF forward model and the dispersion of the image about it.
    limits, image_noise
        Of the guide: see :class:`~hyperspy_fusion.fusion.haadf.guide.Guide`.
    fits
        List of :class:`TileFit`.
    """

    settings: Any
    noise: Counts | Gaussian
    calibration: HaadfCalibration
    limits: tuple
    image_noise: float | None
    fits: list

    @classmethod
    def of(cls, problem, state, settings, settings_of_fits):
        """From the problem of the calibrated or automatic method for a sample, the state of its fit, and settings."""
        pairs, weights = problem.fits(state)
        whole = problem.of_largest_weight
        noise = replace(whole.noise, background=whole.noise.background[:, :1, :1])
        if isinstance(noise, Gaussian):
            noise = replace(noise, variances=noise.variances[:, :1, :1])
        fits = [
            TileFit(own, weight, fitted.theta, fitted.standard_errors)
            for own, (_, fitted), weight in zip(settings_of_fits, pairs, weights, strict=True)
        ]
        calibration = replace(whole.calibration, refit=None)
        return cls(settings, noise, calibration, whole.guide.limits, whole.guide.noise, fits)

    @property
    def halo(self):
        """Pixels beyond a tile that are fitted with it."""
        return max(halo_of(fit.settings) for fit in self.fits) + int(np.ceil(4 * self.calibration.blur))

    def observe(self, scan, num_workers=None):
        """The :class:`~.calibrated.Observation` of a tile, and its hot pixels (ny, nx)."""
        dtype, scan = working_dtype(self.settings.dtype), scan.filled()
        noise = self._noise(scan)
        hot = hot_pixels(scan, noise, shape_weights(scan, self.settings.of_image(0)))
        scan = replace(scan, haadf_valid=scan.haadf_valid & ~hot).filled()
        maps = scan.net(noise.background), scan.valid, noise.noise_variance(scan)
        model = self.calibration.forward_model
        guide = completed_guide(scan.haadf, scan.haadf_valid, model, *maps, dtype, num_workers)
        guide = replace(guide, limits=self.limits, given_noise=(self.image_noise,))
        return Observation(scan, noise, self.calibration, guide, dtype), hot

    def _noise(self, scan):
        """The noise model with what the metadata of the maps know of each pixel."""
        if isinstance(self.noise, Counts):
            return replace(self.noise, background=known_background(scan, self.settings))
        found = noise_of(scan, replace(self.settings, noise="gaussian")) if scan.variance is not None else self.noise
        return replace(self.noise, variances=found.variances, background=known_background(scan, self.settings))

    def solve(self, scan, num_workers=None):
        """The :class:`SolvedTile` of a tile with its halo.

        Raises
        ------
        FloatingPointError
            Where a fit diverges.
        KeyboardInterrupt
            By Ctrl-C.
        """
        observation, hot = self.observe(scan, num_workers)
        # as for an ensemble of fits to one scan
        stopping = Stopping.of(self.settings)
        stopping = replace(stopping, settled=stopping.settled * np.sqrt(len(self.fits)))
        maps, results = np.zeros((1, 1, 1), observation.dtype), []
        for fit in self.fits:
            problem = observation.problem(fit.settings)
            problem = replace(problem, data=problem.data.with_multipliers(fit.theta))
            alike = SimpleNamespace(standard_errors=fit.standard_errors, problem=problem)
            result, _ = problem.solve(stopping, problem.coarse_start(alike, num_workers), num_workers=num_workers)
            if result.reason is StopReason.INTERRUPTED:
                raise KeyboardInterrupt
            if result.reason is StopReason.NOT_FINITE:
                raise FloatingPointError(result.message)
            maps = maps + column(fit.weights).astype(result.maps.dtype) * result.maps
            results.append(result)
        model = problem.modelled_haadf(maps)
        return SolvedTile(maps, model, hot, sum(r.n_iter for r in results), results)


def halo_of(settings):
    """Pixels from which the border of a tile changes its maps no more."""
    kind = settings.regularization
    weight = np.max(values_of(settings.lambda_reg)) / _USUAL_WEIGHT[kind]
    return int(np.clip(round(REACH[kind] * np.sqrt(weight)), REACH["none"], _LONGEST))


def memory_of_fit(n_maps, n_pixels):
    """Bytes that a fit takes, about."""
    return n_pixels * (_OF_IMAGE + n_maps * _OF_MAP)
