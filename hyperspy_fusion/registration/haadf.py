"""A HAADF image that is finer, coarser, cropped, offset or shifted, on the pixels of the maps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.diagnostics import INFORMATION, Diagnostic, report
from hyperspy_fusion.fusion.checks import check_choice, check_interval
from hyperspy_fusion.fusion.registration.resampling import LEAST_COVERAGE, Placement, coverage, filled, resampled
from hyperspy_fusion.fusion.registration.shift import FEWEST_PIXELS, LARGEST_ERROR, Shift, find_shift, slopes
from hyperspy_fusion.fusion.terms.haadf_model import saturated, z_weights
from hyperspy_fusion.fusion.terms.noise_estimation import estimate_variance
from hyperspy_fusion.grid.axes import begins_elsewhere, check_same_scan, one_has_no_offset, placements, spatial_axes
from hyperspy_fusion.grid.images import image_array, image_signal
from hyperspy_fusion.grid.masks import check_magnitudes, mask_array
from hyperspy_fusion.identify.elements import atomic_number
from hyperspy_fusion.maps.base import SourceRequest
from hyperspy_fusion.maps.sources import read_maps
from hyperspy_fusion.maps.stack import ScanMaps

_logger = logging.getLogger(__name__)

# how the image comes to the pixels of the maps: where its calibration puts it, or moved by a measured shift
CALIBRATION, SHIFT = "calibration", "shift"
# exponent on the atomic number in the sum of maps that the image is compared with: see docs/scans.md
REGISTRATION_GAMMA = 1.7
# standard deviations in pixels of the HAADF image, tried in turn: the first makes up for interpolation, which smooths
# noise more at half a pixel than at whole ones; the others are for images whose noise hides their structure
_SMOOTHINGS = (0.7, 1.5, 3.0)
# variance of the noise in pixels of the maps over that of white noise: above it, the image was magnified
_CORRELATED = 4.0
# part of a Gaussian that must lie on pixels of the image: beyond its edges there is nothing to smooth with
_INSIDE = 0.98
# largest part of a pixel that saturated pixels may cover
_SATURATED_PART = 1e-3
# pixels in the search for a shift, which takes several arrays of them, and distance of the image in pixels
_LARGEST_SEARCH = 2**24


class MatchedHaadf(NamedTuple):
    """A HAADF image on the pixels of the maps, and how it came there.

    Attributes
    ----------
    haadf : Signal2D
        On the axes of the maps; NaN where there is no HAADF image, or where it is saturated.
    shift : numpy.ndarray
        ``(2,)`` along y and x in pixels of the maps, by which the image was moved from where its axes put it.
    shift_error : numpy.ndarray
        ``(2,)`` standard errors. Infinite along an axis in which the shift is not determined, NaN where it was not
        measured.
    overlap : float
        Part of the pixels of the maps that the image covers.
    correlation : float
        Of the Z-weighted sum of the maps with the image, each pixel weighted by its noise. Low where counts are few;
        NaN where no shift was measured.
    sentence : str
        All of this in words.
    diagnostics : list of Diagnostic
        Codes ``"haadf-coarser"``, ``"haadf-covers-part"``, ``"offset-differs"``, ``"shift-ambiguous"`` and
        ``"shift-undetermined"``.
    """

    haadf: Any
    shift: np.ndarray
    shift_error: np.ndarray
    overlap: float
    correlation: float
    sentence: str
    diagnostics: list[Diagnostic]


def match_haadf(
    haadf: Any,
    maps: Any,
    elements: Sequence[str] | None = None,
    *,
    register: str = SHIFT,
    gamma: float = REGISTRATION_GAMMA,
    mask: Any = None,
) -> MatchedHaadf:
    """
    Bring a HAADF image that is finer, coarser, cropped, offset or shifted to the pixels of the maps.

    Where the pixels of the image are finer than those of the maps, they are averaged, weighted by area. Else the image
    is interpolated by a smooth function whose means over its own pixels are the measured values. Nothing is
    extrapolated.

    Parameters
    ----------
    haadf : BaseSignal
        Calibrated as the maps are, or showing the same field of view. Not changed.
    maps : list, dict, BaseSignal or exspy model
        As for :func:`hyperspy_fusion.element_maps`; measured, and all of the elements that make contrast.
    elements : list of str, optional
        As for :func:`hyperspy_fusion.element_maps`.
    register : {"shift", "calibration"}
        ``"shift"`` measures by how much the image is shifted against the maps, by its correlation with their sum,
        weighted by ``Z**gamma``. ``"calibration"`` trusts the axes.
    gamma : float
        Exponent of that sum, in (0, 4]. The shift depends little on it.
    mask : array or BaseSignal of bool, optional
        ``(ny, nx)``, True where a pixel of the maps is left out.

    Returns
    -------
    MatchedHaadf
        Named tuple: haadf, shift, shift_error, overlap, correlation, sentence, diagnostics.

    Raises
    ------
    ValueError
        The position of the image is unknown, it does not overlap with the maps, or no shift makes the two alike.

    Examples
    --------
    >>> import hyperspy_fusion as hf
    >>> maps, haadf = hf.data.core_shell().signals()
    >>> matched = hf.match_haadf(haadf.isig[2:, 5:], maps)
    >>> matched.haadf
    <Signal2D, title: HAADF, dimensions: (|128, 128)>
    """
    check_choice("register", register, (SHIFT, CALIBRATION))
    check_interval("gamma", gamma, 0, 4)
    maps = read_maps(maps, SourceRequest(elements, allow_nan=True))
    matched, _ = _matched(haadf, maps, register, mask_array(mask, maps.axes), gamma)
    report(matched.diagnostics)
    return matched


def haadf_on_grid(
    haadf: Any, maps: ScanMaps, register: bool | str, mask: np.ndarray | None, allow_missing: bool
) -> tuple[Any, dict, list[Diagnostic]]:
    """The HAADF image as a Signal2D of its own on the axes of the maps, metadata of the registration, and diagnostics.

    `register` is False for an image that is on the pixels of the maps already; for the others see `match_haadf`. `mask`
    (ny, nx) is True where pixels are left out. Without `allow_missing`, pixels without a value are an error.
    """
    if not register:
        image = image_array(haadf, allow_nan=allow_missing).copy()
        found = check_same_scan(maps.axes, spatial_axes(haadf))
        return image_signal(image, maps.axes, haadf.metadata.General.title), {}, found
    matched, pixel = _matched(haadf, maps, register, mask, keep_saturated=not allow_missing)
    if not allow_missing:
        _refuse_missing(matched.haadf.data)
    keys = ("shift", "shift_error", "overlap", "correlation", "sentence")
    metadata = {key: getattr(matched, key) for key in keys} | {"haadf_pixel": pixel}
    return matched.haadf, metadata, matched.diagnostics


def _matched(haadf, maps, register, mask, gamma=REGISTRATION_GAMMA, keep_saturated=False):
    """`MatchedHaadf`, and the (2,) size of a pixel of the image in those of the maps; its sentence is logged."""
    image, pixels = image_array(haadf, allow_nan=True), maps.signal.data
    if not np.isfinite(image).any():
        raise ValueError("The HAADF image has no pixel that is a number: pass that of the scan.")
    images = [*pixels, image]
    check_magnitudes([*maps.signal.elements, "HAADF"], images, [np.isfinite(one) for one in images])
    placed = placements(maps.axes, spatial_axes(haadf))
    source, found = ImageSource(image, placed, pixels.shape[1:]), None
    if register == SHIFT:
        found = found_shift(source, maps.signal.elements, pixels, mask, gamma)
    result = source.final(np.zeros(2) if found is None else found.shift, keep_saturated)
    about, diagnostics = outcome(maps.axes, haadf, placed, found, float(np.isfinite(result).mean()))
    matched = MatchedHaadf(
        haadf=image_signal(result, maps.axes, haadf.metadata.General.title), **about, diagnostics=diagnostics
    )
    return matched, np.array([p.step for p in placed])


def outcome(
    map_axes: Sequence[dict], haadf: Any, placed: Sequence[Placement], found: Shift | None, overlap: float
) -> tuple[dict, list[Diagnostic]]:
    """What :class:`MatchedHaadf` has beside the image, by name, and diagnostics; the sentence is logged.

    `found` is None where the image was placed by its axes, and `overlap` the part of the maps that it covers then.
    """
    if not overlap:
        raise ValueError(
            "The HAADF image covers no pixel of the maps where their axes put it: pass register='shift' to find it, or "
            "correct the offset of one (`axes_manager[...].offset`)."
        )
    shift = np.zeros(2) if found is None else found.shift
    sentence = _in_words(placed, found, shift, overlap)
    _logger.info(sentence)
    about = {
        "shift": shift,
        "shift_error": np.full(2, np.nan) if found is None else found.error,
        "overlap": overlap,
        "correlation": np.nan if found is None else float(found.correlation),
        "sentence": sentence,
    }
    return about, [*_about_offsets(map_axes, haadf, found), *_diagnostics(placed, found, overlap)]


class ImageSource:
    """A HAADF image (ny, nx) with missing pixels, to be sampled on the pixels of the maps at any shift.

    `placed` is where its pixels lie on those of the maps, which have the shape `shape`. `ceiling` is the value of its
    saturated pixels, NaN for none; None finds it in the image.
    """

    def __init__(
        self, image: np.ndarray, placed: Sequence[Placement], shape: tuple[int, ...], ceiling: float | None = None
    ):
        self.ceiling = saturated(image) if ceiling is None else image == ceiling
        self.present = np.isfinite(image)
        self.usable = self.present & ~self.ceiling
        self.image = filled(np.asarray(image, dtype=np.float64), self.present)
        self.placed, self.shape = placed, shape

    def final(self, shift, keep_saturated):
        """The image at a shift; NaN where it does not cover a pixel, or is saturated."""
        result = self._sampled(self.image, self.present, shift)
        if self.ceiling.any() and not keep_saturated:
            result[coverage(self.ceiling, self._at(shift), self.shape) > _SATURATED_PART] = np.nan
        return result

    def smooth(self, sigma, image=None):
        """A function of the shift that returns the smoothed image, NaN where it is missing or saturated."""
        from scipy.ndimage import gaussian_filter

        usable = gaussian_filter(self.usable.astype(np.float64), sigma, mode="constant") > _INSIDE
        return partial(self._sampled, gaussian_filter(self.image if image is None else image, sigma), usable)

    def _sampled(self, image, usable, shift, shape=None):
        placed, shape = self._at(shift), shape or self.shape
        result = resampled(image, placed, shape)
        result[coverage(usable, placed, shape) < LEAST_COVERAGE] = np.nan
        return result

    def _at(self, shift):
        return [placement.moved(by) for placement, by in zip(self.placed, shift, strict=True)]

    def whole(self, sample: Callable):
        """The whole image in pixels of the size of the maps', and the position of the first; None where too large."""
        first = np.floor([p.start for p in self.placed])
        if np.abs(first).max() > _LARGEST_SEARCH:
            return None
        shape = tuple(int(n) for n in np.ceil([p.end for p in self.placed]) - first)
        if np.prod(np.maximum(shape, self.shape)) > _LARGEST_SEARCH:
            return None
        return sample(-first, shape), first

    def number_of_pixels(self, reference):
        """Pixels on which image and reference can be compared at the lightest smoothing, on the start or corner."""
        sample, corner = self.smooth(self.smoothings()[0]), -np.array([p.start for p in self.placed])
        common = (reference + sum(slopes(sample, shift)) for shift in (np.zeros(2), corner))
        return max(np.count_nonzero(np.isfinite(image)) for image in common)

    def smoothings(self):
        """Standard deviations, in pixels of the image, to try in turn."""
        # the noise of a magnified image has the size of the pixels that it had before
        steps = np.array([placement.step for placement in self.placed])
        whole = self.whole(partial(self._sampled, self.image, self.usable))
        if steps.max() < 1 and whole is not None:
            white = estimate_variance(self.image, self.usable) * steps.prod()
            if estimate_variance(whole[0]) > _CORRELATED * white:
                return np.outer(_SMOOTHINGS, 1 / steps)
        return _SMOOTHINGS

    def slope_noise(self, sigma):
        """Variance that the noise of the image has in its slopes, from an image of noise treated the same way."""
        noise = np.random.default_rng(0).normal(size=self.image.shape)
        to_maps = -np.array([placement.start for placement in self.placed])
        found = (slope[np.isfinite(slope)] for slope in slopes(self.smooth(sigma, noise), to_maps))
        of_one = np.array([slope.var() if slope.size else 0.0 for slope in found])
        return of_one * estimate_variance(self.image, self.usable)


