"""Paired comparison of fits by their scores on the same held-out data."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.solvers.threads import go_on_side_by_side

# a difference of so many standard errors is not compared on further folds
SIGNIFICANT = 2.0
# a fit so many standard errors behind another one, in one fold, is given up; a penalty so far behind has its weight
# from one fold
FAR_BEHIND = 4.0
# a fit gains at most so many times what it gained in the last half of its iterations
STILL_GAINED = 4.0
# of a pixel: the maps of a fit that became infinite, or that is off by as much, predict nothing
LARGEST_SCORE = 1e30


class PairedComparison:
    """Candidates compared in pairs, on as many folds as it takes to tell them apart: one, or all.

    The scores s_a and s_b of two fits share the noise of the held-out counts, which their difference
    ``d = s_a - s_b`` in each pixel does not have. The sum of d has the standard error ``sqrt(sum d**2)``.

    Comparisons are generators that yield the fits they need next, each a candidate and a number of folds, so that
    several comparisons of different candidates can be made side by side. In the first fold a candidate may have a
    rival, whose score is known. A fit that will not catch up with it is given up, and so is one that ends far from its
    minimum and does not predict significantly better (:class:`Trial`). It does not count as better than this rival, and
    is made again, without a trial, where anything else needs it.

    Parameters
    ----------
    folds
        Held-out data with a method ``scores``.
    fit
        Candidate and number of the fold to maps (n, ny, nx) of the data without it.
    sequences_of
        Takes a dictionary of the pairs (candidate, fold) whose fits are asked for next, each with its :class:`Trial` or
        None, to sequences of functions that make them: see
        :func:`~hyperspy_fusion.fusion.solvers.threads.go_on_side_by_side`.
    tick
        Called after every function of these sequences with their number.
    num_workers
        Threads; None for all.
    """

    def __init__(self, folds, fit, tick=lambda n_fits: None, sequences_of=lambda pairs: [], num_workers=None):
        self.folds, self.fit, self.tick = folds, fit, tick
        self.sequences_of, self.num_workers = sequences_of, num_workers
        self.n_fits = 0
        self.scores: dict[Any, list] = {}
        self.given_up: dict[Any, Any] = {}  # and the rival of each

    def score(self, candidate, k):
        """(ny, nx) score of a candidate in fold k, summed over the maps."""
        self.need([(candidate, k + 1)])
        return self.scores[candidate][k]

    def need(self, wanted):
        """Score candidates on folds; ``wanted`` are (candidate, number of folds) or (candidate, 1, rival)."""
        self.side_by_side([iter([wanted])])

    def side_by_side(self, comparisons):
        """The values of several comparisons, each a generator of what :meth:`need` takes; each goes on by itself."""
        earlier, scored = list(self.scores), [[] for _ in comparisons]
        workflows = [self._workflow(*pair) for pair in zip(comparisons, scored, strict=True)]
        values = go_on_side_by_side(workflows, self.num_workers, self._count)
        # in an order that does not depend on which was done first
        self.scores = {candidate: self.scores[candidate] for candidate in chain(earlier, *scored)}
        return values

    def _workflow(self, comparison, scored):
        """Generator of the work on a comparison; its candidates are appended to ``scored``."""
        while True:
            try:
                wanted = next(comparison)
            except StopIteration as end:
                return end.value
            # a fit without another fold starts like that without the first
            for first in (True, False):
                rivals = self._rivals(wanted, first)
                trials = {(candidate, k): self._trial(k, rival) for (candidate, k), rival in rivals.items()}
                yield self.sequences_of(trials)
                for (candidate, k), trial in trials.items():
                    self._score(candidate, k, trial, rivals[candidate, k])
                    scored.append(candidate)

    def _rivals(self, wanted, first):
        """{(candidate, fold): rival or None} of what is not known yet, in the first fold or in the others."""
        rivals: dict = {}
        for candidate, n_folds, *own in wanted:
            rival = own[0] if own else None
            for k in range(n_folds):
                if (k == 0) == first and not self._is_known(candidate, k, rival):
                    # of several wishes for a fit, that for its end counts
                    rivals[candidate, k] = rival if rivals.get((candidate, k), rival) == rival else None
        return rivals

    def _count(self):
        self.n_fits += 1
        self.tick(self.n_fits)

    def _is_known(self, candidate, k, rival=None):
        is_made = k > 0 or candidate not in self.given_up or (rival is not None and self.given_up[candidate] == rival)
        return is_made and len(self.scores.get(candidate, ())) > k

    def _trial(self, k, rival):
        return None if rival is None else Trial(self.folds[k], self.scores[rival][k], rival)

    def _score(self, candidate, k, trial, rival):
        if trial is not None and trial.is_over:
            total, self.given_up[candidate] = trial.score, rival
        else:
            total = self.folds[k].scores(self.fit(candidate, k)).sum(axis=0)
            if k == 0:
                self.given_up.pop(candidate, None)
        if not np.abs(total).max() <= LARGEST_SCORE:
            raise FloatingPointError(
                "A fit to a part of the data is infinitely far from the rest: take settings nearer to the defaults."
            )
        self.scores.setdefault(candidate, [])[k : k + 1] = [total.astype(np.float32)]

    def is_better(self, a, b, n_folds=None):
        """Whether a predicts better than b, on at most so many folds."""
        return self.side_by_side([self.comparing(a, b, n_folds)])[0]

    def comparing(self, a, b, n_folds=None):
        """The generator of :meth:`is_better`."""
        difference = yield from self._difference(a, b, n_folds)
        return bool(difference.sum() > 0) and self.given_up.get(a) != b

    def _difference(self, a, b, n_folds=None):
        """(ny, nx) sum of score a less score b over the first fold, or over all where it does not tell them apart."""
        difference: Any = 0.0
        n_folds = len(self.folds[:n_folds])
        for last in dict.fromkeys((1, n_folds)):
            # the known one first: the fit of the other starts from it
            if not self._is_known(b, last - 1):
                yield [(b, last)]
            rival = (b,) if last == 1 else ()
            if not self._is_known(a, last - 1, *rival):
                yield [(a, last, *rival)]
            pairs = zip(self.scores[a][:last], self.scores[b][:last], strict=True)
            difference = sum(of_a - of_b for of_a, of_b in pairs)
            if abs(in_standard_errors(difference)) > SIGNIFICANT or self.given_up.get(a) == b:
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
        return float(of_best.mean() + difference.mean()), standard_error(difference) / difference.size


class Trial:
    """Asked of the maps of a running fit, each time after twice as many iterations: is it to be given up?

    With the difference d of its score from that of its rival, and the gain g since it was asked before, it is where
    ``(sum d + STILL_GAINED g) / sqrt(sum d**2) < -FAR_BEHIND``. For a fit that ended far from its minimum,
    :meth:`end_far_from_the_minimum` is to be called.

    Parameters
    ----------
    fold
        Held-out data with a method ``scores``.
    rival
        (ny, nx) score there of another fit.
    of
        The candidate with this score.
    """

    def __init__(self, fold, rival, of=None):
        self.fold, self.rival, self.of = fold, rival, of
        self.score: Any = None
        self.is_over = False

    def __call__(self, maps):
        before, self.score = self.score, self.fold.scores(maps).sum(axis=0)
        if before is not None:
            gained = max(float(np.sum(self.score - before, dtype=np.float64)), 0.0)
            difference = np.asarray(self.score - self.rival, dtype=np.float64)
            at_most = float(difference.sum()) + STILL_GAINED * gained
            self.is_over = at_most < -FAR_BEHIND * standard_error(difference)
        return self.is_over

    def end_far_from_the_minimum(self, maps):
        """Of a fit that ended there: it is given up unless it predicts significantly better."""
        self.score = self.fold.scores(maps).sum(axis=0)
        self.is_over = in_standard_errors(self.score - self.rival) < SIGNIFICANT


def standard_error(difference):
    """Of the sum of a difference over pixels."""
    return float(np.sqrt(np.sum(difference**2)))


def in_standard_errors(difference):
    """Sum of a difference over pixels, divided by its standard error."""
    difference = np.asarray(difference, dtype=np.float64)
    return float(difference.sum()) / max(standard_error(difference), 1e-300)
