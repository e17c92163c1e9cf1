"""The frozen record of a finished fit, made at once and never changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import SERIOUS
from hyperspy_fusion.fusion.result import FusionResult
from hyperspy_fusion.fusion.spectra.scan_spectra import ScanSpectra
from hyperspy_fusion.fusion.terms.scan_data import ScanData
from hyperspy_fusion.fusion.uncertainty.region_counts import RegionCounts
from hyperspy_fusion.fusion.uncertainty.usability import NO_AMOUNTS, SHARED_NOISE, usable_for
from hyperspy_fusion.identify.elements import atomic_number
from hyperspy_fusion.methods.base import Setup
from hyperspy_fusion.methods.fit_checks import correlation, totals_over_measured


@dataclass(frozen=True)
class Measured:
    """What is measured: the input of every fit of a model.

    Attributes
    ----------
    elements
        n symbols.
    maps, haadf
        (n, ny, nx) and (ny, nx).
    valid
        Valid pixels of both.
    is_constant
        (n,) bool: maps that are not fitted, constant or without structure.
    background, variance
        (n, ny, nx) counts of the maps that are not of their elements, and variance of the noise; None if not used.
    out_of_window
        (B, ny, nx) out-of-window counts, None if not used.
    further
        Further elastic images, each an :class:`~.terms.scan_data.ElasticImage`.
    spectra
        What a model of the spectra is fitted to, None for maps of windows.
    """

    elements: list
    maps: np.ndarray
    haadf: np.ndarray
    valid: Any
    is_constant: np.ndarray
    background: np.ndarray | None = None
    variance: np.ndarray | None = None
    out_of_window: np.ndarray | None = None
    further: tuple = ()
    spectra: ScanSpectra | None = None

    def scan_data(self):
        """What the methods fuse: all of this without the maps that are not fitted."""
        elements, fitted = self.fitted_elements, ~self.is_constant
        numbers = [atomic_number(e) for e in elements]
        maps, valid, background, variance = self.maps, self.valid, self.background, self.variance
        if not fitted.all():  # no copies where none is needed
            maps, valid = maps[fitted], valid.of(fitted)
            background, variance = (None if v is None else v[fitted] for v in (background, variance))
        return ScanData(
            elements,
            numbers,
            maps,
            self.haadf,
            valid.maps,
            valid.haadf,
            background,
            variance,
            self.out_of_window,
            self.spectra,
            self.elements,
            self.further,
        )

    def left_out(self):
        """For ``metadata.Fusion``: the numbers of invalid pixels."""
        return {
            "n_masked": np.count_nonzero(~self.valid.maps, axis=(1, 2)),
            "haadf_n_masked": int(np.count_nonzero(~self.valid.haadf)),
        }

    @property
    def fitted_elements(self):
        """Symbols of the maps that are fitted."""
        return [e for e, is_constant in zip(self.elements, self.is_constant, strict=True) if not is_constant]

    def per_map(self, values):
        """(n,) values of the fitted maps, 0 for others."""
        full = np.zeros(len(self.elements))
        full[~self.is_constant] = values
        return full

    def filled(self, data, value):
        """(n, ny, nx) float32 of ``data`` of the fitted maps, with a ``value`` for others; ``data`` where all are."""
        if not self.is_constant.any():
            return data.astype(np.float32, copy=False)
        full = np.full(self.maps.shape, value, np.float32)
        full[~self.is_constant] = data
        return full

    def all_maps(self, fused):
        """(n, ny, nx) fused maps; those that are not fitted are the measured ones."""
        if not self.is_constant.any():
            return fused
        data = self.maps.astype(fused.dtype)
        data[~self.is_constant] = fused
        return data


@dataclass(frozen=True)
class Explained:
    """What moved the fitted maps from the measured ones, and what is left; nothing without a noise model.

    Attributes
    ----------
    changes
        ``{name: (n, ny, nx)}`` float32, as :meth:`~.problems.calibrated.CalibratedProblem.attribution` has them.
    residuals
        (n, ny, nx) float32, measured minus fused maps in standard deviations of the noise; None without.
    structure
        (n,) part of the structure in the counts that the maps show; infinite without.
    counts
        What the maps leave of the counts, for regions; None without.
    """

    changes: dict
    residuals: np.ndarray | None
    structure: np.ndarray
    counts: RegionCounts | None = None

    @classmethod
    def of(cls, setup, state, result, checks):
        """Of a fit and its checks, None for none."""
        if checks is None:
            return cls({}, None, np.full(len(result.maps), np.inf))
        changes = setup.problem.attribution(state, result.maps)
        changes = {name: one.astype(np.float32) for name, one in changes.items()}
        counts = RegionCounts.of(setup.problem, result.maps)
        counts = replace(
            counts, residual=counts.residual.astype(np.float32), variance=counts.variance.astype(np.float32)
        )
        return cls(changes, checks.residuals().astype(np.float32), checks.structure(), counts)

    def image_changes(self):
        """For each image (n,) root mean square of what it changed over that of the penalty, without one of all."""
        if "haadf" not in self.changes:
            return [np.zeros(len(self.structure))]
        penalty, every = _sizes(self.changes["penalty"]), _sizes(sum(self.changes.values()))
        unit = np.where(penalty > 0, penalty, every)
        images = [_sizes(one) for name, one in self.changes.items() if name not in _NO_IMAGES]
        return [np.divide(one, unit, out=np.zeros(len(unit)), where=unit > 0) for one in images]


# parts of an attribution that are of no image
_NO_IMAGES = ("penalty", "totals", "bound", "spectrum")


def _sizes(maps):
    return np.sqrt(np.nanmean(maps.astype(np.float64) ** 2, axis=(1, 2)))


@dataclass(frozen=True)
class Fit:
    """A finished fit.

    Attributes
    ----------
    setup, state, result
        Problem and settings, state of the solver to go on from, and fused maps of the fitted elements.
    total_ratios
        (n,) totals of the fused maps over those of the measured ones, less their background.
    haadf_correlation
        Pearson's correlation of the modelled and the measured HAADF image.
    norms
        (n,) of the measured maps, to notice later changes.
    diagnostics
        Of the fit.
    explained
        What moved the maps, and what is left of the counts.
    output
        ``fit_output``: the result as SciPy's optimisers have it, with the fused maps of all elements.
    """

    setup: Setup
    state: Any
    result: FusionResult
    total_ratios: np.ndarray
    haadf_correlation: float
    norms: np.ndarray
    diagnostics: list
    explained: Explained
    output: Any

    @classmethod
    def of(cls, method, measured, setup, state, result, norms):
        """Conclude a fit: compare its result with what is measured."""
        background = measured.background
        if background is None:
            background = measured.per_map(method.map_background(setup))
        fused = measured.all_maps(result.maps)
        ratios = totals_over_measured(fused, measured.maps, measured.valid.maps, background)
        agreement = correlation(result.modelled_haadf, measured.haadf, measured.valid.haadf)
        checks = method.consistency(setup, state, result)
        found = method.diagnose(setup, result, measured.elements, ratios, agreement, checks)
        explained = Explained.of(setup, state, result, checks)
        return cls(setup, state, result, ratios, agreement, norms, found, explained, _output(result, fused))

    def metadata(self):
        """What every method has in ``metadata.Fusion`` after a fit: Python scalars and flat arrays."""
        result, selection = self.result, self.setup.selection
        return {
            "parameters": {name: self._flat(value) for name, value in self.setup.settings.as_dict().items()},
            **({} if selection is None else {"selection": selection.as_dict()}),
            "cost_history": result.history.as_dict(),
            "total_ratios": self.total_ratios,
            "measured_norms": self.norms,
            "haadf_correlation": self.haadf_correlation,
            "n_iter": int(result.n_iter),
            "converged": bool(result.converged),
            "stop_reason": result.message,
        }

    def ramp(self, haadf):
        """For ``metadata.Fusion``: what was taken off the HAADF image in the first pixel, per row and per column."""
        if not np.ravel(getattr(self.setup.settings, "remove_ramp", False))[0]:
            return {}
        seen = self.setup.problem.of_largest_weight.image(0)[0]
        y, x = np.nonzero(seen.haadf_valid)
        taken = (haadf - seen.haadf)[y, x]
        plane = np.linalg.lstsq(np.stack([np.ones(len(y)), y, x], axis=1), taken, rcond=None)[0]
        return {"haadf_ramp": plane}

    def usability(self, measured, counts_scale, diagnostics):
        """For ``metadata.Fusion``: counts of each measured map, and what its fused one can be used for."""
        structure, fitted = measured.per_map(self.explained.structure), ~measured.is_constant
        about = {e for d in diagnostics if d.severity == SERIOUS or d.code in NO_AMOUNTS for e in d.elements}
        shared = {e for d in diagnostics if d.code == SHARED_NOISE for e in d.elements or measured.elements}
        doubtful = [element in about | shared for element in measured.elements]
        is_shared = np.array([element in shared for element in measured.elements])
        structure = np.where(is_shared & (structure > 0), np.nan, structure)
        totals = np.sum(measured.maps, axis=(1, 2), where=measured.valid.maps, dtype=np.float64)
        of_images = [measured.per_map(one) for one in self.explained.image_changes()]
        scale = np.full(len(fitted), np.nan) if counts_scale is None else counts_scale
        scale = scale if measured.spectra is None else np.ones(len(fitted))
        scale = np.where(fitted, np.where(scale > 0, scale, np.nan), 1.0)
        return {
            "counts": totals / scale,
            "structure": structure,
            "usable_for": usable_for(structure, self.total_ratios, fitted, doubtful),
            "haadf_changes": of_images[0],
            **({"image_changes": np.concatenate(of_images)} if len(of_images) > 1 else {}),
        }

    def _flat(self, value):
        """Sequences as the flat arrays that metadata keep, and dictionaries as those of all maps."""
        if isinstance(value, dict):
            value = tuple(value.get(element, np.nan) for element in self.setup.scan.given)
        if not isinstance(value, tuple):
            return value
        are_numbers = all(isinstance(one, Real) for one in value)
        return np.array(value, dtype=float) if are_numbers else [str(one) for one in value]


@dataclass(frozen=True)
class Record:
    """What a model knows of its fits. It is replaced as a whole: an exception never leaves a part of a new one.

    Attributes
    ----------
    settings
        Those asked for in the last fit that succeeded, else those of the model.
    fit
        The last fit; None before the first and after one that failed.
    errors
        Its standard errors, None where they were not found.
    about_errors
        Diagnostics of errors that were not found.
    """

    settings: Any
    fit: Fit | None = None
    errors: Any = None
    about_errors: tuple = ()

    @property
    def in_effect(self):
        """The settings of the fit with every choice made, before a fit those asked for."""
        return self.settings if self.fit is None else self.fit.setup.settings

    @property
    def diagnostics(self):
        """Of the fit and of its standard errors."""
        found = [d for part in (self.fit, self.errors) if part is not None for d in part.diagnostics]
        return [*found, *self.about_errors]


def _output(result, fused):
    from scipy.optimize import OptimizeResult

    return OptimizeResult(
        x=fused,
        fun=float(result.history.total[-1]),
        nit=result.n_iter,
        success=result.success,
        message=result.message,
        change=result.change,
        gap=result.gap,
        cost_history=result.history.as_dict(),
    )
