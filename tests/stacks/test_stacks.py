"""Stacks of scans, fused frame by frame."""

import logging
import pickle
import threading
from functools import cache

import cloudpickle
import dask
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import snapshot

import hyperspy_fusion as hf
from hyperspy_fusion.fusion.problems import calibrated
from hyperspy_fusion.fusion.solvers import primal_dual
from hyperspy_fusion.stacks import engine
from hyperspy_fusion.stacks.frames import frames_of

TILTS = [-20.0, -5.0, 10.0]
SETTINGS = {"method": "calibrated", "max_iter": 20, "show_progressbar": False}


@cache
def frames():
    """The maps and the HAADF image of each frame."""
    return [hf.data.core_shell((24, 20), counts=6, seed=seed).signals() for seed in range(3)]


def stacked(signals, axis="tilt"):
    """Signals as a stack along a calibrated axis."""
    stack = hs.stack(list(signals), new_axis_name=axis, show_progressbar=False)
    stack.axes_manager[axis].units, stack.axes_manager[axis].scale = "°", 15.0
    stack.axes_manager[axis].offset = TILTS[0]
    return stack


@cache
def stacks():
    """The maps and the HAADF image, which take HyperSpy longer to stack than a fit takes."""
    return [stacked(maps[i] for maps, _ in frames()) for i in range(3)], stacked(haadf for _, haadf in frames())


def haadf_stack():
    return stacks()[1].deepcopy()


def map_stacks():
    return [one.deepcopy() for one in stacks()[0]]


def dictionary():
    return dict(zip(("Pt", "Fe", "O"), map_stacks(), strict=True))


def element_maps_stack():
    return stacked(hf.element_maps(maps) for maps, _ in frames())


def untitled_stack():
    """(x, y, tilt|) maps, as exspy returns them."""
    return [one.transpose(signal_axes=[], navigation_axes=["x", "y", "tilt"]) for one in map_stacks()]


@cache
def alone():
    return [hf.fuse(*frame, **SETTINGS) for frame in frames()]


@pytest.fixture
def synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.mark.parametrize("source", [map_stacks, element_maps_stack, untitled_stack])
def test_every_frame_is_what_it_is_alone(source):
    maps, haadf = source(), haadf_stack()
    before = snapshot(haadf)
    fused = hf.fuse(maps, haadf, **SETTINGS)
    assert type(fused) is hf.ElementMaps and fused.elements == ["Pt", "Fe", "O"]
    assert fused.data.shape == (3, 3, 24, 20) and fused.data.dtype == np.float32
    axis = fused.axes_manager["tilt"]
    assert (axis.units, axis.scale, axis.offset) == ("°", 15.0, -20.0)
    for k, one in enumerate(alone()):
        frame = fused.frame(k)
        np.testing.assert_array_equal(frame.data, one.data)
        assert frame.metadata.Fusion.n_iter == one.metadata.Fusion.n_iter
        np.testing.assert_array_equal(frame.modelled_haadf().data, one.modelled_haadf().data)
        np.testing.assert_array_equal(frame.get_map("Fe").data, one.get_map("Fe").data)
        assert [a.units for a in frame.axes_manager.signal_axes] == ["nm", "nm"]
    for a, b in zip(before, snapshot(haadf), strict=True):
        np.testing.assert_equal(b, a)


def test_as_a_method_of_a_stack_of_spectra():
    """One spectrum image with a navigation axis more; the spectra of each frame are read in one pass."""
    shape = (3, 12, 14, 200)
    spectra = hs.signals.Signal1D(np.random.default_rng(0).poisson(0.05, shape).astype("uint16"))
    spectra.set_signal_type("EDS_TEM")
    x, y, t, energy = spectra.axes_manager._axes[2], *spectra.axes_manager._axes[1::-1], spectra.axes_manager[-1]
    x.name, y.name, t.name = "x", "y", "t"
    energy.name, energy.units, energy.scale = "Energy", "keV", 0.05
    spectra.set_microscope_parameters(beam_energy=200.0, energy_resolution_MnKa=130.0)
    spectra.set_elements(["Fe", "O"])
    haadf = spectra.sum("Energy").as_signal2D(("x", "y"))
    haadf.set_signal_type("")
    one = hf.fuse(spectra.inav[:, :, 1], haadf.inav[1], **SETTINGS)
    fused = spectra.fuse(haadf, **SETTINGS)
    np.testing.assert_array_equal(fused.frame(1).data, one.data)
    lazy = spectra.as_lazy()
    lazy.data = lazy.data.rechunk((2, 12, 14, 200))
    read = []
    lazy.data = lazy.data.map_blocks(
        lambda block: read.append(block.shape[0]) or block, dtype=lazy.data.dtype, meta=lazy.data._meta
    )
    lazily = lazy.fuse(haadf, **SETTINGS)
    assert sorted(read) == [1, 2] and lazily._lazy
    np.testing.assert_array_equal(lazily.data.compute(), fused.data)


