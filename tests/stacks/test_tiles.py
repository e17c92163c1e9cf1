"""Large maps, fused in overlapping tiles."""

import logging
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import dask
import hyperspy.api as hs
import numpy as np
import pytest

import hyperspy_fusion as hf
from hyperspy_fusion.fusion.registration.shift import Shift
from hyperspy_fusion.grid.axes import spatial_axes
from hyperspy_fusion.registration import field as registration_field
from hyperspy_fusion.stacks import engine, field, fuse_field, result, tiles
from hyperspy_fusion.stacks.tiles import Grid, TileStore, weights_of

ELEMENTS = ["Pt", "Fe", "O"]
# a small halo for small fields
SETTINGS = {"regularization": "directional", "lambda_reg": 0.5}


@cache
def scan():
    """Maps and HAADF image of 96 x 80 pixels."""
    return hf.data.core_shell((96, 80), counts=4, seed=1).signals()


def lazy_maps(change=None):
    maps = [m.deepcopy() for m in scan()[0]]
    if change is not None:
        for m in maps:
            change(m)
    return [m.as_lazy() for m in maps]


def fused(maps=None, haadf=None, tile_size=32, method="calibrated", **options):
    kind = {"calibrated": hf.CalibratedSettings, "auto": hf.AutoSettings}[method]
    own = {name: options.pop(name) for name in list(options) if hasattr(kind, name)}
    settings = kind(tile_size=tile_size, **(SETTINGS | own))
    maps, haadf = lazy_maps() if maps is None else maps, scan()[1] if haadf is None else haadf
    return hf.fuse(maps, haadf, method=method, settings=settings, show_progressbar=False, **options)


@cache
def whole():
    """The same fit in one piece."""
    return hf.fuse(*scan(), method="calibrated", settings=hf.CalibratedSettings(**SETTINGS), show_progressbar=False)


def differences(maps, reference=None):
    """In units of the range of each map."""
    reference = whole().data if reference is None else reference
    return (np.asarray(maps.data) - reference) / np.ptp(reference, axis=(1, 2))[:, None, None]


def as_dictionary(folder):
    return dict(zip(ELEMENTS, lazy_maps(), strict=True))


def as_element_maps(folder):
    return hf.element_maps(scan()[0]).as_lazy()


def as_file(folder):
    hf.element_maps(scan()[0]).save(folder / "maps.zspy")
    return hs.load(folder / "maps.zspy", lazy=True)


@cache
def tiled():
    return fused(max_iter=30)


def test_tiles_are_the_fit_in_one_piece():
    exactly = {"tol": 3e-5, "max_iter": 3000}
    one = hf.fuse(
        *scan(),
        method="calibrated",
        settings=hf.CalibratedSettings(**SETTINGS | exactly),
        show_progressbar=False,
    )
    found = fused(**exactly)
    assert type(found).__name__ == "LazyElementMaps" and found.elements == ELEMENTS
    assert found.data.shape == (3, 96, 80) and found.data.dtype == np.float32
    assert found.axes_manager["x"].scale == one.axes_manager["x"].scale
    assert np.abs(differences(found, one.data)).max() < 1e-3  # no seams
    fit, alone = found.metadata.Fusion, one.metadata.Fusion
    assert not set(alone.keys()) - set(fit.keys()) and fit.method == "calibrated" and fit.n_tiles == 9
    np.testing.assert_allclose(fit.map_norms, alone.map_norms, rtol=1e-3)
    assert fit.haadf_correlation == pytest.approx(alone.haadf_correlation, abs=1e-4)
    image = one.modelled_haadf().data
    np.testing.assert_allclose(found.modelled_haadf().data, image, rtol=0, atol=1e-3 * np.ptp(image))


def test_borders_of_tiles_do_not_show():
    off, halo = differences(fused(tile_size=48)), 16  # the most that is blended, on both sides of a border
    near = np.zeros(off.shape[1:], bool)
    near[48 - halo : 48 + halo], near[:, 40 - halo : 40 + halo] = True, True
    border, elsewhere = (np.sqrt(np.mean(off[:, where] ** 2)) for where in (near, ~near))
    steps = [np.diff(off, axis=1)[:, 47], np.diff(off, axis=2)[..., 39]]
    assert border**2 - elsewhere**2 < 1e-3**2
    assert max(np.sqrt(np.mean(one**2)) for one in steps) < 5e-4


