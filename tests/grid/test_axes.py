"""Claims about images and scans: what is an image, and when two of them are of one scan."""

import re
from pathlib import Path

import hyperspy.api as hs
import numpy as np
import pytest
from helpers import shared
from sources import ragged, rgb

from hyperspy_fusion import element_maps
from hyperspy_fusion.grid.axes import axis_dicts, check_same_scan, is_calibrated, placements, spatial_axes
from hyperspy_fusion.grid.images import image_array

PIXELS = np.arange(12.0).reshape(3, 4)


def image(data=PIXELS, scale=0.5, units="nm"):
    axes = [{"size": n, "name": name, "scale": scale, "units": units} for n, name in zip(data.shape, "yx", strict=True)]
    return hs.signals.Signal2D(data, axes=axes, metadata={"General": {"title": "HAADF"}})


def axes(size=(3, 4), scale=0.5, units="nm"):
    return [{"size": n, "name": "a", "scale": scale, "offset": 0.0, "units": units} for n in size]


def non_uniform():
    return hs.signals.Signal2D(PIXELS, axes=[{"axis": [0.0, 1.0, 4.0]}, {"size": 4}])


def away(scale, offset):
    """An image whose coordinates are no numbers."""
    signal = image()
    with np.errstate(all="ignore"):
        axis = signal.axes_manager["y"]
        axis.scale, axis.offset = scale, offset
    return signal


def with_pixel(value):
    data = PIXELS.copy()
    data[1, 2] = value
    return data


def test_pixels_come_as_they_are_in_native_byte_order():
    forms = [PIXELS.astype(dtype) for dtype in ("f8", "u1", ">u2", ">f4")]
    for data in [*forms, np.asfortranarray(PIXELS), np.repeat(PIXELS, 2, axis=1)[:, ::2]]:
        data.flags.writeable = False
        signal = image(data)
        for one in (signal, signal.T, signal.as_lazy(), signal.as_lazy().T):
            result = image_array(one)
            np.testing.assert_array_equal(result, PIXELS)
            assert isinstance(result, np.ndarray) and result.dtype == data.dtype.newbyteorder("=")
        assert signal.data is data
    assert image_array(image(PIXELS), allow_nan=True) is PIXELS


@pytest.mark.parametrize(
    "signal, error, sentence",
    [
        (PIXELS, TypeError, r"HyperSpy signal is needed, got ndarray: .*Signal2D\(array\)"),
        (image(PIXELS * 1j), TypeError, "is complex"),
        (rgb(), TypeError, "RGB picture"),
        (ragged(), TypeError, "is ragged"),
        (non_uniform(), NotImplementedError, "non-uniform axis"),
        *[
            (away(*place), ValueError, "on its axis 'y', and numbers of 1e-30 to 1e")
            for place in ((np.nan, 0), (np.inf, 0), (-1e31, 0), (1e-31, 0), (1, np.nan), (1, -np.inf), (1, 1e31))
        ],
        (hs.signals.Signal1D(np.zeros(4)), ValueError, r"not one image: expected dimensions \(\|x, y\)"),
        (hs.signals.Signal1D(np.zeros((3, 4))), ValueError, "not one image"),
        (hs.signals.Signal2D(np.zeros((2, 3, 4))), ValueError, r"not one image.*\.inav"),
        (hs.signals.Signal1D(np.zeros((2, 3, 4))), ValueError, "is a spectrum image, .*: haadf and maps look swapped"),
        (
            element_maps(hs.signals.Signal2D(PIXELS), ["Fe"]),
            ValueError,
            "is a stack of element maps, .*: haadf and maps look swapped",
        ),
        ([image(), image()], TypeError, "got a list of 2: pass one of its signals"),
        (Path("x.bcf"), TypeError, "got the path 'x.bcf': load it first"),
        (image(with_pixel(np.nan)), ValueError, "has 1 of 12 pixels that are NaN, infinite or masked"),
        (image(with_pixel(np.inf)).as_lazy(), ValueError, "has 1 of 12 pixels"),
        (image(np.ma.masked_less(PIXELS, 2.0)), ValueError, "has 2 of 12 pixels"),
    ],
)
def test_what_is_no_image_is_refused_with_a_sentence(signal, error, sentence):
    with pytest.raises(error, match=sentence):
        image_array(signal)


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
def test_pixels_without_a_number_are_nan_where_allowed(data, dtype):
    signal = image(data)
    signal.data.flags.writeable = False
    for one in (signal, signal.as_lazy()):
        result = image_array(one, allow_nan=True)
        np.testing.assert_array_equal(result, with_pixel(np.nan))
        # HyperSpy has made masked integers float64 on their way to lazy ones
        assert one._lazy or result.dtype == dtype
        assert not isinstance(result, np.ma.MaskedArray)
    with pytest.raises(ValueError, match="fuse with method='calibrated', which leaves them out, or replace them"):
        image_array(signal)


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
    assert spatial_axes(signal) == expected
    assert spatial_axes(signal.T) == expected


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
def test_one_scan_is_silent(m, h):
    assert check_same_scan(m, h) == []


