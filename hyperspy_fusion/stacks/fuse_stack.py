"""Fusion of a stack: settings chosen on a sample of frames, then one fit for each frame, or one of all together."""

from __future__ import annotations

import ctypes
import logging
from dataclasses import replace
from typing import Any

from hyperspy_fusion._progress import counted
from hyperspy_fusion.diagnostics import unreported
from hyperspy_fusion.fusion.checks import check_choice, check_workers, default_errstate
from hyperspy_fusion.fusion.solvers.threads import one_blas_thread
from hyperspy_fusion.methods import METHODS
from hyperspy_fusion.stacks.engine import run_tasks, task_of, threads_of_task
from hyperspy_fusion.stacks.fit import (
    INTERRUPTED,
    Block,
    Call,
    FailedFrame,
    Frame,
    Writers,
    commonest,
    fit_frames,
    model_of,
    read_frames,
    refuse_model_of_spectra,
    refuse_none,
)
from hyperspy_fusion.stacks.frames import Frames
from hyperspy_fusion.stacks.result import ReplicatesStore, Store, fused_stack
from hyperspy_fusion.stacks.series import check_series, fit_together, is_series

_logger = logging.getLogger(__name__)


@default_errstate
def fuse_stack(frames: Frames, call: Call, show_progressbar: Any = None, num_workers: int | None = None) -> Any:
    """Fuse every frame.

    Parameters
    ----------
    frames
        The stack.
    call
        What is the same for all frames.
    show_progressbar
        None follows HyperSpy's preference.
    num_workers
        Threads or processes of dask's local scheduler; None for all.

    Returns
    -------
    ElementMaps
        ``(element, ...|x, y)`` with the navigation axes of the stack; lazy where the maps are. Frames that could not be
        fused are NaN.

    Raises
    ------
    ValueError
        Where no frame can be fused.
    KeyboardInterrupt
        By Ctrl-C before the first frame is fused.
    """
    check_workers(num_workers)
    check_choice("register", call.register, (False, True, "calibration", "shift"))
    if call.request.lines == "model":
        refuse_model_of_spectra("a stack")
    if together := is_series(call.settings):
        check_series(frames, call)
    inputs = [_input(frames, index) for index in frames.indices]
    selection = None
    if getattr(call.settings, "sample_frames", None):
        with one_blas_thread:
            selection, sample = _select(inputs, call, show_progressbar, num_workers)
        inputs = [sample.get(k, one) for k, one in enumerate(inputs)]
        _return_memory()
    blocks, fit = (frames.blocks(), fit_frames) if not together else ([list(range(len(frames)))], fit_together)
    store = Store(frames) if frames.is_lazy else None
    threads = threads_of_task(len(blocks), num_workers)
    kept = ReplicatesStore() if call.n_resamples else None
    tasks = []
    for block in blocks:
        write = Writers(store and store.writer(block), kept and kept.writer(block))
        tasks.append(task_of(fit, Block([inputs[k] for k in block]), call, selection, threads, write))
    found: list = [INTERRUPTED] * len(frames)
    with counted("Fusing frames", "frame", show_progressbar, total=len(frames)) as tick:

        def done(number, fitted):
            for k, one in zip(blocks[number], fitted, strict=True):
                if kept is not None and not isinstance(one, FailedFrame):  # of a machine without the folder
                    one = kept.writer([k])(0, one)
                found[k] = one
                tick()
            if INTERRUPTED in fitted:
                raise KeyboardInterrupt

        is_complete = run_tasks(tasks, done, num_workers)
    refuse_none(found, is_complete, "frame of the stack")
    return fused_stack(frames, found, store, kept)


def _input(frames, index):
    """Of one frame."""
    return Frame(frames.source(index), frames.haadf(index), frames.mask(index), frames.background(index))


def _select(inputs, call, show_progressbar, num_workers):
    """The choice for all frames by a sample of them, and {number: frame} of the sample as it was read."""
    method: Any = METHODS[call.method]
    number = min(call.settings.sample_frames, len(inputs))
    wanted = [round((j + 0.5) * len(inputs) / number - 0.5) for j in range(number)]
    # after these, some others that can take the place of one
    order = [*wanted, *(k for k in range(len(inputs)) if k not in wanted)][: 2 * number]
    read, models, alike = {}, {}, []
    for k in order:
        (frame,) = read_frames([inputs[k]], call)
        try:
            with unreported():
                models[k] = model_of(frame, call)
        except Exception as error:
            _logger.info("Frame %d is not in the sample: %s", k, error)
            continue
        read[k] = frame
        alike = commonest({k: tuple(model._measured.fitted_elements) for k, model in models.items()})
        if len(alike) == number:
            break
    if not models:
        return None, read
    scans = [models[k]._measured.scan_data() for k in alike]
    if is_series(call.settings):  # which has no components of spectra
        scans = [replace(scan, out_of_window=None) for scan in scans]
    with counted("Choosing settings", "fit", show_progressbar) as tick:
        selection = method.select(scans, call.settings, num_workers, lambda *counts: tick())
    return selection, read


def _return_memory():
    """Give what the search has freed back to the system, or it adds to what the frames take: 0.4 GB of 1.5 GB."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # of glibc alone
        pass
