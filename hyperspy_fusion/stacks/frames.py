"""The frames of a stack: which axes number them, and maps and image of each one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperspy_fusion.grid.axes import STACK_AXES, UNCALIBRATED
from hyperspy_fusion.grid.images import check_signal
from hyperspy_fusion.maps.base import is_model

# by hyperspy.api.stack
_TITLE_OF_STACK = "Stack of "
# what the metadata of a stack have of its first frame only
_OF_FRAME = ("original_filename", "date", "time")
# of the calibration of two axes that number the same frames
_RTOL = 1e-3


@dataclass(frozen=True)
class Frames:
    """A stack of scans.

    Attributes
    ----------
    axes
        Dictionaries of the axes that number the frames, in the order of the array: the last one runs fastest.
    shape
        Their sizes.
    source
        A function from the index of a frame to the source of its maps.
    haadf, mask, background
        The same for its image, and for the arguments of ``fuse`` of these names.
    chunks
        Along each axis, the number of the chunk of the maps that a frame lies in.
    is_lazy
        Whether the maps are lazy.
    """

    axes: list[dict]
    shape: tuple[int, ...]
    source: Callable
    haadf: Callable
    mask: Callable
    background: Callable
    chunks: list[list[int]]
    is_lazy: bool

    def __len__(self):
        return int(np.prod(self.shape))

    @property
    def indices(self) -> list[tuple[int, ...]]:
        """Of all frames, the last one running fastest."""
        return list(np.ndindex(self.shape))

    def blocks(self) -> list[list[int]]:
        """Numbers of frames that follow each other and lie in the same chunks of lazy data, to be read together."""
        found: dict = {}
        for k, index in enumerate(self.indices):
            found.setdefault(tuple(chunk[i] for chunk, i in zip(self.chunks, index, strict=True)), []).append(k)
        return list(found.values())


def frames_of(maps: Any, haadf: Any, mask: Any = None, background: Any = None) -> Frames | None:
    """The frames of a stack of scans, or None where the image is of one scan.

    Parameters
    ----------
    maps
        Spectra or maps as for :func:`hyperspy_fusion.element_maps`, whose signals have the navigation axes of the image
        too: ``(x, y, t|E)``, ``(element, t|x, y)``, or a list or dictionary of ``(t|x, y)``.
    haadf
        ``(t|x, y)``.
    mask, background
        As for :func:`hyperspy_fusion.fuse`, of one scan, or of the stack with its axes.

    Raises
    ------
    TypeError, ValueError
        For a fitted model, for what is no signal, and where the navigation axes of maps and image do not agree.
    """
    if not is_stack(haadf):
        return None
    manager = haadf.axes_manager
    if is_model(maps):
        raise ValueError(
            f"{maps} is a fitted model, and {haadf} a stack: pass the maps of the model, as {{'Fe': "
            "m['Fe_Ka'].A.as_signal()}, or fuse each frame alone."
        )
    axes, signals = manager.navigation_axes, signals_of(maps)
    for signal in signals:
        check_signal(signal)
        _check_axes(signal, axes, haadf)
    names, shape = [axis.name for axis in axes], tuple(axis.size for axis in reversed(axes))
    mask = np.asarray(mask) if isinstance(mask, list | tuple) or hasattr(mask, "dask") else mask
    cut_maps, cut_haadf = _cutter(maps, names), _cutter(haadf, names)
    return Frames(
        axes=[_described(axis) for axis in reversed(axes)],
        shape=shape,
        source=cut_maps,
        haadf=cut_haadf,
        mask=_cutter_of_arrays(mask, names, shape),
        background=_cutter_of_arrays(background, names, shape),
        chunks=_chunks(signals[0], names),
        is_lazy=any(signal._lazy for signal in signals),
    )


def is_stack(haadf: Any) -> bool:
    """Whether an image is a stack of images; element maps are those that were swapped with the image."""
    manager = getattr(haadf, "axes_manager", None)
    if manager is None or manager.signal_dimension != 2 or not manager.navigation_dimension:
        return False
    return getattr(haadf, "_signal_type", "") != "element_maps"


def may_be_field(maps: Any, settings: Any) -> bool:
    """Whether maps may be fused in tiles: lazy ones, and those for which the settings have a size of tiles."""
    if not hasattr(settings, "tile_size"):
        return False
    return settings.tile_size is not None or any(getattr(one, "_lazy", False) for one in signals_of(maps))


def signals_of(source: Any) -> list:
    """The signals of a source: itself, or those of a list or dictionary."""
    parts: Any = source.values() if isinstance(source, dict) else source
    return list(parts if isinstance(source, dict | list | tuple) else [source])


def _frame_axes(signal: Any, names: Sequence[Any]) -> Sequence[Any]:
    """The axes of a signal that number frames, in the order of these names; none where there are none.

    They have the names, or else they are its last navigation axes that are not of elements, nor of x and y.
    """
    manager = signal.axes_manager
    by_name = {axis.name: axis for axis in manager.navigation_axes}
    if by_name.keys() >= set(names) and len(set(names)) == len(names):
        return [by_name[name] for name in names]
    own = [axis for axis in manager.navigation_axes if axis.name not in STACK_AXES]
    if manager.signal_dimension < 2:  # x and y of spectra and of maps (x, y|) come first
        scan = [axis for axis in own if axis.name in ("x", "y")]
        own = [axis for axis in own if axis not in scan] if len(scan) == 2 else own[2:]
    elif len(own) == manager.navigation_dimension == len(names) + 1:
        own = own[1:]  # maps that are counted by an axis of another name
    return own if len(own) == len(names) else []


def _check_axes(signal, axes, haadf):
    own = _frame_axes(signal, [axis.name for axis in axes])
    named = ", ".join(f"{axis.name} ({axis.size})" for axis in axes)
    if not own:
        raise ValueError(
            f"{haadf} is a stack along {named}, and {signal} has no such navigation axes: give both the same ones by "
            "`hyperspy.api.stack`, or take one image by `haadf.inav[...]`."
        )
    for a, b in zip(own, axes, strict=True):
        if a.size != b.size:
            raise ValueError(
                f"{haadf} has {b.size} frames along {b.name} and {signal} {a.size}: crop both to the frames that they "
                "share, by `.inav[...]`."
            )
        if _are_calibrated(a, b) and not np.allclose(a.axis, b.axis, rtol=_RTOL, atol=_RTOL * np.ptp(b.axis)):
            raise ValueError(
                f"The axis {b.name} is {_in_words(b)} in {haadf} and {_in_words(a)} in {signal}: bring the frames of "
                "both into one order, or correct one axis."
            )


def _are_calibrated(*axes):
    units = {str(axis.units) for axis in axes}
    return len(units) == 1 and units.isdisjoint(UNCALIBRATED)


def _in_words(axis):
    return f"{axis.axis[0]:g} to {axis.axis[-1]:g} {axis.units}"


def _chunks(signal, names):
    """Along each axis in the order of the array, the number of the chunk of each frame; in memory its own number."""
    own = list(reversed(_frame_axes(signal, names)))
    if not signal._lazy:
        return [list(range(axis.size)) for axis in own]
    sizes = [signal.data.chunks[axis.index_in_array] for axis in own]
    return [np.repeat(np.arange(len(of_axis)), of_axis).tolist() for of_axis in sizes]


def _described(axis):
    return {**axis.get_axis_dictionary(), "navigate": True}


# ---- one frame -------------------------------------------------------------------------------------------


def _cutter(source: Any, names: Sequence[Any]) -> Callable:
    """A function from the index of a frame to its part of a source."""
    if isinstance(source, dict):
        of_keys = {key: _cutter(one, names) for key, one in source.items()}
        return lambda index: {key: cut(index) for key, cut in of_keys.items()}
    if isinstance(source, list | tuple):
        of_each = [_cutter(one, names) for one in source]
        return lambda index: [cut(index) for cut in of_each]
    axes = [axis.index_in_axes_manager for axis in _frame_axes(source, names)]
    whole, kept = _without_frames(source, names)

    def cut(index):
        at = dict(zip(axes, reversed(index), strict=True))
        navigation = whole.axes_manager.navigation_axes
        frame = whole.inav[tuple(at.get(axis.index_in_axes_manager, slice(None)) for axis in navigation)]
        for key, value in (kept[index[0]] if kept else {}).items():
            frame.metadata.General.set_item(key, value)
        return frame

    return cut


def _without_frames(source, names):
    """The signal without what HyperSpy kept of the frames when it stacked them, and some of it for each frame.

    By it a map is known as part of a stack, and every frame would have a copy of all.
    """
    if "stack_element" in {axis.name for axis in source.axes_manager.navigation_axes}.difference(names):
        return source, []  # of the elements
    whole = source._deepcopy_with_new_data(source.data, copy_variance=True)
    stacked, kept = whole.original_metadata.get_item("stack_elements"), []
    if stacked is not None:
        if len(names) == 1:
            nodes = [stacked[key].metadata.get_item("General") for key in stacked.keys()]
            kept = [{key: node.get_item(key) for key in _OF_FRAME if node.has_item(key)} for node in nodes]
        del whole.original_metadata.stack_elements
    if whole.metadata.has_item("_HyperSpy.Stacking_history"):
        del whole.metadata._HyperSpy.Stacking_history
    title = str(whole.metadata.get_item("General.title", ""))
    while title.startswith(_TITLE_OF_STACK):
        title = whole.metadata.General.title = title.removeprefix(_TITLE_OF_STACK)
    return whole, kept


def _cutter_of_arrays(values: Any, names: Sequence[Any], shape: tuple[int, ...]) -> Callable:
    """The same for a mask or background; that of one scan is of all frames."""
    if isinstance(values, np.ndarray) and values.ndim == len(shape) + 2 and values.shape[: len(shape)] == shape:
        return lambda index: values[index]
    signals = [one for one in signals_of(values) if hasattr(one, "axes_manager")]
    if signals and all(_frame_axes(one, names) for one in signals):
        return _cutter(values, names)
    return lambda index: values
