"""Counts of an EDS spectrum image outside of the windows of its maps, in bands of channels."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from hyperspy_fusion.maps.eds_lines import line_windows, window_sums

_logger = logging.getLogger(__name__)

# bands, each with as many counts as the others; tried on held-out counts, which preferred 32 and 48 to 12
BANDS = 32
# with fewer counts than this in each there are fewer bands
FEWEST_IN_BAND = 1000
# no element has a line below, but detectors have noise
LOWEST_KEV = 0.1


def out_of_window_counts(signal: Any, lines: dict[str, list[str]], width: float) -> np.ndarray | None:
    """
    Counts of the channels that are in no window of the X-ray lines of any element.

    Parameters
    ----------
    signal : exspy.signals.EDSSpectrum
        ``(x, y|E)``, lazy or not.
    lines : dict
        The X-ray lines of each element.
    width : float
        Full width of their windows in FWHM.

    Returns
    -------
    numpy.ndarray or None
        (bands, ny, nx) of whole numbers, each of consecutive channels but for those of the windows. None where the
        spectra are no counts, where two elements share channels, and where nothing is left.
    """
    windows = [line_windows(signal, names, width) for names in lines.values()]
    used = np.zeros(signal.axes_manager[-1].size, int)
    for start, stop in (limits for own in windows for limits in own):
        used[start:stop] += 1
    if used.max() > 1:
        _logger.info("Windows of two elements share channels: out-of-window counts are not used.")
        return None
    return _in_bands(signal, used == 0)


def _in_bands(source, free):
    """(bands, ny, nx) of the free channels, None where they hold next to nothing or no counts."""
    axis = source.axes_manager.signal_axes[0]
    free = free & (axis.axis >= LOWEST_KEV * (1000 if axis.units == "eV" else 1))
    total = np.asarray(source.data.sum(axis=tuple(a.index_in_array for a in source.axes_manager.navigation_axes)))
    total = np.where(free, total, 0).astype(np.float64)
    if not np.isfinite(total).all():
        return None
    number = int(min(BANDS, total.sum() // FEWEST_IN_BAND))
    if number < 1:
        return None
    # each channel to the band in which its middle lies
    band = np.minimum(((np.cumsum(total) - total / 2) * number / total.sum()).astype(int), number - 1)
    ranges = [_ranges(free & (band == k)) for k in range(number)]
    sums = np.moveaxis(np.asarray(window_sums(source, [r for r in ranges if r])), -1, 0)
    if sums.dtype.kind == "f" and not np.array_equal(sums, np.rint(sums)):
        return None
    return None if sums.min() < 0 or sums.max() > np.iinfo(np.uint32).max else np.ascontiguousarray(sums, np.uint32)


def _ranges(chosen):
    """``(start, stop)`` of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
