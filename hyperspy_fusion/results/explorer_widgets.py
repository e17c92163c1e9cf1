"""The explorer in Jupyter: sliders, a picture, and the keywords to paste. Nothing else imports ipywidgets."""

from __future__ import annotations

import html
from functools import partial
from importlib import import_module
from typing import Any

from hyperspy_fusion.results.plot.live import LivePicture
from hyperspy_fusion.results.plot.panels import UNCALIBRATED

# pixels of a side of the crops to choose from, and between their places
_SIZES = (32, 64, 96, 128, 192, 256)
_STEP = 4


def explorer_widget(obj, display=True, **_: Any) -> dict | None:
    """Show the widgets of an :class:`~.explorer.Explorer`, or return them as ``{"widget": ..., "wdict": ...}``.

    HyperSpy calls it for the toolkey ``hyperspy_fusion.Explorer``. ``wdict`` has a slider for each front setting by
    its name, ``size``, ``left`` and ``top`` of the crop, ``reset``, ``picture``, ``status`` and ``keywords``.

    Raises
    ------
    ImportError
        Where ipywidgets is not installed.
    """
    try:
        widgets = import_module("ipywidgets")
    except ImportError:
        raise ImportError(
            'The explorer needs ipywidgets, which are not installed: run `pip install "hyperspy_fusion[gui-jupyter]"`.'
        ) from None
    if obj.panel is None:  # all views of an explorer are of one panel, which observes it once
        obj.panel = ExplorerPanel(obj, widgets)
    panel = obj.panel
    if not display:
        return {"widget": panel.widget, "wdict": panel.wdict}
    import_module("IPython.display").display(panel.widget)
    return None


