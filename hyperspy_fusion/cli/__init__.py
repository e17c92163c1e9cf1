"""The command ``hyperspy-fusion``: argparse over the public functions.

``hyperspy-fusion FILE`` fuses files; ``hyperspy-fusion demo`` fuses a phantom whose truth is known.
Bad input ends with status 2 and one sentence.
"""

from __future__ import annotations

import csv
import os
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from hyperspy_fusion.cli.demo import run_demo
from hyperspy_fusion.cli.options import FRONT, INPUT, PICTURES, parsed
from hyperspy_fusion.cli.stack import files_of, stack_of
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.settings import settings_for
from hyperspy_fusion.identify.map_identity import identify_map, title_of
from hyperspy_fusion.io.export import EXPORTED, check_writable, checked_folder, whole_file
from hyperspy_fusion.io.files import has_format, load_signals

# what a shell reports of a command that Ctrl-C ended
INTERRUPTED = 130
_BAD_INPUT = (ValueError, TypeError, NotImplementedError, OSError, FloatingPointError)


class _Refusal(ValueError):
    """Bad input of the command line, as a sentence."""


def main(argv: list | None = None) -> int:
    """Run the command; the arguments default to those of the process.

    Returns
    -------
    int
        Exit status: 0, 1 where frames of a stack failed, 2 for bad input, 130 after Ctrl-C, which saves what a fit has
        reached.
    """
    arguments = parsed(sys.argv[1:] if argv is None else list(map(str, argv)))
    try:
        with warnings.catch_warnings():
            # HyperSpy 2.5 warns of its own imports
            warnings.filterwarnings("ignore", message="Importing `")
            return {"demo": _demo, "fuse": _fuse}[arguments.command](arguments)
    except _BAD_INPUT as error:
        print(f"hyperspy-fusion: {_with_options(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hyperspy-fusion: interrupted.", file=sys.stderr)
        return INTERRUPTED


def _with_options(sentence):
    """A sentence with options of the command instead of keywords of ``fuse`` and ``scan``."""
    names = "|".join(("haadf", "spectrum", "file_format", "overwrite", *INPUT, *FRONT))

    def option(found):
        name, value = found[1], re.sub(r"[\[\]'\"]|True", "", found[2]).replace(",", "")
        return f"--{name.replace('_', '-')} {value}".rstrip()

    return re.sub(rf"\b({names})=(\[[^\]]*\]|'[^']*'|\"[^\"]*\"|[\w.+-]*\w|)", option, sentence)


def _settings(arguments):
    """The validated settings of ``--set``, and the front keywords of ``fuse``."""
    others = dict(arguments.others)
    settings = replace(settings_for(arguments.method, **others), **others)  # the latter for None as well
    front = {name: getattr(arguments, name) for name in FRONT}
    settings_for(arguments.method, settings, **front)
    return settings, front


def _demo(arguments):
    for line in run_demo(Path(arguments.output), arguments.method, arguments.overwrite):
        print(line)
    return 0


def _fuse(arguments):
    settings, front = _settings(arguments)  # refused before files are read
    files = _Files.of(arguments)
    from hyperspy_fusion.api import fuse

    given = arguments.haadf, arguments.elements, arguments.spectrum, arguments.file_format
    if arguments.stack:
        paths = files_of(arguments.files)
        print("\n".join(f"frame {k}: {path}" for k, path in enumerate(paths)), flush=True)
        source, haadf = stack_of(paths, lambda path: _find_scan([path], *given, lazy=True))
    else:
        source, haadf = _find_scan(arguments.files, *given)
    images = [haadf, *(_image_of(path, arguments.file_format) for path in arguments.image)]
    options = {name: getattr(arguments, name) for name in INPUT} | front
    fused: Any = fuse(source, images if len(images) > 1 else haadf, **options, settings=settings)
    # the measured maps of frames and of tiles are not kept
    fused.save(files.maps, overwrite=arguments.overwrite, everything=not (arguments.stack or fused._lazy))
    if arguments.stack:
        return _end_of_stack(fused, files, arguments)
    fit = fused.metadata.Fusion
    print(f"Fused {', '.join(fused.elements)} with {title_of(haadf.metadata)!r}, iterations: {fit.n_iter}.")
    print(f"\n{fused.report()}\n\nFused maps, for hs.load: {files.maps}")
    has_errors = fit.has_item("errors")
    if has_errors:
        fused.standard_errors().save(files.errors, overwrite=arguments.overwrite)
        print(f"Their standard errors, from {fit.errors.n_resamples} bootstrap replicates: {files.errors}")
    elif files.errors.exists():
        print(f"{files.errors} has the standard errors of earlier maps, not of these: give --errors for new ones.")
    fused.plot_fusion(errors=has_errors, save=files.picture)
    print(f"Picture: {files.picture}")
    if files.folder is not None:
        fused.export(files.folder, overwrite=arguments.overwrite)
        print(f"Exported, a .tif of each map and fused.h5: {files.folder}")
    if arguments.percent is not None:
        _write_percent(fused.region().percent(*arguments.percent), files.percent)
    is_cut = fit.stop_reason == StopReason.INTERRUPTED.value or (arguments.errors and not has_errors)
    return INTERRUPTED if is_cut else 0


