"""`method="calibrated"` on HyperSpy signals: what goes in, what is left out, what the result says."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import calibrated_cases
import hyperspy.api as hs
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import assert_untouched, codes, fuse_with, scan_signals, snapshot

import hyperspy_fusion as hf
from hyperspy_fusion.fusion.problems.calibrated import CalibratedProblem, Observation
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.settings import CalibratedSettings
from hyperspy_fusion.methods.fit_checks import diagnostics_of_units


@pytest.fixture
def scan():
    return scan_signals()


def with_data(signal, data):
    return signal._deepcopy_with_new_data(data)


def with_gap(signal, *pixels, value=np.nan):
    data = signal.data.astype(float)
    for pixel in pixels:
        data[pixel] = value
    return with_data(signal, data)


@pytest.fixture
def engine(monkeypatch):
    """The data of the problems that are built."""
    built, build = [], Observation.problem

    def problem(self, settings):
        found = build(self, settings)
        built.append(found.scan)
        return found

    monkeypatch.setattr(Observation, "problem", problem)
    return built


def fuse(maps, haadf, **settings):
    return fuse_with(maps, haadf, method="calibrated", **settings)


def test_metadata_tell_the_fit_and_survive_saving(scan, engine, tmp_path):
    maps, haadf = scan
    fit = fuse(
        maps, haadf, tol=0.1, lambda_reg=(1, 2), z_exponent=2, mask=haadf.data == haadf.data.max()
    ).metadata.Fusion
    assert (fit.method, fit.version, fit.elements) == ("calibrated", hf.__version__, ["Fe", "O"])
    assert fit.converged and 0 < fit.gap <= 0.1 and fit.stop_reason.startswith("The relative duality gap fell to")
    assert fit.noise == "shifted_poisson" and "counts" in fit.noise_sentence
    assert fit.haadf_sigma >= fit.haadf_noise > 0 and fit.parameters.lambda_haadf == 1
    assert fit.haadf_coefficients[0] / fit.haadf_coefficients[1] == pytest.approx((26 / 8) ** 2)
    assert len(fit.haadf_coefficient_errors) == 2 and fit.haadf_prior_scale == 0
    np.testing.assert_array_equal(fit.parameters.lambda_reg, [1, 2])
    assert fit.parameters.regularization == "guided" and fit.parameters.haadf_coefficients == "z_power"
    np.testing.assert_array_equal(fit.n_masked, [1, 1])
    assert fit.haadf_n_masked == 1
    assert fit.cost_history.iteration[0] == 0 and fit.cost_history.iteration[-1] == fit.n_iter
    assert fit.cost_history.gap[-1] == fit.gap and not hasattr(fit, "change")
    fused = fuse(*scan, lambda_reg=[1, 2], haadf_coefficients=np.array([3.0, 1.0]), k_factors=(1, 2))
    for value in leaves(fused.metadata.Fusion.as_dictionary()):
        if isinstance(value, np.ndarray):
            assert value.ndim == 1 and value.dtype.kind in "if"
        else:
            assert isinstance(value, list) or value is None or type(value) in (str, int, float, bool)
    fused.save(tmp_path / "fused.hspy")
    for lazy in (False, True):
        loaded = hs.load(tmp_path / "fused.hspy", lazy=lazy)
        np.testing.assert_allclose(loaded.modelled_haadf().data, fused.modelled_haadf().data, rtol=1e-6)
        assert loaded.plot_convergence().size == 4
    np.testing.assert_array_equal(loaded.metadata.Fusion.parameters.haadf_coefficients, [3, 1])


def leaves(node):
    for value in node.values():
        yield from leaves(value) if isinstance(value, dict) else [value]


def test_modelled_haadf_is_linear_in_the_maps(scan, engine):
    maps, haadf = scan
    model = hf.FusedMultiModal(haadf, maps, method="calibrated")
    output = model.fit(max_iter=2)
    fit = model.as_signal().metadata.Fusion
    expected = fit.haadf_offset + np.tensordot(fit.haadf_coefficients, output.x, axes=1)
    for signal in (model.as_signal(), model):
        np.testing.assert_allclose(signal.modelled_haadf().data, expected, rtol=1e-5)
    np.testing.assert_allclose(model.residual().data, haadf.data - expected, atol=1e-4 * np.ptp(haadf.data))
    part = model.as_signal().inav[:1].modelled_haadf()
    np.testing.assert_allclose(part.data, fit.haadf_offset + fit.haadf_coefficients[0] * output.x[0], rtol=1e-5)


def wedge(range_of_scales, unit=1.0):
    """Counts of a wedge of Pt on Fe, and an image whose slope falls by e for each of so many scales; 0 for a line."""
    y, x = np.mgrid[:48, :48] / 47
    truth = np.stack([12 * x**2 * (y > 0.2), 6 * y + 2 * x])
    signal = np.tensordot([26.0, 4.0], truth, 1)
    scale = np.ptp(signal) / range_of_scales if range_of_scales else np.inf
    image = -scale * np.expm1(-signal / scale) if range_of_scales else signal
    rng = np.random.default_rng(0)
    maps = [hs.signals.Signal2D(rng.poisson(one)) for one in truth]
    for one, element in zip(maps, ("Pt", "Fe"), strict=True):
        one.metadata.General.title = element
    return maps, hs.signals.Signal2D(unit * (5 + image + 0.5 * rng.standard_normal(image.shape)))


@pytest.mark.parametrize("scales, unit, options", [
    (3, 1, {}), (2, 6e4, {"haadf_coefficients": "fit"}), (4, 1e-3, {"k_factors": (0.7, 0.8), "lambda_haadf": 0}),
])  # fmt: skip
def test_the_modelled_image_is_compressed_as_the_measured_one(scales, unit, options, tmp_path, monkeypatch):
    maps, haadf = wedge(scales, unit)
    fused = fuse(maps, haadf, regularization="tv", tol=0.1, **options)
    fit, modelled = fused.metadata.Fusion, fused.modelled_haadf().data
    signal = np.tensordot(fit.haadf_coefficients, fused.data.astype(float), 1)
    for low, high in ((40, 60), (60, 80), (80, 90), (90, 100)):
        inside = (haadf.data >= np.percentile(haadf.data, low)) & (haadf.data <= np.percentile(haadf.data, high))
        assert modelled[inside].mean() == pytest.approx(haadf.data[inside].mean(), rel=0.1)
    assert signal[inside].mean() > 1.2 * haadf.data[inside].mean()  # the linear model
    height, scale = fit.haadf_compression
    np.testing.assert_allclose(modelled, fit.haadf_offset - height * np.expm1(-signal / scale), rtol=1e-4)
    assert fit.haadf_correlation > 0.98 and "haadf-compressed" in fit.diagnostics.codes
    np.testing.assert_allclose(fused.isig[8:40, 4:].modelled_haadf().data, modelled[4:, 8:40], rtol=1e-5)
    fused.save(tmp_path / "fused.hspy")
    np.testing.assert_allclose(hs.load(tmp_path / "fused.hspy").modelled_haadf().data, modelled, rtol=1e-5)
    # no map is another one
    monkeypatch.setattr("hyperspy_fusion.fusion.haadf.forward_model.compression_of", lambda *_: (None, []))
    linear = fuse(maps, haadf, regularization="tv", tol=0.1, **options)
    np.testing.assert_array_equal(linear.data, fused.data)
    np.testing.assert_allclose(linear.modelled_haadf().data, fit.haadf_offset + signal, rtol=1e-4)
    unexplained = (share_unexplained(one.metadata.Fusion.diagnostics) for one in (linear, fused))
    assert next(unexplained) > 25 and next(unexplained) < 20


def share_unexplained(diagnostics):
    """Per cent of the contrast of the HAADF image."""
    found = dict(zip(diagnostics.codes, diagnostics.sentences, strict=True))
    return int(found.get("haadf-unexplained", ": 0%").split(": ")[1].split("%")[0])


@pytest.mark.parametrize("scales, kept, options", [
    (0, 2, {}), (0, 2, {"z_exponent": 0.8}), (0.3, 2, {}), (3, 2, {"haadf_coefficients": (26, 4)}), (3, 1, {}),
])  # fmt: skip
def test_images_with_other_faults_are_not_taken_for_compressed(scales, kept, options):
    maps, haadf = wedge(scales)
    fit = fuse(maps[-kept:], haadf, regularization="tv", tol=0.1, **options).metadata.Fusion
    assert not fit.has_item("haadf_compression")


def test_fit_output_has_the_gap_and_says_if_not_reached(scan, engine, caplog):
    model = hf.FusedMultiModal(scan[1], scan[0], method="calibrated")
    output = model.fit(max_iter=4)
    assert output.gap > 1e-4 and (output.nit, output.success) == (4, False) and np.isnan(output.change)
    assert f"gap is {output.gap:.2g}, above the tolerance: raise max_iter" in output.message
    assert model.fit(tol=0.2, max_iter=500).success
    assert np.isnan(hf.FusedMultiModal(scan[1], scan[0], method="published").fit(max_iter=1).gap)
    fused = fuse(*scan, max_iter=6)
    said = [w for w in fused.metadata.Fusion.warnings if "gap is" in w]
    assert said and "not-converged" in codes(caplog) and not fused.metadata.Fusion.converged
    assert not any("duality gap" in w for w in fuse(*scan).metadata.Fusion.warnings)


def changed(monkeypatch, **fields):
    """Let the engine return another result."""

    solve = CalibratedProblem.solve

    def other(*args):
        result, state = solve(*args)
        return replace(result, **fields), state

    monkeypatch.setattr(CalibratedProblem, "solve", other)


@pytest.mark.parametrize("settings", [{}, {"keep_totals": False}])
def test_advice_names_settings_of_the_method(scan, engine, caplog, monkeypatch, settings):
    """Whatever goes wrong, no setting of the other method is recommended."""
    maps, haadf = scan
    noise = np.random.default_rng(0).random(haadf.data.shape)
    lost = [with_data(m, m.data - 1) for m in maps]
    changed(monkeypatch, maps=np.ones((2, 12, 15), "float32"))
    caplog.set_level("INFO", "hyperspy_fusion")
    fuse(lost, with_data(haadf, noise), max_iter=2, **settings)
    reported = {getattr(record, "code", "") for record in caplog.records}
    assert reported >= {"negative-values", "totals-changed", "not-converged"}
    for name in ("lambda_tv", "lambda_chem", "eps", "published", "clip at zero"):
        assert name not in caplog.text


def test_totals_are_those_of_valid_pixels_and_net(scan, engine):
    maps, haadf = scan
    fused = fuse(maps, haadf, background=(1.0, 0.5), max_iter=1)
    net = np.array([m.data.sum() for m in maps]) - np.array([1.0, 0.5]) * haadf.data.size
    np.testing.assert_allclose(fused.metadata.Fusion.total_ratios, fused.data.sum(axis=(1, 2)) / net, rtol=1e-5)
    mask = np.zeros((12, 15), bool)
    mask[:, :5] = True
    fused = fuse(maps, haadf, mask=mask, max_iter=2)
    expected = [f[~mask].sum() / m.data[~mask].sum() for f, m in zip(fused.data, maps, strict=True)]
    np.testing.assert_allclose(fused.metadata.Fusion.total_ratios, expected, rtol=1e-5)


@pytest.mark.parametrize("missing, phantom, counts", [("bright half", "core_shell", 4), ("left half", "interface", 4)])
def test_half_of_an_image_is_worth_more_than_none(phantom, counts, missing):
    phantom = hf.data.PHANTOMS[phantom]((32, 32), counts=counts)
    maps, haadf = phantom.signals()
    if missing == "bright half":
        haadf.data = np.minimum(haadf.data, np.median(haadf.data))
    else:
        haadf.data[:, :16] = np.nan
    without = fuse(maps, haadf, lambda_haadf=0, regularization="tgv")
    fused, *others = (fuse(maps, haadf, **options) for options in ({}, {"lambda_haadf": 0}))
    error, worse, alone = (np.mean((f.data - phantom.truth) ** 2, axis=(1, 2)) for f in (fused, without, *others))
    assert np.mean(np.log10(error / worse)) < 0 and np.mean(np.log10(alone / worse)) < 0


GIVEN, FITTED = {}, {"haadf_coefficients": "fit", "haadf_blur": "fit"}


@pytest.mark.parametrize("left, settings_of", [
    (np.s_[3:6, 4:8], {"calibrated": GIVEN, "auto": FITTED}), (np.s_[5, 1:13], {"calibrated": FITTED, "auto": GIVEN}),
    (np.s_[::6, ::3], {"calibrated": GIVEN, "auto": FITTED}),
])  # fmt: skip
@pytest.mark.parametrize("method", ["calibrated", "auto"])
def test_what_can_be_done_with_few_valid_pixels_is_done(scan, left, method, settings_of):
    maps, haadf = scan
    mask = np.ones((12, 15), bool)
    mask[left] = False
    fused = fuse_with(maps, haadf, mask=mask, method=method, errors=2, max_iter=200, **settings_of[method])
    assert np.isfinite(fused.data).all() and np.isfinite(fused.standard_errors().data).all()
    found = fused.metadata.Fusion.diagnostics
    assert "no-haadf-model" in found.codes and "haadf-poorly-explained" not in found.codes
    assert not any("weights" in sentence for sentence in found.sentences)
    mask[left], mask[3, 3] = True, False
    with pytest.raises(ValueError, match="All maps .* are constant"):
        fuse_with(maps, haadf, mask=mask, method=method)


def without_contrast(haadf, how):
    every_third = np.arange(haadf.data.size).reshape(haadf.data.shape) % 3 == 0
    damaged = {
        "constant": np.full(every_third.shape, 65535, np.uint16),
        "NaN": np.full(every_third.shape, np.nan),
        "masked": np.ma.masked_all(every_third.shape),
        "in part": np.where(every_third, np.nan, 0.5),
    }
    return with_data(haadf, damaged[how])


@pytest.mark.parametrize(
    "how, method, settings",
    [
        pytest.param("constant", "auto", {}, marks=pytest.mark.slow),
        pytest.param(
            *("NaN", "auto", {"regularization": "guided", "lambda_haadf": 1.0, "haadf_coefficients": (3.0, 1.0)}),
            marks=pytest.mark.nightly,
        ),
        ("masked", "calibrated", {}),
        ("in part", "calibrated", {"haadf_coefficients": "fit", "haadf_blur": "fit", "regularization": "directional"}),
    ],
)
def test_an_image_without_contrast_is_not_used(how, method, settings, tmp_path):
    maps, haadf = scan_signals(24, 24)
    flat = without_contrast(haadf, how)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        fused = fuse_with(maps, flat, errors=2, max_iter=60, method=method, **settings)
    same = fuse_with(maps, haadf, method=method, lambda_haadf=0.0, regularization="tgv", max_iter=60)
    np.testing.assert_array_equal(fused.data, same.data)
    fit = fused.metadata.Fusion
    found = dict(zip(fit.diagnostics.codes, fit.diagnostics.severities, strict=True))
    assert {code: found[code] for code in found if "haadf" in code} == {"haadf-constant": "note"}
    (sentence,) = [words for words in fit.warnings if "fused without it" in words]
    what = {"constant": "saturated, at 65535", "in part": "constant in its"}.get(how, "without a valid pixel")
    assert what in sentence
    assert (fit.parameters.regularization, fit.parameters.lambda_haadf) == ("tgv", 0)
    assert np.isfinite(fused.standard_errors().data).all() and fused.plot_fusion() is not None
    fused.save(tmp_path / "fused.hspy")
    modelled = hs.load(tmp_path / "fused.hspy").modelled_haadf().data
    expected = {"constant": 65535, "in part": 0.5}.get(how, 0)
    np.testing.assert_array_equal(modelled, np.full(modelled.shape, expected))
    plt.close("all")


@pytest.mark.parametrize("how", ["constant", "masked"])
def test_a_model_without_an_image_answers_all_questions(how):
    maps, haadf = scan_signals(16, 16)
    model = hf.FusedMultiModal(without_contrast(haadf, how), maps, method="calibrated")
    model.fit(max_iter=20)
    assert np.all(model.attainable_gain().data == 1)
    assert not np.any(model.attribution()["haadf"].data) and np.isfinite(model.normalised_residuals().data).all()
    assert model.residual().data.shape == model.modelled_haadf().data.shape == (16, 16)
    assert model.fit(max_iter=20).nit == 40
    if how == "constant":  # on finer pixels too, where resampling rounds
        fine = model.haadf.deepcopy()
        fine.data = np.full((48, 48), 0.1)
        for axis in fine.axes_manager.signal_axes:
            axis.scale /= 3
        fused = hf.fuse(maps, fine, method="calibrated", register="calibration", max_iter=2, show_progressbar=False)
        assert "haadf-constant" in fused.metadata.Fusion.diagnostics.codes
    with pytest.raises(ValueError, match=r"No shift|no pixel that is a number"):
        hf.fuse(maps, model.haadf, register=True, show_progressbar=False)


@pytest.mark.parametrize(
    "dtype, method", [("u1", "auto"), ("i2", "published"), ("u4", "auto"), ("f4", "published"), ("f4", "auto")]
)
def test_an_image_at_the_end_of_its_range_is_called_saturated(dtype, method):
    maps, haadf = scan_signals(16, 16)
    top = 4095 if dtype == "f4" else np.iinfo(dtype).max
    for value, words in ((top, f"saturated, at {top} in"), (top - 1, "constant")):
        flat = with_data(haadf, np.full((16, 16), value, dtype))
        if value >= 2**24 and words == "constant":
            continue  # single precision does not know them apart
        if method == "published":
            with pytest.raises(ValueError, match=f"HAADF image is {words}"):
                hf.fuse(maps, flat, method=method)
        else:
            found = fuse_with(maps, flat, method=method, max_iter=2).metadata.Fusion.warnings
            assert any(f"HAADF image is {words}" in sentence for sentence in found)


def test_constant_maps_are_left_out(scan, engine):
    maps, haadf = scan
    flat = with_gap(with_data(maps[0], np.full((12, 15), 3.0)), (4, 4))
    flat.metadata.Sample.elements = ["S"]
    fused = fuse([maps[0], flat, maps[1]], haadf, lambda_reg=(1, 5, 2), background=(1, 5, 0))
    np.testing.assert_array_equal(fused.get_map("S").data, flat.data)
    assert engine[0].elements == ["Fe", "O"] and len(engine[0].maps) == 2
    np.testing.assert_array_equal(fused.metadata.Fusion.map_scales > 0, [True, False, True])
    assert fused.metadata.Fusion.constant_elements == ["S"]
    fit = fused.metadata.Fusion
    expected = fit.haadf_offset + np.tensordot(np.array(fit.haadf_coefficients)[[0, 2]], fused.data[[0, 2]], axes=1)
    np.testing.assert_allclose(fused.modelled_haadf().data, expected, rtol=1e-5)
    maps, haadf = scan
    mask = np.zeros((12, 15), bool)
    mask[0, 0] = True
    flat = np.full((12, 15), 3.0)
    flat[0, 0] = 9
    fused = fuse([maps[0], with_data(maps[1], flat)], haadf, mask=mask)
    assert fused.metadata.Fusion.constant_elements == ["O"]
    with pytest.raises(ValueError, match="HAADF image is constant.*method='calibrated', which fuses the maps without"):
        hf.fuse(maps, with_data(haadf, np.full((12, 15), 3.0)), method="published")


@pytest.mark.parametrize(
    "name, method",
    [
        ("variance", "calibrated"),
        ("haadf_coefficients", "calibrated"),
        pytest.param("lambda_reg", "auto", marks=pytest.mark.slow),
    ],
)
def test_settings_per_element_count_the_maps_that_are_given(scan, name, method):
    maps, haadf = scan
    zero = with_data(maps[0], np.zeros((12, 15)))
    zero.metadata.Sample.elements, zero.metadata.General.title = ["S"], "S"
    options = {"method": method, "haadf_coefficients": "fit", "max_iter": 20}
    options |= {"noise": "gaussian" if name == "variance" else "auto", "regularization": "tv"}
    options |= {} if name == "haadf_coefficients" else {"lambda_haadf": 0}
    expected = fuse_with(maps, haadf, **options | {name: (1, 0.5)}).data
    for values in ((1, 9, 0.5), np.array([1, 9, 0.5]), {"O": 0.5, "Fe": 1}, {"O": 0.5, "S": 9, "Fe": 1.0}):
        fused = fuse_with([maps[0], zero, maps[1]], haadf, **options | {name: values})
        np.testing.assert_array_equal(fused.data[[0, 2]], expected)
        np.testing.assert_array_equal(fused.metadata.Fusion.parameters[name][[0, 2]], [1, 0.5])
    wrong = {"Fe": 1, "O": 1, "Xx": 1}
    for values, why in (
        ((1, 2), r"2 values and there are 3 maps \(Fe, S, O\)"),
        ({"Fe": 1}, "no value for O: give"),
        (wrong, "a value for Xx, of which there is no map"),
    ):
        with pytest.raises(ValueError, match=f"^{name} has .*{why}"):
            fuse_with([maps[0], zero, maps[1]], haadf, **options | {name: values})


def test_refit_continues_or_begins_a_new_history(scan, engine):
    model = hf.FusedMultiModal(scan[1], scan[0], method="calibrated")
    model.fit(max_iter=50, tol=1e-9)
    output = model.fit(max_iter=50)
    assert output.nit == 100 == output.cost_history["iteration"][-1]
    np.testing.assert_allclose(output.x, fuse(*scan, max_iter=100, tol=1e-9).data, rtol=1e-6)
    model = hf.FusedMultiModal(scan[1], scan[0], method="calibrated")
    model.fit(max_iter=4)
    output = model.fit(max_iter=1, lambda_reg=3)
    assert output.nit == 1 and model.settings.max_iter == 1 and model.settings.lambda_reg == 3


SEVERAL = """
import os, threading, numba
from calibrated_cases import hash_of_fit
fit = lambda method: done.append(hash_of_fit(method))
done = []
started = [threading.Thread(target=fit, args=(m,)) for m in 2 * ("calibrated", "published")]
[t.start() for t in started], [t.join() for t in started]
print(numba.threading_layer(), len(done), *sorted(set(done)), flush=True)
if os.fork():
    print(os.wait()[1])
