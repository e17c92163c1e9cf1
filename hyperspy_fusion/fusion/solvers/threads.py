"""Fits and estimates side by side, each in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


def side_by_side(functions: Sequence[Callable[[int], Any]], num_workers: int | None = None) -> list:
    """The values of functions of a number of threads, as many of which run at once as there are threads for.

    After Ctrl-C none is started any more, and those that run are awaited. ``num_workers`` None takes all threads.
    """
    from hyperspy_fusion.fusion.solvers import kernels  # imports numba

    with kernels.threads(num_workers) as available:
        pass
    at_once = min(available, len(functions))
    if at_once < 2:
        return [function(available) for function in functions]
    each = max(1, available // len(functions))
    silenced = np.geterr()  # threads have the floating point warnings of their own

    def called(function):
        with np.errstate(**silenced):
            return function(each)

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(called, functions))


def for_each(items: Sequence, function: Callable[[Any], Any]) -> list:
    """The values of a function of each item, side by side on all threads."""
    return side_by_side([lambda _, item=item: function(item) for item in items])


class WhileAny:
    """Context of a process: ``enter`` is called when the first of its threads is in it, ``leave`` after the last."""

    def __init__(self, enter, leave):
        self.lock, self.inside, self.enter, self.leave, self.entered = threading.Lock(), 0, enter, leave, None

    def __enter__(self):
        with self.lock:
            if not self.inside:
                self.entered = self.enter()
            self.inside += 1

    def __exit__(self, *error):
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.leave(self.entered)


def _limit_blas():
    from threadpoolctl import threadpool_limits

    _let_this_thread_set_blas()
    return threadpool_limits(1, user_api="blas")


def _end_limit(limits):
    _let_this_thread_set_blas()
    limits.restore_original_limits()


def _let_this_thread_set_blas():
    """Since threadpoolctl 3.8 the first thread that limits BLAS is the only one that can, also of those of dask."""
    import threadpoolctl

    controller: Any = getattr(threadpoolctl, "OpenBLASController", None)
    if hasattr(controller, "clear_controlling_thread"):
        controller.clear_controlling_thread(force=True)


one_blas_thread = WhileAny(_limit_blas, _end_limit)
