"""Several elastic images in one fit: optimality, coefficients, weights, what comes out, and bad input."""

import re
from dataclasses import replace

import hyperspy.api as hs
import numpy as np
import pytest
from convex import differences, lengths

import hyperspy_fusion as hf
from hyperspy_fusion import CalibratedSettings
from hyperspy_fusion.fusion.problems.calibrated import Observation
from hyperspy_fusion.fusion.terms.objective import HaadfTerm
from hyperspy_fusion.fusion.terms.scan_data import ElasticImage, ScanData


def scan(shape=(32, 32), **options):
    phantom = hf.data.atomic_columns(shape, **({"counts": 30} | options))
    return phantom, *phantom.signals(), phantom.phase()


def fused(images, maps, **options):
    model = hf.FusedMultiModal(images, maps, method="calibrated")
    model.fit(show_progressbar=False, settings=CalibratedSettings(**({"max_iter": 60, "tol": 1e-3} | options)))
    return model


@pytest.mark.parametrize("noise, strength", [("poisson", 30.0), ("gaussian", 1.0)])
def test_maps_of_three_images_are_those_of_cvxpy(noise, strength):
    """Weights of both signs, one image masked in part."""
    cp = pytest.importorskip("cvxpy")
    phantom, rng = hf.data.core_shell((8, 8), counts=8), np.random.default_rng(0)
    settings = CalibratedSettings(
        noise=noise, variance=3.0 if noise == "gaussian" else None, regularization="tv", keep_totals=False,
        dtype="float64", tol=1e-9, max_iter=5000,
    )  # fmt: skip
    given = ScanData.of(phantom.maps.astype(float), phantom.haadf, phantom.atomic_numbers)
    problem = Observation.of(given, settings).problem(settings)
    further = []
    for counted in (np.ones((8, 8)), (rng.random((8, 8)) > 0.2) * 1.0):
        weights = strength * rng.normal(size=3)
        target = np.tensordot(weights, problem.initial_maps, 1) + 3 * rng.normal(size=(8, 8))
        further.append(HaadfTerm(weights, target * counted, counted))
    problem = replace(problem, further_terms=tuple(further))
    result, state = problem.solve(settings)
    data, z = problem.data, [cp.Variable((8, 8), nonneg=True) for _ in range(3)]
    slope, delta = (np.broadcast_to(a, (3, 8, 8)) for a in (data.slope, data.delta))
    if noise == "poisson":
        logs = [cp.multiply(b, cp.log(x + d)) for x, b, d in zip(z, data.beta, delta, strict=True)]
        terms = [cp.sum(cp.multiply(s, x) - log) for x, s, log in zip(z, slope, logs, strict=True)]
    else:
        terms = [
            cp.sum(cp.multiply(s / 2, cp.square(x)) - cp.multiply(b, x))
            for x, s, b in zip(z, slope, data.beta, strict=True)
        ]
    for term in (problem.haadf_term, *further):
        residual = sum(w * x for w, x in zip(term.weights, z, strict=True)) - term.target
        terms.append(cp.sum_squares(cp.multiply(np.broadcast_to(term.counted, (8, 8)), residual)) / 2)
    edges = [(x[1:, :-1] - x[:-1, :-1], x[1:, 1:] - x[:-1, 1:], x[:-1, 1:] - x[:-1, :-1], x[1:, 1:] - x[1:, :-1])
             for x in z]  # fmt: skip
    rows = [cp.vec(edge, order="C") / np.sqrt(2) for of_map in edges for edge in of_map]
    terms.append(cp.sum(cp.norm(cp.vstack(rows), axis=0)))
    cp.Problem(cp.Minimize(sum(terms))).solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11)
    best = np.array([x.value for x in z])
    assert result.converged
    np.testing.assert_allclose(state.z, best, atol=1e-5 * best.max())
    assert lengths(differences(best), True).sum() == pytest.approx(problem.penalty.value(best, None))


