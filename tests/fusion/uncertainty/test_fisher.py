"""Errors from replicates: exact small cases, moments of the draws, coverage; what can be known; what moved the maps."""

from dataclasses import replace

import numpy as np
import pytest
from calibrated_cases import PENALTIES, calibrated_problem, observe, problem_of, scan_of, settings_of

from hyperspy_fusion.data import core_shell
from hyperspy_fusion.fusion.haadf import guide
from hyperspy_fusion.fusion.problems import resampling
from hyperspy_fusion.fusion.problems.resampling import resampled
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual
from hyperspy_fusion.fusion.uncertainty import trust
from hyperspy_fusion.fusion.uncertainty.trust import (
    attainable_gain,
    attribution,
    replicates_of,
)

SHAPE = (20, 24)


def fitted(settings, scan=None, **options):
    """Problem, settings, state and result."""
    problem = problem_of(scan or scan_of(SHAPE), settings, **options)
    result, state = primal_dual(problem, settings)
    return problem, settings, state, result


@pytest.fixture(scope="module")
def fit():
    return fitted(settings_of(regularization="directional", tol=1e-3))


# ---- what can be known -----------------------------------------------------------------------------


def test_gain_of_a_pixel_by_hand():
    # S = 1 * 2 + 4 * 3 = 14
    gain = attainable_gain(np.array([2.0, 3.0]).reshape(2, 1, 1), np.array([1.0, 2.0]), 1.0)
    np.testing.assert_allclose(gain.ravel(), [15 / 13, 15 / 3], rtol=1e-12)


def test_gain_is_that_of_the_inverse_of_the_fisher_matrix():
    rng = np.random.default_rng(0)
    variance, w, sigma = rng.uniform(0.1, 5, (3, 2, 4)), rng.uniform(0, 2, 3), rng.uniform(0.1, 3, (2, 4))
    gain = attainable_gain(variance, w, sigma)
    for y, x in np.ndindex(2, 4):
        fisher = np.diag(1 / variance[:, y, x]) + np.outer(w, w) / sigma[y, x] ** 2
        expected = variance[:, y, x] / np.diag(np.linalg.inv(fisher))
        np.testing.assert_allclose(gain[:, y, x], expected, rtol=1e-10)


def test_a_perfect_image_of_one_element_is_all_there_is_to_know():
    gain = attainable_gain(np.array([[[4.0]]]), np.array([3.0]), 0.1)
    assert gain.item() == pytest.approx(1 + 9 * 4 / 0.01)


def test_an_element_without_weight_gains_nothing():
    gain = attainable_gain(np.ones((2, 1, 1)), np.array([1.0, 0.0]), 1.0)
    np.testing.assert_allclose(gain.ravel(), [2, 1])


def test_gain_where_something_is_masked():
    variance = np.array([[[np.nan, 2.0]], [[3.0, 3.0]]])
    gain = attainable_gain(variance, np.array([1.0, 2.0]), np.array([[1.0, np.inf]]))
    # of two unknowns in one number, the one that was not measured takes it all; a masked image says nothing
    np.testing.assert_array_equal(gain, [[[np.nan, 1]], [[1, 1]]])


@pytest.mark.parametrize("noise", ["poisson", "shifted_poisson"])
def test_variance_of_counts_has_the_quantum_and_the_background_and_not_the_shift(noise):
    maps, haadf = scan_of(SHAPE)
    settings = settings_of(noise=noise, background=(3.0, 6.0), weights=(14.0, 3.0))
    problem = problem_of((maps * np.array([2.0, 3.0])[:, None, None], haadf), settings)
    found = problem.count_variance(np.full(maps.shape, 5.0))
    np.testing.assert_allclose(found[:, 0, 0], [2 * (5 + 3), 3 * (5 + 6)], rtol=1e-6)


def test_variance_of_gaussian_maps_is_given_and_nan_where_masked():
    scan, settings = scan_of(SHAPE), settings_of(noise="gaussian", variance=(2.0, 7.0))
    valid = np.ones(scan[0].shape, bool)
    valid[1, 3, 4] = False
    found = problem_of(scan, settings, valid=valid).count_variance(scan[0])
    np.testing.assert_allclose(found[:, 0, 0], [2, 7])
    assert np.isnan(found[1, 3, 4]) and np.isnan(found).sum() == 1


