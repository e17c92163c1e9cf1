"""Counts in bands: E step and duality gap against NumPy and CVXPY, and the fit of both."""

import numpy as np
import pytest
from band_cases import SHIFT, drawn, problem_of
from convex import matrix as difference_matrix

from hyperspy_fusion.fusion.solvers import kernels
from hyperspy_fusion.fusion.solvers.multilevel import coarsened
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual
from hyperspy_fusion.fusion.solvers.primal_dual_state import PrimalDualState, Stopping
from hyperspy_fusion.fusion.terms.band_counts import without_traces

# the kernels of bands take long to compile once more
IN_DOUBLE_PRECISION = pytest.mark.slow


@pytest.mark.parametrize(
    "dtype, tolerance", [pytest.param("float64", 1e-12, marks=IN_DOUBLE_PRECISION), ("float32", 3e-6)]
)
@pytest.mark.parametrize("sparse", [True, False])
def test_e_step_assigns_all_counts(dtype, tolerance, sparse):
    """Kernel and NumPy agree; every count goes to a column, whatever the zeros of the matrix."""
    columns, maps, counts = drawn(1, (6, 5, 7), 9)
    problem = problem_of(columns if sparse else columns + 0.01, counts, dtype=dtype)
    z = np.random.default_rng(0).normal(0.5, 1, problem.shape).astype(dtype)
    data, out, n = problem.data, np.empty(problem.shape, dtype), problem.shape[0]
    used, number = np.argsort(data.matrix == 0, axis=1, kind="stable"), np.count_nonzero(data.matrix, axis=1)
    for workers in (1, 3):
        work = np.empty((workers, 3 * n + 2, problem.shape[2]), dtype)
        before = out.copy()
        kernels.assign_counts(z, data.counts, data.matrix, used, number, data.delta, out, work)
    np.testing.assert_array_equal(out, before)
    np.testing.assert_allclose(out, data.assigned(z), rtol=10 * tolerance, atol=tolerance)
    np.testing.assert_allclose(out.sum(axis=0), data.counts.sum(axis=0), rtol=10 * tolerance)


@IN_DOUBLE_PRECISION
@pytest.mark.parametrize("seed", range(6))
def test_bound_is_never_above_the_objective(seed):
    """For any matrix, counts, mask, HAADF term, and at any moment of a fit, duals far from the best ones included."""
    rng = np.random.default_rng(seed)
    columns, _, counts = drawn(seed, (2 + seed % 3, 6, 5), 4 + seed, mean=10.0 ** rng.uniform(-1, 1.5))
    n = columns.shape[1]
    weights = rng.random(n) * (rng.random(n) < 0.7) if seed % 2 else ()
    problem = problem_of(
        columns * 10.0 ** rng.uniform(-2, 2, n) if seed > 3 else columns,
        counts,
        kind="tv" if seed % 3 else "tgv",
        unit=10.0 ** rng.uniform(-0.5, 0.5, n),
        valid=None if seed < 2 else rng.random(counts.shape[1:]) < 0.8,
        weights=weights,
        totals=seed != 3,
    )
    best, state = np.inf, None
    bounds = []
    for max_iter in (1, 2, 7, 40, 400):
        result, state = primal_dual(problem, Stopping(max_iter, gap=1e-9), state, num_workers=1)
        factors = state.factors()[:, None, None]
        slopes = state.v * np.repeat(factors, 2, axis=0) if problem.penalty.n_fields else None
        terms = problem.objective(state.z * factors, slopes)
        np.testing.assert_allclose(result.history.total[-1], terms.total, rtol=1e-9)
        best = min(best, terms.total)
        size = terms.chem + terms.tv + min(terms.haadf, problem.haadf_term.target.size / 2)
        bounds.append(terms.total - result.gap * max(size, 1e-3 * np.prod(problem.shape)))
    assert max(bounds) <= best + 1e-9 * abs(best)


@pytest.mark.parametrize(
    "seed, dtype",
    [(2, "float32"), (10, "float32"), *(pytest.param(k, "float64", marks=IN_DOUBLE_PRECISION) for k in (0, 8))],
)
def test_objective_never_rises_and_is_that_of_the_maps(seed, dtype):
    """Scans whose iterates rise by up to 6e-5 at a check; a second call continues from the last iterate."""
    columns, _, counts = drawn(seed, (3 + seed % 3, 16, 16), 8, mean=[0.5, 3, 20][seed % 3])
    weights = np.random.default_rng(seed).random(columns.shape[1]) if seed > 6 else ()
    problem = problem_of(columns, counts, dtype=dtype, weights=weights)
    whole, state = primal_dual(problem, Stopping(350, gap=1e-6), num_workers=1)
    assert np.all(np.diff(whole.history.total) <= 0)
    assert whole.history.total[-1] == pytest.approx(problem.objective(whole.maps / problem.scales[:, None, None]).total)
    np.testing.assert_array_equal(whole.maps, state.z * (state.factors() * problem.scales).astype(dtype)[:, None, None])
    kept = np.flatnonzero(np.diff(whole.history.total) == 0)[0] + 1  # a check whose iterate is worse
    before = int(whole.history.iteration[kept])
    _, state = primal_dual(problem, Stopping(before, gap=1e-6), num_workers=1)
    split, _ = primal_dual(problem, Stopping(350 - before, gap=1e-6), state, num_workers=1)
    np.testing.assert_array_equal(whole.maps, split.maps)
    np.testing.assert_array_equal(whole.history.gap, split.history.gap)


