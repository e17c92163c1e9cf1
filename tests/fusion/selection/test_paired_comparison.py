"""Paired comparison: how many folds it takes, and where a climb ends."""

from types import SimpleNamespace

import numpy as np
import pytest

from hyperspy_fusion.fusion.selection.paired_comparison import PairedComparison


class Scored:
    """Folds whose score is the fit itself, and fits that are written down."""

    def __init__(self, table, n_folds=3):
        self.table, self.asked, self.ticks = table, [], 0
        fold = SimpleNamespace(scores=lambda fused: fused[None])
        self.comparison = PairedComparison([fold] * n_folds, self.fit, self.tick)

    def fit(self, candidate, k):
        self.asked.append((candidate, k))
        return self.table(candidate, k)

    def tick(self, n_fits):
        self.ticks += 1
        assert n_fits == self.ticks


def noisy(difference, shape=(10, 10)):
    """Scores of "a" above those of "b" by a difference, with noise of 1 and common noise of 50."""

    def scores(candidate, k):
        rng = np.random.default_rng(k)
        common, noise = 50 * rng.normal(size=shape), rng.normal(size=shape)
        return common + (candidate == "a") * (difference + noise - noise.mean())

    return Scored(scores)


@pytest.mark.parametrize("difference, n_folds", [(2.0, 1), (-2.0, 1), (0.25, 1), (0.1, 3), (-0.1, 3)])
def test_a_significant_difference_takes_one_fold(difference, n_folds):
    """Of 100 pixels with noise of 1: 0.25 is 2.4 standard errors, 0.1 is one, and 1.7 of three folds."""
    scored = noisy(difference)
    assert scored.comparison.is_better("a", "b") is (difference > 0)
    assert sorted(scored.asked) == [(c, k) for c in "ab" for k in range(n_folds)]
    # the other way round it is the other one, by the same fits
    assert scored.comparison.is_better("b", "a") is (difference < 0)
    assert scored.ticks == len(scored.asked) == 2 * n_folds


@pytest.mark.parametrize("limit, n_folds", [(None, 3), (2, 2), (1, 1)])
def test_no_more_folds_are_used_than_allowed(limit, n_folds):
    scored = noisy(0.1)
    assert scored.comparison.is_better("a", "b", limit)
    assert sorted(scored.asked) == [(c, k) for c in "ab" for k in range(n_folds)]


def test_other_folds_decide_with_the_first_where_it_does_not():
    scored = Scored(lambda c, k: (c == "a") * np.tile([-0.6, 0.4] if k == 0 else [1.0, 1.6], (5, 5)))
    assert scored.comparison.is_better("a", "b") and len(scored.asked) == 6


@pytest.mark.parametrize("gains, least, worth", [([9, 0, 0], 3, True), ([9, -7, 0], 3, False), ([9, -3, -3], 4, False)])
def test_what_is_worth_it_gains_enough_on_all_folds(gains, least, worth):
    """A fold of 25 pixels that gains 9 is 5 standard errors ahead."""
    compared = Scored(lambda c, k: np.full((5, 5), (c == "a") * gains[k] / 25)).comparison
    assert compared.is_better("a", "b")
    assert compared.is_worth("a", "b", least) is worth
    assert not compared.is_worth("b", "a", 0)


def test_neither_of_two_equal_ones_is_better():
    compared = Scored(lambda c, k: np.ones((4, 4))).comparison
    assert not compared.is_better("a", "b") and not compared.is_better("b", "a")


def test_mean_score_is_compared_on_the_same_folds():
    rng = np.random.default_rng(0)
    tables = {c: rng.normal(1, 2, (3, 10, 10)) for c in "ab"}
    compared = Scored(lambda c, k: tables[c][k]).comparison
    compared.score("a", 1)
    difference = (tables["a"] - tables["b"])[:2].mean(axis=0)
    expected = tables["b"].mean() + difference.mean(), np.sqrt(np.mean(difference**2)) / 10
    assert compared.mean_score("a", "b") == pytest.approx(expected)
    assert compared.mean_score("b", "b") == pytest.approx((tables["b"].mean(), 0))


def hill(top):
    """Significant scores that fall off on both sides of the top."""
    return Scored(lambda c, k: np.full((4, 4), -((c - top) ** 2.0)))


@pytest.mark.parametrize("start", [-7, 2, 3, 4, 12])
def test_a_climb_ends_at_the_top(start):
    scored = hill(3)
    assert scored.comparison.climb(start, lambda c, factor: c + factor, (1, -1)) == 3
    # no further than one step over the top, on one fold, each fit once
    assert len(set(scored.asked)) == len(scored.asked) <= abs(start - 3) + 3
    assert {k for _, k in scored.asked} == {0}


def test_climbs_side_by_side_end_where_each_does():
    """What both need next is prepared at once, the first fold before the others."""
    scored = Scored(lambda c, k: np.full((4, 4), -((c[1] - {"a": 3, "b": -2}[c[0]]) ** 2.0)))
    prepared = []
    scored.comparison.prepare = prepared.append
    climbs = [scored.comparison.climbing((name, 0), lambda c, by: (c[0], c[1] + by), (1, -1)) for name in "ab"]
    assert scored.comparison.side_by_side(climbs) == [("a", 3), ("b", -2)]
    assert prepared[0] == [(("a", 0), 0), (("b", 0), 0)] and [(("a", 2), 0), (("b", -1), 0)] in prepared
    scored.comparison.need([(("a", 9), 3), (("b", 1), 2)])
    assert prepared[-2:] == [[(("a", 9), 0)], [(("a", 9), 1), (("a", 9), 2), (("b", 1), 1)]]


def test_a_climb_ends_where_the_steps_do():
    def step(candidate, factor):
        return candidate + factor if abs(candidate + factor) <= 5 else None

    assert hill(30).comparison.climb(0, step, (1, -1)) == 5
    assert hill(-30).comparison.climb(0, step, (1, -1)) == -5
