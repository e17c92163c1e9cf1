"""Element maps from spectra, models, lists, dicts and stacks, in one signal."""

import copy
import logging
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.grid import axes as grids
from hyperspy_fusion.identify.elements import (
    atomic_number,
    check_count,
    check_line,
    check_names,
    checked_elements,
    checked_lines,
    common_quantity,
    common_width,
    described_edges,
    element_of,
    identify_map,
    identify_stack,
    is_selection,
    leave_fit_behind,
    listed,
    metadata_names,
    metadata_of_maps,
    refuse_detector_images,
    refuse_undetectable,
    selected,
    selected_by_themselves,
    title_of,
    warn_of_fused,
)
from hyperspy_fusion.maps import eds_background as continuum
from hyperspy_fusion.maps import eds_lines as spectra
from hyperspy_fusion.maps import eels_maps as eels
from hyperspy_fusion.maps.noise_metadata import known_noise, with_noise

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
    """One 2-D map on its way into the stack; `data` (ny, nx) may be a dask array, `what` is for messages.

    `background` and `variance` are like `data`, where they are known. `has_gaps`: pixels may be NaN, and it was said.
    """

    element: str | None
    line: str
    data: Any
    axes: list
    metadata: Any
    what: str
    background: Any = None
    variance: Any = None
    has_gaps: bool = False


