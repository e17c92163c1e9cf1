"""The calibrated problem: units, noise, forward model, masks, and that it turns, scales and permutes with the data."""

from dataclasses import replace

import numpy as np
import pytest
from calibrated_cases import (
    COEFFICIENTS,
    NUMBERS,
    PENALTIES,
    TURNS,
    count_loss,
    fused,
    haadf_loss,
    observe,
    problem_of,
    scan_of,
    settings_of,
    square_loss,
)  # fmt: skip
from convex import guide

from hyperspy_fusion.fusion.problems.base import FusionProblem
from hyperspy_fusion.fusion.selection.cross_validation import HeldOutPixels
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual
from hyperspy_fusion.fusion.solvers.primal_dual_state import PrimalDualState
from hyperspy_fusion.fusion.terms import noise_estimation as noises
from hyperspy_fusion.fusion.terms.haadf_model import LinearHaadfModel, haadf_noise
from hyperspy_fusion.fusion.terms.noise_estimation import estimate_variance


@pytest.fixture(scope="module")
def scan():
    return scan_of()


# ---- units -------------------------------------------------------------------------------------------


def test_a_part_without_counts_has_the_noise_of_one_count(scan):
    maps = np.stack([scan[0][0], np.zeros(scan[1].shape)])
    maps[1, 3, 5] = 1
    observed = observe(maps, scan[1], NUMBERS, settings_of(noise="poisson"))
    valid = np.stack([np.ones(scan[1].shape, bool), maps[1] == 0])
    part = observed.part(HeldOutPixels(maps, valid, ~valid, np.ones(2), np.zeros(2)))
    np.testing.assert_allclose(part.noise.unit, observed.noise.unit)
    assert part.noise.unit[1] == pytest.approx(maps[1].size ** -0.5)


@pytest.mark.parametrize("noise, deviation", [
    ("poisson", lambda m: np.sqrt(m.mean())), ("shifted_poisson", lambda m: np.sqrt(m.mean() + 0.3)),
    ("gaussian", lambda m: np.sqrt(estimate_variance(m))),
])  # fmt: skip
def test_unit_is_the_noise_of_a_typical_pixel_over_the_weight(scan, noise, deviation):
    problem = problem_of(scan, settings_of(noise=noise, lambda_reg=(0.5, 2.0)))
    expected = [deviation(m) / weight for m, weight in zip(scan[0], (0.5, 2.0), strict=True)]
    np.testing.assert_allclose(problem.scales, expected, rtol=1e-12)
    np.testing.assert_allclose(problem.initial_maps * problem.scales[:, None, None], scan[0], rtol=1e-12)
    np.testing.assert_allclose(problem.data.totals * problem.scales, scan[0].sum((1, 2)), rtol=1e-12)


@pytest.mark.parametrize("noise, options", [
    ("poisson", {"background": (0.2, 0.5)}), ("shifted_poisson", {"background": 0.4, "poisson_offset": 0.7}),
    ("gaussian", {"variance": (2.0, 5.0), "background": 0.3}),
])  # fmt: skip
@pytest.mark.parametrize("counts_scale", [1.0, 2.5])
def test_data_term_is_the_likelihood(scan, noise, options, counts_scale):
    """Differences of it, for the constant is another; against the terms of ``noise.py`` in the units of the input."""
    maps = scan[0] * counts_scale
    scaled = {k: np.asarray(v) * (counts_scale**2 if k == "variance" else counts_scale if k == "background" else 1)
              for k, v in options.items()}  # fmt: skip
    settings = settings_of(noise=noise, **{k: v.tolist() if v.ndim else float(v) for k, v in scaled.items()})
    problem = problem_of((maps, scan[1]), settings)
    background = np.broadcast_to(scaled["background"], 2)
    x, other = maps + 0.7 * counts_scale, np.roll(maps, 3, 1) + 0.1 * counts_scale

    def loss(x):
        if noise == "gaussian":
            return square_loss(x, maps - background[:, None, None], np.broadcast_to(scaled["variance"], 2))
        return count_loss(x, maps, counts_scale, background / counts_scale, options.get("poisson_offset", 0.0))

    units = problem.scales[:, None, None]
    actual = problem.data.value(x / units) - problem.data.value(other / units)
    np.testing.assert_allclose(actual, loss(x) - loss(other), rtol=1e-9)


