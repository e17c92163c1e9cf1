"""Data terms: how far fused maps are from the measured ones, with value and gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Poisson:
    """The published Poisson term ``D(b, x) = sum(x - b log(x + background))``.

    The negative log-likelihood of Poisson counts ``b`` of mean ``x``, up to a constant, with ``background`` in the
    logarithm alone. Its minimum lies at ``x = b - background`` (zero where b is smaller): it takes the background
    out of every pixel. On min-max normalised maps it is no likelihood any more, whatever its name.
    """

    background: float

    def value(self, x, b):
        """``sum(x - b log(x + background))``."""
        return float(np.sum(x - b * np.log(x + self.background), dtype=np.float64))

    def gradient(self, x, b):
        """``1 - b / (x + background)``, of the shape of ``x``."""
        return 1 - b / (x + self.background)
