"""Frames of one scan, registered and added up: counts on whole pixels, images interpolated."""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np

from hyperspy_fusion.diagnostics import INFORMATION, NOTE, Diagnostic, report
from hyperspy_fusion.fusion.registration.drift import (
    APART,
    COUNTS,
    EMPTY,
    INCOMPLETE,
    UNLIKE,
    Drift,
    find_drift,
    spoilt_frames,
)
from hyperspy_fusion.fusion.registration.frame_sums import (
    CommonField,
    aligned_lazy_sum,
    aligned_mean,
    aligned_sparse_sum,
    aligned_sum,
    sparse_frames,
    sparse_totals,
)
from hyperspy_fusion.fusion.terms.haadf_model import saturated
from hyperspy_fusion.grid.axes import (
    STACK_AXES,
    Axes,
    axis_dicts,
    check_same_scan,
    check_same_shape,
    is_calibrated,
    spatial_axes,
)
from hyperspy_fusion.grid.images import check_real, check_signal, nan_pixels
from hyperspy_fusion.results import plot
from hyperspy_fusion.results.figures import saved

_logger = logging.getLogger(__name__)

# sentence for each reason to leave a frame out
_REASONS = {
    EMPTY: "empty, with no value other than 0",
    INCOMPLETE: "incomplete, with rows that have no data",
    COUNTS: "of a total intensity far off that of the others, as with a blanked beam",
    UNLIKE: "not like the others",
    APART: "so far from the others that the common field would lose more than they add",
}
_IMAGE_OF_THE_SCAN = (
    "The image was recorded over all frames, which drifted, and is cropped like the first frame: "
    "`fuse(..., register='shift')` finds its place."
)
# part of the field below which the loss is reported
_MUCH_OF_THE_FIELD = 0.8


def sum_frames(spectra: Any, images: Any = None, *, show_progressbar: bool | None = None) -> tuple[Any, Any]:
    """
    Add up the frames of one scan after they are registered to each other.

    The drift is found from the images of the frames, to a part of a pixel. Counts are moved by whole pixels and added
    up, so that they stay counts. The images are interpolated, and their mean lies on the same pixels. Both are cropped
    to the field that all frames share. Frames that are incomplete, or not like the others, are left out.

    Parameters
    ----------
    spectra : BaseSignal, or list or dict of BaseSignal
        Frames of a spectrum image, ``(x, y, t|E)``, in memory or lazy, or of maps, ``(t|x, y)`` for each element or
        ``(element, t|x, y)``. Several signals have the same frames. Not changed.
    images : BaseSignal, optional
        HAADF or STEM images of the same frames, ``(t|x, y)`` or ``(x, y, t|)``. With None the drift is found from the
        total counts. With one image of the scan, ``(|x, y)``, too: this image is then cropped like the first frame, and
        ``fuse(..., register="shift")`` finds its place.
    show_progressbar : bool, optional
        For lazy spectra. None follows HyperSpy's preference.

    Returns
    -------
    spectra : BaseSignal, or list or dict of BaseSignal
        The sum, without the axis of frames, on the pixels of the first frame in use; lazy where the frames are. Counts
        have an integer type that holds them. ``metadata.Frames`` has the numbers of frames, those left out with the
        reason, and the drift in pixels and in the units of the axes.
    image : Signal2D or None
        The mean of the images, None without images.

    Raises
    ------
    ValueError
        There is no axis of frames, the axes differ, or the frames cannot be registered.

    Notes
    -----
    Lazy spectra are read once for the total counts of each frame, and once more when the sum is computed, one chunk
    at a time.

    Examples
    --------
    >>> import hyperspy.api as hs, hyperspy_fusion as hf
    >>> maps, haadf = hf.data.core_shell((64, 64), counts=1).signals()
    >>> frames = hs.stack([maps[1]] * 3, show_progressbar=False), hs.stack([haadf] * 3, show_progressbar=False)
    >>> hf.sum_frames(*frames)
    (<Signal2D, title: Stack of Fe, dimensions: (|64, 64)>, <Signal2D, title: Stack of HAADF, dimensions: (|64, 64)>)
    """
    sources = [_Frames.of(signal) for signal in _listed(spectra)]
    if not sources:
        raise ValueError("There are no spectra or maps whose frames could be added up: pass at least one.")
    first = sources[0]
    for other in sources[1:]:
        _check_frames(first, other, "the first signal", f"{other.signal}")
    pictures = None if images is None else _images_of(images, first)
    counts = sum(source.totals(show_progressbar) for source in sources)
    of_frames = None if pictures is None or pictures.n is None else pictures.array
    drift = _registered(of_frames, counts, first)
    field = CommonField.of(drift, first.shape)
    diagnostics = _diagnostics(drift, field, first)
    if pictures is not None and pictures.n is None and field.offsets[field.used].any():
        diagnostics.append(Diagnostic("image-of-the-scan", _IMAGE_OF_THE_SCAN))
    node = _metadata(drift, field, first, counts, diagnostics)
    summed = [source.summed(field, counts) for source in sources]
    image = None if pictures is None else pictures.mean(field)
    for signal in [*summed, *([] if image is None else [image])]:
        signal.metadata.set_item("Frames", deepcopy(node))
    _logger.info(node["sentence"])
    report(diagnostics)
    return _as_given(spectra, summed), image


