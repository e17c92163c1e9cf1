"""Claims about bringing an image to other pixels, and about the shift between two images, on plain arrays."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from hyperspy_fusion.fusion.registration.resampling import Placement, coverage, filled, resampled
from hyperspy_fusion.fusion.registration.shift import find_shift

RNG = np.random.default_rng(0)
IMAGE = RNG.random((12, 20))


def overlaps(placement, size):
    """(size, placement.size): length of each pixel in each of the others, the plain way."""
    lengths = np.zeros((size, placement.size))
    for i in range(size):
        for j in range(placement.size):
            left, right = placement.start + j * placement.step, placement.start + (j + 1) * placement.step
            lengths[i, j] = max(0.0, min(i + 1, right) - max(i, left))
    return lengths


def area_means(image, placements, shape):
    y, x = (overlaps(p, n) for p, n in zip(placements, shape, strict=True))
    with np.errstate(invalid="ignore"):
        return (y @ image @ x.T) / np.outer(y.sum(axis=1), x.sum(axis=1))


def placed(image, step, start=(0.0, 0.0)):
    steps = np.broadcast_to(step, 2)
    return [Placement(n, s, o) for n, s, o in zip(image.shape, steps, start, strict=True)]


def test_pixels_are_weighted_by_area():
    result = resampled(IMAGE, placed(IMAGE, 0.25), (3, 5))
    np.testing.assert_allclose(result, IMAGE.reshape(3, 4, 5, 4).mean(axis=(1, 3)), atol=1e-14)
    for step, start in ((0.25, (0.3, -0.7)), (0.4, (-1.1, 0.0)), ((0.9, 0.3), (0.2, 0.6))):
        where = placed(IMAGE, step, start)
        expected = area_means(IMAGE, where, (5, 7))
        np.testing.assert_allclose(resampled(IMAGE, where, (5, 7)), expected, atol=1e-13)
        expected = np.outer(*(overlaps(p, n).sum(axis=1) for p, n in zip(where, (5, 7), strict=True)))
        np.testing.assert_allclose(coverage(np.ones(IMAGE.shape, bool), where, (5, 7)), expected, atol=1e-13)
    for shape, start in (((12, 20), (0, 0)), ((9, 15), (-2, -3))):
        result = resampled(IMAGE, placed(IMAGE, 1.0, start), shape)
        rows, columns = (slice(-o, -o + n) for o, n in zip(start, shape, strict=True))
        np.testing.assert_allclose(result, IMAGE[rows, columns], atol=1e-13)
    result = resampled(IMAGE, placed(IMAGE, 0.5, (2.0, -3.0)), (10, 9))
    assert np.isnan(result[:2]).all() and np.isnan(result[8:]).all() and np.isnan(result[:, 7:]).all()
    assert np.isfinite(result[2:8, :7]).all()
    where = placed(IMAGE, (0.4, 1.7), (0.1, -0.6))
    np.testing.assert_allclose(
        resampled(IMAGE.T, where[::-1], (9, 5)), resampled(IMAGE, where, (5, 9)).T, atol=1e-13, equal_nan=True
    )


def test_coarser_and_invalid_pixels():
    for step in (1, 2, 3, 2.5):
        shape = tuple(int(n * step) for n in IMAGE.shape)
        result = resampled(IMAGE, placed(IMAGE, step), shape)
        assert np.isfinite(result).all()
        np.testing.assert_allclose(result.mean(), IMAGE.mean(), atol=1e-13)
        if step != 2.5:
            means = result.reshape(shape[0] // step, step, shape[1] // step, step).mean(axis=(1, 3))
            np.testing.assert_allclose(means, IMAGE, atol=1e-13)
    valid = np.ones(IMAGE.shape, bool)
    valid[0, 0] = valid[5, 6] = False
    expected = np.ones((3, 5))
    expected[0, 0] -= 1 / 16
    expected[1, 1] -= 1 / 16
    np.testing.assert_allclose(coverage(valid, placed(IMAGE, 0.25), (3, 5)), expected, atol=1e-13)
    valid = np.ones((3, 4), bool)
    valid[1, 0] = valid[1, 1] = False
    image = np.arange(12.0).reshape(3, 4)
    image[~valid] = np.nan
    result = filled(image, valid)
    assert result[1, 1] in (1, 6, 9) and np.isfinite(result).all() and np.isnan(image[1, 1])


@pytest.mark.parametrize("step", [0.25, 1.0, 2.0])
def test_a_slope_is_kept_at_any_pixel_size_and_shift(step):
    """Values belong to the centres of pixels: a shift of them would show as an offset."""
    y, x = (np.arange(n) + 0.5 for n in (16, 24))
    fine = 3 * y[:, None] * step - 2 * x * step + 7
    start = (0.3, -0.4)
    result = resampled(fine, placed(fine, step, start), (5, 6))
    centres = np.arange(5)[:, None] + 0.5 - start[0], np.arange(6) + 0.5 - start[1]
    expected = 3 * centres[0] - 2 * centres[1] + 7
    whole = coverage(np.ones(fine.shape, bool), placed(fine, step, start), (5, 6)) > 1 - 1e-9
    # an area mean of constant pieces follows a slope but for a part of one of its pixels
    np.testing.assert_allclose(result[whole], expected[whole], atol=1e-10 if step >= 1 else 3 * step / 4)


TRUE = np.array([1.3, -0.7])


def particles(shape=(48, 64), pad=40):
    """A field of smooth particles, wider than the scan."""
    rng = np.random.default_rng(3)
    seeds = np.zeros((shape[0] + 2 * pad, shape[1] + 2 * pad))
    seeds[tuple(rng.integers(0, n, 120) for n in seeds.shape)] = rng.random(120) + 0.5
    return gaussian_filter(seeds, 3) * 60


FIELD, PAD, SHAPE = particles(), 40, (48, 64)


def sampler(field=FIELD, true=TRUE, shape=SHAPE, pad=PAD):
    """Function of the shift that has an image which lies `true` off where it says."""
    where = [Placement(n, 1.0, -pad - o) for n, o in zip(field.shape, true, strict=True)]

    def sample(shift):
        return resampled(field, [p.moved(by) for p, by in zip(where, shift, strict=True)], shape)

    return sample


def scanned(field=FIELD, counts=4.0, seed=0, true=(0, 0)):
    """Poisson counts of the field where it is."""
    mean = sampler(field, np.negative(true))(np.zeros(2))
    return np.random.default_rng(seed).poisson(np.maximum(mean, 0) * counts / mean.max()).astype(float)


def test_a_shift_is_found_and_its_error_is_what_it_says():
    found = [find_shift(scanned(seed=seed), sampler()) for seed in range(6)]
    errors = np.array([f.shift - TRUE for f in found])
    claimed = np.array([f.error for f in found])
    assert np.abs(errors).max() < 0.1 + 0.1
    # 12 standardised errors: chi-squared within its 0.1 and 99.9 %
    assert 2.2 < np.sum((errors / claimed) ** 2) < 33
    assert all(f.is_found and not len(f.undetermined) for f in found)
    clean = sampler(true=(0, 0))(np.zeros(2))
    np.testing.assert_allclose(find_shift(clean, sampler()).shift, TRUE, atol=0.005)


def test_the_shift_is_invariant():
    """Under units, offsets, transposes and flips."""
    reference = scanned()
    expected = find_shift(reference, sampler()).shift
    for scale, offset in ((1e-6, 0), (1e6, 1e7)):
        np.testing.assert_allclose(find_shift(reference * scale + offset, sampler()).shift, expected, atol=1e-3)
    np.testing.assert_allclose(find_shift(reference.T, lambda t: sampler()(t[::-1]).T).shift, expected[::-1], atol=2e-3)
    flipped = find_shift(reference[::-1], lambda t: sampler()(t * [-1, 1])[::-1]).shift
    np.testing.assert_allclose(flipped, expected * [-1, 1], atol=2e-3)


def test_a_large_shift_and_missing_pixels():
    true = np.array([17.4, -21.6])
    sample = sampler(true=true)
    # the whole image, on pixels of the reference
    position = np.array([-PAD, -PAD]) - np.floor(true)
    whole = sampler(true=true - np.floor(true), shape=FIELD.shape, pad=0)(np.zeros(2))
    found = find_shift(scanned(), sample, (whole, position))
    assert found.is_found
    np.testing.assert_allclose(found.shift, true, atol=0.2)
    reference = scanned()
    reference[10:14, 20:40] = np.nan

    def sample(shift):
        image = sampler()(shift)
        image[30:, :9] = np.nan
        return image

    found = find_shift(reference, sample)
    np.testing.assert_allclose(found.shift, TRUE, atol=4 * found.error.max())


def test_without_structure_the_shift_is_left_alone():
    stripes = np.broadcast_to(FIELD[60], FIELD.shape)
    found = find_shift(scanned(stripes), sampler(stripes))
    assert found.is_found and abs(found.shift[0]) < 1e-9 and found.error[0] > 0.5
    np.testing.assert_allclose(np.abs(found.undetermined), [[1, 0]], atol=1e-6)
    np.testing.assert_allclose(found.shift[1], TRUE[1], atol=4 * found.error[1])
    assert not find_shift(scanned(), lambda t: np.ones(SHAPE)).is_found
    assert not find_shift(np.ones(SHAPE), sampler()).is_found


def test_along_a_straight_boundary_the_shift_is_left_alone(angle=20):
    y, x = np.mgrid[: FIELD.shape[0], : FIELD.shape[1]]
    normal = np.array([np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))])
    distance = (y - 64) * normal[0] + (x - 72) * normal[1]
    edge = 1.5 + 0.5 * np.tanh(distance / 2)
    found = find_shift(scanned(edge, 400), sampler(edge))
    assert len(found.undetermined) == 1
    assert abs(found.undetermined[0] @ normal) < 0.05
    assert abs((found.shift - TRUE) @ normal) < 0.12


@pytest.mark.parametrize("what", ["noise", "another area", "inverse"])
def test_no_shift_is_found_of_images_that_are_not_alike(what):
    reference = {
        "noise": RNG.poisson(2.0, SHAPE).astype(float),
        "another area": scanned(FIELD[::-1, ::-1]),
        "inverse": FIELD.max() - scanned(counts=400),
    }[what]
    found = find_shift(reference, sampler())
    assert not (found.is_found and found.correlation > 0.3)
