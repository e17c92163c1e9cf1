"""What is known of the noise of maps: kept in their metadata, pixel by pixel, and read from there."""

import numpy as np

from hyperspy_fusion.grid import axes as grids

# where the metadata have it, and its name; the variance is where HyperSpy has it
_NOISE = {"Element_maps.background": "known background", "Signal.Noise_properties.variance": "variance"}


def known_noise(signal):
    """
    Background and variance that a map or a stack of maps has in its metadata.

    Returns
    -------
    tuple
        Two arrays of the shape of the pixels, in memory, None for what is not known.
    """
    return tuple(_known(signal, path, what) for path, what in _NOISE.items())


def _known(signal, path, what):
    node = signal.metadata.get_item(path)
    if not hasattr(node, "axes_manager"):
        return None
    if node.data.shape != signal.data.shape:
        grids.warn(
            f"The {what} that {signal} has is not used, for its shape {node.data.shape} is not that of the maps "
            f"{signal.data.shape}: it is of other pixels, or of the first map of a stack."
        )
        return None
    values = np.asarray(node.data)
    # fits that were not told their variance leave zeros
    return values if what != "variance" or np.any(values > 0) else None


def with_noise(signal, background, variance):
    """`signal` with what is known of its noise, None for nothing, in its metadata."""
    import hyperspy.api as hs

    for (path, what), values in zip(_NOISE.items(), (background, variance), strict=True):
        if values is not None:
            node = hs.signals.Signal2D(values, axes=signal.axes_manager._get_axes_dicts())
            node.metadata.General.title = what.capitalize()
            signal.metadata.set_item(path, node)
    return signal
