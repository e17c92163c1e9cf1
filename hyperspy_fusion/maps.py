"""Element maps from spectra, models, lists, dicts and stacks, in one signal."""

import copy
import logging
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion import grids, spectra
from hyperspy_fusion.elements import (
    atomic_number,
    check_line,
    checked_elements,
    checked_lines,
    element_of,
    identify_map,
    identify_stack,
    listed,
    metadata_names,
    refuse_repeats,
)

_logger = logging.getLogger(__name__)

_COPIED = (
    "Acquisition_instrument",
    "Sample.description",
    "General.date",
    "General.time",
    "General.authors",
    "General.original_filename",
)


class _Map(NamedTuple):
    """One 2-D map on its way into the stack; `data` (ny, nx) may be a dask array, `what` is for messages."""

    element: str | None
    line: str
    data: Any
    axes: list
    metadata: Any
    what: str


def element_maps(source, elements=None, *, xray_lines=None):
    """
    Collect the element maps of one scan in one signal.

    Parameters
    ----------
    source : object
        One of

        - a list or tuple of 2-D maps, ``(x, y|)`` as exspy's ``get_lines_intensity`` returns them, or ``(|x, y)``;
        - a dict ``{"Fe": map}``, whose keys may also be X-ray lines such as "Fe_Ka";
        - a stack of maps ``(n|x, y)`` or ``(x, y, n|)``, also from ``hyperspy.api.stack``, or one map;
        - an EDS spectrum image ``(x, y|E)``: the channels within one FWHM of each X-ray line are added up, as
          ``get_lines_intensity`` does, and those of several lines of one element as well (a channel in two
          windows of one element counts once); integer counts stay integer;
        - a fitted exspy model: of an EDS model the fitted areas of the X-ray lines; of an EELS model the
          intensity of each element's edge. Where an element has several independent edges, the one of lowest
          onset energy is taken, since their intensities estimate the same quantity and must not be added;
        - an `ElementMaps`, which is returned as it is unless it is a slice, it is lazy, or `elements` selects from it.

        Lazy data are computed in one pass, and the result is in memory.
    elements : list of str, optional
        Symbols. They name the maps of a list or stack, in its order, and select from everything that knows
        its elements: spectra, models, dicts and `ElementMaps`. Without it each map is identified by the one
        entry of its ``Sample.xray_lines``, else of its ``Sample.elements``, else by a title that is a symbol
        ("Fe") or contains one line or edge ("... Cu_L3 component"); lists of several elements in the metadata
        say what the sample contains and never what a map shows.
    xray_lines : list of str, optional
        X-ray lines, e.g. ``["Fe_Ka", "Fe_La"]``, of an EDS spectrum image or model. By default those of
        ``Sample.xray_lines``, else exspy's choice for each element at this beam energy and energy range.

    Returns
    -------
    ElementMaps
        ``(n|x, y)``, one map per element, in the units, on the axes and in the order of the source (by symbol
        for an EELS model). 64-bit integers are narrowed to 32 bits where all values fit. The source is not changed.

    Raises
    ------
    TypeError
        The source is nothing of the above; complex, RGB or ragged data.
    ValueError
        No maps, different shapes or pixel sizes, NaN or infinite pixels, and an element that is unknown, repeated
        or cannot be identified. Maps of one element are added up only if they name different X-ray lines.
    NotImplementedError
        A spatial axis is not uniform.
    """
    if elements is not None:
        elements = checked_elements(elements)
    if xray_lines is not None:
        xray_lines = checked_lines(xray_lines)
    maps, title = _read(source, elements, xray_lines)
    if not maps:
        raise ValueError("there are no maps to fuse: the source is empty, and at least one map is needed.")
    _refuse_unidentified(maps)
    if _is_finished(source, maps):
        return source
    axes = _common_axes(maps)
    maps = _one_per_element(_computed(maps))
    return _element_maps_signal(maps, axes, title)


