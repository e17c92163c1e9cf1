"""The primal-dual solver: its maps are the optimum, its gap a bound, and a fit can be stopped and continued."""

import os
import re
import signal
from dataclasses import replace
from functools import cache

import numba
import numpy as np
import pytest
from calibrated_cases import (
    NOISES,
    NUMBERS,
    PENALTIES,
    calibrated_problem,
    fit,
    problem_of,
    small_scan,
    small_settings,
    tight,
)
from convex import Convex, adjoint, differences, directions, guide

from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.fusion.solvers import kernels
from hyperspy_fusion.fusion.solvers.primal_dual import CHECK_EVERY, primal_dual, size_about_means
from hyperspy_fusion.fusion.solvers.primal_dual_state import PrimalDualState


@pytest.fixture
def small():
    return small_scan()


@pytest.fixture
def scan():
    return small_scan((24, 31), dtype=np.float32)


def reference(problem, scan, settings):
    return Convex(scan[0].astype(float), scan[1], settings, problem.forward_model, problem.calibration.sigma)


def at_totals(state):
    """Maps and fields in natural units, scaled to the totals as the result is."""
    factors = state.factors()[:, None, None]
    if state.problem.penalty.kind not in ("guided", "tgv"):
        return state.z * factors, None
    return state.z * factors, state.v * np.repeat(factors, len(state.v) // len(factors), axis=0)


def per_map(fields, n=2):
    return None if fields is None else fields.reshape(n, -1, *fields.shape[1:])


# ---- the optimum -------------------------------------------------------------------------------------

COUPLINGS = {
    "joint": {},
    "per element": {"joint": False},
    "without image": {"lambda_haadf": 0},
    "without totals": {"keep_totals": False},
    "blurred image": {"haadf_blur": 0.8},
}
# all pairs of penalty, noise and coupling, but those without anything to fuse
CASES = [
    (kind, list(NOISES)[(i + j) % 3], coupling)
    for i, kind in enumerate(PENALTIES)
    for j, coupling in enumerate(COUPLINGS)
    if (kind, coupling) not in [("none", "without image"), ("none", "per element")]
]


@cache
def optimum(kind, noise, coupling):
    """Settings, problem, result and state of a fit to seven digits, made once."""
    settings = tight(regularization=kind, noise=noise, **NOISES[noise], **COUPLINGS[coupling])
    return settings, *fit(small_scan(), settings)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_objective_is_that_of_cvxpy(small, case):
    pytest.importorskip("cvxpy")
    settings, problem, result, state = optimum(*case)
    convex = reference(problem, small, settings)
    best, maps = convex.minimum()
    fused, fields = at_totals(state)
    assert result.converged and result.maps.min() >= 0
    own = problem.objective(fused, fields).total
    for value in (result.history.total[-1], own, convex.objective(result.maps, per_map(fields))):
        np.testing.assert_allclose(value, best, rtol=1e-6)
    # strongly convex where there is data: the objective fixes the maps to about the root of its accuracy
    np.testing.assert_allclose(result.maps, maps, atol=0.02 * np.sqrt(convex.unit.max()))
    if settings.keep_totals:
        expected = np.sum(small[0] - convex.background, axis=(1, 2))
        np.testing.assert_allclose(result.maps.sum(axis=(1, 2)), expected, rtol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gap_bounds_the_distance_from_the_optimum(small, case):
    """From a long run and its own gap: the optimum lies at most that below its objective."""
    settings, _, result, _ = optimum(*case)
    history = result.history
    assert np.all(history.gap - above_the_last(history, small) > -1e-9), "no bound"
    assert history.gap[-1] <= settings.tol and np.all(history.gap > -1e-12)
    assert history.gap[0] > 100 * settings.tol


def above_the_last(history, scan):
    """Objective less its last value, relative as the gap is."""
    return (history.total - history.total[-1]) / np.maximum(history.total, 1e-3 * scan[0].size)


@pytest.mark.parametrize("kind", PENALTIES)
def test_objective_of_narrow_scans_is_that_of_cvxpy(kind):
    """Cells in one line have slopes without differences."""
    pytest.importorskip("cvxpy")
    for shape in ((2, 7), (7, 2), (2, 2), (3, 3), (5, 8)):
        scan, settings = small_scan(shape, counts=3), tight(regularization=kind)
        problem, result, _ = fit(scan, settings)
        best, _ = reference(problem, scan, settings).minimum()
        np.testing.assert_allclose(result.history.total[-1], best, rtol=1e-6, atol=1e-6)
        assert result.converged


@pytest.mark.parametrize("kind", PENALTIES)
def test_optimum_in_single_precision(kind):
    """The default tolerance is reached, and true, in float32."""
    pytest.importorskip("cvxpy")
    scan = small_scan(dtype=np.float32)
    settings = small_settings(regularization=kind)
    problem, result, _ = fit(scan, settings)
    optimum, _ = reference(problem, scan, settings).minimum()
    assert result.maps.dtype == np.float32 and result.converged
    np.testing.assert_allclose(result.history.total[-1], optimum, rtol=1.1e-4)


@pytest.mark.parametrize("kind, noise", list(zip(PENALTIES, [*NOISES, *NOISES], strict=False)))
def test_conditions_of_the_optimum(small, kind, noise):
    """Gradient and multipliers balance where maps are above 0, and the duals are those of the differences."""
    settings = tight(regularization=kind, noise=noise, tol=1e-9, **NOISES[noise])
    problem, result, state = fit(small, settings)
    convex, x = reference(problem, small, settings), result.maps
    multipliers = adjoint(state.y) + state.theta[:, None, None]
    step = 1e-6
    gradient = np.zeros_like(x)
    for i, row, column in np.ndindex(x.shape):
        moved = np.zeros_like(x)
        moved[i, row, column] = step * convex.unit[i, 0, 0]
        smooth = [convex.fidelity(x + s * moved) + convex.haadf_term(x + s * moved) for s in (-1, 1)]
        gradient[i, row, column] = (smooth[1] - smooth[0]) / (2 * step)
    z = x / convex.unit
    inside = z > 1e-3
    assert inside.sum() > 60
    np.testing.assert_allclose((gradient + multipliers)[inside], 0, atol=2e-3)
    assert (gradient + multipliers)[z < 1e-9].min(initial=0) > -2e-3
    if kind in ("tv",):
        t = differences(z)
        length = np.sqrt((t**2).sum(axis=(0, 1)))
        steep = length > 0.1
        assert steep.any() and np.sqrt((state.y**2).sum(axis=(0, 1))).max() < 1 + 1e-12
        np.testing.assert_allclose(state.y[..., steep], (t / np.where(steep, length, 1))[..., steep], atol=5e-3)


@pytest.mark.parametrize("joint, haadf_blur", [(True, 1.2), (False, 0)])
@pytest.mark.parametrize("kind", ["tv", "directional", "tgv", "guided"])
def test_duals_stay_in_their_balls(scan, kind, joint, haadf_blur):
    problem, _, state = fit(scan, tight(regularization=kind, joint=joint, max_iter=130, haadf_blur=haadf_blur))
    over, y = ((0, 1) if joint else 0), state.y
    if kind == "directional":
        p = np.moveaxis(directions(guide(scan[1], 0.7), 0.95, haadf_blur), (0, 1), (-2, -1))
        y = np.moveaxis(np.linalg.inv(p) @ np.moveaxis(y, (0, 1), (-2, -1)), (-2, -1), (0, 1))
    assert np.sqrt((y**2).sum(axis=over)).max() <= 1 + 1e-9
    if problem.penalty.n_fields:
        q = state.q.reshape(4, 2, -1, *state.q.shape[2:])
        assert np.sqrt((q**2).sum(axis=(0, 1, 2) if joint else (0, 2))).max() <= problem.penalty.second_order + 1e-9


def test_iterations_are_those_of_the_equations(small):
    """Three of them, with the over-relaxation of duals and maps, for least squares, total variation and totals.

    They are made in one sweep. Before it the multipliers of the totals take a step which, times that of the maps in all
    three, is at most 1.
    """
    settings = tight(regularization="tv", noise="gaussian", variance=4.0, lambda_reg=0.5, lambda_haadf=0, max_iter=3)
    problem = problem_of(small, settings)
    b, totals = small[0] / 4, small[0].sum(axis=(1, 2)) / 4  # one unit of z is 2 / 0.5; slope is 4
    tau, sigma, sigma_theta = 1 / (8 * np.sqrt(0.5)), 1 / np.sqrt(2), 1 / 64
    y, theta = np.zeros((4, 2, 7, 7)), np.zeros(2)
    # off the totals, so that their multipliers move
    start = PrimalDualState.of(problem)
    start.z *= 1.1
    start.z_bar, start.totals, start.totals_bar = 1.2 * b, 1.1 * totals, 1.2 * totals
    z, z_bar = 1.1 * b, 1.2 * b
    for rho_duals, rho_maps, rho_totals in ((1, 1.6, 8 * np.sqrt(0.5) / 3), (1.6, 1, 0), (1, 1, 0)):
        y_hat = y + sigma * differences(z_bar)
        y_hat /= np.maximum(1, np.sqrt((y_hat**2).sum(axis=(0, 1))))
        y += rho_duals * (y_hat - y)
        theta += rho_totals * sigma_theta * (z_bar.sum(axis=(1, 2)) - totals)
        moved = z - tau * (adjoint(y) + theta[:, None, None])
        z_hat = np.maximum((moved + tau * 4 * b) / (1 + tau * 4), 0)
        z_bar, z = 2 * z_hat - z, z + rho_maps * (z_hat - z)
    _, state = primal_dual(problem, settings, start)
    pairs = (state.z, z), (state.y, y), (state.theta, theta), (state.z_bar, z_bar)
    for found, expected in (*pairs, (state.totals_bar, z_bar.sum(axis=(1, 2)))):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float64", 1e-12)])
def test_size_of_maps_of_little_contrast(dtype, rtol):
    maps = (1000 + np.random.default_rng(0).random((2, 128, 130))).astype(dtype)
    expected = np.linalg.norm(maps - maps.mean(axis=(1, 2), keepdims=True, dtype=float))
    assert size_about_means(maps) == pytest.approx(expected, rel=rtol)
    assert size_about_means(np.full((1, 3, 4), 0.1, dtype)) == 0


# ---- the gap -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [
    {"second_order": 3.0}, {"second_order": 0.01}, {"lambda_reg": 0.05}, {"joint": False}, {"background": 0.3},
])  # fmt: skip
@pytest.mark.parametrize("kind, stopped_at", [("tv", 30), ("tgv", 30), ("guided", 3000)])
def test_gap_of_a_warm_start_is_a_bound(small, kind, change, stopped_at):
    """Duals of another problem violate the constraints of this one, and the gap says by how much."""
    settings = tight(regularization=kind)
    _, _, state = fit(small, replace(settings, max_iter=stopped_at))
    other = replace(settings, **change)
    problem = calibrated_problem(*small, NUMBERS, other)
    warm, state = primal_dual(problem, other, state.restarted(problem))
    assert np.all(warm.history.gap - above_the_last(warm.history, small) > -1e-9)


