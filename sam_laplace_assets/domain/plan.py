"""What an asset wants to be there: items, the provenance of their parts, and how one is made."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

DIGEST_BYTES = hashlib.sha256().digest_size
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, as 64 hexadecimal digits."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def digest_of_all(values: Iterable[Any]) -> str:
    """`digest` of a list that is never in memory as a whole, nor is its text."""
    found = hashlib.sha256(b"[")
    for at, value in enumerate(values):
        found.update(f"{',' if at else ''}{_canonical(value)}".encode())
    found.update(b"]")
    return found.hexdigest()


class Parts(Mapping[str, str]):
    """Part -> digest, for items by the hundred thousand: equal names are there once, digests are held as bytes."""

    __slots__ = ("_digests", "_places")

    def __init__(self, parts: Mapping[str, str]) -> None:
        self._places = _places(tuple(parts))
        self._digests = bytes.fromhex("".join(parts.values()))

    def __getitem__(self, part: str) -> str:
        start = self._places[part]
        return self._digests[start : start + DIGEST_BYTES].hex()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return repr(dict(self))


@lru_cache(maxsize=1024)
def _places(parts: tuple[str, ...]) -> Mapping[str, int]:
    """Part -> where its digest begins."""
    return {part: at * DIGEST_BYTES for at, part in enumerate(parts)}


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that should be there, with the provenance that each of its parts must have.

    Attributes:
        key: a plain file name, unique in its partition.
        parts: part -> digest of the provenance it has when it is made from today's inputs.
        source: whatever `make` needs to know about it.
    """

    key: str
    parts: Mapping[str, str]
    source: Any = None


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of an item that is there.

    Attributes:
        parts: part -> digest of the provenance it was made with.
        contents: part -> digest of what it holds; equal content, equal digest.
        summary: JSON facts about it that the next asset needs without opening its files.
    """

    parts: Mapping[str, str]
    contents: Mapping[str, str]
    summary: Mapping[str, Any] = field(default_factory=dict)

    def lacks(self, item: Item) -> frozenset[str]:
        """The parts of `item` that are not there, or were made from something else."""
        return frozenset(part for part, wanted in item.parts.items() if self.parts.get(part) != wanted)

    def of(self, item: Item) -> "Record":
        """This record without the parts that `item` does not have, nor the facts on what they belong to."""
        if self.parts.keys() == item.parts.keys():
            return self
        parts, contents = ({key: of[key] for key in item.parts if key in of} for of in (self.parts, self.contents))
        gone = _groups(self.parts) - _groups(item.parts)
        return Record(parts, contents, {name: fact for name, fact in self.summary.items() if name not in gone})


def _groups(parts: Iterable[str]) -> set[str]:
    """What parts belong to: `0003/logits` and `0003/maps` to `0003`."""
    return {part.partition("/")[0] for part in parts}


@dataclass(frozen=True)
class Report:
    """What a reader wants to see of a materialisation, for the UI and for tracking alike.

    Attributes:
        warnings: what a reader must not miss.
        facts: name -> text or number.
        params: name -> setting that it was made with.
        metrics: name -> number to be tracked.
        tables: name -> rows, dicts with the same keys.
        pictures: name -> PNG file.
        files: name -> file to be kept with the tracked run.
        model: registered model that `files` are a version of, if they are one.
        champion: registered version that carries the alias `champion` from now on.
    """

    warnings: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    model: "Registered | None" = None
    champion: "Registered | None" = None


@dataclass(frozen=True)
class Registered:
    """A version of a registered model: the model's name, and the run of ours that made the version."""

    name: str
    run_id: str


Task = tuple[Item, frozenset[str]]
"""An item, and those of its parts that are to be made."""

INPUT_ERRORS = (ValueError, FileNotFoundError, PermissionError)
"""What is the fault of one item's input, and no reason to stop before the others."""


@dataclass(frozen=True)
class Made:
    """What became of a task.

    Attributes:
        item, parts: the task.
        value: what was made, as the store takes it.
        failed: why it could not be made; empty where it was.
    """

    item: Item
    parts: frozenset[str]
    value: Any = None
    failed: str = ""


Make = Callable[[Item, frozenset[str]], Any]


def one_by_one(make: Make, tasks: Iterable[Task]) -> Iterator[Made]:
    """Each task by itself; what is wrong with its input is its own failure, not the others'."""
    for item, parts in tasks:
        try:
            made = Made(item, parts, make(item, parts))
        except INPUT_ERRORS as error:
            made = Made(item, parts, failed=str(error))
        yield made


