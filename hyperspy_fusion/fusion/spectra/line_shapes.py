"""Shapes of X-ray lines and of the continuum in the channels of an EDS spectrum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# keV: energy at which the resolution of a detector is stated, and the square of the Fano broadening per keV
MN_KA = 5.8987
FANO = 2.5e-3
SIGMA_PER_FWHM = 1 / (2 * np.sqrt(2 * np.log(2)))
# keV: no line is narrower
NARROWEST = 0.03
# keV: K edge of the detector, and the mean energies that counts in the tail and in the shelf of a line have lost
SILICON_EDGE = 1.839
TAIL_LENGTH = 0.02
SHELF_LENGTH = 0.25
# hat functions of the continuum, equally far apart in the logarithm of the energy
HATS = 14
# keV: half of the continuum is absorbed near it
ABSORBED = 0.55


@dataclass(frozen=True)
class ElementLines:
    """The X-ray lines of one element that are within the spectra.

    Attributes
    ----------
    element
        Its symbol.
    names
        Of the lines, such as ``"Ka"``; the first letter is the family.
    energies
        (n_lines,) in keV.
    weights
        (n_lines,), relative to the strongest line of the family.
    mapped
        (n_lines,) bool: the lines whose counts are the map of the element.
    """

    element: str
    names: tuple[str, ...]
    energies: np.ndarray
    weights: np.ndarray
    mapped: np.ndarray

    @property
    def families(self):
        """``{"K": (n_lines,) bool}`` in the order of the lines."""
        letters = np.array([name[0] for name in self.names])
        return {letter: letters == letter for letter in dict.fromkeys(letters.tolist())}


@dataclass(frozen=True)
class Calibration:
    """Energy scale and resolution of the detector.

    The true energy of a channel is ``offset + gain * E`` of the energy E on the axis, both in keV. The full width at
    half maximum of a line is ``sqrt(resolution**2 + FANO (E - MN_KA))``. X-rays absorbed at the surface of the detector
    lose charge: the part ``t / (1 + t)`` of a line has an exponential tail, where t is ``tail`` times the absorption.
    The part ``shelf`` has a longer one.
    """

    offset: float = 0.0
    gain: float = 1.0
    resolution: float = 0.13
    tail: float = 0.0
    shelf: float = 0.0

    def fwhm(self, energies):
        """Full width at half maximum (keV) at energies (keV)."""
        square = FANO * (np.asarray(energies, dtype=np.float64) - MN_KA) + self.resolution**2
        return np.sqrt(np.maximum(square, NARROWEST**2))

    def line_shapes(self, edges, energies):
        """Part of each line in each channel, (n_channels, n_lines), for `edges` (n_channels + 1,) in keV."""
        from scipy.special import log_ndtr, ndtr

        true = self.offset + self.gain * np.asarray(edges, dtype=np.float64)
        energies = np.atleast_1d(np.asarray(energies, dtype=np.float64))
        sigma = SIGMA_PER_FWHM * self.fwhm(energies)
        z = (true[:, None] - energies) / sigma
        below = ndtr(z)
        surface = self.tail * silicon_absorption(energies)
        for part, length in ((surface / (1 + surface), TAIL_LENGTH), (self.shelf, SHELF_LENGTH)):
            if np.any(part):  # a Gaussian convolved with an exponential towards lower energies
                k = sigma / length
                below += part * np.exp(np.maximum(k * k / 2 + k * z + log_ndtr(-z - k), -40))
        return np.diff(below, axis=0)


def silicon_absorption(energies):
    """Absorption coefficient of silicon relative to that at 2.05 keV, by power laws below and above its K edge."""
    return np.where(energies < SILICON_EDGE, 0.2 * (energies / 1.487) ** -2.6, 1.28 * (energies / SILICON_EDGE) ** -2.7)


def continuum_hats(edges, n=HATS):
    """Shapes (n_channels, n) whose sums make a smooth continuum, each with the sum one.

    Hat functions of the logarithm of the energy, times ``exp(-(E_0 / E)**2.7) / E``: Kramers' continuum, absorbed in
    the specimen and the window of the detector.
    """
    middle = (edges[1:] + edges[:-1]) / 2
    place = log_position(middle) * (n - 1)
    hats = np.maximum(1 - np.abs(place[:, None] - np.arange(n)), 0)
    # relative to its largest value under each hat, which leaves nothing to underflow
    base = -((ABSORBED / middle) ** 2.7) - np.log(middle)
    shapes = hats * np.exp(base[:, None] - np.where(hats > 0, base[:, None], -np.inf).max(axis=0))
    return shapes / np.maximum(shapes.sum(axis=0), 1e-300)


def log_position(energies):
    """0 at the first of the energies and 1 at the last, linear in their logarithm."""
    log = np.log(energies)
    return (log - log[0]) / (log[-1] - log[0])
