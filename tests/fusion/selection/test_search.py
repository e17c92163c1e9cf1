"""The search: what is open and what is given, what is recorded, and what does not matter."""

from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
from calibrated_cases import observe

from hyperspy_fusion.data import atomic_columns, core_shell, interface
from hyperspy_fusion.fusion.problems.calibrated import CalibratedProblem
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.selection import cross_validation, low_accuracy_fits, search, selection
from hyperspy_fusion.fusion.selection.cross_validation import HeldOutCounts, HeldOutPixels, count_folds
from hyperspy_fusion.fusion.selection.paired_comparison import PairedComparison, Trial
from hyperspy_fusion.fusion.selection.search import OPEN, Choice, Selection, select
from hyperspy_fusion.fusion.settings import REGULARIZATIONS, AutoSettings, CalibratedSettings

SHAPE = (24, 24)


# ---- rules of the search -------------------------------------------------------------------------------


def search_of(tables):
    """A search over candidates whose scores are written down, in one fold."""
    fold = SimpleNamespace(scores=lambda fused: fused[None])
    return search._Search(PairedComparison([fold], lambda choice, k: tables[choice]), AutoSettings())


def noise_of(total=1.0):
    """(20, 20) of zero sum, whose sum of squares is the square of the total."""
    noise = np.random.default_rng(0).normal(size=(20, 20))
    return total * (noise - noise.mean()) / np.linalg.norm(noise - noise.mean())


def test_a_penalty_far_behind_has_its_weight_from_one_fold():
    """Ten standard errors behind the best of the others; and all folds where there are no others."""
    zeros = np.zeros((20, 20))
    found = search_of({"a": zeros, "b": zeros + noise_of() - 10 / 400, "c": zeros + noise_of() - 1 / 400})
    assert found._n_folds("b", ["c", "a"]) == 1
    assert found._n_folds("c", ["b", "a"]) is None and found._n_folds("a", []) is None


@pytest.mark.parametrize("errors, expected", [(3.5, 0.28), (2.5, 0.207), (1.0, 0.0)])
def test_weights_move_from_the_best_fit_to_the_average(monkeypatch, errors, expected):
    """By how many standard errors, less one by chance, the average predicts better; small weights are left out."""
    found = search_of({"a": np.zeros((20, 20)), "b": np.zeros((20, 20)) - 2})
    monkeypatch.setattr(search, "weighted_mean", lambda weights, maps: errors / 400 + noise_of())
    monkeypatch.setattr(search, "stacking_weights", lambda folds, ensembles: np.array([[0.7], [0.3]]))
    weights = {choice: weight[0] for choice, weight in found._average(["a", "b"]).items()}
    assert sum(weights.values()) == pytest.approx(1) and weights.get("b", 0) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("behind, expected", [(0.0, 4.0), (20.0, 2.0)])
def test_weights_that_predict_alike_are_averaged(behind, expected):
    """Geometrically, those of the same other settings; one far behind does not count."""
    tables = {Choice("tgv", w, 0.0, True): noise_of(0.1 * w) for w in (1.0, 2.0, 4.0)}
    tables |= {Choice("tgv", w, 0.0, True): noise_of(0.1 * w) - behind / 400 for w in (8.0, 16.0)}
    others = {Choice("tgv", 64.0, 1.0, True): noise_of(), Choice("tv", 64.0, 0.0, True): noise_of()}
    found = search_of(tables | others)
    # the score of a fit that was given up is not that of its weight
    lost = Choice("tgv", 32.0, 0.0, True)
    found.comparison.scores[lost], found.comparison.given_up[lost] = [noise_of() + 1], next(iter(tables))
    for choice in [*tables, *others]:
        found.comparison.score(choice, 0)
    assert found._with_mean_weight(next(iter(tables))).lambda_reg == pytest.approx(expected)


