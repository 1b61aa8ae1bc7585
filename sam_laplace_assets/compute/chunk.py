"""What a worker does: it makes a share of a plan's tasks, stores what it makes, and tells the records back."""

import hashlib
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import Any

import dagster as dg

from sam_laplace_assets.domain.plan import Item, Plan, Record, Task
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.lease import is_held
from sam_laplace_assets.storage.materialise import make_here

PACKAGE = Path(__file__).parents[1]
PLANS_KEPT = 4
SECONDS_OF_STALENESS = 60.0
"""A network file system may show for so long what was there before."""
SECONDS_BETWEEN_LOOKS = 5.0
SECONDS_BETWEEN_LEASES = 2.0


@dataclass(frozen=True)
class Errand:
    """What all chunks of one run on one partition have in common.

    Attributes:
        name: of the asset partition.
        elsewhere: makes the plan and its store again.
        made_with: the plan's own.
        code: of the package that the run works with.
        lease: of the partition.
        holder: who has it, for as long as the errand is wanted.
        root: the project root, which the worker must see, too.
    """

    name: str
    elsewhere: Callable[[], tuple[Plan, Any]]
    made_with: Mapping[str, Any]
    code: str
    lease: Path
    holder: str
    root: Path

    @property
    def key(self) -> str:
        """The same for all of its chunks, and another one for other runs."""
        return f"{self.holder}/{self.name}"


@dataclass(frozen=True)
class Chunk:
    """A share of an errand.

    Attributes:
        errand: what it is a share of.
        topic: where each item is told as soon as it is made.
        parts: item key -> part -> digest of the provenance that it shall have.
        force: whether what is there already is made again.
    """

    errand: Errand
    topic: str
    parts: Mapping[str, Mapping[str, str]]
    force: bool


@dataclass(frozen=True)
class Told:
    """What became of one task: its signature and its record, or why it failed."""

    key: str
    failed: str = ""
    signature: str = ""
    record: Record | None = None

    def as_message(self) -> dict[str, Any]:
        """As plain values."""
        record = self.record
        told = None if record is None else [dict(record.parts), dict(record.contents), dict(record.summary)]
        return {"key": self.key, "failed": self.failed, "signature": self.signature, "record": told}

    @classmethod
    def of_message(cls, message: Mapping[str, Any]) -> "Told":
        """From plain values."""
        record = None if message["record"] is None else Record(*message["record"])
        return cls(message["key"], message["failed"], message["signature"], record)


@dataclass
class Done:
    """What became of a chunk.

    Attributes:
        worker: who had it, and where.
        told: of each task that was finished.
        seconds: that took.
        refused: why this worker must not make it; empty where it may.
    """

    worker: str
    told: list[Told] = field(default_factory=list)
    seconds: float = 0.0
    refused: str = ""


@dataclass(frozen=True)
class Here:
    """An errand's plan and store, made again in this process."""

    plan: Plan
    store: Any

    @cached_property
    def items(self) -> dict[str, Item]:
        """Key -> item."""
        return {item.key: item for item in self.plan.items}

    def tasks(self, parts: Mapping[str, Mapping[str, str]]) -> list[Task]:
        """The tasks of a chunk; those that this process would make from something else are not among them."""
        return [
            (self.items[key], frozenset(wanted)) for key, wanted in parts.items()
            if key in self.items and wanted.items() <= self.items[key].parts.items()
        ]  # fmt: skip


class Refused(ValueError):
    """This worker would not make what the run would."""


@dataclass(frozen=True)
class Aside:
    """Writes items without taking them into a ledger: that is for the run to do."""

    store: Any

    def write(self, item: Item, parts: frozenset[str], value: Any) -> tuple[str, Record]:
        """Put an item on disk."""
        told: tuple[str, Record] = self.store.put(item, parts, value)
        return told


_ALONE = Lock()
_PLANS: OrderedDict[str, Here] = OrderedDict()


