"""Data, the published C++ code and verdicts, as the benchmarks share them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# before OpenMP starts, in the published code or in ours: threads that wait must not take the cores of others
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
ELEMENTS = {"DyScO3": {"Sc": 21, "Dy": 66, "O": 8}, "Co3O4_Mn3O4": {"Co": 27, "Mn": 25, "O": 8}}
# of the tutorial's two notebooks; its threshold of x0 does not exist in the peer
OPTIONS = {
    "DyScO3": {"lambda_chem": 0.08, "lambda_tv": 0.15, "eps": 0.24, "tv_iter": 3, "max_iter": 30},
    "Co3O4_Mn3O4": {
        "lambda_chem": 0.006,
        "lambda_tv": 0.022,
        "eps": 0.01,
        "tv_iter": 6,
        "max_iter": 30,
    },
}


# ---- data ----------------------------------------------------------------------------------------


def tutorial_scan(dataset, size):
    """Float32 maps ``(3, ny, nx)`` and HAADF of a tutorial, or of a phantom of ``size``; where they come from."""
    images = tutorial(dataset, [*ELEMENTS[dataset], "HAADF"])
    source = f"tutorial data {dataset}"
    if images is None:
        images = phantom(size)
        source = f"a PHANTOM of its size: {dataset} is not in {SHARED}"
    images = [np.asarray(a, np.float32) for a in images]
    return np.stack(images[:-1]), images[-1], source


def tutorial(dataset, names):
    """Images of a tutorial file by name, or None where the file is absent."""
    npz, h5 = SHARED / f"{dataset}_PTO_Trilayer_dataset.npz", SHARED / f"{dataset}.h5"
    if npz.exists():
        with np.load(npz) as file:
            return [file[name] for name in names]
    if h5.exists():
        import h5py

        with h5py.File(h5) as file:
            return [file[name][()] for name in names]
    return None


def phantom(size):
    """Three maps and the HAADF image of a phantom."""
    from hyperspy_fusion.data import core_shell

    made = core_shell((size, size))
    return [*made.maps, made.haadf]


# ---- earlier commits -----------------------------------------------------------------------------


def unpacked(commit, folder):
    """The folder, with the package as of ``commit`` in it; ends the benchmark where the history lacks it."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "package.tar"
    if subprocess.run(["git", "-C", str(ROOT), "archive", "-o", str(archive), commit, "hyperspy_fusion"]).returncode:
        sys.exit(f"Commit {commit} is not in this clone: fetch the full history.")
    shutil.unpack_archive(archive, folder, filter="data")
    return folder


# ---- the published C++ code ----------------------------------------------------------------------


def load_peer(named, image):
    """The peer with maps by element and HAADF image, both of which it edits."""
    from multimodal_fusion import fusion

    peer = fusion.DataFusion(list(named), gamma=1.6)
    peer.load_chemical_maps(named, method=1)
    peer.load_haadf(image)
    return peer


def run_peer(peer, options, iterations, history, progress):
    """Run the peer from its maps; its loop goes through ``progress(iterations)``, a generator."""
    from multimodal_fusion import fusion

    fusion.tqdm = progress
    fusion.utils.plot_convergence = lambda *args: None
    peer.run(
        nIter=iterations,
        lambdaEDS=options["lambda_chem"],
        lambdaTV=options["lambda_tv"],
        ng=options["tv_iter"],
        bkg=options["eps"],
        plot_images=False,
        plot_convergence=history,
    )


# ---- report --------------------------------------------------------------------------------------


def machine():
    """Cores, threads, Python and what else keeps the machine busy (for times), as a sentence."""
    import numba

    load = f"; load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{os.cpu_count()} cores, {numba.get_num_threads()} threads{load}; Python {sys.version.split()[0]}"


def conclude(met):
    """Print whether all bars are met; the exit code that says so."""
    print("\nall bars met" if all(met) else "\nNOT all bars met")
    return 0 if all(met) else 1
