"""Which elements `suggest_elements` finds in EDS spectra drawn at random, and what its tuned constants do to that.

    python -m benchmarks.elements                                   # 60 scans of each kind, some 3 minutes
    python -m benchmarks.elements --scans 4000-4099 --kinds usual
    python -m benchmarks.elements --scans 4000-4007 --kinds usual --sweep   # each constant at half and twice its value

The spectra are those of ``benchmarks/random_spectra.py``, of four kinds: as they usually are in a transmission
electron microscope, with a beam of 15 keV, with shelves of lines of up to a fifth, and with both. A line of the table
has the number of absent elements that are certain, the parts of the clear elements that are among the first ones of
the list and that are certain, and seconds of CPU. Of constants that enter after the search alone, the search is made
once. An absent element that is certain misses the bar; ``--verbose`` names it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from dataclasses import dataclass, replace
from importlib import import_module
from types import SimpleNamespace

from benchmarks.common import conclude, machine

KINDS = {"usual": {}, "15 keV": {"beam": 15.0}, "shelves": {"shelf": 0.2}, "both": {"beam": 15.0, "shelf": 0.2}}
SPECTRA = "fusion.spectra"
MODULES = ("maps.suggestion", f"{SPECTRA}.element_search", f"{SPECTRA}.element_evidence", f"{SPECTRA}.artefacts")
# constants of `element_evidence` that the search has too
SHARED = {"ARTEFACT_ERROR", "RATIO", "ABSORBED_BELOW", "THROUGH", "EDGE"}
# numbers of columns and of nature
NOT_TUNED = {"EXTRA", "SILICON_KA", "_MOST_COUNTS"}
# elements of the list beyond as many as there are, among which a clear one is found
MORE = 4


@dataclass
class Score:
    """Elements counted over scans."""

    false: int = 0
    clear: int = 0
    found: int = 0
    certain: int = 0
    seconds: float = 0.0

    def add(self, drawn, elements, certain):
        """Count those of one scan; returns the absent ones that are certain."""
        absent = [element for element in certain if element not in drawn.elements]
        self.false, self.clear = self.false + len(absent), self.clear + len(drawn.clear)
        self.found += len(set(drawn.clear) & set(elements[: len(drawn.elements) + MORE]))
        self.certain += len(set(drawn.clear) & set(certain))
        return absent

    def __str__(self):
        parts = (100 * n / max(self.clear, 1) for n in (self.found, self.certain))
        return " | ".join((f"{self.false:5d}", *(f"{part:7.1f}" for part in parts), f"{self.seconds:6.1f}"))


def searched(scans, options, verbose=False):
    """``(score, kept)``: what is found in scans, and for each the arguments of its last step."""
    import hyperspy_fusion as hf
    from benchmarks.random_spectra import drawn_spectra
    from hyperspy_fusion.fusion.spectra import element_search

    score, kept, judge = Score(), [], element_search._evidence

    def keep(*arguments):
        kept[-1].arguments = arguments
        return judge(*arguments)

    with changed({"_evidence": keep}, [element_search]):
        for seed in scans:
            drawn = drawn_spectra(seed, **options)
            kept.append(SimpleNamespace(drawn=replace(drawn, signal=None), arguments=None))
            start = time.process_time()
            shown = hf.suggest_elements(drawn.signal)
            score.seconds += time.process_time() - start
            absent = score.add(drawn, shown.elements, shown.certain)
            if verbose and absent:
                print(f"    scan {seed}: {' '.join(absent)} certain beside {' '.join(drawn.elements)}", flush=True)
    return score, kept


def judged(kept):
    """The score where only the last step, which judges how certain elements are, is done again."""
    from hyperspy_fusion.fusion.spectra import element_search

    score, start = Score(), time.process_time()
    for one in kept:
        found = element_search._evidence(*one.arguments) if one.arguments else []
        ranked = sorted(found, key=lambda evidence: -evidence.evidence)
        names = [evidence.element for evidence in ranked]
        score.add(one.drawn, names, [evidence.element for evidence in ranked if evidence.is_certain])
    score.seconds = time.process_time() - start
    return score


@contextlib.contextmanager
def changed(values, modules):
    """Names of modules have other values, wherever they are imported."""
    before = [(module, name, getattr(module, name)) for module in modules for name in values if hasattr(module, name)]
    for module, name, _ in before:
        setattr(module, name, values[name])
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def constants(module):
    """``{name: value}`` of the tuned numbers that a module defines."""
    with open(module.__file__, encoding="utf-8") as file:
        lines = [line.partition(" = ")[0] for line in file if line[:1].isupper() or line[:1] == "_"]
    names = [name.strip() for line in lines for name in line.split(",") if name.strip().strip("_").isupper()]
    return {name: getattr(module, name) for name in names if hasattr(module, name) and name not in NOT_TUNED}


def scaled(value, factor):
    if isinstance(value, int):
        return max(round(value * factor), 1)
    if isinstance(value, tuple):
        return tuple(scaled(one, factor) for one in value)
    return value * factor


def sweep(scans, kinds, only):
    """Print the table with each constant at half and at twice its value."""
    modules = [import_module(f"hyperspy_fusion.{name}") for name in MODULES]
    base = {kind: searched(scans, KINDS[kind]) for kind in kinds}
    for module in modules:
        last = module.__name__.endswith("element_evidence")
        for name, value in constants(module).items():
            if only and name not in only:
                continue
            for factor in (0.5, 2.0):
                having = [other for other in modules if getattr(other, name, None) is value]
                with changed({name: scaled(value, factor)}, having):
                    for kind in kinds:
                        again = last and name not in SHARED
                        score = judged(base[kind][1]) if again else searched(scans, KINDS[kind])[0]
                        print(f"{kind:8s} | {name:18s} x {factor:3g} | {score}", flush=True)


def seeds_of(text):
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=seeds_of, default=seeds_of("6000-6059"), help="seeds, such as 4000-4019")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--sweep", action="store_true", help="each tuned constant at half and at twice its value")
    parser.add_argument("--constants", nargs="+", help="only these are swept")
    parser.add_argument("--verbose", action="store_true", help="name the absent elements that are certain")
    arguments = parser.parse_args()
    import hyperspy.api as hs

    hs.set_log_level("ERROR")
    print(machine())
    print(f"\n{len(arguments.scans)} scans | constant {'':12s} | false | found % | certain % | CPU s")
    scores = []
    for kind in arguments.kinds:
        scores.append(searched(arguments.scans, KINDS[kind], arguments.verbose)[0])
        print(f"{kind:8s} | {'as they are':24s} | {scores[-1]}", flush=True)
    if arguments.sweep:
        sweep(arguments.scans, arguments.kinds, arguments.constants)
    return conclude([score.false == 0 for score in scores])


if __name__ == "__main__":
    sys.exit(main())
