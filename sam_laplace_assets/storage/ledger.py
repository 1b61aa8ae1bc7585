"""What is known of the items of one partition, as one Parquet file. version 1

key         the item
signature   names, sizes and modification times of its files when it was last looked at; empty if it has none
parts       JSON, part -> digest of the provenance it was made with
contents    JSON, part -> digest of what it holds
summary     JSON facts that the next asset needs

The note says `complete` (all items were wanted, none by `limit` left out) and `data_version`, which is empty while the
partition is being made. A ledger is a memory, not the truth: an item whose signature has changed is read again, and a
ledger that is gone is built from the items.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from sam_laplace_assets.domain.plan import Record
from sam_laplace_assets.storage import tables

VERSION = 1
_encode = json.JSONEncoder(separators=(",", ":")).encode
FACTS = ("parts", "contents", "summary")
SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "signature", *FACTS)])


@dataclass(frozen=True, slots=True)
class Entry:
    """An item's record, and the signature of its files when that was read."""

    signature: str
    record: Record


class Block:
    """Rows of a ledger as they lie on disk: JSON, of which one row at a time is decoded."""

    __slots__ = ("_columns", "_last")

    def __init__(self, batch: pa.RecordBatch | None = None) -> None:
        self._columns: dict[str, Any] = {name: [] if batch is None else batch.column(name) for name in FACTS}
        self._last: dict[str, tuple[int, dict[str, Any]]] = {}

    def __len__(self) -> int:
        return len(self._columns[FACTS[0]])

    def add(self, record: Record) -> "StoredRecord":
        """A record as one more row of a new block; once that is full, its rows are packed."""
        for name, text in zip(FACTS, _texts(record), strict=True):
            self._columns[name].append(text)
        stored = StoredRecord(self, len(self) - 1)
        if self.full:
            self._columns = {name: pa.array(column, pa.string()) for name, column in self._columns.items()}
        return stored

    @property
    def full(self) -> bool:
        """Whether there is room for no more rows."""
        return len(self) >= tables.BLOCK

    def text(self, name: str, at: int) -> str:
        """A fact of a row as it lies on disk."""
        return str(self._columns[name][at])

    def value(self, name: str, at: int) -> dict[str, Any]:
        """A fact of a row; the last one of each kind is kept, since a row is asked for it many times in a run."""
        row, value = self._last.get(name, (-1, {}))
        if row != at:
            value = json.loads(self.text(name, at))
            self._last[name] = (at, value)
        return value


class StoredRecord(Record):
    """A record whose facts are decoded when they are asked for: a million of them fit into memory."""

    __slots__ = ("at", "block")
    block: Block
    at: int

    def __init__(self, block: Block, at: int) -> None:
        object.__setattr__(self, "block", block)
        object.__setattr__(self, "at", at)

    @property
    def parts(self) -> Mapping[str, str]:  # type: ignore[override]
        """Part -> digest of the provenance it was made with."""
        return self.block.value("parts", self.at)

    @property
    def contents(self) -> Mapping[str, str]:  # type: ignore[override]
        """Part -> digest of what it holds."""
        return self.block.value("contents", self.at)

    @property
    def summary(self) -> Mapping[str, Any]:  # type: ignore[override]
        """Facts that the next asset needs."""
        return self.block.value("summary", self.at)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and all(getattr(self, name) == getattr(other, name) for name in FACTS)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(Record(self.parts, self.contents, self.summary))


class Summaries(Mapping[str, Mapping[str, Any]]):
    """Key -> facts that the next asset needs, of a ledger's entries, decoded when they are asked for."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries

    def __getitem__(self, key: str) -> Mapping[str, Any]:
        return self._entries[key].record.summary

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@dataclass
class Ledger:
    """The entries of one partition, in the order of its plan."""

    path: Path
    entries: dict[str, Entry] = field(default_factory=dict)
    complete: bool = False
    data_version: str = ""
    _filling: Block = field(default_factory=Block, repr=False, compare=False)

    @classmethod
    def load(cls, path: Path) -> "Ledger":
        """The ledger at `path`; an empty one where there is none that can be read. Raises `NewerFormat`."""
        return tables.of_one_writing(path, lambda: cls._load(path))

    @classmethod
    def _load(cls, path: Path) -> "Ledger":
        note = tables.read_note(path, version=VERSION)
        try:
            return cls(path) if note is None else cls(path, _entries(path), note["complete"], note["data_version"])
        except (ValueError, KeyError):
            return cls(path)

    def stored(self, record: Record) -> StoredRecord:
        """A record as one that was read: its JSON in place of its facts. One thread at a time may ask."""
        if isinstance(record, StoredRecord):
            return record
        if self._filling.full:
            self._filling = Block()
        return self._filling.add(record)

    def save(self) -> None:
        """Put the ledger on disk."""
        note = {"format": "ledger", "version": VERSION, "complete": self.complete, "data_version": self.data_version}
        tables.write_batches(self.path, tables.batches_of(self._rows(), SCHEMA), SCHEMA, note)

    def _rows(self) -> Iterator[tuple[str, ...]]:
        return ((key, entry.signature, *_texts(entry.record)) for key, entry in self.entries.items())


def _texts(record: Record) -> tuple[str, ...]:
    """The facts of a record as JSON; those that were not decoded need not be encoded."""
    if isinstance(record, StoredRecord):
        return tuple(record.block.text(name, record.at) for name in FACTS)
    return tuple(_dump(getattr(record, name)) for name in FACTS)


def _dump(value: Mapping[str, Any]) -> str:
    return _encode(dict(value))


def _entries(path: Path) -> dict[str, Entry]:
    """Key -> entry. Raises `ValueError` if a row cannot be one."""
    return dict(entry for batch in _batches(path) for entry in _entries_of(batch))


def _batches(path: Path) -> list[pa.RecordBatch]:
    import pyarrow.compute as pc

    table = tables.read_arrow(path, SCHEMA)
    for name in FACTS:  # whole pages carry checksums; this is against what never was a ledger
        if not pc.all(pc.match_like(table[name], "{%}"), min_count=0).as_py():
            raise ValueError(f"{path} has rows whose {name} are no JSON object.")
    return list(table.to_batches(max_chunksize=tables.BLOCK))


def _entries_of(batch: pa.RecordBatch) -> Iterator[tuple[str, Entry]]:
    block, keys, signatures = Block(batch), batch.column("key").to_pylist(), batch.column("signature").to_pylist()
    for at, (key, signature) in enumerate(zip(keys, signatures, strict=True)):
        yield key, Entry(signature or "", StoredRecord(block, at))
