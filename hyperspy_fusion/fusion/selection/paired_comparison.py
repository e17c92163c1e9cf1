"""Paired comparison of fits by their scores on the same held-out data."""

from __future__ import annotations

from typing import Any

import numpy as np

# a difference of so many standard errors is not compared on further folds
SIGNIFICANT = 2.0
# of a pixel: the maps of a fit that became infinite, or that is off by as much, predict nothing
LARGEST_SCORE = 1e30


class PairedComparison:
    """Candidates compared in pairs, on as many folds as it takes to tell them apart: one, or all.

    The scores s_a and s_b of two fits share the noise of the held-out counts, which their difference
    ``d = s_a - s_b`` in each pixel does not have. The sum of d has the standard error ``sqrt(sum d**2)``.

    Comparisons are generators that yield the fits they need next, each a candidate and a number of folds, so that
    those of several comparisons can be made side by side.

    Parameters
    ----------
    folds
        Held-out data with a method ``scores``.
    fit
        Candidate and number of the fold to maps (n, ny, nx) of the data without it.
    tick
        Called after every fit with their number.
    prepare
        Called with the pairs (candidate, fold) whose fits are asked for next.
    """

    def __init__(self, folds, fit, tick=lambda n_fits: None, prepare=lambda pairs: None):
        self.folds, self.fit, self.tick, self.prepare = folds, fit, tick, prepare
        self.scores = {}

    def score(self, candidate, k):
        """(ny, nx) score of a candidate in fold k, summed over the maps."""
        self.need([(candidate, k + 1)])
        return self.scores[candidate][k]

    def need(self, wanted):
        """Score candidates on folds; ``wanted`` are pairs (candidate, number of folds)."""
        # a fit without another fold starts like that without the first
        for first in (True, False):
            pairs = [(c, k) for c, n in wanted for k in range(n) if (k == 0) == first and not self._is_known(c, k + 1)]
            self.prepare(pairs)
            for candidate, k in pairs:
                self._score(candidate, k)

    def _is_known(self, candidate, n_folds):
        return len(self.scores.get(candidate, ())) >= n_folds

    def _score(self, candidate, k):
        total = self.folds[k].scores(self.fit(candidate, k)).sum(axis=0)
        if not np.abs(total).max() <= LARGEST_SCORE:
            raise FloatingPointError(
                "A fit to a part of the data is infinitely far from the rest: take settings nearer to the defaults."
            )
        self.scores.setdefault(candidate, []).append(total.astype(np.float32))
        self.tick(sum(len(of_candidate) for of_candidate in self.scores.values()))

    def side_by_side(self, comparisons):
        """The values of several comparisons."""
        values: list[Any] = [None] * len(comparisons)
        running = dict(enumerate(comparisons))
        while running:
            wanted = []
            for i, comparison in list(running.items()):
                try:
                    wanted.append(next(comparison))
                except StopIteration as end:
                    values[i] = end.value
                    del running[i]
            self.need(wanted)
        return values

    def is_better(self, a, b, n_folds=None):
        """Whether a predicts better than b, on at most so many folds."""
        return self.side_by_side([self.comparing(a, b, n_folds)])[0]

    def comparing(self, a, b, n_folds=None):
        """The generator of :meth:`is_better`."""
        difference = yield from self._difference(a, b, n_folds)
        return bool(difference.sum() > 0)

    def _difference(self, a, b, n_folds=None):
        """(ny, nx) sum of score a less score b over the first fold, or over all where it does not tell them apart."""
        difference: Any = 0.0
        n_folds = len(self.folds[:n_folds])
        for last in dict.fromkeys((1, n_folds)):
            # the known one first: the fit of the other starts from it
            for candidate in (b, a):
                if not self._is_known(candidate, last):
                    yield candidate, last
            difference = sum(self.score(a, k) - self.score(b, k) for k in range(last))
            if abs(in_standard_errors(difference)) > SIGNIFICANT:
                break
        return difference

    def is_worth(self, a, b, least):
        """Whether a predicts better than b on all folds, by a standard error and a log-likelihood of so much.

        Part of the folds would decide for a by chance too often.
        """
        if in_standard_errors(self.score(a, 0) - self.score(b, 0)) < -SIGNIFICANT:
            return False
        for candidate in (b, a):
            self.need([(candidate, len(self.folds))])
        pairs = zip(self.scores[a], self.scores[b], strict=False)
        difference: Any = sum(of_a - of_b for of_a, of_b in pairs)
        return bool(difference.sum(dtype=np.float64) > least) and in_standard_errors(difference) > 1

    def climb(self, start, step, factors, n_folds=None):
        """The best candidate uphill of ``start``; ``step`` takes a candidate by a factor, or to None at the end."""
        return self.side_by_side([self.climbing(start, step, factors, n_folds)])[0]

    def climbing(self, start, step, factors, n_folds=None):
        """The generator of :meth:`climb`."""
        for factor in factors:
            best = start
            while (further := step(best, factor)) is not None:
                is_better = yield from self.comparing(further, best, n_folds)
                if not is_better:
                    break
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
