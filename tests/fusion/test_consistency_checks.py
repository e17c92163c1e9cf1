"""Alarms: none where the data follow the forward model and the maps are true, and each one by its cause and in its place."""

import re
from dataclasses import replace

import numpy as np
import pytest
from calibrated_cases import calibrated_problem
from scipy.ndimage import gaussian_filter

from hyperspy_fusion.data import core_shell, gradient_alloy
from hyperspy_fusion.fusion.consistency_checks import Evidence, alarms, square_sums
from hyperspy_fusion.fusion.scan_data import ScanData
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual
from hyperspy_fusion.fusion.terms.haadf_model import LinearHaadfModel

SHAPE = (64, 64)
LAW = LinearHaadfModel(np.array([5.0, 3.0]), 100.0)
COUNTS, HAADF, FLAT, UNSEEN, ALIKE = (
    "contradicts its counts", "No mapped element explains", "read no more off the map", "shows hardly any of",
    "look alike",
)  # fmt: skip
KINDS = (COUNTS, HAADF, FLAT, UNSEEN, ALIKE)


def bump(y, x, width, shape=SHAPE):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * width**2))


def truth_of(counts=1.0):
    """A shell and its core, both of which show in the image."""
    return counts * np.stack([0.5 + 8 * bump(30, 34, 8), 0.5 + 4 * bump(32, 32, 14)])


def evidence(truth=None, seed=0, forward_model=LAW, noise=3.0, elements=("Fe", "O"), fused=None, seen=0.0):
    """Counts drawn from the truth, which are the fused maps unless others are given; an image with something more."""
    truth = truth_of() if truth is None else truth
    rng = np.random.default_rng(seed)
    maps = rng.poisson(truth).astype(float)
    haadf = forward_model.image(truth) + seen + rng.normal(0, noise, truth.shape[1:])
    fused = truth if fused is None else fused
    return Evidence(
        elements=list(elements),
        maps=maps,
        valid=np.ones(maps.shape, bool),
        variance=np.maximum(fused, 1e-3),
        counts=maps.sum(axis=(1, 2)),
        fused=fused,
        haadf=haadf,
        haadf_valid=np.ones(haadf.shape, bool),
        haadf_noise=noise,
        forward_model=forward_model,
        counts_scale=np.ones(len(maps)),
        uses_haadf=True,
    )


def kinds(sentences):
    """Which alarms they are."""
    return [next(kind for kind in KINDS if kind in sentence) for sentence in sentences]


def place(sentence):
    """(y, x) that it names."""
    x, y = re.search(r"x = (\d+), y = (\d+)", sentence).groups()
    return int(y), int(x)


# ---- no cause, no alarm --------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [0.3, 1.0, 20.0])
def test_the_truth_raises_no_alarm(counts):
    truth = truth_of(counts)
    forward_model = replace(LAW, weights=LAW.weights / counts)
    for seed in range(20):
        raised = alarms(evidence(truth, seed, forward_model))
        assert not raised, f"seed {seed}: {raised}"


@pytest.mark.parametrize("phantom", [core_shell, gradient_alloy])
def test_the_truth_of_a_phantom_contradicts_neither_counts_nor_image(phantom):
    for seed in range(20):
        scan = phantom(SHAPE, counts=12.0, seed=seed)
        forward_model = LinearHaadfModel(scan.haadf_weights, scan.haadf_offset)
        # the noise of the image is its largest intensity over 50
        found = evidence(scan.truth, seed, forward_model, noise=0.02, elements=scan.elements)
        raised = alarms(replace(found, maps=scan.maps.astype(float), haadf=scan.haadf))
        assert not set(kinds(raised)) & {COUNTS, HAADF}, f"seed {seed}: {raised}"


def test_a_few_counts_where_few_are_expected_are_no_contradiction():
    """A particle in a support with a count per 1000 pixels: two of them in 4 x 4 pixels happen by chance."""
    truth = np.stack([0.001 + 8 * bump(30, 34, 5), truth_of()[1]])
    raised = [s for seed in range(40) for s in alarms(evidence(truth, seed))]
    assert COUNTS not in kinds(raised)


# ---- counts against maps ---------------------------------------------------------------------------------


def test_a_map_that_is_too_smooth_contradicts_its_counts():
    truth = truth_of()
    truth[0] += 10 * bump(13, 49, 2)
    fused = np.stack([gaussian_filter(truth[0], 6), truth[1]])
    raised = alarms(evidence(truth, fused=fused))
    assert kinds(raised) == [COUNTS] and "fused map of Fe" in raised[0]
    assert np.abs(np.subtract(place(raised[0]), (13, 49))).max() <= 8
    assert float(re.search(r"by ([\d.]+) standard", raised[0])[1]) > 5.5


