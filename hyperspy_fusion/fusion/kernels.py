"""Every compiled function of the package, in one file: Numba's disk cache does not see edits in other files.

Each kernel states what it computes; NumPy twins in ``problem.py``, ``regularizers.py`` and the tests compute
the same by other means. Kernels allocate nothing: outputs and workspaces are arguments, and sums are returned as
one partial sum per row, so that a result does not depend on the number of threads.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

import numba
import numpy as np
from numba import njit, prange, types
from numba.extending import overload

# no "nnan", no "ninf": NaN and infinity must stay visible to isfinite()
FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}
# concurrent first compilations on a shared disk can race (numba issue 4807): clusters may switch the cache off
CACHE = os.environ.get("HYPERSPY_FUSION_CACHE", "1") != "0"

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453
SQRT_HALF_BITS = 0x3F3504F3  # of float32


# ---- x**g and log(x), vectorised in single precision ---------------------------------------------------------------


def power(x, g):
    """``x**g`` for x >= 0 and finite; compiled for float32 as ``exp2(g log2 x)``.

    Relative error in single precision below 1e-6 + 1e-7 |g log2 x|; anything below 1e-30 counts as zero.
    """
    return x**g


def log(x):
    """Natural logarithm of x > 0; compiled for float32 by a series, right to about 1e-7 of max(1, |log x|)."""
    return np.log(x)


@njit(inline="always")
def _log2_f32(x):
    # x = 2**e m with m in [sqrt(1/2), sqrt(2)); log2 m = 2/ln 2 atanh((m - 1)/(m + 1))
    bits = np.int32(np.float32(x).view(np.int32) - SQRT_HALF_BITS)
    mantissa = np.int32((bits & 0x007FFFFF) + SQRT_HALF_BITS).view(np.float32)
    s = (mantissa - np.float32(1)) / (mantissa + np.float32(1))
    s2 = s * s
    series = np.float32(1 / 5) + s2 * (np.float32(1 / 7) + s2 * np.float32(1 / 9))
    series = np.float32(1) + s2 * (np.float32(1 / 3) + s2 * series)
    return np.float32(np.int32(bits >> 23)) + np.float32(2 * LOG2_E) * s * series


@njit(inline="always")
def _exp2_f32(y):
    # y = n + r with |r| <= 1/2; 2**r by its Taylor series, 2**n in the exponent bits
    y = min(max(y, np.float32(-126)), np.float32(126))
    n = np.floor(y + np.float32(0.5))
    r = (y - n) * np.float32(LN_2)
    series = np.float32(1 / 120) + r * (np.float32(1 / 720) + r * np.float32(1 / 5040))
    series = np.float32(1 / 2) + r * (np.float32(1 / 6) + r * (np.float32(1 / 24) + r * series))
    series = np.float32(1) + r * (np.float32(1) + r * series)
    return series * np.int32((np.int32(n) + 127) << 23).view(np.float32)


@njit(inline="always")
def _power_f32(x, g):
    # without a branch, so that loops vectorise: anything below 1e-30 counts as zero, and 0**0 is 1
    return _exp2_f32(g * _log2_f32(x)) * np.float32((x > np.float32(1e-30)) | (g == 0))


@overload(power, inline="always")
def _power_compiled(x, g):
    if x == types.float32:
        return lambda x, g: _power_f32(x, g)
    return lambda x, g: x**g


@overload(log, inline="always")
def _log_compiled(x):
    if x == types.float32:
        return lambda x: np.float32(LN_2) * _log2_f32(x)
    return lambda x: np.log(x)


# ---- the smooth terms: one gradient step ---------------------------------------------------------------------------


@njit(cache=CACHE, parallel=True, fastmath=FASTMATH)
def gradient_step(
    x,
    maps,
    offsets,
    scales,
    haadf,
    weights,
    gamma,
    lambda_haadf,
    lambda_chem,
    background,
    stepped,
    modelled,
    sums,
):
    """``stepped = max(x - gradient of the smooth terms, 0)`` and the value of both terms at ``x``.

    With ``b = (maps - offsets) * scales`` the terms are ``lambda_haadf/2 ||f(x) - haadf||^2`` with
    ``f(x) = sum_i weights_i x_i**gamma`` and ``lambda_chem sum(x - b log(x + background))``.

    x, maps, stepped : (n, ny, nx); haadf, modelled : (ny, nx), ``modelled`` receives f(x);
    offsets, scales, weights : (n,); sums : (ny, 2) float64, receives ``1/2 sum (f - haadf)^2`` and
    ``sum (x - b log(x + background))`` of each row. Scalars have the dtype of the maps.
    """
    n, ny, nx = x.shape
    zero = x.dtype.type(0)
    one = x.dtype.type(1)
    for y in prange(ny):
        f = modelled[y]
        h = haadf[y]
        f[:] = zero
        for i in range(n):
            xi = x[i, y]
            slope = stepped[i, y]
            if gamma >= one:
                for j in range(nx):
                    slope[j] = power(xi[j], gamma - one)
                    f[j] += weights[i] * xi[j] * slope[j]
            else:
                # the slope is infinite at zero: it is taken at no less than the background
                for j in range(nx):
                    slope[j] = power(max(xi[j], background), gamma - one)
                    f[j] += weights[i] * power(xi[j], gamma)
        misfit = zero
        for j in range(nx):
            misfit += (f[j] - h[j]) * (f[j] - h[j])
        deviance = zero
        for i in range(n):
            xi = x[i, y]
            bi = maps[i, y]
            out = stepped[i, y]
            step = lambda_haadf * gamma * weights[i]
            for j in range(nx):
                b = (bi[j] - offsets[i]) * scales[i]
                shifted = xi[j] + background
                deviance += xi[j] - b * log(shifted)
                moved = xi[j] - step * out[j] * (f[j] - h[j]) - lambda_chem * (one - b / shifted)
                out[j] = max(moved, zero)
        sums[y, 0] = 0.5 * misfit
        sums[y, 1] = deviance


# ---- total variation: prox by (fast) gradient projection -----------------------------------------------------------


@njit(fastmath=FASTMATH)
def _primal_row(v, weight, p_above, p, q, out):
    """One row of ``max(v - weight L(p, q), 0)`` with ``L(p, q) = p - p_above + q - q_left``."""
    zero = v.dtype.type(0)
    out[0] = max(v[0] - weight * (p[0] - p_above[0] + q[0]), zero)
    for j in range(1, v.size):
        out[j] = max(v[j] - weight * (p[j] - p_above[j] + q[j] - q[j - 1]), zero)


@njit(fastmath=FASTMATH)
def _extrapolated_row(p, q, p_old, q_old, momentum, r, s):
    """One row of ``(p, q) + momentum ((p, q) - (p_old, q_old))``, in (r, s); (p, q) itself where there is none."""
    if momentum == 0:
        return p, q
    for j in range(p.size):
        r[j] = p[j] + momentum * (p[j] - p_old[j])
        s[j] = q[j] + momentum * (q[j] - q_old[j])
    return r, s


@njit(inline="always")
def _projected(p, q, isotropic, one):
    """Projection of one dual vector: onto the unit disc, or each component onto [-1, 1]."""
    if isotropic:
        shrink = one / np.sqrt(max(one, p * p + q * q))
        p *= shrink
        q *= shrink
    else:
        p = min(max(p, -one), one)
        q = min(max(q, -one), one)
    return p, q


@njit(fastmath=FASTMATH)
def _dual_row(u, u_below, step, isotropic, r, s, p, q):
    """One row of the projected ascent ``(p, q) <- P[(r, s) + step L^T u]``; (r, s) is not (p, q)."""
    one = u.dtype.type(1)
    last = u.size - 1
    for j in range(last):
        p_new = r[j] + step * (u[j] - u_below[j])
        q_new = s[j] + step * (u[j] - u[j + 1])
        p[j], q[j] = _projected(p_new, q_new, isotropic, one)
    p[last] = min(max(r[last] + step * (u[last] - u_below[last]), -one), one)
    q[last] = u.dtype.type(0)


@njit(fastmath=FASTMATH)
def _first_dual_row(v, v_below, step, isotropic, p, q):
    """:func:`_dual_row` from a dual of zero, where ``u = max(v, 0)``."""
    zero, one = v.dtype.type(0), v.dtype.type(1)
    last = v.size - 1
    for j in range(last):
        u = max(v[j], zero)
        p_new = step * (u - max(v_below[j], zero))
        q_new = step * (u - max(v[j + 1], zero))
        p[j], q[j] = _projected(p_new, q_new, isotropic, one)
    p[last] = min(max(step * (max(v[last], zero) - max(v_below[last], zero)), -one), one)
    q[last] = zero


@njit(fastmath=FASTMATH)
def _variation_row(u, u_below, isotropic):
    """Sum over one row of ``|(u - u_below, u - u_right)|``."""
    last = u.size - 1
    total = abs(u[last] - u_below[last])
    for j in range(last):
        a = u[j] - u_below[j]
        b = u[j] - u[j + 1]
        total += np.sqrt(a * a + b * b) if isotropic else abs(a) + abs(b)
    return total


@njit(fastmath=FASTMATH)
def _replace_row(x, u):
    """Write ``u`` over ``x``; return ``||u - x||^2`` and ``||x||^2`` of the values replaced."""
    change = x.dtype.type(0)
    size = x.dtype.type(0)
    for j in range(x.size):
        change += (u[j] - x[j]) * (u[j] - x[j])
        size += x[j] * x[j]
        x[j] = u[j]
    return change, size


@njit(fastmath=FASTMATH)
def _first_ascent(v, top, low, high, weight, isotropic, p, q):
    """The first step of gradient projection from a dual of zero, rows ``low`` to ``high``."""
    ny = v.shape[0]
    step = v.dtype.type(1) / (v.dtype.type(8) * weight)
    for y in range(low, high):
        _first_dual_row(v[y], v[min(y + 1, ny - 1)], step, isotropic, p[y - top + 1], q[y - top + 1])


@njit(fastmath=FASTMATH)
def _ascend(v, top, low, high, weight, isotropic, momentum, p, q, p_old, q_old, lines):
    """One step of gradient projection on the dual rows ``low`` to ``high`` of an image.

    Starts from ``(r, s) = (p, q) + momentum ((p, q) - (p_old, q_old))`` and leaves the new dual in p_old, q_old: a row
    of them is overwritten once its extrapolation has been taken. Row ``y`` of the image is row ``y - top + 1``.
    """
    ny = v.shape[0]
    step = v.dtype.type(1) / (v.dtype.type(8) * weight)
    u, u_below, r_below, s_below, r, s = lines[0], lines[1], lines[2], lines[3], lines[4], lines[5]
    k = low - top
    r_above, _ = _extrapolated_row(p[k], q[k], p_old[k], q_old[k], momentum, r_below, s_below)
    r, s = _extrapolated_row(p[k + 1], q[k + 1], p_old[k + 1], q_old[k + 1], momentum, r, s)
    _primal_row(v[low], weight, r_above, r, s, u)
    for y in range(low, high):
        k = y - top + 1
        if y + 1 < ny:
            r_below, s_below = _extrapolated_row(
                p[k + 1], q[k + 1], p_old[k + 1], q_old[k + 1], momentum, r_below, s_below
            )
            _primal_row(v[y + 1], weight, r, r_below, s_below, u_below)
        else:
            u_below[:] = u
        _dual_row(u, u_below, step, isotropic, r, s, p_old[k], q_old[k])
        u, u_below = u_below, u
        r, r_below = r_below, r
        s, s_below = s_below, s


@njit(fastmath=FASTMATH)
def _finish(v, x, top, first, last, weight, isotropic, p, q, u, u_below, sums):
    """Rows ``first`` to ``last`` of the primal maps from the dual, with what each row adds to the sums."""
    ny = v.shape[0]
    _primal_row(v[first], weight, p[first - top], p[first - top + 1], q[first - top + 1], u)
    for y in range(first, last):
        k = y - top + 1
        if y + 1 < ny:
            _primal_row(v[y + 1], weight, p[k], p[k + 1], q[k + 1], u_below)
        else:
            u_below[:] = u
        sums[y, 0] = _variation_row(u, u_below, isotropic)
        sums[y, 1], sums[y, 2] = _replace_row(x[y], u)
        u, u_below = u_below, u


@njit(cache=CACHE, parallel=True, fastmath=FASTMATH)
def prox_tv(v, x, weight, isotropic, momentum, band, dual, dual_next, work, lines, sums):
    """``x_i = argmin_{u >= 0} 1/2 ||u - v_i||^2 + weight TV(u)``, by ``momentum.size`` steps of gradient projection.

    Beck & Teboulle (2009), algorithms GP and FGP, with Neumann edges and dual step ``1/(8 weight)``. Bands of rows are
    independent: a band is solved together with so many rows around it that what enters from their rim
    cannot reach it, so all steps run in the cache of one core, and the result is the one without bands.

    v, x : (n, ny, nx), ``x`` holds the previous maps on entry; momentum : (n_steps,), zeros for plain gradient
    projection; band : rows of a band; dual, dual_next : (2, n, ny, nx) the dual to start from and the one
    reached, or (2, n, 0, 0) to start at zero and forget; work : (n_workers, 4, rows, nx) with
    rows > min(band + 2 n_steps + 2, ny), lines : (n_workers, 6, nx); sums : (n, ny, 3) float64, receives of each row
    TV(x), ||x - previous x||^2 and ||previous x||^2.
    """
    n, ny, nx = v.shape
    steps = momentum.size
    n_bands = (ny + band - 1) // band
    n_workers = work.shape[0]
    warm = dual.shape[2] > 0
    for worker in prange(n_workers):
        p, q, p_old, q_old = work[worker, 0], work[worker, 1], work[worker, 2], work[worker, 3]
        u, u_below = lines[worker, 0], lines[worker, 1]
        for task in range(worker, n * n_bands, n_workers):
            i = task // n_bands
            first = (task % n_bands) * band
            last = min(first + band, ny)
            top = max(first - steps - 1, 0)
            bottom = min(last + steps + 1, ny)
            # the row above an image: no edge, no dual
            work[worker, :, 0] = v.dtype.type(0)
            if warm:
                p[1 : bottom - top + 1] = dual[0, i, top:bottom]
                q[1 : bottom - top + 1] = dual[1, i, top:bottom]
            elif steps == 0:
                work[worker, :2, : bottom - top + 1] = v.dtype.type(0)
            for k in range(steps):
                # what the rim lacks spoils one more row each step
                low = top if top == 0 else top + k
                high = bottom if bottom == ny else bottom - k - 1
                if k == 0 and not warm:
                    _first_ascent(v[i], top, low, high, weight, isotropic, p, q)
                else:
                    factor = momentum[k - 1] if k > 0 else v.dtype.type(0)
                    rows = lines[worker]
                    _ascend(v[i], top, low, high, weight, isotropic, factor, p, q, p_old, q_old, rows)
                    p, q, p_old, q_old = p_old, q_old, p, q
            if warm:
                dual_next[0, i, first:last] = p[first - top + 1 : last - top + 1]
                dual_next[1, i, first:last] = q[first - top + 1 : last - top + 1]
            _finish(v[i], x[i], top, first, last, weight, isotropic, p, q, u, u_below, sums[i])


# ---- threads and compilation ---------------------------------------------------------------------------------------


@contextmanager
def threads(num_workers):
    """Run with so many threads, all that Numba has for None, and restore the number afterwards."""
    before = numba.get_num_threads()
    numba.set_num_threads(before if num_workers is None else min(num_workers, numba.config.NUMBA_NUM_THREADS))
    try:
        yield numba.get_num_threads()
    finally:
        numba.set_num_threads(before)


def are_compiled(dtype):
    """True where the kernels for maps of ``dtype`` are in memory or in the disk cache."""
    wanted = numba.from_dtype(np.dtype(dtype))

    def has(signatures):
        return any(signature[0].dtype == wanted for signature in signatures)

    return all(has(kernel.signatures) or has(_cached_signatures(kernel)) for kernel in (gradient_step, prox_tv))


def _cached_signatures(kernel):
    """Signatures in the disk cache that are of this source, Python, Numba and processor."""
    try:
        target = kernel.targetctx.codegen().magic_tuple()
        return [key[0] for key in kernel._cache._cache_file._load_index() if key[1] == target]
    except (AttributeError, OSError):  # Numba has no public way to ask
        return []
