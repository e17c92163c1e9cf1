"""What is doubtful about a model of EDS spectra: lines that it lacks, elements that it cannot show or resolve."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hyperspy_fusion.fusion.spectra.bands import covariance_bound
from hyperspy_fusion.fusion.spectra.line_model import SpectralModel, channel_edges
from hyperspy_fusion.fusion.spectra.line_shapes import continuum_hats
from hyperspy_fusion.fusion.spectra.poisson_fit import poisson_ml

# least excess within one width of a peak that is a line: in standard deviations, and as a part of the expected counts
SIGMAS, PART = 8.0, 0.05
# and as a part of the counts of peaks within so many widths, whose shapes are not known better
OF_NEIGHBOURS, NEAR = 0.1, 2.0
# so many are looked for
MOST = 4
# pairs whose standard errors are larger than those of the counts alone by this factor differ in shape only
BY_SHAPE = 2.5
# an element is shown by so many standard errors of its total
SHOWN = 2.0
# relative systematic error of an element that is hidden under others
HIDDEN = 0.5
#: deviance, relative to that of noise, of a model that is as good as the counts
GOOD_DEVIANCE = 1.2


class Excess(NamedTuple):
    """Counts at an energy (keV) above the model, within one width of a peak, in standard deviations and relative."""

    energy: float
    sigmas: float
    part: float


def unexplained_lines(model: SpectralModel) -> list[Excess]:
    """Excesses of the summed spectrum over the model that are as narrow as a line, the largest first.

    Each is added to the model as a line before the next is looked for, with the shape of the continuum free.
    """
    edges = channel_edges(model.energies)
    shapes = np.concatenate([model.columns[:, : len(model.lines)], continuum_hats(edges)], axis=1)
    expected = model.expected
    found = []
    for _ in range(MOST):
        excess = _largest_excess(model, expected)
        if excess is None:
            break
        found.append(excess)
        shapes = np.concatenate([shapes, model.calibration.line_shapes(edges, excess.energy)], axis=1)
        expected = shapes @ poisson_ml(shapes, model.summed)
    return sorted(found, key=lambda excess: -excess.sigmas)


def _largest_excess(model, expected):
    true = model.calibration.offset + model.calibration.gain * model.energies
    half = np.maximum(np.rint(model.calibration.fwhm(true) / 2 / (true[1] - true[0])), 1).astype(int)
    counts, mean = (_windowed(spectrum, half) for spectrum in (model.summed, expected))
    excess = counts - mean
    sigmas, part = excess / np.sqrt(np.maximum(mean, 1.0)), excess / np.maximum(mean, 1.0)
    reach = np.rint(2 * NEAR * half).astype(int)
    near = np.array([mean[max(c - r, 0) : c + r + 1].max() for c, r in enumerate(reach)])
    # the ends of the spectra cut peaks
    inside = np.minimum(np.arange(len(half)), np.arange(len(half))[::-1]) > 2 * half
    is_line = inside & (sigmas > SIGMAS) & (part > PART) & (excess > OF_NEIGHBOURS * near)
    sigmas = np.where(is_line, sigmas, 0.0)
    c = int(sigmas.argmax())
    return Excess(float(true[c]), float(sigmas[c]), float(part[c])) if sigmas[c] else None


def _windowed(spectrum, half):
    """Sums over 2 half + 1 channels around each."""
    sums = np.concatenate([[0.0], np.cumsum(spectrum)])
    place = np.arange(len(spectrum))
    return sums[np.minimum(place + half + 1, len(spectrum))] - sums[np.maximum(place - half, 0)]


def standard_errors(model: SpectralModel) -> np.ndarray:
    """(n_columns,) standard errors of the totals, by the counts and by how far the model is from them."""
    variances = np.diag(covariance_bound(model.matrix, model.matrix @ model.totals))
    return np.sqrt(variances * max(model.deviance, 1.0))


def not_shown(model: SpectralModel) -> list[str]:
    """Mapped elements whose total is within its standard error of 0."""
    is_absent = model.totals <= SHOWN * standard_errors(model)
    return [name for name, absent in zip(model.names[: model.n_elements], is_absent, strict=False) if absent]


def hidden(model: SpectralModel) -> list[str]:
    """Mapped elements whose total is within the systematic error that stronger elements cause."""
    absent = not_shown(model)
    elements = zip(model.names[: model.n_elements], model.systematic, strict=False)
    return [name for name, error in elements if error > HIDDEN and name not in absent]


def pairs_by_shape(model: SpectralModel) -> list[tuple[str, str]]:
    """Pairs of elements, one of them mapped, that only the shape of their lines distinguishes."""
    mean = model.totals / model.n_pixels + model.shift
    covariance = covariance_bound(model.matrix, model.matrix @ mean)
    errors = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(errors, errors)
    n, absent = len(model.lines), not_shown(model)
    found = []
    for i in np.flatnonzero(model.units[: model.n_elements] > BY_SHAPE * np.sqrt(mean[: model.n_elements])):
        others = correlation[i, :n].copy()
        others[i] = 0
        j = int(others.argmin())
        if others[j] < -0.5 and not {model.names[i], model.names[j]} & {*absent}:
            found.append((model.names[min(i, j)], model.names[max(i, j)]))
    return list(dict.fromkeys(found))