def plot_drift(signal: Any, *, save: Any = None) -> Any:
    """
    Plot the drift of the frames of which a signal is the sum.

    Parameters
    ----------
    signal : BaseSignal
        Of :func:`hyperspy_fusion.sum_frames`.
    save : str or pathlib.Path, optional
        File to write the figure to, such as "drift.png".

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        The signal is no sum of frames.
    """
    check_signal(signal)
    if not signal.metadata.has_item("Frames.drift_y"):
        raise ValueError(f"{signal} is no sum of frames: pass one that hyperspy_fusion.sum_frames returned.")
    node = signal.metadata.Frames
    shifts, errors = (
        np.stack([np.asarray(node[f"{name}_{axis}"]) for axis in "yx"]) for name in ("drift", "drift_error")
    )
    return saved(plot.plot_drift(shifts, errors, np.asarray(node.dropped, int)), save)


def _listed(spectra):
    if isinstance(spectra, dict):
        return list(spectra.values())
    return list(spectra) if isinstance(spectra, list | tuple) else [spectra]


def _as_given(spectra, summed):
    if isinstance(spectra, dict):
        return dict(zip(spectra, summed, strict=True))
    return summed if isinstance(spectra, list | tuple) else summed[0]


# ---- signals and their frames --------------------------------------------------------------------


class _Frames(NamedTuple):
    """A signal of `n` frames, None for one image, its axes of frames and of y and x, and `axes` as dictionaries."""

    signal: Any
    n: int | None
    frame_axis: Any
    scan_axes: Any
    axes: Axes

    @classmethod
    def of(cls, signal, one_image=False):
        """ValueError unless it has frames of a scan, or is one image where that is allowed."""
        check_signal(signal)
        check_real(signal)
        manager = signal.axes_manager
        frame, scan = _axes_of(manager)
        if frame is None and one_image and (manager.navigation_dimension + manager.signal_dimension) == 2:
            axes = manager.signal_axes or manager.navigation_axes
            return cls(signal, None, None, _in_order(axes), spatial_axes(signal))
        if frame is None:
            raise ValueError(
                f"{signal} has no axis of frames: expected spectra (x, y, t|E), maps or images (t|x, y); frames in a "
                "list are joined by `hyperspy.api.stack`."
            )
        if not frame.size:
            raise ValueError(f"{signal} has no complete frame: load the file with only_valid_data=False to see them.")
        return cls(signal, frame.size, frame, scan, axis_dicts(scan, signal))

    @property
    def shape(self):
        return tuple(axis["size"] for axis in self.axes)

    @property
    def array(self):
        """(t, y, x, ...), or (1, y, x) of one image; a view of the data."""
        chosen = [axis.index_in_array for axis in ([self.frame_axis] if self.n else []) + self.scan_axes]
        data = self.signal.data
        if chosen != list(range(len(chosen))):
            data = np.moveaxis(data, chosen, range(len(chosen)))
        return data if self.n else data[None]

    @property
    def events(self):
        """The sparse array (t, y, x, ...) behind lazy spectra, None where there is none."""
        return sparse_frames(self.array) if self.signal._lazy else None

    def totals(self, show_progressbar):
        """Counts (t, y, x) of all channels or maps; NaN counts nothing."""
        from hyperspy.signals import BaseSignal

        if self.events is not None:
            return sparse_totals(self.events)
        array = self.array
        over = tuple(range(3, array.ndim))
        total = np.nansum(array, axis=over) if array.dtype.kind == "f" else array.sum(axis=over)
        if self.signal._lazy:
            lazy = BaseSignal(total).as_lazy()
            lazy.compute(close_file=False, show_progressbar=show_progressbar)
            total = lazy.data
        return np.asarray(total, dtype=None if array.dtype.kind == "f" else np.int64)

    def summed(self, field, counts):
        """The signal of the sum over the common field."""
        array, used = self.array, set(field.used.tolist())
        offsets = [tuple(map(int, by)) if t in used else None for t, by in enumerate(field.offsets)]
        dtype = _dtype_of_sum(array.dtype, counts, field, offsets)
        sum_of = aligned_lazy_sum if self.signal._lazy else aligned_sum
        if self.events is not None:
            array, sum_of = self.events, aligned_sparse_sum
        total = sum_of(array, offsets, field.start, field.shape, dtype)
        places = sorted(a.index_in_array - (a.index_in_array > self.frame_axis.index_in_array) for a in self.scan_axes)
        return self._with_data(np.moveaxis(total, (0, 1), places), field)

    def mean(self, field):
        """The signal of the mean of the images over the common field, a Signal2D in memory."""
        if self.n:
            mean = aligned_mean(np.asarray(self.array), list(map(saturated, self.array)), field)
        else:
            (y, x), array = map(slice, field.start, field.stop), self.array[0]
            mean = np.asarray(array[y, x]).copy()
        result = self._with_data(mean, field)
        if result._lazy:
            result._lazy = False
            result._assign_subclass()
        return result if result.axes_manager.signal_dimension == 2 else result.transpose(signal_axes=2)

    def _with_data(self, data, field):
        """A signal like one frame, cropped to the field, with other data."""
        cut: dict = {
            axis.index_in_array: slice(int(a), int(b))
            for axis, a, b in zip(self.scan_axes, field.start, field.stop, strict=True)
        }
        if self.n:
            cut[self.frame_axis.index_in_array] = 0
        manager = self.signal.axes_manager
        result = self.signal
        for slicer, axes in (("inav", manager.navigation_axes), ("isig", manager.signal_axes)):
            keys = tuple(cut.get(axis.index_in_array, slice(None)) for axis in axes)
            result = getattr(result, slicer)[keys] if keys else result
        return result._deepcopy_with_new_data(data)


