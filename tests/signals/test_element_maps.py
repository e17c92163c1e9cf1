"""`ElementMaps`: which map is which element, through slicing, saving and exporting."""

import os
from contextlib import contextmanager

import h5py
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import assert_untouched, codes, fuse_with, scan_signals, snapshot

import hyperspy_fusion as hf
from hyperspy_fusion.diagnostics import Diagnostic, as_metadata

ELEMENTS = ["Fe", "O", "Si", "S"]


@pytest.fixture(scope="module")
def result():
    maps, haadf = scan_signals(elements=ELEMENTS)
    return fuse_with(maps, haadf, method="published", max_iter=3)


@pytest.fixture
def fused(result):
    return result.deepcopy()


@pytest.mark.parametrize("first", [np.s_[1:], np.s_[::-1], np.s_[2:3]])
def test_slices_of_slices_know_their_elements(fused, first):
    for second in (np.s_[-1:], np.s_[::-1]):
        expected, cut = ELEMENTS[first][second], fused.inav[first].isig[2:5, 1:].inav[second]
        assert cut.elements == expected == [m.metadata.General.title for m in cut.split()]
        assert [m.metadata.Sample.elements for m in cut.split()] == [[e] for e in expected]
        for element, data in zip(cut.elements, cut.data, strict=True):
            np.testing.assert_array_equal(data, fused.get_map(element).data[1:, 2:5])


@pytest.mark.parametrize("index", [0, 2, -1, 1.0])
def test_one_map_knows_its_element(fused, index):
    one = fused.inav[1:].inav[::-1].inav[index] if index == 2 else fused.inav[index]
    expected = "O" if index == 2 else ELEMENTS[int(index)]
    assert one.elements == [expected] == one.metadata.Sample.elements and one.metadata.General.title == expected
    np.testing.assert_array_equal(one.data, fused.data[ELEMENTS.index(expected)])
    np.testing.assert_array_equal(one.get_map(expected).data, one.data)


def test_sums_over_elements_have_no_element(fused):
    for maps, name, words in (
        (fused, "Pt", "the maps are of Fe, O, Si, S"),
        (fused.inav[1:], "Fe", "the maps are of O"),
        *[(fused, name, "did you mean 'O'") for name in ("o", "O_K", "oxygen")],
    ):
        with pytest.raises(ValueError, match=f"no map of {name!r}: {words}"):
            maps.get_map(name)
    for mixed in (fused.sum("element"), fused.mean(0), fused.max(0)):
        with pytest.raises(ValueError, match="has no map for each of the elements"):
            mixed.elements  # noqa: B018
    with pytest.raises(ValueError, match="add up maps of different elements"):
        fused.rebin(scale=(2, 1, 1))
    with pytest.raises(ValueError, match="add up maps of different elements"):
        fused.rebin(new_shape=(2, 15, 12))
    assert fused.rebin(scale=(1, 3, 3)).elements == ELEMENTS


def test_turned_swapped_and_split_maps(fused):
    parts = fused.split(axis="x", number_of_parts=3)
    assert len(parts) == 3 and all(p.elements == ELEMENTS for p in parts)
    assert len(fused.split(axis="element")) == 4
    turned = fused.T
    assert type(turned) is hs.signals.Signal1D
    back = turned.T
    assert type(back) is hf.ElementMaps and back.elements == ELEMENTS
    np.testing.assert_array_equal(back.data, fused.data)
    assert fused.swap_axes("x", "y").elements == ELEMENTS
    # of one element, that every column of the maps is one is no less wrong
    for maps in (fused, fused.inav[:1]):
        with pytest.raises(ValueError, match="has no map for each of the elements"):
            maps.swap_axes("element", "x").elements  # noqa: B018


