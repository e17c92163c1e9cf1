"""The model of the spectra of an EDS spectrum image: its lines by exspy, its summed spectrum in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.spectra.line_calibration import calibrated, spatial_groups
from hyperspy_fusion.fusion.spectra.line_model import CONTINUUM, SpectralModel
from hyperspy_fusion.fusion.spectra.line_model import spectral_model as model_of_spectra
from hyperspy_fusion.fusion.spectra.line_shapes import Calibration, ElementLines
from hyperspy_fusion.grid.images import check_energies, check_real
from hyperspy_fusion.maps.eds_lines import about_left_out, chosen_lines
from hyperspy_fusion.maps.eds_model_checks import model_diagnostics
from hyperspy_fusion.maps.eds_spectra import (
    binned_spectra,
    element_lines,
    energies_in_kev,
    resolution_of,
    used_channels,
)


class ModelOfSpectra(NamedTuple):
    """The model of the spectra of a scan, and what is doubtful about it."""

    model: SpectralModel
    diagnostics: list[Diagnostic]


def spectral_model(
    signal: Any,
    elements: Sequence[str] | None = None,
    *,
    xray_lines: Sequence[str] | None = None,
    system: Sequence[str] = (),
    mask: np.ndarray | None = None,
) -> ModelOfSpectra:
    """The model of the spectra of an EDS spectrum image.

    Parameters
    ----------
    signal
        EDS spectra ``(x, y|E)``; lazy ones are read once, in blocks.
    elements
        Mapped elements; None for those of the file.
    xray_lines
        Lines whose counts are the maps; None for those of the file, or for exspy's choice.
    system
        Elements of the microscope and of the grid, which emit lines and have no map; those that are mapped, and those
        without lines within the energies, are left out.
    mask
        (ny, nx) bool, True where a pixel is left out; None for no such pixel.

    Raises
    ------
    ValueError
        For spectra that are no counts, energies without units, and elements without lines within them.
    """
    check_real(signal)
    check_energies(signal, "keV", "eV")
    mapped, found = chosen_lines(signal, elements, xray_lines)
    energies = energies_in_kev(signal)
    is_asked = elements is not None or xray_lines is not None
    lines, left_out = _fitted_lines(signal, mapped, is_asked, xray_lines)
    n_elements = len(lines)
    beside = [element_lines(signal, symbol) for symbol in dict.fromkeys(system) if symbol not in mapped]
    lines += [own for own in beside if own.names]
    used = used_channels(energies, lines)
    binned = binned_spectra(signal, used, mask)
    summed = binned.sum(axis=(0, 1), dtype=np.float64)
    if summed.sum() < 1:
        raise ValueError(f"{signal} has no counts at the lines of {', '.join(mapped)}: pass other spectra or elements.")
    groups = spatial_groups(binned, len(lines) + len(CONTINUUM))
    calibration, lines = calibrated(
        summed, groups, energies[used], lines, Calibration(resolution=resolution_of(signal))
    )
    model = model_of_spectra(
        summed,
        energies[used],
        lines,
        n_elements,
        float(signal.axes_manager.navigation_size if mask is None else np.count_nonzero(~mask)),
        first_channel=used.start,
        calibration=calibration,
        ratios_known=True,
    )
    return ModelOfSpectra(model, [*found, *left_out, *model_diagnostics(model, is_asked)])


def _fitted_lines(signal, mapped, is_asked, xray_lines) -> tuple[list[ElementLines], list[Diagnostic]]:
    """The lines of each mapped element, and the diagnostic of what is too near to an end of the energies for a fit.

    ValueError for lines and elements that were asked for, and where no element is left.
    """
    lines = [element_lines(signal, symbol, own) for symbol, own in mapped.items()]
    lost = [own.element for own in lines if not own.names]
    if lost and (is_asked or len(lost) == len(lines)):
        raise ValueError(
            f"{lost[0]} has no X-ray line well within the energies of {signal}, which a fit of the spectra needs: "
            "leave it out, or pass lines='windows'."
        )
    names = [f"{own.element}_{name}" for own in lines for name in own.names]
    left_out = [line for own in mapped.values() for line in own if line not in names]
    if missed := [line for line in xray_lines or () if line in left_out]:
        raise ValueError(
            f"{missed[0]} is too near to an end of the energies of {signal}, or to its beam energy, for a fit of the "
            "spectra: take another line of the element, or pass lines='windows'."
        )
    return [own for own in lines if own.names], about_left_out(left_out)
