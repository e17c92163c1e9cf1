"""Data held out: counts split by thinning, pixels dealt at random, and how predictions of them are scored."""

import numpy as np
import pytest

from hyperspy_fusion.fusion.selection.cross_validation import (
    SHIFT,
    HeldOutCounts,
    HeldOutPixels,
    count_parts,
    pixel_parts,
)

QUANTUM = np.array([1.0, 2.5])
NOTHING = np.zeros(2)


def counts_of(mean=6.0, shape=(2, 40, 50), seed=0):
    return np.random.default_rng(seed).poisson(mean, shape)


def split(counts, number=5, background=NOTHING, valid=None, seed=1):
    valid = np.ones(counts.shape, bool) if valid is None else valid
    maps = counts * QUANTUM[:, None, None]
    return count_parts(maps, valid, QUANTUM, background, np.random.default_rng(seed), number)


# ---- counts split ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 5])
def test_parts_add_up_to_the_counts(number):
    counts = counts_of()
    parts = split(counts, number)
    assert len(parts) == number
    np.testing.assert_array_equal(sum(p.rest for p in parts), counts)
    for part in parts:
        np.testing.assert_allclose(part.maps / QUANTUM[:, None, None], counts - part.rest, rtol=1e-12)
        assert part.rest.min() >= 0 and part.part == pytest.approx(1 - 1 / number)
        np.testing.assert_array_equal(part.size(), part.rest.sum(axis=(1, 2)))


def test_each_part_is_binomial():
    """Of 20 counts in every pixel, each part has the mean and variance of one in five taken at random."""
    for part in split(np.full((2, 100, 100), 20)):
        n = part.rest.size
        assert part.rest.mean() == pytest.approx(4, abs=5 * np.sqrt(3.2 / n))
        # the variance of a variance, nearly normal
        assert part.rest.var() == pytest.approx(3.2, abs=5 * 3.2 * np.sqrt(2 / n))


def test_parts_of_poisson_counts_are_independent():
    """Of one part and another, and of a part and what is seen without it."""
    parts = split(counts_of(6.0, (2, 150, 150)))
    others = [(parts[j].rest, parts[k].rest) for j in range(5) for k in range(j)]
    for a, b in others + [(p.rest, p.maps / QUANTUM[:, None, None]) for p in parts]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_the_split_is_that_of_the_generator():
    counts = counts_of()
    one, same, other = (split(counts, seed=seed)[0].rest for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other)


def test_the_part_seen_has_its_share_of_the_background():
    per_pixel = np.random.default_rng(2).uniform(0, 1, (2, 40, 50))
    for background in (np.array([1.0, 3.0]), per_pixel):
        np.testing.assert_allclose(split(counts_of(), background=background)[2].background, 0.8 * background)


# ---- their score -------------------------------------------------------------------------------------


def two_pixels(background=NOTHING, valid=None):
    """One fifth held out; by hand 4 and 0 counts of the first map, 1 and 3 of the second."""
    rest = np.array([[[4, 0]], [[1, 3]]])
    valid = np.ones(rest.shape, bool) if valid is None else valid
    return HeldOutCounts(np.zeros(rest.shape), valid, rest, 0.8, QUANTUM, background)


def test_gains_of_counts_by_hand():
    # four fifths of the first map has means 8 and 12, so that 2 and 3 counts are expected; of the second 0.4 and 2;
    # both maps have 2 on average
    fused, s = np.array([[[8.0, 12.0]], [[4.0, 20.0]]]), 0.3 * 2
    expected = [
        [[(4 + s) * np.log((2 + s) / (2 + s)) - (2 - 2), s * np.log((3 + s) / (2 + s)) - (3 - 2)]],
        [[(1 + s) * np.log((0.4 + s) / (2 + s)) - (0.4 - 2), (3 + s) * np.log((2 + s) / (2 + s)) - 0]],
    ]
    np.testing.assert_allclose(two_pixels().gains(fused), expected, atol=1e-14)


