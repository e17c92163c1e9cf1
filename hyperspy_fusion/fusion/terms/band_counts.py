"""The data term of counts in energy bands: every band is a mixture of the maps.

    b_c ~ Poisson(a m_c),   m = M (z + delta),   z >= 0

with the share M (bands, n) of the counts of each map in each band, and the exposure a of a pixel, 0
where it is masked. Shifted by ``delta`` as the Poisson term of maps is, the counts are ``b + a M delta``.

The term couples the maps of a pixel. The solver replaces it by a majorant that does not, the E step of Dempster, Laird
& Rubin (J. R. Stat. Soc. B 39, 1, 1977): ``a s_i z_i - beta_i log(z_i + delta_i)`` with ``s_i = sum_c M_ci`` and the
counts ``beta_i = (z_i + delta_i) sum_c M_ci b_c / m_c`` of map i that are expected at the present maps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hyperspy_fusion.fusion.terms.scan_data import block_sums, column

# entries of the matrix below this part of the largest of their column are 0, which saves most of the products
_LEAST_SHARE = 1e-6


@dataclass(frozen=True)
class BandTerms:
    """Counts in bands as the kernels take them; see :func:`~.kernels.band_terms`.

    Attributes
    ----------
    matrix
        (bands, n) counts in each band for one unit of z.
    counts
        (bands, ny, nx) counts, those of the shift included; 0 in masked pixels.
    exposure
        (1 or ny, nx), 0 in masked pixels.
    slope, delta
        (n, 1 or ny, nx) exposure times the sums of the columns, and (n, 1, nx) the shift.
    upper
        (n,) the duality gap holds for maps below it, or below twice those found.
    totals
        (n,) totals over valid pixels, to be kept; NaN for none.
    variance_share
        Variance of the counts over their number: 1 but for binned data.
    """

    matrix: np.ndarray
    counts: np.ndarray
    exposure: np.ndarray
    slope: np.ndarray
    delta: np.ndarray
    upper: np.ndarray
    totals: np.ndarray
    variance_share: float = 1.0
    kind = "bands"
    is_poisson = True

    @classmethod
    def of(cls, matrix, counts, valid, scales, shift, totals):
        """The terms in units of ``scales``.

        Parameters
        ----------
        matrix
            (bands, n) counts in each band for one unit of x.
        counts
            (bands, ny, nx) of :func:`shifted_counts`; their dtype is that of the fit.
        valid
            (ny, nx) bool.
        scales, shift, totals
            (n,) units of x in one of z, shift and totals of x.
        """
        dtype, nx = counts.dtype, counts.shape[2]
        exposure = np.ones((1, nx)) if valid.all() else valid.astype(np.float64)
        matrix = np.ascontiguousarray(matrix * scales, dtype)
        largest = float(counts.sum(axis=0, dtype=np.float64).max(initial=0)) + 1
        return cls(
            matrix=matrix,
            counts=counts,
            exposure=exposure.astype(dtype),
            slope=_slope(matrix, exposure).astype(dtype),
            delta=np.array(np.broadcast_to(column(shift / scales), (len(scales), 1, nx)), dtype, order="C"),
            upper=(2 * largest / matrix.sum(axis=0, dtype=np.float64)).astype(dtype),
            totals=np.asarray(totals / scales, np.float64),
        )

    @property
    def beta(self):
        """(n, ny, nx) of zeros, for the counts of each map of the E steps of one fit."""
        return np.zeros((self.matrix.shape[1], *self.counts.shape[1:]), self.counts.dtype)

    def mean(self, z):
        """(bands, ny, nx) ``M (z + delta)``."""
        return np.tensordot(self.matrix.astype(np.float64), np.maximum(z, 0) + self.delta, 1)

    def assigned(self, z):
        """(n, ny, nx) the counts of each map that are expected at maps z, with NumPy; 0 in masked pixels."""
        ratio = self.counts / self.mean(z)
        return (np.maximum(z, 0) + self.delta) * np.tensordot(self.matrix.T.astype(np.float64), ratio, 1)

    def value(self, z):
        """Half the deviance, summed over all bands and valid pixels."""
        mean, counts = self.exposure * self.mean(z), self.counts.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = mean - np.where(counts > 0, counts + counts * np.log(mean / counts), 0)
        return float(np.sum(terms, where=np.broadcast_to(self.exposure > 0, mean.shape)))

    def step_length(self, z):
        """(n, ny, nx) inverse curvature of the majorant at z."""
        return (z + self.delta) / np.where(self.slope > 0, self.slope, 1).astype(np.float64)

    def with_noise(self, rng):
        """The terms with noise added that is as large as that of the data."""
        shift = self.exposure * column(self.matrix.astype(np.float64) @ self.delta[:, 0, 0])
        variance = self.variance_share * np.maximum(self.counts - shift, 0)
        counts = np.maximum(self.counts + np.sqrt(variance) * rng.standard_normal(self.counts.shape), 0)
        return replace(self, counts=counts.astype(self.counts.dtype))

    def coarsened(self, shape):
        """The terms of squares of 2 x 2 pixels; see :mod:`~.solvers.multilevel`."""
        dtype, (ny, nx) = self.counts.dtype, shape[1:]
        before = np.broadcast_to(self.exposure, (ny, nx))
        exposure = block_sums(before) / 2
        return replace(
            self,
            counts=(block_sums(self.counts) / 2).astype(dtype),
            exposure=exposure.astype(dtype),
            slope=_slope(self.matrix, exposure).astype(dtype),
            delta=np.ascontiguousarray(self.delta[..., : exposure.shape[1]]),
            totals=self.totals * (np.count_nonzero(exposure) / max(np.count_nonzero(before), 1)),
            variance_share=self.variance_share / 2,
        )


def shifted_counts(matrix, counts, valid, shift, dtype):
    """(bands, ny, nx) counts plus those that a shift (n,) of the maps adds; 0 in masked pixels."""
    shifted = np.asarray(counts, dtype) + column(matrix @ shift).astype(dtype)
    return np.ascontiguousarray(shifted if valid.all() else np.where(valid, shifted, 0), dtype)


def without_traces(matrix):
    """The matrix (bands, n) without entries far below the largest of their column: most products are saved."""
    return np.where(matrix >= _LEAST_SHARE * matrix.max(axis=0), matrix, 0)


def _slope(matrix, exposure):
    """(n, 1 or ny, nx)."""
    return np.multiply.outer(matrix.sum(axis=0, dtype=np.float64), exposure)
