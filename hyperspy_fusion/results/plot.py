"""Figures: arrays in, axes out. Nothing here knows HyperSpy; nothing else knows matplotlib."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.checks import default_errstate

# other names of a unit, in small letters, for those of matplotlib-scalebar; the second is the Greek letter
_UNITS = {"micron": "µm", "\u03bcm": "µm", "angstrom": "Å", "\u212b": "Å"}
_UNCALIBRATED = ("", "px", "pixel", "pixels", "none", "<undefined>")
_BAR: dict[str, Any] = {"location": "lower left", "length_fraction": 0.3, "border_pad": 0.4}
_BAR |= {"color": "white", "box_color": "black", "box_alpha": 0.4}

# shot noise puts a few pixels far above the rest, which would darken the whole map, and the fused one beside it
_CLIPPED_PERCENT = 0.2
_CLIPPED_NOISE_PERCENT = 2.0

_ROWS = ("raw", "fused", "truth", "errors")
_ROW_TITLES = {"raw": "measured", "errors": "standard error"}
_ERROR_COLOURS = "viridis"
# of the terms of each method: title, formula, name of the weight; those of the calibrated one are weighted already
_PUBLISHED_TERMS = {
    "haadf": ("HAADF", r"$\frac{1}{2}\,\Vert h - f(x)\Vert^2$", "lambda_haadf"),
    "chem": ("chemistry", r"$\sum_i\,[x_i - b_i \log(x_i + \varepsilon)]$", "lambda_chem"),
    "tv": ("total variation", r"$\sum_i\,\mathrm{TV}(x_i)$", "lambda_tv"),
}
_SMOOTHING = ("lambda_reg", "lambda_tv")
_CHOSEN_WEIGHTS = (*_SMOOTHING, "lambda_chem", "lambda_haadf")
_CALIBRATED_TERMS = {
    "haadf": ("HAADF", r"$\lambda_h\,\Vert h - f(x)\Vert^2 / 2\sigma^2$", "lambda_haadf"),
    "chem": ("maps", r"$\sum_i\,D(b_i, x_i)$", None),
    "tv": ("penalty", r"$R(\lambda_i x_i / s_i)$", "lambda_reg"),
}


@default_errstate
def plot_fusion(
    fused: np.ndarray | None,
    elements: list,
    *,
    raw: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    haadf: np.ndarray | None = None,
    modelled_haadf: np.ndarray | None = None,
    errors: np.ndarray | None = None,
    scale: float | tuple | None = None,
    units: str | None = None,
    offset: tuple = (0.0, 0.0),
    crop: tuple | None = None,
    quantity: str | None = None,
    same_limits: bool = True,
    figure=None,
) -> np.ndarray:
    """Measured maps over fused maps, one column per element, after a column with both HAADF images.

    The maps of an element share their colours, and so do the two HAADF images: equal colours are equal values. The
    brightest and darkest 0.2 % of the pixels of a map, and the brightest 2 % of a measured map beside a fused or true
    one, may lie outside; the colour bar then ends in an arrow.

    Maps and their `errors` are ``(n_elements, ny, nx)``, images ``(ny, nx)``; those that are None are not drawn.
    `scale` is the length of a pixel in `units`, or (height, width) of it; None is uncalibrated. `offset` is the
    position (y, x) of the first pixel. `crop` is ``(left, right, top, bottom)`` as in HyperSpy: integers are pixels,
    floats positions, and the ends are excluded. `quantity` labels the colour bars. With `same_limits=False` every panel
    has its own colours. The axes returned are ``(rows, columns)``, rows in the order raw, fused, truth, errors.
    """
    rows, images = _checked_images(
        {"raw": raw, "fused": fused, "truth": truth, "errors": errors},
        {"HAADF": haadf, "modelled HAADF": modelled_haadf},
        elements,
    )
    if scale is None or not np.all(np.isfinite(scale) & (np.asarray(scale) != 0)):
        scale, offset = None, (0.0, 0.0)
    pixel, units = _pixel(scale, units)
    shape = next(iter(rows.values())).shape[1:]
    window = _window(crop, shape, 1.0 if scale is None else scale, offset)
    names = [name for name in _ROWS if name in rows or (name == "raw" and haadf is not None)]
    columns = _columns(rows, images, names, elements, window)
    axes = _panels(names, columns, pixel, figure)
    for panel_axes, (title, panels) in zip(axes.T, columns, strict=True):
        style = {"cmap": "gray" if title == "HAADF" else "inferno", "pixel": pixel, "same_limits": same_limits}
        # "X-ray counts ()", as HyperSpy writes a quantity without unit, loses its brackets
        label = (quantity or "").replace("()", "").strip() if title != "HAADF" else ""
        n_maps = len(names) - ("errors" in names)
        _draw_column(panel_axes[:n_maps], panels[:n_maps], label or "intensity", **style)
        _draw_column(panel_axes[n_maps:], panels[n_maps:], label or "intensity", **(style | {"cmap": _ERROR_COLOURS}))
    for ax in axes.flat:
        if ax.images:
            _scale_bar(ax, units)
    return axes


@default_errstate
def plot_convergence(history: dict, weights: dict, *, axes=None) -> np.ndarray:
    """The three terms of the objective against the iteration, and the weights they were summed with.

    `history` has arrays ``haadf``, ``chem`` and ``tv`` of one length, the start at index 0: unweighted for the
    published method, as they enter the sum for the calibrated one. The first and last value of ``total``, their sum, is
    given above. ``iteration`` is there where not every iteration is. ``gap`` has a panel of its own, with a logarithmic
    scale. `weights` are the settings of the fit; its ``tol`` is a line in the panel of the gap.
    """
    terms = _CALIBRATED_TERMS if "lambda_reg" in weights else _PUBLISHED_TERMS
    missing = [name for name in terms if name not in history]
    if missing:
        raise ValueError(f"history has no {', '.join(missing)}: it must hold haadf, chem and tv.")
    number = len(terms) + ("gap" in history)
    if axes is None:
        figure = _new_figure((3.5 * number, 3.4))
        axes = figure.subplots(1, number)
        if (total := history.get("total")) is not None:
            figure.suptitle(f"objective (weighted sum): {total[0]:.5g} at the start, {total[-1]:.5g} at the end")
    axes = np.asarray(axes)
    iteration = np.asarray(history.get("iteration", np.arange(len(history["haadf"]))))
    for ax, (name, (title, formula, weight)) in zip(axes.flat, terms.items(), strict=False):
        title = _term_title(title, weight, weights)
        style = {"color": "0.6", "linestyle": "--"} if title.endswith(": off") else {"color": "C0"}
        ax.plot(iteration, np.asarray(history[name], float), **style)
        _label(ax, title, formula)
    if "gap" in history:
        ax, gap = axes.flat[len(terms)], np.asarray(history["gap"], float)
        # nothing else has a logarithm
        shown = np.isfinite(gap) & (gap > 0)
        ax.plot(iteration[shown], gap[shown], color="C0")
        ax.set_yscale("log")
        if weights.get("tol") is not None:
            ax.axhline(weights["tol"], color="0.6", linestyle="--")
        _label(ax, f"duality gap, {gap[-1]:.2g} at the end", "relative gap")
    return axes


@default_errstate
def plot_selection(selection: dict):
    """Cross-validation scores of the fits that a choice of weights compared, against the weight.

    `selection` is ``metadata.Fusion.selection``: arrays ``score``, ``score_error`` and ``weights`` (flat, of every
    candidate those of its maps), the weights that were chosen, and ``regularization`` and ``joint`` where they differ.
    """
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    score = np.asarray(selection["score"])
    if not score.size:
        raise ValueError(f"No fits were compared. {selection['sentence']}")
    chosen = [name for name in _CHOSEN_WEIGHTS if name in selection]
    if not chosen:
        raise ValueError(f"No weight was left open, so that there is none to plot against. {selection['sentence']}")
    ax = _new_figure((8.4, 4.2)).subplots()
    # the weight that was tried at most values
    name = max(chosen, key=lambda name: np.unique(selection[name]).size)
    weight, error = np.asarray(selection[name], float), np.asarray(selection["score_error"])
    used = np.asarray(selection["weights"]).reshape(score.size, -1).max(axis=1) > 0
    for label, rows in _candidates(selection, chosen, name).items():
        rows = sorted(rows, key=lambda i: weight[i])
        (line, *_) = ax.errorbar(weight[rows], score[rows], error[rows], fmt=".-", capsize=2, label=label)
        circled = [i for i in rows if used[i]]
        ax.plot(weight[circled], score[circled], "o", color=line.get_color(), markersize=9, fillstyle="none")
    ax.set(xscale="log", xlabel=f"{name} (larger is smoother)" if name in _SMOOTHING else name)
    ax.set_ylabel("score on held-out counts,\nlog-likelihood per pixel")
    ax.set_title("cross-validation of the fits (higher is better); circles: used", fontsize="medium")
    # a choice covers few octaves, where a power of ten is hardly to be found
    ax.xaxis.set_major_locator(LogLocator(base=2 if weight.max() <= 64 * weight.min() else 10))
    ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.xaxis.set_minor_locator(NullLocator())
    best = score[used].max()
    ax.set_ylim(max(score.min(), best - 0.25 * abs(best)) - 0.01 * abs(score.max()), None)
    # beside the curves, which fill the panel
    ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return ax


@default_errstate
def plot_drift(shifts: np.ndarray, errors: np.ndarray, dropped: np.ndarray, *, axes=None) -> Any:
    """The drift (2, t) of frames along y and x in pixels, with its standard errors, and the frames left out."""
    ax = _new_figure((6.4, 3.4)).subplots() if axes is None else axes
    frames = np.arange(shifts.shape[1])
    for name, shift, error in zip("yx", shifts, errors, strict=True):
        ax.errorbar(frames, shift, np.where(np.isfinite(error), error, 0), fmt=".-", capsize=2, label=name)
    for number, frame in enumerate(dropped):
        ax.axvline(frame, color="0.7", linestyle=":", label="left out" if number == 0 else None)
    ax.set(xlabel="frame", ylabel="drift (pixels)")
    ax.locator_params(axis="x", integer=True)
    ax.legend(fontsize="small")
    return ax


def _candidates(selection, chosen, name):
    """``{label: numbers of the candidates}`` that differ in the weight ``name`` alone."""
    groups = {}
    for i in range(len(selection["score"])):
        words = [str(selection["regularization"][i])] if "regularization" in selection else []
        words += [f"{other} {selection[other][i]:.3g}" for other in chosen if other != name]
        words += ["each map"] if "joint" in selection and not selection["joint"][i] else []
        groups.setdefault(", ".join(words) or name, []).append(i)
    return groups


def _checked_images(rows, images, elements):
    """Only what was given, as arrays of the right shape."""
    rows = {name: np.asarray(value) for name, value in rows.items() if value is not None}
    if not rows:
        raise ValueError("there are no maps to plot: pass fused or raw.")
    leading = "fused" if "fused" in rows else next(iter(rows))
    shape = rows[leading].shape
    if len(shape) != 3 or shape[0] != len(elements):
        raise ValueError(f"{leading} has shape {shape} for {len(elements)} elements: it must be (n_elements, ny, nx).")
    images = {name: np.asarray(value) for name, value in images.items() if value is not None}
    for name, value in {**rows, **images}.items():
        expected = shape if name in rows else shape[1:]
        if value.shape != expected:
            raise ValueError(f"{name} has shape {value.shape}, expected {expected} as of the {leading} maps.")
    return rows, images


def _pixel(scale, units):
    """Height and width of a pixel, and the unit to write: pixels where anything is missing."""
    if scale is None or not isinstance(units, str) or units.strip().lower() in _UNCALIBRATED:
        return (1.0, 1.0), "px"
    height, width = np.broadcast_to(np.abs(np.asarray(scale, float)), 2)
    return (float(height), float(width)), units.strip()


def _window(crop, shape, scale, offset):
    """Slices (y, x) of a crop ``(left, right, top, bottom)``."""
    if crop is None:
        return slice(None), slice(None)
    ends = tuple(crop) if isinstance(crop, tuple | list | np.ndarray) else ()
    if len(ends) != 4 or not all(end is None or (isinstance(end, Real) and np.isfinite(float(end))) for end in ends):
        raise ValueError(
            f"crop is {crop!r}: it must be four numbers (left, right, top, bottom), integers in pixels or floats in "
            "the units of the axes; tuple(roi) of a RectangularROI is such."
        )
    height, width = np.broadcast_to(scale, 2)
    columns = _side(crop[:2], shape[1], width, offset[1])
    rows = _side(crop[2:], shape[0], height, offset[0])
    if not (columns.start < columns.stop and rows.start < rows.stop):
        raise ValueError(
            f"crop {crop!r} leaves no pixel: give (left, right, top, bottom), integers in pixels "
            f"(the image has {shape[1]} x {shape[0]}) or floats in the units of the axes."
        )
    return rows, columns


def _side(ends, size, scale, offset):
    """A slice between two ends, pixels or positions; None leaves an end where it is."""
    is_position = [isinstance(end, float | np.floating) for end in ends]
    if scale < 0 and all(p or e is None for e, p in zip(ends, is_position, strict=True)):
        turned = _side(ends, size, -scale, offset + scale * (size - 1))
        return slice(size - turned.stop, size - turned.start)
    # a position before the first pixel must not count from the end, as a negative index does
    first, last = (max(round((e - offset) / scale), 0) if p else e for e, p in zip(ends, is_position, strict=True))
    return slice(*slice(first, last).indices(size)[:2])


def _columns(rows, images, names, elements, window):
    """Per column its title and, row by row, the panel title and the cropped image; None for no image."""
    by_row = {"raw": "HAADF", "fused": "modelled HAADF"}
    columns = [("HAADF", [(by_row.get(name), images.get(by_row.get(name))) for name in names])] if images else []
    for i, element in enumerate(elements):
        titles = [f"{element}, {_ROW_TITLES.get(name, name)}" for name in names]
        columns.append((element, [(t, rows[n][i] if n in rows else None) for t, n in zip(titles, names, strict=True)]))
    return [
        (column, [None if image is None else (title, image[window]) for title, image in shown])
        for column, shown in columns
    ]


def _panels(names, columns, pixel, figure):
    """Axes (rows, columns), sized to the shape of the images."""
    height, width = next(panel[1].shape for panel in columns[0][1] + columns[-1][1] if panel is not None)
    aspect = min(max(height * pixel[0] / (width * pixel[1]), 0.4), 2.5)
    if figure is None:
        panel_height = min(2.4 * aspect, 4.0)
        figure = _new_figure((2.4 * max(len(columns), 2), (panel_height + 0.3) * len(names) + 0.7))
    return figure.subplots(len(names), len(columns), squeeze=False)


def _new_figure(size):
    import matplotlib.pyplot as plt

    return plt.figure(figsize=size, layout="constrained")


def _draw_column(axes, panels, label, *, cmap, pixel, same_limits):
    """One element, or HAADF: its images from top to bottom and the colour bar, or bars, below."""
    for ax in axes:
        ax.set_axis_off()
    drawn = [(ax, *panel) for ax, panel in zip(axes, panels, strict=True) if panel is not None]
    # a shared bar belongs to the whole column, empty panels too: so it lies level with those of the others
    groups = [(drawn, list(axes))] if same_limits and drawn else [([item], item[0]) for item in drawn]
    for group, below in groups:
        _draw_group(group, below, label, cmap, pixel)


def _draw_group(drawn, below, label, cmap, pixel):
    """Images with the same colours and their colour bar."""
    from matplotlib.ticker import MaxNLocator

    images = [image for _, _, image in drawn]
    noisy = [len(drawn) > 1 and title.endswith(f", {_ROW_TITLES['raw']}") for _, title, _ in drawn]
    low, high = _limits(images, noisy)
    style = {"cmap": cmap, "vmin": low, "vmax": high, "interpolation": "nearest"}
    for ax, title, image in drawn:
        shown = ax.imshow(image, extent=(0, image.shape[1] * pixel[1], image.shape[0] * pixel[0], 0), **style)
        ax.set_title(title, fontsize="medium")
    style = {"location": "bottom", "aspect": 14, "pad": 0.02, "ticks": MaxNLocator(4)}
    beyond = any((image < low).any() for image in images), any((image > high).any() for image in images)
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]
    bar = ax.figure.colorbar(shown, ax=below, extend=extend, **style)
    bar.set_label(label, fontsize="small")
    bar.ax.tick_params(labelsize="small")


def _limits(images, noisy):
    """Colour limits of images that share them, without the outermost pixels of each, more of ``noisy`` ones."""
    tops = [100 - (_CLIPPED_NOISE_PERCENT if is_noisy else _CLIPPED_PERCENT) for is_noisy in noisy]
    finite = [(image[np.isfinite(image)], top) for image, top in zip(images, tops, strict=True)]
    finite = [(image, top) for image, top in finite if image.size] or [(np.zeros(1), 100)]
    ends = np.array([np.percentile(image, (_CLIPPED_PERCENT, top)) for image, top in finite])
    if not ends[:, 0].min() < ends[:, 1].max():
        # next to nothing but one value, as in a map of a trace element
        ends = np.array([(image.min(), image.max()) for image, _ in finite])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    return (low, high) if low < high else (low, low + 1.0)


def _scale_bar(ax, units: str):
    """Add a scale bar of at most 0.3 of the width: in metres, reciprocal metres or pixels; other units as they are."""
    from matplotlib_scalebar import dimension
    from matplotlib_scalebar.scalebar import ScaleBar

    units = _UNITS.get(units.lower(), units)
    dimensions = (dimension.SILengthDimension, dimension.SILengthReciprocalDimension, dimension.PixelLengthDimension)
    known = [found for found in (make() for make in dimensions) if found.is_valid_units(units)]
    style: dict[str, Any] = {"font_properties": {"size": "small"}, **_BAR}
    if not known:
        # thousandths and thousands of a unit that has no prefixes here are written as decimals
        powers = {f"{units} {power}": 10.0**power for power in (-12, -9, -6, -3, 3, 6, 9)}
        known = [dimension._Dimension(units)]
        for name, factor in powers.items():
            known[0].add_units(name, factor)
        style["scale_formatter"] = lambda value, name: f"{value * powers.get(name, 1):g} {units}"
    ax.add_artist(ScaleBar(1, **style, **{"units": units, "dimension": known[0]}))


def _term_title(title, weight, weights):
    """``"HAADF, weight 1"``; the penalty of the calibrated method by its name."""
    if weight is None:
        return title
    kind = weights.get("regularization") if weight == "lambda_reg" else None
    if not np.any(weights.get(weight)) or (weight == "lambda_reg" and kind == "none"):
        return f"{title}: off"
    values = ", ".join(f"{value:.4g}" for value in np.atleast_1d(weights[weight]))
    return f"{title}{f' {kind!r}' if kind else ''}, weight {values}"


def _label(ax, title, ylabel):
    ax.set_title(title, fontsize="medium")
    ax.set_ylabel(ylabel)
    ax.set_xlabel("iteration (0 = start)")
    ax.margins(x=0.02)
    ax.xaxis.get_major_locator().set_params(integer=True)
