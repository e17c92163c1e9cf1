"""Components of whole spectra: how they are found, their fits, and the record that they leave."""

import logging
from dataclasses import replace

import exspy
import hyperspy.api as hs
import numpy as np
import pytest
from calibrated_cases import observe
from helpers import fit_with, fuse_with
from scipy.ndimage import gaussian_filter

import hyperspy_fusion as hf
from hyperspy_fusion.fusion.problems.calibrated import CalibratedProblem
from hyperspy_fusion.fusion.problems.resampling import guided_by
from hyperspy_fusion.fusion.selection import search
from hyperspy_fusion.fusion.selection import spectral_components as components
from hyperspy_fusion.fusion.selection.cross_validation import folds_of
from hyperspy_fusion.fusion.selection.low_accuracy_fits import Choice, LowAccuracyFits, Part
from hyperspy_fusion.fusion.selection.model_averaging import AveragedProblem
from hyperspy_fusion.fusion.selection.spectral_components import Components, ComponentsByFold, number_of_components
from hyperspy_fusion.fusion.settings import AutoSettings, CalibratedSettings
from hyperspy_fusion.maps.base import SourceRequest
from hyperspy_fusion.maps.sources import read_maps

ELEMENTS = ("Fe", "Si")
LINES_KEV = {"Fe": 6.404, "Si": 1.740, "Ni": 7.478, "Cu": 8.046}
QUICK = {"method": "auto", "regularization": "directional", "lambda_haadf": 0.0, "show_progressbar": False}


def phases(shape=(48, 48)):
    """(2, ny, nx) thickness of two phases, one of them in grains that the HAADF image does not show."""
    noise = gaussian_filter(np.random.default_rng(5).standard_normal(shape), 4)
    grains = np.clip(gaussian_filter((noise > 0).astype(float), 0.7), 0, 1)
    return np.stack([grains, 1 - grains])


def spectrum_image(counts=0.15, seed=0):
    """EDS of Fe with Ni and of Si with Cu, whose further elements have ten times as many counts; and the truth."""
    amounts = phases()
    energy = 0.02 * np.arange(500)
    peak = {e: np.exp(-0.5 * ((energy - line) / 0.055) ** 2) for e, line in LINES_KEV.items()}
    peak = {e: p / p.sum() for e, p in peak.items()}
    of_phases = np.stack([peak["Fe"] + 10 * peak["Ni"], peak["Si"] + 10 * peak["Cu"]])
    mean = counts * np.tensordot(amounts, of_phases, (0, 0))
    signal = exspy.signals.EDSTEMSpectrum(np.random.default_rng(seed).poisson(mean).astype(np.uint16))
    signal.axes_manager[-1].scale, signal.axes_manager[-1].units = 0.02, "keV"
    signal.set_microscope_parameters(beam_energy=200)
    haadf = hs.signals.Signal2D(np.random.default_rng(9).normal(100, 1, amounts[0].shape))
    return signal, haadf, counts * amounts


@pytest.fixture(scope="module")
def scan():
    return spectrum_image()


@pytest.fixture(scope="module")
def maps(scan):
    return hf.element_maps(scan[0], ELEMENTS)


def out_of_window_counts(source, elements=ELEMENTS, **options):
    request = SourceRequest(elements, allow_nan=True, out_of_window=True, **options)
    return read_maps(source, request).out_of_window


@pytest.fixture(scope="module")
def rest(scan):
    return out_of_window_counts(scan[0])


@pytest.fixture(scope="module")
def model(scan):
    model = hf.FusedMultiModal(scan[1], scan[0], elements=ELEMENTS, method="auto")
    options = {name: value for name, value in QUICK.items() if name != "method"}
    fit_with(model, **options)
    return model


# ---- out-of-window counts -----------------------------------------------------------------------------


def test_every_count_is_in_a_map_or_out_of_window(scan, maps, rest):
    spectra = scan[0]
    noise = spectra.data[..., : int(0.1 / 0.02)].sum(dtype=int)
    assert maps.data.sum(dtype=int) + rest.sum(dtype=int) + noise == spectra.data.sum(dtype=int)
    np.testing.assert_array_equal(maps.data.sum(0) + rest.sum(0), spectra.data[..., 5:].sum(-1))
    # bands of as many counts as single channels allow
    assert rest.dtype == np.uint32 and rest.shape[1:] == maps.data.shape[1:]
    largest_channel = spectra.data.sum((0, 1)).max()
    assert rest.sum((1, 2)).max() < rest.sum() / len(rest) + largest_channel + 1


