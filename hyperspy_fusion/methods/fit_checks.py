"""Diagnostics of the input and of the result of a fit. Arrays in, :class:`Diagnostic` objects out."""

from __future__ import annotations

import numpy as np

from hyperspy_fusion.diagnostics import INFORMATION, Diagnostic
from hyperspy_fusion.fusion.settings import PublishedSettings
from hyperspy_fusion.fusion.terms.scan_data import has_contrast
from hyperspy_fusion.fusion.uncertainty.consistency_checks import without_structure

# changes of the totals that are within the errors of quantification
TOTAL_TOLERANCE = 0.1
# correlation of modelled and measured HAADF image: 0 for a shuffled image, above 0.95 on the published tutorials
POOR_CORRELATION = 0.5
# part of the total descent that the objective may lose again
RISE = 0.01
# part of the range of a map below 0 that is taken for rounding
ROUNDING = 1e-6
# part of the counts of a map that may be background where amounts are to be read
MUCH_BACKGROUND = 0.3
# counts scales of maps that differ by less are taken as equal
SAME_UNIT = 0.01

_NEGATIVE = {
    True: "A fit with a noise model takes them for noise: set the zero of the map first where it is arbitrary.",
    False: "The published method takes the minimum for zero: clip at zero first if they are noise.",
}


def flat_maps(maps, image, valid, method, background):
    """(n,) bool, maps that are kept as they are: constant ones, and those of a file without structure; and diagnostics.

    Parameters
    ----------
    maps
        A :class:`~hyperspy_fusion.maps.stack.ScanMaps`.
    image
        (ny, nx) HAADF image.
    valid
        Valid pixels of both.
    method
        A :class:`~hyperspy_fusion.methods.base.Method`.
    background
        Of the maps as given by numbers, or None.
    """
    elements, pixels = maps.signal.elements, maps.signal.data
    flat = ~np.array([has_contrast(*one) for one in zip(pixels, valid.maps, strict=True)])
    found = diagnostics_of_maps(elements, pixels, valid.maps, flat, method, maps.variance is not None)
    if maps.named_by_file and method.has_noise_model:
        even, about = even_maps(elements, pixels, image, valid, flat, maps.beside)
        flat, found = flat | even, found + about
        if maps.background is None and background is None:
            found += diagnostics_of_background(elements, pixels, valid.maps, maps.beside)
    if maps.background is not None and not method.uses_noise_metadata:
        found += diagnostics_of_unused_background(elements, method)
    return flat, found


def diagnostics_of_maps(elements, maps, valid, constant, method, has_variance):
    """Of the valid pixels of the measured maps (n, ny, nx).

    ``constant`` is (n,) bool, and ``has_variance`` whether the maps come with the variance of their noise.

    Raises
    ------
    ValueError
        Where all maps are constant.
    """
    if constant.all():
        raise ValueError(f"All maps ({', '.join(elements)}) are constant, with nothing to fuse: pass maps with counts.")
    found = []
    has_counts = np.array([np.any(image[own]) for image, own in zip(maps, valid, strict=True)])
    for one, several, chosen in (
        ("has no counts", "have no counts", constant & ~has_counts),
        ("is constant", "are constant", constant & has_counts),
    ):
        flat = tuple(e for e, is_chosen in zip(elements, chosen, strict=True) if is_chosen)
        if flat:
            kept = f"{several}: they are kept as they are" if len(flat) > 1 else f"{one}: it is kept as it is"
            sentence = f"{_maps_of(flat)} {kept}, and the others are fused."
            found.append(Diagnostic("constant-map", sentence, elements=flat))
    negative = {} if has_variance and method.uses_noise_metadata else _negative(elements, maps, valid)
    if negative:
        listed = _maps_of([f"{e} (down to {low:.4g})" for e, low in negative.items()])
        have = "has" if len(negative) == 1 else "have"
        sentence = f"{listed} {have} negative values. {_NEGATIVE[method.has_noise_model]}"
        found.append(Diagnostic("negative-values", sentence, elements=tuple(negative)))
    return found


