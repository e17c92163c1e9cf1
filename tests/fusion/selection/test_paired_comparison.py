"""Paired comparison: how many folds it takes, and where a climb ends."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from hyperspy_fusion.fusion.selection.paired_comparison import FAR_BEHIND, STILL_GAINED, PairedComparison, Trial


class Scored:
    """Folds whose score is the fit itself, and fits that are written down."""

    def __init__(self, table, n_folds=3):
        self.table, self.asked, self.ticks = table, [], 0
        fold = SimpleNamespace(scores=lambda fused: fused[None])
        self.comparison = PairedComparison([fold] * n_folds, self.fit, self.tick, self.sequences_of)

    def sequences_of(self, pairs):
        return [[lambda threads: None] for _ in pairs]

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
    """Each goes on by itself, and the order of the scores does not depend on which was first."""
    scored = Scored(lambda c, k: np.full((4, 4), -((c[1] - {"a": 3, "b": -2}[c[0]]) ** 2.0)))
    asked, b_is_done = [], threading.Event()

    def sequences_of(pairs):
        asked.append(list(pairs))
        waits = ("a", 1) in [candidate for candidate, _ in pairs]
        b_is_done.set() if (("b", -3), 0) in pairs else None
        return [[lambda threads: b_is_done.wait(20) if waits else None]]

    scored.comparison.sequences_of, scored.comparison.num_workers = sequences_of, 2
    climbs = [scored.comparison.climbing((name, 0), lambda c, by: (c[0], c[1] + by), (1, -1)) for name in "ab"]
    assert scored.comparison.side_by_side(climbs) == [("a", 3), ("b", -2)]
    assert asked.index([(("b", -3), 0)]) < asked.index([(("a", 2), 0)])
    assert list(scored.comparison.scores) == [*(("a", k) for k in range(5)), *(("b", k) for k in (0, 1, -1, -2, -3))]


def test_the_first_fold_is_asked_for_before_the_others():
    scored, asked = hill(0), []
    scored.comparison.sequences_of = lambda pairs: asked.append(list(pairs)) or []
    scored.comparison.need([(9, 3), (1, 2)])
    assert asked == [[(9, 0), (1, 0)], [(9, 1), (9, 2), (1, 1)]]


def test_a_climb_ends_where_the_steps_do():
    def step(candidate, factor):
        return candidate + factor if abs(candidate + factor) <= 5 else None

    assert hill(30).comparison.climb(0, step, (1, -1)) == 5
    assert hill(-30).comparison.climb(0, step, (1, -1)) == -5


# ---- fits that are given up ----------------------------------------------------------------------------------


def behind(errors, shape=(10, 10)):
    """A difference of scores whose sum is so many of its standard errors below 0."""
    noise = np.random.default_rng(0).normal(size=shape)
    noise -= noise.mean()
    # the square of the difference has the shift in it
    shift = errors * np.linalg.norm(noise) / np.sqrt(noise.size * (noise.size - errors**2))
    return noise - shift


IDENTITY = SimpleNamespace(scores=lambda fused: fused[None])


@pytest.mark.parametrize("errors, is_over", [(FAR_BEHIND + 0.1, True), (FAR_BEHIND - 0.1, False), (-9.0, False)])
def test_a_fit_far_behind_that_gains_nothing_is_given_up(errors, is_over):
    trial, rival = Trial(IDENTITY, np.full((10, 10), 7.0)), np.full((10, 10), 7.0)
    # a single score does not show what is gained
    assert not trial(rival + behind(errors))
    assert trial(rival + behind(errors)) is is_over is trial.is_over


@pytest.mark.parametrize("gained, is_over", [(0.4 / STILL_GAINED, True), (0.6 / STILL_GAINED, False)])
def test_a_fit_that_may_catch_up_goes_on(gained, is_over):
    """Twice as far behind as is too far: it goes on where it may gain half of that."""
    now = behind(2 * FAR_BEHIND)
    before = now + gained * now.sum() / now.size
    trial = Trial(IDENTITY, np.zeros((10, 10)))
    assert not trial(before) and trial(now) is is_over
    # what was lost is not gained again
    trial = Trial(IDENTITY, np.zeros((10, 10)))
    assert not trial(now - before) and trial(now)


def with_trials(tables):
    """A comparison whose fits go through their tables of maps, and what was asked for."""
    asked = []

    def sequences_of(pairs):
        for (candidate, k), trial in pairs.items():
            asked.append((candidate, k, trial is not None))
            if trial is not None:
                any(trial(maps) for maps in tables[candidate])
        return []

    return PairedComparison(
        [IDENTITY] * 2, lambda candidate, k: tables[candidate][-1], lambda n: None, sequences_of
    ), asked


def test_what_was_given_up_is_fitted_to_its_end_for_others_alone():
    zeros, lost, better = np.zeros((10, 10)), behind(9), 1 + behind(0)
    compared, asked = with_trials({"a": [zeros] * 2, "b": [lost, lost, better], "c": [zeros, better]})
    assert not compared.is_better("b", "a") and compared.given_up == {"b": "a"}
    assert asked == [("a", 0, False), ("b", 0, True)]
    np.testing.assert_allclose(compared.scores["b"], [lost], rtol=1e-6)
    # again by the same scores
    assert not compared.is_better("b", "a") and len(asked) == 2
    # whoever asks for its score gets that of its end, in its place
    np.testing.assert_allclose(compared.score("b", 0), better, rtol=1e-6)
    assert asked[2:] == [("b", 0, False)] and not compared.given_up and len(compared.scores["b"]) == 1
    # and a rival is always one that was fitted to its end
    compared, asked = with_trials({"a": [zeros] * 2, "b": [lost, lost, better], "c": [zeros] * 2})
    compared.is_better("b", "a")
    assert not compared.is_better("c", "b") and asked[2:] == [("b", 0, False), ("c", 0, True)]


def test_what_was_given_up_does_not_predict_better():
    """Whatever its score: a fit far from its minimum has the maps of other settings. No further fold is asked for."""
    compared, asked = with_trials({"a": [np.zeros((10, 10))] * 2, "b": [behind(-1)] * 2})
    sequences_of = compared.sequences_of

    def ends_far_from_its_minimum(pairs):
        sequences_of(pairs)
        for trial in filter(None, pairs.values()):
            trial.is_over = True
        return []

    compared.sequences_of = ends_far_from_its_minimum
    assert not compared.is_better("b", "a") and asked == [("a", 0, False), ("b", 0, True)]
    compared.sequences_of = sequences_of
    assert compared.score("b", 0).sum() > 0 and compared.is_better("b", "a")


def test_what_was_given_up_for_one_rival_is_compared_anew_with_another():
    """Its score is that of a fit that was not finished, and the noise of the two is the same."""
    zeros, lost = np.zeros((10, 10)), behind(9)
    compared, asked = with_trials({"a": [zeros] * 2, "b": [lost] * 3, "c": [lost + 0.3] * 2})
    assert not compared.is_better("b", "a") and compared.given_up == {"b": "a"}
    compared.is_better("b", "c")
    assert asked[-1] == ("b", 0, True)


@pytest.mark.parametrize("wishes", [[(), ("a",)], [("a",), ()], [("a",), ("c",)], [("a",), ("c",), ("a",)]])
def test_of_several_wishes_that_for_the_end_of_a_fit_counts(wishes):
    zeros, lost, better = np.zeros((10, 10)), behind(9), 1 + behind(0)
    compared, asked = with_trials({"a": [zeros] * 2, "c": [zeros] * 2, "b": [lost, lost, better]})
    compared.need([("a", 1), ("c", 1)])
    compared.need([("b", 1, *rival) for rival in wishes])
    assert asked[-1] == ("b", 0, False) and not compared.given_up
    np.testing.assert_allclose(compared.scores["b"], [better], rtol=1e-6)
