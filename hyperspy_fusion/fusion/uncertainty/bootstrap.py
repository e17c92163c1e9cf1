"""Parametric bootstrap of a fit: measurements resampled from the fitted maps, each fitted in the same way.

With the fitted maps ``x``, their background ``beta`` and the value ``q`` of one count, bootstrap replicate r draws

    counts       b_r ~ q Poisson((x + beta) / q)    (or Gaussian maps),
    HAADF image  h_r = G f(x) + noise,              f the forward model, G the blur between maps and image,

finds the HAADF forward model and the guide of the penalty anew from these, and fits the maps ``x_r``
(Efron & Tibshirani, An Introduction to the Bootstrap, 1993, section 6.5). All fits of an ensemble take the same draw.
``x_r - x`` shows the error of the method: :mod:`~hyperspy_fusion.fusion.uncertainty.error_estimates`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hyperspy_fusion.fusion.problems.base import FusionProblem
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.selection.model_averaging import weighted_mean
from hyperspy_fusion.fusion.solvers.primal_dual_state import Stopping
from hyperspy_fusion.fusion.uncertainty.error_estimates import BootstrapReplicates
from hyperspy_fusion.fusion.uncertainty.region_counts import RegionCounts

# of the refits, which start at the fit itself: gap, and distance from the final maps in standard errors
REFIT_GAP, REFIT_SETTLED = 3e-4, 0.05


def bootstrap(problem: FusionProblem, settings, state, maps, number=32, seed=0, callback=None, num_workers=None):
    """Resample and refit a fit.

    Parameters
    ----------
    problem, settings, state
        Of the fit; every refit starts from the state, which is not changed.
    maps
        (n, ny, nx) the fitted maps in the units of the input.
    number
        Of bootstrap replicates, at least 2. The standard errors have a relative error of ``1 / sqrt(2 number)``.
    seed
        Of the draws, an integer >= 0; bootstrap replicate k is the same whatever their number.
    callback
        Called with the number of bootstrap replicates done; may raise ``StopIteration`` to keep these.
    num_workers
        Threads of each refit; None for all.

    Returns
    -------
    BootstrapReplicates
        Those that were done when Ctrl-C was pressed, if they are at least 2.

    Raises
    ------
    KeyboardInterrupt
        Where Ctrl-C was pressed before.
    """
    fits, weights = problem.fits(state)
    errors, residuals = [], []
    try:
        for k in range(number):
            drawn, refitted = _refitted(fits, settings, maps, (seed, k), num_workers)
            if len(refitted) < len(fits):
                break
            fitted = weighted_mean(weights, refitted)
            errors.append((fitted - maps).astype(np.float32))
            residuals.append(drawn[0].residual(fitted).astype(np.float32))
            if callback is not None:
                callback(k + 1)
    except StopIteration:
        pass
    except KeyboardInterrupt:
        if len(errors) < 2:
            raise
    if len(errors) < 2:
        raise KeyboardInterrupt
    return _replicates(problem, maps, errors, residuals)


def _replicates(problem, maps, errors, residuals):
    counts = RegionCounts.of(problem, maps.copy())
    residuals = np.stack(residuals[: len(errors)])
    return BootstrapReplicates(**vars(counts), errors=np.stack(errors), residuals=residuals)


def bootstrap_series(ensemble, settings, states, results, number=32, seed=0, num_workers=None):
    """Resample and refit a series of frames together.

    Parameters
    ----------
    ensemble
        A :class:`~hyperspy_fusion.fusion.selection.series.SeriesEnsemble`.
    states, results
        As its ``solve`` returned them.
    settings, number, seed, num_workers
        As of :func:`bootstrap`.

    Returns
    -------
    list of BootstrapReplicates
        Of each frame.

    Raises
    ------
    KeyboardInterrupt
        By Ctrl-C.
    """
    maps, frames = ensemble.maps(results), ensemble.frames(states, results)
    stopping = Stopping(settings.max_iter, REFIT_GAP, REFIT_SETTLED)
    errors, residuals = ([[] for _ in maps] for _ in range(2))
    for k in range(number):
        drawn: list = [[] for _ in maps]
        for series, state in zip(ensemble.series, states, strict=True):
            pairs = enumerate(zip(series.problems, state.states, strict=True))
            for t, (problem, own) in pairs:
                earlier = tuple(drawn[t])
                drawn[t].append(problem.resample(settings, own, maps[t], (seed, k, t), earlier))
        resampled = [replace(series, problems=[one[j] for one in drawn]) for j, series in enumerate(ensemble.series)]
        again = replace(ensemble, series=resampled)
        for t, fitted in enumerate(again.maps(again.solve(stopping, states, num_workers)[1])):
            errors[t].append((fitted - maps[t]).astype(np.float32))
            residuals[t].append(drawn[t][0].residual(fitted).astype(np.float32))
    return [_replicates(f.problem, *one) for f, *one in zip(frames, maps, errors, residuals, strict=True)]


def _refitted(fits, settings, maps, seed, num_workers):
    """The problems of one resampled measurement and the maps of their fits; no more after an interrupted one."""
    problems, fitted = [], []
    stopping = Stopping(settings.max_iter, REFIT_GAP, REFIT_SETTLED)
    for problem, state in fits:
        problems.append(problem.resample(settings, state, maps, seed, tuple(problems)))
        result, _ = problems[-1].solve(stopping, problems[-1].start(state), num_workers=num_workers)
        if result.reason is StopReason.INTERRUPTED:
            break
        fitted.append(result.maps)
    return problems, fitted
