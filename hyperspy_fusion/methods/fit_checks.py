"""What is noticed about the input and the result of a fit, in sentences that say what to do. Arrays in, strings out."""

from __future__ import annotations

import logging

import numpy as np

_logger = logging.getLogger(__name__)

# totals that change by more are said to
TOTAL_TOLERANCE = 0.1
# of modelled and measured HAADF image: a shuffled image has 0, the fits of the published tutorials above 0.95
POOR_CORRELATION = 0.5
# part of the total descent that the objective may lose again
RISE = 0.01


# parts of the range of a map below 0 that are taken for it
ROUNDING = 1e-6

_TAKEN_FOR_NOISE = (
    "they are taken for noise, for fused maps are nowhere negative; where the zero of the map is arbitrary, as after "
    "standardising, set it first."
)
# what becomes of negative values, by method
_NEGATIVE = {
    "published": (
        "the published method takes the minimum of a map for its zero, so nothing is clipped, and adds it back to "
        "the result; clip at zero first if they are noise."
    ),
    "calibrated": _TAKEN_FOR_NOISE,
    "auto": _TAKEN_FOR_NOISE,
}


def about_maps(elements, maps, valid, constant, method, noise_is_known=False):
    """Sentences about the valid pixels of measured maps (n, ny, nx), logged; ``constant`` tells for each whether it is.

    Negative values are not told where the ``method`` makes use of a noise that is known.

    Raises
    ------
    ValueError
        Where all are constant.
    """
    if constant.all():
        raise ValueError(f"All maps ({', '.join(elements)}) are constant, with nothing to fuse: pass maps with counts.")
    sentences = []
    flat = [element for element, is_constant in zip(elements, constant, strict=True) if is_constant]
    if flat:
        sentences.append(f"The map of {_and(flat)} is constant: it is kept as it is, and the others are fused.")
    negative = [] if noise_is_known else _negative(elements, maps, valid)
    if negative:
        sentences.append(f"The map of {_and(negative)} has negative values: {_NEGATIVE[method]}")
    return logged(sentences)


def _negative(elements, maps, valid):
    """Elements whose maps go below 0 by more than rounding, each with how far."""
    values = (image[keep] for image, keep in zip(maps, valid, strict=True))
    ranges = [(float(v.min()), float(v.max())) for v in values]
    found = zip(elements, ranges, strict=True)
    return [f"{e} (down to {low:.4g})" for e, (low, high) in found if low < -ROUNDING * (high - low)]


def about_unused_background(elements):
    """The sentence about a known background that a method has no use for, logged."""
    return logged(
        [
            f"The background of the maps of {_and(elements)} is known, and method='published' fuses it with them: use "
            "method='calibrated', which takes it for what it is."
        ]
    )


def about_published_fit(elements, result, total_ratios, haadf_correlation):
    """Sentences about the result of a fit by the published method, logged."""
    sentences = [
        _about_exit(result),
        _about_haadf(haadf_correlation, "or lambda_haadf is too small to matter."),
        _about_descent(result.history.total),
        _about_totals(elements, total_ratios, "lower background and lambda_haadf"),
    ]
    return logged([sentence for sentence in sentences if sentence])


_WITHOUT_HAADF = (
    "or its contrast is not that of atomic numbers; where no map explains it, fuse with lambda_haadf=0 and "
    "regularization='tgv', which leave it out."
)


def about_shared_noise(elements):
    """The sentence about maps whose pixels are no measurements of their own, none for no elements, logged."""
    if not elements:
        return []
    return logged(
        [
            f"Neighbouring pixels of the map of {_and(elements)} share their noise, as after smoothing, interpolation "
            "or denoising (structure of two or three pixels in many counts looks alike): a fit takes each for a "
            "measurement of its own, so that its choice of weights is off and its errors are too small, by about the "
            "root of the number of pixels that share it. Pass the counts as recorded."
        ]
    )


def about_errors_of_edges(elements):
    """The sentence about errors of maps of EELS edges, none for no elements, logged."""
    if not elements:
        return []
    return logged(
        [
            f"Errors of regions of the map of {_and(elements)} are too small, by up to twice: that of the background "
            "of EELS edges, which neighbouring pixels share, is in none of them."
        ]
    )


# counts of maps that differ by less are taken for the same
SAME_UNIT = 0.01


