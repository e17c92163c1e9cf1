"""Every figure of a result against an image in ``baseline``, and the same figures from a file.

After a change that is meant, ``pytest tests/results --mpl-generate-path=tests/results/baseline`` draws the images anew.
"""

import functools
import inspect

import hyperspy.api as hs
import matplotlib.pyplot as plt
import numpy as np
import pytest
from frames_data import signals
from helpers import fit_with
from matplotlib.figure import Figure
from matplotlib_scalebar.scalebar import ScaleBar
from results_data import QUICK, RETURNED

import hyperspy_fusion as hf
from hyperspy_fusion.cli.demo import _demo_figure
from hyperspy_fusion.results import plot

RUN = {"show_progressbar": False, "num_workers": 1}
CHOICE = {
    "regularization": ["tv", "tv", "tv", "guided", "guided"],
    "lambda_reg": np.array([0.5, 1.0, 2.0, 1.0, 2.0]),
    "lambda_haadf": np.array([0.0, 0.0, 0.0, 1.0, 1.0]),
    "score": np.array([1.1, 1.2, 1.15, 1.4, 1.3]),
    "score_error": np.array([0.05, 0.02, 0.03, 0.0, 0.01]),
    "weights": np.array([0.0, 0.0, 0.0, 0.8, 0.2]),
    "sentence": "Chosen.",
}


@functools.cache
def scan():
    return hf.data.core_shell((24, 30)).signals()


@functools.cache
def model():
    maps, haadf = scan()
    fitted = hf.FusedMultiModal(haadf, maps, method="calibrated")
    fit_with(fitted, **{name: value for name, value in QUICK.items() if name != "method"}, show_progressbar=False)
    fitted.standard_errors(3, **RUN)
    return fitted


@functools.cache
def fused():
    """A result that has all that there is to draw."""
    found = model().as_signal()
    found.metadata.set_item("Fusion.selection", CHOICE)
    return found


def percent(maps):
    return maps.atomic_percent("CL", {"Pt": 5.0, "Fe": 1.3, "O": 1.9})


def summed():
    rng = np.random.default_rng(0)
    node = {f"{name}_{axis}": rng.random(6) for axis in "yx" for name in ("drift", "drift_error")}
    maps, _ = signals(np.ones((2, 1, 4, 4)), np.ones((2, 4, 4)), ["Fe"])
    one = maps["Fe"].inav[0]
    one.metadata.set_item("Frames", node | {"dropped": np.array([4])})
    return one


FRAME = {"scale": 0.5, "units": "nm"}
LINE = (1.0, 4.0), (13.0, 7.0)
FIGURES = {
    "ElementMaps.plot_fusion": lambda f, **to: f.plot_fusion(errors=True, **to),
    "ElementMaps.plot_rgb": lambda f, **to: f.plot_rgb("Pt", "O", **to),
    "ElementMaps.plot_profile": lambda f, **to: f.plot_profile(*LINE, linewidth=1.5, **to),
    "ElementMaps.plot_residuals": lambda f, **to: f.plot_residuals(per_row=2, **to),
    "ElementMaps.explore": lambda f, **to: f.explore(["Pt", "O"], lambda_reg=[0.2, 5.0], **RUN, **to),
    "ElementMaps.plot_convergence": lambda f, **to: f.plot_convergence(**to),
    "ElementMaps.plot_selection": lambda f, **to: f.plot_selection(**to),
    "Comparison.plot": lambda f, **to: f.compare_without_haadf(**RUN).plot(["Pt", "O"], **to),
    "FusedMultiModal.plot": lambda f, **to: model().plot(crop=(3, 20, 2, 12), **to),
    "FusedMultiModal.plot_convergence": lambda f, **to: model().plot_convergence(**to),
    "plot_drift": lambda f, **to: hf.plot_drift(summed(), **to),
    "beside": lambda f: f.plot_fusion(["Pt", "O"], beside={"half": f * 0.5, "array": f.data}, same_limits=False),
    "composition": lambda f: percent(f).plot_fusion(),
    "composition_colours": lambda f: percent(f).plot_rgb("Pt", "Fe", "O", limits={"Pt": (0, 60)}),
    "mean_only": lambda f: plot.plot_fusion(
        f.data, f.elements, raw=f._inputs.maps.data, haadf=f._inputs.haadf.data, flat=("Fe",), per_row=3, **FRAME
    ),
    "demo": lambda f: _demo_figure(hf.data.core_shell((24, 30)), f),
}


