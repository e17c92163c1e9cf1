"""Maps of core-loss edges from an EELS spectrum image: a power law before each edge, a window after it.

The power law is HyperSpy's, the energies and cross-sections of edges are exspy's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from hyperspy_fusion import grids
from hyperspy_fusion.elements import (
    atomic_number,
    checked_elements,
    listed,
    meant,
    metadata_names,
    parted,
    refuse_repeats,
)
from hyperspy_fusion.fusion.background import gaussian
from hyperspy_fusion.fusion.noise import estimate_variance

_logger = logging.getLogger(__name__)

# widths of the windows relative to the onset energy: before the edge, and after it unless another edge comes
BEFORE, AFTER = 0.2, 0.1
# eV: least width after an edge; left free before an edge, for its onset shifts and is not sharp; and after one, where
# its fine structure is no power law
LEAST, MARGIN, FINE = 30.0, 5.0, 50.0
# least width of a window before an edge, relative to its onset; where there is less, the edges share one
ROOM = 0.05
# change of the mean of a map by half the window, relative to it and in standard errors, that is told
NO_POWER_LAW, CHANCE = 0.05, 4.0
# pixels: standard deviation of the Gaussian over which the exponent of the background is taken
SHAPE_BLUR = 1.0
# pixels: the same for the counts of which the variance is made
VARIANCE_BLUR = 1.0


@dataclass(frozen=True)
class Edge:
    """One edge and its windows, energies in eV.

    Attributes
    ----------
    name, element, onset
        "Fe_L3", "Fe" and exspy's onset energy.
    before, after
        Limits of the windows of background and signal.
    net, variance, white
        (ny, nx): counts of the edge alone, the variance of their noise, and what of it neighbours do not share.
    cross_section
        exspy's hydrogenic cross-section of the signal window, in its units; NaN where it is not known.
    """

    name: str
    onset: float
    before: tuple
    after: tuple
    net: np.ndarray | None = None
    variance: np.ndarray | None = None
    white: np.ndarray | None = None
    cross_section: float = float("nan")

    @property
    def element(self):
        return self.name.split("_")[0]


@dataclass(frozen=True)
class Edges:
    """The edges in the order in which they were asked for."""

    edges: list

    def described(self):
        """What the metadata of maps have of the edges, by element."""
        known = {e.element: e.cross_section for e in self.edges if np.isfinite(e.cross_section)}
        described = {
            "edges": {e.element: e.name for e in self.edges},
            "windows": {e.element: np.array([*e.before, *e.after], dtype=float) for e in self.edges},
        }
        return described | ({"cross_sections": known} if len(known) == len(self.edges) else {})


def is_eels(source):
    """Whether `source` is a spectrum image of the type EELS."""
    if not grids.is_spectra(source):
        return False
    is_stack = source.axes_manager.signal_axes[0].name in grids.STACK_AXES
    return source.metadata.get_item("Signal.signal_type", "") == "EELS" and not is_stack


def edge_counts(signal, elements=None, edges=None):
    """
    Counts of core-loss edges above their background, and the variance of these.

    Parameters
    ----------
    signal : exspy.signals.EELSSpectrum
        ``(x, y|E)`` in eV; lazy ones are computed.
    elements, edges
        As for `hyperspy_fusion.element_maps`.

    Returns
    -------
    Edges

    Raises
    ------
    TypeError, ValueError
        No edges, unknown ones, or such without room for a window within the spectra.
    """
    grids.check_real(signal)
    _check_axis(signal)
    asked = _asked(signal, elements, edges)
    found = with_windows(asked, signal.axes_manager.signal_axes[0])
    _warn_of_other_edges(signal, found)
    spectra = _cropped(signal, found)
    for edge in found:
        _warn_of_background(spectra, edge)
    return Edges(_in_order(_stripped(spectra, [_measured(spectra, edge) for edge in found]), asked))


# ---- which edges ------------------------------------------------------------------------------------


def _check_axis(signal):
    axis = signal.axes_manager.signal_axes[0]
    if not axis.is_uniform:
        raise NotImplementedError(f"{signal} has a non-uniform energy axis: interpolate it first.")
    if axis.units != "eV":
        raise ValueError(
            f"The energy axis of {signal} has the units {axis.units}: expected eV, set by "
            "`s.axes_manager.signal_axes[0].units = 'eV'`."
        )


def _asked(signal, elements, edges):
    """Dict of the edges and the windows that are given for them, None for the default ones."""
    if edges is None and elements is None:
        raise ValueError(
            f"{signal} is an EELS spectrum image, whose edges lie on a background: fit a model "
            "(`m = s.create_model(); m.multifit()`) and pass the model, or make maps of edges: "
            "`element_maps(s, edges=['Fe_L3', ...])`."
        )
    if edges is None:
        refuse_repeats(checked_elements(elements))
        return {_main_edge(signal, element): None for element in elements}
    asked = dict(edges) if isinstance(edges, dict) else dict.fromkeys(listed(edges, "edges", "['Fe_L3', 'O_K']"))
    own = [_checked_edge(name).split("_")[0] for name in asked]
    refuse_repeats(own)
    if elements is not None and list(elements) != own:
        raise ValueError(f"elements is {elements} and edges are of {own}: leave elements out, for the edges tell them.")
    return {name: _checked_windows(name, windows) for name, windows in asked.items()}


def _onsets(element):
    """Dict of exspy's major and minor edges of an element, in eV."""
    from exspy.material import elements

    atomic_number(element)
    shells = elements[element].Atomic_properties.as_dictionary().get("Binding_energies", {})
    # those that end in "a" are no edges
    return {f"{element}_{shell}": node for shell, node in shells.items() if not shell.endswith("a")}


