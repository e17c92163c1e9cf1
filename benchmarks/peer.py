"""Our fit against the published C++ code (``multimodal-fusion`` 0.6.0), in one run on one machine.

    python -m benchmarks.peer                # everything, about seven minutes, nearly all of them the peer's
    python -m benchmarks.peer --cases 256    # one size
    python -m benchmarks.peer --quick        # 3 iterations at 2048x2048: iteration speed only

Both get the same float32 arrays, weights (Z / mean Z), gamma, iterations and inner iterations of the total
variation. Measured in alternation, the best of several repeats:

iteration
    The peer's loop alone, over its iterations, without its cost history. Ours is the whole call of the
    solver: loop, allocation, cost history and the result in the units of the input.
arrays to result
    The peer: construct, load the maps, load the HAADF image, run without cost history, get the results. Ours:
    state the problem and solve it. The copies the peer needs, because it edits its input, are not counted.

fuse
    The peer's loop alone again. Ours: ``fuse(maps, haadf, method="published")``, signals in and out.

The peer's inner loop of n iterations takes n - 1 steps of plain gradient projection (its "FGP" has no
extrapolation). The bars are for the same fit by both, n - 1 such steps, whose results are compared. Lines
without a bar: ours by default, which takes n steps of FGP and so does more; and that against the peer with
its cost history. Compilation is left out and printed. The peak memory of a large fit is that of a process of
its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common import ELEMENTS, OPTIONS, conclude, load_peer, machine, run_peer, tutorial_scan

MEMORY_SHAPE = (5, 4096, 4096)
MEMORY_LIMIT = 5.0
TOTAL_BAR = 50.0
# pixels per edge from which the peer is run as few times as possible
QUICK_ABOVE = 1000


@dataclass(frozen=True)
class Case:
    """One size: a data set, how often it is tiled, the bars of an iteration and of ``fuse``, and repeats."""

    dataset: str
    size: int
    tiles: int
    bar: float
    fuse_bar: float | None
    repeats: int
    peer_repeats: int


CASES = (
    Case("DyScO3", 256, 1, 30.0, 8.0, 7, 5),
    Case("Co3O4_Mn3O4", 400, 1, 20.0, 12.0, 7, 3),
    Case("DyScO3", 2048, 8, 40.0, None, 3, 1),
)


# ---- data ----------------------------------------------------------------------------------------


def scan(case):
    """Maps ``(3, size, size)`` and HAADF ``(size, size)`` in float32, and where they come from."""
    maps, haadf, source = tutorial_scan(case.dataset, case.size // case.tiles)
    if case.tiles > 1:
        source += f", tiled {case.tiles} x {case.tiles}"
    tiles = (case.tiles, case.tiles)
    return np.tile(maps, (1, *tiles)), np.tile(haadf, tiles), source


# ---- the two fits --------------------------------------------------------------------------------


def fit_ours(maps, haadf, numbers, options):
    """Seconds of the solver, seconds from arrays to result, and the maps in the units of the input."""
    from hyperspy_fusion.fusion.problems.published import published_problem
    from hyperspy_fusion.fusion.settings import PublishedSettings
    from hyperspy_fusion.fusion.solvers.proximal_gradient import proximal_gradient

    settings = PublishedSettings(**options)
    start = time.perf_counter()
    problem = published_problem(maps, haadf, numbers, settings)
    solving = time.perf_counter()
    result, _ = proximal_gradient(problem, settings)
    end = time.perf_counter()
    return end - solving, end - start, result.maps


def fuse_ours(maps, haadf, elements, options):
    """Seconds of the whole call on signals."""
    import hyperspy.api as hs

    import hyperspy_fusion
    from hyperspy_fusion.fusion.settings import PublishedSettings

    signals = [hs.signals.Signal2D(image.copy()) for image in maps]
    for element, signal in zip(elements, signals, strict=True):
        signal.metadata.General.title = element
        signal.metadata.set_item("Sample.elements", [element])
    image, settings = hs.signals.Signal2D(haadf.copy()), PublishedSettings(**options)
    start = time.perf_counter()
    hyperspy_fusion.fuse(signals, image, method="published", settings=settings, show_progressbar=False)
    return time.perf_counter() - start


def fit_peer(maps, haadf, elements, options, history_iterations):
    """Seconds of the peer: loop, arrays to result, an iteration with history; and its maps in [0, 1]."""
    named = {element: image.copy() for element, image in zip(elements, maps, strict=True)}
    image = haadf.copy()
    start = time.perf_counter()
    peer = load_peer(named, image)
    loop = time_peer(peer, options, options["max_iter"], history=False)
    result = peer.get_results()
    end = time.perf_counter()
    maps = np.stack([result[element] for element in elements])
    with_history = time_peer(peer, options, history_iterations, history=True) / history_iterations
    return loop, end - start, with_history, maps


def time_peer(peer, options, iterations, history):
    """Seconds of the peer's loop; it starts from the maps at every run."""
    spent = []
    run_peer(peer, options, iterations, history, lambda its: stopwatch(its, spent))
    return spent[0]


