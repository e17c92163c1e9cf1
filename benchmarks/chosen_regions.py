"""Regions that a noisy map chose, and that other images chose: bias and coverage of their sums of counts.

    python -m benchmarks.chosen_regions                    # two phantoms, 24 draws each, a minute
    python -m benchmarks.chosen_regions --alike 0.8 0.95   # other parts of pixels by which a region is recognised

Counts are drawn from the Fe map of phantoms, without a fit. The region is the brightest tenth, or the darker half, of
the counts as they are, or filtered; or of the truth, of another draw, or a square. "Plain" is the sum of the counts
less the truth, over its error; "value" is that without what chance has added.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from scipy.ndimage import gaussian_filter, median_filter, uniform_filter

from benchmarks.common import conclude, machine

# image that chooses, of counts, another draw of them, and the truth; whether it is one of those that are recognised
LOOKS = {
    "counts": (lambda counts, other, truth: counts, True),
    "Gaussian 1": (lambda counts, other, truth: gaussian_filter(counts, 1.0), True),
    "Gaussian 1.7": (lambda counts, other, truth: gaussian_filter(counts, 1.7), True),
    "box 3": (lambda counts, other, truth: uniform_filter(counts, 3), True),
    "box 3, Gaussian 1": (lambda counts, other, truth: gaussian_filter(uniform_filter(counts, 3), 1.0), True),
    "median 3": (lambda counts, other, truth: median_filter(gaussian_filter(counts, 0.7), 3), False),
    "another draw": (lambda counts, other, truth: gaussian_filter(other, 1.0), False),
    "truth": (lambda counts, other, truth: truth, False),
}
# parts of the pixels: the brightest, or with a sign the darkest
PARTS = (0.1, -0.5)
PHANTOMS, DOSES, SIZE = ("core_shell", "atomic_columns"), (0.3, 3.0, 30.0), 64
LOW, HIGH, LARGEST = 0.58, 0.85, 0.5


def measure(phantom, dose, look, part, draws):
    """(draws, 3): whether the region is recognised, and sums less the truth over their errors, plain and value."""
    from hyperspy_fusion.data import PHANTOMS as KNOWN
    from hyperspy_fusion.fusion.uncertainty.chosen_regions import ChosenRegion

    truth, found = KNOWN[phantom]((SIZE, SIZE), counts=dose).truth[1], []
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        counts, other = (rng.poisson(truth).astype(float) for _ in range(2))
        image = np.sign(part) * LOOKS[look][0](counts, other, truth)
        mask = image >= np.quantile(image, 1 - abs(part))
        if not 0 < np.mean(mask) < 0.9:
            continue
        region, total, true = ChosenRegion.of(mask, counts), counts[mask].sum(), truth[mask].sum()
        left = total if region is None else total - region.chance(counts[None])[0]
        more = 0.0 if region is None else region.variance(counts)
        # no counts do not prove that there are none
        found.append(
            (
                region is not None,
                (total - true) / np.sqrt(max(total, 1.3)),
                (left - true) / np.sqrt(max(left + more, 1.3)),
            )
        )
    return np.array(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alike", type=float, nargs="+", help="instead of the default")
    parser.add_argument("--draws", type=int, default=24)
    arguments = parser.parse_args()
    from hyperspy_fusion.fusion.uncertainty import chosen_regions

    print(machine())
    met = []
    for alike in arguments.alike or [chosen_regions.NEARLY_ALL]:
        chosen_regions.NEARLY_ALL = alike
        print(f"\nalike {alike:g}; chosen by    | recognised | plain in errors | value: mean, covered")
        for look, (_, is_known) in LOOKS.items():
            cases = [(p, d, q) for p in PHANTOMS for d in DOSES for q in PARTS]
            found = [measure(p, d, look, q, arguments.draws) for p, d, q in cases]
            found = [one for one in found if len(one)]
            recognised, plain, mean = np.mean([one.mean(axis=0) for one in found], axis=0)
            off = np.mean([abs(one.mean(axis=0)) for one in found], axis=0)
            covered = float(np.mean([np.mean(abs(one[:, 2]) < 1) for one in found]))
            print(f"{look:22s} | {100 * recognised:8.0f} % | {off[1]:15.2f} | {off[2]:11.2f}, {100 * covered:.0f} %")
            if is_known or look in ("another draw", "truth"):
                met.append(LOW <= covered <= HIGH and off[2] < LARGEST)
    return conclude(met)


if __name__ == "__main__":
    sys.exit(main())