else:
    try:
        fit("calibrated")
        print(done[-1], flush=True)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(
    "layer, library",
    [("omp", "omppool"), pytest.param("workqueue", "workqueue", marks=pytest.mark.nightly), ("tbb", "tbbpool")],
)
def test_threads_and_forks_end_in_the_same_maps_or_in_a_sentence(layer, library):
    try:
        import_module(f"numba.np.ufunc.{library}")
    except ImportError as error:
        pytest.skip(f"Numba has no {layer}: {error}")
    paths = os.pathsep.join([str(Path(calibrated_cases.__file__).parent), *filter(None, sys.path)])
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2", "PYTHONPATH": paths}
    command = [sys.executable, "-W", "ignore", "-c", SEVERAL]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-1000:]
    calibrated, published = (calibrated_cases.hash_of_fit(method) for method in ("calibrated", "published"))
    of_threads, of_fork, status = [line for line in ended.stdout.splitlines() if "Hyperspy |" not in line]
    assert of_threads.split() == [layer, "4", *sorted((calibrated, published))]
    refused = layer == "omp" and sys.platform == "linux"
    assert ("multiprocessing.get_context('spawn'), or" in of_fork) if refused else of_fork == calibrated
    assert status == "0"


def test_divergence_and_wrong_settings_are_told(scan, engine, monkeypatch):
    with pytest.raises(TypeError, match="it is called lambda_reg"):
        fuse("no maps", "no image", lambda_tv=0.1)
    with pytest.raises(ValueError, match="eta is 1: it must be at least 0 and below 1"):
        fuse("no maps", "no image", eta=1)
    changed(monkeypatch, reason=StopReason.NOT_FINITE)
    with pytest.raises(FloatingPointError, match="infinite or NaN: take settings nearer to the defaults, or"):
        fuse(*scan)


