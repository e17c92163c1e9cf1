"""Kernels of the calibrated method, compiled and as Python: they equal NumPy, and minimise what they document."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from convex import MIXED, adjoint, differences, lengths
from helpers import as_python
from scipy.optimize import minimize

from hyperspy_fusion.fusion.solvers import kernels

DTYPES = [np.float32, np.float64]
SHAPES = [(2, 6, 7), (2, 2, 5), (2, 5, 2), (1, 3, 3), (3, 2, 2)]
MODES = [kernels.PLAIN, kernels.DIRECTIONAL, kernels.GUIDED, kernels.VECTOR]
HELPERS = """_ascended_plain _ascended_guided _ascended_vector _ascended_directional _ascended_row _shrinkage _relaxed
_ascend_row _adjoint_between _adjoint_at_edge _adjoint_row _subtract_guided _subtract_vector
_descend_slopes _descend_slopes_row _moved
_descend_poisson _descend_gaussian _add_poisson_response _add_gaussian_response _newton _solve_residual
_solve_residuals _force_on_map _descend_maps_row _deviance""".split()


def compiled(name):
    return getattr(kernels, name)


@pytest.fixture(
    params=[(np.float32, SHAPES), (np.float64, SHAPES), (np.float64, SHAPES[:1])],
    ids=["float32", "float64", "python"],
)
def case(request, monkeypatch):
    """A function from name to kernel, dtype and shapes; as Python, for one shape, the helpers are Python too."""
    dtype, shapes = request.param
    if shapes is SHAPES:
        return compiled, dtype, shapes
    for name in HELPERS:
        monkeypatch.setattr(kernels, name, as_python(getattr(kernels, name)))
    return lambda name: as_python(getattr(kernels, name)), dtype, shapes


@pytest.fixture(params=DTYPES, ids=["float32", "float64"])
def dtype(request):
    return request.param


def rtol(dtype):
    return 2e-5 if dtype == np.float32 else 1e-11


def normal(seed, shape, dtype):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(actual, expected, dtype):
    size = np.abs(expected).max(initial=1e-30)
    np.testing.assert_allclose(actual, expected, rtol=rtol(dtype), atol=rtol(dtype) * size)


# ---- differences, their duals and their lengths ----------------------------------------------------


def cells(shape, dtype, mode):
    """Maps, field, guide and dual of one mode."""
    n, ny, nx = shape
    inner = (ny - 1, nx - 1)
    fields = {kernels.GUIDED: n, kernels.VECTOR: 2 * n}.get(mode)
    v = normal(1, (fields, *inner), dtype) if fields else np.zeros((1, 1, 1), dtype)
    guide = normal(2, (4, *inner), dtype) if mode in (kernels.DIRECTIONAL, kernels.GUIDED) else np.zeros((4, 1, 1))
    if mode == kernels.DIRECTIONAL:
        # every other column without mixed difference, of which a part is taken there
        part = 0.8 * np.random.default_rng(4).random(inner)
        part[:, ::2] = 0
        guide -= np.multiply.outer(MIXED, (part > 0) * np.tensordot(MIXED, guide, 1))
        guide = 0.9 * guide / np.sqrt((guide**2).sum(0) + 0.1)
        left = 1 - (guide**2).sum(0)
        mixed = (part * (2 - part) / 4, part * (2 - part) / (1 - part) ** 2 / 4)
        guide = np.stack([*guide, 1 + left, (1 + left) / left**2, *mixed])
    return normal(0, shape, dtype), v, guide.astype(dtype), normal(3, (4, n, *inner), dtype)


def projected(t, guide):
    xi, part = guide[:4], 1 - np.sqrt(1 - 4 * guide[6])
    p = np.eye(4)[:, :, None, None] - xi[:, None] * xi - np.multiply.outer(np.multiply.outer(MIXED, MIXED), part)
    return np.einsum("klyx,lnyx->knyx", p, t)


def taken(u, v, guide, mode):
    """The differences as the mode takes them."""
    u, v, guide = (a.astype(float) for a in (u, v, guide))
    t = differences(u)
    if mode == kernels.DIRECTIONAL:
        return projected(t, guide)
    if mode == kernels.GUIDED:
        return t - guide[:, None] * v
    if mode == kernels.VECTOR:
        return t - np.stack([v[0::2], v[0::2], v[1::2], v[1::2]]) / np.sqrt(2)
    return t


def clipped(y, radius, joint):
    """Projection onto balls of the vectors of all maps of a cell, or of each."""
    return y * radius / np.maximum(radius, lengths(y, joint))


def steps_of(shape, dtype):
    """A step of each cell; wide scans have one for all rows."""
    rows = 1 if shape[1] > shape[0] else shape[0]
    return np.random.default_rng(9).uniform(0.2, 0.9, (rows, shape[1])).astype(dtype)


def sweep(kernel, z_bar, v_bar, y, *, v=None, q=None, guide=None, mode=kernels.PLAIN, joint=False, radius=1.0,
          sigma=0.5, sigma_v=0.5, tau=1.0, tau_v=1.0, relax=(1, 1), z=None, terms=None, residual=None,
          workers=2):  # fmt: skip
    """One iteration, or as many as there are pairs in ``relax``, from copies; a namespace of all that it changes."""
    relax = np.array(relax, z_bar.dtype).reshape(-1, 2).T
    number = relax.shape[1]
    (n, ny, nx), real = z_bar.shape, z_bar.dtype.type
    m = len(v_bar) if mode >= kernels.GUIDED else 0
    z = np.abs(z_bar) if z is None else z
    terms = data(z.shape, z.dtype, True) if terms is None else terms
    q = np.zeros((4, m, ny - 2, nx - 2) if m else (4, 1, 1, 1), real) if q is None else q
    new = SimpleNamespace(
        z=z.copy(), z_bar=z_bar.copy(), y=y.copy(), v=(v_bar if v is None else v).copy(), v_bar=v_bar.copy(),
        q=q.copy(),
        residual=np.zeros((max(len(images(terms)[0]), 1), ny, nx), real) if residual is None else residual.copy(),
        sums=np.full((number, n, ny), np.nan), slack=np.full((max(m, 1), ny - 1), np.nan),
    )  # fmt: skip
    group, slope_group = (n if joint else 1), (m if joint else m // n) or 1

    def steps(values, shape):
        return np.array(values, real) if np.ndim(values) else np.full((1, shape), values, real)

    def work(*shape):
        return np.full((workers, *shape), np.nan, real)

    kernel("primal_dual_sweep")(
        new.z, new.z_bar, new.y, new.v, new.v_bar, new.q, np.zeros((4, 1, 1), real) if guide is None else guide, mode,
        group, slope_group, real(radius), steps(sigma, nx - 1), steps(sigma_v, max(nx - 2, 1)), real(tau),
        steps(tau_v, nx - 1), *np.ascontiguousarray(relax), *terms[:5], *images(terms), new.residual,
        work(4 * group + 1, nx - 1), work(4 * slope_group + 1, max(nx - 2, 1)), work(nx - 1), work(n + 2, nx), new.sums,
        new.slack,
    )  # fmt: skip
    return new


@pytest.mark.parametrize("mode", MODES)
def test_ascent_of_the_dual(case, mode):
    kernel, dtype, shapes = case
    for shape, joint, relax in product(shapes, (False, True), (1, 1.6)):
        u, v, guide, inner = cells(shape, dtype, mode)
        sigma = steps_of((shape[1] - 1, shape[2] - 1), dtype)
        inner = clipped(inner.astype(float), 1, joint)
        y = inner if mode != kernels.DIRECTIONAL else projected(inner, guide.astype(float))
        expected = clipped(inner + sigma * taken(u, v, guide, mode), 1, joint)
        expected = expected if mode != kernels.DIRECTIONAL else projected(expected, guide.astype(float))
        new = sweep(kernel, u, v, y.astype(dtype), guide=guide, mode=mode, joint=joint, sigma=sigma, relax=(relax, 1))
        # P^-1 loses as many digits as P takes away
        atol = rtol(dtype) * (10 if mode == kernels.DIRECTIONAL else 2)
        np.testing.assert_allclose(new.y, y + relax * (expected - y), atol=2 * atol)


@pytest.mark.parametrize("mode", [kernels.GUIDED, kernels.VECTOR])
def test_ascent_of_the_dual_of_slopes(case, mode):
    kernel, dtype, shapes = case
    for shape, joint in product(shapes, (False, True)):
        u, v, guide, y = cells(shape, dtype, mode)
        n, ny, nx = shape
        if ny < 3 or nx < 3:
            continue
        q = normal(6, (4, len(v), ny - 2, nx - 2), dtype)
        raised = (q + dtype(0.4) * differences(v.astype(float))).reshape(4, n, -1, ny - 2, nx - 2)
        size = np.sqrt((raised**2).sum(axis=(0, 1, 2) if joint else (0, 2), keepdims=True))
        expected = (raised * 1.3 / np.maximum(1.3, size)).reshape(q.shape)
        new = sweep(kernel, u, v, y, q=q, guide=guide, mode=mode, joint=joint, radius=1.3, sigma_v=0.4, relax=(1.6, 1))
        np.testing.assert_allclose(new.q, q + 1.6 * (expected - q), atol=4 * rtol(dtype))


@pytest.mark.parametrize("mode", MODES)
def test_variation(case, mode):
    kernel, dtype, shapes = case
    for shape, joint in product(shapes, (False, True)):
        u, v, guide, _ = cells(shape, dtype, mode)
        factors = np.linspace(0.5, 2, len(u)).astype(dtype)
        stretched = v if v.size == 1 else v * np.repeat(factors, len(v) // len(u))[:, None, None]
        expected = lengths(taken(u * factors[:, None, None], stretched, guide, mode), joint)
        expected = expected if joint else expected.sum(axis=0)
        work = np.full((2, 7, shape[2] - 1), np.nan, dtype)
        sums = np.full(shape[1] - 1, np.nan)
        kernel("variation")(u, v, guide, mode, len(u) if joint else 1, factors, work, sums)
        close(sums, expected.sum(axis=1), dtype)


def lifted(y, guide, mode):
    if mode == kernels.GUIDED:
        return (guide[:, None].astype(float) * y).sum(axis=0)
    along_y, along_x = (y[0] + y[1]) / np.sqrt(2), (y[2] + y[3]) / np.sqrt(2)
    return np.stack([along_y, along_x], axis=1).reshape(-1, *y.shape[2:])


@pytest.mark.parametrize("mode", [kernels.GUIDED, kernels.VECTOR])
def test_descent_of_the_slopes(case, mode):
    """By the duals after their step. Cells in one line have slopes without differences and dual."""
    kernel, dtype, shapes = case
    for shape, relax in product(shapes, (1, 1.6)):
        u, v_bar, guide, y = cells(shape, dtype, mode)
        (m, ny, nx), v = v_bar.shape, normal(7, v_bar.shape, dtype)
        tau, q = steps_of((ny, nx), dtype), normal(4, (4, m, ny - 1, nx - 1), dtype)
        new = sweep(kernel, u, v_bar, y, v=v, q=q, guide=guide, mode=mode, tau_v=tau, relax=(1, relax))
        slack = (adjoint(new.q.astype(float)) if q.size else 0) - lifted(new.y.astype(float), guide, mode)
        close(new.v, v - relax * tau * slack, dtype)
        close(new.v_bar, v - 2 * tau * slack, dtype)
        close(new.slack, np.abs(slack).sum(axis=2), dtype)


@pytest.mark.parametrize("mode", [kernels.GUIDED, kernels.VECTOR])
def test_gradient_of_the_slopes_is_that_of_the_differences(mode):
    """<difference taken, y> falls with the slopes as the adjoint in the descent has it."""
    u, v, guide, y = cells((2, 5, 6), np.float64, mode)
    step = normal(5, v.shape, float)
    fall = np.sum((taken(u, v + step, guide, mode) - taken(u, v, guide, mode)) * y)
    np.testing.assert_allclose(fall, -np.sum(step * lifted(y, guide, mode)), rtol=1e-12)


# ---- the step of the maps ----------------------------------------------------------------------------


def data(shape, dtype, is_poisson, masked=False, coupled=True, seed=0):
    """The terms of the maps as the kernels take them; zero counts, and masked pixels in both."""
    n, ny, nx = shape
    rng = np.random.default_rng(seed)
    slope = np.broadcast_to(rng.uniform(0.3, 2, n)[:, None, None], (n, 1, nx))
    beta = rng.poisson(2, shape).astype(float) if is_poisson else rng.standard_normal(shape)
    delta = np.broadcast_to(rng.uniform(0.1, 1, n)[:, None, None] * is_poisson, (n, 1, nx))
    counted = np.ones((1, nx))
    if masked:
        valid = rng.random(shape) > 0.3
        slope, beta = np.where(valid, slope, 0), np.where(valid, beta, 0)
        delta = np.where(valid, delta, 0)
        counted = (rng.random((ny, nx)) > 0.3).astype(float)
    weights = rng.uniform(0.2, 3, n) if coupled else np.zeros(0)
    target = 8 * rng.random((ny, nx)) * (counted if coupled else 0)
    if coupled == 3:  # images, whose weights have both signs
        weights, counted = rng.uniform(-3, 3, (3, n)), np.stack([counted, np.ones_like(counted), 0 * counted])
        target = 8 * rng.standard_normal((3, ny, nx)) * counted
    theta, upper = rng.standard_normal(n), np.full(n, 1e4)
    arrays = (beta, slope, delta, theta, upper, weights, target, counted)
    beta, slope, delta, theta, upper, *rest = (np.ascontiguousarray(a, dtype) for a in arrays)
    return beta, slope, delta, is_poisson, theta, upper, *rest


def images(terms):
    """Weights, target and valid pixels with an axis of images in front."""
    weights, target, counted = terms[6:]
    if weights.ndim == 2:
        return weights, target, counted
    if not weights.size:
        return np.zeros((0, len(terms[0])), target.dtype), target[None][:0], counted[None][:0]
    return weights[None], target[None], counted[None]


def descend(kernel, z, y, terms, tau, workers=2, residual=None, relax=1):
    """The step of the maps alone, with duals that stay."""
    new = sweep(kernel, z, np.zeros((1, 1, 1), z.dtype), y, z=z, mode=kernels.OFF, terms=terms, tau=tau,
                relax=(1, relax), residual=residual, workers=workers)  # fmt: skip
    return new.z, new.z_bar, new.residual, new.sums[0]


# rows, workers and iterations: bands have 2 (iterations - 1) rows at least, and all of these are at their two ends
@pytest.mark.parametrize(
    "rows, workers, n_iter", [(7, 1, 2), (7, 2, 2), (7, 3, 2), (4, 2, 2), (6, 3, 2), (7, 1, 5), (16, 2, 5), (27, 3, 5)]
)
@pytest.mark.parametrize("mode, joint", [(kernels.OFF, False), *product(MODES, (False, True))])
def test_iterations_in_one_sweep(mode, joint, rows, workers, n_iter):
    """They are those of one sweep each, bit by bit, wherever the bands of the workers meet."""
    u, v, guide, y = cells((2, rows, 6), np.float32, max(mode, kernels.PLAIN))
    m = len(v) if mode >= kernels.GUIDED else 0
    q = normal(6, (4, m, rows - 2, 4) if m else (4, 1, 1, 1), np.float32)
    terms, relax = data(u.shape, np.float32, True), [(1.6, 1.5), (1.5, 1.0), (1, 1), (1, 1.3), (1.3, 1)][:n_iter]

    def swept(factors, at, n_workers):
        return sweep(
            compiled, at.z_bar, at.v_bar, at.y, v=at.v, q=at.q, guide=guide, mode=mode, joint=joint, z=at.z,
            terms=terms, tau=0.3, tau_v=0.2, relax=factors, residual=at.residual, workers=n_workers,
        )  # fmt: skip

    at, sums = SimpleNamespace(z=np.abs(u), z_bar=u, y=y, v=v, v_bar=v, q=q, residual=None), []
    together = swept(relax, at, workers)
    for factors in relax:
        at = swept(factors, at, 1)
        sums.append(at.sums[0])
    for name in ("z", "z_bar", "y", "v", "v_bar", "q", "residual", "slack"):
        np.testing.assert_array_equal(getattr(together, name), getattr(at, name), err_msg=name)
    np.testing.assert_array_equal(together.sums, sums)


def stationary(z, moved, terms, tau):
    """(n, ny, nx) gradient of what the step minimises: data terms, HAADF term and distance from ``moved``."""
    beta, slope, delta, is_poisson, _, _, weights, target, counted = terms
    beta, slope, delta, weights, target, counted = (
        np.asarray(a, float) for a in (beta, slope, delta, weights, target, counted)
    )
    if is_poisson:
        with np.errstate(divide="ignore", invalid="ignore"):
            gradient = slope - np.where(beta > 0, beta / (z + delta), 0)
    else:
        gradient = slope * z - beta
    if weights.size:
        weights, target, counted = images((*terms[:6], weights, target, counted))
        residual = counted * (np.tensordot(weights, z, 1) - target)
        gradient = gradient + np.tensordot(weights.T, residual, 1)
    return gradient + (z - moved) / tau


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("is_poisson", [True, False])
def test_step_of_the_maps_is_stationary(case, is_poisson, masked):
    """At its end the gradient is 0, or >= 0 where the map is 0."""
    kernel, dtype, shapes = case
    for shape, coupled, tau in product(shapes, (False, True, 3), (0.05, 50.0)):
        z, y = np.abs(normal(0, shape, dtype)), normal(1, (4, shape[0], shape[1] - 1, shape[2] - 1), dtype)
        terms = data(shape, dtype, is_poisson, masked, coupled)
        new, bar, residual, sums = descend(kernel, z, y, terms, tau)
        used = np.broadcast_to(terms[1] > 0, shape)
        linear = adjoint(y.astype(float)) + np.where(used, terms[4][:, None, None], 0)
        gradient = stationary(new.astype(float), z - tau * linear, terms, tau)
        size = 1e-4 if dtype == np.float32 else 1e-9
        size *= (1 + np.abs(linear).max() + 1 / tau) * (10 if coupled == 3 else 1)
        assert np.all(np.abs(gradient[new > 0]) < size)
        assert np.all(gradient[new == 0] > -size) and new.min() >= 0
        close(bar, 2 * new.astype(float) - z, dtype)
        close(sums, np.where(used, new, 0).sum(axis=2, dtype=float), dtype)
        if coupled:
            expected = images(terms)[2] * (np.tensordot(images(terms)[0], new, 1) - images(terms)[1])
            np.testing.assert_allclose(residual, expected, atol=20 * size * min(tau, 1) if tau < 1 else size)


CORNERS = {
    "no counts": dict(beta=[0, 0, 0]),
    "many counts": dict(beta=[3e4, 1, 500]),
    "far below": dict(moved=[-1e3, -5, -1e-3]),
    "far above": dict(moved=[1e3, 0, 1e4]),
    "image far above": dict(target=1e4),
    "image far below": dict(target=-1e4),
    "strong image": dict(weights=[100, 1, 10]),
    "one element shows": dict(weights=[0, 2, 0]),
    "masked in one map": dict(slope=[0, 1, 1], beta=[0, 2, 3]),
    "masked in all": dict(slope=[0, 0, 0], beta=[0, 0, 0], delta=[0, 0, 0]),
    "masked in the image": dict(counted=0, target=0),
    "no background": dict(delta=[0, 0, 0]),
}


@pytest.mark.parametrize("corner", CORNERS)
def test_step_of_one_pixel_by_value(dtype, corner):
    """No other maps of a pixel have a smaller value; scipy looks for them."""
    for is_poisson, tau in product((True, False), (0.1, 3.0)):
        _has_the_smallest_value(dtype, corner, is_poisson, tau)


def _has_the_smallest_value(dtype, corner, is_poisson, tau):
    given = dict(beta=[2, 0, 5], slope=[1, 0.5, 2], delta=[0.3, 0.1, 1], moved=[1, 2, 0.5], weights=[1, 0.5, 2],
                 target=4.0, counted=1.0) | CORNERS[corner]  # fmt: skip
    beta, slope, delta, moved, w = (np.array(given[k], float) for k in ("beta", "slope", "delta", "moved", "weights"))
    target, counted = given["target"], given["counted"]

    def value(z):
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.where(beta > 0, beta * np.log(z + delta), 0)
        own = slope * z - logs if is_poisson else 0.5 * slope * z**2 - beta * z
        return own.sum() + 0.5 * counted * (w @ z - target) ** 2 + ((z - moved) ** 2).sum() / (2 * tau)

    new = descend(compiled, *_one_pixel(moved, dtype), _terms_of(given, is_poisson, dtype), tau, workers=1)[0]
    new = new[:, 0, 0].astype(float)
    bounds = [(0 if d > 0 or b == 0 or not is_poisson else 1e-12, None) for d, b in zip(delta, beta, strict=True)]
    best = min(
        (minimize(value, np.maximum(start, [b[0] for b in bounds]), bounds=bounds, method="L-BFGS-B",
                  options={"ftol": 1e-15, "gtol": 1e-12, "maxiter": 5000}) for start in (moved, new, new * 1.1 + 0.1)),
        key=lambda r: r.fun)  # fmt: skip
    size = abs(value(np.zeros(3) + 1e-3)) + abs(best.fun)
    assert value(new) <= best.fun + (1e-6 if dtype == np.float32 else 1e-10) * size
    # and the value is steep enough to tell: a percent away it is larger
    away = new * 1.01 + 1e-2
    assert value(away) > value(new)


def _one_pixel(moved, dtype):
    """Maps of 2 x 2 equal pixels, so that with a dual of zero each is the pixel asked for."""
    n = len(moved)
    z = np.broadcast_to(np.array(moved)[:, None, None], (n, 2, 2)).astype(dtype)
    return z, np.zeros((4, n, 1, 1), dtype)


def _terms_of(given, is_poisson, dtype):
    def planes(name):
        return np.broadcast_to(np.array(given[name], float)[:, None, None], (3, 2, 2)).astype(dtype)

    target, counted = (np.full((2, 2), given[k], dtype) for k in ("target", "counted"))
    weights, upper = np.array(given["weights"], dtype), np.full(3, 1e9, dtype)
    return (planes("beta"), planes("slope"), planes("delta"), is_poisson, np.zeros(3, dtype), upper, weights, target,
            counted)  # fmt: skip


def test_step_does_not_depend_on_the_residual_it_starts_from(dtype):
    shape = (2, 4, 5)
    z, y = np.abs(normal(0, shape, dtype)), np.zeros((4, 2, 3, 4), dtype)
    terms = data(shape, dtype, True)
    plain = descend(compiled, z, y, terms, 1.0)[0]
    for start in (-1e3, 1e3):
        far = np.full((1, 4, 5), start, dtype)
        close(descend(compiled, z, y, terms, 1.0, residual=far)[0], plain, dtype)


# ---- values and the bound ----------------------------------------------------------------------------


def values(kernel, z, y, terms, factors, workers=2, gradient=None):
    n, ny, nx = z.shape
    work, sums = np.full((workers, n + 4, nx), np.nan, z.dtype), np.full((ny, 4), np.nan)
    gradient = np.zeros((0, 0, 0), z.dtype) if gradient is None else gradient[None].astype(z.dtype)
    kernel("data_terms")(z, y, *terms[:6], *images(terms), factors.astype(z.dtype), gradient, work, sums)
    return sums


def half_deviance(z, terms):
    beta, slope, delta, is_poisson = (np.asarray(a, float) for a in terms[:4])
    slope, delta = np.broadcast_to(slope, z.shape), np.broadcast_to(delta, z.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = slope * (z + delta)
        poisson = mean - beta + np.where(beta > 0, beta * np.log(beta / mean), 0)
        squares = 0.5 * slope * (z - beta / slope) ** 2
    return np.where(slope > 0, poisson if is_poisson else squares, 0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("is_poisson", [True, False])
def test_values_and_bound(case, is_poisson, masked):
    """The bound is the smallest value over a fine grid of maps, less what the grid misses."""
    kernel, dtype, shapes = case
    for shape, coupled in product(shapes, (False, True, 3)):
        n, ny, nx = shape
        z, y = np.abs(normal(0, shape, dtype)) + dtype(0.1), normal(1, (4, n, ny - 1, nx - 1), dtype)
        terms = list(data(shape, dtype, is_poisson, masked, coupled))
        terms[5] = np.linspace(5, 7, n).astype(dtype)
        factors = np.linspace(0.8, 1.3, n).astype(dtype)
        sums = values(kernel, z, y, terms, factors)
        x = z.astype(float) * factors[:, None, None]
        close(sums[:, 0], half_deviance(x, terms).sum(axis=(0, 2)), dtype)
        weights, target, counted = (a.astype(float) for a in images(terms))
        rho = counted * (np.tensordot(weights, x, 1) - target)
        gradient = adjoint(y.astype(float)) + np.tensordot(weights.T, rho, 1)
        close(sums[:, 1], 0.5 * (rho**2).sum(axis=(0, 2)), dtype)
        close(sums[:, 3], (rho**2 / 2 + rho * target).sum(axis=(0, 2)), dtype)
        gradient = gradient + np.where(terms[1] > 0, terms[4][:, None, None], 0)
        grid = np.linspace(0, 1, 1001)[:, None, None, None] * np.broadcast_to(terms[5][:, None, None], shape)
        lagrangian = half_deviance(grid, terms) + gradient * grid
        smallest = np.min(lagrangian, axis=0).sum(axis=(0, 2))
        assert np.all(sums[:, 2] <= smallest + rtol(dtype) * np.abs(lagrangian[-1]).sum())
        missed = 2e-3 if coupled != 3 else 1e-2  # larger gradients
        np.testing.assert_allclose(sums[:, 2], smallest, atol=rtol(dtype) * 100 + missed)


def test_bound_where_the_lagrangian_falls_for_ever(case):
    """The gradient of the dual is larger than that of the data: the bound is that of the upper limit of the maps."""
    kernel, dtype, _ = case
    terms = list(data((1, 2, 2), dtype, True, coupled=False))
    slope, theta = float(terms[1][0, 0, 0]), -10.0
    terms[4], terms[5] = np.full(1, theta, dtype), np.full(1, 7, dtype)
    sums = values(kernel, np.ones((1, 2, 2), dtype), np.zeros((4, 1, 1, 1), dtype), terms, np.ones(1))
    assert slope + theta < 0
    expected = half_deviance(np.full((1, 2, 2), 7.0), terms).sum(axis=(0, 2)) + 2 * 7 * theta
    np.testing.assert_allclose(sums[:, 2], expected, rtol=1e-5)


@pytest.mark.parametrize("counts, mean, expected", [(0, 0, 0), (0, 2.5, 2.5), (3, 3, 0), (2, 1, -1 + 2 * np.log(2))])
def test_half_deviance_of_one_count(case, counts, mean, expected):
    kernel, dtype, _ = case
    terms = list(data((1, 2, 2), dtype, True, coupled=False))
    terms[0][:], terms[1][:], terms[2][:] = counts, 1, 0
    sums = values(kernel, np.full((1, 2, 2), mean, dtype), np.zeros((4, 1, 1, 1), dtype), terms, np.ones(1))
    np.testing.assert_allclose(sums[:, 0], 2 * expected, atol=1e-6)


# ---- threads and the cache ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode, joint", [*product(MODES, (False, True)), (kernels.OFF, True)])
def test_number_of_workers_does_not_matter(mode, joint):
    """To the last bit: which worker takes which row is no part of the result."""
    shape, results = (3, 9, 11), []
    u, v, guide, y = cells(shape, np.float32, mode)
    q = normal(8, (4, len(v), 7, 9), np.float32) if mode >= kernels.GUIDED else None
    terms = data(shape, np.float32, True, masked=True)
    for workers in (1, 2, 5, 9):
        new = sweep(compiled, u, v, y, q=q, guide=guide, mode=mode, joint=joint, terms=terms, relax=(1.6, 1.6),
                    workers=workers)  # fmt: skip
        results.append([*vars(new).values(), values(compiled, new.z, new.y, terms, np.ones(3), workers)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
