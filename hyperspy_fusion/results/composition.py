"""Composition of element maps as exspy calculates it, with errors.

The error of a composition ``c_i = f_i I_i / sum_j f_j I_j`` is that of the maps I to first order, elements taken to be
independent: ``var c_i = sum_j (f_j / T)^2 (delta_ij - c_i)^2 var I_j`` with ``T = sum_j f_j I_j``.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic, report
from hyperspy_fusion.fusion.checks import LARGEST, SMALLEST, check_choice, check_from, default_errstate
from hyperspy_fusion.identify.elements import periodic_table
from hyperspy_fusion.methods.fit_checks import TOTAL_TOLERANCE
from hyperspy_fusion.results.uncertainty import pixel_errors

QUANTIFICATIONS = ("CL", "zeta", "cross_section")
# as they are called elsewhere, in small letters, in the singular
_ALSO_CALLED = {"cl": "CL", "cliff_lorimer": "CL", "k_factor": "CL", "zeta_factor": "zeta"}
# a pixel with less than this part of the signal of a thick one is vacuum
VACUUM = 0.05
# the thick one: not the brightest, which may be an outlier
_THICK = 99
PERCENT_UNITS = {"atomic": "at.%", "weight": "wt.%"}


class Percent(dict):
    """A composition ``{element: (value, error)}``, shown as a table; made by :meth:`Region.percent`.

    Attributes
    ----------
    unit : str
        "at.%" or "wt.%".
    remark : str
        What is doubtful about it; "" for nothing.
    """

    def __init__(self, values: Any, unit: str = "at.%", remark: str = ""):
        super().__init__(values)
        self.unit, self.remark = unit, remark

    def __str__(self):
        texts = {element: with_error(value, error, self.unit) for element, (value, error) in self.items()}
        width = max(map(len, texts), default=0)
        rows = [f"{element:{width}}  {text}" for element, text in texts.items()]
        return "\n".join([*rows, *([self.remark] if self.remark else [])])

    __repr__ = __str__

    def _repr_html_(self):
        rows = (f"<tr><th>{e}</th><td>{with_error(v, s, self.unit)}</td></tr>" for e, (v, s) in self.items())
        return f"<table>{''.join(rows)}</table><p>{html.escape(self.remark)}</p>"


def with_error(value: Any, error: Any, unit: str) -> str:
    """As ``"4.8 ± 1.3 at.%"``, with two digits of the error; one such text for each frame of a stack."""
    if np.ndim(value):
        pairs = zip(np.ravel(value), np.ravel(error), strict=True)
        return ", ".join(with_error(*pair, unit).removesuffix(f" {unit}") for pair in pairs) + f" {unit}"
    if not np.isfinite(value):
        return f"- {unit}"
    if not (np.isfinite(error) and error > 0):
        return f"{value:.1f} {unit}"
    # of 0.0996, two digits are 0.10
    digits = min(max(1 - int(np.floor(np.log10(float(f"{error:.1e}")))), 0), 6)
    return f"{value:.{digits}f} ± {error:.{digits}f} {unit}"


@default_errstate
def composition(maps, method, factors=None, units="atomic", vacuum=VACUUM, errors=None):
    """Composition of the element maps; see ``ElementMaps.atomic_percent``."""
    method, factors, relative = quantifying(maps, method, factors, units)
    counts = np.maximum(np.asarray(maps.data, dtype=np.float64), 0)
    total = np.tensordot(relative, counts, 1)
    check_from("vacuum", vacuum, 0, below=1)
    finite = total[np.isfinite(total)]
    threshold = vacuum * np.percentile(finite, _THICK) if finite.size else 0.0
    total[~(total > threshold)] = np.nan
    shares = relative[:, None, None] * counts / total
    variance, found = None, pixel_errors(maps, errors)
    if found is not None:
        variance = propagated(shares, relative, total, found) * 100**2
    return _signal(maps, 100 * shares, variance, units, {"method": method, "factors": factors, "vacuum": float(vacuum)})


def quantifying(maps, method, factors, units):
    """exspy's name of the method, the factors (n,), and relative factors (n,): what a count adds to the total."""
    method = method_of(method)
    check_choice("units", units, ("atomic", "weight"))
    factors = _factors(maps, method, factors)
    shape = np.shape(maps.data)
    if maps.metadata.has_item("Composition"):
        raise ValueError(f"{maps!r} is a composition already: take that of the maps that it was made of.")
    if shape[0] < 2 or len(shape) != 3:
        raise ValueError(f"{maps!r} is not a stack of several maps: a composition needs the maps of all its elements.")
    report([*_about_totals(maps), *about_background(maps)])
    return method, factors, _relative_factors(maps.elements, method, factors, units)


def method_of(name):
    """exspy's name of a method of quantification, however it is spelt."""
    if isinstance(name, str):
        spelt = name.strip().lower().replace("-", "_").replace(" ", "_").removesuffix("s")
        name = _ALSO_CALLED.get(spelt, spelt if spelt in QUANTIFICATIONS else name)
    check_choice("method", name, QUANTIFICATIONS)
    return name