EXTREME = [{"lambda_reg": 1e-30}, {"lambda_reg": 1e30}, {"lambda_haadf": 1e30}, {"background": (1e30, 0)}]
EXTREME += [{"lambda_reg": (1, 1e30)}, {"guide_blur": 1e30}]
EXTREME += [{"variance": 1e-30, "noise": "gaussian", "regularization": "tv"}]
EXTREME += [{"lambda_reg": 1e-30, "lambda_haadf": 1e30}, {"variance": 1e30, "noise": "gaussian"}]


@pytest.mark.parametrize(
    "settings, method",
    [(one, "calibrated") for one in EXTREME]
    + [pytest.param(one, "auto", marks=[pytest.mark.nightly] * (i > 1)) for i, one in enumerate(EXTREME)],
    ids=str,
)
def test_extreme_settings_end_in_maps_or_in_a_sentence(scan, settings, method, recwarn):
    try:
        assert np.isfinite(fuse_with(*scan, method=method, max_iter=50, **settings).data).all()
    except FloatingPointError as error:
        assert "nearer to the defaults" in str(error) and "lambda_chem" not in str(error)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


@pytest.mark.parametrize("factor", [1e-29, 1e25])
def test_the_noise_model_does_not_follow_the_unit(scan, factor):
    maps, haadf = scan
    expected = fuse(maps, haadf)
    fused = fuse([with_data(m, m.data * factor) for m in maps], with_data(haadf, haadf.data * factor))
    assert fused.metadata.Fusion.noise == expected.metadata.Fusion.noise
    np.testing.assert_allclose(fused.data / factor, expected.data, rtol=1e-3, atol=1e-3)


