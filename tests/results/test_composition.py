"""Claims about composition: that of exspy, with errors to first order, NaN in vacuum."""

import exspy
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import codes, scan_signals, shared, snapshot
from results_data import ELEMENTS, count_maps, random_maps
from sources import eds

import hyperspy_fusion as hf
from hyperspy_fusion import element_maps
from hyperspy_fusion.results.composition import Percent

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


def test_maps_have_the_composition_of_exspy():
    s, method = spectra(), "CL"
    maps = element_maps(s)
    found = maps.weight_percent("cross_section", FACTORS["cross_section"], vacuum=0).data
    np.testing.assert_allclose(found, by_exspy(s, s.get_lines_intensity(), "cross_section", "weight"), rtol=1e-6)
    for units, found in (("atomic", maps.atomic_percent), ("weight", maps.weight_percent)):
        expected = by_exspy(s, s.get_lines_intensity(), method, units)
        np.testing.assert_allclose(found(method, FACTORS[method], vacuum=0).data, expected, rtol=1e-6)
    # the same for a common fraction of the lines
    narrow = element_maps(s, integration_windows=1.2)
    expected = by_exspy(s, s.get_lines_intensity(integration_windows=1.2), method)
    for few in (narrow, narrow * 1e-3):
        found = few.atomic_percent(method, FACTORS[method], vacuum=0)
        np.testing.assert_allclose(found.data, expected, rtol=1e-6)
        assert found.metadata.Element_maps.integration_windows == 1.2


NIGHTLY = [pytest.param(method, marks=pytest.mark.nightly) for method in ("zeta", "cross_section")]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["CL", *NIGHTLY])
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


def test_maps_and_fused_maps_go_straight_into_exspy():
    s = spectra()
    haadf = hs.signals.Signal2D(element_maps(s).data.sum(axis=0).astype(float) ** 1.1)
    for axis, same in zip(haadf.axes_manager.signal_axes, s.axes_manager.navigation_axes, strict=True):
        axis.scale, axis.offset, axis.units, axis.name = same.scale, same.offset, same.units, same.name
    for maps in (element_maps(s), hf.fuse(s, haadf, method="published", max_iter=3, show_progressbar=False)):
        split = maps.split()
        assert [list(m.metadata.Sample.xray_lines) for m in split] == [[line] for line in LINES]
        for method in ("CL",) if maps.metadata.has_item("Fusion") else FACTORS:
            expected = maps.atomic_percent(method, FACTORS[method], vacuum=0).data
            np.testing.assert_allclose(by_exspy(s, split, method), expected, rtol=1e-6)


def test_no_progress_bar_is_shown_for_a_composition(capsys, monkeypatch):
    monkeypatch.setattr(hs.preferences.General, "show_progressbar", True)
    random_maps().region().percent("CL", [5.01, 1.02, 1.33])
    assert "it/s" not in capsys.readouterr().err


def test_plain_fractions_of_maps():
    maps = random_maps()
    atomic, weight = maps.atomic_percent("CL", FACTORS["CL"]), maps.weight_percent("CL", FACTORS["CL"])
    expected = exspy.material.weight_to_atomic(list(weight.data.reshape(3, -1)), ELEMENTS)
    np.testing.assert_allclose(atomic.data.reshape(3, -1), expected, rtol=1e-12)
    maps = random_maps()
    percent = maps.atomic_percent("cross_section", 1.0)
    np.testing.assert_allclose(percent.data, 100 * maps.data / maps.data.sum(axis=0), rtol=1e-12)


def test_factors_belong_to_elements_and_not_to_their_order():
    maps = random_maps()
    turned = element_maps(maps, ["Pt", "Al", "Fe"])
    factors = dict(zip(ELEMENTS, FACTORS["CL"], strict=True))
    expected, found = maps.atomic_percent("CL", FACTORS["CL"]), turned.atomic_percent("CL", factors)
    assert found.elements == ["Pt", "Al", "Fe"]
    for element in ELEMENTS:
        np.testing.assert_allclose(found.get_map(element).data, expected.get_map(element).data, rtol=1e-12)
    np.testing.assert_array_equal(found.metadata.Composition.factors, [5.07, 0.98, 1.32])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("kl", 1.0), "must be one of 'CL', 'zeta', 'cross_section'"),
        (("CL", {"Fe": 1.0}), "factors has none for Al, Pt"),
        (("CL", [1.0, 2.0]), r"one number above 0 \(1e-30 to 1e\+30\) for each of Al, Fe, Pt"),
        *[((method, size), "one number above 0") for method in ("CL", "cross_section") for size in (1e-300, 1e300)],
        (("CL", [1.0, 2.0, 0.0]), "one number above 0"),
        *[(("CL", factors), "one number above 0") for factors in ("a", ["a", 1, 2], [[1], [1, 2], 3], {1, 2})],
        (("CL",), "factors is None: give the k-factors"),
        (("cross_section",), "only maps of EELS edges"),
    ],
)
def test_factors_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        random_maps().atomic_percent(*arguments)


