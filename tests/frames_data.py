"""Frames of one scan whose drift is known."""

import hyperspy.api as hs
import numpy as np
from scipy.ndimage import shift

import hyperspy_fusion as hf

SCALE = 0.5


def drift_curve(n, size=3.0, jitter=0.1, seed=0):
    """(n, 2) positions along y and x that go ``size`` pixels along y, on a curve, and tremble."""
    t = np.linspace(0, 1, n)
    curve = np.stack([size * t, 0.6 * size * np.sin(2.5 * t)], axis=1)
    curve += np.random.default_rng(seed).normal(0, jitter, curve.shape)
    return curve - curve[0]


def drifted(phantom, curve, counts, snr, size=64, seed=0):
    """Counts (t, n, ny, nx) and images (t, ny, nx) of frames of a larger phantom, and its truth without drift.

    `counts` are the mean of the sum over the elements per frame and pixel, `snr` is the largest intensity over the
    noise in a frame.
    """
    rng = np.random.default_rng(seed)
    first = [(n - size) // 2 for n in phantom.truth.shape[1:]]
    window = tuple(slice(a, a + size) for a in first)
    rates = phantom.truth / phantom.truth.sum(axis=0).mean() * counts
    clean = np.tensordot(phantom.haadf_weights, phantom.truth, 1)
    moved = [[shift(m, by, order=1, mode="nearest")[window] for m in rates] for by in curve]
    images = np.stack([shift(clean, by, order=3, mode="nearest")[window] for by in curve])
    images += rng.normal(0, clean.max() / snr, images.shape)
    return rng.poisson(np.clip(moved, 0, None)).astype("u1"), images, rates[(slice(None), *window)]


def signals(counts, images, elements, units="nm"):
    """Maps (t|x, y) of each element by name, and images (t|x, y)."""
    n, *shape = images.shape
    scan = [{"name": a, "size": k, "scale": SCALE, "units": units} for a, k in zip("yx", shape, strict=True)]
    axes = [{"name": "Time", "size": n, "units": "s"}, *scan]
    maps = {e: hs.signals.Signal2D(counts[:, i], axes=axes) for i, e in enumerate(elements)}
    for element, signal in maps.items():
        signal.metadata.General.title = element
    return maps, hs.signals.Signal2D(images, axes=axes, metadata={"General": {"title": "HAADF"}})


def spectra(counts, units="nm", lines=(944, 640, 52), n_channels=1000):
    """The same counts as spectra (x, y, t|E), each element in one channel."""
    n, _, *shape = counts.shape
    data = np.zeros((n, *shape, n_channels), counts.dtype)
    for i, line in enumerate(lines[: counts.shape[1]]):
        data[..., line] = counts[:, i]
    scan = [{"name": a, "size": k, "scale": SCALE, "units": units} for a, k in zip("yx", shape, strict=True)]
    axes = [{"name": "Time", "size": n, "units": "s"}, *scan]
    axes += [{"name": "Energy", "size": n_channels, "scale": 0.01, "units": "keV"}]
    signal = hs.signals.Signal1D(data, axes=axes, metadata={"General": {"title": "EDS"}})
    signal.set_signal_type("EDS_TEM")
    return signal


def core_shell(**options):
    """A phantom that is larger than its frames."""
    return hf.data.core_shell((96, 96), haadf_snr=np.inf, **options)
