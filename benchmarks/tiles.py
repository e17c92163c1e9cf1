"""Large maps in tiles: peak of the memory, cost per pixel and totals of a field that is never in memory, and seams.

    python -m benchmarks.tiles                    # 4096 x 4096 x 3, half an hour on two cores
    python -m benchmarks.tiles --side 2048 --method calibrated --regularization directional
    python -m benchmarks.tiles --side 16384 --regularization directional    # that of the bar
    python -m benchmarks.tiles --seams            # 1024 x 1024 in tiles of 256 and in one piece, ten minutes

The field, particles with a core and a shell on a film, is written to .zspy files chunk by chunk and fused from them.
Files are in a temporary folder (TMPDIR), which is removed at the end and after Ctrl-C.

memory
    The largest resident set of the process, with all its libraries, also while the result is saved. The maps are made
    in another process.
cost
    Seconds of all cores per pixel of the tiles, without the sample, over those of 1024 x 1024 pixels fused in memory.
totals
    Of fused maps over measured ones, added up chunk by chunk.
seams
    Maps in tiles less those of the same objective in one tile, in units of the range of each map: about some corners
    of tiles of the large field, where the one tile has twice the halo, and on phantoms by --seams. Both are fitted to
    the usual tolerance. "at borders" is the root mean square where tiles are blended, in the map where it is largest;
    "elsewhere" is that at twice the distance and beyond. Fits end before they are at the minimum, so that the second
    is not 0. The seam is what a border adds: the root of the difference of their squares. Steps are differences between
    neighbouring pixels, across the borders of tiles and elsewhere, and their seam is found in the same way.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import resource
import shutil
import signal
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
# pixels a side of a window about a corner of tiles, and bytes on disk per pixel of the field
WINDOW, ON_DISK = 1024, 64
SEAMS, PHANTOMS, DOSES, PENALTIES = (
    (1024, 256),
    ("field", "core_shell", "gradient_alloy"),
    (1, 4),
    ("directional", "guided"),
)


# ---- the field -----------------------------------------------------------------------------------


def truth(y, x, ny, nx):
    """(3, ny, nx) expected counts of a window of an endless field whose first pixel is (y, x)."""
    rows, columns = np.arange(y, y + ny)[:, None], np.arange(x, x + nx)
    core, shell = np.zeros((ny, nx)), np.zeros((ny, nx))
    for i in range(y // CELL - 1, (y + ny) // CELL + 2):
        for j in range(x // CELL - 1, (x + nx) // CELL + 2):
            rng = np.random.default_rng((i + 10, j + 10))
            at, radius = (np.array([i, j]) + rng.uniform(0.3, 0.7, 2)) * CELL, rng.uniform(0.12, 0.45) * CELL
            near = tuple(_within(place, one) for place, one in zip(at - (y, x), core.shape, strict=True))
            squares = (rows[near[0]] - at[0]) ** 2 + (columns[near[1]] - at[1]) ** 2
            inner, outer = (np.sqrt(np.maximum(r**2 - squares, 0)) for r in (rng.uniform(0.3, 0.8) * radius, radius))
            core[near], shell[near] = np.maximum(core[near], inner), np.maximum(shell[near], outer - inner)
    film = 0.5 + 0.2 * np.sin(rows / 300) * np.sin(columns / 230)
    return np.stack([0.03 * core, 0.03 * shell, film + 0.02 * shell])


def _within(place, size):
    """Pixels of a window along one axis that a particle at a place reaches."""
    return slice(*(int(np.clip(end, 0, size)) for end in (place - CELL / 2, place + CELL / 2 + 1)))


def _counts(block_info=None):
    (_, _), (y, y1), (x, x1) = block_info[None]["array-location"]
    return np.random.default_rng((y, x)).poisson(truth(y, x, y1 - y, x1 - x)).astype(np.uint16)


def _image(block_info=None):
    (y, y1), (x, x1) = block_info[None]["array-location"]
    return image(truth(y, x, y1 - y, x1 - x), np.random.default_rng((y, x, 1)))


def image(atoms, rng):
    """The HAADF image (ny, nx) of what maps (3, ny, nx) show."""
    weights = np.array(NUMBERS) ** 1.7 / 1000
    return (0.2 + np.tensordot(weights, atoms, 1) + rng.normal(scale=0.05, size=atoms.shape[1:])).astype(np.float32)


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
    request = request_of(METHODS[method], list(ELEMENTS), None, "windows", 2.0, None, None)
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
    if fit.n_failed_tiles:
        raise SystemExit(f"{fit.n_failed_tiles} tiles are not fused: {'; '.join(fit.diagnostics.sentences)}")
    print("\n".join([*fit.diagnostics.sentences, f"factors of the totals {fit.total_factors}"]), flush=True)
    fused.save(Path(folder) / "fused.zspy", show_progressbar=False)
    fused.report()
    memory = peak()
    print(f"saved and reported: peak {memory:.2f} GB", flush=True)
    small = [one.isig[:1024, :1024] for one in (maps, haadf)]
    for one in small:
        one.compute(show_progressbar=False)
    start = time.process_time()
    hyperspy_fusion.fuse(*small, settings=settings(), **options)
    in_memory = (time.process_time() - start) / 2**20
    print(f"1024 x 1024 in memory: {1e6 * in_memory:.1f} s per million pixels", flush=True)
    cost = seconds / side**2 / in_memory
    print(f"tiles: {cost:.2f} times the cost per pixel of 1024 x 1024 in memory (bar {COST})", flush=True)
    totals, low, high = np.zeros((2, 3)), np.inf, -np.inf
    for y in range(0, side, CHUNK):
        found = np.asarray(fused.data[:, y : y + CHUNK])
        measured = np.asarray(maps.data[:, y : y + CHUNK].sum(axis=(1, 2), dtype=np.float64))
        totals += [found.sum(axis=(1, 2), dtype=np.float64), measured]
        low, high = np.minimum(low, found.min(axis=(1, 2))), np.maximum(high, found.max(axis=(1, 2)))
    off = np.abs(totals[0] / totals[1] - 1).max()
    print(f"totals off by {off:.1e} (bar {TOTAL})", flush=True)
    met = [memory < MEMORY, cost < COST, off < TOTAL]
    return met + [seam_of_corner(folder, field, sample.tile, fused, corner, high - low) for corner in corners(fused)]


def corners(fused):
    """Some places (y, x) where four tiles of a field meet: the first, the last and one in between."""
    ends = [np.cumsum(own)[:-1] for own in fused.data.chunks[1:]]
    number = min(map(len, ends))
    chosen = dict.fromkeys((0, number // 2, number - 1) if number else ())
    return [tuple(int(own[k]) for own in ends) for k in chosen]


def seam_of_corner(folder, field, call, fused, corner, ranges):
    """Whether there is no seam about a corner of tiles, where one tile is fitted as well; see the top."""
    from hyperspy_fusion.stacks.fuse_field import fit_tile
    from hyperspy_fusion.stacks.tiles import Span

    sizes = [min(own) for own in fused.data.chunks[1:]]
    halo, half = int(fused.metadata.Fusion.halo), min(WINDOW, *sizes) // 2
    blend = min(halo, *sizes) // 2
    spans = [Span(c - half, c + half, size, 2 * halo, 0) for c, size in zip(corner, field.shape, strict=True)]
    paths = {name: f"{folder}/one_{name}.npy" for name in ("maps", "errors")}
    fitted = fit_tile(field.arrays.part([s.fitted for s in spans]), call, spans, paths)
    print(f"tiles that meet at {corner}", "" if hasattr(fitted, "fused") else fitted)
    reference = np.load(paths["maps"]) * np.asarray(fused.metadata.Fusion.total_factors)[:, None, None]
    found = np.asarray(fused.data[(slice(None), *(s.core for s in spans))])
    return has_no_seam((found - reference) / ranges[:, None, None], [half], blend)


def peak():
    """The largest resident set of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def seams(name, counts, penalty):
    """Whether tiles of a phantom have no seams; see the top."""
    import hyperspy_fusion

    (side, size), (maps, haadf) = SEAMS, _phantom(name, counts)
    kind = functools.partial(hyperspy_fusion.CalibratedSettings, regularization=penalty)
    fuse = functools.partial(hyperspy_fusion.fuse, maps, haadf, method="calibrated", show_progressbar=False)
    fits = [fuse(settings=kind(tile_size=one)) for one in (size, side)]
    found, reference = (np.asarray(one.data) for one in fits)
    off = (found - reference) / np.ptp(reference, axis=(1, 2))[:, None, None]
    print(f"{name}, {counts} counts, {penalty}")
    return has_no_seam(off, np.arange(size, side, size), min(int(fits[0].metadata.Fusion.halo), size) // 2)


def has_no_seam(off, borders, blend):
    """Whether differences (n, side, side) in units of ranges show no borders of tiles, which are printed."""
    met = []
    for what, (border, elsewhere) in zip(("difference", "steps"), at_borders(off, borders, blend), strict=True):
        seam = np.sqrt(max(border**2 - elsewhere**2, 0))
        print(
            f"    {what:10} at borders {border:.1e}, elsewhere {elsewhere:.1e}: seam {seam:.1e} (bar {SEAM})",
            flush=True,
        )
        met.append(seam < SEAM)
    return all(met)


def at_borders(off, borders, blend):
    """Root mean squares at borders of tiles and elsewhere, of differences (n, side, side) and of steps in them."""
    borders = np.asarray(borders)
    lines = np.abs(np.arange(off.shape[1]) + 0.5 - borders[:, None]).min(axis=0)
    distance = np.minimum.outer(lines, lines)
    steps = np.concatenate([np.diff(off, axis=1), np.diff(off, axis=2).swapaxes(1, 2)], axis=2)
    between = np.abs(np.arange(1, off.shape[1]) - borders[:, None]).min(axis=0)
    return [
        [_largest_rms(off[:, where]) for where in (distance <= blend, distance > 2 * blend)],
        [_largest_rms(steps[:, where].reshape(len(off), -1)) for where in (between == 0, between > 2 * blend)],
    ]


def _largest_rms(values):
    return float(np.sqrt(np.mean(values**2, axis=1)).max())


def _phantom(name, counts):
    """Maps by element and image."""
    import hyperspy.api as hs

    import hyperspy_fusion

    side = SEAMS[0]
    if name != "field":
        made = getattr(hyperspy_fusion.data, name)((side, side), counts=counts, seed=1)
        maps, haadf = made.signals()
        return dict(zip(made.elements, maps, strict=True)), haadf
    expected = counts * truth(0, 0, side, side)
    drawn = np.random.default_rng(0).poisson(expected)
    haadf = hs.signals.Signal2D(image(expected / counts, np.random.default_rng(1)))
    return dict(zip(ELEMENTS, map(hs.signals.Signal2D, drawn), strict=True)), haadf


def _tile_size(side):
    """None for fields that go in tiles by themselves; others have two by two."""
    return None if side >= 4096 else -(-side // 2)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--method", choices=("auto", "calibrated"), default="calibrated")
    parser.add_argument("--regularization")
    parser.add_argument("--seams", action="store_true")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.write:
        write(args.write, args.side)
        return 0
    import hyperspy_fusion

    print(machine())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the folder is removed then, too
    if args.seams:
        cases = itertools.product(PHANTOMS, DOSES, PENALTIES)
        return conclude([seams(*case) for case in cases])
    kind = {"auto": hyperspy_fusion.AutoSettings, "calibrated": hyperspy_fusion.CalibratedSettings}[args.method]
    given = {} if args.regularization is None else {"regularization": args.regularization}
    with tempfile.TemporaryDirectory() as folder:
        if shutil.disk_usage(folder).free < ON_DISK * args.side**2:
            raise SystemExit(f"{folder} has less than {ON_DISK * args.side**2 / 1e9:.0f} GB free: set TMPDIR.")
        command = [sys.executable, "-m", "benchmarks.tiles", "--side", str(args.side), "--write", folder]
        subprocess.run(command, check=True)
        met = fuse_tiles(folder, args.side, lambda **own: kind(**given, **own), args.method)
    return conclude(met)


if __name__ == "__main__":
    sys.exit(main())
