"""How far the HAADF image is off the HAADF forward model of the measured maps, and whether a blur explains it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, minimum_filter

from hyperspy_fusion.fusion.terms.haadf_model import blurred

# part of the pixels that a misfit may be measured on
_ENOUGH = 0.3
# A blur that is found explains the image if no more than this part of the misfit of squares of so many pixels is left,
# or so many of its chance errors more: on phantoms 0 to 0.3 was left by the true blur, on scans whose image is mostly
# not of the maps 0.7 to 1
_LEFT, _SIDE, _CHANCES = 0.5, 2, 2.0
# of how many of its errors the square of a blur must be
_SURE = 3.0


def misfit(seen, noise, forward_model, variance, blur):
    """Standard deviation per pixel that accounts for what the image shows and the forward model does not explain.

    Contrast that the forward model lacks (a missing element, diffraction, thickness) is alike in neighbouring pixels, which must
    then not count as so many witnesses. Sums over squares of B x B pixels of a white residual have B^2 times its
    variance; the largest variance per pixel found so, over all B, is the one of which the image is worth no more than
    it is. The noise of the maps is taken out. Larger squares are few, and the largest of several chance values is too
    large rather than too small: an image trusted too little costs less than one trusted too much. Where the term has
    a ``blur``, the image of the maps is blurred, and their noise with it.

    Parameters
    ----------
    seen, noise
        As of an :class:`~.calibrated.Observation`.
    forward model
        A :class:`~.elastic.LinearHaadfModel`.
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
    """Whether a blur that was found, and its error, is sure, and leaves little of what its forward model did not explain without.

    Else it may be one of an image that is none of the maps, or of maps that say nothing of it.
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
    """HAADF image less the forward model of the measured maps, blurred, with the variance that it has from their noise."""

    counted: np.ndarray
    residual: np.ndarray
    of_maps: np.ndarray
    blur: float

    @classmethod
    def of(cls, seen, noise, forward_model, variance, blur, reach):
        """Of all pixels that count, but those that a pixel without maps reaches by a blur of ``reach``."""
        valid = seen.valid.all(axis=0)
        net = seen.net(noise.background)
        counted = valid & seen.haadf_valid
        within = counted & minimum_filter(valid, 2 * int(np.ceil(3 * reach)) + 1)
        if np.count_nonzero(within) > _ENOUGH * np.count_nonzero(counted):
            counted = within
        residual = np.where(counted, seen.haadf - blurred(forward_model.image(net), blur), 0)
        return cls(counted, residual, np.where(counted, np.tensordot(forward_model.weights**2, variance, 1), 0), blur)

    def squares(self, side):
        """Pixels that count in squares that have any, and the square of their sums less what noise of maps gives."""
        number, total, spread = (_square_sums(a, side) for a in (self.counted, self.residual, self.of_maps))
        used = number > 0
        return number[used], total[used] ** 2 - left_by_blur(self.blur, side) * spread[used]


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
