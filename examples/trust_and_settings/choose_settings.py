"""
Choosing settings
=================

Begin with the bare call: it chooses the settings by cross-validation. To judge by eye, fuse with a smaller and a larger
``lambda_reg``, and look at the residuals.

The scan is a phantom of four counts per pixel, so that the distance from the truth can be shown as well.
"""

import matplotlib.pyplot as plt
from scipy.ndimage import gaussian_filter

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
# Look at the residual, smoothed a little, before you trust a weight. That of a good fit looks like noise. That of too
# large a weight shows the specimen: red where the map is too low, and blue where it is too high.

figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
for ax, weight in zip(axes, (0.1, 1.0, 10.0), strict=True):
    fit = hyperspy_fusion.fuse(maps, haadf, method="calibrated", regularization="directional", lambda_reg=weight)
    residual = gaussian_filter(fit.normalised_residuals().get_map("Fe").data, 1.5)
    ax.imshow(residual, "RdBu_r", vmin=-0.6, vmax=0.6)
    ax.set_title(f"lambda_reg={weight:g}: {data.psnr(fit.get_map('Fe').data, phantom.truth[1]):.1f} dB")
    ax.axis("off")

# %%
# The decibels are the distance from the truth, which only a phantom has. The bare call comes to:

print(f"Fe {data.psnr(fused.get_map('Fe').data, phantom.truth[1]):.1f} dB")
