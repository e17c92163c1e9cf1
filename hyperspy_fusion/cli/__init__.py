"""The command ``hyperspy-fusion``: argparse over the public functions.

``hyperspy-fusion demo`` fuses a phantom whose truth is known; ``hyperspy-fusion fuse`` fuses files.
Bad input ends with status 2 and one sentence.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyperspy_fusion.cli.demo import run_demo
from hyperspy_fusion.cli.stack import files_of, stack_of
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.settings import SETTINGS, settings_for
from hyperspy_fusion.identify.map_identity import identify_map, title_of
from hyperspy_fusion.io.export import check_writable, whole_file
from hyperspy_fusion.io.files import has_format, load_signals

_PICTURES = (".png", ".pdf", ".svg")
# what a shell reports of a command that Ctrl-C ended
INTERRUPTED = 130
_METHODS = (
    "auto: settings chosen by cross-validation; calibrated: settings as given; published: that of Schwartz et al. 2022 "
    "(default: %(default)s)"
)
_BAD_INPUT = (ValueError, TypeError, NotImplementedError, OSError, FloatingPointError)


class _Refusal(ValueError):
    """Bad input of the command line, as a sentence."""


class _Parser(argparse.ArgumentParser):
    """Reports an error in one sentence, without repeating the usage."""

    def parse_known_args(self, args=None, namespace=None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        namespace, unknown = super().parse_known_args(args, namespace)
        # that of a command, for the one above it knows none of its options
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown)}")
        return namespace, unknown

    def _meant(self, unknown):
        names = (text.partition("=")[0] for text in unknown if text.startswith("--"))
        near = [difflib.get_close_matches(name, self._option_string_actions, n=1, cutoff=0.75) for name in names]
        near = " and ".join(dict.fromkeys(option for options in near for option in options))
        return f": did you mean {near}?" if near else ""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: list | None = None) -> int:
    """Run the command; the arguments default to those of the process.

    Returns
    -------
    int
        Exit status: 0, 1 where frames of a stack failed, 2 for bad input, 130 after Ctrl-C, which saves what a fit has
        reached.
    """
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            # HyperSpy 2.5 warns of its own imports
            warnings.filterwarnings("ignore", message="Importing `")
            return arguments.run(arguments)
    except _BAD_INPUT as error:
        print(f"hyperspy-fusion: {_with_options(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hyperspy-fusion: interrupted.", file=sys.stderr)
        return INTERRUPTED


def _with_options(sentence):
    """A sentence with options of the command instead of keywords of ``fuse`` and ``scan``."""
    names = "|".join(("haadf", "spectrum", "file_format", *_INPUT, *_FRONT))

    def option(found):
        name, value = found[1], found[2].strip("'\"").replace("[...]", "...").replace("True", "")
        return f"--{name.replace('_', '-')} {value}".rstrip()

    return re.sub(rf"\b({names})=(\[\.\.\.\]|'[^']*'|\"[^\"]*\"|[\w.+-]*\w|)", option, sentence)


def _parser():
    parser = _Parser(prog="hyperspy-fusion", description="Fuse a HAADF image with element maps of the same scan.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and leave")
    commands = parser.add_subparsers(title="commands", required=True, metavar="demo | fuse")
    demo = commands.add_parser("demo", help="fuse a phantom with known truth and write a picture")
    demo.add_argument("-o", "--output", metavar="DIR", default="fusion_demo", help="folder (default: %(default)s)")
    demo.set_defaults(run=_demo)
    fuse = commands.add_parser(
        "fuse",
        help="fuse the maps and the HAADF image of files",
        description="Fuse a file with a spectrum image and a HAADF image (.bcf, .emd, ...), or files with "
        "one map each. Settings that are not given are chosen by cross-validation, or are the defaults of --method.",
    )
    _add_input(fuse)
    for command in (demo, fuse):
        command.add_argument("--overwrite", action="store_true", help="replace what is there")
        command.add_argument("--method", choices=tuple(SETTINGS), default="auto", help=_METHODS)
    group = fuse.add_argument_group("settings", "Defaults are those of the method; see the classes of settings.")
    for name, text in _FRONT.items():
        kind = str if name == "regularization" else _value
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X", help=text)
    text = "any other setting of the method, such as tol=1e-3; may be repeated"
    options: dict[str, Any] = {"dest": "others", "action": "append", "type": _assignment, "default": []}
    group.add_argument("--set", metavar="NAME=VALUE", help=text, **options)
    fuse.set_defaults(run=_fuse)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser, *_):
        from hyperspy_fusion import __version__

        print(f"hyperspy_fusion {__version__}")
        parser.exit()


def _add_input(fuse):
    add, names = fuse.add_argument, {"nargs": "+", "type": _without_comma}
    add("files", nargs="+", metavar="FILE", help="any file HyperSpy reads")
    text = "every FILE, or file in a folder, has a scan of its own, with the same elements and pixels: fuse all of them"
    add("--stack", action="store_true", help=text)
    found = "where it is not found by itself"
    add("--haadf", metavar="IMAGE", help=f"file of the HAADF image, or its title or number in the FILEs, {found}")
    text = "name of the format of FILEs whose ending is that of several, such as JEOL for .img"
    add("--file-format", metavar="FORMAT", help=text)
    add("--spectrum", metavar="SPECTRA", help=f"title or number of the spectrum image in the FILEs, {found}")
    text = "bring the HAADF image to the pixels of the maps: by the calibration of the axes, or with its shift "
    text += "measured as well (default where no value is given)"
    ways = ("calibration", "shift")
    add("--register", nargs="?", choices=ways, const="shift", default=False, help=text)
    which = "elements to take from a spectrum image, or of the maps in the order of the FILEs"
    add("--elements", metavar="EL", help=which, **names)
    add("--xray-lines", metavar="LINE", help="X-ray lines to map, such as Fe_Ka Pt_La", **names)
    text = "maps of EDS spectra: counts in windows (default), or of whole lines by a fit of the spectra to a model"
    add("--lines", choices=("windows", "model"), default="windows", help=text)
    add("--edges", metavar="EDGE", help="edges of an EELS spectrum image to map, such as Mn_L3 O_K", **names)
    width = "width of the windows of X-ray lines in units of their FWHM (default: %(default)s)"
    add("--integration-windows", type=float, metavar="X", default=2.0, help=width)
    text = "known counts per pixel that are not of the elements, one number or one per element, or the name of an "
    text += "estimator for spectra, such as windows"
    add("--background", type=_value, metavar="X|X,X,...|NAME", help=text)
    add("-o", "--output", metavar="OUT", help=".hspy or .zspy (default: <stem of FILE>_fused.hspy here)")
    add("--picture", metavar="PICTURE", help="draw measured and fused maps in a .png, .pdf or .svg file as well")
    text = "find standard errors, from N bootstrap replicates or 32, and save them as <stem of OUT>_errors; for "
    text += "--method calibrated and auto"
    add("--errors", nargs="?", type=_whole_number, const=True, default=False, metavar="N", help=text)


# options that are keywords of `fuse`, with the texts of the settings
_INPUT = ("method", "elements", "xray_lines", "lines", "integration_windows", "edges", "background", "register")
_INPUT += ("errors",)
_FRONT = {
    "regularization": "penalty of auto and calibrated: guided, directional, tgv, tv or none",
    "lambda_reg": "weight of the penalty of auto and calibrated, one number or one per element (1,2 or Fe:1,O:2)",
    "lambda_haadf": "weight of the HAADF term",
    "lambda_chem": "weight of the Poisson term; of the published method",
    "lambda_tv": "weight of the total variation; of the published method",
    "eps": "offset of the Poisson term; of the published method",
    "max_iter": "number of iterations at most, of each fit in the result",
}


def _assignment(text):
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is no setting: give NAME=VALUE, such as tol=1e-3")
    return name.replace("-", "_"), _value(value)


def _value(text):
    """A number, True, False or None, else the text; with commas a tuple, and of EL:X,EL:X a dictionary."""
    if all(part.partition(":")[0].isalpha() and ":" in part for part in text.split(",")):
        return {name: _value(one) for name, _, one in (part.partition(":") for part in text.split(","))}
    if "," in text:
        return tuple(_value(part) for part in text.split(",") if part)
    words = {"true": True, "false": False, "none": None}
    try:
        return words[text.lower()] if text.lower() in words else ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _settings(arguments):
    """The validated settings of ``--set``, and the front keywords of ``fuse``."""
    others = dict(arguments.others)
    settings = replace(settings_for(arguments.method, **others), **others)  # the latter for None as well
    front = {name: getattr(arguments, name) for name in _FRONT}
    settings_for(arguments.method, settings, **front)
    return settings, front


def _whole_number(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number: give N, or --errors behind the FILEs")
    return int(text)


def _without_comma(text):
    if "," in text:
        apart = " ".join(filter(None, text.split(",")))
        raise argparse.ArgumentTypeError(f"{text!r} has a comma: separate by spaces, as in {apart}")
    return text


def _demo(arguments):
    for line in run_demo(Path(arguments.output), arguments.method, arguments.overwrite):
        print(line)
    return 0


def _fuse(arguments):
    settings, front = _settings(arguments)  # refused before files are read
    output = _output_path(arguments)
    errors = output.with_stem(f"{output.stem}_errors")
    if arguments.errors:
        _refuse_path(errors, arguments.overwrite, "--output")
    picture = _picture_path(arguments)
    from hyperspy_fusion.api import fuse

    given = arguments.haadf, arguments.elements, arguments.spectrum, arguments.file_format
    if arguments.stack:
        files = files_of(arguments.files)
        print("\n".join(f"frame {k}: {file}" for k, file in enumerate(files)), flush=True)
        source, haadf = stack_of(files, lambda file: _find_scan([file], *given, lazy=True))
    else:
        source, haadf = _find_scan(arguments.files, *given)
    fused: Any = fuse(source, haadf, **{name: getattr(arguments, name) for name in _INPUT}, settings=settings, **front)
    # the measured maps of frames and of tiles are not kept
    fused.save(output, overwrite=arguments.overwrite, everything=not (arguments.stack or fused._lazy))
    if arguments.stack:
        return _end_of_stack(fused, output, errors if arguments.errors else None, arguments.overwrite)
    fit = fused.metadata.Fusion
    print(f"Fused {', '.join(fused.elements)} with {title_of(haadf.metadata)!r}, iterations: {fit.n_iter}.")
    print(f"\n{fused.report()}\n\nFused maps, for hs.load: {output}")
    if fit.has_item("errors"):
        fused.standard_errors().save(errors, overwrite=arguments.overwrite)
        print(f"Their standard errors, from {fit.errors.n_resamples} bootstrap replicates: {errors}")
    elif errors.exists():
        print(f"{errors} has the standard errors of earlier maps, not of these: give --errors for new ones.")
    if picture is not None:
        figure = fused.plot_fusion(errors=fit.has_item("errors"))[0, 0].figure
        with whole_file(picture) as path:
            figure.savefig(path, dpi=130)
        print(f"Picture: {picture}")
    is_cut = fit.stop_reason == StopReason.INTERRUPTED.value or (arguments.errors and not fit.has_item("errors"))
    return INTERRUPTED if is_cut else 0


def _end_of_stack(fused, output, errors, overwrite):
    """Save the errors of a stack, say what was done, and return the exit status."""
    record = fused.metadata.Fused_frames
    print(f"Fused {', '.join(fused.elements)} in {record.n_frames - len(record.failed)} of {record.n_frames} frames.")
    print(f"Fused maps, for hs.load: {output}")
    if errors is not None:
        fused.standard_errors().save(errors, overwrite=overwrite)
        print(f"Their standard errors: {errors}")
    return 0 if not len(record.failed) else 1


def _output_path(arguments):
    """Where to save, checked before any work."""
    path = Path(arguments.output or f"{Path(arguments.files[0]).stem}_fused.hspy")
    if not path.suffix:
        path = path.with_suffix(".hspy")
    if path.suffix not in (".hspy", ".zspy"):
        raise _Refusal(
            f"{path} ends in {path.suffix!r}: results are saved as .hspy or .zspy, which keep the "
            "calibration and the history; load them in Python and use export() for other formats."
        )
    _refuse_path(path, arguments.overwrite, "--output")
    return path


def _picture_path(arguments):
    """Where to draw, None where nobody asks for it."""
    if arguments.picture is None:
        return None
    if arguments.stack:
        raise _Refusal(
            "--picture draws one scan: leave it out, and draw a frame of the result by frame(0).plot_fusion()."
        )
    if not arguments.picture:
        raise _Refusal(f"--picture has no name: give that of a {', '.join(_PICTURES)} file.")
    path = Path(arguments.picture)
    if path.suffix.lower() not in _PICTURES:
        raise _Refusal(f"{path} ends in {path.suffix!r}: pictures are drawn as {', '.join(_PICTURES)}.")
    _refuse_path(path, arguments.overwrite, "--picture")
    # it goes to a file: no window system is needed
    os.environ.setdefault("MPLBACKEND", "agg")
    return path


def _refuse_path(path, overwrite, option):
    """Refuse a file whose folder is missing or protected, or that is there already."""
    if not path.parent.is_dir():
        raise _Refusal(f"the folder {path.parent} does not exist: make it, or give another {option}.")
    if path.exists() and not overwrite:
        raise _Refusal(f"{path} exists: give --overwrite to replace it, or another {option}.")
    check_writable(path.parent)


def _find_scan(files, haadf, elements, spectrum=None, file_format=None, lazy=False):
    """What to fuse, a signal or a list of maps, and the HAADF image, among the signals of the files."""
    from hyperspy_fusion.grid.axes import layout
    from hyperspy_fusion.io import scan as scans

    extra = load_signals(haadf, file_format=file_format) if haadf is not None and Path(haadf).exists() else []
    if haadf is not None and extra:
        # `*.hspy` names the HAADF file too
        files = [file for file in files if Path(file).resolve() != Path(haadf).resolve()] or files
    if folders := [file for file in files if Path(file).is_dir() and not has_format(file)]:
        raise _Refusal(f"{folders[0]} is a folder: give --stack to fuse the scans in its files, or one FILE.")
    signals = [signal for file in files for signal in load_signals(file, file_format=file_format, lazy=lazy)]
    hint = _number_ortitle_of(haadf)
    if len(extra) == 1:
        hint, extra = extra[0], []
    elif extra:
        hint = scans.elastic_image(extra)
    if spectrum is not None or scans.has_spectra(signals):
        image, source = scans.scan(signals, haadf=hint, spectrum=_number_ortitle_of(spectrum))
        return source, image
    image = scans.elastic_image(signals, hint)
    images = [s for s in signals if s is not image and layout(s) == "image"]
    return _maps(images, elements, several_files=len(files) > 1), image


def _number_ortitle_of(text):
    return int(text) if text is not None and text.isdecimal() else text


def _maps(images, elements, several_files):
    """The maps among images: those of the elements asked for, else of one file whose element is known, else all."""
    of = [identify_map(image).element for image in images]
    if elements and set(of).issuperset(elements):
        repeated = [element for element in elements if of.count(element) > 1]
        if repeated:
            named = ", ".join(repr(title_of(i.metadata)) for i, e in zip(images, of, strict=True) if e == repeated[0])
            raise _Refusal(f"there are several maps of {repeated[0]} ({named}): give the FILE of one.")
        return [images[of.index(element)] for element in elements]
    known = [image for image, element in zip(images, of, strict=True) if element is not None]
    return known if known and not several_files else images