def through_bytes(graph, keys, **options):
    """A scheduler that sends its tasks and their results as those of processes do."""
    return pickle.loads(pickle.dumps(dask.get(pickle.loads(cloudpickle.dumps(graph)), keys, **options)))


SCHEDULERS = ["synchronous", through_bytes, pytest.param("processes", marks=pytest.mark.nightly)]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_give_the_same_bits(scheduler):
    with dask.config.set(scheduler=scheduler):
        fused = hf.fuse(map_stacks(), haadf_stack(), num_workers=2, **SETTINGS)
    np.testing.assert_array_equal(fused.data, [one.data for one in alone()])


def test_a_cluster_gives_the_same_bits():
    distributed = pytest.importorskip("distributed", reason="the extra `distributed` is not installed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster):
        lazy = [one.as_lazy() for one in map_stacks()]
        fused = hf.fuse(lazy, haadf_stack(), **SETTINGS)
        np.testing.assert_array_equal(fused.data.compute(), [one.data for one in alone()])


def test_lazy_in_lazy_out_and_saved(tmp_path):
    fused = hf.fuse([one.as_lazy() for one in map_stacks()], haadf_stack().as_lazy(), errors=2, **SETTINGS)
    assert fused._lazy and fused.data.chunks[0] == (1, 1, 1)
    np.testing.assert_array_equal(fused.frame(2).data, alone()[2].data)
    np.testing.assert_array_equal(fused.frame(2)._inputs.haadf.data, frames()[2][1].data)
    expected = hf.fuse(*frames()[2], errors=2, **SETTINGS).standard_errors().data
    np.testing.assert_allclose(fused.frame(2).standard_errors().data, expected, rtol=1e-5)
    for extension in ("zspy", "hspy"):
        fused.save(tmp_path / f"stack.{extension}")
        back = hs.load(tmp_path / f"stack.{extension}")
        np.testing.assert_array_equal(back.data, [one.data for one in alone()])
        assert back.frame(0).metadata.Fusion.converged == alone()[0].metadata.Fusion.converged
        back.frame(0).modelled_haadf()
        np.testing.assert_allclose(back.frame(2).standard_errors().data, expected, rtol=1e-5)


# ---- the choice of settings ----------------------------------------------------------------------------

# of the weight of the penalty alone, among few fits
ONE_CHOICE = {"regularization": "tgv", "lambda_haadf": 1.0, "joint": True}


def test_one_choice_for_all_frames():
    settings = hf.AutoSettings(**ONE_CHOICE)
    fused = hf.fuse(map_stacks(), haadf_stack(), settings=settings, show_progressbar=False)
    chosen = [fused.frame(k).metadata.Fusion for k in range(3)]
    assert len({one.selection.sentence for one in chosen}) == 1
    assert len({tuple(one.parameters.as_dictionary().items()) for one in chosen}) == 1
    held_out = chosen[0].selection.n_folds.max()
    one = hf.fuse(*frames()[0], settings=settings, show_progressbar=False)
    assert held_out == one.metadata.Fusion.selection.n_folds.max()


@pytest.mark.slow
def test_or_one_for_each():
    settings = hf.AutoSettings(sample_frames=None, regularization="tgv")
    fused = hf.fuse(map_stacks(), haadf_stack(), settings=settings, show_progressbar=False)
    one = hf.fuse(*frames()[2], settings=settings, show_progressbar=False)
    np.testing.assert_array_equal(fused.frame(2).data, one.data)


def test_the_choice_does_not_hang_on_a_bad_frame():
    """The frame in the middle of the sample has nothing in it."""
    maps = map_stacks()
    for one in maps:
        one.data[1] = 0
    settings = hf.AutoSettings(sample_frames=1, **ONE_CHOICE)
    fused = hf.fuse(maps, haadf_stack(), settings=settings, show_progressbar=False)
    assert np.isnan(fused.data[1]).all() and np.isfinite(fused.data[[0, 2]]).all()


def test_a_frame_whose_image_has_no_contrast_has_a_choice_of_its_own():
    haadf, settings = haadf_stack(), hf.AutoSettings(**ONE_CHOICE)
    haadf.data[1] = 7
    fused = hf.fuse(map_stacks(), haadf, settings=settings, show_progressbar=False)
    one = hf.fuse(frames()[1][0], haadf.inav[1], settings=settings, show_progressbar=False)
    np.testing.assert_array_equal(fused.frame(1).data, one.data)
    assert np.isfinite(fused.data).all()


# ---- frames that fail ----------------------------------------------------------------------------------


def test_a_frame_that_fails_is_nan_and_the_others_are_kept(caplog):
    maps, haadf = map_stacks(), haadf_stack()
    haadf.data[1] = 7
    with caplog.at_level(logging.WARNING):
        fused = hf.fuse(maps, haadf, method="published", max_iter=3, show_progressbar=False)
    assert np.isnan(fused.data[1]).all() and np.isfinite(fused.data[[0, 2]]).all()
    (record,) = [r for r in caplog.records if getattr(r, "code", "") == "frame-not-fused"]
    assert record.message.startswith("Frame 1 (the last is 2): not fused") and "constant" in record.message
    assert fused.metadata.Fused_frames.failed.tolist() == [1]
    with pytest.raises(ValueError, match="no fit of the frame .1,.: The HAADF image .*constant"):
        fused.frame(1)


def test_the_report_of_a_stack_names_the_frames_that_differ(tmp_path):
    maps, haadf = map_stacks(), haadf_stack()
    maps[2].data[0] = 0
    haadf.data[1] = np.nan
    fused = hf.fuse(maps, haadf, **SETTINGS)
    report = fused.report()
    assert [row[0] for row in report.rows] == ["Pt", "Fe", "O"]
    assert report.rows[2][1].startswith("0 to ") and report.rows[2][2].startswith("mean only; ")
    uses = [fused.frame(k).report().rows[2][2] for k in range(3)]
    assert all(f"{use} in frame {k}" in report.rows[2][2] for k, use in enumerate(uses) if use != uses[0])
    assert len(set(uses)) > 1
    single = [fused.frame(k).report().rows[0] for k in range(3)]
    assert all(row[2] in report.rows[0][2] for row in single)
    for end in (min, max):
        assert end((row[1] for row in single), key=int) in report.rows[0][1].split(" to ")
    assert "3 of 3 frames fused" in report.fit and "All iterations were run" in report.fit
    assert "used: their brightness in 2 of 3 frames (frames 0 and 2) and their edges in 2 of 3" in report.haadf
    assert {d.code for d in report.diagnostics} == set(fused.metadata.Fused_frames.diagnostics.codes)
    fused.save(tmp_path / "stack.hspy")
    for lazy in (False, True):
        assert str(hs.load(tmp_path / "stack.hspy", lazy=lazy).report()) == str(report)
    part = fused.inav[1:]
    part = part if part.elements == fused.elements else fused.inav[:, 1:]
    assert "2 of 2 frames fused" in part.report().fit and "of all 3 frames" in part.report().fit
    assert "in 1 of 2 frames (frame 2)" in part.report().haadf


def test_the_report_of_failed_frames_alone():
    haadf = haadf_stack()
    haadf.data[1] = np.nan
    fused = hf.fuse(map_stacks(), haadf, method="published", max_iter=3, show_progressbar=False)
    for part in (fused.inav[:, 1], fused.inav[:, 1:2]):
        report = part.report()
        assert report.fit == "0 of 1 frames fused. Diagnostics are of all 3 frames." and not report.haadf
        assert [row[1:] for row in report.rows] == [("-", "-", "-")] * 3
        assert "not fused" in str(report.diagnostics[0])


@pytest.mark.parametrize(
    "changed",
    [
        lambda fused: fused.sum("tilt"),
        lambda fused: fused.max("tilt"),
        lambda fused: fused.rebin(scale=(1, 3, 1, 1)),
        lambda fused: fused.transpose(signal_axes=["x", "tilt"]),
    ],
)
def test_frames_that_were_put_together_have_no_report(changed):
    fused = changed(fused_stack())
    with pytest.raises(ValueError, match="no longer the fused stack.*: call report on"):
        fused.report()
    for ask in (lambda: fused.frame(0), lambda: fused.region(None)):
        with pytest.raises(ValueError, match="not the result of fusing a stack"):
            ask()
    assert not fused.inav[0].metadata.has_item("Fused_frames")


def test_a_file_that_cannot_be_read_in_part():
    lazy = [one.as_lazy() for one in map_stacks()]

    def broken(block, block_info=None):
        if block_info[0]["chunk-location"][0] == 2:
            raise OSError("the disk is broken")
        return block

    for one in lazy:
        one.data = one.data.rechunk((1, 24, 20)).map_blocks(broken, dtype=one.data.dtype, meta=one.data._meta)
    fused = hf.fuse(lazy, haadf_stack(), **SETTINGS)
    assert fused.metadata.Fused_frames.failed.tolist() == [2]
    assert "the disk is broken" in fused.metadata.Fused_frames.diagnostics.sentences[0]
    np.testing.assert_array_equal(fused.frame(1).data, alone()[1].data)


def test_all_frames_fail():
    haadf = haadf_stack()
    haadf.data[:] = 1
    with pytest.raises(ValueError, match="No frame of the stack can be fused. Of the first one: .*constant"):
        hf.fuse(map_stacks(), haadf, method="published", show_progressbar=False)


def test_ctrl_c_keeps_the_frames_that_are_done(monkeypatch, synchronous):
    solve, calls = primal_dual.primal_dual, []

    def interrupted(problem, settings, state, callback=None, num_workers=None):
        calls.append(problem)
        stop = callback if len(calls) < 3 else interrupt
        return solve(problem, settings, state, stop, num_workers)

    def interrupt(state):
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrated, "primal_dual", interrupted)
    fused = hf.fuse(map_stacks(), haadf_stack(), **SETTINGS)
    (failed,) = fused.metadata.Fused_frames.failed
    assert fused.metadata.Fused_frames.diagnostics.sentences[0].endswith("Ctrl-C came first.")
    for k in {0, 1, 2} - {failed}:
        np.testing.assert_array_equal(fused.frame(k).data, alone()[k].data)
    calls[:] = [None, None]
    with pytest.raises(KeyboardInterrupt):
        hf.fuse(map_stacks(), haadf_stack(), **SETTINGS)


