"""Composition of element maps by exspy's quantification, and means and profiles of maps, with errors.

The error of a composition ``c_i = f_i I_i / sum_j f_j I_j`` is that of the maps I to first order, elements taken to be
independent: ``var c_i = sum_j (f_j / T)^2 (delta_ij - c_i)^2 var I_j`` with ``T = sum_j f_j I_j``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from hyperspy_fusion.fusion.settings import check_choice
from hyperspy_fusion.grid.axes import warn
from hyperspy_fusion.identify.map_identity import metadata_names
from hyperspy_fusion.methods.fit_checks import TOTAL_TOLERANCE
from hyperspy_fusion.results.fused_maps import window_of
from hyperspy_fusion.results.regions import UNCHECKED, blocks_of, extent_of, region_mask

_logger = logging.getLogger(__name__)

METHODS = ("CL", "zeta", "cross_section")
# as they are called elsewhere, in small letters
_ALSO_CALLED = {
    "cl": "CL",
    "cliff_lorimer": "CL",
    "k_factor": "CL",
    "k_factors": "CL",
    "zeta_factor": "zeta",
    "zeta_factors": "zeta",
    "cross_sections": "cross_section",
}
UNITS = ("atomic", "weight")
# a pixel with less than this part of the signal of a thick one is vacuum
VACUUM = 0.05
# the thick one: not the brightest, which may be an outlier
_THICK = 99
# exspy's Cliff-Lorimer takes intensities up to 0.1 for nothing; on this scale it takes none for it
_LARGE = 1e12


class Measured(NamedTuple):
    """A value and its standard error, NaN where it is not known."""

    value: float
    error: float

    def __str__(self):
        return f"{self.value:.4g} +- {self.error:.2g}"


# ---- composition ------------------------------------------------------------------------------------


def composition(maps, method, factors=None, units="atomic", vacuum=VACUUM, errors=None):
    """Composition of the element maps; see `ElementMaps.atomic_percent`."""
    method, factors, effective = _quantifying(maps, method, factors, units)
    data, names = np.maximum(np.asarray(maps.data, dtype=np.float64), 0), line_names(maps)
    total = np.tensordot(effective, data, 1)
    seen = total > _threshold(total, vacuum)
    percent = np.full(data.shape, np.nan)
    percent[:, seen] = _quantified(names, data[:, seen], method, factors, units)
    variance, found = None, standard_errors(maps, errors)
    if found is not None:
        variance = _propagated(percent / 100, effective, np.where(seen, total, np.nan), found) * 100**2
    return _signal(maps, percent, variance, units, {"method": method, "factors": factors, "vacuum": float(vacuum)})


def region_percent(maps, region, method, factors=None, units="atomic", errors=None, shares_of=None):
    """Composition of the mean of every map over a region; see `ElementMaps.region_percent`.

    `shares_of` takes relative factors (n,) and has the shares of the maps in their sum, and the errors of these; by
    default they are those of the plain means, and of `errors` of their pixels.
    """
    effective = _quantifying(maps, method, factors, units)[2]
    values, errors = _shares_of_means(maps, region, effective, errors) if shares_of is None else shares_of(effective)
    return {e: Measured(100 * float(v), 100 * float(s)) for e, v, s in zip(maps.elements, values, errors, strict=True)}


def _shares_of_means(maps, region, effective, errors):
    """Shares (n,) of the plain means over a region, times factors, and their errors, elements being independent."""
    # the same pixels of all maps
    inside = np.isfinite(maps.data).all(axis=0)
    inside = inside if region is None else inside & region_mask(region, maps)
    means, errors = np.array(list(region_means(maps, inside, errors).values())).T
    total = effective @ means
    if not total > 0:
        return np.full(len(means), np.nan), np.full(len(means), np.inf)
    shares = effective * means / total
    return shares, np.sqrt(_propagated(shares[:, None, None], effective, total, errors[:, None, None])).ravel()


def _quantifying(maps, method, factors, units):
    """exspy's name of the method, the factors (n,), and what a composition is the share of, relative factors (n,)."""
    method = _method(method)
    check_choice("units", units, UNITS)
    factors = _factors(maps, method, factors)
    shape = np.shape(maps.data)
    if maps.metadata.has_item("Composition"):
        raise ValueError(f"{maps!r} is a composition already: take that of the maps that it was made of.")
    if shape[0] < 2 or len(shape) != 3:
        raise ValueError(f"{maps!r} is not a stack of several maps: a composition needs the maps of all its elements.")
    _warn_of_totals(maps)
    # of a pixel with the same intensity of every element
    same = _quantified(line_names(maps), np.ones((shape[0], 1)), method, factors, units)[:, 0]
    return method, factors, same / 100


