"""Tiles of a field: multipliers in place of totals, and what they share."""

from dataclasses import replace

import numpy as np
import pytest
from calibrated_cases import NOISES, NUMBERS, observe, problem_of, scan_of, settings_of

from hyperspy_fusion.fusion.problems.tiles import FieldDraws, FieldModel, halo_of
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.terms.scan_data import ScanData


@pytest.mark.parametrize("noise", NOISES)
def test_known_multipliers_keep_the_totals(noise):
    valid = np.ones((2, 24, 30), bool)
    valid[0, 4:9, 12:20] = False
    settings = settings_of(noise=noise, tol=1e-6, **NOISES[noise])
    problem = observe(*scan_of((24, 30)), NUMBERS, settings, valid=valid).problem(settings)
    result, state = problem.solve(settings)
    known = replace(problem, data=problem.data.with_multipliers(state.theta))
    again, _ = known.solve(settings)
    np.testing.assert_allclose(again.maps, result.maps, atol=2e-3 * result.maps.max())
    totals = (np.sum(one.maps, axis=(1, 2), where=valid) for one in (again, result))
    np.testing.assert_allclose(*totals, rtol=1e-4)


@pytest.mark.parametrize("regularization", ["guided", "directional"])
@pytest.mark.parametrize("guide_blur", [0.7, None])
def test_the_sample_is_a_tile_of_itself(regularization, guide_blur):
    settings = settings_of(regularization=regularization, guide_blur=guide_blur, tol=1e-6)
    problem = problem_of(scan_of(), settings)
    result, state = problem.solve(settings)
    shared = FieldModel.of(problem, state, settings, [settings])
    guide = problem.guide
    assert shared.image_noise == guide.noise
    limits = tuple(np.percentile(problem.scan.haadf, (0.1, 99.9)))
    tile = replace(shared, limits=limits).solve(ScanData.of(*scan_of(), NUMBERS))
    np.testing.assert_allclose(tile.maps, result.maps, atol=2e-3 * result.maps.max())


def test_the_halo_follows_the_weight():
    def halo(**own):
        return halo_of(CalibratedSettings(**own))

    assert halo() == 64 and halo(lambda_reg=0.25) == 32 and halo(lambda_reg=[0.1, 1.0]) == 64
    assert halo(regularization="none") == 2 and halo(lambda_reg=90) == 128


@pytest.mark.parametrize("mean", [0.3, 4.0, 60.0])
def test_overlapping_tiles_draw_the_same(mean):
    means = np.full((2, 300, 300), mean)
    means[:, :10] = 0
    whole, part = FieldDraws((0, 1), (10, 20)), FieldDraws((0, 1), (210, 70))
    counts, window = whole.poisson(means), part.poisson(means[:, 200:, 50:] * 1.00001)
    assert np.mean(counts[:, 200:, 50:] != window) < 1e-3 and not counts[:, :10].any()
    found = counts[:, 10:]
    np.testing.assert_allclose([found.mean(), found.var()], mean, rtol=0.02)
    normal = whole.standard_normal((300, 300))
    np.testing.assert_array_equal(normal[200:, 50:], part.standard_normal((100, 250)))
    assert abs(np.corrcoef(normal.ravel(), counts[0].ravel())[0, 1]) < 0.02 and normal.std() == pytest.approx(
        1, abs=0.02
    )
