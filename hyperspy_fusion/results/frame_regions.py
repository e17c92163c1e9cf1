"""Figures of a region in every frame of a fused stack."""

from __future__ import annotations

from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import report, unreported
from hyperspy_fusion.results.composition import PERCENT_UNITS, Percent
from hyperspy_fusion.results.frames import frame_or_none, other_axes
from hyperspy_fusion.results.regions import Measured, Region


class FrameRegions:
    """A region of every frame of a fused stack; made by :meth:`ElementMaps.region` and asked as a :class:`Region`.

    Values and errors are arrays of the shape of the stack: ``value, error = regions.mean("Fe")``. They are NaN for
    frames that were not fused.

    Attributes
    ----------
    frames : numpy.ndarray of object
        The :class:`Region` of each frame, None where there is none.
    diagnostics : list of Diagnostic
        Of all frames, each sentence once.
    """

    def __init__(self, maps: Any, roi: Any = None, *, errors: Any = None, independent: bool | None = None):
        shape = tuple(axis.size for axis in sorted(other_axes(maps), key=lambda axis: axis.index_in_array))
        self.elements, self.frames = maps.elements, np.full(shape, None, object)
        with unreported():
            for index in np.ndindex(shape):
                frame = frame_or_none(maps, tuple(reversed(index)))
                if frame is not None:
                    own_roi = _of_frame(roi, index, shape, len(shape) + 2)
                    own_errors = _of_frame(errors, index, shape, maps.data.ndim)
                    self.frames[index] = Region(frame, own_roi, errors=own_errors, independent=independent)
        self.diagnostics = list(
            dict.fromkeys(d for one in self.frames.flat if one is not None for d in one.diagnostics)
        )
        report(self.diagnostics)

    def __repr__(self):
        fused = [one for one in self.frames.flat if one is not None]
        return f"<Region of {len(fused)} frames, the first {fused[0]!r}>" if fused else "<Region of no frame>"

    def mean(self, element: str) -> Measured:
        """Mean of the map of one element over the region; see :meth:`Region.mean`."""
        return self._of_each(lambda region: region.mean(element))

    def means(self) -> dict:
        """Means of all maps; see :meth:`Region.means`."""
        return {element: self.mean(element) for element in self.elements}

    def ratio(self, element: str, other: str) -> Measured:
        """Mean of one element over that of another; see :meth:`Region.ratio`."""
        return self._of_each(lambda region: region.ratio(element, other))

    def percent(self, method: str, factors: Any = None, *, units: str = "atomic") -> dict:
        """Composition of the region as ``{element: (value, error)}``; see :meth:`Region.percent`."""
        found = {one: one.percent(method, factors, units=units) for one in self.frames.flat if one is not None}
        first = next(iter(found.values()), Percent({}, PERCENT_UNITS[units]))
        values = {element: self._of_each(lambda region: found[region][element]) for element in self.elements}  # noqa: B023
        return Percent(values, first.unit, first.remark)

    def _of_each(self, ask):
        values, errors = (np.full(self.frames.shape, np.nan) for _ in range(2))
        for index, region in np.ndenumerate(self.frames):
            if region is not None:
                values[index], errors[index] = ask(region)
        return Measured(values, errors)


def _of_frame(value, index, shape, ndim):
    """That of one frame where there is one for each: an array or signal of ``ndim`` axes, first those of the stack."""
    data = value.data if hasattr(value, "axes_manager") else value
    is_of_each = getattr(data, "ndim", 0) == ndim and data.shape[: len(shape)] == shape
    return np.asarray(data[index]) if is_of_each else value
