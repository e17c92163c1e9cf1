"""Counts of the X-ray lines in an EDS spectrum image, and in bands of the channels outside of their windows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.grid.axes import STACK_AXES
from hyperspy_fusion.grid.images import check_energies, check_real
from hyperspy_fusion.identify.elements import (
    by_element,
    checked_elements,
    checked_lines,
    element_of,
    is_detectable,
    lines_of_exspy,
    listed,
    of_element,
    refuse_repeats,
    refuse_unasked_lines,
    refuse_undetectable,
)
from hyperspy_fusion.identify.map_identity import metadata_names
from hyperspy_fusion.maps.base import WINDOW_WIDTH, Beside, SourceRequest
from hyperspy_fusion.maps.eds_spectra import LOWEST_KEV, beam_energy_of
from hyperspy_fusion.maps.eds_windows import (
    line_limits,
    line_windows,
    lines_within,
    n_channels,
    overlap_diagnostics,
    runs_of,
    sum_spectrum,
)
from hyperspy_fusion.maps.suggestion import missing_diagnostics, suggest_elements

_logger = logging.getLogger(__name__)

# outside of these it is a width in eV, or in keV
_WIDTHS = (0.2, 10.0)
# keV, for an example of a beam that excites all lines in the range well
USUAL_BEAM = 200.0
# background windows of a line are so far from it, and at least so far from all lines of the sample, in units of FWHM
FARTHEST, NEAREST = 6.0, 1.2

# bands of out-of-window counts, each with as many as the others; on held-out counts 32 and 48 were better than 12
BANDS = 32
# with fewer counts than this in each there are fewer bands
FEWEST_IN_BAND = 1000

_ACCUMULATOR = {"b": np.uint64, "u": np.uint64, "i": np.int64, "f": np.float64}


class LineCounts(NamedTuple):
    """The X-ray lines of each element in their order, and the counts in their windows.

    Counts are (ny, nx, n), maybe a dask array: 64-bit integers for integer spectra, else their float dtype, of 32 bits
    at least. Those that are not of the lines are (ny, nx, n) float32, >= 0, None where they were not asked for.
    ``beside`` has those in background windows, {element: Beside}, where the file alone names the elements, and
    ``spectrum`` the sum of all spectra, a dask array of lazy ones.

    Codes of the diagnostics: ``"element-not-in-file"``, ``"line-out-of-range"``, ``"beam-energy-unknown"``,
    ``"line-of-no-element"``, ``"windows-share-channels"``, ``"lines-overlap"``, ``"background-windows-hold-lines"``
    and ``"background-above-lines"``.
    """

    lines: dict[str, list[str]]
    counts: Any
    background: np.ndarray | None
    diagnostics: list[Diagnostic]
    beside: dict[str, Beside]
    spectrum: Any


def checked_width(width: Any) -> float:
    """Width of integration windows as a float; TypeError or ValueError for what is none in units of the FWHM."""
    if isinstance(width, bool) or not isinstance(width, int | float | np.integer | np.floating):
        raise TypeError(
            f"integration_windows is {width!r}: give one number, the width of all windows in units of the FWHM of "
            "their line, such as exspy's 2.0; for windows in keV pass the maps of get_lines_intensity."
        )
    if not _WIDTHS[0] <= width <= _WIDTHS[1]:
        raise ValueError(
            f"integration_windows is {width!r}: it is the width of the windows in units of the FWHM of their line, no "
            f"energy, and must be between {_WIDTHS[0]:g} and {_WIDTHS[1]:g}, such as exspy's 2.0."
        )
    return float(width)


def line_counts(signal: Any, request: SourceRequest) -> LineCounts:
    """Counts of the X-ray lines of each element in an EDS spectrum image ``(x, y|E)``, with their background.

    ValueError for spectra that are not EDS, energies without units, and elements or lines outside of them.
    """
    check_real(signal)
    if not hasattr(signal, "estimate_integration_windows"):
        if signal.axes_manager.signal_axes[0].name in STACK_AXES:
            raise ValueError(f"{signal} is a transposed stack of maps: pass it as (n|x, y), which its `.T` gives.")
        raise ValueError(
            f"{signal} is not known to be EDS: call `s.set_signal_type('EDS_TEM')` if it is, or pass maps."
        )
    check_energies(signal, "keV", "eV")
    found = _asked_diagnostics(signal, request)
    lines, left_out = chosen_lines(signal, request.elements, request.xray_lines)
    _logger.info("X-ray lines: %s", lines)
    width = request.integration_windows
    windows = {element: line_windows(signal, names, width) for element, names in lines.items()}
    spectrum = sum_spectrum(signal)
    in_memory = None if signal._lazy else spectrum
    missing = missing_diagnostics(signal, in_memory, lines) if request.is_of_file else []
    found += [*left_out, *missing, *overlap_diagnostics(signal, in_memory, lines, windows, width)]
    beside = _background_windows(signal, lines, windows) if request.beside and request.is_of_file else {}
    sums = window_sums(signal, [*windows.values(), *beside.values()])
    ratios = {e: n_channels(windows[e]) / n_channels(own) for e, own in beside.items()}
    n = len(lines)
    counts = {element: Beside(sums[..., n + i], ratio) for i, (element, ratio) in enumerate(ratios.items())}
    return LineCounts(lines, sums[..., :n], None, found, counts, spectrum)


def _asked_diagnostics(signal, request):
    """Refuse elements that no detector can measure, and report those that the file does not name."""
    asked: list[str] = list(dict.fromkeys([*(request.elements or []), *by_element(request.xray_lines or [])]))
    refuse_undetectable(asked)
    named = metadata_names(signal.metadata, "Sample.elements")
    unknown = tuple(element for element in asked if element not in named)
    if not (named and unknown):
        return []
    sentence = (
        f"{', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} not among the elements that the file names "
        f"({', '.join(named)}): check for a typo."
    )
    return [Diagnostic("element-not-in-file", sentence, elements=unknown)]


def chosen_lines(signal: Any, elements: Any, xray_lines: Any) -> tuple[dict[str, list[str]], list[Diagnostic]]:
    """Dict of each element's X-ray lines, all within the energy range, in the order of the maps, and diagnostics."""
    if xray_lines is not None:
        if missed := [line for line in xray_lines if not _in_range(signal, line)]:
            axis = signal.axes_manager.signal_axes[0]
            raise ValueError(
                f"{missed[0]} is not within the energies of {signal}, {axis.low_value:.3g} to "
                f"{axis.high_value:.3g} {axis.units}: take another line of the element."
            )
        refuse_unasked_lines(xray_lines, elements)
        lines, left_out = xray_lines, []
    else:
        in_file = checked_lines(metadata_names(signal.metadata, "Sample.xray_lines"))
        lines = [line for line in in_file if _in_range(signal, line)]
        left_out = [line for line in in_file if line not in lines]
    if elements is not None:
        refuse_repeats(elements)
        chosen = {e: of_element(lines, e) or _default_lines(signal, e) for e in elements}
        # what the file lists of other elements was not asked for
        left_out = [line for line in left_out if element_of(line) in elements]
        lineless = [e for e, own in chosen.items() if not own]
    elif lines:
        chosen, lineless = by_element(lines), []
    else:
        named = checked_elements(metadata_names(signal.metadata, "Sample.elements"))
        if not named:
            shown = suggest_elements(signal).certain
            hint = f"elements={shown}, which the spectra show, or others" if shown else "elements=[...]"
            raise ValueError(f"The metadata of {signal} name no elements: pass {hint}, or xray_lines=[...].")
        chosen = {element: _default_lines(signal, element) for element in dict.fromkeys(named)}
        without = [e for e, own in chosen.items() if not own]
        left_out, lineless = left_out + without, without if len(without) == len(chosen) else []
    if lineless:
        raise ValueError(
            f"{lineless[0]} has no X-ray line within the energies of {signal}: leave it out, or name a line "
            "by xray_lines=[...]."
        )
    chosen = {e: own for e, own in chosen.items() if own}
    by_default = {e: own for e, own in chosen.items() if not of_element(lines, e)}
    return chosen, [*about_left_out(left_out), *_about_beam_energy(signal, by_default)]


