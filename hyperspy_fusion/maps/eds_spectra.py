"""EDS spectra as the model of spectra needs them: energies, resolution, lines by exspy, sums of bins in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from numbers import Real
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.spectra.line_shapes import ElementLines
from hyperspy_fusion.identify.elements import element_of, periodic_table

# keV: no element has a line below, but detectors have noise
LOWEST_KEV = 0.1
# elements without a stable isotope are no candidates, but for Th and U
RADIOACTIVE = frozenset("Tc Pm Po At Rn Fr Ra Ac Pa Np Pu Am Cm Bk Cf Es Fm Md No Lr".split())
# keV: detectors have noise below
LOWEST = 0.2
# keV: a family whose main line is so near to an end of the spectra is left out
_MARGIN = 0.05
# channels that are used end so many keV above the last line
_BEYOND = 0.3
# keV: full width at half maximum of Mn Ka where the metadata have none
_USUAL_RESOLUTION = 0.13
# bins for the calibration of lines are so many pixels wide at least, and there are no more of them along a side
_BIN, _BINS = 4, 64


def beam_energy_of(signal: Any) -> float | None:
    """Energy of the beam in keV, above 0; None where the metadata have none."""
    found = [signal.metadata.get_item(f"Acquisition_instrument.{kind}.beam_energy") for kind in ("SEM", "TEM")]
    return next((float(energy) for energy in found if isinstance(energy, Real) and float(energy) > 0), None)


def energies_in_kev(signal: Any) -> np.ndarray:
    """(n_channels,) energies of the channels of EDS spectra."""
    axis = signal.axes_manager.signal_axes[0]
    return np.asarray(axis.axis, dtype=np.float64) / (1000 if axis.units == "eV" else 1)


def channels_last(signal: Any) -> Any:
    """The spectra (ny, nx, n_channels); what a numpy masked array masks has no counts."""
    data = np.moveaxis(signal.data, signal.axes_manager.signal_axes[0].index_in_array, -1)
    return data.filled(0) if isinstance(data, np.ma.MaskedArray) else data


def resolution_of(signal: Any) -> float:
    """Full width at half maximum of Mn Ka in keV."""
    for kind in ("TEM", "SEM"):
        found = signal.metadata.get_item(f"Acquisition_instrument.{kind}.Detector.EDS.energy_resolution_MnKa")
        if isinstance(found, int | float | np.number) and 20 < found < 500:
            return float(found) / 1000
    return _USUAL_RESOLUTION


def element_lines(signal: Any, symbol: str, mapped: Sequence[str] = ()) -> ElementLines:
    """Lines of an element whose families have their main line within the spectra, and are excited by the beam.

    Those ``mapped``, such as ``["Fe_Ka"]``, are the lines of its map; none for the main line of highest energy.
    """
    energies = energies_in_kev(signal)
    low, high = max(energies[0], LOWEST_KEV) + _MARGIN, energies[-1] - _MARGIN
    high = min(high, beam_energy_of(signal) or np.inf)
    found = lines_of_exspy(symbol)
    names, mains = [], []
    for family in dict.fromkeys(name[0] for name in found):
        own = [name for name in found if name[0] == family]
        main = max(own, key=lambda name: found[name][1])
        if low < found[main][0] < high:
            names += own
            mains.append(main)
    asked = [line.partition("_")[2] for line in mapped if element_of(line) == symbol]
    taken = [name for name in asked if name in names] or sorted(mains, key=lambda name: found[name][0])[-1:]
    return ElementLines(
        symbol,
        tuple(names),
        np.array([found[name][0] for name in names]),
        np.array([found[name][1] for name in names]),
        np.array([name in taken for name in names], dtype=bool),
    )


@cache
def lines_of_exspy(symbol):
    """{line: (energy in keV, weight)} of an element."""
    known = periodic_table()[symbol].Atomic_properties.get_item("Xray_lines", {})
    return {name: (float(v["energy (keV)"]), float(v["weight"])) for name, v in dict(known).items()}


def used_channels(energies: np.ndarray, lines: Sequence[ElementLines]) -> slice:
    """Channels from above the noise of the detector to above the last strong line of the elements."""
    mains = np.concatenate([own.energies[own.weights == 1] for own in lines])
    strong = np.concatenate([own.energies[own.weights > 0.05] for own in lines])
    low = max(min(LOWEST, mains.min() - _MARGIN), LOWEST_KEV)
    start, stop = np.searchsorted(energies, [low, strong.max() + _BEYOND])
    return slice(int(start), int(stop))


def binned_spectra(signal: Any, used: slice, mask: np.ndarray | None = None) -> np.ndarray:
    """Spectra (ny, nx, n_channels) float32 of at most 64x64 bins of 4x4 pixels or more, in one pass.

    ValueError for counts that are negative, NaN or infinite.
    """
    data = channels_last(signal)[..., used]
    width = max(_BIN, -(-max(data.shape[:2]) // _BINS))
    valid = np.ones(data.shape[:2], bool) if mask is None else ~mask
    if signal._lazy:
        binned = _lazy_bins(data, valid, width)
    else:
        binned = _bins(data, valid[..., None], width)
    if not np.all(np.isfinite(binned)) or binned.min() < 0:
        raise ValueError(f"{signal} has values that are negative, NaN or infinite: pass spectra of counts.")
    return binned


def _bins(spectra, valid, width):
    rows = [_row(spectra[i : i + width], valid[i : i + width], width) for i in range(0, len(spectra), width)]
    return np.stack(rows)


def _row(spectra, valid, width):
    kept = spectra if valid.all() else np.where(valid, spectra, 0)
    dtype = np.float64 if kept.dtype.kind == "f" else np.int64 if kept.dtype.itemsize > 2 else np.int32
    if kept.dtype.kind != "u" and kept.min() < 0:
        return np.full((-(-kept.shape[1] // width), kept.shape[-1]), np.nan, np.float32)
    summed = kept.sum(axis=0, dtype=dtype)
    return np.add.reduceat(summed, np.arange(0, len(summed), width), axis=0).astype(np.float32)


def _lazy_bins(data, valid, width):
    """The same of a dask array, block by block; blocks are whole bins wide."""
    import dask.array as da

    data = data.rechunk({axis: max(width, max(data.chunks[axis]) // width * width) for axis in (0, 1)})
    valid = da.from_array(valid[..., None]).rechunk((*data.chunks[:2], (1,)))
    shape = (*(tuple(-(-c // width) for c in data.chunks[axis]) for axis in (0, 1)), data.chunks[2])
    return np.asarray(da.map_blocks(_bins, data, valid, width, dtype=np.float32, chunks=shape))
