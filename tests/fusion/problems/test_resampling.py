"""Bootstrap replicates of a calibrated problem: moments of the draws, and what follows from them."""

from dataclasses import replace

import numpy as np
import pytest
from calibrated_cases import calibrated_problem, observe, problem_of, scan_of, settings_of
from scipy.ndimage import gaussian_filter

from hyperspy_fusion.data import core_shell
from hyperspy_fusion.fusion.haadf import guide
from hyperspy_fusion.fusion.problems import resampling
from hyperspy_fusion.fusion.problems.resampling import resampled
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual

SHAPE = (20, 24)


@pytest.fixture(scope="module")
def fit():
    settings = settings_of(regularization="directional", tol=1e-3)
    problem = problem_of(scan_of(SHAPE), settings)
    return settings, problem.solve(settings)[0], problem


@pytest.mark.parametrize("noise", ["poisson", "shifted_poisson"])
def test_count_variance_has_the_background_and_not_the_offset(noise):
    maps, haadf = scan_of(SHAPE)
    settings = settings_of(noise=noise, background=(3.0, 6.0), haadf_coefficients=(14.0, 3.0))
    problem = problem_of((maps * np.array([2.0, 3.0])[:, None, None], haadf), settings)
    found = problem.count_variance(np.full(maps.shape, 5.0))
    np.testing.assert_allclose(found[:, 0, 0], [2 * (5 + 3), 3 * (5 + 6)], rtol=1e-6)


def test_variance_of_gaussian_maps_is_nan_where_masked():
    scan, settings = scan_of(SHAPE), settings_of(noise="gaussian", variance=(2.0, 7.0))
    valid = np.ones(scan[0].shape, bool)
    valid[1, 3, 4] = False
    found = problem_of(scan, settings, valid=valid).count_variance(scan[0])
    np.testing.assert_allclose(found[:, 0, 0], [2, 7])
    assert np.isnan(found[1, 3, 4]) and np.isnan(found).sum() == 1


def draws(problem, settings, z, number=400):
    rng = np.random.default_rng(1)
    return [resampled(problem, settings, z * problem.scales[:, None, None], rng) for _ in range(number)]


def measured(problem):
    """Net maps of a problem in units of the input, from its data term."""
    slope = np.where(problem.data.slope > 0, problem.data.slope, 1)
    return (problem.data.beta / slope - problem.data.delta) * problem.scales[:, None, None]


@pytest.mark.parametrize("noise, variance", [
    ("poisson", [2 * (5 + 3), 3 * (5 + 6)]), ("shifted_poisson", [2 * (5 + 3), 3 * (5 + 6)]), ("gaussian", [2, 7]),
])  # fmt: skip
def test_draws_scatter_as_the_noise_does(noise, variance):
    maps, haadf = scan_of(SHAPE)
    settings = settings_of(noise=noise, background=(3.0, 6.0), variance=(2.0, 7.0), haadf_coefficients=(14.0, 3.0))
    problem = problem_of((maps * np.array([2.0, 3.0])[:, None, None], haadf), settings)
    z = np.full(maps.shape, 5.0) / problem.scales[:, None, None]
    found = np.array([measured(p) for p in draws(problem, settings, z, 60)])
    n = found[:, 0].size
    for image, expected in zip(found.swapaxes(0, 1), variance, strict=True):
        assert image.mean() == pytest.approx(5, abs=5 * np.sqrt(expected / n))
        assert image.var() == pytest.approx(expected, rel=0.05)


def test_draws_keep_their_own_totals(fit):
    settings, result, problem = fit
    drawn = draws(problem, settings, result.maps / problem.scales[:, None, None], 1)[0]
    np.testing.assert_allclose(drawn.data.totals, measured(drawn).sum(axis=(1, 2)) / problem.scales, rtol=1e-6)


def test_draws_leave_masked_pixels_out():
    scan = scan_of(SHAPE)
    valid = np.ones(scan[0].shape, bool)
    valid[0, :3] = False
    settings = settings_of(regularization="tv")
    problem = problem_of(scan, settings, valid=valid, haadf_valid=valid[0])
    drawn = draws(problem, settings, problem.initial_maps.astype(float), 1)[0]
    assert not drawn.data.beta[~valid].any() and not drawn.haadf_term.target[~valid[0]].any()
    assert drawn.data.totals[0] * problem.scales[0] == pytest.approx(measured(drawn)[0][valid[0]].sum(), rel=1e-6)


def test_drawn_images_are_blurred_and_noisy(fit):
    settings = replace(fit[0], lambda_haadf=0.25)
    problem = problem_of(scan_of(SHAPE), settings)
    problem = replace(
        problem,
        forward_model=replace(problem.forward_model, blur=1.5),
        calibration=replace(problem.calibration, refit=None),
    )
    z = fit[1].maps / problem.scales[:, None, None]
    images = np.array([p.haadf_term.target for p in draws(problem, settings, z)])
    expected = gaussian_filter(np.tensordot(problem.haadf_term.weights, z, 1), 1.5)
    sigma = 0.5 * problem.calibration.noise / problem.calibration.sigma
    np.testing.assert_allclose(images.mean(axis=0), expected, atol=5 * sigma / 20)
    assert images.std(axis=0).mean() == pytest.approx(sigma, rel=0.02)


