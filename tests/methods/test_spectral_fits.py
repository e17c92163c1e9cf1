"""Maps by a fit of whole EDS spectra: ``fuse(..., lines="model")``."""

import functools

import hyperspy.api as hs
import numpy as np
import pytest
from helpers import snapshot

import hyperspy_fusion as hf
from hyperspy_fusion.data import overlapping_lines, psnr

ELEMENTS = ["Fe", "Co", "S", "Mo", "O"]
QUICK = hf.CalibratedSettings(regularization="directional", joint=False, tol=3e-3)
OPTIONS = {"elements": ELEMENTS, "method": "calibrated", "lines": "model", "settings": QUICK, "show_progressbar": False}


@functools.cache
def phantom():
    return overlapping_lines((24, 28), counts=16)


@pytest.fixture
def scan():
    return phantom().signals()


@functools.cache
def fused_with_errors():
    return hf.fuse(*phantom().signals(), **OPTIONS, errors=8)


def fused(scan, **options):
    return hf.fuse(*scan, **(OPTIONS | options))


def test_unresolved_lines_become_maps(scan):
    before = [snapshot(signal) for signal in scan]
    by_lines, by_windows = fused(scan), fused(scan, lines="windows")
    for signal, one in zip(scan, before, strict=True):
        for old, new in zip(one, snapshot(signal), strict=True):
            np.testing.assert_equal(new, old)
    assert by_lines.elements == ELEMENTS
    for i, element in enumerate(ELEMENTS):
        quality, of_windows = (psnr(maps.data[i], phantom().truth[i]) for maps in (by_lines, by_windows))
        assert quality > of_windows + (8 if element in ("S", "Mo") else -1), element
    assert psnr(by_lines.data[2], phantom().truth[2]) > 23
    # counts of whole lines, whose total is within five standard errors
    total, truth = by_lines.data.sum(axis=(1, 2)), phantom().truth[:5].sum(axis=(1, 2))
    np.testing.assert_allclose(total[[0, 1, 4]], truth[[0, 1, 4]], rtol=0.1)
    assert total[2] + total[3] == pytest.approx(truth[2] + truth[3], rel=0.05)
    described = by_lines.metadata.Element_maps
    assert described.lines == "model" and not described.has_item("integration_windows")
    assert described.xray_lines == ["Fe_Ka", "Co_Ka", "S_Ka", "Mo_La", "O_Ka"]
    assert len(by_lines.metadata.Fusion.systematic_errors) == 5
    # windows of both pairs recommend it
    (sentence,) = (d for d in by_windows.metadata.Fusion.warnings if "share channels" in d)
    assert "S/Mo" in sentence and "lines='model'" in sentence


def test_elements_of_the_file_that_nobody_asks_for_have_no_map(scan):
    asked = fused(scan, elements=["S", "Mo", "Fe", "Co", "O", "Cu"])
    named = fused(scan, elements=None)
    assert named.elements == list(phantom().elements)
    # copper has a column in both, and contributes to the HAADF forward model of one
    np.testing.assert_allclose(named.get_map("S").data, asked.get_map("S").data, rtol=1e-3, atol=1e-3)
    assert psnr(fused(scan).get_map("S").data, asked.get_map("S").data) > 30


def test_lazy_spectra_are_fitted_as_those_in_memory(scan):
    spectra, haadf = scan
    lazy = spectra.as_lazy()
    lazy.data = lazy.data.rechunk((10, 9, 300))
    found = fused((lazy, haadf))
    assert not found._lazy and lazy._lazy
    np.testing.assert_allclose(found.data, fused(scan).data, rtol=1e-4, atol=1e-4)


def test_masked_pixels_change_nothing(scan):
    mask = np.zeros(scan[1].data.shape, bool)
    mask[4:8, 3:9] = True
    expected = fused(scan, mask=mask)
    scan[0].data[mask] = 3
    found = fused(scan, mask=mask)
    assert list(found.metadata.Fusion.n_masked) == [24] * 5
    np.testing.assert_allclose(found.data, expected.data, rtol=1e-3, atol=1e-3)
    assert np.isfinite(found.data).all()


