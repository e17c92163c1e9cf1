"""Noise metadata of maps: background and variance, pixel by pixel, written to and read from their metadata."""

from __future__ import annotations

from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic

# where the metadata have them, and their names; the variance is where HyperSpy has it
_NOISE = {"Element_maps.background": "background", "Signal.Noise_properties.variance": "variance"}


def noise_metadata(signal: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """
    Background and variance that a map or a stack of maps has in its metadata.

    Returns
    -------
    tuple
        Two arrays of the shape of the pixels, in memory; None where there is none of this shape.
    """
    found = []
    for path, name in _NOISE.items():
        node = signal.metadata.get_item(path)
        values = np.asarray(node.data) if _has_shape_of(node, signal) else None
        # fits without a variance leave zeros
        found.append(None if values is None or (name == "variance" and not np.any(values > 0)) else values)
    return found[0], found[1]


def noise_diagnostics(signal: Any) -> list[Diagnostic]:
    """Code ``"noise-metadata-shape"`` for noise metadata that are of other pixels, as of the first map of a stack."""
    nodes = {name: signal.metadata.get_item(path) for path, name in _NOISE.items()}
    return [
        Diagnostic(
            "noise-metadata-shape",
            f"The {name} in the metadata has the shape {node.data.shape}, not {signal.data.shape} of the maps: it is "
            "not used; delete it, or give each map its own.",
        )
        for name, node in nodes.items()
        if hasattr(node, "axes_manager") and not _has_shape_of(node, signal)
    ]


def _has_shape_of(node, signal):
    return hasattr(node, "axes_manager") and node.data.shape == signal.data.shape


def with_noise_metadata(signal: Any, background: np.ndarray | None, variance: np.ndarray | None) -> Any:
    """`signal` with background and variance in its metadata, None for neither."""
    import hyperspy.api as hs

    for (path, name), values in zip(_NOISE.items(), (background, variance), strict=True):
        if values is not None:
            node = hs.signals.Signal2D(values, axes=signal.axes_manager._get_axes_dicts())
            node.metadata.General.title = name.capitalize()
            signal.metadata.set_item(path, node)
    return signal
