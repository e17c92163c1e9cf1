"""The model of the spectra of an EDS spectrum image, and the elements that the spectra show."""

import hyperspy.api as hs
import numpy as np
import pytest
from helpers import assert_untouched, shared, snapshot
from sources import eds, eels, image

import hyperspy_fusion
from benchmarks.random_spectra import drawn_spectra
from hyperspy_fusion.data import overlapping_lines
from hyperspy_fusion.fusion.spectra import line_shapes
from hyperspy_fusion.fusion.spectra.artefacts import Spectrum, dead_channels
from hyperspy_fusion.fusion.spectra.element_evidence import Evidence, least_ratio
from hyperspy_fusion.fusion.spectra.line_shapes import Calibration
from hyperspy_fusion.identify.elements import periodic_table
from hyperspy_fusion.maps.base import SourceRequest
from hyperspy_fusion.maps.eds_fit import modelled_maps
from hyperspy_fusion.maps.eds_model import spectral_model
from hyperspy_fusion.maps.eds_spectra import binned_spectra
from hyperspy_fusion.maps.suggestion import missing_diagnostics

COUNTS = {"O": 3e4, "Fe": 2e4, "Ti": 2e4, "S": 2e4}


def scan(symbols=("O", "Fe", "Ti"), units="keV", dtype="uint16", shape=(9, 10), shelf=0.0):
    """Spectra of families of lines, as {"Fe": {"K": 1e4}}, or of the K lines of elements, on a flat continuum."""
    edges, n = 0.01 * np.arange(1001), 1000
    families = symbols if isinstance(symbols, dict) else {symbol: {"K": COUNTS[symbol]} for symbol in symbols}
    if max(max(own.values()) for own in families.values()) > 1e5:  # for lines above 10 keV
        edges, n = 0.01 * np.arange(1501), 1500
    expected = np.full(n, 40.0)
    for symbol, counts in families.items():
        lines = periodic_table()[symbol].Atomic_properties.Xray_lines.as_dictionary()
        for name, own in lines.items():
            of_line = counts.get(name[0], 0) * own["weight"]
            expected += of_line * Calibration(shelf=shelf).line_shapes(edges, own["energy (keV)"])[:, 0]
    data = np.random.default_rng(0).poisson(expected / 90, (*shape, n)).astype(dtype)
    signal = hs.signals.Signal1D(data)
    signal.set_signal_type("EDS_TEM")
    axis, unit = signal.axes_manager[-1], 1000 if units == "eV" else 1
    axis.scale, axis.offset, axis.units, axis.name = 0.01 * unit, 0.005 * unit, units, "Energy"
    signal.set_microscope_parameters(beam_energy=200, energy_resolution_MnKa=130)
    return signal


@pytest.mark.parametrize(
    "units, dtype, lazy", [("keV", "uint16", False), ("eV", "float32", False), ("keV", "uint8", True)]
)
def test_totals_of_every_unit_dtype_and_lazy_spectra(units, dtype, lazy):
    signal = scan(units=units, dtype=dtype)
    before = snapshot(signal)
    source = signal.as_lazy() if lazy else signal
    model, _ = spectral_model(source, ["O", "Fe"], system=["Ti"])
    assert model.names[:3] == ("O", "Fe", "Ti") and model.n_elements == 2 and model.n_pixels == 90
    assert np.allclose(model.totals[:3] * model.main_share[:3], [3e4, 2e4, 2e4], rtol=0.05)
    assert model.deviance < 1.2
    assert_untouched(signal, before)


def test_counts_in_windows_are_those_of_exspy():
    signal = scan(units="eV", dtype="uint8")
    for source in (signal, signal.as_lazy()):
        spectra = modelled_maps(source, SourceRequest(["O", "Fe"], lines="model")).spectra
        for index, line in enumerate(["O_Ka", "Fe_Ka"]):
            image, counts, parts = spectra.window_of(index)
            assert np.array_equal(image, signal.get_lines_intensity([line])[0].data)
            assert np.sum(parts * counts.sum(axis=(1, 2))) == pytest.approx(image.sum())


