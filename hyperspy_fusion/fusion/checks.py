"""Checks of settings: each raises ValueError with the setting, its value and what is allowed, in one sentence.

And the floating point errors of a call, which are not those of the user's own code.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np

_Function = TypeVar("_Function", bound=Callable[..., Any])

# beyond these, single precision has no room for the squares and quotients of the fit
SMALLEST, LARGEST = 1e-30, 1e30
# pixels: the largest blur of the HAADF image that is searched for
MAX_BLUR = 4.0
AUTO = "auto"
HAADF_COEFFICIENTS = ("z_power", "fit")


def is_auto(value):
    """Whether a setting is to be chosen by the method."""
    return isinstance(value, str) and value == AUTO


def is_open(value):
    """Whether a setting, or its value for one of the images, is to be chosen by the method."""
    return is_auto(value) or (isinstance(value, tuple) and any(map(is_auto, value)))


def as_python(value):
    """NumPy scalars as the Python ones that metadata keep, sequences as tuples of them; dictionaries are copied."""
    if isinstance(value, Mapping):
        return {str(key): as_python(one) for key, one in value.items()}
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        return tuple(as_python(v) for v in value)
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _number(value: Any) -> float:
    """A real number as a float; NaN, which no range holds, for anything else."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else np.nan


def _remedy(off):
    return f", or None {off}" if off else ""


def check_positive(name: str, value: Any, off=""):
    if value is None and off:
        return
    if not SMALLEST <= _number(value) <= LARGEST:
        auto = " method='auto' chooses it for you." if is_auto(value) else ""
        raise ValueError(
            f"{name} is {value!r}: it must be a number above 0 ({SMALLEST:g} to {LARGEST:g}){_remedy(off)}.{auto}"
        )


def check_interval(name: str, value: Any, low, high, off=""):
    if value is None and off:
        return
    if not low < _number(value) <= high:
        raise ValueError(f"{name} is {value!r}: it must lie above {low} and at most at {high}{_remedy(off)}.")


def check_from(name: str, value: Any, low: float, below: float | None = None, off=""):
    """``low <= value``, and ``value < below`` where that is given."""
    if value is None and off:
        return
    if not low <= _number(value) <= (LARGEST if below is None else below) or value == below:
        end = f"at most {LARGEST:g}" if below is None else f"below {below}"
        raise ValueError(f"{name} is {value!r}: it must be at least {low} and {end}{_remedy(off)}.")


def check_each(name, value, check, *args, **options):
    """Check a number, or those of a sequence or dictionary with one for each element, of which none may be None."""
    if not _is_filled(value):
        check(name, value, *args, **options)
        return
    for one in values_of(value):
        check(name, one, *args)


def check_images(name, value, check, *args):
    """Check a number, or those of a sequence with one for each elastic image."""
    for one in value if isinstance(value, tuple) and value else (value,):
        check(name, one, *args)


def _is_filled(value):
    return isinstance(value, tuple | dict) and len(value) > 0


def values_of(value):
    """The numbers of a setting with one per element; the setting itself where it is one number."""
    return tuple(value.values()) if isinstance(value, dict) else value


def check_background(background):
    if isinstance(background, str):
        raise ValueError(
            f"background is {background!r}, and in the settings it is counts per pixel: pass background={background!r} "
            "to fuse, FusedMultiModal or element_maps."
        )
    check_each("background", background, check_from, 0)


#: settings that may be a list, with a value for each elastic image
PER_IMAGE = ("haadf_coefficients", "z_exponent", "lambda_haadf", "haadf_blur", "remove_ramp")


def is_per_image(coefficients):
    """Whether ``haadf_coefficients`` have one entry for each elastic image, and are not numbers for each element."""
    return isinstance(coefficients, tuple) and any(not isinstance(one, Real) for one in coefficients)


def check_haadf_coefficients(coefficients, signed=False):
    if is_per_image(coefficients):
        for k, one in enumerate(coefficients):
            check_haadf_coefficients(one, signed=k > 0)
        return
    if not _is_filled(coefficients):
        check_choice("haadf_coefficients", coefficients, HAADF_COEFFICIENTS, also="numbers, one per element")
        return
    check_each("haadf_coefficients", coefficients, check_from, -LARGEST if signed else 0)
    if not any(values_of(coefficients)):
        raise ValueError(f"haadf_coefficients is {coefficients!r}: one of them must be above 0.")


