"""
EELS: from edges to fused maps
==============================

Name the edges, and fuse the spectrum image as it is: ``eels.fuse(haadf, edges=["Al_K", "Cu_L3"])``. The background
before each edge is fitted by a power law and subtracted.

The spectra are simulated, of Al2Cu beside aluminium, so that the true maps are known.
"""

import exspy
import numpy as np

from hyperspy_fusion import data

phantom = data.interface((48, 48))
_, haadf = phantom.signals()

# %%
# A spectrum image
# ----------------
# Replace these lines by ``haadf, eels = hyperspy_fusion.scan(path)``.

energies = 800 + 2.0 * np.arange(500)
expected = np.broadcast_to(2e3 * (energies / 800) ** -3.0, (48, 48, 500)).copy()
for edge, atoms in zip(("Al_K", "Cu_L3"), phantom.truth, strict=True):
    component = exspy.components.EELSCLEdge(edge, GOS="hydrogenic")
    component.set_microscope_parameters(200, 29, 36, 2.0)  # kV, mrad, mrad, eV
    expected += atoms[..., None] * component.function(energies)
eels = exspy.signals.EELSSpectrum(np.random.default_rng(0).poisson(expected).astype(float))
eels.axes_manager[-1].offset, eels.axes_manager[-1].scale, eels.axes_manager[-1].units = 800, 2, "eV"
eels.set_microscope_parameters(beam_energy=200, convergence_angle=29, collection_angle=36)
for axis, of in zip(eels.axes_manager.navigation_axes, haadf.axes_manager.signal_axes, strict=True):
    axis.scale, axis.units = of.scale, of.units

# %%
# Fuse
# ----

fused = eels.fuse(haadf, edges=["Al_K", "Cu_L3"])
fused.plot_fusion()

# %%
# The composition of both sides
# -----------------------------
# Al2Cu has 33.3 at.% of copper. Cross-sections of the edges come from exspy.

percent = fused.atomic_percent("cross_section")
left = phantom.truth[1] > 0.5 * phantom.truth[1].max()
for name, side in {"Al2Cu": left, "Al": ~left}.items():
    print(
        f"{name:5s}",
        *(f"{element} {np.nanmean(percent.get_map(element).data[side]):.1f} at.%" for element in ("Al", "Cu")),
    )
