"""One frame of a fused stack, with the record of its fit."""

from __future__ import annotations

from typing import Any

import numpy as np

from hyperspy_fusion.results.fused_maps import Inputs, norms


def frame_of(stack: Any, index: Any) -> Any:
    """One frame of fused maps; see ``ElementMaps.frame``."""
    axis = stack._map_axis()
    others = [a for a in stack.axes_manager.navigation_axes if a is not axis]
    if not stack.metadata.has_item("Fused_frames") or not others:
        raise ValueError(f"{stack!r} is not the result of fusing a stack, and has no frames: call frame on that.")
    index = tuple(np.atleast_1d(index).tolist())
    if len(index) != len(others):
        named = ", ".join(str(a.name) for a in others)
        raise ValueError(f"index is {index}, and the stack has the axes {named}: give one number for each of them.")
    found = _at(stack, index)
    if found._lazy:
        found.compute(show_progressbar=False)
    fit = _fit_of(stack.metadata.Fused_frames, found)
    if fit is None:
        raise ValueError(f"There is no fit of the frame {index}: it failed, or was changed after the fit.")
    del found.metadata.Fused_frames
    found.metadata.set_item("Fusion", fit)
    kept = stack._inputs
    found._inputs = None if kept is None else Inputs(*(_at(one, index) for one in (kept.maps, kept.haadf)))
    return found


def _at(signal, index):
    """The part at an index along the axes that are not of elements."""
    at = iter(index)
    axes = signal.axes_manager.navigation_axes
    return signal.inav[tuple(slice(None) if axis.name == "element" else next(at) for axis in axes)]


def _fit_of(records, found):
    """The ``metadata.Fusion`` of the fit with these maps, recognised by their norms; None where there is none."""
    own = norms(np.atleast_3d(found.data.T).T)
    for name in records.keys():
        if name.startswith("frame_") and np.allclose(np.asarray(records[name].map_norms), own, rtol=1e-5):
            return records[name].as_dictionary()
    return None
