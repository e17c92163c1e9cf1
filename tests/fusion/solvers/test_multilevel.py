"""The coarse start: the same objective in squares of pixels, a state within its bounds, and honest standard errors."""

from dataclasses import replace

import numpy as np
import pytest
from calibrated_cases import problem_of, settings_of

from hyperspy_fusion.data import core_shell
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.solvers import multilevel, primal_dual
from hyperspy_fusion.fusion.solvers.multilevel import coarsened, multilevel_start, prolonged
from hyperspy_fusion.fusion.solvers.primal_dual_state import PrimalDualState, Stopping
from hyperspy_fusion.fusion.terms.penalties import cell_differences

KINDS = ["tv", "directional", "tgv", "guided"]


def scan(shape=(40, 36), counts=4.0, seed=0):
    phantom = core_shell(shape, counts=counts, seed=seed)
    return phantom.maps[:2].astype(float), phantom.haadf


def case(kind, shape=(40, 36), **settings):
    return problem_of(scan(shape), settings_of(regularization=kind, lambda_reg=1.0, **settings))


def repeated(maps):
    return np.repeat(np.repeat(maps, 2, axis=-2), 2, axis=-1)


@pytest.mark.parametrize("noise", ["poisson", "shifted_poisson", "gaussian"])
def test_data_terms_of_squares_are_half_those_of_their_pixels(noise):
    problem = case("tv", noise=noise, dtype="float64", **({"variance": 2.0} if noise == "gaussian" else {}))
    coarse = coarsened(problem)
    rng = np.random.default_rng(0)
    one, other = (rng.uniform(0.5, 2, coarse.shape) for _ in range(2))
    for term in ("data", "haadf_term"):
        fine, half = getattr(problem, term), getattr(coarse, term)
        # up to a constant
        differences = fine.value(repeated(one)) - fine.value(repeated(other)), half.value(one) - half.value(other)
        np.testing.assert_allclose(differences[0] / 2, differences[1], rtol=1e-9)


def test_penalty_of_a_ramp_is_half_that_of_its_pixels():
    """Total variation; for tgv and guided of maps that cost their second order alone."""
    y, x = np.indices((40, 36), float)
    ramp = (3 + 0.2 * y + 0.1 * x)[None].repeat(2, axis=0)
    coarse_ramp = ramp.reshape(2, 20, 2, 18, 2).mean(axis=(2, 4))
    problem = case("tv", dtype="float64")
    fine, half = problem.penalty.value(ramp), coarsened(problem).penalty.value(coarse_ramp)
    np.testing.assert_allclose(fine / (39 * 35) * 2, half / (19 * 17), rtol=1e-9)
    assert coarsened(case("tgv")).penalty.second_order == case("tgv").penalty.second_order / 2


def test_coarse_guide_is_the_differences_of_the_binned_image():
    image = np.random.default_rng(0).random((40, 37))
    edges = cell_differences(image)
    squares = np.pad(image, ((0, 0), (0, 1)), mode="edge").reshape(20, 2, 19, 2).mean(axis=(1, 3))
    found, expected = multilevel._coarse_guide(edges, True), cell_differences(squares)
    # but at the odd edge
    np.testing.assert_allclose(found[..., :-1], expected[..., :-1], atol=1e-12)
    assert found.shape == expected.shape


@pytest.mark.parametrize(
    "kind, joint",
    [("tv", True), pytest.param("directional", False, marks=pytest.mark.slow), ("tgv", True), ("guided", False)],
)
def test_prolonged_state_is_near_the_minimum_and_within_bounds(kind, joint):
    problem = case(kind, (31, 26), joint=joint, dtype="float64", haadf_blur=1.0 if kind == "directional" else 0.0)
    coarse = coarsened(problem)
    _, state = primal_dual.primal_dual(coarse, Stopping(4000, gap=1e-4))
    start = prolonged(state, problem)
    best, last = primal_dual.primal_dual(problem, Stopping(6000, gap=1e-5))
    first, _ = primal_dual.primal_dual(problem, Stopping(1, gap=1e-6), start)
    # the bound of the gap holds for duals within their balls alone
    assert first.history.gap[0] >= first.history.total[0] / best.history.total[-1] - 1 - 1e-5
    cold, _ = primal_dual.primal_dual(problem, Stopping(1, gap=1e-6))
    from_best = [h.total[0] - best.history.total[-1] for h in (first.history, cold.history)]
    assert 0 < from_best[0] < 0.4 * from_best[1]
    # sums of maps run over four times as many pixels as squares, and the coarse objective is half of the fine one
    assert np.all(np.abs(start.theta - last.theta) < np.abs(state.theta - last.theta))