def test_perfect_fit_of_the_maps_costs_nothing(scan):
    for noise in ("poisson", "shifted_poisson", "gaussian"):
        problem = problem_of(scan, settings_of(noise=noise))
        np.testing.assert_allclose(problem.data.value(problem.initial_maps.astype(float)), 0, atol=1e-8)


@pytest.mark.parametrize("lambda_haadf", [0.25, 1.0])
def test_haadf_term_is_that_of_the_forward_model(scan, lambda_haadf):
    problem = problem_of(scan, settings_of(lambda_haadf=lambda_haadf))
    x = scan[0] + 0.5
    expected = lambda_haadf * haadf_loss(problem.forward_model, x, scan[1], problem.calibration.sigma)
    np.testing.assert_allclose(problem.haadf_term.value(x / problem.scales[:, None, None]), expected, rtol=1e-10)
    assert problem.lambda_haadf == lambda_haadf


def test_no_weight_is_no_haadf_term(scan):
    problem = problem_of(scan, settings_of(lambda_haadf=0))
    assert problem.haadf_term.value(problem.initial_maps) == 0 and problem.haadf_term.weights.size == 0


@pytest.mark.parametrize("kind", ["guided", "directional"])
def test_guide_is_the_image_within_its_range(scan, kind):
    problem = problem_of(scan, settings_of(regularization=kind, guide_blur=1.1, eta=0.6))
    expected = guide(scan[1], 1.1)
    if kind == "directional":
        expected = np.sqrt(0.6) * expected / np.sqrt((expected**2).sum(0) + 0.003**2)
    np.testing.assert_allclose(problem.penalty.guide, expected, atol=1e-12)


def test_weights_of_the_slopes(scan):
    assert problem_of(scan, settings_of(regularization="guided")).penalty.second_order == 0.03
    assert problem_of(scan, settings_of(regularization="tgv")).penalty.second_order == 0.5
    assert problem_of(scan, settings_of(regularization="tgv", second_order=1.2)).penalty.second_order == 1.2


def test_problem_satisfies_the_protocol(scan):
    problem = problem_of(scan)
    assert isinstance(problem, FusionProblem) and problem.of_largest_weight is problem
    state = PrimalDualState.of(problem)
    (single,), weights = problem.fits(state)
    assert single == (problem, state) and weights.shape == (1, 2) and np.all(weights == 1)
    np.testing.assert_array_equal(state.z, problem.initial_maps)
    result, other = problem.solve(settings_of(max_iter=30))
    again = problem.start(other)
    np.testing.assert_array_equal(again.z, other.z)
    assert again is not other and result.n_iter == 30 and again.n_iter == 0


@pytest.mark.parametrize("kind, lambda_haadf, uses", [("tv", 0, False), ("guided", 0, True), ("tv", 1, True)])
def test_image_is_used_by_its_term_or_as_guide(scan, kind, lambda_haadf, uses):
    assert problem_of(scan, settings_of(regularization=kind, lambda_haadf=lambda_haadf)).uses_haadf is uses


# ---- noise -------------------------------------------------------------------------------------------


def test_automatic_choice_of_the_noise(scan):
    maps, haadf = scan
    counts = problem_of(scan)
    assert counts.noise.kind == "shifted_poisson" and "whole counts" in counts.noise.sentence
    np.testing.assert_array_equal(counts.noise.counts_scale, 1)
    assert np.isnan(counts.noise.variance).all()
    measured = problem_of((maps + 1e-3 * np.sqrt(2 + np.arange(45)) * np.sin(np.arange(45)), haadf))
    assert measured.noise.kind == "gaussian" and np.isnan(measured.noise.counts_scale).all()
    np.testing.assert_allclose(measured.noise.variance, [estimate_variance(m) for m in maps], rtol=0.05)
    negative = problem_of((maps - 1, haadf))
    assert negative.noise.kind == "gaussian" and "Negative values" in negative.noise.sentence


def test_the_value_of_a_count_is_looked_for_once(scan, monkeypatch):
    calls, found = [], noises._find_counts_scale
    monkeypatch.setattr(noises, "_find_counts_scale", lambda *map: calls.append(None) or found(*map))
    problem = problem_of(scan)
    assert problem.noise.kind == "shifted_poisson" and len(calls) == len(scan[0])