def test_methods_have_other_names_and_need_all_maps():
    maps = random_maps()
    names = {"CL": ("cliff-lorimer", "Cliff Lorimer", "k-factors"), "zeta": ("Zeta-factor",)}
    for method, others in (names | {"cross_section": ("cross_sections", "cross-section")}).items():
        for name in others:
            assert maps.atomic_percent(name, FACTORS[method]).metadata.Composition.method == method
    with pytest.raises(ValueError, match="maps of all its elements"):
        maps.get_map("Fe").atomic_percent("CL", 1.0)
    with pytest.raises(ValueError, match="is a composition already"):
        maps.atomic_percent("CL", 1.0).weight_percent("CL", 1.0)
    with pytest.raises(ValueError, match="vacuum is 5"):
        maps.atomic_percent("CL", 1.0, vacuum=5)


def test_a_composition_of_changed_totals_is_reported(caplog, tmp_path):
    maps, haadf = hf.data.core_shell((16, 16), counts=10).signals()
    fused = hf.fuse(maps, haadf, method="published", max_iter=30, show_progressbar=False)
    assert np.ptp(fused.metadata.Fusion.total_ratios) > 0.2
    fused.save(tmp_path / "fused.hspy")
    loaded = hs.load(tmp_path / "fused.hspy", lazy=True)
    codes(caplog)
    for result in (fused, fused.isig[2:9, :], loaded):
        for ask in (result.atomic_percent, result.weight_percent, result.region().percent):
            ask("cross_section", 1)
            assert codes(caplog) == ["composition-of-changed-totals"]
    # all changed by one factor, which no composition shows; in another order; and no fit
    for ratios, expected in (([1.4, 1.5, 1.4], 0), ([1.3, np.nan, np.nan], 0), ([1.3, 0.8, 1.0], 1)):
        fused.metadata.Fusion.total_ratios = np.array(ratios)
        fused.metadata.Fusion.elements = ["O", "Fe", "Pt"]
        fused.atomic_percent("cross_section", 1)
        assert len(codes(caplog)) == expected
    element_maps(maps).atomic_percent("cross_section", 1)
    assert not codes(caplog)


def test_vacuum_negative_and_missing_pixels():
    data = np.full((3, 20, 20), 100.0)
    data[:, :4] = np.reshape([4.9, 4.9, 5.1, 0], (4, 1))
    for vacuum, rows in ((0.05, [0, 1, 3]), (0, [3])):
        percent = count_maps(data).atomic_percent("cross_section", 1.0, vacuum=vacuum)
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(percent.data).all(axis=(0, 2))), rows)
    data = np.full((3, 4, 5), 10.0)
    data[0, 0, 0], data[1, 1, 1] = -5, np.nan
    maps = element_maps(dict(zip(ELEMENTS, map(hs.signals.Signal2D, data), strict=True)), allow_nan=True)
    percent = maps.atomic_percent("cross_section", 1.0).data
    np.testing.assert_allclose(percent[:, 0, 0], [0, 50, 50], rtol=1e-9)
    assert np.isnan(percent[:, 1, 1]).all() and np.isfinite(percent[:, 2]).all()


def test_errors_are_those_of_many_scans():
    truth = np.array([900.0, 2500.0, 400.0])
    counts = count_maps(np.random.default_rng(0).poisson(truth[:, None, None], (3, 70, 70)).astype(float))
    maps = count_maps(np.broadcast_to(truth[:, None, None], (3, 2, 2)))
    for method, factors in FACTORS.items():
        percent = maps.atomic_percent(method, factors, errors=np.sqrt(maps.data))
        errors = np.sqrt(percent.get_noise_variance().data[:, 0, 0])
        np.testing.assert_allclose(errors, counts.atomic_percent(method, factors).data.std(axis=(1, 2)), rtol=0.05)
    assert maps.atomic_percent("CL", 1).get_noise_variance() is None


