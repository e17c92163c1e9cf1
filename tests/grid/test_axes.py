"""Claims about images and scans: what is an image, and when two of them are of one scan."""

import re
from pathlib import Path

import hyperspy.api as hs
import numpy as np
import pytest
from helpers import shared
from sources import ragged, rgb

from hyperspy_fusion.grid import axes as grids
from hyperspy_fusion.maps.sources import element_maps

PIXELS = np.arange(12.0).reshape(3, 4)


def image(data=PIXELS, scale=0.5, units="nm"):
    axes = [{"size": n, "name": name, "scale": scale, "units": units} for n, name in zip(data.shape, "yx", strict=True)]
    return hs.signals.Signal2D(data, axes=axes, metadata={"General": {"title": "HAADF"}})


def axes(size=(3, 4), scale=0.5, units="nm"):
    return [{"size": n, "name": "a", "scale": scale, "offset": 0.0, "units": units} for n in size]


def non_uniform():
    return hs.signals.Signal2D(PIXELS, axes=[{"axis": [0.0, 1.0, 4.0]}, {"size": 4}])


def with_pixel(value):
    data = PIXELS.copy()
    data[1, 2] = value
    return data


# ---- pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        PIXELS,
        PIXELS.astype("u1"),
        PIXELS.astype("u2"),
        PIXELS.astype(">u2"),
        PIXELS.astype(">f4"),
        np.asfortranarray(PIXELS),
        np.repeat(PIXELS, 2, axis=1)[:, ::2],
    ],
    ids=["f8", "u1", "u2", "big-endian u2", "big-endian f4", "fortran", "strided"],
)
def test_pixels_come_as_they_are_in_native_byte_order(data):
    result = grids.image_array(image(data))
    np.testing.assert_array_equal(result, PIXELS)
    assert result.dtype == data.dtype.newbyteorder("=")
    assert result.dtype.isnative


def test_both_orientations_and_lazy_signals_are_the_same_image():
    for signal in (image(), image().T, image().as_lazy(), image().as_lazy().T):
        result = grids.image_array(signal)
        assert isinstance(result, np.ndarray)
        np.testing.assert_array_equal(result, PIXELS)


def test_read_only_pixels_are_read_and_nothing_is_changed():
    data = PIXELS.astype(">f4")
    data.flags.writeable = False
    signal = image(data)
    before = signal.metadata.as_dictionary(), signal.axes_manager.as_dictionary()
    grids.image_array(signal)
    assert signal.data is data
    assert (signal.metadata.as_dictionary(), signal.axes_manager.as_dictionary()) == before


@pytest.mark.parametrize(
    "signal, error, sentence",
    [
        (PIXELS, TypeError, r"HyperSpy signal is needed, got ndarray: .*Signal2D\(array\)"),
        (image(PIXELS * 1j), TypeError, "is complex"),
        (rgb(), TypeError, "RGB picture"),
        (ragged(), TypeError, "is ragged"),
        (non_uniform(), NotImplementedError, "non-uniform axis"),
        (hs.signals.Signal1D(np.zeros(4)), ValueError, r"not one image: expected dimensions \(\|x, y\)"),
        (hs.signals.BaseSignal(np.zeros(4)).T, ValueError, "not one image"),
        (hs.signals.Signal1D(np.zeros((3, 4))), ValueError, "not one image"),
        (hs.signals.Signal2D(np.zeros((2, 3, 4))), ValueError, r"not one image.*\.inav"),
        (hs.signals.Signal1D(np.zeros((2, 3, 4))), ValueError, "is a spectrum image, .*: haadf and maps look swapped"),
        (
            element_maps(hs.signals.Signal2D(PIXELS), ["Fe"]),
            ValueError,
            "is a stack of element maps, .*: haadf and maps look swapped",
        ),
        ([image(), image()], TypeError, "got a list of 2: pass one of its signals"),
        ("x.bcf", TypeError, "got the path 'x.bcf': load it first with hyperspy.api.load"),
        (Path("x.bcf"), TypeError, "got the path 'x.bcf': load it first"),
        (image(with_pixel(np.nan)), ValueError, "has 1 of 12 pixels that are NaN, infinite or masked"),
        (image(with_pixel(np.inf)), ValueError, "has 1 of 12 pixels"),
        (image(with_pixel(np.nan)).as_lazy(), ValueError, "has 1 of 12 pixels"),
        (image(np.ma.masked_less(PIXELS, 2.0)), ValueError, "has 2 of 12 pixels"),
    ],
)
def test_what_is_no_image_is_refused_with_a_sentence(signal, error, sentence):
    with pytest.raises(error, match=sentence):
        grids.image_array(signal)


