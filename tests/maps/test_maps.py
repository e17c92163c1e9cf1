"""Claims about element maps: every source gives the same stack, and bad input one sentence."""

import os
import subprocess
import sys
import tracemalloc

import exspy
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import shared
from sources import (
    FE,
    NAMES,
    PT,
    SCAN,
    SOURCES,
    TRUTH,
    O,
    assert_element_maps,
    codes,
    eds,
    eels,
    image,
    images,
    lazily,
    line_images,
    rgb,
    stacked,
    warnings_of,
)

from hyperspy_fusion import element_maps


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_source_gives_the_same_maps_on_the_same_axes(source):
    for result in (element_maps(source()), element_maps(lazily(source()))):
        assert_element_maps(result, TRUTH, NAMES)
        assert not codes(result) and not warnings_of(result)
        for axis, expected in zip(result.axes_manager.signal_axes[::-1], SCAN, strict=True):
            assert {key: getattr(axis, key) for key in expected} == expected


def test_forms_of_maps():
    one = images()[0]
    for source in (one, one.as_lazy(), [one], stacked([one, one]).inav[:1]):
        assert_element_maps(element_maps(source), TRUTH[:1], ["Fe"])
    strided = np.repeat(TRUTH, 2, axis=2)[:, :, ::2]
    for data in [strided, *(TRUTH.astype(dtype) for dtype in ("u1", ">u2", ">f4", "f2"))]:
        data.flags.writeable = False
        result = element_maps([image(d) for d in data], NAMES)
        np.testing.assert_array_equal(result.data, data)
        assert result.data.dtype == data.dtype.newbyteorder("=") and result.data.flags.writeable
    plain = hs.signals.Signal2D(O)
    result = element_maps({"O": plain, "Fe": images()[0]})
    assert [axis.scale for axis in result.axes_manager.signal_axes] == [0.5, 0.5]
    made = element_maps(images())
    made.data = TRUTH.astype(">f4")
    result = element_maps(made)
    assert result.data.dtype.isnative and made.data.dtype == ">f4"
    assert_element_maps(result, TRUTH, NAMES)


def test_metadata_say_what_and_from_where():
    source = line_images()
    for m in source:
        m.metadata.Signal.quantity = "X-rays (Counts)"
        m.metadata.set_item("Acquisition_instrument.TEM.beam_energy", 200)
        m.metadata.set_item("Sample.mass_thickness", hs.signals.Signal2D(FE))
    metadata = element_maps(source).metadata
    assert metadata.General.title == "Element maps of Fe, O, Pt"
    assert metadata.Sample.description == "a specimen"
    assert metadata.Acquisition_instrument.TEM.beam_energy == 200
    assert metadata.Signal.quantity == "X-rays (Counts)"
    assert list(metadata.Element_maps.source_titles) == ["line Fe_Ka", "line O_Ka", "line Pt_La"]
    assert list(metadata.Element_maps.xray_lines) == ["Fe_Ka", "O_Ka", "Pt_La"]
    assert not metadata.has_item("Sample.xray_lines")
    assert not metadata.has_item("Sample.mass_thickness")


def test_saved_maps_are_whole_and_not_copied(tmp_path):
    made = element_maps(line_images())
    made.save(tmp_path / "maps.hspy")
    loaded = hs.load(tmp_path / "maps.hspy")
    assert_element_maps(loaded, TRUTH, NAMES)
    assert list(loaded.metadata.Element_maps.xray_lines) == ["Fe_Ka", "O_Ka", "Pt_La"]
    element_maps(images()).save(tmp_path / "maps.hspy")
    loaded = hs.load(tmp_path / "maps.hspy")
    pixels = loaded.data
    assert np.shares_memory(element_maps(loaded).data, pixels)
    assert not np.shares_memory(element_maps(loaded, ["Fe", "O"]).data, pixels)


