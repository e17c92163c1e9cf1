"""Core-loss edges by a fit of a power law and exspy's hydrogenic cross-sections, all together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic
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
    variance_of_mean,
)

# channels that a fit needs beyond its parameters
SPARE = 4


def fitted_edges(signal: Any, edges: list[Edge]) -> tuple[list[Edge], list[Diagnostic]]:
    """
    The `edges` with their intensities, as those of exspy's ``EELSCLEdge``, and the variances of these if counts are
    electrons.

    One power law and the cross-sections of all edges are fitted to the channels of all windows, each with the noise of
    counts. As in `window_counts` the exponent is that of a pixel and its neighbours, all else of the pixel.

    Raises
    ------
    ValueError
        A cross-section is not known, or there are fewer channels than a fit needs.
    """
    inside = inside_windows(signal, edges)
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
    return fitted, _about_background(signal, edges, fit, inside)


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


def _about_background(signal, edges, fit, inside):
    """Whether the fit without the farther half of the first background window changes the mean of a map."""
    first = min(edges, key=lambda edge: edge.before[0])
    near = inside >= channels(signal, (sum(first.before) / 2, first.before[1])).start
    if near.all() or near.sum() < len(edges) + 2 + SPARE:
        return []
    less = JointFit(fit.energy[near], fit.shapes[:, near], fit.weights[near])
    spectrum = signal.data[..., inside].mean(axis=(0, 1))[None]
    exponents = [fit.exponents(spectrum), less.exponents(spectrum[:, near])]
    if not np.isfinite(exponents).all():
        return []
    whole = fit.intensities(spectrum, exponents[0])[:, 0]
    change = less.intensities(spectrum[:, near], exponents[1])[:, 0] - whole
    noise = variance_of_mean(signal.data, inside[near])
    chance = np.sqrt(sum(less.responses(exponents[1][0])) ** 2 @ noise)
    changes = {
        edge: by / amount
        for edge, amount, by, error in zip(edges, whole, change, chance, strict=True)
        if is_significant(by, error, amount)
    }
    return power_law_diagnostics(changes)
