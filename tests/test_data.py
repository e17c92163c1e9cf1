"""Phantoms: the truth is what the docstrings say, the scan is drawn from it. Measured files: found and checked."""

import hashlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import shared

from hyperspy_fusion import element_maps
from hyperspy_fusion.data import (
    PHANTOMS,
    Phantom,
    atomic_columns,
    co3o4_mn3o4,
    core_shell,
    dysco3,
    fetch,
    files,
    gradient_alloy,
    interface,
    overlapping_lines,
    psnr,
)

every_phantom = pytest.mark.parametrize("make", PHANTOMS.values(), ids=PHANTOMS)


@every_phantom
@pytest.mark.parametrize("shape", [(48, 80), (80, 48)])
def test_everything_has_the_asked_shape(make, shape):
    phantom = make(shape)
    n = len(phantom.elements)
    assert phantom.haadf.shape == shape and phantom.maps.shape == phantom.truth.shape == (n, *shape)
    assert phantom.haadf_weights.shape == (n,) and len(phantom.atomic_numbers) == n
    assert isinstance(phantom, Phantom) and PHANTOMS[make.__name__] is make
    with pytest.raises(AttributeError):
        phantom.title = "other"


@every_phantom
def test_counts_scale_the_truth_and_nothing_else(make):
    phantom, one = (make((64, 48), counts=peak, haadf_snr=np.inf) for peak in (16, 1))
    assert phantom.truth.max() == pytest.approx(16, rel=1e-12) and phantom.truth.min() >= 0
    # the weakest map has at least a third of the counts of the strongest, at its brightest pixel
    assert phantom.truth.max(axis=(1, 2)).min() > 16 / 3
    np.testing.assert_allclose(phantom.truth, 16 * one.truth, rtol=1e-12)
    np.testing.assert_allclose(phantom.haadf, one.haadf, rtol=1e-12)
    np.testing.assert_allclose(16 * phantom.haadf_weights, one.haadf_weights, rtol=1e-12)


