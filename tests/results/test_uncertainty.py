"""Standard errors of pixels: what has them, what no longer has, and what moved the maps."""

import h5py
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import assert_untouched, fuse_with, scan_signals, snapshot
from results_data import QUICK

import hyperspy_fusion as hf


@pytest.fixture(scope="module")
def scan():
    return scan_signals()


@pytest.fixture(scope="module")
def fused(scan):
    return fuse_with(*scan, errors=4, **QUICK)


@pytest.fixture(scope="module")
def model(scan):
    maps, haadf = scan
    model = hf.FusedMultiModal(haadf, maps, method="calibrated")
    model.fit(regularization="tv", tol=1e-3)
    return model


def test_standard_errors_are_maps_on_the_same_axes(fused, scan):
    errors = fused.standard_errors()
    assert type(errors) is hf.ElementMaps and errors.elements == fused.elements
    assert errors.axes_manager.as_dictionary() == fused.axes_manager.as_dictionary()
    assert errors.data.shape == fused.data.shape and np.all(errors.data > 0)
    assert errors.metadata.General.title == "Standard errors of fused maps of Fe, O"
    # they are no result that could be plotted as one
    assert not errors.metadata.has_item("Fusion") and errors._errors is None
    maps, haadf = scan
    hundred = fuse_with([m * 100 for m in maps], haadf, errors=4, **QUICK)
    np.testing.assert_allclose(hundred.standard_errors().data, 100 * fused.standard_errors().data, rtol=1e-2)


def test_model_and_fuse_agree_and_seeds_differ(scan, fused):
    maps, haadf = scan
    before = [snapshot(s) for s in (*maps, haadf)]
    model = hf.FusedMultiModal(haadf, maps, method="calibrated")
    model.fit(regularization="tv", tol=1e-2)
    np.testing.assert_array_equal(model.standard_errors(4).data, fused.standard_errors().data)
    assert not np.array_equal(model.standard_errors(4, seed=1).data, fused.standard_errors().data)
    assert model.as_signal().metadata.Fusion.errors.seed == 1
    for signal, was in zip((*maps, haadf), before, strict=True):
        assert_untouched(signal, was)
    # of maps that are about to change
    model.fit(regularization="tgv", max_iter=50)
    with pytest.raises(ValueError, match="are not known"):
        model.as_signal().standard_errors()


def test_compositions_and_profiles_take_the_errors_of_the_fit(fused):
    known = fused.standard_errors()
    given = fused.atomic_percent("cross_section", 1, errors=known).get_noise_variance().data
    taken = fused.atomic_percent("cross_section", 1).get_noise_variance().data
    assert np.isfinite(taken).any()
    np.testing.assert_array_equal(taken, given)


def test_errors_of_profiles_are_of_replicates_averaged_across_the_line(fused):
    """Rows 3 to 5, columns 4 to 9: variance and bias of their means in the bootstrap replicates."""
    profile = fused.line_profile((5.0, -0.4), (7.5, -0.4), linewidth=1.2)
    found = fused._errors.bootstrap
    means = found.errors[:, :, 3:6, 4:10].mean(axis=2)
    np.testing.assert_allclose(profile.data, fused.data[:, 3:6, 4:10].mean(axis=1), rtol=1e-5)
    variance = means.var(axis=0, ddof=1)
    bias = np.maximum(means.mean(axis=0) ** 2 - variance / len(found), 0) * found.bias_scales[:, None] ** 2
    np.testing.assert_allclose(profile.get_noise_variance().data, variance + bias, rtol=1e-4)
    alike = fused.line_profile((5.0, -0.4), (7.5, -0.4), linewidth=1.2, errors=fused.standard_errors())
    assert profile.get_noise_variance().data.mean() < 1.5 * alike.get_noise_variance().data.mean()


def test_crops_maps_and_plots_have_their_errors(fused):
    whole = fused.standard_errors().data
    crop = fused.isig[4:11, 3:9]
    np.testing.assert_array_equal(crop.standard_errors().data, whole[:, 3:9, 4:11])
    np.testing.assert_array_equal(crop.get_map("O").standard_errors().data, whole[1, 3:9, 4:11])
    np.testing.assert_array_equal(fused.deepcopy().inav[1:].standard_errors().data, whole[1:])
    axes = fused.plot_fusion(errors=True)
    assert axes.shape == (3, 3) and not axes[2, 0].images
    assert axes[2, 1].get_title() == "Fe, standard error"
    np.testing.assert_array_equal(axes[2, 2].images[0].get_array(), fused.standard_errors().data[1])
    assert fused.get_map("O").plot_fusion(errors=True).shape == (3, 2)


def with_an_edited_pixel(maps):
    maps = maps.deepcopy()
    maps.data[0, 5, 5] += 1
    return maps


