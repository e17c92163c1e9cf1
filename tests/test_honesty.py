"""Fused maps of misleading scans show no artificial structure."""

import honesty
import numpy as np
import pytest
from helpers import fuse_with
from scipy.ndimage import binary_dilation, binary_erosion

import hyperspy_fusion as hf


def fused(name, counts, **options):
    """Scene, its fused maps scaled to the totals of the truth, and the codes of the diagnostics."""
    scene = getattr(honesty, name)(counts=counts)
    result = fuse_with(*signals(scene), method="auto", **options)
    np.testing.assert_allclose(result.metadata.Fusion.total_ratios, 1, rtol=1e-3)
    data = np.asarray(result.data, float)
    data *= (scene.truth.sum(axis=(1, 2)) / data.sum(axis=(1, 2)))[:, None, None]
    return scene, data, list(result.metadata.Fusion.diagnostics.codes)


def signals(scene):
    import hyperspy.api as hs

    maps = {e: hs.signals.Signal2D(m) for e, m in zip(scene.elements, scene.maps, strict=True)}
    return maps, hs.signals.Signal2D(scene.haadf)


def neighbours(trap):
    """Pixels inside and outside of the edge of the trap, where the maps are alike but for it."""
    inside = binary_erosion(trap, iterations=1) & ~binary_erosion(trap, iterations=9)
    return inside, binary_dilation(trap, iterations=8) & ~binary_dilation(trap, iterations=1)


def leak(data, truth, trap):
    """By what fraction a map changes at the edge of the trap beyond the truth."""
    inside, outside = neighbours(trap)
    return data[inside].sum() / truth[inside].sum() / (data[outside].sum() / truth[outside].sum()) - 1


@pytest.mark.parametrize("counts", [4, pytest.param(16, marks=pytest.mark.nightly)])
def test_swap_invisible_in_the_haadf_image_stays(counts):
    scene, data, _ = fused("swap", counts)
    outside = binary_dilation(scene.trap, iterations=8) & ~scene.trap
    kept = [
        (m[scene.trap].mean() - m[outside].mean()) / (t[scene.trap].mean() - t[outside].mean())
        for m, t in zip(data, scene.truth, strict=True)
    ]
    # a penalty takes more of the contrast of few counts
    assert min(kept) > (0.9 if counts == 16 else 0.8) and max(kept) < 1.1


@pytest.mark.parametrize("name, counts", [
    ("haadf_step", 4),
    pytest.param("unmapped", 4, marks=pytest.mark.slow),
    *(pytest.param(*case, marks=pytest.mark.nightly) for case in
      (("unmapped", 1), ("haadf_step", 1), ("haadf_step", 16), ("unmapped", 16))),
])  # fmt: skip
def test_contrast_of_the_haadf_image_alone_does_not_leak(name, counts):
    scene, data, codes = fused(name, counts)
    leaks = [leak(m, t, scene.trap) for m, t in zip(data, scene.truth, strict=True)]
    inside, outside = neighbours(scene.trap)
    contrast = (scene.haadf[inside].mean() - scene.haadf[outside].mean()) / (scene.haadf[outside].mean() - 0.2)
    assert max(np.abs(leaks)) < 0.05 * min(contrast, 1)
    assert "haadf-unexplained" in codes


QUICK = {"regularization": "directional", "joint": True, "lambda_haadf": 1.0}


@pytest.mark.parametrize("given", [QUICK, pytest.param({}, marks=pytest.mark.nightly)])
def test_pure_noise_stays_flat(given):
    # the ripple at this gap is far below the limit
    scene, data, codes = fused("pure_noise", 1, tol=1e-2, **given)
    ripple = [m.std() / m.mean() for m in data]
    assert max(np.divide(ripple, [m.std() / m.mean() for m in scene.maps])) < 0.05
    assert "map-without-structure" in codes


def test_a_shifted_image_is_reported_and_a_true_one_not():
    maps, haadf = hf.data.core_shell((64, 64), counts=4, haadf_blur=1.0).signals()
    quick = {"method": "auto", "regularization": "directional", "tol": 1e-2}
    assert "haadf-unexplained" not in fuse_with(maps, haadf, **quick).metadata.Fusion.diagnostics.codes
    haadf.data = np.roll(haadf.data, 9, axis=1)
    assert "haadf-unexplained" in fuse_with(maps, haadf, **quick).metadata.Fusion.diagnostics.codes