def test_masked_pixels_and_lazy_blocks_are_binned_alike():
    signal = scan()
    mask = np.zeros((9, 10), bool)
    mask[2:5, 3:] = True
    lazy = signal.as_lazy()
    lazy.data = lazy.data.rechunk((5, 3, 400))
    used = slice(20, 900)
    expected = np.where(mask[..., None], 0, signal.data)[..., used].sum(axis=(0, 1))
    for one in (signal, lazy):
        binned = binned_spectra(one, used, mask)
        assert binned.shape == (3, 3, 880)
        np.testing.assert_array_equal(binned.sum(axis=(0, 1)), expected)


def test_doubtful_models_are_reported():
    _, found = spectral_model(scan(), ["O", "Fe"])
    (line,) = (d for d in found if d.code == "line-of-no-element")
    assert line.elements[0] == "Ti" and "4.51 keV" in str(line)
    _, found = spectral_model(scan(), ["O", "Fe", "Ti", "S"])
    assert [d.elements for d in found if d.code == "element-not-shown"] == [("S",)]
    _, found = spectral_model(scan(), ["O", "Fe", "Ti"])
    assert not [d for d in found if d.code != "beam-energy-unknown"]


def test_elements_told_apart_by_shape_have_their_errors_in_the_sentence():
    model, found = spectral_model(overlapping_lines((32, 32), counts=16).signals()[0], ["S", "Mo", "O", "Fe", "Co"])
    (pair,) = (d for d in found if d.code == "resolved-by-shape-only")
    assert " and ".join(f"{e} (+-{error:.0%})" for e, error in zip(("S", "Mo"), model.systematic, strict=False)) in str(
        pair
    )


@pytest.mark.parametrize("offset, scale", [(0.025, 1), (-0.04, 1), (0, 1.012)])
def test_an_axis_that_is_off_does_not_change_the_counts(offset, scale):
    signal = overlapping_lines((24, 24), counts=16).signals()[0]
    expected = spectral_model(signal)[0].totals
    axis = signal.axes_manager.signal_axes[0]
    axis.offset, axis.scale = axis.offset * scale + offset, axis.scale * scale
    np.testing.assert_allclose(spectral_model(signal)[0].totals[:6], expected[:6], rtol=0.1)


def near_an_end():
    """Oxygen is too near to the first channel for a fit, and iron to the energy of the beam."""
    signal = scan().isig[0.5:]
    signal.set_microscope_parameters(beam_energy=6)
    return signal


@pytest.mark.parametrize(
    "options, words",
    [
        ({"elements": ["O", "Ti"]}, "O has no X-ray line well within the energies"),
        ({"elements": ["O", "Ti"], "system": ["Fe"]}, "O has no X-ray line well within the energies"),
        ({"xray_lines": ["Fe_Ka", "Ti_Ka"]}, "Fe_Ka is too near to an end of the energies"),
    ],
)
def test_what_is_asked_for_and_near_an_end_of_the_energies_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        spectral_model(near_an_end(), **options)


def test_other_elements_near_an_end_of_the_energies_are_left_out():
    signal = near_an_end()
    assert spectral_model(signal, ["Ti"], system=["O", "Ti"]).model.names[:-2] == ("Ti",)
    signal.metadata.set_item("Sample.elements", ["O", "Ti"])
    model, found = spectral_model(signal)
    assert model.names[:-2] == ("Ti",) and model.n_elements == 1
    assert [d.elements for d in found if d.code == "line-out-of-range"] == [("O",)]


