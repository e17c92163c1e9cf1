"""Kernels of the published method, compiled and as Python: what they compute, for any layout of the work."""

import os

import numpy as np
import pytest
import twin
from band_cases import drawn, problem_of
from helpers import as_python

from hyperspy_fusion.fusion.settings import SETTINGS
from hyperspy_fusion.fusion.solvers import kernels
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual
from hyperspy_fusion.fusion.solvers.primal_dual_state import Stopping
from hyperspy_fusion.fusion.terms.penalties import TotalVariation, fgp_momentum

SHAPES = [(2, 7, 9), (1, 1, 6), (1, 6, 1), (3, 20, 5)]
HELPERS = """_primal_row _extrapolated_row _projected _dual_row _first_dual_row _variation_row _replace_row
_first_ascent _ascend _finish""".split()


@pytest.fixture(params=["compiled", "python"])
def kernel(request, monkeypatch):
    """A kernel by its name; as Python, its helpers are Python too, and coverage counts their lines."""
    if request.param == "compiled":
        return lambda name: getattr(kernels, name)
    for name in HELPERS:
        monkeypatch.setattr(kernels, name, as_python(getattr(kernels, name)))
    return lambda name: as_python(getattr(kernels, name))


def run_prox(v, previous, weight, *, steps=3, isotropic=True, accelerated=True, band=4, workers=2,
             kernel=kernels.prox_tv):  # fmt: skip
    n, ny, nx = v.shape
    real = v.dtype.type
    x = previous.astype(v.dtype).copy()
    momentum = (fgp_momentum(steps) if accelerated else np.zeros(steps)).astype(real)
    work = np.full((workers, 4, band + 2 * steps + 3, nx), np.nan, real)
    lines, sums = np.full((workers, 6, nx), np.nan, real), np.full((n, ny, 3), np.nan)
    kernel(v, x, real(weight), isotropic, momentum, band, work, lines, sums)
    return x, sums


def run_step(x, maps, haadf, weights, *, gamma=1.6, eps=0.2, offsets=0.0, scales=1.0, kernel=kernels.gradient_step):
    real = x.dtype.type
    n, ny, _ = x.shape
    stepped, modelled, sums = np.empty_like(x), np.empty_like(haadf), np.empty((ny, 2))
    offsets, scales = (np.broadcast_to(np.asarray(a, real), n).copy() for a in (offsets, scales))
    kernel(x, maps, offsets, scales, haadf, np.asarray(weights, real), real(gamma), real(1 / n), real(0.08),
           real(eps), stepped, modelled, sums)  # fmt: skip
    return stepped, modelled, sums


def random_maps(shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).random(shape).astype(dtype)


# ---- elementary functions ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elementary():
    from numba import config, njit

    power, log = kernels.power, kernels.log
    if config.DISABLE_JIT:  # these are then NumPy's
        power, log = kernels._power_f32, lambda x: np.float32(kernels.LN_2) * kernels._log2_f32(x)

    @njit
    def evaluate(x, g, powers, logs):
        for i in range(x.size):
            powers[i] = power(x[i], g)
            logs[i] = log(x[i])

    return evaluate


def test_power_and_log_in_single_precision(elementary):
    x = np.concatenate([np.logspace(-8, 4, 4001), np.linspace(0.5, 2, 4001)]).astype(np.float32)
    powers, logs = np.empty_like(x), np.empty_like(x)
    for gamma in (0.25, 0.6, 1.0, 1.6, 4.0):
        elementary(x, np.float32(gamma), powers, logs)
        exact = x.astype(float) ** np.float64(np.float32(gamma))
        assert np.abs(powers / exact - 1).max() < 1.5e-6 * max(1, gamma)
    exact = np.log(x.astype(float))
    assert np.abs((logs - exact) / np.maximum(1, np.abs(exact))).max() < 3e-7


def test_power_of_zero(elementary):
    powers, logs = np.empty(2, np.float32), np.empty(2, np.float32)
    for gamma, expected in ((0.0, 1.0), (0.6, 0.0), (3.0, 0.0)):
        elementary(np.array([0, 1e-35], np.float32), np.float32(gamma), powers, logs)
        np.testing.assert_array_equal(powers, expected)