def test_the_convergence_is_shown(scan, engine, capsys):
    fuse(*scan, tol=0.02, show_progressbar=True)
    said = capsys.readouterr().err
    assert "100%" in said and "done" in said
    axes = fuse(*scan, max_iter=6, lambda_reg=(1, 2)).plot_convergence()
    assert [ax.get_title() for ax in axes] == [
        "HAADF, weight 1",
        "maps",
        "penalty 'guided', weight 1, 2",
        axes[3].get_title(),
    ]
    assert axes[3].get_title().startswith("duality gap, ") and axes[0].lines[0].get_xdata()[-1] == 6


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_without_a_number_are_left_out(scan, engine, caplog, value):
    maps, haadf = scan
    damaged = [with_gap(maps[0], (2, 3), (4, 5), value=value), maps[1]]
    fused = fuse(damaged, with_gap(haadf, (7, 8), value=value))
    assert np.isfinite(fused.data).all()
    problem = engine[0]
    assert [np.argwhere(~keep).tolist() for keep in problem.valid] == [[[2, 3], [4, 5]], []]
    assert np.argwhere(~problem.haadf_valid).tolist() == [[7, 8]]
    fit = fused.metadata.Fusion
    assert fit.n_masked.tolist() == [2, 0] and fit.haadf_n_masked == 1
    for sentence in ("are left out and filled in from those around them, in the map of Fe (2).",
                     "The HAADF image is NaN or infinite in 1 pixel, where"):  # fmt: skip
        assert any(sentence in w for w in fit.warnings)
    assert 0.3 < fit.haadf_correlation <= 1
    shown = [ax.images[0].get_clim() for ax in fused.plot_fusion().flat if ax.images]
    assert np.isfinite(shown).all() and len(shown) == 6


