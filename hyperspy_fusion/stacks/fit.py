"""The fit of some frames of a stack: one task of the engine, which can be sent to other processes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.diagnostics import unreported
from hyperspy_fusion.fusion.checks import are_numbers
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.maps.base import SourceMaps, SourceRequest, in_memory
from hyperspy_fusion.maps.sources import read_source
from hyperspy_fusion.methods.auto import AutoAsSelected
from hyperspy_fusion.model import FusedMultiModal


@dataclass(frozen=True)
class Call:
    """The arguments of ``fuse`` that are the same for all frames; the request has no background."""

    method: str
    request: SourceRequest
    register: Any
    settings: Any
    n_resamples: int
    seed: int = 0


class Frame(NamedTuple):
    """Input of one frame: its source, or what was read of it; HAADF image, mask, background."""

    source: Any
    haadf: Any
    mask: Any = None
    background: Any = None


class FittedFrame(NamedTuple):
    """Axes and metadata of the fused maps as dictionaries, and arrays.

    They are the maps (n, ny, nx), their standard errors if asked for, and the measured maps and image (ny, nx).
    ``bootstrap`` are the bootstrap replicates behind the errors, until they are written.
    """

    axes: list
    metadata: dict
    maps: np.ndarray
    errors: np.ndarray | None
    measured: np.ndarray
    haadf: np.ndarray
    bootstrap: Any = None

    def arrays(self):
        """The arrays by name."""
        return {name: getattr(self, name) for name in ARRAYS if getattr(self, name) is not None}

    def without_arrays(self):
        """The same with empty arrays of these dtypes and numbers of dimensions."""
        return self._replace(**{name: array[..., :0] for name, array in self.arrays().items()})


class Writers(NamedTuple):
    """Functions of the number in a block and a :class:`FittedFrame`: they write its arrays and bootstrap replicates.

    The second returns the frame without what it could write. None returns them.
    """

    arrays: Any = None
    bootstrap: Any = None


ARRAYS = ("maps", "errors", "measured", "haadf")


class FailedFrame(NamedTuple):
    """Why there are no fused maps of a frame, or tile."""

    sentence: str

    @classmethod
    def of(cls, error: Exception):
        """By an exception, which may have no text."""
        return cls(str(error) or type(error).__name__)


INTERRUPTED = FailedFrame("Ctrl-C came first.")


def refuse_none(found, is_complete, noun):
    """Raise where no frame, or tile, was fused: KeyboardInterrupt where that ended the call, else ValueError."""
    if all(isinstance(one, FailedFrame) for one in found):
        if not is_complete:
            raise KeyboardInterrupt
        raise ValueError(f"No {noun} can be fused. Of the first one: {found[0].sentence}")


def fit_frames(block, call, selection, num_workers, write):
    """Fit some frames.

    Parameters
    ----------
    block : Block
        The frames.
    call : Call
        What is the same for all.
    selection
        How the settings of the automatic method were chosen for all frames; None where each has its own.
    num_workers
        Threads.
    write : Writers
        Of what is not returned.

    Returns
    -------
    list of FittedFrame and FailedFrame
    """
    found: list = []
    for number, frame in enumerate(read_frames(block.frames, call)):
        try:
            found.append(written(fit_frame(frame, call, selection, num_workers), number, write))
        except KeyboardInterrupt:  # in the main thread; what is done is kept
            return found + [INTERRUPTED] * (len(block.frames) - len(found))
        # whatever it is, the other frames are fitted
        except Exception as error:
            found.append(FailedFrame.of(error))
    return found


def written(fitted, number, write):
    """A fitted frame without the arrays that were written."""
    if isinstance(fitted, FailedFrame):
        return fitted
    if write.arrays is not None:
        write.arrays(number, fitted)
        fitted = fitted.without_arrays()
    return fitted if write.bootstrap is None else write.bootstrap(number, fitted)


def fit_frame(frame, call, selection, num_workers):
    """The :class:`FittedFrame` of a frame that was read."""
    with unreported():
        model = model_of(frame, call)
        if selection is not None:
            model._method = AutoAsSelected(selection)
        model.fit(settings=call.settings, show_progressbar=False, num_workers=num_workers)
        if model._fitted().result.reason is StopReason.INTERRUPTED:
            raise KeyboardInterrupt
        if call.n_resamples:
            options = {"seed": call.seed, "show_progressbar": False, "num_workers": num_workers}
            model.standard_errors(call.n_resamples, **options)
        return fitted_frame(model)


def fitted_frame(model, n_together=1):
    """The :class:`FittedFrame` of a fitted model, one of so many that were fitted together."""
    signal = model._signal()
    errors, kept = None, signal._errors
    if kept is not None:
        errors, kept = signal.standard_errors().data, kept.bootstrap
    axes, metadata = signal.axes_manager._get_axes_dicts(), signal.metadata.as_dictionary()
    measured = model._measured
    if n_together > 1:
        metadata["Fusion"]["n_together"] = n_together
    # a stack has only the maps and the image of a frame
    if model._mask is not None or measured.background is not None or measured.variance is not None:
        metadata["Fusion"]["not_kept"] = "the mask or the noise of its maps"
    return FittedFrame(axes, metadata, signal.data, errors, model.maps.data, model.haadf.data, kept)


def model_of(frame, call):
    """The model of a frame that was read; the exception of reading it is raised here."""
    if isinstance(frame.source, Exception):
        raise frame.source
    background = frame.background if are_numbers(frame.background) else None  # others were read with the maps
    return FusedMultiModal(
        *(frame.haadf, frame.source),
        method=call.method,
        background=background,
        mask=frame.mask,
        register=call.register,
    )


def refuse_model_of_spectra(what):
    """ValueError for ``lines="model"`` of what it is not for."""
    raise ValueError(f"lines is 'model', which is for one scan in memory, not for {what}: pass lines='windows'.")


def refuse_several(several: bool, what: str) -> None:
    """Raise ValueError for several images, where `what` is fused with one."""
    if several:
        raise ValueError(f"{what} is fused with one image, and several were given: pass the HAADF image alone.")


def commonest(values):
    """The keys of the commonest of the values of a dictionary, the first of equals; none of an empty one."""
    kinds = list(values.values())
    most = max(kinds, key=kinds.count, default=None)
    return [key for key, value in values.items() if value == most]


# ---- reading ---------------------------------------------------------------------------------------------


def read_frames(frames, call):
    """Frames with their maps in memory, those of lazy data in one pass; with the exception where there are none."""
    read = [_read(frame, call) for frame in frames]
    good = [k for k, frame in enumerate(read) if isinstance(frame.source, SourceMaps)]
    try:
        sources = in_memory([read[k].source for k in good])
    except Exception:  # of some of them
        sources = [_or_failure(read[k].source) for k in good]
    found = dict(zip(good, sources, strict=True))
    return [frame._replace(source=found.get(k, frame.source)) for k, frame in enumerate(read)]


def _read(frame, call):
    if isinstance(frame.source, SourceMaps | Exception):
        return frame
    own = None if are_numbers(frame.background) else frame.background
    try:
        with unreported():
            source = read_source(frame.source, replace(call.request, background=own))
            # frames must not differ in the elements that are fused
            return frame._replace(source=replace(source, named_by_file=False))
    except Exception as error:
        return frame._replace(source=error)


def _or_failure(source):
    try:
        return in_memory([source])[0]
    except Exception as error:
        return error


# ---- between processes -----------------------------------------------------------------------------------


class Block:
    """Frames that are read together. Their signals are pickled as dictionaries, for HyperSpy's cannot be pickled."""

    def __init__(self, frames):
        self.frames = frames

    def __reduce__(self):
        return _unpacked, ([[_packed(value) for value in frame] for frame in self.frames],)


class _Packed(NamedTuple):
    cls: type
    content: dict


def _packed(value):
    return _through(value, lambda v: hasattr(v, "_to_dictionary"), lambda s: _Packed(type(s), s._to_dictionary()))


def _unpacked(frames):
    signal = lambda packed: packed.cls(**packed.content)  # noqa: E731
    return Block([Frame(*(_through(v, lambda v: isinstance(v, _Packed), signal) for v in frame)) for frame in frames])


def _through(value, is_meant, change):
    """Change what is meant in lists and dictionaries."""
    if is_meant(value):
        return change(value)
    if isinstance(value, dict):
        return {key: _through(one, is_meant, change) for key, one in value.items()}
    return [_through(one, is_meant, change) for one in value] if isinstance(value, list) else value
