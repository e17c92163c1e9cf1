"""What HyperSpy, pip and a first import see of the package."""

import importlib
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

PACKAGE = "hyperspy_fusion"
FOLDER = Path(find_spec(PACKAGE).submodule_search_locations[0])
REPOSITORY = Path(__file__).resolve().parents[1]


def registered(part="signals"):
    return yaml.safe_load((FOLDER / "hyperspy_extension.yaml").read_text())[part]


def printed(code, folder):
    """Words printed by code in a fresh process; a folder that is not the source tree, or that is imported."""
    return printed_by(sys.executable, "-c", code, cwd=folder)


def printed_by(*command, cwd=None):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout.split()


def test_the_entry_point_and_its_yaml():
    top = REPOSITORY / "hyperspy_extension.yaml"
    assert top.read_bytes() == (FOLDER / "hyperspy_extension.yaml").read_bytes()
    ours = [e for e in entry_points(group="hyperspy.extensions") if e.value.startswith(PACKAGE)]
    assert {e.name for e in ours} == {PACKAGE}
    assert set(registered()) == {"ElementMaps", "LazyElementMaps"}
    assert importlib.import_module(PACKAGE).__version__ == version(PACKAGE)


@pytest.mark.parametrize("name", ["ElementMaps", "LazyElementMaps"])
def test_a_registered_signal_is_the_class_it_says(name):
    entry = registered()[name]
    cls = getattr(importlib.import_module(entry["module"]), name)
    assert cls._lazy is entry["lazy"] is name.startswith("Lazy")
    assert cls._signal_type == entry["signal_type"] == "element_maps"
    assert cls._signal_dimension == entry["signal_dimension"] == 2
    assert entry["dtype"] == "real"


def test_hyperspy_finds_explorer_and_class_without_the_package(tmp_path):
    code = (
        "import sys, numpy as np, hyperspy.api as hs\n"
        "from hyperspy.ui_registry import UI_REGISTRY\n"
        f"assert {PACKAGE!r} not in sys.modules\n"
        f"assert list(UI_REGISTRY['{PACKAGE}.Explorer']) == ['ipywidgets']\n"
        "s = hs.signals.Signal2D(np.zeros((2, 4, 5)))\n"
        "s.set_signal_type('element_maps')\n"
        "print(type(s).__name__, type(s.as_lazy()).__name__)"
    )
    assert printed(code, tmp_path) == ["ElementMaps", "LazyElementMaps"]


def test_the_package_imports_neither_numba_nor_matplotlib(tmp_path):
    code = f"import sys, hyperspy.api\nalone = set(sys.modules)\nimport {PACKAGE}\n{PACKAGE}.FusedMultiModal\n"
    code += "print(*set(sys.modules) - alone)"
    loaded = printed(code, tmp_path)
    assert PACKAGE in loaded and not {"numba", "llvmlite", "matplotlib", "exspy", "ipywidgets"} & set(loaded)


def test_the_explorer_is_registered():
    """A widget whose toolkey is not listed makes `import hyperspy.api` fail for everybody."""
    gui = registered("GUI")
    for key, entry in gui["widgets"]["ipywidgets"].items():
        assert key in gui["toolkeys"]
        assert callable(getattr(importlib.import_module(entry["module"]), entry["function"]))


def test_a_plain_installation_reads_the_files_of_the_field():
    """rosettasciio has `sparse`, which the spectra of Velox need, and `h5py` as extras only."""
    text = (REPOSITORY / "pyproject.toml").read_text()
    plain = re.findall(r'^ *"([\w.-]+)>=', re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)[1], re.M)
    assert {"sparse", "h5py", "tifffile"} <= set(plain)


@pytest.mark.skipif(os.name == "nt", reason="the script is for bash")
def test_continuous_integration_tests_the_oldest_versions_that_are_declared():
    text = (REPOSITORY / "pyproject.toml").read_text()
    dependencies = re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)[1]
    bounds = re.findall(r'^ *"([\w-]+)>=([\d.]+)",', dependencies, re.M)
    assert printed_by("bash", REPOSITORY / ".ci" / "oldest") == [f"{name}=={bound}" for name, bound in bounds]
    # earlier ones have no LazySignal2D where it is imported
    assert tuple(map(int, dict(bounds)["hyperspy"].split("."))) >= (2, 4)
    jobs = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    python = re.search(r'requires-python = ">=([\d.]+)"', text)[1]
    assert {"python-version": python} in [step.get("with") for step in jobs["oldest"]["steps"]]
    assert any("bash .ci/oldest" in step.get("run", "") for step in jobs["oldest"]["steps"])


def test_continuous_integration_tests_the_installed_package():
    if not os.environ.get("HYPERSPY_FUSION_INSTALLED"):
        pytest.skip("a run on the source tree; .ci/run sets HYPERSPY_FUSION_INSTALLED")
    assert "site-packages" in FOLDER.parts
