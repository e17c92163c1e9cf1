"""The loop: what it reports is true, and it can be stopped and continued anywhere."""

import os
import signal

import numba
import numpy as np
import pytest
import twin

from hyperspy_fusion.fusion.problems.published import published_problem
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.settings import PublishedSettings
from hyperspy_fusion.fusion.solvers import kernels
from hyperspy_fusion.fusion.solvers.proximal_gradient import proximal_gradient

NUMBERS = (26, 8)


@pytest.fixture
def scan():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :31]
    truth = np.stack([8 * np.exp(-((y - 12) ** 2 + (x - 10) ** 2) / 40), 4 * (x > 15) + 1.0])
    return rng.poisson(truth).astype(np.float32), (26**1.7 * truth[0] + 8**1.7 * truth[1]).astype(np.float32)


def fit(scan, state=None, callback=None, num_workers=None, **options):
    settings = PublishedSettings(**options)
    problem = published_problem(*scan, NUMBERS, settings)
    return (problem, *proximal_gradient(problem, settings, state, callback, num_workers))


@pytest.mark.parametrize(
    "options", [{}, {"tv_norm": "anisotropic"}, {"lambda_tv": 0}, {"gamma": 2, "lambda_haadf": 0.1}]
)
def test_history_is_the_objective_that_is_minimised(scan, options):
    problem, result, state = fit(scan, max_iter=7, dtype="float64", **options)
    start, end = problem.objective(problem.normalised_maps()), problem.objective(state.x)
    for index, terms in ((0, start), (-1, end)):
        for name in ("haadf", "chem", "tv", "total"):
            np.testing.assert_allclose(getattr(result.history, name)[index], getattr(terms, name), rtol=1e-12)
    assert len(result.history.total) == 8


def test_objective_is_the_twins(scan):
    problem, _, state = fit(scan, max_iter=2, dtype="float64")
    b = problem.normalised_maps()
    expected = twin.objective(state.x, b, problem.haadf, problem.haadf_term.weights)
    np.testing.assert_allclose(problem.objective(state.x).total, expected, rtol=1e-12)


def test_result_is_in_the_units_of_the_input(scan):
    problem, result, state = fit(scan)
    low, high = scan[0].min((1, 2))[:, None, None], scan[0].max((1, 2))[:, None, None]
    np.testing.assert_allclose(result.maps, low + (high - low) * state.x, rtol=1e-6)
    modelled = problem.haadf_term.image(state.x.astype(float))
    np.testing.assert_allclose(result.modelled_haadf, scan[1].min() + np.ptp(scan[1]) * modelled, rtol=1e-4)


def test_scale_and_offset_of_the_input_do_not_matter(scan):
    maps, haadf = (a.astype(float) for a in scan)
    _, plain, _ = fit((maps, haadf), dtype="float64")
    _, other, _ = fit((3 * maps - 5, 0.01 * haadf + 2), dtype="float64")
    np.testing.assert_allclose(other.maps, 3 * plain.maps - 5, rtol=1e-9, atol=1e-9)


def test_two_fits_are_one_fit(scan):
    _, whole, _ = fit(scan, max_iter=9)
    _, _, state = fit(scan, max_iter=4)
    _, parts, _ = fit(scan, state, max_iter=5)
    np.testing.assert_array_equal(parts.maps, whole.maps)
    np.testing.assert_array_equal(parts.history.total, whole.history.total)
    assert parts.n_iter == 9


@pytest.mark.parametrize("options, twin_options", [
    ({"tv_solver": "gp"}, {"accelerated": False}),
    ({"tv_norm": "anisotropic"}, {"isotropic": False}), ({"lambda_tv": 0}, {"weight_tv": 0}),
    ({"tv_iter": 7}, {"tv_iter": 7}), ({"gamma": 2.2}, {"gamma": 2.2}), ({"lambda_haadf": 0.2}, {"lambda_haadf": 0.2}),
])  # fmt: skip
def test_fit_is_the_twins(scan, options, twin_options):
    problem, _, state = fit(scan, dtype="float64", max_iter=6, **options)
    b, weights = problem.normalised_maps(), twin.haadf_coefficients_of(NUMBERS)
    expected = twin.published(b, problem.haadf, weights, iterations=6, **twin_options)
    np.testing.assert_allclose(state.x, expected, rtol=1e-9, atol=1e-12)


def test_one_element_has_weight_one(scan):
    settings = PublishedSettings(dtype="float64", max_iter=4)
    problem = published_problem(scan[0][:1], scan[1], (26,), settings)
    _, state = proximal_gradient(problem, settings)
    assert problem.lambda_haadf == 1
    expected = twin.published(problem.normalised_maps(), problem.haadf, [1.0], iterations=4)
    np.testing.assert_allclose(state.x, expected, rtol=1e-9, atol=1e-12)


