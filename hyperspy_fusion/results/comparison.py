"""The fit of a result again, without the HAADF image or with other settings, beside the result."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.settings import SETTINGS
from hyperspy_fusion.methods import check_noise_model
from hyperspy_fusion.results.figures import arrays, chosen, frame_of_axes, quantity_of, saved
from hyperspy_fusion.results.fused_maps import norms
from hyperspy_fusion.results.plot import plot_grid
from hyperspy_fusion.results.uncertainty import maps_like

# a pixel has at least this part of the root mean square error of its map: that of an empty one may be 0
_LEAST_ERROR = 0.1
# standard deviation in pixels by which residuals are smoothed to be looked at
_SMOOTH = 1.5
# fits side by side at most
_MOST = 24


@dataclass(frozen=True)
class Comparison:
    """A result beside the same fit without the HAADF image; made by :meth:`ElementMaps.compare_without_haadf`.

    Attributes
    ----------
    with_haadf, without_haadf : ElementMaps
        Both results.
    difference : ElementMaps
        Of them, with minus without, in standard errors of a pixel, at least a tenth of their root mean square. What is
        within +- 2 may be noise.
    """

    with_haadf: Any
    without_haadf: Any
    difference: Any

    def __repr__(self):
        sizes = {e: self.difference.get_map(e).data for e in self.difference.elements}
        rows = [
            f"{e}: {np.sqrt(np.nanmean(d**2)):.2f} standard errors rms, {np.nanmax(np.abs(d)):.1f} at most"
            for e, d in sizes.items()
            if np.isfinite(d).any()
        ]
        return "\n".join(["Change of the maps by the HAADF image", *rows])

    def plot(self, elements=None, crop=None, save=None, per_row=None, cmap=None) -> np.ndarray:
        """With, without and their difference, one column for each element.

        Parameters
        ----------
        elements, crop, save, per_row, cmap
            As for :meth:`ElementMaps.plot_fusion`.

        Returns
        -------
        numpy.ndarray
            The matplotlib axes, ``(3, n_elements)``.
        """
        elements = chosen(self.with_haadf, elements)
        found = [arrays(maps, elements) for maps in (self.with_haadf, self.without_haadf, self.difference)]
        titles, kinds = ("with HAADF", "without HAADF", "difference / error"), ("map", "map", "signed")
        columns = [
            [(f"{e}, {title}", data[i], kind) for title, data, kind in zip(titles, found, kinds, strict=True)]
            for i, e in enumerate(elements)
        ]
        labels = [{"map": quantity_of(self.with_haadf), "signed": "standard errors"}] * len(elements)
        options = {"per_row": per_row, "cmap": cmap, "crop": crop, **frame_of_axes(self.with_haadf)}
        return saved(plot_grid(columns, labels, **options), save)


def without_haadf(fused: Any, fuse: Callable, errors: Any, **run: Any) -> Comparison:
    """See ``ElementMaps.compare_without_haadf``; ``fuse`` is that of this package."""
    fit = fused._fit()
    if fit["method"] == "published":
        raise ValueError(
            "method='published' has no fit without the HAADF image, nor standard errors: fuse by method='calibrated' "
            "or 'auto'."
        )
    _refuse_several_images(fit)
    settings = settings_of(fit).without_haadf()
    if fit["method"] == "auto":  # what it chooses is chosen again
        auto, given = SETTINGS["auto"](), ("regularization", "lambda_haadf")
        known = {name: v for name, v in settings.as_dict().items() if name in given or getattr(auto, name) != "auto"}
        settings = replace(auto, **known)
    known = fused._errors is not None
    other = refit(fused, fuse, fit["method"], settings, errors=False if known else errors, **run)
    unit = np.asarray((fused if known else other).standard_errors().data, np.float64)
    typical = np.sqrt(np.nanmean(unit**2, axis=(-2, -1), keepdims=True))
    unit = np.maximum(unit, _LEAST_ERROR * typical)
    change = np.asarray(fused.data, np.float64) - np.asarray(other.data, np.float64)
    scaled = np.divide(change, unit, out=np.full(change.shape, np.nan), where=unit > 0)
    return Comparison(fused, other, maps_like(fused, scaled, "Change by the HAADF image of"))


def explored(
    fused: Any, fuse: Callable, values: dict, *, elements=None, crop=None, residuals=None, save=None, **options: Any
) -> Any:
    """See ``ElementMaps.explore``; ``values`` are lists of values of settings."""
    fit = fused._fit()
    run = {name: options.pop(name) for name in ("show_progressbar", "num_workers") if name in options}
    elements, method = chosen(fused, elements), _fixed(fit["method"])
    lists = {name: list(one) if isinstance(one, list | tuple | np.ndarray) else [one] for name, one in values.items()}
    settings = [dict(zip(lists, one, strict=True)) for one in itertools.product(*lists.values())]
    if not 0 < len(settings) <= _MOST:
        raise ValueError(f"explore got {len(settings)} combinations of settings: give 1 to {_MOST}.")
    _refuse_several_images(fit)
    if residuals:
        check_noise_model(method)
    base = settings_of(fit)
    known = [one.name for one in fields(base)]
    if unknown := [name for name in lists if name not in known]:
        raise ValueError(f"{unknown[0]} is no setting of method={method!r}: take one of {', '.join(known)}.")
    changed = [replace(base, **one) for one in settings]  # all are checked before the first fit
    fits = (refit(fused, fuse, method, one, **run) for one in changed)
    found = [_smooth_residuals(one, elements) if residuals else arrays(one, elements) for one in fits]
    kind, label = ("signed", "smoothed residual / sigma") if residuals else ("map", quantity_of(fused))
    columns = [
        [
            (f"{element}, {_settings_in_words(one, lists)}", maps[i], kind)
            for one, maps in zip(settings, found, strict=True)
        ]
        for i, element in enumerate(elements)
    ]
    return saved(plot_grid(columns, [label] * len(elements), crop=crop, **frame_of_axes(fused), **options), save)


def _smooth_residuals(fused, elements):
    """(n, ny, nx) normalised residuals, smoothed, so that structure stands out of the noise of pixels."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.nan_to_num(arrays(fused.normalised_residuals(), elements)), (0, _SMOOTH, _SMOOTH))


