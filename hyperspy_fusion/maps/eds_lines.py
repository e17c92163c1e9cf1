"""Counts of the X-ray lines in an EDS spectrum image, and which lines and edges make the maps of a model."""

import logging
from numbers import Real

import numpy as np

from hyperspy_fusion.grid import axes as grids
from hyperspy_fusion.identify.elements import (
    by_element,
    checked_elements,
    checked_lines,
    element_of,
    is_detectable,
    known_lines,
    metadata_names,
    of_element,
    refuse_repeats,
    refuse_unasked_lines,
    refuse_undetectable,
)

_logger = logging.getLogger(__name__)

# full width of an integration window in units of the line's FWHM, as exspy's get_lines_intensity has it
WINDOW_WIDTH = 2.0
# outside of these it is a width in eV, or in keV
_WIDTHS = (0.2, 10.0)
# two windows that share more than this of the narrower one show each other's counts
SHARED_CHANNELS = 0.1
# lines weaker than this part of the strongest of their family do not matter to others
STRONG = 0.1

_ACCUMULATOR = {"b": np.uint64, "u": np.uint64, "i": np.int64, "f": np.float64}


def checked_width(width):
    """Width of integration windows as a float; TypeError or ValueError for what is none in units of the FWHM."""
    if isinstance(width, bool) or not isinstance(width, Real):
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


def line_counts(signal, elements=None, xray_lines=None, width=WINDOW_WIDTH):
    """
    Counts of the X-ray lines of each element, without the background being subtracted.

    Parameters
    ----------
    signal : exspy.signals.EDSSpectrum
        ``(x, y|E)``, lazy or not.
    elements, xray_lines : list of str, optional
        As in `hyperspy_fusion.element_maps`, known to exist.
    width : float
        Full width of the windows in units of the FWHM of their line.

    Returns
    -------
    lines : dict
        The X-ray lines of each element, in the order of the elements.
    counts : numpy.ndarray or dask.array.Array
        Shape (ny, nx, n). 64-bit integers for integer spectra, else their float dtype, of 32 bits at least.

    Raises
    ------
    TypeError
        Complex, RGB or ragged data.
    ValueError
        Not an EDS spectrum image, uncalibrated energies, and elements or lines that are outside of them.
    NotImplementedError
        The energy axis is not uniform.
    """
    _check_spectra(signal)
    _check_asked(signal, elements, xray_lines)
    lines = _choose_lines(signal, elements, xray_lines)
    _logger.info("X-ray lines: %s", lines)
    windows = {element: line_windows(signal, names, width) for element, names in lines.items()}
    _warn_of_lines(signal, lines, width, _warn_of_overlaps(windows))
    return lines, window_sums(signal, list(windows.values()))


def fitted_lines(model, elements=None, xray_lines=None):
    """
    Which of the X-ray lines that an EDS model fits make the maps.

    Parameters
    ----------
    model : exspy.models.EDSModel
        Its ``Sample.xray_lines`` are preferred to the other lines of an element.
    elements, xray_lines : list of str, optional
        As in `hyperspy_fusion.element_maps`, known to exist.

    Returns
    -------
    list of str
        Empty where the model has no lines of the `elements`.

    Raises
    ------
    ValueError
        One of the `xray_lines` is of another element, or has no component in the model.
    """
    in_model = [component.name for component in model.xray_lines]
    if xray_lines is None:
        preferred = set(metadata_names(model.signal.metadata, "Sample.xray_lines"))
        lines = []
        for own in by_element(in_model).values():
            lines += [line for line in own if line in preferred] or own
    else:
        lines = xray_lines
        refuse_unasked_lines(lines, elements)
    for line in lines:
        if line not in in_model:
            raise ValueError(f"{line} is not fitted in {model}: expected some of {', '.join(in_model)}.")
    return [line for line in lines if elements is None or element_of(line) in elements]


def main_edges(model):
    """One core-loss edge per element, by symbol: the lowest independent one; exspy twins the rest to it."""
    edges = [c for c in model if hasattr(c, "subshell") and c.active and c.intensity.twin is None]
    edges.sort(key=lambda edge: (edge.element, edge.onset_energy.value))
    main = {}
    for edge in edges:
        if main.setdefault(edge.element, edge) is not edge:
            _logger.info("%s is left out, the %s map is %s.", edge.name, edge.element, main[edge.element].name)
    return list(main.values())


