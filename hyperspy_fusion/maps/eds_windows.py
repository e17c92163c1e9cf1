"""Windows of X-ray lines in the channels of EDS spectra, and what counts other lines add to them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from itertools import combinations
from typing import Any

import numpy as np
from scipy.special import ndtr

from hyperspy_fusion.diagnostics import INFORMATION, NOTE, SERIOUS, Diagnostic
from hyperspy_fusion.identify.elements import by_element, element_of, is_detectable, listed, periodic_table
from hyperspy_fusion.identify.map_identity import metadata_names
from hyperspy_fusion.maps.base import WINDOW_WIDTH
from hyperspy_fusion.maps.eds_spectra import beam_energy_of, element_lines

_logger = logging.getLogger(__name__)

# two windows that share more than this of the narrower one show each other's counts
SHARED_CHANNELS = 0.1
# lines weaker than this part of the strongest of their family do not matter to others
STRONG = 0.1
# counts of other elements that are no more than this part of those in a window are within the errors of quantification
STRAY = 0.03
# a line with more than this part of the counts of a background window is in it, however far it is
TAIL = 0.1
# width of the windows on both sides of a line from which its background is taken, in FWHM, and their distance
_SIDE, _AWAY = 1.0, 1.5
# a side that has so many times the counts of the other holds a line
_LINE = 1.5
# a FWHM in standard deviations
_FWHM = 2.3548


def line_limits(signal, lines, width):
    """exspy's windows ``(low, high)`` of lines; ValueError where the resolution in the metadata gives none."""
    try:
        limits = signal.estimate_integration_windows(width, lines)
        if np.all(np.isfinite(limits)):
            return limits
    except (AttributeError, TypeError, ValueError):  # none, no number, and too small for exspy's formula
        pass
    raise ValueError(
        f"The energy resolution in the metadata gives no window of {', '.join(lines)}: set that of the detector by "
        "`s.set_microscope_parameters(energy_resolution_MnKa=130)` in eV."
    )


def line_windows(signal: Any, lines: list[str], width: float) -> list[tuple[int, int]]:
    """Disjoint channel ranges ``(start, stop)`` of the lines of one element, as `isig` would cut them."""
    axis = signal.axes_manager.signal_axes[0]
    limits = np.clip(line_limits(signal, lines, width), axis.low_value, axis.high_value)
    merged = []
    for start, stop in sorted((axis.value2index(low), axis.value2index(high)) for low, high in limits):
        if merged and start <= merged[-1][1]:
            start, stop = merged[-1][0], max(stop, merged.pop()[1])
        merged.append((start, max(stop, start + 1)))
    return merged


def runs_of(channels):
    """(start, stop) of the runs of True."""
    edges = np.flatnonzero(np.diff(np.r_[0, channels, 0])).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def n_channels(ranges: list) -> int:
    """Number of channels in disjoint ranges ``(start, stop)``."""
    return sum(stop - start for start, stop in ranges)


def lines_within(signal: Any, low: float, high: float, mapped: Any = ()) -> list[str]:
    """X-ray lines between two energies, in units of the axis, of the elements of the sample and of those `mapped`.

    They are strong in their family, and below the energy of the beam.
    """
    from exspy.material import elements
    from exspy.utils.eds import get_xray_lines_near_energy

    unit = 1000.0 if signal.axes_manager.signal_axes[0].units == "eV" else 1.0
    near = get_xray_lines_near_energy((low + high) / 2 / unit, (high - low) / unit)
    sample = {*metadata_names(signal.metadata, "Sample.elements"), *mapped}
    found = [line.split("_") for line in near]
    known = {(e, line): elements[e].Atomic_properties.Xray_lines[line] for e, line in found if e in sample}
    beam = beam_energy_of(signal) or np.inf
    return [f"{e}_{n}" for (e, n), line in known.items() if line.weight >= STRONG and line["energy (keV)"] < beam]


# ---- windows of background -------------------------------------------------------------------------------


def lines_beside(
    signal: Any, spectrum: np.ndarray, windows: Iterable[tuple[int, int]], mapped: Iterable[str]
) -> dict[tuple[int, int], list[str]]:
    """``{window: lines}`` of the sample, and of the elements `mapped`, that keep each window from being background.

    These are the strong lines in it or within half of its width, and all that have more than :data:`TAIL` of its
    counts in the `spectrum`, the sum of all: those are expected from the strongest line of the same family.
    """
    axis = signal.axes_manager.signal_axes[0]
    amounts = _amounts(signal, spectrum, {*metadata_names(signal.metadata, "Sample.elements"), *mapped})
    found = {}
    for start, stop in windows:
        low, high = axis.index2value(start), axis.index2value(stop)
        near = lines_within(signal, low - (high - low) / 2, high + (high - low) / 2, mapped)
        total = max(spectrum[start:stop].sum(), 0)
        # fewer are within three errors of what is counted there
        least = max(TAIL * total, 3 * np.sqrt(total))
        parts = {name: n * _share(axis, limits, [(start, stop)]) for name, (limits, n) in amounts.items()}
        found[start, stop] = list(dict.fromkeys([*near, *(name for name, part in parts.items() if part > least)]))
    return found


