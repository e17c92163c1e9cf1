r"""Weights of an ensemble of fits: stacking, and pseudo-BMA+.

Stacking (Wolpert, Neural Networks 5, 241, 1992; Yao, Vehtari, Simpson & Gelman, Bayesian Anal. 13, 917, 2018) finds
the weights whose average predicts the held-out data best. With the maps ``x_jk`` of fit j to all folds but k, and the
score ``s_k`` of fold k, it solves for every map

    max_w  sum_k s_k(sum_j w_j x_jk)    subject to    w_j >= 0,  sum_j w_j = 1.

The score is concave in w, so that the maximum is a global one. Maps with few held-out counts share one set of weights.
"""

from __future__ import annotations

import numpy as np

from hyperspy_fusion.fusion.selection.model_averaging import weighted_mean

# fits of a smaller weight are left out; a map with fewer held-out counts has no weights of its own
SMALLEST_ENSEMBLE_WEIGHT, FEWEST_TO_STACK = 0.1, 1000
# of the score, which is close to a log-likelihood: a standard error of the weights is half a unit
_TOL = 1e-2


def stacking_weights(folds, ensembles):
    """Weights of the average of some fits that predicts the held-out data best.

    Parameters
    ----------
    folds
        Held-out data.
    ensembles
        For every fold, a list of maps (n, ny, nx), one of each fit.

    Returns
    -------
    ndarray
        (fits, n), >= 0, of sum 1 over the fits; 0 for fits of small weight.
    """
    used = list(range(len(ensembles[0])))
    while True:
        weights = _StackingLoss(folds, [[maps[j] for j in used] for maps in ensembles]).minimum()
        smallest = int(np.argmin(weights.max(axis=1)))
        if len(used) == 1 or weights[smallest].max() >= SMALLEST_ENSEMBLE_WEIGHT:
            break
        del used[smallest]
    full = np.zeros((len(ensembles[0]), weights.shape[1]))
    full[used] = weights
    return full


def without_small(weights):
    """Weights (fits, n) without fits that are small in all maps, of sum 1 again."""
    largest = weights.max(axis=1)
    kept = largest >= min(SMALLEST_ENSEMBLE_WEIGHT, largest.max())
    weights = np.where(kept[:, None], weights, 0)
    return weights / weights.sum(axis=0)


class _StackingLoss:
    """Minus the score of the average, summed over maps and folds, and its gradient."""

    def __init__(self, folds, ensembles):
        self.folds, self.ensembles = folds, ensembles
        self.n_fits = len(ensembles[0])
        # (groups, n) of maps that share weights
        rich = np.sum([fold.size() for fold in folds], axis=0) >= FEWEST_TO_STACK
        groups = np.vstack([~rich, np.eye(len(rich))[rich]])
        self.groups = groups[groups.any(axis=1)]

    def minimum(self):
        """(fits, n) weights."""
        from scipy.optimize import minimize

        if self.n_fits == 1:
            return np.ones((1, self.groups.shape[1]))
        sums = np.tile(np.eye(len(self.groups)), self.n_fits)  # of the weights of one group, over all fits
        equal = np.full(sums.shape[1], 1 / self.n_fits)
        scale = self._curvature(equal)

        def scaled(weights):
            value, gradient = self.value_and_gradient(weights)
            return value / scale, gradient / scale

        found = minimize(
            scaled,
            equal,
            jac=True,
            method="SLSQP",
            bounds=[(0, 1)] * sums.shape[1],
            constraints={"type": "eq", "fun": lambda a: sums @ a - 1, "jac": lambda a: sums},
            options={"ftol": _TOL / scale, "maxiter": 50},
        )
        weights = np.where(found.x > 1e-3, found.x, 0).reshape(self.n_fits, -1)
        return weights / weights.sum(axis=0) @ self.groups

    def _curvature(self, equal):
        """How much the gradient changes on the way to one fit: SLSQP assumes 1, and else may not leave its start."""
        single = np.zeros_like(equal)
        single[: len(self.groups)] = 1
        gradients = [self.value_and_gradient(weights)[1] for weights in (single, equal)]
        return max(float(np.abs(gradients[0] - gradients[1]).max()), 1.0)

    def value_and_gradient(self, weights):
        """Of the flat weights (fits, groups)."""
        of_maps = weights.reshape(self.n_fits, -1) @ self.groups
        value, gradient = 0.0, np.zeros(of_maps.shape)
        for fold, maps in zip(self.folds, self.ensembles, strict=True):
            mean = weighted_mean(of_maps, maps)
            by_map = fold.gradient(mean)
            value -= fold.scores(mean).sum(dtype=np.float64)
            gradient -= [np.einsum("nyx,nyx->n", by_map, m) for m in maps]
        return value, (gradient @ self.groups.T).ravel()


def pseudo_bma_weights(scores):
    """Pseudo-BMA+ weights: how likely each fit is to predict best; 0 for fits of small weight.

    ``w_j`` is the mean of ``exp(S_j) / sum_i exp(S_i)`` over normal draws of the total scores S, with the covariance
    that the pixels show (Yao et al. 2018). Unlike stacking weights, these are not fitted to chance.

    Parameters
    ----------
    scores
        (fits, ny, nx) of the held-out data.

    Returns
    -------
    ndarray
        (fits,), >= 0, of sum 1.
    """
    scores = np.reshape(scores, (len(scores), -1)).astype(np.float64)
    difference = scores - scores[np.argmax(scores.sum(axis=1))]
    rng = np.random.default_rng(0)
    # semidefinite as a product with its transpose, whatever rounding makes of it
    draw = {"size": 2000, "method": "svd", "check_valid": "ignore"}
    totals = rng.multivariate_normal(difference.sum(axis=1), difference @ difference.T, **draw)
    weights = np.exp(totals - totals.max(axis=1, keepdims=True))
    weights = np.mean(weights / weights.sum(axis=1, keepdims=True), axis=0)
    weights[weights < min(SMALLEST_ENSEMBLE_WEIGHT, weights.max())] = 0
    return weights / weights.sum()
