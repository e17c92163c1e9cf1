"""A HAADF image on the pixels of maps that are larger than memory: its shift from windows, and any part of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.registration.resampling import LEAST_COVERAGE, Placement
from hyperspy_fusion.fusion.registration.shift import Shift
from hyperspy_fusion.grid.axes import placements, spatial_axes
from hyperspy_fusion.grid.images import nan_pixels
from hyperspy_fusion.registration.haadf import SHIFT, ImageSource, found_shift, outcome

# pixels a side of a window in which a shift is measured, of the image where these are finer, and part of it by which
# the image may be shifted
_WINDOW, _REACH = 1024, 1 / 4
# middles of windows, in parts of the field
_PLACES = [(1 / 2, 1 / 2), (1 / 4, 1 / 4), (1 / 4, 3 / 4), (3 / 4, 1 / 4), (3 / 4, 3 / 4)]
# pixels of an image beyond those of a part: interpolation weakens to 1e-8 over as many
_BEYOND = 16
# pixels of the image that are resampled at once
_AT_ONCE = 2**22
# pixels by which the shifts of two windows may differ, and standard errors of the difference
_ALIKE, _SURE = 1.0, 4.0


@dataclass(frozen=True)
class PlacedImage:
    """An image (rows, columns), lazy or not, whose pixels lie at ``placed`` (y, x) on those of maps of ``shape``.

    ``ceiling`` is the value of its saturated pixels, also in a part that has few of them; NaN for none.
    """

    image: Any
    placed: Sequence[Placement]
    shape: tuple[int, ...]
    ceiling: float = np.nan

    def __getitem__(self, window: Sequence[slice]) -> PlacedImage:
        """The same for a window of the maps, not computed."""
        return self.part(window)

    def part(self, window: Sequence[slice], margin: int = 0) -> PlacedImage:
        """The same for a window, with the image that lies up to ``margin`` pixels of the maps beyond it."""
        cut, placed = [], []
        for own, p in zip(window, self.placed, strict=True):
            ends = np.array([own.start - margin, own.stop + margin]) - p.start
            first, last = np.clip(ends / p.step + (-_BEYOND, _BEYOND), 0, p.size).astype(int)
            cut.append(slice(first, last))
            placed.append(Placement(int(last - first), p.step, p.start + first * p.step - own.start))
        return replace(self, image=self.image[tuple(cut)], placed=placed, shape=tuple(s.stop - s.start for s in window))

    def moved(self, shift: np.ndarray) -> PlacedImage:
        """The same, moved by a shift (2,) in pixels of the maps."""
        return replace(self, placed=[p.moved(by) for p, by in zip(self.placed, shift, strict=True)])

    def in_memory(self) -> PlacedImage:
        """The same, computed by this thread."""
        from dask.base import compute

        return compute(self, scheduler="synchronous")[0]

    def resampled(self) -> np.ndarray:
        """The image, which is in memory, on the pixels of the maps as by :func:`~.haadf.match_haadf`."""
        ny, nx = self.shape
        n_rows = max(1, int(_AT_ONCE / max(self.image.size / ny, 1)))
        starts = range(0, ny, n_rows)
        return np.concatenate([self[slice(y, min(y + n_rows, ny)), slice(0, nx)]._of_strip() for y in starts])

    def _of_strip(self):
        source = self.source()
        return np.full(self.shape, np.nan) if source is None else source.final(np.zeros(2), False)

    def source(self) -> ImageSource | None:
        """The image, to be sampled at any shift; None where it has no pixel that is a number."""
        image = nan_pixels(np.asarray(self.image))
        image = image if image.dtype.isnative else image.astype(image.dtype.newbyteorder("="))
        if not np.isfinite(image).any():
            return None
        return ImageSource(image, self.placed, self.shape, self.ceiling)

    @property
    def overlap(self) -> float:
        """Part of the pixels of the maps that the image reaches, whether it has values there or not."""
        y, x = (np.diff(p.edges(n)) * p.step for p, n in zip(self.placed, self.shape, strict=True))
        least = np.divide(LEAST_COVERAGE, y, out=np.full(y.size, np.inf), where=y > 0)
        return float(np.sum(x.size - np.searchsorted(np.sort(x), least)) / (y.size * x.size))


@dataclass(frozen=True)
class Registration:
    """How an image (the signal ``haadf``) came to maps with ``axes``: placed by those, and moved by ``found`` or None.

    ``about_windows`` are diagnostics of the windows in which the shift was measured.
    """

    axes: Sequence[dict]
    haadf: Any
    placed: Sequence[Placement]
    found: Shift | None
    about_windows: list[Diagnostic]

    def outcome(self, overlap: float) -> tuple[dict, list[Diagnostic]]:
        """Metadata and diagnostics for an image that covers this part of the maps; ValueError where it is 0."""
        about, diagnostics = outcome(self.axes, self.haadf, self.placed, self.found, overlap)
        return {**about, "haadf_pixel": np.array([p.step for p in self.placed])}, [*diagnostics, *self.about_windows]


def placed_image(
    haadf: Any, axes: Sequence[dict], elements: Sequence[str], read: Callable, register: str, ceiling: float = np.nan
) -> tuple[PlacedImage, Registration]:
    """A HAADF image on maps that are larger than memory, and how it came there.

    Parameters
    ----------
    haadf
        The signal, lazy or not.
    axes
        Of y and x of the maps.
    elements
        n symbols.
    read
        A function of a window, two slices. It returns maps (n, ny, nx), and a mask (ny, nx) or None.
    register : {"shift", "calibration"}
        As for :func:`~.haadf.match_haadf`.
    ceiling
        Value of the saturated pixels of the image; NaN for none.

    Raises
    ------
    ValueError
        As of :func:`~.haadf.match_haadf`.
    """
    placed = placements(axes, spatial_axes(haadf))
    image = PlacedImage(haadf.data, placed, tuple(axis["size"] for axis in axes), ceiling)
    found, about_windows = _shift_of_windows(image, elements, read) if register == SHIFT else (None, [])
    image = image if found is None else image.moved(found.shift)
    registration = Registration(axes, haadf, placed, found, about_windows)
    if not image.overlap:  # before all pixels are read
        registration.outcome(0.0)
    return image, registration


def _shift_of_windows(image, elements, read) -> tuple[Shift, list[Diagnostic]]:
    """The shift of the window with the most evidence, and a diagnostic where others have another one."""
    side = int(_WINDOW * min(1, *(p.step for p in image.placed)))
    found, failures = [], []
    for window in _windows(image.shape, side):
        source = image.part(window, int(side * _REACH)).in_memory().source()
        if source is None:
            continue
        maps, mask = read(window)
        try:
            found.append(found_shift(source, elements, maps, mask))
        except ValueError as error:
            failures.append(error)
    if not found:
        raise (
            failures[0]
            if failures
            else ValueError(
                "The HAADF image has no pixel that is a number where the maps are: pass that of the scan, or correct "
                "the offset of one (`axes_manager[...].offset`)."
            )
        )
    best = max(found, key=lambda one: (-len(one.undetermined), one.evidence))
    sure = [one for one in found if not len(one.undetermined) and not one.is_ambiguous]
    apart = max((_apart(a, b) for a, b in itertools.combinations(sure, 2)), default=0.0)
    sentence = (
        f"The shift of the HAADF image differs by {apart:.1f} pixels between parts of the field, and one was taken for "
        "all: correct the scale of one, or the distortion of the scan."
    )
    return best, [Diagnostic("shift-differs", sentence)] if apart > _ALIKE else []


def _apart(a, b):
    """Pixels between two shifts; 0 where their errors explain it."""
    difference = a.shift - b.shift
    return float(np.hypot(*difference)) if np.any(np.abs(difference) > _SURE * np.hypot(a.error, b.error)) else 0.0


def _windows(shape, side):
    """Some windows of a field, or all of it where it has no more pixels than one."""
    if np.prod(shape) <= side**2:
        return [tuple(slice(0, n) for n in shape)]
    return [tuple(_around(part, n, side) for part, n in zip(place, shape, strict=True)) for place in _PLACES]


def _around(part, size, side):
    start = max(min(int(part * size - side / 2), size - side), 0)
    return slice(start, min(start + side, size))