def _is_finished(source, maps):
    """Whether `source` is a whole ElementMaps in memory, no slice, from which nothing is to be selected."""
    if getattr(source, "_signal_type", "") != "element_maps" or source._lazy:
        return False
    names = metadata_names(source.metadata, "Sample.elements")
    if source.axes_manager.navigation_dimension != 1 or names != [m.element for m in maps]:
        return False
    return grids.checked_pixels(source.data, str(source)) is source.data


# ---- sources ----------------------------------------------------------------------------------------


def _read(source, elements, xray_lines):
    """List of `_Map`, and the title of what they were made from ("" where the elements say it)."""
    from hyperspy.model import BaseModel  # a list of components: asked before list

    if isinstance(source, BaseModel):
        return _read_model(source, elements, xray_lines)
    if _is_spectrum_image(source):
        return _read_spectra(source, elements, xray_lines)
    if xray_lines is not None:
        raise ValueError(
            "xray_lines selects from an EDS spectrum image or model, which was not given: name the elements "
            "of maps by elements=[...] instead."
        )
    if isinstance(source, dict):
        return _read_dict(source, elements), ""
    if isinstance(source, list | tuple):
        return _read_list(source, elements), ""
    return _read_signal(source, elements), ""


def _is_spectrum_image(source):
    manager = getattr(source, "axes_manager", None)
    return bool(manager) and (manager.navigation_dimension, manager.signal_dimension) == (2, 1)


def _read_signal(signal, elements):
    grids.check_signal(signal)
    grids.check_real(signal)
    manager = signal.axes_manager
    dimensions = (manager.navigation_dimension, manager.signal_dimension)
    if dimensions in ((0, 2), (2, 0)):
        return _read_list([signal], elements)
    if dimensions in ((1, 2), (3, 0)):
        return _read_stack(signal, elements)
    raise ValueError(
        f"{signal} cannot be read as element maps: expected a map (|x, y) or (x, y|), a stack (n|x, y) or "
        "(x, y, n|), or an EDS spectrum image (x, y|E)."
    )


def _read_list(signals, elements):
    if elements is not None:
        _check_count(elements, len(signals))
    names = elements or [None] * len(signals)
    return [_read_map(signal, i + 1, name) for i, (signal, name) in enumerate(zip(signals, names, strict=True))]


def _read_map(signal, number, element):
    """One map of a list; `element` is stronger than what its metadata say."""
    if _is_spectrum_image(signal):
        raise ValueError(
            f"{signal} in the list of maps is a spectrum image: pass it alone, instead of the list, to have "
            "its maps made."
        )
    grids.check_image(signal)
    known, line = identify_map(signal)
    title = signal.metadata.get_item("General.title", "")
    what = f"map {number} ({title!r})" if title else f"map {number}"
    return _Map(element or known, line, signal.data, grids.spatial_axes(signal), signal.metadata, what)


def _check_count(elements, n):
    if len(elements) != n:
        raise ValueError(
            f"elements names {len(elements)} elements for {n} maps: name every map, in the order of the maps."
        )


def _read_dict(source, elements):
    keys = listed(list(source), "the keys of the dict of maps", "{'Fe': map}")
    for key in keys:
        check_line(key) if "_" in key else atomic_number(key)
    maps = _read_list(list(source.values()), [element_of(key) for key in keys])
    maps = [m._replace(line=key if "_" in key else m.line) for m, key in zip(maps, keys, strict=True)]
    return _selected(maps, elements)


def _selected(maps, elements):
    """Maps of the `elements` in their order; all where None."""
    if elements is None:
        return maps
    refuse_repeats(elements)
    known = dict.fromkeys(str(m.element) for m in maps)
    for symbol in elements:
        if symbol not in known:
            raise ValueError(f"there is no map of {symbol}: the source has {', '.join(known)}.")
    return [m for symbol in elements for m in maps if m.element == symbol]