def element_maps(
    source,
    elements=None,
    *,
    xray_lines=None,
    integration_windows=spectra.WINDOW_WIDTH,
    edges=None,
    background=None,
    allow_nan=False,
):
    """
    Collect the element maps of one scan in one signal.

    Parameters
    ----------
    source : object
        One of

        - a list or tuple of 2-D maps, ``(x, y|)`` as exspy's ``get_lines_intensity`` returns them, or ``(|x, y)``;
          spectrum images, fitted models and `ElementMaps` may be among them, such as EDS and EELS of one scan, each of
          other elements: every one is read as if it were alone;
        - a dict ``{"Fe": map}``, whose keys may also be X-ray lines such as "Fe_Ka";
        - a stack of maps ``(n|x, y)`` or ``(x, y, n|)``, also from ``hyperspy.api.stack``, or one map;
        - an EDS spectrum image ``(x, y|E)``: the channels within one FWHM of each X-ray line (`integration_windows`)
          are added up, as ``get_lines_intensity`` does, and those of several lines of one element as well (a
          channel in two windows of one element counts once); integer counts stay integer;
        - an EELS spectrum image ``(x, y|E)`` with `edges` or `elements`: the counts in a window after each edge above
          HyperSpy's power@forward model through a window before it, or what a fit finds of the edges (`background`), and their
          variance, which `fuse` by "calibrated" makes use of (``get_noise_variance()`` of the result). Pixels whose
          spectra are NaN or stuck at one value are NaN, with a warning;
        - a fitted exspy model: of an EDS model the fitted areas of the X-ray lines; of an EELS model the
          intensity of each element's edge. Where an element has several independent edges, the one of lowest
          onset energy is taken, since their intensities estimate the same quantity and must not be added; or a
          list of such edges, ``[model["Mn_L3"], model["O_K"]]``;
        - an `ElementMaps`; the pixels of a whole one in memory are not copied, see below. For the result of a fit
          there is a warning, since fusing it again uses the HAADF image twice, and its ``metadata.Fusion`` is
          left out.

        Lazy data are computed in one pass, and the result is in memory.
    elements : list of str, optional
        Symbols. They name the maps of a list or stack, in its order, and select from everything that knows
        its elements: spectra, models, dicts and `ElementMaps`, and from a list or stack of more maps, if each
        of them tells its element. A name other than that a map tells is followed with a warning, but refused where
        it shows that the names are in a wrong order. Without `elements` each map is identified by the one
        entry of its ``Sample.xray_lines``, else of its ``Sample.elements``, else by a title that is a symbol
        ("Fe") or contains one line or edge ("... Cu_L3 component"); lists of several elements in the metadata
        say what the sample contains and never what a map shows. Where a title is the symbol of another element
        than the metadata name, the metadata are followed and a warning says so.
    xray_lines : list of str, optional
        X-ray lines, e.g. ``["Fe_Ka", "Fe_La"]``, of an EDS spectrum image or model. By default those of
        ``Sample.xray_lines``, else exspy's choice for each element at this beam energy and energy range.
    integration_windows : float
        Full width of the windows of an EDS spectrum image in units of the FWHM of each line, between 0.2 and 10. The
        default is exspy's: 2 hold 98 % of a line. Narrower ones hold less of the background and of neighbouring
        lines: 1.2, which hold 84 % of a line, are best for a weak line on a background, and leave more channels to what
        ``fuse(..., method="auto")`` makes of the rest of the spectra. k-factors hold for any width that is the
        same for all lines, if each is alone in its window; mass thickness and numbers of atoms need the part of the
        line. Kept in ``metadata.Element_maps.integration_windows``.
    edges : list of str or dict, optional
        Edges of an EELS spectrum image, e.g. ``["Mn_L3", "O_K"]``, one for each element: those above the first, as
        L2, are in its window. A dict gives windows in eV as well, ``{"O_K": (b0, b1, s0, s1)}`` with the limits of
        the window of the background before the edge and of that of the signal, or None for the default ones. These
        follow from the onset energies of exspy, and are in ``metadata.Element_maps.windows``: from 20 % below the onset
        to 5 eV below it, and from it to 10 % above, less where another of the edges is near. Without `edges` the
        major edge of lowest energy of each of the `elements` is taken. Where the edge before is too near for a window
        between them, both share one, and what it adds is taken off by exspy's hydrogenic cross-sections, with a
        warning.
    background : str, array, EDSModel, BaseSignal, dict or list, optional
        Of an EELS spectrum image "windows" (the default), a power@forward model before each edge, or "model": one power@forward model and
        exspy's hydrogenic cross-sections of all `edges`, fitted together to all windows. The maps are then intensities
        as those of exspy's ``EELSCLEdge``, in proportion to atoms. The windows after the edges are longer, to 20 %
        above the onset, and leave out the first 30 eV where there is room.

        Of anything else counts in the maps that are not of the lines. They stay in the maps, and `fuse` by
        "calibrated" takes them for what they are; they are `ElementMaps.known_background` of the result. Of an EDS
        spectrum image one of

        - "windows": from exspy's ``estimate_background_windows``, sides with lines of the sample left out, smoothed as
          far as their counts demand (:func:`hyperspy_fusion.fusion.spectra.background.smoothed_counts`);
        - the limits of such windows, a row of four for each line in the order of `xray_lines`;
        - a fitted exspy model of the spectra, whose background components are taken;
        - a spectrum image of expected background counts.

        For maps: maps of their background, in any form that `element_maps` takes.
    allow_nan : bool
        Keep pixels that are NaN, infinite or masked, as NaN: ``method="calibrated"`` leaves them out.

    Returns
    -------
    ElementMaps
        ``(n|x, y)``, one map per element, in the units, on the axes and in the order of the source (by symbol
        for an EELS model). 64-bit integers are narrowed to 32 bits where all values fit. The source is not changed,
        and the result is a signal of its own, with its own axes and metadata. Its pixels are a copy of those of the
        source, but for a whole `ElementMaps` in memory: there both share them, so that writing into the pixels
        of one (``maps.data *= 2``) changes the other, while ``maps.data = 2 * maps.data``, cropping or
        calibrating does not. Warnings are logged, and are in ``metadata.Element_maps.warnings``.

    Raises
    ------
    TypeError
        The source is nothing of the above; complex, RGB or ragged data.
    ValueError
        No maps, different shapes, pixel sizes or areas, NaN or infinite pixels that are not allowed, and an element
        that is unknown, repeated or cannot be identified. Maps of one element are added up only if they name
        different X-ray lines.
    NotImplementedError
        A spatial axis is not uniform.
    """
    elements = None if elements is None else checked_elements(elements)
    xray_lines = None if xray_lines is None else checked_lines(xray_lines)
    width = _width(source, integration_windows)
    with grids.collected_warnings() as found:
        result = _made(source, elements, xray_lines, width, edges, background, allow_nan)
    found = [*metadata_names(result.metadata, "Element_maps.warnings"), *found]
    if found:
        result.metadata.set_item("Element_maps.warnings", list(dict.fromkeys(found)))
    return result


