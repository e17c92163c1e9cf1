"""``s.fuse(haadf)`` of every HyperSpy signal: ``hyperspy_fusion.fuse`` with the signal as its first argument."""

from __future__ import annotations

import inspect
import logging
from typing import Any

from hyperspy_fusion import api

_logger = logging.getLogger(__name__)


def _as_method(function) -> Any:
    """A method with the signature and the docstring of ``function``, whose first argument is the signal."""

    def fuse(self, haadf, **options):
        return function(self, haadf, **options)

    method: Any = fuse
    signature = inspect.signature(function)
    first, *others = signature.parameters.values()
    method.__signature__ = signature.replace(parameters=[first.replace(name="self"), *others])
    method.__qualname__ = "fuse"
    text = function.__doc__
    if text:  # python -OO has none
        head, tail = inspect.cleandoc(text).split(f"{first.name} : ", 1)
        method.__doc__ = head + tail[tail.index("haadf : ") :]
    return method


fuse = _as_method(api.fuse)


def attach_fuse() -> None:
    """Give ``BaseSignal`` the method ``fuse``, unless another package has given it one.

    Lists, dictionaries and signals whose class has another ``fuse`` go to :func:`hyperspy_fusion.fuse`.
    """
    from hyperspy.signal import BaseSignal

    present = getattr(BaseSignal, "fuse", None)
    if present is None:
        setattr(BaseSignal, "fuse", fuse)  # noqa: B010
    elif getattr(present, "__module__", None) != __name__:
        _logger.warning(
            "HyperSpy signals have a method fuse of %s already; it is kept. Use hyperspy_fusion.fuse(signal, haadf).",
            getattr(present, "__module__", "another package"),
        )
