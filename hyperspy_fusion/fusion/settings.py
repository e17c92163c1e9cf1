"""Settings of a fit: frozen, checked once, and the only home of their names and defaults.

The keywords of :func:`hyperspy_fusion.fuse`, of ``FusedMultiModal.fit`` and of the command line
are the fields below.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.checks import (
    AUTO,
    PER_IMAGE,
    as_python,
    check_background,
    check_choice,
    check_components,
    check_count,
    check_each,
    check_factors,
    check_from,
    check_haadf_blur,
    check_haadf_coefficients,
    check_images,
    check_interval,
    check_positive,
    check_seed,
    is_auto,
    is_open,
    is_per_image,
)

ELEMENT_WEIGHTINGS = ("equal", "z_mean", "z_gamma_mean", "z_sum", "z_gamma_sum")
TV_NORMS = ("isotropic", "anisotropic")
TV_SOLVERS = ("fgp", "gp")
REGULARIZATIONS = ("guided", "directional", "tgv", "tv", "none")
# of these, those that look at the HAADF image
GUIDED = ("guided", "directional")
DTYPES = (None, "float32", "float64")
NOISES = ("auto", "poisson", "shifted_poisson", "gaussian")


@dataclass(frozen=True)
class PublishedSettings:
    """Settings of the published method (Schwartz et al., npj Comput. Mater. 8, 16, 2022).

    The defaults are those of the paper's algorithm box (Manassa et al., Elemental Microscopy EM000003, 2024).
    All weights act on maps and HAADF image scaled to [0, 1]. The method reproduces published results, and is used
    only when ``method="published"`` is given.

    Parameters
    ----------
    gamma
        Exponent of the HAADF forward model ``f(x) = sum_i w_i x_i**gamma``, in (0, 4]. Published: 1.4 to 2. Below 1
        the slope of the forward model is infinite at zero; it is taken at no less than ``eps`` then.
    z_weighting
        How the HAADF coefficients ``w_i`` follow from the atomic numbers: ``"equal"``, ``"z_mean"`` (Z / mean Z),
        ``"z_gamma_mean"`` (Z**gamma / mean Z**gamma), ``"z_sum"`` (Z / sum Z), ``"z_gamma_sum"``.
    lambda_haadf
        Weight of the HAADF term, > 0. None is 1 / number of fused elements, the published step length.
    lambda_chem
        Weight of the Poisson term of the maps, > 0. Larger moves the maps towards ``max(b - eps, 0)``, the minimum of
        the term. Where it is too large, the maps oscillate.
    lambda_tv
        Weight of the total variation, >= 0; 0 switches it off. Larger is smoother.
    eps
        Offset of the Poisson term ``x - b log(x + eps)``, > 0, in units of the normalised maps.
    threshold
        Normalised map values below it start at zero; they stay in the data. None starts from the maps themselves.
        For the first fit of a model.
    max_iter
        Iterations of this call, >= 1.
    change_tol
        Stop once the relative change of the maps in one iteration, ``||x_new - x|| / ||x||``, is at or below it.
        None runs ``max_iter`` iterations.
    tv_iter
        Inner iterations of the proximal operator of the total variation, >= 1.
    tv_norm
        ``"isotropic"`` or ``"anisotropic"``.
    tv_solver
        ``"fgp"`` (fast gradient projection, Beck & Teboulle 2009) or ``"gp"`` (without extrapolation).
    dtype
        ``"float32"`` or ``"float64"``, in which the maps are fitted. None is ``"float32"``.

    Raises
    ------
    ValueError, TypeError
        With the name of the setting, its value and what is allowed.
    """

    gamma: float = 1.6
    z_weighting: str = "z_mean"
    lambda_haadf: float | None = None
    lambda_chem: float = 0.08
    lambda_tv: float = 0.15
    eps: float = 0.2
    threshold: float | None = None
    max_iter: int = 30
    change_tol: float | None = None
    tv_iter: int = 3
    tv_norm: str = "isotropic"
    tv_solver: str = "fgp"
    dtype: str | None = None

    def __post_init__(self):
        for name, value in asdict(self).items():
            object.__setattr__(self, name, as_python(value))
        check_interval("gamma", self.gamma, 0, 4)
        check_positive("lambda_haadf", self.lambda_haadf, off="for 1 / number of elements")
        check_positive("lambda_chem", self.lambda_chem)
        check_from("lambda_tv", self.lambda_tv, 0)
        check_positive("eps", self.eps)
        check_interval("threshold", self.threshold, 0, 1, off="for no threshold")
        check_positive("change_tol", self.change_tol, off="to run all iterations")
        check_count("max_iter", self.max_iter)
        check_count("tv_iter", self.tv_iter)
        check_choice("z_weighting", self.z_weighting, ELEMENT_WEIGHTINGS)
        check_choice("tv_norm", self.tv_norm, TV_NORMS)
        check_choice("tv_solver", self.tv_solver, TV_SOLVERS)
        check_choice("dtype", self.dtype, DTYPES)

    def as_dict(self):
        """The settings as a plain dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class CalibratedSettings:
    """Settings of the calibrated method: convex, in the units of the data, solved to a stated accuracy.

    Each map is measured in standard deviations of its typical pixel. A weight therefore means the same at any dose,
    size, element and scale of the data. Where one value per element is allowed, a number holds for all, a sequence is
    in the order of the maps, with one for each, and a dictionary ``{element: value}`` needs no order.

    With several elastic images, ``haadf_coefficients``, ``z_exponent``, ``lambda_haadf``, ``haadf_blur`` and
    ``remove_ramp`` take a list with one entry for each image. A single value holds for all of them. Only a single
    ``haadf_coefficients`` is that of the first: those of further images are then fitted, of either sign.

    Parameters
    ----------
    regularization
        Model of the true maps. ``"guided"``: locally linear in the HAADF image, with a slope that varies slowly.
        ``"directional"``: piecewise constant, with edges where the HAADF image has them. ``"tgv"``: piecewise linear,
        without the HAADF image (second-order total generalised variation). ``"tv"``: piecewise constant (total
        variation). ``"none"``: no penalty.
    lambda_reg
        Weight of the penalty, > 0; one per element. Larger is smoother. With ``haadf_blur``, ``"directional"`` takes
        about twice the weight.
    joint
        Whether edges of all elements are taken to lie at the same places. False treats each map by itself.
    second_order
        Weight of the second derivatives of ``"tgv"``, or of the slope of ``"guided"``, relative to the first, > 0.
        Larger is straighter. None is 0.5 for ``"tgv"`` and 0.03 for ``"guided"``.
    eta
        Weight that ``"directional"`` gives to the edges of the HAADF image, in [0, 1): 0 is ``"tv"``.
    guide_blur
        Standard deviation in pixels of the Gaussian that smooths the HAADF image for ``"guided"`` and
        ``"directional"``, >= 0. The HAADF forward model takes the image as it is. If None, the image is denoised by
        second-order total generalised variation, which keeps its edges.
    noise
        Of the maps. ``"poisson"``: counts. ``"shifted_poisson"``: counts, few or less their background.
        ``"gaussian"``: anything else, as quantified maps. ``"auto"`` chooses from the data and records why.
    poisson_offset
        Counts added to both sides of ``"shifted_poisson"``, > 0. Larger is nearer to least squares.
    background
        Known counts per pixel in the maps that are not of the element, in the units of the maps, >= 0; one per
        element. They are not in the fused maps. For one that differs between pixels see ``element_maps``.
    variance
        Of the noise of ``"gaussian"``, in squared units of the maps, > 0; one per element. None takes that of the
        noise metadata of the maps, pixel by pixel, and else estimates it.
    haadf_coefficients
        Of the HAADF forward model ``f(x) = offset + sum_i w_i x_i``. ``"z_power"``: ``w_i`` proportional to
        ``k_i Z_i**z_exponent``, gain and offset fitted. ``"fit"``: all fitted, with standard errors, and shrunk
        towards the former. Numbers, one per element, in HAADF units per unit of the maps: the offset alone is fitted.
    z_exponent
        Exponent on the atomic number in ``"z_power"``, and in the prior of ``"fit"``, in (0, 4].
    k_factors
        Atoms per unit of the maps, > 0, one per element: the ``k_i`` of ``"z_power"``. Of Cliff-Lorimer k-factors,
        which give weights, each over the atomic mass. They enter the HAADF forward model and not the maps. None is 1
        for all.
    lambda_haadf
        Weight of the HAADF term, >= 0. At 1 it follows from the noise and the model discrepancy; 0 switches it off.
    haadf_blur
        Standard deviation in pixels, 0 to 4, of the Gaussian by which the HAADF image is blurred more than the maps,
        for its term and for the edges of ``"directional"``. ``"fit"`` is the blur of the fitted forward model. At 0,
        each pixel of the image is one of the maps, whatever blur the forward model is fitted with.
    remove_ramp
        Whether the image is taken less a plane, which is fitted with the HAADF forward model, as for a phase image. A
        plane that the maps explain, such as a wedge of thickness, stays.
    keep_totals
        Whether each fused map keeps the total of the measured one, less its background.
    tol
        ``"settled"``: the fit ends once its maps are about 3 % of their standard errors from their final values. This
        is an estimate from their last moves. A number > 0: it ends once the relative duality gap is at or below it,
        which bounds how far the objective is from its minimum. 1e-4 takes up to ten times as long. Maps smaller than 16
        pixels and ``"none"`` end at a gap of 1e-4 in place of ``"settled"``.
    max_iter
        Iterations of this call at most, >= 1.
    dtype
        ``"float32"`` or ``"float64"``, in which the maps are fitted. None is ``"float32"``.
    tile_size
        ``fuse`` solves maps in overlapping tiles of at most so many pixels a side, >= 16. None does so for lazy maps
        that are too large to be fitted in memory, in tiles that the memory allows.
    lambda_stack
        Of a stack along one axis, the weight of the differences between neighbouring frames, >= 0. Above 0 all frames
        are fitted together, and what does not change from frame to frame has less noise. At 0 each is fitted by itself.

    Raises
    ------
    ValueError, TypeError
        With the name of the setting, its value and what is allowed.
    """

    regularization: str = "guided"
    lambda_reg: float | Sequence | Mapping = 1.0
    joint: bool = True
    second_order: float | None = None
    eta: float = 0.95
    guide_blur: float | None = 0.7
    noise: str = "auto"
    poisson_offset: float = 0.3
    background: float | Sequence | Mapping = 0.0
    variance: float | Sequence | Mapping | None = None
    haadf_coefficients: str | Sequence | Mapping = "z_power"
    z_exponent: float | Sequence = 1.7
    k_factors: Sequence | Mapping | None = None
    lambda_haadf: float | Sequence = 1.0
    haadf_blur: float | str | Sequence = 0.0
    remove_ramp: bool | Sequence = False
    keep_totals: bool = True
    tol: float | str = "settled"
    max_iter: int = 10000
    dtype: str | None = None
    tile_size: int | None = None
    lambda_stack: float | str = 0.0

    def __post_init__(self):
        for name, value in asdict(self).items():
            object.__setattr__(self, name, as_python(value))
        check_choice("regularization", self.regularization, REGULARIZATIONS)
        check_each("lambda_reg", self.lambda_reg, check_positive)
        check_choice("joint", self.joint, (True, False))
        check_positive("second_order", self.second_order, off="for the default of the penalty")
        check_from("eta", self.eta, 0, 1)
        check_from("guide_blur", self.guide_blur, 0, off="to denoise the image")
        check_choice("noise", self.noise, NOISES)
        check_positive("poisson_offset", self.poisson_offset)
        check_background(self.background)
        check_each("variance", self.variance, check_positive, off="to estimate it")
        check_haadf_coefficients(self.haadf_coefficients)
        check_images("z_exponent", self.z_exponent, check_interval, 0, 4)
        check_factors(self.k_factors)
        check_images("lambda_haadf", self.lambda_haadf, check_from, 0)
        check_haadf_blur(self.haadf_blur, self.haadf_coefficients)
        check_images("remove_ramp", self.remove_ramp, check_choice, (True, False))
        check_choice("keep_totals", self.keep_totals, (True, False))
        if self.tol != "settled":
            check_positive("tol", self.tol)
        check_count("max_iter", self.max_iter)
        check_choice("dtype", self.dtype, DTYPES)
        if self.tile_size is not None:
            check_count("tile_size", self.tile_size, 16)
        check_from("lambda_stack", self.lambda_stack, 0)

    def without_haadf(self):
        """The settings of a fit that does not use the HAADF image; ``"tgv"`` stands in for penalties that do."""
        kind = "tgv" if self.regularization in ("auto", *GUIDED) else self.regularization
        return replace(self, regularization=kind, lambda_haadf=0.0)

    def without_first_image(self, n_images):
        """The settings of a fit that uses further elastic images alone: see :meth:`without_haadf`."""
        further = [self.of_image(k).lambda_haadf for k in range(1, n_images)]
        return replace(self.without_haadf(), lambda_haadf=(0.0, *further) if further else 0.0)

    def of_image(self, k):
        """The :class:`ImageSettings` of elastic image k, 0 for the first."""
        given = {name: getattr(self, name) for name in PER_IMAGE}
        coefficients = given.pop("haadf_coefficients")
        if is_per_image(coefficients):
            coefficients = coefficients[k]
        elif k > 0:
            coefficients = "fit"
        given = {name: value[k] if isinstance(value, tuple) else value for name, value in given.items()}
        return ImageSettings(coefficients, **given, k_factors=self.k_factors, is_signed=k > 0)

    def as_dict(self):
        """The settings as a plain dictionary; sequences are tuples of numbers."""
        return asdict(self)


