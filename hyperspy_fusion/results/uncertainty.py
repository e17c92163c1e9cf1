"""Standard errors of the pixels of maps: from the bootstrap of a fit, from a noise variance, or given ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hyperspy_fusion.results.fused_maps import window_of


@dataclass(frozen=True)
class Errors:
    """The bootstrap replicates of a result: kept by it in memory, not saved with it.

    Attributes
    ----------
    bootstrap : BootstrapReplicates
        See :mod:`hyperspy_fusion.fusion.uncertainty.bootstrap`.
    maps : ElementMaps
        The fused maps.
    elements : list of str
        Symbols of the fitted maps in the order of ``bootstrap``; constant maps are not fitted.
    seed : int
        Of the bootstrap.
    diagnostics : list of Diagnostic
        Of the errors.
    """

    bootstrap: Any
    maps: Any
    elements: list
    seed: int = 0
    diagnostics: list = field(default_factory=list)

    def __repr__(self):
        size = (self.bootstrap.errors.nbytes + self.bootstrap.residuals.nbytes) / 2**20
        elements = ", ".join(self.elements)
        return f"<Errors of {elements} from {len(self.bootstrap)} bootstrap replicates, {size:.0f} MB>"

    def metadata(self, per_map):
        """How they were found, for ``metadata.Fusion.errors``."""
        scales = per_map(self.bootstrap.bias_scales)
        return {"n_resamples": len(self.bootstrap), "seed": int(self.seed), "bias_scales": scales}


def standard_errors(fused):
    """Standard errors of the pixels of ``fused``; see ``ElementMaps.standard_errors``."""
    variance = fused.get_noise_variance()
    is_result = any(map(fused.metadata.has_item, ("Fusion", "Fused_frames")))
    if is_result and fused._errors is None and hasattr(variance, "data"):  # of a stack, or of tiles
        # compute() of HyperSpy leaves the variance lazy
        data = variance.data if fused._lazy else np.asarray(variance.data)
        return maps_like(fused, np.sqrt(data), "Standard errors of")
    errors, window = located(fused)
    of_fitted = dict(zip(errors.elements, errors.bootstrap.standard_errors(), strict=True))
    constant = np.full(errors.bootstrap.maps.shape[1:], np.nan)
    data = np.stack([of_fitted.get(element, constant)[window] for element in fused.elements])
    return maps_like(fused, data, "Standard errors of")


def pixel_errors(maps, errors=None):
    """Standard errors of the pixels of maps as an array of their shape; None where they are not known.

    `errors` are given ones, a map for each of `maps` in their order or, of an ElementMaps, by element. None takes those
    of the fit, else the root of the noise variance of `maps`, if they have one.
    """
    if errors is None and maps._errors is not None:
        try:
            errors = standard_errors(maps)
        except ValueError:
            errors = None
    if errors is None:
        variance = maps.get_noise_variance()
        if variance is None:
            return None
        return np.broadcast_to(np.sqrt(np.asarray(getattr(variance, "data", variance), float)), maps.data.shape)
    if hasattr(errors, "get_map") and maps._map_axis() is not None:
        errors = np.stack([np.asarray(errors.get_map(element).data) for element in maps.elements])
    values = np.asarray(getattr(errors, "data", errors))
    if values.ndim == 0 or values.dtype.kind not in "iuf":
        got = f"holds {values.dtype}" if values.ndim else f"is {errors!r:.60}"
        raise TypeError(
            f"errors {got}: give the standard errors of the pixels, an array or signal like the maps, or leave it out. "
            "Those of a fit with errors=True are taken by themselves."
        )
    if np.any(values < 0):
        raise ValueError(f"errors has values below 0, down to {np.nanmin(values):.4g}: standard errors are 0 or more.")
    try:
        return np.broadcast_to(values.astype(float), maps.data.shape)
    except ValueError:
        raise ValueError(
            f"errors has shape {values.shape} and the maps {maps.data.shape}: give a standard error for each pixel."
        ) from None


def is_independent(maps):
    """Whether the errors of pixels are: not those of a fit, which smooths, nor above a fitted background."""
    return not (maps.metadata.has_item("Fusion") or maps.metadata.has_item("Element_maps.windows"))


def located(fused):
    """The :class:`Errors` of the fit behind ``fused``, and the slices (y, x) of its grid that ``fused`` covers.

    ValueError where there are none, or ``fused`` is no longer what was fitted, nor a crop of it.
    """
    fit, errors = fused._fit(), fused._errors
    if fused.metadata.has_item("Composition"):
        raise ValueError(
            f"{fused!r} is a composition, and its errors are in get_noise_variance(): for those of a region take "
            "region(roi).percent(...) of the fused maps."
        )
    if errors is None and "n_tiles" in fit:
        raise ValueError(
            "The bootstrap replicates of maps in tiles are not kept: fuse a crop of the scan, which fits into memory, "
            "with errors=True."
        )
    if errors is None:
        raise ValueError(
            "The errors of these maps are not known, for the published method has no model of the noise: fuse by "
            'method="calibrated" with errors=True.'
            if fit.get("method") == "published"
            else "The errors of these maps are not known: pass errors=True to fuse, or call "
            "FusedMultiModal.standard_errors before as_signal, and save by save(..., everything=True)."
        )
    whole = [errors.maps.get_map(element).data for element in fused.elements]
    window = _window_in(fused, errors.maps, whole)
    if window is not None:
        return errors, window
    raise ValueError(
        f"{fused!r} is not what was fitted, but was edited, rebinned or calculated since: ask the result of the fit, "
        "or a crop of it, for its errors."
    )


def counted(fused):
    """``(counts, elements, window)``: the :class:`RegionCounts` of the fit behind ``fused``, and of which elements.

    They are those of its bootstrap where it has one. None where they are not known, or ``fused`` was edited since.
    """
    kept = fused._inputs
    if fused._errors is not None:
        try:
            errors, window = located(fused)
        except ValueError:
            return None
        return errors.bootstrap, errors.elements, window
    if kept is None or kept.counts is None:
        return None
    maps = dict(zip(kept.fitted, kept.counts.maps, strict=True))
    window = _window_in(fused, kept.maps, [maps.get(element) for element in fused.elements])
    return None if window is None else (kept.counts, kept.fitted, window)


def _window_in(fused, whole, maps):
    """Slices (y, x) of the grid of ``whole`` that ``fused`` covers; None unless it has the values of ``maps`` there.

    ``maps`` are arrays (ny, nx), None for a map that is not compared.
    """
    window = window_of(fused, whole)
    if window is None:
        return None
    data = np.asarray(fused.data)
    if data.size != len(maps) * np.prod([s.stop - s.start for s in window]):
        return None
    for own, fitted in zip(data.reshape(len(maps), *(s.stop - s.start for s in window)), maps, strict=True):
        if fitted is not None and not np.allclose(own, fitted[window], rtol=1e-5):
            return None
    return window


def filled_pixels(maps):
    """(n, ny, nx) bool, pixels without counts, which the fit filled in, of each map; None where they are not known."""
    errors = maps._errors
    if errors is None:
        return None
    window = window_of(maps, errors.maps)
    if window is None:
        return None
    counted = dict(zip(errors.elements, errors.bootstrap.counted, strict=True))
    measured = np.ones(errors.bootstrap.maps.shape[1:], bool)
    return np.stack([~counted.get(element, measured)[window] for element in maps.elements])


def maps_like(maps, data, title):
    """An ElementMaps of ``data`` on the axes and with the elements of ``maps``, which is no result of a fit."""
    data = data.reshape(maps.data.shape).astype(np.float32)
    new = maps._deepcopy_with_new_data(data if hasattr(data, "dask") else np.ascontiguousarray(data))
    new._inputs = new._errors = None
    for key in filter(new.metadata.has_item, ("Fusion", "Fused_frames")):
        delattr(new.metadata, key)
    of = maps.metadata.General.title
    new.metadata.General.title = f"{title} {of[:1].lower() + of[1:] if ' ' in of else of}"
    return new


def attainable_gain(problem, maps):
    """(n, ny, nx) gain of the fitted maps; see :func:`~.fusion.uncertainty.fisher.attainable_gain`."""
    from hyperspy_fusion.fusion.uncertainty import fisher

    problem = problem.of_largest_weight
    images = [problem.image(k) for k in range(problem.n_images)]
    sigmas = [np.where(scan.haadf_valid, calibration.sigma, np.inf) for scan, calibration, _ in images]
    weights = [calibration.forward_model.weights for _, calibration, _ in images]
    blurs = [term.blur for *_, term in images]
    return fisher.attainable_gain(problem.count_variance(maps), weights, sigmas, blurs)
