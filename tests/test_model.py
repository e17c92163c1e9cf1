"""`fuse`, `s.fuse` and `FusedMultiModal`: signals in, signals out."""

import inspect
import os
import pydoc
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import hyperspy.api as hs
import numpy as np
import pytest
import twin
from helpers import assert_untouched, fit_with, fuse_with, scan_signals, shared, snapshot
from hyperspy.signal import BaseSignal

import hyperspy_fusion as hf
import hyperspy_fusion.model  # noqa: F401
from hyperspy_fusion.api import attach_fuse


@pytest.fixture
def scan():
    return scan_signals()


def test_result_keeps_axes_and_its_metadata_tell_the_fit(scan):
    maps, haadf = scan
    fused = hf.fuse(maps, haadf, method="published")
    assert type(fused) is hf.ElementMaps and fused.data.shape == (2, 12, 15) and fused.data.dtype == np.float32
    x, y = fused.axes_manager.signal_axes
    assert (x.scale, x.offset, x.units, y.scale, y.offset, y.units) == (0.5, 3.0, "nm", 0.4, -2.0, "nm")
    assert fused.elements == ["Fe", "O"] == fused.metadata.Sample.elements
    assert fused.metadata.Acquisition_instrument.TEM.beam_energy == 200
    assert fused.metadata.Signal.signal_type == "element_maps"
    assert fused.metadata.General.title.startswith("Fused maps of ")
    fit = fuse_with(maps, haadf, max_iter=4, tv_norm="anisotropic").metadata.Fusion
    assert (fit.method, fit.n_iter, fit.converged, fit.version) == ("published", 4, False, hf.__version__)
    assert fit.stop_reason.endswith(".")
    assert list(fit.atomic_numbers) == [26, 8]
    assert fit.parameters.tv_norm == "anisotropic" and fit.parameters.lambda_haadf == 0.5
    np.testing.assert_allclose(fit.haadf_coefficients, [26 / 17, 8 / 17])
    np.testing.assert_allclose(fit.map_scales, [np.ptp(m.data) for m in maps])
    assert all(fit.cost_history[name].shape == (5,) for name in ("haadf", "chem", "tv", "total"))
    weights = fit.parameters
    total = sum(fit.cost_history[n] * weights[f"lambda_{n}"] for n in ("haadf", "chem", "tv"))
    np.testing.assert_allclose(fit.cost_history.total, total)


def test_forms_of_calls_and_settings_are_one(scan):
    maps, haadf = scan
    stack = hf.element_maps(maps)
    expected = fuse_with(maps, haadf, gamma=2).data
    np.testing.assert_array_equal(fuse_with(stack, haadf, gamma=2).data, expected)
    np.testing.assert_array_equal(fuse_with(hs.stack(maps), haadf, gamma=2).data, expected)
    np.testing.assert_array_equal(fit_with(hf.FusedMultiModal(haadf, maps, method="published"), gamma=2).x, expected)
    fused = hf.fuse(*scan, settings=hf.PublishedSettings(gamma=2, max_iter=9), max_iter=3, method="published")
    assert fused.metadata.Fusion.parameters.gamma == 2 and fused.metadata.Fusion.n_iter == 3
    np.testing.assert_array_equal(fused.data, fuse_with(*scan, gamma=2, max_iter=3).data)


def test_order_of_bytes_and_integers_do_not_matter(scan):
    maps, haadf = scan
    expected = hf.fuse(maps, haadf, method="published").data
    for dtype in ("uint8", ">f4", ">u2"):
        other = [m.deepcopy() for m in maps]
        for m in other:
            m.data = m.data.astype(dtype)
        image = haadf.deepcopy()
        image.data = image.data.astype(">u2")
        np.testing.assert_array_equal(hf.fuse(other, image, method="published").data, expected)


@pytest.mark.parametrize("change", [lambda maps, haadf: (maps, haadf.T), lambda maps, haadf: (maps, haadf.as_lazy()),
                                    lambda maps, haadf: ([m.as_lazy() for m in maps], haadf)],
                         ids=["navigation", "lazy image", "lazy maps"])  # fmt: skip
def test_form_of_the_signals_does_not_matter(scan, change):
    fused = hf.fuse(*change(*scan), method="published")
    assert type(fused) is hf.ElementMaps
    np.testing.assert_array_equal(fused.data, hf.fuse(*scan, method="published").data)


def test_without_method_the_default_is_taken(scan):
    """The one place where calls leave out the method."""
    default = inspect.signature(hf.fuse).parameters["method"].default
    few = {"max_iter": 2, "regularization": "tv"}
    fused = hf.fuse(*scan, **few)
    assert fused.metadata.Fusion.method == hf.FusedMultiModal(scan[1], scan[0]).method == default
    np.testing.assert_array_equal(fused.data, hf.fuse(*scan, method=default, **few).data)


