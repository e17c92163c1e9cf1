"""Results of a fit as HyperSpy signals, and what can be made of them again after saving and loading."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic, report
from hyperspy_fusion.fusion.checks import default_errstate
from hyperspy_fusion.fusion.problems.published import Range
from hyperspy_fusion.fusion.terms.haadf_model import Compression, LinearHaadfModel, PowerHaadfModel, blurred
from hyperspy_fusion.grid.axes import scan_axes
from hyperspy_fusion.grid.images import image_array, image_signal
from hyperspy_fusion.maps.sources import element_maps


@dataclass(frozen=True)
class Inputs:
    """What maps were fused from, and what moved them: kept by the result in memory, saved where that is asked for.

    Attributes
    ----------
    maps, haadf
        Measured maps and HAADF image on their axes; None for what is not known.
    mask
        (ny, nx) bool, pixels that the user left out; None for none.
    changes
        ``{name: (n, ny, nx)}`` float32, what moved each pixel of the maps; NaN where nothing was fitted.
    residuals
        (n, ny, nx) float32, measured minus fused maps in standard deviations of the noise.
    counts
        The :class:`~.fusion.uncertainty.region_counts.RegionCounts` of the fit; None for none.
    fitted
        Symbols of the maps in ``counts``.
    """

    maps: Any = None
    haadf: Any = None
    mask: np.ndarray | None = None
    changes: dict = field(default_factory=dict)
    residuals: np.ndarray | None = None
    counts: Any = None
    fitted: list = field(default_factory=list)


def fused_signal(maps, data, fusion, inputs, errors=None):
    """The ElementMaps of a fit: ``data`` on the axes and with the metadata of ``maps``.

    ``fusion`` is for ``metadata.Fusion``: flat arrays, lists of strings and Python scalars only. ``errors`` are the
    :class:`~.uncertainty.Errors` of the fit where they are known.
    """
    fused = maps._deepcopy_with_new_data(data)
    title = maps.metadata.General.title.removeprefix("Element maps of ")
    fused.metadata.General.title = f"Fused maps of {title}" if title else "Fused maps"
    fingerprint = {"grid": np.array(data.shape[1:]), "map_norms": norms(data)}
    fused.metadata.add_dictionary({"Fusion": {**fusion, **fingerprint}})
    fused._inputs, fused._errors = inputs, errors
    return fused


@default_errstate
def modelled_haadf(fused):
    """The HAADF image of fused maps from their metadata; see ``ElementMaps.modelled_haadf``."""
    fit = fused._fit()
    index = [list(fit["elements"]).index(element) for element in fused.elements]
    data = np.asarray(fused.data).reshape(-1, *fused.axes_manager.signal_shape[::-1])
    if reason := why_changed(fused) or _why_blurred(data, fit):
        raise ValueError(
            f"{fused!r} has no modelled HAADF image, for {reason}: call modelled_haadf on the result as it was fitted."
        )
    # constant maps have no HAADF coefficient
    index, data = (np.asarray(a)[fit["haadf_coefficients"][index] > 0] for a in (index, data))
    coefficients = fit["haadf_coefficients"][index]
    if fit["method"] == "published":
        x = Range(fit["map_offsets"][index], fit["map_scales"][index]).normalise(data)
        # rounding on the way to the units of the input and back can leave a zero below zero
        image = PowerHaadfModel(coefficients, fit["parameters"]["gamma"]).image(np.maximum(x, 0))
        haadf_range = Range(np.asarray(fit["haadf_offset"]), np.asarray(fit["haadf_scale"]))
        image = haadf_range.restore(image.astype(data.dtype))
    else:
        compression = Compression(*fit["haadf_compression"]) if "haadf_compression" in fit else None
        model = LinearHaadfModel(coefficients, fit["haadf_offset"], compression=compression)
        image = model.compressed(blurred(model.image(data), fit["haadf_term_blur"]))
    return image_signal(image.astype(data.dtype), scan_axes(fused), "Modelled HAADF")


def why_changed(fused):
    """What happened to maps since the fit, as far as they show it; "" where nothing did. Of a crop no edit is seen."""
    fit = fused._fit()
    if fused._stacked_metadata() is not None:
        return "it is a stack of maps, described by the fit of the first only"
    if fit.get("changed"):
        return f"its maps were {fit['changed']} after the fit"
    data = fused.data.reshape(-1, *fused.axes_manager.signal_shape[::-1])
    if tuple(fit.get("grid", ())) != data.shape[1:]:
        return ""
    known = fit["map_norms"][[list(fit["elements"]).index(element) for element in fused.elements]]
    return "" if np.allclose(norms(data), known, rtol=1e-5) else "its maps were edited after the fit"


def _why_blurred(data, fit):
    is_blurred = tuple(fit.get("grid", ())) != data.shape[1:] and fit.get("haadf_term_blur")
    return "it is a crop, and the forward model of its fit blurs across its edges" if is_blurred else ""


def refuse_changed(fused, what):
    """ValueError where ``fused`` is no result, or no longer as it was fitted; crops and some of its maps are fine."""
    if reason := why_changed(fused):
        raise ValueError(f"{fused!r} has no {what}, for {reason}: call it on the result as it was fitted.")


def norms(maps):
    """Root of the sum of squares of each map, without NaN: unlike their sum, it sees smoothing too.

    Lazy maps are read in one pass, chunk by chunk.
    """
    if hasattr(maps, "dask"):
        import dask.array as da

        return np.sqrt(da.nansum(maps.astype(np.float64) ** 2, axis=(1, 2)).compute())
    return np.sqrt([np.nansum(np.square(image, dtype=np.float64)) for image in maps])


def whole_modelled_haadf(fused):
    """The modelled HAADF image; None where the maps do not give that of the fit.

    The image of some of the elements would look like a bad fit.
    """
    if not fused.metadata.has_item("Fusion"):
        return None
    fit = fused._fit()
    if not set(fit["elements"]) - set(fit.get("constant_elements", ())) <= set(fused.elements):
        return None
    try:
        return modelled_haadf(fused)
    except ValueError as error:
        report([Diagnostic("modelled-haadf-left-out", f"The modelled HAADF image is left out: {error}")])
        return None


def inputs_of_part(fused, maps=None, haadf=None):
    """`Inputs` on the pixels that ``fused``, a result or a crop of it, shows; by default what it was fused from.

    None where they are not known, or on another grid, which a warning reports.
    """
    kept = fused._inputs or Inputs()
    maps = kept.maps if maps is None else element_maps(maps)
    haadf = kept.haadf if haadf is None else _image_on_axes(haadf, maps, fused)
    return Inputs(_part(maps, fused, "measured maps are"), _part(haadf, fused, "HAADF image is"))


def _image_on_axes(haadf, *grids):
    """A HAADF image as a Signal2D on the axes of the first of ``grids`` of its shape, as in a fit; else on its own."""
    image = image_array(haadf)
    alike = [g for g in grids if g is not None and g.axes_manager.signal_shape == image.shape[::-1]]
    return image_signal(image, scan_axes([*alike, haadf][0]), haadf.metadata.General.title)


def _part(whole, fused, what):
    """The crop of ``whole`` that ``fused`` covers, None where it is none."""
    if whole is None:
        return None
    window = window_of(fused, whole)
    if window is None:
        sentence = f"The {what} on another grid than the fused maps and left out."
        report([Diagnostic("input-on-another-grid", sentence)])
        return None
    return whole.isig[window[::-1]]


def window_of(part, whole):
    """Slices (y, x) of ``whole`` that ``part`` covers; None where it is not a crop of it."""
    slices = []
    for p, w in zip(scan_axes(part), scan_axes(whole), strict=True):
        distance = p["offset"] - w["offset"]
        # where the scale is 0 no place is known but that of the whole
        start = round(distance / w["scale"]) if w["scale"] else min(p["size"] - w["size"], 0)
        same = np.isclose(p["scale"], w["scale"]) and p["name"] == w["name"]
        if not same or start < 0 or start + p["size"] > w["size"]:
            return None
        slices.append(slice(start, start + p["size"]))
    return tuple(slices)
