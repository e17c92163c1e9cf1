"""Whether the errors that are given are the errors that are made: coverage of intervals over 200 draws of the noise.

    python -m benchmarks.coverage                 # 4 phantoms at 1, 4 and 16 peak counts, an hour or two on a core
    python -m benchmarks.coverage --counts 4 --phantoms interface --draws 50 --regularization directional
    python -m benchmarks.coverage --counts 4 --phantoms interface --draws 40 --method auto
    python -m benchmarks.coverage --draws 40 --haadf-blur    # by fits that know of the blur of the image

Scans of 64x64 with a HAADF image blurred by 1 pixel, offset by 0.2 and amplified by 3, none of which the method is
told; counts and image are drawn anew each time and each draw is fitted with default weights, with replicates of its
own. ``--method auto`` chooses its mean of fits on the first draw, and fits the same mean to the others, which leaves
out what another choice would differ by; ``--choose each`` chooses anew on every draw and takes several times as long.

For each region and element: in how many draws the truth lies within one standard error of the value. By chance a
figure of 200 draws differs from its mean by 3.3 % (one standard deviation); how much the regions of a phantom differ
beyond that is "beyond chance". For each element: the root mean square of
the given errors of pixels over that of the errors made, and by how much the error given to a pixel differs from its
own root mean square error, on average over the pixels of the specimen.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time

import numpy as np

from benchmarks.common import conclude, machine

SCAN = {"haadf_blur": 1.0, "haadf_offset": 0.2, "haadf_gain": 3.0}
SHAPE = (64, 64)
DOSES = (1.0, 4.0, 16.0)
LOW, HIGH, PIXEL_BAR = 0.60, 0.76, 0.30
# regions with fewer counts than this have no error that 68 % of anything could lie within
FEWEST_COUNTS = 5


# ---- regions -------------------------------------------------------------------------------------


def regions(phantom):
    """``{name: (ny, nx) bool}``: large and small, on edges, across them, and what consists of one element."""
    ny, nx = phantom.haadf.shape
    y, x = np.mgrid[:ny, :nx]
    total = phantom.truth.sum(axis=0)
    specimen = total > 0.15 * total.max()
    found = {"specimen": specimen, "left half": (x < nx // 2) & specimen}
    rows = (2 * y < ny, 2 * y >= ny)
    for radius, (cy, cx) in itertools.product((10, 5, 2.5), ((0.34, 0.30), (0.66, 0.64))):
        found[f"disc {radius:g} at {cy}"] = (y - cy * ny) ** 2 + (x - cx * nx) ** 2 < radius**2
    found["line"] = (abs(x - nx // 2) < 2) & (abs(y - ny // 2) < ny // 4)
    for name, image in zip(phantom.elements, phantom.truth, strict=True):
        found[f"{name} above half"] = image > 0.5 * image.max()
    steep = np.hypot(*np.gradient(phantom.truth[0]))
    found["edges"] = (steep > np.quantile(steep, 0.9)) & specimen
    found["edges above"] = found["edges"] & rows[0]
    return {name: mask for name, mask in found.items() if np.count_nonzero(mask) >= 8}


# ---- one phantom at one dose ---------------------------------------------------------------------


def measure(name, counts, options):
    """Coverage by (region, element), of ratios by region, and errors of pixels by element."""
    from hyperspy_fusion.data import PHANTOMS

    scans = (PHANTOMS[name](SHAPE, counts=counts, seed=seed, **SCAN) for seed in range(options.draws))
    tables, made, given, start = [], 0.0, [], None
    for scan in scans:
        found, start = fit(scan, options, start)
        tables.append(judge(scan, found))
        made = made + (found.maps - scan.truth) ** 2 / options.draws
        given.append(found.standard_errors().astype(np.float32))
    specimen = scan.truth > 0.05 * scan.truth.max(axis=(1, 2), keepdims=True)
    return {
        "name": name,
        "counts": counts,
        "elements": scan.elements,
        "regions": {key: np.array([t[0][key] for t in tables]) for key in tables[0][0]},
        "ratios": {key: np.array([t[1][key] for t in tables]) for key in tables[0][1]},
        "rms": np.sqrt(np.mean(np.square(given), axis=(0, 2, 3)) / made.mean(axis=(1, 2))),
        "pixels": [
            float(np.mean(abs(np.stack(given)[:, i] / np.sqrt(made[i]) - 1)[:, specimen[i]])) for i in range(len(made))
        ],
    }


def fit(scan, options, start):
    """Replicates of the fit of a scan, and what the next one starts from."""
    return (fit_auto if options.method == "auto" else fit_calibrated)(scan, options, start)


def fit_calibrated(scan, options, start):
    """By one penalty with default weights; the start is the state of the first fit."""
    from hyperspy_fusion.fusion.settings import CalibratedSettings
    from hyperspy_fusion.fusion.uncertainty.bootstrap import bootstrap

    names = ("regularization", "haadf_blur", "tol", "max_iter")
    settings = CalibratedSettings(**{name: getattr(options, name) for name in names})
    problem = observed(scan, settings).problem(settings)
    result, state = problem.solve(settings, start and problem.start(start))
    return bootstrap(problem, settings, state, result.maps, options.replicates), start or state


def fit_auto(scan, options, start):
    """By the ensemble that is chosen, which is returned as the next start if it is to be chosen once."""
    from hyperspy_fusion.fusion.selection.model_averaging import AveragedProblem
    from hyperspy_fusion.fusion.selection.search import select
    from hyperspy_fusion.fusion.settings import AutoSettings
    from hyperspy_fusion.fusion.uncertainty.bootstrap import bootstrap

    settings = AutoSettings(tol=options.tol, max_iter=options.max_iter)
    observation = observed(scan, settings)
    if start is None:
        ensemble, selection = select(observation, settings)
        print(f"  {selection.sentence}", flush=True)
    else:
        ensemble = [fit._replace(source=observation) for fit in start]
    problem, run = AveragedProblem.of(ensemble), ensemble[0].settings
    result, state = problem.solve(run)
    found = bootstrap(problem, run, state, result.maps, options.replicates)
    chosen = [fit._replace(source=None, state=None) for fit in ensemble]
    return found, start or (chosen if options.choose == "once" else None)


def observed(scan, settings):
    from hyperspy_fusion.fusion.problems.calibrated import Observation
    from hyperspy_fusion.fusion.terms.scan_data import ScanData

    return Observation.of(ScanData.of(scan.maps.astype(np.float32), scan.haadf, scan.atomic_numbers), settings)


def judge(scan, found):
    """Per region and element: value less truth, error, fused less truth, measured less truth; the same of ratios."""
    means, ratios = {}, {}
    for name, mask in regions(scan).items():
        truth = scan.truth[:, mask].mean(axis=1)
        known = [i for i, mean in enumerate(truth) if mean * np.count_nonzero(mask) >= FEWEST_COUNTS]
        for i in known:
            mean = found.region_mean(mask, i)
            means[name, i] = [v - truth[i] for v in (mean.value, mean.fused, mean.measured)] + [mean.error]
        for i, j in itertools.combinations(known, 2):
            ratio = found.ratio(mask, i, j)
            ratios[name, i, j] = [ratio.value - truth[i] / truth[j], ratio.error]
    return means, ratios


# ---- report --------------------------------------------------------------------------------------


def coverage(table):
    return float(np.mean(abs(table[:, 0]) <= table[:, -1]))


def print_case(case):
    """The table of one phantom at one dose."""
    print(f"\n{case['name']}, {case['counts']:g} peak counts")
    print(f"  {'region':26s} covered   rms of value, of fused over that of measured; bias of fused")
    for (region, i), table in case["regions"].items():
        rms = np.sqrt(np.mean(table[:, :3] ** 2, axis=0))
        bias, figure = table[:, 1].mean() / rms[2], coverage(table)
        outside = "" if LOW <= figure <= HIGH else "  outside"
        errors = f"{rms[0] / rms[2]:6.2f}{rms[1] / rms[2]:6.2f}{bias:+7.2f}"
        print(f"  {region:22s}{case['elements'][i]:4s}{figure:8.1%}  {errors}{outside}")
    for element, rms, pixels in zip(case["elements"], case["rms"], case["pixels"], strict=True):
        print(f"  pixels of {element:3s} errors given over made {rms:.2f}; each differs by {pixels:.0%} on average")


def report(cases):
    """Print the bars with their figures; whether each is met."""
    print(f"\nbar: 68 % intervals of region means cover the truth in {LOW:.0%} to {HIGH:.0%} of the draws")
    met = [report_coverage(case, "regions") for case in cases]
    print("the same of ratios of two elements (no bar)")
    for case in cases:
        report_coverage(case, "ratios")
    print(f"bar: errors of pixels within {PIXEL_BAR:.0%} of the root mean square error, on average")
    met += [report_pixels(case) for case in cases]
    report_all(cases)
    return met


def report_coverage(case, what):
    figures = np.array([coverage(table) for table in case[what].values()])
    draws = len(next(iter(case[what].values())))
    inside = np.count_nonzero((figures >= LOW) & (figures <= HIGH))
    met = bool(LOW <= figures.mean() <= HIGH)
    print(
        f"  {where(case):24s} mean {figures.mean():.1%}, {figures.min():.0%} to {figures.max():.0%}, "
        f"{inside} of {figures.size} inside, beyond chance {beyond_chance(figures, draws):.1%}   {verdict(met)}"
    )
    return met


def beyond_chance(figures, draws):
    """Standard deviation of the coverage that ``figures`` of so many draws are estimates of."""
    chance = np.mean(figures * (1 - figures)) / (draws - 1) if draws > 1 else np.inf
    return np.sqrt(max(np.var(figures) - chance, 0))


def report_pixels(case):
    off = np.abs(case["rms"] - 1)
    met = bool(off.mean() <= PIXEL_BAR)
    print(
        f"  {where(case):24s} given over made {np.round(case['rms'], 2)}, off by {off.mean():.0%}; single pixels by "
        f"{np.mean(case['pixels']):.0%}   {verdict(met)}"
    )
    return met


def report_all(cases):
    figures = np.array([coverage(t) for case in cases for t in case["regions"].values()])
    inside = np.mean((figures >= LOW) & (figures <= HIGH))
    gains = [np.sqrt(np.mean(t[:, 0] ** 2) / np.mean(t[:, 2] ** 2)) for c in cases for t in c["regions"].values()]
    print(f"all: mean coverage {figures.mean():.1%}, {inside:.0%} of {figures.size} regions inside; ", end="")
    print(f"errors of values over those of the counts {np.mean(gains):.2f}")


def where(case):
    return f"{case['name']} {case['counts']:g}"


def verdict(met):
    return "met" if met else "NOT met"


def arguments():
    from hyperspy_fusion.data import PHANTOMS

    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.split("\n")[0])
    parser.add_argument("--counts", nargs="+", type=float, default=DOSES, help="peak counts")
    parser.add_argument("--phantoms", nargs="+", choices=list(PHANTOMS), default=list(PHANTOMS))
    parser.add_argument("--method", choices=("calibrated", "auto"), default="calibrated")
    parser.add_argument("--regularization", default="guided", help="of --method calibrated")
    known = {"action": "store_const", "const": "fit", "default": 0.0, "help": "haadf_blur='fit' of --method calibrated"}
    parser.add_argument("--haadf-blur", **known)
    parser.add_argument("--choose", choices=("once", "each"), default="once", help="the mean of --method auto")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--replicates", type=int, default=16)
    parser.add_argument("--tol", type=float, default=3e-4)
    parser.add_argument("--max-iter", type=int, default=2000)
    return parser.parse_args()


def main():
    options = arguments()
    how = options.regularization if options.method == "calibrated" else f"auto, chosen {options.choose}"
    how += ", haadf_blur='fit'" if options.haadf_blur else ""
    print(f"{machine()}; {SHAPE[0]}x{SHAPE[1]} pixels, {how}, {options.draws} draws")
    start = time.perf_counter()
    cases = []
    for name, counts in itertools.product(options.phantoms, options.counts):
        cases.append(measure(name, counts, options))
        print_case(cases[-1])
        print(f"  {time.perf_counter() - start:.0f} s so far", flush=True)
    return conclude(report(cases))


if __name__ == "__main__":
    sys.exit(main())
