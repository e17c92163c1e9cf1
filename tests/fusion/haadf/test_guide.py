"""Claims about the guide: the HAADF image without its noise, with its edges, found once."""

from types import SimpleNamespace

import numpy as np
import pytest
from calibrated_cases import observe
from convex import differences, guide, tgv_minimum
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import gaussian_filter

import hyperspy_fusion as hf
from hyperspy_fusion.data import interface
from hyperspy_fusion.fusion.haadf import guide as module
from hyperspy_fusion.fusion.haadf.guide import DENOISED_EDGE, SMOOTHED_EDGE, Guide
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.selection.cross_validation import folds_of
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual
from hyperspy_fusion.fusion.terms.haadf_model import haadf_noise

SETTINGS = SimpleNamespace(guide_blur=None, eta=0.9)
NOISE = 0.03


def clean_image(ny=48, nx=40):
    """A slope with a step of 0.5 on it, from 0 to 1."""
    y, x = np.mgrid[:ny, :nx] / np.array([ny - 1, nx - 1])[:, None, None]
    return 0.3 * y + 0.2 * x + 0.5 * (x > 0.6)


def image_of(noise=NOISE, **shape):
    clean = clean_image(**shape)
    return clean + noise * np.random.default_rng(5).standard_normal(clean.shape)


def guide_of(image, valid=None, dtype=np.float64, **options):
    return Guide(image, np.ones(image.shape, bool) if valid is None else valid, np.dtype(dtype), **options)


@pytest.fixture
def tight(monkeypatch):
    monkeypatch.setattr(module, "_TOL", 1e-11)
    monkeypatch.setattr(module, "_MAX_ITER", 30000)


def test_denoised_is_the_minimum_that_cvxpy_finds(tight):
    found = guide_of(image_of(ny=10, nx=11))
    sigma = haadf_noise(found.scaled)
    assert sigma > 0.01
    assert_allclose(found.denoised(2.0), tgv_minimum(found.scaled, sigma, 2.0), atol=2e-3 * sigma)


def test_the_tolerance_is_fine_enough(monkeypatch):
    """What a tighter fit changes is small beside the noise that is left."""
    image, clean = image_of(), clean_image()
    usual = guide_of(image).denoised()
    monkeypatch.setattr(module, "_TOL", 1e-7)
    tight = guide_of(image).denoised()
    left = np.std(tight - clean)
    assert 0 < np.std(usual - tight) < 0.1 * left


def test_noise_goes_and_edges_stay():
    found = guide_of(image_of())
    # in the units of the scaled image, whose range is a little more than 1
    gain, offset = np.polyfit(found.scaled.ravel(), image_of().ravel(), 1)
    rest = gain * found.denoised() + offset - clean_image()
    assert np.std(rest) < NOISE / 3
    # the step is still between two pixels, where a Gaussian of as little noise has half of it
    across = np.diff(gain * found.denoised(), axis=1)[:, 23]
    assert 0.4 < across.mean() < 0.52
    assert np.diff(gaussian_filter(clean_image(), 0.7), axis=1)[:, 23].mean() < 0.3
    clean = clean_image()
    found = guide_of(image_of(noise=0.003))
    gain, offset = np.polyfit(found.scaled.ravel(), image_of(noise=0.003).ravel(), 1)
    assert np.std(gain * found.denoised() + offset - clean) < 0.003 / 2
    found = guide_of(clean_image())
    assert_array_equal(found.denoised(), found.scaled)
    assert (found.scaled.min(), found.scaled.max()) == (0, 1)


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, np.transpose])
def test_a_turned_image_has_the_turned_guide(turn, monkeypatch):
    """Of the same iterations."""
    monkeypatch.setattr(module, "_MAX_ITER", 30000)
    image = image_of(ny=20, nx=26)
    assert_allclose(guide_of(np.ascontiguousarray(turn(image))).denoised(), turn(guide_of(image).denoised()), atol=1e-8)