def _checked_edge(name):
    element, _ = parted(name)
    known = _onsets(element)
    if name not in known:
        raise ValueError(f"{name!r} is not an edge of {element} that exspy knows: {meant(name, list(known))}")
    return name


def _checked_windows(name, windows):
    if windows is None:
        return None
    limits = tuple(float(energy) for energy in windows)
    if len(limits) != 4 or not (limits[0] < limits[1] <= limits[2] < limits[3]):
        raise ValueError(
            f"The windows of {name} are {windows!r}: expected four rising energies in eV, the limits of the window of "
            "the background before the edge and of that of the signal."
        )
    return limits


def onset_energy(name):
    """Onset energy of an edge in eV, by exspy."""
    from exspy.utils.eels import get_info_from_edges

    return float(get_info_from_edges([name])[0]["onset_energy (eV)"])


def _main_edge(signal, element):
    """The major edge of lowest energy that has room for its background in the spectra."""
    axis = signal.axes_manager.signal_axes[0]
    major = {name: onset_energy(name) for name, node in _onsets(element).items() if node["relevance"] == "Major"}
    low = {n: e for n, e in major.items() if axis.low_value < (1 - ROOM) * e and e + LEAST < axis.high_value}
    if not low:
        listed_edges = ", ".join(f"{name} at {energy:g} eV" for name, energy in major.items()) or "none"
        raise ValueError(
            f"{element} has no major edge within the spectra, {axis.low_value:g} to {axis.high_value:g} eV (its edges: "
            f"{listed_edges}): leave it out, or name an edge by edges=[...]."
        )
    return min(low, key=low.get)


# ---- windows ----------------------------------------------------------------------------------------


def with_windows(asked, axis):
    """
    `Edge` of each name in ``asked``, by onset energy.

    The background is taken from 20 % below the onset, but not from the 50 eV after an edge before. Where this leaves
    less than 5 % of the onset energy, the window of the edge before serves both, and what it
    shows in the window of this one is taken off by its cross-section. The signal window ends 10 % above the onset,
    or before the next edge. Both keep 5 eV, or a channel, away from the edge that they come before.
    """
    margin = max(MARGIN, axis.scale)
    onsets = sorted((onset_energy(name), name) for name in asked)
    edges = []
    for i, (onset, name) in enumerate(onsets):
        previous = edges[-1] if edges else None
        ahead = onsets[i + 1][0] - margin if i + 1 < len(onsets) else np.inf
        windows = asked[name] or (*_before(onset, previous, axis, margin), *_after(onset, ahead))
        edges.append(_within(Edge(name, onset, windows[:2], windows[2:]), axis))
    return edges