def make_chunk(chunk: Chunk) -> Done:
    """Make the tasks of a chunk that are not there yet, one chunk at a time in a process."""
    from distributed import get_worker

    worker = get_worker()
    done = Done(f"{worker.address} on {socket.gethostname()}")
    with _ALONE, _cores(worker.state.nthreads):
        try:
            here, tasks = _agreed(chunk, done.worker)
        except Refused as error:
            done.refused = str(error)
            return done
        started = time.monotonic()
        with files.writing(chunk.errand.root):
            for told in _while_wanted(chunk.errand, _made(here, tasks, force=chunk.force)):
                worker.log_event(chunk.topic, told.as_message())
                done.told.append(told)
        done.seconds = time.monotonic() - started
    return done


def _made(here: Here, tasks: Sequence[Task], *, force: bool) -> Iterator[Told]:
    """Each task as it is finished; what another worker finished before it died is there already."""
    there = {} if force else here.store.records([item for item, _ in tasks])
    left = []
    for item, parts in tasks:
        record = there.get(item.key)
        if record is None or parts & record.lacks(item):
            left.append((item, parts))
        else:
            yield Told(item.key, "", here.store.signature(item.key), record)
    for made, stored in make_here(here.plan, Aside(here.store), left) if left else ():
        yield Told(made.item.key, made.failed) if stored is None else Told(made.item.key, "", *stored)


def _while_wanted(errand: Errand, told: Iterator[Told]) -> Iterator[Told]:
    """Until another run has the partition, or none: whoever is left behind by a run that ended writes no more."""
    looked = time.monotonic()
    for one in told:
        yield one
        if time.monotonic() - looked > SECONDS_BETWEEN_LEASES:
            if not is_held(errand.lease, errand.holder):
                return
            looked = time.monotonic()


def _agreed(chunk: Chunk, worker: str) -> tuple[Here, list[Task]]:
    """The plan and the tasks of a chunk, as the run has them. Raises `Refused`, naming what differs."""
    errand, until = chunk.errand, time.monotonic() + SECONDS_OF_STALENESS
    if (mine := code_here()) != errand.code:
        raise Refused(
            f"Worker {worker} works with {mine}, this run with {errand.code}. Install the same on both, and start the "
            "worker again."
        )
    while True:
        here, problem = _here(errand)
        if here is not None:
            if differing := _difference(errand.made_with, here.plan.made_with):
                raise Refused(f"Worker {worker} would make {errand.name} with another {differing}. Give both the same.")
            tasks = here.tasks(chunk.parts)
            if len(tasks) == len(chunk.parts):
                return here, tasks
            problem = f"has other inputs of {len(chunk.parts) - len(tasks)} items"
        _PLANS.pop(errand.key, None)
        if time.monotonic() > until:
            raise Refused(
                f"Worker {worker} {problem}. It must see the project root {errand.root} and the data roots as this run "
                "does."
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _here(errand: Errand) -> tuple[Here | None, str]:
    """The plan of an errand in this process, or why it cannot be made."""
    if errand.key not in _PLANS:
        if not errand.root.is_dir():
            return None, f"sees no folder {errand.root}"
        try:
            _PLANS[errand.key] = Here(*errand.elsewhere())
        except (ValueError, LookupError, OSError, dg.Failure) as error:
            return None, f"cannot plan {errand.name}: {error}"
    _PLANS.move_to_end(errand.key)
    while len(_PLANS) > PLANS_KEPT:
        _PLANS.popitem(last=False)
    return _PLANS[errand.key], ""


def _difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The first thing that differs, with both; empty where nothing does."""
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            return f"{name}: {found.get(name)} there, {wanted.get(name)} in this run"
    return ""


@contextmanager
def _cores(threads: int) -> Iterator[None]:
    """Have PyTorch use as many threads as the worker was given; Dask's nannies tell it to use one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(threads, len(os.sched_getaffinity(0)))))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def code_here() -> str:
    """Which package this process works with: its version, and a digest of its code."""
    found = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        found.update(path.relative_to(PACKAGE).as_posix().encode())
        found.update(path.read_bytes())
    return f"sam_laplace_assets {metadata.version('sam-laplace-assets')} (code {found.hexdigest()[:12]})"
