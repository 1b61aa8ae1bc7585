import numpy as np
import pytest

from sam_laplace_assets.domain.adoption import (
    LOGIT_TOLERANCE,
    disagreement,
    largest_difference,
    misplaced_points,
    same_map,
    unusable_array,
)
from sam_laplace_assets.domain.geometry import LOW_RES
from sam_laplace_assets.domain.prompts import PromptSet, gaussian_map

SHAPE = (LOW_RES, LOW_RES)


@pytest.fixture
def mask():
    """An object of 2 x 3 pixels at the top left of 4 x 6."""
    mask = np.zeros((4, 6), dtype=bool)
    mask[:2, :3] = True
    return mask


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(0, 20, SHAPE).astype(np.float16)


@pytest.mark.parametrize(
    ("pos", "neg", "words"),
    [
        ((2, 1), (3, 1), ""),
        ((3, 1), (5, 3), "positive point (x, y) = (3, 1) of prompt set 7 lies beside the object"),
        ((2, 1), (0, 0), "negative point (x, y) = (0, 0) of prompt set 7 lies on the object"),
        ((2, 1), (6, 0), "lies outside the image of 4 x 6 pixels (H x W)"),
        ((2, 1), (0, 4), "lies outside the image"),
    ],
)
def test_a_point_belongs_on_the_object_or_beside_it_and_inside_the_image(mask, pos, neg, words):
    found = misplaced_points([PromptSet(7, (pos,), (neg,))], mask)
    assert words in found
    assert bool(words) == bool(found)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(SHAPE, np.float16), ""),
        (np.zeros(SHAPE, np.float32), "float32"),
        (np.zeros((64, 64), np.float16), "shape (64, 64)"),
        (np.full(SHAPE, np.inf, np.float16), "not finite"),
        (np.full(SHAPE, np.nan, np.float16), "not finite"),
    ],
)
def test_the_cache_holds_finite_float16_at_256_and_nothing_else(array, words):
    assert words in unusable_array(array)
    assert bool(words) == bool(unusable_array(array))


def test_maps_are_the_same_within_the_last_bit_and_not_beyond():
    drawn = gaussian_map(np.array([[30.0, 40.0], [200.5, 99.0]]), sigma=8)
    assert same_map(drawn, drawn)
    assert same_map(np.nextafter(drawn, np.float16(2)), drawn)
    twice = np.nextafter(np.nextafter(drawn, np.float16(2)), np.float16(2))
    assert not same_map(twice, drawn)
    assert not same_map(gaussian_map(np.array([[30.25, 40.0], [200.5, 99.0]]), sigma=8), drawn)


def test_a_difference_is_counted_beyond_what_float16_rounds(logits):
    assert largest_difference(logits, logits) == 0
    assert largest_difference(np.nextafter(logits, np.float16(np.inf)), logits) == 0
    assert largest_difference(logits + np.float16(1), logits) == pytest.approx(1, abs=0.1)


def test_logits_agree_within_the_tolerance_and_with_the_same_branch(logits):
    small = np.zeros(SHAPE, np.float16)
    inside, outside = (small + np.float16(factor * LOGIT_TOLERANCE) for factor in (0.9, 1.1))
    assert disagreement(inside, small, their_branch=1, our_branch=1) == ""
    assert "more than 0.02" in disagreement(outside, small, their_branch=1, our_branch=1)
    assert disagreement(logits, logits, their_branch=None, our_branch=2) == ""
    assert disagreement(logits, logits, their_branch=0, our_branch=2) == "it names branch 0, this SAM chooses 2"
