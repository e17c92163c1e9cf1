"""Compression of a HAADF image: intensity that rises less and less with the maps."""

from __future__ import annotations

import numpy as np
from scipy.optimize import fminbound

from hyperspy_fusion.diagnostics import INFORMATION, Diagnostic
from hyperspy_fusion.fusion.haadf.moment_equations import binned
from hyperspy_fusion.fusion.terms.haadf_model import Compression

# sides in pixels of the squares whose means are compared, without and with a blur that moves intensity between them
_SIDE, _SIDE_OF_BLURRED, _LITTLE_BLUR = 8, 16, 2.0
# squares at least
_FEWEST = 16
# scales that are tried, as fractions of the range of the signal; at the ends of these the curve is another one
_SCALES = np.geomspace(0.1, 2.0, 16)
# part of the contrast that the linear model leaves and the curve does not. On scans with a compressed image 0.4 to 0.9
# and 0.2; on particles whose heavy element is not mapped, the curve left 0.34
_LEFT = 0.3
# part of the variance about the best line that the curve leaves: 0.3 to 0.4 on the former; noise of few counts, which
# bends a line too, left 0.6
_LEFT_BY_CURVE = 0.5


def compression_of(scan, net, forward_model):
    """The :class:`Compression` of the HAADF image, None where it is as linear as the maps can show; and diagnostics.

    It is fitted to means over squares of pixels by least squares. Gain and offset of the forward model are mainly those
    of dark pixels. A curve is taken only where it explains much that no other line does.

    Parameters
    ----------
    scan
        A :class:`~.terms.scan_data.ScanData` of one image, with 0 in pixels that are not valid.
    net
        (n, ny, nx) measured maps less background.
    forward_model
        The :class:`~.terms.haadf_model.LinearHaadfModel` of these.
    """
    signal, image, weights = _squares(scan, net, forward_model)
    if len(image) < _FEWEST or not np.ptp(signal) > 0:
        return None, []
    contrast = np.cov(signal, image, aweights=weights, ddof=0)
    by_line = contrast[1, 1] - contrast[0, 1] ** 2 / contrast[0, 0]
    much = _LEFT**2 * contrast[1, 1]
    if np.average((image - signal) ** 2, weights=weights) <= much:
        return None, []

    def fit(log_scale):
        """Height of the curve and mean square of what it leaves."""
        curve = -np.expm1(-signal / np.exp(log_scale))
        height = (weights @ (curve * image)) / (weights @ curve**2)
        return height, np.average((image - height * curve) ** 2, weights=weights)

    scales = np.log(np.ptp(signal) * _SCALES)
    best = int(np.argmin([fit(one)[1] for one in scales]))
    height, left = fit(scales[best])
    if best in (0, len(scales) - 1) or left > min(_LEFT_BY_CURVE * by_line, much) or height <= 0:
        return None, []
    found = fminbound(lambda log_scale: fit(log_scale)[1], scales[best - 1], scales[best + 1])
    compression = Compression(float(fit(found)[0]), float(np.exp(found)))
    return compression, _about(compression, np.percentile(signal, 99))


def _about(compression, signal):
    """The diagnostic of a compressed image whose brightest squares have such a signal."""
    slope = np.exp(-signal / compression.scale)
    sentence = (
        f"The HAADF image is compressed: at its brightest it rises with the maps by {slope:.0%} of its first slope. "
        "Causes: a thick specimen, or an element that is not mapped. modelled_haadf() follows it."
    )
    return [Diagnostic("haadf-compressed", sentence, INFORMATION)]


def _squares(scan, net, forward_model):
    """Signal, image above the offset, and number of valid pixels of squares; half-empty ones are left out."""
    used = scan.haadf_valid & scan.valid.all(axis=0)
    side = _SIDE if forward_model.blur <= _LITTLE_BLUR else _SIDE_OF_BLURRED
    arrays = np.tensordot(forward_model.weights, net, 1), scan.haadf - forward_model.offset, 1.0
    signal, image, number = (binned(np.where(used, a, 0.0), side).ravel() for a in arrays)
    full = number > side**2 / 2
    return signal[full] / number[full], image[full] / number[full], number[full]
