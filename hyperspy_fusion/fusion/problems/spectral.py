"""The calibrated objective of whole spectra: counts in bands, each a mixture of the counts of all elements.

    minimise over x >= 0:  sum_c D((M x)_c; b_c) + lambda_haadf / (2 sigma^2) ||h - G f(x)||^2 + sum_i R(x_i / s_i)

Columns of M are elements that are mapped, elements of the instrument, and the continuum; D is half the deviance of the
counts of a band, shifted as those of maps. The total of every column is that of the maximum-likelihood fit of the
summed spectrum. The natural unit ``s_i`` is the standard error of x_i in a typical pixel, given the overlaps: the root
of the diagonal of the inverse Fisher matrix. Each map has a length of its own in the penalty.

The HAADF forward model, and what else asks for measured maps, take linear unbiased estimates of each pixel,

    F^-1 M^T diag(1 / m) b,   F = M^T diag(1 / m) M,

with the mean counts m of the scan. Their noise is that of counts, of known variance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.ndimage import gaussian_filter

from hyperspy_fusion.fusion.problems.calibrated import CalibratedProblem, Observation, shape_weights
from hyperspy_fusion.fusion.problems.resampling import resampled
from hyperspy_fusion.fusion.solvers.multilevel import multilevel_start
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual
from hyperspy_fusion.fusion.solvers.primal_dual_state import Stopping
from hyperspy_fusion.fusion.spectra.line_model import SpectralModel
from hyperspy_fusion.fusion.spectra.poisson_fit import poisson_ml
from hyperspy_fusion.fusion.terms.band_counts import BandTerms, shifted_counts, without_traces
from hyperspy_fusion.fusion.terms.data_fidelity import noise_of
from hyperspy_fusion.fusion.terms.objective import Objective
from hyperspy_fusion.fusion.terms.penalties import cell_adjoint
from hyperspy_fusion.fusion.terms.scan_data import column

# weight of the penalty of columns without a map, over the mean one of the maps: the continuum is smooth
_WEIGHT_OF_OTHERS = 2.0
# a fit ends no nearer to its final maps than this, in natural units: maps of elements that are hardly there have small
# standard errors, and would take most of the iterations
_NEAREST = 0.006
# standard deviation in pixels over which the variance of the estimates of pixels is averaged
_WIDTH = 2.0


@dataclass(frozen=True)
class SpectralObservation:
    """What no weight of the objective changes: the counts in bands, the columns, and the HAADF calibration.

    Attributes
    ----------
    model
        The :class:`~.line_model.SpectralModel`, for the errors and totals of parts of the counts.
    matrix
        (bands, n) counts in each band for one count of the mapped lines; bands that no column reaches are left out.
    counts
        (bands, ny, nx) measured.
    totals, units
        (n,) totals of the columns, and their natural units at a weight of 1, in counts of the mapped lines.
    of_maps
        The :class:`Observation` of the estimates of pixels of the mapped elements, the first columns.
    """

    model: SpectralModel
    matrix: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    units: np.ndarray
    of_maps: Observation
    kind = "bands"

    @classmethod
    def of(cls, scan, model, counts, settings, num_workers=None):
        """The observation of a scan whose spectra have a model.

        Parameters
        ----------
        scan
            A :class:`~hyperspy_fusion.fusion.terms.scan_data.ScanData` of the mapped elements; its maps, their
            background and variance are not used. A pixel is valid where it is in all maps.
        model
            A :class:`~hyperspy_fusion.fusion.spectra.line_model.SpectralModel`.
        counts
            (bands, ny, nx) counts in the bands of the model; anything in pixels that are not valid.
        settings, num_workers
            As for :meth:`Observation.of`.

        Raises
        ------
        ValueError
            For counts in bands that no column of the model reaches.
        """
        matrix = without_traces(model.matrix)
        valid, reached = scan.valid.all(axis=0), matrix.any(axis=1)
        counts = counts if valid.all() else np.where(valid, counts, 0)
        if counts[~reached].any():
            raise ValueError(
                f"{np.count_nonzero(~reached)} bands have counts that no column of the model explains: leave these "
                "energies out, or add a continuum."
            )
        share = _share(model)
        matrix, counts = matrix[reached] / share, counts[reached]
        totals, units = share * model.totals, share * model.units
        readout = pixel_readout(matrix, totals)[: len(scan.elements)]
        maps, variance = estimates_of_pixels(readout, counts, valid)
        estimates = replace(
            scan, maps=maps, valid=np.broadcast_to(valid, maps.shape), background=None, out_of_window=None
        )
        of_maps = _observed(estimates, variance, _brightness(readout, counts, scan, settings), settings, num_workers)
        return cls(model, matrix, counts, totals, units, of_maps)

    @property
    def scan(self):
        """The :class:`ScanData` of the estimates of pixels."""
        return self.of_maps.scan

    @property
    def valid(self):
        """(ny, nx) bool."""
        return self.of_maps.scan.valid[0]

    @cached_property
    def shifts(self):
        """{shift: (bands, ny, nx) shifted counts}, which all problems share."""
        return {}

    @property
    def effective_images(self):
        """Whether the HAADF image has an effect on the maps, in a list."""
        return self.of_maps.effective_images

    @property
    def noise(self):
        """That of the estimates of pixels."""
        return self.of_maps.noise

    def with_dtype(self, dtype):
        """The same, fitted in another precision."""
        return replace(self, of_maps=replace(self.of_maps, dtype=np.dtype(dtype)))

    def part(self, held_out):
        """The observation without the held-out counts; the forward model scaled to it."""
        totals, units = self.model.rescaled(held_out.fraction)
        share, calibration = _share(self.model), self.of_maps.calibration
        model = calibration.forward_model
        calibration = replace(
            calibration, forward_model=replace(model, weights=model.weights / held_out.fraction), refit=None
        )
        of_maps = replace(self.of_maps, calibration=calibration)
        return replace(self, counts=held_out.maps, totals=share * totals, units=share * units, of_maps=of_maps)

    @cached_property
    def readout(self):
        """(n_maps, bands): the estimates of pixels are its product with the counts."""
        return pixel_readout(self.matrix, self.totals)[: len(self.scan.elements)]

    @cached_property
    def estimates(self):
        """(n_maps, ny, nx) estimates of the pixels."""
        return estimates_of_pixels(self.readout, self.counts, self.valid)[0]

    def drawn(self, columns, rng):
        """The observation of counts drawn for columns (n, ny, nx), with totals of its own."""
        mean = np.tensordot(self.matrix, np.where(self.valid, columns, 0), 1)
        counts = rng.poisson(mean).astype(np.float32)
        totals = poisson_ml(self.matrix, counts.sum(axis=(1, 2), dtype=np.float64))
        return replace(self, counts=counts, totals=totals)

    def problem(self, settings):
        """The :class:`SpectralProblem` with the weights of ``settings``, which apply to each map alone."""
        n, of_maps = len(self.units), self.of_maps.problem(_gaussian(settings))
        weights = self.scan.per_map("lambda_reg", settings.lambda_reg)
        others = _WEIGHT_OF_OTHERS * np.exp(np.mean(np.log(weights)))
        scales = self.units / np.concatenate([weights, np.full(n - len(weights), others)])
        data = self._terms(scales, settings.poisson_offset, settings.keep_totals)
        start = np.maximum(self.totals, 0) / np.count_nonzero(self.valid) / scales
        return SpectralProblem(
            scales=scales,
            initial_maps=np.array(np.broadcast_to(column(start), (n, *self.valid.shape)), of_maps.dtype, order="C"),
            data=data,
            haadf_term=_of_columns(of_maps, scales),
            penalty=replace(of_maps.penalty, n_maps=n, joint=False),
            forward_model=_padded(of_maps.forward_model, n),
            source=self,
            of_maps=of_maps,
        )

    def _terms(self, scales, shift, keep_totals):
        shift, dtype = shift * _share(self.model), self.of_maps.dtype
        if (key := (dtype, shift[0])) not in self.shifts:
            self.shifts[key] = shifted_counts(self.matrix, self.counts, self.valid, shift, dtype)
        totals = np.where(keep_totals & (self.totals > 0), self.totals, np.nan)
        return BandTerms.of(self.matrix, self.shifts[key], self.valid, scales, shift, totals)


@dataclass(frozen=True)
class SpectralProblem(Objective):
    """One objective of counts in bands; a :class:`~hyperspy_fusion.fusion.problems.base.FusionProblem`.

    Attributes
    ----------
    source
        The :class:`SpectralObservation`.
    of_maps
        The :class:`~.calibrated.CalibratedProblem` of the estimates of pixels: it has the measured maps, their noise,
        and the HAADF forward model.
    """

    data: BandTerms
    source: SpectralObservation
    of_maps: CalibratedProblem

    @property
    def of_largest_weight(self):
        """The problem of the estimates of pixels."""
        return self.of_maps

    @property
    def uses_haadf(self):
        """Whether the HAADF image contributes to the maps, by its term or as guide."""
        return self.of_maps.uses_haadf

    @property
    def image_weights(self):
        """(1,) weight of the HAADF term."""
        return self.of_maps.image_weights

    @property
    def diagnostics(self):
        """Findings about the data and the HAADF forward model."""
        return self.of_maps.diagnostics

    @property
    def n_maps(self):
        """The number of mapped elements."""
        return len(self.of_maps.scales)

    def start(self, state, fraction=1.0):
        """The state of the maps of another spectral problem's state, of such a fraction of the counts."""
        return state.restarted(self, fraction)

    def coarse_start(self, alike=None, num_workers=None):
        """The state to start from a coarse fit; its standard errors are those of the state ``alike`` if it is given."""
        return multilevel_start(self, num_workers, alike)

    def solve(self, settings, state=None, callback=None, num_workers=None):
        """Result, with maps of the mapped elements, and state; None starts from a coarse fit."""
        state = self.coarse_start(num_workers=num_workers) if state is None else state
        stopping, errors = Stopping.of(settings), state.standard_errors
        if errors is not None and stopping.settled > 0:
            state.standard_errors = np.maximum(errors, _NEAREST / stopping.settled)
        result, state = primal_dual(self, stopping, state, callback, num_workers)
        state.standard_errors = errors
        return replace(result, maps=result.maps[: self.n_maps].copy()), state

    def columns(self, state):
        """(n, ny, nx) fitted counts of all columns, in units of the input."""
        return state.maps()

    def fits(self, state):
        """One fit, with weights of 1."""
        return [(self, state)], np.ones((1, self.n_maps))

    def residual(self, maps):
        """(n_maps, ny, nx) estimates of pixels minus fitted maps; 0 in masked pixels."""
        return self.of_maps.residual(maps)

    def resample(self, settings, state, maps, seed, earlier=()):
        """The problem of one bootstrap replicate: bands ~ Poisson(M x), with the other columns of the state."""
        if earlier:
            drawn = earlier[0].source
        else:
            columns = np.concatenate([maps, self.columns(state)[self.n_maps :]]).astype(np.float64)
            drawn = self.source.drawn(columns, np.random.default_rng((*np.atleast_1d(seed), 1)))
        alike = [p.of_maps for p in earlier]
        of_maps = resampled(self.of_maps, _gaussian(settings), maps, seed, alike, drawn.estimates)
        shift = float(self.data.delta[0, 0, 0]) * self.scales[0] / _share(self.source.model)[0]
        return replace(
            self,
            data=drawn._terms(self.scales, shift, bool(np.isfinite(self.data.totals).any())),
            haadf_term=_of_columns(of_maps, self.scales),
            penalty=replace(self.penalty, guide=of_maps.penalty.guide),
            forward_model=_padded(of_maps.forward_model, len(self.scales)),
            source=drawn,
            of_maps=of_maps,
        )

    def estimate_noise(self, state, maps):
        """Variance (n_maps, ny, nx) of the estimates of pixels, by the fit, and the value of one count (n_maps,).

        The variance by the counts themselves is 0 around pixels without any. Counts of that value have the second and
        the fourth moment of the estimates.
        """
        columns = np.concatenate([maps, self.columns(state)[self.n_maps :]]).astype(np.float64)
        second, fourth = (self.source.readout**power @ self.source.matrix for power in (2, 4))
        means = columns.mean(axis=(1, 2), where=self.source.valid)
        one_count = np.sqrt((fourth @ means) / np.maximum(second @ means, 1e-300))
        return np.maximum(np.tensordot(second, columns, 1), column(1e-3 * one_count**2)), one_count

    def attribution(self, state, maps):
        """What moved each pixel from its estimate to the fused map; see :meth:`~.CalibratedProblem.attribution`.

        ``"spectrum"`` is what the other columns, and the bound at 0, add to the estimate of a pixel alone.
        """
        n, term, valid = self.n_maps, self.haadf_term, self.of_maps.valid
        step = np.where(valid, self.data.step_length(state.z)[:n] * column(self.scales[:n]), np.nan)
        gradient = np.zeros((1, 1, 1))
        if term.weights.size:
            gradient = np.multiply.outer(term.weights[:n].astype(np.float64), term.gradient(term.image(state.z)))
        parts = {
            "haadf": -step * gradient,
            "penalty": -step * cell_adjoint(state.y[:, :n].astype(np.float64)),
            "totals": -step * column(state.theta[:n]),
            "bound": np.where(valid, 0.0, np.nan),
        }
        parts["spectrum"] = np.where(valid, -self.residual(maps), np.nan) - sum(parts.values())
        return parts