@pytest.mark.parametrize("penalty", ["guided", "directional"])
@pytest.mark.parametrize("lambda_haadf", [1.0, 0.0])
def test_the_drawn_image_guides_the_penalty(penalty, lambda_haadf, monkeypatch):
    """Else errors would lack the effect of noise and blur of the image by its edges."""
    monkeypatch.setattr("hyperspy_fusion.fusion.haadf.guide._FEW_MISSING", 1.0)  # no image from other maps
    counts = np.ones(SHAPE, bool)
    counts[3:6, 8:12] = False
    settings = settings_of(regularization=penalty, lambda_haadf=lambda_haadf, eta=0.8, guide_blur=0.4)
    maps, haadf = scan_of(SHAPE)
    problem = problem_of((maps, haadf), settings, haadf_valid=counts)
    problem = replace(
        problem,
        forward_model=replace(problem.forward_model, blur=1.2),
        calibration=replace(problem.calibration, noise=0.0),
    )
    drawn = draws(problem, settings, maps / problem.scales[:, None, None], 1)[0]
    image = gaussian_filter(problem.forward_model.image(maps), 1.2)
    expected = problem_of((maps, image), settings, haadf_valid=counts)
    np.testing.assert_allclose(drawn.penalty.guide, expected.penalty.guide, atol=1e-12)
    assert np.abs(drawn.penalty.guide - problem.penalty.guide).max() > 0.01
    noisy = draws(
        replace(problem, calibration=replace(problem.calibration, noise=5.0)),
        settings,
        maps / problem.scales[:, None, None],
        2,
    )
    assert not np.array_equal(*(p.penalty.guide for p in noisy))


@pytest.mark.parametrize("weights", ["fit", "z_power"])
def test_draws_refit_the_forward_model(weights):
    """Else errors of the maps would lack those of the coefficients."""
    scan = core_shell((48, 48), counts=4.0, haadf_blur=1.0, haadf_offset=0.2)
    settings = CalibratedSettings(regularization="none", haadf_coefficients=weights)
    problem = calibrated_problem(scan.maps.astype(np.float64), scan.haadf, scan.atomic_numbers, settings)
    drawn = draws(problem, settings, scan.truth / problem.scales[:, None, None], 24)
    found = np.array([p.forward_model.weights for p in drawn])
    # around the forward model that they were drawn from, and as far from it as its standard errors say
    deviations = (found - problem.forward_model.weights)[:, 0] / problem.calibration.coefficient_errors[0]
    assert abs(deviations.mean()) < 4 / np.sqrt(24) and 0.6 < deviations.std() < 1.5
    one = drawn[0]
    factor = np.sqrt(one.lambda_haadf) / one.calibration.sigma
    np.testing.assert_allclose(one.haadf_term.weights, factor * one.forward_model.weights * one.scales, rtol=1e-6)
    assert np.mean(one.haadf_term.target) == pytest.approx(
        factor * (one.scan.haadf.mean() - one.forward_model.offset), rel=1e-6
    )


@pytest.mark.parametrize("guided", [True, False])
def test_an_ensemble_shares_forward_model_and_guide(monkeypatch, guided):
    """One of each for a draw; where the forward model explains too little, the measured image stays the guide."""
    scan = core_shell((24, 24), counts=8.0, haadf_blur=1.0)
    settings = CalibratedSettings(guide_blur=None)
    observation = observe(scan.maps.astype(np.float64), scan.haadf, scan.atomic_numbers, settings)
    refits, denoised = [], []

    def refit(*data):
        refits.append(data)
        return observation.calibration.refit(*data)

    def denoise(problem, *args, **options):
        denoised.append(problem.shape)
        return primal_dual(problem, *args, **options)

    calibration = replace(observation.calibration, refit=refit)
    kinds = [("tgv", 0.0), ("guided", 1.0), ("directional", 0.5), ("guided", 0.5)]
    problems = [
        replace(observation, calibration=calibration).problem(replace(settings, regularization=k, lambda_haadf=h))
        for k, h in kinds
    ]
    monkeypatch.setattr(guide, "primal_dual", denoise)
    monkeypatch.setattr(resampling, "_explains", lambda problem, image: guided)
    drawn = []
    for problem in problems:
        drawn.append(problem.resample(settings, None, scan.maps.astype(np.float64), (0, 1), tuple(drawn)))
    # one for each penalty with a guide
    assert len(refits) == 1 and len(denoised) == (2 if guided else 0)
    for one, new in zip(problems[1:], drawn[1:], strict=True):
        assert np.array_equal(one.penalty.guide, new.penalty.guide) != guided
    none, one, *_, half = drawn
    assert none.forward_model is problems[0].forward_model
    assert one.forward_model is half.forward_model is not problems[1].forward_model
    np.testing.assert_allclose(one.haadf_term.weights, np.sqrt(2) * half.haadf_term.weights, rtol=1e-5)
    for other in drawn[1:]:
        np.testing.assert_array_equal(measured(other), measured(none))


def test_draws_keep_given_coefficients_and_refit_the_offset():
    scan = scan_of(SHAPE)
    settings = settings_of(haadf_coefficients=(14.0, 3.0))
    problem = problem_of(scan, settings)
    for drawn in draws(problem, settings, problem.initial_maps, 3):
        np.testing.assert_array_equal(drawn.forward_model.weights, (14, 3))
        rest = drawn.scan.haadf - np.tensordot(drawn.forward_model.weights, measured(drawn), 1)
        assert drawn.forward_model.offset == pytest.approx(rest.mean())
        assert drawn.forward_model.offset != problem.forward_model.offset


def test_an_unexplained_image_stays_the_guide():
    """Without a forward model, or where it draws another image."""
    settings = settings_of(regularization="guided", lambda_haadf=0.0)
    problem = problem_of(scan_of(SHAPE), settings)
    without = replace(problem, forward_model=replace(problem.forward_model, weights=np.zeros(2)))
    other = replace(problem, scan=replace(problem.scan, haadf=np.random.default_rng(0).normal(size=SHAPE)))
    for one, stays in ((without, True), (other, True), (problem, False)):
        drawn = draws(one, settings, problem.initial_maps, 1)[0]
        assert np.array_equal(drawn.penalty.guide, problem.penalty.guide) is stays
