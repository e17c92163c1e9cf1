"""Consistency checks: no finding for true maps, and each finding by its cause and in its place."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from calibrated_cases import calibrated_problem
from scipy.ndimage import gaussian_filter

from hyperspy_fusion.data import core_shell, gradient_alloy
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual
from hyperspy_fusion.fusion.terms.haadf_model import LinearHaadfModel
from hyperspy_fusion.fusion.terms.scan_data import ScanData
from hyperspy_fusion.fusion.uncertainty.consistency_checks import ConsistencyChecks, square_sums, without_structure

SHAPE = (64, 64)
MODEL = LinearHaadfModel(np.array([5.0, 3.0]), 100.0)
COUNTS, FLAT, HAADF = "map-contradicts-counts", "map-without-structure", "haadf-unexplained"


def bump(y, x, width, shape=SHAPE):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * width**2))


def truth_of(counts=1.0):
    """A shell and its core, both of which show in the image."""
    return counts * np.stack([0.5 + 8 * bump(30, 34, 8), 0.5 + 4 * bump(32, 32, 14)])


def checks_of(truth=None, seed=0, forward_model=MODEL, noise=3.0, elements=("Fe", "O"), fused=None, extra=0.0):
    """Counts drawn from the truth, which are the fused maps unless others are given; an image with something more."""
    truth = truth_of() if truth is None else truth
    rng = np.random.default_rng(seed)
    maps = rng.poisson(truth).astype(float)
    haadf = forward_model.image(truth) + extra + rng.normal(0, noise, truth.shape[1:])
    fused = truth if fused is None else fused
    return ConsistencyChecks(
        elements=list(elements),
        maps=maps,
        valid=np.ones(maps.shape, bool),
        variance=np.maximum(fused, 1e-3),
        fused=fused,
        haadf=haadf,
        haadf_valid=np.ones(haadf.shape, bool),
        haadf_noise=noise,
        forward_model=forward_model,
        counts_scale=np.ones(len(maps)),
    )


def codes(checks):
    found = checks.diagnostics()
    assert all(len(d.sentence.split()) <= 30 for d in found)
    return [d.code for d in found]


def assert_quiet(counts, seed):
    checks = checks_of(truth_of(counts), seed, replace(MODEL, weights=MODEL.weights / counts))
    assert not checks.diagnostics(), f"{counts} counts, seed {seed}"


@pytest.mark.parametrize("counts", [0.3, 1.0, 20.0])
def test_the_truth_is_consistent(counts):
    assert_quiet(counts, seed=0)


@pytest.mark.nightly
def test_the_truth_of_many_seeds_is_consistent():
    for counts in (0.3, 1.0, 20.0):
        for seed in range(1, 40):
            assert_quiet(counts, seed)
    # a particle in a support with a count per 1000 pixels: two of them in 4 x 4 pixels happen by chance
    truth = np.stack([0.001 + 8 * bump(30, 34, 5), truth_of()[1]])
    assert not any(COUNTS in codes(checks_of(truth, seed)) for seed in range(40))


def noise_only(maps, haadf=None):
    """Which maps are noise in every test, beside an image of noise."""
    haadf = np.random.default_rng(9).normal(size=maps.shape[1:]) if haadf is None else haadf
    return without_structure(maps, np.ones(maps.shape, bool), haadf, np.ones(haadf.shape, bool)).tolist()


@pytest.mark.parametrize("scale", [1, 0.25, 1e-12])
@pytest.mark.parametrize("shape", [SHAPE, (24, 61), (6, 7)])
def test_maps_of_few_counts_are_left_out_where_they_are_noise(scale, shape):
    rng = np.random.default_rng(0)
    even, many = (scale * rng.poisson(mean, (10, *shape)) for mean in (np.full(shape, 0.3), np.full(shape, 3)))
    maps = scale * core_shell((24, 61), counts=3).maps
    # most of them, for a doubt is in favour of a fit; small scans and many counts are not judged
    left_out = sum(noise_only(even))
    assert left_out >= 8 if min(shape) > 8 else left_out == 0
    assert not any(noise_only(many) + noise_only(maps))
    assert not any(noise_only(maps + rng.normal(0, 1, maps.shape)))


def wave(period, size=64):
    return 1 + np.cos(2 * np.pi * np.arange(size) / period)


@pytest.mark.parametrize("counts", [0.05, 0.5, 50])
@pytest.mark.parametrize("period", [2, 4, 8])
def test_lattices_have_structure(period, counts):
    lattice = counts * np.outer(wave(period), wave(period))
    assert noise_only(np.random.default_rng(0).poisson(lattice, (4, *SHAPE))) == [False] * 4


def test_single_atoms_and_gradients_have_structure():
    rng = np.random.default_rng(1)
    atoms = np.full(SHAPE, 0.3)
    atoms.ravel()[rng.choice(atoms.size, 10, replace=False)] += 3
    bright = atoms + rng.normal(0, 0.3, SHAPE)
    assert sum(noise_only(rng.poisson(atoms, (20, *SHAPE)), bright)) == 0
    half, whole = (np.tile(np.linspace(low, 2 - low, n), (n, 1)) for low, n in ((0.5, 128), (0, 256)))
    assert sum(noise_only(rng.poisson(0.02 * half, (20, 128, 128)))) <= 1
    assert sum(noise_only(rng.poisson(0.005 * whole.T, (20, 256, 256)))) == 0
    # too weak for any test of the map alone
    weak = 1 + 0.5 * rng.choice([-1, 1], SHAPE)
    assert noise_only(rng.poisson(0.3 * weak, (4, *SHAPE)), weak) == [False] * 4


def left_out_beside(background, line, seeds, ratio=0.4, image=0.0):
    """How many of the maps of a line above a background, which is counted beside it, are left out."""
    found = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        haadf = background / background.mean() + image + rng.normal(0, 0.2, SHAPE)
        beside = SimpleNamespace(counts=rng.poisson(background / ratio), ratio=ratio)
        map, valid = rng.poisson(background + line), np.ones(SHAPE, bool)
        valid[50:, 5:9] = False
        found += without_structure(np.where(valid, map, -1)[None], valid[None], haadf, valid, [beside]).tolist()
    return sum(found)


THICKNESS = {
    "wedge": np.tile(np.linspace(0.4, 1.6, 64), (64, 1)),
    "grains": np.repeat(np.repeat(np.random.default_rng(0).uniform(0.5, 1.5, (8, 8)), 8, 0), 8, 1),
    "edge": np.where(np.arange(64)[:, None] > 20, 1.4, 0.1) * np.ones(SHAPE),
}


@pytest.mark.parametrize("counts, thickness", list(zip([0.05, 1, 40], THICKNESS, strict=False)))
def test_the_background_of_a_line_is_no_structure_of_its_own(counts, thickness):
    background = counts * THICKNESS[thickness]
    assert left_out_beside(background, 0 * background, range(10)) >= 7
    # a uniform line, one in proportion to the background, and that of a neighbour
    for line in (max(counts, 1) + 0 * background, background + 1, 4 * np.sqrt(max(counts, 1)) * bump(30, 20, 8)):
        assert not left_out_beside(background, line, range(3))


@pytest.mark.parametrize("counts", [0.05, 0.3, 1, 4])
@pytest.mark.parametrize("thickness", THICKNESS)
@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 40), marks=pytest.mark.nightly)])
def test_weak_structure_above_a_background_is_found(counts, thickness, seeds):
    """Of 8 to 10 standard errors for who knows where it is."""
    background, noise = counts * THICKNESS[thickness], np.sqrt(counts)
    y, x = np.indices(SHAPE)
    atoms = np.zeros(SHAPE)
    atoms.ravel()[np.random.default_rng(1).choice(4096, 10, replace=False)] = 1
    lines = {f"lattice {p}": (0.12 * noise * np.outer(wave(p), wave(p)), True) for p in (2, 4, 8)}
    lines["atoms"] = (max(3, 5 * noise) * atoms, True)
    lines["gradient"] = (0.4 * noise * x / 64, False)
    lines["particle"] = ((4 + 1.5 * counts) * ((y // 3 == 5) & (x // 3 == 9)), False)
    for name, (line, in_image) in lines.items():
        image = 2 * line / line.max() if in_image else 0.0
        assert left_out_beside(background, line, seeds, image=image) <= len(seeds) // 20, name


@pytest.mark.parametrize("phantom", [core_shell, gradient_alloy])
@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 20), marks=pytest.mark.nightly)])
def test_phantoms_contradict_neither_counts_nor_image(phantom, seeds):
    for seed in seeds:
        scan = phantom(SHAPE, counts=12.0, seed=seed)
        forward_model = LinearHaadfModel(scan.haadf_weights, scan.haadf_offset)
        # the noise of the image is its largest intensity over 50
        checks = checks_of(scan.truth, seed, forward_model, noise=0.02, elements=scan.elements)
        checks = replace(checks, maps=scan.maps.astype(float), haadf=scan.haadf)
        assert not set(codes(checks)) & {COUNTS, HAADF}, f"seed {seed}"


@pytest.mark.parametrize("shape", [(3, 40), (5, 5), (8, 8), (17, 9)])
def test_small_scans_raise_nothing_and_no_error(shape):
    truth = 3 + 3 * np.stack([bump(2, 2, 2, shape), bump(2, 8, 4, shape)])
    assert not set(codes(checks_of(truth))) & {COUNTS, HAADF}


def test_what_is_smooth_or_lacking_contradicts_its_counts():
    truth = truth_of()
    truth[0] += 10 * bump(13, 49, 2)
    (found,) = checks_of(truth, fused=np.stack([gaussian_filter(truth[0], 6), truth[1]])).diagnostics()
    assert (found.code, found.elements, found.severity) == (COUNTS, ("Fe",), "serious")
    assert np.abs(np.subtract(found.place, (13, 49))).max() <= 8
    fused = truth_of()
    fused[1, 4:12, 40:48] += 4
    (found,) = checks_of(fused=fused).diagnostics()
    assert (found.code, found.elements) == (COUNTS, ("O",))
    y, x = found.place
    assert 4 <= y <= 12 and 40 <= x <= 48
    # one sentence for all maps
    fused[0, 40:50, 8:20] += 8
    (both,) = checks_of(fused=fused).diagnostics()
    assert both.elements == ("Fe", "O")


@pytest.mark.parametrize("scale", [1.0, np.nan])
def test_the_deviation_of_a_square_by_hand(scale):
    """16 pixels of 5 instead of 2 counts: the root of 2 (80 ln(80 / 32) - 48); and 48 over the root of 32."""
    fused = np.full((1, 16, 16), 2.0)
    maps = fused.copy()
    maps[0, 8:12, 4:8] = 5.0
    checks = replace(
        checks_of(fused, forward_model=LinearHaadfModel(np.zeros(1), 0.0), elements=["Fe"]),
        maps=maps,
        counts_scale=np.array([scale]),
    )
    found = next(d for d in checks.diagnostics() if d.code == COUNTS)
    size = 8.5 if np.isnan(scale) else 7.1
    assert f"in 4 x 4 pixels at x = pixel 6, y = pixel 10 ({size} standard deviations)" in str(found)
    assert COUNTS not in codes(replace(checks, maps=(maps + fused) / 2))


def test_sums_and_residuals_by_hand():
    checks = checks_of(seed=3)
    residuals = checks.residuals()
    assert residuals.mean() == pytest.approx(0, abs=5 / np.sqrt(residuals.size))
    assert residuals.std() == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(residuals * np.sqrt(checks.variance), checks.maps - checks.fused, atol=1e-12)
    image = np.arange(30).reshape(5, 6)
    np.testing.assert_array_equal(square_sums(image, 2), [[14, 22, 30], [62, 70, 78]])
    np.testing.assert_array_equal(square_sums(np.stack([image, -image]), 3), [[[63, 90]], [[-63, -90]]])


def test_structure_of_flat_maps_and_saturated_images():
    for second in (np.full(SHAPE, 2.0), truth_of(0.004)[1]):
        checks = checks_of(np.stack([truth_of()[0], second]), forward_model=replace(MODEL, weights=np.array([5.0, 0])))
        (found,) = checks.diagnostics()
        assert (found.code, found.elements, found.severity) == (FLAT, ("O",), "note")
    truth = np.stack([truth_of()[0], 0.01 + np.zeros(SHAPE)])
    truth[1, 16:24, 40:48] = 2.0
    checks = replace(checks_of(truth), haadf_valid=truth[1] < 1)
    assert FLAT not in codes(checks)
    checks.maps[1, 16:24, 40:48] = 0
    assert codes(replace(checks, fused=checks.maps)) == [FLAT]


def test_structure_does_not_follow_the_unit_of_the_maps():
    """The sum of squares of maps near 1e19 is beyond single precision."""
    checks = checks_of(np.stack([truth_of()[0], truth_of()[0]]))
    alike = {
        name: (getattr(checks, name) * scale).astype(np.float32) for name, scale in (("maps", 1e18), ("fused", 1e18))
    }
    large = replace(
        checks, **alike, variance=checks.variance * 1e36, counts_scale=np.asarray(checks.counts_scale) * 1e18
    )
    with np.errstate(all="raise"):
        np.testing.assert_allclose(large.structure(), checks.structure(), rtol=1e-4)


@pytest.mark.parametrize("extra, y, x", [
    (30.0 * (np.arange(64) >= 48), slice(None), slice(48, 64)),
    (60 * bump(12, 50, 4), slice(8, 17), slice(46, 55)),
], ids=["step", "particle"])  # fmt: skip
def test_contrast_that_is_not_mapped_is_found(extra, y, x):
    (found,) = checks_of(extra=extra).diagnostics()
    assert (found.code, found.severity) == (HAADF, "information")
    inside = np.zeros(SHAPE, bool)
    inside[y, x] = True
    assert inside[found.place]


@pytest.mark.parametrize("moved", [lambda a: np.roll(a, 8, 1), lambda a: a[:, ::-1], np.rot90], ids=["", "flipped", ""])
def test_a_misaligned_image_is_reported(moved):
    checks = checks_of()
    (found,) = replace(checks, haadf=moved(checks.haadf)).diagnostics()
    assert found.code == HAADF and "a misaligned image (register='shift')" in found.sentence


def test_unexplained_contrast_by_hand_and_too_small():
    """Residuals 10 and 30, levels 15 and 35 of a noiseless image: the root of 500 over 10."""
    step = np.zeros((16, 16))
    step[:, 8:] = 20.0
    fused = np.full((1, 16, 16), 5.0)
    checks = checks_of(fused, forward_model=LinearHaadfModel(np.ones(1), 0.0), elements=["Fe"], noise=0.1)
    checks = replace(checks, maps=fused, haadf=10 + 5 + step, variance=np.full(fused.shape, 1e-6))
    found = next(d for d in checks.diagnostics() if d.code == HAADF)
    assert "224% rms, most at " in found.sentence and found.place == (4, 12)
    # Significant, but less than a tenth of the contrast; or without a forward model.
    step = np.arange(64) >= 48
    weak = replace(MODEL, weights=MODEL.weights / 10)
    assert not checks_of(truth_of(200), forward_model=weak, noise=0.1, extra=6.0 * step).diagnostics()
    none = LinearHaadfModel(np.zeros(2), 100.0)
    assert not checks_of(forward_model=none, extra=60 * bump(12, 50, 4)).diagnostics()


def test_squares_are_larger_than_the_blur():
    """A blurred image moves intensity between small squares."""
    truth = np.full((2, *SHAPE), 2.0)
    truth[0] += 60 * bump(22, 22, 1.0) + 60 * bump(42, 42, 1.0)
    model = replace(MODEL, weights=MODEL.weights / 4, blur=3.0)
    extra = gaussian_filter(model.image(truth), 3.0) - model.image(truth)
    assert HAADF not in codes(checks_of(truth, forward_model=model, extra=extra))
    assert HAADF in codes(checks_of(truth, forward_model=replace(model, blur=0.0), extra=extra))


def test_masked_pixels_are_not_checked():
    checks = checks_of(seed=1)
    valid, haadf_valid = checks.valid.copy(), checks.haadf_valid.copy()
    valid[0, 8:20, 8:20] = haadf_valid[40:50, 10:22] = False
    maps, haadf = checks.maps.copy(), checks.haadf.copy()
    maps[0, 8:20, 8:20], haadf[40:50, 10:22] = 500.0, -3000.0
    wrong = replace(checks, maps=maps, haadf=haadf)
    assert set(codes(wrong)) == {COUNTS, HAADF}
    # as a registered image is beyond its edges
    haadf[40:50, 10:22] = np.nan
    masked = replace(wrong, haadf=haadf, valid=valid, haadf_valid=haadf_valid)
    # whole squares of them divide nothing by nothing
    with np.errstate(all="raise"):
        assert codes(masked) == []
    assert not masked.residuals()[~valid].any()


def test_the_scale_of_the_data_does_not_matter():
    truth = truth_of()
    truth[0] += 10 * bump(13, 49, 2)
    fused = np.stack([gaussian_filter(truth[0], 6), truth[1]])
    checks = checks_of(truth, fused=fused, extra=60 * bump(50, 12, 4))
    scale, gain = np.array([3.0, 0.5])[:, None, None], 7.0
    scaled = replace(
        checks, maps=checks.maps * scale, fused=checks.fused * scale, variance=checks.variance * scale**2,
        counts_scale=scale.ravel(), haadf=gain * checks.haadf - 200, haadf_noise=gain * checks.haadf_noise,
        forward_model=LinearHaadfModel(gain * MODEL.weights / scale.ravel(), gain * MODEL.offset - 200),
    )  # fmt: skip
    assert scaled.diagnostics() == checks.diagnostics() and codes(checks) == [COUNTS, HAADF]


def test_checks_of_a_fit_of_counts():
    """Units of 2.5 per count on a background of 3 counts: net maps, and variance of counts."""
    scan = core_shell((16, 20), counts=15.0)
    settings = CalibratedSettings(regularization="tv", noise="shifted_poisson", background=7.5, tol=1e-2)
    maps = 2.5 * np.random.default_rng(0).poisson(scan.truth + 3).astype(np.float64)
    problem = calibrated_problem(maps, scan.haadf, scan.atomic_numbers, settings)
    fused = primal_dual(problem, settings)[0].maps
    valid = np.ones(maps.shape, bool)
    valid[0, 3] = False
    data = ScanData(scan.elements, scan.atomic_numbers, np.where(valid, maps, np.nan), scan.haadf, valid, valid[1])
    for known, background in ((data, 7.5), (replace(data, background=np.full(maps.shape, 5.0)), 5.0)):
        found = ConsistencyChecks.of(known, fused, problem)
        np.testing.assert_allclose(found.maps, np.where(valid, maps - background, 0))
        np.testing.assert_allclose(found.variance, 2.5 * (fused + background), rtol=1e-6)


def test_checks_of_a_fit_of_numbers():
    scan = core_shell((16, 20), counts=15.0)
    settings = CalibratedSettings(
        regularization="tv", noise="gaussian", variance=(4.0, 9.0, 1.0), background=1.0, tol=1e-2
    )
    problem = calibrated_problem(scan.truth, scan.haadf, scan.atomic_numbers, settings)
    fused = primal_dual(problem, settings)[0].maps
    valid = np.ones(fused.shape, bool)
    data = ScanData(scan.elements, scan.atomic_numbers, scan.truth, scan.haadf, valid, valid[0])
    found = ConsistencyChecks.of(data, fused, problem)
    np.testing.assert_allclose(found.variance[:, 3, 4], [4, 9, 1])
    np.testing.assert_allclose(found.maps, scan.truth - 1)
    assert isinstance(found.diagnostics(), list)