def test_saturated_or_missing_pixels_of_any_form_are_left_out(scan, engine, caplog):
    maps, haadf = scan
    masked = with_data(maps[0], np.ma.masked_equal(maps[0].data.astype("uint8"), maps[0].data.max()))
    fuse([masked, with_gap(maps[1], (1, 1)).as_lazy()], with_gap(haadf, (7, 8)).as_lazy())
    expected = maps[0].data == maps[0].data.max()
    np.testing.assert_array_equal(~engine[0].valid[0], expected)
    assert not engine[0].valid[1, 1, 1] and not engine[0].haadf_valid[7, 8]
    maps, haadf = scan_signals(30, 30)
    bright = with_data(haadf, np.minimum(haadf.data, np.percentile(haadf.data, 70).astype("uint16")))
    fused = fuse(maps, bright)
    assert engine[1].valid.all()
    np.testing.assert_array_equal(~engine[1].haadf_valid, bright.data == bright.data.max())
    number = fused.metadata.Fusion.haadf_n_masked
    assert number >= 80 and "saturated-haadf-pixels" in fused.metadata.Fusion.diagnostics.codes
    assert fused.metadata.Fusion.n_masked.tolist() == [0, 0]


def test_the_published_method_names_the_one_that_takes_gaps(scan):
    maps, haadf = scan
    for damaged in ((maps, with_gap(haadf, (0, 0))), ([with_gap(maps[0], (0, 0)), maps[1]], haadf)):
        with pytest.raises(ValueError, match="NaN, infinite or masked.*fuse with method='calibrated'"):
            hf.fuse(*damaged, method="published")
    with pytest.raises(ValueError, match="pass method='calibrated'"):
        hf.fuse(maps, haadf, mask=np.zeros((12, 15), bool), method="published")


