"""Claims about hot and dead pixels of the HAADF image: those that were put in are told, and no structure is."""

from dataclasses import replace

import h5py
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import quiet_fuse, shared

from hyperspy_fusion import element_maps
from hyperspy_fusion.data import HAADF_EXPONENT, PHANTOMS, atomic_columns, core_shell
from hyperspy_fusion.fusion.haadf.hot_pixels import LISTED, about_hot_pixels, hot_pixels
from hyperspy_fusion.fusion.scan_data import ScanData
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.terms.data_fidelity import noise_of
from hyperspy_fusion.fusion.terms.haadf_model import saturated, z_weights
from hyperspy_fusion.identify.elements import atomic_number

SETTINGS = CalibratedSettings()
SENTENCE = "The HAADF image has "


def found(maps, haadf, numbers, settings=SETTINGS, haadf_valid=None, valid=None):
    """Places (row, column) of what is called hot."""
    scan = ScanData.of(np.asarray(maps), haadf, numbers, valid=valid, haadf_valid=haadf_valid).filled()
    hot = hot_pixels(scan, noise_of(scan, settings), z_weights(numbers, HAADF_EXPONENT))
    return [tuple(place) for place in np.argwhere(hot).tolist()]


def found_in(phantom, values, gain=1.0, offset=0.0, **options):
    haadf = phantom.haadf.copy()
    for place, value in values.items():
        haadf[place] = value
    return found(phantom.maps, gain * haadf + offset, phantom.atomic_numbers, **options)


# ---- what is found ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PHANTOMS)
@pytest.mark.parametrize("counts", [1, 4, 16])
@pytest.mark.parametrize("value", [10, 1e4])
def test_one_hot_pixel_is_found_where_it_is(name, counts, value):
    """Also one that makes the forward model of the image and the maps meaningless."""
    for seed, place in enumerate([(33, 29), (0, 0), (95, 79), (0, 40), (50, 79)]):
        phantom = PHANTOMS[name]((96, 80), counts=counts, seed=seed)
        assert found_in(phantom, {place: value}) == [place]


def test_what_is_far_brighter_than_the_rest_is_found_where_counts_say_little():
    """Of 1.5 where the brightest is 1: at 4 counts it makes 3 of the 1.4 counts of Pt that are there."""
    for seed in range(10):
        assert found_in(core_shell((96, 96), counts=4, seed=seed), {(33, 29): 1.5}) in ([(33, 29)], [])
    assert found_in(core_shell((96, 96), counts=4), {(33, 29): 1.5}) == [(33, 29)]


def test_a_dead_pixel_is_found_where_counts_tell_it():
    """In platinum: what HAADF says of iron and oxygen is little."""
    phantom = core_shell((96, 80), counts=40)
    bright = np.unravel_index(np.argmax(phantom.truth[0]), (96, 80))
    assert found_in(phantom, {bright: 0.0}) == [tuple(int(i) for i in bright)]
    # below all others is told by the image, unless nothing is there
    few = core_shell((96, 96), counts=4, haadf_offset=3)
    assert found_in(few, {(33, 29): 0.0}) == [(33, 29)]
    assert found_in(few, {(2, 90): 0.0}) == []


def test_two_side_by_side_are_found_and_three_in_a_row_are_not():
    phantom = core_shell((96, 80), counts=16)
    for pair in ([(20, 30), (20, 31)], [(20, 30), (21, 29)], [(10, 10), (60, 50)]):
        assert found_in(phantom, dict.fromkeys(pair, 3.0)) == sorted(pair)
    assert found_in(phantom, {(20, 30): 3.0, (20, 31): 5.0}) == [(20, 30), (20, 31)]
    # their ends at the most
    assert (20, 31) not in found_in(phantom, dict.fromkeys([(20, 30), (20, 31), (20, 32)], 3.0))


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, np.transpose, np.rot90])
def test_a_turned_scan_has_the_turned_pixels(turn):
    phantom = core_shell((40, 56), counts=16)
    haadf = phantom.haadf.copy()
    haadf[12, 33], haadf[30, 3] = 3, 4
    hot = np.zeros(haadf.shape, bool)
    hot[12, 33] = hot[30, 3] = True
    maps = [turn(m) for m in phantom.maps]
    assert found(maps, turn(haadf), phantom.atomic_numbers) == [tuple(p) for p in np.argwhere(turn(hot)).tolist()]


def test_units_do_not_matter():
    phantom = core_shell((40, 56), counts=16)
    hot = {(12, 33): 3}
    assert found_in(phantom, hot, gain=2e4, offset=-700) == found_in(phantom, hot) == [(12, 33)]
    scaled = replace(phantom, maps=0.01 * phantom.maps)
    assert found_in(scaled, hot) == found_in(scaled, hot, settings=replace(SETTINGS, noise="gaussian")) == [(12, 33)]


