"""Background counts under the X-ray lines of an EDS spectrum image."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.spectra.background import smoothed_counts
from hyperspy_fusion.grid.axes import layout
from hyperspy_fusion.identify.elements import by_element, listed
from hyperspy_fusion.maps.base import SourceRequest, refuse_unfitted
from hyperspy_fusion.maps.eds_lines import LineCounts, line_counts, window_sums
from hyperspy_fusion.maps.eds_windows import line_windows, lines_beside, n_channels

_logger = logging.getLogger(__name__)

# distance of exspy's windows from their line, in units of its FWHM
_DISTANCE = 2.0
# how much higher the continuum may be on one side of a line than on the other
STEEPEST = 2.0

_ALLOWED = (
    "expected 'windows', energies of windows as estimate_background_windows gives them, a fitted EDS model, or a "
    "spectrum image of expected background counts."
)


def counts_over_background(signal: Any, request: SourceRequest) -> LineCounts:
    """Counts of X-ray lines, and those among them that are expected of the background; see `element_maps`."""
    found = line_counts(signal, request)
    background: Any = request.background
    # a model is a list of components
    is_model = hasattr(background, "background_components")
    if not is_model and isinstance(background, str | list | tuple | np.ndarray):
        return _from_windows(signal, found, background, request.integration_windows)
    if is_model:
        refuse_unfitted(background, [p for c in background.background_components for p in c.free_parameters])
        background = background.as_signal(component_list=background.background_components, show_progressbar=False)
    if layout(background) != "spectra":
        raise TypeError(f"background is {background!r}: {_ALLOWED}")
    if background.data.shape != signal.data.shape:
        raise ValueError(
            f"background has shape {background.data.shape} and the spectra {signal.data.shape}: give a background for "
            "each channel of each spectrum."
        )
    windows = [line_windows(signal, names, request.integration_windows) for names in found.lines.values()]
    return _in_memory(found, window_sums(background, windows))


def _in_memory(found, background):
    """All counts, their sum over the pixels, and the background, not below 0, in one pass over lazy spectra."""
    from dask.base import compute

    found, background = compute(found, background)
    return found._replace(background=np.maximum(background, 0).astype(np.float32))


def _from_windows(signal, found, background, width):
    lines = found.lines
    names = [name for own in lines.values() for name in own]
    sides = _sides(signal, names, background, width)
    measured = list(dict.fromkeys(side for own in sides.values() for side in own))
    found = _in_memory(found, window_sums(signal, [[side] for side in measured]))
    per_channel = {side: found.background[..., i] / n_channels([side]) for i, side in enumerate(measured)}
    diagnostics = list(found.diagnostics)
    if isinstance(background, str):
        sides, about = _clean_sides(sides, lines_beside(signal, found.spectrum, measured, lines), per_channel)
        diagnostics += about
    diagnostics += _about_high(signal, lines, found.counts, sides, per_channel, width)
    _logger.info("Channels of the background: %s", sides)
    expected = _expected(sides, per_channel)
    under = [sum(_under(signal, own, name, expected, width) for name in own) for own in lines.values()]
    return found._replace(background=np.stack(under, axis=-1).astype(np.float32), diagnostics=diagnostics)


def _sides(signal, names, background, width):
    """Dict of the channel ranges beside each line: exspy's, or those of the given windows, within the spectra.

    Where the window of a line reaches into exspy's, these begin where it ends.
    """
    if isinstance(background, str):
        if background != "windows":
            raise ValueError(f"background is {background!r}: {_ALLOWED}")
        distance = max(_DISTANCE, width / 2)
        windows = signal.estimate_background_windows(line_width=[distance, distance], xray_lines=names)
    else:
        windows = np.asarray(background, dtype=float)
        if windows.shape != (len(names), 4):
            raise ValueError(
                f"background has shape {windows.shape}: windows need a row of four energies for each of the lines "
                f"{', '.join(names)}, as estimate_background_windows(xray_lines=[...]) gives them."
            )
    axis, sides = signal.axes_manager.signal_axes[0], {}
    for name, row in zip(names, windows, strict=True):
        limits = np.clip(row, axis.low_value, axis.high_value).reshape(2, 2)
        pairs = [(axis.value2index(low), axis.value2index(high)) for low, high in limits]
        sides[name] = tuple(pair for pair in pairs if pair[1] > pair[0])
        if not sides[name]:
            raise ValueError(
                f"No background window of {name} is within the spectra: give windows of your own, or leave it out."
            )
    return sides


def _clean_sides(sides, held, per_channel):
    """For each line the sides that hold no line of the sample, else the one with fewer counts; and diagnostics."""
    totals = {side: image.sum(dtype=float) for side, image in per_channel.items()}
    clean, dirty = {}, {}
    for name, own in sides.items():
        kept = [side for side in own if not held[side]]
        if not kept:
            kept = [min(own, key=lambda side: totals[side])]
            dirty[name] = list(dict.fromkeys(line for side in own for line in held[side]))
        # a line that nobody named is in a window that holds far more than the other
        most = STEEPEST * min(totals[side] for side in kept)
        clean[name] = tuple(side for side in kept if totals[side] <= most + 5 * np.sqrt(most / n_channels([side])))
    pairs = listed([f"{name} ({listed(lines)})" for name, lines in dirty.items()])
    sentence = (
        f"Both background windows of {pairs} hold lines, so the background may be too high: pass lines='model' to "
        "fuse, or windows of your own."
    )
    about = [Diagnostic("background-windows-hold-lines", sentence, elements=tuple(by_element(list(dirty))))]
    return clean, about if dirty else []


def _about_high(signal, lines, counts, sides, per_channel, width):
    """Whether there is more beside the lines of an element than in them."""
    high = []
    for (element, own), total in zip(lines.items(), counts.sum(axis=(0, 1), dtype=float), strict=True):
        means = [np.mean([per_channel[side].sum(dtype=float) for side in sides[name]]) for name in own]
        if total < np.mean(means) * n_channels(line_windows(signal, own, width)):
            high.append(element)
    sentence = (
        f"The background windows of {', '.join(high)} hold more counts than the windows of the lines: leave the "
        "element out, or pass windows of your own as background, or a fitted model."
    )
    return [Diagnostic("background-above-lines", sentence, elements=tuple(high))] if high else []


def _expected(sides, per_channel):
    """Dict of the expected counts per channel (ny, nx) at each line, smoothed together."""
    groups = list(dict.fromkeys(sides.values()))
    counts = [sum(per_channel[side] * n_channels([side]) for side in own) for own in groups]
    smooth = dict(zip(groups, smoothed_counts(counts), strict=True))
    return {name: smooth[own] / n_channels(own) for name, own in sides.items()}


def _under(signal, own, name, expected, width):
    """Counts expected under the line `name`: lines that share a window of their element share its channels."""
    ranges = {other: line_windows(signal, [other], width)[0] for other in own}
    for window in line_windows(signal, own, width):
        inside = [other for other, (start, stop) in ranges.items() if window[0] <= start and stop <= window[1]]
        if name in inside:
            return expected[name] * (n_channels([window]) / len(inside))
    return 0.0
