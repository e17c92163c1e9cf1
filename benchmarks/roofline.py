"""Memory bandwidth of the sweep of the calibrated method, and its cost against size.

    python -m benchmarks.roofline               # both, about two minutes on two cores
    python -m benchmarks.roofline --no-sizes    # the bandwidth at 1024x1024x3 alone

Bandwidth: the bytes that an iteration has to move (each array read once, and written once where it changes), over its
time, as part of the bandwidth of a copy. Iterations share a sweep over memory, so that it may be above 1. The copy
is that of NumPy in as many threads, of an array that no cache holds. Both are the best of several repeats in
alternation. Sizes: seconds of the method's default fit, from arrays to result, against pixels times elements, with the
exponent of a power law through all of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.common import conclude, machine

PENALTIES = ("tv", "guided", "directional", "tgv")
SIZE, SWEEPS, REPEATS = 1024, 8, 5
BANDWIDTH_BAR, EXPONENT_BAR = 0.7, 1.05
EDGES, NUMBERS = (128, 256, 512, 1024, 2048), (2, 4, 9)
#: pixels times elements of the largest fit: a fit of two minutes
LARGEST = 2048**2 * 2


def problem_of(edge, number, penalty="guided"):
    """A calibrated problem of a phantom, its elements repeated up to a number; and its settings."""
    from hyperspy_fusion import data
    from hyperspy_fusion.fusion.problems.calibrated import Observation
    from hyperspy_fusion.fusion.settings import CalibratedSettings
    from hyperspy_fusion.fusion.terms.scan_data import ScanData

    phantom = data.core_shell((edge, edge), counts=4.0)
    chosen = [k % len(phantom.elements) for k in range(number)]
    maps = np.ascontiguousarray(phantom.maps[chosen], np.float32)
    elements, numbers = [phantom.elements[k] for k in chosen], [phantom.atomic_numbers[k] for k in chosen]
    every = np.ones(maps.shape, bool)
    scan = ScanData(elements, numbers, maps, phantom.haadf.astype(np.float32), every, every[0])
    # the HAADF term with given coefficients: those of repeated elements cannot be fitted
    settings = CalibratedSettings(
        regularization=penalty, dtype="float32", haadf_coefficients="z_power", lambda_haadf=1.0, haadf_blur=0.0
    )
    return Observation.of(scan, settings).problem(settings), settings


# ---- bandwidth -------------------------------------------------------------------------------------


def copy_bandwidth(threads, size=2**26):
    """A function that copies once and returns bytes per second."""
    source, target = np.ones(size, np.float32), np.empty(size, np.float32)
    parts = [slice(k * size // threads, (k + 1) * size // threads) for k in range(threads)]
    pool = ThreadPoolExecutor(threads)

    def copy():
        start = time.perf_counter()
        list(pool.map(lambda part: np.copyto(target[part], source[part]), parts))
        return 2 * source.nbytes / (time.perf_counter() - start)

    return copy


def bytes_of_sweep(state):
    """Bytes that a sweep reads and writes; small arrays, which caches hold, count as what they are."""
    problem, penalty = state.problem, state.problem.penalty
    written = [state.z, state.z_bar, state.y, state.v, state.v_bar, state.q]
    data, term = problem.data, problem.haadf_term
    read = [data.beta, data.slope, data.delta, term.target, term.counted]
    # "directional" has more planes in the solver than in the problem
    planes = {"guided": 4, "directional": 8}.get(penalty.kind, 0)
    guide = planes * state.y[0, 0].nbytes
    return 2 * sum(a.nbytes for a in written) + sum(a.nbytes for a in read) + guide + state.residual.nbytes


def sweep_bandwidth(penalty):
    """A function that sweeps and returns bytes per second."""
    from hyperspy_fusion.fusion.solvers import kernels
    from hyperspy_fusion.fusion.solvers.loop import prepared
    from hyperspy_fusion.fusion.solvers.primal_dual import IN_ONE_SWEEP, Iteration
    from hyperspy_fusion.fusion.solvers.primal_dual_state import PrimalDualState

    problem, _ = problem_of(SIZE, 3, penalty)
    state = PrimalDualState.of(problem)
    n_bytes = bytes_of_sweep(state)

    def sweep():
        with prepared(problem.dtype, kernels.CALIBRATED, None) as (n_workers, _):
            iteration = Iteration(problem, state, n_workers)
            ones = [1] * IN_ONE_SWEEP
            iteration.advance(ones, ones)
            start = time.perf_counter()
            for _ in range(SWEEPS):
                iteration.advance(ones, ones)
            return IN_ONE_SWEEP * SWEEPS * n_bytes / (time.perf_counter() - start)

    return sweep


def report_bandwidth():
    import numba

    threads = numba.get_num_threads()
    copy, met = copy_bandwidth(threads), []
    print(f"\nbandwidth of one iteration at {SIZE}x{SIZE}x3, float32")
    for penalty in PENALTIES:
        sweep = sweep_bandwidth(penalty)
        copies, sweeps = np.max([(copy(), sweep()) for _ in range(REPEATS)], axis=0)
        met.append(sweeps >= BANDWIDTH_BAR * copies)
        print(
            f"  {penalty:12s} {sweeps / 1e9:6.1f} GB/s   copy {copies / 1e9:6.1f} GB/s   {sweeps / copies:5.2f}"
            f"   bar {BANDWIDTH_BAR}   {'PASS' if met[-1] else 'FAIL'}"
        )
    return met


# ---- cost against size -----------------------------------------------------------------------------


def report_sizes():
    from hyperspy_fusion.fusion.solvers.primal_dual_state import Stopping

    rows = []
    print("\nseconds of the calibrated fit with its defaults, without the fit of the forward model")
    for edge in EDGES:
        for number in NUMBERS:
            if edge**2 * number > LARGEST:
                continue
            problem, settings = problem_of(edge, number)
            start = time.perf_counter()
            result, _ = problem.solve(Stopping.of(settings))
            seconds = time.perf_counter() - start
            rows.append((edge**2 * number, seconds))
            per_value = 1e9 * seconds / rows[-1][0]
            print(f"  {edge:4d}x{edge:<4d}x{number}   {seconds:7.2f} s   {result.n_iter:5d} iterations   "
                  f"{per_value:6.0f} ns per value")  # fmt: skip
    exponent = np.polyfit(*np.log(rows).T, 1)[0]
    print(f"  exponent {exponent:.2f}   bar {EXPONENT_BAR}   {'PASS' if exponent <= EXPONENT_BAR else 'FAIL'}")
    return [exponent <= EXPONENT_BAR]


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__.split("\n")[0])
    parser.add_argument("--no-sizes", action="store_true", help="leave the cost against size out")
    parser.add_argument("--no-bandwidth", action="store_true", help="leave the bandwidth out")
    options = parser.parse_args()
    print(machine())
    met = [] if options.no_bandwidth else report_bandwidth()
    met += [] if options.no_sizes else report_sizes()
    return conclude(met)


if __name__ == "__main__":
    sys.exit(main())