def _write_percent(table, path):
    """Print a composition, and save it for a spreadsheet."""
    print(f"\nComposition of the whole scan:\n{table}")
    with whole_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["element", table.unit, "standard error"])
        writer.writerows([element, *found] for element, found in table.items())
    print(f"The same as a table: {path}")


def _end_of_stack(fused, files, arguments):
    """Save the errors and a picture of a stack, say what was done, and return the exit status."""
    record = fused.metadata.Fused_frames
    failed = set(map(int, record.failed))
    print(f"Fused {', '.join(fused.elements)} in {record.n_frames - len(failed)} of {record.n_frames} frames.")
    print(f"\n{fused.report()}\n\nFused maps, for hs.load: {files.maps}")
    if arguments.errors:
        fused.standard_errors().save(files.errors, overwrite=arguments.overwrite)
        print(f"Their standard errors: {files.errors}")
    first = next(k for k in range(record.n_frames) if k not in failed)
    fused.frame(first).plot_fusion(save=files.picture)
    print(f"Picture of frame {first}: {files.picture}")
    return 1 if failed else 0


# ---- files to write --------------------------------------------------------------------------------------


class _Files(NamedTuple):
    """Where to write; the folder is None where nothing is exported."""

    maps: Path
    errors: Path
    picture: Path
    percent: Path
    folder: Path | None

    @classmethod
    def of(cls, arguments):
        """Those of the options, checked before any work."""
        maps = Path(arguments.output or f"{Path(arguments.files[0]).stem}_fused.hspy")
        maps = maps if maps.suffix else maps.with_suffix(".hspy")
        if maps.suffix not in (".hspy", ".zspy"):
            raise _Refusal(
                f"{maps} ends in {maps.suffix!r}: results are saved as .hspy or .zspy, which keep the "
                "calibration and the history; give --export for .tif and .h5."
            )
        errors, percent = (maps.with_stem(f"{maps.stem}{end}") for end in ("_errors", "_percent"))
        found = cls(maps, errors, _picture_path(arguments, maps), percent.with_suffix(".csv"), _folder(arguments))
        _refuse_path(maps, arguments.overwrite, "--output")
        _refuse_path(found.picture, arguments.overwrite, "--picture" if arguments.picture else "--output")
        written = [maps, found.picture]
        for path, is_written in ((errors, arguments.errors), (found.percent, arguments.percent)):
            if is_written:
                _refuse_path(path, arguments.overwrite, "--output")
                written.append(path)
        read = {Path(path).resolve() for path in (*arguments.files, *arguments.image, arguments.haadf or "")}
        if lost := [path for path in written if path.resolve() in read]:
            raise _Refusal(f"{lost[0]} is one of the files to fuse: give another --output or --picture.")
        exported = found.folder.resolve() if found.folder is not None else None
        if lost := sorted(path for path in read if path.parent == exported and path.suffix in EXPORTED):
            raise _Refusal(f"--export may replace {lost[0].name}, one of the files to fuse: give another folder.")
        # pictures go to a file: no window system is needed
        os.environ.setdefault("MPLBACKEND", "agg")
        return found


def _picture_path(arguments, maps):
    if arguments.picture is None:
        return maps.with_suffix(".png")
    if not arguments.picture:
        raise _Refusal(f"--picture has no name: give that of a {', '.join(PICTURES)} file.")
    path = Path(arguments.picture)
    if path.suffix.lower() not in PICTURES:
        raise _Refusal(f"{path} ends in {path.suffix!r}: pictures are drawn as {', '.join(PICTURES)}.")
    return path


def _folder(arguments):
    """Where to export. What cannot be done with a stack, or for want of factors, is refused."""
    for option in ("export", "percent", "image"):
        if arguments.stack and getattr(arguments, option):
            raise _Refusal(f"--{option} is for one scan: leave it out, or leave out --stack and fuse one FILE.")
    factors = (arguments.percent or ("", None))[1]
    if lost := [element for element in arguments.elements or () if factors and element not in factors]:
        raise _Refusal(f"--percent has no factor of {', '.join(lost)}: give EL=X for each element.")
    if arguments.export is None:
        return None
    if not arguments.export:
        raise _Refusal("--export has no name: give that of a new folder.")
    folder = checked_folder(arguments.export, arguments.overwrite)
    check_writable(folder)
    return folder


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
    hint = _number_or_title(haadf)
    if len(extra) == 1:
        hint, extra = extra[0], []
    elif extra:
        hint = scans.elastic_image(extra)
    if spectrum is not None or scans.has_spectra(signals):
        image, source = scans.scan(signals, haadf=hint, spectrum=_number_or_title(spectrum))
        return source, image
    image = scans.elastic_image(signals, hint)
    images = [s for s in signals if s is not image and layout(s) == "image"]
    return _maps(images, elements, several_files=len(files) > 1), image


def _image_of(path, file_format):
    """The elastic image of a file of its own."""
    from hyperspy_fusion.io.scan import elastic_image

    signals = load_signals(path, file_format=file_format)
    return signals[0] if len(signals) == 1 else elastic_image(signals)


def _number_or_title(text):
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
