"""Maps and fits that the tests of results share."""

import functools

import hyperspy.api as hs
import numpy as np
from helpers import fuse_with, scan_signals

from hyperspy_fusion import element_maps
from hyperspy_fusion.results.comparison import Comparison
from hyperspy_fusion.results.composition import Percent
from hyperspy_fusion.results.explorer import Explorer
from hyperspy_fusion.results.frame_regions import FrameRegions
from hyperspy_fusion.results.regions import Region
from hyperspy_fusion.results.report import Report

ELEMENTS = ["Al", "Fe", "Pt"]
# what methods of results return, beside the public names
RETURNED = (Comparison, Explorer, FrameRegions, Percent, Region, Report)
QUICK = {"method": "calibrated", "regularization": "tv", "tol": 1e-2}


def count_maps(data, elements=ELEMENTS):
    """Maps (n, ny, nx) of 0.5 nm pixels."""
    axes = [{"name": n, "size": s, "scale": 0.5, "units": "nm"} for n, s in zip("yx", np.shape(data)[1:], strict=True)]
    return element_maps({e: hs.signals.Signal2D(np.array(m), axes=axes) for e, m in zip(elements, data, strict=True)})


def random_maps(seed=0, mean=40.0, shape=(6, 7)):
    return count_maps(np.random.default_rng(seed).poisson(mean, (3, *shape)).astype(float))


@functools.cache
def _fit_with_holes():
    maps, haadf = scan_signals()
    mask = np.zeros((12, 15), bool)
    mask[3:7, 3:6] = mask[10, 2:14] = True
    iron = maps[0].deepcopy()
    iron.data[3:7, 10:13] = np.nan
    return fuse_with([iron, maps[1]], haadf, errors=2, mask=mask, **QUICK)


def fused_with_holes():
    """Fused maps of Fe and O (12, 15): a masked block and row, and a block of the iron map that is NaN."""
    return _fit_with_holes().deepcopy()
