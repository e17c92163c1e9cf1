"""A phantom of EDS spectra whose lines overlap: a spectrum image with the true counts of every element.

The spectra are drawn channel by channel from lines, as exspy tabulates them, and a continuum. Its shape varies with the
thickness, so that no model of two fixed shapes is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperspy_fusion.data.phantoms import (
    ATOMIC_NUMBERS,
    HAADF_EXPONENT,
    SCAN_OPTIONS,
    Phantom,
    check_positive,
    checked_image_options,
    expected_counts,
    haadf_image,
    phantom_of,
)

__all__ = ["SpectralPhantom", "overlapping_lines"]

# keV: lower edge of the first channel, width of a channel; their number; FWHM at Mn Ka
_FIRST, _WIDTH, _CHANNELS, _RESOLUTION = 0.4, 0.01, 1000, 0.130
_FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))
# counts of the L lines per count of the K lines of an element, between the main lines
_L_PER_K = 0.5
# lines so near to the ends of the spectra are left out, in keV
_MARGINS = 0.05, 0.1
# the film under the copper that is everywhere scatters as this many atoms of iron for each of copper
_FILM = 1 / 12

# centre, outer radius, and core radius as in core_shell; elements of one unit of thickness of core and of shell
_PARTICLES = (
    (0.22, 0.22, 0.15, 0.6, {"Fe": 1.0}, {"Co": 1.0}),
    (0.25, 0.62, 0.14, 0.6, {"Co": 1.0}, {"Fe": 1.0}),
    (0.10, 0.90, 0.08, 0.0, {}, {"Fe": 1.0}),
    (0.45, 0.90, 0.07, 0.0, {}, {"Co": 1.0}),
    (0.52, 0.40, 0.10, 0.0, {}, {"Fe": 0.75, "O": 0.5}),
    (0.75, 0.20, 0.15, 0.6, {"S": 1.0}, {"Mo": 1.0}),
    (0.78, 0.58, 0.13, 0.6, {"Mo": 0.5, "S": 1.0}, {"S": 1.0}),
    (0.90, 0.85, 0.08, 0.0, {}, {"S": 1.0}),
    (0.68, 0.88, 0.08, 0.0, {}, {"Mo": 1.0}),
)


@dataclass(frozen=True)
class SpectralPhantom(Phantom):
    """A spectrum image with its truth: a :class:`Phantom` whose signals are spectra.

    Attributes
    ----------
    truth
        ``(n_elements, ny, nx)`` float64, expected counts of the main line of each element, the whole Gaussian.
    maps
        ``(n_elements, ny, nx)`` int64, counts within one FWHM of the main lines, whatever they are of.
    spectra
        ``(ny, nx, n_channels)`` uint16, Poisson counts.
    energies
        ``(n_channels,)`` float64, centres of the channels in keV.
    columns
        ``(n_channels, n_elements)`` float64, counts of all lines of an element per count of its main line.
    """

    spectra: np.ndarray
    energies: np.ndarray
    columns: np.ndarray

    def signals(self) -> tuple:
        """The scan as a user would load it.

        Returns
        -------
        spectra : exspy.signals.EDSTEMSpectrum
            The calibrated spectrum image, with the elements, the beam energy and the resolution of the detector.
        haadf : hyperspy.signals.Signal2D
            The HAADF image on the same axes.
        """
        import hyperspy.api as hs

        haadf = super().signals()[1]
        channels = {"name": "Energy", "size": len(self.energies), "scale": _WIDTH, "units": "keV"}
        channels["offset"] = self.energies[0]
        metadata = self._metadata("EDS", "X-rays (Counts)", self.elements)
        axes = [{**axis, "navigate": True} for axis in self._axes()] + [channels]
        spectra = hs.signals.Signal1D(self.spectra.copy(), axes=axes, metadata=metadata)
        spectra.set_signal_type("EDS_TEM")
        spectra.set_microscope_parameters(beam_energy=200.0, energy_resolution_MnKa=1000 * _RESOLUTION)
        return spectra, haadf


def _acquire_spectra(
    title,
    elements,
    atoms,
    pixel_size_nm,
    *,
    counts: float = 15.0,
    continuum: float = 0.25,
    haadf_snr: float = 50.0,
    haadf_blur: float = 0.0,
    haadf_offset: float = 0.0,
    haadf_gain: float = 1.0,
    seed: int = 0,
) -> SpectralPhantom:
    """Scan projected ``atoms`` (n, ny, nx): Poisson spectra and a HAADF image by the incoherent forward model."""
    rng = np.random.default_rng(seed)
    check_positive("pixel_size_nm", pixel_size_nm)
    if not 0 <= continuum <= 100:
        raise ValueError(f"continuum is {continuum!r}: it must be at least 0 and at most 100.")
    truth = expected_counts(atoms, counts)
    image_options = checked_image_options(haadf_snr, haadf_blur, haadf_offset, haadf_gain, truth.shape[1:])
    edges = _FIRST + _WIDTH * np.arange(_CHANNELS + 1)
    energies = (edges[1:] + edges[:-1]) / 2
    lines = [_lines_of(element, edges[0], edges[-1]) for element in elements]
    columns = np.stack([sum(weight * _gaussian(energy, edges) for energy, weight in own) for own in lines], axis=1)
    mass = np.tensordot(_with_film(elements, 1.0), truth, 1)
    bright = mass * (continuum * (columns.sum(axis=0) @ truth.sum(axis=(1, 2))) / mass.sum())
    thick = mass / mass.max()
    thin_shape, thick_shape = _continuum_shapes(energies)
    mean = np.moveaxis(truth, 0, -1) @ columns.T
    mean += (bright * (1 - thick))[..., None] * thin_shape + (bright * thick)[..., None] * thick_shape
    spectra = rng.poisson(mean).astype(np.uint16)
    haadf, weights = haadf_image(truth, _with_film(elements, HAADF_EXPONENT), rng, *image_options)
    near = [np.abs(energies - own[0][0]) < _fwhm(own[0][0]) for own in lines]
    maps = np.stack([spectra[..., channels].sum(axis=-1, dtype=np.int64) for channels in near])
    arrays = truth, maps, haadf, float(pixel_size_nm), weights, float(haadf_offset), spectra, energies, columns
    return SpectralPhantom(title, tuple(elements), *arrays)


_SPECTRA_OPTIONS = SCAN_OPTIONS.replace(
    "haadf_snr\n",
    "continuum\n    Counts of the continuum in the whole scan over those of all lines, 0 or more.\nhaadf_snr\n",
    1,
)


@phantom_of(
    "Particles of Fe and Co, S and Mo (phantom)",
    *("Fe", "Co", "S", "Mo", "O", "Cu"),
    acquire=_acquire_spectra,
    options=_SPECTRA_OPTIONS,
)
def overlapping_lines(shape: tuple = (96, 96), *, pixel_size_nm: float = 0.5):
    """EDS spectra of particles of Fe and Co and of S and Mo, whose lines overlap, on a film with copper everywhere.

    Fe Kb lies beside Co Ka and can be resolved. The S K and the Mo L lines have nearly the same energy, 2.31 and
    2.29 keV: only the shapes of their families differ. There are core-shell particles of both pairs in either order,
    particles of one element each, and one of iron and oxygen. Counts are those of the main line of each element, with
    the same factor for all elements. Copper is as a grid is: everywhere, and nearly even. Its HAADF coefficient
    includes the film.
    """
    atoms: dict[str, Any] = dict.fromkeys(("Fe", "Co", "S", "Mo", "O", "Cu"), np.zeros(shape))
    rows, columns = (np.arange(size) + 0.5 for size in shape)
    for y, x, radius, core, inner, outer in _PARTICLES:
        distance = np.hypot(rows[:, None] - y * shape[0], columns - x * shape[1]) / min(shape)
        # paths of the beam through two spheres
        inside, whole = (2 * np.sqrt(np.maximum(r**2 - distance**2, 0)) for r in (core * radius, radius))
        for parts, thickness in ((inner, inside), (outer, whole - inside)):
            for element, amount in parts.items():
                atoms[element] = atoms[element] + amount * thickness
    film = np.broadcast_to(1 + 0.3 * (columns / shape[1] - 0.5), shape)
    atoms["O"] = atoms["O"] + 0.01 * film
    atoms["Cu"] = 0.06 * film
    return np.stack(list(atoms.values()))


def _with_film(elements, exponent):
    """(n,) powers of the atomic numbers; that of copper with the film under it."""
    powers = np.array([float(ATOMIC_NUMBERS[element]) ** exponent for element in elements])
    powers[elements.index("Cu")] += _FILM * ATOMIC_NUMBERS["Fe"] ** exponent
    return powers


def _lines_of(element, low, high):
    """[(energy in keV, counts per count of the main line)] of the families of an element in the range, main one first.

    A family is there where its alpha line is.
    """
    from exspy.material import elements

    families: dict = {}
    for name, line in elements[element].Atomic_properties.Xray_lines:
        families.setdefault(name[0], {})[name[1:]] = line["energy (keV)"], line["weight"]
    inside = [name for name in "KLM" if name in families and low < families[name]["a"][0] - _MARGINS[0]]
    inside = [name for name in inside if families[name]["a"][0] + _MARGINS[1] < high]
    found = []
    for name in inside:
        factor = 1.0 if name == inside[0] else _L_PER_K
        own = sorted(families[name].values(), key=lambda line: -line[1])
        found += [(energy, factor * weight) for energy, weight in own]
    return found


def _fwhm(energy):
    """Of a line in keV, by the statistics of electron-hole pairs (Fiori and Newbury, 1978), as in exspy."""
    return np.sqrt(2.5e-3 * (energy - 5.8987) + _RESOLUTION**2)


def _gaussian(energy, edges):
    """Of sum 1, integrated over the channels."""
    from scipy.special import ndtr

    return np.diff(ndtr((edges - energy) / (_fwhm(energy) / _FWHM_PER_SIGMA)))


def _continuum_shapes(energies):
    """Kramers' continuum of 60 keV with the absorption of thin and of thick places and of the window, each of sum 1."""
    shapes = [
        np.exp(-((window / energies) ** 3)) * (60 - energies) / energies * absorption
        for window, absorption in ((0.6, 0.9 ** (1 / energies)), (0.8, 1.0))
    ]
    return [shape / shape.sum() for shape in shapes]
