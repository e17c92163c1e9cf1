"""Claims about composition: that of exspy, with errors to first order, NaN in vacuum; means and profiles."""

import exspy
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import scan_signals, shared, snapshot
from sources import eds

import hyperspy_fusion as hf
from hyperspy_fusion import element_maps

ELEMENTS = ["Al", "Fe", "Pt"]
LINES = ["Al_Ka", "Fe_Ka", "Pt_La"]
FACTORS = {"CL": [0.98, 1.32, 5.07], "zeta": [300.0, 420.0, 1500.0], "cross_section": [20.0, 12.0, 6.0]}


def spectra():
    s = eds("u1", elements=ELEMENTS, lines=LINES)
    s.set_microscope_parameters(live_time=7.0, beam_current=0.3)
    return s


def by_exspy(signal, intensities, method, units="atomic", factors=None):
    found = signal.quantification(
        intensities, method, factors or FACTORS[method], composition_units=units, navigation_mask=None
    )
    return np.stack([m.data for m in (found if method == "CL" else found[0])])


def count_maps(data, elements=ELEMENTS):
    """Maps (n, ny, nx) of 0.5 nm pixels."""
    axes = [{"name": n, "size": s, "scale": 0.5, "units": "nm"} for n, s in zip("yx", np.shape(data)[1:], strict=True)]
    return element_maps({e: hs.signals.Signal2D(np.array(m), axes=axes) for e, m in zip(elements, data, strict=True)})


def random_maps(seed=0, mean=40.0, shape=(6, 7)):
    return count_maps(np.random.default_rng(seed).poisson(mean, (3, *shape)).astype(float))


# ---- agreement with exspy -------------------------------------------------------------------------------


@pytest.mark.parametrize("units", ["atomic", "weight"])
@pytest.mark.parametrize("method", FACTORS)
def test_unfused_maps_have_the_composition_of_exspy(method, units):
    s = spectra()
    maps = element_maps(s)
    found = maps.atomic_percent if units == "atomic" else maps.weight_percent
    expected = by_exspy(s, s.get_lines_intensity(), method, units)
    np.testing.assert_allclose(found(method, FACTORS[method], vacuum=0).data, expected, rtol=1e-6)


@pytest.mark.parametrize("method", FACTORS)
def test_a_composition_is_that_of_any_common_part_of_the_lines(method):
    """Narrower windows hold a smaller part of each line, the same of all: only amounts depend on it."""
    s = spectra()
    maps = element_maps(s, integration_windows=1.2)
    expected = by_exspy(s, s.get_lines_intensity(integration_windows=1.2), method)
    found = maps.atomic_percent(method, FACTORS[method], vacuum=0)
    np.testing.assert_allclose(found.data, expected, rtol=1e-6)
    part = (maps * 0.842).atomic_percent(method, FACTORS[method], vacuum=0)
    np.testing.assert_allclose(part.data, found.data, rtol=1e-6)
    assert found.metadata.Element_maps.integration_windows == 1.2


@pytest.mark.parametrize("method", FACTORS)
def test_a_real_scan_has_the_composition_of_exspy(method):
    s = hs.load(shared("data/bruker_test_TEM.bcf"))[1]
    s.set_microscope_parameters(live_time=5.8, beam_current=0.3)
    factors = [1.6, 1.9, 2.1, 1.2]
    expected = by_exspy(s, s.get_lines_intensity(), method, factors=factors)
    found = element_maps(s).atomic_percent(method, factors, vacuum=0).data
    seen = np.isfinite(found[0])
    # exspy has 0 or NaN where nothing was counted
    np.testing.assert_array_equal(seen, element_maps(s).data.any(axis=0))
    np.testing.assert_allclose(found[:, seen], expected[:, seen], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found[:, seen].sum(axis=0), 100, rtol=1e-9)


