"""Single pixels of the HAADF image that no specimen explains: hot and dead ones, told by the image and by the maps."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import convolve, rank_filter

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.terms.haadf_model import haadf_noise

# a pixel that is more times the noise off all its neighbours but one is looked at
_OUTLYING = 8.0
# chance that noise of the maps hides a particle of one pixel, of which there may be as many as pixels are looked at
_CHANCE = 0.01
# A pixel beyond all others by more than this part of their range is no structure even where few counts say nothing,
# for what is one pixel wide is not thicker than all the rest. It may be where others are a pixel wide, and where the
# bulk of the image, between these percentiles, has less range than this times its noise: nothing to compare with.
_BEYOND, _MOST, _LEAST_RANGE = 0.25, (1, 99), 16.0
# fewest neighbours that count: those of a corner
_FEWEST = 3
# pixels whose places are told
LISTED = 8

_AROUND = np.ones((3, 3), bool)
_AROUND[1, 1] = False


def hot_pixels(seen, noise, weights):
    """Pixels of the HAADF image far above or far below their neighbours, where the counts of the maps are not.

    A pixel is looked at where it is more than 8 times the noise of the image above (below) all its neighbours but one,
    for two may be hot side by side. If it is structure, the sum T of the maps times ``weights`` rises (falls) with it,
    as it does elsewhere in the scan: by the slope of T over h. Pixels are called hot where T is more like its
    neighbours than like that, and either chance makes it so in less than 1 % of images, or no other pixel of the image
    comes near in brightness. Where counts are too few to tell a hot pixel from a particle of one pixel, none is called.

    Parameters
    ----------
    seen
        The data, a :class:`~.measured.ScanArrays`.
    noise
        Of the maps: :class:`~.measured.Counts` or :class:`~.measured.Gaussian`.
    weights
        (n,) of the maps in the image, up to a factor.

    Returns
    -------
    numpy.ndarray
        (ny, nx) bool.
    """
    both = seen.valid.all(axis=0) & seen.haadf_valid
    off, sigma = _off_neighbours(seen.haadf, both), haadf_noise(seen.haadf, seen.haadf_valid)
    found = np.abs(off) > _OUTLYING * sigma
    rest = both & ~found
    if not found.any() or not rest.any():
        return np.zeros(both.shape, bool)
    total = np.tensordot(weights, seen.maps, 1)
    around = _mean_around(total, both)
    expected = np.maximum(around + _slope(total, seen.haadf, rest) * off, 0)
    evidence = noise.evidence(total, expected, around, weights)
    told = found & (evidence > np.log(np.count_nonzero(found) / _CHANCE))
    return told | (found & (evidence > 0) & _beyond(seen.haadf, rest, np.where(told, 0, off), sigma))


def about_hot_pixels(hot):
    """The diagnostic about them."""
    places = np.argwhere(hot)
    if not len(places):
        return []
    listed = ", ".join(str(tuple(place)) for place in places[:LISTED].tolist())
    more = f" and {len(places) - LISTED} more" if len(places) > LISTED else ""
    sentence = (
        f"The HAADF image has {len(places)} hot or dead pixels, at (row, column) {listed}{more}, and the fused maps "
        "follow it there: pass mask=, True in these pixels."
    )
    return [Diagnostic("hot-pixels", sentence)]


def _off_neighbours(image, valid):
    """How far each pixel is above the second highest of its neighbours that count, or below (< 0) the second lowest.

    0 between the two, and where fewer than three neighbours count.
    """
    enough = valid & (convolve(valid.astype(int), _AROUND.astype(int), mode="constant") >= _FEWEST)
    options = {"footprint": _AROUND, "mode": "constant"}
    high = rank_filter(np.where(valid, image, -np.inf), -2, cval=-np.inf, **options)
    low = rank_filter(np.where(valid, image, np.inf), 1, cval=np.inf, **options)
    nearest = np.clip(image, low, high, where=enough, out=np.array(image))
    return np.where(enough, image - nearest, 0)


def _mean_around(image, valid):
    """Mean of the neighbours that count, 0 where there are none."""
    around = _AROUND.astype(float)
    number = convolve(valid.astype(float), around, mode="constant")
    return convolve(np.where(valid, image, 0.0), around, mode="constant") / np.maximum(number, 1)


def _slope(total, haadf, used):
    """Of the sum of the maps over the image, at least 0; noise is of the maps rather than of the image."""
    t, h = total[used] - total[used].mean(), haadf[used] - haadf[used].mean()
    square = float(np.vdot(h, h))
    return max(float(np.vdot(t, h)) / square, 0.0) if square > 0 else 0.0


def _beyond(haadf, rest, off, sigma):
    """(ny, nx) bool: brighter or darker than all the rest, by far; none where other pixels are far off neighbours."""
    low, high = haadf[rest].min(), haadf[rest].max()
    far = _BEYOND * (high - low)
    beyond = (haadf > high + far) | (haadf < low - far)
    fine = np.any((np.abs(off) > far) & ~beyond)
    return beyond & (not fine and np.ptp(np.percentile(haadf[rest], _MOST)) > _LEAST_RANGE * sigma)