def about_left_out(names: Sequence[str]) -> list[Diagnostic]:
    """The diagnostic of elements or lines that are outside of the spectra."""
    if not names:
        return []
    sentence = f"The spectra do not reach the X-ray lines of {', '.join(names)}, which are left out: name other lines."
    return [Diagnostic("line-out-of-range", sentence, elements=tuple(dict.fromkeys(map(element_of, names))))]


def _about_beam_energy(signal, chosen):
    """Lines `chosen` by default without a beam energy, where that of a TEM excites others in the energy range."""
    if _has_beam_energy(signal):
        return []
    better = {e: _default_lines(signal, e, USUAL_BEAM) for e in chosen}
    changed = [e for e, own in chosen.items() if own != better[e]]
    if not changed:
        return []
    taken, others = (listed([line for e in changed for line in lines[e]]) for lines in (chosen, better))
    sentence = (
        f"The spectra have no beam energy, and lines of low energy are taken ({taken}, not {others}): set it by "
        f"`s.set_microscope_parameters(beam_energy={USUAL_BEAM:g})` in keV, or pass xray_lines=[...]."
    )
    return [Diagnostic("beam-energy-unknown", sentence, elements=tuple(changed))]


def _has_beam_energy(signal):
    return beam_energy_of(signal) is not None