@pytest.mark.parametrize("method", FACTORS)
def test_maps_and_fused_maps_go_straight_into_exspy(method):
    s = spectra()
    haadf = hs.signals.Signal2D(element_maps(s).data.sum(axis=0).astype(float) ** 1.1)
    for axis, same in zip(haadf.axes_manager.signal_axes, s.axes_manager.navigation_axes, strict=True):
        axis.scale, axis.offset, axis.units, axis.name = same.scale, same.offset, same.units, same.name
    for maps in (element_maps(s), s.fuse(haadf, max_iter=3)):
        expected = maps.atomic_percent(method, FACTORS[method], vacuum=0).data
        np.testing.assert_allclose(by_exspy(s, maps.split(), method), expected, rtol=1e-6)
        assert [list(m.metadata.Sample.xray_lines) for m in maps.split()] == [[line] for line in LINES]


def test_few_counts_are_as_good_as_many():
    """exspy takes intensities up to 0.1 for nothing, of which fused maps may be full."""
    maps = random_maps()
    faint = count_maps(maps.data * 1e-3)
    for method, factors in (("CL", FACTORS["CL"]), ("zeta", FACTORS["zeta"])):
        np.testing.assert_allclose(
            faint.atomic_percent(method, factors).data, maps.atomic_percent(method, factors).data, rtol=1e-9
        )


def test_weight_and_atomic_percent_are_converted_by_exspy():
    maps = random_maps()
    atomic, weight = maps.atomic_percent("CL", FACTORS["CL"]), maps.weight_percent("CL", FACTORS["CL"])
    expected = exspy.material.weight_to_atomic(list(weight.data.reshape(3, -1)), ELEMENTS)
    np.testing.assert_allclose(atomic.data.reshape(3, -1), expected, rtol=1e-12)
    back = exspy.material.atomic_to_weight(list(atomic.data.reshape(3, -1)), ELEMENTS)
    np.testing.assert_allclose(weight.data.reshape(3, -1), back, rtol=1e-12)


def test_equal_cross_sections_give_the_fractions_of_the_maps():
    maps = random_maps()
    percent = maps.atomic_percent("cross_section", 1.0)
    np.testing.assert_allclose(percent.data, 100 * maps.data / maps.data.sum(axis=0), rtol=1e-12)


# ---- factors --------------------------------------------------------------------------------------------


def test_factors_are_those_of_the_elements_and_not_of_the_alphabet():
    maps = random_maps()
    turned = element_maps(maps, ["Pt", "Al", "Fe"])
    factors = dict(zip(ELEMENTS, FACTORS["CL"], strict=True))
    expected, found = maps.atomic_percent("CL", FACTORS["CL"]), turned.atomic_percent("CL", factors)
    assert found.elements == ["Pt", "Al", "Fe"]
    for element in ELEMENTS:
        np.testing.assert_allclose(found.get_map(element).data, expected.get_map(element).data, rtol=1e-12)
    np.testing.assert_array_equal(found.metadata.Composition.factors, [5.07, 0.98, 1.32])


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("kl", 1.0), "method is 'kl': it must be one of 'CL', 'zeta', 'cross_section'"),
        (("CL", {"Fe": 1.0}), "factors has none for Al, Pt: give one for each of Al, Fe, Pt"),
        (("CL", [1.0, 2.0]), "give one number above 0 for each of Al, Fe, Pt, in this order"),
        (("CL", [1.0, 2.0, 0.0]), "give one number above 0 for each"),
        (("CL",), "factors is None: give the k-factors, zeta-factors or cross-sections of 'CL'"),
        (("cross_section",), "only maps of EELS edges know their cross-sections"),
    ],
)
def test_factors_that_do_not_fit_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        random_maps().atomic_percent(*arguments)


def test_one_map_has_no_composition_and_vacuum_is_a_fraction():
    maps = random_maps()
    with pytest.raises(ValueError, match="needs the maps of all its elements"):
        maps.get_map("Fe").atomic_percent("CL", 1.0)
    with pytest.raises(ValueError, match="vacuum is 5: it must be at least 0 and below 1"):
        maps.atomic_percent("CL", 1.0, vacuum=5)
    with pytest.raises(ValueError, match=r"errors has shape \(2, 3\) and the maps \(3, 6, 7\)"):
        maps.atomic_percent("CL", 1.0, errors=np.ones((2, 3)))


