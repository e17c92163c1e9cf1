"""Which element: the periodic table, names of elements and X-ray lines, and what metadata say of a map."""

import copy
import difflib
import re

import numpy as np

from hyperspy_fusion.grid import axes as grids
from hyperspy_fusion.identify.detectors import is_detector_title

# "Cu_L3", "Fe_Ka"; with a space or hyphen only when a family follows ("Fe Kα1"): "C K" may be two elements
_LINE_IN_TITLE = re.compile(
    r"(?<![A-Za-z])([A-Z][a-z]?)(?:_[KLMNO][a-zαβ\d]*|[ -][KLM](?:[abαβ]\d*|\d+))(?![A-Za-z\d])"
)

# a line or an edge however it is spelt: "Cu_K", "cu ka", "Cu-L3", "CuKα1"
_SPELT = re.compile(r"([A-Za-z]{1,2})[\s_-]+(\w*)|([A-Z][a-z]?)([KLMNO]\w+)")
_GREEK = str.maketrans("αβγ", "abg")

# names that exspy has as aluminum, cesium and sulfur
_BRITISH = {"aluminium": "Al", "caesium": "Cs", "sulphur": "S"}

# once; older files of a fit of the result of a fit have it twice
_TITLE_OF_FUSED = re.compile(r"^(Fused maps( of |$))+")


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
    words, text = _words(table), str(symbol).strip().lower()
    near = [another_spelling(symbol)]
    if near == [""]:
        near = [words[word] for word in difflib.get_close_matches(text, words, n=3, cutoff=0.5)]
    near = " or ".join(dict.fromkeys(near))
    hint = f"did you mean {near}?" if near else "expected a symbol such as 'Fe'."
    return f"{symbol!r} is not the symbol of a chemical element: {hint}"


def another_spelling(name):
    """Symbol of the one element that `name` can mean, "Fe" of "fe", "iron" and "Fe_Ka"; else ""."""
    words = _words(_periodic_table())
    element = parted(name)[0].lower() if isinstance(name, str) else ""
    return words.get(str(name).strip().lower()) or words.get(element, "")


def no_map_of(name, elements):
    """The sentence that there is no map of `name` among those of the `elements`, one of which it may mean."""
    own = another_spelling(name)
    hint = f"did you mean {own!r}?" if own in elements else f"the maps are of {', '.join(elements)}."
    return f"There is no map of {name!r}: {hint}"


def _words(table):
    """``{symbol or name in lower case: symbol}``."""
    symbols = {key.lower(): key for key in table.keys()}
    return symbols | {str(table[key].General_properties.name): key for key in table.keys()} | _BRITISH


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
    symbol, _ = parted(line)
    atomic_number(symbol)
    known = known_lines(symbol)
    if line not in known:
        raise ValueError(f"{line!r} is not an X-ray line of {symbol}: {meant(line, known)}")


def parted(name):
    """``(symbol, shell)`` of a line or an edge however it is spelt, ("Cu", "L3") of "cu-L3"; else no shell, ""."""
    found = _SPELT.fullmatch(name.strip())
    if found is None:
        return element_of(name), ""
    symbol, shell = found[1] or found[3], found[2] or found[4] or ""
    return symbol.capitalize() if symbol.capitalize() in _periodic_table().keys() else symbol, shell


def meant(name, known):
    """End of a sentence: which of the `known` lines or edges of its element a wrong `name` may mean."""
    shell = parted(name)[1].translate(_GREEK).lower()
    bare = shell.rstrip("0123456789")
    shells = {one: one.partition("_")[2].lower() for one in known}
    near = [one for one, own in shells.items() if own in (shell, bare)]
    for start in filter(None, (shell, bare, bare[:1])):
        near = near or [one for one, own in shells.items() if own.startswith(start)]
    if near:
        return f"did you mean {' or '.join(filter(None, (', '.join(near[:-1]), near[-1])))}?"
    return f"expected one of {', '.join(known)}." if known else "exspy knows none."


def known_lines(symbol):
    """X-ray lines of an element in exspy, none of Li."""
    lines = _periodic_table()[symbol].Atomic_properties.get_item("Xray_lines", {})
    return [f"{symbol}_{name}" for name in lines.keys()]


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


def is_detectable(element):
    """Whether there can be an X-ray map of `element`: exspy lists a line of H and He, of an energy of few eV."""
    return element not in ("H", "He")


def refuse_undetectable(elements):
    """Raise ValueError for an element of which there are no X-ray maps."""
    for symbol in elements:
        if not is_detectable(symbol):
            raise ValueError(f"{symbol} has no X-ray line that a detector sees: leave it out.")


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


def identify_map(signal, element=None):
    """
    ``(element, X-ray line)`` of one map; None and "" where its metadata do not name them.

    `element` is what the user says: stronger than the metadata, whose line is kept if it is one of this element.
    """
    if _has_metadata_of_first(signal):
        return element, ""
    if element is None:
        return _named_by(signal.metadata)
    _, line = _named_by_lists(signal.metadata)
    return element, line if element_of(line) == element else ""