@every_phantom
def test_noise_comes_from_the_seed_and_truth_does_not(make):
    one, same, other = (make((40, 56), counts=7, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.truth, other.truth)
    np.testing.assert_array_equal(one.maps, same.maps)
    np.testing.assert_array_equal(one.haadf, same.haadf)
    assert not np.array_equal(one.maps, other.maps)
    assert not np.array_equal(one.haadf, other.haadf)
    # options of the HAADF image leave the maps alone
    blurred = make((40, 56), counts=7, seed=1, haadf_blur=2, haadf_offset=1, haadf_gain=5, haadf_snr=3)
    np.testing.assert_array_equal(one.maps, blurred.maps)


@every_phantom
def test_haadf_is_coefficients_times_truth_plus_offset(make):
    phantom = make((48, 64), haadf_snr=np.inf, haadf_offset=0.25, haadf_gain=300.0, counts=4)
    forward_model = phantom.haadf_offset + np.tensordot(phantom.haadf_weights, phantom.truth, 1)
    np.testing.assert_allclose(phantom.haadf, forward_model, rtol=1e-12)
    assert phantom.haadf_offset == 0.25
    assert phantom.haadf.max() == pytest.approx(300.25, rel=1e-12)
    # weights of two elements are as their atomic numbers to the power 1.7
    z, w = phantom.atomic_numbers, phantom.haadf_weights
    np.testing.assert_allclose(w / w[0], [(number / z[0]) ** 1.7 for number in z], rtol=1e-12)


def test_blur_smooths_and_keeps_the_mean():
    options = {"haadf_snr": np.inf, "haadf_offset": 0.2, "haadf_gain": 4.0}
    sharp, blurred = (atomic_columns((64, 96), haadf_blur=sigma, **options) for sigma in (0, 2.5))
    assert blurred.haadf.mean() == pytest.approx(sharp.haadf.mean(), rel=1e-12)
    assert blurred.haadf.std() < 0.6 * sharp.haadf.std()
    np.testing.assert_array_equal(blurred.haadf_weights, sharp.haadf_weights)
    # a linear slope stays where it is, away from the mirrored edges
    slope = {"tilt_deg": 0, "thickness_ramp": 0.9, "haadf_snr": np.inf}
    sharp, blurred = (interface((64, 64), haadf_blur=sigma, **slope) for sigma in (0, 2))
    far = np.s_[10:-10, 45:-10]
    np.testing.assert_allclose(blurred.haadf[far], sharp.haadf[far], rtol=1e-5)
    assert abs(blurred.haadf - sharp.haadf)[32, 31] > 0.03

    # the second moment of a step's derivative is the variance of the blur: two widths differ by their squares
    def variance(sigma):
        row = interface((64, 64), haadf_blur=sigma, haadf_snr=np.inf, tilt_deg=0, thickness_ramp=0).haadf[32]
        steps = -np.diff(row)
        place = np.arange(63) - 31
        return (steps * place**2).sum() / steps.sum()

    assert variance(3) - variance(0) == pytest.approx(9, rel=0.01)
    options = {"shape": (96, 96), "haadf_blur": 3, "haadf_offset": -2, "haadf_gain": 50}
    clean, noisy = (gradient_alloy(haadf_snr=snr, **options).haadf for snr in (np.inf, 10))
    noise = noisy - clean
    assert noise.std() == pytest.approx(5, rel=0.03)
    # neighbours are independent: five standard errors of a correlation
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 5 / 95


def test_signatures_and_docstrings_show_the_options():
    scan = ["counts", "haadf_snr", "haadf_blur", "haadf_offset", "haadf_gain", "seed"]
    for make in PHANTOMS.values():
        parameters = inspect.signature(make).parameters
        assert list(parameters)[0] == "shape"
        assert list(parameters)[-len(scan) :] == scan
        assert parameters["counts"].default == 15
        for name in parameters:
            assert f"\n{name}\n    " in make.__doc__
        assert "**" not in make.__doc__
    with pytest.raises(TypeError, match="unexpected keyword argument 'count'"):
        interface(count=3)


@pytest.mark.parametrize(
    "phantom, determined",
    [
        # iron is 3/4 of oxygen everywhere
        (core_shell(), (True, False, False)),
        (atomic_columns(), (True, True, True)),
        (interface(), (True, True)),
        # a slab: atomic volumes times atoms sum to a constant, which the offset takes
        (interface(thickness_ramp=0), (False, False)),
        (gradient_alloy(), (True, True, True)),
        (gradient_alloy(thickness_ramp=0), (False, False, False)),
    ],
)
def test_determined_coefficients_are_those_of_free_maps(phantom, determined):
    assert phantom.weights_determined == determined


@every_phantom
def test_determined_coefficients_are_found_by_fits(make):
    phantom = make((64, 64), haadf_snr=np.inf, haadf_offset=0.3, haadf_gain=2, counts=4)
    pixels = phantom.truth.reshape(len(phantom.elements), -1)
    columns = np.vstack([pixels, np.ones(pixels.shape[1])]).T
    found = np.linalg.lstsq(columns, phantom.haadf.ravel(), rcond=1e-12)[0]
    known = np.array(phantom.weights_determined)
    np.testing.assert_allclose(found[:-1][known], phantom.haadf_weights[known], rtol=1e-6)
    assert found[-1] == pytest.approx(0.3, rel=1e-6)


def test_the_demo_scan_has_not_changed():
    # README and demo figures are made of it
    phantom = core_shell()
    assert phantom.maps.sum(axis=(1, 2)).tolist() == [67602, 28185, 37601]
    assert phantom.maps[:, 44, 40].tolist() == [3, 12, 14]
    assert phantom.haadf[44, 40] == pytest.approx(0.437067352079556, rel=1e-14)
    assert (phantom.haadf_offset, phantom.pixel_size_nm) == (0, 0.5)
    clean, noisy = core_shell(haadf_snr=np.inf), core_shell(haadf_snr=20)
    forward_model = 78**1.7 * clean.truth[0] + 26**1.7 * clean.truth[1] + 8**1.7 * clean.truth[2]
    np.testing.assert_allclose(clean.haadf, forward_model / forward_model.max(), rtol=1e-12)
    assert (noisy.haadf - clean.haadf).std() == pytest.approx(1 / 20, rel=0.03)
    phantom = core_shell((128, 128), counts=30)
    bright = phantom.truth > 5
    scaled = (phantom.maps[bright] - phantom.truth[bright]) / np.sqrt(phantom.truth[bright])
    # mean 0, variance 1, each within five standard errors
    assert abs(scaled.mean()) < 5 / np.sqrt(scaled.size)
    assert abs(scaled.var() - 1) < 5 * np.sqrt(2.5 / scaled.size)
    assert phantom.maps.dtype == np.uint16
    assert not phantom.maps[phantom.truth == 0].any()


def test_particles_are_round_and_thick_as_spheres():
    # a particle keeps its pixels when the frame gets wider: radii go with the shorter side
    square, wide = (core_shell(shape).truth[1] for shape in [(96, 96), (96, 160)])
    assert np.count_nonzero(wide) == pytest.approx(np.count_nonzero(square), rel=0.02)
    _, iron, oxygen = core_shell().truth
    np.testing.assert_allclose(iron, 0.75 * oxygen, rtol=1e-12)
    # volume of all oxide cores in pixels**3 of the shorter side, against the sum of 4/3 pi r**3
    from hyperspy_fusion.data.phantoms import _PARTICLES, _core_shell_thickness

    oxide, platinum = _core_shell_thickness((400, 500))
    cores = sum(4 / 3 * np.pi * (core * radius) ** 3 for _, _, radius, core in _PARTICLES)
    spheres = sum(4 / 3 * np.pi * radius**3 for _, _, radius, _ in _PARTICLES)
    assert oxide.sum() / 400**2 == pytest.approx(cores, rel=1e-3)
    assert (oxide + platinum).sum() / 400**2 == pytest.approx(spheres, rel=1e-3)


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


def test_columns_of_strontium_titanate():
    # 8 pixels per cell, an odd frame: the Sr column is centred on pixel (24, 32)
    phantom = atomic_columns((49, 65), pixel_size_nm=0.3905 / 8, column_sigma_nm=0.05, haadf_snr=np.inf)
    assert phantom.elements == ("Sr", "Ti", "O")
    strontium, titanium, oxygen = phantom.truth
    corner, centre, edges = (24, 32), (28, 36), [(24, 36), (28, 32)]
    peak = strontium[corner]
    assert titanium[centre] == pytest.approx(peak, rel=1e-9)
    for site in (centre, *edges):
        # neighbours half a cell away add four times exp(-8.1) at most
        assert oxygen[site] == pytest.approx(peak, rel=2e-3)
    assert strontium[centre] < 1e-5 * peak and titanium[corner] < 1e-5 * peak
    assert oxygen[corner] < 2e-3 * peak
    # an Sr column, a Ti-O column, an O column: Z**1.7 of 38, of 22 and 8, of 8
    bright = phantom.haadf[corner]
    assert phantom.haadf[centre] / bright == pytest.approx((22**1.7 + 8**1.7) / 38**1.7, rel=1e-3)
    assert phantom.haadf[edges[0]] / bright == pytest.approx(8**1.7 / 38**1.7, rel=0.03)
    truth = atomic_columns((33, 33), pixel_size_nm=0.02, column_sigma_nm=0.06).truth[0]
    # 3 pixels from the centre is one sigma
    assert truth[16, 19] / truth[16, 16] == pytest.approx(np.exp(-0.5), rel=1e-6)
    assert truth[19, 19] / truth[16, 16] == pytest.approx(np.exp(-1), rel=1e-6)
    # 10 pixels per cell, 40 x 60 of them: whole cells
    strontium, titanium, oxygen = atomic_columns((40, 60), pixel_size_nm=0.03905).truth.sum(axis=(1, 2))
    assert titanium == pytest.approx(strontium, rel=1e-9)
    assert oxygen == pytest.approx(3 * strontium, rel=1e-9)
    truth = atomic_columns((50, 50), pixel_size_nm=0.03905).truth
    for turned in (truth[:, ::-1], truth[:, :, ::-1], truth.transpose(0, 2, 1)):
        np.testing.assert_allclose(turned, truth, rtol=1e-9)
    np.testing.assert_allclose(truth[:, 10:, :-10], truth[:, :-10, 10:], rtol=1e-9)


def test_the_interface_of_al2cu_and_aluminium():
    phantom = interface((64, 64), thickness_ramp=0, counts=10)
    left, right = phantom.truth[:, 32, 5], phantom.truth[:, 32, -5]
    assert phantom.elements == ("Al", "Cu")
    assert left[0] == pytest.approx(2 * left[1], rel=1e-12)
    assert right[0] == pytest.approx(10, rel=1e-12) and right[1] == 0
    # 8 atoms in 0.6067 * 0.6067 * 0.4877 nm3 against 4 in 0.40496**3 nm3
    assert left[0] / right[0] == pytest.approx(0.73988, rel=1e-4)
    phantom = interface((64, 64), thickness_ramp=0, haadf_snr=np.inf)
    (aluminium, copper), row = phantom.truth[:, 32], phantom.haadf[32]
    assert (np.diff(aluminium) >= 0).all() and aluminium[-1] > 1.3 * aluminium[0]
    assert (np.diff(copper) <= 0).all()
    assert (np.diff(row) <= 0).all() and row[-1] < 0.5 * row[0]
    copper = interface((101, 81), tilt_deg=20, thickness_ramp=0).truth[1]
    copper = copper / copper.max()
    # through the centre, half of that pixel on each side; turned by half a turn the phases change places
    assert copper[50, 40] == pytest.approx(0.5)
    np.testing.assert_allclose(copper + copper[::-1, ::-1], 1, atol=1e-12)
    # the width of Al2Cu shrinks by tan(20 degrees) per row; two pixels of a row are mixed at most
    widths = copper.sum(axis=1)
    np.testing.assert_allclose(widths - 40.5, -np.tan(np.deg2rad(20)) * np.arange(-50, 51), atol=0.1)
    assert ((copper > 0) & (copper < 1)).sum(axis=1).max() <= 2
    upright = interface((32, 32), tilt_deg=0, thickness_ramp=0).truth[1]
    assert (upright[:, :16] == upright.max()).all() and (upright[:, 16:] == 0).all()
    aluminium = interface((64, 64), thickness_ramp=0.4, tilt_deg=0, counts=10).truth[0]
    np.testing.assert_allclose(aluminium[:, -1], np.linspace(6, 10, 64), rtol=1e-12)


def test_the_alloy_has_its_composition_and_no_edge():
    phantom = gradient_alloy((41, 61))
    assert phantom.elements == ("Pt", "Pd", "Ni")
    fractions = phantom.truth / phantom.truth.sum(axis=0)
    np.testing.assert_allclose(fractions[:, 0, 0], [0.1, 0.18, 0.72], rtol=1e-12)
    np.testing.assert_allclose(fractions[:, 0, -1], [0.7, 0.06, 0.24], rtol=1e-12)
    np.testing.assert_allclose(fractions[:, -1, 0], [0.1, 0.72, 0.18], rtol=1e-12)
    np.testing.assert_allclose(fractions[:, -1, -1], [0.7, 0.24, 0.06], rtol=1e-12)
    np.testing.assert_allclose(fractions[:, 20, 30], [0.4, 0.3, 0.3], rtol=1e-12)
    truth = gradient_alloy((128, 128)).truth
    # a full swing of half a cosine is steepest by pi / 2 over 127 steps
    for axis in (1, 2):
        assert abs(np.diff(truth, axis=axis)).max() < 1.6 * truth.max() * np.pi / 2 / 127


@pytest.mark.parametrize("ramp", [0, 0.5])
def test_atoms_of_the_alloy_fill_its_thickness(ramp):
    # a quarter of a cell per atom: 0.3924, 0.3890 and 0.3524 nm
    volume = np.tensordot([0.3924**3, 0.3890**3, 0.3524**3], gradient_alloy((40, 64), thickness_ramp=ramp).truth, 1)
    expected = np.linspace(1 - ramp, 1, 40)[:, None] * np.ones(64)
    np.testing.assert_allclose(volume / volume.max(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "options, words",
    [
        *[({"shape": shape}, "a phantom needs") for shape in ((128,), 128, (64, 64.5), (4, 64))],
        *[({"counts": counts}, "at most 60000") for counts in (0, 1e6)],
        ({"haadf_snr": -1}, "above 0"),
        ({"pixel_size_nm": float("nan")}, "above 0"),
        ({"haadf_gain": 0}, "above 0"),
        ({"haadf_offset": float("inf")}, "must be finite"),
        *[({name: value}, "must be a number") for name, value in (("counts", "9"), ("haadf_blur", [1]))],
        ({"seed": [1.0]}, "must be a whole number"),
        *[({"haadf_blur": blur}, "at least 0 and below 128 pixels") for blur in (-0.5, float("nan"))],
    ],
)
def test_wrong_options_are_refused(options, words):
    for make in PHANTOMS.values():
        with pytest.raises(ValueError, match=f"{next(iter(options))} is .*{words}"):
            make(**options)


@pytest.mark.parametrize(
    "make, options, sentence",
    [
        (atomic_columns, {"pixel_size_nm": 0.5}, "pixel_size_nm is 0.5 and column_sigma_nm 0.07: pixels larger"),
        (atomic_columns, {"column_sigma_nm": -1}, "column_sigma_nm is -1: it must be above 0"),
        (interface, {"thickness_ramp": 1}, "thickness_ramp is 1: it must be at least 0 and below 1"),
        (interface, {"tilt_deg": float("nan")}, "tilt_deg is nan: it must be a finite number"),
        (gradient_alloy, {"thickness_ramp": -0.1}, "thickness_ramp is -0.1"),
    ],
)
def test_wrong_options_of_one_phantom_are_refused(make, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**options)


def test_psnr():
    truth = np.array([[0.0, 10.0]])
    # mean squared error 0.5, peak 10: 10 log10(200)
    assert psnr(np.array([[1, 10]], dtype=np.uint8), truth) == pytest.approx(23.0103)
    assert psnr(truth, truth) == np.inf
    with pytest.raises(ValueError, match=r"image has shape \(2,\), truth has \(1, 2\)"):
        psnr(np.ones(2), truth)
    with pytest.raises(ValueError, match=r"largest value of truth is 0.0"):
        psnr(truth, 0 * truth)


# ---- spectra ------------------------------------------------------------------------------------------


def test_spectra_of_overlapping_lines_have_their_truth():
    options = {"shape": (24, 40), "haadf_offset": 0.25, "haadf_gain": 3.0, "haadf_snr": np.inf}
    phantom, bare = (overlapping_lines(counts=16, continuum=part, **options) for part in (0.25, 0))
    n = len(phantom.elements)
    assert phantom.truth.shape == phantom.maps.shape == (n, 24, 40) and phantom.spectra.shape == (24, 40, 1000)
    assert phantom.truth.max() == pytest.approx(16, rel=1e-12) and phantom.truth.min() >= 0
    forward_model = phantom.haadf_offset + np.tensordot(phantom.haadf_weights, phantom.truth, 1)
    np.testing.assert_allclose(phantom.haadf, forward_model, rtol=1e-12)
    assert phantom.haadf.max() == pytest.approx(3.25, rel=1e-12)
    # without a continuum, spectra are the lines, and totals within five standard errors of the truth
    lines = phantom.columns @ phantom.truth.sum(axis=(1, 2))
    assert abs(bare.spectra.sum() - lines.sum()) < 5 * np.sqrt(lines.sum())
    assert abs(phantom.spectra.sum() - 1.25 * lines.sum()) < 5 * np.sqrt(1.25 * lines.sum())
    # windows of S and Mo hold the counts of both, the one of Cu nearly its own
    total, windows = bare.truth.sum(axis=(1, 2)), bare.maps.sum(axis=(1, 2))
    sulfur, molybdenum, copper = (phantom.elements.index(e) for e in ("S", "Mo", "Cu"))
    assert windows[sulfur] > 0.9 * (total[sulfur] + total[molybdenum])
    assert windows[copper] == pytest.approx(0.98 * total[copper], rel=0.03)
    # the continuum of thick places has another shape
    other = overlapping_lines(counts=16, seed=1, **options)
    assert not np.array_equal(phantom.spectra, other.spectra)
    np.testing.assert_array_equal(phantom.truth, other.truth)


def test_signals_of_spectra_are_a_spectrum_image():
    phantom = overlapping_lines((24, 32), pixel_size_nm=0.4)
    spectra, haadf = phantom.signals()
    assert spectra.metadata.Signal.signal_type == "EDS_TEM"
    assert spectra.metadata.Sample.elements == list(phantom.elements)
    x, y = spectra.axes_manager.navigation_axes
    assert (x.size, y.size, x.scale, x.units, haadf.axes_manager[0].scale) == (32, 24, 0.4, "nm", 0.4)
    energy = spectra.axes_manager.signal_axes[0]
    assert (energy.size, energy.low_value, energy.units) == (1000, pytest.approx(0.405), "keV")
    np.testing.assert_allclose(energy.axis, phantom.energies)
    spectra.data[:] = 0
    assert phantom.spectra.any()
    with pytest.raises(ValueError, match="continuum is -1: it must be at least 0"):
        overlapping_lines((24, 24), continuum=-1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of measured files, with one whose content is known."""
    content = b"spectra"
    monkeypatch.setenv("HYPERSPY_FUSION_DATA", str(tmp_path))
    known = (hashlib.sha256(content).hexdigest(), (tmp_path / "server" / "of.bcf").as_uri())
    monkeypatch.setattr(files, "_FILES", {"scan.bcf": known, "local.emd": (known[0], None)})
    (tmp_path / "scan.bcf").write_bytes(content)
    return tmp_path


def test_a_measured_file_is_found_and_checked(folder):
    assert fetch("scan.bcf") == folder / "scan.bcf"
    (folder / "scan.bcf").write_bytes(b"else")
    with pytest.raises(ValueError, match="another content"):
        fetch("scan.bcf", allow_download=True)
    with pytest.raises(ValueError, match="take one of 'scan.bcf', 'local.emd'"):
        fetch("other.bcf")


@pytest.mark.parametrize("name, allowed, remedy", [
    ("scan.bcf", False, "pass allow_download=True, or set HYPERSPY_FUSION_DATA"),
    ("local.emd", False, ": set HYPERSPY_FUSION_DATA"),
    ("local.emd", True, ": set HYPERSPY_FUSION_DATA"),
])  # fmt: skip
def test_an_absent_file_is_downloaded_only_if_allowed(folder, name, allowed, remedy):
    (folder / "scan.bcf").unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is not in .*{re.escape(remedy)}"):
        fetch(name, allow_download=allowed)


def test_a_download_is_checked_and_kept(folder, monkeypatch):
    import pooch

    def served(url, output_file, *_, **__):
        Path(output_file).write_bytes(b"spectra")

    (folder / "scan.bcf").unlink()
    monkeypatch.setattr(pooch.core, "choose_downloader", lambda *_, **__: served)
    assert fetch("scan.bcf", allow_download=True) == folder / "scan.bcf" == fetch("scan.bcf")


def test_a_download_that_fails_is_one_sentence(folder, monkeypatch):
    import pooch
    import requests

    def retrieve(*_, **__):
        raise requests.exceptions.ConnectionError("HTTPSConnectionPool(host=...): Max retries exceeded")

    (folder / "scan.bcf").unlink()
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(
        OSError, match=r"^scan.bcf cannot be .* \(ConnectionError\).* or set HYPERSPY_FUSION_DATA"
    ) as failed:
        fetch("scan.bcf", allow_download=True)
    assert isinstance(failed.value.__cause__, requests.exceptions.ConnectionError)


@pytest.mark.parametrize("load, name, elements, scale", [
    (dysco3, "DyScO3_PTO_Trilayer_dataset.npz", "Sc Dy O", 0.0262),
    (co3o4_mn3o4, "Co3O4_Mn3O4.h5", "Co Mn O", 1),
])  # fmt: skip
def test_the_data_sets_of_the_tutorial(monkeypatch, load, name, elements, scale):
    monkeypatch.setenv("HYPERSPY_FUSION_DATA", str(shared(f"data/{name}").parent))
    maps, haadf = load()
    assert element_maps(maps).elements == elements.split() and haadf.metadata.General.title == "HAADF"
    for signal in (*maps, haadf):
        assert signal.data.shape == haadf.data.shape and signal.axes_manager[0].scale == scale