def test_quantities_of_maps():
    source = [image(d, f"atomic percent of {n}", [n]) for d, n in zip(TRUTH, NAMES, strict=True)]
    for m in source:
        m.metadata.Signal.quantity = "X-rays (Counts)"
    result = element_maps(source)
    assert codes(result) == ["compositions"] and not result.metadata.has_item("Signal.quantity")
    for quantities, expected in ((["Counts", "at.%", "at.%"], ["quantities-differ"]), (["Counts", "", "Counts"], [])):
        source = images()
        for m, quantity in zip(source, quantities, strict=True):
            m.metadata.Signal.quantity = quantity
        maps = element_maps(source)
        assert codes(maps) == expected and not maps.metadata.has_item("Signal.quantity")


def test_elements_select_from_what_knows_its_elements():
    chosen = ["Pt", "Fe"]
    for source in (SOURCES["dict"](), SOURCES["dict of lines"](), SOURCES["ElementMaps"]()):
        assert_element_maps(element_maps(source, chosen), TRUTH[[2, 0]], chosen)
        with pytest.raises(ValueError, match="There is no map of Cu: the source has Fe, O, Pt"):
            element_maps(source, ["Cu"])
    for source in (images(), line_images(), stacked(images()), stacked(line_images())):
        assert_element_maps(element_maps(source, ["Pt", "O"]), TRUTH[[2, 1]], ["Pt", "O"])
    lines = [image(FE, lines=["Fe_Ka"]), image(O, lines=["O_Ka"]), image(PT, lines=["Fe_Kb"])]
    assert_element_maps(element_maps(lines, ["Fe"]), [FE + PT], ["Fe"])


@pytest.mark.parametrize("dtype, elements", [("u2", None), ("u8", NAMES), ("f4", NAMES)])
def test_whole_element_maps_in_memory_share_their_pixels(dtype, elements):
    made = element_maps(images())
    made.data = TRUTH.astype(dtype)
    made.metadata.set_item("General.notes", "kept")
    result = element_maps(made, elements)
    assert result is not made
    assert np.shares_memory(result.data, made.data)
    assert result.data.dtype == made.data.dtype
    assert_element_maps(result, TRUTH, NAMES)
    assert str(result.metadata) == str(made.metadata)
    assert result.axes_manager.as_dictionary() == made.axes_manager.as_dictionary()


def test_maps_taken_before_do_not_change_with_their_source():
    made = element_maps(images())
    taken = element_maps(made)
    before = picture(taken)
    made.metadata.Sample.elements[0] = "U"
    made.metadata.General.title = "other"
    made.axes_manager[-1].scale = 99
    made.crop("width", 0, 2)
    made.data = 3 * made.data
    assert picture(taken) == before


@pytest.mark.parametrize("dtype", ["i8", ">f4"])
def test_a_list_of_maps_is_copied_once(dtype):
    names = ["C", "N", "O", "Fe", "Co", "Ni", "Cu", "Zn"]
    source = [hs.signals.Signal2D(np.ones((400, 400), dtype)) for _ in names]
    element_maps(source, names)  # for the imports
    tracemalloc.start()
    result = element_maps(source, names)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.data.nbytes < peak < 1.25 * result.data.nbytes


def fused(title="Fused maps of grain"):
    made = element_maps(images())
    made.metadata.General.title = title
    made.metadata.set_item("Fusion.method", "published")
    return made


@pytest.mark.parametrize(
    "make, title",
    [
        (lambda: fused(), "Element maps of grain"),
        (lambda: fused("Fused maps of Fused maps of grain"), "Element maps of grain"),
        (lambda: fused("Fused maps"), "Element maps of Fe, O, Pt"),
        (lambda: fused("my maps"), "my maps"),
        (lambda: fused().inav[:2], "Element maps of grain"),
        (lambda: fused().as_lazy(), "Element maps of Fe, O, Pt"),
        (lambda: fused().split(), "Element maps of Fe, O, Pt"),
        (lambda: fused().get_map("Fe"), "Element maps of Fe"),
    ],
    ids=["whole", "twice", "untitled", "renamed", "slice", "lazy", "split", "one map"],
)
def test_the_result_of_a_fit_warns_once_and_leaves_the_fit(make, title):
    source = make()
    result = element_maps(source)
    assert codes(result) == ["fused-already"]
    assert result.metadata.General.title == title
    assert not result.metadata.has_item("Fusion")
    assert all(signal.metadata.has_item("Fusion") for signal in signals_of(source))


