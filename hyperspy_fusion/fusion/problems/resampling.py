"""One bootstrap replicate of the calibrated problem: counts and HAADF image drawn from the fitted maps.

    counts_i ~ Poisson(x_i + background_i),   h ~ G f(x) + N(0, haadf noise^2)

with G the blur between maps and image. Totals, HAADF forward model and guide follow from what was drawn, as they
follow from the measured data; the noise model stays.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.haadf.guide import completed_guide
from hyperspy_fusion.fusion.terms.haadf_model import blurred
from hyperspy_fusion.fusion.terms.objective import LEAST_BLUR, HaadfTerm

# share of the variance of the HAADF image that the forward model must explain for the drawn image to be the guide
EXPLAINED = 0.5


def resampled(problem, settings, maps, seed, earlier=(), measured=None):
    """The :class:`~.calibrated.CalibratedProblem` of a bootstrap replicate; see :meth:`~.base.FusionProblem.resample`.

    ``measured`` (n, ny, nx) are maps that were drawn already, else they are drawn here. ``seed`` may be what draws.

    The forward model is fitted again only where the HAADF term acts. Where the forward model explains too little of
    the measured image, the measured image stays the guide.
    """
    rng: Any = seed if hasattr(seed, "standard_normal") else np.random.default_rng(seed)
    if measured is None:
        data = _drawn_data(problem, maps, rng)
    else:
        data = _with_totals(problem, problem.data.measuring(problem.natural(measured)))
    images = [_drawn_image(problem, maps, k, rng) for k in range(problem.n_images)]
    drawn = replace(problem, data=data)
    if drawn.fits_haadf_model:
        drawn = replace(drawn, forward_model=_refitted(drawn, images[0], earlier))
    if drawn.haadf_term.weights.size:
        drawn = replace(drawn, haadf_term=_term_of(drawn, 0, images[0], settings))
    drawn = _with_further_images(drawn, images[1:], settings, earlier)
    return guided_by(images[0], drawn, settings, earlier) if _explains(problem, images[0]) else drawn


def _with_further_images(problem, images, settings, earlier):
    """The problem with the forward models and the terms of further elastic images that were drawn."""
    for k, image in enumerate(images, 1):
        _, calibration, term = problem.image(k)
        if not term.weights.size:
            continue
        found = next((p.further[k - 1] for p in earlier if p.further_terms[k - 1].weights.size), None)
        if found is None and calibration.refit is not None:
            found = replace(calibration, forward_model=_model_of_draw(problem, calibration, image))
        problem = replace(problem, further=_with(problem.further, k - 1, found or calibration))
        term = _term_of(problem, k, image, settings)
        problem = replace(problem, further_terms=_with(problem.further_terms, k - 1, term))
    return problem


def _with(values, k, value):
    return (*values[:k], value, *values[k + 1 :])


def guided_by(image, problem, settings, earlier=()):
    """The problem with another HAADF image (ny, nx), which also guides its penalty."""
    same = (p.guide for p in earlier if np.array_equal(p.scan.haadf, image))
    guide = next(same, None) or _guide(image, problem)
    edges = guide.of(problem.penalty.kind, settings, problem.dtype, problem.haadf_term.blur)
    penalty = replace(problem.penalty, guide=edges)
    return replace(problem, scan=replace(problem.scan, haadf=image), guide=guide, penalty=penalty)


def _guide(image, problem):
    """The guide of a drawn image, completed by the drawn maps as that of the data is by the measured ones."""
    net = np.where(problem.valid, problem.measured(), 0)
    maps = net, problem.valid, np.nan_to_num(problem.count_variance(np.maximum(net, 0)))
    model, options = problem.forward_model, (problem.dtype, problem.guide.num_workers)
    found = completed_guide(image, problem.scan.haadf_valid, model, *maps, *options)
    # of a larger image, where they are given
    return replace(found, limits=problem.guide.limits, given_noise=problem.guide.given_noise)


def _drawn_data(problem, maps, rng):
    """The data term of drawn counts, background included, or of drawn Gaussian maps, and their totals."""
    data = problem.data
    if data.is_poisson:
        counts = rng.poisson(problem.expected_counts(maps)) + problem.noise.shift
        beta = np.where(problem.valid, counts, 0)
    else:
        slope, z = data.slope.astype(np.float64), problem.natural(maps)
        beta = slope * z + np.sqrt(slope) * rng.standard_normal(z.shape)
    return _with_totals(problem, replace(data, beta=beta.astype(problem.dtype)))


def _with_totals(problem, data):
    """The data term with totals of its own, where totals are kept."""
    totals = np.sum(data.net(), axis=(1, 2), where=problem.valid)
    return replace(data, totals=np.where(np.isfinite(problem.data.totals), totals, np.nan))


def _drawn_image(problem, maps, k, rng):
    """(ny, nx) elastic image k of ``maps`` with the blur that was found and white noise."""
    calibration = problem.image(k)[1]
    clean = calibration.forward_model.image(maps.astype(np.float64))
    noise = calibration.noise * rng.standard_normal(clean.shape)
    return blurred(clean, calibration.forward_model.blur) + noise


def _explains(problem, image):
    """Whether the drawn image has most of the variance of the measured one; else it has edges that are not there."""
    if not problem.scan.has_contrast:
        return False
    valid = problem.scan.haadf_valid
    measured, drawn = (a[valid] - a[valid].mean() for a in (problem.scan.haadf, image))
    together = np.sum(measured * drawn)
    return bool(together > 0 and together**2 >= EXPLAINED * np.sum(measured**2) * np.sum(drawn**2))


def _refitted(problem, image, earlier):
    """The forward model of drawn maps and image; the same draw has the same."""
    found = next((p.forward_model for p in earlier if p.fits_haadf_model), None)
    if found is not None:
        return found
    return _model_of_draw(problem, problem.calibration, image)


def _model_of_draw(problem, calibration, image):
    net = np.where(problem.valid, problem.measured(), 0)
    # as in the first fit, counts are their own variance
    return calibration.refit(net, image, np.nan_to_num(problem.count_variance(net)))


def _term_of(problem, k, image, settings):
    """The HAADF term of a drawn elastic image k and its forward model."""
    scan, calibration, term = problem.image(k)
    model, weight = calibration.forward_model, (problem.lambda_haadf, *problem.further_lambdas)[k]
    # whether the term blurs is not decided again, and a refit that finds no blur, as in a lattice, is no evidence
    is_found = term.blur and settings.of_image(k).haadf_blur == "fit" and model.blur >= LEAST_BLUR
    blur = float(model.blur) if is_found else term.blur
    return term_of(replace(scan, haadf=image), calibration, weight, problem.scales, problem.dtype, blur)


def term_of(scan, calibration, weight, scales, dtype, blur):
    """The :class:`HaadfTerm` of a scan of one image, of a weight; none for a weight of 0."""
    factor = np.sqrt(weight) / calibration.sigma if weight != 0 else 0.0
    return HaadfTerm.of(scan, calibration.forward_model, factor, scales, dtype, blur)