def test_every_door_has_one_signature_and_text():
    main = inspect.signature(hf.fuse).parameters
    assert len(main) <= 22 and len(pydoc.render_doc(hf.fuse).splitlines()) <= 80
    for function in (BaseSignal.fuse, hf.ElementMaps.fuse):
        own = inspect.signature(function).parameters
        assert list(own) == ["self", *list(main)[1:]]
        assert all(own[name] == main[name] for name in list(main)[1:])
        assert "maps : list" not in function.__doc__ and "haadf : BaseSignal" in function.__doc__
    model, fit = (inspect.signature(f).parameters for f in (hf.FusedMultiModal.__init__, hf.FusedMultiModal.fit))
    assert set(main) - set(model) - set(fit) == {"errors"}


@pytest.mark.parametrize(
    "options, error, sentence",
    [
        ({"lambda_tv": -1}, ValueError, "lambda_tv is -1"),
        ({"lambda_tv": 1, "method": "calibrated"}, TypeError, "it is called lambda_reg"),
        ({"background": 1.0}, TypeError, "background belongs to method='calibrated'"),
        ({"method": "best"}, ValueError, "method is 'best'"),
        ({"num_workers": 0}, ValueError, "num_workers is 0"),
        ({"register": "both"}, ValueError, "register is 'both'"),
        ({"errors": True}, ValueError, "has no model of the noise"),
        ({"settings": hf.CalibratedSettings()}, TypeError, "takes PublishedSettings"),
        ({"mask": np.zeros((12, 15), bool)}, ValueError, "needs every pixel"),
        ({"edges": ["O_K"]}, ValueError, "edges"),
    ],
)
def test_bad_keywords_are_refused(scan, options, error, sentence):
    with pytest.raises(error, match=sentence):
        hf.fuse(*scan, **{"method": "published"} | options)


def test_known_counts_and_estimators_of_the_background(scan):
    maps, haadf = scan
    options = {"method": "calibrated", "max_iter": 30}
    counts = fuse_with(maps, haadf, background=(0.5, 0.25), **options)
    assert tuple(counts.metadata.Fusion.parameters.background) == (0.5, 0.25)
    under = [with_data(m, np.full(m.data.shape, b)) for m, b in zip(maps, (0.5, 0.25), strict=True)]
    as_maps = fuse_with(maps, haadf, background=under, **options)
    assert as_maps.known_background is None and as_maps.metadata.Fusion.parameters.background == 0
    np.testing.assert_allclose(as_maps.data, counts.data, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="found in the spectra|spectrum image"):
        fuse_with(maps, haadf, background="windows", **options)


def codes(model):
    return [d.code for d in model.diagnostics]


def fitted(maps, haadf, **options):
    model = hf.FusedMultiModal(haadf, maps, method="published")
    fit_with(model, **options)
    return model


def test_a_diagnostic_is_reported_once_and_kept(scan, caplog):
    model = fitted(*scan)
    found = model.as_signal().metadata.Fusion
    assert codes(model) == list(found.diagnostics.codes) == ["totals-changed", "smoothing-limited"]
    assert list(found.warnings) == model.warnings == [model.diagnostics[0].sentence]
    ratios = [float(model[e].data.sum() / m.data.sum()) for e, m in zip(("Fe", "O"), scan[0], strict=True)]
    np.testing.assert_allclose(found.total_ratios, ratios, rtol=1e-5)
    assert f"Fe {ratios[0]:.0%}, O {ratios[1]:.0%}" in model.warnings[0]
    fit_with(model, gamma=1.6, max_iter=30)
    assert caplog.text.count(model.diagnostics[0].headline) == 1


@pytest.mark.parametrize("weight, inner, severity", [(0.15, 3, "information"), (0.6, 3, "serious"), (5, 3, "serious")])
def test_inner_iterations_that_limit_the_smoothing_are_reported(scan, weight, inner, severity):
    options = {"method": "published", "max_iter": 5}
    found = fuse_with(*scan, lambda_tv=weight, tv_iter=inner, **options).metadata.Fusion.diagnostics
    assert dict(zip(found.codes, found.severities, strict=True))["smoothing-limited"] == severity
    for good in ({"lambda_tv": weight, "tv_iter": 400}, {"lambda_tv": 0.01, "tv_iter": inner}, {"lambda_tv": 0}):
        assert "smoothing-limited" not in fuse_with(*scan, **good, **options).metadata.Fusion.diagnostics.codes


