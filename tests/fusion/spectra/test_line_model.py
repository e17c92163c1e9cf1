"""The model of EDS spectra as plain arrays, its calibration and its checks."""

from dataclasses import replace

import numpy as np
import pytest

from hyperspy_fusion.fusion.spectra.bands import band_edges, cramer_rao
from hyperspy_fusion.fusion.spectra.line_calibration import calibrated, spatial_groups
from hyperspy_fusion.fusion.spectra.line_checks import hidden, not_shown, pairs_by_shape, unexplained_lines
from hyperspy_fusion.fusion.spectra.line_model import channel_edges, spectral_model
from hyperspy_fusion.fusion.spectra.line_shapes import Calibration, ElementLines, continuum_hats
from hyperspy_fusion.fusion.spectra.poisson_fit import deviances, expected_deviances, poisson_ml

ENERGIES = 0.4 + 0.02 * np.arange(400)
USUAL = Calibration()
LINES = {
    "Fe": (("Ka", "Kb"), (6.404, 7.058), (1.0, 0.13)),
    "Co": (("Ka", "Kb"), (6.930, 7.649), (1.0, 0.13)),
    "S": (("Ka", "Kb"), (2.307, 2.464), (1.0, 0.07)),
    "Mo": (("La", "Lb1", "Lb2"), (2.293, 2.395, 2.518), (1.0, 0.33, 0.05)),
}


def element(symbol):
    names, energies, weights = LINES[symbol]
    mapped = np.array([name[1:] == "a" for name in names])
    return ElementLines(symbol, names, np.array(energies), np.array(weights), mapped)


def spectra(counts, calibration=USUAL, continuum=2e4, lines=element):
    """Expected summed spectrum of elements with counts in their main line each."""
    edges = channel_edges(ENERGIES)
    shapes = {e: calibration.line_shapes(edges, lines(e).energies) @ lines(e).weights for e in counts}
    return sum(n * shapes[e] for e, n in counts.items()) + continuum * continuum_hats(edges) @ np.full(14, 1 / 14)


def model_of(summed, elements, **options):
    return spectral_model(summed, ENERGIES, [element(e) for e in elements], len(elements), 4096.0, **options)


def test_poisson_ml_is_a_minimum_with_amplitudes_at_zero():
    rng = np.random.default_rng(0)
    for n in (1, 5, 20):
        shapes = rng.random((60, n)) ** 4
        counts = rng.poisson(shapes @ (rng.random(n) * (rng.random(n) > 0.5)) * 30)
        x = poisson_ml(shapes, counts)
        gradient = shapes.sum(axis=0) - shapes.T @ (counts / np.maximum(shapes @ x, 1e-12))
        assert (x >= 0).all()
        assert (
            np.abs(gradient[x > 1e-6] * x[x > 1e-6]).max(initial=0) < 0.01
            and gradient[x <= 1e-6].min(initial=0) > -0.01
        )


def test_totals_are_the_counts_of_all_lines_and_main_shares_give_the_mapped_ones():
    counts = {"Fe": 3e4, "Co": 1e4, "S": 2e4, "Mo": 1.5e4}
    model = model_of(spectra(counts), list(counts))
    np.testing.assert_allclose((model.totals * model.main_share)[:4], list(counts.values()), rtol=0.01)
    np.testing.assert_allclose(model.columns.sum(axis=0), 1)
    assert model.names[-2:] == ("continuum low", "continuum high") and model.deviance < 0.01
    totals, units = model.rescaled(0.25)
    np.testing.assert_allclose(totals, model.totals / 4)
    assert (units < model.units).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_band_counts_are_the_sums_of_their_channels(dtype):
    model = model_of(spectra({"Fe": 1e4}), ["Fe"], first_channel=3)
    cube = np.random.default_rng(0).integers(0, 250, (2, 3, 420)).astype(dtype)
    bands = model.band_counts(cube)
    assert bands.shape == (2, 3, len(model.edges) - 1) == (2, 3, len(model.matrix))
    np.testing.assert_array_equal(bands.sum(axis=-1), cube[..., 3:403].sum(axis=-1, dtype=float))


@pytest.mark.parametrize("loss", [0.02, 0.1])
def test_bands_keep_the_attainable_variance_of_each_element(loss):
    model = model_of(spectra({"Fe": 3e4, "Co": 1e4, "S": 2e4, "Mo": 1.5e4}), list(LINES))
    mean = model.columns @ model.totals
    edges = band_edges(model.columns, mean, 4, loss)
    sums = [np.add.reduceat(array, edges[:-1], axis=0) for array in (model.columns, mean)]
    growth = cramer_rao(*sums)[:4] / cramer_rao(model.columns, mean)[:4]
    assert growth.max() <= 1 + loss and len(edges) < 60 and edges[0] == 0 and edges[-1] == 400


