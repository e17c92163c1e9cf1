"""Claims about the background of EDS maps: what is under the lines is known, stays with the maps, and does not bias."""

import exspy
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import assert_untouched, fuse_with, scan_signals, shared, snapshot
from sources import assert_element_maps, codes, eds, lines_of

import hyperspy_fusion as hf
from hyperspy_fusion import element_maps
from hyperspy_fusion.diagnostics import from_metadata
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.spectra.background import smoothed_counts, width_for
from hyperspy_fusion.maps import eds_lines

LINES = ["Ni_Ka", "Pd_La", "Pt_La"]
ENERGIES = dict(zip(LINES, (7.4781, 2.8386, 9.4421), strict=True))


def spectrum_image(signal, continuum, seed=0, offset=0.0, channels=1100):
    """Poisson counts of Gaussian lines of ``signal`` (3, ny, nx) over ``continuum`` (ny, nx) per channel of 10 eV."""
    s = exspy.signals.EDSTEMSpectrum(np.zeros((*continuum.shape, channels), dtype="u2"))
    axis = s.axes_manager[-1]
    axis.name, axis.scale, axis.offset, axis.units = "Energy", 0.01, offset, "keV"
    for spatial in s.axes_manager.navigation_axes:
        spatial.scale, spatial.units = 0.5, "nm"
    s.set_microscope_parameters(beam_energy=200, energy_resolution_MnKa=130)
    s.set_elements(["Ni", "Pd", "Pt"])
    s.set_lines(LINES)
    expected = np.repeat(continuum[..., None], channels, axis=-1)
    for line, counts in zip(LINES, signal, strict=True):
        ((low, high),) = s.estimate_integration_windows(2.0, [line])
        sigma = (high - low) / 2 / 2.3548
        profile = np.exp(-0.5 * ((axis.axis - ENERGIES[line]) / sigma) ** 2)
        expected += counts[..., None] * profile / profile.sum()
    s.data = np.random.default_rng(seed).poisson(expected).astype("u2")
    return s


@pytest.fixture(autouse=True)
def no_search_for_elements_without_a_map(monkeypatch):
    """It took a third of the time of these tests; tests of the model of the spectra and of windows are about it."""
    monkeypatch.setattr(eds_lines, "missing_diagnostics", lambda *_: [])


def alloy(counts=6.0, continuum=0.05, **options):
    """Spectra of the gradient alloy over a continuum that follows its mass, its lines in the order of exspy."""
    phantom = hf.data.gradient_alloy((48, 40), counts=counts)
    signal = phantom.truth[[2, 1, 0]]  # Ni, Pd, Pt
    mass = np.tensordot([28, 46, 78], signal, 1)
    return spectrum_image(signal, continuum * mass / mass.mean(), **options), signal, phantom


def test_smoothing_keeps_counts_and_leaves_many_alone():
    counts = np.random.default_rng(0).poisson(0.3, (3, 30, 20))
    counts[2] = 0
    smooth = smoothed_counts(counts)
    np.testing.assert_allclose(smooth.sum(axis=(1, 2)), counts.sum(axis=(1, 2)), rtol=1e-12)
    assert smooth.min() >= 0 and np.all(smooth[2] == 0)
    assert np.all(smoothed_counts(np.zeros((2, 8, 9))) == 0)
    counts = np.random.default_rng(2).poisson(400, (1, 40, 40)).astype(float)
    np.testing.assert_allclose(smoothed_counts(counts), counts, rtol=1e-9)
    assert width_for(1e-9, 25, (40, 80)) == 5
    assert width_for(25 / (4 * np.pi), 25, (400, 400)) == pytest.approx(1)


@pytest.mark.parametrize("mean", [0.05, 0.5])
def test_what_is_left_of_the_noise_is_that_of_25_counts(mean):
    counts = np.random.default_rng(1).poisson(mean, (2, 200, 200))
    smooth = smoothed_counts(counts)
    # of both windows together: the Gaussian averages over 4 pi sigma^2 pixels
    assert np.std(smooth.sum(axis=0)) / (2 * mean) == pytest.approx(1 / 5, rel=0.1)