def test_number_of_threads_is_used_and_does_not_matter(scan):
    seen = []
    _, one, _ = fit(scan, num_workers=1, callback=lambda s: seen.append(numba.get_num_threads()))
    assert set(seen) == {1}
    _, all_, _ = fit(scan, num_workers=2)
    np.testing.assert_array_equal(one.maps, all_.maps)
    np.testing.assert_array_equal(one.history.total, all_.history.total)


def test_threshold_acts_on_the_start_alone(scan):
    problem, _, state = fit(scan, max_iter=1, threshold=0.5, dtype="float64")
    b = problem.normalised_maps()
    expected = twin.published(b, problem.haadf, problem.haadf_term.weights, iterations=1, threshold=0.5)
    np.testing.assert_allclose(state.x, expected, rtol=1e-12, atol=1e-15)


def test_tolerance_stops_and_says_so(scan):
    changes = []
    _, result, _ = fit(scan, callback=lambda s: changes.append(s.change), change_tol=0.01, max_iter=500)
    assert result.reason is StopReason.CONVERGED and result.converged
    assert changes[-1] <= 0.01 < min(changes[:-1])
    assert result.n_iter == len(changes) < 500


def test_change_is_that_of_the_maps(scan):
    seen = []
    _, result, state = fit(scan, callback=lambda s: seen.append(s.x.copy()), max_iter=3, dtype="float64")
    expected = np.linalg.norm(seen[2] - seen[1]) / np.linalg.norm(seen[1])
    np.testing.assert_allclose(result.change, expected, rtol=1e-10)