def test_steps_of_weights_come_back_and_stay_within_bounds():
    first = Choice("tv", 1.0, 0.0, True)
    up = low_accuracy_fits.scaled_weight(low_accuracy_fits.scaled_weight(first, np.sqrt(2)), np.sqrt(2))
    assert up.lambda_reg == pytest.approx(2, rel=1e-2) and up._replace(lambda_reg=1.0) == first
    assert low_accuracy_fits.scaled_weight(low_accuracy_fits.scaled_weight(first, 2), 0.5) == first
    assert low_accuracy_fits.scaled_weight(first._replace(lambda_reg=60.0), 2) is None
    assert low_accuracy_fits.scaled_weight(first._replace(lambda_reg=1.5e-4), 0.5) is None


def test_a_fit_that_is_given_up_is_not_kept(scan, monkeypatch):
    """The next one of its kind starts from it; whoever wants its maps gets those of a fit to its end."""
    settings = AutoSettings()
    part = low_accuracy_fits.Part.of(observed(scan, settings), settings, None, np.random.default_rng(0))
    fits = low_accuracy_fits.LowAccuracyFits([part], settings, 1, 1)
    choice, asked = Choice("tv", 1.0, 0.0, True), []
    monkeypatch.setattr(low_accuracy_fits, "LOW_ACCURACY_SETTLED", 1e-3)
    make(fits, {(choice, 0): given_up_at(3, asked)})
    assert len(asked) == 3 and asked[0].shape == scan.maps.shape and not fits.maps
    (state,) = fits.states.values()
    assert state.n_iter == 42  # two more than 40, without over-relaxation
    np.testing.assert_allclose(asked[2].sum((1, 2)), fits.folds[0].maps.sum((1, 2)), rtol=1e-4)
    started = []
    monkeypatch.setattr(CalibratedProblem, "start", lambda self, state: started.append(state) or state.restarted(self))
    assert fits(choice, 0) is fits.maps[choice, 0] and started == [state]


@pytest.mark.parametrize(
    "haadf, before, largest, is_over",
    [(0.0, 9.0, 0.0, True), (0.0, 0.0, 1.0, False), (1.0, 0.0, 0.0, True), (1.0, 9.0, 0.0, False)],
)
def test_a_fit_that_has_not_left_that_of_a_smaller_weight_is_given_up(
    scan, monkeypatch, haadf, before, largest, is_over
):
    """Its gap is large, with a HAADF term also for its weight. Unless it predicts significantly better."""
    settings, one = AutoSettings(), Choice("tv", 1.0, haadf, True)
    part = low_accuracy_fits.Part.of(observed(scan, settings), settings, None, np.random.default_rng(0))
    monkeypatch.setattr(low_accuracy_fits, "LARGEST_GAP", largest)
    fits = low_accuracy_fits.LowAccuracyFits([part], settings, 1, 1)
    fits(one, 0)
    fits.all_gaps[one, 0] = before
    noise = np.random.default_rng(1).normal(size=SHAPE)
    noise -= noise.mean()
    for weight, joint, ahead, expected in (
        (1.2, True, 0, is_over),
        (1.3, True, 1, False),  # it predicts significantly better
        (0.8, True, 0, False),
        (1.2, False, 0, False),  # it differs in more than its weight
    ):
        other = Choice("tv", weight, haadf, joint)
        alike = fits.folds[0].scores(fits(other._replace(lambda_reg=weight + 1e-5), 0)).sum(axis=0)
        trial = Trial(fits.folds[0], alike + noise - ahead, one)
        make(fits, {(other, 0): trial})
        assert trial.is_over is expected is not ((other, 0) in fits.maps)


def test_an_interrupted_search_takes_no_fit_that_was_given_up():
    best, lost = Choice("tv", 1.0, 0.0, True), Choice("tv", 2.0, 0.0, True)
    comparison = SimpleNamespace(scores={best: [np.zeros((2, 2))], lost: [np.ones((2, 2))]}, given_up={lost: best})
    assert list(selection.best_so_far(comparison, AutoSettings(), 1)[0]) == [best]


def given_up_at(number, asked):
    """A trial that is over when it is asked for the last time; the maps are appended to ``asked``."""

    class Lost:
        is_over = False

        def __call__(self, maps):
            asked.append(maps.copy())
            self.is_over = len(asked) == number
            return self.is_over

    return Lost()