@pytest.mark.parametrize(
    "data, dtype",
    [
        (with_pixel(np.nan), "f8"),
        (with_pixel(-np.inf).astype(">f4"), "f4"),
        (np.ma.masked_equal(PIXELS, PIXELS[1, 2]), "f8"),
        (np.ma.masked_equal(PIXELS.astype("u1"), PIXELS[1, 2]), "f4"),
        (np.ma.masked_equal(PIXELS.astype("u4"), PIXELS[1, 2]), "f8"),
    ],
)
def test_pixels_without_a_number_are_nan_where_they_are_allowed(data, dtype):
    signal = image(data)
    signal.data.flags.writeable = False
    for one in (signal, signal.as_lazy()):
        result = grids.image_array(one, allow_nan=True)
        np.testing.assert_array_equal(result, with_pixel(np.nan))
        # HyperSpy has made masked integers float64 on their way to lazy ones
        assert one._lazy or result.dtype == dtype
        assert not isinstance(result, np.ma.MaskedArray)
    with pytest.raises(ValueError, match="fuse with method='calibrated', which leaves them out, or replace them"):
        grids.image_array(signal)


def test_whole_images_are_not_copied_for_gaps():
    assert grids.image_array(image(PIXELS), allow_nan=True) is PIXELS


# ---- axes ------------------------------------------------------------------------------------------


def test_spatial_axes_are_those_of_y_then_x():
    signal = hs.signals.Signal2D(
        PIXELS,
        axes=[
            {"size": 3, "name": "height", "scale": 2.0, "offset": 7.0, "units": "um"},
            {"size": 4, "name": "width", "scale": 3.0, "units": "um"},
        ],
    )
    expected = [
        {"size": 3, "name": "height", "scale": 2.0, "offset": 7.0, "units": "um"},
        {"size": 4, "name": "width", "scale": 3.0, "offset": 0.0, "units": "um"},
    ]
    assert grids.spatial_axes(signal) == expected
    assert grids.spatial_axes(signal.T) == expected


@pytest.mark.parametrize(
    "m, h",
    [
        (axes(), axes()),
        (axes(units="nm"), axes(scale=0.0005, units="um")),
        (axes(units="nm"), axes(scale=0.0005, units="µm")),
        (axes(units="nm"), axes(scale=5.0, units="A")),
        (axes(units="A"), axes(units="Å")),
        (axes(units="nm"), axes(scale=1.0, units="px")),
        (axes(units="pixels"), axes(scale=1.0, units="px")),
        (axes(units="nm"), axes(scale=1.0, units="<undefined>")),
        (axes((100, 100)), axes((100, 100), scale=0.5 * 1.0049)),
        (axes((3, 4)), axes((3, 4), scale=0.5 * 1.1)),
        (axes(units="steps"), axes(units="steps")),
    ],
)
def test_one_scan_is_silent(m, h, caplog):
    assert grids.check_same_scan(m, h) == []
    assert not caplog.records


def test_undefined_units_of_hyperspy_are_no_calibration():
    plain = grids.spatial_axes(hs.signals.Signal2D(PIXELS))
    assert not grids.is_calibrated(plain[0])
    assert grids.check_same_scan(axes(), plain) == []


def moved(by, **kwargs):
    return [{**axis, "offset": by, "name": "other"} for axis in axes(**kwargs)]


