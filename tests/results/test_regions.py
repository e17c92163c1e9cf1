"""Regions: which pixels they are, and their means, ratios and composition with errors."""

import hyperspy.api as hs
import numpy as np
import pytest
from helpers import codes, fuse_with, scan_signals
from hypothesis import given, settings
from hypothesis import strategies as st
from results_data import ELEMENTS, QUICK, count_maps, fused_with_holes, random_maps

import hyperspy_fusion as hf

REGION = np.zeros((12, 15), bool)
REGION[3:9, 4:11] = True


# of pixels; microscopes write negative ones too
SIZES = st.floats(0.01, 50).flatmap(lambda size: st.sampled_from([size, -size]))


@pytest.fixture(scope="module")
def fused():
    return fuse_with(*scan_signals(), errors=4, **QUICK)


def codes_of(region):
    return [diagnostic.code for diagnostic in region.diagnostics]


@settings(max_examples=12, deadline=None)
@given(st.data(), SIZES, SIZES, st.floats(-100, 100), st.floats(-100, 100))
def test_a_rectangle_is_the_pixels_in_it_on_any_axes(data, dy, dx, y0, x0):
    ny, nx = 6, 7
    top, left = data.draw(st.integers(0, ny - 1)), data.draw(st.integers(0, nx - 1))
    bottom, right = data.draw(st.integers(top + 1, ny)), data.draw(st.integers(left + 1, nx))
    axes = [{"name": n, "size": s, "scale": d, "offset": o, "units": "nm"} for n, s, d, o in
            (("y", ny, dy, y0), ("x", nx, dx, x0))]  # fmt: skip
    maps = hf.element_maps({"Fe": hs.signals.Signal2D(np.arange(42.0).reshape(6, 7), axes=axes)})
    # corners at the edges of pixels, whose coordinates are those of their centres
    pixels = ((left, right, dx, x0), (top, bottom, dy, y0))
    ends = [
        [o + d * (f - 0.4), o + d * (e - 0.4)] if d > 0 else [o + d * (e - 0.6), o + d * (f - 0.6)]
        for f, e, d, o in pixels
    ]
    roi = hs.roi.RectangularROI(left=ends[0][0], right=ends[0][1], top=ends[1][0], bottom=ends[1][1])
    region = maps.region(roi)
    expected = np.zeros((ny, nx), bool)
    expected[top:bottom, left:right] = True
    np.testing.assert_array_equal(region.mask, expected)
    assert region.mean("Fe").value == pytest.approx(np.arange(42.0).reshape(6, 7)[expected].mean())
    assert not region.diagnostics


def test_regions_are_masks_signals_rois_and_everything():
    maps = random_maps()
    inside = np.zeros((6, 7), bool)
    inside[1:3, 2:5] = True
    roi = hs.roi.RectangularROI(left=1.0, right=2.5, top=0.5, bottom=1.5)
    for region in (inside, hs.signals.Signal2D(inside), roi):
        np.testing.assert_array_equal(maps.region(region).mask, inside)
    assert maps.region().mask.all()
    # a circle is the pixels that HyperSpy leaves in it
    roi = hs.roi.CircleROI(cx=1.5, cy=1.2, r=1.1)
    region, cut = maps.region(roi), roi(maps.get_map("Fe")).data
    assert 5 < region.mask.sum() == np.isfinite(cut).sum() < cut.size
    assert region.mean("Fe").value == pytest.approx(np.nanmean(cut))


@pytest.mark.parametrize(
    "roi, expected",
    [
        (hs.roi.RectangularROI(left=2.0, right=9.0, top=1.0, bottom=2.0), np.s_[2:4, 4:]),
        (hs.roi.RectangularROI(left=-3.0, right=1.0, top=1.0, bottom=2.0), np.s_[2:4, :2]),
        (hs.roi.CircleROI(cx=0.0, cy=0.0, r=1.6), None),
        (hs.roi.PolygonROI([(1.0, 0.6), (8.0, 0.6), (8.0, 1.6), (1.0, 1.6)]), None),
    ],
)
def test_regions_beyond_the_maps_are_reported(roi, expected, caplog):
    maps = random_maps()  # x from 0 to 3, y from 0 to 2.5 nm
    region = maps.region(roi)
    assert "from x = 0 to 3 nm and y = 0 to 2.5 nm" in caplog.text
    assert codes(caplog) == codes_of(region) == ["roi-beyond-maps"]
    if expected is not None:
        assert region.mask[expected].all() and region.mask.sum() == region.mask[expected].size