def refuse_unfitted(model, parameters):
    """Raise ValueError unless the `parameters` of `model` are fitted everywhere."""
    if not all(parameter.map["is_set"].all() for parameter in parameters):
        raise ValueError(f"{model} is not fitted at every pixel: call `m.multifit()` first.")


def _check_spectra(signal):
    grids.check_real(signal)
    if hasattr(signal, "estimate_integration_windows"):
        return _check_energy_axis(signal)
    axis = signal.axes_manager.signal_axes[0]
    if axis.name in grids.STACK_AXES:
        raise ValueError(f"{signal} is a transposed stack of maps: pass it as (n|x, y), which its `.T` gives.")
    if signal.metadata.get_item("Signal.signal_type", "") == "EELS":
        raise ValueError(
            f"{signal} is an EELS spectrum image, whose edges lie on a background: fit a model "
            "(`m = s.create_model(); m.multifit()`) and pass the model, or subtract the background, "
            "integrate a window per edge, and pass the maps with elements=[...]."
        )
    raise ValueError(f"{signal} is not known to be EDS: call `s.set_signal_type('EDS_TEM')` if it is, or pass maps.")


def _check_energy_axis(signal):
    axis = signal.axes_manager.signal_axes[0]
    if not axis.is_uniform:
        raise NotImplementedError(f"{signal} has a non-uniform energy axis: interpolate it first.")
    if axis.units not in ("eV", "keV"):
        raise ValueError(
            f"The energy axis of {signal} has the units {axis.units}: expected eV or keV, set by "
            "`s.axes_manager.signal_axes[0].units = 'keV'`."
        )


def _check_asked(signal, elements, xray_lines):
    """Refuse elements that no detector sees, and warn of those that the file does not name."""
    asked = dict.fromkeys([*(elements or []), *map(element_of, xray_lines or [])])
    refuse_undetectable(asked)
    known = metadata_names(signal.metadata, "Sample.elements")
    unknown = [element for element in asked if element not in known]
    if known and unknown:
        grids.warn(
            f"{', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} not among the elements that the file names "
            f"({', '.join(known)}): check for a typo."
        )


def _choose_lines(signal, elements, xray_lines):
    """Dict of each element's X-ray lines, all within the energy range, in the order of the maps."""
    if xray_lines is not None:
        lines = xray_lines
        _refuse_out_of_range(signal, lines)
        refuse_unasked_lines(lines, elements)
    else:
        lines = _lines_in_range(signal, checked_lines(metadata_names(signal.metadata, "Sample.xray_lines")))
    if elements is not None:
        refuse_repeats(elements)
        chosen = {e: of_element(lines, e) or _default_lines(signal, e) for e in elements}
        _refuse_lineless(signal, chosen)
        return chosen
    return by_element(lines) or _default_choice(signal)


def _default_choice(signal):
    """Lines of ``Sample.elements`` by exspy's rule; ValueError where there are no elements with lines."""
    elements = checked_elements(metadata_names(signal.metadata, "Sample.elements"))
    if not elements:
        raise ValueError(
            f"The metadata of {signal} name no elements: pass elements=[...] or xray_lines=[...], or call "
            "`s.set_elements([...])`."
        )
    chosen = {element: _default_lines(signal, element) for element in dict.fromkeys(elements)}
    for element in [e for e, lines in chosen.items() if not lines]:
        grids.warn(f"{element} has no X-ray line within the spectra and is left out.")
    chosen = {element: lines for element, lines in chosen.items() if lines}
    if not chosen:
        _refuse_lineless(signal, dict.fromkeys(elements))
    return chosen


def _default_lines(signal, element):
    """What exspy takes of `element`: the alpha line in the energy range that this beam excites well."""
    if not (is_detectable(element) and known_lines(element)):
        return []
    probe = signal.inav[0, 0]  # a copy, so that the caller's metadata stay as they are
    probe.metadata.set_item("Sample.xray_lines", [])
    probe.set_elements([element])
    probe.add_lines()
    return metadata_names(probe.metadata, "Sample.xray_lines")


def _refuse_lineless(signal, chosen):
    for element, lines in chosen.items():
        if not lines:
            raise ValueError(
                f"{element} has no X-ray line within the energies of {signal}: leave it out, or name a line "
                "by xray_lines=[...]."
            )


def _refuse_out_of_range(signal, lines):
    for line in lines:
        if not _in_range(signal, line):
            axis = signal.axes_manager.signal_axes[0]
            raise ValueError(
                f"{line} is not within the energies of {signal}, {axis.low_value:.3g} to "
                f"{axis.high_value:.3g} {axis.units}: take another line of the element."
            )