def _factors(maps, method, factors):
    """(n,) factors in the order of the maps: of a number, a sequence, a dictionary, or the metadata of the maps."""
    elements = maps.elements
    if factors is None:
        factors = _cross_sections(maps, method)
    if isinstance(factors, Mapping):
        missing = [element for element in elements if element not in factors]
        if missing:
            raise ValueError(f"factors has none for {', '.join(missing)}: give one for each of {', '.join(elements)}.")
        factors = [factors[element] for element in elements]
    try:
        values = np.asarray(factors, dtype=float)
    except (TypeError, ValueError):  # words, or sequences of several lengths
        values = np.array(np.nan)
    values = np.full(len(elements), values) if values.ndim == 0 else values
    if values.shape != (len(elements),) or not np.all((values >= SMALLEST) & (values <= LARGEST)):
        raise ValueError(
            f"factors is {factors!r}: give one number above 0 ({SMALLEST:g} to {LARGEST:g}) for each of "
            f"{', '.join(elements)}, in this order or as a dictionary {{element: factor}}."
        )
    return values


def _cross_sections(maps, method):
    """Those in the metadata of maps of EELS edges."""
    stored = maps.metadata.get_item("Element_maps.cross_sections")
    if method == "cross_section" and stored is not None:
        return stored.as_dictionary()
    edges = [maps.metadata.get_item(f"Element_maps.edges.{element}") for element in maps.elements]
    if method != "cross_section" or not any(edges):
        why = "only maps of EELS edges know their cross-sections, for method 'cross_section'"
    elif not all(edges):
        others = ", ".join(element for element, edge in zip(maps.elements, edges, strict=True) if not edge)
        why = f"the maps of {others} are not of EELS edges, which alone know their cross-sections"
    else:
        why = (
            f"the cross-sections of {', '.join(edges)} are not known, which exspy calculates of K and L edges by beam "
            "energy, convergence and collection angle: call `s.set_microscope_parameters(...)` before element_maps"
        )
    raise ValueError(
        f"factors is None: give the k-factors, zeta-factors or cross-sections of {method!r} as a dictionary "
        f"{{element: factor}}; {why}."
    )


def _about_totals(maps):
    """The diagnostic of maps of a fit that did not keep the totals of the counts, on which a composition depends.

    A factor that all have in common changes no composition.
    """
    fit = maps._fit() if maps.metadata.has_item("Fusion") else {}
    ratios = dict(zip(fit.get("elements", ()), fit.get("total_ratios", ()), strict=False))
    kept = {e: float(ratios[e]) for e in maps.elements if np.isfinite(ratios.get(e, np.nan))}
    if not kept or max(kept.values()) <= (1 + TOTAL_TOLERANCE) * min(kept.values()):
        return []
    totals = ", ".join(f"{element} {ratio:.0%}" for element, ratio in kept.items())
    sentence = (
        f"The fit ({fit.get('method', 'of unknown method')}) changed the totals ({totals} of the measured ones), "
        'and the composition with them: fuse by method="calibrated", or take the measured maps.'
    )
    return [Diagnostic("composition-of-changed-totals", sentence, elements=tuple(kept))]


def about_background(maps):
    """The diagnostic of counts in windows of X-ray lines that hold the background below the lines as well."""
    node = maps.metadata.get_item("Element_maps")
    if node is None or not node.has_item("integration_windows"):
        return []
    if maps.metadata.has_item("Fusion") and np.any(np.asarray(maps._fit().get("background", 0)) > 0):
        return []
    is_published = maps.metadata.has_item("Fusion") and maps._fit()["method"] == "published"
    how = "by method='calibrated' " if is_published else ""  # the published method does not know of a background
    sentence = (
        f"The per cent include the background below the X-ray lines: fuse the spectra {how}with background='windows', "
        "or lines='model'."
    )
    return [Diagnostic("background-in-composition", sentence)]


def _relative_factors(elements, method, factors, units):
    """(n,) what a count of each map adds to the total, as in exspy without absorption.

    Cliff-Lorimer and zeta factors turn counts into masses, cross-sections into atoms.
    """
    table = periodic_table()
    masses = np.array([table[element].General_properties.atomic_weight for element in elements])
    if method == "cross_section":
        return masses / factors if units == "weight" else 1 / factors
    return factors / masses if units == "atomic" else factors


def propagated(fractions, factors, total, errors):
    """Variances of fractions (n, ...) to first order; factors are (n,), totals (...), errors of counts (n, ...)."""
    factors = np.reshape(factors, (-1,) + (1,) * (np.ndim(fractions) - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = (factors / total) ** 2 * errors**2
    # (delta_ij - c_i)^2 is c_i^2 for all j but i
    return fractions**2 * terms.sum(axis=0) + ((1 - fractions) ** 2 - fractions**2) * terms


def _signal(maps, percent, variance, units, node):
    from hyperspy.signals import Signal2D

    result = maps._deepcopy_with_new_data(percent)
    title = maps.metadata.General.title.removeprefix("Element maps of ").removeprefix("Fused maps of ")
    result.metadata.General.title = f"{units} percent of {title}"
    result.metadata.set_item("Signal.quantity", f"{units.capitalize()} percent")
    for key, value in node.items():
        result.metadata.set_item(f"Composition.{key}", value)
    result._mark_changed("turned into a composition")
    result._inputs = None
    if variance is not None:
        signal = Signal2D(variance, axes=result.axes_manager._get_axes_dicts())
        signal.metadata.General.title = "Variance"
        result.set_noise_variance(signal)
    return result
