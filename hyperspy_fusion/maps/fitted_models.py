"""Fitted exspy models as sources of maps: areas of X-ray lines, intensities of EELS edges."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from hyperspy_fusion.identify.elements import by_element, element_of, refuse_unasked_lines
from hyperspy_fusion.identify.map_identity import metadata_names, title_of
from hyperspy_fusion.maps.base import SourceMaps, SourceRequest, selected
from hyperspy_fusion.maps.made_maps import read_list

_logger = logging.getLogger(__name__)


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


def is_model(source: Any) -> bool:
    """Whether `source` is a HyperSpy model, which is a list of components too."""
    from hyperspy.model import BaseModel

    return isinstance(source, BaseModel)


def refuse_unfitted(model: Any, parameters: Sequence[Any]) -> None:
    """Raise ValueError unless the `parameters` of `model` are fitted everywhere."""
    if not all(parameter.map["is_set"].all() for parameter in parameters):
        raise ValueError(f"{model} is not fitted at every pixel: call `m.multifit()` first.")


def _fitted_lines(model, elements, xray_lines):
    """Which of the X-ray lines that an EDS model fits make the maps: asked for, in ``Sample.xray_lines``, or all."""
    in_model = [component.name for component in model.xray_lines]
    if xray_lines is None:
        preferred = set(metadata_names(model.signal.metadata, "Sample.xray_lines"))
        lines = []
        for own in by_element(in_model).values():
            lines += [line for line in own if line in preferred] or own
    else:
        lines = xray_lines
        refuse_unasked_lines(lines, elements)
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
