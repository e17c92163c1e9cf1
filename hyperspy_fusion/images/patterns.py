"""A 4D-STEM scan: its patterns, their calibration and their centre."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperspy_fusion.grid.axes import UNCALIBRATED, Axes, axis_dicts
from hyperspy_fusion.grid.images import check_real, check_signal, image_signal

# names of units as pint reads them
_UNIT_NAMES = {"A": "angstrom", "Å": "angstrom", "Ang": "angstrom", "Angstrom": "angstrom"}
_INVERSE = re.compile(r"^(?:k_)?(?:1/(?P<below>\w+)|(?P<base>\w+?)\^?\{?[-⁻][1¹]\}?)$")


@dataclass(frozen=True)
class Patterns:
    """The patterns of a scan, ``(y, x, ky, kx)``.

    Attributes
    ----------
    signal
        As it was given.
    data
        Its array, in memory or of dask.
    scan, detector
        Axes of y and x, and of ky and kx.
    """

    signal: Any
    data: Any
    scan: Axes
    detector: Axes

    @classmethod
    def of(cls, signal: Any) -> Patterns:
        """Raise unless `signal` is a scan ``(x, y|kx, ky)`` of real numbers on uniform axes."""
        check_signal(signal)
        check_real(signal)
        manager = signal.axes_manager
        if (manager.navigation_dimension, manager.signal_dimension) != (2, 2):
            raise ValueError(
                f"{signal} is no 4D-STEM scan: expected patterns (x, y|kx, ky), made by "
                "`s.transpose(signal_axes=2)` where the last two axes are those of the detector."
            )
        axes = [
            sorted(some, key=lambda axis: axis.index_in_array)
            for some in (manager.navigation_axes, manager.signal_axes)
        ]
        order = [axis.index_in_array for some in axes for axis in some]
        data = signal.data.transpose(order) if order != [0, 1, 2, 3] else signal.data
        return cls(signal, data, *(axis_dicts(some, signal) for some in axes))

    def lazily(self):
        """The data as a dask array whose chunks are read once; NaN and infinite pixels of the patterns are 0."""
        import dask.array as da

        data = self.data if self.signal._lazy else da.from_array(self.data, chunks="auto", name=False)
        return data.map_blocks(_finite, dtype=data.dtype) if data.dtype.kind == "f" else data

    def sums(self, weights, show_progressbar=None):
        """(y, x, m) sums of each pattern times weights (m, ky, kx), in one pass over the data."""
        import dask.array as da

        data = self.lazily()
        chunks: Any = (*data.chunks[2:], len(weights))
        stacked = da.from_array(np.moveaxis(weights, 0, -1), chunks=chunks, name=False)
        return computed(da.tensordot(data, stacked, axes=((2, 3), (0, 1))), show_progressbar)

    def centre(self, given, units, show_progressbar=None):
        """Centre (ky, kx) in pixels: as given, or the zero of calibrated axes, or that of the mean pattern's mass."""
        if given is not None:
            return self._given_centre(given, units)
        zeros = [-axis["offset"] / axis["scale"] if axis["offset"] and axis["scale"] else -1 for axis in self.detector]
        if all(0 <= zero <= axis["size"] - 1 for zero, axis in zip(zeros, self.detector, strict=True)):
            return np.array(zeros)
        mean = computed(self.lazily().sum(axis=(0, 1), dtype=np.float64), show_progressbar)
        mean = np.clip(mean, 0, None)
        if not mean.any():
            raise ValueError(f"{self.signal} has no counts, and its centre cannot be found: pass other patterns.")
        return np.array([(np.arange(len(part)) * part).sum() / part.sum() for part in (mean.sum(1), mean.sum(0))])

    def _given_centre(self, given, units):
        if np.shape(given) != (2,) or not np.isfinite(np.asarray(given, float)).all():
            raise ValueError(f"centre is {given!r}: it must be two numbers (x, y) in {self.units(units)}.")
        pairs = zip(np.asarray(given, float)[::-1], self.detector, strict=True)
        if self.units(units) == "px":
            found = np.array([value for value, _ in pairs])
        else:
            found = np.array([(value - axis["offset"]) / axis["scale"] for value, axis in pairs])
        sizes = [axis["size"] for axis in self.detector]
        if not all(0 <= value <= size - 1 for value, size in zip(found, sizes, strict=True)):
            raise ValueError(
                f"centre is {given!r}, outside the patterns of {sizes[1]} x {sizes[0]} pixels: pass (x, y) in "
                f"{self.units(units)}."
            )
        return found

    def units(self, units=None):
        """Units of radii and centres: those of the axes where they are calibrated and None is given, else ``"px"``."""
        own = {str(axis["units"]).strip() for axis in self.detector}
        is_calibrated = own.isdisjoint(UNCALIBRATED) and all(axis["scale"] for axis in self.detector)
        if units is not None and units != "px" and {units} != own:
            raise ValueError(
                f"units is {units!r} and the axes of the patterns have {' and '.join(sorted(own))}: pass 'px', or None "
                "for those of the axes."
            )
        if units == "px" or not is_calibrated:
            return "px"
        if len(own) > 1:
            raise ValueError(
                f"The axes of the patterns have the units {' and '.join(sorted(own))}: give both the same "
                "(`s.axes_manager.signal_axes[0].units`)."
            )
        return own.pop()

    def distances(self, centre, units):
        """(ky, 1) and (1, kx) distances of the pixels from the centre, in pixels or in units of the axes."""
        lines = [
            (np.arange(axis["size"]) - at) * (1 if units == "px" else abs(axis["scale"]))
            for axis, at in zip(self.detector, centre, strict=True)
        ]
        return lines[0][:, None], lines[1][None, :]

    def microscope(self, name, given=None):
        """A value of the microscope as given, or of the metadata; None where there is none."""
        if given is not None:
            return given
        found = self.signal.metadata.get_item(f"Acquisition_instrument.TEM.{name}", None)
        return float(found) if isinstance(found, int | float | np.number) and found > 0 else None

    def frequencies_per_pixel(self, energy):
        """(ky, kx) pixel of the patterns in 1/nm, of the sign of the scale; None where it is not known."""
        found = [inverse_nm(axis["scale"], axis["units"], energy) for axis in self.detector]
        return None if None in found else np.array(found)

    def steps(self):
        """(y, x) step of the scan in nm, of the sign of the scale; None where it is not known."""
        found = [in_nm(axis["scale"], axis["units"]) if axis["scale"] else None for axis in self.scan]
        return None if None in found else np.array(found)

    def image(self, data, title, axes=None):
        """A Signal2D on the axes of the scan with the metadata of the microscope."""
        own = self.signal.metadata
        name = own.get_item("General.title", "")
        image = image_signal(data, self.scan if axes is None else axes, f"{title} of {name}" if name else title)
        if own.has_item("Acquisition_instrument"):
            image.metadata.set_item("Acquisition_instrument", own.Acquisition_instrument.as_dictionary())
        return image


