"""Errors of results as HyperSpy signals: regions, crops, what is no longer known, and what replicates cost."""

import h5py
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import assert_untouched, scan_signals, snapshot

import hyperspy_fusion as hf
from hyperspy_fusion.results.rois import region_mask

QUICK = {"method": "calibrated", "regularization": "tv", "tol": 1e-2}
REGION = np.zeros((12, 15), bool)
REGION[3:9, 4:11] = True


@pytest.fixture(scope="module")
def scan():
    return scan_signals()


@pytest.fixture(scope="module")
def fused(scan):
    return hf.fuse(*scan, errors=4, **QUICK)


@pytest.fixture(scope="module")
def model(scan):
    maps, haadf = scan
    model = hf.FusedMultiModal(haadf, maps, method="calibrated")
    model.fit(regularization="tv", tol=1e-3)
    return model


# ---- errors of pixels --------------------------------------------------------------------------------


def test_standard_errors_are_maps_on_the_same_axes(fused):
    errors = fused.standard_errors()
    assert type(errors) is hf.ElementMaps and errors.elements == fused.elements
    assert errors.axes_manager.as_dictionary() == fused.axes_manager.as_dictionary()
    assert errors.data.shape == fused.data.shape and np.all(errors.data > 0)
    assert errors.metadata.General.title == "Standard errors of fused maps of Fe, O"
    # they are no result that could be plotted as one
    assert not errors.metadata.has_item("Fusion") and errors._errors is None


def test_errors_are_in_the_units_of_the_maps(scan):
    maps, haadf = scan
    one, hundred = (hf.fuse([m * f for m in maps], haadf, errors=4, dtype="float64", **QUICK) for f in (1.0, 100.0))
    np.testing.assert_allclose(hundred.standard_errors().data, 100 * one.standard_errors().data, rtol=1e-3)
    assert hundred.region_mean(REGION, "O").error == pytest.approx(100 * one.region_mean(REGION, "O").error, rel=1e-3)


def test_model_and_fuse_and_seed_agree(scan, fused):
    maps, haadf = scan
    model = hf.FusedMultiModal(haadf, maps, method="calibrated")
    model.fit(regularization="tv", tol=1e-2)
    np.testing.assert_array_equal(model.standard_errors(4).data, fused.standard_errors().data)
    assert not np.array_equal(model.standard_errors(4, seed=1).data, fused.standard_errors().data)
    assert model.as_signal().metadata.Fusion.errors.seed == 1
    # of maps that are about to change
    model.fit(regularization="tgv")
    with pytest.raises(ValueError, match="are not known"):
        model.as_signal().standard_errors()


def test_composition_means_and_profiles_take_the_errors_of_the_fit(fused):
    known = fused.standard_errors()
    for given, taken in (
        (fused.atomic_percent("cross_section", 1, errors=known), fused.atomic_percent("cross_section", 1)),
        (fused.line_profile((4, 1), (8, 2), errors=known), fused.line_profile((4, 1), (8, 2))),
    ):
        assert np.isfinite(taken.get_noise_variance().data).any()
        np.testing.assert_array_equal(taken.get_noise_variance().data, given.get_noise_variance().data)
    everywhere = np.ones(fused.data.shape[1:], bool)
    for element, found in fused.region_means().items():
        mean = fused.region_mean(everywhere, element)
        assert found == (mean.value, mean.error) and found[1] > 0
    percent = fused.atomic_percent("cross_section", 1)
    assert all(error > 0 for _, error in percent.region_means().values())
    assert all(error > 0 for _, error in percent.isig[2:6, 2:6].region_means().values())
    # of maps that are no longer those of the fit nothing is known
    assert all(np.isnan(error) for _, error in (fused * 2).region_means().values())


