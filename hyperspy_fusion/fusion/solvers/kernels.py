"""Every compiled function of the package, in one file: Numba's disk cache does not see edits in other files.

Each kernel states what it computes. NumPy code in ``fusion.terms`` and the tests computes the same by other means.
Kernels allocate nothing: outputs and workspaces are arguments. Sums are returned as one partial sum per row, so
that a result does not depend on the number of threads.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext, suppress

# threads that wait must not take cores from others: on a busy computer, iterations took up to ten times as long
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numba
import numpy as np
from numba import njit, prange, types
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.extending import overload

# no "nnan", no "ninf": NaN and infinity must stay visible to isfinite()
FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}
# concurrent first compilations on a shared disk can collide (numba issue 4807): clusters may switch the cache off
CACHE = os.environ.get("HYPERSPY_FUSION_CACHE", "1") != "0"

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453
SQRT_HALF_BITS = 0x3F3504F3  # of float32
SQRT_HALF = 0.7071067811865476


class _NoAlias(CompilerBase):
    """Tells LLVM that the rows passed do not overlap: it does not check more than a few pairs, and gives up."""

    def define_pipelines(self):
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


# loops over one row of pixels or cells, which vectorise; rows are passed one by one and do not overlap
# no other compiled language calls them; the caller owns the rows, and counting references to them (_nrt) takes a
# twentieth of the time of a fit
_called = {"error_model": "numpy", "fastmath": FASTMATH, "no_cfunc_wrapper": True, "_nrt": False}
_row_loop = njit(pipeline_class=_NoAlias, forceinline=True, **_called)
_inner = njit(**_called)


@_row_loop
def _copied(row, out):
    # ``out[:] = row`` compiles the texts of an error for rows of different length, which takes seconds
    for j in range(out.size):
        out[j] = row[j]


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


@njit(cache=CACHE, parallel=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
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
        squares = zero
        for j in range(nx):
            squares += (f[j] - h[j]) * (f[j] - h[j])
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
        sums[y, 0] = 0.5 * squares
        sums[y, 1] = deviance


# ---- total variation: prox by (fast) gradient projection -----------------------------------------------------------


@_inner
def _primal_row(v, weight, p_above, p, q, out):
    """One row of ``max(v - weight L(p, q), 0)`` with ``L(p, q) = p - p_above + q - q_left``."""
    zero = v.dtype.type(0)
    out[0] = max(v[0] - weight * (p[0] - p_above[0] + q[0]), zero)
    for j in range(1, v.size):
        out[j] = max(v[j] - weight * (p[j] - p_above[j] + q[j] - q[j - 1]), zero)


@_inner
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


@_inner
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


@_inner
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


@_inner
def _variation_row(u, u_below, isotropic):
    """Sum over one row of ``|(u - u_below, u - u_right)|``."""
    last = u.size - 1
    total = abs(u[last] - u_below[last])
    for j in range(last):
        a = u[j] - u_below[j]
        b = u[j] - u[j + 1]
        total += np.sqrt(a * a + b * b) if isotropic else abs(a) + abs(b)
    return total


@_inner
def _replace_row(x, u):
    """Write ``u`` over ``x``; return ``||u - x||^2`` and ``||x||^2`` of the values replaced."""
    change = x.dtype.type(0)
    size = x.dtype.type(0)
    for j in range(x.size):
        change += (u[j] - x[j]) * (u[j] - x[j])
        size += x[j] * x[j]
        x[j] = u[j]
    return change, size


@_inner
def _first_ascent(v, top, low, high, weight, isotropic, p, q):
    """The first step of gradient projection from a dual of zero, rows ``low`` to ``high``."""
    ny = v.shape[0]
    step = v.dtype.type(1) / (v.dtype.type(8) * weight)
    for y in range(low, high):
        _first_dual_row(v[y], v[min(y + 1, ny - 1)], step, isotropic, p[y - top + 1], q[y - top + 1])


@_inner
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
            _copied(u, u_below)
        _dual_row(u, u_below, step, isotropic, r, s, p_old[k], q_old[k])
        u, u_below = u_below, u
        r, r_below = r_below, r
        s, s_below = s_below, s


@_inner
def _finish(v, x, top, first, last, weight, isotropic, p, q, u, u_below, sums):
    """Rows ``first`` to ``last`` of the primal maps from the dual, with what each row adds to the sums."""
    ny = v.shape[0]
    _primal_row(v[first], weight, p[first - top], p[first - top + 1], q[first - top + 1], u)
    for y in range(first, last):
        k = y - top + 1
        if y + 1 < ny:
            _primal_row(v[y + 1], weight, p[k], p[k + 1], q[k + 1], u_below)
        else:
            _copied(u, u_below)
        sums[y, 0] = _variation_row(u, u_below, isotropic)
        sums[y, 1], sums[y, 2] = _replace_row(x[y], u)
        u, u_below = u_below, u


@njit(cache=CACHE, parallel=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def prox_tv(v, x, weight, isotropic, momentum, band, work, lines, sums):
    """``x_i = argmin_{u >= 0} 1/2 ||u - v_i||^2 + weight TV(u)``, by ``momentum.size`` steps of gradient projection.

    Beck & Teboulle (2009), algorithms GP and FGP, from a dual of zero, with Neumann edges and dual step
    ``1/(8 weight)``. Bands of rows are independent. A band is solved together with enough rows around it that errors at
    the rim cannot reach it. So all steps run in the cache of one core, and the result is the one without bands.

    v, x : (n, ny, nx), ``x`` holds the previous maps on entry; momentum : (n_steps,), zeros for plain gradient
    projection; band : rows of a band; work : (n_workers, 4, rows, nx) with rows > min(band + 2 n_steps + 2, ny),
    lines : (n_workers, 6, nx); sums : (n, ny, 3) float64, receives of each row TV(x), ||x - previous x||^2 and
    ||previous x||^2.
    """
    n, ny, nx = v.shape
    steps = momentum.size
    n_bands = (ny + band - 1) // band
    n_workers = work.shape[0]
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
            if steps == 0:
                work[worker, :2, : bottom - top + 1] = v.dtype.type(0)
            for k in range(steps):
                # what the rim lacks spoils one more row each step
                low = top if top == 0 else top + k
                high = bottom if bottom == ny else bottom - k - 1
                if k == 0:
                    _first_ascent(v[i], top, low, high, weight, isotropic, p, q)
                else:
                    rows = lines[worker]
                    _ascend(v[i], top, low, high, weight, isotropic, momentum[k - 1], p, q, p_old, q_old, rows)
                    p, q, p_old, q_old = p_old, q_old, p, q
            _finish(v[i], x[i], top, first, last, weight, isotropic, p, q, u, u_below, sums[i])


# ---- calibrated method: differences in 2x2 cells ---------------------------------------------------------------------
#
# A 2x2 cell has four neighbouring pixels. Its four differences, over sqrt(2), are those of its left, right, top and
# bottom edge: D u, shape (4, n, ny - 1, nx - 1) for u of shape (n, ny, nx). Unlike forward differences, D u has the
# same length for the flipped and for the transposed image. ``mode`` is the operator on them:

OFF = -1  # no penalty
PLAIN = 0  # D u
# P D u with P = I - xi xi^T - c t t^T, |xi| < 1, 0 <= c < 1, and t = (-1, 1, -1, 1) / 2 orthogonal to xi where c is
# not 0. The guide (8, ny - 1, nx - 1) is xi, the factors e and g, each followed by its own of P^-1, of
# P^2 = I - e xi xi^T - g s s^T and P^-2 = I + e' xi xi^T + g' s s^T with s = 2 t:
# e = 2 - |xi|^2, e' = (2 - |xi|^2) / (1 - |xi|^2)^2, g = c (2 - c) / 4, g' = c (2 - c) / (1 - c)^2 / 4
DIRECTIONAL = 1
GUIDED = 2  # D u - v * guide, guide (4, ny - 1, nx - 1), one slope v (n, ny - 1, nx - 1) per map
VECTOR = 3  # D u - L v, two slopes v per map: along y and along x


@_row_loop
def _ascended_plain(top, bottom, y0, y1, y2, y3, sigma, t0, t1, t2, t3, squares):
    """``t = y + sigma D u`` of the rows ``top`` and ``bottom`` of pixels; its squares are added to ``squares``."""
    half = top.dtype.type(SQRT_HALF)
    for j in range(squares.size):
        s = half * sigma[j]
        a = y0[j] + s * (bottom[j] - top[j])
        b = y1[j] + s * (bottom[j + 1] - top[j + 1])
        c = y2[j] + s * (top[j + 1] - top[j])
        d = y3[j] + s * (bottom[j + 1] - bottom[j])
        t0[j], t1[j], t2[j], t3[j] = a, b, c, d
        squares[j] += a * a + b * b + c * c + d * d


@_row_loop
def _ascended_guided(top, bottom, v, g0, g1, g2, g3, y0, y1, y2, y3, sigma, t0, t1, t2, t3, squares):
    """``t = y + sigma (D u - v guide)``."""
    half = top.dtype.type(SQRT_HALF)
    for j in range(squares.size):
        s, w = sigma[j], v[j]
        a = y0[j] + s * (half * (bottom[j] - top[j]) - w * g0[j])
        b = y1[j] + s * (half * (bottom[j + 1] - top[j + 1]) - w * g1[j])
        c = y2[j] + s * (half * (top[j + 1] - top[j]) - w * g2[j])
        d = y3[j] + s * (half * (bottom[j + 1] - bottom[j]) - w * g3[j])
        t0[j], t1[j], t2[j], t3[j] = a, b, c, d
        squares[j] += a * a + b * b + c * c + d * d


@_row_loop
def _ascended_vector(top, bottom, va, vb, y0, y1, y2, y3, sigma, t0, t1, t2, t3, squares):
    """``t = y + sigma (D u - L v)`` with the slopes ``va`` along y and ``vb`` along x."""
    half = top.dtype.type(SQRT_HALF)
    for j in range(squares.size):
        s = half * sigma[j]
        a = y0[j] + s * (bottom[j] - top[j] - va[j])
        b = y1[j] + s * (bottom[j + 1] - top[j + 1] - va[j])
        c = y2[j] + s * (top[j + 1] - top[j] - vb[j])
        d = y3[j] + s * (bottom[j + 1] - bottom[j] - vb[j])
        t0[j], t1[j], t2[j], t3[j] = a, b, c, d
        squares[j] += a * a + b * b + c * c + d * d


@_row_loop
def _ascended_directional(
    top, bottom, g0, g1, g2, g3, e, e_back, g, g_back, y0, y1, y2, y3, sigma, t0, t1, t2, t3, squares
):
    """``t = y + sigma P^2 D u`` and the squares of ``P^-1 t``: duals of this mode are stored times P."""
    half = top.dtype.type(SQRT_HALF)
    for j in range(squares.size):
        s, h0, h1, h2, h3 = sigma[j], g0[j], g1[j], g2[j], g3[j]
        a = half * (bottom[j] - top[j])
        b = half * (bottom[j + 1] - top[j + 1])
        c = half * (top[j + 1] - top[j])
        d = half * (bottom[j + 1] - bottom[j])
        along = e[j] * (h0 * a + h1 * b + h2 * c + h3 * d)
        across = g[j] * (b - a + d - c)
        a = y0[j] + s * (a - along * h0 + across)
        b = y1[j] + s * (b - along * h1 - across)
        c = y2[j] + s * (c - along * h2 + across)
        d = y3[j] + s * (d - along * h3 - across)
        t0[j], t1[j], t2[j], t3[j] = a, b, c, d
        along = h0 * a + h1 * b + h2 * c + h3 * d
        across = b - a + d - c
        squares[j] += a * a + b * b + c * c + d * d + e_back[j] * along * along + g_back[j] * across * across


@_inner
def _ascended_row(u, v, guide, mode, c, row, y0, y1, y2, y3, sigma, t, squares):
    """One row of cells of map ``c`` before its projection, in ``t`` (4, n_cells); its squares are added."""
    top, bottom, t0, t1, t2, t3 = u[c, row], u[c, row + 1], t[0], t[1], t[2], t[3]
    if mode == PLAIN:
        _ascended_plain(top, bottom, y0, y1, y2, y3, sigma, t0, t1, t2, t3, squares)
    elif mode == VECTOR:
        _ascended_vector(top, bottom, v[2 * c, row], v[2 * c + 1, row], y0, y1, y2, y3, sigma, t0, t1, t2, t3, squares)
    else:
        g0, g1, g2, g3 = guide[0, row], guide[1, row], guide[2, row], guide[3, row]
        if mode == GUIDED:
            _ascended_guided(top, bottom, v[c, row], g0, g1, g2, g3, y0, y1, y2, y3, sigma, t0, t1, t2, t3, squares)
        else:
            _ascended_directional(
                top, bottom, g0, g1, g2, g3, guide[4, row], guide[5, row], guide[6, row], guide[7, row],
                y0, y1, y2, y3, sigma, t0, t1, t2, t3, squares,
            )  # fmt: skip


@_row_loop
def _shrinkage(squares, radius):
    """Lengths squared to the factors that project onto the ball."""
    for j in range(squares.size):
        squares[j] = radius / max(radius, np.sqrt(squares[j]))


@_row_loop
def _relaxed(y0, y1, y2, y3, t0, t1, t2, t3, shrinkage, relax):
    """``y <- y + relax (shrinkage t - y)``."""
    stay = y0.dtype.type(1) - relax
    for j in range(shrinkage.size):
        s = relax * shrinkage[j]
        y0[j] = stay * y0[j] + s * t0[j]
        y1[j] = stay * y1[j] + s * t1[j]
        y2[j] = stay * y2[j] + s * t2[j]
        y3[j] = stay * y3[j] + s * t3[j]


@_inner
def _ascend_row(u, v, y, guide, mode, group, row, sigma, radius, relax, work):
    """One row of the dual of ``radius sum |differences of u|``: ascent, then projection onto balls of ``radius``.

    ``group`` maps that follow each other share one length per cell; work : (4 group + 1, n_cells).
    """
    squares, step = work[4 * group], sigma[row % sigma.shape[0]]
    for first in range(0, y.shape[1], group):
        squares[:] = u.dtype.type(0)
        for k in range(group):
            c = first + k
            y0, y1, y2, y3 = y[0, c, row], y[1, c, row], y[2, c, row], y[3, c, row]
            _ascended_row(u, v, guide, mode, c, row, y0, y1, y2, y3, step, work[4 * k : 4 * k + 4], squares)
        _shrinkage(squares, radius)
        for k in range(group):
            c = first + k
            y0, y1, y2, y3 = y[0, c, row], y[1, c, row], y[2, c, row], y[3, c, row]
            t0, t1, t2, t3 = work[4 * k], work[4 * k + 1], work[4 * k + 2], work[4 * k + 3]
            _relaxed(y0, y1, y2, y3, t0, t1, t2, t3, squares, relax)


@njit(cache=CACHE, parallel=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def variation(u, v, guide, mode, group, factors, work, sums):
    """Sum over each row of cells of the lengths that a penalty sums up.

    u : (n, ny, nx); v, guide : as ``mode`` takes them; ``group`` maps that follow each other share one length.
    factors : (n,), multiply the maps (and their slopes); work : (n_workers, >= 7, nx - 1); sums : (ny - 1,).
    """
    n, n_rows, n_workers = u.shape[0], sums.size, work.shape[0]
    zero = u.dtype.type(0)
    for worker in prange(n_workers):
        t, squares, nothing, factor = work[worker, :4], work[worker, 4], work[worker, 5], work[worker, 6]
        nothing[:] = zero
        for row in range(worker, n_rows, n_workers):
            total = zero
            for first in range(0, n, group):
                squares[:] = zero
                for c in range(first, first + group):
                    factor[:] = factors[c]
                    _ascended_row(u, v, guide, mode, c, row, nothing, nothing, nothing, nothing, factor, t, squares)
                for j in range(squares.size):
                    total += np.sqrt(squares[j])
            sums[row] = total


@_row_loop
def _adjoint_between(left, right, top, left_above, right_above, bottom_above, out):
    """``D^T y`` of a row of pixels between two rows of cells, that below and that above."""
    half = left.dtype.type(SQRT_HALF)
    n = left.size
    out[0] = half * (left_above[0] - bottom_above[0] - left[0] - top[0])
    for j in range(1, n):
        below = left[j] + top[j] + right[j - 1] - top[j - 1]
        out[j] = half * (left_above[j] - bottom_above[j] + right_above[j - 1] + bottom_above[j - 1] - below)
    out[n] = half * (right_above[n - 1] + bottom_above[n - 1] - right[n - 1] + top[n - 1])


@_row_loop
def _adjoint_at_edge(sign, vertical, vertical_right, horizontal, out):
    """``D^T y`` of the first row of pixels (``sign`` -1) or of the last one (1)."""
    half = vertical.dtype.type(SQRT_HALF)
    n = vertical.size
    out[0] = half * (sign * vertical[0] - horizontal[0])
    for j in range(1, n):
        out[j] = half * (sign * (vertical[j] + vertical_right[j - 1]) - horizontal[j] + horizontal[j - 1])
    out[n] = half * (sign * vertical_right[n - 1] + horizontal[n - 1])


@_inner
def _adjoint_row(y, c, row, out):
    """One row of ``D^T y`` of map ``c``; 0 where there are no cells."""
    n_rows, one = y.shape[2], y.dtype.type(1)
    if n_rows == 0 or y.shape[3] == 0:
        out[:] = y.dtype.type(0)
    elif row == 0:
        _adjoint_at_edge(-one, y[0, c, 0], y[1, c, 0], y[2, c, 0], out)
    elif row == n_rows:
        _adjoint_at_edge(one, y[0, c, row - 1], y[1, c, row - 1], y[3, c, row - 1], out)
    else:
        _adjoint_between(
            y[0, c, row], y[1, c, row], y[2, c, row], y[0, c, row - 1], y[1, c, row - 1], y[3, c, row - 1], out
        )


# ---- calibrated method: slopes and maps ------------------------------------------------------------------------------


@_row_loop
def _subtract_guided(slack, g0, g1, g2, g3, y0, y1, y2, y3):
    """``slack <- slack - L^T y`` of one map's slope against the guide."""
    for j in range(slack.size):
        slack[j] -= g0[j] * y0[j] + g1[j] * y1[j] + g2[j] * y2[j] + g3[j] * y3[j]


