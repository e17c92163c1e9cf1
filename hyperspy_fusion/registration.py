"""A HAADF image that is finer, coarser, cropped, offset or shifted, on the pixels of the maps."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic, report, warnings_of
from hyperspy_fusion.fusion.registration.resampling import LEAST_COVERAGE, coverage, filled, resampled
from hyperspy_fusion.fusion.registration.shift import LARGEST_ERROR, find_shift, slopes
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.terms.haadf_model import saturated, z_weights
from hyperspy_fusion.fusion.terms.noise_estimation import estimate_variance
from hyperspy_fusion.grid.axes import (
    axis_dicts,
    check_same_scan,
    placements,
    spatial_axes,
)
from hyperspy_fusion.grid.images import image_array
from hyperspy_fusion.grid.masks import Valid, is_constant, mask_array
from hyperspy_fusion.identify.elements import atomic_number
from hyperspy_fusion.maps.noise_metadata import noise_metadata
from hyperspy_fusion.maps.sources import element_maps
from hyperspy_fusion.methods.base import HOW, Scan
from hyperspy_fusion.results.fused_maps import image_signal

_logger = logging.getLogger(__name__)

# exponent on the atomic number in the sum of maps that the image is compared with: see docs/scans.md
REGISTRATION_GAMMA = 1.7
# Gaussians in pixels of the HAADF image: without the first, interpolation smooths noise more at half a pixel than at
# whole ones; the others are for images whose noise hides their structure
_SMOOTHINGS = (0.7, 1.5, 3.0)
# variance of the noise in pixels of the maps over that of white noise
_CORRELATED = 4.0
# duality gap of the fits that refine a shift: it moved no shift on phantoms by a tenth of its error
_FIT_TOL = 1e-2
# standard errors between the shift by the sum of the maps and the one by fits: beyond, one of the two is wrong
_PLAUSIBLE = 3.0
# part of a Gaussian that must lie on pixels of the image: beyond its edges there is nothing to smooth with
_INSIDE = 0.98
# what touches a pixel at the ceiling of the detector is too dark by more than this part of it
_SATURATED_PART = 1e-3
# pixels in the search for a shift, which takes several arrays of them
_LARGEST_SEARCH = 2**24


class MatchedHaadf(NamedTuple):
    """A HAADF image on the pixels of the maps, and what was done.

    Attributes
    ----------
    haadf : Signal2D
        On the axes of the maps; NaN where there is no HAADF image, or where it is saturated.
    shift : numpy.ndarray
        ``(2,)`` along y and x in pixels of the maps, by which the image was moved from where its axes put it.
    shift_error : numpy.ndarray
        ``(2,)`` standard errors from the counts; infinite along an axis the images say nothing of, NaN where nothing
        was measured.
    overlap : float
        Part of the pixels of the maps that the image covers.
    correlation : float
        Of the Z-weighted sum of the maps with the image, each pixel weighted by its noise. Low where counts are few;
        NaN where nothing was measured.
    sentence : str
        All of this in words.
    """

    haadf: Any
    shift: np.ndarray
    shift_error: np.ndarray
    overlap: float
    correlation: float
    sentence: str


def match_haadf(haadf, maps, elements=None, *, register=True, gamma=REGISTRATION_GAMMA, mask=None):
    """
    Bring a HAADF image that is finer, coarser, cropped, offset or shifted to the pixels of the maps.

    Where the pixels of the image are finer than those of the maps, they are averaged, weighted by area; else the image
    is interpolated by a smooth function whose means over its own pixels are what was measured. Nothing is extrapolated.

    Parameters
    ----------
    haadf : BaseSignal
        Calibrated as the maps are, or showing the same field of view. Not changed.
    maps : list, dict, BaseSignal or exspy model
        As for :func:`hyperspy_fusion.element_maps`; measured, and all of the elements that make contrast.
    elements : list of str, optional
        As for :func:`hyperspy_fusion.element_maps`.
    register : bool
        Measure by how much the image is shifted against the maps, from the maximum of its correlation with their sum,
        weighted by ``Z**gamma``, and from rough fits of the calibrated method, of which the mean is taken; else trust
        the calibrations.
    gamma : float
        Exponent of that sum. Only the place of the maximum counts, which depends little on it.
    mask : array or BaseSignal of bool, optional
        ``(ny, nx)``, True where a pixel of the maps is left out.

    Returns
    -------
    MatchedHaadf
        Named tuple: haadf, shift, shift_error, overlap, correlation, sentence.

    Raises
    ------
    ValueError
        Nothing tells where the image lies, it does not overlap with the maps, or no shift makes it like them.

    Examples
    --------
    >>> import hyperspy_fusion as hf
    >>> maps, haadf = hf.data.core_shell().signals()
    >>> matched = hf.match_haadf(haadf.isig[2:, 5:], maps)
    >>> matched.haadf
    <Signal2D, title: HAADF, dimensions: (|128, 128)>
    """
    maps = element_maps(maps, elements, allow_nan=True)
    mask = mask_array(mask, axis_dicts(maps.axes_manager.signal_axes, maps))
    on_grid = matched(haadf, maps, register, mask, gamma=gamma)
    signal = image_signal(on_grid.image, maps, haadf.metadata.General.title)
    return MatchedHaadf(signal, on_grid.shift, on_grid.error, on_grid.overlap, on_grid.correlation, on_grid.sentence)


@dataclass(frozen=True)
class OnGrid:
    """`MatchedHaadf` as an array, with what is for the metadata and warnings."""

    image: np.ndarray
    shift: np.ndarray
    error: np.ndarray
    overlap: float
    correlation: float
    pixel: np.ndarray
    sentence: str
    warnings: list

    def metadata(self):
        """For ``metadata.Fusion.registration``: flat arrays and Python scalars."""
        return {
            "shift": self.shift,
            "shift_error": self.error,
            "overlap": self.overlap,
            "correlation": self.correlation,
            "haadf_pixel": self.pixel,
            "sentence": self.sentence,
        }


def haadf_on_grid(haadf, maps, register, resample, mask, takes_gaps):
    """The HAADF image on the pixels of maps, brought there only if asked.

    Parameters
    ----------
    haadf, maps
        A signal, and an ElementMaps.
    register, resample : bool
        See `hyperspy_fusion.fuse`.
    mask
        (ny, nx) bool or None.
    takes_gaps : bool
        Whether NaN may be in the result.

    Returns
    -------
    image : numpy.ndarray
        (ny, nx), of its own.
    metadata : dict
        For ``metadata.Fusion.registration``, empty where nothing was asked.
    warnings : list of str
    """
    if not (register or resample):
        axes = axis_dicts(maps.axes_manager.signal_axes, maps)
        image = image_array(haadf, allow_nan=takes_gaps)
        found = check_same_scan(axes, spatial_axes(haadf))
        report(found)
        return image.copy(), {}, warnings_of(found)
    on_grid = matched(haadf, maps, register, mask, keep_saturated=not takes_gaps)
    if not takes_gaps:
        _refuse_gaps(on_grid.image)
    return on_grid.image, on_grid.metadata(), on_grid.warnings


def matched(haadf, maps, register, mask=None, gamma=REGISTRATION_GAMMA, keep_saturated=False):
    """`OnGrid` of a HAADF image and an ElementMaps; logged."""
    image = image_array(haadf, allow_nan=True)
    placed = placements(axis_dicts(maps.axes_manager.signal_axes, maps), spatial_axes(haadf))
    source = _Source(image, placed, maps.data.shape[1:])
    found = _refined(_found_shift(source, maps, mask, gamma), source, maps, mask, gamma) if register else None
    shift = np.zeros(2) if found is None else found.shift
    result = source.final(shift, keep_saturated)
    covered = np.isfinite(result)
    if not covered.any():
        raise ValueError(
            "The HAADF image covers no pixel of the maps where their axes put it: pass register=True to find it, or "
            "correct the offset of one (`axes_manager[...].offset`)."
        )
    sentence = _in_words(source, found, shift, covered.mean())
    _logger.info(sentence)
    diagnostics = _diagnostics(source, found, covered)
    report(diagnostics)
    return OnGrid(
        image=result,
        shift=shift,
        error=np.full(2, np.nan) if found is None else found.error,
        overlap=float(covered.mean()),
        correlation=np.nan if found is None else float(found.correlation),
        pixel=np.array([p.step for p in placed]),
        sentence=sentence,
        warnings=warnings_of(diagnostics),
    )


class _Source:
    """A HAADF image with gaps, to be had on the pixels of the maps at any shift."""

    def __init__(self, image, placed, shape):
        self.ceiling = saturated(image)
        self.known = np.isfinite(image)
        self.image = filled(np.asarray(image, dtype=np.float64), self.known)
        self.placed, self.shape = placed, shape

    def final(self, shift, keep_saturated):
        """The image at a shift; NaN where it does not cover a pixel, or is saturated."""
        placed = self._at(shift)
        result = resampled(self.image, placed, self.shape)
        result[coverage(self.known, placed, self.shape) < LEAST_COVERAGE] = np.nan
        if self.ceiling.any() and not keep_saturated:
            result[coverage(self.ceiling, placed, self.shape) > _SATURATED_PART] = np.nan
        return result

    def smooth(self, sigma, image=None):
        """A function of the shift that has the smoothed image, NaN where it is unknown or saturated."""
        from scipy.ndimage import gaussian_filter

        usable = (self.known & ~self.ceiling).astype(np.float64)
        usable = gaussian_filter(usable, sigma, mode="constant") > _INSIDE
        image = gaussian_filter(self.image if image is None else image, sigma)
        return partial(self._usable, image, usable)

    def _usable(self, image, usable, shift, shape=None):
        placed, shape = self._at(shift), shape or self.shape
        result = resampled(image, placed, shape)
        result[coverage(usable, placed, shape) < LEAST_COVERAGE] = np.nan
        return result

    def _at(self, shift):
        return [placement.moved(by) for placement, by in zip(self.placed, shift, strict=True)]

    def whole(self, sample):
        """All of the image in pixels of the size of the maps', and where its first one lies; None where too large."""
        first = np.floor([p.start for p in self.placed])
        shape = tuple(int(n) for n in np.ceil([p.end for p in self.placed]) - first)
        if np.prod(np.maximum(shape, self.shape)) > _LARGEST_SEARCH:
            return None
        return sample(-first, shape), first

    def smoothings(self):
        """Gaussians, in pixels of the image, to try in turn."""
        # noise that an image was magnified with is of the pixels that it had before
        steps = np.array([placement.step for placement in self.placed])
        whole = self.whole(partial(self._usable, self.image, self.known & ~self.ceiling))
        if steps.max() < 1 and whole is not None:
            white = estimate_variance(self.image, self.known & ~self.ceiling) * steps.prod()
            if estimate_variance(whole[0]) > _CORRELATED * white:
                return np.outer(_SMOOTHINGS, 1 / steps)
        return _SMOOTHINGS

    def slope_noise(self, sigma):
        """Variance that the noise of the image has in its slopes, by a picture of noise that goes the same way."""
        noise = np.random.default_rng(0).normal(size=self.image.shape)
        to_maps = -np.array([placement.start for placement in self.placed])
        of_one = [np.nanvar(slope) for slope in slopes(self.smooth(sigma, noise), to_maps)]
        return np.nan_to_num(of_one) * estimate_variance(self.image, self.known & ~self.ceiling)