def about_units(counts_scale, settings):
    """The sentence about maps of which each has a unit of its own, of which a forward model by atomic numbers knows nothing."""
    counts_scale = np.asarray(counts_scale)
    known = counts_scale[np.isfinite(counts_scale)]
    told = settings.k_factors is not None or settings.weights != "z_gamma" or not settings.lambda_haadf
    if told or len(known) < 2 or np.ptp(known) <= SAME_UNIT * known.max():
        return []
    return logged(
        [
            f"One count is not the same in all maps ({known.min():.3g} to {known.max():.3g}), as after scaling each to "
            "[0, 1]: their ratios are not those of counts, and the HAADF forward model by atomic numbers does not hold among "
            "them. Pass the counts, or the units by k_factors, or weights='fit'."
        ]
    )


def about_weight(penalty, settings):
    """The sentence about a weight that suits edges as sharp as those of the image, and not sharper ones."""
    knows_of_blur = penalty.kind == "directional" and penalty.guide.shape[0] > 4
    weights = settings.lambda_reg if isinstance(settings.lambda_reg, tuple) else (settings.lambda_reg,)
    if not knows_of_blur or "auto" in weights or min(weights) > 1:
        return []
    return logged(
        [
            "With haadf_blur, regularization='directional' leaves grain at lambda_reg=1, where the HAADF image is not "
            "flat: pass about twice the weight that suits without, or method='auto'."
        ]
    )


def about_calibrated_fit(elements, result, total_ratios, haadf_correlation, settings):
    """Sentences about the result of a fit by the calibrated method, logged."""
    remedy = "a higher max_iter" if settings.keep_totals else "keep_totals=True or a lower lambda_reg"
    needs_haadf = settings.lambda_haadf or settings.regularization in ("guided", "directional")
    sentences = [
        _about_exit(result),
        _about_haadf(haadf_correlation, _WITHOUT_HAADF) if needs_haadf else "",
        # of totals that are not positive the problem speaks
        _about_totals(elements, np.nan_to_num(total_ratios, nan=1.0), remedy),
    ]
    return logged([sentence for sentence in sentences if sentence])


def _about_exit(result):
    return "" if result.success else f"The fit did not exit successfully. Reason: {result.message}"


def _about_haadf(haadf_correlation, other_reason):
    if haadf_correlation >= POOR_CORRELATION:
        return ""
    return (
        f"The fused maps explain little of the HAADF image (correlation {haadf_correlation:.2f}): an element that "
        f"shows in it is not among the maps, or it is not of this scan, {other_reason}"
    )


def _about_descent(total):
    lowest, last = int(np.argmin(total)), len(total) - 1
    if total[-1] - total[lowest] <= RISE * abs(total[0] - total[lowest]):
        return ""
    return (
        f"The objective was lowest after {lowest} of {last} iterations and rose since, so the steps of the published "
        "method are too long here: raise background or lower lambda_chem."
    )


def _about_totals(elements, ratios, remedy):
    if np.all(np.abs(ratios - 1) <= TOTAL_TOLERANCE):
        return ""
    listed = ", ".join(
        f"{element} unknown (no positive total)" if np.isnan(ratio) else f"{element} {ratio:.0%}"
        for element, ratio in zip(elements, ratios, strict=True)
    )
    return (
        f"The totals of the fused maps are not those of the measured ones ({listed}): read no amounts off these maps, "
        f"or bring the totals together by {remedy}."
    )


def totals_over_measured(fused, measured, valid, background=0.0):
    """Total of each fused map over that of the measured one, less its background; NaN where the latter is not positive.

    ``valid`` (n, ny, nx) has the pixels to add up; ``background`` is per pixel: a number, (n,) or (n, ny, nx).
    """
    background = np.asarray(background)
    background = np.broadcast_to(background if background.ndim != 1 else background[:, None, None], measured.shape)
    before, after, under = (
        maps.sum(axis=(1, 2), dtype=np.float64, where=valid) for maps in (measured, fused, background)
    )
    before = before - under
    return np.divide(after, before, out=np.full(len(before), np.nan), where=before > 0)


def correlation(a, b, valid):
    """Pearson's correlation of two images over the valid pixels; 0 where one is constant."""
    a, b = (image[valid].astype(np.float64) for image in (a, b))
    a, b = a - a.mean(), b - b.mean()
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.vdot(a, b) / size) if size else 0.0


def logged(sentences):
    """The sentences, after they were logged as warnings."""
    for sentence in sentences:
        _logger.warning(sentence)
    return sentences


def _and(words):
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
