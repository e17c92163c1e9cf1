"""Replicates of a fit, which its errors are found from; what can be known, and what moved the maps.

A replicate draws new counts and a new HAADF image from the fitted maps and fits them in the same way (parametric
bootstrap, Efron & Tibshirani, An Introduction to the Bootstrap, 1993, section 6.5). What they tell is in
:mod:`~hyperspy_fusion.fusion.uncertainty.bootstrap`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hyperspy_fusion.fusion.problems.resampling import guided_by
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.selection.model_averaging import MeanProblem, weighted_mean
from hyperspy_fusion.fusion.selection.spectral_components import ComponentProblem, solved, started
from hyperspy_fusion.fusion.uncertainty.bootstrap import Replicates

# of the fits of replicates, which start at the fit itself: the next looser one changed no error by a twentieth
REPLICATE_TOL = 3e-4


# ---- drawing and fitting replicates ----------------------------------------------------------------


def replicates_of(problem, settings, state, maps, replicates=32, seed=0, callback=None, num_workers=None):
    """Draw and fit replicates of a fit.

    Parameters
    ----------
    problem, settings, state
        Of the fit, or of a mean of fits; the state is where every replicate starts, and is not changed.
    maps
        (n, ny, nx) the fitted maps in the units of the input.
    replicates
        How many, at least 2. The standard errors are themselves uncertain by a fraction of ``1 / sqrt(2 replicates)``.
    seed
        Of the draws, an integer >= 0; replicate k is the same whatever their number.
    callback
        Called with the number of replicates done; may raise ``StopIteration`` to keep these.
    num_workers
        Threads of each fit; the replicates follow one another, for the threads of a fit are those of the machine.

    Returns
    -------
    Replicates
        Those that were done when Ctrl-C was pressed, if they are at least 2.

    Raises
    ------
    KeyboardInterrupt
        Where Ctrl-C was pressed before.
    """
    members, weights = _members(problem, state)
    run = replace(settings, tol=max(settings.tol, REPLICATE_TOL))
    errors, residuals = [], []
    try:
        for k in range(replicates):
            drawn = _refitted(members, run, maps, (seed, k), num_workers)
            if drawn is None:
                break
            fitted = weighted_mean(weights, [found for _, found in drawn])
            errors.append((fitted - maps).astype(np.float32))
            residuals.append(drawn[0][0].residual(fitted).astype(np.float32))
            if callback is not None:
                callback(k + 1)
    except StopIteration:
        pass
    except KeyboardInterrupt:
        if len(errors) < 2:
            raise
    if len(errors) < 2:
        raise KeyboardInterrupt
    return Replicates(
        maps=maps.copy(),
        residual=problem.first.residual(maps),
        counted=problem.first.valid,
        variance=np.nan_to_num(problem.first.count_variance(maps)),
        counts_scale=problem.first.noise.counts_scale,
        errors=np.stack(errors),
        residuals=np.stack(residuals[: len(errors)]),
    )


def _members(problem, state):
    """(problem, state) of every fit, and the weights (fits, n) of their mean."""
    if isinstance(problem, MeanProblem):
        return problem.members(state)
    return [(problem, state)], np.ones((1, len(problem.scales)))


def _refitted(members, settings, maps, seed, num_workers):
    """One measurement drawn from ``maps`` and fitted by all members: (problem, maps) of each; None if interrupted."""
    found = []
    for problem, state in members:
        if isinstance(problem, ComponentProblem):
            of_maps = found[0][0]
            counts = np.where(of_maps.valid, of_maps.measured(), maps)
            drawn = problem.redrawn(state, maps, counts, np.random.default_rng((*seed, 1)))
            if of_maps.scan.haadf is not members[0][0].scan.haadf:
                inner = replace(drawn.inner, haadf_term=replace(drawn.inner.haadf_term, blur=of_maps.haadf_term.blur))
                drawn = replace(drawn, inner=guided_by(of_maps.scan.haadf, inner, settings, [of_maps]))
        else:
            drawn = problem.resample(settings, state, maps, seed, [p for p, _ in found])
        result, _ = solved(drawn, settings, started(drawn, state), num_workers=num_workers)
        if result.reason is StopReason.INTERRUPTED:
            return None
        found.append((drawn, result.maps))
    return found


# ---- what can be known, and what moved the maps ----------------------------------------------------


def attainable_gain(variance, weights, sigma, blur=0.0):
    """By what factor counts and HAADF image of a pixel, and nothing else, can lower the variance of its counts.

    The Fisher matrix of a pixel is ``diag(1 / variance) + w w^T / sigma**2``, its inverse the smallest covariance of
    any unbiased estimate (Cramer & Rao). By the formula of Sherman & Morrison the gain of element i is
    ``(sigma**2 + S) / (sigma**2 + S - w_i**2 variance_i)``, ``S = sum_j w_j**2 variance_j``. What is gained beyond it
    comes from neighbouring pixels, that is, from the penalty. A blur leaves ``g**2`` of what the image knows of waves
    that it leaves g of, and the variance of a pixel is the mean over all waves, as if variances were alike around it.
    A blur that the forward model of the fit does not know is part of sigma.

    Parameters
    ----------
    variance
        (n, ny, nx) of the measured maps, NaN where a map was not measured.
    weights
        (n,) of the HAADF forward model.
    sigma
        Standard deviation of the HAADF image about the forward model: a number, or (ny, nx) with infinity where it is masked.
    blur
        Standard deviation in pixels of the Gaussian by which the forward model blurs the maps.

    Returns
    -------
    numpy.ndarray
        (n, ny, nx), 1 or more; NaN where the map was not measured.
    """
    if blur:
        left = _left_of_waves(blur)
        return 1 / np.mean([1 / attainable_gain(variance, weights, sigma / g) for g in left], axis=0)
    # an element that was not measured leaves the image no say on the others, if it shows in it
    spread = np.where(np.isnan(variance), np.inf, variance)
    shown = np.where(weights[:, None, None] > 0, weights[:, None, None] ** 2 * spread, 0)
    others = [np.sum(np.delete(shown, i, axis=0), axis=0) for i in range(len(shown))]
    with np.errstate(invalid="ignore"):
        gain = 1 + shown / (np.square(sigma) + np.stack(others))
    return np.where(np.isnan(variance), np.nan, gain)


def _left_of_waves(blur, number=8):
    """What a Gaussian leaves of the waves of a lattice of pixels; at least a little, as no division by 0 is meant."""
    along = np.exp(-0.5 * (blur * np.pi * (np.arange(number) + 0.5) / number) ** 2)
    return np.maximum(np.multiply.outer(along, along).ravel(), 1e-12)


def attribution(problem, state, maps):
    """What moved each pixel from the measured to the fused map: HAADF image, penalty, totals, and the bound at 0.

    At the minimum the pulls on every pixel balance: that of its counts, back to what was measured, is
    ``(b - x) / V`` with ``V = q**2 mu``, the variance of counts of the fitted mean mu, shift included (or that of
    Gaussian noise). Therefore, exactly,

        x - b = V (pull of HAADF + pull of penalty + pull of totals + pull of the bound),

    the pulls being minus the derivatives of the terms by x.

    Parameters
    ----------
    problem, state
        Of the fit.
    maps
        (n, ny, nx) the fitted maps in the units of the input.

    Returns
    -------
    dict of numpy.ndarray
        ``"haadf"``, ``"penalty"``, ``"totals"`` and ``"bound"``, (n, ny, nx) in the units of the maps, which add up to
        fused minus measured (less its background); of a mean of fits their means. ``"bound"`` keeps maps from below 0,
        and holds what the solver has left undone; ``"spectrum"``, where the mean has fits to components of the spectra,
        is all that these moved. All are NaN in masked pixels, which were never measured.
    """
    if isinstance(problem, MeanProblem):
        members, weights = problem.members(state)
        each = [
            _of_spectrum(problem.first, of_member)
            if isinstance(member[0], ComponentProblem)
            else attribution(*member, of_member)
            for member, of_member in zip(members, state.maps, strict=True)
        ]
        names, nothing = dict.fromkeys(name for parts in each for name in parts), np.zeros_like(each[0]["bound"])
        return {name: weighted_mean(weights, [parts.get(name, nothing) for parts in each]) for name in names}
    return problem.attribution(state, maps)


def _of_spectrum(problem, maps):
    """What moved maps that are read from components of the spectra; ``problem`` is one of the measured maps."""
    return {"spectrum": np.where(problem.valid, -problem.residual(maps), np.nan)}
