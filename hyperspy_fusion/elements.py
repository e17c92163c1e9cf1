"""Which element: the periodic table, names of elements and X-ray lines, and what metadata say of a map."""

import difflib
import re

import numpy as np

# "Cu_L3", "Fe_Ka"; with a space or hyphen only when a family follows ("Fe Kα1"): "C K" may be two elements
_LINE_IN_TITLE = re.compile(
    r"(?<![A-Za-z])([A-Z][a-z]?)(?:_[KLMNO][a-zαβ\d]*|[ -][KLM](?:[abαβ]\d*|\d+))(?![A-Za-z\d])"
)


def atomic_number(symbol):
    """
    Atomic number of an element.

    Parameters
    ----------
    symbol : str
        E.g. "Fe".

    Returns
    -------
    int
        From ``exspy.material.elements``.

    Raises
    ------
    ValueError
        There is no such element; the nearest symbols are named.
    """
    table = _periodic_table()
    # asked by keys(), for `in` and [] of this tree take dotted paths too
    if symbol not in table.keys():
        raise ValueError(_unknown_element(symbol, table))
    return int(table[symbol].General_properties.Z)


def _unknown_element(symbol, table):
    names = {str(table[key].General_properties.name): key for key in table.keys()}
    text = str(symbol).strip().lower()
    near = difflib.get_close_matches(text, [*names, *(key.lower() for key in table.keys())], n=3, cutoff=0.5)
    near = dict.fromkeys(names.get(word, word.capitalize()) for word in near)
    hint = f"did you mean {' or '.join(near)}?" if near else "expected a symbol such as 'Fe'."
    return f"{symbol!r} is not the symbol of a chemical element: {hint}"


def _periodic_table():
    from exspy.material import elements

    return elements


def checked_elements(elements):
    """List of the symbols `elements`; TypeError or ValueError for what is none."""
    elements = listed(elements, "elements", "['Fe', 'O']")
    for symbol in elements:
        atomic_number(symbol)
    return elements


def checked_lines(lines):
    """List of the X-ray lines, each once; TypeError or ValueError for what is none."""
    lines = listed(lines, "xray_lines", "['Fe_Ka', 'O_Ka']")
    for line in lines:
        check_line(line)
    return list(dict.fromkeys(lines))


def check_line(line):
    """Raise ValueError unless `line` is an X-ray line such as "Fe_Ka" that exspy knows."""
    symbol, _, name = line.partition("_")
    atomic_number(symbol)
    known = list(_periodic_table()[symbol].Atomic_properties.get_item("Xray_lines", {}).keys())
    if name not in known:
        known = ", ".join(f"{symbol}_{name}" for name in known) or "none"
        raise ValueError(f"{line!r} is not an X-ray line of {symbol}: expected one of {known}.")


def listed(value, keyword, example):
    """List of str, of one str too; TypeError, which names the `keyword`, for anything else."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list | tuple | np.ndarray) or not all(isinstance(v, str) for v in value):
        raise TypeError(f"{keyword} must be a list of names such as {example}, got {value!r}.")
    return [str(v) for v in value]


def refuse_repeats(elements):
    """Raise ValueError where a symbol is listed twice."""
    for symbol in elements:
        if elements.count(symbol) > 1:
            raise ValueError(f"elements names {symbol} {elements.count(symbol)} times: name each element once.")


def refuse_unasked_lines(lines, elements):
    """Raise ValueError where a line is of none of the `elements`; None asks for all."""
    for line in lines:
        if elements is not None and element_of(line) not in elements:
            raise ValueError(f"{line} is in xray_lines, but its element is not among elements={elements}.")


def element_of(line):
    """Symbol of the X-ray line, "Fe" of "Fe_Ka"."""
    return line.split("_")[0]


def by_element(lines):
    """Dict of the lines of each element, in the order in which the elements first appear."""
    return {e: of_element(lines, e) for e in dict.fromkeys(map(element_of, lines))}


def of_element(lines, element):
    """Those of the `lines` that `element` emits."""
    return [line for line in lines if element_of(line) == element]


def metadata_names(metadata, key):
    """List of str at `key`; old files have a str, bytes or an array there."""
    value = metadata.get_item(key, default=[])
    value = [value] if isinstance(value, str | bytes) else value
    return [v.decode() if isinstance(v, bytes) else str(v) for v in value]


def identify_map(signal):
    """``(element, X-ray line)`` that the metadata of one map name; None and "" where they do not."""
    return (None, "") if _has_metadata_of_first(signal) else _named_by(signal.metadata)


def _named_by(metadata):
    lines = metadata_names(metadata, "Sample.xray_lines")
    if len(lines) == 1:
        return element_of(lines[0]), lines[0]
    elements = metadata_names(metadata, "Sample.elements")
    if len(elements) == 1:
        return elements[0], ""
    return _element_of_title(metadata.get_item("General.title", "")), ""


def _element_of_title(title):
    symbols = set(_periodic_table().keys())
    if title.strip() in symbols:
        return title.strip()
    found = set(_LINE_IN_TITLE.findall(title)) & symbols
    return found.pop() if len(found) == 1 else None


def identify_stack(signal, axis):
    """``(element, line)`` of each map of a stack, also after slicing; element None where nothing says it."""
    metadata = signal.metadata
    names = metadata_names(metadata, "Sample.elements")
    # slicing keeps the element axis calibrated, and the lists in the metadata whole
    places = [int(v) if float(v).is_integer() else -1 for v in np.round(axis.axis, 6)]
    inputs = signal.original_metadata.get_item("stack_elements")
    if inputs is not None:
        nodes = [inputs.get_item(f"element{k}.metadata") for k in places]
        return [(None, "") if node is None else _named_by(node) for node in nodes]
    if signal._signal_type == "element_maps":
        return [(names[k] if 0 <= k < len(names) else None, "") for k in places]
    if _has_metadata_of_first(signal):
        return [(None, "")] * axis.size
    if axis.size == 1:
        return [_named_by(metadata)]
    # exspy orders the elements of EELS spectra by the hashes of their symbols
    if len(names) == axis.size and metadata.get_item("Signal.signal_type", "") != "EELS":
        return [(name, "") for name in names]
    return [(None, "")] * axis.size


def _has_metadata_of_first(signal):
    """Whether `signal` is, or was cut from, a stack made by HyperSpy, which describes its first map only."""
    return (
        signal.original_metadata.has_item("stack_elements")
        or signal.metadata.get_item("General.title", "").startswith("Stack of")
        or any(axis.name == "stack_element" for axis in signal.axes_manager.navigation_axes)
    )