# ---- what moved the maps -----------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["poisson", "shifted_poisson", "gaussian"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_parts_of_a_change_add_up_and_balance(penalty, noise):
    scan = scan_of(SHAPE, counts=8.0)
    settings = settings_of(regularization=penalty, noise=noise, background=0.1, tol=1e-6, max_iter=20000)
    problem, _, state, result = fitted(settings, scan)
    parts = attribution(problem, state, result.maps)
    change = result.maps - (scan[0] - 0.1)
    np.testing.assert_allclose(sum(parts.values()), change, atol=1e-10)
    inside = result.maps > 0.05 * result.maps.max()
    # nothing is left over but the accuracy of the solver
    assert np.sqrt(np.mean(parts["bound"][inside] ** 2)) < 5e-3 * np.sqrt(np.mean(scan[0]))
    assert np.abs(parts["penalty"]).max() > 0.1 or penalty is None


@pytest.mark.parametrize("noise", ["shifted_poisson", "gaussian"])
def test_the_pull_of_the_image_is_minus_the_derivative_of_its_term(noise):
    problem, _, state, result = fitted(settings_of(regularization="tv", noise=noise))
    z = result.maps / problem.scales[:, None, None]
    step, at = 1e-4, (0, 7, 9)
    up, down = z.copy(), z.copy()
    up[at] += step
    down[at] -= step
    haadf_term, data = ((term.value(up) - term.value(down)) / (2 * step) for term in (problem.haadf_term, problem.data))
    # the same reach for all pulls: that of the data goes from the measured to the fused value
    change = result.maps[at] - scan_of(SHAPE)[0][at]
    assert attribution(problem, state, result.maps)["haadf"][at] == pytest.approx(-haadf_term * change / data, rel=1e-4)


def test_without_image_and_penalty_only_totals_and_bound_are_left():
    problem, _, state, result = fitted(settings_of(regularization=None, lambda_haadf=0.0))
    parts = attribution(problem, state, result.maps)
    assert not parts["haadf"].any() and not parts["penalty"].any()


def test_masked_pixels_were_not_moved_from_anything():
    scan = scan_of(SHAPE)
    valid = np.ones(scan[0].shape, bool)
    valid[0, :3] = False
    problem, _, state, result = fitted(settings_of(regularization="tv"), scan, valid=valid)
    for part in attribution(problem, state, result.maps).values():
        np.testing.assert_array_equal(np.isnan(part), ~valid)


# ---- draws -------------------------------------------------------------------------------------------


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
    settings = settings_of(noise=noise, background=(3.0, 6.0), variance=(2.0, 7.0), weights=(14.0, 3.0))
    problem = problem_of((maps * np.array([2.0, 3.0])[:, None, None], haadf), settings)
    z = np.full(maps.shape, 5.0) / problem.scales[:, None, None]
    found = np.array([measured(p) for p in draws(problem, settings, z, 60)])
    n = found[:, 0].size
    for image, expected in zip(found.swapaxes(0, 1), variance, strict=True):
        assert image.mean() == pytest.approx(5, abs=5 * np.sqrt(expected / n))
        assert image.var() == pytest.approx(expected, rel=0.05)


def test_draws_keep_totals_of_their_own(fit):
    problem, settings, _, result = fit
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
    from scipy.ndimage import gaussian_filter

    settings = replace(fit[1], lambda_haadf=0.25)
    problem = problem_of(scan_of(SHAPE), settings)
    problem = replace(
        problem,
        forward_model=replace(problem.forward_model, blur=1.5),
        calibration=replace(problem.calibration, refit=None),
    )
    z = fit[3].maps / problem.scales[:, None, None]
    images = np.array([p.haadf_term.target for p in draws(problem, settings, z)])
    expected = gaussian_filter(np.tensordot(problem.haadf_term.weights, z, 1), 1.5)
    sigma = 0.5 * problem.calibration.noise / problem.calibration.sigma
    np.testing.assert_allclose(images.mean(axis=0), expected, atol=5 * sigma / 20)
    assert images.std(axis=0).mean() == pytest.approx(sigma, rel=0.02)


@pytest.mark.parametrize("penalty", ["guided", "directional"])
@pytest.mark.parametrize("lambda_haadf", [1.0, 0.0])
def test_the_edges_that_guide_a_replicate_are_those_of_its_image(penalty, lambda_haadf):
    """Else what noise and blur of the image do to the maps by its edges would be in no error."""
    from scipy.ndimage import gaussian_filter

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
def test_draws_find_their_own_law(weights):
    """Else errors of maps that the image weighs on would lack those of the weights."""

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


