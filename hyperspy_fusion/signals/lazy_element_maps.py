"""Element maps that are computed when they are needed."""

from hyperspy.signals import LazySignal2D

from hyperspy_fusion.signals.element_maps import ElementMaps


class LazyElementMaps(ElementMaps, LazySignal2D):
    """Lazy twin of :class:`ElementMaps`."""

    _lazy = True
