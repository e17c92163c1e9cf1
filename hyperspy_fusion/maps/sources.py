"""Element maps of one scan in one signal, from every kind of source: the door, and the registry of the kinds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import report_fit
from hyperspy_fusion.grid.axes import check_same_scan
from hyperspy_fusion.grid.images import check_signal
from hyperspy_fusion.identify.elements import checked_elements, checked_lines
from hyperspy_fusion.maps.base import WINDOW_WIDTH, MapSource, SourceMaps, SourceRequest, is_model, selected
from hyperspy_fusion.maps.eds_lines import checked_width
from hyperspy_fusion.maps.kinds import (
    EdsSpectra,
    EelsSpectra,
    ElementMapsSource,
    FittedEdges,
    FittedEdsModel,
    MapDictionary,
    MapList,
    StackOrMap,
)
from hyperspy_fusion.maps.stack import ScanMaps, one_scan

_SPECTRA = (EdsSpectra, EelsSpectra)
# of which sources an argument is, for messages
_IS_FOR = {
    "xray_lines": "an EDS spectrum image or model (name maps by elements=['Fe', ...], edges by edges=['Fe_L3', ...])",
    "edges": "an EELS spectrum image",
    "integration_windows": "an EDS spectrum image",
    "lines": "an EDS spectrum image",
    "background": "spectra or maps",
}


def element_maps(
    source: Any,
    elements: Any = None,
    *,
    xray_lines: Any = None,
    integration_windows: float = WINDOW_WIDTH,
    edges: Any = None,
    background: Any = None,
    allow_nan: bool = False,
) -> Any:
    """
    Collect the element maps of one scan in one signal.

    Parameters
    ----------
    source : object
        One of

        - a list or tuple of 2-D maps, ``(x, y|)`` as exspy's ``get_lines_intensity`` returns them, or ``(|x, y)``.
          Spectrum images, fitted models and `ElementMaps` may be among them, such as EDS and EELS of one scan, each of
          other elements. Every one is read as if it were alone;
        - a dict ``{"Fe": map}``, whose keys may also be X-ray lines such as "Fe_Ka";
        - a stack of maps ``(n|x, y)`` or ``(x, y, n|)``, also from ``hyperspy.api.stack``, or one map;
        - an EDS spectrum image ``(x, y|E)``. The channels within one FWHM of each X-ray line (`integration_windows`)
          are added up, as ``get_lines_intensity`` does, and those of several lines of one element as well. A
          channel in two windows of one element counts once. Integer counts stay integer;
        - an EELS spectrum image ``(x, y|E)`` with `edges` or `elements`. The counts are those in a window after each
          edge above HyperSpy's power law through a window before it, or what a fit finds (`background`). Their
          variance is ``get_noise_variance()`` of the result, and `fuse` by "calibrated" uses it. Pixels whose
          spectra are NaN or stuck at one value are NaN, with a warning;
        - a fitted exspy model. Of an EDS model: the fitted areas of the X-ray lines. Of an EELS model: the
          intensity of each element's edge. Of several independent edges of an element, the one of lowest
          onset energy is taken, since their intensities estimate the same quantity and must not be added. A
          list of such edges, ``[model["Mn_L3"], model["O_K"]]``, is read as well;
        - an `ElementMaps`; the pixels of a whole one in memory are not copied, see below. The result of a fit
          raises a warning, since fusing it again uses the HAADF image twice. Its ``metadata.Fusion`` is left out.

        Lazy data are computed in one pass, and the result is in memory.
    elements : list of str, optional
        Symbols. They name the maps of a list or stack, in its order. They select from everything that knows
        its elements: spectra, models, dicts, `ElementMaps`, and a list or stack of more maps with elements of their
        own. A name that contradicts the metadata of a map is used with a warning. It is an error where it shows that
        the names are in a wrong order. Without `elements` each map is identified by the one
        entry of its ``Sample.xray_lines``, else of its ``Sample.elements``, else by its title. The title must be a
        symbol or line alone or with a word of vendors ("Fe", "Fe K", "Fe-EELS", "Fe map"), or contain one line or edge
        ("... Cu_L3 component"). Lists of several elements in the metadata
        describe the sample and never a map. A title of another element than the metadata raises a warning.
    xray_lines : list of str, optional
        X-ray lines, e.g. ``["Fe_Ka", "Fe_La"]``, of an EDS spectrum image or model. By default those of
        ``Sample.xray_lines``, else exspy's choice for each element at this beam energy and energy range. Without a
        beam energy, low lines may be chosen: a warning names them.
    integration_windows : float
        Full width of the windows of an EDS spectrum image in units of the FWHM of each line, between 0.2 and 10. The
        default is exspy's: 2 hold 98 % of a line. Narrower ones hold less of the background and of neighbouring
        lines. 1.2, which hold 84 % of a line, are best for a weak line on a background, and leave more channels to
        the out-of-window counts of ``fuse(..., method="auto")``. k-factors hold for any width that is the
        same for all lines, if each is alone in its window. Mass thickness and numbers of atoms need the part of the
        line. Kept in ``metadata.Element_maps.integration_windows``.
    edges : list of str or dict, optional
        Edges of an EELS spectrum image, e.g. ``["Mn_L3", "O_K"]``, one for each element: those above the first, as
        L2, are in its window. A dict gives windows in eV as well, ``{"O_K": (b0, b1, s0, s1)}`` with the limits of
        the window of the background before the edge and of that of the signal, or None for the default ones. These
        follow from the onset energies of exspy, and are in ``metadata.Element_maps.windows``: from 20 % below the onset
        to 5 eV below it, and from it to 10 % above, less where another of the edges is near. Without `edges` the
        major edge of lowest energy of each of the `elements` is taken. Where the edge before is too near for a window
        between them, both share one, and its tail is taken off by exspy's hydrogenic cross-sections.
    background : str, array, EDSModel, BaseSignal, dict or list, optional
        Of an EELS spectrum image "windows" (the default), a power law before each edge, or "model". The latter is one
        power law and exspy's hydrogenic cross-sections of all `edges`, fitted together to all windows. The maps are
        then intensities as those of exspy's ``EELSCLEdge``, in proportion to atoms. The windows after the edges are
        longer, to 20 % above the onset, and leave out the first 30 eV where there is room.

        Of anything else: counts in the maps that are not of the lines. They stay in the maps, and `fuse` by
        "calibrated" models them; they are `ElementMaps.known_background` of the result. Of an EDS
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
        source, but for a whole `ElementMaps` in memory. There both share them: writing into the pixels
        of one (``maps.data *= 2``) changes the other, while ``maps.data = 2 * maps.data``, cropping or
        calibrating does not. Diagnostics are logged once, and are in ``metadata.Element_maps.diagnostics``, the
        sentences of warnings in ``metadata.Element_maps.warnings``.

    Raises
    ------
    TypeError
        The source is nothing of the above; complex, RGB or ragged data.
    ValueError
        No maps, different shapes, pixel sizes or areas, NaN or infinite pixels that are not allowed, and an element
        that is unknown, repeated or cannot be identified. Maps of one element are added up only if they name
        different X-ray lines. Lists of elements, lines or edges must not be empty.
    NotImplementedError
        A spatial axis is not uniform.

    Examples
    --------
    >>> import hyperspy_fusion as hf
    >>> spectra, haadf = hf.data.overlapping_lines((16, 16)).signals()
    >>> hf.element_maps(spectra, ["Fe", "O"]).elements
    ['Fe', 'O']
    """
    request = SourceRequest(elements, xray_lines, integration_windows, edges, background, allow_nan)
    return read_maps(source, request).signal


def read_maps(source: Any, request: SourceRequest) -> ScanMaps:
    """All that `element_maps` reads of a source, in one pass; the diagnostics are logged."""
    found = source if isinstance(source, SourceMaps) else read_source(source, request)
    scan, diagnostics = one_scan(found, request.allow_nan)
    report_fit(dict.fromkeys(diagnostics))
    return scan


def read_source(source: Any, request: SourceRequest) -> SourceMaps:
    """The maps of a source one by one; those of lazy data are lazy."""
    elements, lines = request.elements, request.xray_lines
    for name, names in (("elements", elements), ("xray_lines", lines), ("edges", request.edges)):
        if isinstance(names, list | tuple | dict | np.ndarray) and not len(names):
            raise ValueError(
                f"{name} is {names!r}, which is empty: name at least one, or leave {name} out to take those of "
                "the source."
            )
    request = replace(
        request,
        elements=None if elements is None else checked_elements(elements),
        xray_lines=None if lines is None else checked_lines(lines),
        integration_windows=checked_width(request.integration_windows),
    )
    return _read(source, request)


# ---- the registry ------------------------------------------------------------------------------------


class MixedList:
    """A list with spectra, fitted models or ElementMaps in it, of one scan, each read alone."""

    kind, takes = "a list of spectra, models and maps", frozenset(_IS_FOR) - {"lines"}

    @staticmethod
    def matches(source: Any) -> bool:
        several = (FittedEdsModel, *_SPECTRA, ElementMapsSource)
        is_list = isinstance(source, list | tuple) and not is_model(source)
        return is_list and any(is_model(one) or any(kind.matches(one) for kind in several) for one in source)

    @staticmethod
    def read(source: Any, request: SourceRequest) -> SourceMaps:
        kinds = [_kind_of(one) for one in source]
        _refuse_unused(request, frozenset({"background"}).union(*(kind.takes for kind in kinds)), MixedList.kind)
        eels = [i for i, kind in enumerate(kinds) if kind is EelsSpectra]
        if request.edges is not None and len(eels) > 1:
            raise ValueError(
                f"edges could be of any of the {len(eels)} EELS spectrum images in the list: make the maps of each by "
                "element_maps(eels, edges=[...]), and pass these in the list."
            )
        # those that know their elements come first, for the spectra are asked for the others
        alone = {i: SourceRequest() for i, kind in enumerate(kinds) if kind not in _SPECTRA}
        if request.edges is not None:
            alone[eels[0]] = SourceRequest(edges=request.edges)
        found = {i: _read(source[i], own) for i, own in alone.items()}
        spectra, asked = [i for i in range(len(kinds)) if i not in found], None
        if request.elements is not None:
            elsewhere = {m.element for own in found.values() for m in own.maps}
            asked = [element for element in request.elements if element not in elsewhere]
            if asked and len(spectra) > 1:
                raise ValueError(
                    f"{', '.join(asked)} could be of any of the {len(spectra)} spectrum images in the list: make the "
                    "maps of each by element_maps, of other elements each, and pass these in the list."
                )
        for i in spectra if asked is None or asked else []:
            own = SourceRequest(elements=asked)
            if kinds[i] is EdsSpectra:
                width = request.integration_windows
                own = replace(own, xray_lines=request.xray_lines, integration_windows=width)
            found[i] = _read(source[i], own)
        named = [element for own in found.values() for element in {m.element for m in own.maps}]
        for element in named:
            if named.count(element) > 1:
                raise ValueError(
                    f"{element} is repeated by two of the sources in the list: select the elements of each by "
                    "element_maps, and pass these in the list."
                )
        maps = [m for i in sorted(found) for m in found[i].maps]
        diagnostics = [diagnostic for i in sorted(found) for diagnostic in found[i].diagnostics]
        return SourceMaps(selected(maps, request.elements), diagnostics=diagnostics)


#: the kinds of sources, the first that matches is taken: a new kind of object is one class, and one line here
SOURCES: tuple[type[MapSource], ...] = (
    FittedEdsModel,
    FittedEdges,
    MixedList,
    MapList,
    MapDictionary,
    EelsSpectra,
    EdsSpectra,
    ElementMapsSource,
    StackOrMap,
)


def _kind_of(source) -> type[MapSource]:
    """The first of `SOURCES` that matches; TypeError where none does."""
    for kind in SOURCES:
        if kind.matches(source):
            return kind
    check_signal(source)
    raise TypeError(f"{source!r} is no source of maps: pass maps, spectra, a fitted model or ElementMaps.")


def _read(source, request) -> SourceMaps:
    """The maps of a source, by its kind, with a background that is given as maps."""
    kind = _kind_of(source)
    _refuse_unused(request, kind.takes, kind.kind)
    found = kind.read(source, request)
    if not found.maps:
        raise ValueError("There are no maps to fuse: the source is empty, and at least one map is needed.")
    if request.background is None or kind in _SPECTRA:
        return found
    return _with_background(found, request.background)


def _refuse_unused(request: SourceRequest, takes: Collection[str], kind: str) -> None:
    default = SourceRequest()
    for keyword, sources in _IS_FOR.items():
        value = getattr(request, keyword)
        has_default = keyword in ("integration_windows", "lines")
        is_given = value is not None and not (has_default and value == getattr(default, keyword))
        if is_given and keyword not in takes:
            raise ValueError(f"{keyword} is for {sources}, and the source is {kind}: leave it out.")


def _with_background(found: SourceMaps, background: Any) -> SourceMaps:
    """The maps with a background that is given as maps."""
    if isinstance(background, str):
        raise ValueError(
            f"background is {background!r}, which is found in the spectra: pass the EDS spectrum image, or the "
            "background as maps {'Fe': map, ...}."
        )
    known, first = read_maps(background, SourceRequest()), found.maps[0]
    about = check_same_scan(first.axes, known.axes, maps=first.name, haadf="background")
    counts = dict(zip(known.signal.elements, known.signal.data.astype(np.float32), strict=True))
    for m in found.maps:
        if m.element not in counts:
            raise ValueError(f"background has no map of {m.element}: give one for each element, of zeros if need be.")
    maps = [m._replace(background=counts[m.element]) for m in found.maps]
    return replace(found, maps=maps, diagnostics=[*found.diagnostics, *about])
