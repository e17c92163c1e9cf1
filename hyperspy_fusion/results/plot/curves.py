"""Curves: convergence, selection, drift and profiles."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from hyperspy_fusion.fusion.checks import default_errstate
from hyperspy_fusion.results.plot.panels import UNCALIBRATED, new_figure

# of the terms of each method: title, formula, name of the weight; those of the calibrated one are weighted already
_PUBLISHED_TERMS = {
    "haadf": ("HAADF", r"$\frac{1}{2}\,\Vert h - f(x)\Vert^2$", "lambda_haadf"),
    "chem": ("chemistry", r"$\sum_i\,[x_i - b_i \log(x_i + \varepsilon)]$", "lambda_chem"),
    "tv": ("total variation", r"$\sum_i\,\mathrm{TV}(x_i)$", "lambda_tv"),
}
# of lines: those of Okabe and Ito, which the colour-blind can tell apart
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# of a legend beside its curves
_BESIDE: dict[str, Any] = {"fontsize": "small", "loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False}
# curves whose legend has room among them
_FEW = 4
_SMOOTHING = ("lambda_reg", "lambda_tv")
_CHOSEN_WEIGHTS = (*_SMOOTHING, "lambda_chem", "lambda_haadf")
_CALIBRATED_TERMS = {
    "haadf": ("HAADF", r"$\lambda_h\,\Vert h - f(x)\Vert^2 / 2\sigma^2$", "lambda_haadf"),
    "chem": ("maps", r"$\sum_i\,D(b_i, x_i)$", None),
    "tv": ("penalty", r"$R(\lambda_i x_i / s_i)$", "lambda_reg"),
}


@default_errstate
def plot_convergence(history: dict, weights: dict, *, axes=None) -> np.ndarray:
    """The terms of the objective that are not 0 throughout against the iteration, and their weights.

    `history` has arrays ``haadf``, ``chem`` and ``tv`` of one length, the start at index 0: unweighted for the
    published method, as they enter the sum for the calibrated one. The first and last value of ``total``, their sum, is
    given above. ``iteration`` is there where not every iteration is. ``gap`` has a panel of its own, with a logarithmic
    scale. `weights` are the settings of the fit; its ``tol`` is a line in the panel of the gap.
    """
    terms = _CALIBRATED_TERMS if "lambda_reg" in weights else _PUBLISHED_TERMS
    missing = [name for name in terms if name not in history]
    if missing:
        raise ValueError(f"history has no {', '.join(missing)}: it must hold haadf, chem and tv.")
    # a term that is not in the objective has nothing to show
    terms = {name: of for name, of in terms.items() if np.any(history[name])}
    number = len(terms) + ("gap" in history)
    if axes is None:
        figure = new_figure((3.5 * number, 3.4))
        axes = figure.subplots(1, number, squeeze=False)[0]
        if (total := history.get("total")) is not None:
            figure.suptitle(f"objective (weighted sum): {total[0]:.5g} at the start, {total[-1]:.5g} at the end")
    axes = np.asarray(axes)
    iteration = np.asarray(history.get("iteration", np.arange(len(history["haadf"]))))
    for ax, (name, (title, formula, weight)) in zip(axes.flat, terms.items(), strict=False):
        title = _term_title(title, weight, weights)
        style = {"color": "0.6", "linestyle": "--"} if title.endswith(": off") else {"color": _LINES[0]}
        ax.plot(iteration, np.asarray(history[name], float), **style)
        _label(ax, title, formula)
    if "gap" in history:
        ax, gap = axes.flat[len(terms)], np.asarray(history["gap"], float)
        # nothing else has a logarithm
        shown = np.isfinite(gap) & (gap > 0)
        ax.plot(iteration[shown], gap[shown], color=_LINES[0])
        ax.set_yscale("log")
        if weights.get("tol") is not None:
            ax.axhline(weights["tol"], color="0.6", linestyle="--")
        _label(ax, f"duality gap, {gap[-1]:.2g} at the end", "relative gap")
    return axes


@default_errstate
def plot_selection(selection: dict):
    """Cross-validation scores of the fits that a choice of weights compared, against the weight.

    `selection` is ``metadata.Fusion.selection``: arrays ``score``, ``score_error`` and ``weights`` (flat, of every
    candidate those of its maps), the weights that were chosen, and where they differ ``regularization``, ``joint`` and
    ``components``.
    """
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    score = np.asarray(selection["score"])
    if not score.size:
        raise ValueError(f"No fits were compared. {selection['sentence']}")
    chosen = [name for weight in _CHOSEN_WEIGHTS for name in selection if name.rstrip("_0123456789") == weight]
    if not chosen:
        raise ValueError(f"No weight was left open, so that there is none to plot against. {selection['sentence']}")
    ax = new_figure((8.4, 4.2)).subplots()
    # the weight that was tried at most values
    name = max(chosen, key=lambda name: np.unique(selection[name]).size)
    weight, error = np.asarray(selection[name], float), np.asarray(selection["score_error"])
    used = np.asarray(selection["weights"]).reshape(score.size, -1).max(axis=1) > 0
    # each colour solid, then dashed, then dotted
    styles = itertools.cycle((dash, colour) for dash in (".-", ".--", ".:") for colour in _LINES)
    for (label, rows), (dash, colour) in zip(_candidates(selection, chosen, name).items(), styles, strict=False):
        rows = sorted(rows, key=lambda i: weight[i])
        ax.errorbar(weight[rows], score[rows], error[rows], fmt=dash, capsize=2, label=label, color=colour)
        circled = [i for i in rows if used[i]]
        ax.plot(weight[circled], score[circled], "o", color=colour, markersize=9, fillstyle="none")
    ax.set(xscale="log", xlabel=f"{name} (larger is smoother)" if name in _SMOOTHING else name)
    ax.set_ylabel("score on held-out counts,\nlog-likelihood per pixel")
    ax.set_title("cross-validation of the fits (higher is better); circles: used", fontsize="medium")
    # a choice covers few octaves, where a power of ten is hardly to be found
    ax.xaxis.set_major_locator(LogLocator(base=2 if weight.max() <= 64 * weight.min() else 10))
    ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.xaxis.set_minor_locator(NullLocator())
    best = score[used].max()
    ax.set_ylim(max(score.min(), best - 0.25 * abs(best)) - 0.01 * abs(score.max()), None)
    # beside the curves, which fill the panel
    ax.legend(**_BESIDE)
    return ax


@default_errstate
def plot_drift(shifts: np.ndarray, errors: np.ndarray, dropped: np.ndarray, *, axes=None) -> Any:
    """The drift (2, t) of frames along y and x in pixels, with its standard errors, and the frames left out."""
    ax = new_figure((6.4, 3.4)).subplots() if axes is None else axes
    frames = np.arange(shifts.shape[1])
    for name, shift, error, colour in zip("yx", shifts, errors, _LINES[:2], strict=True):
        error = np.where(np.isfinite(error), error, 0)
        ax.errorbar(frames, shift, error, fmt=".-", capsize=2, label=name, color=colour)
    for number, frame in enumerate(dropped):
        ax.axvline(frame, color="0.7", linestyle=":", label="left out" if number == 0 else None)
    ax.set(xlabel="frame", ylabel="drift (pixels)")
    ax.locator_params(axis="x", integer=True)
    ax.legend(**_BESIDE)
    return ax


@default_errstate
def plot_profile(
    distance: np.ndarray,
    fused: np.ndarray,
    elements: list,
    *,
    raw: np.ndarray | None = None,
    errors: np.ndarray | None = None,
    raw_errors: np.ndarray | None = None,
    units: str | None = None,
    quantity: str | None = None,
    axes=None,
) -> Any:
    """Profiles ``(n, length)`` against the ``distance`` (length,): fused as lines, measured as dots, with error bars.

    Those that are None are not drawn. Each element has a colour and a kind of line of its own. Returns the axes.
    """
    ax = new_figure((6.4, 3.8)).subplots() if axes is None else axes
    styles = itertools.cycle(itertools.product((("-", "."), ("--", "x"), (":", "+")), _LINES))
    for i, (element, ((line, marker), colour)) in enumerate(zip(elements, styles, strict=False)):
        if raw is not None:
            ax.errorbar(
                distance,
                raw[i],
                None if raw_errors is None else raw_errors[i],
                fmt=marker,
                markersize=4,
                elinewidth=0.6,
                color=colour,
                alpha=0.5,
            )
        ax.plot(distance, fused[i], color=colour, linestyle=line, label=element)
        if errors is not None:
            ax.fill_between(distance, fused[i] - errors[i], fused[i] + errors[i], color=colour, alpha=0.3, linewidth=0)
    unit = "px" if not isinstance(units, str) or units.strip().lower() in UNCALIBRATED else units.strip()
    ax.set(xlabel=f"distance ({unit})", ylabel=(quantity or "").replace("()", "").strip() or "intensity")
    shown = ["lines: fused", *(["bands: standard errors"] if errors is not None else [])]
    shown += ["dots: measured"] if raw is not None else []
    ax.set_title(", ".join(shown), fontsize="medium")
    ax.margins(x=0.01)
    ax.legend(**({"fontsize": "small"} if len(elements) <= _FEW else _BESIDE))
    return ax


def _candidates(selection, chosen, name):
    """``{label: numbers of the candidates}`` that differ in the weight ``name`` alone."""
    groups = {}
    for i in range(len(selection["score"])):
        words = [str(selection["regularization"][i])] if "regularization" in selection else []
        words += [f"{other} {selection[other][i]:.3g}" for other in chosen if other != name]
        if "components" in selection and (number := int(selection["components"][i])):
            words.append(f"{number} components")
        words += ["each map"] if "joint" in selection and not selection["joint"][i] else []
        groups.setdefault(", ".join(words) or name, []).append(i)
    return groups


def _term_title(title, weight, weights):
    """``"HAADF, weight 1"``; the penalty of the calibrated method by its name."""
    if weight is None:
        return title
    kind = weights.get("regularization") if weight == "lambda_reg" else None
    if not np.any(weights.get(weight)) or (weight == "lambda_reg" and kind == "none"):
        return f"{title}: off"
    values = ", ".join(f"{value:.4g}" for value in np.atleast_1d(weights[weight]))
    return f"{title}{f' {kind!r}' if kind else ''}, weight {values}"


def _label(ax, title, ylabel):
    ax.set_title(title, fontsize="medium")
    ax.set_ylabel(ylabel)
    ax.set_xlabel("iteration (0 = start)")
    ax.margins(x=0.02)
    ax.xaxis.get_major_locator().set_params(integer=True)
