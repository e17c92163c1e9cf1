"""Hot and dead pixels: of the HAADF image, where the counts of the maps contradict it, and of the maps, likewise."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import convolve, maximum_filter, median_filter, uniform_filter

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.terms.haadf_model import haadf_noise
from hyperspy_fusion.fusion.terms.noise_estimation import counts_scale, estimate_variance

# standard deviations of the image noise from the median of the 3 x 3 neighbourhood at which a pixel is a candidate
_OUTLYING = 8.0
# probability, over all candidates of an image, that noise of the maps hides a particle of one pixel
_CHANCE = 1e-4
# a pixel of a map is a candidate above so many times the largest of its neighbours and so many counts
_TIMES, _COUNTS = 4.0, 16.0
# the image shows it too so many standard deviations of its noise above the median of the neighbourhood; it must show
# it where it would be as many times that, for HAADF coefficients by atomic numbers are rough
_SHOWN, _MUST = 4.0, 4.0
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
    image = _with_mean(scan.haadf, both)
    change = np.where(both, image - median_filter(image, 3), 0)
    found = np.abs(change) > _OUTLYING * haadf_noise(scan.haadf, scan.haadf_valid)
    used = both & ~found
    if not found.any() or not used.any():
        return np.zeros(both.shape, bool)
    total = np.where(both, np.tensordot(coefficients, scan.maps, 1), 0)
    sums, number = (9 * uniform_filter(a.astype(float), 3, mode="constant") - a for a in (total, both))
    around = sums / np.maximum(number, 1)
    expected = np.maximum(around + _slope(total, image, used) * change, 0)
    evidence = noise.evidence(total, expected, around, coefficients)
    return found & (evidence > np.log(np.count_nonzero(found) / _CHANCE))


def about_hot_pixels(hot, corner=(0, 0)):
    """A list with the :class:`Diagnostic` of hot pixels, empty for none; ``corner`` (x, y) is the first pixel."""
    if not hot.any():
        return []
    sentence = f"The HAADF image has hot or dead pixels at (x, y) = {_listed(hot, corner)}: they are left out of it."
    return [Diagnostic("hot-pixels", sentence)]


def spikes_of_maps(maps, valid, haadf, haadf_valid, coefficients, variance=None):
    """Two (n, ny, nx) bool: spikes of maps, and pixels that may be spikes or particles of one pixel.

    Both are far above all their neighbours, most of which are valid, and the image is not. Spikes are those that the
    image would have to show: it rises with the sum of the maps times ``coefficients``, which are the HAADF coefficients
    (n,) up to a factor. The unit is the root of the ``variance`` (n, ny, nx) where it is known, else one count, or the
    standard deviation of the noise where there are no counts.
    """
    found, height = _bright_pixels(maps, valid, variance)
    if not found.any():
        return found, found
    noise = haadf_noise(haadf, haadf_valid)
    seen = _with_mean(haadf, haadf_valid)
    found &= ~(haadf_valid & (seen - median_filter(seen, 3, mode="mirror") > _SHOWN * noise))
    total = np.tensordot(coefficients, np.where(valid, maps, 0), 1)
    used = haadf_valid & valid.all(axis=0) & ~found.any(axis=0)
    expected = _slope(seen, total, used) * coefficients[:, None, None] * height
    spikes = found & haadf_valid & (expected > _MUST * _SHOWN * noise)
    return spikes, found & ~spikes


def _bright_pixels(maps, valid, variance):
    """(n, ny, nx) bool, pixels far above all their neighbours, and how far they are above."""
    around = np.ones((3, 3), bool)
    around[1, 1] = False
    found, height = np.zeros(maps.shape, bool), np.zeros(maps.shape)
    there = convolve(np.ones(maps.shape[1:]), around, mode="constant")
    for i, keep in enumerate(valid):
        image = np.where(keep, maps[i], 0).astype(np.float64)
        level = np.maximum(maximum_filter(image, footprint=around, mode="constant"), 0)
        height[i] = image - level
        bright = keep & (image > _TIMES * level) & (2 * convolve(keep * 1.0, around, mode="constant") > there)
        if bright.any():
            known = None if variance is None else np.sqrt(variance[i])
            unit = counts_scale(image, keep) or np.sqrt(estimate_variance(image, keep)) if known is None else known
            bright &= image > _TIMES * level + _COUNTS * unit
        found[i] = bright
    return found, height


def _with_mean(image, used):
    """The image as float64, with its mean in pixels that are not used; 0 where none is."""
    return np.where(used, image, np.mean(image, where=used) if used.any() else 0.0).astype(np.float64)


def _slope(image, over, used):
    """Slope, not below 0, of an image over another one."""
    if not used.any():
        return 0.0
    h, t = image[used] - image[used].mean(), over[used] - over[used].mean()
    return max(float(h @ t / (t @ t)), 0.0) if t.any() else 0.0


def about_spikes_of_maps(elements, spikes, doubtful, corner=(0, 0)):
    """The :class:`Diagnostic` objects of spikes in maps, and of what may be spikes; none for none."""
    found = []
    for pixels, what in (
        (spikes, "and the image is not: these pixels are left out as spikes."),
        (doubtful, "and the image cannot tell why: they are fused; leave spikes out by `mask=` of fuse."),
    ):
        hit = tuple(e for e, pixel in zip(elements, pixels, strict=True) if pixel.any())
        if hit:
            where = _listed(pixels.any(axis=0), corner)
            sentence = f"The map of {', '.join(hit)} is far above all neighbours at (x, y) = {where}, {what}"
            found.append(Diagnostic("spikes", sentence, elements=hit))
    return found


def _listed(pixels, corner):
    """The places (x, y) of some of the pixels (ny, nx) in words."""
    places = np.argwhere(pixels)[:, ::-1] + corner
    more = f" and {len(places) - LISTED} more" if len(places) > LISTED else ""
    return ", ".join(str(tuple(place)) for place in places[:LISTED].tolist()) + more
