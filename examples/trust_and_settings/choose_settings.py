"""
Choosing settings
=================

Begin with the bare call: it chooses the settings by cross-validation. To judge by eye, fuse with a smaller and a larger
``lambda_reg``, and look at the residuals.

The scan is a phantom of four counts per pixel, so that the truth can be shown as well.
"""

import hyperspy_fusion
from hyperspy_fusion import data

phantom = data.core_shell((96, 96), counts=4)
maps, haadf = phantom.signals()
fused = hyperspy_fusion.fuse(maps, haadf)
print(fused.metadata.Fusion.selection.sentence)

# %%
# The fits that were compared
# ---------------------------
# Higher is better: the score is how well a fit predicted counts that it did not use.

fused.plot_selection()

# %%
# Smaller and larger weights
# --------------------------
# A map with too small a weight is speckled. A map with too large a weight has lost what was measured.

# sphinx_gallery_thumbnail_number = 3
fused.explore(lambda_reg=[0.1, 1.0, 10.0])

# %%
# Residuals
# ---------
# Look at the residual before you trust a weight. That of a good fit looks like noise. That of too large a weight shows
# the specimen: orange where the map is too low, and purple where it is too high.

fused.explore(lambda_reg=[0.1, 1.0, 10.0], residuals=True)

# %%
# The truth
# ---------
# Only a phantom has it. It confirms the choice of the bare call.

fused.plot_fusion(beside={"truth": phantom.truth})
