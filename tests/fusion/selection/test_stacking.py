"""Weights of an ensemble: stacking against exact solutions and brute force, and pseudo-BMA+."""

import numpy as np
import pytest

from hyperspy_fusion.fusion.selection import stacking
from hyperspy_fusion.fusion.selection.cross_validation import (
    HeldOutCounts,
    HeldOutPixels,
    band_folds,
    count_folds,
    pixel_folds,
)
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
    weights = stacking_weights(exact_folds(2 * truth), [[truth - 0.05 * error, truth + 0.95 * error]] * 2)
    np.testing.assert_array_equal(weights, [[1, 1], [0, 0]])


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


# ---- the maximum, of every kind of held-out data -------------------------------------------------------


def case_of(kind, dtype=np.float64):
    """Folds, and four fits to them: three of errors that differ, and one of twice those of the first.

    The last two of four maps are poor.
    """
    rng = np.random.default_rng(5)
    truth = np.concatenate([waves((40, 40), 8.0), waves((40, 40), 0.4)])
    fraction, valid = 0.5, np.ones(truth.shape, bool)
    if kind == "masked counts":
        valid[0, :15], valid[1:, :, 30:] = False, False
    if kind == "pixels":
        fraction, noise = 1.0, rng.normal(0, 0.5, truth.shape)
        folds = pixel_folds(truth + noise, valid, np.full(4, 0.25), np.zeros(4), rng, 2)
        valid[2:, 10:] = False  # in some parts these maps are not measured
    elif kind == "bands":
        matrix = np.array([[0.7, 0.2, 0.0, 0.02], [0.3, 0.5, 0.02, 0.02], [0.0, 0.3, 0.03, 0.0], [0.0, 0.0, 0.2, 0.2]])
        folds = band_folds(rng.poisson(np.tensordot(matrix, truth, 1)), matrix, valid[0], rng, 2)
    else:
        ones, zeros = np.ones(len(truth)), np.full(len(truth), 0.2)
        folds = count_folds(rng.poisson(truth + 0.2).astype(float), valid, ones, zeros, rng, 2)
    ensembles = []
    for _ in folds:
        errors = [rng.normal(0, 0.2 + 0.05 * j, truth.shape) for j in range(3)]
        blurred = [(truth + np.roll(truth, 1 + 2 * j, axis=1)) / 2 for j in range(3)]
        fits = [b * np.exp(e) for b, e in zip(blurred, errors, strict=True)] + [blurred[0] * np.exp(2 * errors[0])]
        ensembles.append([(fraction * fit).astype(dtype) for fit in fits])
    return folds, ensembles


KINDS = ["counts", "masked counts", "pixels", "bands"]


def score_of_maps(weights, folds, ensembles):
    """Of weights (fits, maps)."""
    averages = [np.einsum("jn,jnyx->nyx", weights, maps) for maps in ensembles]
    return sum(fold.scores(maps).sum() for fold, maps in zip(folds, averages, strict=True))


