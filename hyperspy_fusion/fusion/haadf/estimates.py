"""Estimates of offset, weights and blur: non-negative solutions of the estimating equations."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


class UndeterminedModelError(ValueError):
    """Image and maps have nothing in common that a forward model could be fitted to, or too few valid pixels."""


@dataclass(frozen=True)
class Estimate:
    """Parameters (offset for maps less their mean, weights, blur), their covariance with blur**2 last, and how."""

    offset: float
    weights: np.ndarray
    blur: float
    scale: np.ndarray
    covariance: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    determined: tuple = ()
    prior_scale: float = np.inf


def solved(matrix, target, variance, shape, blur, signed=False):
    """Non-negative weights: elements whose weight comes out negative are left out, the lowest first; all if signed.

    Returns the estimate and, for all elements, the directions (n, k) of the weights that the data determine and
    those (n, n - k) that they do not.
    """
    n = len(shape)
    active, first = np.arange(n), None
    while True:
        rows = np.concatenate([[0], active + 1])
        part = matrix[np.ix_(rows, rows)]
        found, directions = _solved_free(part, target[rows], variance[np.ix_(active, active)], shape[active], signed)
        first = directions if first is None else first
        if signed or not np.any(found < 0):
            break
        active = np.delete(active, np.argmin(found / shape[active]))
    weights = np.zeros(n)
    weights[active] = found
    offset = (target[0] - matrix[0, 1:] @ weights) / matrix[0, 0]
    scale = np.linalg.norm(np.hstack(first), axis=1)
    return Estimate(float(offset), weights, blur, scale), first


def _solved_free(matrix, target, variance, shape, signed):
    """Weights of any sign. What the data do not determine keeps the shape.

    In units of ``gain * shape`` the matrix is the information on relative weights. Directions in which it is below 1
    (an error of 100 %), or below three standard deviations of its own noise, are undetermined.
    """
    inner = matrix[1:, 1:] - np.outer(matrix[1:, 0], matrix[0, 1:]) / matrix[0, 0]
    target = target[1:] - matrix[1:, 0] * target[0] / matrix[0, 0]
    if not len(shape):
        return shape, (np.zeros((0, 0)), np.zeros((0, 0)))
    power = shape @ inner @ shape
    gain = shape @ target / power if power else 1.0
    # of either sign: what matters here is the size, but for directions that follow the gain of a signed image
    gain = gain if signed and gain else np.abs(gain)
    scale = gain * shape
    relative = scale[:, None] * inner * scale
    values, vectors = np.linalg.eigh((relative + relative.T) / 2)
    loads = (scale[:, None] * vectors) ** 2
    noise = np.sqrt(2 * np.einsum("ik,ij,jk->k", loads, variance, loads))
    kept = values > np.maximum(1, 3 * noise)
    known, unknown = vectors[:, kept], vectors[:, ~kept]
    filled = unknown @ unknown.sum(axis=0)
    answer = np.linalg.solve(known.T @ relative @ known, known.T @ (scale * target - relative @ filled))
    return scale * (known @ answer + filled), (scale[:, None] * known, scale[:, None] * unknown)
