"""Ptychography: the phase of a thin object from its diffraction patterns. The iteration is in :func:`ptychography`.

The forward model of the pattern at position ``r_j = n_j + f_j``, whole pixels ``n_j`` and a rest ``f_j``, is::

    P_j   = F^-1 [exp(-2 pi i k f_j) F P]
    psi_j = F [P_j(x) exp(i V(x + n_j))]
    I_j   = |psi_j|^2

with the probe ``P``, the unitary Fourier transform ``F``, and the phase ``V`` (ny, nx) of the object, on whose
grid windows of the size of a pattern wrap. ``I_j`` is compared with the measured pattern ``y_j``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter, laplace

from hyperspy_fusion.fusion.checks import check_choice, check_count, check_from, check_positive, check_seed
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.solvers.loop import Interruption, asked_to_stop

LOSSES = ("poisson", "amplitude")
_MESSAGES = {
    StopReason.CONVERGED: "The relative change of the phase in one iteration fell to the tolerance.",
    StopReason.NOT_CONVERGED: "All iterations were run without reaching the tolerance: raise max_iter or tol.",
    StopReason.INTERRUPTED: "Interrupted: the phase is that of the last complete iteration.",
    StopReason.STOPPED: "Stopped by the callback: the phase is that of the last complete iteration.",
    StopReason.NOT_FINITE: "The phase became infinite or NaN: lower learning_rate.",
}
# Adam (Kingma & Ba 2015)
_MEMORY, _MEMORY_OF_SQUARES = 0.9, 0.999
# learning rates of the probe, relative to its largest amplitude, and of positions in pixels, for a rate of 1 rad
_PROBE_RATE, _POSITION_RATE = 1.0, 1.0
# part of the mean count that is added to counts and to intensities: it bounds the gradient where both are near 0
_SHIFT = 1e-3
# the rate is halved after this many iterations in which the loss fell by less than this part
_PATIENCE, _LEAST_DECREASE = 3, 1e-3
# first iteration after which the noise and the smoothness are estimated
_FIRST_ESTIMATE = 5
# standard deviation in pixels of the window in which the roughness is estimated, and weight of its mean over the object
_WINDOW, _OF_ALL = 2.0, 0.1
# illumination, relative to its largest, above which a pixel of the object is measured
_ILLUMINATED = 0.1


@dataclass(frozen=True)
class PtychographySettings:
    """Settings of :func:`ptychography`; see :func:`hyperspy_fusion.ptychography`."""

    loss: str = "poisson"
    refine_probe: bool = False
    refine_positions: bool = False
    max_iter: int = 200
    tol: float = 5e-4
    batch_size: int | None = None
    learning_rate: float = 0.02
    seed: int = 0

    def __post_init__(self):
        check_choice("loss", self.loss, LOSSES)
        check_choice("refine_probe", self.refine_probe, (False, True))
        check_choice("refine_positions", self.refine_positions, (False, True))
        check_count("max_iter", self.max_iter)
        check_from("tol", self.tol, 0)
        check_positive("learning_rate", self.learning_rate)
        check_seed(self.seed)
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)

    def batches(self, n, pattern_size):
        """Number of batches of n positions: eight at least, and 4 million pixels at most in one."""
        size = self.batch_size or max(1, min(n // 8, 256, 2**22 // pattern_size))
        return -(-n // size)


# ---- forward model and gradients -----------------------------------------------------------------


class Gradients(NamedTuple):
    """A loss and its derivatives; that of the complex probe is ``dL/dRe + i dL/dIm``."""

    loss: float
    phase: np.ndarray
    probe: np.ndarray
    positions: np.ndarray


class ForwardModel:
    """Diffraction patterns of a phase object.

    Parameters
    ----------
    shape
        (ny, nx) of the object, at least that of a pattern.
    window
        (ky, kx) of a pattern and of the probe, whose centre is the pixel ``size // 2``.
    num_workers
        Threads of the Fourier transforms.
    """

    def __init__(self, shape, window, num_workers=1):
        self.shape, self.window, self.num_workers = shape, window, num_workers
        self.frequencies = [np.fft.fftfreq(size) for size in window]

    def transform(self, waves) -> np.ndarray:
        return np.asarray(fft.fft2(waves, norm="ortho", workers=self.num_workers))

    def back(self, waves) -> np.ndarray:
        return np.asarray(fft.ifft2(waves, norm="ortho", workers=self.num_workers))

    def intensities(self, phase, probe, positions):
        """(n, ky, kx) patterns, zero frequency first; positions (n, 2) in pixels (y, x) of the object."""
        waves = self._probes(probe, positions)[0] * np.exp(1j * phase)[self._pixels(positions)]
        return _squared(self.transform(waves.astype(probe.dtype, copy=False)))

    def gradients(self, phase, probe, positions, patterns, loss, shift):
        """Gradients of the loss of measured patterns (n, ky, kx), NaN where there is no measurement."""
        probes, ramps, spectra = self._probes(probe, positions)
        pixels = self._pixels(positions)
        objects = np.exp(1j * phase).astype(probe.dtype, copy=False)[pixels]
        far = self.transform(probes * objects)
        value, weight = _LOSSES[loss](_squared(far), patterns, shift)
        behind = self.back(weight * far)
        # dL = 2 Re sum conj(behind) d(probe object)
        of_phase = np.zeros(self.shape, phase.dtype)
        moved = 2 * np.imag(np.conj(probes * objects) * behind)
        for j in range(len(positions)):
            of_phase[pixels[0][j], pixels[1][j]] += moved[j]
        of_probes = self.transform(2 * np.conj(objects) * behind)
        of_probe = self.back((np.conj(ramps) * of_probes).sum(axis=0))
        along = np.real(np.conj(of_probes) * -2j * np.pi * spectra)
        ky, kx = self.frequencies
        of_positions = np.stack([along.sum(axis=2) @ ky, along.sum(axis=1) @ kx], axis=1)
        return Gradients(value, of_phase, of_probe, of_positions)

    def _pixels(self, positions):
        """Indices of the pixels of each window, which wrap: (n, ky, 1) and (n, 1, kx)."""
        corners = np.rint(positions).astype(int) - np.array(self.window) // 2
        rows, columns = (
            (corner[:, None] + np.arange(size)) % full
            for corner, size, full in zip(corners.T, self.window, self.shape, strict=True)
        )
        return rows[:, :, None], columns[:, None, :]

    def _probes(self, probe, positions):
        """Probes moved by the part of a pixel, the ramps that move them, and their Fourier transforms."""
        rest = positions - np.rint(positions)
        spectrum = self.transform(probe)
        if not rest.any():
            one = np.ones((1, 1, 1), probe.dtype)
            return probe[None], one, spectrum[None]
        y, x = (np.exp(-2j * np.pi * f[:, None] * k) for f, k in zip(rest.T, self.frequencies, strict=True))
        ramps = (y[:, :, None] * x[:, None, :]).astype(probe.dtype, copy=False)
        return self.back(ramps * spectrum), ramps, ramps * spectrum


def _squared(waves):
    return waves.real**2 + waves.imag**2


def _poisson(intensities, patterns, shift):
    """The deviance of shifted Poisson counts, zero for a perfect fit, over 2; and its derivative."""
    modelled, measured = intensities + shift, patterns + shift
    ratio = measured / modelled
    terms = modelled - measured + measured * np.log(ratio)
    return float(np.nansum(terms, dtype=np.float64)), np.nan_to_num(1 - ratio)


def _amplitude(intensities, patterns, shift):
    """Twice the squared differences of amplitudes, whose variance is 1/4; and its derivative."""
    modelled, measured = np.sqrt(intensities + shift), np.sqrt(patterns + shift)
    value = 2 * np.nansum((modelled - measured) ** 2, dtype=np.float64)
    return float(value), np.nan_to_num(2 - 2 * measured / modelled)


_LOSSES = {"poisson": _poisson, "amplitude": _amplitude}


# ---- the iteration -------------------------------------------------------------------------------


class _Adam:
    """Steps by the mean of past gradients over the root of their mean square, of some entries of an array at a time."""

    def __init__(self, values):
        self.mean, self.square = np.zeros_like(values), np.zeros(values.shape, values.real.dtype)
        self.n_steps = np.zeros(len(values), int)

    def step(self, gradient, rate, at=slice(None)):
        """The step for the entries ``at`` of the first axis."""
        self.n_steps[at] += 1
        n = self.n_steps[at].reshape(-1, *[1] * (self.mean.ndim - 1))
        self.mean[at] += (1 - _MEMORY) * (gradient - self.mean[at])
        self.square[at] += (1 - _MEMORY_OF_SQUARES) * (_squared(gradient) - self.square[at])
        root = np.sqrt(self.square[at] / (1 - _MEMORY_OF_SQUARES**n)) + np.finfo(self.square.dtype).tiny ** 0.5
        step = -rate * self.mean[at] / (1 - _MEMORY**n) / root
        return step.astype(self.mean.dtype, copy=False)


@dataclass
class PtychographyState:
    """Everything that changes in a fit.

    Attributes
    ----------
    phase
        (ny, nx) in rad.
    probe
        (ky, kx), complex; its square sums to the mean counts of a pattern.
    positions
        (n, 2) in pixels (y, x) of the object.
    rate
        Learning rate.
    dispersion
        Variance of the patterns over that of counts: 1 for electrons, 0 without noise.
    smoothing
        (ny, nx) weights of the smoothness of the phase, or 0 before they are estimated.
    losses
        Loss after each iteration, that of smoothness included.
    change
        Relative change of the phase in the last iteration.
    """

    phase: np.ndarray
    probe: np.ndarray
    positions: np.ndarray
    rate: float
    dispersion: float = 1.0
    smoothing: np.ndarray | float = 0.0
    losses: list = field(default_factory=list)
    change: float = np.inf
    reason: StopReason = StopReason.NOT_CONVERGED

    @property
    def n_iter(self):
        return len(self.losses)

    @property
    def message(self):
        """Why it stopped, as a sentence."""
        return _MESSAGES[self.reason]


def ptychography(patterns, positions, probe, shape, settings=None, callback=None, num_workers=1):
    """Fit the phase of an object to its diffraction patterns.

    Minimises over the phase ``V``, and where asked for over the probe and the positions::

        sum_j L(I_j, y_j) / d + 1/2 sum_x w(x) [D V(x)]^2,    D the Laplacian

    The loss L is half the Poisson deviance, or twice the squared differences of the amplitudes, which is its
    approximation for many counts. Each step is one of Adam by the exact gradient of a batch of positions. The rate is
    halved where the loss stagnates.

    The dispersion d, the variance over that of counts, and the weights w of smoothness are estimated after each
    iteration: ``d = sum (y - I)^2 / sum I``, and w by the evidence of a phase whose D V is normal with the variance
    ``1 / w`` (MacKay, Neural Computation 4, 415, 1992)::

        w = (1 - w trace [D^2 (f / d + w D^2)^-1] / n) / mean (D V)^2

    with the Fisher information f of a pixel, which is the variance of the gradient under simulated counts. The mean is
    one over a window around each pixel, so that edges are smoothed less than flat parts. Data without noise have
    ``d = 0``: no smoothness is imposed.

    Parameters
    ----------
    patterns
        (n, ky, kx) real, zero frequency first; NaN where there is no measurement.
    positions
        (n, 2) of the probe in pixels (y, x) of the object.
    probe
        (ky, kx) complex, its centre at the pixel ``size // 2``. Its dtype is that of the fit.
    shape
        (ny, nx) of the object, at least that of a pattern; windows wrap.
    settings
        Of :class:`PtychographySettings`.
    callback
        Called with the state after every iteration; may raise ``StopIteration`` to stop.
    num_workers
        Threads of the Fourier transforms.

    Returns
    -------
    PtychographyState

    Raises
    ------
    KeyboardInterrupt
        For Ctrl-C before the first iteration. Later, the phase of the last complete iteration is returned.
    """
    settings = PtychographySettings() if settings is None else settings
    real = probe.real.dtype
    patterns = patterns.astype(real, copy=False)
    model = ForwardModel(shape, probe.shape, num_workers)
    # the probe has the counts of a pattern, also where some pixels are not measured
    measured = np.isfinite(patterns).sum(axis=0) * _squared(model.transform(probe).astype(complex))
    scale = np.nansum(patterns, dtype=np.float64) / measured.sum()
    counts = scale * np.sum(_squared(probe), dtype=np.float64)
    start = (probe * np.sqrt(scale)).astype(probe.dtype)
    state = PtychographyState(np.zeros(shape, real), start, np.array(positions, np.float64), settings.learning_rate)
    fit = _Fit(model, patterns, settings, state, counts)
    with Interruption() as interruption, np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for _ in range(settings.max_iter):
            before = state.phase.copy(), state.probe.copy(), state.positions.copy()
            if not fit.iterate(interruption):
                state.phase, state.probe, state.positions = before
                state.reason = StopReason.INTERRUPTED
                break
            if not np.isfinite(state.losses[-1]):
                state.reason = StopReason.NOT_FINITE
                break
            state.change = relative_change(state.phase, before[0])
            stop = asked_to_stop(callback, state)
            if stop is None and state.change <= settings.tol:
                stop = StopReason.CONVERGED
            if stop is not None:
                state.reason = stop
                break
    if state.reason is StopReason.INTERRUPTED and not state.n_iter:
        raise KeyboardInterrupt
    return state


def relative_change(phase, before):
    """Standard deviation of the change of a phase, relative to that of the phase."""
    size = np.std(phase, dtype=np.float64)
    change = np.std(phase - before, dtype=np.float64)
    return float(change / size) if size else 0.0 if not change else np.inf


class _Fit:
    """One call: data, moments of Adam and the rule for the rate."""

    def __init__(self, model, patterns, settings, state, counts):
        self.model, self.patterns, self.settings, self.state = model, patterns, settings, state
        self.rng = np.random.default_rng(settings.seed)
        self.shift = patterns.dtype.type(_SHIFT * counts / patterns[0].size)
        self.moments = {name: _Adam(getattr(state, name)) for name in ("phase", "probe", "positions")}
        self.probe_rate = _PROBE_RATE * float(np.abs(state.probe).max())
        self.best, self.stagnant = np.inf, 0
        eigenvalues = [2 - 2 * np.cos(2 * np.pi * np.fft.fftfreq(size)) for size in model.shape]
        self.roughness = np.add.outer(*eigenvalues) ** 2  # eigenvalues of the squared Laplacian
        self.measured = self._measured_pixels()

    def iterate(self, interruption):
        """One pass over all positions; False where it was interrupted."""
        state, settings = self.state, self.settings
        order = self.rng.permutation(len(self.patterns))
        total = 0.0
        for chosen in np.array_split(order, settings.batches(len(order), self.patterns[0].size)):
            if interruption.requested:
                return False
            total += self._step(np.sort(chosen))
        smooth = laplace(state.phase, mode="wrap")
        penalty = 0.5 * state.dispersion * float(np.sum(state.smoothing * smooth**2, dtype=np.float64))
        state.losses.append(total + penalty)
        if state.n_iter >= _FIRST_ESTIMATE:
            self._estimate_noise_and_smoothness(np.sort(chosen), smooth)
        self._lower_rate(state.losses[-1])
        return True

    def _step(self, chosen):
        """Step by the gradient of some positions; their loss before it."""
        state, settings = self.state, self.settings
        part = len(self.patterns) / len(chosen)
        found = self.model.gradients(
            state.phase, state.probe, state.positions[chosen], self.patterns[chosen], settings.loss, self.shift
        )
        gradient = part * found.phase
        weights = state.dispersion * state.smoothing
        if np.any(weights):
            gradient += laplace(weights * laplace(state.phase, mode="wrap"), mode="wrap")
        state.phase += self.moments["phase"].step(gradient, state.rate)
        if settings.refine_probe:
            state.probe += self.moments["probe"].step(part * found.probe, state.rate * self.probe_rate)
        if settings.refine_positions:
            rate = state.rate * _POSITION_RATE
            state.positions[chosen] += self.moments["positions"].step(found.positions, rate, chosen)
        return found.loss

    def _estimate_noise_and_smoothness(self, chosen, smooth):
        state = self.state
        positions, measured = state.positions[chosen], self.patterns[chosen]
        modelled = self.model.intensities(state.phase, state.probe, positions)
        residual = np.nansum((measured - modelled) ** 2, dtype=np.float64)
        state.dispersion = float(residual / modelled.sum(dtype=np.float64, where=np.isfinite(measured)))
        drawn = np.where(np.isfinite(measured), self.rng.poisson(modelled), np.nan).astype(measured.dtype)
        scatter = self.model.gradients(state.phase, state.probe, positions, drawn, self.settings.loss, self.shift)
        part, n = len(self.patterns) / len(chosen), np.count_nonzero(self.measured)
        precision = part * np.sum(scatter.phase**2, dtype=np.float64) / (n * max(state.dispersion, 1e-30))
        determined = 1 - self._undetermined(state.smoothing, max(precision, 1e-30))
        state.smoothing = (determined / self._local_mean(smooth**2)).astype(state.phase.dtype)

    def _undetermined(self, weights, precision):
        """The part of D V that follows from smoothness and not from patterns, for each weight; 0 to 1."""
        if not np.any(weights):
            return 0.0
        nodes = np.geomspace(weights.min(), weights.max(), 16)
        parts = [np.mean(node * self.roughness / (precision + node * self.roughness)) for node in nodes]
        return np.interp(weights, nodes, parts)

    def _local_mean(self, squares):
        """Means over windows of measured pixels, drawn to the mean of all, which is that of pixels far from them."""
        mean = float(np.mean(squares, where=self.measured, dtype=np.float64)) + 1e-30
        near, pixels = (
            gaussian_filter(values, _WINDOW, mode="wrap")
            for values in (np.where(self.measured, squares, 0).astype(float), self.measured.astype(float))
        )
        return (near + _OF_ALL * mean) / (pixels + _OF_ALL)

    def _measured_pixels(self):
        """(ny, nx), True where the probe passed over."""
        window = _squared(self.state.probe)
        light = np.zeros(self.model.shape, window.dtype)
        rows, columns = self.model._pixels(self.state.positions)
        for row, column in zip(rows, columns, strict=True):
            light[row, column] += window
        return light > _ILLUMINATED * light.max()

    def _lower_rate(self, loss):
        self.stagnant = 0 if loss < self.best * (1 - _LEAST_DECREASE) else self.stagnant + 1
        self.best = min(self.best, loss)
        if self.stagnant >= _PATIENCE:
            self.state.rate, self.stagnant = self.state.rate / 2, 0
