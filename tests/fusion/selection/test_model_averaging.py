"""Averages of several fits to the same data: exact, and of the fits that were reached."""

import numpy as np
import pytest
from calibrated_cases import NUMBERS, observe, scan_of, settings_of

from hyperspy_fusion.fusion.problems.calibrated import CalibratedProblem
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.selection.model_averaging import AveragedProblem, EnsembleFit, EnsembleState, weighted_mean
from hyperspy_fusion.fusion.solvers.primal_dual import CHECK_EVERY

SHAPE = (16, 20)
WEIGHTS = np.array([[0.7, 0.2], [0.3, 0.0], [0.0, 0.8]])
PENALTIES = ("tv", "guided", "directional")


def settings(penalty="tv", **options):
    return settings_of(regularization=penalty, dtype=None, **({"tol": 1e-3} | options))


@pytest.fixture(scope="module")
def observation():
    return observe(*scan_of(SHAPE), NUMBERS, settings())


def alone(observation, penalty, tol=1e-3, **options):
    return observation.problem(settings(penalty)).solve(settings(tol=tol), **options)


def averaged(observation, penalties=PENALTIES, weights=WEIGHTS):
    fits = zip(penalties, weights, strict=False)
    return AveragedProblem.of([EnsembleFit(settings(p), weight, observation) for p, weight in fits])


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


def test_the_average_is_that_of_the_single_fits(observation, results):
    problem = averaged(observation)
    result, state = problem.solve(settings())
    np.testing.assert_allclose(result.maps, weighted_mean(WEIGHTS, [r.maps for r in results]), rtol=1e-12)
    for maps, one in zip(state.maps, results, strict=True):
        np.testing.assert_array_equal(maps, one.maps)
    image = observation.calibration.forward_model.image(result.maps)
    np.testing.assert_allclose(result.modelled_haadf, image, rtol=1e-12)
    assert result.gap == max(r.gap for r in results) and result.reason is StopReason.CONVERGED
    assert result.n_iter == state.n_iter == sum(r.n_iter for r in results)
    np.testing.assert_array_equal(result.history.total, results[0].history.total)
    # each keeps the totals, and so does their average
    np.testing.assert_allclose(result.maps.sum(axis=(1, 2)), observation.scan.maps.sum(axis=(1, 2)), rtol=1e-6)
    # of the fit of the largest weight; and findings once
    assert problem.of_largest_weight is problem.problems[0] and problem.penalty.kind == "tv" and problem.uses_haadf
    assert len(set(problem.diagnostics)) == len(problem.diagnostics)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_average_of_one_is_that_one(observation, results, penalty):
    one = results[PENALTIES.index(penalty)]
    result, _ = averaged(observation, [penalty], np.ones((1, 2))).solve(settings())
    np.testing.assert_array_equal(result.maps, one.maps)
    np.testing.assert_allclose(result.modelled_haadf, one.modelled_haadf, rtol=1e-6)
    assert (result.gap, result.n_iter, result.reason) == (one.gap, one.n_iter, one.reason)


def test_an_ensemble_goes_on_from_its_state(observation):
    problem = averaged(observation)
    first, state = problem.solve(settings())
    again, _ = problem.solve(settings(), state)
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
    problem = averaged(observation)
    result, state = problem.solve(settings(), callback=stop_at(0))
    first, _ = alone(observation, "tv", callback=stop_at(0))
    assert result.reason is StopReason.STOPPED and len(state.states) == len(state.maps) == 1
    # the weights of one are 1, whatever they were in the average of all
    np.testing.assert_allclose(result.maps, first.maps, rtol=1e-12)
    pairs, weights = problem.fits(state)
    assert len(pairs) == 1 and pairs[0][0] is problem.problems[0]
    np.testing.assert_array_equal(weights, [[1, 1]])


def test_a_fit_with_slopes_or_of_large_weight_has_a_larger_part_of_the_bar(observation):
    seen = {}

    def callback(state):
        seen[len(state.states)] = state

    averaged(observation).solve(settings(tol="settled", max_iter=50), callback=callback)
    # two maps, and the two slopes of "guided"; distances from 1 to 0.03 over the weight times the root of two
    by_hand = [4 * np.log(0.7 * 2**0.5 / 0.03), 6 * np.log(0.3 * 2**0.5 / 0.03), 4 * np.log(1 / 0.03)]
    np.testing.assert_allclose(seen[2].times, by_hand, rtol=1e-9)
    second = seen[2].states[1].fraction
    assert seen[2].fraction == pytest.approx((by_hand[0] + by_hand[1] * second) / sum(by_hand))
    averaged(observation).solve(settings(), callback=callback)
    assert list(seen[3].times) == [4, 6, 4]


def test_a_stop_in_the_second_leaves_out_the_third(observation, results):
    """A map whose weight is all in a fit that was not reached takes the others."""
    numbers = []

    def callback(state):
        numbers.append(len(state.states))
        if len(state.states) == 2:
            raise StopIteration

    weights = np.array([[0.5, 0.0], [0.25, 0.0], [0.25, 1.0]])
    result, state = averaged(observation, weights=weights).solve(settings(), callback=callback)
    assert set(numbers) == {1, 2} and len(state.maps) == 2
    second = state.maps[1]
    assert np.any(second != results[1].maps)
    np.testing.assert_allclose(result.maps[0], (2 * results[0].maps[0] + second[0]) / 3, rtol=1e-6)
    np.testing.assert_allclose(result.maps[1], (results[0].maps[1] + second[1]) / 2, rtol=1e-6)


def test_a_stopped_ensemble_goes_on_to_the_same_average(observation):
    problem, run = averaged(observation), settings(tol=1e-7)
    whole, _ = problem.solve(run)
    _, state = problem.solve(run, callback=stop_at(1))
    result, state = problem.solve(run, state)
    np.testing.assert_allclose(result.maps, whole.maps, atol=5e-3)
    assert len(state.states) == 3 and result.reason is StopReason.CONVERGED


def test_a_fit_that_has_not_converged_is_reported(observation):
    result, state = averaged(observation).solve(settings(tol=1e-9, max_iter=20))
    assert result.reason is StopReason.NOT_CONVERGED and len(state.maps) == 3
    assert result.gap == max(s.gap for s in state.states)
    assert np.isinf(EnsembleState().gap)


def test_ctrl_c_before_the_second_fit_keeps_the_first(observation, monkeypatch):
    calls, solve = [], CalibratedProblem.solve

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return solve(*args)

    monkeypatch.setattr(CalibratedProblem, "solve", interrupted)
    result, state = averaged(observation).solve(settings())
    assert result.reason is StopReason.INTERRUPTED and len(state.states) == 1
    np.testing.assert_array_equal(result.maps, state.maps[0])
