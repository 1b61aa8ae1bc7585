"""Tables with a declared schema, as Parquet or as CSV under the same name."""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from sam_laplace_assets.storage import files

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["parquet", "csv"]
T = TypeVar("T")
NOTE = b"sam_laplace_assets"
SEAL = '"sealed": "'
UNSEALED = "0" * 64
"""What stands for the digest of a Parquet file where it is to be put."""
PIECE = 1 << 20
"""Bytes of a file that are read at once."""
BLOCK = 1 << 8
"""Rows that are held as Python values at once."""
SECONDS_BETWEEN_RENAMES = 0.05


class TableRefused(ValueError):
    """A table is not there, unreadable or of another layout."""


def path_of(stem: Path, table_format: Format) -> Path:
    """Where the table `stem` lies in this format."""
    return stem.with_name(f"{stem.name}.{table_format}")


def write_table(path: Path, frame: "pd.DataFrame | pa.Table", schema: pa.Schema, note: Mapping[str, Any]) -> None:
    """Put a table at `path` (.parquet or .csv), with a note (format, version, provenance) that travels with it.

    The note of a CSV lies beside it, in `<name>.csv.json`, and is written last: it names its table's SHA-256. That of a
    Parquet file holds the file's, taken with zeros in its place.
    """
    table = _in_schema(frame, schema)
    if path.suffix == ".csv":
        files.write_set(_csv_files(path, table, note))
        return
    with files.replacing(path) as temporary:
        pq.write_table(_noted(table, note), temporary, write_page_checksum=True)
        with temporary.open("r+b") as file:
            _seal(file)


def write_batches(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema, note: Mapping[str, Any]) -> None:
    """Put a Parquet table at `path` of which only one batch is in memory at a time."""
    noted = schema.with_metadata(_as_metadata(note))
    with files.replacing(path) as temporary:
        with pq.ParquetWriter(temporary, noted, write_page_checksum=True) as writer:
            for batch in batches:
                writer.write_batch(batch)
        with temporary.open("r+b") as file:
            _seal(file)


