"""Paired comparison of fits by their scores on the same held-out data."""

from __future__ import annotations

from typing import Any

import numpy as np

# a difference of so many standard errors is not compared on further folds
SIGNIFICANT = 2.0
# of a pixel: the maps of a fit that became infinite, or that is off by as much, predict nothing
LARGEST_SCORE = 1e30


class PairedComparison:
    """Candidates compared in pairs, on as many folds as it takes to tell them apart.

    The scores s_a and s_b of two fits share the noise of the held-out counts, which their difference
    ``d = s_a - s_b`` in each pixel does not have. The sum of d has the standard error ``sqrt(sum d**2)``.

    Parameters
    ----------
    folds
        Held-out data with a method ``scores``.
    fit
        Candidate and number of the fold to maps (n, ny, nx) of the data without it.
    tick
        Called after every fit with their number.
    """

    def __init__(self, folds, fit, tick=lambda n_fits: None):
        self.folds, self.fit, self.tick = folds, fit, tick
        self.scores = {}

    def score(self, candidate, k):
        """(ny, nx) score of a candidate in fold k, summed over the maps."""
        scores = self.scores.setdefault(candidate, [])
        while len(scores) <= k:
            of_maps = self.folds[len(scores)].scores(self.fit(candidate, len(scores)))
            total = of_maps.sum(axis=0)
            if not np.abs(total).max() <= LARGEST_SCORE:
                raise FloatingPointError(
                    "A fit to a part of the data is infinitely far from the rest: take settings nearer to the defaults."
                )
            scores.append(total.astype(np.float32))
            self.tick(sum(len(of_candidate) for of_candidate in self.scores.values()))
        return scores[k]

    def is_better(self, a, b, n_folds=None):
        """Whether a predicts better than b, on at most so many folds."""
        difference: Any = 0.0
        for k in range(len(self.folds[:n_folds])):
            # the known one first: the fit of the other starts from it
            difference = difference - self.score(b, k) + self.score(a, k)
            if abs(in_standard_errors(difference)) > SIGNIFICANT:
                break
        return bool(difference.sum() > 0)

    def is_worth(self, a, b, least):
        """Whether a predicts better than b on all folds, by a standard error and a log-likelihood of so much.

        Part of the folds would decide for a by chance too often.
        """
        difference: Any = 0.0
        for k in range(len(self.folds)):
            difference = difference - self.score(b, k) + self.score(a, k)
            if in_standard_errors(difference) < -SIGNIFICANT:
                return False
        return bool(difference.sum(dtype=np.float64) > least) and in_standard_errors(difference) > 1

    def climb(self, start, step, factors, n_folds=None):
        """The best candidate uphill of ``start``; ``step`` takes a candidate by a factor, or to None at the end."""
        for factor in factors:
            best = start
            while (further := step(best, factor)) is not None and self.is_better(further, best, n_folds):
                best = further
            if best != start:
                return best
        return start

    def mean_score(self, candidate, best):
        """Mean score per pixel, and the standard error of its difference from that of ``best``.

        Folds differ by chance: a candidate of few folds is compared with the best on the same ones.
        """
        of_best = np.array([self.score(best, k) for k in range(len(self.folds))])
        scores = np.asarray(self.scores[candidate], dtype=np.float64)
        difference = np.mean(scores - of_best[: len(scores)], axis=0)
        error = np.sqrt(np.sum(difference**2)) / difference.size
        return float(of_best.mean() + difference.mean()), float(error)


def in_standard_errors(difference):
    """Sum of a difference over pixels, divided by its standard error."""
    difference = np.asarray(difference, dtype=np.float64)
    return float(difference.sum()) / max(float(np.sqrt(np.sum(difference**2))), 1e-300)