def test_coefficients_of_a_dark_image_are_found_with_their_sign():
    """A bright-field image falls with the maps; a ramp of it is removed."""
    phantom, maps, haadf, phase = scan((36, 36), counts=300)
    y, x = np.indices(phase.data.shape)
    dark = phase._deepcopy_with_new_data(3 - phase.data + 0.02 * x - 0.01 * y)
    found = fused([haadf, dark], maps, remove_ramp=[False, True], max_iter=1).as_signal().metadata.Fusion
    z = np.array(phantom.atomic_numbers) ** 0.7
    truth = -z / np.tensordot(z, phantom.truth, 1).max()
    own, errors = (found[name].reshape(2, 3)[1] for name in ("image_coefficients", "image_coefficient_errors"))
    assert np.all(np.abs(own - truth) < np.minimum(4 * errors, 0.05 * np.abs(truth)))
    np.testing.assert_array_equal(found.image_coefficients[:3], found.haadf_coefficients)


def test_an_image_that_falls_with_the_elements_counts_as_much_as_its_inverse():
    maps, haadf, phase = scan((48, 48), counts=4)[1:]
    images = phase, phase._deepcopy_with_new_data(2 - phase.data)
    fits = [fused([haadf, image], maps, max_iter=20).as_signal() for image in images]
    rising, falling = (one.metadata.Fusion.image_coefficients.reshape(2, 3)[1] for one in fits)
    np.testing.assert_allclose(falling, -rising, rtol=1e-3)
    np.testing.assert_allclose(fits[1].data, fits[0].data, atol=1e-2)


@pytest.mark.parametrize("ramp, coefficients", [(0.0, "z_power"), (1.0, "fit"), (1.0, "given")])
def test_a_wedge_of_the_maps_is_no_ramp(ramp, coefficients):
    phantom = hf.data.gradient_alloy((48, 48), counts=60)
    y, x = np.indices((48, 48)) / 48 - 0.5
    given = tuple(phantom.haadf_weights) if coefficients == "given" else coefficients
    settings = CalibratedSettings(remove_ramp=True, haadf_coefficients=given)
    scan = ScanData.of(phantom.maps.astype(float), phantom.haadf + ramp * (x - y), phantom.atomic_numbers)
    found = Observation.of(scan, settings)
    left = (found.scan.haadf - phantom.haadf).ravel()
    slopes = np.linalg.lstsq(np.stack([np.ones(left.size), y.ravel(), x.ravel()], axis=1), left)[0][1:]
    np.testing.assert_allclose(slopes, 0, atol=0.1)  # that of the wedge is 0.45
    np.testing.assert_allclose(found.calibration.forward_model.weights[0], phantom.haadf_weights[0], rtol=0.2)


@pytest.mark.parametrize("is_wedge", [True, False])
def test_a_ramp_that_may_be_a_wedge_is_reported(is_wedge):
    rng = np.random.default_rng(0)
    truth = 5.0 + 10 * np.indices((2, 48, 48))[2] / 47
    if not is_wedge:
        truth[:, 12:30, 12:30] += 20
    scan = ScanData.of(rng.poisson(truth), 0.1 * truth[0] + rng.normal(0, 0.02, (48, 48)), (26, 28))
    image = ElasticImage("Phase", scan.haadf, scan.haadf_valid)
    settings = CalibratedSettings(remove_ramp=[False, True], haadf_coefficients=["z_power", "z_power"])
    diagnostics = Observation.of(replace(scan, further=(image,)), settings).problem(settings).diagnostics
    found = [d for d in diagnostics if d.code == "haadf-ramp-unsure"]
    assert len(found) == is_wedge and all("Phase image" in d.sentence for d in found)


def test_results_of_several_images():
    """Modelled images, residuals, gain, attribution and errors use all images."""
    phantom, maps, haadf, phase = scan((24, 24))
    two, one = (fused(images, maps, lambda_haadf=16) for images in ([haadf, phase], haadf))
    model = two.modelled_haadf(image=1)
    assert model.metadata.General.title == "Modelled Phase"
    np.testing.assert_allclose(two.residual(image=1).data, phase.data - model.data)
    assert two.residual(1).data.std() < 0.5 * phase.data.std()
    parts = two.attribution()
    change = sum(part.data for part in parts.values())
    np.testing.assert_allclose(change, two.as_signal().data - two.maps.data, atol=1e-3)
    assert np.abs(parts["Phase"].get_map("O").data).max() > 0
    gain, alone = (m.attainable_gain().get_map("O").data for m in (two, one))
    assert gain.min() >= 1 and np.median(gain) > 1.1 * np.median(alone)
    assert two.standard_errors(2, show_progressbar=False).get_map("O").data.mean() > 0
    assert two.as_signal().metadata.Fusion.image_names == ["HAADF", "Phase"]