def _found_shift(source, maps, mask, gamma):
    reference = _weighted_sum(maps, gamma)
    if mask is not None:
        reference[mask] = np.nan
    found = None
    for sigma in source.smoothings():
        sample = source.smooth(sigma)
        other = find_shift(reference, sample, source.whole(sample), source.slope_noise(sigma))
        if found is None or len(other.undetermined) < len(found.undetermined):
            found = other
        if not len(found.undetermined):
            break
    _refuse_unfound(found)
    return found


def _refined(found, source, maps, mask, gamma):
    """The mean of the shift found and that by fits of the calibrated method; the former where these are not possible.

    Both are about equally good, and their errors are not the same: the sum of maps is mostly the heaviest element but
    takes it as the image has it; in a fit all elements take part, smoothed. Over 78 scans of the core-shell phantom at
    64 to 128 pixels the mean was better than either: docs/scans.md.
    """
    if len(found.undetermined):
        return found
    from hyperspy_fusion.fusion.registration.by_fits import aligned_by_fits

    settings = CalibratedSettings(gamma=gamma, tol=_FIT_TOL)
    try:
        problem_at = partial(_problem, source, maps, mask, settings)
        shift, error = aligned_by_fits(problem_at, settings, found.shift)
    except (ValueError, np.linalg.LinAlgError) as error:
        _logger.info("The shift was not refined by a fit: %s", error)
        return found
    if not np.all(np.abs(shift - found.shift) < _PLAUSIBLE * found.error):
        _logger.info("A fit would have the shift at %s: too far off, not taken.", shift)
        return found
    return replace(found, shift=(found.shift + shift) / 2, error=(found.error + error) / 2)


