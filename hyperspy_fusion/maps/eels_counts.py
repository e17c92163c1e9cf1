"""Counts of core-loss edges: in windows above HyperSpy's power law, or by a fit of it with exspy's cross-sections."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.spectra.background import gaussian
from hyperspy_fusion.fusion.spectra.power_law import JointFit
from hyperspy_fusion.maps.eels_edges import (
    SHAPE_BLUR,
    TOGETHER,
    VARIANCE_BLUR,
    Edge,
    blurred_spectra,
    channels,
    floored,
    inside_windows,
    is_significant,
    power_law_diagnostics,
    shapes,
    sums,
    variance_of_mean,
)

_logger = logging.getLogger(__name__)

# channels that a fit needs beyond its parameters
SPARE = 4
# counts that stand in for none, as a part of the mean of a spectrum
_FEW = 0.01


# ---- in windows ---------------------------------------------------------------------------------------


def window_counts(signal: Any, edges: list[Edge]) -> tuple[list[Edge], list[Diagnostic]]:
    """The `edges` with their counts above the power law before each, and variances if counts are electrons.

    What an edge has in the window of a later one that shares its background is taken off there. ValueError where the
    cross-sections for this are not known.
    """
    axis, data = signal.axes_manager.signal_axes[0], signal.data
    around = blurred_spectra(data, SHAPE_BLUR)
    stripped, about_edges = _stripped(signal, [_measured(axis, data, around, edge) for edge in edges])
    changes = {edge: _change_by_near_half(axis, data, edge) for edge in edges}
    about_background = power_law_diagnostics({edge: change for edge, change in changes.items() if change})
    return stripped, [*about_background, *about_edges]


def _measured(axis, data, around, edge):
    """The edge with its counts above the background, and their variance if the counts were electrons."""
    gross, beside = (sums(axis, data, window) for window in (edge.after, edge.before))
    net = gross - _extrapolation(axis, around, edge) * beside
    white, shared = _counts_of_noise(axis, data, edge, gross, beside)
    return replace(edge, net=net, variance=white + shared, white=white)


def _extrapolation(axis, around, edge):
    """(ny, nx): the power law through the surroundings of a pixel, its sum after the edge over that before."""
    ratio, (usual, correction) = _ratio(axis, around, edge), _of_mean(axis, around.mean(axis=(0, 1)), edge)
    # no power law goes through counts of zero: there that of the mean spectrum
    plausible = np.isfinite(ratio) & (ratio > 0) & (ratio < 10 * usual)
    if not plausible.all():
        _logger.info("%s: %d pixels have the background of the mean spectrum.", edge.name, np.sum(~plausible))
    return np.where(plausible, ratio, usual) * correction


def _ratio(axis, spectra, edge):
    """Sum of the power law after the edge over that before it."""
    return _after_over_before(axis, _power_law(axis, spectra, edge.before), edge)


def _after_over_before(axis, curves, edge):
    after, before = (sums(axis, curves, window) for window in (edge.after, edge.before))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(before > 0, after / before, np.nan)


def _of_mean(axis, mean, edge):
    """The ratio of a mean spectrum, and by what HyperSpy's estimate, exact for narrow windows alone, misses it."""
    exact = _power_law(axis, mean, edge.before)
    ratio = _after_over_before(axis, exact, edge)
    correction = ratio / _ratio(axis, exact, edge)
    return ratio, float(correction) if np.isfinite(correction) else 1.0


def _power_law(axis, spectra, window):
    """The power law that HyperSpy estimates in the window, at all energies; 0 where none goes through.

    By the two areas of its ``PowerLaw``, without the component and the signals, which took nearly all of the time.
    """
    start, stop = axis.value_range_to_indices(*map(float, window))
    given = _without_empty_halves(spectra, start, stop)
    stop = max(stop - (start + stop) % 2, start + 2)
    middle = (start + stop) // 2
    first, second = _area(axis, given, start, middle), _area(axis, given, middle, stop)
    x1, x2, x3 = axis.index2value(np.array([start, middle, stop]))
    with np.errstate(all="ignore"):
        share = first / second * (x3 - x2) / (x2 - x1)
        if not np.all(second) or not np.all(share):  # divided by zero, or its logarithm
            return np.zeros_like(spectra, dtype=float)
        exponent = 2 * np.log(share) / np.log(x3 / x1)
        k = 1 - exponent
        amplitudes = (k * second / (x3**k - x2**k), k * first / (x2**k - x1**k))
        amplitude = (amplitudes[0] * second + amplitudes[1] * first) / (first + second)
        amplitude, exponent = np.nan_to_num(amplitude), np.nan_to_num(exponent)
        per_channel = axis.scale if axis.is_binned else 1
        return np.where(axis.axis > 0, amplitude * per_channel * axis.axis**-exponent, 0)


