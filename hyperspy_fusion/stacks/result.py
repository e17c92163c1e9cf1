"""The fused frames of a stack in one signal, in memory or on disk, with the record of each fit."""

from __future__ import annotations

import functools
import tempfile
from collections import defaultdict
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic, as_metadata, report
from hyperspy_fusion.results.fused_maps import Inputs
from hyperspy_fusion.stacks.fit import FailedFrame

NOT_FUSED = "frame-not-fused"
# sentences of diagnostics name so many frames at most
_MOST_NAMED = 8


class Store:
    """Fused maps of the frames on disk, in a folder that is deleted with the process.

    Every frame is one chunk, which whoever fuses it writes.
    """

    def __init__(self, frames):
        self.folder = Folder()
        self.indices = frames.indices

    def writer(self, block):
        """A function that writes the maps of a frame of a block, by its number in it."""
        return functools.partial(_write, str(self.folder), [self.indices[k] for k in block])

    def lazy(self, shape, dtype, fused):
        """All maps as a dask array, with NaN for frames that are not among the indices of the ``fused`` ones."""
        import dask.array as da

        def chunk(block_info: Any = None):
            index = tuple(start for start, _ in block_info[None]["array-location"][: len(shape) - 3])
            return _read(self.folder, index, shape[-3:], dtype, index in fused)[(None,) * (len(shape) - 3)]

        chunks = [(1,) * size for size in shape[:-3]] + [(size,) for size in shape[-3:]]
        return da.map_blocks(chunk, chunks=tuple(chunks), dtype=dtype, meta=np.empty((0,) * len(shape), dtype))


class Folder:
    """A folder that is deleted with the last signal of this process that reads from it; others know its name."""

    def __init__(self):
        from dask import config

        where = config.get("temporary-directory", None)
        self.own = tempfile.TemporaryDirectory(prefix="hyperspy-fusion-", dir=where, ignore_cleanup_errors=True)

    def __str__(self):
        return self.own.name

    def __reduce__(self):
        return str, (str(self),)


def _path(folder, index):
    return f"{folder}/{'_'.join(map(str, index))}.npy"


def _write(folder, indices, number, maps):
    np.save(_path(folder, indices[number]), maps)


def _read(folder, index, shape, dtype, is_fused):
    return np.load(_path(folder, index)) if is_fused else np.full(shape, np.nan, dtype)


def fused_stack(frames, found, store=None) -> Any:
    """The ElementMaps ``(element, ...|x, y)`` of fitted frames; see ``fuse_stack``."""
    import hyperspy.api as hs

    found = _alike(found)
    first = next(one for one in found if not isinstance(one, FailedFrame))
    diagnostics = _summary(frames, found)
    shape = (*frames.shape, len(first.metadata["Sample"]["elements"]), *(axis["size"] for axis in first.axes[1:]))
    fused = {index for index, one in zip(frames.indices, found, strict=True) if not isinstance(one, FailedFrame)}
    data = (
        _filled(frames, [getattr(one, "data", None) for one in found])
        if store is None
        else store.lazy(shape, first.data.dtype, fused)
    )
    axes = [*frames.axes, *first.axes]
    metadata = {key: value for key, value in first.metadata.items() if key != "Fusion"}
    signal = hs.signals.Signal2D(data, axes=axes, metadata=metadata)
    signal = signal if store is None else signal.as_lazy()
    signal.set_signal_type("element_maps")
    if store is None:
        _keep_inputs(signal, frames, found)
    for key, value in _record(frames, found, diagnostics).items():
        signal.metadata.set_item(f"Fused_frames.{key}", value)
    report(diagnostics)
    return signal