def _amounts(signal, spectrum, elements):
    """``{line: (limits, counts)}`` of the lines of each family, by their weights and the counts of the strongest."""
    known = [e for e in periodic_table().keys() if e in elements and is_detectable(e)]
    found = {}
    for own in (element_lines(signal, e) for e in known):
        for family in dict.fromkeys(name[0] for name in own.names):
            weights = {n: w for n, w in zip(own.names, own.weights, strict=True) if n[0] == family}
            with suppress(ValueError):  # the resolution gives no window of a line of low energy
                counts = _net_counts(signal, spectrum, f"{own.element}_{max(weights, key=weights.__getitem__)}")
                limits = line_limits(signal, [f"{own.element}_{name}" for name in weights], WINDOW_WIDTH)
                found |= {
                    f"{own.element}_{n}": (row, counts * weights[n]) for n, row in zip(weights, limits, strict=True)
                }
    return found


# ---- overlaps -------------------------------------------------------------------------------------------


def overlap_diagnostics(
    signal: Any, spectrum: np.ndarray | None, lines: dict, windows: dict, width: float
) -> list[Diagnostic]:
    """Codes ``"windows-share-channels"`` and ``"lines-overlap"``, by the counts that other elements add.

    `spectrum` is the sum of all, `lines` are the names of the lines of each element and `windows` their channels.
    Serious above :data:`STRAY` of the counts in a window, and information below. Lazy spectra are not summed for that
    (`spectrum` is None): their overlaps are notes.
    """
    shared = _shared_channels(windows)
    near = _near_lines(signal, lines, max(width, WINDOW_WIDTH), shared)
    if not (shared or near):
        return []
    rivals = {element: {e for pair in shared if element in pair for e in pair} - {element} for element in windows}
    rivals |= {name: {element_of(line) for line in others} for name, others in near.items()}
    added = {
        name: _stray(signal, spectrum, lines, windows[element_of(name)], others)
        for name, others in rivals.items()
        if others
    }
    return [*_about_shared(shared, added), *_about_near(near, added, max(width, WINDOW_WIDTH))]


def sum_spectrum(signal: Any) -> np.ndarray:
    """(n_channels,) counts of all pixels, a dask array of lazy spectra; 0 where they are not finite."""
    axes = tuple(axis.index_in_array for axis in signal.axes_manager.navigation_axes)
    with np.errstate(over="ignore", invalid="ignore"):
        summed = signal.data.sum(axis=axes)
    summed = (summed if signal._lazy else np.asarray(summed)).astype(np.float64)
    return np.where(np.isfinite(summed), summed, 0.0)


def _stray(signal, spectrum, lines, window, others):
    """Counts of other elements in the window of an element, as a part of all counts there; None where not known."""
    if spectrum is None:
        return None
    total = sum(spectrum[start:stop].sum() for start, stop in window)
    added = sum(_counts_of(signal, spectrum, lines, window, other) for other in others)
    return min(added / total, 1.0) if total > 0 else 0.0


def _counts_of(signal, spectrum, lines, window, element):
    """Counts that the lines of an element add to a window of another one.

    The strongest line of each family is measured above its background, others follow by their weights. A family whose
    strongest line lies in the window itself is taken to be as strong as the strongest of the others.
    """
    from exspy.material import elements

    axis = signal.axes_manager.signal_axes[0]
    weights = {n: node["weight"] for n, node in elements[element].Atomic_properties.Xray_lines.as_dictionary().items()}
    names = [f"{element}_{n}" for n in weights if _inside(signal, f"{element}_{n}")]
    shares = {name: _share(axis, line_limits(signal, [name], WINDOW_WIDTH)[0], window) for name in names}
    strongest = {name[len(element) + 1]: name for name in names if weights[name[len(element) + 1 :]] >= 1}
    clear = [name for name in strongest.values() if shares[name] <= SHARED_CHANNELS]
    # where nothing else is known of it, all counts at its line may be its own
    amounts = {name: _net_counts(signal, spectrum, name) for name in clear or strongest.values()}
    usual = max(amounts.values(), default=0.0)
    family = {kind: amounts.get(name, usual) for kind, name in strongest.items()}
    return sum(
        family.get(name[len(element) + 1], usual) * weights[name[len(element) + 1 :]] * share
        for name, share in shares.items()
    )