def check_haadf_blur(blur: Any, coefficients: Any) -> None:
    of_images = coefficients if is_per_image(coefficients) else (coefficients,)
    if isinstance(blur, tuple):
        for k, one in enumerate(blur):
            check_haadf_blur(one, of_images[k] if k < len(of_images) else ())
    elif blur == "fit":
        if any(_is_filled(one) for one in of_images):
            raise ValueError(
                "haadf_blur is 'fit', which needs a fit of the HAADF forward model, and haadf_coefficients are given: "
                "pass pixels, or haadf_coefficients='z_power'."
            )
    elif not 0 <= _number(blur) <= MAX_BLUR:
        raise ValueError(f"haadf_blur is {blur!r}: it must be 0 to {MAX_BLUR:g} pixels, or 'fit' to find it.")


def check_factors(factors):
    if factors is not None and not _is_filled(factors):
        raise ValueError(f"k_factors is {factors!r}: it must hold one number per element, or be None for 1.")
    check_each("k_factors", factors, check_positive, off="for 1")


def check_count(name: str, value: Any, least: int = 1) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}: it must be a whole number of at least {least}.")


def check_seed(seed: Any) -> None:
    """ValueError for a seed that is no whole number of at least 0."""
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed is {seed!r}: it must be a whole number of at least 0.")


def check_workers(num_workers):
    """For anything but a number of threads, or None for all."""
    if num_workers is not None:
        check_count("num_workers", num_workers)


def number_of_resamples(errors: Any, default: int = 32) -> int:
    """``errors`` of a fit as a number of bootstrap replicates, 0 for none."""
    if errors is False or errors is None:
        return 0
    if errors is True:
        return default
    if not isinstance(errors, Integral) or errors < 2:
        raise ValueError(f"errors is {errors!r}: it must be True, False or a whole number of at least 2.")
    return int(errors)


def check_components(components: Any) -> None:
    is_whole = isinstance(components, Integral) and not isinstance(components, bool) and int(components) >= 0
    if not (is_auto(components) or is_whole):
        raise ValueError(
            f"components is {components!r}: it must be a whole number of at least 0, or 'auto' for as many as stand "
            "out of the noise."
        )


def check_choice(name, value, allowed, also=""):
    """ValueError for a value that is none of those allowed; `also` names what else is allowed."""
    # identity for None and booleans, equality for strings: 1 == True must not pass
    if not any(value is a or (isinstance(a, str) and isinstance(value, str) and value == a) for a in allowed):
        others = f", or {also}" if also else ""
        words = [a for a in allowed if isinstance(a, str)]
        near = difflib.get_close_matches(value.lower(), words, n=1) if isinstance(value, str) else []
        hint = f" The nearest is {near[0]!r}." if near else ""
        raise ValueError(f"{name} is {value!r}: it must be one of {', '.join(map(repr, allowed))}{others}.{hint}")


def are_numbers(values):
    """Whether these are a number, or numbers one per element, in a sequence or a dictionary."""
    values = list(values.values()) if isinstance(values, dict) and values else values
    if isinstance(values, list | tuple | np.ndarray):
        return len(np.shape(values)) == 1 and all(isinstance(value, Real) for value in values)
    return isinstance(values, Real)


def default_errstate(function: _Function) -> _Function:
    """Decorate a function to run as NumPy does by default: ``numpy.seterr(all="raise")`` is for the user's own code.

    A fit underflows to zero, and it divides by zero where it takes care of the result.
    """

    @functools.wraps(function)
    def call(*args, **options):
        with np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"):
            return function(*args, **options)

    return call  # pyright: ignore[reportReturnType]


def check_number_of_images(settings, n_images):
    """ValueError for a setting with another number of values than there are elastic images."""
    for name in PER_IMAGE:
        value = getattr(settings, name)
        is_listed = is_per_image(value) if name == "haadf_coefficients" else isinstance(value, tuple)
        if is_listed and len(value) != n_images:
            raise ValueError(
                f"{name} has {len(value)} values for {n_images} image{'s' * (n_images > 1)}: give one for each image, "
                "or one for all."
            )
