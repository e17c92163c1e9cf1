"""Replicates of a fit, which its errors are found from; what can be known, and what moved the maps.

A replicate draws new counts and a new HAADF image from the fitted maps and fits them in the same way (parametric
bootstrap, Efron & Tibshirani, An Introduction to the Bootstrap, 1993, section 6.5). What they tell is in
:mod:`~hyperspy_fusion.fusion.uncertainty.bootstrap`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hyperspy_fusion.fusion.haadf.guide import Guide
from hyperspy_fusion.fusion.problems.calibrated import LEAST_BLUR
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.selection.model_averaging import MeanProblem, weighted_mean
from hyperspy_fusion.fusion.selection.spectral_components import ComponentProblem, solved, started
from hyperspy_fusion.fusion.terms.haadf_model import blurred
from hyperspy_fusion.fusion.terms.penalties import cell_adjoint
from hyperspy_fusion.fusion.uncertainty.bootstrap import Replicates

# of the fits of replicates, which start at the fit itself: the next looser one changed no error by a twentieth
REPLICATE_TOL = 3e-4
# part of the variance of the HAADF image that the forward model must have for replicates to be guided by what the forward model draws
EXPLAINED = 0.5


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
            residuals.append(_residual(drawn[0][0], fitted).astype(np.float32))
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
        residual=_residual(problem.first, maps),
        counted=_counted(problem.first),
        variance=np.nan_to_num(count_variance(problem.first, settings, maps)),
        counts_scale=problem.first.counts_scale,
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
    found, forward_model, guides = [], None, _Guides(num_workers)
    for problem, state in members:
        rng = np.random.default_rng(seed)
        if isinstance(problem, ComponentProblem):
            of_maps = found[0][0]
            counts = np.where(_counted(of_maps), of_maps.data.net() * of_maps.scales[:, None, None], maps)
            drawn = problem.redrawn(state, maps, counts, np.random.default_rng((*seed, 1)))
            if of_maps.haadf is not members[0][0].haadf:
                inner = replace(drawn.inner, haadf_term=replace(drawn.inner.haadf_term, blur=of_maps.haadf_term.blur))
                drawn = replace(drawn, inner=_guided_by(of_maps.haadf, inner, settings, guides))
        else:
            # the same counts for all, and the same forward model, which need not be found again
            known = (
                problem
                if forward_model is None
                else replace(problem, refit_forward_model=lambda *_, forward_model=forward_model: forward_model)
            )
            drawn = redrawn(known, settings, maps / problem.scales[:, None, None].astype(np.float64), rng, guides)
            forward_model = drawn.forward_model if _finds_law(drawn) else forward_model
        result, _ = solved(drawn, settings, started(drawn, state), num_workers=num_workers)
        if result.reason is StopReason.INTERRUPTED:
            return None
        found.append((drawn, result.maps))
    return found


class _Guides:
    """The guide by an image, which is freed of its noise once for all members of a mean."""

    def __init__(self, num_workers=None):
        self.num_workers, self.last = num_workers, None

    def of(self, image, problem, settings):
        """What the penalty of a problem takes from an image."""
        if self.last is None or not np.array_equal(self.last.haadf, image):
            self.last = Guide(image, problem.haadf_valid, problem.dtype, self.num_workers)
        return self.last.of(problem.penalty.kind, settings, problem.dtype, problem.haadf_term.blur)


def redrawn(problem, settings, z, rng, guides=None):
    """The problem of one more measurement of the maps ``z``, (n, ny, nx) in its own units.

    Counts, background included, or Gaussian maps; totals; and the HAADF image as the forward model has it of these maps, with its
    white noise and the blur between maps and image, which the forward model of the fit lacks: for its term, and for the edges
    that guide the penalty, unless the forward model explains too little of the measured image, which then stays the guide. The
    forward model is found anew from both where the term of the image acts; the noise stays as it was found.
    """
    beta = _drawn_data(problem, settings, z, rng)
    data = replace(problem.data, beta=beta.astype(problem.dtype))
    totals = np.sum(data.net(), axis=(1, 2), where=_counted(problem))
    data = replace(data, totals=np.where(np.isfinite(problem.data.totals), totals, np.nan))
    image = _drawn_image(problem, z, rng)
    drawn = _seen_by_term(image, _with_law_of(image, replace(problem, data=data), settings), settings)
    return _guided_by(image, drawn, settings, guides or _Guides()) if _is_explained(problem, image) else drawn


def _drawn_data(problem, settings, z, rng):
    """``beta`` of the data terms."""
    slope = problem.data.slope.astype(np.float64)
    if not problem.data.is_poisson:
        return slope * z + np.sqrt(slope) * rng.standard_normal(z.shape)
    counts = rng.poisson(_expected_counts(problem, settings, z))
    return np.where(_counted(problem), counts + _shift(problem, settings), 0)


def _expected_counts(problem, settings, z):
    """(n, ny, nx) mean counts, those of the background included, of maps z."""
    slope, delta = (a.astype(np.float64) for a in (problem.data.slope, problem.data.delta))
    return np.maximum(slope * (z + delta) - _shift(problem, settings), 0)


def _shift(problem, settings):
    return settings.shift if problem.noise_kind == "shifted_poisson" else 0.0


def _drawn_image(problem, z, rng):
    """The HAADF image (ny, nx) of ``z``."""
    clean = problem.forward_model.image(z * problem.scales[:, None, None])
    noise = problem.haadf_noise * rng.standard_normal(clean.shape)
    return blurred(clean, problem.forward_model.blur) + noise


def _is_explained(problem, image):
    """Whether the forward model has most of the variance of the measured HAADF image: else it draws edges that are not there."""
    measured, drawn = (a[problem.haadf_valid] - a[problem.haadf_valid].mean() for a in (problem.haadf, image))
    together = np.sum(measured * drawn)
    return bool(together > 0 and together**2 >= EXPLAINED * np.sum(measured**2) * np.sum(drawn**2))


def _with_law_of(image, problem, settings):
    """The problem with the forward model of its maps and another HAADF image, if its term has a use for it."""
    if not _finds_law(problem):
        return problem
    net = np.where(_counted(problem), problem.data.net() * problem.scales[:, None, None], 0)
    # as the forward model was found: of counts, those that were measured are their variance
    variance = np.nan_to_num(count_variance(problem, settings, net))
    return replace(problem, forward_model=problem.refit_forward_model(net, image, variance))


def _finds_law(problem):
    return problem.refit_forward_model is not None and problem.haadf_term.weights.size > 0


def _seen_by_term(image, problem, settings):
    """The problem with another HAADF image, and its forward model, in its term."""
    haadf_term, forward_model, dtype = problem.haadf_term, problem.forward_model, problem.dtype
    if not haadf_term.weights.size:
        return problem
    factor = np.sqrt(problem.lambda_haadf) / problem.haadf_sigma
    target = np.where(problem.haadf_valid, factor * (image - forward_model.offset), 0).astype(dtype)
    weights = (factor * forward_model.weights * problem.scales).astype(dtype)
    # whether the term blurs is not decided anew, and a forward model that finds no blur, as in a lattice, says little
    is_found = haadf_term.blur and settings.haadf_blur == "fit" and forward_model.blur >= LEAST_BLUR
    blur = float(forward_model.blur) if is_found else haadf_term.blur
    return replace(problem, haadf_term=replace(haadf_term, weights=weights, target=target, blur=blur))


def _guided_by(image, problem, settings, guides):
    """The problem with another HAADF image as guide."""
    penalty = replace(problem.penalty, guide=guides.of(image, problem, settings))
    return replace(problem, haadf=image, penalty=penalty)


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


def count_variance(problem, settings, maps):
    """(n, ny, nx) variance of the measured maps were the fitted ``maps`` the truth; NaN in masked pixels."""
    if not problem.data.is_poisson:
        slope = np.where(problem.data.slope > 0, problem.data.slope, 1).astype(np.float64)
        variance = np.broadcast_to(problem.scales[:, None, None] ** 2 / slope, maps.shape)
    else:
        counts = _expected_counts(problem, settings, maps / problem.scales[:, None, None])
        variance = problem.counts_scale[:, None, None] ** 2 * counts
    return np.where(_counted(problem), variance, np.nan)


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
    counted, haadf_term = _counted(problem), problem.haadf_term
    z = maps / problem.scales[:, None, None].astype(np.float64)
    reach = np.where(counted, problem.data.reach(z) * problem.scales[:, None, None], np.nan)
    pull = np.zeros((1, 1, 1))
    if haadf_term.weights.size:
        weights = haadf_term.weights.astype(np.float64)
        pull = np.multiply.outer(-weights, haadf_term.slope(haadf_term.image(z)))
    parts = {
        "haadf": reach * pull,
        "penalty": -reach * cell_adjoint(state.y.astype(np.float64)),
        "totals": -reach * state.theta[:, None, None],
    }
    parts["bound"] = np.where(counted, -_residual(problem, maps), np.nan) - sum(parts.values())
    return parts


def _of_spectrum(problem, maps):
    """What moved maps that are read from components of the spectra; ``problem`` is one of the measured maps."""
    return {"spectrum": np.where(_counted(problem), -_residual(problem, maps), np.nan)}


# ---- what was measured -----------------------------------------------------------------------------


def _counted(problem):
    return np.broadcast_to(problem.data.slope > 0, problem.shape)


def _residual(problem, maps):
    """Measured, less background, minus fitted maps, in units of the input; 0 in masked pixels."""
    measured = problem.data.net() * problem.scales[:, None, None]
    return np.where(_counted(problem), measured - maps, 0)
