"""Which pixels of maps a mask or a HyperSpy ROI covers, and where a line runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import binary_opening

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.grid.axes import axis_dicts


def blocks_of(pixels):
    """Those of the ``pixels``, (..., ny, nx) bool, in a square of 3 by 3 of them."""
    return binary_opening(pixels, np.ones((1,) * (pixels.ndim - 2) + (3, 3)))


def region_mask(roi, maps):
    """A region as ``(ny, nx)`` bool on the pixels of ``maps``.

    Parameters
    ----------
    roi : array or BaseSignal of bool, or HyperSpy ROI, or None
        True inside; or a ROI that covers an area; None covers all pixels.
    maps : ElementMaps

    Raises
    ------
    ValueError, TypeError
        For a region without a pixel, of another shape, or that is neither.
    """
    y, x = axis_dicts(maps.axes_manager.signal_axes, maps)
    shape = (y["size"], x["size"])
    if roi is None:
        return np.ones(shape, bool)
    is_roi = hasattr(roi, "interactive")
    mask = _roi_mask(roi, maps, (y, x)) if is_roi else np.asarray(getattr(roi, "data", roi))
    if mask.dtype != bool:
        raise TypeError(
            f"The region holds {mask.dtype}: pass an array or signal of bool that another image chose, such as "
            "haadf.data > 30000, or a HyperSpy ROI."
        )
    if mask.shape != shape:
        raise ValueError(f"The region has shape {mask.shape}, expected {shape}, one value for each pixel of the maps.")
    if not mask.any():
        raise ValueError(f"The region holds no pixel of {extent_of(maps)}{': draw it on their axes' * is_roi}.")
    return mask


def about_roi(roi, maps):
    """The diagnostic of a ROI that ends more than a pixel beyond the maps; none for masks."""
    # the last pixels end one after their coordinate
    ends = zip(maps.axes_manager.signal_axes, _bounds(roi) if hasattr(roi, "interactive") else (), strict=False)
    if not any(
        low < axis.low_value - 1.001 * abs(axis.scale) or high > axis.high_value + 1.001 * abs(axis.scale)
        for axis, (low, high) in ends
    ):
        return []
    sentence = f"{roi!r} reaches beyond {extent_of(maps)}: only the pixels of the maps in it are taken."
    return [Diagnostic("roi-beyond-maps", sentence)]


def line_ends(start: Any, end: Any, linewidth: float):
    """``(x1, y1, x2, y2, linewidth)`` of a line given by its ends (x, y), or by a ``Line2DROI`` as ``start`` alone.

    The width is that of the ROI unless another is given. TypeError for what is no line.
    """
    from hyperspy.roi import Line2DROI

    roi = start
    if isinstance(roi, Line2DROI) and end is None:
        return roi.x1, roi.y1, roi.x2, roi.y2, float(linewidth or roi.linewidth)
    if np.shape(start) != (2,) or np.shape(end) != (2,):
        raise TypeError(
            f"The line is given by start={start!r} and end={end!r}: expected a hs.roi.Line2DROI alone, or start and "
            "end as (x, y) in the units of the axes."
        )
    return *map(float, start), *map(float, end), float(linewidth)


def extent_of(maps):
    """Where maps are, for messages."""
    x, y = (f"{a.low_value:.4g} to {a.high_value:.4g} {a.units}" for a in maps.axes_manager.signal_axes)
    return f"the maps, which are from x = {x} and y = {y}"


def _bounds(roi):
    """(low, high) of x and of y of a ROI that covers an area; nothing of a polygon without corners."""
    if hasattr(roi, "vertices"):
        return [(min(values), max(values)) for values in zip(*roi.vertices, strict=True)]
    if hasattr(roi, "cx"):
        return [(center - roi.r, center + roi.r) for center in (roi.cx, roi.cy)]
    return [(roi.left, roi.right), (roi.top, roi.bottom)]


def _roi_mask(roi, maps, axes):
    """Which pixels a ROI cuts out: those whose numbers are left in an image of their numbers."""
    from hyperspy.roi import BasePointROI, Line2DROI
    from hyperspy.signals import Signal2D

    if isinstance(roi, BasePointROI | Line2DROI) or roi.ndim != 2:
        raise TypeError(f"{roi!r} covers no area: pass a RectangularROI, CircleROI or PolygonROI, or a mask.")
    shape = tuple(axis["size"] for axis in axes)
    numbers = Signal2D(np.arange(np.prod(shape), dtype=float).reshape(shape), axes=list(axes))
    try:
        inside = np.asarray(roi(numbers).data).ravel()
    except ValueError as error:
        raise ValueError(f"{roi!r} does not lie on {extent_of(maps)}: give it in the units of the axes.") from error
    mask = np.zeros(shape, bool)
    mask.ravel()[inside[np.isfinite(inside)].astype(int)] = True
    return mask
