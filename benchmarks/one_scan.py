"""What one scan with one HAADF image costs, and whether it gives the same maps, against an earlier commit.

    python -m benchmarks.one_scan                    # before stacks and before several images; some minutes
    python -m benchmarks.one_scan --against a16be06 --only published --rounds 8

Processes of the two codes take turns, each fits every case several times, and the shortest time counts: the rest is
other work of the machine. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT, SHARED, conclude, unpacked
from benchmarks.regression import SCANS, difference

#: commit -> what came after it
COMMITS = {"b4e60bf": "stacks, frames and tiles", "a16be06": "several images, spectra, reports"}
MOST, SAME = 1.03, 1e-6
#: case -> what is fused, by which method, and how often in each process
CASES = {
    "core_shell 128 published": (("core_shell", 128, 15), "published", 20),
    "L2083 published": (("L2083",), "published", 6),
    "core_shell 128 calibrated": (("core_shell", 128, 4), "calibrated", 10),
    "atomic_columns 128 calibrated": (("atomic_columns", 128, 4), "calibrated", 10),
    "L2083 calibrated": (("L2083",), "calibrated", 4),
}
IMPORT = "import"
IMPORTS = 20


def _scan(name, size=0, counts=0):
    """Maps and HAADF image."""
    import hyperspy.api as hs

    from hyperspy_fusion import element_maps
    from hyperspy_fusion.data import PHANTOMS

    if name in PHANTOMS:
        return PHANTOMS[name]((size, size), counts=counts, seed=1).signals()
    file, elements = SCANS[name]
    haadf, spectra = hs.load(str(SHARED / file))
    return element_maps(spectra, elements=elements), haadf


def as_child(package, folder, names):
    """In a process of its own: fit the cases, store their maps in ``folder``, print the shortest seconds of each."""
    warnings.simplefilter("ignore")
    import hyperspy.api as hs

    start = time.process_time()
    import hyperspy_fusion

    shortest = {IMPORT: time.process_time() - start}
    if Path(hyperspy_fusion.__file__).parent != Path(package, "hyperspy_fusion"):
        sys.exit(f"This would run {hyperspy_fusion.__file__}, which is not in {package}.")
    hs.set_log_level("CRITICAL")
    for name in names:
        of, method, repeats = CASES[name]
        maps, haadf = _scan(*of)
        seconds = []
        for _ in range(repeats + 1):  # the first one reads the compiled code
            start = time.perf_counter()
            fused = hyperspy_fusion.fuse(maps, haadf, method=method, show_progressbar=False)
            seconds.append(time.perf_counter() - start)
        shortest[name] = min(seconds[1:])
        np.save(Path(folder, f"{name}.npy"), fused.data)
    print(json.dumps(shortest))


def run(package, folder, names):
    """The shortest seconds by case of a process that imports the package in the folder ``package``."""
    code = (
        f"import sys; sys.path.append({str(ROOT)!r}); from benchmarks import one_scan; "
        f"one_scan.as_child({str(package)!r}, {str(folder)!r}, {list(names)!r})"
    )
    env = {**os.environ, "PYTHONPATH": str(package)}
    # the present folder comes before PYTHONPATH, and may hold today's package
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=folder, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"{done.stderr.strip()}\nThe code in {package} failed.")
    return json.loads(done.stdout.splitlines()[-1])


def compare(commit, names, rounds, folder):
    """Print a line for each case and for the import; whether each is as cheap, and gives the same maps."""
    folders = {word: folder / commit / word for word in ("before", "today")}
    folders["today"].mkdir(parents=True)
    packages = {"before": unpacked(commit, folders["before"]), "today": ROOT}
    seconds = {word: {} for word in packages}
    for number in range(rounds):
        for word in sorted(packages, reverse=bool(number % 2)):
            # processes that only import are short: more of them
            for found in [run(packages[word], folders[word], names if k == 0 else ()) for k in range(IMPORTS)]:
                for name, took in found.items():
                    seconds[word][name] = min(took, seconds[word].get(name, np.inf))
    print(f"\nagainst {commit}, before {COMMITS.get(commit, 'later work')}; shortest of {rounds} rounds")
    print(f"{'case':32s} {'before':>8s} {'today':>8s} {'ratio':>7s}   {'maps differ by':>14s}")
    passed = []
    for name, before in seconds["before"].items():
        today, apart, shown = seconds["today"][name], 0.0, ""
        if name != IMPORT:
            apart = difference(*(np.load(folders[word] / f"{name}.npy") for word in ("today", "before")))
            shown = f"{apart:.1e}"
        passed.append(today <= MOST * before and apart <= SAME)
        line = f"{name:32s} {before:6.3f} s {today:6.3f} s {today / before:7.3f}   {shown:>14s}"
        print(f"{line}  {'PASS' if passed[-1] else 'FAIL'}", flush=True)
    return passed


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_scan", description=__doc__.split("\n")[0])
    parser.add_argument("--against", nargs="+", default=list(COMMITS), metavar="COMMIT", help="earlier commits")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="cases with this in their name")
    parser.add_argument("--rounds", type=int, default=4, help="processes of each code")
    options = parser.parse_args()
    names = [name for name in CASES if options.only in name and (SHARED.is_dir() or "L2083" not in name)]
    with tempfile.TemporaryDirectory() as folder:
        verdicts = [compare(commit, names, options.rounds, Path(folder)) for commit in options.against]
    print(f"\nbars: at most {MOST} times as long, maps within {SAME:g} of their largest value")
    return conclude([one for passed in verdicts for one in passed])


if __name__ == "__main__":
    sys.exit(main())