def test_an_edge_that_all_windows_share_is_not_blurred():
    step = np.where(np.arange(64) < 32, 0.0, 40.0)
    expected = np.stack([np.tile(step, (64, 1)) * share for share in (0.7, 0.3)])
    smooth = smoothed_counts(np.random.default_rng(3).poisson(expected))
    inside = slice(35, 61)
    np.testing.assert_allclose(smooth[:, :, inside].mean(axis=(1, 2)), [28, 12], rtol=0.02)
    assert smooth[:, :, :29].max() < 0.5


def test_given_windows_hold_what_exspy_subtracts():
    s, *_ = alloy()
    windows = s.estimate_background_windows(xray_lines=LINES)
    maps = element_maps(s, background=windows)
    assert_element_maps(maps, lines_of(s, LINES), ["Ni", "Pd", "Pt"])
    net = s.get_lines_intensity(LINES, background_windows=windows)
    subtracted = [(raw - one.data).sum() for raw, one in zip(lines_of(s, LINES), net, strict=True)]
    np.testing.assert_allclose(maps.known_background.data.sum(axis=(1, 2)), subtracted, rtol=1e-5)


def test_windows_find_the_continuum_everywhere():
    s, _, phantom = alloy(continuum=1.0)
    maps = element_maps(s, background="windows")
    assert maps.data.dtype == np.uint32
    axis = s.axes_manager[-1]
    mass = np.tensordot([28, 46, 78], phantom.truth[[2, 1, 0]], 1)
    for i, line in enumerate(LINES):
        low, high = (axis.value2index(e) for e in s.estimate_integration_windows(2.0, [line])[0])
        truth = (high - low) * mass / mass.mean()
        found = maps.known_background.data[i]
        for part in (np.s_[:24], np.s_[24:], np.s_[:, :20], np.s_[:, 20:]):
            assert found[part].mean() == pytest.approx(truth[part].mean(), rel=0.03)


@pytest.mark.parametrize("width", [0.8, 5.0])
def test_the_background_is_that_of_windows_of_any_width(width):
    """A continuum of 1 count in each channel is as many counts as the window has channels."""
    s, *_ = alloy(continuum=1.0)
    known = element_maps(s, background="windows", integration_windows=width).known_background
    axis = s.axes_manager[-1]
    windows = s.estimate_integration_windows(width, LINES)
    channels = [axis.value2index(high) - axis.value2index(low) for low, high in windows]
    np.testing.assert_allclose(known.data.mean(axis=(1, 2)), channels, rtol=0.03)
    # as exspy's windows, where both sides are taken (one of Pd holds its own Lb), and beyond the window of the line
    distance = max(2.0, width / 2)
    limits = s.estimate_background_windows(line_width=[distance] * 2, xray_lines=LINES)
    net = s.get_lines_intensity(LINES, integration_windows=width, background_windows=limits)
    raw = s.get_lines_intensity(LINES, integration_windows=width)
    subtracted = [(a.data - b.data).mean() for a, b in zip(raw, net, strict=True)]
    np.testing.assert_allclose(known.data.mean(axis=(1, 2))[[0, 2]], np.array(subtracted)[[0, 2]], rtol=1e-5)
    expected = element_maps(s, background=s * 0.5, integration_windows=width)
    np.testing.assert_allclose(expected.known_background.data, expected.data / 2)


def test_a_window_with_a_line_of_the_sample_is_left_out():
    s, *_ = alloy(continuum=0.2)
    clean = element_maps(s, background="windows").known_background.data.mean(axis=(1, 2))
    axis = s.axes_manager[-1]
    dirty = s.deepcopy()
    left = [axis.value2index(e) for e in s.estimate_background_windows(xray_lines=["Ni_Ka"])[0][:2]]
    dirty.data[..., slice(*left)] += 20
    # nobody names an element, and the other side tells it
    np.testing.assert_allclose(
        element_maps(dirty, background="windows").known_background.data.mean(axis=(1, 2)), clean, rtol=0.05
    )
    # a weak one only where its element is named: Fe Kβ at 7.06 keV is in the left window of Ni Kα
    weak = s.deepcopy()
    few = np.random.default_rng(0).poisson(0.1, weak.data[..., slice(*left)].shape)
    weak.data[..., slice(*left)] += few.astype("u2")
    unnamed = element_maps(weak, background="windows").known_background.data[0].mean()
    assert unnamed > 1.15 * clean[0]
    weak.metadata.Sample.elements = ["Ni", "Pd", "Pt", "Fe"]
    found = element_maps(weak, background="windows").known_background.data[0].mean()
    assert found == pytest.approx(clean[0], rel=0.05)
    for named in (s, dirty):
        named.metadata.Sample.elements = ["Ni", "Pd", "Pt", "Fe"]
        found = element_maps(named, background="windows").known_background.data.mean(axis=(1, 2))
        np.testing.assert_allclose(found, clean, rtol=0.05)