def test_maps_of_different_lines_of_one_element_are_added(caplog):
    caplog.set_level("INFO", "hyperspy_fusion")
    full = np.full((3, 4), 200, dtype="u1")
    source = [image(full, lines=["Fe_Ka"]), image(O, lines=["O_Ka"]), image(full, lines=["Fe_Kb"])]
    result = element_maps(source)
    assert_element_maps(result, [np.full((3, 4), 400), O], ["Fe", "O"])
    assert "The Fe map is the sum of Fe_Ka, Fe_Kb" in caplog.text
    assert list(result.metadata.Element_maps.xray_lines) == ["Fe_Ka+Fe_Kb", "O_Ka"]


def eds_model():
    signal = eds("f4", elements=["Fe", "O"])
    model = signal.inav[:2, :2].create_model(auto_background=False)
    for k, name in enumerate(("Fe_Ka", "Fe_La", "O_Ka")):
        amplitude = model[name].A.map
        amplitude["values"] = np.arange(4).reshape(2, 2) + 10 * k
        amplitude["is_set"] = True
    return model


def test_an_eds_model_gives_the_areas_of_its_lines():
    model = eds_model()
    n = np.arange(4).reshape(2, 2)
    assert_element_maps(element_maps(model), [n + n + 10, n + 20], ["Fe", "O"])
    assert_element_maps(element_maps(model, ["O", "Fe"]), [n + 20, n + n + 10], ["O", "Fe"])
    assert_element_maps(element_maps(model, xray_lines=["O_Ka", "Fe_La"]), [n + 20, n + 10], ["O", "Fe"])
    model.signal.metadata.set_item("Sample.xray_lines", ["Fe_Ka"])
    assert_element_maps(element_maps(model), [n, n + 20], ["Fe", "O"])
    assert element_maps(model).metadata.General.title == "Element maps of grain"


def test_an_eels_model_gives_one_edge_per_element():
    model = eels(("Zn", "Cu")).inav[:2, :2].create_model(GOS="hydrogenic", auto_background=False)
    # a second, independent edge of an element; the hydrogenic ones have only one each
    model.append(exspy.components.EELSCLEdge("Zn_L1", GOS="hydrogenic"))
    for k, name in enumerate(("Cu_L3", "Zn_L3", "Zn_L1")):
        intensity = model[name].intensity.map
        intensity["values"] = np.arange(4).reshape(2, 2) + 10 * k
        intensity["is_set"] = True
    n = np.arange(4).reshape(2, 2)
    assert_element_maps(element_maps(model), [n, n + 10], ["Cu", "Zn"])
    assert_element_maps(element_maps(model, ["Zn"]), [n + 10], ["Zn"])
    model.signal.metadata.Signal.quantity = "Intensity (Counts)"
    metadata = element_maps(model).metadata
    assert metadata.Acquisition_instrument.TEM.beam_energy == 200
    assert not metadata.has_item("Signal.quantity")
    assert model.signal.metadata.Signal.quantity == "Intensity (Counts)"


def test_models_without_fit_or_elements_are_refused():
    with pytest.raises(ValueError, match=r"not fitted at every pixel: call `m.multifit\(\)`"):
        element_maps(eels().create_model(GOS="hydrogenic", auto_background=False))
    with pytest.raises(ValueError, match="no components of known elements"):
        element_maps(hs.signals.Signal1D(np.ones((3, 4, 9))).create_model())
    with pytest.raises(ValueError, match="Cu_Ka is not fitted in"):
        element_maps(eds_model(), xray_lines=["Cu_Ka"])
    with pytest.raises(ValueError, match="There is no map of Cu"):
        element_maps(eds_model(), ["Cu"])


