"""Calibration of the model of EDS spectra on the spectra themselves: energy scale, resolution, weights of lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace

import numpy as np

from hyperspy_fusion.fusion.spectra.line_model import SummedFit, channel_edges
from hyperspy_fusion.fusion.spectra.line_shapes import Calibration, ElementLines
from hyperspy_fusion.fusion.spectra.poisson_fit import deviances

# standard deviations of the prior of the fields of `Calibration`, which decides where counts are few
PRIOR = np.array([0.01, 0.003, 0.01, 0.2, 0.01])
# steps for their derivatives, and the number of Gauss-Newton steps
SMALL = np.array([1e-4, 2e-5, 1e-4, 1e-3, 1e-3])
STEPS = 8
# energy scale and weights of lines are calibrated so many times in turn
ROUNDS = 2
# counts that the prior of each line is worth: a relative standard deviation of 0.2
PRIOR_COUNTS = 25.0
# least part of the counts of an element that a family begins with
LEAST = 1e-3
# keV: lines below are calibrated with the fixed weights of their family
SOFT = 0.8
# lines of a family nearer than this part of the width of a peak keep their ratio
NEAR = 0.4
# pixels are put into 2**LEVELS groups at most, with so many counts for each column
LEVELS, COUNTS_IN_GROUP = 5, 300
# steps of EM
ITERATIONS = 300


def calibrated(
    summed: np.ndarray, groups: np.ndarray, energies: np.ndarray, elements: Sequence[ElementLines], first: Calibration
) -> tuple[Calibration, tuple[ElementLines, ...]]:
    """Energy scale, resolution and tail of the detector, and weights of L and M lines.

    The scale is that of the summed spectrum. The weights are those that explain the spectra of groups of pixels: the
    difference between regions shows which of two elements an overlapped line belongs to.

    Parameters
    ----------
    summed
        (n_channels,) counts of all valid pixels.
    groups
        (n_groups, n_channels) counts of groups of pixels, as :func:`spatial_groups` makes them.
    energies
        (n_channels,) of the channels in keV.
    elements
        The lines of all elements, those of the system too.
    first
        Calibration to begin with, the centre of its prior.

    Returns
    -------
    tuple
        The calibration, and the elements with weights relative to the strongest line of the element.
    """
    edges = channel_edges(energies)
    calibration, elements, known = first, tuple(elements), False
    for _ in range(ROUNDS):
        calibration = energy_scale(summed, edges, elements, calibration, first, known)
        fit = SummedFit.of(summed, edges, elements, calibration, known)
        elements, known = line_weights(fit, groups), True
    return energy_scale(summed, edges, elements, calibration, first, known), elements


# ---- energy scale --------------------------------------------------------------------------------------


def energy_scale(summed, edges, elements, start, prior, ratios_known=False, largest=np.inf):
    """Calibration by Gauss-Newton steps on the deviance of the summed spectrum, with a Gaussian prior.

    Offset and gain differ from the prior by at most its standard deviation times ``largest``.
    """
    fit_of = lambda values: SummedFit.of(summed, edges, elements, Calibration(*values), ratios_known)  # noqa: E731
    centre, values = np.array(astuple(prior)), np.array(astuple(start))

    def objective(fit, values):
        return deviances(fit.expected, summed).sum() + (((values - centre) / PRIOR) ** 2).sum()

    fit = fit_of(values)
    value = objective(fit, values)
    for _ in range(STEPS):
        step = _gauss_newton(fit, values, centre, edges)
        for length in (1.0, 0.5, 0.2, 0.05):
            moved = values + length * step
            moved[:2] = np.clip(moved[:2], *(centre[:2] + np.multiply.outer((-largest, largest), PRIOR[:2])))
            moved[3:] = np.maximum(moved[3:], 0)
            new_fit = fit_of(moved)
            new = objective(new_fit, moved)
            if new < value:
                break
        else:
            break
        gain, value, values, fit = value - new, new, moved, new_fit
        if gain < max(1.0, 2e-3 * value):
            break
    return Calibration(*values.tolist())


def _gauss_newton(fit, values, centre, edges):
    """Step of the calibration, with the amplitudes free at the same time."""
    derivatives = [fit.expected_with(Calibration(*(values + step)), edges) for step in np.diag(SMALL)]
    tangents = (np.stack(derivatives, axis=1) - fit.expected[:, None]) / SMALL * PRIOR
    design = np.concatenate([tangents, fit.free_shapes], axis=1) / np.sqrt(np.maximum(fit.expected, 1.0))[:, None]
    residual = (fit.summed - fit.expected) / np.sqrt(np.maximum(fit.expected, 1.0))
    n = len(PRIOR)
    ridge = np.eye(n, design.shape[1])
    solved = np.linalg.lstsq(
        np.concatenate([design, ridge]), np.concatenate([residual, (centre - values) / PRIOR]), rcond=1e-12
    )[0]
    return np.clip(solved[:n], -3, 3) * PRIOR


# ---- weights of lines ----------------------------------------------------------------------------------


def line_weights(fit: SummedFit, groups: np.ndarray) -> tuple[ElementLines, ...]:
    """The elements with weights of their lines, relative to the strongest of the element, by EM of groups of pixels.

    Counts of group g are ``Poisson(sum_j x_gj M_j)``, where a column ``M_j = sum_l w_l S_l`` has the lines, or bundles
    of lines, of element j. The counts x and the weights w are fitted together, with a gamma prior of each weight.
    """
    bundles = _bundles(fit)
    owners = np.array([fit.owners[own[0]] for own in bundles])
    shapes = np.stack([fit.shapes[:, own] @ fit.weights[own] for own in bundles], axis=1)
    sizes = np.maximum(shapes.sum(axis=0), 1e-12)
    start = sizes * [fit.amplitudes[fit.families[own[0]]] for own in bundles]
    start = _of_sum_one(np.maximum(start, LEAST * np.bincount(owners, start)[owners] + 1e-9), owners)
    weights = _weights_by_em(groups, shapes / sizes, owners, start, fit.columns()[0][:, -2:])
    lines = np.zeros(len(fit.owners))
    for own, weight in zip(bundles, weights / sizes, strict=True):
        lines[own] = fit.weights[own] * weight
    of_elements = [lines[fit.owners == number] for number in range(len(fit.elements))]
    return tuple(replace(e, weights=own / own.max()) for e, own in zip(fit.elements, of_elements, strict=True))


def _of_sum_one(weights, owners):
    return weights / np.bincount(owners, weights)[owners]


def _bundles(fit):
    """Lists of lines that keep their ratio: a K family, a family of soft lines, lines too near to be resolved."""
    found = []
    energies = np.concatenate([lines.energies for lines in fit.elements])
    names = [name for lines in fit.elements for name in lines.names]
    for family in range(fit.families.max() + 1):
        own = np.flatnonzero(fit.families == family)
        main = own[np.argmax(fit.weights[own])]
        if names[main][0] == "K" or energies[main] < SOFT:
            found.append(own)
            continue
        left = own[np.argsort(-fit.weights[own])]
        while len(left):
            near = np.abs(energies[left] - energies[left[0]]) < NEAR * fit.calibration.fwhm(energies[left[0]])
            found.append(left[near])
            left = left[~near]
    return found


def _weights_by_em(groups, shapes, owners, start, continuum):
    """Weights of the bundles, those of each element with the sum one."""
    n = owners.max() + 1
    belongs = owners[:, None] == np.arange(n)
    weights = start.copy()
    x = np.full((len(groups), n + 2), 1 / (n + 2)) * groups.sum(axis=1, keepdims=True)
    matrix = np.concatenate([shapes @ (weights[:, None] * belongs), continuum], axis=1)
    for _ in range(ITERATIONS):
        ratio = groups / np.maximum(x @ matrix.T, 1e-9)
        counts = weights * np.einsum("cl,cl->l", shapes, (ratio.T @ x[:, :n])[:, owners])
        weights = (counts + PRIOR_COUNTS) / ((counts @ belongs)[owners] + PRIOR_COUNTS / start)
        weights = _of_sum_one(weights, owners)
        matrix[:, :n] = shapes @ (weights[:, None] * belongs)
        x = x * ((groups / np.maximum(x @ matrix.T, 1e-9)) @ matrix)
    return weights


# ---- groups of pixels ----------------------------------------------------------------------------------


def spatial_groups(binned: np.ndarray, n_columns: int) -> np.ndarray:
    """Spectra (n_groups, n_channels) of at most 32 groups of equally many bins whose spectra are alike.

    With few counts in each spectrum, amplitudes that must not be negative are biased, and weights fitted with them too.
    So bins are put together: halved along the first principal component of their smoothed spectra, again and again.

    Parameters
    ----------
    binned
        (ny, nx, n_channels) counts.
    n_columns
        Of the model: each group has so many counts that a column has some `COUNTS_IN_GROUP`.
    """
    from scipy.ndimage import gaussian_filter

    flat = binned.reshape(-1, binned.shape[-1])
    summed = flat.sum(axis=0, dtype=np.float64)
    starts = np.searchsorted(np.cumsum(summed), np.linspace(0, summed.sum(), 49)[:-1])
    bands = np.add.reduceat(binned, np.unique(np.minimum(starts, len(summed) - 1)), axis=-1).astype(np.float64)
    smooth = gaussian_filter(bands, (1, 1, 0)).reshape(len(flat), -1)
    scaled = smooth / np.sqrt(np.maximum(smooth.mean(axis=0), 1e-9))
    levels = int(np.clip(np.log2(max(summed.sum() / (COUNTS_IN_GROUP * n_columns), 1)), 0, LEVELS))
    groups = [np.arange(len(flat))]
    for _ in range(min(levels, int(np.log2(len(flat))))):
        groups = [half for group in groups for half in _halves(scaled, group)]
    return np.stack([flat[group].sum(axis=0, dtype=np.float64) for group in groups])


def _halves(scaled, group):
    deviation = scaled[group] - scaled[group].mean(axis=0)
    direction = np.linalg.eigh(deviation.T @ deviation)[1][:, -1]
    return np.array_split(group[np.argsort(deviation @ direction, kind="stable")], 2)
