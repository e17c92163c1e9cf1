"""Claims about fits by the published method that are reported to the user."""

from helpers import fuse_with

from hyperspy_fusion.data import core_shell


def test_changed_totals_are_a_warning():
    """The weights of the paper keep few of the counts of a sparse scan."""
    fused = fuse_with(*core_shell((32, 32), counts=4).signals())
    assert any("totals of the fused maps" in warning for warning in fused.metadata.Fusion.warnings)
