"""Claims about elements: known symbols only, and no map gets the name of another."""

import hyperspy.api as hs
import numpy as np
import pytest
from sources import FE, NAMES, TRUTH, O, assert_element_maps, eels, image, images, stacked

from hyperspy_fusion.elements import atomic_number
from hyperspy_fusion.maps import element_maps

# ---- symbols --------------------------------------------------------------------------------------


def test_atomic_numbers_are_those_of_the_periodic_table():
    assert [atomic_number(s) for s in ("H", "O", "Fe", "Pt", "U")] == [1, 8, 26, 78, 92]


@pytest.mark.parametrize("symbol, near", [("fe", "Fe"), ("FE", "Fe"), ("iron", "Fe"), ("Oxygen", "O")])
def test_an_unknown_element_is_answered_with_the_nearest(symbol, near):
    with pytest.raises(ValueError, match=rf"{symbol!r} is not the symbol .*did you mean .*\b{near}\b"):
        atomic_number(symbol)


@pytest.mark.parametrize("symbol", ["Fe.General_properties", "", 26])
def test_what_is_no_symbol_has_no_atomic_number(symbol):
    with pytest.raises(ValueError, match="is not the symbol of a chemical element"):
        atomic_number(symbol)


# ---- which element a map shows --------------------------------------------------------------------


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
def test_the_single_line_then_the_single_element_then_the_title_name_a_map(title, elements, lines, expected):
    result = element_maps(image(FE, title, elements, lines))
    assert list(result.metadata.Sample.elements) == [expected]


@pytest.mark.parametrize(
    "title", ["", "HAADF", "Sum", "C K", "map of Fe", "Cu_L3 and Zn_L3", "SiN_K", "Xx_Ka", "In situ"]
)
def test_a_title_that_could_be_read_otherwise_names_nothing(title):
    with pytest.raises(ValueError, match="cannot tell the element of map 1"):
        element_maps([image(FE, title)])


def test_elements_argument_is_stronger_than_metadata():
    assert_element_maps(element_maps(images(), ["Cu", "Zn", "Al"]), TRUTH, ["Cu", "Zn", "Al"])
    assert_element_maps(element_maps(stacked(images()), ["Cu", "Zn", "Al"]), TRUTH, ["Cu", "Zn", "Al"])
    assert_element_maps(element_maps(image(FE, "O"), "Fe"), TRUTH[:1], ["Fe"])


def test_old_metadata_of_bytes_and_arrays_are_read():
    source = [image(FE), image(O)]
    source[0].metadata.Sample.elements = np.array([b"Fe"])
    source[1].metadata.Sample.xray_lines = np.array(["O_Ka"])
    assert_element_maps(element_maps(source), TRUTH[:2], NAMES[:2])


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


def test_one_map_taken_out_of_element_maps_is_its_element():
    assert_element_maps(element_maps(element_maps(images()).inav[1]), TRUTH[1:2], ["O"])


def test_sums_over_elements_are_of_no_element():
    made = element_maps(images())
    for summed in (made.sum("element"), stacked(images()).inav[:2].sum()):
        with pytest.raises(ValueError, match="cannot tell the element"):
            element_maps(summed)


@pytest.mark.parametrize("keep", [True, False], ids=["metadata of all", "metadata of the first"])
def test_one_map_cut_from_a_stack_does_not_get_the_name_of_the_first(keep):
    stack = stacked(images(), stack_metadata=keep)
    assert list(stack.inav[1].metadata.Sample.elements) == ["Fe"]
    with pytest.raises(ValueError, match="cannot tell the element"):
        element_maps(stack.inav[1])
    if not keep:
        with pytest.raises(ValueError, match="cannot tell the element"):
            element_maps(stack.inav[1:2])


def test_the_maps_of_a_split_stack_are_told_apart():
    assert_element_maps(element_maps(stacked(images()).split()), TRUTH, NAMES)
    assert_element_maps(element_maps(element_maps(images()).split()), TRUTH, NAMES)


def test_sample_elements_of_other_length_never_name_a_stack():
    stack = stacked(images(), stack_metadata=False)
    assert list(stack.metadata.Sample.elements) == ["Fe"]
    with pytest.raises(ValueError, match="cannot tell the element of map 1 of"):
        element_maps(stack)


def test_a_stack_that_lists_its_maps_is_believed():
    stack = hs.signals.Signal2D(TRUTH)
    stack.metadata.set_item("Sample.elements", NAMES)
    assert_element_maps(element_maps(stack), TRUTH, NAMES)


def test_elements_of_the_specimen_never_name_a_stack_of_its_windows():
    # each window map lists all elements of the spectra, in an order that is not that of the maps
    windows = [image(data, "window", ["O", "Pt", "Fe"]) for data in TRUTH]
    for keep in (True, False):
        with pytest.raises(ValueError, match="cannot tell the element"):
            element_maps(stacked(windows, stack_metadata=keep))
    own = hs.signals.Signal2D(TRUTH)
    own.metadata.set_item("Sample.elements", ["O", "Pt", "Fe"])
    own.metadata.Signal.signal_type = "EELS"
    with pytest.raises(ValueError, match="cannot tell the element"):
        element_maps(own)


def test_an_eels_window_is_not_identified_by_the_elements_of_the_spectra():
    window = eels().isig[940.0:1000.0].sum(-1)
    assert len(window.metadata.Sample.elements) == 2
    with pytest.raises(ValueError, match="Sample.elements lists what the sample contains"):
        element_maps([window])
    assert list(element_maps([window], ["Cu"]).metadata.Sample.elements) == ["Cu"]
