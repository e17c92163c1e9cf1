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
        found, directions, kept = _solved_free(
            part, target[rows], variance[np.ix_(active, active)], shape[active], signed
        )
        first = (directions[:, kept], directions[:, ~kept]) if first is None else first
        if signed or not np.any(found < 0):
            break
        active = np.delete(active, np.argmin(found / shape[active]))
    weights = np.zeros(n)
    weights[active] = found
    offset = (target[0] - matrix[0, 1:] @ weights) / matrix[0, 0]
    scale = np.linalg.norm(np.hstack(first), axis=1)
    return Estimate(float(offset), weights, blur, scale), first


def solved_at_all(matrices, target, variance, shape, signed=False):
    """Offsets and weights (B, n + 1) of :func:`solved` for each of the matrices (B, n + 1, n + 1)."""
    weights, _, _ = _solved_free(matrices, target, variance, shape, signed)
    for k in np.flatnonzero(np.any(weights < 0, axis=1) & (not signed)):
        weights[k] = solved(matrices[k], target, variance, shape, 0.0)[0].weights
    offsets = (target[0] - np.sum(matrices[:, 0, 1:] * weights, axis=1)) / matrices[:, 0, 0]
    return np.column_stack([offsets, weights])


def _solved_free(matrix, target, variance, shape, signed):
    """Weights (..., n) of any sign, for matrices (..., n + 1, n + 1). What the data do not determine keeps the shape.

    In units of ``gain * shape`` the matrix is the information on relative weights. Directions in which it is below 1
    (an error of 100 %), or below three standard deviations of its own noise, are undetermined. The columns of the
    second result (..., n, n) are the directions, and the third (..., n) is True for those that are determined.
    """
    column, row, corner = matrix[..., 1:, :1], matrix[..., :1, 1:], matrix[..., :1, :1]
    inner = matrix[..., 1:, 1:] - column * row / corner
    target = target[1:] - (column * target[0] / corner)[..., 0]
    if not len(shape):
        return shape, np.zeros((0, 0)), np.zeros(0, bool)
    power = (inner @ shape) @ shape
    gain = np.divide(target @ shape, power, out=np.ones_like(power), where=power != 0)
    # of either sign: what matters here is the size, but for directions that follow the gain of a signed image
    gain = gain if signed else np.abs(gain)
    scale = gain[..., None] * shape
    relative = scale[..., :, None] * inner * scale[..., None, :]
    values, vectors = np.linalg.eigh((relative + relative.swapaxes(-1, -2)) / 2)
    directions = scale[..., :, None] * vectors
    loads = directions**2
    kept = values > np.maximum(1, 3 * np.sqrt(2 * np.sum(loads * (variance @ loads), axis=-2)))
    filled = (vectors @ np.where(kept, 0, vectors.sum(axis=-2))[..., None])[..., 0]
    turned, away = vectors.swapaxes(-1, -2), scale * target - (relative @ filled[..., None])[..., 0]
    within = np.where(kept[..., :, None] & kept[..., None, :], turned @ relative @ vectors, np.eye(len(shape)))
    answer = np.linalg.solve(within, np.where(kept[..., None], turned @ away[..., None], 0))
    return scale * ((vectors @ answer)[..., 0] + filled), directions, kept
