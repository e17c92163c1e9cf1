"""Errors of pixels, region means, ratios and shares from bootstrap replicates, by exact small cases."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from hyperspy_fusion.fusion.uncertainty import error_estimates
from hyperspy_fusion.fusion.uncertainty.error_estimates import BootstrapReplicates


def replicates_of(errors, residuals, maps=None, residual=None, counts_scale=1.0, counted=None, variance=1.0):
    """Bootstrap replicates of arrays; maps of 10 that were measured exactly unless they are given."""
    shape = errors.shape[1:]
    counted = np.ones(shape, bool) if counted is None else counted
    return BootstrapReplicates(
        maps=np.full(shape, 10.0) if maps is None else maps,
        residual=np.zeros(shape) if residual is None else residual,
        counted=counted,
        variance=variance * counted,
        counts_scale=np.full(shape[0], counts_scale),
        errors=errors,
        residuals=residuals,
    )


def smooth_bias(shape=(32, 32)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.cos(2 * np.pi * y / 32) * np.cos(2 * np.pi * x / 32)


def test_standard_errors_are_scatter_and_bias():
    noise = np.random.default_rng(0).normal(0, 0.5, (3000, 1, 8, 8))
    found = replicates_of(noise + 1.2, -noise)
    np.testing.assert_allclose(found.standard_errors(), np.hypot(0.5, 1.2), rtol=0.03)
    scatter = replicates_of(noise[:, :, :, :], -noise).standard_errors()
    np.testing.assert_allclose(scatter, 0.5, rtol=0.05)
    noise = white(6)
    mean = replicates_of(noise, np.zeros_like(noise), variance=3.0).region_mean(REGION, 0)
    assert (mean.value, mean.fused, mean.measured) == (10, 10, 10)
    # known, and not what six replicates happen to show
    assert mean.error == pytest.approx(np.sqrt(3 / 10)) and mean.measured_error == pytest.approx(np.sqrt(3 / 10))


@pytest.mark.parametrize("seen, expected", [(0.3, 1), (1.0, 1), (1.4, 1.4), (1.9, 1.9), (5.0, 2)])
def test_bias_scale_is_the_slope_of_the_measured_residual(seen, expected):
    noise = np.random.default_rng(0).normal(0, 0.05, (16, 1, 32, 32))
    noise -= noise.mean(axis=0)
    bias = smooth_bias()
    found = replicates_of(noise + bias, -noise - bias, residual=-seen * bias[None])
    assert found.bias_scales[0] == pytest.approx(expected, rel=1e-6)
    # the scale of the bias alone differs between the two
    as_is = replace(found, residual=np.zeros((1, 32, 32)))
    more = np.mean(found.standard_errors() ** 2 - as_is.standard_errors() ** 2)
    assert more == pytest.approx((expected**2 - 1) * np.mean(bias**2), rel=0.1)


REGION = np.zeros((8, 8), bool)
REGION[2:4, 1:6] = True


def white(number=40, elements=1, seed=0):
    return np.random.default_rng(seed).normal(0, 1, (number, elements, 8, 8))


def test_region_mean_by_hand():
    # a map that never moves, counts that scatter by 0.1 in the mean of the region, and 0.3 above the map as measured
    noise = 0.1 * np.resize([1.0, -1.0], 40)[:, None, None, None] * np.ones((40, 1, 8, 8))
    found = replicates_of(
        np.zeros_like(noise), noise, residual=np.full((1, 8, 8), 0.3), variance=0.1, counts_scale=np.nan
    )
    mean = found.region_mean(REGION, 0)
    unseen = 0.3**2 - 2.5**2 * 0.1**2
    # the least mean square error would be at a weight of 0.73, and leave more bias than a third of the scatter
    weight = 1 / (1 + 0.1 / (3 * np.sqrt(unseen)))
    assert mean.weight == pytest.approx(weight) and mean.value == pytest.approx(10 + weight * 0.3)
    assert mean.error**2 == pytest.approx((1 - weight) ** 2 * unseen + weight**2 * 0.1**2)
    assert mean.measured == pytest.approx(10.3) and mean.measured_error == pytest.approx(0.1)


def test_bias_that_counts_cannot_exclude_is_in_the_error():
    noise = 0.1 * np.resize([1.0, -1.0], 40)[:, None, None, None] * np.ones((40, 1, 8, 8))
    found = replicates_of(
        np.zeros_like(noise), noise, variance=0.1, residual=np.full((1, 8, 8), 0.2), counts_scale=np.nan
    )
    mean, unseen = found.region_mean(REGION, 0), 0.05 * 0.1**2
    # two standard deviations are no contradiction
    weight = 1 / (1 + 0.1 / (3 * np.sqrt(unseen)))
    assert mean.weight == pytest.approx(weight) and mean.value == pytest.approx(10 + weight * 0.2)
    assert mean.error**2 == pytest.approx((1 - weight) ** 2 * unseen + weight**2 * 0.1**2)


def test_weight_leaves_a_harmless_bias_and_the_least_error():
    rng = np.random.default_rng(0)
    weights = np.linspace(0, 1, 100001)
    for unseen in (0.0, 0.01, 0.3, 1.0, 20.0):
        for spread in (0.1, 1.0, 3.0):
            errors, noise = spread * rng.normal(size=20), rng.normal(size=20)
            differences = noise - rng.uniform(0, 1) * errors
            moments = error_estimates._second_moments(errors, differences)
            scatter = moments[0] + 2 * weights * moments[1] + weights**2 * moments[2]
            left = (1 - weights) ** 2 * unseen
            best = np.argmin(left + scatter)
            expected = best + np.argmax((left <= scatter / 9)[best:])
            assert error_estimates._least_weight(unseen, *moments) == pytest.approx(weights[expected], abs=2e-5)
    # what the measured mean has no noise of its own for is left to it
    assert error_estimates._least_weight(1.0, 1.0, 0.0, 0.0) == 1


def test_bias_of_replicates_is_scaled_and_taken_off():
    noise = white(400)
    noise -= noise.mean(axis=0)
    # measured exactly at what smoothing takes from maps that are smooth already, 1.5 in each pixel
    found = replicates_of(0.3 * noise - 1.5, 0.7 * noise + 1.5, residual=np.full((1, 8, 8), 1.5), variance=1.0)
    mean = found.region_mean(REGION, 0)
    assert mean.fused == 10 and mean.value == pytest.approx(11.5, abs=1e-6) == mean.measured
    # as much may be left as was corrected, and a twentieth of the noise
    assert found.region_with(REGION, 0).unseen == pytest.approx(1.5**2 + 0.05 * 0.1, rel=1e-3)
    noise = white(16)
    noise -= noise.mean(axis=0)
    found = replicates_of(0.2 * noise + 1.5, 0.8 * noise - 1.5, residual=np.full((1, 8, 8), -2.1))
    assert found.bias_scales[0] == pytest.approx(1.4)
    region = found.region(REGION, 0)
    assert region.corrected == pytest.approx(10 - 2.1) and region.difference == pytest.approx(0)


@pytest.mark.parametrize("counts_scale", [0.3, 1.0])
def test_variance_of_counts_is_their_own_mean(counts_scale):
    noise = np.sqrt(10 * counts_scale) * white(400)
    noise -= noise.mean(axis=0)
    # a fused map of which smoothing has moved most into the region, which the counts contradict
    found = replicates_of(
        0 * noise, noise, residual=np.full((1, 8, 8), -7.0), counts_scale=counts_scale, variance=10 * counts_scale
    )
    mean = found.region_mean(REGION, 0)
    assert mean.weight > 0.7 and mean.value == pytest.approx(10 - 7 * mean.weight)
    # counts of about 3 in 10 pixels, not of 10
    assert mean.measured_error**2 == pytest.approx(counts_scale * mean.value / 10, rel=0.15)
    assert mean.error < 1.2 * mean.measured_error
    # Gaussian noise does not know what it is the noise of
    same = replace(found, counts_scale=np.array([np.nan])).region_mean(REGION, 0)
    assert same.measured_error == pytest.approx(np.sqrt(counts_scale))


def test_variance_of_few_counts():
    rng = np.random.default_rng(0)
    # 3 counts in the map, 10 measured: a contradiction were the map true, none to counts that vary as ten do
    noise = np.sqrt(0.3) * rng.normal(size=(400, 1, 8, 8))
    noise -= noise.mean(axis=0)
    options = {"maps": np.full((1, 8, 8), 0.3), "variance": 0.3, "residual": np.full((1, 8, 8), 0.7)}
    mean = replicates_of(0 * noise, noise, **options).region_mean(REGION, 0)
    assert 0.8 < mean.value < 1 and mean.measured_error**2 == pytest.approx(0.1 * mean.value, rel=0.1)
    assert mean.error**2 > 0.7 * mean.measured_error**2
    noise = white(400)
    noise -= noise.mean(axis=0)
    # 30 counts of background of which 20 were measured: there are no fewer than none besides
    options = {"maps": np.full((1, 8, 8), 0.1), "variance": 3.1, "residual": np.full((1, 8, 8), -1.1)}
    mean = replicates_of(0 * noise, np.sqrt(3.1) * noise, **options).region_mean(REGION, 0)
    assert mean.measured_error**2 == pytest.approx(0.3)
    # one count is not more certain than itself
    options = {"maps": np.full((1, 8, 8), 0.5), "variance": 0.5, "residual": np.full((1, 8, 8), -0.5)}
    mean = replicates_of(0 * noise, np.sqrt(0.5) * noise, **options).region_with(REGION, 0, change=-0.5)
    assert mean.measured_error == pytest.approx(1.14 / 10, rel=0.2)


def test_biases_that_cancel_in_a_region_stay_in_its_error():
    noise = white(400)
    noise -= noise.mean(axis=0)
    sign = np.resize([1.0, -1.0], (8, 8))[None]
    region = replicates_of(0.3 * noise + sign, 0.7 * noise - sign).region(np.ones((8, 8), bool), 0)
    assert region.corrected == pytest.approx(10) and region.unseen == pytest.approx(1 + 0.05 / 64, rel=2e-3)
    # chance is no correction
    noise = white(4)
    still = replicates_of(3 * noise, -2 * noise).region(np.ones((8, 8), bool), 0)
    assert still.unseen < 0.5 < np.mean((3 * noise).mean(axis=0) ** 2)


def test_scatter_beside_the_noise_is_widened_by_student():
    from scipy.stats import t

    for number in (4, 400):
        # half the noise goes into the map, and something else that goes up and down beside it
        noise = np.resize([1.0, 1.0, -1.0, -1.0], number)[:, None, None, None] * np.ones((number, 1, 8, 8))
        other = 0.5 * np.resize([1.0, -1.0], number)[:, None, None, None] * np.ones((number, 1, 8, 8))
        region = replicates_of(0.5 * noise + other, 0.5 * noise - other, variance=40.0).region(REGION, 0)
        wider = t.ppf(0.5 + 0.6826894921370859 / 2, number - 2) * np.sqrt((number + 1) / (number - 2))
        expected = 0.25 * 4 + 0.25 * wider**2
        assert np.mean(region.error_of(0) ** 2) == pytest.approx(expected)
        # all of the noise and nothing else is left of the errors of the measured mean
        assert np.mean(region.error_of(1) ** 2) == pytest.approx(4)
    assert wider == pytest.approx(1, abs=6e-3)


def test_shares_of_maps():
    noise = white(40, 2)
    maps = np.stack([np.full((8, 8), 12.0), np.full((8, 8), 8.0)])
    found = replicates_of(0.5 * noise, 0.5 * noise, maps=maps)
    factors = np.array([3.0, 2.0])
    values, errors = found.shares(REGION, factors)
    ratio = found.ratio(REGION, 0, 1)
    quotient = 1.5 * ratio.value
    np.testing.assert_allclose(values, [quotient / (1 + quotient), 1 / (1 + quotient)])
    # d(r / (1 + r)) = dr / (1 + r)^2
    np.testing.assert_allclose(errors, 1.5 * ratio.error / (1 + quotient) ** 2)
    noise = np.random.default_rng(0).normal(0, 0.1, (40, 1, 1, 1)) * np.ones((1, 3, 8, 8))
    maps = np.arange(1.0, 4.0)[:, None, None] * np.ones((3, 8, 8))
    found = replicates_of(noise * maps, 0 * noise, maps=maps, counts_scale=np.nan, variance=1e-6)
    values, errors = found.shares(REGION, np.ones(3))
    np.testing.assert_allclose(values, [1 / 6, 2 / 6, 3 / 6], rtol=0.02)
    assert np.all(errors < 0.01)
    # of nothing there are no shares
    zeros = np.zeros((8, 3, 8, 8))
    values, errors = replicates_of(zeros, zeros, maps=zeros[0], variance=0.0).shares(REGION, np.ones(3))
    assert np.isnan(values).all() and np.isinf(errors).all()


def test_maps_without_counts_have_errors():
    zeros = np.zeros((8, 1, 8, 8))
    mean = replicates_of(zeros, zeros, maps=zeros[0], counts_scale=3.0).region_mean(REGION, 0)
    assert mean.value == 0 and mean.error == pytest.approx(1.14 * 3 / 10)
    assert (
        replicates_of(zeros, zeros, maps=zeros[0], counts_scale=np.nan, variance=0.0).region_mean(REGION, 0).error == 0
    )
    # what is left of none in single precision is none
    rounded = replicates_of(zeros, zeros, maps=zeros[0] + 1e-7, counts_scale=3.0).region_mean(REGION, 0)
    assert rounded.error == pytest.approx(1.14 * 3 / 10) == rounded.measured_error
    found = replicates_of(zeros, zeros, maps=zeros[0], variance=0.0, residual=np.full((1, 8, 8), 0.5))
    mean = found.region_mean(REGION, 0)
    assert mean.value == pytest.approx(0.5, abs=0.1)
    assert mean.measured_error == pytest.approx(np.sqrt(5) / 10) and mean.error > 0.15
    zeros = np.zeros((16, 2, 8, 8))
    # five counts of each where the maps have none
    found = replicates_of(zeros, zeros, maps=zeros[0], variance=0.0, residual=np.full((2, 8, 8), 0.5))
    ratio, (_, errors) = found.ratio(REGION, 0, 1), found.shares(REGION, np.ones(2))
    assert ratio.value == pytest.approx(1) and 0.5 < ratio.error < 0.8
    np.testing.assert_allclose(errors, ratio.error / 4)


def masked_in_part(filled=0.0, residual=0.0):
    """Bootstrap replicates with 3 of the 10 pixels of the region masked, in which they are ``filled`` off."""
    noise, counted = white(), np.ones((1, 8, 8), bool)
    noise -= noise.mean(axis=0)
    counted[0, 2, 1:4] = False
    errors = np.where(counted, 0.5 * noise, filled)
    return replicates_of(errors, np.where(counted, 0.5 * noise, 0), residual=residual * counted, counted=counted)


def test_filled_pixels_have_the_error_of_the_map():
    mean = masked_in_part(residual=2.0).region_mean(REGION, 0)
    assert mean.measured == pytest.approx(12) and mean.fused == 10
    # the part of the region that was measured moves, here by 2 in 7 of 10 pixels
    assert mean.weight > 0.7 and mean.value == pytest.approx(10 + 1.4 * mean.weight)
    mean, biased = (masked_in_part(filled, residual=2.0).region_mean(REGION, 0) for filled in (0.0, -3.0))
    assert biased.weight == pytest.approx(mean.weight) and biased.measured_error == pytest.approx(mean.measured_error)
    assert biased.value == pytest.approx(mean.value + 0.9)
    assert biased.error**2 == pytest.approx(mean.error**2 + 0.9**2)
    noise = white()
    nothing = np.zeros_like(noise)
    found = replicates_of(0.3 * noise, nothing, counted=np.zeros((1, 8, 8), bool))
    mean = found.region_mean(REGION, 0)
    assert mean.weight == 0 and np.isnan([mean.measured, mean.measured_error]).all()
    means = 0.3 * noise[:, 0][:, REGION].mean(axis=1)
    assert mean.value == pytest.approx(10 - means.mean()) and mean.error > means.std()
    assert mean.error == pytest.approx(means.std(), rel=0.05)


def test_draws_without_counts_have_no_slope():
    # all replicates draw none, and their fits differ by the image; the same but for rounding in single precision
    rng, shape = np.random.default_rng(0), (16, 1, 8, 8)
    errors = rng.normal(0, 0.01, shape).astype(np.float32)
    maps = np.full((1, 8, 8), 0.02)
    found = replicates_of(
        errors, np.float32(-0.02) - errors, maps=maps, variance=0.02, residual=np.full((1, 8, 8), 0.18)
    )
    mean = found.region_mean(REGION, 0)
    # two counts, of which 0.2 were expected
    assert 0 < mean.value < 0.25 and 0.03 < mean.error < 0.2
    assert abs(found.region(REGION, 0).corrected - 0.02) < 0.02


def test_errors_of_ratios_of_maps():
    noise = white()
    noise -= noise.mean(axis=0)
    both = np.concatenate([noise, 2 * noise], axis=1)
    maps = np.stack([np.full((8, 8), 10.0), np.full((8, 8), 20.0)])
    found = replicates_of(both, np.zeros_like(both), maps=maps, variance=np.array([1.0, 4.0])[:, None, None])
    ratio = found.ratio(REGION, 0, 1)
    assert ratio.value == pytest.approx(0.5) and ratio.error == pytest.approx(0, abs=1e-8)
    opposite = replace(found, errors=both * np.array([1, -1])[:, None, None])
    alone = found.region_mean(REGION, 0).error / 10
    assert opposite.ratio(REGION, 0, 1).error == pytest.approx(0.5 * 2 * alone)
    assert found.ratio(REGION, 1, 1).error == pytest.approx(0, abs=1e-8)
    noise = white(elements=2)
    found = replicates_of(noise, np.zeros_like(noise), maps=np.zeros((2, 8, 8)))
    assert np.isnan(found.ratio(REGION, 0, 1).value) and found.ratio(REGION, 0, 1).error == np.inf


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("part", [0.02, 0.2])
def test_a_region_chosen_by_the_map_itself_is_freed_of_the_noise_that_chose_it(part, sign):
    """The truth is 10 everywhere, and the fit averages over neighbours."""
    noise = np.random.default_rng(1).normal(0, 1, (17, 1, 48, 48))
    fitted = gaussian_filter(noise, (0, 0, 1, 1))
    maps, residual = 10 + fitted[0], noise[0] - fitted[0]
    found = replicates_of(fitted[1:], noise[1:] - fitted[1:], maps=maps, residual=residual)
    chosen = sign * maps[0] > np.quantile(sign * maps[0], 1 - part)
    plain, mean = found.counted_mean(chosen, 0), found.region_mean(chosen, 0)
    assert sign * (plain.measured - 10) > 5 * plain.measured_error
    assert abs(mean.value - 10) < 2 * mean.error < 0.6 * abs(plain.measured - 10)
    assert found.is_chosen_by(chosen, 0) == sign
    chosen[0, 0] = not chosen[0, 0]
    assert not found.is_chosen_by(chosen, 0) and not found.is_chosen_by(np.ones_like(chosen), 0)
