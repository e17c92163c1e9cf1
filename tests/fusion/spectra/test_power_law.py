"""Claims about the joint fit of a power law and shapes, on arrays: exact, optimal, and exspy's own."""

import exspy
import hyperspy.api as hs
import numpy as np
import pytest
from scipy.optimize import least_squares

from hyperspy_fusion.fusion.spectra import power_law
from hyperspy_fusion.fusion.spectra.power_law import JointFit
from hyperspy_fusion.maps.eels_edges import Edge, shapes

ENERGY = np.delete(700.0 + 8.0 * np.arange(60), np.s_[28:34])


def steps():
    """Two shapes like edges at 931 and 1020 eV."""
    return np.array([np.where(ENERGY >= onset, (ENERGY / onset) ** -2.5, 0) for onset in (931, 1020)])


def spectra(exponents, amplitudes, intensities):
    power = np.asarray(amplitudes)[:, None] * (ENERGY / 700) ** -np.asarray(exponents)[:, None]
    return power + np.asarray(intensities).T @ steps()


def test_what_a_spectrum_was_made_of_is_found():
    rng = np.random.default_rng(0)
    exponents, intensities = rng.uniform(1, 5, 50), rng.normal(0, 300, (2, 50))
    data = spectra(exponents, rng.uniform(1e3, 1e5, 50), intensities)
    fit = JointFit(ENERGY, steps(), 1 / data.mean(axis=0))
    found = fit.exponents(data)
    np.testing.assert_allclose(found, exponents, rtol=1e-8)
    np.testing.assert_allclose(fit.intensities(data, found), intensities, atol=1e-5)
    fit = JointFit(ENERGY, steps(), np.ones(len(ENERGY)))
    rising = (ENERGY / 700) ** 3
    assert np.isnan(fit.exponents(np.array([np.zeros(len(ENERGY)), -spectra([3], [1e3], [[0], [0]])[0], rising]))).all()


def test_many_spectra_are_as_one_by_one(monkeypatch):
    data = np.random.default_rng(1).poisson(spectra(np.full(7, 3.0), np.full(7, 1e4), np.full((2, 7), 200.0)))
    fit = JointFit(ENERGY, steps(), np.ones(len(ENERGY)))
    together = fit.exponents(data)
    monkeypatch.setattr(power_law, "TOGETHER", 3)
    np.testing.assert_allclose(fit.exponents(data), together, rtol=1e-12)
    alone = [fit.intensities(row[None], r[None]) for row, r in zip(data, together, strict=True)]
    np.testing.assert_allclose(fit.intensities(data, together), np.hstack(alone), rtol=1e-9)


def test_noisy_spectra_have_the_weighted_least_squares_of_scipy():
    data = np.random.default_rng(2).poisson(spectra([2.5, 3.5], [2e3, 1e4], [[100, 0], [50, 300]]))
    weights = 1 / data.mean(axis=0)
    fit = JointFit(ENERGY, steps(), weights)
    exponents = fit.exponents(data)
    intensities = fit.intensities(data, exponents)
    for row, r, c in zip(data, exponents, intensities.T, strict=True):

        def residuals(p, row=row):
            return (p[0] * (ENERGY / 700) ** -p[1] + p[2:] @ steps() - row) * np.sqrt(weights)

        best = least_squares(
            residuals, [5e3, 3.0, 0, 0], x_scale=[1e3, 1, 100, 100], xtol=1e-14, ftol=1e-14, gtol=1e-14
        )
        np.testing.assert_allclose([r, *c], best.x[1:], rtol=1e-4, atol=1e-2)


def test_the_responses_are_derivatives():
    """Own: at a given exponent. Own and through the exponent: of the whole fit."""
    data = spectra([3.0], [1e4], [[400.0], [200.0]])
    fit = JointFit(ENERGY, steps(), 1 / data[0])
    own, through = fit.responses(3.0)
    for channel in (0, 20, 35, 50):
        moved = data.copy()
        moved[0, channel] += 1.0
        exponent = np.array([3.0])
        change = (fit.intensities(moved, exponent) - fit.intensities(data, exponent))[:, 0]
        np.testing.assert_allclose(own[:, channel], change, rtol=1e-6, atol=1e-9)
        whole = (fit.intensities(moved, fit.exponents(moved)) - fit.intensities(data, fit.exponents(data)))[:, 0]
        np.testing.assert_allclose((own + through)[:, channel], whole, rtol=2e-3, atol=1e-4)


def test_it_is_the_fit_of_exspy():
    """`EELSModel` with hydrogenic cross-sections, by HyperSpy's Levenberg-Marquardt."""
    energy = 700 + 8.0 * np.arange(65)
    signal = exspy.signals.EELSSpectrum(np.zeros((2, 2, 65)))
    axis = signal.axes_manager[-1]
    axis.offset, axis.scale, axis.units = 700.0, 8.0, "eV"
    signal.set_microscope_parameters(beam_energy=200, convergence_angle=29, collection_angle=36)
    sections = shapes(signal, [Edge("Cu_L3", 931, (), ()), Edge("Zn_L3", 1020, (), ())])
    amounts = np.array([[[20.0, 40], [10, 5]], [[10, 20], [40, 30]]])
    expected = 8e3 * (energy / 700) ** -2.9 + np.tensordot(amounts, sections, (0, 0))
    signal.data = np.random.default_rng(3).poisson(expected).astype(float)

    model = signal.create_model(GOS="hydrogenic", auto_add_edges=False)
    copper, zinc = (exspy.components.EELSCLEdge(name, GOS="hydrogenic") for name in ("Cu_L3", "Zn_L3"))
    model.extend([copper, zinc])
    model.multifit(kind="smart", show_progressbar=False)
    model.multifit(show_progressbar=False)

    fit = JointFit(energy, sections, np.ones(65))
    flat = signal.data.reshape(-1, 65)
    found = fit.intensities(flat, fit.exponents(flat)).reshape(2, 2, 2)
    for mine, edge in zip(found, (copper, zinc), strict=True):
        np.testing.assert_allclose(mine, edge.intensity.map["values"], rtol=2e-3)
    power = next(c for c in model if isinstance(c, hs.model.components1D.PowerLaw))
    np.testing.assert_allclose(fit.exponents(flat), power.r.map["values"].ravel(), rtol=1e-4)


@pytest.mark.parametrize("edge, known", [("Cu_L3", True), ("Cu_M3", False)])
def test_cross_sections_are_known_of_k_and_l_edges(edge, known):
    signal = exspy.signals.EELSSpectrum(np.ones((2, 2, 400)))
    signal.axes_manager[-1].offset, signal.axes_manager[-1].scale = 700.0, 1.0
    signal.set_microscope_parameters(beam_energy=200, convergence_angle=29, collection_angle=36)
    assert np.isfinite(shapes(signal, [Edge(edge, 931, (), ())])).all() == known
