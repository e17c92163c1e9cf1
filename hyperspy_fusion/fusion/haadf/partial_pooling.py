"""Partial pooling: weights between their own estimates and a common shape, by how well the shape holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.checks import MAX_BLUR

# prior scales that are compared: from the best agreement with the shape to maps in unrelated units
PRIOR_SCALES = np.geomspace(0.02, 1e4, 56)
# median of the half-Cauchy prior of the prior scale: exponents from 1.4 to 2, cross sections known to some ten per cent
MEDIAN_PRIOR_SCALE = 0.2
# Standard deviation of the half-normal prior on blur**2, in px**2. It decides where the data do not.
BLUR_PRIOR = 4.0
# Blurs looked at, first up to the largest, then over the standard deviations about the mean that matter.
_BLURS, _RADIUS = 41, 4.0
# Standard deviation of the prior of the gain, relative to a first estimate: next to none.
_ANY_GAIN = 100.0


@dataclass(frozen=True)
class WhitenedEquations:
    """Whitened estimating equations: ``matrices_at(blur) @ (offset, relative weights)`` is ``target`` up to N(0, 1).

    Weights are relative to gain times shape. ``unknown`` (n, m) are orthonormal directions of the relative weights on
    which the data have no information.
    """

    moments: Any
    whitening: np.ndarray
    scale: np.ndarray
    unknown: np.ndarray

    @property
    def target(self):
        return self.whitening @ self.moments.target

    def matrices_at(self, blurs):
        return self.whitening @ self.moments.at(blurs) * np.concatenate([[1], self.scale])


@dataclass(frozen=True)
class Posterior:
    """Mean of (offset, weights), covariance of these and blur**2, mean blur, geometric mean of the prior scale."""

    mean: np.ndarray
    covariance: np.ndarray
    blur: float
    prior_scale: float


def pooled(equations, blur, prior_scale):
    """Posterior of offset, weights, blur and prior scale, by quadrature over the last two.

    The relative weights are ``r_i ~ N(a, prior_scale**2)`` with any ``a``: the penalty ``|P r|**2 / prior_scale**2``,
    with ``P`` the projection onto deviations from the mean. Given blur and prior scale the posterior is normal, and its
    evidence weighs the pairs. The prior scale is averaged over instead of set to its likeliest value, with a
    half-Cauchy prior (Gelman, Bayesian Anal. 1, 515, 2006). Negative weights are set to 0, the lowest first; covariance
    and prior scale are those of weights of any sign. A blur or a prior scale of None is estimated.
    """
    active = np.arange(len(equations.scale))
    first = found = _of_active(equations, active, blur, prior_scale)
    while np.any(found.mean[1:] < 0):
        active = np.delete(active, np.argmin(found.mean[1:] / equations.scale[active]))
        if not active.size:
            raise np.linalg.LinAlgError("no weight is above 0")
        found = _of_active(equations, active, blur, prior_scale)
    mean = np.zeros(len(equations.scale) + 1)
    mean[np.concatenate([[0], active + 1])] = found.mean
    return Posterior(mean, first.covariance, found.blur, first.prior_scale)


def _of_active(equations, active, blur, prior_scale):
    """Posterior of the weights ``active``, the others being 0."""
    prior_scales = PRIOR_SCALES if prior_scale is None else np.array([float(prior_scale)])
    if blur is not None:
        blurs = np.array([float(blur)])
    else:
        blurs = np.linspace(0, MAX_BLUR, _BLURS)
        p = _posterior(equations, active, blurs, prior_scales)[0].sum(axis=1)
        mean, square = p @ blurs, p @ blurs**2
        error = np.sqrt(p @ (blurs**2 - square) ** 2)
        # the standard deviation of the blur from that of its square
        reach = _RADIUS * max(error / max(2 * mean, np.sqrt(error), 1e-6), blurs[1] / 2)
        blurs = np.linspace(max(0, mean - reach), min(MAX_BLUR, mean + reach), _BLURS)
    p, means, precision = _posterior(equations, active, blurs, prior_scales)
    scale = np.concatenate([[1], equations.scale[active]])
    of_blur = np.broadcast_to((blurs**2)[:, None, None], (*p.shape, 1))
    means = np.concatenate([means * scale, of_blur], axis=-1)
    mean = np.tensordot(p, means, 2)
    away = (means - mean).reshape(p.size, -1)
    covariance = (away * p.reshape(-1, 1)).T @ away
    covariance[:-1, :-1] += np.outer(scale, scale) * np.tensordot(p, np.linalg.inv(precision), 2)
    return Posterior(
        mean[:-1], covariance, float(p.sum(axis=1) @ blurs), float(np.exp(p.sum(axis=0) @ np.log(prior_scales)))
    )


def _posterior(equations, active, blurs, prior_scales):
    """Probabilities (B, T) of pairs of blurs and prior scales, and mean and precision of relative weights at each."""
    matrices = equations.matrices_at(blurs)[..., np.concatenate([[0], active + 1])]
    evidence, means, precision = _conditional(matrices, equations.target, equations.unknown[active], prior_scales)
    if len(blurs) > 1:  # half-normal in blur**2, over blurs at equal distances
        log_prior = np.log(np.maximum(blurs, 1e-6)) - 0.5 * (blurs**2 / BLUR_PRIOR) ** 2
        evidence += log_prior[:, None]
    evidence += np.log(prior_scales / (prior_scales**2 + MEDIAN_PRIOR_SCALE**2))
    p = np.exp(evidence - evidence.max())
    return p / p.sum(), means, precision


def _conditional(matrices, target, unknown, prior_scales):
    """Log evidence (B, T), means (B, T, n + 1), precisions of offset and relative weights by blur and prior scale."""
    n = len(unknown)
    mean = np.full((n, n), 1 / n)
    # of the relative weights: any gain, deviations of the prior scale, at most 100 % where unknown
    priors = (np.eye(n) - mean) / prior_scales[:, None, None] ** 2 + unknown @ unknown.T + mean / _ANY_GAIN**2
    padded = np.zeros((len(prior_scales), n + 1, n + 1))
    padded[:, 1:, 1:] = priors
    forward_model = np.concatenate([[0], np.ones(n)])
    precision = (matrices.swapaxes(1, 2) @ matrices)[:, None] + padded
    linear = (target @ matrices)[:, None] + padded @ forward_model
    means = np.linalg.solve(precision, linear[..., None])[..., 0]
    model_discrepancy = np.sum((target - np.einsum("bki,bti->btk", matrices, means)) ** 2, axis=-1)
    away = means - forward_model
    model_discrepancy += np.einsum("bti,tij,btj->bt", away, padded, away)
    evidence = 0.5 * (np.linalg.slogdet(priors)[1] - np.linalg.slogdet(precision)[1] - model_discrepancy)
    # Jeffreys' prior of offset and gain: a flat one prefers blurs at which they are known worst
    both = np.stack([matrices[..., 0], matrices[..., 1:].sum(axis=-1)], axis=-1)
    evidence += 0.5 * np.linalg.slogdet(both.swapaxes(1, 2) @ both)[1][:, None]
    return evidence, means, precision
