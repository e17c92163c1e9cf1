"""Fused maps as files for other programs: a .tif for each map and one .h5 with everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def export_maps(fused, others, folder, *, overwrite=False):
    """Write the maps of ``fused`` into ``folder``, and the images ``others``; see ``ElementMaps.export``.

    Files are ``<element>.tif`` (float32, calibrated, read by HyperSpy and ImageJ), a .tif of each of the others, and
    ``fused.h5`` with the data sets ``maps/<element>``, ``haadf``, ``modelled_haadf``, ``cost_history/<term>`` and the
    parameters as attributes of ``parameters``; ``selection`` and ``registration`` have those of a choice of weights and
    of a shift, where there were any. Where the errors of these maps are known, standard errors of pixels are
    ``errors/<element>``, and how they were found is in the attributes of ``errors``. ``scale`` and ``offset`` of a data
    set are in the order of its dimensions: y, x. Files of other names are never touched.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists: choose another folder, or pass overwrite=True to write into it.")
    images = {**{element: fused.get_map(element) for element in fused.elements}, **others}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, signal in images.items():
        paths.append(folder / f"{name}.tif")
        single = signal._deepcopy_with_new_data(np.asarray(signal.data, dtype=np.float32))
        single.save(str(paths[-1]), overwrite=True)
    own = {"HAADF": "haadf", "HAADF_modelled": "modelled_haadf"}
    data_sets = {own.get(name, f"maps/{name}"): signal for name, signal in images.items()}
    return [*paths, _save_h5(fused, {**data_sets, **_errors_by_key(fused)}, folder / "fused.h5")]


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
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            data = file.create_dataset(key, data=array, compression="gzip")
            y, x = sorted(images[key].axes_manager.signal_axes, key=lambda axis: axis.index_in_array)
            data.attrs.update({"scale": [y.scale, x.scale], "offset": [y.offset, x.offset], "units": str(x.units)})
        if fit is not None:
            _write_fit(file, fit)
    return path


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
