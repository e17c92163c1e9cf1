"""Diagnostics: their headlines, and which of them are logged."""

import ast
from importlib.util import find_spec
from pathlib import Path

import hyperspy.api as hs
import pytest

from hyperspy_fusion.diagnostics import (
    INFORMATION,
    LONGEST,
    NOTE,
    SERIOUS,
    Diagnostic,
    as_metadata,
    forget_reported,
    from_metadata,
    report,
    report_fit,
)
from hyperspy_fusion.fusion.result import StopReason

FOLDER = Path(find_spec("hyperspy_fusion").submodule_search_locations[0])
AXES = ({"scale": 0.5, "offset": 10.0, "units": "nm"}, {"scale": 2.0, "offset": 0.0, "units": "nm"})


def codes_of_the_package():
    """First arguments of ``Diagnostic(...)`` that are written out, and codes of fits that end early."""
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Diagnostic" and node.args:
                if isinstance(node.args[0], ast.Constant):
                    yield node.args[0].value
    yield from ("not-converged", "not-settled", "interrupted", "stopped", "haadf-coefficient-zero")
    yield from (f"frames-{reason}" for reason in ("empty", "incomplete", "counts", "unlike", "apart"))
    yield from ("missing-haadf-pixels", "saturated-haadf-pixels", "haadf-coefficient-prior")


def test_each_code_has_a_short_headline_with_a_remedy():
    assert {"not-converged", "stopped"} <= {r.name.lower().replace("_", "-") for r in StopReason}
    found = set(codes_of_the_package())
    assert len(found) > 60 and "smoothing-limited" in found
    for code in found:
        for elements in ((), ("Fe",), tuple(["Fe", "O", "Mg", "Si"] * 20)):
            one = Diagnostic(code, "no headline of its own", elements=elements)
            assert one.headline != one.sentence and len(one.headline) <= LONGEST, one.headline
            assert any(mark in one.headline for mark in (":", ",")), one.headline


def test_elements_are_shortened_to_fit():
    many = Diagnostic("totals-changed", "", elements=tuple("Fe O Mg Si Al Ca Ti Cr Cu Ga Na N S Pt C".split()))
    assert many.headline.startswith("Totals of Fe, O, Mg") and "more changed" in many.headline
    assert Diagnostic("totals-changed", "").headline.startswith("Totals of the maps changed")


@pytest.mark.parametrize("axes, place", [(AXES, "x = 8 nm, y = 11.5 nm"), ([{"units": "px"}] * 2, "x = pixel 4")])
def test_places_are_in_units_of_the_axes(axes, place):
    one = Diagnostic("haadf-unexplained", "Most at {place}.", place=(3, 4))
    assert f"Most at {place}" in one.placed(axes).sentence and "pixel 4" in str(one)
    (back,) = from_metadata(as_metadata([one.placed(axes)]))
    assert back == one.placed(axes) and back.severity == INFORMATION


def test_headlines_of_what_is_serious_are_logged_once_per_session(caplog):
    serious = Diagnostic("totals-changed", "The totals (Fe 51%).", elements=("Fe",))
    found = [serious, Diagnostic("spikes", "A spike."), Diagnostic("haadf-coarser", "Coarse.")]
    assert [d.severity for d in found] == [SERIOUS, NOTE, INFORMATION]
    for _ in range(2):
        report_fit([*found, Diagnostic("totals-changed", "The totals (Fe 52%).", elements=("Fe",))])
    assert [r.getMessage() for r in caplog.records] == [serious.headline]
    forget_reported()
    try:
        hs.set_log_level("ERROR")
        report_fit(found)
        hs.set_log_level("INFO")
        report_fit(found)
    finally:
        hs.set_log_level("WARNING")
    assert [r.getMessage() for r in caplog.records][1:] == ["The totals (Fe 51%).", "A spike.", "Coarse."]
    caplog.clear()
    report(found)  # what a call of the user's met
    assert [r.getMessage() for r in caplog.records] == ["The totals (Fe 51%).", "A spike."]


def test_a_title_of_an_image_may_hold_any_character():
    one = Diagnostic("haadf-constant", "The HAADF image is constant.").about_image("BF {0-20}")
    assert one.headline.startswith("The BF {0-20} image has no contrast")