def test_all_fits_of_a_mean_have_the_law_of_the_draw(monkeypatch):
    calls, drawn = [], []
    problems = [problem_of(scan_of(SHAPE), settings_of(lambda_haadf=h)) for h in (0.0, 1.0, 0.5)]

    def refit_forward_model(*data):
        calls.append(data)
        return problems[0].calibration.refit(*data)

    def solved(problem, settings, state, **options):
        drawn.append(problem)
        return primal_dual(problem, replace(settings, max_iter=1), state)

    monkeypatch.setattr(trust, "solved", solved)
    members = [
        (
            replace(p, calibration=replace(p.calibration, refit=refit_forward_model)),
            primal_dual(p, settings_of(max_iter=1))[1],
        )
        for p in problems
    ]
    trust._refitted(members, settings_of(), scan_of(SHAPE)[0], (0, 1), None)
    assert len(calls) == 1
    none, one, half = drawn
    assert (
        none.forward_model == problems[0].forward_model
        and one.forward_model is half.forward_model
        and one.forward_model is not problems[0].forward_model
    )
    np.testing.assert_allclose(one.haadf_term.weights, np.sqrt(2) * half.haadf_term.weights, rtol=1e-5)


@pytest.mark.parametrize("guided", [True, False])
def test_all_fits_of_a_mean_have_the_guide_of_the_draw(monkeypatch, guided):
    """Its noise is taken out once for each draw and penalty; where the forward model explains too little, that measured stays."""
    scan = core_shell((24, 24), counts=8.0, haadf_blur=1.0)
    maps = scan.maps.astype(np.float64)
    observation = observe(maps, scan.haadf, scan.atomic_numbers, CalibratedSettings())
    kinds = [("guided", 1.0), ("directional", 0.5), ("guided", 0.5), ("tgv", 1.0)]
    problems = [
        observation.problem(CalibratedSettings(regularization=kind, lambda_haadf=weight, guide_blur=None))
        for kind, weight in kinds
    ]
    made, drawn = [], []

    def denoised(problem, *args, **options):
        made.append(problem.shape)
        return primal_dual(problem, *args, **options)

    def solved(problem, settings, state, **options):
        drawn.append(problem)
        return primal_dual(problem, replace(settings, max_iter=1), state)

    monkeypatch.setattr(guide, "primal_dual", denoised)
    monkeypatch.setattr(trust, "solved", solved)
    monkeypatch.setattr(resampling, "_explains", lambda problem, image: guided)
    members = [(p, primal_dual(p, settings_of(max_iter=1))[1]) for p in problems]
    for k in range(2):
        trust._refitted(members, CalibratedSettings(guide_blur=None), maps, (0, k), None)
    assert len(made) == (2 * 2 if guided else 0)
    for one, new in zip(problems[:3] * 2, drawn[:3] + drawn[4:7], strict=True):
        assert np.array_equal(one.penalty.guide, new.penalty.guide) != guided


def test_draws_keep_weights_that_were_given_and_find_their_offset():
    scan = scan_of(SHAPE)
    settings = settings_of(weights=(14.0, 3.0))
    problem = problem_of(scan, settings)
    for drawn in draws(problem, settings, problem.initial_maps, 3):
        np.testing.assert_array_equal(drawn.forward_model.weights, (14, 3))
        rest = drawn.scan.haadf - np.tensordot(drawn.forward_model.weights, measured(drawn), 1)
        assert drawn.forward_model.offset == pytest.approx(rest.mean())
        assert drawn.forward_model.offset != problem.forward_model.offset


def test_all_fits_of_a_mean_see_the_same_draw():
    maps, haadf = scan_of(SHAPE)
    settings = [settings_of(regularization=p, lambda_haadf=h) for p, h in (("guided", 0.0), ("tv", 1.0))]
    problems = [problem_of((maps, haadf), s) for s in settings]
    a, b = (resampled(p, settings[0], maps, 3) for p in problems)
    np.testing.assert_array_equal(measured(a), measured(b))
    np.testing.assert_array_equal(a.haadf, b.haadf)


def test_an_image_that_no_law_explains_guides_as_it_is():
    """There is none, or it draws another image: edges that the image does not have would say nothing of its errors."""
    settings = settings_of(regularization="guided", lambda_haadf=0.0)
    problem = problem_of(scan_of(SHAPE), settings)
    without = replace(problem, forward_model=replace(problem.forward_model, weights=np.zeros(2)))
    other = replace(problem, scan=replace(problem.scan, haadf=np.random.default_rng(0).normal(size=SHAPE)))
    for one, is_kept in ((without, True), (other, True), (problem, False)):
        drawn = draws(one, settings, problem.initial_maps, 1)[0]
        assert np.array_equal(drawn.penalty.guide, problem.penalty.guide) is is_kept


# ---- replicates --------------------------------------------------------------------------------------


def test_replicates_are_those_of_their_seed_whatever_their_number(fit):
    *before, result = fit
    z, y = before[2].z.copy(), before[2].y.copy()
    three, two, other = (replicates_of(*before, result.maps, n, seed) for n, seed in ((3, 0), (2, 0), (2, 1)))
    np.testing.assert_array_equal(three.errors[:2], two.errors)
    assert not np.array_equal(two.errors, other.errors) and len(three) == 3
    # the fit they start from is as before
    np.testing.assert_array_equal(before[2].z, z)
    np.testing.assert_array_equal(before[2].y, y)