def make(fits, pairs):
    """Make the fits of some choices and folds."""
    for function in chain(*fits.sequences_of(pairs)):
        function(1)


def test_what_a_fit_starts_from_does_not_depend_on_chance():
    """Fits of one penalty and fold are made in turn, joint or not; those of others side by side, slow ones first."""
    fits = low_accuracy_fits.LowAccuracyFits([], AutoSettings(), 0, 2)
    tv, one, tgv = Choice("tv", 1.0, 0.0, True), Choice("tv", 1.0, 0.0, False), Choice("tgv", 1.0, 0.0, True)
    of_components = [Choice(penalty, 1.0, 0.0, True, 3) for penalty in ("tv", "tgv")]
    wanted = {(tv, 0): None, (tgv, 0): None, (one, 0): None, (one, 1): None, **{(c, 0): None for c in of_components}}
    made = [[function.args[:2] for function in sequence] for sequence in fits.sequences_of(wanted)]
    assert made == [[(c, 0) for c in of_components], [(tgv, 0)], [(tv, 0), (one, 0)], [(one, 1)]]


def test_the_times_of_all_penalties_are_known():
    assert sorted(low_accuracy_fits._SLOWEST_FIRST) == sorted(["", *REGULARIZATIONS])


@pytest.mark.parametrize("gain, is_tried", [(3.0, True), (1.0, False)])
def test_other_penalties_follow_the_best_where_it_gains_significantly(gain, is_tried):
    """By standard errors. Then they follow where they predict the first fold better."""
    before = {p: Choice(p, w, 0.0, True) for p, w in {"guided": 1.0, "directional": 2.0, "tgv": 4.0}.items()}
    best = Choice("directional", 1.0, 1.0, False)
    follow = {p: best._replace(regularization=p, lambda_reg=before[p].lambda_reg) for p in ("guided", "tgv")}
    zeros = np.zeros((20, 20))
    tables = dict.fromkeys(before.values(), zeros) | {best: noise_of() + gain / 400}
    tables |= {follow["guided"]: zeros + 1, follow["tgv"]: zeros - 1}
    found = search_of(tables)
    # by all folds that are known of both
    found.comparison.scores = {c: [zeros, tables[c]] for c in (best, before["directional"])}
    expected = {"guided": follow["guided"]} if is_tried else {}
    assert found._alike(before, best) == before | {"directional": best} | expected
    assert (follow["guided"] in found.comparison.scores) is is_tried


@pytest.mark.parametrize("tried, expected", [({1: 5, 4: 3}, 1), ({1: 3, 4: 5}, 4), ({4: 5}, 4), ({1: -9}, 1), ({}, 1)])
def test_fine_steps_begin_on_the_better_side(tried, expected):
    """That of the nearest weight that was tried, where one was; else a smaller weight is tried first."""
    best = Choice("tgv", 2.0, 0.0, True)
    tables = {
        best._replace(lambda_reg=float(w)): np.full((20, 20), float(s)) for w, s in ({2: 9, 0.5: 0} | tried).items()
    }
    other = {best._replace(lambda_reg=float(w), joint=False): np.full((20, 20), 99.0) for w in (1, 4)}
    found = search_of(tables | other)
    for choice in (*tables, *other):
        found.comparison.score(choice, 0)
    first, _ = found._better_side_first(best)
    assert bool(first > 1) is (expected > 2)


def test_final_fits_start_from_the_mean_of_the_folds(scan):
    """It is nearer to the fit to all counts than the fit without one fold."""
    settings, choice = AutoSettings(), Choice("tv", 1.0, 0.0, True)
    part = low_accuracy_fits.Part.of(observed(scan, settings), settings, None, np.random.default_rng(0))
    fits = low_accuracy_fits.LowAccuracyFits([part], settings, 3, 1)
    make(fits, {(choice, k): None for k in range(3)})
    assert len(fits.folds) == 3
    final = fits.final(choice, np.ones(3))
    problem = final.source.problem(final.settings)
    result, _ = problem.solve(CalibratedSettings(tol=1e-4))
    first = fits.states[low_accuracy_fits.kind_of(choice), 0]
    off = [np.linalg.norm(problem.start(one, final.fraction).maps() - result.maps) for one in (first, final.state)]
    assert off[1] < 0.8 * off[0]


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
    assert [f.settings for f in found[0]] == [f.settings for f in expected[0]]
    np.testing.assert_array_equal([f.weights for f in found[0]], [f.weights for f in expected[0]])
    np.testing.assert_equal(found[1].as_dict(), expected[1].as_dict())


