"""What every source of maps is asked for and returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.spectra.scan_spectra import ScanSpectra
from hyperspy_fusion.grid.axes import scan_axes
from hyperspy_fusion.identify.elements import refuse_repeats

#: how the spectra of EDS become maps: by integration windows, or by a fit of all lines
LINES = ("windows", "model")
#: full width of an integration window in units of the FWHM of its line, as in exspy's ``get_lines_intensity``
WINDOW_WIDTH = 2.0


@dataclass(frozen=True)
class SourceRequest:
    """The arguments of `element_maps`; see there."""

    elements: Any = None
    xray_lines: Any = None
    integration_windows: float = WINDOW_WIDTH
    edges: Any = None
    background: Any = None
    allow_nan: bool = False
    #: one of `LINES`, for EDS spectra
    lines: str = LINES[0]
    #: True where a pixel is left out of the model of EDS spectra
    mask: Any = None
    #: whether to read the counts outside of the windows of EDS spectra too
    out_of_window: bool = False
    #: whether to read the counts beside the lines of EDS spectra too, where the file alone names the elements
    beside: bool = False

    @property
    def is_of_file(self) -> bool:
        """Whether nobody asks for elements or lines, so that the file alone names them."""
        return self.elements is None and self.xray_lines is None


@dataclass(frozen=True)
class Beside:
    """Counts (ny, nx) in the background windows of a line, alike on both sides of it, maybe a dask array.

    The window of the line has ``ratio`` times as many channels, and of a linear background as many counts.
    """

    counts: Any
    ratio: float


class SourceMap(NamedTuple):
    """One 2-D map on its way into the stack.

    Its element is None where it is not known. Its X-ray lines are such as "Fe_Ka+Fe_La", "" for none. Data (ny, nx) may
    be a dask array, and so may background and variance, None where not known. The axes of y and x are as
    :func:`~hyperspy_fusion.grid.axes.spatial_axes` returns them, the metadata those of the signal it is from. The name
    is for messages. `allows_nan` is whether its pixels may be NaN anyway, with a diagnostic. `beside` are the counts in
    background windows of its line, None where not read.
    """

    element: str | None
    line: str
    data: Any
    axes: list[dict]
    metadata: Any
    name: str
    background: Any = None
    variance: Any = None
    allows_nan: bool = False
    beside: Beside | None = None


@dataclass(frozen=True)
class SourceMaps:
    """The maps of a source, the title of what they were made from ("" where their elements name it), and findings.

    ``out_of_window`` are the counts outside of the windows of EDS spectra, None where nobody asks for them. ``whole``
    is an ElementMaps in memory of just these maps, None where there is none. ``named_by_file`` is whether the file
    alone names their elements, as those of spectra that were not chosen by anyone. ``spectra`` are the counts that a
    model of the spectra is to be fitted to; None for maps of windows.
    """

    maps: list[SourceMap]
    title: str = ""
    diagnostics: list[Diagnostic] = field(default_factory=list)
    out_of_window: Any = None
    whole: Any = None
    named_by_file: bool = False
    spectra: ScanSpectra | None = None


def in_memory(sources: list[SourceMaps]) -> list[SourceMaps]:
    """The same maps with all their lazy arrays computed, in one pass."""
    from dask.base import compute

    names = ("data", "background", "variance", "beside")
    arrays = [[{name: getattr(m, name) for name in names} for m in found.maps] for found in sources]
    computed = compute(arrays, [found.out_of_window for found in sources])
    return [
        replace(
            found,
            maps=[m._replace(**own) for m, own in zip(found.maps, of_maps, strict=True)],
            out_of_window=out_of_window,
        )
        for found, of_maps, out_of_window in zip(sources, *computed, strict=True)
    ]


class MapSource(Protocol):
    """One kind of source.

    `kind` is for messages. It takes which of ``"xray_lines"``, ``"edges"``, ``"background"`` and
    ``"integration_windows"``.
    """

    kind: str
    takes: frozenset[str]

    @staticmethod
    def matches(source: Any) -> bool:
        """Whether `source` is of this kind."""
        ...

    @staticmethod
    def read(source: Any, request: SourceRequest) -> SourceMaps:
        """Its maps with identity, grid and noise metadata."""
        ...


def described(source: Any, entries: dict) -> tuple[list[dict], Any]:
    """Axes of the scan of a spectrum image, and a copy of its metadata with `entries` of the maps."""
    metadata = source.metadata.deepcopy()
    for key, values in entries.items():
        metadata.set_item(f"Element_maps.{key}", values)
    return scan_axes(source), metadata


def is_selection(elements: Sequence[str] | None, n: int) -> bool:
    """Whether so few `elements` can only select from `n` maps."""
    return elements is not None and 0 < len(elements) < n


def check_count(elements: Sequence[str], n: int) -> None:
    """Raise ValueError unless there are `n` elements, a name for each map."""
    if len(elements) != n:
        names = f"{len(elements)} element{'s' * (len(elements) != 1)}"
        raise ValueError(
            f"elements names {names} for {n} map{'s' * (n != 1)}: name every map, in the order of the maps."
        )


def selected(maps: list[SourceMap], elements: list[str] | None, *, all_named: bool = True) -> list[SourceMap]:
    """Maps of the `elements` in their order, all where None; unless `all_named`, each map must know its element."""
    if elements is None:
        return maps
    known = {m.element for m in maps}
    if not all_named and (None in known or not known.issuperset(elements)):
        check_count(elements, len(maps))
    refuse_repeats(elements)
    for symbol in elements:
        if symbol not in known:
            listed = ", ".join(dict.fromkeys(str(m.element) for m in maps))
            raise ValueError(f"There is no map of {symbol}: the source has {listed}.")
    return [m for symbol in elements for m in maps if m.element == symbol]


def is_model(source: Any) -> bool:
    """Whether `source` is a HyperSpy model, which is a list of components too."""
    from hyperspy.model import BaseModel

    return isinstance(source, BaseModel)


def refuse_unfitted(model: Any, parameters: Sequence[Any]) -> None:
    """Raise ValueError unless the `parameters` of `model` are fitted everywhere."""
    if not all(parameter.map["is_set"].all() for parameter in parameters):
        raise ValueError(f"{model} is not fitted at every pixel: call `m.multifit()` first.")
