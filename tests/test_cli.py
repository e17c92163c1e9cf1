"""The command line: what it writes and says, and how it refuses bad input."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hyperspy.api as hs
import numpy as np
import pytest
from helpers import fuse_with, shared
from matplotlib.figure import Figure

import hyperspy_fusion.model
from hyperspy_fusion import cli
from hyperspy_fusion.cli.demo import DEMOS
from hyperspy_fusion.cli.stack import files_of
from hyperspy_fusion.data import core_shell
from hyperspy_fusion.fusion.settings import SETTINGS
from hyperspy_fusion.maps import eds_lines

SHAPE = (16, 20)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan")
    maps, haadf = core_shell(SHAPE).signals()
    for signal in (*maps, haadf):
        signal.save(path / f"{signal.metadata.General.title}.hspy")
    return path


@pytest.fixture
def folder(files, tmp_path, monkeypatch):
    """The working folder, with the maps of a small scan and its HAADF image, one file each."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def drawn():
    """For tests that look at pictures."""


@pytest.fixture(autouse=True)
def sketched(request, monkeypatch):
    """Pictures took five sixths of the time of most tests, and nothing looked at them."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: Path(path).touch())


def spectrum_image(shape=SHAPE, title="EDX"):
    """An EDS scan with Fe and O lines."""
    s = hs.signals.Signal1D(np.random.default_rng(0).poisson(1.0, (*shape, 100)))
    s.axes_manager[-1].scale, s.axes_manager[-1].units, s.axes_manager[-1].offset = 0.1, "keV", 0.05
    s.set_signal_type("EDS_TEM")
    s.set_microscope_parameters(beam_energy=200, energy_resolution_MnKa=130)
    s.set_elements(["Fe", "O"])
    s.set_lines(["Fe_Ka", "O_Ka"])
    s.metadata.General.title = title
    return s


def image(title, shape=SHAPE):
    data = np.random.default_rng(len(title)).random(shape, np.float32)  # kernels that are compiled anyway
    return hs.signals.Signal2D(data, metadata={"General": {"title": title}})


@pytest.fixture
def scan(monkeypatch):
    """Make `cli` load these signals from every file."""

    def give(*signals):
        monkeypatch.setattr(cli, "load_signals", lambda file, **_: list(signals))

    return give


def fuse_files(command):
    """The status of `hyperspy-fusion fuse` by the published method, which is quick."""
    return cli.main(f"fuse --method published {command}".split())


def refusal(capsys, *arguments):
    """The sentence with which the command refuses; checks status and that it is one line."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hyperspy-fusion: ") and err.endswith("\n")
    assert err.count("\n") == 1
    return err


@pytest.mark.slow
def test_overlapping_lines_by_a_model_of_the_spectra(folder, capsys):
    spectra, haadf = hyperspy_fusion.data.overlapping_lines((16, 16)).signals()
    spectra.save("eds.hspy")
    haadf.save("image.hspy")
    command = "fuse eds.hspy --haadf image.hspy --elements Fe Co S Mo --lines model --method calibrated --max-iter 20"
    assert cli.main(f"{command} -o model.hspy".split()) == 0
    options = {"elements": ["Fe", "Co", "S", "Mo"], "method": "calibrated", "max_iter": 20}
    expected = hyperspy_fusion.fuse(spectra, haadf, lines="model", **options)
    np.testing.assert_allclose(hs.load("model.hspy").data, expected.data, rtol=1e-5)
    capsys.readouterr()
    published = command.replace("calibrated", "published").split()
    assert "pass --method calibrated" in refusal(capsys, *published, "-o", "p.hspy")


def test_fuses_maps_from_files_as_the_function_does(folder, capsys):
    assert fuse_files("Pt.hspy Fe.hspy O.hspy --haadf HAADF.hspy --max-iter 3 -o out.hspy") == 0
    fused = hs.load("out.hspy")
    maps, haadf = core_shell(SHAPE).signals()
    expected = hyperspy_fusion.fuse(maps, haadf, max_iter=3, method="published")
    assert fused.elements == ["Pt", "Fe", "O"]
    np.testing.assert_array_equal(fused.data, expected.data)
    said = capsys.readouterr().out
    assert "Fused Pt, Fe, O with 'HAADF', iterations: 3." in said
    assert "out.hspy" in said


