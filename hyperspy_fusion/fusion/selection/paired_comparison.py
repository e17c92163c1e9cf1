"""Fits compared by data that they have not seen, and averaged by how well they predict them."""

from __future__ import annotations

import numpy as np

from hyperspy_fusion.fusion.selection.model_averaging import weighted_mean

# a difference of so many standard errors is not asked for again in other parts
SURE = 2.0
# of the fits that are averaged; and what must be held out of a map to give it weights of its own
LIGHTEST, FEWEST_TO_STACK = 0.1, 1000
# of their score, which is next to a log-likelihood: a standard error of weights is half a unit
STACK_TOL = 1e-2


class Race:
    """Candidates compared in pairs on parts held out, on as many as it takes to tell them apart.

    The noise of a score is that of the counts held out, and much larger than that of the difference of two scores on
    the same counts; of this the pixels tell the standard error.

    Parameters
    ----------
    parts
        Held-out data with a method ``gains``.
    fit
        Candidate and number of the part to maps (n, ny, nx) of the data it leaves.
    tick
        Called after every fit.
    """

    def __init__(self, parts, fit, tick=lambda: None):
        self.parts, self.fit, self.tick = parts, fit, tick
        self.gains = {}

    def gain(self, candidate, k):
        """(ny, nx) gain of a candidate in part k, over all maps."""
        known = self.gains.setdefault(candidate, [])
        while len(known) <= k:
            gains = self.parts[len(known)].gains(self.fit(candidate, len(known)))
            known.append(gains.sum(axis=0).astype(np.float32))
            self.tick()
        return known[k]

    def is_better(self, a, b, parts=None):
        """Whether a predicts better than b, on so many parts at most."""
        difference = 0.0
        for k in range(len(self.parts[:parts])):
            # the one known first: the other is fitted from there
            difference = difference - self.gain(b, k) + self.gain(a, k)
            if abs(in_errors(difference)) > SURE:
                break
        return bool(difference.sum() > 0)

    def climb(self, start, step, factors, parts=None):
        """The best candidate uphill of ``start``; ``step`` takes a candidate by a factor, or to None at the end."""
        for factor in factors:
            best = start
            while (further := step(best, factor)) is not None and self.is_better(further, best, parts):
                best = further
            if best != start:
                return best
        return start

    def score(self, candidate, best):
        """Mean gain per pixel, and the standard error of its difference from that of ``best``.

        Parts differ by chance, and a candidate may have been fitted to few: it is compared with the best on the same.
        """
        of_best = np.array([self.gain(best, k) for k in range(len(self.parts))])
        difference = np.mean(self.gains[candidate] - of_best[: len(self.gains[candidate])], axis=0)
        error = np.sqrt(np.sum(difference**2)) / difference.size
        return float(of_best.mean() + difference.mean()), float(error)


def in_errors(difference):
    """Sum over pixels, by its standard error."""
    return float(difference.sum()) / max(float(np.sqrt(np.sum(difference**2))), 1e-300)


def stack(parts, members):
    """Weights of the mean of some fits that predicts best what was held out.

    Each map has weights of its own; those of which little was held out have theirs in common.

    Parameters
    ----------
    parts
        Held-out data.
    members
        For every part, a list of maps (n, ny, nx), one of each fit.

    Returns
    -------
    ndarray
        (fits, n), >= 0, of sum 1 over the fits; light ones are left out.
    """
    used = list(range(len(members[0])))
    while True:
        weights = _StackLoss(parts, [[maps[j] for j in used] for maps in members]).minimum()
        lightest = int(np.argmin(weights.max(axis=1)))
        if len(used) == 1 or weights[lightest].max() >= LIGHTEST:
            break
        del used[lightest]
    full = np.zeros((len(members[0]), weights.shape[1]))
    full[used] = weights
    return full


class _StackLoss:
    """Minus the gain of the weighted mean of maps, summed over maps and parts, and its derivatives."""

    def __init__(self, parts, members):
        self.parts, self.members = parts, members
        self.fits = len(members[0])
        held_out = sum(part.size() for part in parts)
        # (groups, n) of maps with weights in common
        rich = held_out >= FEWEST_TO_STACK
        groups = np.vstack([~rich, np.eye(len(rich))[rich]])
        self.groups = groups[groups.any(axis=1)]

    def minimum(self):
        """(fits, n) weights."""
        from scipy.optimize import minimize

        if self.fits == 1:
            return np.ones((1, self.groups.shape[1]))
        sums = np.tile(np.eye(len(self.groups)), self.fits)  # of the weights of one group, over all fits
        alike = np.full(sums.shape[1], 1 / self.fits)
        scale = self._bend(alike)

        def scaled(weights):
            value, slopes = self.value_and_slopes(weights)
            return value / scale, slopes / scale

        found = minimize(
            scaled,
            alike,
            jac=True,
            method="SLSQP",
            bounds=[(0, 1)] * sums.shape[1],
            constraints={"type": "eq", "fun": lambda a: sums @ a - 1, "jac": lambda a: sums},
            options={"ftol": STACK_TOL / scale, "maxiter": 50},
        )
        weights = np.where(found.x > 1e-3, found.x, 0).reshape(self.fits, -1)
        return weights / weights.sum(axis=0) @ self.groups

    def _bend(self, alike):
        """How much slopes change on the way to one fit: SLSQP takes it for 1, and else may not leave its start."""
        alone = np.zeros_like(alike)
        alone[: len(self.groups)] = 1
        slopes = [self.value_and_slopes(weights)[1] for weights in (alone, alike)]
        return max(float(np.abs(slopes[0] - slopes[1]).max()), 1.0)

    def value_and_slopes(self, weights):
        """Of the flat weights (fits, groups)."""
        of_maps = weights.reshape(self.fits, -1) @ self.groups
        value, slopes = 0.0, np.zeros(of_maps.shape)
        for part, maps in zip(self.parts, self.members, strict=True):
            mean = weighted_mean(of_maps, maps)
            slope = part.slopes(mean)
            value -= part.gains(mean).sum()
            slopes -= [np.einsum("nyx,nyx->n", slope, m) for m in maps]
        return value, (slopes @ self.groups.T).ravel()


def indistinct(gains):
    """Weights of fits by how likely each is to predict best; light ones are left out.

    They are the mean of those by score as a log-likelihood, over totals as uncertain as their pixels say: pseudo-BMA+
    (Yao, Vehtari, Simpson & Gelman, Bayesian Anal. 13, 917, 2018). Unlike those of :func:`stack`, they are not fitted
    to chance.

    Parameters
    ----------
    gains
        (fits, ny, nx) of the data held out.

    Returns
    -------
    ndarray
        (fits,), >= 0, of sum 1.
    """
    gains = np.reshape(gains, (len(gains), -1)).astype(np.float64)
    difference = gains - gains[np.argmax(gains.sum(axis=1))]
    rng = np.random.default_rng(0)
    totals = rng.multivariate_normal(difference.sum(axis=1), difference @ difference.T, 2000, method="svd")
    weights = np.exp(totals - totals.max(axis=1, keepdims=True))
    weights = np.mean(weights / weights.sum(axis=1, keepdims=True), axis=0)
    weights[weights < min(LIGHTEST, weights.max())] = 0
    return weights / weights.sum()
