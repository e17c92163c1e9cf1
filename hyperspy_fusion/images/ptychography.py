"""Ptychography of a 4D-STEM scan: signals in and out of :mod:`hyperspy_fusion.fusion.solvers.ptychography`."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

from hyperspy_fusion._progress import counted
from hyperspy_fusion.diagnostics import Diagnostic, as_metadata, report
from hyperspy_fusion.fusion.checks import (
    SMALLEST,
    check_choice,
    check_from,
    check_positive,
    check_workers,
    default_errstate,
)
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.solvers.phaser_engine import by_phaser, check_installed, check_options, measured_in_all
from hyperspy_fusion.fusion.solvers.ptychography import PtychographySettings
from hyperspy_fusion.fusion.solvers.ptychography import ptychography as fitted
from hyperspy_fusion.fusion.terms.haadf_model import ceiling_of
from hyperspy_fusion.images.patterns import Patterns, computed, wavelength

GRIDS = ("scan", "object")
ENGINES = ("adam", "phaser")
# part of its diameter by which neighbouring probes should overlap
LEAST_OVERLAP = 0.6
# part of the counts in pixels that not all patterns have: without a sentence, and too much for phaser
NEGLIGIBLE_LOSS, LARGEST_LOSS = 0.05, 0.75
# radius of a disc over that of the circle that holds 90 % of it
_DISC = 1 / np.sqrt(0.9)


@default_errstate
def ptychography(
    s4d: Any,
    *,
    energy: float | None = None,
    convergence_angle: float | None = None,
    defocus: float = 0.0,
    probe: Any = None,
    positions: Any = None,
    rotation: float = 0.0,
    centre: tuple[float, float] | None = None,
    grid: str = "scan",
    loss: str = "poisson",
    refine_probe: bool = False,
    refine_positions: bool = False,
    max_iter: int = 200,
    tol: float = 5e-4,
    batch_size: int | None = None,
    learning_rate: float = 0.02,
    seed: int = 0,
    engine: str = "adam",
    engine_options: dict | None = None,
    callback: Any = None,
    show_progressbar: bool | None = None,
    num_workers: int | None = None,
) -> Any:
    """
    Phase of a thin specimen from the overlapping diffraction patterns of a 4D-STEM scan.

    The pattern is modelled as the Fourier transform of the probe times ``exp(i phase)``. The phase is fitted by
    mini-batches of positions and Adam, with exact gradients. A smoothness of the phase, whose weights follow from
    the noise of the patterns, keeps noise down. Ctrl-C ends the fit and keeps the phase of the last complete iteration.

    Parameters
    ----------
    s4d : BaseSignal
        Patterns ``(x, y|kx, ky)`` with calibrated axes: the scan in a length, the patterns in 1/length or in an angle.
        Lazy ones are read into memory as single precision. Not changed.
    energy : float, optional
        Beam energy in keV; None for that of the metadata.
    convergence_angle : float, optional
        Half angle in mrad; None for that of the metadata.
    defocus : float
        In nm, above 0 for underfocus: the beam is focused behind the specimen.
    probe : array or BaseSignal, optional
        Complex wave ``(ky, kx)`` in place of an aberration-free one, in a field of the size of 1 over the pixel of the
        patterns, with its centre at the pixel ``size // 2``.
    positions : array, optional
        ``(ny, nx, 2)`` or ``(ny * nx, 2)`` in nm (y, x) along the axes of the detector, in place of those of the axes.
    rotation : float
        Angle in degrees from the x axis of the detector to that of the scan, in the sense from x to y.
    centre : tuple of float, optional
        Centre (x, y) of the patterns in units of their axes; see :func:`hyperspy_fusion.virtual_image`.
    grid : {"scan", "object"}
        ``"scan"`` brings the phase to the pixels of the scan, to be fused. ``"object"`` keeps its own, finer pixels,
        along the axes of the detector.
    loss : {"poisson", "amplitude"}
        Counts, or their square roots, are compared. ``"poisson"`` is better for few counts.
    refine_probe, refine_positions : bool
        Fit the probe or the positions with the phase.
    max_iter : int
        Passes over all patterns, at most.
    tol : float
        The fit ends when the relative change of the phase in one pass is below it.
    batch_size : int, optional
        Patterns in one step; None chooses it.
    learning_rate : float
        Size of the first steps in rad. It is halved where the loss stagnates.
    seed : int
        Of the order of the patterns, 0 or more.
    engine : {"adam", "phaser"}
        ``"phaser"`` fits by the package phaserEM, for thick specimens and partial coherence. It needs the extra
        ``ptychography``, smooths nothing, and has no learning rate.
    engine_options : dict, optional
        For ``"phaser"``: fields of its conventional engine, lengths in Angstrom, such as ``{"probe_modes": 4,
        "slices": {"n": 4, "slice_thickness": 20.0}}``.
    callback : callable, optional
        Called with the state of the solver after every pass. It may raise ``StopIteration``.
    show_progressbar : bool, optional
        None follows HyperSpy's preference.
    num_workers : int, optional
        Threads; None for all.

    Returns
    -------
    Signal2D
        The phase in rad, of mean 0 (it is known up to a constant). ``metadata.Ptychography`` has the settings, the
        loss history, the reason of the end, and the probe and the positions where they were fitted.

    Raises
    ------
    ValueError
        A calibration is missing, or positions, probe and patterns do not match. Of phaser: options that it does not
        take, and pixels missing in so many patterns that few are left.
    ImportError
        ``engine="phaser"`` without the package phaserEM.

    Examples
    --------
    >>> phase = hyperspy_fusion.ptychography(s4d, convergence_angle=21.4)  # doctest: +SKIP
    >>> fused = eds.fuse([haadf, phase])  # doctest: +SKIP

    Notes
    -----
    For thin specimens and a coherent beam. See the page on 4D-STEM for other packages.
    """
    settings = PtychographySettings(
        loss, refine_probe, refine_positions, max_iter, tol, batch_size, learning_rate, seed
    )
    check_choice("grid", grid, GRIDS)
    _check_engine(engine, engine_options, settings)
    check_workers(num_workers)
    check_from("rotation", abs(rotation), 0)
    patterns = Patterns.of(s4d)
    microscope = _Microscope(patterns, energy, convergence_angle, defocus)
    where = _positions(patterns, positions, rotation) / microscope.pixel
    found = patterns.centre(centre, None, show_progressbar)
    wave = _given_probe(probe, patterns) if probe is not None else microscope.probe()
    overlap, diagnostics = _overlap(wave, where, patterns.scan)
    data, about_data = _counts(patterns, np.rint(found).astype(int), show_progressbar)
    about_data += _left_out(data) if engine == "phaser" else []
    ramp = _ramp(wave.shape, found - np.rint(found))
    window, first = np.array(wave.shape), where.min(axis=0)
    where, shape = where - np.floor(first) + window // 2, np.ceil(where.max(axis=0) - np.floor(first)).astype(int)
    with counted("Ptychography", "iteration", show_progressbar, total=max_iter) as tick:
        problem = data, where, (wave * ramp).astype(np.complex64), tuple(shape + window), settings
        call = _both(tick, callback)
        if engine == "adam":
            state = fitted(*problem, callback=call, num_workers=-1 if num_workers is None else num_workers)
        else:
            lengths = 10 * np.abs(microscope.pixel), 10 * microscope.wavelength
            state = by_phaser(*problem, *lengths, engine_options, call)
    if state.reason is StopReason.NOT_FINITE:
        raise FloatingPointError(state.message)
    diagnostics += about_data + _about_the_end(state)
    report(diagnostics)
    image = (_on_scan if grid == "scan" else _on_object)(patterns, state, microscope)
    image.metadata.Signal.quantity = "Phase ($rad$)"
    node = {
        "version": version("hyperspy_fusion"),
        "engine": engine if engine == "adam" else f"{engine} {version('phaserEM')}",
        "parameters": {key: value for key, value in asdict(settings).items() if value is not None},
        **microscope.metadata(),
        "rotation": float(rotation),
        "overlap": overlap,
        "cost_history": np.array(state.losses),
        "n_iter": state.n_iter,
        "converged": state.reason is StopReason.CONVERGED,
        "stop_reason": state.message,
        "dispersion": state.dispersion,
        "smoothing": float(np.mean(state.smoothing)),
        "diagnostics": as_metadata(diagnostics),
    }
    if refine_probe:
        wave = state.probe * np.conj(ramp)  # as probe= takes it
        node |= {"probe_real": np.real(wave).copy(), "probe_imag": np.imag(wave).copy()}
    if refine_positions:
        y, x = ((state.positions - window // 2 + np.floor(first)) * microscope.pixel).T
        node |= {"positions_y": y, "positions_x": x}
    image.metadata.set_item("Ptychography", node)
    return image


def _check_engine(engine, options, settings):
    check_choice("engine", engine, ENGINES)
    if engine == "phaser":
        check_installed()
        if settings.refine_positions:
            raise ValueError("refine_positions is True, which engine='phaser' cannot do: pass engine='adam' for it.")
        check_options(options, settings)
    elif options:
        raise ValueError(f"engine_options is {options!r}, which is for phaser: pass engine='phaser' too.")


def _both(tick, callback):
    def call(state):
        tick()
        if callback is not None:
            callback(state)

    return call


# ---- what is known before the fit ----------------------------------------------------------------


class _Microscope:
    """Energy in keV, convergence angle in mrad, defocus and pixel of the object in nm, that of the patterns in 1/nm.

    The pixel of the object has the signs of the scales of the patterns.
    """

    def __init__(self, patterns, energy, angle, defocus):
        self.energy = patterns.microscope("beam_energy", energy)
        if self.energy is None:
            raise ValueError("The beam energy is unknown: pass energy= in keV.")
        check_positive("energy", self.energy)
        self.angle = patterns.microscope("convergence_angle", angle)
        if self.angle is not None:
            check_positive("convergence_angle", self.angle)
        check_from("defocus", abs(defocus), 0)
        self.defocus, self.wavelength = float(defocus), wavelength(self.energy)
        signed = patterns.frequencies_per_pixel(self.energy)
        if signed is None or not signed.all():
            raise ValueError(
                "The pixel size of the patterns is unknown: set scale and units, such as '1/nm' or 'mrad', of "
                "`s.axes_manager.signal_axes`."
            )
        if patterns.steps() is None:
            raise ValueError(
                "The step of the scan is unknown: set scale and units, such as 'nm', of "
                "`s.axes_manager.navigation_axes`."
            )
        self.shape = tuple(axis["size"] for axis in patterns.detector)
        self.frequency = np.abs(signed)
        self.pixel = 1 / (np.array(self.shape) * signed)

    def probe(self):
        """The aberration-free probe (ky, kx) but for the defocus, its centre at ``size // 2``."""
        if self.angle is None:
            raise ValueError("The convergence angle is unknown: pass convergence_angle= in mrad, or probe=.")
        disc = self.angle * 1e-3 / self.wavelength
        half = self.frequency * (np.array(self.shape) // 2)
        if disc > half.min():
            raise ValueError(
                f"The bright-field disc of {self.angle:g} mrad is larger than the patterns, which reach "
                f"{half.min() * self.wavelength * 1e3:.3g} mrad: correct convergence_angle or the scale of the axes."
            )
        field = 1 / self.frequency
        diameter = 2 * self.angle * 1e-3 * abs(self.defocus) + 1.22 / disc
        if diameter > field.min():
            raise ValueError(
                f"The probe, {diameter:.3g} nm wide, is larger than the field of {field.min():.3g} nm that the pixels "
                "of the patterns resolve: correct defocus, or bin the patterns less."
            )
        ky, kx = (
            np.fft.fftfreq(size, 1 / size) * pixel for size, pixel in zip(self.shape, self.frequency, strict=True)
        )
        square = ky[:, None] ** 2 + kx[None] ** 2
        # the edge of the aperture is one pixel wide
        aperture = np.clip((disc - np.sqrt(square)) / self.frequency.max() + 0.5, 0, 1)
        wave = aperture * np.exp(1j * np.pi * self.wavelength * self.defocus * square)
        return np.fft.fftshift(np.fft.ifft2(wave))

    def metadata(self):
        known = {"energy": float(self.energy), "defocus": self.defocus}
        return known if self.angle is None else known | {"convergence_angle": float(self.angle)}


def _given_probe(probe, patterns):
    wave = np.asarray(probe.data if hasattr(probe, "axes_manager") else probe)
    shape = tuple(axis["size"] for axis in patterns.detector)
    if wave.shape != shape:
        larger = "larger than" if wave.ndim == 2 and any(np.greater(wave.shape, shape)) else "not like"
        raise ValueError(
            f"The probe has the shape {wave.shape}, {larger} that of the patterns, {shape}: pass the complex wave on "
            "as many pixels as a pattern has."
        )
    if not np.isfinite(wave).all() or not wave.any():
        raise ValueError("The probe must be finite, and not zero everywhere: pass the complex wave.")
    return wave.astype(complex)


def _positions(patterns, given, rotation):
    """(n, 2) positions (y, x) in nm along the axes of the detector."""
    shape = tuple(axis["size"] for axis in patterns.scan)
    if given is None:
        y, x = np.indices(shape).reshape(2, -1) * patterns.steps()[:, None]
        angle = np.deg2rad(rotation)
        return np.stack([y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)], axis=1)
    found = np.asarray(given, float)
    if found.size != 2 * np.prod(shape) or found.shape[-1] != 2:
        raise ValueError(
            f"positions has the shape {found.shape}, and there are {shape[0]} x {shape[1]} patterns: pass one position "
            f"(y, x) in nm for each, ({shape[0]}, {shape[1]}, 2)."
        )
    if not np.isfinite(found).all():
        raise ValueError("positions has numbers that are NaN or infinite: pass a finite position for each pattern.")
    return found.reshape(-1, 2)