def figure(name, of, **to):
    drawn = FIGURES[name](of, **to)
    return getattr(np.asarray(drawn, dtype=object).flat[0], "figure", drawn)


def contents(drawn):
    """All that is drawn, without the time to draw it: numbers, colours and words."""
    for ax in drawn.axes:
        yield ax.get_title(), ax.get_xlabel(), ax.get_ylabel(), ax.get_xlim(), ax.get_ylim()
        yield from ((np.ma.filled(one.get_array(), np.nan), one.get_clim()) for one in ax.images)
        yield from (line.get_xydata() for line in ax.lines)


def check_readable(drawn):
    """No words lie on others or on another panel, or leave the figure; panels have scale bars, and axes have labels."""
    drawn.draw_without_rendering()
    boxes = []
    for ax in drawn.axes:
        labels = (ax.xaxis.label, ax.yaxis.label) if ax.axison else ()
        words = [word for word in (ax.title, *labels) if word.get_text()]
        boxes += [(word.get_text(), ax, word.get_window_extent()) for word in words]
        assert bool(ax.images) == any(isinstance(one, ScaleBar) for one in ax.artists), ax
        assert not ax.axison or words, "axes without a label"
    for k, (word, own, box) in enumerate(boxes):
        assert box.x0 > -2 and box.y0 > -2 and box.x1 < drawn.bbox.width + 2 and box.y1 < drawn.bbox.height + 2, word
        assert not [other for other, _, one in boxes[k + 1 :] if box.padded(-1.0).overlaps(one.padded(-1.0))], word
        panels = [ax.get_window_extent() for ax in drawn.axes if ax is not own]
        assert not any(box.padded(-1.0).overlaps(panel.padded(-1.0)) for panel in panels), word


