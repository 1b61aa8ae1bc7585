"""Pairs timed side by side in one process, in turns, and the interval of their ratio."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Better = Literal["lower", "higher"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what the row is called; unique.
        what: what was measured, on which data.
        against: what it was held against.
        ratio: median of the rounds' ratios; ours / theirs where lower is better, theirs / ours where higher is.
        interval: distribution-free interval of that median; None where there is one figure only.
        confidence: of that interval; with few rounds it is that of the least and the greatest ratio.
        target: what the interval is held against; None where none was set.
        better: `lower` or `higher`.
        unit: of the ratio; `x` for a pure number.
        rounds: how many pairs were timed.
        notes: other figures, such as the medians of both sides in seconds.
    """

    name: str
    what: str
    against: str
    ratio: float
    interval: tuple[float, float] | None
    confidence: float | None
    target: float | None
    better: Better
    unit: str = "x"
    rounds: int = 1
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the whole interval reaches the target; None without one."""
        if self.target is None:
            return None
        low, high = self.interval or (self.ratio, self.ratio)
        return high <= self.target if self.better == "lower" else low >= self.target

    def as_json(self) -> dict[str, Any]:
        """The row as results.json holds it."""
        return {**asdict(self), "met": self.met}


Benchmark = Callable[[int], Sequence[Row]]
"""Takes how many rounds to time, gives rows."""


def paired(
    name: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    what: str,
    against: str,
    target: float | None,
    better: Better,
    rounds: int = 7,
    warmup: int = 1,
    notes: Mapping[str, Any] | None = None,
) -> Row:
    """Time two functions in turns, the first to go changing from round to round.

    Args:
        name, what, against, target, better: as in `Row`.
        ours, theirs: do the work once; what they return is dropped.
        rounds: pairs that count.
        warmup: pairs before them that do not.
        notes: other figures for the row.
    """
    times: list[tuple[float, float]] = []
    for turn in range(-warmup, rounds):
        pair = (ours, theirs) if turn % 2 == 0 else (theirs, ours)
        first, second = (seconds(one) for one in pair)
        times.append((first, second) if turn % 2 == 0 else (second, first))
    times = times[warmup:]
    ratios = [mine / other if better == "lower" else other / mine for mine, other in times]
    low, high, confidence = median_interval(ratios)
    both = {
        "ours_s": round(statistics.median(mine for mine, _ in times), 6),
        "theirs_s": round(statistics.median(other for _, other in times), 6),
    }
    return Row(
        name,
        what,
        against,
        statistics.median(ratios),
        (low, high),
        confidence,
        target,
        better,
        rounds=rounds,
        notes=both | dict(notes or {}),
    )


def seconds(function: Callable[[], Any]) -> float:
    """Wall seconds of one call, with garbage collected before it."""
    gc.collect()
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def median_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """The narrowest interval of two order statistics that holds the median with this confidence, whatever they are.

    The median lies outside the k-th least and k-th greatest of n values with probability 2 P(Binomial(n, 1/2) < k).

    Returns:
        Its ends and its confidence, which with fewer than six values is below 0.95: then they are the extremes.
    """
    ordered, n = sorted(values), len(values)
    if not n:
        raise ValueError("No rounds were timed: ask for one at least.")
    k = 1
    while k + 1 <= (n + 1) // 2 and _coverage(n, k + 1) >= confidence:
        k += 1
    return ordered[k - 1], ordered[n - k], max(_coverage(n, k), 0.0)


def _coverage(n: int, k: int) -> float:
    return 1 - 2 * sum(math.comb(n, below) for below in range(k)) / 2**n
