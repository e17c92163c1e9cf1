"""Errors from replicates: exact small cases, moments of the draws, coverage; what can be known; what moved the maps."""

from dataclasses import replace

import numpy as np
import pytest
from test_calibrated import problem_of, scan_of, settings_of

from hyperspy_fusion.fusion import trust
from hyperspy_fusion.fusion.calibrated import calibrated_problem
from hyperspy_fusion.fusion.primal_dual import primal_dual
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.trust import (
    Replicates,
    attainable_gain,
    attribution,
    count_variance,
    redrawn,
    replicates_of,
)

SHAPE = (20, 24)
PENALTIES = ["tv", "directional", "tgv", "guided", None]


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
    found = count_variance(problem, settings, np.full(maps.shape, 5.0))
    np.testing.assert_allclose(found[:, 0, 0], [2 * (5 + 3), 3 * (5 + 6)], rtol=1e-6)


def test_variance_of_gaussian_maps_is_given_and_nan_where_masked():
    scan, settings = scan_of(SHAPE), settings_of(noise="gaussian", variance=(2.0, 7.0))
    valid = np.ones(scan[0].shape, bool)
    valid[1, 3, 4] = False
    found = count_variance(problem_of(scan, settings, valid=valid), settings, scan[0])
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
    elastic, data = ((term.value(up) - term.value(down)) / (2 * step) for term in (problem.elastic, problem.data))
    # the same reach for all pulls: that of the data goes from the measured to the fused value
    change = result.maps[at] - scan_of(SHAPE)[0][at]
    assert attribution(problem, state, result.maps)["haadf"][at] == pytest.approx(-elastic * change / data, rel=1e-4)


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
    return [redrawn(problem, settings, z, rng) for _ in range(number)]


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
    drawn = draws(problem, settings, problem.start.astype(float), 1)[0]
    assert not drawn.data.beta[~valid].any() and not drawn.elastic.target[~valid[0]].any()
    assert drawn.data.totals[0] * problem.scales[0] == pytest.approx(measured(drawn)[0][valid[0]].sum(), rel=1e-6)


def test_drawn_images_are_blurred_and_noisy(fit):
    from scipy.ndimage import gaussian_filter

    settings = replace(fit[1], lambda_haadf=0.25)
    problem = problem_of(scan_of(SHAPE), settings)
    problem = replace(problem, law=replace(problem.law, blur=1.5), law_of=None)
    z = fit[3].maps / problem.scales[:, None, None]
    images = np.array([p.elastic.target for p in draws(problem, settings, z)])
    expected = gaussian_filter(np.tensordot(problem.elastic.weights, z, 1), 1.5)
    sigma = 0.5 * problem.haadf_noise / problem.haadf_sigma
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
    problem = replace(problem, law=replace(problem.law, blur=1.2), haadf_noise=0.0)
    drawn = draws(problem, settings, maps / problem.scales[:, None, None], 1)[0]
    image = gaussian_filter(problem.law.image(maps), 1.2)
    expected = problem_of((maps, image), settings, haadf_valid=counts)
    np.testing.assert_allclose(drawn.penalty.guide, expected.penalty.guide, atol=1e-12)
    assert np.abs(drawn.penalty.guide - problem.penalty.guide).max() > 0.01
    noisy = draws(replace(problem, haadf_noise=5.0), settings, maps / problem.scales[:, None, None], 2)
    assert not np.array_equal(*(p.penalty.guide for p in noisy))


@pytest.mark.parametrize("weights", ["fit", "z_gamma"])
def test_draws_find_their_own_law(weights):
    """Else errors of maps that the image weighs on would lack those of the weights."""
    from hyperspy_fusion.data import core_shell

    scan = core_shell((48, 48), counts=4.0, haadf_blur=1.0, haadf_offset=0.2)
    settings = CalibratedSettings(regularization=None, weights=weights)
    problem = calibrated_problem(scan.maps.astype(np.float64), scan.haadf, scan.atomic_numbers, settings)
    drawn = draws(problem, settings, scan.truth / problem.scales[:, None, None], 24)
    found = np.array([p.law.weights for p in drawn])
    # around the law that they were drawn from, and as far from it as its standard errors say
    deviations = (found - problem.law.weights)[:, 0] / problem.weight_errors[0]
    assert abs(deviations.mean()) < 4 / np.sqrt(24) and 0.6 < deviations.std() < 1.5
    one = drawn[0]
    factor = np.sqrt(one.lambda_haadf) / one.haadf_sigma
    np.testing.assert_allclose(one.elastic.weights, factor * one.law.weights * one.scales, rtol=1e-6)
    assert np.mean(one.elastic.target) == pytest.approx(factor * (one.haadf.mean() - one.law.offset), rel=1e-6)


