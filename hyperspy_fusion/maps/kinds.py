"""The kinds of sources, a class each: maps that are made already, spectrum images, fitted models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hyperspy_fusion.grid.axes import layout, order_problem, scan_axes, spatial_axes, stack_axes
from hyperspy_fusion.grid.images import check_image, check_real, check_signal, is_eels
from hyperspy_fusion.identify.elements import (
    atomic_number,
    by_element,
    check_line,
    element_of,
    list_of_names,
    refuse_unasked_lines,
)
from hyperspy_fusion.identify.map_identity import (
    identify_map,
    identify_stack,
    metadata_names,
    metadata_of_maps,
    name_diagnostics,
    refuse_detector_images,
    title_of,
)
from hyperspy_fusion.maps.base import (
    SourceMap,
    SourceMaps,
    SourceRequest,
    check_count,
    described,
    is_model,
    is_selection,
    refuse_unfitted,
    selected,
)
from hyperspy_fusion.maps.eds_background import counts_over_background
from hyperspy_fusion.maps.eds_fit import modelled_maps
from hyperspy_fusion.maps.eds_lines import line_counts, out_of_window_counts
from hyperspy_fusion.maps.eels_maps import edge_counts
from hyperspy_fusion.maps.stack import OF_FILE, noise_diagnostics, noise_metadata

_logger = logging.getLogger(__name__)

_MAPS_OF_BACKGROUND = frozenset({"background"})


# ---- maps that are made already ------------------------------------------------------------------------


class MapList:
    """A list or tuple of maps ``(|x, y)`` or ``(x, y|)``."""

    kind, takes = "a list of maps", _MAPS_OF_BACKGROUND

    @staticmethod
    def matches(source: Any) -> bool:
        return isinstance(source, list | tuple)

    @staticmethod
    def read(source: Any, request: SourceRequest) -> SourceMaps:
        return read_list(source, request.elements)


class MapDictionary:
    """``{"Fe": map}`` or ``{"Fe_Ka": map}``."""

    kind, takes = "a dictionary of maps", _MAPS_OF_BACKGROUND

    @staticmethod
    def matches(source: Any) -> bool:
        return isinstance(source, dict)

    @staticmethod
    def read(source: Any, request: SourceRequest) -> SourceMaps:
        keys = list_of_names(list(source), "The keys of the dict of maps", "{'Fe': map}")
        for key in keys:
            atomic_number(key) if key.isalpha() else check_line(key)
        found = read_list(list(source.values()), [element_of(key) for key in keys])
        maps = [m._replace(line=key if "_" in key else m.line) for m, key in zip(found.maps, keys, strict=True)]
        return SourceMaps(selected(maps, request.elements), diagnostics=found.diagnostics)


class StackOrMap:
    """One map, or a stack of maps ``(n|x, y)`` or ``(x, y, n|)``."""

    kind, takes = "a stack of maps or a single map", _MAPS_OF_BACKGROUND

    @staticmethod
    def matches(source: Any) -> bool:
        return hasattr(source, "axes_manager") and hasattr(source, "data")

    @staticmethod
    def read(source: Any, request: SourceRequest) -> SourceMaps:
        check_signal(source)
        check_real(source)
        elements = request.elements
        if problem := order_problem(source):
            raise ValueError(problem)
        if layout(source) == "image":
            return read_list([source], elements, alone=True)
        if layout(source) != "stack":
            raise ValueError(
                f"{source} cannot be read as element maps: expected a map (|x, y) or (x, y|), a stack (n|x, y) or "
                "(x, y, n|), or an EDS spectrum image (x, y|E)."
            )
        axis, _ = stack_axes(source)
        if elements is None or is_selection(elements, axis.size):
            found = _read_stack(source)
            return replace(found, maps=selected(found.maps, elements, all_named=False))
        return _read_stack(source, elements)


class ElementMapsSource:
    """An ElementMaps, whole or sliced, which knows its elements."""

    kind, takes = "ElementMaps", _MAPS_OF_BACKGROUND

    @staticmethod
    def matches(source: Any) -> bool:
        return getattr(source, "_signal_type", "") == "element_maps" and layout(source) == "stack"

    @staticmethod
    def read(source: Any, request: SourceRequest) -> SourceMaps:
        check_real(source)
        found = _read_stack(source)
        of_file = metadata_names(source.metadata, OF_FILE) == [m.element for m in found.maps]
        found = replace(found, named_by_file=of_file and request.elements is None)
        maps = selected(found.maps, request.elements)
        # not of a slice, nor where pixels or their background are to be changed
        names = metadata_names(source.metadata, "Sample.elements")
        is_whole = source.axes_manager.navigation_dimension == 1 and names == [m.element for m in maps]
        in_memory = not source._lazy and not np.ma.isMaskedArray(source.data) and source.data.dtype.isnative
        if request.background is None and is_whole and in_memory and not np.isinf(source.data).any():
            return replace(found, maps=maps, whole=source)
        return replace(found, maps=maps)


def read_list(signals: Sequence[Any], elements: Sequence[str] | None, alone: bool = False) -> SourceMaps:
    """Maps of `signals`, named or selected by `elements`; `alone` for one map that is no list."""
    for signal in signals:
        check_image(signal)
    nodes = [node for signal in signals for node in metadata_of_maps(signal)]
    refuse_detector_images(nodes, alone)
    if is_selection(elements, len(signals)):
        found = read_list(signals, None)
        return replace(found, maps=selected(found.maps, list(elements or []), all_named=False))
    diagnostics = []
    if elements is not None:
        check_count(elements, len(signals))
        diagnostics += name_diagnostics(elements, nodes)
    maps = []
    for i, signal in enumerate(signals):
        identity = identify_map(signal, None if elements is None else elements[i])
        diagnostics += [*identity.diagnostics, *noise_diagnostics(signal)]
        title = title_of(signal.metadata)
        name = f"map {i + 1} ({title!r})" if title else f"map {i + 1}"
        noise = noise_metadata(signal)
        metadata, axes = signal.metadata, spatial_axes(signal)
        maps.append(SourceMap(identity.element, identity.line, signal.data, axes, metadata, name, *noise))
    return SourceMaps(maps, diagnostics=diagnostics)


def _read_stack(signal, elements=None):
    """All maps of a stack; `elements`, as many as maps, name them."""
    axis, _ = stack_axes(signal)
    nodes = metadata_of_maps(signal, axis)
    refuse_detector_images(nodes, alone=False)
    if elements is None:
        identities = identify_stack(signal, axis)
        named = [(identity.element, identity.line) for identity in identities]
        found = [diagnostic for identity in identities for diagnostic in identity.diagnostics]
    else:
        check_count(elements, axis.size)
        named, found = [(symbol, "") for symbol in elements], name_diagnostics(elements, nodes)
    axes = scan_axes(signal)
    data, background, variance = (
        [None] * axis.size if array is None else np.moveaxis(array, axis.index_in_array, 0)
        for array in (signal.data, *noise_metadata(signal))
    )
    maps = []
    for i, (element, line) in enumerate(named):
        metadata, name = _with_own_edges(signal.metadata, nodes[i]), f"map {i + 1} of {signal}"
        maps.append(SourceMap(element, line, data[i], axes, metadata, name, background[i], variance[i]))
    return SourceMaps(maps, diagnostics=[*found, *noise_diagnostics(signal)])


def _with_own_edges(metadata, own):
    """The metadata of a stack by HyperSpy, which are those of its first map, with what `own` has of edges."""
    if own is None or not own.has_item("Element_maps"):
        return metadata
    metadata = metadata.deepcopy()
    metadata.set_item("Element_maps", own.Element_maps.as_dictionary())
    return metadata


# ---- spectrum images -----------------------------------------------------------------------------------


class EdsSpectra:
    """An EDS spectrum image ``(x, y|E)``; one of another type is refused with what to do."""

    kind, takes = "an EDS spectrum image", frozenset({"xray_lines", "background", "integration_windows", "lines"})

    @staticmethod
    def matches(source: Any) -> bool:
        return layout(source) == "spectra" and hasattr(source, "data") and not is_eels(source)

    @staticmethod
    def read(source: Any, request: SourceRequest) -> SourceMaps:
        if request.lines == "model":
            return modelled_maps(source, request)
        width = request.integration_windows
        found = (line_counts if request.background is None else counts_over_background)(source, request)
        axes, metadata = described(source, {"integration_windows": width})
        maps = []
        for i, (element, lines) in enumerate(found.lines.items()):
            name, data = f"the {element} map of {source}", found.counts[..., i]
            background = None if found.background is None else found.background[..., i]
            line, beside = "+".join(lines), found.beside.get(element)
            maps.append(SourceMap(element, line, data, axes, metadata, name, background, beside=beside))
        others = out_of_window_counts(source, found.lines, width) if request.out_of_window else None
        return SourceMaps(maps, title_of(metadata), found.diagnostics, others, named_by_file=request.is_of_file)


class EelsSpectra:
    """An EELS spectrum image ``(x, y|E)``."""

    kind, takes = "an EELS spectrum image", frozenset({"edges", "background"})

    @staticmethod
    def matches(source: Any) -> bool:
        return is_eels(source)

    @staticmethod
    def read(source: Any, request: SourceRequest) -> SourceMaps:
        edges, diagnostics = edge_counts(source, request)
        sections = {e.element: e.cross_section for e in edges if np.isfinite(e.cross_section)}
        entries: dict[str, Any] = {
            "edges": {e.element: e.name for e in edges},
            "windows": {e.element: np.array([*e.before, *e.after], dtype=float) for e in edges},
        }
        if len(sections) == len(edges):
            entries["cross_sections"] = sections
        axes, metadata = described(source, entries)
        if request.background == "model":
            # intensities are not the counts that the spectra are
            metadata.set_item("Signal.quantity", "")
        maps = []
        for e in edges:
            name = f"the {e.element} map of {source}"
            maps.append(SourceMap(e.element, "", e.net, axes, metadata, name, variance=e.variance, allows_nan=True))
        return SourceMaps(maps, title_of(metadata), diagnostics)


# ---- fitted models -------------------------------------------------------------------------------------


class FittedEdsModel:
    """An EDS model of exspy."""

    kind, takes = "a fitted EDS model", frozenset({"xray_lines"})

    @staticmethod
    def matches(source: Any) -> bool:
        return is_model(source) and hasattr(source, "get_lines_intensity")

    @staticmethod
    def read(source: Any, request: SourceRequest) -> SourceMaps:
        lines = _fitted_lines(source, request.elements, request.xray_lines)
        refuse_unfitted(source, [source[line].A for line in lines])
        found = read_list(source.get_lines_intensity(lines) if lines else [], None)
        title = title_of(source.signal.metadata)
        return SourceMaps(selected(found.maps, request.elements), title, found.diagnostics)


class FittedEdges:
    """An EELS model of exspy, or a list of its edges."""

    kind, takes = "a fitted EELS model", frozenset()

    @staticmethod
    def matches(source: Any) -> bool:
        is_list = isinstance(source, list | tuple) and bool(source)
        return is_model(source) or (is_list and all(hasattr(one, "subshell") for one in source))

    @staticmethod
    def read(source: Any, request: SourceRequest) -> SourceMaps:
        edges = _main_edges(source) if is_model(source) else list(source)
        if not edges:
            raise ValueError(f"{source} has no components of known elements: pass a fitted exspy model, or maps.")
        model = source if is_model(source) else edges[0].model
        refuse_unfitted(model, [edge.intensity for edge in edges])
        found = read_list([edge.intensity.as_signal() for edge in edges], [edge.element for edge in edges])
        # the maps of a fit have no metadata of their scan, and are not the counts that its spectra are
        metadata = model.signal.metadata.deepcopy()
        metadata.set_item("Signal.quantity", "")
        # of any element they are proportional to the number of its atoms
        metadata.set_item("Element_maps.cross_sections", {edge.element: 1.0 for edge in edges})
        maps = [m._replace(metadata=metadata) for m in found.maps]
        return SourceMaps(selected(maps, request.elements), title_of(metadata), found.diagnostics)


def _fitted_lines(model, elements, xray_lines):
    """Which of the X-ray lines that an EDS model fits make the maps: asked for, in ``Sample.xray_lines``, or all."""
    in_model = [component.name for component in model.xray_lines]
    lines = xray_lines or []
    refuse_unasked_lines(lines, elements)
    if xray_lines is None:
        preferred = set(metadata_names(model.signal.metadata, "Sample.xray_lines"))
        for own in by_element(in_model).values():
            lines += [line for line in own if line in preferred] or own
    for line in lines:
        if line not in in_model:
            raise ValueError(f"{line} is not fitted in {model}: expected some of {', '.join(in_model)}.")
    return [line for line in lines if elements is None or element_of(line) in elements]


def _main_edges(model):
    """One core-loss edge per element, by symbol: the lowest independent one; exspy twins the rest to it."""
    edges = [c for c in model if hasattr(c, "subshell") and c.active and c.intensity.twin is None]
    edges.sort(key=lambda edge: (edge.element, edge.onset_energy.value))
    main = {}
    for edge in edges:
        if main.setdefault(edge.element, edge) is not edge:
            _logger.info("%s is left out, the %s map is %s.", edge.name, edge.element, main[edge.element].name)
    return list(main.values())