def test_pixels_that_do_not_count_are_neither_told_nor_neighbours():
    phantom = core_shell((40, 56), counts=16)
    valid = np.ones((40, 56), bool)
    valid[12, 33:36] = False
    hot = {(12, 33): 3, (12, 36): 3, (12, 35): 5}
    assert found_in(phantom, hot, haadf_valid=valid) == [(12, 36)]
    assert found_in(phantom, hot, valid=np.broadcast_to(valid, phantom.maps.shape)) == [(12, 36)]


# ---- what is not ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PHANTOMS)
@pytest.mark.parametrize("counts", [1, 4, 16])
@pytest.mark.parametrize("snr", [10, 50, 1e9])
def test_phantoms_have_none(name, counts, snr):
    for seed, shape in enumerate([(128, 128), (31, 90), (16, 16), (8, 8), (8, 8)]):
        for image in ({}, {"haadf_offset": 3, "haadf_blur": 0.7}):
            phantom = PHANTOMS[name](shape, counts=counts, haadf_snr=snr, seed=seed, **image)
            assert not found_in(phantom, {}), (seed, shape, image)


@pytest.mark.parametrize("period", [4, 5.6, 6.5, 8])
@pytest.mark.parametrize("snr", [50, 1e9])
def test_columns_are_structure(period, snr):
    size = 0.3905 / period
    for counts in (1, 16, 1000):
        for seed in range(3):
            scan = {"counts": counts, "haadf_snr": snr, "seed": seed}
            sharp = atomic_columns((64, 64), pixel_size_nm=size, column_sigma_nm=max(0.07, size), **scan)
            assert not found_in(sharp, {})


