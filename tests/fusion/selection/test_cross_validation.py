"""Cross-validation: counts split by thinning, pixels assigned to folds, and the score of their predictions."""

import numpy as np
import pytest
from scipy.stats import poisson

from hyperspy_fusion.fusion.selection.cross_validation import (
    POISSON_OFFSET,
    HeldOutCounts,
    HeldOutPixels,
    count_folds,
    pixel_folds,
)

COUNTS_SCALE = np.array([1.0, 2.5])
NOTHING = np.zeros(2)


def counts_of(mean=6.0, shape=(2, 40, 50), seed=0):
    return np.random.default_rng(seed).poisson(mean, shape)


def split(counts, n_folds=5, background=NOTHING, valid=None, seed=1):
    valid = np.ones(counts.shape, bool) if valid is None else valid
    maps = counts * COUNTS_SCALE[:, None, None]
    return count_folds(maps, valid, COUNTS_SCALE, background, np.random.default_rng(seed), n_folds)


# ---- folds of counts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_folds", [2, 5])
def test_folds_add_up_to_the_counts(n_folds):
    counts = counts_of()
    folds = split(counts, n_folds)
    assert len(folds) == n_folds
    np.testing.assert_array_equal(sum(f.held_out for f in folds), counts)
    for fold in folds:
        np.testing.assert_allclose(fold.maps / COUNTS_SCALE[:, None, None], counts - fold.held_out, rtol=1e-12)
        assert fold.held_out.min() >= 0 and fold.fraction == pytest.approx(1 - 1 / n_folds)
        np.testing.assert_array_equal(fold.size(), fold.held_out.sum(axis=(1, 2)))


def test_each_fold_is_binomial_and_independent():
    for fold in split(np.full((2, 100, 100), 20)):
        n = fold.held_out.size
        assert fold.held_out.mean() == pytest.approx(4, abs=5 * np.sqrt(3.2 / n))
        # the variance of a variance, nearly normal
        assert fold.held_out.var() == pytest.approx(3.2, abs=5 * 3.2 * np.sqrt(2 / n))
    # of one fold and another, and of a fold and the counts without it
    folds = split(counts_of(6.0, (2, 150, 150)))
    others = [(folds[j].held_out, folds[k].held_out) for j in range(5) for k in range(j)]
    for a, b in others + [(f.held_out, f.maps / COUNTS_SCALE[:, None, None]) for f in folds]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_the_generator_decides_the_split():
    counts = counts_of()
    one, same, other = (split(counts, seed=seed)[0].held_out for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other)


def test_background_is_that_of_the_fitted_fraction():
    per_pixel = np.random.default_rng(2).uniform(0, 1, (2, 40, 50))
    for background in (np.array([1.0, 3.0]), per_pixel):
        np.testing.assert_allclose(split(counts_of(), background=background)[2].background, 0.8 * background)


# ---- score of counts -----------------------------------------------------------------------------------


def two_pixels(background=NOTHING):
    """One fifth held out: 4 and 0 counts of the first map, 1 and 3 of the second."""
    held_out = np.array([[[4, 0]], [[1, 3]]])
    valid = np.ones(held_out.shape, bool)
    return HeldOutCounts(np.zeros(held_out.shape), valid, held_out, 0.8, COUNTS_SCALE, background)


# four fifths of the first map are 8 and 12, so that 2 and 3 counts are expected; of the second 0.4 and 2
@pytest.mark.parametrize("background, fused, mean", [
    (NOTHING, [[[8.0, 12.0]], [[4.0, 20.0]]], [[[2, 3]], [[0.4, 2]]]),
    (np.array([4.0, 10.0]), [[[4.0, 8.0]], [[10.0, 20.0]]], [[[2, 3]], [[2, 3]]]),
    (np.array([[[4.0, 0.0]], [[10.0, 0.0]]]), [[[4.0, 8.0]], [[10.0, 20.0]]], [[[2, 2]], [[2, 2]]]),
])  # fmt: skip
def test_scores_of_counts_by_hand(background, fused, mean):
    """Both maps have 2 held-out counts per pixel on average."""
    held_out, o, mean = np.array([[[4, 0]], [[1, 3]]]), 2 * POISSON_OFFSET, np.array(mean)
    expected = (held_out + o) * np.log((mean + o) / (2 + o)) - (mean - 2)
    np.testing.assert_allclose(two_pixels(background).scores(np.array(fused)), expected, atol=1e-14)