def _width(source, integration_windows):
    """Width of the windows, which only EDS spectra have: ValueError where another one is asked of anything else."""
    width = spectra.checked_width(integration_windows)
    members = source if isinstance(source, list | tuple) else [source]
    if width != spectra.WINDOW_WIDTH and not any(grids.is_spectra(m) and not eels.is_eels(m) for m in members):
        raise ValueError(
            f"integration_windows is {width:g}, but the maps are made already or of no EDS spectra: pass the EDS "
            "spectrum image, or leave it out."
        )
    return width


def _made(source, elements, xray_lines, width, edges, background, allow_nan):
    maps, title = _read(source, elements, xray_lines, width, edges, background)
    if not maps:
        raise ValueError("There are no maps to fuse: the source is empty, and at least one map is needed.")
    if background is not None and not grids.is_spectra(source):
        maps = _over(maps, background)
    _refuse_unidentified(maps)
    refuse_undetectable([m.element for m in maps if m.line])
    warn_of_fused([m.metadata for m in maps])
    axes = _common_axes(maps)
    maps = _computed(maps, allow_nan)
    if background is None and _is_finished(source, maps):
        return _own_signal(source, axes)
    maps = _one_per_element(maps)
    result = _element_maps_signal(_stacked([m.data for m in maps]), axes, _metadata(maps, title))
    return with_noise(result, *(_stacked_noise(maps, key) for key in ("background", "variance")))


def _is_finished(source, maps):
    """Whether `source` is a whole ElementMaps in memory, no slice, from which nothing is to be selected."""
    if getattr(source, "_signal_type", "") != "element_maps" or source._lazy or np.ma.isMaskedArray(source.data):
        return False
    names = metadata_names(source.metadata, "Sample.elements")
    is_whole = source.axes_manager.navigation_dimension == 1 and names == [m.element for m in maps]
    return is_whole and source.data.dtype.isnative and not np.isinf(source.data).any()


def _own_signal(source, axes):
    """The pixels of an ElementMaps, not copied, in a signal that nobody else crops, calibrates or renames."""
    noise = known_noise(source)
    bare = source._deepcopy_with_new_data(None)
    leave_fit_behind(bare.metadata)
    axis, _ = grids.stack_axes(source)
    data = np.moveaxis(source.data, axis.index_in_array, 0)
    return with_noise(_element_maps_signal(data, axes, bare.metadata.as_dictionary()), *noise)


def _stacked_noise(maps, key):
    """(n, ny, nx) of the `key` of all maps; None where no map has it, or where a variance is missing."""
    known = [getattr(m, key) for m in maps]
    missing = [m.element for m, values in zip(maps, known, strict=True) if values is None]
    if len(missing) == len(maps):
        return None
    if missing and key == "variance":
        grids.warn(f"The variance of the map of {', '.join(missing)} is not known, and that of the others is not used.")
        return None
    shape = maps[0].data.shape
    return _stacked([np.zeros(shape, np.float32) if values is None else values for values in known])


def _over(maps, background):
    """The `maps` over a background that is given as maps."""
    if isinstance(background, str):
        raise ValueError(
            f"background is {background!r}, which is found in the spectra: pass the EDS spectrum image, or the "
            "background as maps {'Fe': map, ...}."
        )
    known = element_maps(background)
    grids.check_same_scan(
        maps[0].axes, grids.axis_dicts(known.axes_manager.signal_axes, known), maps=maps[0].what, haadf="background"
    )
    for symbol in [m.element for m in maps]:
        if symbol not in known.elements:
            raise ValueError(f"background has no map of {symbol}: give one for each element, of zeros if need be.")
    return [m._replace(background=known.get_map(m.element).data.astype(np.float32)) for m in maps]


# ---- sources ----------------------------------------------------------------------------------------


def _read(source, elements, xray_lines, width, edges, background):
    """List of `_Map`, and the title of what they were made from ("" where the elements say it)."""
    from hyperspy.model import BaseModel  # a list of components: asked before list

    if isinstance(source, BaseModel):
        if edges is not None or background is not None:
            raise ValueError("A fitted model has its own edges and no background in its lines: leave these out.")
        return _read_model(source, elements, xray_lines)
    if isinstance(source, list | tuple) and any(map(_holds_several, source)):
        return _read_combined(source, elements, xray_lines, width, edges), ""
    if eels.is_eels(source):
        return _read_eels(source, elements, xray_lines, edges, background)
    if edges is not None:
        raise ValueError("edges selects from an EELS spectrum image, which was not given: leave it out.")
    if grids.is_spectra(source):
        return _read_spectra(source, elements, xray_lines, width, background)
    if xray_lines is not None:
        raise ValueError(
            "xray_lines selects from an EDS spectrum image or model, which was not given: name the elements "
            "of maps by elements=[...] instead."
        )
    if isinstance(source, dict):
        return _read_dict(source, elements), ""
    if isinstance(source, list | tuple) and source and all(hasattr(item, "subshell") for item in source):
        return _read_components(source, elements)
    if isinstance(source, list | tuple):
        return _read_list(source, elements), ""
    return _read_signal(source, elements), ""