def test_crops_and_lazy_twins_know_their_elements(fused):
    lazy = fused.as_lazy()
    assert type(lazy).__name__ == "LazyElementMaps" and isinstance(lazy, hf.ElementMaps)
    assert lazy.inav[1:].elements == ELEMENTS[1:] and lazy.get_map("Si").elements == ["Si"]
    lazy.compute()
    assert type(lazy) is hf.ElementMaps
    np.testing.assert_array_equal(lazy.data, fused.data)
    out = fused.inav[:2]
    fused.inav.__getitem__(slice(2, None), out=out)
    assert out.elements == ["Si", "S"]
    np.testing.assert_array_equal(out.get_map("S").data, fused.data[3])
    first = fused.deepcopy()
    first.crop("element", 0, 2)
    fused.crop("element", 1, 3)
    assert first.elements == ["Fe", "O"] and fused.elements == ["O", "Si"]
    assert hs.stack([first, fused]).inav[:, 1].elements == ["O", "Si"]


def test_stacked_maps_know_their_elements(fused):
    stack = hs.stack([fused.get_map("O"), fused.get_map("S"), fused.get_map("Fe")])
    assert stack.elements == ["O", "S", "Fe"]
    for part, elements in [(stack, "O S Fe"), (stack.inav[::-1], "Fe S O"), (stack.inav[1:], "S Fe")]:
        assert part.elements == elements.split()
        for element, one in zip(part.elements, part.split(), strict=True):
            assert one.elements == [element] == part.get_map(element).elements
            assert one.metadata.General.title == element
            np.testing.assert_array_equal(one.data, fused.get_map(element).data)
            np.testing.assert_array_equal(part.get_map(element).data, one.data)


def test_stacks_that_mix_elements_have_none(fused):
    iron, oxygen = fused.get_map("Fe"), fused.get_map("O")
    stack = hs.stack([iron, oxygen])
    for mixed in (
        stack.sum(0),
        hs.stack([iron, oxygen], stack_metadata=False),
        hs.stack([iron, oxygen], stack_metadata=False).inav[1],
        hs.stack([iron, oxygen], stack_metadata=0).inav[1],
        hs.stack([iron, oxygen], new_axis_name="z").inav[1],
        # of slices of one fit, whose axes HyperSpy takes for that of the first
        hs.stack([fused.inav[:2], fused.inav[2:]]),
        hs.stack([fused.inav[:1], fused.inav[2:3]], axis="element"),
        hs.stack([fused.split("element", number_of_parts=2)[i] for i in (1, 0)]),
        oxygen / iron,
    ):
        with pytest.raises(ValueError, match="has no map for each of the elements"):
            mixed.elements  # noqa: B018
    assert stack.mean("x").metadata.Sample.elements == ["Fe"]  # HyperSpy's, and no longer ElementMaps
    with pytest.raises(ValueError, match="2 maps of 'Fe'"):
        hs.stack([iron, iron]).get_map("Fe")


def test_a_stack_of_results(fused):
    stack = hs.stack([fused, fused * 2])
    for turned in (stack, stack.transpose(navigation_axes=(1, 0))):
        assert turned.elements == ELEMENTS
        oxygen = turned.get_map("O")
        assert oxygen.elements == ["O", "O"]
        np.testing.assert_array_equal(oxygen.data, [fused.data[1], 2 * fused.data[1]])
    np.testing.assert_array_equal(stack.inav[1].data, stack.get_map("O").data)
    assert stack.inav[1].elements == ["O", "O"] and stack.inav[1:].elements == ELEMENTS[1:]
    parts = hs.stack([fused.inav[:2], fused.inav[2:]])
    assert parts.inav[:, 1].elements == ["Si", "S"] and parts.inav[1, 1].elements == ["S"]
    assert parts.inav[1, 1].metadata.General.title == "S"


def test_a_stack_of_maps_is_saved_with_its_elements(fused, tmp_path):
    hs.stack([fused.get_map("O"), fused.get_map("S")]).save(tmp_path / "stack.hspy")
    loaded = hs.load(tmp_path / "stack.hspy")
    assert loaded.elements == ["O", "S"] and loaded.get_map("S").elements == ["S"]
    doubled = fused * 2
    assert doubled.elements == ELEMENTS and type(doubled) is hf.ElementMaps
    assert (fused - doubled).elements == ELEMENTS == (fused * (fused.get_map("O") > 1)).elements
    assert hs.stack([fused, doubled]).elements == ELEMENTS


def plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("extension, lazy", [("hspy", False), ("zspy", True)])
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
    assert [(a.name, a.scale, a.offset) for a in loaded.axes_manager.signal_axes] == [("x", 0.5, 3), ("y", 0.4, -2)]
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
    codes(caplog)
    assert loaded.plot_fusion().size and codes(caplog) == ["measured-maps-not-saved"]
    assert loaded.plot_convergence().size == 3
    maps, haadf = scan_signals(elements=ELEMENTS)
    assert loaded.plot_fusion(maps=maps, haadf=haadf).shape[0] == 2
    assert loaded.fuse(haadf, method="published", max_iter=2).metadata.Fusion.n_iter == 2


@pytest.fixture(scope="module", params=["calibrated", pytest.param("published", marks=pytest.mark.nightly)])
def carrying(request):
    """A result, with errors where there are any, of a scan with a mask."""
    maps, haadf = scan_signals()
    options = {"mask": np.eye(12, 15, dtype=bool), "errors": 3} if request.param == "calibrated" else {}
    return fuse_with(maps, haadf, method=request.param, max_iter=20, **options)


def outcome(call, fused):
    """What a call on a result returns, as arrays and text, or the message of its error."""
    try:
        found = call(fused)
    except ValueError as error:
        return str(error).split(" has ")[-1]
    if isinstance(found, dict):
        return {name: one.data for name, one in found.items()}
    return np.asarray(found.data) if hasattr(found, "axes_manager") else str(found)


CALLS = {
    "report": lambda f: f.report(),
    "modelled": lambda f: f.modelled_haadf(),
    "residual": lambda f: f.residual(),
    "residual of a crop": lambda f: f.isig[2:9, 3:7].residual(),
    "normalised": lambda f: f.normalised_residuals(),
    "attribution of a crop": lambda f: f.isig[2:9].inav[1:].attribution(),
    "errors": lambda f: f.standard_errors(),
    "region": lambda f: f.region(np.eye(12, 15, dtype=bool)[::-1]).mean("Fe"),
    "profile": lambda f: f.line_profile((4.0, 0.0), (9.0, 1.0), 1.0).get_noise_variance(),
    "figure": lambda f: [ax.get_title() for ax in f.plot_fusion().flat],
    "explored": lambda f: f.explore(max_iter=[2, 3], show_progressbar=False)[1, 0].images[0].get_array(),
}


def assert_same(found, expected, name):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key], f"{name}: {key}")
    elif isinstance(expected, str):
        assert found == expected, name
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_file_of_everything_does_all_that_the_result_did(carrying, tmp_path):
    carrying.save(tmp_path / "f.hspy", everything=True)
    assert not carrying.metadata.has_item("Fusion_evidence")
    loaded = hs.load(tmp_path / "f.hspy")
    assert not loaded.metadata.has_item("Fusion_evidence") and type(loaded) is type(carrying)
    for name, call in CALLS.items():
        assert_same(outcome(call, loaded), outcome(call, carrying), name)
    assert type(loaded._inputs.maps) is type(carrying) and loaded._inputs.maps.elements == ["Fe", "O"]
    lazy = hs.load(tmp_path / "f.hspy", lazy=True)
    assert_same(outcome(CALLS["residual"], lazy), outcome(CALLS["residual"], carrying), "lazy")
    loaded.save(tmp_path / "again.zspy", everything=True)
    again = hs.load(tmp_path / "again.zspy")
    for name in ("residual", "normalised", "errors"):
        assert_same(outcome(CALLS[name], again), outcome(CALLS[name], carrying), name)


def test_a_file_of_the_maps_alone_names_the_remedy(carrying, tmp_path):
    carrying.save(tmp_path / "f.hspy")
    loaded = hs.load(tmp_path / "f.hspy")
    assert str(loaded.report()) == str(carrying.report())
    for call in (loaded.residual, loaded.plot_residuals, lambda: loaded.explore(max_iter=[2])):
        with pytest.raises(ValueError, match=r"everything=True"):
            call()
    with pytest.raises(ValueError, match="nothing more to save"):
        loaded.save(tmp_path / "g.hspy", everything=True)
    assert not (tmp_path / "g.hspy").exists()
    with pytest.raises(ValueError, match="after the fit"):
        (carrying * 2).attribution()


