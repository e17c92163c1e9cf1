"""The report of a fused stack: the values of all frames, and which frames differ."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import SEVERITIES, from_metadata, shortened
from hyperspy_fusion.results.frames import FUSED_FRAMES, in_memory, in_words, name_of_frame, numbers_of
from hyperspy_fusion.results.report import NOTHING, Report, number_in_words, used_edges


def report_of_frames(stack: Any) -> Report:
    """The report of a fused stack, or of a part of it; see ``ElementMaps.report``."""
    record = stack.metadata[FUSED_FRAMES]
    numbers = numbers_of(stack)
    if numbers is None:
        raise ValueError(
            f"{stack!r} is no longer the fused stack, nor a part of it, but was added up, transposed or rebinned: call "
            "report on the fused stack."
        )
    # in the whole stack, as in its diagnostics
    places = dict(enumerate(np.ndindex(*np.asarray(record.shape))))
    names = {places[int(k)]: name_of_frame(int(k)) for k in np.ravel(numbers)}
    fits = {place: in_memory(record[name].as_dictionary()) for place, name in names.items() if record.has_item(name)}
    found = from_metadata(in_memory(record.diagnostics.as_dictionary()))
    of_part = f" Diagnostics are of all {record.n_frames} frames." if numbers.size < record.n_frames else ""
    if changed := record.get_item("changed"):
        of_part += f" This report is of the fits, not of these maps, which were {changed} after them."
    return Report(
        title=str(stack.metadata.General.title),
        rows=[_row(fits, element) for element in stack.elements],
        fit=_ends(fits, numbers.size) + of_part,
        haadf=_haadf_sentence(fits),
        diagnostics=sorted(found, key=lambda d: SEVERITIES.index(d.severity)),
    )


def _row(fits, element):
    """Ranges over the frames, and what a map can be used for, in most of them and in others."""
    counts, ratios, uses = [], [], defaultdict(list)
    for index, fit in fits.items():
        i = list(fit["elements"]).index(element)
        for values, key in ((counts, "counts"), (ratios, "total_ratios")):
            values.append(float(np.asarray(fit.get(key, np.full(i + 1, np.nan)))[i]))
        uses[fit["usable_for"][i] if fit.get("usable_for") else "-"].append(in_words(index))
    return element, _range(counts, number_in_words), _by_frames(uses) or "-", _range(ratios, "{:.0%}".format)


def _range(values, in_words):
    """As "8212" or "8212 to 9040"."""
    finite = [value for value in values if np.isfinite(value)]
    ends = dict.fromkeys(in_words(value) for value in (min(finite), max(finite))) if finite else ["-"]
    return " to ".join(ends)


def _by_frames(groups):
    """Texts and the frames of each: that of most frames first, whose numbers need not be listed."""
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    words = [text if k == 0 else f"{text} in {_frames(own)}" for k, (text, own) in enumerate(ordered)]
    return "; ".join(words)


def _ends(fits, number):
    if not fits:
        return f"0 of {number} frames fused."
    reasons = defaultdict(list)
    for index, fit in fits.items():
        # without numbers, such as those of the gap, which differ
        reasons[re.split(r"[,;:.]", str(fit["stop_reason"]))[0]].append(in_words(index))
    methods = " and ".join(dict.fromkeys(fit["method"] for fit in fits.values()))
    return f"Method {methods}, {len(fits)} of {number} frames fused. {_by_frames(reasons)}."


def _haadf_sentence(fits):
    """What the HAADF images did."""
    if not fits:
        return ""
    if any(fit["method"] == "published" for fit in fits.values()):
        correlations = [float(fit["haadf_correlation"]) for fit in fits.values()]
        return f"The HAADF images were fitted in every pixel (correlation {_range(correlations, '{:.2f}'.format)})."
    changes = {index: np.asarray(fit.get("haadf_changes", np.zeros(1))) for index, fit in fits.items()}
    brightness = [in_words(index) for index, change in changes.items() if change.max() >= NOTHING]
    edges = [in_words(index) for index, fit in fits.items() if used_edges(fit)]
    parts = ((brightness, "their brightness"), (edges, "their edges"))
    words = [f"{what} in {_some(own, len(fits))}" for own, what in parts if own]
    return f"The HAADF images were used: {' and '.join(words)}." if words else "The HAADF images were not used."


def _some(names, number):
    return "all frames" if len(names) == number else f"{len(names)} of {number} frames ({_frames(names)})"


def _frames(names):
    return f"frame{'s' * (len(names) > 1)} {shortened(names, 32)}"
