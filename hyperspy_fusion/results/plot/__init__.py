"""Figures: arrays in, axes out. Nothing here knows HyperSpy; nothing else knows matplotlib."""

from hyperspy_fusion.results.plot.curves import plot_convergence, plot_drift, plot_profile, plot_selection
from hyperspy_fusion.results.plot.maps import plot_fusion, plot_grid, plot_rgb

__all__ = [
    "plot_convergence",
    "plot_drift",
    "plot_fusion",
    "plot_grid",
    "plot_profile",
    "plot_rgb",
    "plot_selection",
]