HASH_SCRIPT = """
import numpy as np, hyperspy.api as hs, exspy
from hyperspy_fusion import element_maps
s = exspy.signals.EELSSpectrum(np.ones((2, 2, 150)))
s.axes_manager[-1].scale, s.axes_manager[-1].offset = 8.0, 500.0
s.set_microscope_parameters(beam_energy=200, convergence_angle=29, collection_angle=36)
s.add_elements(["Cu", "Zn", "Fe", "O", "Mn"])
m = s.create_model(GOS="hydrogenic", auto_background=False)
for c in m:
    c.intensity.map["values"], c.intensity.map["is_set"] = ord(c.name[0]) + ord(c.name[1]), True
maps = element_maps(m)
print(list(s.metadata.Sample.elements))
print(list(maps.metadata.Sample.elements), maps.data[:, 0, 0].tolist())
"""


@pytest.mark.nightly
def test_maps_of_eels_models_do_not_depend_on_hashes():
    answers = []
    for seed in ("0", "1"):
        command = [sys.executable, "-W", "ignore", "-c", HASH_SCRIPT]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        answers.append(run.stdout.splitlines()[-2:])
    assert len({order for order, _ in answers}) > 1, "exspy's order no longer depends on hashes"
    assert {maps for _, maps in answers} == {
        str(["Cu", "Fe", "Mn", "O", "Zn"])
        + " "
        + str([float(ord(a) + ord(b)) for a, b in ("Cu", "Fe", "Mn", "O_", "Zn")])
    }


def with_pixel(value):
    data = FE.copy()
    data[1, 2] = value
    return image(data)


AREAS = "so they show different areas: pass maps of one area, or correct the offset"


def rescaled(factor):
    signal = image(O)
    for axis in signal.axes_manager.signal_axes:
        axis.scale *= factor
    return signal


@pytest.mark.parametrize(
    "source, elements, error, sentence",
    [
        ([], None, ValueError, "There are no maps"),
        (None, None, TypeError, "HyperSpy signal is needed, got NoneType"),
        ([FE], ["Fe"], TypeError, r"wrap an array as hyperspy.api.signals.Signal2D\(array\)"),
        ([image(FE), image(FE).isig[:3]], ["Fe", "O"], ValueError, r"Map 2 has the shape \(3, 3\) and map 1 \(3, 4\)"),
        ([image(FE), rescaled(2.0)], ["Fe", "O"], ValueError, "Map 2 has pixels of 1 nm and map 1 of 0.5 nm"),
        ([image(FE)], ["Xx"], ValueError, "'Xx' is not the symbol of a chemical element"),
        ({"Xx": image(FE)}, None, ValueError, "'Xx' is not the symbol"),
        ({"Fe_Kz": image(FE)}, None, ValueError, "'Fe_Kz' is not an X-ray line of Fe"),
        ({1: image(FE)}, None, TypeError, "The keys of the dict of maps must be a list of names"),
        ([image(FE, elements=["Unknown"])], None, ValueError, "'Unknown' is not the symbol"),
        ([image(FE, "Sum"), image(O, "O")], None, ValueError, r"Cannot tell the element of map 1 \('Sum'\): name"),
        ([image(FE, "Fe"), image(O, "Fe")], None, ValueError, "Fe is repeated by map 1 .* and map 2 .*keep one"),
        ([image(FE, lines=["Fe_Ka"])] * 2, None, ValueError, "Fe is repeated"),
        (images(), ["Fe", "Cu"], ValueError, "names 2 elements for 3 maps"),
        (images()[:2] + [image(PT)], ["Fe"], ValueError, "names 1 element for 3 maps: name every map"),
        (images(), [], ValueError, r"elements is \[\], which is empty: name at least one"),
        (eds(elements=["Fe"]), (), ValueError, r"elements is \(\), which is empty"),
        ([images()[0], eds()], np.array([], "U2"), ValueError, "elements is .* which is empty"),
        (images()[0], NAMES, ValueError, "names 3 elements for 1 map: name"),
        (images(), ["Fe", "Fe"], ValueError, "names Fe 2 times"),
        ("maps.hspy", None, TypeError, "got the path 'maps.hspy': load it first with hyperspy.api.load"),
        ([images()], None, TypeError, "got a list of 3: pass one of its signals"),
        ([image(FE).isig[:2], image(O).isig[2:]], NAMES[:2], ValueError, AREAS),
        (hs.signals.Signal2D(TRUTH), ["Fe", "O"], ValueError, "names 2 elements for 3 maps"),
        (images(), [26, 8, 78], TypeError, r"elements must be a list of names such as \['Fe', 'O'\]"),
        ([with_pixel(np.nan)], ["Fe"], ValueError, "Map 1 has 1 of 12 pixels that are NaN, infinite or masked"),
        ([rgb()], ["Fe"], TypeError, "RGB picture"),
        (hs.signals.Signal1D(FE), ["Fe"], ValueError, "cannot be read as element maps"),
        (hs.signals.Signal2D(np.zeros((2, 2, 3, 4))), NAMES, ValueError, "cannot be read as element maps"),
        ([hs.signals.Signal2D(TRUTH)], ["Fe"], ValueError, r"is not one image.*\.inav"),
        ([images()[0], eds()], None, ValueError, "name no elements: pass elements="),
        (element_maps(images()).T, None, ValueError, "is a transposed stack of maps"),
    ],
)
def test_bad_input_is_refused_with_one_sentence(source, elements, error, sentence):
    with pytest.raises(error, match=sentence) as raised:
        element_maps(source, elements)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("title", ["Gatan HAADF", "BF", "DF4", "adf image"])
