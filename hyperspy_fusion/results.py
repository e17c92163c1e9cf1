"""Results of a fit as HyperSpy signals, and what can be made of them again after saving and loading."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from hyperspy_fusion.fusion.elastic import PowerLaw
from hyperspy_fusion.fusion.problem import Range
from hyperspy_fusion.grids import axis_dicts, image_array
from hyperspy_fusion.maps import element_maps

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What maps were fused from: kept by the result in memory, not saved with it."""

    maps: object
    haadf: object


def fused_signal(maps, data, fusion, inputs):
    """The ElementMaps of a fit: ``data`` on the axes and with the metadata of ``maps``.

    ``fusion`` is the dictionary for ``metadata.Fusion``: flat arrays, lists of strings and Python scalars only.
    """
    fused = maps._deepcopy_with_new_data(data)
    title = maps.metadata.General.title.removeprefix("Element maps of ")
    fused.metadata.General.title = f"Fused maps of {title}" if title else "Fused maps"
    for key, value in fusion.items():
        fused.metadata.set_item(f"Fusion.{key}", value)
    fused._inputs = inputs
    return fused


def image_signal(data, maps, title):
    """A Signal2D of ``data`` on the spatial axes of ``maps``."""
    import hyperspy.api as hs

    image = hs.signals.Signal2D(data, axes=axis_dicts(maps.axes_manager.signal_axes, maps))
    image.metadata.General.title = title
    return image


def modelled_haadf(fused):
    """The HAADF image of fused maps from their metadata; see ``ElementMaps.modelled_haadf``."""
    fit = fused._fit()
    names = list(fit["elements"])
    index = [names.index(element) for element in fused.elements]
    offsets, scales, weights = (fit[key][index] for key in ("map_offsets", "map_scales", "elastic_weights"))
    data = np.asarray(fused.data).reshape(len(index), *fused.axes_manager.signal_shape[::-1])
    fitted = weights > 0
    law = PowerLaw(weights[fitted], fit["parameters"]["gamma"])
    x = Range(offsets[fitted], scales[fitted]).normalise(data[fitted])
    # rounding on the way to the units of the input and back can leave a zero below zero
    image = law.image(np.maximum(x, 0)).astype(data.dtype)
    haadf_range = Range(np.asarray(fit["haadf_offset"]), np.asarray(fit["haadf_scale"]))
    return image_signal(haadf_range.restore(image), fused, "Modelled HAADF")


def plot_fused(fused, crop=None, maps=None, haadf=None):
    """Draw a result with whatever is known of its inputs; see ``ElementMaps.plot_fusion``."""
    from hyperspy_fusion.plot import plot_fusion

    raw, measured = _measured(fused, maps, haadf)
    y, x = axis_dicts(fused.axes_manager.signal_axes, fused)
    # the image of some of the elements would look like a bad fit
    whole = fused.metadata.has_item("Fusion") and set(fused.elements) == set(fused.metadata.Fusion.elements)
    return plot_fusion(
        np.asarray(fused.data).reshape(-1, y["size"], x["size"]),
        fused.elements,
        raw=raw,
        haadf=measured,
        modelled_haadf=modelled_haadf(fused).data if whole else None,
        scale=(y["scale"], x["scale"]),
        units=str(x["units"]),
        offset=(y["offset"], x["offset"]),
        crop=crop,
        quantity=fused.metadata.get_item("Signal.quantity"),
    )


def _measured(fused, maps, haadf):
    """Arrays of the measured maps and HAADF image on the grid of ``fused``, None where they are not known."""
    inputs = fused._inputs or Inputs(None, None)
    maps = inputs.maps if maps is None else element_maps(maps)
    haadf = inputs.haadf if haadf is None else haadf
    if maps is None:
        _logger.warning("Measured maps are not saved with fused ones: pass maps= and haadf= to see them too.")
        return None, None if haadf is None else image_array(haadf)
    window = _window(fused, maps)
    if window is None:
        _logger.warning("The measured maps are on another grid than the fused ones and are left out of the plot.")
        return None, None
    raw = np.stack([np.asarray(maps.get_map(element).data)[window] for element in fused.elements])
    return raw, None if haadf is None else image_array(haadf)[window]


def _window(part, whole):
    """Slices (y, x) of ``whole`` that ``part`` covers; None where it is not a crop of it."""
    slices = []
    for p, w in zip(*(axis_dicts(s.axes_manager.signal_axes, s) for s in (part, whole)), strict=True):
        start = round((p["offset"] - w["offset"]) / w["scale"])
        if not np.isclose(p["scale"], w["scale"]) or start < 0 or start + p["size"] > w["size"]:
            return None
        slices.append(slice(start, start + p["size"]))
    return tuple(slices)