def test_haadf_is_found_by_its_title_among_the_files(folder):
    assert fuse_files("Fe.hspy HAADF.hspy O.hspy --max-iter 1") == 0
    fused = hs.load("Fe_fused.hspy")
    assert fused.elements == ["Fe", "O"]
    assert list(fused.metadata.Element_maps.source_titles) == ["Fe", "O"]
    assert fused.metadata.Fusion.haadf_title == "HAADF"
    assert fuse_files("Fe.hspy HAADF.hspy O.hspy --haadf ./HAADF.hspy --max-iter 1 -o among.hspy") == 0
    assert hs.load("among.hspy").elements == ["Fe", "O"]
    spectrum_image().save("eds.hspy")
    assert fuse_files("eds.hspy --haadf HAADF.hspy --elements O Fe --max-iter 1") == 0
    assert hs.load("eds_fused.hspy").elements == ["O", "Fe"]


def test_a_format_settles_an_ending_of_several(folder, capsys):
    (folder / "HAADF.hspy").rename("HAADF.hdf5")
    spectrum_image().save("eds.hspy")
    (folder / "eds.hspy").rename("eds.hdf5")
    command = "eds.hdf5 HAADF.hdf5 --max-iter 1 -o out.hspy"
    said = refusal(capsys, "fuse", *command.split())
    assert "is that of several formats, " in said and "pass that of the file, as --file-format " in said
    assert fuse_files(f"{command} --file-format HSPY") == 0
    assert hs.load("out.hspy").elements == ["Fe", "O"]
    assert fuse_files("eds.hdf5 --haadf HAADF.hdf5 --max-iter 1 -o out.hspy --overwrite --file-format HyperSpy") == 0
    capsys.readouterr()
    assert "'X' is no format that HyperSpy reads: pass --file-format " in refusal(
        capsys, "fuse", *command.split(), "--overwrite", "--file-format", "X"
    )


def test_vendor_maps_and_kept_frames(folder, scan, capsys):
    """Titles of JEOL; and spectra whose frames are kept are not left for the maps of the vendor."""
    (folder / "scan.emd").touch()
    maps = [image("IMG1"), image("Fe K"), image("O K")]
    scan(*maps)
    assert fuse_files("scan.emd --max-iter 1 -o out.hspy") == 0
    fused = hs.load("out.hspy")
    assert fused.elements == ["Fe", "O"] and fused.metadata.Fusion.haadf_title == "IMG1"
    capsys.readouterr()
    frames = hs.signals.Signal1D(np.ones((3, *SHAPE, 100), "u1"))
    frames.set_signal_type("EDS_TEM")
    scan(*maps, frames)
    assert "keeps its frames apart" in refusal(capsys, "fuse", "scan.emd")


def test_elements_name_maps_in_the_order_of_the_files(folder):
    for name in ("one", "two"):
        image(name).save(f"{name}.hspy")
    image("HAADF").save("HAADF.hspy", overwrite=True)
    command = "one.hspy two.hspy --haadf HAADF.hspy --elements Co Mn --max-iter 1 -o out.hspy"
    assert fuse_files(command) == 0
    fused = hs.load("out.hspy")
    assert fused.elements == ["Co", "Mn"]
    assert list(fused.metadata.Element_maps.source_titles) == ["one", "two"]


def test_the_width_of_windows_arrives(folder, scan, capsys):
    spectra, haadf = spectrum_image(), image("HAADF")
    scan(spectra, haadf)
    (folder / "scan.hspy").touch()
    assert "in units of the FWHM" in refusal(capsys, "fuse", "scan.hspy", "--integration-windows", 130)
    assert fuse_files("scan.hspy --integration-windows 1.2 --max-iter 1") == 0
    fused = hs.load("scan_fused.hspy")
    expected = hyperspy_fusion.fuse(spectra, haadf, integration_windows=1.2, max_iter=1, method="published")
    np.testing.assert_array_equal(fused.data, expected.data)
    assert not np.array_equal(fused.data, hyperspy_fusion.fuse(spectra, haadf, max_iter=1, method="published").data)


