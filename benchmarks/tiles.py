"""Large maps in tiles: peak of the memory, seams, cost per pixel and totals of a field that is never in memory.

    python -m benchmarks.tiles                    # 4096 x 4096 x 3, half an hour on two cores
    python -m benchmarks.tiles --side 2048 --method calibrated --regularization directional
    python -m benchmarks.tiles --side 16384       # that of the bar

The field, particles with a core and a shell on a film, is written to .zspy files chunk by chunk and fused from them.

memory
    The largest resident set of the process, with all its libraries. The maps are made in another process.
seams
    Windows of 256 x 256 pixels across borders of tiles are fitted again, each with a halo of its own. The difference
    from the fused maps is in units of the range of each map: its root mean square, and the largest step of it between
    lines of 64 neighbouring pixels, which a seam would show. Both are also printed within tiles, away from all
    borders: fits end before they are at the minimum, which is not due to tiles.
cost
    Seconds of all cores per pixel of the tiles, without the sample, over those of 1024 x 1024 pixels fused in memory.
totals
    Of fused maps over measured ones, added up chunk by chunk.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import conclude, machine

MEMORY, SEAM, COST, TOTAL = 2.0, 1e-3, 1.3, 1e-5  # bars: GB, of the range, times, relative
ELEMENTS, NUMBERS = ("Pt", "Fe", "O"), (78, 26, 8)
CHUNK, CELL = 1024, 160
WINDOW, WINDOWS, LINE = 256, 6, 64


# ---- the field -----------------------------------------------------------------------------------


def truth(y, x, ny, nx):
    """(3, ny, nx) expected counts of a window of an endless field whose first pixel is (y, x)."""
    rows, columns = np.arange(y, y + ny)[:, None], np.arange(x, x + nx)
    core, shell = np.zeros((ny, nx)), np.zeros((ny, nx))
    for i in range(y // CELL - 1, (y + ny) // CELL + 2):
        for j in range(x // CELL - 1, (x + nx) // CELL + 2):
            rng = np.random.default_rng((i + 10, j + 10))
            at, radius = (np.array([i, j]) + rng.uniform(0.3, 0.7, 2)) * CELL, rng.uniform(0.12, 0.45) * CELL
            squares = (rows - at[0]) ** 2 + (columns - at[1]) ** 2
            inner, outer = (np.sqrt(np.maximum(r**2 - squares, 0)) for r in (rng.uniform(0.3, 0.8) * radius, radius))
            core, shell = np.maximum(core, inner), np.maximum(shell, outer - inner)
    film = 0.5 + 0.2 * np.sin(rows / 300) * np.sin(columns / 230)
    return np.stack([0.03 * core, 0.03 * shell, film + 0.02 * shell])


def _counts(block_info=None):
    (_, _), (y, y1), (x, x1) = block_info[None]["array-location"]
    return np.random.default_rng((y, x)).poisson(truth(y, x, y1 - y, x1 - x)).astype(np.uint16)


def _image(block_info=None):
    (y, y1), (x, x1) = block_info[None]["array-location"]
    atoms = truth(y, x, y1 - y, x1 - x)
    weights = np.array(NUMBERS) ** 1.7 / 1000
    noise = np.random.default_rng((y, x, 1)).normal(scale=0.05, size=atoms.shape[1:])
    return (0.2 + np.tensordot(weights, atoms, 1) + noise).astype(np.float32)


def write(folder, side):
    """maps.zspy and haadf.zspy of a field, chunk by chunk."""
    import dask
    import dask.array as da
    import hyperspy.api as hs

    def of(size):
        return tuple(min(CHUNK, size - k) for k in range(0, size, CHUNK))

    with dask.config.set(scheduler="synchronous"):
        for name, function, chunks, dtype in (
            ("maps", _counts, ((3,), of(side), of(side)), np.uint16),
            ("haadf", _image, (of(side), of(side)), np.float32),
        ):
            data = da.map_blocks(function, chunks=chunks, dtype=dtype, meta=np.empty((0,) * len(chunks), dtype))
            signal = hs.signals.Signal2D(data).as_lazy()
            for axis in signal.axes_manager.signal_axes:
                axis.units, axis.scale = "nm", 0.5
            signal.save(
                Path(folder) / f"{name}.zspy",
                chunks=tuple(c[0] for c in chunks),
                overwrite=True,
                show_progressbar=False,
            )


# ---- the bars ------------------------------------------------------------------------------------


def fuse_tiles(folder, side, settings, method):
    """Whether the bars are met."""
    import hyperspy.api as hs

    import hyperspy_fusion
    from hyperspy_fusion.methods import METHODS
    from hyperspy_fusion.methods.base import request_of
    from hyperspy_fusion.stacks import fuse_field
    from hyperspy_fusion.stacks.fit import Call

    maps, haadf = (hs.load(Path(folder) / f"{name}.zspy", lazy=True) for name in ("maps", "haadf"))
    options = {"elements": list(ELEMENTS), "method": method, "show_progressbar": False}
    request = request_of(METHODS[method], list(ELEMENTS), None, 2.0, None, None)
    own = settings(tile_size=_tile_size(side))
    part = [one.isig[:256, :256] for one in (maps, haadf)]
    hyperspy_fusion.fuse(*part, **options)  # compiles
    start = time.process_time()
    field = fuse_field.field_of(maps, haadf, request, own, None)[1]
    sample = fuse_field.fitted_sample(field, Call(method, request, False, own, 0), show_progressbar=False)
    of_sample = time.process_time() - start
    print(f"sample: {of_sample:.0f} s; peak {peak():.2f} GB", flush=True)
    fuse_field.fitted_sample = lambda *_, **__: sample  # once is enough
    start = time.process_time()
    fused = hyperspy_fusion.fuse(maps, haadf, settings=own, **options)
    seconds, memory, fit = time.process_time() - start, peak(), fused.metadata.Fusion
    print(f"{fused}: {fit.n_tiles} tiles, halo {fit.halo}, {seconds:.0f} s; peak {memory:.2f} GB (bar {MEMORY})")
    print("\n".join([*fit.diagnostics.sentences, f"factors of the totals {fit.total_factors}"]), flush=True)
    small = [one.isig[:1024, :1024] for one in (maps, haadf)]
    for one in small:
        one.compute(show_progressbar=False)
    start = time.process_time()
    hyperspy_fusion.fuse(*small, settings=settings(), **options)
    in_memory = (time.process_time() - start) / 2**20
    print(f"1024 x 1024 in memory: {1e6 * in_memory:.1f} s per million pixels", flush=True)
    cost = seconds / side**2 / in_memory
    print(f"tiles: {cost:.2f} times the cost per pixel of 1024 x 1024 in memory (bar {COST})", flush=True)
    (rms, step), (rms_within, step_within) = seams(field, sample.tile, fused)
    print(f"across borders: {rms:.1e} of the range (rms), steps {step:.1e} (bar {SEAM})")
    print(f"within tiles: {rms_within:.1e}, steps {step_within:.1e}", flush=True)
    totals = np.zeros((2, 3))
    for y in range(0, side, CHUNK):
        rows = slice(y, y + CHUNK)
        totals += [np.asarray(a[:, rows].sum(axis=(1, 2), dtype=np.float64)) for a in (fused.data, maps.data)]
    off = np.abs(totals[0] / totals[1] - 1).max()
    print(f"totals off by {off:.1e} (bar {TOTAL})")
    return [memory < MEMORY, cost < COST, max(rms, step) < SEAM, off < TOTAL]


def peak():
    """The largest resident set of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def seams(field, call, fused):
    """Root mean square difference and largest step, across borders and within tiles; see the top."""
    chunks, rng, across, within = fused.data.chunks[1:], np.random.default_rng(0), [], []
    for k in range(WINDOWS):
        border = [int(rng.choice(np.cumsum(c)[:-1])) for c in chunks]
        middle = [b - c[0] // 2 for b, c in zip(border, chunks, strict=True)]
        # the first one is at a corner of four tiles
        at = [b if i == k % 2 or k == 0 else m for i, (b, m) in enumerate(zip(border, middle, strict=True))]
        across.append(_difference(field, call, fused, at))
        within.append(_difference(field, call, fused, middle))
    ranges = np.array([np.ptp(np.asarray(one[:4096:2, :4096:2])) for one in fused.data])[:, None, None]
    found = [np.stack(one) / ranges for one in (across, within)]
    return [(float(np.sqrt(np.mean(one**2))), _largest_step(one)) for one in found]


def _difference(field, call, fused, middle):
    """(n, ny, nx) fused maps less a fit of the window about a pixel."""
    from hyperspy_fusion.fusion.terms.scan_data import ScanData

    starts = [int(np.clip(m - WINDOW // 2, 0, n - WINDOW)) for m, n in zip(middle, field.shape, strict=True)]
    halo = call.shared.halo
    outer = [slice(max(s - halo, 0), min(s + WINDOW + halo, n)) for s, n in zip(starts, field.shape, strict=True)]
    read = field.arrays.part(outer).read()
    again = call.shared.solve(ScanData.of(read.maps, read.haadf, call.atomic_numbers, elements=call.elements)).maps
    inner = [slice(s - o.start, s - o.start + WINDOW) for s, o in zip(starts, outer, strict=True)]
    there = np.asarray(fused.data[(slice(None), *(slice(s, s + WINDOW) for s in starts))])
    return there - again[(slice(None), *inner)] * fused.metadata.Fusion.total_factors[:, None, None]


def _largest_step(differences):
    """Of the means over LINE pixels across each step."""
    steps = [np.diff(d, axis=-1) for d in (differences, differences.swapaxes(-1, -2))]
    return float(max(np.abs(s.reshape(*s.shape[:-2], -1, LINE, s.shape[-1]).mean(axis=-2)).max() for s in steps))


def _tile_size(side):
    """None for fields that go in tiles by themselves; others have two by two."""
    return None if side >= 4096 else -(-side // 2)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--method", choices=("auto", "calibrated"), default="calibrated")
    parser.add_argument("--regularization")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.write:
        write(args.write, args.side)
        return 0
    import hyperspy_fusion

    print(machine())
    kind = {"auto": hyperspy_fusion.AutoSettings, "calibrated": hyperspy_fusion.CalibratedSettings}[args.method]
    given = {} if args.regularization is None else {"regularization": args.regularization}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.tiles", "--side", str(args.side), "--write", folder]
        subprocess.run(command, check=True)
        met = fuse_tiles(folder, args.side, lambda **own: kind(**given, **own), args.method)
    return conclude(met)


if __name__ == "__main__":
    sys.exit(main())
