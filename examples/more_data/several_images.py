"""
Several elastic images
======================

Pass a list of images of the same pixels: ``fuse(maps, [haadf, phase])``. An image that shows light elements, such as a
phase image, sharpens them where HAADF cannot.

The scan is a phantom of SrTiO3 with four counts per pixel. See :doc:`several images </images>` for the settings.
"""

import hyperspy_fusion
from hyperspy_fusion import data

phantom = data.atomic_columns((64, 64), counts=4)
maps, haadf = phantom.signals()
phase = phantom.phase()

alone = hyperspy_fusion.fuse(maps, haadf)
both = hyperspy_fusion.fuse(maps, [haadf, phase])
print(both.metadata.Fusion.image_names, both.metadata.Fusion.image_weights.round(1))

# %%
# The map of oxygen
# -----------------
# The weights above are chosen by cross-validation. An image that does not predict held-out counts gets the weight 0.

both.plot_fusion(["O"], beside={"HAADF alone": alone, "truth": phantom.truth})

# %%
# Distance from the truth
# -----------------------

for name, stack in {"measured": phantom.maps, "HAADF alone": alone.data, "HAADF and phase": both.data}.items():
    quality = [round(data.psnr(*pair), 1) for pair in zip(stack, phantom.truth, strict=True)]
    print(f"{name:16s}", *phantom.elements, quality, "dB")
