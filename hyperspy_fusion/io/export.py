"""Files of fused maps. A file is complete, or not there: all are written in a temporary folder and moved.

For other programs there are a .tif for each map and one .h5 with everything; for HyperSpy there is its own writer.
"""

from __future__ import annotations

import errno
import os
import shutil
import unicodedata
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.checks import default_errstate
from hyperspy_fusion.grid.axes import in_units_of_length, scan_axes
from hyperspy_fusion.grid.images import image_signal

# endings of what `export` writes
EXPORTED = (".tif", ".h5")
# bytes for all but the pixels of a signal
_ROOM = 2**20
# ImageJ reads pixels per unit as a fraction of whole numbers: between these a scale keeps five digits
_TIF_SCALES = 1e-3, 1e6


@default_errstate
def export_maps(fused, others, folder, *, overwrite=False):
    """Write the maps of ``fused`` into ``folder``, and the images ``others``; see ``ElementMaps.export``.

    Files are ``<element>.tif`` (float32, calibrated, read by HyperSpy and ImageJ), a .tif of each of the others, and
    ``fused.h5`` with the data sets ``maps/<element>``, ``haadf``, ``modelled_haadf``, ``cost_history/<term>`` and the
    parameters as attributes of ``parameters``; ``selection`` and ``registration`` have those of a choice of weights and
    of a shift, where there were any. Where the errors of these maps are known, standard errors of pixels are
    ``errors/<element>``, and how they were found is in the attributes of ``errors``. ``scale`` and ``offset`` of a data
    set are in the order of its dimensions: y, x. Files of other names are never touched.
    """
    folder = checked_folder(folder, overwrite)
    images = {**{element: fused.get_map(element) for element in fused.elements}, **others}
    own = {"HAADF": "haadf", "HAADF_modelled": "modelled_haadf"}
    data_sets = {own.get(name, f"maps/{name}"): signal for name, signal in images.items()}
    data_sets |= _errors_by_key(fused)
    with _sentence_of(folder), temporary_folder(folder) as temporary:
        for name, signal in images.items():
            _save_tif(signal, temporary / f"{name}.tif")
        _save_h5(fused, data_sets, temporary / "fused.h5")
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.tif" for name in images] + [folder / "fused.h5"]
        for path in paths:
            os.replace(temporary / path.name, path)
    return paths


def save_whole(save, signal, filename=None, overwrite=None, **options):
    """Let HyperSpy's ``save`` write a file, or a .zspy folder, beside the one that it then replaces.

    A write that fails leaves what was there before. Stores of zarr, and writers that add to a file or keep it open,
    write as HyperSpy does.
    """
    known = signal.tmp_parameters
    in_place = not options.get("write_dataset", True) or not options.get("close_file", True) or "mode" in options
    is_named = known.has_item("filename")
    if in_place or not (isinstance(filename, str | os.PathLike) or (filename is None and is_named)):
        return save(filename, overwrite=overwrite, **options)
    path = _path_of(known, filename)
    # of a folder HyperSpy makes the name of the file
    into_folder = path.is_dir() and path.suffix != ".zspy" and is_named
    folder = path if into_folder else path.parent
    before = known.deepcopy()
    with _sentence_of(path), temporary_folder(folder) as temporary:
        _check_room(temporary / "room", signal)
        try:
            save(temporary if into_folder else temporary / path.name, overwrite=overwrite, **options)
            files = sorted(temporary.iterdir(), key=lambda file: file.suffix != path.suffix)
        finally:
            signal.tmp_parameters = before
        target = folder / files[0].name
        if overwrite is True or not target.exists() or (overwrite is None and _asked_to_overwrite(target)):
            folder.mkdir(parents=True, exist_ok=True)
            for file in files:  # some formats have two
                _replace(file, folder / file.name, temporary)
            for name, value in {"folder": folder, "filename": target.stem, "extension": target.suffix}.items():
                before.set_item(name, value)


@contextmanager
def temporary_folder(target):
    """A new folder on the disk of ``target``, a folder that need not exist: it is gone after the block."""
    home = next(p for p in (Path(target).absolute(), *Path(target).absolute().parents) if p.exists())
    temporary = home / f".hyperspy_fusion-{uuid.uuid4().hex[:12]}"
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def whole_file(path):
    """A path of the same name to write to; the file takes the place of ``path`` after the block."""
    path = Path(path)
    with _sentence_of(path), temporary_folder(path.parent) as temporary:
        yield temporary / path.name
        _replace(temporary / path.name, path, temporary)


def check_writable(folder):
    """OSError with a sentence where nothing can be written to a folder, or where it cannot be made."""
    with _sentence_of(folder), temporary_folder(folder):
        pass


