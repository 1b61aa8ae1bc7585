"""Mosaics are functions of their seed, and their objects are whole, neither tiny nor most of the image."""

import numpy as np
import pytest
from scipy.ndimage import label

from sam_laplace_assets.demo.mosaics import (
    FAMILIES,
    FRACTION,
    STREAM,
    draw_cells,
    draw_mosaic,
    mosaic_rng,
    smooth_field,
)
from sam_laplace_assets.demo.scenes import Purpose

families = pytest.mark.parametrize("family", FAMILIES)


@families
def test_the_same_seed_draws_the_same_mosaic(family: str) -> None:
    first, second = (draw_mosaic(mosaic_rng(3, 5), family=family, size=96) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)


def test_no_mosaic_shares_its_stream_with_a_scene() -> None:
    assert STREAM not in list(Purpose)


@families
def test_an_object_covers_its_share_and_the_image_varies(family: str) -> None:
    for index in range(6):
        sample = draw_mosaic(mosaic_rng(0, index), family=family, size=128)
        assert sample.image.shape == (128, 128, 3)
        assert sample.image.dtype == np.uint8
        assert FRACTION[0] <= sample.mask.mean() <= FRACTION[1]
        assert sample.image.std() > 5


def test_an_island_is_connected() -> None:
    for index in range(6):
        assert label(draw_mosaic(mosaic_rng(1, index), family="islands", size=128).mask)[1] == 1


def test_cells_leave_no_background() -> None:
    assert draw_cells(mosaic_rng(0, 0), 96).min() >= 1


def test_a_smooth_field_is_standardised_and_smooth() -> None:
    field = smooth_field(mosaic_rng(0, 0), 128, length=0.08)
    assert field.mean() == pytest.approx(0, abs=1e-12)
    assert field.std() == pytest.approx(1)
    assert abs(np.diff(field, axis=0)).max() < 0.5


@pytest.mark.parametrize(("family", "size"), [("leafs", 128), ("cells", 32)])
def test_what_cannot_be_drawn_is_refused(family: str, size: int) -> None:
    with pytest.raises(ValueError, match="choose one of cells, islands, leaves, 64 or more"):
        draw_mosaic(mosaic_rng(0, 0), family=family, size=size)
