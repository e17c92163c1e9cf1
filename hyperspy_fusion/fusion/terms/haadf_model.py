"""HAADF forward models: from element maps to the HAADF image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperspy_fusion.fusion.terms.noise_estimation import estimate_variance


def haadf_coefficients_of(atomic_numbers, gamma, weighting):
    """(n,) HAADF coefficients ``w_i`` of the published code, from the atomic numbers of the maps.

    By ``weighting``: ``"equal"``: 1. ``"z_mean"``: Z / mean Z. ``"z_gamma_mean"``: Z**gamma / mean Z**gamma.
    ``"z_sum"``: Z / sum Z. ``"z_gamma_sum"``: Z**gamma / sum Z**gamma.
    """
    z = np.asarray(atomic_numbers, dtype=np.float64)
    if weighting == "equal":
        return np.ones_like(z)
    z = z**gamma if "gamma" in weighting else z
    return z / (z.sum() if weighting.endswith("sum") else z.mean())


@dataclass(frozen=True)
class PowerHaadfModel:
    """The published HAADF forward model ``f(x) = sum_i w_i x_i**gamma`` on normalised maps.

    Schwartz et al. (2022). Convex for no gamma but 1: the data term may have several stationary points.

    Attributes
    ----------
    weights
        ``w_i``, one per element.
    gamma
        Exponent.
    """

    weights: np.ndarray
    gamma: float

    def image(self, x):
        """``f(x)``, shape (ny, nx), of maps ``x`` of shape (n_elements, ny, nx)."""
        return np.tensordot(self.weights, x**self.gamma, axes=1)

    def value(self, x, haadf):
        """``1/2 ||haadf - f(x)||^2``."""
        return 0.5 * float(np.sum((self.image(x) - haadf) ** 2, dtype=np.float64))


def z_weights(atomic_numbers, gamma, factors=None):
    """(n,) shape of the weights per unit of the maps, of mean 1: ``factors_i Z_i**gamma``.

    The intensity a HAADF detector collects from one atom goes with ``Z**gamma``, gamma 1.6 to 2. ``factors`` (n,) are
    the amounts of atoms per unit of each map (k-factors or inverse cross sections for counts), 1 by default. Only their
    ratios matter.
    """
    shape = np.asarray(atomic_numbers, dtype=np.float64) ** gamma
    if factors is not None:
        shape = shape * np.asarray(factors, dtype=np.float64)
    return shape / shape.mean()


@dataclass(frozen=True)
class Compression:
    """Intensity that rises less and less with the signal ``s`` of a linear model: ``height (1 - exp(-s / scale))``.

    So does the HAADF intensity of a thick and heavy specimen, and that of a detector near its full scale.

    Attributes
    ----------
    height
        Intensity above the offset that no specimen exceeds.
    scale
        Signal at which the slope has fallen to 1/e of the first one.
    """

    height: float
    scale: float

    def image(self, signal):
        """The intensity above the offset."""
        return -self.height * np.expm1(-signal / self.scale)

    def slope(self, signal):
        """Of the intensity, with respect to the signal."""
        return self.height / self.scale * np.exp(-signal / self.scale)


@dataclass(frozen=True)
class LinearHaadfModel:
    """Incoherent linear imaging ``f(x) = offset + sum_i w_i x_i``: convex, in the units of the data.

    Attributes
    ----------
    weights
        (n,) ``w_i``, HAADF intensity per unit of map i.
    offset
        HAADF intensity where there is nothing.
    blur
        Standard deviation in pixels of the Gaussian by which the HAADF image is blurred more than the maps. Not part
        of ``f``, which belongs to every pixel alone: kept for those who compare ``f`` with the image.
    compression
        The :class:`Compression` by which the measured image follows ``f(x) - offset``, for the same; None for none.
    """

    weights: np.ndarray
    offset: float
    blur: float = 0.0
    compression: Compression | None = None

    def image(self, x):
        """``f(x)``, shape (ny, nx), of maps ``x`` of shape (n_elements, ny, nx)."""
        return self.offset + np.tensordot(self.weights, x, axes=1)

    def compressed(self, image):
        """An :meth:`image`, which may be blurred, as the detector shows it."""
        return image if self.compression is None else self.offset + self.compression.image(image - self.offset)

    def slope(self, image):
        """Of :meth:`compressed`."""
        return 1.0 if self.compression is None else self.compression.slope(image - self.offset)


def blurred(image, blur):
    """An image (ny, nx) under a Gaussian of standard deviation ``blur`` in pixels, mirrored at its borders."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, blur, mode="reflect") if blur else image


# ---- the HAADF image -----------------------------------------------------------------------------


def haadf_noise(haadf, valid=None):
    """Standard deviation of the white noise of the HAADF image, by :func:`~.noise_estimation.estimate_variance`.

    In units of the image, above 0 for any image that is not constant. Leave out saturated pixels, which have no noise.
    """
    return float(np.sqrt(estimate_variance(haadf, valid)))


def saturated(haadf, least=16):
    """(ny, nx) bool: pixels at the ceiling of the detector, all False where there are none.

    The largest value is a ceiling where pixels pile up at it: at least ``least`` of them, and more than four times
    as many as at any of the eight values next below. An image of fewer than 32 values has no ceiling.
    """
    values, counts = np.unique(haadf[np.isfinite(haadf)], return_counts=True)
    return haadf == ceiling_of(values, counts, least)


def ceiling_of(values, counts, least=16):
    """The ceiling of an image from its values in rising order and how often each occurs, NaN for none."""
    piled = values.size >= 32 and counts[-1] >= least and counts[-1] > 4 * counts[-9:-1].max()
    return values[-1] if piled else np.nan


def constant_in_words(haadf, valid):
    """What an image without contrast is: saturated where its one value is the largest of 8 bits or more, 2^n - 1."""
    seen = haadf[valid]
    if not seen.size:
        return "without a valid pixel"
    bits = np.log2(max(float(seen.max(initial=0)), 0.0) + 1)
    if bits >= 8 and abs(bits - round(bits)) < 1e-6:
        return f"saturated, at {2 ** round(bits) - 1} in all valid pixels"
    return f"constant in its {seen.size} valid pixels"
