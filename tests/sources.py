"""Small maps and spectra of one scan, in every form that `element_maps` takes."""

import copy

import exspy
import hyperspy.api as hs
import numpy as np

from hyperspy_fusion import element_maps

FE = np.arange(12.0).reshape(3, 4)
O = 20.0 - FE  # noqa: E741
PT = FE**2
TRUTH = np.stack([FE, O, PT])
NAMES = ["Fe", "O", "Pt"]
SCAN = [
    {"size": 3, "name": "height", "scale": 0.5, "offset": 3.0, "units": "nm"},
    {"size": 4, "name": "width", "scale": 0.5, "offset": -1.0, "units": "nm"},
]


def image(data, title="", elements=(), lines=(), signal_type=""):
    """A map ``(|x, y)`` with what its metadata say of it."""
    metadata = {"General": {"title": title}, "Sample": {"description": "a specimen"}}
    if elements:
        metadata["Sample"]["elements"] = list(elements)
    if lines:
        metadata["Sample"]["xray_lines"] = list(lines)
    signal = hs.signals.Signal2D(data, axes=copy.deepcopy(SCAN), metadata=metadata)
    signal.metadata.Signal.signal_type = signal_type
    return signal


def images(**kwargs):
    return [image(data, elements=[name], **kwargs) for data, name in zip(TRUTH, NAMES, strict=True)]


def line_images():
    """Maps as get_lines_intensity returns them: ``(x, y|)``, of the type of the spectra."""
    lines = ["Fe_Ka", "O_Ka", "Pt_La"]
    return [
        image(data, f"line {line}", [name], [line], "EDS_TEM").T
        for data, name, line in zip(TRUTH, NAMES, lines, strict=True)
    ]


def stacked(maps, **kwargs):
    return hs.stack(maps, show_progressbar=False, **kwargs)


def eds(dtype="u1", elements=(), lines=(), seed=0):
    """An EDS spectrum image ``(4, 3|2000)``, 0 to 20 keV, of 0 to 3 counts per channel."""
    counts = np.random.default_rng(seed).integers(0, 4, (3, 4, 2000)).astype(dtype)
    axes = [*copy.deepcopy(SCAN), {"size": 2000, "name": "Energy", "scale": 0.01, "units": "keV"}]
    signal = exspy.signals.EDSTEMSpectrum(counts, axes=axes)
    signal.metadata.General.title = "grain"
    signal.metadata.General.date = "2018-11-29"
    signal.metadata.Signal.quantity = "X-rays (Counts)"
    signal.set_microscope_parameters(beam_energy=200)
    if elements:
        signal.metadata.set_item("Sample.elements", list(elements))
    if lines:
        signal.metadata.set_item("Sample.xray_lines", list(lines))
    return signal


def eels(elements=("Cu", "Zn")):
    energy = 850.0 + np.arange(60) * 8.0
    data = np.ones((3, 4, 1)) * (1e9 * energy**-2.5 + 5 * (energy > 931) + 3 * (energy > 1020))
    signal = exspy.signals.EELSSpectrum(data)
    signal.axes_manager[-1].scale, signal.axes_manager[-1].offset = 8.0, 850.0
    signal.axes_manager[-1].units = "eV"
    signal.set_microscope_parameters(beam_energy=200, convergence_angle=29, collection_angle=36)
    signal.add_elements(list(elements))
    return signal


def assert_element_maps(result, data, names):
    assert result.metadata.Signal.signal_type == "element_maps"
    assert not result._lazy
    np.testing.assert_array_equal(result.data, data)
    assert list(result.metadata.Sample.elements) == list(names)
    axis = result.axes_manager.navigation_axes[0]
    assert (axis.name, axis.scale, axis.offset, axis.size) == ("element", 1, 0, len(names))


def codes(maps):
    """Codes of the diagnostics that maps keep."""
    return list(maps.metadata.get_item("Element_maps.diagnostics.codes", default=[]))


def warnings_of(maps):
    return list(maps.metadata.get_item("Element_maps.warnings", default=[]))


def lines_of(signal, lines):
    return [m.data for m in signal.get_lines_intensity(lines)]


SOURCES = {
    "list (|x, y)": images,
    "list (x, y|)": line_images,
    "tuple": lambda: tuple(images()),
    "dict": lambda: dict(zip(NAMES, [image(data) for data in TRUTH], strict=True)),
    "dict of lines": lambda: dict(zip(["Fe_Ka", "O_Ka", "Pt_La"], line_images(), strict=True)),
    "stack (n|x, y)": lambda: stacked(images()),
    "stack of lines (n|x, y)": lambda: stacked([m.T for m in line_images()]),
    "stack (x, y, n|)": lambda: stacked(line_images()),
    "stack with a named axis": lambda: stacked(images(), new_axis_name="element"),
    "titles of Velox": lambda: [image(data, name) for data, name in zip(TRUTH, NAMES, strict=True)],
    "ElementMaps": lambda: element_maps(images()),
}


def lazily(source):
    if isinstance(source, dict):
        return {key: signal.as_lazy() for key, signal in source.items()}
    if isinstance(source, list | tuple):
        return [signal.as_lazy() for signal in source]
    return source.as_lazy()


def ragged():
    data = np.empty((3, 4), dtype=object)
    for index in np.ndindex(3, 4):
        data[index] = np.zeros(index[0] + 1)
    return hs.signals.BaseSignal(data, ragged=True)


def rgb():
    signal = hs.signals.Signal1D(np.zeros((3, 4, 3), dtype="u1"))
    signal.change_dtype("rgb8")
    return signal
