"""
A Bruker file: from path to atomic per cent
===========================================

Give the path of a ``.bcf`` to ``scan``, let the spectra suggest the elements, and fuse. Then read the report, and
atomic per cent with errors.

The file is a small one of the tests of RosettaSciIO, with six counts per pixel in all lines. Other Bruker files, and
Velox ``.emd`` with spectra, go the same way.
"""

import hyperspy_fusion
from hyperspy_fusion import data

try:
    haadf, eds = hyperspy_fusion.scan(data.fetch("bruker_test_TEM.bcf"))  # the path of your file
except FileNotFoundError as absent:
    print(absent, "A phantom is shown instead.")
    eds, haadf = data.overlapping_lines((64, 64)).signals()

suggestion = hyperspy_fusion.suggest_elements(eds)
print(suggestion)

# %%
# Fuse
# ----
# Lines of titanium and oxygen overlap. ``lines="model"`` fits whole spectra, and so divides their counts.

fused = eds.fuse(haadf, elements=suggestion.certain, lines="model", method="calibrated", errors=8)
fused.plot_fusion()

# %%
# What the maps can be used for
# -----------------------------

fused.report()

# %%
# Atomic per cent
# ---------------
# The factors must be k-factors of your microscope. Those here are rough values for 200 kV, and 1 where none is known.

rough = {"Ti": 1.15, "O": 1.9, "Si": 1.0, "Pd": 2.1}
factors = {element: rough.get(element, 1.0) for element in fused.elements}
print(fused.region().percent("CL", factors))
