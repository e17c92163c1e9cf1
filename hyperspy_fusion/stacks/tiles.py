"""Overlapping tiles of a field: where they lie, how they are blended, and their maps on disk.

Along each axis tiles have cores that cover the field once. A tile is fitted with a halo about its core, and kept up to
half of the halo beyond the core, where its weight falls linearly to 0 and that of the next tile rises to 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperspy_fusion.stacks.result import Folder, load_array


@dataclass(frozen=True)
class Span:
    """A tile along one axis of a field of ``size`` pixels: its core from ``start`` to ``stop``.

    ``halo`` pixels beyond it are fitted, and ``blend`` kept.
    """

    start: int
    stop: int
    size: int
    halo: int
    blend: int

    @property
    def core(self) -> slice:
        """Pixels of the field that belong to no other tile."""
        return slice(self.start, self.stop)

    @property
    def fitted(self) -> slice:
        """Those that are fitted."""
        return self._wider(self.halo)

    @property
    def kept(self) -> slice:
        """Those that have a weight."""
        return self._wider(self.blend)

    def _wider(self, by):
        return slice(max(self.start - by, 0), min(self.stop + by, self.size))

    def weights(self, window: slice) -> np.ndarray:
        """Of the pixels of a window; those of all tiles add up to 1."""
        at, width = np.arange(window.start, window.stop) + 0.5, max(2 * self.blend, 1e-9)
        rise = np.clip((at - self.start + self.blend) / width, 0, 1) if self.start else np.ones(at.size)
        fall = np.clip((self.stop + self.blend - at) / width, 0, 1) if self.stop < self.size else np.ones(at.size)
        return rise * fall


@dataclass(frozen=True)
class Grid:
    """The tiles of a field: spans along y and along x."""

    rows: list[Span]
    columns: list[Span]

    @classmethod
    def of(cls, shape: tuple[int, int], tile_size: int, halo: int) -> Grid:
        """Tiles as alike as can be, of at most `tile_size` pixels a side without the halo."""
        number = [-(-size // tile_size) for size in shape]
        blend = min(halo, *(size // n for size, n in zip(shape, number, strict=True))) // 2
        return cls(*(_spans(size, n, halo, blend) for size, n in zip(shape, number, strict=True)))

    @property
    def indices(self) -> list[tuple[int, int]]:
        """Of all tiles, row by row."""
        return list(itertools.product(range(len(self.rows)), range(len(self.columns))))

    def __getitem__(self, index: tuple[int, int]) -> tuple[Span, Span]:
        return self.rows[index[0]], self.columns[index[1]]

    def around(self, index: tuple[int, int]) -> list[tuple[int, int]]:
        """A tile and those beside it."""
        y, x = (range(max(i - 1, 0), min(i + 2, n)) for i, n in zip(index, self.shape, strict=True))
        return list(itertools.product(y, x))

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of tiles along y and x."""
        return len(self.rows), len(self.columns)

    @property
    def field(self) -> tuple[int, int]:
        """Pixels of the field along y and x."""
        return self.rows[-1].stop, self.columns[-1].stop


def _spans(size, number, halo, blend):
    bounds = [round(size * k / number) for k in range(number + 1)]
    return [Span(start, stop, size, halo, blend) for start, stop in itertools.pairwise(bounds)]


def weights_of(spans: Sequence[Span], windows: Sequence[slice]) -> np.ndarray:
    """(ny, nx) weights of a tile in a window of the field."""
    return np.multiply.outer(*(span.weights(window) for span, window in zip(spans, windows, strict=True)))


class TileStore:
    """The kept maps and errors of the tiles on disk, in a folder that is deleted with the last signal that reads it."""

    def __init__(self, grid: Grid):
        self.folder, self.grid = Folder(), grid

    def paths(self, index: tuple[int, int]) -> dict[str, str]:
        """Of the files of a tile, by name."""
        return {name: _path(self.folder, name, index) for name in ("maps", "errors")}

    def lazy(self, name: str, done: set, factors: np.ndarray, dtype: Any) -> Any:
        """(n, ny, nx) blended maps of a name times factors (n,), as a dask array with a chunk for each core.

        NaN where no tile that is done has a weight, and in the core of one that is not.
        """
        import dask.array as da

        grid, folder = self.grid, self.folder

        def chunk(block_info: Any = None):
            return blended(folder, name, grid, block_info[None]["chunk-location"][1:], done, factors).astype(dtype)

        chunks = ((len(factors),), *(tuple(s.stop - s.start for s in spans) for spans in (grid.rows, grid.columns)))
        return da.map_blocks(chunk, chunks=chunks, dtype=dtype, meta=np.empty((0, 0, 0), dtype))


def _path(folder, name, index):
    return f"{folder}/{name}_{index[0]}_{index[1]}.npy"


def blended(folder, name, grid, index, done, factors):
    """The core of a tile: the weighted mean of all tiles that reach into it."""
    y, x = grid[index]
    total = np.zeros((len(factors), y.stop - y.start, x.stop - x.start))
    weights = np.zeros(total.shape[1:])
    for other in grid.around(index) if index in done else []:
        spans = grid[other]
        windows = [_common(a.core, b.kept) for a, b in zip((y, x), spans, strict=True)]
        if other not in done or any(w.start >= w.stop for w in windows):
            continue
        here = tuple(slice(w.start - s.start, w.stop - s.start) for w, s in zip(windows, (y, x), strict=True))
        there = tuple(slice(w.start - s.kept.start, w.stop - s.kept.start) for w, s in zip(windows, spans, strict=True))
        weight = weights_of(spans, windows)
        total[(slice(None), *here)] += weight * load_array(_path(folder, name, other), "r")[(slice(None), *there)]
        weights[here] += weight
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(weights > 0, total / weights, np.nan) * factors[:, None, None]


def _common(a, b):
    return slice(max(a.start, b.start), min(a.stop, b.stop))