def test_constant_maps_have_no_errors(scan):
    maps, haadf = scan
    flat = maps[0].deepcopy()
    flat.data[:] = 3
    flat.metadata.Sample.elements = ["Al"]
    flat.metadata.General.title = "Al map"
    fused = hf.fuse([maps[0], flat, maps[1]], haadf, errors=2, **QUICK)
    errors = fused.standard_errors()
    np.testing.assert_array_equal(np.isnan(errors.data).all(axis=(1, 2)), [False, True, False])
    without = hf.fuse(maps, haadf, errors=2, **QUICK)
    assert fused.region_mean(REGION, "O") == without.region_mean(REGION, "O")
    assert list(fused.metadata.Fusion.errors.bias_scales)[1] == 0
    with pytest.raises(ValueError, match="no errors of 'Al'.*Fe, O.*constant maps are not fitted"):
        fused.region_mean(REGION, "Al")


@pytest.mark.parametrize("name, symbol", [("fe", "Fe"), ("Fe_Ka", "Fe"), ("O_K", "O"), ("oxygen", "O")])
def test_another_spelling_of_an_element_is_answered_with_its_symbol(fused, name, symbol):
    for ask in (lambda: fused.region_mean(REGION, name), lambda: fused.ratio(REGION, "Fe", name)):
        with pytest.raises(ValueError, match=f"no map of {name!r}: did you mean '{symbol}'\\?$"):
            ask()


def test_an_element_that_was_not_mapped_has_no_errors(fused):
    with pytest.raises(ValueError, match="There is no map of 'Al': the maps are of Fe, O\\.$"):
        fused.region_mean(REGION, "Al")


def test_inputs_are_left_alone(scan):
    maps, haadf = scan
    before = [snapshot(s) for s in (*maps, haadf)]
    hf.fuse(maps, haadf, errors=2, **QUICK)
    for signal, was in zip((*maps, haadf), before, strict=True):
        assert_untouched(signal, was)


# ---- crops, copies and what is no longer the fit -----------------------------------------------------


def test_a_crop_and_a_single_map_know_their_part(fused):
    whole = fused.standard_errors().data
    crop = fused.isig[4:11, 3:9]
    np.testing.assert_array_equal(crop.standard_errors().data, whole[:, 3:9, 4:11])
    assert crop.region_mean(np.ones((6, 7), bool), "O") == fused.region_mean(REGION, "O")
    np.testing.assert_array_equal(crop.get_map("O").standard_errors().data, whole[1, 3:9, 4:11])
    np.testing.assert_array_equal(fused.deepcopy().inav[1:].standard_errors().data, whole[1:])


@pytest.mark.parametrize("change", [
    lambda s: s * 2,
    lambda s: s.rebin(scale=(1, 3, 2)),
    lambda s: s.isig[:4, :4] + 1,
], ids=["scaled", "rebinned", "crop edited"])  # fmt: skip
def test_changed_maps_have_no_known_errors(fused, change):
    with pytest.raises(ValueError, match="not what was fitted"):
        change(fused).standard_errors()


def test_edited_pixels_are_noticed(fused):
    edited = fused.deepcopy()
    edited.data[0, 5, 5] += 1
    with pytest.raises(ValueError, match="edited"):
        edited.region_mean(REGION, "Fe")


def test_pixels_edited_in_place_are_noticed(scan):
    fused = hf.fuse(*scan, errors=2, **QUICK)
    copy, before = fused.deepcopy(), fused.region_mean(REGION, "Fe")
    fused.data[0, 5, 5] += 1
    with pytest.raises(ValueError, match="edited"):
        fused.standard_errors()
    assert copy.region_mean(REGION, "Fe") == before


def test_saved_maps_do_not_hold_replicates_and_say_so(fused, tmp_path):
    fused.save(tmp_path / "fused.hspy")
    loaded = hs.load(tmp_path / "fused.hspy")
    assert loaded.metadata.Fusion.errors.replicates == 4
    with pytest.raises(ValueError, match="not saved with maps"):
        loaded.standard_errors()
    fused.standard_errors().save(tmp_path / "errors.hspy")
    np.testing.assert_array_equal(hs.load(tmp_path / "errors.hspy").data, fused.standard_errors().data)


