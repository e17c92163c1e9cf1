"""`ElementMaps`: which map is which element, through slicing, saving and exporting."""

import h5py
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import assert_untouched, scan_signals, snapshot

import hyperspy_fusion as hf

ELEMENTS = ["Fe", "O", "Si", "S"]


@pytest.fixture(scope="module")
def result():
    maps, haadf = scan_signals(elements=ELEMENTS)
    return hf.fuse(maps, haadf, max_iter=3)


@pytest.fixture
def fused(result):
    return result.deepcopy()


# ---- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part", [slice(1, None), slice(None, None, 2), slice(None, None, -1), slice(1, 3), slice(2, 3)]
)
def test_slices_know_their_elements(fused, part):
    cut = fused.inav[part]
    assert cut.elements == ELEMENTS[part]
    for element, data in zip(cut.elements, cut.data, strict=True):
        np.testing.assert_array_equal(data, fused.get_map(element).data)
    assert [m.metadata.General.title for m in cut.split()] == ELEMENTS[part]
    assert [m.metadata.Sample.elements for m in cut.split()] == [[e] for e in ELEMENTS[part]]
    assert cut.isig[2:5, 1:].inav[::-1].elements == ELEMENTS[part][::-1]


@pytest.mark.parametrize("index", [0, 2, -1, 1.0])
def test_one_map_knows_its_element(fused, index):
    one = fused.inav[index]
    expected = ELEMENTS[int(index)]
    assert one.elements == [expected] == one.metadata.Sample.elements and one.metadata.General.title == expected
    np.testing.assert_array_equal(one.data, fused.data[int(index)])
    assert one.get_map(expected).data.shape == one.data.shape


def test_slice_of_a_slice(fused):
    assert fused.inav[1:].inav[1].elements == ["Si"]
    assert fused.inav[::-1].inav[0].elements == ["S"]


def test_unknown_map_is_refused(fused):
    with pytest.raises(ValueError, match="no map of 'Pt': the maps are of Fe, O, Si, S"):
        fused.get_map("Pt")
    with pytest.raises(ValueError, match="no map of 'Fe'"):
        fused.inav[1:].get_map("Fe")


def test_sums_over_elements_have_no_element(fused):
    for mixed in (fused.sum("element"), fused.mean(0), fused.max(0)):
        with pytest.raises(ValueError, match="has no map for each of the elements"):
            mixed.elements  # noqa: B018
    with pytest.raises(ValueError, match="add up maps of different elements"):
        fused.rebin(scale=(2, 1, 1))
    with pytest.raises(ValueError, match="add up maps of different elements"):
        fused.rebin(new_shape=(2, 15, 12))
    assert fused.rebin(scale=(1, 3, 3)).elements == ELEMENTS


def test_split_of_other_axes_is_hyperspys(fused):
    parts = fused.split(axis="x", number_of_parts=3)
    assert len(parts) == 3 and all(p.elements == ELEMENTS for p in parts)
    assert len(fused.split(axis="element")) == 4


def test_turning_to_spectra_and_back(fused):
    turned = fused.T
    assert type(turned) is hs.signals.Signal1D
    back = turned.T
    assert type(back) is hf.ElementMaps and back.elements == ELEMENTS
    np.testing.assert_array_equal(back.data, fused.data)


def test_lazy_twin(fused):
    lazy = fused.as_lazy()
    assert type(lazy).__name__ == "LazyElementMaps" and isinstance(lazy, hf.ElementMaps)
    assert lazy.inav[1:].elements == ELEMENTS[1:] and lazy.get_map("Si").elements == ["Si"]
    lazy.compute()
    assert type(lazy) is hf.ElementMaps
    np.testing.assert_array_equal(lazy.data, fused.data)


def test_arithmetic_keeps_labels(fused):
    doubled = fused * 2
    assert doubled.elements == ELEMENTS and type(doubled) is hf.ElementMaps
    assert hs.stack([fused, doubled]).elements == ELEMENTS


# ---- saving and loading ---------------------------------------------------------------------------------


def plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("extension", ["hspy", "zspy"])
def test_saving_and_loading(fused, tmp_path, extension, lazy):
    if extension == "zspy":
        zarr = pytest.importorskip("zarr")
        if int(zarr.__version__.split(".")[0]) > 2:
            pytest.skip("this rosettasciio writes .zspy with zarr 2 only")
    path = tmp_path / f"fused.{extension}"
    fused.save(path)
    loaded = hs.load(path, lazy=lazy)
    assert type(loaded).__name__ == ("LazyElementMaps" if lazy else "ElementMaps")
    assert loaded.elements == ELEMENTS and loaded.inav[2:].elements == ELEMENTS[2:]
    np.testing.assert_array_equal(np.asarray(loaded.data), fused.data)
    before, after = fused.metadata.Fusion.as_dictionary(), loaded.metadata.Fusion.as_dictionary()
    assert before.keys() == after.keys()
    for key in before:
        for name, value in before[key].items() if isinstance(before[key], dict) else [(None, before[key])]:
            other = after[key][name] if name else after[key]
            other = np.asarray(other) if isinstance(value, np.ndarray) else other
            assert plain(other) == plain(value) or np.array_equal(other, value, equal_nan=True), (key, name)
    assert [a.scale for a in loaded.axes_manager.signal_axes] == [0.5, 0.5]
    np.testing.assert_allclose(loaded.modelled_haadf().data, fused.modelled_haadf().data, rtol=1e-6)