def _area(axis, spectra, start, stop):
    """(..., 1): the integral over channels, as HyperSpy's ``integrate1D``."""
    part = spectra[..., start:stop]
    if axis.is_binned:
        return part.sum(axis=-1, keepdims=True).astype(float)
    from scipy.integrate import simpson

    return np.asarray(simpson(part, x=axis.axis[start:stop], axis=-1), dtype=float)[..., None]


def _without_empty_halves(spectra, start, stop):
    """Spectra with a few counts where one half of the window has none, for no power law goes through it."""
    middle = (start + stop) // 2
    halves = (spectra[..., start : max(middle - 1, start + 1)], spectra[..., min(middle + 1, stop - 1) : stop])
    empty = np.logical_or(*((half == 0).all(axis=-1, keepdims=True) for half in halves))
    if not empty.any():
        return spectra
    few = np.maximum(_FEW * spectra.mean(axis=-1, keepdims=True), 1e-12 * max(spectra.mean(), 1e-18))
    return np.where(empty, spectra + few, spectra)


def _counts_of_noise(axis, data, edge, gross, beside):
    """Variances (ny, nx) of the net counts if counts are of Poisson noise, smoothed: of each pixel, and shared by some.

    The first is of the counts in the signal window and of the amplitude of the background; the second of its exponent,
    by the derivatives of the extrapolated background of the mean spectrum along each channel before the edge.
    """
    mean = data.mean(axis=(0, 1))
    ratio, inside = float(_ratio(axis, mean, edge)), np.arange(mean.size)[channels(axis, edge.before)]
    slopes = _derivatives(axis, mean, edge, inside) - ratio
    # the exponent is that of a neighbourhood
    shape = np.sum(slopes**2 * np.maximum(mean[inside], 0)) / max(mean[inside].sum(), 1e-30) / TOGETHER
    smooth = [np.maximum(gaussian(image, VARIANCE_BLUR), 0) for image in (gross, beside)]
    white = smooth[0] + ratio**2 * smooth[1]
    return floored(white), shape * smooth[1]


def _derivatives(axis, mean, edge, inside):
    """Derivatives of the background extrapolated into the signal window by the counts of each channel `inside`."""
    step = 1e-3 * max(abs(mean[inside]).mean(), 1e-30)
    steps = np.zeros((len(inside) + 1, mean.size))
    steps[np.arange(len(inside)), inside] = step
    after = sums(axis, _power_law(axis, mean + steps, edge.before), edge.after)
    return (after[:-1] - after[-1]) / step


def _change_by_near_half(axis, data, edge):
    """By how much the nearer half of the window before an edge alone changes the mean of its map, 0 by chance.

    Where no power law goes through the background, the map is off by a part of the background, everywhere.
    """
    mean = data.mean(axis=(0, 1))
    near = replace(edge, before=(sum(edge.before) / 2, edge.before[1]))
    inside = np.arange(mean.size)[channels(axis, near.before)]
    if len(inside) < 4:
        return 0.0
    under, by_near = (_under(axis, mean, one) for one in (edge, near))
    net, change = sums(axis, mean, edge.after) - under, under - by_near
    chance = np.sqrt(np.sum(_derivatives(axis, mean, near, inside) ** 2 * variance_of_mean(data, inside)))
    return float(change / net) if is_significant(change, chance, float(net)) else 0.0


def _under(axis, mean, edge):
    """The background of the mean spectrum in the window of an edge."""
    ratio, correction = _of_mean(axis, mean, edge)
    return float(ratio * correction * sums(axis, mean, edge.before))


def _stripped(signal, edges):
    """The edges, each less what the ones before it show in its window where its background does not hold them."""
    axis, curves = signal.axes_manager.signal_axes[0], shapes(signal, edges)
    sections = [[float(sums(axis, curve, edge.after)) for edge in edges] for curve in curves]
    clean, found = [], []
    for i, edge in enumerate(edges):
        net, variance, white = edge.net, edge.variance, edge.white
        for j in range(i):
            if not edge.before[1] <= edges[j].onset < edge.after[0]:
                continue
            tail = sections[j][i] / sections[j][j]
            if not np.isfinite(tail):
                raise ValueError(
                    f"{edge.name} lies on {edges[j].name}, too near for a background window between them, and its "
                    "share needs the cross-sections of K or L edges by exspy: set beam energy, convergence and "
                    "collection angle (`s.set_microscope_parameters(...)`), give windows of your own by "
                    f"edges={{{edge.name!r}: (b0, b1, s0, s1), ...}}, or fit a model of your own."
                )
            net = net - tail * clean[j].net
            variance, white = variance + tail**2 * clean[j].variance, white + tail**2 * clean[j].white
            sentence = (
                f"{edge.name} lies on {edges[j].name}, of which {tail:.2f} times the counts are taken off in its "
                "window by hydrogenic cross-sections: compare with background='model'."
            )
            found.append(Diagnostic("edge-on-edge", sentence, elements=(edge.element, edges[j].element)))
        clean.append(replace(edge, net=net, variance=variance, white=white, cross_section=sections[i][i]))
    return clean, found


