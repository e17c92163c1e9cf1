"""Claims about maps of EELS edges: windows by rule, counts without bias, variances that are true."""

import exspy
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import assert_untouched, shared, snapshot
from sources import eels

from hyperspy_fusion import element_maps, fuse
from hyperspy_fusion.edges import onset_energy

OXIDE = {"O_K": 532.0, "Mn_L3": 640.0}


def spectra(counts=None, low=400.0, size=400, shape=(20, 24), dose=3e3, seed=0, **options):
    """``(24, 20|400)`` of 1 eV: a power law of ``dose`` counts at 400 eV and, of each edge, ``counts`` per channel.

    Above its onset an edge falls as ``(E / onset)^-3``. Without a ``seed`` there is no noise.
    """
    energy = low + np.arange(size)
    exponent, scale = np.full(shape, 3.0), np.full(shape, float(dose))
    scale *= np.linspace(0.5, 1.5, shape[1])
    expected = scale[..., None] * (energy / 400.0) ** -exponent[..., None]
    for edge, height in (counts or {}).items():
        onset = onset_energy(edge)
        expected += np.asarray(height)[..., None] * np.where(energy >= onset, (energy / onset) ** -3.0, 0)
    data = expected if seed is None else np.random.default_rng(seed).poisson(expected).astype(float)
    signal = exspy.signals.EELSSpectrum(data)
    axis = signal.axes_manager[-1]
    axis.name, axis.offset, axis.scale, axis.units = "Energy loss", low, 1.0, "eV"
    for spatial in signal.axes_manager.navigation_axes:
        spatial.scale, spatial.units = 0.2, "nm"
    signal.set_microscope_parameters(beam_energy=200, convergence_angle=29, collection_angle=36)
    return signal


def true_counts(edge, height, low, high):
    """In the channels of ``low`` to ``high`` eV."""
    energy = np.arange(np.ceil(low), high)
    return height * np.sum((energy / onset_energy(edge)) ** -3.0)


def windows(maps):
    return {e: list(w) for e, w in maps.metadata.Element_maps.windows.as_dictionary().items()}


# ---- windows --------------------------------------------------------------------------------------------


def test_windows_follow_from_the_onsets():
    maps = element_maps(spectra(), edges=["Mn_L3", "O_K"])
    assert maps.elements == ["Mn", "O"]
    # 20 % before the onset, not below the spectra and not within 50 eV of the edge before; 5 eV from both sides
    assert windows(maps) == {"O": [425.6, 527, 532, 585.2], "Mn": [582, 635, 640, 704]}
    assert maps.metadata.Element_maps.edges.as_dictionary() == {"Mn": "Mn_L3", "O": "O_K"}
    alone = element_maps(spectra(), edges="Mn_L3")
    assert windows(alone) == {"Mn": [512, 635, 640, 704]}


def test_windows_end_before_the_next_edge_and_at_the_spectra():
    maps = element_maps(spectra(low=600.0, size=190), edges=["Mn_L3", "Fe_L3", "Co_L3"])
    found = windows(maps)
    assert found["Mn"] == [600, 635, 640, 703]  # Fe L3 at 708 eV
    assert found["Co"][2:] == [779, 789.5]
    assert found["Fe"] == [600, 635, 708, 774]  # no room after Mn: its window serves


def test_windows_may_be_given():
    signal = spectra()
    given = (450.0, 520.0, 535.0, 560.0)
    maps = element_maps(signal, edges={"O_K": given, "Mn_L3": None})
    assert windows(maps) == {"O": list(given), "Mn": [582, 635, 640, 704]}
    background = signal.data[..., 50:120].sum(axis=-1)
    assert maps.elements == ["O", "Mn"] and np.all(background > 0)


