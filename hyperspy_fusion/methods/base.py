"""What every method of fusion offers, and what a fit is made of. Arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.checks import are_numbers, check_choice
from hyperspy_fusion.fusion.result import FusionResult
from hyperspy_fusion.fusion.terms.scan_data import ScanData
from hyperspy_fusion.grid.masks import Valid
from hyperspy_fusion.maps.base import LINES, SourceRequest

# how long a fit runs; where another setting changes, the cost history begins anew
RUN_SETTINGS = ("max_iter", "tol", "change_tol")


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
        How the settings were chosen; None where all were given.
    start
        The state to solve from, until it is used; None for none.
    """

    problem: Any
    settings: Any
    scan: ScanData
    selection: Any = None
    start: Any = None

    def going_on(self, settings):
        """The same problem, run as long as other settings say."""
        return replace(self, settings=replace(self.settings, **_run_settings(settings)))


def same_objective(before, after):
    """Whether two settings differ at most in how long a fit runs."""
    return replace(before, **_run_settings(after)) == after


def _run_settings(settings):
    return {name: value for name, value in settings.as_dict().items() if name in RUN_SETTINGS}


class Method(Protocol):
    """One method of fusion. The model asks it, and never which method it is.

    Attributes
    ----------
    name
        As in ``fuse(method=...)``.
    uses_masks
        Whether it leaves out invalid pixels: masked, NaN or saturated ones.
    uses_noise_metadata
        Whether it uses the background and the variance of the maps.
    uses_spectra
        Whether it uses out-of-window counts.
    has_noise_model
        Whether it has a model of the noise, from which the errors of its maps follow.
    """

    name: str
    uses_masks: bool
    uses_noise_metadata: bool
    uses_spectra: bool
    has_noise_model: bool

    def find_valid(self, elements, maps, haadf, mask, *, variance=None) -> tuple[Valid, list]:
        """Valid pixels and diagnostics about the others; the variance of the maps is (n, ny, nx), None if not known."""
        ...

    def build(self, scan, settings, num_workers, tick) -> Setup:
        """Choose what is ``"auto"`` and build the problem; ``tick`` is called after every fit of a search.

        Its arguments are the numbers of fits done and expected, and the part of the time that the search takes.
        """
        ...

    def solve(self, problem, settings, state, callback, num_workers) -> tuple[FusionResult, Any]:
        """Result and state; ``state`` is None, or that of the fit to go on from."""
        ...

    def observe(self, scan, settings, num_workers) -> tuple[Any, Any]:
        """What previews of a scan share, whatever their weights, and the settings in effect."""
        ...

    def preview(self, observed, settings, window, num_workers) -> tuple[FusionResult, ScanData, Any]:
        """A fit of two slices (y, x) of a scan in the units of the whole, what it is of, and the settings in effect.

        Of what it is of, the background is that of the noise model.
        """
        ...

    def check_refit(self, before, after) -> None:
        """ValueError for settings between which no fit goes on."""
        ...

    def restart(self, state, problem) -> Any:
        """The state that starts a new problem from the present maps; None starts it from the measured ones."""
        ...

    def map_background(self, setup) -> Any:
        """Counts per pixel of the measured maps that are not in the fused ones: a number, or one per fitted map."""
        ...

    def consistency(self, setup, state, result) -> Any:
        """The :class:`ConsistencyChecks` of a fit; None for a method without a noise model."""
        ...

    def diagnose(self, setup, result, elements, total_ratios, haadf_correlation, checks) -> list[Diagnostic]:
        """Diagnostics of a fit with its ``checks``, as of :meth:`consistency`.

        ``elements`` and ``total_ratios`` are of all maps, constant ones included.
        """
        ...

    def describe(self, problem, result, per_map) -> dict:
        """Entries of ``metadata.Fusion``; ``per_map`` takes values of the fitted maps to one for each map."""
        ...


def request_of(method, elements, xray_lines, lines, integration_windows, edges, background) -> SourceRequest:
    """What a method asks of a source of maps; a ``background`` of numbers is a setting, and not asked for."""
    check_choice("lines", lines, LINES)
    if lines == "model" and not method.has_noise_model:
        raise ValueError(
            f"lines is 'model', and method={method.name!r} has no model of the noise to fit spectra by: pass "
            "method='calibrated' or 'auto', or lines='windows'."
        )
    return SourceRequest(
        *(elements, xray_lines, integration_windows, edges, None if are_numbers(background) else background),
        allow_nan=method.uses_masks,
        lines=lines,
        out_of_window=method.uses_spectra,
        beside=method.has_noise_model,
    )
