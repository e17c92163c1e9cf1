"""Counts under the X-ray lines of an EDS spectrum image that are not of the lines."""

import logging

import numpy as np

from hyperspy_fusion.fusion.spectra.background import smoothed_counts
from hyperspy_fusion.grid import axes as grids
from hyperspy_fusion.maps import eds_lines as spectra

_logger = logging.getLogger(__name__)

# distance of exspy's windows from their line, in units of its FWHM
_DISTANCE = 2.0
# how much higher the continuum may be on one side of a line than on the other
STEEPEST = 2.0

_ALLOWED = (
    "expected 'windows', energies of windows as estimate_background_windows gives them, a fitted EDS model, or a "
    "spectrum image of expected background counts."
)


def counts_over_background(signal, elements, xray_lines, background, width):
    """
    Counts of X-ray lines, and those among them that are expected of the background.

    Parameters
    ----------
    signal, elements, xray_lines, width
        As for `spectra.line_counts`.
    background : str, array, EDSModel or BaseSignal
        As for `hyperspy_fusion.element_maps`.

    Returns
    -------
    lines : dict
        The X-ray lines of each element.
    counts : numpy.ndarray
        (ny, nx, n).
    under : numpy.ndarray
        (ny, nx, n) float32, >= 0.
    """
    lines, counts = spectra.line_counts(signal, elements, xray_lines, width)
    if isinstance(background, str | list | tuple | np.ndarray) and not _is_model(background):
        return lines, *_from_windows(signal, lines, counts, background, width)
    expected = _expected_spectra(signal, background)
    under = spectra.window_sums(expected, [spectra.line_windows(signal, names, width) for names in lines.values()])
    return lines, *_in_memory(counts, under)


def _in_memory(counts, *others):
    """All computed in one pass over lazy spectra; background not below 0."""
    import dask

    counts, *others = dask.compute(counts, *others)
    return counts, *(np.maximum(other, 0).astype(np.float32) for other in others)


# ---- from windows beside the lines ------------------------------------------------------------------


def _from_windows(signal, lines, counts, background, width):
    names = [name for own in lines.values() for name in own]
    sides = _sides(signal, names, background, width)
    measured = list(dict.fromkeys(side for own in sides.values() for side in own))
    counts, beside = _in_memory(counts, spectra.window_sums(signal, [[side] for side in measured]))
    images = np.moveaxis(beside, -1, 0)
    per_channel = {side: image / _size([side]) for side, image in zip(measured, images, strict=True)}
    if isinstance(background, str):
        sides = {name: _clean(signal, name, own, per_channel) for name, own in sides.items()}
    _warn_of_high(signal, lines, counts, sides, per_channel, width)
    _logger.info("Channels of the background: %s", sides)
    expected = _expected(sides, per_channel)
    under = [sum(_under(signal, own, name, expected, width) for name in own) for own in lines.values()]
    return counts, np.stack(under, axis=-1).astype(np.float32)


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
    axis = signal.axes_manager.signal_axes[0]
    found = {name: _within(axis, row) for name, row in zip(names, windows, strict=True)}
    for name, own in found.items():
        if not own:
            raise ValueError(
                f"No background window of {name} is within the spectra: give windows of your own, or leave it out."
            )
    return found


def _within(axis, row):
    limits = np.clip(row, axis.low_value, axis.high_value).reshape(2, 2)
    pairs = [(axis.value2index(low), axis.value2index(high)) for low, high in limits]
    return tuple(pair for pair in pairs if pair[1] > pair[0])


def _clean(signal, name, sides, per_channel):
    """The sides that hold no line of the sample; where both do, the one with fewer counts, and a warning."""
    lines = {side: spectra.lines_within(signal, *_energies(signal, side)) for side in sides}
    totals = {side: per_channel[side].sum(dtype=float) for side in sides}
    clean = tuple(side for side in sides if not lines[side])
    if clean:
        # a line that nobody named is in a window that holds far more than the other
        most = STEEPEST * min(totals[side] for side in clean)
        return tuple(side for side in clean if totals[side] <= most + 5 * np.sqrt(most / _size([side])))
    lowest = min(sides, key=totals.get)
    grids.warn(
        f"Both background windows of {name} hold lines of the sample ({', '.join(sum(lines.values(), []))}), and the "
        "lower one is taken, which may be too high: pass windows of your own as background, or a fitted model."
    )
    return (lowest,)


def _warn_of_high(signal, lines, counts, sides, per_channel, width):
    """Warn where there is more beside the lines of an element than in them."""
    for (element, own), total in zip(lines.items(), counts.sum(axis=(0, 1), dtype=float), strict=True):
        means = [np.mean([per_channel[side].sum(dtype=float) for side in sides[name]]) for name in own]
        if total < np.mean(means) * _size(spectra.line_windows(signal, own, width)):
            grids.warn(
                f"The background windows of {', '.join(own)} hold more counts than that of the line: {element} is not "
                "seen above them, or they hold other lines; pass windows of your own as background, or a fitted model."
            )


def _energies(signal, side):
    """Limits in units of the axis, and half a width of the window more for the tails of lines."""
    axis = signal.axes_manager.signal_axes[0]
    low, high = axis.index2value(side[0]), axis.index2value(side[1])
    return low - (high - low) / 2, high + (high - low) / 2


def _size(sides):
    return sum(stop - start for start, stop in sides)


def _expected(sides, per_channel):
    """Dict of the expected counts per channel (ny, nx) at each line, smoothed together."""
    groups = list(dict.fromkeys(sides.values()))
    counts = [sum(per_channel[side] * _size([side]) for side in own) for own in groups]
    smooth = dict(zip(groups, smoothed_counts(counts), strict=True))
    return {name: smooth[own] / _size(own) for name, own in sides.items()}


def _under(signal, own, name, expected, width):
    """Counts expected under the line `name`: lines that share a window of their element share its channels."""
    for window in spectra.line_windows(signal, own, width):
        inside = [other for other in own if _is_inside(signal, other, window, width)]
        if name in inside:
            return expected[name] * (_size([window]) / len(inside))
    return 0.0


def _is_inside(signal, name, window, width):
    start, stop = spectra.line_windows(signal, [name], width)[0]
    return window[0] <= start and stop <= window[1]


# ---- from spectra -----------------------------------------------------------------------------------


def _is_model(background):
    # which is a list of components
    return hasattr(background, "background_components")


def _expected_spectra(signal, background):
    """The spectrum image of expected background counts: given, or that of a fitted model."""
    if _is_model(background):
        spectra.refuse_unfitted(background, [p for c in background.background_components for p in c.free_parameters])
        background = background.as_signal(component_list=background.background_components, show_progressbar=False)
    if not grids.is_spectrum_image(background):
        raise TypeError(f"background is {background!r}: {_ALLOWED}")
    if background.data.shape != signal.data.shape:
        raise ValueError(
            f"background has shape {background.data.shape} and the spectra {signal.data.shape}: give a background for "
            "each channel of each spectrum."
        )
    return background