@pytest.mark.parametrize("width", [1.2, 3.0])
def test_out_of_window_counts_of_any_width(scan, width):
    spectra = scan[0]
    maps = hf.element_maps(spectra, ELEMENTS, integration_windows=width)
    rest = out_of_window_counts(spectra, integration_windows=width)
    np.testing.assert_array_equal(maps.data.sum(0) + rest.sum(0), spectra.data[..., 5:].sum(-1))
    model = hf.FusedMultiModal(scan[1], spectra, elements=ELEMENTS, integration_windows=width, method="auto")
    np.testing.assert_array_equal(model._measured.out_of_window, rest)


def test_out_of_window_counts_of_lazy_spectra(scan, rest):
    np.testing.assert_array_equal(out_of_window_counts(scan[0].as_lazy()), rest)


def test_out_of_window_counts_of_energies_in_ev(scan, rest):
    signal = scan[0].deepcopy()
    signal.axes_manager[-1].scale, signal.axes_manager[-1].units = 20.0, "eV"
    np.testing.assert_array_equal(out_of_window_counts(signal), rest)


def test_spectra_that_are_no_counts_have_none(scan):
    signal = scan[0].deepcopy()
    signal.data = signal.data * 0.7
    assert out_of_window_counts(signal) is None
    signal.data = scan[0].data.astype(np.float32)
    assert out_of_window_counts(signal) is not None
    signal.data = signal.data - 1
    assert out_of_window_counts(signal) is None
    signal.data = scan[0].data.astype(np.float32)
    signal.data[3, 4] = np.nan
    assert out_of_window_counts(signal) is None
    signal.data = scan[0].data * 1e10  # more than 32 bits hold
    assert out_of_window_counts(signal) is None
    signal.data = np.zeros_like(scan[0].data)
    assert out_of_window_counts(signal) is None


def test_spectra_in_another_unit_are_fused_as_their_maps(scan):
    """Their bands would be thinned and whitened as if each count were many."""
    signal = scan[0].deepcopy()
    signal.data = signal.data * 100
    fused = fuse_with(signal, scan[1], elements=list(ELEMENTS), **QUICK)
    assert not fused.metadata.Fusion.selection.has_item("components")


def test_maps_alone_have_no_out_of_window_counts(maps):
    assert out_of_window_counts(maps) is None
    assert out_of_window_counts([maps]) is None


def test_windows_that_share_channels_leave_none(scan, caplog):
    names = ["Fe_Ka", "Mn_Kb"]
    with caplog.at_level(logging.INFO, "hyperspy_fusion"):
        assert out_of_window_counts(scan[0], None, xray_lines=names) is None
    assert "share channels" in caplog.text


# ---- components ------------------------------------------------------------------------------------------


def observed(maps, haadf, **options):
    settings = CalibratedSettings(lambda_haadf=0.0, regularization="directional", **options)
    found = observe(maps.data, np.asarray(haadf.data, float), [26, 14], settings, elements=list(ELEMENTS))
    return found, settings


def test_two_phases_are_two_components(scan, maps, rest):
    """With eleven times as many counts as in the windows: an eleventh of the variance if all bands had as many."""
    observation, settings = observed(maps, scan[1])
    found = Components.of(observation, rest, settings)
    assert len(found.strengths) == 2 and np.all(np.diff(found.strengths) < 0)
    noise = [np.var(m - scan[2], axis=(1, 2)) for m in (found.maps(found.observation.scan.maps), maps.data)]
    assert np.all(noise[0] < 0.2 * noise[1]) and np.all(noise[0] > 0.04 * noise[1])


@pytest.mark.parametrize("sign", [1, -1])
def test_one_component_of_either_sign(scan, maps, rest, monkeypatch, sign):
    """The first is everywhere of one sign, which one is up to LAPACK."""
    observation, settings = observed(maps, scan[1])
    values, axes = components._signal_axes(np.concatenate([maps.data, rest]).astype(float))
    monkeypatch.setattr(components, "_signal_axes", lambda bands: (values, sign * np.abs(axes)))
    found = Components.of(observation, rest, settings, number=1)
    assert found.observation.scan.maps.min() > 0 and np.isfinite(found.offset).all()