def test_results_without_replicates_and_maps_without_fit_say_so(scan):
    with pytest.raises(ValueError, match="errors=True"):
        hf.fuse(*scan, **QUICK).region_mean(REGION, "Fe")
    with pytest.raises(ValueError, match="not the result of a fit"):
        hf.element_maps(scan[0]).standard_errors()
    with pytest.raises(ValueError, match='published method has no model of the noise.* method="calibrated" with err'):
        hf.fuse(*scan, max_iter=1).region_mean(REGION, "Fe")


def test_means_without_the_errors_that_were_known_say_so(scan, fused, caplog, tmp_path):
    def told(call):
        caplog.clear()
        call()
        return [r.getMessage() for r in caplog.records if "with the bias of smoothing" in r.getMessage()]

    fused.save(tmp_path / "fused.hspy")
    loaded = hs.load(tmp_path / "fused.hspy")
    edited = fused.deepcopy()
    edited.data = edited.data * 2
    for maps in (loaded, loaded.isig[1:], edited, fused * 2, fused.rebin(scale=(1, 3, 2))):
        (sentence,) = told(maps.region_means)
        assert "not saved with its maps" in sentence and "save its standard_errors() too" in sentence
    # with errors that were saved too, of a result that knows them, of one that never did, and of per cent
    assert not told(lambda: loaded.region_means(REGION, errors=fused.standard_errors()))
    percent = fused.atomic_percent("cross_section", 1)
    plain = hf.fuse(*scan, **QUICK)
    for maps in (fused, fused.isig[2:9, 1:8], plain, percent, fused.standard_errors(), hf.element_maps(scan[0])):
        assert not told(maps.region_means)


def test_exported_errors_are_data_sets_or_none(fused, tmp_path):
    fused.isig[2:9, 1:8].export(tmp_path / "crop")
    with h5py.File(tmp_path / "crop" / "fused.h5") as file:
        assert set(file["errors"]) == {"Fe", "O"} and file["errors"].attrs["replicates"] == 4
        np.testing.assert_array_equal(file["errors/O"][:], fused.standard_errors().data[1, 1:8, 2:9])
        np.testing.assert_allclose(file["errors/O"].attrs["offset"], file["maps/O"].attrs["offset"])
    fused.save(tmp_path / "fused.hspy")
    for name, maps in (("loaded", hs.load(tmp_path / "fused.hspy")), ("twice", fused * 2)):
        maps.export(tmp_path / name)
        with h5py.File(tmp_path / name / "fused.h5") as file:
            assert "errors" not in file and "maps/O" in file


# ---- regions -----------------------------------------------------------------------------------------


def test_regions_are_masks_signals_and_rois(fused):
    # axes: y from -2.0 by 0.4, x from 3.0 by 0.5
    expected = fused.region_mean(REGION, "Fe")
    assert fused.region_mean(hs.signals.Signal2D(REGION), "Fe") == expected
    assert fused.region_mean(hs.roi.RectangularROI(left=5.0, right=8.5, top=-0.8, bottom=1.6), "Fe") == expected
    assert expected.fused == pytest.approx(fused.data[0][REGION].mean())


def test_a_circle_is_the_pixels_that_hyperspy_leaves_in_it(fused):
    roi = hs.roi.CircleROI(cx=6.5, cy=0.4, r=1.3)
    cut = roi(fused.get_map("Fe")).data
    assert 10 < np.isfinite(cut).sum() < cut.size
    assert region_mask(roi, fused).sum() == np.isfinite(cut).sum()
    assert fused.region_mean(roi, "Fe").fused == pytest.approx(np.nanmean(cut))