def test_diagnostics_are_summarised(caplog):
    haadf = haadf_stack()
    for image in haadf.data:
        image[image > np.quantile(image, 0.9)] = image.max()
    with caplog.at_level(logging.INFO, "hyperspy_fusion"):
        fused = hf.fuse(map_stacks(), haadf, **SETTINGS)
    saturated = [r.message for r in caplog.records if getattr(r, "code", "") == "saturated-haadf-pixels"]
    assert len(saturated) == 1 and saturated[0].startswith("All frames: ")
    assert "saturated-haadf-pixels" in fused.metadata.Fused_frames.diagnostics.codes


# ---- arguments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_each", [False, True])
def test_masks(of_each):
    mask = np.zeros((24, 20), bool)
    mask[3:5, 4] = True
    given = np.stack([mask, mask, mask]) if of_each else mask
    fused = hf.fuse(map_stacks(), haadf_stack(), mask=given, **SETTINGS)
    np.testing.assert_array_equal(fused.frame(2).data, hf.fuse(*frames()[2], mask=mask, **SETTINGS).data)


@pytest.mark.slow
def test_background_and_errors():
    fused = hf.fuse(map_stacks(), haadf_stack(), background=0.5, errors=2, **SETTINGS)
    one = hf.fuse(*frames()[1], background=0.5, errors=2, **SETTINGS)
    np.testing.assert_array_equal(fused.frame(1).data, one.data)
    np.testing.assert_allclose(fused.frame(1).standard_errors().data, one.standard_errors().data, rtol=1e-5)
    assert fused.standard_errors().data.shape == fused.data.shape


