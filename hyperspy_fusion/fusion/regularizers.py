"""Penalties on the maps: value, the operators behind them, and the schedule of their prox.

The total variation of an image is taken with forward differences and Neumann edges. In the notation of
Beck & Teboulle (2009), ``L^T u = (u_yx - u_y+1,x, u_yx - u_y,x+1)`` and ``L`` is its adjoint, minus the divergence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def differences(u):
    """``L^T u``: the pair of arrays ``(u - next row, u - next column)``, zero in the last row and column."""
    p, q = np.zeros_like(u), np.zeros_like(u)
    p[..., :-1, :] = u[..., :-1, :] - u[..., 1:, :]
    q[..., :, :-1] = u[..., :, :-1] - u[..., :, 1:]
    return p, q


def minus_divergence(p, q):
    """``L(p, q)``, the adjoint of :func:`differences`."""
    out = np.zeros_like(p)
    out[..., :-1, :] += p[..., :-1, :]
    out[..., 1:, :] -= p[..., :-1, :]
    out[..., :, :-1] += q[..., :, :-1]
    out[..., :, 1:] -= q[..., :, :-1]
    return out


def fgp_momentum(n_steps):
    """Extrapolation factors ``(t_k - 1) / t_{k+1}`` of fast gradient projection, Beck & Teboulle (2009), section 4."""
    t = np.ones(n_steps + 1)
    for k in range(n_steps):
        t[k + 1] = (1 + np.sqrt(1 + 4 * t[k] ** 2)) / 2
    return (t[:-1] - 1) / t[1:]


@dataclass(frozen=True)
class TotalVariation:
    """``sum_i TV(x_i)``: each map for itself.

    Isotropic: ``sum sqrt(dy^2 + dx^2)``; anisotropic: ``sum |dy| + |dx|``, which favours edges along the axes.
    """

    norm: str = "isotropic"

    @property
    def is_isotropic(self):
        """Whether the length of the gradient is Euclidean."""
        return self.norm == "isotropic"

    def value(self, x):
        """The penalty of maps ``x``, shape (n_elements, ny, nx) or (ny, nx)."""
        p, q = differences(x)
        length = np.sqrt(p**2 + q**2) if self.is_isotropic else np.abs(p) + np.abs(q)
        return float(np.sum(length, dtype=np.float64))
