"""Intervals that cover as often as they say, whatever is drawn again: images or groups of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_laplace_assets.domain.bootstrap import bootstrap_means, by_label, difference, estimate, per_image

RNG = np.random.default_rng(0)
IMAGES = np.repeat(np.arange(40), RNG.integers(1, 6, size=40))
VALUES = RNG.normal(0.7, 0.1, size=40)[IMAGES] + RNG.normal(0, 0.02, size=len(IMAGES))


def one_by_one(values, *, resamples, seed):
    """The loop that champion's decisions were made with."""
    generator, n = np.random.default_rng(seed), len(values)
    return np.array([values[generator.integers(n, size=n)].mean() for _ in range(resamples)])


@pytest.mark.parametrize("n", [2, 7, 60, 129, 1000, 20_001])
def test_drawing_many_at_once_gives_bit_by_bit_what_drawing_one_by_one_gives(n, monkeypatch):
    values = np.random.default_rng(n).gamma(2.0, 0.02, size=n)
    expected = one_by_one(values, resamples=111, seed=3)
    np.testing.assert_array_equal(bootstrap_means(values, np.ones(n), resamples=111, seed=3), expected)
    monkeypatch.setattr("sam_laplace_assets.domain.bootstrap.DRAWN_AT_ONCE", 5 * n + 1)
    np.testing.assert_array_equal(bootstrap_means(values, np.ones(n), resamples=111, seed=3), expected)


def test_per_image_is_the_mean_over_each_images_rows_in_ascending_order():
    expected = [np.mean([v for v, i in zip(VALUES, IMAGES, strict=True) if i == image]) for image in range(40)]
    np.testing.assert_allclose(per_image(VALUES, IMAGES), expected, rtol=1e-12)


def test_the_mean_weighs_images_alike_however_many_rows_they_have():
    found = estimate(VALUES, IMAGES, resamples=100)
    assert found.mean == pytest.approx(per_image(VALUES, IMAGES).mean())
    assert (found.n_images, found.n_units, found.images_left_out) == (40, 40, 0)
    assert found.low < found.mean < found.high


def test_the_interval_is_that_of_the_images_means():
    assert estimate(VALUES, IMAGES) == estimate(per_image(VALUES, IMAGES), np.arange(40))


def test_repeating_every_row_changes_nothing():
    again = estimate(np.tile(VALUES, 5), np.tile(IMAGES, 5), seed=1)
    once = estimate(VALUES, IMAGES, seed=1)
    assert (again.low, again.high) == pytest.approx((once.low, once.high), rel=1e-12)


def coverage(draw, *, simulations=300):
    """How often the interval of `draw(rng)`, values and groups or None, covers a true mean of 0."""
    covered = 0
    for seed in range(simulations):
        values, groups = draw(np.random.default_rng([7, seed]))
        found = estimate(values, np.arange(len(values)), groups=groups, resamples=1000, seed=seed)
        covered += found.low <= 0 <= found.high
    return covered / simulations


def test_the_interval_covers_a_skewed_mean_as_often_as_it_says():
    assert 0.90 <= coverage(lambda rng: (rng.gamma(2.0, 1.0, size=80) - 2.0, None)) <= 0.98


def patients(rng):
    """60 patients of 1 to 8 images that share what is special about them."""
    groups = np.repeat(np.arange(60), rng.integers(1, 9, size=60))
    return rng.normal(size=60)[groups] + rng.normal(0, 0.3, size=len(groups)), groups


def test_drawing_patients_covers_where_drawing_their_images_does_not():
    assert 0.90 <= coverage(patients) <= 0.98
    assert coverage(lambda rng: (patients(rng)[0], None)) < 0.80


def test_groups_of_one_image_are_images_and_their_names_do_not_matter():
    names = np.array([f"patient {image:03d}" for image in IMAGES])
    assert estimate(VALUES, IMAGES, groups=names, seed=2) == estimate(VALUES, IMAGES, seed=2)


def test_the_mean_stays_one_over_images_when_groups_are_drawn():
    groups = IMAGES // 7
    grouped = estimate(VALUES, IMAGES, groups=groups, resamples=200)
    assert grouped.mean == estimate(VALUES, IMAGES, resamples=200).mean
    assert (grouped.n_images, grouped.n_units) == (40, 6)


