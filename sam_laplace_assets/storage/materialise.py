"""Where what is wanted meets what is there: the one place that resumes, counts, and puts up with failed items."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from sam_laplace_assets.domain.plan import Course, Item, Made, Plan, Record, Task, lacks, missing
from sam_laplace_assets.storage.store import Store

T = TypeVar("T")
Told = TypeVar("Told", covariant=True)


class Writes(Protocol[Told]):
    """What stores the parts of an item, and tells what it came to."""

    def write(self, item: Item, parts: frozenset[str], value: Any) -> Told:
        """Put the made parts of an item on disk, whole or not at all."""
        ...


class Progress(Protocol):
    """What hears of work being done."""

    def __call__(self, done: int, failed: int, total: int, unit: str) -> None:
        """`done` of `total` units, so far, `failed` of them in vain; the first call says where the work begins."""
        ...


class TooManyFailed(RuntimeError):
    """More items failed than `max_failed_fraction` allows; the rest is stored."""


@dataclass
class Outcome:
    """What became of a plan.

    Attributes:
        unit: what is counted.
        records: item key -> record, of all items that are there now.
        made: units that were made.
        reused: units that were there.
        failed: item key -> reason.
        seconds: how long it took.
        data_version: digest of the partition's content.
        complete: whether all items that were wanted were tried, and not too many failed.
    """

    unit: str
    records: dict[str, Record]
    made: int = 0
    reused: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    data_version: str = ""
    complete: bool = True

    def counts(self) -> dict[str, float]:
        """The figures that every materialisation reports."""
        rate = self.made / self.seconds if self.seconds else 0.0
        return {"made": self.made, "reused": self.reused, "failed": len(self.failed),
                "seconds": round(self.seconds, 3), "made_per_second": round(rate, 3)}  # fmt: skip


Carry = Callable[[Plan, Any, Sequence[Task]], Iterator[tuple[Made, Record | None]]]
"""Makes and stores the tasks of a plan: each, in any order, with its record, or None where it failed."""


def materialise(plan: Plan, store: Store, *, progress: Progress, carry: Carry | None = None) -> Outcome:
    """Make what is missing or stale of a plan, item by item, and complete the partition.

    Args:
        plan: what should be there.
        store: where it is kept.
        progress: hears of each item.
        carry: who makes the items; this process, if left out.

    Raises:
        TooManyFailed: after the rest was stored; names items and reasons.
    """
    started = time.monotonic()
    outcome = Outcome(plan.unit, store.records(plan.items), failed=dict(plan.failed))
    todo = missing(plan, outcome.records)
    total = sum(plan.weight(item, frozenset(item.parts)) for item in plan.items)
    pending = sum(plan.weight(*task) for task in todo)
    outcome.reused = total - pending
    done = failed = 0
    if todo:
        progress(0, 0, pending, plan.unit)
    for item, _ in todo:
        outcome.records.pop(item.key, None)
    for made, record in (carry or make_here)(plan, store, todo) if todo else ():
        units = plan.weight(made.item, made.parts)
        if record is None:
            outcome.failed[made.item.key] = made.failed
            failed += units
        else:
            outcome.records[made.item.key] = record
            outcome.made += units
        done += units
        progress(done, failed, pending, plan.unit)
    outcome.complete = plan.complete and not _too_many(plan, outcome)
    outcome.data_version = store.finish(plan, outcome.records, complete=outcome.complete)
    outcome.seconds = time.monotonic() - started
    if _too_many(plan, outcome):
        raise TooManyFailed(_complain(plan, outcome))
    return outcome


def make_here(plan: Plan, store: "Writes[T]", todo: Sequence[Task]) -> Iterator[tuple[Made, T | None]]:
    """What became of each task, and its record once it is stored, up to `writers` tasks behind the making."""
    if not plan.writers:
        for made in plan.carry_out(todo):
            yield made, None if made.failed else store.write(made.item, made.parts, made.value)
        return
    with ThreadPoolExecutor(plan.writers, thread_name_prefix="write") as pool:
        behind: deque[tuple[Made, Future[T]]] = deque()
        for made in plan.carry_out(todo):
            if made.failed:
                yield made, None
                continue
            behind.append((replace(made, value=None), pool.submit(store.write, made.item, made.parts, made.value)))
            while behind and (len(behind) > plan.writers or behind[0][1].done()):
                stored, writing = behind.popleft()
                yield stored, writing.result()
        for stored, writing in behind:
            yield stored, writing.result()


def _too_many(plan: Plan, outcome: Outcome) -> bool:
    total = len(plan.items) + len(plan.failed)
    return len(outcome.failed) > plan.max_failed_fraction * total


def _complain(plan: Plan, outcome: Outcome) -> str:
    total = len(plan.items) + len(plan.failed)
    if total == 1:
        return next(iter(outcome.failed.values()))
    shown = [f"  {key}: {reason}" for key, reason in list(outcome.failed.items())[:20]]
    more = [f"  and {len(outcome.failed) - len(shown)} more"] if len(outcome.failed) > len(shown) else []
    head = (
        f"{len(outcome.failed)} of {total} items failed, more than data.max_failed_fraction "
        f"({plan.max_failed_fraction}) allows; the others are stored. Mend these and materialise again:"
    )
    return "\n".join([head, *shown, *more])


class CourseStore(Store, Protocol):
    """A store that can go on with a half-done item."""

    def resume(self, item: Item, restore: Callable[[Any], Any]) -> Any:
        """The saved state of an item, or None."""
        ...


def run_course(course: Course, store: CourseStore, *, progress: Progress, step: Callable[[Any], None]) -> Outcome:
    """Make the states of a course, from the last saved one on, and save each.

    Args:
        course: what should be there.
        store: where its states are saved.
        progress: hears of each step.
        step: is called with each state after it was saved.
    """
    started = time.monotonic()
    outcome = Outcome("epochs", store.records(course.items))
    record = outcome.records.get(course.item.key)
    if record is None or lacks(record, course.item):
        state = store.resume(course.item, course.restore)
        outcome.reused = 0 if state is None else course.step(state)
        progress(outcome.reused, 0, course.total, outcome.unit)
        _run_steps(course, store, course.steps(state), outcome, progress, step)
    else:
        outcome.reused = int(record.summary.get("epochs", course.total))
    outcome.data_version = store.finish(course, outcome.records, complete=True)
    outcome.seconds = time.monotonic() - started
    return outcome


def _run_steps(
    course: Course, store: Store, states: Iterable[Any], outcome: Outcome, progress: Progress,
    step: Callable[[Any], None],
) -> None:  # fmt: skip
    parts = frozenset(course.item.parts)
    for state in states:
        outcome.records[course.item.key] = store.write(course.item, parts, course.save(state))
        outcome.made += 1
        step(state)
        progress(course.step(state), 0, course.total, "epochs")
