"""Random scans for `benchmarks.fuzz`: values, dtypes, axes and forms of maps, each of them hostile now and then."""

from __future__ import annotations

import numpy as np

# probability that an argument is hostile, one of these for each scan and each call
HOSTILITY = (0.0, 0.0, 0.05, 0.2)
ELEMENTS = ("Fe", "O", "Pt", "Cu", "Si")


class Draw:
    """Random choices of a case, a hostile one now and then; it notes them for the reproduction."""

    def __init__(self, seed, number, lazy=False, workers=1):
        self.rng = np.random.default_rng([seed, number])
        self.lazy, self.workers = lazy, workers
        self.hostility = self.rng.choice(HOSTILITY)
        self.notes: dict = {}

    def one(self, name, usual, hostile=()):
        """One of the usual values, seldom one of the hostile ones."""
        values = hostile if len(hostile) and self.rng.random() < self.hostility else usual
        self.notes[name] = values[self.rng.integers(len(values))]
        return self.notes[name]

    def some(self, options):
        """About a third of ``{name: (usual, hostile)}`` as keywords."""
        return {name: self.one(name, *values) for name, values in options.items() if self.rng.random() < 0.33}


VALUES = {
    "counts": lambda rng, mean: rng.poisson(mean),
    "few counts": lambda rng, mean: rng.poisson(0.02 * mean),
    "smooth": lambda rng, mean: mean,
    "noise": lambda rng, mean: mean + rng.normal(size=mean.shape),
    "zero": lambda rng, mean: 0 * mean,
    "constant": lambda rng, mean: 0 * mean + 7,
    "negative": lambda rng, mean: -mean,
    "1e-300": lambda rng, mean: 1e-300 * mean,
    "1e300": lambda rng, mean: 1e300 * mean,
    "1e37": lambda rng, mean: 1e37 * mean,
    "spike": lambda rng, mean: np.where(rng.random(mean.shape) < 0.05, 1e6, rng.poisson(mean)),
    "saturated": lambda rng, mean: np.minimum(mean, np.median(mean)),
    "some NaN": lambda rng, mean: np.where(rng.random(mean.shape) < 0.1, np.nan, mean),
    "some inf": lambda rng, mean: np.where(rng.random(mean.shape) < 0.1, np.inf, mean),
    "all NaN": lambda rng, mean: np.nan * mean,
    "one pixel": lambda rng, mean: np.where(np.arange(mean.size).reshape(mean.shape) == 1, mean, np.nan),
}
MAPS, IMAGES = list(VALUES)[:4], ["smooth", "noise"]
DTYPES = ("u2", "f4", "f8"), ("u1", ">u2", "i4", "u8", "i8", ">f4", ">f8", "f2", "bool", "c8")
UNITS = ("nm",), ("m", "um", "µm", "pm", "Å", "px", "", None, "1/nm", "furlong", "n m")
SCALES = (0.5,), (-0.5, 0.0, 5e-10, -5e-10, 1e-300, 1e300, np.nan, np.inf)
OFFSETS = (0.0, -16.0), (1e-6, 1e9, -1e300, np.nan)
SIZES = (6, 9, 12, 17, 20), (1, 2, 3, 4)


def pixels(draw, name, shape, usual, centre=0.5):
    """An array (ny, nx) of random kind and dtype that shows one particle."""
    y, x = (np.arange(n) / n for n in shape)
    mean = 1 + 20 * np.exp(-20 * (np.subtract.outer(y, -x) - 2 * centre) ** 2)
    kind = draw.one(f"{name} values", usual, list(VALUES))
    dtype = np.dtype(draw.one(f"{name} dtype", *DTYPES))
    with np.errstate(all="ignore"):
        values = VALUES[kind](draw.rng, mean)
        return (np.nan_to_num(values) if dtype.kind in "biu" else values).astype(dtype)


def axes(draw, name, shape):
    """Axes y and x."""
    kinds = {"units": UNITS, "scale": SCALES, "offset": OFFSETS}
    alike = {key: draw.one(f"{name} {key}", *values) for key, values in kinds.items()}
    return [{"name": name, "size": size} | alike for name, size in zip("yx", shape, strict=True)]


def image(draw, data, of_axes, title, cls="Signal2D"):
    """A signal, lazy in the second run of a case."""
    import exspy
    import hyperspy.api as hs

    cls = "ComplexSignal2D" if data.dtype.kind == "c" and cls != "EDS" else cls
    made = (exspy.signals.EDSTEMSpectrum if cls == "EDS" else getattr(hs.signals, cls))(data, axes=of_axes)
    made.metadata.General.title = title
    return made.as_lazy() if draw.lazy else made


class Scan:
    """Maps of one scan in a random form, and its HAADF image."""

    def __init__(self, draw):
        shape = tuple(draw.one(name, *SIZES) for name in ("ny", "nx"))
        self.elements = list(ELEMENTS[: draw.one("elements", (2, 3), (0, 1, 5))])
        own = axes(draw, "maps", shape)
        is_other = draw.one("other grid", (False,), (True,))
        other = (shape[0] + 1, shape[1]) if is_other and draw.one("other shape", (False, True)) else shape
        of_haadf = axes(draw, "haadf", other) if is_other else own
        self.haadf = image(draw, pixels(draw, "haadf", other, IMAGES), of_haadf, "HAADF")
        titles = draw.one("titles", (self.elements,), ([""] * 5, ["Fe"] * 5, ["O Ka map", "Fe K", "x", "Cu", "?"]))
        parts = [(i + 0.5) / (len(self.elements) or 1) for i in range(len(self.elements))]
        maps = [pixels(draw, f"map {i}", shape, MAPS, part) for i, part in enumerate(parts)]
        form = draw.one("form", ("list", "dict", "stack", "eds"), ("image", "array", "none"))
        signals = [] if form == "eds" else [image(draw, m, own, t) for m, t in zip(maps, titles, strict=False)]
        self.source = getattr(self, f"_{form}")(draw, signals, own)
        self.inputs = [*signals, self.haadf, *([self.source] if form == "eds" else [])]

    def _list(self, draw, signals, own):
        return signals

    def _dict(self, draw, signals, own):
        return dict(zip(self.elements, signals, strict=False))

    def _stack(self, draw, signals, own):
        import hyperspy.api as hs

        same = signals and len({(s.data.shape, s.data.dtype) for s in signals}) == 1
        return hs.stack(signals, show_progressbar=False) if same else signals

    def _eds(self, draw, signals, own):
        shape = [axis["size"] for axis in own]
        energy = {"name": "Energy", "size": 80, "scale": 0.1, "units": draw.one("energy units", ("keV",), ("eV", ""))}
        counts = np.stack([pixels(draw, "spectra", shape, ["counts"]).real] * 80, axis=-1)
        made = image(draw, counts, [*own, energy], "spectra", "EDS")
        made.metadata.set_item("Sample.elements", self.elements)
        made.set_microscope_parameters(beam_energy=draw.one("beam energy", (200,), (0, 5, -1)))
        return made

    def _image(self, draw, signals, own):
        return self.haadf

    def _array(self, draw, signals, own):
        return np.ones((2, 8, 8))

    def _none(self, draw, signals, own):
        return None
