"""Number and length of the serious headlines on two good scans: ``python -m benchmarks.warnings``.

Bar: at most three of at most 90 characters each, also for all elements that the file names. Files that are absent are
left out.
"""

from __future__ import annotations

import sys

from benchmarks.common import SHARED, conclude

SCANS = [
    ("bruker_test_TEM", "Cu O Pd Ti".split()),
    ("L2083-K-4-1_tilt0", "Fe Mg Si O S Al Pt Cu C".split()),
    ("L2083-K-4-1_tilt0", None),
]
MOST_HEADLINES, MOST_CHARACTERS = 3, 90
# iterations; for "auto" those after its choice, cut short: not-converged may be among its headlines
MAX_ITER = {"calibrated": 10000, "auto": 200}


def headlines_of_fit(name, elements, method):
    """The serious headlines of one fit, and the codes of all its diagnostics."""
    import hyperspy.api as hs

    import hyperspy_fusion as hf
    from hyperspy_fusion.diagnostics import SERIOUS

    haadf, spectra = hs.load(SHARED / f"{name}.bcf")
    model = hf.FusedMultiModal(haadf, spectra, elements=elements, method=method)
    model.fit(max_iter=MAX_ITER[method], show_progressbar=False)
    serious = [d.headline for d in model.diagnostics if d.severity == SERIOUS]
    return serious, [f"{d.code} ({d.severity})" for d in model.diagnostics]


def main():
    """Print a line per fit; exit code 1 where the bar is not met."""
    met = []
    for name, elements in SCANS:
        if not (SHARED / f"{name}.bcf").exists():
            print(f"{name}: not in {SHARED}")
            continue
        for method in MAX_ITER:
            headlines, codes = headlines_of_fit(name, elements, method)
            print(f"{name}, {method}: {len(headlines)} serious; {', '.join(codes)}", flush=True)
            for headline in headlines:
                print(f"    {headline}")
            met.append(len(headlines) <= MOST_HEADLINES and all(len(one) <= MOST_CHARACTERS for one in headlines))
    return conclude(met)


if __name__ == "__main__":
    sys.exit(main())