def found_shift(
    source: ImageSource,
    elements: Sequence[str],
    maps: np.ndarray,
    mask: np.ndarray | None,
    gamma: float = REGISTRATION_GAMMA,
) -> Shift:
    """The shift against maps (n, ny, nx), by the lightest smoothing that determines it in both directions, or in one.

    `mask` (ny, nx) is True where pixels are left out. ValueError where no shift makes image and maps alike.
    """
    # sum_i Z_i**gamma b_i, NaN where one of the maps is
    weights = z_weights([atomic_number(element) for element in elements], gamma)
    reference = np.tensordot(weights, maps.astype(np.float64), axes=1)
    if mask is not None:
        reference[mask] = np.nan

    found: Any = None
    for sigma in source.smoothings():
        sample = source.smooth(sigma)
        other = find_shift(reference, sample, source.whole(sample), tuple(source.slope_noise(sigma)))
        if found is None or len(other.undetermined) < len(found.undetermined):
            found = other
        if not len(found.undetermined):
            break
    if found.is_found:
        return found
    why = f"the two are not alike (correlation {found.correlation:.2f})"
    if (number := source.number_of_pixels(reference)) < FEWEST_PIXELS:
        raise ValueError(
            f"There are too few pixels to measure a shift of the HAADF image ({number} away from the edges, "
            f"{FEWEST_PIXELS} are needed): pass register='calibration'."
        )
    if found.correlation > 0 and len(found.undetermined) == 2:
        why = "the two have too little structure at these counts"
    raise ValueError(
        f"No shift of the HAADF image against the maps can be measured, for {why}: check that it is the image of this "
        "scan and that its heavy elements are among the maps, or pass register='calibration'."
    )


