"""Fuse a HAADF image with EDS/EELS element maps of the same scan, in HyperSpy.

Importing this package gives every HyperSpy signal the method ``fuse``; see :func:`hyperspy_fusion.fuse`.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version

__version__ = _version("hyperspy_fusion")

# name -> module it is fetched from on first use: numba and matplotlib are imported when they are needed
_PUBLIC = {
    "ElementMaps": "hyperspy_fusion.signals",
    "FusedMultiModal": "hyperspy_fusion.model",
    "element_maps": "hyperspy_fusion.maps.sources",
    "fuse": "hyperspy_fusion.model",
    "match_haadf": "hyperspy_fusion.registration",
    "scan": "hyperspy_fusion.io.scan",
}
__all__ = ["ElementMaps", "FusedMultiModal", "data", "element_maps", "fuse", "match_haadf", "scan"]


def __dir__():
    return sorted([*__all__, "__version__"])


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(_import_module(_PUBLIC[name]), name)
    if name == "data":
        return _import_module("hyperspy_fusion.data")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_import_module("hyperspy_fusion.signals.fuse_method").attach_fuse()