def test_drawn_maps_less_fitted_ones_are_error_and_residual(fit):
    problem, settings, state, result = fit
    found = replicates_of(problem, settings, state, result.maps, 2, seed=5)
    drawn = resampled(problem, settings, result.maps, (5, 1))
    noise = measured(drawn) - result.maps
    np.testing.assert_allclose(found.errors[1] + found.residuals[1], noise, atol=1e-4)
    np.testing.assert_allclose(found.maps + found.residual, scan_of(SHAPE)[0], atol=1e-9)


def test_a_stop_keeps_what_is_done(fit):
    *fit, result = fit

    def stop_after(number, error):
        def callback(done):
            if done == number:
                raise error

        return callback

    for error in (StopIteration, KeyboardInterrupt):
        assert len(replicates_of(*fit, result.maps, 5, callback=stop_after(3, error))) == 3
        with pytest.raises(KeyboardInterrupt):
            replicates_of(*fit, result.maps, 5, callback=stop_after(1, error))


def test_an_interrupted_fit_is_no_replicate(fit, monkeypatch):
    *fit, result = fit
    numbers = iter(range(9))

    def interrupted(*args, **options):
        found, state = primal_dual(*args, **options)
        return (replace(found, reason=StopReason.INTERRUPTED) if next(numbers) == 2 else found), state

    monkeypatch.setattr(trust, "solved", interrupted)
    assert len(replicates_of(*fit, result.maps, 5)) == 2


# ---- the errors given are those made -----------------------------------------------------------------


def regions_of(shape):
    """Small and large ones all over."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    discs = [(7, 8, 3), (20, 24, 3), (25, 9, 5), (11, 20, 5), (22, 22, 8), (16, 8, 7)]
    masks = [(y - a) ** 2 + (x - b) ** 2 < r**2 for a, b, r in discs]
    return [*masks, abs(x - 16) < 2, y < 16, np.ones(shape, bool)]


@pytest.mark.slow
@pytest.mark.parametrize("phantom, counts", [("interface", 4.0), ("gradient_alloy", 16.0)])
def test_intervals_cover_the_truth_and_errors_of_pixels_are_right(phantom, counts):
    """A small twin of ``python -m benchmarks.coverage``."""
    from hyperspy_fusion.data import PHANTOMS

    settings = CalibratedSettings(regularization="directional", tol=1e-3)
    off, given, made, state = [], [], [], None
    for seed in range(24):
        scan = PHANTOMS[phantom]((32, 32), counts=counts, haadf_blur=1.0, haadf_offset=0.2, seed=seed)
        problem = calibrated_problem(scan.maps.astype(np.float32), scan.haadf, scan.atomic_numbers, settings)
        result, state = primal_dual(problem, settings, state and state.restarted(problem))
        found = replicates_of(problem, settings, state, result.maps, 8)
        for mask in regions_of(scan.haadf.shape):
            for i in np.flatnonzero(scan.truth[:, mask].sum(axis=1) > 5):
                mean = found.region_mean(mask, i)
                off.append((mean.value - scan.truth[i][mask].mean()) / mean.error)
        given.append(np.mean(found.standard_errors() ** 2, axis=(1, 2)))
        made.append(np.mean((result.maps - scan.truth) ** 2, axis=(1, 2)))
    covered = {factor: np.mean(np.abs(off) < factor) for factor in (0.5, 1, 2)}
    assert 0.60 <= covered[1] <= 0.76
    # errors twice too small or too large would be noticed
    assert covered[0.5] < 0.55 and covered[2] > 0.8
    np.testing.assert_allclose(np.sqrt(np.mean(given, axis=0) / np.mean(made, axis=0)), 1, atol=0.3)


def test_errors_of_pixels_have_what_a_blurred_guide_does_to_edges():
    """Guided maps are as blurred as the image; replicates along its own edges had half of these errors."""
    from hyperspy_fusion.data import core_shell

    scan = core_shell((64, 64), counts=4.0, haadf_blur=1.0, haadf_offset=0.2)
    settings = CalibratedSettings(regularization="guided", tol=1e-3)
    problem = calibrated_problem(scan.maps.astype(np.float32), scan.haadf, scan.atomic_numbers, settings)
    result, state = primal_dual(problem, settings)
    given = replicates_of(problem, settings, state, result.maps, 6).standard_errors()
    made = np.mean((result.maps - scan.truth) ** 2, axis=(1, 2))
    assert np.mean(np.abs(np.sqrt(np.mean(given**2, axis=(1, 2)) / made) - 1)) < 0.3
