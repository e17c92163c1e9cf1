"""
Stacks and dask
===============

Stack the scans of a series, and call ``fuse`` once. Lazy stacks are read and fused frame by frame, on all cores or on a
cluster.

The series is simulated: particles that grow. The page on :doc:`stacks </stacks>` has settings and limits.
"""

import hyperspy.api as hs
import matplotlib.pyplot as plt
import numpy as np

import hyperspy_fusion
from hyperspy_fusion import data

thickness = [1.0, 1.5, 2.0, 3.0]
frames = [data.core_shell((48, 48), counts=2 * t, seed=i) for i, t in enumerate(thickness)]
scans = [frame.signals() for frame in frames]
haadf = hs.stack([haadf for _, haadf in scans], new_axis_name="time")
columns = zip(frames[0].elements, *(maps for maps, _ in scans), strict=True)
maps = {element: hs.stack(column, new_axis_name="time") for element, *column in columns}

# %%
# Fuse lazily
# -----------
# Files of a series come lazily by ``hs.load(..., lazy=True)``. Here the stacks are made lazy.

lazy = {element: stack.as_lazy() for element, stack in maps.items()}
fused = hyperspy_fusion.fuse(lazy, haadf.as_lazy())
print(fused)

# %%
# One frame
# ---------
# A frame is a result of its own, with all figures and its report.

fused.frame(0).plot_fusion()

# %%
# A region over time
# ------------------

oxide = frames[0].truth[1] > 0.5 * frames[0].truth[1].max()
figure, ax = plt.subplots(figsize=(5, 3), layout="constrained")
for i, element in enumerate(fused.elements):
    mean, _ = fused.region(oxide).mean(element)
    ax.plot(np.asarray(mean), "o-", color=f"C{i}", label=element)
    ax.plot([frame.truth[i][oxide].mean() for frame in frames], "k:", label="truth" if i == 2 else None)
ax.set(xlabel="frame", ylabel="counts per pixel in the oxide", xticks=range(len(frames)))
ax.legend()
