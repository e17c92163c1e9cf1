"""Finding the scan: the spectrum image and the elastic image among what a vendor's file holds."""

import logging
import re

import hyperspy.api as hs
import numpy as np
import pytest
from helpers import assert_untouched, shared, snapshot

import hyperspy_fusion as hf
from hyperspy_fusion.grid.axes import scan_axes, spatial_axes
from hyperspy_fusion.identify.detectors import DETECTORS, detector_of, is_detector_title, is_survey

NY, NX = 12, 16
RNG = np.random.default_rng(0)


def spatial(shape=(NY, NX), scale=2.0, offset=(0.0, 0.0), units="nm", names="yx"):
    return [
        {"name": name, "size": size, "scale": scale, "offset": start, "units": units}
        for name, size, start in zip(names, shape, offset, strict=True)
    ]


def image(title, axes=None, detector="", data=None):
    axes = axes or spatial()
    shape = tuple(axis["size"] for axis in axes)
    signal = hs.signals.Signal2D(RNG.random(shape) if data is None else data, axes=axes)
    signal.metadata.General.title = title
    if detector:
        signal.original_metadata.set_item("BinaryResult.Detector", detector)
    return signal


def spectra(title="EDS", signal_type="EDS_TEM", axes=None, data=None, energy=None, file="scan.emd"):
    axes = axes or spatial()
    shape = tuple(axis["size"] for axis in axes)
    energy = energy or {"name": "X-ray energy", "size": 300, "scale": 0.03, "offset": 0.0, "units": "keV"}
    counts = RNG.poisson(0.5, (*shape, energy["size"])).astype("u1") if data is None else data
    signal = hs.signals.Signal1D(counts, axes=[*axes, energy])
    signal.set_signal_type(signal_type)
    signal.metadata.General.title = title
    signal.metadata.General.original_filename = file
    signal.metadata.set_item("Acquisition_instrument.TEM.beam_energy", 200.0)
    signal.metadata.set_item("Sample.elements", ["Fe", "O"])
    return signal


def eels(title="EELS", first=400.0):
    return spectra(
        title, "EELS", energy={"name": "Energy-loss", "size": 50, "scale": 2.0, "offset": first, "units": "eV"}
    )


def velox():
    """What rosettasciio 0.15 reads of a Velox file: titles are the names of detectors, or labels of maps."""
    single = hs.signals.Signal1D(np.ones(300), axes=[{"size": 300, "units": "keV"}])
    single.metadata.General.title = "EDS"
    differential = image("DPC", data=np.ones((NY, NX), complex))
    titles = ("HAADF", "BF", "DF2", "DF4", "Fe", "O", "C K")
    return [single, *(image(title, detector=title) for title in titles), differential, spectra()]


def bruker():
    """A .bcf of rosettasciio: images, an overview on its own pixels, and the spectra, titled EDX."""
    scan = spatial(scale=0.013, units="µm", names=("height", "width"))
    wide = spatial((24, 32), 0.05, units="µm", names=("height", "width"))
    return [image("HAADF", scan), image("HAADF", wide), spectra("EDX", axes=scan, file="map.bcf")]


def test_it_unpacks_and_gives_its_reasons(caplog):
    signals = velox()
    before = [snapshot(signal) for signal in signals]
    with caplog.at_level(logging.INFO, "hyperspy_fusion"):
        haadf, source = scan = hf.scan(signals)
    assert haadf is scan.haadf is signals[1] and source is scan.source is signals[-1]
    assert "Of 10 signals, 'EDS' (9) is what to fuse: the only EDS spectrum image." in scan.sentence
    assert "'HAADF' (1) is the elastic image: HAADF by its name, and on the pixels of the scan." in scan.sentence
    assert scan.sentence in caplog.text
    for signal, was in zip(signals, before, strict=True):
        assert_untouched(signal, was)


