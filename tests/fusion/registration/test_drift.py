"""Where the frames of a scan lie, which of them are left out, and their sum, as arrays."""

from functools import cache

import dask.array as da
import frames_data
import numpy as np
import pytest

import hyperspy_fusion as hf
from hyperspy_fusion.fusion.registration.drift import (
    APART,
    COUNTS,
    EMPTY,
    INCOMPLETE,
    UNLIKE,
    find_drift,
    spoilt_frames,
)
from hyperspy_fusion.fusion.registration.frame_sums import CommonField, aligned_lazy_sum, aligned_mean, aligned_sum

fine = cache(frames_data.fine)


@cache
def frames(phantom="core_shell", size=3.0, snr=20, n=20, seed=1):
    """The drift, counts and images; not to be changed."""
    curve = frames_data.drift_curve(n, size, seed=seed)
    return curve, *frames_data.drifted(fine(getattr(hf.data, phantom)), curve, 0.05, snr, seed=seed)[:2]


@pytest.mark.parametrize("phantom, size", [("core_shell", 9.0), ("atomic_columns", 3.0)])
def test_a_drift_is_found_to_a_tenth_of_a_pixel_on_particles_and_on_a_lattice(phantom, size):
    curve, _, images = frames(phantom, size)
    for factor in (1.0, -500.0):
        drift = find_drift(factor * images + 7)
        assert drift.is_found and not drift.reasons
        np.testing.assert_allclose(drift.shifts, curve, atol=0.1)
    turned = find_drift(images.transpose(0, 2, 1)[:, :, 5:])
    np.testing.assert_allclose(turned.shifts, curve[:, ::-1], atol=0.1)


def test_errors_are_those_of_the_drift():
    for seed in (2, 3):
        curve, _, images = frames(snr=5, seed=seed)
        drift = find_drift(images)
        off = drift.shifts - curve
        assert 0.5 < np.sqrt(np.mean((off - off.mean(axis=0)) ** 2)) / drift.errors.mean() < 2


def test_two_frames_are_enough():
    curve, _, images = frames(n=2)
    np.testing.assert_allclose(find_drift(images).shifts, curve, atol=0.1)


@pytest.mark.parametrize("n", [2, 8, 20])
@pytest.mark.parametrize("kind", ["noise", "constant", "ramp"])
def test_frames_without_structure_in_common_have_no_drift(n, kind):
    rng = np.random.default_rng(n)
    ramp = np.add.outer(np.arange(48.0), np.arange(40.0))
    images = {"noise": rng.normal(size=(n, 48, 40)), "constant": np.ones((n, 48, 40)), "ramp": np.stack([ramp] * n)}[
        kind
    ]
    if kind == "ramp":
        images = images + rng.normal(size=images.shape)
    assert not find_drift(images).is_found


def test_frames_are_not_moved_along_a_line_in_which_nothing_changes():
    rng, curve = np.random.default_rng(0), frames_data.drift_curve(12)
    x = np.arange(64) - curve[:, 1:]
    images = np.exp(-((x[:, None, :] - 20) ** 2) / 8) + rng.normal(0, 0.3, (12, 64, 64))
    drift = find_drift(images)
    np.testing.assert_allclose(np.abs(drift.undetermined), [[1, 0]], atol=0.05)
    np.testing.assert_allclose(drift.shifts[:, 1], curve[:, 1], atol=0.2)
    assert np.abs(drift.shifts[:, 0]).max() < 0.3 and np.isinf(drift.errors[0, 0])


def spoil(images, t, how):
    if how == "noise":
        images[t] = np.random.default_rng(0).normal(images.mean(), images.std(), images[t].shape)
    elif how == "jump":
        images[t] = np.roll(images[t], (17, -12), axis=(0, 1))
    elif how == "bright":
        images[t] = 3 * np.abs(images[t]) + 1
    elif how == "zero rows":
        images[t, 30:] = 0
    elif how == "empty":
        images[t] = np.nan if t == 7 else 0
    else:
        images[t, :20] = np.nan


@pytest.mark.parametrize(
    "how, reason, t",
    [
        ("noise", UNLIKE, 0),
        ("jump", APART, 7),
        ("bright", COUNTS, 19),
        ("empty", EMPTY, 7),
        ("zero rows", INCOMPLETE, 19),
        ("NaN rows", INCOMPLETE, 7),
    ],
)
def test_spoilt_frames_are_left_out_with_the_reason(how, reason, t):
    curve, _, images = frames()
    images = np.abs(images)
    spoil(images, t, how)
    drift = find_drift(images, spoilt_frames(images))
    assert drift.reasons == {t: reason}
    off = drift.shifts - curve
    assert np.nanmax(np.abs(off - np.nanmedian(off, axis=0))) < 0.1


