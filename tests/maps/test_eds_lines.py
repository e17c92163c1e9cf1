"""Claims about EDS spectra: the counts of exspy in windows around lines that are there."""

import re

import dask.array as da
import exspy
import hyperspy.api as hs
import numpy as np
import pytest
from helpers import shared
from sources import FE, NAMES, PT, assert_element_maps, codes, eds, image, lines_of, warnings_of

import hyperspy_fusion
from hyperspy_fusion import element_maps
from hyperspy_fusion.data import overlapping_lines
from hyperspy_fusion.diagnostics import from_metadata
from hyperspy_fusion.maps.base import SourceRequest
from hyperspy_fusion.maps.eds_lines import line_counts
from hyperspy_fusion.maps.eds_windows import line_windows
from hyperspy_fusion.maps.sources import read_maps


@pytest.mark.parametrize("dtype", ["u1", ">u2", "i2", "f4"])
def test_windows_are_those_of_exspy_and_counts_stay_integer(dtype):
    signal = eds(dtype, lines=["Fe_Ka", "O_Ka", "Pt_La"])
    result = element_maps(signal)
    assert_element_maps(result, lines_of(signal, None), NAMES)
    assert result.data.dtype == {"u": "u4", "i": "i4"}.get(np.dtype(dtype).kind, np.dtype(dtype))
    assert result.metadata.General.title == "Element maps of grain"
    assert result.metadata.General.date == "2018-11-29"
    assert result.metadata.Signal.quantity == "X-rays (Counts)"
    assert list(result.metadata.Element_maps.source_titles) == ["grain"]


@pytest.mark.parametrize("is_lazy", [False, True])
def test_sums_beyond_single_precision_are_infinite(is_lazy, recwarn):
    signal = eds("f4", lines=["Fe_Ka"])
    signal.data[:] = 3e38
    signal = signal.as_lazy() if is_lazy else signal
    with pytest.raises(ValueError, match="12 of 12 pixels that are NaN, infinite"):
        element_maps(signal)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_counts_do_not_overflow():
    signal = eds(lines=["Fe_Ka"])
    signal.data[:] = 255
    (channels,) = {int(v) for v in (lines_of(signal, None)[0] / 255).ravel()}
    assert channels > 20
    assert np.all(element_maps(signal).data == 255 * channels)
    signal = eds("u4", lines=["Fe_Ka"])
    signal.data[:] = 2**31
    assert element_maps(signal).data.dtype == np.uint64


def test_lines_come_from_argument_then_metadata_then_exspy():
    signal = eds(elements=NAMES, lines=["Fe_La", "Pt_Ma"])
    fe_ka, fe_la, pt_la, pt_ma, o_ka = lines_of(signal, ["Fe_Ka", "Fe_La", "Pt_La", "Pt_Ma", "O_Ka"])
    assert_element_maps(element_maps(signal), [fe_la, pt_ma], ["Fe", "Pt"])
    assert_element_maps(element_maps(signal, ["O", "Fe"]), [o_ka, fe_la], ["O", "Fe"])
    both = element_maps(signal, xray_lines=["Pt_La", "Fe_Ka", "Fe_La"])
    assert_element_maps(both, [pt_la, fe_ka + fe_la], ["Pt", "Fe"])
    assert list(both.metadata.Element_maps.xray_lines) == ["Pt_La", "Fe_Ka+Fe_La"]
    assert_element_maps(element_maps(signal, ["Fe", "O"], xray_lines=["Fe_Ka"]), [fe_ka, o_ka], ["Fe", "O"])
    del signal.metadata.Sample.xray_lines
    assert_element_maps(element_maps(signal), [fe_ka, o_ka, pt_la], NAMES)
    del signal.metadata.Sample.elements
    assert_element_maps(element_maps(signal, ["Pt"]), [pt_la], ["Pt"])