def test_unit_and_threads_do_not_change_it():
    image = image_of()
    assert_allclose(guide_of(1e4 * image - 77).denoised(), guide_of(image).denoised(), atol=1e-9)
    one, two = (guide_of(image_of(), num_workers=n, dtype=np.float32).denoised() for n in (1, 2))
    assert_array_equal(one, two)


def test_pixels_that_do_not_count_have_no_say():
    """Neither their values nor copies of their neighbours', which in blocks would be structure."""
    image = image_of()
    valid = np.ones(image.shape, bool)
    valid[10, 12] = valid[30:33, 30:33] = valid[20:26, 8:14] = False
    wild = np.where(valid, image, 1e6)
    assert_array_equal(guide_of(wild, valid).denoised(), guide_of(np.where(valid, image, -5), valid).denoised())
    rest = guide_of(wild, valid).denoised() - guide_of(image).denoised()
    assert np.std(rest) < 0.1 * NOISE and np.std(rest[20:26, 8:14]) < NOISE / 3
    valid = np.ones((48, 40), bool)
    valid[:20] = False
    image = np.where(valid, image_of(), 0.2)
    assert_allclose(guide_of(image, valid).noise, guide_of(image_of()).noise, rtol=0.15)


def lattice(period, size=48):
    y, x = 2 * np.pi / period * np.mgrid[:size, :size]
    clean = 0.5 + 0.5 * np.cos(x + 0.3) * np.cos(y + 0.7)
    return clean + 0.01 * np.random.default_rng(2).standard_normal(clean.shape)


@pytest.mark.parametrize("period", [2.3, 3, 4, 5, 6])
def test_a_lattice_of_few_pixels_is_no_noise(period):
    """Second differences take it for noise, and without it nothing would be left of the guide."""
    found = guide_of(lattice(period))
    assert haadf_noise(found.scaled) > 0.03
    assert found.noise is None
    assert_smoothed(found)


def assert_smoothed(found):
    """As by the Gaussian of the default, and said."""
    for kind in ("guided", "directional"):
        smoothed = found.of(kind, SimpleNamespace(guide_blur=0.7, eta=0.9), np.float64)
        assert_array_equal(found.of(kind, SETTINGS, np.float64), smoothed)
        (told,) = found.about(kind, SETTINGS)
        assert told.code == "guide-not-denoised" and "guide_blur=0.7" in told.sentence
        assert not found.about(kind, SimpleNamespace(guide_blur=0.7))
    assert not found.about("tgv", SETTINGS)


def test_a_lattice_is_told_with_the_fit():
    image = lattice(4)
    maps = np.random.default_rng(0).poisson(5 * image.clip(0, None))[None]
    observation = observe(maps, image, [26], CalibratedSettings())
    codes = [
        [d.code for d in observation.problem(CalibratedSettings(guide_blur=blur)).diagnostics] for blur in (None, 0.7)
    ]
    assert codes[0].count("guide-not-denoised") == 1 and "guide-not-denoised" not in codes[1]


@pytest.mark.parametrize("name", hf.data.PHANTOMS)
@pytest.mark.parametrize("blur", [0.0, 1.0])
def test_structure_of_more_pixels_leaves_the_noise_known(name, blur):
    scan = hf.data.PHANTOMS[name]((48, 48), haadf_blur=blur)
    found = guide_of(scan.haadf)
    assert_allclose(found.noise * np.ptp(scan.haadf), 1 / 50, rtol=0.5)


