"""`method="auto"` on HyperSpy signals: the choice, its record, going on, and diagnostics."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import hyperspy.api as hs
import numpy as np
import pytest
from helpers import assert_untouched, fit_with, fuse_with, shared, snapshot

import hyperspy_fusion as hf
from hyperspy_fusion.fusion.selection import low_accuracy_fits, search

QUICK = {"regularization": "directional", "tol": 1e-2}


@pytest.fixture(scope="module")
def phantom():
    """Counts for which an average of several fits is best."""
    return hf.data.interface((32, 32), counts=30.0)


@pytest.fixture(scope="module")
def scan(phantom):
    return phantom.signals()


@pytest.fixture(scope="module")
def model(scan):
    maps, haadf = scan
    model = hf.FusedMultiModal(haadf, maps, method="auto")
    model.fit()
    return model


@pytest.fixture(scope="module")
def fused(model):
    return model.as_signal()


def test_the_ensemble_is_reproducible_and_nearer_to_the_truth(scan, fused, phantom):
    maps, haadf = scan
    before = [snapshot(s) for s in (*maps, haadf)]
    again = hf.fuse(maps, haadf, method="auto", num_workers=2)
    np.testing.assert_array_equal(again.data, fused.data)
    assert again.metadata.Fusion.selection.sentence == fused.metadata.Fusion.selection.sentence
    for signal, was in zip((*maps, haadf), before, strict=True):
        assert_untouched(signal, was)
    found = fused.metadata.Fusion
    assert found.method == "auto" and fused.elements == list(phantom.elements)
    np.testing.assert_allclose(found.total_ratios, 1, rtol=1e-4)
    error = np.sum((fused.data - phantom.truth) ** 2, axis=(1, 2))
    raw = np.sum((phantom.maps - phantom.truth) ** 2, axis=(1, 2))
    assert np.all(error < raw / 4)


def test_phases_of_uniform_composition_are_best_under_total_variation():
    """The blurred image shows their interface wider than it is."""
    phantom = hf.data.interface((128, 128), counts=16.0, haadf_blur=1.0, haadf_offset=0.2, haadf_gain=3.0)
    chosen, guided = (
        fuse_with(*phantom.signals(), method="auto", **given) for given in ({}, {"regularization": "directional"})
    )
    assert chosen.metadata.Fusion.parameters.regularization == "tv"
    quality = [np.mean(list(map(hf.data.psnr, fused.data, phantom.truth))) for fused in (chosen, guided)]
    assert quality[0] > quality[1] + 1
    # where structures are not flat, it is fitted to the first fold alone
    tried = hf.fuse(
        *hf.data.atomic_columns((32, 32), counts=16.0).signals(), show_progressbar=False
    ).metadata.Fusion.selection
    of_tv = np.array(tried.regularization) == "tv"
    assert of_tv.any() and np.all(np.asarray(tried.n_folds)[of_tv] == 1)


def test_a_choice_of_one_is_the_fit_of_its_settings():
    maps, haadf = hf.data.atomic_columns((32, 32), counts=4.0).signals()
    given = {
        "regularization": "directional",
        "lambda_haadf": 1.0,
        "joint": True,
        "tol": 1e-6,
        "show_progressbar": False,
    }
    auto = fuse_with(maps, haadf, method="auto", **given)
    chosen = auto.metadata.Fusion.parameters.as_dictionary()
    assert auto.metadata.Fusion.selection.weights.any(axis=-1).sum() == 1
    alone = fuse_with(maps, haadf, method="calibrated", **given, lambda_reg=chosen["lambda_reg"])
    # from another start
    np.testing.assert_allclose(auto.data, alone.data, rtol=1e-2, atol=1e-2)


@pytest.mark.nightly
def test_it_is_better_than_any_penalty_at_its_default():
    """Over four scans: on one of a thousand pixels, chance may choose."""
    errors = dict.fromkeys(("auto", "guided", "directional", "tgv", "tv"), 0.0)
    for seed in range(4):
        phantom = hf.data.interface((32, 32), counts=30.0, seed=seed)
        scan, mean = phantom.signals(), phantom.truth.mean(axis=(1, 2), keepdims=True)
        for name in errors:
            one = {"method": "calibrated", "regularization": name, "tol": 1e-3}
            found = fuse_with(*scan, **({"method": "auto"} if name == "auto" else one))
            errors[name] += np.sum((found.data - phantom.truth) ** 2 / mean)
    assert min(errors, key=errors.get) == "auto", errors


def light_elements(shape, counts):
    """Particles of C, N and O, which the image hardly tells apart."""
    phantom = hf.data.core_shell(shape, counts=counts)
    clean = np.tensordot(np.power((6.0, 7.0, 8.0), 1.7), phantom.truth, 1)
    haadf = clean / clean.max() + np.random.default_rng(0).normal(0, 0.02, shape)
    return replace(phantom, elements=("C", "N", "O"), haadf=haadf)


SCANS = {name: hf.data.PHANTOMS[name] for name in ("atomic_columns", "core_shell", "interface")}
SCANS["light_elements"] = light_elements
OFTEN = [("atomic_columns", 4, 0.7, True)]
ALL = list(itertools.product(SCANS, (4, 15), (0.3, 0.5, 0.7), (True, False)))


@pytest.mark.parametrize(
    "name, counts, part, is_saturated",
    [*OFTEN, *(pytest.param(*case, marks=pytest.mark.nightly) for case in ALL if case not in OFTEN)],
)
def test_what_is_left_of_an_image_is_worth_more_than_none(name, counts, part, is_saturated):
    """Up to 0.3 dB, which chance may cost."""
    phantom = SCANS[name]((40, 40), counts=counts)
    maps, haadf = phantom.signals()
    if is_saturated:
        haadf.data = np.minimum(haadf.data, np.quantile(haadf.data, 1 - part))
    else:
        haadf.data[:, : round(40 * part)] = np.nan
    fused = fuse_with(maps, haadf, method="auto")
    without = fuse_with(maps, haadf, method="auto", lambda_haadf=0.0, regularization="tgv")
    error, worse = (np.mean((f.data - phantom.truth) ** 2, axis=(1, 2)) for f in (fused, without))
    assert 10 * np.mean(np.log10(error / worse)) < 0.3


def test_the_record_of_the_choice_is_saved(model, fused, tmp_path):
    found, n = fused.metadata.Fusion.selection, len(fused.elements)
    number = len(found.score)
    for name in ("regularization", "lambda_reg", "lambda_haadf", "joint", "score_error", "n_folds"):
        assert len(found[name]) == number, name
    weights = np.reshape(found.weights, (number, n))
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=1e-9)
    assert found.seed == 0 and found.sentence.startswith(f"Of {number} fits compared by held-out counts, the mean of")
    # the settings on record are those of the largest weight
    largest, settings = int(np.argmax(weights.sum(axis=1))), fused.metadata.Fusion.parameters
    for name in ("regularization", "lambda_reg", "lambda_haadf", "joint"):
        assert settings[name] == found[name][largest], name
    # and those of the model still leave the choice open
    assert model.settings.regularization == "auto"
    fused.save(tmp_path / "fused.hspy")
    loaded = hs.load(tmp_path / "fused.hspy")
    assert type(loaded) is hf.ElementMaps
    before, after = (s.metadata.Fusion.selection.as_dictionary() for s in (fused, loaded))
    assert set(before) == set(after)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_given_settings_are_kept_and_the_seed_is_recorded(scan):
    given = QUICK | {"lambda_reg": 0.9, "lambda_haadf": 0.5, "joint": False, "seed": 5}
    found = fuse_with(*scan, method="auto", **given).metadata.Fusion
    assert found.parameters.as_dictionary().items() >= {k: v for k, v in given.items() if k != "seed"}.items()
    assert not found.selection.has_item("regularization") and not found.selection.has_item("joint")
    assert found.selection.seed == 5


@pytest.mark.parametrize("wrong, words", [
    ({"seed": -1}, "seed is -1"), ({"seed": 0.5}, "seed is 0.5"), ({"joint": "yes"}, "joint is 'yes'"),
    ({"regularization": "best"}, "regularization is 'best'"), ({"lambda_haadf": "big"}, "lambda_haadf is 'big'"),
])  # fmt: skip
def test_wrong_settings_get_a_sentence(scan, wrong, words):
    with pytest.raises(ValueError, match=words):
        fuse_with(*scan, method="auto", **wrong)


def codes(fused):
    return list(fused.metadata.Fusion.diagnostics.codes)


def test_too_few_counts_are_a_warning(scan):
    maps = [m.deepcopy() for m in scan[0]]
    maps[0].data[:] = 0
    maps[0].data[4:9, 6:13] = 1
    fused = fuse_with(maps, scan[1], method="auto", tol=1e-2)
    assert "too-few-counts-for-selection" in codes(fused)
    assert fused.metadata.Fusion.selection.sentence in fused.metadata.Fusion.warnings
    assert fused.metadata.Fusion.parameters.regularization == "guided"


def core_shell_spectra(shape, continuum, units="keV", lines=None):
    """HAADF image and spectra of Pt, Fe and O, above a continuum of so many counts per channel, maybe an image.

    ``lines`` {channel: map} are added.
    """
    maps, haadf = hf.data.core_shell(shape, counts=6).signals()
    mean = np.broadcast_to(continuum, shape)[..., None]
    counts = np.random.default_rng(1).poisson(mean, (*shape, 1000)).astype("u2")
    lines = {944: maps[0].data, 640: maps[1].data, 52: maps[2].data, **(lines or {})}  # Pt La, Fe Ka, O Ka
    for channel, one in lines.items():
        counts[..., channel] += one.astype("u2")
    eds = hs.signals.Signal1D(counts)
    eds.set_signal_type("EDS_TEM")
    eds.set_microscope_parameters(beam_energy=200)
    energy, *axes = eds.axes_manager[-1], *eds.axes_manager.navigation_axes
    energy.scale, energy.units = {"keV": 0.01, "eV": 10}[units], units
    for axis, same in zip(axes, haadf.axes_manager.signal_axes, strict=True):
        axis.scale, axis.units = same.scale, same.units
    return haadf, eds


@pytest.mark.parametrize("method", [pytest.param("auto", marks=pytest.mark.nightly), "calibrated"])
def test_elements_of_the_file_without_structure_are_not_fused(method):
    haadf, eds = core_shell_spectra((40, 40), 0.02)
    even, present = ["Al", "Cl", "Si"], ["Fe", "O", "Pt"]
    eds.set_elements(even + present)
    fused = eds.fuse(haadf, method=method, show_progressbar=False)
    found = fused.metadata.Fusion.diagnostics
    sentence = found.sentences[list(found.codes).index("elements-without-structure")]
    assert "Al, Cl and Si" in sentence and list(fused.metadata.Fusion.constant_elements) == even
    measured = hf.element_maps(eds)
    assert fused.elements == measured.elements
    if method == "calibrated":
        # the same from maps that were read before, unless somebody selects
        of_maps, of_some = (m.fuse(haadf, method=method, show_progressbar=False) for m in (measured, measured.inav[:5]))
        assert list(of_maps.metadata.Fusion.constant_elements) == even
        assert not of_some.metadata.Fusion.constant_elements
    for element in even:
        np.testing.assert_array_equal(fused.get_map(element).data, measured.get_map(element).data)
    expected = eds.fuse(haadf, elements=present, method="calibrated", show_progressbar=False)
    if method == "calibrated":
        chosen = np.stack([fused.get_map(e).data for e in present])
        np.testing.assert_allclose(chosen, expected.data, rtol=1e-4, atol=1e-4)
    asked = eds.fuse(haadf, elements=["Al", *present], method="calibrated", show_progressbar=False)
    assert "elements-without-structure" not in asked.metadata.Fusion.diagnostics.codes
    # where nothing has structure, everything is fused
    eds.set_elements(even)
    assert not eds.fuse(haadf, method="calibrated", show_progressbar=False).metadata.Fusion.constant_elements


def not_fused(haadf, eds, **options):
    """Elements that a calibrated fit would leave out."""
    model = hf.FusedMultiModal(haadf, eds, method="calibrated", **options)
    return [e for d in model.diagnostics if d.code == "elements-without-structure" for e in d.elements]


@pytest.mark.parametrize("counts, units, is_lazy", [(0.2, "eV", True), (1, "keV", False)])
def test_elements_of_the_file_without_a_line_are_not_fused(counts, units, is_lazy):
    shape = (48, 48)
    thickness = np.linspace(0.4, 1.6, 48) * (1 + (np.indices(shape)[0] > 20))
    rng = np.random.default_rng(5)
    iron = hf.data.core_shell(shape, counts=6).maps[1]
    grain = np.zeros(shape)
    grain[30:36, 8:14] = 3 + counts
    # Fe Kb in the window of Co, S in that of Mo, and a grain of Ti
    lines = {706: rng.binomial(iron.astype(int), 0.13), 231: rng.poisson(thickness), 451: rng.poisson(grain)}
    haadf, eds = core_shell_spectra(shape, counts / 25 * thickness, units, lines)
    eds = eds.as_lazy(chunks=(24, 48, 300)) if is_lazy else eds
    eds.set_elements(["Co", "Cr", "Fe", "Mo", "O", "Pt", "S", "Sc", "Ti"])
    eds.set_lines(["Co_Ka", "Cr_Ka", "Fe_Ka", "Mo_La", "O_Ka", "Pt_La", "S_Ka", "Sc_Ka", "Ti_Ka"])
    before = snapshot(eds)
    assert not_fused(haadf, eds) == not_fused(haadf, eds, background="windows") == ["Cr", "Sc"]
    assert_untouched(eds, before)
    assert not not_fused(haadf, eds, elements=list(eds.metadata.Sample.elements))
    # without room beside the line nothing shows that there is none
    eds.metadata.Sample.elements += ["V", "Mn", "I", "Cs", "Ba"]
    assert "Cr" not in not_fused(haadf, eds)


@pytest.mark.nightly
def test_elements_of_real_files_are_fused_unless_they_have_no_line():
    haadf, eds = hf.scan(shared("data/bruker_test_TEM.bcf"))
    assert not not_fused(haadf, eds)
    # Cr is in grains; Nb is not in the sample
    haadf, eds = hf.scan(shared("data/L2083-K-4-1_tilt0.bcf"))
    assert not not_fused(haadf, eds)
    eds.metadata.Sample.elements += ["Nb"]
    eds.metadata.Sample.xray_lines += ["Nb_Ka"]
    assert not_fused(haadf, eds) == ["Nb"]


def test_masks_and_nan_and_constant_maps(scan):
    maps, haadf = scan
    quick = QUICK | {"joint": True, "lambda_haadf": 1.0}
    hole = np.zeros((32, 32), bool)
    hole[5:9, 20:25] = True
    flat = maps[0].deepcopy()
    flat.data[:] = 3
    flat.metadata.Sample.elements = ["Fe"]
    flat.metadata.General.title = "Fe"

    def fused(value, mask):
        holed = [m._deepcopy_with_new_data(np.where(hole, value, m.data)) for m in maps]
        return fuse_with(holed, haadf, method="auto", mask=mask, **quick)

    masked = fused(1000.0, hole)
    np.testing.assert_array_equal(masked.data, fused(np.nan, hole).data)
    assert np.isfinite(fused(np.nan, None).data).all()
    with_flat = fuse_with([maps[0], flat, maps[1]], haadf, method="auto", **quick)
    without = fuse_with(maps, haadf, method="auto", **quick)
    np.testing.assert_array_equal(with_flat.data[[0, 2]], without.data)
    np.testing.assert_array_equal(with_flat.data[1], 3)


def test_a_fit_goes_on_without_choosing_again(scan, monkeypatch):
    maps, haadf = scan
    model = hf.FusedMultiModal(haadf, maps, method="auto")
    first = model.fit(regularization="directional", tol=1e-2)
    record = model.as_signal().metadata.Fusion.selection.as_dictionary()
    with monkeypatch.context() as context:
        context.setattr(search, "select", None)
        second = model.fit(tol=1e-4)
    assert second.success and second.nit > first.nit and second.gap <= 1e-4
    np.testing.assert_equal(model.as_signal().metadata.Fusion.selection.as_dictionary(), record)
    # with another seed there is another choice
    fit_with(model, seed=1)
    assert model.as_signal().metadata.Fusion.selection.seed == 1


def test_a_stop_keeps_what_was_reached(scan, model):
    def stop(state):
        raise StopIteration

    stopped = hf.FusedMultiModal(scan[1], scan[0], method="auto")
    output = stopped.fit(callback=stop)
    assert not output.success and np.isfinite(output.x).all()
    # and goes on to the same maps, with all fits of the ensemble
    output = stopped.fit()
    assert output.success
    np.testing.assert_allclose(output.x, model.fit_output.x, atol=0.05 * model.fit_output.x.max())


def test_normalised_residuals(phantom, scan, model, fused):
    found = model.normalised_residuals()
    assert type(found) is hf.ElementMaps and found.elements == fused.elements
    assert found.metadata.General.title.startswith("Normalised residuals of") and not found.metadata.has_item("Fusion")
    expected = (phantom.maps - fused.data) / np.sqrt(np.maximum(fused.data, 1e-3))
    np.testing.assert_allclose(found.data, expected, rtol=1e-4, atol=1e-4)
    assert 0.8 < found.data[:, phantom.truth.min(axis=0) > 1].std() < 1.1
    with pytest.raises(ValueError, match="call fit"):
        hf.FusedMultiModal(scan[1], scan[0], method="auto").normalised_residuals()
    published = hf.FusedMultiModal(scan[1], scan[0], method="published")
    published.fit(max_iter=2)
    with pytest.raises(ValueError, match="no model of the noise"):
        published.normalised_residuals()


def test_errors_and_attribution_of_an_ensemble(phantom, model, fused):
    assert len(model._fit.setup.problem.problems) > 1
    parts = model.attribution()
    total = sum(part.data.astype(float) for part in parts.values())
    np.testing.assert_allclose(total, fused.data - phantom.maps, atol=1e-3)
    assert np.abs(parts["penalty"].data).max() > 0.1
    errors = model.standard_errors(3).data
    fused = model.as_signal()
    assert errors.shape == fused.data.shape and np.all(errors > 0)
    made = np.sqrt(np.mean((fused.data - phantom.truth) ** 2))
    assert 0.4 < np.sqrt(np.mean(errors**2)) / made < 2.5
    assert np.all(model.attainable_gain().data >= 1)


def test_an_unmapped_particle_is_an_information(scan, fused):
    maps, haadf = scan
    odd = haadf.deepcopy()
    odd.data[4:12, 4:12] += np.ptp(haadf.data)
    found = fuse_with(maps, odd, method="auto", **QUICK)
    assert "haadf-unexplained" in codes(found) and "haadf-unexplained" not in codes(fused)
    index = codes(found).index("haadf-unexplained")
    assert found.metadata.Fusion.diagnostics.sentences[index] not in found.metadata.Fusion.warnings


@pytest.mark.parametrize("method", ["published", "calibrated", "auto"])
def test_negative_maps_are_fused_by_every_method(phantom, method):
    maps, haadf = phantom.signals()
    rng = np.random.default_rng(0)
    for m in maps:
        m.data = (m.data + rng.normal(0, 1.5, m.data.shape)).astype(np.float32)
    one = {"regularization": "directional"} if method == "auto" else {}
    fused = hf.fuse(maps, haadf, method=method, max_iter=20, **one)
    assert any("negative values" in sentence for sentence in fused.metadata.Fusion.warnings)


@pytest.mark.parametrize("method", ["published", "calibrated", "auto"])
def test_negative_values_of_known_noise_are_no_warning(method):
    from hyperspy_fusion.maps.stack import with_noise_metadata

    def warned(maps):
        return [w for w in hf.FusedMultiModal(haadf, maps, method=method).warnings if "negative values" in w]

    maps, haadf = hf.data.core_shell((32, 32), counts=16).signals()
    for m, zero in zip(maps, (3.0, 1e-7, 2.0), strict=True):
        m.data = m.data - zero
    (sentence,) = warned(maps)
    # what is below 0 by rounding is not
    assert "The maps of Pt (down to -3) and O (down to -2) have" in sentence
    assert "add a constant" not in sentence
    for m in maps:
        with_noise_metadata(m, None, np.full(m.data.shape, 4.0))
    assert len(warned(maps)) == (method == "published")


def test_maps_that_were_smoothed_before_are_a_warning(phantom):
    from scipy.ndimage import gaussian_filter

    maps, haadf = phantom.signals()
    for m in maps:
        m.data = gaussian_filter(m.data.astype(float), 0.8)
    fused = fuse_with(maps, haadf, method="auto", regularization="tv", lambda_haadf=0, joint=True)
    assert codes(fused).count("noise-shared-by-neighbours") == 1
    assert any("neighbouring pixels share" in sentence for sentence in fused.metadata.Fusion.warnings)
    assert set(fused.metadata.Fusion.usable_for) == {"not known"}


def test_noise_that_pixels_share_is_a_warning(caplog):
    from scipy.ndimage import uniform_filter

    maps, haadf = hf.data.core_shell((64, 64), counts=16).signals()
    for m in maps[:2]:
        m.data = uniform_filter(m.data.astype(float), 3)
    fused = hf.fuse(maps, haadf, method="calibrated", max_iter=5)
    (sentence,) = [w for w in fused.metadata.Fusion.warnings if "share noise" in w]
    assert "of Pt and Fe share noise" in sentence and "Pixels of the maps share noise" in caplog.text
    assert [row[2] for row in fused.report().rows] == ["not known", "not known", "structure and amounts"]


def test_an_image_without_the_maps_is_not_used(phantom, monkeypatch):
    from hyperspy_fusion.fusion.haadf.estimates import UndeterminedModelError

    def undetermined(*args, **options):
        raise UndeterminedModelError("Nothing in common.")

    monkeypatch.setattr("hyperspy_fusion.fusion.haadf.forward_model.fit_haadf_model", undetermined)
    maps, haadf = phantom.signals()
    fused = fuse_with(maps, haadf, method="calibrated", regularization="tv", tol=1e-2)
    assert any("No HAADF forward model was fitted" in s for s in fused.metadata.Fusion.diagnostics.sentences)
    without = fuse_with(maps, haadf, method="calibrated", regularization="tv", tol=1e-2, lambda_haadf=0)
    np.testing.assert_allclose(fused.data, without.data, rtol=1e-3, atol=1e-3)


def test_one_bar_shows_the_stages_and_the_time_left(capsys):
    maps, haadf = hf.data.core_shell((24, 20)).signals()
    hf.fuse(maps, haadf, show_progressbar=True)
    shown = capsys.readouterr().err
    bars = shown.split("\r")
    done = [int(bar.split("%")[0].split()[-1]) for bar in bars if "%" in bar]
    assert done[0] == 0 and done[-1] == 100 and done == sorted(done)
    assert shown[shown.index("\rFusing") :].count("\n") == 1 and bars[-1].strip().endswith("done")


def test_time_left_is_what_the_fraction_done_implies(monkeypatch):
    from hyperspy_fusion import _progress

    clock = iter([0.0, 10.0, 20.0, 30.0, 40.0])
    monkeypatch.setattr(_progress.time, "perf_counter", lambda: next(clock))
    with _progress.progress(False) as bar:
        # the search takes 0.8 of the time
        for n_fits, left in ((1, None), (6, 10 * (20 - 6 * 0.8) / (5 * 0.8)), (11, 20 * (20 - 11 * 0.8) / 8)):
            bar.choosing(n_fits, 20, 0.8)
            assert bar.left == (None if left is None else pytest.approx(left, rel=0.01))
        # sooner through than expected: the part of the search is over
        bar.fitting(SimpleNamespace(fraction=0.5, stage="fitting 1/2", n_iter=9), 100)
        # checks of the result take 0.04
        assert bar.done == 880
        # a fit that goes on has more iterations behind it than one call makes
        bar.fitting(SimpleNamespace(n_iter=250), 100)
        assert bar.done == 960


def test_the_number_of_threads_does_not_matter():
    scan = hf.data.core_shell((24, 20)).signals()
    one, two = (hf.fuse(*scan, num_workers=n, show_progressbar=False) for n in (1, 2))
    np.testing.assert_array_equal(one.data, two.data)
    searched = [fused.metadata.Fusion.selection.as_dictionary() for fused in (one, two)]
    np.testing.assert_array_equal(searched[0]["score"], searched[1]["score"])


def test_an_interrupted_search_takes_the_best_so_far(monkeypatch):
    compute, calls = low_accuracy_fits.LowAccuracyFits._fit, []

    def interrupted(self, choice, *args):
        calls.append(choice)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return compute(self, choice, *args)

    monkeypatch.setattr(low_accuracy_fits.LowAccuracyFits, "_fit", interrupted)
    fused = hf.fuse(*hf.data.core_shell((24, 20)).signals(), show_progressbar=False)
    assert np.isfinite(fused.data).all() and "selection-interrupted" in codes(fused)
    assert fused.metadata.Fusion.parameters.regularization in {c.regularization for c in calls[:4]}
    calls.clear()
    calls += [None] * 4
    with pytest.raises(KeyboardInterrupt):
        hf.fuse(*hf.data.core_shell((24, 20)).signals(), show_progressbar=False)
