"""The maps of a source as one: compared, computed, added up, with the metadata and the noise metadata of all."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic, as_metadata, from_metadata, warnings_of
from hyperspy_fusion.fusion.spectra.scan_spectra import ScanSpectra
from hyperspy_fusion.grid.axes import check_same_scan, is_calibrated, stack_axes
from hyperspy_fusion.grid.images import finite_pixels, nan_pixels
from hyperspy_fusion.identify.elements import checked_elements, refuse_undetectable
from hyperspy_fusion.identify.map_identity import metadata_names, title_of
from hyperspy_fusion.maps.base import WINDOW_WIDTH, SourceMap, SourceMaps

_logger = logging.getLogger(__name__)

_COPIED = ["Acquisition_instrument", "Sample.description", "Frames"]
_COPIED += [f"General.{key}" for key in ("date", "time", "authors", "original_filename")]
_DIAGNOSTICS = "Element_maps.diagnostics"
# elements that the file alone names, of maps from which nobody has selected
OF_FILE = "Element_maps.named_by_file"
# where the metadata have background and variance, and their names; the variance is where HyperSpy has it
_NOISE = {"Element_maps.background": "background", "Signal.Noise_properties.variance": "variance"}
# once; older files of a fit of the result of a fit have it twice
_TITLE_OF_FUSED = re.compile(r"^(Fused maps( of |$))+")


@dataclass(frozen=True)
class ScanMaps:
    """The element maps of one scan, and all that was read with them.

    The signal is an ElementMaps ``(n|x, y)``; its axes are of y, then of x. `background`, counts that are not of the
    elements, and `variance` of the noise are (n, ny, nx), None where not known. The diagnostics include those that the
    maps had before. `out_of_window` counts of EDS spectra are (bands, ny, nx), None where nobody asked for them.
    `named_by_file` is whether the file alone names the elements. `beside` has for each map the counts in background
    windows of its line, None where not read. `spectra` are what a model of EDS spectra is to be fitted to, None for
    maps of windows.
    """

    signal: Any
    axes: list[dict]
    background: np.ndarray | None
    variance: np.ndarray | None
    diagnostics: list[Diagnostic]
    out_of_window: np.ndarray | None = None
    named_by_file: bool = False
    beside: tuple = ()
    spectra: ScanSpectra | None = None


def one_scan(found: SourceMaps, allow_nan: bool) -> tuple[ScanMaps, list[Diagnostic]]:
    """The maps of a source in one signal, and the new diagnostics; pixels of a whole ElementMaps are not copied."""
    maps, whole, diagnostics = found.maps, found.whole, list(found.diagnostics)
    _check_elements(maps)
    axes, about_axes = common_axes(maps)
    diagnostics += [*_about_fused(maps), *about_axes]
    earlier = [diagnostic for m in maps for diagnostic in _kept_diagnostics(m.metadata)]
    maps = _computed(maps, allow_nan)
    if whole is not None:
        data = np.moveaxis(whole.data, stack_axes(whole)[0].index_in_array, 0)
        noise, metadata = noise_metadata(whole), _without_fit(whole)
    else:
        maps = added_up(maps)
        metadata, about_metadata = _metadata(maps, found.title)
        noise, about_noise = _stacked_noise(maps)
        diagnostics += [*about_metadata, *about_noise]
        data = _one_array([m.data for m in maps])
    signal = with_noise_metadata(_signal(data, axes, metadata), *noise)
    if found.named_by_file:
        signal.metadata.set_item(OF_FILE, list(signal.elements))
    elif signal.metadata.has_item(OF_FILE):
        del signal.metadata.Element_maps.named_by_file
    kept = list(dict.fromkeys([*earlier, *diagnostics]))
    if kept:
        signal.metadata.set_item(_DIAGNOSTICS, as_metadata(kept))
    if sentences := warnings_of(kept):
        signal.metadata.set_item("Element_maps.warnings", list(dict.fromkeys(sentences)))
    beside = tuple(m.beside for m in maps)
    read = found.out_of_window, found.named_by_file, beside, found.spectra
    return ScanMaps(signal, axes, *noise, kept, *read), diagnostics


def _check_elements(maps):
    """Raise ValueError unless every map has an element, of which there can be a map."""
    unknown = [m for m in maps if m.element is None]
    if unknown:
        several = any(len(metadata_names(m.metadata, "Sample.elements")) > 1 for m in unknown)
        why = " (Sample.elements lists what the sample contains, not what a map shows)" if several else ""
        raise ValueError(
            f"Cannot tell the element of {', '.join(m.name for m in unknown)}{why}: name all maps in their "
            "order by elements=['Fe', ...], or pass a dict {'Fe': map, ...}."
        )
    checked_elements([m.element for m in maps])
    refuse_undetectable([m.element for m in maps if m.line])


def common_axes(maps):
    """Axes of the first calibrated map, after all maps have been compared with it."""
    reference = next((m for m in maps if all(map(is_calibrated, m.axes))), maps[0])
    found = []
    for m in maps:
        found += check_same_scan(reference.axes, m.axes, maps=reference.name, haadf=m.name, both_are_maps=True)
    return reference.axes, found


def _computed(maps: Sequence[SourceMap], allow_nan):
    """The maps in memory, lazy ones in one computation, with pixels that are finite or, where allowed, NaN."""
    from dask.base import compute

    images, beside = compute([m.data for m in maps], [m.beside for m in maps])
    return [
        m._replace(data=nan_pixels(image) if allow_nan or m.allows_nan else finite_pixels(image, m.name), beside=counts)
        for m, image, counts in zip(maps, images, beside, strict=True)
    ]


# ---- one signal ------------------------------------------------------------------------------------


def added_up(maps):
    """One map per element: those of different X-ray lines are added up, any other repetition is an error."""
    added = []
    for element in dict.fromkeys(m.element for m in maps):
        group = [m for m in maps if m.element == element]
        lines = [m.line for m in group]
        if len(group) > 1:
            if "" in lines or len(set(lines)) < len(lines):
                raise ValueError(
                    f"{element} is repeated by {' and '.join(m.name for m in group)}, and nothing shows that these "
                    "are different X-ray lines to be added up: keep one map, or pass their sum."
                )
            _logger.info("The %s map is the sum of %s.", element, ", ".join(lines))
        one = group[0]._replace(line="+".join(lines), beside=None, **_sums(group)) if len(group) > 1 else group[0]
        added.append(one)
    return added


def _sums(group):
    """Sums of pixels, background and variance of several maps; that of small integers is a wide one."""
    arrays = {key: [getattr(m, key) for m in group] for key in ("data", "background", "variance")}
    return {key: None if any(a is None for a in own) else _sum(own) for key, own in arrays.items()}


def _sum(arrays):
    """Of maps in memory, or lazy where one is."""
    if not any(hasattr(a, "dask") for a in arrays):
        return np.sum(arrays, axis=0)
    import dask.array as da

    return da.stack(arrays).sum(axis=0)


def _signal(data, axes, metadata):
    import hyperspy.api as hs

    element_axis = {"size": len(data), "name": "element", "scale": 1, "offset": 0, "navigate": True}
    axes = [element_axis, *({**axis, "navigate": False} for axis in axes)]
    signal = hs.signals.Signal2D(data, axes=axes, metadata=metadata)
    signal.set_signal_type("element_maps")
    return signal


def _one_array(images):
    """The pixels of all images, (n, ny, nx), native: converted one by one on their way into the one array.

    64-bit integers are narrowed to 32 bits where they fit, for a solver in float32 keeps no more.
    """
    dtype = np.result_type(*images).newbyteorder("=")
    if dtype.kind in "iu" and dtype.itemsize == 8:
        limits = np.iinfo(f"{dtype.kind}4")
        if all(limits.min <= int(image.min()) and int(image.max()) <= limits.max for image in images):
            dtype = limits.dtype
    stack: Any = np.empty((len(images), *images[0].shape), dtype)
    for layer, image in zip(stack, images, strict=True):
        layer[...] = image
    return stack


# ---- noise metadata: background and variance, pixel by pixel ---------------------------------------


def noise_metadata(signal: Any) -> tuple[Any, Any]:
    """Background and variance that maps have in their metadata, in memory; None where there is none of their shape."""
    nodes = {name: signal.metadata.get_item(path) for path, name in _NOISE.items()}
    found = {name: np.asarray(node.data) if _has_shape_of(node, signal) else None for name, node in nodes.items()}
    if found["variance"] is not None and not np.any(found["variance"] > 0):
        found["variance"] = None  # fits without a variance leave zeros
    return found["background"], found["variance"]


def noise_diagnostics(signal: Any) -> list[Diagnostic]:
    """Code ``"noise-metadata-shape"`` for noise metadata that are of other pixels, as of the first map of a stack."""
    nodes = {name: signal.metadata.get_item(path) for path, name in _NOISE.items()}
    return [
        Diagnostic(
            "noise-metadata-shape",
            f"The {name} in the metadata has the shape {node.data.shape}, not {signal.data.shape} of the maps: it is "
            "not used; delete it, or give each map its own.",
        )
        for name, node in nodes.items()
        if hasattr(node, "axes_manager") and not _has_shape_of(node, signal)
    ]


def _has_shape_of(node, signal):
    return hasattr(node, "axes_manager") and node.data.shape == signal.data.shape


def with_noise_metadata(signal: Any, background: np.ndarray | None, variance: np.ndarray | None) -> Any:
    """`signal` with background and variance in its metadata, None for neither."""
    import hyperspy.api as hs

    for (path, name), values in zip(_NOISE.items(), (background, variance), strict=True):
        if values is not None:
            node = hs.signals.Signal2D(values, axes=signal.axes_manager._get_axes_dicts())
            node.metadata.General.title = name.capitalize()
            signal.metadata.set_item(path, node)
    return signal


def _stacked_noise(maps):
    """Background, zero where a map has none, and variance, which all maps must have; None where none has it."""
    background, variance = (_one_or_none([getattr(m, key) for m in maps], maps[0].data) for key in _NOISE.values())
    missing = [m.element for m in maps if m.variance is None]
    if variance is None or not missing:
        return (background, variance), []
    sentence = f"No variance of the map of {', '.join(missing)}, so that of the others is not used: give it to all."
    return (background, None), [Diagnostic("variance-missing", sentence, elements=tuple(missing))]


def _one_or_none(arrays, like):
    zero = np.zeros(like.shape, np.float32)
    is_known = any(array is not None for array in arrays)
    return _one_array([zero if array is None else array for array in arrays]) if is_known else None


# ---- metadata ----------------------------------------------------------------------------------------


def _metadata(maps, title):
    """Metadata of the stack: the acquisition as the first map has it, what each map was made from; and diagnostics.

    ``Sample.xray_lines`` stays out, for it lists one line per entry. ``Element_maps.xray_lines`` has one entry per map,
    such as "Fe_Ka+Fe_La". Codes of the diagnostics: ``"compositions"``, ``"quantities-differ"``,
    ``"window-widths-differ"`` and ``"fit-among-counts"``.
    """
    lines, nodes = [m.line for m in maps], [m.metadata for m in maps]
    elements = [m.element for m in maps]
    quantity, about_quantity = _common_quantity(nodes)
    width, about_width = _common_width(nodes)
    edges, about_edges = _described_edges(dict(zip(elements, nodes, strict=True)))
    entries = {key: copy.deepcopy(nodes[0].get_item(key)) for key in _COPIED} | {
        "General.title": f"Element maps of {title or ', '.join(elements)}",
        "Sample.elements": elements,
        "Signal.quantity": quantity,
        "Element_maps.source_titles": list(dict.fromkeys(map(title_of, nodes))),
        "Element_maps.xray_lines": lines if all(lines) else [],
        "Element_maps.integration_windows": width,
        "Element_maps.lines": "model" if all(n.get_item("Element_maps.lines") == "model" for n in nodes) else "",
        **{f"Element_maps.{key}": values for key, values in edges.items()},
    }
    tree = type(nodes[0])()
    for key, value in entries.items():
        if value:
            tree.set_item(key, value)
    return tree.as_dictionary(), [*about_quantity, *about_width, *about_edges]


def _kept_diagnostics(metadata):
    """The diagnostics that `metadata` of maps hold."""
    keys = ("codes", "sentences", "severities", "elements")
    return from_metadata({key: metadata_names(metadata, f"{_DIAGNOSTICS}.{key}") for key in keys})


def _about_fused(maps):
    """Code ``"fused-already"`` where maps are the result of a fit."""
    for m in maps:
        title = title_of(m.metadata)
        if m.metadata.has_item("Fusion") or _TITLE_OF_FUSED.match(title):
            sentence = (
                f"The maps ({title!r}) are the result of a fit already, and fusing them again uses the HAADF "
                "image twice: pass the measured maps."
            )
            return [Diagnostic("fused-already", sentence)]
    return []


def _without_fit(source):
    """Metadata of an ElementMaps, without that it is the result of a fit."""
    metadata = source._deepcopy_with_new_data(None).metadata
    if metadata.has_item("Fusion"):
        del metadata.Fusion
    title = title_of(metadata)
    if _TITLE_OF_FUSED.match(title):
        title = _TITLE_OF_FUSED.sub("", title) or ", ".join(metadata_names(metadata, "Sample.elements"))
        metadata.set_item("General.title", f"Element maps of {title}")
    return metadata.as_dictionary()


def _common_quantity(nodes):
    """What the numbers are, where all maps agree; exspy's compositions keep the label of the counts."""
    first = title_of(nodes[0])
    if any(" percent of " in title_of(node) for node in nodes):
        sentence = (
            f"Maps titled {first!r} are compositions, which do not follow the thickness as the HAADF image does: "
            "fuse line intensities instead."
        )
        return "", [Diagnostic("compositions", sentence)]
    found = list(dict.fromkeys(str(node.get_item("Signal.quantity", "")) for node in nodes))
    known = [quantity for quantity in found if quantity]
    sentence = (
        f"The maps are of different quantities ({', '.join(known)}), whose intensities cannot be compared: pass "
        "maps of one quantity, best the intensities of lines."
    )
    about = [Diagnostic("quantities-differ", sentence)] if len(known) > 1 else []
    return found[0] if len(found) == 1 and "atom counts of " not in first else "", about


