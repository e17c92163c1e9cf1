"""Previews: fits of a crop of one scan, with any settings, in the units of the whole."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.checks import default_errstate
from hyperspy_fusion.fusion.result import CostHistory
from hyperspy_fusion.methods import METHODS
from hyperspy_fusion.methods.fit_checks import totals_over_measured

# a smaller crop has no coarse fit to start from
SMALLEST = 16
# the settings that a method is tuned by, of which no observation of a scan depends
FRONT = {
    "published": ("lambda_tv", "tv_iter", "lambda_chem", "lambda_haadf", "eps", "max_iter"),
    "calibrated": ("regularization", "lambda_reg", "lambda_haadf"),
}


@dataclass(frozen=True, eq=False)
class CropFit:
    """A fit of a crop.

    Attributes
    ----------
    elements
        n symbols of the fitted maps.
    measured, maps
        (n, ny, nx) measured maps, NaN where a pixel is not valid, and fused ones.
    background
        Per pixel of the measured maps: a number, or (n, ny, nx).
    haadf, residual
        (ny, nx) the HAADF image, and it minus the modelled one; NaN where it is not valid.
    history
        Terms of the objective.
    settings
        Those in effect.
    n_iter, seconds
        Iterations, and the time that they took.
    is_complete
        Whether the fit ended by itself.
    """

    elements: list
    measured: np.ndarray
    maps: np.ndarray
    background: Any
    haadf: np.ndarray
    residual: np.ndarray
    history: CostHistory
    settings: Any
    n_iter: int
    seconds: float
    is_complete: bool

    @property
    def total_ratios(self):
        """(n,) totals of the fused maps over those of the measured ones less background, of valid pixels."""
        return totals_over_measured(self.maps, self.measured, np.isfinite(self.measured), self.background)


class Preview:
    """Fits of crops of one scan by one method.

    The units, the noise and the HAADF forward model are those of the whole scan, found once. The totals that are kept
    are those of the crop, and near its border maps may differ from a fit of the whole.

    Parameters
    ----------
    measured
        A :class:`~hyperspy_fusion.methods.fit.Measured`.
    method
        ``"published"`` or ``"calibrated"``.
    num_workers
        Threads; None for all.
    """

    def __init__(self, measured, method, num_workers=None):
        if measured.spectra is not None:
            raise ValueError(
                "The maps are a fit to whole spectra, of which there are no previews: fuse with lines='windows'."
            )
        self._scan, self._method, self._num_workers = measured.scan_data(), METHODS[method], num_workers
        self._known: tuple = ()
        self.elements, self.shape = self._scan.elements, self._scan.haadf.shape

    @default_errstate
    def fit(self, settings, window) -> CropFit:
        """The :class:`CropFit` of two slices (y, x).

        Raises
        ------
        ValueError
            For settings that do not suit the maps, and a crop without a valid pixel of a map.
        FloatingPointError
            For a fit that diverges.
        """
        observed = self._observed(settings)
        has_pixels = self._has_pixels(window)
        if missing := [e for e, has in zip(self.elements, has_pixels, strict=True) if not has]:
            raise ValueError(f"The crop has no valid pixel of {', '.join(missing)}: move it, or make it larger.")
        start = time.perf_counter()
        result, scan, in_effect = self._method.preview(observed, settings, window, self._num_workers)
        seconds = time.perf_counter() - start
        if not np.isfinite(result.maps).all():
            raise FloatingPointError(result.message)
        haadf = np.where(scan.haadf_valid, scan.haadf, np.nan)
        return CropFit(
            elements=self.elements,
            measured=np.where(scan.valid, scan.maps, np.nan),
            maps=result.maps,
            background=0.0 if scan.background is None else scan.background,
            haadf=haadf,
            residual=haadf - result.modelled_haadf,
            history=result.history,
            settings=in_effect,
            n_iter=result.n_iter,
            seconds=seconds,
            is_complete=result.success,
        )

    def window_with_pixels(self, size):
        """Two slices (y, x) of a crop of at most such a size: the middle, or where most pixels are valid.

        The number of pixels that counts is that of the map that has the fewest.
        """
        size = [min(size, most) for most in self.shape]
        corner = [(most - own) // 2 // 4 * 4 for own, most in zip(size, self.shape, strict=True)]
        if not self._has_pixels(_window(corner, size)).all():
            sums = np.pad(self._scan.valid.cumsum(axis=1).cumsum(axis=2), ((0, 0), (1, 0), (1, 0)))
            h, w = size
            inside = sums[:, h:, w:] - sums[:, :-h, w:] - sums[:, h:, :-w] + sums[:, :-h, :-w]
            corner = np.unravel_index(np.argmax(inside.min(axis=0)), inside.shape[1:])
        return _window(corner, size)

    def _has_pixels(self, window):
        """(n,) whether a crop has valid pixels of each map."""
        return self._scan.valid[(slice(None), *window)].any(axis=(1, 2))

    def _observed(self, settings):
        """What previews share, found again where other than front settings differ."""
        front = FRONT[self._method.name]
        key = replace(settings, **{f.name: f.default for f in fields(settings) if f.name in front})
        if not self._known or self._known[0] != key:
            self._known = key, self._method.observe(self._scan, settings, self._num_workers)[0]
        return self._known[1]


def _window(corner, size):
    return tuple(slice(int(start), int(start) + length) for start, length in zip(corner, size, strict=True))