def _read_stack(signal, elements):
    axis, plane = grids.stack_axes(signal)
    data = np.moveaxis(signal.data, axis.index_in_array, 0)
    axes = grids.axis_dicts(plane, signal)
    own_names = signal._signal_type == "element_maps"
    if elements is None or own_names:
        named = identify_stack(signal, axis)
    else:
        _check_count(elements, axis.size)
        named = [(symbol, "") for symbol in elements]
    maps = [
        _Map(element, line, data[i], axes, signal.metadata, f"map {i + 1} of {signal}")
        for i, (element, line) in enumerate(named)
    ]
    return _selected(maps, elements) if own_names else maps


def _read_spectra(signal, elements, xray_lines):
    lines, counts = spectra.line_counts(signal, elements, xray_lines)
    axes = grids.axis_dicts(signal.axes_manager.navigation_axes, signal)
    maps = [
        _Map(element, "+".join(names), counts[..., i], axes, signal.metadata, f"the {element} map of {signal}")
        for i, (element, names) in enumerate(lines.items())
    ]
    return maps, signal.metadata.get_item("General.title", "")


# ---- fitted models ----------------------------------------------------------------------------------


def _read_model(model, elements, xray_lines):
    title = model.signal.metadata.get_item("General.title", "")
    if hasattr(model, "get_lines_intensity"):
        return _read_eds_model(model, elements, xray_lines), title
    if xray_lines is not None:
        raise ValueError("xray_lines selects from EDS data: select from an EELS model by elements=[...].")
    edges = _main_edges(model)
    if not edges:
        raise ValueError(f"{model} has no components that know their element: pass a fitted exspy model, or maps.")
    _refuse_unfitted(model, [edge.intensity for edge in edges])
    maps = _read_list([edge.intensity.as_signal() for edge in edges], [edge.element for edge in edges])
    # the maps of a fit have no metadata of their scan, and are not the counts that its spectra are
    metadata = model.signal.metadata.deepcopy()
    metadata.set_item("Signal.quantity", "")
    maps = [m._replace(metadata=metadata) for m in maps]
    return _selected(maps, elements), title


def _main_edges(model):
    """One core-loss edge per element, by symbol: the lowest independent one; exspy twins the rest to it."""
    edges = [c for c in model if hasattr(c, "subshell") and c.active and c.intensity.twin is None]
    edges.sort(key=lambda edge: (edge.element, edge.onset_energy.value))
    main = {}
    for edge in edges:
        if main.setdefault(edge.element, edge) is not edge:
            _logger.info("%s is left out, the %s map is %s.", edge.name, edge.element, main[edge.element].name)
    return list(main.values())


def _read_eds_model(model, elements, xray_lines):
    lines = spectra.fitted_lines(model, elements, xray_lines)
    _refuse_unfitted(model, [model[line].A for line in lines])
    maps = _read_list(model.get_lines_intensity(lines), None) if lines else []
    return _selected(maps, elements)


def _refuse_unfitted(model, parameters):
    if not all(parameter.map["is_set"].all() for parameter in parameters):
        raise ValueError(f"{model} is not fitted at every pixel: call `m.multifit()` first.")


# ---- the stack --------------------------------------------------------------------------------------


def _common_axes(maps):
    """Axes of the first calibrated map, after all maps have been compared with it."""
    reference = next((m for m in maps if all(map(grids.is_calibrated, m.axes))), maps[0])
    for m in maps:
        grids.check_same_scan(reference.axes, m.axes, maps=reference.what, haadf=m.what)
    return reference.axes


def _computed(maps):
    """The maps in memory, lazy ones in one computation, with finite pixels."""
    import dask

    images = dask.compute(*(m.data for m in maps))
    return [m._replace(data=grids.checked_pixels(d, m.what)) for m, d in zip(maps, images, strict=True)]