@pytest.mark.parametrize("roi, error, words", [
    (REGION.astype(float), TypeError, "float64: .* that another image chose, such as haadf.data > 30000, or"),
    (REGION[:-1], ValueError, "shape \\(11, 15\\), expected \\(12, 15\\)"),
    (REGION & False, ValueError, "holds no pixel: pass a mask that is True where a pixel is in the region"),
    (hs.roi.Line2DROI(3, -2, 6, 1, 1), TypeError, "covers no area"),
    (hs.roi.SpanROI(4, 5), TypeError, "covers no area"),
    (hs.roi.Point2DROI(5, 0), TypeError, "covers no area"),
])  # fmt: skip
def test_what_is_no_region_is_refused(fused, roi, error, words):
    with pytest.raises(error, match=words):
        fused.region(roi)


@pytest.mark.parametrize("scale", [0.5, -0.5, 2e-9, -2e-9, 0.0])
def test_what_is_beyond_the_maps_gets_one_sentence(scale):
    maps = random_maps()
    for axis in maps.axes_manager.signal_axes:
        axis.scale, axis.offset = scale, 3 * scale
    size = scale or 1.0
    low, high = sorted((3 * scale, 8 * scale)) if scale else (0, 5)
    away = (100 * abs(size), 101 * abs(size))
    for find in (
        lambda: maps.region(hs.roi.RectangularROI(away[0], away[0], away[1], away[1])),
        lambda: maps.region(hs.roi.CircleROI(away[0], away[0], abs(size))),
        lambda: maps.region(hs.roi.CircleROI(np.inf, away[0], abs(size))),
        lambda: maps.region(hs.roi.PolygonROI([(away[0], away[0]), (away[1], away[0]), (away[1], away[1])])),
        lambda: maps.line_profile(away, (away[1], away[1])),
    ):
        with pytest.raises(ValueError, match=f"not lie on the maps, .*y = {low:.4g} to {high:.4g}.*: give it in"):
            find()
    middle = 3 * scale + 2.1 * size if scale else 2.1
    circle = maps.region(hs.roi.CircleROI(middle, middle, 1.2 * abs(size)))
    # to half a pixel, which HyperSpy's circles are off
    assert circle.mask[2, 2] and 4 <= circle.mask.sum() == circle.mask[1:4, 1:4].sum()
    assert not circle.diagnostics


def test_plain_means_have_the_errors_of_their_pixels():
    maps = random_maps(mean=400.0, shape=(40, 50))
    errors = np.sqrt(maps.data)
    found = maps.region(errors=errors).mean("Fe")
    assert found.error == pytest.approx(np.sqrt(maps.data[1].sum()) / 2000)
    assert abs(found.value - 400) < 4 * found.error
    assert maps.region(errors=errors, independent=False).mean("Fe").error == pytest.approx(errors[1].mean())
    assert np.isnan(maps.region().mean("Fe").error)
    maps = random_maps()
    maps.data[:, 0] = np.nan
    found = maps.region(errors=np.ones(maps.data.shape)).mean("Al")
    assert found.value == pytest.approx(maps.data[0, 1:].mean()) and found.error == pytest.approx(1 / np.sqrt(35))
    empty = np.zeros((6, 7), bool)
    empty[0] = True
    with pytest.raises(ValueError, match="no pixel with a value"):
        maps.region(empty).mean("Al")


