"""An image on the pixels of another grid: its means over the new pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

# relative width below which pixels are averaged; others are interpolated
_FINER = 1 - 1e-6
# smallest covered part of a pixel whose mean stands for the whole pixel
LEAST_COVERAGE = 0.9


@dataclass(frozen=True)
class Placement:
    """Where the pixels of one axis lie on another, whose pixel i covers ``[i, i + 1]``.

    Attributes
    ----------
    size
        Number of pixels.
    step
        Their width, above 0.
    start
        Where the first one begins: pixel j covers ``[start + j step, start + (j + 1) step]``.
    """

    size: int
    step: float
    start: float

    @property
    def end(self):
        """Where the last pixel ends."""
        return self.start + self.size * self.step

    @property
    def is_finer(self):
        """Whether pixels are averaged, several in one, and not interpolated."""
        return self.step < _FINER

    def moved(self, by):
        """The same pixels, ``by`` further on."""
        return replace(self, start=self.start + by)

    def edges(self, size):
        """Edges of the ``size`` pixels of the other axis in pixels of this one, cut off at its ends."""
        return np.clip((np.arange(size + 1) - self.start) / self.step, 0, self.size)


def resampled(image, placements, shape):
    """Means of an image over the pixels of another grid, which lies along the same axes.

    Along each axis the image stands for a function whose means over the old pixels are their values. The result is
    the mean of this function over the new pixels. Where the old pixels are finer, the function is constant in each of
    them, and the result is the mean weighted by area. Else it is a spline of second degree. On its own grid an image
    does not change, and its mean over the field never does.

    Parameters
    ----------
    image
        (ny, nx) of finite numbers.
    placements
        `Placement` of y and of x.
    shape
        Of the new grid.

    Returns
    -------
    numpy.ndarray
        float64; NaN where the image does not reach. Where it covers part of a pixel, the mean over that part.
    """
    reached = [np.diff(placement.edges(size)) > 0 for placement, size in zip(placements, shape, strict=True)]
    for axis, (placement, size) in enumerate(zip(placements, shape, strict=True)):
        image = _means(image, axis, placement, size)
    return np.where(np.logical_and.outer(*reached), image, np.nan)


def coverage(valid, placements, shape):
    """Part of each pixel of another grid, 0 to 1, that valid pixels (ny, nx) of an image cover; see `resampled`."""
    part = np.asarray(valid, dtype=np.float64)
    for axis, (placement, size) in enumerate(zip(placements, shape, strict=True)):
        part = _means(part, axis, placement, size, smooth=False)
        covered = np.diff(placement.edges(size)) * placement.step
        part = part * np.expand_dims(covered, 1 - axis)
    return part


def filled(image, valid):
    """The image with each pixel that is not valid replaced by the nearest one that is."""
    from scipy.ndimage import distance_transform_edt

    if valid.all():
        return image
    rows, columns = np.asarray(distance_transform_edt(~valid, return_distances=False, return_indices=True))
    return image[rows, columns]


def _means(image, axis, placement, size, smooth=None):
    """Along one axis: differences of the integral, which is known exactly at the edges of the pixels."""
    sums = np.cumsum(np.moveaxis(np.asarray(image, dtype=np.float64), axis, 0), axis=0)
    sums = np.concatenate([np.zeros_like(sums[:1]), sums])
    edges = placement.edges(size)
    smooth = not placement.is_finer and placement.size >= 3 if smooth is None else smooth
    integral = (_along_spline if smooth else _along_lines)(sums, edges)
    widths = np.diff(edges)[:, None]
    means = np.divide(np.diff(integral, axis=0), widths, out=np.zeros((size, sums.shape[1])), where=widths > 0)
    return np.moveaxis(means, 0, axis)


def _along_lines(sums, edges):
    """Linear between the edges of pixels, as the integral of what is constant in each."""
    left = np.minimum(edges.astype(int), len(sums) - 2)
    part = (edges - left)[:, None]
    return sums[left] * (1 - part) + sums[left + 1] * part


def _along_spline(sums, edges):
    """A cubic spline, the integral of one of second degree."""
    from scipy.interpolate import make_interp_spline

    return make_interp_spline(np.arange(float(len(sums))), sums, k=3)(edges)
