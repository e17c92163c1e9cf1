"""Phantoms: the truth is what the docstrings say, the scan is drawn from it."""

import numpy as np
import pytest

from hyperspy_fusion.data import Phantom, core_shell, psnr


@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (80, 48)])
def test_everything_has_the_asked_shape(shape):
    phantom = core_shell(shape)
    assert phantom.haadf.shape == shape
    assert phantom.maps.shape == phantom.truth.shape == (3, *shape)


def test_particles_are_round_in_any_frame():
    # a particle keeps its pixels when the frame gets wider: radii go with the shorter side
    square, wide = (core_shell(shape).truth[1] for shape in [(96, 96), (96, 160)])
    assert np.count_nonzero(wide) == pytest.approx(np.count_nonzero(square), rel=0.02)


def test_brightest_pixel_has_the_asked_counts_and_lasts_over_seeds():
    one, two = core_shell(counts=7, seed=1), core_shell(counts=7, seed=2)
    assert one.truth.max() == pytest.approx(7)
    np.testing.assert_array_equal(one.truth, two.truth)
    assert not np.array_equal(one.maps, two.maps)
    np.testing.assert_array_equal(one.maps, core_shell(counts=7, seed=1).maps)


def test_count_ratios_are_atomic_ratios():
    _, iron, oxygen = core_shell().truth
    np.testing.assert_allclose(iron, 0.75 * oxygen, rtol=1e-12)


def test_thickness_is_that_of_spheres():
    # volume of all oxide cores in pixels**3 of the shorter side, against the sum of 4/3 pi r**3
    from hyperspy_fusion.data import _PARTICLES, _core_shell_thickness

    oxide, platinum = _core_shell_thickness((400, 500))
    cores = sum(4 / 3 * np.pi * (core * radius) ** 3 for _, _, radius, core in _PARTICLES)
    spheres = sum(4 / 3 * np.pi * radius**3 for _, _, radius, _ in _PARTICLES)
    assert oxide.sum() / 400**2 == pytest.approx(cores, rel=1e-3)
    assert (oxide + platinum).sum() / 400**2 == pytest.approx(spheres, rel=1e-3)


def test_counts_are_poisson():
    phantom = core_shell((128, 128), counts=30)
    bright = phantom.truth > 5
    scaled = (phantom.maps[bright] - phantom.truth[bright]) / np.sqrt(phantom.truth[bright])
    # mean 0, variance 1, each within five standard errors
    assert abs(scaled.mean()) < 5 / np.sqrt(scaled.size)
    assert abs(scaled.var() - 1) < 5 * np.sqrt(2.5 / scaled.size)
    assert phantom.maps.dtype == np.uint16
    assert not phantom.maps[phantom.truth == 0].any()


def test_haadf_is_the_incoherent_law_plus_noise():
    clean, noisy = core_shell(haadf_snr=np.inf), core_shell(haadf_snr=20)
    law = 78**1.7 * clean.truth[0] + 26**1.7 * clean.truth[1] + 8**1.7 * clean.truth[2]
    np.testing.assert_allclose(clean.haadf, law / law.max(), rtol=1e-12)
    assert (noisy.haadf - clean.haadf).std() == pytest.approx(1 / 20, rel=0.03)


def test_signals_are_calibrated_named_and_copies():
    phantom = core_shell((40, 56), pixel_size_nm=0.4)
    maps, haadf = phantom.signals()
    assert [m.metadata.Sample.elements for m in maps] == [["Pt"], ["Fe"], ["O"]]
    assert [m.metadata.General.title for m in maps] == ["Pt", "Fe", "O"]
    assert phantom.atomic_numbers == (78, 26, 8)
    for signal in (*maps, haadf):
        x, y = signal.axes_manager.signal_axes
        assert (x.size, y.size, x.scale, y.scale, x.units) == (56, 40, 0.4, 0.4, "nm")
    maps[0].data[:] = 0
    haadf.data[:] = 0
    assert phantom.maps[0].any() and phantom.haadf.any()


def test_phantom_is_frozen():
    with pytest.raises(AttributeError):
        core_shell((16, 16)).title = "other"
    assert isinstance(core_shell((16, 16)), Phantom)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"shape": (128,)}, r"shape is \(128,\): a phantom needs \(ny, nx\)"),
        ({"shape": (4, 64)}, "both at least 8 pixels"),
        ({"counts": 0}, "counts is 0: it must be above 0"),
        ({"haadf_snr": -1}, "haadf_snr is -1"),
        ({"pixel_size_nm": float("nan")}, "pixel_size_nm is nan"),
    ],
)
def test_wrong_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        core_shell(**options)


def test_psnr():
    truth = np.array([[0.0, 10.0]])
    # mean squared error 0.5, peak 10: 10 log10(200)
    assert psnr(np.array([[1, 10]], dtype=np.uint8), truth) == pytest.approx(23.0103)
    assert psnr(truth, truth) == np.inf
    with pytest.raises(ValueError, match=r"image has shape \(2,\), truth has \(1, 2\)"):
        psnr(np.ones(2), truth)
    with pytest.raises(ValueError, match=r"largest value of truth is 0.0"):
        psnr(truth, 0 * truth)
