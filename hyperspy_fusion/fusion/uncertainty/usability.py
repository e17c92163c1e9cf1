"""What fused maps can be used for, by a rule that phantoms of known truth confirm.

A map shows the part R of the structure of a scan right, pixel by pixel. With standard errors e of the fused map x

    R = var(x) / (var(x) + mean(e**2)),

and without them the part of the structure in the counts that the fused map shows
(:meth:`~.consistency_checks.ConsistencyChecks.structure`), which is R of a map that is smoothed as much as is best.
"""

from __future__ import annotations

import numpy as np

STRUCTURE, REGIONS, MEAN = "structure and amounts", "amounts of regions only", "mean only"
SHAPES, UNKNOWN = "structure, no amounts", "not known"
# R from which single pixels can be read, and change of totals up to which amounts can
RIGHT, SAME_TOTAL = 0.6, 0.1


def usable_for(structure: np.ndarray, ratios: np.ndarray, fitted: np.ndarray) -> list[str]:
    """What each of n maps can be used for.

    Parameters
    ----------
    structure
        (n,) R: 0 for none, NaN where it is not known, infinite for a method without a noise model.
    ratios
        (n,) totals of the fused maps over the measured ones.
    fitted
        (n,) bool; maps that are not fitted have no structure.
    """
    found = []
    for part, ratio, is_fitted in zip(structure, ratios, fitted, strict=True):
        has_total = abs(ratio - 1) <= SAME_TOTAL
        if not is_fitted or part == 0:
            found.append(MEAN)
        elif np.isinf(part):
            found.append(UNKNOWN if has_total else SHAPES)
        elif part >= RIGHT:
            found.append(STRUCTURE if has_total else SHAPES)
        else:
            found.append(REGIONS if has_total else UNKNOWN)
    return found


def structure_by_errors(maps: np.ndarray, errors: np.ndarray, before: np.ndarray) -> np.ndarray:
    """(n,) R from the standard errors of fused maps (n, ny, nx); 0 stays where there was none ``before``."""
    variance, square = np.nanvar(maps, axis=(1, 2)), np.nanmean(errors.astype(np.float64) ** 2, axis=(1, 2))
    total = variance + square
    shown = np.divide(variance, total, out=np.zeros(len(maps)), where=total > 0)
    return np.where(before == 0, 0.0, shown)
