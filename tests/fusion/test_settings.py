import inspect
from dataclasses import fields

import numpy as np
import pytest

from hyperspy_fusion._settings_docs import shows_settings
from hyperspy_fusion.fusion.settings import (
    METHODS,
    CalibratedSettings,
    PublishedSettings,
    settings_for,
)


@pytest.mark.parametrize(
    "option, value, sentence",
    [
        ("gamma", 0, "gamma is 0: it must lie above 0 and at most at 4"),
        ("gamma", 4.01, "gamma is 4.01"),
        ("gamma", float("nan"), "gamma is nan"),
        ("gamma", "1.6", "gamma is '1.6'"),
        ("lambda_chem", 0, "lambda_chem is 0: it must be a number above 0"),
        ("lambda_chem", None, "lambda_chem is None"),
        ("lambda_chem", float("inf"), "lambda_chem is inf"),
        ("lambda_haadf", -1, "lambda_haadf is -1"),
        ("lambda_tv", 0, "lambda_tv is 0: .* None to switch the total variation off"),
        ("lambda_tv", True, "lambda_tv is True"),
        ("lambda_tv", 1e-50, "lambda_tv is 1e-50"),
        ("lambda_haadf", 1e39, "lambda_haadf is 1e.39"),
        ("background", 0.0, "background is 0.0"),
        ("threshold", 1.2, "threshold is 1.2"),
        ("tol", 0, "tol is 0"),
        ("max_iter", 0, "max_iter is 0: it must be a whole number of at least 1"),
        ("max_iter", 3.0, "max_iter is 3.0"),
        ("tv_iter", True, "tv_iter is True"),
        ("tv_norm", "l1", "tv_norm is 'l1': it must be one of 'isotropic', 'anisotropic'"),
        ("tv_solver", "fista", "tv_solver is 'fista'"),
        ("weighting", 1, "weighting is 1"),
        ("dtype", "float16", "dtype is 'float16'"),
    ],
)
def test_bad_values_get_a_sentence(option, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        PublishedSettings(**{option: value})


@pytest.mark.parametrize(
    "option, value, sentence",
    [
        ("regularization", "wavelet", "regularization is 'wavelet': it must be one of 'guided', .*'tv', None"),
        ("lambda_reg", 0, "lambda_reg is 0: it must be a number above 0"),
        ("lambda_reg", None, "lambda_reg is None"),
        ("lambda_reg", (1, -2), "lambda_reg is -2"),
        ("lambda_reg", [], r"lambda_reg is \(\)"),
        ("lambda_reg", [[1, 2], [3]], r"lambda_reg is \(1, 2\)"),
        ("joint", 1, "joint is 1: it must be one of True, False"),
        ("second_order", 0, "second_order is 0: .* None for the default of the penalty"),
        ("eta", 1, "eta is 1: it must be at least 0 and below 1"),
        ("eta", -0.1, "eta is -0.1"),
        ("eta", float("nan"), "eta is nan"),
        ("guide_blur", -1, "guide_blur is -1: it must be at least 0"),
        ("guide_blur", float("inf"), "guide_blur is inf: it must be at least 0 and at most 1e.30"),
        ("guide_blur", "none", "or None to free the image of its noise"),
        ("noise", "white", "noise is 'white': it must be one of 'auto', 'poisson'"),
        ("shift", 0, "shift is 0"),
        ("background", (0, -1), "background is -1: it must be at least 0"),
        ("variance", 0, "variance is 0: .* None to estimate it"),
        ("variance", (1, None), "variance is None: it must be a number above 0"),
        ("weights", "gamma", "weights is 'gamma': it must be one of 'z_gamma', 'fit', or numbers, one per element"),
        ("weights", 3.0, "weights is 3.0"),
        ("weights", (1, -1), "weights is -1"),
        ("weights", (0, 0), "weights is .0, 0.: one of them must be above 0"),
        ("gamma", 0, "gamma is 0"),
        ("k_factors", 2.0, "k_factors is 2.0: it must hold one number per element"),
        ("k_factors", (1, 0), "k_factors is 0"),
        ("lambda_haadf", -1, "lambda_haadf is -1: it must be at least 0"),
        ("lambda_haadf", None, "lambda_haadf is None"),
        ("keep_totals", None, "keep_totals is None"),
        ("tol", None, "tol is None"),
        ("max_iter", 0, "max_iter is 0"),
        ("dtype", "float16", "dtype is 'float16'"),
    ],
)
def test_bad_values_of_the_calibrated_method_get_a_sentence(option, value, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        CalibratedSettings(**{option: value})
    assert str(raised.value).endswith(".")


def test_what_may_be_switched_off_may():
    off = {"regularization": None, "lambda_haadf": 0, "background": 0, "guide_blur": 0, "eta": 0, "weights": [0, 1]}
    assert CalibratedSettings(**off).weights == (0, 1)


@pytest.mark.parametrize("given", [[1, 2.5], (1, 2.5), np.array([1, 2.5]), np.array([1, 2.5], "float32")])
def test_sequences_become_tuples_of_python_numbers(given):
    settings = CalibratedSettings(lambda_reg=given, background=given, variance=given, weights=given, k_factors=given)
    for name in ("lambda_reg", "background", "variance", "weights", "k_factors"):
        value = settings.as_dict()[name]
        assert value == (1, 2.5) and type(value) is tuple and all(type(v) in (int, float) for v in value)
    assert settings == CalibratedSettings(**settings.as_dict())


def test_numpy_scalars_become_python_ones():
    given = {
        "gamma": np.float32(1.5),
        "max_iter": np.int64(3),
        "tv_norm": np.str_("isotropic"),
    }
    settings = PublishedSettings(**given)
    assert [type(settings.as_dict()[name]) for name in given] == [float, int, str]


def test_unknown_options_get_the_nearest_name():
    with pytest.raises(TypeError, match="has no option 'lamda_tv'; did you mean 'lambda_tv'"):
        settings_for("published", {"lamda_tv": 0.1})
    with pytest.raises(TypeError, match="the options are gamma, "):
        settings_for("published", {"qqq": 0.1})
    with pytest.raises(ValueError, match="method is 'guess': it must be one of 'published', 'calibrated'"):
        settings_for("guess", {})


@pytest.mark.parametrize(
    "method, option, sentence",
    [
        ("calibrated", "lambda_tv", "lambda_tv belongs to method='published'; with 'calibrated' it is lambda_reg."),
        ("published", "lambda_reg", "lambda_reg belongs to method='calibrated'; with 'published' it is lambda_tv."),
        ("calibrated", "lambda_chem", "lambda_chem belongs to method='published'; leave it out with 'calibrated', or"),
        ("published", "joint", "joint belongs to method='calibrated'; leave it out with 'published', or pass method="),
        (
            "published",
            "regularization",
            "regularization belongs to method='calibrated'; leave it out with 'published', or",
        ),
        ("published", "lambda_reg", "Or pass method='calibrated'."),
        ("published", "error", "did you mean 'errors'?"),
        ("calibrated", "errors", "errors is no setting of a fit: pass it to fuse, or call standard_errors"),
        ("calibrated", "edges", "edges is no setting of a fit: pass it to element_maps"),
        ("published", "mask", "mask is no setting of a fit: pass it to FusedMultiModal or fuse."),
        ("calibrated", "lamda_reg", "method 'calibrated' has no option 'lamda_reg'; did you mean 'lambda_reg'?"),
    ],
)
def test_options_of_the_other_method_are_called_so(method, option, sentence):
    with pytest.raises(TypeError, match=sentence):
        settings_for(method, {option: 1})


def test_near_words_and_methods_are_named():
    with pytest.raises(ValueError, match="The nearest is 'calibrated'"):
        settings_for("Calibrated", {})
    with pytest.raises(ValueError, match="The nearest is 'tv'"):
        settings_for("calibrated", {"regularization": "TV"})
    with pytest.raises(ValueError, match="method='auto' chooses it for you"):
        settings_for("calibrated", {"lambda_reg": "auto"})


def test_help_shows_the_settings_of_every_method_once():
    @shows_settings
    def fit(one, *, two=2, **settings):
        """Fit.

        Parameters
        ----------
        one, two : int
            Numbers.
        **settings

        Returns
        -------
        int
        """

    parameters = inspect.signature(fit).parameters
    names = {f.name for cls in METHODS.values() for f in fields(cls)}
    assert set(parameters) == {"one", "two", *names}
    assert parameters["lambda_tv"].default == 0.15 and parameters["eta"].default == 0.95
    assert repr(parameters["gamma"].default) == "1.6 (published) or 1.7 (calibrated, auto)"
    text = fit.__doc__
    published, calibrated = text.split("**Settings of method='published'**")[1].split(
        "**Settings of method='calibrated'**"
    )
    for cls, part in ((PublishedSettings, published), (CalibratedSettings, calibrated)):
        assert all(f"\n    {f.name}\n        " in part for f in fields(cls))
    # one paragraph of the parameters, which the next section ends
    assert "\n\nReturns\n-------\nint" in calibrated and text.count("Returns") == 1


def test_settings_build_on_each_other():
    first = settings_for("published", {"gamma": 2, "max_iter": 5})
    second = settings_for("published", {"max_iter": 7}, base=first)
    assert (second.gamma, second.max_iter) == (2, 7)
    assert first.max_iter == 5