def test_axes_without_calibration_and_of_one_frame():
    haadf, maps = haadf_stack().inav[:1], [one.inav[:1] for one in map_stacks()]
    for one in (haadf, *maps):
        assert one.axes_manager.navigation_dimension
        one.axes_manager["tilt"].units, one.axes_manager["tilt"].name = "", "frame"
    fused = hf.fuse(maps, haadf, **SETTINGS)
    assert fused.data.shape == (1, 3, 24, 20)
    np.testing.assert_array_equal(fused.frame(0).data, alone()[0].data)


def test_axes_are_paired_by_their_names():
    """However they are ordered, and whatever else is as large, as in a montage."""
    rows = [hs.stack([one, one], new_axis_name="row", show_progressbar=False) for one in [*map_stacks(), haadf_stack()]]
    rows[2].inav[1, 1].data[:] = 0
    fused = hf.fuse(rows[:3], rows[3].transpose(navigation_axes=["row", "tilt"]), **SETTINGS)
    assert [axis.name for axis in fused.axes_manager.navigation_axes] == ["element", "row", "tilt"]
    assert fused.data.shape == (3, 2, 3, 24, 20)
    np.testing.assert_array_equal(fused.frame((1, 2)).data, alone()[2].data)
    with pytest.raises(ValueError, match="one number for each"):
        fused.frame(1)
    assert "mean only in frame (1, 1)" in fused.inav[:, 1:].report().rows[2][2]