@pytest.mark.parametrize("region, error, words", [
    (REGION.astype(float), TypeError, "float64: .* that another image chose, such as haadf.data > 30000, or"),
    (REGION[:-1], ValueError, "shape \\(11, 15\\), expected \\(12, 15\\)"),
    (~(REGION | True), ValueError, "no pixel of the maps, which are from x = 3 to 10 nm and y = -2 to 2.4 nm\\.$"),
    (hs.roi.Line2DROI(3, -2, 6, 1, 1), TypeError, "covers no area"),
    (hs.roi.SpanROI(4, 5), TypeError, "covers no area"),
    (hs.roi.Point2DROI(5, 0), TypeError, "covers no area"),
    (hs.roi.Point1DROI(5), TypeError, "covers no area"),
    (hs.roi.RectangularROI(100, 100, 101, 101), ValueError, "not lie on the maps, which are from x = 3 to 10 nm and y"),
    (hs.roi.CircleROI(40, 60, 5), ValueError, "the maps, which are from x = 3 to 10 nm and y = -2 to 2.4 nm: .* axes"),
])  # fmt: skip
def test_what_is_no_region_is_said(fused, region, error, words):
    with pytest.raises(error, match=words):
        fused.region_mean(region, "Fe")


def test_ratio_is_that_of_the_region_means(fused):
    iron, oxygen = (fused.region_mean(REGION, e) for e in ("Fe", "O"))
    ratio = fused.ratio(REGION, "Fe", "O")
    assert ratio.value == pytest.approx(iron.value / oxygen.value)
    apart = ratio.value * np.hypot(iron.error / iron.value, oxygen.error / oxygen.value)
    assert 0.3 * apart < ratio.error < 2 * apart


def test_means_of_regions_know_the_errors_of_the_fit(fused):
    means = fused.region_means(REGION)
    for element in fused.elements:
        one = fused.region_mean(REGION, element)
        assert means[element] == (one.value, one.error) and one.error > 0
    # of all pixels, where totals are kept
    whole = fused.region_means()["Fe"]
    assert whole.value == pytest.approx(fused.data[0].mean(), rel=1e-3) and np.isfinite(whole.error)
    crop = fused.isig[2:12, 1:11]
    inside = REGION[1:11, 2:12]
    assert crop.region_means(inside)["Fe"].value == crop.region_mean(inside, "Fe").value


def test_the_composition_of_a_region_is_that_of_its_region_means(fused, caplog):
    factors = {"Fe": 2.0, "O": 0.5}
    found = fused.region_percent(REGION, "cross_section", factors)
    values = {e: fused.region_mean(REGION, e).value / factors[e] for e in fused.elements}
    for element in fused.elements:
        assert found[element].value == pytest.approx(100 * values[element] / sum(values.values()))
    # of two elements what one gains the other loses; and as the ratio has it
    assert found["Fe"].error == pytest.approx(found["O"].error) and found["Fe"].error > 0
    ratio, times = fused.ratio(REGION, "Fe", "O"), factors["O"] / factors["Fe"]
    assert found["Fe"].error == pytest.approx(100 * times * ratio.error / (1 + times * ratio.value) ** 2, rel=1e-6)
    turned = fused.inav[::-1].region_percent(REGION, "cross_section", factors)
    assert list(turned) == ["O", "Fe"] and turned["Fe"].value == pytest.approx(found["Fe"].value)
    # of changed maps that of the pixels, and said
    plain = (fused * 2).region_percent(REGION, "cross_section", factors)
    assert np.isnan(plain["Fe"].error) and "are lost" in caplog.text
    given = fused.region_percent(REGION, "cross_section", factors, errors=np.ones(fused.data.shape))
    assert given["Fe"].value == pytest.approx(plain["Fe"].value) and given["Fe"].error > 0


def test_an_element_of_which_nothing_was_counted_has_no_part_in_a_composition(scan):
    maps, haadf = scan
    three = {"Fe": maps[0], "O": maps[1], "Pt": hs.signals.Signal2D(np.zeros_like(maps[0].data))}
    fused = hf.fuse(three, haadf, errors=3, **QUICK)
    found = fused.region_percent(REGION, "cross_section", 1)
    two = fused.inav[:2].region_percent(REGION, "cross_section", 1)
    assert found["Pt"].value == 0 and np.isnan(found["Pt"].error)
    np.testing.assert_allclose([found[e] for e in two], list(two.values()), rtol=1e-9)