def test_as_many_components_as_bands_are_the_bands(scan, maps, rest):
    observation, settings = observed(maps, scan[1])
    found = Components.of(observation, rest, settings, number=99)
    assert len(found.strengths) == 2 + len(rest)
    np.testing.assert_allclose(found.maps(found.observation.scan.maps), maps.data, atol=1e-9)


def test_directions_and_readout_are_inverse(scan, maps, rest):
    observation, settings = observed(maps, scan[1])
    found = Components.of(observation, rest, settings, number=99)
    np.testing.assert_allclose(found.readout @ found.directions, np.eye(2), atol=1e-9)


def test_background_is_subtracted(scan, maps, rest):
    plain, settings = observed(maps, scan[1])
    over, _ = observed(maps, scan[1], background=0.05)
    one, other = (Components.of(o, rest, settings) for o in (plain, over))
    one, other = (replace(c, totals=np.full(2, np.nan)) for c in (one, other))
    x = one.observation.scan.maps + 3
    np.testing.assert_allclose(other.maps(x), np.maximum(one.maps(x) - 0.05, 0), atol=1e-9)


@pytest.mark.parametrize("keep", [True, False])
def test_totals_are_kept_if_asked(scan, maps, rest, keep):
    observation, settings = observed(maps, scan[1], keep_totals=keep, background=0.02)
    found = Components.of(observation, rest, settings)
    totals = found.maps(found.observation.scan.maps + 1).sum((1, 2))
    expected = maps.data.sum((1, 2)) - 0.02 * maps.data[0].size
    np.testing.assert_allclose(totals / expected, 1, rtol=1e-9 if keep else 10)
    assert keep or np.all(np.abs(totals / expected - 1) > 0.1)


def test_masked_pixels_do_not_matter(scan, maps, rest):
    valid = np.ones(maps.data.shape, bool)
    valid[:, 10:14, 20:30] = False
    settings = CalibratedSettings(lambda_haadf=0.0, regularization="directional", tol=1e-2)
    results = []
    for wrong in (0, 7):
        spoiled = np.where(valid, maps.data, wrong).astype(float)
        others = np.where(valid[0], rest, wrong)
        image = np.asarray(scan[1].data, float)
        observation = observe(spoiled, image, [26, 14], settings, valid=valid, elements=list(ELEMENTS))
        problem = Components.of(observation, others, settings).problem(settings)
        results.append(problem.solve(settings, num_workers=1)[0].maps)
    np.testing.assert_array_equal(*results)


def test_components_are_nearer_to_the_truth_than_maps(scan, maps, rest):
    observation, settings = observed(maps, scan[1], tol=1e-3)
    problem = Components.of(observation, rest, settings).problem(settings)
    errors = []
    for one in (problem, observation.problem(settings)):
        result, _ = one.solve(settings, num_workers=1)
        assert result.success and result.maps.shape == maps.data.shape and result.maps.min() >= 0
        np.testing.assert_allclose(result.maps.sum((1, 2)), maps.data.sum((1, 2)), rtol=1e-4)
        errors.append(np.mean((result.maps - scan[2]) ** 2))
    assert errors[0] < 0.75 * errors[1]


def test_maps_settle_and_not_components(scan, maps, rest):
    """The fit ends where maps are near their final ones; a component that they do not show is not waited for."""
    observation, settings = observed(maps, scan[1])
    settings = replace(settings, regularization="directional", tol="settled")
    found = Components.of(observation, rest, settings, 2)
    final, _ = found.problem(settings).solve(replace(settings, tol=1e-7, max_iter=5000))
    result, state = found.problem(settings).solve(settings)
    readout = np.abs(found.readout) * state.standard_errors * state.problem.scales
    errors = np.linalg.norm(readout, axis=1)
    rms = np.sqrt(np.mean((result.maps - final.maps) ** 2, axis=(1, 2)))
    assert np.all(rms < 0.06 * errors) and result.reason.name == "SETTLED"
    # where the slow component is not read out, the fit does not wait for it
    slow = int(np.argmax([one.n_iter for one in _settled_alone(found, settings)]))
    fast = replace(found, readout=found.readout * (np.arange(2) != slow))
    assert fast.problem(settings).solve(settings)[0].n_iter < result.n_iter


def _settled_alone(found, settings):
    return [replace(found, readout=found.readout * row).problem(settings).solve(settings)[0] for row in np.eye(2)]


