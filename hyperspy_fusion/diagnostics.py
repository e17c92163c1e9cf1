"""Diagnostics: what is doubtful about the input or the result of a fit, and the one route by which it is reported.

Whoever finds something returns :class:`Diagnostic` objects. Their severity and headline follow from their code, by the
list below. Only :func:`report` and :func:`report_fit` log them, through HyperSpy's logger.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

_logger = logging.getLogger("hyperspy_fusion")
# so that hs.set_log_level, and the handler of HyperSpy, are ours too
_logger.parent = logging.getLogger("hyperspy")

SERIOUS, NOTE, INFORMATION = SEVERITIES = ("serious", "note", "information")
#: characters of a headline at most
LONGEST = 90
_is_quiet: ContextVar[bool] = ContextVar("_is_quiet", default=False)
_logged: set[str] = set()

# of each code the headline: what is wrong, and what to do; {} stands for the elements
_HEADLINES = {
    SERIOUS: {
        "background-window-beyond-onset": "Background window of {} holds its edge: end it before the onset.",
        "beam-energy-unknown": "Beam energy unknown, lines of {} uncertain: set it, or give xray_lines.",
        "composition-of-changed-totals": "Composition of maps whose totals changed ({}): use the measured maps.",
        "compositions": "The maps are compositions: fuse line intensities instead.",
        "counts-scale-unknown": "Counts scale of {} unknown: scale the map to counts.",
        "element-hidden": "Counts of {} are below errors of stronger lines: read no amounts.",
        "element-not-in-file": "{} not named by the file: check for a typo.",
        "errors-interrupted": "Standard errors incomplete, interrupted: fuse again to find them.",
        "errors-lost": "The maps changed since the fit: ask the result itself for errors.",
        "fit-among-counts": "Fitted intensities among counts ({}): make all maps in one way.",
        "fused-already": "The maps are fused already: pass the measured maps.",
        "haadf-unrelated": "The HAADF image does not follow the maps: check that it shows this scan.",
        "image-of-the-scan": "The image is cropped like the first frame: fuse with register='shift'.",
        "input-on-another-grid": "Measured input is on another grid and left out: pass it on that of the maps.",
        "interrupted": "The fit was interrupted: fit again to go on.",
        "line-of-no-element": "The spectra show a line that no map has: check for {}.",
        "lines-overlap": "Lines of others add counts to {}: try other xray_lines or lines='model'.",
        "map-contradicts-counts": "Fused map of {} contradicts its counts: lower lambda_reg, check background.",
        "mask-leaves-out-most": "The mask leaves out most pixels: check that True means left out.",
        "measured-maps-not-saved": "Measured maps are not known: pass maps=, or save(..., everything=True).",
        "modelled-haadf-left-out": "The modelled HAADF image is left out: use the result as it was fitted.",
        "name-conflicts": "The map named {} has other metadata: check the order of elements.",
        "no-haadf-model": "Image and maps have too little in common: check that both show one scan.",
        "noise-shared-by-neighbours": "Pixels of the maps share noise, as after smoothing: pass recorded counts.",
        "not-converged": "The fit has not converged: raise max_iter, or fit again to go on.",
        "not-settled": "The maps have not settled: raise max_iter, or fit again to go on.",
        "offset-differs": "Maps and image begin at different places: check that they show one area.",
        "other-edges-in-window": "Other edges lie in the windows of {}: map them too, or change the windows.",
        "pixel-size-differs": "Pixel sizes of maps and image differ: check that they are one scan.",
        "profile-beyond-maps": "The line leaves the maps: the profile is NaN there; move its ends.",
        "profile-not-measured": "The line crosses filled-in pixels of {}: no error covers them.",
        "quantities-differ": "The maps are of different quantities: pass maps of one quantity.",
        "region-chosen-by-map": "The region was chosen by its map of {}: fuse with errors=True.",
        "region-not-measured": "The region holds filled-in pixels of {}: leave them out.",
        "roi-beyond-maps": "The region leaves the maps: only the part inside is used.",
        "selection-interrupted": "The search was interrupted: fuse again for a complete one.",
        "shift-ambiguous": "Several shifts fit equally well: check the image at an edge or a defect.",
        "shift-differs": "The shift differs between parts of the field: check the scale of image and maps.",
        "smoothing-limited": "tv_iter limits the smoothing, not lambda_tv: raise tv_iter to smooth more.",
        "title-conflicts": "The title of the {} map names another element: pass elements=[...].",
        "total-not-kept": "Total of {} is not above 0: check the map, or leave the element out.",
        "totals-changed": "Totals of {} changed: read no amounts off these maps.",
        "unequal-units": "The maps have different units: pass counts, or haadf_coefficients='fit'.",
        "units-differ": "Units of maps and image cannot be compared: correct one of them.",
        "windows-share-channels": "Windows of {} share channels: try other xray_lines or lines='model'.",
    },
    NOTE: {
        "background-above-lines": "Background beside {} is above the line: check the windows.",
        "background-in-composition": "The per cent include background: fuse with background='windows'.",
        "background-in-maps": "Much of {} is background: fuse with background='windows' for amounts.",
        "background-not-used": "The published method ignores the background: use method='calibrated'.",
        "background-windows-hold-lines": "Background windows of {} hold lines: give others, or use lines='model'.",
        "constant-map": "{} constant and not fused: leave out of elements=[...].",
        "drift-undetermined": "The drift is not determined in one direction: check the sum of the frames.",
        "edge-errors-too-small": "Errors of regions of {} are up to twice too small: double them.",
        "element-not-shown": "Spectra show no counts of {}: leave out of elements=[...].",
        "elements-without-structure": "{} show only noise, not fused: name them by elements=[...] to fuse.",
        "frames-apart": "Frames far from the others were left out: sum those apart, if need be.",
        "frames-counts": "Frames of other intensity were left out: check the beam.",
        "frames-empty": "Empty frames were left out: check the file if there are many.",
        "frames-incomplete": "Incomplete frames were left out: check the file if there are many.",
        "frames-share-little": "The frames share little of the field: sum fewer frames for a larger one.",
        "frames-unlike": "Frames unlike the others were left out: check them by eye.",
        "haadf-constant": "The HAADF image has no contrast and is not used: pass one with contrast.",
        "haadf-covers-part": "The image covers a part of the maps: the rest is fused without it; crop it.",
        "haadf-poorly-explained": "The maps explain little of the image: check that it shows this scan.",
        "haadf-ramp-unsure": "The ramp of the image may be a wedge of the maps: try remove_ramp=False.",
        "hot-pixels": "The HAADF image has hot pixels, which are left out: mask any others.",
        "invalid-spectra": "Some spectra are invalid and left out: mask them to be sure.",
        "line-out-of-range": "Lines of {} are beyond the spectra: name other lines.",
        "little-overlap": "Probe positions overlap little: scan in smaller steps.",
        "map-without-structure": "{}: no structure beyond noise, use only the mean of the map.",
        "missing-haadf-pixels": "The HAADF image has missing pixels, which are left out: check the image.",
        "missing-map-pixels": "Missing pixels of {} were filled in: do not read them.",
        "negative-values": "{} with negative values: set the zero of the maps first.",
        "no-power-law": "Background of {} is no power law: compare with background='model'.",
        "noise-metadata-shape": "Noise metadata of other pixels are not used: give each map its own.",
        "patterns-incomplete": "Pixels missing in some patterns are left out of all: try engine='adam'.",
        "resolved-by-shape-only": "Lines of {} differ only in shape: trust the sum of their maps.",
        "saturated-haadf-pixels": "The HAADF image is saturated in places: record it at a lower gain.",
        "saturated-patterns": "Saturated detector pixels are left out: lower the dose.",
        "shift-undetermined": "The shift is not determined in one direction: check it by eye.",
        "spectra-not-as-modelled": "The model does not fit the spectra well: doubt weak elements near strong lines.",
        "spectra-without-counts": "Some spectra have no counts: mask them if they are dead.",
        "spikes": "Spikes in the maps: check the listed pixels, and mask them.",
        "stopped": "The callback stopped the fit: fit again to go on.",
        "too-few-counts-for-selection": "{}: too few counts to choose settings; leave out, or bin the scan.",
        "variance-missing": "Variance of {} missing, so none is used: give it to all maps.",
        "window-widths-differ": "Windows of the maps differ in width: use one integration_windows for all.",
    },
    INFORMATION: {
        "edge-on-edge": "Edges of {} overlap and were separated: compare with background='model'.",
        "frames-uncalibrated": "The scan has no calibration, the drift is in pixels: set s.axes_manager.",
        "guide-not-denoised": "The HAADF image was blurred, not denoised: guide_blur sets how much.",
        "haadf-blur-too-large": "haadf_blur is larger than the blur seen: compare with haadf_blur='fit'.",
        "haadf-blur-unsure": "The blur of the image is not determined, 0 is used: give it if known.",
        "haadf-coarser": "The HAADF image is coarser than the maps: record it as fine as these.",
        "haadf-coefficient-prior": "HAADF coefficient of {} by atomic number, not by data: nothing to do.",
        "haadf-coefficient-zero": "The image does not rise with {} and is not used for it: nothing to do.",
        "haadf-compressed": "The HAADF image is compressed, or an element is not mapped: see residual().",
        "haadf-unexplained": "The maps do not explain all of the HAADF image: see residual().",
        "region-smoothed": "{} smoothed in the region: take its values, not means of maps.",
        "objective-rises": "The objective rose at the end: raise eps or lower lambda_chem.",
    },
}
_BY_CODE = {code: (severity, line) for severity, lines in _HEADLINES.items() for code, line in lines.items()}


@dataclass(frozen=True)
class Diagnostic:
    """One finding.

    Attributes
    ----------
    code
        Short name in kebab case, the same for every sentence of its kind, as ``"totals-changed"``.
    sentence
        What is wrong and what to do, at most 30 words. ``{place}`` in it stands for the place.
    severity
        ``"serious"`` where maps or amounts mislead whoever does not know it, ``"note"`` where it limits what they can
        be used for, ``"information"`` where nothing need be done. By default that of the code.
    elements
        The elements that it is about; none for all.
    place
        Pixel (y, x) where it is seen best; None for none.
    image
        Name of the elastic image that it is about, for the headline.
    """

    code: str
    sentence: str
    severity: str = ""
    elements: tuple = ()
    place: tuple | None = None
    image: str = "HAADF"

    def __post_init__(self):
        if not self.severity:
            object.__setattr__(self, "severity", _BY_CODE.get(self.code, (NOTE, ""))[0])

    @property
    def headline(self) -> str:
        """What is wrong and what to do, in at most 90 characters."""
        line = _BY_CODE.get(self.code, ("", ""))[1]
        if not line:
            return textwrap.shorten(self.sentence, LONGEST, placeholder=" ...")
        room = LONGEST - len(named(line, self.image)) + 2
        return named(line.format(shortened(self.elements or ("the maps",), room)), self.image)

    def about_image(self, name: str) -> Diagnostic:
        """The same about another elastic image than the HAADF image."""
        return replace(self, sentence=named(self.sentence, name), image=name)

    def placed(self, axes: Sequence[dict]) -> Diagnostic:
        """The same with its place in words, in units of the ``axes`` (y, x), dictionaries as HyperSpy has them."""
        if self.place is None:
            return self
        y, x = (_position(axis, pixel) for axis, pixel in zip(axes, self.place, strict=True))
        sentence = self.sentence.replace("{place}", f"x = {x}, y = {y}")
        return replace(self, sentence=sentence, place=None)

    def __str__(self):
        return self.placed(_PIXELS).sentence


_PIXELS = ({"units": ""}, {"units": ""})


def _position(axis, pixel):
    """In words: a pixel as position on an axis."""
    units = str(axis["units"]).strip()
    if units.lower() in ("", "px", "pixel", "pixels", "none", "<undefined>") or not axis.get("scale"):
        return f"pixel {pixel}"
    return f"{axis['offset'] + pixel * axis['scale']:.4g} {units}"


def shortened(names: Sequence[str], room: int) -> str:
    """Names in words, in so many characters where that can be: "Fe, O and 4 more"."""
    names = list(names)
    for shown in range(len(names), 0, -1):
        rest = len(names) - shown
        words = [*names[:shown], f"{rest} more"] if rest else names
        text = " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
        if len(text) <= room:
            return text
    return f"{len(names)} maps"


def named(sentence: str, name: str) -> str:
    """A sentence about the HAADF image as one about another elastic image."""
    return sentence.replace("HAADF", name)


def report(diagnostics: Iterable[Diagnostic]) -> None:
    """Log what a call of the user's met: each sentence, information at the level INFO; records have its ``code``."""
    if _is_quiet.get():
        return
    for diagnostic in diagnostics:
        level = logging.INFO if diagnostic.severity == INFORMATION else logging.WARNING
        _logger.log(level, str(diagnostic), extra={"code": diagnostic.code})


