"""Every code block of README and pages runs: here, by Sphinx (``code-cell``) or by continuous integration (``ci:``)."""

import ast
import re
import shlex
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import exspy
import hyperspy.api as hs
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hyperspy.signal import BaseSignal
from matplotlib.figure import Figure

import hyperspy_fusion
from hyperspy_fusion import api, data
from hyperspy_fusion.cli.options import parsed
from hyperspy_fusion.fusion.settings import SETTINGS
from hyperspy_fusion.io import scan as scans
from hyperspy_fusion.signals import fitted_maps

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [*REPOSITORY.glob("*.md"), *sorted((REPOSITORY / "docs").rglob("*.md"))]
ELEMENTS = ["Fe", "Mg", "Si", "O", "S", "Al", "Pt", "Cu", "C", "Co", "Mo"]
SHAPE = (24, 30)


# settings of fits that need least time
LEAST = {"tol": 0.1, "regularization": "tv", "joint": True, "lambda_haadf": 1.0, "components": 0}


def blocks(path, language):
    """``(the line before, the code)`` of the fenced blocks of a page."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^([^\n]*)\n```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def pages_with(language):
    """Of a language; that of the README takes seconds, and other pages half a minute."""
    found = [path for path in PAGES if blocks(path, language)]
    marks = {path: pytest.mark.slow if path.stem == "README" else pytest.mark.nightly for path in found}
    return pytest.mark.parametrize("page", [pytest.param(path, id=path.stem, marks=marks[path]) for path in found])


# what the pages fuse: small scans of the particles of a phantom


def images(seed=0):
    """A map for each element, and their HAADF image."""
    shapes, haadf = data.core_shell(SHAPE, counts=40, seed=seed).signals()
    maps = {element: shapes[i % 3].deepcopy() for i, element in enumerate([*ELEMENTS, "Zn"])}
    for element, image in maps.items():
        image.metadata.General.title, image.metadata.Sample.elements = element, [element]
    return maps, haadf


def on_grid(spectra, haadf):
    for axis, of in zip(spectra.axes_manager.navigation_axes, haadf.axes_manager.signal_axes, strict=False):
        axis.scale, axis.units, axis.name = of.scale, of.units, of.name
    return spectra


def eds(seed=0):
    maps, haadf = images(seed)
    spectra = exspy.signals.EDSTEMSpectrum(np.ones((*SHAPE, 1100), "u2"))
    energy = spectra.axes_manager[-1]
    energy.name, energy.scale, energy.units = "Energy", 0.01, "keV"
    spectra.set_microscope_parameters(beam_energy=200, live_time=1.0, beam_current=0.1)
    spectra.set_elements(ELEMENTS)
    spectra.add_lines()
    for line in spectra.metadata.Sample.xray_lines:
        spectra.data[..., round(spectra._get_line_energy(line) / 0.01)] += maps[line.split("_")[0]].data
    return on_grid(spectra, haadf)


def eels(edges=("O_K", "Fe_L3"), start=400.0):
    maps, haadf = images()
    energies = start + 4.0 * np.arange(200)
    counts = np.broadcast_to(1e5 * (energies / start) ** -3, (*SHAPE, 200)).copy()
    for edge in edges:
        onset = exspy.material.elements[edge.split("_")[0]].Atomic_properties.Binding_energies[edge.split("_")[1]]
        counts += maps[edge.split("_")[0]].data[..., None] * 100 * (energies > onset["onset_energy (eV)"])
    spectra = exspy.signals.EELSSpectrum(counts)
    energy = spectra.axes_manager[-1]
    energy.offset, energy.scale, energy.units = start, 4, "eV"
    spectra.set_microscope_parameters(beam_energy=200, convergence_angle=29, collection_angle=36)
    return on_grid(spectra, haadf)


def series(make, n=2):
    return hs.stack([make(seed) for seed in range(n)], new_axis_name="tilt")


def haadf_of(seed=0):
    return images(seed)[1]


def frames():
    """Spectra (x, y, t|E) and images (t|x, y)."""
    return series(eds), series(haadf_of)


def four_dimensional():
    patterns = hs.signals.Signal2D(np.random.default_rng(0).poisson(5.0, (*SHAPE, 16, 16)).astype("u2"))
    for axis in patterns.axes_manager.signal_axes:
        axis.offset, axis.scale, axis.units = -32, 4, "mrad"
    patterns.metadata.set_item("Acquisition_instrument.TEM", {"beam_energy": 200.0, "convergence_angle": 20.0})
    return on_grid(patterns, haadf_of())


def load(name, lazy=False, sum_frames=True, **_):
    """What ``hs.load`` would return of a file of this name."""
    if isinstance(name, list):
        return [load(one, lazy) for one in name]
    maps, haadf = images()
    stem = name.split(".")[0]
    if name == "scan.zspy":
        found = four_dimensional()
    elif "EELS" in stem:
        found = eels(["Cu_L3", "Zn_L3"], 800.0)
    elif stem in ("Cu_map", "Zn_map"):
        found = maps[stem[:2]]
    elif stem == "maps":
        found = hyperspy_fusion.element_maps({e: maps[e] for e in ELEMENTS[:3]})
    elif "haadf" in stem.lower():
        found = haadf
    elif sum_frames:
        return [haadf, eds()]
    else:
        return list(reversed(frames()))
    return found.as_lazy() if lazy else found


def scan_of(page):
    """What the blocks of a page take for given: the signals of a scan, or of a stack."""
    if page.stem == "stacks":
        stacks = {e: series(lambda seed, e=e: images(seed)[0][e]) for e in ("Fe", "O")}
        return {"maps": stacks, "haadf": series(haadf_of), "eds": series(eds)}
    maps, haadf = images()
    return {"maps": {e: maps[e] for e in ("Fe", "O", "Pt")}, "haadf": haadf, "eds": eds()}


def names(page):
    """Other names that the blocks of a page do not make."""
    found = {"hs": hs, "hf": hyperspy_fusion, "hyperspy_fusion": hyperspy_fusion, "np": np}
    found |= {"k": dict.fromkeys(ELEMENTS, 1.0), "roi": hs.roi.RectangularROI(1, 1, 3, 3)}
    if page.stem == "README":
        found |= {"eels": eels(), "factors": [1.0] * 9, "eds_series": series(eds), "haadf_series": series(haadf_of)}
        found["eds_frames"], found["image_frames"] = frames()
    elif page.stem == "composition":
        found["factors"] = [1e3] * 5
    elif page.stem == "fusing":  # its cells, which Sphinx runs, make one
        found["fused"] = api.fuse(*data.core_shell((32, 32)).signals())
    elif page.stem == "ptychography":
        np.save("phase.npy", data.core_shell((600, 750)).haadf)
    elif page.stem == "images":
        found["phase"] = data.core_shell(SHAPE).phase()
    elif page.stem == "scans":
        found["eels_model"] = images()[0]["O"]
    return found


def _loaded(files):
    """Signals, those of names of files loaded."""
    of_files = isinstance(files, str) or all(isinstance(one, str) for one in files)
    return load(files) if of_files else files


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Files of small scans, and fits that need least: the blocks have to run, not to fuse well."""
    fuse, scan = api.fuse, scans.scan

    def quick_fuse(maps, haadf, **options):
        if options.get("method") != "published":
            settings = options.get("settings") or SETTINGS[options.get("method", "auto")]()
            options["settings"] = replace(settings, **{n: v for n, v in LEAST.items() if hasattr(settings, n)})
        return fuse(maps, haadf, **{"show_progressbar": False} | options)

    for module in (api, fitted_maps):
        monkeypatch.setattr(module, "fuse", quick_fuse)
    monkeypatch.setattr(BaseSignal, "fuse", lambda self, haadf, **options: quick_fuse(self, haadf, **options))
    monkeypatch.setattr(scans, "scan", lambda files, **options: scan(_loaded(files), **options))
    monkeypatch.setattr(hs, "load", load)
    for name in ("dysco3", "co3o4_mn3o4"):
        monkeypatch.setattr(data, name, lambda allow_download: data.core_shell((80, 90)).signals())
    # drawing takes longer than all else
    monkeypatch.setattr(
        Figure, "savefig", lambda _, to, **__: Path(to).touch() if isinstance(to, (str, Path)) else None
    )
    monkeypatch.chdir(tmp_path)
    arrays = dict(zip(("Sc", "Dy", "O", "HAADF"), data.core_shell((256, 256)).maps[[0, 1, 2, 0]], strict=True))
    np.savez("DyScO3_PTO_Trilayer_dataset.npz", **arrays)


