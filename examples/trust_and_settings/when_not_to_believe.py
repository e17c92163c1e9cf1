"""
When not to believe a fused map
===============================

Before you believe a feature, fuse without the HAADF image: ``fused.compare_without_haadf().plot()``. What vanishes
comes from the image. Then read ``fused.report()``.

Four phantoms mislead on purpose. Their truth is known.
"""

import numpy as np

import hyperspy_fusion
from hyperspy_fusion import data

phantom = data.core_shell((96, 96), counts=4)
maps, haadf = phantom.signals()
y, x = np.mgrid[:96, :96]

# %%
# Contrast of the image that is not chemistry
# -------------------------------------------
# A band across one particle is brighter in the HAADF image alone, as a bend contour would be. It enters the map of
# platinum. Without the image it vanishes.

particle, across = np.hypot(y - 33, x - 29) < 20, abs((x - 29) - (y - 33))
banded = haadf.deepcopy()
banded.data = haadf.data + 0.3 * (particle & (across < 2))  # the brightest pixel of the image is 1
fused = hyperspy_fusion.fuse(maps, banded, method="calibrated")
fused.compare_without_haadf().plot(["Pt", "Fe"])

# %%
# No figure of the fit alone shows the band, because the maps explain the image with it nearly as well:

print(f"correlation of the measured and the modelled HAADF image: {fused.metadata.Fusion.haadf_correlation:.2f}")

# %%
# An element that is not mapped
# -----------------------------
# Platinum makes most of the contrast of the image. Without its map, the report names the place that no map explains.
# The brightness of the image is then hardly used: amounts are those of the counts. Its edges still guide the maps.

fused = hyperspy_fusion.fuse(maps[1:], haadf, method="calibrated")
fused.report()

# %%
# Counts that show nothing
# ------------------------
# Even counts without structure become smooth maps, with shapes that mean nothing. The maps are grey in the figure, and
# the report allows their mean only.

even = [image.deepcopy() for image in maps]
for image in even:
    image.data = np.random.default_rng(0).poisson(1.0, (96, 96)).astype("uint16")
fused = hyperspy_fusion.fuse(even, haadf, method="calibrated")
fused.plot_fusion()
fused.report()

# %%
# Chemistry that the image does not show
# --------------------------------------
# One count of oxygen per pixel in a disc beside the particles. The map keeps it, and loses a part of its height. Take
# the amount from ``region``, which corrects this.

disc = np.hypot(y - 86, x - 86) < 6
spotted = [image.deepcopy() for image in maps]
spotted[2].data = maps[2].data + np.random.default_rng(1).poisson(1.0 * disc).astype("uint16")
fused = hyperspy_fusion.fuse(spotted, haadf, method="calibrated", errors=8)
found = fused.region(disc).estimate("O")
print(f"O counts per pixel: measured {found.measured:.2f}, fused map {found.fused:.2f}")
print(f"                    region {found.value:.2f} +- {found.error:.2f}")
