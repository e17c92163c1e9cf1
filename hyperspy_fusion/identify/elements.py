"""The periodic table: symbols of elements, and names of X-ray lines and edges, checked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

# a line or an edge however it is spelt: "Cu_K", "cu ka", "Cu-L3", "CuKα1"
_SPELT = re.compile(r"([A-Za-z]{1,2})[\s_-]+(\w*)|([A-Z][a-z]?)([KLMNO]\w+)")
_GREEK = str.maketrans("αβγ", "abg")

# names that exspy has as aluminum, cesium and sulfur
_BRITISH = {"aluminium": "Al", "caesium": "Cs", "sulphur": "S"}


def atomic_number(symbol: Any) -> int:
    """Atomic number of an element by exspy; ValueError, which names the nearest symbols, where there is none."""
    table = periodic_table()
    if symbol not in table.keys():
        raise ValueError(_unknown_element(symbol, table))
    return int(table[symbol].General_properties.Z)


def _unknown_element(symbol, table):
    words, text = _words(table), str(symbol).strip().lower()
    near = [another_spelling(symbol)]
    if near == [""]:
        near = [words[word] for word in difflib.get_close_matches(text, words, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "expected a symbol such as 'Fe'."
    return f"{symbol!r} is not the symbol of a chemical element: {hint}"


def another_spelling(name: Any) -> str:
    """Symbol of the one element that `name` can mean, "Fe" of "fe", "iron" and "Fe_Ka"; else ""."""
    words = _words(periodic_table())
    element = split_shell(name)[0].lower() if isinstance(name, str) else ""
    return words.get(str(name).strip().lower()) or words.get(element, "")


def no_map_of(name: Any, elements: Sequence[str]) -> str:
    """The sentence that there is no map of `name` among those of the `elements`, one of which it may mean."""
    own = another_spelling(name)
    hint = f"did you mean {own!r}?" if own in elements else f"the maps are of {', '.join(elements)}."
    return f"There is no map of {name!r}: {hint}"


def _words(table):
    """``{symbol or name in lower case: symbol}``."""
    symbols = {key.lower(): key for key in table.keys()}
    return symbols | {str(table[key].General_properties.name): key for key in table.keys()} | _BRITISH


def periodic_table() -> Any:
    """Of exspy; ask its keys(), for `in` and [] of this tree take dotted paths too."""
    from exspy.material import elements

    return elements


def checked_elements(elements: Any) -> list[str]:
    """List of the symbols `elements`; TypeError or ValueError for what is none."""
    elements = list_of_names(elements, "elements", "['Fe', 'O']")
    for symbol in elements:
        atomic_number(symbol)
    return elements


def checked_lines(lines: Any) -> list[str]:
    """List of the X-ray lines, each once; TypeError or ValueError for what is none."""
    lines = list_of_names(lines, "xray_lines", "['Fe_Ka', 'O_Ka']")
    for line in lines:
        check_line(line)
    return list(dict.fromkeys(lines))


def check_line(line: str) -> None:
    """Raise ValueError unless `line` is an X-ray line such as "Fe_Ka" that exspy knows."""
    symbol, _ = split_shell(line)
    atomic_number(symbol)
    known = lines_of_exspy(symbol)
    if line not in known:
        raise ValueError(f"{line!r} is not an X-ray line of {symbol}: {nearest_names(line, known)}")


def split_shell(name: str) -> tuple[str, str]:
    """``(symbol, shell)`` of a line or an edge however it is spelt, ("Cu", "L3") of "cu-L3"; else no shell, ""."""
    found = _SPELT.fullmatch(name.strip())
    if found is None:
        return element_of(name), ""
    symbol, shell = found[1] or found[3], found[2] or found[4] or ""
    return symbol.capitalize() if symbol.capitalize() in periodic_table().keys() else symbol, shell


def nearest_names(name: str, known: Sequence[str]) -> str:
    """End of a sentence: which of the `known` lines or edges of its element a wrong `name` may mean."""
    shell = split_shell(name)[1].translate(_GREEK).lower()
    bare = shell.rstrip("0123456789")
    shells = {one: one.partition("_")[2].lower() for one in known}
    near = [one for one, own in shells.items() if own in (shell, bare)]
    for start in filter(None, (shell, bare, bare[:1])):
        near = near or [one for one, own in shells.items() if own.startswith(start)]
    if near:
        return f"did you mean {' or '.join(filter(None, (', '.join(near[:-1]), near[-1])))}?"
    return f"expected one of {', '.join(known)}." if known else "exspy knows none."


def lines_of_exspy(symbol: str) -> list[str]:
    """X-ray lines of an element in exspy, none of Li."""
    lines = periodic_table()[symbol].Atomic_properties.get_item("Xray_lines", {})
    return [f"{symbol}_{name}" for name in lines.keys()]


def has_shell(symbol: str, shell: str) -> bool:
    """Whether exspy knows an X-ray line or an edge of an element that begins with `shell`, such as "K"."""
    properties = periodic_table()[symbol].Atomic_properties
    known = [key for group in ("Xray_lines", "Binding_energies") for key in properties.get_item(group, {}).keys()]
    return any(key.startswith(shell) for key in known)


def list_of_names(value: Any, keyword: str, example: str) -> list[str]:
    """List of str, of one str too; TypeError, which names the `keyword`, for anything else."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list | tuple | np.ndarray) or not all(isinstance(v, str) for v in value):
        raise TypeError(f"{keyword} must be a list of names such as {example}, got {value!r}.")
    return [str(v) for v in value]


def refuse_repeats(elements: Sequence[str]) -> None:
    """Raise ValueError where a symbol is listed twice."""
    for symbol in elements:
        if elements.count(symbol) > 1:
            raise ValueError(f"elements names {symbol} {elements.count(symbol)} times: name each element once.")


def is_detectable(element: str) -> bool:
    """Whether there can be an X-ray map of `element`: exspy lists a line of H and He, of an energy of few eV."""
    return element not in ("H", "He")


def refuse_undetectable(elements: Iterable[str]) -> None:
    """Raise ValueError for an element of which there are no X-ray maps."""
    for symbol in elements:
        if not is_detectable(symbol):
            raise ValueError(f"{symbol} has no X-ray line that a detector sees: leave it out.")


def refuse_unasked_lines(lines: Iterable[str], elements: Sequence[str] | None) -> None:
    """Raise ValueError where a line is of none of the `elements`; None asks for all."""
    for line in lines:
        if elements is not None and element_of(line) not in elements:
            raise ValueError(f"{line} is in xray_lines, but its element is not among elements={elements}.")


def element_of(line: str) -> str:
    """Symbol of the X-ray line, "Fe" of "Fe_Ka"."""
    return line.split("_")[0]


def by_element(lines: Sequence[str]) -> dict[str, list[str]]:
    """Dict of the lines of each element, in the order in which the elements first appear."""
    return {e: of_element(lines, e) for e in dict.fromkeys(map(element_of, lines))}


def of_element(lines: Sequence[str], element: str) -> list[str]:
    """Those of the `lines` that `element` emits."""
    return [line for line in lines if element_of(line) == element]


def listed(names: Sequence[str]) -> str:
    """The first three of several names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
