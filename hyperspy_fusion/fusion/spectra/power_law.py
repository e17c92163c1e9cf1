"""A power law and given shapes, fitted together to spectra: linear but for the exponent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# exponents that are tried first, and Gauss-Newton steps from the best of them
EXPONENTS = np.linspace(0.0, 8.0, 81)
STEPS = 3
# spectra per batch, which bounds the memory
TOGETHER = 4096


@dataclass(frozen=True)
class JointFit:
    """Amplitudes ``a`` of the power law and ``c`` of the shapes, by weighted least squares.

    minimise over r, a, c:  sum_E w(E) (y(E) - a (E / E_0)^-r - sum_i c_i s_i(E))^2

    At each exponent r, a and c follow by linear algebra, which leaves a function of r alone (variable projection, Golub
    and Pereyra, SIAM J. Numer. Anal. 10, 413, 1973). The best of `EXPONENTS` is refined by Gauss-Newton steps.
    Intensities may be negative: a bound would bias them where there is no edge.

    Attributes
    ----------
    energy
        (n,) of the fitted channels, above 0; in any order, and channels may be missing.
    shapes
        (m, n), linearly independent.
    weights
        (n,), above 0: the inverse of the variance, up to a factor.
    """

    energy: np.ndarray
    shapes: np.ndarray
    weights: np.ndarray

    def exponents(self, spectra):
        """(p,) of spectra (p, n); NaN where no power law with a positive amplitude fits."""
        parts = range(0, len(spectra), TOGETHER)
        return np.concatenate([self._exponents(spectra[i : i + TOGETHER]) for i in parts])

    def intensities(self, spectra, exponents):
        """(m, p) of the shapes in spectra (p, n), with power laws of `exponents` (p,)."""
        parts = range(0, len(spectra), TOGETHER)
        found = [self._linear(spectra[i : i + TOGETHER], exponents[i : i + TOGETHER])[1] for i in parts]
        return np.concatenate(found, axis=1)

    def responses(self, exponent):
        """Derivatives of the intensities by the counts of each channel, two (m, n).

        The first at a fixed exponent, the second through the exponent alone.
        """
        (power,), (slope,) = self._power_laws(np.array([exponent]))
        free, slope_free = self._free(power), self._free(slope)
        turn = free @ slope_free / (free @ free)
        along = slope_free - turn * free
        own = self._solved(np.eye(len(power)) - np.outer(power, free) / (free @ free))
        through = -np.outer(self._solved((slope - turn * power)[:, None])[:, 0], along / (along @ along))
        return own * self._root, through * self._root

    # from here on, units in which all weights are one

    @property
    def _root(self):
        return np.sqrt(self.weights)

    @property
    def _basis(self):
        return np.linalg.qr((self.shapes * self._root).T)

    def _free(self, rows):
        """Residuals of rows (p, n) after a fit of the shapes."""
        basis = self._basis[0]
        return rows - (rows @ basis) @ basis.T

    def _solved(self, columns):
        basis, triangle = self._basis
        return np.linalg.solve(triangle, basis.T @ columns)

    def _power_laws(self, exponents):
        """(p, n) of amplitude one, and their derivatives by the exponent."""
        log = np.log(self.energy / self.energy.mean())
        power = np.exp(-np.multiply.outer(exponents, log)) * self._root
        return power, -log * power

    def _exponents(self, spectra):
        data = spectra * self._root
        powers = self._free(self._power_laws(EXPONENTS)[0])
        overlap = data @ powers.T
        explained = np.where(overlap > 0, overlap**2 / (powers**2).sum(axis=1), 0)
        found = EXPONENTS[explained.argmax(axis=1)]
        for _ in range(STEPS):
            found = found + self._step(data, found)
        ends = (found > EXPONENTS[0]) & (found < EXPONENTS[-1]) & (explained.max(axis=1) > 0)
        return np.where(ends, found, np.nan)

    def _step(self, data, exponents):
        """A Gauss-Newton step of the exponent, no longer than the distance of two `EXPONENTS`."""
        free, slope = (self._free(rows) for rows in self._power_laws(exponents))
        size = (free**2).sum(axis=1)
        amplitude = (free * data).sum(axis=1) / size
        along = slope - ((free * slope).sum(axis=1) / size)[:, None] * free
        with np.errstate(divide="ignore", invalid="ignore"):
            step = (along * data).sum(axis=1) / (amplitude * (along**2).sum(axis=1))
        longest = EXPONENTS[1] - EXPONENTS[0]
        return np.clip(np.nan_to_num(step), -longest, longest)

    def _linear(self, spectra, exponents):
        data, power = spectra * self._root, self._power_laws(exponents)[0]
        free = self._free(power)
        amplitudes = (free * data).sum(axis=1) / (free**2).sum(axis=1)
        return amplitudes, self._solved((data - amplitudes[:, None] * power).T)