def _in_order(axes):
    return sorted(axes, key=lambda axis: axis.index_in_array)


def _axes_of(manager):
    """The axis of frames, None where there is none, and those of y and x."""
    navigation = _in_order(manager.navigation_axes)
    if manager.signal_dimension == 2:
        # alone, an axis that hyperspy.api.stack has named is of frames
        of_elements = STACK_AXES if len(navigation) == 2 else STACK_AXES[:1]
        free = [axis for axis in navigation if axis.name not in of_elements]
        return free[0] if len(free) == 1 and len(navigation) < 3 else None, _in_order(manager.signal_axes)
    if len(navigation) == 3 and manager.signal_dimension < 2:
        scan = [axis for axis in navigation if axis.name in ("x", "y")]
        scan = scan if len(scan) == 2 else navigation[1:]
        (frame,) = (axis for axis in navigation if axis not in scan)
        return frame if frame.name not in STACK_AXES else None, scan
    return None, []


def _images_of(images, first):
    """The images, or the one image, of the frames; ValueError where they are of others."""
    pictures = _Frames.of(images, one_image=True)
    _check_frames(first, pictures, "the spectra", "the stack of images")
    if pictures.array.ndim != 3:
        raise ValueError(f"{images} has several images for each frame: expected (t|x, y), one for each frame.")
    if pictures.signal._lazy:
        signal = pictures.signal.deepcopy()
        signal.compute(close_file=False, show_progressbar=False)
        pictures = _Frames.of(signal, one_image=True)
    return pictures


def _check_frames(first, other, name, other_name):
    """ValueError unless two signals have the same number of frames and the same pixels."""
    check_same_shape(first.axes, other.axes, name, other_name, by_keyword=False)
    check_same_scan(first.axes, other.axes, maps=name, haadf=other_name)
    if other.n not in (None, first.n):
        raise ValueError(
            f"{name.capitalize()} has {first.n} frames and {other_name} {other.n}, so that they cannot be compared: "
            "pass those of the same frames, chosen by `.inav[...]`."
        )


# ---- drift and sums ------------------------------------------------------------------------------


def _registered(images, counts, first) -> Drift:
    """The drift, by the images (t, y, x), or with None by the totals (t, y, x), without the frames that are spoilt."""
    reasons = spoilt_frames(counts)
    if images is not None:
        images = nan_pixels(images)
        reasons = spoilt_frames(images) | reasons
    drift = find_drift(counts if images is None else images, reasons)
    if drift.is_found:
        return drift
    by, remedy = ("images", "")
    if images is None:
        by, remedy = "counts", "pass the HAADF images of the frames as images=, or "
    axis = first.frame_axis
    named = repr(axis.name) if isinstance(axis.name, str) else axis.index_in_axes_manager
    raise ValueError(
        f"The {first.n} frames cannot be registered by their {by}, which have too little structure in common: {remedy}"
        f"add the frames up by `s.sum({named})` if the scan did not drift."
    )


