"""
Limits of the published method
==============================

Use ``method="published"`` to reproduce published maps. Do not read amounts from them: compare the totals of fused and
measured maps, ``metadata.Fusion.total_ratios``, with 1.

The scan is a phantom with the same counts per atom for every element, so that its true composition is known. The
:doc:`limitations </published_method>` have a page of their own, with the reasons.
"""

import matplotlib.pyplot as plt
import numpy as np

import hyperspy_fusion
from hyperspy_fusion import data

phantom = data.core_shell()
maps, haadf = phantom.signals()
chosen = dict(lambda_haadf=0.02, lambda_chem=0.08, lambda_tv=0.15, eps=0.005)
results = {
    "published weights": hyperspy_fusion.fuse(maps, haadf, method="published"),
    "chosen weights": hyperspy_fusion.fuse(maps, haadf, method="published", **chosen),
    "automatic": hyperspy_fusion.fuse(maps, haadf),
}

# %%
# Composition of the whole scan
# -----------------------------
# With the published weights, iron and oxygen fade and platinum gains. Weights chosen with the help of the truth
# keep the composition, but the truth of a specimen is not known.

stacks = {"truth": phantom.truth, "measured": phantom.maps} | {name: fused.data for name, fused in results.items()}
totals = np.array([stack.sum(axis=(1, 2), dtype=float) for stack in stacks.values()])
shares = (100 * totals / totals.sum(axis=1, keepdims=True)).T
figure, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
for element, share, left in zip(phantom.elements, shares, np.cumsum(shares, axis=0) - shares, strict=True):
    bars = ax.barh(list(stacks), share, left=left)
    ax.bar_label(bars, fmt=f"{element} %.0f", label_type="center", color="white")
ax.set(xlabel="composition of the whole scan / at.%", xlim=(0, 100))
ax.invert_yaxis()

# %%
# The distance from the truth shows the noise as well:

for name, fused in results.items():
    quality = [round(data.psnr(*pair), 1) for pair in zip(fused.data, phantom.truth, strict=True)]
    print(f"{name:18s}", *phantom.elements, quality, "dB")

# %%
# The offset eps subtracts intensity
# ----------------------------------
# With the other terms almost off, each pixel loses ``eps`` times the range of its map.

for eps in (0.2, 0.05, 0.005):
    weights = dict(eps=eps, lambda_haadf=1e-6, lambda_tv=0, lambda_chem=0.005, max_iter=400)
    fused = hyperspy_fusion.fuse(maps, haadf, method="published", **weights)
    print(f"eps {eps}: fused over measured", *fused.elements, fused.metadata.Fusion.total_ratios.round(2))
