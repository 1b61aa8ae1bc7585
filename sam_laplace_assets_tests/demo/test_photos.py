"""The photographs have the masks they are said to have."""

import numpy as np
import pytest

from sam_laplace_assets.demo.photos import Sample, cell, coins, crop_around, horse


def test_there_are_24_coins_each_bright_on_a_darker_ground() -> None:
    samples = list(coins())
    assert len(samples) == 24
    for sample in samples:
        assert sample.image[sample.mask].mean() > sample.image[~sample.mask].mean() + 20


def test_a_crop_is_2_2_times_the_box_around_its_middle() -> None:
    mask = np.zeros((100, 100), bool)
    mask[40:60, 45:55] = True
    crop = crop_around(np.zeros((100, 100), np.uint8), mask)
    assert crop.mask.shape == (44, 22)
    assert np.array_equal(crop.mask, crop.mask[::-1, ::-1])
    assert crop.mask.sum() == mask.sum()


def test_cell_is_bright_and_horse_is_dark() -> None:
    assert cell().image[cell().mask].min() > cell().image[~cell().mask].max()
    assert set(horse().image[horse().mask]) == {0}


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"A mask of \(3, 4\) does not fit an image of \(4, 3\)"):
        Sample(np.zeros((4, 3), np.uint8), np.zeros((3, 4), bool))
