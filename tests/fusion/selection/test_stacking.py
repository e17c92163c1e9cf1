"""Weights of an ensemble: stacking against exact solutions and brute force, and pseudo-BMA+."""

import numpy as np
import pytest

from hyperspy_fusion.fusion.selection import stacking
from hyperspy_fusion.fusion.selection.cross_validation import HeldOutCounts, HeldOutPixels, count_folds
from hyperspy_fusion.fusion.selection.stacking import pseudo_bma_weights, stacking_weights


def exact_folds(truth, number=2):
    """Held-out counts without noise: what is best is known exactly."""
    valid, counts_scale = np.ones(truth.shape, bool), np.ones(len(truth))
    return [HeldOutCounts(truth * 0.5, valid, truth * 0.5, 0.5, counts_scale, np.zeros(len(truth)))] * number


def waves(shape=(20, 20), mean=50.0):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return mean * np.stack([1 + 0.5 * np.sin(y / 3), 1 + 0.5 * np.cos(x / 4)])


def score(weights, folds, ensembles):
    averages = [np.tensordot(weights, maps, 1) for maps in ensembles]
    return sum(fold.scores(maps).sum() for fold, maps in zip(folds, averages, strict=True))


def drawn_folds(truth, rng, number):
    ones, zeros = np.ones(len(truth)), np.zeros(len(truth))
    return count_folds(rng.poisson(truth).astype(float), np.ones(truth.shape, bool), ones, zeros, rng, number)


def test_the_truth_takes_all_the_weight():
    truth = waves()
    weights = stacking_weights(exact_folds(truth), [[0.25 * truth[::-1] + 12, truth * 0.5]] * 2)
    np.testing.assert_allclose(weights, [[0, 0], [1, 1]], atol=1e-6)
    np.testing.assert_array_equal(stacking_weights(exact_folds(truth), [[truth]] * 2), [[1, 1]])


@pytest.mark.parametrize("dose", [1, 1e6])
def test_weights_are_those_that_make_the_truth(dose):
    """0.3 a + 0.7 b is the truth of the first map, and 0.6 a + 0.4 b that of the second."""
    truth, rng = dose * waves() * 0.5, np.random.default_rng(0)
    error = rng.normal(0, 2 * dose, truth.shape)
    share = np.array([0.3, 0.6])[:, None, None]
    a, b = truth + (1 - share) * error, truth - share * error
    weights = stacking_weights(exact_folds(2 * truth), [[a, b]] * 2)
    np.testing.assert_allclose(weights, [[0.3, 0.6], [0.7, 0.4]], atol=2e-3)
    # and of pixels, by least squares
    a, b, truth = (np.tile(m, (1, 2, 2)) for m in (a, b, truth))
    out = np.ones(truth.shape, bool)
    weights = stacking_weights([HeldOutPixels(truth, ~out, out, np.ones(2), np.zeros(2))], [[a, b]])
    np.testing.assert_allclose(weights, [[0.3, 0.6], [0.7, 0.4]], atol=2e-3)


def test_independent_errors_are_averaged():
    rng = np.random.default_rng(0)
    truth = waves((60, 60), 20.0)
    folds = drawn_folds(truth, rng, 5)
    ensembles = [[0.8 * truth + rng.normal(0, 1.5, truth.shape) for _ in range(2)] for _ in folds]
    weights = stacking_weights(folds, ensembles)
    np.testing.assert_allclose(weights, 0.5, atol=0.1)
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=1e-12)
    single = max(score([1, 0], folds, ensembles), score([0, 1], folds, ensembles))
    assert score([0.5, 0.5], folds, ensembles) > single