QUICK = "fuse Fe.hspy O.hspy --haadf HAADF.hspy --method calibrated --regularization tv --set tol=1e-2 -o out.hspy"


@pytest.mark.slow
def test_errors_are_saved_beside_the_maps(folder, capsys):
    number = 3
    assert cli.main([*QUICK.split(), "--errors=3"]) == 0
    fused, errors = hs.load("out.hspy"), hs.load("out_errors.hspy")
    assert fused.metadata.Fusion.errors.n_resamples == number
    assert errors.elements == ["Fe", "O"] and errors.data.shape == fused.data.shape and errors.data.min() > 0
    said = capsys.readouterr().out
    assert f"Their standard errors, from {number} bootstrap replicates: out_errors.hspy" in said
    maps, haadf = core_shell(SHAPE).signals()
    options = {"method": "calibrated", "regularization": "tv", "tol": 1e-2, "errors": number}
    expected = fuse_with(maps[1:], haadf, **options).standard_errors()
    np.testing.assert_allclose(errors.data, expected.data, rtol=1e-6)
    region, own = fused.region(np.ones(SHAPE, bool)), fuse_with(maps[1:], haadf, **options)
    assert region.estimate("Fe").error == pytest.approx(own.region(np.ones(SHAPE, bool)).estimate("Fe").error, rel=1e-5)
    assert fused.plot_fusion(errors=True).shape[0] == 3
    assert cli.main([*QUICK.split(), "--overwrite"]) == 0
    assert "out_errors.hspy has the standard errors of earlier maps" in capsys.readouterr().out


@pytest.mark.parametrize("options", ["", "--set tile_size=64"], ids=["whole", "tiles"])
def test_the_report_is_printed_and_what_it_needs_is_saved(folder, capsys, options):
    assert cli.main([*QUICK.split(), *options.split()]) == 0
    fused = hs.load("out.hspy")
    assert str(fused.report()) in capsys.readouterr().out
    if not options:  # of tiles, the measured maps are not kept
        assert fused.compare_without_haadf(errors=2, show_progressbar=False).without_haadf.elements == ["Fe", "O"]


