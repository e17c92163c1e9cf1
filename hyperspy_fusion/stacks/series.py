"""The fit of all frames of a stack together: one task of the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import unreported
from hyperspy_fusion.fusion.checks import is_auto
from hyperspy_fusion.fusion.settings import AutoSettings
from hyperspy_fusion.fusion.uncertainty.bootstrap import bootstrap_series
from hyperspy_fusion.methods import METHODS
from hyperspy_fusion.methods.base import Setup
from hyperspy_fusion.stacks.fit import (
    INTERRUPTED,
    FailedFrame,
    commonest,
    fit_frame,
    fitted_frame,
    model_of,
    read_frames,
    written,
)


def is_series(settings: Any) -> bool:
    """Whether settings fit all frames of a stack together."""
    weight = getattr(settings, "lambda_stack", 0)
    return is_auto(weight) or weight > 0


def check_series(frames: Any, call: Any) -> None:
    """Raise ValueError for what frames cannot be fitted together with."""
    if len(frames.shape) > 1:
        named = ", ".join(f"{axis['name']} ({axis['size']})" for axis in frames.axes)
        raise ValueError(
            f"lambda_stack is {call.settings.lambda_stack!r}, and the stack has the axes {named}: fuse frames along "
            "one of them at a time, by `inav[...]`."
        )
    if getattr(call.settings, "sample_frames", 1) is None:
        raise ValueError(
            "sample_frames is None, and lambda_stack fits all frames with the same settings: give a number of frames."
        )


def fit_together(block, call, selection, num_workers, write):
    """Fit all frames of a stack; the parameters and what is returned are those of :func:`.fit.fit_frames`.

    Frames without a map that most have, as before a particle is there, are fitted by themselves.
    """
    frames = read_frames(block.frames, call)
    found: list = [None] * len(frames)
    try:
        models = {}
        for k, frame in enumerate(frames):
            try:
                with unreported():
                    models[k] = model_of(frame, call)
            # whatever it is, the other frames are fitted
            except Exception as error:
                found[k] = FailedFrame.of(error)
        alike = _alike(models)
        for k, frame in enumerate(frames):
            if found[k] is None and k not in alike:
                found[k] = _alone(frame, call, selection, num_workers)
        with unreported():
            together = _fitted({k: models[k] for k in alike}, call, selection, num_workers) if alike else {}
        found = [written(together.get(k, one), k, write) for k, one in enumerate(found)]
    except KeyboardInterrupt:
        return [INTERRUPTED] * len(frames)
    return found


def _alone(frame, call, selection, num_workers):
    try:
        return fit_frame(frame, call, selection, num_workers)
    # whatever it is, the other frames are fitted
    except Exception as error:
        return FailedFrame.of(error)


def _alike(models):
    """Numbers of the frames with the size and the fitted elements that most have, with or without contrast in HAADF."""
    scans = {k: model._measured.scan_data() for k, model in models.items()}
    return commonest({k: (*scan.elements, *scan.haadf.shape, scan.has_contrast) for k, scan in scans.items()})


def _fitted(models, call, selection, num_workers):
    """{number: FittedFrame or FailedFrame}."""
    from hyperspy_fusion.fusion.selection.series import SeriesEnsemble

    try:
        method: Any = METHODS[call.method]
        scans = [replace(model._measured.scan_data(), out_of_window=None) for model in models.values()]
        found = [method.observe(scan, call.settings, num_workers) for scan in scans]
        observations, settings = [observation for observation, _ in found], found[0][1]
        fits, selection = _fits(observations, settings, selection, num_workers)
        ensemble = SeriesEnsemble.of(observations, *zip(*fits, strict=True))
        states, results = ensemble.solve(call.settings, num_workers=num_workers)
    # whatever it is, frames that are fitted by themselves are kept
    except Exception as error:
        return dict.fromkeys(models, FailedFrame.of(error))
    errors = None
    if call.n_resamples:
        how = (call.n_resamples, call.seed, num_workers)
        errors = bootstrap_series(ensemble, fits[0][0], states, results, *how)
    frames = {}
    for t, ((k, model), fit) in enumerate(zip(models.items(), ensemble.frames(states, results), strict=True)):
        model._conclude(call.settings, Setup(fit.problem, fits[0][0], scans[t], selection), fit.state, fit.result)
        if errors is not None:
            model._keep_errors(errors[t], call.n_resamples, call.seed)
        frames[k] = fitted_frame(model, len(models))
    return frames


def _fits(observations, settings, selection, num_workers):
    """Settings and weights (n,) of each fit with all choices made, and the record of the selection."""
    from hyperspy_fusion.fusion.selection.search import ensemble_of
    from hyperspy_fusion.fusion.selection.series import weights_along

    ones: Any = np.ones(len(observations[0].scan.elements))
    if not isinstance(settings, AutoSettings):
        return [(settings, ones)], None
    if selection is None or not selection.chosen or not observations[0].scan.has_contrast:
        fits: list[tuple[Any, Any]] = [(settings.chosen(), ones)]
    else:
        fits = [(fit.settings, fit.weights) for fit in ensemble_of(selection, observations[0], settings)]
    if not is_auto(settings.lambda_stack):
        return fits, selection
    first = fits[0][0]
    best = weights_along(observations, settings, first, num_workers)
    fits = [(replace(own, lambda_stack=best.lambda_stack), w) for own, w in fits]
    sentence = f"lambda_stack={best.lambda_stack:.3g} predicts frames together best."
    if best.lambda_reg is not None:
        factor = best.lambda_reg / first.lambda_reg
        fits = [(replace(own, lambda_reg=own.lambda_reg * factor), w) for own, w in fits]
        sentence = f"lambda_stack={best.lambda_stack:.3g} with {factor:.2g} times this lambda_reg predicts frames best."
    return fits, selection and replace(selection, sentence=f"{selection.sentence} {sentence}")
