"""Rows come once each, in the asked order, and broken ones are refused by number."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from sam_laplace_assets.domain.pack import READ_AHEAD, batches
from sam_laplace_assets_tests.domain.some_rows import some_rows


@pytest.mark.parametrize(("n", "batch_size"), [(1, 4), (4, 4), (9, 4), (7, 1), (3, 100)])
def test_batches_give_every_row_once_with_its_inputs_and_mask(n, batch_size):
    rows = some_rows(n)
    order = np.random.default_rng(1).permutation(n)
    read = list(batches(rows, batch_size=batch_size, order=order))
    assert [len(batch.rows) for batch in read][:-1] == [batch_size] * (len(read) - 1)
    assert sorted(np.concatenate([batch.rows for batch in read])) == list(range(n))
    for batch in read:
        assert torch.equal(batch.inputs, rows.inputs[batch.rows])
        assert torch.equal(batch.masks, rows.masks[batch.rows])


def test_rows_of_a_batch_are_read_in_ascending_order():
    order = np.array([5, 2, 7, 0, 1, 6, 3, 4])
    assert [list(b.rows) for b in batches(some_rows(8), batch_size=3, order=order)] == [[2, 5, 7], [0, 1, 6], [3, 4]]


def test_batches_come_on_the_device_that_they_are_for():
    for batch in batches(some_rows(5), batch_size=2, device="meta"):
        assert batch.inputs.device.type == batch.masks.device.type == "meta"
        assert batch.inputs.shape == (len(batch.rows), 3, *batch.masks.shape[1:])


def test_no_rows_give_no_batches():
    assert list(batches(some_rows(4), batch_size=2, order=np.array([], dtype=np.int64))) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_input_that_is_not_finite_is_refused_naming_row_and_image(value):
    rows = some_rows(8, n_images=3)
    rows.inputs[5, 1, 3, 4] = value
    with pytest.raises(ValueError, match=r"Row 5 \(image 2\) holds NaN or infinite inputs"):
        list(batches(rows, batch_size=4))


def test_the_largest_float16_logits_are_finite():
    rows = some_rows(2)
    rows.inputs[:, 0] = 65504
    assert len(list(batches(rows, batch_size=2))) == 1


def test_masks_that_are_not_bool_are_refused():
    rows = some_rows(4)
    with pytest.raises(ValueError, match=r"Masks of a pack must be bool, found torch.uint8"):
        list(batches(replace(rows, masks=rows.masks.to(torch.uint8)), batch_size=4))


def test_rows_whose_parts_do_not_fit_together_are_refused():
    rows = some_rows(4)
    with pytest.raises(ValueError, match="Rows do not fit together"):
        replace(rows, images=rows.images[:3])


def test_a_reader_that_is_left_early_leaves_no_thread_behind():
    reading = batches(some_rows(8), batch_size=2)
    next(reading)
    reading.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_no_more_batches_are_in_memory_than_are_read_ahead():
    rows, read = some_rows(8), []

    class Watched:
        images = rows.images

        def __len__(self):
            return len(rows)

        def read(self, chosen):
            read.append(chosen)
            return rows.read(chosen)

    for taken, _ in enumerate(batches(Watched(), batch_size=1), start=1):
        assert len(read) <= taken + READ_AHEAD