def masks(haadf):
    """The same mask in every form."""
    data = np.zeros((12, 15), bool)
    data[2:5, 3] = True
    signal = with_data(haadf, data)
    return {"array": data, "signal": signal, "lazy": signal.as_lazy(), "navigation": signal.T, "list": data.tolist()}


@pytest.mark.parametrize("form", masks(scan_signals()[1]))
def test_true_in_a_mask_leaves_a_pixel_out_of_maps_and_haadf(scan, engine, form):
    maps, haadf = scan
    mask = masks(haadf)[form]
    before = snapshot(mask) if hasattr(mask, "metadata") else None
    fused = fuse(maps, haadf, mask=mask)
    expected = np.zeros((12, 15), bool)
    expected[2:5, 3] = True
    for keep in (*engine[0].valid, engine[0].haadf_valid):
        np.testing.assert_array_equal(~keep, expected)
    assert fused.metadata.Fusion.n_masked.tolist() == [3, 3]
    if before:
        assert_untouched(mask, before)


def test_mask_is_taken_by_every_way_in(scan, engine):
    maps, haadf = scan
    mask = haadf > 4 * int(haadf.data.mean())
    hf.element_maps(maps).fuse(haadf, method="calibrated", mask=haadf > int(haadf.data.mean()))
    hf.FusedMultiModal(haadf, maps, method="calibrated", mask=haadf > int(haadf.data.mean())).fit()
    for problem in engine:
        np.testing.assert_array_equal(~problem.haadf_valid, haadf.data > int(haadf.data.mean()))
    assert not mask.data.any()