# ---- totals that a fit did not keep ---------------------------------------------------------------------


def told_of_totals(caplog, call):
    caplog.clear()
    call()
    return [r.getMessage() for r in caplog.records if "composition is not that of the counts" in r.getMessage()]


def test_the_composition_of_maps_with_other_totals_is_told(caplog, tmp_path):
    maps, haadf = scan_signals(elements=("Fe", "O"))
    fused = hf.fuse(maps, haadf, max_iter=1)
    fused.metadata.Fusion.total_ratios = np.array([1.3, 0.8])
    fused.save(tmp_path / "fused.hspy")
    for result in (fused, hs.load(tmp_path / "fused.hspy"), hs.load(tmp_path / "fused.hspy", lazy=True)):
        for ask in (result.atomic_percent, result.weight_percent, result.isig[2:9, :].atomic_percent):
            (sentence,) = told_of_totals(caplog, lambda ask=ask: ask("CL", 1.0))
            assert "the fit (published) did not keep their totals (Fe 130%, O 80% of the measured ones)" in sentence
            assert 'method="calibrated"' in sentence
    # in another order, and all by one factor, which no composition sees
    fused.metadata.Fusion.elements = ["O", "Fe"]
    assert "(Fe 80%, O 130% " in told_of_totals(caplog, lambda: fused.atomic_percent("CL", 1.0))[0]
    for kept in ([1.0, 1.0], [1.4, 1.5], [1.3, np.nan]):
        fused.metadata.Fusion.total_ratios = np.array(kept)
        assert not told_of_totals(caplog, lambda: fused.atomic_percent("CL", 1.0))


def test_the_published_method_on_a_phantom_is_told_and_the_calibrated_is_not(caplog):
    maps, haadf = hf.data.core_shell((32, 32), counts=10).signals()
    published = hf.fuse(maps, haadf, max_iter=30)
    assert np.ptp(published.metadata.Fusion.total_ratios) > 0.2
    assert told_of_totals(caplog, lambda: published.atomic_percent("cross_section", 1))
    calibrated = hf.fuse(maps, haadf, method="calibrated", regularization="tv", tol=1e-2)
    assert not told_of_totals(caplog, lambda: calibrated.atomic_percent("cross_section", 1))
    assert not told_of_totals(caplog, lambda: element_maps(maps).atomic_percent("cross_section", 1))


# ---- vacuum ---------------------------------------------------------------------------------------------


def test_vacuum_is_nan_below_its_part_of_the_thick_specimen():
    data = np.full((3, 20, 20), 100.0)
    data[:, :2] = [[[4.9]], [[4.9]], [[4.9]]]
    data[:, 2] = 5.1
    data[:, 3] = 0
    percent = count_maps(data).atomic_percent("cross_section", 1.0)
    empty = np.isnan(percent.data).all(axis=(0, 2))
    np.testing.assert_array_equal(np.flatnonzero(empty), [0, 1, 3])
    nothing = np.isnan(count_maps(data).atomic_percent("cross_section", 1.0, vacuum=0).data).all(axis=(0, 2))
    np.testing.assert_array_equal(np.flatnonzero(nothing), [3])


def test_negative_and_missing_pixels():
    data = np.full((3, 4, 5), 10.0)
    data[0, 0, 0], data[1, 1, 1] = -5, np.nan
    maps = element_maps(dict(zip(ELEMENTS, map(hs.signals.Signal2D, data), strict=True)), allow_nan=True)
    percent = maps.atomic_percent("cross_section", 1.0).data
    np.testing.assert_allclose(percent[:, 0, 0], [0, 50, 50], rtol=1e-9)
    assert np.isnan(percent[:, 1, 1]).all() and np.isfinite(percent[:, 2]).all()


# ---- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", FACTORS)
def test_errors_are_those_of_many_scans(method):
    truth = np.array([900.0, 2500.0, 400.0])
    counts = np.random.default_rng(0).poisson(truth[:, None, None], (3, 70, 70)).astype(float)
    spread = count_maps(counts).atomic_percent(method, FACTORS[method]).data.std(axis=(1, 2))
    maps = count_maps(np.broadcast_to(truth[:, None, None], (3, 2, 2)))
    percent = maps.atomic_percent(method, FACTORS[method], errors=np.sqrt(maps.data))
    errors = np.sqrt(percent.get_noise_variance().data[:, 0, 0])
    np.testing.assert_allclose(errors, spread, rtol=0.05)
    assert maps.atomic_percent(method, FACTORS[method]).get_noise_variance() is None


