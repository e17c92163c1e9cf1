"""The picture of the explorer: drawn once for a crop; what a preview changes is then drawn over it."""

from __future__ import annotations

import io

import numpy as np

from hyperspy_fusion.results.plot.panels import COLOURS, View, limits, scale_bar

# pixels of the picture per inch
_DPI = 90
# inches: width of a panel, between panels, above them for titles, below them for colour bars, and of the curve
_PANEL, _BETWEEN, _TITLE, _BAR = 2.15, 0.18, 0.3, 0.6
_CURVE, _BELOW_CURVE, _LEFT_OF_CURVE, _MARGIN = 1.1, 0.5, 0.85, 0.12


class LivePicture:
    """Measured over fused maps, the HAADF image over its residual, and the convergence below, as a PNG picture.

    Colours stay those of the first preview, so that equal colours are equal values from one to the next.

    Parameters
    ----------
    haadf, residual : numpy.ndarray
        (ny, nx) image, and it minus the modelled one.
    measured, fused : numpy.ndarray
        (n, ny, nx) maps.
    elements : list of str
        n symbols.
    quantity : str
        Label of the colour bars of the maps.
    frame
        Scale and units, as for :meth:`~.panels.View.of`.
    """

    def __init__(self, haadf, residual, measured, fused, elements, quantity, **frame):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        view = View.of(haadf.shape, **frame)
        high = _PANEL * view.size(haadf.shape)
        n = 1 + len(elements)
        self._size = 2 * _MARGIN + n * _PANEL + (n - 1) * _BETWEEN, 2 * (_TITLE + high) + _BAR + _TITLE + _CURVE
        self._size = self._size[0], self._size[1] + _BELOW_CURVE
        self._canvas = FigureCanvasAgg(Figure(self._size, dpi=_DPI))
        pairs = [("HAADF", haadf, "HAADF - modelled", residual)]
        pairs += [
            (f"{e}, measured", raw, f"{e}, preview", new) for e, raw, new in zip(elements, measured, fused, strict=True)
        ]
        self._images = []
        for k, (title, above, name, below) in enumerate(pairs):
            left, top = _MARGIN + k * (_PANEL + _BETWEEN), _TITLE
            axes = [self._axes(left, top, _PANEL, high), self._axes(left, top + high + _TITLE, _PANEL, high)]
            for ax, words in zip(axes, (title, name), strict=True):
                ax.set_title(words, fontsize="medium")
            kind = "map" if k else "signed"
            images = [above, below] if k else [below]
            low, most = limits(images, [True, False][: len(images)])
            low, most = (low, most) if k else (-max(-low, most), max(-low, most))
            view.show(axes[0], above, **({"cmap": COLOURS[kind], "vmin": low, "vmax": most} if k else {"cmap": "gray"}))
            scale_bar(axes[0], view.units)
            self._images.append(view.show(axes[1], below, cmap=COLOURS[kind], vmin=low, vmax=most))
            bar = self._axes(left + 0.05, top + 2 * high + _TITLE + 0.08, _PANEL - 0.1, 0.1)
            self._colour_bar(bar, self._images[-1], quantity if k else "intensity")
        curve_top = self._size[1] - _BELOW_CURVE - _CURVE
        self._curve = self._axes(_LEFT_OF_CURVE, curve_top, self._size[0] - _LEFT_OF_CURVE - 3 * _MARGIN, _CURVE)
        self._curve.set_title("Convergence", fontsize="medium")
        self._curve.set_xlabel("iteration (0 = start)", fontsize="small")
        self._curve.tick_params(labelsize="small")
        self._curve.locator_params(axis="x", integer=True)
        self._curve.margins(x=0.02)
        (self._line,) = self._curve.plot([], [], ".-", color="C0", markersize=4)
        for artist in (*self._images, self._curve):
            artist.set_animated(True)  # drawn by `png` alone
        self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(self._canvas.figure.bbox)

    def png(self, residual, fused, history) -> bytes:
        """The picture with a residual (ny, nx), fused maps (n, ny, nx), and the history of their fit."""
        from matplotlib.image import imsave

        self._canvas.restore_region(self._background)
        for image, data in zip(self._images, [residual, *fused], strict=True):
            image.set_data(data)
            image.axes.draw_artist(image)
        self._draw_curve(history)
        picture = io.BytesIO()
        imsave(picture, np.asarray(self._canvas.buffer_rgba()), format="png", pil_kwargs={"compress_level": 1})
        return picture.getvalue()

    def _axes(self, left, top, width, height):
        """Axes at a place in inches, from the left and from the top."""
        w, h = self._size
        return self._canvas.figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))

    def _colour_bar(self, ax, image, label):
        from matplotlib.ticker import MaxNLocator

        figure = self._canvas.figure
        bar = figure.colorbar(image, cax=ax, orientation="horizontal", extend="both", ticks=MaxNLocator(4))
        bar.set_label(label, fontsize="small", labelpad=1)
        bar.ax.tick_params(labelsize="small", pad=2)

    def _draw_curve(self, history):
        """The duality gap of a convex method, else the objective."""
        from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

        ax, has_gap = self._curve, history.gap is not None
        values = np.asarray(history.gap if has_gap else history.total)
        iteration = np.arange(len(values)) if history.iteration is None else np.asarray(history.iteration)
        shown = np.isfinite(values) & (values > 0 if has_gap else True)
        self._line.set_data(iteration[shown], values[shown])
        ax.set_ylabel("duality gap" if has_gap else "objective", fontsize="small")
        is_log = bool(has_gap and shown.any())
        ax.set_yscale("log" if is_log else "linear")
        ax.relim()
        ax.autoscale_view()
        if is_log:
            few_decades = values[shown].max() < 50 * values[shown].min()
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
            ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            ax.yaxis.set_minor_formatter(NullFormatter())
        ax.draw(self._canvas.get_renderer())