def _refuse_missing(image):
    present = np.isfinite(image)
    if present.all():
        return
    ranges = []
    for axis in (1, 0):
        places = np.flatnonzero(present.any(axis=axis))
        ranges.append((int(places[0]), int(places[-1]) + 1) if places.size else (0, 0))
    (top, bottom), (left, right) = ranges
    raise ValueError(
        f"The HAADF image covers {present.mean():.1%} of the maps, rows {top} to {bottom - 1} and columns {left} to "
        f"{right - 1}, and the published method needs every pixel: pass method='calibrated', which leaves the others "
        f"out, or crop to the covered part. Crop spectra and maps (x, y|) by "
        f"`.inav[{left}:{right}, {top}:{bottom}]` and maps (|x, y) by `.isig[{left}:{right}, {top}:{bottom}]`."
    )


# ---- in words and diagnostics --------------------------------------------------------------------


def _in_words(placed, found, shift, overlap):
    steps, where = [p.step for p in placed], "was placed by its calibration"
    if all(p.is_finer for p in placed):
        way = f"averaged, {1 / steps[0]:.3g} x {1 / steps[1]:.3g} (y, x) of its pixels to one of the maps"
    elif np.allclose(steps, 1):
        way = "interpolated where it lies between pixels"
    else:
        way = f"interpolated, its pixels being {steps[0]:.3g} x {steps[1]:.3g} (y, x) of those of the maps"
    if found is not None:
        errors = " and ".join(f"{s:+.2f} ± {e:.2f}" for s, e in zip(shift, found.error, strict=True))
        where = f"was shifted by {errors} pixels of the maps along y and x to match them"
    return f"The HAADF image {where} and {way}; it covers {overlap:.1%} of the maps."