@pytest.mark.parametrize(
    "mask, error, sentence",
    [
        (np.zeros((12, 14), bool), ValueError, r"mask has shape \(12, 14\) and the maps \(12, 15\)"),
        (np.zeros((12, 15), int), TypeError, "mask has dtype int64: it must be bool, True where"),
        (np.ones((12, 15), bool), ValueError, "No pixel of the map of Fe, O is left to count"),
        (hs.signals.Signal2D(np.zeros((15, 12), bool)), ValueError, "The mask has the shape .*same scan"),
    ],
)
def test_bad_masks_get_a_sentence(scan, mask, error, sentence):
    with pytest.raises(error, match=sentence):
        fuse(*scan, mask=mask)


def test_masks_that_leave_too_little(scan, engine, caplog):
    maps, haadf = scan
    with pytest.raises(ValueError, match="No pixel of the map of O is left to count"):
        fuse([maps[0], with_data(maps[1], maps[1].data * np.nan)], haadf)
    mask = np.ones((12, 15), bool)
    mask[3:9, 3:12] = False
    fuse(*scan, mask=mask)
    assert "The mask leaves out most pixels: check that True means left out." in caplog.text


@pytest.fixture(scope="module")
def particles():
    """Maps and HAADF image of a phantom with smooth particles, and the true maps."""
    phantom = hf.data.core_shell((24, 28))
    return *phantom.signals(), phantom.truth


