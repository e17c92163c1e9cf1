"""Phantoms: scans whose true element maps are known, made here and the same on every machine."""

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
    "core_shell",
    "gradient_alloy",
    "interface",
    "overlapping_lines",
    "psnr",
]