def test_plain_ratios_and_compositions_are_those_of_the_sums():
    maps = random_maps()
    half = np.zeros((6, 7), bool)
    half[:, :2] = True
    sums = count_maps(maps.data[:, half].sum(axis=1)[:, None, None])
    for units, whole in (("atomic", sums.atomic_percent), ("weight", sums.weight_percent)):
        found = maps.region(half).percent("CL", [1, 2, 3], units=units)
        np.testing.assert_allclose([v for v, _ in found.values()], whole("CL", [1, 2, 3]).data.ravel())
    assert list(found) == ELEMENTS and np.isnan([e for _, e in found.values()]).all()
    # of the pixels that all maps have
    hole = maps.deepcopy()
    hole.data[1, :, 0] = np.nan
    one = half & (np.arange(7) > 0)
    assert hole.region(half).percent("CL", 1)["Fe"].value == pytest.approx(
        maps.region(one).percent("CL", 1)["Fe"].value
    )
    region = random_maps().region(errors=np.ones((3, 6, 7)))
    (iron, error), (aluminium, same) = region.mean("Fe"), region.mean("Al")
    value, found = region.ratio("Fe", "Al")
    assert value == pytest.approx(iron / aluminium)
    assert found == pytest.approx(np.hypot(error / iron, same / aluminium) * value)
    assert region.ratio("Fe", "Fe") == (1, 0)
    assert count_maps(np.zeros((3, 4, 4))).region().ratio("Fe", "Al")[1] == np.inf


def test_means_of_a_fit_are_estimates(fused):
    region = fused.region(REGION)
    bootstrap = fused._errors.bootstrap
    for i, element in enumerate(fused.elements):
        found = region.estimate(element)
        assert found == bootstrap.region_mean(REGION, i)
        assert region.mean(element) == (found.value, found.error) == region.means()[element] and found.error > 0
        assert found.fused == pytest.approx(fused.data[i][REGION].mean())
    # of all pixels, where totals are kept
    whole = fused.region().mean("Fe")
    assert whole.value == pytest.approx(fused.data[0].mean(), rel=1e-3) and np.isfinite(whole.error)
    # a crop and a single map are the same region of the fit
    crop = fused.isig[2:12, 1:11]
    for maps in (crop, crop.get_map("O")):
        assert maps.region(REGION[1:11, 2:12]).estimate("O") == region.estimate("O")
    assert repr(region) == "<Region of 42 pixels: Fe, O; errors from 4 bootstrap replicates>"


def test_ratios_and_composition_follow_from_the_estimates(fused):
    region, factors = fused.region(REGION), {"Fe": 2.0, "O": 0.5}
    ratio, (iron, oxygen) = region.ratio("Fe", "O"), (region.mean(e) for e in ("Fe", "O"))
    assert ratio.value == pytest.approx(iron.value / oxygen.value)
    apart = ratio.value * np.hypot(iron.error / iron.value, oxygen.error / oxygen.value)
    assert 0.3 * apart < ratio.error < 2 * apart
    found = region.percent("cross_section", factors)
    values = {e: region.mean(e).value / factors[e] for e in fused.elements}
    for element in fused.elements:
        assert found[element].value == pytest.approx(100 * values[element] / sum(values.values()))
    # of two elements what one gains the other loses; and as the ratio has it
    assert found["Fe"].error == pytest.approx(found["O"].error) and found["Fe"].error > 0
    times = factors["O"] / factors["Fe"]
    assert found["Fe"].error == pytest.approx(100 * times * ratio.error / (1 + times * ratio.value) ** 2, rel=1e-6)
    turned = fused.inav[::-1].region(REGION).percent("cross_section", factors)
    assert list(turned) == ["O", "Fe"] and turned["Fe"].value == pytest.approx(found["Fe"].value)


def test_given_errors_take_the_place_of_the_estimates(fused):
    region = fused.region(REGION, errors=np.full(fused.data.shape, 2.0))
    assert region.mean("Fe").value == pytest.approx(fused.data[0][REGION].mean())
    assert region.mean("Fe").error == pytest.approx(2)  # all err in one direction
    assert region.percent("CL", 1)["Fe"].error > 0
    with pytest.raises(ValueError, match="leave them out"):
        region.estimate("Fe")
    alike = fused.region(REGION, independent=False)
    assert alike.mean("O").error == pytest.approx(fused.standard_errors().data[1][REGION].mean())


