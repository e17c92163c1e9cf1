"""What the methods of a fit differ in: one entry of ``HOW`` for each, and nothing else asks which method it is.

Arrays in, arrays out. The solvers are imported with the first fit, for they compile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from hyperspy_fusion.fusion.problems.published import published_problem
from hyperspy_fusion.fusion.scan_data import ScanData
from hyperspy_fusion.fusion.terms.noise_estimation import shares_noise
from hyperspy_fusion.grid.masks import Valid, find_valid
from hyperspy_fusion.methods.fit_checks import (
    about_calibrated_fit,
    about_published_fit,
    about_shared_noise,
    about_units,
    about_weight,
    logged,
)


@dataclass(frozen=True)
class Setup:
    """What a fit is made of.

    Attributes
    ----------
    problem
        To be solved.
    settings
        Those in effect, with every choice made.
    scan
        What it is the problem of.
    selection
        How they were chosen, None where all were given.
    """

    problem: object
    settings: object
    scan: ScanData
    selection: object = None

    def going_on(self, settings):
        """The same problem, run by the ``max_iter`` and ``tol`` of other settings."""
        return replace(self, settings=replace(self.settings, max_iter=settings.max_iter, tol=settings.tol))


@dataclass(frozen=True)
class Method:
    """The functions that make a fit.

    Attributes
    ----------
    takes_gaps
        Whether it leaves out pixels: masked ones, and those that are NaN.
    takes_noise
        Whether it makes use of the background and variance that are known of the maps.
    takes_spectra
        Whether it makes use of counts outside of the windows of the maps.
    knows_noise
        Whether it has a model of the noise, from which the errors of its maps follow.
    find_valid
        Elements, maps, HAADF image and mask to :class:`~hyperspy_fusion.grid.masks.Valid` and sentences.
    build
        Scan, settings, number of threads and a function to call after every fit that a choice takes, to the
        :class:`Setup`.
    solve
        Problem, settings, state, callback and number of threads to result and state.
    check_refit
        Raises for settings (before, after) between which no fit goes on.
    restart
        State and new problem to the state that starts it from the present maps.
    background
        Settings to what a pixel of the maps holds that is not in the fused ones: a number or one per map.
    consistency_checks
        Scan, problem and result to the :class:`~.consistency_checks.ConsistencyChecks`; None where there are none.
    about_noise
        Scan and choice of weights, None for none, to sentences about the noise of the maps.
    about_fit
        Elements, result, ratios of totals, correlation of the HAADF images, problem and settings to sentences.
    describe
        Problem and result to what ``metadata.Fusion`` has of this method alone; ``spread`` takes values of the fused
        maps to one for each map.
    """

    takes_gaps: bool
    takes_noise: bool
    takes_spectra: bool
    knows_noise: bool
    find_valid: Callable
    build: Callable
    solve: Callable
    check_refit: Callable
    restart: Callable
    background: Callable
    consistency_checks: Callable
    about_noise: Callable
    about_fit: Callable
    describe: Callable


# ---- the published method ------------------------------------------------------------------------


def _all_valid(elements, maps, haadf, mask):
    if mask is not None:
        raise ValueError("mask is for method='calibrated', for the published method needs every pixel: leave it out.")
    return Valid.everywhere(maps.shape), []


def _build_published(scan, settings, num_workers, tick):
    problem = published_problem(scan.maps, scan.haadf, scan.atomic_numbers, settings)
    return Setup(problem, replace(settings, lambda_haadf=problem.lambda_haadf), scan)


def _solve_published(problem, settings, state, callback, num_workers):
    from hyperspy_fusion.fusion.solvers.proximal_gradient import proximal_gradient

    return proximal_gradient(problem, settings, state, callback, num_workers)


def _check_threshold(before, after):
    if before.threshold != after.threshold:
        raise ValueError(
            f"threshold is {after.threshold}, and acts on the start of a fit only, which has been made: "
            "fit a new FusedMultiModal with it."
        )


def _describe_published(problem, result, spread):
    return {
        "haadf_coefficients": spread(problem.haadf_term.weights),
        "map_offsets": spread(problem.map_range.offset),
        "map_scales": spread(problem.map_range.scale),
        "haadf_offset": float(problem.haadf_range.offset),
        "haadf_scale": float(problem.haadf_range.scale),
        "change": float(result.change),
    }


# ---- the calibrated method -----------------------------------------------------------------------


def _observe(scan, settings, num_workers):
    from hyperspy_fusion.fusion.problems.calibrated import Observation

    return Observation.of(scan, settings, num_workers)


def _build_calibrated(scan, settings, num_workers, tick):
    return Setup(_observe(scan, settings, num_workers).problem(settings), settings, scan)


def _solve_calibrated(problem, settings, state, callback, num_workers):
    return problem.solve(settings, state, callback, num_workers)


def _consistency_checks(scan, problem, result):
    from hyperspy_fusion.fusion.uncertainty.consistency_checks import ConsistencyChecks

    return ConsistencyChecks.of(scan, result.maps, problem)


def _about_noise(scan, selection):
    """Noise that neighbouring pixels share, which nothing else shows; no more where the choice of weights told it."""
    if selection is not None and any(d.code == "noise-shared-by-neighbours" for d in selection.diagnostics):
        return []
    pairs = zip(scan.elements, scan.maps, scan.valid, strict=True)
    return about_shared_noise([element for element, image, valid in pairs if shares_noise(image, valid)])


def _about_calibrated(elements, result, total_ratios, haadf_correlation, problem, settings):
    units = about_units(problem.of_largest_weight.noise.counts_scale, settings) + about_weight(
        problem.of_largest_weight.penalty, settings
    )
    return [
        *logged([str(d) for d in problem.diagnostics]),
        *units,
        *about_calibrated_fit(elements, result, total_ratios, haadf_correlation, settings),
    ]


def _describe_calibrated(problem, result, spread):
    problem = problem.of_largest_weight
    return {
        "haadf_coefficients": spread(problem.forward_model.weights),
        "haadf_coefficient_errors": spread(problem.calibration.coefficient_errors),
        "haadf_prior_scale": float(problem.calibration.prior_scale),
        "haadf_offset": float(problem.forward_model.offset),
        "haadf_offset_error": float(problem.calibration.offset_error),
        "haadf_sigma": float(problem.calibration.sigma),
        "haadf_noise": float(problem.calibration.noise),
        "haadf_blur": float(problem.calibration.found_blur[0]),
        "haadf_blur_error": float(problem.calibration.found_blur[1]),
        "haadf_term_blur": float(problem.haadf_term.blur),
        "noise": str(problem.noise.kind),
        "noise_sentence": str(problem.noise.sentence),
        "counts_scale": spread(problem.noise.counts_scale),
        "variance": spread(problem.noise.variance),
        "background": spread(problem.background),
        "map_scales": spread(problem.scales),
        "gap": float(result.gap),
    }


# ---- the calibrated method with weights chosen ---------------------------------------------------


def _build_auto(scan, settings, num_workers, tick):
    from hyperspy_fusion.fusion.selection.model_averaging import AveragedProblem
    from hyperspy_fusion.fusion.selection.search import select

    observation = _observe(scan, settings, num_workers)
    ensemble, selection = select(observation, settings, num_workers, tick, scan.out_of_window)
    return Setup(AveragedProblem.of(ensemble), ensemble[0].settings, scan, selection)


_CALIBRATED = Method(
    takes_gaps=True,
    takes_noise=True,
    takes_spectra=False,
    knows_noise=True,
    find_valid=find_valid,
    build=_build_calibrated,
    solve=_solve_calibrated,
    check_refit=lambda before, after: None,
    restart=lambda state, problem: state.restarted(problem),
    background=lambda settings: np.asarray(settings.background),
    consistency_checks=_consistency_checks,
    about_noise=_about_noise,
    about_fit=_about_calibrated,
    describe=_describe_calibrated,
)
HOW = {
    "published": Method(
        takes_gaps=False,
        takes_noise=False,
        takes_spectra=False,
        knows_noise=False,
        find_valid=_all_valid,
        build=_build_published,
        solve=_solve_published,
        check_refit=_check_threshold,
        restart=lambda state, problem: state.restarted(problem.maps.dtype),
        background=lambda settings: 0.0,
        consistency_checks=lambda scan, problem, result: None,
        about_noise=lambda scan, selection: [],
        about_fit=lambda *about: about_published_fit(*about[:4]),
        describe=_describe_published,
    ),
    "calibrated": _CALIBRATED,
    "auto": replace(
        _CALIBRATED,
        takes_spectra=True,
        build=_build_auto,
        # another choice has starts of its own
        restart=lambda state, problem: None,
    ),
}