@pytest.mark.parametrize("joint", [True, False])
def test_duals_between_those_on_their_bounds_are_within_them(joint):
    """Directions differ between squares and pixels: interpolated duals of ``"directional"`` are projected again."""
    problem = case("directional", (31, 26), joint=joint, dtype="float64")
    coarse = coarsened(problem)
    y = np.random.default_rng(0).normal(size=PrimalDualState.of(coarse).y.shape)
    y /= multilevel._lengths_before_projection(y, coarse.penalty)
    start = prolonged(PrimalDualState.of(coarse, y=y), problem)
    lengths = multilevel._lengths_before_projection(start.y, problem.penalty)
    assert lengths.max() <= 1 + 1e-9


@pytest.mark.parametrize("kind", ["directional", "tgv"])
def test_settled_fit_is_near_its_final_maps(kind):
    """In standard errors of bootstrap replicates, which the estimate at the coarse level is near."""
    settings = settings_of(regularization=kind, lambda_reg=1.0, tol="settled")
    problem = problem_of(scan((48, 48)), settings)
    result, state = problem.solve(settings)
    assert result.reason is StopReason.SETTLED and result.converged and "settled" in result.message
    final, last = primal_dual.primal_dual(problem, Stopping(20000, gap=1e-5))
    refits = [
        primal_dual.primal_dual(p, Stopping(5000, gap=1e-4))[1].z
        for p in (problem.resample(settings, last, final.maps, [k]) for k in range(2))
    ]
    errors = np.sqrt(np.mean((refits[0] - refits[1]) ** 2, axis=(1, 2)) / 2)
    assert np.all(np.sqrt(np.mean((state.z - last.z) ** 2, axis=(1, 2))) < 0.1 * errors)
    assert np.all(np.abs(np.log2(state.standard_errors / errors)) < 1.2)


def test_settled_needs_standard_errors():
    """Maps of few pixels have none, and end by their gap."""
    settings = settings_of(regularization="tv", lambda_reg=1.0, tol="settled")
    problem = problem_of(scan((12, 12)), settings)
    result, state = problem.solve(settings)
    assert state.standard_errors is None and result.reason is StopReason.CONVERGED
    assert result.gap <= primal_dual.GAP_OF_SETTLED


def test_start_of_few_pixels_and_without_penalty_is_the_measured_maps():
    for problem in (case("tv", (12, 40)), case("none")):
        state = multilevel_start(problem)
        np.testing.assert_array_equal(state.z, problem.initial_maps)
        assert not state.y.any()


def test_noise_added_has_the_variance_of_the_data():
    problem = case("tv", noise="shifted_poisson", dtype="float64")
    coarse = coarsened(coarsened(problem))
    draws = [coarse.data.with_noise(np.random.default_rng(k)).beta for k in range(200)]
    counts = np.add.reduceat(np.add.reduceat(scan()[0], range(0, 40, 4), axis=1), range(0, 36, 4), axis=2)
    np.testing.assert_allclose(coarse.data.beta - coarse.data.offset, counts / 4, atol=1e-9)
    bright = counts > 100
    np.testing.assert_allclose(np.var(draws, axis=0)[bright], counts[bright] / 16, rtol=0.5)
    np.testing.assert_allclose(np.var(draws, axis=0)[bright].sum(), counts[bright].sum() / 16, rtol=0.05)


def test_ctrl_c_in_the_coarse_fit_is_passed_on(monkeypatch):
    def interrupted(problem, *args, **options):
        result, state = primal_dual.primal_dual(problem, *args, **options)
        return replace(result, reason=StopReason.INTERRUPTED), state

    monkeypatch.setattr(multilevel, "primal_dual", interrupted)
    with pytest.raises(KeyboardInterrupt):
        multilevel_start(case("tv"))


