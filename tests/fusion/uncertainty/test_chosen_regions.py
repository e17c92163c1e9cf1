"""Regions that a map of counts chose: what chance added is left out, and the truth is within the error."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, uniform_filter

from hyperspy_fusion.fusion.spectra.line_model import SpectralModel
from hyperspy_fusion.fusion.spectra.scan_spectra import ScanSpectra
from hyperspy_fusion.fusion.uncertainty.chosen_regions import ChosenRegion
from hyperspy_fusion.fusion.uncertainty.error_estimates import BootstrapReplicates
from hyperspy_fusion.fusion.uncertainty.region_counts import RegionCounts

SIZE = 48
LOOKS = {
    "as they are": lambda counts: counts,
    "Gaussian of 1": lambda counts: gaussian_filter(counts, 1.0),
    "Gaussian of 1.7": lambda counts: gaussian_filter(counts, 1.7),
    "mean of 3 x 3": lambda counts: uniform_filter(counts, 3),
    "both": lambda counts: gaussian_filter(uniform_filter(counts, 3), 0.8),
}


def truth_of(kind):
    """Flat, or a bright disc and weak spots of all sizes."""
    y, x = np.mgrid[:SIZE, :SIZE]
    if kind == "flat":
        return np.full((SIZE, SIZE), 0.4)
    rng, found = np.random.default_rng(8), 0.1 + 2.0 * (np.hypot(y - 14, x - 30) < 7)
    for at_y, at_x, width in rng.random((9, 3)):
        found += 0.8 * np.exp(-((y - SIZE * at_y) ** 2 + (x - SIZE * at_x) ** 2) / (2 * (1 + 3 * width) ** 2))
    return found


def chosen(image, part, sign):
    return sign * image >= np.quantile(sign * image, 1 - part)


@pytest.mark.parametrize("sign, part", [(1, 0.15), (-1, 0.4)])
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("kind", ["flat", "spots"])
def test_the_truth_of_a_region_that_counts_chose_is_within_its_error(kind, look, sign, part):
    truth, plain, found = truth_of(kind), [], []
    for seed in range(24):
        counts = np.random.default_rng(seed).poisson(truth).astype(float)
        mask = chosen(LOOKS[look](counts), part, sign)
        region, total = ChosenRegion.of(mask, counts), truth[mask].sum()
        left = counts[mask].sum() - region.chance(counts[None])[0]
        plain.append((counts[mask].sum() - total) / np.sqrt(total))
        found.append((left - total) / np.sqrt(max(left, 1) + region.variance(counts)))
    # two filters in turn are none of those that are tried
    assert sign * np.mean(plain) > 0.8 and abs(np.mean(found)) < (1.3 if look == "both" else 0.8)
    assert 0.5 < np.sqrt(np.mean(np.square(found))) < 1.6


@pytest.mark.parametrize("kind", ["flat", "spots"])
@pytest.mark.parametrize("level", [0.3, 1.0, 20.0])
def test_regions_that_other_images_chose_keep_their_means(kind, level):
    truth, changes, recognised = level * truth_of(kind), [], 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        counts, other = rng.poisson(truth), rng.poisson(truth).astype(float)
        square = np.zeros((SIZE, SIZE), bool)
        square[10:22, 24:36] = True
        bright = [truth > 1.5 * level] if kind == "spots" else []
        for mask in (square, chosen(gaussian_filter(other, 1.0), 0.1, 1), *bright):
            assert 0 < np.mean(mask) < 0.5 and counts[mask].any()
            region = ChosenRegion.of(mask, counts)
            # the brightest particle is the same pixels by all images
            recognised += region is not None and (mask is square or level < 5 and not np.all(truth[mask] > 1.5 * level))
            changes.append(0 if region is None else region.chance(counts[None])[0] / np.sqrt(counts[mask].sum()))
    assert not recognised and np.mean(changes) < 0.25 and np.max(changes) < 1


def test_no_region_and_no_structure_were_chosen_by_nothing():
    counts = np.random.default_rng(0).poisson(truth_of("spots"))
    assert ChosenRegion.of(np.zeros((SIZE, SIZE), bool), counts) is None
    assert ChosenRegion.of(np.ones((SIZE, SIZE), bool), counts) is None
    assert ChosenRegion.of(counts >= 0, np.ones((SIZE, SIZE))) is None


def test_means_of_maps_with_and_without_replicates_leave_out_what_chance_added():
    """Of maps of half a count each, above a background; the fit is the truth, and so are its replicates on average."""
    truth, background, unit = truth_of("spots")[None], 0.2, 0.5
    off = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        counts = rng.poisson(truth + background)
        arrays = {
            "maps": unit * truth,
            "residual": unit * (counts - truth - background),
            "counted": np.ones(truth.shape, bool),
            "variance": unit**2 * (truth + background),
            "counts_scale": np.array([unit]),
        }
        drawn = unit * (rng.poisson(truth + background, (16, *truth.shape)) - truth - background)
        mask = chosen(gaussian_filter(counts[0].astype(float), 1.0), 0.05, 1)
        replicates = BootstrapReplicates(**arrays, errors=0.1 * drawn, residuals=0.9 * drawn)
        means = RegionCounts(**arrays).counted_mean(mask, 0), replicates.region_mean(mask, 0)
        true, plain = unit * truth[0][mask].mean(), unit * (counts[0][mask].mean() - background)
        assert {mean.weight for mean in means} == {1.0}
        off.append([*((mean.value - true) / mean.error for mean in means), (plain - true) / means[0].error])
    assert np.all(np.abs(np.mean(off, axis=0)[:2]) < 0.8) and np.mean(off, axis=0)[2] > 1.5
    assert np.all(np.std(off, axis=0)[:2] < 1.5)


def test_means_of_spectra_leave_out_what_chance_added_to_a_window():
    """A weak line on a continuum: its window has as many counts of both."""
    channels = np.arange(40)
    columns = np.stack([np.exp(-0.5 * ((channels - 14) / 2) ** 2), np.ones(40), 1 + channels / 40], axis=1)
    columns /= columns.sum(axis=0)
    truth = np.stack([truth_of("spots"), np.full((SIZE, SIZE), 1.0), np.full((SIZE, SIZE), 1.0)])
    windows, edges, off = abs(channels - 14)[None] < 5, np.arange(0, 41, 2), []
    for seed in range(16):
        drawn = np.random.default_rng(seed).poisson(np.tensordot(columns, truth, 1))
        summed = drawn.sum(axis=(1, 2)).astype(float)
        share = np.array([1.0, np.nan, np.nan])
        model = SpectralModel(
            columns, ("S", "low", "high"), 1, edges, 0, channels + 1.0, None, summed, SIZE**2, share, np.zeros(3), ()
        )
        image = drawn[windows[0]].sum(axis=0)
        spectra = ScanSpectra(model, np.add.reduceat(drawn, edges[:-1], axis=0), windows, image[None])
        zeros = np.zeros((1, SIZE, SIZE))
        counts = RegionCounts(
            maps=zeros, residual=zeros, counted=zeros == 0, variance=2 * truth[:1], counts_scale=np.array([np.nan]),
            spectra=spectra,
        )  # fmt: skip
        mask = chosen(gaussian_filter(image.astype(float), 1.0), 0.05, 1)
        mean, true = counts.counted_mean(mask, 0), truth[0][mask].mean()
        off.append([(mean.value - true) / mean.error, (spectra.mean_of(mask, 0) - true) / mean.error])
    assert abs(np.mean(off, axis=0)[0]) < 0.8 and np.mean(off, axis=0)[1] > 1.5