def diagnostics_of_interrupted_errors(n_done, number=1):
    """Where Ctrl-C ended the bootstrap after ``n_done`` of ``number`` bootstrap replicates, or before it."""
    if n_done >= number:
        return []
    sentence = "Interrupted: the maps have no standard errors. Fuse again to find them."
    if n_done:
        sentence = (
            f"Interrupted: the standard errors are from {n_done} of {number} bootstrap replicates, and uncertain by "
            f"{100 / np.sqrt(2 * n_done):.0f} %."
        )
    return [Diagnostic("errors-interrupted", sentence)]


def even_maps(elements, maps, haadf, valid, constant, beside=()):
    """(n,) bool: maps that are not worth a fit, of elements that the file names and nobody asked for; diagnostics.

    They have no structure beyond that of noise or background, while others have: see :func:`without_structure`, also
    for what is ``beside`` the lines. ``constant`` (n,) are left out anyway.
    """
    even = without_structure(maps, valid.maps, haadf, valid.haadf, beside) & ~constant
    if not even.any() or (even | constant).all():
        return np.zeros(len(maps), bool), []
    names = tuple(e for e, is_even in zip(elements, even, strict=True) if is_even)
    sentence = (
        f"The counts of {_and(names)}, which the file names, show only noise or background: they stay as they are and "
        "the others are fused; name all by elements=[...] to fuse them."
    )
    return even, [Diagnostic("elements-without-structure", sentence, elements=names)]


def diagnostics_of_background(elements, maps, valid, beside):
    """Of maps that are to a large part background, which nobody subtracts.

    ``beside`` has for each map None, or counts beside its line; see :func:`even_maps`.
    """
    parts = {}
    for element, counts, keep, own in zip(elements, maps, valid, beside, strict=True):
        if own is not None and (total := counts[keep].sum(dtype=float)) > 0:
            parts[element] = own.ratio * np.asarray(own.counts)[keep].sum(dtype=float) / total
    parts = {element: part for element, part in parts.items() if part > MUCH_BACKGROUND}
    if not parts:
        return []
    listed = ", ".join(f"{element} ({min(part, 1):.0%})" for element, part in parts.items())
    sentence = f"Background is a large part of the counts of {listed}: fuse with background='windows' to read amounts."
    return [Diagnostic("background-in-maps", sentence, elements=tuple(parts))]


def _negative(elements, maps, valid):
    """``{element: minimum}`` of the maps that go below 0 by more than rounding."""
    values = (image[keep] for image, keep in zip(maps, valid, strict=True))
    ranges = zip(elements, ((float(v.min()), float(v.max())) for v in values), strict=True)
    return {e: low for e, (low, high) in ranges if low < -ROUNDING * (high - low)}


def diagnostics_of_unused_background(elements, method):
    """Of maps with a known background, which a method without noise metadata fuses with them."""
    sentence = (
        f"The maps have a known background, which method={method.name!r} does not subtract: "
        "use method='calibrated', which does."
    )
    return [Diagnostic("background-not-used", sentence, elements=tuple(elements))]


def diagnostics_of_published_fit(elements, result, total_ratios, haadf_correlation):
    """Of a fit by the published method."""
    return [
        *diagnostics_of_exit(result),
        *_of_correlation(haadf_correlation),
        *_of_descent(result.history.total),
        *_of_totals(elements, total_ratios, "a lower eps and lambda_haadf"),
    ]


def diagnostic_of_smoothing(settings):
    """Of a fit by the published method where inner iterations, and not the weight, limit how much it smooths.

    At published weights the limit is part of the method, and no more than information.
    """
    sentence = (
        f"With tv_iter={settings.tv_iter} a lambda_tv of {settings.lambda_tv:g} smooths no more than half of it: raise "
        "tv_iter to smooth more."
    )
    severity = INFORMATION if settings.lambda_tv <= PublishedSettings.lambda_tv else ""
    return Diagnostic("smoothing-limited", sentence, severity)