def test_restarted_state_keeps_its_standard_errors():
    problem = case("tv")
    state = multilevel_start(problem)
    again = PrimalDualState.restarted(state, replace(problem, scales=2 * problem.scales))
    np.testing.assert_allclose(again.standard_errors, state.standard_errors / 2)


@pytest.mark.parametrize("kind", ["guided", "tgv"])
def test_mean_of_states_is_in_the_units_of_the_first(kind):
    problem, names = case(kind), ("z", "y", "v", "q", "theta")
    state = multilevel_start(problem)
    other = replace(state, **{name: 0.5 * getattr(state, name) for name in names})
    mean = PrimalDualState.mean_of([state, other.restarted(replace(problem, scales=2 * problem.scales))])
    for name in names:
        np.testing.assert_allclose(getattr(mean, name), 0.75 * getattr(state, name), rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(mean.z_bar, mean.z)
    assert PrimalDualState.mean_of([state]) is state and PrimalDualState.mean_of([]) is None


def test_the_slowest_map_decides_when_all_have_settled():
    """One that moved far and has arrived must not hide one that creeps."""
    problem = case("tv")
    state = replace(multilevel_start(problem), standard_errors=np.ones(2))
    iteration = primal_dual.Iteration(problem, state, 1)
    for moves in ((1.0, 0.05), (0.01, 0.048)):
        state.checked = state.z - np.reshape(moves, (2, 1, 1)).astype(state.z.dtype)
        remaining = iteration.remaining()
    assert Stopping(1).distance(remaining) == pytest.approx(0.048 * 19, rel=1e-3)
    state.checked = state.z * np.nan
    assert np.isnan(Stopping(1).distance(iteration.remaining()))


def test_fits_of_an_ensemble_end_by_their_weights():
    """The average is as near to its final maps as a single fit, if the distances of its fits are independent."""
    weights = np.array([[0.5, 0.9, 1.0], [0.3, 0.1, 0.0], [0.2, 0.0, 0.0]])
    fits = Stopping(9, settled=0.03).in_ensemble(weights)
    furthest = np.array([0.03 / np.array(fit.shares) for fit in fits])
    assert np.sum((weights[:, 0] * furthest[:, 0]) ** 2) == pytest.approx(0.03**2)
    assert furthest.min() >= 0.03 - 1e-12 and furthest.max() <= 0.2 + 1e-12 and furthest[0, 2] == 0.03
    assert fits[1].distance(np.array([0.1, 0.0, 0.0])) == pytest.approx(0.1 * 0.3 * np.sqrt(3))
    # columns that are not maps: each counts like the map of the largest weight
    assert fits[1].distance(np.array([0.1, 0.2])) == pytest.approx(0.2 * 0.3 * np.sqrt(3))


def test_columns_count_by_what_they_add_to_the_errors_of_maps():
    """Independent errors of columns add up in squares; a column without an effect on any map may move."""
    readout, errors = np.array([[3.0, -1.0, 0.0], [0.0, 2.0, 0.0]]), np.array([1.0, 4.0, 9.0])
    stopping = Stopping(9, shares=(1.0, 0.5)).of_columns(readout, errors)
    far = np.array([0.1, 0.0, 7.0])  # the errors of the first map are (3, 4, 0)
    assert stopping.distance(far) == pytest.approx(0.1 * 3 / 5)
    assert stopping.distance(np.array([0.0, 0.1, 0.0])) == pytest.approx(max(0.1 * 4 / 5, 0.5 * 0.1))
    assert stopping.distance(np.array([0.1, 0.1, 0.0])) == pytest.approx(0.1)
    # nothing is known before the second check, and NaN is not lost
    assert stopping.distance(np.array([np.inf, 0.1, 0.1])) == np.inf
    assert np.isnan(stopping.distance(np.array([0.1, 0.1, np.nan])))
    # maps without columns, and columns that are the maps
    assert Stopping(9).of_columns(np.zeros((2, 3)), errors).distance(far) == 0
    assert Stopping(9).of_columns(np.eye(3), errors).distance(far) == Stopping(9).distance(far)
