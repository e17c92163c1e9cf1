"""One bootstrap replicate of the calibrated problem: counts and HAADF image drawn from the fitted maps.

    counts_i ~ Poisson(x_i + background_i),   h ~ G f(x) + N(0, haadf noise^2)

with G the blur between maps and image. Totals, HAADF forward model and guide follow from what was drawn, as they
follow from the measured data; the noise model stays.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hyperspy_fusion.fusion.haadf.guide import completed_guide
from hyperspy_fusion.fusion.terms.haadf_model import blurred
from hyperspy_fusion.fusion.terms.objective import LEAST_BLUR, HaadfTerm

# share of the variance of the HAADF image that the forward model must explain for the drawn image to be the guide
EXPLAINED = 0.5


def resampled(problem, settings, maps, seed, earlier=(), measured=None):
    """The :class:`~.calibrated.CalibratedProblem` of a bootstrap replicate; see :meth:`~.base.FusionProblem.resample`.

    ``measured`` (n, ny, nx) are maps that were drawn already, else they are drawn here.

    The forward model is fitted again only where the HAADF term acts. Where the forward model explains too little of
    the measured image, the measured image stays the guide.
    """
    rng = np.random.default_rng(seed)
    if measured is None:
        data = _drawn_data(problem, maps, rng)
    else:
        data = _with_totals(problem, problem.data.measuring(problem.natural(measured)))
    image = _drawn_image(problem, maps, rng)
    drawn = replace(problem, data=data)
    if drawn.fits_haadf_model:
        drawn = replace(drawn, forward_model=_refitted(drawn, image, earlier))
    if drawn.haadf_term.weights.size:
        drawn = replace(drawn, haadf_term=_term_of(drawn, image, settings))
    return guided_by(image, drawn, settings, earlier) if _explains(problem, image) else drawn


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
    return completed_guide(image, problem.scan.haadf_valid, model, *maps, *options)


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


def _drawn_image(problem, maps, rng):
    """(ny, nx) HAADF image of ``maps`` with the blur that was found and white noise."""
    clean = problem.forward_model.image(maps.astype(np.float64))
    noise = problem.calibration.noise * rng.standard_normal(clean.shape)
    return blurred(clean, problem.forward_model.blur) + noise


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
    net = np.where(problem.valid, problem.measured(), 0)
    # as in the first fit, counts are their own variance
    return problem.calibration.refit(net, image, np.nan_to_num(problem.count_variance(net)))


def _term_of(problem, image, settings):
    """The HAADF term of a drawn image and its forward model."""
    term, model = problem.haadf_term, problem.forward_model
    # whether the term blurs is not decided again, and a refit that finds no blur, as in a lattice, is no evidence
    is_found = term.blur and settings.haadf_blur == "fit" and model.blur >= LEAST_BLUR
    blur = float(model.blur) if is_found else term.blur
    factor, scan = np.sqrt(problem.lambda_haadf) / problem.calibration.sigma, replace(problem.scan, haadf=image)
    return HaadfTerm.of(scan, model, factor, problem.scales, problem.dtype, blur)
