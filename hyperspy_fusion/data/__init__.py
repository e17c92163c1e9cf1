"""Scans to try: phantoms, whose true element maps are known, and measured files of public repositories."""

from hyperspy_fusion.data.files import co3o4_mn3o4, dysco3, fetch
from hyperspy_fusion.data.phantoms import (
    HAADF_EXPONENT,
    PHANTOMS,
    Phantom,
    atomic_columns,
    core_shell,
    gradient_alloy,
    interface,
    psnr,
)
from hyperspy_fusion.data.spectra import SpectralPhantom, overlapping_lines

__all__ = [
    "HAADF_EXPONENT",
    "PHANTOMS",
    "Phantom",
    "SpectralPhantom",
    "atomic_columns",
    "co3o4_mn3o4",
    "core_shell",
    "dysco3",
    "fetch",
    "gradient_alloy",
    "interface",
    "overlapping_lines",
    "psnr",
]