def _dtype_of_sum(dtype, counts, field, offsets):
    """The smallest type of integers that holds the sum, of which no channel is above the total counts of its pixel."""
    if dtype.kind == "f":
        return dtype
    if dtype.kind == "i":
        return np.min_scalar_type(max(-len(offsets) * (np.iinfo(dtype).max + 1), np.iinfo(np.int64).min))
    most = aligned_sum(counts, offsets, field.start, field.shape, counts.dtype).max(initial=0)
    return np.min_scalar_type(int(most))


# ---- in words ------------------------------------------------------------------------------------


def _diagnostics(drift, field, first):
    """Codes ``"frames-empty"``, ``"frames-incomplete"`` and those of the other reasons, and others."""
    found = []
    for reason, words in _REASONS.items():
        if frames := [t for t, why in drift.reasons.items() if why == reason]:
            sentence = f"{_numbers(frames)} of {first.n} left out: {words}."
            # a scan usually ends within a frame
            severity = INFORMATION if reason == INCOMPLETE and frames == [first.n - 1] else NOTE
            found.append(Diagnostic(f"frames-{reason}", sentence, severity))
    if len(drift.undetermined):
        y, x = drift.undetermined[0]
        sentence = (
            f"The drift along ({y:+.2f}, {x:+.2f}) (y, x) cannot be measured, for lack of structure: in this direction "
            "the frames were not moved."
        )
        found.append(Diagnostic("drift-undetermined", sentence))
    part = np.prod(field.shape) / np.prod(first.shape)
    if part < _MUCH_OF_THE_FIELD:
        sentence = (
            f"The frames share {part:.0%} of the field, and the rest was cut off: sum fewer frames for a larger one."
        )
        found.append(Diagnostic("frames-share-little", sentence))
    if not all(map(is_calibrated, first.axes)):
        sentence = "The scan has no calibration (`s.axes_manager`): the drift is in pixels only."
        found.append(Diagnostic("frames-uncalibrated", sentence))
    return found


def _numbers(frames):
    if len(frames) == 1:
        return f"Frame {frames[0]}"
    return f"Frames {', '.join(map(str, frames[:-1]))} and {frames[-1]}"


def _metadata(drift, field, first, counts, diagnostics):
    """Flat arrays and Python scalars: numbers of frames, the reasons to drop them, and the drift of each frame."""
    node: dict = {"number": len(drift.used), "total": first.n}
    node |= {"dropped": np.array(list(drift.reasons), dtype=int)}
    node |= {"reasons": [_REASONS[reason] for reason in drift.reasons.values()]}
    for i, name in enumerate("yx"):
        axis, shifts = first.axes[i], drift.shifts[:, i]
        node |= {
            f"drift_{name}": shifts,
            f"drift_error_{name}": drift.errors[:, i],
            f"offset_{name}": field.offsets[:, i],
        }
        if is_calibrated(axis):
            node |= {f"drift_{name}_calibrated": shifts * axis["scale"], f"drift_{name}_units": str(axis["units"])}
    offsets = [by if t in field.used else None for t, by in enumerate(field.offsets)]
    inside = aligned_sum(counts, offsets, field.start, field.shape, counts.dtype).sum()
    node["counts_part"] = float(inside / (counts[field.used].sum() or 1))
    node["sentence"] = _in_words(drift, field, first, node["counts_part"])
    node["diagnostics"] = [d.sentence for d in diagnostics]
    return node


def _in_words(drift, field, first, part):
    shifts = drift.shifts[drift.used]
    span = np.ptp(shifts, axis=0)
    words = " and ".join(f"{n:.2f}" for n in span)
    if all(map(is_calibrated, first.axes)):
        sizes = (f"{abs(n * axis['scale']):.3g} {axis['units']}" for n, axis in zip(span, first.axes, strict=True))
        words += f" pixels ({' and '.join(sizes)})"
    else:
        words += " pixels"
    return (
        f"{len(drift.used)} of {first.n} frames were added up, which drifted over {words} along y and x; "
        f"their common field has {field.shape[1]} x {field.shape[0]} pixels (x, y) and {part:.1%} of their counts."
    )
