"""The report of a fit: what its maps can be used for, what the HAADF image did, and all diagnostics."""

from __future__ import annotations

import base64
import html
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import SEVERITIES, Diagnostic, from_metadata
from hyperspy_fusion.fusion.settings import GUIDED
from hyperspy_fusion.io.export import whole_file
from hyperspy_fusion.results.frames import other_axes
from hyperspy_fusion.results.fused_maps import why_changed
from hyperspy_fusion.results.plot.panels import as_png

_WIDTH = 100
_COLUMNS = ("element", "counts", "usable for", "total")
# part of what smoothing changed below which brightness did nothing
NOTHING = 0.005
_STYLE = "<style>body {font-family: sans-serif; margin: 2em} img {max-width: 100%} td, th {padding: 0 1em}</style>"
_OF_FRAMES = "Figures are of single frames: call fused.frame(k).report(save=...) for those of frame k."
_NAMES = {"serious": "Serious", "note": "Notes", "information": "Information"}


@dataclass(frozen=True)
class Report:
    """What a fit found, for reading: ``print(report)``, or as the last line of a notebook cell.

    Attributes
    ----------
    title : str
        Of the maps.
    rows : list of tuple of str
        Element, counts, what its map can be used for, and total of the fused map over that measured.
    fit : str
        How the fit ended.
    haadf : str
        What the HAADF image did.
    diagnostics : list of Diagnostic
        Serious ones first.
    """

    title: str
    rows: list
    fit: str
    haadf: str
    diagnostics: list[Diagnostic]

    def __str__(self):
        widths = [max(map(len, column)) for column in zip(_COLUMNS, *self.rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in [_COLUMNS, *self.rows]
        ]
        parts = [self.title, "", *lines, "", *textwrap.wrap(self.fit, _WIDTH), *textwrap.wrap(self.haadf, _WIDTH)]
        for name, found in self._by_severity():
            parts += ["", name]
            for one in found:
                parts += [
                    f"- {one.headline}",
                    *textwrap.wrap(str(one), _WIDTH, initial_indent="  ", subsequent_indent="  "),
                ]
        return "\n".join(line.rstrip() for line in parts)

    __repr__ = __str__

    def _repr_html_(self):
        cells = lambda row, tag: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)  # noqa: E731
        rows = [f"<tr>{cells(_COLUMNS, 'th')}</tr>", *(f"<tr>{cells(row, 'td')}</tr>" for row in self.rows)]
        parts = [f"<h4>{html.escape(self.title)}</h4><table>{''.join(rows)}</table>"]
        parts += [f"<p>{html.escape(self.fit)}<br>{html.escape(self.haadf)}</p>"]
        for name, found in self._by_severity():
            items = [
                f"<li><b>{html.escape(d.headline)}</b><br><small>{html.escape(str(d))}</small></li>" for d in found
            ]
            parts.append(f"<p><b>{name}</b></p><ul>{''.join(items)}</ul>")
        return "".join(parts)

    def _by_severity(self):
        for severity in SEVERITIES:
            found = [d for d in self.diagnostics if d.severity == severity]
            if found:
                yield _NAMES[severity], found


def report_of(maps: Any) -> Report:
    """The report of a fit; see ``ElementMaps.report``."""
    fit = maps._fit()
    listed = list(fit["elements"])
    index = [listed.index(element) for element in maps.elements]
    found = from_metadata(fit["diagnostics"])
    # those about other maps of the fit are left out; an element without any map concerns all
    found = [
        d for d in found if not d.elements or set(d.elements) - set(listed) or set(d.elements) & set(maps.elements)
    ]
    return Report(
        title=str(maps.metadata.General.title),
        rows=[_row(fit, i) for i in index],
        fit=f"Method {fit['method']}: {fit['stop_reason']}{_since_the_fit(maps)}",
        haadf=" ".join([_haadf_sentence(fit), *_sentences_of_further_images(fit)]),
        diagnostics=sorted(found, key=lambda d: SEVERITIES.index(d.severity)),
    )