def _problem(source, maps, mask, settings, shift):
    """Of the calibrated method, with the HAADF image at a shift."""
    image = source.final(shift, keep_saturated=False)
    keep = True if mask is None else ~mask
    valid = Valid(np.isfinite(maps.data) & keep, np.isfinite(image) & keep)
    varied = ~is_constant(maps.data, valid.maps)
    noise = [None if known is None else known[varied] for known in noise_metadata(maps)]
    elements = [element for element, keeps in zip(maps.elements, varied, strict=True) if keeps]
    numbers = [atomic_number(element) for element in elements]
    scan = Scan(elements, numbers, maps.data[varied], image, valid.of(varied), *noise)
    return HOW["calibrated"].build(scan, settings, None, None).problem


def _refuse_unfound(found):
    if found.is_found:
        return
    why = f"the two are not alike (correlation {found.correlation:.2f})"
    if found.correlation > 0 and len(found.undetermined) == 2:
        why = "the two have too little structure at these counts"
    raise ValueError(
        f"No shift of the HAADF image against the maps can be told, for {why}: check that it is the image of this scan "
        "and that its heavy elements are among the maps, or pass resample=True without register=True, which trusts the "
        "calibrations."
    )


def _weighted_sum(maps, gamma):
    """``sum_i Z_i**gamma b_i``, NaN where one of the maps is."""
    numbers = [atomic_number(element) for element in maps.elements]
    return np.tensordot(z_weights(numbers, gamma), maps.data.astype(np.float64), axes=1)


