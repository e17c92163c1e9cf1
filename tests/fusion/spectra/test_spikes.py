"""Claims about spikes in spectra: those that were put in, nothing else, whatever the unit."""

import numpy as np
import pytest

from hyperspy_fusion.fusion.spectra.spikes import spikes


def counts(mean, shape=(20, 24, 80), seed=0):
    """Poisson counts on a power law, with an edge at channel 40 and a white line of one channel in half of them."""
    expected = mean * (1 + np.arange(shape[2]) / 40.0) ** -3.0 * np.ones(shape)
    expected[..., 40:] += 0.3 * expected[..., 40:]
    expected[:, shape[1] // 2 :, 40] *= 3
    return np.random.default_rng(seed).poisson(expected).astype(float)


@pytest.mark.parametrize("gain", [1.0, 1e-3, 40.0])
def test_the_spikes_that_were_put_in_are_found(gain):
    data = counts(1000)
    put = np.zeros(data.shape, bool)
    for where in ((3, 4, 10), (0, 0, 0), (19, 23, 79), (8, 20, 40), (8, 3, 60), (8, 3, 61)):
        put[where] = True
    data[put] += 2000
    np.testing.assert_array_equal(spikes(gain * data), put)


def test_what_is_no_spike():
    for mean in (0.05, 1.0, 50.0, 1e4):
        assert not spikes(counts(mean)).any()
    data = counts(1000)
    data[..., 20] *= 2  # a channel of the camera
    assert not spikes(data).any()
    assert not spikes(np.zeros((4, 5, 30))).any()
    assert not spikes(np.full((4, 5, 30), 7.0)).any()
