import matplotlib
import pytest

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