def test_a_fit_to_the_same_components_starts_from_the_one_before(scan, maps, rest):
    """Others start from the measured maps, or from a coarse fit, as by themselves."""
    observation, settings = observed(maps, scan[1])
    settings = replace(settings, tol="settled")
    smoother = replace(settings, lambda_reg=1.4)
    found, alike = (Components.of(observation, rest, settings, 2) for _ in range(2))
    problems = [
        observation.problem(settings),
        found.problem(settings),
        found.problem(smoother),
        alike.problem(smoother),
    ]
    weights = np.full((4, 2), 0.25)
    _, state = AveragedProblem(problems, weights).solve(replace(settings, max_iter=2000))
    of_same, of_others = state.states[2:]
    assert of_same.n_iter < of_others.n_iter
    assert np.std(state.maps[2] - state.maps[3]) < 0.02 * np.std(state.maps[3])


def test_a_state_is_taken_to_other_axes(scan, maps, rest, monkeypatch):
    """Of another sign and order: the same maps, standard errors and end of the fit."""
    observation, settings = observed(maps, scan[1])
    found = Components.of(observation, rest, settings, 2)
    result, state = found.problem(settings).solve(replace(settings, tol=1e-6, max_iter=4000))
    values, axes = components._signal_axes(np.concatenate([maps.data, rest]) / 1.0)
    of_bands = components._signal_axes
    turn = np.eye(len(values))
    turn[:2, :2] = [[0, 1], [-1, 0]]
    monkeypatch.setattr(components, "_signal_axes", lambda bands: (of_bands(bands)[0], of_bands(bands)[1] @ turn))
    other = replace(Components.of(observation, rest, settings, 2), strengths=found.strengths[::-1])
    # each is smoothed as before: weights are relative to that of the first one
    problem = other.problem(replace(settings, lambda_reg=(found.strengths[0] / found.strengths[1]) ** 0.25))
    start = problem.rotated(replace(state, standard_errors=np.array([1.0, 2.0])), found, 1.0)
    np.testing.assert_allclose(problem.columns(start), result.maps, rtol=1e-4, atol=1e-4 * result.maps.max())
    np.testing.assert_allclose(
        start.standard_errors * problem.inner.scales, (state.problem.scales * [1, 2])[::-1], rtol=1e-6
    )
    again, _ = problem.solve(replace(settings, tol=1e-4, max_iter=4000), start)
    assert again.n_iter <= 50 < result.n_iter


def test_gradients_rotate_with_the_components(scan, maps, rest):
    """Duals are in natural units, which are not the same where components are smoothed in another way."""
    observation, settings = observed(maps, scan[1])
    found = Components.of(observation, rest, settings, 2)
    _, state = found.problem(settings).solve(settings)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    problem = replace(found, axes=found.axes @ turn.T, strengths=found.strengths * [1, 9]).problem(settings)
    start = problem.rotated(replace(state, standard_errors=np.ones(2)), found, 1.0)
    before, after = (
        one.y / scales[:, None, None] for one, scales in ((state, state.problem.scales), (start, problem.inner.scales))
    )
    np.testing.assert_allclose(after, np.einsum("ij,kjyx->kiyx", turn, before), atol=1e-5)


def test_a_state_of_part_of_the_counts_has_as_much_less_signal(scan, maps, rest):
    observation, settings = observed(maps, scan[1])
    found = Components.of(observation, rest, settings, 2)
    _, state = found.problem(settings).solve(settings)
    state = replace(state, standard_errors=np.ones(2))
    problem = found.problem(settings)
    whole, part = (problem.rotated(state, found, fraction) for fraction in (1.0, 0.25))
    scales, offset = problem.inner.scales[:, None, None], found.offset[:, None, None]
    np.testing.assert_allclose(part.z * scales - offset, 2 * (whole.z * scales - offset), atol=1e-3 * offset.max())
    # not where it has other bands
    assert problem.rotated(state, replace(found, axes=found.axes[1:]), 1.0) is None


def test_stronger_components_are_smoothed_less(scan, maps, rest):
    observation, settings = observed(maps, scan[1])
    found = Components.of(observation, rest, settings)
    inner = found.problem(settings).inner
    weights = found.observation.noise.unit / inner.scales
    np.testing.assert_allclose(weights, (found.strengths / found.strengths[0]) ** -0.25, rtol=1e-12)


