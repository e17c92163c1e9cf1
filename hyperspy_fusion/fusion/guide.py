"""What a penalty takes from the HAADF image: its edges, without the noise of the image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hyperspy_fusion.fusion.elastic import LinearLaw, haadf_noise
from hyperspy_fusion.fusion.measured import DataTerms
from hyperspy_fusion.fusion.objective import ElasticTerm, Objective
from hyperspy_fusion.fusion.primal_dual import primal_dual
from hyperspy_fusion.fusion.regularizers import SECOND_ORDER, CellPenalty, cell_differences
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.settings import CalibratedSettings

# edges of the guide below this fraction of the range of the HAADF image are taken for none (Ehrhardt & Betcke 2016);
# tried on held-out counts at three doses and on phantoms, each at its best weight of the penalty
GUIDE_EDGE = 0.001
# noise below this fraction of the range is left in the image
_NO_NOISE = 1e-4
# of the fit to the image
_TOL, _MAX_ITER = 1e-3, 1000


@dataclass(frozen=True, eq=False)
class Guide:
    """One HAADF image as a guide; it is freed of its noise once, when that is first asked for.

    Attributes
    ----------
    haadf, valid
        (ny, nx) the image, and where it counts.
    dtype
        In which noise is taken out.
    num_workers
        Threads; None for all.
    """

    haadf: np.ndarray
    valid: np.ndarray
    dtype: np.dtype
    num_workers: int | None = None

    def of(self, kind, settings, dtype):
        """What a penalty takes from the image.

        Parameters
        ----------
        kind
            Of the penalty.
        settings
            ``guide_blur`` and ``eta``.
        dtype
            Of the fit.

        Returns
        -------
        numpy.ndarray or None
            (4, ny - 1, nx - 1), the ``guide`` of :class:`~.regularizers.CellPenalty`.
        """
        if kind not in ("guided", "directional"):
            return None
        edges = cell_differences(self.smooth(settings.guide_blur))
        if kind == "directional":
            edges = np.sqrt(settings.eta) * edges / np.sqrt(np.sum(edges**2, axis=0) + GUIDE_EDGE**2)
        return np.ascontiguousarray(edges, dtype)

    def smooth(self, blur):
        """The image in units of its range, smoothed by a Gaussian of ``blur`` pixels, or for None :attr:`denoised`."""
        from scipy.ndimage import gaussian_filter

        return self.denoised if blur is None else gaussian_filter(self.scaled, blur)

    @cached_property
    def scaled(self):
        """(ny, nx) the image in units of its range, 0 to 1; pixels that do not count are as the nearest that does."""
        seen = self.haadf[self.valid]
        low, high = np.percentile(seen, (0.1, 99.9))
        if not high > low:
            low, high = seen.min(), seen.max()
        return np.clip((_filled(self.haadf, self.valid) - low) / (high - low), 0, 1)

    @cached_property
    def denoised(self):
        """(ny, nx) the minimum u of ``1/2 ||u - h||^2 / sigma^2 + TGV(u / sigma)``, h the scaled image.

        sigma is the noise that the image shows (:func:`~.elastic.haadf_noise`), TGV second-order total generalised
        variation, which keeps edges and slopes (Bredies, Kunisch & Pock, SIAM J. Imaging Sci. 3, 492, 2010).

        Raises
        ------
        KeyboardInterrupt
            Where Ctrl-C was pressed.
        """
        sigma = haadf_noise(self.scaled, self.valid)
        if sigma < _NO_NOISE:
            return self.scaled
        run = CalibratedSettings(tol=_TOL, max_iter=_MAX_ITER)
        result, _ = primal_dual(_of_image(self.scaled, sigma, self.dtype), run, num_workers=self.num_workers)
        if result.reason is StopReason.INTERRUPTED:
            raise KeyboardInterrupt
        return result.maps[0].astype(np.float64)


def _of_image(image, sigma, dtype):
    """The objective of an image of white noise with TGV, as that of one map."""
    start = np.ascontiguousarray(image[None] / sigma, dtype)
    rows = (1, 1, image.shape[1])
    return Objective(
        shape=start.shape,
        dtype=dtype,
        scales=np.array([sigma]),
        start=start,
        data=DataTerms(
            is_poisson=False,
            beta=start,
            slope=np.ones(rows, dtype),
            delta=np.zeros(rows, dtype),
            upper=2 * start.max(axis=(1, 2)),
            totals=np.array([np.nan]),
        ),
        elastic=ElasticTerm.none(image.shape, dtype),
        penalty=CellPenalty("tgv", 1, False, SECOND_ORDER["tgv"], None),
        law=LinearLaw(np.zeros(1), 0.0),
    )


def _filled(image, valid):
    """Pixels that do not count take the value of the nearest that does."""
    if valid.all():
        return image
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return image[tuple(nearest)]
