"""What a penalty takes from the HAADF image: its edges, without the noise of the image."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.registration.resampling import filled
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.settings import GUIDED, CalibratedSettings
from hyperspy_fusion.fusion.solvers.multilevel import multilevel_start
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual
from hyperspy_fusion.fusion.solvers.primal_dual_state import Stopping
from hyperspy_fusion.fusion.terms.data_fidelity import DataTerms
from hyperspy_fusion.fusion.terms.haadf_model import LinearHaadfModel, haadf_noise
from hyperspy_fusion.fusion.terms.objective import HaadfTerm, Objective
from hyperspy_fusion.fusion.terms.penalties import SECOND_ORDER, CellPenalty, cell_differences
from hyperspy_fusion.fusion.terms.scan_data import crop_of

_logger = logging.getLogger(__name__)

# edges of the guide below this fraction of the range of the HAADF image are taken for noise (Ehrhardt & Betcke 2016),
# in an image that was smoothed and in one that was denoised; tried on held-out counts and on phantoms
SMOOTHED_EDGE, DENOISED_EDGE = 0.003, 0.001
# Weight of the TGV that denoises the image. Directions of edges suffer more from noise that is left than from
# contrast that is lost; tried on held-out counts and on phantoms
DENOISING = {"guided": 1.0, "directional": 2.0}
# standard deviation in pixels of the Gaussian where noise cannot be distinguished from structure
USUAL_BLUR = CalibratedSettings.guide_blur
# noise below this fraction of the range is left in the image
_NO_NOISE = 1e-4
# Of the noise in second differences over that between the frequencies of a lattice: above it structure is as fine as
# pixels. About 1 for particles, 1.8 and more for lattices of less than six pixels.
_FINE = 1.5
# fewer second differences than this have no information on the noise
_FEWEST_DIFFERENCES = 50
# a pixel that is so many times the noise off all its neighbours is none of the structure, if no more than a part are
_OUTLYING, _FEW = 8.0, 0.02
# Standard deviation in pixels of an edge that is sharp on a lattice of pixels. Under a Gaussian b the mixed difference
# of 2x2 cells, over their differences, falls to 0.74, 0.49, 0.38, 0.26 and 0.20 of that in sharp discs and steps at
# b = 0.5, 0.75, 1, 1.5 and 2; 1 / hypot(1, b / 0.4) is 0.62, 0.47, 0.37, 0.26 and 0.20.
_SHARP = 0.4
# a smaller blur leaves edges their mixed differences: maps of phantoms lost up to 2 dB at 0.4 and gained at 0.8
_LEAST_BLUR = 0.7
# part of the image that is missing below which neighbours stand in for it, and the largest weight of a pixel of the
# image over one of the modelled image beside it
_FEW_MISSING, _MOST_TRUSTED = 0.01, 100.0
# weight of the TGV of the modelled image: on four phantoms with half of the image saturated, the noise that 1 and 3
# leave made worse edges than 8
_SMOOTHER = 8.0
# of the fit to the image
_TOL, _MAX_ITER = 1e-3, 2000


def completed_guide(haadf, valid, model, maps, maps_valid, variances, dtype, num_workers=None):
    """The :class:`Guide` of a HAADF image, with a modelled one where it is missing.

    Saturated or uncovered parts of the image have no edges that could guide a penalty, but the maps have. There
    the image is that of the forward model of the measured maps, without its noise: the least
    ``1/2 ||u - h||^2 / sigma^2 + 8 TGV(u / sigma)``. Few missing pixels are left to their neighbours.

    Parameters
    ----------
    haadf, valid
        (ny, nx) the image, and its valid pixels.
    model
        The forward model of the image.
    maps, maps_valid
        (n, ny, nx) measured maps less background, and their valid pixels.
    variances
        (n, ny, nx) of the maps.
    dtype, num_workers
        Of the fit.
    """
    missing, noise = ~valid & maps_valid.all(axis=0), 0.0
    if np.mean(missing) > _FEW_MISSING:
        noise = float(np.sqrt(np.mean(np.tensordot(model.weights**2, variances, 1), where=missing)))
    if not noise > 0:
        return Guide(haadf, valid, dtype, num_workers)
    image = filled(np.where(missing, model.image(maps), haadf), valid | missing)
    trusted = min((noise / max(haadf_noise(haadf, valid), 1e-30)) ** 2, _MOST_TRUSTED)
    # what is smoothed is the modelled image alone
    problem = _of_image(image, np.where(valid, _SMOOTHER * trusted, missing), _SMOOTHER * noise, dtype)
    image = np.where(missing, _fitted_image(problem, num_workers), haadf)
    return Guide(image, valid | missing, dtype, num_workers)


def _fitted_image(problem, num_workers):
    stopping, start = Stopping(_MAX_ITER, gap=_TOL), multilevel_start(problem, num_workers)
    result, _ = primal_dual(problem, stopping, start, num_workers=num_workers)
    if result.reason is StopReason.INTERRUPTED:
        raise KeyboardInterrupt
    _logger.debug("HAADF image: %d iterations, gap %.2g", result.n_iter, result.gap)
    return result.maps[0].astype(np.float64)


@dataclass(frozen=True, eq=False)
class Guide:
    """One HAADF image as a guide; it is denoised once, when that is first asked for.

    Attributes
    ----------
    haadf, valid
        (ny, nx) the image, and its valid pixels.
    dtype
        In which the image is denoised.
    num_workers
        Threads; None for all.
    limits
        The dark and the bright end of the image, of which this may be a part; None finds them.
    given_noise
        The :attr:`noise` in a tuple, where it is that of a larger image; () finds it.
    """

    haadf: np.ndarray
    valid: np.ndarray
    dtype: np.dtype
    num_workers: int | None = None
    limits: tuple | None = None
    given_noise: tuple = ()

    def cropped(self, window):
        """The guide of two slices (y, x) of the image, with the ends and the noise of the whole."""
        haadf, valid = crop_of(self.haadf, window), crop_of(self.valid, window)
        limits = self.limits or limits_of(self.haadf[self.valid])
        return replace(self, haadf=haadf, valid=valid, limits=limits, given_noise=(self.noise,))

    def of(self, kind, settings, dtype, haadf_blur=0.0):
        """What a penalty of this kind takes from the image: the ``guide`` of :class:`~.penalties.CellPenalty`.

        ``haadf_blur`` is the standard deviation in pixels by which the image is blurred more than the maps. The same
        array is returned for the same arguments.
        """
        if kind not in GUIDED:
            return None
        blur = USUAL_BLUR if self._stays_noisy(settings) else settings.guide_blur
        asked = (kind, blur, settings.eta if kind == "directional" else None, haadf_blur, dtype)
        if asked not in self._guides:
            self._guides[asked] = self._edges(kind, blur, settings.eta, haadf_blur, dtype)
        return self._guides[asked]

    def _edges(self, kind, blur, eta, haadf_blur, dtype):
        # the image is flat under a Gaussian of its size
        blur = None if blur is None else min(blur, max(self.haadf.shape))
        edges = cell_differences(self.denoised(DENOISING[kind]) if blur is None else gaussian_filter(self.scaled, blur))
        if kind == "directional":
            least = DENOISED_EDGE if blur is None else SMOOTHED_EDGE
            edges = directions(edges, least, eta, haadf_blur)
        return np.ascontiguousarray(edges, dtype)

    def about(self, kind, settings):
        """Diagnostics of a denoised guide that was asked for and is not possible."""
        if kind not in GUIDED or not self._stays_noisy(settings):
            return []
        sentence = (
            "The noise of the HAADF image cannot be separated from its structure: it is not denoised, but smoothed by "
            f"guide_blur={USUAL_BLUR:g}."
        )
        return [Diagnostic("guide-not-denoised", sentence)]

    def _stays_noisy(self, settings):
        return settings.guide_blur is None and self.noise is None

    @cached_property
    def scaled(self):
        """(ny, nx) the image in units of its range, 0 to 1; invalid pixels have the value of the nearest valid one."""
        low, high = self.limits or limits_of(self.haadf[self.valid])
        return np.clip((filled(self.haadf, self.valid) - low) / (high - low), 0, 1)

    @cached_property
    def noise(self):
        """Standard deviation of the white noise of the scaled image; None where structure cannot be excluded.

        Structure as fine as pixels, such as a lattice of few of them, adds to second differences
        (:func:`~.haadf_model.haadf_noise`) but not to the median over frequencies.
        """
        if self.given_noise:
            return self.given_noise[0]
        if np.prod(np.subtract(self.haadf.shape, 2)) < _FEWEST_DIFFERENCES:
            return None
        of_differences, of_frequencies = haadf_noise(self.scaled, self.valid), _noise_of_frequencies(self.scaled)
        return of_differences if of_differences <= _FINE * of_frequencies or of_differences < _NO_NOISE else None

    def denoised(self, weight=1.0):
        """(ny, nx) the least ``1/2 ||u - h||^2 / sigma^2 + weight TGV(u / sigma)``, u >= 0, to a duality gap of 0.001.

        h is the scaled image and sigma its :attr:`noise`; TGV is second-order total generalised variation, which keeps
        edges and slopes (Bredies, Kunisch & Pock, SIAM J. Imaging Sci. 3, 492, 2010). Invalid pixels and few
        that are far off all their neighbours do not contribute. It is found once. Ctrl-C raises KeyboardInterrupt.
        """
        if self.noise is None or self.noise < _NO_NOISE:
            return self.scaled
        if weight in self._denoised:
            return self._denoised[weight]
        counted = self.valid & ~_outlying(self.scaled, self.noise)
        # in units of this, TGV has the weight 1
        problem = _of_image(filled(self.scaled, counted), counted, weight * self.noise, self.dtype)
        self._denoised[weight] = _fitted_image(problem, self.num_workers)
        return self._denoised[weight]

    @cached_property
    def _guides(self):
        """Guide for each set of arguments."""
        return {}

    @cached_property
    def _denoised(self):
        """Image for each weight that was asked for."""
        return {}


def limits_of(pixels):
    """The dark and the bright end of pixels of an image, without the few that are beyond all others."""
    low, high = np.percentile(pixels, (0.1, 99.9))
    return (low, high) if high > low else (pixels.min(), pixels.max())


def directions(edges, least, eta, haadf_blur):
    """The direction field of ``"directional"`` from the differences of the 2x2 cells of an image.

    The direction xi of the differences is shorter than 1 by ``eta``, and where they are not above ``least``. The mixed
    difference of a 2x2 cell is that of two opposite differences. Edges of a blurred image have less of it than
    those of the maps, and what they have is mostly noise. xi is then without it, and the maps may have that much
    more of it where the image has an edge.

    Differences are (4, ny - 1, nx - 1), as those of :func:`~.penalties.cell_differences`. With a blur the field is
    (5, ny - 1, nx - 1): xi, and the part of the mixed difference without penalty.
    """
    is_blurred = haadf_blur >= _LEAST_BLUR
    if is_blurred:
        down, right = edges[:2].mean(axis=0), edges[2:].mean(axis=0)
        edges = np.stack([down, down, right, right])
    xi = np.sqrt(eta) * edges / np.sqrt(np.sum(edges**2, axis=0) + least**2)
    if not is_blurred:
        return xi
    lost = 1 - 1 / np.hypot(1, haadf_blur / _SHARP)
    return np.concatenate([xi, lost * np.sum(xi**2, axis=0, keepdims=True)])


def _noise_of_frequencies(image):
    """Standard deviation of white noise from the median power where both frequencies are above half of the highest.

    Structure adds to the power of few frequencies if it repeats itself, and falls off with frequency if it does not.
    """
    window = np.multiply.outer(*(np.hanning(size + 2)[1:-1] for size in image.shape))
    power = np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2 / np.sum(window**2)
    high = np.logical_and.outer(*(np.abs(np.fft.fftfreq(size)) > 0.25 for size in image.shape))
    # of an exponential distribution the median is log 2 of the mean
    return float(np.sqrt(np.median(power[high]) / np.log(2)))


def _outlying(image, sigma):
    """(ny, nx) bool: pixels far above or far below all their neighbours, unless there are many, as in a lattice."""
    around = np.ones((3, 3), bool)
    around[1, 1] = False
    lowest, highest = (f(image, footprint=around, mode="mirror") for f in (minimum_filter, maximum_filter))
    far = (image > highest + _OUTLYING * sigma) | (image < lowest - _OUTLYING * sigma)
    return far if np.mean(far) <= _FEW else np.zeros_like(far)


def _of_image(image, counted, sigma, dtype):
    """``1/2 ||u - image||^2 / sigma^2 + TGV(u / sigma)`` as the objective of one map.

    ``counted`` (ny, nx) is bool, or the weight of each pixel.
    """
    start = np.ascontiguousarray(image[None] / sigma, dtype)
    is_even = counted.dtype == bool and counted.all()
    used = np.ones((1, 1, image.shape[1]), dtype) if is_even else np.ascontiguousarray(counted[None], dtype)
    return Objective(
        scales=np.array([sigma]),
        initial_maps=start,
        data=DataTerms(
            is_poisson=False,
            beta=start * used,
            slope=used,
            delta=np.zeros_like(used),
            upper=2 * start.max(axis=(1, 2)),
            totals=np.array([np.nan]),
        ),
        haadf_term=HaadfTerm.none(image.shape, dtype),
        penalty=CellPenalty("tgv", 1, False, SECOND_ORDER["tgv"], None),
        forward_model=LinearHaadfModel(np.zeros(1), 0.0),
    )
