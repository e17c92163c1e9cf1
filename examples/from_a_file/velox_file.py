"""
A Velox file: what its own maps can show
========================================

Give the path of an ``.emd`` to ``scan``. Where the file has spectra, go on as for a Bruker file. Where
``suggest_elements`` is certain of none, name those that you know of the sample, ``elements=["Fe", "O"]``. Where the
file has only element maps, fuse these, and read the report before any number.

The file is a small one of the tests of RosettaSciIO, saved without its spectra. Its maps were smoothed before they were
saved, so they hold no counts.
"""

import hyperspy_fusion
from hyperspy_fusion import data

try:
    found = hyperspy_fusion.scan(data.fetch("velox/Test SI 16x16 ReducedData 215 kx.emd"))  # the path of your file
except FileNotFoundError as absent:
    print(absent, "A phantom is shown instead.")
    maps, haadf = data.core_shell((48, 48), counts=4).signals()
    found = hyperspy_fusion.scan([haadf, *maps])

print(found.sentence)

# %%
# Fuse the maps
# -------------

haadf, maps = found
fused = maps.fuse(haadf)
fused.plot_fusion()

# %%
# The report
# ----------
# The serious finding comes first: neighbouring pixels of smoothed maps share their noise. The automatic method then
# finds nothing to smooth, and errors are too small. Save the spectra with the scan, and start from these.

fused.report()

# %%
# Atomic per cent
# ---------------
# The maps still have a mean composition. All factors are 1 here: take the k-factors of your microscope.

print(fused.region().percent("CL", 1))