def test_shuffled_haadf_is_poorly_explained(scan):
    maps, haadf = scan
    good = fitted(maps, haadf)
    assert good.as_signal().metadata.Fusion.haadf_correlation > 0.9 and "haadf-poorly-explained" not in codes(good)
    np.random.default_rng(0).shuffle(haadf.data.reshape(-1))
    bad = fitted(maps, haadf, lambda_haadf=0.02, eps=0.01)
    expected = np.corrcoef(bad.modelled_haadf().data.ravel(), haadf.data.ravel())[0, 1]
    assert bad.as_signal().metadata.Fusion.haadf_correlation == pytest.approx(expected, abs=1e-4)
    assert "haadf-poorly-explained" in codes(bad)


def test_diagnostics_of_the_input_are_kept(scan):
    maps, haadf = scan
    shifted = fitted([with_data(m, m.data - 2) for m in maps], haadf)
    assert "negative-values" in codes(shifted)
    np.testing.assert_allclose(shifted.as_signal().data, hf.fuse(maps, haadf, method="published").data - 2, atol=1e-5)
    lowered = fitted([with_data(m, m.data - m.data.mean() - 0.1) for m in maps], haadf)
    assert "Fe unknown" in " ".join(lowered.warnings)
    constant = maps[1].deepcopy()
    constant.data[:] = 3
    constant.metadata.Sample.elements = ["S"]
    model = fitted([maps[0], constant, maps[1]], haadf)
    fused, expected = model.as_signal(), hf.fuse(maps, haadf, method="published")
    np.testing.assert_array_equal(fused.get_map("S").data, 3)
    np.testing.assert_array_equal(fused.data[[0, 2]], expected.data)
    found = next(d for d in model.diagnostics if d.code == "constant-map")
    assert found.elements == ("S",) and list(fused.metadata.Fusion.constant_elements) == ["S"]
    assert found.sentence.startswith("The map of S is constant: it is kept")
    np.testing.assert_allclose(fused.modelled_haadf().data, expected.modelled_haadf().data, rtol=1e-5)


@pytest.mark.parametrize(
    "values, sentences",
    [
        ({"S": 0}, ["The map of S has no counts: it is kept as it is, and the others are fused."]),
        (
            {"S": 0, "Cu": 0},
            ["The maps of S and Cu have no counts: they are kept as they are, and the others are fused."],
        ),
        (
            {"S": 3, "Cu": 2},
            ["The maps of S and Cu are constant: they are kept as they are, and the others are fused."],
        ),
        ({"S": 0, "Cu": 2}, ["The map of S has no counts", "The map of Cu is constant"]),
    ],
)
def test_maps_without_counts_and_constant_ones_are_named(scan, values, sentences):
    maps, haadf = scan
    flat = [with_data(maps[0], np.full(maps[0].data.shape, value)) for value in values.values()]
    for signal, element in zip(flat, values, strict=True):
        signal.metadata.Sample.elements = [element]
        signal.data[0, 0] = 0
    mask = np.zeros(maps[0].data.shape, bool)
    mask[0, 0] = True
    model = hf.FusedMultiModal(haadf, [*maps, *flat], method="calibrated", mask=mask)
    found = [d for d in model.diagnostics if d.code == "constant-map"]
    assert [e for d in found for e in d.elements] == list(values)
    assert all(d.sentence.startswith(words) for d, words in zip(found, sentences, strict=True))


def test_interrupted_fit_keeps_the_last_iterate(scan, caplog):
    def interrupt(state):
        if state.n_iter == 5:
            raise KeyboardInterrupt

    model = fitted(*scan, callback=interrupt)
    assert not model.fit_output.success and model.fit_output.nit == 5 and "interrupted" in codes(model)
    np.testing.assert_array_equal(model.fit_output.x, hf.fuse(*scan, max_iter=5, method="published").data)
    assert any("Interrupted" in w for w in model.as_signal().metadata.Fusion.warnings)


@pytest.mark.parametrize("where", ["fit", "bootstrap"])
def test_ctrl_c_ends_a_call_for_errors_too(scan, monkeypatch, caplog, where):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    if where == "fit":
        monkeypatch.setattr(hf.model.progress, "fitting", interrupt)
        monkeypatch.setattr(hf.model, "bootstrap", lambda *_, **__: pytest.fail("the bootstrap is run"))
    else:
        monkeypatch.setattr(hf.model, "bootstrap", interrupt)
    fused = fuse_with(*scan, method="calibrated", regularization="none", errors=8)
    assert np.isfinite(fused.data).all() and "errors" not in fused.metadata.Fusion
    assert ("interrupted" in fused.metadata.Fusion.diagnostics.codes) == (where == "fit")
    assert "errors-interrupted" in fused.metadata.Fusion.diagnostics.codes
    assert "Standard errors incomplete, interrupted: fuse again" in caplog.text
    with pytest.raises(ValueError, match="errors of these maps are not known"):
        fused.standard_errors()