def test_tiles_that_differ_are_blended():
    store = TileStore(Grid.of((96, 80), 48, 20))
    for k, index in enumerate(store.grid.indices):
        kept = tuple(s.kept.stop - s.kept.start for s in store.grid[index])
        np.save(store.paths(index)["maps"], np.full((1, *kept), k % 2, np.float32))
    data = np.asarray(store.lazy("maps", set(store.grid.indices), np.ones(1), np.float32))[0]
    steps = np.diff(data, axis=1)
    assert data[:, 0].max() == 0 and data[:, -1].min() == 1
    assert steps.min() > -1e-6 and steps.max() == pytest.approx(1 / 20, abs=1e-6)  # twice half of the halo


@pytest.mark.parametrize("source", [pytest.param(as_dictionary, marks=pytest.mark.slow), as_element_maps, as_file])
def test_every_source_and_a_lazy_image(source, tmp_path):
    found = fused(source(tmp_path), scan()[1].as_lazy(), max_iter=30)
    np.testing.assert_array_equal(found.data, tiled().data)
    measured = [m.data.sum() for m in scan()[0]]
    np.testing.assert_allclose(np.asarray(found.data).sum(axis=(1, 2), dtype=float), measured, rtol=1e-6)


@pytest.mark.parametrize("penalty", ["guided", pytest.param("tgv", marks=pytest.mark.nightly)])
def test_other_penalties(penalty):
    settings = {"regularization": penalty, "lambda_reg": 0.25, "max_iter": 600}
    reference = hf.fuse(
        *scan(), method="calibrated", settings=hf.CalibratedSettings(**settings), show_progressbar=False
    )
    off = differences(fused(tile_size=48, **settings), reference.data)
    assert np.sqrt(np.mean(off**2)) < 1.5e-3


def test_gaussian_maps_keep_their_totals():
    scaled = [m * 0.37 for m in scan()[0]]
    found = fused([m.as_lazy() for m in scaled], noise="gaussian")
    expected = [m.data.sum() for m in scaled]
    np.testing.assert_allclose(np.asarray(found.data).sum(axis=(1, 2), dtype=float), expected, rtol=1e-6)


@pytest.mark.parametrize("noise", ["background", pytest.param("variance", marks=pytest.mark.nightly)])
def test_noise_metadata_of_each_pixel(noise):
    maps = hf.element_maps([m * 1.0 for m in scan()[0]])
    ramp = np.broadcast_to(np.linspace(0.1, 0.4, 80), maps.data.shape).astype(np.float32)
    path = {"background": "Element_maps.background", "variance": "Signal.Noise_properties.variance"}[noise]
    maps.metadata.set_item(path, maps._deepcopy_with_new_data(ramp.copy()))
    settings = hf.CalibratedSettings(**SETTINGS)
    one = hf.fuse(maps, scan()[1], method="calibrated", settings=settings, show_progressbar=False)
    found = fused(maps)
    assert np.sqrt(np.mean(differences(found, one.data) ** 2)) < 2e-3
    totals = np.asarray(found.data).sum(axis=(1, 2), dtype=float)
    np.testing.assert_allclose(totals, one.data.sum(axis=(1, 2), dtype=float), rtol=1e-5)
    assert not found.metadata.has_item(path)


def test_settings_are_chosen_on_the_sample():
    known = {"lambda_haadf": 1.0, "joint": True}
    found = fused(method="auto", lambda_reg="auto", tile_size=48, **known)
    alone = hf.fuse(*scan(), settings=hf.AutoSettings(regularization="directional", **known), show_progressbar=False)
    fit = found.metadata.Fusion
    assert fit.selection.sentence == alone.metadata.Fusion.selection.sentence
    assert np.sqrt(np.mean(differences(found, alone.data) ** 2)) < 2e-3


