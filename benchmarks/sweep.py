"""What a tuned constant of the package does: iterations, seconds and quality for some values of it.

    python -m benchmarks.sweep fusion.solvers.primal_dual._MAPS_RATIO 1 3 9
    python -m benchmarks.sweep fusion.selection.low_accuracy_fits.LOW_ACCURACY_SETTLED 0.1 0.2 0.4
    python -m benchmarks.sweep fusion.selection.paired_comparison.FAR_BEHIND 2 4 8

The constant is given as module and name within ``hyperspy_fusion``; the value that the package has is measured first.
Calibrated fits with each penalty give iterations to the default end, and the mean PSNR against the truth; the automatic
method gives seconds of CPU and the mean PSNR. All on phantoms of 96 x 96 pixels, with three draws of the noise. Two
values differ where their means differ by more than the printed standard error of the paired difference to the first.
"""

from __future__ import annotations

import argparse
import ast
import sys
import time
from importlib import import_module

import numpy as np

from benchmarks.common import machine

PENALTIES = ("guided", "directional", "tgv")
CASES = (("core_shell", 4.0), ("interface", 16.0), ("gradient_alloy", 4.0), ("atomic_columns", 4.0))
SHAPE, SEEDS = (96, 96), (0, 1, 2)


def scans():
    """Signals and truth of all phantoms and draws."""
    from hyperspy_fusion import data

    for name, counts in CASES:
        for seed in SEEDS:
            phantom = data.PHANTOMS[name](SHAPE, counts=counts, seed=seed)
            yield *phantom.signals(), phantom.truth


def quality(fused, truth):
    """Mean PSNR of the maps in dB."""
    from hyperspy_fusion.data import psnr

    return float(np.mean([psnr(one, other) for one, other in zip(fused.data, truth, strict=True)]))


def measured(all_scans, **options):
    """(scans,) PSNR and iterations, and the seconds of CPU of all."""
    import hyperspy_fusion

    start, found = time.process_time(), []
    for maps, haadf, truth in all_scans:
        fused = hyperspy_fusion.fuse(maps, haadf, show_progressbar=False, **options)
        found.append((quality(fused, truth), int(fused.metadata.Fusion.n_iter)))
    return *np.transpose(found), time.process_time() - start


def report(label, values, first):
    """A line of the table."""
    psnr, iterations, seconds = values
    apart = psnr - first[0]
    error = np.std(apart, ddof=1) / np.sqrt(len(apart))
    print(
        f"  {label:24s} {np.median(iterations):6.0f} iterations {seconds:7.1f} s   {np.mean(psnr):6.2f} dB"
        f"   {np.mean(apart):+.2f} +- {error:.2f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__.split("\n")[0])
    parser.add_argument("constant", help="module and name within hyperspy_fusion")
    parser.add_argument("values", nargs="+", type=ast.literal_eval)
    options = parser.parse_args()
    path, name = options.constant.rsplit(".", 1)
    module = import_module(f"hyperspy_fusion.{path}")
    present, all_scans = getattr(module, name), list(scans())
    runs = {penalty: {"method": "calibrated", "regularization": penalty} for penalty in PENALTIES} | {"auto": {}}
    print(machine())
    for label, of_run in runs.items():
        print(label)
        measured(all_scans[:1], **of_run)  # compiled, and in memory
        first = None
        for value in (present, *options.values):
            setattr(module, name, value)
            found = measured(all_scans, **of_run)
            first = first or found
            report(f"{name} = {value}", found, first)
        setattr(module, name, present)
    return 0


if __name__ == "__main__":
    sys.exit(main())
