"""Figures of maps: measured over fused ones, grids of settings, and colour composites."""

from __future__ import annotations

from typing import Any

import numpy as np

from hyperspy_fusion.fusion.checks import default_errstate
from hyperspy_fusion.results.plot.panels import Panel, View, draw_columns, limits, new_figure, scale_bar

_ROW_TITLES = {"raw": "measured", "errors": "standard error"}
# a warm, a greenish and a blue channel, which the colour-blind can distinguish, and which add up to white
_CHANNELS = ((1.0, 0.35, 0.0), (0.0, 0.65, 0.4), (0.15, 0.4, 1.0))


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
    beside: dict | None = None,
    scale: float | tuple | None = None,
    units: str | None = None,
    offset: tuple = (0.0, 0.0),
    crop: tuple | None = None,
    quantity: str | None = None,
    same_limits: bool = True,
    per_row: int | None = None,
    cmap: str | None = None,
    flat: Any = (),
    row_titles: dict | None = None,
    figure=None,
) -> np.ndarray:
    """Measured maps over fused maps, one column per element, after a column with both HAADF images.

    The maps of an element share their colours, and so do the two HAADF images, by the limits of the measured one: equal
    colours are equal values. The
    brightest and darkest 0.2 % of the pixels of a map, and the brightest 2 % of a measured map beside a fused or true
    one, may lie outside; the colour bar then ends in an arrow.

    Maps and their `errors` are ``(n_elements, ny, nx)``, images ``(ny, nx)``; those that are None are not drawn.
    `beside` are further maps by the title of their row, below the fused ones.
    `scale` is the length of a pixel in `units`, or (height, width) of it; None is uncalibrated. `offset` is the
    position (y, x) of the first pixel. `crop` is ``(left, right, top, bottom)`` as in HyperSpy: integers are pixels,
    floats positions, and the ends are excluded. `quantity` labels the colour bars. With `same_limits=False` every panel
    has its own colours. Columns are wrapped after `per_row`, by default where more than six would stand side by side.
    `cmap` is the colour map of maps. Those of the elements in `flat` are grey, and their titles say that they show no
    more than their mean. The axes returned are ``(rows, columns)``, rows raw, fused, beside, truth, errors.
    """
    others = {f"beside_{title}": maps for title, maps in (beside or {}).items()}
    asked = {"raw": raw, "fused": fused, **others, "truth": truth, "errors": errors}
    rows, images = _checked_images(asked, {"HAADF": haadf, "modelled HAADF": modelled_haadf}, elements)
    names = [name for name in asked if name in rows or (name == "raw" and haadf is not None)]
    view = View.of(next(iter(rows.values())).shape[1:], scale, units, offset, crop)
    titles = _ROW_TITLES | dict(zip(others, beside or (), strict=True)) | (row_titles or {})
    columns = _columns(rows, images, names, elements, titles, flat)
    # "X-ray counts ()", as HyperSpy writes a quantity without unit, loses its brackets
    label = (quantity or "").replace("()", "").strip() or "intensity"
    labels = ["intensity"] * bool(images) + [label] * len(elements)
    return draw_columns(
        columns, view, labels=labels, per_row=per_row, same_limits=same_limits, cmap=cmap, figure=figure
    )


def _columns(rows, images, names, elements, titles, flat):
    """Per column its panels row by row; None for no image."""
    by_row = {"raw": "HAADF", "fused": "modelled HAADF"}
    columns = []
    if images:
        shown = [by_row.get(name, "") for name in names]
        columns.append([Panel(name, images[name], "image") if name in images else None for name in shown])
    for i, element in enumerate(elements):
        kinds = {"errors": "error"} | (dict.fromkeys(("raw", "fused"), "flat") if element in flat else {})
        note = ": mean only" if element in flat else ""
        columns.append(
            [
                Panel(f"{element}, {titles.get(n, n)}{note}", rows[n][i], kinds.get(n, "map"), n == "raw")
                if n in rows
                else None
                for n in names
            ]
        )
    return columns


@default_errstate
def plot_grid(
    columns: list,
    labels: list,
    *,
    scale=None,
    units: str | None = None,
    offset: tuple = (0.0, 0.0),
    crop: tuple | None = None,
    per_row: int | None = None,
    cmap: str | None = None,
    figure=None,
) -> np.ndarray:
    """Columns of panels ``(title, image, kind)``, None for an empty one.

    The kinds are ``"map"``, ``"image"``, ``"signed"`` (colours alike on both sides of 0) and ``"error"``. Panels of one
    kind in a column share their colours. ``labels`` are those of the colour bars of each column, or ``{kind: label}``.
    All else is as for :func:`plot_fusion`. The axes returned are ``(rows, columns)``.
    """
    columns = [[None if panel is None else Panel(*panel) for panel in column] for column in columns]
    shape = next(panel.image.shape for column in columns for panel in column if panel is not None)
    view = View.of(shape, scale, units, offset, crop)
    return draw_columns(columns, view, labels=labels, per_row=per_row, cmap=cmap, figure=figure)


@default_errstate
def plot_rgb(
    maps: np.ndarray,
    elements: list,
    *,
    channel_limits: dict | None = None,
    scale=None,
    units: str | None = None,
    offset: tuple = (0.0, 0.0),
    crop: tuple | None = None,
    quantity: str | None = None,
    axes=None,
) -> Any:
    """Up to three maps ``(n, ny, nx)`` as colours of one image, with a legend of their colours and limits.

    `channel_limits` are ``{element: (low, high)}``, the values that are black and fully coloured; by default 0 and the
    brightest value but 0.2 % of the pixels. All else is as for :func:`plot_fusion`. Returns the axes.
    """
    from matplotlib.patches import Patch

    view = View.of(maps.shape[1:], scale, units, offset, crop)
    given = {e: ends for e, ends in (channel_limits or {}).items() if ends is not None}
    ends = [given[e] if e in given else _channel_limits(m[view.window]) for e, m in zip(elements, maps, strict=True)]
    mixed = np.zeros((*maps.shape[1:], 3))
    for image, (low, high), colour in zip(maps, ends, _CHANNELS, strict=False):
        part = np.clip((np.nan_to_num(image) - low) / (high - low), 0, 1)
        mixed += part[..., None] * np.array(colour)
    ax = axes
    if ax is None:
        ax = new_figure((4.6, min(4.6 * view.size(maps.shape[1:]), 8.0) + 0.7)).subplots()
    view.show(ax, np.clip(mixed, 0, 1))
    scale_bar(ax, view.units)
    label = (quantity or "").replace("()", "").strip()
    names = [f"{e}, {low:.3g} to {high:.3g}" for e, (low, high) in zip(elements, ends, strict=True)]
    handles = [Patch(color=colour, label=name) for name, colour in zip(names, _CHANNELS, strict=False)]
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.01), "fontsize": "small", "frameon": False}
    ax.legend(handles=handles, title=label or None, title_fontsize="small", ncols=len(handles), **below)
    return ax


def _channel_limits(image):
    high = limits([image], [False])[1]
    return 0.0, high if high > 0 else 1.0


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
            name = name.removeprefix("beside_")
            raise ValueError(f"{name} has shape {value.shape}, expected {expected} as of the {leading} maps.")
    return rows, images