def stopwatch(iterations, spent):
    """The iterations, and into ``spent`` the seconds from the first to the end of the last."""
    start = time.perf_counter()
    yield from iterations
    spent.append(time.perf_counter() - start)


def compile_ours():
    """Seconds of a first tiny fit, with an empty cache of compiled code."""
    maps, haadf = phantom_like((3, 16, 16))
    start = time.perf_counter()
    fit_ours(maps, haadf, (8, 26, 78), {"max_iter": 2})
    return time.perf_counter() - start


def phantom_like(shape, seed=0):
    """Uniform random float32 maps and HAADF, made without a second copy."""
    rng = np.random.default_rng(seed)
    maps, haadf = np.empty(shape, np.float32), np.empty(shape[1:], np.float32)
    for image in (*maps, haadf):
        rng.random(out=image, dtype=np.float32)
    return maps, haadf


# ---- one case ------------------------------------------------------------------------------------


def measure(case, quick):
    """Best times of both, taken in alternation, and how far the two results are apart."""
    maps, haadf, source = scan(case)
    elements, options = ELEMENTS[case.dataset], dict(OPTIONS[case.dataset])
    numbers = tuple(elements.values())
    if quick and case.size > QUICK_ABOVE:
        options["max_iter"] = 3
    iterations, inner = options["max_iter"], options["tv_iter"]
    history_iterations = min(iterations, 3 if case.size > QUICK_ABOVE else iterations)
    # what the peer does: n - 1 steps of plain gradient projection
    like_peer = {**options, "tv_solver": "gp", "tv_iter": inner - 1}
    ours, alike, peers, calls = [], [], [], []
    for repeat in range(max(case.repeats, case.peer_repeats)):
        if repeat < case.repeats:
            ours.append(fit_ours(maps, haadf, numbers, options)[:2])
            calls.append(np.nan if case.fuse_bar is None else fuse_ours(maps, haadf, elements, options))
            *seconds, same = fit_ours(maps, haadf, numbers, like_peer)
            alike.append(seconds)
        if repeat < case.peer_repeats:
            *seconds, theirs = fit_peer(maps, haadf, elements, options, history_iterations)
            peers.append(seconds)
    default_loop, default_total = np.min(ours, axis=0)
    our_loop, our_total = np.min(alike, axis=0)
    peer_loop, peer_total, peer_history = np.min(peers, axis=0)
    return {
        "case": case,
        "source": source,
        "iterations": iterations,
        "inner": inner,
        "iteration": (peer_loop / iterations, our_loop / iterations),
        "default": (peer_loop / iterations, default_loop / iterations),
        "with history": (peer_history, default_loop / iterations),
        "total": (peer_total, our_total),
        "default total": (peer_total, default_total),
        "fuse": (peer_loop, min(calls)),
        "difference": relative_difference(normalised(same, maps), theirs),
    }


def normalised(result, maps):
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return (result - low) / (high - low)