def _named_by(metadata):
    """By the lists of the metadata, else by the title; a title that says otherwise than the lists is told."""
    element, line = _named_by_lists(metadata)
    title = title_of(metadata)
    if element is None:
        return _element_of_title(title), ""
    other = _element_of_title(title) if _is_only_a_name(title) else None
    if other not in (None, element):
        key = "xray_lines" if line else "elements"
        grids.warn(
            f"The map titled {title!r} is taken for {element}, which its metadata.Sample.{key} names: if the title is "
            f"right, name all maps in their order by elements=['{other}', ...], or pass a dict {{'{other}': map, ...}}."
        )
    return element, line


def _named_by_lists(metadata):
    """``(element, line)`` of the one entry of ``Sample.xray_lines``, else of ``Sample.elements``."""
    lines = metadata_names(metadata, "Sample.xray_lines")
    if len(lines) == 1:
        return element_of(lines[0]), lines[0]
    elements = metadata_names(metadata, "Sample.elements")
    if len(elements) == 1:
        return elements[0], ""
    return None, ""


def title_of(metadata):
    """Title of a signal, "" where it has none."""
    return str(metadata.get_item("General.title", ""))


def _is_only_a_name(title):
    """Whether a title is a symbol or a line and nothing else, so that it can only mean the element."""
    return title.strip() in _periodic_table().keys() or _LINE_IN_TITLE.fullmatch(title.strip()) is not None


def _element_of_title(title):
    symbols = set(_periodic_table().keys())
    if title.strip() in symbols:
        return title.strip()
    found = set(_LINE_IN_TITLE.findall(title)) & symbols
    return found.pop() if len(found) == 1 else None


# ---- lists and stacks of maps -----------------------------------------------------------------------


def identify_stack(signal, axis):
    """``(element, line)`` of each map of a stack, also after slicing; element None where nothing says it."""
    metadata = signal.metadata
    names = metadata_names(metadata, "Sample.elements")
    nodes = metadata_of_maps(signal, axis)
    if any(node is not None for node in nodes):
        return [(None, "") if node is None else _named_by(node) for node in nodes]
    if signal._signal_type == "element_maps":
        return [(names[k] if 0 <= k < len(names) else None, "") for k in _places(axis)]
    # exspy orders the elements of EELS spectra by the hashes of their symbols
    is_eels = metadata.get_item("Signal.signal_type", "") == "EELS"
    if len(names) == axis.size and not is_eels and not _has_metadata_of_first(signal):
        return [(name, "") for name in names]
    return [(None, "")] * axis.size


def metadata_of_maps(signal, axis=None):
    """List of the metadata of the one map `signal`, or of each map of a stack; None where they are of another."""
    inputs = signal.original_metadata.get_item("stack_elements")
    if axis is not None and inputs is not None:
        return [inputs.get_item(f"element{k}.metadata") for k in _places(axis)]
    n = 1 if axis is None else axis.size
    of_stack = axis is not None and signal._signal_type == "element_maps"
    return [None if n > 1 or of_stack or _has_metadata_of_first(signal) else signal.metadata] * n


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


def is_selection(elements, n):
    """Whether so few `elements` can only choose among `n` maps."""
    return elements is not None and 0 < len(elements) < n


def check_count(elements, n):
    """Raise ValueError unless there are `n` elements, a name for each map."""
    if len(elements) != n:
        names = f"{len(elements)} element{'s' * (len(elements) != 1)}"
        raise ValueError(
            f"elements names {names} for {n} map{'s' * (n != 1)}: name every map, in the order of the maps."
        )


def selected_by_themselves(maps, elements):
    """Maps of the `elements`, fewer than maps; ValueError unless every map tells its element."""
    known = {m.element for m in maps}
    if None in known or not known.issuperset(elements):
        check_count(elements, len(maps))
    return selected(maps, elements)


def selected(maps, elements):
    """Maps of the `elements` in their order; all where None."""
    if elements is None:
        return maps
    refuse_repeats(elements)
    known = dict.fromkeys(str(m.element) for m in maps)
    for symbol in elements:
        if symbol not in known:
            raise ValueError(f"There is no map of {symbol}: the source has {', '.join(known)}.")
    return [m for symbol in elements for m in maps if m.element == symbol]


def check_names(names, nodes):
    """
    Compare the names that the user gives to maps with what these say of themselves.

    Parameters
    ----------
    names : list of str
        One per map.
    nodes : list of DictionaryTreeBrowser or None
        `metadata_of_maps`.

    Raises
    ------
    ValueError
        A map says that it shows another of the `names`, which is given to a map that does not say so itself: the
        order is wrong. Where no such exchange explains it, there is a warning.
    """
    claims = [{} if node is None else _claims(node) for node in nodes]
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
        grids.warn(sentence)


