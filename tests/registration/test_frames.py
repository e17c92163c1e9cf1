"""Frames of one scan as HyperSpy signals: what is summed, what is kept, what is refused."""

from functools import cache

import dask.array as da
import frames_data
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import assert_untouched, fuse_with, shared, snapshot
from rsciio.utils._fei_stream_readers import DenseSliceCOO

import hyperspy_fusion as hf

fine = cache(frames_data.fine)
ELEMENTS = ("Pt", "Fe", "O")


@cache
def made(n=20, counts=0.05, seed=0):
    curve = frames_data.drift_curve(n, seed=seed)
    return curve, *frames_data.drifted(fine(hf.data.core_shell), curve, counts, 20, seed=seed)


def frames(spoilt=True, units="nm"):
    """Maps and images of 20 frames, of which 7 is noise and 13 breaks off."""
    _, counts, images, _ = made()
    counts, images = counts.copy(), images.copy()
    if spoilt:
        images[7] = np.random.default_rng(0).normal(images.mean(), images.std(), images[7].shape)
        images[13, 30:], counts[13, :, 30:] = 0, 0
    return counts, *frames_data.signals(counts, images, ELEMENTS, units)


@pytest.mark.parametrize(
    "spoilt, codes, with_images",
    [
        ({19: np.s_[:]}, {"frames-empty": "WARNING"}, False),
        ({19: np.s_[30:]}, {"frames-incomplete": "INFO"}, True),  # a scan usually ends within a frame
        ({4: np.s_[30:]}, {"frames-incomplete": "WARNING"}, False),
        ({4: np.s_[:], 19: np.s_[30:]}, {"frames-empty": "WARNING", "frames-incomplete": "INFO"}, True),
    ],
)
def test_frames_without_data_are_reported_unless_the_scan_ended(spoilt, codes, with_images, caplog):
    caplog.set_level("INFO", "hyperspy_fusion")
    _, counts, images, _ = made(20, counts=2.0)
    counts = counts.copy()
    for t, rows in spoilt.items():
        counts[t][:, rows] = 0
    maps, pictures = frames_data.signals(counts, images, ELEMENTS)
    summed, _ = hf.sum_frames(maps, pictures if with_images else None)
    assert {r.code: r.levelname for r in caplog.records if hasattr(r, "code")} == codes
    assert list(summed["Pt"].metadata.Frames.dropped) == list(spoilt)


def by_hand(counts, node):
    """Sum of counts (t, ..., y, x) that are moved by the whole pixels in the metadata."""
    used = np.setdiff1d(np.arange(len(counts)), node.dropped)
    offsets = np.stack([node.offset_y, node.offset_x], axis=1)
    start = -offsets[used].min(axis=0)
    stop = counts.shape[-2:] - offsets[used].max(axis=0)
    cut = [(slice(a, b) for a, b in zip(start + by, stop + by, strict=True)) for by in offsets[used]]
    return sum(counts[(t, ..., *where)].astype(int) for t, where in zip(used, cut, strict=True)), start


def test_counts_are_conserved_and_spoilt_frames_left_out(caplog):
    curve, *_ = made()
    counts, maps, images = frames()
    before = [snapshot(signal) for signal in (*maps.values(), images)]
    summed, image = hf.sum_frames(maps, images)
    for signal, own in zip((*maps.values(), images), before, strict=True):
        assert_untouched(signal, own)
    node = image.metadata.Frames
    assert (node.number, node.total, list(node.dropped)) == (18, 20, [7, 13])
    assert [r.code for r in caplog.records if hasattr(r, "code")] == ["frames-incomplete", "frames-unlike"]
    assert ["not like" in node.reasons[0], "incomplete" in node.reasons[1]] == [True, True]
    found = np.stack([node.drift_y, node.drift_x], axis=1)
    used = np.setdiff1d(np.arange(20), [7, 13])
    np.testing.assert_allclose(found[used], curve[used], atol=0.1)
    assert np.isnan(found[[7, 13]]).all() and node.drift_y_units == "nm"
    np.testing.assert_allclose(node.drift_x_calibrated, frames_data.SCALE * node.drift_x)
    expected, start = by_hand(counts, node)
    np.testing.assert_array_equal([summed[element].data for element in ELEMENTS], expected)
    assert summed["Pt"].data.dtype.kind == "u"
    for signal in (*summed.values(), image):
        assert signal.data.shape == expected.shape[1:] and signal.metadata.Frames.number == 18
        x, y = signal.axes_manager.signal_axes
        assert (y.offset, x.offset) == tuple(frames_data.SCALE * start) and x.units == "nm"
    assert image.metadata.General.title == "HAADF" and summed["Fe"].metadata.General.title == "Fe"