def test_power_and_log_as_python(monkeypatch):
    for name in ("_log2_f32", "_exp2_f32"):
        monkeypatch.setattr(kernels, name, as_python(getattr(kernels, name)))
    x, gamma = np.float32(2.7), np.float32(1.6)
    np.testing.assert_allclose(as_python(kernels._power_f32)(x, gamma), 2.7**1.6, rtol=1e-6)
    np.testing.assert_allclose(kernels._log2_f32(x), np.log2(2.7), rtol=1e-6)
    np.testing.assert_allclose([kernels.power(2.7, 1.6), kernels.log(2.7)], [2.7**1.6, np.log(2.7)])


# ---- gradient step -------------------------------------------------------------------------------


def test_gradient_step_is_numpy(kernel):
    for dtype, gamma in ((np.float64, 1.0), (np.float64, 1.6), (np.float64, 0.5), (np.float32, 1.6), (np.float32, 3.0)):
        x, b, h = (random_maps(s, dtype, i) for i, s in enumerate([(2, 5, 7), (2, 5, 7), (5, 7)]))
        x[0, 0, 0] = 0 if gamma >= 1 else 0.2
        w, exact = np.array([0.5, 1.5])[:, None, None], x.astype(float)
        f = (w * exact**gamma).sum(0)
        slope = np.maximum(exact, 0.2 if gamma < 1 else 0) ** (gamma - 1)
        gradient = 0.5 * gamma * w * slope * (f - h) + 0.08 * (1 - b / (exact + 0.2))
        stepped, modelled, sums = run_step(x, b, h, w.ravel(), gamma=gamma, kernel=kernel("gradient_step"))
        rtol = 2e-5 if dtype == np.float32 else 1e-12
        np.testing.assert_allclose(stepped, np.maximum(x - gradient, 0), rtol=rtol, atol=rtol / 10)
        np.testing.assert_allclose(modelled, f, rtol=rtol)
        np.testing.assert_allclose(sums[:, 0], 0.5 * ((f - h) ** 2).sum(1), rtol=10 * rtol)
        poisson = (x - b * np.log(exact + 0.2)).sum((0, 2))
        np.testing.assert_allclose(sums[:, 1], poisson, rtol=10 * rtol, atol=rtol)


def test_gradient_step_normalises_the_maps_as_it_reads_them():
    x, b, h = random_maps((2, 4, 4)), random_maps((2, 4, 4), seed=1), random_maps((4, 4), seed=2)
    offsets, scales = np.array([3.0, -1.0]), np.array([0.5, 2.0])
    raw = offsets[:, None, None] + b / scales[:, None, None]
    actual = run_step(x, raw, h, [1, 1], offsets=offsets, scales=scales)
    for a, e in zip(actual, run_step(x, b, h, [1, 1]), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-12)


def test_slope_below_gamma_1_is_finite_at_zero():
    x = np.zeros((1, 2, 2), np.float32)
    stepped, modelled, _ = run_step(x, x, np.ones((2, 2), np.float32), [1.0], gamma=0.5, eps=0.25)
    # max(0 - 0.5 * 0.25**-0.5 * (0 - 1) - 0.08, 0)
    np.testing.assert_allclose(stepped, 1 - 0.08, rtol=1e-6)
    np.testing.assert_array_equal(modelled, 0)


def test_not_a_number_stays_visible():
    x = random_maps((1, 3, 3), np.float32)
    x[0, 1, 1] = np.nan
    stepped, _, sums = run_step(x, x, x[0], [1.0])
    assert np.isnan(stepped[0, 1, 1]) and np.isnan(sums[1]).any()
    assert np.isnan(run_prox(stepped, x, 0.1)[1]).any()