def test_a_sample_of_blocks_stands_for_the_field(monkeypatch):
    monkeypatch.setattr(field, "SAMPLE_VALUES", 3 * 4 * 32**2)
    found = fused(max_iter=60)
    assert np.sqrt(np.mean(differences(found) ** 2)) < 0.03
    measured = [m.data.sum() for m in scan()[0]]
    np.testing.assert_allclose(np.asarray(found.data).sum(axis=(1, 2), dtype=float), measured, rtol=1e-6)
    sentences = found.metadata.Fusion.diagnostics.sentences
    assert any(s.startswith("In the sample of the field: All iterations were run") for s in sentences)


def test_pixels_that_are_not_valid():
    def spoil(signal):
        signal.change_dtype("float32")
        signal.data[40:44, 30:33] = np.nan

    haadf, mask = scan()[1].deepcopy(), np.zeros((96, 80), bool)
    haadf.data[10:20, 50:60], mask[70:80, 5:15] = np.nan, True
    found = fused(lazy_maps(spoil), haadf, mask=mask, max_iter=20)
    fit = found.metadata.Fusion
    assert np.isfinite(np.asarray(found.data)).all()
    assert fit.n_masked.tolist() == [112] * 3 and fit.haadf_n_masked == 200
    assert {"missing-map-pixels", "missing-haadf-pixels"} <= set(fit.diagnostics.codes)


def test_a_field_has_one_ceiling():
    haadf = scan()[1].deepcopy()
    top = np.quantile(haadf.data, 0.9)
    haadf.data = np.minimum(haadf.data, top)
    number = np.count_nonzero(haadf.data == top)
    assert fused(haadf=haadf, max_iter=10).metadata.Fusion.haadf_n_masked == number


def test_a_tile_that_cannot_be_fused_is_nan(caplog):
    def spoil(signal):
        signal.change_dtype("float32")
        signal.data[:52, :46] = np.nan

    with caplog.at_level(logging.WARNING):
        found = fused(lazy_maps(spoil), max_iter=20)
    fit = found.metadata.Fusion
    assert fit.n_failed_tiles == 1 and "Tile (0, 0) (the last is (2, 2)): not fused, and NaN: " in caplog.text
    data = np.asarray(found.data)
    np.testing.assert_allclose(fit.map_norms, [np.linalg.norm(np.nan_to_num(m)) for m in data], rtol=1e-5)
    assert np.isnan(data[:, :32, :26]).all() and np.isfinite(data[:, 64:, 54:]).all()


def test_ctrl_c_keeps_the_tiles_that_are_done(monkeypatch):
    written, fit_tile = [], fuse_field.fit_tile

    def interrupted(*args):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(args)
        return fit_tile(*args)

    monkeypatch.setattr(fuse_field, "fit_tile", interrupted)
    with dask.config.set(scheduler="synchronous"):
        found = fused(max_iter=10)
    assert found.metadata.Fusion.n_failed_tiles == 5
    assert 0 < np.isfinite(np.asarray(found.data)).mean() < 1


def test_a_tile_can_be_sent_to_another_process(monkeypatch):
    sent = []

    def run(tasks, done, num_workers):
        sent.extend(tasks)
        return engine.run_tasks(tasks, done, num_workers)

    monkeypatch.setattr(fuse_field, "run_tasks", run)
    found = fused(max_iter=10)  # its temporary files go when nothing holds it
    task = sent[-1]
    _, arrays, call, spans, paths = dict(task.dask)[task.key].func.args
    arrays, call, spans = pickle.loads(pickle.dumps((arrays, call, spans)))
    before = np.load(paths["maps"])
    assert isinstance(fuse_field.fit_tile(arrays, call, spans, paths), fuse_field.FittedTile)
    np.testing.assert_array_equal(np.load(paths["maps"]), before)
    assert np.isfinite(np.asarray(found.data)).all()