@pytest.mark.nightly
def test_the_fused_maps_are_as_good_as_without_drift():
    curve, _, _, truth = made()
    counts, maps, images = frames()
    pair = hf.sum_frames(maps, images)
    summed, (y, x) = by_hand(counts, pair[1].metadata.Frames)
    window = np.s_[..., y : y + summed.shape[1], x : x + summed.shape[2]]
    used = np.setdiff1d(np.arange(20), [7, 13])
    # the same X-rays without a drift
    still, pictures, _ = frames_data.drifted(fine(hf.data.core_shell), 0 * curve, 0.05, 20)
    still, pictures = still[used].sum(axis=0)[window], pictures[used].mean(axis=0)[window]
    flat, flat_image = frames_data.signals(still[None], pictures[None], ELEMENTS)
    scores = []
    for own in (pair, ({e: signal.inav[0] for e, signal in flat.items()}, flat_image.inav[0])):
        fused, true = fuse_with(*own, method="calibrated"), len(used) * truth[window]
        error = np.mean((fused.data - true) ** 2, axis=(1, 2)) / np.ptp(true, axis=(1, 2)) ** 2
        scores.append(-10 * np.log10(error.mean()))
        assert fused.metadata.has_item("Frames.drift_y") == (own is pair)
    assert scores[0] > scores[1] - 0.3


def as_stack(maps):
    """(element, t|x, y)"""
    return hs.stack(list(maps.values()), new_axis_name="element", show_progressbar=False)


def test_the_axis_of_frames_may_have_the_name_of_hyperspy():
    """As hyperspy.api.stack names it by itself."""
    _, maps, images = frames()
    for signal in (*maps.values(), images):
        signal.axes_manager[0].name = "stack_element"
    np.testing.assert_array_equal([one.data for one in hf.sum_frames(maps, images)[0].values()], expected_sum())


@cache
def expected_sum():
    counts, maps, images = frames()
    return by_hand(counts, hf.sum_frames(maps, images)[1].metadata.Frames)[0]


@pytest.mark.parametrize(
    "kind",
    [
        "list",
        "stack",
        "lazy maps",
        "lazy spectra",
        pytest.param("lazy events", marks=pytest.mark.slow),
        "big-endian",
        "navigation",
    ],
)
def test_every_kind_of_frames_gives_the_same_sum(kind):
    counts, maps, images = frames()
    channels = (94, 64, 5)
    if kind == "list":
        source, images = list(maps.values()), images.as_lazy()
    elif kind == "stack":
        source = as_stack(maps)
    elif kind == "navigation":
        source, images = maps, images.transpose(signal_axes=0)
    elif kind == "lazy maps":
        source = [signal.as_lazy(chunks=(7, 40, 33)) for signal in maps.values()]
    else:
        source = frames_data.spectra(counts.astype(">u2") if kind == "big-endian" else counts)
        source = source.as_lazy(chunks=(6, 40, 33, 50)) if kind == "lazy spectra" else source
    if kind == "lazy events":
        # as rosettasciio reads the files of Velox and JEOL
        events = DenseSliceCOO.from_numpy(source.data)
        source = source.as_lazy()
        source.data = da.from_array(events, chunks="auto", asarray=False)
    summed, image = hf.sum_frames(source, images)
    is_lazy = kind.startswith("lazy")
    every = summed if isinstance(summed, list) else list(summed.values()) if isinstance(summed, dict) else [summed]
    assert all(signal._lazy == is_lazy for signal in every) and not image._lazy and str(image).startswith("<Signal2D")
    data = [np.asarray(signal.data) for signal in every]
    if kind in ("lazy spectra", "lazy events", "big-endian"):
        assert summed._signal_type == "EDS_TEM" and summed.axes_manager[-1].units == "keV"
        assert summed.axes_manager.navigation_shape == image.axes_manager.signal_shape
        data = [data[0][..., channel] for channel in channels]
    np.testing.assert_array_equal(data[0] if kind == "stack" else data, expected_sum())


class Counted:
    """An array that knows how often each chunk was read."""

    def __init__(self, data):
        self.data, self.shape, self.dtype, self.ndim, self.read = data, data.shape, data.dtype, data.ndim, []

    def __getitem__(self, key):
        if key[0].stop:  # dask asks for an empty part, to see what it gets
            self.read.append(tuple((part.start, part.stop) for part in key))
        return self.data[key]


