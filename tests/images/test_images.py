"""Virtual images and ptychography of 4D-STEM signals."""

import logging
import sys

import dask.array as da
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import assert_untouched, codes, snapshot
from scipy.ndimage import gaussian_filter

import hyperspy_fusion as hf
from hyperspy_fusion.images.patterns import inverse_nm, wavelength
from hyperspy_fusion.images.virtual import integrated

COUNTS = np.random.default_rng(0).poisson(3, (5, 6, 16, 18)).astype(np.uint16)
Y, X = np.mgrid[:16, :18]


def scan_of(data, scale=0.5, units="mrad", step=0.1, microscope=True):
    """A calibrated scan whose patterns have their zero in the middle."""
    signal = hs.signals.Signal2D(data)
    for axis in signal.axes_manager.navigation_axes:
        axis.scale, axis.units, axis.offset = step, "nm", 2.0
    for axis in signal.axes_manager.signal_axes:
        axis.scale, axis.units, axis.offset = scale, units, -scale * (axis.size // 2)
    if microscope:
        signal.metadata.set_item("Acquisition_instrument.TEM", {"beam_energy": 200.0, "convergence_angle": 20.0})
    return signal


def reverse(signal, of):
    """The same scan with its second axis, of the detector or of the scan, stored in reverse."""
    axes = getattr(signal.axes_manager, f"{of}_axes")
    turned = signal._deepcopy_with_new_data(np.flip(signal.data, axes[1].index_in_array).copy())
    axis = getattr(turned.axes_manager, f"{of}_axes")[1]
    axis.offset, axis.scale = axis.offset + (axis.size - 1) * axis.scale, -axis.scale
    return turned


# ---- virtual detectors ---------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["memory", "chunks", "transposed"])
def test_a_virtual_detector_adds_up_its_pixels(layout):
    data = COUNTS
    if layout == "chunks":
        data = da.from_array(COUNTS, chunks=(2, 3, 16, 7))
    signal = hs.signals.Signal2D(data)
    signal = signal.as_lazy() if layout == "chunks" else signal
    if layout == "transposed":
        signal = hs.signals.Signal2D(np.moveaxis(COUNTS, (0, 1), (2, 3)).copy()).transpose(signal_axes=[0, 1])
    image = hf.virtual_image(signal, 3, 6, centre=(9, 8))
    radius = np.hypot(Y - 8, X - 9)
    np.testing.assert_array_equal(image.data, COUNTS[..., (radius >= 3) & (radius < 6)].sum(axis=-1))
    assert not image._lazy and image.data.shape == (5, 6)


def test_a_lazy_scan_is_read_once():
    reads = []

    def read(block):
        reads.append(block.shape)
        return block

    lazy = da.from_array(COUNTS, chunks=(5, 3, 16, 18)).map_blocks(read, dtype=COUNTS.dtype, meta=COUNTS[:0])
    signal = hs.signals.Signal2D(lazy).as_lazy()
    hf.virtual_image(signal, 2, 5, centre=(9, 8))
    assert len(reads) == 2


def test_radii_and_centre_are_in_units_of_the_axes_or_in_pixels():
    signal = scan_of(COUNTS)
    before = snapshot(signal)
    image = hf.virtual_image(signal, 1.5, 3)
    same = [
        hf.virtual_image(signal, 3, 6, (9, 8), units="px"),
        hf.virtual_image(signal, 1.5, 3, (0, 0), units="mrad"),
    ]
    for other in same:
        np.testing.assert_array_equal(image.data, other.data)
    assert_untouched(signal, before)
    assert [axis.offset for axis in image.axes_manager.signal_axes] == [2.0, 2.0]
    assert image.metadata.Virtual_image.units == "mrad"
    assert image.metadata.Acquisition_instrument.TEM.beam_energy == 200.0


def test_the_centre_is_that_of_the_mean_pattern_without_calibration():
    patterns = np.zeros((4, 5, 20, 24))
    patterns[:, :, 6:11, 12:17] = 1
    patterns[1, 1, 0, 0] = np.nan
    image = hf.virtual_image(hs.signals.Signal2D(patterns), outer=3)
    assert (image.metadata.Virtual_image.centre_y, image.metadata.Virtual_image.centre_x) == (8, 14)
    assert np.all(image.data == 25)


@pytest.mark.parametrize("rotation", [0, 30])
def test_the_integrated_centre_of_mass_is_the_phase(rotation):
    """A narrow pattern that moves by the slope of a phase."""
    y, x = np.mgrid[:14, :16] * 0.1  # nm
    phase = 0.5 * np.exp(-((y - 0.7) ** 2 + (x - 0.8) ** 2) / 0.15)
    slope_y, slope_x = np.gradient(phase, 0.1)
    angle = np.deg2rad(rotation)
    along = slope_y * np.cos(angle) + slope_x * np.sin(angle), slope_x * np.cos(angle) - slope_y * np.sin(angle)
    pixel = 1 / wavelength(200) * 0.5e-3  # 1/nm
    at = [8 + part / (2 * np.pi * pixel) for part in along]
    patterns = np.exp(-((Y - at[0][..., None, None]) ** 2 + (X - 1 - at[1][..., None, None]) ** 2) / 4)
    image = hf.virtual_image(scan_of(patterns), kind="com", rotation=rotation)
    np.testing.assert_allclose(image.data, phase - phase.mean(), atol=0.03)
    assert "rad" in image.metadata.Signal.quantity


@pytest.mark.parametrize("microscope", [True, False])
@pytest.mark.parametrize("of", ["signal", "navigation"])
def test_the_centre_of_mass_goes_along_axes_of_negative_scale(of, microscope):
    """The same scan, with one axis of the detector or of the scan in reverse."""
    signal = scan_of(gaussian_filter(COUNTS.astype(float), 1), microscope=microscope)
    image = hf.virtual_image(signal, kind="com").data
    back = hf.virtual_image(reverse(signal, of), kind="com").data
    back = back[::-1] if of == "navigation" else back
    np.testing.assert_allclose(back, image, atol=1e-9 * np.ptp(image))


@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (5, 6), (1, 4)])
def test_the_integrated_centre_of_mass_turns_with_the_scan(shape):
    slope_y, slope_x = np.random.default_rng(0).normal(size=(2, *shape))
    image = integrated(slope_y, slope_x)
    np.testing.assert_allclose(integrated(-slope_y[::-1], slope_x[::-1])[::-1], image, atol=1e-12)
    np.testing.assert_allclose(integrated(slope_y[:, ::-1], -slope_x[:, ::-1])[:, ::-1], image, atol=1e-12)
    np.testing.assert_allclose(integrated(slope_x.T, slope_y.T).T, image, atol=1e-12)
    y, x = (np.pi * (np.arange(size) + 0.5) / size for size in shape)
    wave = np.cos(y)[:, None] * np.cos(2 * x)
    slopes = (
        -np.pi / shape[0] * np.sin(y)[:, None] * np.cos(2 * x),
        -2 * np.pi / shape[1] * np.cos(y)[:, None] * np.sin(2 * x),
    )
    np.testing.assert_allclose(integrated(*slopes), wave if shape[0] > 1 else 0 * wave, atol=1e-12)
    assert abs(image.mean()) < 1e-12


