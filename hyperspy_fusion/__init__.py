"""Fuse a HAADF image with EDS/EELS element maps of the same scan, in HyperSpy.

Importing this package gives every HyperSpy signal the method ``fuse``; see :func:`hyperspy_fusion.fuse`.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperspy_fusion import data
    from hyperspy_fusion.api import fuse
    from hyperspy_fusion.fusion.settings import AutoSettings, CalibratedSettings, PublishedSettings
    from hyperspy_fusion.images.ptychography import ptychography
    from hyperspy_fusion.images.virtual import virtual_image
    from hyperspy_fusion.io.scan import scan
    from hyperspy_fusion.maps.sources import element_maps
    from hyperspy_fusion.maps.suggestion import suggest_elements
    from hyperspy_fusion.model import FusedMultiModal
    from hyperspy_fusion.registration.frames import plot_drift, sum_frames
    from hyperspy_fusion.registration.haadf import match_haadf
    from hyperspy_fusion.signals.element_maps import ElementMaps

__version__ = _version("hyperspy_fusion")

# name -> module it is fetched from on first use: numba and matplotlib are imported when they are needed
_PUBLIC = {
    "AutoSettings": "hyperspy_fusion.fusion.settings",
    "CalibratedSettings": "hyperspy_fusion.fusion.settings",
    "ElementMaps": "hyperspy_fusion.signals.element_maps",
    "FusedMultiModal": "hyperspy_fusion.stacks.stack_model",  # which also knows of stacks
    "PublishedSettings": "hyperspy_fusion.fusion.settings",
    "element_maps": "hyperspy_fusion.maps.sources",
    "fuse": "hyperspy_fusion.api",
    "match_haadf": "hyperspy_fusion.registration.haadf",
    "plot_drift": "hyperspy_fusion.registration.frames",
    "ptychography": "hyperspy_fusion.images.ptychography",
    "scan": "hyperspy_fusion.io.scan",
    "suggest_elements": "hyperspy_fusion.maps.suggestion",
    "sum_frames": "hyperspy_fusion.registration.frames",
    "virtual_image": "hyperspy_fusion.images.virtual",
}
__all__ = [
    "AutoSettings",
    "CalibratedSettings",
    "ElementMaps",
    "FusedMultiModal",
    "PublishedSettings",
    "data",
    "element_maps",
    "fuse",
    "match_haadf",
    "plot_drift",
    "ptychography",
    "scan",
    "suggest_elements",
    "sum_frames",
    "virtual_image",
]


def __dir__():
    return sorted([*__all__, "__version__"])


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(_import_module(_PUBLIC[name]), name)
    if name == "data":
        return _import_module("hyperspy_fusion.data")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_import_module("hyperspy_fusion.api").attach_fuse()
