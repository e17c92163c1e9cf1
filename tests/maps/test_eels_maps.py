"""Claims about maps of EELS edges: windows by rule, counts without bias, variances that are true."""

from functools import cache

import exspy
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import assert_untouched, fuse_with, shared, snapshot
from sources import codes, warnings_of

from hyperspy_fusion import FusedMultiModal, element_maps
from hyperspy_fusion.maps.eels_counts import _power_law, fitted_edges, window_counts
from hyperspy_fusion.maps.eels_edges import onset_energy, with_windows


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


def rule(edges, **options):
    """Windows by rule, without a map of spectra."""
    found = with_windows(dict.fromkeys(edges), spectra(shape=(1, 1), **options).axes_manager[-1])
    return {edge.element: [*edge.before, *edge.after] for edge in found}


def windows(maps):
    return {e: list(w) for e, w in maps.metadata.Element_maps.windows.as_dictionary().items()}


def test_windows_follow_from_the_onsets():
    maps = usual_maps()
    assert maps.elements == ["Mn", "O"]
    # 20 % before the onset, not below the spectra and not within 50 eV of the edge before; 5 eV from both sides
    assert windows(maps) == {"O": [425.6, 527, 532, 585.2], "Mn": [582, 635, 640, 704]}
    assert maps.metadata.Element_maps.edges.as_dictionary() == {"Mn": "Mn_L3", "O": "O_K"}
    assert rule(["Mn_L3"]) == {"Mn": [512, 635, 640, 704]}
    found = rule(["Mn_L3", "Fe_L3", "Co_L3"], low=600.0, size=190)
    assert found["Mn"] == [600, 635, 640, 703]  # Fe L3 at 708 eV
    assert found["Co"][2:] == [779, 789.5]
    assert found["Fe"] == [600, 635, 708, 774]  # no room after Mn: its window serves
    given = (450.0, 520.0, 535.0, 560.0)
    maps = element_maps(spectra(shape=(3, 4)), edges={"O_K": given, "Mn_L3": None})
    assert windows(maps) == {"O": list(given), "Mn": [582, 635, 640, 704]} and maps.elements == ["O", "Mn"]


def test_windows_that_hold_other_edges_warn():
    for before, expected in ((660, ["background-window-beyond-onset"]), (640, [])):
        found = codes(element_maps(spectra(shape=(6, 7)), edges={"Mn_L3": (560, before, 670, 704)}))
        assert [code for code in found if code != "no-power-law"] == expected
    signal = spectra(shape=(6, 7))
    signal.metadata.set_item("Sample.elements", ["O", "Mn", "V"])
    maps = element_maps(signal, edges=["Mn_L3"])
    assert codes(maps) == ["other-edges-in-window"]
    assert warnings_of(maps)[0].startswith("V_L3, V_L2, O_K of the sample lie in the windows of Mn_L3 (512 to 704 eV)")
    maps = element_maps(signal, edges=["Mn_L3", "O_K"])
    assert warnings_of(maps)[0].startswith("V_L3, V_L2 of the sample lie in the windows of O_K")