def model_of(scan, **options):
    given = {"elements": ELEMENTS, "method": "calibrated", "lines": "model"} | options
    return hf.FusedMultiModal(scan[1], scan[0], **given)


@pytest.mark.parametrize("value", [1e4, np.nan])
def test_measured_maps_and_their_variance_have_nothing_of_masked_pixels(scan, value):
    mask = np.zeros(scan[1].data.shape, bool)
    mask[4:8, 3:9] = True
    expected = model_of(scan, mask=mask).maps
    scan[0].change_dtype("float32")
    scan[0].data[mask] = value
    found = model_of(scan, mask=mask).maps
    np.testing.assert_allclose(found.data, expected.data, rtol=1e-3, atol=1e-3)
    variance, of_expected = (maps.get_noise_variance().data for maps in (found, expected))
    np.testing.assert_allclose(variance, of_expected, rtol=1e-3, atol=1e-3)


def test_a_spike_is_in_no_part_of_the_model(scan):
    mask = np.zeros(scan[1].data.shape, bool)
    mask[12, 14] = True
    expected = model_of(scan, mask=mask)
    scan[0].data[12, 14, 638:642] = 400
    found = model_of(scan)
    assert [d.code for d in found.diagnostics if d.code == "spikes"]
    np.testing.assert_allclose(found.maps.data, expected.maps.data, rtol=1e-3, atol=1e-3)
    assert "line-of-no-element" not in {d.code for d in found.diagnostics}


@pytest.mark.slow
def test_few_counts_do_not_contradict_their_fit():
    """Around pixels without counts the variance is that of the fit, not that of the counts."""
    model = model_of(overlapping_lines((64, 64), counts=1).signals())
    model.fit(settings=QUICK, show_progressbar=False)
    assert "map-contradicts-counts" not in {d.code for d in model.diagnostics}
    fitted = model.as_signal().metadata.Fusion
    assert fitted.noise == "shifted_poisson" and np.all(fitted.counts > 0)
    model = model_of(phantom().signals())
    model.fit(settings=QUICK, lambda_reg=100.0, max_iter=100, show_progressbar=False)
    assert "map-contradicts-counts" in {d.code for d in model.diagnostics}


def test_an_image_that_is_shifted_is_registered(scan):
    spectra, haadf = scan
    haadf.axes_manager[0].offset += 2 * haadf.axes_manager[0].scale
    shifted = haadf.isig[:-2, :]
    found = fused((spectra.inav[2:, :], shifted), register="calibration")
    assert found.data.shape == (5, 24, 26)


def test_errors_have_the_systematic_error_of_the_model(scan):
    maps = fused_with_errors()
    errors, systematic = maps.standard_errors().data, maps.metadata.Fusion.systematic_errors
    bright = maps.data[2] > 0.5 * maps.data[2].max()
    # a tenth of the counts of molybdenum in the window of sulfur
    assert systematic[2] > 0.05 and np.all(errors[2][bright] > systematic[2] * maps.data[2][bright])
    region = maps.region(phantom().truth[0] > 8)
    for element, truth in zip(ELEMENTS, phantom().truth, strict=False):
        found = region.mean(element)
        assert abs(found.value - truth[region.mask].mean()) < 5 * found.error + 0.1
    # sulfur and molybdenum are not there, and the fit of the summed spectrum has none
    assert region.estimate("S").measured >= 0 and region.estimate("Mo").measured >= 0


def test_results_survive_saving(scan, tmp_path):
    maps = fused_with_errors()
    maps.save(tmp_path / "maps.hspy")
    loaded = hs.load(tmp_path / "maps.hspy")
    np.testing.assert_array_equal(loaded.data, maps.data)
    for key in ("systematic_errors", "total_ratios"):
        np.testing.assert_array_equal(loaded.metadata.Fusion[key], maps.metadata.Fusion[key])
    assert loaded.metadata.Element_maps.lines == "model"
    np.testing.assert_allclose(loaded.modelled_haadf().data, maps.modelled_haadf().data)
    assert loaded.atomic_percent("CL", 1).data.shape == maps.data.shape
    # the difference of an unresolved pair is uncertain, its sum is not
    total = (maps.get_map("S") + maps.get_map("Mo")).data
    assert psnr(total, phantom().truth[2:4].sum(axis=0)) > 25


