"""What noise a map is found to have."""

import warnings

import h5py
import numpy as np
import pytest
from helpers import shared
from scipy.ndimage import gaussian_filter, median_filter, shift, uniform_filter, zoom

from hyperspy_fusion import data
from hyperspy_fusion.fusion.terms import noise_estimation
from hyperspy_fusion.fusion.terms.noise_estimation import (
    counts_scale,
    counts_scales,
    estimate_variance,
    find_counts_scales,
    mean_variance_counts_scale,
    shares_noise,
)


def rng():
    return np.random.default_rng(0)


def flat_field(shape):
    """Smooth gains around 1, which take counts off any lattice."""
    field = gaussian_filter(rng().normal(size=shape), 30)
    return 1 + 0.05 * field / field.std()


@pytest.mark.parametrize("dtype", ["uint16", "int64", "float32", "float64"])
def test_whole_counts_have_counts_scale_one(dtype):
    assert counts_scale(rng().poisson(3, (40, 50)).astype(dtype)) == 1


@pytest.mark.parametrize("factor", [1 / 3, 0.1, 2.0, np.pi, 1e-9, 7e4])
@pytest.mark.parametrize("mean", [0.05, 5, 400])
def test_scaled_counts_have_their_factor(factor, mean):
    counts = rng().poisson(mean, (64, 64)).astype(np.float32)
    counts[3, 4] = 9001  # a hot pixel
    counts[0, 0] = 0
    assert counts_scale(counts * np.float32(factor)) == pytest.approx(factor, rel=1e-5)


def test_counts_scale_is_the_largest_step():
    assert counts_scale(np.array([[0, 4], [6, 10]])) == 2
    assert counts_scale(np.array([[0, 0.4], [0.6, 1.0]])) == pytest.approx(0.2)
    assert counts_scale(np.array([[0, 3.3], [3.3, 0]])) == pytest.approx(3.3)
    counts = rng().poisson(3, (30, 30)) * 0.25
    counts[0, 0], counts[1, 1] = np.nan, -0.1
    valid = np.ones(counts.shape, bool)
    valid[1, 1] = False
    assert counts_scale(counts) is None
    assert counts_scale(counts, valid) == pytest.approx(0.25)


def continuous():
    counts = rng().poisson(2.0, (3, 64, 64))
    few = np.minimum(counts, 2)
    return {
        "uniform": rng().random((64, 64)),
        "smoothed": gaussian_filter(counts[0].astype(np.float32), 1),
        "fractions": (counts[0] / np.maximum(counts.sum(0), 1)).astype(np.float32),
        "fractions of few counts": few[0] / np.maximum(few.sum(0), 1),
        "negative": counts[0] - 1,
        "zeros": np.zeros((5, 5)),
        "nothing finite": np.full((5, 5), np.nan),
    }


@pytest.mark.parametrize("name", continuous())
def test_no_counts_scale(name):
    assert counts_scale(continuous()[name]) is None


@pytest.mark.parametrize("structure", ["flat", "ramp", "step", "particles"])
def test_variance_of_white_noise_whatever_the_structure(structure):
    y, x = np.mgrid[:128, :128]
    signal = {
        "flat": 0 * x,
        "ramp": 3.0 * x + y,
        "step": 50.0 * (x > 60),
        "particles": data.core_shell((128, 128), counts=100).truth[0],
    }[structure]
    assert estimate_variance(signal + rng().normal(0, 2, signal.shape)) == pytest.approx(4, rel=0.17)


def test_variance_is_positive_unless_the_map_is_constant():
    map = np.zeros((50, 50))
    map[20:24, 20:26] = rng().random((4, 6))
    assert 0 < estimate_variance(map) < map.var()
    ramp = np.arange(20.0).reshape(4, 5)
    assert estimate_variance(ramp) > 0
    assert estimate_variance(ramp[:2]) > 0
    assert estimate_variance(np.full((6, 6), 3.0)) == 0
    map = np.random.default_rng(2).standard_normal((2, 300)) + 40 * np.sin(np.arange(300) / 40)
    np.testing.assert_allclose(estimate_variance(map), 1, rtol=0.3)


