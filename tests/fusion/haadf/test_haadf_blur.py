"""Claims about a HAADF image that is blurred more than the maps: its term, the edges of its guide, who knows of it."""

from dataclasses import replace

import numpy as np
import pytest
from calibrated_cases import NUMBERS, TURNS, calibrated_problem, fit, observe, small_scan, tight
from convex import MIXED, differences, directions
from helpers import fit_with, fuse_with
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import gaussian_filter

import hyperspy_fusion as hf
from hyperspy_fusion.data import atomic_columns, core_shell, gradient_alloy, interface, psnr
from hyperspy_fusion.fusion.haadf import guide as guides
from hyperspy_fusion.fusion.haadf.guide import Guide
from hyperspy_fusion.fusion.haadf.model_discrepancy import is_explained_by_blur, left_by_blur, model_discrepancy
from hyperspy_fusion.fusion.problems.resampling import resampled
from hyperspy_fusion.fusion.selection.spectral_components import _component_settings
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.solvers import kernels
from hyperspy_fusion.fusion.solvers.primal_dual import Iteration, primal_dual
from hyperspy_fusion.fusion.solvers.primal_dual_state import PrimalDualState
from hyperspy_fusion.fusion.terms.data_fidelity import noise_of
from hyperspy_fusion.fusion.terms.haadf_model import LinearHaadfModel, blurred
from hyperspy_fusion.fusion.terms.objective import LEAST_BLUR, HaadfTerm
from hyperspy_fusion.fusion.terms.scan_data import ScanData
from hyperspy_fusion.fusion.uncertainty.fisher import attainable_gain

SHAPE = (9, 12)


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape)


def term_of(blur=1.3):
    counted = (np.random.default_rng(3).random(SHAPE) > 0.2).astype(float)
    return HaadfTerm(np.array([2.0, 0.5]), normal(0), counted, blur)


def particles(counts=16.0, **options):
    return core_shell((64, 64), counts=counts, haadf_blur=1.0, haadf_offset=0.2, haadf_gain=3.0, **options)


def problem_of(scan, **options):
    settings = CalibratedSettings(**options)
    return calibrated_problem(scan.maps.astype(np.float32), scan.haadf, scan.atomic_numbers, settings)


def quality(scan, result):
    return np.mean([psnr(m, t) for m, t in zip(result.maps, scan.truth, strict=True)])


@pytest.mark.parametrize("blur", [0.3, 1.0, 4.0])
def test_the_gaussian_is_its_own_adjoint_and_nowhere_above_one(blur):
    u, v = normal(1), normal(2)
    assert_allclose(np.vdot(blurred(u, blur), v), np.vdot(u, blurred(v, blur)), rtol=1e-12)
    columns = np.stack([blurred(e, blur).ravel() for e in np.eye(u.size).reshape(-1, *SHAPE)])
    assert np.linalg.norm(columns, 2) <= 1 + 1e-12


def test_the_slope_is_the_derivative_of_the_term():
    term, z, step = term_of(), normal(1, (2, *SHAPE)), 1e-5
    slope = term.gradient(term.image(z))
    for i, row, column in ((0, 0, 0), (1, 4, 5), (0, 8, 11)):
        moved = np.zeros_like(z)
        moved[i, row, column] = step
        numeric = (term.value(z + moved) - term.value(z - moved)) / (2 * step)
        assert_allclose(term.weights[i] * slope[row, column], numeric, rtol=1e-7)


@pytest.mark.parametrize("blur", [0.0, 1.3])
def test_what_takes_its_place_majorises_it(blur):
    """With the same value and slope at the maps that it is made of."""
    term = term_of(blur)
    at = term.image(normal(1, (2, *SHAPE)))
    target = at - term.gradient(at)

    def value(image):
        return 0.5 * np.sum(term.residual(image) ** 2)

    def majorant(image):
        return 0.5 * np.sum((image - target) ** 2)

    above = value(at) - majorant(at)
    for k in range(20):
        other = at + normal(k) * 10.0 ** (k % 4 - 2)
        assert majorant(other) + above >= value(other) - 1e-9


