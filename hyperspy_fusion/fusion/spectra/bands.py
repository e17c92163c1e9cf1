"""Bands of channels that keep what the spectra tell of each element."""

from __future__ import annotations

import numpy as np

# largest growth of the attainable variance of an element by the merging of channels
LOSS = 0.02


def cramer_rao(matrix, mean):
    """Smallest variance of unbiased amplitudes, (n,), by the bound of Cramer and Rao."""
    return np.diag(covariance_bound(matrix, mean)).copy()


def covariance_bound(matrix, mean):
    """Smallest covariance of unbiased amplitudes, (n, n): ``(A^T diag(1 / m) A)^-1``."""
    # in units in which the Fisher matrix has the diagonal one: columns differ by orders of magnitude in counts
    root = matrix / np.sqrt(np.maximum(mean, 1e-300))[:, None]
    size = np.sqrt(np.maximum((root**2).sum(axis=0), 1e-300))
    root = root / size
    return np.linalg.pinv(root.T @ root, rcond=1e-12, hermitian=True) / np.outer(size, size)


def band_edges(columns, mean, n_elements, loss=LOSS):
    """Edges (n_bands + 1,) of bands of neighbouring channels, merged as far as the elements allow.

    Neighbours are merged, cheapest first, while the variance that is attainable for each of the first `n_elements`
    columns grows by no more than the part `loss` (Cramer-Rao bound). Merging two bands c and d costs, to first order,
    the part ``w (F^-1 v)_i**2 / (F^-1)_ii`` of the variance of element i. Here ``v = A_c / m_c - A_d / m_d``,
    ``w = m_c m_d / (m_c + m_d)``, and F is the Fisher matrix.

    Parameters
    ----------
    columns
        (n_channels, n_columns) shapes of the spectra.
    mean
        (n_channels,) expected counts.
    n_elements
        The number of columns, the first ones, whose variances matter.
    loss
        Largest relative growth of a variance.
    """
    columns = np.asarray(columns, dtype=np.float64)
    mean = np.maximum(np.asarray(mean, dtype=np.float64), 1e-9 * np.mean(mean))
    covariance = covariance_bound(columns, mean)
    own = np.diag(covariance)[:n_elements]
    edges = np.arange(len(mean) + 1)
    quota = len(mean) // 3
    while quota and len(edges) > columns.shape[1] + 2:
        costs = _merge_costs(*_sums(columns, mean, edges), covariance[:n_elements], own)
        fewer = np.delete(edges, 1 + _apart(np.argsort(costs), quota))
        if np.all(cramer_rao(*_sums(columns, mean, fewer))[:n_elements] <= (1 + loss) * own):
            edges, quota = fewer, min(quota, len(fewer) // 3)
        else:
            quota //= 2
    return edges


def _sums(columns, mean, edges):
    return np.add.reduceat(columns, edges[:-1], axis=0), np.add.reduceat(mean, edges[:-1])


def _merge_costs(matrix, mean, covariance, own):
    difference = matrix[:-1] / mean[:-1, None] - matrix[1:] / mean[1:, None]
    harmonic = mean[:-1] * mean[1:] / (mean[:-1] + mean[1:])
    return harmonic * ((difference @ covariance.T) ** 2 / own).max(axis=1)


def _apart(order, number):
    """The first `number` of the places in `order` of which no two are neighbours."""
    taken = np.zeros(len(order) + 2, bool)
    chosen = []
    for place in order:
        if len(chosen) == number:
            break
        if not taken[place : place + 3].any():
            taken[place + 1] = True
            chosen.append(place)
    return np.array(chosen, dtype=int)