def _method(name):
    """exspy's name of a method of quantification, however it is spelt."""
    if isinstance(name, str):
        spelt = name.strip().lower().replace("-", "_").replace(" ", "_")
        name = _ALSO_CALLED.get(spelt, spelt if spelt in METHODS else name)
    check_choice("method", name, METHODS)
    return name


def _factors(maps, method, factors):
    """(n,) factors in the order of the maps: of a number, a sequence or a dictionary, or those that the maps know."""
    elements = maps.elements
    if factors is None:
        factors = _own_cross_sections(maps, method)
    if isinstance(factors, Mapping):
        missing = [element for element in elements if element not in factors]
        if missing:
            raise ValueError(f"factors has none for {', '.join(missing)}: give one for each of {', '.join(elements)}.")
        factors = [factors[element] for element in elements]
    values = np.asarray(factors, dtype=float)
    values = np.full(len(elements), values) if values.ndim == 0 else values
    if values.shape != (len(elements),) or not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError(
            f"factors is {factors!r}: give one number above 0 for each of {', '.join(elements)}, in this order or as a "
            "dictionary {element: factor}."
        )
    return values


def _own_cross_sections(maps, method):
    known = maps.metadata.get_item("Element_maps.cross_sections")
    if method != "cross_section" or known is None:
        raise ValueError(
            f"factors is None: give the k-factors, zeta-factors or cross-sections of {method!r} as a dictionary "
            f"{{element: factor}}; {_why_unknown(maps, method)}."
        )
    return known.as_dictionary()


def _why_unknown(maps, method):
    """Why maps do not know their cross-sections."""
    edges = [maps.metadata.get_item(f"Element_maps.edges.{element}") for element in maps.elements]
    if method != "cross_section" or not any(edges):
        return "only maps of EELS edges know their cross-sections, for method 'cross_section'"
    if not all(edges):
        others = ", ".join(element for element, edge in zip(maps.elements, edges, strict=True) if not edge)
        return f"the maps of {others} are not of EELS edges, which alone know their cross-sections"
    return (
        f"the cross-sections of {', '.join(edges)} are not known, which exspy calculates of K and L edges by beam "
        "energy, convergence and collection angle: call `s.set_microscope_parameters(...)` before element_maps"
    )


def _warn_of_totals(maps):
    """Warn of maps of a fit that did not keep the totals of the counts, on which a composition depends.

    A factor that all have in common changes no composition.
    """
    fit = maps._fit() if maps.metadata.has_item("Fusion") else {}
    ratios = dict(zip(fit.get("elements", ()), fit.get("total_ratios", ()), strict=False))
    kept = {e: float(ratios[e]) for e in maps.elements if np.isfinite(ratios.get(e, np.nan))}
    if kept and max(kept.values()) > (1 + TOTAL_TOLERANCE) * min(kept.values()):
        totals = ", ".join(f"{element} {ratio:.0%}" for element, ratio in kept.items())
        warn(
            f"The composition is not that of the counts: the fit ({fit.get('method', 'of unknown method')}) did not "
            f'keep their totals ({totals} of the measured ones). Fuse by method="calibrated", or take the composition '
            "of the measured maps."
        )


def _threshold(total, vacuum):
    if not 0 <= vacuum < 1:
        raise ValueError(f"vacuum is {vacuum!r}: it must be at least 0 and below 1.")
    finite = total[np.isfinite(total)]
    return vacuum * np.percentile(finite, _THICK) if finite.size else 0.0


def _quantified(names, data, method, factors, units):
    """(n, pixels) percent by exspy of intensities (n, pixels), of X-ray lines with these names."""
    if not data.size:
        return data
    intensities = [_intensity(pixels, name) for pixels, name in zip(data * (_LARGE / data.max()), names, strict=True)]
    with np.errstate(divide="ignore", invalid="ignore"):
        result = _spectrum().quantification(
            intensities, method, list(factors), composition_units=units, navigation_mask=None, probe_area=1.0
        )
    found = result if method == "CL" else result[0]
    return np.stack([signal.data.ravel() for signal in found])


def line_names(maps):
    """A name of an X-ray line for each map, from which exspy takes the element; made up where the maps have none."""
    lines = metadata_names(maps.metadata, "Element_maps.xray_lines")
    if len(lines) == len(maps.elements):
        return [line.split("+")[0] for line in lines]
    return [f"{element}_Ka" for element in maps.elements]


def _intensity(pixels, line):
    from hyperspy.signals import BaseSignal

    signal = BaseSignal(pixels[None, :]).T
    signal.metadata.set_item("Sample.elements", [line.split("_")[0]])
    signal.metadata.set_item("Sample.xray_lines", [line])
    return signal