def test_a_resample_of_groups_is_the_mean_over_the_images_it_holds():
    members = [np.array([1.0]), np.array([2.0, 4.0, 9.0]), np.array([5.0, 5.0])]
    found = bootstrap_means(np.array([1.0, 15.0, 10.0]), np.array([1.0, 3.0, 2.0]), resamples=50, seed=4)
    drawn = np.random.default_rng(4).integers(3, size=(50, 3))
    np.testing.assert_allclose(found, [np.concatenate([members[unit] for unit in each]).mean() for each in drawn])


def test_a_difference_is_paired():
    hard = RNG.gamma(1.0, 5.0, size=60)
    images = np.arange(60)
    found = difference(hard - 0.001, hard, images)
    assert found.high < 0
    mirrored = difference(hard, hard - 0.001, images)
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low))
    alone = estimate(hard - 0.001, images)
    assert alone.high - alone.low > 1000 * (found.high - found.low)


def test_rows_that_are_not_present_are_left_out_and_images_counted():
    present = IMAGES >= 3
    values = np.where(present, VALUES, np.nan)
    found = estimate(values, IMAGES, present=present)
    assert (found.n_images, found.images_left_out) == (37, 3)
    assert found.mean == estimate(VALUES[present], IMAGES[present]).mean
    nobody = estimate(VALUES, IMAGES, present=np.zeros(len(VALUES), dtype=bool))
    assert (nobody.mean, nobody.low, nobody.n_images, nobody.images_left_out) == (None, None, 0, 40)


def test_one_image_has_a_mean_and_no_interval():
    found = estimate(np.array([0.2, 0.4]), np.array([5, 5]))
    assert found.mean == pytest.approx(0.3)
    assert (found.low, found.high, found.n_units) == (None, None, 1)


def test_each_label_is_the_estimate_of_its_rows():
    k_pairs = np.arange(len(IMAGES)) % 3 + 1
    found = by_label(VALUES, IMAGES, k_pairs, groups=IMAGES // 4, resamples=200, seed=5)
    assert list(found) == [1, 2, 3]
    its = k_pairs == 2
    assert found[2] == estimate(VALUES[its], IMAGES[its], groups=IMAGES[its] // 4, resamples=200, seed=5)
    present = IMAGES % 5 > 0
    some = by_label(VALUES, IMAGES, k_pairs, present=present, resamples=200)
    assert some[1] == estimate(
        *(c[k_pairs == 1] for c in (VALUES, IMAGES)), present=present[k_pairs == 1], resamples=200
    )
    classes = np.array(["cat", "boat"])[IMAGES % 2]
    assert list(by_label(VALUES, IMAGES, classes, resamples=10)) == ["boat", "cat"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.integers(0, 5))
def test_the_interval_lies_within_the_values_and_grows_with_its_confidence(values, seed):
    values, images = np.array(values), np.arange(len(values))
    narrow, wide = (estimate(values, images, resamples=300, confidence=part, seed=seed) for part in (0.5, 0.95))
    assert values.min() - 1e-9 <= wide.low <= narrow.low <= narrow.high <= wide.high <= values.max() + 1e-9


def test_a_seed_decides_the_interval():
    assert estimate(VALUES, IMAGES, seed=1) == estimate(VALUES, IMAGES, seed=1)
    assert estimate(VALUES, IMAGES, seed=1) != estimate(VALUES, IMAGES, seed=2)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"images \(3,\) do not fit"):
        estimate(VALUES, IMAGES[:3])
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        difference(np.zeros(2), np.zeros(3), np.arange(2))
    with pytest.raises(ValueError, match=r"row 1 \(image 8\) is nan. Mark it as not present"):
        estimate(np.array([0.1, np.nan]), np.array([7, 8]))
    with pytest.raises(ValueError, match="Image 4 is in two groups, 0 and 1"):
        estimate(np.zeros(3), np.array([4, 5, 4]), groups=np.array([0, 0, 1]))
    with pytest.raises(ValueError, match="resamples is 0"):
        estimate(VALUES, IMAGES, resamples=0)
