"""The drift of the frames of one scan, found by their images, and their sum on whole pixels.

The frames of the first and of the second half are registered apart from each other, each frame to the mean of the
others by its cross-correlation. What both means have in common is structure, and the rest is noise: their Fourier ring
correlation (Saxton & Baumeister, J. Microsc. 127, 127, 1982; Rosenthal & Henderson, J. Mol. Biol. 333, 721, 2003) is
the Wiener filter with which all frames are then registered together. So noise is not aligned with noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.fusion.registration.shift import LARGEST_ERROR

# reasons to leave a frame out
EMPTY, INCOMPLETE, COUNTS, UNLIKE, APART = "empty", "incomplete", "counts", "unlike", "apart"
# part of the field over which slow variations of intensity, which belong to the scan and do not drift, are removed
_BACKGROUND = 1 / 4
# part of the field, at each edge, over which frames fade to zero
_FADE = 0.08
# pixels along an axis to register frames
_FEWEST_PIXELS = 8
# radians per pixel above which a frame is taken as noise, and part of the highest peak at which another position is as
# good, as on a lattice
_NOISE_FREQUENCY, _ALIKE = 0.8 * np.pi, 0.8
# standard deviations of noise above which a coefficient has structure
_EXCESS = 4.0
# pixels around the present position that are searched in a round, and their distance
_NEAR, _GRID = 2.0, 0.25
_ROUNDS, _TOLERANCE = 12, 0.01
# standard deviations of noise by which the correlation of an image must exceed 0, and part of that of the others
_EVIDENCE, _LEAST_PART = 3.0, 0.6
# the same for the two halves, of which all positions are compared; and for a ring
_EVIDENCE_OF_HALVES, _RING_NOISE = 8.0, 3.0
# robust standard deviations by which a frame may differ from the others, and the same as a part
_OUTLYING, _LEAST_DIFFERENCE = 6.0, 0.3
# expected counts in empty rows above which they are missing, and the same as a part of the frame
_MISSING_COUNTS, _MISSING_PART = 20.0, 0.01


@dataclass(frozen=True)
class Drift:
    """Where the structure of each frame lies, seen from the first frame that is used.

    Attributes
    ----------
    shifts
        (t, 2) along y and x in pixels, NaN for frames that are not used.
    errors
        (t, 2) standard errors.
    reasons
        ``{frame: reason}`` of those that are not used.
    undetermined
        (k, 2) unit vectors (y, x) along which there is no structure, and the drift is taken as 0.
    is_found
        Whether the frames are alike enough for a drift.
    """

    shifts: np.ndarray
    errors: np.ndarray
    reasons: dict
    undetermined: np.ndarray
    is_found: bool = True

    @property
    def used(self):
        """Numbers of the frames that are used."""
        return np.flatnonzero(np.isfinite(self.shifts[:, 0]))


def find_drift(images: np.ndarray, reasons: dict | None = None) -> Drift:
    """Drift of the images (t, ny, nx) of frames, NaN where there is none.

    Whole pixels are found first, from frame to frame. Of positions that are alike, as on a lattice, that nearest to
    the frames before is taken: a drift is a smooth curve. Frames that are not like the others are left out, and those
    whose position costs more of the common field than they add. `reasons` has frames that are left out before.
    """
    reasons = dict(reasons or {})
    kept = np.array([t for t in range(len(images)) if t not in reasons])
    if len(kept) == 1:
        return _drift(len(images), kept, np.zeros((1, 2)), np.zeros((1, 2)), reasons)
    if min(images.shape[1:]) < _FEWEST_PIXELS:
        return _drift(len(images), kept, np.zeros((len(kept), 2)), np.inf, reasons, is_found=False)
    while True:
        spectra = _Spectra(images, kept)
        structure, shifts = _structure(spectra)
        if structure is None:
            return _drift(len(images), kept, shifts, np.inf, reasons, is_found=False)
        shifts, total = _refined(spectra, range(len(kept)), shifts, structure)
        unlike = _unlike([_match(spectra, total, k, shift, structure) for k, shift in enumerate(shifts)])
        near = _worth_their_field(shifts, images.shape[1:])
        reasons |= dict.fromkeys(kept[~near].tolist(), APART) | dict.fromkeys(kept[unlike].tolist(), UNLIKE)
        if len(kept) - np.count_nonzero(unlike) < 2:
            return _drift(len(images), kept, shifts, np.inf, reasons, is_found=False)
        kept, shifts = kept[near & ~unlike], shifts[near & ~unlike]
        if not unlike.any():
            break
    # the fading edges stand still and bias a drift to zero: once more, with edges that move with the structure
    whole = np.rint(shifts - shifts[0]).astype(int)
    spectra = _Spectra(images, kept, whole)
    shifts, total = _refined(spectra, range(len(kept)), shifts - whole, structure)
    noise = np.array([_match(spectra, total, k, shift, structure).noise for k, shift in enumerate(shifts)])
    return _drift(len(images), kept, whole + shifts, structure.errors(noise), reasons, structure.undetermined)


def _drift(n, kept, shifts, errors, reasons, undetermined=(), is_found=True):
    all_shifts, all_errors = np.full((2, n, 2), np.nan)
    all_shifts[kept], all_errors[kept] = shifts - shifts[:1], errors
    return Drift(all_shifts, all_errors, dict(sorted(reasons.items())), np.reshape(undetermined, (-1, 2)), is_found)


# ---- frames that are left out --------------------------------------------------------------------


def spoilt_frames(images: np.ndarray) -> dict:
    """``{frame: reason}`` of images (t, ny, nx) without counts, with missing rows, or a total far off the others."""
    sizes = np.nan_to_num(np.abs(np.asarray(images, dtype=np.float32)), posinf=0)
    rows = sizes.sum(axis=2, dtype=float)
    totals = rows.sum(axis=1)
    # few counts leave rows empty, about as many in each frame; one count is the smallest value
    count = np.min(sizes, where=sizes > 0, initial=np.inf)
    is_empty = (totals == 0) & (totals.max() > _MISSING_COUNTS * count)
    reasons, others = dict.fromkeys(np.flatnonzero(is_empty).tolist(), EMPTY), rows[~is_empty]
    typical = np.median(others, axis=0) if len(others) > 2 else others.max(axis=0)
    empty = np.sort(np.count_nonzero(others == 0, axis=1))[(len(others) - 1) // 2]
    part = max(_MISSING_PART, (empty + _OUTLYING * np.sqrt(empty)) / rows.shape[1])
    least = max(part * typical.sum(), _MISSING_COUNTS * count)
    for t in np.flatnonzero(~is_empty).tolist():
        if typical[rows[t] == 0].sum() > least:
            reasons[t] = INCOMPLETE
    complete = [t for t in range(len(rows)) if t not in reasons]
    if len(complete) > 2:
        middle = np.median(totals[complete])
        apart = np.abs(totals - middle)
        noise = _OUTLYING * np.sqrt(count * middle) if middle else 0.0
        limit = max(_OUTLYING * 1.4826 * np.median(apart[complete]), _LEAST_DIFFERENCE * middle, noise)
        reasons |= {t: COUNTS for t in complete if apart[t] > limit}
    return reasons


def _unlike(matches):
    """Whether each frame has no correlation with the others, or far less than they have."""
    values = np.array([match.correlation for match in matches])
    middle = np.median(values)
    is_low = values < middle - _OUTLYING * 1.4826 * np.median(np.abs(values - middle))
    return (is_low & (values < _LEAST_PART * middle)) | [match.evidence < _EVIDENCE for match in matches]


def _worth_their_field(shifts, shape):
    """Which frames to sum, so that their number times their common field is largest, leaving out the farthest ones."""
    order, places = [], list(range(len(shifts)))
    while places:
        of = shifts[places]
        order.append(places.pop(np.abs(of - np.median(of, axis=0)).max(axis=1).argmax()))
    worth = []
    for n in range(len(order)):
        field = np.maximum(shape - np.ptp(shifts[order[n:]], axis=0), 0)
        worth.append((len(order) - n) * field.prod())
    keep = np.ones(len(shifts), dtype=bool)
    keep[order[: int(np.argmax(worth))]] = False
    return keep


# ---- registration --------------------------------------------------------------------------------


class _Spectra:
    """Fourier transforms of frames whose slow variations are removed and whose edges fade, (n, ny, nx // 2 + 1).

    With `offsets`, (n, 2) whole pixels, frames are moved back by them, and cut to the field that they share.
    """

    def __init__(self, images, kept, offsets=None):
        from scipy import fft

        self.shape = images.shape[1:]
        self.y, self.x = (2 * np.pi * of(n) for of, n in zip((fft.fftfreq, fft.rfftfreq), self.shape, strict=True))
        offsets = np.zeros((len(kept), 2), dtype=int) if offsets is None else offsets
        window = np.multiply.outer(*map(_fading, self.shape, -offsets.min(axis=0), -offsets.max(axis=0)))
        self.inside = window > 0.99
        self.inside_part = np.sum(window**2) / np.count_nonzero(self.inside)
        faded = (
            np.float32(window * np.roll(_without_background(images[t]), tuple(-by), axis=(0, 1)))
            for t, by in zip(kept, offsets, strict=True)
        )
        self.frames = np.stack([np.asarray(fft.rfft2(image)) for image in faded])
        # coefficients of real images come in pairs, of which one is stored
        self.number = np.full((self.y.size, self.x.size), 2, dtype=np.float32)
        self.number[:, 0] = 1
        if self.shape[1] % 2 == 0:
            self.number[:, -1] = 1
        frequency = np.hypot(self.y[:, None], self.x)
        self.ring = np.rint(frequency / (2 * np.pi) * max(self.shape)).astype(int)
        excess, noise = self._excess_power(frequency)
        self.search = (self.number * excess / np.maximum(excess + noise, 1e-30)).astype(np.float32)

    def _excess_power(self, frequency):
        """Power of a frame above that of its noise, which is white, and of the noise. Shifts do not change it."""
        from scipy.ndimage import uniform_filter

        power = np.mean(np.abs(self.frames) ** 2, axis=0)
        noise = np.median(power[frequency > _NOISE_FREQUENCY])
        modes: Any = ("wrap", "nearest")
        excess = uniform_filter(power, 3, mode=modes) - noise
        # nine neighbours in all frames are averaged
        excess[excess < _EXCESS * noise / (3 * np.sqrt(len(self.frames)))] = 0
        return excess, noise

    def moved(self, k, shift):
        """Frame k, moved back by its shift."""
        return self.frames[k] * self.phase(shift)

    def phase(self, shift):
        """The factor that moves a spectrum back by a shift."""
        return np.multiply.outer(*self.waves(shift, 0.0))

    def waves(self, shift, steps):
        """Factors along y and x that move back by a shift and by each of `steps` more."""
        pairs = zip((self.y, self.x), shift, strict=True)
        return [np.exp(1j * np.multiply.outer(at + steps, k)).astype(np.complex64) for k, at in pairs]

    def in_rings(self, values):
        """The sum over all coefficients of about the same frequency, in the place of each."""
        return np.bincount(self.ring.ravel(), (self.number * values).ravel())[self.ring]

    def gradients(self, weights):
        """(2, 2) sums of weights times squares and products of the frequencies along y and x."""
        waves = self.y[:, None], self.x
        return np.array([[np.sum(weights * a * b) for b in waves] for a in waves])

    def information(self, mean, other):
        """(2, 2) sums of products of the gradients of two images, given their spectra, away from the fading edges.

        They are the curvature of the correlation of the two. The edges do not move with the structure.
        """
        from scipy.fft import irfft2

        waves = self.y[:, None], self.x
        gradients = [
            [np.asarray(irfft2(1j * k * of, s=self.shape))[self.inside] for k in waves] for of in (mean, other)
        ]
        products = np.array([[np.sum(a * b) for b in gradients[1]] for a in gradients[0]])
        # sums over coefficients are those over pixels times their number; the edges have their part
        return (products + products.T) / 2 * np.prod(self.shape) * self.inside_part

    def nearest_peak(self, product, before):
        """Whole pixels by which two spectra, given their product, are shifted: the peak nearest to `before`."""
        from scipy.fft import irfft2
        from scipy.ndimage import maximum_filter

        half, before = np.array(self.shape) // 2, np.rint(before).astype(int)
        values = np.roll(np.asarray(irfft2(product, s=self.shape)), tuple(half - before), axis=(0, 1))
        is_peak = (values == maximum_filter(values, 5)) & (values >= _ALIKE * values.max())
        return before + min(np.argwhere(is_peak) - half, key=lambda place: np.hypot(*place))


def _fading(n, first, beyond):
    """A window of n pixels from the pixel ``first`` to ``n + beyond``, and 0 elsewhere."""
    from scipy.signal.windows import tukey

    window = np.zeros(n)
    window[first : n + beyond] = tukey(n + beyond - first, 2 * _FADE)
    return window


def _without_background(image):
    """An image less a paraboloid, then less its means over a part of the field; 0 where it is missing."""
    from scipy.ndimage import uniform_filter

    valid = np.isfinite(image)
    y, x = (np.linspace(-1, 1, n) for n in image.shape)
    one = np.ones(image.shape)
    terms = np.stack([one, one * y[:, None], one * x, one * y[:, None] ** 2, one * x**2, np.outer(y, x)])
    known = terms[:, valid]
    rest = np.where(valid, image, 0) - np.tensordot(
        np.linalg.pinv(known @ known.T, hermitian=True) @ known @ image[valid], terms, 1
    )
    size: Any = [max(round(_BACKGROUND * n), 3) for n in image.shape]
    weight, smooth = valid.astype(np.float32), np.where(valid, rest, 0).astype(np.float32)
    for _ in range(2):  # two boxes are a triangle, whose spectrum has no large side lobes
        weight, smooth = (uniform_filter(of, size, mode="nearest") for of in (weight, smooth))
    return np.where(valid, rest - smooth / np.maximum(weight, 1e-6), 0)


@dataclass(frozen=True)
class _Structure:
    """What the means of both halves of the frames have in common.

    Attributes
    ----------
    weights
        Wiener filter of the mean of all frames, times the number that each coefficient stands for.
    information
        (2, 2) curvature of the correlation of a frame with the mean, without noise.
    free
        (2, 2) projection of shifts on the directions that are determined.
    undetermined
        (k, 2) unit vectors (y, x) of the others.
    """

    weights: np.ndarray
    information: np.ndarray
    free: np.ndarray
    undetermined: np.ndarray

    @classmethod
    def of(cls, spectra, mean, other):
        """From the means of two halves that have no frame in common, on the same place."""
        cross = (mean.conj() * other).real
        powers = [spectra.in_rings(np.abs(one) ** 2) for one in (mean, other)]
        norm = np.sqrt(powers[0] * powers[1])
        correlation = np.divide(spectra.in_rings(cross), norm, out=np.zeros_like(norm), where=norm > 0)
        is_noise = correlation < _RING_NOISE * np.sqrt(2 / spectra.in_rings(np.ones_like(cross)))
        # the correlation of halves in terms of that of a mean of all with the truth, squared
        weights = spectra.number * np.where(is_noise, 0, 2 * correlation / (1 + correlation))
        information = spectra.information(mean, weights / spectra.number * other)
        # of a half, from the difference of both; a frame has the noise of as many as are in it
        of_half = np.abs(mean - other) ** 2 / 2
        filtered = weights**2 / spectra.number * np.abs((mean + other) / 2) ** 2
        noise = spectra.gradients(filtered * of_half) * len(spectra.frames) / 2
        values, directions = np.linalg.eigh(information)
        variances = np.array([d @ noise @ d for d in directions.T])
        is_free = (values > 0) & (variances < (LARGEST_ERROR * values) ** 2)
        free = directions[:, is_free]
        return cls(weights.astype(np.float32), information, free @ free.T, directions.T[~is_free])

    def errors(self, noise):
        """(n, 2) standard errors from the (n, 2, 2) covariances of the gradients; infinite where undetermined."""
        inverse = np.linalg.pinv(self.free @ self.information @ self.free, hermitian=True)
        variances = np.diagonal(inverse @ noise @ inverse, axis1=1, axis2=2)
        return np.where(np.abs(self.undetermined).max(axis=0, initial=0) > 0.1, np.inf, np.sqrt(variances))


def _structure(spectra):
    """`_Structure` of the frames, None where the halves are not alike, and the first shifts (n, 2) of all frames."""
    n = len(spectra.frames)
    # both halves begin in the middle, where they are neighbours
    halves = [range(n // 2 - 1, -1, -1), range(n // 2, n)]
    shifts, means = np.zeros((n, 2)), []
    for half in halves:
        shifts[half], total = _refined(spectra, half, _tracked(spectra, half), None)
        means.append(total / len(half))
    mean, other = means
    product = spectra.search * mean.conj() * other
    between = _peak(spectra, product, spectra.nearest_peak(product, np.zeros(2)))
    shifts[halves[1]] += between
    other = other * spectra.phase(between)
    if _evidence(spectra, spectra.search, mean, other) < _EVIDENCE_OF_HALVES:
        return None, shifts
    structure = _Structure.of(spectra, mean, other)
    return (structure if structure.free.any() else None), shifts


def _tracked(spectra, order):
    """Shifts (n, 2) in whole pixels of the frames in this order, each by the mean of those before."""
    shifts = np.zeros((len(order), 2))
    total = spectra.frames[order[0]].copy()
    for k, frame in enumerate(order[1:], 1):
        shifts[k] = spectra.nearest_peak(spectra.search * total.conj() * spectra.frames[frame], _expected(shifts[:k]))
        total += spectra.moved(frame, shifts[k])
    return shifts


def _expected(shifts):
    """The next position of a curve, by a line through the last ones on which a few outliers have no influence."""
    last = shifts[-5:]
    step = np.median(np.diff(last, axis=0), axis=0) if len(last) > 4 else np.zeros(2)
    return np.median(last[::-1] + np.arange(1, len(last) + 1)[:, None] * step, axis=0)


def _refined(spectra, numbers, shifts, structure):
    """Shifts (n, 2) to a part of a pixel of the frames with these numbers, and the sum of all, moved back.

    In each round every frame is registered to the mean of the others. Without a `_Structure`, the filter is that
    of the search.
    """
    weights, free = (spectra.search, np.eye(2)) if structure is None else (structure.weights, structure.free)
    shifts = shifts @ free
    total = np.sum([spectra.moved(k, shift) for k, shift in zip(numbers, shifts, strict=True)], axis=0)
    for _ in range(_ROUNDS if len(shifts) > 1 else 0):
        before = shifts.copy()
        for i, k in enumerate(numbers):
            total -= spectra.moved(k, shifts[i])
            shifts[i] = free @ _peak(spectra, weights * total.conj() * spectra.frames[k], shifts[i])
            total += spectra.moved(k, shifts[i])
        moved = shifts - before
        if np.abs(moved - moved.mean(axis=0)).max() < _TOLERANCE:
            break
    return shifts, total


def _peak(spectra, product, start):
    """The shift of the highest correlation near `start`: on a grid, then by Newton's method."""
    steps = np.arange(-_NEAR, _NEAR + _GRID / 2, _GRID)
    y, x = spectra.waves(start, steps)
    values = (y @ product @ x.T).real
    shift = start + steps[list(np.unravel_index(values.argmax(), values.shape))]
    for _ in range(2):
        gradient, curvature = _derivatives(spectra, product, shift)
        if not np.linalg.eigvalsh(curvature).max() < 0:
            break
        shift = shift - np.clip(np.linalg.pinv(curvature, hermitian=True) @ gradient, -_GRID, _GRID)
    return shift


def _derivatives(spectra, product, shift):
    """Gradient (2,) of a correlation at a shift, and its second derivatives (2, 2)."""
    orders = np.arange(3)[:, None]
    y, x = (
        (1j * k) ** orders * wave for k, wave in zip((spectra.y, spectra.x), spectra.waves(shift, 0.0), strict=True)
    )
    c = (y.astype(np.complex64) @ product @ x.T.astype(np.complex64)).real.astype(float)
    return np.array([c[1, 0], c[0, 1]]), np.array([[c[2, 0], c[1, 1]], [c[1, 1], c[0, 2]]])


class _Match(NamedTuple):
    """Normalised correlation of a frame with the mean of the others, its evidence, and the noise of its gradient."""

    correlation: float
    evidence: float
    noise: np.ndarray


def _match(spectra, total, k, shift, structure):
    """`_Match` of frame k at its shift, from the sum of all frames, moved back."""
    frame, weights = spectra.moved(k, shift), structure.weights
    mean = (total - frame) / (len(spectra.frames) - 1)
    squares, of_mean = np.abs(frame) ** 2, np.abs(mean) ** 2
    norm = np.sqrt(np.sum(weights * of_mean) * np.sum(weights * squares))
    correlation = np.sum(weights * (mean.conj() * frame).real) / norm if norm > 0 else 0.0
    # a coefficient that stands for two has its square twice
    noise = spectra.gradients(weights**2 / spectra.number * of_mean * np.abs(frame - mean) ** 2)
    return _Match(correlation, _evidence(spectra, weights, mean, frame), noise)


def _evidence(spectra, weights, mean, image):
    """Correlation with a mean, over its standard deviation for an image of white noise of the same power."""
    power = np.average(np.abs(image) ** 2, weights=spectra.number)
    noise = np.sqrt(np.sum(weights**2 / spectra.number * np.abs(mean) ** 2) * power)
    return np.sum(weights * (mean.conj() * image).real) / noise if noise > 0 else 0.0
