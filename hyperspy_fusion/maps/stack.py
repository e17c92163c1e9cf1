"""One stack of element maps from the maps of a source: compared, computed, added up and put into one signal."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.grid.axes import axis_dicts, check_same_scan, is_calibrated, stack_axes
from hyperspy_fusion.grid.images import finite_pixels, nan_pixels
from hyperspy_fusion.identify.elements import checked_elements, refuse_undetectable
from hyperspy_fusion.identify.map_identity import metadata_names
from hyperspy_fusion.maps.base import SourceMap
from hyperspy_fusion.maps.noise_metadata import noise_metadata, with_noise_metadata
from hyperspy_fusion.maps.stack_metadata import leave_fit_behind, stack_metadata

_logger = logging.getLogger(__name__)


def check_elements(maps: Sequence[SourceMap]) -> None:
    """Raise ValueError unless every map has an element, of which there can be a map."""
    unknown = [m for m in maps if m.element is None]
    if unknown:
        several = any(len(metadata_names(m.metadata, "Sample.elements")) > 1 for m in unknown)
        why = " (Sample.elements lists what the sample contains, not what a map shows)" if several else ""
        raise ValueError(
            f"Cannot tell the element of {', '.join(m.name for m in unknown)}{why}: name all maps in their "
            "order by elements=['Fe', ...], or pass a dict {'Fe': map, ...}."
        )
    checked_elements([m.element for m in maps])
    refuse_undetectable([m.element for m in maps if m.element and m.line])


def common_axes(maps: Sequence[SourceMap]) -> tuple[list[dict], list[Diagnostic]]:
    """Axes of the first calibrated map, after all maps have been compared with it."""
    reference = next((m for m in maps if all(map(is_calibrated, m.axes))), maps[0])
    found = []
    for m in maps:
        found += check_same_scan(reference.axes, m.axes, maps=reference.name, haadf=m.name, both_are_maps=True)
    return reference.axes, found


def computed(maps: Sequence[SourceMap], allow_nan: bool) -> list[SourceMap]:
    """The maps in memory, lazy ones in one computation, with pixels that are finite or, where allowed, NaN."""
    from dask.base import compute

    images = compute(*(m.data for m in maps))
    return [
        m._replace(data=nan_pixels(image) if allow_nan or m.allows_nan else finite_pixels(image, m.name))
        for m, image in zip(maps, images, strict=True)
    ]


def stacked(maps: Sequence[SourceMap], axes: list[dict], title: str) -> tuple[Any, list[Diagnostic]]:
    """ElementMaps of `maps` in memory, those of different X-ray lines of one element added up, and what was found."""
    groups = {str(m.element): [other for other in maps if other.element == m.element] for m in maps}
    maps = [_added(element, group) for element, group in groups.items()]
    metadata, found = stack_metadata({str(m.element): (m.line, m.metadata) for m in maps}, title)
    background = _stacked_or_zero(maps, [m.background for m in maps])
    variance = _stacked_or_zero(maps, [m.variance for m in maps])
    missing = [str(m.element) for m in maps if m.variance is None]
    if variance is not None and missing:
        variance = None
        sentence = f"No variance of the map of {', '.join(missing)}, so that of the others is not used: give it to all."
        found.append(Diagnostic("variance-missing", sentence, elements=tuple(missing)))
    signal = _signal(_one_array([m.data for m in maps]), axes, metadata)
    return with_noise_metadata(signal, background, variance), found


def is_finished(source: Any, maps: Sequence[SourceMap]) -> bool:
    """Whether `source` is a whole ElementMaps in memory, no slice, from which nothing is to be selected."""
    if getattr(source, "_signal_type", "") != "element_maps" or source._lazy or np.ma.isMaskedArray(source.data):
        return False
    names = metadata_names(source.metadata, "Sample.elements")
    is_whole = source.axes_manager.navigation_dimension == 1 and names == [m.element for m in maps]
    return is_whole and source.data.dtype.isnative and not np.isinf(source.data).any()


def with_shared_pixels(source: Any) -> Any:
    """The pixels of an ElementMaps, not copied, in a signal that nobody else crops, calibrates or renames."""
    noise = noise_metadata(source)
    bare = source._deepcopy_with_new_data(None)
    leave_fit_behind(bare.metadata)
    axis, plane = stack_axes(source)
    data = np.moveaxis(source.data, axis.index_in_array, 0)
    signal = _signal(data, axis_dicts(plane, source), bare.metadata.as_dictionary())
    return with_noise_metadata(signal, *noise)


def _added(element, group):
    """The sum of maps of different X-ray lines of one element; any other repetition is an error."""
    if len(group) == 1:
        return group[0]
    lines = [m.line for m in group]
    if "" in lines or len(set(lines)) < len(lines):
        raise ValueError(
            f"{element} is repeated by {' and '.join(m.name for m in group)}, and nothing shows that these "
            "are different X-ray lines to be added up: keep one map, or pass their sum."
        )
    _logger.info("The %s map is the sum of %s.", element, ", ".join(lines))
    # the sum of small integers is a wide one
    added = {key: _sum([getattr(m, key) for m in group]) for key in ("data", "background", "variance")}
    return group[0]._replace(line="+".join(lines), **added)


def _sum(arrays):
    return None if any(array is None for array in arrays) else np.sum(arrays, axis=0)


def _stacked_or_zero(maps, arrays):
    """(n, ny, nx), zero where an array is None; None where all are."""
    if all(array is None for array in arrays):
        return None
    zero = np.zeros(maps[0].data.shape, np.float32)
    return _one_array([zero if array is None else array for array in arrays])


def _signal(data, axes, metadata):
    import hyperspy.api as hs

    element_axis = {"size": len(data), "name": "element", "scale": 1, "offset": 0, "navigate": True}
    axes = [element_axis, *({**axis, "navigate": False} for axis in axes)]
    signal = hs.signals.Signal2D(data, axes=axes, metadata=metadata)
    signal.set_signal_type("element_maps")
    return signal


def _one_array(images):
    """The pixels of all images, (n, ny, nx), native: converted one by one on their way into the one array."""
    stack = np.empty((len(images), *images[0].shape), _common_dtype(images))
    for layer, image in zip(stack, images, strict=True):
        layer[...] = image
    return stack


def _common_dtype(images):
    """That of all images; 64-bit integers in 32 bits where they fit, for a solver in float32 keeps no more."""
    dtype = np.result_type(*images).newbyteorder("=")
    if dtype.kind not in "iu" or dtype.itemsize < 8:
        return dtype
    narrow = np.dtype(f"{dtype.kind}4")
    limits = np.iinfo(narrow)
    fits = all(limits.min <= int(image.min()) and int(image.max()) <= limits.max for image in images)
    return narrow if fits else dtype
