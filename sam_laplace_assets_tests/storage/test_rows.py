import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch

from sam_laplace_assets.domain.pack import batches
from sam_laplace_assets.storage.pack import Pack, PackRefused, PackStore
from sam_laplace_assets.storage.rows import StreamedRows, load_rows, read_rows
from sam_laplace_assets_tests.storage.fakes import KEYS, make, pack_plan


@pytest.fixture
def opened(tmp_path):
    make(pack_plan(), PackStore(tmp_path, "val"))
    return Pack.open(tmp_path / "val.h5")


def total(rows):
    """What another process reads."""
    inputs, masks = rows.read(np.arange(len(rows)))
    return float(inputs.float().abs().sum()), int(masks.sum())


def test_streamed_rows_are_those_that_are_loaded(opened):
    loaded, streamed = load_rows(opened), StreamedRows(opened)
    np.testing.assert_array_equal(loaded.images, streamed.images)
    for rows in (np.arange(4), np.array([2]), np.array([0, 3]), np.arange(0)):
        for one, other in zip(loaded.read(rows), streamed.read(rows), strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def test_rows_are_streamed_where_they_do_not_fit_into_memory(opened):
    gib = opened.bytes / 2**30
    assert isinstance(read_rows(opened, memory_budget=gib * 0.99), StreamedRows)
    assert not isinstance(read_rows(opened, memory_budget=gib), StreamedRows)


def test_batches_read_ahead_by_a_thread(opened):
    read = torch.cat([batch.inputs for batch in batches(StreamedRows(opened), batch_size=3)])
    assert torch.equal(read, load_rows(opened).inputs)


def test_streamed_rows_go_into_another_process_open_or_not(opened):
    rows = StreamedRows(opened)
    assert total(pickle.loads(pickle.dumps(rows))) == total(rows)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(total, (rows,)) == total(rows)


def test_a_forked_process_opens_for_itself(opened):
    rows = StreamedRows(opened)
    parents = rows.opened
    assert rows.opened is parents
    child = os.fork()
    if child == 0:
        os._exit(0 if rows.opened is not parents and total(rows)[1] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_who_opened_before_a_replacement_reads_the_old_rows_or_is_refused(opened):
    reading, late = StreamedRows(opened), StreamedRows(opened)
    before = total(reading)
    for seed in (1, 2):
        make(pack_plan(seeds=dict.fromkeys(KEYS, seed)), PackStore(opened.path.parent, "val"))
        with pytest.raises(PackRefused, match=r"val\.h5 was replaced after it was opened by this run. Run again"):
            total(late)
        with pytest.raises(PackRefused, match="was replaced"):
            load_rows(opened)
        assert total(reading) == before


def test_a_pack_that_was_only_laid_out_anew_is_read_on(opened):
    late = StreamedRows(opened)
    make(pack_plan(force=True), PackStore(opened.path.parent, "val"))
    assert total(late) == total(StreamedRows(Pack.open(opened.path)))
