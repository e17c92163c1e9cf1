"""The solver of the calibrated method: preconditioned primal-dual iterations with a duality gap.

Problem, for maps z >= 0 in natural units (Chambolle & Pock, J. Math. Imaging Vis. 40, 120, 2011)::

    min_{z, v} max_{y, q, theta}  F(z) + <D z - L v, y> + <D v, q> + <theta, sum z - totals>,   |y| <= 1, |q| <= radius

F is the data term plus the HAADF term. D are the differences in 2x2 cells, L the lift of the slopes v of the penalty.
The duals y and q belong to the lengths of the penalty, theta to the totals; radius is ``second_order``.

Iteration, with extrapolated z_bar, v_bar and totals_bar:

- ``y <- P(y + sigma (D z_bar - L v_bar))`` and ``q <- P(q + sigma_v D v_bar)``, with P the projection onto the balls;
- ``v <- v - tau_v (D^T q - L^T y)``, ``v_bar = 2 v_new - v_old``;
- ``theta <- theta + sigma_theta (totals_bar - totals)``;
- ``z <- prox_{tau F}(z - tau (D^T y + theta))``, ``z_bar = 2 z_new - z_old``, ``totals_bar = sum z_bar``.

Every update x <- x_hat is over-relaxed, x <- x + rho (x_hat - x) (Condat, J. Optim. Theory Appl. 158, 460, 2013),
except the two before the gap is evaluated. Up to five iterations are made in one sweep over memory where nothing is to
be done between them. theta then follows once, because totals are known after a sweep. For n iterations its step is
``min(sum rho, 8 / (sqrt(2) n)) sigma_theta``: the product with the step of the maps in all of them is at most 1. This
delay is outside the proof of convergence; the duality gap certifies the result.

Step condition: ``||Sigma^1/2 K T^1/2|| <= 1`` for the operator ``K = [D -L; 0 D; sum 0]`` and the diagonal steps Sigma
and T. The steps ``sigma_i = 1 / sum_j |K_ij|``, ``tau_j = 1 / sum_i |K_ij|`` satisfy it (Pock & Chambolle, ICCV 2011),
also with the columns of z and v rescaled by ratios. The ratios of primal to dual steps follow the sizes of the
variables.

The prox includes the HAADF term and is exact in every pixel. A blurred HAADF term couples pixels and has no closed-form
proximal operator. In its place is ``1/2 |u - (u_k - gradient(u_k))|^2``, which majorises it about the image u_k of the
maps of the iteration before.

Counts in bands, each a mixture of the maps, couple the maps of a pixel too. Every few iterations the loop replaces
their term by its majorant at the present maps, which does not: :mod:`~.data_steps`. The gap is that of the term itself.
The objective of the iterates may rise a little, so that the fit keeps the maps of the lowest one that was evaluated.

Gap: objective less a lower bound of it. The bound is the minimum of the Lagrangian over maps and slopes of at most
twice the largest value found or measured. For penalties with slopes, the violation of ``D^T q = L^T y``, times twice
the largest slope found, is subtracted from it.
"""

from __future__ import annotations

import numpy as np

from hyperspy_fusion.fusion.result import CostHistory, FusionResult, StopReason, Terms
from hyperspy_fusion.fusion.solvers import kernels
from hyperspy_fusion.fusion.solvers.data_steps import STEPS
from hyperspy_fusion.fusion.solvers.loop import asked_to_stop, prepared
from hyperspy_fusion.fusion.solvers.primal_dual_state import GAP_OF_SETTLED, BestMaps, PrimalDualState, Stopping
from hyperspy_fusion.fusion.terms.objective import HaadfTerms
from hyperspy_fusion.fusion.terms.penalties import cell_adjoint