def test_all_fits_of_a_mean_have_the_law_of_the_draw(monkeypatch):
    calls, drawn = [], []
    problems = [problem_of(scan_of(SHAPE), settings_of(lambda_haadf=h)) for h in (0.0, 1.0, 0.5)]

    def law_of(*data):
        calls.append(data)
        return problems[0].law_of(*data)

    def solved(problem, settings, state, **options):
        drawn.append(problem)
        return primal_dual(problem, replace(settings, max_iter=1), state)

    monkeypatch.setattr(trust, "solved", solved)
    members = [(replace(p, law_of=law_of), primal_dual(p, settings_of(max_iter=1))[1]) for p in problems]
    trust._refitted(members, settings_of(), scan_of(SHAPE)[0], (0, 1), None)
    assert len(calls) == 1
    none, one, half = drawn
    assert none.law == problems[0].law and one.law is half.law and one.law is not problems[0].law
    np.testing.assert_allclose(one.elastic.weights, np.sqrt(2) * half.elastic.weights, rtol=1e-5)


def test_draws_keep_weights_that_were_given_and_find_their_offset():
    scan = scan_of(SHAPE)
    settings = settings_of(weights=(14.0, 3.0))
    problem = problem_of(scan, settings)
    for drawn in draws(problem, settings, problem.start, 3):
        np.testing.assert_array_equal(drawn.law.weights, (14, 3))
        rest = drawn.haadf - np.tensordot(drawn.law.weights, measured(drawn), 1)
        assert drawn.law.offset == pytest.approx(rest.mean())
        assert drawn.law.offset != problem.law.offset


def test_all_fits_of_a_mean_see_the_same_draw():
    maps, haadf = scan_of(SHAPE)
    settings = [settings_of(regularization=p, lambda_haadf=h) for p, h in (("guided", 0.0), ("tv", 1.0))]
    problems = [problem_of((maps, haadf), s) for s in settings]
    a, b = (redrawn(p, settings[0], maps / p.scales[:, None, None], np.random.default_rng(3)) for p in problems)
    np.testing.assert_array_equal(measured(a), measured(b))
    np.testing.assert_array_equal(a.haadf, b.haadf)


def test_an_image_that_no_law_explains_guides_as_it_is():
    """There is none, or it draws another image: edges that the image does not have would say nothing of its errors."""
    settings = settings_of(regularization="guided", lambda_haadf=0.0)
    problem = problem_of(scan_of(SHAPE), settings)
    without = replace(problem, law=replace(problem.law, weights=np.zeros(2)))
    other = replace(problem, haadf=np.random.default_rng(0).normal(size=SHAPE))
    for one, is_kept in ((without, True), (other, True), (problem, False)):
        drawn = draws(one, settings, problem.start, 1)[0]
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
    drawn = redrawn(problem, settings, result.maps / problem.scales[:, None, None], np.random.default_rng([5, 1]))
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


# ---- errors of pixels --------------------------------------------------------------------------------


def made_up(errors, residuals, maps=None, residual=None, quantum=1.0, counted=None, variance=1.0):
    """Replicates of arrays; maps of 10 that were measured exactly where they are not given."""
    shape = errors.shape[1:]
    counted = np.ones(shape, bool) if counted is None else counted
    return Replicates(
        maps=np.full(shape, 10.0) if maps is None else maps,
        residual=np.zeros(shape) if residual is None else residual,
        counted=counted,
        variance=variance * counted,
        quantum=np.full(shape[0], quantum),
        errors=errors,
        residuals=residuals,
    )