def test_flat_maps_score_0_and_the_truth_most():
    y = np.mgrid[:60, :60][0]
    truth = np.stack([2 + 1.5 * np.sin(y / 6), 3 + 2 * np.cos(y / 9)])
    fold = split(np.random.default_rng(5).poisson(truth))[0]
    units = COUNTS_SCALE[:, None, None] * fold.fraction
    flat = fold.held_out.mean(axis=(1, 2), keepdims=True) * 4 * COUNTS_SCALE[:, None, None] * np.ones(truth.shape)
    np.testing.assert_allclose(fold.scores(flat), 0, atol=1e-12)
    best = fold.scores(truth * units).sum()
    assert best > 0
    for other in (truth[:, ::-1], 1.3 * truth, (truth + truth.mean(axis=(1, 2), keepdims=True)) / 2):
        assert fold.scores(other * units).sum() < best


def test_the_expected_score_is_largest_at_the_truth():
    """By the sum over all counts of a pixel: dark, bright, and of the mean of the map."""
    counts = np.arange(60)
    for mean in (0.05, 4.9, 15.0):
        held_out = np.append(counts, [0] * 300)[None, None]  # 4.9 on average
        valid = np.ones(held_out.shape, bool)
        fold = HeldOutCounts(np.zeros(held_out.shape), valid, held_out, 0.5, np.ones(1), np.zeros(1))
        tried = mean * np.linspace(0.5, 1.5, 101)
        expected = [poisson.pmf(counts, mean) @ fold.scores(np.full(held_out.shape, x))[0, 0, :60] for x in tried]
        assert np.argmax(expected) == 50


def test_a_prediction_of_nothing_has_a_finite_score():
    held_out, o = np.array([[[4, 0]], [[1, 3]]]), POISSON_OFFSET * 2
    for nothing in (0.0, -5.0, 1e-300):
        scores = two_pixels().scores(np.full((2, 1, 2), nothing))
        np.testing.assert_allclose(scores, (held_out + o) * np.log(o / (2 + o)) + 2, rtol=1e-12)
    zeros = np.zeros((2, 1, 2))
    empty = HeldOutCounts(zeros, zeros == 0, zeros.astype(int), 0.8, COUNTS_SCALE, NOTHING)
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        assert np.isfinite(empty.scores(zeros + 1)).all()


# ---- folds of pixels -----------------------------------------------------------------------------------


def test_every_valid_pixel_is_held_out_once_of_all_maps():
    maps, rng = np.random.default_rng(0).normal(size=(2, 13, 17)), np.random.default_rng(1)
    valid = np.random.default_rng(2).random(maps.shape) > 0.3
    for used in (np.ones(maps.shape, bool), valid):
        folds = pixel_folds(maps, used, np.ones(2), NOTHING, rng, 10)
        np.testing.assert_array_equal(sum(f.held_out.astype(int) for f in folds), used)
        for fold in folds:
            np.testing.assert_array_equal(fold.valid, used & ~fold.held_out)
            np.testing.assert_array_equal(fold.size(), fold.held_out.sum(axis=(1, 2)))
            both = used.all(axis=0)
            np.testing.assert_array_equal(fold.held_out[0][both], fold.held_out[1][both])
            assert used is valid or set(fold.size()) <= {22, 23}  # of 221 pixels