def assert_complete(ensemble, found, n):
    """What is recorded agrees with what is to be fitted."""
    weights = np.array([f.weights for f in ensemble])
    np.testing.assert_allclose(weights.sum(axis=0), np.ones(n), rtol=1e-9)
    # the largest weight first
    assert np.all(np.diff(weights.sum(axis=1)) <= 1e-12)
    np.testing.assert_allclose(found.weights.sum(axis=0), np.ones(n), rtol=1e-9)
    sizes = {len(v) for v in found.tried.values()} | {len(found.scores), len(found.errors), len(found.n_folds)}
    assert sizes == {len(found.weights)}
    recorded = {
        tuple(found.tried[name][j] for name in found.tried): found.weights[j]
        for j in np.flatnonzero(found.weights.any(axis=1))
    }
    assert len(recorded) == len(ensemble)
    for fit in ensemble:
        values = tuple(getattr(fit.settings, name) for name in found.tried)
        np.testing.assert_array_equal(recorded[values], fit.weights)


def test_the_choice_and_its_record(scan, chosen):
    ensemble, found = chosen
    assert_complete(ensemble, found, 3)
    for settings, *_ in ensemble:
        assert type(settings) is CalibratedSettings and settings.tol == AutoSettings().tol
    assert set(found.tried["regularization"]) == set(search.FIRST_WEIGHTS)
    assert set(found.tried["lambda_haadf"]) == {0.0, 1.0} and set(found.tried["joint"]) == {True, False}
    largest = int(np.argmax(found.weights.sum(axis=1)))
    np.testing.assert_array_equal(found.errors > 0, np.arange(len(found.errors)) != largest)
    assert found.n_folds.min() >= 1 and found.n_folds.max() == found.n_folds[largest] == 5
    assert f"Of {len(found.scores)} fits compared by held-out counts" in found.sentence
    assert repr(ensemble[0].settings.regularization) in found.sentence


def test_the_record_is_flat(chosen):
    for value in [*chosen[1].as_dict().values(), *Selection(4, "Too few.").as_dict().values()]:
        assert isinstance(value, int | str | np.ndarray) or all(isinstance(v, str) for v in value)


@pytest.mark.parametrize("counts, seed", [(4.0, 0), pytest.param(10.0, 2, marks=pytest.mark.nightly)])
def test_all_that_is_averaged_is_on_record(counts, seed):
    """Also a fit that only the average needs, and that was in no paired comparison."""
    ensemble, found = choose(atomic_columns((32, 32), counts=counts, seed=seed))
    assert_complete(ensemble, found, 3)
    assert len(ensemble) > 1


GIVEN = {
    "no penalty": {"regularization": "none"},
    "one lambda_reg per element": {"lambda_reg": (0.7, 0.5, 1.0), "regularization": "tv"},
    "lambda_haadf": {"lambda_haadf": 0.5},
    "joint": {"joint": False},
    "all": {"regularization": "directional", "lambda_reg": 0.7, "lambda_haadf": 1.0, "joint": True},
}


@pytest.mark.parametrize("given", GIVEN)
def test_what_is_given_is_kept(scan, given):
    ensemble, found = choose(scan, z_exponent=1.9, **GIVEN[given])
    assert_complete(ensemble, found, 3)
    for settings, *_ in ensemble:
        assert settings.z_exponent == 1.9
        for name, value in GIVEN[given].items():
            assert getattr(settings, name) == value
    assert set(found.tried) == set(OPEN) - set(GIVEN[given])