def _spectrum():
    """A spectrum without counts, of which exspy wants the methods; no composition depends on its dose."""
    from exspy.signals import EDSTEMSpectrum

    signal = EDSTEMSpectrum(np.zeros((1, 1, 1), dtype="u1"))
    for key in ("beam_current", "Detector.EDS.live_time", "probe_area"):
        signal.metadata.set_item(f"Acquisition_instrument.TEM.{key}", 1.0)
    return signal


def _propagated(fractions, factors, total, errors):
    """Variances of fractions to first order."""
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = (factors[:, None, None] / total) ** 2 * errors**2
    # (delta_ij - c_i)^2 is c_i^2 for all j but i
    return fractions**2 * parts.sum(axis=0) + ((1 - fractions) ** 2 - fractions**2) * parts


def _signal(maps, percent, variance, units, node):
    from hyperspy.signals import Signal2D

    result = maps._deepcopy_with_new_data(percent)
    title = maps.metadata.General.title
    for start in ("Element maps of ", "Fused maps of "):
        title = title.removeprefix(start)
    result.metadata.General.title = f"{units} percent of {title}"
    result.metadata.set_item("Signal.quantity", f"{units.capitalize()} percent")
    for key, value in node.items():
        result.metadata.set_item(f"Composition.{key}", value)
    result._mark_changed("turned into a composition")
    result._inputs = None
    if variance is not None:
        signal = Signal2D(variance, axes=result.axes_manager._get_axes_dicts())
        signal.metadata.General.title = "Variance"
        result.set_noise_variance(signal)
    return result


# ---- errors -----------------------------------------------------------------------------------------


def standard_errors(maps, errors=None):
    """
    Standard errors of maps as an array of their shape; None where they are not known.

    Parameters
    ----------
    maps : ElementMaps
    errors : ElementMaps, BaseSignal or array, optional
        Standard errors, a map for each of `maps` in their order, or, of an ElementMaps, by element. None takes the root
        of the noise variance of `maps`, if they have one (``maps.get_noise_variance()``).

    Raises
    ------
    TypeError, ValueError
        For errors that are a single value (``errors=True`` is one), no numbers, below 0, or of another shape.
    """
    if errors is None:
        variance = maps.get_noise_variance()
        if variance is None:
            return None
        return np.broadcast_to(np.sqrt(np.asarray(getattr(variance, "data", variance), float)), maps.data.shape)
    if hasattr(errors, "get_map") and maps._map_axis() is not None:
        errors = np.stack([np.asarray(errors.get_map(element).data) for element in maps.elements])
    values = _checked_errors(errors)
    try:
        return np.broadcast_to(values, maps.data.shape)
    except ValueError:
        raise ValueError(
            f"errors has shape {values.shape} and the maps {maps.data.shape}: give a standard error for each pixel."
        ) from None


def _checked_errors(errors):
    """Standard errors as an array of floats; TypeError or ValueError for what can be none."""
    values = np.asarray(getattr(errors, "data", errors))
    if values.ndim == 0 or values.dtype.kind not in "iuf":
        got = f"holds {values.dtype}" if values.ndim else f"is {errors!r:.60}"
        raise TypeError(
            f"errors {got}: give the standard errors of the pixels, an array or signal like the maps, or leave it out. "
            "Those of a fit with errors=True are taken by themselves."
        )
    if np.any(values < 0):
        raise ValueError(f"errors has values below 0, down to {np.nanmin(values):.4g}: standard errors are 0 or more.")
    return values.astype(float)


def _with_errors(maps, errors):
    """A copy of the maps, and their variances as a signal alike or None."""
    found = standard_errors(maps, errors)
    bare = maps._deepcopy_with_new_data(np.asarray(maps.data, dtype=float))
    return bare, None if found is None else maps._deepcopy_with_new_data(found**2)


def is_independent(maps):
    """Whether the errors of pixels are: not those of a fit, which smooths, nor above a fitted background."""
    return not (maps.metadata.has_item("Fusion") or maps.metadata.has_item("Element_maps.windows"))


