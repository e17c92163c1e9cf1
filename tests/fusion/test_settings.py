"""Settings: what they refuse, how they build on each other, and what a setting is called in another method."""

import numpy as np
import pytest

from hyperspy_fusion import AutoSettings, CalibratedSettings, PublishedSettings
from hyperspy_fusion.fusion.checks import number_of_resamples
from hyperspy_fusion.fusion.settings import settings_for

REFUSED = {
    PublishedSettings: {
        "gamma": [0, 4.01, float("nan"), "1.6"],
        "lambda_chem": [0, None, float("inf"), "auto"],
        "lambda_haadf": [-1, 1e39],
        "lambda_tv": [-1, True, None],
        "eps": [0.0],
        "threshold": [1.2],
        "change_tol": [0],
        "max_iter": [0, 3.0],
        "tv_iter": [True],
        "tv_norm": ["l1"],
        "tv_solver": ["fista"],
        "z_weighting": [1],
        "dtype": ["float16"],
    },
    CalibratedSettings: {
        "regularization": ["wavelet", None],
        "lambda_reg": [0, None, (1, -2), [], [[1, 2], [3]], "auto"],
        "joint": [1],
        "second_order": [0],
        "eta": [1, -0.1, float("nan")],
        "guide_blur": [-1, float("inf"), "none"],
        "noise": ["white"],
        "poisson_offset": [0],
        "background": [(0, -1), "windows"],
        "variance": [0, (1, None)],
        "haadf_coefficients": ["gamma", 3.0, (1, -1), (0, 0)],
        "z_exponent": [0, {"Fe": 1.7}, (1.7, 5.0)],
        "k_factors": [2.0, (1, 0)],
        "lambda_haadf": [-1, None, {"Fe": 2.0}, (1.0, -1.0), ()],
        "remove_ramp": [{"Fe": True}, (True, 2)],
        "haadf_blur": [-1, 4.1, "auto"],
        "keep_totals": [None],
        "tol": [None],
        "max_iter": [0],
        "dtype": ["float16"],
    },
    AutoSettings: {
        "regularization": ["best"],
        "lambda_haadf": ["big", {"Fe": 2.0}],
        "joint": ["yes"],
        "components": [-1],
        "seed": [-1, 0.5],
    },
}


@pytest.mark.parametrize("settings", REFUSED, ids=lambda cls: cls.__name__)
def test_bad_values_are_refused_by_name(settings):
    for name, values in REFUSED[settings].items():
        for value in values:
            with pytest.raises(ValueError, match=rf"^{name} is .*\.$"):
                settings(**{name: value})


def test_what_may_be_switched_off():
    off = {"lambda_haadf": 0, "background": 0, "guide_blur": 0, "eta": 0, "haadf_coefficients": [0, 1]}
    assert CalibratedSettings(regularization="none", **off).haadf_coefficients == (0, 1)
    assert PublishedSettings(lambda_tv=0).lambda_tv == 0
    CalibratedSettings(haadf_blur="fit", haadf_coefficients="fit")
    with pytest.raises(ValueError, match="haadf_coefficients='z_power'"):
        CalibratedSettings(haadf_blur="fit", haadf_coefficients=(1, 2))
    given = {"gamma": np.float32(1.5), "max_iter": np.int64(3), "tv_norm": np.str_("isotropic")}
    settings = PublishedSettings(**given)
    assert [type(settings.as_dict()[name]) for name in given] == [float, int, str]


@pytest.mark.parametrize("given", [[1, 2.5], (1, 2.5), np.array([1, 2.5], "float32")], ids=["list", "tuple", "array"])
def test_sequences_become_tuples_of_python_numbers(given):
    names = ("lambda_reg", "background", "variance", "haadf_coefficients", "k_factors")
    settings = CalibratedSettings(**dict.fromkeys(names, given))
    for name in names:
        value = settings.as_dict()[name]
        assert value == (1, 2.5) and type(value) is tuple and all(type(v) in (int, float) for v in value)
    assert settings == CalibratedSettings(**settings.as_dict())


def test_dictionaries_are_copied_and_checked_like_sequences():
    given = {"Fe": np.float32(1), "O": 2.5}
    settings = CalibratedSettings(lambda_reg=given, haadf_coefficients=given)
    given["O"] = 9
    assert settings.lambda_reg == {"Fe": 1, "O": 2.5} and type(settings.lambda_reg["Fe"]) is float
    for name, value in (("lambda_reg", {"Fe": 0}), ("k_factors", {}), ("haadf_coefficients", {"Fe": 0})):
        with pytest.raises(ValueError, match=f"^{name} is "):
            CalibratedSettings(**{name: value})


@pytest.mark.parametrize(
    "method, name, counterpart",
    [
        ("calibrated", "lambda_tv", "lambda_reg"),
        ("published", "lambda_reg", "lambda_tv"),
        ("calibrated", "eps", "poisson_offset"),
        ("published", "tol", "change_tol"),
        ("auto", "gamma", "z_exponent"),
        ("published", "haadf_coefficients", "z_weighting"),
    ],
)
def test_a_setting_of_another_method_is_called_so(method, name, counterpart):
    owner = "published" if method != "published" else "calibrated"
    sentence = f"^{name} belongs to method='{owner}'; with method='{method}' it is called {counterpart}.$"
    with pytest.raises(TypeError, match=sentence):
        settings_for(method, **{name: 1})


def test_unknown_names_and_methods_get_the_nearest():
    with pytest.raises(TypeError, match="lambda_chem belongs to method='published'.* has no counterpart"):
        settings_for("calibrated", lambda_chem=1)
    with pytest.raises(TypeError, match="did you mean 'lambda_tv'"):
        settings_for("published", lamda_tv=0.1)
    with pytest.raises(TypeError, match="the settings are gamma, "):
        settings_for("published", qqq=0.1)
    with pytest.raises(ValueError, match="The nearest is 'calibrated'"):
        settings_for("Calibrated")
    with pytest.raises(ValueError, match="The nearest is 'tv'"):
        settings_for("calibrated", regularization="TV")


def test_front_keywords_override_and_none_does_not():
    given = CalibratedSettings(tol=1e-2, lambda_reg=2.0)
    assert settings_for("calibrated", given, lambda_reg=3.0, regularization=None) == CalibratedSettings(
        tol=1e-2, lambda_reg=3.0
    )
    assert given.lambda_reg == 2.0
    base = PublishedSettings(gamma=2)
    assert settings_for("published", None, base, max_iter=7) == PublishedSettings(gamma=2, max_iter=7)
    # settings that are given replace those of the fit before
    assert settings_for("published", PublishedSettings(), base).gamma == 1.6


@pytest.mark.parametrize("method, given", [("published", CalibratedSettings()), ("calibrated", AutoSettings()),
                                           ("auto", CalibratedSettings()), ("published", {"gamma": 2})])  # fmt: skip
def test_settings_of_another_class_are_refused(method, given):
    with pytest.raises(TypeError, match=rf"^settings is of {type(given).__name__}: method='{method}' takes"):
        settings_for(method, given)


def test_numbers_of_replicates():
    assert [number_of_resamples(e) for e in (False, None, True, 5)] == [0, 0, 32, 5]
    for bad in (1, 2.5, "many"):
        with pytest.raises(ValueError, match="^errors is "):
            number_of_resamples(bad)
