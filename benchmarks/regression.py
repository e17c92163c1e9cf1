"""Whether the fused maps of this checkout are those of a reference commit, to 1e-5 relative.

    python -m benchmarks.regression                # all cases, some minutes
    python -m benchmarks.regression --quick        # without method="auto" on L2083 and the tutorial data
    python -m benchmarks.regression --repeat --only "bruker auto"   # cases with this in their name, each twice

The reference maps come from a process that runs the code of the commit, taken from the history of this repository.
They are kept in the folder ``--cache``, so only the first run computes them. Their names hold a digest of the case and
of library versions: a changed case is computed anew. The difference is the largest one
of a map over the largest value of its reference; the worst map counts. The first fit also compiles: kernels just
compiled round otherwise than cached ones, by up to 9e-6 in single precision, so judge by a second run.

After a renaming, edit ``_today`` only: the cases keep the keywords of the reference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT, SHARED, conclude, unpacked

COMMIT, LIMIT, THREADS = "071c2eb", 1e-5, 2
#: Part of the name of a case -> (limit that holds there, why the maps differ), for features that were removed.
EXPECTED: dict = {
    "calibrated": (0.1, "fits start coarse and end when their maps have settled; the reference ends at a gap of 1e-4"),
    "auto": (0.3, "the same, and the search compares settled fits and moves between best fit and average"),
}

# ---- the calls of this checkout: edit these after a renaming -------------------------------------


# setting of the reference -> setting of today, by kind of method
_RENAMED = {
    "published": {"background": "eps", "tol": "change_tol", "weighting": "z_weighting"},
    "calibrated": {"weights": "haadf_coefficients", "gamma": "z_exponent", "shift": "poisson_offset"},
}


def _today():
    """What fuses, makes maps of spectra, and phantoms by name; ``settings`` have the names of the reference."""
    from hyperspy_fusion import AutoSettings, CalibratedSettings, PublishedSettings, element_maps, fuse
    from hyperspy_fusion.data import PHANTOMS

    classes = {"published": PublishedSettings, "calibrated": CalibratedSettings, "auto": AutoSettings}

    def fuse_today(maps, haadf, method, settings, **options):
        names = _RENAMED["published" if method == "published" else "calibrated"]
        given = {names.get(name, name): value for name, value in settings.items()}
        if given.get("regularization", "") is None:
            given["regularization"] = "none"
        return fuse(maps, haadf, method=method, settings=classes[method](**given), **options)

    return fuse_today, element_maps, PHANTOMS


# ---- the calls of COMMIT: never edit these -------------------------------------------------------


def _reference():
    from hyperspy_fusion import element_maps, fuse
    from hyperspy_fusion.data import PHANTOMS

    def fuse_reference(maps, haadf, method, settings, **options):
        return fuse(maps, haadf, method=method, **settings, **options)

    return fuse_reference, element_maps, PHANTOMS


# ---- cases ---------------------------------------------------------------------------------------

SCANS = {
    "L2083": ("L2083-K-4-1_tilt0.bcf", ["Fe", "Mg", "Si", "O", "S", "Al"]),
    "bruker": ("bruker_test_TEM.bcf", ["Cu", "O", "Pd", "Ti"]),
}
SPINEL = {"lambda_chem": 0.006, "lambda_tv": 0.022, "background": 0.01, "tv_iter": 6, "threshold": 0.2}
TUTORIALS = {
    "DyScO3": ("DyScO3_PTO_Trilayer_dataset.npz", ["Sc", "Dy", "O"], {"background": 0.24}),
    "Co3O4_Mn3O4": ("Co3O4_Mn3O4.h5", ["Co", "Mn", "O"], SPINEL),
}
EELS = {"Cu": "Cu_map.hspy", "Zn": "Zn_map.hspy", "HAADF": "CuZn_HAADF.hspy"}
PHANTOM_NAMES = ("core_shell", "atomic_columns", "interface", "gradient_alloy")
# an odd size that is not square, so that a swapped axis shows
PHANTOM_SHAPE, PHANTOM_COUNTS = (48, 57), (1, 4, 15, 60)
SMOOTH, CROP = {"lambda_haadf": 0.02, "background": 0.01}, 128


@dataclass(frozen=True)
class Case:
    """Data set, method and settings by the keywords of the reference; ``kind`` says what of the data is fused."""

    data: str
    method: str
    settings: dict = field(default_factory=dict)
    kind: str = ""
    is_slow: bool = False

    @property
    def name(self):
        penalty = f" {self.settings['regularization']}" if "regularization" in self.settings else ""
        return f"{self.data} {self.method}{penalty}{self.kind and ' ' + self.kind}"

    @property
    def files(self):
        return EELS.values() if self.data == "CuZn" else {**SCANS, **TUTORIALS}.get(self.data, ())[:1]


def cases():
    for data, (*_, settings) in TUTORIALS.items():
        yield from [Case(data, "published", settings), *_calibrated(data), Case(data, "auto", {}, "crop", True)]
    for data in SCANS:
        yield from [Case(data, "published", SMOOTH, "maps"), *_calibrated(data, "maps")]
        yield from (Case(data, "auto", {}, kind, data == "L2083") for kind in ("maps", "spectra"))
    yield from [Case("CuZn", "published", SMOOTH), *_calibrated("CuZn"), Case("CuZn", "auto")]
    for data, counts in ((f"{name}/{counts}", counts) for name in PHANTOM_NAMES for counts in PHANTOM_COUNTS):
        calibrated = _calibrated(data) if counts == 15 else [Case(data, "calibrated")]
        yield from [Case(data, "published"), *calibrated, Case(data, "auto")]


def _calibrated(data, kind=""):
    """The default penalty, and each of the others once."""
    given = [{}, *({"regularization": penalty} for penalty in ("directional", "tgv", "tv", None))]
    return [Case(data, "calibrated", settings, kind) for settings in given]


def fitted(case, folder, fuse, element_maps, phantoms):
    """Fused maps (n, ny, nx) and the seconds of the fit."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    maps, haadf, options = _read(case, folder, element_maps, phantoms)
    start = time.perf_counter()
    fused = fuse(maps, haadf, case.method, case.settings, num_workers=THREADS, show_progressbar=False, **options)
    return np.asarray(fused.data), time.perf_counter() - start