def test_one_scan_and_its_rebinned_image_are_silent():
    plain = spatial_axes(hs.signals.Signal2D(PIXELS))
    assert not is_calibrated(plain[0])
    assert check_same_scan(axes(), plain) == []
    fine = hs.signals.Signal2D(np.ones((24, 32)), axes=[{**a, "scale": 0.0625} for a in axes((24, 32))])
    assert check_same_scan(axes(), spatial_axes(fine.rebin(new_shape=(4, 3)))) == []
    in_angstrom, uncalibrated = {"scale": 5.0, "units": "A"}, {"units": "px"}
    for by, kwargs in ((0.25, {}), (-0.25, {}), (40.0, uncalibrated), (2.5, in_angstrom)):
        for both in (True, False):
            assert check_same_scan(axes(), moved(by, **kwargs), both_are_maps=both) == []


def moved(by, **kwargs):
    return [{**axis, "offset": by, "name": "other"} for axis in axes(**kwargs)]


def test_a_doubtful_scan_is_one_diagnostic():
    whole = axes((100, 100))
    for m, h, code, sentence in (
        (
            axes((256, 256), 0.4169, "um"),
            axes((256, 256), 414.52, "nm"),
            "pixel-size-differs",
            "of 0.4169 um, 0.6% apart",
        ),
        (whole, axes((100, 100), scale=0.5 * 1.0051), "pixel-size-differs", "0.5% apart"),
        (whole, axes((100, 100), scale=0.5 * 1.049), "pixel-size-differs", "4.9% apart"),
        (axes(), axes(units="furlongs)"), "units-differ", "cannot be compared"),
        (axes(), axes(units="1/nm"), "units-differ", "cannot be compared"),
    ):
        (found,) = check_same_scan(m, h)
        assert found.code == code and sentence in found.sentence and len(found.sentence.split()) <= 30
    m = moved(-50.0, size=(256, 256), scale=0.4169)
    (found,) = check_same_scan(m, moved(-50.0 * 0.41452 / 0.4169, size=(256, 256), scale=0.41452))
    assert found.code == "pixel-size-differs" and "0.6% apart" in found.sentence


def test_areas_apart_warn_or_are_refused():
    for m, h, severity in (
        (moved(1.0), [moved(1.0)[0], moved(5.0)[1]], "serious"),
        (moved(0.01), [axes()[0], moved(4.0)[1]], "serious"),
        # as Velox has it: the image without any offset, and the maps in the frame of the stage
        (moved(-32.0), axes(), "information"),
        (axes(), moved(-40.0, scale=5.0, units="Å"), "information"),
    ):
        (found,) = check_same_scan(m, h)
        assert (found.code, found.severity) == ("offset-differs", severity)
    (found,) = check_same_scan(axes(), [axes()[0], moved(4.0)[1]])
    assert "begins at (0 nm, 4 nm) and the maps at (0 nm, 0 nm) (y, x): the fields were" in found.sentence
    assert "laid edge on edge, as is usual for Velox files" in found.sentence and "apart" not in found.sentence
    (found,) = check_same_scan(moved(2.0), moved(0.0023, scale=0.0005, units="µm"))
    assert "(0.0023 µm, 0.0023 µm)" in found.sentence and "0.6 pixels apart: check" in found.sentence
    with pytest.raises(ValueError, match="Map 2 begins at .* and map 1 at .*1 pixels apart, so they show different"):
        check_same_scan(axes(), moved(0.5), maps="map 1", haadf="map 2", both_are_maps=True)
    for other in (moved(0.49), moved(0.6, scale=0.51), moved(50.0, scale=5.0, units="Å")):
        assert "offset-differs" in [d.code for d in check_same_scan(axes(), other, both_are_maps=True)]


