"""
Co3O4/Mn3O4: the second data set of the published tutorial
==========================================================

Fuse sparse EELS maps by all three methods, and compare the totals before you read a composition from any map.

The maps are those of Manassa et al. (*Elemental Microscopy* EM000003, 2024). More than 90 % of their pixels are zero.
"""

import hyperspy_fusion
from hyperspy_fusion import PublishedSettings, data

try:
    maps, haadf = data.co3o4_mn3o4()  # allow_download=True fetches the file
except FileNotFoundError as absent:
    print(absent, "A phantom of Fe3O4 in Pt is shown instead.")
    maps, haadf = data.core_shell((128, 128), counts=1).signals()

tutorial = PublishedSettings(lambda_chem=0.006, lambda_tv=0.022, eps=0.01, tv_iter=6, threshold=0.2)
published = hyperspy_fusion.fuse(maps, haadf, method="published", settings=tutorial)
calibrated = hyperspy_fusion.fuse(maps, haadf, method="calibrated", regularization="directional")
automatic = hyperspy_fusion.fuse(maps, haadf, regularization="directional")

# %%
# Side by side
# ------------
# Each panel has its own colours. At its default weight, the calibrated method hardly smooths such sparse maps. The
# automatic method chooses the weight.

automatic.plot_fusion(beside={"published": published, "calibrated": calibrated}, same_limits=False)

# %%
# Stoichiometry
# -------------
# Metal over oxygen should be 0.75 in both oxides. Only the bright part of the HAADF image is compared. The published
# method changes the ratio tenfold.

bright = haadf.data > haadf.data.min() + 0.3 * (haadf.data.max() - haadf.data.min())
measured = hyperspy_fusion.element_maps(maps)
for name, stack in {"measured": measured, "published": published, "automatic": automatic}.items():
    first, second, oxygen = (stack.region(bright).mean(element).value for element in stack.elements)
    print(f"{name:10s} metal / oxygen = {(first + second) / oxygen:.2f}")

# %%
# Weak, right and strong TV
# -------------------------
# Weights suit one data set only: the tutorial has 0.15 for DyScO3, and 0.022 here. These maps have 30 TV iterations,
# because few iterations limit the smoothing.

published.explore(tv_iter=30, lambda_tv=[0.002, 0.022, 0.2])
