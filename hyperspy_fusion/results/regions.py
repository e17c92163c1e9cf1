"""Figures of a region of element maps, with errors: means, ratios and composition."""

from __future__ import annotations

from functools import cached_property
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import binary_opening

from hyperspy_fusion.diagnostics import Diagnostic, report
from hyperspy_fusion.fusion.checks import default_errstate
from hyperspy_fusion.grid.axes import capital, scan_axes
from hyperspy_fusion.grid.images import image_signal
from hyperspy_fusion.identify.elements import no_map_of
from hyperspy_fusion.methods.fit_checks import diagnostics_of_edge_errors
from hyperspy_fusion.results.composition import PERCENT_UNITS, Percent, about_background, propagated, quantifying
from hyperspy_fusion.results.uncertainty import counted, filled_pixels, is_independent, located, pixel_errors

# shares of a region whose mean depends on what was filled in: of a block sooner, in which no counts are near
_UNMEASURED, _UNMEASURED_BLOCK = 0.5, 0.1
# a map is smoothed where its mean differs by so many errors of the counts, and by this part of their mean
_SMOOTHED, _LEAST = 3.0, 0.1


class Measured(NamedTuple):
    """A value and its standard error, NaN where it is not known; arrays for the frames of a stack."""

    value: Any
    error: Any

    def __str__(self):
        if np.ndim(self.value):
            return f"{self.value} +- {self.error}"
        return f"{self.value:.4g} +- {self.error:.2g}"


