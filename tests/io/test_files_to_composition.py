"""Every file goes from its path to fused maps and atomic percent in five lines at most: see docs/composition.md."""

import copy

import h5py
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import fuse_with, shared
from sources import eds

import hyperspy_fusion as hf

# k-factors of these lines at 200 kV, of about the right size: what matters here is that they get there
K = {"Fe": 1.3, "Mg": 1.05, "Si": 1.0, "O": 1.9, "S": 0.95, "Cu": 1.6, "Pd": 2.1, "Ti": 1.15}
FAST = {"method": "calibrated", "regularization": "tv", "tol": 1e-2, "show_progressbar": False}


def assert_composition(percent, elements, units, scale):
    assert percent.elements == elements
    axis = percent.axes_manager.signal_axes[0]
    assert axis.units in units and axis.scale == pytest.approx(scale, rel=1e-3)
    seen = np.isfinite(percent.data[0])
    assert 0.1 < seen.mean() <= 1
    np.testing.assert_allclose(percent.data[:, seen].sum(axis=0), 100, rtol=1e-4)
    assert percent.data[:, seen].min() >= 0


OTHER_TILTS = [pytest.param(tilt, marks=pytest.mark.nightly) for tilt in ("-20", "-5", "5", "20")]


@pytest.mark.slow
@pytest.mark.parametrize("tilt", ["0", *OTHER_TILTS])
def test_super_x(tilt):
    path = shared(f"data/L2083-K-4-1_tilt{tilt}.bcf")
    haadf, eds = hs.load(path)
    maps = hf.element_maps(eds, ["Fe", "Si", "O", "S"])
    fused = fuse_with(maps, haadf, **FAST)
    percent = fused.atomic_percent("CL", K)
    assert_composition(percent, ["Fe", "Si", "O", "S"], ("um", "µm"), 0.01308)


def test_super_x_with_its_background():
    path = shared("data/bruker_test_TEM.bcf")
    haadf, eds = hs.load(path)
    maps = hf.element_maps(eds, background="windows")
    fused = fuse_with(maps, haadf, **FAST)
    percent = fused.atomic_percent("CL", K)
    assert_composition(percent, ["Cu", "O", "Pd", "Ti"], ("um", "µm"), 0.000771)


def test_eels_by_windows_and_by_a_model():
    path = str(shared("data/CuZn_EELS_mapping_tutorial.hspy").parent)
    eels, haadf = hs.load([path + "/CuZn_EELS_mapping_tutorial.hspy", path + "/CuZn_HAADF.hspy"])
    maps = hf.element_maps(eels, edges=["Cu_L3", "Zn_L3"])
    fused = fuse_with(maps, haadf, **FAST)
    percent = fused.atomic_percent("cross_section")
    assert_composition(percent, ["Cu", "Zn"], ("nm",), 0.92139)
    path = str(shared("data/Cu_map.hspy").parent)
    copper, zinc, haadf = hs.load([path + "/Cu_map.hspy", path + "/Zn_map.hspy", path + "/CuZn_HAADF.hspy"])
    fused = fuse_with([copper, zinc], haadf, **FAST)
    percent = fused.atomic_percent("cross_section", 1)
    assert_composition(percent, ["Cu", "Zn"], ("nm",), 0.92139)


@pytest.mark.nightly
def test_tutorial_of_fractions():
    path = shared("data/DyScO3_PTO_Trilayer_dataset.npz")
    axes = [{"name": name, "size": 128, "scale": 0.0262, "units": "nm"} for name in "yx"]
    images = {name: hs.signals.Signal2D(image[64:192, 64:192], axes=axes) for name, image in np.load(path).items()}
    haadf = images.pop("HAADF")
    fused = fuse_with(images, haadf, **FAST)
    percent = fused.atomic_percent("cross_section", 1)
    assert_composition(percent, list(images), ("nm",), 0.0262)


