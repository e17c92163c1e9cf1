"""What the primal-dual solver minimises: terms of maps in units of their own, and nothing of where they are from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperspy_fusion.fusion.elastic import LinearLaw
from hyperspy_fusion.fusion.measured import DataTerms
from hyperspy_fusion.fusion.problem import Terms
from hyperspy_fusion.fusion.regularizers import CellPenalty


@dataclass(frozen=True)
class ElasticTerm:
    """``1/2 sum (sum_i weights_i z_i - target)^2`` over counted pixels; no weights for no HAADF term."""

    weights: np.ndarray
    target: np.ndarray
    counted: np.ndarray

    @classmethod
    def none(cls, shape, dtype):
        """No term, for an image of ``shape``."""
        return cls(np.zeros(0, dtype), np.zeros(shape, dtype), np.zeros((1, shape[1]), dtype))

    def value(self, z):
        """The term."""
        if not self.weights.size:
            return 0.0
        residual = np.tensordot(self.weights.astype(np.float64), z, 1) - self.target
        return 0.5 * float(np.sum(self.counted * residual**2))


@dataclass(frozen=True)
class Objective:
    """Data, elastic term and penalty. Maps in units of the input are ``scales * z``.

    Attributes
    ----------
    shape, dtype
        Of the maps, (n, ny, nx).
    scales
        (n,) units of the input in one unit of z.
    start
        (n, ny, nx) the measured maps in units of z, >= 0, with the mean in the place of masked pixels.
    data, elastic, penalty
        The three terms.
    law
        The elastic law in units of the input.
    """

    shape: tuple
    dtype: np.dtype
    scales: np.ndarray
    start: np.ndarray
    data: DataTerms
    elastic: ElasticTerm
    penalty: CellPenalty
    law: LinearLaw

    def objective(self, z, fields=None):
        """Terms of the objective, each as it enters the total, at maps z (and fields of the penalty), with NumPy."""
        z = np.asarray(z, dtype=np.float64)
        haadf, chem, tv = self.elastic.value(z), self.data.value(z), self.penalty.value(z, fields)
        return Terms(haadf, chem, tv, haadf + chem + tv)
