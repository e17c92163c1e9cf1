"""Random and hostile input on every public function: ``python -m benchmarks.fuzz --cases 10000``.

A case draws a tiny scan (`fuzz_scans`) and a call (`fuzz_calls`), each of whose arguments may be hostile. It must end
in a result or in a sentence: an exception that the package raises itself. Anything else is a fault: another exception,
NaN from finite input, a changed input, a warning, a hang, and a result that depends on threads or on lazy loading.
``--case N`` runs one case alone. Bar: no faults.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.fuzz_calls import CALLS
from benchmarks.fuzz_scans import HOSTILITY, Draw, Scan

SENTENCES = (ValueError, TypeError, NotImplementedError, FloatingPointError, OSError)
DEPRECATIONS = (DeprecationWarning, FutureWarning)  # of HyperSpy's own dependencies
LONGEST, LONGEST_WAIT = 20, 200  # seconds of work of a case, which a busy machine does not lengthen, and of all
LAZY, THREADS = 0.15, 0.1  # part of the cases that is run again so


class Fault(Exception):
    """A case that ended neither in a result nor in a sentence."""


def arrays(result):
    """All arrays of a result."""
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, list | tuple):
        return [array for one in result for array in arrays(one)]
    data = getattr(result, "data", result)
    return [np.asarray(data.compute() if hasattr(data, "compute") else data)]


def state(signals):
    """What must stay as it is of the inputs."""
    return [(*arrays(s), repr(s.axes_manager), str(s.metadata.as_dictionary()), type(s).__name__) for s in signals]


def is_sentence(error):
    """Whether the package says itself what is wrong: a statement ``raise`` of its own, with a sentence."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    own = "hyperspy_fusion" in Path(last.filename).parts and (last.line or "").startswith("raise")
    sentence = str(error).partition("\n")[0]  # a list may follow
    return own and isinstance(error, SENTENCES) and (sentence.endswith((".", "?")) or sentence != str(error))


def run(seed, number, **changes):
    """The draw, the outcome ("result" or "sentence") and what came out; a `Fault` for anything else."""
    draw = Draw(seed, number, **changes)
    names, shares = zip(*((name, call[0]) for name, call in CALLS.items()), strict=True)
    name = str(draw.rng.choice(names, p=np.divide(shares, sum(shares))))
    draw.notes["call"] = name
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        scan = Scan(draw)
        draw.hostility = draw.rng.choice(HOSTILITY)
        before = state(scan.inputs)
        warnings.simplefilter("always")
        try:
            found = [a for a in arrays(CALLS[name][1](draw, scan)) if a.dtype.kind in "biufc"]
            outcome = "result"
        except Exception as error:
            if not is_sentence(error):
                place = traceback.extract_tb(error.__traceback__)
                own = [f for f in place if "hyperspy_fusion" in Path(f.filename).parts] or place
                raise fault(draw, f"{type(error).__name__}: {str(error)[:150]!r}, {where(own[-1])}") from error
            outcome, found = "sentence", re.sub(r"Lazy|tmp\w{8}", "", str(error))
        warnings.simplefilter("ignore")
        after = state(scan.inputs)
    caught = [w for w in caught if not (issubclass(w.category, DEPRECATIONS) and "hyperspy_fusion" not in w.filename)]
    if caught:
        first = caught[0]
        raise fault(draw, f"warning {first.category.__name__}: {first.message}, {first.filename}:{first.lineno}")
    if not same(before, after):
        raise fault(draw, "changed input")
    finite = all(np.isfinite(one[0]).all() for one in before)
    if outcome == "result" and CALLS[name][2] and finite and not all(np.isfinite(array).all() for array in found):
        raise fault(draw, "NaN in the result of finite input")
    return draw, outcome, found


def where(frame):
    return f"{Path(frame.filename).name}:{frame.lineno}"


def fault(draw, what):
    return Fault(f"{what}\n    {draw.notes}")


def same(one, other):
    """Whether two outcomes are alike to the bit."""
    try:
        np.testing.assert_equal(one, other)
    except AssertionError:
        return False
    return True


def case(seed, number):
    """The outcome of a case, and of the same lazily and on two threads."""
    draw, outcome, found = run(seed, number)
    for what, part, changes in (("lazily", LAZY, {"lazy": True}), ("on two threads", THREADS, {"workers": 2})):
        if draw.rng.random() < part:
            _, again, other = run(seed, number, **changes)
            if again != outcome or not same(found, other):
                words = [text for text in (found, other) if isinstance(text, str)]
                raise fault(draw, f"another {outcome} {what}: {' / '.join(words)}")
    return outcome, found


def timed(seed, number):
    """A case, ended after `LONGEST` seconds of work or `LONGEST_WAIT` in all."""

    def hang(*_):
        raise TimeoutError(f"hang of more than {LONGEST} s of work or {LONGEST_WAIT} s in all")

    for number_of_signal in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number_of_signal, hang)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    signal.alarm(LONGEST_WAIT)
    try:
        return case(seed, number)
    except Fault as found:
        return "fault", str(found)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def compile_kernels():
    """Compile all that cases use, which would be a hang otherwise."""
    import hyperspy_fusion as hf
    from hyperspy_fusion.fusion.settings import SETTINGS

    for name in ("published", "calibrated"):
        for dtype in ("float32", "float64"):
            few = SETTINGS[name](max_iter=2, dtype=dtype)
            hf.fuse(*hf.data.core_shell((16, 16)).signals(), method=name, settings=few)


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="run this one alone")
    parser.add_argument("--sentences", action="store_true", help="print each sentence once")
    asked = parser.parse_args()
    os.environ["MPLBACKEND"] = "Agg"
    import hyperspy.api as hs
    import matplotlib.pyplot as plt

    hs.preferences.General.show_progressbar = False
    for name in ("hyperspy_fusion", "hyperspy", "exspy", "rsciio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    compile_kernels()
    numbers = range(asked.first, asked.first + asked.cases) if asked.case is None else [asked.case]
    start, counts, sentences = time.monotonic(), Counter(result=0, sentence=0, fault=0), Counter()
    for number in numbers:
        outcome, found = timed(asked.seed, number)
        plt.close("all")
        counts[outcome] += 1
        if outcome == "sentence":
            sentences[found] += 1
        if outcome == "fault":
            print(f"python -m benchmarks.fuzz --seed {asked.seed} --case {number}: {found}", flush=True)
    if asked.sentences or asked.case is not None:
        print("\n".join(f"{number} x {sentence}" for sentence, number in sentences.most_common()))
    print(f"{dict(counts)}, {len(sentences)} different sentences, {time.monotonic() - start:.0f} s")
    return 1 if counts["fault"] else 0


if __name__ == "__main__":
    sys.exit(main())
