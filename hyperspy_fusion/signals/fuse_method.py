"""``s.fuse(haadf)`` for every HyperSpy signal."""

from __future__ import annotations

import logging
from typing import Any

from hyperspy_fusion._settings_docs import shows_settings

_logger = logging.getLogger(__name__)


@shows_settings
def fuse(
    self,
    haadf,
    *,
    elements=None,
    xray_lines=None,
    integration_windows=2.0,
    method="published",
    mask=None,
    register=False,
    resample=False,
    errors=False,
    show_progressbar=None,
    num_workers=None,
    **settings,
):
    """Fuse these element maps or this spectrum image with the HAADF image of the same scan.

    The same as :func:`hyperspy_fusion.fuse` with the signal as its first argument, which see for what it may be.

    Parameters
    ----------
    haadf : BaseSignal
        The HAADF image of the same scan, on the same pixels unless `register` or `resample` is set.
    elements : list of str, optional
        Which elements to take from a spectrum image; the elements of maps that do not name theirs.
    xray_lines : list of str, optional
        Which X-ray lines to take from an EDS spectrum image; lines of one element are summed.
    integration_windows : float
        Width of the windows of these lines in units of their FWHM.
    method : {"published", "calibrated", "auto"}
        The method of Schwartz et al., npj Comput. Mater. 8, 16 (2022); the one that keeps counts as counts; or the
        latter with its weights chosen by how well fits predict counts that they have not seen.
    mask : array or BaseSignal of bool, optional
        ``(ny, nx)``, True where a pixel is left out of the data; for ``"calibrated"`` and ``"auto"``.
    register, resample : bool
        Bring the HAADF image to the pixels of the maps, with its shift measured or without.
    errors : bool or int
        Whether to find the errors of the fused maps, from 32 or so many replicates of the fit; for ``"calibrated"`` and
        ``"auto"``.
    show_progressbar : bool, optional
        None follows HyperSpy's preference.
    num_workers : int, optional
        Threads; None for all.
    **settings

    Returns
    -------
    ElementMaps

    Examples
    --------
    >>> import hyperspy_fusion
    >>> phantom = hyperspy_fusion.data.core_shell()
    >>> maps, haadf = phantom.signals()
    >>> fused = hyperspy_fusion.element_maps(maps).fuse(haadf, max_iter=3)
    """
    from hyperspy_fusion.model import fuse as fuse_maps

    return fuse_maps(
        self,
        haadf,
        elements=elements,
        xray_lines=xray_lines,
        integration_windows=integration_windows,
        method=method,
        mask=mask,
        register=register,
        resample=resample,
        errors=errors,
        show_progressbar=show_progressbar,
        num_workers=num_workers,
        **settings,
    )


def attach_fuse():
    """Give ``BaseSignal`` the method ``fuse``; leave one that is not ours as it is.

    Lists, dictionaries and signals whose class has another ``fuse`` go to :func:`hyperspy_fusion.fuse`.
    """
    from hyperspy.signal import BaseSignal

    base: Any = BaseSignal
    present = getattr(base, "fuse", None)
    if present is None:
        base.fuse = fuse
    elif getattr(present, "__module__", None) != __name__:
        _logger.warning(
            "HyperSpy signals have a method fuse of %s already; it is kept. Use hyperspy_fusion.fuse(signal, haadf).",
            getattr(present, "__module__", "another package"),
        )