def _error_of_mean(variance, axis, independent):
    """Root of the variance of a mean of numbers with these variances: independent, or all wrong in one direction."""
    count = np.sum(np.isfinite(variance), axis=axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        if independent:
            return np.sqrt(np.nansum(variance, axis=axis)) / count
        return np.nansum(np.sqrt(variance), axis=axis) / count


# ---- regions and lines ------------------------------------------------------------------------------


def region_means(maps, region=None, errors=None, independent=None):
    """Mean of each map over a region; see `ElementMaps.region_means`."""
    independent = is_independent(maps) if independent is None else independent
    bare, variance = _with_errors(maps, errors)
    inside = ... if region is None else region_mask(region, maps)
    values, spread = (None if s is None else _pixels(s, inside) for s in (bare, variance))
    if not np.isfinite(values).any(axis=1).all():
        raise ValueError("The region holds no pixel with a value: choose another one, or a lower vacuum=.")
    means = np.nanmean(values, axis=1)
    found = np.full(len(means), np.nan)
    if spread is not None:
        found = _error_of_mean(np.where(np.isfinite(values), spread, np.nan), 1, independent)
    return {e: Measured(float(m), float(s)) for e, m, s in zip(maps.elements, means, found, strict=True)}


def _pixels(maps, inside):
    """(n, number of pixels) of those in the region."""
    y, x = maps.axes_manager.signal_shape[::-1]
    return maps.data.reshape(-1, y, x)[:, inside].reshape(len(maps.elements), -1)


def line_profile(maps, start, end, linewidth=0.0, errors=None, independent=None):
    """Profile of each map along a line; see `ElementMaps.line_profile`."""
    independent = is_independent(maps) if independent is None else independent
    bare, variance = _with_errors(maps, errors)
    line = (*map(float, start), *map(float, end), float(linewidth))
    _warn_of_outside(bare, line)
    if variance is not None:
        _warn_of_unmeasured(maps, line)
    counts = np.isfinite(bare.data)
    # HyperSpy's mean across the line, of the pixels that have a value and are in the image
    part = _along(bare, counts.astype(float), line).data
    profile = _along(bare, np.where(counts, bare.data, 0), line)
    with np.errstate(divide="ignore", invalid="ignore"):
        profile.data = profile.data / part
        if variance is not None:
            spread = np.where(counts, variance.data if independent else np.sqrt(variance.data), 0)
            spread = _along(bare, spread, line).data / part
            spread = spread / (part * _pixels_across(maps, linewidth)) if independent else spread**2
            known = profile._deepcopy_with_new_data(spread)
            known.metadata.General.title = "Variance"
            profile.set_noise_variance(known)
    profile.metadata.General.title = f"Profile of {maps.metadata.General.title}"
    return profile


def _warn_of_outside(maps, line):
    """Say how much of a profile lies beyond the maps; ValueError where all of it does."""
    inside = _along(maps, np.ones(maps.data.shape), line).data.reshape(len(maps.elements), -1)[0] > 0
    if inside.all():
        return
    where = f"the line from {line[:2]} to {line[2:4]}"
    extent = f"{extent_of(maps)}: give (x, y) in the units of the axes"
    if not inside.any():
        raise ValueError(f"All of {where} lies beyond {extent}.")
    warn(f"{np.mean(~inside):.0%} of {where} lies beyond {extent}. The profile is NaN there.")


def _warn_of_unmeasured(maps, line):
    """Warn of a profile with errors through blocks of pixels that a fit filled in."""
    filled = _filled_blocks(maps)
    if filled is None:
        return
    crossed = _along(maps, filled.reshape(maps.data.shape).astype(float), line).data > 0
    parts = dict(zip(maps.elements, crossed.reshape(len(maps.elements), -1).mean(axis=1), strict=True))
    listed = ", ".join(f"{element} {part:.0%}" for element, part in parts.items() if part)
    if listed:
        warn(
            f"The line from {line[:2]} to {line[2:4]} goes through pixels that were not measured ({listed} of it): "
            f"{UNCHECKED}."
        )


def _filled_blocks(maps):
    """(n, ny, nx) bool, blocks of pixels without counts in each map; None where they are not known."""
    errors = maps._errors
    window = None if errors is None else window_of(maps, errors.maps)
    if window is None:
        return None
    counted = dict(zip(errors.elements, errors.replicates.counted, strict=True))
    measured = np.ones(errors.replicates.maps.shape[1:], bool)
    return np.stack([blocks_of(~counted.get(element, measured))[window] for element in maps.elements])


def _along(maps, data, line):
    """HyperSpy's profile of `data` on the axes of `maps`, a Signal1D ``(n|distance)``."""
    from hyperspy.roi import Line2DROI

    signal = maps._deepcopy_with_new_data(data)
    profile = Line2DROI(*line)(signal, axes=signal.axes_manager.signal_axes)
    profile.set_signal_type("")
    # which HyperSpy has as the length over the number of points
    axis = profile.axes_manager.signal_axes[0]
    axis.scale *= axis.size / max(axis.size - 1, 1)
    profile.metadata.set_item("Sample.elements", maps.elements)
    return profile


def _pixels_across(maps, linewidth):
    """How many pixels HyperSpy takes the mean of across the line."""
    scale = min(axis.scale for axis in maps.axes_manager.signal_axes)
    return max(round(linewidth / scale), 1)
