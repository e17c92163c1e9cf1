"""What several test files share."""

import copy
import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hyperspy_fusion.fusion.settings import SETTINGS

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(name):
    """Path of a file of real data; the test skips where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"real data not on this machine: shared/{name}")
    return path


def as_python(kernel):
    """The Python function of a kernel: the kernel itself where Numba does not compile (``NUMBA_DISABLE_JIT``)."""
    return getattr(kernel, "py_func", kernel)


def scan_signals(ny=12, nx=15, elements=("Fe", "O"), dtype="float32", seed=0):
    """A list of calibrated count maps that name their element, and their HAADF image."""
    import hyperspy.api as hs

    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:ny, :nx]
    axes = [
        {"name": "y", "size": ny, "scale": 0.4, "offset": -2.0, "units": "nm"},
        {"name": "x", "size": nx, "scale": 0.5, "offset": 3.0, "units": "nm"},
    ]
    maps, haadf = [], np.zeros((ny, nx))
    for i, element in enumerate(elements):
        mean = 1 + 6 * np.exp(-((y - ny / 2) ** 2 + (x - (i + 1) * nx / (len(elements) + 1)) ** 2) / 20)
        signal = hs.signals.Signal2D(rng.poisson(mean).astype(dtype), axes=axes)
        signal.metadata.General.title = f"{element} map"
        signal.metadata.set_item("Sample.elements", [element])
        signal.metadata.set_item("Acquisition_instrument.TEM.beam_energy", 200.0)
        maps.append(signal)
        haadf += mean * (26 - 3 * i)
    image = hs.signals.Signal2D((100 * haadf).astype("uint16"), axes=axes)
    image.metadata.General.title = "HAADF"
    return maps, image


def snapshot(signal):
    """Everything of a signal that a function might change."""
    return (
        np.array(signal.data),
        signal.data.dtype.str,
        signal.axes_manager._get_axes_dicts(),
        copy.deepcopy(signal.metadata.as_dictionary()),
        copy.deepcopy(signal.original_metadata.as_dictionary()),
        type(signal),
    )


def assert_untouched(signal, before):
    """`signal` is what `snapshot` saw."""
    after = snapshot(signal)
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_equal(after[1:], before[1:])


def fuse_with(maps, haadf, *, method="published", **options):
    """``hyperspy_fusion.fuse`` without a progress bar, with any setting of the method as a keyword."""
    import hyperspy_fusion

    others = _others(hyperspy_fusion.fuse, options)
    settings = SETTINGS[method](**others) if others else None
    return hyperspy_fusion.fuse(maps, haadf, method=method, settings=settings, **{"show_progressbar": False} | options)


def fit_with(model, **options):
    """``model.fit``, with any setting of the method as a keyword."""
    others = _others(model.fit, options)
    return model.fit(settings=replace(model.settings, **others) if others else None, **options)


def _others(function, options):
    """Take the settings that are no keywords of ``function`` out of ``options``."""
    return {name: options.pop(name) for name in set(options) - set(inspect.signature(function).parameters)}


def codes(caplog):
    """Codes of the diagnostics that were reported since the last call."""
    found = [record.code for record in caplog.records if hasattr(record, "code")]
    caplog.clear()
    return found