@pytest.mark.parametrize(
    "kind, units, beam", [("EDS_TEM", "keV", 0.0), ("EDS_SEM", "keV", None), ("EDS_TEM", "eV", None)]
)
def test_lines_that_are_chosen_without_a_beam_energy_are_reported(kind, units, beam):
    signal = eds().isig[:10.0]
    signal.set_signal_type(kind)
    node = signal.metadata.Acquisition_instrument[kind[-3:]]
    if beam is None:
        del node.beam_energy
    else:
        node.beam_energy = beam
    signal.axes_manager[-1].units, signal.axes_manager[-1].scale = units, {"keV": 0.01, "eV": 10}[units]
    maps = element_maps(signal, ["O", "Fe", "Cu", "Pt"])
    assert list(maps.metadata.Element_maps.xray_lines) == ["O_Ka", "Fe_La", "Cu_La", "Pt_Ma"]
    assert codes(maps) == ["beam-energy-unknown"]
    for words in ("(Fe_La, Cu_La, Pt_Ma, not Fe_Ka, Cu_Ka, Pt_La)", "`s.set_microscope_parameters(beam_energy=200)`"):
        assert words in warnings_of(maps)[0]
    assert not codes(element_maps(signal, xray_lines=["Fe_La"])) and not codes(element_maps(signal, ["O", "Al"]))
    signal.set_microscope_parameters(beam_energy=200)
    assert not codes(element_maps(signal, ["O", "Fe", "Pt"]))


@pytest.mark.parametrize(
    "kind, resolution",
    [("EDS_TEM", None), ("EDS_SEM", np.nan), ("EDS_TEM", np.inf), ("EDS_SEM", 60.0), ("EDS_TEM", "130")],
)
def test_spectra_without_an_energy_resolution_are_refused(kind, resolution):
    signal = eds().isig[:10.0]
    signal.set_signal_type(kind)
    del signal.metadata.Acquisition_instrument
    if resolution is not None:
        path = f"Acquisition_instrument.{kind[-3:]}.Detector.EDS.energy_resolution_MnKa"
        signal.metadata.set_item(path, resolution)
    for options in ({"elements": ["Fe", "O"]}, {"xray_lines": ["O_Ka"]}, {"elements": ["O"], "background": "windows"}):
        with pytest.raises(ValueError, match=r"no window of .*: set .* `(s\..*)` in eV\.$") as error:
            element_maps(signal, **options)
    eval(re.search(r"`(.+)`", str(error.value))[1], {"s": signal})
    assert element_maps(signal, ["Fe", "O"]).elements == ["Fe", "O"]


def test_windows_that_share_channels():
    signal = eds("u2")
    signal.data[:] = 0
    signal.data[..., 178] = 5  # 1.78 keV, within the windows of Si Kα (1.740) and Kβ (1.836)
    assert [m[0, 0] for m in lines_of(signal, ["Si_Ka", "Si_Kb"])] == [5, 5]
    assert np.all(element_maps(signal, xray_lines=["Si_Ka", "Si_Kb"]).data == 5)
    assert not codes(element_maps(eds(), ["Fe", "O"]))
    maps = element_maps(eds(), xray_lines=["S_Ka", "Mo_La", "Si_Ka", "Al_Ka"])
    assert codes(maps) == ["windows-share-channels"]
    assert list(maps.metadata.Element_maps.diagnostics.elements) == ["S,Mo"]
    # S Ka at 2.307 and Mo La at 2.293 keV are one at any width, Si Ka and Al Ka at 1.740 and 1.487 are two at 2.
    lines = ["S_Ka", "Mo_La", "Si_Ka", "Al_Ka"]
    for width, pairs in ((0.5, "S,Mo"), (2.0, "S,Mo"), (4.0, "S,Mo,Si,Al")):
        maps = element_maps(eds(), xray_lines=lines, integration_windows=width)
        assert list(maps.metadata.Element_maps.diagnostics.elements)[0] == pairs


@pytest.mark.parametrize("lost", ["O", "Cu", None])
def test_a_bare_call_names_a_clear_element_without_a_map(lost):
    phantom = overlapping_lines((32, 32), counts=8)
    signal, _ = phantom.signals()
    kept = [element for element in phantom.elements if element != lost]
    signal.metadata.Sample.elements = kept
    signal.metadata.Sample.xray_lines = [f"{e}_{'La' if e == 'Mo' else 'Ka'}" for e in kept]
    for source in (signal, signal.as_lazy()):
        found = [d for d in line_counts(source, SourceRequest()).diagnostics if d.code == "line-of-no-element"]
        assert [d.elements for d in found] == ([(lost,)] if lost and source is signal else [])
    assert "line-of-no-element" not in {d.code for d in line_counts(signal, SourceRequest(elements=kept)).diagnostics}