def relative_difference(ours, theirs):
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


# ---- memory --------------------------------------------------------------------------------------


def peak_memory(shape=MEMORY_SHAPE):
    """Peak of a fit in a fresh process, input included, in units of float32 copies of the maps."""
    command = [sys.executable, "-m", "benchmarks.peer", "--memory-of", *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return float(done.stdout)


def memory_of(shape):
    """Bytes that a fit of two iterations adds at its peak to a process that has compiled everything."""
    import resource

    compile_ours()
    before = resident()
    maps, haadf = phantom_like(shape)
    fit_ours(maps, haadf, (8, 13, 26, 47, 78)[: shape[0]], {"max_iter": 2})
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before


def resident():
    """Bytes resident now (not the peak of compilation, which would flatter); Linux only, 0 elsewhere."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


# ---- report --------------------------------------------------------------------------------------


def report(row):
    """Print what was measured of one case; whether its bars are met."""
    case = row["case"]
    print(f"\n{case.size}x{case.size}x3, {row['source']}")
    print(
        f"  {row['iterations']} iterations, {row['inner']} inner; best of {case.repeats} (ours), "
        f"{case.peer_repeats} (peer); the same fit differs by {row['difference']:.1e}"
    )
    met = line("iteration", row["iteration"], case.bar)
    line("  ours with FGP", row["default"])
    line("  and peer's history", row["with history"])
    if row["iterations"] < OPTIONS[case.dataset]["max_iter"]:
        print("  arrays to result    not measured: --quick runs fewer iterations than the published fit")
        return met
    met = line("arrays to result", row["total"], TOTAL_BAR) and met
    if case.fuse_bar is not None:
        met = line("fuse", row["fuse"], case.fuse_bar) and met
    line("  ours with FGP", row["default total"])
    return met


def line(name, seconds, bar=None):
    """Print the times of the peer and of ours; whether the bar is met, where there is one."""
    peer, ours = seconds
    met = bar is None or peer >= bar * ours
    verdict = "" if bar is None else f"   bar {bar:3.0f} x   {'PASS' if met else 'FAIL'}"
    print(f"  {name:20s} peer {1e3 * peer:11.2f} ms   ours {1e3 * ours:9.3f} ms   {peer / ours:7.1f} x{verdict}")
    return met


def report_memory():
    shape = MEMORY_SHAPE
    copies = peak_memory(shape) / (4 * np.prod(shape))
    verdict = "PASS" if copies <= MEMORY_LIMIT else "FAIL"
    print(f"\npeak memory of a {shape[1]}x{shape[2]}x{shape[0]} float32 fit, input included")
    print(f"  {copies:.2f} float32 copies of the maps   bar {MEMORY_LIMIT:.0f}   {verdict}")
    return copies <= MEMORY_LIMIT


def arguments():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer", description=__doc__.split("\n")[0])
    sizes = [case.size for case in CASES]
    parser.add_argument("--cases", nargs="*", type=int, choices=sizes, default=sizes, help="sizes to run")
    parser.add_argument("--quick", action="store_true", help="3 iterations at 2048x2048")
    parser.add_argument("--no-memory", action="store_true", help="leave the 4096x4096x5 fit out")
    parser.add_argument("--memory-of", nargs=3, type=int, metavar=("N", "NY", "NX"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = arguments()
    if options.memory_of:
        print(memory_of(tuple(options.memory_of)))
        return 0
    with tempfile.TemporaryDirectory() as cache:
        # before the first import of Numba: compilation is measured, whatever ran on this machine before
        os.environ["NUMBA_CACHE_DIR"] = cache
        seconds = compile_ours()
        print(machine())
        print(f"our compilation, left out below: {seconds:.1f} s once per environment; the peer comes compiled")
        met = [report(measure(case, options.quick)) for case in CASES if case.size in options.cases]
        if not options.no_memory:
            met.append(report_memory())
    return conclude(met)


if __name__ == "__main__":
    sys.exit(main())
