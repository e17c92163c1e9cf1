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


@pytest.mark.parametrize("name", PHANTOMS)
@pytest.mark.parametrize("counts", [0.2, 2, 20])
@pytest.mark.parametrize("scale", [1, 0.125, "percent"])
def test_spikes_are_found_in_maps_and_structure_is_not(name, counts, scale):
    phantom = PHANTOMS[name]((48, 40), counts=counts)
    noise = np.random.default_rng(0).normal(0, 0.3, phantom.maps.shape)
    maps = phantom.maps + noise if scale == "percent" else phantom.maps * scale
    valid, seen = np.ones(maps.shape, bool), np.ones((48, 40), bool)
    assert not spikes_of_maps(maps, valid, phantom.haadf, seen).any()
    hit = maps.copy()
    hit[1, 20, 30] = hit[0, 0, 0] = 6 * maps.max() + 40 * (1 if scale == "percent" else scale)
    found = spikes_of_maps(hit, valid, phantom.haadf, seen)
    assert np.argwhere(found).tolist() == [[0, 0, 0], [1, 20, 30]]
    # a particle of one pixel, which the image shows as well; and a pixel that is invalid anyway
    bright = phantom.haadf.copy()
    bright[20, 30] *= 5
    bright[20, 30] += 5 * phantom.haadf.max()
    valid[0, 0, 0] = False
    assert not spikes_of_maps(hit, valid, bright, seen).any()
    seen[20, 30] = False
    assert np.argwhere(spikes_of_maps(hit, valid, bright, seen)).tolist() == [[1, 20, 30]]


@pytest.mark.parametrize(
    "method, where", [("calibrated", [1]), ("calibrated", [0, 1, 2]), ("calibrated", []), ("auto", [1])]
)
def test_a_spike_and_a_hot_pixel_leave_no_bright_square(method, where):
    phantom = core_shell((48, 48), counts=8)
    maps, haadf = phantom.signals()
    expected = fuse_with(maps, haadf, method=method)
    for i in where:
        maps[i].data[20, 30] = 900
    if not where:
        haadf.data[20, 30] = 30
    fused = fuse_with(maps, haadf, method=method)
    assert ("spikes-in-maps" if where else "hot-pixels") in fused.metadata.Fusion.diagnostics.codes
    assert "(20, 30)" in fused.metadata.Fusion.warnings[0] and "left out" in fused.metadata.Fusion.warnings[0]
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
    assert any("(20, 30)" in warning for warning in warned.metadata.Fusion.warnings)
    assert not any("hot" in warning for warning in masked.metadata.Fusion.warnings)
    hot = np.zeros((4, 4), bool)
    assert about_hot_pixels(hot) == []
    hot[1] = hot[2] = True
    (diagnostic,) = about_hot_pixels(hot)
    assert diagnostic.code == "hot-pixels" and f"and {8 - LISTED} more" in diagnostic.sentence
