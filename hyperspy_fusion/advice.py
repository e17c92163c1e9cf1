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


def about_maps(elements, maps, constant):
    """Sentences about measured maps (n, ny, nx), logged; ``constant`` tells for each whether it is.

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
    lows = maps.min(axis=(1, 2))
    negative = [f"{e} (down to {low:.4g})" for e, low in zip(elements, lows, strict=True) if low < 0]
    if negative:
        sentences.append(
            f"The map of {_and(negative)} has negative values: the published method takes the minimum of a map for its "
            "zero, so nothing is clipped, and adds it back to the result; clip at zero first if they are noise."
        )
    return _logged(sentences)


def about_fit(elements, result, total_ratios, haadf_correlation):
    """Sentences about the result of a fit, logged."""
    sentences = [
        "" if result.success else f"The fit did not exit successfully. Reason: {result.reason.value}",
        _about_haadf(haadf_correlation),
        _about_descent(result.history.total),
        _about_totals(elements, total_ratios),
    ]
    return _logged([sentence for sentence in sentences if sentence])


def _about_haadf(haadf_correlation):
    if haadf_correlation >= POOR_CORRELATION:
        return ""
    return (
        f"The fused maps explain little of the HAADF image (correlation {haadf_correlation:.2f}): an element that "
        "shows in it is not among the maps, or it is not of this scan, or lambda_haadf is too small to matter."
    )


def _about_descent(total):
    lowest, last = int(np.argmin(total)), len(total) - 1
    if total[-1] - total[lowest] <= RISE * abs(total[0] - total[lowest]):
        return ""
    return (
        f"The objective was lowest after {lowest} of {last} iterations and rose since, so the steps of the published "
        "method are too long here: raise background or lower lambda_chem."
    )


def _about_totals(elements, ratios):
    if np.all(np.abs(ratios - 1) <= TOTAL_TOLERANCE):
        return ""
    listed = ", ".join(
        f"{element} unknown (no positive total)" if np.isnan(ratio) else f"{element} {ratio:.0%}"
        for element, ratio in zip(elements, ratios, strict=True)
    )
    return (
        f"The totals of the fused maps are not those of the measured ones ({listed}): read no amounts off these maps, "
        "or bring the totals together by lower background and lambda_haadf."
    )


def totals_over_measured(fused, measured):
    """Total of each fused map over that of the measured one; NaN where the latter is not positive."""
    before, after = (maps.sum(axis=(1, 2), dtype=np.float64) for maps in (measured, fused))
    return np.divide(after, before, out=np.full(len(before), np.nan), where=before > 0)


def correlation(a, b):
    """Pearson's correlation of two images; 0 where one is constant."""
    a, b = (image - image.mean() for image in (a.astype(np.float64), b.astype(np.float64)))
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.vdot(a, b) / size) if size else 0.0


def _logged(sentences):
    for sentence in sentences:
        _logger.warning(sentence)
    return sentences


def _and(words):
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
