"""Spectrum images as sources of maps: EDS by windows around X-ray lines, EELS by edges."""

from __future__ import annotations

from typing import Any

import numpy as np

from hyperspy_fusion.grid.axes import axis_dicts
from hyperspy_fusion.grid.images import is_eels, is_spectrum_image
from hyperspy_fusion.identify.map_identity import title_of
from hyperspy_fusion.maps.base import SourceMap, SourceMaps, SourceRequest
from hyperspy_fusion.maps.eds_background import counts_over_background
from hyperspy_fusion.maps.eds_lines import line_counts
from hyperspy_fusion.maps.eels_maps import edge_counts


class EdsSpectra:
    """An EDS spectrum image ``(x, y|E)``; one of another type is refused with what to do."""

    kind, takes = "an EDS spectrum image", frozenset({"xray_lines", "background", "integration_windows"})

    @staticmethod
    def matches(source: Any) -> bool:
        return is_spectrum_image(source) and hasattr(source, "data") and not is_eels(source)

    @staticmethod
    def read(source: Any, request: SourceRequest) -> SourceMaps:
        found = (line_counts if request.background is None else counts_over_background)(source, request)
        axes, metadata = _described(source, {"integration_windows": request.integration_windows})
        maps = []
        for i, (element, lines) in enumerate(found.lines.items()):
            name, data = f"the {element} map of {source}", found.counts[..., i]
            background = None if found.background is None else found.background[..., i]
            maps.append(SourceMap(element, "+".join(lines), data, axes, metadata, name, background))
        return SourceMaps(maps, title_of(metadata), found.diagnostics)


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
        described: dict[str, Any] = {
            "edges": {e.element: e.name for e in edges},
            "windows": {e.element: np.array([*e.before, *e.after], dtype=float) for e in edges},
        }
        if len(sections) == len(edges):
            described["cross_sections"] = sections
        axes, metadata = _described(source, described)
        if request.background == "model":
            # intensities are not the counts that the spectra are
            metadata.set_item("Signal.quantity", "")
        maps = []
        for e in edges:
            name = f"the {e.element} map of {source}"
            maps.append(SourceMap(e.element, "", e.net, axes, metadata, name, variance=e.variance, allows_nan=True))
        return SourceMaps(maps, title_of(metadata), diagnostics)


def _described(source, entries):
    """Axes of the scan, and a copy of the metadata with `entries` of the maps."""
    metadata = source.metadata.deepcopy()
    for key, values in entries.items():
        metadata.set_item(f"Element_maps.{key}", values)
    return axis_dicts(source.axes_manager.navigation_axes, source), metadata
