"""EDS spectra of elements drawn at random, by a detector that is off in every way that the model allows."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.spectra.line_shapes import Calibration

ELEMENTS = (
    *("B", "C", "N", "O", "F", "Na", "Mg", "Al", "Si", "P", "S", "Cl", "K", "Ca", "Ti", "Cr", "Mn", "Fe", "Co", "Ni"),
    *("Cu", "Zn", "Ga", "As", "Sr", "Y", "Zr", "Nb", "Mo", "Ag", "Sn", "Ba", "La", "Ce", "Nd", "Gd", "Hf", "Ta", "W"),
    *("Pt", "Au", "Pb", "Bi"),
)
SHAPE = (12, 12)


@dataclass(frozen=True)
class DrawnSpectra:
    """Spectra with the elements that are in them.

    Attributes
    ----------
    signal
        The spectrum image.
    elements
        Counts by element, those of the grid and of the detector too.
    clear
        Elements of which one of the strongest lines is neither in the noise nor beneath other lines.
    """

    signal: Any
    elements: dict[str, float]
    clear: list[str]


def drawn_spectra(seed: int, beam: float | None = None, shelf: float | None = None) -> DrawnSpectra:
    """A spectrum image of three to thirteen elements.

    Parameters
    ----------
    seed
        Of all that is drawn.
    beam
        Its energy in keV; None draws one of a transmission electron microscope.
    shelf
        Largest part of a line that loses charge, of which a part is drawn; None for 0 or 0.01.

    Returns
    -------
    DrawnSpectra
        The spectra and what is in them.
    """
    import hyperspy.api as hs

    rng = np.random.default_rng([7, seed])
    end = float(rng.choice([10, 20, 40]))
    width, drawn = end / 2000, float(rng.choice([60, 80, 120, 200, 300]))
    beam = beam or drawn
    axis = -0.2 + width * np.arange(int((end + 0.2) / width))
    edges = np.append(axis, axis[-1] + width) - width / 2
    offset, gain = rng.uniform(-0.01, 0.01), 1 + rng.uniform(-0.002, 0.002)
    detector = Calibration(offset, gain, rng.uniform(0.125, 0.15), rng.choice([0, 0.05, 0.15]), rng.choice([0, 0.01]))
    if shelf is not None:
        detector = replace(detector, shelf=shelf * np.random.default_rng([8, seed]).random())
    true = detector.offset + detector.gain * axis
    chosen = [str(e) for e in rng.choice(ELEMENTS, rng.integers(3, 11), replace=False)]
    system = [e for e, part in (("Cu", 0.7), ("Si", 0.4), ("Ga", 0.25)) if rng.random() < part and e not in chosen]
    names, absorbed = chosen + system, rng.choice([0, 0.1, 0.3, 0.6])
    lines = [_lines(element, beam, absorbed, rng) for element in names]
    columns = np.stack([detector.line_shapes(edges, energies) @ weights for energies, weights in lines])
    amounts = 10 ** np.append(rng.uniform(-3, 0, len(chosen)), rng.uniform(-2, -0.5, len(system)))
    sums = columns[:, true > 0.2].sum(axis=1)
    columns *= np.where(sums > 1e-3, amounts / np.maximum(sums, 1e-3), 0)[:, None]
    positive = np.maximum(true, 0.02)
    continuum = np.exp(-((rng.uniform(0.3, 0.8) / positive) ** 2.7)) * np.maximum(beam - positive, 0) / positive
    continuum *= columns.sum() * 10 ** rng.uniform(-1.3, 0.3) / continuum.sum()
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] / SHAPE[0]
    places = rng.random((len(names), 3))
    spots = [0.02 + np.exp(-((y - b) ** 2 + (x - a) ** 2) / (0.1 + 0.4 * c) ** 2) for a, b, c in places]
    spots = [spot / spot.mean() if e not in system else np.ones(SHAPE) for e, spot in zip(names, spots, strict=True)]
    expected = np.einsum("eyx,ec->yxc", spots, columns) + continuum
    counts = 10 ** rng.uniform(4, 7) / expected.sum()
    expected, columns = expected * counts, columns * counts * x.size
    expected += _artefacts(expected.sum(axis=(0, 1)), axis, width, rng) / x.size
    data = rng.poisson(expected)
    for _ in range(rng.choice([0, 0, 0, 2])):
        start = int(rng.integers(int(0.5 / width), int(0.9 * len(axis))))
        data[..., start : start + int(rng.integers(1, 6))] = 0
    summed = data.sum(axis=(0, 1))
    clear = [
        e
        for e, own, column in zip(names, lines, columns, strict=True)
        if _is_clear(own, column, columns, summed, true, detector)
    ]
    signal = hs.signals.Signal1D(data.astype(np.uint32))
    signal.set_signal_type("EDS_TEM" if beam > 30 else "EDS_SEM")
    on_axis = signal.axes_manager.signal_axes[0]
    on_axis.scale, on_axis.offset, on_axis.units, on_axis.name = width, axis[0], "keV", "Energy"
    known = {"beam_energy": beam} if rng.random() < 0.7 else {}
    signal.set_microscope_parameters(energy_resolution_MnKa=130.0, **known)
    parts = dict(zip(names, columns.sum(axis=1), strict=True))
    return DrawnSpectra(signal, parts, clear)


def _lines(element, beam, absorbed, rng):
    """``(energies, counts)``: families and lines are not as strong as the tables have them."""
    from exspy.material import elements

    families = {}
    for name, line in elements[element].Atomic_properties.Xray_lines.as_dictionary().items():
        families.setdefault(name[0], []).append((line["energy (keV)"], line["weight"]))
    energies, counts = np.zeros(0), np.zeros(0)
    for letter, own in families.items():
        own, weights = np.array(own).T
        excited = np.clip((beam / own.max() - 1) / 1.5, 0, 1)
        usual = {"K": 1.0, "L": 0.7 if own.max() < 1.2 else 1.5, "M": 2.0}[letter] * 3 ** rng.uniform(-0.5, 0.5)
        weights = weights * np.where(weights < 1, rng.uniform(0.7, 1.3, len(weights)), 1) * usual * excited
        through = np.exp(-np.minimum((absorbed + 0.02) * own**-2.5, 5)) * (1 - np.exp(-((16 / own) ** 3)))
        energies, counts = np.append(energies, own), np.append(counts, weights * through)
    return energies, counts


def _artefacts(summed, axis, width, rng):
    """Expected counts of sum and escape peaks."""
    pairs, places = np.convolve(summed, summed), 2 * axis[0] + width * np.arange(2 * len(axis) - 1)
    sums = rng.choice([0, 1]) * 10 ** rng.uniform(-3, -2) * np.interp(axis, places, pairs) / summed.sum()
    escaped = np.where(axis > 1.84, summed * (2 / np.maximum(axis, 1.84)) ** 1.5, 0)
    return sums + rng.choice([0, 1]) * 10 ** rng.uniform(-2.7, -2) * np.interp(axis + 1.74, axis, escaped, right=0)


def _is_clear(lines, column, columns, summed, true, detector):
    """Whether more than half of the counts in one of the strongest lines are of the element, above five times noise."""
    energies, counts = lines
    for energy in energies[np.argsort(-counts)[:3]]:
        near = np.abs(true - energy) < detector.fwhm(energy) / 2
        if 0.25 < energy < true[-1] - 0.1 and summed[near].min(initial=1) > 0:
            own = column[near].sum()
            if own > columns[:, near].sum() / 2 and own > 5 * np.sqrt(summed[near].sum()):
                return True
    return False
