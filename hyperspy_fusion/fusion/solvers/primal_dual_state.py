"""When a fit by primal-dual iterations ends, and everything that changes in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.fusion.result import Terms
from hyperspy_fusion.fusion.terms.objective import Objective

# a fit with tol="settled" ends so near to its final maps, in standard errors of each map
SETTLED, GAP_OF_SETTLED = 0.03, 1e-4
# ... and one of small weight in an ensemble at most this far from them
_FURTHEST = 0.2


@dataclass(frozen=True)
class Stopping:
    """When a fit ends: at whichever comes first.

    Attributes
    ----------
    max_iter
        Iterations of one call.
    gap
        Relative duality gap.
    settled
        Distance from the final maps, as estimated from their last moves, in standard errors of each map. Without
        standard errors the gap ``GAP_OF_SETTLED`` takes its place.
    shares
        (n,) factors of the distances of the maps, or one for all.
    contributions
        (n, r) of each of r fitted columns to the standard errors of n maps, whose squares have the sum 1 for each map.
        None where the columns are the maps.
    is_given_up
        Asked with the state after 10, 20, 40, ... iterations of a call without a callback that ends where the maps have
        settled: whether it is to end.
    """

    max_iter: int
    gap: float = 0.0
    settled: float = 0.0
    shares: tuple = (1.0,)
    contributions: np.ndarray | None = None
    is_given_up: Callable[[Any], bool] | None = None

    @classmethod
    def of(cls, settings):
        """That of ``max_iter`` and ``tol`` of the settings of the calibrated method, or one made before."""
        if isinstance(settings, cls):
            return settings
        if settings.tol == "settled":
            return cls(settings.max_iter, settled=SETTLED)
        return cls(settings.max_iter, gap=settings.tol)

    def in_ensemble(self, weights):
        """That of each fit of an ensemble with weights (fits, n), whose average then ends as near as one fit would.

        Distances of K fits add up in squares, each times its weight. None has to be nearer than a fit by itself.
        """
        number = np.count_nonzero(weights, axis=0)
        shares = np.clip(weights * np.sqrt(number), (self.settled or SETTLED) / _FURTHEST, 1)
        return [replace(self, shares=tuple(one)) for one in shares.tolist()]

    def of_columns(self, readout, errors):
        """That of columns (r,) with standard errors, of which maps are ``readout`` (n or more, r) times the columns.

        Rows beyond the maps count where all have the same share.
        """
        sizes = np.abs(readout[: len(self.shares)] if len(self.shares) > 1 else readout) * errors
        lengths = np.linalg.norm(sizes, axis=1, keepdims=True)
        return replace(self, contributions=np.divide(sizes, lengths, out=np.zeros_like(sizes), where=lengths > 0))

    def distance(self, distances):
        """The largest of the distances (n,) of maps that counts; those of other columns count like the largest."""
        shares = np.array(self.shares)
        if self.contributions is not None and np.isfinite(distances).all():
            distances = np.linalg.norm(self.contributions * distances, axis=1)
        # NaN where any map has it
        return float(np.max(distances * (shares if len(shares) == len(distances) else shares.max())))


class BestMaps(NamedTuple):
    """Maps and slopes of the lowest objective that was evaluated, its terms, and the size of its gap."""

    terms: Terms
    size: float
    z: np.ndarray
    v: np.ndarray


@dataclass
class PrimalDualState:
    """Everything that changes in a fit. A fit continues from the state that it returned.

    Between two calls, maps and duals are within their bounds. Where the gap or a callback is asked for, two calls equal
    one, bit by bit, if the first ends at its ``max_iter``, a multiple of ``CHECK_EVERY``.

    Attributes
    ----------
    problem
        The :class:`~hyperspy_fusion.fusion.terms.objective.Objective`.
    z, z_bar
        (n, ny, nx) maps in natural units, and extrapolated.
    y
        (4, n, ny - 1, nx - 1) dual of the differences.
    v, v_bar, q
        (m, ny - 1, nx - 1) slopes of the penalty, extrapolated, and (4, m, ny - 2, nx - 2) dual of their differences;
        of size 1 for penalties without slopes.
    theta
        (n,) multipliers of the totals.
    totals, totals_bar
        (n,) totals of the maps over valid pixels, and extrapolated.
    residual
        (1 or 3, ny, nx) of the HAADF terms.
    beta
        (n, ny, nx) counts of the maps: measured, or those of the last E step.
    ratios
        Of primal to dual steps, for maps and slopes.
    n_iter
        Iterations behind ``z``.
    records
        (iteration, Terms, relative gap) of every evaluation.
    standard_errors
        (n,) of the maps, root mean square over pixels; None where they are not estimated.
    fraction
        Of the running call, that is done, as estimated.
    checked, moves
        Maps at the last evaluation, and how far the maps moved between evaluations, in standard errors.
    best
        The :class:`BestMaps` of a fit of counts in bands. Between two calls, ``z`` and ``v`` are these.
    last
        ``z`` and ``v`` of the last iteration, between two calls of such a fit.
    """

    problem: Objective
    z: np.ndarray
    y: np.ndarray
    v: np.ndarray
    q: np.ndarray
    theta: np.ndarray
    residual: np.ndarray
    beta: np.ndarray
    z_bar: np.ndarray
    v_bar: np.ndarray
    totals: np.ndarray
    totals_bar: np.ndarray
    ratios: tuple = (1.0, 1.0)
    n_iter: int = 0
    records: list = field(default_factory=list)
    standard_errors: np.ndarray | None = None
    checked: np.ndarray | None = None
    moves: list = field(default_factory=list)
    fraction: float = 0.0
    best: BestMaps | None = None
    last: tuple | None = None

    @classmethod
    def of(cls, problem, *, z=None, y=None, v=None, q=None, theta=None, ratios=(1.0, 1.0)):
        """The start of a fit: the measured maps, and slopes and duals of zero, where they are not given."""
        (n, ny, nx), m, dtype = problem.shape, problem.penalty.n_fields, problem.dtype
        z = problem.initial_maps.copy() if z is None else z
        v = np.zeros((m, ny - 1, nx - 1) if m else (1, 1, 1), dtype) if v is None else v
        totals = totals_of(problem, z)
        return cls(
            problem=problem,
            z=z,
            y=np.zeros((4, n, ny - 1, nx - 1), dtype) if y is None else y,
            v=v,
            q=np.zeros((4, m, ny - 2, nx - 2) if m else (4, 1, 1, 1), dtype) if q is None else q,
            theta=np.zeros(n) if theta is None else theta,
            residual=np.zeros((max(len(problem.haadf_terms), 1), ny, nx), dtype),
            beta=problem.data.beta,
            z_bar=z.copy(),
            v_bar=v.copy(),
            totals=totals,
            totals_bar=totals,
            ratios=ratios,
        )

    @classmethod
    def mean_of(cls, states):
        """The mean of states of the same maps under one penalty, of any weight, to start from; None of no states."""
        if len(states) < 2:
            return next(iter(states), None)
        first, *others = states
        alike = [first, *(state.restarted(first.problem) for state in others)]
        means = {name: sum(getattr(one, name) for one in alike) for name in ("z", "y", "v", "q", "theta")}
        for one in means.values():
            one /= len(alike)
        new = cls.of(first.problem, ratios=first.ratios, **means)
        return replace(new, standard_errors=first.standard_errors)

    @property
    def gap(self):
        """The relative duality gap last evaluated."""
        return self.records[-1][2] if self.records else np.inf

    def show_best(self):
        """At the end of a call: show the maps of the lowest objective, and keep those to continue from."""
        if self.best is not None:
            self.last, (self.z, self.v) = (self.z, self.v), self.best[2:]

    def show_last(self):
        """At the start of a call: the maps of the last iteration."""
        if self.last is not None:
            (self.z, self.v), self.last = self.last, None

    def factors(self):
        """(n,) factors that bring the maps to their totals."""
        kept, totals = self.problem.data.totals, totals_of(self.problem, self.z)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(np.isfinite(kept) & (totals > 0), kept / totals, 1.0)

    def maps(self):
        """(n, ny, nx) maps of these totals, in units of the input."""
        factors = (self.factors() * self.problem.scales).astype(self.problem.dtype)
        return self.z * factors[:, None, None]

    def restarted(self, problem, fraction=1.0):
        """The start of another problem of the same maps: these maps, and their duals where the penalty is alike.

        ``fraction`` of its counts are in the maps of this one.
        """
        old, dtype = self.problem, problem.dtype
        factors = (old.scales / problem.scales / fraction)[:, None, None]
        kept = np.isfinite(problem.data.totals)
        arrays = {
            "z": np.multiply(self.z, factors, dtype=dtype),
            "theta": np.where(kept, self.theta / factors.ravel(), 0),
        }
        if old.penalty.shares_duals(problem.penalty):
            arrays |= {"y": self.y.astype(dtype), "ratios": self.ratios}
            if problem.penalty.n_fields:
                stretched = np.repeat(factors, problem.penalty.n_fields // problem.penalty.n_maps, axis=0)
                # into the balls where they shrank; where they grew, these duals still match each other
                radii = dtype.type(min(problem.penalty.second_order / old.penalty.second_order, 1))
                arrays |= {
                    "v": np.multiply(self.v, stretched, dtype=dtype),
                    "q": np.multiply(self.q, radii, dtype=dtype),
                }
        errors = self.standard_errors
        errors = None if errors is None else errors * factors.ravel() * np.sqrt(fraction)
        return replace(PrimalDualState.of(problem, **arrays), standard_errors=errors)


def totals_of(problem, z):
    """(n,) totals of maps over valid pixels."""
    valid = np.broadcast_to(problem.data.slope > 0, z.shape)
    return np.asarray(np.sum(z, axis=(1, 2), where=valid, dtype=np.float64))
