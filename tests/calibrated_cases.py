"""Observations and problems of the calibrated method from arrays."""

from hyperspy_fusion.fusion.problems.calibrated import Observation
from hyperspy_fusion.fusion.scan_data import ScanData


def observe(maps, haadf, numbers, settings, **scan_options):
    """The observation of arrays; options as of :meth:`ScanData.of`."""
    return Observation.of(ScanData.of(maps, haadf, numbers, **scan_options), settings)


def calibrated_problem(maps, haadf, numbers, settings, **scan_options):
    """The problem of arrays; options as of :meth:`ScanData.of`."""
    return observe(maps, haadf, numbers, settings, **scan_options).problem(settings)