def test_masked_pixels_tell_nothing():
    map = rng().normal(0, 1, (60, 60))
    valid = np.ones(map.shape, bool)
    valid[::7, ::7] = False
    spoilt = np.where(valid, map, np.nan)
    assert estimate_variance(spoilt) == estimate_variance(map, valid)
    assert estimate_variance(spoilt) == pytest.approx(1, rel=0.15)
    maps = data.core_shell((64, 64)).maps.astype(float)
    valid = np.ones(maps.shape, bool)
    maps[1, 3, 4], valid[1, 3, 4] = -0.7, False
    assert choose_noise(maps)[0] == "gaussian"
    assert choose_noise(maps, valid)[0] == "shifted_poisson"
    map = data.core_shell(counts=4).maps[0].astype(float)
    smooth, valid = gaussian_filter(map, 1), np.ones(map.shape, bool)
    valid[40:60, 30:90] = False
    map[~valid], smooth[~valid] = np.nan, 1e3 * rng().random(np.sum(~valid))
    assert not shares_noise(map)
    assert shares_noise(smooth, valid) and not shares_noise(smooth, np.zeros(map.shape, bool))
    assert not shares_noise(smooth[:9, :9]) and not shares_noise(np.zeros((64, 64)))


@pytest.mark.parametrize("phantom", ["core_shell", "gradient_alloy"])
def test_counts_off_any_lattice_are_found_by_mean_and_variance(phantom):
    counts = data.PHANTOMS[phantom]((256, 256), counts=16).maps[0]
    map = 0.3 * counts * flat_field(counts.shape)
    assert counts_scale(map) is None
    q, is_poisson_like = mean_variance_counts_scale(map)
    assert is_poisson_like
    assert q == pytest.approx(0.3, rel=0.08)


def other_noise():
    scan = data.core_shell((256, 256), counts=16)
    truth, counts = scan.truth[0], scan.maps[0].astype(float)
    normal = rng().normal(size=truth.shape)
    return {
        "of constant variance": truth + 5 + 0.7 * normal,
        "in proportion to the signal": (truth + 1) * (1 + 0.1 * normal),
        "of neighbours": gaussian_filter(counts, 1),
        "on one level": 100 + 10 * normal,
        "of few pixels": rng().random((9, 9)),
    }


@pytest.mark.parametrize("name", other_noise())
def test_other_noise_is_not_poisson_like(name):
    assert not mean_variance_counts_scale(other_noise()[name])[1]


