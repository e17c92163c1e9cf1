"""NumPy's handling of floating point errors in the functions of this package."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

_Function = TypeVar("_Function", bound=Callable[..., Any])


def default_errstate(function: _Function) -> _Function:
    """Decorate a function to run as NumPy does by default: ``numpy.seterr(all="raise")`` is for the user's own code.

    A fit underflows to zero, and it divides by zero where it takes care of the result.
    """

    @functools.wraps(function)
    def call(*args, **options):
        with np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"):
            return function(*args, **options)

    return call  # pyright: ignore[reportReturnType]