def _read_signal(signal, elements):
    grids.check_signal(signal)
    grids.check_real(signal)
    manager = signal.axes_manager
    dimensions = (manager.navigation_dimension, manager.signal_dimension)
    if dimensions in ((0, 2), (2, 0)):
        return _read_list([signal], elements, alone=True)
    if dimensions in ((1, 2), (3, 0)):
        return _read_stack(signal, elements)
    raise ValueError(
        f"{signal} cannot be read as element maps: expected a map (|x, y) or (x, y|), a stack (n|x, y) or "
        "(x, y, n|), or an EDS spectrum image (x, y|E)."
    )


def _read_list(signals, elements, alone=False):
    for signal in signals:
        _check_map(signal)
    nodes = [node for signal in signals for node in metadata_of_maps(signal)]
    refuse_detector_images(nodes, alone)
    if is_selection(elements, len(signals)):
        return selected_by_themselves(_read_list(signals, None), elements)
    if elements is not None:
        check_count(elements, len(signals))
        check_names(elements, nodes)
    names = elements or [None] * len(signals)
    return [_read_map(signal, i + 1, name) for i, (signal, name) in enumerate(zip(signals, names, strict=True))]


def _holds_several(source):
    """Whether a member of a list is read as a list of its own: a spectrum image, a fitted model or an ElementMaps."""
    from hyperspy.model import BaseModel

    is_stack = getattr(source, "_signal_type", "") == "element_maps" and source.axes_manager.navigation_size > 0
    return is_stack or grids.is_spectrum_image(source) or isinstance(source, BaseModel)


def _read_combined(sources, elements, xray_lines, width, edges):
    """Maps of one scan from spectra, models, stacks and maps, each read alone; `elements` are asked of the spectra."""
    if edges is not None:
        raise ValueError(
            "edges is for one EELS spectrum image: make its maps by element_maps(eels, edges=...), and pass them in "
            "the list."
        )
    is_spectra = [grids.is_spectra(source) for source in sources]
    known = {i: element_maps(source, allow_nan=True) for i, source in enumerate(sources) if not is_spectra[i]}
    if elements is not None:
        elsewhere = {element for maps in known.values() for element in maps.elements}
        asked = [element for element in elements if element not in elsewhere]
        _refuse_unclear(asked, sum(is_spectra))
    for i, source in enumerate(sources):
        if is_spectra[i] and (elements is None or asked):
            of_eds = {} if eels.is_eels(source) else {"integration_windows": width}
            known[i] = element_maps(source, None if elements is None else asked, xray_lines=xray_lines, **of_eds)
    return selected([m for i in sorted(known) for m in _read_stack(known[i], None)], elements)


def _refuse_unclear(asked, n):
    if asked and n > 1:
        raise ValueError(
            f"{', '.join(asked)} could be of any of the {n} spectrum images in the list: make the maps of each by "
            "element_maps, of other elements each, and pass these in the list."
        )


def _check_map(signal):
    grids.check_image(signal)


def _read_map(signal, number, element):
    """One map of a list; `element` is stronger than what its metadata say."""
    element, line = identify_map(signal, element)
    title = title_of(signal.metadata)
    what = f"map {number} ({title!r})" if title else f"map {number}"
    return _Map(element, line, signal.data, grids.spatial_axes(signal), signal.metadata, what, *known_noise(signal))


def _read_dict(source, elements):
    keys = listed(list(source), "The keys of the dict of maps", "{'Fe': map}")
    for key in keys:
        atomic_number(key) if key.isalpha() else check_line(key)
    maps = _read_list(list(source.values()), [element_of(key) for key in keys])
    maps = [m._replace(line=key if "_" in key else m.line) for m, key in zip(maps, keys, strict=True)]
    return selected(maps, elements)