def test_few_counts_are_no_missing_rows():
    rng = np.random.default_rng(0)
    for scale, shape in ((1, (30, 32, 32)), (1e-3, (30, 32, 32)), (1, (8, 512, 64))):
        counts = scale * rng.poisson(0.05, shape)
        assert (counts.sum(axis=2) == 0).any() and not spoilt_frames(counts)
    counts = rng.poisson(0.05, (30, 32, 32))
    # the beam current falls to a third
    falling = rng.poisson(np.linspace(3, 1, 30)[:, None, None] * np.ones((32, 32)))
    assert not spoilt_frames(falling)
    counts[4], falling[-1, 10:] = 0, 0
    assert spoilt_frames(counts) == {4: EMPTY}
    assert spoilt_frames(falling) == {29: INCOMPLETE}
    # most frames are empty, or those that are not have an X-ray in few rows
    counts[6:] = 0
    assert spoilt_frames(counts) == dict.fromkeys([4, *range(6, 30)], EMPTY)
    sparse = rng.poisson(0.02, (6, 64, 32))
    sparse[2] = 0
    assert spoilt_frames(sparse) == {2: EMPTY}


def test_sums_move_whole_pixels_and_lose_nothing_inside_the_common_field():
    rng = np.random.default_rng(0)
    counts = rng.poisson(2, (7, 20, 24, 3)).astype("u1")
    curve = np.cumsum(rng.normal(0, 1.2, (7, 2)), axis=0)
    curve -= curve[0]
    drift = find_drift_of(curve, dropped=[3])
    field = CommonField.of(drift, (20, 24))
    offsets = [None if t == 3 else tuple(by) for t, by in enumerate(field.offsets)]
    assert np.abs(field.offsets[field.used] - curve[field.used]).max() <= 0.5
    total = aligned_sum(counts, offsets, field.start, field.shape, "u2")
    expected = 0
    for t in field.used:
        y, x = (slice(a + b, a + b + n) for a, b, n in zip(field.start, field.offsets[t], field.shape, strict=True))
        assert y.start >= 0 and x.start >= 0 and y.stop <= 20 and x.stop <= 24
        expected = expected + counts[t, y, x].astype(int)
    np.testing.assert_array_equal(total, expected)
    for chunks in [(7, 20, 24, 3), (3, 7, 24, 2), (1, 20, 5, 1), (4, 9, 9, 3)]:
        lazy = aligned_lazy_sum(da.from_array(counts, chunks), offsets, field.start, field.shape, np.dtype("u2"))
        assert lazy.dtype == "u2"
        np.testing.assert_array_equal(lazy, expected)


def find_drift_of(curve, dropped):
    """A `Drift` as if it were measured."""
    from hyperspy_fusion.fusion.registration.drift import Drift

    shifts = curve.copy()
    shifts[dropped] = np.nan
    return Drift(shifts, 0 * shifts, dict.fromkeys(dropped, UNLIKE), np.zeros((0, 2)))


def test_the_mean_image_lies_where_the_counts_lie_and_keeps_saturated_pixels():
    y, x = np.mgrid[:32, :32].astype(float)
    curve = np.array([[0, 0], [0.4, 0.3], [0.4, 0.4], [1.4, 0.3]])
    images = np.stack([np.exp(-((y - 15 - dy) ** 2 + (x - 16 - dx) ** 2) / 12) for dy, dx in curve])
    field = CommonField.of(find_drift_of(curve, []), (32, 32))
    counts = aligned_sum(images, list(field.offsets), field.start, field.shape, float) / 4
    mean = aligned_mean(images, [np.zeros((32, 32), bool)] * 4, field)
    assert mean.dtype == np.float32 and mean.shape == field.shape

    def centre(image):
        image = image[2:-2, 2:-2].astype(float)
        return [np.average(places, weights=image) for places in np.mgrid[: image.shape[0], : image.shape[1]]]

    np.testing.assert_allclose(centre(mean), centre(counts), atol=0.01)
    # the counts of frames between pixels are blurred, the image is not
    assert mean.max() > counts.max()
    ceiling = images > 0.9
    saturated = aligned_mean(np.where(ceiling, 2.0, images), ceiling, field)
    assert np.count_nonzero(saturated == 2.0) >= ceiling[0].sum()
    images[1, 5, 5] = np.nan
    assert np.isfinite(aligned_mean(images, [np.zeros((32, 32), bool)] * 4, field)).all()