@pytest.mark.parametrize("units", ["1/nm", "nm^-1", "$nm^{-1}$", "k_nm^{-1}", "nm⁻¹"])
def test_inverse_lengths(units):
    assert inverse_nm(0.3, units) == pytest.approx(0.3)
    assert inverse_nm(0.3, units.replace("nm", "A")) == pytest.approx(3.0)
    assert inverse_nm(0.3, "px") is inverse_nm(0.3, "nm") is inverse_nm(0.3, "mrad") is None
    assert inverse_nm(1, "mrad", 200) == pytest.approx(0.398735, rel=1e-5)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"inner": 5, "outer": 3}, "outer is 3 and inner 5"),
        ({"inner": 100, "outer": 300}, "has no pixel"),
        ({"centre": (90, 2)}, "outside the patterns"),
        ({"kind": "dpc"}, "kind is 'dpc'"),
        ({"units": "nm"}, "units is 'nm'"),
    ],
)
def test_a_wrong_detector_is_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        hf.virtual_image(scan_of(COUNTS), **options)


def test_other_signals_are_refused():
    with pytest.raises(ValueError, match="no 4D-STEM scan"):
        hf.virtual_image(hs.signals.Signal2D(COUNTS[0]), 1, 2)


# ---- ptychography --------------------------------------------------------------------------------


