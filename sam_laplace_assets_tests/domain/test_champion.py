"""The title moves for an improvement that the images agree on."""

import numpy as np
import pytest

from sam_laplace_assets.domain.champion import compare

RNG = np.random.default_rng(0)
NLL = RNG.gamma(2.0, 0.02, size=60)


def test_a_copy_of_the_champion_is_not_better():
    comparison = compare(NLL, NLL)
    assert (comparison.difference, comparison.low, comparison.high, comparison.better) == (0.0, 0.0, 0.0, False)


def test_a_candidate_that_is_lower_on_nearly_every_image_is_better():
    comparison = compare(NLL - RNG.normal(0.01, 0.005, size=60), NLL)
    assert comparison.better
    assert comparison.low < comparison.difference < comparison.high < 0


def test_a_candidate_within_the_noise_is_not_better():
    noise = RNG.normal(0, 0.01, size=60)
    assert not compare(NLL + noise - noise.mean() - 1e-4, NLL).better


def test_swapping_the_two_mirrors_the_interval():
    other = NLL + RNG.normal(0.001, 0.01, size=60)
    one, two = compare(NLL, other, seed=3), compare(other, NLL, seed=3)
    assert one.difference == pytest.approx(-two.difference)
    assert one.low == pytest.approx(-two.high)
    assert one.high == pytest.approx(-two.low)


def test_the_interval_is_paired():
    """Images differ far more than the two posteriors do; unpaired resampling would see nothing."""
    hard = RNG.gamma(1.0, 5.0, size=60)
    assert compare(hard - 0.001, hard).better


def test_the_interval_covers_a_normal_mean_as_often_as_it_says():
    rng = np.random.default_rng(5)
    samples = rng.normal(0.0, 1.0, size=(200, 40))
    intervals = [compare(sample, np.zeros(40), resamples=500, seed=i) for i, sample in enumerate(samples)]
    assert 0.88 < np.mean([interval.low <= 0 <= interval.high for interval in intervals]) < 0.99


def test_the_interval_narrows_to_the_standard_error():
    differences = np.random.default_rng(1).normal(-0.3, 1.0, size=400)
    comparison = compare(differences, np.zeros(400))
    error = differences.std() / 20
    assert comparison.high - comparison.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_one_image_is_never_enough():
    comparison = compare(np.array([0.1]), np.array([5.0]))
    assert (comparison.low, comparison.high, comparison.better, comparison.n_images) == (None, None, False, 1)
    assert comparison.difference == pytest.approx(-4.9)


def test_a_seed_decides_the_interval():
    other = NLL + RNG.normal(0, 0.01, size=60)
    assert compare(NLL, other, seed=1) == compare(NLL, other, seed=1)
    assert compare(NLL, other, seed=1) != compare(NLL, other, seed=2)


def test_scores_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(60,\) and \(59,\)"):
        compare(NLL, NLL[:-1])
    with pytest.raises(ValueError, match="at least one"):
        compare(NLL[:0], NLL[:0])
    with pytest.raises(ValueError, match="scores of 1 images are not finite"):
        compare(np.append(NLL, np.nan), np.append(NLL, 0.1))