CHANGES = [lambda s: s * 2, lambda s: s.rebin(scale=(1, 3, 2)), lambda s: s.isig[:4, :4] + 1, with_an_edited_pixel]


@pytest.mark.parametrize("change", CHANGES, ids=["scaled", "rebinned", "crop edited", "pixel edited"])
def test_changed_maps_have_no_errors(fused, change):
    with pytest.raises(ValueError, match="not what was fitted"):
        change(fused).standard_errors()


def test_pixels_edited_in_place_are_noticed(fused):
    maps = fused.isig[:]
    copy = maps.deepcopy()
    maps.data = maps.data.copy()
    maps.data[0, 5, 5] += 1
    with pytest.raises(ValueError, match="edited"):
        maps.standard_errors()
    np.testing.assert_array_equal(copy.standard_errors().data, fused.standard_errors().data)


def test_saved_and_exported_errors(fused, tmp_path):
    fused.save(tmp_path / "fused.hspy")
    loaded = hs.load(tmp_path / "fused.hspy")
    assert loaded.metadata.Fusion.errors.n_resamples == 4
    with pytest.raises(ValueError, match="everything=True"):
        loaded.standard_errors()
    fused.standard_errors().save(tmp_path / "errors.hspy")
    np.testing.assert_array_equal(hs.load(tmp_path / "errors.hspy").data, fused.standard_errors().data)
    fused.isig[2:9, 1:8].export(tmp_path / "crop")
    with h5py.File(tmp_path / "crop" / "fused.h5") as file:
        assert set(file["errors"]) == {"Fe", "O"} and file["errors"].attrs["n_resamples"] == 4
        np.testing.assert_array_equal(file["errors/O"][:], fused.standard_errors().data[1, 1:8, 2:9])
        np.testing.assert_allclose(file["errors/O"].attrs["offset"], file["maps/O"].attrs["offset"])
    (fused * 2).export(tmp_path / "twice")
    with h5py.File(tmp_path / "twice" / "fused.h5") as file:
        assert "errors" not in file and "maps/O" in file


def test_bad_seeds_and_maps_without_replicates(model, scan):
    with pytest.raises(ValueError, match="seed is -1"):
        model.standard_errors(2, seed=-1)
    with pytest.raises(ValueError, match="call fit"):
        hf.FusedMultiModal(scan[1], scan[0], method="calibrated").standard_errors(2)
    for options, words in (
        (QUICK, "pass errors=True"),
        ({"method": "published", "max_iter": 1}, "no model of the noise"),
    ):
        with pytest.raises(ValueError, match=words):
            fuse_with(*scan, **options).standard_errors()
    with pytest.raises(ValueError, match="not the result of a fit"):
        hf.element_maps(scan[0]).standard_errors()


@pytest.mark.parametrize("errors", [1, -3, 2.5, "many"])
def test_a_number_of_replicates_that_is_none(scan, errors):
    with pytest.raises(ValueError, match="at least 2"):
        fuse_with(*scan, errors=errors, **QUICK)


def test_the_published_method_refuses_errors(scan, monkeypatch):
    monkeypatch.setattr(hf.FusedMultiModal, "fit", None)
    with pytest.raises(ValueError, match="no model of the noise.*calibrated"):
        fuse_with(*scan, errors=True, method="published")
    model = hf.FusedMultiModal(scan[1], scan[0], method="published")
    for call in (model.standard_errors, model.attainable_gain, model.attribution):
        with pytest.raises(ValueError, match="calibrated"):
            call()


def test_gain_and_attribution_of_pixels(model):
    gain = model.attainable_gain()
    assert gain.elements == ["Fe", "O"] and np.all(gain.data >= 1) and gain.data.max() > 1.01
    # the heavy element gains more
    assert gain.data[0].mean() > gain.data[1].mean()
    terms = model.attribution()
    assert list(terms) == ["haadf", "penalty", "totals", "bound"]
    assert terms["haadf"].metadata.General.title == "Change by haadf of fused maps of Fe, O"
    total = sum(term.data.astype(float) for term in terms.values())
    np.testing.assert_allclose(total, model.as_signal().data - model.maps.data, atol=1e-4)


def test_masked_pixels_have_no_counts_to_gain_from(scan):
    maps, haadf = scan
    mask = np.zeros((12, 15), bool)
    mask[2, 3] = True
    model = hf.FusedMultiModal(haadf, maps, method="calibrated", mask=mask)
    model.fit(regularization="tv", tol=1e-2)
    for found in (model.attainable_gain(), *model.attribution().values()):
        np.testing.assert_array_equal(np.isnan(found.data), np.broadcast_to(mask, (2, 12, 15)))
    assert np.isfinite(model.standard_errors(2).data).all()