@pytest.mark.parametrize(
    "of_file, options, mapped, others",
    [
        ([], {"xray_lines": ["Fe_Ka"]}, ("Fe",), {"O", "Ti"}),
        (["Fe_Ka", "O_Ka"], {}, ("Fe", "O"), {"Ti"}),
        ([], {"elements": ["Fe", "O"]}, ("Fe", "O"), {"Ti"}),
    ],
)
def test_elements_of_the_file_have_columns_whatever_is_asked_for(of_file, options, mapped, others):
    signal = scan()
    signal.metadata.Sample = {"elements": ["Fe", "O", "Ti", "Xx"]} | ({"xray_lines": of_file} if of_file else {})
    model = modelled_maps(signal, SourceRequest(**options)).spectra.model
    assert model.names[: model.n_elements] == mapped and set(model.names[model.n_elements : -2]) == others


def test_masked_arrays_are_as_zeros():
    signal, zeros = scan(), scan()
    signal.data = np.ma.masked_array(signal.data, np.zeros(signal.data.shape, bool))
    signal.data[3, 3] = np.ma.masked
    zeros.data[3, 3] = 0
    found, expected = (modelled_maps(s, SourceRequest(elements=["Fe"])).spectra for s in (signal, zeros))
    np.testing.assert_array_equal(found.counts, expected.counts)
    np.testing.assert_array_equal(found.model.summed, expected.model.summed)


def test_the_remedy_of_an_unexplained_line_depends_on_who_names_the_elements():
    signal = scan()
    signal.metadata.set_item("Sample.elements", ["Fe", "O"])
    for options, words in (({}, "by s.add_elements."), ({"elements": ["Fe", "O"]}, "by s.add_elements for no map.")):
        (line,) = (d for d in spectral_model(signal, **options)[1] if d.code == "line-of-no-element")
        assert str(line).endswith(words)


@pytest.mark.parametrize("value", [-1.0, np.nan])
def test_spectra_that_are_no_counts_are_refused(value):
    signal = scan(dtype="float32")
    signal.data[0, 0, 500] = value
    with pytest.raises(ValueError, match="pass spectra of counts"):
        spectral_model(signal, ["Fe"])


def test_suggested_elements_print_as_a_table_and_are_named_by_fuse():
    signal = scan()
    found = hyperspy_fusion.suggest_elements(signal)
    assert set(found.elements[:3]) == {"O", "Fe", "Ti"} == set(found.certain)
    assert [line.split()[0] for line in str(found).splitlines()[:2]] == ["element", found.elements[0]]
    with pytest.raises(ValueError, match="name no elements: pass elements=.*'Ti'.* which the spectra show"):
        signal.fuse(hs.signals.Signal2D(np.ones((9, 10))))


def test_an_element_whose_lines_another_one_explains_is_not_certain():
    found = hyperspy_fusion.suggest_elements(overlapping_lines((32, 32), counts=8).signals()[0])
    assert "S or Mo" in str(found) and set(found.certain) == {"Cu", "Fe", "Co", "O"}
    alone = hyperspy_fusion.suggest_elements(scan(["O", "S"]))
    assert "S" in alone.certain and "Mo" not in str(alone)


@pytest.mark.parametrize("metal, light", [("Fe", "F"), ("Cr", "O"), ("Ca", "C")])
def test_soft_lines_of_a_metal_are_no_certain_light_element(metal, light):
    found = hyperspy_fusion.suggest_elements(scan({metal: {"K": 2e4, "L": 6e4}, "Si": {"K": 2e4}}))
    assert {metal, "Si"} == set(found.certain)
    assert light not in found.elements or f"{light} or {metal}" in str(found)


def test_unresolved_strong_lines_do_not_shift_the_energy_scale():
    heavy = {"W": {"L": 3e5, "M": 5e5}, "Au": {"L": 3e5, "M": 5e5}, "Tl": {"L": 6e4, "M": 1e5}}
    truth = heavy | {"Si": {"K": 8e5}, "Sc": {"K": 1.5e5}}
    found = hyperspy_fusion.suggest_elements(scan(truth))
    assert set(found.elements[: len(truth)]) == set(truth) >= set(found.certain)


