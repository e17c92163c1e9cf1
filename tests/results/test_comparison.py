"""The same fit without the HAADF image, and with other settings."""

import functools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import fuse_with
from results_data import QUICK

from hyperspy_fusion import data, element_maps
from hyperspy_fusion.signals import fitted_maps

RUN = {"show_progressbar": False, "num_workers": 1}


@functools.cache
def fused(method="calibrated", **options):
    scan = data.core_shell((24, 24)).signals()
    return fuse_with(*scan, **({"method": method} if method == "published" else QUICK) | options)


def test_without_the_image_maps_differ_in_units_of_their_errors():
    used, unused = fused(errors=4), fused(lambda_haadf=0.0, errors=4)
    same = unused.compare_without_haadf(**RUN)
    assert np.nanmax(np.abs(same.difference.data)) < 0.2
    other = used.compare_without_haadf(**RUN)
    unit = used.standard_errors().data
    unit = np.maximum(unit, 0.1 * np.sqrt(np.mean(unit**2, axis=(1, 2), keepdims=True)))
    expected = (used.data - unused.data) / unit
    shown = np.isfinite(expected)
    np.testing.assert_allclose(other.difference.data[shown], expected[shown], atol=0.1)
    assert "Pt: " in repr(other) and "standard errors rms" in repr(other)
    axes = other.plot(elements=["Pt", "O"])
    assert axes.shape == (3, 2) and axes[2, 0].get_title() == "Pt, difference / error"
    assert [ax.get_xlabel() for ax in axes[0, 0].figure.axes[6:8]] == ["X-ray counts", "standard errors"]
    low, high = axes[2, 1].images[0].get_clim()
    assert low == -high


def test_errors_are_found_where_there_are_none():
    found = fused().compare_without_haadf(errors=2, **RUN)
    assert np.isfinite(found.difference.data).any() and found.without_haadf._errors is not None


def test_settings_are_explored_side_by_side():
    axes = fused().explore(["O"], lambda_reg=[0.1, 10.0], regularization=["tv", "tgv"], **RUN)
    assert axes.shape == (4, 1)
    assert axes[1, 0].get_title().split() == ["O,", "lambda_reg=0.1,", "regularization=tgv"]
    rough, smooth = (np.abs(np.diff(ax.images[0].get_array())).sum() for ax in (axes[0, 0], axes[2, 0]))
    assert smooth < rough and axes[0, 0].images[0].get_clim() == axes[3, 0].images[0].get_clim()
    plt.close("all")
    assert fused("published").explore(lambda_tv=[0.02, 0.1], max_iter=3, **RUN).shape == (2, 3)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: fused().explore(save="figure.png"), "save and no settings"),
        (lambda: fused().explore(display=False, lambda_reg=[1.0]), "display or toolkit beside settings"),
        (lambda: fused().explore(toolkit="ipywidgets", lambda_reg=[1.0]), "display or toolkit beside settings"),
        (lambda: fused().explore(lambda_tv=[1.0]), "lambda_tv is no setting of method='calibrated'"),
        (lambda: fused().explore(lambda_reg=[-1.0]), "lambda_reg"),
        (lambda: fused().explore(lambda_reg=np.ones(30)), "30 combinations"),
        (lambda: fused().explore(["Au"], lambda_reg=[1.0]), "Au"),
        (lambda: fused().isig[2:9].explore(lambda_reg=[1.0]), "part of the result"),
        (lambda: fused("published").compare_without_haadf(), "published"),
        (lambda: fused("published").explore(residuals=True, lambda_tv=[0.1]), "published.* has no model of the noise"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_a_fit(call, words, monkeypatch):
    fused(), fused("published")
    monkeypatch.setattr(fitted_maps, "fuse", lambda *_, **__: pytest.fail("a fit is run"))
    with pytest.raises(ValueError, match=words):
        call()


def test_a_fit_to_whole_spectra_is_no_fit_of_maps():
    result = fuse_with(*data.overlapping_lines((16, 16)).signals(), method="calibrated", lines="model", max_iter=3)
    for call in (result.compare_without_haadf, result.explore, lambda: result.explore(lambda_reg=[1.0])):
        with pytest.raises(ValueError, match="fuse the spectra again, with lambda_haadf=0"):
            call()


def test_maps_that_were_edited_are_refused():
    """The measured maps share memory with those that the user gave; fused ones can be edited too."""
    maps, haadf = data.core_shell((24, 24)).signals()
    maps = element_maps(maps)
    result = fuse_with(maps, haadf, **QUICK)
    edited = result.deepcopy()
    edited.data *= 2
    for call in (edited.attribution, edited.normalised_residuals):
        with pytest.raises(ValueError, match="edited after the fit"):
            call()
    assert "not of these maps" in str(edited.report()) and "not of these maps" not in str(result.report())
    assert result.isig[2:9].inav[1:].attribution()
    maps.data[0] //= 2
    for call in (result.compare_without_haadf, lambda **run: result.explore(lambda_reg=[1.0], **run)):
        with pytest.raises(ValueError, match="measured maps were edited"):
            call(**RUN)