def batches_of(rows: Iterable[Sequence[Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows, given as values in the order of the columns, a block at a time."""
    left = iter(rows)
    while block := list(islice(left, BLOCK)):
        columns = zip(*block, strict=True)
        yield pa.record_batch([pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)],
                              schema=schema)  # fmt: skip


def table_of(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table of rows, of which only a block at a time need be there as Python values."""
    return pa.Table.from_batches(batches_of(([row[name] for name in schema.names] for row in rows), schema), schema)


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a table as dicts, made a block at a time."""
    for batch in table.to_batches(max_chunksize=BLOCK):
        columns = [column.to_pylist() for column in batch.columns]
        for values in zip(*columns, strict=True):
            yield dict(zip(table.column_names, values, strict=True))


class TableRow(Mapping[str, Any]):
    """A row of a table, whose values are made when they are asked for: a twentieth of what it takes as a dict."""

    __slots__ = ("_at", "_columns")

    def __init__(self, columns: Mapping[str, pa.ChunkedArray], at: int) -> None:
        self._columns, self._at = columns, at

    def __getitem__(self, name: str) -> Any:
        return self._columns[name][self._at].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return repr(dict(self))


def columns_digest(table: pa.Table) -> str:
    """Digest of a table as JSON, column name -> values, which is never in memory as a whole."""
    found = hashlib.sha256()
    for at, name in enumerate(sorted(table.column_names)):
        found.update(f"{'{,'[at > 0]}{json.dumps(name, ensure_ascii=False)}:[".encode())
        for number, text in enumerate(_json_blocks(table[name])):
            found.update(f"{',' if number else ''}{text}".encode())
        found.update(b"]")
    found.update(b"}" if table.column_names else b"{}")
    return found.hexdigest()


def _json_blocks(column: pa.ChunkedArray) -> Iterator[str]:
    """Values of a column as JSON without brackets, a block at a time."""
    for start in range(0, len(column), BLOCK):
        values = column.slice(start, BLOCK).to_pylist()
        yield json.dumps(values, separators=(",", ":"), ensure_ascii=False)[1:-1]


def table_files(
    path: Path, frame: "pd.DataFrame | pa.Table", schema: pa.Schema, note: Mapping[str, Any]
) -> dict[Path, bytes]:
    """The files that `write_table` would write, as bytes: for tables that appear together with other files."""
    table = _in_schema(frame, schema)
    if path.suffix == ".csv":
        return _csv_files(path, table, note)
    sink = pa.BufferOutputStream()
    pq.write_table(_noted(table, note), sink, write_page_checksum=True)
    file = io.BytesIO(sink.getvalue())
    _seal(file)
    return {path: file.getvalue()}


def _in_schema(frame: "pd.DataFrame | pa.Table", schema: pa.Schema) -> pa.Table:
    if isinstance(frame, pa.Table):
        return frame.select(schema.names).cast(schema)
    return pa.Table.from_pandas(frame, schema=schema, preserve_index=False)


def _noted(table: pa.Table, note: Mapping[str, Any]) -> pa.Table:
    return table.replace_schema_metadata(_as_metadata(note))


def _as_metadata(note: Mapping[str, Any]) -> dict[bytes, bytes]:
    return {NOTE: json.dumps({**files.sealed(note), "sealed": UNSEALED}).encode()}


def _seal(file: BinaryIO) -> None:
    """Put the digest of a Parquet file, open for reading and writing, into its note."""
    at = _place_of_seal(file)
    found = _digest_around(file, at)
    file.seek(at)
    file.write(found.encode())


def _require_seal(path: Path) -> None:
    """Raises OSError if a Parquet file is not what was written; those of before have no seal."""
    with path.open("rb") as file:
        if at := _place_of_seal(file):
            file.seek(at)
            if file.read(len(UNSEALED)) != _digest_around(file, at).encode():
                raise OSError("its SHA-256 is another than when it was written")


def _place_of_seal(file: BinaryIO) -> int:
    """Where the digest stands: in the footer, whose length stands before the last four bytes; 0 if there is none."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(4), "little")
    start = max(0, size - 8 - length)
    file.seek(start)
    found = file.read(size - start).rfind(SEAL.encode())
    return 0 if found < 0 else start + found + len(SEAL)


def _digest_around(file: BinaryIO, at: int) -> str:
    """SHA-256 of a file, with zeros where the digest stands."""
    found = hashlib.sha256()
    file.seek(0)
    for wanted in _pieces(at):
        found.update(file.read(wanted))
    found.update(UNSEALED.encode())
    file.seek(at + len(UNSEALED))
    while piece := file.read(PIECE):
        found.update(piece)
    return found.hexdigest()


def _pieces(length: int) -> Iterator[int]:
    """Sizes of the pieces that so many bytes are read in."""
    yield from (min(PIECE, length - start) for start in range(0, length, PIECE))


def _csv_files(path: Path, table: pa.Table, note: Mapping[str, Any]) -> dict[Path, bytes]:
    import pyarrow.csv

    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink)
    content = sink.getvalue().to_pybytes()
    noted = files.sealed({**note, "sha256": files.sha256(content)})
    return {path: content, _note_path(path): files.json_bytes(noted)}


def _note_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def read_note(path: Path, *, version: int) -> dict[str, Any] | None:
    """The note of the table at `path`, or None where there is no whole table.

    Raises:
        NewerFormat: the table was written by a newer version.
    """
    try:
        note = _csv_note(path) if path.suffix == ".csv" else _parquet_note(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if note is None or "version" not in note:
        return None
    files.refuse_newer(path, note["version"], version=version)
    return note if files.says_what_was_written(note) else None


def _parquet_note(path: Path) -> dict[str, Any]:
    note = dict(json.loads(pq.read_metadata(path).metadata[NOTE]))
    note.pop("sealed", None)
    return note


def _csv_note(path: Path) -> dict[str, Any] | None:
    note = dict(files.read_json(_note_path(path)))
    return note if note["sha256"] == files.file_sha256(path) else None


def of_one_writing(path: Path, read: Callable[[], T]) -> T:
    """What `read` finds at `path`; read again where that was replaced meanwhile, so that note and rows belong together.

    Raises what `read` raises; for a CSV that its note does not fit, only if no writer is about to put that in place.
    """
    while True:
        before = _state(path)
        try:
            found = read()
        except (ValueError, LookupError):
            if before:
                time.sleep(SECONDS_BETWEEN_RENAMES)
            if _state(path) == before:
                raise
        else:
            if _state(path) == before:
                return found


def _state(path: Path) -> str:
    return files.signature(path, _note_path(path)) if path.suffix == ".csv" else files.signature(path)


def read_table(path: Path, schema: pa.Schema) -> "pd.DataFrame":
    """The table at `path` as a frame, in the types of `schema`. Raises `TableRefused`."""
    frame: pd.DataFrame = read_arrow(path, schema).to_pandas(integer_object_nulls=True)
    return frame


def read_arrow(path: Path, schema: pa.Schema) -> pa.Table:
    """The table at `path`, in the types of `schema`.

    Raises:
        TableRefused: it is absent or not of this schema; names the file and what to do.
    """
    if not path.exists():
        raise TableRefused(f"{path} does not exist. Materialise the asset that writes it first.")
    try:
        table = _read_csv(path, schema) if path.suffix == ".csv" else _read_parquet(path)
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise TableRefused(f"{path} is not a table of {schema.names}: {error}. Delete it and make it again.") from error


def _read_csv(path: Path, schema: pa.Schema) -> pa.Table:
    """A null is an empty field without quotes; whatever is quoted is a string, "NA" and "" too."""
    import pyarrow.csv

    return pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=schema, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )


def _read_parquet(path: Path) -> pa.Table:
    _require_seal(path)
    return pq.ParquetFile(path, page_checksum_verification=True).read()
