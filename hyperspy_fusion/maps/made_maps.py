"""Sources whose maps are made already: a list, a dictionary, a stack or a single map, ElementMaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperspy_fusion.grid.axes import axis_dicts, spatial_axes, stack_axes
from hyperspy_fusion.grid.images import check_image, check_real, check_signal
from hyperspy_fusion.identify.elements import atomic_number, check_line, element_of, list_of_names
from hyperspy_fusion.identify.map_identity import (
    identify_map,
    identify_stack,
    metadata_of_maps,
    name_diagnostics,
    refuse_detector_images,
    title_of,
)
from hyperspy_fusion.maps.base import SourceMap, SourceMaps, SourceRequest, check_count, is_selection, selected
from hyperspy_fusion.maps.noise_metadata import noise_diagnostics, noise_metadata

_MAPS_OF_BACKGROUND = frozenset({"background"})


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
        manager, elements = source.axes_manager, request.elements
        if (manager.navigation_dimension, manager.signal_dimension) in ((0, 2), (2, 0)):
            return read_list([source], elements, alone=True)
        if not _is_stack(source):
            raise ValueError(
                f"{source} cannot be read as element maps: expected a map (|x, y) or (x, y|), a stack (n|x, y) or "
                "(x, y, n|), or an EDS spectrum image (x, y|E)."
            )
        axis, _ = stack_axes(source)
        if elements is None or is_selection(elements, axis.size):
            found = _read_stack(source)
            return SourceMaps(selected(found.maps, elements, all_named=False), diagnostics=found.diagnostics)
        return _read_stack(source, elements)


class ElementMapsSource:
    """An ElementMaps, whole or sliced, which knows its elements."""

    kind, takes = "ElementMaps", _MAPS_OF_BACKGROUND

    @staticmethod
    def matches(source: Any) -> bool:
        return getattr(source, "_signal_type", "") == "element_maps" and _is_stack(source)

    @staticmethod
    def read(source: Any, request: SourceRequest) -> SourceMaps:
        check_real(source)
        found = _read_stack(source)
        return SourceMaps(selected(found.maps, request.elements), diagnostics=found.diagnostics)


def read_list(signals: Sequence[Any], elements: Sequence[str] | None, alone: bool = False) -> SourceMaps:
    """Maps of `signals`, named or selected by `elements`; `alone` for one map that is no list."""
    for signal in signals:
        check_image(signal)
    nodes = [node for signal in signals for node in metadata_of_maps(signal)]
    refuse_detector_images(nodes, alone)
    if is_selection(elements, len(signals)):
        found = read_list(signals, None)
        return SourceMaps(selected(found.maps, list(elements or []), all_named=False), diagnostics=found.diagnostics)
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


def _is_stack(signal):
    manager = signal.axes_manager
    return (manager.navigation_dimension, manager.signal_dimension) in ((1, 2), (3, 0))


def _read_stack(signal, elements=None):
    """All maps of a stack; `elements`, as many as maps, name them."""
    axis, plane = stack_axes(signal)
    nodes = metadata_of_maps(signal, axis)
    refuse_detector_images(nodes, alone=False)
    if elements is None:
        identities = identify_stack(signal, axis)
        named = [(identity.element, identity.line) for identity in identities]
        found = [diagnostic for identity in identities for diagnostic in identity.diagnostics]
    else:
        check_count(elements, axis.size)
        named, found = [(symbol, "") for symbol in elements], name_diagnostics(elements, nodes)
    axes = axis_dicts(plane, signal)
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
