"""Background and variance of each pixel, on plain arrays: likelihood, fit and HAADF forward model."""

import numpy as np
import pytest
from calibrated_cases import (
    COEFFICIENTS,
    NUMBERS,
    calibrated_problem,
    count_loss,
    fused,
    problem_of,
    scan_of,
    settings_of,
    square_loss,
)  # fmt: skip

from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual


def wedge(shape, low=0.2, high=1.5):
    """A background that rises to the right and differs between the maps."""
    n, ny, nx = shape
    return np.stack([np.tile(np.linspace(low, high * (1 + i), nx), (ny, 1)) for i in range(n)])


def scan_over_background(seed=0):
    """Maps of counts over a wedge, their image, the counts alone, and the wedge."""
    maps, haadf = scan_of(seed=seed)
    background = wedge(maps.shape)
    return maps + np.random.default_rng(seed + 50).poisson(background), haadf, maps, background


def masked(shape):
    valid = np.ones(shape, bool)
    valid[0, 3:6, 4:9], valid[1, 20:, 30:] = False, False
    return valid


@pytest.mark.parametrize("noise", ["poisson", "shifted_poisson", "gaussian"])
@pytest.mark.parametrize("valid", [None, masked((2, 33, 45))], ids=["whole", "masked"])
def test_data_term_is_the_likelihood_of_each_pixel(noise, valid):
    maps, haadf, _, background = scan_over_background()
    variance = wedge(maps.shape, 0.5, 4.0)
    options = {"background": background, "variance": variance, "valid": valid}
    problem = problem_of((maps, haadf), settings_of(noise=noise), **options)
    x, other = maps + 0.7, np.roll(maps, 3, 1) + 0.1
    units, kept = problem.scales[:, None, None], np.ones(maps.shape, bool) if valid is None else valid

    def loss(x):
        if noise == "gaussian":
            return square_loss(x, maps - background, variance, kept)
        return count_loss(x, maps, background=background, shift=0.3 * (noise != "poisson"), valid=kept)

    actual = problem.data.value(x / units) - problem.data.value(other / units)
    np.testing.assert_allclose(actual, loss(x) - loss(other), rtol=1e-9)
    totals = np.sum(maps - background, axis=(1, 2), where=kept)
    np.testing.assert_allclose(problem.data.totals * problem.scales, totals, rtol=1e-12)
    np.testing.assert_allclose(problem.background, np.mean(background, axis=(1, 2), where=kept), rtol=1e-12)


@pytest.mark.parametrize("noise", ["poisson", "shifted_poisson", "gaussian"])
@pytest.mark.parametrize("valid", [None, masked((2, 33, 45))], ids=["whole", "masked"])
def test_the_minimised_objective_closes_the_gap(noise, valid):
    maps, haadf, _, background = scan_over_background()
    settings = settings_of(noise=noise, regularization="tv", tol=1e-5)
    options = {"background": background, "variance": wedge(maps.shape, 0.5, 4.0), "valid": valid}
    problem = problem_of((maps, haadf), settings, **options)
    result = fused((maps, haadf), settings, **options)
    assert result.success and result.gap <= 1e-5
    z = result.maps / problem.scales[:, None, None]
    assert problem.objective(z).total == pytest.approx(result.history.total[-1], rel=1e-7)
    # better than what is near it
    rng = np.random.default_rng(0)
    for size in (0.01, 0.1):
        near = np.maximum(z + size * rng.normal(size=z.shape), 0)
        near *= (z.sum(axis=(1, 2)) / near.sum(axis=(1, 2)))[:, None, None]
        assert problem.objective(near).total > problem.objective(z).total


@pytest.mark.parametrize("noise", ["shifted_poisson", "gaussian"])
def test_one_value_everywhere_is_the_setting(noise):
    maps, haadf, *_ = scan_over_background()
    expected = fused((maps, haadf), settings_of(noise=noise, background=(0.4, 0.7), variance=(2.0, 3.0)))
    same = {
        k: np.multiply.outer(v, np.ones(maps.shape[1:])) for k, v in (("background", [0.4, 0.7]), ("variance", [2, 3]))
    }
    found = fused((maps, haadf), settings_of(noise=noise), **same)
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-4, atol=1e-4)


def test_the_fit_turns_with_the_maps():
    maps, haadf, _, background = scan_over_background()
    straight = fused((maps, haadf), settings_of(regularization="tv"), background=background).maps
    turned = fused(
        (maps[:, ::-1, ::-1], haadf[::-1, ::-1]), settings_of(regularization="tv"), background=background[:, ::-1, ::-1]
    ).maps
    np.testing.assert_allclose(turned[:, ::-1, ::-1], straight, rtol=1e-3, atol=1e-3)