def test_no_other_weights_are_better():
    """Of three fits and noisy counts, by brute force."""
    rng = np.random.default_rng(3)
    truth = waves((40, 40), 5.0)[:1]
    folds = drawn_folds(truth, rng, 2)
    ensembles = [[0.5 * truth * np.exp(rng.normal(0, s, truth.shape)) for s in (0.3, 0.4, 0.5)] for _ in folds]
    grid = np.linspace(0, 1, 21)
    best = max(score([a, b, 1 - a - b], folds, ensembles) for a in grid for b in grid if a + b <= 1)
    weights = stacking_weights(folds, ensembles)[:, 0]
    assert score(weights, folds, ensembles) >= best - 1e-6 * abs(best) and weights.min() >= 0.1


def test_fits_of_small_weight_are_left_out():
    truth = waves() * 0.5
    error = np.random.default_rng(0).normal(0, 2, truth.shape)
    weights = stacking_weights(exact_folds(2 * truth), [[truth + 0.95 * error, truth - 0.05 * error]] * 2)
    np.testing.assert_allclose(weights, [[0, 0], [1, 1]], atol=1e-12)


def test_a_small_difference_among_many_counts_is_found():
    """Of 4e5 counts, one fit predicts better than the other by a few units of log-likelihood only."""
    truth = waves((60, 60), 100.0) * 0.5
    error = np.random.default_rng(0).normal(0, 1, truth.shape)
    weights = stacking_weights(exact_folds(2 * truth, 1), [[truth + 0.1 * error, truth + 0.6 * error]])
    np.testing.assert_allclose(weights, [[1, 1], [0, 0]], atol=1e-3)


def test_maps_of_few_counts_share_their_weights():
    """Of four maps two have few held-out counts: those two share weights, the rich ones have their own."""
    truth = np.concatenate([waves(mean=50.0), waves(mean=0.2)]) * 0.5
    rng = np.random.default_rng(0)
    share = np.array([0.3, 0.6, 0.2, 0.8])[:, None, None]
    error = rng.normal(0, 1, truth.shape) * truth * 0.1
    weights = stacking_weights(exact_folds(2 * truth), [[truth + (1 - share) * error, truth - share * error]] * 2)
    np.testing.assert_allclose(weights[:, :2], [[0.3, 0.6], [0.7, 0.4]], atol=5e-3)
    np.testing.assert_array_equal(weights[:, 2], weights[:, 3])
    assert 0.2 < weights[0, 2] < 0.8
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=1e-12)


def test_the_loss_has_its_gradient():
    rng = np.random.default_rng(0)
    folds = exact_folds(waves())
    loss = stacking._StackingLoss(folds, [[waves() * rng.uniform(0.3, 0.7) for _ in range(3)] for _ in folds])
    at = rng.dirichlet(np.ones(3), 2).T.ravel()
    step = 1e-6 * np.eye(6)
    expected = [(loss.value_and_gradient(at + s)[0] - loss.value_and_gradient(at - s)[0]) / 2e-6 for s in step]
    np.testing.assert_allclose(loss.value_and_gradient(at)[1], expected, rtol=1e-5)


def pairs(difference, error, n=400):
    """Scores of two fits in n pixels: totals apart by a difference, of a standard error."""
    noise = np.random.default_rng(0).normal(size=n)
    noise = (noise - noise.mean()) / np.linalg.norm(noise - noise.mean())
    common = np.random.default_rng(1).normal(0, 30, n)
    return np.array([common, common + difference / n + error * noise]).reshape(2, 20, -1)


@pytest.mark.parametrize("difference, error, expected", [
    (0.0, 20.0, 0.5), (-1000.0, 1e-3, 0.0), (-2.0, 1e-6, 1 / (1 + np.exp(2))), (-20.0, 20.0, 0.17), (60.0, 20.0, 1.0),
])  # fmt: skip
def test_pseudo_bma_averages_what_cannot_be_told_apart(difference, error, expected):
    """One standard error below the best: it is the better one in 16 of 100 cases; three above, in all but one."""
    weights = pseudo_bma_weights(pairs(difference, error))
    assert weights.sum() == pytest.approx(1)
    assert weights[1] == pytest.approx(expected, abs=0.02)
    np.testing.assert_array_equal(pseudo_bma_weights(np.ones((1, 3, 4))), [1])