def beside_platinum(counts, named):
    """Spectra over 0.5 counts a channel: 20 counts of Si Kα, `counts` of Pt Mα 0.07 keV above its background window."""
    s, *_ = alloy()
    energies, expected = s.axes_manager[-1].axis, np.full(s.data.shape, 0.5)
    for line, energy, number in (("Si_Ka", 1.7397, 20), ("Pt_Ma", 2.0505, counts), ("Pt_La", 9.4421, 10)):
        sigma = np.ptp(s.estimate_integration_windows(1.0, [line])) / 2.3548
        expected += number * 0.01 / sigma / np.sqrt(2 * np.pi) * np.exp(-0.5 * ((energies - energy) / sigma) ** 2)
    s.data = np.random.default_rng(1).poisson(expected).astype("u2")
    s.metadata.Sample.elements = named
    return s


@pytest.mark.parametrize(
    "counts, named, lines", [(0.2, ["Si", "Pt"], ""), (50, ["Si"], ""), (50, ["Si", "Al"], "Al_Ka, Pt_Ma")]
)
def test_tails_of_lines_of_other_families_are_no_background(counts, named, lines):
    """Of Pt Mα, which is mapped by its Lα. Faint lines do not matter, and a line beside each window is reported."""
    s, asked = beside_platinum(counts, named), ["Si_Ka", "Pt_La"]
    maps = element_maps(s, xray_lines=asked, background="windows")
    low, high = (s.axes_manager[-1].value2index(e) for e in s.estimate_integration_windows(2.0, ["Si_Ka"])[0])
    silicon = maps.known_background.data[maps.elements.index("Si")]
    assert silicon.mean() == pytest.approx(0.5 * (high - low), rel=0.04)
    if counts < 1:
        windows = element_maps(s, xray_lines=asked, background=s.estimate_background_windows(xray_lines=asked))
        np.testing.assert_array_equal(maps.known_background.data, windows.known_background.data)
    sentences = maps.metadata.get_item("Element_maps.diagnostics.sentences", default=[])
    held = [one for code, one in zip(codes(maps), sentences, strict=True) if code == "background-windows-hold-lines"]
    assert len(held) == bool(lines)
    assert all(f"windows of Si_Ka ({lines})" in sentence and "lines='model'" in sentence for sentence in held)


def test_maps_find_no_background_and_windows_may_hold_lines():
    maps, _ = scan_signals()
    with pytest.raises(ValueError, match="which is found in the spectra: pass the EDS spectrum image"):
        element_maps(maps, background="windows")
    with pytest.raises(ValueError, match="background has no map of O"):
        element_maps(maps, background=maps[:1])
    s, *_ = alloy()
    s.metadata.Sample.elements = ["Ni", "Pt", "Fe", "Hf"]  # Fe Kβ 7.06 and Hf Lα 7.90 keV, around Ni Kα
    maps = element_maps(s, xray_lines=["Ni_Ka", "Pt_La"], background="windows")
    assert "background-windows-hold-lines" in codes(maps)
    assert "Ni" in list(maps.metadata.Element_maps.diagnostics.elements)
    s.set_microscope_parameters(beam_energy=7)
    maps = element_maps(s, xray_lines=["Ni_Ka", "Pt_La"], background="windows")
    assert "background-windows-hold-lines" not in codes(maps)
    s, *_ = alloy()
    low, high = (s.axes_manager[-1].value2index(e) for e in (9.2, 9.7))
    s.data[..., low:high] = 0
    maps = element_maps(s, background="windows")
    found = from_metadata(maps.metadata.Element_maps.diagnostics.as_dictionary())
    assert [d.elements for d in found if d.code == "background-above-lines"] == [("Pt",)]


def test_channels_of_lines_of_one_element_count_once():
    """Si Kα and Kβ are one window: its background is counted once."""
    s = eds("u2")
    s.data[:] = 4
    maps = element_maps(s, xray_lines=["Si_Ka", "Si_Kb"], background="windows")
    np.testing.assert_allclose(maps.known_background.data, maps.data, rtol=1e-6)


