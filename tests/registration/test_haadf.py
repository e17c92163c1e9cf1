"""A HAADF image on other pixels than the maps: brought to theirs when asked, and only then."""

from functools import cache

import hyperspy.api as hs
import numpy as np
import pytest
from helpers import assert_untouched, fuse_with, scan_signals, shared, snapshot

import hyperspy_fusion as hf
from hyperspy_fusion.data import atomic_columns, core_shell, gradient_alloy, psnr

FINE, SHIFT = 20, (1.3, -0.7)


def blocks(image, n):
    """Means over blocks of n by n pixels: no part of what is tested."""
    *rest, ny, nx = image.shape
    return image.reshape(*rest, ny // n, n, nx // n, n).mean(axis=(-3, -1))


def image_of(data, scale=1.0, offset=(0.0, 0.0), units="nm"):
    axes = [
        {"name": k, "size": s, "scale": scale, "offset": o, "units": units}
        for k, s, o in zip("yx", data.shape, offset, strict=True)
    ]
    return hs.signals.Signal2D(data, axes=axes, metadata={"General": {"title": "HAADF"}})


@cache
def fine_phantom(n, counts):
    """HAADF image, elements, and truth in pixels of the maps, of the phantom in 20 by 20 points for each of these."""
    phantom = core_shell((n * FINE, n * FINE), counts=counts, haadf_snr=np.inf)
    return phantom.haadf, phantom.elements, blocks(phantom.truth, FINE)


class Scene:
    """The phantom in 20 by 20 points per pixel of the maps, and what is scanned of it."""

    def __init__(self, n, counts, seed):
        self.n, (self.haadf, self.elements, self.truth) = n, fine_phantom(n, counts)
        self.rng = np.random.default_rng(seed)
        counts = self.rng.poisson(self.truth).astype("u2")
        self.maps = [self.signal(m, e) for m, e in zip(counts, self.elements, strict=True)]

    def aligned(self, snr=200):
        image = blocks(self.haadf, FINE)
        return self.signal(image + self.rng.normal(0, 1 / snr, image.shape))

    def shifted(self, finer=4, margin=0.025, shift=SHIFT, snr=50):
        """Of the middle of the scan, in pixels that are finer; its axes put it `shift` pixels off."""
        edge, size = round(margin * self.n) * FINE, FINE // finer
        top, left = (edge + round(s * FINE) for s in shift)
        n = (self.n * FINE - 2 * edge) // size * size
        image = blocks(self.haadf[top : top + n, left : left + n], size)
        scale = 0.5 / finer
        first = edge / FINE * 0.5 + (scale - 0.5) / 2
        return self.signal(image + self.rng.normal(0, 1 / snr, image.shape), "HAADF", scale, first)

    def signal(self, data, title="HAADF", scale=0.5, offset=0.0):
        signal = image_of(data, scale, (offset, offset))
        signal.metadata.General.title = title
        return signal


@pytest.fixture(scope="module")
def scene():
    return Scene(64, counts=4, seed=0)


@pytest.mark.nightly
def test_a_finer_shifted_cropped_image_is_registered(scene):
    """The image of the phantom 4 times finer, off by (1.3, -0.7) pixels and 5 % smaller, at 4 peak counts."""
    haadf, aligned = scene.shifted(), scene.aligned()
    matched = hf.match_haadf(haadf, scene.maps)
    assert np.abs(matched.shift - SHIFT).max() < 0.1
    assert np.abs(matched.shift - SHIFT).max() < 4 * matched.shift_error.max() < 0.3
    known = np.isfinite(matched.haadf.data)
    settings = {"method": "calibrated", "tol": 1e-2}

    def score(fused):
        return np.array([psnr(m[known], t[known]) for m, t in zip(fused.data, scene.truth, strict=True)])

    best = score(fuse_with(scene.maps, aligned, **settings))
    loss = best - score(fuse_with(scene.maps, haadf, register=True, **settings))
    assert loss.mean() < 0.7
    unregistered = best - score(fuse_with(scene.maps, haadf, register="calibration", **settings))
    assert unregistered.mean() > loss.mean() + 1


@pytest.mark.parametrize(
    "finer, shift, snr", [(4, (0, 0), 50), (2, (3.4, -5.2), 50), (1, (0.5, -0.5), 50), (1, (1.3, -0.7), 8)]
)
def test_the_shift_is_found_at_any_pixel_size(scene, finer, shift, snr):
    matched = hf.match_haadf(scene.shifted(finer, margin=0.1, shift=shift, snr=snr), scene.maps)
    assert np.abs(matched.shift - shift).max() < 4 * matched.shift_error.max() < 0.3
    assert 0.5 < matched.overlap < 0.7 and matched.correlation > 0.7


def test_a_coarser_image_is_registered_and_interpolated(scene, caplog):
    coarse = scene.shifted(1).rebin(scale=(2, 2))
    coarse.data /= 4
    matched = hf.match_haadf(coarse, scene.maps)
    assert np.abs(matched.shift - SHIFT).max() < 0.25
    assert "interpolated, its pixels being 2 x 2" in matched.sentence
    assert [d.code for d in matched.diagnostics] == ["haadf-coarser", "haadf-covers-part"]
    assert matched.diagnostics[1].sentence in caplog.text  # a warning, the other is information
    assert matched.diagnostics[0].sentence not in caplog.text


@pytest.mark.nightly
def test_noise_does_not_bias_the_shift_to_whole_pixels(scene):
    """At half a pixel interpolation smooths most, and a smoother image is liker to anything."""
    shift, errors = (0.3, -0.3), []
    maps = [
        scene.signal(np.random.default_rng(9).poisson(t * 100), e)
        for t, e in zip(scene.truth, ("Pt", "Fe", "O"), strict=True)
    ]
    for _ in range(4):
        errors.append(hf.match_haadf(scene.shifted(1, shift=shift, snr=10), maps).shift - shift)
    assert np.abs(np.mean(errors, axis=0)).max() < 0.04


@pytest.mark.nightly
def test_a_magnified_image_is_registered_as_it_was_before(scene):
    haadf = scene.aligned(snr=20)
    large = scene.signal(np.kron(haadf.data, np.ones((4, 4))), scale=0.125)
    matched = [hf.match_haadf(image, scene.maps) for image in (haadf, large)]
    np.testing.assert_allclose(matched[0].shift, matched[1].shift, atol=0.05)


@pytest.mark.nightly
def test_slow_unmapped_variations_do_not_bias_the_shift(scene):
    """A support whose thickness varies, as bright as the brightest particle."""
    haadf = scene.shifted()
    haadf.data += np.linspace(0, 1, haadf.data.shape[0])[:, None] ** 2
    matched = hf.match_haadf(haadf, scene.maps)
    assert np.abs(matched.shift - SHIFT).max() < 4 * matched.shift_error.max() < 0.25


def test_real_eels_maps_and_their_image_lie_on_each_other():
    """Features in the middle of this scan coincide; a matrix in no map is half of the image."""
    haadf, maps = hf.scan([shared(f"data/{name}.hspy") for name in ("CuZn_HAADF", "Cu_map", "Zn_map")])
    matched = hf.match_haadf(haadf, maps)
    assert np.abs(matched.shift).max() < 0.3 and matched.shift_error.max() < 0.2


@pytest.mark.nightly
def test_noise_of_the_image_is_no_structure():
    """Nothing but slopes: the image tells a shift by its noise alone."""
    maps, haadf = gradient_alloy((64, 64), counts=1000, haadf_snr=20).signals()
    try:
        assert not (hf.match_haadf(haadf, maps).shift_error < 0.5).all()
    except ValueError as error:
        assert "too little structure" in str(error)


@pytest.mark.nightly
def test_a_noisy_image_is_registered_by_what_noise_leaves(scene):
    for snr in (3, 6):
        matched = hf.match_haadf(scene.shifted(1, snr=snr), scene.maps)
        assert np.abs(matched.shift - SHIFT).max() < 4 * matched.shift_error.max() < 0.6


@pytest.mark.nightly
def test_the_exponent_hardly_matters(scene):
    haadf = scene.shifted()
    low, high = (hf.match_haadf(haadf, scene.maps, gamma=gamma).shift for gamma in (1.0, 2.2))
    np.testing.assert_allclose(low, high, atol=0.05)


def test_offsets_and_images_of_other_scans(scene):
    haadf = scene.shifted()
    for axis in haadf.axes_manager.signal_axes:
        axis.offset += 1000.0
    matched = hf.match_haadf(haadf, scene.maps)
    np.testing.assert_allclose(matched.shift, np.array(SHIFT) - 2000, atol=0.2)
    with pytest.raises(ValueError, match="covers no pixel of the maps where their axes put it: pass register='shift'"):
        hf.match_haadf(haadf, scene.maps, register="calibration")
    haadf.axes_manager[0].offset = 1e30
    with pytest.raises(ValueError, match="No shift of the HAADF image|There are too few pixels"):
        hf.match_haadf(haadf, scene.maps)
    for gamma in ("a", 0, np.nan, [1.7], {"Fe": 1}):
        with pytest.raises(ValueError, match="gamma is .*: it must lie above 0 and at most at 4"):
            hf.match_haadf(haadf, scene.maps, gamma=gamma)
    other = scene.signal(scene.aligned().data[::-1, ::-1].T.copy())
    noise = scene.signal(np.random.default_rng(0).normal(size=(64, 64)))
    with pytest.raises(ValueError, match="No shift of the HAADF image against the maps can be measured, for the two"):
        hf.match_haadf(noise, scene.maps)
    # particles are like particles: a correlation to look at
    assert hf.match_haadf(other, scene.maps).correlation < hf.match_haadf(scene.aligned(), scene.maps).correlation - 0.1


def test_what_is_masked_missing_or_saturated_is_left_out(scene):
    haadf, mask = scene.shifted(), np.zeros((64, 64), bool)
    haadf.data[:40, :40] = np.nan
    mask[40:, 40:] = True
    maps = [m.deepcopy() for m in scene.maps]
    for m in maps:
        m.data[mask] = 60000
    matched = hf.match_haadf(haadf, maps, mask=mask)
    assert np.abs(matched.shift - SHIFT).max() < 4 * matched.shift_error.max() < 0.3
    data = np.random.default_rng(0).random((32, 32))
    data[:4, :4] = data[8, 8] = 2.0  # a pile at the ceiling of the detector
    data[20:24, 20:22] = np.nan
    data[28, 28] = np.nan
    result = placed(image_of(data, 0.25), maps_of()).haadf.data
    missing = np.zeros((8, 8), bool)
    # one saturated pixel makes the mean too dark; half of one is missing; one dead pixel in 16 is not
    missing[0, 0] = missing[2, 2] = missing[5, 5] = True
    np.testing.assert_array_equal(np.isnan(result), missing)


def maps_of(n=8, scale=1.0, offset=0.0, units="nm"):
    maps, _ = scan_signals(n, n)
    for m in maps:
        for axis in m.axes_manager.signal_axes:
            axis.scale, axis.offset, axis.units = scale, offset, units
    return maps


def placed(image, maps):
    return hf.match_haadf(image, maps, register="calibration")


@pytest.mark.parametrize("ny, nx", [(1, 64), (64, 4), (8, 8), (2, 2)])
def test_few_pixels_are_told_and_nothing_leaks(ny, nx, recwarn):
    maps, haadf = core_shell((64, 64), counts=10).signals()
    maps, haadf = [m.isig[:nx, :ny] for m in maps], haadf.isig[:nx, :ny]
    with pytest.raises(ValueError, match=r"^There are too few pixels .* are needed\): pass register='calibration'.$"):
        hf.match_haadf(haadf, maps)
    assert hf.match_haadf(haadf, maps, register="calibration").overlap == 1
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


@pytest.mark.parametrize("factor, register", [
    (np.nan, "shift"), (np.inf, "calibration"), (1e31, "shift"), (1e-32, "calibration"), (-1e200, "shift"),
])  # fmt: skip
def test_images_that_no_fit_can_square_are_refused(factor, register):
    maps, haadf = core_shell((32, 32), counts=10).signals()
    sentence = "HAADF image has (no pixel that is a number|values up to .*: multiply it by 1e)"
    with np.errstate(all="raise", under="ignore"):
        image = np.full((32, 32), factor) if not np.isfinite(factor) else haadf.data * factor
        with pytest.raises(ValueError, match=sentence):
            hf.match_haadf(image_of(image, 0.5), maps, register=register)
        if np.isfinite(factor):
            fe = image_of(maps[1].data * factor, 0.5)
            fe.metadata.General.title = "Fe"
            with pytest.raises(ValueError, match="The Fe image has values up to"):
                hf.match_haadf(haadf, [maps[0], fe, maps[2]], register=register)
            for method in ("published", "calibrated", "auto"):
                with pytest.raises(ValueError, match=f"The (Fe )?{sentence.partition(' ')[2]}"):
                    hf.fuse([maps[0], fe, maps[2]], haadf, method=method)
                with pytest.raises(ValueError, match=sentence):
                    hf.fuse(maps, image_of(image, 0.5), method=method)


def test_an_image_near_the_end_of_single_precision_is_refused(recwarn):
    maps, haadf = core_shell((32, 32), counts=10).signals()
    image = image_of((3e38 * haadf.data / haadf.data.max()).astype("f4"), 0.5)
    for method in ("published", "calibrated", "auto"):
        with pytest.raises(ValueError, match="HAADF image has values up to"):
            hf.fuse(maps, image, method=method)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_units_and_proportional_shapes_of_one_field():
    """An offset of 0, of the centre of the first pixel, and of the edge."""
    data = np.random.default_rng(0).random((32, 32))
    for offset in (0.0, -0.375, 0.375):
        actual = placed(image_of(data, 0.25, (offset, offset)), maps_of()).haadf.data
        np.testing.assert_allclose(actual, blocks(data, 4))
    data = np.random.default_rng(0).random((8, 8))
    result = placed(image_of(data, 0.001, (0.012, 0.01), "µm"), maps_of(offset=10.0)).haadf.data
    np.testing.assert_allclose(result[2:], data[:-2])
    assert np.isnan(result[:2]).all()
    data = np.random.default_rng(0).random((16, 16))
    for units in ("", "px"):
        result = placed(image_of(data, 1.0, units=units), maps_of())
        np.testing.assert_allclose(result.haadf.data, blocks(data, 2))
        with pytest.raises(ValueError, match="in no proportion, .* set scale and units of both"):
            placed(image_of(data[:10], units=units), maps_of())
    with pytest.raises(ValueError, match="runs against that of the maps"):
        placed(image_of(np.ones((16, 16)), -0.5), maps_of())
    with pytest.raises(ValueError, match="looks transposed"):
        placed(image_of(np.random.default_rng(0).random((15, 12)), units=""), scan_signals()[0])


OFFSETS = [((-16.0, -9.0), (0, 0)), ((0, 0), (40.0, 3.0)), ((0.5, 0), (-900, 0))]
UNITS = [("nm", 1.0, -1), ("µm", 1e-3, 1), ("Å", 10.0, -1)]


@pytest.mark.parametrize("row, column", list(np.ndindex(3, 3)))
def test_an_offset_of_the_stage_on_one_side_is_no_shift(row, column):
    """As Velox gives the spectra one, and the HAADF image none; pixels that are coarser, as they are, and finer.

    Every two of offset, size and unit meet once.
    """
    (of_maps, of_image), n, (units, length, sign) = OFFSETS[row], (8, 16, 32)[column], UNITS[(row + column) % 3]
    data, scale = np.random.default_rng(0).random((n, n)), 16 / n * length * sign
    image, maps = image_of(data, scale, np.multiply(of_image, length), units), maps_of(16, 1.0 * sign)
    for m in maps:
        for name, offset in zip("yx", of_maps, strict=True):
            m.axes_manager[name].offset = offset
    matched = placed(image, maps)
    expected = placed(image_of(data, 16 / n), maps_of(16, 1.0)).haadf.data
    assert matched.overlap == 1
    np.testing.assert_allclose(matched.haadf.data, expected)
    (found,) = [d for d in matched.diagnostics if d.code == "offset-differs"]
    is_usual = (0, 0) in (of_maps, of_image)
    assert found.severity == ("information" if is_usual else "serious") and "laid edge on edge" in found.sentence
    # an offset on both sides is that of one frame
    for m in maps:
        m.axes_manager["x"].offset += 50.0
    image.axes_manager["y"].offset += 33.0 * length
    image.axes_manager["x"].offset += 33.0 * length
    with pytest.raises(ValueError, match="covers no pixel of the maps"):
        placed(image, maps)


def test_a_lattice_keeps_the_nearest_position_and_says_so():
    """A cell has 15.6 pixels; the calibration is off by part of one."""
    maps, haadf = atomic_columns((64, 64), counts=10).signals()
    for of_maps, of_image, shift in ((-1.3, 0.0, 0.0), (3.0, 3.05, -2.0), (3.0, 2.87, 5.2)):
        for m in (*maps, haadf):
            for axis in m.axes_manager.signal_axes:
                axis.offset = of_image if m is haadf else of_maps
        matched = hf.match_haadf(haadf, maps)
        assert np.abs(matched.shift - shift).max() < 0.3
        severities = {d.code: d.severity for d in matched.diagnostics}
        assert "shift-ambiguous" in severities
        # what is ambiguous does not confirm the edges
        assert severities.get("offset-differs", "serious") == "serious"


@pytest.mark.parametrize(
    "period, shift, kind, expected",
    [
        (8, (5, -6), "edge", (5, -6)),
        (10, (0, 8), "vacancies", (0, 8)),
        (8, (0, 6), "perfect", (0, -2)),
    ],
)
def test_an_edge_or_defects_of_a_lattice_decide_between_its_periods(period, shift, kind, expected):
    rng, n, margin = np.random.default_rng(0), 96, 12
    y, x = np.indices((n + 2 * margin, n + 2 * margin))
    lattice = np.clip(0.5 + 0.5 * np.cos(2 * np.pi * x / period) * np.cos(2 * np.pi * y / period), 0, None) ** 2
    if kind == "edge":
        lattice /= (1 + np.exp(45.0 - x)) * (1 + np.exp(y - 80.0))
    if kind == "vacancies":
        for row, column in ((30, 40), (70, 60), (60, 80)):
            lattice[np.hypot(y - row, x - column) < period / 2] = 0
    image = lattice + rng.normal(0, 0.03, lattice.shape)
    top, left = margin + np.array(shift)
    counts = hs.signals.Signal2D(rng.poisson(20 * lattice[margin:-margin, margin:-margin]).astype("float32"))
    counts.metadata.General.title = "Sr"
    haadf = image_of(image[top : top + n, left : left + n], units="px")
    matched = hf.match_haadf(haadf, [counts])
    assert np.abs(matched.shift - expected).max() < 0.2
    assert kind == "edge" or "shift-ambiguous" in [d.code for d in matched.diagnostics]


def test_particles_are_not_ambiguous(scene):
    for haadf in (scene.aligned(), scene.shifted(2, margin=0.1, shift=(3.4, -5.2))):
        assert "shift-ambiguous" not in [d.code for d in hf.match_haadf(haadf, scene.maps).diagnostics]


def test_the_mean_over_pixels_is_that_of_rebin():
    """HyperSpy adds up, and puts offsets at the centres of pixels, as is done here."""
    fine = image_of(np.random.default_rng(0).random((32, 32)), 0.25, (3.0, -2.0))
    coarse = fine.rebin(scale=(4, 4))
    maps = maps_of()
    for m in maps:
        for name in "yx":
            m.axes_manager[name].offset = coarse.axes_manager[name].offset
    result = placed(fine, maps).haadf
    np.testing.assert_allclose(result.data, coarse.data / 16)
    assert [a.offset for a in result.axes_manager.signal_axes] == [a.offset for a in coarse.axes_manager.signal_axes]
    cropped = placed(fine.isig[8:, 4:-4], maps).haadf.data
    np.testing.assert_allclose(cropped[1:-1, 2:], result.data[1:-1, 2:])
    assert np.isnan(cropped[:, :2]).all() and np.isnan(cropped[[0, -1]]).all()


CALIBRATED = {"method": "calibrated", "regularization": "directional", "max_iter": 20}


def finer(haadf):
    return image_of(np.repeat(np.repeat(haadf.data.astype(float), 2, 0), 2, 1), 1.0)


@pytest.fixture
def signals():
    maps, haadf = core_shell((32, 32), pixel_size_nm=2.0).signals()
    return maps, haadf


def test_nothing_is_resampled_unasked(signals):
    maps, haadf = signals
    with pytest.raises(ValueError, match="pass register='calibration' .* or register='shift'"):
        hf.fuse(maps, finer(haadf), method="published")
    with pytest.raises(ValueError, match="pass register='calibration' .* or register='shift'"):
        hf.fuse(maps, haadf.isig[2:, 2:], method="published")
    far = haadf.deepcopy()
    far.axes_manager["x"].offset = 10
    model = hf.FusedMultiModal(far, maps, method="published")
    assert any("pass register='shift'" in found.sentence for found in model.diagnostics)
    np.testing.assert_array_equal(model.haadf.data, haadf.data)


def test_a_finer_image_of_the_same_field_fuses_as_its_mean(signals):
    maps, haadf = signals
    options = {"max_iter": 3}
    expected = fuse_with(maps, haadf, **options)
    image = finer(haadf)
    before = snapshot(image)
    fused = fuse_with(maps, image, register="calibration", **options)
    np.testing.assert_allclose(fused.data, expected.data, rtol=1e-4, atol=1e-4)
    assert_untouched(image, before)
    np.testing.assert_allclose(
        fuse_with(hf.element_maps(maps), image, register="calibration", **options).data, fused.data
    )


def test_what_was_done_is_in_the_metadata_and_is_saved(signals, tmp_path):
    maps, haadf = signals
    fused = fuse_with(maps, haadf.isig[2:, 1:], register=True, **CALIBRATED)
    fused.save(tmp_path / "fused.hspy")
    for fit in (fused.metadata.Fusion, hs.load(tmp_path / "fused.hspy").metadata.Fusion):
        done = fit.registration
        assert np.abs(done.shift).max() < 0.2 and (done.shift_error < 0.1).all()
        assert 0.85 < done.overlap < (31 * 30) / 32**2 + 1e-9
        np.testing.assert_allclose(done.haadf_pixel, 1)
        assert "was shifted by" in done.sentence and "to match them" in done.sentence
        assert any("HAADF image covers" in sentence for sentence in fit.warnings)
    assert not hf.fuse(maps, haadf, max_iter=1, method="published").metadata.Fusion.has_item("registration")


def test_the_published_method_needs_every_pixel_or_a_crop(signals):
    maps, haadf = signals
    part = haadf.isig[2:, 1:]
    with pytest.raises(ValueError, match=r"rows 1 to 31 and columns 2 to 31.* pass method='calibrated'") as error:
        hf.fuse(maps, part, register="calibration", method="published")
    assert "`.isig[2:32, 1:32]`" in str(error.value)
    cropped = [m.isig[2:32, 1:32] for m in maps]
    assert hf.fuse(cropped, part, register="calibration", max_iter=1, method="published").data.shape == (3, 31, 30)


def test_the_mask_of_the_user_goes_with_it(signals):
    maps, haadf = signals
    mask = np.zeros((32, 32), bool)
    mask[:5] = True
    model = hf.FusedMultiModal(haadf.isig[1:], maps, method="calibrated", mask=mask, register="calibration")
    assert not model._measured.valid.haadf[:5].any() and not model._measured.valid.haadf[:, 0].any()
    assert model._measured.valid.haadf[5:, 1:].all() and model._measured.valid.maps[:, 5:].all()


def bulk_scan(n=32):
    """EDS of a bulk specimen of two phases in an SEM, and backscattered electrons, finer by 2."""
    y, x = np.mgrid[:n, :n]
    inside = (np.hypot(y - n / 2, x - n / 2) < n / 4).astype(float)
    iron, aluminium = 0.2 + 0.7 * inside, 0.8 - 0.7 * inside
    rng = np.random.default_rng(0)
    spectra = hs.signals.Signal1D(rng.poisson(0.02, (n, n, 800)).astype("u2"))
    energy = {"scale": 0.01, "offset": 0.0, "units": "keV", "name": "Energy"}
    for axis, options in zip(spectra.axes_manager._axes, ({}, {}, energy), strict=True):
        for key, value in (options or {"scale": 0.5, "units": "µm"}).items():
            setattr(axis, key, value)
    spectra.axes_manager._axes[0].name, spectra.axes_manager._axes[1].name = "height", "width"
    spectra.set_signal_type("EDS_SEM")
    spectra.set_microscope_parameters(beam_energy=15.0)
    spectra.metadata.General.title = "EDX"
    spectra.data[..., 640] += rng.poisson(6 * iron).astype("u2")
    spectra.data[..., 149] += rng.poisson(6 * aluminium).astype("u2")
    coefficient = 0.28 * iron + 0.153 * aluminium
    electrons = np.repeat(np.repeat(coefficient, 2, 0), 2, 1)
    image = image_of(electrons + rng.normal(0, 0.002, electrons.shape), 0.25, units="µm")
    image.metadata.General.title = "BSE"
    return spectra, image, np.stack([iron, aluminium]) * 6


def test_sem_spectra_fuse_with_backscattered_electrons():
    spectra, image, truth = bulk_scan()
    scan = hf.scan([image, spectra])
    assert scan.haadf is image and "z_exponent about 0.8" in scan.sentence
    bse, eds = scan
    options = {"method": "calibrated", "z_exponent": 0.8, "regularization": "directional"}
    fused = fuse_with(eds, bse, elements=["Fe", "Al"], register="calibration", **options)
    assert fused.axes_manager[-1].units == "µm" and fused.elements == ["Fe", "Al"]
    measured = hf.element_maps(eds, ["Fe", "Al"])
    for element, true in zip(fused.elements, truth, strict=True):
        own, raw = (m.get_map(element).data - (m.get_map(element).data.mean() - true.mean()) for m in (fused, measured))
        assert psnr(own, true) > psnr(raw, true) + 6