def _read_stack(signal, elements):
    axis, plane = grids.stack_axes(signal)
    data = np.moveaxis(signal.data, axis.index_in_array, 0)
    axes = grids.axis_dicts(plane, signal)
    nodes = metadata_of_maps(signal, axis)
    refuse_detector_images(nodes, alone=False)
    own_names, choice = signal._signal_type == "element_maps", is_selection(elements, axis.size)
    if elements is None or own_names or choice:
        named = identify_stack(signal, axis)
    else:
        check_count(elements, axis.size)
        check_names(elements, nodes)
        named = [(symbol, "") for symbol in elements]
    noise = [v if v is None else np.moveaxis(v, axis.index_in_array, 0) for v in known_noise(signal)]
    known = [_with_own_edges(signal.metadata, node) for node in nodes]
    maps = [
        _Map(element, line, data[i], axes, known[i], f"map {i + 1} of {signal}", *_at(noise, i))
        for i, (element, line) in enumerate(named)
    ]
    if own_names:
        return selected(maps, elements)
    return selected_by_themselves(maps, elements) if choice else maps


def _with_own_edges(metadata, own):
    """The metadata of a stack by HyperSpy, which are those of its first map, with what `own` has of edges."""
    if own is None or not own.has_item("Element_maps"):
        return metadata
    metadata = metadata.deepcopy()
    metadata.set_item("Element_maps", own.Element_maps.as_dictionary())
    return metadata


def _at(arrays, i):
    return [None if array is None else array[i] for array in arrays]


def _read_spectra(signal, elements, xray_lines, width, background):
    if background is None:
        lines, counts = spectra.line_counts(signal, elements, xray_lines, width)
        under = [None] * len(lines)
    else:
        lines, counts, under = continuum.counts_over_background(signal, elements, xray_lines, background, width)
        under = np.moveaxis(under, -1, 0)
    axes = grids.axis_dicts(signal.axes_manager.navigation_axes, signal)
    metadata = signal.metadata.deepcopy()
    metadata.set_item("Element_maps.integration_windows", width)
    maps = [
        _Map(e, "+".join(names), counts[..., i], axes, metadata, f"the {e} map of {signal}", under[i])
        for i, (e, names) in enumerate(lines.items())
    ]
    return maps, title_of(signal.metadata)


def _read_eels(signal, elements, xray_lines, edges, background):
    if xray_lines is not None:
        raise ValueError("xray_lines is of EDS data: name the edges by edges=['Fe_L3', ...].")
    found = eels.edge_counts(signal, elements, edges, background)
    axes = grids.axis_dicts(signal.axes_manager.navigation_axes, signal)
    metadata = signal.metadata.deepcopy()
    for key, values in found.described().items():
        metadata.set_item(f"Element_maps.{key}", values)
    if background == "model":
        # intensities are not the counts that the spectra are
        metadata.set_item("Signal.quantity", "")
    maps = [
        _Map(e.element, "", e.net, axes, metadata, f"the {e.element} map of {signal}", None, e.variance, True)
        for e in found.edges
    ]
    return maps, title_of(signal.metadata)


# ---- fitted models ----------------------------------------------------------------------------------


def _read_model(model, elements, xray_lines):
    title = title_of(model.signal.metadata)
    if hasattr(model, "get_lines_intensity"):
        return _read_eds_model(model, elements, xray_lines), title
    if xray_lines is not None:
        raise ValueError("xray_lines selects from EDS data: select from an EELS model by elements=[...].")
    edges = spectra.main_edges(model)
    if not edges:
        raise ValueError(f"{model} has no components that know their element: pass a fitted exspy model, or maps.")
    spectra.refuse_unfitted(model, [edge.intensity for edge in edges])
    return selected(_fitted_edges(model, edges), elements), title


def _read_components(components, elements):
    """Maps of edges of a fitted EELS model, in the order in which they are given."""
    model = components[0].model
    spectra.refuse_unfitted(model, [edge.intensity for edge in components])
    return selected(_fitted_edges(model, components), elements), title_of(model.signal.metadata)


def _fitted_edges(model, edges):
    maps = _read_list([edge.intensity.as_signal() for edge in edges], [edge.element for edge in edges])
    # the maps of a fit have no metadata of their scan, and are not the counts that its spectra are
    metadata = model.signal.metadata.deepcopy()
    metadata.set_item("Signal.quantity", "")
    # of any element they are proportional to the number of its atoms
    metadata.set_item("Element_maps.cross_sections", {edge.element: 1.0 for edge in edges})
    return [m._replace(metadata=metadata) for m in maps]


