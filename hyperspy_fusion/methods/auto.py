"""The calibrated method with its penalty and weights chosen by cross-validation on held-out counts."""

from __future__ import annotations

from hyperspy_fusion.diagnostics import WARNING
from hyperspy_fusion.methods.base import Setup
from hyperspy_fusion.methods.calibrated import Calibrated
from hyperspy_fusion.methods.fit_checks import as_diagnostics


class Auto(Calibrated):
    """A :class:`~hyperspy_fusion.methods.base.Method`: a mean of calibrated fits."""

    name = "auto"
    uses_spectra = True

    def build(self, scan, settings, num_workers, tick):
        from hyperspy_fusion.fusion.selection.model_averaging import MeanProblem
        from hyperspy_fusion.fusion.selection.search import select

        observation = self.observe(scan, settings, num_workers)
        members, selection = select(observation, settings, num_workers, tick, scan.out_of_window)
        return Setup(MeanProblem.of(observation, members), members[0][0], scan, selection)

    def solve(self, problem, settings, state, callback, num_workers):
        from hyperspy_fusion.fusion.selection.model_averaging import mean_of_fits

        return mean_of_fits(problem, settings, state, callback, num_workers)

    def restart(self, state, problem):
        """Another choice starts from the measured maps."""
        return None

    def diagnose(self, setup, result, elements, total_ratios, haadf_correlation):
        found = super().diagnose(setup, result, elements, total_ratios, haadf_correlation)
        return [*as_diagnostics("selection", setup.selection.warnings, WARNING), *found]

    def _diagnose_noise(self, scan, selection):
        """Not where the choice of weights has reported shared noise already."""
        is_known = any(sentence != selection.sentence for sentence in selection.warnings)
        return [] if is_known else super()._diagnose_noise(scan, selection)