def _one(item: Item, parts: frozenset[str]) -> int:
    return 1


def _nothing(records: Mapping[str, Record]) -> Report:
    return Report()


@dataclass(frozen=True)
class Plan:
    """Items that are independent of each other.

    Attributes:
        items: all that should be there, in order.
        make: makes the named parts of one item; what it returns goes to the store.
        make_all: makes many tasks where that is faster than one by one, and gives each of them back, in any order.
        writers: threads that store what was made while the next is being made; none waits for each write.
        finish: what the store should know beside the items, such as how rows become a table.
        report: what a reader wants to see of the records, beside the counts.
        unit: what an item's parts are counted as, for progress ("prompt sets").
        weight: how many of those units some parts of an item are.
        failed: item key -> why it cannot be made, found while planning.
        max_failed_fraction: how many items may fail before the asset does.
        force: make everything again.
        complete: whether these are all items; a trial with `limit` is not.
        made_with: JSON; what all items are made with, which tells in words what differs where a part's digest does.
        elsewhere: makes this plan and its store again in another process, which can be sent a share of the tasks; it
            can be pickled. None where the work is too short to be sent.

    Raises:
        ValueError: two items have one key.
    """

    items: Sequence[Item]
    make: Make
    make_all: Callable[[Iterable[Task]], Iterator[Made]] | None = None
    writers: int = 0
    finish: Any = None
    report: Callable[[Mapping[str, Record]], Report] = _nothing
    unit: str = "samples"
    weight: Callable[[Item, frozenset[str]], int] = _one
    failed: Mapping[str, str] = field(default_factory=dict)
    max_failed_fraction: float = 0.0
    force: bool = False
    complete: bool = True
    made_with: Mapping[str, Any] = field(default_factory=dict)
    elsewhere: "Callable[[], tuple[Plan, Any]] | None" = None

    def __post_init__(self) -> None:
        twice = [key for key, times in Counter(item.key for item in self.items).items() if times > 1]
        if twice:
            raise ValueError(f"{len(twice)} item keys come twice in one plan, such as {twice[0]}. Rename one of them.")

    def carry_out(self, tasks: Iterable[Task]) -> Iterator[Made]:
        """Make all tasks, together where the plan knows how."""
        return one_by_one(self.make, tasks) if self.make_all is None else self.make_all(tasks)


@dataclass(frozen=True)
class Course:
    """One item that is made in steps, each of which can be gone on from.

    Attributes:
        item: what should be there in the end.
        steps: from a saved state (None at the start) to the states that follow; the last one is the end.
        save: a state as the store takes it.
        restore: a state from what the store gives back.
        step: how many steps a state is from the start.
        follow: what a reader wants to see of one state, as it happens.
        finish: what the store should know beside the states.
        report: what a reader wants to see of the whole.
        total: how many steps there are at most.
    """

    item: Item
    steps: Callable[[Any], Iterator[Any]]
    save: Callable[[Any], Mapping[str, Any]]
    restore: Callable[[Mapping[str, Any]], Any]
    step: Callable[[Any], int]
    follow: Callable[[Any], Report]
    total: int
    finish: Any = None
    report: Callable[[Mapping[str, Record]], Report] = _nothing
    complete: bool = True
    force: bool = False

    @property
    def items(self) -> Sequence[Item]:
        """The one item."""
        return (self.item,)


def missing(plan: Plan | Course, records: Mapping[str, Record]) -> list[tuple[Item, frozenset[str]]]:
    """The items of a plan that must be made, each with the parts that are missing or stale."""
    lacking = ((item, lacks(None if plan.force else records.get(item.key), item)) for item in plan.items)
    equal: dict[frozenset[str], frozenset[str]] = {}  # many items lack the same parts
    return [(item, equal.setdefault(parts, parts)) for item, parts in lacking if parts]


def lacks(record: Record | None, item: Item) -> frozenset[str]:
    """The parts of `item` that `record` does not have."""
    return frozenset(item.parts) if record is None else record.lacks(item)


def data_version(plan: Plan | Course, records: Mapping[str, Record]) -> str:
    """Digest over the content of a plan's items: equal content, equal version."""
    there = (item for item in plan.items if item.key in records)
    return digest_of_all([item.key, *_contents(records[item.key], item)] for item in there)


def _contents(record: Record, item: Item) -> list[str]:
    return [record.contents[part] for part in sorted(item.parts) if part in record.contents]
