"""Maps of core-loss edges from an EELS spectrum image: by windows, or by a fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hyperspy_fusion.fusion.spectra.spikes import spikes
from hyperspy_fusion.fusion.terms.noise_estimation import estimate_variance
from hyperspy_fusion.grid import axes as grids
from hyperspy_fusion.maps.eels_edges import (
    Edges,
    asked_edges,
    channels,
    inside_windows,
    warn_of_other_edges,
    with_windows,
)
from hyperspy_fusion.maps.eels_model import fitted_edges
from hyperspy_fusion.maps.eels_windows import window_counts

# pixels with spikes whose places are told
LISTED = 10

# channels with counts around a pixel that has none in any: by chance with a probability of exp(-25) at most
MANY = 25

HOW = {"windows": window_counts, "model": fitted_edges}


def is_eels(source):
    """Whether `source` is a spectrum image of the type EELS."""
    if not grids.is_spectra(source):
        return False
    is_stack = source.axes_manager.signal_axes[0].name in grids.STACK_AXES
    return source.metadata.get_item("Signal.signal_type", "") == "EELS" and not is_stack


def edge_counts(signal, elements=None, edges=None, background=None):
    """
    Counts of core-loss edges above their background, or what a fit finds of them, and the variance of these.

    Parameters
    ----------
    signal : exspy.signals.EELSSpectrum
        ``(x, y|E)`` in eV; lazy ones are computed.
    elements, edges, background
        As for `hyperspy_fusion.element_maps`.

    Returns
    -------
    Edges
        NaN in pixels whose spectra are no numbers.

    Raises
    ------
    TypeError, ValueError
        No edges, unknown ones, or such without room for a window within the spectra.
    """
    grids.check_real(signal)
    _check_axis(signal)
    how = _checked_way(background)
    asked = asked_edges(signal, elements, edges)
    found = with_windows(asked, signal.axes_manager.signal_axes[0], fitted=how == "model")
    warn_of_other_edges(signal, found)
    spectra, dead = _without_dead(_cropped(signal, found), found)
    _warn_of_spikes(spectra, found)
    found = HOW[how](spectra, found)
    return Edges(_in_order([_finished(edge, dead) for edge in found], asked))


def _checked_way(background):
    way = "windows" if background is None else background
    if not isinstance(way, str) or way not in HOW:
        raise ValueError(
            f"background is {way!r}, and of EELS spectra it is 'windows', a power law before each edge, or 'model', a "
            "power law fitted together with the cross-sections of all edges: choose one, or pass a fitted model in "
            "place of the spectra."
        )
    return way


def _check_axis(signal):
    axis = signal.axes_manager.signal_axes[0]
    if not axis.is_uniform:
        raise NotImplementedError(f"{signal} has a non-uniform energy axis: interpolate it first.")
    if axis.units != "eV":
        raise ValueError(
            f"The energy axis of {signal} has the units {axis.units}: expected eV, set by "
            "`s.axes_manager.signal_axes[0].units = 'eV'`."
        )


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
    return type(part)(np.ma.filled(data, np.nan), axes=axes, metadata=signal.metadata.as_dictionary())


# ---- pixels that are none ---------------------------------------------------------------------------------


def _without_dead(spectra, edges):
    """The spectra with those of dead pixels replaced by their nearest neighbours', and where these are (ny, nx)."""
    inside = spectra.data[..., inside_windows(spectra, edges)]
    dead = _dead(inside)
    if dead.all():
        raise ValueError(
            f"Every spectrum of {spectra} has NaN, infinite or masked channels between "
            f"{edges[0].before[0]:g} and {max(edge.after[1] for edge in edges):g} eV: interpolate them first, or crop "
            "them off by `s.isig[low:high]`."
        )
    if dead.any():
        one = dead.sum() == 1
        whose, are, them = ("spectrum has", "is", "it") if one else ("spectra have", "are", "them")
        grids.warn(
            f"{_pixels(dead.sum())} of {dead.size} whose {whose} NaN, infinities, or the same value in all channels "
            f"{are} left out, and NaN in the maps: fuse with method='calibrated', which fills {them} in from those "
            f"around {them}."
        )
    _warn_of_empty(inside, dead)
    # channels between the windows count for nothing, and must not spread
    return spectra._deepcopy_with_new_data(np.nan_to_num(_filled_in(spectra.data, dead), posinf=0, neginf=0)), dead