@pytest.mark.parametrize("background", ["windows", "spectra"])
def test_lazy_spectra_have_the_same_background(background):
    s, *_ = alloy()
    known = "windows" if background == "windows" else s * 0.5
    lazy = element_maps(s.as_lazy(), background=known if background == "windows" else known.as_lazy())
    eager = element_maps(s, background=known)
    np.testing.assert_array_equal(lazy.data, eager.data)
    np.testing.assert_allclose(lazy.known_background.data, eager.known_background.data, rtol=1e-6)
    assert isinstance(lazy.known_background.data, np.ndarray)


def test_spectra_in_ev_and_of_an_sem():
    s, *_ = alloy()
    expected = element_maps(s, background="windows")
    turned = s.deepcopy()
    turned.set_signal_type("EDS_SEM")
    turned.set_microscope_parameters(beam_energy=30, energy_resolution_MnKa=130)
    turned.axes_manager[-1].scale, turned.axes_manager[-1].units = 10.0, "eV"
    turned.set_lines(LINES)
    found = element_maps(turned, background="windows")
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_allclose(found.known_background.data, expected.known_background.data, rtol=1e-6)


def test_expected_spectra_are_added_up_in_the_windows():
    s, *_ = alloy()
    known = s._deepcopy_with_new_data(np.random.default_rng(0).uniform(-0.01, 0.2, s.data.shape))
    maps = element_maps(s, background=known)
    np.testing.assert_allclose(maps.known_background.data, np.maximum(lines_of(known, LINES), 0), rtol=1e-5)


@pytest.mark.slow
def test_the_background_of_a_fitted_model():
    s, *_ = alloy(counts=2000, continuum=20.0)
    s = s.inav[:3, :2]
    model = s.create_model(auto_background=True, auto_add_lines=True)
    with pytest.raises(ValueError, match="is not fitted at every pixel"):
        element_maps(s, background=model)
    model.multifit(show_progressbar=False)
    maps = element_maps(s, background=model)
    axis = s.axes_manager[-1]
    widths = [np.ptp([axis.value2index(e) for e in row]) for row in s.estimate_integration_windows(2.0, LINES)]
    continuum = s.data[..., 400:600].mean(axis=-1)
    for image, width in zip(maps.known_background.data, widths, strict=True):
        np.testing.assert_allclose(image, width * continuum, rtol=0.2)


@pytest.mark.parametrize(
    "background, error, sentence",
    [
        ("window", ValueError, "background is 'window': expected 'windows', energies"),
        ([[1, 2, 3, 4]], ValueError, r"background has shape \(1, 4\): windows need a row of four energies"),
        (3.0, TypeError, "background is 3.0: expected 'windows'"),
        (eds(), ValueError, "give a background for each channel"),
        ([[-3, -2, -1, -0.5]] * 3, ValueError, "No background window of Ni_Ka is within the spectra"),
    ],
)
def test_backgrounds_that_are_none_are_refused(background, error, sentence):
    with pytest.raises(error, match=sentence):
        element_maps(alloy()[0], background=background)


def known():
    """Maps with a background and a variance of their own in every pixel."""
    maps, haadf = scan_signals(elements=("Fe", "O", "Pt"))
    result = element_maps(maps, background=[with_data(m, np.sqrt(m.data) / 3) for m in maps])
    result.set_noise_variance(hs.signals.Signal2D(result.data + 1, axes=result.axes_manager._get_axes_dicts()))
    return result, haadf


def with_data(signal, data):
    return signal._deepcopy_with_new_data(np.asarray(data, dtype=float))


def pair(maps):
    return maps.known_background.data, maps.get_noise_variance().data


def assert_belongs(maps):
    """Background and variance are still those of these pixels."""
    background, variance = pair(maps)
    np.testing.assert_allclose(background, np.sqrt(maps.data) / 3, rtol=1e-6)
    np.testing.assert_allclose(variance, maps.data + 1, rtol=1e-6)