def test_lists_of_vendors():
    signals = velox()
    for shift in range(len(signals)):
        haadf, spectrum = hf.scan(signals[shift:] + signals[:shift])
        assert haadf is signals[1] and spectrum is signals[-1]
    signals = bruker()
    haadf, spectrum = hf.scan(signals)
    assert haadf is signals[0] and spectrum is signals[2]
    survey = image("ADF Image (SI Survey)")
    adf, low, core = image("ADF Image"), eels("EELS LL SI", -20.0), eels("EELS HL SI")
    scan = hf.scan([survey, low, core, adf])
    assert scan.haadf is adf and scan.source is core
    assert "the only EELS spectrum image without the zero-loss peak" in scan.sentence
    assert "It is no HAADF image: haadf_coefficients='fit'" in scan.sentence
    signals = velox()[:-1]
    haadf, source = hf.scan(signals)
    assert haadf is signals[1] and source.elements == ["Fe", "O", "C"]
    for titles in (("Pt L", "Fe K", "O K"), ("Pt-EELS", "Fe-EELS", "O-EELS"), ("Pt map", "FeK", "O Kα1")):
        assert hf.scan([image("HAADF"), *map(image, titles)]).source.elements == ["Pt", "Fe", "O"]
    assert hf.scan([haadf, source]).source is source
    assert hf.scan([haadf, image("Fe")]).source.elements == ["Fe"]


@pytest.mark.parametrize(
    "make, hint, elements",
    [
        (lambda: [spectra()], None, None),
        (lambda: [image("Fe"), image("O")], None, None),
        (lambda: [image("a"), image("b")], ["a", "b"], ["Fe", "O"]),
        (lambda: [spectra(), image("Pt")], ["EDS", "Pt"], ["Fe", "Pt"]),
    ],
    ids=["spectra", "maps", "unnamed maps", "spectra and a map"],
)
def test_every_source_can_be_fused(make, hint, elements):
    haadf, source = hf.scan([image("HAADF"), *make()], spectrum=hint)
    assert source.fuse(haadf, elements=elements, max_iter=1, method="published").elements == (elements or ["Fe", "O"])


def test_the_haadf_image_is_that_of_the_scan():
    fine, here = image("HAADF", spatial((4 * NY, 4 * NX), 0.5)), image("HAADF")
    assert hf.scan([fine, here, spectra()]).haadf is here
    scan = hf.scan([fine, spectra()])
    assert scan.haadf is fine and "register='calibration'" in scan.sentence
    there, here = image("HAADF", spatial(offset=(50.0, 0.0))), image("HAADF", spatial(offset=(9.0, 3.0)))
    assert hf.scan([there, here, spectra(axes=spatial(offset=(9.0, 3.0)))]).haadf is here
    haadf = image("HAADF", spatial(scale=0.002, units="µm"))
    assert hf.scan([haadf, spectra()]).haadf is haadf


@pytest.mark.parametrize("title, detector", [("Signal A", "HAADF"), ("", "BSE"), ("Image", "MAADF")])
def test_detectors_are_known_by_metadata_too(title, detector):
    haadf_term = image(title, detector=detector)
    scan = hf.scan([image("BF"), haadf_term, spectra()])
    assert scan.haadf is haadf_term and f"{detector} by its name" in scan.sentence


def detectors(n=4):
    return [spectra(f"EDS {i}", data=np.full((NY, NX, 300), 40 * i + 50, "u1")) for i in range(n)]


def test_detectors_are_added_up_or_their_sum_is_taken():
    parts = detectors()
    before = [snapshot(signal) for signal in parts]
    scan = hf.scan([image("HAADF"), *parts])
    np.testing.assert_array_equal(scan.source.data, 50 + 90 + 130 + 170)
    assert scan.source._signal_type == "EDS_TEM" and scan.source.metadata.Sample.elements == ["Fe", "O"]
    assert scan.source.axes_manager[0].scale == 2.0
    assert "EDS detectors of one scan" in scan.sentence and "4 detectors were added up" in scan.sentence
    for signal, was in zip(parts, before, strict=True):
        assert_untouched(signal, was)
    parts = detectors()
    total = spectra("EDS", data=sum(part.data.astype("u2") for part in parts))
    for place in (0, 4):
        scan = hf.scan([image("HAADF"), *parts[:place], total, *parts[place:]])
        assert scan.source is total and "the sum of the other 4" in scan.sentence
    np.testing.assert_array_equal(hf.scan([image("HAADF"), *detectors()], spectrum=[1, 2]).source.data, 140)
    scan = hf.scan([image("HAADF"), *(part.as_lazy() for part in detectors(2))])
    assert scan.source._lazy
    np.testing.assert_array_equal(scan.source.data.compute(), 140)