def test_the_lowest_major_edge_in_ev_is_taken():
    maps = element_maps(spectra(heights()), ["Mn", "O"])
    assert maps.metadata.Element_maps.edges.as_dictionary() == {"Mn": "Mn_L3", "O": "O_K"}
    np.testing.assert_array_equal(maps.data, usual_maps().data)
    signal = spectra(shape=(3, 4))
    signal.axes_manager[-1].units = "keV"
    with pytest.raises(ValueError, match="has the units keV: expected eV"):
        element_maps(signal, edges=["O_K"])


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"edges": {}}, "edges is {}, which is empty: name at least one"),
        ({"edges": ["Mn_L"]}, "'Mn_L' is not an edge of Mn that exspy knows: did you mean Mn_L"),
        ({"edges": ["Mn_L3", "Mn_L2"]}, "names Mn 2 times"),
        ({"edges": {"O_K": (500, 502, 532, 580)}}, "window of O_K, 500 to 502 eV, has fewer than 4 channels of the sp"),
        ({"edges": ["Al_K"]}, "from 400 to 799 eV, have no room for the background window of Al_K, .* at 1560 eV: lea"),
        ({"edges": ["C_K"]}, "from 400 to 799 eV, have no room for the background window of C_K, .* is at 284 eV: lea"),
        ({"edges": ["N_K"]}, "from 400 to 799 eV, have no room for the background window of N_K, .* is at 401 eV: lea"),
        ({"edges": {"O_K": (100, 200, 540, 580)}}, "have no room for the background window of O_K"),
        (
            {"elements": ["Al"]},
            r"Al has no major edge within the spectra, 400 to 799 eV \(its edges: .*Al_K at 1560 eV",
        ),
        ({"edges": {"O_K": (1, 2, 3)}}, "windows of O_K are .*: expected four rising energies"),
        ({"edges": {"O_K": (500, 540, 532, 580)}}, "expected four rising energies"),
        (
            {"edges": {"Mn_L3": (450, 520, 530, 600)}},
            "signal window of Mn_L3 is 530 to 600 eV, .* begins at 640 eV: expected .* beyond it; give",
        ),
        ({"edges": ["O_K"], "elements": ["Mn"]}, "leave elements out, for edges name them"),
        (
            {"edges": ["O_K"], "background": "fit"},
            "background is 'fit', and of EELS spectra it is 'windows', .* or 'model'",
        ),
        ({}, "whose edges lie on a background: make maps of edges by .* or fit a model"),
    ],
)
def test_edges_that_cannot_be_mapped_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        element_maps(spectra(shape=(3, 4)), **arguments)


