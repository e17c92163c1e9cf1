"""What fused maps can be used for, by a rule that phantoms of known truth confirm.

A map that is smoothed as much as is best shows the part R of the variance of the truth right, pixel by pixel. R is then
the variance of the fused map over that of the counts beyond their noise
(:meth:`~.consistency_checks.ConsistencyChecks.structure`). On 24 random textures of 0.3 to 4 counts per pixel it was
mostly within 0.15 of the true part; 0.29 above it at worst, and 0.26 below it for few counts and coarse texture.
It takes the noise of pixels to be independent: R is not known where neighbouring pixels share theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STRUCTURE, REGIONS, MEAN = "structure and amounts", "amounts of regions only", "mean only"
SHAPES, UNKNOWN = "structure, no amounts", "not known"
# R from which single pixels can be read, and change of totals up to which amounts can
RIGHT, SAME_TOTAL = 0.6, 0.1
# codes of diagnostics that doubt amounts, beside serious ones
NO_AMOUNTS = frozenset({"background-in-maps"})
# code of the diagnostic of noise that neighbouring pixels share
SHARED_NOISE = "noise-shared-by-neighbours"


def usable_for(structure: np.ndarray, ratios: np.ndarray, fitted: np.ndarray, doubtful: Sequence[bool]) -> list[str]:
    """What each of n maps can be used for.

    Parameters
    ----------
    structure
        (n,) R: 0 for none, NaN where it is not known, infinite for a method without a noise model.
    ratios
        (n,) totals of the fused maps over the measured ones.
    fitted
        (n,) bool; maps that are not fitted have no structure.
    doubtful
        (n,) whether a diagnostic doubts the amounts of a map.
    """
    found = []
    for part, ratio, is_fitted, is_doubtful in zip(structure, ratios, fitted, doubtful, strict=True):
        has_total = abs(ratio - 1) <= SAME_TOTAL and not is_doubtful
        if not is_fitted or part == 0:
            found.append(MEAN)
        elif np.isinf(part):
            found.append(UNKNOWN if has_total else SHAPES)
        elif part >= RIGHT:
            found.append(STRUCTURE if has_total else SHAPES)
        else:
            found.append(REGIONS if has_total else UNKNOWN)
    return found
