"""Tables with a declared schema, as Parquet or as CSV under the same name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from sam_laplace_assets.storage import files

Format = Literal["parquet", "csv"]
NOTE = b"sam_laplace_assets"


class TableRefused(ValueError):
    """A table is not there, unreadable or of another layout."""


def path_of(stem: Path, table_format: Format) -> Path:
    """Where the table `stem` lies in this format."""
    return stem.with_name(f"{stem.name}.{table_format}")


def write_table(path: Path, frame: pd.DataFrame, schema: pa.Schema, note: Mapping[str, Any]) -> None:
    """Put a table at `path` (.parquet or .csv), with a note (format, version, provenance) that travels with it.

    The note of a CSV lies beside it, in `<name>.csv.json`, and is written last: it names its table's SHA-256. Pages of
    a Parquet file carry checksums.
    """
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    if path.suffix == ".csv":
        files.write_set(_csv_files(path, table, note))
        return
    with files.replacing(path) as temporary:
        pq.write_table(_noted(table, note), temporary, write_page_checksum=True)


def table_files(path: Path, frame: pd.DataFrame, schema: pa.Schema, note: Mapping[str, Any]) -> dict[Path, bytes]:
    """The files that `write_table` would write, as bytes: for tables that appear together with other files."""
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    if path.suffix == ".csv":
        return _csv_files(path, table, note)
    sink = pa.BufferOutputStream()
    pq.write_table(_noted(table, note), sink, write_page_checksum=True)
    return {path: sink.getvalue().to_pybytes()}


def _noted(table: pa.Table, note: Mapping[str, Any]) -> pa.Table:
    return table.replace_schema_metadata({NOTE: json.dumps(dict(note)).encode()})


def _csv_files(path: Path, table: pa.Table, note: Mapping[str, Any]) -> dict[Path, bytes]:
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink)
    content = sink.getvalue().to_pybytes()
    return {path: content, _note_path(path): files.json_bytes({**note, "sha256": files.sha256(content)})}


def _note_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def read_note(path: Path, *, version: int) -> dict[str, Any] | None:
    """The note of the table at `path`, or None where there is no whole table.

    Raises:
        NewerFormat: the table was written by a newer version.
    """
    try:
        note = _csv_note(path) if path.suffix == ".csv" else dict(json.loads(pq.read_metadata(path).metadata[NOTE]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if note is not None:
        files.refuse_newer(path, note.get("version", 0), version=version)
    return note


def _csv_note(path: Path) -> dict[str, Any] | None:
    note = dict(files.read_json(_note_path(path)))
    return note if note["sha256"] == files.file_sha256(path) else None


def read_table(path: Path, schema: pa.Schema) -> pd.DataFrame:
    """The table at `path`, in the types of `schema`.

    Raises:
        TableRefused: it is absent or not of this schema; names the file and what to do.
    """
    if not path.exists():
        raise TableRefused(f"{path} does not exist. Materialise the asset that writes it first.")
    try:
        table = _read_csv(path, schema) if path.suffix == ".csv" else _read_parquet(path)
        frame: pd.DataFrame = table.select(schema.names).cast(schema).to_pandas(integer_object_nulls=True)
        return frame
    except (pa.ArrowException, KeyError, OSError) as error:
        raise TableRefused(f"{path} is not a table of {schema.names}: {error}. Delete it and make it again.") from error


def _read_csv(path: Path, schema: pa.Schema) -> pa.Table:
    """A null is an empty field without quotes; whatever is quoted is a string, "NA" and "" too."""
    return pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=schema, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )


def _read_parquet(path: Path) -> pa.Table:
    return pq.ParquetFile(path, page_checksum_verification=True).read()