def simulated_scan(n=10, size=32, electrons=1e5, step=0.8, defocus=20.0):
    """A scan (n, n) of 32 x 32 patterns of a film of atoms, and the phase at its positions; Angstrom inside."""
    length, cell = 0.0250793, 25.6
    pixel, rng = cell / size, np.random.default_rng(0)
    grid = np.arange(size) * pixel
    k = np.fft.fftfreq(size, pixel)
    phase = np.zeros((size, size))
    for y, x in rng.uniform(3, 16, (25, 2)):
        phase += 0.15 * np.exp(-((grid[:, None] - y) ** 2 + (grid[None] - x) ** 2) / 2)
    square = k[:, None] ** 2 + k[None] ** 2
    disc = np.clip((0.010 / length - np.sqrt(square)) * cell + 0.5, 0, 1)
    lens = disc * np.exp(1j * np.pi * length * 10 * defocus * square)
    positions = 5 + step * np.arange(n)
    patterns = np.empty((n, n, size, size))
    for i, y in enumerate(positions):
        for j, x in enumerate(positions):
            wave = np.fft.ifft2(lens * np.exp(-2j * np.pi * (k[:, None] * y + k[None] * x)))
            far = np.fft.fft2(wave / np.linalg.norm(wave) * np.exp(1j * phase), norm="ortho")
            patterns[i, j] = np.abs(np.fft.fftshift(far)) ** 2
    counts = rng.poisson(electrons * patterns).astype(np.uint16)
    signal = scan_of(counts, scale=1e3 * length / cell, step=step / 10)
    signal.metadata.Acquisition_instrument.TEM.convergence_angle = 10.0
    truth = np.fft.fft2(phase)
    waves = np.exp(2j * np.pi * np.outer(positions, k))
    return signal, np.real(waves @ truth @ waves.T)


@pytest.fixture(scope="module")
def scan():
    return simulated_scan()


def test_the_phase_on_the_grid_of_the_scan(scan):
    signal, truth = scan
    before = snapshot(signal)
    phase = hf.ptychography(signal, defocus=20.0)
    assert np.corrcoef(phase.data.ravel(), truth.ravel())[0, 1] > 0.97
    assert [(a.scale, a.offset, a.units) for a in phase.axes_manager.signal_axes] == [(0.08, 2.0, "nm")] * 2
    node = phase.metadata.Ptychography
    assert node.converged and len(node.cost_history) == node.n_iter and 0.8 < node.overlap < 1
    assert_untouched(signal, before)
    few = [hf.ptychography(one, defocus=20.0, max_iter=1) for one in (signal, signal.as_lazy())]
    np.testing.assert_array_equal(few[0].data, few[1].data)


