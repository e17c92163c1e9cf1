"""Fits and estimates side by side, each in a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import numpy as np


def for_each(items: Sequence, function: Callable[[Any], Any], num_workers: int | None = None) -> list:
    """The values of a function of each item, side by side on so many threads; None for all."""
    values = [None] * len(items)

    def found(k, n_threads):
        values[k] = function(items[k])

    go_on_side_by_side([iter([[[partial(found, k)] for k in range(len(items))]])], num_workers)
    return values


def go_on_side_by_side(
    workflows: Sequence[Iterator], num_workers: int | None = None, tick: Callable[[], Any] = lambda: None
) -> list:
    """The values of generators, each of which yields work and goes on when it is done.

    Work is a list of sequences of functions of a number of threads. Functions of a sequence are called in turn,
    sequences of all generators side by side on as many threads as there are; one that was begun goes on first. A
    function that is alone has all threads, and is called in this thread, as the generators are. After Ctrl-C none is
    called any more, and those that run are awaited. ``num_workers`` None takes all threads. ``tick`` is called after
    every function.
    """
    from hyperspy_fusion.fusion.solvers import kernels  # imports numba

    available = kernels.number_of_threads(num_workers)
    silenced = np.geterr()  # threads have the floating point warnings of their own
    values: list[Any] = [None] * len(workflows)
    left, ready, running = [0] * len(workflows), deque(), {}  # running: {future: (generator, sequence, threads)}

    def go_on(i):
        while not left[i]:
            try:
                sequences = [deque(sequence) for sequence in next(workflows[i]) if sequence]
            except StopIteration as end:
                values[i] = end.value
                return
            left[i] = len(sequences)
            ready.extend((i, sequence) for sequence in sequences)

    def done(i, sequence):
        tick()
        if sequence:
            ready.appendleft((i, sequence))
            return
        left[i] -= 1
        go_on(i)

    def called(function, n_threads):
        with np.errstate(**silenced):
            function(n_threads)

    with ThreadPoolExecutor(available) as pool:
        for i in range(len(workflows)):
            go_on(i)
        while ready or running:
            if available == 1 or (len(ready) == 1 and not running):
                i, sequence = ready.popleft()
                sequence.popleft()(available)
                done(i, sequence)
                continue
            free = available - sum(each for _, _, each in running.values())
            each = max(1, free // max(len(ready), 1))
            while ready and len(running) < available:
                i, sequence = ready.popleft()
                running[pool.submit(called, sequence.popleft(), each)] = i, sequence, each
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                i, sequence, _ = running.pop(future)
                future.result()
                done(i, sequence)
    return values


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
