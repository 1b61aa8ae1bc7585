"""Points lie where they say they do."""

import numpy as np

from sam_laplace_assets.demo.points import background_nearby, draw_points


def test_positive_points_lie_on_the_object_and_negative_ones_off_it() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:20, 30:55] = True
    points, labels = draw_points(np.random.default_rng(0), mask, positives=20, negatives=15)
    x, y = points.astype(int).T
    assert labels.tolist() == [1] * 20 + [0] * 15
    assert np.array_equal(mask[y, x], labels == 1)


def test_background_nearby_is_the_background_of_the_grown_box() -> None:
    mask = np.zeros((40, 60), bool)
    mask[16:24, 1:21] = True
    grown = np.zeros_like(mask)
    grown[16 - 5 : 24 + 5, 0 : 21 + 8] = True
    assert np.array_equal(np.sort(background_nearby(mask)), np.flatnonzero(grown & ~mask))


def test_an_object_that_fills_its_surroundings_still_gets_negative_points() -> None:
    mask = np.ones((30, 30), bool)
    mask[0, 0] = False
    points, _ = draw_points(np.random.default_rng(0), mask, positives=1, negatives=3)
    assert np.array_equal(points[1:], np.zeros((3, 2)))