def test_pixels_and_regions_have_errors_by_hand():
    """The way of docs/composition.md: factors are k / A, or 1 / cross-section, and errors are to first order."""
    counts, errors = np.array([40.0, 75.0, 12.0]), np.array([3.0, 2.0, 1.5])
    one = count_maps(counts[:, None, None])
    weights = np.array([exspy.material.elements[e].General_properties.atomic_weight for e in ELEMENTS])
    for method, factors in (("CL", FACTORS["CL"] / weights), ("cross_section", 1 / np.array(FACTORS["cross_section"]))):
        shares = factors * counts / np.sum(factors * counts)
        changes = (np.eye(3) - shares[:, None]) * factors * errors / np.sum(factors * counts)
        percent = one.atomic_percent(method, FACTORS[method], errors=errors[:, None, None])
        np.testing.assert_allclose(percent.data.ravel(), 100 * shares, rtol=1e-9)
        np.testing.assert_allclose(percent.get_noise_variance().data.ravel(), 1e4 * (changes**2).sum(axis=1), rtol=1e-9)
        region = one.region(errors=errors[:, None, None]).percent(method, FACTORS[method])
        expected = 100 * np.transpose([shares, np.linalg.norm(changes, axis=1)])
        np.testing.assert_allclose(list(region.values()), expected, rtol=1e-9)


def test_errors_come_from_the_noise_variance_or_by_element():
    maps = random_maps()
    expected = maps.atomic_percent("CL", FACTORS["CL"], errors=np.sqrt(maps.data)).get_noise_variance().data
    named = maps.deepcopy()
    named.set_noise_variance(hs.signals.Signal2D(maps.data, axes=maps.axes_manager._get_axes_dicts()))
    turned = element_maps(count_maps(np.sqrt(maps.data)), ["Pt", "Al", "Fe"])
    for source, errors in ((named, None), (maps, turned), (maps, np.sqrt(maps.data).tolist())):
        found = source.atomic_percent("CL", FACTORS["CL"], errors=errors).get_noise_variance().data
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    maps = random_maps()
    with pytest.raises(TypeError, match="errors holds bool"):
        maps.region(errors=maps.data > 3)
    with pytest.raises(ValueError, match=r"below 0, down to -2"):
        maps.region(errors=np.where(np.arange(7) == 2, -2, 1) * np.ones(maps.data.shape))
    with pytest.raises(ValueError, match=r"errors has shape \(2, 3\) and the maps \(3, 6, 7\)"):
        maps.atomic_percent("CL", 1.0, errors=np.ones((2, 3)))
    assert maps.region(errors=np.zeros(maps.data.shape, int)).mean("Fe").error == 0


@pytest.mark.parametrize("given", [True, 2.5, np.float64(3), np.array(3.0), {"Fe": 1.0}, "yes"], ids=repr)
def test_errors_are_those_of_pixels_and_no_switch(given):
    maps = random_maps()
    for ask in (
        lambda: maps.region(errors=given),
        lambda: maps.line_profile((0.5, 0.5), (2.5, 0.5), errors=given),
        lambda: maps.atomic_percent("CL", 1.0, errors=given),
    ):
        with pytest.raises(TypeError, match="give the standard errors of the pixels"):
            ask()


def test_the_result_knows_what_it_is(tmp_path):
    maps, haadf = scan_signals()
    fused = hf.fuse(maps, haadf, method="published", max_iter=1, show_progressbar=False)
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


@pytest.mark.parametrize(
    "value, error, expected",
    [
        (4.8, 1.3, "4.8 ± 1.3 at.%"),
        (4.8, 0.0996, "4.80 ± 0.10 at.%"),
        (61.27, 12.4, "61 ± 12 at.%"),
        (50, np.nan, "50.0 at.%"),
        (np.nan, np.inf, "- at.%"),
        ([1, np.nan], [0.25, np.nan], "1.00 ± 0.25, - at.%"),
    ],
)
def test_per_cent_are_written_with_their_error(value, error, expected):
    table = Percent({"Fe": (value, error)}, "at.%", "Doubt < 1.")
    assert str(table) == f"Fe  {expected}\nDoubt < 1."
    assert f"<td>{expected}</td>" in table._repr_html_() and "Doubt &lt; 1." in table._repr_html_()


def test_a_composition_with_background_says_so(caplog):
    spectra, haadf = hf.data.overlapping_lines((12, 12)).signals()
    options = {"elements": ["Fe", "S"], "method": "calibrated", "max_iter": 3, "show_progressbar": False}
    with_it, without = (spectra.fuse(haadf, **options, background=b) for b in (None, "windows"))
    codes(caplog)
    for maps in (with_it, hf.element_maps(spectra, ["Fe", "S"]), with_it.inav[::-1]):
        assert "include the background" in str(maps.region().percent("CL", 1, units="weight"))
        assert codes(caplog) == ["background-in-composition"]
    table = without.region().percent("CL", {"Fe": 1.3, "S": 1.0})
    assert "background" not in str(table) and table.unit == "at.%"
    assert sum(found.value for found in table.values()) == pytest.approx(100) and codes(caplog) == []
