"""The objective of the published method: data, terms and weights of one fit, and its value.

    minimise over x >= 0:  lambda_haadf 1/2 ||h - f(x)||^2 + lambda_chem sum_i D(b_i, x_i) + lambda_tv sum_i TV(x_i)

with ``b`` and ``h`` the maps and the HAADF image scaled to [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hyperspy_fusion.fusion.result import Terms
from hyperspy_fusion.fusion.settings import working_dtype
from hyperspy_fusion.fusion.terms.haadf_model import PowerHaadfModel, haadf_coefficients_of
from hyperspy_fusion.fusion.terms.noise_estimation import Poisson
from hyperspy_fusion.fusion.terms.penalties import TotalVariation
from hyperspy_fusion.fusion.terms.scan_data import crop_of


@dataclass(frozen=True)
class Range:
    """Affine change of units, ``value = offset + scale * normalised``; arrays hold one entry per map."""

    offset: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, array, axis=None):
        """The range that takes the minimum to 0 and the maximum to 1."""
        low = np.asarray(array.min(axis=axis), dtype=np.float64)
        high = np.asarray(array.max(axis=axis), dtype=np.float64)
        return cls(low, high - low)

    def normalise(self, array):
        """Values in units of the range, in the floating dtype of ``array``."""
        out = array - self._cast(self.offset, array)
        out /= self._cast(self.scale, array)
        return out

    def restore(self, normalised, out=None):
        """Values in the original units, written to ``out`` where it is given."""
        out = np.multiply(normalised, self._cast(self.scale, normalised), out=out)
        out += self._cast(self.offset, normalised)
        return out

    @staticmethod
    def _cast(value, like):
        return value.reshape(value.shape + (1,) * (like.ndim - value.ndim)).astype(like.dtype)


@dataclass(frozen=True)
class Problem:
    """What is minimised: data, terms and weights. How it is minimised is left to the solver.

    Attributes
    ----------
    maps
        (n, ny, nx), in the units of the input and the dtype of the fit; ``map_range`` normalises them.
    haadf
        (ny, nx), normalised; ``haadf_range`` restores its units.
    haadf_term, noise, penalty
        The three terms.
    lambda_haadf, lambda_chem, lambda_tv
        Their weights; ``lambda_tv`` is 0 where the total variation is off.
    """

    maps: np.ndarray
    haadf: np.ndarray
    map_range: Range
    haadf_range: Range
    haadf_term: PowerHaadfModel
    noise: Poisson
    penalty: TotalVariation
    lambda_haadf: float
    lambda_chem: float
    lambda_tv: float

    def normalised_maps(self):
        """``b``: a new array of the maps scaled to [0, 1]."""
        return self.map_range.normalise(self.maps)

    def cropped(self, window):
        """The problem of two slices (y, x) of the maps, normalised as the whole."""
        return replace(self, maps=crop_of(self.maps, window), haadf=crop_of(self.haadf, window))

    def weigh(self, haadf, chem, tv):
        """The objective from the values of its terms (numbers or arrays)."""
        return self.lambda_haadf * haadf + self.lambda_chem * chem + self.lambda_tv * tv

    def objective(self, x):
        """Terms of the objective at normalised maps ``x``, computed with NumPy."""
        haadf = self.haadf_term.value(x, self.haadf)
        chem = self.noise.value(x, self.normalised_maps())
        tv = self.penalty.value(x)
        return Terms(haadf, chem, tv, self.weigh(haadf, chem, tv))


def published_problem(maps, haadf, atomic_numbers, settings):
    """The problem of the published method.

    Parameters
    ----------
    maps
        (n, ny, nx), real and finite, none of them constant. Not copied where dtype and layout are those of the fit.
    haadf
        (ny, nx), real, finite and not constant.
    atomic_numbers
        n atomic numbers.
    settings
        A :class:`~hyperspy_fusion.fusion.settings.PublishedSettings`.

    Raises
    ------
    ValueError
        For a constant map or HAADF image, which cannot be scaled to [0, 1]. For a map whose contrast on a high level
        is too small for the dtype of the fit.
    """
    if np.any(maps.min(axis=(1, 2)) == maps.max(axis=(1, 2))) or haadf.min() == haadf.max():
        raise ValueError("A constant map or HAADF image cannot be scaled to [0, 1]: leave it out of the fit.")
    maps = np.ascontiguousarray(maps, dtype=working_dtype(settings.dtype))
    map_range = Range.of(maps, axis=(1, 2))
    _check_contrast(map_range, maps.dtype)
    haadf = np.asarray(haadf, dtype=np.float64)
    haadf_range = Range.of(haadf)
    default = 1 / len(maps)
    return Problem(
        maps=maps,
        haadf=np.ascontiguousarray(haadf_range.normalise(haadf), dtype=maps.dtype),
        map_range=map_range,
        haadf_range=haadf_range,
        haadf_term=PowerHaadfModel(
            haadf_coefficients_of(atomic_numbers, settings.gamma, settings.z_weighting), settings.gamma
        ),
        noise=Poisson(settings.eps),
        penalty=TotalVariation(settings.tv_norm),
        lambda_haadf=default if settings.lambda_haadf is None else settings.lambda_haadf,
        lambda_chem=settings.lambda_chem,
        lambda_tv=settings.lambda_tv or 0.0,
    )


def _check_contrast(map_range, dtype):
    largest = np.maximum(np.abs(map_range.offset), np.abs(map_range.offset + map_range.scale))
    if np.any(map_range.scale < 1000 * np.finfo(dtype).eps * largest):
        raise ValueError(
            f"A map has a contrast of less than 1000 steps of {dtype} on a level of {largest.max():.3g}: subtract the "
            "level, or pass dtype='float64'."
        )
