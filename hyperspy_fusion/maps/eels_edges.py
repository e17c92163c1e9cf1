"""Core-loss edges: which are asked for, their windows by their onset energies, and their cross-sections by exspy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.spectra.background import gaussian
from hyperspy_fusion.fusion.terms.noise_estimation import estimate_variance
from hyperspy_fusion.identify.elements import (
    atomic_number,
    checked_elements,
    list_of_names,
    nearest_names,
    refuse_repeats,
    split_shell,
)
from hyperspy_fusion.identify.map_identity import metadata_names

# widths of the windows relative to the onset energy: before the edge, and after it unless another edge comes
BEFORE, AFTER = 0.2, 0.1
# eV: least width after an edge; left free before an edge, for its onset shifts and is not sharp; and after one, where
# its fine structure is no power law
LEAST, MARGIN, FINE = 30.0, 5.0, 50.0
# least width of a window before an edge, relative to its onset; where there is less, the edges share one
ROOM = 0.05
# eV after an onset that a fit of cross-sections leaves out where there is room, for it shows bonds: the width that
# exspy gives the fine structure of an edge
NEAR_EDGE = 30.0
# change of the mean of a map by half the window, relative to it and in standard errors, that is reported
NO_POWER_LAW, CHANCE = 0.05, 4.0
# pixels: standard deviation of the Gaussian over which the exponent of the background is taken, and how many pixels it
# averages over
SHAPE_BLUR = 1.0
TOGETHER = max(4 * np.pi * SHAPE_BLUR**2, 1.0)
# pixels: the same for the counts of which the variance is made
VARIANCE_BLUR = 1.0


@dataclass(frozen=True, eq=False)
class Edge:
    """One edge such as "Fe_L3" and its windows, energies in eV: exspy's onset, and limits of background and signal.

    `net` (ny, nx) is what there is of the edge alone, `variance` that of its noise, and `white` the part of it that
    neighbours do not share. The cross-section is what one atom adds to `net`, up to a factor for all edges; NaN where
    it is not known.
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


# ---- which edges ------------------------------------------------------------------------------------


def asked_edges(signal: Any, elements: list[str] | None, edges: Any) -> dict[str, tuple | None]:
    """Dict of the edges and the windows that are given for them, None for the default ones."""
    if edges is None and elements is None:
        raise ValueError(
            f"{signal} is an EELS spectrum image, whose edges lie on a background: make maps of edges by "
            "element_maps(s, edges=['Fe_L3', ...]), or fit a model (`m = s.create_model(); m.multifit()`) and pass it."
        )
    if edges is None:
        elements = checked_elements(elements)
        refuse_repeats(elements)
        return {_main_edge(signal, element): None for element in elements}
    asked = dict(edges) if isinstance(edges, dict) else dict.fromkeys(list_of_names(edges, "edges", "['Fe_L3', 'O_K']"))
    own = []
    for name in asked:
        element, _ = split_shell(name)
        known = list(_edges_of(element))
        if name not in known:
            raise ValueError(f"{name!r} is not an edge of {element} that exspy knows: {nearest_names(name, known)}")
        own.append(element)
    refuse_repeats(own)
    if elements is not None and list(elements) != own:
        raise ValueError(f"elements is {elements} and edges are of {own}: leave elements out, for edges name them.")
    return {name: _checked_windows(name, windows) for name, windows in asked.items()}


def _edges_of(element):
    """Dict of exspy's major and minor edges of an element, in eV."""
    from exspy.material import elements

    atomic_number(element)
    shells = elements[element].Atomic_properties.as_dictionary().get("Binding_energies", {})
    # those that end in "a" are no edges
    return {f"{element}_{shell}": node for shell, node in shells.items() if not shell.endswith("a")}


def _checked_windows(name, windows):
    if windows is None:
        return None
    limits = tuple(float(energy) for energy in windows)
    if len(limits) != 4 or not (limits[0] < limits[1] <= limits[2] < limits[3]):
        raise ValueError(
            f"The windows of {name} are {windows!r}: expected four rising energies in eV, the limits of the window of "
            "the background before the edge and of that of the signal."
        )
    onset = onset_energy(name)
    if limits[3] <= onset:
        raise ValueError(
            f"The signal window of {name} is {limits[2]:g} to {limits[3]:g} eV, and the edge begins at {onset:g} eV: "
            "expected a window that reaches beyond it; give its limits as the last two of the four, or None for the "
            "default windows."
        )
    return limits


