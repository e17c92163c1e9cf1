"""Start of a fit from the same problem in squares of 2 x 2 pixels, where large structures converge faster.

Maps z that are constant in squares have the same value of the coarse objective, up to a factor of 2 that all terms
share: a square has four times the counts and the HAADF image of four pixels; four cells with half the differences have
twice the total variation. So z keeps its units, and duals of the differences their balls. The slopes of ``"tgv"``, per
pixel, are twice as large, and their duals half as large. The coarse problem serves as a start alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual
from hyperspy_fusion.fusion.solvers.primal_dual_state import PrimalDualState, Stopping
from hyperspy_fusion.fusion.terms.objective import HaadfTerm, Objective
from hyperspy_fusion.fusion.terms.scan_data import block_sums

# smaller maps are fitted without a coarse start; maps are binned once, and on until they are smaller than the second
SMALLEST, SMALL = 16, 128
# the coarse fits end here: the fine one moves further than this
_SETTLED, _MAX_ITER = 0.2, 300
# ... and the two from which the standard errors are estimated, which start without them
_BY_GAP, _FEW = 1e-3, 100


def multilevel_start(problem, num_workers=None, alike=None):
    """The state to start an :class:`Objective` from, with the standard errors of its maps unless they are small.

    The standard errors are those of ``alike``, the state of a fit to data of about as many counts, where it is given.
    """
    if problem.penalty.kind is None or min(problem.shape[1:]) < SMALLEST:
        return PrimalDualState.of(problem)
    coarse = coarsened(problem)
    if min(coarse.shape[1:]) >= SMALL:
        start = multilevel_start(coarse, num_workers, alike)
    elif alike is not None and alike.standard_errors is not None:
        errors = alike.standard_errors * alike.problem.scales / problem.scales
        start = replace(PrimalDualState.of(coarse), standard_errors=errors)
    else:
        start = _with_standard_errors(coarse, num_workers)
    return prolonged(_fitted(coarse, Stopping(_MAX_ITER, settled=_SETTLED), start, num_workers), problem)


def _with_standard_errors(problem, num_workers):
    """A fit, with the standard errors of its maps as the distance of one with noise added to the data."""
    stopping = Stopping(_FEW, gap=_BY_GAP)
    state = _fitted(problem, stopping, PrimalDualState.of(problem), num_workers)
    noisy = replace(problem, data=problem.data.with_noise(np.random.default_rng(0)))
    other = _fitted(noisy, stopping, state.restarted(noisy), num_workers)
    errors = np.sqrt(np.mean((other.z - state.z) ** 2, axis=(1, 2), dtype=np.float64))
    return replace(state.restarted(problem), standard_errors=errors)


def _fitted(problem, stopping, start, num_workers):
    result, state = primal_dual(problem, stopping, start, num_workers=num_workers)
    if result.reason is StopReason.INTERRUPTED:
        raise KeyboardInterrupt
    if result.reason is StopReason.NOT_FINITE:  # the measured maps are a better start
        return PrimalDualState.of(problem)
    return state


# ---- the coarse problem ----------------------------------------------------------------------------


def coarsened(problem):
    """The :class:`Objective` of squares of 2 x 2 pixels; at odd edges of what is left of them."""
    dtype, (_, ny, nx) = problem.dtype, problem.shape
    number = block_sums(np.ones((1, ny, nx)))
    return Objective(
        scales=problem.scales,
        initial_maps=(block_sums(problem.initial_maps) / number).astype(dtype),
        data=problem.data.coarsened(problem.shape),
        haadf_term=_coarse_term(problem.haadf_term, dtype),
        further_terms=tuple(_coarse_term(term, dtype) for term in problem.further_terms),
        penalty=_coarse_penalty(problem.penalty),
        forward_model=problem.forward_model,
    )


def _coarse_term(term, dtype):
    counted = block_sums(np.broadcast_to(term.counted, term.target.shape))
    target = np.divide(block_sums(term.counted * term.target), counted, out=np.zeros_like(counted), where=counted > 0)
    return HaadfTerm(
        weights=term.weights * dtype.type(np.sqrt(2)),
        target=(np.sqrt(2) * target).astype(dtype),
        counted=(counted > 0).astype(dtype),
        blur=term.blur / 2,
    )


def _coarse_penalty(penalty):
    second_order = penalty.second_order / 2 if penalty.kind == "tgv" else penalty.second_order
    if penalty.guide is None:
        return replace(penalty, second_order=second_order)
    return replace(penalty, guide=_coarse_guide(penalty.guide, penalty.kind == "guided"))


def _coarse_guide(guide, is_of_differences):
    """Differences of the 2x2 cells of squares, from those of the cells of pixels; of directions the means."""
    if not is_of_differences:
        mean = (0.25, 0.5, 0.25)
        return np.ascontiguousarray(_every_second(_every_second(guide, -2, mean), -1, mean), guide.dtype)
    # the means of two pixels are apart by half the sum of the first, twice the second and the third difference
    apart, first, last = (0.5, 1.0, 0.5), (0.5, 0.5, 0.0), (0.0, 0.5, 0.5)
    down, right = _every_second(guide[:2], -2, apart), _every_second(guide[2:], -1, apart)
    edges = [
        _every_second(down[0], -1, first),
        _every_second(down[1], -1, last),
        _every_second(right[0], -2, first),
        _every_second(right[1], -2, last),
    ]
    return np.ascontiguousarray(edges, guide.dtype)


def _every_second(array, axis, weights):
    """Weighted sums of three cells about every second one, so many as there are between squares."""
    number = (array.shape[axis] + 1 + 1) // 2 - 1
    taken = [np.minimum(2 * np.arange(number) + k, array.shape[axis] - 1) for k in range(3)]
    first, second, third = (w * array.take(at, axis) for w, at in zip(weights, taken, strict=True))
    return first + second + third


# ---- back to all pixels ----------------------------------------------------------------------------


def prolonged(state, problem):
    """The state of ``problem`` by linear interpolation of one of its coarse problem."""
    (_, ny, nx), penalty = problem.shape, problem.penalty
    pixels_per_slope = 2 if penalty.kind == "tgv" else 1
    y = _interpolated(state.y, (ny - 1, nx - 1), 1.0)
    if penalty.kind == "directional":
        y /= np.maximum(1, _lengths_before_projection(y, penalty))
    arrays = {"z": _interpolated(state.z, (ny, nx), 0.5), "y": y}
    if penalty.n_fields:
        arrays["v"] = _interpolated(state.v, (ny - 1, nx - 1), 1.0) / pixels_per_slope
        arrays["q"] = _interpolated(state.q, (ny - 2, nx - 2), 1.5) * pixels_per_slope
    arrays = {name: np.ascontiguousarray(array, problem.dtype) for name, array in arrays.items()}
    ratios = (state.ratios[0], state.ratios[1] * pixels_per_slope**2)
    new = PrimalDualState.of(problem, theta=state.theta / 2, ratios=ratios, **arrays)
    return replace(new, standard_errors=state.standard_errors)


def _interpolated(array, shape, shift):
    """Linear interpolation along the last two axes: point m of the new one lies at ``(m - shift) / 2`` of the old."""
    out = np.empty((*array.shape[:-2], *shape), array.dtype)
    for old, new in zip(array, out, strict=True):  # one by one they stay in the cache
        new[...] = _interpolated_along(-1, _interpolated_along(-2, old, shape[0], shift), shape[1], shift)
    return out


def _interpolated_along(axis, array, size, shift):
    ends = array.take([0], axis), array.take([-1], axis)
    old = np.moveaxis(np.concatenate([ends[0], array, ends[1]], axis), axis, 0)
    array = np.empty([size if k == array.ndim + axis else n for k, n in enumerate(array.shape)], array.dtype)
    new = np.moveaxis(array, axis, 0)
    for first in (0, 1):  # all even and all odd points have the same part of the way
        low = int(np.floor((first - shift) / 2))
        number = len(new[first::2])
        below, above = old[low + 1 : low + 1 + number], old[low + 2 : low + 2 + number]
        new[first::2] = below + ((first - shift) / 2 - low) * (above - below)
    return array


def _lengths_before_projection(y, penalty):
    """Lengths ``|P^-1 y|`` of duals of ``"directional"``, which are stored times P; (n or 1, ny - 1, nx - 1)."""
    xi, mixed = penalty.guide[:4, None], penalty.guide[4:].sum(axis=0)
    along = np.sum(xi * y, axis=0) / (1 - np.sum(xi**2, axis=0))
    across = 0.25 * mixed / (1 - mixed) * (y[1] - y[0] + y[3] - y[2])
    squares = np.sum((y + xi * along + np.stack([-across, across, -across, across])) ** 2, axis=0)
    return np.sqrt(squares.sum(axis=0, keepdims=True) if penalty.joint else squares)
