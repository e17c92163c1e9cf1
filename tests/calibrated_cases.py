"""Scans, settings and fits of the calibrated method that several test modules share."""

from hashlib import sha1

import numpy as np

from hyperspy_fusion.fusion.problems.calibrated import Observation
from hyperspy_fusion.fusion.problems.published import published_problem
from hyperspy_fusion.fusion.settings import CalibratedSettings, PublishedSettings
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual
from hyperspy_fusion.fusion.solvers.primal_dual_state import PrimalDualState
from hyperspy_fusion.fusion.solvers.proximal_gradient import proximal_gradient
from hyperspy_fusion.fusion.terms.scan_data import ScanData

NUMBERS = (26, 8)
COEFFICIENTS = (28.0, 9.0)
PENALTIES = ["tv", "directional", "tgv", "guided", "none"]
NOISES = {
    "poisson": {"background": (0.4, 0.0)},
    "shifted_poisson": {"background": 0.1},
    "gaussian": {"variance": (3.0, 2.0)},
}
TURNS = {
    "upside down": lambda a: np.ascontiguousarray(a[..., ::-1, :]),  # arrays of another layout compile all kernels anew
    "mirrored": lambda a: np.ascontiguousarray(a[..., ::-1]),
    "transposed": lambda a: np.ascontiguousarray(a.swapaxes(-1, -2)),
    "by half a turn": lambda a: np.ascontiguousarray(a[..., ::-1, ::-1]),
}


def scan_of(shape=(33, 45), counts=2.0, seed=0):
    """A blob and stripes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    blob = np.exp(-((y - 0.4 * shape[0]) ** 2 + (x - 0.3 * shape[1]) ** 2) / (shape[0] * 2))
    stripe = (x > 0.6 * shape[1]) + 0.5 * np.sin(y / 5) ** 2
    truth = counts * np.stack([4 * blob + 0.3, 2 * stripe + 0.5])
    haadf = 500 + np.tensordot(COEFFICIENTS, truth, 1) * 2 / counts + rng.normal(0, 10, shape)
    return rng.poisson(truth).astype(float), haadf


def small_scan(shape=(8, 8), counts=1.0, dtype=np.float64, seed=1):
    """A blob and a step, with zeros among the counts."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    middle = (y - shape[0] / 2) ** 2 + (x - shape[1] / 3) ** 2
    truth = counts * np.stack([8 * np.exp(-middle / shape[0]), 5.0 * (x > shape[1] / 2) + 1])
    haadf = 100 + (30 * truth[0] + 8 * truth[1]) / counts + rng.normal(0, 6, shape)
    return rng.poisson(truth + 0.2 * counts).astype(dtype), haadf


def settings_of(**options):
    """Given coefficients, double precision."""
    known = {"haadf_coefficients": COEFFICIENTS, "dtype": "float64", "tol": 1e-5, "lambda_reg": 0.5}
    return CalibratedSettings(**(known | options))


def small_settings(**options):
    """Of a :func:`small_scan`, in the dtype of the maps."""
    known = {"noise": "shifted_poisson", "haadf_coefficients": COEFFICIENTS, "lambda_reg": (0.3, 0.2)}
    return CalibratedSettings(**(known | options))


def tight(**options):
    """Of a :func:`small_scan`, to seven digits."""
    return small_settings(**({"dtype": "float64", "tol": 1e-7, "max_iter": 40000} | options))


def observe(maps, haadf, numbers, settings, **scan_options):
    """The observation of arrays; options as of :meth:`ScanData.of`."""
    return Observation.of(ScanData.of(maps, haadf, numbers, **scan_options), settings)


def calibrated_problem(maps, haadf, numbers, settings, **scan_options):
    """The problem of arrays; options as of :meth:`ScanData.of`."""
    return observe(maps, haadf, numbers, settings, **scan_options).problem(settings)


def problem_of(scan, settings=None, numbers=NUMBERS, **scan_options):
    """The problem of a scan (maps, image)."""
    return calibrated_problem(*scan, numbers, settings or settings_of(), **scan_options)


def fit(scan, settings, state=None, callback=None, num_workers=None):
    """Problem, result and state, from the measured maps; with a state, of the problem that it belongs to."""
    state = PrimalDualState.of(problem_of(scan, settings)) if state is None else state
    return (state.problem, *primal_dual(state.problem, settings, state, callback, num_workers))


def fused(scan, settings=None, numbers=NUMBERS, **scan_options):
    """The result alone."""
    settings = settings or settings_of()
    problem = problem_of(scan, settings, numbers, **scan_options)
    return primal_dual(problem, settings, PrimalDualState.of(problem))[0]


def hash_of_fit(method):
    """Of the maps of 50 iterations."""
    maps, haadf = (a.astype(np.float32) for a in scan_of((24, 24)))
    if method == "calibrated":
        return sha1(fused((maps, haadf), settings_of(dtype="float32", max_iter=50)).maps).hexdigest()
    settings = PublishedSettings(max_iter=50)
    found, _ = proximal_gradient(published_problem(maps, haadf, NUMBERS, settings), settings)
    return sha1(found.maps).hexdigest()


def count_loss(x, b, counts_scale=1.0, background=0.0, shift=0.0, valid=True):
    """Of Poisson counts b with a shift, for a mean of x over a background in counts; each one number or one per map."""
    scale, background, shift = (np.reshape(v, (-1, 1, 1)) if np.ndim(v) == 1 else v
                                for v in (counts_scale, background, shift))  # fmt: skip
    counts, mean = b / scale + shift, x / scale + background + shift
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = x / scale - np.where(counts == 0, 0, counts * np.log(mean))
    return np.sum(terms, where=np.broadcast_to(valid, terms.shape))


def square_loss(x, b, variance, valid=True):
    """Of Gaussian maps b, with a variance of one number per map, or (n, ny, nx)."""
    terms = (x - b) ** 2 / (np.reshape(variance, (-1, 1, 1)) if np.ndim(variance) == 1 else variance)
    return 0.5 * np.sum(terms, where=np.broadcast_to(valid, terms.shape))


def haadf_loss(model, x, haadf, sigma, valid=True):
    """``||h - f(x)||^2 / (2 sigma^2)`` of an image without blur."""
    return 0.5 * np.sum((model.image(x) - haadf) ** 2, where=np.broadcast_to(valid, haadf.shape)) / sigma**2