@pytest.mark.parametrize("name, symbol", [("fe", "Fe"), ("Fe_Ka", "Fe"), ("O_K", "O"), ("oxygen", "O")])
def test_a_misspelt_element_is_answered_with_its_symbol(fused, name, symbol):
    for region in (fused.region(REGION), (fused * 2).region(REGION)):
        for ask in (lambda r=region: r.mean(name), lambda r=region: r.ratio("Fe", name)):
            with pytest.raises(ValueError, match=f"no map of {name!r}: did you mean '{symbol}'\\?$"):
                ask()
    with pytest.raises(ValueError, match="There is no map of 'Al': the maps are of Fe, O\\.$"):
        fused.region(REGION).estimate("Al")


def test_constant_maps_have_plain_means_without_errors():
    maps, haadf = scan_signals()
    three = {"Fe": maps[0], "O": maps[1], "Pt": maps[0].deepcopy()}
    three["Pt"].data[:] = 0
    fused = fuse_with(three, haadf, errors=2, **QUICK)
    region, two = fused.region(REGION), fused.inav[:2].region(REGION)
    assert region.mean("Pt").value == 0 and np.isnan(region.mean("Pt").error)
    assert np.isnan(fused.standard_errors().data).all(axis=(1, 2)).tolist() == [False, False, True]
    assert list(fused.metadata.Fusion.errors.bias_scales)[2] == 0
    with pytest.raises(ValueError, match="no errors of 'Pt': only Fe, O are fitted: .*elements=\\[...\\]"):
        region.estimate("Pt")
    # and no share of a composition
    found, expected = (r.percent("cross_section", 1) for r in (region, two))
    assert found["Pt"].value == 0 and np.isnan(found["Pt"].error)
    np.testing.assert_allclose([found[e] for e in expected], list(expected.values()), rtol=1e-9)


def test_a_region_of_a_fit_has_the_mean_of_its_counts_with_an_error(tmp_path, caplog):
    maps, haadf = scan_signals()
    fused = fuse_with(maps, haadf, **QUICK | {"lambda_reg": 5.0})
    region = fused.region(REGION)
    counts = [m.data[REGION].sum() for m in maps]
    for element, total in zip(fused.elements, counts, strict=True):
        found = region.estimate(element)
        assert found.value == pytest.approx(total / 42, rel=1e-4) == found.measured
        assert region.mean(element) == (found.value, found.error) == region.means()[element]
        assert found.error == pytest.approx(np.sqrt(total) / 42, rel=1e-3)
        assert found.fused == pytest.approx(fused.get_map(element).data[REGION].mean())
    assert region.ratio("Fe", "O").value == pytest.approx(counts[0] / counts[1])
    assert region.ratio("Fe", "O").error == pytest.approx(counts[0] / counts[1] * np.sqrt(np.sum(1 / np.array(counts))))
    assert region.percent("CL", 1)["Fe"].error > 0 and "means of the counts" in repr(region)
    crop = fused.isig[2:12, 1:11].get_map("O").region(REGION[1:11, 2:12])
    assert crop.mean("O") == region.mean("O")
    for name, part, inside in (("whole", fused, REGION), ("crop", fused.isig[2:12, 1:11], REGION[1:11, 2:12])):
        part.save(tmp_path / f"{name}.hspy", everything=True)
        assert hs.load(tmp_path / f"{name}.hspy").region(inside).means() == region.means()
    # edited, calculated or loaded maps have plain means
    fused.save(tmp_path / "fused.hspy")
    for other in (fused * 2, fused.isig[::2, :], hs.load(tmp_path / "fused.hspy")):
        assert other.region().mean("Fe").value == pytest.approx(np.mean(other.data[0]))
        assert np.isnan(other.region().mean("Fe").error)


