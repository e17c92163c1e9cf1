"""Ptychography: the phase of a known object, time and quality beside PyTorch, and an independent simulation.

    python -m benchmarks.ptychography

The first part is a 64 x 64 phase object of 0.4 rad with a defocused 64 x 64 probe at 256 positions: atoms and a
photograph, without noise and with 1e4 electrons for each position, and further photographs with noise. PyTorch (extra
``bench``) runs a loop of the same model with its own gradients and its own Adam. The second part is a multislice
simulation that shares no code with the package: a film of atoms, 2.4 nm thick.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np

SIZE, STEP, PHASE, ELECTRONS = 64, 4, 0.4, 1e4
CLEAN_BAR, SSIM_BAR, NOISY_BAR, SECONDS_BAR = 60.0, 0.999, 26.0, 60.0
PHOTOGRAPHS = ("astronaut", "coins", "moon", "grass", "chelsea", "rocket", "checkerboard")
PHASE_BAR, ADF_BAR = 0.95, 0.98


# ---- the known object ----------------------------------------------------------------------------


def atoms(seed=0):
    """(64, 64) phase of 25 atoms of a width of 2 pixels, on a torus."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    phase = np.zeros((SIZE, SIZE))
    for _ in range(25):
        dy, dx = ((g - c + SIZE / 2) % SIZE - SIZE / 2 for g, c in zip((y, x), rng.uniform(0, SIZE, 2), strict=True))
        phase += rng.uniform(0.3, 1) * np.exp(-(dy**2 + dx**2) / (2 * 2.0**2))
    return PHASE * phase / phase.max()


def photograph(name="camera"):
    """(64, 64) phase of the middle of a photograph, which is less smooth than atoms are."""
    import skimage
    from skimage.transform import resize

    image = getattr(skimage.data, name)().astype(float)
    image = image.mean(axis=2) if image.ndim == 3 else image
    y, x = ((size - min(image.shape)) // 2 for size in image.shape)
    image = resize(image[y : y + min(image.shape), x : x + min(image.shape)], (SIZE, SIZE), anti_aliasing=True)
    return PHASE * (image - image.min()) / np.ptp(image)


def defocused_probe(semiangle=0.15, defocus=150.0):
    """(64, 64) wave with an aperture in 1/pixel and a defocus in square pixels."""
    k = np.fft.fftfreq(SIZE)
    radius = np.hypot(k[:, None], k[None])
    wave = np.exp(-1j * np.pi * defocus * radius**2) / (1 + np.exp((radius - semiangle) / 0.005))
    return np.fft.fftshift(np.fft.ifft2(wave))


def scan_positions():
    line = np.arange(0, SIZE, STEP)
    return np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)