def _default_lines(signal, element, beam_energy=None):
    """What exspy takes of `element`: the alpha line in the energy range that the beam (keV) excites well."""
    if not (is_detectable(element) and lines_of_exspy(element)):
        return []
    probe = signal.inav[0, 0]  # a copy, so that the caller's metadata stay as they are
    probe.metadata.set_item("Sample.xray_lines", [])
    if beam_energy is None and not _has_beam_energy(signal):  # as exspy does where there is none, but not for 0
        axis = signal.axes_manager.signal_axes[0]
        beam_energy = axis.high_value / (1000 if axis.units == "eV" else 1)
    if beam_energy is not None:
        probe.set_microscope_parameters(beam_energy=beam_energy)
    probe.set_elements([element])
    probe.add_lines()
    return metadata_names(probe.metadata, "Sample.xray_lines")


def _in_range(signal, line):
    if not is_detectable(element_of(line)):
        return False
    axis = signal.axes_manager.signal_axes[0]
    energy = np.mean(line_limits(signal, [line], WINDOW_WIDTH))
    return axis.low_value < energy < axis.high_value


def _background_windows(signal, lines, windows):
    """``{element: channel ranges}`` on both sides of the line of each element that has one line, and room beside it.

    They are free of lines of the sample, and hold as many channels as the window of the line at least.
    """
    axis = signal.axes_manager.signal_axes[0]
    names = [*lines_within(signal, axis.low_value, axis.high_value, lines), *(n for own in lines.values() for n in own)]
    free = axis.axis >= LOWEST_KEV * (1000 if axis.units == "eV" else 1)
    for start, stop in line_windows(signal, names, 2 * NEAREST):
        free[start:stop] = False
    found = {}
    for element in (e for e, own in lines.items() if len(own) == 1):
        ((start, stop),) = windows[element]
        ((first, last),) = line_windows(signal, lines[element], 2 * FARTHEST)
        # a background that is linear in energy has the same mean in channels at the same distances from the line
        last = min(last, start + stop - first)
        first = start + stop - last
        beside = np.zeros(free.shape, bool)
        beside[first:last] = free[first:last] & free[first:last][::-1]
        beside[start:stop] = False
        if np.count_nonzero(beside) >= stop - start:
            found[element] = runs_of(beside)
    return found