@pytest.mark.parametrize(
    "cut",
    [
        lambda m: m.inav[1:],
        lambda m: m.inav[::-1],
        lambda m: m.isig[4.0:6.0, 3:],
        lambda m: m.inav[1:2].isig[:5],
        lambda m: m.deepcopy(),
        lambda m: m.split()[1],
        lambda m: m.get_map("Pt"),
        lambda m: element_maps(m, ["Pt", "Fe"]),
        lambda m: element_maps(m.split()),
        lambda m: element_maps(m.inav[1:].isig[:, 2:]),
        lambda m: element_maps(m.as_lazy()),
    ],
)
def test_noise_is_cut_as_the_maps_are(cut):
    maps, _ = known()
    before = snapshot(maps)[:3]
    assert_belongs(cut(maps))
    np.testing.assert_equal(snapshot(maps)[:3], before)


def test_noise_is_cropped_and_rebinned_and_saved(tmp_path):
    maps, _ = known()
    maps.save(tmp_path / "maps.hspy")
    loaded = hs.load(tmp_path / "maps.hspy")
    assert_belongs(loaded)
    assert_belongs(loaded.inav[1:].isig[1:4])
    binned = maps.rebin(scale=(1, 3, 2))
    for found, whole in zip(pair(binned), pair(maps), strict=True):
        np.testing.assert_allclose(found, whole.reshape(3, 6, 2, 5, 3).sum(axis=(2, 4)), rtol=1e-6)
    maps.crop("x", 2, 9)
    assert_belongs(maps)
    maps.crop(0, 1)
    assert_belongs(maps)


def test_noise_metadata_that_do_not_fit_are_not_used():
    maps, _ = known()
    stack = hs.stack([maps.get_map("Fe"), maps.get_map("O")], show_progressbar=False)
    stack.metadata.set_item("Element_maps.background", maps.get_map("Fe"))
    found = element_maps(stack, ["Fe", "O"])
    assert found.known_background is None and set(codes(found)) == {"noise-metadata-shape"}
    bare = maps.get_map("O")._deepcopy_with_new_data(maps.get_map("O").data)
    found = element_maps({"Fe": maps.get_map("Fe"), "O": bare})
    assert found.get_noise_variance() is None and codes(found) == ["variance-missing"]
    np.testing.assert_array_equal(found.known_background.data[1], 0)
    for result in (maps * 2, -maps, maps + maps, maps._deepcopy_with_new_data(maps.data)):
        assert result.known_background is None and result.get_noise_variance() is None
    assert_belongs(maps)


def calibrated(maps, haadf, **options):
    options = {"method": "calibrated", "regularization": "tv", "tol": 1e-3, "show_progressbar": False} | options
    return fuse_with(maps, haadf, **options)