def _read(case, folder, element_maps, phantoms):
    """Maps or spectra, HAADF image, and elements where they are to be named."""
    import h5py
    import hyperspy.api as hs

    if "/" in case.data:
        name, counts = case.data.split("/")
        return *phantoms[name](PHANTOM_SHAPE, counts=float(counts)).signals(), {}
    if case.data in SCANS:
        file, elements = SCANS[case.data]
        haadf, spectra = hs.load(str(folder / file))
        if case.kind == "spectra":
            return spectra, haadf, {"elements": elements}
        return element_maps(spectra, elements=elements), haadf, {}
    if case.data == "CuZn":
        images = {name: hs.load(str(folder / file)) for name, file in EELS.items()}
    else:
        file, elements, _ = TUTORIALS[case.data]
        part = np.s_[:CROP, :CROP] if case.kind == "crop" else ()
        with np.load(folder / file) if file.endswith(".npz") else h5py.File(folder / file) as opened:
            images = {name: hs.signals.Signal2D(opened[name][()][part]) for name in [*elements, "HAADF"]}
    return images, images.pop("HAADF"), {}


def _stored(case, cache):
    versions = [version(name) for name in ("numpy", "scipy", "numba", "scikit-image", "hyperspy", "exspy")]
    key = [COMMIT, case.data, case.method, case.settings, case.kind, PHANTOM_SHAPE, CROP, *versions]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:10]
    return cache / "maps" / f"{case.name.replace('/', '-').replace(' ', '_')}-{digest}.npz"


def make_reference(missing, cache, folder):
    """Compute the maps of ``missing`` in a process that imports the package of ``COMMIT``."""
    source = unpacked(COMMIT, cache / COMMIT)
    code = f"import sys; sys.path.append({str(ROOT)!r}); from benchmarks import regression; regression.as_reference()"
    task = json.dumps([str(cache), str(folder), [case.name for case in missing]])
    env = {**os.environ, "PYTHONPATH": str(source), "NUMBA_CACHE_DIR": str(cache / "numba")}
    # the present folder comes before PYTHONPATH, and may hold today's package
    subprocess.run([sys.executable, "-c", code], input=task, text=True, env=env, check=True, cwd=cache)


