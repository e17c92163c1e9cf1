"""One frame of a fused stack, with the record of its fit."""

from __future__ import annotations

import os
from copy import copy, deepcopy
from dataclasses import fields
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.uncertainty.error_estimates import BootstrapReplicates
from hyperspy_fusion.results.fused_maps import Inputs
from hyperspy_fusion.results.uncertainty import Errors

#: where the metadata of a stack have the records of its frames
FUSED_FRAMES = "Fused_frames"


class ReplicatesOfFrames:
    """Bootstrap replicates of the frames of a stack, in files of a folder."""

    def __init__(self, folder: Any):
        self.folder = folder

    def of(self, number: int) -> BootstrapReplicates | None:
        """Those of a frame, which stay on disk; None where there are none."""
        paths = {one.name: path_of_replicates(self.folder, number, one.name) for one in fields(BootstrapReplicates)}
        paths = {name: path for name, path in paths.items() if os.path.exists(path)}
        if not paths:
            return None
        return BootstrapReplicates(**{name: np.load(path, mmap_mode="r") for name, path in paths.items()})


def path_of_replicates(folder: Any, number: int, name: str) -> str:
    """Of the file of one array of a frame."""
    return f"{folder}/replicates_{number}_{name}.npy"


def in_words(index: tuple) -> str:
    """The place of a frame in the array, in the order of HyperSpy's ``inav``."""
    return str(index[0]) if len(index) == 1 else str(tuple(map(int, reversed(index))))


def name_of_frame(number: int) -> str:
    """Where the record of a frame is, in ``metadata.Fused_frames``."""
    return f"frame_{number:05d}"


def in_memory(node: dict) -> dict[str, Any]:
    """A metadata dictionary with NumPy arrays for the dask arrays that lazily loaded files have in them."""
    return {
        key: in_memory(value) if isinstance(value, dict) else np.asarray(value) if hasattr(value, "dask") else value
        for key, value in node.items()
    }


def other_axes(maps: Any) -> list:
    """The navigation axes of maps that are not of elements."""
    own = maps._map_axis()
    return [axis for axis in maps.axes_manager.navigation_axes if axis is not own]


def refuse_stack(maps: Any, what: str) -> None:
    """Raise ValueError for a stack of scans, of which nothing can be computed together."""
    axes = other_axes(maps)
    if axes:
        way = "frame(0)" if maps.metadata.has_item(FUSED_FRAMES) else "inav[...]"
        named = ", ".join(f"{axis.name} ({axis.size})" for axis in axes)
        raise ValueError(f"{maps!r} is a stack along {named}: take one of its frames by {way} for {what}.")


def numbers_of(stack: Any) -> Any:
    """The numbers of the frames of a fused stack, an array of the shape of its axes.

    None for other maps, such as those that were added up along an axis of the stack, transposed or rebinned.
    """
    if not stack.metadata.has_item(FUSED_FRAMES):
        return None
    shape = [axis.size for axis in sorted(other_axes(stack), key=lambda axis: axis.index_in_array)]
    numbers = np.asarray(stack.metadata[FUSED_FRAMES].numbers)
    return numbers.reshape(shape) if numbers.size == np.prod(shape, dtype=int) else None


def frame_of(stack: Any, index: Any) -> Any:
    """One frame of fused maps; see ``ElementMaps.frame``."""
    axes = other_axes(stack)
    if not axes or numbers_of(stack) is None:
        raise _no_frames(stack)
    index = tuple(np.atleast_1d(index).tolist())
    if len(index) != len(axes):
        named = ", ".join(str(axis.name) for axis in axes)
        raise ValueError(f"index is {index}, and the stack has the axes {named}: give one number for each of them.")
    at = {id(axis): i for axis, i in zip(axes, index, strict=True)}
    found = stack.inav[tuple(at.get(id(axis), slice(None)) for axis in stack.axes_manager.navigation_axes)]
    if found.metadata.has_item(FUSED_FRAMES):
        record = found.metadata[FUSED_FRAMES]
        reasons = dict(zip(np.asarray(record.failed).tolist(), record.failures, strict=True))
        number = int(np.asarray(record.numbers)[0])
        raise ValueError(f"There is no fit of the frame {index}: {reasons.get(number, 'it is not known.')}")
    if found._lazy:
        found.compute(show_progressbar=False)
        variance = found.get_noise_variance()
        if getattr(variance, "_lazy", False):
            variance.compute(show_progressbar=False)
        _take_errors(found, stack, _number_of(stack, index))
    return found


