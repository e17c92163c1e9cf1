"""The measured arrays of one scan, the one container that is handed from the methods to the terms."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from hyperspy_fusion.fusion.spectra.scan_spectra import ScanSpectra

# differences between pixels below this part of their values are those of resampling one value
_ROUNDING = 1e-10
# fields of ScanData with a value for each pixel
_OF_PIXELS = ("maps", "haadf", "valid", "haadf_valid", "background", "variance")


@dataclass(frozen=True)
class ElasticImage:
    """An elastic image beside the HAADF image.

    Attributes
    ----------
    name
        For messages and for the metadata.
    image, valid
        (ny, nx), as ``haadf`` and ``haadf_valid`` of :class:`ScanData`.
    """

    name: str
    image: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class ScanData:
    """Maps and HAADF image as measured, and their valid pixels; maps that are constant are not in it.

    Attributes
    ----------
    elements, atomic_numbers
        n names, for messages, and n atomic numbers.
    maps
        (n, ny, nx), in any units; anything, NaN included, in pixels that are not valid.
    haadf
        (ny, nx), in any units; anything in pixels that are not valid.
    valid, haadf_valid
        (n, ny, nx) and (ny, nx) bool: valid pixels of the maps and of the HAADF image.
    background, variance
        (n, ny, nx) noise metadata of the maps, in their units and in squared units; None where there are none.
    out_of_window
        (B, ny, nx) out-of-window counts of the spectra that the maps were made from; None where there are none.
    spectra
        The :class:`~hyperspy_fusion.fusion.spectra.scan_spectra.ScanSpectra` that a model is fitted to. ``maps`` are
        estimates from it, pixel by pixel. None for maps of windows.
    given
        Names of all maps that were given, those that are not in it included; empty for the same as ``elements``.
    further
        Further elastic images, each an :class:`ElasticImage`.
    """

    elements: list
    atomic_numbers: list
    maps: np.ndarray
    haadf: np.ndarray
    valid: np.ndarray
    haadf_valid: np.ndarray
    background: np.ndarray | None = None
    variance: np.ndarray | None = None
    out_of_window: np.ndarray | None = None
    spectra: ScanSpectra | None = None
    given: list = field(default_factory=list)
    further: tuple = ()

    @classmethod
    def of(cls, maps, haadf, atomic_numbers, *, elements=None, valid=None, haadf_valid=None, **noise_metadata):
        """From arrays; all pixels are valid and elements are ``map 0``, ``map 1``, ... where they are not given."""
        return cls(
            elements=[f"map {i}" for i in range(len(maps))] if elements is None else list(elements),
            atomic_numbers=list(atomic_numbers),
            maps=maps,
            haadf=haadf,
            valid=np.broadcast_to(True if valid is None else valid, maps.shape),
            haadf_valid=np.broadcast_to(True if haadf_valid is None else haadf_valid, haadf.shape),
            **noise_metadata,
        )

    def filled(self):
        """The same scan with maps and HAADF image as float64, 0 in pixels that are not valid."""
        maps = np.where(self.valid, self.maps, 0).astype(np.float64, order="C")
        haadf = np.where(self.haadf_valid, self.haadf, 0).astype(np.float64, order="C")
        further = [
            replace(one, image=np.where(one.valid, one.image, 0).astype(np.float64, order="C")) for one in self.further
        ]
        return replace(self, maps=maps, haadf=haadf, further=tuple(further))

    def with_image(self, k):
        """The same scan with elastic image k alone, the first of which is the HAADF image."""
        if k == 0:
            return self if not self.further else replace(self, further=())
        one = self.further[k - 1]
        return replace(self, haadf=one.image, haadf_valid=one.valid, further=())

    def cropped(self, window):
        """The scan on the pixels of two slices (y, x), without its spectra."""
        arrays = {name: crop_of(getattr(self, name), window) for name in _OF_PIXELS}
        further = [
            replace(one, **{n: crop_of(getattr(one, n), window) for n in ("image", "valid")}) for one in self.further
        ]
        return replace(self, **arrays, out_of_window=None, spectra=None, further=tuple(further))

    def replaced(self, k, image):
        """The same scan with another elastic image k (ny, nx)."""
        if k == 0:
            return replace(self, haadf=image)
        further = list(self.further)
        further[k - 1] = replace(further[k - 1], image=image)
        return replace(self, further=tuple(further))

    @property
    def has_contrast(self):
        """Whether the valid pixels of the HAADF image differ."""
        return has_contrast(self.haadf, self.haadf_valid)

    @property
    def valid_in_all(self):
        """(ny, nx) bool: pixels that are valid in all maps and in the HAADF image."""
        return self.valid.all(axis=0) & self.haadf_valid

    @property
    def systematic(self):
        """(n,) relative errors of the maps by a model of the spectra; None for maps of windows."""
        if self.spectra is None:
            return None
        found = dict(zip(self.spectra.elements, self.spectra.systematic, strict=True))
        return np.array([found[element] for element in self.elements])

    def means(self):
        """(n,) means of the maps over their valid pixels."""
        return self.means_of(self.maps)

    def means_of(self, values):
        """(n,) means over the valid pixels of ``values``, (n, 1, 1) or (n, ny, nx)."""
        return np.mean(np.broadcast_to(values, self.maps.shape), axis=(1, 2), where=self.valid)

    def net(self, background):
        """(n, ny, nx) maps less a background, (n, 1, 1) or (n, ny, nx), with the mean in pixels that are not valid."""
        net = self.maps - background
        return np.where(self.valid, net, column(self.means_of(net)))

    def per_map(self, name, value):
        """(n,) values of a setting ``name`` that is one number, one per map given, or a dictionary by element.

        Raises
        ------
        ValueError
            For another number of values, and for a dictionary without one of the elements.
        """
        given = self.given or self.elements
        if isinstance(value, dict):
            missing, unknown = [e for e in self.elements if e not in value], [e for e in value if e not in given]
            if unknown:
                raise ValueError(
                    f"{name} has a value for {', '.join(unknown)}, of which there is no map: give them for "
                    f"{', '.join(given)}."
                )
            if missing:
                raise ValueError(
                    f"{name} has {', '.join(value)} and no value for {', '.join(missing)}: give one for each map."
                )
            return np.array([value[e] for e in self.elements], dtype=np.float64)
        value = np.asarray(value, dtype=np.float64)
        if not value.ndim:
            return np.full(len(self.elements), value)
        if len(value) != len(given):
            raise ValueError(
                f"{name} has {len(value)} values and there are {len(given)} maps ({', '.join(given)}): give one number "
                f"for all, one for each in this order, or a dictionary {{{given[0]!r}: ...}}."
            )
        return np.array([value[given.index(e)] for e in self.elements])


def has_contrast(image, valid):
    """Whether the valid pixels of an image (ny, nx) differ: else it shows nothing of where an element is."""
    seen = image[valid]
    if not seen.size:
        return False
    low, high = float(seen.min()), float(seen.max())
    return high - low > _ROUNDING * max(abs(low), abs(high))


def column(values):
    """Values (n,) as (n, 1, 1), to go with maps."""
    return np.asarray(values)[:, None, None]


def crop_of(values, window):
    """Two slices (y, x) of values of pixels, C-contiguous; what is None or one value for all pixels stays as it is."""
    if values is None or values.shape[-2:] == (1, 1):
        return values
    return np.ascontiguousarray(values[(..., *window)])


def block_sums(array):
    """Sums over squares of 2 x 2 pixels of the last two axes, as floats; at odd edges of what is left of them."""
    ny, nx = (size // 2 for size in array.shape[-2:])
    rows = array[..., ::2, :].astype(np.result_type(array, np.float32))
    rows[..., :ny, :] += array[..., 1::2, :]
    sums = rows[..., ::2].copy()
    sums[..., :nx] += rows[..., 1::2]
    return sums