@pytest.mark.parametrize("kind", ["tgv", "guided"])
def test_gap_at_the_start_counts_what_the_duals_violate(small, kind):
    settings = tight(regularization=kind, max_iter=60)
    problem, _, state = fit(small, settings)
    again = state.restarted(problem)
    result, _ = primal_dual(problem, replace(settings, max_iter=1), again)
    np.testing.assert_allclose(result.history.gap[0], state.gap, rtol=1e-6)


def test_gap_is_the_objective_less_its_bound(small):
    """The bound by hand, for the plainest problem: least squares and total variation."""
    settings = tight(regularization="tv", noise="gaussian", variance=4.0, lambda_reg=0.5, lambda_haadf=0, max_iter=10,
                     keep_totals=False, tol=1e-12)  # fmt: skip
    _, result, state = fit(small, settings)
    b, slope = small[0] / 4, adjoint(state.y)  # one unit of z is 2 / 0.5
    best = np.maximum(b - slope / 4, 0)
    lower = np.sum(2 * (best - b) ** 2 + slope * best)
    expected = (result.history.total[-1] - lower) / result.history.total[-1]
    assert 1e-12 < result.gap
    np.testing.assert_allclose(result.gap, expected, rtol=1e-6, atol=1e-14)


def test_tolerance_is_honoured(scan):
    for tol in (1e-2, 1e-5):
        _, result, state = fit(scan, small_settings(tol=tol, dtype="float64"))
        assert result.reason is StopReason.CONVERGED and result.gap == state.gap == result.history.gap[-1] <= tol
        assert np.all(result.history.gap[:-1] > tol)
        assert f"{result.gap:.2g}" in result.message


