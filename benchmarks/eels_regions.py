"""How much of an element the EELS maps of a real scan show in its regions, and what its spectra can know of that.

    python -m benchmarks.eels_regions

On the brass of the HyperSpy demos, which has to be in ``../shared/data``. In five parts of a size, from the darkest to
the brightest by the HAADF image. The differences between them are told by the spectra without any model of the
background: that of the darkest part, times a power law, is the background of the others. How much there is in the
darkest part is told less well: steps are sought at energies where there is no edge, and what is found is the error.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from benchmarks.common import SHARED
from hyperspy_fusion import CalibratedSettings, fuse

EDGES = ["Cu_L3", "Zn_L3"]
WHOLE = {"Cu_L3": (700, 923, 931, 1988), "Zn_L3": (700, 923, 1020, 1988)}
COPPER, ZINC, BEFORE = (931, 1012), (1020, 1122), (700, 915)
# eV around an onset within which a step is sought, and energies without an edge: before copper, and behind L1 of zinc
STEP, NO_EDGE = (90, 84), ((700, 925), (1330, 1990))


@dataclass
class Brass:
    """Spectra, HAADF image, the maps fitted by others, and masks of the parts."""

    spectra: object
    haadf: object
    models: list
    parts: list

    @classmethod
    def load(cls):
        import hyperspy.api as hs

        hs.preferences.General.show_progressbar = False
        spectra, haadf, *models = (
            hs.load(SHARED / f"{name}.hspy")
            for name in ("CuZn_EELS_mapping_tutorial", "CuZn_HAADF", "Cu_map", "Zn_map")
        )
        levels = np.quantile(haadf.data, np.linspace(0, 1, 6))
        number = np.clip(np.digitize(haadf.data, levels[1:-1]), 0, 4)
        return cls(spectra, haadf, models, [number == k for k in range(5)])

    @property
    def energy(self):
        return self.spectra.axes_manager[-1].axis

    @property
    def sections(self):
        from hyperspy_fusion.maps.eels_edges import Edge, onset_energy, shapes

        return shapes(self.spectra, [Edge(name, onset_energy(name), (), ()) for name in EDGES])

    def mean(self, part):
        return self.spectra.data[part].mean(axis=0)

    def inside(self, window):
        return (self.energy >= window[0]) & (self.energy < window[1])


# ---- differences between the parts ----------------------------------------------------------------------


def beyond_the_darkest(brass):
    """Net counts (4, 2) over the background that the darkest part has, and how much there is of that (4,).

    What the zinc window has of copper is taken off by exspy's cross-section.
    """
    darkest, log = brass.mean(brass.parts[0]), np.log(brass.energy)
    before, copper, zinc = (brass.inside(window) for window in (BEFORE, COPPER, ZINC))
    tail = brass.sections[0, zinc].sum() / brass.sections[0, copper].sum()
    net, factors = [], []
    for part in brass.parts[1:]:
        ratio = brass.mean(part) / darkest
        fitted = np.exp(np.polyval(np.polyfit(log[before], np.log(ratio[before]), 1), log))
        rest = darkest * (ratio - fitted)
        net.append([rest[copper].sum(), rest[zinc].sum() - tail * rest[copper].sum()])
        factors.append(fitted[np.searchsorted(brass.energy, 1000)])
    return np.array(net), np.array(factors)


def differences(brass, maps, factors):
    means = np.array([[image[part].mean() for image in maps] for part in brass.parts])
    more = means[1:] - factors[:, None] * means[0]
    return more / more[-1], (means / means[-1])[:-1]


# ---- steps where there is no edge -----------------------------------------------------------------------


def step(brass, spectrum, onset):
    """Height of a step like that of copper at `onset`, over the background there, by a fit around it."""
    from hyperspy_fusion.fusion.spectra.power_law import JointFit

    energy = brass.energy
    # the channel before an onset is in part behind it
    near = (energy >= onset - STEP[0]) & (energy < onset + STEP[1]) & ~((energy > onset - 7) & (energy < onset))
    edge = brass.sections[0] / brass.sections[0, np.searchsorted(energy, 931)]
    shape = np.where(energy >= onset, np.interp(energy - onset + 931, energy, edge), 0)[near]
    fit = JointFit(energy[near], shape[None], 1 / spectrum[near])
    height = fit.intensities(spectrum[None, near], fit.exponents(spectrum[None, near]))[0, 0]
    return height / spectrum[near & (energy < onset)][-1]


def steps_elsewhere(brass, spectrum):
    onsets = [
        e + 3
        for low, high in NO_EDGE
        for e in brass.energy[(brass.energy >= low + STEP[0]) & (brass.energy < high - STEP[1])]
    ]
    return np.sqrt(np.mean([step(brass, spectrum, onset) ** 2 for onset in onsets]))


def whole_fit(brass, spectrum):
    """Of a fit to all energies: its copper step, and the rise of the residual there, both over the background."""
    from hyperspy_fusion.fusion.spectra.power_law import JointFit

    fit = JointFit(brass.energy, brass.sections, np.ones(len(brass.energy)))
    exponent = fit.exponents(spectrum[None])
    edges = fit.intensities(spectrum[None], exponent)[:, 0] @ brass.sections
    power = (brass.energy / 931) ** -exponent
    background = power * ((spectrum - edges) @ power) / (power @ power)
    rest = (spectrum - background - edges) / background
    before, after = (rest[brass.inside(window)].mean() for window in ((850, 924), COPPER))
    return (edges / background)[np.searchsorted(brass.energy, 931)], after - before


# ---- report ---------------------------------------------------------------------------------------------


def line(name, shares, wide=44):
    print(f"{name:{wide}s}" + "".join(f"{value:8.3f}" for value in shares))


def main():
    if not (SHARED / "CuZn_HAADF.hspy").exists():
        print(f"no data in {SHARED}")
        return 1
    import hyperspy_fusion as hf

    brass = Brass.load()
    maps = {
        "windows": hf.element_maps(brass.spectra, edges=EDGES),
        "background='model'": hf.element_maps(brass.spectra, edges=EDGES, background="model"),
        "background='model', 700 to 1988 eV": hf.element_maps(brass.spectra, edges=WHOLE, background="model"),
    }
    data = {name: m.data for name, m in maps.items()} | {"Cu_map, Zn_map": [m.data for m in brass.models]}
    net, factors = beyond_the_darkest(brass)
    for i, name in enumerate(EDGES):
        print(f"\n{name}: more than in the darkest part, over the brightest; and all of it")
        line("spectra against the darkest", (net / net[-1])[:-1, i])
        for source, images in data.items():
            more, whole = differences(brass, images, factors)
            line(source, [*more[:-1, i], *whole[:, i]])
    print("\nstep of copper over the background, and what is found where there is no edge (rms)")
    for number, part in enumerate(brass.parts, 1):
        line(f"part {number}", [step(brass, brass.mean(part), 931), steps_elsewhere(brass, brass.mean(part))])
    print("\nthe same step in one fit from 700 to 1988 eV, and by how much its residual rises where the step is")
    for number, part in enumerate(brass.parts, 1):
        line(f"part {number}", whole_fit(brass, brass.mean(part)))
    print("\nfused: region means over each other, one scale for each element")
    options = {"method": "calibrated", "settings": CalibratedSettings(tol=1e-3), "show_progressbar": False}
    windows, model = (fuse(m, brass.haadf, **options).data for m in list(maps.values())[:2])
    others = fuse(brass.models, brass.haadf, **options).data
    for name, one, two in (("windows / model", windows, model), ("windows / Cu_map, Zn_map", windows, others)):
        for edge, a, b in zip(EDGES, one, two, strict=True):
            scale = (a * b).sum() / (b * b).sum()
            line(f"{edge}  {name}", [a[part].mean() / b[part].mean() / scale for part in brass.parts])
    return 0


if __name__ == "__main__":
    sys.exit(main())
