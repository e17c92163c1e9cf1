"""Claims about elements: known symbols only, and no map gets the name of another."""

import re

import hyperspy.api as hs
import numpy as np
import pytest
from sources import FE, NAMES, TRUTH, O, assert_element_maps, codes, eels, image, images, stacked, warnings_of

from hyperspy_fusion import element_maps
from hyperspy_fusion.identify.elements import atomic_number, check_line

SPELT = {
    "fe": "Fe",
    "FE": "Fe",
    "iron": "Fe",
    "Oxygen": "O",
    "o ": "O",
    "Aluminium": "Al",
    "caesium": "Cs",
    "Sulphur": "S",
}


def test_symbols_and_other_spellings_of_elements():
    assert [atomic_number(s) for s in ("H", "O", "Fe", "Pt", "U")] == [1, 8, 26, 78, 92]
    for symbol, near in SPELT.items():
        with pytest.raises(ValueError, match=rf"{symbol!r} is not the symbol .*: did you mean {near}\?$"):
            atomic_number(symbol)
    for symbol, near in (("Irn", "Fe"), ("Oxigen", "O")):
        with pytest.raises(ValueError, match=rf"{symbol!r} is not the symbol .*did you mean .*\b{near}\b"):
            atomic_number(symbol)
    for symbol in ("Fe.General_properties", "", 26):
        with pytest.raises(ValueError, match="is not the symbol of a chemical element"):
            atomic_number(symbol)


@pytest.mark.parametrize(
    "line, meant",
    [
        ("Cu_K", "Cu: did you mean Cu_Ka or Cu_Kb?"),
        ("Cu-L3", "Cu: did you mean Cu_La, Cu_Lb1, Cu_Lb3, Cu_Ll or Cu_Ln?"),
        *[(spelt, "Cu: did you mean Cu_Ka?") for spelt in ("Cu-Ka", "CuKa", "CU_KA", "Cu_Ka1", "Cu_Kα")],
        ("Pt_Lb", "Pt: did you mean Pt_Lb1, Pt_Lb2, Pt_Lb3 or Pt_Lb4?"),
        ("C_L3", "C: expected one of C_Ka."),
        ("Li_Ka", "Li: exspy knows none."),
    ],
)
def test_a_line_that_is_none_is_answered_with_those_of_its_shell(line, meant):
    with pytest.raises(ValueError) as error:
        check_line(line)
    assert str(error.value) == f"{line!r} is not an X-ray line of {meant}"
    with pytest.raises(ValueError, match=f"did you mean {meant.partition(':')[0]}\\?$"):
        atomic_number(line)


def test_no_edge_is_answered_with_those_of_its_shell():
    for edge, meant in {
        "cu-l3": "did you mean Cu_L3?",
        "Mn_L": "did you mean Mn_L2, Mn_L3 or Mn_L1?",
        "Fe_Ka": "did you mean Fe_K?",
        "Cu_K": "expected one of Cu_M2, Cu_L2, Cu_L3, Cu_M3, Cu_L1.",
    }.items():
        with pytest.raises(ValueError) as error:
            element_maps(eels(), edges=[edge])
        assert str(error.value).endswith(f"that exspy knows: {meant}")


@pytest.mark.parametrize(
    "title, elements, lines, expected",
    [
        ("Ti", ["O"], ["Fe_Ka"], "Fe"),
        ("Ti", ["O"], ["Fe_Ka", "Pt_La"], "O"),
        ("Ti", ["O", "Fe"], [], "Ti"),
        ("intensity parameter of Cu_L3 component", [], [], "Cu"),
        ("Fe_Ka at 6.40 keV", [], [], "Fe"),
        ("Fe Kα1", [], [], "Fe"),
        ("O-Ka", [], [], "O"),
        (" Ti ", [], [], "Ti"),
    ],
)
def test_a_single_line_or_element_or_the_title_names_a_map(title, elements, lines, expected):
    result = element_maps(image(FE, title, elements, lines))
    assert list(result.metadata.Sample.elements) == [expected]