def test_ctrl_c_saves_the_maps_without_errors(folder, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(hyperspy_fusion.model.progress, "fitting", interrupt)
    command = "fuse Fe.hspy O.hspy --haadf HAADF.hspy --method calibrated --errors 2 -o o.hspy --picture o.png"
    assert cli.main(command.split()) == cli.INTERRUPTED
    assert {path.name for path in folder.glob("o*")} == {"o.hspy", "o.png"}
    assert "Their standard errors" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        "fuse Fe.hspy O.hspy --haadf HAADF.hspy -o sub/o.hspy",
        "fuse Fe.hspy O.hspy --haadf HAADF.hspy --picture sub/o.png",
        "demo -o sub",
        "demo -o sub/new",
    ],
)
def test_a_protected_folder_is_refused_before_the_fit(folder, capsys, monkeypatch, command):
    (folder / "sub").mkdir()
    make = Path.mkdir

    def protected(path, *args, **options):
        if path.parent.name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        make(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", protected)
    monkeypatch.setattr(hyperspy_fusion.model.FusedMultiModal, "fit", lambda *_, **__: pytest.fail("a fit is run"))
    said = refusal(capsys, *command.split())
    assert "sub" in said and "cannot be written (Permission denied)" in said


def test_files_of_a_folder_are_a_stack(tmp_path, monkeypatch, capsys):
    """Each file of two scans has all signals of one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tilts").mkdir()
    scans = {name: core_shell(SHAPE, seed=seed).signals() for seed, name in enumerate(("a", "b"))}
    monkeypatch.setattr(cli, "load_signals", lambda file, **_: [*scans[Path(file).stem][0], scans[Path(file).stem][1]])
    for name in scans:
        (tmp_path / "tilts" / f"{name}.emd").touch()
    assert fuse_files("tilts --stack -o out.hspy --max-iter 3") == 0
    said = capsys.readouterr().out
    assert "Fused Pt, Fe, O in 2 of 2 frames." in said and "Picture of frame 0: out.png" in said
    assert str(hs.load("out.hspy").report()) in said
    fused = hs.load("out.hspy")
    for k, (maps, haadf) in enumerate(scans.values()):
        one = hyperspy_fusion.fuse(maps, haadf, method="published", max_iter=3, show_progressbar=False)
        np.testing.assert_array_equal(fused.frame(k).data, one.data)
    assert fuse_files("tilts --stack -o out.hspy --overwrite --export x") == 2
    assert "--export is for one scan: leave it out" in capsys.readouterr().err
    scans["b"] = core_shell((8, 9)).signals()
    assert fuse_files("tilts --stack -o out.hspy --overwrite") == 2
    assert "leave out the file that differs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names",
    [
        "tilt-20 tilt-5 tilt0 tilt5 tilt20",
        "L2083-K-4-1_tilt-20 L2083-K-4-1_tilt-5 L2083-K-4-1_tilt0 L2083-K-4-1_tilt5",
        "-10deg -2.5deg -2.25deg +0deg +2.25deg +2.5deg +10deg",
        "t1_-3.5 t1_3 t2_-4 t2_+4",
        "scan-1 scan-2 scan-10",
        "scan-1 scan-2 scan3.old",  # other words, which show no sign
        "2024.9.30 2024.10.1",
        "1-2 1-3 1-10",
    ],
)
def test_numbers_of_files_are_ordered_with_their_signs(tmp_path, names):
    names = [f"{name}.hspy" for name in names.split()]
    for name in reversed(names):
        (tmp_path / name).touch()
    assert [Path(path).name for path in files_of([str(tmp_path)])] == names


def test_a_file_alone_is_fused_and_exported(folder, capsys):
    """Without the word fuse; the .tif are those of the maps, and a composition is that of the function."""
    factors = {"Fe": 1.3, "O": 1.9}
    command = QUICK.removeprefix("fuse ").split()
    assert cli.main([*command, "--errors=2", "--export", "maps", "--percent", "cl", "Fe=1.3", "O=1.9"]) == 0
    said, fused = capsys.readouterr().out, hs.load("out.hspy")
    assert {"Fe.tif", "O.tif", "HAADF.tif", "fused.h5"} <= {path.name for path in (folder / "maps").iterdir()}
    np.testing.assert_allclose(hs.load("maps/Fe.tif").data, fused.data[0])
    table = fused.region().percent("CL", factors)
    assert str(table) in said and "±" in str(table)
    header, *rows = (line.split(",") for line in Path("out_percent.csv").read_text().splitlines())
    assert header == ["element", "at.%", "standard error"]
    assert [(e, (float(v), float(s))) for e, v, s in rows] == [(e, pytest.approx(found)) for e, found in table.items()]
    for option in ("--export maps", "--percent CL Fe=1 O=1 -o new.hspy --export maps"):
        assert "maps exists: choose another folder, or pass --overwrite" in refusal(
            capsys, *command[:-2], *option.split()
        )


def test_further_images_are_fused(folder, capsys):
    phase = hs.load("HAADF.hspy")
    phase.data, phase.metadata.General.title = np.sqrt(phase.data), "phase"
    phase.save("phase.hspy")
    assert cli.main([*QUICK.split(), "--image", "phase.hspy"]) == 0
    maps, haadf = core_shell(SHAPE).signals()
    options = {"method": "calibrated", "regularization": "tv", "tol": 1e-2}
    expected = fuse_with(maps[1:], [haadf, phase], **options)
    np.testing.assert_allclose(hs.load("out.hspy").data, expected.data, rtol=1e-5)
    assert "The phase image" in capsys.readouterr().out
    assert "There is no file 'none.hspy'" in refusal(capsys, *QUICK.split(), "--overwrite", "--image", "none.hspy")


def test_the_help_begins_with_examples_and_hides_settings(capsys):
    texts = {}
    for option in ("--help", "--help-settings"):
        with pytest.raises(SystemExit) as stop:
            cli.main([option])
        assert not stop.value.code
        texts[option] = capsys.readouterr().out
    short, long = texts.values()
    assert short.index("hyperspy-fusion scan.bcf") < short.index("--elements EL") < short.index("--help-settings")
    assert "--image FILE" in short
    hidden = ["--lambda-tv", "--set NAME=VALUE", "--stack", "--lines"]
    assert all(option in long and option not in short for option in hidden)
    assert len(short.splitlines()) < 60 and short.split("\n  --version")[0] in long


@pytest.mark.parametrize(
    "ending, begins, errors",
    [("png", b"\x89PNG", []), pytest.param("svg", b"<?xml", ["--errors", "2"], marks=pytest.mark.slow)],
)
def test_a_picture_is_drawn(folder, capsys, drawn, ending, begins, errors):
    from matplotlib.image import imread

    # by default beside the maps
    picture = Path(f"fused.{ending}")
    given = [] if ending == "png" else ["--picture", str(picture)]
    assert cli.main([*QUICK.replace("out.hspy", "fused.hspy").split(), *given, *errors]) == 0
    assert f"Picture: {picture}" in capsys.readouterr().out
    written = picture.read_bytes()
    assert written.startswith(begins) and len(written) > 10_000
    if ending == "png":
        height, width, _ = imread(picture).shape
        assert height > 2 * 100 and width > 3 * 100 and np.ptp(imread(picture)) > 0.5


@pytest.mark.parametrize(
    "given, sentence",
    [
        ("--method published --errors", "--method published has no model of the noise"),
        ("--method calibrated --errors 1", "errors is 1: it must be True, False or a whole number of at least 2"),
        ("--elements Fe O --percent CL Fe=2", "--percent has no factor of O: give EL=X for each element."),
        ("--picture fused.bmp", "fused.bmp ends in '.bmp': pictures are drawn as .png, .pdf, .svg."),
        ("--picture nowhere/fused.png", "the folder nowhere does not exist: make it, or give another --picture."),
        ("--picture there.png", "there.png exists: give --overwrite to replace it, or another --picture."),
        ("--method calibrated --errors -o kept.hspy", "kept_errors.hspy exists: give --overwrite to replace it"),
    ],
)
def test_errors_and_pictures_that_cannot_be_are_refused(folder, capsys, given, sentence):
    (folder / "there.png").touch()
    (folder / "kept_errors.hspy").touch()
    before = sorted(folder.iterdir())
    said = refusal(capsys, *f"fuse Fe.hspy O.hspy --haadf HAADF.hspy {given}".split())
    assert sentence in said
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("option", ["-o Fe.hspy", "-o HAADF.hspy", "--picture HAADF.png"])
def test_files_to_fuse_are_not_replaced(folder, capsys, option):
    """Also where others may be."""
    (folder / "HAADF.png").touch()
    files = "Fe.hspy O.hspy --haadf HAADF" + (".png" if "png" in option else ".hspy")
    said = refusal(capsys, *f"{files} {option} --overwrite".split())
    assert f"{option.split()[1]} is one of the files to fuse: give another --output or --picture." in said


def test_export_replaces_no_file_to_fuse(folder, capsys):
    (folder / "maps").mkdir()
    for name in ("Fe.tif", "O.tif"):
        (folder / "maps" / name).write_text(name)
    said = refusal(capsys, *"maps/Fe.tif maps/O.tif --haadf HAADF.hspy --export maps --overwrite".split())
    assert "--export may replace Fe.tif, one of the files to fuse: give another folder." in said
    assert (folder / "maps" / "Fe.tif").read_text() == "Fe.tif"


def test_a_picture_without_a_name_is_refused(folder, capsys):
    said = refusal(capsys, "fuse", "Fe.hspy", "--haadf", "HAADF.hspy", "--picture", "")
    assert "--picture has no name: give that of a .png, .pdf, .svg file." in said
    with pytest.raises(SystemExit):
        cli.main("fuse --errors Fe.hspy O.hspy".split())
    assert "'Fe.hspy' is no whole number: give N, or --errors behind the FILEs" in capsys.readouterr().err


def test_nothing_is_overwritten_unasked(folder, capsys, tmp_path):
    (folder / "out.hspy").write_text("precious")
    command = "fuse --method published Fe.hspy O.hspy --haadf HAADF.hspy --max-iter 1 -o out.hspy"
    assert "out.hspy exists: give --overwrite" in refusal(capsys, *command.split())
    assert (folder / "out.hspy").read_text() == "precious"
    assert cli.main([*command.split(), "--overwrite"]) == 0
    assert hs.load("out.hspy").elements == ["Fe", "O"]
    capsys.readouterr()
    (tmp_path / "fusion_demo.png").write_text("precious")
    assert "fusion_demo.png exists: give --overwrite" in refusal(capsys, "demo", "-o", tmp_path)
    assert (tmp_path / "fusion_demo.png").read_text() == "precious"
    assert not (tmp_path / "fusion_demo.hspy").exists()


@pytest.mark.parametrize(
    "command, sentence",
    [
        ("fuse none.hspy", "There is no file 'none.hspy'"),
        ("fuse notes.txt --haadf HAADF.hspy", "HyperSpy cannot read 'notes.txt' (no format has the ending '.txt')"),
        ("fuse broken.hspy --haadf HAADF.hspy", "HyperSpy cannot read 'broken.hspy'"),
        ("fuse Fe.hspy O.hspy", "No image is known to be of HAADF or another elastic detector: pass"),
        ("fuse Fe.hspy O.hspy --haadf ADF", "No signal has the title or number 'ADF': pass"),
        ("fuse Fe.hspy --haadf HAADF.hspy --method published --set gamma=9", "gamma is 9: it must lie above 0"),
        ("fuse Fe.hspy --haadf HAADF.hspy --method published --set tv_norm=l1", "tv_norm is 'l1': it must be one of"),
        ("fuse Fe.hspy --haadf HAADF.hspy --elements Xx", "'Xx'"),
        ("fuse Fe.hspy --haadf HAADF.hspy -o out.tif", "out.tif ends in '.tif'"),
        ("fuse Fe.hspy --haadf HAADF.hspy -o there/out.hspy", "the folder there does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(folder, capsys, command, sentence):
    (folder / "notes.txt").write_text("no signal")
    (folder / "broken.hspy").write_text("no HDF5")
    assert sentence in refusal(capsys, *command.split())
    assert not list(folder.glob("*fused*"))


@pytest.mark.parametrize(
    "command, sentence",
    [
        ("fuse", "the following arguments are required: FILE"),
        ("fuse a.hspy --set gamma", "argument --set: 'gamma' is no setting: give NAME=VALUE, such as tol=1e-3"),
        ("fuse a.hspy --register Fe.hspy", "argument --register: invalid choice: 'Fe.hspy'"),
        ("fuse a.hspy --lamda-reg 2", "unrecognized arguments: --lamda-reg 2: did you mean --lambda-reg? (see"),
        ("fuse a.hspy --lamda-reg=2", "unrecognized arguments: --lamda-reg=2: did you mean --lambda-reg? (see"),
        ("a.hspy --percent XX Fe=1", "argument --percent: method is 'XX'"),
        ("a.hspy --percent CL Fe=1 b.hspy", "'b.hspy' is no factor: give EL=X, such as Fe=1.3"),
        ("a.hspy --percent CL Fe=-1", "'Fe=-1' is no factor"),
        ("a.hspy --percent CL Fe=1 O=2 Fe=3", "an element has several factors in Fe=1 O=2 Fe=3"),
        ("a.hspy --percent CL", "CL has no factors: give EL=X for each element"),
        ("fuse a.hspy --zzz", "unrecognized arguments: --zzz (see"),
        ("demo --methods auto", "unrecognized arguments: --methods auto: did you mean --method? (see"),
        ("fuse a.hspy --elements Ti,O", "argument --elements: 'Ti,O' has a comma: separate by spaces, as in Ti O"),
        ("fuse a.hspy --xray-lines Ti_Ka,O_Ka", "has a comma: separate by spaces, as in Ti_Ka O_Ka"),
        ("", "arguments are required"),
    ],
)
def test_wrong_options_are_one_line_and_status_2(capsys, command, sentence):
    with pytest.raises(SystemExit) as stop:
        cli.main(command.split())
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1


@pytest.fixture
def seen(monkeypatch):
    """Keywords that arrive at `fuse`, which does nothing."""
    found = []

    def fuse(source, haadf, **options):
        found.append(options)
        raise ValueError("seen.")

    monkeypatch.setattr("hyperspy_fusion.api.fuse", fuse)
    return found


@pytest.mark.parametrize(
    "given, arrived, settings",
    [
        ("--method published --lambda-tv 0 --eps 0.1 --max-iter 2", dict(lambda_tv=0, eps=0.1, max_iter=2), {}),
        ("--method published --set gamma=1.7 --set tv-norm=anisotropic", {}, dict(gamma=1.7, tv_norm="anisotropic")),
        ("--method published --set change_tol=none --set dtype=float64", {}, dict(change_tol=None, dtype="float64")),
        ("--method calibrated --lambda-reg 2,3.5", dict(lambda_reg=(2, 3.5)), {}),
        ("--method calibrated --regularization none", dict(regularization="none"), {}),
        ("--method calibrated --set joint=false --set guide_blur=none", {}, dict(joint=False, guide_blur=None)),
        ("--method calibrated --set haadf_coefficients=3,4", {}, dict(haadf_coefficients=(3, 4))),
        ("--method calibrated --background 0.1,0", dict(background=(0.1, 0)), {}),
        ("--method auto --set variance=Fe:3,O:4", {}, dict(variance={"Fe": 3, "O": 4})),
        ("--method auto --set components=0 --set k_factors=1.2,", {}, dict(components=0, k_factors=(1.2,))),
        ("--edges Mn_L3 O_K --background model", dict(edges=["Mn_L3", "O_K"], background="model"), {}),
        ("--method calibrated --errors", dict(errors=True), {}),
        ("--register", dict(register="shift"), {}),
        ("--register calibration", dict(register="calibration"), {}),
    ],
)
def test_options_arrive(folder, seen, given, arrived, settings):
    command = f"fuse Fe.hspy O.hspy --haadf HAADF.hspy {given}"
    assert cli.main(command.split()) == 2
    assert seen[0].items() >= arrived.items()
    method = seen[0]["method"]
    assert seen[0]["settings"] == SETTINGS[method](**settings)


@pytest.mark.parametrize(
    "given, sentence",
    [
        (
            "--lambda-tv 0.1",
            "lambda_tv belongs to --method published; with --method calibrated it is called lambda_reg.",
        ),
        ("--set tol=none", "tol is None: it must be a number above 0"),
        ("--set haadf_coefficients=z_powr", "haadf_coefficients is 'z_powr': it must be one of"),
        ("--set lambda_rag=1", "did you mean 'lambda_reg'?"),
    ],
)
def test_bad_settings_are_refused_before_files_are_read(folder, capsys, given, sentence):
    assert sentence in refusal(capsys, *f"fuse none.hspy --method calibrated {given}".split())


def test_spectra_without_elements_are_refused_by_options(folder, capsys, monkeypatch):
    silent = spectrum_image()
    del silent.metadata.Sample
    silent.save("silent.hspy")
    for shown, options in ((["Fe", "S", "Cu"], "--elements Fe S Cu, which"), ([], "--elements ..., or --xray")):
        monkeypatch.setattr(eds_lines, "suggest_elements", lambda _, shown=shown: SimpleNamespace(certain=shown))
        said = refusal(capsys, "silent.hspy", "--haadf", "HAADF.hspy")
        assert f"pass {options}" in said and "--xray-lines ...." in said and "[" not in said and "call" not in said


def test_which_images_are_haadf_and_maps(scan):
    eds, haadf = spectrum_image(), image("HAADF")
    scan(image("HAADF overview", (64, 64)), image("BF"), haadf, image("Fe"), eds)
    source, found = cli._find_scan(["scan.emd"], None, None)
    assert source is eds and found is haadf
    scan(haadf, image("Fe K"), image("Fe L"), image("O K"))
    with pytest.raises(ValueError, match="several maps of Fe \\('Fe K', 'Fe L'\\): give the FILE of one"):
        cli._find_scan(["scan.emd"], None, ["Fe", "O"])
    one, two = image("HAADF 1"), image("HAADF 2")
    scan(one, two, spectrum_image())
    with pytest.raises(ValueError, match=r"2 images are of HAADF .* haadf=\.(.|\n)*'HAADF 1'(.|\n)*'HAADF 2'"):
        cli._find_scan(["scan.emd"], None, None)
    assert cli._find_scan(["scan.emd"], "HAADF 2", None)[1] is two
    scan(image("BF"), spectrum_image())
    with pytest.raises(ValueError, match=r"No image of the scan's 20 x 16 .* is known to be of HAADF(.|\n)*0: 'BF'"):
        cli._find_scan(["scan.emd"], None, None)
    haadf, iron, oxygen = image("HAADF"), image("Fe"), image("O")
    scan(haadf, image("DF4"), iron, oxygen)
    assert cli._find_scan(["scan.emd"], None, None)[0] == [iron, oxygen]
    assert cli._find_scan(["scan.emd"], None, ["O", "Fe"])[0] == [oxygen, iron]


def test_maps_on_any_axes_and_spectra_that_stand_twice(scan):
    haadf, iron = image("HAADF"), image("Fe").T
    scan(haadf, iron)
    assert cli._find_scan(["scan.emd"], None, None) == ([iron], haadf)
    stack = hs.stack([image("Fe"), image("O")])
    scan(haadf, stack)
    assert cli._find_scan(["scan.emd"], None, None) == (stack, haadf)
    one, two = (spectrum_image(title=f"SDD {i}") for i in (1, 2))
    scan(image("HAADF"), one, two)
    with pytest.raises(ValueError, match=r"hold the same counts: .* as spectrum=\.(.|\n)*1: 'SDD 1'(.|\n)*2: 'SDD 2'"):
        cli._find_scan(["scan.emd"], None, None)
    assert cli._find_scan(["scan.emd"], None, None, "SDD 2")[0] is two
    assert cli._find_scan(["scan.emd"], None, None, "1")[0] is one


def test_bruker_file(tmp_path):
    path, out = shared("data/bruker_test_TEM.bcf"), tmp_path / "out"
    assert fuse_files(f"{path} --xray-lines Ti_Ka O_Ka --max-iter 2 -o {out}") == 0
    fused = hs.load(out.with_suffix(".hspy"))
    assert fused.elements == ["Ti", "O"]
    assert fused.axes_manager[-1].units == "µm"


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, better, remark",
    [
        pytest.param("published", 8, "chosen with the truth", marks=pytest.mark.nightly),
        ("calibrated", 12, "are the defaults"),
    ],
)
def test_demo_improves_every_element(tmp_path, capsys, drawn, method, better, remark):
    folder = tmp_path / "new" / "demo"
    assert cli.main(["demo", "--method", method, "-o", str(folder)]) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if line.split() and line.split()[0] in ("Pt", "Fe", "O")]
    assert [row[0] for row in rows] == ["Pt", "Fe", "O"]
    for _, raw, fused, gaussian in rows:
        # the claim of the demo: better than the best filter that does not use the HAADF image
        assert float(fused) > float(raw) + better and float(fused) > float(gaussian)
    assert hs.load(folder / "fusion_demo.hspy").elements == ["Pt", "Fe", "O"]
    assert (folder / "fusion_demo.png").read_bytes().startswith(b"\x89PNG")
    assert str(folder / "fusion_demo.png") in said and f"by the {method} method with" in said and remark in said


def test_demo_is_right_about_the_published_defaults():
    from hyperspy_fusion.data import psnr

    phantom = core_shell()
    fused = hyperspy_fusion.fuse(*phantom.signals(), method="published")
    worse = [psnr(f, t) < psnr(r, t) for f, r, t in zip(fused.data, phantom.maps, phantom.truth, strict=True)]
    assert worse == [False, True, True]
    assert set(DEMOS) == set(SETTINGS)


def test_the_module_is_the_command():
    found = subprocess.run([sys.executable, "-m", "hyperspy_fusion.cli", "--version"], capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.strip().endswith(hyperspy_fusion.__version__)