def test_models_and_arrays_are_refused():
    with pytest.raises(TypeError, match="A HyperSpy signal is needed, got ndarray"):
        hf.fuse([map_stacks()[0], np.ones((3, 24, 20))], haadf_stack(), **SETTINGS)
    with pytest.raises(ValueError, match="register"):
        hf.fuse(map_stacks(), haadf_stack(), register="x", **SETTINGS)


def test_axes_that_do_not_agree():
    maps, haadf = map_stacks(), haadf_stack()
    with pytest.raises(ValueError, match=r"has 2 frames along tilt and .* 3: crop both"):
        hf.fuse(maps, haadf.inav[:2], **SETTINGS)
    with pytest.raises(ValueError, match="is a stack along tilt .3., and .* no such navigation axes"):
        hf.fuse(frames()[0][0], haadf, **SETTINGS)
    haadf.axes_manager["tilt"].offset = 0
    with pytest.raises(ValueError, match="The axis tilt is 0 to 30 ° in .* and -20 to 10 ° in"):
        hf.fuse(maps, haadf, **SETTINGS)


def test_slices_know_their_fit():
    fused = fused_stack()
    for part, k in (
        (fused.inav[:, 1:].frame(0), 1),
        (fused.inav[:, ::-1].frame(0), 2),
        (fused.inav[:, 1], 1),
        (fused.isig[2:, 3:].frame(2).isig[:4, :4], 2),
        (fused.inav[:2].frame(1), 1),
        (fused.get_map("Fe").frame(1), 1),
    ):
        assert part.metadata.Fusion.n_iter == alone()[k].metadata.Fusion.n_iter
        np.testing.assert_array_equal(part.metadata.Fusion.map_norms, alone()[k].metadata.Fusion.map_norms)
        assert not part.metadata.has_item("Fused_frames")
        np.testing.assert_array_equal(part._inputs.haadf.data, frames()[k][1].data)
        np.testing.assert_array_equal(part._inputs.maps.get_map("Fe").data, frames()[k][0][1].data)
    fused.inav[:, 1].plot_fusion()
    rebinned = fused.rebin(scale=(1, 1, 2, 2)).frame(0)
    with pytest.raises(ValueError, match="rebinned after the fit"):
        rebinned.modelled_haadf()
    with pytest.raises(ValueError, match="not the result of fusing a stack"):
        alone()[0].frame(0)


@pytest.mark.parametrize(
    "ask",
    [
        lambda fused: fused.modelled_haadf(),
        lambda fused: fused.plot_fusion(),
        lambda fused: fused.atomic_percent("CL", [1, 1, 1]),
        lambda fused: fused.weight_percent("CL", [1, 1, 1]),
        lambda fused: fused.export("folder"),
        lambda fused: fused.plot_convergence(),
    ],
)
def test_what_is_of_one_frame_is_refused(ask):
    with pytest.raises(ValueError, match=r"is a stack along tilt .3.: take one of its frames by frame.0."):
        ask(fused_stack())


@cache
def fused_stack():
    return hf.fuse(map_stacks(), haadf_stack(), **SETTINGS)


def test_a_scan_is_no_stack():
    assert frames_of(*frames()[0]) is None
    assert frames_of(frames()[0][1], hf.element_maps(frames()[0][0])) is None  # swapped


def test_frames_know_their_files():
    """What hs.stack keeps of each."""
    maps, images = [], []
    for k, (own, haadf) in enumerate(frames()):
        own = [one.deepcopy() for one in own]
        for one in own:
            one.metadata.General.original_filename = f"tilt{k}.emd"
        maps.append(own)
        images.append(haadf)
    stacks = [hs.stack([own[i] for own in maps], show_progressbar=False) for i in range(3)]
    fused = hf.fuse(stacks, hs.stack(images, show_progressbar=False), **SETTINGS)
    assert [fused.frame(k).metadata.General.original_filename for k in range(3)] == [f"tilt{k}.emd" for k in range(3)]


