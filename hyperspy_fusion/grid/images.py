"""Images of HyperSpy signals as plain arrays: one real, uniform, two-dimensional image, with or without NaN."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from hyperspy_fusion.grid.axes import STACK_AXES, Axes, capital, spatial_axes


def image_array(signal: Any, allow_nan: bool = False) -> np.ndarray:
    """
    The pixels of a 2-D signal, the HAADF image, in memory, as they are.

    Parameters
    ----------
    signal : hyperspy.api.signals.BaseSignal
        An image ``(|x, y)`` or a map ``(x, y|)``; lazy ones are computed.
    allow_nan : bool
        Whether to pass pixels that are NaN, infinite or masked, all as NaN in a floating dtype.

    Returns
    -------
    numpy.ndarray
        Shape (ny, nx), in the dtype of the signal and the byte order of the machine. It may share memory
        with the signal: do not write to it.

    Raises
    ------
    TypeError
        Not a signal; complex, RGB or ragged data.
    ValueError
        Not two-dimensional, empty, or with NaN, infinite or masked pixels that are not allowed.
    NotImplementedError
        A spatial axis is not uniform.
    """
    check_signal(signal)
    if is_spectrum_image(signal) or (signal._signal_type == "element_maps" and signal.axes_manager.navigation_size):
        kind = "a spectrum image" if is_spectrum_image(signal) else "a stack of element maps"
        raise ValueError(f"{signal} is {kind}, and the HAADF image is needed: haadf and maps look swapped.")
    check_image(signal)
    data = signal.data.compute() if hasattr(signal.data, "compute") else signal.data
    data = nan_pixels(data) if allow_nan else finite_pixels(data, str(signal))
    return data if data.dtype.isnative else data.astype(data.dtype.newbyteorder("="))


def image_signal(data: np.ndarray, axes: Axes, title: str) -> Any:
    """A Signal2D of an image (ny, nx) on the axes of y and x."""
    from hyperspy.signals import Signal2D

    return Signal2D(data, axes=list(axes), metadata={"General": {"title": title}})


def check_image(signal: Any) -> None:
    """Raise unless `signal` is one real 2-D image on uniform axes; the pixels are not looked at."""
    check_signal(signal)
    check_real(signal)
    spatial_axes(signal)


def check_signal(signal: Any) -> None:
    """Raise TypeError unless `signal` is a HyperSpy signal."""
    from hyperspy.signal import BaseSignal

    if isinstance(signal, BaseSignal):
        return
    got, remedy = type(signal).__name__, "wrap an array as hyperspy.api.signals.Signal2D(array)"
    if isinstance(signal, str | os.PathLike):
        got, remedy = f"the path {os.fspath(signal)!r}", "load it first with hyperspy.api.load"
    elif isinstance(signal, list | tuple):
        got, remedy = f"a {got} of {len(signal)}", "pass one of its signals"
    raise TypeError(f"A HyperSpy signal is needed, got {got}: {remedy}.")


def check_real(signal: Any) -> None:
    """Raise TypeError for complex, RGB, ragged and other data that are not real numbers."""
    dtype = signal.data.dtype
    if signal.ragged or dtype.kind == "O":
        problem = "is ragged: every pixel must hold one number"
    elif dtype.names:
        problem = "is an RGB picture, whose colours are not intensities: pass the map it was drawn from"
    elif dtype.kind == "c":
        problem = "is complex: pass one real part of it, such as `signal.amplitude`"
    elif dtype.kind not in "biuf":
        problem = f"has dtype {dtype}: real numbers are needed"
    else:
        return
    raise TypeError(f"{signal} {problem}.")


def is_spectrum_image(signal: Any) -> bool:
    """Whether `signal` is a signal ``(x, y|E)``, or a model of one."""
    manager = getattr(signal, "axes_manager", None)
    return bool(manager) and (manager.navigation_dimension, manager.signal_dimension) == (2, 1)


def is_eels(source: Any) -> bool:
    """Whether `source` is an EELS spectrum image, and no stack of maps that was transposed."""
    if not (is_spectrum_image(source) and hasattr(source, "data")):
        return False
    is_stack = source.axes_manager.signal_axes[0].name in STACK_AXES
    return source.metadata.get_item("Signal.signal_type", "") == "EELS" and not is_stack


def finite_pixels(data: np.ndarray, name: str) -> np.ndarray:
    """`data` without its mask, never copied; ValueError, which has the `name`, for NaN, inf or masked pixels."""
    mask, data = np.ma.getmask(data), np.ma.getdata(data)
    bad = np.count_nonzero(~np.isfinite(data) | mask)
    if bad:
        raise ValueError(
            f"{capital(name)} has {bad} of {data.size} pixels that are NaN, infinite or masked, and every pixel must "
            "be a number: fuse with method='calibrated', which leaves them out, or replace them first, e.g. by "
            "numpy.nan_to_num."
        )
    return data


def nan_pixels(data: np.ndarray) -> np.ndarray:
    """`data` with NaN for its NaN, infinite and masked pixels, in a floating dtype; not copied where there are none."""
    mask, data = np.ma.getmask(data), np.ma.getdata(data)
    bad = ~np.isfinite(data) | mask
    return np.where(bad, np.float32(np.nan), data) if bad.any() else data
