"""The weights of the published method by counts, or pixels, that its fits have not seen."""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hyperspy_fusion.fusion.problems.published import published_problem
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.selection.paired_comparison import Race
from hyperspy_fusion.fusion.selection.search import (
    COARSE,
    FINE,
    Selection,
    held_out,
    in_words,
    poor_elements,
    step,
    too_few,
)
from hyperspy_fusion.fusion.solvers.monotone import solve
from hyperspy_fusion.fusion.terms.noise_estimation import counts_scales, estimate_variance

_logger = logging.getLogger(__name__)

# the weights tried first, in the middle of what is published
_PUBLISHED_FIRST = {"lambda_chem": 2**-5.0, "lambda_tv": 2**-3.5}
_ROUNDS = 3


class PublishedChoice(NamedTuple):
    """What may be chosen of the published method."""

    lambda_chem: float
    lambda_tv: float | None


def select_published(maps, haadf, atomic_numbers, settings, elements, num_workers=None, tick=lambda: None):
    """Choose ``lambda_chem`` and ``lambda_tv`` of the published method where they are ``"auto"``.

    One after the other by factors of 2, until neither changes, and then by finer steps. Fits are scaled to the totals
    of the measured maps before they are judged, for they keep none.

    Parameters
    ----------
    maps, haadf, atomic_numbers, settings
        As for :func:`~hyperspy_fusion.fusion.problems.published.published_problem`.
    elements
        Names for sentences.
    num_workers, tick
        As for :func:`select`.

    Returns
    -------
    PublishedSettings, Selection
    """
    open_names = [name for name in _PUBLISHED_FIRST if getattr(settings, name) == "auto"]
    first = settings.as_dict() | {name: _PUBLISHED_FIRST[name] for name in open_names}
    first = PublishedChoice(first["lambda_chem"], first["lambda_tv"])
    counts_scale, rng = counts_scales(maps), np.random.default_rng(0)
    poor = poor_elements(maps, counts_scale, elements)
    if poor:
        sentence = too_few(poor, ", ".join(f"{name}={getattr(first, name)}" for name in open_names))
        return replace(settings, **first._asdict()), Selection(0, sentence, warnings=[sentence])
    variance = np.array([estimate_variance(m.astype(np.float64)) for m in maps])
    parts = held_out(maps, np.ones(maps.shape, bool), counts_scale, variance, np.zeros(len(maps)), rng)
    race = Race(parts, _PublishedFits(parts, haadf, atomic_numbers, settings, num_workers), tick)
    chosen = _climb_in_turn(race, first, open_names)
    named = ", ".join(f"{name}={getattr(chosen, name):.3g}" for name in open_names)
    sentence = in_words(race, parts, [named])
    _logger.info(sentence)
    return replace(settings, **chosen._asdict()), Selection.of(
        race, {chosen: np.ones(len(maps))}, open_names, 0, sentence
    )


def _climb_in_turn(race, best, names):
    """Uphill in one weight after the other."""
    for factor, rounds in ((COARSE, _ROUNDS), (FINE, 1)):
        for _ in range(rounds):
            before = best
            for name in names:
                best = race.climb(best, functools.partial(step, name=name), (factor, 1 / factor))
            if best == before:
                break
    return best


class _PublishedFits:
    """Fits by the published method to all data but one part, with the totals of the maps."""

    def __init__(self, parts, haadf, atomic_numbers, settings, num_workers):
        self.parts, self.haadf, self.atomic_numbers = parts, haadf, atomic_numbers
        self.settings, self.num_workers = settings, num_workers

    def __call__(self, choice, k):
        maps = _filled(self.parts[k].maps, self.parts[k].valid)
        settings = replace(self.settings, **choice._asdict())
        problem = published_problem(maps.astype(np.float32), self.haadf, self.atomic_numbers, settings)
        result, _ = solve(problem, settings, num_workers=self.num_workers)
        if result.reason is StopReason.INTERRUPTED:
            raise KeyboardInterrupt
        # the method takes the minimum of a map for its zero
        low = maps.min(axis=(1, 2), keepdims=True)
        after, before = (np.sum(m - low, axis=(1, 2), keepdims=True, dtype=np.float64) for m in (result.maps, maps))
        return low + (result.maps - low) * before / np.maximum(after, 1e-12 * before)


def _filled(maps, valid):
    """Pixels that are not seen take the mean of their neighbours that are, for the method needs a value."""
    if valid.all():
        return maps
    from scipy.ndimage import uniform_filter

    around = (0, 5, 5)
    number = uniform_filter(valid.astype(np.float64), around)
    mean = uniform_filter(np.where(valid, maps, 0.0), around) / np.maximum(number, 1e-6)
    return np.where(valid, maps, mean)