@pytest.mark.parametrize(
    "true",
    [
        Calibration(offset=-0.005, gain=1.001, resolution=0.135),
        Calibration(offset=0.02, resolution=0.125),
        Calibration(tail=0.4, shelf=0.1),
    ],
)
def test_energy_scale_and_peak_shape_are_calibrated(true):
    counts = {"Fe": 3e5, "Co": 1e5, "S": 2e5}
    summed = np.random.default_rng(1).poisson(spectra(counts, true)).astype(float)
    found, lines = calibrated(summed, summed[None], ENERGIES, [element(e) for e in counts], Calibration())
    model = spectral_model(summed, ENERGIES, lines, 3, 4096.0, calibration=found, ratios_known=True)
    assert abs(found.offset + 4 * found.gain - true.offset - 4 * true.gain) < 0.002
    assert abs(found.resolution - true.resolution) < 0.003 and model.deviance < 1.2
    expected = np.array([*counts.values()]) * (1 - true.shelf)
    np.testing.assert_allclose((model.totals * model.main_share)[:3], expected, rtol=0.03)


def test_weights_of_L_lines_follow_from_groups_of_pixels():
    def stronger(symbol):
        lines = element(symbol)
        return replace(lines, weights=lines.weights * np.where(lines.weights < 1, 1.5, 1)) if symbol == "Mo" else lines

    parts = ({"S": 1e5, "Mo": 1e3}, {"S": 1e3, "Mo": 1e5}, {"S": 5e4, "Mo": 5e4})
    rng = np.random.default_rng(2)
    groups = np.array([rng.poisson(spectra(part, lines=stronger)) for part in parts], dtype=float)
    _, lines = calibrated(groups.sum(axis=0), groups, ENERGIES, [element("S"), element("Mo")], Calibration())
    np.testing.assert_allclose(lines[1].weights[1], 0.33 * 1.5, rtol=0.04)


def test_groups_of_pixels_keep_all_counts_and_tell_regions_apart():
    first, second = spectra({"S": 2e3}, continuum=200), spectra({"Fe": 2e3}, continuum=200)
    cube = np.where(np.arange(8)[:, None, None] < 4, first, second) * np.ones((8, 8, 1))
    groups = spatial_groups(np.random.default_rng(0).poisson(cube).astype("float32"), 1)
    assert len(groups) == 32 and spatial_groups(cube[:1, :1] / 100, 4).shape == (1, 400)
    iron = groups[:, 290:310].sum(axis=1) / groups[:, 85:105].sum(axis=1)
    assert np.count_nonzero((iron > 3) | (iron < 0.3)) >= 24


@pytest.mark.parametrize("missing", ["Fe", "S"])
def test_a_line_that_no_element_has_is_reported_and_no_other(missing):
    counts = {"Fe": 3e4, "Co": 1e4, "S": 2e4}
    summed = np.random.default_rng(3).poisson(spectra(counts)).astype(float)
    assert not unexplained_lines(model_of(summed, list(counts)))
    found = unexplained_lines(model_of(summed, [e for e in counts if e != missing]))
    assert abs(found[0].energy - LINES[missing][1][0]) < 0.04 and found[0].sigmas > 8


@pytest.mark.parametrize("first", ["Fe", "S"])
def test_elements_without_a_map_are_judged_by_all_channels(first):
    counts = {"Fe": 3e4, "Co": 3e4, "S": 3e4, "Mo": 1e4}
    summed = np.random.default_rng(1).poisson(spectra(counts)).astype(float)
    order = sorted(counts, key=lambda symbol: symbol != first)
    model = spectral_model(summed, ENERGIES, [element(e) for e in order], 1, 4096.0)
    assert model.deviance < 1.2 and not unexplained_lines(model)


@pytest.mark.parametrize("mean", [0.02, 0.3, 3.0, 30.0])
def test_the_deviance_of_noise_is_that_expected_at_every_number_of_counts(mean):
    found = deviances(mean, np.random.default_rng(0).poisson(mean, 100_000)).mean()
    assert expected_deviances(np.array([mean]))[0] == pytest.approx(found, rel=0.03)
    few = model_of(np.random.default_rng(0).poisson(spectra({"Fe": 300}, continuum=100)), ["Fe"])
    assert 0.8 < few.deviance < 1.2


def test_elements_that_are_absent_hidden_or_resolved_by_shape_are_reported():
    summed = np.random.default_rng(4).poisson(spectra({"Fe": 3e4, "S": 1e4, "Mo": 2e4})).astype(float)
    model = model_of(summed, ["Fe", "Co", "S", "Mo"])
    assert not_shown(model) == ["Co"] and pairs_by_shape(model) == [("S", "Mo")]
    few = model_of(spectra({"S": 4e4, "Mo": 1.2e6}), ["S", "Mo"])
    assert hidden(few) == ["S"] and few.systematic[0] > 0.5 > few.systematic[1]