def _before(onset, previous, axis, margin):
    end = onset - margin
    start = max((1 - BEFORE) * onset, axis.low_value)
    if previous is None or previous.onset + FINE < start:
        return start, end
    if end - previous.onset - FINE >= ROOM * onset:
        return previous.onset + FINE, end
    return previous.before


def _after(onset, ahead):
    return onset, min(onset + max(AFTER * onset, LEAST), ahead)


def _within(edge, axis):
    """The edge with its windows within the spectra; ValueError where one has fewer than the channels it needs."""
    limits = []
    for what, (low, high), least in (("background", edge.before, 4), ("signal", edge.after, 1)):
        low, high = max(low, axis.low_value), min(high, axis.high_value + axis.scale / 2)
        channels = axis.value2index(high) - axis.value2index(low) if high > low else 0
        if channels < least:
            raise ValueError(
                f"The {what} window of {edge.name}, {low:g} to {high:g} eV, has fewer than {least} channels of the "
                f"spectra, which reach from {axis.low_value:g} to {axis.high_value:g} eV: give windows of your own by "
                f"edges={{{edge.name!r}: (b0, b1, s0, s1)}}, or leave the edge out."
            )
        limits.append((float(low), float(high)))
    return replace(edge, before=limits[0], after=limits[1])


def _warn_of_other_edges(signal, edges):
    """Warn of major edges of other elements of the sample in the windows, which no map takes account of."""
    from exspy.utils.eels import get_edges_near_energy

    mapped = {edge.element for edge in edges}
    others = set(metadata_names(signal.metadata, "Sample.elements")) - mapped
    for edge in edges:
        low, high = edge.before[0], edge.after[1]
        near = get_edges_near_energy((low + high) / 2, high - low, only_major=True, order="ascending")
        found = [name for name in near if name.split("_")[0] in others]
        if found:
            grids.warn(
                f"{', '.join(found)} of the sample lie in the windows of {edge.name} ({low:g} to {high:g} eV), and the "
                f"map of {edge.element} shows them too: name them among the edges, or give other windows."
            )


# ---- counts -----------------------------------------------------------------------------------------


def _cropped(signal, edges):
    """The spectra between the first and the last window, in memory, as floats, their energy the last axis."""
    low, high = min(edge.before[0] for edge in edges), max(edge.after[1] for edge in edges)
    axis = signal.axes_manager.signal_axes[0]
    part = signal.isig[axis.value2index(low) : axis.value2index(high) + 1]
    if part._lazy:
        part.compute(show_progressbar=False)
    energy = part.axes_manager.signal_axes[0]
    data = np.moveaxis(part.data, energy.index_in_array, -1).astype(np.float64)
    axes = [*grids.axis_dicts(part.axes_manager.navigation_axes, part), energy.get_axis_dictionary()]
    for axis in axes[:2]:
        axis["navigate"] = True
    return type(part)(data, axes=axes, metadata=signal.metadata.as_dictionary())


def _channels(signal, window):
    axis = signal.axes_manager.signal_axes[0]
    return slice(axis.value2index(window[0]), min(axis.value2index(window[1]), axis.size))


def _sums(signal, data, window):
    """Sum over the channels of a window; the energy axis of `data` is the last."""
    return data[..., _channels(signal, window)].sum(axis=-1)


def _measured(signal, edge):
    """The edge with its counts above the background, and their variance if the counts were electrons."""
    gross, beside = (_sums(signal, signal.data, window) for window in (edge.after, edge.before))
    net = gross - _extrapolation(signal, edge) * beside
    white, shared = _counts_of_noise(signal, edge, gross, beside)
    return replace(edge, net=net, variance=white + shared, white=white)