@pytest.mark.parametrize("stretch", [1.06, 0.85, 1.19])
@pytest.mark.parametrize("axis, units, length", [(0, "nm", 1.0), (1, "µm", 1e-3)])
def test_one_axis_stretched_is_taken_pixel_for_pixel(stretch, axis, units, length):
    stretched = axes((100, 80), 0.5 * length, units)
    stretched[axis]["scale"] *= stretch
    for m, h in ((axes((100, 80)), stretched), (stretched, axes((100, 80)))):
        (found,) = check_same_scan(m, h)
        assert (found.code, found.severity) == ("pixel-size-differs", "serious")
        assert "pixel for pixel" in found.sentence
        assert [(p.step, p.start) for p in placements(m, h)] == [(1.0, 0.0)] * 2
    stretched[axis]["scale"] *= 1.25 / stretch
    with pytest.raises(ValueError, match="not the same scan"):
        check_same_scan(axes((100, 80)), stretched)


@pytest.mark.parametrize("factor", [1.051, 0.949, 1000.0, -1.0])
def test_pixels_of_clearly_another_size_are_refused(factor):
    with pytest.raises(ValueError, match="a factor of .* not the same scan: correct the scale"):
        check_same_scan(axes((100, 100)), axes((100, 100), scale=0.5 * factor))


def test_other_shapes_are_refused_with_the_line_that_helps():
    with pytest.raises(ValueError, match="factor of 2"):
        check_same_scan(axes(), [axes()[0], {**axes()[1], "scale": 1.0}])
    found = r"The HAADF image has the shape \(6, 8\) and the maps \(3, 4\).*rebin"
    with pytest.raises(ValueError, match=found) as error:
        check_same_scan(axes((3, 4)), axes((6, 8), scale=0.25))
    assert "`.rebin(new_shape=(4, 3))`" in str(error.value)
    with pytest.raises(ValueError, match=r"\(64, 63\).*\(64, 64\).*\.isig\["):
        check_same_scan(axes((64, 64)), axes((64, 63)))
    with pytest.raises(ValueError, match=r"rebin map 1 by `\.rebin\(new_shape=\(4, 3\)\)`, which adds up pixels"):
        check_same_scan(axes((6, 8), 0.25), axes((3, 4)), maps="map 1", haadf="map 2", both_are_maps=True)


@pytest.mark.parametrize(
    "m, h, what",
    [
        # without calibration shapes decide, with it the sizes of pixels
        (axes((3, 4), units="px"), axes((6, 8)), "rebin the HAADF image by `"),
        (axes((6, 8), units="px"), axes((3, 4)), "rebin the maps, which adds up counts: a map by `"),
        (axes((3, 4), units="px"), axes((5, 4)), "crop the HAADF image to the area of the maps, by `"),
        (axes((3, 5), units="px"), axes((3, 4)), "crop the maps to the area of the HAADF image, by `"),
        (axes((3, 5), units="px"), axes((4, 4)), "crop both to the area that they share, by `"),
        (axes((3, 4)), axes((6, 8)), "crop the HAADF image to the area of the maps"),
        (axes((6, 8)), axes((3, 4), 0.0005, "um"), "crop the maps to the area of the HAADF image"),
        (axes((3, 4)), axes((6, 8), 0.251), "rebin the HAADF image by `.rebin(new_shape=(4, 3))`"),
        (axes((100, 80), 1.0), axes((125, 100), 0.8), "rebin the HAADF image by `.rebin(new_shape=(80, 100))`"),
        (axes((125, 100), 0.8), axes((100, 80), 1.0), "rebin the maps, which adds up counts: a map by `.rebin(new_sh"),
        (axes((100, 100), 1.0), axes((103, 103), 1 / 1.03), "rebin the HAADF image"),
        (axes((100, 100), 1.0), axes((103, 103), 1.01), "crop the HAADF image"),
    ],
)
def test_shapes_and_pixel_sizes_decide_what_to_change(m, h, what):
    with pytest.raises(ValueError, match=re.escape(what)):
        check_same_scan(m, h)


