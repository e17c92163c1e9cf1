r"""Weights of an ensemble of fits: stacking, and pseudo-BMA+.

Stacking (Wolpert, Neural Networks 5, 241, 1992; Yao, Vehtari, Simpson & Gelman, Bayesian Anal. 13, 917, 2018) finds
the weights whose average predicts the held-out data best. With the maps ``x_jk`` of fit j to all folds but k, and the
score ``s_k`` of fold k, it solves for every map

    max_w  sum_k s_k(sum_j w_j x_jk)    subject to    w_j >= 0,  sum_j w_j = 1.

The score is concave in w, so that the maximum is a global one. Maps with few held-out counts share one set of weights.

This is sequential quadratic programming with the exact Hessian (Nocedal & Wright, Numerical Optimization, 2006, chapter
18). The loss, minus the score, is expanded to second order at the present weights. The minimum of the expansion is a
problem without data, and gives the next weights. Where the loss would rise, the step is halved. Two or three expansions
are enough, for the loss is close to quadratic.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import nnls

# fits of a smaller weight are left out; a map with fewer held-out counts has no weights of its own
SMALLEST_ENSEMBLE_WEIGHT, FEWEST_TO_STACK = 0.1, 1000
# of the score, which is close to a log-likelihood: a standard error of the weights is half a unit
_TOL = 1e-2
# added to the curvature, as a fraction: more than rounding in single precision
_RIDGE = 1e-5


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
    loss = _StackingLoss(folds, ensembles)
    used = np.ones(len(ensembles[0]), bool)
    weights = np.full((len(used), loss.n_groups), 1 / len(used))
    while used.sum() > 1:
        weights, expansion = loss.minimum(weights, used)
        # fits without weight are left out at no cost
        used = np.any(weights, axis=1)
        smallest = int(np.argmin(np.where(used, weights.max(axis=1), np.inf)))
        if weights[smallest].max() >= SMALLEST_ENSEMBLE_WEIGHT:
            break
        used[smallest] = False
        weights = np.where(used[:, None], weights, 0)
        weights = expansion.minimum(weights / weights.sum(axis=0), used)
    return weights[:, loss.group]


def without_small(weights):
    """Weights (fits, n) without fits that are small in all maps, of sum 1 again."""
    largest = weights.max(axis=1)
    kept = largest >= min(SMALLEST_ENSEMBLE_WEIGHT, largest.max())
    weights = np.where(kept[:, None], weights, 0)
    return weights / weights.sum(axis=0)


class _StackingLoss:
    """Minus the score of the average, summed over maps and folds."""

    def __init__(self, folds, ensembles):
        self.folds, self.ensembles = folds, ensembles
        rich = np.sum([fold.size() for fold in folds], axis=0) >= FEWEST_TO_STACK
        # (n,) of each map, the group that shares its weights: all poor maps, or the map alone
        self.group = np.unique(np.where(rich, np.arange(len(rich)), -1), return_inverse=True)[1]
        self.n_groups = self.group.max() + 1
        maps = ensembles[0]
        self._differences = np.empty((len(rich), len(maps) - 1, *maps[0].shape[1:]), maps[0].dtype)
        self._product = np.empty_like(self._differences[0])

    def minimum(self, weights, used):
        """Weights (fits, groups) of the used fits, from a start, and the last expansion, which is close to them."""
        expansion = self.expansion(weights, used)
        for _ in range(50):
            weights = expansion.minimum(expansion.weights, used)
            if expansion.decrease(weights) < _TOL:
                break
            expansion = self.step(expansion, weights, used)
        return weights, expansion

    def step(self, before, weights, used):
        """The expansion at new weights, or closer ones, where the loss has decreased by the trapezoidal rule."""
        step, after = weights - before.weights, self.expansion(weights, used)
        while np.sum(step * (before.gradient + after.gradient)) > 0:
            step = step / 2
            after = self.expansion(before.weights + step, used)
        return after

    def expansion(self, weights, used):
        """The :class:`_Expansion` at weights that are 0 for fits that are not used."""
        gradient, hessian = np.zeros(weights.shape), np.zeros(2 * weights.shape)
        first, *others = np.flatnonzero(used)
        between = np.ix_(others, others)
        for fold, maps in zip(self.folds, self.ensembles, strict=True):
            mean, differences = self._mean(weights, maps, first, others)
            slopes, curvatures = fold.derivatives(mean)
            for g, slope, difference in zip(self.group, slopes, differences, strict=True):
                gradient[others, g] -= np.tensordot(difference, slope)
            for i, j, curvature in curvatures:
                of_i, of_j, product = self.group[i], self.group[j], self._product[: len(others)]
                np.multiply(differences[i], curvature, out=product)
                block = np.array([np.tensordot(differences[j], one) for one in product])
                hessian[:, of_i, :, of_j][between] += block
                if i != j:
                    hessian[:, of_j, :, of_i][between] += block.T
        return _Expansion(weights, gradient, hessian)

    def _mean(self, weights, maps, first, others):
        """The average, and the differences (n, fits, ny, nx) of the other fits from the first.

        These are small, so that their products in single precision are accurate enough.
        """
        mean, differences = np.empty_like(maps[first]), self._differences[:, : len(others)]
        of_maps = weights[others][:, self.group].astype(mean.dtype)
        for i, differences_of_map in enumerate(differences):
            for j, difference in zip(others, differences_of_map, strict=True):
                np.subtract(maps[j][i], maps[first][i], out=difference)
            np.add(maps[first][i], np.tensordot(of_maps[:, i], differences_of_map, 1), out=mean[i])
        return mean, differences


class _Expansion(NamedTuple):
    """Of the loss to second order in the weights (fits, groups), the sum of which over the fits does not change.

    The gradient (fits, groups) and the Hessian (fits, groups, fits, groups) are those of the differences from one fit.
    """

    weights: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray

    def decrease(self, weights):
        """How much smaller the loss is at other weights."""
        step = weights - self.weights
        return -np.sum(step * (self.gradient + np.tensordot(self.hessian, step, 2) / 2))

    def minimum(self, start, used):
        """Weights of the used fits: each group in turn from a start, until the loss does not decrease any more.

        Columns of whole spectra are in bands together: their weights depend on each other.
        """
        weights, before = start.copy(), -np.inf
        while (decrease := self.decrease(weights)) - before > _TOL / 10:
            before = decrease
            for g in range(weights.shape[1]):
                gradient = self.gradient[:, g] + np.tensordot(self.hessian[:, g], weights - self.weights, 2)
                hessian = self.hessian[:, g, :, g][np.ix_(used, used)]
                weights[used, g] = _minimum_of_group(weights[used, g], gradient[used], hessian)
        return weights


def _minimum_of_group(start, gradient, hessian):
    """Weights >= 0, of sum 1, that minimize the quadratic function of this gradient and Hessian at the start.

    With ``R^T R`` the Hessian, it is ``|R w - t|^2 = |P w|^2`` with ``P = R - t 1^T``. The minimum is proportional to
    the solution ``w >= 0`` of ``P w = 0, 1^T w = 1`` by least squares, as the conditions of both are the same.
    """
    # fits that are alike keep their weights
    root = cholesky(hessian + np.diag(_RIDGE * np.diag(hessian) + np.finfo(float).eps))
    points = root - (root @ start - solve_triangular(root, gradient, trans=1))[:, None]
    size = np.abs(points).max() + np.finfo(float).tiny
    system = np.vstack([points / size, np.ones(len(start))])
    solution = nnls(system, np.append(np.zeros(len(start)), 1))[0]
    return solution / solution.sum()


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