def test_errors_of_two_elements_by_hand():
    maps = count_maps([[[30.0]], [[10.0]]], ["Fe", "O"])
    percent = maps.atomic_percent("cross_section", 1.0, errors=np.array([[[3.0]], [[2.0]]]))
    # c = I1 / (I1 + I2), so that dc = (I2 dI1 - I1 dI2) / (I1 + I2)^2
    expected = 100 * np.hypot(10 * 3, 30 * 2) / 40**2
    np.testing.assert_allclose(np.sqrt(percent.get_noise_variance().data.ravel()), expected, rtol=1e-12)


def test_means_of_counts_have_the_composition_and_errors_of_a_pixel_by_hand():
    """The way of docs/composition.md: factors are k / A, or 1 / cross-section, and errors are to first order."""
    counts, errors = np.array([40.0, 75.0, 12.0]), np.array([3.0, 2.0, 1.5])
    one = count_maps(counts[:, None, None])
    weights = np.array([exspy.material.elements[e].General_properties.atomic_weight for e in ELEMENTS])
    for method, factors in (("CL", FACTORS["CL"] / weights), ("cross_section", 1 / np.array(FACTORS["cross_section"]))):
        parts = factors * counts / np.sum(factors * counts)
        spread = (np.eye(3) - parts[:, None]) * factors * errors / np.sum(factors * counts)
        percent = one.atomic_percent(method, FACTORS[method], errors=errors[:, None, None])
        np.testing.assert_allclose(percent.data.ravel(), 100 * parts, rtol=1e-9)
        np.testing.assert_allclose(percent.get_noise_variance().data.ravel(), 1e4 * (spread**2).sum(axis=1), rtol=1e-9)
        # of a region of this pixel the same
        one.set_noise_variance(hs.signals.Signal2D(errors[:, None, None] ** 2, axes=one.axes_manager._get_axes_dicts()))
        region = one.region_percent(None, method, FACTORS[method])
        np.testing.assert_allclose([v for v, _ in region.values()], 100 * parts, rtol=1e-9)
        np.testing.assert_allclose([e for _, e in region.values()], 100 * np.linalg.norm(spread, axis=1), rtol=1e-9)
        one._forget_noise()


def test_the_composition_of_a_region_is_that_of_its_sums():
    maps = random_maps()
    half = np.zeros(maps.axes_manager.signal_shape[::-1], bool)
    half[:, :2] = True
    sums = element_maps(count_maps(maps.data[:, half].sum(axis=1)[:, None, None]), maps.elements)
    for units, whole in (("atomic", sums.atomic_percent), ("weight", sums.weight_percent)):
        found = maps.region_percent(half, "CL", FACTORS["CL"], units=units)
        np.testing.assert_allclose([v for v, _ in found.values()], whole("CL", FACTORS["CL"]).data.ravel())
    assert list(found) == maps.elements and np.isnan([e for _, e in found.values()]).all()
    # of the pixels that all maps have
    hole = maps.deepcopy()
    hole.data[1, :, 0] = np.nan
    half[:, 0] = False
    expected = maps.region_percent(half, "CL", FACTORS["CL"])
    half[:, 0] = True
    assert hole.region_percent(half, "CL", FACTORS["CL"])["Fe"].value == pytest.approx(expected["Fe"].value)
    with pytest.raises(ValueError, match="is a composition already"):
        maps.atomic_percent("CL", 1.0).region_percent(half, "CL", 1.0)