def _inside(signal, name):
    axis = signal.axes_manager.signal_axes[0]
    low, high = line_limits(signal, [name], WINDOW_WIDTH)[0]
    return axis.low_value < (low + high) / 2 < axis.high_value


def _share(axis, limits, window):
    """Part of a line, by the limits of its window of two FWHM, that falls into another window."""
    middle, sigma = np.mean(limits), (limits[1] - limits[0]) / WINDOW_WIDTH / _FWHM
    ends = [(axis.offset + (np.array([start, stop]) - 0.5) * axis.scale - middle) / sigma for start, stop in window]
    return float(sum(ndtr(high) - ndtr(low) for low, high in ends))


def _net_counts(signal, spectrum, name):
    """Counts of a line above the background on its sides, or on the lower one; 0 where they are within three errors."""
    axis = signal.axes_manager.signal_axes[0]
    low, high = line_limits(signal, [name], WINDOW_WIDTH)[0]
    fwhm = (high - low) / WINDOW_WIDTH
    middle = (low + high) / 2
    near, far = _AWAY * fwhm, (_AWAY + _SIDE) * fwhm
    ends = [(low, high), (middle - far, middle - near), (middle + near, middle + far)]
    ends = np.clip(ends, axis.low_value, axis.high_value)
    parts = [spectrum[axis.value2index(a) : axis.value2index(b)] for a, b in ends]
    own, sides = parts[0], [part for part in parts[1:] if part.size]
    sides = sorted(sides, key=np.mean) or [np.zeros(1)]
    beside = np.concatenate(sides) if sides[-1].mean() <= _LINE * sides[0].mean() else sides[0]
    net = own.sum() - beside.mean() * own.size
    error = np.sqrt(max(own.sum() + beside.sum() * (own.size / beside.size) ** 2, 0))
    return net if net > 3 * error else 0.0


def _severity(found):
    if None in found:
        return NOTE
    return SERIOUS if max(found) > STRAY else INFORMATION


def _about_shared(shared, added):
    if not shared:
        return []
    pairs = listed([f"{first}/{second} ({part:.0%})" for (first, second), part in shared.items()])
    sentence = (
        f"Integration windows share channels, so maps show counts of both elements: {pairs}: choose other xray_lines, "
        "or pass lines='model' to fuse."
    )
    elements = tuple(dict.fromkeys(e for pair in shared for e in pair))
    return [Diagnostic("windows-share-channels", sentence, _severity([added[e] for e in elements]), elements)]


def _near_lines(signal, lines, width, shared):
    """Lines of other elements of the sample in a window, and within one FWHM of a mapped line in any case.

    But not of pairs that share channels.
    """
    # a line at one FWHM has a sixth of its counts in a window of 1.2
    near = {}
    for name in [name for own in lines.values() for name in own]:
        element = element_of(name)
        skipped = {element, *(other for pair in shared if element in pair for other in pair)}
        ((low, high),) = line_limits(signal, [name], width)
        others = [line for line in lines_within(signal, low, high, lines) if element_of(line) not in skipped]
        if others:
            near[name] = others
    return near


def _about_near(near, added, width):
    if not near:
        return []
    _logger.info("X-ray lines that overlap: %s", near)
    severity = _severity([added[name] for name in near])
    if severity == SERIOUS:
        near = {name: others for name, others in near.items() if added[name] > STRAY}
    named = {name: ", ".join(by_element(others)) for name, others in near.items()}
    parts = {n: f": {part:.0%}" if (part := added[n] or 0) >= 0.005 else "" for n in near}
    pairs = listed([f"{name} ({others}{parts[name]})" for name, others in named.items()])
    reach = "one" if width == WINDOW_WIDTH else f"{width / 2:g}"
    sentence = (
        f"Lines of other elements within {reach} FWHM add counts to {pairs}: choose other xray_lines, or "
        "pass lines='model' to fuse."
    )
    return [Diagnostic("lines-overlap", sentence, severity, tuple(by_element(list(near))))]


def _shared_channels(windows):
    """``{(element, other): part}`` of the narrower window, of those that share more than a tenth."""
    channels = {e: {c for limits in ranges for c in range(*limits)} for e, ranges in windows.items()}
    parts = {
        (first, second): len(channels[first] & channels[second]) / min(len(channels[first]), len(channels[second]))
        for first, second in combinations(channels, 2)
    }
    return {pair: part for pair, part in parts.items() if part > SHARED_CHANNELS}
