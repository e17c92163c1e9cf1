"""The calibrated method: convex, in the units of the maps, solved to a stated accuracy."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np

from hyperspy_fusion.fusion.haadf.hot_pixels import about_spikes_of_maps, spikes_of_maps
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.solvers.primal_dual_state import Stopping
from hyperspy_fusion.fusion.terms.haadf_model import z_weights
from hyperspy_fusion.fusion.terms.noise_estimation import shares_noise
from hyperspy_fusion.grid.masks import find_valid
from hyperspy_fusion.identify.elements import atomic_number
from hyperspy_fusion.methods.base import Setup
from hyperspy_fusion.methods.fit_checks import (
    diagnostics_of_calibrated_fit,
    diagnostics_of_shared_noise,
    diagnostics_of_units,
)

# when a preview ends: within a tenth of the standard errors of its final maps, which no eye distinguishes
_SETTLED_PREVIEW, _LONGEST_PREVIEW = 0.1, 125


def _refuse_noise_settings(settings):
    """Refuse what a fit to counts of whole spectra does not have."""
    usual = {"noise": ("auto", "shifted_poisson"), "variance": (None,), "background": (0.0,)}
    for name, values in usual.items():
        if (given := getattr(settings, name)) not in values:
            raise ValueError(
                f"{name} is {given!r}, and lines is 'model', which fits counts and their continuum: leave it out, or "
                "pass lines='windows'."
            )


class Calibrated:
    """A :class:`~hyperspy_fusion.methods.base.Method`."""

    name = "calibrated"
    uses_masks = uses_noise_metadata = has_noise_model = True
    uses_spectra = False

    def find_valid(self, elements, maps, haadf, mask, ceiling=None, corner=(0, 0), variance=None):
        """As of a :class:`Method`; ``ceiling`` is that of a larger image, None finds it.

        ``corner`` (x, y) is the first pixel in that image.
        """
        valid, found = find_valid(elements, maps, haadf, mask, ceiling)
        coefficients = z_weights([atomic_number(e) for e in elements], CalibratedSettings.z_exponent)
        spikes, doubtful = spikes_of_maps(maps, valid.maps, haadf, valid.haadf, coefficients, variance)
        if spikes.any():
            valid = replace(valid, maps=valid.maps & ~spikes)
        return valid, [*found, *about_spikes_of_maps(elements, spikes, doubtful, corner)]

    def observe(self, scan, settings, num_workers):
        """Noise model, HAADF forward model and guide of a scan, from which problems of any penalty are built.

        The second value are the settings, without the HAADF image where it has no contrast.
        """
        from hyperspy_fusion.fusion.problems.calibrated import Observation
        from hyperspy_fusion.fusion.problems.spectral import SpectralObservation

        if scan.spectra is None:
            observation = Observation.of(scan, settings, num_workers)
        else:
            _refuse_noise_settings(settings)
            spectra = scan.spectra.of_pixels(scan.valid.all(axis=0))
            observation = SpectralObservation.of(scan, spectra.model, spectra.counts, settings, num_workers)
            settings = replace(settings, joint=False)  # each map has a penalty of its own
        if not observation.scan.has_contrast:
            settings = settings.without_first_image(1 + len(scan.further))
        return observation, settings

    def preview(self, observed, settings, window, num_workers):
        """As of a :class:`Method`; less exact than a fit, and ended early where that takes long."""
        if not observed.scan.has_contrast:
            settings = settings.without_first_image(1 + len(observed.scan.further))
        crop = observed.cropped(window)
        longest = min(settings.max_iter, _LONGEST_PREVIEW)
        stopping = replace(Stopping.of(settings), max_iter=longest, settled=_SETTLED_PREVIEW)
        # with a callback the fit keeps its duality gaps
        result, _ = self.solve(crop.problem(settings), stopping, None, lambda state: None, num_workers)
        background = np.broadcast_to(crop.noise.background, crop.scan.maps.shape)
        return result, replace(crop.scan, background=background), settings

    def build(self, scan, settings, num_workers, tick):
        observation, settings = self.observe(scan, settings, num_workers)
        return Setup(observation.problem(settings), settings, scan)

    def solve(self, problem, settings, state, callback, num_workers):
        return problem.solve(settings, state, callback, num_workers)

    def check_refit(self, before, after):
        """Any settings may follow any others."""

    def restart(self, state, problem):
        return state.restarted(problem)

    def map_background(self, setup):
        return setup.scan.per_map("background", setup.settings.background)

    def consistency(self, setup, state, result):
        from hyperspy_fusion.fusion.problems.spectral import SpectralProblem
        from hyperspy_fusion.fusion.uncertainty.consistency_checks import ConsistencyChecks

        problem, of_largest = setup.problem.fits(state)[0][0] if setup.scan.spectra else (None, None)
        is_spectral = isinstance(problem, SpectralProblem)
        noise = problem.estimate_noise(of_largest, result.maps) if is_spectral else None
        return ConsistencyChecks.of(setup.scan, result.maps, setup.problem, noise=noise)

    def diagnose(self, setup, result, elements, total_ratios, haadf_correlation, checks):
        problem, settings = setup.problem.of_largest_weight, setup.settings
        units = problem.noise.counts_scale if problem.forward_model.weights.any() else []
        return [
            *setup.problem.diagnostics,
            *diagnostics_of_units(units, settings),
            *diagnostics_of_calibrated_fit(elements, result, total_ratios, settings),
            *self._diagnose_noise(setup.scan, setup.selection),
            *checks.diagnostics(),
            *self._diagnose_further_images(setup, result, (checks.variance, checks.counts_scale)),
        ]

    def _diagnose_further_images(self, setup, result, noise):
        from hyperspy_fusion.fusion.uncertainty.consistency_checks import ConsistencyChecks

        checked = [
            (image.name, ConsistencyChecks.of(setup.scan, result.maps, setup.problem, k, noise))
            for k, image in enumerate(setup.scan.further, 1)
        ]
        return [found.about_image(name) for name, checks in checked for found in checks.about_image()]

    def _diagnose_noise(self, scan, selection):
        shared = [e for e, *one in zip(scan.elements, scan.maps, scan.valid, strict=True) if shares_noise(*one)]
        return diagnostics_of_shared_noise(shared)

    def describe(self, problem, result, per_map):
        image_weights, problem = problem.image_weights, problem.of_largest_weight
        kind, sentence = str(problem.noise.kind), str(problem.noise.sentence)
        if problem.scan.spectra is not None:  # the noise of the estimates of pixels is not that of the fit
            kind, sentence = "shifted_poisson", "The bands of the spectra hold counts: shifted Poisson noise."
        systematic = problem.scan.systematic
        return {
            **({} if systematic is None else {"systematic_errors": per_map(systematic)}),
            "haadf_coefficients": per_map(problem.forward_model.weights),
            "haadf_coefficient_errors": per_map(problem.calibration.coefficient_errors),
            "haadf_prior_scale": float(problem.calibration.prior_scale),
            "haadf_offset": float(problem.forward_model.offset),
            "haadf_offset_error": float(problem.calibration.offset_error),
            "haadf_sigma": float(problem.calibration.sigma),
            "haadf_noise": float(problem.calibration.noise),
            "haadf_blur": float(problem.calibration.found_blur[0]),
            "haadf_blur_error": float(problem.calibration.found_blur[1]),
            "haadf_term_blur": float(problem.haadf_term.blur),
            **_of_compression(problem.forward_model.compression),
            "noise": kind,
            "noise_sentence": sentence,
            "counts_scale": per_map(problem.noise.counts_scale),
            "variance": per_map(problem.noise.variance),
            "background": per_map(problem.background),
            "map_scales": per_map(problem.scales),
            "gap": float(result.gap),
            **(_of_images(problem, image_weights, per_map) if problem.n_images > 1 else {}),
        }


def _of_compression(compression):
    """The entry of a compressed image; none for others."""
    return {} if compression is None else {"haadf_compression": np.array(astuple(compression))}


def _of_images(problem, weights, per_map):
    """Entries of several elastic images, the first one included: flat arrays, all maps of the first image first."""
    images = [problem.image(k) for k in range(problem.n_images)]
    models, calibrations = [c.forward_model for _, c, _ in images], [c for _, c, _ in images]
    return {
        "image_names": ["HAADF", *(image.name for image in problem.scan.further)],
        "image_weights": weights,
        "image_coefficients": np.concatenate([per_map(model.weights) for model in models]),
        "image_coefficient_errors": np.concatenate([per_map(c.coefficient_errors) for c in calibrations]),
        "image_offsets": np.array([model.offset for model in models]),
        "image_sigmas": np.array([c.sigma for c in calibrations]),
        "image_blurs": np.array([term.blur for *_, term in images]),
    }
