"""Reports: what maps can be used for, by truth, and what the HAADF image did."""

import functools

import hyperspy.api as hs
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import fuse_with
from results_data import QUICK
from scipy.ndimage import gaussian_filter

from hyperspy_fusion import data
from hyperspy_fusion.diagnostics import Diagnostic, as_metadata
from hyperspy_fusion.results.report import saved_with_figures, used_edges
from hyperspy_fusion.signals.element_maps import ElementMaps


@functools.cache
def texture(mean, width, seed=1):
    """Truth, counts and an unrelated HAADF image of a random texture of Fe beside an even map of O, (32, 32)."""
    rng = np.random.default_rng(seed)
    fine = gaussian_filter(rng.normal(size=(32, 32)), width)
    truth = np.stack([mean * np.exp(0.5 * fine / fine.std() - 0.125), np.full((32, 32), 2.0)])
    maps = []
    for element, one in zip(("Fe", "O"), rng.poisson(truth), strict=True):
        maps.append(hs.signals.Signal2D(one.astype("uint16")))
        maps[-1].metadata.set_item("Sample.elements", [element])
    image = 100 + 10 * gaussian_filter(rng.normal(size=(32, 32)), 3) + rng.normal(size=(32, 32))
    return truth, maps, hs.signals.Signal2D(image)


@pytest.mark.parametrize(
    "mean, width, expected",
    [(1.0, 0.5, "mean only"), (4.0, 0.5, "amounts of regions only"), (12.0, 2.0, "structure and amounts")],
)
def test_maps_are_good_for_what_the_truth_says(mean, width, expected):
    truth, maps, haadf = texture(mean, width)
    fused = fuse_with(maps, haadf, **QUICK | {"lambda_haadf": 0, "lambda_reg": 0.7})
    fit = fused.metadata.Fusion
    assert list(fit.usable_for) == [expected, "mean only"]
    right = 1 - np.mean((fused.data[0] - truth[0]) ** 2) / truth[0].var()
    assert (right > 0.6) == (expected == "structure and amounts")
    assert [row[2] for row in fused.report().rows] == [expected, "mean only"]
    assert fused.report().haadf == "The HAADF image was not used."


@functools.cache
def reported(method):
    scan = data.core_shell((32, 32)).signals()
    return fuse_with(*scan, **({"method": method} if method == "published" else QUICK))


def test_a_report_lists_maps_and_diagnostics_by_severity():
    report = reported("published").report()
    assert [row[0] for row in report.rows] == ["Pt", "Fe", "O"]
    assert {row[2] for row in report.rows} <= {"structure, no amounts", "not known"}
    assert report.diagnostics[0].code == "totals-changed"
    text, html = str(report), report._repr_html_()
    assert text.index("Serious") < text.index("Information") and "<table>" in html
    for one in report.diagnostics:
        assert f"- {one.headline}" in text and one.headline in html
    assert "fitted in every pixel (correlation" in text


def test_a_report_of_some_maps_is_about_these():
    fused = reported("calibrated")
    part = fused.inav[1:].report()
    assert [row[0] for row in part.rows] == ["Fe", "O"] and part.rows == fused.report().rows[1:]
    assert "changed Pt most" in part.haadf and "its edges were not used" in part.haadf
    counts = [float(m.data.sum()) for m in fused._inputs.maps.split()]
    np.testing.assert_allclose(fused.metadata.Fusion.counts, counts)
    with pytest.raises(ValueError, match="not the result of a fit"):
        fused._inputs.maps.report()


@pytest.mark.parametrize("of, is_shown", [(["Si"], True), (["Pt", "Si"], True), (["Pt"], False), ([], True)])
def test_a_report_of_some_maps_has_what_concerns_elements_without_a_map(of, is_shown):
    fused = reported("calibrated").deepcopy()
    found = Diagnostic("line-of-no-element", "The spectra show a line.", elements=tuple(of))
    fused.metadata.Fusion.diagnostics = as_metadata([found])
    assert (found in fused.inav[1:].report().diagnostics) == is_shown


@pytest.mark.slow
def test_a_saved_report_has_its_figures_and_shows_none(tmp_path):
    fused, path = reported("calibrated"), tmp_path / "report.html"
    figures = plt.get_fignums()
    assert str(fused.report(save=path)) == str(fused.report())
    written = path.read_text(encoding="utf-8")
    assert written.count("data:image/png;base64,") == 3 and fused.report()._repr_html_() in written
    assert plt.get_fignums() == figures
    with pytest.raises(ValueError, match="save is .*figures.pdf.*report.html"):
        fused.report(save=tmp_path / "figures.pdf")
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]


def test_a_report_has_the_reason_why_a_figure_is_missing(tmp_path, monkeypatch):
    def fails(fused, **_):
        plt.figure()
        raise ValueError("Too <small>.")

    figures = plt.get_fignums()
    for name in ("plot_fusion", "plot_residuals", "plot_convergence"):
        monkeypatch.setattr(ElementMaps, name, fails)
    reported("calibrated").report(save=tmp_path / "report.html")
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert written.count("<p>Too &lt;small&gt;.</p>") == 3 and "<p>No weights were chosen in this fit" in written
    assert "data:image" not in written and plt.get_fignums() == figures


def test_a_report_of_a_stack_names_where_figures_are(tmp_path):
    stack = hs.stack([reported("published")] * 2, new_axis_name="tilt", show_progressbar=False)
    saved_with_figures(reported("published").report(), stack, tmp_path / "stack.html")
    written = (tmp_path / "stack.html").read_text(encoding="utf-8")
    assert "<h4>" in written and written.count("call fused.frame(k).report(save=...)") == 1
    assert "data:image" not in written and "Convergence" not in written


def test_an_image_is_used_without_smoothing_too():
    maps, haadf = data.core_shell((16, 16)).signals()
    used, unused = (fuse_with(maps, haadf, **QUICK | {"regularization": "none", "lambda_haadf": w}) for w in (1, 0))
    assert "most; nothing was smoothed" in used.report().haadf
    assert unused.report().haadf == "The HAADF image was not used."


@pytest.mark.parametrize("weights", [[1, 0], [0, 1]])
def test_edges_of_any_candidate_of_a_given_penalty_are_used(weights):
    fit = {"parameters": {"regularization": "guided"}, "selection": {"score": [0.0, 1.0], "weights": weights}}
    assert used_edges(fit)


def test_a_report_states_what_to_trust_where_the_image_is_of_something_else():
    maps, haadf = data.core_shell((32, 32)).signals()
    y = np.linspace(0, 4, 32)[:, None]
    found = []
    for other in (0 * y, 10 * y):
        image = haadf._deepcopy_with_new_data(haadf.data + other)
        codes = {d.code: str(d) for d in fuse_with(maps, image, **QUICK).report().diagnostics}
        found.append(codes.get("haadf-unexplained", ""))
    assert "trust a feature only where its counts show it" not in found[0]
    assert "trust a feature only where its counts show it" in found[1]