def test_a_haadf_image_is_no_map(title):
    haadf = image(FE, title)
    for source in (haadf, haadf.T):
        for elements in (None, ["Fe"], NAMES):
            with pytest.raises(ValueError, match=f"is titled '{title}', so haadf and maps look swapped: pass it as"):
                element_maps(source, elements)
    among = "Map 2 is titled .*, so the HAADF image looks to be among the maps"
    for source in ([images()[0], haadf], stacked([images()[0], haadf]), {"Fe": images()[0], "O": haadf}):
        with pytest.raises(ValueError, match=among):
            element_maps(source)


def test_areas_and_elements_of_two_maps():
    with pytest.raises(ValueError, match="Fe is repeated by two"):
        element_maps([spectra(), image(FE, "Fe")])
    with pytest.raises(ValueError, match="Fe could be of any of the 2 spectrum images"):
        element_maps([spectra(), spectra()], ["Fe"])
    wide = [image(d, n) for d, n in zip(TRUTH, NAMES, strict=True)]
    with pytest.raises(ValueError, match=AREAS) as raised:
        element_maps([wide[0].isig[:2], wide[1].isig[2:]])
    assert "begins at (3 nm, 0 nm) and map 1 ('Fe') at (3 nm, -1 nm) (y, x), 2 pixels apart" in str(raised.value)
    assert_element_maps(element_maps([m.isig[2:] for m in wide]), TRUTH[:, :, 2:], NAMES)
    for title in ("Fe_Ka beside HAADF", "BFO film", "DFT", "SADF_x", "Fe"):
        assert element_maps([image(FE, title)], ["Fe"]).elements == ["Fe"]


def spectra():
    return eds(elements=["Fe", "O"], lines=["Fe_Ka", "O_Ka"])


def test_spectra_and_maps_of_one_scan_make_one_set_of_maps():
    fe, o = element_maps(spectra()).data
    assert_element_maps(element_maps([spectra(), image(PT, "Pt")]), [fe, o, PT], NAMES)
    assert_element_maps(element_maps([spectra(), image(PT, "Pt")], ["Pt", "Fe"]), [PT, fe], ["Pt", "Fe"])
    assert element_maps([image(O, "O"), spectra()], ["O"]).elements == ["O"]
    stacks = [element_maps(spectra(), ["Fe"]), element_maps([image(O, "O")]), image(PT, "Pt")]
    assert_element_maps(element_maps(stacks), [fe, O, PT], NAMES)