def test_low_accuracy_fits_are_without_their_fold(scan, monkeypatch):
    calls, solve = [], CalibratedProblem.solve

    def spy(problem, settings, state, **options):
        calls.append((problem, settings))
        return solve(problem, settings, state, **options)

    monkeypatch.setattr(CalibratedProblem, "solve", spy)
    choose(scan, regularization="tv")
    whole = observed(scan).calibration.forward_model.weights
    for problem, settings in calls:
        totals = problem.data.totals * problem.scales
        np.testing.assert_allclose(totals, 0.8 * scan.maps.sum(axis=(1, 2)), rtol=0.05)
        assert (
            settings.settled == low_accuracy_fits.LOW_ACCURACY_SETTLED
            and settings.max_iter == 400
            and problem.dtype == np.float32
        )
        np.testing.assert_allclose(problem.forward_model.weights, whole / 0.8, rtol=1e-12)


def test_the_seed_decides_the_split(scan):
    one, same, other = (choose(scan, seed=seed, regularization="tv", joint=True) for seed in (2, 2, 1))
    assert_same(same, one)
    assert other[1].seed == 1 and set(other[1].scores).isdisjoint(one[1].scores)


def test_the_number_of_threads_does_not_matter(scan, chosen):
    """And the same is chosen twice."""
    assert_same(choose(scan, num_workers=2), chosen)


def test_the_scale_of_maps_and_image_does_not_matter(scan, chosen):
    ensemble, found = choose(replace(scan, haadf=(1000 * scan.haadf).astype(np.float64)), scan.maps * 0.25)
    assert [f.settings for f in ensemble] == [f.settings for f in chosen[0]]
    np.testing.assert_allclose(found.scores, chosen[1].scores, rtol=1e-2, atol=1e-3)


@pytest.mark.nightly
def test_the_order_of_the_elements_does_not_matter(scan, monkeypatch):
    """Given the same split: the random numbers of a map are its own."""

    def by_its_counts(maps, valid, counts_scale, background, rng, limit):
        each = [
            count_folds(m[None], v[None], counts_scale[:1], np.zeros(1), np.random.default_rng(int(m.sum())))[:limit]
            for m, v in zip(maps, valid, strict=True)
        ]
        return [
            replace(
                folds[0], maps=np.concatenate([f.maps for f in folds]), valid=valid, counts_scale=counts_scale,
                held_out=np.concatenate([f.held_out for f in folds]), background=np.zeros(len(maps)),
            )
            for folds in zip(*each, strict=True)
        ]  # fmt: skip

    monkeypatch.setattr(cross_validation, "count_folds", by_its_counts)
    order = [2, 0, 1]
    turned = replace(scan, maps=scan.maps[order], elements=[scan.elements[i] for i in order], truth=scan.truth[order])
    ensemble, found = choose(scan)
    others, other = choose(turned)
    assert [f.settings for f in others] == [f.settings for f in ensemble]
    weights = [np.array([f.weights for f in fits]) for fits in (others, ensemble)]
    np.testing.assert_allclose(weights[0], weights[1][:, order], atol=0.02)
    np.testing.assert_allclose(other.scores, found.scores, rtol=1e-2, atol=1e-3)


def test_more_noise_gets_more_smoothing(scan):
    """In units of the noise."""
    ensemble, _ = choose(interface((32, 32), counts=3.0), lambda_haadf=0.0, regularization="tv", joint=True)
    assert ensemble[0].settings.lambda_reg > 0.3
    # white noise without structure is smoothed as far as the steps go, or nearly
    rng = np.random.default_rng(0)
    flat = replace(scan, maps=rng.poisson(4.0, scan.maps.shape))
    ensemble, _ = choose(flat, lambda_haadf=0.0, regularization="tv", joint=True)
    assert ensemble[0].settings.lambda_reg >= 1.0


# ---- what the data may be --------------------------------------------------------------------------------