@contextmanager
def _sentence_of(path):
    """Errors of the disk as one sentence."""
    try:
        yield
    # h5py closes a file on a full disk with a RuntimeError
    except (OSError, RuntimeError) as error:
        if type(error) is not RuntimeError and not isinstance(error, OSError):
            raise
        number = getattr(error, "errno", None)
        why = os.strerror(number) if number else (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        kind = type(error) if isinstance(error, OSError) else OSError
        raise kind(
            f"{path} cannot be written ({why}), and what was there is kept: make room, or give another path."
        ) from error


def _replace(new, target, aside):
    """Move a file or folder to where another one may be, which goes to ``aside`` if it is a folder."""
    if target.is_file():
        shutil.copymode(target, new)
    if not target.is_dir():
        os.replace(new, target)
        return
    old = aside / f"{target.name}.old"
    try:
        os.replace(target, old)
        os.replace(new, target)
    except BaseException:  # Ctrl-C too
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise


def _path_of(known, filename):
    """Where HyperSpy saves a signal, whose file name it knows where none is given."""
    if filename is None:
        name = f"{known.filename}{known.get_item('extension', '.hspy')}"
        filename = Path(known.get_item("folder", "."), name)
    # the target of a link, and not the link, is what is written
    return Path(filename).resolve()


def _check_room(path, signal):
    """OSError unless the disk has room for a signal, without its compression.

    HDF5 crashes the process some time after a disk was full.
    """
    arrays = (signal.data, getattr(signal.known_background, "data", None), signal.get_noise_variance())
    size = sum(getattr(getattr(array, "data", array), "nbytes", 0) for array in arrays)
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size + _ROOM)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # of some file systems
                    raise
        else:
            for _ in range(0, size + _ROOM, _ROOM):
                file.write(bytes(_ROOM))
    path.unlink()


def _asked_to_overwrite(path):
    try:
        from rsciio.utils.path import overwrite
    except ImportError:  # rosettasciio before 0.8
        from rsciio.utils.tools import overwrite
    return overwrite(path)


def checked_folder(folder: Any, overwrite: bool) -> Path:
    """The path of a folder to write to, which is new unless ``overwrite`` is set."""
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder is {folder!r}: give the path of the folder to write to.")
    folder = Path(folder)
    if file := next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None):
        raise NotADirectoryError(f"{file} is a file, and maps are exported to a folder: give another name.")
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists: choose another folder, or pass overwrite=True to write into it.")
    return folder


def _save_tif(signal, path):
    """In units in which a pixel is no tiny fraction. An axis of negative scale, which a .tif has not, is turned."""
    axes = in_units_of_length(scan_axes(signal), *_TIF_SCALES)
    for axis in axes:
        sign = np.sign(axis["scale"])
        axis |= {"scale": sign * axis["scale"], "offset": sign * axis["offset"], "units": _ascii(axis["units"])}
    single = image_signal(np.asarray(signal.data, dtype=np.float32), axes, "")
    single.metadata.set_item("Signal.quantity", _ascii(signal.metadata.get_item("Signal.quantity", "")))
    single.save(str(path), overwrite=True)


def _ascii(units):
    """As the text of a .tif is, but for two units that HyperSpy translates."""
    units = units.replace("\u03bc", "µ").replace("\u212b", "Å")
    if units in ("µm", "Å"):
        return units
    for character, word in {"µ": "u", "Å": "angstrom", "°": "deg"}.items():
        units = units.replace(character, word)
    return unicodedata.normalize("NFKD", units).replace("\u2212", "-").encode("ascii", "ignore").decode()


def _errors_by_key(fused):
    """Standard errors of the maps, where they are known."""
    try:
        errors = fused.standard_errors()
    except ValueError:
        return {}
    return {f"errors/{element}": errors.get_map(element) for element in errors.elements}


def _save_h5(fused, images, path):
    import h5py

    # read before the file is open: HDF5 has one lock for all files, and lazy metadata lie in another
    fit = fused._fit() if fused.metadata.has_item("Fusion") else None
    arrays = {key: np.asarray(signal.data) for key, signal in images.items()}
    # in memory, for HDF5 crashes the process some time after a disk was full
    with h5py.File(path, "w", driver="core", backing_store=False) as file:
        for key, array in arrays.items():
            data = file.create_dataset(key, data=array, compression="gzip")
            y, x = sorted(images[key].axes_manager.signal_axes, key=lambda axis: axis.index_in_array)
            data.attrs.update({"scale": [y.scale, x.scale], "offset": [y.offset, x.offset], "units": str(x.units)})
        if fit is not None:
            _write_fit(file, fit)
        file.flush()
        path.write_bytes(file.id.get_file_image())


def _write_fit(file, fit):
    for term, values in fit.pop("cost_history").items():
        file[f"cost_history/{term}"] = values
    # the choice of weights and the registration, where there was one, are dictionaries: a group each
    nested = {name: fit.pop(name) for name in [*fit] if isinstance(fit[name], dict)}
    _write_attributes(file.create_group("parameters"), {**fit, **nested.pop("parameters")})
    if "errors" not in file:
        nested.pop("errors", None)  # not known of these maps, which a group without any would hide
    for name, values in nested.items():
        _write_attributes(file.require_group(name), values)


def _write_attributes(group, values):
    for name, value in values.items():
        # a loaded list of words is an array of objects, for which HDF5 has no type
        is_words = isinstance(value, np.ndarray) and value.dtype.kind in "OU"
        group.attrs[name] = "None" if value is None else value.tolist() if is_words else value