def test_noise_alone_has_one_component():
    rng = np.random.default_rng(0)
    bands = rng.poisson(2.0, (20, 64, 64)) / np.sqrt(2.0)
    strengths, _ = components._signal_axes(bands)
    # that of the mean, which all have
    np.testing.assert_allclose(strengths[0], 20 * 2.0 * components_kernel_mass(), rtol=0.02)
    assert number_of_components(strengths) <= 2
    assert np.abs(strengths[2:]).max() < 0.01


def components_kernel_mass():
    """Mean weight of the neighbours of a pixel, with zeros beyond the edges."""
    inside = gaussian_filter(np.ones((64, 64)), components._WIDTH, mode="constant").mean()
    centre = np.zeros((81, 81))
    centre[40, 40] = 1
    return inside - gaussian_filter(centre, components._WIDTH).max()


@pytest.mark.parametrize("is_guided", [True, False])
def test_a_replicate_has_counts_guide_and_blur_of_its_draw(scan, maps, rest, is_guided):
    observation, settings = observed(maps, scan[1])
    problem = Components.of(observation, rest, settings).problem(settings)
    result, state = problem.solve(replace(settings, tol=1e-2), num_workers=1)
    fitted = result.maps.astype(float)
    of_maps = observation.problem(settings).resample(settings, None, fitted, (0, 1))
    if is_guided:
        term = replace(of_maps.haadf_term, blur=0.8)
        of_maps = guided_by(scan[2].sum(axis=0), replace(of_maps, haadf_term=term), settings)
    assert (of_maps.guide is not observation.guide) == is_guided
    drawn = problem.resample(settings, state, fitted, (0, 1), (of_maps,))
    assert (drawn.inner.guide is of_maps.guide) and drawn.inner.haadf_term.blur == 0.8 * is_guided
    assert np.array_equal(drawn.inner.penalty.guide, problem.inner.penalty.guide) != is_guided
    # the components have the drawn counts of the maps, and other out-of-window counts
    totals = drawn.components.maps(drawn.inner.measured()).sum((1, 2))
    np.testing.assert_allclose(totals, of_maps.measured().sum((1, 2)), rtol=1e-6)
    again, other = (problem.resample(settings, state, fitted, (0, k), (of_maps,)) for k in (1, 2))
    np.testing.assert_array_equal(again.inner.data.beta, drawn.inner.data.beta)
    assert np.any(other.inner.data.beta != drawn.inner.data.beta)


# ---- the choice ------------------------------------------------------------------------------------------


def test_held_out_counts_are_in_no_fit(scan, maps, rest):
    """Another measurement with the same counts but those of fold 0 has the same fit without that fold."""
    settings = AutoSettings(regularization="directional", lambda_haadf=0.0)
    one, _ = observed(maps, scan[1])
    noise, rng = one.noise, np.random.default_rng(0)
    folds = folds_of(one.scan.maps, one.scan.valid, noise.counts_scale, noise.variances, noise.background, rng)
    spectra = ComponentsByFold.of(one, rest, settings, len(folds), rng)
    assert not np.array_equal(spectra.training[0], rest)
    other = replace(one, scan=replace(one.scan, maps=folds[0].maps + rng.poisson(1.0, maps.data.shape)))
    strange = Components.of(other, rest + rng.poisson(3.0, rest.shape).astype(np.uint32), settings.chosen(), 5)
    choice = Choice("directional", 1.0, 0.0, True, 2)
    found = [
        LowAccuracyFits([Part(observation, observation, folds, s)], settings, len(folds), 1)(choice, 0)
        for observation, s in ((one, spectra), (other, replace(spectra, components=strange, of_folds={})))
    ]
    np.testing.assert_array_equal(*found)


def test_a_fit_to_components_is_given_up_by_its_maps(scan, maps, rest):
    settings, asked = AutoSettings(regularization="directional", lambda_haadf=0.0), []
    part = Part.of(observed(maps, scan[1])[0], settings, rest, np.random.default_rng(0))

    def trial(fitted):
        asked.append(fitted)
        return True

    trial.is_over = True
    ((make,),) = LowAccuracyFits([part], settings, 1, 1).sequences_of(
        {(Choice("directional", 1.0, 0.0, True, 2), 0): trial}
    )
    make(1)
    (fitted,) = asked
    np.testing.assert_allclose(fitted.sum((1, 2)), part.folds[0].maps.sum((1, 2)), rtol=0.02)