@pytest.mark.slow
@pytest.mark.parametrize("shelf, length", [(0.25, 0.25), (0.2, 0.3)])
def test_charge_that_strong_lines_lose_shows_no_element(monkeypatch, shelf, length):
    truth = {"Pt": {"L": 1.2e6, "M": 1.44e6}, "Cu": {"K": 5.4e5}, "Ga": {"K": 3.6e5}, "Si": {"K": 6e4}}
    with monkeypatch.context() as patch:
        patch.setattr(line_shapes, "SHELF_LENGTH", length)
        signal = scan(truth, dtype="uint32", shelf=shelf)
    # silicon, a twentieth of platinum beside its shelves, is less certain than the model of these
    assert {"Pt", "Cu", "Ga"} <= set(hyperspy_fusion.suggest_elements(signal).certain) <= set(truth)


def test_two_photons_at_once_and_the_escape_of_silicon_have_a_known_place():
    energies = 0.2 + 0.02 * np.arange(400)
    artefacts = Spectrum.of(1e4 * np.exp(-(((energies - 3) / 0.05) ** 2)), energies).artefacts
    assert np.allclose(energies[np.argmax(artefacts, axis=0)], [6.0, 3 - 1.74], atol=0.03)


def test_channels_without_counts_are_dead_between_those_with_counts():
    counts = np.array([0, 0, 20, 30, 0, 40, 30, 9, 0, 9, 0, 0])
    assert np.flatnonzero(dead_channels(counts)).tolist() == [4]


@pytest.mark.parametrize("rivals, systematic, certain", [((), 0.1, True), (("Cu",), 0.1, False), ((), 0.7, False)])
def test_an_element_is_certain_without_rivals_where_it_is_resolved(rivals, systematic, certain):
    assert Evidence("Ni", 1e3, 1e3, systematic, 20.0, ("Ka",), (), rivals).is_certain is certain


def test_a_beam_hardly_above_the_l_lines_of_gold_lets_its_m_lines_be_alone():
    assert least_ratio(2.12, 9.71, 15) < least_ratio(2.12, 9.71, 200) / 5
    assert least_ratio(2.12, 9.71, 200) == least_ratio(2.12, 9.71)


def tampered(kind):
    """Spectra that show no element but Zr, Sn and Ba where the detector counts two X-rays as one, or not at all."""
    signal = scan({"Zr": {"L": 3e5}, "Sn": {"L": 3e5}, "Ba": {"L": 2e5}}, dtype="uint32")
    if kind == "dead channels":
        signal.data[..., 343:346] = signal.data[..., 445:447] = 0
    else:
        summed = signal.data.sum(axis=(0, 1)).astype(float)
        pairs = np.convolve(summed, summed)[: len(summed)] * 0.01 / summed.sum()
        signal.data[...] += np.random.default_rng(1).poisson(pairs / 90, signal.data.shape).astype("uint32")
    return signal


@pytest.mark.parametrize("kind", ["sum peaks", "dead channels"])
def test_places_where_the_detector_is_wrong_show_no_element(kind):
    found = hyperspy_fusion.suggest_elements(tampered(kind))
    assert set(found.certain) <= {"Zr", "Sn", "Ba"} == set(found.elements[:3])


@pytest.mark.parametrize("lost", ["", "Co"])
@pytest.mark.parametrize("offset, gain", [(0.0, 1.0), (0.02, 1.0), (0.0, 1.008)])
def test_elements_without_a_map_are_named_on_an_axis_that_is_off(lost, offset, gain):
    elements = "Ba Sr Co Fe O".split()
    signal = scan({symbol: {"K": 2e4, "L": 1e5} for symbol in elements}, dtype="uint32")
    axis = signal.axes_manager[-1]
    axis.scale, axis.offset = gain * axis.scale, axis.offset + offset
    signal.set_elements([symbol for symbol in elements if symbol != lost])
    found = hyperspy_fusion.element_maps(signal).metadata.Element_maps.get_item("diagnostics.codes", [])
    assert ("line-of-no-element" in found) == bool(lost)