def test_errors_come_from_the_variance_of_the_maps_or_by_element():
    maps = random_maps()
    expected = maps.atomic_percent("CL", FACTORS["CL"], errors=np.sqrt(maps.data)).get_noise_variance().data
    named = maps.deepcopy()
    named.set_noise_variance(hs.signals.Signal2D(maps.data, axes=maps.axes_manager._get_axes_dicts()))
    np.testing.assert_allclose(
        named.atomic_percent("CL", FACTORS["CL"]).get_noise_variance().data, expected, rtol=1e-12
    )
    turned = element_maps(count_maps(np.sqrt(maps.data)), ["Pt", "Al", "Fe"])
    found = maps.atomic_percent("CL", FACTORS["CL"], errors=turned).get_noise_variance().data
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("given", [True, False, 1, 2.5, np.float64(3), np.array(3.0), {"Fe": 1.0}, "yes"], ids=repr)
def test_errors_are_those_of_pixels_and_no_switch(given):
    maps = random_maps()
    for ask in (
        lambda: maps.region_means(errors=given),
        lambda: maps.line_profile((0.5, 0.5), (2.5, 0.5), errors=given),
        lambda: maps.atomic_percent("CL", 1.0, errors=given),
        lambda: maps.weight_percent("CL", 1.0, errors=given),
    ):
        with pytest.raises(TypeError, match="errors is .*: give the standard errors of the pixels, an array or signal"):
            ask()


def test_errors_are_numbers_of_0_or_more():
    maps = random_maps()
    with pytest.raises(TypeError, match="errors holds bool: .*a fit with errors=True are taken by themselves"):
        maps.region_means(errors=maps.data > 3)
    with pytest.raises(ValueError, match=r"errors has values below 0, down to -2: standard errors are 0 or more"):
        maps.region_means(errors=np.where(np.arange(7) == 2, -2, 1) * np.ones(maps.data.shape))
    for given in (np.sqrt(maps.data), np.sqrt(maps.data).tolist(), maps.deepcopy()):
        assert maps.region_means(errors=given)["Fe"].error > 0
    assert maps.region_means(errors=np.zeros(maps.data.shape, int))["Fe"].error == 0


# ---- what comes out -------------------------------------------------------------------------------------


def test_the_result_knows_what_it_is(tmp_path):
    maps, haadf = scan_signals(elements=("Fe", "O"))
    fused = hf.fuse(maps, haadf, method="calibrated", regularization="tv", tol=1e-2)
    before = snapshot(fused)
    percent = fused.atomic_percent("CL", {"Fe": 1.2, "O": 1.9}, errors=np.sqrt(fused.data + 1))
    np.testing.assert_equal(snapshot(fused)[:4], before[:4])
    assert percent.elements == ["Fe", "O"] and percent.metadata.Signal.quantity == "Atomic percent"
    assert percent.metadata.General.title == "atomic percent of Fe, O"
    assert percent.axes_manager[1].scale == pytest.approx(0.5) and percent.axes_manager[1].units == "nm"
    with pytest.raises(ValueError, match="turned into a composition after the fit"):
        percent.modelled_haadf()
    percent.save(tmp_path / "percent.hspy")
    loaded = hs.load(tmp_path / "percent.hspy")
    np.testing.assert_array_equal(loaded.data, percent.data)
    np.testing.assert_allclose(loaded.get_noise_variance().data, percent.get_noise_variance().data)
    assert loaded.metadata.Composition.method == "CL"
    np.testing.assert_allclose(percent.get_map("Fe").get_noise_variance().data, percent.get_noise_variance().data[0])


# ---- means ----------------------------------------------------------------------------------------------


def test_means_of_regions():
    maps = random_maps()
    inside = np.zeros((6, 7), bool)
    inside[1:3, 2:5] = True
    roi = hs.roi.RectangularROI(left=1.0, right=2.5, top=0.5, bottom=1.5)
    for region in (inside, hs.signals.Signal2D(inside), roi):
        found = maps.region_means(region)
        for element, data in zip(ELEMENTS, maps.data, strict=True):
            assert found[element].value == pytest.approx(data[1:3, 2:5].mean())
            assert np.isnan(found[element].error)
    assert maps.region_means()["Fe"].value == pytest.approx(maps.data[1].mean())
    circle = maps.region_means(hs.roi.CircleROI(cx=1.5, cy=1.5, r=0.4))
    assert circle["Fe"].value == pytest.approx(maps.data[1, 3, 3])


