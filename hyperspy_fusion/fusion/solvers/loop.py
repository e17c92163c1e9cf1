"""What the loops of both solvers share: threads, interruption by Ctrl-C, and the callback."""

from __future__ import annotations

import logging
import signal
import threading
import time
from contextlib import contextmanager

import numpy as np

from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.solvers import kernels

_logger = logging.getLogger(__name__)

COMPILING = "Compiling the fusion kernels for %s maps, which takes about a minute at most: %s."
KEPT = "later sessions find them compiled"
NOT_KEPT = "every session does, for HYPERSPY_FUSION_CACHE=0 is set"
COMPILED = "Compiled the fusion kernels in %.0f s."
_compiling = threading.Lock()


@contextmanager
def prepared(dtype, needed, num_workers):
    """The surroundings of a loop: compiled kernels, threads, and Ctrl-C as a flag.

    Parameters
    ----------
    dtype
        Of the maps.
    needed
        Kernels that the loop calls. A message is logged where they must be compiled first.
    num_workers
        Threads; None for all.

    Yields
    ------
    n_workers : int
    interruption : Interruption
    """
    # a fit that diverges is reported by its reason, not by floating point warnings on the way
    quiet = np.errstate(over="ignore", invalid="ignore")
    with kernels.threads(num_workers) as n_workers:
        _compile(dtype, needed)
        with Interruption() as interruption, quiet:
            yield n_workers, interruption


def _compile(dtype, needed):
    """Compile the kernels that are missing, and say so. Other fits that need them wait."""
    if kernels.are_compiled(dtype, needed):
        return
    with _compiling:
        if kernels.are_compiled(dtype, needed):
            return
        _logger.warning(COMPILING, dtype, KEPT if kernels.CACHE else NOT_KEPT)
        start = time.perf_counter()
        kernels.compile_for(dtype, needed)
        _logger.warning(COMPILED, time.perf_counter() - start)


class Interruption:
    """Ctrl-C as a flag: Python raises it between any two statements, and an iteration must not be cut in two.

    The second Ctrl-C is passed on. Outside the main thread, where none arrives, this does nothing.
    """

    requested = False

    def __enter__(self):
        self.before = None
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error):
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _note(self, number, frame):
        if self.requested and callable(self.before):
            self.before(number, frame)
        self.requested = True


def asked_to_stop(callback, state):
    """Call the callback with the state; the reason where it stops the fit, else None."""
    try:
        if callback is not None:
            callback(state)
    except StopIteration:
        return StopReason.STOPPED
    except KeyboardInterrupt:
        return StopReason.INTERRUPTED
    return None
