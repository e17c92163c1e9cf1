"""Noise of a map: the counts scale, the variance of white noise, and the noise model that fits the data.

A map is (ny, nx). ``valid`` (ny, nx) bool are the pixels to look at; all by default. Values that are not finite are
left out as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Poisson:
    """The published Poisson term ``D(b, x) = sum(x - b log(x + background))``.

    The negative log-likelihood of Poisson counts ``b`` of mean ``x``, up to a constant, with ``background`` in the
    logarithm alone. Its minimum lies at ``x = b - background`` (zero where b is smaller), so that it subtracts the
    background from every pixel. On min-max normalised maps it is no likelihood.
    """

    background: float

    def value(self, x, b):
        """``sum(x - b log(x + background))``."""
        return float(np.sum(x - b * np.log(x + self.background), dtype=np.float64))


# ---- what noise a map has ------------------------------------------------------------------------

# more levels than this are no counts: a float32 fraction has 2**24 of them
_MAX_LEVELS = 1e6
# fewest differences of a median
_FEWEST_DIFFERENCES = 50
# fewest counts of a block that has a variance, and fewest such blocks
_COUNTS_OF_A_BLOCK, _FEWEST_BLOCKS = 8, 32
# noise of neighbours over that of pixels two apart: correlated below the first, that of counts between the others
_SHARED, _LIKE_COUNTS = 0.6, (0.5, 1.5)
# part of the largest noise below which a block has none: rounding of zeros
_SOME_NOISE = 1e-3
# side in pixels of the blocks in which mean and variance are taken, and classes of the mean
_BLOCK, _CLASSES = 8, 8
# of values rounded to float32 after a few operations
_ROUNDING = 4 * float(np.finfo(np.float32).eps)


def counts_scale(map, valid=None):
    """The value of one count: the largest q of which all values are whole multiples.

    For integers it is their greatest common divisor, for floats the step of their lattice within float32 rounding.
    None for a map with negative values, without a positive one, or without such a lattice: more than 1e6 levels, or
    levels far apart although pixels repeat them (fractions of small counts have a common denominator, which is no
    count).
    """
    map, keep = _finite(map, valid)
    values = map[keep]
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


def _lattice(values):
    """Step of the lattice of non-negative ``values`` or None, and how many distinct values there are."""
    levels = np.unique(values.astype(np.float32)).astype(np.float64)
    levels = levels[levels > 0]
    if levels.size == 0:
        return None, 0
    steps = np.diff(levels, prepend=0)
    rounding = _ROUNDING * levels
    steps[steps <= rounding] = 0  # one level, rounded twice
    steps = _multiples(steps, rounding)
    if steps is None:
        return None, levels.size
    multiples = np.cumsum(steps)
    step = levels @ multiples / (multiples @ multiples)
    on_lattice = np.abs(levels - step * multiples) <= 2 * rounding
    plausible = multiples[-1] <= _MAX_LEVELS and _is_dense(steps, step, values)
    return (float(step) if on_lattice.all() and plausible else None), levels.size


def _multiples(steps, rounding):
    """Whole numbers in the ratios of ``steps`` by Euclid's algorithm on all of them at once, or None."""
    rest, tolerance, left = steps, rounding, steps > 0
    for _ in range(64):
        smallest = np.argmin(np.where(left, rest, np.inf))
        divisor, error = rest[smallest], tolerance[smallest]
        if divisor < steps.sum() / _MAX_LEVELS or error > 0.1 * divisor:
            return None
        multiples = np.rint(steps / divisor)
        rest, tolerance = np.abs(steps - multiples * divisor), rounding + multiples * error
        left = rest > tolerance
        if not left.any():
            return multiples
    return None


