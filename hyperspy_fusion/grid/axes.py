"""Axes of HyperSpy signals as dictionaries, and whether two images lie on the same scan."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import INFORMATION, Diagnostic
from hyperspy_fusion.fusion.checks import LARGEST, SMALLEST
from hyperspy_fusion.fusion.registration.resampling import Placement

#: of y, then of x: what `axes=` of a signal takes
Axes = Sequence[dict]

# half a pixel over the field of view is what an unregistered scan cannot show anyway
SILENT_PIXELS = 0.5
# two detectors of one vendor file disagree by 0.6 % (0.41452 and 0.4169 um); another binning or another
# field of view is a factor far above
SAME_SCAN_RTOL = 0.05
# of one axis, where the other agrees and the numbers of pixels are the same: a scan is stretched, or its file wrong
_STRETCHED_RTOL = 0.2
# of a distance in pixels
_ROUNDING = 1e-6
_HAADF = "the HAADF image"
_BY_KEYWORD = (
    "pass register='calibration' to bring the HAADF image to the pixels of the maps, or register='shift' to find its "
    "shift as well; or "
)

# names of an axis along which one map follows another
STACK_AXES = ("element", "stack_element")
# to pint "px" is the CSS pixel, a length of 0.26 mm
UNCALIBRATED = {"", "px", "pixel", "pixels", "<undefined>", "None"}
# to pint "A" is the ampere, which no scan is measured in
_UNIT_NAMES = {"A": "angstrom", "Ang": "angstrom", "Angstrom": "angstrom"}
_LENGTHS = ("nm", "µm", "pm", "mm", "m")

_LAYOUTS = {(0, 2): "image", (2, 0): "image", (1, 2): "stack", (3, 0): "stack", (2, 1): "spectra", (3, 1): "frames"}
_ENERGY = re.compile("energy|loss", re.IGNORECASE)


def layout(signal: Any) -> str:
    """What a signal, or a model of one, is by its axes.

    "image", "stack" of images, "spectra" (x, y|E), their "frames" (x, y, t|E), or "".
    """
    manager = getattr(signal, "axes_manager", None)
    return _LAYOUTS.get((manager.navigation_dimension, manager.signal_dimension), "") if manager else ""


def order_problem(signal: Any) -> str:
    """A sentence about spectra whose frames are kept, (x, y, t|E), or whose energies come first, (E|x, y); else ""."""
    of: str = layout(signal)
    axes: Any = getattr(signal, "axes_manager", None)
    if of == "frames":
        return frames_problem(signal)
    energies = [a for a in axes.navigation_axes if _is_of_energies(a)] if of in ("stack", "spectra") else []
    if not energies:
        return ""
    return (
        f"{signal} has its energies first, and a spectrum image (x, y|E) is needed: transpose it by "
        f"`s.as_signal1D({energies[0].name!r})`."
    )


def frames_problem(signal: Any) -> str:
    """A sentence about a signal whose last navigation axis is of frames."""
    axis = signal.axes_manager.navigation_axes[-1]
    named = repr(axis.name) if isinstance(axis.name, str) else axis.index_in_axes_manager
    return (
        f"{signal} keeps its frames apart: add them up by `hyperspy_fusion.sum_frames(spectra, images)`, by "
        f"`s.sum({named})` if the scan did not drift, or pass spectra and one HAADF image for each frame."
    )


def _is_of_energies(axis):
    return str(axis.units).strip() in ("eV", "keV") or _ENERGY.search(str(axis.name)) is not None


def capital(sentence: str) -> str:
    """`sentence` with a capital letter at its start."""
    return sentence[:1].upper() + sentence[1:]


def spatial_axes(signal: Any) -> list[dict]:
    """The axes of an image ``(|x, y)`` or ``(x, y|)`` as dictionaries, of y, then of x.

    They have size, name, scale, offset and units, which `axes=` of a signal takes. ValueError for anything but two
    dimensions and for no pixels, NotImplementedError where an axis is not uniform.
    """
    manager = signal.axes_manager
    if layout(signal) != "image":
        several = manager.navigation_dimension + manager.signal_dimension > 2
        way_out = "; take one image by `.inav[...]` or add them up by `.sum()`" if several else ""
        raise ValueError(f"{signal} is not one image: expected dimensions (|x, y) or (x, y|){way_out}.")
    return axis_dicts(manager.signal_axes or manager.navigation_axes, signal)


def axis_dicts(axes: Any, signal: Any) -> list[dict]:
    """`spatial_axes` of the given axes of `signal`."""
    axes = sorted(axes, key=lambda axis: axis.index_in_array)
    for axis in axes:
        if not axis.is_uniform:
            raise NotImplementedError(
                f"{signal} has the non-uniform axis {axis.name!r}, and only uniform scans can be fused: "
                "interpolate it first, e.g. by `signal.interpolate_on_axis`."
            )
        if not axis.size:
            raise ValueError(f"{signal} is empty: an image of at least one pixel is needed.")
        if not (axis.scale == 0 or SMALLEST <= abs(axis.scale) <= LARGEST) or not abs(axis.offset) <= LARGEST:
            raise ValueError(
                f"{signal} has the scale {axis.scale:g} and the offset {axis.offset:g} on its axis {axis.name!r}, and "
                f"numbers of {SMALLEST:g} to {LARGEST:g} are needed: set those of `s.axes_manager[...]`."
            )
    return [{key: getattr(axis, key) for key in ("size", "name", "scale", "offset", "units")} for axis in axes]


def scan_axes(signal: Any) -> list[dict]:
    """`spatial_axes` of an image, of the maps of a stack, or of a spectrum image."""
    of = layout(signal)
    if of == "image":
        return spatial_axes(signal)
    manager = signal.axes_manager
    return axis_dicts(manager.navigation_axes if of == "spectra" else stack_axes(signal)[1], signal)


def stack_axes(signal: Any) -> tuple[Any, Any]:
    """The axis that counts the maps, and the two of the scan; stacked ``(x, y|)`` maps navigate all three."""
    manager = signal.axes_manager
    if manager.signal_dimension == 2:
        return manager.navigation_axes[0], manager.signal_axes
    axes = sorted(manager.navigation_axes, key=lambda axis: axis.index_in_array)
    axis = next((axis for axis in axes if axis.name in STACK_AXES), axes[0])
    return axis, [other for other in axes if other is not axis]


def check_same_scan(
    map_axes: Axes, haadf_axes: Axes, *, maps: str = "the maps", haadf: str = _HAADF, both_are_maps: bool = False
) -> list[Diagnostic]:
    """Compare the axes of two images, called `maps` and `haadf` in messages, that should come from the same scan.

    Shapes must be the same. Pixel sizes are compared in common units where both are calibrated. A difference below half
    a pixel over the field of view is silent, up to 5 % it is information, and above it is an error. Vendor files carry
    a slightly different calibration for each detector. Up to 20 % along one axis alone is a warning. Offsets
    distinguish two areas of one scan: above half a pixel there is a warning, and information where one of the two has
    no offset, since some files give the detectors of one scan different positions. Where `both_are_maps`, a pixel or
    more in the same units is an error. Names are not compared, "px" and undefined units are no calibration, and "A" is
    read as angstrom.

    Codes of the diagnostics: ``"units-differ"``, ``"pixel-size-differs"`` and ``"offset-differs"``.
    """
    check_same_shape(map_axes, haadf_axes, maps, haadf, both_are_maps, by_keyword=not both_are_maps)
    rtol = _field_rtol(map_axes, haadf_axes)
    found = [_compare_pixel(m, h, maps, haadf, rtol) for m, h in zip(map_axes, haadf_axes, strict=True)]
    found.append(_compare_areas(map_axes, haadf_axes, maps, haadf, both_are_maps))
    # y and x usually agree
    return list(dict.fromkeys(diagnostic for diagnostic in found if diagnostic))


def check_same_shape(
    map_axes: Axes, haadf_axes: Axes, maps: str, haadf: str, both_are_maps: bool = False, by_keyword: bool = True
) -> None:
    """Raise ValueError, with the keyword or line of code that helps, unless both have the same numbers of pixels."""
    expected, got = _shape(map_axes), _shape(haadf_axes)
    if expected == got:
        return
    way = _way_to_same_shape(map_axes, haadf_axes)
    if way is None:
        overlap = ", or if they overlap pass register='shift'" if by_keyword else ""
        raise ValueError(
            f"{capital(haadf)} has {_in_words(haadf_axes)} and {maps} {_in_words(map_axes)} (y, x), so they are not "
            "the same scan: pass the image that was recorded with the maps, or correct the scale of one "
            f"(`axes_manager[...].scale`){overlap}."
        )
    if way == "transpose":
        remedy = f"{haadf} looks transposed, which `.swap_axes(0, 1)` undoes; if it is rotated, turn its data back"
    elif way == "rebin":
        larger, only_images = (haadf, True) if np.prod(got) > np.prod(expected) else (maps, both_are_maps)
        remedy = _how_to_rebin(larger, expected if larger == haadf else got, only_images)
    else:
        remedy = _how_to_crop(expected, got, maps, haadf)
    by_keyword = by_keyword and way != "transpose"
    raise ValueError(
        f"{capital(haadf)} has the shape {got} and {maps} {expected} (y, x), but both must come from the same "
        f"scan: {_BY_KEYWORD * by_keyword}{remedy}."
    )


def _shape(axes):
    return tuple(axis["size"] for axis in axes)


def _way_to_same_shape(map_axes, haadf_axes):
    """One of "transpose", "rebin" and "crop"; None where pixel sizes and fields of view are of two scans."""
    expected, got = _shape(map_axes), _shape(haadf_axes)
    if got == expected[::-1] and _largest_difference(map_axes[::-1], haadf_axes, (1, 1)) <= SAME_SCAN_RTOL:
        return "transpose"
    if not all(map(_comparable, map_axes, haadf_axes)):
        return "rebin" if got[0] * expected[1] == got[1] * expected[0] else "crop"
    of_pixels = _largest_difference(map_axes, haadf_axes, (1, 1))
    of_fields = _largest_difference(map_axes, haadf_axes, np.divide(got, expected))
    if min(of_pixels, of_fields) > SAME_SCAN_RTOL:
        return None
    return "crop" if of_pixels <= of_fields else "rebin"


def _largest_difference(map_axes, haadf_axes, factors):
    """How far the ratios of scales times `factors` are from 1; 0 where scales cannot be compared."""
    triples = zip(map_axes, haadf_axes, factors, strict=True)
    return max((abs(_ratio(h, m) * factor - 1) for m, h, factor in triples if _comparable(m, h)), default=0.0)


def _in_words(axes):
    y, x = axes
    return f"{y['size']} x {x['size']} pixels of {y['scale']:.4g} {y['units']} x {x['scale']:.4g} {x['units']}"


def _how_to_rebin(what, shape, only_images):
    """A remedy that can be run as it stands: HyperSpy wants a size for every axis, of spectra and stacks too."""
    ny, nx = shape
    image = f"`.rebin(new_shape=({nx}, {ny}))`"
    if only_images:
        return f"rebin {what} by {image}, which adds up pixels"
    return (
        f"rebin {what}, which adds up counts: a map by {image}, a spectrum image (x, y|E) by "
        f"`.rebin(new_shape=({nx}, {ny}, n_channels))`, and a stack (n|x, y), which element_maps makes of any maps, "
        f"by `.rebin(new_shape=(n, {nx}, {ny}))`"
    )


def _how_to_crop(expected, got, maps, haadf):
    if all(g >= e for g, e in zip(got, expected, strict=True)):
        what = f"{haadf} to the area of {maps}"
    elif all(g <= e for g, e in zip(got, expected, strict=True)):
        what = f"{maps} to the area of {haadf}"
    else:
        what = "both to the area that they share"
    return (
        f"crop {what}, by `.isig[left:right, top:bottom]`, or by `.inav[left:right, top:bottom]` where x and y "
        "are navigation axes, as in a spectrum image (x, y|E)"
    )


def placements(map_axes: Axes, haadf_axes: Axes, maps: str = "the maps", haadf: str = _HAADF) -> list[Placement]:
    """Where the pixels of an image lie on those of the maps.

    By scales and offsets, which are of the centres of pixels, where both are calibrated. Fields of view are the same
    within half a pixel, or within 5 % with numbers of pixels in a whole proportion. Where the offsets are the same too,
    so are the edges of the fields: a file may have the offset of the edge or none. So are those of equal fields of
    which one has no offset, and the other that of a stage, see `begins_elsewhere`. Without calibrations the fields are
    taken for the same if the shapes are in proportion. ValueError where the place is not known, or the image mirrored
    or transposed.
    """
    pairs, expected, got = list(zip(map_axes, haadf_axes, strict=True)), _shape(map_axes), _shape(haadf_axes)
    if got != expected and _way_to_same_shape(map_axes, haadf_axes) == "transpose":
        check_same_shape(map_axes, haadf_axes, maps, haadf)
    if all(_comparable(m, h) for m, h in pairs):
        rtol = _field_rtol(map_axes, haadf_axes)
        placed = [_calibrated_placement(m, h, maps, haadf, rtol) for m, h in pairs]
        is_whole = all(abs(p.step * p.size - m["size"]) < _ROUNDING for p, m in zip(placed, map_axes, strict=True))
        frames = [all(_begins_at_zero(m, h, own) for m, h in pairs) for own in (0, 1)]
        return [replace(p, start=0.0) for p in placed] if is_whole and frames[0] != frames[1] else placed
    steps = np.divide(expected, got)
    if abs(steps[0] / steps[1] - 1) > SAME_SCAN_RTOL:
        raise ValueError(
            f"{capital(haadf)} has the shape {got} and {maps} {expected} (y, x), in no proportion, and their pixel "
            "sizes cannot be compared: set scale and units of both (`axes_manager[...].scale`)."
        )
    return [Placement(h["size"], step, 0.0) for (_, h), step in zip(pairs, steps, strict=True)]


def begins_elsewhere(map_axes: Axes, haadf_axes: Axes) -> str:
    """Where an image and the maps begin, if offsets and `placements` of equal fields differ; "" where they agree.

    A vendor's file gives spectra and maps an offset in the frame of the stage, and the image of the same scan none.
    """
    if not all(map(_comparable, map_axes, haadf_axes)):
        return ""
    placed = placements(map_axes, haadf_axes)
    pairs = zip(placed, map_axes, haadf_axes, strict=True)
    differ = any(p.start == 0 and abs(_start(m, h, p.step)) > _largest_start(p.step) for p, m, h in pairs)
    return _beginnings(map_axes, haadf_axes, "the maps", _HAADF) if differ else ""


def _begins_at_zero(m, h, own):
    """Whether one axis of the two begins at zero, with its edge or the centre of a pixel of any of the two."""
    scale = max(abs(m["scale"]), abs(_in_units_of(m, h, "scale")))
    offset = _in_units_of(m, h, "offset") if own else m["offset"]
    return abs(offset) <= scale * (SILENT_PIXELS + _ROUNDING)


def _field_rtol(map_axes, haadf_axes):
    """How far two fields of view may differ: more along one axis, where shapes are equal and the other axis agrees."""
    pairs = list(zip(map_axes, haadf_axes, strict=True))
    if _shape(map_axes) != _shape(haadf_axes) or not all(_comparable(m, h) for m, h in pairs):
        return SAME_SCAN_RTOL
    near, far = sorted(abs(_ratio(h, m) - 1) for m, h in pairs)
    return _STRETCHED_RTOL if near <= SAME_SCAN_RTOL < far <= _STRETCHED_RTOL else SAME_SCAN_RTOL


def _calibrated_placement(m, h, maps, haadf, rtol):
    step = _ratio(h, m)
    if step < 0:
        raise ValueError(
            f"The axis {h['name']} of {haadf} runs against that of {maps}: turn the data and the sign of the scale."
        )
    # `size` pixels of the image are as wide as those of the maps, as far as scales are known
    expected, size = m["size"], h["size"]
    is_whole = max(expected, size) % min(expected, size) == 0
    is_near = abs(step * size - expected) <= SILENT_PIXELS
    same_field = is_near or (is_whole and abs(step * size / expected - 1) <= rtol)
    if same_field:
        step = expected / size
    start = _start(m, h, step)
    if same_field and abs(start) <= _largest_start(step):
        start = 0.0
    return Placement(size, step, start)


def _start(m, h, step):
    """Where the first pixel of the axis `h` begins on those of `m`, by the offsets."""
    return (_in_units_of(m, h, "offset") - m["offset"]) / m["scale"] + (1 - step) / 2


def _largest_start(step):
    """Of fields of view that begin at the same place: their offsets may be those of edges."""
    return SILENT_PIXELS + abs(1 - step) / 2 + _ROUNDING


def is_calibrated(axis: dict) -> bool:
    """Whether an axis dict has a scale in units that are a unit: not undefined and not pixels."""
    return str(axis["units"]).strip() not in UNCALIBRATED and axis["scale"] != 0


def _compare_pixel(m, h, maps, haadf, rtol):
    """Diagnostic about two axes of one size, None where they agree; ValueError where they clearly differ."""
    if not (is_calibrated(m) and is_calibrated(h)):
        return None
    if not _comparable(m, h):
        return Diagnostic(
            "units-differ",
            f"The units of {maps} ({m['units']}) and of {haadf} ({h['units']}) cannot be compared: correct one of "
            "them, if both come from the same scan.",
        )
    ratio = _ratio(h, m)
    if abs(ratio - 1) * m["size"] <= SILENT_PIXELS:
        return None
    sizes = capital(f"{haadf} has pixels of {h['scale']:.5g} {h['units']} and {maps} of {m['scale']:.5g} {m['units']}")
    if abs(ratio - 1) <= SAME_SCAN_RTOL:
        sentence = f"{sizes}, {abs(ratio - 1):.1%} apart: both are taken for one scan, on the axes of {maps}."
        return Diagnostic("pixel-size-differs", sentence, INFORMATION)
    if abs(ratio - 1) <= rtol:
        sentence = (
            f"{sizes}, {abs(ratio - 1):.1%} apart along {m['name']} alone: both were taken pixel for pixel, on the "
            f"axes of {maps}; check that they are one scan."
        )
        return Diagnostic("pixel-size-differs", sentence)
    raise ValueError(
        f"{sizes}, a factor of {ratio:.4g}, so they are not the same scan: correct the scale of one "
        "(`axes_manager[...].scale`) or crop and rebin it to the field of view of the other."
    )


def _compare_areas(map_axes, haadf_axes, maps, haadf, both_are_maps):
    """Diagnostic about offsets of axes of like scales, None where they agree; ValueError for maps of other areas."""
    if not all(map(_comparable, map_axes, haadf_axes)):
        return None
    apart = max(map(_pixels_apart, map_axes, haadf_axes))
    if apart <= SILENT_PIXELS + _ROUNDING:
        return None
    where = _beginnings(map_axes, haadf_axes, maps, haadf)
    if not both_are_maps and one_has_no_offset(map_axes, haadf_axes):
        where += ": the fields were laid edge on edge, as is usual for Velox files (else pass register='shift')."
        return Diagnostic("offset-differs", where, INFORMATION)
    where += f", {apart:.3g} pixels apart"
    pairs = zip(map_axes, haadf_axes, strict=True)
    is_same_pixel = all(m["units"] == h["units"] and np.isclose(m["scale"], h["scale"]) for m, h in pairs)
    if both_are_maps and is_same_pixel and apart >= 1 - _ROUNDING:
        raise ValueError(
            f"{where}, so they show different areas: pass maps of one area, or correct the offset of one "
            "(`axes_manager[...].offset`)."
        )
    by_keyword = "" if both_are_maps else ", or pass register='shift'"
    return Diagnostic("offset-differs", f"{where}: check that they show the same area{by_keyword}.")


def one_has_no_offset(map_axes: Axes, haadf_axes: Axes) -> bool:
    """Whether one of the two has offsets of 0, as Velox gives the image, and the other that of a stage."""
    return any(all(axis["offset"] == 0 for axis in axes) for axes in (map_axes, haadf_axes))


def _beginnings(map_axes, haadf_axes, maps, haadf):
    begin = [", ".join(f"{a['offset']:.5g} {a['units']}" for a in axes) for axes in (haadf_axes, map_axes)]
    return capital(f"{haadf} begins at ({begin[0]}) and {maps} at ({begin[1]}) (y, x)")


def _pixels_apart(m, h):
    """Distance of two offsets in pixels of `m`, without what the scales themselves differ by."""
    distance = abs(_in_units_of(m, h, "offset") - m["offset"]) / abs(m["scale"])
    return distance - abs(_ratio(h, m) - 1) * m["size"]


def _comparable(m, h):
    return is_calibrated(m) and is_calibrated(h) and _in_units_of(m, h, "scale") is not None


def _ratio(h, m):
    """Scale of `h` over scale of `m` in common units."""
    return _in_units_of(m, h, "scale") / m["scale"]


def _in_units_of(m, h, key) -> Any:
    """Scale or offset of the axis `h` in the units of `m`; None where they are not comparable."""
    import pint

    units = pint.get_application_registry()  # the one HyperSpy uses
    names = [str(axis["units"]).strip() for axis in (h, m)]
    if names[0] == names[1]:  # units that pint does not know can still be the same
        return h[key]
    if not UNCALIBRATED.isdisjoint(names):
        return None
    try:
        own, other = (_UNIT_NAMES.get(name, name) for name in names)
        return units.Quantity(h[key], own).to(other).magnitude
    except Exception:  # pint raises AttributeError, TypeError, TokenError, ... for what it cannot read
        return None


def in_units_of_length(axes: Axes, low: float, high: float) -> list[dict]:
    """Scales, offsets and units of `axes`, in the first unit of length where absolute scales lie between two numbers.

    That of the axes comes first. Axes without a scale, or for which there is none, are in pixels from 0.
    """
    for units in (None, *_LENGTHS):
        found = [{**axis, "units": str(units or axis["units"]).strip()} for axis in axes]
        for new, old in zip(found, axes, strict=True):
            if new["units"] != str(old["units"]).strip():
                # without the last digits, which the conversion rounds
                new |= {key: _rounded(_in_units_of(new, old, key)) for key in ("scale", "offset")}
        if all(low <= abs(new["scale"]) <= high for new in found):
            return found
    return [{**axis, "scale": 1.0, "offset": 0.0, "units": "px"} for axis in axes]


def _rounded(value):
    return 0.0 if value is None else float(f"{value:.12g}")
