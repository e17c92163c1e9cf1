"""Number and length of the warnings on two good scans: ``python -m benchmarks.warnings``.

Bar: at most three warnings of at most 30 words each. Files that are absent are left out.
"""

from __future__ import annotations

import sys

from benchmarks.common import SHARED, conclude

SCANS = {"bruker_test_TEM": "Cu O Pd Ti", "L2083-K-4-1_tilt0": "Fe Mg Si O S Al Pt Cu C"}
MOST_WARNINGS, MOST_WORDS = 3, 30
# iterations; for "auto" those after its choice, cut short: not-converged may be among its warnings
MAX_ITER = {"calibrated": 10000, "auto": 200}


def warnings_of_fit(name, elements, method):
    """The warnings of one fit and the codes of all its diagnostics."""
    import hyperspy.api as hs

    import hyperspy_fusion as hf

    haadf, spectra = hs.load(SHARED / f"{name}.bcf")
    model = hf.FusedMultiModal(haadf, spectra, elements=elements, method=method)
    model.fit(max_iter=MAX_ITER[method], show_progressbar=False)
    return model.warnings, [f"{d.code} ({d.severity})" for d in model.diagnostics]


def main():
    """Print a line per fit; exit code 1 where the bar is not met."""
    met = []
    for name, elements in SCANS.items():
        if not (SHARED / f"{name}.bcf").exists():
            print(f"{name}: not in {SHARED}")
            continue
        for method in MAX_ITER:
            sentences, codes = warnings_of_fit(name, elements.split(), method)
            words = [len(sentence.split()) for sentence in sentences]
            print(f"{name}, {method}: {len(words)} warnings of {words} words; {', '.join(codes)}", flush=True)
            for sentence in sentences:
                print(f"    {sentence}")
            met.append(len(words) <= MOST_WARNINGS and all(number <= MOST_WORDS for number in words))
    return conclude(met)


if __name__ == "__main__":
    sys.exit(main())