def frame_or_none(stack: Any, index: Any) -> Any:
    """The same, None for a frame that could not be fused."""
    is_fused = stack.metadata[FUSED_FRAMES].has_item(name_of_frame(_number_of(stack, index)))
    return frame_of(stack, index) if is_fused else None


def _no_frames(stack):
    return ValueError(f"{stack!r} is not the result of fusing a stack, and has no frames: take those of that result.")


def _number_of(stack, index):
    """The number of a frame among those that were fused together."""
    numbers = numbers_of(stack)
    if numbers is None:
        raise _no_frames(stack)
    return int(numbers[tuple(reversed(index))])


def cut_frames(part: Any, whole: Any, slices: dict) -> None:
    """Let the records of a part of a stack be of its frames; ``slices`` {index of an axis in the array: slice}.

    A part that is one frame has its record as ``metadata.Fusion``, unless it was not fused. Where the axes are no
    longer those of the frames, it has none.
    """
    record: Any = whole.metadata[FUSED_FRAMES]
    numbers = numbers_of(whole)
    if part.metadata.has_item(FUSED_FRAMES):
        delattr(part.metadata, FUSED_FRAMES)
    if numbers is None:
        return
    axes = sorted(other_axes(whole), key=lambda axis: axis.index_in_array)
    numbers = numbers[tuple(slices.get(axis.index_in_array, slice(None)) for axis in axes)]
    if numbers.ndim or other_axes(part) or not record.has_item(name := name_of_frame(int(numbers))):
        part.metadata.set_item(FUSED_FRAMES, _record_of(record, np.ravel(numbers)))
        return
    fit, changed = deepcopy(record[name].as_dictionary()), record.get_item("changed")
    if file := record.files[int(numbers)]:
        part.metadata.General.original_filename = file
    part.metadata.set_item("Fusion", fit if changed is None else fit | {"changed": changed})
    kept = whole._inputs
    if kept is not None:
        index = np.unravel_index(int(numbers), np.asarray(record.shape))
        part._inputs = Inputs(*(_frame_at(one, index) for one in (kept.maps, kept.haadf)))
    _take_errors(part, whole, int(numbers))


def without_record(stack: Any) -> Any:
    """The same signal less the records of its frames: HyperSpy copies all metadata of what it slices."""
    lean = copy(stack)
    lean._metadata = copy(stack.metadata)
    delattr(lean._metadata, FUSED_FRAMES)
    return lean


def _record_of(record, numbers):
    """A copy of the records of the frames of these numbers, as a dictionary."""
    fits = {name_of_frame(number) for number in numbers}
    names = [name for name in record.keys() if name in fits or not name.startswith("frame_")]
    values = {name: record[name] for name in names} | {"numbers": numbers}
    return deepcopy({n: v.as_dictionary() if hasattr(v, "as_dictionary") else v for n, v in values.items()})


def _take_errors(frame, stack, number):
    """Give a frame the bootstrap replicates of its fit, where they are kept."""
    found = None if stack._replicates is None else stack._replicates.of(number)
    if found is not None:
        constant = frame.metadata.Fusion.get_item("constant_elements", [])
        elements = [e for e in frame.metadata.Fusion.elements if e not in constant]
        frame._errors = Errors(found, frame.deepcopy(), elements, int(frame.metadata.Fusion.errors.seed))


def _frame_at(signal, index):
    """One frame of what the whole stack was fused from, in memory."""
    at = iter(reversed(index))
    axes = signal.axes_manager.navigation_axes
    frame = signal.inav[tuple(slice(None) if axis.name == "element" else int(next(at)) for axis in axes)]
    if frame._lazy:
        frame.compute(show_progressbar=False)
    return frame