# ---- by a fit of all edges together -------------------------------------------------------------------


def fitted_edges(signal: Any, edges: list[Edge]) -> tuple[list[Edge], list[Diagnostic]]:
    """The `edges` with their intensities, as those of exspy's ``EELSCLEdge``, and variances if counts are electrons.

    One power law and the cross-sections of all edges are fitted to the channels of all windows, each with the noise of
    counts. As in `window_counts` the exponent is that of a pixel and its neighbours, all else of the pixel. ValueError
    where a cross-section is not known, or there are fewer channels than a fit needs.
    """
    axis = signal.axes_manager.signal_axes[0]
    inside = inside_windows(axis, edges)
    fit = _joint_fit(signal, edges, inside)
    data = signal.data[..., inside]
    flat, shape = data.reshape(-1, len(inside)), data.shape[:2]
    exponents = _plausible(fit.exponents(blurred_spectra(data, SHAPE_BLUR).reshape(flat.shape)), fit, flat)
    net = fit.intensities(flat, exponents).reshape(-1, *shape)
    white, shared = _noise(fit, data, float(np.median(exponents)))
    fitted = [
        replace(edge, net=one, variance=own + of_all, white=own, cross_section=1.0)
        for edge, one, own, of_all in zip(edges, net, white, shared, strict=True)
    ]
    return fitted, _about_background(axis, signal.data, edges, fit, inside)


def _joint_fit(signal, edges, inside):
    sections = shapes(signal, edges)[:, inside]
    names = [e.name for e, section in zip(edges, sections, strict=True) if not np.isfinite(section).all()]
    if names:
        raise ValueError(
            f"The cross-section of {', '.join(names)} is not known, which background='model' needs: that of K and "
            "L edges follows from beam energy, convergence and collection angle (`s.set_microscope_parameters(...)`); "
            "for others fit a model of your own (`s.create_model()`), and pass it."
        )
    if len(inside) < len(edges) + 2 + SPARE or np.linalg.matrix_rank(sections) < len(edges):
        raise ValueError(
            f"The windows of {', '.join(e.name for e in edges)} have {len(inside)} channels, too few to tell the edges "
            "from each other and from their background: give wider windows by edges={name: (b0, b1, s0, s1)}."
        )
    mean = signal.data[..., inside].mean(axis=(0, 1))
    return JointFit(
        signal.axes_manager.signal_axes[0].axis[inside], sections, 1 / np.maximum(mean, 0.01 * abs(mean).max())
    )


def _plausible(exponents, fit, flat):
    """The exponents, that of the mean spectrum where no power law goes through."""
    usual = fit.exponents(flat.mean(axis=0, keepdims=True))[0]
    if not np.isfinite(usual):
        raise ValueError(
            "No power law with an exponent between 0 and 8 goes through the mean spectrum: look at it, and give other "
            "windows by edges={name: (b0, b1, s0, s1)}."
        )
    return np.where(np.isfinite(exponents), exponents, usual)


def _noise(fit, data, exponent):
    """Variances (m, ny, nx) of the intensities if counts are of Poisson noise: of each pixel, and shared by some."""
    smooth = np.maximum(blurred_spectra(data, VARIANCE_BLUR), 0)
    own, through = fit.responses(exponent)
    white, shared = (np.moveaxis(smooth @ (r**2).T, -1, 0) for r in (own, through))
    return floored(white), shared / TOGETHER


def _about_background(axis, data, edges, fit, inside):
    """Whether the fit without the farther half of the first background window changes the mean of a map."""
    first = min(edges, key=lambda edge: edge.before[0])
    near = inside >= channels(axis, (sum(first.before) / 2, first.before[1])).start
    if near.all() or near.sum() < len(edges) + 2 + SPARE:
        return []
    less = JointFit(fit.energy[near], fit.shapes[:, near], fit.weights[near])
    spectrum = data[..., inside].mean(axis=(0, 1))[None]
    exponents = [fit.exponents(spectrum), less.exponents(spectrum[:, near])]
    if not np.isfinite(exponents).all():
        return []
    whole = fit.intensities(spectrum, exponents[0])[:, 0]
    change = less.intensities(spectrum[:, near], exponents[1])[:, 0] - whole
    noise = variance_of_mean(data, inside[near])
    chance = np.sqrt(sum(less.responses(exponents[1][0])) ** 2 @ noise)
    changes = {
        edge: by / amount
        for edge, amount, by, error in zip(edges, whole, change, chance, strict=True)
        if is_significant(by, error, amount)
    }
    return power_law_diagnostics(changes)
