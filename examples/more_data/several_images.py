"""
Several elastic images
======================

Pass a list of images of the same pixels: ``fuse(maps, [haadf, phase])``. An image that shows light elements, such as a
phase image, sharpens them where HAADF cannot.

The scan is a phantom of SrTiO3 with four counts per pixel. See :doc:`several images </images>` for the settings.
"""

import hyperspy.api as hs
import matplotlib.pyplot as plt

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

truth = maps[2]._deepcopy_with_new_data(phantom.truth[2])
images = {"truth": truth, "measured": maps[2], "HAADF alone": alone.get_map("O"), "HAADF and phase": both.get_map("O")}
space = {"left": 0.02, "right": 0.98, "bottom": 0.02, "top": 0.9, "wspace": 0.05}
look = {"axes_decor": "off", "colorbar": None, "cmap": "inferno", "vmin": 0, "vmax": 4, "padding": space}
hs.plot.plot_images(list(images.values()), per_row=4, label=list(images), fig=plt.figure(figsize=(10, 2.8)), **look)

# %%
# Distance from the truth
# -----------------------

for name, stack in {"measured": phantom.maps, "HAADF alone": alone.data, "HAADF and phase": both.data}.items():
    quality = [round(data.psnr(*pair), 1) for pair in zip(stack, phantom.truth, strict=True)]
    print(f"{name:16s}", *phantom.elements, quality, "dB")