@pytest.mark.parametrize("noise", ["poisson", "gaussian"])
def test_noise_can_be_chosen(scan, noise):
    problem = problem_of(scan, settings_of(noise=noise))
    assert problem.noise.kind == noise and "as given" in problem.noise.sentence


def test_variance_can_be_given(scan):
    problem = problem_of(scan, settings_of(noise="gaussian", variance=(2.0, 3.0)))
    np.testing.assert_array_equal(problem.noise.variance, [2, 3])


def test_value_of_a_count_is_found_for_every_map(scan):
    problem = problem_of((scan[0] * np.array([0.25, 7.0])[:, None, None], scan[1]))
    np.testing.assert_allclose(problem.noise.counts_scale, [0.25, 7], rtol=1e-6)


def test_counts_without_a_value_of_one_are_warned_of(scan):
    maps = scan[0] + 0.01 * np.random.default_rng(3).random(scan[0].shape)
    problem = problem_of((maps, scan[1]), settings_of(noise="poisson"))
    np.testing.assert_array_equal(problem.noise.counts_scale, 1)
    (found,) = problem.diagnostics
    assert found.code == "counts-scale-unknown" and found.elements == ("map 0", "map 1")
    assert not problem_of(scan).diagnostics


def test_net_counts_within_the_shift_are_allowed(scan):
    maps = scan[0] - 0.25
    problem = problem_of((maps, scan[1]), settings_of(noise="shifted_poisson", poisson_offset=0.3))
    assert problem.data.beta.min() >= 0
    with pytest.raises(ValueError, match=r"map of map 0, map 1 goes down to -0.25 counts: it must not go below -0.2;"):
        problem_of((maps, scan[1]), settings_of(noise="shifted_poisson", poisson_offset=0.2))
    with pytest.raises(ValueError, match=r"noise is 'poisson' and the map of O goes down.*noise='gaussian'"):
        problem_of((np.stack([scan[0][0], maps[1]]), scan[1]), settings_of(noise="poisson"), elements=["Fe", "O"])


@pytest.mark.parametrize("name, options", [
    ("lambda_reg", {}), ("background", {}), ("haadf_coefficients", {}), ("variance", {"noise": "gaussian"}),
    ("k_factors", {"haadf_coefficients": "z_power"}),
])  # fmt: skip
def test_settings_per_element_must_be_as_many_as_maps(scan, name, options):
    settings = settings_of(**(options | {name: (1.0, 2.0, 3.0)}))
    with pytest.raises(ValueError, match=rf"{name} has 3 values and there are 2 maps \(Fe, O\)"):
        problem_of(scan, settings, elements=["Fe", "O"])


def test_total_below_the_background_is_warned_of_and_not_kept(scan):
    problem = problem_of(scan, settings_of(noise="shifted_poisson", background=(0.0, 50.0)), elements=["Fe", "O"])
    assert np.isfinite(problem.data.totals[0]) and np.isnan(problem.data.totals[1])
    assert [(d.code, d.elements) for d in problem.diagnostics] == [("total-not-kept", ("O",))]
    result, _ = primal_dual(problem, settings_of(max_iter=50))
    assert np.isfinite(result.maps).all()


@pytest.mark.parametrize("shape", [(1, 30), (30, 1)])
def test_one_line_has_no_cells(shape):
    scan = scan_of(shape)
    for kind in PENALTIES[:-1]:
        with pytest.raises(ValueError, match=rf"{shape[0]} x {shape[1]} pixels and regularization='{kind}' needs"):
            problem_of(scan, settings_of(regularization=kind))
    settings = settings_of(regularization="none", max_iter=50)
    assert np.isfinite(fused(scan, settings).maps).all()
    # kernels are compiled anew for arrays that are read-only
    data = problem_of(scan, settings).data
    assert all(a.flags.writeable for a in (data.beta, data.slope, data.delta))


# ---- the HAADF forward model ---------------------------------------------------------------------------------


def test_given_weights_leave_the_offset_to_be_fitted(scan):
    problem = problem_of(scan, settings_of(background=(0.1, 0.2)))
    expected = scan[1].mean() - 28 * (scan[0][0].mean() - 0.1) - 9 * (scan[0][1].mean() - 0.2)
    np.testing.assert_allclose(problem.forward_model.offset, expected, rtol=1e-12)
    np.testing.assert_array_equal(problem.forward_model.weights, COEFFICIENTS)
    assert np.isnan(problem.calibration.coefficient_errors).all() and np.isnan(problem.calibration.offset_error)