@pytest.mark.parametrize("width", [0.5, 1.2, 3.3])
def test_windows_of_any_width_are_those_of_exspy(width):
    signal = eds("u2", lines=["Fe_Ka", "O_Ka", "Pt_La"])
    expected = [m.data for m in signal.get_lines_intensity(integration_windows=width)]
    for source in (signal, signal.as_lazy()):
        result = element_maps(source, integration_windows=width)
        assert_element_maps(result, expected, NAMES)
        assert result.metadata.Element_maps.integration_windows == width


def test_lines_nearby_are_reported_in_one_sentence():
    signal = eds(elements=["O", "Cr", "N"])  # Cr La is 0.8 FWHM above and N Ka below O Ka
    for width, reach, others in ((1.2, "one", "O_Ka (Cr)"), (2.0, "one", "O_Ka (Cr)"), (6.0, "3", "O_Ka (Cr, N)")):
        maps = element_maps(signal, ["O"], integration_windows=width)
        assert codes(maps) == ["lines-overlap"]
        (sentence,) = maps.metadata.Element_maps.diagnostics.sentences
        assert f"within {reach} FWHM" in sentence and others in re.sub(r": \d+%", "", sentence)
    signal = eds(elements=["O", "Cr", "S", "Mo", "Ti", "Ba", "N", "Fe", "Mn", "F"])
    (sentence,) = element_maps(signal, ["O", "S", "Ti", "N", "Mn"]).metadata.Element_maps.diagnostics.sentences
    assert len(sentence.split()) <= 30 and "and 2 more" in sentence


def with_lines(**counts):
    """Spectra of 12 pixels with lines of so many counts each, as wide as the detector makes them."""
    signal = eds("u4", elements=dict.fromkeys(name.split("_")[0] for name in counts))
    energies = signal.axes_manager[-1].axis
    spectrum = np.zeros(len(energies))
    for name, number in counts.items():
        ((low, high),) = signal.estimate_integration_windows(2.0, [name])
        peak = np.exp(-0.5 * ((energies - (low + high) / 2) / ((high - low) / 2 / 2.3548)) ** 2)
        spectrum += number * peak / peak.sum()
    signal.data[:] = np.round(spectrum)
    return signal


@pytest.mark.parametrize(
    "counts, severity, part",
    [
        # Cr La is 0.8 FWHM above O Ka, and as strong as Cr Ka for all that is known
        ({"O_Ka": 1e6, "Cr_Ka": 2e4}, "information", 0.02),
        ({"O_Ka": 1e6, "Cr_Ka": 2e5}, "serious", 0.2),
        ({"O_Ka": 1e6, "Cr_Ka": 0}, "information", 0.0),
    ],
)
def test_overlaps_are_weighed_by_the_counts_that_they_add(counts, severity, part):
    signal = with_lines(**counts)
    found = element_maps(signal, ["O"]).metadata.Element_maps.diagnostics
    assert list(found.codes) == ["lines-overlap"] and list(found.severities) == [severity]
    shown = re.search(r"Cr: (\d+)%", found.sentences[0])
    assert float(shown[1] if shown else 0) == pytest.approx(100 * part, abs=2 + 30 * part)
    (headline,) = [one.headline for one in from_metadata(found.as_dictionary())]
    assert headline.startswith("Lines of others add counts to O:") and "%" not in headline
    lazy = element_maps(signal.as_lazy(), ["O"]).metadata.Element_maps.diagnostics
    assert list(lazy.severities) == ["note"]


def test_each_overlap_has_the_counts_of_its_own_lines():
    # windows of S and Mo share channels, and Pb, which is near both, adds little to either
    signal = with_lines(S_Ka=1e6, Mo_La=5e5, Pb_La=2e4)
    found = element_maps(signal, xray_lines=["S_Ka", "Mo_La"]).metadata.Element_maps.diagnostics
    assert list(zip(found.codes, found.severities, strict=True)) == [
        ("windows-share-channels", "serious"),
        ("lines-overlap", "information"),
    ]
    assert "S_Ka (Pb: 1%), Mo_La (Pb: 1%)" in found.sentences[1]


