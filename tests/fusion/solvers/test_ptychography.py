"""Ptychography on arrays: gradients, the forward model, and known objects."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.solvers.ptychography import ForwardModel, PtychographySettings, ptychography

SIZE, PHASE = 32, 0.4


def small(seed=0, shape=(11, 12), window=(8, 8), n=3):
    rng = np.random.default_rng(seed)
    probe = rng.normal(size=window) + 1j * rng.normal(size=window)
    model = ForwardModel(shape, window)
    phase, positions = rng.normal(size=shape), rng.uniform(0, 12, (n, 2))
    patterns = rng.poisson(3 * model.intensities(phase, probe, positions)).astype(float)
    patterns[0, 2, 3] = np.nan
    return model, rng.normal(size=shape), probe * 1.5, positions, patterns


def test_the_forward_model_is_a_direct_sum():
    model, phase, probe, positions, _ = small(n=2)
    positions = np.round(positions) + [[0, 0], [0.3, -0.2]]
    got = model.intensities(phase, probe, positions)
    index = np.arange(8)
    k = np.fft.fftfreq(8)
    for position, pattern in zip(positions, got, strict=True):
        whole = np.rint(position).astype(int)
        rest = position - whole
        y, x = np.meshgrid(index, index, indexing="ij")
        moved = np.zeros((8, 8), complex)
        for ky in k:
            for kx in k:
                coefficient = np.sum(probe * np.exp(-2j * np.pi * (ky * y + kx * x))) / 64
                moved += coefficient * np.exp(2j * np.pi * (ky * (y - rest[0]) + kx * (x - rest[1])))
        waves = moved * np.exp(1j * phase[(y + whole[0] - 4) % 11, (x + whole[1] - 4) % 12])
        far = np.array([[np.sum(waves * np.exp(-2j * np.pi * (ky * y + kx * x))) / 8 for kx in k] for ky in k])
        np.testing.assert_allclose(pattern, np.abs(far) ** 2, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", ["poisson", "amplitude"])
def test_gradients_against_finite_differences(loss):
    model, *values, patterns = small()
    found = model.gradients(*values, patterns, loss, 0.1)
    rng = np.random.default_rng(1)
    for i, gradient in enumerate(found[1:]):
        direction = rng.normal(size=values[i].shape) * (1 + (1j if i == 1 else 0) * rng.normal(size=values[i].shape))
        step, ends = 1e-5, []
        for sign in (-2, -1, 1, 2):
            moved = [value + sign * step * direction if j == i else value for j, value in enumerate(values)]
            ends.append(model.gradients(*moved, patterns, loss, 0.1).loss)
        slope = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * step)
        np.testing.assert_allclose(np.sum(np.real(np.conj(gradient) * direction)), slope, rtol=1e-6)


def known_object(electrons, size=SIZE, edges=False):
    """Patterns of a phase object of atoms, or of discs with edges, on a torus, its positions and the probe."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    truth = np.zeros((size, size))
    for _ in range(3 if edges else 8):
        dy, dx = ((g - c + size / 2) % size - size / 2 for g, c in zip((y, x), rng.uniform(0, size, 2), strict=True))
        square = dy**2 + dx**2
        truth += rng.uniform(0.3, 1) * (square < 36 if edges else np.exp(-square / 8))
    truth *= PHASE / truth.max()
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    probe = np.fft.fftshift(np.fft.ifft2(np.exp(-60j * np.pi * radius**2) * (radius < 0.2)))
    probe *= np.sqrt(electrons) / np.linalg.norm(probe)
    positions = np.indices((size // 4, size // 4)).reshape(2, -1).T * 4.0
    patterns = ForwardModel((size, size), (size, size)).intensities(truth, probe, positions)
    return truth, patterns, positions, probe.astype(np.complex64)


def psnr(phase, truth):
    return peak_signal_noise_ratio(truth, phase - phase.mean(dtype=float) + truth.mean(), data_range=PHASE)


def test_a_known_object_without_noise():
    truth, patterns, positions, probe = known_object(1e4)
    state = ptychography(patterns, positions, 7 * probe, truth.shape)
    assert state.reason is StopReason.CONVERGED and state.dispersion < 1e-4
    assert psnr(state.phase, truth) > 50
    assert structural_similarity(truth, state.phase - state.phase.mean() + truth.mean(), data_range=PHASE) > 0.999


def test_noise_is_kept_down_and_units_of_counts_do_not_matter():
    truth, patterns, positions, probe = known_object(1e4)
    noisy = np.random.default_rng(1).poisson(patterns)
    states = {gain: ptychography(gain * noisy, positions, probe, truth.shape) for gain in (1, 50)}
    assert all(psnr(state.phase, truth) > 26 for state in states.values())
    assert all(0.9 < state.dispersion / gain < 1.1 for gain, state in states.items())


def test_edges_are_smoothed_less_than_flat_parts():
    truth, patterns, positions, probe = known_object(1e4, edges=True)
    state = ptychography(np.random.default_rng(1).poisson(patterns), positions, probe, truth.shape)
    assert psnr(state.phase, truth) > 23.3
    edge = np.hypot(*np.gradient(truth)) > 0
    assert np.median(state.smoothing[edge]) < 0.6 * np.median(state.smoothing[~edge])


def test_probe_and_positions_are_refined():
    truth, patterns, positions, probe = known_object(1e4)
    wrong = positions + np.random.default_rng(2).uniform(-0.4, 0.4, positions.shape)
    state = ptychography(patterns, wrong, probe, truth.shape, PtychographySettings(refine_positions=True, max_iter=30))
    error, before = (p - positions - (p - positions).mean(axis=0) for p in (state.positions, wrong))
    assert np.std(error) < 0.2 * np.std(before)
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE)))
    start = np.fft.fftshift(np.fft.ifft2(np.exp(-45j * np.pi * radius**2) * (radius < 0.2))).astype(np.complex64)
    state = ptychography(patterns, positions, start, truth.shape, PtychographySettings(refine_probe=True, max_iter=30))
    alike = [abs(np.vdot(one, probe)) / np.linalg.norm(one) / np.linalg.norm(probe) for one in (start, state.probe)]
    assert 1 - alike[1] < 0.2 * (1 - alike[0])


def test_stopped_and_interrupted_fits_keep_the_last_iteration():
    truth, patterns, positions, probe = known_object(1e4)
    phases = []

    def stop(state):
        phases.append(state.phase.copy())
        if state.n_iter == 3:
            raise StopIteration

    state = ptychography(patterns, positions, probe, truth.shape, callback=stop)
    assert state.reason is StopReason.STOPPED and state.n_iter == 3
    np.testing.assert_array_equal(state.phase, phases[-1])
    assert np.all(np.diff(state.losses) < 0)
    again = ptychography(patterns, positions, probe, truth.shape, PtychographySettings(max_iter=3))
    np.testing.assert_array_equal(again.phase, state.phase)
    assert again.reason is StopReason.NOT_CONVERGED


@pytest.mark.parametrize("wrong", [{"loss": "mse"}, {"tol": -1}, {"max_iter": 0}, {"batch_size": 0}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PtychographySettings(**wrong)
