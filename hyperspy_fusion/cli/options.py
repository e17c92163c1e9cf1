"""The options of the command, in argparse: everyday ones in ``--help``, all in ``--help-settings``."""

from __future__ import annotations

import argparse
import ast
import difflib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hyperspy_fusion.fusion.settings import SETTINGS
from hyperspy_fusion.results.composition import method_of

PICTURES = (".png", ".pdf", ".svg")
_METHODS = (
    "auto: settings chosen by cross-validation; calibrated: settings as given; published: that of Schwartz et al. 2022 "
    "(default: %(default)s)"
)
_ABOUT = "Fuse the element maps of a scan with its HAADF image. Writes the fused maps, a picture and a report."
_EXAMPLES = (
    ("scan.bcf", "spectra and image in one file: .bcf, .emd, ..."),
    ("scan.emd --elements Fe O --errors", "these elements, with standard errors"),
    ("Fe.hspy O.hspy --haadf HAADF.hspy", "a file for each map"),
    ("eels.dm4 --haadf image.dm4 --edges Fe_L3 O_K", "EELS"),
    ("scan.bcf --background windows --percent CL Fe=1.3 O=1.9", "atomic per cent"),
    ("scan.bcf --export maps", ".tif and .h5 for other programs"),
    ("demo", "a simulated scan whose truth is known"),
)
#: options that are keywords of `fuse`, with the texts of the settings
INPUT = ("method", "elements", "xray_lines", "lines", "integration_windows", "edges", "background", "register")
INPUT += ("errors",)
FRONT = {
    "regularization": "penalty of auto and calibrated: guided, directional, tgv, tv or none",
    "lambda_reg": "weight of the penalty of auto and calibrated, one number or one per element (1,2 or Fe:1,O:2)",
    "lambda_haadf": "weight of the HAADF term",
    "lambda_chem": "weight of the Poisson term; of the published method",
    "lambda_tv": "weight of the total variation; of the published method",
    "eps": "offset of the Poisson term; of the published method",
    "max_iter": "number of iterations at most, of each fit in the result",
}


