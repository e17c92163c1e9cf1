"""The explorer: settings of a method with a live preview, shown by HyperSpy's own mechanism of user interfaces."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, NamedTuple

import traits.api as t
from hyperspy.ui_registry import add_gui_method

from hyperspy_fusion.fusion.settings import REGULARIZATIONS, SETTINGS
from hyperspy_fusion.grid.axes import scan_axes
from hyperspy_fusion.results.figures import quantity_of
from hyperspy_fusion.results.plot.panels import window_of
from hyperspy_fusion.results.preview import FRONT, SMALLEST, Preview

# pixels of a side of the crop that is shown first
_FIRST_SIZE = 128
# maps that are drawn at most, unless they are named
_MOST_DRAWN = 5
_DIGITS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
# front settings that are no keyword of `fuse`
_NO_KEYWORD = ("tv_iter",)
# settings of several frames, and of tiles, which have no effect on a crop
_OF_OTHERS = ("lambda_stack", "tile_size")


class Control(NamedTuple):
    """A front setting: its name, what it does, and the values of its slider."""

    name: str
    label: str
    values: tuple


def _steps(low, high, kind=float):
    """Round values from ``low`` to ``high``, six in each decade."""
    decades = [float(f"{digit}e{power}") for power in range(-4, 5) for digit in _DIGITS]
    return tuple(dict.fromkeys(kind(value) for value in decades if low <= value <= high and value == kind(value)))


# of each method the front settings, in the order of FRONT: what they do, and the values of their sliders
_CONTROLS = {
    "published": {
        "lambda_tv": ("smoothing", (0.0, *_steps(0.001, 10))),
        "tv_iter": ("TV iterations", _steps(1, 100, int)),
        "lambda_chem": ("maps", _steps(0.001, 1)),
        "lambda_haadf": ("image", _steps(0.001, 1)),
        "eps": ("background", _steps(0.001, 1)),
        "max_iter": ("iterations", _steps(1, 1000, int)),
    },
    "calibrated": {
        "regularization": ("penalty", REGULARIZATIONS),
        "lambda_reg": ("smoothing", _steps(0.01, 100)),
        "lambda_haadf": ("image", (0.0, *_steps(0.01, 100))),
    },
}


@add_gui_method(toolkey="hyperspy_fusion.Explorer")
class Explorer(t.HasTraits):
    """Settings of a method, a crop, and the preview of both.

    Parameters
    ----------
    measured
        A :class:`~hyperspy_fusion.methods.fit.Measured`.
    method : {"published", "calibrated"}
        Of the previews.
    settings : PublishedSettings or CalibratedSettings
        To begin with.
    maps : ElementMaps
        The measured maps, for their axes and what their numbers are.
    elements : list of str, optional
        To draw; None draws the first five.
    crop : tuple, optional
        ``(left, right, top, bottom)`` to begin with, integers in pixels or floats in the units of the axes. None takes
        at most 128 x 128 pixels about the middle, or elsewhere where those of a map are not valid.
    num_workers : int, optional
        Threads; None for all.

    Attributes
    ----------
    settings, first
        Those in effect, now and at the beginning.
    window : tuple of slice
        The crop (y, x) in pixels.
    fitted : CropFit
        The preview.
    """

    settings = t.Any()
    window = t.Any()
    fitted = t.Any()
    panel = None  # its widgets, once they are shown

    def __init__(self, measured, method, settings, maps, elements=None, crop=None, num_workers=None):
        super().__init__()
        self.method = method
        self.axes, self.quantity = scan_axes(maps), quantity_of(maps)
        self._preview = Preview(measured, method, num_workers)
        self.shape = self._preview.shape
        self.drawn = _drawn(elements, self._preview.elements)
        window = self._preview.window_with_pixels(_FIRST_SIZE) if crop is None else self._window_of(crop)
        self._keep(settings, window)
        self.first = self.settings

    def set(self, crop: tuple | None = None, **values: Any) -> None:
        """Change settings, or the crop, and find the preview of them.

        Parameters
        ----------
        crop : tuple, optional
            ``(left, right, top, bottom)``, as at the beginning.
        **values
            Of settings of the method, by name.

        Raises
        ------
        ValueError, TypeError, FloatingPointError
            For a value that is not allowed, a setting of stacks or tiles, a crop of fewer than 16 pixels or without
            valid ones, and a fit that diverges. All then stay as they were.
        """
        known = [field.name for field in fields(self.settings)]
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"{unknown[0]} is no setting of method={self.method!r}: take one of {', '.join(known)}.")
        if other := [name for name in _OF_OTHERS if name in values and values[name] != getattr(self.settings, name)]:
            raise ValueError(
                f"{other[0]} is {values[other[0]]!r}, and a preview of one crop has neither frames nor tiles: pass it "
                "to fuse."
            )
        self._keep(replace(self.settings, **values), self.window if crop is None else self._window_of(crop))

    def keywords(self) -> dict:
        """The settings as keywords of :func:`hyperspy_fusion.fuse`, to fuse the whole scan.

        Returns
        -------
        dict
            The method and its front settings, and an object ``settings`` of others that are not the defaults.
        """
        cls = SETTINGS[self.method]
        values = {field.name: getattr(self.settings, field.name) for field in fields(cls)}
        named = [name for name in FRONT[self.method] if name not in _NO_KEYWORD and values[name] is not None]
        others = {f.name: values[f.name] for f in fields(cls) if f.name not in named and values[f.name] != f.default}
        front = {"method": self.method, **{name: values[name] for name in named}}
        return front | ({"settings": cls(**others)} if others else {})

    def __repr__(self):
        words = [f"{name}={_in_code(value)}" for name, value in self.keywords().items()]
        return f"hyperspy_fusion.fuse(maps, haadf, {', '.join(words)})"

    def controls(self) -> list:
        """What the sliders show.

        Returns
        -------
        list of Control
            One for each front setting, with the value that it has among those of its slider.
        """
        return [self._control(name, *of) for name, of in _CONTROLS[self.method].items()]

    def _control(self, name, label, values):
        given = [v for v in (getattr(self.first, name), getattr(self.settings, name)) if v not in values]
        numbers = [value for value in given if isinstance(value, int | float)]
        values = sorted({*values, *numbers}) if numbers else values
        return Control(name, label, (*[v for v in given[:1] if v not in numbers], *values))

    def _window_of(self, crop):
        """Slices (y, x) of a crop."""
        y, x = self.axes
        window = window_of(crop, self.shape, (y["scale"] or 1.0, x["scale"] or 1.0), (y["offset"], x["offset"]))
        for side, size in zip(window, self.shape, strict=True):
            if side.stop - side.start < min(SMALLEST, size):
                raise ValueError(
                    f"The crop has {side.stop - side.start} pixels along one side: give at least {SMALLEST}."
                )
        return window

    def _keep(self, settings, window):
        """What is kept is fitted, and nothing else is kept."""
        fitted = self._preview.fit(settings, window)
        self.trait_set(settings=fitted.settings, window=window, fitted=fitted)


def opened(measured, method, settings, maps, elements=None, crop=None, num_workers=None, *, display=True, toolkit=None):
    """A new :class:`Explorer`, which is displayed; with ``display=False`` its widgets by toolkit.

    The automatic method is explored as the calibrated one: of its settings those that are open have the defaults.
    """
    if method == "auto":
        settings = settings.chosen() if isinstance(settings, SETTINGS["auto"]) else settings
        method = "calibrated"
    explorer: Any = Explorer(measured, method, settings, maps, elements, crop, num_workers)
    shown = explorer.gui(display=display, toolkit=toolkit)
    return explorer if display else shown


def _drawn(elements, fitted):
    """Places of the maps to draw."""
    if elements is None:
        return list(range(len(fitted)))[:_MOST_DRAWN]
    elements = [elements] if isinstance(elements, str) else list(elements)
    unknown = [element for element in elements if element not in fitted]
    if unknown or not elements:
        raise ValueError(
            f"elements is {elements}, and the maps that are fitted are {', '.join(fitted)}: name some of these."
        )
    return [fitted.index(element) for element in elements]


def _in_code(value):
    """A value as it is written in Python; of settings what is not the default."""
    if type(value) not in SETTINGS.values():
        return repr(value)
    changed = [f"{f.name}={getattr(value, f.name)!r}" for f in fields(value) if getattr(value, f.name) != f.default]
    return f"hyperspy_fusion.{type(value).__name__}({', '.join(changed)})"
