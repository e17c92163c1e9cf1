"""Claims about the shift by fits: where the objective is least, wherever it starts, and taken with that of the sum."""

from dataclasses import replace

import numpy as np
import pytest
from calibrated_cases import observe
from scipy.ndimage import gaussian_filter
from test_registration import Scene

import hyperspy_fusion as hf
from hyperspy_fusion import registration
from hyperspy_fusion.fusion.registration.by_fits import Pull, aligned_by_fits
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual

SETTINGS = CalibratedSettings(tol=1e-2)
NUMBERS = [78, 26, 8]


def blobs(shift, scale=1.0, shape=(40, 48)):
    """Three maps of smooth blobs, moved by a shift (y, x) in pixels."""
    y, x = (places - s for places, s in zip(np.mgrid[: shape[0], : shape[1]], shift, strict=True))
    centres = ((12, 14), (20, 30), (28, 18))
    return scale * np.stack([0.2 + np.exp(-(((y - cy) ** 2 + (x - cx) ** 2) / 30)) for cy, cx in centres])


def problem_of(maps, image, settings=SETTINGS, **known):
    return observe(maps, image, NUMBERS, settings, **known).problem(settings)


# ---- the pull at given maps ------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["poisson", "gaussian"])
def test_counts_pull_rigid_maps_to_where_they_are(noise):
    shift = np.array([0.08, -0.05])
    maps, moved = blobs((0, 0), 400.0), blobs(shift, 400.0)
    settings = CalibratedSettings(tol=1e-2, noise=noise, variance=50.0 if noise == "gaussian" else None)
    pull = Pull.of(problem_of(moved, moved.sum(axis=0), settings), maps)
    np.testing.assert_allclose(pull.step, shift, rtol=0.05)
    variance = 50.0 if noise == "gaussian" else maps
    slopes = [-np.gradient(maps, axis=axis) for axis in (1, 2)]
    information = np.array([[np.sum(a * b / variance) for a in slopes] for b in slopes])
    np.testing.assert_allclose(pull.information, information, rtol=1e-3)


def test_pixels_without_an_image_or_counts_do_not_pull():
    maps = blobs((0, 0), 400.0)
    image = maps.sum(axis=0)
    valid, seen = np.ones(maps.shape, bool), np.ones(image.shape, bool)
    valid[1, :20], seen[:, :10] = False, False
    wrong = maps.copy()
    wrong[1, :20], wrong[:, :, :10] = 0, 7000
    observed = observe(wrong, image, NUMBERS, SETTINGS, valid=valid, haadf_valid=seen)
    np.testing.assert_allclose(Pull.of(observed.problem(SETTINGS), maps).step, 0, atol=1e-6)


# ---- the shift -------------------------------------------------------------------------------------


def image_at(shift):
    weights = np.array(NUMBERS) ** 1.7
    return np.tensordot(weights / weights.sum(), blobs(shift), 1)


def test_the_objective_is_least_there():
    """Not only the pull is 0: fits with the image on either side of it are worse."""
    counts = np.random.default_rng(0).poisson(blobs((0, 0), 12.0)).astype(float)
    noise = np.random.default_rng(1).normal(0, 0.01, counts.shape[1:])
    settings = CalibratedSettings(tol=1e-4, max_iter=4000)
    observed = observe(counts, image_at(np.zeros(2)) + noise, NUMBERS, settings)

    def problem_at(shift):
        # one forward model and one noise for all shifts, in units of which the objective is told; no noise that stays where it is
        image = image_at(np.asarray(shift))
        guide = replace(observed.guide, haadf=image)
        return replace(observed, scan=replace(observed.scan, haadf=image), guide=guide).problem(settings)

    found, error = aligned_by_fits(problem_at, settings, np.zeros(2))
    assert np.all(np.abs(found) < 3 * error) and error.max() < 0.1, found
    least, *others = (
        primal_dual(problem_at(found + step), settings)[0].history.total[-1]
        for step in ((0, 0), (0.3, 0), (-0.3, 0), (0, 0.3), (0, -0.3))
    )
    assert least < min(others)


def test_where_it_starts_does_not_matter():
    counts = np.random.default_rng(0).poisson(blobs((0, 0), 12.0)).astype(float)
    noise = gaussian_filter(np.random.default_rng(1).normal(0, 0.01, counts.shape[1:]), 0.5)
    starts = [(0.15, -0.1), (-0.1, 0.15)]
    found = [
        aligned_by_fits(lambda t: problem_of(counts, image_at(t) + noise), SETTINGS, np.array(start))[0]
        for start in starts
    ]
    np.testing.assert_allclose(*found, atol=0.04)


def test_the_mean_of_both_is_taken(monkeypatch):
    scene = Scene(64, counts=4, seed=0)
    by_fits = []

    def seen(problem_at, settings, shift):
        by_fits.append((np.array(shift), *aligned_by_fits(problem_at, settings, shift)))
        return by_fits[-1][1:]

    monkeypatch.setattr("hyperspy_fusion.fusion.registration.by_fits.aligned_by_fits", seen)
    taken = hf.match_haadf(scene.shifted(), scene.maps)
    ((by_sum, fitted, _),) = by_fits
    assert 0.002 < np.abs(by_sum - fitted).max() < 0.1
    np.testing.assert_allclose(taken.shift, (by_sum + fitted) / 2)


@pytest.mark.parametrize("how", ["far", "impossible"])
def test_a_fit_that_fails_or_disagrees_leaves_the_shift_as_it_was(monkeypatch, how):
    def instead(problem_at, settings, shift):
        if how == "impossible":
            raise ValueError("no fit")
        return shift + 5, np.ones(2)

    scene = Scene(64, counts=4, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(registration, "_refined", lambda found, *rest: found)
        expected = hf.match_haadf(scene.shifted(), scene.maps).shift
    scene = Scene(64, counts=4, seed=0)
    monkeypatch.setattr("hyperspy_fusion.fusion.registration.by_fits.aligned_by_fits", instead)
    np.testing.assert_array_equal(hf.match_haadf(scene.shifted(), scene.maps).shift, expected)
