"""Which element a map shows: by the lists in its metadata, by its title, and by the names that the user gives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.identify.detectors import is_detector_title
from hyperspy_fusion.identify.elements import atomic_number, element_of, has_shell, periodic_table

# what stands before a name: "map of Fe", "EDS Pt", "78 Pt"; one letter may be a label: "Map B"
_BEFORE = (
    r"(?:[A-Za-z %.-]*\b(?:[Mm]aps?|[Cc]ounts|[Ii]ntensity|[Pp]ercent|%) of "
    r"|(?:(?i:element(?:al)?|maps?|images?|eds|edx|xeds|eels)[ _:-]+)+(?=[A-Z][a-z])|(?P<number>\d+)[ _-]+)?"
)
# its line or edge: "Fe K", "FeK", "Fe Kα1", "Ba N45"; "PuO2" and "U O2" are compounds
_SHELL = (
    r"(?:(?:[ _-]+|(?<=[a-z])|(?=K))(?P<shell>[KLM](?:[ -]?(?:alpha|beta|gamma)|[abgαβγ])?\d*(?:[,_]\d+)*"
    r"|N(?:23|45|67)|O(?:23|45)|[NO]\d+(?=[ _-](?i:edge))))?"
)
# what stands behind: "Fe-EELS", "Fe map", "Fe at.%", "Fe (raw)"
_WORD = r"[ _-]+(?i:maps?|images?|eels|eds|edx|xeds|series|lines?|shells?|edges?|counts?|intensity|signal|net|raw|sum)"
_UNIT = r"[ _-]+(?i:norm\.? ?)?(?i:at|wt|mass|weight|atomic)\.?[ -]?(?i:%|percent|fraction)|[ _-]*%| *\([^()]*\)"
# the first two words of a sentence: "As counts", "In sum"
_SENTENCE = r"(?!(?:As|At|In) (?!maps?\b|(?:at|wt|mass|weight)\b)[a-z])"
# a title that is a name, "Fe" or "Iron", and nothing else
_ONLY_A_NAME = re.compile(
    _BEFORE + _SENTENCE + "(?P<name>[A-Z][a-z]?|[A-Za-z]{3,})" + _SHELL + "(?:" + _WORD + "|" + _UNIT + ")*"
)
# "Cu_L3", "Fe_Ka" anywhere; with a space or hyphen only when a family follows ("Fe Kα1"): "C K" may be two elements
_LINE_IN_TITLE = re.compile(
    r"(?<![A-Za-z])([A-Z][a-z]?)(?:_([KLM][a-zαβ\d]*|[NO]\d+)|[ -]([KLM](?:[abαβ]\d*|\d+)))(?![A-Za-z\d])"
)
_BRITISH = {"aluminium": "Al", "caesium": "Cs", "sulphur": "S"}


class Identity(NamedTuple):
    """What a map shows: its element, None where nothing names it, and its X-ray line, "" where there is none."""

    element: str | None
    line: str = ""
    diagnostics: tuple[Diagnostic, ...] = ()


def metadata_names(metadata: Any, key: str) -> list[str]:
    """List of str at `key`; old files have a str, bytes or an array there."""
    value = metadata.get_item(key, default=[])
    value = [value] if isinstance(value, str | bytes) else value
    return [v.decode() if isinstance(v, bytes) else str(v) for v in value]


def title_of(metadata: Any) -> str:
    """Title of a signal, "" where it has none."""
    return str(metadata.get_item("General.title", ""))


def identify_map(signal: Any, element: str | None = None) -> Identity:
    """Identity of one map; an `element` by the user is stronger than the metadata, which can still give its line."""
    if _has_metadata_of_first(signal):
        return Identity(element)
    if element is None:
        return _identity(signal.metadata)
    line = _listed_identity(signal.metadata).line
    return Identity(element, line if element_of(line) == element else "")


def identify_stack(signal: Any, axis: Any) -> list[Identity]:
    """Identity of each map of a stack along `axis`, also after slicing."""
    metadata = signal.metadata
    names = metadata_names(metadata, "Sample.elements")
    nodes = metadata_of_maps(signal, axis)
    if any(node is not None for node in nodes):
        return [Identity(None) if node is None else _identity(node) for node in nodes]
    if signal._signal_type == "element_maps":
        return [Identity(names[k] if 0 <= k < len(names) else None) for k in _places(axis)]
    # exspy orders the elements of EELS spectra by the hashes of their symbols
    is_eels = metadata.get_item("Signal.signal_type", "") == "EELS"
    if len(names) == axis.size and not is_eels and not _has_metadata_of_first(signal):
        return [Identity(name) for name in names]
    return [Identity(None)] * axis.size


def metadata_of_maps(signal: Any, axis: Any = None) -> list:
    """List of the metadata of the one map `signal`, or of each map of a stack; None where they are of another."""
    inputs = signal.original_metadata.get_item("stack_elements")
    if axis is not None and inputs is not None:
        return [inputs.get_item(f"element{k}.metadata") for k in _places(axis)]
    n = 1 if axis is None else axis.size
    of_stack = axis is not None and signal._signal_type == "element_maps"
    return [None if n > 1 or of_stack or _has_metadata_of_first(signal) else signal.metadata] * n


def name_diagnostics(names: Sequence[str], nodes: Sequence[Any]) -> list[Diagnostic]:
    """Code ``"name-conflicts"`` where names by the user are not what the metadata `nodes` of the maps name.

    ValueError where the metadata of a map name another of the `names`, which is given to a map without it: the order is
    wrong.
    """
    claims = [{} if node is None else _claims(node) for node in nodes]
    found = []
    for i, (name, own) in enumerate(zip(names, claims, strict=True)):
        if not own or name in own:
            continue
        exchanged = [e for e in own if any(n == e and e not in c for n, c in zip(names, claims, strict=True))]
        sentence = (
            f"Map {i + 1} {own[(exchanged or list(own))[0]]} but is named {name}: check the order of elements, or set "
            "its title and metadata."
        )
        if exchanged:
            raise ValueError(sentence)
        found.append(Diagnostic("name-conflicts", sentence, elements=(name,)))
    return found


def refuse_detector_images(nodes: Sequence[Any], alone: bool) -> None:
    """Raise ValueError where one of the maps is titled like a HAADF image, and its metadata do not name an element."""
    for i, node in enumerate(nodes):
        if node is None or _claims(node) or not is_detector_title(title_of(node)):
            continue
        problem = "haadf and maps look swapped" if alone else "the HAADF image looks to be among the maps"
        raise ValueError(
            f"Map {i + 1} is titled {title_of(node)!r}, so {problem}: pass it as haadf, or set "
            "`metadata.General.title` to its element if it is a map."
        )


def _identity(metadata):
    """By the lists of the metadata, else by the title; a title that contradicts the lists is a diagnostic."""
    found = _listed_identity(metadata)
    title = title_of(metadata)
    if found.element is None:
        return Identity(_element_of_title(title))
    named = _only_named(title)
    if named in (None, found.element):
        return found
    sentence = (
        f"The map titled {title!r} is taken for {found.element} by its metadata.Sample."
        f"{'xray_lines' if found.line else 'elements'}: if the title is right, pass elements=['{named}', ...]."
    )
    return found._replace(diagnostics=(Diagnostic("title-conflicts", sentence, elements=(found.element,)),))


def _listed_identity(metadata):
    """By the one entry of ``Sample.xray_lines``, else of ``Sample.elements``."""
    lines, elements = (metadata_names(metadata, f"Sample.{key}") for key in ("xray_lines", "elements"))
    if len(lines) == 1:
        return Identity(element_of(lines[0]), lines[0])
    return Identity(elements[0] if len(elements) == 1 else None)


def _element_of_title(title):
    """The element of a title that is its name, else of the one line or edge that is in the title."""
    found = {name for name, *shells in _LINE_IN_TITLE.findall(title) if _has_line(name, "".join(shells))}
    return _only_named(title) or (found.pop() if len(found) == 1 else None)


def _only_named(title):
    """The element where the title is its name, symbol, line or edge and nothing else, so that it can only mean this."""
    found = _ONLY_A_NAME.fullmatch(title.strip())
    if found is None:
        return None
    symbol = found["name"]
    if len(symbol) > 2:
        symbol = _symbols().get(symbol.lower())
    if symbol not in periodic_table().keys() or (found["number"] and int(found["number"]) != atomic_number(symbol)):
        return None
    return symbol if _has_line(symbol, found["shell"] or "") else None


@cache
def _symbols():
    """Dict of the symbols of the elements by their names."""
    table = periodic_table()
    return {table[symbol].General_properties.name: symbol for symbol in table.keys()} | _BRITISH


def _has_line(symbol, shell):
    """Whether an element has the family of a line, "K" of "Ka1"; the very shell for N and O: "Ti_O2" is a compound."""
    return symbol in periodic_table().keys() and has_shell(symbol, shell[: 2 if shell[:1] in ("N", "O") else 1])


def _claims(metadata):
    """Dict of the elements that metadata name for a map, and how they do."""
    title = title_of(metadata)
    claims = {_element_of_title(title): f"is titled {title!r}"}
    for key in ("xray_lines", "elements"):
        found = metadata_names(metadata, f"Sample.{key}")
        if len(found) == 1:
            claims.setdefault(element_of(found[0]), f"has {found[0]} as its metadata.Sample.{key}")
    claims.pop(None, None)
    return claims


def _places(axis):
    """Indices of the maps before slicing, which keeps the axis calibrated and the lists in the metadata whole."""
    return [int(v) if float(v).is_integer() else -1 for v in np.round(axis.axis, 6)]


def _has_metadata_of_first(signal):
    """Whether `signal` is, or was cut from, a stack made by HyperSpy, which describes its first map only."""
    return (
        signal.original_metadata.has_item("stack_elements")
        or title_of(signal.metadata).startswith("Stack of")
        or any(axis.name == "stack_element" for axis in signal.axes_manager.navigation_axes)
    )
