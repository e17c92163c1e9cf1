"""Figures: what they are labelled with, what they show and in which colours; no pixel is compared."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from hyperspy_fusion.results.plot import nice_length, plot_convergence, plot_fusion, plot_selection, scale_bar

FUSED = np.arange(48.0).reshape(2, 4, 6)
HAADF = np.linspace(100, 200, 24).reshape(4, 6)


def titles(axes):
    return [[ax.get_title() for ax in row] for row in axes]


def bar_of(ax):
    (line,) = ax.lines
    start, end = line.get_xdata()
    return end - start, ax.texts[0].get_text()


def shown(ax):
    return np.asarray(ax.images[0].get_array())


def limits(ax):
    return ax.images[0].get_clim()


def colour_bars(axes):
    figure = axes.flat[0].figure
    return [ax for ax in figure.axes if ax not in set(axes.flat)]


def test_raw_over_fused_beside_haadf_over_modelled_haadf():
    raw = FUSED + 1
    axes = plot_fusion(FUSED, ["Fe", "O"], raw=raw, haadf=HAADF, modelled_haadf=HAADF - 1)
    assert titles(axes) == [["HAADF", "Fe, measured", "O, measured"], ["modelled HAADF", "Fe, fused", "O, fused"]]
    np.testing.assert_array_equal(shown(axes[0, 0]), HAADF)
    np.testing.assert_array_equal(shown(axes[1, 0]), HAADF - 1)
    np.testing.assert_array_equal(shown(axes[0, 2]), raw[1])
    np.testing.assert_array_equal(shown(axes[1, 1]), FUSED[0])


def test_loaded_result_without_raw_maps_shows_one_row():
    axes = plot_fusion(FUSED, ["Fe", "O"], modelled_haadf=HAADF)
    assert titles(axes) == [["modelled HAADF", "Fe, fused", "O, fused"]]
    assert titles(plot_fusion(FUSED, ["Fe", "O"])) == [["Fe, fused", "O, fused"]]


def test_panels_without_an_image_are_empty():
    axes = plot_fusion(FUSED, ["Fe", "O"], truth=FUSED, haadf=HAADF)
    assert titles(axes) == [["HAADF", "", ""], ["", "Fe, fused", "O, fused"], ["", "Fe, truth", "O, truth"]]
    assert [[bool(ax.images) for ax in row] for row in axes] == [
        [True, False, False],
        [False, True, True],
        [False, True, True],
    ]
    assert not any(ax.axison for ax in axes.flat)


def test_one_element():
    axes = plot_fusion(FUSED[:1], ["Fe"], raw=FUSED[:1])
    assert axes.shape == (2, 1)


def test_equal_colours_are_equal_values():
    raw = 2 * FUSED
    axes = plot_fusion(FUSED, ["Fe", "O"], raw=raw, haadf=HAADF, modelled_haadf=HAADF / 2)
    for column in axes.T:
        assert limits(column[0]) == limits(column[1])
    # 0.2 and 99.8 % of 0..23, and 98 % of 2 * (0..23), which are measured: the wider of both
    assert limits(axes[0, 1]) == pytest.approx((0.046, 2 * 22.54))
    assert limits(axes[0, 0])[0] < 60 and limits(axes[0, 0])[1] > 190
    assert len(colour_bars(axes)) == 3


def test_few_counts_leave_the_fused_map_its_colours():
    # in 1 % of the pixels two counts, in 5 % one, elsewhere none, where 0.1 are expected
    sparse = np.zeros((1, 100, 100))
    sparse[0, :5], sparse[0, 5] = 1.0, 2.0
    axes = plot_fusion(np.full_like(sparse, 0.1), ["Al"], raw=sparse)
    assert limits(axes[0, 0]) == limits(axes[1, 0]) == (0, 1)
    # alone, as much as can be is shown of it
    assert limits(plot_fusion(None, ["Al"], raw=sparse)[0, 0]) == (0, 2)


def test_every_panel_can_have_its_own_colours():
    axes = plot_fusion(FUSED, ["Fe", "O"], raw=2 * FUSED, same_limits=False)
    assert limits(axes[0, 0])[1] == pytest.approx(2 * limits(axes[1, 0])[1])
    assert len(colour_bars(axes)) == 4


def test_hot_pixel_does_not_darken_the_map_and_is_announced():
    noisy = np.zeros((1, 50, 50))
    noisy[0, 10:40, 10:40] = 5.0
    noisy[0, 0, 0] = 1000.0
    axes = plot_fusion(noisy, ["Fe"])
    assert limits(axes[0, 0]) == (0, 5)
    assert axes[0, 0].images[0].colorbar.extend == "max"


@pytest.mark.parametrize("value, expected", [(0.0, (0, 1)), (7.0, (7, 8))])
def test_constant_map_is_drawn(value, expected):
    axes = plot_fusion(np.full((1, 4, 4), value), ["Fe"])
    assert limits(axes[0, 0]) == expected
    assert axes[0, 0].images[0].colorbar.extend == "neither"


def test_map_of_a_few_counts_is_not_flattened_to_zero():
    trace = np.zeros((1, 100, 100))
    trace[0, 3, 4] = 2.0
    assert limits(plot_fusion(trace, ["Fe"])[0, 0]) == (0, 2)


def test_colour_bars_carry_the_quantity():
    axes = plot_fusion(FUSED, ["Fe", "O"], haadf=HAADF, raw=FUSED, quantity="X-ray counts ()")
    labels = [ax.get_xlabel() for ax in colour_bars(axes)]
    assert labels == ["intensity", "X-ray counts", "X-ray counts"]


def test_scale_bar_of_every_panel():
    axes = plot_fusion(FUSED, ["Fe", "O"], raw=FUSED, haadf=HAADF, scale=0.5, units="nm")
    drawn = [bar_of(ax) for ax in axes.flat if ax.images]
    # 6 pixels of 0.5 nm: at most 0.9 nm
    assert len(drawn) == 5
    assert all(length == pytest.approx(0.5) and label == "0.5 nm" for length, label in drawn)


@pytest.mark.parametrize("units", [None, "", "px", "pixels", "None", "<undefined>", object()])
def test_uncalibrated_scale_bar_is_in_pixels(units):
    axes = plot_fusion(np.zeros((1, 40, 80)), ["Fe"], scale=3.0, units=units)
    assert bar_of(axes[0, 0]) == (20, "20 px")


def test_pixels_that_are_not_square_are_drawn_so():
    axes = plot_fusion(FUSED, ["Fe", "O"], scale=(2.0, 1.0), units="nm")
    left, right, bottom, top = axes[0, 0].images[0].get_extent()
    assert (right - left, bottom - top) == (6, 8)


@pytest.mark.parametrize(
    "width, units, length, label",
    [
        (64, "nm", 10, "10 nm"),
        (3.35, "µm", 1, "1 µm"),
        (3.35, "um", 1, "1 µm"),
        (0.256, "µm", 0.05, "50 nm"),
        (2000, "nm", 500, "500 nm"),
        (4000, "nm", 1000, "1 µm"),
        (1.0, "nm", 0.2, "0.2 nm"),
        (0.1, "nm", 0.02, "20 pm"),
        (40, "Å", 10, "10 Å"),
        (5, "1/nm", 1, "1 1/nm"),
        (2e-6, "m", 5e-7, "500 nm"),
    ],
)
def test_scale_bar_is_a_round_length_in_a_readable_unit(width, units, length, label):
    assert scale_bar(width, units) == (pytest.approx(length), label)


@pytest.mark.parametrize("longest, nice", [(1, 1), (1.99, 1), (2, 2), (4.9, 2), (0.5, 0.5), (0.07, 0.05), (730, 500)])
def test_nice_length(longest, nice):
    assert nice_length(longest) == pytest.approx(nice)


@pytest.mark.parametrize(
    "crop, rows, columns",
    [
        ((1, 4, 0, 2), slice(0, 2), slice(1, 4)),
        ((None, None, 1, -1), slice(1, 3), slice(0, 6)),
        # 0.5 nm pixels, the first at x = 10, y = 20
        ((10.5, 12.0, 20.0, 21.5), slice(0, 3), slice(1, 4)),
        ((0.0, 12.0, 1, 3), slice(1, 3), slice(0, 4)),
    ],
)
def test_crop_in_pixels_and_in_units(crop, rows, columns):
    axes = plot_fusion(FUSED, ["Fe", "O"], raw=FUSED, haadf=HAADF, scale=0.5, units="nm", offset=(20, 10), crop=crop)
    np.testing.assert_array_equal(shown(axes[1, 1]), FUSED[0][rows, columns])
    np.testing.assert_array_equal(shown(axes[0, 0]), HAADF[rows, columns])


def test_crop_in_positions_does_not_need_units():
    axes = plot_fusion(FUSED, ["Fe", "O"], scale=0.5, offset=(20, 10), crop=(10.5, 12.0, None, None))
    np.testing.assert_array_equal(shown(axes[0, 0]), FUSED[0][:, 1:4])


def test_arrays_are_left_alone():
    raw, haadf = FUSED.astype(np.uint16), HAADF.copy()
    raw.flags.writeable = haadf.flags.writeable = False
    plot_fusion(raw, ["Fe", "O"], raw=raw, haadf=haadf, modelled_haadf=haadf, crop=(0, 3, 0, 3))


def test_draws_into_a_given_figure():
    figure = plt.figure(layout="constrained")
    axes = plot_fusion(FUSED, ["Fe", "O"], figure=figure)
    assert axes[0, 0].figure is figure
    parts = figure.subfigures(1, 2)
    assert plot_fusion(FUSED, ["Fe", "O"], figure=parts[1])[0, 0].figure is parts[1]


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"elements": ["Fe"]}, r"fused has shape \(2, 4, 6\) for 1 elements"),
        ({"raw": FUSED[:1]}, r"raw has shape \(1, 4, 6\), expected \(2, 4, 6\)"),
        ({"haadf": HAADF.T}, r"HAADF has shape \(6, 4\), expected \(4, 6\)"),
        ({"crop": (3, 3, 0, 2)}, r"crop \(3, 3, 0, 2\) leaves no pixel.*6 x 4"),
        ({"crop": (0, 3)}, r"crop is \(0, 3\): it must be four numbers"),
    ],
)
def test_what_does_not_fit_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        plot_fusion(FUSED, **{"elements": ["Fe", "O"], **options})


HISTORY = {
    "haadf": np.array([4.0, 2.0, 1.0]),
    "chem": np.array([9.0, 8.0, 8.5]),
    "tv": np.array([3.0, 2.0, 1.0]),
    "total": np.array([10.0, 7.0, 6.0]),
}
WEIGHTS = {"lambda_haadf": 1 / 3, "lambda_chem": 0.08, "lambda_tv": 0.15}


def test_convergence_has_three_labelled_panels():
    axes = plot_convergence(HISTORY, WEIGHTS)
    assert [ax.get_title() for ax in axes] == [
        "HAADF, weight 0.3333",
        "chemistry, weight 0.08",
        "total variation, weight 0.15",
    ]
    for ax, name in zip(axes, ("haadf", "chem", "tv"), strict=True):
        x, y = ax.lines[0].get_data()
        np.testing.assert_array_equal(x, [0, 1, 2])
        np.testing.assert_array_equal(y, HISTORY[name])
        assert ax.get_xlabel() == "iteration (0 = start)"
        assert ax.get_ylabel()
    assert axes[0].figure._suptitle.get_text() == "objective (weighted sum): 10 at the start, 6 at the end"


def test_convergence_says_that_total_variation_was_off():
    axes = plot_convergence(HISTORY, {**WEIGHTS, "lambda_tv": None})
    assert axes[2].get_title() == "total variation: off"
    assert axes[2].lines[0].get_linestyle() == "--"


def test_convergence_takes_axes():
    given = plt.figure().subplots(3, 1)
    assert plot_convergence(HISTORY, WEIGHTS, axes=given)[2] is given[2]


def test_convergence_needs_its_terms():
    with pytest.raises(ValueError, match="history has no chem, tv: it must hold haadf, chem and tv"):
        plot_convergence({"haadf": [1, 2]}, WEIGHTS)


def test_measured_maps_alone_are_called_so():
    axes = plot_fusion(None, ["Fe", "O"], raw=FUSED, haadf=HAADF)
    assert titles(axes) == [["HAADF", "Fe, measured", "O, measured"]]
    with pytest.raises(ValueError, match="no maps to plot"):
        plot_fusion(None, ["Fe"])


@pytest.mark.parametrize("crop", ["5 nm", ("5 nm", None, None, None), ("5", None, None, None), 7, (1, 2, 3)])
def test_crop_that_is_not_four_numbers(crop):
    with pytest.raises(ValueError, match="must be four numbers"):
        plot_fusion(FUSED, ["Fe", "O"], crop=crop)


CALIBRATED = {"regularization": "tgv", "lambda_reg": 2.0, "lambda_haadf": 0.5, "tol": 1e-4}


def test_gap_has_a_panel_with_a_logarithmic_scale():
    gap = np.array([np.inf, 1e-2, 1e-5])
    axes = plot_convergence({**HISTORY, "iteration": np.array([0, 50, 100]), "gap": gap}, CALIBRATED)
    assert [ax.get_title() for ax in axes] == [
        "HAADF, weight 0.5",
        "maps",
        "penalty 'tgv', weight 2",
        "duality gap, 1e-05 at the end",
    ]
    for ax, name in zip(axes[:3], ("haadf", "chem", "tv"), strict=True):
        np.testing.assert_array_equal(ax.lines[0].get_data(), [[0, 50, 100], HISTORY[name]])
    np.testing.assert_array_equal(axes[3].lines[0].get_data(), [[50, 100], gap[1:]])
    assert axes[3].get_yscale() == "log" and list(axes[3].lines[1].get_ydata()) == [1e-4, 1e-4]


def test_convergence_says_that_the_penalty_was_off():
    axes = plot_convergence(HISTORY, {**CALIBRATED, "regularization": None})
    assert len(axes) == 3 and axes[2].get_title() == "penalty: off"
    assert axes[2].lines[0].get_linestyle() == "--"


@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_do_not_count_for_colours(damage):
    image = FUSED.copy()
    image[0, 1, 1] = damage
    axes = plot_fusion(image, ["Fe", "O"])
    assert limits(axes[0, 0]) == pytest.approx((0.046, 22.954), abs=0.1)
    assert limits(plot_fusion(np.full((1, 4, 4), damage), ["Fe"])[0, 0]) == (0, 1)


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


def test_selection_has_a_line_for_each_penalty_and_circles_what_was_used():
    ax = plot_selection(CHOICE)
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "lambda_reg (larger is smoother)"
    assert " ".join(ax.get_ylabel().split()).endswith("held out, per pixel (units of log-likelihood)")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["tv, lambda_haadf 0", "guided, lambda_haadf 1, each map"]
    circles = [line for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(np.concatenate([c.get_xydata() for c in circles]), [[1, 1], [1, 1.2]])


def test_selection_of_one_weight_is_against_that_weight():
    choice = {name: CHOICE[name] for name in ("score", "score_error", "sentence")}
    ax = plot_selection({**choice, "lambda_chem": np.array([0.1, 0.2, 0.4]), "weights": np.array([0.0, 1.0, 0.0])})
    assert ax.get_xlabel() == "lambda_chem"


def test_selection_without_candidates_says_why():
    nothing = {**CHOICE, "score": np.zeros(0), "sentence": "Too few counts."}
    with pytest.raises(ValueError, match="Too few counts"):
        plot_selection(nothing)
