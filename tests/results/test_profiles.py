"""Profiles along lines: means across them, their errors, and what lies outside or was not measured."""

import hyperspy.api as hs
import numpy as np
import pytest
from helpers import codes
from results_data import ELEMENTS, count_maps, fused_with_holes, random_maps


def test_profiles_along_rows_are_means_across_them():
    maps = random_maps(shape=(9, 12))
    errors = np.sqrt(maps.data)
    profile = maps.line_profile((0.5, 2.0), (5.0, 2.0), linewidth=1.5, errors=errors)
    assert isinstance(profile, hs.signals.Signal1D)
    assert list(profile.metadata.Sample.elements) == ELEMENTS
    axis = profile.axes_manager.signal_axes[0]
    assert (axis.units, axis.scale) == ("nm", pytest.approx(0.5))
    across = np.s_[:, 3:6, 1:11]
    np.testing.assert_allclose(profile.data, maps.data[across].mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(profile.get_noise_variance().data, (errors[across] ** 2).sum(axis=1) / 9, rtol=1e-9)
    alike = maps.line_profile((0.5, 2.0), (5.0, 2.0), 1.5, errors=errors, independent=False)
    np.testing.assert_allclose(alike.get_noise_variance().data, errors[across].mean(axis=1) ** 2, rtol=1e-9)
    assert maps.line_profile((0.5, 2.0), (5.0, 2.0)).get_noise_variance() is None


def test_profiles_leave_out_what_is_outside_and_say_so(caplog):
    maps = random_maps(shape=(9, 12))
    maps.data[:, 3, 4], maps.data[:, 3:6, 7] = np.nan, np.nan
    profile = maps.line_profile((0.5, 2.0), (5.0, 2.0), linewidth=1.5, errors=np.ones(maps.data.shape))
    np.testing.assert_allclose(profile.data[:, 3], maps.data[:, 4:6, 4].mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(profile.get_noise_variance().data[:, [2, 3]], [[1 / 3, 1 / 2]] * 3, rtol=1e-9)
    assert np.isnan(profile.data[:, 6]).all()
    border = maps.line_profile((0.5, 0.0), (5.0, 0.0), linewidth=1.5)
    np.testing.assert_allclose(border.data, maps.data[:, :2, 1:11].mean(axis=1), rtol=1e-9)
    # NaN within the maps are no diagnostic
    assert not codes(caplog)
    maps = random_maps(shape=(9, 12))  # x from 0 to 5.5 nm
    maps.line_profile((0.5, 0.0), (5.5, 4.0), linewidth=1.5)
    assert not codes(caplog)
    profile = maps.line_profile((3.5, 2.0), (7.5, 2.0))
    np.testing.assert_array_equal(np.isnan(profile.data), np.tile(np.arange(9) > 4, (3, 1)))
    assert "44% of the line" in caplog.text and codes(caplog) == ["profile-beyond-maps"]
    with pytest.raises(ValueError, match="The line from .* does not lie on the maps"):
        maps.line_profile((10, 2), (40, 2))
    one = count_maps(np.ones((1, 4, 6)), ["Fe"]).get_map("Fe")
    assert np.isnan(one.line_profile((0.0, 1.0), (4.0, 1.0)).data).sum() == 3


def test_profiles_of_compositions_and_along_lines():
    data = np.stack([np.full((8, 10), 30.0), np.full((8, 10), 10.0)])
    percent = count_maps(data, ["Fe", "O"]).atomic_percent("cross_section", 1.0, errors=np.sqrt(data))
    profile = percent.line_profile((0.5, 0.5), (3.0, 3.0))
    np.testing.assert_allclose(profile.data[0], 75, rtol=1e-9)
    np.testing.assert_allclose(profile.get_noise_variance().data[0], 100**2 * (100 * 30 + 900 * 10) / 40**4, rtol=1e-9)
    assert profile.metadata.Signal.quantity == "Atomic percent"
    maps = random_maps(shape=(9, 12))
    roi = hs.roi.Line2DROI(0.5, 1.0, 4.0, 3.5, linewidth=1.0)
    for width, expected in ((0.0, 1.0), (0.5, 0.5)):
        ends = maps.line_profile((0.5, 1.0), (4.0, 3.5), expected)
        np.testing.assert_array_equal(maps.line_profile(roi, linewidth=width).data, ends.data)
    for line in (((0, 1),), (0.5, 2.0), (hs.roi.RectangularROI(0, 0, 1, 1),), ((0, 1), (1, 2, 3))):
        with pytest.raises(TypeError, match=r"expected a hs\.roi\.Line2DROI alone, or start and end"):
            maps.line_profile(*line)


def test_a_profile_through_filled_pixels_is_reported(caplog):
    fused = fused_with_holes()
    codes(caplog)

    def shares(signal, row, left=3.0, right=10.0):
        y = -2 + 0.4 * row
        signal.line_profile((left, y), (right, y))
        text = caplog.text
        assert codes(caplog) == ["profile-not-measured"] * bool(text)
        return text.partition("counts (")[2].partition(" of it")[0]

    # 15 pixels, of which 3 are masked, and 3 more NaN in the map of iron
    assert shares(fused, 5) == "Fe 40%, O 20%" == shares(fused.atomic_percent("cross_section", 1), 5)
    assert shares(fused.get_map("O"), 5) == "O 20%"
    assert shares(fused.isig[8:, :], 4, 7.0, 9.5) == "Fe 50%"
    # a row of dead pixels is known from both sides; changed maps have no errors
    for signal, row in ((fused, 10), (fused, 8), (fused * 2, 5)):
        assert not shares(signal, row)


@pytest.mark.parametrize("dy, dx", [(-0.5, 0.5), (0.5, -0.5), (-0.25, -0.5), (5e-10, -1e-9), (0.0, 0.0)])
def test_profiles_on_falling_axes_are_those_of_the_same_pixels(dy, dx):
    maps = random_maps(shape=(9, 12))
    for axis, scale in zip(maps.axes_manager.signal_axes, (dx, dy), strict=True):
        axis.scale, axis.offset = scale, 3 * scale
    x, y = dx or 1.0, dy or 1.0
    start, end = ((1 + 3 * bool(dx)) * x, (2 + 3 * bool(dy)) * y), ((10 + 3 * bool(dx)) * x, (2 + 3 * bool(dy)) * y)
    profile = maps.line_profile(start, end, errors=np.sqrt(maps.data))
    np.testing.assert_allclose(profile.data, maps.data[:, 2, 1:11], rtol=1e-6)
    np.testing.assert_allclose(profile.get_noise_variance().data, maps.data[:, 2, 1:11], rtol=1e-6)
    assert profile.axes_manager.signal_axes[0].scale == pytest.approx(abs(x))
    assert maps.axes_manager.signal_axes[0].scale == dx


@pytest.mark.parametrize(
    "line, words",
    [
        (((0, 0), (10, 10)), "line from (0, 0) to (10, 10) does not lie on the maps, .* to 5.5e-09 m"),
        (((0, 0), (3e-9, 0), 2.0), "line from (0, 0) to (3e-09, 0) of width 2 does not lie on the maps"),
        (((0, 0), (np.nan, 1)), "has the ends .*nan.*: give x and y of both as numbers"),
        (((0, 0), (np.inf, 1)), "has the ends .*inf.*: give x and y of both as numbers"),
        (((0, 0), ("a", 1)), "has the ends .*'a'.*: give x and y of both as numbers"),
        (((1e-9, 0), (1e-9, 0)), "starts and ends at .*: give two points"),
        *[
            (((0, 0), (3e-9, 0), width), "linewidth is .*: it must be at least 0")
            for width in (-1, np.nan, np.inf, "a")
        ],
    ],
)
def test_lines_that_cannot_be_are_refused_before_they_are_sampled(line, words, monkeypatch):
    maps = random_maps(shape=(9, 12))
    for axis in maps.axes_manager.signal_axes:
        axis.scale, axis.units = 5e-10, "m"
    monkeypatch.setattr("hyperspy_fusion.results.profiles._along", lambda *_: pytest.fail("the line is sampled"))
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
        maps.line_profile(*line)


@pytest.mark.parametrize(
    "scale, units, factor",
    [(5e-10, "m", 1e9), (5e-4, "µm", 1e3), (-0.5, "nm", 1e12), (5.0, "Å", 1e6), (0, "", 1e3)],
)
def test_a_line_in_other_units_is_refused_before_it_is_sampled(scale, units, factor, monkeypatch):
    maps = random_maps(shape=(9, 12))
    for axis in maps.axes_manager.signal_axes:
        axis.scale, axis.units = scale, units
    fits = 4 * (scale or 1)
    end = factor * fits
    assert np.isfinite(maps.line_profile((0, 0), (fits, 0)).data).all()
    monkeypatch.setattr("hyperspy.roi.Line2DROI.__call__", lambda *_, **__: pytest.fail("the line is sampled"))
    for line in (((0, 0), (end, 0)), ((0, 0), (0, end)), ((0, 0), (fits, 0), abs(end))):
        with pytest.raises(ValueError, match=f"does not lie on the maps, .* {units}"):
            maps.line_profile(*line)
