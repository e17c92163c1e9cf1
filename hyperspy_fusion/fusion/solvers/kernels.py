"""Every compiled function of the package, in one file: Numba's disk cache does not see edits in other files.

Each kernel states what it computes. NumPy code in ``fusion.terms`` and the tests computes the same by other means.
Kernels allocate nothing: outputs and workspaces are arguments. Sums are returned as one partial sum per row, so
that a result does not depend on the number of threads.
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
# concurrent first compilations on a shared disk can collide (numba issue 4807): clusters may switch the cache off
CACHE = os.environ.get("HYPERSPY_FUSION_CACHE", "1") != "0"

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453
SQRT_HALF_BITS = 0x3F3504F3  # of float32
SQRT_HALF = 0.7071067811865476


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

PLAIN = 0  # D u
# P D u with P = I - xi xi^T, xi = guide (4, ny - 1, nx - 1), shorter than 1; or P = I - xi xi^T - c t t^T, (xi, c) =
# guide (5, ny - 1, nx - 1), c below 1, and t = (-1, 1, -1, 1) / 2 orthogonal to xi where c is not 0
DIRECTIONAL = 1
GUIDED = 2  # D u - v * guide, one slope v (n, ny - 1, nx - 1) per map
VECTOR = 3  # D u - L v, two slopes v per map: along y and along x


@njit(fastmath=FASTMATH)
def _cell_row(u, v, guide, mode, c, row, t):
    """One row of the differences of map ``c``, as ``mode`` takes them, in ``t`` (4, n_cells)."""
    half = u.dtype.type(SQRT_HALF)
    top, bottom = u[c, row], u[c, row + 1]
    n_cells = t.shape[1]
    for j in range(n_cells):
        t[0, j] = half * (bottom[j] - top[j])
        t[1, j] = half * (bottom[j + 1] - top[j + 1])
        t[2, j] = half * (top[j + 1] - top[j])
        t[3, j] = half * (bottom[j + 1] - bottom[j])
    if mode == DIRECTIONAL:
        _project_row(guide, row, t)
    elif mode == GUIDED:
        for k in range(4):
            g = guide[k, row]
            for j in range(n_cells):
                t[k, j] -= v[c, row, j] * g[j]
    elif mode == VECTOR:
        for k in range(4):
            slope = v[2 * c + k // 2, row]
            for j in range(n_cells):
                t[k, j] -= half * slope[j]


@njit(inline="always")
def _add_mixed(t, j, mixed):
    """Add twice a mixed difference to cell ``j``."""
    t[0, j] -= mixed
    t[1, j] += mixed
    t[2, j] -= mixed
    t[3, j] += mixed


@njit(fastmath=FASTMATH)
def _project_row(guide, row, t):
    """``t <- P t``."""
    a, b, c, d = guide[0, row], guide[1, row], guide[2, row], guide[3, row]
    for j in range(t.shape[1]):
        dot = a[j] * t[0, j] + b[j] * t[1, j] + c[j] * t[2, j] + d[j] * t[3, j]
        t[0, j] -= dot * a[j]
        t[1, j] -= dot * b[j]
        t[2, j] -= dot * c[j]
        t[3, j] -= dot * d[j]
    if guide.shape[0] > 4:
        minus, part = t.dtype.type(-0.25), guide[4, row]
        for j in range(t.shape[1]):
            _add_mixed(t, j, minus * part[j] * (t[1, j] - t[0, j] + t[3, j] - t[2, j]))


@njit(fastmath=FASTMATH)
def _unproject_row(guide, row, y, c, t, sigma):
    """``t <- P^-1 y + sigma t``, with ``P^-1 = I + xi xi^T / (1 - |xi|^2) + t t^T c / (1 - c)``."""
    one = t.dtype.type(1)
    g0, g1, g2, g3 = guide[0, row], guide[1, row], guide[2, row], guide[3, row]
    y0, y1, y2, y3 = y[0, c, row], y[1, c, row], y[2, c, row], y[3, c, row]
    for j in range(t.shape[1]):
        rest = one - (g0[j] * g0[j] + g1[j] * g1[j] + g2[j] * g2[j] + g3[j] * g3[j])
        dot = (g0[j] * y0[j] + g1[j] * y1[j] + g2[j] * y2[j] + g3[j] * y3[j]) / rest
        t[0, j] = y0[j] + dot * g0[j] + sigma[j] * t[0, j]
        t[1, j] = y1[j] + dot * g1[j] + sigma[j] * t[1, j]
        t[2, j] = y2[j] + dot * g2[j] + sigma[j] * t[2, j]
        t[3, j] = y3[j] + dot * g3[j] + sigma[j] * t[3, j]
    if guide.shape[0] > 4:
        quarter, part = t.dtype.type(0.25), guide[4, row]
        for j in range(t.shape[1]):
            _add_mixed(t, j, quarter * part[j] / (one - part[j]) * (y1[j] - y0[j] + y3[j] - y2[j]))


@njit(fastmath=FASTMATH)
def _add_squares(t, factor, squares):
    """Add ``factor**2 |t|**2`` of every cell to ``squares``."""
    for k in range(4):
        for j in range(squares.size):
            squares[j] += factor * factor * t[k, j] * t[k, j]


@njit(fastmath=FASTMATH)
def _ascended_row(u, v, y, guide, mode, c, row, sigma, t, squares):
    """``P^-1 y + sigma (P D u)`` before its projection: its squares to ``squares``, P times it in ``t``."""
    _cell_row(u, v, guide, mode, c, row, t)
    if mode == DIRECTIONAL:
        _unproject_row(guide, row, y, c, t, sigma)
        _add_squares(t, t.dtype.type(1), squares)
        _project_row(guide, row, t)
    else:
        for k in range(4):
            yk = y[k, c, row]
            for j in range(squares.size):
                t[k, j] = yk[j] + sigma[j] * t[k, j]
        _add_squares(t, t.dtype.type(1), squares)


@njit(cache=CACHE, parallel=True, fastmath=FASTMATH)
def ascend_dual(u, v, y, guide, mode, group, sigma, radius, relax, work):
    """One step of the dual of ``radius sum |differences of u|``: ascent, then projection onto balls of ``radius``.

    ``y`` moves ``relax`` times the step: 1 ends in the balls, more may leave them.
    ``group`` maps that follow each other share one length per cell: 1 for each for itself, n for all together.
    u : (n, ny, nx), extrapolated; v : slopes or (1, 1, 1); y : (4, n, ny - 1, nx - 1), of the directional mode the dual
    times P, so that the adjoint is that of D for every mode; guide : (4 or 5, ny - 1, nx - 1) or (4, 1, 1);
    sigma : (1 or ny - 1, nx - 1), step of each cell; work : (n_workers, 4 group + 1, nx - 1).
    """
    n, n_rows, n_cells = y.shape[1], y.shape[2], y.shape[3]
    n_workers = work.shape[0]
    for worker in prange(n_workers):
        squares = work[worker, 4 * group]
        for row in range(worker, n_rows, n_workers):
            for first in range(0, n, group):
                squares[:] = u.dtype.type(0)
                for c in range(group):
                    t = work[worker, 4 * c : 4 * c + 4]
                    _ascended_row(u, v, y, guide, mode, first + c, row, sigma[row % sigma.shape[0]], t, squares)
                for j in range(n_cells):
                    squares[j] = radius / max(radius, np.sqrt(squares[j]))
                for c in range(group):
                    for k in range(4):
                        new, t = y[k, first + c, row], work[worker, 4 * c + k]
                        for j in range(n_cells):
                            new[j] += relax * (squares[j] * t[j] - new[j])


@njit(cache=CACHE, parallel=True, fastmath=FASTMATH)
def variation(u, v, guide, mode, group, factors, work, sums):
    """Sum over each row of cells of the lengths whose sum :func:`ascend_dual` penalises.

    factors : (n,), multiply the maps (and their slopes); work : (n_workers, >= 5, nx - 1); sums : (ny - 1,).
    """
    n, n_rows = u.shape[0], sums.size
    n_workers = work.shape[0]
    for worker in prange(n_workers):
        t, squares = work[worker, :4], work[worker, 4]
        for row in range(worker, n_rows, n_workers):
            total = u.dtype.type(0)
            for first in range(0, n, group):
                squares[:] = u.dtype.type(0)
                for c in range(first, first + group):
                    _cell_row(u, v, guide, mode, c, row, t)
                    _add_squares(t, factors[c], squares)
                for j in range(squares.size):
                    total += np.sqrt(squares[j])
            sums[row] = total


@njit(fastmath=FASTMATH)
def _adjoint_row(y, c, row, out):
    """One row of ``D^T y`` of map ``c``; 0 where there are no cells."""
    n_rows, n_cells = y.shape[2], y.shape[3]
    out[:] = y.dtype.type(0)
    if n_cells == 0:
        return
    if row < n_rows:
        left, right, top = y[0, c, row], y[1, c, row], y[2, c, row]
        out[0] -= left[0] + top[0]
        for j in range(1, n_cells):
            out[j] -= left[j] + top[j] + right[j - 1] - top[j - 1]
        out[n_cells] -= right[n_cells - 1] - top[n_cells - 1]
    if row > 0:
        left, right, bottom = y[0, c, row - 1], y[1, c, row - 1], y[3, c, row - 1]
        out[0] += left[0] - bottom[0]
        for j in range(1, n_cells):
            out[j] += left[j] - bottom[j] + right[j - 1] + bottom[j - 1]
        out[n_cells] += right[n_cells - 1] + bottom[n_cells - 1]
    half = y.dtype.type(SQRT_HALF)
    for j in range(n_cells + 1):
        out[j] *= half


# ---- calibrated method: slopes and maps ------------------------------------------------------------------------------


@njit(cache=CACHE, parallel=True, fastmath=FASTMATH)
def descend_field(v, v_bar, q, y, guide, mode, tau, relax, work, sums):
    """``v <- v - relax tau (D^T q - L^T y)`` and ``v_bar`` twice as far as by tau, for the modes GUIDED and VECTOR.

    v, v_bar : (m, ny, nx); q : (4, m, ny - 1, nx - 1) dual of the differences of v; y : (4, n, ny, nx);
    tau : (1 or ny, nx), step of each cell; work : (n_workers, 1, nx); sums : (m, ny) receives of each row
    ``sum |D^T q - L^T y|``, 0 at the solution.
    """
    m, ny, nx = v.shape
    half, two = v.dtype.type(SQRT_HALF), v.dtype.type(2)
    n_workers = work.shape[0]
    for worker in prange(n_workers):
        slack = work[worker, 0]
        for row in range(worker, ny, n_workers):
            step = tau[row % tau.shape[0]]
            for c in range(m):
                _adjoint_row(q, c, row, slack)
                if mode == GUIDED:
                    for k in range(4):
                        g, yk = guide[k, row], y[k, c, row]
                        for j in range(nx):
                            slack[j] -= g[j] * yk[j]
                else:
                    # slopes along y act on the left and right edges, slopes along x on top and bottom
                    ya, yb = y[2 * (c % 2), c // 2, row], y[2 * (c % 2) + 1, c // 2, row]
                    for j in range(nx):
                        slack[j] -= half * (ya[j] + yb[j])
                total = v.dtype.type(0)
                old, bar = v[c, row], v_bar[c, row]
                for j in range(nx):
                    new = old[j] - step[j] * slack[j]
                    total += abs(slack[j])
                    bar[j] = two * new - old[j]
                    old[j] += relax * (new - old[j])
                sums[c, row] = total


@njit(fastmath=FASTMATH)
def _poisson_row(moved, gradient, tau, slope, beta, delta, z):
    """Minimise ``slope z - beta log(z + delta) + gradient z + (z - moved)^2 / (2 tau)`` over z >= 0."""
    zero, half = moved.dtype.type(0), moved.dtype.type(0.5)
    for j in range(z.size):
        b = half * (moved[j] + delta[j] - tau * (slope[j] + gradient[j]))
        z[j] = max(b + np.sqrt(b * b + tau * beta[j]) - delta[j], zero)


@njit(fastmath=FASTMATH)
def _gaussian_row(moved, gradient, tau, slope, beta, z):
    """Minimise ``slope z^2 / 2 - beta z + gradient z + (z - moved)^2 / (2 tau)`` over z >= 0."""
    zero, one = moved.dtype.type(0), moved.dtype.type(1)
    for j in range(z.size):
        z[j] = max((moved[j] + tau * (beta[j] - gradient[j])) / (one + tau * slope[j]), zero)


@njit(fastmath=FASTMATH)
def _add_poisson_response(moved, r, w, tau, slope, beta, delta, value, fall):
    """Add ``w z`` and minus its derivative by ``r`` for the gradient ``w r`` of the HAADF residual."""
    zero, half, one = r.dtype.type(0), r.dtype.type(0.5), r.dtype.type(1)
    tiny = r.dtype.type(1e-30)
    for j in range(r.size):
        b = half * (moved[j] + delta[j] - tau * (slope[j] + w * r[j]))
        root = np.sqrt(b * b + tau * beta[j])
        z = b + root - delta[j]
        inside = one if z > zero else zero
        value[j] += w * inside * z
        fall[j] += inside * half * tau * w * w * (b + root) / max(root, tiny)


@njit(fastmath=FASTMATH)
def _add_gaussian_response(moved, r, w, tau, slope, beta, value, fall):
    """The same for the Gaussian term."""
    zero, one = r.dtype.type(0), r.dtype.type(1)
    for j in range(r.size):
        weight = one / (one + tau * slope[j])
        z = (moved[j] + tau * (beta[j] - w * r[j])) * weight
        inside = one if z > zero else zero
        value[j] += w * inside * z
        fall[j] += inside * tau * w * w * weight


@njit(fastmath=FASTMATH)
def _solve_residual(rows, n, row, beta, slope, delta, is_poisson, weights, target, counted, r, tau):
    """The residual ``r = sum_i w_i z_i(r) - target`` of a row of pixels, each map at its prox with the gradient w_i r.

    The right side falls with r and is convex, so Newton's steps end left of the root at once and climb to it from
    there: no safeguard is needed as long as no weight is negative. All pixels of the row together, until the last
    has settled.
    """
    zero, one, accuracy = r.dtype.type(0), r.dtype.type(1), r.dtype.type(1e-6)
    rs, rd = row % slope.shape[1], row % delta.shape[1]
    value, fall = rows[n + 2], rows[n + 3]
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
        step_length, size = zero, zero
        for j in range(r.size):
            step = counted[j] * (value[j] - target[j] - r[j]) / fall[j]
            r[j] = counted[j] * r[j] + step
            step_length = max(step_length, abs(step))
            size = max(size, abs(r[j]) + abs(target[j]))
        if step_length <= accuracy * size:
            break


@njit(cache=CACHE, parallel=True, fastmath=FASTMATH)
def descend_maps(
    z, z_bar, y, beta, slope, delta, is_poisson, theta, weights, target, counted, residual, tau, relax, work, sums
):
    """From z towards x, the prox of the data terms at ``z - tau (D^T y + theta)``, exact in every pixel.

    The maps move by ``z <- z + relax (x - z)``: 1 ends at x, more may leave z >= 0; ``z_bar = 2 x - z``.

    The data terms of map i are ``slope z - beta log(z + delta)`` or, not Poisson, ``slope z^2 / 2 - beta z``, 0 in
    masked pixels, whose slope and beta are 0; all maps of a pixel share ``1/2 (sum_i weights_i z_i - target)^2``
    where ``counted`` is 1; z_i >= 0.

    z, z_bar, beta : (n, ny, nx); y : (4, n, ny - 1, nx - 1); slope, delta : (n, 1 or ny, nx); theta : (n,)
    multipliers of the totals; weights : (n,) or (0,) for no HAADF term; target : (ny, nx); counted : (1 or ny, nx);
    residual : (ny, nx) of the HAADF term, updated; work : (n_workers, n + 4, nx); sums : (n, ny) receives the sum
    of x over the pixels of each row that are not masked.
    """
    n, ny, nx = z.shape
    zero, two = z.dtype.type(0), z.dtype.type(2)
    n_workers = work.shape[0]
    for worker in prange(n_workers):
        rows, gradient, new = work[worker], work[worker, n], work[worker, n + 1]
        for row in range(worker, ny, n_workers):
            rs, rd = row % slope.shape[1], row % delta.shape[1]
            for i in range(n):
                _adjoint_row(y, i, row, rows[i])
                for j in range(nx):
                    constant = theta[i] if slope[i, rs, j] > zero else zero
                    rows[i, j] = z[i, row, j] - tau * (rows[i, j] + constant)
            if weights.size > 0:
                valid, r = counted[row % counted.shape[0]], residual[row]
                _solve_residual(rows, n, row, beta, slope, delta, is_poisson, weights, target[row], valid, r, tau)
            gradient[:] = zero
            for i in range(n):
                if weights.size > 0:
                    for j in range(nx):
                        gradient[j] = weights[i] * residual[row, j]
                if is_poisson:
                    _poisson_row(rows[i], gradient, tau, slope[i, rs], beta[i, row], delta[i, rd], new)
                else:
                    _gaussian_row(rows[i], gradient, tau, slope[i, rs], beta[i, row], new)
                old, bar, used = z[i, row], z_bar[i, row], slope[i, rs]
                total = zero
                for j in range(nx):
                    value = new[j]
                    total += value if used[j] > zero else zero
                    bar[j] = two * value - old[j]
                    old[j] += relax * (value - old[j])
                sums[i, row] = total


@njit(inline="always")
def _deviance(mean, count):
    """``mean - count - count log(mean / count)``, half the deviance of a count."""
    return mean if count <= 0 else mean - count - count * log(mean / count)


@njit(cache=CACHE, parallel=True, fastmath=FASTMATH)
def data_terms(
    z, y, beta, slope, delta, is_poisson, theta, upper, weights, target, counted, factors, gradient, work, sums
):
    """Values of the data terms at ``factors_i z_i``, and the smallest value of the Lagrangian over all maps.

    Arguments as of :func:`descend_maps`. gradient : (ny, nx) of a blurred HAADF term with respect to the
    image; it replaces rho, and the values of the term in sums are then not valid; (0, 0) for a term without blur.
    sums : (ny, 4) float64 receives four values of each row. The first two are the data terms of the maps (as half
    deviances, 0 at a perfect fit) and the HAADF term. The third is the minimum over ``0 <= z <= upper`` of the data
    terms plus ``z (D^T y + theta + w rho)``, with ``rho`` the HAADF residual. From it the fourth is to be subtracted,
    ``rho^2 / 2 + rho target``.
    """
    n, ny, nx = z.shape
    zero, half = z.dtype.type(0), z.dtype.type(0.5)
    n_workers = work.shape[0]
    for worker in prange(n_workers):
        adjoint, rho = work[worker, 0], work[worker, 1]
        for row in range(worker, ny, n_workers):
            rs, rd = row % slope.shape[1], row % delta.shape[1]
            rho[:] = zero
            squares, linear, data, bound = 0.0, 0.0, 0.0, 0.0
            if weights.size > 0:
                valid = counted[row % counted.shape[0]]
                for i in range(n):
                    for j in range(nx):
                        rho[j] += weights[i] * factors[i] * z[i, row, j]
                for j in range(nx):
                    rho[j] = valid[j] * (rho[j] - target[row, j])
                    squares += half * rho[j] * rho[j]
                    linear += rho[j] * target[row, j]
                if gradient.size > 0:
                    rho[:] = gradient[row]
            for i in range(n):
                _adjoint_row(y, i, row, adjoint)
                w = weights[i] if weights.size > 0 else zero
                for j in range(nx):
                    s, b, d = slope[i, rs, j], beta[i, row, j], delta[i, rd, j]
                    x = factors[i] * z[i, row, j]
                    u = adjoint[j] + w * rho[j] + (theta[i] if s > zero else zero)
                    if s <= zero:
                        bound += min(u * upper[i], zero)
                    elif is_poisson:
                        rise = u + s
                        best = min(max(b / rise - d, zero), upper[i]) if rise > zero else upper[i]
                        data += _deviance(s * (x + d), b)
                        bound += u * best + _deviance(s * (best + d), b)
                    else:
                        best = min(max((b - u) / s, zero), upper[i])
                        data += half * s * (x - b / s) * (x - b / s)
                        bound += u * best + half * s * (best - b / s) * (best - b / s)
            sums[row, 0] = data
            sums[row, 1] = squares
            sums[row, 2] = bound
            sums[row, 3] = squares + linear


# ---- threads and compilation ---------------------------------------------------------------------------------------


@contextmanager
def threads(num_workers):
    """Run with so many threads, all that Numba has for None, and restore the number afterwards."""
    before = numba.get_num_threads()
    most = numba.config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]
    numba.set_num_threads(before if num_workers is None else min(num_workers, most))
    try:
        yield numba.get_num_threads()
    finally:
        numba.set_num_threads(before)


PUBLISHED = (gradient_step, prox_tv)
CALIBRATED = (ascend_dual, descend_maps, data_terms)


def are_compiled(dtype, kernels=PUBLISHED):
    """True where ``kernels`` for maps of ``dtype`` are in memory or in the disk cache."""
    wanted = numba.from_dtype(np.dtype(dtype))

    def has(signatures):
        return any(signature[0].dtype == wanted for signature in signatures)

    return all(has(kernel.signatures) or has(_cached_signatures(kernel)) for kernel in kernels)


def _cached_signatures(kernel):
    """Signatures in the disk cache that are of this source, Python, Numba and processor."""
    try:
        target = kernel.targetctx.codegen().magic_tuple()
        return [key[0] for key in kernel._cache._cache_file._load_index() if key[1] == target]
    except (AttributeError, OSError):  # Numba has no public way to ask
        return []
