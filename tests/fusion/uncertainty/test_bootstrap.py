"""The parametric bootstrap: what a replicate depends on, stops, and that the errors are those that are made."""

from dataclasses import replace

import numpy as np
import pytest
from calibrated_cases import calibrated_problem, problem_of, scan_of, settings_of

from hyperspy_fusion.data import PHANTOMS, core_shell
from hyperspy_fusion.fusion.problems.calibrated import CalibratedProblem
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.uncertainty.bootstrap import bootstrap

SHAPE = (20, 24)


@pytest.fixture(scope="module")
def fit():
    """Problem, settings, state and result."""
    settings = settings_of(regularization="directional", tol=1e-3)
    problem = problem_of(scan_of(SHAPE), settings)
    result, state = problem.solve(settings)
    return problem, settings, state, result


def test_a_replicate_is_drawn_from_its_seed_alone(fit):
    *before, result = fit
    z, y = before[2].z.copy(), before[2].y.copy()
    three, two, other = (bootstrap(*before, result.maps, n, seed) for n, seed in ((3, 0), (2, 0), (2, 1)))
    np.testing.assert_array_equal(three.errors[:2], two.errors)
    assert not np.array_equal(two.errors, other.errors) and len(three) == 3
    # the fit they start from is as before
    np.testing.assert_array_equal(before[2].z, z)
    np.testing.assert_array_equal(before[2].y, y)
    problem, settings, state, result = fit
    found = bootstrap(problem, settings, state, result.maps, 2, seed=5)
    drawn = problem.resample(settings, state, result.maps, (5, 1))
    noise = drawn.measured() - result.maps
    np.testing.assert_allclose(found.errors[1] + found.residuals[1], noise, atol=1e-4)
    np.testing.assert_allclose(found.maps + found.residual, scan_of(SHAPE)[0], atol=1e-9)


def test_a_stop_keeps_the_replicates_that_are_done(fit, monkeypatch):
    *fit, result = fit

    def stop_after(number, error):
        def callback(done):
            if done == number:
                raise error

        return callback

    for error in (StopIteration, KeyboardInterrupt):
        assert len(bootstrap(*fit, result.maps, 5, callback=stop_after(3, error))) == 3
        with pytest.raises(KeyboardInterrupt):
            bootstrap(*fit, result.maps, 5, callback=stop_after(1, error))
    numbers, solve = iter(range(9)), CalibratedProblem.solve

    def interrupted(*args, **options):
        found, state = solve(*args, **options)
        return (replace(found, reason=StopReason.INTERRUPTED) if next(numbers) == 2 else found), state

    monkeypatch.setattr(CalibratedProblem, "solve", interrupted)
    assert len(bootstrap(*fit, result.maps, 5)) == 2


def regions_of(shape):
    """Small and large ones all over."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    discs = [(7, 8, 3), (20, 24, 3), (25, 9, 5), (11, 20, 5), (22, 22, 8), (16, 8, 7)]
    masks = [(y - a) ** 2 + (x - b) ** 2 < r**2 for a, b, r in discs]
    return [*masks, abs(x - 16) < 2, y < 16, np.ones(shape, bool)]


@pytest.mark.parametrize("phantom, counts, seeds", [
    ("interface", 4.0, 3),
    pytest.param("interface", 4.0, 24, marks=pytest.mark.nightly),
    pytest.param("gradient_alloy", 16.0, 24, marks=pytest.mark.nightly),
])  # fmt: skip
def test_intervals_cover_the_truth(phantom, counts, seeds):
    """And errors of pixels are right: a small twin of ``python -m benchmarks.coverage``."""
    settings = CalibratedSettings(regularization="directional", tol=1e-3)
    off, given, made, state = [], [], [], None
    for seed in range(seeds):
        scan = PHANTOMS[phantom]((32, 32), counts=counts, haadf_blur=1.0, haadf_offset=0.2, seed=seed)
        problem = calibrated_problem(scan.maps.astype(np.float32), scan.haadf, scan.atomic_numbers, settings)
        result, state = problem.solve(settings, None if state is None else problem.start(state))
        found = bootstrap(problem, settings, state, result.maps, 8)
        for mask in regions_of(scan.haadf.shape):
            for i in np.flatnonzero(scan.truth[:, mask].sum(axis=1) > 5):
                mean = found.region_mean(mask, i)
                off.append((mean.value - scan.truth[i][mask].mean()) / mean.error)
        given.append(np.mean(found.standard_errors() ** 2, axis=(1, 2)))
        made.append(np.mean((result.maps - scan.truth) ** 2, axis=(1, 2)))
    covered = {factor: np.mean(np.abs(off) < factor) for factor in (0.5, 1, 2)}
    margin = 0.08 if seeds > 3 else 0.16
    assert abs(covered[1] - 0.68) <= margin
    # errors twice too small or too large would be noticed
    assert covered[0.5] < 0.55 and covered[2] > 0.8
    np.testing.assert_allclose(np.sqrt(np.mean(given, axis=0) / np.mean(made, axis=0)), 1, atol=0.3)


def test_errors_of_pixels_include_the_blur_of_the_guide():
    """Guided maps are as blurred as the image; with edges of the measured image they would be half."""
    scan = core_shell((48, 48), counts=4.0, haadf_blur=1.0, haadf_offset=0.2)
    settings = CalibratedSettings(regularization="guided", tol=1e-3)
    problem = calibrated_problem(scan.maps.astype(np.float32), scan.haadf, scan.atomic_numbers, settings)
    result, state = problem.solve(settings)
    given = bootstrap(problem, settings, state, result.maps, 4).standard_errors()
    made = np.mean((result.maps - scan.truth) ** 2, axis=(1, 2))
    assert np.mean(np.abs(np.sqrt(np.mean(given**2, axis=(1, 2)) / made) - 1)) < 0.3