@pytest.mark.parametrize("gamma, factors", [(1.7, None), (2.0, None), (1.7, (1.0, 3.0))])
def test_weights_from_the_atomic_numbers(scan, gamma, factors):
    problem = problem_of(scan, settings_of(haadf_coefficients="z_power", z_exponent=gamma, k_factors=factors))
    expected = (26 / 8) ** gamma * (factors[0] / factors[1] if factors else 1)
    np.testing.assert_allclose(
        problem.forward_model.weights[0] / problem.forward_model.weights[1], expected, rtol=1e-12
    )
    assert np.isfinite(problem.calibration.coefficient_errors).all() and problem.calibration.offset_error > 0


def test_fitted_weights_are_those_of_the_image():
    problem = problem_of(scan_of((64, 80), counts=20), settings_of(haadf_coefficients="fit"))
    expected = np.array(COEFFICIENTS) * 2 / 20
    assert np.all(np.abs(problem.forward_model.weights - expected) < 4 * problem.calibration.coefficient_errors)
    np.testing.assert_allclose(problem.forward_model.weights, expected, rtol=0.05)
    np.testing.assert_allclose(problem.forward_model.offset, 500, atol=4 * problem.calibration.offset_error)


@pytest.mark.parametrize("weights", ["fit", COEFFICIENTS])
def test_background_is_in_the_offset(scan, weights):
    """The image is explained by maps without it."""
    plain, net = (problem_of(scan, settings_of(haadf_coefficients=weights, background=b)) for b in (0.0, (0.3, 0.1)))
    expected = plain.forward_model.offset + 0.3 * plain.forward_model.weights[0] + 0.1 * plain.forward_model.weights[1]
    np.testing.assert_allclose(net.forward_model.weights, plain.forward_model.weights, rtol=1e-12)
    np.testing.assert_allclose(net.forward_model.offset, expected, rtol=1e-12)


def test_image_that_the_forward_model_explains_counts_by_its_noise():
    """About: the dispersion is the largest of a few estimates, and the shift is made up for."""
    scan = scan_of((64, 80), counts=40)
    problem = problem_of(scan, settings_of(haadf_coefficients=tuple(np.array(COEFFICIENTS) / 20), noise="poisson"))
    assert 9 < problem.calibration.sigma < 20 and problem.calibration.sigma >= haadf_noise(scan[1])


def test_image_that_the_forward_model_does_not_explain_counts_for_less():
    maps, haadf = scan_of((64, 80), counts=40)
    settings = settings_of(haadf_coefficients=tuple(np.array(COEFFICIENTS) / 20), noise="poisson")
    plain = problem_of((maps, haadf), settings).calibration.sigma
    y, x = np.mgrid[:64, :80]
    for amplitude in (20, 80):
        missing = amplitude * np.sin(y / 10) * np.sin(x / 10)
        sigma = problem_of((maps, haadf + missing), settings).calibration.sigma
        # contrast of a few pixels in size counts as that many fewer witnesses
        assert sigma > 3 * np.std(missing) > plain / 3


def test_shift_does_not_let_the_image_gain(scan):
    """Counts of mean m that are made to count as m + shift: the image, too, by the same factor."""
    poisson = problem_of(scan, settings_of(noise="poisson"))
    shifted = problem_of(scan, settings_of(noise="shifted_poisson", poisson_offset=0.5))
    weights, means = np.array(COEFFICIENTS), scan[0].mean((1, 2))
    expected = np.sum(weights**2 * (means + 0.5)) / np.sum(weights**2 * means)
    np.testing.assert_allclose(shifted.calibration.sigma / poisson.calibration.sigma, np.sqrt(expected), rtol=1e-12)