def test_edges_and_xray_lines_go_to_their_spectra():
    maps = element_maps([spectra(), eels()], xray_lines=["Fe_La"], edges=["Cu_L3"])
    assert maps.elements == ["Fe", "Cu"]
    np.testing.assert_array_equal(maps.data[1], element_maps(eels(), edges=["Cu_L3"]).data[0])
    np.testing.assert_array_equal(maps.data[0], element_maps(spectra(), xray_lines=["Fe_La"]).data[0])
    with pytest.raises(ValueError, match="edges could be of any of the 2 EELS"):
        element_maps([eels(), eels()], edges=["Cu_L3"])
    with pytest.raises(ValueError, match="edges is for an EELS spectrum image, and the source is a list"):
        element_maps([spectra(), image(PT, "Pt")], edges=["Cu_L3"])


def test_arguments_of_another_kind_of_source_are_refused():
    for arguments in ({"xray_lines": ["Fe_Ka"]}, {"edges": ["Fe_L3"]}, {"integration_windows": 1.2}):
        (keyword,) = arguments
        for source in (images(), images()[0], SOURCES["dict"](), element_maps(images())):
            with pytest.raises(ValueError, match=f"{keyword} is for an E.*, and the source is .*: leave it out"):
                element_maps(source, **arguments)
    with pytest.raises(ValueError, match="edges is for an EELS spectrum image"):
        element_maps(spectra(), edges=["Fe_L3"])
    with pytest.raises(ValueError, match="xray_lines is for .*edges by edges="):
        element_maps(eels(), xray_lines=["Cu_Ka"])
    with pytest.raises(ValueError, match="background is for spectra or maps, and the source is a fitted EDS model"):
        element_maps(eds_model(), background="windows")


def test_each_diagnostic_is_kept_once(caplog):
    maps = element_maps([image(FE, "O", ["Fe"]), image(O, "Fe", ["O"])])
    kept = maps.metadata.Element_maps.diagnostics
    assert codes(maps) == ["title-conflicts"] * 2 and list(kept.severities) == ["serious"] * 2
    assert list(kept.elements) == ["Fe", "O"] and list(kept.sentences) == warnings_of(maps)
    assert [record.code for record in caplog.records] == codes(maps)
    source = [image(FE, "O", ["Fe"], ["Fe_Ka"]), image(PT, "O", ["Fe"], ["Fe_Kb"])]
    assert codes(element_maps(source)) == ["title-conflicts"]
    caplog.clear()
    axes = [[{"size": n, "scale": scale, "units": "nm"} for n in (40, 40)] for scale in (0.5, 0.52)]
    maps = element_maps(
        {e: hs.signals.Signal2D(np.ones((40, 40)), axes=a) for e, a in zip(("Fe", "O"), axes, strict=True)}
    )
    assert codes(maps) == ["pixel-size-differs"] and not warnings_of(maps) and not caplog.records


def test_diagnostics_stay_with_maps_made_of_maps(caplog, tmp_path):
    made = element_maps([image(FE, "O", ["Fe"]), image(PT, "Pt", ["Pt"])])
    sentences = warnings_of(made)
    made.save(tmp_path / "maps.hspy")
    caplog.clear()
    for source in (made, made.inav[:1], made.as_lazy(), hs.load(tmp_path / "maps.hspy"), [made, image(O, "O")]):
        again = element_maps(source)
        assert codes(again) == ["title-conflicts"] and warnings_of(again) == sentences
    assert not caplog.records
    made.metadata.set_item("Fusion.method", "published")
    assert codes(element_maps(made)) == ["title-conflicts", "fused-already"]
    assert codes(made) == ["title-conflicts"]


@pytest.mark.parametrize("units, pixels", [("nm", 0.6), ("pm", 3)])
def test_maps_less_than_a_pixel_apart_or_in_other_units_warn(units, pixels):
    other = image(O, "O")
    for axis in other.axes_manager.signal_axes:
        axis.offset += pixels * axis.scale
        axis.convert_to_units(units)
    assert codes(element_maps([image(FE, "Fe"), other])) == ["offset-differs"]