# ---- prox of the total variation -----------------------------------------------------------------


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize("isotropic", [True, False])
def test_prox_is_the_twin(kernel, isotropic, accelerated):
    for shape in SHAPES:
        v, previous = random_maps(shape), random_maps(shape, seed=1)
        options = {"isotropic": isotropic, "accelerated": accelerated}
        x, sums = run_prox(v, previous, 0.15, steps=4, **options, kernel=kernel("prox_tv"))
        expected = np.stack([twin.prox_tv(image, 0.15, 4, **options)[0] for image in v])
        np.testing.assert_allclose(x, expected, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(sums[..., 0].sum(), sum(twin.tv(i, isotropic) for i in expected), rtol=1e-12)
        np.testing.assert_allclose(sums[..., 1], ((expected - previous) ** 2).sum(2), rtol=1e-12)
        np.testing.assert_allclose(sums[..., 2], (previous**2).sum(2), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prox_does_not_depend_on_bands_and_workers(dtype):
    v, previous = random_maps((2, 33, 70), dtype), random_maps((2, 33, 70), dtype, 1)
    whole = run_prox(v, previous, 0.1, steps=5, band=33, workers=1)
    for band, workers in ((2, 1), (3, 2), (7, 5), (40, 2)):
        for a, b in zip(whole, run_prox(v, previous, 0.1, steps=5, band=band, workers=workers), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("isotropic", [True, False])
def test_prox_minimises_its_objective(isotropic):
    """By its duality gap, which bounds the distance to the minimum; the dual is that of the twin."""
    v = random_maps((1, 12, 10)) - 0.3
    weight, penalty = 0.2, TotalVariation("isotropic" if isotropic else "anisotropic")
    x, _ = run_prox(v, v, weight, steps=3000, isotropic=isotropic, band=12)
    primal = 0.5 * ((x - v) ** 2).sum() + weight * penalty.value(x)
    _, dual = twin.prox_tv(v[0], weight, 3000, isotropic)
    z = v - weight * twin.adjoint(*dual)[None]
    dual_value = 0.5 * ((v**2).sum() - (z**2).sum() + ((z - np.maximum(z, 0)) ** 2).sum())
    length = np.hypot(*dual) if isotropic else np.abs(dual)
    assert length.max() <= 1 + 1e-12
    assert 0 <= primal - dual_value + 1e-12 < 1e-6


def test_prox_without_steps_projects_and_measures(kernel):
    v = random_maps((2, 6, 5), np.float32) - 0.5
    x, sums = run_prox(v, v, 1.0, steps=0, kernel=kernel("prox_tv"))
    np.testing.assert_array_equal(x, np.maximum(v, 0))
    np.testing.assert_allclose(sums[..., 0].sum(), TotalVariation().value(np.maximum(v, 0)), rtol=1e-5)


@pytest.mark.parametrize("accelerated", [True, False])
def test_prox_commutes_with_transposing(accelerated):
    v = random_maps((1, 11, 6))
    turned = np.ascontiguousarray(v.transpose(0, 2, 1))
    x, of_turned = (run_prox(a, a, 0.1, accelerated=accelerated)[0] for a in (v, turned))
    np.testing.assert_allclose(of_turned.transpose(0, 2, 1), x, rtol=1e-12)


def test_threads_are_restored():
    import numba

    before = numba.get_num_threads()
    most = numba.config.NUMBA_NUM_THREADS
    for number in {1, most}:
        with pytest.raises(RuntimeError), kernels.threads(number) as n:
            assert n == number == numba.get_num_threads()
            raise RuntimeError
        assert numba.get_num_threads() == before


# ---- what is compiled before a fit ---------------------------------------------------------------


@pytest.mark.skipif(bool(os.environ.get("NUMBA_DISABLE_JIT")), reason="kernels have types when compiled")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_are_compiled_for_the_types_that_fits_pass(monkeypatch, dtype):
    import numba

    import hyperspy_fusion

    given = {}
    for kernel in {*kernels.PUBLISHED, *kernels.CALIBRATED, *kernels.OF_BANDS}:

        def called(*arguments, kernel=kernel):
            given.setdefault(kernel, set()).add(tuple(map(numba.typeof, arguments)))
            return kernel(*arguments)

        monkeypatch.setattr(kernels, kernel.__name__, called)
    scan = hyperspy_fusion.data.core_shell((16, 16)).signals()
    for method in ("published", "calibrated"):
        settings = SETTINGS[method](max_iter=1, dtype=dtype)
        hyperspy_fusion.fuse(*scan, method=method, settings=settings, show_progressbar=False)
    columns, _, counts = drawn(0)
    primal_dual(problem_of(columns, counts, dtype=dtype), Stopping(1))
    assert given == {kernel: {kernels.arguments_of(kernel, dtype)} for kernel in given} and len(given) == 7