def specks(counts, in_maps, seed=0, number=6, length=1, snr=50, beside=0.0):
    """Platinum of one or two pixels, and a particle of height ``beside``, on a wedge of oxygen: maps and image."""
    rng = np.random.default_rng(seed)
    platinum, oxygen = np.zeros((2, 60, 70))
    for place in rng.choice(13 * 16, number, replace=False):
        row, column = 2 + 4 * (place // 16), 2 + 4 * (place % 16)
        platinum[row, column : column + length] = rng.uniform(0.3, 1)
    platinum[20:40, 30:50] += beside * (np.hypot(*np.mgrid[-9.5:10, -9.5:10]) < 10)
    oxygen += np.linspace(0.3, 1, 60)[:, None]
    haadf = np.tensordot(z_weights((78, 8), HAADF_EXPONENT), [platinum, oxygen], 1)
    haadf += haadf.max() / snr * rng.standard_normal(haadf.shape)
    return rng.poisson(counts * np.stack([platinum + 0.02 if in_maps else 0 * platinum + 0.02, oxygen])), haadf


@pytest.mark.parametrize("counts", [4, 16, 100])
@pytest.mark.parametrize("length", [1, 2])
def test_a_particle_of_one_or_two_pixels_is_structure_if_its_counts_are_there(counts, length):
    for seed in range(15):
        assert not found(*specks(counts, True, seed, length=length), (78, 8)), seed


@pytest.mark.parametrize("number, beside", [(1, 0), (30, 0), (30, 0.5)])
def test_particles_of_one_pixel_are_left_alone_where_counts_are_too_few_to_tell(number, beside):
    for counts in (0.5, 1, 4):
        for seed in range(15):
            # a single one on nothing but a wedge in an image without noise may be told
            for snr in (50, 1e6) if number > 1 else (50,):
                scan = specks(counts, True, seed, number, beside=beside, snr=snr)
                assert not found(*scan, (78, 8)), (counts, seed, snr)


def test_many_particles_are_not_told_for_one_that_chance_hides():
    for noise in ("auto", "gaussian"):
        for seed in range(40):
            scan = specks(12, True, seed, number=150)
            assert not found(*scan, (78, 8), replace(SETTINGS, noise=noise)), (noise, seed)


def test_the_same_image_without_the_counts_is_hot():
    maps, haadf = specks(400, in_maps=False)
    hot = found(maps, haadf, (78, 8))
    assert len(hot) >= 3 and all(haadf[place] > 0.5 * haadf.max() for place in hot)


@pytest.mark.parametrize("shape", [(1, 30), (30, 1), (2, 2)])
def test_images_without_neighbours_have_none(shape):
    rng = np.random.default_rng(0)
    maps, haadf = rng.poisson(3.0, (2, *shape)), rng.random(shape)
    haadf[0, 0] = 1e3
    assert found(maps, haadf, (78, 8)) in ([], [(0, 0)])


def test_chance_gives_no_more_evidence_than_it_says():
    """Were the pixel structure, evidence against it of log r comes with a chance of 1 / r at the most."""
    rng, weights = np.random.default_rng(0), np.array([1.0, 0.3])
    counts = rng.poisson([[[6.0]], [[9.0]]], (2, 1, 200000))
    noise = noise_of(ScanData.of(counts, counts[0], [26] * len(counts)).filled(), replace(SETTINGS, noise="poisson"))
    total, mean = np.tensordot(weights, counts, 1), np.full((1, 200000), 6 + 0.3 * 9)
    for other in (2.0, 20.0):
        assert np.mean(np.exp(noise.evidence(total, mean, np.full_like(mean, other), weights))) <= 1.01
    alone = noise.evidence(np.array([[0.0]]), np.array([[7.0]]), np.array([[2.0]]), np.array([1.0, 0.0]))
    np.testing.assert_allclose(alone, 5)


@pytest.mark.parametrize("tilt", ["0", "20"])
def test_a_real_scan_has_none(tilt):
    haadf, eds = hs.load(shared(f"data/L2083-K-4-1_tilt{tilt}.bcf"))[:2]
    maps, haadf = element_maps(eds, elements=["Fe", "Mg", "Si", "O", "S", "Al"]), haadf.data.astype(float)
    numbers, valid = [atomic_number(e) for e in maps.elements], ~saturated(haadf)
    assert found(maps.data, haadf, numbers, haadf_valid=valid) == []
    haadf[40, 200] = 5e5
    assert found(maps.data, haadf, numbers, haadf_valid=valid) == [(40, 200)]


def test_the_scans_of_the_tutorials_have_none():
    with np.load(shared("data/DyScO3_PTO_Trilayer_dataset.npz")) as data:
        crystal = [data[e] for e in ("Sc", "Dy", "O")], np.array(data["HAADF"], float)
    with h5py.File(shared("data/Co3O4_Mn3O4.h5")) as file:
        oxides = [file[e][...] for e in ("Co", "Mn", "O")], file["HAADF"][...].astype(float)
    for (maps, haadf), numbers in ((crystal, (21, 66, 8)), (oxides, (27, 25, 8))):
        assert found(np.stack(maps).astype(np.float32), haadf, numbers) == []
        haadf[100, 120] = 3 * haadf.max()
        assert found(np.stack(maps).astype(np.float32), haadf, numbers) == [(100, 120)]


# ---- what users see -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scan():
    """Maps, the HAADF image, that with two hot pixels, and which these are."""
    maps, haadf = core_shell((48, 40), counts=16).signals()
    hot = np.zeros((48, 40), bool)
    hot[15, 11] = hot[40, 30] = True
    spoilt = haadf.deepcopy()
    spoilt.data[hot] = 3
    return maps, haadf, spoilt, hot


def said(fused):
    return [w for w in fused.metadata.Fusion.warnings if w.startswith(SENTENCE)]


def test_calibrated_tells_them_and_the_remedy_restores_the_maps(scan, caplog):
    maps, haadf, spoilt, hot = scan
    fits = {
        "clean": quiet_fuse(maps, haadf, method="calibrated"),
        "hot": quiet_fuse(maps, spoilt, method="calibrated"),
        "masked": quiet_fuse(maps, spoilt, method="calibrated", mask=hot),
    }
    (sentence,) = said(fits["hot"])
    for words in ("in 2 pixels, where", "at (row, column) (15, 11), (40, 30).", "mask=, a bool array"):
        assert words in sentence
    assert sentence in caplog.text
    assert not said(fits["clean"]) and not said(fits["masked"])
    off = {name: np.abs(fit.data - fits["clean"].data).max(axis=(1, 2)) for name, fit in fits.items()}
    assert off["hot"][0] > 20 and np.all(off["masked"] < 1) and off["masked"][0] < 0.1 * off["hot"][0]


def test_nan_in_the_image_alone_restores_the_maps_too(scan):
    maps, haadf, spoilt, hot = scan
    without = spoilt.deepcopy()
    without.data[hot] = np.nan
    clean, fused = (quiet_fuse(maps, image, method="calibrated") for image in (haadf, without))
    assert not said(fused) and np.abs(fused.data - clean.data).max() < 1


def test_auto_tells_them(scan):
    maps, haadf, spoilt, _ = scan
    assert "(15, 11), (40, 30)" in said(quiet_fuse(maps, spoilt, method="auto"))[0]


@pytest.mark.parametrize("options", [{"regularization": "tgv"}, {"lambda_haadf": 0}, {"lambda_haadf": 0, "eta": 0}])
def test_told_wherever_the_image_has_a_say(scan, options):
    assert said(quiet_fuse(scan[0], scan[2], method="calibrated", max_iter=1, **options))


def test_not_told_where_it_has_none(scan):
    options = {"regularization": "tgv", "lambda_haadf": 0, "max_iter": 1}
    assert not said(quiet_fuse(scan[0], scan[2], method="calibrated", **options))


def test_the_sentence_lists_no_more_than_the_first():
    hot = np.zeros((20, 30), bool)
    assert about_hot_pixels(hot) == []
    hot[7, 3] = True
    (one,) = about_hot_pixels(hot)
    assert one.startswith(SENTENCE + "1 pixel, ") and one.endswith("True in this pixel.")
    assert "(row, column) (7, 3)." in one
    hot[8, : LISTED + 1] = True
    assert f"(8, {LISTED - 2}) and 2 more." in about_hot_pixels(hot)[0]
