"""A field of any size, solved in overlapping tiles that share noise model, HAADF calibration and weights.

All is found on a sample of the field. A tile is then the same problem as the field: in the same units, with the same
forward model, and with the multipliers of the totals that hold in the sample in place of totals of its own. What is
left of the totals is one factor for each map, known when all tiles are done.

Bootstrap replicates of tiles are those of the field: what is drawn belongs to a pixel of the field. Noise model and
HAADF calibration stay those of the sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri, pdtr

from hyperspy_fusion.fusion.checks import values_of
from hyperspy_fusion.fusion.haadf.forward_model import HaadfCalibration, shape_weights
from hyperspy_fusion.fusion.haadf.guide import completed_guide
from hyperspy_fusion.fusion.haadf.hot_pixels import hot_pixels
from hyperspy_fusion.fusion.problems.calibrated import CalibratedProblem, Observation
from hyperspy_fusion.fusion.problems.resampling import resampled
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
# ... and of each map in a bootstrap replicate
_OF_REPLICATE = 16
# pixels a side of the squares of a field that are drawn at once
_DRAWN = 256


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
    """Maps (n, ny, nx) and modelled image (ny, nx) in the units of the input, hot pixels, iterations and reasons.

    ``ensemble`` is a :class:`TileEnsemble` where bootstrap replicates are asked for.
    """

    maps: np.ndarray
    modelled_haadf: np.ndarray
    hot: np.ndarray
    n_iter: int
    results: list
    ensemble: TileEnsemble | None


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

    def solve(self, scan, num_workers=None, corner=None):
        """The :class:`SolvedTile` of a tile with its halo.

        ``corner`` is the pixel (y, x) of the field where it begins, if it is to be resampled.

        Raises
        ------
        FloatingPointError
            Where a fit diverges.
        KeyboardInterrupt
            By Ctrl-C.
        """
        observation, hot = self.observe(scan, num_workers)
        stopping = Stopping.of(self.settings).in_ensemble(np.array([fit.weights for fit in self.fits]))
        maps, results, pairs = np.zeros((1, 1, 1), observation.dtype), [], []
        for fit, own in zip(self.fits, stopping, strict=True):
            whole = observation.problem(fit.settings)
            problem = replace(whole, data=whole.data.with_multipliers(fit.theta))
            alike = SimpleNamespace(standard_errors=fit.standard_errors, problem=problem)
            result, state = problem.solve(own, problem.coarse_start(alike, num_workers), num_workers=num_workers)
            if result.reason is StopReason.INTERRUPTED:
                raise KeyboardInterrupt
            if result.reason is StopReason.NOT_FINITE:
                raise FloatingPointError(result.message)
            maps = maps + column(fit.weights).astype(result.maps.dtype) * result.maps
            results.append(result)
            pairs += [(TileProblem(whole, fit.theta, corner), state)] if corner is not None else []
        model = problem.modelled_haadf(maps)
        ensemble = TileEnsemble(pairs, np.stack([fit.weights for fit in self.fits])) if pairs else None
        return SolvedTile(maps, model, hot, sum(r.n_iter for r in results), results, ensemble)


def halo_of(settings):
    """Pixels from which the border of a tile changes its maps no more."""
    kind = settings.regularization
    weight = np.max(values_of(settings.lambda_reg)) / _USUAL_WEIGHT[kind]
    return int(np.clip(round(REACH[kind] * np.sqrt(weight)), REACH["none"], _LONGEST))


def memory_of_fit(n_maps, n_pixels, n_fits=1, n_resamples=0):
    """Bytes that fits take, about; with bootstrap replicates all fits stay in memory."""
    return n_pixels * (_OF_IMAGE + n_maps * (n_fits * _OF_MAP + n_resamples * _OF_REPLICATE))


# ---- bootstrap replicates ----------------------------------------------------------------------------


@dataclass(frozen=True)
class TileProblem:
    """A fit of a tile that can be resampled: its problem, with totals of its own in place of the multipliers.

    The totals of what is drawn are kept in a tile: multipliers of the sample would change them by what positive maps
    lack of negative noise. ``theta`` (n,) are these multipliers, from which fits start. ``corner`` is the pixel (y, x)
    of the field where the tile begins.
    """

    problem: CalibratedProblem
    theta: np.ndarray
    corner: tuple[int, int]

    def start(self, state):
        """As of :class:`~.base.FusionProblem`."""
        kept = np.isfinite(self.problem.data.totals)
        return replace(self.problem.start(state), theta=np.where(kept, self.theta, 0))

    def solve(self, settings, state, num_workers=None):
        """As of :class:`~.base.FusionProblem`."""
        return self.problem.solve(settings, state, num_workers=num_workers)

    def resample(self, settings, state, maps, seed, earlier=()):
        """As of :class:`~.base.FusionProblem`, with what is drawn for the pixels of the field."""
        draws = FieldDraws(seed, self.corner)
        return replace(self, problem=resampled(self.problem, settings, maps, draws, [p.problem for p in earlier]))

    def residual(self, maps):
        """As of :class:`~.calibrated.CalibratedProblem`."""
        return self.problem.residual(maps)


@dataclass(frozen=True)
class TileEnsemble:
    """The fits of a tile that are averaged: pairs of :class:`TileProblem` and state, and weights (fits, n)."""

    pairs: list
    weights: np.ndarray

    def fits(self, state):
        """As of :class:`~.base.FusionProblem`; the states are kept here."""
        return self.pairs, self.weights

    @property
    def of_largest_weight(self):
        """The problem of the first fit: noise and pixels are those of all."""
        return self.pairs[0][0].problem


class FieldDraws:
    """Random numbers for the pixels of a window of a field, which are the same in all windows that overlap.

    It stands in for a :class:`numpy.random.Generator`. ``seed`` is a tuple of integers, ``corner`` the first pixel
    (y, x) of the window.
    """

    def __init__(self, seed, corner):
        self.seed, self.corner, self.number = tuple(seed), corner, 0

    def standard_normal(self, shape):
        """(..., ny, nx) normal numbers."""
        return ndtri(self._uniform(shape))

    def poisson(self, mean):
        """(..., ny, nx) counts, by the quantile: means that differ a little give the same counts nearly everywhere."""
        u = self._uniform(mean.shape)
        z = ndtri(u)
        # Cornish-Fisher expansion, put right by steps of one count
        counts = np.maximum(np.floor(mean + np.sqrt(mean) * z + (z**2 - 1) / 6 + 0.5), 0)
        while True:
            above, below = pdtr(counts, mean) < u, (counts > 0) & (pdtr(np.maximum(counts - 1, 0), mean) >= u)
            if not (above | below).any():
                return counts
            counts += above.astype(float) - below

    def _uniform(self, shape):
        """Numbers between 0 and 1, from a generator for each square of the field."""
        self.number += 1
        found, squares = np.empty(shape), [list(_squares(*one)) for one in zip(self.corner, shape[-2:], strict=True)]
        for i, inside_y, here_y in squares[0]:
            for j, inside_x, here_x in squares[1]:
                square = np.random.default_rng((*self.seed, self.number, i, j)).random((*shape[:-2], _DRAWN, _DRAWN))
                found[..., here_y, here_x] = square[..., inside_y, inside_x]
        return np.maximum(found, np.finfo(float).tiny)


def _squares(start, size):
    """Along one axis: number of each square, and its pixels of a window within the square and within the window."""
    for k in range(start // _DRAWN, -(-(start + size) // _DRAWN)):
        low, high = max(k * _DRAWN, start), min((k + 1) * _DRAWN, start + size)
        yield k, slice(low - k * _DRAWN, high - k * _DRAWN), slice(low - start, high - start)
