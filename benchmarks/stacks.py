"""Stacks of scans: speed and bits on a cluster of two processes, and one choice of settings for all frames.

    python -m benchmarks.stacks                  # 64 frames of 256 x 256 x 4, about ten minutes on two cores
    python -m benchmarks.stacks --frames 8 --side 128 --parts cluster
    python -m benchmarks.stacks --parts tilts    # only the five tilts of L2083
    python -m benchmarks.stacks --parts together # frames together against frame by frame

``cluster``: a simulated tilt series is fused by one worker with one thread and by two processes of ``dask.distributed``
(extra ``distributed``). The maps must be the same bit for bit, also after one of the two processes is killed in
mid-run. Ctrl-C must keep the frames that are done.

``tilts``: the five tilts of L2083 as one lazy stack of spectra, with the peak of the memory of a process of its own.
The settings are chosen on a sample of frames and for each frame, with half of the counts; the other half are held out.

``together``: eight frames of 64 x 64 pixels of a particle that grows, at 1, 2 and 4 counts, fitted together and frame
by frame: PSNR of both. Then the same with a second particle from the fifth frame on: how much of it is seen, and how
much before.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np

from benchmarks.common import SHARED, conclude, machine

TILTS = ("-20", "-5", "0", "5", "20")
ELEMENTS = ("Fe", "Mg", "Si", "O", "S", "Al")
FASTER, LOSS, MEMORY = 1.7, 0.2, 1.5  # bars: times, per cent, GB
MINIMUM = 0.05  # of the mean expected counts, of the score


def series(n_frames, side):
    """Maps of four elements and HAADF images of a particle that drifts, as stacks ``(tilt|x, y)``."""
    import hyperspy.api as hs

    from hyperspy_fusion import data

    maps, images = {}, []
    for k in range(n_frames):
        scan = data.core_shell((side, side), counts=4, seed=k)
        film = np.random.default_rng(k).poisson(1 + 0.5 * np.sin(np.arange(side) / 20), (side, side))
        for element, counts in [*zip(scan.elements, scan.maps, strict=True), ("C", film)]:
            maps.setdefault(element, []).append(np.roll(counts, k // 4, 1))
        images.append(np.roll(scan.haadf, k // 4, 1))

    def stacked(arrays):
        stack = hs.signals.Signal2D(np.stack(arrays).astype(np.float32))
        axis = stack.axes_manager[0]
        axis.name, axis.units, axis.scale, axis.offset = "tilt", "°", 2.0, -float(n_frames)
        return stack

    return {element: stacked(arrays) for element, arrays in maps.items()}, stacked(images)


def cluster(n_frames, side):
    """Whether the bars of the cluster are met."""
    import dask
    from distributed import Client, LocalCluster

    import hyperspy_fusion

    maps, haadf = series(n_frames, side)

    def fuse():
        start = time.perf_counter()
        fused = hyperspy_fusion.fuse(maps, haadf, show_progressbar=False)
        return time.perf_counter() - start, fused

    with dask.config.set(scheduler="synchronous", num_workers=1):
        start = time.perf_counter()
        alone = hyperspy_fusion.fuse(maps, haadf, show_progressbar=False, num_workers=1)
        serial = time.perf_counter() - start
    print(f"one worker with one thread {serial:.1f} s", flush=True)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as workers, Client(workers) as client:
        warm_up = [side_by_side.inav[:2] for side_by_side in (*maps.values(), haadf)]
        hyperspy_fusion.fuse(dict(zip(maps, warm_up[:-1], strict=True)), warm_up[-1], method="calibrated", max_iter=3)
        seconds, fused = fuse()
        same = np.array_equal(fused.data, alone.data)
        met = [same, serial / seconds >= FASTER]
        print(f"two processes {seconds:.1f} s, {serial / seconds:.2f} times as fast (bar {FASTER}); same bits: {same}")
        pid = client.submit(os.getpid, pure=False).result()
        killer = threading.Timer(seconds / 2, os.kill, (pid, signal.SIGKILL))
        killer.start()
        again = fuse()[1]
        met.append(np.array_equal(again.data, alone.data))
        print(f"with one of them killed in mid-run, same bits: {met[-1]}")
        stop = threading.Timer(0.6 * seconds, os.kill, (os.getpid(), signal.SIGINT))
        stop.start()
        partly = fuse()[1]
        kept = np.isfinite(partly.data).all(axis=(1, 2, 3))
        met.append(bool(0 < kept.sum() < n_frames and np.array_equal(partly.data[kept], alone.data[kept])))
        print(f"after Ctrl-C {kept.sum()} of {n_frames} frames are kept, as they are alone: {met[-1]}", flush=True)
    return met


# ---- frames together -----------------------------------------------------------------------------


def growing(counts, seed, is_sudden=False, n_frames=8, side=64):
    """Truth (frames, 3, ny, nx) of a particle that grows, maps by element and HAADF images ``(time|x, y)``.

    A second, small particle of Fe appears in the middle of the series where ``is_sudden``; the last value is where.
    """
    import hyperspy.api as hs

    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:side, :side] - (side - 1) / 2
    small = np.hypot(y - 0.32 * side, x + 0.3 * side) < 0.07 * side

    def thickness(radius):
        return 2 * np.sqrt(np.maximum(radius**2 - y**2 - x**2, 0)) / side

    truth = []
    for t in range(n_frames):
        core = side * (0.14 + 0.01 * t)
        iron = thickness(core) + 0.2 * small * (is_sudden and t >= n_frames // 2)
        truth.append([iron, thickness(core + 0.06 * side) - 0.9 * thickness(core), 0.25 + 0.1 * x / side])
    truth = np.array(truth) * (counts / np.max(truth, axis=(0, 2, 3)))[:, None, None]
    image = np.tensordot(truth, np.array([26, 8, 6]) ** 1.7, (1, 0))
    image = image / image.max() + rng.normal(0, 0.02, image.shape)
    drawn = rng.poisson(truth).astype(np.float32)

    def stacked(array):
        stack = hs.signals.Signal2D(array.astype(np.float32))
        stack.axes_manager[0].name = "time"
        return stack

    return truth, {e: stacked(drawn[:, i]) for i, e in enumerate(("Fe", "O", "C"))}, stacked(image), small


def together():
    """Whether frames together are nearer to the truth than frame by frame, at each number of counts."""
    import hyperspy_fusion

    def fuse(maps, haadf, weight):
        start = time.process_time()
        settings = hyperspy_fusion.AutoSettings(lambda_stack=weight)
        fused = hyperspy_fusion.fuse(maps, haadf, settings=settings, show_progressbar=False)
        return fused, time.process_time() - start

    def psnr(fused, truth):
        squares = ((fused.data - truth) ** 2).mean(axis=(0, 2, 3))
        return float(np.mean(10 * np.log10(truth.max(axis=(0, 2, 3)) ** 2 / squares)))

    met = []
    for counts in (1, 2, 4):
        for is_sudden in (False, True):
            truth, maps, haadf, small = growing(counts, seed=counts, is_sudden=is_sudden)
            (alone, first), (fused, second) = (fuse(maps, haadf, weight) for weight in (0, "auto"))
            parameters, gain = fused.frame(0).metadata.Fusion.parameters, psnr(fused, truth) - psnr(alone, truth)
            met.append(gain > 0)
            print(
                f"{counts} counts{', sudden' if is_sudden else ''}: frame by frame {psnr(alone, truth):.2f} dB, "
                f"together {psnr(fused, truth):.2f} dB with lambda_stack={parameters.lambda_stack:.3g}, gap "
                f"{fused.frame(0).metadata.Fusion.gap:.1e}; CPU {first:.0f} and {second:.0f} s",
                flush=True,
            )
            if is_sudden:
                seen = [one.data[2:6, 0][:, small].mean(axis=1) / truth[-1, 0][small].mean() for one in (alone, fused)]
                print("    of the second particle in frames 2 to 5, alone and together:", *np.round(seen, 2).tolist())
    return met


# ---- the tilts of L2083 --------------------------------------------------------------------------


def tilts():
    """Whether the bars of the tilts are met."""
    if not (SHARED / f"L2083-K-4-1_tilt{TILTS[0]}.bcf").exists():
        print("the tilts of L2083 are not here: skipped")
        return []
    found = subprocess.run([sys.executable, "-m", "benchmarks.stacks", "--parts", "memory"], capture_output=True)
    print(found.stdout.decode(), found.stderr.decode() if found.returncode else "", end="")
    together, each = (scores(sample_frames) for sample_frames in (3, None))
    loss = 100 * (each.sum() - together.sum()) / each.sum()
    print(f"score of held-out counts: one choice {together.sum():.1f}, one for each tilt {each.sum():.1f}")
    print(f"one choice loses {loss:.2f} % (bar {LOSS} %)")
    return [found.returncode == 0, loss < LOSS]


def stack_of_tilts():
    """Lazy spectra ``(x, y, tilt|E)`` and HAADF images."""
    import hyperspy.api as hs

    from hyperspy_fusion import scan

    pairs = [scan(hs.load(SHARED / f"L2083-K-4-1_tilt{tilt}.bcf", lazy=True)) for tilt in TILTS]
    return [hs.stack(list(one), new_axis_name="tilt", show_progressbar=False) for one in zip(*pairs, strict=True)]


def memory():
    """One call on the lazy stack, and the peak of the memory of this process."""
    import resource

    haadf, spectra = stack_of_tilts()
    start = time.perf_counter()
    fused = spectra.fuse(haadf, elements=list(ELEMENTS), show_progressbar=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{fused} from lazy spectra in {time.perf_counter() - start:.0f} s, peak memory {peak:.2f} GB (bar {MEMORY})")
    for sentence in fused.metadata.Fused_frames.diagnostics.sentences:
        print("   ", sentence)
    return [peak < MEMORY]


def scores(sample_frames):
    """Log-likelihood of the held-out half of the counts of each tilt, above that of flat maps."""
    import hyperspy.api as hs

    import hyperspy_fusion

    haadf, spectra = stack_of_tilts()
    counts = np.stack(
        [hyperspy_fusion.element_maps(spectra.inav[:, :, k], list(ELEMENTS)).data for k in range(len(TILTS))]
    ).astype(int)
    train = np.random.default_rng(0).binomial(counts, 0.5)
    maps = {e: hs.signals.Signal2D(train[:, i].astype(np.float32)) for i, e in enumerate(ELEMENTS)}
    images = hs.signals.Signal2D(haadf.data.compute())
    settings = hyperspy_fusion.AutoSettings(sample_frames=sample_frames)
    fused = hyperspy_fusion.fuse(maps, images, settings=settings, show_progressbar=False).data.astype(float)
    test = counts - train

    def score(mean):
        mean = mean + MINIMUM * train.mean(axis=(2, 3), keepdims=True)
        return (test * np.log(mean) - mean).sum(axis=(1, 2, 3))

    return score(fused) - score(np.broadcast_to(train.mean(axis=(2, 3), keepdims=True), fused.shape))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument(
        "--parts", nargs="+", default=["cluster", "tilts"], choices=["cluster", "tilts", "together", "memory"]
    )
    asked = parser.parse_args()
    print(machine())
    run = {"cluster": lambda: cluster(asked.frames, asked.side), "tilts": tilts, "together": together, "memory": memory}
    return conclude([met for part in asked.parts for met in run[part]()])


if __name__ == "__main__":
    raise SystemExit(main())
