"""How far the HAADF image is off the HAADF forward model of the measured maps, and whether a blur explains it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, minimum_filter

from hyperspy_fusion.fusion.terms.haadf_model import blurred

# part of the pixels that a model discrepancy may be measured on
_ENOUGH = 0.3
# A blur explains the image if at most this part of the discrepancy of squares of so many pixels is left, up to so many
# chance errors. On phantoms the true blur left 0 to 0.3; on scans whose image is mostly unrelated 0.7 to 1 was left.
_LEFT, _SIDE, _CHANCES = 0.5, 2, 2.0
# of how many of its errors the square of a blur must be
_SURE = 3.0


def model_discrepancy(seen, noise, forward_model, variance, blur):
    """Standard deviation per pixel of noise and of what the forward model does not explain of the image.

    Contrast that the forward model lacks (a missing element, diffraction, thickness) is correlated between neighbouring
    pixels, which are then not independent. Sums over squares of B x B pixels of a white residual have B^2 times its
    variance. The largest variance per pixel over all B is used; the noise of the maps is subtracted. The largest of
    several estimates is rather too large, and an image trusted too little costs less than one trusted too much.

    Parameters
    ----------
    seen, noise
        As of an :class:`~.calibrated.Observation`.
    forward_model
        A :class:`~.haadf_model.LinearHaadfModel`.
    variance
        (n, ny, nx) of the noise of the maps.
    blur
        Standard deviation in pixels of the Gaussian by which the HAADF term blurs the maps.
    """
    largest, side = 0.0, 1
    residual = _Residual.of(seen, noise, forward_model, variance, blur, blur)
    while side == 1 or 4 * side <= min(residual.counted.shape):
        number, excess = residual.squares(side)
        if number.size:
            largest = max(largest, float(np.mean(excess / number)))
        side *= 2
    return float(np.sqrt(largest))


def is_explained_by_blur(seen, noise, forward_model, variance, blur, error):
    """Whether a blur is significant, and leaves little of the discrepancy without it.

    Otherwise the image may not be of the maps, or the maps may have no information on the blur.
    """
    if blur**2 < _SURE * 2 * blur * error:
        return False
    (number, without), (_, left) = (
        _Residual.of(seen, noise, forward_model, variance, b, blur).squares(_SIDE) for b in (0.0, blur)
    )
    change = (left - _LEFT * without) / number**2
    # each pixel is in four squares
    return bool(change.mean() <= _CHANCES * change.std() / np.sqrt(change.size / 4))


@dataclass(frozen=True)
class _Residual:
    """HAADF image less the blurred forward model of the measured maps, and its variance from their noise."""

    counted: np.ndarray
    residual: np.ndarray
    of_maps: np.ndarray
    blur: float

    @classmethod
    def of(cls, seen, noise, forward_model, variance, blur, reach):
        """Of all valid pixels except those that an invalid pixel affects through a blur of ``reach``."""
        valid = seen.valid.all(axis=0)
        net = seen.net(noise.background)
        counted = valid & seen.haadf_valid
        within = counted & minimum_filter(valid, 2 * int(np.ceil(3 * reach)) + 1)
        if np.count_nonzero(within) > _ENOUGH * np.count_nonzero(counted):
            counted = within
        residual = np.where(counted, seen.haadf - blurred(forward_model.image(net), blur), 0)
        return cls(counted, residual, np.where(counted, np.tensordot(forward_model.weights**2, variance, 1), 0), blur)

    def squares(self, side):
        """Valid pixels of the squares that have any, and their squared sums less the variance from the maps."""
        number, total, prior_scale = (_square_sums(a, side) for a in (self.counted, self.residual, self.of_maps))
        used = number > 0
        return number[used], total[used] ** 2 - left_by_blur(self.blur, side) * prior_scale[used]


def left_by_blur(blur, side):
    """What a Gaussian leaves of the variance of sums of white noise over squares of ``side`` pixels."""
    if not blur:
        return 1.0
    line = np.zeros(side + 2 * int(4 * blur + 1))
    line[(line.size - side) // 2 :][:side] = 1
    return float(np.sum(gaussian_filter(line, blur) ** 2) / side) ** 2


def _square_sums(image, side):
    """Sums over squares of ``side`` pixels laid from each of the four corners, so that no corner is preferred."""
    ny, nx = (size // side for size in image.shape)
    turned = np.stack([image, image[::-1], image[:, ::-1], image[::-1, ::-1]])
    squares = turned[:, : ny * side, : nx * side].reshape(4, ny, side, nx, side)
    return squares.sum(axis=(2, 4), dtype=np.float64)
