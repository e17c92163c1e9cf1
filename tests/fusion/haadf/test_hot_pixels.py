"""Claims about hot and dead pixels of the HAADF image: what was put in is found, and no structure is."""

import numpy as np
import pytest
from helpers import fuse_with, shared

import hyperspy_fusion as hf
from hyperspy_fusion.data import HAADF_EXPONENT, PHANTOMS, core_shell
from hyperspy_fusion.fusion.haadf.hot_pixels import LISTED, about_hot_pixels, hot_pixels, spikes_of_maps
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.terms.data_fidelity import noise_of
from hyperspy_fusion.fusion.terms.haadf_model import saturated, z_weights
from hyperspy_fusion.fusion.terms.scan_data import ScanData
from hyperspy_fusion.identify.elements import atomic_number


def found(maps, haadf, numbers, haadf_valid=None, valid=None):
    """Places (row, column) of hot pixels."""
    scan = ScanData.of(np.asarray(maps), haadf, numbers, valid=valid, haadf_valid=haadf_valid).filled()
    hot = hot_pixels(scan, noise_of(scan, CalibratedSettings()), z_weights(numbers, HAADF_EXPONENT))
    return [tuple(place) for place in np.argwhere(hot).tolist()]


def found_in(phantom, values, gain=1.0, offset=0.0, **options):
    haadf = phantom.haadf.copy()
    for place, value in values.items():
        haadf[place] = value
    return found(phantom.maps, gain * haadf + offset, phantom.atomic_numbers, **options)


@pytest.mark.parametrize("name", PHANTOMS)
def test_a_hot_pixel_of_five_times_the_local_value_is_found(name):
    phantom = PHANTOMS[name]((96, 80), counts=16)
    bright = tuple(int(i) for i in np.unravel_index(np.argmax(phantom.haadf), phantom.haadf.shape))
    assert found_in(phantom, {bright: 5 * phantom.haadf[bright]}) == [bright]


def test_a_dead_pixel_in_platinum_is_found():
    phantom = core_shell((96, 80), counts=40)
    bright = tuple(int(i) for i in np.unravel_index(np.argmax(phantom.truth[0]), (96, 80)))
    assert found_in(phantom, {bright: 0.0}) == [bright]


@pytest.mark.parametrize("name", PHANTOMS)
@pytest.mark.parametrize("counts", [1, 4, 16, 60])
def test_phantoms_have_none(name, counts):
    for seed, shape in enumerate([(96, 96), (31, 90), (8, 8)]):
        assert not found_in(PHANTOMS[name](shape, counts=counts, seed=seed), {})


def test_units_do_not_matter_and_invalid_pixels_are_left_out():
    phantom = core_shell((40, 56), counts=16)
    hot = {(12, 33): 3}
    assert found_in(phantom, hot, gain=2e4, offset=-700) == found_in(phantom, hot) == [(12, 33)]
    valid = np.ones((40, 56), bool)
    valid[12, 33] = False
    assert found_in(phantom, hot, haadf_valid=valid) == []
    assert found_in(phantom, hot, valid=np.broadcast_to(valid, phantom.maps.shape)) == []


@pytest.mark.parametrize(
    "name, elements",
    [("bruker_test_TEM.bcf", ["Cu", "O", "Pd", "Ti"]), ("L2083-K-4-1_tilt0.bcf", ["Fe", "Mg", "Si", "O", "S", "Al"])],
)
def test_real_scans_have_none(name, elements):
    haadf, eds = hf.scan(shared(f"data/{name}"))
    maps = hf.element_maps(eds, elements)
    image = haadf.data.astype(float)
    assert not found(maps.data, image, [atomic_number(e) for e in elements], haadf_valid=~saturated(image))


def spikes_in(phantom, maps, haadf=None, valid=None, seen=None):
    """Places (map, row, column) of spikes, and of pixels that may be."""
    haadf = phantom.haadf if haadf is None else haadf
    valid = np.ones(maps.shape, bool) if valid is None else valid
    seen = np.ones(haadf.shape, bool) if seen is None else seen
    coefficients = z_weights(phantom.atomic_numbers, HAADF_EXPONENT)
    return [np.argwhere(places).tolist() for places in spikes_of_maps(maps, valid, haadf, seen, coefficients)]


