"""Frames of one scan, registered and added up by ``sum_frames``, in one run.

    python -m benchmarks.frames                 # a phantom and the JEOL scan, some four minutes on two cores
    python -m benchmarks.frames --seeds 8       # more draws of the phantom

The phantom has 20 frames with a drift of three pixels and 0.05 counts per frame and pixel, two of them spoilt. Its
fused maps are compared with those of the same X-rays without a drift. Of the JEOL scan, 14 frames of 512 x 512 pixels,
two are fused and score on the sum of the other twelve: the log-likelihood of these counts over that of a flat map.
Beside them is a Gaussian filter of each map whose width the held-out counts have chosen, which no user can.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from benchmarks.common import SHARED, conclude, machine

FINE, SIZE, N_FRAMES, COUNTS = 4, 64, 20, 0.05
SPOILT = (7, 13)
LARGEST_ERROR, LARGEST_LOSS = 0.1, 0.3  # pixels, dB
ELEMENTS, LINES = ("C", "O", "S", "Fe", "Cu"), ("C_Ka", "O_Ka", "S_Ka", "Fe_Ka", "Cu_Ka")
SIGMAS = np.geomspace(0.7, 40, 18)


# ---- phantom -------------------------------------------------------------------------------------


def drifted(scene, curve, seed):
    """Counts (t, n, ny, nx) and images (t, ny, nx) of frames, of the same X-rays for any drift, and the rates."""
    rng = np.random.default_rng(seed)
    rates = scene.truth * (COUNTS / FINE**2 / scene.truth.sum(axis=0).mean())
    clean = np.tensordot(scene.haadf_weights, scene.truth, 1) / FINE**2
    corner = (np.array(clean.shape) - FINE * SIZE) // 2

    def pixels(image, by):
        y, x = corner - np.rint(FINE * by).astype(int)
        part = image[..., y : y + FINE * SIZE, x : x + FINE * SIZE]
        return part.reshape(*part.shape[:-2], SIZE, FINE, SIZE, FINE).sum(axis=(-3, -1))

    counts = np.stack([pixels(rng.poisson(rates), by) for by in curve])
    images = np.stack([pixels(clean, by) for by in curve])
    return counts, images + rng.normal(0, clean.max() * FINE**2 / 20, images.shape), pixels(rates, curve[0])


def phantom(seed):
    """Drift errors, fused PSNR with and without a drift, and whether all counts of the common field are there."""
    from hyperspy.signals import Signal2D

    import hyperspy_fusion as hf

    scene = hf.data.core_shell((3 * FINE * SIZE // 2,) * 2, haadf_snr=np.inf)
    t, rng = np.linspace(0, 1, N_FRAMES), np.random.default_rng(seed)
    curve = np.stack([3 * t, 1.8 * np.sin(2.5 * t)], axis=1) + rng.normal(0, 0.1, (N_FRAMES, 2))
    curve = np.rint(FINE * (curve - curve[0])) / FINE
    counts, images, rates = drifted(scene, curve, seed)
    still, flat, _ = drifted(scene, 0 * curve, seed)
    images[SPOILT[0]] = rng.normal(images.mean(), images.std(), images[0].shape)
    images[SPOILT[1], 30:], counts[SPOILT[1], :, 30:] = 0, 0
    summed, image = hf.sum_frames({e: Signal2D(counts[:, i]) for i, e in enumerate(scene.elements)}, Signal2D(images))

    node = image.metadata.Frames
    used = np.setdiff1d(np.arange(N_FRAMES), node.dropped)
    errors = np.abs(np.stack([node.drift_y, node.drift_x], axis=1) - curve)[used]
    offsets = np.stack([node.offset_y, node.offset_x], axis=1)
    (y, x), (ny, nx) = -offsets[used].min(axis=0), image.data.shape
    moved = sum(
        counts[k][..., y + a : y + a + ny, x + b : x + b + nx] for k, (a, b) in zip(used, offsets[used], strict=True)
    )
    exact = all(np.array_equal(summed[e].data, moved[i]) for i, e in enumerate(scene.elements))

    window = np.s_[..., y : y + ny, x : x + nx]
    sums = still[used].sum(axis=0)[window]
    reference = {e: Signal2D(sums[i]) for i, e in enumerate(scene.elements)}, Signal2D(flat[used].mean(axis=0)[window])
    fused = [hf.fuse(*pair, show_progressbar=False).data for pair in ((summed, image), reference)]
    return list(node.dropped), errors.max(), exact, [psnr(f, len(used) * rates[window]) for f in fused]


def psnr(maps, truth):
    """Of all maps together, each in units of its range, in dB."""
    error = np.mean((maps - truth) ** 2, axis=(1, 2)) / np.ptp(truth, axis=(1, 2)) ** 2
    return -10 * np.log10(error.mean())


def report_phantom(seeds):
    print("phantom | left out | largest drift error | counts exact | fused PSNR: drift, no drift")
    rows = []
    for seed in range(seeds):
        dropped, error, exact, scores = phantom(seed)
        rows.append((dropped == list(SPOILT), error, exact, *scores))
        print(f"{seed:7d} | {dropped} | {error:.3f} pixels | {exact} | {scores[0]:.2f}, {scores[1]:.2f} dB", flush=True)
    right, errors, exact, drift, none = (np.array(column) for column in zip(*rows, strict=True))
    loss = float(none.mean() - drift.mean())
    print(f"mean loss by the drift {loss:+.2f} dB (bar {LARGEST_LOSS})\n")
    return [right.all(), errors.max() <= LARGEST_ERROR, exact.all(), loss <= LARGEST_LOSS]


# ---- a real scan ---------------------------------------------------------------------------------


def report_jeol():
    """One call to fused maps, and two frames against twelve."""
    import hyperspy.api as hs

    import hyperspy_fusion as hf

    path = SHARED / "jeol" / "rawdata.ASW"
    if not path.exists():
        print(f"{path} is not here")
        return []
    loaded = hs.load(path, sum_frames=False, lazy=True)
    eds = next(s for s in loaded if s._signal_type == "EDS_TEM")
    image = next(s for s in loaded if s.metadata.General.title == "IMG1")
    begin = time.perf_counter()
    fused = hf.fuse(*hf.sum_frames(eds, image), xray_lines=list(LINES), show_progressbar=False)
    print(f"{eds}\nto {fused} in one call: {time.perf_counter() - begin:.0f} s")
    summed, picture = hf.sum_frames(eds, image)
    print(summed.metadata.Frames.sentence)
    few, held_out = (maps_of(eds, summed, chosen) for chosen in ([0, 7], sorted({*range(14)} - {0, 7})))
    fused = hf.fuse(few, picture, show_progressbar=False).data
    rows = {"fused, two frames": fused, "counts of two frames": few.data, "Gaussian (oracle)": oracle(few, held_out)}
    print("log-likelihood of the other twelve frames over that of a flat map")
    print(f"{'':22s}" + "".join(f"{element:>10s}" for element in ELEMENTS) + f"{'all':>10s}")
    totals = {}
    for name, maps in rows.items():
        scores = [score(6 * one, held) for one, held in zip(maps, held_out.data, strict=True)]
        totals[name] = sum(scores)
        print(f"{name:22s}" + "".join(f"{value:10.0f}" for value in (*scores, totals[name])))
    return [totals["fused, two frames"] > totals["counts of two frames"]]


def maps_of(eds, summed, chosen):
    """Element maps of some frames, on the pixels of the sum of all."""
    import hyperspy_fusion as hf
    from hyperspy_fusion.fusion.registration.frame_sums import aligned_sparse_sum, sparse_frames

    node, (ny, nx) = summed.metadata.Frames, summed.axes_manager.navigation_shape[::-1]
    offsets = np.stack([node.offset_y, node.offset_x], axis=1)
    start = -offsets.min(axis=0)
    own = [tuple(offset) if t in chosen else None for t, offset in enumerate(offsets)]
    part = aligned_sparse_sum(sparse_frames(eds.data), own, start, (ny, nx), np.uint8)
    return hf.element_maps(summed._deepcopy_with_new_data(part), xray_lines=list(LINES))


def score(expected, counts):
    """Poisson log-likelihood of counts over that of a flat map, with the total of the expected counts set right."""
    flat = counts.mean()
    expected = np.maximum(expected * (counts.sum() / expected.sum()), 1e-3 * flat).astype(float)
    return float(np.sum(counts * np.log(expected / flat) - expected + flat))


def oracle(few, held_out):
    """Of each map, the Gaussian filter with the best score on the held-out counts."""
    from scipy.ndimage import gaussian_filter

    pairs = zip(few.data.astype(float), held_out.data, strict=True)
    return np.stack([max((gaussian_filter(m, s) for s in SIGMAS), key=lambda f: score(6 * f, h)) for m, h in pairs])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    print(machine())
    return conclude([*report_phantom(options.seeds), *report_jeol()])


if __name__ == "__main__":
    raise SystemExit(main())