def test_lazy_spectra_are_read_chunk_by_chunk_once_for_the_drift_and_once_for_the_sum():
    counts, _, images = frames()
    source = Counted(frames_data.spectra(counts).data)
    lazy = frames_data.spectra(counts).as_lazy()
    lazy.data = da.from_array(source, (5, 32, 32, 50), asarray=False)
    summed, _ = hf.sum_frames(lazy, images)
    n = lazy.data.npartitions
    assert summed._lazy and len(source.read) == n == len(set(source.read))
    whole, _ = hf.sum_frames(frames_data.spectra(counts), images)
    source.read.clear()
    np.testing.assert_array_equal(np.asarray(summed.data), whole.data)
    assert len(source.read) == n == len(set(source.read))


def test_without_images_the_counts_are_registered_and_one_image_is_cropped(caplog):
    curve, counts, images, _ = made(8, counts=30.0)
    maps, pictures = frames_data.signals(counts, images, ELEMENTS)
    summed, image = hf.sum_frames(maps)
    node = summed["Pt"].metadata.Frames
    assert image is None
    np.testing.assert_allclose(np.stack([node.drift_y, node.drift_x], axis=1), curve, atol=0.3)
    assert not caplog.records
    # recorded over all frames
    one = pictures.mean("Time")
    summed, image = hf.sum_frames(maps, one)
    assert [r.code for r in caplog.records] == ["image-of-the-scan"]
    (y, x), (ny, nx) = (-int(min(node[f"offset_{axis}"])) for axis in "yx"), image.data.shape
    np.testing.assert_array_equal(image.data, one.data[y : y + ny, x : x + nx])
    matched = hf.match_haadf(image, summed, register="shift")
    np.testing.assert_allclose(matched.shift, -curve.mean(axis=0), atol=0.3)
    assert fuse_with(summed, image, method="calibrated").data.shape == (3, ny, nx)
    caplog.clear()
    hf.sum_frames({e: signal.inav[3:4] for e, signal in maps.items()}, one)  # one frame has no drift
    assert not caplog.records


@pytest.mark.parametrize("dtype, kind", [("i2", "i"), ("i8", "i"), ("f4", "f"), (bool, "u")])
def test_no_count_overflows(dtype, kind):
    _, _, images, _ = made(6)
    data = np.ones((6, 64, 64), dtype) * dtype_max(dtype)
    maps, pictures = frames_data.signals(data[:, None], images, ["Fe"])
    summed, _ = hf.sum_frames(maps["Fe"], pictures)
    assert summed.data.dtype.kind == kind
    np.testing.assert_array_equal(summed.data, 6 * float(dtype_max(dtype)))


def dtype_max(dtype):
    return min(np.iinfo(dtype).max, 2**53) if np.dtype(dtype).kind in "iu" else np.array(1, dtype)


@pytest.mark.parametrize("scale", [1e-4, 1e5])
def test_maps_that_are_no_counts_are_summed_and_spoilt_by_missing_rows_alike(scale):
    counts, maps, images = frames()
    floats = {e: signal._deepcopy_with_new_data((scale * signal.data).astype("f4")) for e, signal in maps.items()}
    floats["Fe"].data[4, :20] = np.nan
    for signal in (floats["Pt"], floats["O"]):
        signal.data[4, :20] = 0
    summed, image = hf.sum_frames(floats, images * scale)
    node = image.metadata.Frames
    assert list(node.dropped) == [4, 7, 13] and summed["Fe"].data.dtype == np.float32
    expected, _ = by_hand(counts[:, 1], node)
    np.testing.assert_allclose(summed["Fe"].data, scale * expected, rtol=1e-5)


def test_one_frame_is_itself_and_axes_without_calibration_are_reported(caplog):
    caplog.set_level("INFO", "hyperspy_fusion")
    counts, maps, images = frames(spoilt=False, units=None)
    summed, image = hf.sum_frames(maps["Fe"].inav[3:4], images.inav[3:4])
    np.testing.assert_array_equal(summed.data, counts[3, 1])
    np.testing.assert_allclose(image.data, images.data[3], rtol=1e-6)
    assert summed.metadata.Frames.number == 1 and "drift_y_units" not in summed.metadata.Frames
    assert [r.code for r in caplog.records if hasattr(r, "code")] == ["frames-uncalibrated"]


