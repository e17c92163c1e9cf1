"""How near every method comes to the truth of the phantoms, at the best weights for each: a table in dB.

    python -m benchmarks.phantoms                     # 4 phantoms at 1, 4 and 16 peak counts, a quarter of an hour
    python -m benchmarks.phantoms --counts 4 --phantoms core_shell --no-tuning

Scans of 128x128 with a HAADF image blurred by 1 pixel, offset by 0.2 and amplified by 3, none of which a method is
told. The figure is the peak signal-to-noise ratio (``hyperspy_fusion.data.psnr``) of each element, averaged over the
elements. Every method may pick the weights that score best against the truth, one value for all elements:

gaussian
    Width of the filter. "per element" may pick one for each, and is what the bar is taken from.
published
    All of ``lambda_chem``, ``lambda_tv``, ``eps`` and ``z_weighting`` of a grid, 30 iterations; the maps are rescaled
    to the totals of the measured ones, without which it fares worse.
calibrated
    ``lambda_reg``, by steps of the fourth root of 2 up to the maximum. Rows are like for like: joint or for each
    element, with the HAADF term (``lambda_haadf=1``) or without; "no noise" is ``guide_blur=None``, "blur" is
    ``haadf_blur="fit"``. The rows "tuned" take the best of them and vary ``eta`` or ``second_order`` too.

Solved to a duality gap of 1e-3, or for 1000 iterations, from the last solution. The weights of the HAADF forward model
("z_gamma") and the blur are fitted once per scan.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from dataclasses import dataclass, field

import numpy as np

from benchmarks.common import conclude, machine

SCAN = {"haadf_blur": 1.0, "haadf_offset": 0.2, "haadf_gain": 3.0, "seed": 0}
SHAPE = (128, 128)
DOSES = (1.0, 4.0, 16.0)
GAMMA = 1.7
SIGMAS = 0.5 * 2 ** (np.arange(25) / 4)
# that of the held-out counts, and beyond it in both directions
PUBLISHED = {
    "z_weighting": ("equal", "z_mean"),
    "lambda_chem": (0.003, 0.01, 0.03, 0.1, 0.3),
    "lambda_tv": (0.003, 0.01, 0.03, 0.1, 0.2, 0.4),
    "eps": (0.01, 0.1),
}
PENALTIES = ("tv", "directional", "tgv", "guided")
WAYS = tuple({"joint": joint, "lambda_haadf": weight} for weight in (0.0, 1.0) for joint in (True, False))
# what may be known of the HAADF image: nothing; the edges of its guide without noise; how far it is blurred
NO_NOISE, BLUR = {"guide_blur": None}, {"haadf_blur": "fit"}
KNOWN = {"": {}, ", no noise": NO_NOISE, ", blur": BLUR, ", no noise, blur": NO_NOISE | BLUR}
# what may be varied beside lambda_reg
TUNED = {
    "directional": ("eta", (0.99,)),
    "tgv": ("second_order", (0.25,)),
    "guided": ("second_order", (0.01,)),
}
STEPS = (2.0, 2**0.5, 2**0.25)
TOL, MAX_ITER = 1e-3, 1000
DIRECTIONAL_BAR, TGV_BAR, WEIGHT_BAR = 3.0, 2.0, 0.05
# of the noise, for how often weights are within the bar; all else is of one
DRAWS = 20


# ---- methods -------------------------------------------------------------------------------------


def score(maps, truth):
    """Mean over the elements of the PSNR in dB."""
    from hyperspy_fusion.data import psnr

    return float(np.mean([psnr(m, t) for m, t in zip(maps, truth, strict=True)]))


def gaussian(scan):
    """Best scores of Gaussian filters: one width for all elements, and one for each."""
    from scipy.ndimage import gaussian_filter

    from hyperspy_fusion.data import psnr

    pairs = list(zip(scan.maps.astype(float), scan.truth, strict=True))
    table = [[psnr(gaussian_filter(m, sigma), truth) for m, truth in pairs] for sigma in SIGMAS]
    return float(np.mean(table, axis=1).max()), float(np.mean(np.max(table, axis=0)))


def published(scan):
    """Best score of the published method on its grid."""
    settings = (dict(zip(PUBLISHED, values, strict=True)) for values in itertools.product(*PUBLISHED.values()))
    return max(score(published_maps(scan, options), scan.truth) for options in settings)


def published_maps(scan, options):
    """Fused maps with the totals of the measured ones."""
    from hyperspy_fusion.fusion.problems.published import published_problem
    from hyperspy_fusion.fusion.settings import PublishedSettings
    from hyperspy_fusion.fusion.solvers.proximal_gradient import proximal_gradient

    settings = PublishedSettings(tv_iter=5, **options)
    problem = published_problem(scan.maps.astype(np.float32), scan.haadf, scan.atomic_numbers, settings)
    maps = proximal_gradient(problem, settings)[0].maps
    ratios = scan.maps.mean(axis=(1, 2)) / np.maximum(maps.mean(axis=(1, 2)), 1e-12)
    return maps * ratios[:, None, None]


@dataclass
class Calibrated:
    """Scores of the calibrated method on one scan; each setting is solved once, from the last solution of its kind."""

    scan: object
    scores: dict = field(default_factory=dict)
    states: dict = field(default_factory=dict)

    def __post_init__(self):
        from hyperspy_fusion.fusion.problems.calibrated import Observation
        from hyperspy_fusion.fusion.settings import CalibratedSettings
        from hyperspy_fusion.fusion.terms.scan_data import ScanData

        scan, blurs = self.scan, (CalibratedSettings.haadf_blur, BLUR["haadf_blur"])
        known = ScanData.of(scan.maps, scan.haadf, scan.atomic_numbers)
        self.observations = {b: Observation.of(known, CalibratedSettings(haadf_blur=b)) for b in blurs}

    def score(self, **options):
        key = tuple(sorted(options.items()))
        if key not in self.scores:
            self.scores[key] = score(self._solve(options), self.scan.truth)
        return self.scores[key]

    def _solve(self, options):
        from hyperspy_fusion.fusion.settings import CalibratedSettings
        from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual

        settings = CalibratedSettings(tol=TOL, max_iter=MAX_ITER, **options)
        problem = self.observations[settings.haadf_blur].problem(settings)
        kind = options["regularization"], options["joint"]
        start = self.states[kind].restarted(problem) if kind in self.states else None
        result, self.states[kind] = primal_dual(problem, settings, start)
        return result.maps

    def best(self, start=1.0, **options):
        """Highest score over ``lambda_reg``, and where it is."""
        at = start
        for step in STEPS:
            at = climb(lambda weight: self.score(lambda_reg=round(weight, 4), **options), at, step)
        return self.score(lambda_reg=round(at, 4), **options), round(at, 4)

    def tuned(self, penalty, rows):
        """The best of the rows of a penalty with its other weight varied too: score and options."""
        (top, at), options = max(rows[penalty], key=lambda row: row[0])
        best = top, {"lambda_reg": at, **options}
        name, values = TUNED.get(penalty, ("", ()))
        for value in values:
            found, where = self.best(at, regularization=penalty, **options, **{name: value})
            best = max(best, (found, {"lambda_reg": where, **options, name: value}), key=lambda pair: pair[0])
        return best


def climb(f, start, step):
    """Go on by factors of ``step``, up or else down, as long as f grows."""
    for factor in (step, 1 / step):
        at = start
        while f(at * factor) > f(at):
            at *= factor
        if at != start:
            return at
    return start


def fit_weights(scan, weights, prior_scale=None):
    """The HAADF forward model as the data show it; the variance of counts is their mean."""
    from hyperspy_fusion.fusion.haadf.calibration import fit_haadf_model
    from hyperspy_fusion.fusion.terms.haadf_model import z_weights

    maps, shape = scan.maps.astype(float), z_weights(scan.atomic_numbers, GAMMA)
    return fit_haadf_model(maps, scan.haadf, maps, weights=weights, shape_weights=shape, prior_scale=prior_scale)


# ---- one scan ------------------------------------------------------------------------------------


def measure(name, counts, is_tuned):
    """All figures of one phantom at one dose."""
    from hyperspy_fusion.data import PHANTOMS

    scan = PHANTOMS[name](SHAPE, counts=counts, **SCAN)
    calibrated = Calibrated(scan)
    one, each = gaussian(scan)
    figures = {"raw": score(scan.maps, scan.truth), "gaussian": one, "gaussian, per element": each}
    figures["published"] = published(scan)
    rows = {penalty: [] for penalty in PENALTIES}
    for penalty, way in itertools.product(PENALTIES, WAYS):
        at = 1.0
        for what in known_to(penalty, way):
            options = way | KNOWN[what]
            figure, at = calibrated.best(at, regularization=penalty, **options)
            figures[label(penalty, way) + what] = figure
            rows[penalty].append(((figure, at), options))
    tuned = {p: calibrated.tuned(p, rows) for p in PENALTIES} if is_tuned else {}
    figures |= {f"{p}, tuned": best for p, (best, _) in tuned.items() if p in TUNED}
    return {
        "name": name,
        "counts": counts,
        "figures": figures,
        "tuned": tuned,
        "law": law_errors(scan, "fit"),
        "gain": law_errors(scan, "z_power"),
        "free": law_errors(scan, "fit", np.inf),
        "draws": weights_of_draws(name, counts),
    }


def known_to(penalty, way):
    """What may be known of the HAADF image that changes a fit."""
    from hyperspy_fusion.fusion.haadf.guide import GUIDED

    without_effect = set()
    if penalty not in GUIDED:
        without_effect |= NO_NOISE.keys()
    if not way["lambda_haadf"] and penalty != "directional":
        without_effect |= BLUR.keys()
    return [what for what, options in KNOWN.items() if not without_effect & options.keys()]


def label(penalty, way):
    return f"{penalty}, {way_label(way)}"


def way_label(way):
    return ("joint" if way["joint"] else "each") + (" + HAADF" if way["lambda_haadf"] else "")


def weights_of_draws(name, counts):
    """Largest relative error of the weights by the gain alone and of those that a fit determines, per noise draw."""
    from hyperspy_fusion.data import PHANTOMS

    found = []
    for seed in range(DRAWS):
        scan = PHANTOMS[name](SHAPE, counts=counts, **SCAN | {"seed": seed})
        laws = law_errors(scan, "z_power"), [row for row in law_errors(scan, "fit") if row[-1]]
        found.append([max((abs(row[1]) for row in forward_model), default=np.nan) for forward_model in laws])
    return np.array(found)


def law_errors(scan, weights, prior_scale=None):
    """Element, relative error of its fitted weight, relative standard error, and whether the weight is determined."""
    fit = fit_weights(scan, weights, prior_scale)
    known = np.logical_and(scan.weights_determined, fit.determined)
    errors = fit.weights / scan.haadf_weights - 1
    spreads = fit.standard_errors / scan.haadf_weights
    return list(zip(scan.elements, errors, spreads, known, strict=True))


# ---- report --------------------------------------------------------------------------------------


def print_table(cases):
    """One line per method, one column per scan; the highest of each column is starred."""
    names = list(dict.fromkeys(case["name"] for case in cases))
    width = 9 * sum(case["name"] == names[0] for case in cases)
    print("\nPSNR in dB, mean over elements, at the best weights; * the best of its column")
    print(f"{'':42s}" + "".join(f"{name:>{width}s}" for name in names))
    print(f"{'peak counts':42s}" + "".join(f"{case['counts']:9g}" for case in cases))
    tops = [max(case["figures"].values()) for case in cases]
    for method in cases[0]["figures"]:
        values = (case["figures"][method] for case in cases)
        marks = (f"{v:8.2f}{'*' if v == top else ' '}" for v, top in zip(values, tops, strict=True))
        print(f"{method:42s}" + "".join(marks))


def print_weights(cases):
    """Where the best of each penalty was found."""
    print("\nbest weights")
    for case in cases:
        for penalty, (figure, options) in case["tuned"].items():
            chosen = {name: value for name, value in options.items() if name not in WAYS[0]}
            settings = ", ".join(f"{name} {value}" for name, value in chosen.items())
            print(f"  {where(case):24s} {penalty:12s} {figure:6.2f} dB   {way_label(options):13s} {settings}")


def where(case):
    return f"{case['name']} {case['counts']:g}"


def report_gain(cases, phantom, penalty, bar):
    """A penalty over total variation on one phantom, like for like in four ways, and best against best.

    Judged is the last, at every dose: with the HAADF term total variation may know as much of the image as a guide.
    """
    met, cases = [], [case for case in cases if case["name"] == phantom]
    if cases:
        print(f"bar: {penalty} at least {bar:g} dB above tv on {phantom}, best of all against best of all")
    for case in cases:
        gains = gains_over_tv(case, penalty)
        text = "   ".join(f"{way} {gain:+.2f}" for way, gain in gains.items())
        met.append(gains["best of all"] >= bar)
        print(f"  {where(case):24s} {text}   {verdict(met[-1])}")
    return met


def gains_over_tv(case, penalty):
    """By what a penalty is better than total variation, like for like in each way, and best against best."""
    gains = {way_label(way): highest(case, penalty, way) - highest(case, "tv", way) for way in WAYS}
    return gains | {"best of all": best(case, penalty) - best(case, "tv")}


def best(case, penalty):
    """The highest figure of a penalty over the four ways."""
    return max(highest(case, penalty, way) for way in WAYS)


def highest(case, penalty, way):
    """The figure of a penalty in one way, by the best of what may be known of the image."""
    return max(case["figures"][label(penalty, way) + what] for what in known_to(penalty, way))


def report_gaussian(case):
    """The best penalty over the best Gaussian filter."""
    figures = case["figures"]
    penalty = max(PENALTIES, key=lambda p: best(case, p))
    gain = best(case, penalty) - figures["gaussian, per element"]
    print(f"  {where(case):24s} {penalty:12s} {gain:+.2f} dB   {verdict(gain > 0)}")
    return gain > 0


def report_law(case):
    """Weights against the truth: of a fit of the gain alone, of all weights, and of all to the data alone."""
    known = [row for row in case["law"] if row[-1]]
    gain, forward_model = (all(abs(row[1]) <= WEIGHT_BAR for row in rows) for rows in (case["gain"], known))
    often = [share(draws) for draws in case["draws"].T]
    print(f"  {where(case):24s} {weights_line(case['gain'][:1])}   {verdict(gain)}; {often[0]}")
    print(
        f"  {'all weights':>24s} {weights_line(case['forward_model'])}   "
        f"{verdict(forward_model) if known else 'none known'}; {often[1]}"
    )
    print(f"  {'data alone':>24s} {weights_line(case['free'])}")
    return gain and forward_model


def share(draws):
    """In how many draws of the noise the worst weight is within the bar, of those in which any is determined."""
    known = draws[np.isfinite(draws)]
    return f"in {np.count_nonzero(known <= WEIGHT_BAR)} of {known.size} draws" + f" of {DRAWS}" * (known.size < DRAWS)


def weights_line(forward_model):
    """In brackets what is not determined."""
    rows = (
        (f"{e} {100 * error:+.1f} % (s.e. {100 * spread:.1f} %)", known) for e, error, spread, known in forward_model
    )
    return "   ".join(text if known else f"[{text}]" for text, known in rows)


def verdict(met):
    return "met" if met else "NOT met"


def report_bars(cases):
    """Print the bars with their figures; whether each is met."""
    print()
    met = report_gain(cases, "core_shell", "directional", DIRECTIONAL_BAR)
    met += report_gain(cases, "atomic_columns", "tgv", TGV_BAR)
    print("bar: the best penalty, not tuned, above the best Gaussian filter, one per element")
    met += [report_gaussian(case) for case in cases]
    print(f"bar: fitted weights within {100 * WEIGHT_BAR:g} % of the truth in the first draw of the noise: of the gain")
    print("alone, the exponent being known, and of all weights, where they are determined (others are in brackets)")
    return met + [report_law(case) for case in cases]


def arguments():
    from hyperspy_fusion.data import PHANTOMS

    parser = argparse.ArgumentParser(prog="python -m benchmarks.phantoms", description=__doc__.split("\n")[0])
    parser.add_argument("--counts", nargs="+", type=float, default=DOSES, help="peak counts")
    parser.add_argument("--phantoms", nargs="+", choices=list(PHANTOMS), default=list(PHANTOMS))
    parser.add_argument("--no-tuning", action="store_true", help="vary lambda_reg alone")
    return parser.parse_args()


def main():
    options = arguments()
    print(f"{machine()}; {SHAPE[0]}x{SHAPE[1]} pixels")
    start = time.perf_counter()
    scans = itertools.product(options.phantoms, options.counts)
    cases = []
    for name, counts in scans:
        cases.append(measure(name, counts, not options.no_tuning))
        print(f"{where(cases[-1])} measured, {time.perf_counter() - start:.0f} s so far", flush=True)
    print_table(cases)
    if not options.no_tuning:
        print_weights(cases)
    return conclude(report_bars(cases))


if __name__ == "__main__":
    sys.exit(main())
