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
        """That of a `Drift`. Offsets are rounded so that they are nearest to the drift."""
        shifts = drift.shifts[drift.used]
        added = np.linspace(-0.5, 0.5, 21)[:, None, None]
        # for y and x alone: the rounding that moves frames least
        dispersion = np.var(shifts - np.rint(shifts + added), axis=1)
        whole = np.rint(shifts + added[dispersion.argmin(axis=0), 0, [0]])
        whole = whole - whole[:1]
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
    """As `aligned_sum`, of a dask array. A chunk is read once, with the pixels around it that are moved into it."""
    import dask.array as da

    margin = np.abs([offset for offset in offsets if offset is not None]).max(axis=0)
    depth = {0: 0, 1: int(margin[0]), 2: int(margin[1])} | dict.fromkeys(range(3, frames.ndim), 0)
    parts, first = [], 0
    for n in frames.chunks[0]:
        own = offsets[first : first + n]
        if any(offset is not None for offset in own):
            part = da.overlap.overlap(frames[first : first + n], depth=depth, boundary={1: 0, 2: 0})
            chunks = tuple(tuple(size - 2 * depth[i] for size in part.chunks[i]) for i in range(1, frames.ndim))
            options = {
                "drop_axis": 0,
                "chunks": chunks,
                "dtype": dtype,
                "meta": np.empty((0,) * (frames.ndim - 1), dtype),
            }
            parts.append(da.map_blocks(_sum_of_block, part, own, margin, dtype, **options))
        first += n
    y, x = (slice(int(a), int(a) + n) for a, n in zip(start, shape, strict=True))
    return reduce(add, parts)[y, x]


def _sum_of_block(block, offsets, margin, sum_dtype):
    """Sum of the frames of a chunk (t, y, x, ...) without its margin of (y, x) pixels."""
    shape = [size - 2 * int(m) for size, m in zip(block.shape[1:3], margin, strict=True)]
    return aligned_sum(block, offsets, margin, shape, sum_dtype)


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
