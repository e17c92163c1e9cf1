import numpy as np
import pytest

from hyperspy_fusion.fusion.settings import PublishedSettings, settings_for


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
        ("warm_start", 1, "warm_start is 1"),
        ("dtype", "float16", "dtype is 'float16'"),
    ],
)
def test_bad_values_get_a_sentence(option, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        PublishedSettings(**{option: value})


def test_numpy_scalars_become_python_ones():
    given = {
        "gamma": np.float32(1.5),
        "max_iter": np.int64(3),
        "warm_start": np.bool_(True),
        "tv_norm": np.str_("isotropic"),
    }
    settings = PublishedSettings(**given)
    assert [type(settings.as_dict()[name]) for name in given] == [float, int, bool, str]


def test_unknown_options_get_the_nearest_name():
    with pytest.raises(TypeError, match="has no option 'lamda_tv'; did you mean 'lambda_tv'"):
        settings_for("published", {"lamda_tv": 0.1})
    with pytest.raises(TypeError, match="the options are gamma, "):
        settings_for("published", {"qqq": 0.1})
    with pytest.raises(ValueError, match="method is 'guess': it must be one of 'published'"):
        settings_for("guess", {})


def test_settings_build_on_each_other():
    first = settings_for("published", {"gamma": 2, "max_iter": 5})
    second = settings_for("published", {"max_iter": 7}, base=first)
    assert (second.gamma, second.max_iter) == (2, 7)
    assert first.max_iter == 5
