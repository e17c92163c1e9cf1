"""Fisher information: the smallest variance of the counts of a pixel that counts and HAADF image allow.

The Fisher matrix of a pixel is ``diag(1 / V) + w w^T / sigma**2``, with the variances V of its counts, the HAADF
coefficients w, and the standard deviation sigma of the image about the forward model; each elastic image adds its own
``w w^T / sigma**2``. Its inverse is the smallest covariance of any unbiased estimate (Cramer & Rao).
"""

from __future__ import annotations

import numpy as np

# variance of a map that was not measured, over the largest of all
_UNKNOWN = 1e8


def attainable_gain(variance, weights, sigmas, blurs):
    """By what factor counts and elastic images of a pixel, and nothing else, can lower the variance of its counts.

    With ``D = diag(sigma_k)`` and the coefficients W (K, n), by the formula of Woodbury the gain of element i is
    ``1 / (1 - V_i w_i^T (D**2 + W V W^T)**-1 w_i)``. What is gained beyond it comes from neighbouring pixels, that is,
    from the penalty. A blur leaves ``g**2`` of the information of an image at a spatial frequency. The variance of a
    pixel is the mean over all frequencies, with equal variances around it.

    Parameters
    ----------
    variance
        (n, ny, nx) of the measured maps, NaN where a map was not measured.
    weights
        (K, n) HAADF coefficients of K images.
    sigmas
        Standard deviation of each image about the forward model: a number, or (ny, nx), infinite in masked pixels.
    blurs
        (K,) standard deviations in pixels of the Gaussians by which the forward models blur the maps.

    Returns
    -------
    numpy.ndarray
        (n, ny, nx), 1 or more; NaN where the map was not measured.
    """
    weights = np.asarray(weights, dtype=np.float64)
    precisions = [np.broadcast_to(1 / np.square(sigma), variance.shape[1:]) for sigma in sigmas]
    # where a map was not measured, the images have what they show of it to find first
    known = np.where(np.isnan(variance), _UNKNOWN * np.nanmax(variance, initial=1e-30), variance)
    transfers = [_transfer(blur) if blur else [1.0] for blur in blurs]
    number = max(map(len, transfers))
    shares = [np.zeros(known.shape) for _ in range(number)]
    for share, gs in zip(shares, zip(*(np.resize(t, number) for t in transfers), strict=True), strict=True):
        share[:] = _share(known, weights, [p * g**2 for p, g in zip(precisions, gs, strict=True)])
    return np.where(np.isnan(variance), np.nan, 1 / (1 - np.mean(shares, axis=0)))


def _share(variance, weights, precisions):
    """(n, ny, nx) ``V_i w_i^T (D**2 + W V W^T)**-1 w_i``, by adding one image after the other.

    The covariance C of all maps starts as V. An image of coefficients w lowers it by
    ``C w w^T C / (sigma**2 + w^T C w)``.
    """
    lowered, directions = np.zeros(variance.shape), []
    for w, precision in zip(weights, precisions, strict=True):
        if not w.any():
            continue
        # C w, with C = V - sum of the outer products of earlier directions
        direction = w[:, None, None] * variance
        for earlier in directions:
            direction = direction - earlier * np.tensordot(w, earlier, 1)
        with np.errstate(divide="ignore"):
            size = 1 / precision + np.tensordot(w, direction, 1)
        direction = direction / np.sqrt(size)
        directions.append(direction)
        lowered += direction**2
    return np.divide(lowered, variance, out=lowered, where=variance > 0)


def _transfer(blur, number=8):
    """Transfer function of a Gaussian at the spatial frequencies of a lattice of pixels, kept above 0."""
    along = np.exp(-0.5 * (blur * np.pi * (np.arange(number) + 0.5) / number) ** 2)
    return np.maximum(np.multiply.outer(along, along).ravel(), 1e-12)