@pytest.mark.parametrize(
    "m, h",
    [
        (axes((50, 40), 0.92), axes((256, 256), 13.0)),
        (axes((3, 4)), axes((6, 8), 0.35)),
        (axes((3, 4)), axes((4, 3), 13.0)),
    ],
)
def test_nothing_in_common_is_another_scan(m, h):
    with pytest.raises(ValueError, match=r"so they are not the same scan: pass the image that was") as error:
        check_same_scan(m, h)
    assert "crop" not in str(error.value)
    assert f"has {h[0]['size']} x {h[1]['size']} pixels of {h[0]['scale']:.4g} nm x" in str(error.value)


def remedy(map_axes, haadf_axes):
    """The pieces of code in the error."""
    with pytest.raises(ValueError) as error:
        check_same_scan(map_axes, haadf_axes)
    return re.findall(r"`(\..+?)`", str(error.value))


def followed(signal, code):
    """`signal` after the `code`, with the numbers that it leaves to the user."""
    names = {"n": 2, "n_channels": 7, "left": 1, "right": 6, "top": 0, "bottom": 3}
    return eval("signal" + code, {"signal": signal, **names})


SCAN = [{"size": n, "name": name, "scale": 0.25, "units": "nm"} for n, name in ((6, "y"), (8, "x"))]
SPECTRA = hs.signals.Signal1D(np.ones((6, 8, 7), "u1"), axes=[*SCAN, {"size": 7, "name": "E"}])
STACK = hs.signals.Signal2D(np.ones((2, 6, 8), "u1"), axes=[{"size": 2, "name": "element"}, *SCAN])
IMAGE = hs.signals.Signal2D(np.arange(48.0).reshape(6, 8), axes=SCAN)


def scan_of(signal):
    return axis_dicts([axis for axis in signal.axes_manager._axes if axis.name in ("y", "x")], signal)


@pytest.mark.parametrize("signal, units", [(IMAGE, "nm"), (IMAGE.T, "px"), (IMAGE.as_lazy(), "nm")])
def test_the_transposition_of_the_error_turns_the_image(signal, units):
    wide = axes((8, 6), 0.25, units)
    with pytest.raises(ValueError, match=r"the HAADF image looks transposed, which `\.swap_axes\(0, 1\)` undoes"):
        check_same_scan(wide, scan_of(signal))
    (code,) = remedy(wide, scan_of(signal))
    upright = followed(signal, code)
    assert check_same_scan(wide, spatial_axes(upright)) == []
    np.testing.assert_array_equal(image_array(upright), IMAGE.data.T)


def test_rebinning_of_the_image_keeps_the_sum():
    coarse = [axes((4, 4), 0.375)[0], axes((4, 4), 0.5)[1]]
    (code,) = remedy(coarse, scan_of(IMAGE))
    small = followed(IMAGE, code)
    assert small.data.shape == (4, 4)
    np.testing.assert_allclose(small.data.sum(), IMAGE.data.sum())
    (code,) = remedy(axes((3, 4)), scan_of(IMAGE))
    for big in (IMAGE, IMAGE.T):
        small = followed(big, code)
        assert check_same_scan(axes((3, 4)), scan_of(small)) == []
        assert small.data.sum() == big.data.sum()


@pytest.mark.parametrize(
    "rebin, crop, signal",
    [(0, 0, IMAGE), (0, 1, IMAGE.T), (1, 1, SPECTRA), (2, 0, STACK)],
    ids=["map (|x, y)", "map (x, y|)", "spectrum image", "stack"],
)
def test_maps_in_every_form_can_be_rebinned_and_cropped(rebin, crop, signal):
    codes = remedy(scan_of(signal), axes((3, 4)))
    assert len(codes) == 3
    small = followed(signal, codes[rebin])
    assert check_same_scan(scan_of(small), axes((3, 4))) == []
    assert small.data.sum() == signal.data.sum()
    y, x = axes((3, 5), 0.25)
    smaller = [y, {**x, "offset": 0.25}]
    code = remedy(scan_of(signal), smaller)[crop]
    assert check_same_scan(scan_of(followed(signal, code)), smaller) == []


@pytest.mark.parametrize("name", ["L2083-K-4-1_tilt0.bcf", "bruker_test_TEM.bcf"])
def test_haadf_and_spectra_of_a_real_file_are_one_scan(name):
    haadf, eds = hs.load(shared(f"data/{name}"))
    map_axes = axis_dicts(eds.axes_manager.navigation_axes, eds)
    assert check_same_scan(map_axes, spatial_axes(haadf)) == []
    assert image_array(haadf).dtype == np.uint16
