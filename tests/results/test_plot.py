"""Figures: what they show, in which colours, with which labels; ``test_figures.py`` compares them with images."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib_scalebar.scalebar import ScaleBar

from hyperspy_fusion.fusion.selection.selection import Selection
from hyperspy_fusion.results.plot import (
    plot_convergence,
    plot_fusion,
    plot_profile,
    plot_rgb,
    plot_selection,
)

FUSED = np.arange(48.0).reshape(2, 4, 6)
HAADF = np.linspace(100, 200, 24).reshape(4, 6)
BOTH = ["Fe", "O"]
HISTORY = {
    "haadf": np.array([4.0, 2.0, 1.0]),
    "chem": np.array([9.0, 8.0, 8.5]),
    "tv": np.array([3.0, 2.0, 1.0]),
    "total": np.array([10.0, 7.0, 6.0]),
}
PUBLISHED = {"lambda_haadf": 1 / 3, "lambda_chem": 0.08, "lambda_tv": 0.15}
CALIBRATED = {"regularization": "tgv", "lambda_reg": 2.0, "lambda_haadf": 0.5, "tol": 1e-4}
GAP = {"iteration": np.array([0, 50, 100]), "gap": np.array([np.inf, 1e-2, 1e-5])}
CHOICE = {
    "regularization": ["tv", "tv", "guided"],
    "lambda_reg": np.array([2.0, 1.0, 1.0]),
    "lambda_haadf": np.array([0.0, 0.0, 1.0]),
    "joint": np.array([True, True, False]),
    "score": np.array([0.9, 1.0, 1.2]),
    "score_error": np.array([0.1, 0.1, 0.0]),
    "weights": np.array([0.0, 0.0, 0.0, 0.3, 1.0, 0.7]),
    "sentence": "Chosen.",
}


def titles(axes):
    return [[ax.get_title() for ax in row] for row in axes]


def shown(ax):
    return np.asarray(ax.images[0].get_array())


def limits(ax):
    return ax.images[0].get_clim()


def colour_bars(axes):
    return [ax for ax in axes.flat[0].figure.axes if ax not in set(axes.flat)]


def bar_of(ax):
    """Length in units of the axes, and label, of the scale bar as it is drawn."""
    (bar,) = [artist for artist in ax.get_children() if isinstance(artist, ScaleBar)]
    ax.figure.canvas.draw()
    return bar.info.length_px, bar.info.scale_text


def test_raw_over_fused_beside_haadf_over_modelled_haadf():
    raw = FUSED + 1
    axes = plot_fusion(FUSED, BOTH, raw=raw, haadf=HAADF, modelled_haadf=HAADF - 1)
    assert titles(axes) == [["HAADF", "Fe, measured", "O, measured"], ["modelled HAADF", "Fe, fused", "O, fused"]]
    np.testing.assert_array_equal(shown(axes[0, 0]), HAADF)
    np.testing.assert_array_equal(shown(axes[1, 0]), HAADF - 1)
    np.testing.assert_array_equal(shown(axes[0, 2]), raw[1])
    np.testing.assert_array_equal(shown(axes[1, 1]), FUSED[0])


def test_rows_are_those_that_were_given():
    assert titles(plot_fusion(FUSED, BOTH, modelled_haadf=HAADF)) == [["modelled HAADF", "Fe, fused", "O, fused"]]
    assert titles(plot_fusion(FUSED, BOTH)) == [["Fe, fused", "O, fused"]]
    assert titles(plot_fusion(None, BOTH, raw=FUSED, haadf=HAADF)) == [["HAADF", "Fe, measured", "O, measured"]]
    assert plot_fusion(FUSED[:1], ["Fe"], raw=FUSED[:1]).shape == (2, 1)
    axes = plot_fusion(FUSED, BOTH, truth=FUSED, haadf=HAADF)
    assert titles(axes) == [["HAADF", "", ""], ["", "Fe, fused", "O, fused"], ["", "Fe, truth", "O, truth"]]
    assert [[len(ax.images) for ax in row] for row in axes] == [[1, 0, 0], [0, 1, 1], [0, 1, 1]]
    assert not any(ax.axison for ax in axes.flat)


def test_draws_into_a_given_figure_and_leaves_arrays_alone():
    raw, haadf = FUSED.astype(np.uint16), HAADF.copy()
    raw.flags.writeable = haadf.flags.writeable = False
    figures = plt.figure(layout="constrained").subfigures(1, 2)
    axes = plot_fusion(raw, BOTH, raw=raw, haadf=haadf, modelled_haadf=haadf, crop=(0, 3, 0, 3), figure=figures[1])
    assert axes[0, 0].figure is figures[1]


def test_equal_colours_are_equal_values():
    axes = plot_fusion(FUSED, BOTH, raw=2 * FUSED, haadf=HAADF, modelled_haadf=HAADF / 2, quantity="X-ray counts ()")
    for column in axes.T:
        assert limits(column[0]) == limits(column[1])
    # 0.2 and 99.8 % of 0..23, and 98 % of 2 * (0..23), which are measured: the wider of both
    assert limits(axes[0, 1]) == pytest.approx((0.046, 2 * 22.54))
    # a model of the image takes the limits of the measured one, and may lie beyond them
    assert limits(axes[0, 0]) == pytest.approx((100.2, 199.8))
    assert colour_bars(axes)[0]._colorbar.extend == "both"
    assert [ax.get_xlabel() for ax in colour_bars(axes)] == ["intensity", "X-ray counts", "X-ray counts"]
    axes = plot_fusion(FUSED, BOTH, raw=2 * FUSED, same_limits=False)
    assert limits(axes[0, 0])[1] == pytest.approx(2 * limits(axes[1, 0])[1])
    assert len(colour_bars(axes)) == 4
    # in 1 % of the pixels two counts, in 5 % one, elsewhere none, where 0.1 are expected
    sparse = np.zeros((1, 100, 100))
    sparse[0, :5], sparse[0, 5] = 1.0, 2.0
    axes = plot_fusion(np.full_like(sparse, 0.1), ["Al"], raw=sparse)
    assert limits(axes[0, 0]) == limits(axes[1, 0]) == (0, 1)
    # alone, as much as can be is shown of it
    assert limits(plot_fusion(None, ["Al"], raw=sparse)[0, 0]) == (0, 2)


def with_values(shape, **values):
    image = np.zeros((1, *shape))
    for value in values.values():
        image[0][value[0]] = value[1]
    return image


@pytest.mark.parametrize(
    "image, expected, ends",
    [
        (np.zeros((1, 4, 4)), (0, 1), "neither"),
        (np.full((1, 4, 4), 7.0), (7, 8), "neither"),
        (np.full((1, 4, 4), np.nan), (0, 1), "neither"),
        # a hot pixel does not darken the map, and the few counts of a trace element are not cut off
        (with_values((50, 50), block=(np.s_[10:40, 10:40], 5.0), hot=((0, 0), 1000.0)), (0, 5), "max"),
        (with_values((100, 100), trace=((3, 4), 2.0)), (0, 2), "neither"),
        (with_values((50, 50), block=(np.s_[10:40, 10:40], 5.0), damage=((0, 0), np.inf)), (0, 5), "max"),
    ],
    ids=["zeros", "constant", "no numbers", "hot pixel", "trace", "infinite"],
)
def test_unusual_maps_are_drawn(image, expected, ends):
    ax = plot_fusion(image, ["Fe"])[0, 0]
    assert limits(ax) == expected and ax.images[0].colorbar.extend == ends


def test_pixels_and_crops_at_the_edges():
    axes = plot_fusion(FUSED, BOTH, scale=(2.0, 1.0), units="nm")
    left, right, bottom, top = axes[0, 0].images[0].get_extent()
    assert (right - left, bottom - top) == (6, 8)
    for crop, window in (((None, None, 1, -1), np.s_[1:3, :]), ((0.0, 12.0, 1, 3), np.s_[1:3, :4])):
        axes = plot_fusion(FUSED, BOTH, haadf=HAADF, scale=0.5, offset=(20, 10), crop=crop)
        np.testing.assert_array_equal(shown(axes[0, 0]), HAADF[window])


@pytest.mark.parametrize(
    "pixel, units, length, label",
    [
        (1.0, "nm", 15, "15 nm"),
        (64, "nm", 1000, "1 $\\mathregular{\\mu}$m"),
        (0.004, "\u00b5m", 0.05, "50 nm"),
        (0.004, "micron", 0.05, "50 nm"),
        (0.6, "Å", 10, "10 Å"),
        (0.1, "1/nm", 1, "1 nm$^{-1}$"),
        (3.0, "eV", 50, "50 eV"),
        (1e-4, "arb. u.", 1e-3, "0.001 arb. u."),
        (1e3, "arb. u.", 15e3, "15000 arb. u."),
        *[(3.0, units, 15, "15 px") for units in ("", "pixels", "<undefined>", object())],
    ],
)
def test_scale_bars_are_round_and_in_readable_units(pixel, units, length, label):
    axes = plot_fusion(np.zeros((1, 40, 60)), ["Fe"], scale=pixel, units=units)
    assert bar_of(axes[0, 0]) == (pytest.approx(length), label)


@settings(max_examples=5, deadline=None)
@given(st.floats(1e-6, 1e6), st.sampled_from(["nm", "px", "1/nm", "Å"]), st.integers(8, 2000))
def test_scale_bars_are_at_most_a_third_of_the_width(pixel, units, nx):
    axes = plot_fusion(np.zeros((1, 4, nx)), ["Fe"], scale=pixel, units=units, figure=plt.figure())
    width = nx if units == "px" else nx * pixel
    assert 0.1 * width < bar_of(axes[0, 0])[0] <= 0.3 * width * (1 + 1e-9)
    plt.close("all")


@settings(max_examples=8, deadline=None)
@given(st.data(), st.floats(0.01, 50), st.floats(-100, 100), st.sampled_from([1, -1]))
def test_crops_in_pixels_and_in_units_are_the_same(data, scale, offset, sign):
    ny, nx = FUSED.shape[1:]
    (left, right), (top, bottom) = (
        sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in (nx, ny)
    )
    expected = FUSED[0, top:bottom, left:right]
    options = {"scale": (sign * scale, 2 * sign * scale), "units": "nm", "offset": (offset, -offset)}
    # on a falling axis the smaller coordinate is that of the last pixel
    ends = ((left, right), (top, bottom)) if sign > 0 else ((right - 1, left - 1), (bottom - 1, top - 1))
    positions = (
        *(-offset + 2 * sign * scale * end for end in ends[0]),
        *(offset + sign * scale * end for end in ends[1]),
    )
    for crop in ((left, right, top, bottom), (left or None, right, top, bottom), positions):
        axes = plot_fusion(FUSED[:1], ["Fe"], crop=crop, figure=plt.figure(), **options)
        np.testing.assert_array_equal(shown(axes[0, 0]), expected)
        plt.close("all")


@pytest.mark.parametrize("scale", [0.0, (0.0, 0.5), np.nan, (-0.0, 0.0)])
def test_maps_without_a_scale_are_drawn_in_pixels(scale):
    axes = plot_fusion(FUSED, BOTH, scale=scale, units="nm", offset=(5, 5), crop=(1.0, 4.0, 1, 3))
    np.testing.assert_array_equal(shown(axes[0, 0]), FUSED[0, 1:3, 1:4])
    assert axes[0, 0].images[0].get_extent() == [0, 3, 2, 0]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"elements": ["Fe"]}, r"fused has shape \(2, 4, 6\) for 1 elements"),
        ({"raw": FUSED[:1]}, r"raw has shape \(1, 4, 6\), expected \(2, 4, 6\)"),
        ({"haadf": HAADF.T}, r"HAADF has shape \(6, 4\), expected \(4, 6\)"),
        ({"fused": None}, "no maps to plot"),
        ({"crop": (3, 3, 0, 2)}, r"crop \(3, 3, 0, 2\) leaves no pixel.*6 x 4"),
        *[({"crop": crop}, "must be four numbers") for crop in ("5 nm", ("5", None, None, None), 7, (1, 2, 3))],
        *[({"crop": (0.0, end, 0.0, 2.0)}, "must be four numbers") for end in (np.nan, np.inf)],
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        plot_fusion(**{"fused": FUSED, "elements": BOTH, **options})


def test_convergence_has_a_labelled_panel_for_each_term():
    axes = plot_convergence(HISTORY, PUBLISHED)
    assert [ax.get_title() for ax in axes] == [
        "HAADF, weight 0.3333",
        "chemistry, weight 0.08",
        "total variation, weight 0.15",
    ]
    for ax, name in zip(axes, ("haadf", "chem", "tv"), strict=True):
        np.testing.assert_array_equal(ax.lines[0].get_data(), [[0, 1, 2], HISTORY[name]])
        assert ax.get_xlabel() == "iteration (0 = start)" and ax.get_ylabel()
    assert axes[0].figure._suptitle.get_text() == "objective (weighted sum): 10 at the start, 6 at the end"
    given = plt.figure().subplots(3, 1)
    assert plot_convergence(HISTORY, PUBLISHED, axes=given)[2] is given[2]
    with pytest.raises(ValueError, match="history has no chem, tv"):
        plot_convergence({"haadf": [1, 2]}, PUBLISHED)


@pytest.mark.parametrize("lost", ["haadf", "tv"])
def test_a_term_that_is_0_throughout_has_no_panel(lost):
    axes = plot_convergence({**HISTORY, **GAP, lost: np.zeros(3)}, CALIBRATED)
    words = {"haadf": "HAADF", "tv": "penalty"}[lost]
    assert len(axes) == 3 and not any(words in ax.get_title() for ax in axes) and axes[2].get_yscale() == "log"


def test_the_gap_is_logarithmic_and_what_was_off_is_dashed():
    axes = plot_convergence({**HISTORY, **GAP}, CALIBRATED)
    assert [ax.get_title() for ax in axes] == [
        "HAADF, weight 0.5",
        "maps",
        "penalty 'tgv', weight 2",
        "duality gap, 1e-05 at the end",
    ]
    np.testing.assert_array_equal(axes[0].lines[0].get_data(), [[0, 50, 100], HISTORY["haadf"]])
    np.testing.assert_array_equal(axes[3].lines[0].get_data(), [[50, 100], [1e-2, 1e-5]])
    assert axes[3].get_yscale() == "log" and list(axes[3].lines[1].get_ydata()) == [1e-4, 1e-4]
    for weights, title in (
        ({**PUBLISHED, "lambda_tv": 0}, "total variation: off"),
        ({**CALIBRATED, "regularization": "none"}, "penalty: off"),
    ):
        ax = plot_convergence(HISTORY, weights)[2]
        assert ax.get_title() == title and ax.lines[0].get_linestyle() == "--"


def test_selection_has_a_line_for_each_penalty():
    ax = plot_selection(CHOICE)
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "lambda_reg (larger is smoother)"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["tv, lambda_haadf 0", "guided, lambda_haadf 1, each map"]
    # what was used is circled
    circles = [line for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(np.concatenate([c.get_xydata() for c in circles]), [[1, 1], [1, 1.2]])
    # fits to components lie on a curve of their own
    apart = plot_selection(CHOICE | {"joint": np.ones(3, bool), "lambda_haadf": np.zeros(3), "components": [0, 5, 0]})
    assert [t.get_text() for t in apart.get_legend().get_texts()] == [
        f"{kind}, lambda_haadf 0{of}" for kind, of in (("tv", ""), ("tv", ", 5 components"), ("guided", ""))
    ]
    one = {name: CHOICE[name] for name in ("score", "score_error", "sentence")}
    one |= {"lambda_haadf": np.array([0.1, 0.2, 0.4]), "weights": np.array([0.0, 1.0, 0.0])}
    assert plot_selection(one).get_xlabel() == "lambda_haadf"
    tried = {"lambda_haadf": [(0.0, 0.0), (1.0, 0.5), (1.0, 2.0)]}
    found = Selection(0, "", tried, np.arange(3.0), np.ones(3), np.ones(3, int), np.eye(3)[:, 1:]).as_dict()
    assert plot_selection(found).get_xlabel() == "lambda_haadf_1"
    for lost in ({"score": np.zeros(0)}, {"lambda_reg": None, "lambda_haadf": None}):
        choice = {k: v for k, v in {**CHOICE, **lost, "sentence": "Too few counts."}.items() if v is not None}
        with pytest.raises(ValueError, match="Too few counts"):
            plot_selection(choice)


def test_columns_are_wrapped_where_they_would_not_be_readable():
    maps = np.arange(7 * 24.0).reshape(7, 4, 6)
    elements = "Al Ca Cr Cu Fe Mg O".split()
    for per_row, across in ((None, 4), (7, 7)):
        axes = plot_fusion(maps, elements, per_row=per_row, figure=plt.figure())
        assert axes.shape == (1, 7) and titles(axes)[0] == [f"{e}, fused" for e in elements]
        assert axes[0, 0].get_subplotspec().get_gridspec().ncols == across
        plt.close("all")
    axes = plot_fusion(maps[:3], elements[:3], flat=("Cr",), cmap="cividis", figure=plt.figure())
    assert axes[0, 2].get_title() == "Cr, fused: mean only"
    assert [ax.images[0].get_cmap().name for ax in axes[0, 1:3]] == ["cividis", "gray"]


@pytest.mark.parametrize("factor, power", [(1, 0), (1e3, 0), (1e7, 8), (-3e-7, -6)])
def test_a_power_of_ten_is_in_the_label_of_a_colour_bar(factor, power):
    axes = plot_fusion(None, ["Fe"], raw=factor * FUSED[:1], quantity="X-ray counts")
    (bar,) = colour_bars(axes)
    bar.figure.canvas.draw()
    number = lambda text: float(re.search(r"[-.\d]+(?=\}|$)", text.replace("\N{MINUS SIGN}", "-"))[0])  # noqa: E731
    words, brackets, label = bar.get_xlabel().partition(" (")
    assert words == "X-ray counts" and bool(brackets) == bool(power)
    assert not power or number(label.partition("10^")[2].partition("}")[0]) == power
    assert not bar.xaxis.get_offset_text().get_visible()
    ticks = [number(tick.get_text()) for tick in bar.get_xticklabels()]
    np.testing.assert_allclose(np.array(ticks) * 10.0**power, bar.get_xticks(), rtol=1e-6)


@pytest.mark.parametrize("number", [3, 9, 16])
def test_profiles_of_many_elements_are_told_apart(number):
    elements = [f"{k}" for k in range(number)]
    ax = plot_profile(np.arange(6.0), np.ones((number, 6)), elements, raw=np.ones((number, 6)))
    lines = [line for line in ax.lines if line.get_label() in elements]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == number
    dots = [line for line in ax.lines if line not in lines]
    assert len({(line.get_color(), line.get_marker()) for line in dots}) == number
    ax.figure.canvas.draw()
    overlaps = ax.get_legend().get_window_extent().overlaps(ax.get_window_extent())
    assert overlaps == (number <= 4)


def test_channels_have_their_limits_and_a_legend():
    ax = plot_rgb(FUSED, BOTH, channel_limits={"O": (30, 40)})
    image = shown(ax)
    assert image.shape == (4, 6, 3) and 0 <= image.min() and image.max() <= 1
    np.testing.assert_allclose(image[0, 0], 0, atol=1e-12)  # Fe is 0, and O below its limit
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Fe, 0 to 23", "O, 30 to 40"]
    assert plot_rgb(0 * FUSED[:1], ["Fe"], axes=plt.figure().subplots()).images[0].get_array().max() == 0