def test_out_of_iterations_is_not_converged(scan):
    _, result, _ = fit(scan, small_settings(tol=1e-12, max_iter=30))
    assert result.reason is StopReason.NOT_CONVERGED and not result.converged and result.n_iter == 30
    assert np.isnan(result.change)


# ---- what it reports ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, options", [
    ("tv", {}), ("directional", {"joint": False}), ("tgv", {"keep_totals": False}), ("guided", {"lambda_haadf": 0}),
    ("none", {}), ("tgv", {"joint": False}), ("guided", {}),
])  # fmt: skip
def test_history_is_the_objective_that_is_minimised(scan, kind, options):
    settings = tight(regularization=kind, max_iter=60, **options)
    problem, result, state = fit(scan, settings)
    fused, fields = at_totals(state)
    z = problem.initial_maps
    if settings.keep_totals:
        z = z * (problem.data.totals / z.sum((1, 2)))[:, None, None]
    start = problem.objective(z, None if fields is None else np.zeros_like(state.v))
    for index, terms in ((0, start), (-1, problem.objective(fused, fields))):
        for name in ("haadf", "chem", "tv", "total"):
            np.testing.assert_allclose(getattr(result.history, name)[index], getattr(terms, name), rtol=1e-9, atol=1e-9)
    assert result.history.iteration[-1] == result.n_iter
    np.testing.assert_array_equal(result.history.iteration[:2], [0, 25])
    assert len(result.history.gap) == len(result.history.total) == len(result.history.iteration)


