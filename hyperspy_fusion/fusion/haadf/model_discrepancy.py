"""How far the HAADF image is off the HAADF forward model of the measured maps, and whether a blur explains it."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, minimum_filter

from hyperspy_fusion.fusion.terms.haadf_model import blurred

# part of the pixels that a model discrepancy may be measured on
_ENOUGH = 0.3
# A blur explains the image if at most this part of the discrepancy of squares of 2 x 2 pixels is left, up to so many
# chance errors. On phantoms the true blur left 0 to 0.3; on scans whose image is mostly unrelated 0.7 to 1 was left.
_LEFT, _CHANCES = 0.5, 2.0
# of how many of its errors the square of a blur must be
_SURE = 3.0


def model_discrepancy(seen, noise, forward_model, variance, blur):
    """Standard deviation per pixel of noise and of what the forward model does not explain of the image.

    Contrast that the forward model lacks (a missing element, diffraction, thickness) is correlated between neighbouring
    pixels, which are then not independent. Sums over squares of B x B pixels of a white residual have B^2 times its
    variance. The largest variance per pixel over all B is used; the noise of the maps is subtracted. The largest of
    several estimates is rather too large, and an image trusted too little costs less than one trusted too much.
    ``seen`` and ``noise`` are those of an :class:`~.calibrated.Observation`, ``variance`` (n, ny, nx) that of the noise
    of the maps, and ``blur`` the standard deviation in pixels of the Gaussian of the HAADF term.
    """
    number, total, of_maps = _residual(seen, noise, forward_model, variance, blur, blur)
    largest, side, smallest = 0.0, 1, min(number.shape[1:])
    while side == 1 or 4 * side <= smallest:
        used = number > 0
        if used.any():
            excess = total**2 - left_by_blur(blur, side) * of_maps
            largest = max(largest, float(np.mean(excess[used] / number[used])))
        number, total, of_maps = (_halved(a) for a in (number, total, of_maps))
        side *= 2
    return float(np.sqrt(largest))


def is_explained_by_blur(seen, noise, forward_model, variance, blur, error):
    """Whether a blur is significant, and leaves little of the discrepancy without it.

    Otherwise the image may not be of the maps, or the maps may have no information on the blur.
    """
    if blur**2 < _SURE * 2 * blur * error:
        return False
    (number, total, of_maps), (_, blurred_total, _) = (
        [_halved(a) for a in _residual(seen, noise, forward_model, variance, b, blur)] for b in (0.0, blur)
    )
    used = number > 0
    without, left = total**2 - of_maps, blurred_total**2 - left_by_blur(blur, 2) * of_maps
    change = (left - _LEFT * without)[used] / number[used] ** 2
    # each pixel is in four squares
    return bool(change.mean() <= _CHANCES * change.std() / np.sqrt(change.size / 4))


def _residual(seen, noise, forward_model, variance, blur, reach):
    """Valid pixels, HAADF image less the blurred forward model of the measured maps, and its variance from their noise.

    (4, ny, nx) each, laid from each of the four corners, so that no corner is preferred. Pixels that an invalid one
    affects through a blur of ``reach`` are left out where enough others are left.
    """
    valid = seen.valid.all(axis=0)
    counted = valid & seen.haadf_valid
    within = counted & minimum_filter(valid, 2 * int(np.ceil(3 * reach)) + 1)
    if np.count_nonzero(within) > _ENOUGH * np.count_nonzero(counted):
        counted = within
    modelled = blurred(forward_model.image(seen.net(noise.background)), blur)
    arrays = (1.0, seen.haadf - modelled, np.tensordot(forward_model.weights**2, variance, 1))
    images = (np.where(counted, a, 0) for a in arrays)
    return [np.stack([a, a[::-1], a[:, ::-1], a[::-1, ::-1]]) for a in images]


def left_by_blur(blur, side):
    """What a Gaussian leaves of the variance of sums of white noise over squares of ``side`` pixels."""
    if not blur:
        return 1.0
    line = np.zeros(side + 2 * int(4 * blur + 1))
    line[(line.size - side) // 2 :][:side] = 1
    return float(np.sum(gaussian_filter(line, blur) ** 2) / side) ** 2


def _halved(image):
    """Sums over squares of 2 x 2 pixels."""
    n, ny, nx = image.shape[0], image.shape[1] // 2, image.shape[2] // 2
    return image[:, : 2 * ny, : 2 * nx].reshape(n, ny, 2, nx, 2).sum(axis=(2, 4), dtype=np.float64)