@pytest.mark.parametrize(
    "by, kwargs",
    [(0.25, {}), (-0.25, {}), (40.0, {"units": "px"}), (2.5, {"scale": 5.0, "units": "A"})],
    ids=["half a pixel", "and back", "uncalibrated", "in other units"],
)
def test_half_a_pixel_and_offsets_of_uncalibrated_axes_are_no_other_area(by, kwargs, caplog):
    for one_map in (True, False):
        assert grids.check_same_scan(axes(), moved(by, **kwargs), one_map=one_map) == []
    assert not caplog.records


def test_warnings_are_collected_within_the_context_only(caplog):
    with pytest.raises(ValueError), grids.collected_warnings() as failed:
        grids.warn("First.")
        raise ValueError
    with grids.collected_warnings() as found:
        grids.warn("100 % second.")
    grids.warn("Third.")
    assert (failed, found) == (["First."], ["100 % second."])
    assert [record.getMessage() for record in caplog.records] == ["First.", "100 % second.", "Third."]


def test_an_image_rebinned_to_the_pixels_of_the_maps_is_of_the_same_area():
    fine = hs.signals.Signal2D(np.ones((24, 32)), axes=[{**a, "scale": 0.0625} for a in axes((24, 32))])
    assert grids.check_same_scan(axes(), grids.spatial_axes(fine.rebin(new_shape=(4, 3)))) == []


def test_centred_axes_of_slightly_different_scales_warn_of_the_scale_only():
    m = moved(-50.0, size=(256, 256), scale=0.4169)
    (warning,) = grids.check_same_scan(m, moved(-50.0 * 0.41452 / 0.4169, size=(256, 256), scale=0.41452))
    assert "0.6% apart" in warning


def test_a_haadf_image_of_another_area_warns_with_both_offsets(caplog):
    (warning,) = grids.check_same_scan(axes(), [axes()[0], moved(4.0)[1]])
    assert "begins at (0 nm, 4 nm) and the maps at (0 nm, 0 nm) (y, x), 8 pixels apart; they are taken for" in warning
    assert [record.getMessage() for record in caplog.records] == [warning]
    (warning,) = grids.check_same_scan(axes(), moved(0.0003, scale=0.0005, units="µm"))
    assert "(0.0003 µm, 0.0003 µm)" in warning and "0.6 pixels apart" in warning


def test_two_maps_of_different_areas_are_refused_from_one_pixel_on():
    with pytest.raises(ValueError, match="Map 2 begins at .* and map 1 at .*1 pixels apart, so they show different"):
        grids.check_same_scan(axes(), moved(0.5), maps="map 1", haadf="map 2", one_map=True)
    assert len(grids.check_same_scan(axes(), moved(0.49), one_map=True)) == 1
    assert len(grids.check_same_scan(axes(), moved(0.6, scale=0.51), one_map=True)) == 1
    assert len(grids.check_same_scan(axes(), moved(50.0, scale=5.0, units="Å"), one_map=True)) == 1


@pytest.mark.parametrize(
    "m, h, sentence",
    [
        (
            axes((256, 256), 0.4169, "um"),
            axes((256, 256), 414.52, "nm"),
            "The HAADF image has pixels of 414.52 nm and the maps of 0.4169 um, 0.6% apart; both are taken for",
        ),
        (axes((100, 100)), axes((100, 100), scale=0.5 * 1.0051), "0.5% apart"),
        (axes((100, 100)), axes((100, 100), scale=0.5 * 1.049), "4.9% apart"),
        (axes(units="nm"), axes(units="furlongs)"), "cannot be compared"),
        (axes(units="nm"), axes(units="1/nm"), "cannot be compared"),
    ],
)
def test_a_doubtful_scan_warns_once(m, h, sentence, caplog):
    (warning,) = grids.check_same_scan(m, h)
    assert sentence in warning
    assert [record.getMessage() for record in caplog.records] == [warning]


@pytest.mark.parametrize("factor", [1.051, 0.949, 2.0, 1000.0, -1.0])
def test_pixels_of_clearly_another_size_are_refused(factor):
    with pytest.raises(ValueError, match="a factor of .* not the same scan: correct the scale"):
        grids.check_same_scan(axes((100, 100)), axes((100, 100), scale=0.5 * factor))


