"""Attainable gain: by hand, and by the inverse of the Fisher matrix."""

import numpy as np
import pytest

from hyperspy_fusion.fusion.uncertainty import fisher


def attainable_gain(variance, weights, sigma):
    return fisher.attainable_gain(variance, [weights], [sigma], [0.0])


def test_gain_by_hand():
    # S = 1 * 2 + 4 * 3 = 14
    gain = attainable_gain(np.array([2.0, 3.0]).reshape(2, 1, 1), np.array([1.0, 2.0]), 1.0)
    np.testing.assert_allclose(gain.ravel(), [15 / 13, 15 / 3], rtol=1e-12)
    gain = attainable_gain(np.array([[[4.0]]]), np.array([3.0]), 0.1)
    assert gain.item() == pytest.approx(1 + 9 * 4 / 0.01)
    gain = attainable_gain(np.ones((2, 1, 1)), np.array([1.0, 0.0]), 1.0)
    np.testing.assert_allclose(gain.ravel(), [2, 1])
    variance = np.array([[[np.nan, 2.0]], [[3.0, 3.0]]])
    gain = attainable_gain(variance, np.array([1.0, 2.0]), np.array([[1.0, np.inf]]))
    # of two unknowns in one number, the one that was not measured takes it all; a masked image says nothing
    np.testing.assert_allclose(gain, [[[np.nan, 1]], [[1, 1]]], rtol=1e-6)


def test_elements_that_the_image_does_not_show(recwarn):
    gain = attainable_gain(np.array([[[np.nan, 2.0]], [[3.0, 3.0]]]), np.array([0.0, 2.0]), 1.0)
    np.testing.assert_allclose(gain, [[[np.nan, 1]], [[13, 13]]])
    assert not recwarn.list


@pytest.mark.parametrize("n_images", [1, 2, 3])
def test_gain_is_that_of_the_inverse_fisher_matrix(n_images):
    rng = np.random.default_rng(0)
    variance = rng.uniform(0.1, 5, (3, 2, 4))
    ws, sigmas = rng.uniform(-2 * (n_images > 1), 2, (n_images, 3)), rng.uniform(0.1, 3, (n_images, 2, 4))
    gain = fisher.attainable_gain(variance, ws, sigmas, [0.0] * n_images)
    for y, x in np.ndindex(2, 4):
        matrix = np.diag(1 / variance[:, y, x])
        matrix += sum(np.outer(w, w) / sigma[y, x] ** 2 for w, sigma in zip(ws, sigmas, strict=True))
        expected = variance[:, y, x] / np.diag(np.linalg.inv(matrix))
        np.testing.assert_allclose(gain[:, y, x], expected, rtol=1e-10)
