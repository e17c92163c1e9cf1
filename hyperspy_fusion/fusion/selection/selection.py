"""The record of a search: the candidates that were compared, and the choice."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hyperspy_fusion.diagnostics import Diagnostic
from hyperspy_fusion.fusion.selection.cross_validation import FEWEST_COUNTS


@dataclass(frozen=True)
class Selection:
    """The candidates that were compared, and the choice.

    Attributes
    ----------
    seed
        Of the folds.
    sentence
        The choice in words.
    tried
        Settings of the candidates that were left open: {name: list of values}.
    scores, errors, n_folds
        Of the candidates: mean score per pixel of held-out data (see ``cross_validation``), the standard error of its
        difference from that of the candidate of the largest weight, and the number of folds. The score of a fit that
        was given up is that of its last maps.
    weights
        (candidates, n) in the average, for each map; 0 for most.
    diagnostics
        Reasons to doubt the choice.
    chosen
        {:class:`Choice`: weights (n,)}; empty where the default settings are used.
    elements
        Of the maps.
    """

    seed: int
    sentence: str
    tried: dict = field(default_factory=dict)
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    errors: np.ndarray = field(default_factory=lambda: np.zeros(0))
    n_folds: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    weights: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    diagnostics: list = field(default_factory=list)
    chosen: dict = field(default_factory=dict)
    elements: tuple = ()

    def as_dict(self):
        """Flat arrays, lists of strings and Python scalars for metadata."""
        return {
            **{key: _flat(values) for name in self.tried for key, values in _columns(name, self.tried[name])},
            "score": self.scores,
            "score_error": self.errors,
            "n_folds": self.n_folds,
            "weights": self.weights.ravel(),
            "seed": int(self.seed),
            "sentence": self.sentence,
        }


def _columns(name, values):
    """One column, or of values that are tuples, as those of several images, one for each of their entries."""
    sizes = {len(v) for v in values if isinstance(v, tuple)}
    if not sizes:
        return [(name, values)]
    rows = [v if isinstance(v, tuple) else (v,) * max(sizes) for v in values]
    return [(f"{name}_{i}", [row[i] for row in rows]) for i in range(max(sizes))]


def _flat(values):
    return [str(v) for v in values] if any(isinstance(v, str) for v in values) else np.array(values)


def _listed(values):
    return ", ".join(f"{value:.3g}" for value in np.atleast_1d(values))


def in_words(choice, weights):
    """A candidate with its weights (n,) in the average."""
    weight = _listed(choice.lambda_reg)
    low, high = (f"{100 * w:.0f}" for w in (weights.min(), weights.max()))
    percent = f"{low} %" if low == high else f"{low} to {high} %"
    penalty = f"{choice.regularization!r} with lambda_reg={weight}"
    if choice.components:
        return f"{penalty} of {choice.components} components of the spectra ({percent})"
    return f"{penalty}, lambda_haadf={_listed(choice.lambda_haadf)} and joint={choice.joint} ({percent})"


def best_so_far(comparison, settings, n_maps):
    """The best candidate of an interrupted search in its first fold, and its record.

    Raises
    ------
    KeyboardInterrupt
        Where there is none of the maps.
    """
    of_maps = {
        choice: scores[0].sum()
        for choice, scores in comparison.scores.items()
        if scores and not choice.components and choice not in comparison.given_up
    }
    if not of_maps:
        raise KeyboardInterrupt
    best = max(of_maps, key=of_maps.__getitem__)
    weights = np.ones(n_maps)
    sentence = (
        f"The search was interrupted: {in_words(best, weights)} is the best of {len(of_maps)} fits. Fuse again for a "
        "complete search."
    )
    found = Diagnostic("selection-interrupted", sentence)
    return {best: weights}, Selection(settings.seed, sentence, diagnostics=[found])


def of_defaults(settings, poor):
    """The record of the default settings, where there are too few counts for a choice."""
    chosen = settings.chosen()
    sentence = (
        f"{', '.join(poor)} has fewer than {FEWEST_COUNTS} counts, too few for cross-validation: "
        f"regularization={chosen.regularization!r} and lambda_reg={chosen.lambda_reg!r} were used. "
        "Leave the map out, or bin the scan."
    )
    found = Diagnostic("too-few-counts-for-selection", sentence, elements=tuple(poor))
    return Selection(settings.seed, sentence, diagnostics=[found])
