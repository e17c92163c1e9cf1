"""Maximum-likelihood fit of non-negative amplitudes of given shapes to counts."""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln, xlogy

# Newton steps, and the decrease of the objective in units of the likelihood at which they end
STEPS = 60
TOLERANCE = 1e-6
# ridge of the Hessian, a part of its diagonal: shapes may be alike
RIDGE = 1e-9
# expected counts of a channel from which on the mean of its deviance is that of the expansion in 1 / counts
FEW = 10


def poisson_ml(shapes, counts, start=None):
    """Amplitudes ``x >= 0`` of one spectrum by projected Newton steps.

    minimise over x >= 0:  sum_c (m_c - b_c log m_c),  m = A x

    The steps are those of Bertsekas (SIAM J. Control Optim. 20, 221, 1982): amplitudes at zero that the gradient holds
    there are left out of the Newton step, and the step is shortened until the objective falls.

    Parameters
    ----------
    shapes
        (n_channels, n) matrix A, >= 0.
    counts
        (n_channels,) counts b, >= 0.
    start
        (n,) first amplitudes; None for equal ones.

    Returns
    -------
    numpy.ndarray
        (n,) float64.
    """
    shapes, counts = np.asarray(shapes, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    sums = shapes.sum(axis=0)
    scale = np.where(sums > 0, 1 / np.maximum(sums, 1e-300), 0.0)
    unit = shapes * scale  # columns of sum one, whose amplitudes are counts
    total = max(counts.sum(), 1e-12)
    x = (
        np.full(len(scale), total / len(scale))
        if start is None
        else np.maximum(start / np.where(sums > 0, scale, 1), 0)
    )
    x = np.maximum(x, 1e-6 * total / len(scale))
    for _ in range(5):  # steps of EM come near from anywhere
        x = x * (unit.T @ (counts / np.maximum(unit @ x, 1e-12)))
    value = _negative_log_likelihood(unit @ x, counts)
    for _ in range(STEPS):
        x, new = _newton_step(unit, counts, x, value)
        if value - new < TOLERANCE:
            break
        value = new
    return x * scale


def _negative_log_likelihood(expected, counts):
    return float(np.sum(expected - counts * np.log(np.maximum(expected, 1e-12))))


def _newton_step(unit, counts, x, value):
    expected = np.maximum(unit @ x, 1e-12)
    gradient = unit.T @ (1 - counts / expected)
    free = (x > 1e-9 * x.sum()) | (gradient < 0)
    part = unit[:, free]
    # the larger of observed and expected curvature: a channel without counts has no other
    hessian = part.T @ (part * (np.maximum(counts, expected) / expected**2)[:, None])
    hessian[np.diag_indices_from(hessian)] *= 1 + RIDGE
    direction = np.zeros_like(x)
    direction[free] = np.linalg.solve(hessian, gradient[free])
    length = 1.0
    for _ in range(30):
        moved = np.maximum(x - length * np.where(free, direction, x), 0)
        new = _negative_log_likelihood(unit @ moved, counts)
        if new <= value:
            return moved, new
        length /= 2
    return x, value


def deviances(expected, counts):
    """Poisson deviance of each channel, ``2 (m - b + b log(b / m))``."""
    expected = np.maximum(expected, 1e-12)
    return 2 * (
        expected - counts + counts * np.log(np.where(counts > 0, counts, 1) / np.where(counts > 0, expected, 1))
    )


def expected_deviances(expected):
    """Mean Poisson deviance of each channel with so many expected counts: about one, and less for few counts."""
    few = np.clip(expected, 1e-12, FEW)[:, None]
    counts = np.arange(4 * FEW)
    probabilities = np.exp(xlogy(counts, few) - few - gammaln(counts + 1))
    of_few = (probabilities * deviances(few, counts)).sum(axis=1)
    return np.where(expected < FEW, of_few, 1 + 1 / (6 * np.maximum(expected, FEW)))
