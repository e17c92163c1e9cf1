"""Hot and dead pixels: of the HAADF image, where the counts of the maps contradict it, and of the maps, likewise."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import maximum_filter, median_filter, uniform_filter

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.terms.haadf_model import haadf_noise
from hyperspy_fusion.fusion.terms.noise_estimation import counts_scale, estimate_variance

# standard deviations of the image noise from the median of the 3 x 3 neighbourhood at which a pixel is a candidate
_OUTLYING = 8.0
# probability, over all candidates of an image, that noise of the maps hides a particle of one pixel
_CHANCE = 1e-4
# a pixel of a map is a candidate above so many times the largest of its neighbours and so many counts; the image shows
# it too where it is so many standard deviations of its noise above the median of the neighbourhood
_TIMES, _COUNTS, _SHOWN = 4.0, 16.0, 4.0
# pixels whose places are listed
LISTED = 4


def hot_pixels(scan, noise, coefficients):
    """Pixels of the HAADF image far from the median of their neighbourhood, where the counts of the maps are not.

    If a candidate is structure, the sum T of the maps times ``coefficients`` changes with it, by the slope of T over
    the image elsewhere. It is hot where the log-likelihood of T prefers the mean of its neighbours to that change.
    The maps and the image of ``scan`` are 0 in pixels that are not valid; ``coefficients`` (n,) are the HAADF
    coefficients up to a factor. Returns (ny, nx) bool.
    """
    both = scan.valid_in_all
    image = np.where(both, scan.haadf, np.mean(scan.haadf, where=both) if both.any() else 0.0)
    change = np.where(both, image - median_filter(image, 3), 0)
    found = np.abs(change) > _OUTLYING * haadf_noise(scan.haadf, scan.haadf_valid)
    used = both & ~found
    if not found.any() or not used.any():
        return np.zeros(both.shape, bool)
    total = np.where(both, np.tensordot(coefficients, scan.maps, 1), 0)
    sums, number = (9 * uniform_filter(a.astype(float), 3, mode="constant") - a for a in (total, both))
    around = sums / np.maximum(number, 1)
    h, t = image[used] - image[used].mean(), total[used] - total[used].mean()
    slope = max(float(h @ t / (h @ h)), 0.0) if h.any() else 0.0
    evidence = noise.evidence(total, np.maximum(around + slope * change, 0), around, coefficients)
    return found & (evidence > np.log(np.count_nonzero(found) / _CHANCE))


def about_hot_pixels(hot):
    """A list with the :class:`Diagnostic` of hot pixels, empty for none."""
    if not hot.any():
        return []
    sentence = f"The HAADF image has hot or dead pixels at (row, column) {_listed(hot)}: they are left out of it."
    return [Diagnostic("hot-pixels", sentence)]


def spikes_of_maps(maps, valid, haadf, haadf_valid):
    """(n, ny, nx) bool: single pixels far above all their neighbours in a map, as of a spike in a spectrum.

    Where the image is bright as well, it is a particle of one pixel, and no spike. The unit is one count, or the
    standard deviation of the noise where there are no counts.
    """
    around = np.ones((3, 3), bool)
    around[1, 1] = False
    found = np.zeros(maps.shape, bool)
    for image, keep, spike in zip(maps, valid, found, strict=True):
        image = np.where(keep, image, 0).astype(np.float64)
        level = maximum_filter(image, footprint=around, mode="constant")
        spike[...] = keep & (image > _TIMES * np.maximum(level, 0))
        if spike.any():
            unit = counts_scale(image, keep) or np.sqrt(estimate_variance(image, keep))
            spike &= image > _TIMES * np.maximum(level, 0) + _COUNTS * unit
    if found.any():
        seen = np.where(haadf_valid, haadf, np.mean(haadf, where=haadf_valid)).astype(np.float64)
        rise = seen - median_filter(seen, 3, mode="mirror")
        found &= ~(haadf_valid & (rise > _SHOWN * haadf_noise(haadf, haadf_valid)))
    return found


def about_spikes_of_maps(elements, spikes):
    """A list with the :class:`Diagnostic` of spikes in maps, empty for none."""
    hit = tuple(e for e, spike in zip(elements, spikes, strict=True) if spike.any())
    if not hit:
        return []
    sentence = (
        f"The map of {', '.join(hit)} is far above all neighbours at (row, column) {_listed(spikes.any(axis=0))}, and "
        "the image is not: these pixels are left out as spikes."
    )
    return [Diagnostic("spikes-in-maps", sentence, elements=hit)]


def _listed(pixels):
    """The places of some of the pixels (ny, nx) in words."""
    places = np.argwhere(pixels)
    more = f" and {len(places) - LISTED} more" if len(places) > LISTED else ""
    return ", ".join(str(tuple(place)) for place in places[:LISTED].tolist()) + more