class Region:
    """Pixels of element maps, of which it gives means, ratios and the composition; made by :meth:`ElementMaps.region`.

    For the result of a fit, or a crop of it, smoothing does not bias the figures: they are those of the counts in the
    region, of spectra by a fit to their sum. With ``errors=True`` they are estimates by the bootstrap, whose errors
    include what the maps have in common. For other maps they follow from the plain means of the
    pixels, with the errors of these as far as they are known. The truth is within one error in 68 of 100 cases.

    Attributes
    ----------
    mask : numpy.ndarray of bool
        ``(ny, nx)``, True inside.
    elements : list of str
        Symbols of the maps.
    diagnostics : list of Diagnostic
        What is doubtful about the region: ``"roi-beyond-maps"``, ``"errors-lost"``, ``"region-not-measured"``,
        ``"region-smoothed"`` and ``"region-chosen-by-map"``.

    Examples
    --------
    >>> import hyperspy_fusion as hf
    >>> maps = hf.element_maps(hf.data.core_shell((16, 16)).signals()[0])
    >>> region = maps.region(maps.data[1] > 3, errors=maps.data**0.5)
    >>> region
    <Region of 52 pixels: Pt, Fe, O; plain means, standard errors known>
    >>> print(region.mean("Fe"))
    7.096 +- 0.37
    """

    def __init__(self, maps, roi=None, *, errors=None, independent=None):
        self.mask = _region_mask(roi, maps)
        self.elements = maps.elements
        self.diagnostics = _about_roi(roi, maps)
        self._maps = maps
        # of a fit: its counts; its bootstrap, which has them too
        self._counts: Any = None
        self._bootstrap: Any = None
        self._independent = is_independent(maps) if independent is None else independent
        if errors is None and independent is None and maps.metadata.has_item("Fusion"):
            self._find_counts()
        self._errors = pixel_errors(maps, errors) if self._counts is None else None
        report(self.diagnostics)

    def _find_counts(self):
        """Keep the counts of these maps, and the region on the grid of the fit; else say that a bootstrap is lost."""
        found, fit = counted(self._maps), self._maps.metadata.Fusion
        if found is None:  # loaded, or edited since
            if fit.has_item("errors") and not self._maps.metadata.has_item("Composition"):
                sentence = (
                    "The bootstrap of the fit is lost after saving or editing, and not kept of tiles: region means are "
                    "plain, with the bias of smoothing. Ask the fit itself, or pass saved standard_errors() as errors=."
                )
                self.diagnostics.append(Diagnostic("errors-lost", sentence))
            return
        self._counts, self._fitted, window = found
        self._whole = np.zeros(self._counts.maps.shape[1:], bool)
        self._whole[window] = self.mask
        if hasattr(self._counts, "region_mean"):
            self._bootstrap = self._counts
            self.diagnostics += _about_filled(self._maps, self.mask)
        else:
            has_edge = [self._maps.metadata.has_item(f"Element_maps.edges.{element}") for element in self._fitted]
            self.diagnostics += diagnostics_of_edge_errors(list(compress(self._fitted, has_edge)))
        self.diagnostics += self._about_smoothing()

    def _about_smoothing(self):
        """Diagnostics of maps that differ from the counts of the region, and of those that the region was chosen by."""
        smoothed, chosen = {}, []
        for element in filter(self._fitted.__contains__, self.elements):
            index = self._fitted.index(element)
            mean = self._counts.counted_mean(self._whole, index)
            if self._counts.is_chosen_by(self._whole, index):
                chosen += [element] if self._bootstrap is None else []
            elif mean.is_smoothed and abs(mean.fused - mean.measured) > max(
                _SMOOTHED * mean.measured_error, _LEAST * abs(mean.measured)
            ):
                smoothed[element] = f"{element} {mean.fused:.2g} for {mean.measured:.2g}"
        return [*_about_smoothed(smoothed, self.mask), *_about_chosen(chosen, self.mask)]

    def __repr__(self):
        if self._counts is None:
            errors = f"plain means, standard errors {'un' * (self._errors is None)}known"
        elif self._bootstrap is None:
            errors = "means of the counts"
        else:
            errors = f"errors from {len(self._bootstrap)} bootstrap replicates"
        return f"<Region of {np.count_nonzero(self.mask)} pixels: {', '.join(self.elements)}; {errors}>"

    # ---- means ----------------------------------------------------------------------------------

    @default_errstate
    def mean(self, element):
        """Mean of the map of one element over the region.

        Parameters
        ----------
        element : str
            Symbol, as in :attr:`elements`.

        Returns
        -------
        Measured
            ``(value, error)`` in the units of the maps. The mean of a map that was not fitted is plain.

        Raises
        ------
        ValueError
            Where there is no such map, or no pixel of the region has a value.
        """
        index = self._index(element)
        if self._counts is None or element not in self._fitted:
            return self._means[index]
        found = self.estimate(element)
        return Measured(found.value, found.error)

    def means(self):
        """Means of all maps; see :meth:`mean`.

        Returns
        -------
        dict of Measured
        """
        return {element: self.mean(element) for element in self.elements}

    @default_errstate
    def estimate(self, element):
        """What the mean of a fit comes from.

        Parameters
        ----------
        element : str
            Symbol, as in :attr:`elements`.

        Returns
        -------
        RegionMean
            ``value`` and ``error`` of :meth:`mean`; ``fused``, ``measured`` and ``measured_error``, the means of both
            maps; ``weight``, how far ``value`` is on the way from the fused mean, corrected by the bootstrap, to
            ``measured``.

        Raises
        ------
        ValueError
            Where the counts of the fit are not known, as of maps from files.
        """
        if self._counts is None:
            located(self._maps)  # raises with the reason
            raise ValueError(
                "Errors of the pixels were given, which take the place of those of the fit: leave them out."
            )
        mean_of = self._counts.counted_mean if self._bootstrap is None else self._bootstrap.region_mean
        return mean_of(self._whole, self._fitted_index(element))

    # ---- ratios and composition -------------------------------------------------------------------

    @default_errstate
    def ratio(self, element, other):
        """Mean of one element over that of another, in the units of the maps, as counts per counts, not of atoms.

        For a ratio of atoms divide each by its cross-section, or multiply it by its k-factor over its atomic weight.

        Parameters
        ----------
        element, other : str
            Symbols of numerator and denominator.

        Returns
        -------
        Measured
            To first order; NaN and infinite where the denominator is not above 0.

        Raises
        ------
        ValueError
            Where there is no such map, or the maps are a composition.
        """
        if self._maps.metadata.has_item("Composition"):
            located(self._maps)  # raises with a remedy
        if self._bootstrap is not None:
            found = self._bootstrap.ratio(self._whole, self._fitted_index(element), self._fitted_index(other))
            return Measured(found.value, found.error)
        over, under = self.mean(element), self.mean(other)
        if not under.value > 0:
            return Measured(np.nan, np.inf)
        value = over.value / under.value
        error = np.hypot(over.error, value * under.error) / under.value if element != other else 0.0
        return Measured(value, float(error))

    @default_errstate
    def percent(self, method, factors=None, *, units="atomic"):
        """Composition of the region: that of the mean counts, and not the mean of the compositions of its pixels.

        Parameters
        ----------
        method, factors
            As for :meth:`ElementMaps.atomic_percent`. Errors of the factors are not considered.
        units : {"atomic", "weight"}

        Returns
        -------
        Percent
            A dictionary ``{element: (value, error)}`` in per cent, of the pixels where all maps have a value, shown as
            a table; errors are NaN where they are not known.

        Raises
        ------
        ValueError
            For factors that do not fit, a single map, or a composition.

        Examples
        --------
        >>> fused.region(roi).percent("CL", {"Fe": 1.21, "O": 1.9})["Fe"].error  # doctest: +SKIP
        """
        relative = quantifying(self._maps, method, factors, units)[2]
        shares = self._plain_shares(relative) if self._bootstrap is None else self._estimated_shares(relative)
        found = {e: Measured(100 * float(v), 100 * float(s)) for e, v, s in zip(self.elements, *shares, strict=True)}
        return Percent(found, PERCENT_UNITS[units], " ".join(map(str, about_background(self._maps))))

    def _estimated_shares(self, relative):
        """Shares (n,) in the sum of the estimated means times relative factors (n,), and their errors."""
        # a map of zeros was not fitted, and has no share
        fitted = np.array([bool(np.any(image)) for image in self._maps.data])
        order = [self._fitted_index(element) for element, any_ in zip(self.elements, fitted, strict=True) if any_]
        values, errors = np.zeros(len(fitted)), np.full(len(fitted), np.nan)
        values[fitted], errors[fitted] = self._bootstrap.shares(self._whole, relative[fitted], order)
        return values, errors

    def _plain_shares(self, relative):
        """The same of the plain means, elements being independent."""
        if self._counts is not None:
            means, errors = np.array([self.mean(element) for element in self.elements]).T
        else:  # the same pixels of all maps
            means, errors = np.array(self._plain_means(self.mask & np.isfinite(self._maps.data).all(axis=0))).T
        total = relative @ means
        if not total > 0:
            return np.full(len(means), np.nan), np.full(len(means), np.inf)
        shares = relative * means / total
        return shares, np.sqrt(propagated(shares, relative, total, errors))

    # ---- where the figures come from ----------------------------------------------------------------

    @cached_property
    def _means(self):
        return self._plain_means(self.mask)

    def _plain_means(self, inside):
        """A :class:`Measured` for each map: the mean over the valid pixels ``inside``, and its error."""
        shape = (-1, *self.mask.shape)
        values = np.asarray(self._maps.data, float).reshape(shape)[:, inside]
        values, valid = values.reshape(len(self.elements), -1), np.isfinite(values).reshape(len(self.elements), -1)
        if not valid.any(axis=1).all():
            raise ValueError("The region holds no pixel with a value: choose another one, or a lower vacuum=.")
        means, errors = np.nanmean(values, axis=1), np.full(len(values), np.nan)
        if self._errors is not None:
            found = np.where(valid, self._errors.reshape(shape)[:, inside].reshape(values.shape), np.nan)
            # independent, or all wrong in one direction
            together = np.sqrt(np.nansum(found**2, axis=1)) if self._independent else np.nansum(found, axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                errors = together / np.isfinite(found).sum(axis=1)
        return [Measured(float(m), float(s)) for m, s in zip(means, errors, strict=True)]

    def _index(self, element):
        if element not in self.elements:
            raise ValueError(no_map_of(element, self.elements))
        return self.elements.index(element)

    def _fitted_index(self, element):
        self._index(element)
        if element not in self._fitted:
            raise ValueError(
                f"There are no errors of {element!r}: only {', '.join(self._fitted)} are fitted: fuse with "
                "elements=[...] to fit it unless it is constant, or leave it out by `inav`."
            )
        return self._fitted.index(element)


def _about_filled(maps, mask):
    """The diagnostic of maps that were masked or NaN in half of a region or more, or in a tenth of it in a block."""
    filled, size = filled_pixels(maps) & mask, np.count_nonzero(mask)
    shares, blocks = filled.sum(axis=(1, 2)) / size, blocks_of(filled).any(axis=(1, 2))
    doubtful = (shares >= _UNMEASURED) | ((shares > _UNMEASURED_BLOCK) & blocks)
    listed = {e: f"{e} {share:.0%}" for e, share, is_one in zip(maps.elements, shares, doubtful, strict=True) if is_one}
    sentence = (
        f"Much of the region has no counts ({', '.join(listed.values())}) and was filled in by the fit, which no error "
        "covers: choose a region that was measured."
    )
    return [Diagnostic("region-not-measured", sentence, elements=tuple(listed))] if listed else []


def _about_smoothed(listed, mask):
    """The diagnostic of maps, ``{element: its figures}``, whose mean is not that of the counts of the region."""
    sentence = (
        f"The fit smoothed the maps in the region of {np.count_nonzero(mask)} pixels ({', '.join(listed.values())}): "
        "take the values of the region, not means of the map."
    )
    return [Diagnostic("region-smoothed", sentence, elements=tuple(listed))] if listed else []


def _about_chosen(elements, mask):
    """The diagnostic of maps that the region was chosen by, whose noise is in its mean."""
    listed = ", ".join(elements)
    sentence = (
        f"The region of {np.count_nonzero(mask)} pixels was chosen by the map of {listed} itself, so that chance "
        "changes its counts: fuse with errors=True, which corrects this, or choose by another image."
    )
    return [Diagnostic("region-chosen-by-map", sentence, elements=tuple(elements))] if elements else []


# ---- which pixels ------------------------------------------------------------------------------------


def blocks_of(pixels):
    """Those of the ``pixels``, (..., ny, nx) bool, in a square of 3 by 3 of them."""
    return binary_opening(pixels, np.ones((1,) * (pixels.ndim - 2) + (3, 3)))


def beyond(what, maps):
    """The error of a ROI or a line that does not lie on maps."""
    return ValueError(f"{capital(what)} does not lie on {extent_of(maps)}: give it in the units of the axes.")


def extent_of(maps):
    """Where maps are, for messages."""
    y, x = (f"{low:.4g} to {high:.4g} {units}" for low, high, units in _extents(maps))
    return f"the maps, which are from x = {x} and y = {y}"


def rising(axes):
    """`axes` on which coordinates rise with pixels, and the slices that turn data with falling ones.

    An axis with no scale, which is 0 or NaN, is in pixels.
    """
    found, slices = [], []
    for axis in axes:
        scale, last = axis["scale"], axis["offset"] + axis["scale"] * (axis["size"] - 1)
        if not np.isfinite(last) or scale == 0:
            axis = {**axis, "scale": 1.0, "offset": 0.0, "units": "px"}
        elif scale < 0:
            axis = {**axis, "scale": -scale, "offset": last}
        found.append(axis)
        slices.append(slice(None, None, -1 if scale < 0 else 1))
    return found, tuple(slices)


def _extents(maps):
    """(lowest, highest coordinate of a pixel, units) of y and x."""
    return [(a["offset"], a["offset"] + a["scale"] * (a["size"] - 1), a["units"]) for a in rising(scan_axes(maps))[0]]


def _region_mask(roi, maps):
    """A region as ``(ny, nx)`` bool on the pixels of ``maps``: of a mask, a HyperSpy ROI, or None for all pixels."""
    axes = scan_axes(maps)
    shape = tuple(axis["size"] for axis in axes)
    if roi is None:
        return np.ones(shape, bool)
    if hasattr(roi, "interactive"):
        return _roi_mask(roi, maps, axes, shape)
    mask = np.asarray(getattr(roi, "data", roi))
    if mask.dtype != bool:
        raise TypeError(
            f"The region holds {mask.dtype}: pass an array or signal of bool that another image chose, such as "
            "haadf.data > 30000, or a HyperSpy ROI."
        )
    if mask.shape != shape:
        raise ValueError(f"The region has shape {mask.shape}, expected {shape}, one value for each pixel of the maps.")
    if not mask.any():
        raise ValueError("The region holds no pixel: pass a mask that is True where a pixel is in the region.")
    return mask


def _roi_mask(roi, maps, axes, shape):
    """Which pixels a ROI cuts out: those whose numbers are left in an image of their numbers."""
    from hyperspy.roi import BasePointROI, Line2DROI

    if isinstance(roi, BasePointROI | Line2DROI) or roi.ndim != 2:
        raise TypeError(f"{roi!r} covers no area: pass a RectangularROI, CircleROI or PolygonROI, or a mask.")
    # HyperSpy cuts nothing out along axes with a negative scale
    axes, turned = rising(axes)
    numbers = image_signal(np.arange(np.prod(shape), dtype=float).reshape(shape)[turned], axes, "")
    mask = np.zeros(shape, bool)
    try:
        inside = np.asarray(roi(numbers).data).ravel()
        mask.ravel()[inside[np.isfinite(inside)].astype(int)] = True
    except (ValueError, IndexError, OverflowError):  # of HyperSpy, for some ROIs off the axes
        pass
    if not mask.any():
        raise beyond(repr(roi), maps)
    return mask


def _about_roi(roi, maps):
    """The diagnostic of a ROI that ends more than a pixel beyond the maps; none for masks."""
    scales = [axis["scale"] for axis in rising(scan_axes(maps))[0]]
    for scale, (start, end, _), (low, high) in zip(scales[::-1], _extents(maps)[::-1], _bounds(roi), strict=False):
        # the last pixels end one after their coordinate
        margin = 1.001 * scale
        if low < start - margin or high > end + margin:
            sentence = f"{roi!r} reaches beyond {extent_of(maps)}: only the pixels of the maps in it are taken."
            return [Diagnostic("roi-beyond-maps", sentence)]
    return []


def _bounds(roi):
    """(low, high) of x and of y of a ROI that covers an area; nothing of a mask, or a polygon without corners."""
    if not hasattr(roi, "interactive"):
        return []
    if hasattr(roi, "vertices"):
        return [(min(values), max(values)) for values in zip(*roi.vertices, strict=True)]
    if hasattr(roi, "cx"):
        return [(center - roi.r, center + roi.r) for center in (roi.cx, roi.cy)]
    return [(roi.left, roi.right), (roi.top, roi.bottom)]
