"""Profiles of maps along lines, with errors, by HyperSpy's ``Line2DROI``."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic, report
from hyperspy_fusion.fusion.checks import check_from, default_errstate
from hyperspy_fusion.grid.axes import scan_axes
from hyperspy_fusion.results.regions import beyond, blocks_of, extent_of, rising
from hyperspy_fusion.results.uncertainty import filled_pixels, is_independent, located, pixel_errors

# lengths of a line in diagonals of the maps: far longer ones are in other units, and would fill the memory
_LONGEST = 10


@default_errstate
def line_profile(maps, start, end=None, linewidth=0.0, errors=None, independent=None):
    """Profile of each map along a line; see ``ElementMaps.line_profile``."""
    line = _checked_line(maps, *_line_ends(start, end, linewidth))
    of_fit = _replicates_of(maps) if errors is None and independent is None else None
    independent = is_independent(maps) if independent is None else independent
    errors = pixel_errors(maps, errors)
    bare = maps._deepcopy_with_new_data(np.asarray(maps.data, dtype=float))
    report([*_about_outside(bare, line), *([] if errors is None else _about_filled(maps, line))])
    valid = np.isfinite(bare.data)
    # HyperSpy's mean across the line, of the valid pixels in the image
    share = _along(bare, valid.astype(float), line).data
    profile = _along(bare, np.where(valid, bare.data, 0), line)
    with np.errstate(divide="ignore", invalid="ignore"):
        profile.data = profile.data / share
        variance = None
        if of_fit is not None:
            variance = _variance_across(of_fit, bare, line, valid, share)
        elif errors is not None:
            mean = _along(bare, np.where(valid, errors**2 if independent else errors, 0), line).data / share
            # of independent pixels the variance falls with their number, else all err in one direction
            across = max(round(line[-1] / min(axis["scale"] for axis in rising(scan_axes(maps))[0])), 1)
            variance = mean / (share * across) if independent else mean**2
        if variance is not None:
            noise = profile._deepcopy_with_new_data(variance)
            noise.metadata.General.title = "Variance"
            profile.set_noise_variance(noise)
    profile.metadata.General.title = f"Profile of {maps.metadata.General.title}"
    return profile


def _replicates_of(maps):
    """Errors of maps and their slices of these; None where they are not those of a fit."""
    try:
        return located(maps)
    except ValueError:
        return None


def _variance_across(of_fit, maps, line, valid, share):
    """Variance (n, length) of a profile: of those of the bootstrap replicates, and of the bias that these show.

    Errors of pixels across the line are thereby as much alike as the fit makes them.
    """
    (errors, window), order = of_fit, []
    resampled = errors.bootstrap
    for element in maps.elements:
        order.append(errors.elements.index(element) if element in errors.elements else -1)
    known = np.array(order)[:, None, None] >= 0
    each = []
    for one in resampled.errors:
        data = np.where(known & valid.reshape(len(order), *valid.shape[-2:]), one[(order, *window)], 0)
        each.append(_along(maps, data.reshape(maps.data.shape), line).data / share)
    variance, mean = np.var(each, axis=0, ddof=1), np.mean(each, axis=0)
    scales = resampled.bias_scales[order].reshape(-1, 1)
    bias = np.maximum(mean**2 - variance / len(resampled), 0).reshape(len(order), -1) * scales**2
    found = variance + bias.reshape(variance.shape)
    return np.where(known.reshape((-1,) + (1,) * (found.ndim - 1)), found, np.nan)


def _line_ends(start: Any, end, linewidth):
    """``(x1, y1, x2, y2, linewidth)`` of a line given by its ends (x, y), or by a ``Line2DROI`` as ``start`` alone.

    The width is that of the ROI unless another is given.
    """
    from hyperspy.roi import Line2DROI

    roi = start
    if isinstance(roi, Line2DROI) and end is None:
        return roi.x1, roi.y1, roi.x2, roi.y2, linewidth or roi.linewidth
    if np.shape(start) != (2,) or np.shape(end) != (2,):
        raise TypeError(
            f"The line is given by start={start!r} and end={end!r}: expected a hs.roi.Line2DROI alone, or start and "
            "end as (x, y) in the units of the axes."
        )
    return *start, *end, linewidth


def _checked_line(maps, *line):
    """The line as floats; ValueError for one that cannot lie on the maps, before it is sampled."""
    *ends, width = line
    check_from("linewidth", width, 0)
    if not all(isinstance(value, Real) and np.isfinite(float(value)) for value in ends):
        raise ValueError(f"The line has the ends {tuple(ends)}: give x and y of both as numbers.")
    line = tuple(map(float, line))
    lengths = [axis["scale"] * axis["size"] for axis in rising(scan_axes(maps))[0]]
    length, diagonal = np.hypot(line[2] - line[0], line[3] - line[1]), np.hypot(*lengths)
    if not length:
        raise ValueError(f"The line starts and ends at {line[:2]}: give two points.")
    if length > _LONGEST * diagonal or line[-1] > diagonal:
        raise beyond(_line_in_words(line), maps)
    return line


def _line_in_words(line):
    width = f" of width {line[4]:.4g}" if line[4] else ""
    return f"the line from ({line[0]:.4g}, {line[1]:.4g}) to ({line[2]:.4g}, {line[3]:.4g}){width}"


def _about_outside(maps, line):
    """The diagnostic of a profile that lies beyond the maps in part; ValueError where all of it does."""
    inside = _along(maps, np.ones(maps.data.shape), line).data.reshape(len(maps.elements), -1)[0] > 0
    if not inside.any():
        raise beyond(_line_in_words(line), maps)
    sentence = (
        f"{np.mean(~inside):.0%} of {_line_in_words(line)} lies beyond {extent_of(maps)}: the profile is NaN there."
    )
    return [] if inside.all() else [Diagnostic("profile-beyond-maps", sentence)]


def _about_filled(maps, line):
    """The diagnostic of a profile through blocks of pixels that a fit filled in."""
    filled = filled_pixels(maps)
    if filled is None:
        return []
    crossed = _along(maps, blocks_of(filled).reshape(maps.data.shape).astype(float), line).data > 0
    shares = dict(zip(maps.elements, crossed.reshape(len(maps.elements), -1).mean(axis=1), strict=True))
    shares = {element: share for element, share in shares.items() if share}
    listed = ", ".join(f"{element} {share:.0%}" for element, share in shares.items())
    sentence = (
        f"The line crosses pixels without counts ({listed} of it), which the fit filled in: no error covers what "
        "is wrong there."
    )
    return [Diagnostic("profile-not-measured", sentence, elements=tuple(shares))] if shares else []


def _along(maps, data, line) -> Any:
    """HyperSpy's profile of `data` on the axes of `maps`, a Signal1D ``(n|distance)``."""
    from hyperspy.roi import Line2DROI

    axes, turned = rising(scan_axes(maps))
    signal = maps._deepcopy_with_new_data(data[(..., *turned)])
    for axis, values in zip(signal.axes_manager.signal_axes[::-1], axes, strict=True):
        axis.scale, axis.offset, axis.units = values["scale"], values["offset"], values["units"]
    profile: Any = Line2DROI(*line)(signal, axes=signal.axes_manager.signal_axes)
    profile.set_signal_type("")
    # which HyperSpy has as the length over the number of points
    axis = profile.axes_manager.signal_axes[0]
    axis.scale *= axis.size / max(axis.size - 1, 1)
    profile.metadata.set_item("Sample.elements", maps.elements)
    return profile
