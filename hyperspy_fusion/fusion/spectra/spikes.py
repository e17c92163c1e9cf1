"""Spikes: single channels of single spectra where an X-ray or a cosmic ray hit the camera."""

from __future__ import annotations

import numpy as np

# least height of a spike above the channels beside it, in standard deviations of the noise and in counts
SIGMAS, COUNTS = 8.0, 16.0
# part of the squares, the largest, left out of the estimate of the counts scale
OUTLIERS = 1e-3
# largest height in the pixels around, as a part of that of the spike
NEIGHBOURS = 0.5


def spikes(spectra):
    """Which channels are spikes: far above the channels beside them, in one pixel and not in those around.

    ``e = y - median(y)`` of five channels removes slopes and the onsets of edges. It is compared with the noise of
    counts, whose scale is estimated from the same ``e``, so the unit of the spectra does not matter. Structure that
    pixels around show in the same channel (white lines, the pattern of a camera) is no spike. Spikes of one or two
    channels are found. Spectra are (ny, nx, n), finite, and so is the result, bool.
    """
    from scipy.ndimage import maximum_filter, median_filter

    spectra = np.asarray(spectra, dtype=np.float64)
    level = median_filter(spectra, size=(1, 1, 5), mode="mirror")
    excess = spectra - level
    level = np.maximum(level, max(level.mean(), 0.0))
    scale = _counts_scale(excess, level)
    found = excess > SIGMAS * np.sqrt(scale * level) + COUNTS * scale
    if scale <= 0 or not found.any():
        return np.zeros(spectra.shape, bool)
    around = np.ones((3, 3, 1), bool)
    around[1, 1] = False
    return found & (maximum_filter(excess, footprint=around, mode="constant", cval=-np.inf) < NEIGHBOURS * excess)


def _counts_scale(excess, level):
    """Of counting noise, ``var e = scale * level``, without the largest of the squares."""
    squares = excess.ravel() ** 2
    kept = max(int((1 - OUTLIERS) * squares.size), 1)
    return np.partition(squares, kept - 1)[:kept].mean() / max(level.mean(), 1e-30)