def test_the_major_edge_of_lowest_energy_is_taken_for_an_element():
    signal = spectra()
    maps = element_maps(signal, ["Mn", "O"])
    assert maps.metadata.Element_maps.edges.as_dictionary() == {"Mn": "Mn_L3", "O": "O_K"}
    np.testing.assert_array_equal(maps.data, element_maps(signal, edges=["Mn_L3", "O_K"]).data)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"edges": ["Mn_L"]}, "'Mn_L' is not an edge of Mn that exspy knows: did you mean Mn_L"),
        ({"edges": ["Xx_K"]}, "'Xx' is not the symbol of a chemical element"),
        ({"edges": ["Mn_L3", "Mn_L2"]}, "names Mn 2 times"),
        ({"edges": ["Al_K"]}, "background window of Al_K, .* has fewer than 4 channels of the spectra"),
        (
            {"elements": ["Al"]},
            r"Al has no major edge within the spectra, 400 to 799 eV \(its edges: .*Al_K at 1560 eV",
        ),
        ({"edges": {"O_K": (1, 2, 3)}}, "windows of O_K are .*: expected four rising energies"),
        ({"edges": {"O_K": (500, 540, 532, 580)}}, "expected four rising energies"),
        ({"edges": ["O_K"], "elements": ["Mn"]}, "leave elements out, for the edges tell them"),
        ({"edges": ["O_K"], "background": "windows"}, "xray_lines and background are of EDS data"),
        ({"xray_lines": ["O_Ka"]}, "name the edges by edges="),
        ({}, "whose edges lie on a background: fit a model .* or make maps of edges"),
    ],
)
def test_edges_that_cannot_be_mapped_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        element_maps(spectra(shape=(3, 4)), **arguments)


def test_other_things_have_no_edges_and_energies_are_in_ev():
    with pytest.raises(ValueError, match="edges selects from an EELS spectrum image"):
        element_maps([hs.signals.Signal2D(np.ones((3, 4)))], ["Fe"], edges=["Fe_L3"])
    signal = spectra(shape=(3, 4))
    signal.axes_manager[-1].units = "keV"
    with pytest.raises(ValueError, match="has the units keV: expected eV"):
        element_maps(signal, edges=["O_K"])


def test_edges_of_the_sample_in_the_windows_are_told():
    signal = spectra()
    signal.metadata.set_item("Sample.elements", ["O", "Mn", "V"])
    (warning,) = element_maps(signal, edges=["Mn_L3"]).metadata.Element_maps.warnings
    assert warning.startswith("V_L3, V_L2, O_K of the sample lie in the windows of Mn_L3 (512 to 704 eV)")
    (warning,) = element_maps(signal, edges=["Mn_L3", "O_K"]).metadata.Element_maps.warnings
    assert warning.startswith("V_L3, V_L2 of the sample lie in the windows of O_K")


# ---- counts ---------------------------------------------------------------------------------------------