def test_objective_is_that_of_the_formulas(scan):
    for noise, options in NOISES.items():
        for kind in PENALTIES:
            settings = tight(regularization=kind, noise=noise, max_iter=40, **options)
            problem, result, state = fit(scan, settings)
            fused, fields = at_totals(state)
            expected = reference(problem, scan, settings).objective(result.maps, per_map(fields))
            np.testing.assert_allclose(problem.objective(fused, fields).total, expected, rtol=1e-9)


def test_result_is_in_the_units_of_the_input(scan):
    problem, result, state = fit(scan, small_settings())
    fused, _ = at_totals(state)
    np.testing.assert_allclose(result.maps, problem.scales[:, None, None] * fused, rtol=1e-5)
    modelled = problem.forward_model.offset + 28 * result.maps[0] + 9 * result.maps[1]
    np.testing.assert_allclose(result.modelled_haadf, modelled, rtol=1e-5)
    np.testing.assert_allclose(result.maps.sum((1, 2), dtype=float), scan[0].sum((1, 2), dtype=float), rtol=1e-5)


def test_input_is_not_touched(scan):
    copies = [a.copy() for a in scan]
    problem, *_ = fit(scan, small_settings(max_iter=30))
    start = problem.initial_maps.copy()
    primal_dual(problem, small_settings(max_iter=30))
    for array, copy in zip((*scan, problem.initial_maps), (*copies, start), strict=True):
        np.testing.assert_array_equal(array, copy)