def test_means_of_what_is_no_longer_the_fit_are_those_of_its_pixels(fused):
    edited = fused.deepcopy()
    edited.data = edited.data * 2
    given = fused.region_means(REGION, errors=np.ones(fused.data.shape))["Fe"]
    assert given.value == pytest.approx(fused.data[0][REGION].mean()) and given.error == pytest.approx(1)
    for maps in (edited, fused * 2):
        value, error = maps.region_means(REGION)["Fe"]
        assert value == pytest.approx(2 * fused.data[0][REGION].mean()) and np.isnan(error)


def test_a_composition_is_answered_with_the_way_to_that_of_a_region(fused, tmp_path):
    percent = fused.atomic_percent("cross_section", 1)
    percent.save(tmp_path / "percent.hspy")
    for maps in (percent, percent.isig[1:9, 2:9], hs.load(tmp_path / "percent.hspy")):
        inside = np.ones(maps.data.shape[1:], bool)
        for ask in (maps.standard_errors, lambda maps=maps, inside=inside: maps.region_mean(inside, "Fe")):
            with pytest.raises(ValueError, match="is a composition.* take the region_percent of the fused maps"):
                ask()


# ---- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("errors", [1, -3, 2.5, "many"])
def test_a_number_of_replicates_that_is_none(scan, errors):
    with pytest.raises(ValueError, match="at least 2"):
        hf.fuse(*scan, errors=errors, **QUICK)


def test_the_published_method_has_no_errors_and_says_so_before_it_fits(scan, monkeypatch):
    monkeypatch.setattr(hf.FusedMultiModal, "fit", None)
    with pytest.raises(ValueError, match="no model of the noise.*calibrated"):
        hf.fuse(*scan, errors=True)
    model = hf.FusedMultiModal(scan[1], scan[0])
    for call in (model.standard_errors, model.attainable_gain, model.attribution):
        with pytest.raises(ValueError, match="calibrated"):
            call()


def test_bad_seeds_and_no_fit(model, scan):
    with pytest.raises(ValueError, match="seed is -1"):
        model.standard_errors(2, seed=-1)
    with pytest.raises(ValueError, match="call fit"):
        hf.FusedMultiModal(scan[1], scan[0], method="calibrated").standard_errors(2)


# ---- what can be known, and what moved the maps --------------------------------------------------------


def test_attainable_gain_is_one_number_for_each_pixel_and_element(model):
    gain = model.attainable_gain()
    assert gain.elements == ["Fe", "O"] and np.all(gain.data >= 1) and gain.data.max() > 1.01
    # the heavy element gains more
    assert gain.data[0].mean() > gain.data[1].mean()


def test_a_masked_pixel_has_no_counts_to_gain_from(scan):
    maps, haadf = scan
    mask = np.zeros((12, 15), bool)
    mask[2, 3] = True
    model = hf.FusedMultiModal(haadf, maps, method="calibrated", mask=mask)
    model.fit(regularization="tv", tol=1e-2)
    for found in (model.attainable_gain(), *model.attribution().values()):
        np.testing.assert_array_equal(np.isnan(found.data), np.broadcast_to(mask, (2, 12, 15)))
    assert np.isfinite(model.standard_errors(2).data).all()


def test_attribution_adds_up_to_the_change(model):
    parts = model.attribution()
    assert list(parts) == ["haadf", "penalty", "totals", "bound"]
    assert parts["haadf"].metadata.General.title == "Change by haadf of fused maps of Fe, O"
    total = sum(part.data.astype(float) for part in parts.values())
    np.testing.assert_allclose(total, model.as_signal().data - model.maps.data, atol=1e-4)


# ---- the plot ----------------------------------------------------------------------------------------


def test_the_plot_has_a_row_of_errors(fused):
    axes = fused.plot_fusion(errors=True)
    assert axes.shape == (3, 3) and not axes[2, 0].images
    assert axes[2, 1].get_title() == "Fe, standard error"
    np.testing.assert_array_equal(axes[2, 2].images[0].get_array(), fused.standard_errors().data[1])
    assert fused.get_map("O").plot_fusion(errors=True).shape == (3, 2)
    assert fused.plot_fusion().shape == (2, 3)