def test_the_phase_on_its_own_grid(scan):
    signal, truth = scan
    phase = hf.ptychography(signal, defocus=20.0, grid="object")
    x = phase.axes_manager.signal_axes[0]
    assert x.scale == pytest.approx(0.08, rel=1e-3) and x.offset == pytest.approx(2.0, abs=0.08)
    assert np.corrcoef(phase.data[:10, :10].ravel(), truth.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("of, grid", [("signal", "object"), ("navigation", "scan")])
def test_the_phase_along_axes_of_negative_scale(scan, of, grid):
    signal, truth = scan
    phase = hf.ptychography(reverse(signal, of), defocus=20.0, max_iter=10, grid=grid)
    x, y = phase.axes_manager.signal_axes
    assert x.scale > 0 and (y.scale < 0) == ((of, grid) in [("navigation", "scan"), ("signal", "object")])
    rows, columns = (np.rint((2 + 0.08 * np.arange(10) - a.offset) / a.scale).astype(int) for a in (y, x))
    at = np.ix_(*(np.clip(part, 0, size - 1) for part, size in zip((rows, columns), phase.data.shape, strict=True)))
    assert np.corrcoef(phase.data[at].ravel(), truth.ravel())[0, 1] > 0.95


def test_a_fitted_probe_can_be_given_where_the_centre_is_between_pixels(scan):
    data, signal = scan[0].data, scan[0].isig[1:].deepcopy()
    signal.data = data[..., 1:] + data[..., :-1]
    signal.axes_manager.signal_axes[0].offset = -15.5 * signal.axes_manager.signal_axes[0].scale
    fit = hf.ptychography(signal, defocus=20.0, refine_probe=True, max_iter=5).metadata.Ptychography
    probe = fit.probe_real + 1j * fit.probe_imag
    again = hf.ptychography(signal, probe=probe, max_iter=1).metadata.Ptychography
    assert again.cost_history[0] < fit.cost_history[0]


def test_rotated_patterns_and_positions_of_ones_own(scan):
    signal, truth = scan
    turned = signal._deepcopy_with_new_data(np.rot90(signal.data, axes=(2, 3)).copy())
    options = {"defocus": 20.0, "max_iter": 15, "centre": (0.0, -1 * signal.axes_manager.signal_axes[0].scale)}
    phase = hf.ptychography(turned, rotation=-90, **options)
    assert np.corrcoef(phase.data.ravel(), truth.ravel())[0, 1] > 0.95
    y, x = np.mgrid[:10, :10] * 0.08
    same = hf.ptychography(turned, positions=np.stack([-x, y], axis=-1), **options)
    np.testing.assert_allclose(same.data, phase.data, atol=0.02)


@pytest.mark.parametrize(
    "options, change, sentence",
    [
        ({"positions": np.zeros((7, 2))}, None, "there are 10 x 10 patterns"),
        ({"probe": np.ones((40, 40), complex)}, None, "larger than that of the patterns"),
        ({"defocus": 500.0}, None, "larger than the field"),
        ({"convergence_angle": 30.0}, None, "bright-field disc"),
        ({}, ("beam_energy", 0), "beam energy is unknown"),
        ({}, ("convergence_angle", 0), "convergence angle is unknown"),
        ({}, ("signal", "px"), "pixel size of the patterns is unknown"),
        ({}, ("navigation", ""), "step of the scan is unknown"),
    ],
)
def test_what_is_missing_or_does_not_match_is_a_sentence(scan, options, change, sentence):
    signal = scan[0].deepcopy()
    if change and change[0] in ("signal", "navigation"):
        for axis in getattr(signal.axes_manager, f"{change[0]}_axes"):
            axis.units = change[1]
    elif change:
        signal.metadata.Acquisition_instrument.TEM[change[0]] = change[1]
    with pytest.raises(ValueError, match=sentence):
        hf.ptychography(signal, **options)


def test_little_overlap_and_saturated_pixels_are_reported(scan, caplog):
    hf.ptychography(scan[0].inav[::5, ::5], defocus=5.0, max_iter=1)
    assert "little-overlap" in codes(caplog)
    signal = scan[0].deepcopy()
    signal.data = np.minimum(signal.data, int(0.75 * signal.data.max()))
    phase = hf.ptychography(signal, defocus=20.0)
    assert "saturated-patterns" in codes(caplog)
    assert np.corrcoef(phase.data.ravel(), scan[1].ravel())[0, 1] > 0.9
    with pytest.raises(ValueError, match="no counts"):
        hf.ptychography(signal._deepcopy_with_new_data(np.zeros_like(signal.data)), defocus=20.0)


# ---- phaser --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [None, pytest.param({"slices": {"n": 2, "slice_thickness": 5.0}}, marks=pytest.mark.nightly)]
)
def test_phaser_finds_the_phase_too(scan, options):
    pytest.importorskip("phaser.execute", reason="phaserEM is not installed")
    before = logging.getLogger().handlers[:]
    fit = {"defocus": 20.0, "engine": "phaser", "engine_options": options, "max_iter": 12}
    phase = hf.ptychography(scan[0], **fit)
    assert np.corrcoef(phase.data.ravel(), scan[1].ravel())[0, 1] > 0.98
    by_adam = hf.ptychography(scan[0], defocus=20.0, engine="adam")
    assert 0.8 < phase.data.std() / by_adam.data.std() < 1.2 and by_adam.metadata.Ptychography.engine == "adam"
    node = phase.metadata.Ptychography
    assert node.engine.startswith("phaser") and len(node.cost_history) == node.n_iter == 12
    assert logging.getLogger().handlers == before


