"""`sam-laplace status`: how every asset stands, partition by partition, and why what is not current is not."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sam_laplace_assets.settings import load_settings

if TYPE_CHECKING:
    import dagster as dg

    from sam_laplace_assets.freshness import Freshness

COLUMNS = ("split", "asset", "done", "stale", "missing", "unit", "last made", "why")
NUMBERS = {"done", "stale", "missing"}
NARROWEST = 60


def freshness_of(instance: "dg.DagsterInstance", splits: Sequence[str]) -> list["Freshness"]:
    """All asset partitions of some splits; of all that have data, if none are named."""
    from sam_laplace_assets.partitions import check_split, known_splits
    from sam_laplace_assets.stages import stock

    settings = load_settings()
    chosen = [check_split(key, settings.data) for key in splits] or known_splits(settings.data)
    return list(stock(chosen, settings, instance))


def table(found: Iterable["Freshness"], *, now: datetime | None = None, width: int | None = None) -> str:
    """One line an asset partition, in the order of the graph; then what it comes to."""
    found, now = list(found), now or datetime.now(UTC)
    rows = [COLUMNS, *(_row(one, now) for one in found)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    room = (width or shutil.get_terminal_size((160, 24)).columns) - sum(widths[:-1]) - 2 * (len(widths) - 1)
    lines = [_line(row, [*widths[:-1], max(room, NARROWEST)]) for row in rows]
    return "\n".join([*lines, "", _summary(found)])


def _row(one: "Freshness", now: datetime) -> tuple[str, ...]:
    made = "never" if one.last.made is None else _ago((now - one.last.made).total_seconds())
    known = one.wanted > 0
    counts = (one.wanted - one.lacking, one.stale, one.missing) if known else ("-", "-", "-")
    return (one.partition or "-", one.asset, *map(str, counts), one.unit if known else "-", made, " ".join(_why(one)))


def _why(one: "Freshness") -> Iterator[str]:
    yield " ".join((one.why or "current").split())
    if one.last.overrides:
        given = ", ".join(f"{name}={value}" for name, value in one.last.overrides.items())
        yield f"(as the launchpad said: {given})"


def _ago(seconds: float) -> str:
    """`40 s ago`, `3 min ago`, `5 h ago`, `12 d ago`."""
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.rjust(width) if name in NUMBERS else cell.ljust(width)
             for name, cell, width in zip(COLUMNS, row, widths, strict=True)]  # fmt: skip
    cells[-1] = cells[-1].rstrip()
    if len(cells[-1]) > widths[-1]:
        cells[-1] = cells[-1][: widths[-1] - 1] + "…"
    return "  ".join(cells)


def _summary(found: Sequence["Freshness"]) -> str:
    stale = [one for one in found if not one.current]
    if not stale:
        return f"All {len(found)} asset partitions are current."
    return f"{len(stale)} of {len(found)} asset partitions are not current. To make them: sam-laplace run"