def _common_width(nodes):
    """Width of the windows in FWHM; None, and a diagnostic, where it is not the same.

    Windows of 2 FWHM hold nearly all of a line, and go with maps of other kinds.
    """
    of_lines = [node for node in nodes if not node.has_item("Element_maps.edges")]
    found = list(dict.fromkeys(node.get_item("Element_maps.integration_windows") for node in of_lines))
    if len(found) < 2 or set(found) == {None, WINDOW_WIDTH}:
        return found[0] if len(found) == 1 else None, []
    known = " and ".join(f"{width:g}" for width in found if width is not None)
    sentence = (
        f"The maps are of windows of {known} FWHM{' and of no known width' if None in found else ''}, which hold "
        "different parts of a line: make all with one integration_windows."
    )
    return None, [Diagnostic("window-widths-differ", sentence)]


def _described_edges(nodes):
    """What the metadata `nodes` {element: metadata} have of the edges of these maps, of each its own.

    Cross-sections are left out where one is not known. Intensities of fits, whose cross-section is 1, among counts are
    a diagnostic.
    """
    found = {
        key: {e: copy.deepcopy(v) for e, n in nodes.items() if (v := n.get_item(f"Element_maps.{key}.{e}")) is not None}
        for key in ("edges", "windows", "cross_sections")
    }
    sections, about = found["cross_sections"], []
    atoms = [element for element, section in sections.items() if section == 1]
    of_lines = [e for e, n in nodes.items() if n.has_item("Element_maps.xray_lines") or n.has_item("Sample.xray_lines")]
    counts = [e for e in nodes if e not in atoms and (e in found["edges"] or e in of_lines)]
    if atoms and counts:
        sentence = (
            f"The maps of {', '.join(atoms)} are intensities of a fit, in proportion to atoms, and those of "
            f"{', '.join(counts)} are counts: make all in one way to compare them."
        )
        about = [Diagnostic("fit-among-counts", sentence, elements=(*atoms, *counts))]
    if len(sections) < len(nodes):
        del found["cross_sections"]
    return found, about
