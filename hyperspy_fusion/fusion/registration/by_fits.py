"""The shift of an image against the maps by the fit itself, which knows where the edges of every element lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperspy_fusion.fusion.registration.shift import error_of_patches
from hyperspy_fusion.fusion.result import StopReason
from hyperspy_fusion.fusion.solvers.primal_dual import primal_dual

_FITS = 3
# part of the information about the shift that is left once the maps follow it, before it is measured, and its range
_FREE, _FREE_RANGE = 0.55, (0.2, 1.0)
# a step, in standard errors, after which no other fit is worth its time
_SMALL_STEP = 0.2


@dataclass(frozen=True)
class Pull:
    """How the counts pull at all fitted maps together.

    Attributes
    ----------
    step
        (2,) shift (y, x) in pixels of the maps that the counts ask for, were the maps rigid.
    information
        (2, 2) of the counts about it, for these maps.
    error
        (2,) standard errors, the larger of those by this information and by how patches of the field disagree.
    """

    step: np.ndarray
    information: np.ndarray
    error: np.ndarray

    @classmethod
    def of(cls, problem, maps):
        """For maps (n, ny, nx) fitted to a problem, in the units of the input."""
        z = maps / problem.scales[:, None, None].astype(np.float64)
        deviation = np.sqrt(np.maximum(problem.data.step_length(z), np.finfo(np.float32).tiny))
        used = np.broadcast_to(problem.data.slope > 0, z.shape) & (problem.haadf_term.counted > 0)
        slopes = np.stack([(-np.gradient(z, axis=axis) / deviation)[used] for axis in (1, 2)])
        rest = ((problem.data.net() - z) / deviation)[used]
        information = slopes @ slopes.T
        error = np.sqrt(np.diag(np.linalg.inv(information)))
        step = np.linalg.solve(information, slopes @ rest)
        return cls(step, information, np.maximum(error, error_of_patches(slopes, rest, used)))


def aligned_by_fits(problem_at, settings, shift, num_workers=None):
    """Joint maximum of likelihood and penalty over maps and shift, from a shift near it.

    Let ``J(t)`` be the least objective with the image shifted by t. By the envelope theorem its derivative is that of
    the terms of the counts alone as the fitted maps x move as a whole, ``dJ/dt = sum_i <dx_i/dt, D'(x_i)>``, for image,
    edges and maps move together. All elements take part, each with its own noise, while a weighted sum of the maps is
    mostly the heaviest. As maps follow the image, J is flatter than the likelihood of rigid maps: by how much, two
    fits tell (secant method).

    Parameters
    ----------
    problem_at
        Function of a shift (y, x) in pixels that returns the
        :class:`~hyperspy_fusion.fusion.problems.calibrated.CalibratedProblem` with the image there.
    settings
        Of the fits: ``max_iter`` and ``tol``.
    shift
        To begin with.
    num_workers
        Threads.

    Returns
    -------
    shift, error
        (2,) each.

    Raises
    ------
    ValueError, numpy.linalg.LinAlgError
        Where no fit can be made, or its maps have no structure.
    """
    state, free, last = None, _FREE, None
    for _ in range(_FITS):
        problem = problem_at(shift)
        state = None if state is None else state.restarted(problem)
        result, state = primal_dual(problem, settings, state, num_workers=num_workers)
        if result.reason is StopReason.INTERRUPTED:
            raise KeyboardInterrupt
        pull = Pull.of(problem, result.maps)
        if last is not None:
            free = _free_part(*last, pull)
        step = pull.step / free
        last, shift = (pull, step), shift + step
        if np.all(np.abs(step) < _SMALL_STEP * pull.error):
            break
    return shift, pull.error


def _free_part(before, moved, after):
    """Part of the information that is left: by how much the pull fell along the way, over how much it had to."""
    fallen = before.information @ before.step - after.information @ after.step
    along = float(moved @ before.information @ moved)
    return float(np.clip(moved @ fallen / along, *_FREE_RANGE)) if along > 0 else _FREE
