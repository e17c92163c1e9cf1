"""Claims about images and scans: what is an image, and when two of them are of one scan."""

import hyperspy.api as hs
import numpy as np
import pytest
from helpers import shared

from hyperspy_fusion import grids

PIXELS = np.arange(12.0).reshape(3, 4)


def image(data=PIXELS, scale=0.5, units="nm"):
    axes = [{"size": n, "name": name, "scale": scale, "units": units} for n, name in zip(data.shape, "yx", strict=True)]
    return hs.signals.Signal2D(data, axes=axes, metadata={"General": {"title": "HAADF"}})


def axes(size=(3, 4), scale=0.5, units="nm"):
    return [{"size": n, "name": "a", "scale": scale, "offset": 0.0, "units": units} for n in size]


def ragged():
    data = np.empty((3, 4), dtype=object)
    for index in np.ndindex(3, 4):
        data[index] = np.zeros(index[0] + 1)
    return hs.signals.BaseSignal(data, ragged=True)


def rgb():
    signal = hs.signals.Signal1D(np.zeros((3, 4, 3), dtype="u1"))
    signal.change_dtype("rgb8")
    return signal


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
        (hs.signals.Signal1D(np.zeros((2, 3, 4))), ValueError, "not one image"),
        (image(with_pixel(np.nan)), ValueError, "has 1 of 12 pixels that are NaN, infinite or masked"),
        (image(with_pixel(np.inf)), ValueError, "has 1 of 12 pixels"),
        (image(with_pixel(np.nan)).as_lazy(), ValueError, "has 1 of 12 pixels"),
        (image(np.ma.masked_less(PIXELS, 2.0)), ValueError, "has 2 of 12 pixels"),
    ],
)
def test_what_is_no_image_is_refused_with_a_sentence(signal, error, sentence):
    with pytest.raises(error, match=sentence):
        grids.image_array(signal)


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


def test_offsets_and_names_are_not_compared():
    moved = [{**axis, "offset": 40.0, "name": "other"} for axis in axes()]
    assert grids.check_same_scan(axes(), moved) == []


@pytest.mark.parametrize(
    "m, h, sentence",
    [
        (
            axes((256, 256), 0.4169, "um"),
            axes((256, 256), 414.52, "nm"),
            "haadf has pixels of 414.52 nm and the maps of 0.4169 um, 0.6% apart; both are taken for",
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
    with pytest.raises(ValueError, match=r"haadf has the shape \(6, 8\) and the maps \(3, 4\).*rebin") as error:
        grids.check_same_scan(axes((3, 4)), axes((6, 8)))
    assert "`.rebin(new_shape=(4, 3))`" in str(error.value)
    with pytest.raises(ValueError, match=r"\(64, 63\).*\(64, 64\).*\.isig\["):
        grids.check_same_scan(axes((64, 64)), axes((64, 63)))


def test_the_advised_rebinning_gives_the_shape_and_keeps_the_sum():
    big = image(np.arange(48.0).reshape(6, 8), scale=0.25)
    small = big.rebin(new_shape=(4, 3))
    assert grids.check_same_scan(axes((3, 4)), grids.spatial_axes(small)) == []
    assert small.data.sum() == big.data.sum()


@pytest.mark.parametrize("name", ["L2083-K-4-1_tilt0.bcf", "bruker_test_TEM.bcf"])
def test_haadf_and_spectra_of_a_real_file_are_one_scan(name):
    haadf, eds = hs.load(shared(f"data/{name}"))
    map_axes = grids.axis_dicts(eds.axes_manager.navigation_axes, eds)
    assert grids.check_same_scan(map_axes, grids.spatial_axes(haadf)) == []
    assert grids.image_array(haadf).dtype == np.uint16