def smooth_bias(shape=(32, 32)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.cos(2 * np.pi * y / 32) * np.cos(2 * np.pi * x / 32)


def test_standard_errors_are_scatter_and_bias():
    noise = np.random.default_rng(0).normal(0, 0.5, (3000, 1, 8, 8))
    found = made_up(noise + 1.2, -noise)
    np.testing.assert_allclose(found.standard_errors(), np.hypot(0.5, 1.2), rtol=0.03)
    scatter = made_up(noise[:, :, :, :], -noise).standard_errors()
    np.testing.assert_allclose(scatter, 0.5, rtol=0.05)


@pytest.mark.parametrize("seen, expected", [(0.3, 1), (1.0, 1), (1.4, 1.4), (1.9, 1.9), (5.0, 2)])
def test_the_counts_tell_how_much_more_smoothing_costs(seen, expected):
    noise = np.random.default_rng(0).normal(0, 0.05, (16, 1, 32, 32))
    noise -= noise.mean(axis=0)
    bias = smooth_bias()
    found = made_up(noise + bias, -noise - bias, residual=-seen * bias[None])
    assert found.bias_scales[0] == pytest.approx(expected, rel=1e-6)
    # the scale of the bias alone differs between the two
    as_is = replace(found, residual=np.zeros((1, 32, 32)))
    more = np.mean(found.standard_errors() ** 2 - as_is.standard_errors() ** 2)
    assert more == pytest.approx((expected**2 - 1) * np.mean(bias**2), rel=0.1)


# ---- errors of region means --------------------------------------------------------------------------

REGION = np.zeros((8, 8), bool)
REGION[2:4, 1:6] = True


def white(number=40, elements=1, seed=0):
    return np.random.default_rng(seed).normal(0, 1, (number, elements, 8, 8))


def test_maps_that_are_the_measured_ones_have_the_errors_of_these():
    noise = white(6)
    mean = made_up(noise, np.zeros_like(noise), variance=3.0).region_mean(REGION, 0)
    assert (mean.value, mean.fused, mean.measured) == (10, 10, 10)
    # known, and not what six replicates happen to show
    assert mean.error == pytest.approx(np.sqrt(3 / 10)) and mean.measured_error == pytest.approx(np.sqrt(3 / 10))


def test_region_mean_by_hand():
    # a map that never moves, counts that scatter by 0.1 in the mean of the region, and 0.3 above the map as measured
    noise = 0.1 * np.resize([1.0, -1.0], 40)[:, None, None, None] * np.ones((40, 1, 8, 8))
    found = made_up(np.zeros_like(noise), noise, residual=np.full((1, 8, 8), 0.3), variance=0.1, quantum=np.nan)
    mean = found.region_mean(REGION, 0)
    unseen = 0.3**2 - 2.5**2 * 0.1**2
    # the least mean square error would be at a weight of 0.73, and leave more bias than a third of the scatter
    weight = 1 / (1 + 0.1 / (3 * np.sqrt(unseen)))
    assert mean.weight == pytest.approx(weight) and mean.value == pytest.approx(10 + weight * 0.3)
    assert mean.error**2 == pytest.approx((1 - weight) ** 2 * unseen + weight**2 * 0.1**2)
    assert mean.measured == pytest.approx(10.3) and mean.measured_error == pytest.approx(0.1)


def test_what_counts_cannot_exclude_is_in_the_error():
    noise = 0.1 * np.resize([1.0, -1.0], 40)[:, None, None, None] * np.ones((40, 1, 8, 8))
    found = made_up(np.zeros_like(noise), noise, variance=0.1, residual=np.full((1, 8, 8), 0.2), quantum=np.nan)
    mean, unseen = found.region_mean(REGION, 0), 0.05 * 0.1**2
    # two standard deviations are no contradiction
    weight = 1 / (1 + 0.1 / (3 * np.sqrt(unseen)))
    assert mean.weight == pytest.approx(weight) and mean.value == pytest.approx(10 + weight * 0.2)
    assert mean.error**2 == pytest.approx((1 - weight) ** 2 * unseen + weight**2 * 0.1**2)


def test_the_weight_leaves_a_harmless_bias_and_the_least_error():
    rng = np.random.default_rng(0)
    weights = np.linspace(0, 1, 100001)
    for unseen in (0.0, 0.01, 0.3, 1.0, 20.0):
        for spread in (0.1, 1.0, 3.0):
            errors, noise = spread * rng.normal(size=20), rng.normal(size=20)
            differences = noise - rng.uniform(0, 1) * errors
            moments = trust._second_moments(errors, differences)
            scatter = moments[0] + 2 * weights * moments[1] + weights**2 * moments[2]
            left = (1 - weights) ** 2 * unseen
            best = np.argmin(left + scatter)
            expected = best + np.argmax((left <= scatter / 9)[best:])
            assert trust._least_weight(unseen, *moments) == pytest.approx(weights[expected], abs=2e-5)
    # what the measured mean has no noise of its own for is left to it
    assert trust._least_weight(1.0, 1.0, 0.0, 0.0) == 1


def test_a_mean_is_corrected_by_what_smoothing_takes_from_replicates():
    noise = white(400)
    noise -= noise.mean(axis=0)
    # measured exactly at what smoothing takes from maps that are smooth already, 1.5 in each pixel
    found = made_up(0.3 * noise - 1.5, 0.7 * noise + 1.5, residual=np.full((1, 8, 8), 1.5), variance=1.0)
    mean = found.region_mean(REGION, 0)
    assert mean.fused == 10 and mean.value == pytest.approx(11.5, abs=1e-6) == mean.measured
    # as much may be left as was corrected, and a twentieth of the noise
    assert found._region_with(REGION, 0).unseen == pytest.approx(1.5**2 + 0.05 * 0.1, rel=1e-3)


@pytest.mark.parametrize("quantum", [0.3, 1.0])
def test_counts_vary_as_their_own_mean_and_not_as_the_fused_one(quantum):
    noise = np.sqrt(10 * quantum) * white(400)
    noise -= noise.mean(axis=0)
    # a fused map of which smoothing has moved most into the region, which the counts contradict
    found = made_up(0 * noise, noise, residual=np.full((1, 8, 8), -7.0), quantum=quantum, variance=10 * quantum)
    mean = found.region_mean(REGION, 0)
    assert mean.weight > 0.7 and mean.value == pytest.approx(10 - 7 * mean.weight)
    # counts of about 3 in 10 pixels, not of 10
    assert mean.measured_error**2 == pytest.approx(quantum * mean.value / 10, rel=0.15)
    assert mean.error < 1.2 * mean.measured_error
    # Gaussian noise does not know what it is the noise of
    same = replace(found, quantum=np.array([np.nan])).region_mean(REGION, 0)
    assert same.measured_error == pytest.approx(np.sqrt(quantum))


def test_a_map_with_too_few_counts_does_not_make_those_measured_agree_with_it():
    rng = np.random.default_rng(0)
    # 3 counts in the map, 10 measured: a contradiction were the map true, none to counts that vary as ten do
    noise = np.sqrt(0.3) * rng.normal(size=(400, 1, 8, 8))
    noise -= noise.mean(axis=0)
    options = {"maps": np.full((1, 8, 8), 0.3), "variance": 0.3, "residual": np.full((1, 8, 8), 0.7)}
    mean = made_up(0 * noise, noise, **options).region_mean(REGION, 0)
    assert 0.8 < mean.value < 1 and mean.measured_error**2 == pytest.approx(0.1 * mean.value, rel=0.1)
    assert mean.error**2 > 0.7 * mean.measured_error**2


def test_counts_never_vary_less_than_their_background():
    noise = white(400)
    noise -= noise.mean(axis=0)
    # 30 counts of background of which 20 were measured: there are no fewer than none besides
    options = {"maps": np.full((1, 8, 8), 0.1), "variance": 3.1, "residual": np.full((1, 8, 8), -1.1)}
    mean = made_up(0 * noise, np.sqrt(3.1) * noise, **options).region_mean(REGION, 0)
    assert mean.measured_error**2 == pytest.approx(0.3)
    # one count is not more certain than itself
    options = {"maps": np.full((1, 8, 8), 0.5), "variance": 0.5, "residual": np.full((1, 8, 8), -0.5)}
    mean = made_up(0 * noise, np.sqrt(0.5) * noise, **options)._region_with(REGION, 0, change=-0.5)
    assert mean.measured_error == pytest.approx(1.14 / 10, rel=0.2)


def test_corrections_that_cancel_in_a_region_are_no_less_doubtful():
    noise = white(400)
    noise -= noise.mean(axis=0)
    sign = np.resize([1.0, -1.0], (8, 8))[None]
    region = made_up(0.3 * noise + sign, 0.7 * noise - sign)._region(np.ones((8, 8), bool), 0)
    assert region.corrected == pytest.approx(10) and region.unseen == pytest.approx(1 + 0.05 / 64, rel=2e-3)
    # chance is no correction
    noise = white(4)
    still = made_up(3 * noise, -2 * noise)._region(np.ones((8, 8), bool), 0)
    assert still.unseen < 0.5 < np.mean((3 * noise).mean(axis=0) ** 2)


def test_scatter_that_is_not_noise_of_the_counts_is_as_uncertain_as_replicates_are_few():
    from scipy.stats import t

    for number in (4, 400):
        # half the noise goes into the map, and something else that goes up and down beside it
        noise = np.resize([1.0, 1.0, -1.0, -1.0], number)[:, None, None, None] * np.ones((number, 1, 8, 8))
        other = 0.5 * np.resize([1.0, -1.0], number)[:, None, None, None] * np.ones((number, 1, 8, 8))
        region = made_up(0.5 * noise + other, 0.5 * noise - other, variance=40.0)._region(REGION, 0)
        wider = t.ppf(0.5 + 0.6826894921370859 / 2, number - 2) * np.sqrt((number + 1) / (number - 2))
        expected = 0.25 * 4 + 0.25 * wider**2
        assert np.mean(region.scatter(0) ** 2) == pytest.approx(expected)
        # all of the noise and nothing else is left of the errors of the measured mean
        assert np.mean(region.scatter(1) ** 2) == pytest.approx(4)
    assert wider == pytest.approx(1, abs=6e-3)


def test_bias_of_replicates_counts_as_often_as_the_counts_say():
    noise = white(16)
    noise -= noise.mean(axis=0)
    found = made_up(0.2 * noise + 1.5, 0.8 * noise - 1.5, residual=np.full((1, 8, 8), -2.1))
    assert found.bias_scales[0] == pytest.approx(1.4)
    region = found._region(REGION, 0)
    assert region.corrected == pytest.approx(10 - 2.1) and region.difference == pytest.approx(0)


def test_shares_of_two_maps_are_their_ratio():
    noise = white(40, 2)
    maps = np.stack([np.full((8, 8), 12.0), np.full((8, 8), 8.0)])
    found = made_up(0.5 * noise, 0.5 * noise, maps=maps)
    factors = np.array([3.0, 2.0])
    values, errors = found.shares(REGION, factors)
    ratio = found.ratio(REGION, 0, 1)
    quotient = 1.5 * ratio.value
    np.testing.assert_allclose(values, [quotient / (1 + quotient), 1 / (1 + quotient)])
    # d(r / (1 + r)) = dr / (1 + r)^2
    np.testing.assert_allclose(errors, 1.5 * ratio.error / (1 + quotient) ** 2)


def test_what_all_maps_have_in_common_is_in_no_share():
    noise = np.random.default_rng(0).normal(0, 0.1, (40, 1, 1, 1)) * np.ones((1, 3, 8, 8))
    maps = np.arange(1.0, 4.0)[:, None, None] * np.ones((3, 8, 8))
    found = made_up(noise * maps, 0 * noise, maps=maps, quantum=np.nan, variance=1e-6)
    values, errors = found.shares(REGION, np.ones(3))
    np.testing.assert_allclose(values, [1 / 6, 2 / 6, 3 / 6], rtol=0.02)
    assert np.all(errors < 0.01)
    # of nothing there are no shares
    zeros = np.zeros((8, 3, 8, 8))
    values, errors = made_up(zeros, zeros, maps=zeros[0], variance=0.0).shares(REGION, np.ones(3))
    assert np.isnan(values).all() and np.isinf(errors).all()


def masked_in_part(filled=0.0, residual=0.0):
    """Replicates with 3 of the 10 pixels of the region masked, in which they are ``filled`` off."""
    noise, counted = white(), np.ones((1, 8, 8), bool)
    noise -= noise.mean(axis=0)
    counted[0, 2, 1:4] = False
    errors = np.where(counted, 0.5 * noise, filled)
    return made_up(errors, np.where(counted, 0.5 * noise, 0), residual=residual * counted, counted=counted)


def test_masked_pixels_of_a_region_are_not_asked():
    mean = masked_in_part(residual=2.0).region_mean(REGION, 0)
    assert mean.measured == pytest.approx(12) and mean.fused == 10
    # the part of the region that was measured moves, here by 2 in 7 of 10 pixels
    assert mean.weight > 0.7 and mean.value == pytest.approx(10 + 1.4 * mean.weight)


def test_what_is_filled_in_is_as_doubtful_whatever_was_measured_beside_it():
    mean, biased = (masked_in_part(filled, residual=2.0).region_mean(REGION, 0) for filled in (0.0, -3.0))
    assert biased.weight == pytest.approx(mean.weight) and biased.measured_error == pytest.approx(mean.measured_error)
    assert biased.value == pytest.approx(mean.value + 0.9)
    assert biased.error**2 == pytest.approx(mean.error**2 + 0.9**2)


def test_a_region_of_masked_pixels_has_the_error_of_what_was_filled_in():
    noise = white()
    nothing = np.zeros_like(noise)
    found = made_up(0.3 * noise, nothing, counted=np.zeros((1, 8, 8), bool))
    mean = found.region_mean(REGION, 0)
    assert mean.weight == 0 and np.isnan([mean.measured, mean.measured_error]).all()
    means = 0.3 * noise[:, 0][:, REGION].mean(axis=1)
    assert mean.value == pytest.approx(10 - means.mean()) and mean.error > means.std()
    assert mean.error == pytest.approx(means.std(), rel=0.05)


def test_no_counts_are_not_known_to_be_none():
    zeros = np.zeros((8, 1, 8, 8))
    mean = made_up(zeros, zeros, maps=zeros[0], quantum=3.0).region_mean(REGION, 0)
    assert mean.value == 0 and mean.error == pytest.approx(1.14 * 3 / 10)
    assert made_up(zeros, zeros, maps=zeros[0], quantum=np.nan, variance=0.0).region_mean(REGION, 0).error == 0
    # what is left of none in single precision is none
    rounded = made_up(zeros, zeros, maps=zeros[0] + 1e-7, quantum=3.0).region_mean(REGION, 0)
    assert rounded.error == pytest.approx(1.14 * 3 / 10) == rounded.measured_error


def test_draws_of_no_counts_at_all_teach_nothing():
    # all replicates draw none, and their fits differ by the image; the same but for rounding in single precision
    rng, shape = np.random.default_rng(0), (16, 1, 8, 8)
    errors = rng.normal(0, 0.01, shape).astype(np.float32)
    maps = np.full((1, 8, 8), 0.02)
    found = made_up(errors, np.float32(-0.02) - errors, maps=maps, variance=0.02, residual=np.full((1, 8, 8), 0.18))
    mean = found.region_mean(REGION, 0)
    # two counts, of which 0.2 were expected
    assert 0 < mean.value < 0.25 and 0.03 < mean.error < 0.2
    assert abs(found._region(REGION, 0).corrected - 0.02) < 0.02


def test_counts_where_the_map_has_none_have_an_error():
    zeros = np.zeros((8, 1, 8, 8))
    found = made_up(zeros, zeros, maps=zeros[0], variance=0.0, residual=np.full((1, 8, 8), 0.5))
    mean = found.region_mean(REGION, 0)
    assert mean.value == pytest.approx(0.5, abs=0.1)
    assert mean.measured_error == pytest.approx(np.sqrt(5) / 10) and mean.error > 0.15


def test_errors_that_two_maps_share_cancel_in_their_ratio():
    noise = white()
    both = np.concatenate([noise, 2 * noise], axis=1)
    maps = np.stack([np.full((8, 8), 10.0), np.full((8, 8), 20.0)])
    found = made_up(both, np.zeros_like(both), maps=maps, variance=np.array([1.0, 4.0])[:, None, None])
    ratio = found.ratio(REGION, 0, 1)
    assert ratio.value == pytest.approx(0.5) and ratio.error == pytest.approx(0, abs=1e-8)
    opposite = replace(found, errors=both * np.array([1, -1])[:, None, None])
    alone = found.region_mean(REGION, 0).error / 10
    assert opposite.ratio(REGION, 0, 1).error == pytest.approx(0.5 * 2 * alone)
    assert found.ratio(REGION, 1, 1).error == pytest.approx(0, abs=1e-8)


def test_ratio_to_nothing_has_no_finite_error():
    noise = white(elements=2)
    found = made_up(noise, np.zeros_like(noise), maps=np.zeros((2, 8, 8)))
    assert np.isnan(found.ratio(REGION, 0, 1).value) and found.ratio(REGION, 0, 1).error == np.inf


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