@pytest.mark.slow
def test_two_stacks_at_once():
    found, stacks = [], [(map_stacks(), haadf_stack()) for _ in range(2)]
    ask = lambda *stack: found.append(hf.fuse(*stack, **SETTINGS).data)  # noqa: E731
    threads = [threading.Thread(target=ask, args=stack) for stack in stacks]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert len(found) == 2
    for data in found:
        np.testing.assert_array_equal(data, fused_stack().data)


def test_blas_has_one_thread_while_any_thread_asks_for_it():
    from threadpoolctl import threadpool_info, threadpool_limits

    def number():
        return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        before = number()
        with engine.one_blas_thread:
            with engine.one_blas_thread:
                assert number() == {1}
            assert number() == {1}
        assert number() == before
        seen = []
        assert engine.run_tasks([engine.task_of(number)], lambda k, found: seen.append((k, found)))
        assert seen == [(0, {1})] and number() == before


def test_threads_of_a_task():
    assert engine.threads_of_task(1, 4) == 4 and engine.threads_of_task(3, 4) == 1
    with dask.config.set(scheduler="processes"):
        assert engine.threads_of_task(1, 4) == 1


def test_distributed_workers_keep_their_memory_in_a_task(monkeypatch):
    """Their setting returns each freed array to the system, and every new one then has new pages."""
    resource = pytest.importorskip("resource")

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(50):
            np.ones(2**17)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    with engine.kept_memory:
        pass  # leaves the limits as distributed sets them
    outside = faults()
    found = []
    assert engine.run_tasks([engine.task_of(faults)], lambda k, one: found.append(one))
    assert found[0] < 0.2 * outside or outside < 1000  # where the C library is another one


# ---- in steps, and regions -----------------------------------------------------------------------------


@cache
def with_errors(lazy=False):
    """With a frame that is not fused."""
    maps, haadf = dictionary(), haadf_stack()
    for one in maps.values():
        one.data[1] = 0
    maps = {e: one.as_lazy() for e, one in maps.items()} if lazy else maps
    return hf.fuse(maps, haadf, errors=2, **SETTINGS)


def test_a_stack_in_steps():
    maps, haadf = dictionary(), haadf_stack()
    for one in maps.values():
        one.data[1] = 0
    model = hf.FusedMultiModal(haadf, maps, method="calibrated")
    assert isinstance(model, hf.FusedMultiModal) and len(model) == 3 and model.diagnostics == []
    with pytest.raises(ValueError, match="call fit"):
        model.as_signal()
    output = model.fit(max_iter=20, show_progressbar=False)
    fused = model.as_signal()
    np.testing.assert_array_equal(fused.data, with_errors().data)
    assert output.nit == 40 and not output.success and np.array_equal(output.x, fused.data, equal_nan=True)
    assert {d.code for d in model.diagnostics} >= {"frame-not-fused", "not-settled"} and model.settings.max_iter == 20
    np.testing.assert_array_equal(model.components.Fe.data, fused.get_map("Fe").data)
    residual, frame = model.residual().data, fused.frame(2)
    assert np.isnan(residual).all(axis=(1, 2)).tolist() == [False, True, False]
    np.testing.assert_allclose(residual[2], model.haadf.data[2] - frame.modelled_haadf().data, rtol=1e-5, atol=1e-5)
    for ask in (model.attribution, model.attainable_gain, model.normalised_residuals):
        with pytest.raises(ValueError, match="one of its frames|FusedMultiModal of one frame"):
            ask()


@pytest.mark.nightly
def test_errors_of_a_stack_in_steps():
    model = hf.FusedMultiModal(haadf_stack(), dictionary(), method="calibrated")
    model.fit(max_iter=20, show_progressbar=False)
    errors = model.standard_errors(2, show_progressbar=False)
    np.testing.assert_array_equal(errors.data[[0, 2]], with_errors().standard_errors().data[[0, 2]])