@pytest.mark.slow
def test_tutorial_of_counts():
    path = shared("data/Co3O4_Mn3O4.h5")
    axes = [{"name": name, "size": 160, "scale": 0.1, "units": "nm"} for name in "yx"]
    images = {name: hs.signals.Signal2D(image[120:280, 120:280], axes=axes) for name, image in h5py.File(path).items()}
    haadf = images.pop("HAADF")
    fused = fuse_with(images, haadf, **FAST)
    percent = fused.atomic_percent("cross_section", 1)
    assert_composition(percent, ["Co", "Mn", "O"], ("nm",), 0.1)


def scan():
    """Spectra (24, 20|2000) with lines of Fe and O, and their HAADF image, on pixels of 0.5 nm."""
    y, x = np.mgrid[:20, :24]
    amounts = {"Fe": 20.0 * np.exp(-((x - 8) ** 2 + (y - 10) ** 2) / 40), "O": 8.0 * np.exp(-((x - 14) ** 2) / 50)}
    signal = eds(elements=["Fe", "O"], lines=["Fe_Ka", "O_Ka"])
    data = np.zeros((20, 24, 2000))
    for line, amount in zip((640, 52), amounts.values(), strict=True):
        data[..., line - 3 : line + 4] += amount[..., None] / 7
    axes = [axis.get_axis_dictionary() for axis in signal.axes_manager._axes]
    for axis, size in zip(axes[:2], (20, 24), strict=True):
        axis.update(size=size, offset=0.0, scale=0.5, units="nm")
    counts = np.random.default_rng(0).poisson(data + 0.001).astype("uint16")
    spectra = type(signal)(counts, axes=axes, metadata=signal.metadata.as_dictionary())
    image = 26**1.7 * amounts["Fe"] + 8**1.7 * amounts["O"]
    haadf = hs.signals.Signal2D((10 * image).astype("uint16"), axes=copy.deepcopy(axes[:2]))
    haadf.metadata.General.title = "HAADF"
    for axis in haadf.axes_manager._axes:
        axis.navigate = False
    return spectra, haadf


@pytest.mark.parametrize("spectra_file, image_file", [("s.zspy", "h.tif"), ("s.rpl", "h.emd")])
def test_files_of_other_formats(tmp_path, spectra_file, image_file):
    if "zspy" in spectra_file:
        pytest.importorskip("zarr")
    for signal, name in zip(scan(), (spectra_file, image_file), strict=True):
        signal.save(tmp_path / name)
    spectra, haadf = hs.load(tmp_path / spectra_file, signal_type="EDS_TEM"), hs.load(tmp_path / image_file)
    maps = hf.element_maps(spectra, ["Fe", "O"])
    percent = fuse_with(maps, haadf, **FAST).atomic_percent("CL", K)
    assert_composition(percent, ["Fe", "O"], ("nm",), 0.5)
    np.testing.assert_array_equal(maps.data, hf.element_maps(scan()[0]).data)


def test_a_file_that_does_not_say_which_axis_is_energy(tmp_path):
    """Spectra of EMD (NCEM, Berkeley): the energy axis is named to make them spectra."""
    for signal, name in zip(scan(), "sh", strict=True):
        signal.save(tmp_path / f"{name}.emd")
    block, haadf = hs.load(tmp_path / "s.emd"), hs.load(tmp_path / "h.emd")
    with pytest.raises(ValueError, match="cannot be read as element maps"):
        hf.element_maps(block, ["Fe", "O"])
    spectra = block.as_signal1D("Energy")
    spectra.set_signal_type("EDS_TEM")
    percent = fuse_with(hf.element_maps(spectra, ["Fe", "O"]), haadf, **FAST).atomic_percent("CL", K)
    assert_composition(percent, ["Fe", "O"], ("nm",), 0.5)


def test_maps_of_tif_files(tmp_path):
    spectra, haadf = scan()
    for image in hf.element_maps(spectra).split():
        image.change_dtype("uint16")
        image.save(tmp_path / f"{image.metadata.General.title}.tif")
    haadf.save(tmp_path / "HAADF.tif")
    maps = {element: hs.load(tmp_path / f"{element}.tif") for element in ("Fe", "O")}
    fused = fuse_with(maps, hs.load(tmp_path / "HAADF.tif"), **FAST)
    percent = fused.atomic_percent("CL", K)
    assert_composition(percent, ["Fe", "O"], ("nm",), 0.5)
