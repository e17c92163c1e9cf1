"""Attribution of a calibrated fit: the terms add up to the change, and balance the gradients."""

import numpy as np
import pytest
from calibrated_cases import PENALTIES, problem_of, scan_of, settings_of

SHAPE = (20, 24)


def fitted(settings, scan=None, **options):
    """Problem, state and result."""
    problem = problem_of(scan or scan_of(SHAPE), settings, **options)
    result, state = problem.solve(settings)
    return problem, state, result


@pytest.mark.parametrize("noise", ["poisson", "shifted_poisson", "gaussian"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_terms_add_up_to_the_change_and_balance(penalty, noise):
    scan = scan_of(SHAPE, counts=8.0)
    settings = settings_of(regularization=penalty, noise=noise, background=0.1, tol=1e-6, max_iter=20000)
    problem, state, result = fitted(settings, scan)
    terms = problem.attribution(state, result.maps)
    change = result.maps - (scan[0] - 0.1)
    np.testing.assert_allclose(sum(terms.values()), change, atol=1e-10)
    inside = result.maps > 0.05 * result.maps.max()
    # the remainder is the accuracy of the solver
    assert np.sqrt(np.mean(terms["bound"][inside] ** 2)) < 5e-3 * np.sqrt(np.mean(scan[0]))
    assert np.abs(terms["penalty"]).max() > 0.1 or penalty == "none"


@pytest.mark.parametrize("noise", ["shifted_poisson", "gaussian"])
def test_change_by_the_image_is_the_gradient_of_its_term(noise):
    problem, state, result = fitted(settings_of(regularization="tv", noise=noise))
    z = result.maps / problem.scales[:, None, None]
    step, at = 1e-4, (0, 7, 9)
    up, down = z.copy(), z.copy()
    up[at] += step
    down[at] -= step
    haadf_term, data = ((term.value(up) - term.value(down)) / (2 * step) for term in (problem.haadf_term, problem.data))
    # the same step length for all terms: the gradient of the data is the change from measured to fused
    change = result.maps[at] - scan_of(SHAPE)[0][at]
    assert problem.attribution(state, result.maps)["haadf"][at] == pytest.approx(-haadf_term * change / data, rel=1e-4)


def test_terms_that_are_off_change_nothing():
    problem, state, result = fitted(settings_of(regularization="none", lambda_haadf=0.0))
    terms = problem.attribution(state, result.maps)
    assert not terms["haadf"].any() and not terms["penalty"].any()


def test_masked_pixels_have_no_change():
    scan = scan_of(SHAPE)
    valid = np.ones(scan[0].shape, bool)
    valid[0, :3] = False
    problem, state, result = fitted(settings_of(regularization="tv"), scan, valid=valid)
    for term in problem.attribution(state, result.maps).values():
        np.testing.assert_array_equal(np.isnan(term), ~valid)
