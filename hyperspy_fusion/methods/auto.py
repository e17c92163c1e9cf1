"""The calibrated method with its penalty and weights chosen by cross-validation on held-out counts."""

from __future__ import annotations

from hyperspy_fusion.methods.base import Setup
from hyperspy_fusion.methods.calibrated import Calibrated


class Auto(Calibrated):
    """A :class:`~hyperspy_fusion.methods.base.Method`: a mean of calibrated fits."""

    name = "auto"
    uses_spectra = True

    def build(self, scan, settings, num_workers, tick):
        from hyperspy_fusion.fusion.selection.model_averaging import AveragedProblem
        from hyperspy_fusion.fusion.selection.search import select

        observation, settings = self.observe(scan, settings, num_workers)
        ensemble, selection = select(observation, settings, num_workers, tick, scan.out_of_window)
        problem = AveragedProblem.of(ensemble, num_workers)
        first = problem.first_state(ensemble, num_workers)
        return Setup(problem, ensemble[0].settings, scan, selection, first)

    def select(self, scans, settings, num_workers, tick):
        """The :class:`~hyperspy_fusion.fusion.selection.search.Selection` for several scans together.

        None where no image has contrast, for which other settings are open.
        """
        from hyperspy_fusion.fusion.selection.search import select_together

        found = [self.observe(scan, settings, num_workers)[0] for scan in scans]
        used = [(one, scan.out_of_window) for one, scan in zip(found, scans, strict=True) if one.scan.has_contrast]
        if not used:
            return None
        observations, out_of_window = ([pair[i] for pair in used] for i in (0, 1))
        return select_together(observations, out_of_window, settings, num_workers, tick)

    def restart(self, state, problem):
        """Another choice starts from its own search."""
        return None

    def diagnose(self, setup, result, elements, total_ratios, haadf_correlation, checks):
        found = super().diagnose(setup, result, elements, total_ratios, haadf_correlation, checks)
        return [*setup.selection.diagnostics, *found]

    def _diagnose_noise(self, scan, selection):
        """Not where the choice of weights has reported shared noise already."""
        is_known = any(d.code == "noise-shared-by-neighbours" for d in selection.diagnostics)
        return [] if is_known else super()._diagnose_noise(scan, selection)


class AutoAsSelected(Auto):
    """The automatic method with a choice that was made for other scans, such as some frames of a stack."""

    def __init__(self, selection):
        self.selection = selection

    def build(self, scan, settings, num_workers, tick):
        from hyperspy_fusion.fusion.selection.model_averaging import AveragedProblem
        from hyperspy_fusion.fusion.selection.search import ensemble_of

        observation, _ = self.observe(scan, settings, num_workers)
        if not observation.scan.has_contrast:
            return super().build(scan, settings, num_workers, tick)
        ensemble = ensemble_of(self.selection, observation, settings, scan.out_of_window)
        return Setup(AveragedProblem.of(ensemble, num_workers), ensemble[0].settings, scan, self.selection)
