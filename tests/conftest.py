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
# tests take data of benchmarks/; last, so that an installed package comes before the folder of the same name
sys.path.append(str(Path(__file__).parents[1]))
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
    """Processes share what is to be compiled, and find the rest in the cache."""
    if "PYTEST_XDIST_WORKER" not in os.environ or os.environ.get("NUMBA_DISABLE_JIT"):
        return
    together = tmp_path_factory.getbasetemp().parent
    for kind, dtype in COMPILED:
        try:
            (together / f"{kind} {dtype} taken").mkdir()
        except FileExistsError:
            continue
        try:
            with untraced():
                _compile_kernels(kind, dtype)
        finally:
            (together / f"{kind} {dtype} done").mkdir()
            keep_what_there_is()
    for kind, dtype in COMPILED:
        _wait_for(together / f"{kind} {dtype} done")


# the kernels of bands of float64 are those of slow tests
COMPILED = [(kind, dtype) for kind in ("calibrated", "published") for dtype in ("float32", "float64")]
COMPILED.append(("bands", "float32"))


def _compile_kernels(kind, dtype):
    from hyperspy_fusion.fusion.solvers import kernels

    used = {"published": kernels.PUBLISHED, "calibrated": kernels.CALIBRATED, "bands": kernels.OF_BANDS}[kind]
    kernels.compile_for(dtype, used, is_alone=True)


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
