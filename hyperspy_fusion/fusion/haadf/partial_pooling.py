"""Partial pooling: weights between what the data say of each and a forward model for all, by how well the forward model is seen to hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperspy_fusion.fusion.settings import MAX_BLUR

# Spreads of the weights about the forward model that are looked at: from what no forward model can be trusted beyond to maps in units that
# have nothing to do with each other.
SPREADS = np.geomspace(0.02, 1e4, 56)
# Scale of the half-Cauchy prior of the spread, its median: exponents from 1.4 to 2 and cross sections known to some ten
# per cent. Its tail lets the data refuse the forward model.
SPREAD_SCALE = 0.2
# Standard deviation of the half-normal prior on blur**2, in px**2. It decides where the data do not.
BLUR_PRIOR = 4.0
# Blurs looked at, first up to the largest, then over the standard deviations about the mean that matter.
_BLURS, _REACH = 41, 4.0
# Standard deviation of the prior of the gain, relative to a first estimate: next to none.
_ANY_GAIN = 100.0


@dataclass(frozen=True)
class Equations:
    """Moments of the data, whitened: ``matrix_at(blur) @ (offset, relative weights)`` is ``target`` up to N(0, 1).

    Weights are relative to gain times shape, so that the forward model has them all alike. ``unknown`` (n, m) are orthonormal
    directions of the relative weights that the data say nothing of.
    """

    moments: object
    whitening: np.ndarray
    scale: np.ndarray
    unknown: np.ndarray

    @property
    def target(self):
        return self.whitening @ self.moments.target

    def matrix_at(self, blur):
        return self.whitening @ self.moments.at(blur) * np.concatenate([[1], self.scale])


@dataclass(frozen=True)
class Posterior:
    """Mean of (offset, weights), covariance of these and blur**2, mean blur, geometric mean of the spread."""

    mean: np.ndarray
    covariance: np.ndarray
    blur: float
    spread: float


def pooled(equations, blur, spread):
    """Posterior of offset, weights, blur and spread by quadrature over the last two.

    The relative weights are ``r_i ~ N(a, spread**2)`` with any ``a``: the penalty ``|P r|**2 / spread**2``, ``P`` the
    projection onto deviations from the mean. Given blur and spread the posterior is normal; its evidence weighs the
    pairs (empirical Bayes in which the spread is averaged over rather than set to the likeliest: Gelman, Bayesian
    Anal. 1, 515, 2006, for the half-Cauchy prior). Weights that come out negative are 0, the lowest first.

    Parameters
    ----------
    equations
        The :class:`Equations`.
    blur
        Standard deviation in pixels, or None to find it.
    spread
        Relative standard deviation of the weights about the forward model, above 0, or None to find it.

    Returns
    -------
    Posterior
        The covariance and the spread are those of weights of any sign.
    """
    active = np.arange(len(equations.scale))
    first = found = _of_active(equations, active, blur, spread)
    while np.any(found.mean[1:] < 0):
        active = np.delete(active, np.argmin(found.mean[1:] / equations.scale[active]))
        if not active.size:
            raise np.linalg.LinAlgError("no weight is above 0")
        found = _of_active(equations, active, blur, spread)
    mean = np.zeros(len(equations.scale) + 1)
    mean[np.concatenate([[0], active + 1])] = found.mean
    return Posterior(mean, first.covariance, found.blur, first.spread)


def _of_active(equations, active, blur, spread):
    """Posterior of the weights ``active``, the others being 0."""
    spreads = SPREADS if spread is None else np.array([float(spread)])
    columns = np.concatenate([[0], active + 1])
    scale = np.concatenate([[1], equations.scale[active]])
    unknown = equations.unknown[active]
    if blur is not None:
        return _over(equations, columns, scale, unknown, np.array([float(blur)]), spreads)
    blurs = np.linspace(0, MAX_BLUR, _BLURS)
    rough = _over(equations, columns, scale, unknown, blurs, spreads)
    reach = _REACH * max(_blur_error(rough), blurs[1] / 2)
    blurs = np.linspace(max(0, rough.blur - reach), min(MAX_BLUR, rough.blur + reach), _BLURS)
    return _over(equations, columns, scale, unknown, blurs, spreads)


def _over(equations, columns, scale, unknown, blurs, spreads):
    """Posterior over pairs of blurs and spreads."""
    matrices = np.stack([equations.matrix_at(b)[:, columns] for b in blurs])
    evidence, means, covariances = _conditional(matrices, equations.target, unknown, spreads)
    evidence += _log_prior(blurs)[:, None] + np.log(spreads / (spreads**2 + SPREAD_SCALE**2))
    p = np.exp(evidence - evidence.max())
    p /= p.sum()
    of_blur = np.broadcast_to((blurs**2)[:, None, None], (*p.shape, 1))
    means = np.concatenate([means * scale, of_blur], axis=-1)
    mean = np.tensordot(p, means, 2)
    away = (means - mean).reshape(p.size, -1)
    covariance = (away * p.reshape(-1, 1)).T @ away
    covariance[:-1, :-1] += np.outer(scale, scale) * np.tensordot(p, covariances, 2)
    return Posterior(
        mean[:-1], covariance, float(p.sum(axis=1) @ blurs), float(np.exp(p.sum(axis=0) @ np.log(spreads)))
    )


def _log_prior(blurs):
    """Half-normal in blur**2, over blurs at equal distances."""
    if len(blurs) == 1:
        return np.zeros(1)
    return np.log(np.maximum(blurs, 1e-6)) - 0.5 * (blurs**2 / BLUR_PRIOR) ** 2


def _blur_error(posterior):
    """Standard deviation of the blur from that of its square."""
    error = np.sqrt(posterior.covariance[-1, -1])
    return error / max(2 * posterior.blur, np.sqrt(error), 1e-6)


def _conditional(matrices, target, unknown, spreads):
    """Log evidence (B, T), means (B, T, n + 1) and covariances of offset and relative weights, by blur and spread."""
    priors = _precisions(unknown, spreads)
    n = priors.shape[-1]
    padded = np.zeros((len(spreads), n + 1, n + 1))
    padded[:, 1:, 1:] = priors
    forward_model = np.concatenate([[0], np.ones(n)])
    precision = (matrices.swapaxes(1, 2) @ matrices)[:, None] + padded
    pull = (target @ matrices)[:, None] + padded @ forward_model
    means = np.linalg.solve(precision, pull[..., None])[..., 0]
    misfit = np.sum((target - np.einsum("bki,bti->btk", matrices, means)) ** 2, axis=-1)
    away = means - forward_model
    misfit += np.einsum("bti,tij,btj->bt", away, padded, away)
    evidence = 0.5 * (np.linalg.slogdet(priors)[1] - np.linalg.slogdet(precision)[1] - misfit)
    # Jeffreys' prior of offset and gain: a flat one prefers blurs at which they are known worst
    both = np.stack([matrices[..., 0], matrices[..., 1:].sum(axis=-1)], axis=-1)
    evidence += 0.5 * np.linalg.slogdet(both.swapaxes(1, 2) @ both)[1][:, None]
    return evidence, means, np.linalg.inv(precision)


def _precisions(unknown, spreads):
    """(T, n, n) of the relative weights: any gain, deviations as large as the spread, at most 100 % where unknown."""
    n = len(unknown)
    mean = np.full((n, n), 1 / n)
    return (np.eye(n) - mean) / spreads[:, None, None] ** 2 + unknown @ unknown.T + mean / _ANY_GAIN**2
