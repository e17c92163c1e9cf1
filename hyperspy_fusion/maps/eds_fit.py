"""Maps of EDS spectra by a model of all their lines: what a fit of the spectra starts from."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.spectra.scan_spectra import ScanSpectra
from hyperspy_fusion.grid.axes import scan_axes
from hyperspy_fusion.grid.masks import mask_array
from hyperspy_fusion.identify.elements import periodic_table
from hyperspy_fusion.identify.map_identity import metadata_names, title_of
from hyperspy_fusion.maps.base import WINDOW_WIDTH, SourceMap, SourceMaps, SourceRequest, described
from hyperspy_fusion.maps.eds_model import spectral_model
from hyperspy_fusion.maps.eds_spectra import channels_last
from hyperspy_fusion.maps.eds_windows import line_windows

# of whole counts in float32, relative to the largest
_ROUNDING = 1e-6


def modelled_maps(signal: Any, request: SourceRequest) -> SourceMaps:
    """Maps of each element, estimated pixel by pixel, and the band counts that a fit of the spectra uses.

    Elements that the file names have columns in the model, those without a map too: the grid, the pole piece.

    Raises
    ------
    ValueError
        For arguments of integration windows, and what :func:`spectral_model` raises.
    """
    _refuse_windows(request)
    system = [e for e in metadata_names(signal.metadata, "Sample.elements") if e in periodic_table()]
    mask = mask_array(request.mask, scan_axes(signal))
    options = {"xray_lines": request.xray_lines, "system": system, "mask": mask}
    model, diagnostics = spectral_model(signal, request.elements, **options)
    windows, valid = _windows(signal, model), np.ones(signal.data.shape[:2], bool) if mask is None else ~mask
    counts, n = _counts(signal, model, windows), model.n_elements
    counts[:, ~valid] = 0
    _check_counts(signal, counts[n:], model)
    spectra = ScanSpectra(model, counts[n:], windows, counts[:n])
    estimates, variance = _estimates(spectra, valid)
    axes, metadata = described(signal, {"lines": "model"})
    maps = [
        SourceMap(element, line, estimates[i], axes, metadata, f"the {element} map of {signal}", variance=variance[i])
        for i, (element, line) in enumerate(zip(spectra.elements, _mapped_lines(model), strict=True))
    ]
    return SourceMaps(maps, title_of(metadata), diagnostics, spectra=spectra)


def _check_counts(signal, counts, model):
    """Refuse values that are not single counts, and fewer counts than the model has columns."""
    whole = np.rint(counts)
    if np.abs(counts - whole).max() > _ROUNDING * max(float(counts.max()), 1.0):
        raise ValueError(
            f"{signal} has values that are no whole counts, and lines is 'model', which fits counts: pass the spectra "
            "as recorded, or lines='windows'."
        )
    one, total = int(np.gcd.reduce(whole.astype(np.int64), axis=None)), whole.sum(dtype=np.float64)
    if total < max(one, 1) * len(model.names):
        raise ValueError(
            f"{signal} has {total / max(one, 1):.0f} counts, fewer than the {len(model.names)} elements and parts of "
            "the continuum that lines='model' fits: pass lines='windows'."
        )
    if one > 1:
        raise ValueError(
            f"{signal} has whole multiples of {one}, and lines is 'model', which fits counts: divide the spectra by "
            f"{one}, or pass lines='windows'."
        )


def _estimates(spectra, valid):
    """Counts of the mapped lines of each pixel without its neighbours, and their variance, (n, ny, nx) float32."""
    from hyperspy_fusion.fusion.problems.spectral import estimates_of_pixels, pixel_readout

    model = spectra.model
    readout = pixel_readout(model.matrix, model.totals)[: model.n_elements] * spectra.main_share[:, None]
    found = estimates_of_pixels(readout, spectra.counts, valid)
    return [array.astype(np.float32) for array in found]


def _refuse_windows(request):
    is_given = {
        "background": request.background is not None,
        "integration_windows": request.integration_windows != WINDOW_WIDTH,
    }
    for name in filter(is_given.get, is_given):
        raise ValueError(
            f"{name} is for lines='windows', and lines is 'model', which fits whole lines and the continuum: leave "
            "it out."
        )


def _mapped_lines(model):
    """The X-ray lines whose counts are the maps, such as "Fe_Ka", of each element."""
    return [
        "+".join(f"{own.element}_{name}" for name, mapped in zip(own.names, own.mapped, strict=True) if mapped)
        for own in model.lines[: model.n_elements]
    ]


def _windows(signal, model):
    """(n_elements, n_channels) bool, the channels of the model in exspy's windows; none without a resolution."""
    windows, first = np.zeros((model.n_elements, len(model.energies)), bool), model.first_channel
    for window, lines in zip(windows, _mapped_lines(model), strict=True):
        with suppress(ValueError):
            for start, stop in line_windows(signal, lines.split("+"), WINDOW_WIDTH):
                window[max(start - first, 0) : max(stop - first, 0)] = True
    return windows


def _counts(signal, model, windows):
    """(n_elements + n_bands, ny, nx) float32, in windows and in bands; lazy spectra are read once, in blocks."""
    data = channels_last(signal)
    if not signal._lazy:
        return np.stack([_of_rows(row, model, windows).T for row in data], axis=1)
    import dask.array as da

    data = data.rechunk({2: -1})
    chunks = (*data.chunks[:2], (len(windows) + len(model.edges) - 1,))
    meta = np.empty((0, 0, 0), "f4")
    counts = da.map_blocks(_of_rows, data, model, windows, dtype=np.float32, chunks=chunks, meta=meta)
    return np.ascontiguousarray(np.moveaxis(np.asarray(counts), -1, 0), np.float32)


def _of_rows(spectra, model, windows):
    """(..., n_elements + n_bands) of spectra (..., n_channels)."""
    used = spectra[..., model.first_channel : model.first_channel + windows.shape[1]]
    dtype = np.uint64 if used.dtype.kind == "u" else np.float64
    sums = [used[..., window].sum(axis=-1, dtype=dtype, keepdims=True) for window in windows]
    return np.concatenate([*sums, model.band_counts(spectra)], axis=-1).astype(np.float32)
