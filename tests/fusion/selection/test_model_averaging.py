"""Means of several fits to the same data: exact, and of those that were reached."""

import numpy as np
import pytest
from calibrated_cases import NUMBERS, observe, scan_of, settings_of

from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.selection.model_averaging import MeanProblem, mean_of_fits, weighted_mean
from hyperspy_fusion.fusion.solvers.primal_dual import CHECK_EVERY, primal_dual

SHAPE = (16, 20)
SETTINGS = settings_of(regularization="tv", tol=1e-3, dtype=None)
WEIGHTS = np.array([[0.7, 0.2], [0.3, 0.0], [0.0, 0.8]])
PENALTIES = ("tv", "guided", "directional")


@pytest.fixture(scope="module")
def observation():
    return observe(*scan_of(SHAPE), NUMBERS, SETTINGS)


def alone(observation, penalty, settings=SETTINGS, **options):
    problem = observation.problem(settings_of(regularization=penalty, tol=1e-3, dtype=None))
    return primal_dual(problem, settings, **options)


def mean_problem(observation, penalties=PENALTIES, weights=WEIGHTS, starts=None):
    settings = [settings_of(regularization=p, tol=1e-3, dtype=None) for p in penalties]
    starts = starts or [None] * len(settings)
    return MeanProblem.of(observation, list(zip(settings, weights, starts, strict=True)))


@pytest.fixture(scope="module")
def results(observation):
    return [alone(observation, p)[0] for p in PENALTIES]


def test_weighted_mean_by_hand():
    maps = [np.array([[[1.0, 2.0]], [[3.0, 4.0]]]), np.array([[[5.0, 6.0]], [[7.0, 8.0]]])]
    mean = weighted_mean(np.array([[0.25, 1.0], [0.75, 0.0]]), maps)
    np.testing.assert_array_equal(mean, [[[4.0, 5.0]], [[3.0, 4.0]]])
    single = weighted_mean(np.array([[0.25, 1.0], [0.75, 0.0]]), [m.astype(np.float32) for m in maps])
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single, mean)


def test_the_mean_is_that_of_the_fits_made_alone(observation, results):
    result, state = mean_of_fits(mean_problem(observation), SETTINGS)
    np.testing.assert_allclose(result.maps, weighted_mean(WEIGHTS, [r.maps for r in results]), rtol=1e-12)
    for maps, one in zip(state.maps, results, strict=True):
        np.testing.assert_array_equal(maps, one.maps)
    np.testing.assert_allclose(
        result.modelled_haadf, observation.calibration.forward_model.image(result.maps), rtol=1e-12
    )
    assert result.gap == max(r.gap for r in results)
    assert result.n_iter == state.n_iter == sum(r.n_iter for r in results)
    np.testing.assert_array_equal(result.history.total, results[0].history.total)
    assert result.reason is StopReason.CONVERGED
    # each keeps the totals, and so does their mean
    np.testing.assert_allclose(result.maps.sum(axis=(1, 2)), observation.scan.maps.sum(axis=(1, 2)), rtol=1e-6)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_mean_of_one_is_that_one(observation, results, penalty):
    one = results[PENALTIES.index(penalty)]
    result, _ = mean_of_fits(mean_problem(observation, [penalty], np.ones((1, 2))), SETTINGS)
    np.testing.assert_array_equal(result.maps, one.maps)
    np.testing.assert_allclose(result.modelled_haadf, one.modelled_haadf, rtol=1e-6)
    assert (result.gap, result.n_iter, result.reason) == (one.gap, one.n_iter, one.reason)


def test_a_start_is_taken(observation):
    """From a tighter fit of the same problem the tolerance is met at the first look."""
    cold, _ = alone(observation, "tv")
    _, state = alone(observation, "tv", settings_of(tol=1e-8))
    warm, _ = mean_of_fits(mean_problem(observation, ["tv"], np.ones((1, 2)), [state]), SETTINGS)
    assert warm.gap < 1e-6 < cold.gap


def test_a_fit_goes_on_from_its_state(observation):
    problem = mean_problem(observation)
    first, state = mean_of_fits(problem, SETTINGS)
    again, _ = mean_of_fits(problem, SETTINGS, state)
    assert again.gap <= first.gap
    # each to the first look at its gap
    assert again.n_iter - first.n_iter == 3 * CHECK_EVERY < first.n_iter


def stop_at(call):
    calls = iter(range(10**6))

    def callback(state):
        if next(calls) == call:
            raise StopIteration

    return callback


def test_a_stop_keeps_the_fits_that_were_reached(observation):
    problem = mean_problem(observation)
    result, state = mean_of_fits(problem, SETTINGS, callback=stop_at(0))
    first, _ = alone(observation, "tv", callback=stop_at(0))
    assert result.reason is StopReason.STOPPED and len(state.states) == len(state.maps) == 1
    # the weights of one are 1, whatever they were in the mean of all
    np.testing.assert_allclose(result.maps, first.maps, rtol=1e-12)
    pairs, weights = problem.members(state)
    assert len(pairs) == 1 and pairs[0][0] is problem.problems[0]
    np.testing.assert_array_equal(weights, [[1, 1]])


def test_a_stop_in_the_second_leaves_out_the_third(observation, results):
    """A map whose weight is all in a fit that was not reached takes what there is."""
    seen = []

    def callback(state):
        seen.append(len(state.states))
        if len(state.states) == 2:
            raise StopIteration

    weights = np.array([[0.5, 0.0], [0.25, 0.0], [0.25, 1.0]])
    result, state = mean_of_fits(mean_problem(observation, weights=weights), SETTINGS, callback=callback)
    assert set(seen) == {1, 2} and len(state.maps) == 2
    second = state.maps[1]
    assert np.any(second != results[1].maps)
    np.testing.assert_allclose(result.maps[0], (2 * results[0].maps[0] + second[0]) / 3, rtol=1e-12)
    np.testing.assert_allclose(result.maps[1], (results[0].maps[1] + second[1]) / 2, rtol=1e-12)


def test_what_was_stopped_goes_on_to_the_same_mean(observation):
    problem, settings = mean_problem(observation), settings_of(tol=1e-8)
    whole, _ = mean_of_fits(problem, settings)
    _, state = mean_of_fits(problem, settings, callback=stop_at(1))
    result, state = mean_of_fits(problem, settings, state)
    np.testing.assert_allclose(result.maps, whole.maps, atol=2e-3)
    assert len(state.states) == 3 and result.reason is StopReason.CONVERGED


def test_one_that_has_not_converged_is_told(observation):
    settings = settings_of(tol=1e-9, max_iter=20)
    result, state = mean_of_fits(mean_problem(observation), settings)
    assert result.reason is StopReason.NOT_CONVERGED and len(state.maps) == 3
    assert result.gap == max(s.gap for s in state.states)
    assert np.isinf(type(state)().gap)


def test_ctrl_c_before_the_second_fit_keeps_the_first(observation, monkeypatch):
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return primal_dual(*args)

    monkeypatch.setattr("hyperspy_fusion.fusion.selection.model_averaging.solved", interrupted)
    result, state = mean_of_fits(mean_problem(observation), SETTINGS)
    assert result.reason is StopReason.INTERRUPTED and len(state.states) == 1
    np.testing.assert_array_equal(result.maps, state.maps[0])
