"""The pick rule against a slow one, depths against the nearest outside pixel, error clicks against drawn errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sam_laplace_assets.domain.clicks import best, depth, distance_to, error_depth, jittered, pick

unhurried = settings(deadline=None)  # a busy machine is no failure

shapes = npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
score_maps = npst.arrays(np.float64, shapes, elements=st.integers(-3, 3).map(float))
masks = npst.arrays(np.bool_, shapes)


def slow_pick(scores, count, *, spacing, border, earlier, earlier_radius):
    """Sort all pixels, then take each that breaks no rule."""
    height, width = scores.shape
    pixels = sorted((-scores[y, x], y, x) for y in range(height) for x in range(width))
    taken = []
    for _, y, x in pixels:
        inner = min(x, y, width - 1 - x, height - 1 - y) >= border
        new = all((x - a) ** 2 + (y - b) ** 2 >= earlier_radius**2 for a, b in earlier)
        apart = all((x - a) ** 2 + (y - b) ** 2 >= max(spacing, 1) ** 2 for a, b in taken)
        if inner and new and apart and len(taken) < count:
            taken.append((x, y))
    return taken


rules = st.fixed_dictionaries(
    {
        "spacing": st.sampled_from([0, 1, 1.5, 2, 3, 20]),
        "border": st.integers(0, 5),
        "earlier": st.lists(st.tuples(st.floats(-0.5, 9), st.floats(-0.5, 9)), max_size=3),
        "earlier_radius": st.sampled_from([0, 1, 2.5, 5]),
    }
)


@unhurried
@given(score_maps, st.integers(0, 12), rules)
def test_picks_are_those_of_going_through_all_pixels_in_order(scores, count, rule):
    assert pick(scores, count, **rule) == slow_pick(scores, count, **rule)


@unhurried
@given(score_maps, st.integers(0, 12), rules)
def test_an_increasing_transform_of_the_scores_moves_no_pick(scores, count, rule):
    assert pick(np.expm1(scores / 2) + 7, count, **rule) == pick(scores, count, **rule)


@unhurried
@given(st.integers(0, 2**31), st.sampled_from([(30, 40), (1, 50), (17, 3)]), st.floats(0, 20), st.integers(0, 4))
def test_picks_keep_their_distances(seed, shape, spacing, border):
    generator = np.random.default_rng(seed)
    earlier = generator.uniform(0, 30, (2, 2))
    points = np.array(
        pick(generator.random(shape), 10, spacing=spacing, border=border, earlier=earlier, earlier_radius=5)
    ).reshape(-1, 2)
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)[~np.eye(len(points), dtype=bool)]
    assert (gaps >= max(spacing, 1) - 1e-9).all()
    assert (np.linalg.norm(points[:, None] - earlier[None], axis=-1) >= 5 - 1e-9).all()
    assert (points >= border).all()
    assert (points <= np.array(shape)[::-1] - 1 - border).all()


@unhurried
@given(st.integers(0, 2**31), st.sampled_from([0, 1]))
def test_flipping_the_scores_flips_the_picks(seed, axis):
    scores = np.random.default_rng(seed).random((12, 15))
    picks = np.array(pick(scores, 5, spacing=4, border=1))
    flipped = np.array(pick(np.flip(scores, axis), 5, spacing=4, border=1))
    side = 1 - axis
    flipped[:, side] = scores.shape[axis] - 1 - flipped[:, side]
    np.testing.assert_array_equal(flipped, picks)


def test_equal_scores_are_taken_in_reading_order():
    assert pick(np.zeros((4, 5)), 4, spacing=2) == [(0, 0), (2, 0), (4, 0), (0, 2)]


@pytest.mark.parametrize(
    "rule",
    [{"border": 2}, {"border": 100}, {"earlier": [(1.5, 1.5)], "earlier_radius": 9}],
    ids=["inner", "all", "near"],
)
def test_no_point_is_given_where_the_constraints_leave_none(rule):
    assert pick(np.ones((4, 4)), 3, **rule) == []


def test_fewer_points_are_given_where_fewer_fit():
    assert pick(np.arange(6.0)[None], 10, spacing=3) == [(5, 0), (2, 0)]


def test_a_turn_is_kept_while_anything_is_free_there():
    left = np.zeros((1, 4), dtype=bool)
    left[0, :2] = True
    assert pick(np.arange(4.0)[None], 4, spacing=0, turns=iter([left] * 4)) == [(1, 0), (0, 0), (3, 0), (2, 0)]


@pytest.mark.parametrize(
    ("scores", "change", "text"),
    [
        (np.array([[0, np.nan]]), {}, "The map of scores has 1 pixels that are not finite"),
        (np.zeros(4), {}, r"The map of scores has shape \(4,\)"),
        (np.zeros((0, 4)), {}, r"The map of scores has shape \(0, 4\)"),
        (np.zeros((2, 2)), {"count": -1}, "Cannot pick -1 points"),
        (np.zeros((2, 2)), {"border": -1}, "border -1 .* must be 0 or more"),
    ],
)
def test_what_cannot_be_picked_from_is_refused(scores, change, text):
    with pytest.raises(ValueError, match=text):
        pick(scores, **({"count": 1} | change))


@unhurried
@given(masks, st.sampled_from([(1.0, 1.0), (2.0, 0.5)]))
def test_depth_is_the_distance_to_the_nearest_pixel_outside(region, pitch):
    padded = np.pad(region, 1)
    outside = np.argwhere(~padded) * pitch
    expected = [[np.linalg.norm(outside - np.array(at) * pitch, axis=1).min() for at in row] for row in _places(padded)]
    np.testing.assert_allclose(depth(region, pitch=pitch), np.array(expected)[1:-1, 1:-1], rtol=1e-12)


def _places(mask):
    return [[(y, x) for x in range(mask.shape[1])] for y in range(mask.shape[0])]


@unhurried
@given(masks)
def test_distance_to_a_region_is_that_to_its_nearest_pixel(region):
    inside = np.argwhere(region)
    expected = [
        [np.linalg.norm(inside - at, axis=1).min() if len(inside) else np.inf for at in row] for row in _places(region)
    ]
    np.testing.assert_allclose(distance_to(region), expected, rtol=1e-12)


def test_the_deepest_error_is_the_centre_of_the_larger_drawn_one():
    truth, predicted = np.zeros((40, 50), dtype=bool), np.zeros((40, 50), dtype=bool)
    truth[5:20, 5:30] = predicted[5:20, 5:30] = True
    truth[5:14, 30:39] = True  # missed: 9 x 9
    predicted[25:30, 10:40] = True  # too much: 5 x 30, the larger area but not the deeper
    assert best(error_depth(truth, predicted)) == (34, 9)
    assert error_depth(truth, predicted).max() == 5
    predicted[5:14, 30:39] = True
    assert error_depth(truth, predicted).max() == error_depth(truth, predicted)[27, 20] == 3


def test_errors_of_two_kinds_side_by_side_have_their_own_depths():
    truth = np.zeros((5, 10), dtype=bool)
    truth[:, :5] = True
    np.testing.assert_array_equal(error_depth(truth, ~truth)[2], [1, 2, 3, 2, 1, 1, 2, 3, 2, 1])


@pytest.mark.parametrize("mask", [np.zeros((4, 5), dtype=bool), np.ones((4, 5), dtype=bool)])
def test_a_right_answer_has_no_depth_and_a_wrong_one_has(mask):
    assert not error_depth(mask, mask).any()
    assert (error_depth(mask, ~mask) > 0).all()


def test_a_jittered_point_is_even_over_the_pixels_nearer_than_the_radius():
    generator, within = np.random.default_rng(0), np.ones((5, 5), dtype=bool)
    within[2, 3] = False
    counts = np.zeros((5, 5))
    for _ in range(4000):
        x, y = jittered((2, 2), radius=1.1, within=within, generator=generator)
        counts[y, x] += 1
    expected = np.zeros((5, 5))
    expected[[2, 1, 3, 2], [2, 2, 2, 1]] = 1000
    np.testing.assert_allclose(counts, expected, atol=120)


def test_a_hand_that_does_not_shake_hits_the_point():
    nowhere = np.zeros((3, 3), dtype=bool)
    assert jittered((2, 1), radius=0, within=nowhere, generator=np.random.default_rng(0)) == (2, 1)