def computed(array, show_progressbar=None):
    """The values of a dask array, with HyperSpy's progress bar."""
    from hyperspy.signals import BaseSignal

    lazy = BaseSignal(array).as_lazy()
    lazy.compute(close_file=False, show_progressbar=show_progressbar)
    return np.asarray(lazy.data)


def _finite(block):
    return np.nan_to_num(block, copy=True, nan=0, posinf=0, neginf=0) if isinstance(block, np.ndarray) else block


def in_nm(value, units):
    """A length in nm; None for other units."""
    return _converted(value, _named(units), "nm")


def inverse_nm(value, units, energy=None):
    """A spatial frequency in 1/nm, from that or from an angle and the beam energy in keV; None for other units."""
    text = str(units).strip().strip("$").replace(" ", "")
    inverse = _INVERSE.match(text)
    if inverse is not None:
        return _converted(value, f"1/{_UNIT_NAMES.get(*[inverse['below'] or inverse['base']] * 2)}", "1/nm")
    angle = None if energy is None else _converted(value, text, "rad")
    return None if angle is None else angle / wavelength(energy)


def _named(units):
    text = str(units).strip()
    return None if text in UNCALIBRATED else _UNIT_NAMES.get(text, text)


def _converted(value, units, to):
    import pint

    if units is None or units in UNCALIBRATED:
        return None
    try:
        quantity: Any = pint.get_application_registry().Quantity(value, units)  # the one HyperSpy uses
        return float(quantity.to(to).magnitude)
    except Exception:  # pint raises AttributeError, TypeError, TokenError, ... for what it cannot read
        return None


def wavelength(energy):
    """Relativistic wavelength of electrons in nm; the energy in keV."""
    from scipy.constants import c, e, h, m_e

    joule = energy * 1e3 * e
    return 1e9 * h / np.sqrt(2 * m_e * joule * (1 + joule / (2 * m_e * c**2)))