def _overlap(wave, positions, scan):
    """The part of its diameter by which the probe overlaps its neighbours, and what is to be reported of it."""
    intensity = np.abs(wave) ** 2
    y, x = (np.arange(size) - size // 2 for size in wave.shape)
    radius = np.hypot(y[:, None], x[None]).ravel()
    order = np.argsort(radius)
    within = np.cumsum(intensity.ravel()[order])
    diameter = 2 * _DISC * max(radius[order][np.searchsorted(within, 0.9 * within[-1])], 0.5)
    grid = positions.reshape(*(axis["size"] for axis in scan), 2)
    steps = [np.hypot(*np.moveaxis(np.diff(grid, axis=axis), -1, 0)) for axis in (0, 1) if grid.shape[axis] > 1]
    step = max((float(np.median(each)) for each in steps), default=0.0)
    overlap = float(1 - step / diameter)
    if overlap >= LEAST_OVERLAP:
        return overlap, []
    sentence = (
        f"Neighbouring probes overlap by {max(overlap, 0):.0%} of their diameter, and at least {LEAST_OVERLAP:.0%} is "
        "needed for a reliable phase: use a smaller step or more defocus."
    )
    return overlap, [Diagnostic("little-overlap", sentence)]


def _ramp(shape, rest):
    """Moves patterns by a part of a pixel: their centre lies between pixels."""
    y, x = (
        np.exp(2j * np.pi * part * (np.arange(size) - size // 2) / size) for size, part in zip(shape, rest, strict=True)
    )
    return y[:, None] * x[None]


def _counts(patterns, centre, show_progressbar):
    """(n, ky, kx) float32 patterns, zero frequency first, NaN where saturated; and diagnostics."""
    data = patterns.data
    data = computed(data.astype(np.float32), show_progressbar) if patterns.signal._lazy else data.astype(np.float32)
    data = np.roll(data.reshape(-1, *data.shape[2:]), (-centre).tolist(), axis=(1, 2))
    data[~np.isfinite(data)] = np.nan
    np.maximum(data, 0, out=data)  # NaN stays
    if not np.nansum(data, dtype=np.float64) > SMALLEST:
        raise ValueError(f"{patterns.signal} has no counts: patterns with counts are needed.")
    ceiling = ceiling_of(*np.unique(data[data > np.nanmax(data) / 2], return_counts=True))
    at_ceiling = data >= ceiling
    number = np.count_nonzero(at_ceiling)
    if not number:
        return data, []
    data[at_ceiling] = np.nan
    sentence = (
        f"{number} pixels of the patterns are saturated, at {ceiling:g}, and are left out: record with a shorter dwell "
        "time or a lower current if there are many."
    )
    return data, [Diagnostic("saturated-patterns", sentence)]


def _left_out(data):
    """What there is to be reported of pixels that some patterns have and not all, by the part of the counts in them."""
    number = np.isfinite(data).sum(axis=0)
    means = np.nansum(data, axis=0) / np.maximum(number, 1)
    lost = 1 - float(means[measured_in_all(data)].sum() / means.sum())
    if lost <= NEGLIGIBLE_LOSS:
        return []
    sentence = f"Pixels that are missing or saturated in some patterns hold {lost:.0%} of the counts, and phaser "
    if lost > LARGEST_LOSS:
        raise ValueError(f"{sentence}leaves them out of all patterns: pass engine='adam', or fill these pixels in.")
    remedy = "left them out of all patterns: compare with engine='adam', which uses them where they are measured."
    return [Diagnostic("patterns-incomplete", sentence + remedy)]


def _about_the_end(state):
    if state.reason is StopReason.CONVERGED:
        return []
    return [Diagnostic(state.reason.name.lower().replace("_", "-"), state.message)]


# ---- the phase on a grid -------------------------------------------------------------------------


def _map_of_scan(patterns, state):
    """Positions (2,) of the first pixel of the scan in pixels of the object, and (2, 2) of the steps in y and x."""
    index = np.indices([axis["size"] for axis in patterns.scan]).reshape(2, -1).T
    design = np.column_stack([np.ones(len(index)), index])
    first, *steps = np.linalg.lstsq(design, state.positions, rcond=None)[0]
    return first, np.array(steps)


def _on_scan(patterns, state, microscope):
    """Means of the phase over the pixels of the scan."""
    from scipy.ndimage import map_coordinates

    first, steps = _map_of_scan(patterns, state)
    ny, nx = (axis["size"] for axis in patterns.scan)
    parts = max(1, int(np.ceil(2 * np.abs(steps).max())))
    inner = (np.arange(parts) + 0.5) / parts - 0.5
    mean = np.zeros((ny, nx))
    for a in inner:
        for b in inner:
            y, x = np.arange(ny)[:, None] + a, np.arange(nx)[None] + b
            at = [first[axis] + y * steps[0, axis] + x * steps[1, axis] for axis in (0, 1)]
            mean += map_coordinates(state.phase.astype(float), at, order=1, mode="nearest")
    return patterns.image(_centred(mean / parts**2), "Phase")


def _on_object(patterns, state, microscope):
    """The phase on its own pixels, cropped to those that the probe passed over."""
    first, _ = _map_of_scan(patterns, state)
    low, high = np.floor(state.positions.min(axis=0)).astype(int), np.ceil(state.positions.max(axis=0)).astype(int) + 1
    phase = state.phase[low[0] : high[0], low[1] : high[1]]
    axes = []
    for axis, size, pixel, start, at in zip(patterns.scan, phase.shape, microscope.pixel, low, first, strict=True):
        scale = pixel * axis["scale"] / patterns.steps()[len(axes)]
        axes.append({**axis, "size": size, "scale": scale, "offset": axis["offset"] + (start - at) * scale})
    return patterns.image(_centred(phase.astype(float)), "Phase", axes)


def _centred(image):
    return image - image.mean()
