"""What the primal-dual loop does with the data term beside its prox: E steps, and the values for the duality gap.

The data term of counts in bands (:class:`~.band_counts.BandTerms`) couples the maps of a pixel. Every ``EVERY``
iterations the loop replaces it by its majorant at the present maps, whose prox is that of counts in maps. The gap is
that of the data term itself, not of the majorant. For any duals, with ``u_i`` the linear term that they add,

    sum_c F_c(m_c) + u z  >=  sum_c b_c log p_c + delta (s - M^T p)    for all z >= 0, p >= 0 with M^T p <= s + u,

and steps of EM with the sensitivities ``s + u`` find the best p of each pixel: see :func:`~.kernels.band_terms`.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.solvers import kernels

# iterations between two E steps: with 1 and 2 as with 25 the fit converges more slowly
EVERY = 5
# steps of EM for the lower bound: with 10 the fit takes half as many iterations again to a gap of 1e-3
_DUAL_STEPS = 30
# weights, target, counted, factors and gradient, as the kernels take them
_HaadfArrays = tuple[Any, Any, Any, Any, Any]


class OfMaps:
    """Counts, or least squares, of each map alone."""

    kernels = kernels.CALIBRATED
    every = sys.maxsize
    keeps_best = False

    def __init__(self, problem, state, map_work):
        self.data, self.work = problem.data, map_work
        state.beta = problem.data.beta

    def majorise(self, state):
        """The term is its own majorant."""

    def evaluate(self, state, theta, upper, haadf_term: _HaadfArrays, sums):
        """Fill ``sums`` (ny, 4) as :func:`~.kernels.data_terms` does."""
        data = self.data
        kernels.data_terms(
            state.z, state.y, state.beta, data.slope, data.delta, data.is_poisson, theta, upper, *haadf_term,
            self.work, sums,
        )  # fmt: skip


class OfBands:
    """Counts in bands, each a mixture of the maps."""

    kernels = kernels.OF_BANDS
    every = EVERY
    keeps_best = True

    def __init__(self, problem, state, map_work):
        data, (n, _, nx), workers = problem.data, problem.shape, len(map_work)
        self.data = data
        self.number = np.count_nonzero(data.matrix, axis=1)
        # the columns that are not 0 come first, in their order
        self.used = np.argsort(data.matrix == 0, axis=1, kind="stable")
        self.work = np.empty((workers, 3 * n + 2, nx), problem.dtype)
        self.exact = np.empty((workers, n + 2, nx))

    def majorise(self, state):
        """The E step: the counts of each map that are expected at the present maps, into ``state.beta``."""
        data = self.data
        kernels.assign_counts(
            state.z, data.counts, data.matrix, self.used, self.number, data.delta, state.beta, self.work
        )

    def evaluate(self, state, theta, upper, haadf_term: _HaadfArrays, sums):
        """Fill ``sums`` (ny, 4) as :func:`~.kernels.band_terms` does."""
        data = self.data
        kernels.band_terms(
            state.z, state.y, data.counts, data.matrix, self.used, self.number, data.exposure, data.slope, data.delta,
            theta, upper, *haadf_term, _DUAL_STEPS, self.work, self.exact, sums,
        )  # fmt: skip


#: By the kind of the data term.
STEPS = {"maps": OfMaps, "bands": OfBands}