@pytest.mark.parametrize("sulphur, severity", [(0, "information"), (1e5, "serious")])
def test_shared_windows_are_weighed_too(sulphur, severity):
    signal = with_lines(S_Ka=sulphur, Mo_Ka=0)
    found = element_maps(signal, xray_lines=["S_Ka", "Mo_La"]).metadata.Element_maps.diagnostics
    assert list(found.codes) == ["windows-share-channels"] and list(found.severities) == [severity]


def test_all_that_makes_maps_of_spectra_takes_the_width():
    signal, haadf = eds("u2", lines=["Fe_Ka", "O_Ka"]), image(FE + 1)
    expected = element_maps(signal, integration_windows=1.2)
    assert not np.array_equal(expected.data, element_maps(signal).data)
    fused = signal.fuse(haadf, integration_windows=1.2, max_iter=1, show_progressbar=False, method="published")
    np.testing.assert_array_equal(fused._inputs.maps.data, expected.data)
    assert fused.metadata.Element_maps.integration_windows == 1.2
    model = hyperspy_fusion.FusedMultiModal(haadf, signal, integration_windows=1.2, method="published")
    np.testing.assert_array_equal(model.maps.data, expected.data)
    in_list = element_maps([signal, image(PT, "Pt")], ["Fe", "O", "Pt"], integration_windows=1.2)
    np.testing.assert_array_equal(in_list.data[:2], expected.data)


def test_the_width_stays_with_maps_and_two_widths_warn(tmp_path):
    wide, narrow = element_maps(eds(), ["Fe"]), element_maps(eds(), ["O"], integration_windows=1.2)
    narrow.save(tmp_path / "narrow.hspy")
    for maps in (hs.load(tmp_path / "narrow.hspy"), narrow.inav[:1], element_maps(narrow), element_maps([narrow])):
        assert maps.metadata.Element_maps.integration_windows == 1.2 and not codes(maps)
    mixed = element_maps([wide, narrow])
    assert codes(mixed) == ["window-widths-differ"]
    assert not mixed.metadata.Element_maps.has_item("integration_windows")
    assert codes(element_maps([narrow, image(PT, "Pt")])) == ["window-widths-differ"]
    assert not codes(element_maps([wide, image(PT, "Pt")]))


def test_a_width_that_is_no_number_of_fwhm_is_refused():
    for width in (-1.2, 130, 0.13, np.nan):
        with pytest.raises(ValueError, match="in units of the FWHM of their line, no energy, .* 0.2 and 10, such"):
            element_maps(eds(), ["Fe"], integration_windows=width)
    for width in ("auto", True, [[6.3, 6.5]]):
        with pytest.raises(TypeError, match="give one number, .* in keV pass the maps of get_lines_intensity"):
            element_maps(eds(), ["Fe"], integration_windows=width)


def test_lazy_spectra_are_read_once_for_all_maps():
    signal = eds(lines=["Fe_Ka", "O_Ka", "Pt_La"])
    reads = []

    def read(block, block_info=None):
        reads.append(block_info[0]["chunk-location"])
        return block

    chunks = da.from_array(signal.data, chunks=(2, 3, 700))
    lazy = signal.as_lazy()
    lazy.data = chunks.map_blocks(read, dtype=chunks.dtype, meta=np.empty((0, 0, 0), chunks.dtype))
    reads.clear()
    assert_element_maps(element_maps(lazy), lines_of(signal, None), NAMES)
    assert len(reads) == 2 * 2 * 3
    assert len(set(reads)) == len(reads)
    assert lazy._lazy


def test_energies_in_ev_on_any_axis_of_the_array():
    signal = eds(lines=["Fe_Ka", "O_Ka"])
    expected = lines_of(signal, None)
    axes = [axis.get_axis_dictionary() for axis in signal.axes_manager._axes]
    turned = exspy.signals.EDSTEMSpectrum(np.moveaxis(signal.data, -1, 0).copy(), axes=[axes[2], *axes[:2]])
    assert turned.data.shape == (2000, 3, 4)
    assert_element_maps(element_maps(turned, xray_lines=["Fe_Ka", "O_Ka"]), expected, NAMES[:2])
    signal = eds(lines=["Fe_Ka", "O_Ka"])
    expected = lines_of(signal, None)
    axis = signal.axes_manager[-1]
    axis.scale, axis.units = 10.0, "eV"
    assert_element_maps(element_maps(signal), expected, NAMES[:2])
    signal = eds()
    signal.axes_manager[-1].units = "channel"
    with pytest.raises(ValueError, match="has the units channel: expected eV or keV"):
        element_maps(signal, ["Fe"])
    for axis in ("Energy", "width"):
        signal = eds()
        signal.axes_manager[axis].offset = np.nan
        with pytest.raises(ValueError, match=f"offset nan on its axis '{axis}', and numbers of"):
            element_maps(signal, ["Fe"])


