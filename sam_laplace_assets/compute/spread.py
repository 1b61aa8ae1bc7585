"""What a run does with workers: it deals a plan's tasks out in chunks, hears of each item, and keeps the ledger."""

import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sam_laplace_assets.compute.chunk import Chunk, Done, Errand, Told, make_chunk
from sam_laplace_assets.compute.cluster import Crew, NoScheduler, crew_of, gone
from sam_laplace_assets.domain.plan import Made, Plan, Record, Task, digest
from sam_laplace_assets.settings import ComputeSettings

if TYPE_CHECKING:
    from distributed import Future

FIRST_CHUNK = 4
"""Tasks that a worker gets before it is known how fast they go."""
RETRIES = 2
MOST_DEATHS = 3
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_WORDS = 30.0
Tell = Callable[[str], None]


class WorkersFailed(RuntimeError):
    """A chunk could not be made by any worker, or one of them must not make it."""


@dataclass
class Dealt:
    """A chunk that a worker has."""

    future: "Future"
    worker: str
    tasks: Sequence[Task]


@dataclass
class Spread:
    """Has workers make the tasks of a plan.

    Attributes:
        errand: what is common to all chunks.
        compute: where the workers are, and how long a chunk is to take.
        tell: hears of what a reader of the log should know.
    """

    errand: Errand
    compute: ComputeSettings
    tell: Tell

    def __call__(self, plan: Plan, store: Any, tasks: Sequence[Task]) -> Iterator[tuple[Made, Record | None]]:
        """What became of each task, and its record once it is stored.

        Raises:
            NoScheduler: the scheduler cannot be reached, or went away.
            WorkersFailed: a worker has other code or other inputs, or a chunk failed on several.
        """
        with crew_of(self.compute) as crew:
            dealer = Dealer(self, crew, plan, deque(tasks))
            try:
                for told in dealer.all_told():
                    made = Made(*dealer.task(told.key), failed=told.failed)
                    yield made, None if told.record is None else store.take(told.key, told.signature, told.record)
            finally:
                dealer.stop()


