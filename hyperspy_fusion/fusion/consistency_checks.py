"""Alarms: what in the data contradicts a fit, or is too little to carry it. Arrays in, sentences out.

Sums over squares of pixels are compared with the standard deviation that the noise alone gives them. Of the counts, the
fused maps must explain them; of the HAADF image, the HAADF forward model of the *measured* maps must, whose noise is
known and which no penalty has smoothed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# sides of the squares in pixels
SIDES = (4, 8, 16)
# standard errors beyond which a sum, or the mean of their squares, is no chance
SURE_SUM, SURE_MEAN = 5.5, 6.0
# parts of the contrast of the HAADF image: unexplained and said; of a map: explained by it and not said
UNEXPLAINED, EXPLAINED = 0.1, 0.25
# HAADF coefficients that differ by less than this part look alike; and how well counts must tell two such elements apart
ALIKE, SPLIT_ERROR = 0.1, 0.2


@dataclass(frozen=True)
class Evidence:
    """What a fit is compared with.

    Attributes
    ----------
    elements
        n names.
    maps, valid
        (n, ny, nx) measured maps without background, and which pixels count.
    variance
        (n, ny, nx) of the measured maps.
    counts
        (n,) counts in all of each map; infinite where they are no counts.
    fused
        (n, ny, nx).
    haadf, haadf_valid, haadf_noise
        (ny, nx), (ny, nx) bool, and the standard deviation of its noise.
    forward model
        The :class:`~hyperspy_fusion.fusion.terms.haadf_model.LinearHaadfModel`, of maps in these units.
    counts_scale
        (n,) value of one count, NaN where there are none.
    uses_haadf
        Whether the image had a say in the fused maps.
    """

    elements: list
    maps: np.ndarray
    valid: np.ndarray
    variance: np.ndarray
    counts: np.ndarray
    fused: np.ndarray
    haadf: np.ndarray
    haadf_valid: np.ndarray
    haadf_noise: float
    forward_model: object
    counts_scale: np.ndarray
    uses_haadf: bool

    @classmethod
    def of(cls, scan, fused, problem):
        """From a :class:`~hyperspy_fusion.fusion.scan_data.ScanData`, the fused maps, and the problem of the fit."""
        uses, problem = problem.uses_haadf, problem.first
        background = problem.background[:, None, None] if scan.background is None else scan.background
        counts_scale = problem.noise.counts_scale[:, None, None]
        are_counts = np.isfinite(problem.noise.counts_scale)
        mean = np.maximum(fused + background, 0) * counts_scale
        # of Gaussian noise as the data term has it, pixel by pixel where it is known so
        slope = np.where(problem.data.slope > 0, problem.data.slope, 1).astype(np.float64)
        known = np.broadcast_to(_column(problem.scales**2) / slope, mean.shape)
        # where hardly any count is expected, one is no surprise
        variance = np.where(are_counts[:, None, None], np.maximum(mean, 1e-3 * counts_scale**2), known)
        net = np.where(scan.valid, scan.maps - background, 0).astype(np.float64)
        totals = np.sum(scan.maps, axis=(1, 2), where=scan.valid, dtype=np.float64)
        counts = np.where(are_counts, totals / problem.noise.counts_scale, np.inf)
        noise = float(problem.calibration.noise)
        forward_model, counts_scale = problem.forward_model, problem.noise.counts_scale
        return cls(
            scan.elements, net, scan.valid, variance, counts, fused, scan.haadf, scan.haadf_valid, noise,
            forward_model, counts_scale, uses,
        )  # fmt: skip

    def residuals(self):
        """(n, ny, nx) measured minus fused maps in standard deviations of the noise; 0 in pixels that do not count."""
        return np.where(self.valid, (self.maps - self.fused) / np.sqrt(self.variance), 0)

    def haadf_residual(self):
        """(ny, nx) HAADF image minus the forward model of the measured maps, and its variance; 0 in pixels that do not count."""
        used = self.haadf_valid & self.valid.all(axis=0)
        residual = self.haadf - self.forward_model.image(self.maps)
        variance = self.haadf_noise**2 + np.tensordot(self.forward_model.weights**2, self.variance, 1)
        return np.where(used, residual, 0), np.where(used, variance, 0)


def alarms(evidence):
    """Sentences about what should not be believed.

    Parameters
    ----------
    evidence
        An :class:`Evidence`.

    Returns
    -------
    list of str
    """
    sentences = _about_counts(evidence) + _about_structure(evidence)
    if np.any(evidence.forward_model.weights > 0):
        sentences += _about_haadf(evidence) + _about_pairs(evidence)
    return sentences


# ---- counts against fused maps -----------------------------------------------------------------------


def _about_counts(evidence):
    """Maps that are smoother, or elsewhere, than the counts allow."""
    sentences = []
    for i, element in enumerate(evidence.elements):
        sides = [side for side in SIDES if side <= min(evidence.haadf.shape)]
        size, side, (y, x) = max((_worst(evidence, i, side) for side in sides), default=(0.0, 0, (0, 0)))
        if size > SURE_SUM:
            sentences.append(
                f"The fused map of {element} contradicts its counts: in {side} x {side} pixels at x = {x}, y = {y} "
                f"they differ by {size:.1f} standard deviations. See normalised_residuals(); a lower lambda_reg keeps "
                "more."
            )
    return sentences


def _worst(evidence, i, side):
    """Largest deviation of a square of map i in standard deviations, the side, and its middle (y, x)."""
    used, variance = evidence.valid[i], evidence.variance[i]
    residual = evidence.maps[i] - evidence.fused[i]
    total, spread = (square_sums(np.where(used, a, 0), side) for a in (residual, variance))
    q = evidence.counts_scale[i]
    size = _poisson_deviation(total / q, spread / q**2) if np.isfinite(q) else _normal_deviation(total, spread)
    y, x = np.unravel_index(np.argmax(size), size.shape)
    return float(size[y, x]), side, (_middle(y, side), _middle(x, side))


def _normal_deviation(total, spread):
    return np.abs(total) / np.sqrt(np.where(spread > 0, spread, np.inf))


def _poisson_deviation(excess, mean):
    """Root of the deviance of counts, ``mean + excess``, which is near to normal at any mean."""
    counts = np.maximum(mean + excess, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = np.where(counts > 0, counts * np.log(counts / mean), 0) - (counts - mean)
    return np.sqrt(2 * np.maximum(np.where(mean > 0, surprise, 0), 0))


def _middle(number, side):
    """Pixel in the middle of a square."""
    return int(number * side + side // 2)


def square_sums(image, side):
    """Sums over squares of ``side`` pixels; pixels beyond the last whole square are left out."""
    ny, nx = (size // side for size in image.shape[-2:])
    cut = image[..., : ny * side, : nx * side]
    return cut.reshape(*image.shape[:-2], ny, side, nx, side).sum(axis=(-3, -1))


# ---- maps without structure, and structure that the HAADF image does not have -------------------------


def _about_structure(evidence):
    """Maps that the counts, or the HAADF image, say nothing of."""
    flat, unseen = [], []
    for element, image, variance, used in zip(
        evidence.elements, evidence.maps, evidence.variance, evidence.valid, strict=True
    ):
        sides = [side for side in SIDES if 2 * side <= min(image.shape)]
        found = [_structure(image, variance, used, evidence, side) for side in sides]
        if found and max(sure for sure, _ in found) < SURE_MEAN:
            flat.append(element)
        elif found and max(found)[1] < EXPLAINED:
            unseen.append(element)
    sentences = []
    if flat:
        sentences.append(
            f"The counts of {', '.join(flat)} are too few, or too even, to show any structure beyond their noise: read "
            "no more off the map than its mean."
        )
    if unseen:
        sentences.append(
            f"The HAADF image shows hardly any of the structure of {', '.join(unseen)}: it can neither sharpen it nor "
            "confirm it, and what is seen of it rests on the counts."
        )
    return sentences


def _structure(image, variance, used, evidence, side):
    """Standard errors by which squares of a map vary beyond noise, and what part of that goes with the HAADF image.

    The counts are judged where they are used, also where the image is saturated. How they go with it is judged where
    both are, and if nothing varies there, nothing is known against the image: 1.
    """
    sure, *_ = _excess(image, variance, used, side)
    used = used & evidence.haadf_valid
    sure_in_both, excess, level, full = _excess(image, variance, used, side)
    if sure_in_both < SURE_MEAN:
        return sure, 1.0
    haadf, number = (square_sums(np.where(used, a, 0), side)[full] for a in (evidence.haadf, 1.0))
    haadf = haadf / number
    haadf = haadf - haadf.mean()
    explained = np.mean(level * haadf) ** 2 / max(np.mean(haadf**2), 1e-300)
    return sure, float(explained / max(excess, 1e-300))


def _excess(image, variance, used, side):
    """Variance of the squares of a map beyond noise, in standard errors and as it is, their levels, and which count."""
    total, spread, number = (square_sums(np.where(used, a, 0), side) for a in (image, variance, 1.0))
    full = number > 0.5 * side**2
    if np.count_nonzero(full) < 4:
        return 0.0, 0.0, np.zeros(0), full
    level, noise = total[full] / number[full], np.mean(spread[full] / number[full] ** 2)
    level = level - level.mean()
    excess = float(np.mean(level**2) - noise)
    return float(excess / (noise * np.sqrt(2 / level.size))), excess, level, full


# ---- the HAADF image against the HAADF forward model ----------------------------------------------------------


def _about_haadf(evidence):
    """Contrast that no mapped element explains: the root mean square of what the forward model misses over that of the image."""
    residual, variance = evidence.haadf_residual()
    used = (variance > 0) * 1.0
    # the blur of the image moves intensity between small squares
    side = next((s for s in SIDES[1:] if s >= 4 * evidence.forward_model.blur), SIDES[-1])
    if 2 * side > min(residual.shape):
        return []
    # a pixel that does not count may be NaN
    image = np.where(used, evidence.haadf, 0)
    total, spread, number, haadf = (square_sums(a, side) for a in (residual, variance, used, image))
    full = number > 0
    if np.count_nonzero(full) < 4:
        return []
    squares, noise = total[full] ** 2, spread[full]
    sure = np.mean(squares / noise - 1) / np.sqrt(2 / squares.size)
    levels = haadf[full] / number[full]
    unexplained = np.mean((squares - noise) / number[full] ** 2)
    part = np.sqrt(max(unexplained, 0) / max(np.var(levels), 1e-300))
    if sure < SURE_MEAN or part < UNEXPLAINED:
        return []
    y, x = np.unravel_index(np.argmax(np.where(full, np.abs(total), 0)), total.shape)
    return [
        f"No mapped element explains what the measured maps miss of the HAADF image, {part:.0%} of its contrast (root "
        f"mean square), most at x = {_middle(x, side)}, y = {_middle(y, side)} (pixels): an element that is not "
        f"mapped, diffraction, thickness, the detector, or an image that is shifted (register=True) or turned against "
        f"the maps; see residual(). {_HAADF_REMEDY[evidence.uses_haadf]}"
    ]


_HAADF_REMEDY = {
    True: (
        "Check whether fused maps have structure there that the counts do not show, or fuse with lambda_haadf=0 and "
        "regularization='tgv', which leave the image out."
    ),
    False: "The fused maps make no use of the image.",
}


def _about_pairs(evidence):
    """Elements that look alike in the HAADF image and have too few counts to be told apart."""
    forward_model, counts = evidence.forward_model, evidence.counts
    in_square = counts * SIDES[1] ** 2 / np.maximum(evidence.valid.sum(axis=(1, 2)), 1)
    # of one count each, for units of the maps are of no matter
    weights = forward_model.weights * np.array([m.sum() for m in evidence.maps]) / np.maximum(counts, 1)
    sentences = []
    for i in range(len(counts)):
        for j in range(i):
            low, high = sorted((weights[i], weights[j]))
            error = np.sqrt(1 / max(in_square[i], 1e-9) + 1 / max(in_square[j], 1e-9)) / 2
            if np.isfinite(error) and high - low < ALIKE * high and error > SPLIT_ERROR:
                sentences.append(
                    f"{evidence.elements[j]} and {evidence.elements[i]} look alike in the HAADF image, and their "
                    f"counts tell them apart to {error:.0%} in {SIDES[1]} x {SIDES[1]} pixels only: how they share "
                    "finer detail is the choice of the penalty."
                )
    return sentences


def _column(values):
    return np.asarray(values)[:, None, None]
