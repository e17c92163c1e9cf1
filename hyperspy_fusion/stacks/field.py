"""A field larger than memory: read window by window, its statistics, and a sample of it as one scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.checks import check_choice
from hyperspy_fusion.fusion.haadf.guide import limits_of
from hyperspy_fusion.fusion.solvers.threads import one_blas_thread
from hyperspy_fusion.fusion.terms.haadf_model import ceiling_of
from hyperspy_fusion.grid.axes import check_same_scan, spatial_axes
from hyperspy_fusion.grid.images import check_image, image_signal, nan_pixels
from hyperspy_fusion.grid.masks import mask_array
from hyperspy_fusion.maps.base import SourceMap, SourceMaps
from hyperspy_fusion.maps.stack import added_up, common_axes
from hyperspy_fusion.registration.field import PlacedImage, Registration, placed_image
from hyperspy_fusion.registration.haadf import CALIBRATION, SHIFT
from hyperspy_fusion.stacks.engine import run_tasks, task_of
from hyperspy_fusion.stacks.tiles import Grid

# Pixels of all maps in the sample, and fewest of its blocks; a field of no more is its own sample. A search over these
# takes some 1 GB.
SAMPLE_VALUES, _FEWEST_BLOCKS = 3 * 2**19, 4
# pixels of the image along the border of a block that are left out: those beyond are not beside it in the field
_BORDER = 2
# pixels of the image, at regular places, from which its limits are found
PIXELS_OF_LIMITS = 2**20
# pixels a side of what is read at once
_READ = 2048
# the largest values of an image, which show whether it is saturated
_LARGEST_VALUES = 32


class Window(NamedTuple):
    """Arrays of a rectangle of the field.

    Maps (n, ny, nx), HAADF image (ny, nx), mask (ny, nx) or None, background and variance (n, ny, nx) or None.
    """

    maps: np.ndarray
    haadf: np.ndarray
    mask: np.ndarray | None
    background: np.ndarray | None
    variance: np.ndarray | None

    def part(self, window):
        """A rectangle of it."""
        values: Any = [None if a is None else a[(..., *window)] for a in self]
        return Window(*values)


@dataclass(frozen=True)
class Arrays:
    """The pixels of a field or of a part of it, lazy or not; a part can be sent to other processes.

    The image is an array, or a :class:`~hyperspy_fusion.registration.field.PlacedImage` where it is registered.
    """

    maps: list
    haadf: Any
    mask: Any
    background: list | None
    variance: list | None

    def part(self, window: Sequence[slice]) -> Arrays:
        """A rectangle, not computed."""
        y, x = window
        values: Any = [_through(value, lambda a: a[y, x]) for value in self._values]
        return Arrays(*values)

    def read(self) -> Window:
        """All pixels in memory; those that are no numbers are NaN."""
        from dask.base import compute

        # by this thread alone: a task of a scheduler must not wait for others
        maps, haadf, mask, *others = compute(self._values, scheduler="synchronous")[0]
        background, variance = (None if one is None else np.stack(one) for one in others)
        haadf = haadf.resampled() if isinstance(haadf, PlacedImage) else nan_pixels(haadf)
        return Window(nan_pixels(np.stack(maps)), haadf, mask, background, variance)

    @property
    def _values(self):
        return [self.maps, self.haadf, self.mask, self.background, self.variance]


def _through(value, change):
    if value is None:
        return None
    return [change(one) for one in value] if isinstance(value, list) else change(value)


@dataclass(frozen=True)
class Field:
    """Maps of one scan, lazy or not, with its image.

    Attributes
    ----------
    maps
        A :class:`SourceMap` for each element.
    axes
        Of y and x.
    haadf
        The signal.
    arrays
        All pixels.
    source
        What the maps were read from.
    diagnostics
        About the axes.
    registration
        Of the image; None for one on the pixels of the maps.
    """

    maps: list[SourceMap]
    axes: list[dict]
    haadf: Any
    arrays: Arrays
    source: SourceMaps
    diagnostics: list[Diagnostic]
    registration: Registration | None

    @classmethod
    def of(cls, source: SourceMaps, haadf: Any, mask: Any, register: Any = False) -> Field:
        """Of the maps of a source and an image on the same pixels, or one that is brought there; see `fuse`."""
        check_image(haadf)
        register = register[0] if isinstance(register, list | tuple) and len(register) == 1 else register
        check_choice("register", register, (False, True, CALIBRATION, SHIFT))
        axes, about_maps = common_axes(source.maps)
        maps = added_up(source.maps)
        shape = maps[0].data.shape
        backgrounds, variances = ([getattr(m, name) for m in maps] for name in ("background", "variance"))
        known = next((b for b in backgrounds if b is not None), None)
        nothing = np.broadcast_to(np.float32(0), shape)
        arrays = Arrays(
            maps=[m.data for m in maps],
            haadf=np.broadcast_to(np.float32(0), shape),
            mask=mask_array(mask, axes),
            background=None if known is None else [nothing if b is None else b for b in backgrounds],
            variance=None if any(v is None for v in variances) else variances,
        )

        def read(window):
            found = arrays.part(window).read()
            return found.maps, found.mask

        if register:
            way = SHIFT if register is True else register
            elements, ceiling = [m.element for m in maps], found_ceiling(haadf.data)
            with one_blas_thread:
                image, registration = placed_image(haadf, axes, elements, read, way, ceiling)
        else:
            image, registration = haadf.data, None
            about_maps = [*about_maps, *check_same_scan(axes, spatial_axes(haadf))]
        arrays = replace(arrays, haadf=image)
        return cls(maps, axes, haadf, arrays, source, about_maps, registration)

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels along y and x."""
        return self.maps[0].data.shape

    def outcome(self, overlap: float) -> tuple[dict, list[Diagnostic]]:
        """Metadata of the registration and all diagnostics, for an image that covers this part of the field."""
        if self.registration is None:
            return {}, self.diagnostics
        metadata, found = self.registration.outcome(overlap)
        return {"registration": metadata}, [*self.diagnostics, *found]

    def blocks(self) -> tuple[list[tuple[slice, slice]], int]:
        """Windows that cover the field, of which a sample is taken, and how many of them it has."""
        ny, nx = self.shape
        n_pixels = SAMPLE_VALUES // len(self.maps)
        if ny * nx <= n_pixels:
            return [(slice(0, ny), slice(0, nx))], 1
        number = max(_FEWEST_BLOCKS, len(self.maps))
        number = -(-number // _columns(number)) * _columns(number)
        grid = Grid.of(self.shape, int(np.sqrt(n_pixels / number)), 0)
        return [(y.core, x.core) for y in grid.rows for x in grid.columns], number


# ---- statistics --------------------------------------------------------------------------------------


class Statistics(NamedTuple):
    """Of a window: of each map numbers and sums of valid pixels, lowest and highest value, and of the image.

    ``n_seen`` is the number of its pixels that are no NaN, masked ones too. ``values`` and ``numbers`` are its largest
    values and how often each occurs, ``some`` its pixels at regular places.
    """

    n_valid: np.ndarray
    sums: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    n_seen: np.integer
    values: np.ndarray
    numbers: np.ndarray
    some: np.ndarray


class Box(NamedTuple):
    """Some windows of a field that are read at once: their numbers, what holds them all, and where they lie in it."""

    numbers: list[int]
    window: Sequence[slice]
    inside: list[tuple[slice, ...]]


def boxes_of(windows: Sequence[tuple[slice, slice]]) -> list[Box]:
    """Windows that lie in one square of the field together, for files may have large chunks."""
    together: dict = {}
    for k, (y, x) in enumerate(windows):
        together.setdefault((y.start // _READ, x.start // _READ), []).append(k)
    return [_box(numbers, [windows[k] for k in numbers]) for numbers in together.values()]


def _box(numbers, windows):
    first, last = (np.array([[getattr(s, end) for s in w] for w in windows]) for end in ("start", "stop"))
    corner = first.min(axis=0)
    inside = [tuple(slice(s.start - c, s.stop - c) for s, c in zip(w, corner, strict=True)) for w in windows]
    return Box(numbers, [slice(a, b) for a, b in zip(corner, last.max(axis=0), strict=True)], inside)


def statistics_of(arrays: Arrays, inside: Sequence[tuple[slice, ...]], every: int) -> list[Statistics]:
    """Of windows inside of a part of a field, and of every so many pixels of its image."""
    found = arrays.read()
    return [_statistics(found.part(one), every) for one in inside]


def _statistics(found, every):
    keep = True if found.mask is None else ~found.mask
    valid = np.isfinite(found.maps) & keep
    some = np.where(keep, found.haadf, np.nan)[::every, ::every]
    maps: Any = found.maps.astype(np.float64)
    return Statistics(
        np.count_nonzero(valid, axis=(1, 2)),
        np.sum(maps, axis=(1, 2), where=valid),
        np.min(maps, axis=(1, 2), where=valid, initial=np.inf),
        np.max(maps, axis=(1, 2), where=valid, initial=-np.inf),
        np.isfinite(found.haadf).sum(),
        *_largest(found.haadf),
        some[np.isfinite(some)],
    )


def _largest(image):
    """The largest values of an image, and how often each occurs."""
    values, numbers = np.unique(image[np.isfinite(image)], return_counts=True)
    # copies, for a view keeps all values of the image in memory
    return values[-_LARGEST_VALUES:].copy(), numbers[-_LARGEST_VALUES:].copy()


def _ceiling_of(parts):
    """The ceiling of an image from the largest values of its parts, NaN for none."""
    values, numbers = (np.concatenate(one) for one in zip(*parts, strict=True))
    values, where = np.unique(values, return_inverse=True)
    return float(ceiling_of(values, np.bincount(where, weights=numbers)))


def found_ceiling(image: Any) -> float:
    """The ceiling of a whole image (rows, columns), lazy or not, in one pass over its pixels; NaN for none."""
    grid = Grid.of(image.shape, _READ, 0)
    tasks = [task_of(_read_largest, image[y.core, x.core]) for y in grid.rows for x in grid.columns]
    found: list = [None] * len(tasks)
    if not run_tasks(tasks, found.__setitem__):
        raise KeyboardInterrupt
    return _ceiling_of(found)


def _read_largest(image):
    from dask.base import compute

    return _largest(nan_pixels(compute(image, scheduler="synchronous")[0]))


@dataclass(frozen=True)
class Overview:
    """Statistics of a whole field.

    ``overlap`` is the part of it that the image covers. ``means`` (n,) over valid pixels, ``lowest`` and ``highest``
    (n,), the ``ceiling`` of the image (NaN for none), its ``limits`` as a guide, and the sums (n, blocks) of maps in
    each block.
    """

    n_pixels: int
    overlap: float
    means: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    ceiling: float
    limits: tuple
    sums: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[Statistics], n_pixels: int) -> Overview:
        """Of the statistics of all blocks."""
        sums, n_valid = (np.stack([getattr(p, name) for p in parts], 1) for name in ("sums", "n_valid"))
        some = np.concatenate([p.some for p in parts])
        if not (n_valid.sum(axis=1).all() and some.size):
            raise ValueError("A map or the HAADF image has no valid pixel, all being masked or NaN: correct the mask.")
        return cls(
            n_pixels,
            sum(p.n_seen for p in parts) / n_pixels,
            sums.sum(axis=1) / n_valid.sum(axis=1),
            np.min([p.lowest for p in parts], axis=0),
            np.max([p.highest for p in parts], axis=0),
            _ceiling_of([(p.values, p.numbers) for p in parts]),
            limits_of(some),
            sums,
        )


# ---- the sample --------------------------------------------------------------------------------------


def chosen_blocks(sums: np.ndarray, number: int) -> list[int]:
    """Blocks where the counts are: each map in turn chooses those that hold the middle of its counts.

    ``sums`` (n, blocks) are those of the maps. Blocks are sorted by the counts of a map, and those are taken at which
    the running total passes 1/2, or 1/4 and 3/4, and so on.
    """
    n, found = len(sums), []
    rounds = -(-number // n)
    for k in range(min(number, sums.shape[1])):
        counts = np.maximum(sums[k % n], 0)
        order = np.argsort(counts, kind="stable")
        place = int(np.searchsorted(np.cumsum(counts[order]), (k // n + 0.5) / rounds * counts.sum()))
        near = sorted(range(len(order)), key=lambda j: abs(j - place))
        found.append(next(int(order[j]) for j in near if order[j] not in found))
    return sorted(found)


def _columns(number):
    """Of a rectangle of so many blocks."""
    return int(np.ceil(np.sqrt(number)))


def sample_of(field: Field, windows: Sequence[tuple[slice, slice]]) -> tuple[SourceMaps, Any, np.ndarray | None]:
    """Maps and image of some windows of a field, side by side as one scan, and its mask.

    The image is NaN along the borders of windows, where its blur would mix what is not side by side in the field.
    """
    parts = [field.arrays.part(window).read() for window in windows]
    columns, cell = _columns(len(parts)), np.max([p.haadf.shape for p in parts], axis=0)
    shape = tuple(cell * (-(-len(parts) // columns), columns))

    def mosaic(arrays, beside):
        found = np.full((*arrays[0].shape[:-2], *shape), beside, arrays[0].dtype)
        for k, one in enumerate(arrays):
            y, x = cell * divmod(k, columns)
            found[..., y : y + one.shape[-2], x : x + one.shape[-1]] = one
        return found

    mask = ~mosaic([np.ones(p.haadf.shape, bool) if p.mask is None else ~p.mask for p in parts], False)
    maps = mosaic([p.maps for p in parts], 0)
    haadf = parts[0].haadf if len(parts) == 1 else mosaic([_without_border(p.haadf) for p in parts], np.nan)
    others = [
        None if getattr(parts[0], name) is None else mosaic([getattr(p, name) for p in parts], 0)
        for name in ("background", "variance")
    ]
    axes = [{**axis, "size": size} for axis, size in zip(field.axes, shape, strict=True)]
    of_sample = [
        m._replace(data=maps[i], axes=axes, **dict(zip(("background", "variance"), _of(others, i), strict=True)))
        for i, m in enumerate(field.maps)
    ]
    source = replace(field.source, maps=of_sample, whole=None, out_of_window=None)
    title = str(field.haadf.metadata.General.title)
    return source, image_signal(haadf, axes, title), mask if mask.any() else None


def _without_border(image):
    found = np.full(image.shape, np.nan)
    inner = (slice(_BORDER, -_BORDER),) * 2
    found[inner] = image[inner]
    return found


def _of(stacks, i):
    return [None if one is None else one[i] for one in stacks]