class ExplorerPanel:
    """The widgets of one explorer; each sets the explorer, and shows what the explorer has become."""

    def __init__(self, explorer, widgets):
        self._explorer, self._figure, self._is_busy = explorer, None, False
        look = {"style": {"description_width": "165px"}, "layout": {"width": "auto"}}  # each has its own
        slider = partial(widgets.SelectionSlider, continuous_update=False, **look)
        choice = partial(widgets.Dropdown, **look)
        self._settings = {}
        for control in explorer.controls():
            of = choice if all(isinstance(value, str) for value in control.values) else slider
            start = {"options": _options(control), "value": getattr(explorer.settings, control.name)}
            self._settings[control.name] = of(description=f"{control.label} ({control.name})", **start)
        self._crop = {
            name: of(options=[("", 0)], description=label)
            for name, label, of in (
                ("size", "crop", choice),
                ("left", "left edge", slider),
                ("top", "top edge", slider),
            )
        }
        reset = widgets.Button(description="Reset", tooltip="The settings that the explorer began with")
        status, picture = widgets.HTML(), widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        keywords = widgets.Textarea(rows=7, layout=widgets.Layout(width="auto"))
        self.wdict = {**self._settings, **self._crop}
        self.wdict |= {"reset": reset, "status": status, "picture": picture, "keywords": keywords}
        title = widgets.HTML(f"<b>Settings, method {explorer.method!r}</b>")
        paste = widgets.HTML("<b>To paste</b>")
        left = [title, *self._settings.values(), *self._crop.values(), reset, status, paste, keywords]
        side = widgets.VBox(left, layout=widgets.Layout(width="370px", flex="0 0 auto", margin="0 12px 0 0"))
        shown = widgets.Box([picture], layout=widgets.Layout(flex="1 1 540px", overflow="hidden"))
        self.widget = widgets.HBox([side, shown], layout=widgets.Layout(flex_flow="row wrap", align_items="flex-start"))
        for name, one in self._settings.items():
            one.observe(lambda change, name=name: self._set(**{name: change["new"]}), "value")
        for name, one in self._crop.items():
            one.observe(lambda change, name=name: self._move(name, change["new"]), "value")
        reset.on_click(lambda _: self._set(**vars(explorer.first)))
        explorer.observe(lambda _: self._show(), "fitted")
        self._show()

    def _set(self, **changes):
        """Set the explorer; what it refuses is shown, and the sliders go back."""
        if self._is_busy:
            return
        try:
            self._explorer.set(**changes)
        except (Exception, KeyboardInterrupt) as error:
            self._show()
            words = html.escape(str(error) or type(error).__name__)
            self.wdict["status"].value = f'<span style="color:#b00020">{words}</span>'

    def _move(self, name, value):
        """Move the crop, or change its size about its middle."""
        (top, bottom), (left, right) = ((side.start, side.stop) for side in self._explorer.window)
        height, width = bottom - top, right - left
        if name == "size":
            (ny, nx), middle = self._explorer.shape, (top + height // 2, left + width // 2)
            height, width = value
            top, left = (
                min(max(m - size // 2, 0), most - size) for m, size, most in zip(middle, value, (ny, nx), strict=True)
            )
        top, left = (value if name == "top" else top), (value if name == "left" else left)
        self._set(crop=(left, left + width, top, top + height))

    def _show(self):
        """Bring the widgets to what the explorer is."""
        explorer, fitted, self._is_busy = self._explorer, self._explorer.fitted, True
        try:
            for control in explorer.controls():
                one = self._settings[control.name]
                _choose(one, _options(control), getattr(explorer.settings, control.name))
            self._show_crop()
            ratios = zip(fitted.elements, fitted.total_ratios, strict=True)
            totals = ", ".join(f"{element} {ratio:.2f}" for element, ratio in ratios)
            early = "" if fitted.is_complete else ", ended before the maps had settled"
            found = (
                f"{fitted.n_iter} iterations in {fitted.seconds:.2f} s{early}",
                f"Totals, fused over measured: {totals}",
            )
            self.wdict["status"].value = "<br>".join(found)
            self.wdict["keywords"].value = repr(explorer)
            self.wdict["picture"].value = self._picture(fitted)
        finally:
            self._is_busy = False

    def _show_crop(self):
        y, x = self._explorer.axes
        rows, columns = self._explorer.window
        size = rows.stop - rows.start, columns.stop - columns.start
        sizes = sorted({size, *(tuple(min(s, most) for most in self._explorer.shape) for s in _SIZES)})
        places = {"left": (columns, x), "top": (rows, y)}
        options: dict[str, Any] = {"size": ([(_extent(h, w, y, x), (h, w)) for h, w in sizes], size)}
        for name, (side, axis) in places.items():
            last = axis["size"] - (side.stop - side.start)
            starts = sorted({side.start, last, *range(0, last + 1, _STEP)})
            options[name] = [(_place(start, axis), start) for start in starts], side.start
        for name, (given, value) in options.items():
            _choose(self._crop[name], given, value)
            self._crop[name].layout.display = None if len(given) > 1 else "none"

    def _picture(self, fitted):
        """The picture of a preview; another crop has another figure."""
        explorer, window = self._explorer, self._explorer.window
        fused = fitted.maps[explorer.drawn]
        if self._figure is None or self._figure[0] != window:
            y, x = explorer.axes
            frame = {"scale": (y["scale"], x["scale"]), "units": str(x["units"])}
            elements, measured = [fitted.elements[i] for i in explorer.drawn], fitted.measured[explorer.drawn]
            arrays = fitted.haadf, fitted.residual, measured, fused
            self._figure = window, LivePicture(*arrays, elements, explorer.quantity, **frame)
        return self._figure[1].png(fitted.residual, fused, fitted.history)


def _choose(widget, options, value):
    """Give a slider its options, where they have changed, and its value."""
    if list(widget.options) != options:
        widget.options = options
    widget.value = value


def _options(control):
    """``(text, value)`` of a slider; a value that is no number stands first."""
    return [(_text(value), value) for value in control.values]


def _text(value):
    if not isinstance(value, int | float | str):
        return "as given"
    return value if isinstance(value, str) else f"{value:.4g}"


def _extent(height, width, y, x):
    """Width and height of a crop in pixels, and in the units of its axes."""
    pixels = f"{width} x {height} px"
    if not _is_calibrated(x):
        return pixels
    return f"{pixels} ({abs(width * x['scale']):.3g} x {abs(height * y['scale']):.3g} {x['units']})"


def _place(start, axis):
    """The place of a pixel in the units of its axis."""
    if not _is_calibrated(axis):
        return f"{start} px"
    return f"{axis['offset'] + start * axis['scale']:.4g} {axis['units']}"


def _is_calibrated(axis):
    return bool(axis["scale"]) and str(axis["units"]).strip().lower() not in UNCALIBRATED
