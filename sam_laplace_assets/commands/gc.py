"""`sam-laplace gc`: list what nothing points to any more, and remove it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sam_laplace_assets.settings import load_settings
from sam_laplace_assets.storage.garbage import Garbage, garbage, remove, sign_again, unknown
from sam_laplace_assets.storage.project import Project

if TYPE_CHECKING:
    import dagster as dg

Tell = Callable[[str], None]
SHOWN = 3
LOOK_EVERY = 100
HINT = "Nothing was removed. To remove it: sam-laplace gc --delete"


def make_room(instance: "dg.DagsterInstance", *, delete: bool, verbose: bool, tell: Tell) -> list[Garbage]:
    """List garbage by kind, and with `delete` remove it; the models that MLflow has registered are left alone.

    Raises:
        ClickException: a Dagster run is not finished; names it.
        ValueError: it cannot be told what is in use; names the file that is damaged.
    """
    from sam_laplace_assets.partitions import known_splits

    settings = load_settings()
    project, splits = Project.of(settings), known_splits(settings.data)
    if delete:
        require_idle(instance)
    found = garbage(project, splits=splits, keep_runs=settings.retention.runs)
    foreign = unknown(project, splits=splits, keep_runs=settings.retention.runs)
    for line in describe(found, foreign, project.root, shown=None if verbose else SHOWN):
        tell(line)
    if delete:
        _remove(found, instance)
        for split in splits:
            sign_again(project.sam_cache(split))
    if found:
        tell(f"Removed {human(sum(one.bytes for one in found))}." if delete else HINT)
    return found


def require_idle(instance: "dg.DagsterInstance") -> None:
    """Refuse while a run may be writing what nothing points to yet, or reading what nothing points to any more."""

    from sam_laplace_assets.headless import end_killed_runs
    from sam_laplace_assets.under_way import under_way

    end_killed_runs(instance)
    if (busy := under_way(instance)) is not None:
        raise click.ClickException(
            f"{busy[0].upper()}{busy[1:]} is not finished. Let it end, or end it in the UI, then remove what is not "
            "needed."
        )


def _remove(found: Iterable[Garbage], instance: "dg.DagsterInstance") -> None:
    for at, one in enumerate(found):
        if at % LOOK_EVERY == 0:  # one may have begun meanwhile
            require_idle(instance)
        remove(one)


def describe(found: Sequence[Garbage], foreign: Sequence[Path], root: Path, *, shown: int | None) -> Iterator[str]:
    """A table by kind, and the paths of each, at most `shown` of them."""
    if not found:
        yield f"Nothing to remove: all below {root} is in use, or may be."
    for kind in dict.fromkeys(one.kind for one in found):
        of_kind = [one for one in found if one.kind == kind]
        yield _row(kind, of_kind)
        yield from _some([f"{one.path.relative_to(root)}   {human(one.bytes)}, {one.why}" for one in of_kind], shown)
    if found:
        yield _row("in all", found)
    if foreign:
        yield f"Unknown, left alone: {len(foreign):,}"
        yield from _some([str(path.relative_to(root)) for path in foreign], shown)


def _row(name: str, found: Sequence[Garbage]) -> str:
    return f"{name:<14}{len(found):>9,}{human(sum(one.bytes for one in found)):>12}"


def _some(lines: Sequence[str], shown: int | None) -> Iterator[str]:
    yield from (f"  {line}" for line in lines[:shown])
    if shown is not None and len(lines) > shown:
        yield f"  and {len(lines) - shown:,} more; --verbose lists them"


def human(size: int) -> str:
    """A number of bytes for a reader: 1.2 GB, 34.5 MB, 6.7 kB."""
    for unit, least in (("GB", 1e9), ("MB", 1e6)):
        if size >= least:
            return f"{size / least:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"
