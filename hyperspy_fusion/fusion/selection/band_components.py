"""Fits to the principal components of the counts in bands, from which the columns of whole spectra follow.

They are to fits of whole spectra what :mod:`~.spectral_components` is to fits of maps. The components ``t = U^T y`` of
the whitened bands y are fused with one penalty for all. With the result, ``U t`` is an estimate of all bands, and its
columns are the linear unbiased estimates of :func:`~.problems.spectral.pixel_readout`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from hyperspy_fusion.fusion.problems.calibrated import Observation
from hyperspy_fusion.fusion.problems.resampling import guided_by
from hyperspy_fusion.fusion.problems.spectral import SpectralObservation, pixel_readout
from hyperspy_fusion.fusion.selection.spectral_components import (
    ComponentProblem,
    found_components,
    problem_of_components,
)
from hyperspy_fusion.fusion.terms.scan_data import column


@dataclass(frozen=True)
class BandComponents:
    """Components of counts in bands as an observation of their own.

    Attributes
    ----------
    source
        The :class:`~.problems.spectral.SpectralObservation` of the counts.
    observation
        r components as Gaussian maps.
    strengths, offset
        (r,) as of :class:`~.spectral_components.Components`.
    directions
        (r, bands) components of one count in each band.
    readout
        (n, r) columns of one unit of each component.
    """

    source: SpectralObservation
    observation: Observation
    strengths: np.ndarray
    offset: np.ndarray
    directions: np.ndarray
    readout: np.ndarray

    @classmethod
    def of(cls, source, settings, number=None):
        """Components of the counts of a :class:`SpectralObservation`, as many as asked for; None for all above noise.

        ``settings`` are a :class:`~hyperspy_fusion.fusion.settings.CalibratedSettings`, as for the maps.
        """
        used = source.valid
        means = source.counts[:, used].mean(axis=1, dtype=np.float64)
        seen = means > 0
        whitening = np.sqrt(means[seen])
        bands = np.where(used, source.counts[seen], column(means[seen])) / column(whitening)
        found = found_components(bands, number, used, source.of_maps, settings)
        readout = pixel_readout(source.matrix, source.totals)[:, seen] @ (found.axes * whitening[:, None])
        directions = np.zeros((len(found.strengths), len(means)))
        directions[:, seen] = found.axes.T / whitening
        return cls(source, found.observation, found.strengths, found.offset, directions, readout)

    @property
    def of_maps(self):
        """The observation of the estimates of pixels."""
        return self.source.of_maps

    def problem(self, settings):
        """The :class:`BandComponentProblem` under the penalty and the weight of some settings."""
        return BandComponentProblem(self, problem_of_components(self, settings))

    def columns(self, components):
        """(n, ny, nx) columns >= 0 of components (r, ny, nx) as they are fitted, with the totals of the source."""
        columns = np.maximum(np.tensordot(self.readout, components - column(self.offset), 1), 0)
        wanted, totals = self.source.totals, np.sum(columns, axis=(1, 2), where=self.source.valid)
        factors = np.divide(wanted, totals, out=np.ones_like(totals), where=(wanted > 0) & (totals > 0))
        return (columns * column(factors)).astype(components.dtype)

    def maps(self, components):
        """(n_maps, ny, nx) columns of the mapped elements."""
        return self.columns(components)[: len(self.of_maps.scan.elements)]


@dataclass(frozen=True)
class BandComponentProblem(ComponentProblem):
    """A problem of components of bands: part of an ensemble, after the problems of whole spectra."""

    components: BandComponents

    def columns(self, state):
        """(n, ny, nx) columns of a fit."""
        return self.components.columns(state.maps())

    def resample(self, settings, state, maps, seed, earlier=()):
        """The problem of one bootstrap replicate: components of the bands drawn for the fits of whole spectra."""
        inner, components, first = self.inner, self.components, earlier[0]
        found = np.tensordot(components.directions, first.source.counts.astype(np.float64), 1)
        z = np.where(inner.valid, (found + column(components.offset)) / column(inner.scales), 0)
        totals = np.where(np.isfinite(inner.data.totals), z.sum(axis=(1, 2)), np.nan)
        beta = (inner.data.slope * z).astype(inner.dtype)
        new = replace(inner, data=replace(inner.data, beta=beta, totals=totals))
        if first.of_maps.guide is not inner.guide:
            new = replace(new, haadf_term=replace(new.haadf_term, blur=first.of_maps.haadf_term.blur))
            new = guided_by(first.of_maps.scan.haadf, new, settings, [first.of_maps])
        return BandComponentProblem(replace(components, source=first.source), new)


@dataclass
class BandComponentsByFold:
    """Components of all counts, and of those without each fold that was asked for; ``number`` None finds it."""

    components: BandComponents
    number: int | None
    of_folds: dict = field(default_factory=dict)

    @classmethod
    def of(cls, observation, settings):
        """None where they are not asked for, and for a ``lambda_reg`` for each map."""
        number = None if settings.components == "auto" else settings.components
        if number == 0 or isinstance(settings.lambda_reg, tuple | dict):
            return None
        return cls(BandComponents.of(observation, settings.chosen(), number), number)

    def without(self, k, observation, settings):
        """Components of the counts of ``observation``, which are those without fold k."""
        if k not in self.of_folds:
            self.of_folds[k] = BandComponents.of(observation, settings, self.number)
        return self.of_folds[k]
