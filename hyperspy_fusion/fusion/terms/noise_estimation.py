"""Data terms: how far fused maps are from the measured ones, with value and gradient, and which one fits the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Poisson:
    """The published Poisson term ``D(b, x) = sum(x - b log(x + background))``.

    The negative log-likelihood of Poisson counts ``b`` of mean ``x``, up to a constant, with ``background`` in the
    logarithm alone. Its minimum lies at ``x = b - background`` (zero where b is smaller): it takes the background
    out of every pixel. On min-max normalised maps it is no likelihood any more, whatever its name.
    """

    background: float

    def value(self, x, b):
        """``sum(x - b log(x + background))``."""
        return float(np.sum(x - b * np.log(x + self.background), dtype=np.float64))

    def gradient(self, x, b):
        """``1 - b / (x + background)``, of the shape of ``x``."""
        return 1 - b / (x + self.background)


@dataclass(frozen=True)
class CountNoise:
    """Poisson counts ``b`` in units of ``counts_scale``, over known background counts, with an optional shift.

    ``D = sum over valid pixels of x' - (b' + shift) log(x' + background + shift)`` with ``x' = x / counts_scale`` and
    ``b' = b / counts_scale``; gradient ``(1 - (b' + shift) / (x' + background + shift)) / counts_scale``.

    With ``shift`` 0 the negative log-likelihood of counts of mean ``x' + background`` (``b`` holds the background).
    A ``shift`` of s counts adds s to the counts and to their mean: the minimum stays at ``x' = b' - background``,
    the curvature no longer runs away where counts are few, and counts from -s up are allowed, so that ``b`` may be
    net of its background. ``0 log 0`` is 0.

    Attributes
    ----------
    counts_scale
        (n,) value of one count, per element; a scalar counts for all.
    background
        Known counts per pixel in units of the counts scale, >= 0: scalar, (n,) or (n, ny, nx).
    shift
        Counts, >= 0: scalar or (n,). The larger, the closer D is to least squares with a variance of ``b' + shift``.
    """

    counts_scale: np.ndarray
    background: np.ndarray = 0.0
    shift: np.ndarray = 0.0

    def value(self, x, b, valid=None):
        """``D`` in counts; infinite where counts are found at a mean of 0."""
        counts, mean = self._counts_and_mean(x, b, valid)
        with np.errstate(divide="ignore", invalid="ignore"):
            # the convention is of the product, not of the logarithm
            likelihood = np.where(counts == 0, 0, counts * np.log(mean))
        terms = x / _per_element(self.counts_scale) - likelihood
        return float(np.sum(_kept(terms, valid), dtype=np.float64))

    def gradient(self, x, b, valid=None):
        """Of the shape of ``x``, per unit of ``x``; 0 in masked pixels."""
        counts, mean = self._counts_and_mean(x, b, valid)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = 1 - np.where(counts == 0, 0, counts / mean)
        return _kept(slope / _per_element(self.counts_scale), valid)

    def _counts_and_mean(self, x, b, valid):
        counts_scale, shift = _per_element(self.counts_scale), _per_element(self.shift)
        counts = b / counts_scale + shift
        # NaN in masked pixels is no reason to refuse
        if np.any(_kept(counts, valid) < 0):
            raise ValueError(
                f"The maps go down to {np.nanmin(b / counts_scale):.4g} counts, below minus the shift of "
                f"{np.max(self.shift):.4g}: counts plus shift must not be negative, use Gaussian noise or a larger "
                "shift."
            )
        return counts, x / counts_scale + _per_element(self.background) + shift


@dataclass(frozen=True)
class GaussianNoise:
    """Gaussian noise of known variance: ``1/2 sum over valid pixels of (x - b)**2 / variance``.

    Attributes
    ----------
    variance
        In squared units of the maps, > 0: scalar, (n,) or (n, ny, nx).
    """

    variance: np.ndarray

    def value(self, x, b, valid=None):
        """``1/2 sum (x - b)**2 / variance``."""
        terms = (x - b) ** 2 / _per_element(self.variance)
        return 0.5 * float(np.sum(_kept(terms, valid), dtype=np.float64))

    def gradient(self, x, b, valid=None):
        """``(x - b) / variance``, of the shape of ``x``; 0 in masked pixels."""
        return _kept((x - b) / _per_element(self.variance), valid)


def _per_element(value):
    """A scalar or (n, ny, nx) as it is, (n,) with two axes more."""
    value = np.asarray(value)
    return value[:, None, None] if value.ndim == 1 else value


def _kept(terms, valid):
    return terms if valid is None else np.where(valid, terms, 0)


# ---- what noise a map has ------------------------------------------------------------------------

# More levels than this are no counts: a float32 fraction has 2**24 of them.
_MAX_LEVELS = 1e6
# Of fewer differences than this no median is taken.
_FEWEST_DIFFERENCES = 50
# Blocks with fewer counts than this say nothing of their variance; and how many others must be there to be asked.
_COUNTS_OF_A_BLOCK, _FEWEST_BLOCKS = 8, 32
# Noise of neighbours below this part of that of pixels two apart is shared; it is that of counts between these parts.
_SHARED, _LIKE_COUNTS = 0.6, (0.5, 1.5)
# Squares with less than this part of the usual noise have none: rounding of zeros.
_SOME_NOISE = 1e-3
# Classes of the mean in which it is compared with the variance.
_CLASSES = 8
# Values are taken to be rounded to float32, and to have gone through a few operations.
_ROUNDING = 4 * float(np.finfo(np.float32).eps)


def counts_scale(map, valid=None):
    """The value of one count: the largest q of which all values are whole multiples.

    Parameters
    ----------
    map
        (ny, nx), integer or float; values that are not finite are left out.
    valid
        (ny, nx) bool, pixels to look at; all by default.

    Returns
    -------
    float or None
        For integers their greatest common divisor, for floats the step of their lattice within float32 rounding.
        None for a map with negative values, without a positive one, or without such a lattice: more than 1e6
        levels, or levels far apart although pixels repeat them (fractions of small counts have a common
        denominator, which is no count).
    """
    values = _values(map, valid)
    if values.size == 0 or values.min() < 0 or values.max() == 0:
        return None
    if values.dtype.kind in "iub":
        return float(np.gcd.reduce(np.unique(values).astype(np.int64)))
    # most continuous maps show in a sample; sorting all of a large one costs a second
    for part in (values[:: max(1, values.size // 4096)], values):
        step, levels = _lattice(part)
        if step is None and levels > 1:
            return None
    return step


def _values(map, valid):
    map, keep = _finite(map, valid)
    return map[keep]


def _lattice(values):
    """Step of the lattice of non-negative ``values`` or None, and how many distinct values there are."""
    levels = np.unique(values.astype(np.float32)).astype(np.float64)
    levels = levels[levels > 0]
    if levels.size == 0:
        return None, 0
    gaps = np.diff(levels, prepend=0)
    rounding = _ROUNDING * levels
    gaps[gaps <= rounding] = 0  # one level, rounded twice
    steps = _multiples(gaps, rounding)
    if steps is None:
        return None, levels.size
    multiples = np.cumsum(steps)
    step = levels @ multiples / (multiples @ multiples)
    on_lattice = np.abs(levels - step * multiples) <= 2 * rounding
    plausible = multiples[-1] <= _MAX_LEVELS and _dense(steps, step, values)
    return (float(step) if on_lattice.all() and plausible else None), levels.size


def _multiples(gaps, rounding):
    """Whole numbers in the ratios of ``gaps`` by Euclid's algorithm on all of them at once, or None."""
    rest, tolerance, left = gaps, rounding, gaps > 0
    for _ in range(64):
        smallest = np.argmin(np.where(left, rest, np.inf))
        divisor, error = rest[smallest], tolerance[smallest]
        if divisor < gaps.sum() / _MAX_LEVELS or error > 0.1 * divisor:
            return None
        steps = np.rint(gaps / divisor)
        rest, tolerance = np.abs(gaps - steps * divisor), rounding + steps * error
        left = rest > tolerance
        if not left.any():
            return steps
    return None


def _dense(steps, step, values):
    """Whether counts would leave such gaps between levels: wide ones only where pixels do not repeat a level."""
    gaps = steps[steps > 0]
    return _is_whole(step) or np.median(gaps) <= 2 or gaps.size > np.count_nonzero(values) / 4


def _is_whole(step):
    return abs(step - np.rint(step)) < 1e-6 * step


def _finite(map, valid):
    """The map as an array, and which of its pixels are ``valid`` (all for None) and finite."""
    map = np.asarray(map)
    return map, np.isfinite(map) if valid is None else np.isfinite(map) & valid


def estimate_variance(map, valid=None):
    """Variance of the white noise of a map, whatever its structure.

    From mixed second differences ``d`` (Immerkaer, Comput. Vis. Image Underst. 64, 300, 1996): the 3x3 mask
    ``(1, -2, 1) x (1, -2, 1)`` takes out all that is linear along either axis and multiplies the variance by 36.
    ``(1.4826 median |d|)**2 / 36``, to which edges are outliers; where most ``d`` are 0 (maps of mostly zeros),
    ``pi/2 mean(|d|)**2 / 36``.

    Parameters
    ----------
    map
        (ny, nx); values that are not finite are left out.
    valid
        (ny, nx) bool, pixels to look at; all by default.

    Returns
    -------
    float
        In squared units of the map. Where fewer than 50 squares of 3x3 are valid, from second differences along single
        lines; where there are none of these either, or all are 0, the variance of the values, structure and all.
        Positive unless the map is constant. Noise that neighbouring pixels share is not seen.
    """
    map, valid = _finite(map, valid)
    for differences, gain in _noise_differences(map, valid):
        if differences.size >= _FEWEST_DIFFERENCES and differences.any():
            return _robust_square(differences) / gain
    return float(np.var(map[valid], dtype=np.float64)) if valid.any() else 0.0


def _noise_differences(map, valid):
    """Differences that structure hardly shows in, and what they multiply the variance by, the best first."""
    mixed, whole = _mixed_differences(map, valid)
    yield np.abs(mixed[whole]), 36
    for lag in (1, 2):  # of every other pixel where no neighbours are left
        lines = [_line_differences(*pair, lag) for pair in ((map, valid), (map.T, valid.T))]
        yield np.abs(np.concatenate(lines)), 6


def _robust_square(differences):
    # a median below a tenth of the mean is of pixels without any signal, not of noise
    median, mean = 1.4826 * np.median(differences), np.sqrt(np.pi / 2) * np.mean(differences)
    return float((median if median > 0.1 * mean else mean) ** 2)


def _line_differences(map, valid, lag):
    """Second differences along the first axis, of pixels that are all valid."""
    filled = np.where(valid, map, 0).astype(np.float64)
    seen = valid[: -2 * lag] & valid[lag:-lag] & valid[2 * lag :]
    return (filled[: -2 * lag] - 2 * filled[lag:-lag] + filled[2 * lag :])[seen]


def _mixed_differences(map, valid, lag=1):
    """Second differences along both axes of pixels ``lag`` apart, and where all nine pixels are valid."""
    filled = np.where(valid, map, 0).astype(np.float64)
    rows = filled[: -2 * lag] - 2 * filled[lag:-lag] + filled[2 * lag :]
    seen = valid[: -2 * lag] & valid[lag:-lag] & valid[2 * lag :]
    mixed = rows[:, : -2 * lag] - 2 * rows[:, lag:-lag] + rows[:, 2 * lag :]
    return mixed, seen[:, : -2 * lag] & seen[:, lag:-lag] & seen[:, 2 * lag :]


def mean_variance_quantum(map, valid=None, block=8):
    """The value of one count by the relation of variance and mean, for maps that lie on no lattice.

    Poisson counts times q have a variance of q times their mean. The variance within squares of ``block`` pixels
    (mean square of second mixed differences, over 36) is compared with their mean, in eight classes of the mean,
    of which the median keeps out squares with edges.

    Parameters
    ----------
    map
        (ny, nx), continuous.
    valid
        (ny, nx) bool, pixels to look at; all by default.
    block
        Edge of a square in pixels.

    Returns
    -------
    q : float
        In units of the map; NaN where there is nothing to compare.
    is_poisson_like : bool
        True only on evidence: no negative values, means that differ by a factor of 3 or more, a variance that goes
        with the mean to a power within 0.8 to 1.2, and noise that is white (the same from neighbours as from
        pixels two apart), as it is not in a map that was smoothed or interpolated.
    """
    map, valid = _finite(map, valid)
    mean, variance = _block_moments(map, valid, block, lag=1)
    if mean.size < 32 or np.min(map[valid]) < 0:
        return float("nan"), False
    # squares without signal have no noise to compare
    signal = mean > 0.02 * mean.max()
    if np.count_nonzero(signal) < _CLASSES:
        return float("nan"), False
    mean, variance = _classes(mean[signal], variance[signal])
    use = (mean > 0) & (variance > 0)
    if use.sum() < 4:
        return float("nan"), False
    q = float(np.exp(np.median(np.log(variance[use] / mean[use]))))
    power = np.polyfit(np.log(mean[use]), np.log(variance[use]), 1)[0]
    contrast = mean[use].max() / mean[use].min()
    return q, bool(contrast >= 3 and 0.8 <= power <= 1.2 and _is_white(map, valid, block))


def _block_moments(map, valid, block, lag):
    """Mean and noise variance of all squares without a masked pixel."""
    differences, whole = _mixed_differences(map, valid, lag)
    means = _blocks(map[lag:-lag, lag:-lag], block)
    variances, whole = _blocks(differences**2 / 36, block), _blocks(whole, block)
    keep = whole.all(axis=1)
    return means[keep].mean(axis=1, dtype=np.float64), variances[keep].mean(axis=1)


def _blocks(array, block):
    """(number of squares, block**2), the remainder at the far edges left out."""
    ny, nx = (size // block for size in array.shape)
    squares = array[: ny * block, : nx * block].reshape(ny, block, nx, block)
    return squares.swapaxes(1, 2).reshape(ny * nx, block * block)


def _classes(mean, variance, number=_CLASSES):
    """Medians of both in classes of the mean with as many squares each."""
    order = np.array_split(np.argsort(mean), number)
    return tuple(np.array([np.median(values[part]) for part in order]) for values in (mean, variance))


def _is_white(map, valid, block):
    """Whether the variance from neighbours is that from pixels two apart, in squares that vary."""
    variances = (_block_moments(map, valid, block, lag)[1] for lag in (1, 2))
    near, far = (np.median(variance[variance > 0]) for variance in variances)
    return 0.75 * far < near < 1.33 * far


def shares_noise(map, valid=None, block=8):
    """Whether neighbouring pixels share their noise, as after smoothing or interpolation.

    Second mixed differences see the same white noise in neighbours as in pixels two apart; of shared noise they see
    less in neighbours. Structure looks like shared noise, so that squares of ``block`` pixels are compared each by
    itself, and the quarter with the least of it decides. Values in steps (counts, whatever their unit) that have the
    noise of counts in neighbours share none, whatever their structure; where they have less noise than that, as after
    a median, all squares decide.

    Parameters
    ----------
    map
        (ny, nx); values that are not finite are left out.
    valid
        (ny, nx) bool, pixels to look at; all by default.
    block
        Edge of a square in pixels.

    Returns
    -------
    bool
        False where fewer than eight squares have noise to compare.
    """
    map, valid = _finite(map, valid)
    if min(map.shape) < block + 4:
        return False
    near, far, means = _noise_in_squares(map, valid, block)
    some = far > _SOME_NOISE * far.max(initial=0)
    if np.count_nonzero(some) < _CLASSES:
        return False
    step = counts_scale(map, valid)
    of_counts = _part_of_counts(near, means, step, block)
    # interpolation with round weights has steps as well, of a fraction: more noise than that of counts is theirs
    are_whole = step is not None and _is_whole(step)
    if _LIKE_COUNTS[0] < of_counts < (np.inf if are_whole else _LIKE_COUNTS[1]):
        return False
    if of_counts < _LIKE_COUNTS[0] and near.mean() < _SHARED * far.mean():
        return True
    return bool(np.quantile(near[some] / far[some], 0.75) < _SHARED)


def _noise_in_squares(map, valid, block):
    """Variances of the noise by neighbours and by pixels two apart, and means, in squares of which half is valid."""
    near, far = (_mixed_differences(map, valid, lag) for lag in (1, 2))
    seen = far[1]
    used = _blocks(seen, block).sum(axis=1)
    inner = map[2:-2, 2:-2]
    squares = (near[0][1:-1, 1:-1] ** 2 / 36, far[0] ** 2 / 36, inner)
    keep = 2 * used >= block**2
    return tuple(_blocks(np.where(seen, d, 0), block).sum(axis=1)[keep] / used[keep] for d in squares)


def _part_of_counts(variances, means, step, block):
    """Variances in units of those of counts of this step, where structure adds least to them; NaN without steps."""
    if step is None:
        return np.nan
    seen = means * block**2 >= _COUNTS_OF_A_BLOCK * step
    if np.count_nonzero(seen) < _CLASSES:
        return variances.mean() / (step * means.mean())
    return np.quantile(variances[seen] / (step * means[seen]), 0.25)


# ---- the choice ----------------------------------------------------------------------------------


def counts_scales(maps, valid=None, found=None):
    """Value of one count of every map, (n,) float64, NaN for a map that holds no counts.

    By :func:`counts scale`, if the variance bears it out, else by :func:`mean_variance_quantum`. A map of zeros takes the
    mean of the others. ``found`` is what :func:`find_counts_scales` has found of these maps already.
    """
    found = np.array([q for q, _ in (find_counts_scales(maps, valid) if found is None else found)])
    known = found[found > 0]
    return np.where(found == 0, known.mean() if known.size else np.nan, found)


def find_counts_scales(maps, valid=None):
    """Per map its counts scale (0 for a map of zeros, NaN for none) and whether it is that of an exact lattice."""
    return [_find_quantum(map, keep) for map, keep in _pairs(maps, valid)]


def _find_quantum(map, valid):
    exact = counts_scale(map, valid)
    if exact is None and not np.any(_values(map, valid)):
        return 0.0, True
    estimate, is_poisson_like = mean_variance_quantum(map, valid)
    if exact is not None and not _is_refuted(exact, estimate, is_poisson_like, map, valid):
        return exact, True
    return (estimate if is_poisson_like else np.nan), False


def _is_refuted(exact, estimate, is_poisson_like, map, valid):
    """Whether the steps of a map are no counts: stretched and rounded, or smoothed and rounded.

    Structure adds to the variance, so that more than that of counts refutes them only where it goes with the mean.
    """
    if is_poisson_like and estimate > 2 * exact:
        return True
    keep = np.isfinite(map) if valid is None else np.isfinite(map) & valid
    mean, variance = _block_moments(np.asarray(map), keep, block=8, lag=1)
    told = mean * 64 >= _COUNTS_OF_A_BLOCK * exact
    return bool(told.sum() >= _FEWEST_BLOCKS and np.median(variance[told] / mean[told]) < 0.4 * exact)


def _pairs(maps, valid):
    masks = [None] * len(maps) if valid is None else np.broadcast_to(valid, np.shape(maps))
    return list(zip(maps, masks, strict=True))


def choose_noise(maps, valid=None, elements=None, found=None):
    """The noise model for some maps, and a sentence that says why.

    Parameters
    ----------
    maps
        (n, ny, nx) in the units of the data.
    valid
        (ny, nx) or (n, ny, nx) bool, pixels to look at; all by default.
    elements
        n names for the sentence; numbers by default.
    found
        What :func:`find_counts_scales` has found of these maps already.

    Returns
    -------
    kind : str
        ``"shifted_poisson"`` where every map holds counts, by lattice or by variance and mean (:func:`counts scales`),
        else ``"gaussian"``.
    sentence : str
        What was found, what follows, and how to override it.
    """
    names = [str(name) for name in (elements or range(len(maps)))]
    values = [_values(map, keep) for map, keep in _pairs(maps, valid)]
    negative = [name for name, v in zip(names, values, strict=True) if np.any(v < 0)]
    if negative:
        return "gaussian", f"Negative values in the map of {', '.join(negative)}{_GAUSSIAN}"
    found = find_counts_scales(maps, valid) if found is None else found
    poor = [name for name, (q, _) in zip(names, found, strict=True) if np.isnan(q)]
    if poor or not any(q for q, _ in found):
        return "gaussian", f"The map of {', '.join(poor or names)} does not hold whole counts{_GAUSSIAN}"
    means = [v.mean() / q for v, (q, _) in zip(values, found, strict=True) if q]
    return "shifted_poisson", _counts_because(found, means)


_GAUSSIAN = ": Gaussian noise; noise='shifted_poisson' overrides."
_COUNTS = ": shifted Poisson noise; noise='gaussian' overrides."


def _counts_because(found, means):
    exact = all(on_lattice for _, on_lattice in found)
    what = "hold whole counts" if exact else "vary as counts do, with a variance proportional to the mean"
    steps = [q for q, _ in found if q]
    unit = "" if np.allclose(steps, 1) else f", one count being {_span(steps)}"
    return f"The maps {what} ({_span(means)} per pixel on average{unit}){_COUNTS}"


def _span(values):
    low, high = (f"{value:.2g}" for value in (min(values), max(values)))
    return high if low == high else f"{low} to {high}"
