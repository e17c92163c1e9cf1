"""Registered signal classes, and the ``fuse`` method of every HyperSpy signal.

The classes are imported when HyperSpy or the user first asks for one: they bring dask with them.
"""

__all__ = ["ElementMaps", "LazyElementMaps"]


def __dir__():
    return sorted([*globals(), *__all__])


def __getattr__(name):
    if name in __all__:
        from hyperspy_fusion.signals import element_maps

        return getattr(element_maps, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