def _read_eds_model(model, elements, xray_lines):
    lines = spectra.fitted_lines(model, elements, xray_lines)
    spectra.refuse_unfitted(model, [model[line].A for line in lines])
    maps = _read_list(model.get_lines_intensity(lines), None) if lines else []
    return selected(maps, elements)


# ---- the stack --------------------------------------------------------------------------------------


def _common_axes(maps):
    """Axes of the first calibrated map, after all maps have been compared with it."""
    reference = next((m for m in maps if all(map(grids.is_calibrated, m.axes))), maps[0])
    for m in maps:
        grids.check_same_scan(reference.axes, m.axes, maps=reference.what, haadf=m.what, one_map=True)
    return reference.axes


def _computed(maps, allow_nan):
    """The maps in memory, lazy ones in one computation, with pixels that are finite or, where allowed, NaN."""
    import dask

    images = dask.compute(*(m.data for m in maps))
    return [
        m._replace(data=grids.with_gaps(d) if allow_nan or m.has_gaps else grids.finite_pixels(d, m.what))
        for m, d in zip(maps, images, strict=True)
    ]


def _refuse_unidentified(maps):
    unknown = [m for m in maps if m.element is None]
    if unknown:
        several = any(len(metadata_names(m.metadata, "Sample.elements")) > 1 for m in unknown)
        why = " (Sample.elements lists what the sample contains, not what a map shows)" if several else ""
        raise ValueError(
            f"Cannot tell the element of {', '.join(m.what for m in unknown)}{why}: name all maps in their "
            "order by elements=['Fe', ...], or pass a dict {'Fe': map, ...}."
        )
    checked_elements([m.element for m in maps])


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
    _logger.info("The %s map is the sum of %s.", element, ", ".join(lines))
    # the sum of small integers is a wide one
    added = {"data": np.sum([m.data for m in group], axis=0), "line": "+".join(lines)}
    for key in ("background", "variance"):
        known = [getattr(m, key) for m in group]
        missing = any(values is None for values in known)
        added[key] = None if missing else np.sum(known, axis=0)
    return group[0]._replace(**added)


def _element_maps_signal(data, axes, metadata):
    import hyperspy.api as hs

    element_axis = {"size": len(data), "name": "element", "scale": 1, "offset": 0, "navigate": True}
    axes = [element_axis, *({**axis, "navigate": False} for axis in axes)]
    signal = hs.signals.Signal2D(data, axes=axes, metadata=metadata)
    signal.set_signal_type("element_maps")
    return signal


def _stacked(images):
    """The pixels of all images, (n, ny, nx), native: converted one by one on their way into the one array."""
    stack = np.empty((len(images), *images[0].shape), _common_dtype(images))
    for layer, image in zip(stack, images, strict=True):
        layer[...] = image
    return stack


def _common_dtype(images):
    """That of all images; 64-bit integers in 32 bits where they fit, for a solver in float32 keeps no more."""
    dtype = np.result_type(*images).newbyteorder("=")
    if dtype.kind not in "iu" or dtype.itemsize < 8:
        return dtype
    narrow = np.dtype(f"{dtype.kind}4")
    limits = np.iinfo(narrow)
    fits = all(limits.min <= int(image.min()) and int(image.max()) <= limits.max for image in images)
    return narrow if fits else dtype


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
    if quantity := common_quantity([m.metadata for m in maps]):
        tree.set_item("Signal.quantity", quantity)
    titles = [title_of(m.metadata) for m in maps]
    tree.set_item("Element_maps.source_titles", list(dict.fromkeys(titles)))
    if all(m.line for m in maps):
        tree.set_item("Element_maps.xray_lines", [m.line for m in maps])
    if width := common_width([m.metadata for m in maps]):
        tree.set_item("Element_maps.integration_windows", width)
    for key, values in described_edges({m.element: m.metadata for m in maps}).items():
        tree.set_item(f"Element_maps.{key}", values)
    if warnings := [w for m in maps for w in metadata_names(m.metadata, "Element_maps.warnings")]:
        tree.set_item("Element_maps.warnings", list(dict.fromkeys(warnings)))
    return tree.as_dictionary()