def window_sums(signal: Any, windows: list) -> Any:
    """Counts in the `windows` of each element, (ny, nx, n); lazy spectra are read once for all windows."""
    axis = signal.axes_manager.signal_axes[0]
    data = np.moveaxis(signal.data, axis.index_in_array, -1)
    if signal._lazy:
        n, blocks, dtype = len(windows), data.numblocks[-1], _ACCUMULATOR[data.dtype.kind]
        chunks = (*data.chunks[:-1], (n,) * blocks)
        parts = data.map_blocks(_sum_channels, windows, dtype=dtype, chunks=chunks, meta=np.empty((0, 0, 0), dtype))
        sums: Any = sum(parts[..., k * n : (k + 1) * n] for k in range(blocks))
    else:
        sums = _sum_channels(data, windows)
    if data.dtype.kind != "f":
        return sums
    dtype = np.result_type(data.dtype, np.float32)
    return sums.map_blocks(_narrowed, dtype, dtype=dtype) if signal._lazy else _narrowed(sums, dtype)


def _narrowed(sums, dtype):
    """Sums beyond the dtype are infinite, as those of a sum of spectra are."""
    with np.errstate(over="ignore"):
        return sums.astype(dtype)


def _sum_channels(spectra, windows, block_info=None):
    """Sums over the channels of each of the `windows`; of a dask block, over those in the block."""
    first = block_info[0]["array-location"][-1][0] if block_info else 0
    dtype = _ACCUMULATOR[spectra.dtype.kind]
    sums = np.zeros((*spectra.shape[:-1], len(windows)), dtype)
    for i, ranges in enumerate(windows):
        for start, stop in ranges:
            channels = spectra[..., max(start - first, 0) : max(stop - first, 0)]
            sums[..., i] += channels.sum(axis=-1, dtype=dtype)
    return sums


# ---- out of the windows --------------------------------------------------------------------------------


def out_of_window_counts(signal: Any, lines: dict[str, list[str]], width: float) -> np.ndarray | None:
    """Counts (bands, ny, nx) of the channels of EDS spectra that are in no window of the `lines` {element: names}.

    They are whole numbers, each of consecutive channels but for those of the windows. None where the spectra are no
    counts, where two elements share channels, and where nothing is left.
    """
    windows = [line_windows(signal, names, width) for names in lines.values()]
    used = np.zeros(signal.axes_manager[-1].size, int)
    for start, stop in (limits for own in windows for limits in own):
        used[start:stop] += 1
    if used.max() > 1:
        _logger.info("Windows of two elements share channels: out-of-window counts are not used.")
        return None
    return _in_bands(signal, used == 0)


def _in_bands(source, free):
    """(bands, ny, nx) of the free channels, None where they hold next to nothing or no counts."""
    axis = source.axes_manager.signal_axes[0]
    free = free & (axis.axis >= LOWEST_KEV * (1000 if axis.units == "eV" else 1))
    total = np.asarray(source.data.sum(axis=tuple(a.index_in_array for a in source.axes_manager.navigation_axes)))
    total = np.where(free, total, 0).astype(np.float64)
    if not np.isfinite(total).all():
        return None
    number = int(min(BANDS, total.sum() // FEWEST_IN_BAND))
    if number < 1:
        return None
    # each channel to the band in which its middle lies
    band = np.minimum(((np.cumsum(total) - total / 2) * number / total.sum()).astype(int), number - 1)
    ranges = [own for own in (runs_of(free & (band == k)) for k in range(number)) if own]
    sums = np.moveaxis(np.asarray(window_sums(source, ranges)), -1, 0)
    if sums.dtype.kind == "f" and not np.array_equal(sums, np.rint(sums)):
        return None
    return None if sums.min() < 0 or sums.max() > np.iinfo(np.uint32).max else np.ascontiguousarray(sums, np.uint32)
