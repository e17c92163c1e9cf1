"""Regions that are a threshold of the counts themselves, and what chance adds to the counts in them.

For Poisson counts b of mean m and any function g of all of them, ``E[b_p g(b - e_p)] = m_p E[g(b)]``, where ``e_p`` is
one count in pixel p (Chen, Ann. Probab. 3, 534 (1975); Hudson, Ann. Statist. 6, 473 (1978)). Let ``g_p(b)`` be 1 where
the pixel is in the region that b chose. Then

    sum_p b_p g_p(b - e_p)      has the expectation of      sum_p m_p g_p(b),

the truth in the region that was chosen. Counts are left out where their pixel is in the region by one count alone. The
expected square of the difference of both sums is that of

    sum_p b_p g_p(b - e_p)  +  sum_pq (b_p b_q - [p = q] b_p) d_pq d_qp,    d_pq = g_p(b - e_p) - g_p(b - e_p - e_q),

the counts and the pairs of counts that need each other. No model of the truth is assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.ndimage import gaussian_filter1d, uniform_filter1d
from scipy.spatial import KDTree

# a region is a threshold of an image where so many of its pixels are those of the highest, or lowest, values, and so
# many of the pixels that one count decides are as the threshold has them: 0.6 of these are by chance
NEARLY_ALL = 0.9
# filters by which images are looked at: standard deviations in pixels of Gaussians, tried and refined, and boxes
_WIDTHS, _REFINEMENTS, _BOXES = (0.7, 2.8, 0.5, 1.0, 1.4, 2.0, 4.0), 4, (3, 5, 7)
# no filter chose the region where fewer of its pixels are those of the first two; of noise alone 0.25 are or more
_ALIKE = 0.2
# decimals of filtered counts beyond which a difference is rounding
_DECIMALS = 9
# pairs of counts further apart than the filter has so much of its largest weight need not be looked at
_FAR = 0.05


@dataclass(frozen=True)
class ChosenRegion:
    """A region that is where filtered counts are high, or low.

    Attributes
    ----------
    sign
        1 for high, -1 for low.
    inside
        (ny, nx) bool, the pixels beyond the threshold.
    margins
        (ny, nx) filtered counts less their threshold, times ``sign``: 0 where rounding decides.
    filtered
        Function of an array and an axis: the filter along the axis.
    matched
        Part of the pixels of the region that are those beyond the threshold.
    doubt
        How far region and threshold differ where it matters: among the pixels that one count more or less moves across
        the threshold. The number of those that are in one but not in the other is divided by twice the number above
        or below the threshold, whichever is smaller: where counts are rare, nearly all of these pixels are on one side,
        and would hide how the others differ.
    """

    sign: int
    inside: np.ndarray
    margins: np.ndarray
    filtered: Callable
    matched: float
    doubt: float = 0.0

    @classmethod
    def of(cls, mask, counts):
        """That of the pixels of ``mask``, (ny, nx) bool, if counts (ny, nx) chose them; else None."""
        inside = np.count_nonzero(mask)
        if not 0 < inside < NEARLY_ALL * mask.size or counts.min() == counts.max():
            return None
        counts = counts.astype(np.float64)
        sign = 1 if counts[mask].mean() >= counts[~mask].mean() else -1

        def of_width(width):
            return cls.by(mask, counts, sign, lambda image, axis: gaussian_filter1d(image, width, axis))

        found = {width: of_width(width) for width in _WIDTHS[:2]}
        if max(one.matched for one in found.values()) < _ALIKE:
            return None
        found |= {width: of_width(width) for width in _WIDTHS[2:]}
        others = [cls.by(mask, counts, sign, lambda image, axis: image)]
        others += [cls.by(mask, counts, sign, lambda i, axis, n=n: uniform_filter1d(i, n, axis)) for n in _BOXES]
        step, is_exact = 2**0.25, any(one.matched == 1 for one in [*found.values(), *others])
        for _ in range(0 if is_exact else _REFINEMENTS):
            middle = max(found, key=lambda width: found[width].matched)
            found |= {width: of_width(width) for width in (middle / step, middle * step) if width not in found}
            step = np.sqrt(step)
        best = max([*found.values(), *others], key=lambda one: one.matched)
        near = abs(best.margins) < best.own
        wrong, sides = np.count_nonzero(best.inside[near] != mask[near]), np.bincount(best.inside[near], minlength=2)
        doubt = wrong / (2 * max(sides.min(), 1))
        return replace(best, doubt=doubt) if best.matched >= NEARLY_ALL and doubt <= 1 - NEARLY_ALL else None

    @classmethod
    def by(cls, mask, counts, sign, filtered):
        """The region by a filter, with the threshold that leaves as many pixels as ``mask`` has, or those of a tie."""
        exact = sign * filtered(filtered(counts, 0), 1)
        at, options = exact.size - np.count_nonzero(mask), []
        # values that differ by rounding alone are one value to some, and not to others
        rounded = np.round(exact, _DECIMALS)
        last = np.partition(rounded, at, axis=None)[at]
        for inside in (exact >= np.partition(exact, at, axis=None)[at], rounded >= last, rounded > last):
            if inside.any() and not inside.all():
                threshold = (exact[inside].min() + exact[~inside].max()) / 2
                matched = 1 - np.count_nonzero(inside != mask) / (2 * np.count_nonzero(mask))
                options.append(cls(sign, inside, np.round(exact - threshold, _DECIMALS), filtered, matched))
        return max(options, key=lambda one: one.matched, default=cls(sign, mask, exact, filtered, 0.0))

    def chance(self, counts):
        """(n,) of the counts (n, ny, nx) in the region: what chance has added, where these chose it."""
        left, tied = self._left, self.margins == 0
        kept = (left > 0) + (left == 0) * (np.mean(self.inside[tied]) if tied.any() else 0.0)
        added = self.inside - kept
        at = added != 0
        return counts[:, at] @ added[at]

    @cached_property
    def _left(self):
        """(ny, nx) margins of what is left without one count of the pixel."""
        return np.round(self.margins - self.sign * self.own, _DECIMALS - 1)

    @cached_property
    def own(self):
        """(ny, nx) what one count adds to the filtered counts of its pixel."""
        y, x = (np.diag(self.filtered(np.eye(size), 0)) for size in self.margins.shape)
        return np.outer(y, x)

    def variance(self, counts):
        """Variance by the choice of the region of its sum of counts (ny, nx), beyond their number."""
        return self._pairs(counts) + (self.doubt * self.chance(counts[None])[0]) ** 2

    def _pairs(self, counts):
        """The sum over pairs of counts that need each other."""
        # distance from the threshold of what is left in the region, or out of it, without a count of the pixel
        distance = np.where(self.sign * self._left >= 0, abs(self._left), np.inf)
        line = np.zeros(2 * max(counts.shape) + 1)
        line[len(line) // 2] = 1
        line = self.filtered(line, 0)[len(line) // 2 :]
        pixels = np.argwhere((counts > 0) & (distance < line[0] ** 2))
        if not len(pixels):
            return 0.0
        reach = np.flatnonzero(line > _FAR * line[0]).max()
        first, second = KDTree(pixels).query_pairs(reach + 0.5, p=np.inf, output_type="ndarray").T
        apart = abs(pixels[first] - pixels[second])
        shared = line[apart[:, 0]] * line[apart[:, 1]]
        needed = np.array([distance[tuple(pixels[one].T)] < shared for one in (first, second)]).all(axis=0)
        amounts = counts[tuple(pixels.T)].astype(float)
        return float(
            np.sum(amounts * np.maximum(amounts - 1, 0)) + 2 * np.sum((amounts[first] * amounts[second])[needed])
        )