def slopes(weights, folds, ensembles, group, step=1e-5):
    """Derivatives of the score with respect to the weights (fits, groups), by differences."""
    found = np.zeros((len(weights), group.max() + 1))
    for j, g in np.ndindex(found.shape):
        moved = np.zeros(weights.shape)
        moved[j, group == g] = step
        ahead, behind = (score_of_maps(weights + sign * moved, folds, ensembles) for sign in (1, -1))
        found[j, g] = (ahead - behind) / (2 * step)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_the_maximum(kind, monkeypatch):
    """The score rises as fast with the weight of any fit in the average, and less with that of any other."""
    monkeypatch.setattr(stacking, "SMALLEST_ENSEMBLE_WEIGHT", 0.0)
    expansions, expansion = [], stacking._StackingLoss.expansion
    monkeypatch.setattr(
        stacking._StackingLoss, "expansion", lambda *a: expansions.append(expansion(*a)) or expansions[-1]
    )
    folds, ensembles = case_of(kind)
    weights = stacking_weights(folds, ensembles)
    assert len(expansions) <= 4
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=1e-12)
    group = stacking._StackingLoss(folds, ensembles).group
    assert list(group) == {"pixels": [0, 1, 2, 3]}.get(kind, [1, 2, 0, 0])
    slope = slopes(weights, folds, ensembles, group)
    own = np.array([weights[:, group == g][:, 0] for g in range(group.max() + 1)]).T
    np.testing.assert_array_equal(own[:, group], weights)
    assert np.count_nonzero(own[:3]) > 2 * own.shape[1] and (own == 0).any()
    behind = slope.max(axis=0) - slope
    assert np.all(behind[own > 0] < 1e-2) and np.all(behind[own == 0] > 1e-2)
    # in single precision
    ensembles = [[fit.astype(np.float32) for fit in fits] for fits in ensembles]
    np.testing.assert_allclose(stacking_weights(folds, ensembles), weights, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_expansion_has_the_derivatives_of_the_score(kind):
    """Those of the differences from the first fit that is used."""
    folds, ensembles = case_of(kind)
    loss, rng = stacking._StackingLoss(folds, ensembles), np.random.default_rng(0)
    used = np.array([False, True, True, True])
    at = np.append(np.zeros((1, loss.n_groups)), rng.dirichlet(np.ones(3), loss.n_groups).T, axis=0)
    found = loss.expansion(at, used)
    slope = slopes(at[:, loss.group], folds, ensembles, loss.group)
    np.testing.assert_allclose(found.gradient[1:], (slope[1] - slope)[1:], rtol=1e-4, atol=1e-3)
    assert not found.gradient[:2].any() and not found.hessian[:2].any() and not found.hessian[:, :, :2].any()
    for j, g in [(2, 0), (3, loss.n_groups - 1)]:
        step = np.zeros(at.shape)
        step[j, g], step[1, g] = 1e-5, -1e-5
        change = loss.expansion(at + step, used).gradient - loss.expansion(at - step, used).gradient
        np.testing.assert_allclose(found.hessian[:, :, j, g], change / 2e-5, rtol=1e-5, atol=1e-4)
        expected = score_of_maps((at + 1e3 * step)[:, loss.group], folds, ensembles)
        expected -= score_of_maps(at[:, loss.group], folds, ensembles)
        assert found.decrease(at + 1e3 * step) == pytest.approx(expected, rel=0.02)


def test_a_step_does_not_raise_the_loss():
    """Where twice too much is expected, the loss is curved less than at its minimum: a whole step is too long."""
    truth = np.ones((1, 40, 40))
    folds, fits = exact_folds(2 * truth, 1), [4 * truth, 1e-3 * truth]
    loss, used = stacking._StackingLoss(folds, [fits]), np.ones(2, bool)
    before = loss.expansion(np.full((2, 1), 0.5), used)
    whole = before.minimum(before.weights, used)
    after = loss.step(before, whole, used)
    scores = [score(weights[:, 0], folds, [fits]) for weights in (whole, before.weights, after.weights)]
    assert scores[0] < scores[1] < scores[2]
    np.testing.assert_allclose(after.weights, (before.weights + whole) / 2)
    np.testing.assert_allclose(stacking_weights(folds, [fits])[:, 0], [0.999 / 3.999, 3 / 3.999], atol=1e-4)


def test_fits_that_are_alike():
    """Nothing tells them apart: their weights stay equal, beside another."""
    truth = waves()
    error = np.random.default_rng(0).normal(0, 2, truth.shape)
    a, b = truth + 0.5 * error, truth - 0.5 * error
    np.testing.assert_allclose(stacking_weights(exact_folds(2 * truth), [[a, a]] * 2), 0.5)
    weights = stacking_weights(exact_folds(2 * truth), [[a, b, b]] * 2)
    np.testing.assert_allclose(weights, [[0.5, 0.5], [0.25, 0.25], [0.25, 0.25]], atol=0.01)


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