@pytest.mark.slow
@pages_with("python")
def test_python_blocks_run(page, quick):
    known, scan = names(page), scan_of(page)
    for _, code in blocks(page, "python"):
        if "electron_diffraction" not in code or find_spec("pyxem"):
            known |= scan  # also where an earlier block has another scan
            exec(compile(code, page.name, "exec"), known)
        plt.close("all")


def test_whole_tasks_need_ten_lines_and_nothing_else():
    found = blocks(REPOSITORY / "docs" / "recipes.md", "python")
    assert len(found) >= 7
    for _, code in found:
        lines = [line for line in code.splitlines() if line.strip()]
        assert len(lines) <= 10 and lines[0].startswith("import ") and max(map(len, lines)) <= 125, code
        tree = ast.parse(code)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        assert used <= stored | {"hs", "hyperspy_fusion", "print", "list"}


def test_every_block_is_of_a_language_that_something_runs():
    fences = {
        fence for page in PAGES for fence in re.findall(r"^```(?!$)(\S+)", page.read_text(encoding="utf-8"), re.M)
    }
    run = {"python", "bash", "{code-cell}"}
    shown = {"text", "{eval-rst}", "{literalinclude}", "{image}", "{important}", "{toctree}", "{math}"}
    assert fences <= run | shown
    assert {"python", "bash", "{code-cell}"} <= fences


def test_commands_run_or_are_understood():
    """Marked ones are run by continuous integration; of others, options and names of modules are checked."""
    ci = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    found = [(before, line) for page in PAGES for before, code in blocks(page, "bash") for line in code.splitlines()]
    assert {mark for before, _ in found for mark in re.findall(r"<!-- ci:(\w+) -->", before)} == {
        "demo",
        "tests",
        "docs",
    }
    for before, line in found:
        mark = re.search(r"<!-- ci:(\w+) -->", before)
        words = shlex.split(line, comments=True)
        if mark:
            assert f"$(readme {mark[1]})" in ci
        elif words[0] == "hyperspy-fusion":
            options = parsed(words[1:])
            assert options.command == "demo" or options.files
        else:
            modules = re.findall(r"-m (benchmarks\.\w+)", line)
            assert all((REPOSITORY / f"{module.replace('.', '/')}.py").exists() for module in modules)
            assert modules or words[0] in {"python", "pre-commit", "pytest", "ruff", "pyright", "sphinx-build"}