def test_given_names_and_conflicts():
    source = [image(FE, "O", ["Fe"]), image(O, "window", ["Fe", "O"]), image(FE)]
    assert not codes(element_maps(source, ["O", "Pt", "Al"]))
    assert_element_maps(element_maps(images(), ["Cu", "Zn", "Al"]), TRUTH, ["Cu", "Zn", "Al"])
    assert_element_maps(element_maps(stacked(images()), ["Cu", "Zn", "Al"]), TRUTH, ["Cu", "Zn", "Al"])
    assert_element_maps(element_maps(image(FE, "O"), "Fe"), TRUTH[:1], ["Fe"])
    source = [image(FE), image(O)]
    source[0].metadata.Sample.elements = np.array([b"Fe"])
    source[1].metadata.Sample.xray_lines = np.array(["O_Ka"])
    assert_element_maps(element_maps(source), TRUTH[:2], NAMES[:2])
    for source, elements in (([image(FE, "O", ["Fe"])], ["O"]), ({"O": image(FE, "O", ["Fe"])}, None)):
        maps = element_maps(source, elements)
        assert_element_maps(maps, TRUTH[:1], ["O"])
        assert not codes(maps)
    for title in ("Fe", "Fe_Ka", "O_Ka window", "sum of O_Ka", "", "HAADF"):
        assert not codes(element_maps([image(FE, title, ["Fe"])]))
    source = [image(FE, lines=["Fe_Ka"])]
    assert list(element_maps(source, ["Fe"]).metadata.Element_maps.xray_lines) == ["Fe_Ka"]
    assert not element_maps(source, ["O"]).metadata.has_item("Element_maps.xray_lines")
    compounds = ("ThO2", "Th O2", "UO2", "U O2", "PuO2", "Pu O2", "Np-O2", "Ti_O2", "U_O2", "Ba N4", "Fe2O3", "Fe O")
    others = (
        "Map B",
        "Si N",
        "C K N",
        "Image C",
        "IMG1",
        "fe map",
        "Feb map",
        "As counts",
        "In sum",
        "EDS B",
        "EDS Sum",
    )
    not_named = ("", "STEM", "Sum", "Cu_L3 and Zn_L3", "SiN_K", "Xx_Ka", "In situ", "As received", "CL", "PL", "SEM")
    for title in (*not_named, *others, *compounds, "10 Pa", "300 K", "26 Pt", "Gold film"):
        with pytest.raises(ValueError, match="Cannot tell the element of map 1"):
            element_maps([image(FE, title)])


CONFLICTS = {
    "elements": (lambda: [image(FE, "O", ["Fe"])], ["Fe"]),
    "line": (lambda: [image(FE, " O ", lines=["Fe_Ka"])], ["Fe"]),
    "line in the title": (lambda: [image(FE, "O_Ka", ["Fe"])], ["Fe"]),
    "stack": (lambda: stacked([image(FE, "O", ["Fe"]), image(O, "Pt", ["Pt"])]), ["Fe", "Pt"]),
}


@pytest.mark.parametrize("make, taken", CONFLICTS.values(), ids=CONFLICTS)
def test_a_title_of_another_element_than_the_metadata_warns(make, taken):
    maps = element_maps(make())
    assert maps.elements == taken and codes(maps) == ["title-conflicts"]
    assert "elements=['O', ...]" in warnings_of(maps)[0]


VENDORS = {
    "Fe": ["Fe K", "Fe-EELS", "Fe Kα1", "Fe K series", "Fe map", "Fe EDS map", "map of Fe", "atomic percent of Fe",
           "Fe at.%", "FeK", "FeKα1", "Fe_K", "Fe K (frame1)", "Fe(frame1)", "Fe (raw)", "Fe-L3 edge", "Fe L",
           "26 Fe", "Iron", "iron map", "Map Iron", "Fe%", "Fe K alpha"],
    "O": ["8 O", "Oxygen", "Map Oxygen", "O K", "O-EELS", "O map", "Elemental map of O", "O wt%", "OK", "O Kα1"],
    "C": ["C K", "C Kα1_2", "CK"],
    "K": ["K", "K K", "KK", "K map"],
    "Pt": ["Pt L", "Pt M", "PtL", "Pt Mα1", "Pt Wt%", "Pt Atomic %", "Pt Atomic Percent", "Pt norm. wt%", "Map Pt",
           "EDS Pt", "EDS Map: Pt L", "Image Pt", "78 Pt", "78-Pt", "Pt Lalpha", "Platinum", "Platinum L"],
    "Ba": ["Ba N45", "Ba M", "Ba N4 edge"],
    "In": ["In map", "In L", "In at.%", "In", "Indium counts"],
    "As": ["As map", "As K"],
    "S": ["sulphur", "Sulfur K"],
}  # fmt: skip


@pytest.mark.parametrize("symbol", VENDORS)
def test_titles_of_vendors_name_their_element(symbol):
    for title in VENDORS[symbol]:
        maps = [image(FE, title), image(O, "Al")]
        assert element_maps(maps).elements == [symbol, "Al"]
    for title in VENDORS[symbol][:2]:
        maps = [image(FE, title), image(O, "Al")]
        with pytest.raises(ValueError, match=f"Map 1 is titled {re.escape(repr(title))} but is named Al: check the"):
            element_maps(maps, ["Al", symbol])
        assert "title-conflicts" in codes(element_maps([image(FE, title, ["Al"])]))


def test_names_in_another_order_than_the_titles_are_refused():
    titles = ("Pt L", "Fe K", "O K")
    with pytest.raises(ValueError, match="Map 1 is titled 'Pt L' but is named Fe: check the order of elements"):
        element_maps([image(m, title) for m, title in zip(TRUTH, titles, strict=True)], ["Fe", "Pt", "O"])


EXCHANGED = {
    "titles": lambda: [image(FE, "intensity parameter of Fe_L3 component"), image(O, "O_K")],
    "elements": lambda: [image(FE, elements=["Fe"]), image(O, elements=["O"])],
    "lines": lambda: [image(FE, lines=["Fe_Ka"]).T, image(O, lines=["O_Ka"]).T],
    "one that tells": lambda: [image(FE, "Fe"), image(O, "no name")],
    "stack": lambda: stacked([image(FE, "Fe"), image(O, "O")]),
}


