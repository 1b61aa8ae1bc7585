"""Work that threads do before it is asked for, a bounded number of pieces ahead."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Given = TypeVar("Given")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Given], Result],
    given: Iterable[Given],
    *,
    depth: int,
    threads: int = 1,
    begin: Callable[[], None] | None = None,
) -> Generator[Result, None, None]:
    """`map(function, given)` whose next results are made by threads while the caller works on this one.

    Args:
        function: is called from threads; what it raises is raised here, in its turn.
        given: is taken from by the caller's thread, no further ahead than `depth`.
        depth: results that are made or in the making beside the one that was yielded.
        threads: how many make them.
        begin: is called once in each of them, before the first result.
    """
    remaining = iter(given)
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="ahead", initializer=begin) as pool:
        pending: deque[Future[Result]] = deque(pool.submit(function, one) for one in islice(remaining, depth))
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, one) for one in islice(remaining, 1))
                yield result
        finally:
            for one in pending:
                one.cancel()