@dataclass
class Dealer:
    """Deals the tasks of one run on one partition."""

    spread: Spread
    crew: Crew
    plan: Plan
    waiting: deque[Task]
    dealt: dict[str, Dealt] = field(default_factory=dict)
    inbox: "queue.Queue[Any]" = field(default_factory=queue.Queue)
    seconds_each: dict[str, float] = field(default_factory=dict)
    deaths: Counter[str] = field(default_factory=Counter)
    chunks: int = 0
    said: str = ""
    spoke: float = 0.0

    def __post_init__(self) -> None:
        self.tasks: Mapping[str, Task] = {task[0].key: task for task in self.waiting}
        self.unseen = set(self.tasks)
        self.topic = f"sam-laplace/{digest([self.spread.errand.key, time.time_ns()])[:16]}"

    def task(self, key: str) -> Task:
        """The task of an item."""
        return self.tasks[key]

    def all_told(self) -> Iterator[Told]:
        """Each task once, as soon as a worker has finished it."""
        self.crew.client.subscribe_topic(self.topic, lambda event: self.inbox.put(event[1]))
        while self.waiting or self.dealt:
            self._deal()
            yield from self._heard()
        self.spread.tell(f"{self.spread.errand.name}: {self.chunks} chunks, made by {len(self.seconds_each)} workers.")

    def stop(self) -> None:
        """Have the workers leave what is not begun; what they are at, they end after its next item."""
        if self.dealt and self.crew.client.status == "running":
            self.crew.client.cancel([one.future for one in self.dealt.values()], force=True)
        self.dealt.clear()

    def _deal(self) -> None:
        """Give each worker that has none a chunk."""
        workers, known = self.crew.workers()
        if not workers:
            self._wait(known)
        self._take_back(workers)
        busy = {one.worker for one in self.dealt.values()}
        for worker in [one for one in workers if one not in busy]:
            if not self.waiting:
                return
            size = self._size(worker, len(workers))
            self._send(worker, [self.waiting.popleft() for _ in range(min(size, len(self.waiting)))])

    def _take_back(self, workers: Sequence[str]) -> None:
        """What a worker had that is gone is for others; it may be gone because of what it had."""
        for key, one in list(self.dealt.items()):
            if one.worker in workers:
                continue
            del self.dealt[key]
            self.crew.client.cancel([one.future], force=True)
            self._return(one)

    def _return(self, one: Dealt) -> None:
        """Have others make what a worker left. Raises `WorkersFailed` where several went away at the same item."""
        left = [task for task in one.tasks if task[0].key in self.unseen]
        if len(left) == len(one.tasks):  # else it went away at work, as those do whose time is up
            self.deaths[left[0][0].key] += 1
        if left and self.deaths[left[0][0].key] >= MOST_DEATHS:
            raise WorkersFailed(
                f"{MOST_DEATHS} workers went away while they had {left[0][0].key} of {self.spread.errand.name}. "
                "See their own logs: too little memory is the usual reason, if nobody stopped them. What was finished "
                "is kept."
            )
        self.spread.tell(f"{self.spread.errand.name}: worker {one.worker} is gone; others get what it had.")
        self.waiting.extendleft(reversed(left))

    def _size(self, worker: str, workers: int) -> int:
        """Tasks for about `chunk_seconds`, fewer towards the end, so that all workers end together."""
        share = -(-len(self.waiting) // (2 * workers)) if workers > 1 else len(self.waiting)
        if worker not in self.seconds_each:
            return max(1, min(FIRST_CHUNK, share))
        return max(1, min(int(self.spread.compute.chunk_seconds / max(self.seconds_each[worker], 1e-6)), share))

    def _send(self, worker: str, tasks: Sequence[Task]) -> None:
        parts = {item.key: {part: item.parts[part] for part in sorted(asked)} for item, asked in tasks}
        chunk = Chunk(self.spread.errand, self.topic, parts, self.plan.force)
        key = f"{self.spread.errand.key}/{self.chunks:05d}-{digest(parts)[:8]}"
        future = self.crew.client.submit(
            make_chunk, chunk, key=key, pure=False, retries=RETRIES, workers=[worker],
            resources=dict(self.crew.resources) or None,
        )  # fmt: skip
        self.dealt[key] = Dealt(future, worker, tasks)
        self.chunks += 1
        future.add_done_callback(self.inbox.put)

    def _heard(self) -> Iterator[Told]:
        """What came in meanwhile; waits a moment for the first."""
        try:
            message = self.inbox.get(timeout=SECONDS_BETWEEN_LOOKS)
        except queue.Empty:
            return
        while message is not None:
            yield from self._fresh([Told.of_message(message)] if isinstance(message, dict) else self._ended(message))
            message = None if self.inbox.empty() else self.inbox.get()

    def _fresh(self, told: Sequence[Told]) -> Iterator[Told]:
        """Those that were not told before: a chunk tells each item when it is made, and all at its end."""
        for one in told:
            if one.key in self.unseen:
                self.unseen.remove(one.key)
                yield one

    def _ended(self, future: "Future") -> list[Told]:
        """What a chunk tells at its end; what it left is dealt again."""
        one = self.dealt.pop(str(future.key), None)
        if one is None:
            return []
        done = self._result(future)
        if done is None:
            self._return(one)
            return []
        if done.refused:
            raise WorkersFailed(f"{done.refused} What was finished is kept.")
        if done.told:
            self.seconds_each[one.worker] = done.seconds / len(done.told)
        told = {each.key for each in done.told}
        left = [task for task in one.tasks if task[0].key in self.unseen - told]
        self.waiting.extendleft(reversed(left))
        return done.told

    def _result(self, future: "Future") -> Done | None:
        """What a chunk came to; None where its worker went away before it could be asked for that."""
        try:
            if future.status == "finished":
                done: Done = future.result(timeout=SECONDS_BETWEEN_WORDS)
                return done
            error = future.exception(timeout=SECONDS_BETWEEN_WORDS) if future.status == "error" else None
        except (TimeoutError, CancelledError, OSError):
            return None
        if error is None:
            raise gone(self.crew.address)
        if type(error).__module__.startswith("sam_laplace_assets"):
            raise error
        raise WorkersFailed(
            f"A chunk of {self.spread.errand.name} failed on its workers, {RETRIES + 1} times or for good: "
            f"{type(error).__name__}: {error}. What was finished is kept; see the workers' own logs."
        ) from error

    def _wait(self, known: int) -> None:
        """Say now and then that nobody is there."""
        needed = ", ".join(f"{name}={amount:g}" for name, amount in self.crew.resources.items())
        lacking = f"{known} workers are there, none of them offers {needed}" if known else "no worker is there"
        if lacking == self.said and time.monotonic() - self.spoke < SECONDS_BETWEEN_WORDS:
            return
        self.said, self.spoke = lacking, time.monotonic()
        self.spread.tell(f"{self.spread.errand.name} waits: {lacking} at {self.crew.address}. Start one with "
                         f"`dask worker {self.crew.address}{f' --resources {needed}' if needed else ''}`.")  # fmt: skip


__all__ = ["NoScheduler", "Spread", "WorkersFailed"]