@pytest.mark.slow
@pytest.mark.parametrize("lazy", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_regions_of_all_frames(lazy):
    """As those of each frame alone; also of a part of the stack, and after other slices of one frame."""
    inside = np.zeros((24, 20), bool)
    inside[8:14, 6:12] = True
    fused = with_errors(lazy)
    alone = hf.fuse(*frames()[2], errors=2, **SETTINGS).region(inside)
    region = fused.region(inside)
    for found, expected in (
        (region.mean("Fe"), alone.mean("Fe")),
        (region.means()["O"], alone.mean("O")),
        (region.ratio("Fe", "O"), alone.ratio("Fe", "O")),
        (region.percent("CL", [1, 2, 3])["Pt"], alone.percent("CL", [1, 2, 3])["Pt"]),
        (fused.inav[:, 1:].region(inside).mean("Fe"), alone.mean("Fe")),
        (fused.region(np.stack([~inside, inside, inside])).mean("Fe"), alone.mean("Fe")),
    ):
        assert (found.value[-1], found.error[-1]) == expected
        assert np.isnan(found.value[-2]) and np.isnan(found.error[-2])
    for one in (fused.frame(2), fused.inav[:, 2]):
        assert one.region(inside).estimate("Fe") == alone.estimate("Fe")


def test_regions_of_frames_without_bootstrap_are_plain(tmp_path):
    with_errors().save(tmp_path / "fused.hspy")
    found = hs.load(tmp_path / "fused.hspy").region().mean("Fe")
    np.testing.assert_allclose(found.value, with_errors().get_map("Fe").data.mean(axis=(1, 2)), rtol=1e-5)
    assert (found.error[[0, 2]] > 0).all()


# ---- all frames together -------------------------------------------------------------------------------


@cache
def series():
    """Stacks (time|x, y) of a particle that hardly changes, by element, the images, and the truth."""
    scans = [hf.data.core_shell((20, 20), counts=3, seed=seed) for seed in range(3)]
    haadf = stacked((scan.signals()[1] for scan in scans), "time")
    maps = {e: stacked((scan.signals()[0][i] for scan in scans), "time") for i, e in enumerate(scans[0].elements)}
    return maps, haadf, np.stack([scan.truth for scan in scans])


def time_series(lazy=False):
    maps, haadf, truth = series()
    return {e: one.as_lazy() if lazy else one.deepcopy() for e, one in maps.items()}, haadf.deepcopy(), truth


def error_of(fused, truth):
    return np.mean((np.asarray(fused.data) - truth) ** 2)


@cache
def in_time(lambda_stack, errors=False, lazy=False):
    settings = hf.CalibratedSettings(regularization="tv", lambda_reg=0.3, lambda_stack=lambda_stack)
    options = {"method": "calibrated", "settings": settings, "errors": errors, "show_progressbar": False}
    return hf.fuse(*time_series(lazy)[:2], **options)


@pytest.mark.slow
def test_frames_together_are_nearer_to_the_truth():
    """And their errors are smaller."""
    alone, together, truth = in_time(0, errors=2), in_time(1, errors=2), time_series()[2]
    assert error_of(together, truth) < 0.5 * error_of(alone, truth)
    assert np.median(together.standard_errors().data) < 0.9 * np.median(alone.standard_errors().data)
    frames = [together.frame(k) for k in range(3)]
    for frame in frames:
        fit = frame.metadata.Fusion
        assert fit.parameters.lambda_stack == 1 and fit.converged and fit.gap == frames[0].metadata.Fusion.gap
        np.testing.assert_allclose(fit.total_ratios, 1, rtol=1e-5)
        assert np.asarray(frame.modelled_haadf().data).shape == (20, 20)


@pytest.mark.nightly
def test_lazy_frames_together():
    fused = in_time(1, lazy=True)
    assert fused._lazy
    np.testing.assert_array_equal(fused.data.compute(), in_time(1, errors=2).data)


def test_the_weight_along_the_stack_is_chosen():
    maps, haadf, truth = time_series()
    known = {"regularization": "tv", "lambda_reg": dict.fromkeys(maps, 0.3), "lambda_haadf": 1.0, "joint": True}
    fused = hf.fuse(maps, haadf, settings=hf.AutoSettings(lambda_stack="auto", **known), show_progressbar=False)
    fit = fused.frame(0).metadata.Fusion
    assert fit.parameters.lambda_stack > 0 and "lambda_stack=" in fit.selection.sentence
    assert error_of(fused, truth) < 0.5 * error_of(in_time(0), truth)


def test_a_frame_without_an_element_is_fitted_by_itself():
    maps, haadf, _ = time_series()
    maps["Pt"].data[0] = 0
    settings = hf.CalibratedSettings(lambda_stack=1, max_iter=20)
    fused = hf.fuse(maps, haadf, method="calibrated", settings=settings, show_progressbar=False)
    first, second, third = (fused.frame(k).metadata.Fusion.gap for k in range(3))
    assert np.isfinite(fused.data).all() and first != second == third


@pytest.mark.parametrize("together", [True, False])
def test_what_cannot_be_fitted_together(together):
    maps, haadf, _ = time_series()
    if together:
        with pytest.raises(ValueError, match="sample_frames is None"):
            hf.fuse(maps, haadf, settings=hf.AutoSettings(lambda_stack="auto", sample_frames=None))
        return
    maps = {e: hs.stack([one, one], new_axis_name="place", show_progressbar=False) for e, one in maps.items()}
    haadf = hs.stack([haadf, haadf], new_axis_name="place", show_progressbar=False)
    with pytest.raises(ValueError, match=r"axes place \(2\), time \(3\)"):
        hf.fuse(maps, haadf, method="calibrated", settings=hf.CalibratedSettings(lambda_stack=1))


def test_slices_copy_the_records_of_their_frames_only(monkeypatch):
    fused = fused_stack()
    copied = []
    monkeypatch.setattr(type(fused), "__deepcopy__", spied(type(fused).__deepcopy__, copied))
    part = fused.inav[:, 1:]
    assert copied == [False] and fused.metadata.has_item("Fused_frames.frame_00000")
    record = part.metadata.Fused_frames
    assert [name for name in record.keys() if name.startswith("frame_")] == ["frame_00001", "frame_00002"]
    part.metadata.Fused_frames.frame_00001.n_iter = -1
    assert fused.metadata.Fused_frames.frame_00001.n_iter == alone()[1].metadata.Fusion.n_iter


def spied(method, found):
    def copy(self, memo):
        found.append(self.metadata.has_item("Fused_frames"))
        return method(self, memo)

    return copy


def test_errors_of_each_element_are_not_those_of_frames():
    """Where there are as many elements as frames."""
    errors = np.ones((3, 24, 20)) * np.array([1, 2, 3])[:, None, None]
    fused = fused_stack()
    means = fused.region(errors=errors).means()
    for element in fused.elements:
        np.testing.assert_array_equal(means[element].error, fused.frame(0).region(errors=errors).mean(element).error)
    of_each = fused.region(errors=np.stack([errors, 2 * errors, errors])).mean("Fe").error
    np.testing.assert_allclose(of_each / means["Fe"].error, [1, 2, 1])


@cache
def with_what_a_stack_does_not_keep():
    """Stacks fused with a mask, with noise, and with frames fitted together, and what is refused of a frame."""
    mask, noisy = np.zeros((24, 20), bool), map_stacks()
    mask[:, :4] = True
    for one in noisy:
        one.set_noise_variance(one + 1)
    return [
        (hf.fuse(map_stacks(), haadf_stack(), mask=mask, **SETTINGS), "the mask or the noise"),
        (hf.fuse(noisy, haadf_stack(), **SETTINGS), "the mask or the noise"),
        (in_time(1), "the frames fitted together with it"),
    ]


@pytest.mark.parametrize(
    "ask", [lambda one: one.compare_without_haadf(errors=2), lambda one: one.explore(lambda_reg=[1.0])]
)
def test_frames_are_not_fitted_again_without_what_the_stack_does_not_keep(ask):
    for fused, what in with_what_a_stack_does_not_keep():
        with pytest.raises(ValueError, match=f"does not keep {what}"):
            ask(fused.frame(0))


def test_a_frame_without_a_mask_is_compared_as_if_fused_alone():
    one, expected = (fused.compare_without_haadf(errors=2) for fused in (fused_stack().frame(1), alone()[1]))
    np.testing.assert_array_equal(one.without_haadf.data, expected.without_haadf.data)


def test_a_fit_of_all_frames_counts_once():
    """Each frame has the steps of all; those fitted by themselves are added."""
    maps, haadf, _ = time_series()
    model = hf.FusedMultiModal(haadf, maps, method="calibrated")
    output = model.fit(settings=hf.CalibratedSettings(lambda_stack=1, max_iter=20), show_progressbar=False)
    fit = model.as_signal().frame(0).metadata.Fusion
    assert output.nit == fit.n_iter
    np.testing.assert_allclose(output.fun, fit.cost_history.total[-1])


def test_a_stack_is_asked_as_a_scan():
    model = hf.FusedMultiModal(haadf_stack().inav[:2], [one.inav[:2] for one in map_stacks()], method="calibrated")
    model.fit(max_iter=2, show_progressbar=False)
    assert len(model.components) == 3 and len(model) == 2
    np.testing.assert_array_equal(model.images[0].data, model.haadf.data)
    np.testing.assert_array_equal(model.modelled_haadf(image=0).data, model.modelled_haadf().data)
    with pytest.raises(ValueError, match="image"):
        model.residual(image=1)
