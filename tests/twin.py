"""The published loop in plain NumPy: what the kernels must compute, written to be read.

``quirks=True`` adds what the tutorial's own Python does differently: the last row and column have no
vertical and horizontal dual, and the prox returns its extrapolated dual.
"""

import numpy as np


def haadf_coefficients_of(atomic_numbers):
    z = np.asarray(atomic_numbers, float)
    return z / z.mean()


def normalise(image):
    return (image - image.min()) / (image.max() - image.min())


def differences(u):
    return np.diff(u, axis=0, append=u[-1:]) * -1, np.diff(u, axis=1, append=u[:, -1:]) * -1


def adjoint(p, q):
    return np.diff(p, axis=0, prepend=0) + np.diff(q, axis=1, prepend=0)


def tv(u, isotropic=True):
    p, q = differences(u)
    return np.hypot(p, q).sum() if isotropic else (abs(p) + abs(q)).sum()


def prox_tv(b, weight, steps, isotropic=True, accelerated=True, quirks=False):
    """Beck & Teboulle (2009), FGP or GP; returns the image and the dual."""
    p, q = np.zeros_like(b), np.zeros_like(b)
    r, s, t = p, q, 1.0
    for _ in range(steps):
        u = np.maximum(b - weight * adjoint(r, s), 0)
        dy, dx = differences(u)
        if quirks:
            dy[:, -1], dx[-1] = 0, 0
        p_new, q_new = r + dy / (8 * weight), s + dx / (8 * weight)
        length_p, length_q = (np.hypot(p_new, q_new),) * 2 if isotropic else (abs(p_new), abs(q_new))
        p_new, q_new = p_new / np.maximum(1, length_p), q_new / np.maximum(1, length_q)
        t_new = (1 + np.sqrt(1 + 4 * t * t)) / 2
        momentum = (t - 1) / t_new if accelerated else 0
        r, s = p_new + momentum * (p_new - p), q_new + momentum * (q_new - q)
        p, q, t = p_new, q_new, t_new
    final = (r, s) if quirks else (p, q)
    return np.maximum(b - weight * adjoint(*final), 0), (p, q)


def published(b, h, weights, *, gamma=1.6, chem=0.08, weight_tv=0.15, eps=0.2, iterations=30, tv_iter=3, threshold=0,
              isotropic=True, accelerated=True, quirks=False, lambda_haadf=None):  # fmt: skip
    """Normalised maps after the published iteration from normalised data."""
    w = np.asarray(weights, float)[:, None, None]
    lambda_haadf = 1 / len(b) if lambda_haadf is None else lambda_haadf
    x = np.where(b < threshold, 0, b)
    for _ in range(iterations):
        f = (w * x**gamma).sum(0)
        x = x - lambda_haadf * gamma * w * x ** (gamma - 1) * (f - h) - chem * (1 - b / (x + eps))
        x = np.maximum(x, 0)
        if weight_tv:
            x = np.stack([prox_tv(image, weight_tv, tv_iter, isotropic, accelerated, quirks)[0] for image in x])
    return x


def objective(x, b, h, weights, *, gamma=1.6, chem=0.08, weight_tv=0.15, eps=0.2, lambda_haadf=None, isotropic=True):
    w = np.asarray(weights, float)[:, None, None]
    lambda_haadf = 1 / len(b) if lambda_haadf is None else lambda_haadf
    haadf = 0.5 * (((w * x**gamma).sum(0) - h) ** 2).sum()
    return (
        lambda_haadf * haadf
        + chem * (x - b * np.log(x + eps)).sum()
        + weight_tv * sum(tv(image, isotropic) for image in x)
    )
