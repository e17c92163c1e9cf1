"""The calibrated objective: counts, elastic law and penalty in natural units, convex.

    minimise over x >= 0:  sum D(x_i; b_i) + lambda_haadf / (2 sigma^2) ||h - f(x)||^2 + R(x_1 / s_1, x_2 / s_2, ...)

with D half the deviance of counts, or least squares in units of the noise, f linear, and the total of every map kept.
Everything inside is in units of ``s_i``, ``lambda_reg`` times smaller than the noise of a typical pixel of the map:
there the penalty has the weight 1, and dose, size and scale of the data are gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from hyperspy_fusion.fusion.elastic import LinearLaw, haadf_noise, z_weights
from hyperspy_fusion.fusion.elastic_fit import UndeterminedLawError, fit_linear_law
from hyperspy_fusion.fusion.noise import choose_noise, estimate_variance, quanta
from hyperspy_fusion.fusion.problem import Terms, working_dtype
from hyperspy_fusion.fusion.regularizers import CellPenalty

# edges of the guide below this fraction of the range of the HAADF image are taken for noise (Ehrhardt & Betcke 2016);
# tried on held-out counts at three doses and on phantoms, both of which preferred it to 0.01
GUIDE_EDGE = 0.003
# weight of the slopes relative to that of the differences; tried on phantoms and on held-out counts
SECOND_ORDER = {"guided": 0.03, "tgv": 0.5}

# of a pixel, relative to the typical one: fits of spectra that end at a bound leave next to nothing
LEAST_VARIANCE = 0.01


@dataclass(frozen=True)
class DataTerms:
    """The terms of the maps as the kernels take them; see :func:`~.kernels.descend_maps`.

    Attributes
    ----------
    is_poisson
        Counts, or least squares.
    beta, slope, delta
        (n, ny, nx), (n, 1 or ny, nx), (n, 1 or ny, nx). Slope and beta are 0 in masked pixels.
    upper
        (n,) twice the largest measured value: the duality gap is told among maps below it, or below twice those found.
    totals
        (n,) totals over pixels that are not masked, to be kept; NaN for none.
    """

    is_poisson: bool
    beta: np.ndarray
    slope: np.ndarray
    delta: np.ndarray
    upper: np.ndarray
    totals: np.ndarray

    def net(self):
        """(n, ny, nx) measured maps, less background, in units of z; anything in masked pixels."""
        slope = np.where(self.slope > 0, self.slope, 1).astype(np.float64)
        return self.beta / slope - self.delta

    def reach(self, z):
        """How far a unit of pull moves a pixel at z, in units of z: the variance of what was measured there."""
        slope = np.where(self.slope > 0, self.slope, 1).astype(np.float64)
        return (z + self.delta) / slope if self.is_poisson else 1 / slope

    def value(self, z):
        """Half the deviance, or half the squares of the residuals, summed over all pixels not masked."""
        beta, slope, delta = (a.astype(np.float64) for a in (self.beta, self.slope, self.delta))
        used = np.broadcast_to(slope > 0, z.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.is_poisson:
                mean = slope * (z + delta)
                terms = mean - np.where(beta > 0, beta + beta * np.log(mean / beta), 0)
            else:
                terms = 0.5 * slope * (z - beta / slope) ** 2
        return float(np.sum(terms, where=used))


@dataclass(frozen=True)
class ElasticTerm:
    """``1/2 sum (sum_i weights_i z_i - target)^2`` over counted pixels; no weights for no HAADF term."""

    weights: np.ndarray
    target: np.ndarray
    counted: np.ndarray

    def value(self, z):
        """The term."""
        if not self.weights.size:
            return 0.0
        residual = np.tensordot(self.weights.astype(np.float64), z, 1) - self.target
        return 0.5 * float(np.sum(self.counted * residual**2))


@dataclass(frozen=True)
class CalibratedProblem:
    """What is minimised. Maps in units of the input are ``scales * z``.

    Attributes
    ----------
    shape, dtype
        Of the maps, (n, ny, nx).
    haadf, haadf_valid
        (ny, nx) the image, 0 where it does not count, and where it counts.
    scales
        (n,) units of the input in one unit of z.
    start
        (n, ny, nx) the measured maps in units of z, >= 0, with the mean in the place of masked pixels.
    data, elastic, penalty
        The three terms.
    noise_kind, noise_sentence, quantum, variance
        Noise of the maps, why, and its measure: value of one count (n,), or mean variance (n,), harmonic; NaN for none.
    background
        (n,) mean over the pixels that count of what the maps hold that is not of the element, in units of the input.
    law, weight_errors, offset_error, weight_spread, haadf_sigma, haadf_noise, lambda_haadf
        The elastic law in units of the input, its standard errors (NaN where it was given), how far its weights were
        taken to be off the atomic numbers, the standard deviation of the image about it, that of the noise of the
        image alone, and the weight of its term.
    warnings
        Sentences about what was found.
    """

    shape: tuple
    dtype: np.dtype
    haadf: np.ndarray
    haadf_valid: np.ndarray
    scales: np.ndarray
    start: np.ndarray
    data: DataTerms
    elastic: ElasticTerm
    penalty: CellPenalty
    noise_kind: str
    noise_sentence: str
    quantum: np.ndarray
    variance: np.ndarray
    background: np.ndarray
    law: LinearLaw
    weight_errors: np.ndarray
    offset_error: float
    weight_spread: float
    haadf_sigma: float
    haadf_noise: float
    lambda_haadf: float
    warnings: list = field(default_factory=list)

    @property
    def first(self):
        """Itself, as a mean of fits names the heaviest of its problems."""
        return self

    @property
    def uses_haadf(self):
        """Whether the image has a say in the maps, by its term or as guide."""
        return bool(self.lambda_haadf) or self.penalty.guide is not None

    def objective(self, z, fields=None):
        """Terms of the objective, each as it enters the total, at maps z (and fields of the penalty), with NumPy."""
        z = np.asarray(z, dtype=np.float64)
        haadf, chem, tv = self.elastic.value(z), self.data.value(z), self.penalty.value(z, fields)
        return Terms(haadf, chem, tv, haadf + chem + tv)


def calibrated_problem(
    maps,
    haadf,
    atomic_numbers,
    settings,
    valid=None,
    haadf_valid=None,
    elements=None,
    background=None,
    variance=None,
):
    """The problem of the calibrated method.

    Parameters
    ----------
    maps
        (n, ny, nx), none of them constant.
    haadf
        (ny, nx), not constant.
    atomic_numbers
        n atomic numbers.
    settings
        A :class:`~hyperspy_fusion.fusion.settings.CalibratedSettings`.
    valid
        (n, ny, nx) bool, pixels of the maps that count; all by default.
    haadf_valid
        (ny, nx) bool, pixels of the HAADF image that count; all by default.
    elements
        n names for sentences.
    background
        (n, ny, nx) known counts that are not of the element, in units of the maps, instead of ``settings.background``.
    variance
        (n, ny, nx) known variance of the maps, in squared units, for Gaussian noise, unless ``settings`` have one.

    Returns
    -------
    CalibratedProblem

    Raises
    ------
    ValueError
        For settings that do not fit the maps, and a background that is given twice.
    """
    known = Known(background, variance)
    observation = Observation.of(maps, haadf, atomic_numbers, settings, valid, haadf_valid, elements, known)
    return observation.problem(settings)


@dataclass(frozen=True)
class Observation:
    """What no weight of the objective changes: the data, the noise of the maps and the elastic law.

    Attributes
    ----------
    seen
        The data.
    noise
        Of the maps: :class:`Counts` or :class:`Gaussian`.
    law
        The elastic law with its errors.
    dtype
        Of the fit.
    """

    seen: Seen
    noise: Counts | Gaussian
    law: FoundLaw
    dtype: np.dtype

    @classmethod
    def of(cls, maps, haadf, atomic_numbers, settings, valid=None, haadf_valid=None, elements=None, known=None):
        """From the arguments of :func:`calibrated_problem`; weights of the settings are not looked at."""
        seen = Seen.of(maps, haadf, valid, haadf_valid, elements)
        noise = _noise(seen, settings, known or Known())
        law = _elastic_law(seen, noise, atomic_numbers, settings)
        return cls(seen, noise, law, working_dtype(maps, settings.dtype))

    def part(self, held_out):
        """The observation without what is held out: counts, or pixels of the maps; the law scaled to it."""
        seen = replace(self.seen, maps=np.where(held_out.valid, held_out.maps, 0), valid=held_out.valid)
        law = replace(self.law.law, weights=self.law.law.weights / held_out.part)
        return replace(self, seen=seen, noise=self.noise.of_part(seen, held_out), law=replace(self.law, law=law))

    def problem(self, settings):
        """The problem under some weights."""
        seen, noise, law, dtype = self.seen, self.noise, self.law, self.dtype
        scales = noise.unit / _per_map("lambda_reg", settings.lambda_reg, seen)
        data = noise.terms(seen, scales, dtype, settings.keep_totals)
        return CalibratedProblem(
            shape=seen.maps.shape,
            dtype=dtype,
            haadf=seen.haadf,
            haadf_valid=seen.haadf_valid,
            scales=scales,
            start=_start(seen, noise, scales, dtype),
            data=data,
            elastic=_elastic_term(seen, law, scales, settings.lambda_haadf, dtype),
            penalty=_penalty(seen, settings, dtype),
            noise_kind=noise.kind,
            noise_sentence=noise.sentence,
            quantum=noise.quantum,
            variance=noise.variance,
            background=seen.means_of(noise.background),
            law=law.law,
            weight_errors=law.weight_errors,
            offset_error=law.offset_error,
            weight_spread=law.weight_spread,
            haadf_sigma=law.sigma,
            haadf_noise=law.noise,
            lambda_haadf=float(settings.lambda_haadf),
            warnings=noise.warnings + law.warnings + _about_totals(seen, data, settings.keep_totals),
        )


@dataclass(frozen=True)
class Known:
    """What is known of the noise pixel by pixel, each (n, ny, nx) or None: see :func:`calibrated_problem`."""

    background: np.ndarray | None = None
    variance: np.ndarray | None = None


@dataclass(frozen=True)
class Seen:
    """The data with 0 in masked pixels, as float64, and which pixels count."""

    maps: np.ndarray
    valid: np.ndarray
    haadf: np.ndarray
    haadf_valid: np.ndarray
    elements: list

    @classmethod
    def of(cls, maps, haadf, valid, haadf_valid, elements):
        valid = np.ones(maps.shape, bool) if valid is None else np.broadcast_to(valid, maps.shape)
        haadf_valid = np.ones(haadf.shape, bool) if haadf_valid is None else haadf_valid
        elements = list(elements) if elements is not None else [f"map {i}" for i in range(len(maps))]
        maps = np.where(valid, maps, 0).astype(np.float64)
        return cls(maps, valid, np.where(haadf_valid, haadf, 0).astype(np.float64), haadf_valid, elements)

    def means(self):
        """(n,) means over the pixels that count."""
        return self.means_of(self.maps)

    def means_of(self, values):
        """(n,) means over the pixels that count of ``values``, (n, 1, 1) or (n, ny, nx)."""
        return np.mean(np.broadcast_to(values, self.maps.shape), axis=(1, 2), where=self.valid)


def _per_map(name, value, seen):
    """A setting that is one number or one per map, as (n,)."""
    value = np.asarray(value, dtype=np.float64)
    if value.ndim and len(value) != len(seen.maps):
        raise ValueError(
            f"{name} has {len(value)} values and there are {len(seen.maps)} maps to fuse ({', '.join(seen.elements)}): "
            "give one number for all, or one for each in this order."
        )
    return np.broadcast_to(value, len(seen.maps)).copy()


def _column(values):
    return np.asarray(values)[:, None, None]


def _rows(values, seen, dtype):
    """Values (n, 1, 1) as (n, 1, nx); as (n, ny, nx) with 0 in masked pixels where there are any, or one per pixel."""
    n, _, nx = seen.maps.shape
    if seen.valid.all() and values.shape[1] == 1:
        return np.ascontiguousarray(np.broadcast_to(values, (n, 1, nx)), dtype)
    return np.ascontiguousarray(np.where(seen.valid, values, 0), dtype)


# ---- noise of the maps -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """Poisson counts over a background, shifted or not.

    ``background`` is (n, 1, 1), or (n, ny, nx) with 0 in masked pixels; what is one number per map is (n,).
    """

    kind: str
    sentence: str
    quantum: np.ndarray
    shift: float
    background: np.ndarray
    unit: np.ndarray
    warnings: list

    @property
    def variance(self):
        return np.full(len(self.quantum), np.nan)

    @property
    def variances(self):
        """(n, 1, 1) of a typical pixel."""
        return _column(self.unit**2)

    def of_part(self, seen, held_out):
        """The noise of the counts that are left where some are held out."""
        background = self.background * held_out.part
        return replace(self, background=background, unit=_unit(seen, self.quantum, self.shift))

    def noise_variance(self, seen):
        """(n, ny, nx) variance of the maps as measured."""
        return _column(self.quantum) * np.maximum(seen.maps, 0)

    def excess(self, seen, weights):
        """By what factor the shift overstates the noise of the sum of the maps times ``weights``."""
        squares = (weights * self.quantum) ** 2
        noise = squares @ (seen.means() / self.quantum)
        return 1 + self.shift * squares.sum() / noise if noise > 0 else 1.0

    def terms(self, seen, scales, dtype, keep_totals):
        """The Poisson deviance in units of ``scales``."""
        quantum, slope = _column(self.quantum), _column(scales / self.quantum)
        beta = np.where(seen.valid, seen.maps / quantum + self.shift, 0)
        totals = np.sum(seen.maps - self.background, axis=(1, 2), where=seen.valid) / scales
        delta = (self.background / quantum + self.shift) / slope
        return DataTerms(
            is_poisson=True,
            beta=beta.astype(dtype),
            slope=_rows(slope, seen, dtype),
            delta=_rows(delta, seen, dtype),
            upper=(2 * (beta.max(axis=(1, 2)) + 1) / slope.ravel()).astype(dtype),
            totals=_kept_totals(totals, keep_totals),
        )


@dataclass(frozen=True)
class Gaussian:
    """White noise of one variance per map, or of one per pixel.

    ``variances`` and ``background`` are (n, 1, 1) or (n, ny, nx). ``variance`` (n,) is the harmonic mean of the
    former: a few pixels that say next to nothing do not make a map noisier.
    """

    sentence: str
    variances: np.ndarray
    variance: np.ndarray
    background: np.ndarray
    kind: str = "gaussian"
    warnings: list = field(default_factory=list)

    @property
    def unit(self):
        return np.sqrt(self.variance)

    @property
    def quantum(self):
        return np.full(len(self.variance), np.nan)

    def of_part(self, seen, held_out):
        """The same, for pixels are held out."""
        return self

    def noise_variance(self, seen):
        """(n, ny, nx)."""
        return np.broadcast_to(self.variances, seen.maps.shape)

    def excess(self, seen, weights):
        """The noise is what it is."""
        return 1.0

    def terms(self, seen, scales, dtype, keep_totals):
        """Least squares in units of ``scales``."""
        slope = _column(scales**2) / self.variances
        net = (seen.maps - self.background) / _column(scales)
        beta = np.where(seen.valid, net * slope, 0)
        return DataTerms(
            is_poisson=False,
            beta=beta.astype(dtype),
            slope=_rows(slope, seen, dtype),
            delta=np.zeros((len(scales), 1, seen.maps.shape[2]), dtype),
            upper=(2 * net.max(axis=(1, 2), initial=0) + 10 / np.sqrt(slope.min(axis=(1, 2)))).astype(dtype),
            totals=_kept_totals(np.sum(net, axis=(1, 2), where=seen.valid), keep_totals),
        )


def _kept_totals(totals, keep):
    return np.where(keep & (totals > 0), totals, np.nan)


def _about_totals(seen, data, keep):
    lost = [e for e, total in zip(seen.elements, data.totals, strict=True) if keep and np.isnan(total)]
    if not lost:
        return []
    return [
        f"The total of {', '.join(lost)} less its background is not above 0 and was not kept: check the map and the "
        "background."
    ]


def _noise(seen, settings, known):
    """The noise that the settings ask for, that is known, or that the data show."""
    background = _background(seen, settings, known.background)
    kind, sentence = settings.noise, f"noise={settings.noise!r} as given."
    if kind == "auto" and known.variance is not None and settings.variance is None:
        kind, sentence = "gaussian", "The variance of the maps is known: Gaussian noise."
    elif kind == "auto":
        kind, sentence = choose_noise(_with_gaps(seen), seen.valid, seen.elements)
    if kind == "gaussian":
        variances = _variances(seen, settings, known.variance)
        return Gaussian(sentence, variances, 1 / seen.means_of(1 / variances), background)
    quantum, warnings = _quantum(seen)
    shift = settings.shift if kind == "shifted_poisson" else 0.0
    _check_counts(seen, quantum, shift, kind)
    return Counts(kind, sentence, quantum, shift, background, _unit(seen, quantum, shift), warnings)


def _unit(seen, quantum, shift):
    """(n,) the noise of a typical pixel."""
    return quantum * np.sqrt(seen.means() / quantum + shift)


def _background(seen, settings, known):
    """Background (n, 1, 1), or (n, ny, nx) with 0 in masked pixels where it is known pixel by pixel."""
    given = _per_map("background", settings.background, seen)
    if known is None:
        return _column(given)
    if given.any():
        raise ValueError(
            f"background is {settings.background!r}, and the maps have a known background of their own: leave the "
            "setting out, or make the maps with background=None."
        )
    known = np.where(seen.valid, known, 0).astype(np.float64)
    if not (np.isfinite(known).all() and known.min() >= 0):
        raise ValueError(f"The known background goes down to {known.min():.3g}: it must be finite and at least 0.")
    return known


def _with_gaps(seen):
    return np.where(seen.valid, seen.maps, np.nan)


def _variances(seen, settings, known):
    """Variance (n, 1, 1) as given or estimated, or (n, ny, nx) as known."""
    if settings.variance is not None:
        return _column(_per_map("variance", settings.variance, seen))
    if known is None:
        return _column([estimate_variance(m, v) for m, v in zip(seen.maps, seen.valid, strict=True)])
    told = seen.valid & np.isfinite(known) & (np.where(np.isfinite(known), known, 0) > 0)
    if not told.any(axis=(1, 2)).all():
        raise ValueError("The known variance of a map is nowhere above 0: leave it out, and it is estimated.")
    # a pixel without a variance gets that of a typical one, and no pixel decides alone
    typical = np.array([np.median(one[told_here]) for one, told_here in zip(known, told, strict=True)])
    return np.maximum(np.where(told, known, _column(typical)), LEAST_VARIANCE * _column(typical)).astype(np.float64)


def _quantum(seen):
    """Value of one count of every map, and a warning where it had to be assumed."""
    found = quanta(_with_gaps(seen), seen.valid)
    unknown = [e for e, q in zip(seen.elements, found, strict=True) if not q > 0]
    if not unknown:
        return found, []
    sentence = (
        f"The map of {', '.join(unknown)} shows no value of one count, and one of its units is taken for one: scale it "
        "to counts."
    )
    return np.where(found > 0, found, 1.0), [sentence]


def _check_counts(seen, quantum, shift, kind):
    counts = seen.maps / _column(quantum) + shift
    low = [e for e, m in zip(seen.elements, counts.min(axis=(1, 2)), strict=True) if m < 0]
    if low:
        raise ValueError(
            f"noise is {kind!r} and the map of {', '.join(low)} goes down to {counts.min() - shift:.3g} counts: it "
            f"must not go below {-shift:g}; use noise='gaussian', or noise='shifted_poisson' with a larger shift."
        )


# ---- the elastic law -------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundLaw:
    """A :class:`LinearLaw`, its standard errors (NaN where given), the spread of the image about it, and warnings.

    ``sigma`` is the spread, ``noise`` the part of it that is the white noise of the image, ``weight_spread`` how far
    the weights were taken to be off the law by atomic numbers, NaN where that was not asked.
    """

    law: LinearLaw
    weight_errors: np.ndarray
    offset_error: float
    sigma: float
    warnings: list = field(default_factory=list)
    noise: float = np.nan
    weight_spread: float = np.nan


def _elastic_law(seen, noise, atomic_numbers, settings):
    """The law, fitted as far as it is not given, and the spread of the HAADF image about it."""
    variance = noise.noise_variance(seen)
    if not isinstance(settings.weights, str):
        found = _given_law(seen, noise, settings)
    else:
        found = _law_if_any(seen, noise, variance, atomic_numbers, settings)
    sigma = max(found.sigma, _misfit(seen, noise, found.law, variance))
    # where the maps are made to count less than they do, the image must not gain by it
    sigma *= np.sqrt(noise.excess(seen, found.law.weights))
    return replace(found, sigma=sigma, noise=found.sigma)


def _law_if_any(seen, noise, variance, atomic_numbers, settings):
    """The fitted law; none where the image shows nothing of the maps, or too little is there and no law is needed."""
    try:
        return _fitted_law(seen, noise, variance, atomic_numbers, settings)
    except ValueError as error:
        if settings.lambda_haadf not in (0, "auto") and not isinstance(error, UndeterminedLawError):
            raise
        n, level = len(seen.maps), float(np.mean(seen.haadf, where=seen.haadf_valid))
        sentence = f"No elastic law was fitted, and the HAADF term cannot act. {error}"
        spread = haadf_noise(seen.haadf, seen.haadf_valid)
        return FoundLaw(LinearLaw(np.zeros(n), level), np.full(n, np.nan), np.nan, spread, [sentence])


def _given_law(seen, noise, settings):
    weights = _per_map("weights", settings.weights, seen)
    law = LinearLaw(weights, _offset(seen, noise, weights))
    return FoundLaw(law, np.full(len(weights), np.nan), np.nan, haadf_noise(seen.haadf, seen.haadf_valid))


def _fitted_law(seen, noise, variance, atomic_numbers, settings):
    factors = None if settings.k_factors is None else _per_map("k_factors", settings.k_factors, seen)
    # a map that the image says nothing of has no finite error
    with np.errstate(divide="ignore", invalid="ignore"):
        fit = fit_linear_law(
            seen.maps - noise.background,
            seen.haadf,
            variance,
            weights=settings.weights,
            shape_weights=z_weights(atomic_numbers, settings.gamma, factors),
            valid=seen.valid,
            haadf_valid=seen.haadf_valid,
        )
    law = LinearLaw(fit.weights, fit.offset, fit.blur)
    warnings = _about_weights(seen, fit, law)
    return FoundLaw(law, fit.standard_errors, fit.offset_error, fit.sigma, warnings, weight_spread=fit.spread)


def _about_weights(seen, fit, law):
    if not np.any(law.weights > 0):
        return [
            "The HAADF image does not rise with the maps: no elastic weight was found, and it does not act on them."
        ]
    free = [e for e, determined in zip(seen.elements, fit.determined, strict=True) if not determined]
    if not free:
        return []
    return [
        f"The HAADF image does not determine the elastic weight of {', '.join(free)}: it was filled in from the atomic "
        "numbers."
    ]


def _offset(seen, noise, weights):
    both = seen.valid.all(axis=0) & seen.haadf_valid
    if not both.any():
        raise ValueError("No pixel counts in all maps and in the HAADF image: correct the mask.")
    explained = np.tensordot(weights, seen.maps - noise.background, 1)
    return float(np.mean(seen.haadf - explained, where=both))


def _misfit(seen, noise, law, variance):
    """Standard deviation per pixel that accounts for what the image shows and the law does not explain.

    Contrast that the law lacks (a missing element, diffraction, thickness) is alike in neighbouring pixels, which must
    then not count as so many witnesses. Sums over squares of B x B pixels of a white residual have B^2 times its
    variance; the largest variance per pixel found so, over all B, is the one of which the image is worth no more than
    it is. The noise of the maps is taken out. Larger squares are few, and the largest of several chance values is too
    large rather than too small: an image trusted too little costs less than one trusted too much.
    """
    both = seen.valid.all(axis=0) & seen.haadf_valid
    residual = np.where(both, seen.haadf - law.image(seen.maps - noise.background), 0)
    of_maps = np.where(both, np.tensordot(law.weights**2, variance, 1), 0)
    largest, side = 0.0, 1
    while side == 1 or 4 * side <= min(both.shape):
        number, total, spread = (_square_sums(a, side) for a in (both, residual, of_maps))
        used = number > 0
        if used.any():
            largest = max(largest, float(np.mean((total[used] ** 2 - spread[used]) / number[used])))
        side *= 2
    return float(np.sqrt(largest))


def _square_sums(image, side):
    """Sums over squares of ``side`` pixels laid from each of the four corners, so that no corner is preferred."""
    ny, nx = (size // side for size in image.shape)
    turned = np.stack([image, image[::-1], image[:, ::-1], image[::-1, ::-1]])
    squares = turned[:, : ny * side, : nx * side].reshape(4, ny, side, nx, side)
    return squares.sum(axis=(2, 4), dtype=np.float64)


def _elastic_term(seen, found, scales, lambda_haadf, dtype):
    """The HAADF term in units of ``scales``."""
    ny, nx = seen.haadf.shape
    if lambda_haadf == 0:
        return ElasticTerm(np.zeros(0, dtype), np.zeros((ny, nx), dtype), np.zeros((1, nx), dtype))
    factor = np.sqrt(lambda_haadf) / found.sigma
    target = np.where(seen.haadf_valid, factor * (seen.haadf - found.law.offset), 0)
    counted = np.ones((1, nx)) if seen.haadf_valid.all() else seen.haadf_valid
    weights = factor * found.law.weights * scales
    return ElasticTerm(weights.astype(dtype), target.astype(dtype), np.ascontiguousarray(counted, dtype))


# ---- penalty and start -----------------------------------------------------------------------------


def _penalty(seen, settings, dtype):
    kind = settings.regularization
    if kind is not None and min(seen.haadf.shape) < 2:
        ny, nx = seen.haadf.shape
        raise ValueError(
            f"The maps have {ny} x {nx} pixels and regularization={kind!r} needs at least two along both axes: pass "
            "regularization=None, or fuse by method='published'."
        )
    guide = guide_of(seen.haadf, seen.haadf_valid, kind, settings)
    second_order = settings.second_order or SECOND_ORDER.get(kind, 0.0)
    guide = None if guide is None else np.ascontiguousarray(guide, dtype)
    return CellPenalty(kind, len(seen.maps), settings.joint, second_order, guide)


def guide_of(haadf, valid, kind, settings):
    """What a penalty takes from a HAADF image.

    Parameters
    ----------
    haadf, valid
        (ny, nx) the image, and where it counts.
    kind
        Of the penalty.
    settings
        ``guide_blur`` and ``eta``.

    Returns
    -------
    numpy.ndarray or None
        (4, ny - 1, nx - 1), the ``guide`` of :class:`~.regularizers.CellPenalty`.
    """
    if kind not in ("guided", "directional"):
        return None
    guide = _edges(haadf, valid, settings.guide_blur)
    if kind == "guided":
        return guide
    length = np.sqrt(np.sum(guide**2, axis=0) + GUIDE_EDGE**2)
    return np.sqrt(settings.eta) * guide / length


def _edges(haadf, valid, blur):
    """Differences of the HAADF image, scaled to its range and slightly smoothed, in all cells: (4, ny - 1, nx - 1)."""
    from scipy.ndimage import gaussian_filter

    from hyperspy_fusion.fusion.regularizers import cell_differences

    low, high = np.percentile(haadf[valid], (0.1, 99.9))
    if not high > low:
        low, high = haadf[valid].min(), haadf[valid].max()
    image = np.clip((_filled(haadf, valid) - low) / (high - low), 0, 1)
    return cell_differences(gaussian_filter(image, blur))


def _filled(image, valid):
    """Pixels that do not count take the value of the nearest that does."""
    if valid.all():
        return image
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return image[tuple(nearest)]


def _start(seen, noise, scales, dtype):
    net = np.where(seen.valid, seen.maps - noise.background, _column(seen.means_of(seen.maps - noise.background)))
    return np.ascontiguousarray(np.maximum(net, 0) / _column(scales), dtype)