_MODES = {
    None: kernels.OFF,
    "tv": kernels.PLAIN,
    "directional": kernels.DIRECTIONAL,
    "guided": kernels.GUIDED,
    "tgv": kernels.VECTOR,
}
# iterations between two evaluations of the gap, and between two of the moves alone where nobody asks for the gap
CHECK_EVERY, _QUIET_CHECK_EVERY = 25, 10
# iterations in one sweep over memory: more take rows from the cache at most 5 % faster, and let theta follow later
IN_ONE_SWEEP = 5
# over-relaxation: any below 2 converges; 1.6 saves a third of the iterations with every penalty, 1.9 slows tgv
RELAXATION = 1.6
# ... below 3/2 where the HAADF term is majorised (Condat 2013, theorem 3.1)
_RELAXATION_MAJORISED = 1.45
# iterations in which the ratios of the steps follow the variables; convergence needs them to settle
ADAPT_UNTIL = 1500
# ... which begins with the first few, long before the first evaluation
_ADAPT_EARLY = (5, 10, 15)
# rate at which moves shrink in ``CHECK_EVERY`` iterations: where there is one move alone, and limits, because steps
# that follow the variables make single rates as small as 0 and as large as 1
_FIRST_RATE, _LEAST_RATE, _LARGEST_RATE = 0.6, 0.3, 0.95
# sums of |D|: two entries of 1/sqrt(2) in a row, eight in a column
_ROW, _COLUMN = np.sqrt(2), 8 * np.sqrt(0.5)
# ratio of primal to dual steps of the maps, over that of their sizes; for slopes it is 1
_MAPS_RATIO = 2.0


def primal_dual(problem, stopping, state=None, callback=None, num_workers=None):
    """Fit by the calibrated method.

    Parameters
    ----------
    problem
        An :class:`~hyperspy_fusion.fusion.terms.objective.Objective`.
    stopping
        A :class:`Stopping`, or settings that have one.
    state
        Of an earlier call, to continue; it is changed in place. None starts anew.
    callback
        Called with the state every ``CHECK_EVERY`` iterations; may raise ``StopIteration`` to stop.
    num_workers
        Threads; None for all. The result does not depend on it.

    Returns
    -------
    FusionResult, PrimalDualState

    Raises
    ------
    KeyboardInterrupt
        Where Ctrl-C was pressed before the first iteration.

    Notes
    -----
    Maps or slopes of the minimum may be k > 2 times the largest found. By convexity the gap is then still at most k - 1
    times the one given. The gap is relative to the objective, in which a perfect fit of the maps is 0. The HAADF
    term contributes to this size no more than the noise of an image. The size is at least a thousandth per value of the
    maps. Maps are scaled to their totals before the gap is evaluated.
    """
    state = PrimalDualState.of(problem) if state is None else state
    with prepared(problem.dtype, STEPS[problem.data.kind].kernels, num_workers) as (n_workers, interruption):
        iteration = Iteration(problem, state, n_workers)
        reason = iteration.run(Stopping.of(stopping), callback, interruption)
        if interruption.requested and reason not in (StopReason.STOPPED, StopReason.NOT_FINITE):
            reason = StopReason.INTERRUPTED  # between the last iteration and here
        result = iteration.result(reason)
    if reason is StopReason.INTERRUPTED and state.n_iter == 0:
        raise KeyboardInterrupt
    return result, state