def test_dtype_of_the_fit(scan):
    for given, asked, used in (
        ("u2", None, "f4"),
        ("f8", None, "f4"),
        ("f4", "float64", "f8"),
    ):
        _, result, state = fit((scan[0].astype(given), scan[1]), small_settings(dtype=asked, max_iter=30))
        arrays = (result.maps, state.z, state.z_bar, state.y, state.q, state.v, state.residual)
        assert {a.dtype for a in arrays} == {np.dtype(used)}
        # one image: single precision would lose the contrast of one on a high level
        assert result.modelled_haadf.dtype == np.float64


# ---- stopped and continued ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind, first", list(zip(PENALTIES, (25, 50, 25, 50, 25), strict=True)))
def test_two_fits_are_one_fit(scan, kind, first):
    settings = small_settings(regularization=kind, lambda_reg=(3.0, 2.0), tol=1e-12, max_iter=90)
    _, whole, _ = fit(scan, settings)
    _, _, state = fit(scan, replace(settings, max_iter=first))
    _, parts, _ = fit(scan, replace(settings, max_iter=90 - first), state)
    np.testing.assert_array_equal(parts.maps, whole.maps)
    both = np.isin(parts.history.iteration, whole.history.iteration)
    np.testing.assert_array_equal(parts.history.total[both], whole.history.total)
    np.testing.assert_array_equal(parts.history.gap[both], whole.history.gap)
    assert parts.n_iter == 90 and np.all(np.diff(parts.history.iteration) > 0)


@pytest.mark.parametrize("kind", PENALTIES)
def test_fits_that_end_anywhere_are_within_bounds_and_go_on(small, kind):
    """Steps are over-relaxed, and would leave the bounds, but the last."""
    settings = small_settings(regularization=kind, tol=1e-6, max_iter=20000)
    _, whole, _ = fit(small, settings)
    _, result, state = fit(small, replace(settings, max_iter=37))
    lengths = np.sqrt(np.sum(state.y.astype(float) ** 2, axis=(0, 1)))
    assert state.z.min() >= 0 and lengths.max() <= 1 + 1e-5 and result.gap >= 0
    _, parts, _ = fit(small, settings, state)
    np.testing.assert_allclose(parts.history.total[-1], whole.history.total[-1], rtol=2e-6)


def test_many_short_fits_converge(small):
    """Without data, steps that relax maps and duals unlike each other move away from the optimum."""
    settings = tight(regularization="tv", noise="gaussian", variance=(3.0, 2.0), lambda_haadf=0.0, max_iter=2)
    valid = np.random.default_rng(0).random(small[0].shape) < 0.1
    problem, state = calibrated_problem(*small, NUMBERS, settings, valid=valid), None
    for _ in range(800):
        result, state = primal_dual(problem, settings, state)
    assert result.gap < 1e-3  # 1.4 where the dual is relaxed and the maps are not


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread is all there is")
@pytest.mark.parametrize("kind", PENALTIES)
def test_number_of_threads_is_used_and_does_not_matter(scan, kind):
    seen, settings = [], small_settings(regularization=kind, max_iter=60)
    _, one, _ = fit(scan, settings, num_workers=1, callback=lambda s: seen.append(numba.get_num_threads()))
    assert set(seen) == {1}
    _, two, _ = fit(scan, settings, num_workers=2)
    np.testing.assert_array_equal(one.maps, two.maps)
    np.testing.assert_array_equal(one.history.total, two.history.total)
    np.testing.assert_array_equal(one.history.gap, two.history.gap)


@pytest.mark.parametrize("change", [{"lambda_reg": 0.2}, {"lambda_reg": 0.4}, {"lambda_haadf": 0.5}, {"eta": 0.9}])
def test_warm_start_reaches_the_same_objective_sooner(small, change):
    """Over all penalties; a single one may take an evaluation or two more."""
    iterations = []
    for kind in PENALTIES:
        settings = tight(regularization=kind, tol=1e-5)
        _, _, state = fit(small, settings)
        problem = calibrated_problem(*small, NUMBERS, replace(settings, **change))
        before = state.z.copy()
        warm, _ = primal_dual(problem, settings, state.restarted(problem))
        cold, _ = primal_dual(problem, settings)
        np.testing.assert_allclose(warm.history.total[-1], cold.history.total[-1], rtol=2e-5)
        np.testing.assert_array_equal(state.z, before)
        assert warm.converged and cold.converged
        iterations.append((warm.n_iter, cold.n_iter))
    warm, cold = np.sum(iterations, axis=0)
    assert warm < (0.95 if "lambda_haadf" in change else 0.7) * cold, iterations


