import pandas as pd
import pyarrow as pa
import pytest

from sam_laplace_assets.storage import files, index
from sam_laplace_assets.storage.index import IndexStore, read_index
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets.storage.tables import TableRefused, write_table
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
    assert record.summary == {"rows": 6, "samples": 3, "mean_k_pairs": 1.5, "mean_n_pos": 3.5, "mean_n_neg": 1.5}
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
    monkeypatch.setattr(index, "VERSION", 3)
    write(tmp_path, table_format)
    monkeypatch.undo()
    with pytest.raises(files.NewerFormat, match=r"has format version 3.*Upgrade"):
        write(tmp_path, table_format)


@FORMATS
def test_an_index_of_the_version_before_is_refused_and_made_again(tmp_path, table_format):
    (item,) = index_plan(KEYS).items
    columns = pa.schema([one for one in index.SCHEMA if one.name not in ("n_pos", "n_neg")])
    note = {"version": 1, "complete": True, "provenance": item.parts[index.PART], "data_version": "", "summary": {}}
    write_table(tmp_path / f"val_index.{table_format}", index_frame(KEYS)[columns.names], columns, note)
    with pytest.raises(TableRefused, match=r"format version 1, without .* Materialise training_index\[val\] again"):
        read_index(tmp_path / "val_index", table_format, split="val")
    work = Work()
    write(tmp_path, table_format, work=work)
    assert len(work.take()) == 1
    pd.testing.assert_frame_equal(
        read_index(tmp_path / "val_index", table_format, split="val")[0], index_frame(KEYS), check_dtype=False
    )


def test_an_index_without_rows_is_one(tmp_path):
    (record,) = write(tmp_path, "csv", ()).records.values()
    assert record.summary == {"rows": 0, "samples": 0, "mean_k_pairs": 0.0, "mean_n_pos": 0.0, "mean_n_neg": 0.0}
    assert len(read_index(tmp_path / "val_index", "csv", split="val")[0]) == 0
