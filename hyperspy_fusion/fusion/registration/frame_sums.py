"""The sum of the frames of one scan: counts on whole pixels, and the mean of their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.registration.resampling import LEAST_COVERAGE, Placement, coverage, filled, resampled


@dataclass(frozen=True)
class CommonField:
    """The pixels that all frames in use have, and by how many each frame is moved.

    Attributes
    ----------
    offsets
        (t, 2) whole pixels: pixel ``q`` of the first frame is pixel ``q + offsets[t]`` of frame t. 0 where not used.
    exact
        (t, 2) the same not rounded, with the mean of the offsets: for images, which may be interpolated.
    start, stop
        (2,) first pixel and the one after the last along y and x, of the first frame in use.
    used
        (n,) numbers of the frames.
    """

    offsets: np.ndarray
    exact: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    used: np.ndarray

    @classmethod
    def of(cls, drift, shape):
        """That of a `Drift`."""
        shifts = drift.shifts[drift.used]
        whole = np.rint(shifts)
        offsets, exact = np.zeros_like(drift.shifts, dtype=int), np.zeros_like(drift.shifts)
        offsets[drift.used] = whole
        exact[drift.used] = shifts - np.mean(shifts - whole, axis=0)
        start, stop = -whole.min(axis=0).astype(int), (np.array(shape) - whole.max(axis=0)).astype(int)
        return cls(offsets, exact, start, stop, drift.used)

    @property
    def shape(self):
        """(ny, nx), 0 or less where the frames share nothing."""
        return tuple(int(n) for n in self.stop - self.start)


def aligned_sum(frames: np.ndarray, offsets: Sequence, start: Any, shape: Any, dtype: Any) -> np.ndarray:
    """Sum of frames (t, y, x, ...) over a field of ``shape`` from ``start``, frame t moved by ``offsets[t]``.

    Whole pixels are moved, so that counts stay counts. None as an offset leaves a frame out.
    """
    total = np.zeros((*shape, *frames.shape[3:]), dtype)
    for frame, offset in zip(frames, offsets, strict=True):
        if offset is not None:
            y, x = (slice(int(a + b), int(a + b + n)) for a, b, n in zip(start, offset, shape, strict=True))
            np.add(total, frame[y, x], out=total, casting="unsafe")
    return total


def aligned_lazy_sum(frames: Any, offsets: Sequence, start: Any, shape: Any, dtype: Any) -> Any:
    """As `aligned_sum`, of a dask array: each chunk is read once, and its sum reaches into the chunks around it."""
    import dask.array as da

    margin = [int(m) for m in np.abs([offset for offset in offsets if offset is not None]).max(axis=0)]
    least = {1 + i: 2 * m for i, m in enumerate(margin) if min(frames.chunks[1 + i][1:-1], default=2 * m) < 2 * m}
    frames, parts, first = frames.rechunk(least), [], 0
    sizes = frames.chunks[1:3]
    padded = [tuple(n + 2 * m for n in own) for own, m in zip(sizes, margin, strict=True)]
    options = {"drop_axis": 0, "chunks": (*padded, *frames.chunks[3:]), "dtype": dtype}
    options["meta"] = np.empty((0,) * (frames.ndim - 1), dtype)
    for n in frames.chunks[0]:
        own = offsets[first : first + n]
        if any(offset is not None for offset in own):
            parts.append(da.map_blocks(_padded_sum, frames[first : first + n], own, margin, dtype, **options))
        first += n
    total = reduce(add, parts)
    for axis in (0, 1):
        total = _overlap_added(total, sizes[axis], margin[axis], axis)
    y, x = (slice(int(a), int(a) + n) for a, n in zip(start, shape, strict=True))
    return total[y, x]


def _padded_sum(block, offsets, margin, sum_dtype):
    """Sum of the frames of a chunk (t, y, x, ...), moved by their offsets, with a margin of (y, x) pixels around it."""
    ny, nx = block.shape[1:3]
    total = np.zeros((ny + 2 * margin[0], nx + 2 * margin[1], *block.shape[3:]), sum_dtype)
    for frame, offset in zip(block, offsets, strict=True):
        if offset is not None:
            y, x = (m - by for m, by in zip(margin, offset, strict=True))
            part = total[y : y + ny, x : x + nx]
            np.add(part, frame, out=part, casting="unsafe")
    return total


def _overlap_added(padded, sizes, margin, axis):
    """Chunks of `sizes` with a margin at both ends along an axis, added up where they overlap."""
    import dask.array as da

    def empty(n):
        chunks = (*padded.chunks[:axis], (n,), *padded.chunks[axis + 1 :])
        return da.zeros(tuple(map(sum, chunks)), chunks=chunks, dtype=padded.dtype)

    everything = (slice(None),) * axis
    if margin and len(sizes) > 1:
        firsts, canvases = np.cumsum([0, *sizes]).tolist(), []
        for parity in (0, 1):  # every second chunk: those do not overlap
            pieces, end = [], 0
            for i in range(parity, len(sizes), 2):
                pieces += [empty(firsts[i] - end)] if firsts[i] > end else []
                pieces.append(padded.blocks[(*everything, i)])
                end = firsts[i + 1] + 2 * margin
            pieces += [empty(firsts[-1] + 2 * margin - end)] if firsts[-1] + 2 * margin > end else []
            canvases.append(da.concatenate(pieces, axis))
        padded = canvases[0] + canvases[1]
    return padded[(*everything, slice(margin, margin + sum(sizes)))].rechunk({axis: tuple(sizes)})


def sparse_frames(frames: Any) -> Any:
    """The sparse array of events (COO) that a dask array takes its chunks from, None where there is none.

    So readers of Velox and JEOL files give lazy spectra, of which nearly all channels of a frame are empty.
    """
    layers = list(frames.dask.layers.values())
    for layer in layers if len(layers) <= 2 else ():
        source: Any = next(iter(layer.values())) if len(layer) == 1 else None
        source = getattr(source, "value", source)
        if hasattr(source, "coords") and source.shape == frames.shape and not source.fill_value:
            return source
    return None


def sparse_totals(events: Any) -> np.ndarray:
    """Counts (t, y, x) of sparse frames (t, y, x, ...)."""
    places = np.ravel_multi_index(tuple(events.coords[:3].astype(int)), events.shape[:3])
    return np.bincount(places, events.data, np.prod(events.shape[:3])).reshape(events.shape[:3]).astype(np.int64)


def aligned_sparse_sum(events: Any, offsets: Sequence, start: Any, shape: Any, dtype: Any) -> Any:
    """As `aligned_sum`, of sparse frames as a dask array: every event is moved. Chunks are dense when they are read."""
    import dask.array as da

    frame, *coords = events.coords.astype(int)
    is_used = np.array([offset is not None for offset in offsets])
    moves = np.array([(0, 0) if offset is None else offset for offset in offsets]) + np.asarray(start)
    for axis in (0, 1):
        coords[axis] = coords[axis] - moves[frame, axis]
    inside = is_used[frame] & np.all([(0 <= at) & (at < n) for at, n in zip(coords, shape, strict=False)], axis=0)
    moved = np.stack([at[inside] for at in coords])
    total = type(events)(moved, events.data[inside].astype(dtype), shape=(*shape, *events.shape[3:]))
    chunks = da.from_array(total, chunks="auto", asarray=False)
    return chunks.map_blocks(_dense, dtype=dtype, meta=np.empty((0,) * total.ndim, dtype))


def _dense(block):
    """A block as an ordinary array: that of a single chunk is sparse still."""
    return block.todense() if hasattr(block, "todense") else block


def aligned_mean(images: np.ndarray, ceilings: Sequence, field: CommonField) -> np.ndarray:
    """Mean (ny, nx) of the images (t, ny, nx) of frames over their common field, interpolated where they lie between.

    float32. ``ceilings`` are (ny, nx) for each image, True where it is saturated: such pixels keep the largest value.
    NaN is where all frames are missing.
    """
    total, number = np.zeros(field.shape), np.zeros(field.shape)
    is_ceiling, highest = np.zeros(field.shape, dtype=bool), -np.inf
    for t in field.used:
        image, valid = images[t], np.isfinite(images[t])
        places = [Placement(n, 1.0, -at) for n, at in zip(image.shape, field.exact[t] + field.start, strict=True)]
        moved = resampled(filled(np.asarray(image, float), valid), places, field.shape)
        covered = np.isfinite(moved) & (True if valid.all() else coverage(valid, places, field.shape) >= LEAST_COVERAGE)
        total[covered] += moved[covered]
        number += covered
        if (ceiling := ceilings[t]).any():
            is_ceiling |= coverage(ceiling, places, field.shape) > 1 - LEAST_COVERAGE
            highest = max(highest, image[ceiling].max())
    mean = np.divide(total, number, out=np.full(field.shape, np.nan), where=number > 0)
    return np.where(is_ceiling, highest, mean).astype(np.float32)
