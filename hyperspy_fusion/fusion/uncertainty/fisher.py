"""Fisher information: the smallest variance of the counts of a pixel that counts and HAADF image allow.

The Fisher matrix of a pixel is ``diag(1 / V) + w w^T / sigma**2``, with the variances V of its counts, the HAADF
coefficients w, and the standard deviation sigma of the image about the forward model. Its inverse is the smallest
covariance of any unbiased estimate (Cramer & Rao).
"""

from __future__ import annotations

import numpy as np


def attainable_gain(variance, weights, sigma, blur=0.0):
    """By what factor counts and HAADF image of a pixel, and nothing else, can lower the variance of its counts.

    By the formula of Sherman & Morrison the gain of element i is
    ``1 / (1 - w_i**2 V_i / (sigma**2 + S))``, ``S = sum_j w_j**2 V_j``. What is gained beyond it comes from
    neighbouring pixels, that is, from the penalty. A blur leaves ``g**2`` of the information of the image at a spatial
    frequency. The variance of a pixel is the mean over all frequencies, with equal variances around it.

    Parameters
    ----------
    variance
        (n, ny, nx) of the measured maps, NaN where a map was not measured.
    weights
        (n,) HAADF coefficients.
    sigma
        Standard deviation of the HAADF image about the forward model: a number, or (ny, nx), infinite in masked pixels.
    blur
        Standard deviation in pixels of the Gaussian by which the forward model blurs the maps.

    Returns
    -------
    numpy.ndarray
        (n, ny, nx), 1 or more; NaN where the map was not measured.
    """
    # where one map was not measured, the image carries no information on the others if it shows that element
    known = np.where(np.isnan(variance), np.inf, variance)
    with np.errstate(invalid="ignore"):  # 0 times infinity
        shown = np.where(weights[:, None, None] > 0, weights[:, None, None] ** 2 * known, 0)
        total = shown.sum(axis=0)
        inverse = np.mean([1 / (np.square(sigma / g) + total) for g in (_transfer(blur) if blur else [1.0])], axis=0)
        gain = 1 / (1 - shown * inverse)
    return np.where(np.isnan(variance), np.nan, gain)


def _transfer(blur, number=8):
    """Transfer function of a Gaussian at the spatial frequencies of a lattice of pixels, kept above 0."""
    along = np.exp(-0.5 * (blur * np.pi * (np.arange(number) + 0.5) / number) ** 2)
    return np.maximum(np.multiply.outer(along, along).ravel(), 1e-12)