def _is_dense(steps, step, values):
    """Whether the steps between levels are those of counts: wide ones only where pixels do not repeat a level."""
    wide = steps[steps > 0]
    return _is_whole(step) or np.median(wide) <= 2 or wide.size > np.count_nonzero(values) / 4


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

    Where fewer than 50 squares of 3x3 are valid, it is from second differences along single lines. Where there are none
    of these either, or all are 0, it is the variance of the values, structure and all. It is positive unless the map is
    constant. Correlated noise of neighbouring pixels is not found.
    """
    map, valid = _finite(map, valid)
    for differences, gain in _noise_differences(map, valid):
        if differences.size >= _FEWEST_DIFFERENCES and differences.any():
            return _robust_square(differences) / gain
    return float(np.var(map[valid], dtype=np.float64)) if valid.any() else 0.0


def _noise_differences(map, valid):
    """Differences with little of the structure, and their factor on the variance of noise, the best first."""
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
    differences, whole = _second_differences(np.where(valid, map, 0).astype(np.float64), valid, lag)
    return differences[whole]


def _mixed_differences(map, valid, lag=1):
    """Second differences along both axes of pixels ``lag`` apart, and where all nine pixels are valid."""
    rows, whole = _second_differences(np.where(valid, map, 0).astype(np.float64), valid, lag)
    mixed, whole = _second_differences(rows.T, whole.T, lag)
    return mixed.T, whole.T


def _second_differences(values, valid, lag):
    """Along the first axis, and where all three are valid."""
    whole = valid[: -2 * lag] & valid[lag:-lag] & valid[2 * lag :]
    return values[: -2 * lag] - 2 * values[lag:-lag] + values[2 * lag :], whole


def mean_variance_counts_scale(map, valid=None):
    """The counts scale from the relation of variance and mean, for maps that lie on no lattice.

    Poisson counts times q have a variance of q times their mean. The variance of blocks of 8 x 8 pixels is the mean
    square of second mixed differences, over 36. It is compared with the mean, in eight classes of the mean. The median
    of a class leaves out blocks with edges.

    Returns
    -------
    q : float
        In units of the map; NaN where there is nothing to compare.
    is_poisson_like : bool
        True where four conditions hold. Values are not negative. Means differ by a factor of 3 or more. The variance
        goes with the mean to a power of 0.8 to 1.2. The noise is white, with the same variance from neighbours as from
        pixels two apart, unlike that of smoothed or interpolated maps.
    """
    map, valid = _finite(map, valid)
    mean, near = _block_moments(map, valid)
    if mean.size < 32 or np.min(map[valid]) < 0:
        return float("nan"), False
    # blocks without signal have no noise to compare
    signal = mean > 0.02 * mean.max()
    if np.count_nonzero(signal) < _CLASSES:
        return float("nan"), False
    classes = np.array_split(np.argsort(mean[signal]), _CLASSES)
    mean, variance = (np.array([np.median(values[signal][c]) for c in classes]) for values in (mean, near))
    use = (mean > 0) & (variance > 0)
    if use.sum() < 4:
        return float("nan"), False
    q = float(np.exp(np.median(np.log(variance[use] / mean[use]))))
    power = np.polyfit(np.log(mean[use]), np.log(variance[use]), 1)[0]
    if mean[use].max() < 3 * mean[use].min() or not 0.8 <= power <= 1.2:
        return q, False
    near, far = (np.median(v[v > 0]) for v in (near, _block_moments(map, valid, lag=2)[1]))
    return q, bool(0.75 * far < near < 1.33 * far)


def _block_moments(map, valid, lag=1):
    """Mean and noise variance of all blocks without a masked pixel."""
    differences, whole = _mixed_differences(map, valid, lag)
    means, variances, whole = (_blocks(a) for a in (map[lag:-lag, lag:-lag], differences**2 / 36, whole))
    keep = whole.all(axis=1)
    return means[keep].mean(axis=1, dtype=np.float64), variances[keep].mean(axis=1)


def _blocks(array):
    """(number of blocks, pixels of a block), the remainder at the far edges left out."""
    ny, nx = (size // _BLOCK for size in array.shape)
    squares = array[: ny * _BLOCK, : nx * _BLOCK].reshape(ny, _BLOCK, nx, _BLOCK)
    return squares.swapaxes(1, 2).reshape(ny * nx, _BLOCK**2)


def shares_noise(map, valid=None):
    """Whether the noise of neighbouring pixels is correlated, as after smoothing or interpolation.

    White noise has the same second mixed differences for neighbours as for pixels two apart. Correlated noise has
    smaller ones for neighbours. Structure looks like correlated noise. Blocks are therefore compared each by itself,
    and the quarter with the least structure decides. Values in steps (counts, whatever their unit) with the noise of
    counts between neighbours are not correlated. With less noise, as after a median filter, all blocks decide.
    False where fewer than eight blocks have noise to compare.
    """
    map, valid = _finite(map, valid)
    if min(map.shape) < _BLOCK + 4:
        return False
    near, far, means = _noise_in_squares(map, valid)
    some = far > _SOME_NOISE * far.max(initial=0)
    if np.count_nonzero(some) < _CLASSES:
        return False
    step = counts_scale(map, valid)
    of_counts = _part_of_counts(near, means, step)
    # interpolation with round weights also has steps, of a fraction, and more noise than counts
    are_whole = step is not None and _is_whole(step)
    if _LIKE_COUNTS[0] < of_counts < (np.inf if are_whole else _LIKE_COUNTS[1]):
        return False
    if of_counts < _LIKE_COUNTS[0] and near.mean() < _SHARED * far.mean():
        return True
    return bool(np.quantile(near[some] / far[some], 0.75) < _SHARED)


def _noise_in_squares(map, valid):
    """Noise variances by neighbours and by pixels two apart, and means, of blocks of which half is valid."""
    (near, _), (far, whole) = (_mixed_differences(map, valid, lag) for lag in (1, 2))
    used = _blocks(whole).sum(axis=1)
    keep = 2 * used >= _BLOCK**2
    squares = (near[1:-1, 1:-1] ** 2 / 36, far**2 / 36, map[2:-2, 2:-2])
    return tuple(_blocks(np.where(whole, d, 0)).sum(axis=1)[keep] / used[keep] for d in squares)


def _part_of_counts(variances, means, step):
    """Variances over those of counts of this step, where structure adds least to them; NaN without steps."""
    if step is None:
        return np.nan
    bright = means * _BLOCK**2 >= _COUNTS_OF_A_BLOCK * step
    if np.count_nonzero(bright) < _CLASSES:
        return variances.mean() / (step * means.mean())
    return np.quantile(variances[bright] / (step * means[bright]), 0.25)


# ---- the choice, for maps (n, ny, nx) with NaN in pixels that are not valid ----------------------------


def find_counts_scales(maps):
    """Of each map the counts scale (0 for a map of zeros, NaN for none), and whether it is that of an exact lattice.

    By :func:`counts_scale`, unless the variance refutes it, else by :func:`mean_variance_counts_scale`.
    """
    return [_find_counts_scale(map) for map in maps]


def _find_counts_scale(map):
    exact = counts_scale(map)
    if exact is None and not np.nan_to_num(map).any():
        return 0.0, True
    estimate, is_poisson_like = mean_variance_counts_scale(map)
    if exact is not None and not _is_refuted(exact, estimate, is_poisson_like, map):
        return exact, True
    return (estimate if is_poisson_like else np.nan), False


def _is_refuted(exact, estimate, is_poisson_like, map):
    """Whether the steps of a map are no counts: stretched and rounded, or smoothed and rounded.

    Structure adds to the variance. A larger variance than that of counts refutes them only in proportion to the mean.
    """
    if is_poisson_like and estimate > 2 * exact:
        return True
    mean, variance = _block_moments(*_finite(map, None))
    enough = mean * _BLOCK**2 >= _COUNTS_OF_A_BLOCK * exact
    return bool(enough.sum() >= _FEWEST_BLOCKS and np.median(variance[enough] / mean[enough]) < 0.4 * exact)


def counts_scales(found):
    """(n,) value of one count from :func:`find_counts_scales`, NaN for none; a map of zeros has the mean of others."""
    scales = np.array([q for q, _ in found])
    known = scales[scales > 0]
    return np.where(scales == 0, known.mean() if known.size else np.nan, scales)


def choose_noise(maps, elements, found):
    """The noise model for some maps, and a sentence: what was found, what follows, and how to override it.

    It is ``"shifted_poisson"`` where every map holds counts, by lattice or by variance and mean, else ``"gaussian"``.
    ``found`` is the result of :func:`find_counts_scales`.
    """
    negative = [name for name, map in zip(elements, maps, strict=True) if np.any(map < 0)]
    if negative:
        return "gaussian", f"Negative values in the map of {', '.join(negative)}{_GAUSSIAN}"
    poor = [name for name, (q, _) in zip(elements, found, strict=True) if np.isnan(q)]
    if poor or not any(q for q, _ in found):
        return "gaussian", f"The map of {', '.join(poor or elements)} does not hold whole counts{_GAUSSIAN}"
    means = [np.nanmean(map) / q for map, (q, _) in zip(maps, found, strict=True) if q]
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