def bare(drawn):
    """The panels alone side by side, in whole pixels: fonts, and what room they take, differ between versions."""
    drawn.set_layout_engine("none")
    number = len(drawn.axes)
    across = int(np.ceil(np.sqrt(number)))
    down = -(-number // across)
    drawn.set_size_inches(1.5 * across, 1.25 * down)
    if drawn._suptitle is not None:
        drawn._suptitle.set_visible(False)
    for k, ax in enumerate(drawn.axes):
        ax.set_position([(k % across + 0.125) / across, 1 - (k // across + 0.875) / down, 0.75 / across, 0.75 / down])
        for one in (ax.get_legend(), ax.title, ax.xaxis, ax.yaxis, *ax.artists, *ax.texts):
            if one is not None:
                one.set_visible(False)
    return drawn


def is_public(name):
    return "." in name or name.startswith("plot")


shown: dict = {}


@pytest.mark.mpl_image_compare(style="default", tolerance=14, savefig_kwargs={"dpi": 64})
@pytest.mark.parametrize("name", FIGURES)
def test_figure(name, tmp_path, monkeypatch):
    save = {"save": tmp_path / "figure.png"} if is_public(name) else {}
    with monkeypatch.context() as patched:
        patched.setattr(Figure, "savefig", lambda _, path, **options: path.touch())
        drawn = figure(name, fused(), **save)
    assert all(path.exists() for path in save.values()), "save= writes no file"
    shown[name] = list(contents(drawn))
    check_readable(drawn)
    return bare(drawn)


def draws(function):
    """Whether a public function draws: by its name, or by what its docstring says it returns."""
    returns = (inspect.getdoc(function) or "").partition("Returns\n")[2]
    return function.__name__.startswith(("plot", "explore")) or "matplotlib" in returns


def public_figures():
    """Names of all public functions and methods that draw."""
    names = {name: getattr(hf, name) for name in hf.__all__} | {kind.__name__: kind for kind in RETURNED}
    for name, one in names.items():
        if inspect.isclass(one):
            own = {n: m for n, m in inspect.getmembers(one, inspect.isfunction) if not n.startswith("_")}
            ours = {n: m for n, m in own.items() if m.__module__.startswith("hyperspy_fusion")}
            yield from (f"{name}.{method}" for method, function in ours.items() if draws(function))
        elif callable(one) and draws(one):
            yield name


def test_every_figure_is_compared_with_an_image():
    found = set(public_figures())
    assert found == set(filter(is_public, FIGURES))
    assert {"ElementMaps.plot_fusion", "ElementMaps.explore", "Comparison.plot", "plot_drift"} <= found
    # those of arrays; that of grids is under explore, residuals and comparisons
    assert set(plot.__all__) - {"plot_grid"} <= {name.rpartition(".")[2] for name in FIGURES}


def test_a_saved_figure_is_a_picture(tmp_path):
    fused().plot_selection(save=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "beside, sentence",
    [
        (lambda: ["x"], "beside is a list: give {title: maps}"),
        (lambda: {"x": 1.0}, r"x is a float: give element maps, or an array \(3, 24, 30\) .* in the order Pt, Fe, O"),
        (lambda: {"x": scan()[0]}, "x is a list: give element maps"),
        (lambda: {"x": np.ones((2, 24, 30))}, r"x is an array \(2, 24, 30\) of float64: .* in the order Pt, Fe, O"),
        (lambda: {"x": np.ones((3, 24, 30), complex)}, "x is an array .* of complex128: .* of real numbers"),
        (lambda: {"x": hf.element_maps(scan()[0][:2])}, "no map of 'O'"),
        (lambda: {"x": percent(fused())}, "x is in at.% and the maps in X-ray counts: pass same_limits=False"),
        (lambda: {"x": hs.stack([hf.element_maps(scan()[0])] * 2, new_axis_name="tilt")}, "is a stack along tilt"),
    ],
)
def test_maps_beside_others_are_of_the_same_elements_and_pixels(beside, sentence):
    """Given by functions: what is called while tests are collected is called in every process."""
    figures = plt.get_fignums()
    with pytest.raises((TypeError, ValueError), match=sentence):
        fused().plot_fusion(["Fe", "O"], beside=beside())
    assert plt.get_fignums() == figures


def test_maps_beside_others_are_found_by_name_or_in_the_order_of_the_result():
    turned = hf.element_maps(scan()[0][::-1])
    beside = {"array": np.asarray(fused().data), "turned": turned, "mask": fused().data > 5}
    axes = fused().plot_fusion(["O"], beside=beside | {"at.%": percent(fused())}, same_limits=False)
    array, other, mask, composition = (ax.images[0].get_array() for ax in axes[2:, 1])
    np.testing.assert_array_equal(array, fused().data[2])
    np.testing.assert_array_equal(other, scan()[0][2].data)
    np.testing.assert_array_equal(mask, fused().data[2] > 5)
    np.testing.assert_array_equal(composition, percent(fused()).data[2])


@pytest.mark.slow
def test_figures_of_a_loaded_result_are_the_same(tmp_path):
    fused().save(tmp_path / "fused.hspy", everything=True)
    loaded = hs.load(tmp_path / "fused.hspy")
    assert str(loaded.report()) == str(fused().report())
    np.testing.assert_array_equal(loaded.standard_errors().data, fused().standard_errors().data)
    for name in [name for name in FIGURES if name.startswith(("Elem", "Comp", "composition"))]:
        found, expected = list(contents(figure(name, loaded))), shown.get(name) or list(contents(figure(name, fused())))
        assert len(expected) > 1
        np.testing.assert_equal(found, expected, err_msg=name)