def diagnostics_of_calibrated_fit(elements, result, total_ratios, settings):
    """Of a fit by the calibrated method; totals that are not positive are reported by the problem."""
    remedy = "a higher max_iter" if settings.keep_totals else "keep_totals=True or a lower lambda_reg"
    return [
        *diagnostics_of_exit(result),
        *_of_totals(elements, np.nan_to_num(total_ratios, nan=1.0), remedy),
    ]


def diagnostics_of_shared_noise(elements):
    """Of maps whose neighbouring pixels are not independent measurements; none for no elements."""
    if not elements:
        return []
    sentence = (
        f"Neighbouring pixels of {_and(elements)} share noise, as after smoothing: the chosen weights are off and "
        "errors too small. Pass the counts as recorded."
    )
    return [Diagnostic("noise-shared-by-neighbours", sentence, elements=tuple(elements))]


def diagnostics_of_edge_errors(elements):
    """Of errors of maps of EELS edges; none for no elements."""
    if not elements:
        return []
    sentence = (
        f"Errors of regions of {_and(elements)} are too small, by up to a factor of two: "
        "they leave out the error of the EELS background."
    )
    return [Diagnostic("edge-errors-too-small", sentence, elements=tuple(elements))]


def diagnostics_of_units(counts_scale, settings):
    """Of maps with different counts scales, among which a forward model by atomic numbers does not hold."""
    counts_scale = np.asarray(counts_scale)
    known = counts_scale[np.isfinite(counts_scale)]
    has_units = settings.k_factors is not None or settings.haadf_coefficients != "z_power" or not settings.lambda_haadf
    if has_units or len(known) < 2 or np.ptp(known) <= SAME_UNIT * known.max():
        return []
    sentence = (
        f"The counts scale differs between maps ({known.min():.3g} to {known.max():.3g}), and the HAADF forward model "
        "needs equal units: pass counts, k_factors, or haadf_coefficients='fit'."
    )
    return [Diagnostic("unequal-units", sentence)]


def diagnostics_of_exit(result):
    """Of a fit that ended before it was done; none for others."""
    if result.success:
        return []
    return [Diagnostic(result.reason.name.lower().replace("_", "-"), result.message)]


def _of_correlation(haadf_correlation):
    if not haadf_correlation < POOR_CORRELATION:  # NaN is not known
        return []
    sentence = (
        f"The fused maps explain little of the HAADF image (correlation {haadf_correlation:.2f}): check that it shows "
        f"this scan and that all its elements are mapped, or raise lambda_haadf."
    )
    return [Diagnostic("haadf-poorly-explained", sentence)]


def _of_descent(total):
    lowest, last = int(np.argmin(total)), len(total) - 1
    if total[-1] - total[lowest] <= RISE * abs(total[0] - total[lowest]):
        return []
    sentence = (
        f"The objective was lowest after {lowest} of {last} iterations and rose since: raise eps or lower lambda_chem."
    )
    return [Diagnostic("objective-rises", sentence)]


def _of_totals(elements, ratios, remedy):
    changed = ~(np.abs(ratios - 1) <= TOTAL_TOLERANCE)
    if not changed.any():
        return []
    listed = ", ".join(
        f"{element} {'unknown' if np.isnan(ratio) else f'{ratio:.0%}'}"
        for element, ratio in zip(elements, ratios, strict=True)
    )
    sentence = (
        f"The totals of the fused maps are not those measured ({listed}): read no amounts off them, or pass {remedy}."
    )
    return [Diagnostic("totals-changed", sentence, elements=tuple(np.asarray(elements)[changed].tolist()))]


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
    """Pearson's correlation of two images over the valid pixels; 0 where one is constant, or no pixel is valid."""
    if not valid.any():
        return 0.0
    a, b = (image[valid].astype(np.float64) for image in (a, b))
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt(np.sum(a * a)) * np.sqrt(np.sum(b * b))
    return float(np.sum(a * b) / size) if size else 0.0


def _maps_of(names):
    return f"The {'map' if len(names) == 1 else 'maps'} of {_and(names)}"


def _and(words):
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
