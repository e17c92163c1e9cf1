"""The fused frames of a stack in one signal, in memory or on disk, with the record of each fit."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import threading
import weakref
from collections import defaultdict
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import SERIOUS, Diagnostic, as_metadata, from_metadata, report_fit
from hyperspy_fusion.results.frames import FUSED_FRAMES, ReplicatesOfFrames, in_words, name_of_frame, path_of_replicates
from hyperspy_fusion.results.fused_maps import Inputs
from hyperspy_fusion.stacks.fit import FailedFrame

NOT_FUSED = "frame-not-fused"
# sentences of diagnostics name so many frames at most
_MOST_NAMED = 8


# ---- arrays on disk ------------------------------------------------------------------------------------


# Python 3.11 does not parse the headers of two .npy files in two threads at once: "AST constructor recursion depth
# mismatch"
_PARSING = threading.Lock()


def load_array(path: str, mmap_mode: Any = None) -> np.ndarray:
    """The array of a .npy file, in tasks of any threads."""
    with _PARSING:
        return np.load(path, mmap_mode=mmap_mode)


class Store:
    """Arrays of the frames on disk, in a folder that is deleted with the last signal that reads from it.

    Those of each frame are files of their own, which whoever fuses it writes.
    """

    def __init__(self, frames):
        self.folder = Folder()
        self.indices = frames.indices

    def writer(self, block):
        """A function that writes a frame of a block, by its number in it."""
        return functools.partial(_write, str(self.folder), [self.indices[k] for k in block])

    def lazy(self, name, shape, dtype, present):
        """All arrays of a name as one of dask, with NaN for frames whose index is not among those ``present``."""
        import dask.array as da

        n = len(self.indices[0])

        def chunk(block_info: Any = None):
            index = tuple(start for start, _ in block_info[None]["array-location"][:n])
            data = (
                load_array(_path(self.folder, name, index)) if index in present else np.full(shape[n:], np.nan, dtype)
            )
            return data[(None,) * n]

        chunks = [(1,) * size for size in shape[:n]] + [(size,) for size in shape[n:]]
        return da.map_blocks(chunk, chunks=tuple(chunks), dtype=dtype, meta=np.empty((0,) * len(shape), dtype))


class ReplicatesStore(ReplicatesOfFrames):
    """Bootstrap replicates of all frames on disk, in a folder that is deleted with the last signal that reads them."""

    def __init__(self):
        super().__init__(Folder())

    def writer(self, block):
        """A function that writes those of a frame of a block, by its number in it."""
        return functools.partial(_write_replicates, str(self.folder), block)


def _write_replicates(folder, block, number, fitted):
    """Write them where the folder is, as it need not be on another machine."""
    if fitted.bootstrap is None or not os.path.isdir(folder):
        return fitted
    for name, array in fitted.bootstrap.arrays().items():
        np.save(path_of_replicates(folder, block[number], name), array)
    return fitted._replace(bootstrap=None)


class Folder:
    """A folder that is deleted with the last signal of this process that reads from it; others know its name."""

    def __init__(self):
        from dask import config

        self.name = tempfile.mkdtemp(prefix="hyperspy-fusion-", dir=config.get("temporary-directory", None))
        weakref.finalize(self, shutil.rmtree, self.name, ignore_errors=True)

    def __str__(self):
        return self.name

    def __reduce__(self):
        return str, (self.name,)


def _path(folder, name, index):
    return f"{folder}/{name}_{'_'.join(map(str, index))}.npy"


def _write(folder, indices, number, fitted):
    for name, array in fitted.arrays().items():
        np.save(_path(folder, name, indices[number]), array)


# ---- one signal ----------------------------------------------------------------------------------------


def fused_stack(frames, found, store=None, bootstrap=None) -> Any:
    """The ElementMaps ``(element, ...|x, y)`` of fitted frames; see ``fuse_stack``."""
    import hyperspy.api as hs

    found = _alike(found)
    first = next(one for one in found if not isinstance(one, FailedFrame))
    maps, errors, measured, images = (
        _together(frames, found, store, name) for name in ("maps", "errors", "measured", "haadf")
    )
    metadata = {key: value for key, value in first.metadata.items() if key != "Fusion"}

    def signal_of(data, axes, metadata=None):
        signal = hs.signals.Signal2D(data, axes=axes, metadata=metadata or {})
        return signal if store is None else signal.as_lazy()

    signal = signal_of(maps, [*frames.axes, *first.axes], metadata)
    signal.set_signal_type("element_maps")
    measured = signal._deepcopy_with_new_data(measured)
    measured.metadata.General.title = str(signal.metadata.General.title).replace("Fused maps", "Element maps", 1)
    signal._inputs = Inputs(measured, signal_of(images, [*frames.axes, *first.axes[1:]]))
    signal._replicates = bootstrap
    if errors is not None:
        signal.set_noise_variance(signal._deepcopy_with_new_data(errors**2))
    diagnostics = _summary(frames, found)
    for key, value in _record(frames, found, diagnostics).items():
        signal.metadata.set_item(f"{FUSED_FRAMES}.{key}", value)
    report_fit(diagnostics)
    return signal


def _together(frames, found, store, name):
    """An array of all frames, NaN for those that have none; None where none has one."""
    arrays = {
        index: getattr(one, name)
        for index, one in zip(frames.indices, found, strict=True)
        if not isinstance(one, FailedFrame) and getattr(one, name) is not None
    }
    if not arrays:
        return None
    first = next(one for one in found if not isinstance(one, FailedFrame))
    sizes = [axis["size"] for axis in (first.axes[1:] if name == "haadf" else first.axes)]
    dtype = np.result_type(*{array.dtype for array in arrays.values()}, np.float32)
    if store is not None:
        return store.lazy(name, (*frames.shape, *sizes), dtype, frozenset(arrays))
    data = np.full((*frames.shape, *sizes), np.nan, dtype)
    for index, array in arrays.items():
        data[index] = array
    return data


def _record(frames, found, diagnostics):
    """``metadata.Fused_frames``: what there is to say about all, and ``metadata.Fusion`` of each frame.

    The numbers of the frames are cut with them. Why frames failed is in the order of their numbers.
    """
    failed = {k: one.sentence for k, one in enumerate(found) if isinstance(one, FailedFrame)}
    return {
        "n_frames": len(found),
        "numbers": np.arange(len(found)),
        "shape": np.array(frames.shape),
        "files": [_file_of(one) for one in found],
        "failed": np.array(list(failed), dtype=int),
        "failures": list(failed.values()),
        "diagnostics": as_metadata(diagnostics),
        **{name_of_frame(k): one.metadata["Fusion"] for k, one in enumerate(found) if k not in failed},
    }


def _file_of(one):
    """The file of a frame as its metadata have it, "" where not known."""
    return "" if isinstance(one, FailedFrame) else str(one.metadata["General"].get("original_filename", ""))


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
        else FailedFrame(f"Its elements are {', '.join(one.metadata['Sample']['elements'])}.")
        for k, one in enumerate(found)
    ]


# ---- in words ------------------------------------------------------------------------------------------


def _summary(frames, found):
    """Diagnostics about all frames."""
    of_each = [
        not_fused(one) if isinstance(one, FailedFrame) else from_metadata(one.metadata["Fusion"]["diagnostics"])
        for one in found
    ]
    return summary_of(of_each, frames.indices, "Frame")


def not_fused(failed):
    """The list of what there is to say of a frame, or tile, that failed."""
    return [Diagnostic(NOT_FUSED, f"not fused, and NaN: {failed.sentence}", SERIOUS)]


def summary_of(of_each, indices, noun):
    """One diagnostic for each kind of finding, and for each reason why frames, or tiles, were not fused.

    ``of_each`` are lists of :class:`Diagnostic` of each frame, or tile, ``indices`` their places in the order of the
    array, and ``noun`` what they are called.
    """
    about: dict = defaultdict(dict)
    elements: dict = defaultdict(dict)
    for k, own in enumerate(of_each):
        for one in own:
            kind = one.code, one.severity, one.sentence if one.code == NOT_FUSED else ""
            about[kind].setdefault(k, str(one))
            elements[kind] |= dict.fromkeys(one.elements)
    in_order = sorted(about.items(), key=lambda item: item[0][0] != NOT_FUSED)
    return [
        Diagnostic(
            kind[0], f"{_which(indices, cases, noun)}: {next(iter(cases.values()))}", kind[1], (*elements[kind],)
        )
        for kind, cases in in_order
    ]


def _which(indices, cases, noun):
    """In words: frames by their indices, and which of them the first sentence is about if others have another one."""
    named = [in_words(indices[k]) for k in cases]
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    words = (
        f"{noun}{'s' * (len(named) > 1)} {', '.join(named[:_MOST_NAMED])}{more} (the last is {in_words(indices[-1])})"
    )
    words = f"All {noun.lower()}s" if len(named) == len(indices) else words
    return words if len(set(cases.values())) == 1 else f"{words}, here {named[0]}"