def _refuse_gaps(image):
    known = np.isfinite(image)
    if known.all():
        return
    (top, bottom), (left, right) = (_extent(known.any(axis=axis)) for axis in (1, 0))
    raise ValueError(
        f"The HAADF image covers {known.mean():.1%} of the maps, rows {top} to {bottom - 1} and columns {left} to "
        f"{right - 1}, and the published method needs every pixel: pass method='calibrated', which leaves the others "
        f"out, or crop to what is covered, spectra and maps (x, y|) by `.inav[{left}:{right}, {top}:{bottom}]` and "
        f"maps (|x, y) by `.isig[{left}:{right}, {top}:{bottom}]`."
    )


def _extent(present):
    places = np.flatnonzero(present)
    return (0, 0) if not places.size else (int(places[0]), int(places[-1]) + 1)


# ---- in words ------------------------------------------------------------------------------------


def _in_words(source, found, shift, overlap):
    way = _way_in_words(source.placed)
    where = "was placed by its calibration"
    if found is not None:
        errors = " and ".join(f"{s:+.2f} ± {e:.2f}" for s, e in zip(shift, found.error, strict=True))
        where = f"was shifted by {errors} pixels of the maps along y and x to match them"
    return f"The HAADF image {where} and {way}; it covers {overlap:.1%} of the maps."


def _way_in_words(placed):
    steps = [p.step for p in placed]
    if all(p.is_finer for p in placed):
        return f"averaged, {1 / steps[0]:.3g} x {1 / steps[1]:.3g} (y, x) of its pixels to one of the maps"
    if np.allclose(steps, 1):
        return "interpolated where it lies between pixels"
    return f"interpolated, its pixels being {steps[0]:.3g} x {steps[1]:.3g} (y, x) of those of the maps"


def _diagnostics(source, found, covered):
    coarse = max(p.step for p in source.placed)
    diagnostics = []
    if coarse > 1 + 1e-6:
        sentence = (
            f"The HAADF image is coarser than the maps by {coarse:.3g} and was interpolated: it says nothing about "
            "details finer than its own pixels."
        )
        diagnostics.append(Diagnostic("haadf-coarser-than-maps", sentence))
    if not covered.all():
        sentence = (
            f"The HAADF image is known in {covered.mean():.1%} of the pixels of the maps: the others have no image to "
            "agree with."
        )
        diagnostics.append(Diagnostic("haadf-covers-part", sentence))
    if found is not None and len(found.undetermined):
        y, x = found.undetermined[0]
        sentence = (
            f"The shift of the HAADF image along ({y:+.2f}, {x:+.2f}) (y, x) is known to no better than "
            f"{LARGEST_ERROR} pixels, for there is no structure in this direction: there it is where its calibration "
            "puts it."
        )
        diagnostics.append(Diagnostic("shift-undetermined", sentence))
    return diagnostics
