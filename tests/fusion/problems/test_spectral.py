"""Fits of whole spectra as problems of the calibrated method, from plain arrays."""

from dataclasses import replace

import numpy as np
import pytest

from hyperspy_fusion.fusion.problems.base import FusionProblem
from hyperspy_fusion.fusion.problems.spectral import SpectralObservation, estimates_of_pixels, pixel_readout
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.selection.band_components import BandComponents
from hyperspy_fusion.fusion.selection.cross_validation import band_folds
from hyperspy_fusion.fusion.selection.model_averaging import AveragedProblem, EnsembleFit
from hyperspy_fusion.fusion.selection.search import ensemble_of, select
from hyperspy_fusion.fusion.settings import AutoSettings, CalibratedSettings
from hyperspy_fusion.fusion.solvers.data_steps import EVERY
from hyperspy_fusion.fusion.solvers.primal_dual_state import Stopping
from hyperspy_fusion.fusion.spectra.line_model import SpectralModel
from hyperspy_fusion.fusion.spectra.scan_spectra import ScanSpectra
from hyperspy_fusion.fusion.terms.scan_data import ScanData
from hyperspy_fusion.fusion.uncertainty.bootstrap import bootstrap
from hyperspy_fusion.fusion.uncertainty.region_counts import RegionCounts

SIZE = 24
DIRECTIONAL = CalibratedSettings(regularization="directional", lambda_haadf=0.0)


def line(at, channels=60, width=2.0):
    return np.exp(-0.5 * ((np.arange(channels) - at) / width) ** 2)


def scan_of(seed=0, counts=6.0, share=1.0, size=SIZE, weak=None):
    """Three elements, two of which are a line width apart, and a continuum: model, scan, band counts and true maps."""
    rng = np.random.default_rng(seed)
    high = np.linspace(0, 1, 60)
    columns = np.stack([line(15) + 0.2 * line(40), line(18), line(50), 1 - high + 0.01, high + 0.01], axis=1)
    columns /= columns.sum(axis=0)
    y, x = np.mgrid[:size, :size] / size
    inside = [np.hypot(y - 0.3, x - 0.3) < 0.2, np.hypot(y - 0.3, x - 0.7) < 0.2, np.ones_like(x) > 0]
    weak = counts if weak is None else weak
    maps = np.stack([counts * inside[0], weak * inside[1], 0.3 * counts * inside[2], 0.3 + x, 0.3 + 0 * x])
    spectra = rng.poisson(np.tensordot(columns, maps, 1))
    edges = np.arange(0, 61, 2)
    summed = spectra.sum(axis=(1, 2)).astype(float)
    shares = np.array([share, 1.0, 1.0, np.nan, np.nan])
    model = SpectralModel(
        columns, ("Fe", "Co", "Cu", "low", "high"), 3, edges, 0, np.arange(60.0), None, summed, float(size**2), shares,
        np.zeros(5), (),
    )  # fmt: skip
    haadf = np.tensordot([26**1.7, 27**1.7, 29**1.7], maps[:3], 1)
    haadf = haadf / haadf.max() + 0.02 * rng.standard_normal(haadf.shape)
    scan = ScanData.of(np.zeros((3, size, size)), haadf, [26, 27, 29], elements=["Fe", "Co", "Cu"])
    return model, scan, np.add.reduceat(spectra, edges[:-1], axis=0), maps


def observed(settings=DIRECTIONAL, **kwargs):
    model, scan, counts, maps = scan_of(**kwargs)
    return SpectralObservation.of(scan, model, counts, settings, 1), maps


def test_lines_that_overlap_are_told_apart():
    observation, maps = observed()
    problem = observation.problem(DIRECTIONAL)
    assert isinstance(problem, FusionProblem)
    result, state = problem.solve(DIRECTIONAL, num_workers=1)
    assert result.reason is StopReason.SETTLED and result.maps.shape == (3, SIZE, SIZE)
    of_pixels = np.sqrt(np.mean((observation.scan.maps - maps[:3]) ** 2, axis=(1, 2)))
    assert np.all(np.sqrt(np.mean((result.maps - maps[:3]) ** 2, axis=(1, 2))) < 0.4 * of_pixels)
    absent = result.maps[1][maps[0] > 0].mean() / result.maps[0][maps[0] > 0].mean()
    assert absent < 0.15
    np.testing.assert_allclose(problem.columns(state).sum((1, 2)), observation.totals, rtol=1e-4)


