"""Virtual detectors and the integrated centre of mass of a 4D-STEM scan."""

from __future__ import annotations

from typing import Any

import numpy as np

from hyperspy_fusion.fusion.checks import check_choice, check_from, default_errstate
from hyperspy_fusion.images.patterns import Patterns

KINDS = ("sum", "com")


@default_errstate
def virtual_image(
    s4d: Any,
    inner: float | None = None,
    outer: float | None = None,
    centre: tuple[float, float] | None = None,
    *,
    kind: str = "sum",
    units: str | None = None,
    rotation: float = 0.0,
    show_progressbar: bool | None = None,
) -> Any:
    """
    Image of a 4D-STEM scan by a virtual detector, or by the integrated centre of mass.

    Lazy scans are read chunk by chunk, in one pass.

    Parameters
    ----------
    s4d : BaseSignal
        Patterns ``(x, y|kx, ky)``, in memory or lazy. Not changed.
    inner, outer : float, optional
        Radii of the detector, ``inner <= r < outer``; None for 0 and for no limit. Without both, the whole detector is
        summed, and the image of a thin specimen is nearly constant.
    centre : tuple of float, optional
        Centre (x, y) of the patterns. None takes the zero of calibrated axes. Where they have none, it takes the centre
        of mass of the mean pattern, for which the scan is read once more.
    kind : {"sum", "com"}
        ``"sum"`` adds up the counts of the detector. ``"com"`` integrates the centre of mass of the pattern, within
        the detector where radii are given. For thin specimens it is the phase (iDPC; Lazic, Bosch and Lazar,
        Ultramicroscopy 160, 265, 2016), in rad where the axes and the beam energy are calibrated, of mean 0.
    units : str, optional
        Of ``inner``, ``outer`` and ``centre``. None for those of calibrated axes, such as mrad, else pixels; ``"px"``
        for pixels.
    rotation : float
        For ``"com"``: the angle in degrees from the x axis of the detector to that of the scan, in the sense from x
        to y.
    show_progressbar : bool, optional
        None follows HyperSpy's preference.

    Returns
    -------
    Signal2D
        On the axes of the scan, to be fused as HAADF image, or beside one. ``metadata.Virtual_image`` has the detector.

    Raises
    ------
    ValueError
        The signal is no 4D-STEM scan, or the detector has no pixel.

    Examples
    --------
    >>> import numpy as np, hyperspy.api as hs, hyperspy_fusion as hf
    >>> s4d = hs.signals.Signal2D(np.ones((8, 9, 16, 16)))
    >>> hf.virtual_image(s4d, inner=4, outer=8)
    <Signal2D, title: Virtual image, dimensions: (|9, 8)>
    """
    check_choice("kind", kind, KINDS)
    check_from("rotation", abs(rotation), 0)
    patterns = Patterns.of(s4d)
    units = patterns.units(units)
    inner = 0.0 if inner is None else inner
    check_from("inner", inner, 0)
    if outer is not None and not outer > inner:
        raise ValueError(f"outer is {outer!r} and inner {inner!r}: outer must be larger than inner.")
    centre_px = patterns.centre(centre, units, show_progressbar)
    y, x = patterns.distances(centre_px, units)
    radius = np.hypot(y, x)
    detector = (radius >= inner) & (radius < (np.inf if outer is None else outer))
    if not detector.any():
        raise ValueError(
            f"The detector from {inner:g} to {outer} {units} has no pixel: the patterns reach from {radius.min():.4g} "
            f"to {radius.max():.4g} {units}, and radii are taken in these units."
        )
    if kind == "sum":
        data = patterns.sums(detector[None].astype(np.float64), show_progressbar)[..., 0]
        image = patterns.image(data, "Virtual image")
    else:
        data, quantity = _integrated(patterns, detector, centre_px, rotation, show_progressbar)
        image = patterns.image(data, "Integrated centre of mass")
        image.metadata.Signal.quantity = quantity
    node = {"kind": kind, "inner": float(inner), "outer": float(np.inf if outer is None else outer), "units": units}
    node |= {"centre_x": float(centre_px[1]), "centre_y": float(centre_px[0]), "rotation": float(rotation)}
    image.metadata.set_item("Virtual_image", node)
    return image


def _integrated(patterns, detector, centre, rotation, show_progressbar):
    """The integrated centre of mass (y, x), and what it is."""
    lines = patterns.distances(centre, "px")
    weights = np.stack([detector, *(detector * line for line in lines)]).astype(np.float64)
    total, *moments = np.moveaxis(patterns.sums(weights, show_progressbar), -1, 0)
    com = [np.divide(moment, total, out=np.zeros_like(total), where=total > 0) for moment in moments]
    angle = np.deg2rad(rotation)
    steps, quantity = patterns.steps(), "Phase ($rad$)"
    frequencies = patterns.frequencies_per_pixel(patterns.microscope("beam_energy"))
    if steps is None or frequencies is None:
        steps, frequencies = (
            np.array([-1 if axis["scale"] < 0 else 1 for axis in axes]) for axes in (patterns.scan, patterns.detector)
        )
        quantity = "Integrated centre of mass ($a.u.$)"
    y, x = (frequency * values for frequency, values in zip(frequencies, com, strict=True))
    along_y, along_x = y * np.cos(angle) - x * np.sin(angle), x * np.cos(angle) + y * np.sin(angle)
    slopes = [2 * np.pi * step * (part - part.mean()) for step, part in zip(steps, (along_y, along_x), strict=True)]
    return integrated(*slopes), quantity


def integrated(slope_y, slope_x):
    """The image (ny, nx) of mean 0 whose slopes per pixel are nearest to the given ones.

    Least squares over cosines, whose slopes are sines: the image need not be periodic.
    """
    from scipy.fft import dct, dst, idctn

    ny, nx = slope_y.shape
    ky, kx = np.pi * np.arange(ny)[:, None] / ny, np.pi * np.arange(nx)[None] / nx
    # sines begin at the frequency 1; that of the last one is no slope of a cosine
    along_y = np.roll(np.asarray(dct(dst(slope_y, axis=0), axis=1)), 1, axis=0)
    along_x = np.roll(np.asarray(dct(dst(slope_x, axis=1), axis=0)), 1, axis=1)
    square = ky**2 + kx**2
    square[0, 0] = 1
    return np.asarray(idctn(-(ky * along_y + kx * along_x) / square))