# ---- estimates of single spectra ---------------------------------------------------------------------


def pixel_readout(matrix, totals):
    """(n, bands) ``F^-1 M^T diag(1 / m)``: linear unbiased estimates of the columns are its product with the counts.

    ``matrix`` (bands, n) has the counts in each band for one unit of each column, m is the spectrum of the ``totals``
    (n,), with at least a millionth of its mean in each band.
    """
    mean = matrix @ np.maximum(totals, 0)
    weighted = matrix / np.maximum(mean, 1e-6 * mean.mean())[:, None]
    size = np.sqrt(np.maximum(np.sum(weighted * matrix, axis=0), 1e-300))
    fisher = (weighted / size).T @ (matrix / size)
    return np.linalg.pinv(fisher, rcond=1e-12, hermitian=True) @ (weighted / size).T / size[:, None]


def estimates_of_pixels(readout, counts, valid):
    """Estimates and their variance, both (n, ny, nx) float64 and 0 in pixels that are not valid.

    The variance is that of Poisson counts (bands, ny, nx), averaged over neighbours.
    """
    maps, variance = (np.tensordot(a.astype(np.float32), counts, 1).astype(np.float64) for a in (readout, readout**2))
    return np.where(valid, maps, 0), _averaged(variance, valid)


def _averaged(variance, valid):
    weight = np.maximum(gaussian_filter(valid.astype(np.float64), _WIDTH), 1e-3)
    return np.where(valid, [gaussian_filter(np.where(valid, v, 0), _WIDTH) / weight for v in variance], 0)