def test_pixels_that_do_not_count_have_no_say():
    maps, haadf = small_scan((12, 14))
    counts = np.ones(haadf.shape, bool)
    counts[3:6, 4:8] = False
    settings, found = tight(haadf_blur=1.0, regularization="tv"), []
    for wrong in (0.0, 1e4):
        image = np.where(counts, haadf, wrong)
        problem = calibrated_problem(maps, image, NUMBERS, settings, haadf_valid=counts)
        result, state = primal_dual(problem, settings)
        assert result.converged
        total = problem.objective(result.maps / problem.scales[:, None, None]).total
        assert_allclose(result.history.total[-1], total, rtol=1e-9)
        found.append(result)
    assert_allclose(found[0].maps, found[1].maps, atol=1e-9)
    # they are not as if the image were 0 there: its maps are those of an image that is right
    assert_allclose(found[0].maps, fit((maps, haadf), settings)[1].maps, atol=0.35 * np.sqrt(maps.max()))


@pytest.mark.parametrize("first, second", [(0.0, 1.2), (1.2, 0.0), (0.6, 1.2)])
def test_a_fit_goes_on_from_that_of_another_blur(first, second):
    scan = small_scan((12, 14))
    one, two = (tight(haadf_blur=blur, regularization="directional") for blur in (first, second))
    _, _, state = fit(scan, replace(one, max_iter=60))
    problem = calibrated_problem(*scan, NUMBERS, two)
    warm, _ = primal_dual(problem, two, state.restarted(problem))
    cold, _ = primal_dual(problem, two)
    assert warm.converged
    assert_allclose(warm.history.total[-1], cold.history.total[-1], rtol=3e-7)
    above = (warm.history.total - warm.history.total[-1]) / np.maximum(warm.history.total, 1e-3 * scan[0].size)
    assert np.all(warm.history.gap - above > -1e-9)