def test_pixels_far_off_and_holes():
    image = image_of()
    spiked = image.copy()
    spiked[[5, 20, 41], [7, 30, 15]] += [0.6, -0.6, 0.9]
    rest = guide_of(spiked).denoised() - guide_of(image).denoised()
    assert np.abs(rest).max() < 3 * NOISE
    # as many as in a lattice are
    comb = clean_image() * 0.2
    comb[::4, ::4] += 0.5
    assert not module._outlying(comb, 0.01).any()
    comb[8:] = 0
    assert module._outlying(comb, 0.01).sum() == 20
    # Not by copies of the noise at its rim, which would leave four tenths of it.
    image, hole = image_of(), (slice(20, 32), slice(4, 16))
    valid = np.ones(image.shape, bool)
    valid[hole] = False
    found = guide_of(image, valid)
    gain, offset = np.polyfit(found.scaled[valid], image[valid], 1)
    rest = gain * found.denoised() + offset - clean_image()
    assert np.std(rest[hole]) < 0.1 * NOISE


def test_images_that_tell_little():
    found = guide_of(image_of(ny=8, nx=9))
    assert found.noise is None
    assert_smoothed(found)
    image = np.zeros((48, 40))
    image[20, 20] = 3.0
    assert guide_of(image).scaled.max() == 1


def test_what_the_penalties_take():
    found = guide_of(image_of())
    assert_allclose(found.of("guided", SETTINGS, np.float64), differences(found.denoised()), atol=1e-12)
    edges = differences(found.denoised(2.0))
    expected = np.sqrt(0.9) * edges / np.sqrt((edges**2).sum(axis=0) + 0.001**2)
    assert_allclose(found.of("directional", SETTINGS, np.float64), expected, atol=1e-12)
    assert (SMOOTHED_EDGE, DENOISED_EDGE) == (0.003, 0.001)
    assert found.of("tv", SETTINGS, np.float64) is None and found.of("tgv", SETTINGS, np.float64) is None
    single = found.of("guided", SETTINGS, np.float32)
    assert single.dtype == np.float32 and single.flags.c_contiguous
    found = guide_of(image_of())
    settings, edges = SimpleNamespace(guide_blur=1.3, eta=0.9), guide(found.haadf, 1.3)
    assert_allclose(found.of("guided", settings, np.float64), edges, atol=1e-12)
    expected = np.sqrt(0.9) * edges / np.sqrt((edges**2).sum(axis=0) + 0.003**2)
    assert_allclose(found.of("directional", settings, np.float64), expected, atol=1e-12)
    assert not found._denoised


def counted(monkeypatch):
    calls = []

    def solve(problem, *args, **options):
        calls.append(problem.shape)
        return primal_dual(problem, *args, **options)

    monkeypatch.setattr(module, "primal_dual", solve)
    return calls


def test_noise_is_taken_out_once_and_for_a_guide_only(monkeypatch):
    calls, scan = counted(monkeypatch), interface((24, 24), counts=4.0)
    observation = observe(scan.maps, scan.haadf, scan.atomic_numbers, CalibratedSettings())
    assert not calls
    folds = folds_of(
        observation.scan.maps,
        observation.scan.valid,
        observation.noise.counts_scale,
        None,
        0.0,
        np.random.default_rng(0),
    )
    for one in (observation, observation.part(folds[0])):
        for kind in ("guided", "directional", "tv"):
            one.problem(CalibratedSettings(regularization=kind, lambda_reg=0.7, guide_blur=None))
    assert calls == [(1, 24, 24)] * 2  # one for each of the two penalties that have a guide
    calls, scan = counted(monkeypatch), interface((24, 24), counts=4.0)
    observation = observe(scan.maps, scan.haadf, scan.atomic_numbers, CalibratedSettings())
    for options in ({"regularization": "tgv"}, {"regularization": "none"}, {"guide_blur": 0.7}):
        observation.problem(CalibratedSettings(**{"guide_blur": None} | options))
    assert not calls


def test_ctrl_c_ends_it(monkeypatch):
    def stopped(problem, *args, **options):
        return SimpleNamespace(reason=StopReason.INTERRUPTED, maps=problem.initial_maps), None

    monkeypatch.setattr(module, "primal_dual", stopped)
    with pytest.raises(KeyboardInterrupt):
        guide_of(image_of()).of("guided", SETTINGS, np.float64)
