"""The published method (Schwartz et al., npj Comput. Mater. 8, 16, 2022): maps and image scaled to [0, 1]."""

from __future__ import annotations

from dataclasses import replace

from hyperspy_fusion.fusion.problems.published import published_problem
from hyperspy_fusion.fusion.terms.haadf_model import constant_in_words
from hyperspy_fusion.fusion.terms.scan_data import has_contrast
from hyperspy_fusion.grid.images import finite_pixels
from hyperspy_fusion.grid.masks import Valid, check_magnitudes
from hyperspy_fusion.methods.base import Setup
from hyperspy_fusion.methods.fit_checks import diagnostic_of_smoothing, diagnostics_of_published_fit


class Published:
    """A :class:`~hyperspy_fusion.methods.base.Method`."""

    name = "published"
    uses_masks = uses_noise_metadata = uses_spectra = has_noise_model = False

    def find_valid(self, elements, maps, haadf, mask, variance=None):
        if mask is not None:
            raise ValueError("mask is given, and method='published' needs every pixel: pass method='calibrated'.")
        for element, image in zip([*elements, "HAADF"], [*maps, haadf], strict=True):
            finite_pixels(image, f"the {element} image")
        valid = Valid.everywhere(maps.shape)
        if not has_contrast(haadf, valid.haadf):
            what = constant_in_words(haadf, valid.haadf)
            raise ValueError(
                f"The HAADF image is {what}, and method='published' scales it to [0, 1]: pass one with contrast, or "
                "method='calibrated', which fuses the maps without it."
            )
        check_magnitudes([*elements, "HAADF"], [*maps, haadf], [*valid.maps, valid.haadf])
        return valid, []

    def build(self, scan, settings, num_workers, tick):
        problem = published_problem(scan.maps, scan.haadf, scan.atomic_numbers, settings)
        return Setup(problem, replace(settings, lambda_haadf=problem.lambda_haadf), scan)

    def solve(self, problem, settings, state, callback, num_workers):
        from hyperspy_fusion.fusion.solvers.proximal_gradient import proximal_gradient

        return proximal_gradient(problem, settings, state, callback, num_workers)

    def observe(self, scan, settings, num_workers):
        return scan, settings

    def preview(self, observed, settings, window, num_workers):
        setup = self.build(observed, settings, num_workers, None)
        result, _ = self.solve(setup.problem.cropped(window), settings, None, None, num_workers)
        return result, observed.cropped(window), setup.settings

    def check_refit(self, before, after):
        if before.threshold != after.threshold:
            raise ValueError(
                f"threshold is {after.threshold}, and acts on the start of the first fit only: "
                "fit a new FusedMultiModal with it."
            )

    def restart(self, state, problem):
        return state.restarted(problem.maps.dtype)

    def map_background(self, setup):
        return 0.0

    def consistency(self, setup, state, result):
        return None

    def diagnose(self, setup, result, elements, total_ratios, haadf_correlation, checks):
        found = diagnostics_of_published_fit(elements, result, total_ratios, haadf_correlation)
        if setup.problem.lambda_tv:
            from hyperspy_fusion.fusion.solvers.proximal_gradient import inner_iterations_limit_smoothing

            if inner_iterations_limit_smoothing(setup.problem, setup.settings, result.maps):
                found.append(diagnostic_of_smoothing(setup.settings))
        return found

    def describe(self, problem, result, per_map):
        return {
            "haadf_coefficients": per_map(problem.haadf_term.weights),
            "map_offsets": per_map(problem.map_range.offset),
            "map_scales": per_map(problem.map_range.scale),
            "haadf_offset": float(problem.haadf_range.offset),
            "haadf_scale": float(problem.haadf_range.scale),
            "change": float(result.change),
        }
