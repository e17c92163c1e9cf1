"""Work side by side: its order, its threads, and what Ctrl-C leaves."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hyperspy_fusion.fusion.solvers import kernels
from hyperspy_fusion.fusion.solvers.threads import for_each, go_on_side_by_side


def noting(done, *names):
    """A sequence of functions that append their names and numbers of threads."""
    return [lambda threads, name=name: done.append((name, threads)) for name in names]


def is_main(_=None):
    return threading.current_thread() is threading.main_thread()


@pytest.mark.parametrize("workers", [1, 2])
def test_estimates_keep_to_the_threads_around_them(workers):
    with kernels.threads(workers):
        found = for_each(range(3), lambda k: (k, is_main()))
    assert found == [(k, workers == 1) for k in range(3)]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_alone_has_all_threads_and_runs_in_this_one(workers):
    """After the one before it in its sequence; Ctrl-C arrives in this thread alone."""
    done, ran_here = [], []
    sequence = [*noting(done, "a", "b"), lambda threads: ran_here.append(is_main())]
    go_on_side_by_side([iter([[sequence]])], workers)
    assert done == [("a", workers), ("b", workers)] and ran_here == [True]


@pytest.mark.parametrize("number, workers, each", [(2, 2, 1), (3, 2, 1), (1, 2, 2)])
def test_threads_are_shared(number, workers, each):
    done, others = [], threading.Barrier(min(number, workers), timeout=20)

    def together(threads):
        done.append(threads)
        if len(done) <= workers:
            others.wait()

    go_on_side_by_side([iter([[[together] for _ in range(number)]])], workers)
    assert done[0] == each and len(done) == number


def test_each_generator_goes_on_when_its_own_work_is_done():
    """The short one is at its end before the long one is done with its first function."""
    ended = threading.Event()

    def long():
        yield [[lambda threads: ended.wait(20)]]
        return ended.is_set()

    def short():
        for _ in range(3):
            yield [[lambda threads: None], []]
        yield []
        ended.set()
        return "short"

    assert go_on_side_by_side([long(), short()], 2) == [True, "short"]


def test_the_functions_of_a_sequence_are_called_in_turn():
    done = []
    sequences = [noting(done, *(f"{name}{k}" for k in range(20))) for name in "abc"]
    go_on_side_by_side([iter([sequences])], 2)
    for name in "abc":
        assert [one for one, _ in done if one[0] == name] == [f"{name}{k}" for k in range(20)]


def test_an_error_awaits_those_that_run_and_starts_no_other():
    done, begun = [], threading.Event()

    def long(threads):
        begun.set()
        time.sleep(0.2)
        done.append("long")

    def generator():
        yield [[lambda threads: begun.wait(20)]]
        raise FloatingPointError("far off")

    with pytest.raises(FloatingPointError, match="far off"):
        go_on_side_by_side([iter([[[long, *noting(done, "next")]]]), generator()], 2)
    assert done == ["long"]


def test_the_number_of_threads_is_read_without_waiting():
    """Without OpenMP, a thread that runs kernels keeps the others from them, and would keep them from this."""
    within = "for_each(range(2), lambda k: for_each(range(2), str))"
    code = f"from hyperspy_fusion.fusion.solvers import kernels\nfrom {for_each.__module__} import for_each\n"
    code += f"with kernels.threads(2):\n    print({within})"
    environment = os.environ | {"NUMBA_THREADING_LAYER": "workqueue"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str([["0", "1"]] * 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_ends_all(workers):
    done = []

    def fails(threads):
        raise FloatingPointError("far off")

    with pytest.raises(FloatingPointError, match="far off"):
        go_on_side_by_side([iter([[[fails, *noting(done, "next")]]]), iter([[[lambda threads: None]]])], workers)
    assert not done


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
        go_on_side_by_side([iter([[[pressed], [running], [running, running]]])], 2)
    assert len(done) == 2