# ---- symmetry ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PENALTIES)
def test_fit_turns_with_the_scan(scan, kind):
    """Of the same iterations: not even the path has a direction."""
    settings = settings_of(regularization=kind, max_iter=150)
    plain = fused(scan, settings)
    for turn in TURNS.values():
        turned = fused(tuple(turn(a) for a in scan), settings)
        np.testing.assert_allclose(turned.maps, turn(plain.maps), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("turn, weights", [("mirrored", "fit"), ("transposed", "z_power")])
def test_fitted_model_turns_with_the_scan(turn, weights):
    """Within a fraction of its standard error: the fit averages over squares and tiles that begin at a corner."""
    scan, settings = scan_of((48, 64)), settings_of(haadf_coefficients=weights)
    plain, turned = problem_of(scan, settings), problem_of(tuple(TURNS[turn](a) for a in scan), settings)
    assert np.all(
        np.abs(turned.forward_model.weights - plain.forward_model.weights) < 0.3 * plain.calibration.coefficient_errors
    )
    np.testing.assert_allclose(turned.calibration.sigma, plain.calibration.sigma, rtol=0.03)


@pytest.mark.parametrize("kind, joint", [*((kind, True) for kind in PENALTIES), ("tgv", False), ("guided", False)])
def test_elements_can_be_permuted(scan, kind, joint):
    settings = settings_of(regularization=kind, joint=joint, lambda_reg=(0.5, 0.8), background=(0.1, 0.2), max_iter=150)
    swapped = replace(settings, lambda_reg=(0.8, 0.5), background=(0.2, 0.1), haadf_coefficients=COEFFICIENTS[::-1])
    other = fused((scan[0][::-1], scan[1]), swapped, numbers=NUMBERS[::-1])
    np.testing.assert_allclose(other.maps[::-1], fused(scan, settings).maps, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("weights", ["z_power", "fit"])
def test_elements_can_be_permuted_with_a_fitted_model(scan, weights):
    settings = settings_of(haadf_coefficients=weights)
    plain, other = problem_of(scan, settings), problem_of((scan[0][::-1], scan[1]), settings, NUMBERS[::-1])
    np.testing.assert_allclose(other.forward_model.weights[::-1], plain.forward_model.weights, rtol=1e-6)
    np.testing.assert_allclose(other.calibration.sigma, plain.calibration.sigma, rtol=1e-6)


@pytest.mark.parametrize("kind, noise", [
    ("tv", "auto"), ("directional", "poisson"), ("tgv", "gaussian"), ("guided", "auto"), ("none", "poisson"),
])  # fmt: skip
def test_scale_of_the_maps_does_not_matter(scan, kind, noise):
    """Ten times the values and the same settings: the same picture."""
    settings = settings_of(regularization=kind, noise=noise, haadf_coefficients="z_power", max_iter=100)
    plain, scaled = fused(scan, settings), fused((10 * scan[0], scan[1]), settings)
    np.testing.assert_allclose(scaled.maps / 10, plain.maps, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scaled.history.total, plain.history.total, rtol=1e-6)


@pytest.mark.parametrize("noise, weights", [("auto", "fit"), ("gaussian", "z_power")])
def test_each_map_can_have_a_unit_of_its_own(scan, weights, noise):
    """Where the k-factors know it."""
    units = np.array([10.0, 0.5])
    settings = settings_of(noise=noise, haadf_coefficients=weights, max_iter=100)
    plain, other = fused(scan, settings), fused((scan[0] * units[:, None, None], scan[1]),
                                            replace(settings, k_factors=tuple(1 / units)))  # fmt: skip
    np.testing.assert_allclose(other.maps / units[:, None, None], plain.maps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", ["z_power", "fit"])
def test_gain_and_level_of_the_image_do_not_matter(scan, weights):
    settings = settings_of(haadf_coefficients=weights, max_iter=100)
    plain, other = fused(scan, settings), fused((scan[0], 0.01 * scan[1] - 3), settings)
    np.testing.assert_allclose(other.maps, plain.maps, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other.modelled_haadf, 0.01 * plain.modelled_haadf - 3, rtol=1e-5)


def test_dose_does_not_change_what_a_weight_means():
    """Means of the truth as counts: ten times the dose has a noise of sqrt(10) times, and so has the unit."""
    maps, haadf = scan_of()
    unit = problem_of((maps, haadf), settings_of(noise="poisson")).scales
    more = problem_of((10 * maps + (maps == 0), haadf), settings_of(noise="poisson"))
    means = (10 * maps + (maps == 0)).mean((1, 2)) / maps.mean((1, 2))
    np.testing.assert_array_equal(more.noise.counts_scale, 1)
    np.testing.assert_allclose(more.scales, unit * np.sqrt(means), rtol=1e-12)


@pytest.mark.parametrize("kind", ["tv", "guided"])
def test_field_of_view_does_not_matter(kind):
    """Four mirror images of a scan make one of the same statistics; away from their seams it looks the same."""
    maps, haadf = scan_of((32, 32))
    mirrored = tuple(np.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, 32), (0, 32)], "symmetric") for a in (maps, haadf))
    settings = settings_of(regularization=kind, tol=1e-4)
    one, four = problem_of((maps, haadf), settings), problem_of(mirrored, settings)
    np.testing.assert_allclose(four.scales, one.scales, rtol=1e-12)
    np.testing.assert_allclose(four.forward_model.offset, one.forward_model.offset, rtol=1e-12)
    plain, large = (
        fused((maps, haadf), replace(settings, lambda_haadf=0)),
        fused(mirrored, replace(settings, lambda_haadf=0)),
    )
    difference = np.abs(large.maps[:, :24, :24] - plain.maps[:, :24, :24])
    assert difference.max() < 0.1 * np.std(plain.maps) and difference.mean() < 0.01 * np.std(plain.maps)
    np.testing.assert_allclose(large.history.total[-1], 4 * plain.history.total[-1], rtol=0.02)