def _extrapolation(signal, edge):
    """(ny, nx): the power law through the surroundings of a pixel, its sum after the edge over that before."""
    around = np.moveaxis(gaussian(np.moveaxis(signal.data, -1, 0), SHAPE_BLUR), 0, -1)
    blurred = signal._deepcopy_with_new_data(around)
    ratio, usual = _ratio(blurred, edge), _ratio(blurred.mean(), edge)
    # no power law goes through counts of zero: there that of the mean spectrum
    plausible = np.isfinite(ratio) & (ratio > 0) & (ratio < 10 * usual)
    if not plausible.all():
        _logger.info("%s: %d pixels have the background of the mean spectrum.", edge.name, np.sum(~plausible))
    return np.where(plausible, ratio, usual) * _correction(blurred.mean(), edge)


def _ratio(signal, edge):
    """Sum of the power law after the edge over that before it."""
    fitted = _power_law(signal, edge.before)
    after, before = (_sums(signal, fitted, window) for window in (edge.after, edge.before))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(before > 0, after / before, np.nan)


def _correction(mean, edge):
    """By what HyperSpy's estimate, exact for narrow windows alone, misses a power law like that of the mean."""
    exact = mean._deepcopy_with_new_data(_power_law(mean, edge.before))
    after, before = (_sums(mean, exact.data, window) for window in (edge.after, edge.before))
    correction = after / before / _ratio(exact, edge)
    return float(correction) if np.isfinite(correction) else 1.0


def _power_law(signal, window):
    """The power law that HyperSpy's remove_background fits in the window, at all energies."""
    logger = logging.getLogger("hyperspy")
    level = logger.level
    logger.setLevel(logging.ERROR)  # that a faster library is not installed, once for each call
    try:
        with np.errstate(all="ignore"):
            rest = signal.remove_background(signal_range=tuple(map(float, window)), show_progressbar=False)
    finally:
        logger.setLevel(level)
    return signal.data - rest.data


def _counts_of_noise(signal, edge, gross, beside):
    """Variances (ny, nx) of the net counts if counts are of Poisson noise, smoothed: of each pixel, and shared by some.

    The first is of the counts in the signal window and of the amplitude of the background; the second of its exponent,
    by the derivatives of the extrapolated background of the mean spectrum along each channel before the edge.
    """
    mean = signal.mean()
    data, ratio = mean.data, float(_ratio(mean, edge))
    channels = np.arange(data.size)[_channels(signal, edge.before)]
    slopes = _derivatives(mean, edge, channels) - ratio
    # the exponent is that of a neighbourhood
    together = max(4 * np.pi * SHAPE_BLUR**2, 1.0)
    shape = np.sum(slopes**2 * np.maximum(data[channels], 0)) / max(data[channels].sum(), 1e-30) / together
    smooth = [np.maximum(gaussian(image, VARIANCE_BLUR), 0) for image in (gross, beside)]
    white = smooth[0] + ratio**2 * smooth[1]
    # a pixel without counts has noise of its own: never below a hundredth of the usual
    return np.maximum(white, 0.01 * white.mean()), shape * smooth[1]


def _derivatives(mean, edge, channels):
    """Derivatives of the background extrapolated into the signal window by the counts of each channel."""
    data, energy = mean.data, mean.axes_manager[-1].get_axis_dictionary()
    step = 1e-3 * max(abs(data[channels]).mean(), 1e-30)
    steps = np.zeros((len(channels) + 1, data.size))
    steps[np.arange(len(channels)), channels] = step
    moved = type(mean)(data + steps, axes=[{"size": len(steps), "navigate": True}, energy])
    after = _sums(mean, _power_law(moved, edge.before), edge.after)
    return (after[:-1] - after[-1]) / step