@pytest.mark.parametrize(
    "roi, part",
    [
        (hs.roi.RectangularROI(left=2.0, right=9.0, top=1.0, bottom=2.0), np.s_[2:4, 4:]),
        (hs.roi.RectangularROI(left=-3.0, right=1.0, top=1.0, bottom=2.0), np.s_[2:4, :2]),
        (hs.roi.CircleROI(cx=0.0, cy=0.0, r=1.6), None),
        (hs.roi.PolygonROI([(1.0, 0.6), (8.0, 0.6), (8.0, 1.6), (1.0, 1.6)]), None),
    ],
)
def test_regions_beyond_the_maps_say_so(roi, part, caplog):
    maps = random_maps()  # x from 0 to 3, y from 0 to 2.5 nm
    found = maps.region_means(roi)["Fe"]
    assert "reaches beyond the maps, which are from x = 0 to 3 nm and y = 0 to 2.5 nm: only" in caplog.text
    assert len([r for r in caplog.records if "reaches beyond" in r.getMessage()]) == 1
    if part is not None:
        assert found.value == pytest.approx(maps.data[1][part].mean())


@pytest.mark.parametrize(
    "roi",
    [
        hs.roi.RectangularROI(left=0.0, right=3.5, top=0.0, bottom=3.0),  # all pixels: its end is no part of a ROI
        hs.roi.RectangularROI(left=0.5, right=2.0, top=0.5, bottom=1.5),
        hs.roi.CircleROI(cx=1.5, cy=1.2, r=1.2),
        hs.roi.PolygonROI([(0.0, 0.0), (3.0, 0.0), (3.0, 2.5)]),
    ],
)
def test_regions_within_the_maps_say_nothing(roi, caplog):
    random_maps().region_means(roi)
    assert "beyond" not in caplog.text


def test_errors_of_means_are_those_of_independent_pixels_unless_they_are_fused():
    maps = random_maps(mean=400.0, shape=(40, 50))
    errors = np.sqrt(maps.data)
    found = maps.region_means(errors=errors)["Fe"]
    assert found.error == pytest.approx(np.sqrt(maps.data[1].sum()) / 2000)
    assert abs(found.value - 400) < 4 * found.error
    alike = maps.region_means(errors=errors, independent=False)["Fe"].error
    assert alike == pytest.approx(errors[1].mean())
    scan, haadf = scan_signals()
    fused = hf.fuse(scan, haadf, method="calibrated", regularization="tv", tol=1e-2)
    assert fused.region_means(errors=np.full(fused.data.shape, 2.0))["Fe"].error == pytest.approx(2.0)


def test_pixels_without_a_value_do_not_count():
    maps = random_maps()
    maps.data[:, 0] = np.nan
    found = maps.region_means(errors=np.ones(maps.data.shape))["Al"]
    assert found.value == pytest.approx(maps.data[0, 1:].mean()) and found.error == pytest.approx(1 / np.sqrt(35))
    empty = np.zeros((6, 7), bool)
    with pytest.raises(ValueError, match="The region holds no pixel of the maps"):
        maps.region_means(empty)
    empty[0] = True
    with pytest.raises(ValueError, match="The region holds no pixel with a value"):
        maps.region_means(empty)
    with pytest.raises(TypeError, match="The region holds float64: pass an array or signal of bool"):
        maps.region_means(empty.astype(float))


@pytest.mark.parametrize(
    "name, method",
    [("cliff-lorimer", "CL"), ("Cliff Lorimer", "CL"), ("cl", "CL"), ("k-factors", "CL"), ("Zeta-factor", "zeta")]
    + [("zeta", "zeta"), ("cross-section", "cross_section"), ("cross_sections", "cross_section")],
)
def test_methods_go_by_their_other_names(name, method):
    maps = random_maps()
    found = maps.atomic_percent(name, FACTORS[method])
    np.testing.assert_array_equal(found.data, maps.atomic_percent(method, FACTORS[method]).data)
    assert found.metadata.Composition.method == method


# ---- profiles -------------------------------------------------------------------------------------------


