"""Real scans by the calibrated method: counts stay counts, and fractions those that were measured."""

from functools import cache

import h5py
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import fuse_with, shared

from hyperspy_fusion import element_maps


def maps_of(arrays):
    signals = [hs.signals.Signal2D(np.asarray(array, np.float32)) for array in arrays.values()]
    for signal, element in zip(signals, arrays, strict=True):
        signal.metadata.set_item("Sample.elements", [element])
    return signals


def calibrated(arrays, haadf, **options):
    fused = fuse_with(
        maps_of(arrays), hs.signals.Signal2D(haadf), method="calibrated", show_progressbar=False, **options
    )
    assert fused.metadata.Fusion.converged and fused.metadata.Fusion.gap <= 3e-2
    return fused


@pytest.mark.parametrize(
    "regularization", ["directional", *(pytest.param(r, marks=pytest.mark.nightly) for r in ("guided", "tgv", "tv"))]
)
def test_fractions_of_dysco3_are_those_of_the_crystal(regularization):
    """In the upper left quarter of the scan."""
    with np.load(shared("data/DyScO3_PTO_Trilayer_dataset.npz")) as data:
        quarter = np.s_[:128, :128]
        arrays, haadf = {element: data[element][quarter] for element in ("Sc", "Dy", "O")}, data["HAADF"][quarter]
    fused = calibrated(arrays, haadf, regularization=regularization)
    ideal, measured = np.array([0.2, 0.2, 0.6]), np.array([np.mean(a) for a in arrays.values()])
    found = fused.data.mean(axis=(1, 2))
    assert np.all(abs(found / found.sum() - ideal) <= abs(measured / measured.sum() - ideal) + 0.01)


@pytest.mark.parametrize("regularization", ["tv", pytest.param("directional", marks=pytest.mark.nightly)])
def test_metal_over_oxygen_of_the_oxides_is_as_measured(regularization):
    """In a quarter of the scan."""
    part = np.s_[:200, :200]
    with h5py.File(shared("data/Co3O4_Mn3O4.h5")) as file:
        arrays, haadf = {element: file[element][part] for element in ("Co", "Mn", "O")}, file["HAADF"][part]
    fused = calibrated(arrays, haadf, regularization=regularization)
    ratios = [(co.sum() + mn.sum()) / o.sum() for co, mn, o in (arrays.values(), fused.data.astype(float))]
    np.testing.assert_allclose(ratios[1], ratios[0], rtol=0.1)


@cache
def silicate():
    haadf, eds = hs.load(shared("data/L2083-K-4-1_tilt0.bcf"))[:2]
    return element_maps(eds, elements=["Fe", "Mg", "Si", "O", "S", "Al"]), haadf


@pytest.mark.slow
@pytest.mark.parametrize("part", [0.05, pytest.param(1.0, marks=pytest.mark.nightly)])
def test_totals_of_counts_are_kept_at_any_dose(part):
    """In the upper left quarter of the scan."""
    maps, haadf = silicate()
    quarter = np.s_[..., : maps.data.shape[1] // 2, : maps.data.shape[2] // 2]
    counts = np.random.default_rng(0).binomial(maps.data[quarter].astype(int), part)
    arrays = dict(zip(maps.elements, counts, strict=True))
    fused = calibrated(arrays, haadf.data[quarter], regularization="directional")
    assert fused.metadata.Fusion.noise == "shifted_poisson"
    np.testing.assert_allclose(fused.data.sum(axis=(1, 2), dtype=float), counts.sum(axis=(1, 2)), rtol=0.01)
