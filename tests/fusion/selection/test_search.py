"""Weights chosen by evidence: races, stacks, what is open and what is given, and what does not matter."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from calibrated_cases import observe
from hyperspy_fusion.fusion.selection.published import select_published

from hyperspy_fusion.data import atomic_columns, core_shell, interface
from hyperspy_fusion.fusion.selection import paired_comparison as race
from hyperspy_fusion.fusion.selection import published as published_selection
from hyperspy_fusion.fusion.selection import search as selection
from hyperspy_fusion.fusion.selection.cross_validation import HeldOutCounts, HeldOutPixels, count_parts
from hyperspy_fusion.fusion.selection.paired_comparison import Race, indistinct, stack
from hyperspy_fusion.fusion.selection.search import Choice, Selection, select
from hyperspy_fusion.fusion.settings import AutoSettings, CalibratedSettings, PublishedSettings

SHAPE = (24, 24)
OPEN = ("regularization", "lambda_reg", "lambda_haadf", "joint")


# ---- races ---------------------------------------------------------------------------------------------


class Scored:
    """Parts whose gain is the fit itself, and fits that are written down."""

    def __init__(self, gains, number=3):
        self.table, self.asked, self.ticks = gains, [], 0
        part = SimpleNamespace(gains=lambda fused: fused[None])
        self.race = Race([part] * number, self.fit, self.tick)

    def fit(self, candidate, k):
        self.asked.append((candidate, k))
        return self.table(candidate, k)

    def tick(self):
        self.ticks += 1


def noisy(difference, spread=1.0, shape=(10, 10)):
    """Gains of "a" above those of "b" by a difference that noise, the same for both, does not hide; of a spread."""

    def gains(candidate, k):
        rng = np.random.default_rng(k)
        common, noise = 50 * rng.normal(size=shape), spread * rng.normal(size=shape)
        return common + (candidate == "a") * (difference + noise - noise.mean())

    return Scored(gains)


@pytest.mark.parametrize("difference, parts", [(2.0, 1), (-2.0, 1), (0.25, 1), (0.1, 3), (-0.1, 3)])
def test_a_sure_difference_is_not_asked_for_again(difference, parts):
    """Of 100 pixels with a spread of 1: 0.25 is 2.4 standard errors, 0.1 is one, and 1.7 of three parts."""
    scored = noisy(difference)
    assert scored.race.is_better("a", "b") is (difference > 0)
    assert sorted(scored.asked) == [(c, k) for c in "ab" for k in range(parts)]
    assert scored.ticks == len(scored.asked)
    # the other way round it is the other one, by the same fits
    assert scored.race.is_better("b", "a") is (difference < 0)
    assert scored.ticks == 2 * parts


@pytest.mark.parametrize("limit, parts", [(None, 3), (2, 2), (1, 1)])
def test_no_more_parts_are_asked_than_allowed(limit, parts):
    scored = noisy(0.1)
    assert scored.race.is_better("a", "b", limit)
    assert sorted(scored.asked) == [(c, k) for c in "ab" for k in range(parts)]


def test_a_penalty_far_behind_is_settled_by_one_part():
    """Ten standard errors behind the best of the others; and none where there are no others."""
    tables = {"a": pairs(0, 1)[0], "b": pairs(0, 1)[1] - 10 / 400, "c": pairs(0, 1)[1] - 1 / 400}
    part = SimpleNamespace(gains=lambda fused: fused[None])
    search = selection._Search(Race([part] * 3, lambda choice, k: tables[choice]), AutoSettings())
    assert search._parts_for("b", ["c", "a"]) == 1
    assert search._parts_for("c", ["b", "a"]) is None and search._parts_for("a", []) is None


def test_the_second_part_decides_with_the_first():
    scored = Scored(lambda c, k: (c == "a") * np.tile([-0.6, 0.4] if k == 0 else [1.0, 1.6], (5, 5)))
    assert scored.race.is_better("a", "b")
    assert max(k for _, k in scored.asked) == 1


def test_neither_of_two_equal_ones_is_better():
    scored = Scored(lambda c, k: np.ones((4, 4)))
    assert not scored.race.is_better("a", "b") and not scored.race.is_better("b", "a")


def test_score_is_that_of_the_best_and_the_difference_on_the_same_parts():
    rng = np.random.default_rng(0)
    tables = {c: rng.normal(1, 2, (3, 10, 10)) for c in "ab"}
    scored = Scored(lambda c, k: tables[c][k])
    scored.race.gain("a", 1)
    difference = (tables["a"] - tables["b"])[:2].mean(axis=0)
    expected = tables["b"].mean() + difference.mean(), np.sqrt(np.mean(difference**2)) / 10
    assert scored.race.score("a", "b") == pytest.approx(expected)
    assert scored.race.score("b", "b") == pytest.approx((tables["b"].mean(), 0))


def hill(top, number=3):
    """Sure scores that fall off on both sides of the top."""
    return Scored(lambda c, k: np.full((4, 4), -((c - top) ** 2.0)), number)


@pytest.mark.parametrize("start", [-7, 2, 3, 4, 12])
def test_a_climb_ends_at_the_top(start):
    scored = hill(3)

    def step(candidate, factor):
        return candidate + factor

    assert scored.race.climb(start, step, (1, -1)) == 3
    # no further than one step over the top, on one part, each fit once
    assert len(set(scored.asked)) == len(scored.asked) <= abs(start - 3) + 3
    assert {k for _, k in scored.asked} == {0}


def test_a_climb_ends_where_the_steps_do():
    def step(candidate, factor):
        return candidate + factor if abs(candidate + factor) <= 5 else None

    assert hill(30).race.climb(0, step, (1, -1)) == 5
    assert hill(-30).race.climb(0, step, (1, -1)) == -5


def test_steps_of_weights_come_back_and_stay_within_bounds():
    first = Choice("tv", 1.0, 0.0, True)
    up = selection.step(selection.step(first, np.sqrt(2)), np.sqrt(2))
    assert up.lambda_reg == pytest.approx(2, rel=1e-2) and up._replace(lambda_reg=1.0) == first
    assert selection.step(selection.step(first, 2), 0.5) == first
    assert selection.step(first._replace(lambda_reg=60.0), 2) is None
    assert selection.step(first._replace(lambda_reg=1.5e-4), 0.5) is None


# ---- stacks --------------------------------------------------------------------------------------------

FLAT_ENOUGH = 2000.0


def exact_parts(truth, number=2):
    """Held-out counts without noise: what is best is known exactly."""
    valid, counts_scale = np.ones(truth.shape, bool), np.ones(len(truth))
    return [HeldOutCounts(truth * 0.5, valid, truth * 0.5, 0.5, counts_scale, np.zeros(len(truth)))] * number


def waves(shape=(20, 20), mean=50.0):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return mean * np.stack([1 + 0.5 * np.sin(y / 3), 1 + 0.5 * np.cos(x / 4)])


def test_the_truth_takes_all_the_weight():
    truth = waves()
    parts = exact_parts(truth)
    weights = stack(parts, [[0.25 * truth[::-1] + 12, truth * 0.5]] * 2)
    np.testing.assert_allclose(weights, [[0, 0], [1, 1]], atol=1e-6)


@pytest.mark.parametrize("dose", [1, 1e4, 1e6])
def test_the_weights_are_those_that_make_the_truth(dose):
    """0.3 a + 0.7 b is the truth of the first map, and 0.6 a + 0.4 b that of the second."""
    truth, rng = dose * waves() * 0.5, np.random.default_rng(0)
    error = rng.normal(0, 2 * dose, truth.shape)
    share = np.array([0.3, 0.6])[:, None, None]
    a, b = truth + (1 - share) * error, truth - share * error
    weights = stack(exact_parts(2 * truth), [[a, b]] * 2)
    np.testing.assert_allclose(weights, [[0.3, 0.6], [0.7, 0.4]], atol=2e-3)
    # and of pixels, by least squares
    a, b, truth = (np.tile(m, (1, 2, 2)) for m in (a, b, truth))
    out = np.ones(truth.shape, bool)
    weights = stack([HeldOutPixels(truth, ~out, out, np.ones(2), np.zeros(2))], [[a, b]])
    np.testing.assert_allclose(weights, [[0.3, 0.6], [0.7, 0.4]], atol=2e-3)


def test_the_mean_of_two_with_independent_errors_is_better_than_either():
    rng = np.random.default_rng(0)
    truth = waves((60, 60), 20.0)
    parts = count_parts(rng.poisson(truth).astype(float), np.ones(truth.shape, bool), np.ones(2), np.zeros(2), rng, 5)
    members = [[0.8 * truth + rng.normal(0, 1.5, truth.shape) for _ in range(2)] for _ in parts]
    weights = stack(parts, members)
    np.testing.assert_allclose(weights, 0.5, atol=0.1)
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=1e-12)

    def gain(weights):
        return sum(part.gains(np.tensordot(weights, maps, 1)).sum() for part, maps in zip(parts, members, strict=True))

    assert gain([0.5, 0.5]) > max(gain([1, 0]), gain([0, 1]))


def test_no_other_weights_are_better():
    """Of three fits and noisy counts, by brute force."""
    rng = np.random.default_rng(3)
    truth = waves((40, 40), 5.0)[:1]
    parts = count_parts(rng.poisson(truth).astype(float), np.ones(truth.shape, bool), np.ones(1), np.zeros(1), rng, 2)
    members = [[0.5 * truth * np.exp(rng.normal(0, s, truth.shape)) for s in (0.3, 0.4, 0.5)] for _ in parts]

    def gain(weights):
        return sum(part.gains(np.tensordot(weights, maps, 1)).sum() for part, maps in zip(parts, members, strict=True))

    grid = np.linspace(0, 1, 41)
    best = max(gain([a, b, 1 - a - b]) for a in grid for b in grid if a + b <= 1)
    weights = stack(parts, members)[:, 0]
    assert gain(weights) >= best - 1e-6 * abs(best) and weights.min() >= 0.1


def test_light_fits_are_left_out():
    truth = waves() * 0.5
    error = np.random.default_rng(0).normal(0, 2, truth.shape)
    weights = stack(exact_parts(2 * truth), [[truth + 0.95 * error, truth - 0.05 * error]] * 2)
    np.testing.assert_allclose(weights, [[0, 0], [1, 1]], atol=1e-12)


def test_a_small_gain_among_many_counts_is_found():
    """Of 4e5 counts, one member predicts better than the other by a few units of log-likelihood only."""
    truth = waves((60, 60), 100.0) * 0.5
    error = np.random.default_rng(0).normal(0, 1, truth.shape)
    weights = stack(exact_parts(2 * truth, 1), [[truth + 0.1 * error, truth + 0.6 * error]])
    np.testing.assert_allclose(weights, [[1, 1], [0, 0]], atol=1e-3)


def pairs(difference, spread, n=400):
    """Gains of two fits in n pixels: totals apart by a difference, of a standard error."""
    noise = np.random.default_rng(0).normal(size=n)
    noise = (noise - noise.mean()) / np.linalg.norm(noise - noise.mean())
    common = np.random.default_rng(1).normal(0, 30, n)
    return np.array([common, common + difference / n + spread * noise]).reshape(2, 20, -1)


@pytest.mark.parametrize("difference, spread, expected", [
    (0.0, 20.0, 0.5), (-1000.0, 1e-3, 0.0), (-2.0, 1e-6, 1 / (1 + np.exp(2))), (-20.0, 20.0, 0.17), (60.0, 20.0, 1.0),
])  # fmt: skip
def test_what_cannot_be_told_apart_is_averaged(difference, spread, expected):
    """One standard error below the best: it is the better one in 16 of 100 cases; three above, in all but one."""
    weights = indistinct(pairs(difference, spread))
    assert weights.sum() == pytest.approx(1)
    assert weights[1] == pytest.approx(expected, abs=0.02)


def test_one_fit_takes_all():
    np.testing.assert_array_equal(indistinct(np.ones((1, 3, 4))), [1])


@pytest.mark.parametrize("errors, expected", [(3.5, True), (2.5, False), (1.0, False)])
def test_a_mean_must_be_better_for_sure(monkeypatch, errors, expected):
    """The mean of two gains by so many standard errors, and units, over the better one; one is that of its weight."""
    tables = {"a": pairs(0, 1)[0] * 0, "b": pairs(0, 1)[0] * 0 - 2}
    part = SimpleNamespace(gains=lambda fused: fused[None])
    race = Race([part], lambda choice, k: tables[choice])
    search = selection._Search(race, AutoSettings())
    of_mean = np.full((20, 20), errors / 400) + pairs(0, 1)[1] - pairs(0, 1)[0]
    monkeypatch.setattr(selection, "weighted_mean", lambda weights, maps: of_mean)
    monkeypatch.setattr(selection, "stack", lambda parts, members: np.array([[0.7], [0.3]]))
    found = search._stacked(["a", "b"])
    assert {choice: weight[0] for choice, weight in found.items()} == ({"a": 0.7, "b": 0.3} if expected else {"a": 1})


def test_poor_maps_share_their_weights():
    """Of four maps two have few counts held out: those two have weights in common, the rich ones their own."""
    truth = np.concatenate([waves(mean=50.0), waves(mean=0.2)]) * 0.5
    rng = np.random.default_rng(0)
    share = np.array([0.3, 0.6, 0.2, 0.8])[:, None, None]
    error = rng.normal(0, 1, truth.shape) * truth * 0.1
    members = [[truth + (1 - share) * error, truth - share * error]] * 2
    weights = stack(exact_parts(2 * truth), members)
    np.testing.assert_allclose(weights[:, :2], [[0.3, 0.6], [0.7, 0.4]], atol=5e-3)
    np.testing.assert_array_equal(weights[:, 2], weights[:, 3])
    assert 0.2 < weights[0, 2] < 0.8
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=1e-12)


def test_a_single_fit_is_its_own_mean():
    np.testing.assert_array_equal(stack(exact_parts(waves()), [[waves()]] * 2), [[1, 1]])


def test_the_loss_has_the_slopes_it_says():
    rng = np.random.default_rng(0)
    parts = exact_parts(waves())
    loss = race._StackLoss(parts, [[waves() * rng.uniform(0.3, 0.7) for _ in range(3)] for _ in parts])
    at = rng.dirichlet(np.ones(3), 2).T.ravel()
    _, slopes = loss.value_and_slopes(at)
    step = 1e-6 * np.eye(6)
    expected = [(loss.value_and_slopes(at + s)[0] - loss.value_and_slopes(at - s)[0]) / 2e-6 for s in step]
    np.testing.assert_allclose(slopes, expected, rtol=1e-5)


# ---- choices ---------------------------------------------------------------------------------------------


def observed(scan, settings=None, maps=None, **options):
    maps = scan.maps.astype(np.float32) if maps is None else maps
    settings = settings or AutoSettings()
    return observe(maps, scan.haadf, scan.atomic_numbers, settings, elements=scan.elements, **options)


def choose(scan, maps=None, num_workers=1, observation=None, **settings):
    settings = AutoSettings(**settings)
    return select(observation or observed(scan, settings, maps), settings, num_workers)


@pytest.fixture(scope="module")
def scan():
    return core_shell(SHAPE, counts=15.0)


@pytest.fixture(scope="module")
def chosen(scan):
    return choose(scan)


def assert_same(found, expected):
    """The same choice for the same reasons."""
    assert [m[0] for m in found[0]] == [m[0] for m in expected[0]]
    np.testing.assert_array_equal([m[1] for m in found[0]], [m[1] for m in expected[0]])
    np.testing.assert_equal(found[1].as_dict(), expected[1].as_dict())


def assert_complete(members, found, n):
    """What is recorded agrees with what is to be fitted."""
    weights = np.array([m[1] for m in members])
    np.testing.assert_allclose(weights.sum(axis=0), np.ones(n), rtol=1e-9)
    # the heaviest first
    assert np.all(np.diff(weights.sum(axis=1)) <= 1e-12)
    np.testing.assert_allclose(found.weights.sum(axis=0), np.ones(n), rtol=1e-9)
    sizes = {len(v) for v in found.tried.values()} | {len(found.scores), len(found.errors), len(found.parts)}
    assert sizes == {len(found.weights)}
    recorded = {
        tuple(found.tried[name][j] for name in found.tried): found.weights[j]
        for j in np.flatnonzero(found.weights.any(axis=1))
    }
    assert len(recorded) == len(members)
    for settings, weight, _ in members:
        np.testing.assert_array_equal(recorded[tuple(getattr(settings, name) for name in found.tried)], weight)


def test_the_choice_and_its_record(scan, chosen):
    members, found = chosen
    assert_complete(members, found, 3)
    for settings, _, start in members:
        assert type(settings) is CalibratedSettings and settings.tol == AutoSettings().tol
        assert (start is not None) == (settings.regularization in selection.SLOW)
    assert set(found.tried["regularization"]) == set(selection.FIRST_WEIGHTS)
    assert set(found.tried["lambda_haadf"]) == {0.0, 1.0} and set(found.tried["joint"]) == {True, False}
    heaviest = int(np.argmax(found.weights.sum(axis=1)))
    np.testing.assert_array_equal(found.errors > 0, np.arange(len(found.errors)) != heaviest)
    assert found.parts.min() >= 1 and found.parts.max() == found.parts[heaviest] == 5
    assert f"Of {len(found.scores)} fits compared by counts held out" in found.sentence
    assert repr(members[0][0].regularization) in found.sentence


def test_what_is_recorded_is_flat(chosen):
    for value in chosen[1].as_dict().values():
        assert isinstance(value, int | str | np.ndarray) or all(isinstance(v, str) for v in value)


@pytest.mark.parametrize("counts, seed", [(4.0, 0), (10.0, 2)])
def test_all_that_is_averaged_is_on_record(counts, seed):
    """Also a fit that only the mean calls for, and that was in no race."""
    members, found = choose(atomic_columns((32, 32), counts=counts, seed=seed))
    assert_complete(members, found, 3)
    assert len(members) > 1


GIVEN = {
    "regularization": {"regularization": "tv"},
    "no penalty": {"regularization": "none"},
    "lambda_reg": {"lambda_reg": 0.7},
    "one lambda_reg per element": {"lambda_reg": (0.7, 0.5, 1.0), "regularization": "tv"},
    "lambda_haadf": {"lambda_haadf": 0.5},
    "without image": {"lambda_haadf": 0.0},
    "joint": {"joint": False},
    "all": {"regularization": "directional", "lambda_reg": 0.7, "lambda_haadf": 1.0, "joint": True},
}


@pytest.mark.parametrize("given", GIVEN)
def test_what_is_given_is_kept(scan, given):
    members, found = choose(scan, gamma=1.9, **GIVEN[given])
    assert_complete(members, found, 3)
    for settings, _, _ in members:
        assert settings.gamma == 1.9
        for name, value in GIVEN[given].items():
            assert getattr(settings, name) == value
    assert set(found.tried) == set(OPEN) - set(GIVEN[given])


def test_fits_are_warm_and_judged_by_what_they_have_not_seen(scan, monkeypatch):
    """Each is of the data less the part that judges it."""
    seen, solve = [], selection.solved

    def spy(problem, settings, state=None, **options):
        seen.append((problem, settings, state))
        return solve(problem, settings, state, **options)

    monkeypatch.setattr(selection, "solved", spy)
    choose(scan, regularization="tv")
    whole = observed(scan).calibration.forward_model.weights
    for problem, settings, _ in seen:
        totals = problem.data.totals * problem.scales
        np.testing.assert_allclose(totals, 0.8 * scan.maps.sum(axis=(1, 2)), rtol=0.05)
        assert settings.tol == selection.ROUGH_TOL and problem.dtype == np.float32
        np.testing.assert_allclose(problem.forward_model.weights, whole / 0.8, rtol=1e-12)
    assert sum(state is not None for *_, state in seen) > len(seen) / 2


def test_the_seed_decides_the_split(scan):
    one, same, other = (choose(scan, seed=seed, regularization="tv", joint=True) for seed in (2, 2, 1))
    assert_same(same, one)
    assert other[1].seed == 1 and set(other[1].scores).isdisjoint(one[1].scores)


def test_the_number_of_threads_does_not_matter(scan, chosen):
    """And the same is chosen twice."""
    assert_same(choose(scan, num_workers=2), chosen)


def test_the_scale_of_the_haadf_image_does_not_matter(scan, chosen):
    members, found = choose(replace(scan, haadf=(1000 * scan.haadf).astype(np.float64)))
    assert [m[0] for m in members] == [m[0] for m in chosen[0]]
    np.testing.assert_allclose(found.scores, chosen[1].scores, rtol=1e-2, atol=1e-3)


def test_the_scale_of_the_maps_does_not_matter(scan, chosen):
    members, found = choose(scan, scan.maps * 0.25)
    assert [m[0] for m in members] == [m[0] for m in chosen[0]]
    np.testing.assert_allclose(found.scores, chosen[1].scores, rtol=1e-2, atol=1e-3)


def test_the_order_of_the_elements_does_not_matter(scan, monkeypatch):
    """Given the same split: the random numbers of a map are its own."""

    def by_its_counts(maps, valid, counts_scale, background, rng, limit):
        each = [
            count_parts(m[None], v[None], counts_scale[:1], np.zeros(1), np.random.default_rng(int(m.sum())))
            for m, v in zip(maps, valid, strict=True)
        ]
        return [
            HeldOutCounts(
                np.concatenate([p[k].maps for p in each]), valid, np.concatenate([p[k].rest for p in each]),
                each[0][k].part, counts_scale, np.zeros(len(maps)),
            )
            for k in range(min(limit, len(each[0])))
        ]  # fmt: skip

    monkeypatch.setattr(selection, "count_parts", by_its_counts)
    order = [2, 0, 1]
    turned = replace(scan, maps=scan.maps[order], elements=[scan.elements[i] for i in order], truth=scan.truth[order])
    members, found = choose(scan)
    others, other = choose(turned)
    assert [m[0] for m in others] == [m[0] for m in members]
    np.testing.assert_allclose([m[1] for m in others], np.array([m[1] for m in members])[:, order], atol=0.02)
    np.testing.assert_allclose(other.scores, found.scores, rtol=1e-2, atol=1e-3)


def test_the_choice_tells_smooth_maps_from_noise(scan):
    """Few counts call for more smoothing, in the units of their noise, than none at all."""
    members, _ = choose(interface((32, 32), counts=3.0), lambda_haadf=0.0, regularization="tv", joint=True)
    assert members[0][0].lambda_reg > 0.3
    # white noise without structure is smoothed as far as the steps go, or nearly
    rng = np.random.default_rng(0)
    flat = replace(scan, maps=rng.poisson(4.0, scan.maps.shape))
    members, _ = choose(flat, lambda_haadf=0.0, regularization="tv", joint=True)
    assert members[0][0].lambda_reg >= 1.0


# ---- what the data may be --------------------------------------------------------------------------------


def test_too_few_counts_are_said_and_the_defaults_taken(scan):
    maps = scan.maps.copy()
    maps[1] = 0
    maps[1, 3:10, 5:12] = 1
    members, found = choose(scan, maps.astype(float), noise="shifted_poisson", seed=3)
    assert found.warnings == [found.sentence]
    assert [m[0] for m in members] == [replace(CalibratedSettings(), noise="shifted_poisson", tol=AutoSettings().tol)]
    np.testing.assert_array_equal(members[0][1], [1, 1, 1])
    assert members[0][2] is None
    for text in (found.sentence, *found.warnings):
        assert "fewer than 50 counts in the map of Fe, too few" in text
        assert "regularization='guided' and lambda_reg=1.0 were taken" in text
    assert found.as_dict()["seed"] == 3 and len(found.scores) == 0
    # one count more is enough
    maps[1, 0, 0] = 1
    assert "too few" not in choose(scan, maps.astype(float), noise="shifted_poisson")[1].sentence
    maps[1, 3] = 0
    given = {"regularization": "tv", "lambda_haadf": 0.5}
    members, _ = choose(scan, maps.astype(float), noise="shifted_poisson", **given)
    assert {name: getattr(members[0][0], name) for name in given} == given


def test_a_few_counts_of_large_quantum_are_few(scan):
    maps = scan.maps.astype(float)
    maps[0] = 0
    maps[0, 2:8, 2:7] = 100.0
    maps[0, 3, 3] = 300.0
    assert "map of Pt, too few" in choose(scan, maps, noise="shifted_poisson")[1].sentence


def test_maps_that_are_no_counts_are_judged_by_pixels(scan):
    rng = np.random.default_rng(0)
    maps = scan.truth + rng.normal(0, 1.5, scan.truth.shape)
    assert maps.min() < -0.5
    members, found = choose(scan, maps)
    assert_complete(members, found, 3)
    assert "compared by pixels held out" in found.sentence and found.parts.max() <= 10


def test_background_subtracted_counts_are_judged_by_pixels(scan):
    """Whole numbers, some of them negative."""
    maps = scan.maps.astype(float) - np.random.default_rng(0).poisson(1.0, scan.maps.shape)
    assert maps.min() < 0
    members, found = choose(scan, maps, regularization="directional", joint=True)
    assert_complete(members, found, 3)
    assert "compared by pixels held out" in found.sentence


def test_counts_taken_for_gaussian_are_judged_by_pixels(scan):
    assert "pixels held out" in choose(scan, noise="gaussian", regularization="tv")[1].sentence


def test_known_variance_and_background_are_taken(scan):
    variance = np.maximum(scan.truth, 0.5)
    maps = scan.truth + np.sqrt(variance) * np.random.default_rng(0).normal(size=scan.truth.shape)
    known = observed(scan, maps=maps, variance=variance)
    assert_complete(*choose(scan, observation=known, regularization="directional"), 3)
    background = np.random.default_rng(1).uniform(0.5, 1.5, scan.truth.shape)
    maps = np.random.default_rng(2).poisson(scan.truth + background).astype(float)
    known = observed(scan, maps=maps, background=background)
    members, found = choose(scan, observation=known, regularization="directional")
    assert_complete(members, found, 3)
    assert "counts held out" in found.sentence and found.scores.max() > 0


@pytest.mark.parametrize("kind", ["counts", "numbers"])
def test_masked_pixels_do_not_matter(scan, kind):
    valid = np.ones(scan.maps.shape, bool)
    valid[:, 5:9, 6:11] = valid[1, :2] = False
    maps = scan.maps * (1.0 if kind == "counts" else 0.9) + (0 if kind == "counts" else 0.01 * scan.truth)

    def masked(value):
        observation = observed(scan, maps=np.where(valid, maps, value), valid=valid, haadf_valid=valid[0])
        return choose(scan, observation=observation, regularization="directional", joint=True)

    expected = masked(0.0)
    assert_complete(*expected, 3)
    assert ("counts" if kind == "counts" else "pixels") in expected[1].sentence
    for value in (np.nan, -3.5):
        assert_same(masked(value), expected)


def test_one_element(scan):
    one = replace(scan, maps=scan.maps[:1], elements=scan.elements[:1], truth=scan.truth[:1])
    assert_complete(*choose(one), 1)


def test_parts_are_as_many_as_large_scans_need():
    for side, number in ((24, 5), (256, 2), (512, 1)):
        maps = np.ones((1, side, side)) + (np.arange(side) % 2)
        nothing = np.zeros(1)
        parts = selection.held_out(maps, maps > 0, np.ones(1), np.ones(1), nothing, np.random.default_rng(0))
        assert len(parts) == number and isinstance(parts[0], HeldOutCounts)
        parts = selection.held_out(maps + 0.5, maps > 0, np.ones(1), np.ones(1), nothing, np.random.default_rng(0))
        assert len(parts) == {5: 10}.get(number, number) and isinstance(parts[0], HeldOutPixels)


def test_an_interrupt_is_passed_on(scan, monkeypatch):
    from hyperspy_fusion.fusion.result import StopReason

    solve = selection.solved

    def interrupted(*args, **options):
        result, state = solve(*args, **options)
        return replace(result, reason=StopReason.INTERRUPTED), state

    monkeypatch.setattr(selection, "solved", interrupted)
    with pytest.raises(KeyboardInterrupt):
        choose(scan)


# ---- the published method --------------------------------------------------------------------------------


def published(scan, maps=None, **settings):
    maps = scan.maps.astype(np.float32) if maps is None else maps
    settings = PublishedSettings(**({"max_iter": 15} | settings))
    return select_published(maps, scan.haadf, scan.atomic_numbers, settings, scan.elements, 1)


@pytest.mark.parametrize("names", [("lambda_tv",), ("lambda_chem",), ("lambda_tv", "lambda_chem")])
def test_published_weights_that_are_open_are_chosen(scan, names):
    settings, found = published(scan, **dict.fromkeys(names, "auto"))
    default = PublishedSettings(max_iter=15)
    best = int(np.argmax(found.weights.sum(axis=1)))
    for name in ("lambda_tv", "lambda_chem"):
        given = getattr(default, name)
        assert getattr(settings, name) == (found.tried[name][best] if name in names else given)
        assert (f"{name}=" in found.sentence) is (name in names)
    assert replace(settings, lambda_tv=1.0, lambda_chem=1.0) == replace(default, lambda_tv=1.0, lambda_chem=1.0)
    # nothing that was tried is better for sure
    assert np.all(found.scores - found.scores[best] <= 3 * found.errors)
    np.testing.assert_array_equal(found.weights.sum(axis=0), [1, 1, 1])


def test_published_fits_are_judged_at_the_totals_of_their_part(scan):
    """The method itself does not keep them."""
    maps = scan.maps.astype(np.float64)
    valid, rng = np.ones(maps.shape, bool), np.random.default_rng(0)
    parts = count_parts(maps, valid, np.ones(3), np.zeros(3), rng)
    settings = PublishedSettings(max_iter=5, lambda_tv="auto")
    fits = published_selection._PublishedFits(parts, scan.haadf, scan.atomic_numbers, settings, 1)
    found = fits(published_selection.PublishedChoice(0.08, 0.3), 1)
    np.testing.assert_allclose(found.sum(axis=(1, 2), dtype=float), parts[1].maps.sum(axis=(1, 2)), rtol=1e-5)


def test_published_choice_of_maps_that_are_no_counts(scan):
    maps = np.maximum(scan.truth + np.random.default_rng(0).normal(0, 1, scan.truth.shape), 0).astype(np.float32)
    settings, found = published(scan, maps, lambda_tv="auto")
    assert "pixels held out" in found.sentence and settings.lambda_tv > 0


def test_published_choice_of_too_few_counts(scan):
    maps = scan.maps.astype(np.float32)
    maps[2] = 0
    maps[2, 3:9, 3:9] = 1
    settings, found = published(scan, maps, lambda_tv="auto")
    first = published_selection._PUBLISHED_FIRST["lambda_tv"]
    assert settings.lambda_tv == first and settings.lambda_chem == PublishedSettings().lambda_chem
    assert found.warnings == [found.sentence] and "counts in the map of O" in found.sentence
    assert f"lambda_tv={first}" in found.sentence and "were taken" in found.sentence


def test_pixels_that_are_not_seen_take_the_mean_of_their_neighbours():
    maps = np.ones((1, 9, 9)) * np.array([2.0])[:, None, None]
    valid = np.ones(maps.shape, bool)
    valid[0, 4, 4] = valid[0, 0, 0] = False
    hidden = np.where(valid, maps, 1e6)
    np.testing.assert_allclose(published_selection._filled(hidden, valid), maps)
    assert published_selection._filled(hidden, np.ones(maps.shape, bool)) is hidden


def test_nothing_tried_is_an_empty_record():
    empty = Selection(4, "Too few.").as_dict()
    assert empty["seed"] == 4 and empty["sentence"] == "Too few." and empty["score"].size == 0