@dataclass(frozen=True)
class ImageSettings:
    """The settings of one elastic image, as in :class:`CalibratedSettings`; signed: with negative coefficients too."""

    haadf_coefficients: Any
    z_exponent: float
    lambda_haadf: Any
    haadf_blur: float | str
    remove_ramp: bool
    k_factors: Sequence | Mapping | None
    is_signed: bool


@dataclass(frozen=True)
class AutoSettings(CalibratedSettings):
    """Settings of the calibrated method with penalty and weights chosen by cross-validation.

    The default method. What is ``"auto"`` is chosen: low-accuracy fits to four fifths of the counts are compared by
    how well they predict the last fifth. Maps that are no counts are compared by nine and one tenth of the pixels. All
    other settings are those of :class:`CalibratedSettings`.

    Parameters
    ----------
    regularization
        A penalty of the calibrated method, or ``"auto"``: ``"guided"``, ``"directional"``, ``"tgv"`` and ``"tv"`` are
        compared. For fits to whole spectra these are the first two.
    lambda_reg
        Weight of the penalty, > 0, or one per element, or ``"auto"`` for the best one for all.
    lambda_haadf
        Weight of the HAADF term, >= 0, or ``"auto"`` for the better of 0 and 1, of each elastic image.
    joint
        Whether edges of all elements are taken to lie at the same places, or ``"auto"``.
    components
        Number of spectral components, of a spectrum image of counts: 0 for none, or ``"auto"`` for as many as exceed
        the noise. Maps alone have none.
    seed
        Of the folds, a whole number >= 0: with the same one the choice is the same.
    sample_frames
        Of a stack, so many frames have one choice made for all of them together; None chooses for each frame.
    lambda_stack
        Weight of the differences between neighbouring frames of a stack, >= 0, or ``"auto"`` for the best one.

    Raises
    ------
    ValueError, TypeError
        With the name of the setting, its value and what is allowed.
    """

    regularization: str = AUTO
    lambda_reg: float | str | Sequence | Mapping = AUTO
    lambda_haadf: Any = AUTO  # float or "auto"
    joint: Any = AUTO  # bool or "auto"
    components: int | str = AUTO
    seed: int = 0
    sample_frames: int | None = 3

    def __post_init__(self):
        object.__setattr__(self, "lambda_haadf", as_python(self.lambda_haadf))
        # what is given is checked as it is without a choice
        checked = self.chosen()
        for name, given in self.as_dict().items():
            if not is_open(given) and hasattr(checked, name):
                object.__setattr__(self, name, getattr(checked, name))
        for name in ("components", "seed", "sample_frames"):
            object.__setattr__(self, name, as_python(getattr(self, name)))
        check_components(self.components)
        check_seed(self.seed)
        if self.sample_frames is not None:
            check_count("sample_frames", self.sample_frames)

    def chosen(self, regularization="guided", lambda_reg=1.0, lambda_haadf=1.0, joint=True, lambda_stack=0.0):
        """The settings of the calibrated method with a choice in the place of every ``"auto"``."""
        choice = {
            "regularization": regularization, "lambda_reg": lambda_reg, "lambda_haadf": lambda_haadf, "joint": joint,
            "lambda_stack": lambda_stack,
        }  # fmt: skip
        given = {f.name: getattr(self, f.name) for f in fields(CalibratedSettings)}
        chosen = {name: choice[name] if is_auto(value) else value for name, value in given.items() if name in choice}
        weights = chosen["lambda_haadf"]
        if isinstance(weights, tuple):  # of each image
            of_each = lambda_haadf if isinstance(lambda_haadf, tuple) else (lambda_haadf,) * len(weights)
            chosen["lambda_haadf"] = tuple(
                one if is_auto(value) else value for value, one in zip(weights, of_each, strict=True)
            )
        return CalibratedSettings(**given | chosen)