class Iteration:
    """One problem, one state, and the arrays and constants that the kernels need beside them."""

    def __init__(self, problem, state, n_workers):
        n, ny, nx = problem.shape
        penalty, dtype = problem.penalty, problem.dtype
        self.problem, self.state, self.penalty = problem, state, penalty
        state.show_last()
        self.real = dtype.type
        self.images = HaadfTerms.of(problem)
        self.relaxation = _RELAXATION_MAJORISED if self.images.is_blurred else RELAXATION
        self.mode, self.guide = _MODES[penalty.kind], _guide(penalty, dtype)
        self.kept = np.isfinite(problem.data.totals)
        self.is_masked = not problem.data.slope.all()
        rows = problem.initial_maps.size // problem.data.slope.size
        self.n_valid = max(np.count_nonzero(problem.data.slope) * rows, 1)
        workers = max(min(n_workers, ny // max(2 * IN_ONE_SWEEP - 2, 2)), 1)  # bands of the rows that the sweep needs
        # two rows more than the kernels of the loop take, for the evaluation
        self.cell_work = np.empty((workers, max(4 * penalty.group + 1, 7), nx - 1), dtype)
        self.slope_work = np.empty((workers, max(4 * max(penalty.field_group, 1) + 1, 7), max(nx - 2, 1)), dtype)
        self.slack_work, self.map_work = (
            np.empty((workers, nx - 1), dtype),
            np.empty((workers, max(n + 2, 4), nx), dtype),
        )
        self.steps = STEPS[problem.data.kind](problem, state, self.map_work)
        self.map_sums, self.term_sums = np.empty((IN_ONE_SWEEP, n, ny)), np.empty((ny, 4))
        self.cell_sums, self.slope_sums = np.empty(ny - 1), np.empty(max(ny - 2, 1))
        self.slack_sums = np.zeros((max(penalty.n_fields, 1), ny - 1))
        # |L| in each cell: its largest entry in a row, and its sum over a column
        one = np.ones((1, nx - 1), dtype)
        self.lift = {
            kernels.GUIDED: (np.abs(self.guide).max(axis=0), np.abs(self.guide).sum(axis=0)),
            kernels.VECTOR: (np.sqrt(one / 2), np.sqrt(2 * one)),
        }.get(self.mode, (0 * one, 0 * one))
        self.set_steps()

    # ---- the loop ----------------------------------------------------------------------------------

    def run(self, stopping, callback, interruption):
        """Run the iterations of one call; return the reason of their end."""
        state = self.state
        is_unknown = stopping.settled > 0 and state.standard_errors is None
        # nobody asks for the gap before the end
        is_quiet = stopping.gap == 0 and callback is None and not is_unknown
        if not state.records and not is_quiet:
            self.measure_slack()
            self.evaluate()
        every, last, is_settled = (_QUIET_CHECK_EVERY if is_quiet else CHECK_EVERY), stopping.max_iter, False
        k, relaxation = 0, 1.0  # a state ends with it
        while k < last:
            requested = interruption.requested
            if requested and (not state.n_iter or state.records and state.records[-1][0] == state.n_iter):
                return StopReason.INTERRUPTED
            # the gap needs two iterations without over-relaxation
            last, factors = min(last, k + 2) if requested else last, [relaxation]
            while k < last and len(factors) <= IN_ONE_SWEEP:
                k, at = k + 1, state.n_iter + len(factors)
                ends_within_two = last - k <= 1 or (-at % every <= 1 and not is_quiet)
                factors.append(1 if ends_within_two else self.relaxation)
                if self.pauses_after(at, every):
                    break
            # the duals follow the maps of the iteration before and take its factor: the proof needs it
            self.advance(factors[:-1], factors[1:])
            relaxation = factors[-1]
            due, is_last = state.n_iter % every == 0, k == last
            if not due and not is_last:
                if state.n_iter in _ADAPT_EARLY:
                    self.adapt()
                continue
            remaining = stopping.distance(self.remaining(every)) if due else np.inf
            is_settled = is_settled or 0 < stopping.settled >= remaining
            if is_quiet and not is_last and not np.isnan(remaining):
                last = min(last, k + 2) if is_settled or self.is_given_up(stopping, k // every) else last
                self.adapt()
                continue
            self.evaluate()
            state.fraction = self.fraction(stopping, k, remaining)
            if requested:
                return StopReason.INTERRUPTED
            if not np.isfinite(state.records[-1][1].total):
                return StopReason.NOT_FINITE
            reason = asked_to_stop(callback, state)
            if reason is not None:
                return reason
            if is_settled:
                return StopReason.SETTLED
            if state.gap <= max(stopping.gap, GAP_OF_SETTLED if is_unknown else 0):
                return StopReason.CONVERGED
            if due:  # so that two calls equal one
                self.adapt()
        return StopReason.NOT_SETTLED if stopping.settled and not is_unknown else StopReason.NOT_CONVERGED

    def pauses_after(self, number, every):
        """Whether something is done between an iteration of this number and the next."""
        return number % every == 0 or number in _ADAPT_EARLY or number % self.steps.every == 0 or self.images.is_blurred

    def is_given_up(self, stopping, number):
        """Whether a fit is to end before its maps have settled, as asked at checks of the numbers 1, 2, 4, ..."""
        asked = stopping.is_given_up
        return asked is not None and number > 0 and number & (number - 1) == 0 and asked(self.state)

    def fraction(self, stopping, k, remaining):
        """Estimated fraction of a call that is done after k iterations: distance and gap fall exponentially."""
        by_iterations = k / stopping.max_iter
        if stopping.settled and self.state.standard_errors is not None:
            # nothing is estimated at the first evaluation
            first, last, end = 1.0, min(remaining, 1.0), stopping.settled
        else:
            first, last, end = self.state.records[0][2], self.state.gap, stopping.gap or GAP_OF_SETTLED
        if not first > end:
            return 1.0
        return float(np.clip(max(by_iterations, np.log(first / max(last, end)) / np.log(first / end)), 0, 1))

    def remaining(self, every=CHECK_EVERY):
        """(n,) estimated distances of the maps from the final ones, in standard errors.

        Between two evaluations, ``every`` iterations apart, the moves of the maps shrink by a factor r. If they go on
        so, ``r / (1 - r)`` times the last one is left.
        """
        state, before = self.state, self.state.checked
        unknown = np.full(len(state.z), np.inf)
        if state.standard_errors is None:
            return unknown
        if before is None:
            state.checked = state.z.copy()
            return unknown
        errors = np.maximum(state.standard_errors, np.finfo(self.real).tiny)
        lengths = np.array([_norm(one) for one in np.subtract(state.z, before, out=before)])
        state.checked[:] = state.z
        state.moves.append(lengths / np.sqrt(before[0].size) / errors)
        last, *earlier = state.moves[::-1]
        power = every / CHECK_EVERY
        rate = np.full_like(last, _FIRST_RATE**power)
        if earlier:
            rate = np.divide(last, earlier[0], out=rate, where=earlier[0] > 0)
        rate = np.clip(rate, _LEAST_RATE**power, _LARGEST_RATE**power)
        return last * rate / (1 - rate)

    # ---- one iteration -----------------------------------------------------------------------------

    def set_steps(self):
        """Steps of all blocks from the two ratios; the step condition holds for any ratios."""
        ratio, ratio_v = self.state.ratios
        row, column = self.lift
        between = self.real(np.sqrt(ratio * ratio_v))
        # the row of ones of the totals is orthogonal to the differences, unless pixels are masked
        apart = 1 + self.is_masked / _COLUMN
        self.tau = self.real(1 / (_COLUMN * apart * ratio))
        self.sigma = 1 / (row / between + self.real(_ROW / ratio))
        self.tau_v = 1 / (column * between + self.real(_COLUMN * ratio_v))
        self.sigma_v = np.full((1, self.slope_work.shape[2]), ratio_v / _ROW, self.real)
        self.sigma_theta = ratio / self.problem.initial_maps[0].size

    def advance(self, rho_duals, rho_maps):
        """Iterations in one sweep, with the over-relaxation of the duals and of maps and slopes in each."""
        state, penalty, number = self.state, self.penalty, len(rho_duals)
        if state.n_iter % self.steps.every == 0:
            self.steps.majorise(state)
        excess = state.totals_bar - self.problem.data.totals
        step = min(sum(rho_duals), _COLUMN / number) * self.sigma_theta
        state.theta += np.where(self.kept, step * excess, 0)
        kernels.primal_dual_sweep(
            state.z, state.z_bar, state.y, state.v, state.v_bar, state.q, self.guide, self.mode, penalty.group,
            max(penalty.field_group, 1), self.real(penalty.second_order), self.sigma, self.sigma_v, self.tau,
            self.tau_v, np.array(rho_duals, self.real), np.array(rho_maps, self.real), *self._terms(), *self._haadf(),
            state.residual, self.cell_work, self.slope_work, self.slack_work, self.map_work, self.map_sums[:number],
            self.slack_sums,
        )  # fmt: skip
        for rho, totals in zip(rho_maps, self.map_sums[:number].sum(axis=2), strict=True):
            before, state.totals = state.totals, state.totals + rho * (totals - state.totals)
        state.totals_bar = 2 * totals - before
        state.n_iter += number

    def measure_slack(self):
        """Violation of the dual constraint at the start; duals may be of another problem."""
        if self.penalty.n_fields:
            slack = cell_adjoint(self.state.q) - self.penalty.lifted(self.state.y)
            self.slack_sums[:] = np.abs(slack).sum(axis=2)

    def _terms(self):
        data = self.problem.data
        return self.state.beta, data.slope, data.delta, data.is_poisson, self._theta()

    def _haadf(self):
        """Weights, targets and valid pixels of the HAADF terms, or of their majorants about the present maps."""
        return self.images.majorised(self.state.z)

    def _theta(self):
        return self.state.theta.astype(self.real)

    def adapt(self):
        """Let the ratios of the steps follow the sizes of duals over those of maps and slopes."""
        state = self.state
        if state.n_iter > ADAPT_UNTIL or self.penalty.kind is None:
            return
        size = size_about_means(state.z)
        pairs = (_MAPS_RATIO * _norm(state.y), size), (_norm(state.q), _norm(state.v))
        # within the range of single precision; the present ratio where one size is 0
        state.ratios = tuple(
            float(min(max(dual / primal, 1e-4), 1e6)) if dual > 0 and primal > 0 else present
            for (dual, primal), present in zip(pairs, state.ratios, strict=True)
        )
        self.set_steps()

    # ---- objective and gap -------------------------------------------------------------------------

    def evaluate(self):
        """Record the terms of the objective and the relative gap."""
        state = self.state
        terms, lower, size = self.terms_and_bound()
        gap = (terms.total - lower) / max(size, 1e-3 * self.n_valid)
        state.records = [r for r in state.records if r[0] < state.n_iter] + [(state.n_iter, terms, gap)]

    def _best(self, terms, size):
        """Terms and size of the maps of the lowest objective so far, which the state keeps."""
        state = self.state
        if state.best is None or not terms.total >= state.best.terms.total:  # NaN is reported at once
            state.best = BestMaps(terms, size, state.z.copy(), state.v.copy())
        return state.best.terms, state.best.size

    def terms_and_bound(self):
        """Terms of the objective, the lower bound of their total, and the size to which the gap is relative."""
        state, factors = self.state, self.state.factors().astype(self.real)
        # the maps for which the bound holds: at most twice the largest value found or measured
        upper = np.maximum(self.problem.data.upper, 2 * (state.z.max(axis=(1, 2)) * factors)).astype(self.real)
        data, haadf, bound, linear = self.sums_of_terms(factors, upper)
        penalty = self._penalty(factors)
        totals = np.where(self.kept, self.problem.data.totals, 0)
        # theta as rounded for the kernel: its rounding would count as often as there are pixels
        lower = bound - linear - float(self._theta().astype(np.float64) @ totals) - self._slack(factors)
        # contrast that the forward model cannot explain, however large, must not make the relative gap small
        size = data + penalty + min(haadf, self.images.n_pixels / 2)
        terms = Terms(haadf, data, penalty, haadf + data + penalty)
        if self.steps.keeps_best:
            terms, size = self._best(terms, size)
        return terms, lower, size

    def sums_of_terms(self, factors, upper):
        """Of the maps, of the images, of the least Lagrangian of both, and of what is to be subtracted from it."""
        state, images = self.state, self.images
        gradients = np.zeros((0, 0, 0), self.real)
        if images.is_blurred:
            residuals, squares, products = images.residuals(state.z * factors[:, None, None])
            # rounded once: what is added for a gradient is subtracted for the same gradient
            gradients = images.gradients(residuals)
        self.steps.evaluate(state, self._theta(), upper, (*images.arrays, factors, gradients), self.term_sums)
        data, haadf, bound, linear = (float(s) for s in self.term_sums.sum(axis=0))
        if images.is_blurred:
            haadf, linear = squares / 2, squares / 2 + products
        return data, haadf, bound, linear

    def _penalty(self, factors):
        state, penalty = self.state, self.penalty
        if penalty.kind is None:
            return 0.0
        kernels.variation(
            state.z, state.v, self.guide, self.mode, penalty.group, factors, self.cell_work, self.cell_sums
        )
        total = float(self.cell_sums.sum())
        # slopes of cells in one line have no differences
        if penalty.n_fields and state.q.size:
            repeated = np.repeat(factors, penalty.n_fields // penalty.n_maps)
            kernels.variation(
                state.v, state.v, self.guide, kernels.PLAIN, penalty.field_group, repeated, self.slope_work,
                self.slope_sums,
            )  # fmt: skip
            total += penalty.second_order * float(self.slope_sums.sum())
        return total

    def _slack(self, factors):
        """Violation of the dual constraint times twice the largest slope, or 1 where all slopes are 0."""
        largest = float(np.abs(self.state.v).max()) * float(factors.max())
        return (2 * largest or 1.0) * float(self.slack_sums.sum())

    # ---- the end -----------------------------------------------------------------------------------

    def result(self, reason):
        """The result in the units of the input."""
        state, problem = self.state, self.problem
        if not state.records or state.records[-1][0] != state.n_iter:
            self.evaluate()
        state.show_best()
        maps = state.maps()
        return FusionResult(
            maps=maps,
            modelled_haadf=problem.modelled_haadf(maps),
            history=history_of(state.records),
            n_iter=state.n_iter,
            reason=reason,
            gap=float(state.gap),
        )


def history_of(records):
    """The :class:`CostHistory` of the records of a state."""
    iterations, terms, all_gaps = zip(*records, strict=True)
    history = {name: np.array([getattr(t, name) for t in terms]) for name in ("haadf", "chem", "tv", "total")}
    return CostHistory(**history, iteration=np.array(iterations), gap=np.array(all_gaps))


def _guide(penalty, dtype):
    """The guide as the kernels take it."""
    guide = np.zeros((4, 1, 1)) if penalty.guide is None else penalty.guide
    if penalty.kind == "directional":
        planes = np.zeros((8, *guide.shape[1:]), dtype)
        planes[:4] = guide[:4]
        left = 1 - np.sum(guide[:4] ** 2, axis=0, dtype=np.float64)
        planes[4], planes[5] = 1 + left, (1 + left) / left**2
        if len(guide) > 4:
            left = 1 - guide[4].astype(np.float64)
            planes[6], planes[7] = (1 - left**2) / 4, (1 / left**2 - 1) / 4
        return planes
    return np.ascontiguousarray(guide, dtype)


def size_about_means(maps):
    """Root of the sum of the squares of maps (n, ny, nx), each less its mean."""
    total, about = 0.0, np.empty_like(maps[0])
    for one in maps:
        np.subtract(one, one[0, 0], out=about)  # little contrast would drown in rounding
        total += max(_norm(about) ** 2 - float(about.sum()) ** 2 / about.size, 0.0)
    return np.sqrt(total)


def _norm(array):
    return float(np.sqrt(np.vdot(array, array)))
