"""The model of the spectra of an EDS spectrum image: its lines by exspy, its summed spectrum in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.spectra.line_calibration import calibrated, spatial_groups
from hyperspy_fusion.fusion.spectra.line_model import CONTINUUM, SpectralModel
from hyperspy_fusion.fusion.spectra.line_model import spectral_model as model_of_spectra
from hyperspy_fusion.fusion.spectra.line_shapes import Calibration, ElementLines
from hyperspy_fusion.grid.images import check_energies, check_real
from hyperspy_fusion.identify.elements import element_of, periodic_table
from hyperspy_fusion.maps.eds_lines import LOWEST_KEV, beam_energy_of, chosen_lines
from hyperspy_fusion.maps.eds_model_checks import model_diagnostics

# keV: detectors have noise below
_LOWEST = 0.2
# keV: a family whose main line is so near to an end of the spectra is left out
_MARGIN = 0.05
# channels that are used end so many keV above the last line
_BEYOND = 0.3
# keV: full width at half maximum of Mn Ka where the metadata have none
_USUAL_RESOLUTION = 0.13
# bins for the calibration of lines are so many pixels wide at least, and there are no more of them along a side
_BIN, _BINS = 4, 64


class ModelOfSpectra(NamedTuple):
    """The model of the spectra of a scan, and what is doubtful about it."""

    model: SpectralModel
    diagnostics: list[Diagnostic]


def spectral_model(
    signal: Any,
    elements: Sequence[str] | None = None,
    *,
    xray_lines: Sequence[str] | None = None,
    system: Sequence[str] = (),
    mask: np.ndarray | None = None,
) -> ModelOfSpectra:
    """The model of the spectra of an EDS spectrum image.

    Parameters
    ----------
    signal
        EDS spectra ``(x, y|E)``; lazy ones are read once, in blocks.
    elements
        Mapped elements; None for those of the file.
    xray_lines
        Lines whose counts are the maps; None for those of the file, or for exspy's choice.
    system
        Elements of the microscope and of the grid, which emit lines and have no map.
    mask
        (ny, nx) bool, True where a pixel is left out; None for no such pixel.

    Raises
    ------
    ValueError
        For spectra that are no counts, energies without units, and elements without lines within them.
    """
    check_real(signal)
    check_energies(signal, "keV", "eV")
    mapped, found = chosen_lines(signal, elements, xray_lines)
    energies = energies_in_kev(signal)
    lines = [element_lines(signal, symbol, own) for symbol, own in mapped.items()]
    lines += [element_lines(signal, symbol) for symbol in system if symbol not in mapped]
    lines = [own for own in lines if own.names]
    used = used_channels(energies, lines)
    binned = binned_spectra(signal, used, mask)
    summed = binned.sum(axis=(0, 1), dtype=np.float64)
    if summed.sum() < 1:
        raise ValueError(f"{signal} has no counts at the lines of {', '.join(mapped)}: pass other spectra or elements.")
    groups = spatial_groups(binned, len(lines) + len(CONTINUUM))
    calibration, lines = calibrated(
        summed, groups, energies[used], lines, Calibration(resolution=resolution_of(signal))
    )
    model = model_of_spectra(
        summed,
        energies[used],
        lines,
        len(mapped),
        float(signal.axes_manager.navigation_size if mask is None else np.count_nonzero(~mask)),
        first_channel=used.start,
        calibration=calibration,
        ratios_known=True,
    )
    return ModelOfSpectra(model, [*found, *model_diagnostics(model)])


def energies_in_kev(signal: Any) -> np.ndarray:
    """(n_channels,) energies of the channels of EDS spectra."""
    axis = signal.axes_manager.signal_axes[0]
    return np.asarray(axis.axis, dtype=np.float64) / (1000 if axis.units == "eV" else 1)


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
    known = periodic_table()[symbol].Atomic_properties.get_item("Xray_lines", {})
    found = {name: (float(v["energy (keV)"]), float(v["weight"])) for name, v in dict(known).items()}
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


def used_channels(energies: np.ndarray, lines: Sequence[ElementLines]) -> slice:
    """Channels from above the noise of the detector to above the last strong line of the elements."""
    mains = np.concatenate([own.energies[own.weights == 1] for own in lines])
    strong = np.concatenate([own.energies[own.weights > 0.05] for own in lines])
    low = max(min(_LOWEST, mains.min() - _MARGIN), LOWEST_KEV)
    start, stop = np.searchsorted(energies, [low, strong.max() + _BEYOND])
    return slice(int(start), int(stop))


def binned_spectra(signal: Any, used: slice, mask: np.ndarray | None = None) -> np.ndarray:
    """Spectra (ny, nx, n_channels) float32 of at most 64x64 bins of 4x4 pixels or more, in one pass.

    ValueError for counts that are negative, NaN or infinite.
    """
    data = np.moveaxis(signal.data, signal.axes_manager.signal_axes[0].index_in_array, -1)[..., used]
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
    summed = kept.sum(axis=0, dtype=dtype)
    return np.add.reduceat(summed, np.arange(0, len(summed), width), axis=0).astype(np.float32)


def _lazy_bins(data, valid, width):
    """The same of a dask array, block by block; blocks are whole bins wide."""
    import dask.array as da

    data = data.rechunk({axis: max(width, max(data.chunks[axis]) // width * width) for axis in (0, 1)})
    valid = da.from_array(valid[..., None]).rechunk((*data.chunks[:2], (1,)))
    shape = (*(tuple(-(-c // width) for c in data.chunks[axis]) for axis in (0, 1)), data.chunks[2])
    return np.asarray(da.map_blocks(_bins, data, valid, width, dtype=np.float32, chunks=shape))
