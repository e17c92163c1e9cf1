"""The metadata of a stack of element maps, from those of the signals that its maps were made from."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from hyperspy_fusion.diagnostics import Diagnostic, as_metadata, warnings_of
from hyperspy_fusion.identify.map_identity import metadata_names, title_of
from hyperspy_fusion.maps.base import WINDOW_WIDTH

_COPIED = (
    "Acquisition_instrument",
    "Sample.description",
    "General.date",
    "General.time",
    "General.authors",
    "General.original_filename",
)
_DIAGNOSTICS, _WARNINGS = "Element_maps.diagnostics", "Element_maps.warnings"

# once; older files of a fit of the result of a fit have it twice
_TITLE_OF_FUSED = re.compile(r"^(Fused maps( of |$))+")


def stack_metadata(maps: dict[str, tuple[str, Any]], title: str) -> tuple[dict, list[Diagnostic]]:
    """
    Metadata of the stack: the acquisition as the first map has it, and what each map was made from.

    ``Sample.xray_lines`` stays out, for it lists one line per entry. ``Element_maps.xray_lines`` has one
    entry per map, such as "Fe_Ka+Fe_La".

    Parameters
    ----------
    maps : dict
        ``{element: (X-ray lines or "", metadata)}``.
    title : str
        Of what they were made from, "" for the elements.

    Returns
    -------
    dict, list of Diagnostic
        Codes ``"compositions"``, ``"quantities-differ"``, ``"window-widths-differ"`` and ``"fit-among-counts"``.
    """
    lines, nodes = [line for line, _ in maps.values()], [node for _, node in maps.values()]
    tree = type(nodes[0])()
    for key in _COPIED:
        value = nodes[0].get_item(key)
        if value is not None:
            tree.set_item(key, copy.deepcopy(value))
    quantity, about_quantity = _common_quantity(nodes)
    width, about_width = _common_width(nodes)
    edges, about_edges = _described_edges({element: node for element, (_, node) in maps.items()})
    entries = {
        "General.title": f"Element maps of {title or ', '.join(maps)}",
        "Sample.elements": list(maps),
        "Signal.quantity": quantity,
        "Element_maps.source_titles": list(dict.fromkeys(map(title_of, nodes))),
        "Element_maps.xray_lines": lines if all(lines) else [],
        "Element_maps.integration_windows": width,
        **{f"Element_maps.{key}": values for key, values in edges.items()},
    }
    for key, value in entries.items():
        if value:
            tree.set_item(key, value)
    inherited = dict.fromkeys(one for node in nodes for one in kept_diagnostics(node))
    keep_diagnostics(tree, list(inherited))
    return tree.as_dictionary(), [*about_quantity, *about_width, *about_edges]


def kept_diagnostics(metadata: Any) -> list[Diagnostic]:
    """The diagnostics that `metadata` of maps hold."""
    keys = ("codes", "sentences", "severities", "elements")
    columns = [metadata_names(metadata, f"{_DIAGNOSTICS}.{key}") for key in keys]
    return [
        Diagnostic(code, sentence, severity, tuple(filter(None, elements.split(","))))
        for code, sentence, severity, elements in zip(*columns, strict=True)
    ]


def keep_diagnostics(metadata: Any, found: Sequence[Diagnostic]) -> None:
    """Put `found`, if there are any, into `metadata` of maps, and the sentences of warnings as a list."""
    if found:
        metadata.set_item(_DIAGNOSTICS, as_metadata(found))
    if sentences := warnings_of(found):
        metadata.set_item(_WARNINGS, list(dict.fromkeys(sentences)))


def fused_diagnostics(nodes: Sequence[Any]) -> list[Diagnostic]:
    """Code ``"fused-already"`` where maps with the metadata `nodes` are the result of a fit."""
    for node in nodes:
        if node.has_item("Fusion") or _TITLE_OF_FUSED.match(title_of(node)):
            sentence = (
                f"The maps ({title_of(node)!r}) are the result of a fit already, and fusing them again uses the HAADF "
                "image twice: pass the measured maps."
            )
            return [Diagnostic("fused-already", sentence)]
    return []


def leave_fit_behind(metadata: Any) -> None:
    """Take out of `metadata` of an ElementMaps that it is the result of a fit."""
    if metadata.has_item("Fusion"):
        del metadata.Fusion
    title = title_of(metadata)
    if _TITLE_OF_FUSED.match(title):
        title = _TITLE_OF_FUSED.sub("", title) or ", ".join(metadata_names(metadata, "Sample.elements"))
        metadata.set_item("General.title", f"Element maps of {title}")


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