def _about_offsets(map_axes, haadf, found):
    where = begins_elsewhere(map_axes, spatial_axes(haadf))
    sentence = f"{where}: the equal fields of view were laid edge on edge; check that they show the same area."
    if found is None:
        is_sure = one_has_no_offset(map_axes, spatial_axes(haadf))
    else:
        is_sure = not found.is_ambiguous and not len(found.undetermined)
    return [Diagnostic("offset-differs", sentence, INFORMATION if is_sure else "")] if where else []


def _diagnostics(placed, found, overlap):
    diagnostics = []
    coarse = max(p.step for p in placed)
    if coarse > 1 + 1e-6:
        sentence = (
            f"The HAADF image is coarser than the maps by {coarse:.3g} and was interpolated: it has no details finer "
            "than its own pixels."
        )
        diagnostics.append(Diagnostic("haadf-coarser", sentence))
    if overlap < 1:
        sentence = (
            f"The HAADF image covers {overlap:.1%} of the pixels of the maps: the others are fused without an image."
        )
        diagnostics.append(Diagnostic("haadf-covers-part", sentence))
    if found is not None and found.is_ambiguous:
        sentence = (
            "Several shifts make the HAADF image and the maps alike, as on a crystal lattice: the nearest to the "
            "calibration that is not clearly worse was taken; check it at an edge or a defect."
        )
        diagnostics.append(Diagnostic("shift-ambiguous", sentence))
    if found is not None and len(found.undetermined):
        y, x = found.undetermined[0]
        sentence = (
            f"The shift of the HAADF image along ({y:+.2f}, {x:+.2f}) (y, x) has an error above {LARGEST_ERROR} "
            "pixels, for lack of structure: in this direction the calibration is kept."
        )
        diagnostics.append(Diagnostic("shift-undetermined", sentence))
    return diagnostics
