"""Misleading scans: structure of the HAADF image or the counts that must not appear in fused maps."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

SHAPE = (96, 96)
NUMBERS = {"Al": 13, "Fe": 26, "Co": 27, "Pt": 78}


@dataclass(frozen=True)
class Scene:
    """Maps with their truth, a HAADF image, and where (bool) the trap is."""

    elements: list
    truth: np.ndarray
    maps: np.ndarray
    haadf: np.ndarray
    trap: np.ndarray

    @property
    def atomic_numbers(self):
        return [NUMBERS[e] for e in self.elements]


def _scene(elements, truth, trap, extra=0.0, seed=0, factor=1.0):
    """Poisson maps; a HAADF image of Z^1.7 times ``factor``, plus ``extra`` that no map shows, with 2 % of noise."""
    rng = np.random.default_rng(seed)
    weights = np.array([NUMBERS[e] ** 1.7 for e in elements])
    image = np.tensordot(weights, truth, 1) * factor
    scale = image.max()
    image = gaussian_filter(image / scale + extra, 0.7) + 0.02 * rng.normal(size=image.shape)
    maps = rng.poisson(truth).astype(np.uint16)
    return Scene(elements, truth, maps, image + 0.2, trap)


def _grid():
    return np.mgrid[: SHAPE[0], : SHAPE[1]]


def _disc(centre, radius):
    y, x = _grid()
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


def _particles(level, radius=11):
    """Some structure that HAADF image and maps share."""
    return level * (1 + 1.5 * (_disc((24, 24), radius) | _disc((70, 30), radius)))


def swap(counts=4.0, seed=0):
    """(a) Fe and Co change places in a square; the HAADF image, to which they are alike, does not show it."""
    y, x = _grid()
    trap = (abs(y - 48) < 14) & (abs(x - 68) < 14)
    base = _particles(counts)
    fe, co = np.where(trap, 1.5, 0.5) * base, np.where(trap, 0.5, 1.5) * base
    weights = np.array([NUMBERS["Fe"], NUMBERS["Co"]]) ** 1.7
    return _scene(["Fe", "Co"], np.stack([fe * weights[1] / weights[0], co]), trap, seed=seed)


def haadf_step(counts=4.0, step=0.3, seed=0):
    """(b) Diffraction contrast: half of the HAADF image is brighter, and no map is."""
    trap = _grid()[1] >= 56
    truth = np.stack([_particles(counts), _particles(2 * counts)[::-1]])
    return _scene(["Fe", "Al"], truth, trap, extra=step * trap, seed=seed)


def unmapped(counts=4.0, seed=0):
    """(c) A particle of an element that is not mapped, bright in the HAADF image."""
    trap = _disc((48, 70), 13)
    truth = np.stack([_particles(counts), _particles(2 * counts)[::-1]])
    return _scene(["Fe", "Al"], truth, trap, extra=1.5 * trap, seed=seed)


def pure_noise(counts=1.0, seed=0):
    """(d) Flat maps, and a flat HAADF image."""
    truth = np.multiply.outer([counts, counts / 2], np.ones((64, 64)))
    return _scene(["Fe", "Pt"], truth, np.ones((64, 64), bool), seed=seed)
