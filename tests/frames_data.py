"""Frames of one scan whose drift is known."""

import hyperspy.api as hs
import numpy as np

SCALE, FINE = 0.5, 4


def drift_curve(n, size=3.0, jitter=0.1, seed=0):
    """(n, 2) positions along y and x in quarters of a pixel: a curve of ``size`` pixels along y, which trembles."""
    t = np.linspace(0, 1, n)
    curve = np.stack([size * t, 0.6 * size * np.sin(2.5 * t)], axis=1)
    curve += np.random.default_rng(seed).normal(0, jitter, curve.shape)
    return np.rint(FINE * (curve - curve[0])) / FINE


def drifted(phantom, curve, counts, snr, size=64, seed=0):
    """Counts (t, n, ny, nx) and images (t, ny, nx) of frames of a phantom of finer pixels, and its truth in the first.

    `counts` are the mean of the sum over the elements per frame and pixel, `snr` is the largest intensity over the
    noise in a frame. A drift blurs nothing within a frame, and the same seed gives the same X-rays for any drift.
    """
    rng = np.random.default_rng(seed)
    rates = phantom.truth * (counts / FINE**2 / phantom.truth.sum(axis=0).mean())
    clean = np.tensordot(phantom.haadf_weights, phantom.truth, 1) / FINE**2
    corner = (np.array(clean.shape) - FINE * size) // 2

    def pixels(scene, by):
        y, x = corner - np.rint(FINE * by).astype(int)
        part = scene[..., y : y + FINE * size, x : x + FINE * size]
        return part.reshape(*part.shape[:-2], size, FINE, size, FINE).sum(axis=(-3, -1))

    counted = np.stack([pixels(rng.poisson(rates), by) for by in curve])
    images = np.stack([pixels(clean, by) for by in curve])
    images += rng.normal(0, clean.max() * FINE**2 / snr, images.shape)
    return counted.astype("u2"), images, pixels(rates, curve[0])


def signals(counts, images, elements, units="nm"):
    """Maps (t|x, y) of each element by name, and images (t|x, y)."""
    n, *shape = images.shape
    scan = [{"name": a, "size": k, "scale": SCALE, "units": units} for a, k in zip("yx", shape, strict=True)]
    axes = [{"name": "Time", "size": n, "units": "s"}, *scan]
    maps = {e: hs.signals.Signal2D(counts[:, i], axes=axes) for i, e in enumerate(elements)}
    for element, signal in maps.items():
        signal.metadata.General.title = element
    return maps, hs.signals.Signal2D(images, axes=axes, metadata={"General": {"title": "HAADF"}})


def spectra(counts, units="nm", lines=(94, 64, 5), n_channels=100):
    """The same counts as spectra (x, y, t|E), each element in one channel."""
    n, _, *shape = counts.shape
    data = np.zeros((n, *shape, n_channels), counts.dtype)
    for i, line in enumerate(lines[: counts.shape[1]]):
        data[..., line] = counts[:, i]
    scan = [{"name": a, "size": k, "scale": SCALE, "units": units} for a, k in zip("yx", shape, strict=True)]
    axes = [{"name": "Time", "size": n, "units": "s"}, *scan]
    axes += [{"name": "Energy", "size": n_channels, "scale": 0.1, "units": "keV"}]
    signal = hs.signals.Signal1D(data, axes=axes, metadata={"General": {"title": "EDS"}})
    signal.set_signal_type("EDS_TEM")
    return signal


def fine(phantom, size=96):
    """A phantom of `FINE` times finer pixels and larger than the frames."""
    pixel = phantom((16, 16)).pixel_size_nm / FINE
    return phantom((FINE * size, FINE * size), haadf_snr=np.inf, pixel_size_nm=pixel)