def test_damaged_element_maps_are_refused():
    damaged = element_maps(images())
    damaged.data[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN, infinite or masked"):
        element_maps(damaged)
    del damaged.metadata.Sample.elements
    with pytest.raises(ValueError, match="Cannot tell the element"):
        element_maps(damaged)
    model = eds_model()
    before = picture(model.signal), model["Fe_Ka"].A.map.tobytes()
    element_maps(model).data[...] = 0
    assert (picture(model.signal), model["Fe_Ka"].A.map.tobytes()) == before
    elements, lines = ["Fe", "O"], ["Fe_Ka", "Fe_La"]
    element_maps(eds(), elements, xray_lines=lines)
    assert (elements, lines) == (["Fe", "O"], ["Fe_Ka", "Fe_La"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_without_a_number_are_nan_where_allowed(value):
    expected = [with_pixel(np.nan).data, O]
    sources = [with_pixel(value), image(O)]
    for source in (sources, [s.as_lazy() for s in sources], dict(zip(("Fe", "O"), sources, strict=True))):
        maps = element_maps(source, ["Fe", "O"], allow_nan=True)
        np.testing.assert_array_equal(maps.data, expected)
    maps.data[0][np.isnan(maps.data[0])] = value
    again = element_maps(maps, allow_nan=True)
    np.testing.assert_array_equal(again.data, expected)
    # the pixels of a whole stack are shared, unless they had to change
    assert np.shares_memory(again.data, maps.data) == np.isnan(value)


def signals_of(source):
    if isinstance(source, dict):
        return list(source.values())
    return source if isinstance(source, list | tuple) else [source]


def picture(signal):
    """Everything of a signal, for comparing before and after."""
    return (
        signal.data.tobytes() if not signal._lazy else signal.data.name,
        signal.data.dtype,
        signal.axes_manager.as_dictionary(),
        str(signal.metadata),
        str(signal.original_metadata),
        type(signal),
    )


UNTOUCHED = {
    **SOURCES,
    "spectra": lambda: eds(elements=NAMES),
    "big-endian spectra": lambda: eds(">u2", elements=NAMES, lines=["Fe_Ka", "O_Ka"]),
    "one map": lambda: images()[0],
}


@pytest.mark.parametrize("make", UNTOUCHED.values(), ids=UNTOUCHED)
def test_the_source_is_not_changed(make):
    for lazy in (False, True):
        _assert_not_changed(lazily(make()) if lazy else make(), lazy)


def _assert_not_changed(source, lazy):
    for signal in signals_of(source):
        signal.metadata.set_item("Acquisition_instrument.TEM.currents", np.zeros(2))
    before = [picture(signal) for signal in signals_of(source)]
    result = element_maps(source)
    if result.metadata.Signal.signal_type != getattr(source, "_signal_type", "") or lazy:  # else the pixels are shared
        result.data[...] = 0
    result.metadata.Sample.elements.append("U")
    result.metadata.Acquisition_instrument.TEM.currents[:] = 1
    result.axes_manager[-1].scale = 99
    assert [picture(signal) for signal in signals_of(source)] == before


def test_real_eels_components_are_named_by_their_titles():
    source = [hs.load(shared(f"data/{name}_map.hspy")) for name in ("Zn", "Cu")]
    result = element_maps(source)
    assert_element_maps(result, [m.data for m in source], ["Zn", "Cu"])
    assert result.metadata.General.title == "Element maps of Zn, Cu"
    cu, zn = (hs.load(shared(f"data/{name}_map.hspy")) for name in ("Cu", "Zn"))
    exchanged = r"Map 1 is titled 'intensity parameter of Cu_L3 component' but is named Zn: check the order"
    with pytest.raises(ValueError, match=exchanged):
        element_maps([cu, zn], ["Zn", "Cu"])
    with pytest.raises(ValueError, match=exchanged):
        element_maps({"Zn": cu, "Cu": zn})
    assert element_maps([cu, zn], ["Zn"]).elements == ["Zn"]


@pytest.mark.parametrize("name", ["L2083-K-4-1_tilt0", "bruker_test_TEM"])
def test_swapped_arguments_from_a_real_file_are_told(name):
    haadf, spectra = hs.load(shared(f"data/{name}.bcf"), lazy=True)
    with pytest.raises(ValueError, match="haadf and maps look swapped"):
        element_maps(haadf, ["Fe", "Mg", "Si", "O"])
    with pytest.raises(ValueError, match="haadf and maps look swapped"):
        element_maps([haadf, spectra])
