"""What the primal-dual solver minimises: terms of maps in units of their own, and nothing of where they are from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperspy_fusion.fusion.result import Terms
from hyperspy_fusion.fusion.terms.data_fidelity import DataTerms
from hyperspy_fusion.fusion.terms.haadf_model import LinearHaadfModel, blurred
from hyperspy_fusion.fusion.terms.penalties import CellPenalty


@dataclass(frozen=True)
class HaadfTerm:
    """``1/2 sum (G sum_i weights_i z_i - target)^2`` over counted pixels; no weights for no HAADF term.

    ``G`` is the Gaussian of standard deviation ``blur`` in pixels, which is its own adjoint and nowhere above 1.
    """

    weights: np.ndarray
    target: np.ndarray
    counted: np.ndarray
    blur: float = 0.0

    @classmethod
    def none(cls, shape, dtype, blur=0.0):
        """No term, for an image of ``shape``."""
        return cls(np.zeros(0, dtype), np.zeros(shape, dtype), np.zeros((1, shape[1]), dtype), blur)

    def value(self, z):
        """The term."""
        if not self.weights.size:
            return 0.0
        return 0.5 * float(np.sum(self.residual(self.image(z)) ** 2, dtype=np.float64))

    def image(self, z):
        """(ny, nx) ``sum_i weights_i z_i``, not blurred."""
        return np.tensordot(self.weights.astype(z.dtype), z, 1)

    def residual(self, image):
        """(ny, nx) of an :meth:`image`, blurred, about the target; 0 where pixels do not count."""
        return self.counted * (blurred(image, self.blur) - self.target)

    def slope(self, image):
        """(ny, nx) derivative of the term with respect to an :meth:`image`."""
        return blurred(self.residual(image), self.blur)


@dataclass(frozen=True)
class Objective:
    """Data, HAADF term and penalty. Maps in units of the input are ``scales * z``.

    Attributes
    ----------
    shape, dtype
        Of the maps, (n, ny, nx).
    scales
        (n,) units of the input in one unit of z.
    start
        (n, ny, nx) the measured maps in units of z, >= 0, with the mean in the place of masked pixels.
    data, haadf_term, penalty
        The three terms.
    forward model
        The HAADF forward model in units of the input.
    """

    shape: tuple
    dtype: np.dtype
    scales: np.ndarray
    start: np.ndarray
    data: DataTerms
    haadf_term: HaadfTerm
    penalty: CellPenalty
    forward_model: LinearHaadfModel

    def modelled_haadf(self, maps):
        """(ny, nx) the HAADF image of maps (n, ny, nx) in units of the input, blurred as the HAADF term has it."""
        return blurred(self.forward_model.image(maps), self.haadf_term.blur)

    def objective(self, z, fields=None):
        """Terms of the objective, each as it enters the total, at maps z (and fields of the penalty), with NumPy."""
        z = np.asarray(z, dtype=np.float64)
        haadf, chem, tv = self.haadf_term.value(z), self.data.value(z), self.penalty.value(z, fields)
        return Terms(haadf, chem, tv, haadf + chem + tv)