def test_maps_are_counts_of_the_mapped_line():
    """A share of 0.5 of the counts of a column in its mapped line halves the map, and nothing else."""
    whole, half = (observed(share=share)[0].problem(DIRECTIONAL) for share in (1.0, 0.5))
    stopping = Stopping(50, gap=1e-9)
    (of_whole, _), (of_half, _) = (
        p.solve(stopping, p.coarse_start(num_workers=1), num_workers=1) for p in (whole, half)
    )
    np.testing.assert_allclose(of_half.maps[0], 0.5 * of_whole.maps[0], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(of_half.maps[1:], of_whole.maps[1:], rtol=2e-3, atol=4e-3)


def test_estimates_of_pixels_are_unbiased_with_the_variance_that_they_claim():
    found = []
    for seed in range(12):
        model, _, counts, maps = scan_of(seed)
        readout = pixel_readout(model.matrix, model.totals)
        estimates, variance = estimates_of_pixels(readout, counts, np.ones((SIZE, SIZE), bool))
        found.append((estimates - maps) / np.sqrt(variance))
    assert np.all(np.abs(np.mean(found, axis=(0, 2, 3))) < 5 / np.sqrt(12 * SIZE**2) + 0.02)
    np.testing.assert_allclose(np.std(found, axis=(0, 2, 3)), 1, atol=0.12)


def test_masked_pixels_are_left_out_and_filled_in():
    model, scan, counts, maps = scan_of()
    valid = np.ones((SIZE, SIZE), bool)
    valid[5:9, 5:9] = False
    wrong = np.where(valid, counts, 1000)
    model = replace(model, n_pixels=float(valid.sum()))
    scan = replace(scan, valid=np.broadcast_to(valid, scan.maps.shape))
    first, second = (
        SpectralObservation.of(scan, model, c, DIRECTIONAL, 1).problem(DIRECTIONAL) for c in (counts, wrong)
    )
    results = [p.solve(DIRECTIONAL, num_workers=1)[0] for p in (first, second)]
    np.testing.assert_array_equal(results[0].maps, results[1].maps)
    assert np.abs(results[0].maps[2][~valid].mean() - maps[2].mean()) < 0.5


def test_bands_without_a_column_are_refused_where_they_have_counts():
    model, scan, counts, _ = scan_of()
    columns = model.columns.copy()
    columns[:2] = 0
    model = replace(model, columns=columns)
    with pytest.raises(ValueError, match="1 bands have counts that no column"):
        SpectralObservation.of(scan, model, counts, DIRECTIONAL, 1)
    counts[0] = 0
    assert len(SpectralObservation.of(scan, model, counts, DIRECTIONAL, 1).matrix) == len(counts) - 1


def test_haadf_term_acts_on_maps_alone_and_the_gain_is_that_of_the_image():
    settings = replace(DIRECTIONAL, lambda_haadf=1.0)
    observation, maps = observed(settings, counts=20.0)
    problem = observation.problem(settings)
    assert np.all(problem.haadf_term.weights[:3] > 0) and not problem.haadf_term.weights[3:].any()
    true = np.array([26**1.7, 27**1.7, 29**1.7]) / np.max(np.tensordot([26**1.7, 27**1.7, 29**1.7], maps[:3], 1))
    np.testing.assert_allclose(observation.of_maps.calibration.forward_model.weights, true, rtol=0.1)


def test_choice_by_held_out_bands_and_average():
    """The ensemble has weights of its own for each map, and its maps are near the truth."""
    settings = AutoSettings(regularization="directional", lambda_haadf=0.0, components=0)
    observation, maps = observed(settings, counts=3.0)
    ensemble, selection = select(observation, settings, 1)
    weights = np.array([fit.weights for fit in ensemble])
    assert weights.shape[1] == 3 and selection.weights.shape[1] == 3 and "components" not in selection.tried
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    assert not any(fit.settings.joint for fit in ensemble)
    problem = AveragedProblem.of(ensemble)
    result, state = problem.solve(ensemble[0].settings, problem.first_state(ensemble), num_workers=1)
    assert np.sqrt(np.mean((result.maps - maps[:3]) ** 2)) < 0.3 * 3.0
    parts = problem.attribution(state, result.maps)
    moved = result.maps - observation.of_maps.problem(DIRECTIONAL).measured()
    np.testing.assert_allclose(sum(parts.values()), moved, atol=1e-3)


def test_as_many_components_as_bands_are_the_estimates_of_pixels():
    observation, _ = observed()
    components = BandComponents.of(observation, DIRECTIONAL, len(observation.counts))
    t = components.observation.scan.maps
    np.testing.assert_allclose(
        np.tensordot(components.readout, t - components.offset[:, None, None], 1),
        np.tensordot(pixel_readout(observation.matrix, observation.totals), observation.counts, 1),
        atol=1e-8,
    )
    seen = np.tensordot(components.directions, observation.counts, 1) + components.offset[:, None, None]
    np.testing.assert_allclose(seen, t, atol=1e-8)
    columns = components.columns(t)
    assert columns.min() >= 0 and components.maps(t).shape[0] == 3
    np.testing.assert_allclose(columns.sum((1, 2)), np.maximum(observation.totals, 0), rtol=1e-6)


@pytest.mark.parametrize("number", [2, "auto"])
def test_components_are_candidates_beside_fits_of_spectra(number):
    settings = AutoSettings(regularization="directional", lambda_reg=1.0, lambda_haadf=0.0, components=number)
    observation, _ = observed(settings, counts=0.5)
    ensemble, selection = select(observation, settings, 1)
    tried = set(selection.tried.get("components", [0]))
    assert 0 in tried and len(tried) == 2 and number in ("auto", max(tried))
    assert ensemble[0].source is observation
    again = ensemble_of(selection, observation, settings)
    assert [type(fit.source) for fit in again] == [type(fit.source) for fit in ensemble]


def test_averages_with_components_have_errors_and_attribution():
    """Replicates draw the same bands for all fits; masked pixels and bands without counts do not matter."""
    settings, (model, scan, counts, maps) = DIRECTIONAL, scan_of()
    valid = np.ones((SIZE, SIZE), bool)
    valid[5:9, 5:9] = False
    counts = np.where(valid, counts, 77)
    counts[-1, valid] = 0
    model = ScanSpectra(model, counts).of_pixels(valid).model
    scan = replace(scan, valid=np.broadcast_to(valid, scan.maps.shape))
    observation = SpectralObservation.of(scan, model, counts, settings, 1)
    half = np.full(3, 0.5)
    ensemble = [EnsembleFit(settings, half, s) for s in (observation, BandComponents.of(observation, settings))]
    problem = AveragedProblem.of(ensemble)
    result, state = problem.solve(settings, None, num_workers=1)
    np.testing.assert_allclose(result.maps[:, valid].sum(1), observation.totals[:3], rtol=1e-3)
    moved = result.maps - observation.of_maps.problem(settings).measured()
    parts = sum(problem.attribution(state, result.maps).values())
    np.testing.assert_allclose(parts[:, valid], moved[:, valid], atol=1e-3)
    first = problem.problems[0].resample(settings, state.states[0], result.maps, (0, 1))
    second = problem.problems[1].resample(settings, state.states[1], result.maps, (0, 1), (first,))
    inner, components = second.inner, problem.problems[1].components
    drawn = np.tensordot(components.directions, first.source.counts, 1) + components.offset[:, None, None]
    seen = inner.data.beta / np.where(inner.data.slope > 0, inner.data.slope, 1) * inner.scales[:, None, None]
    np.testing.assert_allclose(seen[:, valid], drawn[:, valid], rtol=1e-4, atol=1e-3)
    found = bootstrap(problem, settings, state, result.maps, number=3, num_workers=1)
    off = np.sqrt(np.mean((result.maps - maps[:3])[:, valid] ** 2, axis=1))
    error = np.sqrt(np.mean(found.errors**2, axis=(0, 2, 3)))
    assert np.all((error > 0.3 * off) & (error < 3 * off))


def test_scores_of_bands_have_the_gradient_of_their_columns():
    model, _, counts, maps = scan_of()
    fold = band_folds(counts, model.matrix, np.ones((SIZE, SIZE), bool), np.random.default_rng(0))[0]
    assert np.array_equal(fold.maps + fold.held_out, counts)
    rng = np.random.default_rng(1)
    x, step = 0.8 * maps + 0.1, 1e-5 * rng.standard_normal(maps.shape)
    change = (fold.scores(x + step) - fold.scores(x - step)).sum() / 2
    assert change == pytest.approx(float(np.sum(fold.derivatives(x)[0] * step)), rel=1e-5)


def test_replicates_draw_bands_and_fit_them_again():
    settings = replace(DIRECTIONAL, lambda_haadf=1.0)
    observation, maps = observed(settings)
    problem = observation.problem(settings)
    result, state = problem.solve(settings, num_workers=1)
    first, again = (problem.resample(settings, state, result.maps, (0, 1)) for _ in range(2))
    np.testing.assert_array_equal(first.source.counts, again.source.counts)
    other = problem.resample(settings, state, result.maps, (0, 1), (first,))
    np.testing.assert_array_equal(first.source.counts, other.source.counts)
    assert np.array_equal(first.of_maps.scan.haadf, other.of_maps.scan.haadf)
    without = observation.problem(DIRECTIONAL).resample(DIRECTIONAL, state, result.maps, (0, 1))
    after = problem.resample(settings, state, result.maps, (0, 1), (without,))
    assert after.haadf_term.weights.any() and not without.haadf_term.weights.size
    np.testing.assert_array_equal(after.haadf_term.weights, first.haadf_term.weights)
    expected = np.tensordot(observation.matrix, problem.columns(state), 1).sum()
    assert first.source.counts.sum() == pytest.approx(expected, abs=5 * np.sqrt(expected))
    found = bootstrap(problem, settings, state, result.maps, number=4, num_workers=1)
    error = np.sqrt(np.mean(found.errors**2, axis=(0, 2, 3)))
    off = np.sqrt(np.mean((result.maps - maps[:3]) ** 2, axis=(1, 2)))
    assert np.all((error > 0.4 * off) & (error < 2.5 * off))


def test_interval_of_e_steps_divides_that_of_checks():
    """So that a fit in two calls is that of one."""
    assert 25 % EVERY == 0


def test_regions_of_a_weak_element_beside_a_strong_one_are_unbiased_by_their_summed_spectrum():
    """Of means over scans, where the fused map has a third too little or more."""
    found = []
    for seed in range(10):
        model, scan, counts, maps = scan_of(seed, weak=0.5)
        scan = replace(scan, spectra=ScanSpectra(model, counts.astype(np.float32)))
        problem = SpectralObservation.of(scan, model, counts, DIRECTIONAL, 1).problem(DIRECTIONAL)
        result, _ = problem.solve(DIRECTIONAL, num_workers=1)
        mean = RegionCounts.of(problem, result.maps).counted_mean(maps[1] > 0, 1)
        assert mean.measured == scan.spectra.mean_of(maps[1] > 0, 1)
        found.append((mean.value, mean.error, mean.fused, maps[1][maps[1] > 0].mean()))
    value, error, fused, truth = np.array(found).T
    assert np.mean(fused - truth) < -0.25 * truth[0]
    assert abs(np.mean(value - truth)) < 3 * error.mean() / np.sqrt(10)
    assert 0.6 < np.sqrt(np.mean(((value - truth) / error) ** 2)) < 1.5
