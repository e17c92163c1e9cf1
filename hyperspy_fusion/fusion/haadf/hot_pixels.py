"""Hot and dead pixels of the HAADF image: single pixels that the counts of the maps contradict."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import median_filter, uniform_filter

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.terms.haadf_model import haadf_noise

# standard deviations of the image noise from the median of the 3 x 3 neighbourhood at which a pixel is a candidate
_OUTLYING = 8.0
# probability, over all candidates of an image, that noise of the maps hides a particle of one pixel
_CHANCE = 1e-4
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
    places = np.argwhere(hot)
    if not len(places):
        return []
    listed = ", ".join(str(tuple(place)) for place in places[:LISTED].tolist())
    more = f" and {len(places) - LISTED} more" if len(places) > LISTED else ""
    sentence = f"The HAADF image has hot or dead pixels at (row, column) {listed}{more}: mask them by mask=."
    return [Diagnostic("hot-pixels", sentence)]
