"""Fits of frames of a series together: bound of the gap, minimum, and what is left without the penalty along it."""

from functools import cache

import numpy as np
import pytest
from calibrated_cases import NUMBERS, calibrated_problem, settings_of, small_scan
from convex import Convex

from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual
from hyperspy_fusion.fusion.solvers.primal_dual_state import PrimalDualState, Stopping
from hyperspy_fusion.fusion.solvers.series import Series, SeriesState, fit_series

CASES = {
    "tv": {"noise": "poisson", "background": 0.3},
    "directional": {"noise": "gaussian", "variance": 3.0},
    "guided": {"noise": "poisson"},
    "tgv": {"noise": "gaussian", "variance": 3.0, "keep_totals": False},
    "none": {"noise": "poisson", "lambda_haadf": 0.0},
}
BLURRED = {"noise": "poisson", "haadf_blur": 0.8, "regularization": "tv"}


@cache
def series(regularization, weight=0.6, n_frames=3, **options):
    """Frames with other counts each, one of them with masked pixels."""
    settings, problems = settings_of(**{"regularization": regularization, **options}), []
    for t in range(n_frames):
        maps, haadf = small_scan((6, 7), counts=1 + t, seed=t + 1)
        valid = np.ones(maps.shape, bool)
        valid[:, 2:4, 3] = t != 1 or regularization in ("tv", "guided")
        problems.append(calibrated_problem(maps, haadf, NUMBERS, settings, valid=valid))
    return Series(problems, weight, np.mean([problem.noise.unit for problem in problems], axis=0))


def start(of):
    return SeriesState.of([PrimalDualState.of(problem) for problem in of.problems])


@cache
def solved(regularization, **options):
    results, state = fit_series(
        series(regularization, **options), Stopping(20000, gap=1e-7), start(series(regularization, **options))
    )
    return results, state


def objective(of, maps, regularization):
    """Of maps in units of the input, with NumPy; penalties without slopes alone."""
    own = sum(p.objective(m / p.scales[:, None, None]).total for p, m in zip(of.problems, maps, strict=True))
    return own + of.weight * sum(np.abs(d).sum() for d in np.diff(maps, axis=0) / of.units[:, None, None])


@pytest.mark.parametrize("regularization", CASES)
def test_the_bound_is_never_above_the_objective(regularization):
    """That of no iteration is above the minimum, and the gap goes to 0."""
    results, state = solved(regularization, **CASES[regularization])
    assert results[0].gap <= 1e-7
    least = state.records[-1][1].total
    of = series(regularization, **CASES[regularization])
    for _, terms, gap in state.records:
        size = max(
            terms.total - terms.haadf + min(terms.haadf, sum(p.haadf_term.target.size for p in of.problems) / 2), 0
        )
        assert terms.total >= least * (1 - 1e-7) and terms.total - gap * size <= least * (1 + 1e-9)
    if regularization in ("tv", "directional", "none"):
        maps = np.array([one.maps for one in results])
        assert objective(of, maps, regularization) == pytest.approx(least, rel=1e-9)
        for seed in range(3):  # other maps of these totals are worse
            other = maps * np.random.default_rng(seed).uniform(0.9, 1.1, maps.shape)
            other *= (maps.sum(axis=(2, 3)) / other.sum(axis=(2, 3)))[:, :, None, None]
            assert objective(of, other, regularization) > least


def test_a_blurred_haadf_term():
    results, _ = solved(**BLURRED)
    assert results[0].gap <= 1e-7
    maps = np.array([one.maps for one in results])
    assert objective(series(**BLURRED), maps, "tv") == pytest.approx(results[0].history.total[-1], rel=1e-9)


@pytest.mark.parametrize("regularization", ["guided", "tv"])
def test_minimum_is_that_of_cvxpy(regularization):
    cp = pytest.importorskip("cvxpy")
    options = {"noise": "poisson", "background": 0.3, "n_frames": 2}
    of, settings = (
        series(regularization, **options),
        settings_of(regularization=regularization, noise="poisson", background=0.3),
    )
    terms, limits, x = [], [], []
    for problem in of.problems:
        scan, calibration = problem.scan, problem.calibration
        convex = Convex(scan.maps, scan.haadf, settings, calibration.forward_model, calibration.sigma)
        z = [cp.Variable(scan.maps[0].size, nonneg=True) for _ in scan.maps]
        x.append([float(u) * zi for u, zi in zip(convex.unit.ravel(), z, strict=True)])
        image = sum(w * xi for w, xi in zip(convex.forward_model.weights, x[-1], strict=True))
        residual = (scan.haadf - convex.forward_model.offset).ravel() - image
        terms += [convex._fidelity(cp, i, xi) for i, xi in enumerate(x[-1])]
        terms += [0.5 * cp.sum_squares(residual / convex.sigma), convex._penalty(cp, z)]
        limits += [cp.sum(xi) == (m - 0.3).sum() for xi, m in zip(x[-1], scan.maps, strict=True)]
    terms += [of.weight * cp.norm1(b - a) / u for a, b, u in zip(*x, of.units, strict=True)]
    best = cp.Problem(cp.Minimize(sum(terms)), limits)
    best.solve(solver="CLARABEL", tol_gap_rel=1e-9, tol_gap_abs=1e-9, tol_feas=1e-9)
    results, _ = solved(regularization, **options)
    assert results[0].history.total[-1] == pytest.approx(best.value, rel=1e-6)
    for fitted, expected in zip(results, x, strict=True):
        np.testing.assert_allclose(fitted.maps.reshape(2, -1), [xi.value for xi in expected], atol=0.01)


@pytest.mark.parametrize("stopping", [Stopping(60), Stopping(60, gap=1e-12)])
def test_without_weight_it_is_frame_by_frame(stopping):
    """Bit for bit, but for the multipliers of the totals, which a scan alone updates every second iteration."""
    of = series("guided", weight=0.0, noise="poisson", keep_totals=False)
    results, _ = fit_series(of, stopping, start(of))
    for problem, fitted in zip(of.problems, results, strict=True):
        alone, _ = primal_dual(problem, stopping, PrimalDualState.of(problem))
        np.testing.assert_array_equal(fitted.maps, alone.maps)


def test_a_large_weight_makes_frames_alike():
    """The mean of the frames in which a pixel is valid, whatever natural units each has."""
    of = series("none", weight=100.0, noise="poisson", lambda_haadf=0.0, keep_totals=False)
    results, _ = fit_series(of, Stopping(20000, gap=1e-8), start(of))
    valid = [problem.scan.valid for problem in of.problems]
    measured = np.mean([problem.scan.maps for problem in of.problems], axis=0, where=valid)
    for fitted in results:
        np.testing.assert_allclose(fitted.maps, measured, atol=1e-2)