ELSEWHERE = "No image of the scan's 16 x 12 pixels or field of view is known to be of HAADF"
TWO_AREAS = [spectra("1"), spectra("2", axes=spatial((NY, NX), 4.0))]
TWICE = [spectra(data=np.ones((NY, NX, 300), "u1")) for _ in range(2)]
AMBIGUOUS = {
    "two HAADF images": ([image("HAADF 1"), image("HAADF 2"), spectra()], "2 images are of HAADF", "haadf", (0, 1)),
    "no elastic detector": ([image("BF"), image("iDPC"), image(""), spectra()], ELSEWHERE, "haadf", (0, 1, 2)),
    "HAADF of another field": ([image("HAADF", spatial(scale=5.0)), spectra()], ELSEWHERE, "haadf", (0,)),
    "a survey only": ([image("HAADF overview"), spectra()], ELSEWHERE, "haadf", (0,)),
    "EDS and EELS": ([image("HAADF"), spectra(), eels()], "There are EDS and EELS spectra", "spectrum", (1, 2)),
    "two core losses": ([image("HAADF"), eels("A"), eels("B")], "There are 2 EELS", "spectrum", (1, 2)),
    "two acquisitions": ([image("HAADF"), spectra("1", file="one.emd"), spectra("2", file="two.emd")],
                         "of several acquisitions", "spectrum", (1, 2)),
    "two areas": ([image("HAADF"), *TWO_AREAS], "not on the same pixels", "spectrum", (1, 2)),
    "the same counts twice": ([image("HAADF"), *TWICE], "hold the same counts", "spectrum", (1, 2)),
    "maps of two acquisitions": ([image("HAADF"), *map(image, ("O K", "Fe K", "O K"))],
                                 "There are several maps of one element", "spectrum", (1, 2, 3)),
    "no spectra": ([image("HAADF"), image("BF")], "no spectrum image and no element map", "spectrum", (0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_is_not_clear_is_refused_with_the_candidates(case):
    signals, sentence, keyword, numbers = AMBIGUOUS[case]
    with pytest.raises(ValueError) as error:
        hf.scan(signals)
    first, *lines = str(error.value).splitlines()
    assert sentence in first and f"as {keyword}=. There are" in first
    assert [int(line.split(":")[0]) for line in lines] == list(numbers)
    for line, number in zip(lines, numbers, strict=True):
        title = signals[number].metadata.General.title
        x = signals[number].axes_manager["x"]
        assert f"{title!r}, " in line and f"{x.size} x " in line and f"{x.scale:.4g} {x.units}" in line


def test_hints_settle_it():
    signals = [image("HAADF 1"), image("HAADF 2"), spectra(), eels()]
    for haadf in (1, "HAADF 2", "haadf 2", signals[1]):
        for spectrum in (3, "EELS", signals[3]):
            scan = hf.scan(signals, haadf=haadf, spectrum=spectrum)
            assert scan.haadf is signals[1] and scan.source is signals[3]
            assert "as asked" in scan.sentence
    both = hf.scan(signals, haadf=0, spectrum=["EDS", "EELS"]).source
    assert both[0] is signals[2] and both[1] is signals[3]
    signals = [image("BF"), spectra()]
    assert hf.scan(signals, haadf="BF").haadf is signals[0]
    virtual = image("virtual annular detector")
    assert hf.scan(signals, haadf=virtual).haadf is virtual


@pytest.mark.parametrize(
    "hints, sentence",
    [
        ({"haadf": "DF"}, "No signal has the title or number 'DF'"),
        ({"haadf": 70}, "No signal has the title or number 70"),
        ({"spectrum": "EDS"}, "2 signals have the title 'EDS'"),
        ({"spectrum": []}, r"spectrum=\[\] chooses nothing"),
    ],
)
def test_hints_that_settle_nothing_are_refused(hints, sentence):
    with pytest.raises(ValueError, match=sentence):
        hf.scan(velox(), **hints)


def test_what_is_no_scan_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="There are no signals to find a scan in"):
        hf.scan([])
    with pytest.raises(FileNotFoundError, match="There is no file 'none.bcf'"):
        hf.scan("none.bcf")
    with pytest.raises(TypeError, match="A HyperSpy signal is needed"):
        hf.scan([np.ones((3, 4))])
    np.savez(tmp_path / "maps.npz", Fe=np.ones((4, 4)))
    with pytest.raises(ValueError, match=r"HyperSpy cannot read '.*maps.npz' .*Signal2D\(array\)"):
        hf.scan(tmp_path / "maps.npz")


def frames(signal_type="EDS_TEM", name="Time"):
    """Spectra whose frames are kept, (x, y, t|E), as Velox and JEOL files give them with sum_frames=False."""
    data = RNG.poisson(0.5, (5, NY, NX, 300)).astype("u1")
    energy = {"name": "Energy", "size": 300, "scale": 0.03, "units": "keV"}
    of_frames = {"size": 5, "units": "s"} | ({"name": name} if name else {})
    signal = hs.signals.Signal1D(data, axes=[of_frames, *spatial(), energy])
    signal.set_signal_type(signal_type)
    signal.metadata.General.title = "EDS"
    return signal


@pytest.mark.parametrize("signal_type", ["EDS_TEM", "EDS_SEM", "EELS", ""])
@pytest.mark.parametrize("name", ["Time", "Frame", None])
def test_frames_are_to_be_summed_and_the_maps_of_the_vendor_no_way_out(signal_type, name):
    kept = frames(signal_type, name)
    signals = [image("HAADF"), image("Fe"), image("O"), kept]
    for call in (lambda: hf.scan(signals), lambda: hf.element_maps(kept, ["Fe"]), lambda: kept.fuse(signals[0])):
        with pytest.raises(
            ValueError, match=r"EDS.* keeps its frames apart: .*`hyperspy_fusion\.sum_frames\("
        ) as error:
            call()
        assert "one HAADF image for each frame" in str(error.value) and len(str(error.value).split()) <= 35
    summed = eval(re.search(r"`(s\.sum.+?)`", str(error.value))[1], {"s": kept})
    assert summed.axes_manager.navigation_shape == (NX, NY)
    assert hf.scan([*signals, summed]).source is summed
    assert hf.scan(signals, spectrum=["Fe", "O"]).source.elements == ["Fe", "O"]


@pytest.mark.parametrize("name", ["Time", "scan", None])
def test_frames_of_the_haadf_image_are_to_be_summed(name):
    axes = [{"size": 5} | ({"name": name} if name else {}), *spatial()]
    kept = hs.signals.Signal2D(RNG.random((5, NY, NX)), axes=axes, metadata={"General": {"title": "HAADF"}})
    for signals in ([kept, spectra()], [kept, image("Fe")], [image("BF"), kept, spectra()]):
        with pytest.raises(ValueError, match="HAADF.* keeps its frames apart.*sum_frames") as error:
            hf.scan(signals)
    summed = eval(re.search(r"`(s\.sum.+?)`", str(error.value))[1], {"s": kept})
    assert hf.scan([*signals, summed]).haadf is summed


@pytest.mark.parametrize(
    "make",
    [lambda s: s.T, lambda s: s.as_signal1D(0), lambda s: s.T.as_lazy(), lambda s: s.transpose(signal_axes=[])],
)
@pytest.mark.parametrize("make_spectra", [spectra, eels])
def test_spectra_with_energies_first_are_to_be_transposed(make, make_spectra):
    """(E|x, y) and (E, y|x), of which neither is a stack of maps."""
    right = make_spectra()
    first = make(right)
    for call in (
        lambda: hf.scan([image("HAADF"), image("Fe"), first]),
        lambda: hf.element_maps(first, ["Fe", "O"]),
        lambda: first.fuse(image("HAADF"), elements=["Fe"]),
    ):
        with pytest.raises(ValueError, match=r"has its energies first, .*: transpose it by `s\.as_signal1D") as error:
            call()
    turned = eval(re.search(r"`(.+)`", str(error.value))[1], {"s": first})
    assert turned._signal_type == right._signal_type
    np.testing.assert_array_equal(sorted(turned.data.shape), sorted(right.data.shape))
    assert hf.scan([image("HAADF"), right]).source is right


@pytest.mark.parametrize("titles", [("C K", "O K", "S K", "Fe K", "Cu K"), ("Fe",)])
@pytest.mark.parametrize("title", ["IMG1", "", "Image", "Analog 1"])
def test_the_only_image_that_is_no_element_map_is_taken(title, titles):
    signals = [image(title), *map(image, titles)]
    scan = hf.scan(signals)
    assert scan.haadf is signals[0] and scan.source.elements == [t.split()[0] for t in titles]
    assert "the only image that is no element map" in scan.sentence and "check that it is HAADF" in scan.sentence
    assert hf.scan([*signals, spectra()]).haadf is signals[0]
    for other in (image("IMG2"), image("BF")):
        with pytest.raises(ValueError, match="is known to be of HAADF"):
            hf.scan([*signals, other])
    with pytest.raises(ValueError, match="is known to be of HAADF"):
        hf.scan([image("BF"), *signals[1:]])


@pytest.mark.parametrize(
    "titles, units, size",
    [
        (("HAADF", "Fe", "O", "BF", "DF4"), "nm", 2.0),
        (("HAADF", "Fe-EELS", "O-EELS", "DF2"), "µm", 0.002),
        (("IMG1", "Fe K", "O K"), "nm", -2.0),
        (("STEM", "Fe-K", "O-K"), "nm", 2.0),
        (("Electron Image 1", "Fe Kα1", "O Kα1"), "µm", -0.002),
        (("HAADF", "Fe wt%", "O wt%", "EDS sum"), "nm", 2.0),
        (("ADF", "Fe map", "O map"), "nm", -2.0),
    ],
    ids=str,
)
def test_images_of_a_vendor_without_spectra_fuse(titles, units, size):
    axes = [{**axis, "scale": size, "units": units} for axis in spatial()]
    signals = [image(title, axes) for title in titles]
    haadf, source = hf.scan(signals)
    assert haadf is signals[0] and source.elements == ["Fe", "O"]
    fused = source.fuse(haadf, method="published", max_iter=1)
    assert fused.elements == ["Fe", "O"] and np.isfinite(fused.data).all()
    assert [(a.scale, a.units) for a in fused.axes_manager.signal_axes] == [(size, units)] * 2


def test_images_of_one_field_lie_edge_on_edge():
    """The spectra have an offset in the frame of the stage, the image none; and one axis of it is stretched."""
    there = spectra(axes=spatial(offset=(-33.9, -22.0)))
    for haadf in (image("HAADF"), image("HAADF", spatial((2 * NY, 2 * NX), 1.0))):
        scan = hf.scan([haadf, there])
        assert scan.haadf is haadf and "edge on edge although their offsets differ" in scan.sentence
    haadf = image("HAADF")
    haadf.axes_manager["y"].scale *= 1.12
    assert hf.scan([haadf, spectra()]).haadf is haadf
    fused = spectra().fuse(haadf, max_iter=1, method="published")
    assert [a.scale for a in fused.axes_manager.signal_axes] == [2.0, 2.0]
    assert any("pixel for pixel" in sentence for sentence in fused.metadata.Fusion.warnings)


# ---- files of vendors ----------------------------------------------------------------------------


def test_a_format_settles_an_ending_of_several(tmp_path):
    for signal in (image("HAADF"), spectra()):
        signal.save(tmp_path / "one.hspy", overwrite=True)
        (tmp_path / "one.hspy").rename(tmp_path / f"{signal.metadata.General.title}.hdf5")
    image("Fe").save(tmp_path / "Fe.hspy")
    files = [tmp_path / "HAADF.hdf5", tmp_path / "EDS.hdf5"]
    with pytest.raises(ValueError, match=r"HAADF.hdf5' is that of several formats, .*HSPY.*, as file_format='\w+'\."):
        hf.scan(files)
    for name in ("HSPY", "hspy", "HyperSpy"):
        haadf, eds = hf.scan([*files, tmp_path / "Fe.hspy"], file_format=name)
        assert eds._signal_type == "EDS_TEM" and haadf.metadata.General.title == "HAADF"
    # files of another ending are read as ever
    assert hf.scan([*files[:1], tmp_path / "Fe.hspy"], file_format="HSPY").source.elements == ["Fe"]
    with pytest.raises(ValueError, match="'Nikon' is no format that HyperSpy reads: .*file_format= as one of .*HSPY"):
        hf.scan(files, file_format="Nikon")
    with pytest.raises(ValueError, match="HyperSpy cannot read .*HAADF.hdf5"):
        hf.scan(files, file_format="Delmic")


@pytest.mark.parametrize(
    "error, named",
    [
        (ModuleNotFoundError("No module named 'sparse'", name="sparse"), r"sparse, .*'rosettasciio\[eds-stream\]'"),
        (ModuleNotFoundError("The 'sparse' library was not found."), r"sparse, .*'rosettasciio\[eds-stream\]'"),
        (ModuleNotFoundError("No module named 'pyUSID'", name="pyUSID"), r"pyUSID, .*'rosettasciio\[usid\]'"),
        (
            ModuleNotFoundError("No module named 'skimage'", name="skimage"),
            r"scikit-image, .*rosettasciio\[blockfile\]",
        ),
        (ImportError("No netCDF library installed."), r"\(No netCDF.*'rosettasciio\[all\]'"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(error, named, monkeypatch, tmp_path):
    def load(*_, **__):
        raise error

    monkeypatch.setattr("hyperspy.io.load", load)
    (tmp_path / "scan.emd").touch()
    with pytest.raises(ValueError, match=f"scan.emd' by the package .*{named}"):
        hf.scan(tmp_path / "scan.emd")


def fused_from(path, elements=None, methods=("published", "calibrated", "auto"), **options):
    """The lines of the README, with the first iterations of each method."""
    haadf, source = hf.scan(path, **options)
    measured = hf.element_maps(source, elements)
    for method in methods:
        fused = source.fuse(haadf, elements=elements, method=method, max_iter=2)
        assert fused.elements == measured.elements and fused.data.shape == measured.data.shape
        axes = [scan_axes(source), spatial_axes(fused.get_map(fused.elements[0]))]
        assert [{**axis, "name": None} for axis in axes[0]] == [{**axis, "name": None} for axis in axes[1]]
        assert np.isfinite(fused.data).all()
    # the last method keeps the totals
    np.testing.assert_allclose(fused.data.sum(axis=(1, 2)), measured.data.sum(axis=(1, 2)), rtol=1e-3)
    return fused


def test_a_velox_file_of_spectra_goes_from_path_to_maps():
    path = shared("data/velox/SI_empty selection.emd")
    scan = hf.scan(path)
    assert (scan.source._signal_type, scan.haadf.metadata.General.title) == ("EDS_TEM", "HAADF")
    y, x = scan_axes(scan.source)
    assert (y["size"], x["size"], y["units"]) == (16, 20, "nm") and y["scale"] == pytest.approx(1.99684875715)
    assert "edge on edge although their offsets differ" in scan.sentence
    # its image was emptied to make the file small
    fit = fused_from(path, ["C", "O", "Cu"], ("calibrated", "auto")).metadata.Fusion
    found = dict(zip(fit.diagnostics.codes, fit.diagnostics.severities, strict=True))
    assert (found["haadf-constant"], found["offset-differs"]) == ("note", "information")
    with pytest.raises(ValueError, match="The HAADF image is saturated, at 65535"):
        scan.source.fuse(scan.haadf, elements=["C"], method="published")
    haadf = scan.haadf._deepcopy_with_new_data(scan.source.data.sum(axis=-1).astype(float))
    rebinned = scan.source.rebin(scale=(2, 2, 1))
    assert hf.match_haadf(haadf, hf.element_maps(rebinned, ["C"]), register="calibration").overlap == 1


@pytest.mark.slow
def test_a_velox_file_of_maps_goes_from_path_to_maps():
    fused = fused_from(shared("data/velox/Test SI 16x16 ReducedData 215 kx.emd"))
    assert fused.elements == ["C", "Ca", "O", "Cu"]
    y, _ = spatial_axes(fused.get_map("Ca"))
    assert (y["size"], y["units"]) == (16, "nm") and y["scale"] == pytest.approx(3.59924925596)


@pytest.mark.slow
def test_jeol_files_go_from_path_to_maps():
    folder = shared("data/jeol/Sample/00_View000")
    files = sorted([*folder.glob("*.img"), *folder.glob("*.map")])
    with pytest.raises(ValueError, match=r"img' is that of several formats, JEOL, Hamamatsu: .* file_format='JEOL'"):
        hf.scan(files)
    assert hf.scan(files, file_format="JEOL").haadf.metadata.General.title == "IMG1"
    fused = fused_from(files, methods=("calibrated",), file_format="JEOL")
    assert fused.elements == ["C", "O", "S", "Fe", "Cu"] and fused.axes_manager.signal_shape == (512, 512)
    y, _ = spatial_axes(fused.get_map("Fe"))
    assert y["units"] == "µm" and y["scale"] == pytest.approx(0.00869140625)


@pytest.mark.nightly
def test_a_jeol_project_goes_from_path_to_maps():
    """Of 512 x 512 x 4096 channels, which are read lazily."""
    haadf, eds = hf.scan(shared("data/jeol/rawdata.ASW"), lazy=True)
    assert (haadf.metadata.General.title, eds._signal_type) == ("IMG1", "EDS_TEM")
    fused = eds.fuse(haadf, elements=["Fe", "Cu"], method="published", max_iter=1)
    assert fused.elements == ["Fe", "Cu"] and fused.axes_manager.signal_shape == (512, 512)


@pytest.mark.parametrize("name", ["bruker_test_TEM", "L2083-K-4-1_tilt0", "L2083-K-4-1_tilt-20"])
def test_bruker_files(name):
    haadf, eds = hf.scan(shared(f"data/{name}.bcf"), lazy=True)
    assert (haadf.metadata.General.title, eds.metadata.General.title) == ("HAADF", "EDX")
    assert eds._lazy and eds._signal_type == "EDS_TEM"


def test_hspy_files_of_eels():
    names = ("CuZn_HAADF", "CuZn_EELS_mapping_tutorial", "Cu_map", "Zn_map")
    haadf, spectrum = hf.scan([shared(f"data/{name}.hspy") for name in names])
    assert haadf.metadata.General.title == "Gatan HAADF" and spectrum._signal_type == "EELS"
    _, maps = hf.scan([shared(f"data/{name}.hspy") for name in names if "EELS" not in name])
    assert maps.elements == ["Cu", "Zn"]


def test_one_file_of_several_signals_is_fused(tmp_path):
    for signal in (image("HAADF"), spectra()):
        signal.save(tmp_path / f"{signal.metadata.General.title}.hspy")
    haadf, eds = hf.scan([tmp_path / "HAADF.hspy", str(tmp_path / "EDS.hspy")])
    assert hf.fuse(eds, haadf, max_iter=1, method="published").elements == ["Fe", "O"]


NAMES = {
    "HAADF": ["HAADF", "Gatan HAADF", "High-angle annular dark field", "STEM_HAADF_4"],
    "BSE": ["BSE", "AsB", "backscattered electrons"],
    "MAADF": ["MAADF"],
    "ADF": ["DF4", "ADF Image", "LAADF"],
    None: ["BF", "ABF", "iDPC", "SE", "Se", "Fe", "adfs", ""],
}


def test_detectors_by_their_names():
    for name, titles in NAMES.items():
        for title in titles:
            assert getattr(detector_of(title), "name", None) == name, title
    assert detector_of("", "unknown", "HAADF").name == "HAADF"
    assert detector_of("BF", "HAADF") is None
    assert is_survey("ADF Image (SI Survey)") and is_survey("HAADF Overview") and not is_survey("HAADF")
    assert is_detector_title("ABF") and is_detector_title("BSE") and not is_detector_title("Se")


def backscattered(z):
    """Coefficient of bulk at 20 keV (Reuter 1972, in Goldstein et al., Scanning Electron Microscopy)."""
    return -0.0254 + 0.016 * z - 1.86e-4 * z**2 + 8.3e-7 * z**3


def test_the_exponent_of_backscattering():
    z = np.arange(6, 80)
    slope = np.polyfit(np.log(z), np.log(backscattered(z)), 1)[0]
    (bse,) = (detector for detector in DETECTORS if detector.name == "BSE")
    assert abs(slope - bse.gamma) < 0.15