def _claims(metadata):
    """Dict of the elements that metadata say of a map, and how they say it."""
    title = title_of(metadata)
    claims = {_element_of_title(title): f"is titled {title!r}"}
    for key in ("xray_lines", "elements"):
        found = metadata_names(metadata, f"Sample.{key}")
        if len(found) == 1:
            claims.setdefault(element_of(found[0]), f"has {found[0]} as its metadata.Sample.{key}")
    claims.pop(None, None)
    return claims


def refuse_detector_images(nodes, alone):
    """Raise ValueError where one of the maps is titled like a HAADF image, and nothing says that it is a map."""
    for i, node in enumerate(nodes):
        if node is None or _claims(node) or not is_detector_title(title_of(node)):
            continue
        problem = "haadf and maps look swapped" if alone else "the HAADF image looks to be among the maps"
        raise ValueError(
            f"Map {i + 1} is titled {title_of(node)!r}, so {problem}: pass it as haadf, or set "
            "`metadata.General.title` to its element if it is a map."
        )


# ---- what else the metadata of maps say -------------------------------------------------------------


def warn_of_fused(nodes):
    """Warn where maps with the metadata `nodes` are the result of a fit."""
    for node in nodes:
        if node.has_item("Fusion") or _TITLE_OF_FUSED.match(title_of(node)):
            grids.warn(
                f"The maps ({title_of(node)!r}) are the result of a fit already, and fusing them again uses the HAADF "
                "image twice: pass the measured maps to fuse those."
            )
            return


def leave_fit_behind(metadata):
    """Take out of `metadata` of an ElementMaps that it is the result of a fit."""
    if metadata.has_item("Fusion"):
        del metadata.Fusion
    title = title_of(metadata)
    if _TITLE_OF_FUSED.match(title):
        title = _TITLE_OF_FUSED.sub("", title) or ", ".join(metadata_names(metadata, "Sample.elements"))
        metadata.set_item("General.title", f"Element maps of {title}")


def common_quantity(nodes):
    """What the numbers are, where all maps agree; exspy's compositions keep the label of the counts."""
    titles = [title_of(node) for node in nodes]
    if any(" percent of " in title for title in titles):
        grids.warn(
            f"Maps titled {titles[0]!r} are compositions, which do not follow the thickness as the HAADF image does: "
            "fuse line intensities instead."
        )
        return ""
    found = list(dict.fromkeys(str(node.get_item("Signal.quantity", "")) for node in nodes))
    known = [quantity for quantity in found if quantity]
    if len(known) > 1:
        grids.warn(
            f"The maps are of different quantities ({', '.join(known)}), whose intensities cannot be compared: pass "
            "maps of one quantity, best the intensities of lines."
        )
    return found[0] if len(found) == 1 and "atom counts of " not in titles[0] else ""


def common_width(nodes):
    """Width of the windows of maps with the metadata `nodes`, in FWHM; None, and a warning, where it is not the same.

    Windows of 2 FWHM hold nearly all of a line, and go with maps of other kinds.
    """
    of_lines = [node for node in nodes if not node.has_item("Element_maps.edges")]
    found = list(dict.fromkeys(node.get_item("Element_maps.integration_windows") for node in of_lines))
    if len(found) > 1 and set(found) != {None, 2.0}:
        known = " and ".join(f"{width:g}" for width in found if width is not None)
        others = " and of no known width" if None in found else ""
        grids.warn(
            f"The maps are of windows of {known} FWHM{others}, which hold different parts of a line: factors of a "
            "composition take them to be the same; make all maps with one integration_windows."
        )
    return found[0] if len(found) == 1 else None


def described_edges(nodes):
    """What the metadata `nodes` {element: metadata} have of the edges of these maps, of each its own.

    Cross-sections are left out where one is not known. A warning tells of intensities of fits, whose cross-section is
    1, among counts.
    """
    keys = ("edges", "windows", "cross_sections")
    known = {
        key: {e: copy.deepcopy(v) for e, node in nodes.items() if (v := _own_entry(node, key, e)) is not None}
        for key in keys
    }
    sections = known["cross_sections"]
    atoms = [element for element, section in sections.items() if section == 1]
    counts = [e for e, node in nodes.items() if e not in atoms and (e in known["edges"] or _is_of_lines(node))]
    if atoms and counts:
        grids.warn(
            f"The maps of {', '.join(atoms)} are intensities of a fit, in proportion to atoms, and those of "
            f"{', '.join(counts)} are counts: their numbers cannot be compared without the cross-section of each; make "
            "all maps in one way."
        )
    if len(sections) < len(nodes):
        known["cross_sections"] = {}
    return {key: values for key, values in known.items() if values}


def _own_entry(node, key, element):
    return node.get_item(f"Element_maps.{key}.{element}")


def _is_of_lines(node):
    return node.has_item("Element_maps.xray_lines") or node.has_item("Sample.xray_lines")