def simulated(phase, probe, electrons):
    """Patterns by a loop over positions, zero frequency first."""
    probe = probe * np.sqrt(electrons / np.sum(np.abs(probe) ** 2))
    waves = np.exp(1j * phase)
    moved = [np.roll(waves, (SIZE // 2 - y, SIZE // 2 - x), axis=(0, 1)) for y, x in scan_positions()]
    return np.array([np.abs(np.fft.fft2(probe * one)) ** 2 for one in moved]) / SIZE**2


def quality(phase, truth):
    """PSNR in dB and SSIM, the constant removed."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    phase = phase.astype(float) - phase.mean() + truth.mean()
    options = {"data_range": PHASE}
    return peak_signal_noise_ratio(truth, phase, **options), structural_similarity(truth, phase, **options)


def ours(patterns, probe, **settings):
    """The phase, seconds and iterations of this package."""
    from hyperspy_fusion.fusion.solvers.ptychography import PtychographySettings, ptychography

    start = time.perf_counter()
    where, shape = scan_positions().astype(float), (SIZE, SIZE)
    state = ptychography(
        patterns, where, probe.astype(np.complex64), shape, PtychographySettings(**settings), num_workers=2
    )
    return state.phase, time.perf_counter() - start, state.n_iter


def by_torch(patterns, probe, iterations, rate=0.02, batches=8):
    """The phase and seconds of a loop of PyTorch with the Poisson loss; None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(2)
    start = time.perf_counter()
    counts = torch.tensor(patterns, dtype=torch.float32)
    scale = np.sqrt(patterns.sum((1, 2)).mean() / np.sum(np.abs(probe) ** 2))
    wave = torch.tensor(probe * scale, dtype=torch.complex64)
    index = (scan_positions()[:, :, None] - SIZE // 2 + np.arange(SIZE)) % SIZE
    rows, columns = (torch.tensor(index[:, axis]) for axis in (0, 1))
    phase = torch.zeros((SIZE, SIZE), requires_grad=True)
    adam = torch.optim.Adam([phase], lr=rate)
    slower = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, factor=0.5, patience=2, threshold=1e-3)
    shift = 1e-3 * float(counts.mean())
    torch.manual_seed(0)
    for _ in range(iterations):
        total = 0.0
        for chosen in torch.randperm(len(counts)).chunk(batches):
            adam.zero_grad()
            windows = torch.exp(1j * phase)[rows[chosen][:, :, None], columns[chosen][:, None, :]]
            modelled = torch.fft.fft2(wave * windows, norm="ortho").abs() ** 2 + shift
            measured = counts[chosen] + shift
            loss = (modelled - measured + measured * torch.log(measured / modelled)).sum()
            loss.backward()
            adam.step()
            total += loss.item()
        slower.step(total)
    return phase.detach().numpy(), time.perf_counter() - start


def report_object(name, truth):
    """Print figures of an object; whether its bars are met."""
    probe = defocused_probe()
    clean = simulated(truth, probe, ELECTRONS)
    noisy = np.random.default_rng(0).poisson(clean)
    cases = [
        ("no noise", clean, {}, (CLEAN_BAR, SSIM_BAR)),
        ("1e4 electrons", noisy, {}, (NOISY_BAR, 0)),
        ("  amplitude loss", noisy, {"loss": "amplitude"}, None),
    ]
    met = []
    print(f"\n{name}")
    for label, patterns, options, bars in cases:
        phase, seconds, iterations = ours(patterns, probe, **options)
        psnr, ssim = quality(phase, truth)
        verdict = ""
        if bars:
            met.append(psnr >= bars[0] and ssim >= bars[1] and seconds <= SECONDS_BAR)
            verdict = f"   bar {bars[0]:.0f} dB   {'PASS' if met[-1] else 'FAIL'}"
        print(f"  {label:18s} {psnr:6.2f} dB   SSIM {ssim:.5f}   {iterations:3d} its   {seconds:5.1f} s{verdict}")
        if not options:
            found = by_torch(patterns, probe, iterations)
            if found is None:
                print("    PyTorch is absent: install the extra bench")
                continue
            psnr, ssim = quality(found[0], truth)
            print(f"    by PyTorch       {psnr:6.2f} dB   SSIM {ssim:.5f}   {iterations:3d} its   {found[1]:5.1f} s")
    return met


def report_photographs():
    """Print figures of further photographs, with noise."""
    print("\n1e4 electrons, photographs")
    for name in PHOTOGRAPHS:
        truth = photograph(name)
        noisy = np.random.default_rng(0).poisson(simulated(truth, defocused_probe(), ELECTRONS))
        phase, seconds, iterations = ours(noisy, defocused_probe())
        psnr, ssim = quality(phase, truth)
        print(f"  {name:18s} {psnr:6.2f} dB   SSIM {ssim:.5f}   {iterations:3d} its   {seconds:5.1f} s")


# ---- the independent simulation ------------------------------------------------------------------

CELL, GRID, SLICES, THICKNESS = 25.6, 128, 6, 24.0  # Angstrom, pixels, slices, Angstrom
KEV, MRAD, DEFOCUS = 200.0, 20.0, 200.0
POINTS, SCAN_STEP, KEPT, DETECTOR = 20, 0.8, 80, (24.0, 38.0)
WAVELENGTH = 0.0250793  # Angstrom at 200 kV
INTERACTION = 7.2884e-4  # rad per volt and Angstrom at 200 kV


def potentials(seed=0):
    """(slices, ny, nx) projected potentials in V Angstrom of screened nuclei: a film of carbon with Si and Ti atoms."""
    from scipy.special import k0

    rng = np.random.default_rng(seed)
    pixels = (np.arange(GRID) + 0.0) * CELL / GRID
    slices = np.zeros((SLICES, GRID, GRID))
    for number, count in ((6, 500), (14, 30), (22, 12)):
        for where in rng.uniform(0, 1, (count, 3)):
            y, x = ((pixels - CELL * part + CELL / 2) % CELL - CELL / 2 for part in where[:2])
            radius = np.sqrt(y[:, None] ** 2 + x[None] ** 2 + 0.15**2)
            screening = 0.885 * 0.529 * number ** (-1 / 3)
            slices[int(where[2] * SLICES)] += 2 * number * 14.4 * k0(radius / screening)
    return slices


def multislice(slices):
    """Patterns (y, x, ky, kx), zero frequency in the middle, of one electron each, on the grid of the simulation."""
    k = np.fft.fftfreq(GRID, CELL / GRID)
    square = k[:, None] ** 2 + k[None] ** 2
    band = np.sqrt(square) < 2 / 3 * k.max()
    propagator = band * np.exp(-1j * np.pi * WAVELENGTH * THICKNESS / SLICES * square)
    passed = [np.fft.ifft2(band * np.fft.fft2(np.exp(1j * INTERACTION * one))) for one in slices]
    aperture = np.sqrt(square) * WAVELENGTH < MRAD * 1e-3
    # C1 = -defocus: underfocus is positive
    lens = aperture * np.exp(1j * np.pi * WAVELENGTH * DEFOCUS * square)
    patterns = np.empty((POINTS, POINTS, GRID, GRID))
    for row in range(POINTS):
        for column in range(POINTS):
            y, x = (4 + SCAN_STEP * number for number in (row, column))
            wave = np.fft.ifft2(lens * np.exp(-2j * np.pi * (k[:, None] * y + k[None] * x)))
            wave /= np.linalg.norm(wave)
            for one in passed:
                wave = np.fft.ifft2(propagator * np.fft.fft2(one * wave))
            patterns[row, column] = np.abs(np.fft.fftshift(np.fft.fft2(wave, norm="ortho"))) ** 2
    return patterns


def signal_of(patterns, electrons, seed=0):
    """The patterns as a detector of KEPT x KEPT pixels counts them, without noise for None."""
    import hyperspy.api as hs

    cut = slice((GRID - KEPT) // 2, (GRID + KEPT) // 2)
    data = patterns[:, :, cut, cut]
    if electrons is not None:
        data = np.random.default_rng(seed).poisson(electrons * data).astype(np.uint16)
    signal = hs.signals.Signal2D(data)
    for axis in signal.axes_manager.navigation_axes:
        axis.scale, axis.units, axis.offset = SCAN_STEP / 10, "nm", 0.4
    for axis in signal.axes_manager.signal_axes:
        axis.scale = WAVELENGTH / CELL * 1e3
        axis.units, axis.offset = "mrad", -axis.scale * (KEPT // 2)
    signal.metadata.set_item("Acquisition_instrument.TEM", {"beam_energy": KEV, "convergence_angle": MRAD})
    return signal


def report_simulation(electrons):
    """Print how phase and virtual detector agree with the simulation; whether both bars are met."""
    import hyperspy_fusion

    slices = potentials()
    patterns = multislice(slices)
    s4d = signal_of(patterns, electrons)
    phase = hyperspy_fusion.ptychography(s4d, defocus=DEFOCUS / 10, grid="object", refine_probe=True)
    node = phase.metadata.Ptychography
    # the projected potential at the resolution of the patterns, where the axes of the phase lie
    at = [axis.axis * 10 for axis in phase.axes_manager.signal_axes[::-1]]
    spectrum = np.fft.fft2(slices.sum(axis=0))
    k = np.fft.fftfreq(GRID, CELL / GRID)
    spectrum[np.hypot(k[:, None], k[None]) > KEPT / 2 / CELL] = 0
    waves = [np.exp(2j * np.pi * np.outer(positions, k)) for positions in at]
    truth = np.real(waves[0] @ spectrum @ waves[1].T)
    of_phase = np.corrcoef(truth.ravel(), phase.data.ravel())[0, 1]
    angle = np.fft.fftshift(np.hypot(k[:, None], k[None])) * WAVELENGTH * 1e3
    detector = patterns[:, :, (angle >= DETECTOR[0]) & (angle < DETECTOR[1])].sum(axis=-1)
    virtual = hyperspy_fusion.virtual_image(signal_of(patterns, None), *DETECTOR).data
    of_adf = np.corrcoef(detector.ravel(), virtual.ravel())[0, 1]
    print(f"\nmultislice, {THICKNESS / 10:g} nm of C, Si, Ti; {electrons:g} electrons for each of {POINTS**2} patterns")
    print(f"  phase and potential     {of_phase:.4f}   bar {PHASE_BAR}   {node.n_iter} its, {node.stop_reason}")
    print(f"  virtual ADF             {of_adf:.4f}   bar {ADF_BAR}")
    return [of_phase >= PHASE_BAR, of_adf >= ADF_BAR]


def main():
    print(f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "")
    import hyperspy.api as hs

    hs.preferences.General.show_progressbar = False
    met = report_object("atoms", atoms()) + report_object("photograph", photograph())
    report_photographs()
    met += report_simulation(1e6)
    print("\nall bars met" if all(met) else "\nNOT all bars met")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
