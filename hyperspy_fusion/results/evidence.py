"""What a result carries beside its maps: residuals, what moved them, and its inputs, in memory and in files."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.checks import default_errstate
from hyperspy_fusion.grid.axes import scan_axes
from hyperspy_fusion.grid.images import image_signal
from hyperspy_fusion.results.fused_maps import Inputs, inputs_of_part, modelled_haadf, refuse_changed, window_of
from hyperspy_fusion.results.uncertainty import Errors, maps_like

#: where a file has all that a result carries
EVERYTHING = "Fusion_evidence"


@default_errstate
def residual(fused):
    """Measured minus modelled HAADF image; see ``ElementMaps.residual``."""
    modelled = modelled_haadf(fused)
    measured = inputs_of_part(fused).haadf
    if measured is None:
        raise _not_kept(fused, "HAADF image")
    data = np.asarray(measured.data, np.float64) - _ramp(fused) - np.asarray(modelled.data, np.float64)
    return image_signal(data, scan_axes(fused), "HAADF residual")


def _ramp(fused):
    """What the fit took off the pixels (ny, nx) of the HAADF image that ``fused`` shows; 0 where nothing."""
    plane = fused._fit().get("haadf_ramp")
    window = None if plane is None else window_of(fused, fused._inputs.haadf)
    if plane is None or window is None:
        return 0.0
    y, x = np.mgrid[window]
    return plane[0] + plane[1] * y + plane[2] * x


def normalised_residuals(fused):
    """Measured minus fused maps over the noise; see ``ElementMaps.normalised_residuals``."""
    refuse_changed(fused, "normalised residuals")
    kept = fused._inputs or Inputs()
    if kept.residuals is None:
        raise _not_kept(fused, "normalised residuals")
    return maps_like(fused, _part_of(fused, kept.residuals), "Normalised residuals of")


def attribution(fused):
    """What moved each pixel; see ``ElementMaps.attribution``."""
    refuse_changed(fused, "attribution")
    kept = fused._inputs or Inputs()
    if not kept.changes:
        raise _not_kept(fused, "attribution")
    return {
        name: maps_like(fused, _part_of(fused, data), f"Change by {name} of") for name, data in kept.changes.items()
    }


def _part_of(fused, data):
    """The maps (n, ny, nx) of the whole scan that ``fused`` shows, in its order."""
    whole = fused._inputs.maps
    window = window_of(fused, whole)
    if window is None:
        raise ValueError(f"{fused!r} is on another grid than its fit: ask the result as it was fitted, or a crop.")
    index = [whole.elements.index(element) for element in fused.elements]
    return data[(index, *window)]


def _not_kept(fused, what):
    """The error where a result has no evidence."""
    if fused._fit()["method"] == "published" and what != "HAADF image":
        return ValueError(
            f"method='published' has no model of the noise, and so no {what}: fuse by method='calibrated' or 'auto'."
        )
    return ValueError(
        f"The {what} of these maps is not known, for it is not in their file: save the result by "
        "save(..., everything=True), or fuse again."
    )


# ---- files ----------------------------------------------------------------------------------------------


def as_metadata(fused) -> dict:
    """All that a result carries, as entries of metadata: arrays, lists of strings and signals.

    ValueError where there is nothing.
    """
    kept, errors = fused._inputs, fused._errors
    if kept is None or kept.maps is None:
        raise ValueError(
            f"{fused!r} carries no measured maps, so that there is nothing more to save: save the result of fuse, or "
            "call save without everything=True."
        )
    found = {"maps": kept.maps, "haadf": kept.haadf, "mask": kept.mask, "residuals": kept.residuals}
    # titles of images cannot be keys: files change some of their characters
    found |= {f"change_{number}": data for number, data in enumerate(kept.changes.values())}
    found |= {"changes_names": list(kept.changes)} if kept.changes else {}
    # the fit to the spectra of a region needs the spectra, which are not saved: no errors are better than others
    if errors is not None and errors.bootstrap.spectra is None:
        found |= {f"errors_{name}": data for name, data in errors.bootstrap.arrays().items()}
        found |= {"errors_elements": list(errors.elements), "errors_seed": int(errors.seed)}
    elif kept.counts is not None:
        found |= {f"counts_{name}": data for name, data in kept.counts.arrays().items()}
        found |= {"counts_elements": list(kept.fitted)}
    return {name: value for name, value in found.items() if value is not None}


def restore(fused) -> None:
    """Take what a file has of evidence out of the metadata of ``fused``, which carries it from then on."""
    node = fused.metadata.get_item(EVERYTHING)
    if node is None:
        return
    delattr(fused.metadata, EVERYTHING)
    found = {key.removeprefix("_sig_"): node.get_item(key) for key in node.keys()}
    arrays = {key: np.asarray(value) for key, value in found.items() if hasattr(value, "shape")}
    changes = {name: arrays[f"change_{number}"] for number, name in enumerate(found.get("changes_names", ()))}
    mask = arrays.get("mask")
    counts, fitted = _counts(arrays, found)
    fused._inputs = Inputs(
        counts=counts,
        fitted=fitted,
        maps=_signal(type(fused), found["maps"]),
        haadf=_signal(None, found.get("haadf")),
        mask=None if mask is None else mask.astype(bool),
        changes=changes,
        residuals=arrays.get("residuals"),
    )
    if "errors_maps" in arrays:
        fused._errors = _errors(fused, arrays, found)


def _signal(kind, saved) -> Any:
    """A signal that HyperSpy has read as a part of metadata, which is of no class of its own."""
    import hyperspy.api as hs

    if saved is None:
        return None
    content = saved._to_dictionary()
    content["data"] = np.asarray(content["data"])
    content.get("attributes", {}).pop("_lazy", None)
    kind = hs.signals.Signal2D if kind is None else next(c for c in kind.__mro__ if not c._lazy)
    for axis, navigate in zip(content["axes"], [True] * (len(content["axes"]) - 2) + [False] * 2, strict=True):
        axis["navigate"] = navigate
    return kind(**content)


def _counts(arrays, found):
    """The :class:`RegionCounts` of a file without bootstrap replicates, and of which elements."""
    from hyperspy_fusion.fusion.uncertainty.region_counts import RegionCounts

    if "counts_elements" not in found:
        return None, []
    own = {one.name: arrays.get(f"counts_{one.name}") for one in fields(RegionCounts)}
    own["counted"] = own["counted"].astype(bool)
    return RegionCounts(**own), list(found["counts_elements"])


def _errors(fused, arrays, found):
    from hyperspy_fusion.fusion.uncertainty.error_estimates import BootstrapReplicates

    resampled = {one.name: arrays.get(f"errors_{one.name}") for one in fields(BootstrapReplicates)}
    resampled["counted"] = resampled["counted"].astype(bool)
    whole = fused._inputs.maps.deepcopy()
    whole.data = whole.data.astype(resampled["maps"].dtype)
    for element, data in zip(found["errors_elements"], resampled["maps"], strict=True):
        whole.data[whole.elements.index(element)] = data
    return Errors(BootstrapReplicates(**resampled), whole, list(found["errors_elements"]), int(found["errors_seed"]))