MORE_THAT_THE_MODEL_LACKS = [
    ("soft lines of titanium, most of them absorbed", 5027, {}),
    ("a beam that hardly excites L lines", 8038, {"beam": 15.0}),
    ("a fit that does not describe the spectrum", 8000, {}),
    ("a minor line of a rival of another element", 8025, {"beam": 15.0}),
]


@pytest.mark.parametrize(
    "seed, options",
    [
        pytest.param(5053, {}, id="a peak that the first channel cuts off"),
        *(pytest.param(*case, id=what, marks=pytest.mark.slow) for what, *case in MORE_THAT_THE_MODEL_LACKS),
    ],
)
def test_no_absent_element_is_certain_by_what_the_model_lacks(seed, options):
    drawn = drawn_spectra(seed, **options)
    assert set(hyperspy_fusion.suggest_elements(drawn.signal).certain) <= set(drawn.elements)


@pytest.mark.nightly
def test_no_absent_element_is_certain_in_spectra_drawn_at_random():
    absent, found, certain, clear, named = [], 0, 0, 0, 0
    for seed in range(80):
        drawn = drawn_spectra(seed)
        shown = hyperspy_fusion.suggest_elements(drawn.signal)
        absent += [(seed, element) for element in shown.certain if element not in drawn.elements]
        found += len(set(drawn.clear) & set(shown.elements[: len(drawn.elements) + 4]))
        clear, certain = clear + len(drawn.clear), certain + len(set(drawn.clear) & set(shown.certain))
        named += bool(missing_diagnostics(drawn.signal, drawn.signal.data.sum(axis=(0, 1)) * 1.0, drawn.elements))
    assert len({seed for seed, _ in absent}) <= 1, absent
    assert found > 0.93 * clear and certain > 0.75 * clear
    assert not named


def test_spectra_without_lines_suggest_nothing_and_others_are_refused():
    assert not hyperspy_fusion.suggest_elements(eds()).certain
    empty = scan()
    empty.data[:] = 0
    assert str(hyperspy_fusion.suggest_elements(empty)) == "The spectra show no element."
    for other in (eels(), image(np.ones((3, 4))), [scan()]):
        with pytest.raises(TypeError, match="is no EDS spectrum image"):
            hyperspy_fusion.suggest_elements(other)


def real(name):
    found = hs.load(shared(f"data/{name}"))
    return next(signal for signal in found if signal.metadata.Signal.signal_type == "EDS_TEM")


@pytest.mark.slow
def test_real_spectra_are_modelled_and_their_elements_found():
    signal = real("L2083-K-4-1_tilt0.bcf")
    elements = list(signal.metadata.Sample.elements)
    assert spectral_model(signal, elements, system=["Co"]).model.deviance <= 3
    # cobalt of the pole piece is not in the file
    _, found = spectral_model(signal, [e for e in elements if e != "Ti"])
    named = {element for d in found if d.code == "line-of-no-element" for element in d.elements}
    assert {"Ti", "Co"} <= named and not named & {*elements} - {"Ti"}
    shown = hyperspy_fusion.suggest_elements(signal)
    assert {"C", "O", "Fe", "Cu", "Mg", "Al", "Si", "S", "Pt"} <= set(shown.elements[:12])
    # by its K lines, with L lines beneath platinum that the fit leaves out
    assert "Zr" in shown.certain


@pytest.mark.slow
def test_lines_that_lose_much_charge_do_not_make_rare_elements_certain():
    found = hyperspy_fusion.suggest_elements(real("L2083-K-4-1_tilt-20.bcf"))
    assert {"Pt", "O", "Ti", "Cu", "C", "Si", "Fe", "Mg", "Ga"} <= set(found.certain)
    assert not {"Lu", "Os"} & set(found.certain)
    # its L lines are beneath the M lines of platinum
    assert sum(one.counts for one in found if one.element == "Zr") < 3000


def test_elements_of_a_small_scan_are_found():
    signal = real("bruker_test_TEM.bcf")
    assert set(signal.metadata.Sample.elements) <= set(hyperspy_fusion.suggest_elements(signal).elements[:12])
