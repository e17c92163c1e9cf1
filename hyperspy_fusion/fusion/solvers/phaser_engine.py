"""Ptychography by phaser (package phaserEM), behind the call of :func:`~.ptychography.ptychography`.

Phaser has several slices and incoherent modes of the probe. Of its solvers on NumPy, ePIE is asked for (Maiden and
Rodenburg, Ultramicroscopy 109, 1256, 2009): in phaserEM 0.3 the steps of the other one, LSQML, fall with the counts.
"""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.solvers.loop import Interruption, asked_to_stop
from hyperspy_fusion.fusion.solvers.ptychography import PtychographyState, relative_change

MISSING = 'engine="phaser" needs the package phaserEM: run `pip install "hyperspy_fusion[ptychography]"`.'
# positions in a group, whose steps are added up: at most this part of all, and so many
_PARTS, _MOST_IN_GROUP = 32, 64
# the engine on NumPy has no Poisson loss; amplitudes of counts + 3/8 are its approximation (Anscombe 1948)
_NOISE_MODELS = {"poisson": "anscombe", "amplitude": "amplitude"}
# fields of its engine that arguments of the call set
_SET_BY = {
    "niter": "max_iter=",
    "update_probe": "refine_probe=",
    "grouping": "batch_size=",
    "noise_model": "loss=",
    "type": "engine='phaser'",
}


def check_installed():
    """Raise ImportError where phaser is missing."""
    try:
        import_module("phaser.execute")
    except ImportError as error:
        raise ImportError(MISSING) from error


def check_options(options, settings):
    """Raise ValueError for options that are no fields of phaser's engine, or that arguments of the call set."""
    if options is not None and not isinstance(options, dict):
        raise ValueError(
            f"engine_options is {options!r}, and must be a dictionary of fields of phaser's engine: pass one such as "
            "{'probe_modes': 4}."
        )
    for name in filter(_SET_BY.__contains__, options or {}):
        raise ValueError(f"engine_options has {name!r}, which {_SET_BY[name]} sets: leave it out.")
    with _logging_untouched():
        _engine(settings, 1, options)