def test_fits_take_the_background_and_leave_it():
    maps, haadf = scan_signals(24, 30)
    flat = [with_data(m, np.full(m.data.shape, b)) for m, b in zip(maps, (0.5, 1.0), strict=True)]
    expected = calibrated(maps, haadf, background=(0.5, 1.0))
    found = calibrated(element_maps(maps, background=flat), haadf)
    np.testing.assert_allclose(found.data, expected.data, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.metadata.Fusion.background, [0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(found.metadata.Fusion.total_ratios, 1, rtol=1e-4)
    assert found.known_background is None and not found.metadata.has_item("Element_maps.background")
    with pytest.raises(ValueError, match="the maps have a background in their metadata: leave the setting out"):
        calibrated(element_maps(maps, background=flat), haadf, background=0.1)
    s, *_ = alloy()
    haadf = hs.signals.Signal2D(s.data.sum(axis=-1).astype(float))
    with pytest.raises(ValueError, match="background is 'windows', and in the settings it is counts per pixel"):
        s.fuse(haadf, method="calibrated", settings=CalibratedSettings(background="windows"))
    maps, haadf = known()
    model = hf.FusedMultiModal(haadf, maps, method="published")
    assert any("known background, which method='published' does not subtract" in w for w in model.warnings)
    plain = hf.FusedMultiModal(haadf, maps._deepcopy_with_new_data(maps.data), method="published")
    assert not any("background" in w for w in plain.warnings)
    maps, haadf = known()
    before = snapshot(maps)[:3], pair(maps)
    fuse_with(maps, haadf, method="calibrated", noise="shifted_poisson", regularization="tv", max_iter=25)
    np.testing.assert_equal((snapshot(maps)[:3], pair(maps)), before)
    s, *_ = alloy()
    before = snapshot(s)
    element_maps(s, background="windows")
    assert_untouched(s, before)


def region_bias(found, unbiased, truth):
    """How far region means of maps are off in parts of the truth, in the four halves of each map.

    Less what chance gave the region: ``unbiased`` maps of the same counts, whose mean is the truth, have it too.
    """
    parts = [np.s_[:, :64], np.s_[:, 64:], np.s_[:, :, :64], np.s_[:, :, 64:]]
    off = [(found - unbiased)[part].mean(axis=(1, 2)) / truth[part].mean(axis=(1, 2)) for part in parts]
    return np.array(off)


def alloy_over_background(seed):
    """Phantom, its maps over 30 % of background, and the counts of a window beside each line."""
    phantom = hf.data.gradient_alloy(counts=4, seed=seed)
    mass = np.tensordot(phantom.atomic_numbers, phantom.truth, 1)
    background = np.stack([0.3 * t.max() * mass / mass.max() for t in phantom.truth])
    rng = np.random.default_rng(seed)
    maps, haadf = phantom.signals()
    counts = [with_data(m, rng.poisson(t + b)) for m, t, b in zip(maps, phantom.truth, background, strict=True)]
    return phantom.truth, counts, haadf, rng.poisson(background)


def test_a_background_in_the_model_does_not_bias():
    """Subtracting it does. It is estimated from windows beside the lines, as noisy as under them."""
    truth, counts, haadf, window = alloy_over_background(seed=0)
    net = np.stack([m.data for m in counts]) - window
    expected = [with_data(m, b) for m, b in zip(counts, smoothed_counts(window), strict=True)]
    fused = calibrated(element_maps(counts, background=expected), haadf, regularization="guided")
    assert fused.metadata.Fusion.noise == "shifted_poisson"
    clipped = [with_data(m, np.maximum(image, 0)) for m, image in zip(counts, net, strict=True)]
    subtracted = calibrated(clipped, haadf, regularization="guided")
    assert np.abs(region_bias(fused.data, net, truth)).max() < 0.03
    assert region_bias(subtracted.data, net, truth).min() > 0.04


def particles_over_background(seed):
    """Oxide cores in platinum shells over 20 % of background in proportion to mass, nearly all of it in the shells."""
    phantom = hf.data.core_shell((96, 96), counts=4, seed=seed)
    mass = np.tensordot(phantom.atomic_numbers, phantom.truth, 1)
    background = np.stack([0.2 * t.max() * mass / mass.max() for t in phantom.truth])
    rng = np.random.default_rng(100 + seed)
    counts, window = rng.poisson(phantom.truth + background), rng.poisson(background)
    maps, haadf = phantom.signals()
    return phantom.truth, [with_data(m, c) for m, c in zip(maps, counts, strict=True)], haadf, window


@pytest.mark.nightly
def test_a_background_does_not_bias_regions_within_others():
    """Where each element is, more than half as much as at most; averages of two scans.

    The pixels of the fused maps alone are biased by smoothing: oxide of the cores leaks into their shells.
    """
    found, pixels = [], []
    for seed in range(2):
        truth, counts, haadf, window = particles_over_background(seed)
        net = np.stack([m.data for m in counts]) - window
        expected = [with_data(m, b) for m, b in zip(counts, smoothed_counts(window), strict=True)]
        options = {"regularization": "guided", "errors": 4, "tol": 1e-2}
        fused = calibrated(element_maps(counts, background=expected), haadf, **options)
        for into, errors in ((found, None), (pixels, np.ones(truth.shape))):
            off = []
            for element, mean, of in zip(fused.elements, net, truth, strict=True):
                where = of > 0.5 * of.max()
                value = fused.region(where, errors=errors).mean(element).value
                off.append((value - mean[where].mean()) / of[where].mean())
            into.append(off)
    found, pixels = np.mean(found, axis=0), np.mean(pixels, axis=0)
    assert np.abs(found).max() < 0.02
    assert pixels[1:].max() < -0.015


@pytest.mark.slow
def test_a_real_scan_keeps_its_background():
    haadf, s = hs.load(shared("data/bruker_test_TEM.bcf"))
    maps = element_maps(s, background="windows")
    np.testing.assert_array_equal(maps.data, element_maps(s).data)
    fused = fuse_with(maps, haadf, method="calibrated", regularization="tv", tol=1e-2)
    net = (maps.data - maps.known_background.data).sum(axis=(1, 2))
    assert np.all(net > 0)
    np.testing.assert_allclose(fused.data.sum(axis=(1, 2), dtype=float), net, rtol=1e-3)
