"""Settings of a fit: frozen, checked once, and the only home of their names and defaults.

The keywords of :func:`hyperspy_fusion.fuse`, of ``FusedMultiModal.fit`` and of the command line
are the fields below.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real

import numpy as np

# beyond these, single precision has no room for the squares and quotients of the fit
SMALLEST, LARGEST = 1e-30, 1e30
# pixels: a blur of the HAADF image beyond it is not looked for
MAX_BLUR = 4.0

ELEMENT_WEIGHTINGS = ("equal", "z_mean", "z_gamma_mean", "z_sum", "z_gamma_sum")
TV_NORMS = ("isotropic", "anisotropic")
TV_SOLVERS = ("fgp", "gp")
REGULARIZATIONS = ("guided", "directional", "tgv", "tv", None)
NOISES = ("auto", "poisson", "shifted_poisson", "gaussian")
WEIGHTS = ("z_gamma", "fit")
AUTO = "auto"


@dataclass(frozen=True)
class PublishedSettings:
    """Settings of the published method (Schwartz et al., npj Comput. Mater. 8, 16, 2022).

    The defaults are those of the paper's algorithm box (Manassa et al., Elemental Microscopy EM000003, 2024).
    All weights act on maps and HAADF scaled to [0, 1].

    Parameters
    ----------
    gamma
        Exponent of the HAADF forward model ``f(x) = sum_i w_i x_i**gamma``, in (0, 4]. Published: 1.4 to 2. Below 1 the
        slope of the forward model is infinite at zero; it is taken at no less than ``background`` then.
    weighting
        How the HAADF coefficients ``w_i`` follow from the atomic numbers: ``"equal"``, ``"z_mean"`` (Z / mean Z),
        ``"z_gamma_mean"`` (Z**gamma / mean Z**gamma), ``"z_sum"`` (Z / sum Z), ``"z_gamma_sum"``.
    lambda_haadf
        Weight of the HAADF term, > 0. None is 1 / number of fused elements, the published step size.
    lambda_chem
        Weight of the Poisson term of the maps, > 0. Larger pulls the maps towards ``max(b - background, 0)``, where the
        term has its minimum; too large oscillates.
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
        check_choice("weighting", self.weighting, ELEMENT_WEIGHTINGS)
        check_choice("tv_norm", self.tv_norm, TV_NORMS)
        check_choice("tv_solver", self.tv_solver, TV_SOLVERS)
        check_choice("dtype", self.dtype, (None, "float32", "float64"))

    def as_dict(self):
        """The settings as a plain dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class CalibratedSettings:
    """Settings of the calibrated method: convex, in the units of the data, solved to a stated accuracy.

    Weights are natural: each map is measured in standard deviations of its typical pixel, so one number means the
    same at any dose, size, element and scale of the data. What is said to take one value per element takes one
    for all as well, or a sequence in the order of the maps, constant ones left out.

    Parameters
    ----------
    regularization
        What true maps are taken to look like. ``"guided"``: locally linear in the HAADF image, with a slope that varies
        slowly; ``"directional"``: piecewise constant with edges where the HAADF image has them; ``"tgv"``: piecewise
        linear, whatever the HAADF image shows (second-order total generalised variation); ``"tv"``: piecewise
        constant (total variation). None for no penalty.
    lambda_reg
        Weight of the penalty, > 0; one per element. Larger is smoother.
    joint
        Whether edges of all elements are taken to lie at the same places. False treats each map by itself.
    second_order
        Weight of the second derivatives of ``"tgv"``, or of the slope of ``"guided"``, relative to the first, > 0.
        Larger is straighter. None is 0.5 for ``"tgv"`` and 0.03 for ``"guided"``.
    eta
        How far ``"directional"`` trusts the edges of the HAADF image, in [0, 1): 0 is ``"tv"``.
    guide_blur
        Standard deviation in pixels of the Gaussian that smooths the HAADF image for ``"guided"`` and
        ``"directional"``, >= 0; its role in the HAADF forward model is not touched. None frees the image of the white noise
        that it shows by second-order total generalised variation, which keeps its edges.
    noise
        Of the maps. ``"poisson"``: counts. ``"shifted_poisson"``: counts, few or less their background. ``"gaussian"``:
        anything else, as quantified maps. ``"auto"`` chooses from the data and says what and why.
    shift
        Counts added to both sides of ``"shifted_poisson"``, > 0. Larger is nearer to least squares.
    background
        Known counts per pixel in the maps that are not of the element, in the units of the maps, >= 0; one per
        element. They are not in the fused maps. For one that differs between pixels see ``element_maps``.
    variance
        Of the noise of ``"gaussian"``, in squared units of the maps, > 0; one per element. None takes that of the
        maps, pixel by pixel, where they have one, and else estimates it.
    weights
        Of the HAADF forward model ``f(x) = offset + sum_i w_i x_i``. ``"z_gamma"``: ``w_i`` proportional to
        ``k_i Z_i**gamma``, gain and offset fitted. ``"fit"``: all fitted, with standard errors, and drawn to the
        former as far as the data do not contradict it. Numbers, one per element, in HAADF units per unit of the maps:
        the offset is fitted alone.
    gamma
        Exponent on the atomic number in ``"z_gamma"``, and of what ``"fit"`` draws to, in (0, 4].
    k_factors
        Composition per unit of the maps, > 0, one per element: the k-factors ``k_i`` of ``"z_gamma"``. They enter the
        HAADF forward model, not the maps. None is 1 for all.
    lambda_haadf
        Weight of the HAADF term, >= 0. At 1 its noise and the misfit of the forward model decide; 0 switches it off.
    haadf_blur
        Standard deviation in pixels, 0 to 4, of the Gaussian by which the HAADF image is blurred more than the maps,
        as its term and the edges of ``"directional"`` are to have it; ``"fit"`` is what the HAADF forward model finds. At 0
        each pixel of the image is one of the maps, whatever blur the forward model is fitted with.
    keep_totals
        Whether each fused map keeps the total of the measured one, less its background.
    tol
        Stop once the relative duality gap, which bounds how far the objective is from its minimum, is at or below
        it, > 0.
    max_iter
        Iterations of this call at the most, >= 1.
    dtype
        ``"float32"`` or ``"float64"``. None solves float64 maps in float64 and anything else in float32.

    Raises
    ------
    ValueError, TypeError
        A sentence that names the setting, what it got and what is allowed.
    """

    regularization: str | None = "guided"
    lambda_reg: float | Sequence = 1.0
    joint: bool = True
    second_order: float | None = None
    eta: float = 0.95
    guide_blur: float | None = 0.7
    noise: str = "auto"
    shift: float = 0.3
    background: float | Sequence = 0.0
    variance: float | Sequence | None = None
    weights: str | Sequence = "z_gamma"
    gamma: float = 1.7
    k_factors: Sequence | None = None
    lambda_haadf: float = 1.0
    haadf_blur: float | str = 0.0
    keep_totals: bool = True
    tol: float = 1e-4
    max_iter: int = 10000
    dtype: str | None = None

    def __post_init__(self):
        for name, value in asdict(self).items():
            object.__setattr__(self, name, _as_python(value))
        self._check_data()
        self._check_penalty()
        _check_positive("tol", self.tol)
        _check_count("max_iter", self.max_iter)
        check_choice("dtype", self.dtype, (None, "float32", "float64"))

    def _check_penalty(self):
        check_choice("regularization", self.regularization, REGULARIZATIONS)
        _check_each("lambda_reg", self.lambda_reg, _check_positive)
        check_choice("joint", self.joint, (True, False))
        _check_positive("second_order", self.second_order, off="for the default of the penalty")
        _check_from("eta", self.eta, 0, 1)
        _check_from("guide_blur", self.guide_blur, 0, off="to free the image of its noise")

    def _check_data(self):
        check_choice("noise", self.noise, NOISES)
        _check_positive("shift", self.shift)
        _check_background(self.background)
        _check_each("variance", self.variance, _check_positive, off="to estimate it")
        _check_weights(self.weights)
        _check_interval("gamma", self.gamma, 0, 4)
        _check_factors(self.k_factors)
        _check_from("lambda_haadf", self.lambda_haadf, 0)
        _check_haadf_blur(self.haadf_blur, self.weights)
        check_choice("keep_totals", self.keep_totals, (True, False))

    def as_dict(self):
        """The settings as a plain dictionary; sequences are tuples of numbers."""
        return asdict(self)


@dataclass(frozen=True)
class AutoSettings(CalibratedSettings):
    """Settings of the calibrated method with its weights chosen by evidence.

    What is ``"auto"`` is chosen: rough fits to four fifths of the counts are judged by how well they predict the last
    fifth, or, of maps that are no counts, fits to nine tenths of the pixels by the last tenth. All else is as for the
    calibrated method.

    Parameters
    ----------
    regularization
        A penalty of the calibrated method, or ``"auto"`` for the best of all four.
    lambda_reg
        Weight of the penalty, > 0, or one per element, or ``"auto"`` for the best one for all.
    lambda_haadf
        Weight of the HAADF term, >= 0, or ``"auto"`` for the better of 0 and 1.
    joint
        Whether edges of all elements are taken to lie at the same places, or ``"auto"``.
    tol
        Stop each fit once its relative duality gap is at or below it, > 0.
    components
        How many components of the whole spectra take part, of a spectrum image of counts: 0 for none, or ``"auto"`` for
        as many as stand out of the noise. Maps alone have none.
    seed
        Of the split, a whole number >= 0: with the same one the choice is the same.

    Raises
    ------
    ValueError, TypeError
        A sentence that names the setting, what it got and what is allowed.
    """

    regularization: str | None = AUTO
    lambda_reg: float | str | Sequence = AUTO
    lambda_haadf: float | str = AUTO
    joint: bool | str = AUTO
    tol: float = 3e-4
    components: int | str = AUTO
    seed: int = 0

    def __post_init__(self):
        # what is given is checked as it is without a choice
        checked = self.chosen()
        for name, given in self.as_dict().items():
            if not _is_auto(given) and hasattr(checked, name):
                object.__setattr__(self, name, getattr(checked, name))
        for name in ("components", "seed"):
            object.__setattr__(self, name, _as_python(getattr(self, name)))
        _check_components(self.components)
        check_seed(self.seed)

    def chosen(self, regularization="guided", lambda_reg=1.0, lambda_haadf=1.0, joint=True):
        """The settings of the calibrated method with a choice in the place of every ``"auto"``."""
        choice = {
            "regularization": regularization, "lambda_reg": lambda_reg, "lambda_haadf": lambda_haadf, "joint": joint,
        }  # fmt: skip
        given = {f.name: getattr(self, f.name) for f in fields(CalibratedSettings)}
        return CalibratedSettings(**given | {name: v for name, v in choice.items() if _is_auto(given[name])})


def _is_auto(value):
    return isinstance(value, str) and value == AUTO


METHODS = {"published": PublishedSettings, "calibrated": CalibratedSettings, "auto": AutoSettings}
# what a setting of one method is called in the other, as near as there is one
_COUNTERPARTS = {
    "lambda_tv": "lambda_reg",
    "lambda_reg": "lambda_tv",
    "weighting": "weights",
    "weights": "weighting",
}
# given elsewhere than to a fit, and where
_ELSEWHERE = dict.fromkeys(
    ("method", "mask", "elements", "xray_lines", "integration_windows", "register", "resample"),
    "pass it to FusedMultiModal or fuse",
) | {
    "errors": "pass it to fuse, or call standard_errors() of the fitted model",
    "edges": "pass it to element_maps, and fuse the maps that it returns",
}


def settings_for(method, options, base=None):
    """Settings of ``method`` from a dictionary of options, on top of ``base`` where it is given.

    Raises
    ------
    ValueError
        For a method that does not exist.
    TypeError
        For an option the method does not have, with the nearest name or the method that has it.
    """
    check_choice("method", method, tuple(METHODS))
    cls = METHODS[method]
    for name in options:
        if name not in setting_names(method):
            raise TypeError(_why_not(name, method))
    return cls(**{**(base.as_dict() if base is not None else {}), **options})


def setting_names(method):
    """The names of the settings of a method."""
    return [f.name for f in fields(METHODS[method])]


def _why_not(name, method):
    """Sentence about a setting that ``method`` does not have."""
    names = setting_names(method)
    owner = next((other for other in METHODS if name in setting_names(other)), None)
    if owner and name in _COUNTERPARTS:
        # the published method is what those get who name none
        other = f" Or pass method={owner!r}." if method == "published" else ""
        return f"{name} belongs to method={owner!r}; with {method!r} it is {_COUNTERPARTS[name]}.{other}"
    if owner:
        return f"{name} belongs to method={owner!r}; leave it out with {method!r}, or pass method={owner!r}."
    if name in _ELSEWHERE:
        return f"{name} is no setting of a fit: {_ELSEWHERE[name]}."
    near = difflib.get_close_matches(name, [*names, *_ELSEWHERE], n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(names)}."
    return f"method {method!r} has no option {name!r}; {hint}"


def working_dtype(maps, dtype=None):
    """The dtype of a fit: the one asked for, else float64 for float64 maps and float32 for anything else."""
    if dtype is not None:
        return np.dtype(dtype)
    return np.dtype(np.float64 if maps.dtype == np.float64 else np.float32)


def _as_python(value):
    """NumPy scalars as the Python ones that metadata keep, and sequences as tuples of them."""
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        return tuple(_as_python(v) for v in value)
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _is_number(value):
    return isinstance(value, Real) and not isinstance(value, bool)


def _remedy(off):
    return f", or None {off}" if off else ""


def _about_auto(value):
    return " method='auto' chooses it for you." if isinstance(value, str) and value == "auto" else ""


def _check_positive(name, value, off=""):
    if value is None and off:
        return
    if not _is_number(value) or not SMALLEST <= value <= LARGEST:
        raise ValueError(
            f"{name} is {value!r}: it must be a number above 0 ({SMALLEST:g} to {LARGEST:g}){_remedy(off)}."
            f"{_about_auto(value)}"
        )


def _check_interval(name, value, low, high, off=""):
    if value is None and off:
        return
    if not _is_number(value) or not low < value <= high:
        raise ValueError(f"{name} is {value!r}: it must lie above {low} and at most at {high}{_remedy(off)}.")


def _check_from(name, value, low, below=None, off=""):
    """``low <= value``, and ``value < below`` where that is given."""
    if value is None and off:
        return
    end = LARGEST if below is None else below
    if not _is_number(value) or not low <= value <= end or value == below:
        raise ValueError(f"{name} is {value!r}: it must be at least {low} and {_end(below)}{_remedy(off)}.")


def _end(below):
    return f"at most {LARGEST:g}" if below is None else f"below {below}"


def _check_each(name, value, check, *args, **options):
    """Check a number, or those of a sequence with one for each element, of which none may be None."""
    if not _is_filled(value):
        check(name, value, *args, **options)
        return
    for one in value:
        check(name, one, *args)


def _is_filled(value):
    return isinstance(value, tuple) and len(value) > 0


def _check_background(background):
    if isinstance(background, str):
        raise ValueError(
            f"background is {background!r}, and here it is numbers: make the maps with their background, "
            f"element_maps(spectra, background={background!r}), and fuse these."
        )
    _check_each("background", background, _check_from, 0)


def _check_weights(weights):
    if not _is_filled(weights):
        check_choice("weights", weights, WEIGHTS, also="numbers, one per element")
        return
    _check_each("weights", weights, _check_from, 0)
    if not any(weights):
        raise ValueError(f"weights is {weights!r}: one of them must be above 0, for else no element shows in HAADF.")


def _check_haadf_blur(blur, weights):
    if blur == "fit":
        if _is_filled(weights):
            raise ValueError(
                "haadf_blur is 'fit', and with given weights no HAADF forward model is fitted that could find it: pass pixels, "
                "or weights='z_gamma'."
            )
    elif not _is_number(blur) or not 0 <= blur <= MAX_BLUR:
        raise ValueError(f"haadf_blur is {blur!r}: it must be 0 to {MAX_BLUR:g} pixels, or 'fit' to find it.")


def _check_factors(factors):
    if factors is not None and not _is_filled(factors):
        raise ValueError(f"k_factors is {factors!r}: it must hold one number per element, or be None for 1.")
    for factor in factors or ():
        _check_positive("k_factors", factor)


def _check_count(name, value):
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}: it must be a whole number of at least 1.")


def check_seed(seed):
    """ValueError for a seed that is no whole number of at least 0."""
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed is {seed!r}: it must be a whole number of at least 0.")


def _check_components(components):
    is_whole = isinstance(components, Integral) and not isinstance(components, bool) and components >= 0
    if not (_is_auto(components) or is_whole):
        raise ValueError(
            f"components is {components!r}: it must be a whole number of at least 0, or 'auto' for as many as stand "
            "out of the noise."
        )


def check_choice(name, value, allowed, also=""):
    """ValueError for a value that is none of those allowed; `also` says what else would be."""
    # identity for None and booleans, equality for strings: 1 == True must not pass
    if not any(value is a or (isinstance(a, str) and isinstance(value, str) and value == a) for a in allowed):
        others = f", or {also}" if also else ""
        words = [a for a in allowed if isinstance(a, str)]
        near = difflib.get_close_matches(value.lower(), words, n=1) if isinstance(value, str) else []
        hint = f" The nearest is {near[0]!r}." if near else ""
        raise ValueError(f"{name} is {value!r}: it must be one of {', '.join(map(repr, allowed))}{others}.{hint}")
