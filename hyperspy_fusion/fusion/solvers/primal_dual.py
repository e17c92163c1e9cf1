"""The solver of the calibrated method: preconditioned primal-dual iterations with a duality gap.

The problem is ``min_z max_y  data(z) + <D z - lift v, y> + <D v, q> + theta (sum z - total)`` over ``z >= 0`` and duals
in balls (Chambolle & Pock, J. Math. Imaging Vis. 40, 120, 2011). Each block, and each cell of the guided penalty, has
a step of its own (Pock & Chambolle, ICCV 2011); the ratio of primal to dual steps follows the sizes of the variables.
Every step is over-relaxed (Condat, J. Optim. Theory Appl. 158, 460, 2013) but the two before the gap is evaluated.

The HAADF term is part of the prox of the maps, which is exact in every pixel. A term that blurs is none of pixels: in
its place is ``1/2 |u - (u_k - slope(u_k))|^2``, which is, and which majorises it about the image ``u_k`` of the maps of
the iteration before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hyperspy_fusion.fusion.result import CostHistory, FusionResult, StopReason, Terms
from hyperspy_fusion.fusion.solvers import kernels
from hyperspy_fusion.fusion.solvers.loop import asked_to_stop, prepared
from hyperspy_fusion.fusion.terms.haadf_model import blurred

_MODES = {
    None: kernels.PLAIN,
    "tv": kernels.PLAIN,
    "directional": kernels.DIRECTIONAL,
    "guided": kernels.GUIDED,
    "tgv": kernels.VECTOR,
}
# iterations between two evaluations of the gap
CHECK_EVERY = 25
# over-relaxation: any below 2 converges; 1.6 saves a third of the iterations with every penalty, 1.9 does harm to tgv
RELAXATION = 1.6
# ... below 3/2 where the HAADF term is majorised (Condat 2013, theorem 3.1: the metric of the step is no less than its
# curvature)
_RELAXATION_MAJORISED = 1.45
# the ratios of the steps follow the variables so long; convergence needs them to settle
_ADAPT_UNTIL = 1500
# entries of |D|: two of 1/sqrt(2) in a row, eight in a column
_ROW, _COLUMN = np.sqrt(2), 8 * np.sqrt(0.5)
# ratio of primal to dual steps over that of the sizes of the variables; tried on real counts and phantoms
_MAPS_RATIO, _FIELD_RATIO = 3.0, 0.3


@dataclass
class PrimalDualState:
    """Everything that changes in a fit. A fit continues from the state it returned.

    Between two calls, maps and duals are within their bounds. Two calls are one, bit by bit, where the first runs
    out of its iterations at a multiple of ``CHECK_EVERY``.

    Attributes
    ----------
    z, z_bar
        (n, ny, nx) maps in natural units, and extrapolated.
    y
        (4, n, ny - 1, nx - 1) dual of the differences.
    field, field_bar, q
        Slopes of the penalty, extrapolated, and the dual of their differences; of size 1 where there are none.
    theta
        (n,) multipliers of the totals.
    totals, totals_bar
        (n,) totals of the maps over the pixels that count, and extrapolated.
    residual
        (ny, nx) of the HAADF term.
    ratios
        Of primal to dual steps, for maps and fields.
    n_iter
        Iterations behind ``z``.
    records
        (iteration, Terms, relative gap) of every evaluation.
    """

    problem: object
    z: np.ndarray
    y: np.ndarray
    field: np.ndarray
    q: np.ndarray
    theta: np.ndarray
    residual: np.ndarray
    z_bar: np.ndarray = None
    field_bar: np.ndarray = None
    totals: np.ndarray = None
    totals_bar: np.ndarray = None
    ratios: tuple = (1.0, 1.0)
    n_iter: int = 0
    records: list = field(default_factory=list)

    def __post_init__(self):
        self.z_bar = self.z.copy() if self.z_bar is None else self.z_bar
        self.field_bar = self.field.copy() if self.field_bar is None else self.field_bar
        if self.totals is None:
            self.totals = self.totals_bar = self.counted_totals()

    def counted_totals(self):
        """(n,) totals of the maps over the pixels that count."""
        used = np.broadcast_to(self.problem.data.slope > 0, self.z.shape)
        return np.sum(self.z, axis=(1, 2), where=used, dtype=np.float64)

    @property
    def gap(self):
        """The relative duality gap last evaluated."""
        return self.records[-1][2] if self.records else np.inf

    def restarted(self, problem):
        """The start of another problem of the same maps: these maps, and their duals where the penalty is alike."""
        old, dtype = self.problem, problem.dtype
        factors = (old.scales / problem.scales)[:, None, None]
        kept = np.isfinite(problem.data.totals)
        arrays = {"z": (self.z * factors).astype(dtype), "theta": np.where(kept, self.theta / factors.ravel(), 0)}
        if _same_balls(old.penalty, problem.penalty):
            arrays |= {"y": self.y.astype(dtype), "ratios": self.ratios}
            if problem.penalty.n_fields:
                stretched = np.repeat(factors, problem.penalty.n_fields // problem.penalty.n_maps, axis=0)
                # into the balls where they shrank; where they grew, these duals still match each other
                radii = min(problem.penalty.second_order / old.penalty.second_order, 1)
                arrays |= {"field": (self.field * stretched).astype(dtype), "q": (self.q * radii).astype(dtype)}
        return initial_state(problem, **arrays)


def _same_balls(a, b):
    """Whether a dual of one penalty is one of the other."""
    guided = a.guide is not None and b.guide is not None
    same_guide = np.array_equal(a.guide, b.guide) if guided else a.guide is b.guide
    return a.kind == b.kind and a.joint == b.joint and same_guide


def initial_state(problem, **known):
    """Measured maps, and duals of zero, where they are not given."""
    n, ny, nx = problem.shape
    m = problem.penalty.n_fields
    dtype = problem.dtype
    new = {
        "y": np.zeros((4, n, ny - 1, nx - 1), dtype),
        "field": np.zeros((m, ny - 1, nx - 1) if m else (1, 1, 1), dtype),
        "q": np.zeros((4, m, ny - 2, nx - 2) if m else (4, 1, 1, 1), dtype),
        "theta": np.zeros(n),
        "residual": np.zeros((ny, nx), dtype),
    }
    if "z" not in known:
        new["z"] = problem.start.copy()
    return PrimalDualState(problem, **(new | known))


def primal_dual(problem, settings, state=None, callback=None, num_workers=None):
    """Fit by the calibrated method.

    Parameters
    ----------
    problem
        From :func:`~hyperspy_fusion.fusion.problems.calibrated.calibrated_problem`.
    settings
        The same settings; here ``max_iter`` and ``tol``.
    state
        Of an earlier call, to go on from; it is changed in place. None starts anew.
    callback
        Called with the state every ``CHECK_EVERY`` iterations; may raise ``StopIteration`` to stop.
    num_workers
        Threads; None for all. The result does not depend on it.

    Returns
    -------
    FusionResult, PrimalDualState

    Notes
    -----
    The gap is the objective less a lower bound of it: the smallest value of the Lagrangian over maps of at most twice
    the largest value found or measured. For penalties with slopes, what the duals violate their constraint by counts
    as well, times twice the largest slope found. By convexity, if maps or slopes of the minimum were k > 2 times the
    largest found, the gap would still be at most k - 1 times the one given. It is relative to the objective, in
    which a perfect fit of the maps is 0 and the HAADF term counts for no more than the noise of an image (or to a
    thousandth per value of the maps, if that is larger). Maps are scaled to their totals before they are judged.
    """
    needed = kernels.CALIBRATED + ((kernels.descend_field,) if problem.penalty.n_fields else ())
    if state is None:
        state = initial_state(problem)
    with prepared(problem.dtype, needed, num_workers) as (n_workers, interruption):
        iteration = _Iteration(problem, state, n_workers)
        reason = _iterate(iteration, settings, callback, interruption)
        result = iteration.result(reason)
    if reason is StopReason.INTERRUPTED and state.n_iter == 0:
        raise KeyboardInterrupt
    return result, state


def _iterate(iteration, settings, callback, interruption):
    """Run the iterations of one call; return why they ended."""
    state = iteration.state
    if not state.records:
        iteration.measure_slack()
        iteration.evaluate()
    relaxation = 1  # that a state ends with
    for k in range(1, settings.max_iter + 1):
        requested = interruption.requested
        if requested and state.records[-1][0] == state.n_iter:
            return StopReason.INTERRUPTED
        due = (state.n_iter + 1) % CHECK_EVERY == 0
        # duals follow the maps of the iteration before, and are to go as far: only then do the steps converge for sure
        before, near = relaxation, requested or _ends_within_two(state, settings.max_iter - k)
        relaxation = 1 if near else iteration.relaxation
        is_last = (requested and before == 1) or k == settings.max_iter
        iteration.advance(before, relaxation)
        if not due and not is_last:
            continue
        iteration.evaluate()
        if requested:
            return StopReason.INTERRUPTED
        if not np.isfinite(state.records[-1][1].total):
            return StopReason.NOT_FINITE
        reason = asked_to_stop(callback, state)
        if reason is not None:
            return reason
        if state.gap <= settings.tol:
            return StopReason.CONVERGED
        if due:  # so that two calls are one
            iteration.adapt()
    return StopReason.NOT_CONVERGED


def _ends_within_two(state, left):
    """Whether the gap is evaluated after this iteration or the next; ``left`` are those after this one."""
    return -(state.n_iter + 1) % CHECK_EVERY <= 1 or left <= 1


class _Iteration:
    """One problem, one state, and the arrays and constants that the kernels need beside them."""

    def __init__(self, problem, state, n_workers):
        n, ny, nx = problem.shape
        penalty, dtype = problem.penalty, problem.dtype
        self.problem, self.state, self.penalty = problem, state, penalty
        self.real = dtype.type
        haadf_term = problem.haadf_term
        self.is_blurred = bool(haadf_term.blur) and haadf_term.weights.size > 0
        self.relaxation = _RELAXATION_MAJORISED if self.is_blurred else RELAXATION
        self.counted = np.ones((1, nx), dtype) if self.is_blurred else haadf_term.counted
        self.mode = _MODES[penalty.kind]
        self.guide = np.zeros((4, 1, 1), dtype) if penalty.guide is None else penalty.guide
        self.kept = np.isfinite(problem.data.totals)
        self.is_masked = problem.data.slope.shape[1] > 1
        self.n_counted = max(np.count_nonzero(problem.data.slope) * (problem.start.size // problem.data.slope.size), 1)
        workers = min(n_workers, ny)
        self.cell_work = np.empty((workers, 4 * penalty.group + 1, nx - 1), dtype)
        self.field_work = np.empty((workers, 4 * max(penalty.field_group, 1) + 1, max(nx - 2, 1)), dtype)
        self.map_work = np.empty((workers, n + 4, nx), dtype)
        self.map_sums, self.term_sums = np.empty((n, ny)), np.empty((ny, 4))
        self.cell_sums, self.field_sums = np.empty(ny - 1), np.empty(max(ny - 2, 1))
        self.slack_sums = np.zeros((max(penalty.n_fields, 1), ny - 1))
        # of the lift in each cell: the largest entry of a row, and the sum of a column
        one = np.ones((1, nx - 1))
        self.lift = {
            kernels.GUIDED: (np.abs(self.guide).max(axis=0), np.abs(self.guide).sum(axis=0)),
            kernels.VECTOR: (np.sqrt(0.5) * one, np.sqrt(2) * one),
        }.get(self.mode, (0 * one, 0 * one))
        self.set_steps()

    # ---- one iteration ---------------------------------------------------------------------------

    def set_steps(self):
        """Steps of all blocks from the two ratios; any ratios keep the operator, preconditioned, at 1 or below."""
        maps, fields = self.state.ratios
        row, column = self.lift
        between = np.sqrt(maps * fields)
        # the row of ones of the totals is orthogonal to the differences, unless pixels are masked
        apart = 1 + self.is_masked / _COLUMN
        self.tau = self.real(1 / (_COLUMN * apart * maps))
        self.sigma = (1 / (_ROW / maps + row / between)).astype(self.real)
        self.tau_field = (1 / (column * between + _COLUMN * fields)).astype(self.real)
        self.sigma_field = np.full((1, self.field_work.shape[2]), fields / _ROW, self.real)
        self.theta_step = maps / self.problem.start[0].size

    def advance(self, of_duals, of_maps):
        """Ascend in all duals, descend in the fields and in the maps, so many times as far as they ask for."""
        state, penalty, one, relax = self.state, self.penalty, self.real(1), self.real(of_duals)
        if penalty.kind is not None:
            kernels.ascend_dual(
                state.z_bar, state.field_bar, state.y, self.guide, self.mode, penalty.group, self.sigma, one, relax,
                self.cell_work,
            )  # fmt: skip
        if penalty.n_fields:
            self._advance_fields(relax, self.real(of_maps))
        excess = state.totals_bar - self.problem.data.totals
        state.theta += np.where(self.kept, of_duals * self.theta_step * excess, 0)
        totals = self._descend_maps(self.real(of_maps))
        state.totals_bar = 2 * totals - state.totals
        state.totals = state.totals + of_maps * (totals - state.totals)
        state.n_iter += 1

    def _advance_fields(self, relax, relax_fields):
        state, radius = self.state, self.real(self.penalty.second_order)
        kernels.ascend_dual(
            state.field_bar, state.field, state.q, self.guide, kernels.PLAIN, self.penalty.field_group,
            self.sigma_field, radius, relax, self.field_work,
        )  # fmt: skip
        self._descend_fields(self.tau_field, relax_fields)

    def _descend_fields(self, tau, relax):
        state = self.state
        kernels.descend_field(
            state.field, state.field_bar, state.q, state.y, self.guide, self.mode, tau, relax, self.cell_work,
            self.slack_sums,
        )  # fmt: skip

    def measure_slack(self):
        """Of the duals at the start, which may be those of another problem: a step of length 0."""
        if self.penalty.n_fields:
            self._descend_fields(np.zeros_like(self.tau_field), self.real(1))

    def _descend_maps(self, relax):
        """One step of the maps; the totals of where they are to go, over the pixels that count."""
        state = self.state
        kernels.descend_maps(
            state.z,
            state.z_bar,
            state.y,
            *self._terms(),
            *self._image(),
            state.residual,
            self.tau,
            relax,
            self.map_work,
            self.map_sums,
        )
        return self.map_sums.sum(axis=1)

    def _terms(self):
        data = self.problem.data
        return data.beta, data.slope, data.delta, data.is_poisson, self._theta()

    def _image(self):
        """Weights, target and counted pixels of the HAADF term, or of what majorises it about the maps."""
        haadf_term = self.problem.haadf_term
        if not self.is_blurred:
            return haadf_term.weights, haadf_term.target, haadf_term.counted
        image = haadf_term.image(self.state.z)
        return haadf_term.weights, image - haadf_term.slope(image), self.counted

    def _theta(self):
        return self.state.theta.astype(self.real)

    def adapt(self):
        """Let the ratios of the steps follow the sizes of duals over those of maps and fields."""
        state = self.state
        if state.n_iter > _ADAPT_UNTIL or self.penalty.kind is None:
            return
        spread = np.sqrt(sum(float(np.var(m, dtype=np.float64)) * m.size for m in state.z))
        maps = _ratio(_MAPS_RATIO * _norm(state.y), spread, state.ratios[0])
        fields = _ratio(_FIELD_RATIO * _norm(state.q), _norm(state.field), state.ratios[1])
        state.ratios = (maps, fields)
        self.set_steps()

    # ---- objective and gap -----------------------------------------------------------------------

    def factors(self):
        """(n,) factors that bring the maps to their totals."""
        totals = self.state.counted_totals()
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.kept & (totals > 0), self.problem.data.totals / totals, 1.0)

    def evaluate(self):
        """Record the terms of the objective and the gap."""
        state, factors = self.state, self.factors().astype(self.real)
        haadf_term, pull = self.problem.haadf_term, np.zeros((0, 0), self.real)
        if self.is_blurred:
            rho = haadf_term.residual(haadf_term.image(state.z * factors[:, None, None])).astype(np.float64)
            # rounded once: what is added for rho is subtracted for the same rho
            pull = blurred(rho, haadf_term.blur).astype(self.real)
        kernels.data_terms(
            state.z, state.y, *self._terms(), self._upper(factors), haadf_term.weights, haadf_term.target, haadf_term.counted,
            factors, pull, self.map_work, self.term_sums,
        )  # fmt: skip
        data, haadf, bound, linear = (float(s) for s in self.term_sums.sum(axis=0))
        if self.is_blurred:
            haadf, linear = float(np.sum(rho**2) / 2), float(np.sum(rho**2) / 2 + np.sum(rho * haadf_term.target))
        penalty = self._penalty(factors)
        total = haadf + data + penalty
        totals = np.where(self.kept, self.problem.data.totals, 0)
        # the multipliers as the kernel has them: their rounding would count as often as there are pixels
        lower = bound - linear - float(self._theta().astype(np.float64) @ totals) - self._slack(factors)
        # what the forward model cannot explain of the image, however large, must not make the gap small
        scale = data + penalty + min(haadf, self.problem.haadf_term.target.size / 2)
        gap = (total - lower) / max(scale, 1e-3 * self.n_counted)
        record = (state.n_iter, Terms(haadf, data, penalty, total), gap)
        state.records = [r for r in state.records if r[0] < state.n_iter] + [record]

    def _penalty(self, factors):
        state, penalty = self.state, self.penalty
        if penalty.kind is None:
            return 0.0
        kernels.variation(
            state.z, state.field, self.guide, self.mode, penalty.group, factors, self.cell_work, self.cell_sums
        )
        total = float(self.cell_sums.sum())
        # slopes of cells in one line have no differences
        if penalty.n_fields and state.q.size:
            repeated = np.repeat(factors, penalty.n_fields // penalty.n_maps)
            kernels.variation(
                state.field, state.field, self.guide, kernels.PLAIN, penalty.field_group, repeated, self.field_work,
                self.field_sums,
            )  # fmt: skip
            total += penalty.second_order * float(self.field_sums.sum())
        return total

    def _upper(self, factors):
        """(n,) bound of the maps for which the gap holds: twice the largest value found, and that of the data."""
        largest = self.state.z.max(axis=(1, 2)) * factors
        return np.maximum(self.problem.data.upper, 2 * largest).astype(self.real)

    def _slack(self, factors):
        """What the duals violate their constraint by, times twice the largest slope, or 1 where there is none yet."""
        largest = float(np.abs(self.state.field).max()) * float(factors.max())
        return (2 * largest or 1.0) * float(self.slack_sums.sum())

    # ---- the end ---------------------------------------------------------------------------------

    def result(self, reason):
        """The result in the units of the input."""
        state, problem = self.state, self.problem
        if state.records[-1][0] != state.n_iter:
            self.evaluate()
        iterations, terms, gaps = zip(*state.records, strict=True)
        history = {name: np.array([getattr(t, name) for t in terms]) for name in ("haadf", "chem", "tv", "total")}
        maps = state.z * (self.factors() * problem.scales).astype(self.real)[:, None, None]
        return FusionResult(
            maps=maps,
            modelled_haadf=problem.modelled_haadf(maps),
            history=CostHistory(**history, iteration=np.array(iterations), gap=np.array(gaps)),
            n_iter=state.n_iter,
            reason=reason,
            gap=float(state.gap),
        )


def _norm(array):
    return float(np.sqrt(np.vdot(array, array)))


def _ratio(dual, primal, otherwise):
    """The ratio of two sizes within the range of single precision; ``otherwise`` where one is 0."""
    return float(np.clip(dual / primal, 1e-4, 1e6)) if dual > 0 and primal > 0 else otherwise