def test_a_map_that_has_what_the_counts_lack_contradicts_them():
    truth = truth_of()
    fused = truth.copy()
    fused[1, 4:12, 40:48] += 4
    raised = alarms(evidence(truth, fused=fused))
    assert kinds(raised) == [COUNTS] and "fused map of O" in raised[0]
    assert 4 <= place(raised[0])[0] <= 12 and 40 <= place(raised[0])[1] <= 48


def test_how_much_a_square_is_off_by_hand():
    """One square of 4 x 4 pixels with 5 instead of 2 counts each: the root of 2 (80 ln(80 / 32) - 48)."""
    fused = np.full((1, 16, 16), 2.0)
    maps = fused.copy()
    maps[0, 8:12, 4:8] = 5.0
    found = replace(
        evidence(fused, forward_model=LinearHaadfModel(np.zeros(1), 0.0), elements=["Fe"]),
        maps=maps,
        counts=maps.sum(axis=(1, 2)),
    )
    raised = [s for s in alarms(found) if COUNTS in s]
    assert len(raised) == 1 and "in 4 x 4 pixels at x = 6, y = 10 they differ by 7.1 standard" in raised[0]
    assert not [s for s in alarms(replace(found, maps=(maps + fused) / 2)) if COUNTS in s]


def test_residuals_are_in_standard_deviations():
    found = evidence(seed=3)
    residuals = found.residuals()
    assert residuals.mean() == pytest.approx(0, abs=5 / np.sqrt(residuals.size))
    assert residuals.std() == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(residuals * np.sqrt(found.variance), found.maps - found.fused, atol=1e-12)


# ---- structure -----------------------------------------------------------------------------------------


def test_flat_maps_are_said():
    truth = np.stack([truth_of()[0], np.full(SHAPE, 2.0)])
    raised = alarms(evidence(truth))
    assert kinds(raised) == [FLAT] and raised[0].startswith("The counts of O are")


def test_too_few_counts_show_nothing():
    raised = alarms(
        evidence(
            np.stack([truth_of()[0], truth_of(0.004)[1]]), forward_model=LinearHaadfModel(np.array([5.0, 0.0]), 0.0)
        )
    )
    assert kinds(raised) == [FLAT] and "counts of O" in raised[0]


def test_structure_that_the_image_does_not_have_is_said():
    stripes = 2 + np.sin(np.arange(64) / 64 * 4 * np.pi)[:, None] * np.ones(64)
    truth = np.stack([0.5 + 8 * bump(32, 32, 8), 3 * stripes])
    raised = alarms(evidence(truth, forward_model=LinearHaadfModel(np.array([5.0, 0.0]), 100.0)))
    assert kinds(raised) == [UNSEEN] and "structure of O:" in raised[0]


def test_structure_where_the_image_is_saturated_is_in_the_counts():
    """A particle that saturates the detector: its counts show it, and nothing is known against the image."""
    truth = np.stack([truth_of()[0], 0.01 + np.zeros(SHAPE)])
    truth[1, 16:24, 40:48] = 2.0
    found = evidence(truth)
    assert not set(kinds(alarms(replace(found, haadf_valid=truth[1] < 1)))) & {FLAT, UNSEEN}
    found.maps[1, 16:24, 40:48] = 0
    assert kinds(alarms(replace(found, fused=found.maps, haadf_valid=truth[1] < 1))) == [FLAT]


# ---- the image against the forward model ---------------------------------------------------------------------------


def test_a_step_in_the_image_is_not_explained():
    raised = alarms(evidence(seen=30.0 * (np.arange(64) >= 48)))
    # where it outshines the maps, they are no longer seen in it
    assert HAADF in kinds(raised) and COUNTS not in kinds(raised)
    assert place(raised[-1])[1] >= 48


def test_a_particle_that_is_not_mapped_is_found():
    raised = alarms(evidence(seen=60 * bump(12, 50, 4)))
    assert kinds(raised) == [HAADF]
    assert np.abs(np.subtract(place(raised[0]), (12, 50))).max() <= 4


@pytest.mark.parametrize("moved", [lambda a: np.roll(a, 8, 1), lambda a: a[:, ::-1], np.rot90], ids=["", "flipped", ""])
def test_an_image_that_lies_off_the_maps_is_told_as_such(moved):
    found = evidence()
    (sentence,) = [s for s in alarms(replace(found, haadf=moved(found.haadf))) if HAADF in s]
    assert "or an image that is shifted (register=True) or turned against the maps" in sentence