def _refuse_unidentified(maps):
    unknown = [m for m in maps if m.element is None]
    if unknown:
        several = any(len(metadata_names(m.metadata, "Sample.elements")) > 1 for m in unknown)
        why = " (Sample.elements lists what the sample contains, not what a map shows)" if several else ""
        raise ValueError(
            f"cannot tell the element of {', '.join(m.what for m in unknown)}{why}: name all maps in their "
            "order by elements=['Fe', ...], or pass a dict {'Fe': map, ...}."
        )
    for m in maps:
        atomic_number(m.element)


def _one_per_element(maps):
    """Add up maps of different X-ray lines of one element; any other repetition is an error."""
    groups = {m.element: [] for m in maps}
    for m in maps:
        groups[m.element].append(m)
    return [_added(element, group) for element, group in groups.items()]


def _added(element, group):
    if len(group) == 1:
        return group[0]
    lines = [m.line for m in group]
    if "" in lines or len(set(lines)) < len(lines):
        raise ValueError(
            f"{element} is repeated by {' and '.join(m.what for m in group)}, and nothing says that these "
            "are different X-ray lines to be added up: keep one map, or pass their sum."
        )
    _logger.info("the %s map is the sum of %s.", element, ", ".join(lines))
    # the sum of small integers is a wide one
    return group[0]._replace(data=np.sum([m.data for m in group], axis=0), line="+".join(lines))


def _element_maps_signal(maps, axes, title):
    import hyperspy.api as hs

    data = np.stack([m.data for m in maps])
    element_axis = {"size": len(maps), "name": "element", "scale": 1, "offset": 0, "navigate": True}
    axes = [element_axis, *({**axis, "navigate": False} for axis in axes)]
    signal = hs.signals.Signal2D(_narrowed(data), axes=axes, metadata=_metadata(maps, title))
    signal.set_signal_type("element_maps")
    return signal


def _narrowed(data):
    """64-bit integers in 32 bits where they fit: counts do, and a solver in float32 keeps no more."""
    if data.dtype.kind not in "iu" or data.dtype.itemsize < 8:
        return data
    narrow = np.dtype(f"{data.dtype.kind}4")
    limits = np.iinfo(narrow)
    fits = limits.min <= data.min() and data.max() <= limits.max
    return data.astype(narrow) if fits else data


def _metadata(maps, title):
    """
    Metadata of the stack: the acquisition as the first map has it, and what each map was made from.

    ``Sample.xray_lines`` stays out, for it lists one line per entry; ``Element_maps.xray_lines`` has one
    entry per map, such as "Fe_Ka+Fe_La".
    """
    elements = [m.element for m in maps]
    first = maps[0].metadata
    tree = type(first)()
    for key in _COPIED:
        value = first.get_item(key)
        if value is not None:
            tree.set_item(key, copy.deepcopy(value))
    tree.set_item("General.title", f"Element maps of {title or ', '.join(elements)}")
    tree.set_item("Sample.elements", elements)
    if quantity := _quantity(maps):
        tree.set_item("Signal.quantity", quantity)
    titles = [m.metadata.get_item("General.title", "") for m in maps]
    tree.set_item("Element_maps.source_titles", list(dict.fromkeys(titles)))
    if all(m.line for m in maps):
        tree.set_item("Element_maps.xray_lines", [m.line for m in maps])
    return tree.as_dictionary()


def _quantity(maps):
    """What the numbers are, where all maps agree; exspy's compositions keep the label of the counts."""
    titles = [m.metadata.get_item("General.title", "") for m in maps]
    if any(" percent of " in title for title in titles):
        _logger.warning(
            "maps titled %r are compositions, which do not follow the thickness as the HAADF image does: "
            "fuse line intensities instead.",
            titles[0],
        )
        return ""
    found = {m.metadata.get_item("Signal.quantity", "") for m in maps}
    return found.pop() if len(found) == 1 and "atom counts of " not in titles[0] else ""
