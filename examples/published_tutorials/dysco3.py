"""
DyScO3: the first data set of the published tutorial
====================================================

Fuse the maps by all three methods, and compare the totals before you read a composition from any map.

The maps are those of Manassa et al. (*Elemental Microscopy* EM000003, 2024): EDS of DyScO3 at atomic resolution. They
are atomic fractions, which add up to 1 in each pixel, not counts.
"""

import hyperspy_fusion
from hyperspy_fusion import data

try:
    maps, haadf = data.dysco3()  # allow_download=True fetches the file
except FileNotFoundError as absent:
    print(absent, "A phantom of SrTiO3 is shown instead.")
    maps, haadf = data.atomic_columns((128, 128), counts=8).signals()

published = hyperspy_fusion.fuse(maps, haadf, method="published", eps=0.24)
calibrated = hyperspy_fusion.fuse(maps, haadf, method="calibrated")
automatic = hyperspy_fusion.fuse(maps, haadf)

# %%
# Side by side
# ------------
# The part is that of the tutorial, with pairs of Dy columns. Each panel has its own colours. The published maps look
# cleanest, and have the wrong amounts.

crop = (25, 85, 70, 130)  # left, right, top, bottom
automatic.plot_fusion(crop=crop, beside={"published": published, "calibrated": calibrated}, same_limits=False)

# %%
# Stoichiometry
# -------------
# The mean composition should be 20, 20 and 60 at.%. The calibrated and the automatic method keep what was measured. The
# published method loses more than half of the weakest element.

for fused in (published, calibrated, automatic):
    print(fused.metadata.Fusion.method, fused.region().percent("cross_section", 1), sep="\n")

# %%
# Weak, right and strong TV
# -------------------------
# With too little total variation the maps keep their noise. With too much, the pairs of columns merge and weak elements
# vanish. Prefer too little: noise is familiar, but an over-smoothed map looks like structure.

published.explore(crop=crop, tv_iter=30, lambda_tv=[0.005, 0.02, 0.15])

# %%
# These maps have 30 TV iterations. The tutorial has three, which limit the smoothing: above 0.1, ``lambda_tv`` has no
# effect. The diagnostic ``smoothing-limited`` reports it.

published.explore(crop=crop, lambda_tv=[0.15, 0.6, 5.0])

# %%
# In Jupyter, ``published.explore()`` has sliders for the same settings. Here is how the published fit went:

published.plot_convergence()
