import json
from itertools import count

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sam_laplace_assets.domain.plan import digest
from sam_laplace_assets.storage import files, tables
from sam_laplace_assets_tests.storage.fakes import cut, death, flip

SCHEMA = pa.schema([("name", pa.string()), ("n", pa.int64()), ("x", pa.float64()), ("valid", pa.bool_())])
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
ROWS = st.lists(
    st.tuples(
        st.none() | TEXT | st.sampled_from(["NA", "null", "NaN", "", "a,b", "a\nb", '"', "é", "true", "1", "\r\n"]),
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | st.floats(allow_nan=False),
        st.none() | st.booleans(),
    ),
    max_size=6,
)
AWKWARD = [("NA", 1, 0.1, True), (None, None, None, None), ('a,b\n"é"', 2, -0.0, False), ("", 3, 1e300, None)]


def frame_of(rows, schema=SCHEMA):
    return pd.DataFrame(rows, columns=schema.names, dtype=object)


@settings(max_examples=60, deadline=None)
@given(ROWS)
@example(AWKWARD)
@example([])
def test_csv_and_parquet_hold_the_same_table(tmp_path_factory, rows):
    folder, read = tmp_path_factory.mktemp("tables"), []
    for table_format in ("parquet", "csv"):
        path = tables.path_of(folder / "t", table_format)
        tables.write_table(path, frame_of(rows), SCHEMA, {"version": 1})
        read.append(tables.read_table(path, SCHEMA))
    pd.testing.assert_frame_equal(*read, check_exact=True)
    back = read[0].astype(object).where(read[0].notna(), None)
    if all(row[1] is not None for row in rows):  # else pandas has them as float64
        assert [tuple(row) for row in back.itertuples(index=False)] == rows


@settings(max_examples=40, deadline=None)
@given(ROWS)
@example(AWKWARD)
@example([])
def test_rows_that_go_through_block_by_block_are_the_same_rows(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("tables") / "t.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BLOCK", 2)
        tables.write_batches(path, tables.batches_of(rows, SCHEMA), SCHEMA, {"version": 1})
        dicts = [dict(zip(SCHEMA.names, row, strict=True)) for row in rows]
        assert tables.read_note(path, version=1) == {"version": 1}
        assert list(tables.rows_of(tables.read_arrow(path, SCHEMA))) == dicts
        assert tables.table_of(dicts, SCHEMA).equals(tables.read_arrow(path, SCHEMA))


@settings(max_examples=40, deadline=None)
@given(ROWS)
@example(AWKWARD)
@example([])
def test_the_digest_of_columns_is_that_of_their_json(rows):
    table = tables.table_of((dict(zip(SCHEMA.names, row, strict=True)) for row in rows), SCHEMA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BLOCK", 2)
        assert tables.columns_digest(table) == digest(table.to_pydict())
    assert tables.columns_digest(table.select([])) == digest({})


@pytest.mark.parametrize("table_format", ["parquet", "csv"])
def test_a_table_of_one_column_keeps_its_nulls(tmp_path, table_format):
    schema, path = pa.schema([("name", pa.string())]), tables.path_of(tmp_path / "t", table_format)
    tables.write_table(path, frame_of([("a",), (None,), ("",)], schema), schema, {"version": 1})
    names = tables.read_table(path, schema)["name"]
    assert [None if pd.isna(name) else name for name in names] == ["a", None, ""]


@pytest.mark.parametrize("table_format", ["parquet", "csv"])
def test_types_are_those_of_the_schema(tmp_path, table_format):
    path = tables.path_of(tmp_path / "t", table_format)
    tables.write_table(path, frame_of([("7", 7, 7.0, True)]), SCHEMA, {"version": 1})
    frame = tables.read_table(path, SCHEMA)
    assert frame["name"].tolist() == ["7"]
    assert [frame[name].dtype for name in ("n", "x", "valid")] == [np.int64, np.float64, np.bool_]


@pytest.mark.parametrize("table_format", ["parquet", "csv"])
def test_a_newer_table_is_refused(tmp_path, table_format):
    path = tables.path_of(tmp_path / "t", table_format)
    tables.write_table(path, frame_of(AWKWARD), SCHEMA, {"version": 2})
    assert tables.read_note(path, version=2)["version"] == 2
    with pytest.raises(files.NewerFormat, match=rf"t\.{table_format} has format version 2.*Upgrade"):
        tables.read_note(path, version=1)


@pytest.mark.parametrize("table_format", ["parquet", "csv"])
def test_a_table_that_is_absent_or_cut_has_no_note(tmp_path, table_format):
    path = tables.path_of(tmp_path / "t", table_format)
    assert tables.read_note(path, version=1) is None
    tables.write_table(path, frame_of(AWKWARD), SCHEMA, {"version": 1})
    cut(path)
    assert tables.read_note(path, version=1) is None


def test_a_csv_with_a_flipped_bit_has_no_note(tmp_path):
    path = tmp_path / "t.csv"
    tables.write_table(path, frame_of(AWKWARD), SCHEMA, {"version": 1})
    flip(path)
    assert tables.read_note(path, version=1) is None


def test_a_parquet_file_with_a_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    tables.write_table(path, frame_of([(f"name {at}", at, 0.5, True) for at in range(500)]), SCHEMA, {"version": 1})
    flip(path, at=path.stat().st_size // 3)
    with pytest.raises(tables.TableRefused, match=r"t\.parquet is not a table.*Delete it"):
        tables.read_table(path, SCHEMA)


@pytest.mark.parametrize("table_format", ["parquet", "csv"])
def test_an_absent_or_foreign_table_is_named(tmp_path, table_format):
    path = tables.path_of(tmp_path / "t", table_format)
    with pytest.raises(tables.TableRefused, match=r"does not exist\. Materialise"):
        tables.read_table(path, SCHEMA)
    other = pa.schema([("other", pa.string())])
    tables.write_table(path, frame_of([("a",)], other), other, {"version": 1})
    with pytest.raises(tables.TableRefused, match=r"is not a table of .*'name'.* Delete it"):
        tables.read_table(path, SCHEMA)


def test_a_note_that_is_no_object_is_none(tmp_path):
    path = tmp_path / "t.csv"
    tables.write_table(path, frame_of(AWKWARD), SCHEMA, {"version": 1})
    path.with_name("t.csv.json").write_text(json.dumps([1]))
    assert tables.read_note(path, version=1) is None


@pytest.mark.parametrize("table_format", ["parquet", "csv"])
def test_a_table_whose_writer_dies_is_the_old_or_the_new_one_or_none(tmp_path, table_format):
    path = tables.path_of(tmp_path / "t", table_format)
    for at in count():
        tables.write_table(path, frame_of([("old", 1, 1.0, True)]), SCHEMA, {"version": 1, "of": "old"})
        with death(at) as fate:
            tables.write_table(path, frame_of([("new", 2, 2.0, True)]), SCHEMA, {"version": 1, "of": "new"})
        note = tables.read_note(path, version=1)
        assert note is None or tables.read_table(path, SCHEMA)["name"].tolist() == [note["of"]]
        assert note is not None or table_format == "csv"
        if not fate.happened:
            break
    assert note["of"] == "new"