def report_fit(diagnostics: Iterable[Diagnostic]) -> None:
    """Log the headlines of what is serious, each once per session, and all other sentences at the level INFO.

    The rest is for ``ElementMaps.report``.
    """
    if _is_quiet.get():
        return
    for diagnostic in diagnostics:
        is_serious = diagnostic.severity == SERIOUS and diagnostic.headline not in _logged
        level, text = (logging.WARNING, diagnostic.headline) if is_serious else (logging.INFO, str(diagnostic))
        _logger.log(level, text, extra={"code": diagnostic.code})
        if is_serious:
            _logged.add(diagnostic.headline)


def forget_reported() -> None:
    """Begin the session anew: headlines that were logged are logged again."""
    _logged.clear()


@contextmanager
def unreported():
    """Context in which this thread logs no diagnostics, for whoever reports them together afterwards."""
    token = _is_quiet.set(True)
    try:
        yield
    finally:
        _is_quiet.reset(token)


def warnings_of(diagnostics: Iterable[Diagnostic]) -> list[str]:
    """The sentences of those that are more than information."""
    return [str(d) for d in diagnostics if d.severity != INFORMATION]


def as_metadata(diagnostics: Iterable[Diagnostic]) -> dict:
    """Lists of strings for metadata: codes, severities, sentences, elements joined by commas, images."""
    found = list(diagnostics)
    return {
        "codes": [d.code for d in found],
        "severities": [d.severity for d in found],
        "sentences": [str(d) for d in found],
        "elements": [",".join(d.elements) for d in found],
        "images": [d.image for d in found],
    }


def from_metadata(columns: Any) -> list[Diagnostic]:
    """The diagnostics of such lists; of files of earlier versions warnings are notes."""
    codes = list(columns.get("codes", ()))
    names = ("sentences", "severities", "elements")
    images = list(columns.get("images", ["HAADF"] * len(codes)))
    rows = zip(codes, *(list(columns.get(name, ())) for name in names), images, strict=True)
    return [
        Diagnostic(
            code, sentence, severity if severity in SEVERITIES else "", tuple(filter(None, of.split(","))), None, image
        )
        for code, sentence, severity, of, image in rows
    ]