def _engine(settings, n_patterns, options):
    plan = {
        "type": "conventional",
        "solver": "epie",
        "noise_model": _NOISE_MODELS[settings.loss],
        "niter": settings.max_iter,
        "update_probe": settings.refine_probe,
        "grouping": settings.batch_size or min(max(n_patterns // _PARTS, 1), _MOST_IN_GROUP),
        "obj_pad_px": 0.0,
        "bwlim_frac": None,
        "calc_error_fraction": 1.0,
        "group_constraints": [],
        "iter_constraints": [],
        **(options or {}),
    }
    pane = import_module("pane")
    try:
        return pane.from_data(plan, import_module("phaser.hooks").EngineHook)
    except pane.ConvertError as error:
        # a tree over several lines, whose first is the name of the class
        reasons = " ".join(re.sub(r"^[\s-]+", "", line).rstrip(".") for line in str(error).splitlines()[1:])
        raise ValueError(
            f"engine_options is {options!r}, which phaser does not take ({reasons}): pass fields of its conventional "
            "engine."
        ) from error


def measured_in_all(patterns):
    """(ky, kx) bool, the pixels that every pattern has: phaser has one mask for all."""
    return np.isfinite(patterns).all(axis=0)


def by_phaser(patterns, positions, probe, shape, settings, pixel, wavelength, options=None, callback=None):
    """Fit the phase of an object to its diffraction patterns by phaser.

    Parameters
    ----------
    patterns, positions, probe, shape, settings, callback
        As for :func:`~.ptychography.ptychography`. A pixel without measurement in any pattern is left out of all.
        The learning rate has no effect, and positions are not refined.
    pixel, wavelength
        (2,) of the object (y, x), and of the electrons, in Angstrom.
    options
        Further fields of phaser's conventional engine, such as ``{"probe_modes": 4}``; lengths in Angstrom.

    Returns
    -------
    PtychographyState
        The phase of all slices together. The probe is its strongest mode.
    """
    with _logging_untouched():
        engine = _engine(settings, len(patterns), options)
        data, start = _start(patterns, positions, probe, shape, pixel, wavelength)
        data, start = import_module("phaser.execute").prepare_for_engine(data, start, np, engine.props)
        fit = _Observed(shape, probe.shape, pixel, settings, callback)
        inputs = {"data": data, "state": start, "dtype": np.float32, "xp": np, "seed": settings.seed}
        with Interruption() as fit.interruption, np.errstate(all="ignore"):
            try:
                engine({**inputs, "recons_name": "", "observer": fit.observer()})
            except import_module("phaser.types").EarlyTermination:
                pass
    if fit.state.reason is StopReason.INTERRUPTED and not fit.state.n_iter:
        raise KeyboardInterrupt
    return fit.state


@contextmanager
def _logging_untouched():
    """Phaser's messages at import and in a fit give the root logger a handler, which it shall not keep."""
    root = logging.getLogger()
    before = root.handlers[:]
    silent = logging.NullHandler()
    root.addHandler(silent)
    try:
        yield
    finally:
        root.handlers[:] = before


def _offset(window):
    """From the centre of a window as this package counts it, the pixel ``size // 2``, to that of phaser."""
    window = np.array(window)
    return (window - 1) / 2 - window // 2


def _start(patterns, positions, probe, shape, pixel, wavelength):
    state, num = import_module("phaser.state"), import_module("phaser.utils.num")
    sampling = import_module("phaser.utils.object").ObjectSampling(shape, pixel, corner=(0.0, 0.0))
    patterns = patterns.astype(np.float32, copy=False)
    mask = measured_in_all(patterns)
    scan = ((positions + _offset(probe.shape)) * pixel).astype(np.float32)
    return state.Patterns(np.where(mask, patterns, 0), mask.astype(np.float32)), state.ReconsState(
        iter=state.IterState.empty(),
        wavelength=wavelength,
        probe=state.PixelatedProbeState(num.Sampling(probe.shape, sampling=pixel), probe[None].astype(np.complex64)),
        object=state.PixelatedObjectState(sampling, np.ones((1, *shape), np.complex64), np.zeros(0, np.float32)),
        scan=state.ScanState(scan, scan.copy()),
    )


class _Observed:
    """Follows a fit of phaser, and stops it."""

    interruption: Any = None

    def __init__(self, shape, window, pixel, settings, callback):
        self.shape, self.window, self.pixel, self.settings, self.callback = shape, window, pixel, settings, callback
        zero = np.zeros(shape, np.float32)
        self.state = PtychographyState(zero, np.zeros(window, np.complex64), np.zeros((0, 2)), 0.0, np.nan)

    def observer(self):
        outer = self

        class Observer(import_module("phaser.observer").Observer):
            def update_group(self, state, force=False):
                if outer.interruption.requested:
                    outer.stop(StopReason.INTERRUPTED, state)

            def update_iteration(self, state, i, n, errors):
                outer.follow(state, errors)

        return Observer()

    def follow(self, found, errors):
        """Take the phase of a complete iteration."""
        state, before = self.state, self.state.phase
        state.phase = self._phase(found.object)
        powers = [np.linalg.norm(mode) for mode in found.probe.data]
        state.probe = found.probe.data[int(np.argmax(powers))].copy()
        state.positions = found.scan.data.reshape(-1, 2) / self.pixel - _offset(self.window)
        state.losses.append(float(errors.get("total_loss", np.nan)))
        state.change = relative_change(state.phase, before)
        stop = StopReason.NOT_FINITE if not np.isfinite(state.phase).all() else asked_to_stop(self.callback, state)
        if stop is None and state.change <= self.settings.tol:
            stop = StopReason.CONVERGED
        if stop is not None:
            self.stop(stop, found)

    def stop(self, reason, found):
        self.state.reason = reason
        raise import_module("phaser.types").EarlyTermination(found)

    def _phase(self, found):
        """The sum of the phases of all slices, each about its mean, on the pixels that were asked for."""
        first = np.rint(-found.sampling.corner / self.pixel).astype(int)
        cut = [slice(start, start + size) for start, size in zip(first, self.shape, strict=True)]
        slices = found.data[:, cut[0], cut[1]]
        means = slices.sum(axis=(1, 2), keepdims=True)
        return np.angle(slices * np.conj(means)).sum(axis=0).astype(np.float32)
