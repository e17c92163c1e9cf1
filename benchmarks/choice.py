"""How near the weights that method="auto" chooses come to the best ones, and how long it takes.

    python -m benchmarks.choice                       # 12 scans of phantoms, then seconds; on an idle machine
    python -m benchmarks.choice --no-phantoms

The table of the phantoms is that of ``benchmarks.phantoms``, with the best figure of all penalties and ways at weights
that know the truth; the bar is 0.5 dB below it. Seconds are those of everything: noise,
forward model, choice and fits.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time

import numpy as np

from benchmarks.common import conclude, machine
from benchmarks.convergence import Data, compile_all, scan_data
from benchmarks.phantoms import DOSES, PENALTIES, SCAN, SHAPE, WAYS, Calibrated, score, where

BAR_DB = 0.5
BAR_SECONDS = {256: 30.0, 128: 5.0}


def choose(maps, haadf, numbers, haadf_valid=None, seed=0):
    """Fused maps, the sentence about the choice, number of fits and seconds."""
    from hyperspy_fusion.fusion.problems.calibrated import Observation
    from hyperspy_fusion.fusion.selection.model_averaging import AveragedProblem
    from hyperspy_fusion.fusion.selection.search import select
    from hyperspy_fusion.fusion.settings import AutoSettings
    from hyperspy_fusion.fusion.terms.scan_data import ScanData

    start, settings = time.perf_counter(), AutoSettings(seed=seed)
    observation = Observation.of(ScanData.of(maps, haadf, numbers, haadf_valid=haadf_valid), settings)
    ensemble, selection = select(observation, settings)
    result, _ = AveragedProblem.of(ensemble).solve(settings)
    return result.maps, selection.sentence, int(selection.n_folds.sum()), time.perf_counter() - start


def report_phantom(name, counts, seeds):
    """Print the loss against the best weights; whether it is small."""
    from hyperspy_fusion.data import PHANTOMS

    scan = PHANTOMS[name](SHAPE, counts=counts, **SCAN)
    calibrated = Calibrated(scan)
    rows = {(p, k): calibrated.best(regularization=p, **way)[0] for p in PENALTIES for k, way in enumerate(WAYS)}
    (penalty, _), best = max(rows.items(), key=lambda row: row[1])
    losses = []
    for seed in range(seeds):
        maps, sentence, *_ = choose(scan.maps.astype(np.float32), scan.haadf, scan.atomic_numbers, seed=seed)
        losses.append(best - score(maps, scan.truth))
    case = {"name": name, "counts": counts}
    met = max(losses) <= BAR_DB
    listed = " ".join(f"{loss:+.2f}" for loss in losses)
    print(f"  {where(case):24s} best {best:6.2f} dB ({penalty})   lost {listed} dB   {'met' if met else 'NOT met'}")
    print(f"    {sentence}", flush=True)
    return met


def timed_data():
    """L2083 at three doses, and a phantom of 128 x 128 with three elements at three doses."""
    from hyperspy_fusion.data import core_shell

    yield from scan_data()
    for counts in DOSES:
        made = core_shell(SHAPE, counts=counts, **SCAN)
        title = f"core_shell, {counts:g} counts, {SHAPE[0]}x{SHAPE[1]}x3"
        yield Data(title, made.maps.astype(np.float32), made.haadf, made.atomic_numbers)


def report_seconds(data):
    """Print the best of two runs; whether it is below the bar."""
    runs = [choose(data.maps, data.haadf, data.numbers, data.haadf_valid) for _ in range(2)]
    _, _, fits, seconds = min(runs, key=lambda run: run[-1])
    bar = BAR_SECONDS[data.haadf.shape[0]]
    print(
        f"  {data.title:50s} {fits:4d} fits {seconds:7.1f} s   {'met' if seconds < bar else 'NOT met'} (bar {bar:g} s)"
    )
    return seconds < bar


def arguments():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choice", description=__doc__.split("\n")[0])
    parser.add_argument("--no-phantoms", action="store_true", help="seconds only")
    parser.add_argument("--no-seconds", action="store_true", help="phantoms only")
    parser.add_argument("--seeds", type=int, default=1, help="splits of the counts to choose by")
    return parser.parse_args()


def main():
    from hyperspy_fusion.data import PHANTOMS

    options, met = arguments(), []
    print(machine())
    compile_all()
    if not options.no_phantoms:
        print(f"\nphantoms, {SHAPE[0]}x{SHAPE[1]}, loss of the automatic choice (bar {BAR_DB:g} dB)")
        met += [report_phantom(name, counts, options.seeds) for name, counts in itertools.product(PHANTOMS, DOSES)]
    if not options.no_seconds:
        print("\nseconds, everything included")
        met += [report_seconds(data) for data in timed_data()]
    return conclude(met)


if __name__ == "__main__":
    sys.exit(main())
