import functools
import gc
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

# threads that wait must not keep the other processes from their work; set here, and read by the processes of xdist
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
for library in ("OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import matplotlib  # noqa: E402
import pytest  # noqa: E402

matplotlib.use("Agg")
OF_FUSION = Path(__file__).parent / "fusion"
# tests of spectra, ptychography and a series, which fusion/ gets from HyperSpy
OF_SIGNALS = {"test_eds_model.py", "test_spectral_fits.py", "test_images.py"}
OF_SIGNALS |= {"test_the_weight_along_the_stack_is_chosen"}


@contextmanager
def untraced():
    """Without the trace of the coverage, which makes the compilation half as slow again."""
    trace = sys.gettrace()
    of_coverage = type(trace).__module__ == "coverage"  # that of a debugger stays
    if of_coverage:
        sys.settrace(None)
    try:
        yield
    finally:
        if of_coverage:
            sys.settrace(trace)


def pytest_collection_modifyitems(config, items):
    """With ``--cov``, the tests of fusion/ and of what it gets from signals, each function with one set of values."""
    if not config.getoption("cov_source", default=None):
        return
    kept, known, interpreted = [], set(), bool(os.environ.get("NUMBA_DISABLE_JIT"))
    for item in items:
        is_of_fusion = OF_FUSION in item.path.parents or bool({item.path.name, item.name} & OF_SIGNALS)
        # interpreted kernels have a branch for each value
        if is_of_fusion and (interpreted or item.function not in known):
            kept.append(item)
        known.add(item.function)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_collection_finish():
    """Signals of HyperSpy are many small objects: searches for garbage took a third of their tests."""
    gc.set_threshold(50_000)
    keep_what_there_is()
    let_hyperspy_remember()


def let_hyperspy_remember():
    """HyperSpy compiles a function for each event of each signal, and cleans each name of its metadata at each access.

    From a handful of texts, in a quarter of the time of its signals.
    """
    from hyperspy import events
    from hyperspy.misc import _utils

    compiled = functools.cache(functools.partial(compile, filename="<event>", mode="exec"))
    events.exec = lambda text, *scopes: exec(compiled(text), *scopes)
    _utils.slugify = functools.lru_cache(10_000, typed=True)(_utils.slugify)


def keep_what_there_is():
    """What was imported or compiled is no garbage, and is not searched again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def quiet_hyperspy():
    import hyperspy.api as hs

    hs.preferences.General.show_progressbar = False


@pytest.fixture(autouse=True, scope="session")
def one_thread_in_each_process():
    """Processes share the cores among them; what is said of threads is tested with ``num_workers``."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import numba

        numba.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def kernels_compiled_by_one_process(tmp_path_factory, quiet_hyperspy, one_thread_in_each_process):
    """Of two processes each compiles for one dtype, and finds the other's in the cache: half the work of both."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    together = tmp_path_factory.getbasetemp().parent
    dtypes = ["float32", "float64"]
    is_compiled = worker and not os.environ.get("NUMBA_DISABLE_JIT")
    for dtype in dtypes[:: -1 if worker.endswith("1") else 1] if is_compiled else []:
        try:
            (together / f"{dtype} taken").mkdir()
        except FileExistsError:
            _wait_for(together / f"{dtype} done")
            continue
        try:
            with untraced():
                _compile_kernels(dtype)
        finally:
            (together / f"{dtype} done").mkdir()
            keep_what_there_is()


def _compile_kernels(dtype):
    from band_cases import drawn, problem_of

    import hyperspy_fusion
    from hyperspy_fusion.fusion.settings import SETTINGS
    from hyperspy_fusion.fusion.solvers import kernels
    from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual
    from hyperspy_fusion.fusion.solvers.primal_dual_state import Stopping

    scan = hyperspy_fusion.data.core_shell((16, 16)).signals()
    for method, used in (("published", kernels.PUBLISHED), ("calibrated", kernels.CALIBRATED)):
        if not kernels.are_compiled(dtype, used):
            settings = SETTINGS[method](max_iter=1, dtype=dtype)
            hyperspy_fusion.fuse(*scan, method=method, settings=settings, show_progressbar=False)
    if not kernels.are_compiled(dtype, kernels.OF_BANDS):
        columns, _, counts = drawn(0)
        primal_dual(problem_of(columns, counts, dtype=dtype), Stopping(1), num_workers=1)


def _wait_for(folder, seconds=180):
    """Or no longer: whoever made it may have been killed, and what is not compiled will be."""
    end = time.monotonic() + seconds
    while not folder.exists() and time.monotonic() < end:
        time.sleep(0.2)


@pytest.fixture(autouse=True)
def diagnostics_not_reported_yet():
    """A session logs each headline once, and every test is a session."""
    from hyperspy_fusion.diagnostics import forget_reported

    forget_reported()


@pytest.fixture(autouse=True)
def close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