def test_one_axis_is_enough_to_refuse():
    with pytest.raises(ValueError, match="factor of 2"):
        grids.check_same_scan(axes(), [axes()[0], {**axes()[1], "scale": 1.0}])


def test_other_shapes_are_refused_with_the_line_that_helps():
    found = r"The HAADF image has the shape \(6, 8\) and the maps \(3, 4\).*rebin"
    with pytest.raises(ValueError, match=found) as error:
        grids.check_same_scan(axes((3, 4)), axes((6, 8), scale=0.25))
    assert "`.rebin(new_shape=(4, 3))`" in str(error.value)
    with pytest.raises(ValueError, match=r"\(64, 63\).*\(64, 64\).*\.isig\["):
        grids.check_same_scan(axes((64, 64)), axes((64, 63)))


@pytest.mark.parametrize(
    "m, h, what",
    [
        ((3, 4), (6, 8), "rebin the HAADF image by `"),
        ((6, 8), (3, 4), "rebin the maps, which adds up counts: a map by `"),
        ((3, 4), (5, 4), "crop the HAADF image to the area of the maps, by `"),
        ((3, 5), (3, 4), "crop the maps to the area of the HAADF image, by `"),
        ((3, 5), (4, 4), "crop both to the area that they share, by `"),
    ],
)
def test_without_calibration_the_shapes_say_which_of_the_two_to_change(m, h, what):
    with pytest.raises(ValueError, match=re.escape(what)):
        grids.check_same_scan(axes(m, units="px"), axes(h))


@pytest.mark.parametrize(
    "m, h, what",
    [
        (axes((3, 4)), axes((6, 8)), "crop the HAADF image to the area of the maps"),
        (axes((6, 8)), axes((3, 4), 0.0005, "um"), "crop the maps to the area of the HAADF image"),
        (axes((3, 4)), axes((6, 8), 0.251), "rebin the HAADF image by `.rebin(new_shape=(4, 3))`"),
        (axes((100, 80), 1.0), axes((125, 100), 0.8), "rebin the HAADF image by `.rebin(new_shape=(80, 100))`"),
        (axes((125, 100), 0.8), axes((100, 80), 1.0), "rebin the maps, which adds up counts: a map by `.rebin(new_sh"),
        (axes((100, 100), 1.0), axes((103, 103), 1 / 1.03), "rebin the HAADF image"),
        (axes((100, 100), 1.0), axes((103, 103), 1.01), "crop the HAADF image"),
    ],
)
def test_pixel_sizes_decide_between_cropping_and_rebinning(m, h, what):
    with pytest.raises(ValueError, match=re.escape(what)):
        grids.check_same_scan(m, h)


@pytest.mark.parametrize(
    "m, h",
    [
        (axes((50, 40), 0.92), axes((256, 256), 13.0)),
        (axes((3, 4)), axes((6, 8), 0.35)),
        (axes((3, 4)), axes((4, 3), 13.0)),
    ],
)
def test_neither_pixels_nor_fields_of_view_in_common_are_another_scan(m, h):
    with pytest.raises(ValueError, match=r"so they are not the same scan: pass the image that was") as error:
        grids.check_same_scan(m, h)
    assert "crop" not in str(error.value)
    assert f"has {h[0]['size']} x {h[1]['size']} pixels of {h[0]['scale']:.4g} nm x" in str(error.value)


def test_of_two_maps_the_larger_is_named():
    with pytest.raises(ValueError, match=r"rebin map 1 by `\.rebin\(new_shape=\(4, 3\)\)`, which adds up pixels"):
        grids.check_same_scan(axes((6, 8), 0.25), axes((3, 4)), maps="map 1", haadf="map 2", one_map=True)


def advice(map_axes, haadf_axes):
    """The pieces of code that the error names."""
    with pytest.raises(ValueError) as error:
        grids.check_same_scan(map_axes, haadf_axes)
    return re.findall(r"`(\..+?)`", str(error.value))


def followed(signal, code):
    """`signal` after the advised `code`, with the numbers that it leaves to the user."""
    names = {"n": 2, "n_channels": 7, "left": 1, "right": 6, "top": 0, "bottom": 3}
    return eval("signal" + code, {"signal": signal, **names})


