"""Fits side by side: their order, their threads, and what Ctrl-C leaves."""

import signal
import threading
import time

import pytest

from hyperspy_fusion.fusion.solvers import kernels
from hyperspy_fusion.fusion.solvers.threads import for_each, side_by_side


@pytest.mark.parametrize("number, workers, each", [(1, 2, 2), (2, 2, 1), (3, 2, 1), (3, 1, 1)])
def test_threads_are_shared_and_values_are_in_order(number, workers, each):
    functions = [lambda threads, k=k: (k, threads) for k in range(number)]
    assert side_by_side(functions, workers) == [(k, each) for k in range(number)]


@pytest.mark.parametrize("workers", [1, 2])
def test_estimates_keep_to_the_threads_around_them(workers):
    with kernels.threads(workers):
        found = for_each(range(3), lambda k: (k, threading.current_thread() is threading.main_thread()))
    assert found == [(k, workers == 1) for k in range(3)]


def test_as_many_run_at_once_as_there_are_threads():
    both = threading.Barrier(2, timeout=20)
    assert side_by_side([lambda threads: both.wait() >= 0] * 2, 2) == [True, True]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="Windows has no signals of threads")
def test_ctrl_c_awaits_those_that_run_and_starts_no_other():
    done = []

    def running(threads):
        time.sleep(0.3)
        done.append(threads)

    def pressed(threads):
        time.sleep(0.1)  # all are waiting or running
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        running(threads)

    with pytest.raises(KeyboardInterrupt):
        side_by_side([pressed, running, running, running], 2)
    assert len(done) == 2