def test_the_part_that_is_not_explained_by_hand():
    """Of squares of an image without noise, half of which are brighter by what the maps lack."""
    step = np.zeros((16, 16))
    step[:, 8:] = 20.0
    fused = np.full((1, 16, 16), 5.0)
    found = replace(
        evidence(fused, forward_model=LinearHaadfModel(np.ones(1), 0.0), elements=["Fe"], noise=0.1), maps=fused, haadf=10 + 5 + step,
        variance=np.full(fused.shape, 1e-6),
    )  # fmt: skip
    raised = [s for s in alarms(found) if HAADF in s]
    # residuals 10 and 30, levels 15 and 35: the root of 500 over 10
    assert len(raised) == 1 and "HAADF image, 224% of its contrast" in raised[0] and "x = 12, y = 4" in raised[0]


def test_small_misfits_are_not_worth_a_sentence():
    """Sure, but less than a tenth of the contrast."""
    assert not alarms(evidence(truth_of(200), forward_model=replace(LAW, weights=LAW.weights / 10), noise=0.1,
                               seen=6.0 * (np.arange(64) >= 48)))  # fmt: skip


def test_without_weights_the_image_is_not_asked():
    forward_model = LinearHaadfModel(np.zeros(2), 100.0)
    found = evidence(forward_model=forward_model, seen=60 * bump(12, 50, 4) + 40 * bump(31, 33, 10))
    assert not set(kinds(alarms(found))) & {HAADF, ALIKE}


def test_squares_are_as_large_as_the_blur_asks():
    """A blurred image moves intensity between small squares, and is no alarm between large ones."""
    truth = truth_of(4.0)
    truth[0] += 60 * bump(24, 24, 1.0) + 60 * bump(40, 40, 1.0)
    forward_model = replace(LAW, weights=LAW.weights / 4, blur=3.0)
    blurred = gaussian_filter(forward_model.image(truth), 3.0) - forward_model.image(truth)
    assert HAADF not in kinds(alarms(evidence(truth, forward_model=forward_model, seen=blurred)))


# ---- pairs ---------------------------------------------------------------------------------------------


def alike(counts, ratio=1.0, units=1.0):
    """Two elements that show in the same way, per count, whatever the units of the first map."""
    truth = np.stack([1 + 4 * bump(30, 24, 10), 1 + 4 * bump(30, 40, 10)]) * counts
    forward_model = LinearHaadfModel(np.array([3.0, 3.0 * ratio]) / counts, 100.0)
    found = evidence(truth, forward_model=forward_model, elements=("Co", "Ni"))
    scale = np.array([units, 1.0])[:, None, None]
    return replace(
        found, maps=found.maps * scale, fused=found.fused * scale, variance=found.variance * scale**2,
        counts_scale=scale.ravel(), forward_model=replace(forward_model, weights=forward_model.weights / scale.ravel()),
    )  # fmt: skip


def test_elements_that_look_alike_with_few_counts_are_said():
    raised = [s for s in alarms(alike(0.05)) if ALIKE in s]
    assert len(raised) == 1 and raised[0].startswith("Co and Ni look alike")
    found = alike(0.05)
    in_square = found.counts / 64
    expected = np.sqrt(np.sum(1 / in_square)) / 2
    assert f"apart to {expected:.0%} in 8 x 8" in raised[0]


@pytest.mark.parametrize("units", [0.01, 7.0])
def test_units_of_the_maps_do_not_make_elements_alike(units):
    assert kinds(alarms(alike(0.05, units=units))) == kinds(alarms(alike(0.05)))
    assert ALIKE not in kinds(alarms(alike(0.05, ratio=1 / 0.8, units=units)))
    assert ALIKE in kinds(alarms(alike(0.05, ratio=1 / 0.92, units=units)))


def test_enough_counts_tell_them_apart():
    assert ALIKE not in kinds(alarms(alike(2.0)))


def test_three_elements_are_compared_in_pairs():
    found = alike(0.05)
    both, third = (
        np.array([0, 1, 0]),
        LinearHaadfModel(found.forward_model.weights[[0, 1, 0]] * np.array([1, 1, 3.0]), 100.0),
    )
    three = replace(
        found, elements=["Co", "Ni", "Pt"], forward_model=third,
        **{name: getattr(found, name)[both] for name in ("maps", "valid", "variance", "counts", "fused", "counts_scale")},
    )  # fmt: skip
    assert [s[:9] for s in alarms(three) if ALIKE in s] == ["Co and Ni"]


# ---- what does not count -----------------------------------------------------------------------------------


def test_masked_pixels_are_no_evidence():
    found = evidence(seed=1)
    valid, haadf_valid = found.valid.copy(), found.haadf_valid.copy()
    valid[0, 8:20, 8:20] = haadf_valid[40:50, 10:22] = False
    masked = replace(found, valid=valid, haadf_valid=haadf_valid)
    # whole squares of them divide nothing by nothing
    with np.errstate(all="raise"):
        expected = alarms(masked)
    maps, haadf = found.maps.copy(), found.haadf.copy()
    maps[0, 8:20, 8:20], haadf[40:50, 10:22] = 500.0, -3000.0
    assert alarms(replace(masked, maps=maps, haadf=haadf)) == expected == []
    assert set(kinds(alarms(replace(found, maps=maps, haadf=haadf)))) >= {COUNTS, HAADF}
    assert not masked.residuals()[~valid].any()


