"""Errors of a result and what can be known, as HyperSpy signals: over ``fusion.uncertainty``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperspy_fusion.grid.axes import warn
from hyperspy_fusion.identify.elements import no_map_of
from hyperspy_fusion.results import composition
from hyperspy_fusion.results.fused_maps import window_of
from hyperspy_fusion.results.regions import UNCHECKED, blocks_of, region_mask

# of a region that is told: what was filled in decides its mean, of a block sooner, in which no counts are near
UNMEASURED, UNMEASURED_BLOCK = 0.5, 0.1


@dataclass(frozen=True)
class Errors:
    """Replicates behind a result: kept by it in memory, not saved with it.

    ``maps`` are those of the fit, ``elements`` the fitted ones in the order of the ``replicates``.
    """

    replicates: object
    maps: object
    elements: list

    def __repr__(self):
        size = (self.replicates.errors.nbytes + self.replicates.residuals.nbytes) / 2**20
        return f"<Errors of {', '.join(self.elements)} from {len(self.replicates)} replicates, {size:.0f} MB>"


def replicated(problem, settings, state, maps, replicates, seed, show_progressbar, num_workers):
    """Replicates of a fit with a progress bar; see :func:`~.fusion.uncertainty.bootstrap.bootstrap`."""
    from types import SimpleNamespace

    from hyperspy_fusion._progress import progress
    from hyperspy_fusion.fusion.uncertainty.bootstrap import bootstrap

    with progress(replicates, show_progressbar, desc="Replicates", unit="replicate") as update:
        return bootstrap(
            problem,
            settings,
            state,
            maps,
            replicates,
            seed,
            callback=lambda done: update(SimpleNamespace(n_iter=done)),
            num_workers=num_workers,
        )


def standard_errors(fused):
    """Standard errors of the pixels of ``fused``; see ``ElementMaps.standard_errors``."""
    errors, window = _located(fused)
    known = dict(zip(errors.elements, errors.replicates.standard_errors(), strict=True))
    # a constant map was not fitted
    nothing = np.full(errors.replicates.maps.shape[1:], np.nan)
    data = np.stack([known.get(element, nothing)[window] for element in fused.elements])
    return maps_like(fused, data, "Standard errors of")


def region_mean(fused, region, element):
    """See ``ElementMaps.region_mean``."""
    errors, window = _located(fused)
    mask, index = _whole_mask(fused, region, window), _index(errors, element)
    _warn_of_unmeasured(errors, mask, [element])
    return errors.replicates.region_mean(mask, index)


def region_means(fused, region=None):
    """``{element: Measured}`` of `region_mean` for every map; None where the errors of these maps are not known.

    A constant map was not fitted: its mean is what it is, and exact as far as anything tells.
    """
    if not fused.metadata.has_item("Fusion"):
        return None
    try:
        errors, window = _located(fused)
    except ValueError:  # loaded, or edited since: its mean is what it is
        _warn_of_lost(fused)
        return None
    inside = _inside(fused, region)
    plain = composition.region_means(fused, inside)
    whole = _whole_mask(fused, inside, window)
    fitted = [e for e in fused.elements if e in errors.elements]
    _warn_of_unmeasured(errors, whole, fitted)
    found = {e: errors.replicates.region_mean(whole, _index(errors, e)) for e in fitted}
    return plain | {e: composition.Measured(one.value, one.error) for e, one in found.items()}


def region_percent(fused, region, method, factors, units, errors=None):
    """Of `region_mean` of every map, or of plain means where their errors are not known; see ``ElementMaps``."""
    options = (region, method, factors, units)
    if errors is not None or not fused.metadata.has_item("Fusion"):
        return composition.region_percent(fused, *options, errors=errors)
    try:
        errors, window = _located(fused)
    except ValueError:
        _warn_of_lost(fused)
        return composition.region_percent(fused, *options)
    mask = _whole_mask(fused, _inside(fused, region), window)
    # of a map of zeros, which was not fitted, there is nothing
    fitted = np.array([bool(np.any(image)) for image in fused.data])
    order = [_index(errors, element) for element, any_ in zip(fused.elements, fitted, strict=True) if any_]
    _warn_of_unmeasured(errors, mask, [errors.elements[k] for k in order])

    def shares_of(relative):
        values, spread = np.zeros(len(fitted)), np.full(len(fitted), np.nan)
        values[fitted], spread[fitted] = errors.replicates.shares(mask, relative[fitted], order)
        return values, spread

    return composition.region_percent(fused, *options, shares_of=shares_of)


def _inside(fused, region):
    """The pixels of a region, (ny, nx) bool; all for None."""
    return np.ones(fused.axes_manager.signal_shape[::-1], bool) if region is None else region_mask(region, fused)


def _warn_of_lost(fused):
    """Warn of maps whose errors were known once, and with them what smoothing takes from a mean."""
    if fused.metadata.has_item("Fusion.errors") and not fused.metadata.has_item("Composition"):
        warn(
            "The errors of the fit, which are not saved with its maps nor kept when these are changed, are lost: the "
            "means are those of the pixels, with the bias of smoothing. Take them of the result of the fit itself, or "
            "save its standard_errors() too and pass these as errors=, for errors of such means."
        )


def ratio(fused, region, element, other):
    """Of the units of the maps (counts), not of atoms; see ``ElementMaps.ratio``."""
    errors, window = _located(fused)
    mask, indices = _whole_mask(fused, region, window), [_index(errors, symbol) for symbol in (element, other)]
    _warn_of_unmeasured(errors, mask, dict.fromkeys((element, other)))
    return errors.replicates.ratio(mask, *indices)


def _warn_of_unmeasured(errors, mask, elements):
    """Warn of maps of which half of a region or more was masked or NaN, or a tenth in a block."""
    missing = {e: mask & ~errors.replicates.counted[_index(errors, e)] for e in elements}
    parts = [f"{e} {_part(pixels, mask):.0%}" for e, pixels in missing.items() if _is_much(pixels, mask)]
    if parts:
        warn(
            f"Much of the region was not measured ({', '.join(parts)}): {UNCHECKED}. Choose a region that was measured."
        )


def _part(pixels, mask):
    return np.count_nonzero(pixels) / np.count_nonzero(mask)


def _is_much(pixels, mask):
    """Whether so many ``pixels`` of a region were filled in that errors of its mean say little."""
    part = _part(pixels, mask)
    is_block = part > UNMEASURED_BLOCK and blocks_of(pixels).any()
    return bool(part >= UNMEASURED or is_block)


def maps_like(maps, data, title):
    """An ElementMaps of ``data`` on the axes and with the elements of ``maps``, which is no result of a fit."""
    shape = np.asarray(maps.data).shape
    new = maps._deepcopy_with_new_data(np.ascontiguousarray(data.reshape(shape), np.float32))
    new._inputs = new._errors = None
    if new.metadata.has_item("Fusion"):
        del new.metadata.Fusion
    of = maps.metadata.General.title
    new.metadata.General.title = f"{title} {of[:1].lower() + of[1:] if ' ' in of else of}"
    return new


def _located(fused):
    """The errors of the fit behind ``fused``, and the slices (y, x) of its grid that ``fused`` covers."""
    fit, errors = fused._fit(), fused._errors
    if fused.metadata.has_item("Composition"):
        raise ValueError(
            f"{fused!r} is a composition, of which no errors of regions are known: take the region_percent of the "
            "fused maps, the composition of the counts of a region; region_means is the mean of the pixels' per cent, "
            "and the errors of its pixels are in get_noise_variance()."
        )
    if errors is None:
        raise ValueError(_why_unknown(fit))
    window = window_of(fused, errors.maps)
    elements = fused.elements
    if window is not None:
        fitted = np.stack([errors.maps.get_map(element).data for element in elements])[(slice(None), *window)]
        data = np.asarray(fused.data)
        same = data.size == fitted.size and np.allclose(data.reshape(fitted.shape), fitted, rtol=1e-5)
    if window is None or not same:
        raise ValueError(
            f"{fused!r} is not what was fitted, but was edited, rebinned or calculated since: ask the result of the "
            "fit, or a crop of it, for its errors."
        )
    return errors, window


def _why_unknown(fit):
    """Why a result has no replicates, and how to get them."""
    if fit.get("method") == "published":
        return (
            "The errors of these maps are not known, for the published method has no model of the noise: fuse by "
            'method="calibrated" with errors=True.'
        )
    return (
        "The errors of these maps are not known: they are not saved with maps, and take replicates of the fit. "
        "Pass errors=True to fuse, or call FusedMultiModal.standard_errors before as_signal."
    )


def _index(errors, element):
    if element not in errors.elements:
        raise ValueError(_no_errors_of(element, errors))
    return errors.elements.index(element)


def _no_errors_of(element, errors):
    if element in errors.maps.elements:
        fitted = ", ".join(errors.elements)
        return (
            f"There are no errors of {element!r}: the fitted elements are {fitted}, and constant maps are not fitted; "
            "`inav` takes maps without them."
        )
    return no_map_of(element, errors.maps.elements)


def _whole_mask(fused, region, window):
    """The mask of a region of ``fused`` on the grid of the fit."""
    mask = region_mask(region, fused)
    whole = np.zeros(fused._errors.replicates.maps.shape[1:], bool)
    whole[window] = mask
    return whole


# ---- what can be known -----------------------------------------------------------------------------


def attainable_gain(problem, settings, maps, haadf_valid):
    """(n, ny, nx) gain of the fitted maps; see :func:`~.fusion.uncertainty.fisher.attainable_gain`."""
    from hyperspy_fusion.fusion.uncertainty import fisher

    problem = problem.of_largest_weight
    sigma = np.where(haadf_valid, problem.calibration.sigma, np.inf)
    variance = problem.count_variance(maps)
    return fisher.attainable_gain(variance, problem.forward_model.weights, sigma, problem.haadf_term.blur)


def attribution(problem, state, maps):
    """What moved the fitted maps; see :meth:`~.fusion.problems.base.FusionProblem.attribution`."""
    return problem.attribution(state, maps)