def test_plots_without_a_fit_or_its_input(fused, caplog):
    maps = hf.element_maps(scan_signals()[0])
    for show in (maps.modelled_haadf, maps.plot_convergence):
        with pytest.raises(ValueError, match="not the result of a fit: call fuse"):
            show()
    fused.rebin(scale=(1, 3, 3)).plot_fusion()
    assert codes(caplog) == ["input-on-another-grid", "input-on-another-grid", "modelled-haadf-left-out"]
    maps, haadf = scan_signals()
    axes = hf.element_maps(maps).plot_fusion(haadf=haadf)
    assert [ax.get_title() for ax in axes.flat if ax.images] == ["HAADF", "Fe, measured", "O, measured"]
    assert not caplog.text


def test_the_modelled_haadf_is_that_of_a_crop(fused, tmp_path):
    image = fused.modelled_haadf()
    assert [(a.name, a.scale, a.offset) for a in image.axes_manager.signal_axes] == [("x", 0.5, 3), ("y", 0.4, -2)]
    whole = fused.modelled_haadf()
    fused.isig[2:8, 1:].save(tmp_path / "crop.hspy")
    for crop in (fused.isig[2:8, 1:], fused.inav[::-1].isig[2:8, 1:], hs.load(tmp_path / "crop.hspy")):
        np.testing.assert_allclose(crop.modelled_haadf().data, whole.data[1:, 2:8], rtol=1e-6)
    expected = fused.modelled_haadf().data
    np.testing.assert_array_equal(fused.rebin(scale=(1, 1, 1)).modelled_haadf().data, expected)
    fused *= 2
    with pytest.raises(ValueError, match="changed by arithmetic"):
        fused.modelled_haadf()


def test_one_of_a_stack_of_results_has_its_own_fit(fused):
    maps, haadf = scan_signals(elements=ELEMENTS, seed=1)
    other = fuse_with(maps, haadf, method="published", max_iter=2, gamma=1)
    stack = hs.stack([fused, other])
    for i, fit in enumerate((fused, other)):
        np.testing.assert_array_equal(stack.inav[:, i].modelled_haadf().data, fit.modelled_haadf().data)
    assert len(images(stack.inav[:, 1].plot_fusion())) == 1 + len(ELEMENTS)  # the stack does not know what was measured


def smoothed(image):
    return (image + np.roll(image, 1, 0)) / 2


def with_edited_pixels(maps):
    maps.data[:, :3] *= 1.5
    return maps


