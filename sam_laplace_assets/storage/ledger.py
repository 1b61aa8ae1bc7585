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

import pandas as pd
import pyarrow as pa

from sam_laplace_assets.domain.plan import Record
from sam_laplace_assets.storage import tables

VERSION = 1
SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "signature", "parts", "contents", "summary")])


@dataclass(frozen=True)
class Entry:
    """An item's record, and the signature of its files when that was read."""

    signature: str
    record: Record


@dataclass
class Ledger:
    """The entries of one partition, in the order of its plan."""

    path: Path
    entries: dict[str, Entry] = field(default_factory=dict)
    complete: bool = False
    data_version: str = ""

    @classmethod
    def load(cls, path: Path) -> "Ledger":
        """The ledger at `path`; an empty one where there is none that can be read. Raises `NewerFormat`."""
        note = tables.read_note(path, version=VERSION)
        try:
            return cls(path) if note is None else cls(path, _entries(path), note["complete"], note["data_version"])
        except (ValueError, KeyError):
            return cls(path)

    def save(self) -> None:
        """Put the ledger on disk."""
        frame = pd.DataFrame(self._rows(), columns=SCHEMA.names)
        note = {"format": "ledger", "version": VERSION, "complete": self.complete, "data_version": self.data_version}
        tables.write_table(self.path, frame, SCHEMA, note)

    def _rows(self) -> Iterator[tuple[str, str, str, str, str]]:
        for key, entry in self.entries.items():
            record = entry.record
            yield key, entry.signature, _dump(record.parts), _dump(record.contents), _dump(record.summary)


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), separators=(",", ":"))


def _entries(path: Path) -> dict[str, Entry]:
    frame = tables.read_table(path, SCHEMA)
    rows = zip(*(frame[name] for name in SCHEMA.names), strict=True)
    return dict(_entry(*row) for row in rows)


def _entry(key: str, signature: str, parts: str, contents: str, summary: str) -> tuple[str, Entry]:
    return key, Entry(signature or "", Record(json.loads(parts), json.loads(contents), json.loads(summary)))