def test_the_forward_model_is_that_of_the_element_alone():
    """A background that is not constant is not taken for the element: weights and offset as without it."""
    maps, haadf, alone, background = scan_over_background()
    fitted = settings_of(haadf_coefficients="fit")
    expected = problem_of((alone, haadf), fitted)
    found = problem_of((maps, haadf), fitted, background=background)
    ignored = problem_of((maps, haadf), fitted).forward_model
    for problem in (expected, found):
        assert np.all(np.abs(problem.forward_model.weights - COEFFICIENTS) < 2 * problem.calibration.coefficient_errors)
        assert np.all(problem.calibration.coefficient_errors < 0.15 * np.array(COEFFICIENTS))
    without, found = expected.forward_model, found.forward_model
    assert abs(found.offset - without.offset) < 0.5 * abs(ignored.offset - without.offset)
    np.testing.assert_allclose(found.weights, without.weights, rtol=0.1)
    assert np.any(np.abs(ignored.weights / without.weights - 1) > 0.3)
    given = problem_of((maps, haadf), settings_of(), background=background)
    assert given.forward_model.offset == pytest.approx(500, abs=3)


def test_what_is_known_of_variance_and_background():
    maps, haadf, *_ = scan_over_background()
    variance = wedge(maps.shape, 1.0, 3.0)
    known = problem_of((maps, haadf), settings_of(noise="auto"), variance=variance)
    assert known.noise.kind == "gaussian" and known.noise.sentence.startswith("The maps have a variance")
    np.testing.assert_allclose(known.noise.variance, 1 / (1 / variance).mean(axis=(1, 2)), rtol=1e-12)
    np.testing.assert_allclose(known.scales, np.sqrt(known.noise.variance) / 0.5, rtol=1e-12)
    counted = problem_of((maps, haadf), settings_of(noise="shifted_poisson"), variance=variance)
    assert counted.noise.kind == "shifted_poisson" and np.isnan(counted.noise.variance).all()
    given = problem_of((maps, haadf), settings_of(noise="gaussian", variance=7.0), variance=variance)
    np.testing.assert_allclose(given.noise.variance, 7.0)
    maps, haadf, _, background = scan_over_background()
    for bad in (background - 1, np.where(background > 1, np.nan, background)):
        with pytest.raises(ValueError, match="background of the maps goes down to .* it must be finite and at least 0"):
            problem_of((maps, haadf), background=bad)
    # but in masked pixels
    valid = np.ones(maps.shape, bool)
    valid[0, 0, 0] = False
    background[0, 0, 0] = np.nan
    assert np.isfinite(
        calibrated_problem(maps, haadf, NUMBERS, settings_of(), valid=valid, background=background).initial_maps
    ).all()
    with pytest.raises(ValueError, match="background in their metadata: leave the setting out"):
        problem_of((maps, haadf), settings_of(background=0.1), background=wedge(maps.shape))


def test_pixels_without_a_variance_have_that_of_the_others():
    maps, haadf, *_ = scan_over_background()
    variance = np.full(maps.shape, 2.0)
    variance[0, 0, 0], variance[0, 0, 1], variance[1, 2, 2] = 0, np.nan, -1
    found = problem_of((maps, haadf), settings_of(noise="gaussian"), variance=variance)
    expected = problem_of((maps, haadf), settings_of(noise="gaussian", variance=2.0))
    np.testing.assert_allclose(found.data.beta, expected.data.beta, rtol=1e-12)
    # nor does one decide alone
    variance[0, 5, 5] = 1e-9
    least = problem_of((maps, haadf), settings_of(noise="gaussian"), variance=variance).data
    assert least.slope[0, 5, 5] == pytest.approx(100 * np.median(least.slope[0]), rel=1e-6)
    with pytest.raises(ValueError, match="The variance of a map is nowhere above 0"):
        problem_of((maps, haadf), settings_of(noise="gaussian"), variance=np.zeros(maps.shape))


def test_a_few_pixels_of_large_variance_stay_smoothed():
    rng = np.random.default_rng(0)
    truth = 5 + 4 * (np.indices((32, 32)).sum(axis=0) > 32)
    maps = (truth + 3 * rng.standard_normal((1, 32, 32))).astype(np.float64)
    variance = np.full(maps.shape, 9.0)
    errors = []
    for factor in (1, 1e6):
        variance[0, 3, 4] = 9 * factor
        settings = CalibratedSettings(regularization="tv", lambda_haadf=0, tol=1e-3)
        problem = calibrated_problem(maps, truth.astype(float), [26], settings, variance=variance)
        errors.append(np.sqrt(np.mean((primal_dual(problem, settings)[0].maps - truth) ** 2)))
    assert errors[1] < 1.1 * errors[0] < 1