@_row_loop
def _subtract_vector(slack, ya, yb):
    """``slack <- slack - L^T y`` of the slope along one axis, by the two edges of a cell along it."""
    half = slack.dtype.type(SQRT_HALF)
    for j in range(slack.size):
        slack[j] -= half * (ya[j] + yb[j])


@_row_loop
def _descend_slopes(slack, tau, relax, v, v_bar):
    """One row of slopes moved against ``slack``; the sum of its absolute values."""
    total = v.dtype.type(0)
    for j in range(v.size):
        move = tau[j] * slack[j]
        total += abs(slack[j])
        v_bar[j] = v[j] - move - move
        v[j] -= relax * move
    return total


@_inner
def _descend_slopes_row(v, v_bar, q, y, guide, mode, row, tau, relax, slack, sums):
    """``v <- v - relax tau (D^T q - L^T y)`` and ``v_bar`` twice as far as by tau; sums of ``|D^T q - L^T y|``."""
    step = tau[row % tau.shape[0]]
    for c in range(v.shape[0]):
        _adjoint_row(q, c, row, slack)
        if mode == GUIDED:
            g0, g1, g2, g3 = guide[0, row], guide[1, row], guide[2, row], guide[3, row]
            y0, y1, y2, y3 = y[0, c, row], y[1, c, row], y[2, c, row], y[3, c, row]
            _subtract_guided(slack, g0, g1, g2, g3, y0, y1, y2, y3)
        else:
            # slopes along y act on the left and right edges, slopes along x on top and bottom
            k = 2 * (c % 2)
            _subtract_vector(slack, y[k, c // 2, row], y[k + 1, c // 2, row])
        sums[c, row] = _descend_slopes(slack, step, relax, v[c, row], v_bar[c, row])


@_row_loop
def _moved(z, slope, theta, tau, out):
    """From ``D^T y`` in ``out`` to ``z - tau (D^T y + theta)``, theta in valid pixels alone."""
    zero = z.dtype.type(0)
    for j in range(z.size):
        out[j] = z[j] - tau * (out[j] + (theta if slope[j] > zero else zero))


@_row_loop
def _descend_poisson(moved, residual, w, tau, slope, beta, delta, relax, z, z_bar):
    """From z towards the least ``slope x - beta log(x + delta) + w residual x + (x - moved)^2 / (2 tau)``, x >= 0."""
    zero, half = z.dtype.type(0), z.dtype.type(0.5)
    total = zero
    for j in range(z.size):
        b = half * (moved[j] + delta[j] - tau * (slope[j] + w * residual[j]))
        x = max(b + np.sqrt(b * b + tau * beta[j]) - delta[j], zero)
        total += x if slope[j] > zero else zero
        z_bar[j] = x + x - z[j]
        z[j] += relax * (x - z[j])
    return total


@_row_loop
def _descend_gaussian(moved, residual, w, tau, slope, beta, relax, z, z_bar):
    """From z towards the least ``slope x^2 / 2 - beta x + w residual x + (x - moved)^2 / (2 tau)``, x >= 0."""
    zero, one = z.dtype.type(0), z.dtype.type(1)
    total = zero
    for j in range(z.size):
        x = max((moved[j] + tau * (beta[j] - w * residual[j])) / (one + tau * slope[j]), zero)
        total += x if slope[j] > zero else zero
        z_bar[j] = x + x - z[j]
        z[j] += relax * (x - z[j])
    return total


@_row_loop
def _add_poisson_response(moved, r, w, tau, slope, beta, delta, value, fall):
    """Add ``w x`` and minus its derivative by ``r``, with x the prox of the map under the gradient ``w r``."""
    zero, half, one = r.dtype.type(0), r.dtype.type(0.5), r.dtype.type(1)
    tiny = r.dtype.type(1e-30)
    for j in range(r.size):
        b = half * (moved[j] + delta[j] - tau * (slope[j] + w * r[j]))
        root = np.sqrt(b * b + tau * beta[j])
        x = b + root - delta[j]
        inside = one if x > zero else zero
        value[j] += w * inside * x
        fall[j] += inside * half * tau * w * w * (b + root) / max(root, tiny)


@_row_loop
def _add_gaussian_response(moved, r, w, tau, slope, beta, value, fall):
    """The same for the Gaussian term."""
    zero, one = r.dtype.type(0), r.dtype.type(1)
    for j in range(r.size):
        weight = one / (one + tau * slope[j])
        x = (moved[j] + tau * (beta[j] - w * r[j])) * weight
        inside = one if x > zero else zero
        value[j] += w * inside * x
        fall[j] += inside * tau * w * w * weight


@_row_loop
def _newton(value, fall, target, counted, r):
    """One Newton step of the residuals; the sums of the squares of the steps, and of residuals and targets."""
    steps, sizes = r.dtype.type(0), r.dtype.type(0)
    for j in range(r.size):
        step = counted[j] * (value[j] - target[j] - r[j]) / fall[j]
        r[j] = counted[j] * r[j] + step
        steps += step * step
        sizes += r[j] * r[j] + target[j] * target[j]
    return steps, sizes


@_inner
def _solve_residual(rows, n, row, beta, slope, delta, is_poisson, weights, target, counted, r, tau):
    """The residual ``r = sum_i w_i z_i(r) - target`` of a row of pixels, each map at its prox with the gradient w_i r.

    The right side falls with r and is convex, so Newton's steps end left of the root at once and climb to it from
    there: no safeguard is needed as long as no weight is negative. All pixels of the row together, until they
    have settled in the root mean square.
    """
    # the error after the last step is about the square of this part of the residuals and targets
    zero, one, accuracy = r.dtype.type(0), r.dtype.type(1), r.dtype.type(1e-4 if r.itemsize < 8 else 1e-8)
    rs, rd = row % slope.shape[1], row % delta.shape[1]
    value, fall = rows[n], rows[n + 1]
    for _ in range(40):
        value[:] = zero
        fall[:] = one
        for i in range(n):
            if is_poisson:
                _add_poisson_response(
                    rows[i], r, weights[i], tau, slope[i, rs], beta[i, row], delta[i, rd], value, fall
                )
            else:
                _add_gaussian_response(rows[i], r, weights[i], tau, slope[i, rs], beta[i, row], value, fall)
        steps, sizes = _newton(value, fall, target, counted, r)
        if steps <= accuracy * accuracy * sizes:
            break


@_inner
def _solve_residuals(rows, n, row, beta, slope, delta, is_poisson, weights, target, counted, residual, tau):
    """The residuals ``r_k = sum_i w_ki z_i(r) - target_k`` of three images, whose weights may have either sign.

    Each map is at its prox with the gradient ``sum_k w_ki r_k``. The residuals minimise a convex function, the dual of
    the prox, with the gradient ``g_k = r_k + target_k - sum_i w_ki z_i`` and the Hessian ``I - sum_i w_ki w_li z_i'``:
    Newton's steps, each cut to the minimum along it where it goes too far.
    """
    zero, half, one, two = rows.dtype.type(0), rows.dtype.type(0.5), rows.dtype.type(1), rows.dtype.type(2)
    tiny, tenth, accuracy = (
        rows.dtype.type(1e-30),
        rows.dtype.type(0.1),
        rows.dtype.type(1e-6 if rows.itemsize < 8 else 1e-10),
    )
    rs, rd, rc = row % slope.shape[1], row % delta.shape[1], row % counted.shape[1]
    for j in range(target.shape[2]):
        c0, c1, c2 = counted[0, rc, j], counted[1, rc, j], counted[2, rc, j]
        t0, t1, t2 = c0 * target[0, row, j], c1 * target[1, row, j], c2 * target[2, row, j]
        r0, r1, r2 = c0 * residual[0, row, j], c1 * residual[1, row, j], c2 * residual[2, row, j]
        d0, d1, d2, before, low, high, share = zero, zero, zero, zero, zero, two, one
        for _ in range(60):
            g0, g1, g2 = r0 + t0, r1 + t1, r2 + t2
            h00, h10, h20, h11, h21, h22 = one, zero, zero, one, zero, one
            for i in range(n):
                w0, w1, w2 = c0 * weights[0, i], c1 * weights[1, i], c2 * weights[2, i]
                force = w0 * r0 + w1 * r1 + w2 * r2
                if is_poisson:
                    b = half * (rows[i, j] + delta[i, rd, j] - tau * (slope[i, rs, j] + force))
                    root = np.sqrt(b * b + tau * beta[i, row, j])
                    x, fall = b + root - delta[i, rd, j], half * tau * (b + root) / max(root, tiny)
                else:
                    fall = tau / (one + tau * slope[i, rs, j])
                    x = (rows[i, j] / tau + beta[i, row, j] - force) * fall
                if x > zero:
                    g0, g1, g2 = g0 - w0 * x, g1 - w1 * x, g2 - w2 * x
                    h00, h10, h20 = h00 + w0 * w0 * fall, h10 + w1 * w0 * fall, h20 + w2 * w0 * fall
                    h11, h21, h22 = h11 + w1 * w1 * fall, h21 + w2 * w1 * fall, h22 + w2 * w2 * fall
            # once a step went beyond the minimum along it, to that minimum, by Newton's steps or bisection
            along = g0 * d0 + g1 * d1 + g2 * d2
            if along > tenth * before or (high < two and along < -half * before):
                low, high = (low, share) if along > zero else (share, high)
                curvature = h00 * d0 * d0 + h11 * d1 * d1 + h22 * d2 * d2
                curvature += two * (h10 * d0 * d1 + h20 * d0 * d2 + h21 * d1 * d2)
                at = share - along / curvature
                at = at if low < at < high else half * (low + high)
                r0, r1, r2 = r0 + (at - share) * d0, r1 + (at - share) * d1, r2 + (at - share) * d2
                share = at
                continue
            # H d = -g by elimination
            l10, l20 = h10 / h00, h20 / h00
            h11, h21, h22 = h11 - l10 * h10, h21 - l10 * h20, h22 - l20 * h20
            g1, g2 = g1 - l10 * g0, g2 - l20 * g0
            l21 = h21 / h11
            d2 = -(g2 - l21 * g1) / (h22 - l21 * h21)
            d1 = -g1 / h11 - l21 * d2
            d0 = -g0 / h00 - l10 * d1 - l20 * d2
            before = g0 * g0 / h00 + g1 * g1 / h11 + (g2 - l21 * g1) * (g2 - l21 * g1) / (h22 - l21 * h21)
            low, high, share = zero, two, one
            r0, r1, r2 = r0 + d0, r1 + d1, r2 + d2
            size = max(abs(r0) + abs(t0), abs(r1) + abs(t1), abs(r2) + abs(t2))
            if max(abs(d0), abs(d1), abs(d2)) <= accuracy * size:
                break
        residual[0, row, j], residual[1, row, j], residual[2, row, j] = r0, r1, r2


@_inner
def _force_on_map(residual, row, weights, i, out):
    """``sum_k w_ki r_k`` of three images."""
    for j in range(out.size):
        out[j] = weights[0, i] * residual[0, row, j] + weights[1, i] * residual[1, row, j]
        out[j] += weights[2, i] * residual[2, row, j]


@_inner
def _descend_maps_row(
    z, z_bar, y, beta, slope, delta, is_poisson, theta, weights, target, counted, residual, row, tau, relax, rows, sums
):
    """One row of all maps, from z towards the prox of the data terms at ``z - tau (D^T y + theta)``."""
    n, n_images = z.shape[0], weights.shape[0]
    rs, rd = row % slope.shape[1], row % delta.shape[1]
    for i in range(n):
        _adjoint_row(y, i, row, rows[i])
        _moved(z[i, row], slope[i, rs], theta[i], tau, rows[i])
    r = residual[0, row]
    if n_images == 1:
        valid = counted[0, row % counted.shape[1]]
        _solve_residual(rows, n, row, beta, slope, delta, is_poisson, weights[0], target[0, row], valid, r, tau)
    elif n_images == 3:
        _solve_residuals(rows, n, row, beta, slope, delta, is_poisson, weights, target, counted, residual, tau)
        r = rows[n]
    for i in range(n):
        w = weights[0, i] if n_images > 0 else z.dtype.type(0)
        if n_images == 3:
            _force_on_map(residual, row, weights, i, r)
            w = z.dtype.type(1)
        if is_poisson:
            sums[i, row] = _descend_poisson(
                rows[i], r, w, tau, slope[i, rs], beta[i, row], delta[i, rd], relax, z[i, row], z_bar[i, row]
            )
        else:
            sums[i, row] = _descend_gaussian(
                rows[i], r, w, tau, slope[i, rs], beta[i, row], relax, z[i, row], z_bar[i, row]
            )


@_inner
def _rows_of(part, k, first, last, has_above, has_below):
    """First and last row of the duals, and of the maps, that iteration k of a band takes in a part of the sweep."""
    if part == 0:  # duals of the last row, which two bands take
        return last, last - min(k, 1), last, last - 1
    if part == 1:
        low, high = first + (k if has_above else 0), last - (k if has_below else 0)
        return max(first, low - 1), min(high, last - 1), low, high
    if not has_below:
        return last, last - 1, last, last - 1
    # rows about the end of the band, which take others of both sides
    return last - k + 1, last + k - 1, last - k + 1, last + k


@njit(cache=CACHE, parallel=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def primal_dual_sweep(
    z, z_bar, y, v, v_bar, q, guide, mode, group, slope_group, radius, sigma, sigma_v, tau, tau_v, relax_duals,
    relax_maps, beta, slope, delta, is_poisson, theta, weights, target, counted, residual, cell_work, slope_work,
    slack_work, map_work, sums, slack_sums,
):  # fmt: skip
    """A few iterations of the primal-dual solver in one sweep over the rows: what a row takes is in the cache.

    - Duals: ``y <- y + relax_duals (P(y + sigma (D z_bar - L v_bar)) - y)``, with P the projection onto unit balls;
      likewise q by ``D v_bar``, onto balls of ``radius``. Of the directional mode, y is the dual times P, so that the
      adjoint is that of D for every mode. ``group`` maps, or ``slope_group`` slopes, share one length per cell.
    - Slopes: ``v <- v - relax_maps tau_v (D^T q - L^T y)``, and ``v_bar`` twice as far as by tau_v.
    - Maps: ``z <- z + relax_maps (x - z)`` and ``z_bar = 2 x - z``, with x the prox of the data terms at
      ``z - tau (D^T y + theta)``, exact in every pixel.

    The data terms of map i are ``slope x - beta log(x + delta)`` or, not Poisson, ``slope x^2 / 2 - beta x``, 0 in
    masked pixels, whose slope and beta are 0; all maps of a pixel share ``1/2 (sum_i weights_ki x_i - target_k)^2``
    of image k where ``counted`` is 1; x_i >= 0. There are no, one or three images, which a weight of 0 makes of two;
    the weights of a single one are not negative.

    Row r of the duals takes rows r and r + 1 of z_bar and v_bar; row r of slopes and maps takes rows r - 1 and r of the
    duals. So each iteration follows the one before by a row. Workers have bands of at least ``2 (n_iter - 1)`` rows.
    The duals of the last row of each band, which two bands take, come first. What later iterations take from another
    band grows by a row at both ends with each of them; these rows come last.

    z, z_bar, beta : (n, ny, nx); y : (4, n, ny - 1, nx - 1); v, v_bar : (m, ny - 1, nx - 1);
    q : (4, m, ny - 2, nx - 2); v, q of size 1 for modes without slopes; sigma, tau_v : (1 or ny - 1, nx - 1) step of
    each cell; sigma_v : (1, nx - 2); slope, delta : (n, 1 or ny, nx); theta : (n,) multipliers of the totals;
    weights : (K, n) for K images; target : (K, ny, nx); counted : (K, 1 or ny, nx);
    residual : (1 or K, ny, nx) of the HAADF terms, updated. cell_work : (n_workers, 4 group + 1, nx - 1);
    slope_work : (n_workers, 4 slope_group + 1, nx - 2); slack_work : (n_workers, nx - 1);
    map_work : (n_workers, n + 2, nx). relax_duals, relax_maps : (n_iter,); sums : (n_iter, n, ny)
    receives the sum of x over the valid pixels of each row; slack_sums : (m, ny - 1) that of ``|D^T q - L^T y|`` of
    the last iteration, 0 at the solution.
    """
    ny, n_workers, one = z.shape[1], map_work.shape[0], z.dtype.type(1)
    plain = np.int64(PLAIN)  # the literal would be compiled as a second kernel
    n_rows = y.shape[2] if mode >= PLAIN else 0
    # cells in one line have slopes without differences
    n_slope_rows = q.shape[2] if mode >= GUIDED and q.shape[3] > 0 else 0
    n_iter = relax_duals.size
    for part in range(3):  # in one parallel loop: Numba compiles each of several on its own
        for worker in prange(n_workers):
            first, last = worker * ny // n_workers, (worker + 1) * ny // n_workers - 1
            for step in range(first, last + 2 * n_iter):
                for k in range(n_iter):
                    row = step - k
                    low_dual, high_dual, low, high = _rows_of(part, k, first, last, worker > 0, worker < n_workers - 1)
                    if low_dual <= row <= high_dual:
                        rho = relax_duals[k]
                        if row < n_rows:
                            _ascend_row(z_bar, v_bar, y, guide, mode, group, row, sigma, one, rho, cell_work[worker])
                        if row < n_slope_rows:
                            work = slope_work[worker]
                            _ascend_row(v_bar, v, q, guide, plain, slope_group, row, sigma_v, radius, rho, work)
                    if low <= row <= high:
                        rho = relax_maps[k]
                        if mode >= GUIDED and row < n_rows:
                            _descend_slopes_row(
                                v, v_bar, q, y, guide, mode, row, tau_v, rho, slack_work[worker], slack_sums
                            )
                        _descend_maps_row(
                            z, z_bar, y, beta, slope, delta, is_poisson, theta, weights, target, counted, residual,
                            row, tau, rho, map_work[worker], sums[k],
                        )  # fmt: skip


@njit(inline="always")
def _deviance(mean, count):
    """``mean - count - count log(mean / count)``, half the deviance of a count >= 0."""
    return mean if count <= 0 else mean - count - count * log(mean / count)


@_row_loop
def _poisson_terms(adjoint, z, factor, theta, slope, beta, delta, upper):
    """Sums over a row of one map: the data term, and its least value over maps with the product of map and dual."""
    zero, one = z.dtype.type(0), z.dtype.type(1)
    data, bound = 0.0, 0.0
    for j in range(z.size):
        s, b = slope[j], beta[j]
        u = adjoint[j] + (theta if s > zero else zero)
        rise = u + s
        best = min(max(b / rise - delta[j], zero), upper) if rise > zero else upper
        of_map, of_best = s * (factor * z[j] + delta[j]), s * (best + delta[j])
        data += of_map - b - b * log(of_map / b if b > zero else one)
        bound += u * best + of_best - b - b * log(of_best / b if b > zero else one)
    return data, bound


@_row_loop
def _gaussian_terms(adjoint, z, factor, theta, slope, beta, upper):
    """The same for the Gaussian term."""
    zero, half = z.dtype.type(0), z.dtype.type(0.5)
    data, bound = 0.0, 0.0
    for j in range(z.size):
        s = slope[j]
        u = adjoint[j] + (theta if s > zero else zero)
        measured = beta[j] / s if s > zero else zero
        free = measured - u / s if s > zero else (zero if u > zero else upper)
        best = min(max(free, zero), upper)
        off, of_best = factor * z[j] - measured, best - measured
        data += half * s * off * off
        bound += u * best + half * s * of_best * of_best
    return data, bound


@_inner
def _residual_row(z, row, weights, factors, target, valid, rho):
    """Residuals of one row of an elastic image into rho; half the sum of their squares, and that times the target."""
    rho[:] = z.dtype.type(0)
    half, squares, linear = z.dtype.type(0.5), 0.0, 0.0
    for i in range(weights.size):
        for j in range(rho.size):
            rho[j] += weights[i] * factors[i] * z[i, row, j]
    for j in range(rho.size):
        rho[j] = valid[j] * (rho[j] - target[j])
        squares += half * rho[j] * rho[j]
        linear += rho[j] * target[j]
    return squares, linear


@njit(cache=CACHE, parallel=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def data_terms(
    z, y, beta, slope, delta, is_poisson, theta, upper, weights, target, counted, factors, gradient, work, sums
):
    """Values of the data terms at ``factors_i z_i``, and the smallest value of the Lagrangian over all maps.

    Arguments as of :func:`primal_dual_sweep`. gradient : (K, ny, nx) of blurred HAADF terms with respect to their
    images; it replaces rho, and the values of the terms in sums are then not valid; (0, 0, 0) for terms without blur.
    work : (n_workers, K + 1 or more, nx).
    sums : (ny, 4) float64 receives four values of each row. The first two are the data terms of the maps (as half
    deviances, 0 at a perfect fit) and the HAADF terms. The third is the minimum over ``0 <= z <= upper`` of the data
    terms plus ``z (D^T y + theta + sum_k w_k rho_k)``, with ``rho`` the HAADF residuals. From it the fourth is to be
    subtracted, the sum of ``rho^2 / 2 + rho target``.
    """
    n, ny, nx = z.shape
    n_workers, n_images = work.shape[0], weights.shape[0]
    for worker in prange(n_workers):
        adjoint = work[worker, n_images]
        for row in range(worker, ny, n_workers):
            rs, rd = row % slope.shape[1], row % delta.shape[1]
            squares, linear, data, bound = 0.0, 0.0, 0.0, 0.0
            for k in range(n_images):
                rho, valid = work[worker, k], counted[k, row % counted.shape[1]]
                terms = _residual_row(z, row, weights[k], factors, target[k, row], valid, rho)
                squares, linear = squares + terms[0], linear + terms[1]
                if gradient.size > 0:
                    _copied(gradient[k, row], rho)
            for i in range(n):
                _adjoint_row(y, i, row, adjoint)
                for k in range(n_images):
                    for j in range(nx):
                        adjoint[j] += weights[k, i] * work[worker, k, j]
                if is_poisson:
                    terms = _poisson_terms(
                        adjoint, z[i, row], factors[i], theta[i], slope[i, rs], beta[i, row], delta[i, rd], upper[i]
                    )
                else:
                    terms = _gaussian_terms(
                        adjoint, z[i, row], factors[i], theta[i], slope[i, rs], beta[i, row], upper[i]
                    )
                data, bound = data + terms[0], bound + terms[1]
            sums[row, 0] = data
            sums[row, 1] = squares
            sums[row, 2] = bound
            sums[row, 3] = squares + linear


# ---- counts in bands: E step and certificate ------------------------------------------------------------------------
#
# Counts b in bands have the mean ``m = M (z + delta)``. A matrix M of lines has many zeros: ``used`` (bands, n) holds
# the columns that are not 0 in each band, ``number`` (bands,) how many there are.


@_row_loop
def _add_one(out, a, ra):
    for j in range(out.size):
        out[j] += a * ra[j]


@_row_loop
def _add_four(out, a, ra, b, rb, c, rc, d, rd):
    for j in range(out.size):
        out[j] += a * ra[j] + b * rb[j] + c * rc[j] + d * rd[j]


@_inner
def _mean_row(shares, used, number, rows, out):
    """``out = sum_i shares_i rows_i`` of one band."""
    out[:] = rows.dtype.type(0)
    k = 0
    while k + 4 <= number:
        a, b, c, d = used[k], used[k + 1], used[k + 2], used[k + 3]
        _add_four(out, shares[a], rows[a], shares[b], rows[b], shares[c], rows[c], shares[d], rows[d])
        k += 4
    while k < number:
        _add_one(out, shares[used[k]], rows[used[k]])
        k += 1


@_row_loop
def _ratio(counts, mean):
    for j in range(mean.size):
        mean[j] = counts[j] / mean[j]


@_inner
def _assigned_rows(bands, row, matrix, used, number, shifted, mean, out):
    """``out_i = sum_c M_ci b_c / m_c`` of one row of pixels, with ``m = M shifted``."""
    out[:] = shifted.dtype.type(0)
    for c in range(bands.shape[0]):
        _mean_row(matrix[c], used[c], number[c], shifted, mean)
        _ratio(bands[c, row], mean)
        for k in range(number[c]):
            _add_one(out[used[c, k]], matrix[c, used[c, k]], mean)


@_row_loop
def _shifted(z, factor, delta, out):
    zero = z.dtype.type(0)
    for j in range(out.size):
        out[j] = max(factor * z[j], zero) + delta[j]


@_row_loop
def _scaled(a, b, out):
    for j in range(out.size):
        out[j] = a[j] * b[j]


@njit(cache=CACHE, parallel=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def assign_counts(z, bands, matrix, used, number, delta, beta, work):
    """E step: ``beta_i = (z_i + delta_i) sum_c M_ci b_c / m_c``, the counts of each column expected at maps z.

    Negative z count as 0. z, beta : (n, ny, nx); bands : (bands, ny, nx); matrix : (bands, n); delta : (n, 1, nx);
    work : (n_workers, 2 n + 1, nx).
    """
    n, ny = z.shape[0], z.shape[1]
    n_workers, one = work.shape[0], z.dtype.type(1)
    for worker in prange(n_workers):
        shifted, assigned, mean = work[worker, :n], work[worker, n : 2 * n], work[worker, 2 * n]
        for row in range(worker, ny, n_workers):
            for i in range(n):
                _shifted(z[i, row], one, delta[i, 0], shifted[i])
            _assigned_rows(bands, row, matrix, used, number, shifted, mean, assigned)
            for i in range(n):
                _scaled(assigned[i], shifted[i], beta[i, row])


@_row_loop
def _dual_step(assigned, rise, delta, upper, shifted):
    """One EM step with the sensitivities ``rise``, within the bounds of the maps."""
    tiny = shifted.dtype.type(1e-6)
    for j in range(shifted.size):
        x = shifted[j] * assigned[j] / max(rise[j], tiny)
        shifted[j] = min(max(x, delta[j]), upper + delta[j])


@_inner
def _deviance_of_bands(bands, row, matrix, used, number, exposure, shifted, mean):
    """Half the deviance of the counts of one row of pixels."""
    total = 0.0
    for c in range(bands.shape[0]):
        _mean_row(matrix[c], used[c], number[c], shifted, mean)
        for j in range(mean.size):
            if exposure[j] > 0:
                total += _deviance(np.float64(exposure[j]) * np.float64(mean[j]), np.float64(bands[c, row, j]))
    return total


@_inner
def _least_of_bands(bands, row, matrix, used, number, exposure, slope, delta, upper, rise, shifted, mean, exact):
    """A lower bound of half the deviance plus ``(rise - slope) z`` over ``0 <= z <= upper``, of one row of pixels.

    For any p >= 0, ``log t <= t - 1`` gives the bound
    ``delta (slope - M^T p) + sum_c b_c log(p_c / exposure) + min over z of (rise - M^T p) z``. Here p is
    ``kappa b / m`` with the m of ``shifted``: kappa is 1, or the best for which no column falls but those that fall
    without counts too.
    exact : (n + 2, nx) float64.
    """
    n, nx = shifted.shape
    logs, number_of_counts = exact[n], exact[n + 1]
    exact[:] = 0.0
    for c in range(bands.shape[0]):
        _mean_row(matrix[c], used[c], number[c], shifted, mean)
        counts = bands[c, row]
        for j in range(nx):
            if counts[j] > 0 and exposure[j] > 0:
                ratio = np.float64(counts[j]) / np.float64(mean[j])
                logs[j] += counts[j] * np.log(ratio / exposure[j])
                number_of_counts[j] += counts[j]
                for k in range(number[c]):
                    exact[used[c, k], j] += np.float64(matrix[c, used[c, k]]) * ratio
    total = 0.0
    for j in range(nx):
        kappa, shift, constant, box, falling = np.inf, 0.0, 0.0, 0.0, 0.0
        for i in range(n):
            r, s, g = np.float64(rise[i, j]), np.float64(slope[i, j]), exact[i, j]
            shift += delta[i, j] * g
            constant += delta[i, j] * s
            box += min(r - g, 0.0) * upper[i]
            if r > 1e-3 * s and g > 0:
                kappa = min(kappa, r / g)
        if exposure[j] <= 0 or number_of_counts[j] <= 0:
            total += constant + box
            continue
        kappa = min(kappa, number_of_counts[j] / shift)
        for i in range(n):
            falling += min(np.float64(rise[i, j]) - kappa * exact[i, j], 0.0) * upper[i]
        scaled = falling - kappa * shift + number_of_counts[j] * np.log(kappa)
        total += constant + logs[j] + max(box - shift, scaled)
    return total


@njit(cache=CACHE, parallel=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def band_terms(
    z, y, bands, matrix, used, number, exposure, slope, delta, theta, upper, weights, target, counted, factors,
    gradient, n_steps, work, exact, sums,
):  # fmt: skip
    """What :func:`data_terms` computes, of counts in bands: the deviance of ``M (z + delta)``, and a lower bound.

    The bound holds for any dual; ``n_steps`` steps of EM from the maps find one near the best for each pixel.
    bands, matrix, used, number, delta : as of :func:`assign_counts`; exposure : (1 or ny, nx), of which 0 in masked
    pixels, whose counts are 0; slope : (n, 1 or ny, nx), exposure times the sums of the columns of the matrix.
    work : (n_workers, 3 n + 2, nx); exact : (n_workers, n + 2, nx) float64; the rest as of :func:`data_terms`.
    """
    n, ny, nx = z.shape
    zero = z.dtype.type(0)
    n_workers = work.shape[0]
    for worker in prange(n_workers):
        shifted, rise, assigned = work[worker, :n], work[worker, n : 2 * n], work[worker, 2 * n : 3 * n]
        rho, mean = work[worker, 3 * n], work[worker, 3 * n + 1]
        for row in range(worker, ny, n_workers):
            rs, seen = row % slope.shape[1], exposure[row % exposure.shape[0]]
            squares, linear = 0.0, 0.0
            for i in range(n):
                _adjoint_row(y, i, row, rise[i])
                for j in range(nx):
                    s = slope[i, rs, j]
                    rise[i, j] += s + (theta[i] if s > zero else zero)
                _shifted(z[i, row], factors[i], delta[i, 0], shifted[i])
            for k in range(weights.shape[0]):
                valid = counted[k, row % counted.shape[1]]
                terms = _residual_row(z, row, weights[k], factors, target[k, row], valid, rho)
                squares, linear = squares + terms[0], linear + terms[1]
                if gradient.size > 0:
                    _copied(gradient[k, row], rho)
                for i in range(n):
                    for j in range(nx):
                        rise[i, j] += weights[k, i] * rho[j]
            sums[row, 0] = _deviance_of_bands(bands, row, matrix, used, number, seen, shifted, mean)
            for _ in range(n_steps):
                _assigned_rows(bands, row, matrix, used, number, shifted, mean, assigned)
                for i in range(n):
                    _dual_step(assigned[i], rise[i], delta[i, 0], upper[i], shifted[i])
            sums[row, 1] = squares
            sums[row, 2] = _least_of_bands(
                bands, row, matrix, used, number, seen, slope[:, rs], delta[:, 0], upper, rise, shifted, mean,
                exact[worker],
            )  # fmt: skip
            sums[row, 3] = squares + linear


# ---- threads and compilation ---------------------------------------------------------------------------------------


# Numba's own threads, without OpenMP or TBB, abort the process where two Python threads call them at once
_one_at_a_time = threading.RLock()
_is_forked = False


def _after_fork():
    """In a child process: GNU OpenMP aborts it at the next kernel where its threads have run in the parent."""
    global _is_forked, _one_at_a_time
    _one_at_a_time = threading.RLock()  # another thread may have held it
    _is_forked = sys.platform == "linux" and _layer() == "omp"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _layer():
    """Numba's threading layer, None before any thread was started."""
    try:
        return numba.threading_layer()  # pyright: ignore[reportPrivateImportUsage]
    except ValueError:
        return None


@contextmanager
def threads(num_workers):
    """Run with so many threads, all that Numba has for None, and restore the number afterwards.

    RuntimeError in a child process that cannot run kernels.
    """
    if _is_forked:
        raise RuntimeError(
            "This process was forked after a fit, and OpenMP cannot run in it: start processes by "
            "multiprocessing.get_context('spawn'), or before the first fit."
        )
    before = numba.get_num_threads()  # starts them
    most = numba.config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]
    with _one_at_a_time if _layer() == "workqueue" else nullcontext():
        numba.set_num_threads(before if num_workers is None else min(num_workers, most))
        try:
            yield numba.get_num_threads()
        finally:
            numba.set_num_threads(before)


def number_of_threads(num_workers):
    """So many threads, at most all that Numba has; those around for None."""
    most = numba.config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]
    return numba.get_num_threads() if num_workers is None else min(num_workers, most)


# of each, the one that takes longest to compile comes first
PUBLISHED = (prox_tv, gradient_step)
CALIBRATED = (primal_dual_sweep, data_terms, variation)
OF_BANDS = (primal_dual_sweep, band_terms, assign_counts, variation)

_int, _bool, _float64 = types.int64, types.boolean, types.float64
# types of their arguments, or the number of dimensions of arrays and scalars in the dtype of the maps
# fmt: off
_ARGUMENTS = {
    gradient_step: (3, 3, 1, 1, 2, 1, 0, 0, 0, 0, 3, 2, _float64[:, ::1]),
    prox_tv: (3, 3, 0, _bool, 1, _int, 4, 3, _float64[:, :, ::1]),
    primal_dual_sweep: (
        3, 3, 4, 3, 3, 4, 3, _int, _int, _int, 0, 2, 2, 0, 2, 1, 1, 3, 3, 3, _bool, 1, 2, 3, 3, 3, 3, 3, 2, 3,
        _float64[:, :, ::1], _float64[:, ::1],
    ),
    variation: (3, 3, 3, _int, _int, 1, 3, _float64[::1]),
    data_terms: (3, 4, 3, 3, 3, _bool, 1, 1, 2, 3, 3, 1, 3, 3, _float64[:, ::1]),
    assign_counts: (3, 3, 2, _int[:, ::1], _int[::1], 3, 3, 3),
    band_terms: (
        3, 4, 3, 2, _int[:, ::1], _int[::1], 2, 3, 3, 1, 1, 2, 3, 3, 1, 3, _int, 3, _float64[:, :, ::1],
        _float64[:, ::1],
    ),
}
# fmt: on
# seconds for which what is compiled here waits for what another process compiles
_LONGEST_WAIT = 120


def are_compiled(dtype, kernels=PUBLISHED):
    """True where ``kernels`` for maps of ``dtype`` are in memory or in the disk cache."""
    if numba.config.DISABLE_JIT:  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]
        return True

    def is_there(kernel):
        wanted = arguments_of(kernel, dtype)
        return wanted in kernel.signatures or wanted in _cached_signatures(kernel)

    return all(is_there(kernel) for kernel in kernels)


@functools.cache
def arguments_of(kernel, dtype):
    """Numba's types of the arguments of a kernel for maps of ``dtype``."""
    real = numba.from_dtype(np.dtype(dtype))
    arrays = {n: types.Array(real, n, "C") if n else real for n in range(5)}
    return tuple(arrays[one] if isinstance(one, int) else one for one in _ARGUMENTS[kernel])


def compile_for(dtype, wanted, is_alone=False):
    """Compile kernels for maps of ``dtype``, or load them from the disk cache.

    Numba compiles one function at a time in a process: all but the first are compiled by another one, unless
    ``is_alone``. What it could not put into the cache is compiled here.
    """
    missing = [kernel for kernel in wanted if not are_compiled(dtype, [kernel])]
    with nullcontext() if is_alone or not CACHE else _compiled_beside(dtype, missing[1:]):
        for kernel in missing[:1]:
            kernel.compile(arguments_of(kernel, dtype))
    for kernel in wanted:
        kernel.compile(arguments_of(kernel, dtype))


@contextmanager
def _compiled_beside(dtype, wanted):
    """Meanwhile, another process compiles kernels for the disk cache, where it can be started."""
    program = os.path.basename(sys.executable or "")
    # an application with a Python of its own would be started anew
    if not wanted or not program.lower().startswith("python") or getattr(sys, "frozen", False):
        yield
        return
    names = ", ".join(f"kernels.{kernel.__name__}" for kernel in wanted)
    # a terminal sends Ctrl-C to both: this one decides, and ends the other
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    code += f"sys.path[:] = {sys.path!r}; import {__name__} as kernels; "
    command = [sys.executable, "-c", f"{code}kernels.compile_for({str(dtype)!r}, [{names}], is_alone=True)"]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    try:
        process = subprocess.Popen(command, **streams, creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0))
    except OSError:
        yield
        return
    with process:
        try:
            yield
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LONGEST_WAIT)
        finally:
            process.kill()


def _cached_signatures(kernel):
    """Signatures in the disk cache that are of this source, Python, Numba and processor."""
    try:
        target = kernel.targetctx.codegen().magic_tuple()
        return [key[0] for key in kernel._cache._cache_file._load_index() if key[1] == target]
    except (AttributeError, OSError):  # Numba has no public way to ask
        return []