def test_phaser_with_odd_patterns_missing_pixels_and_a_stop(scan):
    pytest.importorskip("phaser.execute", reason="phaserEM is not installed")
    signal = scan[0].isig[1:, 1:].deepcopy()
    signal.change_dtype("float32")
    signal.data[3, 4, 5, 6] = np.nan
    positions = np.stack(np.mgrid[:10, :10], axis=-1) * 0.08 + 0.003

    def stop(state):
        if state.n_iter == 8:
            raise StopIteration

    phase = hf.ptychography(signal, defocus=20.0, engine="phaser", positions=positions, callback=stop)
    assert phase.metadata.Ptychography.n_iter == 8 and not phase.metadata.Ptychography.converged
    assert np.corrcoef(phase.data.ravel(), scan[1].ravel())[0, 1] > 0.97


@pytest.mark.parametrize(
    "options, sentence",
    [
        ([1], "is .1., and must be a dictionary"),
        ({"foo": 1}, ".*phaser does not take .*Unexpected field 'foo'"),
        ({"slices": 3}, ".*phaser does not take .*slices.*Instead got `3`"),
        ({"solver": "nope"}, ".*phaser does not take .*solver.*`nope`"),
        ({"niter": 1}, "has 'niter', which max_iter= sets"),
        ({"probe_modes": 2, "update_probe": True}, "has 'update_probe', which refine_probe= sets"),
        ({"type": "gradient"}, "has 'type', which engine='phaser' sets"),
    ],
)
def test_options_that_phaser_does_not_take(scan, options, sentence):
    pytest.importorskip("phaser.execute", reason="phaserEM is not installed")
    with pytest.raises(ValueError, match=f"^engine_options {sentence}") as caught:
        hf.ptychography(scan[0], defocus=20.0, engine="phaser", engine_options=options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing, few_left", [(3e-3, False), (0.03, True)])
def test_pixels_that_not_all_patterns_have(scan, caplog, missing, few_left):
    """Phaser leaves them out of all patterns, which is reported, or refused where few are left."""
    pytest.importorskip("phaser.execute", reason="phaserEM is not installed")
    signal = scan[0].deepcopy()
    signal.change_dtype("float32")
    signal.data[np.random.default_rng(0).random(signal.data.shape) < missing] = np.nan
    if few_left:
        with pytest.raises(ValueError, match="some patterns hold 9.% of the counts.*pass engine='adam'"):
            hf.ptychography(signal, defocus=20.0, engine="phaser")
        return
    with caplog.at_level(logging.INFO):
        hf.ptychography(signal, defocus=20.0, engine="phaser", max_iter=1)
    assert "patterns-incomplete" in codes(caplog)
    caplog.clear()
    hf.ptychography(signal, defocus=20.0, max_iter=1)
    assert "patterns-incomplete" not in codes(caplog)


def test_what_phaser_needs_is_a_sentence(scan, monkeypatch):
    with pytest.raises(ValueError, match="engine_options is"):
        hf.ptychography(scan[0], engine_options={"probe_modes": 2})
    monkeypatch.setattr("hyperspy_fusion.images.ptychography.check_installed", lambda: None)
    with pytest.raises(ValueError, match="refine_positions is True"):
        hf.ptychography(scan[0], engine="phaser", refine_positions=True)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "phaser.execute", None)
    with pytest.raises(ImportError, match=r"hyperspy_fusion\[ptychography\]"):
        hf.ptychography(scan[0], engine="phaser")