@pytest.mark.parametrize("make", EXCHANGED.values(), ids=EXCHANGED)
def test_names_in_a_wrong_order_are_refused(make):
    for names in (["O", "Fe"], ["Pt", "Fe"]):
        with pytest.raises(ValueError, match=f"Map 1 .*Fe.* but is named {names[0]}: check the order of elements"):
            element_maps(make(), names)
    assert element_maps(make(), ["Fe", "O"]).elements == ["Fe", "O"]


def test_keys_and_names_in_a_wrong_order_are_refused():
    fe, o = images()[:2]
    for keys in (["O", "Fe"], ["O_Ka", "Fe_Ka"]):
        with pytest.raises(ValueError, match="Map 1 has Fe as its metadata.Sample.elements but is named O: check the"):
            element_maps(dict(zip(keys, [fe, o], strict=True)))
    with pytest.raises(ValueError, match="Map 1 .* named O"):
        element_maps(images(), ["O", "Pt", "Fe"])
    maps = element_maps([image(data, "Fe", ["Fe"]) for data in TRUTH], ["O", "Fe", "Pt"])
    assert_element_maps(maps, TRUTH, ["O", "Fe", "Pt"])
    assert codes(maps) == ["name-conflicts"] * 2


@pytest.mark.parametrize("make", [images, lambda: stacked(images())], ids=["list", "stack"])
def test_a_name_that_contradicts_the_map_alone_is_used(make):
    maps = element_maps(make(), ["Fe", "Cu", "Pt"])
    assert maps.elements == ["Fe", "Cu", "Pt"] and codes(maps) == ["name-conflicts"]
    assert "Map 2 has O as its metadata.Sample.elements but is named Cu" in warnings_of(maps)[0]


@pytest.mark.parametrize(
    "part, names",
    [
        (slice(1, None), ["O", "Pt"]),
        (slice(None, None, 2), ["Fe", "Pt"]),
        (slice(None, None, -1), ["Pt", "O", "Fe"]),
        (slice(2, 3), ["Pt"]),
    ],
)
@pytest.mark.parametrize("make", [lambda: stacked(images()), lambda: element_maps(images())])
def test_slices_of_a_stack_keep_their_elements(make, part, names):
    assert_element_maps(element_maps(make().inav[part]), TRUTH[part], names)


def test_maps_taken_out_of_stacks():
    assert_element_maps(element_maps(element_maps(images()).inav[1]), TRUTH[1:2], ["O"])
    assert_element_maps(element_maps(stacked(images()).split()), TRUTH, NAMES)
    assert_element_maps(element_maps(element_maps(images()).split()), TRUTH, NAMES)
    made = element_maps(images())
    for summed in (made.sum("element"), stacked(images()).inav[:2].sum()):
        with pytest.raises(ValueError, match="Cannot tell the element"):
            element_maps(summed)


@pytest.mark.parametrize("keep", [True, False], ids=["metadata of all", "metadata of the first"])
def test_one_map_of_a_stack_has_not_the_name_of_the_first(keep):
    stack = stacked(images(), stack_metadata=keep)
    assert list(stack.inav[1].metadata.Sample.elements) == ["Fe"]
    with pytest.raises(ValueError, match="Cannot tell the element"):
        element_maps(stack.inav[1])
    if not keep:
        with pytest.raises(ValueError, match="Cannot tell the element"):
            element_maps(stack.inav[1:2])


def test_what_names_a_stack():
    stack = stacked(images(), stack_metadata=False)
    assert list(stack.metadata.Sample.elements) == ["Fe"]
    with pytest.raises(ValueError, match="Cannot tell the element of map 1 of"):
        element_maps(stack)
    stack = hs.signals.Signal2D(TRUTH)
    stack.metadata.set_item("Sample.elements", NAMES)
    assert_element_maps(element_maps(stack), TRUTH, NAMES)
    # each window map lists all elements of the spectra, in an order that is not that of the maps
    windows = [image(data, "window", ["O", "Pt", "Fe"]) for data in TRUTH]
    for keep in (True, False):
        with pytest.raises(ValueError, match="Cannot tell the element"):
            element_maps(stacked(windows, stack_metadata=keep))
    own = hs.signals.Signal2D(TRUTH)
    own.metadata.set_item("Sample.elements", ["O", "Pt", "Fe"])
    own.metadata.Signal.signal_type = "EELS"
    with pytest.raises(ValueError, match="Cannot tell the element"):
        element_maps(own)
    window = eels().isig[940.0:1000.0].sum(-1)
    assert len(window.metadata.Sample.elements) == 2
    with pytest.raises(ValueError, match="Sample.elements lists what the sample contains"):
        element_maps([window])
    assert list(element_maps([window], ["Cu"]).metadata.Sample.elements) == ["Cu"]
