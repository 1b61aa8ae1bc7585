import pandas as pd
import pytest

from sam_laplace_assets.storage import files, index
from sam_laplace_assets.storage.index import IndexStore, read_index
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets_tests.storage.fakes import KEYS, Work, cut, make
from sam_laplace_assets_tests.storage.tables_of import index_frame, index_plan

FORMATS = pytest.mark.parametrize("table_format", ["parquet", "csv"])


def write(folder, table_format, keys=KEYS, **plan):
    return make(index_plan(keys, **plan), IndexStore(folder / "val_index", table_format))


@FORMATS
def test_rows_come_back_in_their_order(tmp_path, table_format):
    outcome = write(tmp_path, table_format)
    frame, complete = read_index(tmp_path / "val_index", table_format, split="val")
    pd.testing.assert_frame_equal(frame, index_frame(KEYS), check_dtype=False)
    assert complete
    (record,) = outcome.records.values()
    assert record.summary == {"rows": 6, "samples": 3, "mean_k_pairs": 1.5}
    assert outcome.data_version == record.contents[index.PART]


@FORMATS
def test_a_table_is_made_again_when_a_row_differs_or_it_is_damaged(tmp_path, table_format):
    work = Work()
    path = tmp_path / f"val_index.{table_format}"
    for keys, harm, expected in (
        (KEYS, None, 1), (KEYS, None, 0), (KEYS[1:], None, 1), (KEYS[1:], cut, 1), (KEYS[1:], type(path).unlink, 1),
    ):  # fmt: skip
        if harm:
            harm(path)
        write(tmp_path, table_format, keys, work=work)
        assert len(work.take()) == expected
    write(tmp_path, table_format, KEYS[1:], complete=False, work=work)
    assert len(work.take()) == 1
    assert not read_index(tmp_path / "val_index", table_format, split="val")[1]


def test_the_version_is_that_of_the_rows_in_either_format(tmp_path):
    versions = {write(tmp_path / one, one, complete=whole).data_version for one in ("parquet", "csv")
                for whole in (True, False)}  # fmt: skip
    assert len(versions) == 1


@FORMATS
def test_an_index_that_is_not_there_or_newer_is_named(tmp_path, table_format, monkeypatch):
    with pytest.raises(NotMade, match=r"val_index\.\w+ is not there. Materialise training_index\[val\] first"):
        read_index(tmp_path / "val_index", table_format, split="val")
    monkeypatch.setattr(index, "VERSION", 2)
    write(tmp_path, table_format)
    monkeypatch.setattr(index, "VERSION", 1)
    with pytest.raises(files.NewerFormat, match=r"has format version 2.*Upgrade"):
        write(tmp_path, table_format)


def test_an_index_without_rows_is_one(tmp_path):
    (record,) = write(tmp_path, "csv", ()).records.values()
    assert record.summary == {"rows": 0, "samples": 0, "mean_k_pairs": 0.0}
    assert len(read_index(tmp_path / "val_index", "csv", split="val")[0]) == 0
