"""A head learns a few rows by heart unless their inputs say nothing about their masks."""

from dataclasses import replace

import pytest
import torch

from sam_laplace_assets.domain.sanity import overfits_tiny_batch
from sam_laplace_assets_tests.domain.some_rows import some_rows

ROWS = some_rows(12, height=48, width=48)
SETTINGS = {"dice_lambda": 0.5, "logit_clip": 20.0, "seed": 0, "hidden_channels": 16, "channels_in": 3, "steps": 40}


def test_rows_that_fit_their_masks_are_learned():
    report = overfits_tiny_batch(ROWS, **SETTINGS)
    assert report.passed
    assert report.last_loss < 0.5 * report.first_loss
    assert report.iou > 0.8


def test_masks_that_the_inputs_say_nothing_about_are_not_learned():
    noise = torch.rand(ROWS.masks.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    report = overfits_tiny_batch(replace(ROWS, masks=noise), **SETTINGS)
    assert not report.passed
    assert report.last_loss > 0.9 * report.constant_loss


def test_no_steps_teach_nothing():
    report = overfits_tiny_batch(ROWS, **(SETTINGS | {"steps": 0}))
    assert report.first_loss == report.last_loss
    assert not report.passed


def test_empty_masks_are_learned_by_saying_nothing():
    assert overfits_tiny_batch(replace(ROWS, masks=torch.zeros_like(ROWS.masks)), **SETTINGS).passed


def test_the_check_is_the_same_every_time_and_takes_fewer_rows_than_asked_for_where_there_are_fewer():
    few, settings = some_rows(2), SETTINGS | {"steps": 3}
    assert overfits_tiny_batch(few, **settings) == overfits_tiny_batch(few, **settings)


def test_an_empty_pack_is_refused():
    empty = replace(ROWS, inputs=ROWS.inputs[:0], masks=ROWS.masks[:0], images=ROWS.images[:0])
    with pytest.raises(ValueError, match="the pack has no rows"):
        overfits_tiny_batch(empty, **SETTINGS)