SCAN = [{"size": n, "name": name, "scale": 0.25, "units": "nm"} for n, name in ((6, "y"), (8, "x"))]
SPECTRA = hs.signals.Signal1D(np.ones((6, 8, 7), "u1"), axes=[*SCAN, {"size": 7, "name": "E"}])
STACK = hs.signals.Signal2D(np.ones((2, 6, 8), "u1"), axes=[{"size": 2, "name": "element"}, *SCAN])
IMAGE = hs.signals.Signal2D(np.arange(48.0).reshape(6, 8), axes=SCAN)


def scan_of(signal):
    return grids.axis_dicts([axis for axis in signal.axes_manager._axes if axis.name in ("y", "x")], signal)


@pytest.mark.parametrize("signal", [IMAGE, IMAGE.T, IMAGE.as_lazy()], ids=["(|x, y)", "(x, y|)", "lazy"])
@pytest.mark.parametrize("units", ["nm", "px"])
def test_the_advised_transposition_turns_the_image_over(signal, units):
    wide = axes((8, 6), 0.25, units)
    with pytest.raises(ValueError, match=r"the HAADF image looks transposed, which `\.swap_axes\(0, 1\)` undoes"):
        grids.check_same_scan(wide, scan_of(signal))
    (code,) = advice(wide, scan_of(signal))
    upright = followed(signal, code)
    assert grids.check_same_scan(wide, grids.spatial_axes(upright)) == []
    np.testing.assert_array_equal(grids.image_array(upright), IMAGE.data.T)


def test_the_advised_rebinning_by_a_fraction_keeps_the_sum():
    coarse = [axes((4, 5), 0.375)[0], axes((4, 5), 0.4)[1]]
    (code,) = advice(coarse, scan_of(IMAGE))
    small = followed(IMAGE, code)
    assert small.data.shape == (4, 5)
    np.testing.assert_allclose(small.data.sum(), IMAGE.data.sum())


def test_the_advised_rebinning_of_the_image_gives_the_shape_and_keeps_the_sum():
    (code,) = advice(axes((3, 4)), scan_of(IMAGE))
    for big in (IMAGE, IMAGE.T):
        small = followed(big, code)
        assert grids.check_same_scan(axes((3, 4)), scan_of(small)) == []
        assert small.data.sum() == big.data.sum()


@pytest.mark.parametrize(
    "form, signal",
    [(0, IMAGE), (0, IMAGE.T), (1, SPECTRA), (2, STACK)],
    ids=["map (|x, y)", "map (x, y|)", "spectrum image", "stack"],
)
def test_the_advised_rebinning_of_maps_in_every_form_gives_the_shape_and_keeps_the_sum(form, signal):
    codes = advice(scan_of(signal), axes((3, 4)))
    assert len(codes) == 3
    small = followed(signal, codes[form])
    assert grids.check_same_scan(scan_of(small), axes((3, 4))) == []
    assert small.data.sum() == signal.data.sum()


@pytest.mark.parametrize(
    "form, signal",
    [(0, IMAGE), (1, IMAGE.T), (1, SPECTRA), (0, STACK)],
    ids=["map (|x, y)", "map (x, y|)", "spectrum image", "stack"],
)
def test_the_advised_cropping_works_for_images_and_spectra(form, signal):
    y, x = axes((3, 5), 0.25)
    smaller = [y, {**x, "offset": 0.25}]
    code = advice(scan_of(signal), smaller)[form]
    assert grids.check_same_scan(scan_of(followed(signal, code)), smaller) == []


@pytest.mark.parametrize("name", ["L2083-K-4-1_tilt0.bcf", "bruker_test_TEM.bcf"])
def test_haadf_and_spectra_of_a_real_file_are_one_scan(name):
    haadf, eds = hs.load(shared(f"data/{name}"))
    map_axes = grids.axis_dicts(eds.axes_manager.navigation_axes, eds)
    assert grids.check_same_scan(map_axes, grids.spatial_axes(haadf)) == []
    assert grids.image_array(haadf).dtype == np.uint16