def test_a_region_that_was_not_measured_is_told(scan, caplog):
    maps, haadf = scan
    mask = np.zeros((12, 15), bool)
    mask[:6, :8] = True
    iron = maps[0].deepcopy()
    iron.data[8:, 8:] = np.nan
    fused = hf.fuse([iron, maps[1]], haadf, errors=4, mask=mask, **QUICK)
    left_out, half, tenth, less = (np.zeros((12, 15), bool) for _ in range(4))
    left_out[1:4, 2:5] = half[3:9, :4] = tenth[3:, :8] = True
    # much of it, but nowhere a square of 3 pixels
    less[4:7, :4] = less[4:9, 4] = less[4:11, 5:8] = True

    def told(call):
        caplog.clear()
        call()
        return [r.getMessage() for r in caplog.records if "was not measured" in r.getMessage()]

    (warning,) = told(lambda: fused.region_mean(left_out, "O"))
    assert warning.startswith("Much of the region was not measured (O 100%): no counts check the map there")
    for ask in (fused.region_means, lambda region: fused.ratio(region, "Fe", "O")):
        (warning,) = told(lambda ask=ask: ask(half))
        assert "(Fe 50%, O 50%)" in warning
        (warning,) = told(lambda ask=ask: ask(tenth))
        assert "(Fe 33%, O 33%)" in warning
        assert not told(lambda ask=ask: ask(less))
    corner = np.zeros((12, 15), bool)
    corner[9:, 9:] = True
    (warning,) = told(lambda: fused.region_means(corner))
    assert "(Fe 100%)" in warning
    (warning,) = told(lambda: fused.region_means())
    assert "(Fe 42%, O 27%)" in warning


def test_a_block_of_masked_pixels_is_told_and_dead_pixels_are_not(scan, caplog):
    maps, haadf = scan
    region = np.zeros((12, 15), bool)
    region[2:10, 2:10] = True
    block, scattered, little = (np.zeros((12, 15), bool) for _ in range(3))
    block[3:7, 3:6] = scattered[2:10:2, 2:10] = little[4:6, 4:7] = True
    for mask, told in ((block, True), (scattered & (np.arange(15) % 4 < 3), False), (little, False)):
        caplog.clear()
        hf.fuse(maps, haadf, errors=2, mask=mask, **QUICK).region_mean(region, "Fe")
        assert ("Much of the region was not measured" in caplog.text) == told


def test_a_profile_with_errors_through_masked_pixels_is_told(scan, caplog):
    maps, haadf = scan
    mask = np.zeros((12, 15), bool)
    mask[3:7, 3:6] = mask[10, 2:14] = True
    iron = maps[0].deepcopy()
    iron.data[3:7, 10:13] = np.nan
    fused = hf.fuse([iron, maps[1]], haadf, errors=2, mask=mask, **QUICK)
    percent = fused.atomic_percent("cross_section", 1)

    def told(signal, row, left=3.0, right=10.0):
        caplog.clear()
        y = -2 + 0.4 * row
        signal.line_profile((left, y), (right, y))
        return [r.getMessage() for r in caplog.records if "were not measured" in r.getMessage()]

    # 15 pixels from x = 3 by 0.5, of which 3 are masked, and 3 more of iron
    for signal in (fused, percent):
        (warning,) = told(signal, 5)
        assert (
            "from (3.0, 0.0) to (10.0, 0.0) goes through pixels that were not measured (Fe 40%, O 20% of it)" in warning
        )
    assert "(O 20% of it)" in told(fused.get_map("O"), 5)[0]
    assert "(Fe 50%" in told(fused.isig[8:, :], 4, 7.0, 9.5)[0] and "O" not in told(fused.isig[8:, :], 4, 7.0, 9.5)[0]
    # a row of dead pixels is known from both sides; no errors are known of changed maps or of those that had none
    for signal, row in ((fused, 10), (fused, 8), (fused * 2, 5), (hf.fuse(maps, haadf, mask=mask, **QUICK), 5)):
        assert not told(signal, row)