def test_what_smoothing_or_choice_did_to_a_region_is_reported(caplog):
    maps, haadf = scan_signals(24, 30)
    fused = fuse_with(maps, haadf, **QUICK | {"lambda_reg": 5.0})
    caplog.clear()
    peak = np.zeros((24, 30), bool)
    peak[10:14, 8:12] = True
    (smoothed,) = fused.region(peak).diagnostics
    assert (smoothed.code, smoothed.severity, smoothed.elements) == ("region-smoothed", "information", ("Fe",))
    figures = fused.region(peak).estimate("Fe")
    assert f"16 pixels (Fe {figures.fused:.2g} for {figures.measured:.2g})" in str(smoothed) and not codes(caplog)
    iron = fused.get_map("Fe").data
    for chosen in (iron > np.quantile(iron, 0.95), iron <= np.quantile(iron, 0.2)):
        region = fused.region(chosen)
        found = region.estimate("Fe")
        assert "region-chosen-by-map" in codes_of(region) and region.diagnostics[-1].elements == ("Fe",)
        # between both, which are one error away
        assert found.value == pytest.approx((found.fused + found.measured) / 2)
        assert found.error > abs(found.value - found.fused) > 0
    fused.metadata.set_item("Element_maps.edges.Fe", [700.0])
    assert codes_of(fused.region(~peak))[0] == "edge-errors-too-small"


def test_lost_errors_are_reported_and_means_are_plain(fused, caplog, tmp_path):
    fused.save(tmp_path / "fused.hspy")
    loaded = hs.load(tmp_path / "fused.hspy")
    edited = fused.deepcopy()
    edited.data = edited.data * 2
    caplog.clear()
    for maps in (loaded, loaded.isig[1:], edited, fused * 2, fused.rebin(scale=(1, 3, 2))):
        region = maps.region()
        assert codes(caplog) == codes_of(region) == ["errors-lost"]
        value, error = region.mean("Fe")
        assert value == pytest.approx(np.mean(maps.data[0])) and np.isnan(error)
        assert np.isnan(region.percent("CL", 1)["Fe"].error)
    # with errors that were saved too, and of what never had errors of a fit
    percent, never = fused.atomic_percent("cross_section", 1), hf.element_maps(scan_signals()[0])
    for region in (loaded.region(REGION, errors=fused.standard_errors()), percent.region(), never.region()):
        assert not region.diagnostics
    for crop in (percent, percent.isig[2:6, 2:6]):
        assert all(error > 0 for _, error in crop.region().means().values())


def test_a_composition_is_answered_with_the_way_to_regions(fused):
    percent = fused.atomic_percent("cross_section", 1)
    region = percent.isig[1:9, 2:9].region()
    for ask in (percent.standard_errors, lambda: region.estimate("Fe"), lambda: region.ratio("Fe", "O")):
        with pytest.raises(ValueError, match=r"region\(roi\)\.percent\(\.\.\.\) of the fused maps"):
            ask()
    with pytest.raises(ValueError, match="is a composition already"):
        region.percent("CL", 1)


def test_regions_that_were_not_measured_are_reported(caplog):
    fused = fused_with_holes()
    masked, half, tenth, scattered, beside = (np.zeros((12, 15), bool) for _ in range(5))
    masked[3:6, 3:6] = half[3:7, 3:9] = tenth[1:9, 1:9] = beside[8:10] = True
    scattered[9:12, 2:14] = True  # a third of it in a row, nowhere a square of 3 pixels
    for region, listed in ((masked, "Fe 100%, O 100%"), (half, "Fe 50%, O 50%"), (tenth, "Fe 19%, O 19%")):
        caplog.clear()
        assert codes_of(fused.region(region)) == ["region-not-measured"]
        assert f"({listed})" in caplog.text
    (iron,) = fused.region(np.roll(masked, 7, axis=1)).diagnostics
    assert iron.elements == ("Fe",)
    for region in (scattered, beside):
        assert not fused.region(region).diagnostics
