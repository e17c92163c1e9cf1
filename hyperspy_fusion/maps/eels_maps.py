"""Maps of core-loss edges from an EELS spectrum image: by windows, or by a fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.registration.resampling import filled
from hyperspy_fusion.fusion.spectra.spikes import spikes
from hyperspy_fusion.fusion.terms.noise_estimation import estimate_variance
from hyperspy_fusion.grid.axes import scan_axes
from hyperspy_fusion.grid.images import check_energies, check_real
from hyperspy_fusion.identify.elements import listed
from hyperspy_fusion.maps.base import SourceRequest
from hyperspy_fusion.maps.eels_counts import fitted_edges, window_counts
from hyperspy_fusion.maps.eels_edges import (
    Edge,
    asked_edges,
    channels,
    inside_windows,
    window_diagnostics,
    with_windows,
)

# channels with counts around a pixel that has none in any: by chance with a probability of exp(-25) at most
MANY = 25

_BY_BACKGROUND = {"windows": window_counts, "model": fitted_edges}


def edge_counts(signal: Any, request: SourceRequest) -> tuple[list[Edge], list[Diagnostic]]:
    """Edges of an EELS spectrum image in eV, as asked for, with their counts above the background or what a fit finds.

    NaN in pixels whose spectra are invalid. Codes of the diagnostics: those of :func:`~.eels_edges.window_diagnostics`,
    ``"invalid-spectra"``, ``"spectra-without-counts"``, ``"spikes"``, ``"no-power-law"`` and ``"edge-on-edge"``. Errors
    are raised for no edges, unknown ones, or such without room for a window within the spectra.
    """
    check_real(signal)
    check_energies(signal, "eV")
    way = "windows" if request.background is None else request.background
    if not isinstance(way, str) or way not in _BY_BACKGROUND:
        raise ValueError(
            f"background is {way!r}, and of EELS spectra it is 'windows', a power law before each edge, or 'model', a "
            "power law fitted together with the cross-sections of all edges: choose one, or pass a fitted model."
        )
    asked = asked_edges(signal, request.elements, request.edges)
    edges = with_windows(asked, signal.axes_manager.signal_axes[0], fitted=way == "model")
    spectra, invalid, found = _without_invalid(_cropped(signal, edges), edges)
    measured, about_background = _BY_BACKGROUND[way](spectra, edges)
    hit = _pixels_with_spikes(spectra, edges)
    left_out = {name: invalid | pixels if request.allow_nan else invalid for name, pixels in hit.items()}
    maps = {edge.name: _finished(edge, left_out[edge.name]) for edge in measured}
    about_spikes = _about_spikes({edge.element: hit[edge.name] for edge in edges}, request.allow_nan)
    found = [*window_diagnostics(signal, edges), *found, *about_spikes, *about_background]
    return [maps[name] for name in asked], found


def _cropped(signal, edges):
    """The spectra between the first and the last window, in memory, as floats, their energy the last axis."""
    low, high = min(edge.before[0] for edge in edges), max(edge.after[1] for edge in edges)
    axis = signal.axes_manager.signal_axes[0]
    part = signal.isig[axis.value2index(low) : axis.value2index(high) + 1]
    if part._lazy:
        part.compute(show_progressbar=False)
    energy = part.axes_manager.signal_axes[0]
    data = np.moveaxis(part.data, energy.index_in_array, -1).astype(np.float64)
    axes = [*scan_axes(part), energy.get_axis_dictionary()]
    for axis in axes[:2]:
        axis["navigate"] = True
    return type(part)(np.ma.filled(data, np.nan), axes=axes, metadata=signal.metadata.as_dictionary())


def _without_invalid(spectra, edges):
    """The spectra, invalid ones replaced by their nearest neighbours; where these are (ny, nx); and diagnostics."""
    inside = spectra.data[..., inside_windows(spectra.axes_manager.signal_axes[0], edges)]
    invalid = _invalid(inside)
    if invalid.all():
        raise ValueError(
            f"Every spectrum of {spectra} has NaN, infinite or masked channels between "
            f"{edges[0].before[0]:g} and {max(edge.after[1] for edge in edges):g} eV: interpolate them first, or crop "
            "them off by `s.isig[low:high]`."
        )
    found = []
    if invalid.any():
        sentence = (
            f"{_pixels(invalid.sum())} of {invalid.size} with NaN, infinities or one value in all channels: NaN in the "
            "maps; fuse with method='calibrated', which fills them in."
        )
        found.append(Diagnostic("invalid-spectra", sentence))
    # channels between the windows do not matter, and must not turn others into NaN
    data = np.nan_to_num(filled(spectra.data, ~invalid), posinf=0, neginf=0)
    return spectra._deepcopy_with_new_data(data), invalid, found + _about_empty(inside, invalid)


def _invalid(data):
    """Which spectra have NaN or infinities, or are stuck at one value.

    Vacuum may have no counts at all. But it is no point and no line among pixels with counts in 25 channels or more.
    """
    from scipy.ndimage import binary_opening, median_filter

    stuck = (data == data[..., :1]).all(axis=-1)
    empty = stuck & (data[..., 0] == 0)
    thin = empty & ~np.asarray(binary_opening(empty, np.ones((2, 2))), bool)
    among_many = median_filter(np.count_nonzero(data, axis=-1), 3) >= MANY
    return ~np.isfinite(data).all(axis=-1) | (stuck & ~empty) | (thin & among_many)


def _about_empty(data, invalid):
    """Spectra without a count that are not known to be invalid, where the others have counts in many channels."""
    counts = np.count_nonzero(data, axis=-1)
    empty = (counts == 0) & ~invalid
    others = counts[~empty & ~invalid]
    if not (empty.any() and others.size and np.median(others) >= MANY):
        return []
    sentence = (
        f"{_pixels(empty.sum())} of {empty.size} without a count in any window, taken for vacuum: if the detector was "
        "dead there, leave them out by `mask=` of fuse."
    )
    return [Diagnostic("spectra-without-counts", sentence)]


def _pixels(number):
    return f"{number} pixel{'s' if number != 1 else ''}"


def _pixels_with_spikes(spectra, edges):
    """{edge: (ny, nx) bool}: spikes in its windows, as of x-rays that hit the camera: bright or dark spots of a map."""
    axis, found = spectra.axes_manager.signal_axes[0], spikes(spectra.data)
    parts = {edge.name: [found[..., channels(axis, w)] for w in (edge.before, edge.after)] for edge in edges}
    return {name: before.any(axis=-1) | after.any(axis=-1) for name, (before, after) in parts.items()}


def _about_spikes(hit, are_left_out):
    """Of pixels {element: (ny, nx)} with spikes."""
    elements = tuple(element for element, pixels in hit.items() if pixels.any())
    if not elements:
        return []
    pixels = np.any(list(hit.values()), axis=0)
    where = listed([f"({x}, {y})" for y, x in np.argwhere(pixels)])
    remedy = "remove spikes by `s.spikes_removal_tool()`, or leave the pixels out by `mask=` of fuse."
    if are_left_out:
        remedy = "they are left out; to keep their spectra, remove spikes by `s.spikes_removal_tool()`."
    sentence = (
        f"{_pixels(pixels.sum())} with a spike in the windows of {', '.join(elements)}, at (x, y) = {where}: {remedy}"
    )
    return [Diagnostic("spikes", sentence, elements=elements)]


def _finished(edge, invalid):
    """The edge with the variance that its map shows, and NaN where spectra are invalid.

    The variance is as large as the white noise of the map, for counts of a camera are no electrons.
    """
    net = np.where(invalid, np.nan, edge.net)
    seen, mean = estimate_variance(net), edge.white[~invalid].mean()
    variance = edge.variance * (seen / mean if seen > 0 and mean > 0 else 1.0)
    return replace(edge, net=net, variance=np.where(invalid, np.nan, variance))