def test_fuse_fit_and_method_are_one(particles):
    maps, haadf, _ = particles
    expected = fuse(maps, haadf, tol=1e-2, regularization="directional")
    assert expected.metadata.Fusion.converged and expected.metadata.Fusion.gap <= 1e-2
    stack = hf.element_maps(maps)
    np.testing.assert_array_equal(
        fuse_with(stack, haadf, method="calibrated", tol=1e-2, regularization="directional").data, expected.data
    )
    model = hf.FusedMultiModal(haadf, maps, method="calibrated")
    np.testing.assert_array_equal(model.fit(tol=1e-2, regularization="directional").x, expected.data)
    # as many iterations again, or fewer, to a tighter tolerance, in the same history
    output = model.fit(tol=5e-3)
    assert output.success and output.cost_history["iteration"][0] == 0
    assert output.nit == output.cost_history["iteration"][-1] > expected.metadata.Fusion.n_iter


@pytest.mark.parametrize("regularization", ["guided", "directional", "tgv", "tv", None])
def test_totals_are_kept_and_maps_come_nearer_to_the_truth(particles, regularization):
    maps, haadf, truth = particles
    fused = fuse(maps, haadf, regularization=regularization, tol=1e-2)
    np.testing.assert_allclose(fused.metadata.Fusion.total_ratios, 1, rtol=1e-4)
    np.testing.assert_allclose(fused.modelled_haadf().data, haadf.data, atol=0.2 * np.ptp(haadf.data))
    if regularization:
        raw = np.array([m.data for m in maps])
        assert np.sum((fused.data - truth) ** 2) < np.sum((raw - truth) ** 2) / 3


def test_scale_of_the_input_is_kept(particles):
    maps, haadf, _ = particles
    expected = fuse(maps, haadf, regularization="directional", tol=1e-2)
    larger = [with_data(m, m.data * 0.25) for m in maps], with_data(haadf, haadf.data * 7.0)
    scaled = fuse(*larger, regularization="directional", tol=1e-2)
    np.testing.assert_allclose(scaled.data, expected.data / 4, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(scaled.modelled_haadf().data, 7 * expected.modelled_haadf().data, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(scaled.metadata.Fusion.counts_scale, 0.25)


def test_left_out_pixels_are_filled_in_whatever_they_hold(particles):
    maps, haadf, truth = particles
    hole = np.zeros(haadf.data.shape, bool)
    hole[10:13, 11:14] = True

    def fused(value, mask):
        return fuse([with_data(m, np.where(hole, value, m.data)) for m in maps], haadf, mask=mask, tol=1e-2)

    masked, unmasked = fused(1000.0, hole), fused(np.nan, None)
    np.testing.assert_array_equal(masked.data, fused(np.nan, hole).data)
    assert masked.data.max() < 1.2 * truth.max()
    # where the HAADF image is known it says what is missing
    assert unmasked.metadata.Fusion.n_masked.tolist() == [9, 9, 9] == masked.metadata.Fusion.n_masked.tolist()
    np.testing.assert_allclose(unmasked.data[:, hole].mean(axis=1), truth[:, hole].mean(axis=1), atol=2)


def test_refit_with_another_penalty_starts_from_the_maps(particles):
    maps, haadf, _ = particles
    model = hf.FusedMultiModal(haadf, maps, method="calibrated")
    model.fit(regularization="directional", tol=1e-3)
    expected = fuse(maps, haadf, regularization="tv", lambda_reg=(0.5, 1, 2), tol=1e-3)
    output = model.fit(regularization="tv", lambda_reg=(0.5, 1, 2))
    assert output.success and output.cost_history["iteration"][0] == 0
    assert output.fun == pytest.approx(expected.metadata.Fusion.cost_history.total[-1], rel=2e-3)
    cold = expected.metadata.Fusion.cost_history.total[0]
    assert output.cost_history["total"][0] < cold


@pytest.mark.parametrize(
    "counts_scale, settings, number",
    [
        ([0.1, 0.11, np.nan], {}, 1),
        ([1.0, 1.0, np.nan], {}, 0),
        ([0.1, np.nan, np.nan], {}, 0),
        ([0.1, 0.11], {"haadf_coefficients": "fit"}, 0),
        ([0.1, 0.11], {"k_factors": (1.0, 2.0)}, 0),
        ([0.1, 0.11], {"lambda_haadf": 0}, 0),
    ],
)
def test_maps_in_units_of_their_own_are_reported(counts_scale, settings, number):
    found = diagnostics_of_units(np.array(counts_scale), CalibratedSettings(**settings))
    assert [d.code for d in found] == ["unequal-units"] * number