@pytest.mark.parametrize("size", [100.0, 300.0])
def test_the_gap_of_images_that_are_large_against_their_noise(size):
    """In single precision that of the same maps and duals in double: what is rounded is alike in all that bounds."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:24, :24]
    truth = 40.0 * np.stack([1 + np.exp(-((y - 11) ** 2 + (x - 9) ** 2) / 30), 1.0 + (x > 14)])
    maps, weights = rng.poisson(truth).astype(float), np.array([28.0, 9.0])
    clean = gaussian_filter(np.tensordot(weights, truth, 1), 1.0)
    sigma = clean.max() / size
    haadf = clean + sigma * rng.standard_normal(clean.shape)
    known = {"haadf_blur": 1.0, "haadf_coefficients": tuple(weights), "regularization": "tv", "keep_totals": False}

    def problem(dtype):
        found = calibrated_problem(maps, haadf, NUMBERS, CalibratedSettings(**known, dtype=dtype))
        given = weights * found.scales / sigma, haadf / sigma, np.ones((1, 24))
        return replace(found, haadf_term=HaadfTerm(*(a.astype(dtype) for a in given), 1.0))

    result, state = primal_dual(problem("float32"), CalibratedSettings(**known, max_iter=600))
    assert result.converged
    same = PrimalDualState.of(problem("float64"), **{name: getattr(state, name).astype(float) for name in ("z", "y")})
    with kernels.threads(1) as workers:
        Iteration(same.problem, same, workers).evaluate()
    assert state.gap == pytest.approx(same.gap, rel=0.05)


def test_two_calls_are_one():
    scan = small_scan((12, 14), dtype=np.float32)
    settings = CalibratedSettings(haadf_blur=1.0, haadf_coefficients=(28.0, 9.0), tol=1e-12, max_iter=100)
    problem, whole, _ = fit(scan, settings)
    _, state = primal_dual(problem, replace(settings, max_iter=50))
    assert_array_equal(primal_dual(problem, replace(settings, max_iter=50), state)[0].maps, whole.maps)


@pytest.mark.parametrize("turn", ["mirrored", "transposed"])
@pytest.mark.parametrize("kind", ["directional", "guided"])
def test_fit_turns_with_the_scan(kind, turn):
    scan, turn = small_scan((10, 13)), TURNS[turn]
    settings = tight(haadf_blur=0.9, regularization=kind, max_iter=150)
    plain, turned = fit(scan, settings)[1], fit(tuple(turn(a) for a in scan), settings)[1]
    assert_allclose(turned.maps, turn(plain.maps), rtol=1e-7, atol=1e-8)


def test_the_blur_is_found_given_or_none():
    scan = particles()
    plain, found, given, little = (problem_of(scan, haadf_blur=b) for b in (0, "fit", 1.3, 0.9 * LEAST_BLUR))
    assert found.haadf_term.blur == found.forward_model.blur == plain.forward_model.blur == pytest.approx(1, abs=0.1)
    assert given.haadf_term.blur == given.forward_model.blur == 1.3
    assert plain.haadf_term.blur == little.haadf_term.blur == 0
    problem = problem_of(particles(), haadf_blur=0.8, haadf_coefficients=(9.0, 2.0, 1.0))
    assert problem.haadf_term.blur == problem.forward_model.blur == 0.8
    scan = core_shell((64, 64), counts=16.0, haadf_offset=0.2)
    problem = problem_of(scan, haadf_blur="fit")
    assert problem.haadf_term.blur < 0.4


@pytest.mark.parametrize("side", [1, 4])
@pytest.mark.parametrize("blur", [0.0, 0.7, 2.5])
def test_what_blur_leaves_of_the_variance_of_sums(side, blur):
    noise = normal(0, (600, 600))
    sums = blurred(noise, blur).reshape(600 // side, side, 600 // side, side).sum(axis=(1, 3))
    assert np.var(sums) / side**2 == pytest.approx(left_by_blur(blur, side), rel=0.05)


def test_the_misfit_is_that_of_the_blurred_law():
    """At many counts the blur is most of what a forward model without it does not explain."""
    plain, knowing = (problem_of(particles(64.0), haadf_blur=b) for b in (0, "fit"))
    assert knowing.calibration.noise == plain.calibration.noise
    assert plain.calibration.sigma > 2 * plain.calibration.noise
    assert knowing.calibration.sigma < 1.3 * knowing.calibration.noise


def test_masked_pixels_of_maps_are_no_misfit():
    """What fills them is blurred into their surroundings, where it explains nothing."""
    scan, valid = particles(64.0), np.ones((3, 64, 64), bool)
    valid[:, 29:35, 29:35] = False
    forward_model, found = LinearHaadfModel(scan.haadf_weights, 0.2), []
    for filling in (1.0, 100.0):
        maps = np.where(valid, scan.maps, filling * scan.maps.max())
        data = ScanData.of(maps, scan.haadf, scan.atomic_numbers, valid=valid).filled()
        noise = noise_of(data, CalibratedSettings(noise="poisson"))
        found.append(model_discrepancy(replace(data, maps=maps), noise, forward_model, scan.truth, 1.0))
    whole = ScanData.of(scan.maps, scan.haadf, scan.atomic_numbers).filled()
    assert (
        found[0] == found[1] == pytest.approx(model_discrepancy(whole, noise, forward_model, scan.truth, 1.0), rel=0.3)
    )


@pytest.mark.parametrize(
    "scan, seems",
    [
        (gradient_alloy((64, 64), counts=4.0, haadf_offset=0.2, haadf_gain=3.0, seed=2), "2 +- 0.5"),  # not blurred
        (interface((64, 64), counts=1.0, haadf_offset=0.2, haadf_gain=3.0, seed=1), "2.1 +- 0.6"),
    ],
    ids=["alloy", "interface"],
)
def test_a_blur_that_is_not_sure_is_none(scan, seems):
    problem = problem_of(scan, haadf_blur="fit")
    assert problem.haadf_term.blur == 0 and problem.calibration.found_blur[0] > 1
    (found,) = [d for d in problem.diagnostics if d.code == "haadf-blur-unsure"]
    assert f"({seems} pixels)" in found.sentence


@pytest.mark.parametrize("foreign, error, expected", [(0.0, 0.05, True), (0.0, 0.2, False), (0.5, 0.05, False)])
def test_a_blur_has_to_be_sure_and_to_explain_the_image(foreign, error, expected):
    """Foreign is contrast of what is not mapped, in parts of the range of the image."""
    scan, settings = particles(16.0), CalibratedSettings()
    contrast = gaussian_filter(np.random.default_rng(1).standard_normal((64, 64)), 1.5, mode="wrap")
    haadf = scan.haadf + foreign * np.ptp(scan.haadf) * contrast / np.ptp(contrast)
    data = ScanData.of(scan.maps, haadf, scan.atomic_numbers).filled()
    noise = noise_of(data, settings)
    forward_model = LinearHaadfModel(scan.haadf_weights, 0.2)
    assert is_explained_by_blur(data, noise, forward_model, noise.noise_variance(data), 1.0, error) == expected


def test_too_large_a_number_is_told():
    for blur, is_too_large in ((0.5, False), (1.0, False), (1.05, False), (2.0, True)):
        codes = [d.code for d in problem_of(particles(), haadf_blur=blur).diagnostics]
        assert codes.count("haadf-blur-too-large") == is_too_large


@pytest.mark.parametrize("phantom, kind, gain", [(core_shell, "directional", 0.8), (atomic_columns, "tgv", 0.8)])
def test_maps_are_nearer_to_the_truth(phantom, kind, gain):
    """In decibels, at the weight that suits both."""
    scan = phantom((64, 64), counts=16.0, haadf_blur=1.0, haadf_offset=0.2, haadf_gain=3.0)
    found = []
    for blur in (0.0, "fit"):
        settings = CalibratedSettings(haadf_blur=blur, regularization=kind, lambda_reg=2.0, guide_blur=None, tol=1e-3)
        problem = problem_of(scan, **settings.as_dict())
        found.append(quality(scan, primal_dual(problem, settings)[0]))
    assert found[1] > found[0] + gain


def disc(radius=20.3, size=64, finer=8):
    """The part of each pixel that is within a disc."""
    y, x = (np.mgrid[: size * finer, : size * finer] + 0.5) / finer - size / 2 - 0.3
    return (np.hypot(y, x) < radius).reshape(size, finer, size, finer).mean(axis=(1, 3))


@pytest.mark.parametrize("blur", [0.75, 1.0, 1.5, 2.0])
def test_a_blur_takes_this_part_of_the_twist_of_an_edge(blur):
    def twist_over_slopes(image):
        edges = differences(image)
        twist = np.tensordot(MIXED, edges, 1)
        return np.sqrt(np.sum(twist**2) / (np.sum(edges**2) - np.sum(twist**2)))

    left = twist_over_slopes(gaussian_filter(disc(), blur)) / twist_over_slopes(disc())
    assert 1 / np.hypot(1, blur / guides._SHARP) == pytest.approx(left, rel=0.05)


@pytest.mark.parametrize("blur", [0.0, 0.69, 0.7, 1.0, 4.0])
@pytest.mark.parametrize("eta", [0.0, 0.5, 0.99])
def test_directions_are_those_of_the_formula(blur, eta):
    edges = differences(0.01 * normal(0, (6, 7)))
    found = guides.directions(edges, 0.003, eta, blur)
    assert len(found) == (5 if blur >= 0.7 else 4), "below it the guide has the twist that edges need"
    xi, part = found[:4], found[4:].sum(axis=0)
    taken = np.multiply.outer(np.multiply.outer(MIXED, MIXED), part) + xi[:, None] * xi[None]
    p = np.eye(4)[:, :, None, None] - taken
    assert_allclose(p, directions(edges, eta, blur if blur >= 0.7 else 0), atol=1e-12)
    lowest = np.linalg.eigvalsh(np.moveaxis(p, (0, 1), (-2, -1))).min()
    assert lowest >= 1 - eta - 1e-12
    if part.any():
        assert_allclose(np.tensordot(MIXED, xi, 1), 0, atol=1e-12)
    if eta == 0:
        assert not found.any(), "no longer the total variation"


def test_the_guide_knows_of_the_blur():
    scan = particles()
    plain, knowing = (problem_of(scan, regularization="directional", lambda_haadf=0, haadf_blur=b) for b in (0, "fit"))
    assert len(plain.penalty.guide) == 4 and knowing.penalty.guide[4].max() > 0.5
    assert knowing.haadf_term.weights.size == 0 and knowing.haadf_term.blur == pytest.approx(1, abs=0.1)
    # the slopes of "guided" take it as it is
    assert_array_equal(*(problem_of(scan, haadf_blur=b).penalty.guide for b in (0, "fit")))
    settings = _component_settings(CalibratedSettings(haadf_blur="fit"), np.ones(2))
    assert settings.haadf_blur == 0 and settings.haadf_coefficients == (1.0, 1.0)


@pytest.mark.parametrize("haadf_blur, found_anew", [("fit", True), (1.1, False)])
def test_replicates_have_the_blur_of_their_own_law(haadf_blur, found_anew):
    scan, settings = particles(4.0), CalibratedSettings(regularization="directional", haadf_blur=haadf_blur)
    problem = problem_of(scan, **settings.as_dict())
    drawn = [resampled(problem, settings, scan.truth, k) for k in range(3)]
    blurs = {p.haadf_term.blur for p in drawn}
    if not found_anew:
        assert {p.forward_model.blur for p in drawn} == {1.1} and len({p.forward_model.offset for p in drawn}) == 3
    assert blurs == ({p.forward_model.blur for p in drawn} if found_anew else {1.1}) and len(blurs) == (
        3 if found_anew else 1
    )
    for p in drawn:
        expected = Guide(p.scan.haadf, p.scan.haadf_valid, p.dtype).of(
            "directional", settings, p.dtype, p.haadf_term.blur
        )
        assert_array_equal(p.penalty.guide, expected)
        assert p.penalty.guide[4].any()


def test_the_pull_of_the_image_is_minus_its_derivative():
    scan, settings = small_scan((12, 14), counts=8.0), tight(regularization="tv", haadf_blur=1.2, tol=1e-8)
    problem, result, state = fit(scan, settings)
    parts = problem.attribution(state, result.maps)
    inside = result.maps > 0.05 * result.maps.max()
    assert np.sqrt(np.mean(parts["bound"][inside] ** 2)) < 5e-3 * np.sqrt(np.mean(scan[0]))
    assert_allclose(sum(parts.values()), result.maps - scan[0], atol=1e-9)


def test_the_gain_is_that_of_a_blurred_image():
    model = hf.FusedMultiModal(*particles().signals()[::-1], method="calibrated")
    fit_with(model, haadf_blur="fit", tol=1e-1, max_iter=25, show_progressbar=False)
    gain = model.attainable_gain().get_map("Pt").data
    assert 1 <= gain.min() and 1.1 < gain.max() < 3  # some 50 if each pixel of the image knew its own
    # Of one map with the variance v everywhere, exactly: the inverse of the information is a convolution.
    v, w, sigma, blur, n = 2.0, 3.0, 0.7, 1.2, 24
    gaussian = np.stack([gaussian_filter(e, blur, mode="wrap").ravel() for e in np.eye(n * n).reshape(-1, n, n)])
    information = np.eye(n * n) / v + w**2 / sigma**2 * gaussian @ gaussian.T
    expected = v / np.linalg.inv(information)[0, 0]
    found = attainable_gain(np.full((1, 2, 2), v), [[w]], [sigma], [blur])
    assert_allclose(found, expected, rtol=0.01)
    assert attainable_gain(np.full((1, 1, 1), v), [[w]], [sigma], [0.0])[0, 0, 0] > 3 * expected


def test_replicates_keep_whether_the_term_blurs():
    scan, settings = particles(4.0), CalibratedSettings(regularization="directional", haadf_blur="fit")
    problem = problem_of(scan, **settings.as_dict())
    none = replace(problem, haadf_term=replace(problem.haadf_term, blur=0.0))
    assert resampled(none, settings, scan.truth, 0).haadf_term.blur == 0
    lost = replace(
        problem, calibration=replace(problem.calibration, refit=lambda *_: replace(problem.forward_model, blur=0.0))
    )
    assert resampled(lost, settings, scan.truth, 0).haadf_term.blur == problem.haadf_term.blur


def test_no_weight_changes_what_was_found():
    scan, settings = particles(), CalibratedSettings(haadf_blur="fit")
    observation = observe(scan.maps.astype(np.float32), scan.haadf, scan.atomic_numbers, settings)
    for weight in (0.0, 0.5, 2.0):
        problem = observation.problem(replace(settings, lambda_haadf=weight))
        assert problem.haadf_term.blur == observation.calibration.blur == observation.calibration.forward_model.blur


def test_the_modelled_image_is_blurred_as_the_term_has_it():
    scan = particles()
    maps, haadf = scan.signals()
    options = {"method": "calibrated", "tol": 1e-2, "show_progressbar": False}
    fused = fuse_with(maps, haadf, haadf_blur="fit", **options)
    fit = fused.metadata.Fusion
    assert fit.haadf_term_blur == fit.haadf_blur == pytest.approx(1, abs=0.1) and fit.parameters.haadf_blur == "fit"
    forward_model = fit.haadf_offset + np.tensordot(fit.haadf_coefficients, fused.data.astype(float), 1)
    assert_allclose(fused.modelled_haadf().data, gaussian_filter(forward_model, fit.haadf_blur), rtol=1e-5)
    with pytest.raises(ValueError, match="it is a crop, and the forward model of its fit blurs across its edges"):
        fused.isig[5:30, 5:30].modelled_haadf()
    plain = fuse_with(maps, haadf, **options)
    assert plain.isig[5:30, 5:30].modelled_haadf().data.shape == (25, 25)
    assert plain.metadata.Fusion.haadf_term_blur == 0 and plain.metadata.Fusion.haadf_blur == fit.haadf_blur


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"haadf_blur": -1}, "haadf_blur is -1: it must be 0 to 4 pixels"),
        ({"haadf_blur": 5.0}, "haadf_blur is 5.0: it must be 0 to 4 pixels, or 'fit' to find it."),
        ({"haadf_blur": "find"}, "haadf_blur is 'find': it must be 0 to 4 pixels"),
        ({"haadf_blur": True}, "haadf_blur is True: it must be 0 to 4 pixels"),
        ({"haadf_blur": None}, "haadf_blur is None: it must be 0 to 4 pixels, or 'fit' to find it."),
        ({"haadf_blur": float("nan")}, "haadf_blur is nan"),
        (
            {"haadf_blur": "fit", "haadf_coefficients": (1.0, 2.0)},
            "needs a fit of the HAADF forward model, and haadf_coefficients are given",
        ),
    ],
)
def test_bad_values_get_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        CalibratedSettings(**options)
    assert str(raised.value).endswith(".")