def test_scores_of_pixels_by_hand():
    maps = np.array([[[1.0, 3.0, 7.0]], [[2.0, 2.0, 5.0]]])
    held_out = np.array([[[False, False, True]]] * 2)
    fold = HeldOutPixels(maps, ~held_out, held_out, np.array([2.0, 0.5]), np.array([1.0, 0.0]))
    fused = np.full(maps.shape, 5.0)
    # of the fitted pixels alone the means are 2 and 2; the residuals are 7 - 5 - 1 and 5 - 5
    np.testing.assert_allclose(fold.scores(fused), [[[0, 0, (25 - 1) / 4]], [[0, 0, 9 / 1]]])
    one = np.array([[[2.0, 2.0, 2.0]], [[0.5, 0.5, 0.5]]])
    per_pixel = HeldOutPixels(maps, ~held_out, held_out, one, np.array([[[9.0, 9.0, 1.0]], [[9.0, 9.0, 0.0]]]))
    np.testing.assert_array_equal(per_pixel.scores(fused), fold.scores(fused))


# ---- both ----------------------------------------------------------------------------------------------


def fold_of(kind, background=NOTHING, valid=None):
    maps, valid = counts_of(6.0, (2, 6, 7)), np.ones((2, 6, 7), bool) if valid is None else valid
    if kind == "counts":
        return split(maps, background=background, valid=valid)[1]
    return pixel_folds(maps + 0.5, valid, np.array([6.0, 2.0]), background, np.random.default_rng(0), 2)[0]


@pytest.mark.parametrize("background", [NOTHING, np.array([0.5, 2.0]), np.full((2, 6, 7), 0.4)], ids=["0", "n", "yx"])
@pytest.mark.parametrize("kind", ["counts", "pixels"])
def test_derivatives_are_those_of_the_scores(kind, background):
    valid = np.ones((2, 6, 7), bool)
    valid[:, 2, 3] = valid[1, 4] = False
    fold, fused = fold_of(kind, background, valid), np.random.default_rng(7).uniform(0.5, 12, (2, 6, 7))
    fused[:, 0, :3] = -3.0  # below nothing
    step = 1e-5
    expected = (fold.scores(fused + step) - fold.scores(fused - step)) / (2 * step)
    gradient, curvatures = fold.derivatives(fused)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)
    slope = (fold.derivatives(fused + step)[0] - fold.derivatives(fused - step)[0]) / (2 * step)
    for n, (i, j, curvature) in enumerate(curvatures):
        assert i == j == n
        np.testing.assert_allclose(curvature, -slope[i], rtol=1e-6, atol=1e-8)
    assert gradient.any() and not gradient[~valid].any()
    if kind == "counts":
        assert not gradient[:, 0, :3].any()


@pytest.mark.parametrize("kind", ["counts", "pixels"])
def test_masked_pixels_have_no_score(kind):
    valid = np.ones((2, 6, 7), bool)
    valid[0, 1:3], valid[1, :, 4] = False, False
    fold, fused = fold_of(kind, valid=valid), np.random.default_rng(7).uniform(0.5, 12, (2, 6, 7))
    scores, gradient, size = fold.scores(fused), fold.derivatives(fused)[0], fold.size()
    assert not scores[~valid].any()
    # neither their values nor what is predicted there matters
    if kind == "counts":
        fold.held_out[~valid] = 10**6
    fold.maps[~valid] = 1e9
    moved = np.where(valid, fused, 1e5)
    np.testing.assert_array_equal(fold.scores(moved), scores)
    np.testing.assert_array_equal(fold.derivatives(moved)[0], gradient)
    assert all(not curvature[~valid[i]].any() for i, _, curvature in fold.derivatives(moved)[1])
    np.testing.assert_array_equal(fold.size(), size)


@pytest.mark.parametrize("kind", ["counts", "pixels"])
def test_scores_of_single_precision_maps(kind):
    fold, fused = fold_of(kind), np.full((2, 6, 7), 4.5)
    np.testing.assert_allclose(fold.scores(fused.astype(np.float32)), fold.scores(fused), rtol=1e-4, atol=1e-6)
