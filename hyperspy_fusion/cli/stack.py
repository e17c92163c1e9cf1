"""A stack of scans from files, one scan each."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperspy_fusion.identify.map_identity import title_of
from hyperspy_fusion.io.files import has_format


def files_of(paths: list[str]) -> list[str]:
    """The files in the order given, and those in folders that HyperSpy reads, by name, numbers by value.

    Raises
    ------
    ValueError
        Where a folder has none.
    """
    found = []
    for path in map(Path, paths):
        if not path.is_dir() or has_format(path):
            found.append(path)
            continue
        inside = [one for one in path.iterdir() if has_format(one) and not one.name.startswith(".")]
        if not inside:
            raise ValueError(f"The folder {path} has no file that HyperSpy reads: give one with a scan in each file.")
        found += sorted(inside, key=_by_numbers)
    return list(map(str, found))


def _by_numbers(path):
    """A key by which a file of number 10 comes after that of 9."""
    words = re.split(r"(\d+)", path.name)
    return [int(word) if word.isdigit() else word for word in words]


def stack_of(files: list[str], find: Callable) -> tuple[Any, Any]:
    """What to fuse and the HAADF images, each along an axis of the files; `find` returns both of one file.

    Raises
    ------
    ValueError
        Where the scans of two files have other pixels, or other numbers of maps.
    """
    import hyperspy.api as hs

    scans: list = []
    for file in files:
        source, haadf = find(file)
        scans.append((source, haadf))
        for what, one, first in (("image", haadf, scans[0][1]), ("maps", source, scans[0][0])):
            if _shape(one) != _shape(first):
                raise ValueError(
                    f"The {what} of {file} and {files[0]} have the shapes {_shape(one)} and {_shape(first)}, and those "
                    "of a stack must agree: leave out the file that differs."
                )

    join: Any = hs.stack

    def stacked(signals):
        lazy = any(signal._lazy for signal in signals)
        stack = join(signals, new_axis_name="file", lazy=lazy, show_progressbar=False)
        stack.metadata.General.title = title_of(signals[0].metadata)
        return stack

    haadf = stacked([haadf for _, haadf in scans])
    if isinstance(scans[0][0], list):
        return [stacked(maps) for maps in zip(*(source for source, _ in scans), strict=True)], haadf
    return stacked([source for source, _ in scans]), haadf


def _shape(source):
    return [_shape(one) for one in source] if isinstance(source, list) else source.data.shape