def test_weight_of_one_element_smooths_that_element(scan):
    """Each for itself: what the other's weight is does not matter."""
    settings = settings_of(regularization="tv", joint=False, lambda_haadf=0, tol=1e-7)
    plain, other = fused(scan, settings), fused(scan, replace(settings, lambda_reg=(2.0, 0.5)))
    np.testing.assert_allclose(other.maps[1], plain.maps[1], atol=2e-2)
    assert np.abs(np.diff(other.maps[0])).sum() < 0.7 * np.abs(np.diff(plain.maps[0])).sum()


# ---- masked pixels ------------------------------------------------------------------------


@pytest.fixture
def holes(scan):
    """Pixels of the first map, of both, and of the image."""
    valid, haadf_valid = np.ones(scan[0].shape, bool), np.ones(scan[1].shape, bool)
    valid[0, 5:9, 7:11] = False
    valid[:, 20, 3:6] = False
    haadf_valid[25:28, 30:33] = False
    return {"valid": valid, "haadf_valid": haadf_valid}


@pytest.mark.parametrize("kind, noise, weights", [
    ("tv", "auto", "z_power"), ("directional", "poisson", COEFFICIENTS), ("tgv", "gaussian", COEFFICIENTS),
    ("guided", "auto", "fit"),
])  # fmt: skip
def test_values_of_masked_pixels_change_nothing(scan, holes, kind, noise, weights):
    settings = settings_of(regularization=kind, noise=noise, haadf_coefficients=weights, max_iter=50)
    plain = fused(scan, settings, **holes)
    for value in (np.nan, 1e9, -5.5):
        maps, haadf = np.where(holes["valid"], scan[0], value), np.where(holes["haadf_valid"], scan[1], value)
        other = fused((maps, haadf), settings, **holes)
        np.testing.assert_array_equal(other.maps, plain.maps)
        np.testing.assert_array_equal(other.history.total, plain.history.total)
    assert np.abs(fused(scan, settings).maps - plain.maps).max() > 1e-3


def test_data_term_is_over_the_valid_pixels(scan, holes):
    for noise in ("poisson", "shifted_poisson", "gaussian"):
        settings = settings_of(noise=noise, variance=2.0 if noise == "gaussian" else None)
        problem = problem_of(scan, settings, **holes)
        masked = ~holes["valid"]
        assert not problem.data.beta[masked].any() and not problem.data.slope[masked].any()
        x, other, units = scan[0] + 0.5, scan[0] + 1.5, problem.scales[:, None, None]
        shift = {"shifted_poisson": 0.3}.get(noise, 0.0)
        options = {"variance": 2.0} if noise == "gaussian" else {"shift": shift}
        loss = square_loss if noise == "gaussian" else count_loss
        expected = np.subtract(*(loss(m, scan[0], valid=holes["valid"], **options) for m in (x, other)))
        actual = problem.data.value(x / units) - problem.data.value(other / units)
        np.testing.assert_allclose(actual, expected, rtol=1e-9)
        expected = haadf_loss(problem.forward_model, x, scan[1], problem.calibration.sigma, holes["haadf_valid"])
        np.testing.assert_allclose(problem.haadf_term.value(x / units), expected, rtol=1e-9)