def _settings_in_words(settings, lists):
    """Those of which several values are tried."""
    settings = {name: value for name, value in settings.items() if len(lists[name]) > 1} or settings
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in settings.items()
    )


def _fixed(method):
    """The method of one fit with the settings that the automatic one chose."""
    return "calibrated" if method == "auto" else method


def _refuse_several_images(fit):
    if "image_registrations" in fit:
        raise ValueError(
            "The result is of several elastic images, of which it keeps the first: fuse again by FusedMultiModal, "
            "as with lambda_haadf=0 for a fit without images."
        )


def settings_of(fit: dict) -> Any:
    """The settings in effect in a fit, of ``"auto"`` those of the fit of largest weight as calibrated ones."""
    kind = SETTINGS[_fixed(fit["method"])]
    known = {one.name for one in fields(kind)}
    values = {name: _plain(value, fit["elements"]) for name, value in fit["parameters"].items() if name in known}
    return kind(**values)


def _plain(value, elements):
    """Of a flat array the tuple, or a dictionary of the elements that have a value; of NumPy's scalars the number."""
    if isinstance(value, np.ndarray) and value.ndim:
        pairs = zip(elements, value.tolist(), strict=False)
        return tuple(value.tolist()) if np.isfinite(value).all() else {e: v for e, v in pairs if np.isfinite(v)}
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


def opened(fused: Any, model: Callable, elements: Any, crop: Any, shown: dict, **drawn: Any) -> Any:
    """The explorer of a result, by a class of fits and how to show it. See ``ElementMaps.explore``."""
    from hyperspy_fusion.results.explorer import opened as open_explorer

    if given := [name for name, value in drawn.items() if value is not None]:
        raise ValueError(
            f"explore got {given[0]} and no settings: give lists of values, such as explore(lambda_reg=[0.5, 1, 2]), "
            "or leave it out to open the explorer."
        )
    fit, kept = fused._fit(), _refittable(fused)
    _refuse_several_images(fit)
    method = _fixed(fit["method"])
    fresh = model(kept.haadf, kept.maps, method=method, mask=kept.mask)
    return open_explorer(fresh._measured, method, settings_of(fit), fresh.maps, elements, crop, **shown)


def refit(fused: Any, fuse: Callable, method: str, settings: Any, **options: Any) -> Any:
    """The maps that a result was fused from, fused again."""
    kept = _refittable(fused)
    return fuse(kept.maps, kept.haadf, method=method, settings=settings, mask=kept.mask, **options)


def _refittable(fused):
    """What a result was fused from; ValueError where it is not known, or another part of the scan."""
    kept, fit = fused._inputs, fused._fit()
    if lost := "the frames fitted together with it" if fit.get("n_together", 1) > 1 else fit.get("not_kept"):
        raise ValueError(
            f"{fused!r} is a frame of a stack, which does not keep {lost}: fuse that scan by itself, by `inav[...]` of "
            "maps and image."
        )
    if kept is None or kept.maps is None or kept.haadf is None:
        raise ValueError(
            "The measured maps or the HAADF image are not known, for they are not in the file: save the result by "
            "save(..., everything=True), or fuse again."
        )
    if fused.data.shape != kept.maps.data.shape:
        raise ValueError(
            f"{fused!r} is a part of the result: call it on the whole result, and use elements= and crop=."
        )
    known = fit.get("measured_norms")
    if known is not None and not np.allclose(norms(np.asarray(kept.maps.data)), known, rtol=1e-5):
        raise ValueError("The measured maps were edited after the fit: fuse them again.")
    if "systematic_errors" in fit:  # which fits to whole spectra have
        raise ValueError(
            "The maps are a fit to whole spectra, which a result does not keep: fuse the spectra again, with "
            "lambda_haadf=0 for a fit without the image, or with lines='windows'."
        )
    return kept