@pytest.mark.parametrize("kind, other", [("tv", "tgv"), ("guided", "tv"), ("directional", "guided"), ("tgv", "none")])
def test_warm_start_of_another_penalty(small, kind, other):
    _, _, state = fit(small, tight(regularization=kind, max_iter=100))
    settings = tight(regularization=other, tol=1e-6)
    problem = calibrated_problem(*small, NUMBERS, settings)
    warm, _ = primal_dual(problem, settings, state.restarted(problem))
    cold, _ = primal_dual(problem, settings)
    np.testing.assert_allclose(warm.history.total[-1], cold.history.total[-1], rtol=2e-6)


def test_warm_start_drops_multipliers_of_totals_no_longer_kept(small):
    _, _, state = fit(small, tight(regularization="tv"))
    assert np.all(state.theta != 0)
    settings = tight(regularization="tv", keep_totals=False)
    problem = calibrated_problem(*small, NUMBERS, settings)
    warm, state = primal_dual(problem, settings, state.restarted(problem))
    assert not state.theta.any()
    np.testing.assert_allclose(warm.history.total[-1], fit(small, settings)[1].history.total[-1], rtol=2e-7)


@pytest.mark.parametrize("error, reason", [(KeyboardInterrupt, "INTERRUPTED"), (StopIteration, "STOPPED")])
def test_stopping_keeps_the_last_iterate(scan, error, reason):
    def stop(state):
        if state.n_iter == 2 * CHECK_EVERY:
            raise error

    settings = small_settings(tol=1e-12)
    _, result, _ = fit(scan, settings, callback=stop)
    _, expected, _ = fit(scan, replace(settings, max_iter=2 * CHECK_EVERY))
    assert result.reason is StopReason[reason] and result.n_iter == 2 * CHECK_EVERY
    np.testing.assert_array_equal(result.maps, expected.maps)
    np.testing.assert_array_equal(result.history.total, expected.history.total)


