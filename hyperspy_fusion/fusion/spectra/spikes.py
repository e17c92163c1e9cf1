"""Single channels of single spectra that stand out: x-rays and cosmic rays that hit the camera."""

from __future__ import annotations

import numpy as np

# how far a channel stands above those beside it, in standard deviations of its noise and in counts
SIGMAS, COUNTS = 8.0, 16.0
# of the largest, left out where the value of a count is estimated
OUTLIERS = 1e-3
# what of a spike the pixels around may show, and it still be alone
NEIGHBOURS = 0.5


def spikes(spectra):
    """Which channels are spikes: far above the channels beside them, in one pixel and not in those around.

    ``e = y - median(y)`` of five channels, which takes out slopes and the onsets of edges, against the noise of counts,
    whose value is estimated from the same ``e``: so the unit of the spectra does not matter. What pixels around show
    in the same channel is structure (white lines, a camera's pattern) and no spike. Found are those of one or two
    channels.

    Parameters
    ----------
    spectra
        (ny, nx, n), finite.

    Returns
    -------
    numpy.ndarray
        (ny, nx, n) bool.
    """
    from scipy.ndimage import maximum_filter, median_filter

    spectra = np.asarray(spectra, dtype=np.float64)
    level = median_filter(spectra, size=(1, 1, 5), mode="mirror")
    excess = spectra - level
    level = np.maximum(level, max(level.mean(), 0.0))
    count = _value_of_a_count(excess, level)
    found = excess > SIGMAS * np.sqrt(count * level) + COUNTS * count
    if count <= 0 or not found.any():
        return np.zeros(spectra.shape, bool)
    around = np.ones((3, 3, 1), bool)
    around[1, 1] = False
    return found & (maximum_filter(excess, footprint=around, mode="constant", cval=-np.inf) < NEIGHBOURS * excess)


def _value_of_a_count(excess, level):
    """Of noise as of counts, ``var e = count * level``, without the largest of the squares."""
    squares = excess.ravel() ** 2
    kept = max(int((1 - OUTLIERS) * squares.size), 1)
    return np.partition(squares, kept - 1)[:kept].mean() / max(level.mean(), 1e-30)