@pytest.mark.parametrize("form", ["one per map", "one per pixel"])
def test_gains_of_counts_over_a_background_by_hand(form):
    background = np.array([4.0, 10.0]) if form == "one per map" else np.array([[[4.0, 0.0]], [[10.0, 0.0]]])
    fused = np.array([[[4.0, 8.0]], [[10.0, 20.0]]])
    # in counts of the part seen, and a quarter of it held out
    mean = {"one per map": [[[8, 12]], [[8, 12]]], "one per pixel": [[[8, 8]], [[8, 8]]]}[form]
    mean, rest = np.array(mean) / 4, np.array([[[4, 0]], [[1, 3]]])
    expected = (rest + SHIFT * 2) * np.log((mean + SHIFT * 2) / (2 + SHIFT * 2)) - (mean - 2)
    np.testing.assert_allclose(two_pixels(background).gains(fused), expected, atol=1e-14)


def test_flat_maps_gain_nothing_and_the_truth_gains_most():
    y = np.mgrid[:60, :60][0]
    truth = np.stack([2 + 1.5 * np.sin(y / 6), 3 + 2 * np.cos(y / 9)])
    rng = np.random.default_rng(5)
    part = split(rng.poisson(truth))[0]
    units = QUANTUM[:, None, None] * part.part
    flat = part.rest.mean(axis=(1, 2), keepdims=True) * 4 * QUANTUM[:, None, None] * np.ones(truth.shape)
    np.testing.assert_allclose(part.gains(flat), 0, atol=1e-12)
    best = part.gains(truth * units).sum()
    assert best > 0
    for other in (truth[:, ::-1], 1.3 * truth, (truth + truth.mean(axis=(1, 2), keepdims=True)) / 2):
        assert part.gains(other * units).sum() < best


def test_the_truth_is_expected_to_gain_most_whatever_it_is():
    """By the sum over all counts a pixel may have: dark, bright, and of the mean of the map."""
    from scipy.stats import poisson

    counts = np.arange(60)
    for mean in (0.05, 4.9, 15.0):
        rest = np.append(counts, [0] * 300)[None, None]  # 4.9 on average
        part = HeldOutCounts(np.zeros(rest.shape), np.ones(rest.shape, bool), rest, 0.5, np.ones(1), np.zeros(1))
        tried = mean * np.linspace(0.5, 1.5, 101)
        expected = [poisson.pmf(counts, mean) @ part.gains(np.full(rest.shape, x))[0, 0, :60] for x in tried]
        assert np.argmax(expected) == 50


def test_one_stray_count_does_not_decide():
    """Predictions of nothing, or of less, cost what the shift makes of them, and are never NaN."""
    for nothing in (0.0, -5.0, 1e-300):
        gains = two_pixels().gains(np.full((2, 1, 2), nothing))
        rest, shift = np.array([[[4, 0]], [[1, 3]]]), SHIFT * 2
        np.testing.assert_allclose(gains, (rest + shift) * np.log(shift / (2 + shift)) + 2, rtol=1e-12)


def test_an_empty_map_scores_without_a_warning():
    part = HeldOutCounts(np.zeros((2, 1, 2)), np.ones((2, 1, 2), bool), np.zeros((2, 1, 2), int), 0.8, QUANTUM, NOTHING)
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        assert np.isfinite(part.gains(np.ones((2, 1, 2)))).all()


# ---- pixels dealt ------------------------------------------------------------------------------------


def test_every_pixel_is_dealt_once_and_to_all_maps():
    maps = np.random.default_rng(0).normal(size=(2, 13, 17))
    parts = pixel_parts(maps, np.ones(maps.shape, bool), np.ones(2), NOTHING, np.random.default_rng(1), 10)
    out = np.array([p.out for p in parts])
    np.testing.assert_array_equal(out.sum(axis=0), 1)
    np.testing.assert_array_equal(out[:, 0], out[:, 1])
    for part in parts:
        np.testing.assert_array_equal(part.valid, ~part.out)
        assert set(part.size()) <= {22, 23}  # of 221 pixels


