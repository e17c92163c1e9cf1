"""The spectrum image and the elastic image of one scan, among all that an instrument's file holds."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from functools import reduce
from numbers import Integral
from typing import Any, NoReturn

import numpy as np

from hyperspy_fusion.grid.axes import (
    SAME_SCAN_RTOL,
    SILENT_PIXELS,
    STACK_AXES,
    begins_elsewhere,
    capital,
    frames_problem,
    is_calibrated,
    layout,
    order_problem,
    placements,
    scan_axes,
)
from hyperspy_fusion.grid.images import check_signal
from hyperspy_fusion.identify.detectors import (
    DETECTORS,
    Detector,
    detector_of,
    is_detector_title,
    is_survey,
    names_no_detector,
)
from hyperspy_fusion.identify.map_identity import identify_map, title_of
from hyperspy_fusion.io.files import load_signals
from hyperspy_fusion.maps.sources import element_maps

_logger = logging.getLogger(__name__)

# where readers keep the name of a detector, besides the title
_DETECTOR_NAMES = ("DetectorMetadata.DetectorName", "BinaryResult.Detector")
_EDS, _EELS, _SPECTRA = "EDS spectrum image", "EELS spectrum image", "spectrum image"
_STACK, _MAP, _IMAGE = "stack of maps", "element map", "image"
# frames kept or energies first: to be put in order before
_UNORDERED = "spectra in another order"
# the kinds that can be fused, the first that there is; maps only where there are no spectra
_SOURCES = ((_EDS, _EELS), (_SPECTRA,), (_STACK,), (_MAP,))


@dataclass(frozen=True)
class ChosenSignals:
    """What was chosen of a file: ``haadf, source = scan("scan.emd")``.

    Attributes
    ----------
    haadf : BaseSignal
        The elastic image.
    source : BaseSignal, ElementMaps or SeveralSources
        What to fuse with it, by ``source.fuse(haadf)``: a spectrum image, maps, or a list of those asked for.
    reasons : tuple of str
        Why, a sentence for each choice.
    """

    haadf: Any
    source: Any
    reasons: tuple = field(repr=False)

    def __iter__(self):
        return iter((self.haadf, self.source))

    @property
    def sentence(self) -> str:
        """All reasons."""
        return " ".join(self.reasons)


class SeveralSources(list):
    """Spectra and maps of one scan, of which :func:`hyperspy_fusion.element_maps` makes one set of maps."""

    def fuse(self, haadf: Any, **options: Any) -> Any:
        """As :func:`hyperspy_fusion.fuse` with this list as its first argument."""
        from hyperspy.signal import BaseSignal

        return getattr(BaseSignal, "fuse")(self, haadf, **options)  # noqa: B009, the package gives it to the class


def scan(
    signals_or_path: Any,
    haadf: Any = None,
    spectrum: Any = None,
    *,
    lazy: bool = False,
    file_format: str | None = None,
) -> ChosenSignals:
    """
    Find the spectrum image and the elastic image of the same scan.

    The spectrum image is EDS or EELS. EDS detectors that one file has apart are added up, unless their sum is among
    them, which is known by its counts. Of a low-loss and a core-loss scan the latter is taken. Where there are no
    spectra, a stack of maps, or the maps of known elements, take their place. The elastic image is that of a
    HAADF detector, else of one for backscattered electrons, MAADF or ADF, known by its title or by the detector in
    its metadata; on the same pixels if there is one, else of the same field of view; surveys are left out. Among
    element maps, the only other image is taken.

    Parameters
    ----------
    signals_or_path : list of BaseSignal, str, path or list of those
        What ``hyperspy.api.load`` returns of a file, or the file, or several. Nothing of it is changed.
    haadf, spectrum : int, str or BaseSignal, optional
        Which one to take: its number in the list, its title, or itself. `spectrum` may be a list of them: EDS
        detectors are added up, EDS and EELS come as a list, of which :func:`hyperspy_fusion.element_maps` makes
        one set of maps.
    lazy : bool
        How to load files.
    file_format : str, optional
        Name of the format of files whose ending is that of several, such as "JEOL" for .img or "HSPY" for .hdf5.

    Returns
    -------
    ChosenSignals
        Unpacks as ``haadf, source``, for ``source.fuse(haadf)``. Its `sentence`, which is logged too, has what was
        chosen and why.

    Raises
    ------
    ValueError
        Several fit, or none: with the numbered list of the candidates. A file that HyperSpy cannot read.
    FileNotFoundError
        There is no such file.

    Examples
    --------
    >>> import hyperspy_fusion as hf
    >>> maps, haadf = hf.data.core_shell().signals()
    >>> image, source = hf.scan([haadf, *maps])
    >>> image
    <Signal2D, title: HAADF, dimensions: (|128, 128)>
    """
    candidates = [_Candidate.of(i, signal) for i, signal in enumerate(_signals(signals_or_path, lazy, file_format))]
    if not candidates:
        raise ValueError("There are no signals to find a scan in: pass a file, or what hyperspy.api.load returns.")
    image = None if haadf is None else _asked(haadf, candidates, "haadf")
    sources, why = _sources(candidates, spectrum, image)
    if image is None:
        image, because = _elastic_image(candidates, sources[0].axes)
    else:
        because = f"{image.name} is the elastic image, as asked."
    found = ChosenSignals(image.signal, *_as_one(sources, why, because, candidates))
    is_unknown = haadf is None and image.detector is None
    _logger.log(logging.WARNING if is_unknown else logging.INFO, found.sentence)
    return found


# ---- candidates ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    """A signal with what its choice hangs on; `axes` of y and x of the scan, None for what is no scan."""

    number: int
    signal: Any
    title: str
    kind: str
    axes: list | None
    detector: Detector | None

    @classmethod
    def of(cls, number, signal):
        check_signal(signal)
        title = title_of(signal.metadata)
        names = [str(signal.original_metadata.get_item(key, "")) for key in _DETECTOR_NAMES]
        detector = detector_of(title, *names)
        kind = _kind(signal, title, detector)
        axes = scan_axes(signal) if kind not in ("", _UNORDERED) else None
        return cls(number, signal, title, kind, axes, detector)

    @property
    def name(self):
        return f"{self.title!r} ({self.number})"

    def __str__(self):
        what = self.kind or "neither a scan nor an image"
        if self.axes is None:
            return f"{self.number}: {self.title!r}, {what}, {self.signal.axes_manager.shape}"
        y, x = self.axes
        pixel = f"{x['scale']:.4g} {x['units']}" if is_calibrated(x) else "unknown size"
        begins = f", from ({x['offset']:.4g}, {y['offset']:.4g})" if x["offset"] or y["offset"] else ""
        return f"{self.number}: {self.title!r}, {what}, {x['size']} x {y['size']} pixels (x, y) of {pixel}{begins}"


def _kind(signal, title, detector):
    """What a signal is, "" for what has no part in a fusion."""
    manager, of_axes = signal.axes_manager, layout(signal)
    axes = manager.navigation_axes + manager.signal_axes
    if signal.ragged or signal.data.dtype.kind not in "biuf" or not all(axis.is_uniform for axis in axes):
        return ""
    if order_problem(signal):
        return _UNORDERED
    if of_axes == "stack":
        named = manager.navigation_axes[0].name in STACK_AXES
        return _STACK if named or signal.original_metadata.has_item("stack_elements") else ""
    if of_axes == "spectra":
        kind = signal._signal_type
        return _EDS if kind.startswith("EDS") else _EELS if kind == "EELS" else _SPECTRA
    if not of_axes:
        return ""
    is_map = detector is None and not is_detector_title(title) and identify_map(signal).element is not None
    return _MAP if is_map else _IMAGE


def _signals(source, lazy, file_format):
    """The signals of a file, or of several, or those given."""
    if isinstance(source, list | tuple):
        return [signal for one in source for signal in _signals(one, lazy, file_format)]
    if isinstance(source, str | os.PathLike):
        return load_signals(source, lazy=lazy, file_format=file_format)
    return [source]


def _asked(hint, candidates, keyword):
    """The candidate that is meant by a number, a title or a signal."""
    if isinstance(hint, Integral) and not isinstance(hint, bool):
        found = [c for c in candidates if c.number == hint]
    elif isinstance(hint, str):
        found = [c for c in candidates if c.title == hint]
        found = found or [c for c in candidates if c.title.strip().lower() == hint.strip().lower()]
    else:
        check_signal(hint)
        found = [c for c in candidates if c.signal is hint] or [_Candidate.of(len(candidates), hint)]
    if len(found) == 1:
        return found[0]
    why = f"{len(found)} signals have the title {hint!r}" if found else f"no signal has the title or number {hint!r}"
    _refuse(why, found or candidates, keyword)


def _refuse(why: str, candidates: list, keyword: str) -> NoReturn:
    listed = "\n".join(f"  {candidate}" for candidate in candidates)
    of = "one, or of several in a list," if keyword == "spectrum" else "one"
    raise ValueError(f"{capital(why)}: pass the number or the title of {of} as {keyword}=. There are\n{listed}")


# ---- what to fuse --------------------------------------------------------------------------------


def _sources(candidates, hint, image):
    """Candidates that together are what to fuse, and why."""
    if isinstance(hint, list | tuple):
        asked = [_asked(one, candidates, "spectrum") for one in hint]
        if not asked:
            raise ValueError("spectrum=[] chooses nothing: name one by its number or title, or leave it out.")
        return asked, "as asked"
    if hint is not None:
        return [_asked(hint, candidates, "spectrum")], "as asked"
    for kinds in _SOURCES:
        found = [c for c in candidates if c.kind in kinds and c is not image]
        if image is not None and image.axes is not None:
            found = [c for c in found if _relation(c.axes, image.axes)] or found
        if found:
            return _of_one_kind(found)
        # rather than the maps of the vendor
        if kinds == (_SPECTRA,) and (unordered := [c for c in candidates if c.kind == _UNORDERED]):
            raise ValueError(order_problem(unordered[0].signal))
    _refuse("there is no spectrum image and no element map", candidates, "spectrum")


def _of_one_kind(found):
    kind = found[0].kind
    if kind == _MAP:
        _refuse_other_grids(found)
        if len({identify_map(c.signal).element for c in found}) < len(found):
            _refuse("there are several maps of one element", found, "spectrum")
        return found, "the images of known elements"
    if len(found) == 1:
        return found, f"the only {kind}"
    if any(c.kind != kind for c in found):
        _refuse("there are EDS and EELS spectra", found, "spectrum")
    if kind == _EDS:
        return _detectors(found)
    if kind != _EELS:
        _refuse(f"there are {len(found)} of the kind {kind}", found, "spectrum")
    axes = [c.signal.axes_manager.signal_axes[0] for c in found]
    core = [c for c, axis in zip(found, axes, strict=True) if not axis.low_value <= 0 <= axis.high_value]
    if len(core) != 1:
        _refuse(f"there are {len(core) or len(found)} EELS spectrum images", core or found, "spectrum")
    return core, "the only EELS spectrum image without the zero-loss peak"


def _refuse_other_grids(found):
    if any(_relation(found[0].axes, c.axes) != "pixels" for c in found[1:]):
        _refuse("the candidates are not on the same pixels", found, "spectrum")


def _detectors(found):
    """EDS spectrum images of one scan: their sum, if it is one of them, else all."""
    _refuse_other_grids(found)
    if len({_acquisition(c.signal) for c in found}) > 1:
        _refuse("the EDS spectrum images are of several acquisitions", found, "spectrum")
    # counts of all pixels per channel, exact for integers
    navigation = [tuple(a.index_in_array for a in c.signal.axes_manager.navigation_axes) for c in found]
    spectra = [np.asarray(c.signal.data.sum(axis=axes)) for c, axes in zip(found, navigation, strict=True)]
    for i, own in enumerate(spectra):
        same = [c for c, other in zip(found, spectra, strict=True) if np.array_equal(own, other)]
        if len(same) > 1:
            _refuse("these EDS spectrum images hold the same counts", same, "spectrum")
        if np.array_equal(own, sum(spectra[:i] + spectra[i + 1 :])):
            return [found[i]], f"the sum of the other {len(found) - 1} EDS spectrum images, by its counts"
    return found, "EDS detectors of one scan, which have no sum among them"


def _acquisition(signal):
    """What detectors of one acquisition have in common."""
    energy = signal.axes_manager.signal_axes[0]
    keys = ("General.original_filename", "General.date", "General.time", "Signal.signal_type")
    named = tuple(str(signal.metadata.get_item(key, "")) for key in keys)
    return *named, energy.size, round(energy.scale, 9), round(energy.offset, 6), energy.units


def _as_one(sources, why, because, candidates):
    """What to fuse, as a signal or a list, and the reasons."""
    names, verb = ", ".join(c.name for c in sources), "is" if len(sources) == 1 else "are"
    reasons = [f"Of {len(candidates)} signals, {names} {verb} what to fuse: {why}."]
    if len(sources) == 1 and sources[0].kind != _MAP:
        source = sources[0].signal
    elif all(c.kind == _EDS for c in sources):
        _refuse_other_grids(sources)
        reasons.append(f"The counts of these {len(sources)} detectors were added up.")
        source = _added_up(sources)
    else:
        source = SeveralSources(c.signal for c in sources)
        if all(c.kind in (_MAP, _STACK) for c in sources):
            source = element_maps(source, allow_nan=True)
    return source, (*reasons, because)


def _added_up(sources):
    """One spectrum image of several, in a dtype that holds their sum."""
    first = sources[0].signal
    dtype = first.data.dtype
    if dtype.kind in "iu":
        dtype = np.dtype(f"{dtype.kind}{min(2 * dtype.itemsize, 8)}")
    total = first._deepcopy_with_new_data(reduce(np.add, (c.signal.data.astype(dtype) for c in sources)))
    total.metadata.set_item("General.title", f"Sum of {', '.join(c.title for c in sources)}")
    return total


def has_spectra(signals: Any) -> bool:
    """Whether there is a spectrum image or a stack of maps among `signals`."""
    return any(_Candidate.of(i, signal).kind not in ("", _MAP, _IMAGE) for i, signal in enumerate(signals))


# ---- the elastic image ---------------------------------------------------------------------------


def elastic_image(signals: Any, haadf: Any = None) -> Any:
    """The elastic image among `signals`; see `scan`."""
    candidates = [_Candidate.of(i, signal) for i, signal in enumerate(signals)]
    return (_elastic_image(candidates, None)[0] if haadf is None else _asked(haadf, candidates, "haadf")).signal


def _elastic_image(candidates, axes):
    """The candidate, and why."""
    images = [c for c in candidates if c.kind == _IMAGE]
    scanned = [c for c in images if not is_survey(c.title)]
    for detector in DETECTORS:
        for relation in ("pixels", "field"):
            found = [c for c in scanned if c.detector is detector and _relation(axes, c.axes) == relation]
            if len(found) > 1 and axes is not None:
                # those whose fields begin at the same place, as far as they are calibrated
                at_start = [all(abs(p.start) <= SILENT_PIXELS for p in placements(axes, c.axes)) for c in found]
                found = [c for c, is_there in zip(found, at_start, strict=True) if is_there] or found
            if len(found) > 1:
                _refuse(f"{len(found)} images are of {detector.name} and fit the scan", found, "haadf")
            if found:
                return found[0], _why_elastic(found[0], relation, axes)
    maps = [c for c in candidates if c.kind in (_MAP, _STACK)]
    if maps and len(scanned) == 1 and names_no_detector(scanned[0].title):
        relation = _relation(axes or maps[0].axes, scanned[0].axes)
        if relation:
            return scanned[0], _why_elastic(scanned[0], relation, axes)
    for c in candidates:
        if c.detector is not None and layout(c.signal) == "stack" and c.kind != _STACK:
            raise ValueError(frames_problem(c.signal))
    where = "" if axes is None else f" of the scan's {axes[1]['size']} x {axes[0]['size']} pixels or field of view"
    _refuse(f"no image{where} is known to be of HAADF or another elastic detector", images or candidates, "haadf")


def _why_elastic(image, relation, axes):
    detector = image.detector
    where = "on the pixels of the scan" if relation == "pixels" else "of its field of view, on other pixels"
    why = "the only image that is no element map" if detector is None else f"{detector.name} by its name"
    sentence = f"{image.name} is the elastic image: {why}, and {where}"
    if axes is not None and begins_elsewhere(axes, image.axes):
        sentence += ", edge on edge although their offsets differ"
    if relation == "field":
        sentence += " (register='calibration' or 'shift' brings it to those of the maps)"
    if detector is None:
        return f"{sentence}. Nothing names its detector: check that it is HAADF."
    if detector is DETECTORS[0]:
        return f"{sentence}."
    remedy = "haadf_coefficients='fit'" if detector.gamma is None else f"z_exponent about {detector.gamma}"
    return f"{sentence}. It is no HAADF image: {remedy} of method='calibrated' suits it better."


def _relation(axes, other):
    """ "pixels" for the same ones, "field" for the same field of view on other pixels, "" for neither."""
    if axes is None:
        return "pixels"
    try:
        placed = placements(axes, other)
    except ValueError:
        return ""
    if all(a["size"] == b["size"] for a, b in zip(axes, other, strict=True)):
        return "pixels" if all(abs(p.step - 1) <= SAME_SCAN_RTOL for p in placed) else ""
    fields = [p.step * p.size / axis["size"] for p, axis in zip(placed, axes, strict=True)]
    return "field" if all(abs(field - 1) <= SAME_SCAN_RTOL for field in fields) else ""
