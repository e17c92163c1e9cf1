import os

# a thread that waits must not keep the other processes from their work
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import matplotlib  # noqa: E402
import pytest  # noqa: E402

matplotlib.use("Agg")


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


@pytest.fixture(autouse=True)
def close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