def test_masked_pixels_are_neither_seen_nor_held_out():
    maps = np.random.default_rng(0).normal(size=(2, 13, 17))
    valid = np.random.default_rng(2).random(maps.shape) > 0.3
    for part in pixel_parts(maps, valid, np.ones(2), NOTHING, np.random.default_rng(1)):
        np.testing.assert_array_equal(part.valid | part.out, valid)
        assert not np.any(part.valid & part.out)


def test_gains_of_pixels_by_hand():
    maps = np.array([[[1.0, 3.0, 7.0]], [[2.0, 2.0, 5.0]]])
    out = np.array([[[False, False, True]]] * 2)
    part = HeldOutPixels(maps, ~out, out, np.array([2.0, 0.5]), np.array([1.0, 0.0]))
    fused = np.full(maps.shape, 5.0)
    # of the seen pixels alone the means are 2 and 2; the residuals are 7 - 5 - 1 and 5 - 5
    np.testing.assert_allclose(part.gains(fused), [[[0, 0, (25 - 1) / 4]], [[0, 0, 9 / 1]]])
    one = np.array([[[2.0, 2.0, 2.0]], [[0.5, 0.5, 0.5]]])
    per_pixel = HeldOutPixels(maps, ~out, out, one, np.array([[[9.0, 9.0, 1.0]], [[9.0, 9.0, 0.0]]]))
    np.testing.assert_array_equal(per_pixel.gains(fused), part.gains(fused))


# ---- what both have in common --------------------------------------------------------------------------


def held_out(kind, background, valid):
    if kind == "counts":
        return split(counts_of(6.0, (2, 6, 7)), background=background, valid=valid)[1]
    maps = counts_of(6.0, (2, 6, 7)) + 0.5
    return pixel_parts(maps, valid, np.array([6.0, 2.0]), background, np.random.default_rng(0), 2)[0]


@pytest.mark.parametrize("background", ["none", "one per map", "one per pixel"])
@pytest.mark.parametrize("kind", ["counts", "pixels"])
def test_slopes_are_the_derivative_of_gains(kind, background):
    rng = np.random.default_rng(7)
    background = {"none": NOTHING, "one per map": np.array([0.5, 2.0]), "one per pixel": rng.uniform(0, 1, (2, 6, 7))}[
        background
    ]
    valid = np.ones((2, 6, 7), bool)
    valid[:, 2, 3] = valid[1, 4] = False
    part, fused = held_out(kind, background, valid), rng.uniform(0.5, 12, (2, 6, 7))
    fused[:, 0, :3] = -3.0  # below nothing
    step = 1e-5
    expected = (part.gains(fused + step) - part.gains(fused - step)) / (2 * step)
    slopes = part.slopes(fused)
    np.testing.assert_allclose(slopes, expected, rtol=1e-6, atol=1e-8)
    assert slopes.any() and not slopes[~valid].any()
    if kind == "counts":
        assert not slopes[:, 0, :3].any()


@pytest.mark.parametrize("kind", ["counts", "pixels"])
def test_masked_pixels_count_for_nothing(kind):
    valid = np.ones((2, 6, 7), bool)
    valid[0, 1:3], valid[1, :, 4] = False, False
    part, fused = held_out(kind, NOTHING, valid), np.random.default_rng(7).uniform(0.5, 12, (2, 6, 7))
    gains, slopes, size = part.gains(fused), part.slopes(fused), part.size()
    assert not gains[~valid].any()
    # neither what they hold nor what is predicted there matters
    if kind == "counts":
        part.rest[~valid] = 10**6
    part.maps[~valid] = 1e9
    moved = np.where(valid, fused, 1e5)
    np.testing.assert_array_equal(part.gains(moved), gains)
    np.testing.assert_array_equal(part.slopes(moved), slopes)
    np.testing.assert_array_equal(part.size(), size)


@pytest.mark.parametrize("kind", ["counts", "pixels"])
def test_scores_of_single_precision_are_those_of_double(kind):
    part, fused = held_out(kind, NOTHING, np.ones((2, 6, 7), bool)), np.full((2, 6, 7), 4.5)
    assert part.gains(fused.astype(np.float32)).dtype == np.float64
    np.testing.assert_array_equal(part.gains(fused.astype(np.float32)), part.gains(fused))