def test_further_images_that_show_nothing_change_nothing():
    """A constant image, and one of weight 0, are no images; a first one that is constant leaves the others."""
    _, maps, haadf, phase = scan()
    flat = phase._deepcopy_with_new_data(np.ones((32, 32)))
    alone = fused(haadf, maps).as_signal().data
    np.testing.assert_array_equal(fused([haadf], maps).as_signal().data, alone)
    np.testing.assert_array_equal(fused([haadf, phase], maps, lambda_haadf=[1, 0]).as_signal().data, alone)
    model = fused([haadf, flat], maps)
    np.testing.assert_array_equal(model.as_signal().data, alone)
    assert [d.sentence for d in model.diagnostics if d.code == "haadf-constant"][0].startswith("The Phase image is")
    assert fused([flat, phase], maps).attribution()["Phase"].data.any()


def test_saturated_and_missing_pixels_of_a_further_image():
    _, maps, haadf, phase = scan()
    phase.data[3:6, 4:8] = np.nan
    phase.data = np.minimum(phase.data, np.nanquantile(phase.data, 0.9))
    model = fused([haadf, phase], maps)
    codes = {d.code: d.sentence for d in model.diagnostics}
    assert "Phase image" in codes["missing-haadf-pixels"] and "Phase image" in codes["saturated-haadf-pixels"]
    assert np.isfinite(model.as_signal().data).all() and np.isfinite(model.residual(1).data).any()


def test_an_image_of_another_field_has_no_weight():
    phantom, maps, haadf, phase = scan((32, 32), counts=4, seed=2)
    other = hf.data.core_shell((32, 32)).phase().data
    model = hf.FusedMultiModal([haadf, phase._deepcopy_with_new_data(other)], maps)
    model.fit(show_progressbar=False)
    assert model.as_signal().metadata.Fusion.image_weights[1] == 0


@pytest.mark.nightly
def test_light_element_gains_by_a_phase_image_and_loses_nothing_by_noise():
    phantom, maps, haadf, phase = scan((64, 64), counts=4)
    noise = phase._deepcopy_with_new_data(np.random.default_rng(5).normal(size=(64, 64)))

    def psnr(*images):
        model = hf.FusedMultiModal([haadf, *images], maps)
        model.fit(show_progressbar=False)
        found = model.as_signal()
        return hf.data.psnr(found.get_map("O").data, phantom.truth[2]), found.metadata.Fusion

    alone, _ = psnr()
    assert psnr(phase)[0] > alone + 2
    with_noise, fit = psnr(noise)
    assert with_noise > alone - 0.1 and fit.image_weights[1] == 0


def bad(name):
    _, maps, haadf, phase = scan()
    coarse = hs.signals.Signal2D(np.random.default_rng(0).random((20, 20)))
    return {
        "published": lambda: hf.fuse(maps, [haadf, phase], method="published"),
        "four": lambda: hf.fuse(maps, [haadf, phase, phase, phase]),
        "none": lambda: hf.fuse(maps, []),
        "twice": lambda: hf.fuse(maps, [haadf, haadf.deepcopy()]),
        "inverted": lambda: hf.fuse(maps, [haadf, phase, phase._deepcopy_with_new_data(30000 - 500 * phase.data)]),
        "rounded": lambda: hf.fuse(maps, [haadf, haadf._deepcopy_with_new_data(
            np.rint(haadf.data * (60000 / haadf.data.max())).astype("uint16"))], method="calibrated"),
        "another grid": lambda: hf.fuse(maps, [haadf, coarse]),
        "not alike": lambda: hf.fuse(maps, [haadf, phase._deepcopy_with_new_data(
            np.random.default_rng(0).random((32, 32)))], register=["calibration", "shift"]),
        "ways": lambda: hf.fuse(maps, [haadf, phase], register=["shift"]),
        "weights": lambda: hf.fuse(maps, [haadf, phase], lambda_haadf=[1, 1, 0]),
        "an array": lambda: hf.fuse(maps, [haadf, phase.data]),
        "stack": lambda: hf.fuse(hs.stack([maps[0]] * 2), [hs.stack([haadf] * 2), phase]),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    "name, says",
    [
        ("published", "fuses one image, and 2 were given"),
        ("four", "at most 3 can be fused"),
        ("none", "no image in the list"),
        ("twice", "'HAADF' and 'image 2' are equal up to a gain and an offset: pass each image once"),
        ("inverted", "'Phase' and 'image 3' are equal"),
        ("rounded", "'HAADF' and 'image 2' are equal"),
        ("another grid", "20"),
        ("not alike", "the Phase image"),
        ("ways", "register has 1 values for 2 images"),
        ("weights", "lambda_haadf has 3 values for 2 images"),
        ("an array", "A HyperSpy signal is needed"),
        ("stack", "A stack is fused with one image"),
    ],
)
def test_bad_input_is_one_sentence(name, says):
    with pytest.raises((ValueError, TypeError), match=says) as caught:
        bad(name)()
    assert str(caught.value).count(". ") == 0


