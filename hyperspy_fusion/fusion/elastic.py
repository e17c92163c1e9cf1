"""Forward laws: from element maps to the elastic image, with value and gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def element_weights(atomic_numbers, gamma, weighting):
    """Elastic weights ``w_i`` of the published code, from the atomic numbers.

    Parameters
    ----------
    atomic_numbers
        Of the fused elements, in the order of the maps.
    gamma
        Exponent on Z in the ``"z_gamma_..."`` weightings.
    weighting
        ``"equal"``: 1. ``"z_mean"``: Z / mean Z. ``"z_gamma_mean"``: Z**gamma / mean Z**gamma.
        ``"z_sum"``: Z / sum Z. ``"z_gamma_sum"``: Z**gamma / sum Z**gamma.

    Returns
    -------
    numpy.ndarray
        float64, one weight per element.
    """
    z = np.asarray(atomic_numbers, dtype=np.float64)
    if weighting == "equal":
        return np.ones_like(z)
    z = z**gamma if "gamma" in weighting else z
    return z / (z.sum() if weighting.endswith("sum") else z.mean())


@dataclass(frozen=True)
class PowerLaw:
    """The published elastic law ``f(x) = sum_i w_i x_i**gamma`` on normalised maps.

    Schwartz et al. (2022). Convex for no gamma but 1: the data term may have several stationary points.

    Attributes
    ----------
    weights
        ``w_i``, one per element.
    gamma
        Exponent.
    floor
        Where gamma < 1, the slope is taken at no less than this: it is infinite at zero.
    """

    weights: np.ndarray
    gamma: float
    floor: float = 0.0

    def image(self, x):
        """``f(x)``, shape (ny, nx), of maps ``x`` of shape (n_elements, ny, nx)."""
        return np.tensordot(self.weights, x**self.gamma, axes=1)

    def value(self, x, haadf):
        """``1/2 ||haadf - f(x)||^2``."""
        return 0.5 * float(np.sum((self.image(x) - haadf) ** 2, dtype=np.float64))

    def gradient(self, x, haadf):
        """``gamma w_i x_i**(gamma - 1) (f(x) - haadf)``, shape (n_elements, ny, nx)."""
        base = x if self.gamma >= 1 else np.maximum(x, self.floor)
        slope = self.gamma * self.weights[:, None, None] * base ** (self.gamma - 1)
        return slope * (self.image(x) - haadf)
