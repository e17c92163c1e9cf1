"""Phantoms: scans whose true element maps are known, made here and the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ATOMIC_NUMBERS = {"O": 8, "Fe": 26, "Pt": 78}

# Exponent of Z in the intensity a HAADF detector collects from one atom.
HAADF_EXPONENT = 1.7

# Particles of the core-shell phantom: centre as fractions of height and width, outer radius as a
# fraction of the shorter side, core radius as a fraction of the outer one.
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
    """

    title: str
    elements: tuple
    truth: np.ndarray
    maps: np.ndarray
    haadf: np.ndarray
    pixel_size_nm: float

    @property
    def atomic_numbers(self) -> tuple:
        """Atomic numbers in the order of ``elements``."""
        return tuple(ATOMIC_NUMBERS[element] for element in self.elements)

    def signals(self) -> tuple:
        """The scan as a user would load it.

        Returns
        -------
        maps : list of hyperspy.signals.Signal2D
            One calibrated map per element, its symbol in the title and in ``metadata.Sample.elements``.
        haadf : hyperspy.signals.Signal2D
            The HAADF image on the same axes.
        """
        sources = zip(self.elements, self.maps, strict=True)
        return [self._signal(data, element, element) for element, data in sources], self._signal(self.haadf, "HAADF")

    def _signal(self, data, title, element=None):
        import hyperspy.api as hs

        quantity = "Intensity (a.u.)" if element is None else "X-ray counts ()"
        metadata = {"General": {"title": title}, "Signal": {"quantity": quantity}}
        metadata["Sample"] = {"description": self.title}
        if element is not None:
            metadata["Sample"]["elements"] = [element]
        # a copy: what is done to a signal must not reach the phantom
        return hs.signals.Signal2D(data.copy(), axes=self._axes(), metadata=metadata)

    def _axes(self):
        sizes = zip("yx", self.haadf.shape, strict=True)
        return [{"name": name, "size": size, "scale": self.pixel_size_nm, "units": "nm"} for name, size in sizes]


def core_shell(
    shape: tuple = (128, 128),
    *,
    counts: float = 15.0,
    haadf_snr: float = 50.0,
    pixel_size_nm: float = 0.5,
    seed: int = 0,
) -> Phantom:
    """Iron oxide cores (Fe3O4) in platinum shells, and two small platinum particles, in vacuum.

    Counts are proportional to the number of atoms in the beam, with the same factor for all elements,
    so that count ratios are atomic ratios: where there is oxide, the true Fe/O is 3/4.

    Parameters
    ----------
    shape
        ``(ny, nx)`` in pixels, square or not.
    counts
        Expected counts in the brightest pixel of the strongest map, > 0. Fewer counts, more noise.
    haadf_snr
        Brightest HAADF pixel over the standard deviation of the Gaussian noise; ``np.inf`` for none.
    pixel_size_nm
        Edge of a pixel in nm.
    seed
        Of the noise; the truth does not depend on it.

    Raises
    ------
    ValueError
        For a shape that is not two sizes of at least 8, or counts, SNR or pixel size not above 0.
    """
    oxide, platinum = _core_shell_thickness(_checked_shape(shape))
    # atoms per nm3: Fe3O4 has 8 formula units in (0.8396 nm)**3, platinum 4 atoms in (0.3924 nm)**3
    formula_units = 8 / 0.8396**3 * oxide
    atoms = np.stack([4 / 0.3924**3 * platinum, 3 * formula_units, 4 * formula_units])
    title = "Fe3O4 cores in Pt shells (phantom)"
    return _acquire(title, ("Pt", "Fe", "O"), atoms, counts, haadf_snr, pixel_size_nm, seed)


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB: ``10 log10(max(truth)**2 / mean((image - truth)**2))``.

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


def _checked_shape(shape):
    if len(shape) != 2 or min(shape) < 8:
        raise ValueError(f"shape is {tuple(shape)}: a phantom needs (ny, nx), both at least 8 pixels.")
    return tuple(int(size) for size in shape)


def _core_shell_thickness(shape):
    """Projected thickness of oxide and of platinum, in units of the shorter side, each ``(ny, nx)``."""
    oxide, platinum = np.zeros(shape), np.zeros(shape)
    for y, x, radius, core in _PARTICLES:
        distance = _distance(shape, y, x)
        inside = _chord(distance, core * radius)
        oxide += inside
        platinum += _chord(distance, radius) - inside
    return oxide, platinum


def _distance(shape, y, x):
    """Distance of every pixel centre to a point (fractions of height and width), in shorter sides."""
    rows, columns = (np.arange(size) + 0.5 for size in shape)
    return np.hypot(rows[:, None] - y * shape[0], columns - x * shape[1]) / min(shape)


def _chord(distance, radius):
    """Path of the beam through a sphere."""
    return 2 * np.sqrt(np.maximum(radius**2 - distance**2, 0))


def _acquire(title, elements, atoms, counts, haadf_snr, pixel_size_nm, seed):
    """Scan projected ``atoms`` (n, ny, nx): Poisson maps and a HAADF image by the incoherent law."""
    for name, value in {"counts": counts, "haadf_snr": haadf_snr, "pixel_size_nm": pixel_size_nm}.items():
        if not value > 0:
            raise ValueError(f"{name} is {value!r}: it must be above 0.")
    rng = np.random.default_rng(seed)
    truth = atoms * (counts / atoms.max())
    weights = [ATOMIC_NUMBERS[element] ** HAADF_EXPONENT for element in elements]
    haadf = np.tensordot(weights, truth, 1)
    haadf = haadf / haadf.max()
    maps = rng.poisson(truth).astype(np.uint16)
    haadf = haadf + rng.normal(0, 1, haadf.shape) / haadf_snr
    return Phantom(title, tuple(elements), truth, maps, haadf, float(pixel_size_nm))
