"""Validity masks: finite, unmasked, unsaturated pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import INFORMATION, Diagnostic
from hyperspy_fusion.fusion.checks import LARGEST, SMALLEST
from hyperspy_fusion.fusion.terms.haadf_model import saturated
from hyperspy_fusion.fusion.terms.scan_data import has_contrast
from hyperspy_fusion.grid.axes import Axes, check_same_shape, spatial_axes
from hyperspy_fusion.grid.images import image_array

# a mask that leaves out more is likely meant the other way round
_MUCH = 0.5
# part of the HAADF image below which saturated pixels, which are left out, change nothing for the user
_FEW_SATURATED = 0.05


@dataclass(frozen=True)
class Valid:
    """True where a pixel of the maps (n, ny, nx) and of the HAADF image (ny, nx) is valid."""

    maps: np.ndarray
    haadf: np.ndarray

    @classmethod
    def everywhere(cls, shape):
        """All pixels of maps of ``shape`` (n, ny, nx), which take no memory."""
        return cls(np.broadcast_to(True, shape), np.broadcast_to(True, shape[1:]))

    def of(self, chosen):
        """For some of the maps."""
        return Valid(self.maps[chosen], self.haadf)


def mask_array(mask: Any, axes: Axes) -> np.ndarray | None:
    """A mask as an array (ny, nx) of its own, True where a pixel is left out; None stays None.

    It is a bool array, or a HyperSpy signal of one on the same pixels as the maps, whose `axes` are those of
    :func:`~hyperspy_fusion.grid.axes.spatial_axes`.
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


def find_valid(
    elements: Sequence[str],
    maps: np.ndarray,
    haadf: np.ndarray,
    mask: np.ndarray | None = None,
    ceiling: float | None = None,
) -> tuple[Valid, list[Diagnostic]]:
    """Valid pixels of maps (n, ny, nx) and HAADF image (ny, nx), and diagnostics of those that are not.

    `mask` (ny, nx) is True where a pixel is left out, of both. `ceiling` is the value of saturated pixels of the image,
    NaN for none; None finds it. Codes: ``"mask-leaves-out-most"``,
    ``"missing-map-pixels"``, ``"missing-haadf-pixels"`` and ``"saturated-haadf-pixels"``. ValueError where no pixel of
    a map is valid.
    """
    keep = np.ones(haadf.shape, dtype=bool) if mask is None else ~mask
    of_maps = np.isfinite(maps) & keep
    empty = [e for e, own in zip(elements, of_maps, strict=True) if not own.any()]
    if empty:
        raise ValueError(
            f"No pixel of the map of {', '.join(empty)} is left to count, all being masked or NaN: leave it out or "
            "correct the mask, in which True leaves a pixel out."
        )
    found = []
    if (left_out := 1 - keep.mean()) > _MUCH:
        sentence = f"The mask leaves out {left_out:.0%} of the pixels: check that True is where a pixel is left out."
        found.append(Diagnostic("mask-leaves-out-most", sentence))
    numbers = np.count_nonzero(keep & ~np.isfinite(maps), axis=(1, 2))
    if missing := {e: number for e, number in zip(elements, numbers, strict=True) if number}:
        listed = ", ".join(f"{element} ({number})" for element, number in missing.items())
        sentence = (
            "Pixels that are NaN or infinite are left out and filled in from those around them, in the map of "
            f"{listed}."
        )
        found.append(Diagnostic("missing-map-pixels", sentence, elements=tuple(missing)))
    check_magnitudes(elements, maps, of_maps)
    seen, about = find_valid_image(haadf, mask, ceiling)
    return Valid(of_maps, seen), found + about


def find_valid_image(
    image: np.ndarray, mask: np.ndarray | None = None, ceiling: float | None = None, name: str = "HAADF"
) -> tuple[np.ndarray, list[Diagnostic]]:
    """Valid pixels (ny, nx) of an elastic image and diagnostics of the others, as of :func:`find_valid`."""
    keep = np.ones(image.shape, dtype=bool) if mask is None else ~mask
    finite, at_ceiling = np.isfinite(image), saturated(image) if ceiling is None else image == ceiling
    valid, found = finite & keep & ~at_ceiling, []
    for code, kind, bad in (("missing", "NaN or infinite", ~finite), ("saturated", "saturated", at_ceiling)):
        # an image without contrast is not used at all, which is reported with the fit
        if (number := np.count_nonzero(keep & bad)) and has_contrast(image, valid):
            pixels = "1 pixel" if number == 1 else f"{number} pixels"
            sentence = f"The {name} image is {kind} in {pixels}, where it is left out and the maps are not."
            is_rare = code == "saturated" and number <= _FEW_SATURATED * keep.sum()
            found.append(Diagnostic(f"{code}-haadf-pixels", sentence, INFORMATION if is_rare else ""))
    check_magnitudes([name], [image], [valid])
    return valid, found


def check_magnitudes(names: Sequence[str], images: Any, valid: Any) -> None:
    """Raise ValueError for an image whose largest valid value, 0 aside, leaves no room for squares and quotients."""
    for name, image, keep in zip(names, images, valid, strict=True):
        largest = max(abs(float(end(image, where=keep, initial=0))) for end in (np.min, np.max))
        if largest and not SMALLEST <= largest <= LARGEST:
            raise ValueError(
                f"The {name} image has values up to {largest:.3g}, outside of the {SMALLEST:g} to {LARGEST:g} that can "
                f"be fused: multiply it by 1e{-round(np.log10(largest))} first, and set wrong pixels to NaN."
            )