@pytest.mark.parametrize("name", PHANTOMS)
@pytest.mark.parametrize("counts", [0.2, 2, 20])
@pytest.mark.parametrize("scale", [1, 0.125, "percent"])
def test_spikes_are_found_in_maps_and_structure_is_not(name, counts, scale):
    phantom = PHANTOMS[name]((48, 40), counts=counts)
    noise = np.random.default_rng(0).normal(0, 0.3, phantom.maps.shape)
    maps = phantom.maps + noise if scale == "percent" else phantom.maps * scale
    assert spikes_in(phantom, maps) == [[], []]
    hit = maps.copy()
    hit[1, 20, 30] = hit[0, 0, 0] = 6 * maps.max() + 40 * (1 if scale == "percent" else scale)
    assert spikes_in(phantom, hit) == [[[0, 0, 0], [1, 20, 30]], []]
    # a particle of one pixel, which the image shows as well; and a pixel that is invalid anyway
    bright = phantom.haadf.copy()
    bright[20, 30] *= 5
    bright[20, 30] += 5 * phantom.haadf.max()
    valid = np.ones(maps.shape, bool)
    valid[0, 0, 0] = False
    assert spikes_in(phantom, hit, bright, valid) == [[], []]
    # an image without a value contradicts nothing
    seen = np.ones((48, 40), bool)
    seen[20, 30] = False
    assert spikes_in(phantom, hit, bright, valid, seen) == [[], [[1, 20, 30]]]


@pytest.mark.parametrize("counts", [4, 40])
def test_a_light_pixel_that_the_image_need_not_show_is_fused(counts):
    phantom = core_shell((48, 48), counts=counts)
    maps = phantom.maps.copy()
    maps[2, 3, 40] = 60
    assert phantom.elements[2] == "O" and spikes_in(phantom, maps) == [[], [[2, 3, 40]]]
    fused = fuse_with(*with_map(phantom, maps), method="calibrated", tol=1e-2)
    (sentence,) = (s for s in fused.metadata.Fusion.warnings if "neighbours" in s)
    assert "(40, 3)" in sentence and "they are fused" in sentence and not any(fused.metadata.Fusion.n_masked)


def with_map(phantom, maps):
    signals, haadf = phantom.signals()
    for signal, data in zip(signals, maps, strict=True):
        signal.data[...] = data
    return signals, haadf


@pytest.mark.parametrize("valid", ["every second", "checkerboard", "half at random"])
def test_sparse_sampling_is_no_spike(valid):
    phantom = core_shell((64, 64), counts=40)
    y, x = np.indices((64, 64))
    random = np.random.default_rng(0).random((64, 64)) < 0.5
    keep = {"every second": (y % 2 == 0) & (x % 2 == 0), "checkerboard": (y + x) % 2 == 0, "half at random": random}
    assert spikes_in(phantom, phantom.maps, valid=np.broadcast_to(keep[valid], phantom.maps.shape)) == [[], []]


@pytest.mark.parametrize("method, where", [("calibrated", []), pytest.param("auto", [1], marks=pytest.mark.slow)])
def test_a_spike_and_a_hot_pixel_leave_no_bright_square(method, where):
    phantom = core_shell((36, 36), counts=8)
    maps, haadf = phantom.signals()
    expected = fuse_with(maps, haadf, method=method)
    for i in where:
        maps[i].data[20, 30] = 900
    if not where:
        haadf.data[20, 30] = 30
    fused = fuse_with(maps, haadf, method=method)
    assert ("spikes" if where else "hot-pixels") in fused.metadata.Fusion.diagnostics.codes
    assert "(30, 20)" in fused.metadata.Fusion.warnings[0] and "left out" in fused.metadata.Fusion.warnings[0]
    assert list(fused.metadata.Fusion.n_masked) == [int(i in where) for i in range(3)]
    for one, other in ((fused, expected), (fused.modelled_haadf(), expected.modelled_haadf())):
        np.testing.assert_allclose(one.data, other.data, atol=0.05 * other.data.max())


def test_a_fit_warns_and_a_mask_removes_the_warning():
    phantom = core_shell((48, 48), counts=16)
    maps, haadf = phantom.signals()
    haadf.data[20, 30] = 5
    mask = np.zeros((48, 48), bool)
    mask[20, 30] = True
    warned, masked = (fuse_with(maps, haadf, method="calibrated", tol=1e-2, mask=m) for m in (None, mask))
    assert any("(30, 20)" in warning for warning in warned.metadata.Fusion.warnings)
    assert not any("hot" in warning for warning in masked.metadata.Fusion.warnings)
    hot = np.zeros((4, 4), bool)
    assert about_hot_pixels(hot) == []
    hot[1] = hot[2] = True
    (diagnostic,) = about_hot_pixels(hot)
    assert diagnostic.code == "hot-pixels" and f"and {8 - LISTED} more" in diagnostic.sentence
