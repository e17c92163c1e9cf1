"""The calibrated objective in plain NumPy and as a problem for CVXPY, written from the formulas and not from the code.

Maps x are in units of the input throughout. Only estimates from the data are taken from the code: the HAADF forward
model and the standard deviation of the HAADF image about it.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

SECOND_ORDER = {"guided": 0.03, "tgv": 0.5}
# the mixed difference of a square: what its opposite differences differ by
MIXED = np.array([-0.5, 0.5, -0.5, 0.5])


def differences(u):
    """Left, right, top and bottom difference of all squares of four pixels, over sqrt(2)."""
    nw, ne, sw, se = u[..., :-1, :-1], u[..., :-1, 1:], u[..., 1:, :-1], u[..., 1:, 1:]
    return np.stack([sw - nw, se - ne, ne - nw, se - sw]) / np.sqrt(2)


def matrix(ny, nx):
    """The same as a matrix, (4 cells, pixels)."""
    unit = np.eye(ny * nx).reshape(ny * nx, ny, nx)
    return np.stack([differences(u).ravel() for u in unit], 1)


def adjoint(y):
    """Its transpose, for y of shape (4, n, ny - 1, nx - 1)."""
    shape = (y.shape[2] + 1, y.shape[3] + 1)
    d = matrix(*shape)
    return np.stack([(d.T @ y[:, i].ravel()).reshape(shape) for i in range(y.shape[1])])


def lengths(t, joint):
    """Lengths of the vectors of (k, n, ...), over all n together or for each n: (..., ) or (n, ...)."""
    return np.sqrt(np.sum(t**2, axis=(0, 1) if joint else 0))


def guide(haadf, blur):
    low, high = np.percentile(haadf, (0.1, 99.9))
    return differences(gaussian_filter(np.clip((haadf - low) / (high - low), 0, 1), blur))


def directions(g, eta, haadf_blur):
    """(4, 4, ...) what ``"directional"`` takes of the differences of each cell, from those g of its guide (4, ...)."""
    if haadf_blur:
        g = g - np.multiply.outer(MIXED, np.tensordot(MIXED, g, 1))
    xi = np.sqrt(eta) * g / np.sqrt((g**2).sum(0) + 0.003**2)
    part = (1 - 1 / np.sqrt(1 + (haadf_blur / 0.4) ** 2)) * (xi**2).sum(0)
    outer = np.multiply.outer
    return outer(np.eye(4), np.ones(g.shape[1:])) - xi[:, None] * xi[None] - outer(outer(MIXED, MIXED), part)


def blur_matrix(shape, blur):
    """The Gaussian, mirrored at the borders, as a matrix (pixels, pixels)."""
    unit = np.eye(np.prod(shape)).reshape(-1, *shape)
    return np.stack([gaussian_filter(u, blur, mode="reflect").ravel() for u in unit], 1) if blur else np.eye(len(unit))


def tgv_minimum(image, sigma, weight):
    """The image with the least ``1/2 ||u - image||^2 / sigma^2 + weight TGV(u / sigma)``, by CVXPY."""
    import cvxpy as cp

    ny, nx = image.shape
    u = cp.Variable(ny * nx)
    y, x = cp.Variable((ny - 1) * (nx - 1)), cp.Variable((ny - 1) * (nx - 1))
    first = cp.reshape(matrix(ny, nx) @ u, (4, y.size), order="C") - cp.vstack([y, y, x, x]) / np.sqrt(2)
    shape = (4, (ny - 2) * (nx - 2))
    second = cp.vstack([cp.reshape(matrix(ny - 1, nx - 1) @ v, shape, order="C") for v in (y, x)])
    penalty = cp.sum(cp.norm(first, axis=0)) + SECOND_ORDER["tgv"] * cp.sum(cp.norm(second, axis=0))
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(u - image.ravel() / sigma) + weight * penalty))
    problem.solve(solver="CLARABEL", tol_gap_rel=1e-9, tol_gap_abs=1e-9, tol_feas=1e-9)
    return sigma * u.value.reshape(ny, nx)


@dataclass
class Convex:
    """Settings as of ``CalibratedSettings``, counts of 1 and no masked pixels."""

    maps: np.ndarray
    haadf: np.ndarray
    settings: object
    forward_model: object
    sigma: float

    def __post_init__(self):
        n, s = len(self.maps), self.settings
        self.background = np.broadcast_to(s.background, n)[:, None, None]
        self.shift = {"shifted_poisson": s.poisson_offset}.get(s.noise, 0.0)
        if s.noise == "gaussian":
            deviation = np.sqrt(np.broadcast_to(s.variance, n))
        else:
            deviation = np.sqrt(self.maps.mean((1, 2)) + self.shift)
        self.unit = (deviation / s.lambda_reg)[:, None, None]
        self.second_order = s.second_order or SECOND_ORDER.get(s.regularization)

    # ---- NumPy -----------------------------------------------------------------------------------

    def fidelity(self, x):
        if self.settings.noise == "gaussian":
            variance = np.broadcast_to(self.settings.variance, len(x))[:, None, None]
            return 0.5 * np.sum((x + self.background - self.maps) ** 2 / variance)
        counts, mean = self.maps + self.shift, x + self.background + self.shift
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sum(mean - counts + np.where(counts > 0, counts * np.log(counts / mean), 0))

    def haadf_term(self, x):
        blur = blur_matrix(self.haadf.shape, self.settings.haadf_blur)
        residual = (self.haadf - self.forward_model.offset).ravel() - blur @ np.tensordot(
            self.forward_model.weights, x, 1
        ).ravel()
        return 0.5 * self.settings.lambda_haadf * np.sum(residual**2) / self.sigma**2

    def penalty(self, x, fields=None):
        """With ``fields`` (n, per map, cells) in units of the penalty, for those that have them."""
        s, t = self.settings, differences(x / self.unit)
        if s.regularization == "none":
            return 0.0
        if s.regularization == "directional":
            p = directions(guide(self.haadf, s.guide_blur), s.eta, s.haadf_blur)
            t = np.einsum("klyx,lnyx->knyx", p, t)
        if fields is None:
            return lengths(t, s.joint).sum()
        if s.regularization == "guided":
            t = t - guide(self.haadf, s.guide_blur)[:, None] * fields[:, 0]
        else:
            slope_y, slope_x = fields[:, 0] / np.sqrt(2), fields[:, 1] / np.sqrt(2)
            t = t - np.stack([slope_y, slope_y, slope_x, slope_x])
        second = differences(fields)  # 4, n, per map, ...
        second = np.moveaxis(second, 2, 1).reshape(-1, len(x), *second.shape[3:])
        return lengths(t, s.joint).sum() + self.second_order * lengths(second, s.joint).sum()

    def objective(self, x, fields=None):
        return self.fidelity(x) + self.haadf_term(x) + self.penalty(x, fields)

    # ---- CVXPY -----------------------------------------------------------------------------------

    def minimum(self):
        """The smallest objective and the maps that have it."""
        import cvxpy as cp

        n, ny, nx = self.maps.shape
        z = [cp.Variable(ny * nx, nonneg=True) for _ in range(n)]
        x = [float(u) * zi for u, zi in zip(self.unit.ravel(), z, strict=True)]
        terms = [self._fidelity(cp, i, x[i]) for i in range(n)]
        if self.settings.lambda_haadf:
            blur = blur_matrix((ny, nx), self.settings.haadf_blur)
            image = sum(w * xi for w, xi in zip(self.forward_model.weights, x))  # noqa: B905
            residual = (self.haadf - self.forward_model.offset).ravel() - blur @ image
            terms.append(0.5 * self.settings.lambda_haadf * cp.sum_squares(residual / self.sigma))
        if self.settings.regularization != "none":
            terms.append(self._penalty(cp, z))
        limits = []
        if self.settings.keep_totals:
            limits = [cp.sum(x[i]) == np.sum(self.maps[i] - self.background[i]) for i in range(n)]
        problem = cp.Problem(cp.Minimize(sum(terms)), limits)
        problem.solve(solver="CLARABEL", tol_gap_rel=1e-9, tol_gap_abs=1e-9, tol_feas=1e-9)
        assert problem.status in ("optimal", "optimal_inaccurate")
        return problem.value, np.stack([xi.value.reshape(ny, nx) for xi in x])

    def _fidelity(self, cp, i, x):
        b, mean = self.maps[i].ravel(), x + float(self.background[i, 0, 0])
        if self.settings.noise == "gaussian":
            variance = np.broadcast_to(self.settings.variance, len(self.maps))
            return 0.5 * cp.sum_squares(mean - b) / variance[i]
        return cp.sum(cp.kl_div(b + self.shift, mean + self.shift))

    def _penalty(self, cp, z):
        s, (_, ny, nx) = self.settings, self.maps.shape
        d, cells = matrix(ny, nx), (ny - 1) * (nx - 1)
        g = guide(self.haadf, s.guide_blur).reshape(4, cells)
        rows, fields = [cp.reshape(d @ zi, (4, cells), order="C") for zi in z], None
        if s.regularization == "directional":
            p = directions(g, s.eta, s.haadf_blur)
            rows = [cp.vstack([cp.sum(cp.multiply(p[k], t), axis=0) for k in range(4)]) for t in rows]
        if s.regularization == "guided":
            fields = [[cp.Variable(cells)] for _ in z]
            rows = [t - cp.multiply(g, cp.vstack([f] * 4)) for t, (f,) in zip(rows, fields, strict=True)]
        if s.regularization == "tgv":
            fields = [[cp.Variable(cells), cp.Variable(cells)] for _ in z]
            rows = [t - cp.vstack([a, a, b, b]) / np.sqrt(2) for t, (a, b) in zip(rows, fields, strict=True)]
        total = self._lengths(cp, rows)
        if fields and min(ny, nx) > 2:
            d2 = matrix(ny - 1, nx - 1)
            shape = (4, (ny - 2) * (nx - 2))
            seconds = [cp.vstack([cp.reshape(d2 @ f, shape, order="C") for f in group]) for group in fields]
            total += self.second_order * self._lengths(cp, seconds)
        return total

    def _lengths(self, cp, rows):
        groups = [cp.vstack(rows)] if self.settings.joint else rows
        return sum(cp.sum(cp.norm(g, 2, axis=0)) for g in groups)