def _keep_inputs(signal, frames, found):
    """What the frames were fused from, which the result in memory keeps, and the squares of their errors."""
    import hyperspy.api as hs

    measured, images, errors = (
        _filled(frames, [getattr(one, name, None) for one in found]) for name in ("measured", "haadf", "errors")
    )
    maps = signal._deepcopy_with_new_data(measured)
    axes = [axis for axis in signal.axes_manager._get_axes_dicts() if axis["name"] != "element"]
    signal._inputs = Inputs(maps, hs.signals.Signal2D(images, axes=axes))
    if errors is not None:
        signal.set_noise_variance(signal._deepcopy_with_new_data(errors**2))


def _filled(frames, arrays):
    """The arrays of the frames in one, NaN for those that have none; None where none has one."""
    first = next((a for a in arrays if a is not None), None)
    if first is None:
        return None
    data = np.full((*frames.shape, *first.shape), np.nan, np.result_type(first.dtype, np.float32))
    for index, array in zip(frames.indices, arrays, strict=True):
        if array is not None:
            data[index] = array
    return data


def _record(frames, found, diagnostics):
    """``metadata.Fused_frames``: what there is to say about all, and ``metadata.Fusion`` of each frame."""
    fits = {_name(k): one.metadata["Fusion"] for k, one in enumerate(found) if not isinstance(one, FailedFrame)}
    return {
        "n_frames": len(found),
        "shape": np.array(frames.shape),
        "failed": np.array([k for k, one in enumerate(found) if isinstance(one, FailedFrame)], dtype=int),
        "diagnostics": as_metadata(diagnostics),
        **fits,
    }


def _name(k):
    return f"frame_{k:05d}"


def _alike(found):
    """Frames of which those with other maps than most have failed."""
    kinds = defaultdict(list)
    for k, one in enumerate(found):
        if not isinstance(one, FailedFrame):
            sizes = tuple(axis["size"] for axis in one.axes[1:])
            kinds[tuple(one.metadata["Sample"]["elements"]), sizes].append(k)
    most = max(kinds.values(), key=len)
    return [
        one
        if isinstance(one, FailedFrame) or k in most
        else FailedFrame(f"its elements are {', '.join(one.metadata['Sample']['elements'])}.")
        for k, one in enumerate(found)
    ]


def _summary(frames, found):
    """Diagnostics about all frames."""
    of_each = [
        not_fused(one) if isinstance(one, FailedFrame) else _diagnostics_of(one.metadata["Fusion"]["diagnostics"])
        for one in found
    ]
    return summary_of(of_each, frames.indices, "Frame")


def not_fused(failed):
    """The list of what there is to say of a frame, or tile, that failed."""
    return [Diagnostic(NOT_FUSED, f"They could not be fused and are NaN: {failed.sentence}")]


def _diagnostics_of(columns):
    names = ("codes", "sentences", "severities")
    return [Diagnostic(*one) for one in zip(*(columns[name] for name in names), strict=True)]


def summary_of(of_each, indices, noun):
    """One diagnostic for each kind of finding, with the frames that it is about.

    ``of_each`` are lists of :class:`Diagnostic` of each frame, or tile, ``indices`` their places in the order of the
    array, and ``noun`` what they are called.
    """
    about: dict = defaultdict(lambda: defaultdict(list))
    for k, own in enumerate(of_each):
        for one in own:
            about[one.code, one.severity][one.sentence].append(k)
    summary = []
    for (code, severity), cases in sorted(about.items(), key=lambda item: item[0][0] != NOT_FUSED):
        numbers = sorted({k for own in cases.values() for k in own})
        summary.append(Diagnostic(code, f"{_which(indices, numbers, noun)}: {next(iter(cases))}", severity))
    return summary


def _which(indices, numbers, noun):
    """In words: frames by their places in the stack."""
    if len(numbers) == len(indices):
        return f"All {noun.lower()}s"
    places = [indices[k] for k in numbers[:_MOST_NAMED]]
    named = ", ".join(str(i[0]) if len(i) == 1 else str(tuple(reversed(i))) for i in places)
    more = f" and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else ""
    return f"{noun}{'s' * (len(numbers) > 1)} {named}{more} of {len(indices)}"