CHANGES = {
    "rebinned": lambda f: f.rebin(scale=(1, 3, 3)),
    "changed by arithmetic": lambda f: f * 2,
    "by arithmetic": lambda f: (f + 1).isig[2:8],
    "were changed by arithmetic": lambda f: -f,
    "edited": lambda f: f.map(smoothed, inplace=False),
    "edited after the fit": with_edited_pixels,
    "a stack of maps, described by the fit of the first": lambda f: hs.stack([f, f]),
    "is a stack": lambda f: hs.stack([f.get_map("Fe"), f.get_map("O")]),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_changed_maps_have_no_modelled_haadf(fused, reason, tmp_path, caplog):
    changed = CHANGES[reason](fused)
    with pytest.raises(ValueError, match=f"{reason}.*: call modelled_haadf on the result as it was fitted"):
        changed.modelled_haadf()
    if changed.elements == ELEMENTS and changed.axes_manager.navigation_dimension == 1:
        names = {path.name for path in changed.export(tmp_path / "out")}
        assert "Fe.tif" in names and "HAADF_modelled.tif" not in names
        assert "modelled-haadf-left-out" in codes(caplog)


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


def test_plot_of_a_loaded_crop_takes_whole_and_cropped_images(fused, tmp_path):
    maps, haadf = scan_signals(elements=ELEMENTS)
    fused.isig[3:9, 2:].save(tmp_path / "crop.hspy")
    crop = hs.load(tmp_path / "crop.hspy")
    bare = hs.signals.Signal2D(haadf.data)  # without calibration
    for given in (
        {"haadf": haadf},
        {"haadf": bare.isig[3:9, 2:]},
        {"haadf": bare, "maps": maps},
        {"haadf": bare.T, "maps": maps},
    ):
        shown = images(crop.plot_fusion(**given))
        assert any(np.array_equal(s, haadf.data[2:, 3:9]) for s in shown)
        assert any(np.array_equal(s, maps[1].data[2:, 3:9]) for s in shown) == ("maps" in given)


def calibration(image):
    return [value for axis in image.axes_manager.signal_axes for value in (axis.scale, axis.offset)]


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
    assert calibration(tif) == pytest.approx([0.5, 3, 0.4, -2])
    np.testing.assert_array_equal(tif.data, fused.get_map("Si").data)
    with h5py.File(folder / "fused.h5") as file:
        np.testing.assert_array_equal(file["maps/O"][:], fused.get_map("O").data)
        np.testing.assert_array_equal(file["haadf"][:], fused._inputs.haadf.data)
        np.testing.assert_array_equal(file["cost_history/total"][:], fused.metadata.Fusion.cost_history.total)
        assert file["parameters"].attrs["lambda_tv"] == 0.15
        assert list(file["parameters"].attrs["elements"]) == ELEMENTS
        for name in ("maps/O", "haadf", "modelled_haadf"):
            np.testing.assert_allclose(file[name].attrs["scale"], [0.4, 0.5])
            np.testing.assert_allclose(file[name].attrs["offset"], [-2, 3])
            assert file[name].attrs["units"] == "nm"


def test_export_leaves_out_what_does_not_belong(fused, tmp_path, caplog):
    # the image of some of the elements would look like a bad fit
    assert {p.name for p in fused.inav[:2].export(tmp_path / "some")} == {"Fe.tif", "O.tif", "HAADF.tif", "fused.h5"}
    with h5py.File(tmp_path / "some" / "fused.h5") as file:
        assert set(file) == {"maps", "haadf", "cost_history", "diagnostics", "parameters"}
    names = {p.name for p in fused.rebin(scale=(1, 3, 3)).export(tmp_path / "rebinned")}
    assert names == {*(f"{e}.tif" for e in ELEMENTS), "fused.h5"} and "input-on-another-grid" in codes(caplog)
    whole = {"maps/O": fused.data[1], "haadf": fused._inputs.haadf.data, "modelled_haadf": fused.modelled_haadf().data}
    fused.isig[2:8, 1:].export(tmp_path / "crop")
    with h5py.File(tmp_path / "crop" / "fused.h5") as file:
        for name, image in whole.items():
            np.testing.assert_allclose(file[name][:], image[1:, 2:8], rtol=1e-6)
            np.testing.assert_allclose(file[name].attrs["offset"], [-2 + 0.4, 3 + 2 * 0.5])
    for name in ("O", "HAADF", "HAADF_modelled"):
        tif = hs.load(tmp_path / "crop" / f"{name}.tif")
        assert tif.data.shape == (11, 6) and calibration(tif) == pytest.approx([0.5, 4, 0.4, -1.6])


def test_export_of_swapped_and_constant_maps(tmp_path):
    maps, haadf = scan_signals(12, 12)
    for axis in (axis for signal in (*maps, haadf) for axis in signal.axes_manager.signal_axes):
        axis.scale, axis.offset = 1, 0
    names = {
        p.name
        for p in fuse_with(maps, haadf, method="published", max_iter=1).swap_axes("x", "y").export(tmp_path / "out")
    }
    assert "Fe.tif" in names and "HAADF.tif" not in names
    maps, haadf = scan_signals()
    flat = maps[0].deepcopy()
    flat.data[:] = 3
    flat.metadata.set_item("Sample.elements", ["S"])
    fused = fuse_with([*maps, flat], haadf, method="published", max_iter=2)
    assert tmp_path / "HAADF_modelled.tif" in fused.inav[:2].export(tmp_path, overwrite=True)


def test_export_overwrites_only_on_request(fused, tmp_path):
    folder = tmp_path / "maps"
    fused.export(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists: choose another folder, or pass overwrite=True"):
        fused.export(folder)
    fused.inav[:1].export(folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert {p.name for p in fused.get_map("Fe").export(tmp_path / "one")} >= {"Fe.tif", "fused.h5"}
    fused.save(tmp_path / "f.hspy")
    names = {p.name for p in hs.load(tmp_path / "f.hspy", lazy=True).export(tmp_path / "loaded")}
    assert "HAADF.tif" not in names and "HAADF_modelled.tif" in names


@pytest.mark.parametrize("loaded", [False, True])
def test_export_with_lists_and_dictionaries_in_the_metadata(fused, tmp_path, loaded):
    # as a choice of weights, and warnings, leave them there: lists of words are arrays of objects once loaded
    choice = {"score": np.array([0.5, 0.25]), "regularization": ["guided", "tv"], "seed": 0, "sentence": "Of 2 fits."}
    fused.metadata.set_item("Fusion.selection", choice)
    fused.metadata.set_item("Fusion.warnings", ["one", "two"])
    found = [Diagnostic("totals-changed", "One.", elements=("Fe", "O")), Diagnostic("noise-shared", "Two.")]
    fused.metadata.set_item("Fusion.diagnostics", as_metadata(found))
    fused.metadata.set_item("Fusion.nothing", as_metadata([]))
    fused.save(tmp_path / "f.hspy")
    result = hs.load(tmp_path / "f.hspy") if loaded else fused
    result.export(tmp_path / "out")
    with h5py.File(tmp_path / "out" / "fused.h5") as file:
        assert list(file["parameters"].attrs["warnings"]) == ["one", "two"]
        assert list(file["diagnostics"].attrs["codes"]) == ["totals-changed", "noise-shared"]
        assert list(file["diagnostics"].attrs["elements"]) == ["Fe,O", ""] and "nothing" in file
        assert list(file["selection"].attrs["regularization"]) == choice["regularization"]
        assert list(file["selection"].attrs["score"]) == [0.5, 0.25] and file["selection"].attrs["sentence"]


# ---- files that are complete or not there ---------------------------------------------------------


def maps_on(scale, units, shape=(6, 8)):
    """Maps with pixels of another size along x."""
    axes = [{"name": n, "size": s, "scale": scale * k, "offset": 3 * scale, "units": units}
            for n, s, k in zip("yx", shape, (1, 2), strict=True)]  # fmt: skip
    data = np.random.default_rng(0).random((2, *shape), np.float32)
    return hf.element_maps({e: hs.signals.Signal2D(m, axes=axes) for e, m in zip(("Fe", "O"), data, strict=True)})


@pytest.mark.parametrize(
    "scale, units, written",
    [
        (1e-9, "m", (1, "nm")),
        (-2.5e-11, "m", (-0.025, "nm")),
        (0.02, "um", (0.02, "um")),
        (2e-5, "\u03bcm", (0.02, "nm")),
        (3.0, "\u212b", (3, "Å")),
        (0.4, "1/Å", (0.4, "1/angstrom")),
        (1e-12, "1/m", None),
        (0.0, "nm", None),
        (1e-9, "px", None),
    ],
)
def test_export_in_any_unit_and_sign(scale, units, written, tmp_path):
    maps = maps_on(scale, units)
    maps.export(tmp_path / "out")
    tif = hs.load(tmp_path / "out" / "Fe.tif")
    np.testing.assert_array_equal(tif.data, maps.data[0])
    size, units_written = written or (1 / 3, "px")
    sign = np.sign(size)  # of an axis that is turned
    expected = [2 * abs(size), 3 * sign * size, abs(size), 3 * sign * size] if written else [1, 0, 1, 0]
    assert calibration(tif) == pytest.approx(expected, rel=1e-5)
    assert {axis.units for axis in tif.axes_manager.signal_axes} == {units_written}
    with h5py.File(tmp_path / "out" / "fused.h5") as file:
        np.testing.assert_allclose(file["maps/O"].attrs["scale"], [scale, 2 * scale])
        assert file["maps/O"].attrs["units"] == units


@pytest.fixture
def full_disk():
    """A context in which no file becomes longer than a few bytes, that of the results of the tests included."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


def test_export_that_fails_leaves_nothing_behind(tmp_path, full_disk, monkeypatch):
    maps = maps_on(1.0, "nm", (64, 64))
    maps.export(tmp_path / "there")
    (tmp_path / "there" / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in (tmp_path / "there").iterdir()}
    for folder, options in (("deep/new", {}), ("there", {"overwrite": True})):
        with monkeypatch.context() as patch:  # the last file
            patch.setattr("h5py.File.create_dataset", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                (maps * 2).export(tmp_path / folder, **options)
    for folder, options in (("deep/new", {}), ("there", {"overwrite": True})):
        sentence = r"(new|there) cannot be written \(.*\), and what was there is kept: make room"
        with full_disk(), pytest.raises(OSError, match=sentence):
            (maps * 2).export(tmp_path / folder, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert {path: path.read_bytes() for path in (tmp_path / "there").iterdir()} == before


@pytest.mark.parametrize("given", [None, 3, b"out"])
def test_export_to_no_folder(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match="folder is .*: give the path of the folder"):
        maps_on(1.0, "nm").export(given)
    (tmp_path / "notes.txt").write_text("mine")
    for name in ("notes.txt", "notes.txt/out"):
        with pytest.raises(NotADirectoryError, match="notes.txt is a file, and maps are exported to a folder"):
            maps_on(1.0, "nm").export(name, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["maps.hspy", "maps.zspy", "maps"])
def test_save_that_fails_keeps_the_file_before(tmp_path, name, full_disk):
    if name.endswith("zspy"):
        pytest.importorskip("zarr")
    maps = maps_on(1.0, "nm", (64, 64))
    maps.save(tmp_path / "new" / name)
    (path,) = (tmp_path / "new").iterdir()
    (maps * 2).save(path, overwrite=True)
    known = maps.tmp_parameters.as_dictionary()
    for target in (path, tmp_path / "other" / path.name):
        with full_disk(), pytest.raises(OSError, match="maps.* cannot be written .*, and what was there is kept"):
            maps.save(target, overwrite=True)
    assert maps.tmp_parameters.as_dictionary() == known
    np.testing.assert_array_equal(hs.load(path).data, (maps * 2).data)
    assert list(tmp_path.rglob("*.?spy")) == [path] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_folder_that_cannot_be_replaced_comes_back(tmp_path, monkeypatch, error):
    pytest.importorskip("zarr")
    maps, path, moves = maps_on(1.0, "nm"), tmp_path / "maps.zspy", []
    maps.save(path)
    replace = os.replace

    def fail_once(old, new):
        moves.append(new)
        if moves.count(path) == 1 and new == path:
            raise error
        replace(old, new)

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(os, "replace", fail_once)
        (maps * 2).save(path, overwrite=True)
    np.testing.assert_array_equal(hs.load(path).data, maps.data)
    assert list(tmp_path.iterdir()) == [path]


def test_formats_of_two_files_are_saved_whole(tmp_path):
    maps = maps_on(1.0, "nm")
    maps.save(tmp_path / "maps.rpl")
    assert {p.name for p in tmp_path.iterdir()} == {"maps.rpl", "maps.raw"}
    np.testing.assert_array_equal(hs.load(tmp_path / "maps.rpl").data, maps.data)


@pytest.mark.parametrize("suffix", [".hspy", ".zspy"])
def test_save_names_and_overwrites_as_hyperspy_does(tmp_path, suffix, monkeypatch):
    if suffix == ".zspy":
        pytest.importorskip("zarr")
    maps, path = maps_on(1.0, "nm"), tmp_path / f"maps{suffix}"
    maps.save(path)
    assert (maps.tmp_parameters.folder, maps.tmp_parameters.filename) == (tmp_path, "maps")
    loaded = hs.load(path, lazy=True)
    loaded.save(path, overwrite=True)  # onto the file that it reads
    (maps * 2).save(path, overwrite=False)
    answers = iter("ny")
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    (maps * 3).save(path)
    np.testing.assert_array_equal(hs.load(path).data, maps.data)
    again = hs.load(path)
    again.data *= 4
    again.save()
    np.testing.assert_array_equal(hs.load(path).data, 4 * maps.data)
    (tmp_path / "sub").mkdir()
    again.save(tmp_path / "sub")
    again.save(tmp_path / "copy", file_format="HSPY")
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "sub", "copy.hspy"}
    assert [p.name for p in (tmp_path / "sub").iterdir()] == [path.name]
    with pytest.raises(ValueError, match="overwrite"):
        maps.save(path, overwrite="yes")
    with pytest.raises(ValueError, match="File name not defined"):
        maps_on(1.0, "nm").save()