def test_profiles_along_rows_are_means_across_them():
    maps = random_maps(shape=(9, 12))
    errors = np.sqrt(maps.data)
    profile = maps.line_profile((0.5, 2.0), (5.0, 2.0), linewidth=1.5, errors=errors)
    assert isinstance(profile, hs.signals.Signal1D)
    assert list(profile.metadata.Sample.elements) == ELEMENTS
    axis = profile.axes_manager.signal_axes[0]
    assert (axis.units, axis.scale) == ("nm", pytest.approx(0.5))
    np.testing.assert_allclose(profile.data, maps.data[:, 3:6, 1:11].mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(
        profile.get_noise_variance().data, (errors[:, 3:6, 1:11] ** 2).sum(axis=1) / 9, rtol=1e-9
    )
    alike = maps.line_profile((0.5, 2.0), (5.0, 2.0), 1.5, errors=errors, independent=False)
    np.testing.assert_allclose(alike.get_noise_variance().data, errors[:, 3:6, 1:11].mean(axis=1) ** 2, rtol=1e-9)
    assert maps.line_profile((0.5, 2.0), (5.0, 2.0)).get_noise_variance() is None


def test_profiles_leave_out_what_has_no_value_and_what_is_outside():
    maps = random_maps(shape=(9, 12))
    maps.data[:, 3, 4], maps.data[:, 3:6, 7] = np.nan, np.nan
    profile = maps.line_profile((0.5, 2.0), (5.0, 2.0), linewidth=1.5, errors=np.ones(maps.data.shape))
    np.testing.assert_allclose(profile.data[:, 3], maps.data[:, 4:6, 4].mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(profile.get_noise_variance().data[:, [2, 3]], [[1 / 3, 1 / 2]] * 3, rtol=1e-9)
    assert np.isnan(profile.data[:, 6]).all()
    border = maps.line_profile((0.5, 0.0), (5.0, 0.0), linewidth=1.5)
    np.testing.assert_allclose(border.data, maps.data[:, :2, 1:11].mean(axis=1), rtol=1e-9)


def test_profiles_beyond_the_maps_say_so(caplog):
    maps = random_maps(shape=(9, 12))  # x from 0 to 5.5 nm
    maps.line_profile((0.5, 0.0), (5.5, 4.0), linewidth=1.5)
    assert not caplog.records
    profile = maps.line_profile((3.5, 2.0), (7.5, 2.0))
    np.testing.assert_array_equal(np.isnan(profile.data), np.tile(np.arange(9) > 4, (3, 1)))
    assert "44% of the line from (3.5, 2.0) to (7.5, 2.0) lies beyond the maps, which are from x = 0 to 5.5 nm" in (
        caplog.text
    )
    with pytest.raises(ValueError, match="All of the line from .* lies beyond the maps, .* y = 0 to 4 nm: give"):
        maps.line_profile((10, 2), (40, 2))
    one = count_maps(np.ones((1, 4, 6)), ["Fe"]).get_map("Fe")
    assert np.isnan(one.line_profile((0.0, 1.0), (4.0, 1.0)).data).sum() == 3


def test_values_that_are_missing_within_the_maps_are_no_news_of_a_profile(caplog):
    maps = random_maps(shape=(9, 12))
    maps.data[:, 4, 6:] = np.nan
    assert np.isnan(maps.line_profile((0.5, 2.0), (5.0, 2.0)).data).any()
    assert not caplog.records


def test_profiles_of_compositions():
    data = np.stack([np.full((8, 10), 30.0), np.full((8, 10), 10.0)])
    percent = count_maps(data, ["Fe", "O"]).atomic_percent("cross_section", 1.0, errors=np.sqrt(data))
    profile = percent.line_profile((0.5, 0.5), (3.0, 3.0))
    np.testing.assert_allclose(profile.data[0], 75, rtol=1e-9)
    np.testing.assert_allclose(profile.get_noise_variance().data[0], 100**2 * (100 * 30 + 900 * 10) / 40**4, rtol=1e-9)
    assert profile.metadata.Signal.quantity == "Atomic percent"
