"""Tasks on HyperSpy's engine: dask with the scheduler that is set, or the client of dask.distributed."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hyperspy_fusion.fusion.solvers.threads import WhileAny, one_blas_thread


def task_of(function: Callable, *args: Any) -> Any:
    """A task that calls a function with one thread of BLAS: sums over pixels by several round in another way.

    The arguments are those of a partial function, in which dask does not look for arrays: each task reads its own, and
    no chunk stays in memory.
    """
    from dask.delayed import delayed

    return delayed(functools.partial(_with_one_blas_thread, function, *args), pure=False, traverse=False)()


def _with_one_blas_thread(function, *args):
    with one_blas_thread, kept_memory:
        return function(*args)


def run_tasks(tasks: Sequence[Any], done: Callable[[int, Any], None], num_workers: int | None = None) -> bool:
    """Run tasks, and pass the number and the value of each to `done` as it finishes, in any order.

    Parameters
    ----------
    tasks
        Of :func:`task_of`.
    done
        Called in the thread of the caller.
    num_workers
        Of the threads or processes of a local scheduler; None for all. A client has its own.

    Returns
    -------
    bool
        Whether all tasks finished: False after Ctrl-C, which leaves those that are done.
    """
    try:
        client = _client()
        if client is not None:
            _on_cluster(client, tasks, done)
        else:
            _here(tasks, done, num_workers)
    except KeyboardInterrupt:
        return False
    return True


def _set_malloc(trim, mmap):
    """Bytes from which the C library returns freed memory, and takes memory by pages of its own."""
    if _TRIMMED not in os.environ:
        return
    try:
        library = ctypes.CDLL(None)
        library.mallopt(-1, trim)
        library.mallopt(-3, mmap)
        library.malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # of glibc alone
        pass


# set by distributed for its workers: every array is then returned to the system, and the pages of the next one are new
_TRIMMED = "MALLOC_TRIM_THRESHOLD_"
kept_memory = WhileAny(lambda: _set_malloc(2**30, 2**25), lambda _: _set_malloc(2**16, 2**17))


def threads_of_task(n_tasks: int, num_workers: int | None) -> int:
    """Numba threads of each of several tasks that run at once: those of a scheduler with threads share the cores."""
    from dask.base import get_scheduler
    from dask.local import get_sync
    from dask.system import CPU_COUNT
    from dask.threaded import get as threaded

    available, scheduler = num_workers or CPU_COUNT, get_scheduler()
    if _client() is not None or scheduler not in (None, threaded, get_sync):
        return 1
    return max(1, available // n_tasks) if scheduler is not get_sync else available


def _client() -> Any:
    """The client of dask.distributed that the user has made; None for none."""
    if "distributed" not in sys.modules:
        return None
    try:
        return sys.modules["distributed"].default_client()
    except ValueError:
        return None


def _on_cluster(client, tasks, done):
    from distributed import as_completed

    # a worker that is lost has its tasks done by others
    futures = client.compute(list(tasks))
    numbers = {future.key: i for i, future in enumerate(futures)}
    try:
        for future in as_completed(futures):
            done(numbers[future.key], future.result())
            future.release()
    except BaseException:
        client.cancel(futures)
        raise


def _here(tasks, done, num_workers):
    from dask.base import compute
    from dask.callbacks import Callback

    numbers = {task.key: i for i, task in enumerate(tasks)}
    finished = set()

    def finish(key, value):
        if key in numbers and key not in finished:
            finished.add(key)
            done(numbers[key], value)

    class Finished(Callback):
        def _posttask(self, key, result, dsk, state, worker_id):
            finish(key, result)

    options = {} if num_workers is None else {"num_workers": num_workers}
    with Finished():
        values = compute(*tasks, optimize_graph=False, **options)
    for task, value in zip(tasks, values, strict=True):  # a scheduler need not call back
        finish(task.key, value)