def test_too_few_counts_take_the_defaults(scan):
    maps = scan.maps.astype(float)
    maps[1] = 0
    maps[1, 3:10, 5:12] = 1
    ensemble, found = choose(scan, maps, noise="shifted_poisson", seed=3)
    (warning,) = found.diagnostics
    assert (warning.code, warning.severity) == ("too-few-counts-for-selection", "note")
    assert warning.elements == ("Fe",) and warning.sentence == found.sentence and len(found.sentence.split()) <= 30
    assert "regularization='guided' and lambda_reg=1.0 were used" in found.sentence
    ((settings, weights, *_),) = ensemble
    assert settings == replace(CalibratedSettings(), noise="shifted_poisson", tol=AutoSettings().tol)
    np.testing.assert_array_equal(weights, [1, 1, 1])
    assert found.as_dict()["seed"] == 3 and len(found.scores) == 0
    # one count more is enough
    maps[1, 0, 0] = 1
    assert not choose(scan, maps, noise="shifted_poisson", regularization="tv")[1].diagnostics
    # given settings are kept; and counts of 100 each are as few
    maps[1, 3] = 0
    maps[1] *= 100
    given = {"regularization": "tv", "lambda_haadf": 0.5}
    ensemble, found = choose(scan, maps, noise="shifted_poisson", **given)
    assert found.diagnostics and {name: getattr(ensemble[0].settings, name) for name in given} == given


def not_counts(scan, kind):
    """Maps and settings of noisy numbers, of counts after subtraction, and of counts fitted as Gaussian."""
    rng = np.random.default_rng(0)
    if kind == "numbers":
        return scan.truth + rng.normal(0, 1.5, scan.truth.shape), {}
    if kind == "negative":
        return scan.maps.astype(float) - rng.poisson(1.0, scan.maps.shape), {"regularization": "directional"}
    return None, {"noise": "gaussian", "regularization": "tv"}


@pytest.mark.parametrize("kind", ["negative", "gaussian"])
def test_maps_that_are_no_counts_hold_out_pixels(scan, kind):
    maps, settings = not_counts(scan, kind)
    ensemble, found = choose(scan, maps, **settings)
    assert_complete(ensemble, found, 3)
    assert "compared by held-out pixels" in found.sentence and found.n_folds.max() <= 10


def test_noise_metadata_are_used(scan):
    variance = np.maximum(scan.truth, 0.5)
    maps = scan.truth + np.sqrt(variance) * np.random.default_rng(0).normal(size=scan.truth.shape)
    known = observed(scan, maps=maps, variance=variance)
    assert_complete(*choose(scan, observation=known, regularization="directional"), 3)
    background = np.random.default_rng(1).uniform(0.5, 1.5, scan.truth.shape)
    maps = np.random.default_rng(2).poisson(scan.truth + background).astype(float)
    known = observed(scan, maps=maps, background=background)
    ensemble, found = choose(scan, observation=known, regularization="directional")
    assert_complete(ensemble, found, 3)
    assert "held-out counts" in found.sentence and found.scores.max() > 0


@pytest.mark.parametrize("kind", ["counts", pytest.param("numbers", marks=pytest.mark.nightly)])
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


def test_large_scans_need_fewer_folds():
    for side, number in ((24, 5), (256, 2), (512, 1)):
        maps = np.ones((1, side, side)) + (np.arange(side) % 2)
        nothing = np.zeros(1)
        folds = cross_validation.folds_of(maps, maps > 0, np.ones(1), np.ones(1), nothing, np.random.default_rng(0))
        assert len(folds) == number and isinstance(folds[0], HeldOutCounts)
        folds = cross_validation.folds_of(
            maps + 0.5, maps > 0, np.ones(1), np.ones(1), nothing, np.random.default_rng(0)
        )
        assert len(folds) == {5: 10}.get(number, number) and isinstance(folds[0], HeldOutPixels)


def test_an_interrupt_is_passed_on(scan, monkeypatch):
    solve = CalibratedProblem.solve

    def interrupted(*args, **options):
        result, state = solve(*args, **options)
        return replace(result, reason=StopReason.INTERRUPTED), state

    monkeypatch.setattr(CalibratedProblem, "solve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        choose(scan)
