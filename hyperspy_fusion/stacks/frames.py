"""The frames of a stack: which axes number them, and maps and image of each one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperspy_fusion.grid.axes import STACK_AXES, UNCALIBRATED

# by hyperspy.api.stack
_TITLE_OF_STACK = "Stack of "
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
        A source of :func:`hyperspy_fusion.element_maps` whose signals have the navigation axes of the image after
        their own: ``(x, y, t|E)``, ``(element, t|x, y)``, or a list or dictionary of ``(t|x, y)``.
    haadf
        ``(t|x, y)``.
    mask, background
        As for :func:`hyperspy_fusion.fuse`, of one scan, or of the stack with its axes.

    Raises
    ------
    ValueError
        Where the navigation axes of maps and image do not agree.
    """
    manager = getattr(haadf, "axes_manager", None)
    if manager is None or manager.signal_dimension != 2 or not manager.navigation_dimension:
        return None
    if getattr(haadf, "_signal_type", "") == "element_maps":
        return None  # swapped with the maps, which the model reports
    axes = manager.navigation_axes
    signals = signals_of(maps)
    if not signals:
        return None
    for signal in signals:
        _check_axes(signal, axes, haadf)
    names, size = [axis.name for axis in axes], tuple(axis.size for axis in reversed(axes))
    return Frames(
        axes=[_described(axis) for axis in reversed(axes)],
        shape=size,
        source=lambda index: _of_frame(maps, names, index),
        haadf=lambda index: _of_frame(haadf, names, index),
        mask=lambda index: _of_array(mask, names, size, index),
        background=lambda index: _of_array(background, names, size, index),
        chunks=_chunks(signals[0], names),
        is_lazy=any(signal._lazy for signal in signals),
    )


def may_be_field(maps: Any, settings: Any) -> bool:
    """Whether maps may be fused in tiles: lazy ones, and those for which the settings have a size of tiles."""
    if not hasattr(settings, "tile_size"):
        return False
    return settings.tile_size is not None or any(getattr(one, "_lazy", False) for one in signals_of(maps))


def signals_of(source: Any) -> list:
    """The signals of a source: itself, or those of a list or dictionary."""
    parts: Any = source.values() if isinstance(source, dict) else source
    parts = parts if isinstance(source, dict | list | tuple) else [source]
    return [one for one in parts if hasattr(one, "axes_manager") and hasattr(one, "inav")]


def _frame_axes(signal: Any, names: Sequence[Any]) -> Sequence[Any]:
    """The axes of a signal that number frames, as those of these names in the image; none where there are none.

    They are its last navigation axes that are not of elements.
    """
    manager, of_elements = signal.axes_manager, set(STACK_AXES).difference(names)
    own = [axis for axis in manager.navigation_axes if axis.name not in of_elements]
    # x and y of spectra and of maps (x, y|) come first
    own = own[2:] if manager.signal_dimension < 2 else own
    if manager.signal_dimension == 2 and len(own) == manager.navigation_dimension == len(names) + 1:
        own = own[1:]  # maps that are counted by an axis of another name
    return own if len(own) == len(names) else []


def _check_axes(signal, axes, haadf):
    own = _frame_axes(signal, [axis.name for axis in axes])
    named = ", ".join(f"{axis.name} ({axis.size})" for axis in axes)
    if not own:
        raise ValueError(
            f"{haadf} is a stack along {named}, and {signal} has no such navigation axes: give both the same ones, or "
            "take one image by `haadf.inav[...]`."
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
    found = dict(axis.get_axis_dictionary())
    found["navigate"] = True
    return found


def _of_frame(source: Any, names: Sequence[Any], index: tuple[int, ...]) -> Any:
    """The part of a source that is of one frame."""
    if isinstance(source, dict):
        return {key: _of_frame(one, names, index) for key, one in source.items()}
    if isinstance(source, list | tuple):
        return [_of_frame(one, names, index) for one in source]
    at = {axis: i for axis, i in zip(_frame_axes(source, names), reversed(index), strict=True)}
    frame = source.inav[tuple(at.get(axis, slice(None)) for axis in source.axes_manager.navigation_axes)]
    if all(axis.name != "stack_element" for axis in frame.axes_manager.navigation_axes):
        _forget_stack(frame)
    return frame


def _forget_stack(frame):
    """Leave out what HyperSpy kept of the frames when it stacked them: by it a map is known as part of a stack."""
    for tree, path in ((frame.original_metadata, "stack_elements"), (frame.metadata, "_HyperSpy.Stacking_history")):
        if tree.has_item(path):
            *parents, name = path.split(".")
            delattr(tree.get_item(".".join(parents)) if parents else tree, name)
    title = str(frame.metadata.get_item("General.title", ""))
    while title.startswith(_TITLE_OF_STACK):
        title = frame.metadata.General.title = title.removeprefix(_TITLE_OF_STACK)


def _of_array(values: Any, names: Sequence[Any], shape: tuple[int, ...], index: tuple[int, ...]) -> Any:
    """The part of a mask or background that is of one frame; that of one scan is of all frames."""
    if isinstance(values, np.ndarray) and values.ndim == len(shape) + 2 and values.shape[: len(shape)] == shape:
        return values[index]
    signals = [] if values is None or isinstance(values, str) else signals_of(values)
    is_stack = bool(signals) and all(_frame_axes(one, names) for one in signals)
    return _of_frame(values, names, index) if is_stack else values