def test_interrupted_errors_say_how_many_there_are(scan, monkeypatch):
    draw = hf.model.bootstrap
    monkeypatch.setattr(hf.model, "bootstrap", lambda *args, **options: draw(*args[:4], 2, *args[5:], **options))
    fused = fuse_with(*scan, method="calibrated", regularization="none", errors=8)
    (sentence,) = [w for w in fused.metadata.Fusion.warnings if "Interrupted" in w]
    assert "from 2 of 8 bootstrap replicates" in sentence and fused.metadata.Fusion.errors.n_resamples == 2


def test_unsuitable_signals_get_help(scan):
    haadf = scan_signals()[1]
    with pytest.raises((TypeError, ValueError), match="map"):
        hs.signals.Signal1D(np.arange(9.0)).fuse(haadf, method="published")
    assert "objective-rises" in codes(fitted(*scan, lambda_chem=5.0, eps=0.01, lambda_tv=0))


@pytest.mark.parametrize("method", ["calibrated", pytest.param("auto", marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    "name, elements",
    [
        pytest.param("bruker_test_TEM", "Cu O Pd Ti", marks=pytest.mark.nightly),
        ("L2083-K-4-1_tilt0", "Fe Mg Si O S Al Pt Cu C"),
    ],
)
@pytest.mark.slow
def test_a_good_real_scan_has_few_short_warnings(name, elements, method):
    haadf, eds = hs.load(shared(f"data/{name}.bcf"))
    haadf, eds = haadf.isig[:160, :160], eds.inav[:160, :160]
    model = hf.FusedMultiModal(haadf, eds, elements=elements.split(), method=method)
    model.fit(tol=1e-2)
    assert len(model.warnings) <= 3, model.warnings
    assert all(len(warning.split()) <= 30 for warning in model.warnings)


def with_data(signal, data):
    return signal._deepcopy_with_new_data(data)


@pytest.mark.parametrize(
    "change, error, sentence",
    [
        (lambda m, h: (m, h.isig[:-1]), ValueError, r"shape .*12, 14.* both must come from the same scan"),
        (lambda m, h: ([m[0], m[1].isig[:, 1:]], h), ValueError, "shape"),
        (lambda m, h: (m, with_data(h, np.full((12, 15), 7))), ValueError, "constant"),
        (lambda m, h: ([with_data(s, s.data * 0) for s in m], h), ValueError, "All maps .Fe, O. are constant"),
        (lambda m, h: (m, with_data(h, h.data * np.nan)), ValueError, "NaN"),
        (lambda m, h: ([m[0], with_data(m[1], m[1].data * np.inf)], h), ValueError, "NaN, infinite"),
        (lambda m, h: ([m[0], m[0]], h), ValueError, "Fe"),
        (lambda m, h: (m, h.data), TypeError, "HyperSpy signal"),
        (lambda m, h: (hs.signals.Signal1D(np.arange(9.0)), h), (TypeError, ValueError), "map|image|spectrum"),
    ],
)
def test_bad_input_gets_a_sentence(scan, change, error, sentence):
    maps, haadf = change(*scan)
    with pytest.raises(error, match=sentence) as raised:
        hf.fuse(maps, haadf, method="published")
    assert str(raised.value).rstrip().endswith(".")


def test_divergence_raises_and_leaves_the_model_usable(scan):
    maps, haadf = scan
    model = hf.FusedMultiModal(haadf, maps, method="published")
    model.fit(max_iter=2, lambda_tv=0.1)
    with pytest.raises(FloatingPointError, match="infinite or NaN: lower lambda_chem"):
        fit_with(model, lambda_haadf=1e30, gamma=4, lambda_tv=0, max_iter=1)
    assert model.fit_output is None and "not fitted" in repr(model)
    # as before the first fit, with the settings that had worked
    np.testing.assert_array_equal(
        model.fit(max_iter=2).x, hf.fuse(maps, haadf, max_iter=2, lambda_tv=0.1, method="published").data
    )


def test_a_fit_that_fails_leaves_no_false_record(scan):
    model = hf.FusedMultiModal(scan[1], scan[0], method="published")
    model.fit(max_iter=2)

    def fail(*_):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fit_with(model, gamma=2, callback=fail)
    with pytest.raises(ValueError, match="call fit"):
        model.as_signal()
    assert model.settings.gamma == 1.6 and model.fit_output is None and model.fit(max_iter=2).nit == 2


class InterruptedAt:
    """Ctrl-C at one opcode of the model's methods that conclude, after a function returns.

    What these call changes nothing of the model, or is atomic.
    """

    def __init__(self, step):
        self.left, self.before = step, sys.gettrace()

    def after(self, function):
        def call(*args, **options):
            found = function(*args, **options)
            sys.settrace(self)
            sys._getframe(1).f_trace = self
            return found

        return call

    def __call__(self, frame, event, _):
        if frame.f_code.co_name not in ("fit", "standard_errors", "_report"):
            return None
        frame.f_trace_opcodes = True
        self.left -= event == "opcode"
        if not self.left:
            raise KeyboardInterrupt
        return self

    def in_call(self, function, **options):
        """Whether the call was interrupted."""
        try:
            function(**options)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(self.before)
        return False


def test_ctrl_c_in_any_step_of_a_conclusion_leaves_a_fit_or_none(scan, monkeypatch):
    """Never the maps of one fit with the ratios, diagnostics or settings of another."""
    model = hf.FusedMultiModal(scan[1], scan[0], method="published")
    first, second = {"max_iter": 2}, {"max_iter": 3, "lambda_tv": 0.01, "lambda_chem": 1.0}
    solve, outcomes = model._method.solve, []
    for step in range(1, 10**6):
        if not outcomes or outcomes[-1]:  # from a model that is fitted, and from one that is not
            model = hf.FusedMultiModal(scan[1], scan[0], method="published")
            model.fit(**first, lambda_tv=0.1)
        stop = InterruptedAt(step)
        with monkeypatch.context() as patch:
            patch.setattr(model._method, "solve", stop.after(solve), raising=False)
            if not stop.in_call(model.fit, **second):
                break
        outcomes.append(model.fit_output is not None)
        assert model.settings.lambda_tv == (0.01 if outcomes[-1] else 0.1)
        assert (len(model.diagnostics) > 0) == outcomes[-1] == ("iterations" in repr(model))
        if outcomes[-1]:
            assert model.fit_output.nit == 3
            found = model.as_signal()
            np.testing.assert_array_equal(found.data, model.fit_output.x)
            ratios = found.data.sum(axis=(1, 2)) / model.maps.data.sum(axis=(1, 2))
            np.testing.assert_allclose(found.metadata.Fusion.total_ratios, ratios, rtol=1e-5)
        else:
            with pytest.raises(ValueError, match="call fit"):
                model.as_signal()
    assert set(outcomes) == {True, False} and len(outcomes) > 30


def test_ctrl_c_in_any_step_of_the_errors_leaves_old_or_new_ones(scan, monkeypatch):
    model = hf.FusedMultiModal(scan[1], scan[0], method="calibrated")
    fit_with(model, max_iter=20, regularization="none")
    draw, seed, outcomes = hf.model.bootstrap, 0, []
    of_seed = {seed: draw(*_of_bootstrap(model), number=2 + seed, seed=seed) for seed in (0, 1)}
    model.standard_errors(2)
    for step in range(1, 10**6, 7):
        stop, other = InterruptedAt(step), 1 - seed
        monkeypatch.setattr(hf.model, "bootstrap", stop.after(lambda *_, of=other, **__: of_seed[of]))
        if not stop.in_call(model.standard_errors, n_resamples=2 + other, seed=other):
            break
        about = model.as_signal().metadata.Fusion.errors
        outcomes.append(about.seed == other)
        seed = about.seed
        assert about.n_resamples == 2 + seed and model.fit_output.nit > 0
    assert set(outcomes) == {False, True}


def _of_bootstrap(model):
    fit = model._fit
    return fit.setup.problem, fit.setup.settings, fit.state, fit.result.maps


def test_refit_continues(scan):
    maps, haadf = scan
    model = hf.FusedMultiModal(haadf, maps, method="published")
    assert "not fitted" in repr(model)
    model.fit(max_iter=3, lambda_tv=0.1)
    output = model.fit(max_iter=4)
    assert output.nit == 7 and len(output.cost_history["total"]) == 8 and "7 iterations" in repr(model)
    np.testing.assert_array_equal(output.x, hf.fuse(maps, haadf, max_iter=7, lambda_tv=0.1, method="published").data)
    model = hf.FusedMultiModal(scan[1], scan[0], method="published")
    model.fit(max_iter=3)
    used = []
    output = fit_with(model, max_iter=2, dtype="float64", callback=lambda state: used.append(state.x.dtype))
    assert output.x.dtype == np.float64 and set(used) == {np.dtype(np.float64)}
    model = hf.FusedMultiModal(haadf, maps, method="published")
    reached = model.fit(max_iter=3).x.copy()
    output = model.fit(max_iter=2, lambda_tv=0.01)
    assert output.nit == 2 and model.settings.lambda_tv == 0.01
    normalised = reached / np.ptp([m.data for m in maps], axis=(1, 2), keepdims=True)
    expected = sum(twin.tv(m) for m in normalised)  # of maps whose minimum is zero, so that offsets cancel
    assert output.cost_history["tv"][0] == pytest.approx(expected, rel=1e-4)
    model = hf.FusedMultiModal(scan[1], scan[0], method="published")
    fit_with(model, max_iter=3, threshold=0.3)
    assert model.fit(max_iter=1).nit == 4
    with pytest.raises(ValueError, match="threshold is 0.4, and acts on the start of the first fit only"):
        fit_with(model, threshold=0.4)
    assert model.fit_output.nit == 4


def test_fit_output_and_maps_that_change_between_fits(scan):
    model = hf.FusedMultiModal(scan[1], scan[0], method="published")
    output = model.fit(max_iter=3)
    assert output is model.fit_output and output.success and output.nit == 3
    assert output.fun == output.cost_history["total"][-1] != output.cost_history["total"][0]
    assert not fit_with(model, max_iter=3, change_tol=1e-12).success
    assert fit_with(model, max_iter=500, change_tol=0.05).success
    stack = hf.element_maps(scan[0])
    model = hf.FusedMultiModal(scan[1], stack, method="published")
    model.fit(max_iter=2)
    stack.data *= 3
    with pytest.raises(ValueError, match="have changed since the last fit"):
        model.fit()


def test_parts_of_the_model_are_copies(scan):
    maps, haadf = scan
    model = hf.FusedMultiModal(haadf, maps, method="published")
    with pytest.raises(ValueError, match="call fit"):
        model.as_signal()
    model.fit(max_iter=3)
    signal = model.as_signal()
    np.testing.assert_array_equal(model.components.O.data, signal.get_map("O").data)
    np.testing.assert_array_equal(model["Fe"].data, model.components[0].data)
    assert len(model) == len(model.components) == 2 and "Fe" in dir(model.components)
    assert [c.metadata.General.title for c in model.components] == ["Fe", "O"]
    with pytest.raises(AttributeError, match="no component 'Pt': there are Fe, O"):
        model.components.Pt  # noqa: B018
    total = model.modelled_haadf().data + model.residual().data
    np.testing.assert_allclose(total, haadf.data, rtol=1e-6)
    assert model.residual().axes_manager[0].units == "nm"
    np.testing.assert_allclose(signal.modelled_haadf().data, model.modelled_haadf().data, rtol=1e-4)
    model = hf.FusedMultiModal(haadf, maps, method="published")
    model.fit(max_iter=2)
    first = model.as_signal()
    first.data[:] = -1
    assert model.as_signal().data.min() >= 0 and model.fit(max_iter=1).x.min() >= 0


def test_progress_bar_follows_the_preference(scan, capsys, monkeypatch):
    hf.fuse(*scan, max_iter=2, method="published")
    assert "Fusing" not in capsys.readouterr().err
    hf.fuse(*scan, max_iter=2, show_progressbar=True, method="published")
    assert "Fusing" in capsys.readouterr().err
    monkeypatch.setattr(hs.preferences.General, "show_progressbar", True)
    hf.fuse(*scan, max_iter=2, method="published")
    assert "Fusing" in capsys.readouterr().err


def test_settings_of_numpy_and_the_console_do_not_matter(scan, monkeypatch, tmp_path):
    factors = {"Fe": 1.2, "O": 1.9}
    options = {"method": "calibrated", "regularization": "tv", "errors": 2, "tol": 1e-2}
    expected = fuse_with(*scan, **options)
    composition = expected.atomic_percent("CL", factors).data
    monkeypatch.setattr(hs.preferences.General, "show_progressbar", True)
    monkeypatch.setattr(sys, "stderr", None)  # as in programs without a console
    with np.errstate(all="raise"):
        fused = fuse_with(*scan, **options | {"show_progressbar": True})
        found = fused.atomic_percent("CL", factors)
        fused.region().means(), fused.line_profile((3.5, -1.0), (6.0, 1.0)), fused.modelled_haadf()
        fused.plot_fusion(errors=True), fused.plot_convergence(), fused.export(tmp_path / "out")
        model = hf.FusedMultiModal(scan[1], scan[0], method="calibrated")
        fit_with(model, max_iter=5)
        model.normalised_residuals(), model.attainable_gain(), model.attribution(), model.residual()
    np.testing.assert_array_equal(fused.data, expected.data)
    np.testing.assert_allclose(found.data, composition, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, -0.25])
def test_results_on_any_scale_are_drawn_and_written(scan, scale, tmp_path):
    maps, haadf = scan
    for signal in (*maps, haadf):
        for axis in signal.axes_manager.signal_axes:
            axis.scale, axis.offset, axis.units = scale, 5 * scale, "m"
    fused = fuse_with(maps, haadf, method="calibrated", max_iter=5, errors=2)
    names = {path.name for path in fused.export(tmp_path / "out")}
    assert names == {"Fe.tif", "O.tif", "HAADF.tif", "HAADF_modelled.tif", "fused.h5"}
    assert fused.plot_fusion(errors=True).shape == (3, 3)
    cut = fused.isig[2:6, 1:]
    assert {path.name for path in cut.export(tmp_path / "cut")} >= {"Fe.tif"}
    region = fused.region(np.arange(15) > np.zeros((12, 1)))
    assert region.mean("Fe").error > 0


WITHOUT_COMPILER = """
import hyperspy_fusion as hf
scan = hf.data.core_shell((8, 9)).signals()
print([hf.fuse(*scan, method=m, max_iter=2).metadata.Fusion.n_iter for m in ("published", "calibrated")])
"""


@pytest.mark.slow
def test_kernels_run_without_a_compiler():
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", WITHOUT_COMPILER]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.stdout.split()[-2:] == ["[2,", "2]"] and "Compiling" not in run.stdout + run.stderr, run.stderr


# the kernels that compile fastest
FIRST_KERNELS = """
import sys
from hyperspy_fusion.fusion.solvers import kernels, loop
used = [kernels.variation, kernels.assign_counts]
program, *dtypes = sys.argv[1:]
sys.executable = program or None
for dtype in dtypes:
    with loop.prepared(dtype, used, 1):
        print("loaded", *(sum(kernel.stats.cache_hits.values()) for kernel in used))
"""

FIRST_FITS = """
import logging, sys, hyperspy_fusion as hf
maps, haadf = hf.data.core_shell((16, 16)).signals()
stop, *dtypes = sys.argv[1:]

class Stop(logging.Handler):
    def emit(self, record):
        sys.exit(record.getMessage())

for dtype in dtypes:
    if dtype == stop:  # what is compiled takes 15 s, and is said before it is
        logging.getLogger("hyperspy_fusion").addHandler(Stop())
    settings = hf.CalibratedSettings(max_iter=1, dtype=dtype)
    hf.fuse(maps, haadf, method="calibrated", settings=settings, show_progressbar=False)
"""


def compiling_messages(tmp_path, script, *arguments):
    """The dtypes that a session says it compiles for, what it prints of the cache, and its exit code."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_OPT": "1"}  # compiles faster
    command = [sys.executable, "-c", script, *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    printed = run.stdout + run.stderr
    said = re.findall(r"Compiling the fusion kernels for (\w+)", printed)
    return said, re.findall("(?m)^loaded (.*)$", printed), run.returncode


def test_of_fits_at_once_one_compiles_and_says_how_long_it_took(monkeypatch, caplog):
    from hyperspy_fusion.fusion.solvers import loop

    compiled = []

    def compile_for(dtype, wanted):
        time.sleep(0.2)  # the other one begins
        compiled.append(dtype)

    monkeypatch.setattr(loop.kernels, "are_compiled", lambda *_: bool(compiled))
    monkeypatch.setattr(loop.kernels, "compile_for", compile_for)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: 7.0 * len(compiled))

    def fit(number):
        with loop.prepared("float32", (), 1):
            assert compiled

    with caplog.at_level("WARNING"), ThreadPoolExecutor(2) as pool:
        list(pool.map(fit, range(2)))
    assert len(compiled) == 1
    assert [r.getMessage() for r in caplog.records if "ompil" in r.getMessage()][1:] == [loop.COMPILED % 7.0]


@pytest.mark.slow
def test_compiling_is_said_once_for_each_dtype(tmp_path):
    said, loaded, code = compiling_messages(tmp_path, FIRST_KERNELS, sys.executable, "float32", "float32")
    # the second kernel was compiled by another process
    assert (said, loaded, code) == (["float32"], ["0 1"] * 2, 0)
    # one dtype is found compiled by a later session, which says that it compiles the other
    said, loaded, code = compiling_messages(tmp_path, FIRST_KERNELS, "", "float32", "float64")
    # it cannot start another process
    assert (said, loaded, code) == (["float64"], ["0 0", "0 0"], 0)


@pytest.mark.nightly
def test_compiling_of_all_kernels_is_said_once_for_each_dtype(tmp_path):
    assert compiling_messages(tmp_path, FIRST_FITS, "", "float32", "float32") == (["float32"], [], 0)
    found, _, code = compiling_messages(tmp_path, FIRST_FITS, "float64", "float32", "float64")
    assert code and set(found) == {"float64"}


def test_every_signal_has_fuse():
    signals = [hs.signals.BaseSignal(np.ones((2, 2))), hf.element_maps(scan_signals()[0]).as_lazy()]
    for signal_type in ("", "EDS_TEM", "EDS_SEM", "EELS"):
        signal = hs.signals.Signal1D(np.ones((2, 2, 8)))
        signal.set_signal_type(signal_type)
        signals += [signal, signal.as_lazy()]
    assert all(callable(signal.fuse) for signal in signals)


def test_attaching_twice_is_once_and_foreign_methods_stay(monkeypatch, caplog):
    ours = BaseSignal.fuse
    attach_fuse()
    assert BaseSignal.fuse is ours

    def foreign(self):
        return "theirs"

    monkeypatch.setattr(BaseSignal, "fuse", foreign)
    attach_fuse()
    assert BaseSignal.fuse is foreign and "is kept" in caplog.text
    maps, haadf = scan_signals()
    # a stack of element maps has its own
    assert type(hf.element_maps(maps).fuse(haadf, max_iter=1, method="published")) is hf.ElementMaps


PUBLIC = {
    "fuse list": lambda maps, haadf: hf.fuse(maps, haadf, max_iter=2, method="published"),
    "fuse dict": lambda maps, haadf: hf.fuse(
        dict(zip(("Fe", "O"), maps, strict=True)), haadf, max_iter=2, method="published"
    ),
    "fuse float64": lambda maps, haadf: fuse_with(maps, haadf, max_iter=2, dtype="float64", threshold=0.3),
    "s.fuse": lambda maps, haadf: hs.stack(maps).fuse(haadf, max_iter=2, method="published"),
    "element_maps": lambda maps, haadf: hf.element_maps(maps),
    "model": lambda maps, haadf: hf.FusedMultiModal(haadf, maps, method="published").fit(max_iter=2),
    "plot": lambda maps, haadf: hf.fuse(maps, haadf, max_iter=2, method="published").plot_fusion(crop=(1, 8, 2, 9)),
    "plot given": lambda maps, haadf: hf.fuse(maps, haadf, max_iter=2, method="published").plot_fusion(
        maps=maps, haadf=haadf
    ),
    "failing": lambda maps, haadf: pytest.raises(ValueError, hf.fuse, maps, haadf.isig[1:]),
}


@pytest.mark.parametrize("call", PUBLIC.values(), ids=PUBLIC)
def test_nothing_of_the_users_is_changed(scan, call):
    maps, haadf = scan
    before = [snapshot(s) for s in (*maps, haadf)]
    for signal in (*maps, haadf):
        signal.data.flags.writeable = False
    call(maps, haadf)
    for signal, state in zip((*maps, haadf), before, strict=True):
        assert_untouched(signal, state)


def test_results_do_not_change_when_the_input_does(scan):
    maps, haadf = scan
    model = hf.FusedMultiModal(haadf, maps, method="published")
    model.fit(max_iter=2)
    fused = model.as_signal()
    copy, residual = fused.data.copy(), model.residual().data
    for signal in (*maps, haadf):
        signal.data[:] = 1
    np.testing.assert_array_equal(fused.data, copy)
    np.testing.assert_array_equal(model.residual().data, residual)
    maps, haadf = scan_signals()
    fused_again = fused.fuse(haadf, max_iter=1, method="published")
    np.testing.assert_array_equal(fused.data, copy)
    assert not np.shares_memory(fused.data, fused_again.data)


def test_real_maps_are_fused():
    haadf, eds = hs.load(shared("data/L2083-K-4-1_tilt0.bcf"))
    fused = eds.fuse(haadf, elements=["Fe", "Mg", "Si", "O", "S", "Al"], max_iter=3, method="published")
    assert fused.elements == ["Fe", "Mg", "Si", "O", "S", "Al"]
    assert fused.axes_manager[1].units == eds.axes_manager[0].units
    assert fused.axes_manager[1].scale == pytest.approx(eds.axes_manager[0].scale)
    assert np.isfinite(fused.data).all()
    maps = [hs.load(shared(f"data/{e}_map.hspy")) for e in ("Cu", "Zn")]
    haadf = hs.load(shared("data/CuZn_HAADF.hspy"))
    fused = hf.fuse(maps, haadf, method="published")
    assert fused.elements == ["Cu", "Zn"] and fused.data.dtype == np.float32
    assert fused.axes_manager[1].scale == pytest.approx(0.92139, abs=1e-4)


def test_lazy_spectrum_image_is_read_once():
    """All maps come from one pass over a spectrum image that does not fit in memory."""
    reads = []

    def block(i):
        reads.append(i)
        return np.random.default_rng(0).poisson(2, (8, 9, 200)).astype("uint8")

    import dask

    data = da.from_delayed(dask.delayed(block)(0), (8, 9, 200), "uint8")
    s = hs.signals.Signal1D(data).as_lazy()
    s.set_signal_type("EDS_TEM")
    energy = s.axes_manager[-1]
    energy.scale, energy.units, energy.name = 0.05, "keV", "Energy"
    s.metadata.Acquisition_instrument.TEM.beam_energy = 200
    haadf = scan_signals(8, 9)[1]
    fused = s.fuse(haadf, elements=["Fe", "O", "Si"], max_iter=1, method="published")
    assert fused.elements == ["Fe", "O", "Si"] and reads == [0]
