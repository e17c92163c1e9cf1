"""Regions and lines of maps: masks, points and HyperSpy ROIs."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_opening

from hyperspy_fusion.grid.axes import axis_dicts, warn

# what a warning says of pixels that were masked or NaN
UNCHECKED = (
    "no counts check the map there, which was filled in from around it, and what is wrong with that is in no error"
)

# pixels of a square that makes masked ones a block: in its middle nothing is known from next to it
_BLOCK = (3, 3)


def blocks_of(pixels):
    """Those of the ``pixels``, (ny, nx) bool, that are part of a square of 3 by 3 of them."""
    return binary_opening(pixels, np.ones(_BLOCK))


def region_mask(region, maps):
    """A region as ``(ny, nx)`` bool on the pixels of ``maps``.

    Parameters
    ----------
    region : array or BaseSignal of bool, or HyperSpy ROI
        True inside; or a ROI that covers an area.
    maps : ElementMaps
        On whose axes.

    Raises
    ------
    ValueError, TypeError
        For a region without a pixel, of another shape, or that is neither.
    """
    y, x = axis_dicts(maps.axes_manager.signal_axes, maps)
    shape = (y["size"], x["size"])
    is_roi = hasattr(region, "interactive")
    mask = _roi_mask(region, maps, (y, x)) if is_roi else np.asarray(getattr(region, "data", region))
    if mask.dtype != bool:
        raise TypeError(
            f"The region holds {mask.dtype}: pass an array or signal of bool that another image chose, such as "
            "haadf.data > 30000, or a HyperSpy ROI."
        )
    if mask.shape != shape:
        raise ValueError(f"The region has shape {mask.shape}, expected {shape}, one value for each pixel of the maps.")
    if not mask.any():
        raise ValueError(f"The region holds no pixel of {extent_of(maps)}{': draw it on their axes' * is_roi}.")
    if is_roi and _is_beyond(region, maps):
        warn(f"{region!r} reaches beyond {extent_of(maps)}: only the pixels of the maps in it are taken.")
    return mask


def line_ends(start, end, linewidth):
    """``(start, end, linewidth)`` of a line given by its ends (x, y), or by a ``Line2DROI`` as ``start`` alone.

    The width is that of the ROI unless another is given. TypeError for what is no line.
    """
    from hyperspy.roi import Line2DROI

    if isinstance(start, Line2DROI) and end is None:
        return (start.x1, start.y1), (start.x2, start.y2), linewidth or start.linewidth
    if np.shape(start) != (2,) or np.shape(end) != (2,):
        raise TypeError(
            f"The line is given by start={start!r} and end={end!r}: expected a hs.roi.Line2DROI alone, or start and "
            "end as (x, y) in the units of the axes."
        )
    return start, end, linewidth


def extent_of(maps):
    """Where maps are, for messages."""
    x, y = (f"{a.low_value:.4g} to {a.high_value:.4g} {a.units}" for a in maps.axes_manager.signal_axes)
    return f"the maps, which are from x = {x} and y = {y}"


def _is_beyond(roi, maps):
    """Whether a ROI ends more than a pixel beyond the maps; the last pixels end one after their coordinate."""
    return any(
        low < axis.low_value - 1.001 * abs(axis.scale) or high > axis.high_value + 1.001 * abs(axis.scale)
        for axis, (low, high) in zip(maps.axes_manager.signal_axes, _bounds(roi), strict=False)
    )


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