def _warn_of_background(signal, edge):
    """Warn where the nearer half of the window before an edge says something else of the mean spectrum than all of it.

    Where no power law goes through the background, the map is off by a part of the background, everywhere.
    """
    mean = signal.mean()
    near = replace(edge, before=(sum(edge.before) / 2, edge.before[1]))
    channels = np.arange(mean.data.size)[_channels(mean, near.before)]
    if len(channels) < 4:
        return
    under, by_near = (_under(mean, one) for one in (edge, near))
    net, change = _sums(mean, mean.data, edge.after) - under, under - by_near
    slopes = _derivatives(mean, near, channels)
    chance = np.sqrt(np.sum(slopes**2 * np.maximum(mean.data[channels], 0)) / signal.axes_manager.navigation_size)
    if abs(change) > max(CHANCE * chance, NO_POWER_LAW * abs(net)):
        way, low, high = "larger" if change > 0 else "smaller", *near.before
        grids.warn(
            f"No power law goes through the background before {edge.name}, or the edge begins in it: by the nearer "
            f"half of its window, {low:g} to {high:g} eV, alone the mean of the map is {abs(change / net):.0%} {way}, "
            f"which is {abs(change / under):.1%} of the background under the edge. Where there is little "
            f"{edge.element}, the map may be off by as much as what is there: fit a model (`s.create_model()`), or "
            "compare with other windows."
        )


def _under(mean, edge):
    """The background of the mean spectrum in the window of an edge."""
    ratio = _ratio(mean, edge) * _correction(mean, edge)
    return float(ratio * _sums(mean, mean.data, edge.before))


# ---- edges that lie on others -----------------------------------------------------------------------


def _stripped(signal, edges):
    """The edges, each less what the ones before it show in its window where its background does not hold them."""
    sections = [_cross_sections(signal, edge, edges) for edge in edges]
    clean = []
    for i, edge in enumerate(edges):
        net, variance, white = edge.net, edge.variance, edge.white
        for j in range(i):
            if not edge.before[1] <= edges[j].onset < edge.after[0]:
                continue
            tail = sections[j][i] / sections[j][j]
            if not np.isfinite(tail):
                raise ValueError(_no_tail(edges[j], edge))
            net = net - tail * clean[j].net
            variance, white = variance + tail**2 * clean[j].variance, white + tail**2 * clean[j].white
            grids.warn(
                f"{edge.name} lies on {edges[j].name}, of which {tail:.2f} times the counts are taken off in its "
                "window, by exspy's hydrogenic cross-sections: a fitted model is more accurate."
            )
        clean.append(replace(edge, net=net, variance=variance, white=white, cross_section=sections[i][i]))
    return [replace(edge, variance=_as_seen(edge)) for edge in clean]


def _as_seen(edge):
    """The variance of an edge, as large as the white noise of its map: counts of a camera are no electrons."""
    seen, mean = estimate_variance(edge.net), edge.white.mean()
    return edge.variance * (seen / mean if seen > 0 and mean > 0 else 1.0)


def _no_tail(first, second):
    return (
        f"{second.name} lies on {first.name}, too near for a background window between them, and its share cannot be "
        "told without the cross-sections of exspy, which need beam energy, convergence and collection angle "
        "(`s.set_microscope_parameters(...)`) and K or L edges: give windows of your own by "
        f"edges={{{second.name!r}: (b0, b1, s0, s1), ...}}, or fit a model."
    )


def _cross_sections(signal, edge, edges):
    """Hydrogenic cross-section of the edge in the signal window of each of the `edges`; NaN where it is not known."""
    metadata = signal.metadata
    keys = ("beam_energy", "convergence_angle", "Detector.EELS.collection_angle")
    angles = [metadata.get_item(f"Acquisition_instrument.TEM.{key}") for key in keys]
    # exspy has hydrogenic cross-sections of K and L edges alone
    if any(value is None for value in angles) or edge.name.split("_")[1][0] not in "KL":
        return [float("nan")] * len(edges)
    axis = signal.axes_manager.signal_axes[0]
    values = _edge_function(edge.name, [float(value) for value in angles], axis)
    return [float(values[_channels(signal, other.after)].sum()) for other in edges]


def _edge_function(name, angles, axis):
    from exspy.components import EELSCLEdge

    component = EELSCLEdge(name, GOS="hydrogenic")
    component.fine_structure_active = False
    component.set_microscope_parameters(*angles, axis.scale)
    component.intensity.value = 1.0
    return np.asarray(component.function(axis.axis))


def _in_order(edges, asked):
    return sorted(edges, key=lambda edge: list(asked).index(edge.name))