@pytest.mark.nightly
def test_a_cluster_gives_the_same_bits():
    distributed = pytest.importorskip("distributed", reason="the extra `distributed` is not installed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster):
        np.testing.assert_array_equal(fused(max_iter=30).data, tiled().data)


def test_a_report_reads_each_chunk_once(monkeypatch):
    found, read, sizes, blended = tiled(), [], [], tiles.blended
    monkeypatch.setattr(tiles, "blended", lambda *args: read.append(args[3]) or blended(*args))

    def scheduler(graph, keys, **options):
        values = dask.get(graph, keys, **options)
        sizes.append(sum(np.size(one) for one in dask.core.flatten([values], container=list)))
        return values

    with dask.config.set(scheduler=scheduler):
        report = str(found.report())
    assert len(read) == len(set(read)) == 9 and "were edited" not in report
    assert sum(sizes) <= 3  # no more than a number for each map is kept
    edited = found.deepcopy()
    edited.data = edited.data * 1.01
    assert "were edited" in str(edited.report())


def shifted(image):
    return image._deepcopy_with_new_data(np.roll(image.data, (2, -3), (0, 1)))


def cropped_and_finer(image):
    fine = hs.signals.Signal2D(np.kron(image.data, np.ones((2, 2))).astype(">f4"))
    for axis, own in zip(fine.axes_manager.signal_axes, image.axes_manager.signal_axes, strict=True):
        axis.scale, axis.units, axis.offset = own.scale / 2, own.units, own.offset - own.scale / 4
    return fine.isig[5:, 3:]


def clipped_and_cut(image):
    data = np.minimum(image.data, np.quantile(image.data, 0.9)).astype(np.float32)
    data[:10] = np.nan
    return image._deepcopy_with_new_data(data)


@pytest.mark.parametrize(
    "change, register, most",
    [
        (shifted, True, 1e-3),
        pytest.param(cropped_and_finer, "calibration", 1e-3, marks=pytest.mark.nightly),
        pytest.param(clipped_and_cut, "calibration", 1e-2, marks=pytest.mark.slow),
    ],
)
def test_registration_is_that_of_one_piece(change, register, most):
    haadf = change(scan()[1])
    settings, options = hf.CalibratedSettings(**SETTINGS), {"method": "calibrated", "show_progressbar": False}
    one = hf.fuse(*scan()[:1], haadf, settings=settings, register=register, **options)
    found = fused(haadf=haadf.as_lazy(), register=register, tile_size=48)
    assert np.sqrt(np.mean(differences(found, one.data) ** 2)) < most
    own, alone = (f.metadata.Fusion.registration.as_dictionary() for f in (found, one))
    np.testing.assert_equal(own, alone)
    codes = [[c for c in f.metadata.Fusion.diagnostics.codes if c == "haadf-covers-part"] for f in (found, one)]
    assert codes[0] == codes[1]
    assert found.metadata.Fusion.haadf_n_masked == one.metadata.Fusion.haadf_n_masked


def placed(haadf, register, monkeypatch, unreadable=()):
    """Image and diagnostics; the shift is measured in windows of 64 x 64 pixels."""
    monkeypatch.setattr(registration_field, "_WINDOW", 64)
    maps = hf.element_maps(scan()[0])
    axes = spatial_axes(maps.get_map("Pt"))

    def read(window):
        if window in unreadable:
            raise ValueError("The file is broken.")
        return maps.data[(slice(None), *window)], None

    image, registration = registration_field.placed_image(
        haadf, axes, ELEMENTS, read, register, field.found_ceiling(haadf.data)
    )
    about, diagnostics = registration.outcome(image.overlap)
    return image, about, [d.code for d in diagnostics]


def test_a_shift_is_measured_in_windows(monkeypatch):
    haadf = shifted(scan()[1])
    monkeypatch.setattr(registration_field, "_PLACES", [(0, 0)])
    _, about, codes = placed(haadf, "shift", monkeypatch)
    alone = hf.match_haadf(haadf, scan()[0])
    assert np.all(np.abs(about["shift"] - alone.shift) < 4 * about["shift_error"])
    assert "shift-differs" not in codes


@pytest.mark.parametrize("error, differ", [(0.1, True), (1.0, False)])
def test_windows_whose_shifts_differ(error, differ, monkeypatch):
    found, none, both = np.arange(5.0), np.zeros((0, 2)), np.eye(2)
    shifts = [Shift(np.full(2, k), np.full(2, error), 0.9, 100 + k, both[:1] if k == 4 else none) for k in found]
    monkeypatch.setattr(registration_field, "found_shift", lambda *_: shifts.pop())
    _, about, codes = placed(scan()[1], "shift", monkeypatch)
    assert about["shift"].tolist() == [3, 3]  # that of most evidence of those determined
    assert ("shift-differs" in codes) == differ


def test_a_window_that_cannot_be_read_is_no_window_without_a_shift(monkeypatch):
    shift = Shift(np.zeros(2), np.ones(2), 0.9, 100.0, np.zeros((0, 2)))
    monkeypatch.setattr(registration_field, "found_shift", lambda *_: shift)
    unreadable = registration_field._windows((96, 80), 64)[1:2]
    with pytest.raises(ValueError, match="The file is broken"):
        placed(scan()[1], "shift", monkeypatch, unreadable)


@pytest.mark.parametrize("change", [shifted, cropped_and_finer])
def test_parts_of_a_placed_image(change, monkeypatch):
    monkeypatch.setattr(registration_field, "_AT_ONCE", 1000)
    image, about, _ = placed(change(scan()[1]), "calibration", monkeypatch)
    image, window = image.moved(np.array([-0.3, 0.4])), (slice(20, 77), slice(0, 33))
    whole = image.resampled()
    assert image.overlap == np.isfinite(whole).mean()
    np.testing.assert_allclose(image[window].resampled(), whole[window], rtol=0, atol=1e-6 * np.nanmax(whole))


def test_parts_of_an_image_have_its_ceiling(monkeypatch):
    monkeypatch.setattr(registration_field, "_AT_ONCE", 1000)
    monkeypatch.setattr(field, "_READ", 40)
    haadf, places = scan()[1].deepcopy(), np.arange(0, 80, 4)
    haadf.data[places, places] = 2 * haadf.data.max()  # too few in a part to be found there
    image = placed(haadf.as_lazy(), "calibration", monkeypatch)[0].in_memory()
    alone = hf.match_haadf(haadf, scan()[0], register="calibration").haadf.data
    np.testing.assert_array_equal(np.isnan(image.resampled()), np.isnan(alone))
    assert np.count_nonzero(np.isnan(alone)) == 20


def test_an_image_that_is_elsewhere_or_empty(monkeypatch):
    with pytest.raises(ValueError, match="^The HAADF image has no pixel that is a number"):
        placed(scan()[1] * np.nan, "shift", monkeypatch)
    elsewhere = scan()[1].isig[:20, :20]
    elsewhere.axes_manager[0].offset += 1e3
    with pytest.raises(ValueError, match="covers no pixel of the maps"):
        fused(haadf=elsewhere, register="calibration")


@pytest.mark.parametrize("register", ["yes", [True, True]])
def test_a_way_of_registration_is_checked(register):
    with pytest.raises(ValueError, match="^register is .* must be one of"):
        fused(register=register)


def test_components_and_several_images_are_refused_before_a_shift_is_measured(monkeypatch):
    monkeypatch.delattr(field, "placed_image")
    spectra, haadf = hf.data.overlapping_lines((32, 32)).signals()
    settings, options = hf.AutoSettings(components=5, tile_size=16), {"elements": ["Mo"], "register": True}
    with pytest.raises(ValueError, match="components is 5"):
        hf.fuse(spectra, haadf, settings=settings, **options)
    with pytest.raises(ValueError, match="A scan in tiles is fused with one image"):
        hf.fuse(spectra, [haadf, haadf], settings=settings, **options)


@cache
def tiled_with_errors(noise, tile_size=48):
    return fused([m * 0.37 for m in scan()[0]], noise=noise, errors=4, tile_size=tile_size)


@pytest.mark.parametrize("noise", ["poisson", pytest.param("gaussian", marks=pytest.mark.nightly)])
def test_standard_errors_are_those_of_one_piece(noise):
    maps, settings = [m * 0.37 for m in scan()[0]], hf.CalibratedSettings(**SETTINGS, noise=noise)
    one = hf.fuse(maps, scan()[1], method="calibrated", settings=settings, errors=4, show_progressbar=False)
    errors, expected = tiled_with_errors(noise).standard_errors(), one.standard_errors().data
    assert errors._lazy
    computed = tiled_with_errors(noise).deepcopy()
    computed.compute(show_progressbar=False)
    of_computed = computed.standard_errors()
    assert not of_computed._lazy and isinstance(of_computed.data, np.ndarray)
    np.testing.assert_array_equal(of_computed.data, errors.data)
    ratio = np.sqrt(np.mean(np.asarray(errors.data) ** 2, axis=(1, 2)) / np.mean(expected**2, axis=(1, 2)))
    np.testing.assert_allclose(ratio, 1, atol=0.07)


def test_standard_errors_do_not_show_the_tiles(tmp_path):
    found = tiled_with_errors("poisson")
    errors, whole = (np.asarray(f.standard_errors().data) for f in (found, tiled_with_errors("poisson", 96)))
    assert np.sqrt(np.mean((errors - whole) ** 2)) < 0.1 * np.sqrt(np.mean(whole**2))
    assert found.metadata.Fusion.errors.n_resamples == 4
    found.save(tmp_path / "maps.zspy")
    saved = hs.load(tmp_path / "maps.zspy", lazy=True).standard_errors()
    np.testing.assert_allclose(np.asarray(saved.data), errors, rtol=1e-5)
    with pytest.raises(ValueError, match="replicates of maps in tiles are not kept"):
        found.region(None).estimate("Fe")


def test_lazy_maps_go_in_tiles_where_memory_is_short(monkeypatch):
    assert not fused(tile_size=None, max_iter=10)._lazy
    monkeypatch.setattr(fuse_field, "_free_memory", lambda: 1e6)
    found = fused(tile_size=None, max_iter=10)
    assert found._lazy and found.metadata.Fusion.n_tiles == 1  # no tile is smaller than 128 pixels
    assert not fused(scan()[0], tile_size=None, max_iter=10)._lazy  # what is in memory already stays there


def test_a_map_that_the_sample_does_not_show(monkeypatch):
    monkeypatch.setattr(field, "chosen_blocks", lambda sums, number: [0])
    monkeypatch.setattr(fuse_field, "chosen_blocks", lambda sums, number: [0])
    monkeypatch.setattr(field, "SAMPLE_VALUES", 3 * 4 * 32**2)

    def empty_corner(signal):
        signal.data[:40, :40] = 0 if signal.metadata.General.title.startswith("Pt") else signal.data[:40, :40]

    with pytest.raises(ValueError, match="Pt is constant in the sample"):
        fused(lazy_maps(empty_corner))


@pytest.mark.parametrize("shape, size", [((96, 80), 32), ((50, 333), 100), ((64, 64), 64), ((40, 40), 7)])
def test_weights_of_tiles_add_up_to_one(shape, size):
    grid, total, cores = Grid.of(shape, size, 16), np.zeros(shape), np.zeros(shape, int)
    for index in grid.indices:
        spans = grid[index]
        kept = tuple(s.kept for s in spans)
        total[kept] += weights_of(spans, kept)
        cores[tuple(s.core for s in spans)] += 1
        assert all(s.stop - s.start <= size for s in spans)
    np.testing.assert_allclose(total, 1)
    assert (cores == 1).all()


def test_blocks_of_a_sample_have_counts_of_every_map():
    sums = np.zeros((3, 100))
    sums[0], sums[1, 7], sums[2, 90:] = 1, 5, 2
    blocks = field.chosen_blocks(sums, 4)
    assert len(set(blocks)) == 4 and 7 in blocks and any(b >= 90 for b in blocks)


def test_a_survey_keeps_no_pixels():
    image = np.arange(64.0**2).reshape(64, 64)
    (found,) = field.statistics_of(field.Arrays([image], image, None, None, None), [(slice(0, 64),) * 2], 64)
    kept = [one if one.base is None else one.base for one in found]
    assert sum(one.nbytes for one in kept) < image.nbytes / 10


@pytest.mark.parametrize("wrong", [8, 2.5, "auto"])
def test_tile_size_is_checked(wrong):
    with pytest.raises(ValueError, match="tile_size is"):
        hf.CalibratedSettings(tile_size=wrong)


def test_headers_are_parsed_by_one_thread_at_a_time(monkeypatch):
    """Two at once end in a SystemError of Python 3.11 now and then."""
    running, most = [], []

    def load(path, mmap_mode):
        running.append(path)
        time.sleep(0.01)
        most.append(len(running))
        running.remove(path)

    monkeypatch.setattr(np, "load", load)
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(result.load_array, "abcd"))
    assert most == [1, 1, 1, 1]
