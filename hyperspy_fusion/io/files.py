"""Files as HyperSpy reads them, with a sentence where it cannot."""

from __future__ import annotations

import os
import re
from importlib.metadata import requires
from pathlib import Path
from typing import Any, NoReturn


def load_signals(path: str | os.PathLike, *, lazy: bool = False, file_format: str | None = None) -> list:
    """The signals of a file; `file_format` names its format where several have its ending.

    Files of another ending than those of the format are read as ever. FileNotFoundError where there is no file, and
    ValueError where HyperSpy cannot read it, or needs the format or another package for it.
    """
    from hyperspy.io import load

    path = os.fspath(path)
    if not Path(path).exists():
        raise FileNotFoundError(f"There is no file {path!r} to find a scan in: check its path.")
    options = {} if file_format is None else _with_format(path, file_format)
    if not options and not _formats_of(path):
        _refuse(path, f"no format has the ending {Path(path).suffix!r}")
    try:
        loaded: Any = load(path, lazy=lazy, escape_square_brackets=True, **options)  # pyright: ignore
    except ImportError as error:
        package, extra = _missing(error)
        raise ValueError(
            f"HyperSpy reads {path!r} by the package {package}, which is not installed: "
            f"pip install 'rosettasciio[{extra}]'."
        ) from error
    # a file of no known format, or a broken one, raises whatever its reader stumbles over
    except Exception as error:
        if "multiple file readers" in str(error):
            names = _formats_of(path)
            raise ValueError(
                f"The ending of {path!r} is that of several formats, {', '.join(names)}: pass that of the file, as "
                f"file_format={names[0]!r}."
            ) from error
        _refuse(path, str(error), error)
    return loaded if isinstance(loaded, list) else [loaded]


def has_format(path: str | os.PathLike) -> bool:
    """Whether HyperSpy knows a format with the ending of a file."""
    return bool(_formats_of(path))


def _refuse(path, why, error=None) -> NoReturn:
    raise ValueError(
        f"HyperSpy cannot read {path!r} ({why}): give a file of a format that it reads, as .hspy, .bcf, .emd or "
        ".dm4; arrays go into signals first, hyperspy.api.signals.Signal2D(array)."
    ) from error


def _formats_of(path):
    """Names of the formats that have the ending of a file."""
    from rsciio import IO_PLUGINS

    ending = Path(path).suffix[1:].lower()
    return [plugin["name"] for plugin in IO_PLUGINS if ending in map(str.lower, plugin["file_extensions"])]


def _with_format(path, file_format):
    """The option of HyperSpy's load, none where the ending of the file is of other formats only."""
    from rsciio import IO_PLUGINS

    names = {name.lower(): plugin["name"] for plugin in IO_PLUGINS for name in _names_of(plugin)}
    name = names.get(str(file_format).lower())
    if name is None:
        listed = ", ".join(_formats_of(path) or sorted(set(names.values()), key=str.lower))
        raise ValueError(f"{file_format!r} is no format that HyperSpy reads: pass file_format= as one of {listed}.")
    of_ending = _formats_of(path)
    return {"file_format": name} if name in of_ending or not of_ending else {}


def _names_of(plugin):
    return [plugin["name"], *(plugin.get("name_aliases") or [])]


def _missing(error):
    """The package that a reader lacks, and the extra of rosettasciio that brings it."""
    words = {str(error.name or ""), *re.findall(r"[\w-]+", str(error))}
    words = {str({"skimage": "scikit-image", "PIL": "pillow"}.get(word, word)).lower() for word in words}
    for requirement in requires("rosettasciio") or []:
        found = re.match(r"([\w.-]+)(?!\[).*extra == ['\"]([\w-]+)['\"]", requirement)
        if found and found[1].lower() in words:
            return found[1], found[2]
    return error.name or f"that its reader names ({error})", "all"
