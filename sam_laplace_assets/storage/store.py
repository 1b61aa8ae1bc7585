"""What all stores share: which items are there, how one is written, how a partition is completed."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from sam_laplace_assets.domain.plan import Course, Item, Plan, Record, data_version, digest
from sam_laplace_assets.storage.ledger import Entry, Ledger

SECONDS_BETWEEN_SAVES = 30.0


class NotMade(LookupError):
    """Something is read that was never made, or not to its end."""


class Store(Protocol):
    """One partition of one asset, on disk."""

    def records(self, items: Sequence[Item]) -> dict[str, Record]:
        """What is there of these items: key -> record, for those that are whole."""
        ...

    def write(self, item: Item, parts: frozenset[str], value: Any) -> Record:
        """Put the made parts of an item on disk, whole or not at all; threads do so for plans with `writers`."""
        ...

    def finish(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> str:
        """Complete the partition, and give its data version."""
        ...

    def finished(self, plan: Plan | Course, records: Mapping[str, Record]) -> bool:
        """Whether the partition was completed with just these items."""
        ...

    def locate(self, item: Item) -> Path:
        """Where an item lies."""
        ...


class PlainStore:
    """A partition that is whole when its items are: there is nothing beside them."""

    def finish(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> str:
        """Digest over what the items hold."""
        return data_version(plan, records)

    def finished(self, plan: Plan | Course, records: Mapping[str, Record]) -> bool:
        """Always."""
        return True


class OneItemStore(PlainStore):
    """A partition of one item with one part, whose digest is the partition's data version."""

    def finish(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> str:
        """Digest of what the item holds; empty where it could not be made."""
        return content_of_one(records)


def content_of_one(records: Mapping[str, Record]) -> str:
    """Digest of what the one item with one part holds; empty where it is not there."""
    return next((content for record in records.values() for content in record.contents.values()), "")


class LedgerStore:
    """A partition whose records are remembered in a ledger."""

    def __init__(self, ledger: Path) -> None:
        self._ledger = Ledger.load(ledger)
        self._saved = time.monotonic()
        self._lock = Lock()

    def finish(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> str:
        """Leave the plan's items in the ledger, in order, and nothing else."""
        there = (item for item in plan.items if item.key in records)
        self._ledger.entries = {item.key: self._entry_of(item) for item in there}
        self._ledger.complete = complete
        self._ledger.data_version = data_version(plan, records)
        self._ledger.save()
        return self._ledger.data_version

    def finished(self, plan: Plan | Course, records: Mapping[str, Record]) -> bool:
        """Whether the ledger was completed with just these items."""
        return self._ledger.data_version == data_version(plan, records) and self._ledger.complete == plan.complete

    def _entry_of(self, item: Item) -> Entry:
        entry = self._ledger.entries[item.key]
        return Entry(entry.signature, entry.record.of(item))

    def _remember(self, key: str, signature: str, record: Record) -> Record:
        """Take an item that was written into the ledger, in the form that takes the least memory."""
        with self._lock:
            stored = self._ledger.stored(record)
        return self._enter(key, signature, stored)

    def _enter(self, key: str, signature: str, record: Record) -> Record:
        """Take an item into the ledger, which is saved now and then, as one in the making."""
        with self._lock:
            self._ledger.entries[key] = Entry(signature, record)
            if time.monotonic() - self._saved > SECONDS_BETWEEN_SAVES:
                self._ledger.complete, self._ledger.data_version = False, ""
                self._ledger.save()
                self._saved = time.monotonic()
        return record


class RowStore(LedgerStore):
    """Items that live in the ledger alone; the table that they make up is written at the end."""

    def records(self, items: Sequence[Item]) -> dict[str, Record]:
        """What the ledger holds of these items."""
        known = self._ledger.entries
        return {item.key: known[item.key].record for item in items if item.key in known}

    def write(self, item: Item, parts: frozenset[str], value: Mapping[str, Any]) -> Record:
        """Take a row into the ledger."""
        return self._remember(item.key, "", Record(item.parts, dict.fromkeys(item.parts, digest(value)), value))


class FileStore(LedgerStore, ABC):
    """Items that lie in files of their own; the ledger only spares reading them again."""

    @abstractmethod
    def signature(self, key: str) -> str:
        """Names, sizes and times of an item's files; empty where one is absent."""

    @abstractmethod
    def read_record(self, key: str) -> Record | None:
        """The record of an item, read from its files; None where they are not whole."""

    @abstractmethod
    def write_files(self, item: Item, parts: frozenset[str], value: Any) -> Record:
        """Put an item's files in place, the one that completes it last."""

    def records(self, items: Sequence[Item]) -> dict[str, Record]:
        """What is there of these items; files that changed since they were last looked at are read."""
        found = ((item, self._look(item)) for item in items)
        return {item.key: record.of(item) for item, record in found if record is not None}

    def write(self, item: Item, parts: frozenset[str], value: Any) -> Record:
        """Put an item on disk, then into the ledger."""
        return self.take(item.key, *self.put(item, parts, value))

    def put(self, item: Item, parts: frozenset[str], value: Any) -> tuple[str, Record]:
        """Put an item on disk, for whoever has the ledger to `take`: its signature and its record."""
        record = self.write_files(item, parts, value)
        return self.signature(item.key), record

    def take(self, key: str, signature: str, record: Record) -> Record:
        """Take an item that was put on disk into the ledger."""
        return self._remember(key, signature, record)

    def _look(self, item: Item) -> Record | None:
        now = self.signature(item.key)
        entry = self._ledger.entries.get(item.key)
        if now and entry is not None and entry.signature == now and not entry.record.lacks(item):
            return entry.record
        record = self.read_record(item.key) if now else None
        if record is None:
            self._ledger.entries.pop(item.key, None)
            return None
        self._ledger.entries[item.key] = Entry(now, record)  # not saved: who only looks writes nothing
        return record


def listing(path: Path, *, name: str) -> Ledger:
    """The ledger of a partition that was made to its end.

    Raises:
        NotMade: it was not; says which asset to materialise.
    """
    ledger = Ledger.load(path)
    if not ledger.data_version:
        found = "was not made to its end" if ledger.entries else f"has not been made yet: {path.name} is not there"
        raise NotMade(f"{name} {found}. Materialise {name} first.")
    return ledger
