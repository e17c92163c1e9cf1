"""What fused maps must not show, on scans made to mislead; beside it what the published method makes of them (-s)."""

import functools

import honesty
import numpy as np
import pytest
from helpers import fuse_with, quiet_fuse
from scipy.ndimage import binary_dilation, binary_erosion

import hyperspy_fusion as hf

pytestmark = pytest.mark.slow

METHODS = {
    "auto": {"method": "auto"},
    "published": {"method": "published", "lambda_haadf": 0.02, "eps": 0.01},
}


@functools.cache
def fused(name, method, counts, **options):
    """Scene, its fused maps scaled to the totals of the truth, and the warnings."""
    scene = getattr(honesty, name)(counts=counts)
    result = fuse_with(*signals(scene), **METHODS[method], **options)
    data = np.asarray(result.data, float)
    data *= (scene.truth.sum(axis=(1, 2)) / data.sum(axis=(1, 2)))[:, None, None]
    return scene, data, " ".join(result.metadata.Fusion.warnings)


def signals(scene):
    import hyperspy.api as hs

    maps = {e: hs.signals.Signal2D(m) for e, m in zip(scene.elements, scene.maps, strict=True)}
    return maps, hs.signals.Signal2D(scene.haadf)


def neighbours(trap):
    """Pixels inside and outside of the edge of the trap, where the maps are alike but for it."""
    inside = binary_erosion(trap, iterations=1) & ~binary_erosion(trap, iterations=9)
    return inside, binary_dilation(trap, iterations=8) & ~binary_dilation(trap, iterations=1)


def leak(data, truth, trap):
    """By what part a map changes at the edge of the trap beyond what the truth does."""
    inside, outside = neighbours(trap)
    return data[inside].sum() / truth[inside].sum() / (data[outside].sum() / truth[outside].sum()) - 1


def report(title, what, values):
    print(f"{title:34s} {what}: " + "   ".join(f"{method} {np.round(v, 3)}" for method, v in values.items()))


@pytest.mark.parametrize("counts", [4, 16])
def test_swap_invisible_in_the_haadf_image_stays(counts):
    kept = {}
    for method in METHODS:
        scene, data, _ = fused("swap", method, counts)
        outside = binary_dilation(scene.trap, iterations=8) & ~scene.trap
        kept[method] = [
            (m[scene.trap].mean() - m[outside].mean()) / (t[scene.trap].mean() - t[outside].mean())
            for m, t in zip(data, scene.truth, strict=True)
        ]
    report(f"(a) swap of Fe and Co, {counts} counts", "contrast kept", kept)
    # a quarter of the counts: a penalty takes more of the contrast, as the docs say
    assert min(kept["auto"]) > (0.9 if counts == 16 else 0.8) and max(kept["auto"]) < 1.1


@pytest.mark.parametrize("counts", [1, 4, 16])
@pytest.mark.parametrize("name", ["haadf_step", "unmapped"])
def test_contrast_of_the_haadf_image_alone_does_not_leak(name, counts):
    leaks, alarm = {}, {}
    for method in METHODS:
        scene, data, alarm[method] = fused(name, method, counts)
        leaks[method] = [leak(m, t, scene.trap) for m, t in zip(data, scene.truth, strict=True)]
    inside, outside = neighbours(scene.trap)
    contrast = (scene.haadf[inside].mean() - scene.haadf[outside].mean()) / (scene.haadf[outside].mean() - 0.2)
    report(f"(b, c) {name}, {counts} counts", f"of a HAADF contrast of {contrast:.2f}, leak", leaks)
    assert max(np.abs(leaks["auto"])) < 0.05 * min(contrast, 1)
    assert "No mapped element explains" in alarm["auto"]


def test_pure_noise_stays_flat(counts=1):
    ripple = {}
    for method in METHODS:
        # the strongest penalties take longest: what is left at this gap is far below what is asked
        scene, data, warnings = fused("pure_noise", method, counts, **({"tol": 1e-2} if method == "auto" else {}))
        ripple[method] = [m.std() / m.mean() for m in data]
        if method == "auto":
            assert "to show any structure beyond their noise" in warnings
    raw = [m.std() / m.mean() for m in scene.maps]
    report(f"(d) noise alone, {counts} counts", f"relative ripple, measured {np.round(raw, 3)}, fused", ripple)
    assert max(np.divide(ripple["auto"], raw)) < 0.05


def test_a_true_scan_raises_no_alarm():
    maps, haadf = hf.data.core_shell((64, 64), counts=4, haadf_blur=1.0).signals()
    assert "No mapped element" not in " ".join(quiet_fuse(maps, haadf, method="auto").metadata.Fusion.warnings)