@cache
def cases():
    _, maps, images = frames(spoilt=False)
    missing = images._deepcopy_with_new_data(np.full(images.data.shape, np.nan))
    noise = images.deepcopy()
    noise.data = np.random.default_rng(0).normal(size=noise.data.shape)
    other_scale = images.deepcopy()
    other_scale.axes_manager[-1].scale = 3
    fe = maps["Fe"]
    return [
        (fe.inav[0], images, "has no axis of frames"),
        (fe, images.inav[:9], "20 frames and the stack of images 9"),
        (fe, images.isig[:40, :], "shape"),
        (fe, other_scale, "a factor of 6"),
        ([fe, maps["O"].inav[:5]], images, "20 frames"),
        (fe, noise, "cannot be registered by their images"),
        (fe, None, "cannot be registered by their counts.*images=.*`s.sum\\('Time'\\)`"),
        (fe, missing, "cannot be registered by their images"),
        ([], images, "pass at least one"),
        (as_stack(maps), as_stack(maps), "several images for each frame"),
    ]


@pytest.mark.parametrize("number", range(10))
def test_what_cannot_be_summed_is_refused_in_a_sentence(number):
    spectra, images, words = cases()[number]
    with pytest.raises(ValueError, match=words) as error:
        hf.sum_frames(spectra, images)
    assert str(error.value).count(". ") == 0


def test_frames_in_metadata_are_the_same_after_a_reload_and_can_be_plotted(tmp_path):
    _, maps, images = frames()
    summed, _ = hf.sum_frames(maps["Fe"], images)
    for ending in ("hspy", "zspy"):
        summed.save(tmp_path / f"sum.{ending}")
        again = hs.load(tmp_path / f"sum.{ending}")
        node, expected = again.metadata.Frames.as_dictionary(), summed.metadata.Frames.as_dictionary()
        assert set(node) == set(expected)
        for key, value in expected.items():
            np.testing.assert_array_equal(node[key], value)
        ax = hf.plot_drift(again)
        assert len(ax.containers) == 2 and len(ax.lines) > 4
    with pytest.raises(ValueError, match="is no sum of frames"):
        hf.plot_drift(maps["Fe"])


@pytest.mark.parametrize("number, kept, dropped", [("0000015", 1, [1]), ("0000023", 1, [])])
def test_an_interrupted_scan_of_jeol_is_the_frames_that_are_complete(number, kept, dropped):
    path = shared("data/jeol/InvalidFrame") / f"Sample/00_Dummy-Data/Dummy-Data_{number}.pts"
    eds, image = hs.load(path, sum_frames=False, only_valid_data=False, read_em_image=True)
    summed, mean = hf.sum_frames(eds, image)
    assert (summed.metadata.Frames.number, list(summed.metadata.Frames.dropped)) == (kept, dropped)
    assert summed.data.sum() == eds.inav[..., 0].data.sum() and mean.data.shape == (64, 64)


def test_a_scan_of_jeol_without_a_complete_frame_is_refused():
    path = shared("data/jeol/InvalidFrame") / "Sample/00_Dummy-Data/Dummy-Data_0000007.pts"
    with pytest.raises(ValueError, match="no complete frame"):
        hf.sum_frames(*hs.load(path, sum_frames=False, read_em_image=True))
    broken = hs.load(path, sum_frames=False, read_em_image=True, only_valid_data=False)
    assert hf.sum_frames(*broken)[0].metadata.Frames.number == 1


@pytest.mark.nightly
def test_a_scan_of_jeol_goes_from_frames_to_maps_without_dense_frames():
    signals = hs.load(shared("data/jeol/rawdata.ASW"), sum_frames=False, lazy=True)
    eds = next(signal for signal in signals if signal._signal_type == "EDS_TEM")
    image = next(signal for signal in signals if signal.metadata.General.title == "IMG1")
    with pytest.raises(ValueError, match="sum_frames"):
        hf.scan(signals)
    spectra, cropped = hf.sum_frames(eds, image)
    node = spectra.metadata.Frames
    assert node.number == 14 and spectra._lazy and spectra.data.dtype == np.uint8
    assert max(np.nanmax(node.drift_error_y), np.nanmax(node.drift_error_x)) < 0.3
    maps = hf.element_maps(spectra, xray_lines=["C_Ka", "Fe_Ka", "Cu_Ka"])
    assert maps.data.shape[1:] == cropped.data.shape and maps.data.sum() > 100_000