def _brightness(readout, counts, scan, settings):
    """(1, ny, nx) variance of the sum of the estimates times the HAADF coefficients by atomic numbers.

    The estimates of elements whose lines overlap have errors of opposite sign, which take part of each other off.
    """
    combined = shape_weights(scan, settings) @ readout
    return _averaged(np.tensordot(combined[None] ** 2, counts, 1).astype(np.float64), scan.valid.all(axis=0))


def _observed(estimates, variance, of_sum, settings, num_workers):
    """The observation of the estimates; the HAADF forward model is fitted to variances that add up to that of the sum.

    The fit takes the noise of different maps for independent.
    """
    settings = _gaussian(settings)
    independent = np.tensordot(shape_weights(estimates, settings) ** 2, variance, 1)
    factor = np.divide(of_sum, independent, out=np.ones_like(of_sum), where=independent > 0)
    found = Observation.of(replace(estimates, variance=variance * factor), settings, num_workers)
    scan = replace(found.scan, variance=variance)
    return replace(found, scan=scan, noise=noise_of(scan, settings))


# ---- columns and maps ------------------------------------------------------------------------------------


def _share(model):
    """(n,) part of the counts of each column in the mapped lines; 1 of the continuum."""
    return np.where(np.isfinite(model.main_share) & (model.main_share > 0), model.main_share, 1.0)


def _gaussian(settings):
    """The settings for the estimates of pixels, whose variance is known."""
    return replace(settings, noise="gaussian", variance=None, background=0.0)


def _padded(forward_model, n):
    """The HAADF forward model with coefficients of 0 for the columns without a map."""
    weights = np.concatenate([forward_model.weights, np.zeros(n - len(forward_model.weights))])
    return replace(forward_model, weights=weights)


def _of_columns(of_maps, scales):
    """The HAADF term of the maps as one of all columns, in units of ``scales``."""
    term, n = of_maps.haadf_term, len(of_maps.scales)
    if not term.weights.size:
        return term
    weights = np.zeros(len(scales))
    weights[:n] = term.weights / of_maps.scales * scales[:n]
    return replace(term, weights=weights.astype(term.weights.dtype))