def test_out_of_iterations_is_not_converged(scan):
    _, result, _ = fit(scan, change_tol=1e-12, max_iter=3)
    assert result.reason is StopReason.NOT_CONVERGED and not result.converged
    _, result, _ = fit(scan, max_iter=3)
    assert result.reason is StopReason.MAX_ITER and not result.converged


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kernel", ["gradient_step", "prox_tv"])
def test_ctrl_c_within_an_iteration_leaves_it_whole(scan, monkeypatch, kernel, when):
    """A signal is delivered when a kernel returns, between any two statements of the loop."""
    compiled, calls = getattr(kernels, kernel), []

    def interrupted(*args):
        calls.append(None)
        if len(calls) == 5 and when == "before":
            os.kill(os.getpid(), signal.SIGINT)
        compiled(*args)
        if len(calls) == 5 and when == "after":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(kernels, "are_compiled", lambda *_: True)
    monkeypatch.setattr(kernels, kernel, interrupted)
    _, result, state = fit(scan)
    monkeypatch.undo()
    _, expected, _ = fit(scan, max_iter=result.n_iter)
    assert result.reason is StopReason.INTERRUPTED and 3 <= result.n_iter <= 5
    np.testing.assert_array_equal(result.maps, expected.maps)
    np.testing.assert_array_equal(result.history.total, expected.history.total)
    _, resumed, _ = fit(scan, state, max_iter=3)
    _, whole, _ = fit(scan, max_iter=result.n_iter + 3)
    np.testing.assert_array_equal(resumed.maps, whole.maps)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_before_the_first_iteration_is_passed_on(scan, monkeypatch):
    compiled = kernels.prox_tv

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        compiled(*args)

    monkeypatch.setattr(kernels, "are_compiled", lambda *_: True)
    monkeypatch.setattr(kernels, "prox_tv", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(scan)


def test_fit_in_another_thread(scan):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        _, result, _ = pool.submit(fit, scan, max_iter=3).result()
    np.testing.assert_array_equal(result.maps, fit(scan, max_iter=3)[1].maps)


@pytest.mark.parametrize("error, reason", [(KeyboardInterrupt, "INTERRUPTED"), (StopIteration, "STOPPED")])
def test_stopping_keeps_the_last_iterate(scan, error, reason):
    def stop(state):
        if state.n_iter == 4:
            raise error

    _, result, state = fit(scan, callback=stop)
    _, expected, _ = fit(scan, max_iter=4)
    assert result.reason is StopReason[reason]
    np.testing.assert_array_equal(result.maps, expected.maps)
    np.testing.assert_array_equal(result.history.total, expected.history.total)


def test_divergence_is_reported(scan):
    for max_iter in (1, 2, 30):
        _, result, _ = fit(scan, lambda_haadf=1e30, gamma=4, lambda_tv=0, max_iter=max_iter)
        assert result.reason is StopReason.NOT_FINITE


def test_input_is_not_touched(scan):
    copies = [a.copy() for a in scan]
    fit(scan)
    for array, copy in zip(scan, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_float32_maps_are_not_copied(scan):
    problem = published_problem(*scan, NUMBERS, PublishedSettings())
    assert np.shares_memory(problem.maps, scan[0])


DTYPES = [
    ("u2", None, "f4"),
    ("f4", None, "f4"),
    ("f8", None, "f4"),
    (">f4", None, "f4"),
    ("f4", "float64", "f8"),
]


def test_dtype_of_the_fit(scan):
    for given, asked, used in DTYPES:
        _, result, _ = fit((scan[0].astype(given), scan[1]), dtype=asked, max_iter=1)
        assert result.maps.dtype == np.dtype(used)


def test_constant_data_are_refused(scan):
    maps, haadf = scan
    with pytest.raises(ValueError, match="cannot be scaled"):
        published_problem(np.zeros_like(maps), haadf, NUMBERS, PublishedSettings())
    with pytest.raises(ValueError, match="cannot be scaled"):
        published_problem(maps, np.ones_like(haadf), NUMBERS, PublishedSettings())


# ---- symmetries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [lambda a: a[..., ::-1, :], lambda a: a[..., ::-1], lambda a: a.swapaxes(-1, -2)],
                         ids=["upside down", "mirrored", "transposed"])  # fmt: skip
def test_fit_turns_with_the_scan(scan, turn):
    """Forward differences make a single isotropic iterate lean; the anisotropic penalty has no such lean."""
    options = {"tv_norm": "anisotropic", "dtype": "float64"}
    _, plain, _ = fit(scan, **options)
    _, turned, _ = fit(tuple(turn(a) for a in scan), **options)
    np.testing.assert_allclose(turned.maps, turn(plain.maps), rtol=1e-8, atol=1e-10)


def test_elements_can_be_permuted(scan):
    maps, haadf = scan
    settings = PublishedSettings(dtype="float64")
    plain, _ = proximal_gradient(published_problem(maps, haadf, (26, 8), settings), settings)
    swapped, _ = proximal_gradient(published_problem(maps[::-1], haadf, (8, 26), settings), settings)
    np.testing.assert_allclose(swapped.maps[::-1], plain.maps, rtol=1e-10)


# ---- weights and settings ---------------------------------------------------------------------------


@pytest.mark.parametrize("weighting, expected", [
    ("equal", [1, 1]), ("z_mean", [26 / 17, 8 / 17]), ("z_gamma_mean", [676 / 370, 64 / 370]),
    ("z_sum", [26 / 34, 8 / 34]), ("z_gamma_sum", [676 / 740, 64 / 740]),
])  # fmt: skip
def test_haadf_coefficients(scan, weighting, expected):
    problem = published_problem(*scan, NUMBERS, PublishedSettings(z_weighting=weighting, gamma=2))
    np.testing.assert_allclose(problem.haadf_term.weights, expected, rtol=1e-14)


def test_contrast_on_a_high_level(scan):
    """The HAADF image is normalised in double precision; maps that single precision cannot resolve are refused."""
    maps, haadf = scan
    _, plain, _ = fit((maps, haadf.astype(float)), max_iter=3)
    _, lifted, _ = fit((maps, haadf.astype(float) + 1e9), max_iter=3)
    np.testing.assert_allclose(lifted.maps, plain.maps, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="contrast of less than 1000 steps of float32.*dtype='float64'"):
        fit((maps.astype(float) + 1e6, haadf))
    fit((maps.astype(float) + 1e6, haadf), max_iter=1, dtype="float64")


def haadf_gradient(x, problem):
    """Of the HAADF term; where gamma < 1 its slope is infinite at zero, and taken at eps there."""
    term, eps = problem.haadf_term, problem.noise.background
    base = x if term.gamma >= 1 else np.maximum(x, eps)
    slope = term.gamma * term.weights[:, None, None] * base ** (term.gamma - 1)
    return slope * (term.image(x) - problem.haadf)


def test_the_gradient_of_the_haadf_term_is_that_of_its_value(scan):
    problem, _, _ = fit(scan, max_iter=1, dtype="float64")
    b, rng = problem.normalised_maps(), np.random.default_rng(1)
    x, d = b + 0.1, 1e-6 * rng.standard_normal(b.shape)
    low, high = (problem.haadf_term.value(x + step, problem.haadf) for step in (-d, d))
    np.testing.assert_allclose((haadf_gradient(x, problem) * d).sum(), (high - low) / 2, rtol=1e-5)


def test_step_is_down_the_gradient_of_the_terms(scan):
    for gamma in (0.5, 0.9, 1.0, 1.6, 3.0):
        problem, _, state = fit(scan, max_iter=1, gamma=gamma, lambda_tv=0, dtype="float64")
        b = problem.normalised_maps()
        gradient = problem.lambda_haadf * haadf_gradient(b, problem)
        gradient += problem.lambda_chem * (1 - b / (b + problem.noise.background))
        np.testing.assert_allclose(state.x, np.maximum(b - gradient, 0), rtol=1e-10, atol=1e-12)


def test_default_weight_of_the_haadf_is_one_over_n(scan):
    assert published_problem(*scan, NUMBERS, PublishedSettings()).lambda_haadf == 0.5
    assert published_problem(*scan, NUMBERS, PublishedSettings(lambda_haadf=0.3)).lambda_haadf == 0.3