def onset_energy(name: str) -> float:
    """Onset energy of an edge in eV, by exspy."""
    from exspy.utils.eels import get_info_from_edges

    return float(get_info_from_edges([name])[0]["onset_energy (eV)"])


def _main_edge(signal, element):
    """The major edge of lowest energy that has room for its background in the spectra."""
    axis = signal.axes_manager.signal_axes[0]
    major = {name: onset_energy(name) for name, node in _edges_of(element).items() if node["relevance"] == "Major"}
    low = {n: e for n, e in major.items() if axis.low_value < (1 - ROOM) * e and e + LEAST < axis.high_value}
    if not low:
        listed_edges = ", ".join(f"{name} at {energy:g} eV" for name, energy in major.items()) or "none"
        raise ValueError(
            f"{element} has no major edge within the spectra, {axis.low_value:g} to {axis.high_value:g} eV (its edges: "
            f"{listed_edges}): leave it out, or name an edge by edges=[...]."
        )
    return min(low, key=lambda name: low[name])


# ---- windows ----------------------------------------------------------------------------------------


def with_windows(asked: dict[str, tuple | None], axis: Any, fitted: bool = False) -> list[Edge]:
    """`Edge` of each name in ``asked``, by onset energy.

    The background is taken from 20 % below the onset, but not from the 50 eV after an edge before. Where this leaves
    less than 5 % of the onset energy, the window of the edge before serves both, and what it
    shows in the window of this one is taken off by its cross-section. The signal window ends 10 % above the onset,
    or before the next edge. Both keep 5 eV, or a channel, away from the edge that they come before.

    To be ``fitted``, the signal window ends 20 % above the onset, for a shape shows by its length, and begins 30 eV
    after it where this leaves as much.
    """
    margin = max(MARGIN, axis.scale)
    onsets = sorted((onset_energy(name), name) for name in asked)
    edges = []
    for i, (onset, name) in enumerate(onsets):
        windows = asked[name]
        if windows is None:
            ahead = onsets[i + 1][0] - margin if i + 1 < len(onsets) else np.inf
            after = _after(onset, ahead, fitted)
            windows = (*_before(onset, edges[-1] if edges else None, axis, margin), *after)
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


def _after(onset, ahead, fitted):
    end = min(onset + max((BEFORE if fitted else AFTER) * onset, LEAST), ahead)
    return (onset + NEAR_EDGE if fitted and end - onset >= 2 * NEAR_EDGE else onset), end


def _within(edge, axis):
    """The edge with its windows within the spectra; ValueError where one has fewer than the channels it needs."""
    limits = []
    for what, (low, high), least in (("background", edge.before, 4), ("signal", edge.after, 1)):
        low, high = max(low, axis.low_value), min(high, axis.high_value + axis.scale / 2)
        if low >= high:
            raise ValueError(
                f"The spectra, from {axis.low_value:g} to {axis.high_value:g} eV, have no room for the {what} window "
                f"of {edge.name}, whose onset is at {edge.onset:g} eV: leave the edge out, or give other windows."
            )
        channels = axis.value2index(high) - axis.value2index(low)
        if channels < least:
            raise ValueError(
                f"The {what} window of {edge.name}, {low:g} to {high:g} eV, has fewer than {least} channels of the "
                f"spectra, which reach from {axis.low_value:g} to {axis.high_value:g} eV: give windows of your own by "
                f"edges={{{edge.name!r}: (b0, b1, s0, s1)}}, or leave the edge out."
            )
        limits.append((float(low), float(high)))
    return replace(edge, before=limits[0], after=limits[1])


def window_diagnostics(signal: Any, edges: list[Edge]) -> list[Diagnostic]:
    """Codes ``"background-window-beyond-onset"`` and ``"other-edges-in-window"``: what else is in the windows.

    The latter are major edges of other elements of the sample, which no map takes account of.
    """
    from exspy.utils.eels import get_edges_near_energy

    found = []
    others = set(metadata_names(signal.metadata, "Sample.elements")) - {edge.element for edge in edges}
    for edge in edges:
        if edge.before[1] > edge.onset:
            sentence = (
                f"The background window of {edge.name}, {edge.before[0]:g} to {edge.before[1]:g} eV, holds counts of "
                f"the edge: let it end before the onset at {edge.onset:g} eV."
            )
            found.append(Diagnostic("background-window-beyond-onset", sentence, elements=(edge.element,)))
        low, high = edge.before[0], edge.after[1]
        near = get_edges_near_energy((low + high) / 2, high - low, only_major=True, order="ascending")
        names = [name for name in near if name.split("_")[0] in others]
        if names:
            sentence = (
                f"{', '.join(names)} of the sample lie in the windows of {edge.name} ({low:g} to {high:g} eV), whose "
                "map shows them too: name them among the edges, or give other windows."
            )
            found.append(Diagnostic("other-edges-in-window", sentence, elements=(edge.element,)))
    return found


