"""Figures of results: what is known of a result is taken from it, and drawn by ``results.plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic, report
from hyperspy_fusion.fusion.checks import default_errstate
from hyperspy_fusion.fusion.uncertainty.usability import MEAN
from hyperspy_fusion.grid.axes import scan_axes
from hyperspy_fusion.identify.elements import no_map_of
from hyperspy_fusion.io.export import whole_file
from hyperspy_fusion.results import evidence
from hyperspy_fusion.results.composition import PERCENT_UNITS
from hyperspy_fusion.results.frames import refuse_stack
from hyperspy_fusion.results.fused_maps import inputs_of_part, whole_modelled_haadf
from hyperspy_fusion.results.plot import plot_fusion, plot_grid, plot_profile, plot_rgb
from hyperspy_fusion.results.profiles import line_profile

# percent as authors write them
_PERCENT = {f"{of.capitalize()} percent": unit for of, unit in PERCENT_UNITS.items()}


def frame_of_axes(maps) -> dict:
    """Scale, units and offset of maps, for a figure."""
    y, x = scan_axes(maps)
    return {"scale": (y["scale"], x["scale"]), "units": str(x["units"]), "offset": (y["offset"], x["offset"])}


def chosen(maps, elements):
    """The elements to draw, in the order asked for; ValueError for one without a map."""
    if elements is None:
        return list(maps.elements)
    elements = [elements] if isinstance(elements, str) else list(elements)
    for element in elements:
        if element not in maps.elements:
            raise ValueError(no_map_of(element, maps.elements))
    if not elements:
        raise ValueError(f"elements is empty: name some of {', '.join(maps.elements)}.")
    return elements


def arrays(maps, elements):
    """(n, ny, nx) of the maps of some elements."""
    data = np.asarray(maps.data).reshape(-1, *maps.axes_manager.signal_shape[::-1])
    return np.stack([data[maps.elements.index(element)] for element in elements])


def _arrays_beside(maps, beside, elements, same_limits=True):
    """{title: (n, ny, nx)} of the same elements of other maps, or of arrays in the order of ``maps``."""
    if not isinstance(beside, dict | type(None)):
        raise TypeError(f"beside is a {type(beside).__name__}: give {{title: maps}}, such as {{'published': other}}.")
    index = [maps.elements.index(element) for element in elements]
    found = {}
    for title, other in (beside or {}).items():
        if hasattr(other, "axes_manager") and hasattr(other, "elements"):
            refuse_stack(other, "a figure")
            if same_limits and quantity_of(other) != quantity_of(maps):
                raise ValueError(
                    f"{title} is in {quantity_of(other)} and the maps in {quantity_of(maps)}: pass same_limits=False, "
                    "or maps of one quantity."
                )
            found[title] = arrays(other, chosen(other, elements))
        else:
            found[title] = _all_maps(maps, title, other)[index]
    return found


def _all_maps(maps, title, other):
    """An array of real numbers like ``maps``; ValueError for anything else."""
    shape, expected = getattr(other, "shape", None), (len(maps.elements), *maps.axes_manager.signal_shape[::-1])
    if shape != expected or other.dtype.kind not in "biuf":
        got = f"a {type(other).__name__}" if shape is None else f"an array {shape} of {other.dtype}"
        raise ValueError(
            f"{title} is {got}: give element maps, or an array {expected} of real numbers, all maps in the order "
            f"{', '.join(maps.elements)}."
        )
    data = np.asarray(other)
    return data.astype(np.float32) if data.dtype.kind == "b" else data


def saved(axes, save):
    """The axes, after their figure was written to a file, if one is named."""
    if save is not None:
        first = np.asarray(axes, dtype=object).flat[0]
        with whole_file(Path(save)) as temporary:
            first.figure.savefig(temporary, dpi=200)
    return axes


def quantity_of(maps) -> str:
    """What the numbers of maps are, for the bar of a figure."""
    quantity = str(maps.metadata.get_item("Signal.quantity", ""))
    return _PERCENT.get(quantity, quantity.replace("()", "").strip()) or "intensity"


def fusion_figure(
    fused, elements=None, crop=None, maps=None, haadf=None, errors=False, beside=None, save=None, **options
) -> Any:
    """Draw a result with what is known of its inputs; see ``ElementMaps.plot_fusion``."""
    elements = chosen(fused, elements)
    is_percent = fused.metadata.has_item("Composition")
    is_result = fused.metadata.has_item("Fusion") and not is_percent
    if is_result and maps is None and fused._inputs is None:
        sentence = "Measured maps are not in this file: pass maps= and haadf=, or save by save(..., everything=True)."
        report([Diagnostic("measured-maps-not-saved", sentence)])
    measured = inputs_of_part(fused, maps, haadf)
    raw = fused if not is_result else measured.maps
    modelled = whole_modelled_haadf(fused) if is_result else None
    axes = plot_fusion(
        arrays(fused, elements) if is_result else None,
        elements,
        raw=None if raw is None else arrays(raw, elements),
        haadf=None if measured.haadf is None else measured.haadf.data,
        modelled_haadf=None if modelled is None else modelled.data,
        errors=arrays(fused.standard_errors(), elements) if errors else None,
        beside=_arrays_beside(fused, beside, elements, options.get("same_limits", True)),
        flat=maps_without_structure(fused),
        row_titles={"raw": quantity_of(fused)} if is_percent else {},
        quantity=quantity_of(fused),
        crop=crop,
        **frame_of_axes(fused),
        **options,
    )
    return saved(axes, save)


def maps_without_structure(fused) -> tuple:
    """Elements of a result whose maps carry no more than their mean."""
    if not fused.metadata.has_item("Fusion.usable_for"):
        return ()
    fit = fused._fit()
    return tuple(e for e, usable in zip(fit["elements"], fit["usable_for"], strict=True) if usable == MEAN)


def rgb_figure(fused, elements, limits=None, crop=None, save=None, axes=None) -> Any:
    """Up to three maps as colours of one image; see ``ElementMaps.plot_rgb``."""
    if not 1 <= len(elements) <= 3 or len(set(elements)) < len(elements):
        raise ValueError(f"plot_rgb got {elements!r}: name one to three different elements, such as 'Fe', 'O'.")
    elements = chosen(fused, elements)
    for element, ends in (limits or {}).items():
        if element not in elements or np.shape(ends) != (2,) or not ends[0] < ends[1]:
            raise ValueError(
                f"limits has {element!r}: {ends!r}: give {{element: (low, high)}} of {', '.join(elements)}."
            )
    options = {"quantity": quantity_of(fused), "crop": crop, "axes": axes, **frame_of_axes(fused)}
    return saved(plot_rgb(arrays(fused, elements), elements, channel_limits=limits, **options), save)


@default_errstate
def profile_figure(fused, start, end=None, linewidth=0.0, elements=None, errors=True, save=None, axes=None) -> Any:
    """Profiles of fused and measured maps along a line; see ``ElementMaps.plot_profile``."""
    elements = chosen(fused, elements)
    profile = line_profile(fused, start, end, linewidth)
    is_result = fused.metadata.has_item("Fusion") and not fused.metadata.has_item("Composition")
    measured = inputs_of_part(fused).maps if is_result else None
    raw = None if measured is None else _measured_profile(fused, measured, start, end, linewidth)
    axis = profile.axes_manager.signal_axes[0]
    ax = plot_profile(
        axis.axis,
        _of_elements(profile.data, fused, elements),
        elements,
        raw=None if raw is None else _of_elements(raw.data, measured, elements),
        errors=_errors_of(profile, fused, elements) if errors else None,
        raw_errors=_errors_of(raw, measured, elements) if errors and raw is not None else None,
        units=str(axis.units),
        quantity=quantity_of(fused),
        axes=axes,
    )
    return saved(ax, save)


def _measured_profile(fused, measured, *line):
    """The profile of measured maps with the noise of their counts, as far as the fit knows it."""
    fit = fused._fit()
    if "counts_scale" not in fit:
        return line_profile(measured, *line)
    at = [list(fit["elements"]).index(element) for element in measured.elements]
    scale, known = (np.asarray(fit[key], float)[at].reshape(-1, 1, 1) for key in ("counts_scale", "variance"))
    counts = np.asarray(measured.data).reshape(len(at), *np.shape(measured.data)[-2:])
    variance = np.where(np.isfinite(scale), np.maximum(counts, 0) * scale, known)
    errors = np.sqrt(np.maximum(np.nan_to_num(variance), 0)).reshape(np.shape(measured.data))
    return line_profile(measured, *line, errors=errors, independent=True)


def _of_elements(data, maps, elements):
    data = np.asarray(data).reshape(len(maps.elements), -1)
    return data[[maps.elements.index(element) for element in elements]]


def _errors_of(profile, maps, elements):
    variance = profile.get_noise_variance()
    return None if variance is None else np.sqrt(_of_elements(variance.data, maps, elements))


def residual_figure(fused, elements=None, crop=None, save=None, **options) -> Any:
    """The residual of the HAADF image, and the normalised ones of the maps; see ``ElementMaps.plot_residuals``."""
    elements = chosen(fused, elements)
    image, maps = evidence.residual(fused).data, arrays(evidence.normalised_residuals(fused), elements)
    columns = [[("HAADF - modelled", image, "signed")]]
    columns += [[(f"{e}, measured - fused", m, "signed")] for e, m in zip(elements, maps, strict=True)]
    labels = ["intensity", *["standard deviations"] * len(elements)]
    return saved(plot_grid(columns, labels, crop=crop, **frame_of_axes(fused), **options), save)
