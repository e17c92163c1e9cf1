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

    A minus is the sign of a number where some of the files have it, and others with the same words do not.

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
        found += sorted(inside, key=_key_by_numbers([one.name for one in inside]))
    return list(map(str, found))


def _key_by_numbers(names):
    """A key by which a file of number 10 comes after that of 9, and -5 before 0 where a minus is a sign.

    It is one where files of the same words differ in it: in tilt-5 and tilt5, but not in scan-1 and scan-2.
    """
    split = {name: _words_and_numbers(name) for name in names}
    signs: dict = {}
    for words, found in split.values():
        signs.setdefault(words, []).append([sign == "-" for sign, _ in found])
    is_signed = {words: [0 < sum(minus) < len(minus) for minus in zip(*of, strict=True)] for words, of in signs.items()}

    def key(path):
        words, found = split[path.name]
        order = [words[0]]
        for (sign, number), signed, word in zip(found, is_signed[words], words[1:], strict=True):
            # a dot is decimal behind a sign, else it may be that of a date
            value = float(f"{sign}{number}") if signed else None
            order += [tuple(map(int, number.split("."))) if value is None else (value,), word]
        return order, path.name

    return key


def _words_and_numbers(name):
    """The words of a name without signs, and a (sign, number) between each two."""
    first, *others = re.split(r"([-+]?)(\d+(?:\.\d+)?)", name)
    return (first, *others[2::3]), list(zip(others[::3], others[1::3], strict=True))


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
