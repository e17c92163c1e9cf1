"""The objective of the primal-dual solver: three terms of maps in natural units, whatever data they are from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperspy_fusion.fusion.result import Terms
from hyperspy_fusion.fusion.terms.band_counts import BandTerms
from hyperspy_fusion.fusion.terms.data_fidelity import DataTerms
from hyperspy_fusion.fusion.terms.haadf_model import LinearHaadfModel, blurred
from hyperspy_fusion.fusion.terms.penalties import CellPenalty

# standard deviation in pixels below which a Gaussian leaves a sampled image nearly as it is
LEAST_BLUR = 0.25


@dataclass(frozen=True)
class HaadfTerm:
    """``1/2 sum (G sum_i weights_i z_i - target)^2`` over valid pixels; no weights for no HAADF term.

    ``G`` is the Gaussian of standard deviation ``blur`` in pixels. It is its own adjoint, of norm 1.

    Attributes
    ----------
    weights
        (n,) HAADF coefficients in units of the term; (0,) for no term.
    target
        (ny, nx) HAADF image less its offset, in units of the term.
    counted
        (ny, nx) or, where all pixels are valid, (1, nx): 1 in valid pixels, else 0.
    blur
        In pixels.
    """

    weights: np.ndarray
    target: np.ndarray
    counted: np.ndarray
    blur: float = 0.0

    @classmethod
    def none(cls, shape, dtype, blur=0.0):
        """No term, for an image of ``shape``."""
        return cls(np.zeros(0, dtype), np.zeros(shape, dtype), np.zeros((1, shape[1]), dtype), blur)

    @classmethod
    def of(cls, scan, model, factor, scales, dtype, blur):
        """``factor**2 / 2 ||G f(x) - h||^2`` of the HAADF image of a scan and its forward model; none for factor 0."""
        if factor == 0:
            return cls.none(scan.haadf.shape, dtype, blur)
        target = np.where(scan.haadf_valid, factor * (scan.haadf - model.offset), 0)
        counted = np.ones((1, scan.haadf.shape[1])) if scan.haadf_valid.all() else scan.haadf_valid
        weights = factor * model.weights * scales
        with np.errstate(over="ignore"):  # the maps are infinite then, which ends the fit
            weights, target = weights.astype(dtype), target.astype(dtype, order="C")
        return cls(weights, target, np.ascontiguousarray(counted, dtype), blur)

    def value(self, z):
        """The term."""
        if not self.weights.size:
            return 0.0
        return 0.5 * float(np.sum(self.residual(self.image(z)) ** 2, dtype=np.float64))

    def image(self, z):
        """(ny, nx) ``sum_i weights_i z_i``, not blurred."""
        return np.tensordot(self.weights.astype(z.dtype), z, 1)

    def residual(self, image):
        """(ny, nx) blurred :meth:`image` minus target; 0 in masked pixels."""
        return self.counted * (blurred(image, self.blur) - self.target)

    def gradient(self, image):
        """(ny, nx) gradient of the term with respect to an :meth:`image`."""
        return blurred(self.residual(image), self.blur)


@dataclass(frozen=True)
class Objective:
    """Data term, HAADF term and penalty of maps z in natural units; maps in units of the input are ``scales * z``.

    Attributes
    ----------
    scales
        (n,) units of the input in one unit of z.
    initial_maps
        (n, ny, nx) the measured maps in units of z, >= 0, with the mean in masked pixels; the dtype is that of the fit.
    data, haadf_term, penalty
        The three terms.
    forward_model
        The HAADF forward model in units of the input.
    """

    scales: np.ndarray
    initial_maps: np.ndarray
    data: DataTerms | BandTerms
    haadf_term: HaadfTerm
    penalty: CellPenalty
    forward_model: LinearHaadfModel

    @property
    def shape(self):
        """(n, ny, nx)."""
        return self.initial_maps.shape

    @property
    def dtype(self):
        """Of the fit."""
        return self.initial_maps.dtype

    def modelled_haadf(self, maps):
        """(ny, nx) HAADF image of maps (n, ny, nx) in units of the input, with the blur of the HAADF term."""
        return blurred(self.forward_model.image(maps), self.haadf_term.blur)

    def objective(self, z, fields=None):
        """Terms of the objective, each as it enters the total, at maps z (and fields of the penalty), with NumPy."""
        z = np.asarray(z, dtype=np.float64)
        haadf, chem, tv = self.haadf_term.value(z), self.data.value(z), self.penalty.value(z, fields)
        return Terms(haadf, chem, tv, haadf + chem + tv)