def heights(shape=(20, 24)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return {"O_K": 20.0 + 20 * (x > shape[1] / 2), "Mn_L3": 30.0 * (y > shape[0] / 2)}


def test_counts_of_the_edge_alone_are_left():
    """On the mean over many pixels, which knows the background well."""
    edges = {"O_K": np.full((40, 40), 40.0)}
    maps = element_maps(spectra(edges, shape=(40, 40), dose=3e3), edges=["O_K"])
    expected = true_counts("O_K", 40.0, 532, 585)
    error = np.sqrt(maps.get_noise_variance().data.mean() / 1600)
    assert abs(maps.data.mean() - expected) < 4 * error and error < 0.02 * expected


def test_without_noise_the_power_law_is_taken_out():
    edges = heights()
    maps = element_maps(spectra(edges, seed=None), edges=list(edges))
    for name, part in (("O_K", (532, 585)), ("Mn_L3", (640, 704))):
        expected = true_counts(name, edges[name].max(), *part)
        found = maps.get_map(name.split("_")[0]).data
        inside = edges[name] == edges[name].max()
        # the exponent is that of a neighbourhood, and HyperSpy's estimate is not exact
        assert found[inside].mean() == pytest.approx(expected, rel=0.05)
    assert np.abs(maps.get_map("Mn").data[:8]).max() < 0.05 * true_counts("Mn_L3", 30.0, 640, 704)


@pytest.mark.slow
@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_the_variance_is_that_of_many_scans(gain):
    """Of counts that are electrons, and of such that are not."""
    edges = {"O_K": np.full((24, 30), 25.0)}
    scans = [spectra(edges, shape=(24, 30), dose=2e3, seed=seed) * gain for seed in range(8)]
    maps = [element_maps(s, edges=["O_K"]) for s in scans]
    seen = np.var([m.data[0] for m in maps], axis=0, ddof=1)
    told = np.mean([m.get_noise_variance().data[0] for m in maps], axis=0)
    assert told.mean() == pytest.approx(seen.mean(), rel=0.1)
    # thicker to the right, by three
    columns = [np.s_[:, :10], np.s_[:, 20:]]
    ratios = [told[c].mean() / seen[c].mean() for c in columns]
    np.testing.assert_allclose(ratios, 1, atol=0.15)
    assert told[:, 20:].mean() > 1.5 * told[:, :10].mean()


def test_counts_that_are_electrons_need_no_noise_of_the_map(monkeypatch):
    """The variance by propagation alone is that of many scans."""
    monkeypatch.setattr("hyperspy_fusion.eels.estimate_variance", lambda image: 0.0)
    edges = {"O_K": np.full((24, 30), 25.0)}
    maps = [element_maps(spectra(edges, shape=(24, 30), dose=2e3, seed=s), edges=["O_K"]) for s in range(6)]
    seen = np.var([m.data[0] for m in maps], axis=0, ddof=1).mean()
    assert maps[0].get_noise_variance().data.mean() == pytest.approx(seen, rel=0.15)


def test_pixels_without_counts_have_the_background_of_the_mean_spectrum():
    signal = spectra({"O_K": np.full((20, 24), 25.0)})
    signal.data[:6, :6] = 0
    maps = element_maps(signal, edges=["O_K"])
    assert np.isfinite(maps.data).all() and np.isfinite(maps.get_noise_variance().data).all()
    np.testing.assert_array_equal(maps.data[0, :3, :3], 0)
    assert maps.get_noise_variance().data.min() > 0


@pytest.mark.parametrize("how", ["lazy", "energy first", "integers"])
def test_the_form_of_the_spectra_does_not_matter(how):
    signal = spectra(heights())
    expected = element_maps(signal, edges=["Mn_L3", "O_K"])
    if how == "lazy":
        other = signal.as_lazy()
    elif how == "integers":
        other = signal.deepcopy()
        other.change_dtype("int32")
    else:
        axes = [axis.get_axis_dictionary() for axis in signal.axes_manager._axes]
        other = exspy.signals.EELSSpectrum(np.moveaxis(signal.data, -1, 0).copy(), axes=[axes[2], *axes[:2]])
        other.metadata.add_dictionary(signal.metadata.as_dictionary())
    before = snapshot(other)[1:3]
    found = element_maps(other, edges=["Mn_L3", "O_K"])
    np.testing.assert_allclose(found.data, expected.data, rtol=1e-9)
    np.testing.assert_allclose(found.get_noise_variance().data, expected.get_noise_variance().data, rtol=1e-9)
    assert snapshot(other)[1:3] == before and not found._lazy
    assert found.axes_manager[1].units == "nm" and found.axes_manager[1].scale == pytest.approx(0.2)


def test_the_spectra_are_not_changed():
    signal = spectra(heights())
    before = snapshot(signal)
    element_maps(signal, edges=["Mn_L3", "O_K"])
    assert_untouched(signal, before)


@pytest.mark.parametrize("bent", [True, False])
def test_a_background_that_is_no_power_law_is_told(bent):
    """By a tail of something before the window: the nearer half of it knows less of that."""
    signal = spectra({"Mn_L3": np.full((20, 24), 10.0)}, dose=3e4)
    if bent:
        energy = signal.axes_manager[-1].axis
        tail = 4e3 * np.exp(-(((energy - 500) / 60) ** 2))
        signal.data += np.random.default_rng(1).poisson(np.broadcast_to(tail, signal.data.shape))
    maps = element_maps(signal, edges=["Mn_L3"])
    told = [w for w in maps.metadata.get_item("Element_maps.warnings", default=[]) if "No power law" in w]
    assert len(told) == bent
    if bent:
        assert "before Mn_L3, or the edge begins in it: by the nearer half of its window, 573.5 to 635 eV" in told[0]


# ---- edges that lie on others ---------------------------------------------------------------------------


def brass(copper, zinc, low=700.0, angles=True):
    """Noiseless spectra of exspy's hydrogenic edges on a power law."""
    signal = spectra(low=low, size=500, shape=np.shape(copper), dose=3e4, seed=None)
    axis = signal.axes_manager[-1]
    for name, amount in (("Cu_L3", copper), ("Zn_L3", zinc)):
        edge = exspy.components.EELSCLEdge(name, GOS="hydrogenic")
        edge.fine_structure_active = False
        edge.set_microscope_parameters(200, 29, 36, axis.scale)
        edge.intensity.value = 1.0
        signal.data += np.asarray(amount)[..., None] * np.asarray(edge.function(axis.axis))
    if not angles:
        del signal.metadata.Acquisition_instrument.TEM.convergence_angle
    return signal


def test_an_edge_on_the_tail_of_another_is_freed_of_it(caplog):
    copper, zinc = np.full((12, 12), 20.0), np.full((12, 12), 10.0)
    copper[:, 6:] = 0
    zinc[6:] = 0
    maps = element_maps(brass(copper, zinc), edges=["Zn_L3", "Cu_L3"])
    assert maps.elements == ["Zn", "Cu"]
    assert "Zn_L3 lies on Cu_L3" in caplog.text
    sections = maps.metadata.Element_maps.cross_sections
    for data, amount, section in zip(maps.data, (zinc, copper), (sections.Zn, sections.Cu), strict=True):
        np.testing.assert_allclose(data / section, amount, atol=1.0)
    # the corners are away from the edges of the specimen, over which the exponent is averaged
    fractions = maps.atomic_percent("cross_section").data[0]
    corners = [fractions[0, 0], fractions[0, -1], fractions[-1, 0]]
    np.testing.assert_allclose(corners, [100 / 3, 100, 0], atol=2)


def test_without_cross_sections_the_tail_cannot_be_told():
    copper = np.full((4, 4), 20.0)
    with pytest.raises(ValueError, match="Zn_L3 lies on Cu_L3, too near .* need beam energy"):
        element_maps(brass(copper, copper, angles=False), edges=["Cu_L3", "Zn_L3"])
    given = {"Cu_L3": None, "Zn_L3": (975.0, 1012.0, 1020.0, 1100.0)}
    maps = element_maps(brass(copper, copper, angles=False), edges=given)
    assert not maps.metadata.has_item("Element_maps.cross_sections")
    with pytest.raises(ValueError, match="only maps of EELS edges know"):
        maps.atomic_percent("cross_section")


# ---- fusing ---------------------------------------------------------------------------------------------


def test_fusing_takes_the_variance_of_the_maps():
    edges = heights()
    signal = spectra(edges)
    maps = element_maps(signal, edges=list(edges))
    haadf = hs.signals.Signal2D(8.0**1.7 * edges["O_K"] + 25**1.7 * edges["Mn_L3"])
    for axis, same in zip(haadf.axes_manager.signal_axes, signal.axes_manager.navigation_axes, strict=True):
        axis.scale, axis.units, axis.name = same.scale, same.units, same.name
    fused = maps.fuse(haadf, method="calibrated", regularization="tv", tol=1e-3)
    fit = fused.metadata.Fusion
    assert fit.noise == "gaussian" and fit.noise_sentence.startswith("The variance of the maps is known")
    np.testing.assert_allclose(fit.variance, 1 / (1 / maps.get_noise_variance().data).mean(axis=(1, 2)), rtol=1e-6)
    assert fused.get_noise_variance() is None
    # a variance that is given is stronger, and so is another noise
    given = maps.fuse(haadf, method="calibrated", regularization="tv", tol=1e-2, variance=(3e3, 3e3)).metadata.Fusion
    np.testing.assert_allclose(given.variance, 3e3)
    # the noise of a pixel counts: where it is small the maps are believed
    variance = maps.get_noise_variance().data.copy()
    variance[:, :, 12:] *= 100
    uneven = maps.deepcopy()
    uneven.get_noise_variance().data = variance
    found = uneven.fuse(haadf, method="calibrated", regularization="tv", tol=1e-3, lambda_haadf=0).data
    even = maps.fuse(haadf, method="calibrated", regularization="tv", tol=1e-3, lambda_haadf=0).data
    noise = [np.std(x[0, :, 14:] - x[0, :, 14:].mean()) for x in (found, even)]
    assert noise[0] < noise[1]


def test_low_loss_windows_are_maps_as_any_others():
    low_loss = spectra(low=1.0, size=60)
    plasmon = {"Al": low_loss.isig[14.0:16.0].integrate1D(-1), "Mg": low_loss.isig[10.0:11.0].integrate1D(-1)}
    maps = element_maps(plasmon)
    assert maps.elements == ["Al", "Mg"] and maps.metadata.Signal.signal_type == "element_maps"
    np.testing.assert_array_equal(maps.data[0], plasmon["Al"].data)
    named = element_maps(list(plasmon.values()), ["Al", "Mg"])
    np.testing.assert_array_equal(named.data, maps.data)


def fitted_model():
    signal = brass(np.full((2, 3), 20.0), np.full((2, 3), 10.0))
    model = signal.create_model(GOS="hydrogenic", auto_background=False)
    model.append(exspy.components.EELSCLEdge("Zn_L3", GOS="hydrogenic"))
    model.append(exspy.components.EELSCLEdge("Cu_L3", GOS="hydrogenic"))
    for edge, value in zip(model, (10.0, 20.0), strict=True):
        edge.intensity.map["values"], edge.intensity.map["is_set"] = value, True
        edge.intensity.map["std"] = 0.5
    return model


def test_edges_of_a_fitted_model_name_their_elements_and_count_atoms():
    model = fitted_model()
    for source in (model, [model["Cu_L3"], model["Zn_L3"]]):
        maps = element_maps(source)
        assert maps.elements == ["Cu", "Zn"]
        np.testing.assert_array_equal(maps.data[:, 0, 0], [20, 10])
        np.testing.assert_allclose(maps.get_noise_variance().data, 0.25)
        np.testing.assert_allclose(maps.atomic_percent("cross_section").data[:, 0, 0], [200 / 3, 100 / 3])
    assert element_maps([model["Zn_L3"], model["Cu_L3"]]).elements == ["Zn", "Cu"]
    model["Zn_L3"].intensity.map["is_set"][0, 0] = False
    with pytest.raises(ValueError, match="is not fitted at every pixel"):
        element_maps([model["Cu_L3"], model["Zn_L3"]])


def test_a_variance_of_zeros_is_none():
    model = fitted_model()
    for edge in model:
        edge.intensity.map["std"] = 0
    assert element_maps(model).get_noise_variance() is None


# ---- a real scan ----------------------------------------------------------------------------------------


def real():
    signal = hs.load(shared("data/CuZn_EELS_mapping_tutorial.hspy"))
    models = [hs.load(shared(f"data/{e}_map.hspy")) for e in ("Cu", "Zn")]
    return signal, models, hs.load(shared("data/CuZn_HAADF.hspy"))


def test_window_maps_of_a_real_scan_are_those_of_its_model():
    signal, models, _ = real()
    maps = element_maps(signal, edges=["Cu_L3", "Zn_L3"])
    for data, model in zip(maps.data, models, strict=True):
        assert np.corrcoef(data.ravel(), model.data.ravel())[0, 1] > 0.95
    # what the two do not agree in
    copper, zinc = (w for w in maps.metadata.Element_maps.warnings if "No power law" in w)
    assert "before Cu_L3" in copper and "9% larger, which is 0.5% of the background" in copper
    assert "before Zn_L3" in zinc
    np.testing.assert_array_equal(element_maps(signal, ["Zn", "Cu"]).data, maps.data[::-1])


@pytest.mark.slow
def test_fused_windows_of_a_real_scan_have_the_region_means_of_its_fused_model():
    """One scale for each element, for a model's intensity is no count; regions by the HAADF image, five of a size.

    Within 10 % of the largest region mean of the element. Where there is little copper the two differ more than that
    of what there is, as they do before fusing: no power law goes through this background.
    """
    signal, models, haadf = real()
    options = {"method": "calibrated", "tol": 1e-3, "show_progressbar": False}
    windowed = element_maps(signal, edges=["Cu_L3", "Zn_L3"]).fuse(haadf, **options)
    modelled = fuse(models, haadf, **options)
    levels = np.quantile(haadf.data, np.linspace(0, 1, 6))
    regions = np.clip(np.digitize(haadf.data, levels[1:-1]), 0, 4)
    for one, other in zip(windowed.data, modelled.data, strict=True):
        a, b = (np.array([image[regions == k].mean() for k in range(5)]) for image in (one, other))
        scale = a @ b / (b @ b)
        assert np.abs(a - scale * b).max() < 0.1 * (scale * b).max()
        assert np.abs(a / (scale * b) - 1)[3:].max() < 0.1


def test_eels_of_the_sources_is_asked_for_its_edges():
    maps = element_maps(eels(), edges=["Cu_L3"])
    assert maps.elements == ["Cu"]
