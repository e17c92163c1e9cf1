"""Phantoms: scans whose true element maps are known, made here and the same on every machine.

Each is a structure, ``atoms`` in the beam per pixel, scanned by one acquisition. Counts are Poisson with a mean
proportional to the atoms, by the same factor for all elements. The HAADF image is
``offset + gain * blur(sum_i Z_i**1.7 atoms_i)`` plus Gaussian noise.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.checks import check_seed

__all__ = ["PHANTOMS", "Phantom", "atomic_columns", "core_shell", "gradient_alloy", "interface", "psnr"]

ATOMIC_NUMBERS = {"O": 8, "Al": 13, "S": 16, "Ti": 22, "Fe": 26, "Co": 27, "Ni": 28, "Cu": 29, "Sr": 38, "Mo": 42}
ATOMIC_NUMBERS |= {"Pd": 46, "Pt": 78}

# Exponent of Z in the intensity a HAADF detector collects from one atom: 1.64 measured on single atoms (Krivanek et
# al., Nature 464, 571, 2010), up to 2 for the largest angles (Treacy, Microsc. Microanal. 17, 847, 2011).
HAADF_EXPONENT = 1.7

# Cubic lattice parameters at room temperature in nm: powder diffraction file 19-629 (Fe3O4) and 35-734 (SrTiO3), CRC
# Handbook of Chemistry and Physics (metals, all face-centred).
_LATTICE_NM = {"Fe3O4": 0.8396, "SrTiO3": 0.3905, "Al": 0.40496, "Ni": 0.3524, "Pd": 0.3890, "Pt": 0.3924}
# Tetragonal Al2Cu, a, a and c in nm, 4 formula units in the cell (Meetsma et al., J. Solid State Chem. 83, 370, 1989).
_AL2CU_CELL_NM = (0.6067, 0.6067, 0.4877)

# Above it Poisson draws could leave uint16.
_MAX_COUNTS = 60000

# Particles of the core-shell phantom: centre as fractions of height and width, outer radius as a fraction of the
# shorter side, core radius as a fraction of the outer one.
_PARTICLES = (
    (0.34, 0.30, 0.225, 0.74),
    (0.66, 0.64, 0.265, 0.78),
    (0.24, 0.74, 0.155, 0.66),
    (0.78, 0.22, 0.145, 0.60),
    (0.13, 0.50, 0.070, 0.00),
    (0.90, 0.46, 0.055, 0.00),
)


@dataclass(frozen=True)
class Phantom:
    """A scan with its truth.

    Attributes
    ----------
    title
        What it shows.
    elements
        Symbols, one per map.
    truth
        ``(n_elements, ny, nx)`` float64, expected X-ray counts per pixel.
    maps
        ``(n_elements, ny, nx)`` uint16, Poisson counts drawn from ``truth``.
    haadf
        ``(ny, nx)`` float64, HAADF intensity in arbitrary units, noise included.
    pixel_size_nm
        Edge of a square pixel in nm.
    haadf_weights
        ``(n_elements,)`` float64, HAADF intensity per count of ``truth``. Without noise and blur, ``haadf`` is
        ``haadf_offset + sum_i haadf_weights[i] * truth[i]``.
    haadf_offset
        HAADF intensity where there are no atoms.
    """

    title: str
    elements: tuple
    truth: np.ndarray
    maps: np.ndarray
    haadf: np.ndarray
    pixel_size_nm: float
    haadf_weights: np.ndarray
    haadf_offset: float

    @property
    def atomic_numbers(self) -> tuple:
        """Atomic numbers in the order of ``elements``."""
        return tuple(ATOMIC_NUMBERS[element] for element in self.elements)

    @property
    def weights_determined(self) -> tuple:
        """Per element, whether the truth fixes its HAADF weight when the offset is to be found too.

        It does not where a map is a combination of others and a constant: iron and oxygen of one oxide
        share one sum of weights, split in any way.
        """
        maps = self.truth.reshape(len(self.elements), -1)
        contrast = (maps - maps.mean(axis=1, keepdims=True)) / np.linalg.norm(maps, axis=1, keepdims=True)
        values, vectors = np.linalg.eigh(contrast @ contrast.T)
        free = np.abs(vectors[:, values < 1e-10])
        return tuple(bool(share < 1e-4) for share in free.max(axis=1, initial=0))

    def signals(self) -> tuple:
        """The scan as a user would load it.

        Returns
        -------
        maps : list of hyperspy.signals.Signal2D
            One calibrated map per element, its symbol in the title and in ``metadata.Sample.elements``.
        haadf : hyperspy.signals.Signal2D
            The HAADF image on the same axes.

        Examples
        --------
        >>> import hyperspy_fusion as hf
        >>> maps, haadf = hf.data.core_shell((64, 64)).signals()
        >>> haadf
        <Signal2D, title: HAADF, dimensions: (|64, 64)>
        """
        import hyperspy.api as hs

        counts = zip(self.maps, self.elements, strict=True)
        parts = [(data, self._metadata(e, "X-ray counts ()", [e])) for data, e in counts]
        parts.append((self.haadf, self._metadata("HAADF", "Intensity (a.u.)")))
        # copies: what is done to a signal must not reach the phantom
        *maps, haadf = (hs.signals.Signal2D(data.copy(), axes=self._axes(), metadata=tree) for data, tree in parts)
        return maps, haadf

    def phase(self, exponent: float = 0.7, snr: float = 50.0, seed: int = 1):
        """A phase image of the same scan: ``sum_i Z_i**exponent truth_i``, in units of its maximum.

        Parameters
        ----------
        exponent : float
            Of the atomic numbers.
        snr : float
            Its brightest pixel over the standard deviation of its Gaussian noise.
        seed : int
            Of the noise.

        Returns
        -------
        hyperspy.signals.Signal2D
            ``(|x, y)``.
        """
        import hyperspy.api as hs

        clean = np.tensordot(np.array(self.atomic_numbers, float) ** exponent, self.truth, 1)
        data = clean / clean.max() + np.random.default_rng(seed).normal(0, 1 / snr, clean.shape)
        return hs.signals.Signal2D(data, axes=self._axes(), metadata=self._metadata("Phase", "Phase (a.u.)"))

    def _metadata(self, title, quantity, elements=()):
        sample = {"description": self.title, **({"elements": list(elements)} if elements else {})}
        return {"General": {"title": title}, "Signal": {"quantity": quantity}, "Sample": sample}

    def _axes(self):
        sizes = zip("yx", self.haadf.shape, strict=True)
        return [{"name": name, "size": size, "scale": self.pixel_size_nm, "units": "nm"} for name, size in sizes]


def _acquire(
    title,
    elements,
    atoms,
    pixel_size_nm,
    *,
    counts: float = 15.0,
    haadf_snr: float = 50.0,
    haadf_blur: float = 0.0,
    haadf_offset: float = 0.0,
    haadf_gain: float = 1.0,
    seed: int = 0,
) -> Phantom:
    """Scan projected ``atoms`` (n, ny, nx): Poisson maps and a HAADF image by the incoherent forward model."""
    rng = np.random.default_rng(seed)
    truth = expected_counts(atoms, counts)
    check_positive("pixel_size_nm", pixel_size_nm)
    image_options = checked_image_options(haadf_snr, haadf_blur, haadf_offset, haadf_gain, truth.shape[1:])
    maps = rng.poisson(truth).astype(np.uint16)
    cross_sections = np.array([ATOMIC_NUMBERS[element] ** HAADF_EXPONENT for element in elements])
    haadf, weights = haadf_image(truth, cross_sections, rng, *image_options)
    return Phantom(title, tuple(elements), truth, maps, haadf, float(pixel_size_nm), weights, float(haadf_offset))


def expected_counts(atoms, counts):
    """(n, ny, nx) expected counts, of which the brightest pixel of the strongest map has ``counts``."""
    check_positive("counts", counts, _MAX_COUNTS)
    return atoms * (counts / atoms.max())


def checked_image_options(snr, blur, offset, gain, shape):
    """The options of a HAADF image, all in their range."""
    check_positive("haadf_snr", snr, np.inf)
    check_positive("haadf_gain", gain)
    if not np.isfinite(offset):
        raise ValueError(f"haadf_offset is {offset!r}: it must be finite.")
    if not 0 <= blur < min(shape):
        raise ValueError(f"haadf_blur is {blur!r}: it must be at least 0 and below {min(shape)} pixels.")
    return snr, blur, offset, gain


def haadf_image(truth, coefficients, rng, snr, blur, offset, gain):
    """HAADF image (ny, nx) of expected counts, by coefficients up to a factor; and the coefficients (n,) themselves."""
    from scipy.ndimage import gaussian_filter

    clean = np.tensordot(coefficients, truth, 1)
    brightest = clean.max()
    # a blur of 0 returns the values untouched; the mirrored edge keeps the sum
    clean = offset + gain * gaussian_filter(clean / brightest, blur, mode="reflect")
    return clean + gain * rng.normal(0, 1, clean.shape) / snr, gain / brightest * coefficients


def _check_numbers(options):
    """ValueError for an option that is no number; the seed is a whole one."""
    for name, value in options.items():
        if name == "seed":
            check_seed(value)
        elif not isinstance(value, Real) or isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}: it must be a number.")


def check_positive(name, value, most=1e9):
    if not 0 < value <= most:
        raise ValueError(f"{name} is {value!r}: it must be above 0 and at most {most:g}.")


FRAME_OPTIONS = """Parameters
----------
shape
    ``(ny, nx)`` in pixels, square or not.
