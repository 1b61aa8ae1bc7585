from itertools import pairwise

import numpy as np
import pytest
import torch

from sam_laplace_assets.domain.click_field import (
    FIELD_LENGTH,
    FIELD_VARIANCE,
    NUGGET,
    field_variance,
    information,
)
from sam_laplace_assets.domain.quantities import quantities


def squared_distances(points, others):
    return np.square(np.asarray(points)[:, None] - np.asarray(others)[None]).sum(axis=-1)


def covariance(points, others):
    return FIELD_VARIANCE * np.exp(-squared_distances(points, others) / (2 * FIELD_LENGTH**2))


def test_without_clicks_the_field_has_its_variance_everywhere():
    np.testing.assert_array_equal(field_variance((5, 7), []), np.full((5, 7), FIELD_VARIANCE))
    np.testing.assert_array_equal(field_variance((5, 7), np.zeros((0, 2))), np.full((5, 7), FIELD_VARIANCE))


def test_one_click_leaves_what_its_correlation_does_not_explain():
    left = field_variance((64, 64), [(20, 30)])
    y, x = np.mgrid[:64, :64]
    squared = (x - 20) ** 2 + (y - 30) ** 2
    np.testing.assert_allclose(left, FIELD_VARIANCE * (1 - np.exp(-squared / FIELD_LENGTH**2) / (1 + NUGGET)))
    assert left[30, 20] == left.min() == pytest.approx(FIELD_VARIANCE * NUGGET, rel=1e-2)


def test_the_variance_is_that_of_a_dense_gaussian_given_the_clicks():
    """Conditioning the whole covariance of a small image, the slow and obvious way."""
    y, x = np.mgrid[:12, :17]
    pixels = np.stack([x.ravel(), y.ravel()], axis=1)
    clicks = np.array([[3, 4], [10.5, 2.25], [16, 11], [4, 4]])
    cross = covariance(pixels, clicks)
    noisy = covariance(clicks, clicks) + FIELD_VARIANCE * NUGGET * np.eye(4)
    conditional = covariance(pixels, pixels) - cross @ np.linalg.inv(noisy) @ cross.T
    expected = conditional.diagonal().reshape(12, 17)
    np.testing.assert_allclose(field_variance((12, 17), clicks), expected, atol=1e-9)


def test_more_clicks_never_leave_more():
    clicks = np.random.default_rng(0).uniform(0, 40, (20, 2))
    left = [field_variance((40, 40), clicks[:k]) for k in range(21)]
    assert all((after <= before + 1e-9).all() for before, after in pairwise(left))
    assert left[-1].min() >= 0


def test_twenty_clicks_on_one_pixel_are_no_obstacle():
    left = field_variance((30, 30), [(9, 9)] * 20)
    assert np.isfinite(left).all()
    np.testing.assert_allclose(left, field_variance((30, 30), [(9, 9)]), atol=2 * NUGGET * FIELD_VARIANCE)


@pytest.mark.parametrize("weights", [0.0, 0.5])
def test_information_is_that_of_quadrature_nearly(weights):
    mean, local = np.meshgrid(np.linspace(-12, 12, 97), np.linspace(0, 16, 33))
    alone = quantities(torch.from_numpy(mean), torch.full(mean.shape, weights, dtype=torch.float64))
    exact = quantities(torch.from_numpy(mean), torch.from_numpy(local + weights)).mutual_information.numpy()
    found = information(alone.probability.numpy(), np.full(mean.shape, weights), local)
    assert abs(found - exact)[abs(mean) <= 1].max() < 0.025
    assert -0.025 < (found - exact).min() <= (found - exact).max() < 0.065
    assert found.min() >= 0


def test_information_is_the_same_for_either_label_and_grows_with_the_variance():
    p, nothing = np.linspace(0.01, 0.99, 99)[None], np.zeros((1, 99))
    gained = [information(p, nothing, np.full_like(p, variance)) for variance in (0.5, 1.0, 4.0)]
    for one in gained:
        np.testing.assert_allclose(one, one[:, ::-1], rtol=1e-9, atol=1e-12)
    assert (gained[0] <= gained[1]).all()
    assert (gained[1] <= gained[2]).all()


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_information_of_certain_labels_is_finite(p):
    gained = information(np.full((3, 3), p), np.zeros((3, 3)), np.full((3, 3), FIELD_VARIANCE))
    assert np.isfinite(gained).all()
    assert gained.max() < np.log(2)
