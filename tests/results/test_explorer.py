"""Settings by sliders: previews of a crop, keywords, and the widgets without a browser."""

import copy
import functools
import io

import hyperspy.api as hs
import matplotlib.image
import numpy as np
import pytest
from helpers import fuse_with, scan_signals

import hyperspy_fusion
from hyperspy_fusion import FusedMultiModal, data, fuse
from hyperspy_fusion.results import explorer_widgets
from hyperspy_fusion.results.explorer import Explorer

METHODS = ["published", "calibrated"]


@pytest.fixture
def drawn():
    """For tests that look at pictures."""


@pytest.fixture(autouse=True)
def sketched(request, monkeypatch):
    """Pictures took most of the time of the tests of widgets, and one test looks at them."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(explorer_widgets.LivePicture, "__init__", lambda *_, **__: None)
        monkeypatch.setattr(explorer_widgets.LivePicture, "png", lambda *_: b"")


CROP = (slice(8, 40), slice(10, 42))


@functools.cache
def phantom():
    return data.core_shell((48, 56)).signals()


def model(method, **options):
    maps, haadf = phantom()
    return FusedMultiModal(haadf, maps, method=method, **options)


def explorer_of(method="calibrated", of=None, **options):
    of = of or model(method)
    return Explorer(of._measured, method, of.settings, of.maps, **options)


def widgets_of(explorer):
    pytest.importorskip("ipywidgets")
    return explorer.gui(display=False, toolkit="ipywidgets")["ipywidgets"]["wdict"]


def pixels(png):
    return matplotlib.image.imread(io.BytesIO(png))


def off(maps, others):
    """Root mean square of a difference over that of each map about its mean."""
    return np.std(maps - others, axis=(1, 2)) / np.std(others, axis=(1, 2))


# ---- previews ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method, most", [("published", 0.02), ("calibrated", 0.04)])
def test_a_preview_is_what_a_fit_of_the_whole_scan_gives(method, most):
    """A bright particle outside of the crop sets the units of the published method, and the gain of the image."""
    maps, haadf = (copy.deepcopy(one) for one in phantom())
    for one in (*maps, haadf):
        one.data[:5, :5] = one.data.max() * np.linspace(2.5, 3.5, 25).reshape(5, 5)
    explorer = explorer_of(method, FusedMultiModal(haadf, maps, method=method), crop=(10, 42, 8, 40))
    assert explorer.window == CROP
    fused = fuse(maps, haadf, **explorer.keywords(), show_progressbar=False)
    inside = (slice(None), slice(6, -6), slice(6, -6))
    assert (off(explorer.fitted.maps[inside], fused.data[(slice(None), *CROP)][inside]) < most).all()
    explorer.set(crop=(None, None, None, None))
    assert (off(explorer.fitted.maps, fused.data) < most).all()
    np.testing.assert_allclose(explorer.fitted.residual, fused.residual().data, atol=0.02 * haadf.data.max())
    assert explorer.fitted.history.total[-1] < explorer.fitted.history.total[0]
    np.testing.assert_allclose(explorer.fitted.total_ratios, fused.metadata.Fusion.total_ratios, atol=0.02)


def test_pixels_that_are_not_valid_stay_out_and_noise_goes_with_the_crop():
    maps, haadf = scan_signals(40, 36)
    maps[0].data[12:15, 12:15] = np.nan
    for one in maps:
        one.set_noise_variance(one._deepcopy_with_new_data(2.0 + np.nan_to_num(one.data)))
    mask = np.zeros((40, 36), bool)
    mask[20:24, 5:30] = True
    of = FusedMultiModal(haadf, maps, method="calibrated", mask=mask)
    explorer = explorer_of(of=of, crop=(4, 34, 6, 30))
    assert (
        np.isnan(explorer.fitted.measured[0, 6:9, 8:11]).all() and np.isnan(explorer.fitted.residual[14:18, 1:]).any()
    )
    assert np.isfinite(explorer.fitted.maps).all() and np.isfinite(explorer.fitted.total_ratios).all()
    fused = fuse(maps, haadf, mask=mask, **explorer.keywords(), show_progressbar=False)
    assert (off(explorer.fitted.maps, fused.data[:, 6:30, 4:34]) < 0.15).all()


@pytest.mark.parametrize("kind", ["numbers", "pixels"])
def test_totals_are_of_the_measured_maps_less_their_background(kind):
    maps, haadf = phantom()
    counts = [1.0, 0.5, 0.2]
    if kind == "pixels":
        maps, counts = hyperspy_fusion.element_maps(maps), 0.0
        background = np.full(maps.data.shape, 0.5)
        maps.metadata.set_item("Element_maps.background", maps._deepcopy_with_new_data(background))
    of = FusedMultiModal(haadf, maps, method="calibrated", background=counts)
    explorer = explorer_of(of=of, crop=(0, 30, 8, 40))
    np.testing.assert_allclose(explorer.fitted.total_ratios, 1, atol=1e-3)  # which the calibrated method keeps


@pytest.mark.parametrize("options, n_iter", [({"max_iter": 3}, 3), ({"tol": 0.9}, 50), ({"max_iter": 130}, 125)])
def test_a_preview_is_no_longer_than_the_fit(options, n_iter):
    of = model("calibrated")
    of.fit(lambda_reg=20.0, **options, show_progressbar=False)
    assert Explorer(of._measured, of.method, of._record.in_effect, of.maps).fitted.n_iter == n_iter


@pytest.mark.parametrize("how", ["mask", "NaN"])
def test_a_crop_without_valid_pixels_is_refused_and_not_opened(how):
    maps, haadf = (copy.deepcopy(one) for one in phantom())
    for one in (*maps, haadf):
        one.data = np.tile(one.data, (1, 3))
        one.get_dimensions_from_data()
    mask = np.zeros(haadf.data.shape, bool)
    mask[:, 20:148] = True  # the middle
    if how == "NaN":
        maps[1].data = np.where(mask, np.nan, maps[1].data)
    of = FusedMultiModal(haadf, maps, method="calibrated", mask=mask if how == "mask" else None)
    explorer = explorer_of(of=of)
    assert explorer.window == (slice(0, 48), slice(0, 128)) and np.isfinite(explorer.fitted.total_ratios).all()
    with pytest.raises(ValueError, match="no valid pixel of Fe: move it" if how == "NaN" else "Pt, Fe, O: move it"):
        explorer.set(crop=(20, 60, 0, 48))


def changed(maps, haadf, kind):
    """The phantom in another form."""
    haadf, maps = haadf.deepcopy(), [one.deepcopy() for one in maps]
    if kind == "constant image":
        haadf.data[:] = 3.0
    elif kind == "saturated image":
        haadf.data[haadf.data > np.percentile(haadf.data, 90)] = haadf.data.max()
    elif kind == "constant map":
        maps[1].data[:] = 2.0
    elif kind == "negative scales":
        for axis in (a for one in (*maps, haadf) for a in one.axes_manager.signal_axes):
            axis.scale *= -1
    elif kind == "no calibration":
        for axis in (a for one in (*maps, haadf) for a in one.axes_manager.signal_axes):
            axis.scale, axis.offset, axis.units = 1.0, 0.0, ""
    elif kind == "quantified":
        maps = [one * 1e-4 for one in maps]
    return maps, haadf


@pytest.mark.parametrize("kind", ["constant image", "constant map", "negative scales", "quantified"])
def test_any_scan_has_a_preview_and_keywords(kind):
    maps, haadf = changed(*phantom(), kind)
    explorer = explorer_of(of=FusedMultiModal(haadf, maps, method="calibrated"), crop=(0, 20, 0, 24))
    assert explorer.fitted.maps.shape == (2 if kind == "constant map" else 3, 24, 20)
    explorer.set(lambda_haadf=0.3)
    assert explorer.keywords()["lambda_haadf"] == (0.0 if kind == "constant image" else 0.3)


# ---- settings and keywords --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, values",
    [
        ("published", {"lambda_tv": 0.3, "tv_iter": 7, "eps": 0.01, "max_iter": 12, "gamma": 1.8}),
        (
            "calibrated",
            {"regularization": "tgv", "lambda_reg": (0.5, 1.0, 2.0), "lambda_haadf": 0.0, "noise": "poisson"},
        ),
    ],
)
def test_keywords_give_the_fit_of_these_settings(method, values):
    explorer = explorer_of(method)
    explorer.set(**values)
    pasted = eval(
        repr(explorer), {"hyperspy_fusion": hyperspy_fusion, **dict(zip(("maps", "haadf"), phantom(), strict=True))}
    )
    fused = fuse(*phantom(), **explorer.keywords(), show_progressbar=False)
    np.testing.assert_array_equal(pasted.data, fused.data)
    shown = fused.metadata.Fusion.parameters.as_dictionary()
    for name, value in explorer.settings.as_dict().items():
        np.testing.assert_equal(np.asarray(shown[name]), np.asarray(value), err_msg=name)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"lambda_reg": -1.0}, "lambda_reg"),
        ({"lambda_tv": 1.0}, "lambda_tv is no setting of method='calibrated'"),
        ({"crop": (0, 9, 0, 30)}, "9 pixels along one side: give at least 16"),
        ({"crop": (0, 1)}, "four numbers"),
        ({"lambda_reg": {"Au": 1.0}}, "Au"),
        ({"lambda_stack": 1.0}, "lambda_stack is 1.0, and a preview"),
        ({"tile_size": 16}, "tile_size is 16, and a preview"),
    ],
)
def test_what_is_refused_changes_nothing(values, words):
    explorer = explorer_of(crop=(0, 24, 0, 24))
    before = explorer.settings, explorer.window, explorer.fitted
    with pytest.raises(ValueError, match=words):
        explorer.set(**values)
    assert (explorer.settings, explorer.window) == before[:2] and explorer.fitted is before[2]


# ---- what opens it ----------------------------------------------------------------------------------


def test_a_result_and_a_model_open_it(capsys):
    pytest.importorskip("ipywidgets")
    fused = fuse_with(*phantom(), method="published", lambda_tv=0.05, max_iter=5)
    explorer = fused.explore(["O", "Pt"], crop=(0, 32, 8, 40), num_workers=1)
    assert explorer.settings.lambda_tv == 0.05 and explorer.drawn == [2, 0]
    assert explorer.window == (slice(8, 40), slice(0, 32))
    one = model("auto").gui()
    assert one.method == "calibrated" and one.keywords()["method"] == "calibrated"
    fitted = model("calibrated")
    fitted.fit(lambda_reg=0.4, max_iter=5)
    assert fitted.gui(crop=(0, 16, 0, 16)).settings.lambda_reg == 0.4
    with pytest.raises(ValueError, match="'Au'.*Pt, Fe, O"):
        fused.explore(["Au"])
    # as that of a model
    for shown in (fused.explore(display=False), model("calibrated").gui(display=False, toolkit="ipywidgets")):
        assert set(shown) == {"ipywidgets"}
    assert "Traceback" not in capsys.readouterr().err


def test_without_widgets_a_sentence_names_the_extra(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(explorer_widgets, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install .hyperspy_fusion\[gui-jupyter\]"):
        explorer_of().gui(toolkit="ipywidgets")


def test_stacks_have_none():
    maps, haadf = phantom()
    of = FusedMultiModal(hs.stack([haadf] * 2), [hs.stack([one] * 2) for one in maps])
    with pytest.raises(ValueError, match="one frame"):
        of.gui()


# ---- widgets, without a browser ---------------------------------------------------------------------


def test_a_slider_changes_picture_keywords_and_totals(drawn):
    explorer = explorer_of("published")
    shown = widgets_of(explorer)
    before = pixels(shown["picture"].value)
    assert "lambda_chem=0.08" in shown["keywords"].value and "30 iterations" in shown["status"].value
    shown["lambda_chem"].value, shown["max_iter"].value = 0.01, 5
    assert explorer.settings.lambda_chem == 0.01
    assert "lambda_chem=0.01" in shown["keywords"].value and "5 iterations" in shown["status"].value
    after = pixels(shown["picture"].value)
    assert after.shape == before.shape and 0.05 < np.mean((after != before).any(axis=2)) < 0.9
    top = slice(0, int(0.3 * len(after)))  # the measured maps
    np.testing.assert_array_equal(after[top], before[top])
    shown["reset"].click()
    np.testing.assert_array_equal(pixels(shown["picture"].value), before)


@pytest.mark.parametrize(
    "error, words",
    [
        (FloatingPointError("The maps <became> NaN."), "&lt;became&gt; NaN."),
        (MemoryError(), "MemoryError"),
    ],
)
def test_sliders_go_back_from_what_fails(error, words):
    explorer = explorer_of(crop=(0, 24, 0, 24))
    shown = widgets_of(explorer)
    explorer.set(lambda_reg=0.123)
    explorer._preview.fit = lambda *_: (_ for _ in ()).throw(error)
    shown["lambda_reg"].value = 2.0
    assert shown["lambda_reg"].value == 0.123 and words in shown["status"].value


def test_sliders_follow_the_explorer():
    explorer = explorer_of()
    shown = widgets_of(explorer)
    explorer.set(lambda_reg=0.123, lambda_haadf=(0.5,), regularization="tv")
    assert shown["lambda_reg"].label == "0.123" and shown["lambda_haadf"].label == "as given"
    explorer.set(lambda_haadf=1.0)
    assert "settled" not in shown["status"].value
    explorer.set(regularization="guided", lambda_reg=100.0)
    assert "125 iterations" in shown["status"].value and "ended before the maps had settled" in shown["status"].value


def test_the_crop_moves_and_keeps_its_middle():
    explorer = explorer_of(crop=(8, 40, 8, 40))
    shown = widgets_of(explorer)
    unit = explorer.axes[1]["units"]
    assert (
        shown["size"].label == f"32 x 32 px ({32 * explorer.axes[1]['scale']:.3g} x 16 nm)"
        and shown["left"].label == f"{8 * explorer.axes[1]['scale']:.4g} {unit}"
    )
    shown["left"].value = 20
    assert explorer.window == (slice(8, 40), slice(20, 52))
    shown["size"].value = (48, 56)
    assert explorer.window == (slice(0, 48), slice(0, 56))
    assert {name for name, one in shown.items() if one.layout.display == "none"} == {"left", "top"}
    explorer.set(crop=(0, 40, 0, 48))
    assert {name for name, one in shown.items() if one.layout.display == "none"} == {"top"}


def test_every_view_is_of_one_panel(monkeypatch):
    drawn, explorer = [], explorer_of(crop=(0, 24, 0, 24))
    monkeypatch.setattr(explorer_widgets.ExplorerPanel, "_picture", lambda *_: drawn.append(1) or b"")
    first, again = widgets_of(explorer), widgets_of(explorer)
    drawn.clear()
    explorer.set(lambda_reg=2.0)
    assert len(drawn) == 1 and first["lambda_reg"] is again["lambda_reg"]
