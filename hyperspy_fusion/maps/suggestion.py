"""Which elements the spectra of an EDS spectrum image show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.solvers.threads import one_blas_thread
from hyperspy_fusion.fusion.spectra.artefacts import dead_channels, highest_channel
from hyperspy_fusion.fusion.spectra.element_evidence import Evidence
from hyperspy_fusion.fusion.spectra.element_search import find_elements, find_missing
from hyperspy_fusion.fusion.spectra.line_calibration import spatial_groups
from hyperspy_fusion.fusion.spectra.line_shapes import Calibration, ElementLines
from hyperspy_fusion.grid.axes import layout
from hyperspy_fusion.grid.images import check_energies, check_real, is_eels
from hyperspy_fusion.identify.elements import atomic_number, periodic_table
from hyperspy_fusion.maps.eds_spectra import (
    LOWEST,
    RADIOACTIVE,
    beam_energy_of,
    binned_spectra,
    element_lines,
    energies_in_kev,
    lines_of_exspy,
    resolution_of,
)

# lines of lighter elements are in the noise of the detector
_LIGHTEST = 5
# keV: channels are put together to this width
_CHANNEL = 0.02
# ... and at least so many of them are looked at
_FEWEST_WIDE = 10
# less evidence is not listed
_LEAST = 10.0
# whole numbers beyond have no double
_MOST_COUNTS = 2.0**53
# keV: beams of transmission electron microscopes have more
_LEAST_OF_TEM = 60.0
# columns that the spectra of a group of pixels can show
_COLUMNS = 20


@dataclass(frozen=True)
class ElementSuggestion:
    """Elements that EDS spectra show, by their evidence; it prints as a table.

    Attributes
    ----------
    evidence
        One :class:`~hyperspy_fusion.fusion.spectra.element_search.Evidence` for each element, the largest first.
    """

    evidence: tuple[Evidence, ...]

    @property
    def elements(self) -> list[str]:
        """Symbols of all elements, by their evidence."""
        return [found.element for found in self.evidence]

    @property
    def certain(self) -> list[str]:
        """Symbols of those that neither noise, nor other elements, nor what the model lacks explain."""
        return [found.element for found in self.evidence if found.is_certain]

    def __iter__(self) -> Iterator[Evidence]:
        return iter(self.evidence)

    def __len__(self) -> int:
        return len(self.evidence)

    def __str__(self) -> str:
        if not self.evidence:
            return "The spectra show no element."
        rows = [("element", "certain", "counts", "evidence", "lines", "overlapped by")]
        for found in self.evidence:
            names = " or ".join((found.element, *found.rivals))
            lines = ", ".join(f"{found.element}_{line}" for line in found.lines)
            numbers = f"{found.counts:.0f}", f"{found.evidence:.0f}"
            rows.append((names, "yes" if found.is_certain else "", *numbers, lines, ", ".join(found.overlaps)))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    __repr__ = __str__


def suggest_elements(eds: Any) -> ElementSuggestion:
    """Elements that the spectra of an EDS spectrum image show, whatever its metadata name.

    The lines of all elements are compared with the summed spectrum, and with those of groups of pixels. An element is
    certain where neither noise nor an error of the model explains one family of its lines: of the energy scale, of the
    weights of lines, of sum and escape peaks, of the charge that strong lines lose. Its other families must be there,
    as strong as they may be. Where the lines of another element fit about as well, it is listed as "S or Mo", and is
    not certain.

    Parameters
    ----------
    eds
        EDS spectra ``(x, y|E)`` of counts, with energies in keV or eV; lazy ones are read once.

    Returns
    -------
    ElementSuggestion
        It prints as a table; ``.elements`` and ``.certain`` are lists for `fuse`.

    Raises
    ------
    TypeError
        For what is no spectrum image.
    ValueError
        For energies without units, and for values that are negative, NaN or infinite.

    See Also
    --------
    hyperspy_fusion.fuse

    Examples
    --------
    >>> suggestion = hyperspy_fusion.suggest_elements(eds)  # doctest: +SKIP
    >>> fused = eds.fuse(haadf, elements=suggestion.certain)  # doctest: +SKIP
    """
    if not hasattr(eds, "axes_manager") or layout(eds) != "spectra" or is_eels(eds):
        raise TypeError(f"{eds!r} is no EDS spectrum image: pass spectra (x, y|E).")
    check_real(eds)
    check_energies(eds, "keV", "eV")
    energies = energies_in_kev(eds)
    used, candidates = _used_channels(energies, beam_energy_of(eds)), _candidates(eds)
    if not candidates:
        return ElementSuggestion(())
    groups = spatial_groups(binned_spectra(eds, used), _COLUMNS)
    if groups.sum() < 1:
        return ElementSuggestion(())
    groups, energies, options = _searched(eds, groups, energies[used], candidates)
    with one_blas_thread:  # the products are small
        found = find_elements(groups, energies, candidates, **options)
    return ElementSuggestion(tuple(one for one in found if one.evidence > _LEAST))


def missing_diagnostics(eds: Any, spectrum: np.ndarray | None, named: Iterable[str]) -> list[Diagnostic]:
    """Code ``"line-of-no-element"``: elements beside those `named` that the summed `spectrum` shows clearly.

    Spectra that are lazy (None), or no counts, are not searched.
    """
    if spectrum is None or not (candidates := _candidates(eds)):
        return []
    energies = energies_in_kev(eds)
    used = _used_channels(energies, beam_energy_of(eds))
    summed = spectrum[used]
    if not 1 <= summed.sum() < _MOST_COUNTS or summed.min() < 0 or np.any(summed != np.rint(summed)):
        return []
    summed, energies, options = _searched(eds, summed[None], energies[used], candidates)
    with one_blas_thread:
        found = find_missing(summed[0], energies, candidates, tuple(named), **options)
    if not found:
        return []
    names = [one.element for one in found]
    counts = ", ".join(f"{one.element} ({one.counts:.0f} counts)" for one in found)
    sentence = f"The summed spectrum clearly shows {counts} without a map: pass elements={[*named, *names]}."
    return [Diagnostic("line-of-no-element", sentence, elements=tuple(names))]


def _searched(eds, groups, energies, candidates):
    """Spectra (n_groups, n_channels) in wide channels, their energies, and what else the search takes."""
    groups, energies, live = _wide_channels(groups, energies)
    options = {
        "first": Calibration(resolution=resolution_of(eds)),
        "live": live,
        "beyond": _beyond(eds, candidates, energies),
        "beam": beam_energy_of(eds) or _least_beam(eds, energies),
    }
    return groups, energies, options


def _used_channels(energies, beam):
    """Those above the noise of the detector, up to the energy of the beam (keV): beyond are sum peaks alone."""
    low, high = (int(end) for end in np.searchsorted(energies, [LOWEST, beam or np.inf]))
    return slice(low, high if high > low else None)


def _least_beam(eds, energies):
    """Energy (keV) of a beam that the metadata lack: the least of a TEM, or that of the last counts."""
    return _LEAST_OF_TEM if eds.metadata.Signal.signal_type == "EDS_TEM" else float(energies[-1])


def _candidates(eds):
    """The lines of all elements that may be there."""
    symbols = [symbol for symbol in periodic_table().keys() if symbol not in RADIOACTIVE]
    found = [element_lines(eds, symbol) for symbol in symbols if atomic_number(symbol) >= _LIGHTEST]
    return [lines for lines in found if lines.names]


def _beyond(eds, candidates, energies):
    """The lines within the spectra of families whose main line is not, but which the beam excites."""
    found, beam = [], beam_energy_of(eds) or np.inf
    for lines in candidates:
        by_family = {}
        for name, (energy, weight) in lines_of_exspy(lines.element).items():
            by_family.setdefault(name[0], []).append((name, energy, weight))
        for letter, own in by_family.items():
            inside = [line for line in own if energies[0] < line[1] < energies[-1] and line[2] > 0]
            main = max(own, key=lambda line: line[2])
            if inside and letter not in lines.families and main[1] < beam:
                names, places, weights = zip(*inside, strict=True)
                nothing = np.zeros(len(names), bool)
                found.append(ElementLines(lines.element, names, np.array(places), np.array(weights), nothing))
    return found


def _wide_channels(groups, energies):
    """``(groups, energies, live)`` of neighbouring channels together, from the first one with counts.

    They are far narrower than a line. One is live where none of its channels is dead.
    """
    number = max(int(_CHANNEL / (energies[1] - energies[0]) + 0.01), 1)
    summed = groups.sum(axis=0)
    start, stop = int(np.argmax(summed > 0)), highest_channel(summed, energies) + 1
    if stop - start < _FEWEST_WIDE * number:  # hardly any counts
        stop = len(energies)
    kept = slice(start, start + (stop - start) // number * number)
    wide = groups[:, kept].reshape(len(groups), -1, number).sum(axis=-1)
    live = np.logical_not(dead_channels(summed)[kept].reshape(-1, number).max(axis=-1))
    return wide, energies[kept].reshape(-1, number).mean(axis=-1), live