@pytest.mark.parametrize("kernel, when", [
    ("primal_dual_sweep", "before"), ("primal_dual_sweep", "after"), ("data_terms", "after"),
])  # fmt: skip
def test_ctrl_c_within_an_iteration_leaves_it_whole(scan, monkeypatch, kernel, when):
    """A signal is delivered when a kernel returns, between any two statements of the loop."""
    compiled, calls = getattr(kernels, kernel), []

    def interrupted(*args):
        calls.append(None)
        if len(calls) == 3 and when == "before":
            os.kill(os.getpid(), signal.SIGINT)
        compiled(*args)
        if len(calls) == 3 and when == "after":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(kernels, "are_compiled", lambda dtype, wanted: True)
    monkeypatch.setattr(kernels, kernel, interrupted)
    settings = small_settings(regularization="guided", tol=1e-12, max_iter=80)
    _, result, state = fit(scan, settings)
    monkeypatch.undo()
    assert result.reason is StopReason.INTERRUPTED and 1 <= result.n_iter <= 50
    _, expected, _ = fit(scan, replace(settings, max_iter=result.n_iter))
    np.testing.assert_array_equal(result.maps, expected.maps)
    assert result.history.iteration[-1] == result.n_iter
    np.testing.assert_allclose(result.gap, expected.gap, rtol=1e-12)
    _, _, alike = fit(scan, replace(settings, max_iter=result.n_iter))
    resumed, expected = (fit(scan, replace(settings, max_iter=40), s)[1] for s in (state, alike))
    np.testing.assert_array_equal(resumed.maps, expected.maps)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_before_the_first_iteration_is_passed_on(scan, monkeypatch):
    compiled = kernels.data_terms

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        compiled(*args)

    monkeypatch.setattr(kernels, "are_compiled", lambda dtype, wanted: True)
    monkeypatch.setattr(kernels, "data_terms", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(scan, small_settings())


@pytest.mark.parametrize("is_compiled, is_kept", [(True, True), (False, True), (False, False)])
def test_the_first_fit_reports_that_it_compiles(scan, monkeypatch, caplog, is_compiled, is_kept):
    monkeypatch.setattr(kernels, "CACHE", is_kept)
    monkeypatch.setattr(kernels, "are_compiled", lambda dtype, wanted: is_compiled)
    fit(scan, small_settings(max_iter=1))
    assert bool(re.search("Compiling the fusion kernels .* about a minute at most", caplog.text)) is not is_compiled
    assert ("later sessions find them" in caplog.text) is (is_kept and not is_compiled)


# ---- extremes ----------------------------------------------------------------------------------------


def bright_pixel():
    maps, haadf = small_scan((16, 16))
    maps[0, 5, 7], haadf[5, 7] = 1e5, 1e7
    return maps, haadf


def zero_rows():
    maps, haadf = small_scan((16, 16))
    maps[:, 4:9] = 0
    maps[0] *= np.arange(16) > 12
    return maps, haadf


EXTREMES = {
    "rows of zeros": zero_rows,
    "one bright pixel": bright_pixel,
    "hardly a count": lambda: small_scan((32, 32), counts=1e-3, seed=5),
    "a million counts": lambda: small_scan((16, 16), counts=1e6),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", EXTREMES)
def test_extremes_stay_finite(case, dtype):
    for i, kind in enumerate(PENALTIES):
        # with all pairs of case and noise, in either precision
        noise = list(NOISES)[(i + list(EXTREMES).index(case)) % 3]
        _stays_finite(case, kind, noise, dtype)


def _stays_finite(case, kind, noise, dtype):
    settings = CalibratedSettings(
        regularization=kind, noise=noise, haadf_coefficients=(28.0, 9.0), dtype=dtype, max_iter=150
    )
    maps, haadf = EXTREMES[case]()
    _, result, _ = fit((maps, haadf), settings)
    assert np.isfinite(result.maps).all() and np.isfinite(result.history.total).all()
    assert np.isfinite(result.gap) and result.maps.min() >= 0
    kept = result.maps.sum(axis=(1, 2), dtype=float)
    np.testing.assert_allclose(kept, maps.sum(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("case", EXTREMES)
def test_extremes_converge(case):
    settings = CalibratedSettings(regularization="directional", noise="shifted_poisson", haadf_coefficients=(28.0, 9.0),
                                  dtype="float64", max_iter=20000)  # fmt: skip
    _, result, _ = fit(EXTREMES[case](), settings)
    assert result.converged


def test_bright_pixel_of_the_image_alone_is_not_cut_at_the_largest_count():
    """The maps may rise above anything measured; neither they nor the gap may then depend on a bound."""
    rng = np.random.default_rng(0)
    maps = rng.poisson(0.5, (2, 24, 24)).astype(float)
    haadf = 3 * maps[0] + maps[1] + rng.standard_normal((24, 24))
    haadf[8:16, 8:16] += 400
    settings = CalibratedSettings(regularization="tv", haadf_coefficients=(3, 1), keep_totals=False, tol=1e-6)
    problem = calibrated_problem(maps, haadf, (26, 8), settings)
    # an image taken at its word, where the fitted forward model would be said to lack the bright pixels
    haadf_term = replace(
        problem.haadf_term, weights=problem.haadf_term.weights * 40, target=problem.haadf_term.target * 40
    )
    problem = replace(problem, haadf_term=haadf_term)
    result, state = primal_dual(problem, settings)
    raised = replace(problem, data=replace(problem.data, upper=problem.data.upper * 100))
    other, _ = primal_dual(raised, settings)
    assert np.any(state.z.max(axis=(1, 2)) > problem.data.upper)
    assert result.converged and other.converged
    np.testing.assert_allclose(result.history.total[-1], other.history.total[-1], rtol=3e-6)
