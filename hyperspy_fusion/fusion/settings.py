"""Settings of a fit: frozen, checked once, and the only home of their names and defaults.

The keywords of :func:`hyperspy_fusion.fuse`, of ``FusedMultiModal.fit`` and of the command line
are the fields below.
"""

from __future__ import annotations

import difflib
import inspect
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real

# beyond these, single precision has no room for the squares and quotients of the fit
SMALLEST, LARGEST = 1e-30, 1e30

ELEMENT_WEIGHTINGS = ("equal", "z_mean", "z_gamma_mean", "z_sum", "z_gamma_sum")
TV_NORMS = ("isotropic", "anisotropic")
TV_SOLVERS = ("fgp", "gp")


@dataclass(frozen=True)
class PublishedSettings:
    """Settings of the published method (Schwartz et al., npj Comput. Mater. 8, 16, 2022).

    The defaults are those of the paper's algorithm box (Manassa et al., Elemental Microscopy EM000003, 2024).
    All weights act on maps and HAADF scaled to [0, 1].

    Parameters
    ----------
    gamma
        Exponent of the elastic law ``f(x) = sum_i w_i x_i**gamma``, in (0, 4]. Published: 1.4 to 2. Below 1 the
        slope of the law is infinite at zero; it is taken at no less than ``background`` then.
    weighting
        How the elastic weights ``w_i`` follow from the atomic numbers: ``"equal"``, ``"z_mean"`` (Z / mean Z),
        ``"z_gamma_mean"`` (Z**gamma / mean Z**gamma), ``"z_sum"`` (Z / sum Z), ``"z_gamma_sum"``.
    lambda_haadf
        Weight of the HAADF term, > 0. None is 1 / number of fused elements, the published step size.
    lambda_chem
        Weight of the Poisson term of the maps, > 0. Larger pulls the maps towards ``max(b - background, 0)``, where
        the term has its minimum; too large oscillates.
    lambda_tv
        Weight of the total variation, > 0, or None for no total variation. Larger is smoother.
    background
        The ``eps`` in ``x - b log(x + eps)``, > 0, in units of the normalised maps.
    threshold
        Normalised map values below it start at zero; they stay in the data. None starts from the maps themselves.
        For the first fit of a model.
    max_iter
        Iterations of this call, >= 1.
    tol
        Stop once the relative change of the maps in one iteration, ``||x_new - x|| / ||x||``, is at or below it.
        None runs ``max_iter`` iterations.
    tv_iter
        Inner iterations of the total variation prox, >= 1.
    tv_norm
        ``"isotropic"`` or ``"anisotropic"``.
    tv_solver
        ``"fgp"`` (fast gradient projection, Beck & Teboulle 2009) or ``"gp"`` (without extrapolation).
    warm_start
        Keep the dual of the total variation from one iteration to the next. The published method does not; with it
        the same weights smooth more, because the inner problem is solved and not stopped early, and the fit
        takes four more copies of the maps in memory.
    dtype
        ``"float32"`` or ``"float64"``. None solves float64 maps in float64 and anything else in float32.

    Raises
    ------
    ValueError, TypeError
        A sentence that names the setting, what it got and what is allowed.
    """

    gamma: float = 1.6
    weighting: str = "z_mean"
    lambda_haadf: float | None = None
    lambda_chem: float = 0.08
    lambda_tv: float | None = 0.15
    background: float = 0.2
    threshold: float | None = None
    max_iter: int = 30
    tol: float | None = None
    tv_iter: int = 3
    tv_norm: str = "isotropic"
    tv_solver: str = "fgp"
    warm_start: bool = False
    dtype: str | None = None

    def __post_init__(self):
        for name, value in asdict(self).items():
            object.__setattr__(self, name, _as_python(value))
        _check_interval("gamma", self.gamma, 0, 4)
        _check_positive("lambda_haadf", self.lambda_haadf, off="for 1 / number of elements")
        _check_positive("lambda_chem", self.lambda_chem)
        _check_positive("lambda_tv", self.lambda_tv, off="to switch the total variation off")
        _check_positive("background", self.background)
        _check_interval("threshold", self.threshold, 0, 1, off="for no threshold")
        _check_positive("tol", self.tol, off="to run all iterations")
        _check_count("max_iter", self.max_iter)
        _check_count("tv_iter", self.tv_iter)
        _check_choice("weighting", self.weighting, ELEMENT_WEIGHTINGS)
        _check_choice("tv_norm", self.tv_norm, TV_NORMS)
        _check_choice("tv_solver", self.tv_solver, TV_SOLVERS)
        _check_choice("warm_start", self.warm_start, (True, False))
        _check_choice("dtype", self.dtype, (None, "float32", "float64"))

    def as_dict(self):
        """The settings as a plain dictionary."""
        return asdict(self)


METHODS = {"published": PublishedSettings}


def settings_for(method, options, base=None):
    """Settings of ``method`` from a dictionary of options, on top of ``base`` where it is given.

    Raises
    ------
    ValueError
        For a method that does not exist.
    TypeError
        For an option the method does not have, with the nearest name.
    """
    _check_choice("method", method, tuple(METHODS))
    cls = METHODS[method]
    names = [f.name for f in fields(cls)]
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(names)}."
            raise TypeError(f"method {method!r} has no option {name!r}; {hint}")
    return cls(**{**(base.as_dict() if base is not None else {}), **options})


def shows_settings(function):
    """Let help and tab completion of ``function`` show every setting behind its ``**settings``."""
    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    shown = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default) for f in fields(PublishedSettings)
    ]
    function.__signature__ = signature.replace(parameters=kept + shown)
    if not (function.__doc__ and PublishedSettings.__doc__):  # python -OO
        return function
    # cleaned, for Python 3.13 indents docstrings otherwise than those before it
    described = inspect.cleandoc(PublishedSettings.__doc__).split("----------\n")[1].split("Raises\n")[0].rstrip()
    text = inspect.cleandoc(function.__doc__)
    function.__doc__ = text.replace("**settings\n", described + "\n", 1)
    return function


def _as_python(value):
    """NumPy scalars as the Python ones that metadata keep."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _is_number(value):
    return isinstance(value, Real) and not isinstance(value, bool)


def _remedy(off):
    return f", or None {off}" if off else ""


def _check_positive(name, value, off=""):
    if value is None and off:
        return
    if not _is_number(value) or not SMALLEST <= value <= LARGEST:
        raise ValueError(
            f"{name} is {value!r}: it must be a number above 0 ({SMALLEST:g} to {LARGEST:g}){_remedy(off)}."
        )


def _check_interval(name, value, low, high, off=""):
    if value is None and off:
        return
    if not _is_number(value) or not low < value <= high:
        raise ValueError(f"{name} is {value!r}: it must lie above {low} and at most at {high}{_remedy(off)}.")


def _check_count(name, value):
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}: it must be a whole number of at least 1.")


def _check_choice(name, value, allowed):
    # identity for None and booleans, equality for strings: 1 == True must not pass
    if not any(value is a or (isinstance(a, str) and value == a) for a in allowed):
        raise ValueError(f"{name} is {value!r}: it must be one of {', '.join(map(repr, allowed))}.")