# ---- channels and cross-sections ----------------------------------------------------------------------


def channels(axis: Any, window: tuple) -> slice:
    """Slice of the channels of a window of the energy axis."""
    return slice(axis.value2index(window[0]), min(axis.value2index(window[1]), axis.size))


def inside_windows(axis: Any, edges: list[Edge]) -> np.ndarray:
    """Numbers of the channels that are in any window of the edges."""
    used = np.zeros(axis.size, bool)
    for edge in edges:
        for window in (edge.before, edge.after):
            used[channels(axis, window)] = True
    return np.flatnonzero(used)


def sums(axis: Any, data: np.ndarray, window: tuple) -> np.ndarray:
    """Sum over the channels of a window; the energy axis of `data` is the last."""
    return data[..., channels(axis, window)].sum(axis=-1)


def blurred_spectra(data: np.ndarray, sigma: float) -> np.ndarray:
    """Spectra (ny, nx, n), each with those of its neighbours."""
    return np.moveaxis(gaussian(np.moveaxis(data, -1, 0), sigma), 0, -1)


def floored(variance: np.ndarray) -> np.ndarray:
    """The variance of a pixel, never below a hundredth of the mean: one without counts has noise of its own."""
    return np.maximum(variance, 0.01 * variance.mean(axis=(-2, -1), keepdims=True))


def is_significant(change: float, chance: float, amount: float) -> bool:
    """Whether half a window changes the mean of a map by more than chance may, and by enough to matter."""
    return abs(change) > max(CHANCE * chance, NO_POWER_LAW * abs(amount))


def power_law_diagnostics(changes: dict[Edge, float]) -> list[Diagnostic]:
    """Code ``"no-power-law"``, from the changes of the means of maps, relative to them, by part of the background."""
    if not changes:
        return []
    listed = ", ".join(f"{edge.name} (map {change:+.0%} by the nearer half of it)" for edge, change in changes.items())
    sentence = (
        f"No power law goes through the background of {listed}: compare with other windows and with background='model'."
    )
    return [Diagnostic("no-power-law", sentence, elements=tuple(edge.element for edge in changes))]


def variance_of_mean(data: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Variances of the mean of spectra (ny, nx, n) in the channels `inside`, in squared units of theirs.

    From what neighbouring channels differ by, pixel by pixel: neither the value of a count nor the noise of the camera
    is known. What all pixels have in common, a camera's pattern or a bent background, is no noise of this kind.
    """
    mean = np.maximum(data.mean(axis=(0, 1)), 0)[inside]
    seen = [estimate_variance(data[..., i] - data[..., j]) for i, j in pairwise(inside)]
    of_count = np.sum(seen) / max((mean[:-1] + mean[1:]).sum(), 1e-30)
    return of_count * mean / data[..., 0].size


def shapes(signal: Any, edges: list[Edge]) -> np.ndarray:
    """exspy's hydrogenic cross-sections of the `edges` in all channels, ``(n, channels)``, as its models have them.

    NaN where they are not known: without beam energy and angles, and for other edges than K and L.
    """
    from exspy.components import EELSCLEdge

    keys = ("beam_energy", "convergence_angle", "Detector.EELS.collection_angle")
    angles = [signal.metadata.get_item(f"Acquisition_instrument.TEM.{key}") for key in keys]
    axis = signal.axes_manager.signal_axes[0]
    found = np.full((len(edges), axis.size), np.nan)
    for shape, edge in zip(found, edges, strict=True):
        if all(value is not None for value in angles) and edge.name.split("_")[1][0] in "KL":
            component: Any = EELSCLEdge(edge.name, GOS="hydrogenic")
            component.fine_structure_active = False
            component.set_microscope_parameters(*map(float, angles), axis.scale)
            component.intensity.value = 1.0
            # counts in bins are the integral over a bin
            shape[:] = np.asarray(component.function(axis.axis)) * (axis.scale if axis.is_binned else 1.0)
    return found