def as_reference():
    """In the process of the reference: fit the cases that stdin names, and store their maps."""
    import hyperspy_fusion

    *folders, names = json.load(sys.stdin)
    cache, folder = map(Path, folders)
    if not Path(hyperspy_fusion.__file__).is_relative_to(cache / COMMIT):
        sys.exit(f"The reference would run {hyperspy_fusion.__file__}, which is not commit {COMMIT}.")
    (cache / "maps").mkdir(exist_ok=True)
    for case in (case for case in cases() if case.name in names):
        maps, seconds = fitted(case, folder, *_reference())
        part = _stored(case, cache).with_suffix(".part.npz")
        np.savez_compressed(part, maps=maps, seconds=seconds)
        part.replace(_stored(case, cache))
        print(f"  reference: {case.name}, {seconds:.1f} s", flush=True)


def difference(maps, reference):
    """Largest relative difference of the worst map; infinite for another shape or numbers that are not finite."""
    if maps.shape != reference.shape or not (np.isfinite(maps).all() and np.isfinite(reference).all()):
        return np.inf
    apart = np.abs(maps.astype(float) - reference).max(axis=(1, 2))
    return float(np.max(apart / np.maximum(np.abs(reference).max(axis=(1, 2)), np.finfo(np.float32).tiny)))


def report(case, cache, folder, repeat):
    """Print the line of a case; its verdict, and the seconds of the reference and of today."""
    with np.load(_stored(case, cache)) as file:
        reference, seconds = file["maps"], float(file["seconds"])
    limit, note = next((expected for part, expected in EXPECTED.items() if part in case.name), (LIMIT, ""))
    try:
        maps, today = fitted(case, folder, *_today())
        apart = difference(maps, reference)
        if repeat and not np.array_equal(maps, fitted(case, folder, *_today())[0]):
            limit, note = -1, "another fit gives other maps"
    except Exception as error:  # one broken case must not hide the others
        apart, today, note = np.inf, 0.0, f"{type(error).__name__}: {error}"
    verdict = "DIFFERS" if not apart <= limit else "agrees" if apart <= LIMIT else "expected"
    size, note = "x".join(map(str, reference.shape)), note if verdict != "agrees" else ""
    print(f"{case.name:38s} {size:11s} {apart:9.1e} {seconds:8.2f} {today:8.2f}  {verdict:8s} {note}", flush=True)
    return verdict, seconds, today


def main():
    import hyperspy_fusion

    parser = argparse.ArgumentParser(prog="python -m benchmarks.regression", description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="cases with this in their name")
    parser.add_argument("--quick", action="store_true", help="without auto on L2083 and the tutorial data")
    parser.add_argument("--repeat", action="store_true", help="fit twice, compare bit by bit")
    parser.add_argument("--cache", type=Path, default=ROOT / ".benchmarks", help="folder of the reference maps")
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of the scans")
    options = parser.parse_args()
    cache, folder = options.cache.resolve(), options.data.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    wanted = [c for c in cases() if options.only in c.name and not (options.quick and c.is_slow)]
    chosen = [c for c in wanted if all((folder / file).exists() for file in c.files)]
    if missing := [c for c in chosen if not _stored(c, cache).exists()]:
        make_reference(missing, cache, folder)
    print(f"{Path(hyperspy_fusion.__file__).parent} against commit {COMMIT}, {THREADS} threads; limit {LIMIT:g}\n")
    print(f"{'case':38s} {'size':11s} {'largest':>9s} {COMMIT:>8s} {'today':>8s}  (seconds)")
    lines = [report(case, cache, folder, options.repeat) for case in chosen]
    verdicts = [line[0] for line in lines]
    print(f"{'total':60s} {sum(line[1] for line in lines):8.1f} {sum(line[2] for line in lines):8.1f}")
    for part, (limit, reason) in EXPECTED.items():
        print(f"expected of {part}, limit {limit:g}: {reason}")
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in ("agrees", "expected", "DIFFERS"))
    print(f"{len(chosen)} cases: {counts}; {len(wanted) - len(chosen)} skipped, for their data are not in {folder}")
    return conclude([bool(chosen), *(verdict != "DIFFERS" for verdict in verdicts)])


if __name__ == "__main__":
    sys.exit(main())
