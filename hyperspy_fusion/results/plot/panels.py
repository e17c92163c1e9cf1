"""Panels that all figures share: images with scale bars and colour bars, crops, limits of colours."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

# other names of a unit, in small letters, for those of matplotlib-scalebar; the second is the Greek letter
_UNITS = {"micron": "µm", "\u03bcm": "µm", "angstrom": "Å", "\u212b": "Å"}
UNCALIBRATED = ("", "px", "pixel", "pixels", "none", "<undefined>")
_BAR: dict[str, Any] = {"location": "lower left", "length_fraction": 0.3, "border_pad": 0.4}
_BAR |= {"color": "white", "box_color": "black", "box_alpha": 0.4}

# shot noise puts a few pixels far above the rest, which would darken the whole map, and the fused one beside it
_CLIPPED_PERCENT = 0.2
_CLIPPED_NOISE_PERCENT = 2.0

# colours of a kind of panel, which the colour-blind can distinguish
COLOURS = {"map": "inferno", "image": "gray", "signed": "PuOr_r", "error": "viridis", "flat": "gray"}
_MAIN = ("map", "image", "flat")
# panels in a row of a figure at most, unless another number is given
_PER_ROW = 6
# characters of a title beside another one
_TITLE = 28


class Panel(NamedTuple):
    """One image, its title, and what it shows: those of one kind in a column share their colours."""

    title: str
    image: np.ndarray
    kind: str = "map"
    is_noisy: bool = False


@dataclass(frozen=True)
class View:
    """How images lie: height and width of a pixel, its unit, and the slices (y, x) to show."""

    pixel: tuple
    units: str
    window: tuple

    @classmethod
    def of(cls, shape, scale=None, units=None, offset=(0.0, 0.0), crop=None):
        """Of images (ny, nx); as for :func:`~.maps.plot_fusion`."""
        if scale is None or not np.all(np.isfinite(scale) & (np.asarray(scale) != 0)):
            scale, offset = None, (0.0, 0.0)
        size, name = pixel_of(scale, units)
        return cls(size, name, window_of(crop, shape, 1.0 if scale is None else scale, offset))

    def show(self, ax, image, **style):
        """Draw an image (ny, nx), or (ny, nx, 3) of colours, without axes; the artist."""
        image = image[self.window]
        height, width = image.shape[0] * self.pixel[0], image.shape[1] * self.pixel[1]
        ax.set_axis_off()
        return ax.imshow(image, extent=(0, width, height, 0), interpolation="nearest", **style)

    def size(self, shape):
        """Height of a panel of an image (ny, nx) over its width, within reason."""
        ny, nx = np.empty(shape, bool)[self.window].shape
        return min(max(ny * self.pixel[0] / (nx * self.pixel[1]), 0.4), 2.5)


def draw_columns(columns, view, *, labels, per_row=None, same_limits=True, cmap=None, figure=None) -> np.ndarray:
    """Axes (rows, columns) of columns of panels, None for an empty one.

    They are wrapped: a figure has ``per_row`` columns beside each other at most. ``labels`` of the colour bars are one
    for each column. ``cmap`` is that of maps.
    """
    n_rows, number = len(columns[0]), len(columns)
    n_blocks = -(-number // (per_row or _PER_ROW))
    width = min(per_row, number) if per_row else -(-number // n_blocks)
    shape = next(panel.image.shape for column in columns for panel in column if panel is not None)
    if figure is None:
        height = (min(2.4 * view.size(shape), 4.0) + 0.3) * n_rows + 0.7 * _number_of_bars(columns, same_limits)
        figure = new_figure((2.4 * max(width, 2), height * n_blocks))
    grid = figure.subplots(n_rows * n_blocks, width, squeeze=False)
    axes = np.empty((n_rows, number), object)
    for k in range(n_blocks * width):
        block, at = divmod(k, width)
        own = grid[block * n_rows : (block + 1) * n_rows, at]
        if k < number:
            axes[:, k] = own
        else:
            for ax in own:
                ax.remove()
    is_main = [any(panel is not None and panel.kind in _MAIN for panel in row) for row in zip(*columns, strict=True)]
    for own, panels, label in zip(axes.T, columns, labels, strict=True):
        _draw_column(own, panels, view, label, same_limits, is_main, COLOURS | ({"map": cmap} if cmap else {}))
    return axes


def _number_of_bars(columns, same_limits):
    """Colour bars below each other in the column that has most."""
    kinds = [[panel.kind for panel in column if panel is not None] for column in columns]
    return max(len(set(own) if same_limits else own) for own in kinds)


def _draw_column(axes, panels, view, label, same_limits, is_main, colours):
    """Images from top to bottom, and the colour bars of each kind below."""
    for ax in axes:
        ax.set_axis_off()
    drawn = [(ax, panel) for ax, panel in zip(axes, panels, strict=True) if panel is not None]
    for kind in dict.fromkeys(panel.kind for _, panel in drawn):
        own = [item for item in drawn if item[1].kind == kind]
        # a shared bar belongs to all rows of maps, empty panels too: so it lies level with those of other columns
        below = axes[is_main].tolist() if kind in _MAIN else [ax for ax, _ in own]
        groups = [(own, below)] if same_limits or kind == "signed" else [([item], item[0]) for item in own]
        for group, under in groups:
            _draw_group(group, under, view, label, colours[kind])


def _draw_group(drawn, below, view, label, cmap):
    """Images with the same colours and their colour bar."""
    from matplotlib.ticker import MaxNLocator

    images = [panel.image[view.window] for _, panel in drawn]
    # the measured image is first; a model of it must not darken it
    leading = drawn[:1] if drawn[0][1].kind == "image" else drawn
    low, high = limits(images[: len(leading)], [len(drawn) > 1 and panel.is_noisy for _, panel in leading])
    if drawn[0][1].kind == "signed":
        high = max(abs(low), abs(high))
        low = -high
    for ax, panel in drawn:
        shown = view.show(ax, panel.image, cmap=cmap, vmin=low, vmax=high)
        ax.set_title(textwrap.fill(panel.title, _TITLE), fontsize="medium")
        scale_bar(ax, view.units)
    style = {"location": "bottom", "aspect": 14, "pad": 0.02, "ticks": MaxNLocator(4)}
    beyond = any((image < low).any() for image in images), any((image > high).any() for image in images)
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]
    bar = drawn[0][0].figure.colorbar(shown, ax=below, extend=extend, **style)
    label = label[drawn[0][1].kind] if isinstance(label, dict) else label
    bar.set_label(" ".join(filter(None, [label, _factor_of(bar)])), fontsize="small")
    bar.ax.tick_params(labelsize="small")


def _factor_of(bar):
    """The power of ten that the ticks of a colour bar leave out, which Matplotlib writes beside the label."""
    from matplotlib.ticker import ScalarFormatter

    formatter = ScalarFormatter(useOffset=False, useMathText=True)
    bar.formatter = formatter
    formatter.set_locs(bar.get_ticks())
    bar.ax.xaxis.get_offset_text().set_visible(False)
    factor = formatter.get_offset()
    return f"({factor})" if factor else ""


def pixel_of(scale, units):
    """Height and width of a pixel, and the unit to write: pixels where anything is missing."""
    if scale is None or not isinstance(units, str) or units.strip().lower() in UNCALIBRATED:
        return (1.0, 1.0), "px"
    height, width = np.broadcast_to(np.abs(np.asarray(scale, float)), 2)
    return (float(height), float(width)), units.strip()


def window_of(crop, shape, scale, offset):
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


def new_figure(size):
    import matplotlib.pyplot as plt

    return plt.figure(figsize=size, layout="constrained")


def as_png(draw) -> bytes:
    """The figure of the axes that a function draws, as a .png; it is not shown, and no figure of it stays open."""
    from io import BytesIO

    import matplotlib.pyplot as plt

    written, before = BytesIO(), plt.get_fignums()
    try:
        with plt.ioff():
            figure = np.asarray(draw(), dtype=object).flat[0].figure
        figure.savefig(written, format="png", dpi=150)
    finally:
        for number in set(plt.get_fignums()).difference(before):
            plt.close(number)
    return written.getvalue()


def limits(images, noisy):
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


def scale_bar(ax, units: str):
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