class _Parser(argparse.ArgumentParser):
    """Reports an error in one sentence, without repeating the usage."""

    def parse_known_args(self, args=None, namespace=None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        namespace, unknown = super().parse_known_args(args, namespace)
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


class _AllHelp(argparse.Action):
    def __call__(self, parser, *_):
        _fuse_parser(with_settings=True).print_help()
        parser.exit()


class _Percent(argparse.Action):
    """The method of quantification, and the factors by element; None where there are none."""

    def __call__(self, parser, namespace, values: Any, option_string=None):
        try:
            method = method_of(values[0])
            pairs = list(map(_factor, values[1:]))
            factors = dict(pairs)
            if len(factors) < len(pairs):
                raise ValueError(f"an element has several factors in {' '.join(values[1:])}: give one for each")
            if not factors and method != "cross_section":
                raise ValueError(f"{values[0]} has no factors: give EL=X for each element, such as Fe=1.3")
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from error
        setattr(namespace, self.dest, (method, factors or None))


def parsed(words: list[str]) -> argparse.Namespace:
    """The options of ``demo``, or of a fit: ``fuse``, which may be named, is what is done with files."""
    if words[:1] == ["demo"]:
        return _demo_parser().parse_args(words[1:])
    is_named = words[:1] == ["fuse"] and not Path("fuse").is_file()
    return _fuse_parser().parse_args(words[is_named:])


def _demo_parser():
    about = "Fuse a phantom with known truth, and write a picture."
    demo = _Parser(prog="hyperspy-fusion demo", description=about)
    demo.add_argument("-o", "--output", metavar="DIR", default="fusion_demo", help="folder (default: %(default)s)")
    _add_common(demo)
    demo.set_defaults(command="demo")
    return demo


def _fuse_parser(with_settings=False):
    parser = _Parser(
        prog="hyperspy-fusion",
        usage="%(prog)s FILE [FILE ...] [options]",
        description="\n".join([_ABOUT, "", "examples:", *(f"  {b}\n    %(prog)s {a}" for a, b in _EXAMPLES)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="any file HyperSpy reads")
    _add_everyday(parser)
    _add_common(parser)
    more = "show this, the other options and all settings, and leave"
    parser.add_argument("--help-settings", action=_AllHelp, nargs=0, help=more)
    own = f"hyperspy_fusion {version('hyperspy_fusion')}"
    parser.add_argument("--version", action="version", version=own, help="show the version and leave")
    before = set(parser._actions)
    _add_input(parser.add_argument_group("what is in the files"))
    _add_settings(parser.add_argument_group("settings; defaults are those of the method"))
    if not with_settings:
        for action in set(parser._actions) - before:
            action.help = argparse.SUPPRESS
    parser.set_defaults(command="fuse")
    return parser


def _add_common(parser):
    parser.add_argument("--method", choices=tuple(SETTINGS), default="auto", help=_METHODS)
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def _add_everyday(parser):
    add, names = parser.add_argument, {"nargs": "+", "type": _without_comma}
    text = "file of the HAADF image, or its title or number in the FILEs, where it is not found by itself"
    add("--haadf", metavar="IMAGE", help=text)
    text = "another elastic image of the scan; may be repeated"
    add("--image", metavar="FILE", action="append", default=[], help=text)
    which = "elements to take from a spectrum image, or of the maps in the order of the FILEs"
    add("--elements", metavar="EL", help=which, **names)
    add("--edges", metavar="EDGE", help="edges of an EELS spectrum image to map, such as Mn_L3 O_K", **names)
    text = "known counts per pixel that are not of the elements, one number or one per element, or the name of an "
    text += "estimator for spectra, such as windows"
    add("--background", type=_value, metavar="X|X,X,...|NAME", help=text)
    text = "find standard errors, from N bootstrap replicates or 32, and save them as <stem of OUT>_errors; for "
    text += "--method calibrated and auto"
    add("--errors", nargs="?", type=_whole_number, const=True, default=False, metavar="N", help=text)
    add("-o", "--output", metavar="OUT", help=".hspy or .zspy (default: <stem of FILE>_fused.hspy here)")
    text = "file of the picture: .png, .pdf or .svg (default: <stem of OUT>.png)"
    add("--picture", metavar="PICTURE", help=text)
    add("--export", metavar="DIR", help="write a .tif of each map, and one .h5 of all, into a new folder as well")
    text = "atomic per cent of the whole scan by METHOD (CL, zeta or cross_section) and factors, as CL Fe=1.3 O=1.9; "
    text += "saved as <stem of OUT>_percent.csv"
    add("--percent", nargs="+", metavar=("METHOD", "EL=X"), action=_Percent, help=text)


def _add_input(group):
    add, names = group.add_argument, {"nargs": "+", "type": _without_comma}
    text = "every FILE, or file in a folder, has a scan of its own, with the same elements and pixels: fuse all of them"
    add("--stack", action="store_true", help=text)
    text = "bring the images to the pixels of the maps: by the calibration of the axes, or with their shifts "
    text += "measured as well (default where no value is given)"
    ways = ("calibration", "shift")
    add("--register", nargs="?", choices=ways, const="shift", default=False, help=text)
    text = "title or number of the spectrum image in the FILEs, where it is not found by itself"
    add("--spectrum", metavar="SPECTRA", help=text)
    text = "name of the format of FILEs whose ending is that of several, such as JEOL for .img"
    add("--file-format", metavar="FORMAT", help=text)
    add("--xray-lines", metavar="LINE", help="X-ray lines to map, such as Fe_Ka Pt_La", **names)
    text = "maps of EDS spectra: counts in windows (default), or of whole lines by a fit of the spectra to a model"
    add("--lines", choices=("windows", "model"), default="windows", help=text)
    width = "width of the windows of X-ray lines in units of their FWHM (default: %(default)s)"
    add("--integration-windows", type=float, metavar="X", default=2.0, help=width)


def _add_settings(group):
    for name, text in FRONT.items():
        kind = str if name == "regularization" else _value
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X", help=text)
    text = "any other setting of the method, such as tol=1e-3; may be repeated"
    options: dict[str, Any] = {"dest": "others", "action": "append", "type": _assignment, "default": []}
    group.add_argument("--set", metavar="NAME=VALUE", help=text, **options)


# ---- values ----------------------------------------------------------------------------------------------


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


def _factor(text):
    """``("Fe", 1.3)`` of "Fe=1.3"."""
    element, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not (element.isalpha() and 0 < value < float("inf")):
        raise ValueError(f"{text!r} is no factor: give EL=X, such as Fe=1.3, and FILEs before the options")
    return element, value


def _whole_number(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number: give N, or --errors behind the FILEs")
    return int(text)


def _without_comma(text):
    if "," in text:
        apart = " ".join(filter(None, text.split(",")))
        raise argparse.ArgumentTypeError(f"{text!r} has a comma: separate by spaces, as in {apart}")
    return text