def heights(shape=(20, 24)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return {"O_K": 20.0 + 20 * (x > shape[1] / 2), "Mn_L3": 30.0 * (y > shape[0] / 2)}


@cache
def usual_maps(background=None):
    """What the spectra of these heights are mapped to, by default and otherwise: not to be changed."""
    return element_maps(spectra(heights()), edges=["Mn_L3", "O_K"], background=background)


def test_counts_of_the_edge_alone_are_left():
    """On the mean over many pixels, which knows the background well."""
    edges = {"O_K": np.full((40, 40), 40.0)}
    maps = element_maps(spectra(edges, shape=(40, 40), dose=3e3), edges=["O_K"])
    expected = true_counts("O_K", 40.0, 532, 585)
    error = np.sqrt(maps.get_noise_variance().data.mean() / 1600)
    assert abs(maps.data.mean() - expected) < 4 * error and error < 0.02 * expected
    edges = heights()
    maps = element_maps(spectra(edges, seed=None), edges=list(edges))
    for name, part in (("O_K", (532, 585)), ("Mn_L3", (640, 704))):
        expected = true_counts(name, edges[name].max(), *part)
        found = maps.get_map(name.split("_")[0]).data
        inside = edges[name] == edges[name].max()
        # the exponent is that of a neighbourhood, and HyperSpy's estimate is not exact
        assert found[inside].mean() == pytest.approx(expected, rel=0.05)
    assert np.abs(maps.get_map("Mn").data[:8]).max() < 0.05 * true_counts("Mn_L3", 30.0, 640, 704)


@pytest.mark.parametrize("gain", [pytest.param(1.0, marks=pytest.mark.nightly), 4.0])
def test_the_variance_is_that_of_many_scans(gain):
    """Of counts that are electrons, and of such that are not."""
    edges = {"O_K": np.full((36, 48), 25.0)}
    scans = [spectra(edges, shape=(36, 48), dose=2e3, seed=seed) * gain for seed in range(4)]
    maps = [element_maps(s, edges=["O_K"]) for s in scans]
    seen = np.var([m.data[0] for m in maps], axis=0, ddof=1)
    found = np.mean([m.get_noise_variance().data[0] for m in maps], axis=0)
    assert found.mean() == pytest.approx(seen.mean(), rel=0.1)
    # thicker to the right, by three
    thin, thick = np.s_[:, :16], np.s_[:, 32:]
    np.testing.assert_allclose([found[c].mean() / seen[c].mean() for c in (thin, thick)], 1, atol=0.15)
    assert found[thick].mean() > 1.5 * found[thin].mean()


def test_counts_that_are_electrons_need_no_noise_of_the_map():
    """The variance by propagation alone is that of many scans."""
    scans = [spectra({"O_K": np.full((36, 48), 25.0)}, shape=(36, 48), dose=2e3, seed=s) for s in range(3)]
    edges = with_windows({"O_K": None}, scans[0].axes_manager[-1])
    (first,), *_ = (found := [window_counts(s, edges)[0] for s in scans])
    seen = np.var([edge.net for (edge,) in found], axis=0, ddof=1).mean()
    assert first.variance.mean() == pytest.approx(seen, rel=0.15)


def test_pixels_without_counts_have_a_background():
    signal = spectra({"O_K": np.full((20, 24), 25.0)})
    signal.data[:6, :6] = 0
    signal.data[10, 10, : signal.axes_manager[-1].value2index(490.0)] = 0
    signal.data[11, 10, signal.axes_manager[-1].value2index(460.0) :] = 0
    maps = element_maps(signal, edges=["O_K"])
    assert np.isfinite(maps.data).all() and np.isfinite(maps.get_noise_variance().data).all()
    np.testing.assert_array_equal(maps.data[0, :3, :3], 0)
    assert maps.get_noise_variance().data.min() > 0


@pytest.mark.parametrize("how", ["lazy", "energy first", "integers"])
def test_the_form_of_the_spectra_does_not_matter(how):
    signal, expected = spectra(heights()), usual_maps().get_map("O")
    noise = usual_maps().get_noise_variance().data[1]
    if how == "lazy":
        other = signal.as_lazy()
    elif how == "integers":
        other = signal.deepcopy()
        other.change_dtype("int32")
    else:
        axes = [axis.get_axis_dictionary() for axis in signal.axes_manager._axes]
        other = exspy.signals.EELSSpectrum(np.moveaxis(signal.data, -1, 0).copy(), axes=[axes[2], *axes[:2]])
        other.metadata.add_dictionary(signal.metadata.as_dictionary())
    before = snapshot(other)
    found = element_maps(other, edges=["O_K"])
    assert_untouched(other, before)
    np.testing.assert_allclose(found.data[0], expected.data, rtol=1e-9)
    np.testing.assert_allclose(found.get_noise_variance().data[0], noise, rtol=1e-9)
    assert not found._lazy
    assert found.axes_manager[1].units == "nm" and found.axes_manager[1].scale == pytest.approx(0.2)


@pytest.mark.parametrize("gain, background", [(400.0, "windows"), (1e-4, "model")])
def test_a_background_that_is_no_power_law_warns(gain, background):
    """By a tail before the window, of which the nearer half knows less. In few counts more than chance is reported."""
    signal = spectra({"Mn_L3": np.full((8, 9), 5.0)}, shape=(8, 9), dose=500) * gain
    tail = 300 * gain * np.exp(-(((signal.axes_manager[-1].axis - 500) / 60) ** 2))
    for one, expected in ((signal, []), (signal + tail, ["no-power-law"])):
        assert codes(element_maps(one, edges=["Mn_L3"], background=background)) == expected


@pytest.mark.parametrize("value, background", [(np.nan, "windows"), (4095.0, "model")])
def test_invalid_spectra_are_nan_and_others_keep_their_maps(value, background):
    signal = spectra(heights())
    whole = usual_maps(background)
    dead = np.zeros((20, 24), bool)
    dead[:, 7] = dead[3, 15] = True
    signal.data[dead] = value
    maps = element_maps(signal, edges=["Mn_L3", "O_K"], background=background)
    assert codes(maps) == ["invalid-spectra"] and warnings_of(maps)[0].startswith("21 pixels of 480 with NaN")
    for found in (maps, maps.get_noise_variance()):
        np.testing.assert_array_equal(np.isnan(found.data), np.broadcast_to(dead, found.data.shape))
    change = np.abs(maps.data - whole.data) / np.sqrt(whole.get_noise_variance().data)
    far = np.ones((20, 24), bool)  # beyond the reach of the Gaussian over which the exponent is taken
    far[:, 2:13] = far[:9, 10:21] = False
    assert change[:, far].max() < 0.03 and change[:, ~far & ~dead].max() < 1.5


@pytest.mark.parametrize("where", [np.s_[4:8, 5:9], np.s_[0, 0]], ids=str)
def test_pixels_without_a_count_among_others_with_many_warn(where):
    """A point or a line of the image inside is left out; anything else is vacuum or dead, for the user to decide."""
    signal = spectra(heights())
    signal.data[where] = 0
    empty = np.zeros((20, 24), bool)
    empty[where] = True
    maps = element_maps(signal, edges=["O_K"])
    left_out = np.isnan(maps.data[0])
    assert not (left_out & ~empty).any()
    rest = np.count_nonzero(empty & ~left_out)
    assert ("spectra-without-counts" in codes(maps)) == bool(rest) and ("invalid-spectra" in codes(maps)) != bool(rest)
    assert f"{rest or left_out.sum()} pixel" in warnings_of(maps)[0]


def test_few_counts_and_channels_outside_do_not_warn():
    signal = spectra(heights())
    signal.data = np.random.default_rng(0).poisson(0.01, signal.data.shape).astype(float)
    assert (signal.data == 0).all(axis=-1).any()
    assert "spectra-without-counts" not in codes(element_maps(signal, edges=["Mn_L3"]))
    signal = spectra(heights())
    whole = element_maps(signal, edges=["Mn_L3"])
    signal.data[..., 350] = np.nan  # at 750 eV
    np.testing.assert_array_equal(element_maps(signal, edges=["Mn_L3"]).data, whole.data)
    signal.data[..., 200] = np.nan
    with pytest.raises(ValueError, match="Every spectrum of .* has NaN, .* between 512 and 704 eV: interpolate"):
        element_maps(signal, edges=["Mn_L3"])


def test_the_calibrated_method_takes_maps_with_dead_pixels():
    edges = heights()
    signal = spectra(edges)
    signal.data[:, 7] = np.nan
    maps = element_maps(signal, edges=list(edges))
    haadf = hs.signals.Signal2D(8.0**1.7 * edges["O_K"] + 25**1.7 * edges["Mn_L3"])
    for axis, same in zip(haadf.axes_manager.signal_axes, signal.axes_manager.navigation_axes, strict=True):
        axis.scale, axis.units, axis.name = same.scale, same.units, same.name
    fused = fuse_with(maps, haadf, method="calibrated", regularization="tv", tol=1e-2, show_progressbar=False)
    assert np.isfinite(fused.data).all()
    with pytest.raises(ValueError, match="fuse with method='calibrated', which leaves them out"):
        maps.fuse(haadf, method="published")
    with pytest.raises(ValueError, match="which leaves them out"):
        signal.fuse(haadf, edges=list(edges), show_progressbar=False, method="published")


def test_pixels_with_spikes_are_left_out_where_that_is_possible():
    edges = heights()
    signal = spectra(edges)
    signal.data[4, 9, 280] += 3000  # in the window of Mn
    maps = element_maps(signal, edges=list(edges), allow_nan=True)
    assert codes(maps)[0] == "spikes" and "they are left out" in warnings_of(maps)[0]
    (element,) = (e for e in maps.elements if np.isnan(maps.get_map(e).data).any())
    assert element == "Mn" and np.argwhere(np.isnan(maps.get_map("Mn").data)).tolist() == [[4, 9]]
    assert np.isfinite(element_maps(signal, edges=["Mn_L3"]).data).all()


def test_spikes_in_windows_warn_with_their_pixels():
    signal = spectra(heights())
    signal.data[4, 9, 280] += 3000  # in the window of Mn
    signal.data[12, 3, 190] += 3000  # before it
    signal.data[1, 1, 390] += 3000  # in none
    for background in ("windows", "model"):
        maps = element_maps(signal, edges=["Mn_L3"], background=background)
        assert codes(maps)[0] == "spikes" and "spikes_removal_tool" in warnings_of(maps)[0]
        assert warnings_of(maps)[0].startswith(
            "2 pixels with a spike in the windows of Mn, at (x, y) = (9, 4), (3, 12)"
        )
    assert "spikes" not in codes(usual_maps())
    signal = spectra(heights())
    for i in range(12):
        signal.data[1 + i, 2 * i, 60] += 3000
    edges = {"O_K": (430, 527, 532, 585), "Mn_L3": (430, 527, 640, 704)}
    warning = warnings_of(element_maps(signal, edges=edges))[0]
    assert warning.startswith(
        "12 pixels with a spike in the windows of O, Mn, at (x, y) = (0, 1), (2, 2), (4, 3) and 9 more"
    )


@cache
def even_brass(shape):
    return brass(np.full(shape, 2.0), np.full(shape, 4.0))


def noisy_brass(seed, shape=(24, 20), gain=1.0):
    signal = even_brass(shape).deepcopy()
    signal.data = gain * np.random.default_rng(seed).poisson(signal.data).astype(float)
    return signal


def test_a_fit_finds_the_intensities_of_exspy():
    copper, zinc = np.full((12, 12), 20.0), np.full((12, 12), 10.0)
    copper[:, 6:] = 0
    zinc[6:] = 0
    maps = element_maps(brass(copper, zinc), edges=["Zn_L3", "Cu_L3"], background="model")
    assert maps.elements == ["Zn", "Cu"]
    np.testing.assert_allclose(maps.data, [zinc, copper], atol=1e-6)
    # 30 eV after the onset are left out where as much is left, and the last reaches 20 % above it
    assert windows(maps) == {
        "Cu": pytest.approx([744.8, 926, 961, 1015]),
        "Zn": pytest.approx([744.8, 926, 1050, 1199.5]),
    }
    assert maps.metadata.Element_maps.cross_sections.as_dictionary() == {"Cu": 1.0, "Zn": 1.0}
    np.testing.assert_allclose(maps.atomic_percent("cross_section").data[:, 0, 0], [100 / 3, 200 / 3], atol=1e-4)
    assert maps.metadata.get_item("Signal.quantity", default="") == ""
    assert not warnings_of(maps)


def test_a_fit_leaves_out_what_is_in_no_window():
    """White lines, where windows are given that begin after them."""
    signal = brass(np.full((6, 6), 20.0), np.full((6, 6), 10.0))
    energy = signal.axes_manager[-1].axis
    signal.data[..., (energy >= 931) & (energy < 950)] += 500
    edges = {"Cu_L3": (745, 926, 955, 1015), "Zn_L3": None}
    np.testing.assert_allclose(element_maps(signal, edges=edges, background="model").data[0], 20, atol=1e-6)
    edges["Cu_L3"] = (745, 926, 931, 1015)
    assert element_maps(signal, edges=edges, background="model").data[0].min() > 21


def test_a_noisy_fit_is_unbiased_and_its_variance_true():
    """By propagation, of counts that are electrons."""
    axis = even_brass((24, 20)).axes_manager[-1]
    edges = with_windows({"Cu_L3": None, "Zn_L3": None}, axis, fitted=True)
    fits = [fitted_edges(noisy_brass(seed), edges)[0] for seed in range(6)]
    data = np.array([[edge.net for edge in fit] for fit in fits])
    variance = np.mean([[edge.variance.mean() for edge in fit] for fit in fits], axis=0)
    np.testing.assert_allclose(variance, np.var(data, axis=0, ddof=1).mean(axis=(1, 2)), rtol=0.1)
    # neighbours share noise: the error of a mean is larger than that of pixels on their own
    error = data.mean(axis=(2, 3)).std(axis=0, ddof=1) / np.sqrt(len(data))
    assert (np.abs(data.mean(axis=(0, 2, 3)) - [2, 4]) < 4 * error).all() and (error < 0.05).all()


def test_a_fit_scales_with_the_unit_and_takes_no_counts():
    one, other = (
        element_maps(noisy_brass(0, gain=gain), edges=["Cu_L3", "Zn_L3"], background="model") for gain in (1.0, 30.0)
    )
    np.testing.assert_allclose(other.data, 30 * one.data, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(other.get_noise_variance().data, 900 * one.get_noise_variance().data, rtol=1e-6)
    signal = noisy_brass(0)
    signal.data[:6, :6] = 0
    maps = element_maps(signal, edges=["Cu_L3", "Zn_L3"], background="model")
    np.testing.assert_array_equal(maps.data[:, :6, :6], 0)
    assert np.isfinite(maps.data).all() and maps.get_noise_variance().data.min() > 0


def test_a_fit_needs_cross_sections_and_channels():
    signal = brass(np.full((4, 4), 20.0), np.full((4, 4), 20.0), angles=False)
    with pytest.raises(ValueError, match="cross-section of Cu_L3, Zn_L3 is not known, .* needs: .*set_microscope"):
        element_maps(signal, edges=["Cu_L3", "Zn_L3"], background="model")
    signal = brass(np.full((4, 4), 20.0), np.full((4, 4), 20.0))
    edges = {"Cu_L3": (920, 924, 931, 932), "Zn_L3": (920, 924, 1020, 1021)}
    with pytest.raises(ValueError, match="have 6 channels, too few to tell the edges from each other"):
        element_maps(signal, edges=edges, background="model")
    signal.data[:] = (signal.axes_manager[-1].axis / 700) ** 3
    with pytest.raises(ValueError, match="No power law with an exponent between 0 and 8 goes through"):
        element_maps(signal, edges=["Cu_L3", "Zn_L3"], background="model")


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


def test_the_tail_of_another_edge_is_taken_off():
    copper, zinc = np.full((12, 12), 20.0), np.full((12, 12), 10.0)
    copper[:, 6:] = 0
    zinc[6:] = 0
    maps = element_maps(brass(copper, zinc), edges=["Zn_L3", "Cu_L3"])
    assert maps.elements == ["Zn", "Cu"]
    assert codes(maps) == ["edge-on-edge"] and not warnings_of(maps)
    sections = maps.metadata.Element_maps.cross_sections
    for data, amount, section in zip(maps.data, (zinc, copper), (sections.Zn, sections.Cu), strict=True):
        np.testing.assert_allclose(data / section, amount, atol=1.0)
    # the corners are away from the edges of the specimen, over which the exponent is averaged
    fractions = maps.atomic_percent("cross_section").data[0]
    corners = [fractions[0, 0], fractions[0, -1], fractions[-1, 0]]
    np.testing.assert_allclose(corners, [100 / 3, 100, 0], atol=2)


def test_a_tail_needs_cross_sections():
    copper = np.full((4, 4), 20.0)
    with pytest.raises(ValueError, match="Zn_L3 lies on Cu_L3, too near .*: set beam energy"):
        element_maps(brass(copper, copper, angles=False), edges=["Cu_L3", "Zn_L3"])
    given = {"Cu_L3": None, "Zn_L3": (975.0, 1012.0, 1020.0, 1100.0)}
    maps = element_maps(brass(copper, copper, angles=False), edges=given)
    assert not maps.metadata.has_item("Element_maps.cross_sections")
    why = (
        r"cross-sections of Cu_L3, Zn_L3 are not known.* K and L .*`s.set_microscope_parameters\(...\)` before element_"
    )
    with pytest.raises(ValueError, match=why):
        maps.atomic_percent("cross_section")
    oxygen = maps.get_map("Cu") * 1
    del oxygen.metadata.Element_maps
    with pytest.raises(ValueError, match="the maps of O are not of EELS edges"):
        element_maps({"Cu": maps.get_map("Cu"), "O": oxygen}).atomic_percent("cross_section")


def test_fusing_takes_the_variance_of_the_maps():
    edges = heights()
    signal = spectra(edges)
    maps = element_maps(signal, edges=list(edges))
    haadf = hs.signals.Signal2D(8.0**1.7 * edges["O_K"] + 25**1.7 * edges["Mn_L3"])
    for axis, same in zip(haadf.axes_manager.signal_axes, signal.axes_manager.navigation_axes, strict=True):
        axis.scale, axis.units, axis.name = same.scale, same.units, same.name
    fused = fuse_with(maps, haadf, method="calibrated", regularization="tv", tol=1e-3)
    fit = fused.metadata.Fusion
    assert fit.noise == "gaussian" and fit.noise_sentence.startswith("The maps have a variance")
    np.testing.assert_allclose(fit.variance, 1 / (1 / maps.get_noise_variance().data).mean(axis=(1, 2)), rtol=1e-6)
    assert fused.get_noise_variance() is None
    # a variance that is given is stronger, and so is another noise
    given = fuse_with(
        maps, haadf, method="calibrated", regularization="tv", tol=1e-2, variance=(3e3, 3e3)
    ).metadata.Fusion
    np.testing.assert_allclose(given.variance, 3e3)
    # the noise of a pixel counts: where it is small the maps are believed
    variance = maps.get_noise_variance().data.copy()
    variance[:, :, 12:] *= 100
    uneven = maps.deepcopy()
    uneven.get_noise_variance().data = variance
    found = fuse_with(uneven, haadf, method="calibrated", regularization="tv", tol=1e-3, lambda_haadf=0).data
    even = fuse_with(maps, haadf, method="calibrated", regularization="tv", tol=1e-3, lambda_haadf=0).data
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


def test_edges_of_fitted_models_are_maps_of_atoms():
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
    model = fitted_model()
    for edge in model:
        edge.intensity.map["std"] = 0
    assert element_maps(model).get_noise_variance() is None


def test_window_maps_of_a_real_scan_are_those_of_its_model():
    """What its regions show, and the fit too, is measured by benchmarks/eels_regions.py."""
    signal = hs.load(shared("data/CuZn_EELS_mapping_tutorial.hspy"))
    models = [hs.load(shared(f"data/{e}_map.hspy")) for e in ("Cu", "Zn")]
    maps = element_maps(signal, edges=["Cu_L3", "Zn_L3"])
    for data, model in zip(maps.data, models, strict=True):
        assert np.corrcoef(data.ravel(), model.data.ravel())[0, 1] > 0.95
    # what the two do not agree in, and an x-ray of four times the counts around
    assert codes(maps) == ["spikes", "no-power-law", "edge-on-edge"]
    spike, background = warnings_of(maps)
    assert spike.startswith("2 pixels with a spike in the windows of Cu, Zn")
    assert "Cu_L3 (map +9% by" in background and "Zn_L3 (map +6% by" in background
    np.testing.assert_array_equal(element_maps(signal, ["Zn", "Cu"]).data, maps.data[::-1])


@cache
def brass_maps():
    """Two copper to one zinc: by windows, by windows of one edge each, by a fit."""
    signal, edges = brass(np.full((6, 5), 20.0), np.full((6, 5), 10.0)), ["Cu_L3", "Zn_L3"]
    alone = [element_maps(signal, edges={edge: window}) for edge, window in zip(edges, ALONE, strict=True)]
    return element_maps(signal, edges=edges), alone, element_maps(signal, edges=edges, background="model")


def test_errors_of_edges_do_not_hold_those_of_their_background():
    signal = brass(np.full((8, 9), 20.0), 5.0 + np.arange(9) * np.ones((8, 1)))
    edges = element_maps(signal, edges=["Cu_L3", "Zn_L3"])
    haadf = hs.signals.Signal2D(edges.data.sum(axis=0))
    oxygen = hs.signals.Signal2D(np.random.default_rng(0).poisson(5.0, (8, 9)))
    oxygen.metadata.set_item("Sample.elements", ["O"])
    model = FusedMultiModal(haadf, [edges.get_map("Zn"), oxygen], method="calibrated")
    model.fit(max_iter=5, regularization="tv", lambda_haadf=0)
    assert not any("Errors of regions" in w for w in model.warnings)
    for _ in range(2):
        model.standard_errors(2)
        (warning,) = [w for w in model.as_signal().metadata.Fusion.warnings if "Errors of regions" in w]
        assert "Errors of regions of Zn" in warning
    model.fit(max_iter=5)
    assert not any("Errors of regions" in w for w in model.warnings)


ALONE = [(745, 926, 931, 1015), (745, 926, 1030, 1120)]


@pytest.mark.parametrize("form", ["dict", "list", "stack"])
def test_maps_put_together_keep_their_own_cross_sections(form):
    by_windows, _, by_fit = brass_maps()
    both = {"Cu": by_windows.get_map("Cu"), "Zn": by_fit.get_map("Zn")}
    together = {"dict": both, "list": list(both.values()), "stack": hs.stack(list(both.values()))}[form]
    maps = element_maps(together)
    sections, expected = (m.metadata.Element_maps.cross_sections.as_dictionary() for m in (maps, by_windows))
    assert sections == {"Cu": expected["Cu"], "Zn": 1.0} and expected["Zn"] != 1
    assert windows(maps) == {"Cu": windows(by_windows)["Cu"], "Zn": windows(by_fit)["Zn"]}
    np.testing.assert_allclose(maps.atomic_percent("cross_section").data[0], 200 / 3, atol=2)
    assert codes(maps).count("fit-among-counts") == 1
    assert "fit-among-counts" not in codes(element_maps(by_fit.split()))


def test_maps_put_together_know_their_edges():
    by_windows, (copper, zinc), by_fit = brass_maps()
    maps = element_maps([copper, zinc])
    assert maps.metadata.Element_maps.edges.as_dictionary() == {"Cu": "Cu_L3", "Zn": "Zn_L3"}
    assert windows(maps) == {"Cu": list(ALONE[0]), "Zn": list(ALONE[1])}
    own = {**_sections(copper), **_sections(zinc)}
    assert _sections(maps) == own and len(own) == 2
    assert list(_sections(element_maps(by_windows, ["Zn"]))) == ["Zn"]
    by_windows, (copper, zinc), _ = brass_maps()
    zinc = zinc.deepcopy()
    del zinc.metadata.Element_maps.cross_sections
    maps = element_maps([copper, zinc])
    assert not maps.metadata.has_item("Element_maps.cross_sections")
    assert list(windows(maps)) == ["Cu", "Zn"]
    plain = hs.signals.Signal2D(np.ones((6, 5)), axes=copper.get_map("Cu").axes_manager._get_axes_dicts())
    maps = element_maps({"Cu": copper.get_map("Cu"), "O": plain})
    assert not maps.metadata.has_item("Element_maps.cross_sections") and list(windows(maps)) == ["Cu"]


def _sections(maps):
    return maps.metadata.Element_maps.cross_sections.as_dictionary()


@pytest.mark.parametrize("is_binned", [True, False])
def test_the_power_law_is_that_of_hyperspy(is_binned):
    signal = hs.signals.Signal1D(spectra(shape=(3, 4)).data)
    axis, window = signal.axes_manager[-1], (410.0, 523.0)
    axis.offset, axis.scale, axis.is_binned = 400, 0.8, is_binned
    power = hs.model.components1D.PowerLaw()
    amplitude, exponent = power.estimate_parameters(signal, *window, out=True)
    expected = amplitude[..., None] * axis.axis ** -exponent[..., None] * (axis.scale if is_binned else 1)
    np.testing.assert_allclose(_power_law(axis, signal.data, window), expected, rtol=1e-9)
