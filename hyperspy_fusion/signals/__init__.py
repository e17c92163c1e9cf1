"""The registered signal classes, which may be imported from here, and the ``fuse`` method of every HyperSpy signal.

The classes are imported when HyperSpy or the user first asks for one: they bring dask with them.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperspy_fusion.signals.element_maps import ElementMaps
    from hyperspy_fusion.signals.lazy_element_maps import LazyElementMaps

_MODULES = {"ElementMaps": "element_maps", "LazyElementMaps": "lazy_element_maps"}
__all__ = ["ElementMaps", "LazyElementMaps"]


def __dir__():
    return sorted([*globals(), *__all__])


def __getattr__(name):
    if name in _MODULES:
        return getattr(_import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
