import os

# two processes with two threads each, on two cores: a thread that waits must not keep the other from its work
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import matplotlib  # noqa: E402
import pytest  # noqa: E402

matplotlib.use("Agg")


@pytest.fixture(autouse=True, scope="session")
def quiet_hyperspy():
    import hyperspy.api as hs

    hs.preferences.General.show_progressbar = False


@pytest.fixture(autouse=True)
def close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
