"""Images of HyperSpy signals as plain arrays, and whether two of them lie on the same scan."""

import logging

import numpy as np

_logger = logging.getLogger(__name__)

# half a pixel over the field of view is what an unregistered scan cannot show anyway
SILENT_PIXELS = 0.5
# two detectors of one vendor file disagree by 0.6 % (0.41452 and 0.4169 um); another binning or another
# field of view is a factor far above
SAME_SCAN_RTOL = 0.05

# names of an axis along which one map follows another
STACK_AXES = ("element", "stack_element")

# to pint "px" is the CSS pixel, a length of 0.26 mm
UNCALIBRATED = {"", "px", "pixel", "pixels", "<undefined>", "None"}
# to pint "A" is the ampere, which no scan is measured in
_UNIT_NAMES = {"A": "angstrom", "Ang": "angstrom", "Angstrom": "angstrom"}


def image_array(signal):
    """
    The pixels of a 2-D signal, in memory, as they are.

    Parameters
    ----------
    signal : hyperspy.api.signals.BaseSignal
        An image ``(|x, y)`` or a map ``(x, y|)``; lazy ones are computed.

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
        Not two-dimensional, empty, or with NaN, infinite or masked pixels.
    NotImplementedError
        A spatial axis is not uniform.
    """
    check_image(signal)
    data = signal.data.compute() if hasattr(signal.data, "compute") else signal.data
    return checked_pixels(data, str(signal))


def check_image(signal):
    """Raise unless `signal` is one real 2-D image on uniform axes; the pixels are not looked at."""
    check_signal(signal)
    check_real(signal)
    spatial_axes(signal)


def check_signal(signal):
    """Raise TypeError unless `signal` is a HyperSpy signal."""
    from hyperspy.signal import BaseSignal

    if not isinstance(signal, BaseSignal):
        raise TypeError(
            f"a HyperSpy signal is needed, got {type(signal).__name__}: wrap an array as "
            "hyperspy.api.signals.Signal2D(array)."
        )


def check_real(signal):
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


def spatial_axes(signal):
    """
    The axes of an image, in array order.

    Parameters
    ----------
    signal : hyperspy.api.signals.BaseSignal
        ``(|x, y)`` or ``(x, y|)``.

    Returns
    -------
    list of dict
        Of y, then of x: size, name, scale, offset and units, which `axes=` of a signal takes.

    Raises
    ------
    ValueError
        Not exactly two dimensions, or no pixels.
    NotImplementedError
        One of the two axes is not uniform.
    """
    manager = signal.axes_manager
    dimensions = (manager.navigation_dimension, manager.signal_dimension)
    if dimensions not in ((0, 2), (2, 0)):
        way_out = "; take one image by `.inav[...]` or add them up by `.sum()`" if sum(dimensions) > 2 else ""
        raise ValueError(f"{signal} is not one image: expected dimensions (|x, y) or (x, y|){way_out}.")
    return axis_dicts(manager.signal_axes or manager.navigation_axes, signal)


def axis_dicts(axes, signal):
    """`spatial_axes` of the given axes of `signal`."""
    return [_axis_dict(axis, signal) for axis in sorted(axes, key=lambda axis: axis.index_in_array)]


def _axis_dict(axis, signal):
    if not axis.is_uniform:
        raise NotImplementedError(
            f"{signal} has the non-uniform axis {axis.name!r}, and only uniform scans can be fused: "
            "interpolate it first, e.g. by `signal.interpolate_on_axis`."
        )
    if not axis.size:
        raise ValueError(f"{signal} is empty: an image of at least one pixel is needed.")
    return {key: getattr(axis, key) for key in ("size", "name", "scale", "offset", "units")}


def stack_axes(signal):
    """The axis that counts the maps, and the two of the scan; stacked ``(x, y|)`` maps navigate all three."""
    manager = signal.axes_manager
    if manager.signal_dimension == 2:
        return manager.navigation_axes[0], manager.signal_axes
    axes = sorted(manager.navigation_axes, key=lambda axis: axis.index_in_array)
    axis = next((axis for axis in axes if axis.name in STACK_AXES), axes[0])
    return axis, [other for other in axes if other is not axis]


