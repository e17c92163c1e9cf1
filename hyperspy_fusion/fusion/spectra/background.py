"""Expected counts of a background from few counts measured beside a line."""

from __future__ import annotations

import numpy as np

# counts per average: the noise left is a fifth of the background in a typical pixel
COUNTS_TOGETHER = 25
# counts per average of the shape of the spectrum, which hardly changes from place to place: a twentieth
COUNTS_OF_SHAPE = 400
# widest average, as a part of the shorter side of the image: a wider one blurs the specimen away
WIDEST = 1 / 8


def smoothed_counts(counts, together=COUNTS_TOGETHER):
    """Expected counts in some windows of a spectrum, pixel by pixel.

    A known background must not be as noisy as the counts above it. Else its noise is subtracted from them once more,
    and biases the fit where it happens to be low. So the counts ``c`` of all windows are added up and averaged by a
    Gaussian just wide enough to hold some 25 of them. They are shared among the windows as in a wider neighbourhood:
    ``G_1(c) (G_2(c_i) + e R_i) / (G_2(c) + e)``. Here ``R_i`` is the share of window i of all counts, and ``e`` is one
    count per neighbourhood, for regions with none. Edges of the specimen stay as sharp as all windows together show
    them. The mean of each window is kept.

    ``counts`` are (k, ny, nx) of k windows, as is the result, float64 and >= 0. ``G_1`` averages over ``together``
    counts in a pixel of mean intensity.
    """
    counts = np.asarray(counts, dtype=np.float64)
    total = counts.sum(axis=0)
    if not total.any():
        return counts
    shares = counts.sum(axis=(1, 2)) / total.sum()
    near, wide = (width_for(total.mean(), n, total.shape) for n in (together, COUNTS_OF_SHAPE))
    # one count in the neighbourhood that the Gaussian averages over
    one = 1 / (4 * np.pi * max(wide, 0.3) ** 2)
    around = gaussian(counts, wide) + one * shares[:, None, None]
    expected = gaussian(total, near) * around / (gaussian(total, wide) + one)
    means = expected.mean(axis=(1, 2))
    factors = np.divide(counts.mean(axis=(1, 2)), means, out=np.zeros(len(means)), where=means > 0)
    return expected * factors[:, None, None]


def width_for(mean, together, shape):
    """Standard deviation in pixels of a Gaussian that averages over so many counts (``4 pi sigma^2`` pixels)."""
    return float(min(np.sqrt(together / (4 * np.pi * mean)), WIDEST * min(shape)))


def gaussian(images, sigma):
    """Filtered along the last two axes, with mirrored edges."""
    from scipy.ndimage import gaussian_filter

    images = np.asarray(images, dtype=np.float64)
    return gaussian_filter(images, (0,) * (images.ndim - 2) + (sigma, sigma), mode="reflect")
