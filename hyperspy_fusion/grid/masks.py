"""Which pixels of a scan count: numbers that no mask leaves out and that the detector could measure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperspy_fusion.fusion.terms.haadf_model import saturated
from hyperspy_fusion.grid.axes import check_same_shape, image_array, spatial_axes, warn

# a mask that leaves out more is likely meant the other way round
_MUCH = 0.5


@dataclass(frozen=True)
class Valid:
    """True where a pixel counts.

    Attributes
    ----------
    maps
        (n, ny, nx) bool.
    haadf
        (ny, nx) bool.
    """

    maps: np.ndarray
    haadf: np.ndarray

    @classmethod
    def everywhere(cls, shape):
        """All pixels of maps of ``shape`` (n, ny, nx), which take no memory."""
        return cls(np.broadcast_to(True, shape), np.broadcast_to(True, shape[1:]))

    def of(self, chosen):
        """For some of the maps."""
        return Valid(self.maps[chosen], self.haadf)


def mask_array(mask, axes):
    """A mask as an array (ny, nx) of its own, True where a pixel is left out; None stays None.

    Parameters
    ----------
    mask
        A bool array (ny, nx), or a HyperSpy signal of one on the same pixels.
    axes
        Of y and x of the maps, as :func:`~hyperspy_fusion.grid.axes.spatial_axes` returns them.

    Raises
    ------
    ValueError, TypeError
        For another shape or anything but bool.
    """
    if mask is None:
        return None
    if hasattr(mask, "axes_manager"):
        check_same_shape(axes, spatial_axes(mask), "the maps", "the mask", by_keyword=False)
        mask = image_array(mask)
    mask = np.array(mask)
    if mask.dtype != bool:
        raise TypeError(
            f"mask has dtype {mask.dtype}: it must be bool, True where a pixel is left out, such as haadf > 60000."
        )
    shape = tuple(axis["size"] for axis in axes)
    if mask.shape != shape:
        raise ValueError(f"mask has shape {mask.shape} and the maps {shape} (y, x): give one value for each pixel.")
    return mask


def find_valid(elements, maps, haadf, mask=None):
    """Pixels that count, and sentences about those that do not, logged.

    Parameters
    ----------
    elements
        Names of the maps.
    maps, haadf
        (n, ny, nx) and (ny, nx).
    mask
        (ny, nx), True where a pixel is left out, of maps and HAADF; None leaves out none.

    Returns
    -------
    Valid, list of str

    Raises
    ------
    ValueError
        Where nothing is left of a map or of the HAADF image.
    """
    keep = np.ones(haadf.shape, dtype=bool) if mask is None else ~mask
    numbers, ceiling = np.isfinite(haadf), saturated(haadf)
    valid = Valid(np.isfinite(maps) & keep, numbers & keep & ~ceiling)
    _refuse_empty(elements, valid)
    sentences = [
        _about_mask(keep),
        _about_maps(elements, np.count_nonzero(keep & ~np.isfinite(maps), axis=(1, 2))),
        _about_haadf(np.count_nonzero(keep & ~numbers), "NaN or infinite"),
        _about_haadf(np.count_nonzero(keep & ceiling), "saturated"),
    ]
    sentences = [sentence for sentence in sentences if sentence]
    for sentence in sentences:
        warn(sentence)
    return valid, sentences


def is_constant(maps, valid):
    """For each map, whether all its valid pixels are equal: it then says nothing of where its element is."""
    return np.array([image[keep].min() == image[keep].max() for image, keep in zip(maps, valid, strict=True)])


def _refuse_empty(elements, valid):
    empty = [e for e, keep in zip(elements, valid.maps, strict=True) if not keep.any()]
    what = f"map of {', '.join(empty)}" if empty else "" if valid.haadf.any() else "HAADF image"
    if what:
        raise ValueError(
            f"No pixel of the {what} is left to count, all being masked, NaN or saturated: leave it out or correct the "
            "mask, in which True leaves a pixel out."
        )


def _about_mask(keep):
    part = 1 - keep.mean()
    if part <= _MUCH:
        return ""
    return f"The mask leaves out {part:.0%} of the pixels: check that True is where a pixel is to be left out."


def _about_maps(elements, numbers):
    listed = ", ".join(f"{e} ({number})" for e, number in zip(elements, numbers, strict=True) if number)
    if not listed:
        return ""
    return f"Pixels that are NaN or infinite are left out and filled in from those around them, in the map of {listed}."


def _about_haadf(number, what):
    if not number:
        return ""
    return (
        f"The HAADF image is {what} in {number} pixel{'s' if number > 1 else ''}, where it is left out and the maps "
        "are not."
    )