def test_the_scale_of_the_data_does_not_matter():
    truth = truth_of()
    truth[0] += 10 * bump(13, 49, 2)
    found = evidence(truth, fused=np.stack([gaussian_filter(truth[0], 6), truth[1]]), seen=60 * bump(50, 12, 4))
    scale, gain = np.array([3.0, 0.5])[:, None, None], 7.0
    scaled = replace(
        found, maps=found.maps * scale, fused=found.fused * scale, variance=found.variance * scale**2,
        counts_scale=scale.ravel(), haadf=gain * found.haadf - 200, haadf_noise=gain * found.haadf_noise,
        forward_model=LinearHaadfModel(gain * LAW.weights / scale.ravel(), gain * LAW.offset - 200),
    )  # fmt: skip
    assert alarms(scaled) == alarms(found) and kinds(alarms(found)) == [COUNTS, HAADF]


@pytest.mark.parametrize("shape", [(3, 40), (5, 5), (8, 8), (17, 9)])
def test_small_scans_raise_nothing_and_no_error(shape):
    truth = 3 + 3 * np.stack([bump(2, 2, 2, shape), bump(2, 8, 4, shape)])
    assert not set(kinds(alarms(evidence(truth)))) & {COUNTS, HAADF}


def test_sums_over_squares_by_hand():
    image = np.arange(30).reshape(5, 6)
    np.testing.assert_array_equal(square_sums(image, 2), [[14, 22, 30], [62, 70, 78]])
    np.testing.assert_array_equal(square_sums(np.stack([image, -image]), 3), [[[63, 90]], [[-63, -90]]])


# ---- of a fit --------------------------------------------------------------------------------------------


def test_evidence_of_a_fit_of_counts():
    """Units of 2.5 per count on a background of 3 counts: net maps, variance of counts, and their number."""
    scan = core_shell((16, 20), counts=15.0)
    settings = CalibratedSettings(regularization="tv", noise="shifted_poisson", background=7.5, tol=1e-2)
    maps = 2.5 * np.random.default_rng(0).poisson(scan.truth + 3).astype(np.float64)
    problem = calibrated_problem(maps, scan.haadf, scan.atomic_numbers, settings)
    fused = primal_dual(problem, settings)[0].maps
    valid = np.ones(maps.shape, bool)
    valid[0, 3] = False
    data = ScanData(scan.elements, scan.atomic_numbers, np.where(valid, maps, np.nan), scan.haadf, valid, valid[1])
    found = Evidence.of(data, fused, problem)
    np.testing.assert_allclose(found.maps, np.where(valid, maps - 7.5, 0))
    np.testing.assert_allclose(found.variance, 2.5 * (fused + 7.5), rtol=1e-6)
    np.testing.assert_allclose(found.counts, maps.sum(axis=(1, 2), where=valid) / 2.5)
    assert found.forward_model is problem.forward_model and found.haadf_noise == problem.calibration.noise
    known = Evidence.of(replace(data, background=np.full(maps.shape, 5.0)), fused, problem)
    np.testing.assert_allclose(known.variance, 2.5 * (fused + 5), rtol=1e-6)
    np.testing.assert_allclose(known.maps, np.where(valid, maps - 5, 0))


def test_evidence_of_a_fit_of_numbers():
    scan = core_shell((16, 20), counts=15.0)
    settings = CalibratedSettings(regularization="tv", noise="gaussian", variance=(4.0, 9.0, 1.0), tol=1e-2)
    problem = calibrated_problem(scan.truth - 1, scan.haadf, scan.atomic_numbers, settings)
    fused = primal_dual(problem, settings)[0].maps
    found = Evidence.of(ScanData.of(scan.truth - 1, scan.haadf, scan.atomic_numbers), fused, problem)
    np.testing.assert_allclose(np.broadcast_to(found.variance, fused.shape)[:, 3, 4], [4, 9, 1])
    assert np.isinf(found.counts).all() and isinstance(alarms(found), list)


def test_pixels_without_image_are_not_in_the_unexplained_contrast():
    # a registered image is NaN beyond its edge, which must neither raise the alarm nor take its number
    def of(seen):
        known = evidence(seen=seen)
        outside = np.arange(SHAPE[1]) >= 56
        return alarms(
            replace(known, haadf=np.where(outside, np.nan, known.haadf), haadf_valid=known.haadf_valid & ~outside)
        )

    assert HAADF not in " ".join(of(0.0))
    (sentence,) = [s for s in of(40 * bump(12, 12, 6)) if HAADF in s]
    assert 10 <= int(re.search(r"(\d+)% of its contrast", sentence)[1]) < 100