@IN_DOUBLE_PRECISION
def test_gap_closes():
    columns, maps, counts = drawn(3, (4, 24, 24), 12, mean=6.0)
    problem = problem_of(columns, counts)
    result, state = primal_dual(problem, Stopping(1000, gap=1e-4), num_workers=1)
    history = result.history
    assert result.gap <= 1e-4
    assert history.iteration[np.argmax(history.gap <= 1e-3)] <= 400
    np.testing.assert_allclose((state.z * state.factors()[:, None, None]).sum((1, 2)), problem.data.totals, rtol=1e-9)


@IN_DOUBLE_PRECISION
@pytest.mark.parametrize("weights", [(), (0.5, 0.0, 0.2)])
def test_minimum_is_that_of_cvxpy(weights):
    """Written from the formulas: deviance of the bands, total variation of each map, HAADF term, totals."""
    cp = pytest.importorskip("cvxpy")
    columns, _, counts = drawn(5)
    n, (ny, nx), d = 3, counts.shape[1:], difference_matrix(8, 8)
    problem = problem_of(columns, counts, weights=weights)
    z = cp.Variable((n, ny * nx), nonneg=True)
    shifted = counts.reshape(len(counts), -1) + (columns @ np.full(n, SHIFT))[:, None]
    terms = [cp.sum(cp.kl_div(shifted, columns @ (1.5 * z + SHIFT)))]
    terms += [cp.sum(cp.norm(cp.reshape(d @ z[i], (4, (ny - 1) * (nx - 1)), order="C"), axis=0)) for i in range(n)]
    if weights:
        terms.append(0.5 * cp.sum_squares(np.array(weights) @ z - problem.haadf_term.target.ravel()))
    kept = [cp.sum(z[i]) == problem.data.totals[i] for i in range(n)]
    task = cp.Problem(cp.Minimize(sum(terms)), kept)
    task.solve(solver="CLARABEL")
    result, state = primal_dual(problem, Stopping(4000, gap=1e-6), num_workers=1)
    assert result.history.total[-1] == pytest.approx(task.value, rel=1e-4)
    np.testing.assert_allclose(state.z.reshape(n, -1), z.value, atol=0.02 * z.value.max())


def test_coarse_terms_are_half_those_of_the_pixels():
    """Of maps that are constant in squares of 2 x 2 pixels, masked pixels and odd edges included."""
    columns, _, counts = drawn(7, (3, 7, 6))
    valid = np.ones(counts.shape[1:], bool)
    valid[2:4, 1:3] = valid[6, 5] = False
    problem = problem_of(columns, counts, valid=valid)
    coarse, z = coarsened(problem), np.random.default_rng(1).random((3, 4, 3))
    fine = np.repeat(np.repeat(z, 2, axis=1), 2, axis=2)[:, :7, :6]
    other = np.random.default_rng(2).random((3, 4, 3))
    fine_other = np.repeat(np.repeat(other, 2, axis=1), 2, axis=2)[:, :7, :6]
    of_fine = problem.data.value(fine) - problem.data.value(fine_other)
    assert coarse.data.value(z) - coarse.data.value(other) == pytest.approx(of_fine / 2)
    np.testing.assert_allclose(coarse.data.slope.sum((1, 2)), (problem.data.slope).sum((1, 2)) / 2)


def test_fit_continues_where_it_ended_and_does_not_depend_on_threads():
    columns, _, counts = drawn(2, (3, 16, 16))
    problem = problem_of(columns, counts, dtype="float32")
    whole, _ = primal_dual(problem, Stopping(100, gap=1e-9), num_workers=1)
    _, state = primal_dual(problem, Stopping(50, gap=1e-9), num_workers=2)
    split, _ = primal_dual(problem, Stopping(50, gap=1e-9), state, num_workers=2)
    np.testing.assert_array_equal(whole.maps, split.maps)


def test_states_of_one_problem_do_not_share_their_counts():
    columns, _, counts = drawn(2)
    problem = problem_of(columns, counts)
    assert PrimalDualState.of(problem).beta is not PrimalDualState.of(problem).beta


def test_traces_of_columns_are_left_out():
    columns = np.array([[1.0, 1e-9], [1e-7, 1.0]])
    np.testing.assert_array_equal(without_traces(columns) > 0, np.eye(2, dtype=bool))
