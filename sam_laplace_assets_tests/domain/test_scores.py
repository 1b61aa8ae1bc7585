"""Next points in original pixels, and what the maps of an answer say as a whole."""

import numpy as np
import pytest

from sam_laplace_assets.domain.acquisition import Maps, suggest, without_truth
from sam_laplace_assets.domain.geometry import to_low_res
from sam_laplace_assets.domain.prompts import PromptSet
from sam_laplace_assets.domain.scores import (
    Rule,
    boundary,
    expected_iou,
    next_points,
    ranks_images,
    require_offered,
    stream,
    summarise,
)

SIZES = [(300, 400), (256, 256), (37, 23), (2, 600), (1, 1), (3000, 4000)]


def some_maps(seed=0, side=256):
    y, x = np.mgrid[:side, :side] / side
    phases = np.random.default_rng(seed).uniform(0, 6, 4)
    logits = 4 * np.sin(7 * x + phases[0]) * np.cos(5 * y + phases[1]) + 2 * np.sin(11 * x * y + phases[2])
    p = 1 / (1 + np.exp(-logits))
    entropy = -p * np.log(p) - (1 - p) * np.log1p(-p)
    return Maps(p, entropy, p * (1 - p) * 1e-3, np.abs(logits) * 1e-3)


def a_rule(**changes):
    return Rule(**{"strategy": "entropy_interior", "suggestions": 10, "spacing": 16.0, "border": 0,
                   "earlier_radius": 1.0, "seed": 0} | changes)  # fmt: skip


def points_on(size, clicks=(((0, 0),), ()), maps=None, name="", **changes):
    return next_points(maps or some_maps(), PromptSet(0, *clicks), rule=a_rule(**changes), image_size=size,
                       stream_name=name)  # fmt: skip


@pytest.mark.parametrize("strategy", without_truth())
def test_on_an_image_of_the_maps_size_they_are_those_of_suggest(strategy):
    found = points_on((256, 256), clicks=(((9, 5),), ((100, 101),)), strategy=strategy, border=3, earlier_radius=20.0)
    plain = suggest(strategy, some_maps(), 10, spacing=16, border=3, earlier=[(9, 5), (100, 101)], earlier_radius=20,
                    generator=stream(0, ""))  # fmt: skip
    assert [(one.x, one.y, one.score, one.positive) for one in found] == [
        (one.x, one.y, one.score, one.positive) for one in plain
    ]
    assert [one.rank for one in found] == list(range(1, 11))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strategy", ["entropy_interior", "foreground_random"])
def test_they_are_different_pixels_of_the_image_and_none_is_a_click(size, strategy):
    corners = ((0, 0),), ((size[1] - 1, size[0] - 1),)
    found = points_on(size, clicks=corners, strategy=strategy)
    places = {(one.x, one.y) for one in found}
    assert len(places) == len(found)
    assert all(0 <= x < size[1] and 0 <= y < size[0] for x, y in places)
    assert not places & {*corners[0], *corners[1]}


def test_ten_suggestions_are_ten_places_where_many_low_res_pixels_are_one_of_the_image():
    assert len(points_on((37, 23))) == 10
    assert len(points_on((2, 600))) == 10
    assert points_on((1, 1)) == ()


def test_a_point_lies_in_the_original_pixel_that_its_place_in_the_maps_falls_in():
    for one in points_on((3000, 4000)):
        (back,) = to_low_res(np.array([(one.x, one.y)]), image_h=3000, image_w=4000)
        assert np.abs(back - (one.x_256, one.y_256)).max() <= 0.5


def test_a_random_strategy_draws_by_seed_and_name():
    first, same = (points_on((300, 400), strategy="random", name="a") for _ in range(2))
    assert first == same
    assert first != points_on((300, 400), strategy="random", name="b")
    assert first != points_on((300, 400), strategy="random", name="a", seed=1)
    assert not ranks_images("random")
    assert ranks_images("entropy_interior")


def test_a_strategy_that_needs_the_truth_is_not_offered():
    with pytest.raises(ValueError, match="no strategy 'oracle' to ask annotators by; choose one of bald, "):
        require_offered("oracle")
    with pytest.raises(ValueError, match="no strategy 'bold'"):
        a_rule(strategy="bold")


def test_expected_iou_is_what_drawn_masks_have_on_average():
    p = some_maps().probability
    draws = np.random.default_rng(0).random((50, *p.shape)) < p
    mask = p >= 0.5
    ious = (draws & mask).sum((1, 2)) / (draws | mask).sum((1, 2))
    assert expected_iou(p) == pytest.approx(ious.mean(), abs=4 * ious.std() / 50**0.5 + 1e-4)


def test_expected_iou_of_a_certain_mask_is_one_and_of_a_wrong_guess_nothing():
    certain = np.zeros((4, 4))
    assert expected_iou(certain) == 1.0
    certain[1:3] = 1.0
    assert expected_iou(certain) == 1.0
    assert expected_iou(np.full((4, 4), 0.4)) == 0.0


def test_the_boundary_of_a_square_is_its_rim_and_the_images_border_is_none():
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:6, 2:6] = True
    rim = mask.copy()
    rim[3:5, 3:5] = False
    np.testing.assert_array_equal(boundary(mask), rim)
    assert not boundary(np.ones((4, 4), dtype=bool)).any()
    assert not boundary(np.zeros((4, 4), dtype=bool)).any()


def test_a_summary_is_means_and_maxima_of_the_maps():
    maps = some_maps()
    found = summarise(maps)
    assert found.mean_mutual_information == maps.mutual_information.mean()
    assert found.max_entropy == maps.entropy.max()
    assert found.foreground_fraction == (maps.probability >= 0.5).mean()
    assert found.undecided_fraction == ((maps.probability > 0.1) & (maps.probability < 0.9)).mean()
    assert found.boundary_mutual_information == maps.mutual_information[boundary(maps.probability >= 0.5)].mean()
    blank = np.full((8, 8), 0.01)
    assert summarise(Maps(blank, blank, blank, blank)).boundary_mutual_information is None
