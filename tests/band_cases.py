"""Counts in bands, for the tests of their solver."""

import numpy as np

from hyperspy_fusion.fusion.terms.band_counts import BandTerms, shifted_counts
from hyperspy_fusion.fusion.terms.haadf_model import LinearHaadfModel
from hyperspy_fusion.fusion.terms.objective import HaadfTerm, Objective
from hyperspy_fusion.fusion.terms.penalties import CellPenalty

SHIFT = 0.3


def drawn(seed, shape=(3, 8, 8), n_bands=6, mean=2.0):
    """Columns that overlap, maps with an edge, and counts of them."""
    rng = np.random.default_rng(seed)
    n, ny, nx = shape
    columns = rng.random((n_bands, n)) ** 3 * (rng.random((n_bands, n)) < 0.6)
    columns[rng.integers(n_bands, size=n), np.arange(n)] += 0.5
    columns[:, -1] += 0.05
    columns /= columns.sum(axis=0)
    maps = mean * rng.random((n, 1, 1)) * np.where(np.arange(nx) < nx // 2, 0.2, 2.0) * np.ones(shape)
    return columns, maps, rng.poisson(np.tensordot(columns, maps, 1)).astype(float)


def problem_of(columns, counts, *, kind="tv", unit=None, valid=None, weights=(), totals=True, dtype="float64", seed=0):
    """The objective of counts (bands, ny, nx); ``unit`` (n,) in one unit of z."""
    n, shape = columns.shape[1], counts.shape[1:]
    scales = np.full(n, 1.5) if unit is None else np.asarray(unit, float)
    valid, shift = np.ones(shape, bool) if valid is None else valid, np.full(n, SHIFT)
    shifted = shifted_counts(columns, np.where(valid, counts, 0), valid, shift, np.dtype(dtype))
    kept = columns.sum(0) * 0 + counts[:, valid].sum() / n if totals else np.full(n, np.nan)
    data = BandTerms.of(columns, shifted, valid, scales, shift, kept)
    term = HaadfTerm.none(shape, np.dtype(dtype))
    if len(weights):
        image = 3 + np.random.default_rng(seed).standard_normal(shape)
        term = HaadfTerm(np.array(weights, dtype), image.astype(dtype), np.ones((1, shape[1]), dtype))
    start = np.full((n, *shape), counts.mean(), dtype)
    penalty = CellPenalty(kind, n, False, {"tgv": 0.5}.get(kind, 0.0), None)
    return Objective(scales, start, data, term, penalty, LinearHaadfModel(np.zeros(n), 0.0))
