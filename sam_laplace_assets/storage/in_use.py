"""What is in use: the samples, prompt sets and shards of a split, the heads and posteriors of a project."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_laplace_assets.storage import champion, files, head, index, manifest, posterior, prompts, sam, tables, weights
from sam_laplace_assets.storage.ledger import VERSION as LEDGER_VERSION
from sam_laplace_assets.storage.ledger import Ledger
from sam_laplace_assets.storage.pack import open_pack
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.runs import Pointer
from sam_laplace_assets.storage.store import NotMade


class UseUnclear(ValueError):
    """A file that says what is in use is damaged, or names what is not there."""


@dataclass(frozen=True)
class SplitUse:
    """What something points to of one split.

    Attributes:
        split: partition key.
        samples: safe_ids that the manifest, a ledger or the index names.
        listed: those whose prompt sets are all known, since the ledger of the cache is complete and names them.
        sets: (safe_id, promptset_id) that the ledger of the cache or the index names.
        shards: names that the pack names; None where there is no complete one.
        packed: when the pack was written, seconds since the epoch.
    """

    split: str
    samples: frozenset[str]
    listed: frozenset[str]
    sets: frozenset[tuple[str, int]]
    shards: frozenset[str] | None
    packed: float

    @classmethod
    def of(cls, project: Project, split: str) -> "SplitUse | None":
        """What is in use of a split; None without a complete manifest. Raises `UseUnclear` or `NewerFormat`."""
        valid = _valid_samples(project.manifests, split)
        if valid is None:
            return None
        drawn = _ledger(prompts.ledger_path(project.prompt_sets(split)))
        cached = _ledger(sam.ledger_path(project.sam_cache(split)))
        sets = _sets(cached) | _indexed_sets(project, split)
        samples = valid | drawn.entries.keys() | cached.entries.keys() | {key for key, _ in sets}
        listed = frozenset(cached.entries) if cached.complete else frozenset()
        return cls(split, frozenset(samples), listed, frozenset(sets), *_packed(project.pack(split)))

    def needs(self, key: str, promptset_id: int) -> bool:
        """Whether a prompt set of a sample is in use, as all are of a sample whose sets are not all known."""
        return key in self.samples and (key not in self.listed or (key, promptset_id) in self.sets)

    def needs_shard(self, path: Path) -> bool:
        """Whether the pack names a shard, or an interrupted run may go on from it: it is younger than pack and day."""
        if self.shards is None or path.name in self.shards:
            return True
        return path.stat().st_mtime >= self.packed and not files.is_old(path)


@dataclass(frozen=True)
class RunKind:
    """How the runs of one asset lie on disk.

    Attributes:
        name: what they are called.
        asset: what makes them.
        folder: where they lie.
        completed_by: the JSON file that tells whether a run is finished.
        version: of that file.
        names: what files of a run are called.
    """

    name: str
    asset: str
    folder: Path
    completed_by: str
    version: int
    names: frozenset[str]

    @classmethod
    def heads(cls, project: Project) -> "RunKind":
        """Heads."""
        names = {head.CONFIG, *head.WEIGHTS}
        known = frozenset({head.STATE, *names, *(f"{name}.next" for name in names)})
        return cls("heads", "head_checkpoint", project.checkpoints, head.STATE, head.VERSION, known)

    @classmethod
    def posteriors(cls, project: Project) -> "RunKind":
        """Posteriors."""
        known = frozenset({posterior.META, posterior.STATE, posterior.CONFIG})
        return cls("posteriors", "laplace_posterior", project.posteriors, posterior.META, posterior.VERSION, known)

    def run_ids(self) -> list[str]:
        """Of all runs that are there, half-done ones included; a link is none."""
        found = (path for path in self.folder.glob("run_*") if path.is_dir() and not path.is_symlink())
        return sorted(path.name.removeprefix("run_") for path in found)

    def path(self, run_id: str) -> Path:
        """Folder of a run."""
        return self.folder / f"run_{run_id}"

    def read(self, run_id: str) -> dict[str, Any] | None:
        """What the file that completes a run says; None where the run is not finished. Raises `UseUnclear`."""
        path = self.path(run_id) / self.completed_by
        if not path.exists():
            return None
        with _clear(path):
            said = weights.read_versioned(path, version=self.version)
            return said if said.get("finished", True) else None

    def pointed(self) -> dict[str, str]:
        """Training split -> the run that is current. Raises `UseUnclear`."""
        pointers = {path.stem.removeprefix("current-"): path for path in sorted(self.folder.glob("current-*.json"))}
        return {split: self._named_by(path) for split, path in pointers.items()}

    def require(self, run_id: str, *, named_by: Path) -> str:
        """The run id itself, if that run is finished. Raises `UseUnclear`: what names it may be damaged."""
        if self.read(run_id) is None:
            raise UseUnclear(
                f"{named_by} names run_{run_id}, which is not there or not finished: it cannot be told which run is in "
                f"use. Put that run back, or materialise {self.asset} again."
            )
        return run_id

    def newest(self, split: str, count: int, splits: set[str]) -> set[str]:
        """The `count` finished runs of a training split that were finished last."""
        runs = [run_id for run_id in self.run_ids() if split_of(run_id, splits) == split and self.read(run_id)]
        return set(sorted(runs, key=self._finished_at, reverse=True)[:count])

    def _named_by(self, path: Path) -> str:
        with _clear(path):
            return self.require(Pointer.read(path).run_id, named_by=path)

    def _finished_at(self, run_id: str) -> tuple[int, str]:
        return (self.path(run_id) / self.completed_by).stat().st_mtime_ns, run_id


@dataclass(frozen=True)
class RunUse:
    """Which runs are kept, and which training splits there are runs of."""

    posteriors: frozenset[str]
    heads: frozenset[str]
    splits: frozenset[str]

    @classmethod
    def of(cls, project: Project, *, keep_runs: int) -> "RunUse":
        """Current ones, those of the title, the newest `keep_runs` of each split, and every kept posterior's head.

        Raises:
            UseUnclear, NewerFormat: it cannot be told; names the file that is damaged.
        """
        heads, posteriors = RunKind.heads(project), RunKind.posteriors(project)
        current_heads, current = heads.pointed(), posteriors.pointed()
        splits = {*current_heads, *current}
        kept = {*current.values(), *_titles(posteriors)}
        kept |= {run_id for split in splits for run_id in posteriors.newest(split, keep_runs, splits)}
        named = {*current_heads.values(), *(_head_of(run_id, posteriors) for run_id in kept)}
        named |= {run_id for split in splits for run_id in heads.newest(split, keep_runs, splits)}
        return cls(frozenset(kept), frozenset(named), frozenset(splits))


def split_of(run_id: str, splits: set[str] | frozenset[str]) -> str | None:
    """The training split that a run is named after: the longest that its id begins with; None for a foreign name."""
    return max((split for split in splits if run_id.startswith(f"{split}-")), key=len, default=None)


def _titles(posteriors: RunKind) -> set[str]:
    """The champion, and the holder that a rollback would return to."""
    history = posteriors.folder / "champion_history.jsonl"
    with _clear(history):
        holder, before = champion.read_champion(posteriors.folder), champion.previous_holder(posteriors.folder)
    named_by = history if history.exists() else posteriors.folder / "champion.json"
    titles = {holder.run_id} if holder is not None else set()
    titles |= {before} if before is not None and posteriors.path(before).exists() else set()
    return {posteriors.require(run_id, named_by=named_by) for run_id in titles}


def _head_of(run_id: str, posteriors: RunKind) -> str:
    meta = posteriors.read(run_id) or {}
    with _clear(posteriors.path(run_id) / posteriors.completed_by):
        return str(meta["head"]["run_id"])


def _valid_samples(place: manifest.Place, split: str) -> set[str] | None:
    """Valid samples of a split; None where its manifest was not made, or not to its end."""
    note = _note(place.table(split), version=manifest.VERSION)
    if note is None or not note.get("complete"):
        return None
    return {str(row["safe_id"]) for row in manifest.read_rows(place, split) if row["valid"]}


def _ledger(path: Path) -> Ledger:
    """The ledger at `path`, empty where there is none. Raises `UseUnclear` where it cannot be read."""
    note, ledger = _note(path, version=LEDGER_VERSION), Ledger.load(path)
    if note is not None and note.get("data_version") != ledger.data_version:
        raise _unreadable(path)
    return ledger


def _sets(cached: Ledger) -> set[tuple[str, int]]:
    return {(key, int(part.partition("/")[0])) for key, entry in cached.entries.items() for part in entry.record.parts}


def _indexed_sets(project: Project, split: str) -> set[tuple[str, int]]:
    stem = project.training_index(split)
    if _note(tables.path_of(stem, project.table_format), version=index.VERSION) is None:
        return set()
    frame, _ = index.read_index(stem, project.table_format, split=split)
    return set(zip(frame["safe_id"].astype(str), frame["promptset_id"].astype(int), strict=True))


def _packed(path: Path) -> tuple[frozenset[str] | None, float]:
    """The shards that a complete pack names, and when it was written. Raises `PackRefused`."""
    try:
        with open_pack(path) as file:
            named = frozenset(json.loads(file.attrs["shards"])) if file.attrs["complete"] else None
            return named, path.stat().st_mtime
    except NotMade:
        return None, 0.0


def _note(path: Path, *, version: int) -> dict[str, Any] | None:
    """The note of a table; None where there is no table. Raises `UseUnclear` where it cannot be read."""
    note = tables.read_note(path, version=version)
    if note is None and path.exists():
        raise _unreadable(path)
    return note


def _unreadable(path: Path) -> UseUnclear:
    return UseUnclear(f"{path} is damaged: it cannot be told what is in use. Delete it and let it be made again first.")


@contextlib.contextmanager
def _clear(path: Path) -> Iterator[None]:
    """Name the file that does not say what it should."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise UseUnclear(f"{path} does not say what it should ({error!r}). Mend it, or put it back, first.") from error
