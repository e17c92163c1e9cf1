"""A stack of scans from files, one scan each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperspy_fusion.identify.map_identity import title_of


def files_of(paths: list[str]) -> list[str]:
    """The files, and those in the folders, by name."""
    found = []
    for path in map(Path, paths):
        inside = (
            sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")) if path.is_dir() else []
        )
        is_folder = path.is_dir() and path.suffix != ".zspy"
        found += map(str, inside if is_folder else [path])
    return found


def stack_of(files: list[str], find: Callable) -> tuple[Any, Any]:
    """What to fuse and the HAADF images, each along an axis of the files; `find` returns both of one file.

    Raises
    ------
    ValueError
        Where the scans of two files have other pixels, or other numbers of maps.
    """
    import hyperspy.api as hs

    scans = [find(file) for file in files]
    for file, (source, haadf) in zip(files[1:], scans[1:], strict=True):
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