@pytest.mark.slow
def test_spectra_are_better_than_their_maps(scan, maps, model):
    fused, alone = model.as_signal(), fuse_with(maps, scan[1], **QUICK)
    error, without = (np.mean((f.data - scan[2]) ** 2) for f in (fused, alone))
    assert error < 0.7 * without
    found = fused.metadata.Fusion.selection
    assert "of 2 components of the spectra" in found.sentence
    weights = found.weights.reshape(-1, 2)[np.asarray(found.components) > 0]
    assert weights.sum() > 1


def test_components_are_in_the_record_alone(scan, maps, model):
    fused = model.as_signal()
    assert fused.elements == list(ELEMENTS) and fused.data.shape == maps.data.shape
    np.testing.assert_allclose(fused.metadata.Fusion.total_ratios, 1, rtol=1e-4)
    np.testing.assert_array_equal(model.maps.data, maps.data)
    assert fused.metadata.Fusion.haadf_coefficients.shape == (2,) and len(fused.metadata.Fusion.counts_scale) == 2
    assert not any("component" in name for name in fused.metadata.Fusion.as_dictionary() if name != "selection")


def test_without_components_a_spectrum_image_is_its_maps(scan, maps):
    of_spectra = fuse_with(scan[0], scan[1], elements=ELEMENTS, components=0, **QUICK)
    alone = fuse_with(maps, scan[1], **QUICK)
    np.testing.assert_array_equal(of_spectra.data, alone.data)
    assert not alone.metadata.Fusion.has_item("selection.components")
    assert of_spectra.metadata.Fusion.selection.sentence == alone.metadata.Fusion.selection.sentence


def test_without_a_penalty_there_is_one_fit_of_components(scan):
    """No weight makes it another one."""
    fused = fuse_with(scan[0], scan[1], elements=ELEMENTS, **(QUICK | {"regularization": "none"}))
    assert np.count_nonzero(fused.metadata.Fusion.selection.components) == 1


def test_errors_and_attribution_include_components(scan, model):
    errors = model.standard_errors(4).data
    assert errors.shape == scan[2].shape and np.isfinite(errors).all()
    true = np.sqrt(np.mean((model.as_signal().data - scan[2]) ** 2, axis=(1, 2)))
    ratio = np.sqrt(np.mean(errors**2, axis=(1, 2))) / true
    # 0.5 to 1.1 over three scans: the directions of the components, which have errors as well, are those of the fit
    assert np.all((ratio > 0.4) & (ratio < 2))
    parts = {name: m.data for name, m in model.attribution().items()}
    assert set(parts) == {"haadf", "penalty", "totals", "bound", "spectrum"}
    moved = model.as_signal().data - model.maps.data
    np.testing.assert_allclose(sum(parts.values()), moved, atol=1e-4 * np.abs(moved).max())


def test_an_image_that_guides_components_alone_is_used(model):
    problem = model._fit.setup.problem
    of_maps = [p for p in problem.problems if isinstance(p, CalibratedProblem)]
    others = problem.problems[len(of_maps) :]
    of_maps = [replace(p, penalty=replace(p.penalty, guide=None), lambda_haadf=0.0) for p in of_maps]
    assert replace(problem, problems=of_maps + others).uses_haadf
    assert not replace(problem, problems=of_maps).uses_haadf


def test_a_fit_with_components_goes_on(scan):
    model = hf.FusedMultiModal(scan[1], scan[0], elements=ELEMENTS, method="auto")
    options = {name: value for name, value in QUICK.items() if name != "method"}
    first = fit_with(model, max_iter=25, tol=1e-9, **options)
    again = model.fit(max_iter=25)
    assert again.nit == 2 * first.nit and again.fun < first.fun


def test_maps_come_first_even_without_weight(scan, monkeypatch):
    """Noise and forward model of the result are those of the maps."""

    def components_alone(self, choices):
        return {next(c for c in choices if c.components): np.ones(2)}

    monkeypatch.setattr(search._Search, "_average", components_alone)
    fused = fuse_with(scan[0], scan[1], elements=ELEMENTS, **QUICK)
    found = fused.metadata.Fusion.selection
    assert np.count_nonzero(found.weights) == 2 and "mean of" not in found.sentence
    assert len(fused.metadata.Fusion.counts_scale) == 2


@pytest.mark.parametrize("components", [-1, 1.5, True, "all", None])
def test_components_must_be_a_number_of_them(components):
    with pytest.raises(ValueError, match="whole number of at least 0, or 'auto' for as many as stand out"):
        AutoSettings(components=components)