def checked_pixels(data, what):
    """`data` in native byte order, copied only if it is not; ValueError for NaN, inf or masked pixels."""
    mask, data = np.ma.getmask(data), np.ma.getdata(data)
    bad = np.count_nonzero(~np.isfinite(data) | mask)
    if bad:
        raise ValueError(
            f"{what} has {bad} of {data.size} pixels that are NaN, infinite or masked, and every pixel must "
            "be a number: replace them first, e.g. by numpy.nan_to_num."
        )
    return data if data.dtype.isnative else data.astype(data.dtype.newbyteorder("="))


def check_same_scan(map_axes, haadf_axes, *, maps="the maps", haadf="haadf"):
    """
    Compare the axes of two images that should come from the same scan.

    Shapes must be the same. Pixel sizes are compared in common units where both are calibrated: a difference
    below half a pixel over the field of view is silent, up to 5 % it is a warning (vendor files carry a
    slightly different calibration per detector), above it is an error. Offsets and names are not compared,
    "px" and undefined units are no calibration, and "A" is read as angstrom.

    Parameters
    ----------
    map_axes, haadf_axes : list of dict
        What `spatial_axes` returns.
    maps, haadf : str
        What to call the two in messages.

    Returns
    -------
    list of str
        Sentences, which are logged as warnings too.

    Raises
    ------
    ValueError
        Other shapes, or pixel sizes that differ by more than 5 %.
    """
    check_same_shape(map_axes, haadf_axes, maps, haadf)
    found = [_compare_pixel(m, h, maps, haadf) for m, h in zip(map_axes, haadf_axes, strict=True)]
    # y and x usually say the same
    warnings = list(dict.fromkeys(sentence for sentence in found if sentence))
    for sentence in warnings:
        _logger.warning(sentence)
    return warnings


def check_same_shape(map_axes, haadf_axes, maps, haadf):
    """Raise ValueError, with the line of code that helps, unless both have the same numbers of pixels."""
    expected, got = (tuple(axis["size"] for axis in axes) for axes in (map_axes, haadf_axes))
    if expected == got:
        return
    if got[0] * expected[1] == got[1] * expected[0]:
        smaller = min(expected, got)[::-1]
        remedy = f"rebin the larger by `.rebin(new_shape={smaller})`, which conserves the sum"
    else:
        remedy = "crop the larger to the area of the other, e.g. by `.isig[left:right, top:bottom]`"
    raise ValueError(
        f"{haadf} has the shape {got} and {maps} {expected} (y, x), but both must come from the same scan: {remedy}."
    )


def is_calibrated(axis):
    """Whether an axis dict has units that are a unit: not undefined and not pixels."""
    return str(axis["units"]).strip() not in UNCALIBRATED


def _compare_pixel(m, h, maps, haadf):
    """Sentence about two axes of one size, "" where they agree; ValueError where they clearly differ."""
    if not (is_calibrated(m) and is_calibrated(h)):
        return ""
    ratio = _ratio(h, m)
    if ratio is None:
        return (
            f"the units of {maps} ({m['units']}) and of {haadf} ({h['units']}) cannot be compared; "
            "it is taken for granted that both come from the same scan."
        )
    if abs(ratio - 1) * m["size"] <= SILENT_PIXELS:
        return ""
    sizes = f"{haadf} has pixels of {h['scale']:.5g} {h['units']} and {maps} of {m['scale']:.5g} {m['units']}"
    if abs(ratio - 1) <= SAME_SCAN_RTOL:
        return f"{sizes}, {abs(ratio - 1):.1%} apart; both are taken for the same scan, on the axes of {maps}."
    raise ValueError(
        f"{sizes}, a factor of {ratio:.4g}, so they are not the same scan: correct the scale of one "
        "(`axes_manager[...].scale`) or crop and rebin it to the field of view of the other."
    )


def _ratio(h, m):
    """Scale of `h` over scale of `m` in common units; None where they are not comparable."""
    import pint

    units = pint.get_application_registry()  # the one HyperSpy uses
    names = [str(axis["units"]).strip() for axis in (h, m)]
    if names[0] == names[1]:  # units that pint does not know can still be the same
        names = ["", ""]
    try:
        h, m = (
            units.Quantity(axis["scale"], _UNIT_NAMES.get(name, name)) for axis, name in zip((h, m), names, strict=True)
        )
        return (h / m).to("").magnitude
    except Exception:  # pint raises AttributeError, TypeError, TokenError, ... for what it cannot read
        return None
