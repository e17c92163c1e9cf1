"""Diagnostics of the model of EDS spectra."""

from __future__ import annotations

import numpy as np

from hyperspy_fusion.diagnostics import INFORMATION, Diagnostic
from hyperspy_fusion.fusion.spectra.line_checks import (
    GOOD_DEVIANCE,
    hidden,
    not_shown,
    pairs_by_shape,
    unexplained_lines,
)
from hyperspy_fusion.fusion.spectra.line_model import SpectralModel
from hyperspy_fusion.identify.elements import is_detectable, listed, periodic_table
from hyperspy_fusion.maps.eds_spectra import RADIOACTIVE

# a candidate has a line of this weight in its family, which may be as far from the line that is seen, in widths
_STRONG, _NEAR = 0.5, 0.4
# deviance, relative to that of noise, of a model that lacks so much that other elements make up for it
_FAR_OFF = 5.0
# so many unexplained lines are named, and so many candidates of each
_LINES, _CANDIDATES = 3, 4


def model_diagnostics(model: SpectralModel, is_asked: bool = True) -> list[Diagnostic]:
    """What is doubtful about a model of spectra, whose elements were asked for, or are those of the file.

    Codes: ``"line-of-no-element"``, ``"element-not-shown"``, ``"element-hidden"``, ``"resolved-by-shape-only"`` and
    ``"spectra-not-as-modelled"``.
    """
    pairs = pairs_by_shape(model)
    return [
        *_about_lines(model, is_asked),
        *(_about_elements(model) if model.deviance < _FAR_OFF else []),
        *_about_pairs(model, pairs),
        *_about_deviance(model, bool(pairs)),
    ]


def candidates(energy: float, width: float, without: tuple = ()) -> list[str]:
    """Lines of elements near an energy (keV), main lines first, those of the elements ``without`` left out."""
    from exspy.utils.eds import get_xray_lines_near_energy

    found = []
    for line in get_xray_lines_near_energy(energy, 2 * _NEAR * width):
        symbol, _, name = line.partition("_")
        weight = periodic_table()[symbol].Atomic_properties.Xray_lines[name].weight
        if weight >= _STRONG and symbol not in {*without, *RADIOACTIVE} and is_detectable(symbol):
            found.append(line)
    # K lines before L and M, and of those the ones that are nearest
    return sorted(found, key=lambda line: line.partition("_")[2][0])


def _about_lines(model, is_asked):
    by_file = "s.add_elements" + " for no map" * is_asked
    found, of_named = [], np.empty(0)
    for excess in unexplained_lines(model):
        width = float(model.calibration.fwhm(excess.energy))
        # other lines of an element that is named already
        if len(found) == _LINES or np.any(np.abs(of_named - excess.energy) < width):
            continue
        named = candidates(excess.energy, width, model.names)
        elements = tuple(dict.fromkeys(line.partition("_")[0] for line in named[:_CANDIDATES]))
        of_named = np.concatenate([of_named, *(_line_energies(element) for element in elements)])
        hint = f"add {' or '.join(elements)} by elements=, or by {by_file}" if named else "it may be a sum"
        sentence = (
            f"The spectra have a line at {excess.energy:.2f} keV ({excess.sigmas:.0f} sigma, {excess.part:+.0%}) that "
            f"no element of the model has: {hint}."
        )
        found.append(Diagnostic("line-of-no-element", sentence, elements=elements))
    return found


def _line_energies(symbol):
    lines = periodic_table()[symbol].Atomic_properties.Xray_lines.as_dictionary().values()
    return [float(line["energy (keV)"]) for line in lines if line["weight"] > 0.05]


def _about_elements(model):
    return [*_about_absent(not_shown(model)), *_about_hidden(model, hidden(model))]


def _about_absent(names):
    if not names:
        return []
    sentence = f"The spectra do not show {', '.join(names)}: leave {'it' if len(names) == 1 else 'them'} out."
    return [Diagnostic("element-not-shown", sentence, elements=tuple(names))]


def _about_hidden(model, names):
    if not names:
        return []
    sentence = (
        f"The counts of {listed(_with_errors(model, names))} are within the uncertainty of stronger lines near them: "
        "trust differences between regions, not the level."
    )
    return [Diagnostic("element-hidden", sentence, elements=tuple(names))]


def _with_errors(model, names):
    """Each name with the relative systematic error of its counts."""
    errors = dict(zip(model.names, model.systematic, strict=True))
    return [f"{name} (+-{min(errors[name], 9.99):.0%})" for name in names]


def _about_pairs(model, pairs):
    if not pairs:
        return []
    listing = listed([" and ".join(_with_errors(model, pair)) for pair in pairs])
    sentence = (
        f"Only the shape of their lines distinguishes {listing}: errors of the model move counts from one to the "
        "other, and their sum is safer."
    )
    return [Diagnostic("resolved-by-shape-only", sentence, elements=tuple(dict.fromkeys(np.ravel(pairs).tolist())))]


def _about_deviance(model, has_pairs):
    if model.deviance <= GOOD_DEVIANCE:
        return []
    sentence = (
        f"The model deviates from the summed spectrum ({model.deviance:.1f} times the deviance of noise alone): weak "
        "elements near strong lines are uncertain."
    )
    return [Diagnostic("spectra-not-as-modelled", sentence, "" if has_pairs else INFORMATION)]