def test_units_and_totals_are_of_the_valid_pixels(scan, holes):
    problem = problem_of(scan, settings_of(noise="poisson", lambda_reg=1.0), **holes)
    means = [m[v].mean() for m, v in zip(scan[0], holes["valid"], strict=True)]
    np.testing.assert_allclose(problem.scales, np.sqrt(means), rtol=1e-12)
    both = holes["valid"].all(axis=0) & holes["haadf_valid"]
    np.testing.assert_allclose(
        problem.forward_model.offset, (scan[1] - np.tensordot(COEFFICIENTS, scan[0], 1))[both].mean(), rtol=1e-12
    )
    result, _ = primal_dual(problem, settings_of(max_iter=60))
    for image, measured, valid in zip(result.maps, scan[0], holes["valid"], strict=True):
        np.testing.assert_allclose(image[valid].sum(), measured[valid].sum(), rtol=1e-10)


def ramp_with_a_hole(slope):
    y, x = np.mgrid[:24, :24]
    mean = 400 + slope * (2.0 * x - y)
    valid = np.ones((1, 24, 24), bool)
    valid[0, 10:14, 9:13] = False
    return mean, valid


@pytest.mark.parametrize("kind, slope", [("directional", 0), ("tgv", 8)])
def test_hole_is_filled_in_from_around_it(kind, slope):
    """Constant maps by all, ramps by what takes them for granted; without the HAADF term."""
    mean, valid = ramp_with_a_hole(slope)
    rng = np.random.default_rng(0)
    maps = np.where(valid, rng.poisson(mean)[None], np.nan).astype(float)
    settings = settings_of(
        regularization=kind, lambda_haadf=0, noise="poisson", haadf_coefficients=(1.0,), lambda_reg=4.0, tol=1e-6
    )
    image = mean + rng.normal(0, 0.5, mean.shape) if slope else rng.normal(0, 1, mean.shape)
    result = fused((maps, image), settings, numbers=(26,), valid=valid)
    np.testing.assert_allclose(result.maps[~valid], mean[~valid[0]], rtol=0.03)


def test_hole_is_filled_in_from_the_image(scan):
    """What one map hides there, the image and the other map show."""
    mean, valid = ramp_with_a_hole(0)
    y, x = np.mgrid[:24, :24]
    mean = mean + 200 * ((y - 12) ** 2 + (x - 11) ** 2 < 4)
    rng = np.random.default_rng(0)
    maps = rng.poisson(np.stack([mean, np.full_like(mean, 300)])).astype(float)
    valid = np.concatenate([valid, np.ones_like(valid)])
    haadf = 10 * mean + 3 * 300 + rng.normal(0, 50, mean.shape)
    settings = settings_of(haadf_coefficients=(10.0, 3.0), regularization="tv", noise="poisson", tol=1e-6)
    result = fused((np.where(valid, maps, np.nan), haadf), settings, valid=valid)
    assert np.corrcoef(result.maps[0][~valid[0]], mean[~valid[0]])[0, 1] > 0.9


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_result_is_of_the_forward_model_without_noise_in_it(dtype):
    """A dose and an image so good that the truth is known: the fit is the truth."""
    rng = np.random.default_rng(2)
    truth = np.stack([1e6 * (1 + rng.random((16, 16))), 2e6 * (1 + rng.random((16, 16)))])
    forward_model = LinearHaadfModel(np.array(COEFFICIENTS), 1e5)
    settings = settings_of(regularization="none", noise="poisson", dtype=np.dtype(dtype).name)
    result = fused((np.rint(truth), forward_model.image(truth)), settings)
    np.testing.assert_allclose(result.maps, truth, rtol=1e-2)


def test_arrays_of_the_kernels_are_in_c_order(scan):
    """Kernels are compiled anew for any other."""
    maps, haadf = (np.asfortranarray(a) for a in scan)
    problem = problem_of((maps, haadf), settings_of(regularization="guided"))
    term = problem.haadf_term
    for array in (problem.initial_maps, problem.data.beta, problem.data.slope, term.target, term.counted):
        assert array.flags.c_contiguous