def test_elements_without_lines_and_unnamed_ones(caplog):
    assert element_maps(from_below_zero(), ["Be"]).elements == ["Be"]
    with pytest.raises(ValueError, match="Li has no X-ray line within"):
        element_maps(from_below_zero(), ["Li"])
    maps = element_maps(eds(lines=["Fe_Ka", "Ag_Ka"]))
    assert maps.elements == ["Fe"] and codes(maps) == ["line-out-of-range"] and "Ag_Ka" in warnings_of(maps)[0]
    signal = eds(elements=["Fe", "O"])
    for asked in ({"elements": ["Pt", "Fe"]}, {"xray_lines": ["Fe_Ka", "Pt_La"]}):
        caplog.clear()
        kept = warnings_of(element_maps(signal, **asked))
        assert kept == ["Pt is not among the elements that the file names (Fe, O): check for a typo."]
    for silent in (signal, eds()):
        assert not codes(element_maps(silent, ["O"]))


@pytest.mark.parametrize(
    "signal, kwargs, sentence",
    [
        (eds(), {}, "name no elements: pass elements="),
        (eds().isig[2.0:], {"elements": ["O"]}, "O has no X-ray line within"),
        (eds(), {"xray_lines": ["Ag_Ka"]}, r"Ag_Ka is not within the energies of .*0 to 20 keV"),
        (eds(), {"xray_lines": ["Fe_Kz"]}, "'Fe_Kz' is not an X-ray line of Fe: did you mean Fe_Ka or Fe_Kb\\?"),
        (eds(elements=["Fe"]), {"xray_lines": []}, r"xray_lines is \[\], which is empty: name at least one"),
        (eds(), {"xray_lines": ["Fe"]}, "'Fe' is not an X-ray line of Fe"),
        (eds(), {"xray_lines": ["O_Ka"], "elements": ["Fe"]}, r"O_Ka is in xray_lines, but its element is not"),
        (eds(), {"elements": ["Fe", "H"]}, "H has no X-ray line that a detector sees: leave it out"),
        (eds(), {"xray_lines": ["He_Ka"]}, "He has no X-ray line that a detector sees"),
        (eds(elements=["H"]), {}, "H has no X-ray line within"),
        (eds(), {"elements": ["Fe", "Fe"]}, "names Fe 2 times"),
        (hs.signals.Signal1D(np.ones((3, 4, 9))), {}, r"not known to be EDS: call `s.set_signal_type\("),
        (eds().inav[0], {}, "cannot be read as element maps"),
    ],
)
def test_spectra_that_cannot_be_mapped_are_refused(signal, kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        element_maps(signal, **kwargs)


@pytest.mark.parametrize("where", [{"elements": ["Fe", "H"]}, {"lines": ["Fe_Ka", "H_Ka"]}], ids=["elements", "lines"])
def test_hydrogen_that_the_file_names_is_left_out(where):
    maps = element_maps(from_below_zero(**where))
    assert maps.elements == ["Fe"] and codes(maps) == ["line-out-of-range"]


def from_below_zero(**kwargs):
    """Spectra that begin below 0 keV, as those of detectors do: exspy's H_Ka of 1.4 eV is within them."""
    signal = eds(**kwargs)
    signal.axes_manager[-1].offset = -0.5
    return signal


@pytest.mark.parametrize("symbol", ["H", "He"])
def test_there_are_no_x_ray_maps_of_hydrogen_and_helium(symbol):
    line = f"{symbol}_Ka"
    for source, elements, lines in (
        (from_below_zero(), [symbol], None),
        (from_below_zero(), None, [line]),
        ({line: image(FE)}, None, None),
        ([image(FE, lines=[line])], None, None),
    ):
        with pytest.raises(ValueError, match=f"{symbol} has no X-ray line that a detector sees: leave it out"):
            element_maps(source, elements, xray_lines=lines)
    assert element_maps([image(FE)], [symbol]).elements == [symbol]  # of EELS, say


def beside(signal, **request):
    """{element: counts beside the line}, of elements that the file alone names."""
    scan = read_maps(signal, SourceRequest(beside=True, **request))
    return dict(zip(scan.signal.elements, scan.beside, strict=True))


@pytest.mark.parametrize("width, background, is_lazy", [(2.0, None, False), (1.2, None, True), (2.0, "windows", False)])
def test_counts_beside_a_line_are_those_of_a_linear_background(width, background, is_lazy):
    names = ["Cr", "Fe", "Zr", "O", "Co"]
    signal = eds("u4", elements=names)
    signal.data[:] = 5000 - 2 * np.arange(2000)
    reads = []
    if is_lazy:
        signal = signal.as_lazy(chunks=(3, 4, 300))
        signal.data = signal.data.map_blocks(lambda block: reads.append(1) or block, meta=signal.data._meta)
    request = {"integration_windows": width, "background": background}
    found = beside(signal, **request)
    assert len(reads) == 7 * is_lazy
    counts = element_maps(signal, **request)
    # Cr La is near O Ka, and Fe Kb near Co Ka
    assert [e for e, own in found.items() if own is None] == ["O", "Co"]
    for element in ("Cr", "Fe", "Zr"):
        expected = found[element].ratio * np.asarray(found[element].counts, float)
        np.testing.assert_allclose(expected, counts.get_map(element).data, rtol=1e-9)
    # no count of a line that is beside
    signal = eds("u4", elements=names)
    signal.data[:] = 0
    for line in ("Cr_Ka", "Cr_Kb", "Fe_Ka", "Fe_Kb", "Co_Ka", "Zr_La", "O_Ka"):
        ((start, stop),) = line_windows(signal, [line], 2.0)
        signal.data[..., start:stop] = 7
    assert not any(own.counts.any() for own in beside(signal, **request).values() if own is not None)


def test_counts_beside_lines_are_read_only_where_the_file_names_one_line_of_an_element():
    signal = eds(lines=["Fe_Ka", "Cr_Ka", "Cr_La"])
    assert [own is not None for own in beside(signal).values()] == [True, False]
    for asked in ({"elements": ["Fe"]}, {"xray_lines": ["Fe_Ka"]}):
        assert beside(signal, **asked) == {"Fe": None}
    assert beside(element_maps(signal)) == {"Fe": None, "Cr": None}


@pytest.mark.slow
def test_real_spectra_give_the_counts_of_exspy():
    elements = ["Fe", "Mg", "Si", "O", "S", "Al"]
    signal = hs.load(shared("data/L2083-K-4-1_tilt0.bcf"), lazy=True)[1]
    result = element_maps(signal, elements)
    expected = lines_of(signal, [f"{e}_Ka" for e in elements])
    assert_element_maps(result, [np.asarray(e) for e in expected], elements)
    # of the elements that the file names, those with a line within one FWHM of one of these
    (overlap,) = warnings_of(result)
    assert codes(result) == ["lines-overlap"] and "O_Ka (Ti, Cr)" in overlap and len(overlap.split()) <= 30
    assert result.data.dtype == np.uint32
    axis = result.axes_manager.signal_axes[0]
    assert (axis.name, axis.units, axis.size) == ("width", "µm", 256)
    part = signal.inav[64:192, 64:192]
    part.compute()
    assert "line-of-no-element" not in codes(element_maps(part))
    signal = hs.load(shared("data/bruker_test_TEM.bcf"))[1]
    result = element_maps(signal)
    assert_element_maps(result, lines_of(signal, None), ["Cu", "O", "Pd", "Ti"])
    (missing,) = (
        d for d in from_metadata(result.metadata.Element_maps.diagnostics.as_dictionary()) if d.elements == ("Si",)
    )
    assert missing.code == "line-of-no-element" and str(missing).endswith("elements=['Cu', 'O', 'Pd', 'Ti', 'Si'].")
    made_by_exspy = element_maps(signal.get_lines_intensity())
    assert_element_maps(made_by_exspy, lines_of(signal, None), ["Cu", "O", "Pd", "Ti"])