def test_a_model_goes_on_with_its_fit(scan):
    model = hf.FusedMultiModal(scan[1], scan[0], elements=ELEMENTS, method="calibrated", lines="model")
    first = model.fit(settings=QUICK, show_progressbar=False)
    np.testing.assert_array_equal(model.as_signal().data, fused(scan).data)
    second = model.fit(tol=1e-4, show_progressbar=False)
    assert second.nit > first.nit and second.gap < first.gap
    # measured maps are estimates of single pixels, negative ones among them, with their variance
    assert model.maps.data.min() < 0 and model.maps.get_noise_variance() is not None
    assert sum(np.nan_to_num(m.data) for m in model.attribution().values()).shape == (5, 24, 28)
    assert model.normalised_residuals().data.std() < 1.5


@pytest.mark.slow
def test_the_automatic_method_chooses_for_spectra(scan):
    found = fused(scan, method="auto", settings=hf.AutoSettings(regularization="directional", max_iter=300))
    assert found.metadata.Fusion.selection.sentence.startswith("Of ")
    assert psnr(found.get_map("S").data, phantom().truth[2]) > 22


def times(factor):
    def changed(scan):
        scan[0].change_dtype("float32")
        scan[0].data = scan[0].data * np.float32(factor)
        return scan

    return changed


def one_count(scan):
    scan[0].data[:] = 0
    scan[0].data[3, 4, 640] = 1
    return scan


def stacked(scan):
    return [hs.stack([one, one], show_progressbar=False) for one in scan]


@pytest.mark.parametrize(
    "change, options, words",
    [
        (None, {"method": "published", "settings": None}, "'published' has no model of the noise"),
        (None, {"lines": "lines"}, "lines is 'lines': it must be one of 'windows', 'model'"),
        (None, {"background": "windows"}, "background is for lines='windows'"),
        (None, {"background": 1.0}, "background is 1.0, and lines is 'model'"),
        (None, {"settings": hf.CalibratedSettings(noise="gaussian")}, "noise is 'gaussian', and lines is 'model'"),
        (None, {"integration_windows": 1.2}, "integration_windows is for lines='windows'"),
        (None, {"settings": hf.CalibratedSettings(tile_size=16)}, "lines is 'model', .* not for maps in tiles"),
        (times(100), {}, "whole multiples of 100, .* divide the spectra by 100"),
        (times(0.1), {"method": "auto", "settings": None}, "values that are no whole counts, and lines is 'model'"),
        (one_count, {}, "has 1 counts, fewer than the 8 elements"),
        (stacked, {}, "lines is 'model', .* not for a stack"),
        (lambda scan: (hf.element_maps(scan[0]), scan[1]), {}, "lines is for an EDS spectrum image, .* is ElementMaps"),
    ],
)
def test_what_is_no_fit_of_spectra_is_refused(scan, change, options, words):
    with pytest.raises(ValueError, match=words):
        fused(scan if change is None else change(scan), **options)


def test_a_stack_in_steps_refuses_them_as_well(scan):
    spectra, haadf = stacked(scan)
    with pytest.raises(ValueError, match="lines is 'model', .* not for a stack"):
        hf.FusedMultiModal(haadf, spectra, method="calibrated", lines="model").fit()


@pytest.mark.nightly
@pytest.mark.parametrize("counts, light, metals, false", [(1, 23, 28.5, 0.16), (4, 25, 31, 0.1), (16, 30, 33, 0.09)])
def test_the_phantom_is_resolved_at_every_dose(counts, light, metals, false):
    scan = overlapping_lines(counts=counts, seed=1)
    settings = hf.CalibratedSettings(regularization="directional", joint=False)
    maps = fused(scan.signals(), elements=list(scan.elements), settings=settings).data
    quality = [psnr(one, truth) for one, truth in zip(maps, scan.truth, strict=True)]
    assert min(quality[:2]) > metals and min(quality[2:4]) > light
    for absent, present in ((2, 3), (3, 2)):
        alone = (scan.truth[present] > scan.truth[present].max() / 2) & (scan.truth[absent] == 0)
        assert maps[absent][alone].mean() < false * maps[present][alone].mean()