def _dead(data):
    """Which spectra have NaN or infinities, or are stuck at one value.

    Vacuum may have no counts at all. But it is no point and no line among pixels with counts in 25 channels or more.
    """
    from scipy.ndimage import binary_opening, median_filter

    stuck = (data == data[..., :1]).all(axis=-1)
    empty = stuck & (data[..., 0] == 0)
    thin = empty & ~binary_opening(empty, np.ones((2, 2)))
    among_many = median_filter(np.count_nonzero(data, axis=-1), 3) >= MANY
    return ~np.isfinite(data).all(axis=-1) | (stuck & ~empty) | (thin & among_many)


def _warn_of_empty(data, dead):
    """Warn of spectra without a count that are not known to be dead, where the others have counts in many channels."""
    counts = np.count_nonzero(data, axis=-1)
    empty = (counts == 0) & ~dead
    others = counts[~empty & ~dead]
    if empty.any() and others.size and np.median(others) >= MANY:
        have = "have" if empty.sum() > 1 else "has"
        grids.warn(
            f"{_pixels(empty.sum())} of {empty.size} {have} no count in any window: vacuum, or dead? Maps are about 0 "
            "there, and taken for measured. Where pixels are dead, leave them out by `mask=` of fuse."
        )


def _filled_in(data, dead):
    """Spectra (ny, nx, n), dead ones replaced by the nearest that are not."""
    from scipy.ndimage import distance_transform_edt

    if not dead.any():
        return data
    nearest = distance_transform_edt(dead, return_distances=False, return_indices=True)
    return data[tuple(nearest)]


def _pixels(number):
    return f"{number} pixel{'s' if number != 1 else ''}"


def _warn_of_spikes(spectra, edges):
    """Warn of spectra with spikes in the windows of each edge, which are bright or dark spots of its map."""
    inside = inside_windows(spectra, edges)
    found = np.zeros(spectra.data.shape, bool)
    found[..., inside] = spikes(spectra.data)[..., inside]
    if not found.any():
        return
    names = {}  # edges may share a window
    for edge in edges:
        names.setdefault(("before", *edge.before), []).append(edge.name)
        names.setdefault(("in", *edge.after), []).append(edge.name)
    numbers = {key: found[..., channels(spectra, key[1:])].any(axis=-1).sum() for key in names}
    parts = [f"{number} {key[0]} {' and '.join(names[key])}" for key, number in numbers.items() if number]
    hit = found.any(axis=-1)
    where = ", ".join(f"({x}, {y})" for y, x in np.argwhere(hit)[:LISTED])
    where += f" and {hit.sum() - LISTED} more" if hit.sum() > LISTED else ""
    grids.warn(
        f"{_pixels(hit.sum())} with a spike in the spectrum ({', '.join(parts)}), as x-rays make that hit the camera, "
        f"at (x, y) = {where}: such pixels are bright in a map, or dark where it is before the edge. Remove "
        "the spikes by HyperSpy's `s.spikes_removal_tool()`, or leave the pixels out by `mask=` of fuse."
    )


def _finished(edge, dead):
    """The edge with the variance that its map shows, and NaN where its pixels are dead.

    The variance is as large as the white noise of the map, for counts of a camera are no electrons.
    """
    net = np.where(dead, np.nan, edge.net)
    seen, mean = estimate_variance(net), edge.white[~dead].mean()
    variance = edge.variance * (seen / mean if seen > 0 and mean > 0 else 1.0)
    return replace(edge, net=net, variance=np.where(dead, np.nan, variance))


def _in_order(edges, asked):
    return sorted(edges, key=lambda edge: list(asked).index(edge.name))