def saved_with_figures(report: Report, maps: Any, save: Any) -> Report:
    """Write a report of maps to a .html file, with the figures that the maps can draw; see ``ElementMaps.report``."""
    path = Path(save)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"save is {str(save)!r}: reports with their figures are .html files, such as 'report.html'.")
    parts = ['<!DOCTYPE html><meta charset="utf-8">', _STYLE, report._repr_html_()]
    if other_axes(maps):
        parts.append(f"<p>{_OF_FRAMES}</p>")
    else:
        parts += [f"<h4>{title}</h4>{_picture(draw)}" for title, draw in _figures(maps).items()]
    with whole_file(path) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")
    return report


def _picture(draw):
    """A figure, or the sentence why there is none: results lack what some figures show, as maps of a file do."""
    try:
        return f'<img src="data:image/png;base64,{base64.b64encode(as_png(draw)).decode()}">'
    except ValueError as error:
        return f"<p>{html.escape(str(error))}</p>"


def _figures(maps):
    """Titles and functions that draw."""
    return {
        "Measured and fused maps": lambda: maps.plot_fusion(errors=maps._errors is not None),
        "Residuals": maps.plot_residuals,
        "Fits that were compared": maps.plot_selection,
        "Convergence": maps.plot_convergence,
    }


def _since_the_fit(maps):
    """A sentence where the maps are no longer those that the report is about."""
    reason = why_changed(maps)
    return f" This report is of the fit, not of these maps, for {reason}." if reason else ""


def _row(fit, i):
    count, ratio = (np.asarray(fit.get(key, np.full(i + 1, np.nan)))[i] for key in ("counts", "total_ratios"))
    usable = fit.get("usable_for")
    return (
        fit["elements"][i],
        number_in_words(count) if np.isfinite(count) else "-",
        usable[i] if usable else "-",
        f"{ratio:.0%}" if np.isfinite(ratio) else "-",
    )


def number_in_words(count):
    """A number of counts, whose digits matter where it is small."""
    return f"{count:.0f}" if count < 1e5 else f"{count:.3g}"


def _haadf_sentence(fit):
    """What the HAADF image did, in one sentence."""
    if fit["method"] == "published":
        return f"The HAADF image was fitted in every pixel (correlation {fit['haadf_correlation']:.2f})."
    edges = used_edges(fit)
    changes = np.asarray(fit.get("haadf_changes", np.zeros(1)))
    largest = int(np.argmax(changes))
    if changes[largest] < NOTHING:
        if not edges:
            return "The HAADF image was not used."
        return (
            f"The brightness of the HAADF image changed no map by more than {NOTHING:.1%} of what smoothing did; only "
            "its edges were used."
        )
    if fit["parameters"].get("regularization") == "none":
        return f"The HAADF image changed {fit['elements'][largest]} most; nothing was smoothed."
    also = "; its edges guided the smoothing" if edges else "; its edges were not used"
    return (
        f"The brightness of the HAADF image changed {fit['elements'][largest]} most, by {changes[largest]:.2g} times "
        f"what smoothing did{also}."
    )


def _sentences_of_further_images(fit):
    names = list(fit.get("image_names", ()))
    if "image_changes" not in fit:
        return
    changes = np.reshape(fit["image_changes"], (len(names), -1))
    for name, change in list(zip(names, changes, strict=True))[1:]:
        largest = fit["elements"][int(np.argmax(change))]
        if change.max() < NOTHING:
            yield f"The {name} image was not used."
        elif fit["parameters"].get("regularization") == "none":
            yield f"The {name} image changed {largest} most."
        else:
            yield f"The {name} image changed {largest} most, by {change.max():.2g} times what smoothing did."


def used_edges(fit):
    """Whether a penalty that the image guides is in the result."""
    selection = fit.get("selection", {})
    kinds = [fit["parameters"].get("regularization")]
    if len(selection.get("score", ())):
        used = np.asarray(selection["weights"]).reshape(len(selection["score"]), -1).max(axis=1) > 0
        tried = selection.get("regularization", kinds * len(used))
        kinds = [kind for kind, is_used in zip(tried, used, strict=True) if is_used]
    return any(kind in GUIDED for kind in kinds)