def test_metadata_are_flat_arrays_and_python_scalars(fused):
    def leaves(node):
        for value in node.values():
            yield from leaves(value) if isinstance(value, dict) else [value]

    for value in leaves(fused.metadata.Fusion.as_dictionary()):
        if isinstance(value, list):
            assert all(type(v) is str for v in value)
        elif isinstance(value, np.ndarray):
            assert value.ndim == 1 and value.dtype.kind in "if"
        else:
            assert value is None or type(value) in (str, int, float, bool)


def test_loaded_maps_can_be_plotted_and_fused_again(fused, tmp_path, caplog):
    fused.save(tmp_path / "f.hspy")
    loaded = hs.load(tmp_path / "f.hspy")
    axes = loaded.plot_fusion()
    assert axes.size and "not saved" in caplog.text
    assert loaded.plot_convergence().size == 3
    maps, haadf = scan_signals(elements=ELEMENTS)
    assert loaded.plot_fusion(maps=maps, haadf=haadf).shape[0] == 2
    assert loaded.fuse(haadf, max_iter=2).metadata.Fusion.n_iter == 2


def test_maps_without_a_fit_have_nothing_to_show():
    maps = hf.element_maps(scan_signals()[0])
    for show in (maps.modelled_haadf, maps.plot_convergence):
        with pytest.raises(ValueError, match="not the result of a fit: call fuse"):
            show()


# ---- the picture -----------------------------------------------------------------------------------------


def images(axes):
    return [np.asarray(ax.images[0].get_array()) for ax in axes.flat if ax.images]


def test_plot_of_a_slice_shows_the_same_pixels_of_the_input(fused):
    maps, haadf = scan_signals(elements=ELEMENTS)
    shown = images(fused.inav[2:].isig[3:9, 2:].plot_fusion())
    expected = [
        haadf.data[2:, 3:9],
        *(maps[i].data[2:, 3:9] for i in (2, 3)),
        *(fused.data[i, 2:, 3:9] for i in (2, 3)),
    ]
    for image in expected:
        assert any(s.shape == image.shape and np.allclose(s, image) for s in shown)
    # the modelled HAADF image of two of four elements would look like a bad fit
    assert len(shown) == len(expected)


def test_plot_of_rebinned_maps_leaves_the_input_out(fused, caplog):
    fused.rebin(scale=(1, 3, 3)).plot_fusion()
    assert "on another grid" in caplog.text


# ---- export -----------------------------------------------------------------------------------------------


def test_export(fused, tmp_path):
    folder = tmp_path / "out" / "maps"
    before = snapshot(fused)
    paths = fused.export(folder)
    assert_untouched(fused, before)
    assert sorted(p.name for p in paths) == sorted(
        [*(f"{e}.tif" for e in ELEMENTS), "HAADF.tif", "HAADF_modelled.tif", "fused.h5"]
    )
    tif = hs.load(folder / "Si.tif")
    assert tif.data.dtype == np.float32 and tif.axes_manager[0].units == "nm"
    assert tif.axes_manager[0].scale == pytest.approx(0.5) and tif.axes_manager[0].offset == pytest.approx(3.0)
    np.testing.assert_array_equal(tif.data, fused.get_map("Si").data)
    with h5py.File(folder / "fused.h5") as file:
        np.testing.assert_array_equal(file["maps/O"][:], fused.get_map("O").data)
        np.testing.assert_array_equal(file["haadf"][:], fused._inputs.haadf.data)
        np.testing.assert_array_equal(file["cost_history/total"][:], fused.metadata.Fusion.cost_history.total)
        assert file["parameters"].attrs["lambda_tv"] == 0.15
        assert list(file["parameters"].attrs["elements"]) == ELEMENTS
        np.testing.assert_allclose(file["maps/O"].attrs["scale"], 0.5)


def test_export_overwrites_only_when_told(fused, tmp_path):
    folder = tmp_path / "maps"
    fused.export(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists: choose another folder, or pass overwrite=True"):
        fused.export(folder)
    fused.inav[:1].export(folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"


def test_export_of_one_map_and_of_loaded_maps(fused, tmp_path):
    assert {p.name for p in fused.get_map("Fe").export(tmp_path / "one")} >= {"Fe.tif", "fused.h5"}
    fused.save(tmp_path / "f.hspy")
    names = {p.name for p in hs.load(tmp_path / "f.hspy", lazy=True).export(tmp_path / "loaded")}
    assert "HAADF.tif" not in names and "HAADF_modelled.tif" in names
