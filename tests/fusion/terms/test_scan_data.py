"""The container of what was measured: filled and net maps, means over valid pixels, settings of each map."""

import numpy as np
import pytest

from hyperspy_fusion.fusion.terms.scan_data import ScanData, column


@pytest.fixture
def scan():
    """Two maps of 2 x 3 pixels, of which one pixel each is masked, and an image with a masked one elsewhere."""
    maps = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    valid, haadf_valid = np.ones(maps.shape, bool), np.ones((2, 3), bool)
    valid[0, 0, 0] = valid[1, 1, 2] = haadf_valid[1, 0] = False
    maps[0, 0, 0] = np.nan
    haadf = np.where(haadf_valid, 5, np.inf)
    return ScanData.of(maps, haadf, (26, 8), elements=("Fe", "O"), valid=valid, haadf_valid=haadf_valid)


def test_everything_is_valid_unless_said():
    scan = ScanData.of(np.zeros((2, 3, 4)), np.zeros((3, 4)), (26, 8))
    assert scan.elements == ["map 0", "map 1"] and scan.valid.all() and scan.haadf_valid.all()
    assert scan.valid.shape == (2, 3, 4) and scan.haadf_valid.shape == scan.valid_in_all.shape == (3, 4)
    assert scan.background is scan.variance is scan.out_of_window is None


def test_filled_arrays_are_copies_in_double_precision(scan):
    filled = scan.filled()
    assert filled.maps.dtype == filled.haadf.dtype == np.float64
    np.testing.assert_array_equal(filled.maps, [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 0]]])
    np.testing.assert_array_equal(filled.haadf, [[5, 5, 5], [0, 5, 5]])
    assert np.isnan(scan.maps[0, 0, 0]) and np.isinf(scan.haadf[1, 0])


def test_means_and_net_maps_are_of_valid_pixels(scan):
    scan = scan.filled()
    np.testing.assert_array_equal(scan.means(), [3, 8])
    np.testing.assert_array_equal(scan.means_of(column([1.5, 2])), [1.5, 2])
    net = scan.net(column([1.0, 2.0]))
    np.testing.assert_array_equal(net, [[[2, 0, 1], [2, 3, 4]], [[4, 5, 6], [7, 8, 6]]])
    np.testing.assert_array_equal(scan.valid_in_all, [[False, True, True], [False, True, False]])


def test_a_setting_is_one_number_or_one_for_each_map(scan):
    np.testing.assert_array_equal(scan.per_map("eta", 2), [2, 2])
    np.testing.assert_array_equal(scan.per_map("eta", (1, 2)), [1, 2])
    with pytest.raises(ValueError, match=r"eta has 3 values and there are 2 maps \(Fe, O\): give one number"):
        scan.per_map("eta", (1, 2, 3))
    with pytest.raises(ValueError, match="eta has Fe and no value for O: give one"):
        scan.per_map("eta", {"Fe": 1.0})