#: The class of settings of each method.
SETTINGS = {"published": PublishedSettings, "calibrated": CalibratedSettings, "auto": AutoSettings}
# what a setting of one method is called in the others, as near as there is one
_COUNTERPARTS = {
    "lambda_tv": "lambda_reg",
    "z_weighting": "haadf_coefficients",
    "change_tol": "tol",
    "eps": "poisson_offset",
    "gamma": "z_exponent",
}
_COUNTERPARTS |= {there: here for here, there in _COUNTERPARTS.items()}


def settings_for(method, settings=None, base=None, **given):
    """The validated settings of a fit.

    Parameters
    ----------
    method : str
        Name of the method.
    settings : PublishedSettings, CalibratedSettings or AutoSettings, optional
        Of the class of the method. None takes ``base``, else the defaults.
    base
        Settings of the fit before, of the class of the method.
    **given
        Fields that override those of ``settings``, as far as they are not None.

    Raises
    ------
    ValueError
        For a method that does not exist, and for a value that is not allowed.
    TypeError
        For settings of another class, and for a field that the method does not have.
    """
    check_choice("method", method, tuple(SETTINGS))
    cls = SETTINGS[method]
    if settings is not None and type(settings) is not cls:
        raise TypeError(f"settings is of {type(settings).__name__}: method={method!r} takes {cls.__name__}(...).")
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in setting_names(method):
            raise TypeError(_why_not(name, method))
    start = next((s for s in (settings, base) if s is not None), cls())
    return replace(start, **given)


def setting_names(method):
    """The names of the settings of a method."""
    return [f.name for f in fields(SETTINGS[method])]


def _why_not(name, method):
    """Sentence about a setting that ``method`` does not have."""
    owner = next((other for other in SETTINGS if name in setting_names(other)), None)
    if owner is None:
        names = setting_names(method)
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the settings are {', '.join(names)}."
        return f"method={method!r} has no setting {name!r}; {hint}"
    counterpart = _COUNTERPARTS.get(name)
    here = f"is called {counterpart}" if counterpart in setting_names(method) else "has no counterpart"
    return f"{name} belongs to method={owner!r}; with method={method!r} it {here}."


def working_dtype(dtype=None):
    """The dtype of a fit: the one asked for, else float32."""
    return np.dtype(dtype or "float32")