def test_one_setting_for_each_image():
    settings = CalibratedSettings(haadf_coefficients=["z_power", {"O": -1, "Sr": 2}], z_exponent=[1.7, 0.7])
    assert settings.of_image(1).haadf_coefficients == {"O": -1, "Sr": 2} and settings.of_image(1).z_exponent == 0.7
    assert CalibratedSettings(haadf_coefficients=(1, 2)).of_image(1).haadf_coefficients == "fit"
    auto = hf.AutoSettings(lambda_haadf=["auto", 0.5])
    assert auto.chosen(lambda_haadf=(4.0, 1.0)).lambda_haadf == (4.0, 0.5)
    for wrong in ({"haadf_coefficients": ["z_power", "z"]}, {"z_exponent": [1, 9]}, {"remove_ramp": [1, 0]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CalibratedSettings(**wrong)


def test_images_of_a_scan_in_turn():
    first, second = np.zeros((2, 2)), np.ones((2, 2))
    given = ScanData.of(np.ones((1, 2, 2)), first, [8])
    given = replace(given, further=(ElasticImage("Phase", second, np.ones((2, 2), bool)),))
    assert given.with_image(1).haadf is second and not given.with_image(0).further
    assert given.replaced(1, first).further[0].image is first and given.replaced(0, second).haadf is second


def test_residuals_are_less_the_ramp_in_results_and_their_crops(tmp_path):
    _, maps, haadf, _ = scan((24, 24))
    y, x = np.indices(haadf.data.shape)
    sloping = haadf._deepcopy_with_new_data(haadf.data + haadf.data.std() * (0.2 * x - 0.1 * y))
    model = fused(sloping, maps, remove_ramp=True)
    expected, result = model.residual().data, model.as_signal()
    atol = 1e-4 * np.ptp(sloping.data)
    np.testing.assert_allclose(result.residual().data, expected, atol=atol)
    np.testing.assert_allclose(result.isig[5:20, 3:15].residual().data, expected[3:15, 5:20], atol=atol)
    stack = hs.stack([sloping, sloping])
    series = hf.FusedMultiModal(stack, [hs.stack([one, one]) for one in maps], method="calibrated")
    series.fit(settings=model.settings, show_progressbar=False)
    np.testing.assert_allclose(series.residual().data[1], expected, atol=atol)


@pytest.mark.parametrize(
    "options",
    [{}, {"remove_ramp": (False, True)}, {"haadf_coefficients": ("z_power", (-1.0, -1.0, -1.0))}],
)
def test_results_of_several_images_are_not_fused_again_of_the_first_alone(options):
    _, maps, haadf, phase = scan((24, 24))
    result = fused([haadf, phase], maps, max_iter=2, **options).as_signal()
    for call in (result.compare_without_haadf, lambda: result.explore(lambda_reg=[1.0])):
        with pytest.raises(ValueError, match="several elastic images"):
            call()


def test_any_title_of_an_image_comes_back_from_a_file(tmp_path):
    _, maps, haadf, phase = scan((16, 16))
    phase.metadata.General.title = "a/b 1.5"
    result = fused([haadf, phase], maps, max_iter=5, lambda_haadf=(0.0, 1.0)).as_signal()
    assert re.search(
        r"The a/b 1.5 image changed \w+ most, by [\d.e+]+ times what smoothing did\.", result.report().haadf
    )
    result.save(tmp_path / "all.hspy", everything=True)
    assert list(hs.load(tmp_path / "all.hspy").attribution()) == list(result.attribution())