pixel_size_nm
    Edge of a pixel in nm."""
SCAN_OPTIONS = """counts
    Expected counts in the brightest pixel of the strongest map, above 0. Fewer counts, more noise.
haadf_snr
    Brightest HAADF pixel, above the offset and before the blur, over the standard deviation of the Gaussian noise;
    ``np.inf`` for none.
haadf_blur
    Standard deviation in pixels of the Gaussian that blurs the HAADF image but not the maps, 0 or more; the edges are
    mirrored, so that the mean stays.
haadf_offset
    HAADF intensity of vacuum, in units of the brightest pixel of an image with neither blur nor gain.
haadf_gain
    Factor of the HAADF intensity above the offset, and of its noise, above 0.
seed
    Of the noise; the truth does not depend on it.

Returns
-------
Phantom
    The scan with its truth; ``signals()`` of it are maps and HAADF image.

Raises
------
ValueError
    For a shape that is not two sizes of at least 8, or an option out of its range."""
_RAMP_OPTION = """thickness_ramp
    Fraction of the thickness of the last row that the first one lacks, in [0, 1); 0 for a slab, whose HAADF
    coefficients cannot be distinguished from its offset."""


def phantom_of(
    title: str, *elements: str, acquire: Callable = _acquire, options: str = SCAN_OPTIONS
) -> Callable[[Callable], Callable[..., Any]]:
    """A function that scans a structure; its signature and docstring have the ``options`` of ``acquire`` too."""

    def decorated(structure):
        own = inspect.signature(structure).parameters

        @functools.wraps(structure)
        def phantom(shape=own["shape"].default, *, pixel_size_nm=own["pixel_size_nm"].default, **given):
            chosen = {name: given.pop(name) for name in [*given] if name in own}
            sizes = np.asarray(shape)
            if sizes.shape != (2,) or sizes.dtype.kind not in "iu" or sizes.min() < 8:
                raise ValueError(
                    f"shape is {shape!r}: a phantom needs (ny, nx), whole numbers, both at least 8 pixels."
                )
            _check_numbers({"pixel_size_nm": pixel_size_nm, **chosen, **given})
            atoms = structure(tuple(int(size) for size in sizes), pixel_size_nm=pixel_size_nm, **chosen)
            return acquire(title, elements, atoms, pixel_size_nm, **given)

        scan = [p for p in inspect.signature(acquire).parameters.values() if p.kind is p.KEYWORD_ONLY]
        signature = inspect.Signature(
            [*own.values(), *scan], return_annotation=inspect.signature(acquire).return_annotation
        )
        text, _, of_structure = inspect.cleandoc(structure.__doc__ or "").partition("Parameters\n----------\n")
        of_structure = of_structure.replace("<thickness_ramp>", _RAMP_OPTION).rstrip()
        phantom.__doc__ = "\n".join(filter(None, [text.rstrip() + "\n", FRAME_OPTIONS, of_structure, options]))
        setattr(phantom, "__signature__", signature)  # noqa: B010
        return phantom

    return decorated


@phantom_of("Fe3O4 cores in Pt shells (phantom)", "Pt", "Fe", "O")
def core_shell(shape: tuple = (128, 128), *, pixel_size_nm: float = 0.5):
    """Iron oxide cores (Fe3O4) in platinum shells, and two small platinum particles, in vacuum.

    Counts are proportional to the number of atoms in the beam, with the same factor for all elements, so that ratios of
    counts are atomic ratios: where there is oxide, the true Fe/O is 3/4.
    """
    oxide, platinum = _core_shell_thickness(shape)
    # Fe3O4 has 8 formula units in its cell
    formula_units = 8 / _LATTICE_NM["Fe3O4"] ** 3 * oxide
    return np.stack([_fcc_density("Pt") * platinum, 3 * formula_units, 4 * formula_units])


@phantom_of("SrTiO3 along [001] (phantom)", "Sr", "Ti", "O")
def atomic_columns(shape: tuple = (128, 128), *, pixel_size_nm: float = 0.025, column_sigma_nm: float = 0.07):
    """Strontium titanate (SrTiO3) along [001]: heavy Sr columns, mixed Ti-O columns, light O columns.

    The unit cell has an edge of 0.3905 nm: Sr at its corners, Ti and O at its centre, O at the middle of its edges, one
    atom of each kind per column and cell. An Sr column stands in the centre of the image. Columns are Gaussian, as wide
    as probe, thermal motion and the delocalisation of ionisation make them, and equally wide for all elements. The
    specimen is equally thick everywhere.

    Parameters
    ----------
    column_sigma_nm
        Standard deviation of a column in nm, at least the edge of a pixel.
    """
    check_positive("pixel_size_nm", pixel_size_nm)
    check_positive("column_sigma_nm", column_sigma_nm)
    if pixel_size_nm > column_sigma_nm:
        raise ValueError(
            f"pixel_size_nm is {pixel_size_nm} and column_sigma_nm {column_sigma_nm}: pixels larger than one "
            "sigma do not resolve the columns, give smaller ones."
        )
    cell, sigma = _LATTICE_NM["SrTiO3"] / pixel_size_nm, column_sigma_nm / pixel_size_nm
    # sites at whole and at half multiples of the cell, along y and along x
    (y0, x0), (y5, x5) = ([_row_of_gaussians(n, cell, shift, sigma) for n in shape] for shift in (0, 0.5))
    titanium = np.outer(y5, x5)
    return np.stack([np.outer(y0, x0), titanium, titanium + np.outer(y0, x5) + np.outer(y5, x0)])


@phantom_of("Interface of Al2Cu and Al (phantom)", "Al", "Cu")
def interface(
    shape: tuple = (128, 128), *, pixel_size_nm: float = 0.5, tilt_deg: float = 20.0, thickness_ramp: float = 0.4
):
    """Al2Cu on the left and aluminium on the right of a straight boundary through the centre.

    The shared element goes against the HAADF image: at the boundary aluminium gains a third (44.6 to 60.2 atoms per
    nm3) where HAADF loses half. The boundary is sharp: edge-on, and blended over one pixel only.

    Parameters
    ----------
    tilt_deg
        Angle of the boundary to the columns of the image in degrees; positive takes its upper end to the right.
    <thickness_ramp>
    """
    left = _left_of_boundary(shape, tilt_deg)
    al2cu = 4 / np.prod(_AL2CU_CELL_NM)
    aluminium = 2 * al2cu * left + _fcc_density("Al") * (1 - left)
    return np.stack([aluminium, al2cu * left]) * _wedge(shape, thickness_ramp)


@phantom_of("Pt-Pd-Ni gradient alloy (phantom)", "Pt", "Pd", "Ni")
def gradient_alloy(shape: tuple = (128, 128), *, pixel_size_nm: float = 0.5, thickness_ramp: float = 0.5):
    """Pt-Pd-Ni solid solution of smoothly varying composition: no edge anywhere.

    The atomic fraction of Pt goes from 0.1 in the first column to 0.7 in the last; of the other atoms, Pd goes from 0.2
    in the first row to 0.8 in the last and Ni is the rest. All are face-centred cubic, and atoms take the volume they
    take in the pure metals (Zen's rule).

    Parameters
    ----------
    <thickness_ramp>
    """
    # from 0 in the first to 1 in the last pixel, level at both ends
    rows, columns = ((1 - np.cos(np.pi * np.linspace(0, 1, size))) / 2 for size in shape)
    platinum = np.broadcast_to(0.1 + 0.6 * columns, shape)
    palladium = (1 - platinum) * (0.2 + 0.6 * rows[:, None])
    fractions = np.stack([platinum, palladium, 1 - platinum - palladium])
    atomic_volume = np.tensordot([1 / _fcc_density(element) for element in ("Pt", "Pd", "Ni")], fractions, 1)
    return fractions / atomic_volume * _wedge(shape, thickness_ramp)


#: Name -> function of every phantom of element maps; all take ``shape`` and the options of the acquisition.
PHANTOMS = {f.__name__: f for f in (core_shell, atomic_columns, interface, gradient_alloy)}


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB: ``10 log10(max(truth)**2 / mean((image - truth)**2))``.

    Parameters
    ----------
    image, truth : numpy.ndarray
        Of the same shape, in the same unit.

    Returns
    -------
    float
        Infinite for an image that is the truth.

    Raises
    ------
    ValueError
        For an image of another shape, or a truth without a positive value.
    """
    image, truth = np.asarray(image, float), np.asarray(truth, float)
    if image.shape != truth.shape:
        raise ValueError(f"image has shape {image.shape}, truth has {truth.shape}: crop both to the same field.")
    peak = truth.max()
    if not peak > 0:
        raise ValueError(f"the largest value of truth is {peak}: PSNR needs one above 0.")
    error = np.mean((image - truth) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def _fcc_density(element):
    """Atoms per nm3 of a face-centred cubic metal, which has 4 in its cell."""
    return 4 / _LATTICE_NM[element] ** 3


def _core_shell_thickness(shape):
    """Projected thickness of oxide and of platinum, in units of the shorter side, each ``(ny, nx)``."""
    oxide, platinum = np.zeros(shape), np.zeros(shape)
    rows, columns = (np.arange(size) + 0.5 for size in shape)
    for y, x, radius, core in _PARTICLES:
        distance = np.hypot(rows[:, None] - y * shape[0], columns - x * shape[1]) / min(shape)
        # paths of the beam through two spheres
        inside, whole = (2 * np.sqrt(np.maximum(r**2 - distance**2, 0)) for r in (core * radius, radius))
        oxide += inside
        platinum += whole - inside
    return oxide, platinum


def _row_of_gaussians(size, period, shift, sigma):
    """Gaussians at ``(k + shift) * period`` from the centre of a line of ``size`` pixels, for all k in reach."""
    position = np.arange(size) - (size - 1) / 2
    reach = int((size / 2 + 6 * sigma) / period) + 1
    centres = (np.arange(-reach, reach + (shift == 0)) + shift) * period
    return np.exp(-0.5 * ((position[:, None] - centres) / sigma) ** 2).sum(axis=1)


def _left_of_boundary(shape, tilt_deg):
    """Fraction of every pixel on the left of a line through the centre, tilted clockwise from the vertical."""
    if not np.isfinite(tilt_deg):
        raise ValueError(f"tilt_deg is {tilt_deg!r}: it must be a finite number of degrees.")
    y, x = (np.arange(size) - (size - 1) / 2 for size in shape)
    angle = np.deg2rad(tilt_deg)
    return np.clip(0.5 - x * np.cos(angle) - y[:, None] * np.sin(angle), 0, 1)


def _wedge(shape, ramp):
    """Thickness ``(ny, 1)``, growing linearly from ``1 - ramp`` in the first row to 1 in the last."""
    if not 0 <= ramp < 1:
        raise ValueError(f"thickness_ramp is {ramp!r}: it must be at least 0 and below 1.")
    return np.linspace(1 - ramp, 1, shape[0])[:, None]
