"""Images of HyperSpy signals as plain arrays: one real, uniform, two-dimensional image, with or without NaN."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from hyperspy_fusion.grid.axes import STACK_AXES, Axes, axis_dicts, capital, layout, order_problem, spatial_axes


def image_array(signal: Any, allow_nan: bool = False) -> np.ndarray:
    """The pixels (ny, nx) of a 2-D signal, the HAADF image, in memory, as they are.

    NaN, infinite and masked pixels are an error, or, with `allow_nan`, all NaN in a floating dtype. The array has the
    byte order of the machine. It may share memory with the signal: do not write to it.
    """
    check_signal(signal)
    is_spectra = layout(signal) == "spectra"
    if is_spectra or (signal._signal_type == "element_maps" and signal.axes_manager.navigation_size):
        kind = "a spectrum image" if is_spectra else "a stack of element maps"
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


def check_energies(signal: Any, *units: str) -> None:
    """Raise unless the energies of a spectrum image are uniform and in one of the `units`, the usual one first."""
    axis = signal.axes_manager.signal_axes[0]
    if problem := order_problem(signal):
        raise ValueError(problem)
    if not axis.is_uniform:
        raise NotImplementedError(f"{signal} has a non-uniform energy axis: interpolate it first.")
    if axis.units not in units:
        raise ValueError(
            f"The energy axis of {signal} has the units {axis.units}: expected {' or '.join(sorted(units))}, set by "
            f"`s.axes_manager.signal_axes[0].units = {units[0]!r}`."
        )
    axis_dicts([*signal.axes_manager.navigation_axes, axis], signal)


def is_eels(source: Any) -> bool:
    """Whether `source` is an EELS spectrum image, and no stack of maps that was transposed."""
    if layout(source) != "spectra" or not hasattr(source, "data"):
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