def _lines_in_range(signal, lines):
    inside = [line for line in lines if _in_range(signal, line)]
    for line in [line for line in lines if line not in inside]:
        grids.warn(f"{line} of Sample.xray_lines is not within the spectra and is left out.")
    return inside


def _in_range(signal, line):
    if not is_detectable(element_of(line)):
        return False
    axis = signal.axes_manager.signal_axes[0]
    energy = np.mean(signal.estimate_integration_windows(WINDOW_WIDTH, [line]))
    return axis.low_value < energy < axis.high_value


def line_windows(signal, lines, width):
    """Disjoint channel ranges ``(start, stop)`` of the lines of one element, as `isig` would cut them."""
    axis = signal.axes_manager.signal_axes[0]
    limits = np.clip(signal.estimate_integration_windows(width, lines), axis.low_value, axis.high_value)
    merged = []
    for start, stop in sorted((axis.value2index(low), axis.value2index(high)) for low, high in limits):
        if merged and start <= merged[-1][1]:
            start, stop = merged[-1][0], max(stop, merged.pop()[1])
        merged.append((start, max(stop, start + 1)))
    return merged


def _warn_of_overlaps(windows):
    """Warn of windows that share channels; the pairs of elements that do."""
    told = set()
    channels = {e: {c for r in ranges for c in range(*r)} for e, ranges in windows.items()}
    names = list(channels)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = len(channels[first] & channels[second])
            share = shared / min(len(channels[first]), len(channels[second]))
            if share > SHARED_CHANNELS:
                grids.warn(
                    f"The windows of {first} and {second} share {100 * share:.0f} % of the narrower one, so each map "
                    "shows counts of the other; choose other lines by xray_lines, or fit a model."
                )
                told |= {(first, second), (second, first)}
    return told


def _warn_of_lines(signal, lines, width, told):
    """Warn of lines of other elements of the sample in a window, and within one FWHM of a mapped line in any case.

    But not of pairs already told.
    """
    # a line at one FWHM has a sixth of its counts in a window of 1.2
    width = max(width, 2.0)
    reach = "one" if width == 2.0 else f"{width / 2:g}"
    for name in [name for own in lines.values() for name in own]:
        ((low, high),) = signal.estimate_integration_windows(width, [name])
        near = lines_within(signal, low, high, lines)
        skipped = {element_of(name)} | {second for first, second in told if first == element_of(name)}
        others = [line for line in near if element_of(line) not in skipped]
        if others:
            grids.warn(
                f"{name} overlaps with {', '.join(others)}, within {reach} FWHM: the map of {element_of(name)} shows "
                f"counts of {_and(map(element_of, others))} where there is any; choose other lines by xray_lines, or "
                "fit a model."
            )


def _and(names):
    return " and ".join(dict.fromkeys(names))


def lines_within(signal, low, high, mapped=()):
    """X-ray lines between two energies, in units of the axis, of the elements of the sample and of those `mapped`."""
    from exspy.material import elements
    from exspy.utils.eds import get_xray_lines_near_energy

    unit = 1000.0 if signal.axes_manager.signal_axes[0].units == "eV" else 1.0
    near = get_xray_lines_near_energy((low + high) / 2 / unit, (high - low) / unit)
    sample = {*metadata_names(signal.metadata, "Sample.elements"), *mapped}
    found = [line.split("_") for line in near]
    return [
        f"{element}_{line}"
        for element, line in found
        if element in sample and elements[element].Atomic_properties.Xray_lines[line].weight >= STRONG
    ]


def window_sums(signal, windows):
    """Counts in the `windows` of each element, (ny, nx, n); lazy spectra are read once for all windows."""
    axis = signal.axes_manager.signal_axes[0]
    data = np.moveaxis(signal.data, axis.index_in_array, -1)
    sums = _sum_lazily(data, windows) if signal._lazy else _sum_channels(data, windows)
    return sums.astype(np.result_type(data.dtype, np.float32)) if data.dtype.kind == "f" else sums


def _sum_lazily(data, windows):
    n, blocks = len(windows), data.numblocks[-1]
    dtype = _ACCUMULATOR[data.dtype.kind]
    parts = data.map_blocks(
        _sum_channels,
        windows,
        dtype=dtype,
        chunks=(*data.chunks[:-1], (n,) * blocks),
        meta=np.empty((0, 0, 0), dtype),
    )
    return sum(parts[..., k * n : (k + 1) * n] for k in range(blocks))


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