def test_squares_fewer_than_classes_tell_nothing():
    counts = np.zeros((64, 64))
    counts[4:12, 4:12] = rng().poisson(3.0, (8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for map in (counts, counts * flat_field(counts.shape)):
            assert not mean_variance_counts_scale(map)[1]
        assert counts_scales(find_counts_scales(counts[None]))[0] == 1


SHARING = {
    "3x3 means": lambda m: uniform_filter(m, 3),
    "a Gaussian": lambda m: gaussian_filter(m, 1),
    "3x3 medians": lambda m: median_filter(m, 3),
    "repeated pixels": lambda m: m.repeat(2, 0).repeat(2, 1),
    "zoom": lambda m: zoom(m, 2, order=1),
    "a shift": lambda m: shift(m, (0.4, 0.3), order=1, mode="nearest"),
    "sums of neighbours": lambda m: m + np.roll(m, 1, 0) + np.roll(m, 1, 1) + np.roll(m, (1, 1), (0, 1)),
}


@pytest.mark.parametrize("how", SHARING)
@pytest.mark.parametrize("phantom", ["core_shell", "atomic_columns"])
def test_noise_that_neighbours_share_is_seen(phantom, how):
    for side, seed in ((64, 0), (128, 1)):
        for counts in data.PHANTOMS[phantom]((side, side), counts=4, seed=seed).maps.astype(float):
            assert shares_noise(SHARING[how](counts))


@pytest.mark.parametrize("counts", [1, 4, 16])
@pytest.mark.parametrize("phantom", data.PHANTOMS)
def test_counts_share_no_noise(phantom, counts):
    for side, seed in ((64, 0), (64, 1), (64, 2), (128, 3)):
        for map in data.PHANTOMS[phantom]((side, side), counts=counts, seed=seed).maps:
            assert not shares_noise(map)
            assert not shares_noise(map * flat_field(map.shape))


@pytest.mark.parametrize("phantom", data.PHANTOMS)
def test_structure_of_many_counts_is_no_shared_noise(phantom):
    for map in data.PHANTOMS[phantom](counts=300).maps:
        assert not shares_noise(map)
        assert shares_noise(uniform_filter(map.astype(float), 3))


def columns(counts, distance=8, sigma=1.5):
    """Counts of a lattice of sharp columns."""
    y, x = (np.minimum(a % distance, -a % distance) for a in np.mgrid[:128, :128])
    return rng().poisson(counts * (0.1 + np.exp(-(x**2 + y**2) / (2 * sigma**2)))).astype(float)


@pytest.mark.parametrize("counts", [4, 16, 100])
def test_sharp_structure_in_any_unit_is_no_shared_noise(counts):
    map = columns(counts)
    for unit in (1, 1 / 3.7, 0.1, 250):
        assert not shares_noise((map * unit).astype(np.float32))
    # repeated sums are whole numbers too; of many counts their structure looks like noise
    repeated = map.reshape(64, 2, 64, 2).sum(axis=(1, 3)).repeat(2, 0).repeat(2, 1)
    assert shares_noise(repeated) == (counts < 100)


def test_real_counts_and_tutorial_data():
    import hyperspy.api as hs

    import hyperspy_fusion as hf

    eds = hs.load(shared("data/L2083-K-4-1_tilt0.bcf"))[1]
    for map in hf.element_maps(eds, ["Fe", "Mg", "Si", "O", "S", "Al"]).data:
        assert not shares_noise(map) and shares_noise(gaussian_filter(map.astype(float), 1))
    file = np.load(shared("data/DyScO3_PTO_Trilayer_dataset.npz"))
    assert choose_noise(np.stack([file[e] for e in ("Sc", "Dy", "O")]))[0] == "gaussian"
    with h5py.File(shared("data/Co3O4_Mn3O4.h5")) as file:
        maps = np.stack([file[e][:] for e in ("Co", "Mn", "O")])
    assert choose_noise(maps)[0] == "gaussian"
    assert all(estimate_variance(map) > 0 for map in maps)


def choose_noise(maps, valid=True, elements=("Pt", "Fe", "O")):
    maps = np.where(valid, maps, np.nan)
    return noise_estimation.choose_noise(maps, elements[: len(maps)], find_counts_scales(maps))


def test_counts_are_chosen_and_said():
    maps = data.core_shell((64, 64), counts=4).maps
    kind, sentence = choose_noise(maps)
    assert kind == "shifted_poisson"
    low, high = (f"{v:.2g}" for v in np.sort(maps.mean(axis=(1, 2)))[[0, -1]])
    assert sentence == (
        f"The maps hold whole counts ({low} to {high} per pixel on average): shifted Poisson noise; "
        "noise='gaussian' overrides."
    )
    assert "one count being 0.25" in choose_noise(maps * 0.25)[1]


def test_maps_that_are_no_counts_are_gaussian():
    maps = data.core_shell((64, 64)).maps.astype(np.float32)
    maps[1] = rng().random((64, 64))
    kind, sentence = choose_noise(maps)
    assert kind == "gaussian"
    assert sentence == "The map of Fe does not hold whole counts: Gaussian noise; noise='shifted_poisson' overrides."
    assert np.isnan(counts_scales(find_counts_scales(maps))).any()
    maps = data.core_shell((64, 64)).maps.astype(int)
    maps[2] -= 1
    kind, sentence = choose_noise(maps)
    assert kind == "gaussian"
    assert sentence.startswith("Negative values in the map of O: Gaussian noise")


def test_scales_of_counts_that_are_chosen():
    maps = 0.5 * data.interface((64, 64)).maps.astype(np.float32)
    maps[1] = 0
    np.testing.assert_allclose(counts_scales(find_counts_scales(maps)), 0.5)
    assert choose_noise(maps)[0] == "shifted_poisson"
    assert choose_noise(0 * maps)[0] == "gaussian"
    counts = data.core_shell((256, 256), counts=16).maps
    kind, sentence = choose_noise(0.3 * counts * flat_field(counts.shape[1:]))
    assert kind == "shifted_poisson"
    assert "variance proportional to the mean" in sentence


def test_stretched_or_smoothed_counts_are_no_counts():
    """Counts scaled to 8 bits are whole numbers, of which one is not one count."""
    y, x = np.mgrid[:128, :128]
    counts = np.random.default_rng(0).poisson(1 + 15 * np.exp(-((y - 60) ** 2 + (x - 60) ** 2) / 2000))
    stretched = np.rint(255 * counts / counts.max())
    found = counts_scales(find_counts_scales([counts, stretched]))
    assert found[0] == 1
    np.testing.assert_allclose(found[1], 255 / counts.max(), rtol=0.15)
    from scipy.ndimage import gaussian_filter

    counts = np.random.default_rng(0).poisson(5, (96, 96)).astype(float)
    smooth = np.rint(100 * gaussian_filter(counts, 2))
    assert np.isnan(counts_scales(find_counts_scales([smooth]))).all()


@pytest.mark.parametrize("left_out", ["rows", "chequers", "random"])
def test_variance_of_a_scan_with_gaps_is_that_of_its_noise(left_out):
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:64, :64]
    map = 60 * np.exp(-((y - 30) ** 2 + (x - 30) ** 2) / 300) + 5 * rng.standard_normal((64, 64))
    valid = {"rows": y % 2 == 0, "chequers": (y + x) % 2 == 0, "random": rng.random((64, 64)) > 0.65}[left_out]
    np.testing.assert_allclose(estimate_variance(map, valid), 25, rtol=0.35)
