"""``fuse``: the one door to a fit. ``BaseSignal.fuse`` and ``ElementMaps.fuse`` are made from it."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperspy_fusion.fusion.settings import PublishedSettings
    from hyperspy_fusion.signals.element_maps import ElementMaps

_logger = logging.getLogger(__name__)

# codes of the diagnostics of a fit that Ctrl-C ended early
_INTERRUPTED = {"interrupted", "selection-interrupted"}


def fuse(
    maps: Any,
    haadf: Any,
    *,
    method: str = "auto",
    elements: list[str] | None = None,
    xray_lines: list[str] | None = None,
    lines: str = "windows",
    integration_windows: float = 2.0,
    edges: Any = None,
    background: Any = None,
    mask: Any = None,
    register: Any = False,
    errors: bool | int = False,
    regularization: str | None = None,
    lambda_reg: Any = None,
    lambda_haadf: Any = None,
    lambda_chem: float | None = None,
    lambda_tv: float | None = None,
    eps: float | None = None,
    max_iter: int | None = None,
    settings: PublishedSettings | Any = None,
    show_progressbar: bool | None = None,
    num_workers: int | None = None,
) -> ElementMaps:
    """Fuse element maps with the HAADF image of the same scan.

    Parameters
    ----------
    maps : list, dict, BaseSignal or exspy model
        Maps in any unit, or spectra: see :func:`hyperspy_fusion.element_maps`. Not changed.
    haadf : BaseSignal or list of BaseSignal
        The HAADF image, on the pixels of the maps unless `register` is set, or a list of up to three elastic images of
        which it is the first. A stack of images, with maps that have the same further navigation axes, is fused frame
        by frame.
    method : {"auto", "calibrated", "published"}
        ``"calibrated"`` fits in the units of the maps and keeps their totals. ``"auto"``, the
        default, is the same with penalty and weights chosen by cross-validation.
        ``"published"`` is the method of Schwartz et al., npj Comput. Mater. 8, 16 (2022).
    elements, xray_lines
        What to map, and how: see :func:`hyperspy_fusion.element_maps`.
    lines : {"windows", "model"}
        Maps of an EDS spectrum image: counts in windows, or of whole lines, by a fit of the spectra to the lines of
        all elements and a continuum, where lines overlap. Elements that the file names and `elements` does not are
        in the fit, and have no maps. ``"model"`` is not for ``"published"``, stacks and tiles.
    integration_windows, edges
        As for :func:`hyperspy_fusion.element_maps`.
    background : str, float, sequence or maps, optional
        What the maps hold that is not of the element: known counts per pixel, one number or one
        per element or by element ``{"Fe": 1}``, or an estimator for spectra, as ``"windows"`` of ``element_maps``.
    mask : array or BaseSignal of bool, optional
        ``(ny, nx)``, True where a pixel is left out; not for ``"published"``.
    register : bool or {"calibration", "shift"}, or a list with one for each image
        Bring the image to the pixels of the maps: by the calibration of the axes, or with its
        shift measured as well (True).
    errors : bool or int
        Number of bootstrap replicates for standard errors, True for 32; not for ``"published"``.
    regularization, lambda_reg, lambda_haadf : optional
        Penalty, its weight and that of the HAADF term: see :class:`CalibratedSettings`.
    lambda_haadf, lambda_chem, lambda_tv, eps : optional
        Weights and offset of the published method: see :class:`PublishedSettings`.
    max_iter : int, optional
        Number of iterations at most, of each fit in the result.
    settings : PublishedSettings, CalibratedSettings or AutoSettings, optional
        All settings of the method. Keywords that are given override its fields.
    show_progressbar : bool, optional
        One bar with the stage and the time left. None follows HyperSpy's preference.
    num_workers : int, optional
        Number of threads, None for all. It does not change the result.

    Returns
    -------
    ElementMaps
        Fused maps in the units of the input, with the record of the fit in ``metadata.Fusion``. Of a stack it has the
        further axes, and ``frame(index)`` returns one frame with its record. Lazy maps that are too large to be fitted
        in memory are fused in tiles, and the result is lazy.

    Raises
    ------
    ValueError, TypeError, NotImplementedError, FloatingPointError
        For input that cannot be fused, and for a fit that diverges.

    Notes
    -----
    Six maps of 256 x 256 pixels take some ten seconds on two cores. The first fit on a computer also compiles,
    for 10 to 40 s. Ctrl-C ends a fit early: in the search of ``"auto"`` it takes the best settings so far. The
    maps have no standard errors then.

    Examples
    --------
    >>> import hyperspy_fusion as hf
    >>> fused = hf.fuse(*hf.data.core_shell((64, 64)).signals())
    """
    from hyperspy_fusion.fusion.checks import number_of_resamples
    from hyperspy_fusion.fusion.settings import settings_for
    from hyperspy_fusion.methods import METHODS, check_noise_model
    from hyperspy_fusion.methods.base import request_of
    from hyperspy_fusion.model import FusedMultiModal
    from hyperspy_fusion.stacks.fit import Call, refuse_model_of_spectra, refuse_several
    from hyperspy_fusion.stacks.frames import frames_of, may_be_field
    from hyperspy_fusion.stacks.fuse_stack import fuse_stack

    front = {"regularization": regularization, "lambda_reg": lambda_reg, "lambda_haadf": lambda_haadf}
    front |= {"lambda_chem": lambda_chem, "lambda_tv": lambda_tv, "eps": eps, "max_iter": max_iter}
    chosen = settings_for(method, settings, **front)  # before spectra are read
    n_resamples = number_of_resamples(errors)
    if n_resamples:
        check_noise_model(method)
    of_source = {"elements": elements, "xray_lines": xray_lines, "integration_windows": integration_windows}
    of_source |= {"lines": lines, "edges": edges}
    several = isinstance(haadf, list | tuple) and len(haadf) > 1
    haadf = haadf[0] if isinstance(haadf, list | tuple) and len(haadf) == 1 else haadf
    first = haadf[0] if several else haadf
    frames = frames_of(maps, first, mask, background)
    request = request_of(METHODS[method], **of_source, background=None if frames is not None else background)
    call = Call(method, request, register, chosen, n_resamples)
    if frames is not None:
        refuse_several(several, "A stack")
        return fuse_stack(frames, call, show_progressbar, num_workers)
    if lines == "model" and getattr(chosen, "tile_size", None) is not None:
        refuse_model_of_spectra("maps in tiles")
    if lines == "windows" and may_be_field(maps, chosen):
        from hyperspy_fusion.stacks.fuse_field import field_of, fuse_field

        maps, field = field_of(maps, first, request, chosen, mask, register, several)
        if field is not None:
            return fuse_field(field, call, background, show_progressbar, num_workers)
    model = FusedMultiModal(
        haadf,
        maps,
        method=method,
        **of_source,
        background=background,
        mask=mask,
        register=register,
    )
    model.fit(settings=chosen, show_progressbar=show_progressbar, num_workers=num_workers)
    if n_resamples:
        _find_errors(model, n_resamples, show_progressbar, num_workers)
    return model._signal()


def _find_errors(model, n_resamples, show_progressbar, num_workers):
    """Standard errors of a fit. After Ctrl-C, in the fit or before two bootstrap replicates, there are none."""
    if _INTERRUPTED.isdisjoint(d.code for d in model.diagnostics):
        try:
            model.standard_errors(n_resamples, show_progressbar=show_progressbar, num_workers=num_workers)
            return
        except KeyboardInterrupt:
            pass
    model._lack_errors()


def _as_method(function) -> Any:
    """A method with the signature and the docstring of ``function``, whose first argument is the signal."""

    def method(self, haadf, **options):
        return function(self, haadf, **options)

    signature = inspect.signature(function)
    first, *others = signature.parameters.values()
    setattr(method, "__signature__", signature.replace(parameters=[first.replace(name="self"), *others]))  # noqa: B010
    method.__name__ = method.__qualname__ = "fuse"
    text = function.__doc__
    if text:  # python -OO has none
        head, tail = inspect.cleandoc(text).split(f"{first.name} : ", 1)
        method.__doc__ = head + tail[tail.index("haadf : ") :]
    return method


fuse_method = _as_method(fuse)


def attach_fuse() -> None:
    """Give ``BaseSignal`` the method ``fuse``, unless another package has given it one.

    Lists, dictionaries and signals whose class has another ``fuse`` go to :func:`hyperspy_fusion.fuse`.
    """
    from hyperspy.signal import BaseSignal

    present = getattr(BaseSignal, "fuse", None)
    if present is None:
        setattr(BaseSignal, "fuse", fuse_method)  # noqa: B010
    elif getattr(present, "__module__", None) != __name__:
        _logger.warning(
            "HyperSpy signals have a method fuse of %s already; it is kept. Use hyperspy_fusion.fuse(signal, haadf).",
            getattr(present, "__module__", "another package"),
        )
