"""Penalties on the maps: value, operators, and the schedule of their prox."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def fgp_momentum(n_steps):
    """Extrapolation factors ``(t_k - 1) / t_{k+1}`` of fast gradient projection, Beck & Teboulle (2009), section 4."""
    t = np.ones(n_steps + 1)
    for k in range(n_steps):
        t[k + 1] = (1 + np.sqrt(1 + 4 * t[k] ** 2)) / 2
    return (t[:-1] - 1) / t[1:]


@dataclass(frozen=True)
class TotalVariation:
    """``sum_i TV(x_i)``: each map for itself, with forward differences and Neumann edges.

    Isotropic: ``sum sqrt(dy^2 + dx^2)``; anisotropic: ``sum |dy| + |dx|``, which favours edges along the axes.
    """

    norm: str = "isotropic"

    @property
    def is_isotropic(self):
        """Whether the length of the gradient is Euclidean."""
        return self.norm == "isotropic"

    def value(self, x):
        """The penalty of maps ``x``, shape (n_elements, ny, nx) or (ny, nx)."""
        p = np.diff(x, axis=-2, append=x[..., -1:, :])
        q = np.diff(x, axis=-1, append=x[..., -1:])
        length = np.sqrt(p**2 + q**2) if self.is_isotropic else np.abs(p) + np.abs(q)
        return float(np.sum(length, dtype=np.float64))


# ---- penalties of the calibrated method: on the differences in 2x2 cells ---------------------------

# no NumPy scalar, which would make arrays double
_SQRT_HALF = float(np.sqrt(0.5))
# weight of the slopes relative to that of the differences; from phantoms and held-out counts
SECOND_ORDER = {"guided": 0.03, "tgv": 0.5}


def cell_differences(u):
    """The four differences of every 2x2 cell over sqrt(2), shape (4, ..., ny - 1, nx - 1).

    In the order left (lower minus upper pixel), right, top (right minus left pixel), bottom. The sum of their lengths
    is an isotropic total variation, the same for the flipped and for the transposed image. For a straight edge along
    an axis it is height times length.
    """
    down, right = u[..., 1:, :] - u[..., :-1, :], u[..., :, 1:] - u[..., :, :-1]
    return _SQRT_HALF * np.stack([down[..., :-1], down[..., 1:], right[..., :-1, :], right[..., 1:, :]])


def cell_adjoint(y):
    """The adjoint of :func:`cell_differences`: (4, ..., ny - 1, nx - 1) to (..., ny, nx)."""
    left, right, top, bottom = _SQRT_HALF * y
    out = np.zeros((*y.shape[1:-2], y.shape[-2] + 1, y.shape[-1] + 1), y.dtype)
    out[..., :-1, :-1] -= left + top
    out[..., :-1, 1:] += top - right
    out[..., 1:, :-1] += left - bottom
    out[..., 1:, 1:] += right + bottom
    return out


@dataclass(frozen=True)
class CellPenalty:
    """Penalty of n maps together; D are the differences of :func:`cell_differences`.

    - ``"tv"``: ``sum |D z|``.
    - ``"directional"``: ``sum |P D z|``, ``P = I - xi xi^T``, with xi along the differences of the HAADF image
      (Ehrhardt & Betcke, SIAM J. Imaging Sci. 9, 1084, 2016; Bungert et al., Inverse Problems 34, 044003, 2018). For a
      blurred image, ``P = I - xi xi^T - c t t^T`` also takes off a part c of the mixed difference
      ``t = (-1, 1, -1, 1) / 2`` of cells, which xi then lacks.
    - ``"tgv"``: ``min_v sum |D z - v| + second_order sum |D v|``, v the slopes of each map along y and x in every cell
      (Bredies, Kunisch & Pock, SIAM J. Imaging Sci. 3, 492, 2010), with the whole derivative of v instead of its
      symmetric part.
    - ``"guided"``: ``min_v sum |D z - v D h| + second_order sum |D v|``, v the slope of each map against the HAADF
      image h in every cell. Maps that are locally linear in the image, as in the guided filter, cost nothing (He, Sun &
      Tang, IEEE TPAMI 35, 1397, 2013).

    Attributes
    ----------
    kind
        One of the four, or None for no penalty.
    n_maps
        n.
    joint
        Whether ``|.|`` is the length over all maps of a cell (vectorial total variation), or of each map.
    second_order
        Weight of the slopes.
    guide
        (4, ny - 1, nx - 1) D h of ``"guided"``, xi of ``"directional"``, or (5, ny - 1, nx - 1) xi and c; else None.
    """

    kind: str | None
    n_maps: int
    joint: bool
    second_order: float
    guide: np.ndarray | None

    @property
    def n_fields(self):
        """Slopes per cell, of all maps."""
        return {"guided": 1, "tgv": 2}.get(self.kind or "", 0) * self.n_maps

    @property
    def group(self):
        """How many maps share one length."""
        return self.n_maps if self.joint else 1

    @property
    def field_group(self):
        """How many fields share one length."""
        return self.n_fields if self.joint else self.n_fields // self.n_maps

    def shares_duals(self, other):
        """Whether a dual of this penalty is also one of another one."""
        # maps that share a length have shorter duals than maps of lengths of their own
        if self.kind != other.kind or (other.joint and not self.joint):
            return False
        if self.guide is None or other.guide is None:
            return self.guide is other.guide
        return self.guide is other.guide or np.array_equal(self.guide, other.guide)

    def value(self, z, fields=None):
        """The penalty of maps (n, ny, nx), with fields (n_fields, ny - 1, nx - 1) where there are any."""
        if self.kind is None:
            return 0.0
        first = _lengths(self._first(z, fields), self.group)
        if not self.n_fields:
            return first
        return first + self.second_order * _lengths(cell_differences(fields), self.field_group)

    def lifted(self, y):
        """``L^T y`` (n_fields, ny - 1, nx - 1) of a dual of the differences, minus the gradient of the slopes."""
        if self.guide is not None:
            return np.sum(self.guide[:, None] * y, axis=0)
        along = np.stack([y[0] + y[1], y[2] + y[3]], axis=1)
        return _SQRT_HALF * along.reshape(-1, *y.shape[2:])

    def _first(self, z, fields):
        t = cell_differences(z)
        if self.kind == "tgv":
            return t - _SQRT_HALF * np.stack([fields[k // 2 :: 2] for k in range(4)])
        if self.guide is None:
            return t
        if self.kind == "guided":
            return t - fields * self.guide[:, None]
        xi, part = self.guide[:4, None].astype(np.float64), self.guide[4:].sum(axis=0, dtype=np.float64)
        mixed = 0.25 * part * (t[1] - t[0] + t[3] - t[2])
        return t - xi * (xi * t).sum(axis=0) - np.stack([-mixed, mixed, -mixed, mixed])


def _lengths(t, group):
    """Sum of the lengths of the vectors of (4, n, ...) in groups of n."""
    squares = np.sum(t**2, axis=0)
    squares = squares.reshape(-1, group, *squares.shape[1:]).sum(axis=1)
    return float(np.sum(np.sqrt(squares)))
