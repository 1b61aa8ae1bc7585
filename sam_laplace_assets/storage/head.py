"""Checkpoints of a head, as a folder `run_<id>/`. version 1

config.yaml         what it was trained with
last.pt             head weights after the last epoch; best.pt: after the best one (by validation IoU)
optimizer_last.pt, scaler_last.pt   what going on needs beside them
epoch_state.json    which epoch, the history, whether it is finished, and the SHA-256 of each file above

An epoch is saved in three steps: its files as `<name>.next`, then epoch_state.json, which names their digests and so
decides, then each file takes its name. A reader takes the file, or its `.next`, that has the digest.
All weights are plain state dicts, read with `weights_only=True`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sam_laplace_assets.domain.plan import Course, Item, Plan, Record
from sam_laplace_assets.storage import files, weights
from sam_laplace_assets.storage.store import NotMade

VERSION = 1
PART = "run"
STATE = "epoch_state.json"
WEIGHTS = ("last.pt", "best.pt", "optimizer_last.pt", "scaler_last.pt")


@dataclass(frozen=True)
class HeadRun:
    """A finished head.

    Attributes:
        run_id: `<training split>-<label?>-<digest>`.
        folder: where its files lie.
        best_sha256: of best.pt.
        config: what it was trained with.
        history: a dict an epoch.
    """

    run_id: str
    folder: Path
    best_sha256: str
    config: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]

    @classmethod
    def open(cls, folder: Path) -> "HeadRun":
        """The finished run in `folder`. Raises `NotMade` or `Damaged`."""
        state = weights.read_versioned(folder / STATE, version=VERSION)
        if not state["finished"]:
            raise NotMade(f"{folder.name} is not trained to its end. Materialise head_checkpoint to go on with it.")
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        name = folder.name.removeprefix("run_")
        return cls(name, folder, state["sha256"]["best.pt"], config, state["history"])

    def weights(self) -> dict[str, Any]:
        """State dict of the best epoch, checked against its SHA-256."""
        return dict(weights.load(_verified(self.folder, "best.pt", self.best_sha256)))


class HeadStore:
    """The runs of one training split; the item is a run, its values `TrainingState`s, its source the config."""

    def __init__(self, folder: Path, pointer: Path) -> None:
        self._folder, self._pointer = folder, pointer

    def locate(self, item: Item) -> Path:
        """The run's folder."""
        return self._folder / f"run_{item.key}"

    def records(self, items: Sequence[Item]) -> dict[str, Record]:
        """The runs that are finished and whole."""
        found = ((item, self._finished(item)) for item in items)
        return {item.key: record for item, record in found if record is not None}

    def resume(self, item: Item, restore: Callable[[Mapping[str, Any]], Any]) -> Any:
        """The saved state to go on from, or None. Raises `Damaged` if one of its files is not there."""
        folder = self.locate(item)
        if not (folder / STATE).exists():
            return None
        state = weights.read_versioned(folder / STATE, version=VERSION)
        saved = {name: weights.load(_verified(folder, name, sha256)) for name, sha256 in state["sha256"].items()}
        return restore({**state, **saved})

    def write(self, item: Item, parts: frozenset[str], value: Mapping[str, Any]) -> Record:
        """Save an epoch: `value` has a state dict for each of `WEIGHTS`, and the JSON facts of the epoch."""
        folder = self.locate(item)
        contents = {name: weights.dump(value[name]) for name in WEIGHTS}
        facts = {key: fact for key, fact in value.items() if key not in WEIGHTS}
        state = {"format": "head_checkpoint", "version": VERSION, "provenance": item.parts[PART], **facts}
        state["sha256"] = {name: files.sha256(content) for name, content in contents.items()}
        if not (folder / "config.yaml").exists():
            files.write_bytes(folder / "config.yaml", yaml.safe_dump(item.source, sort_keys=False).encode())
        files.write_set({**{folder / f"{name}.next": content for name, content in contents.items()}})
        files.write_json(folder / STATE, state)
        for name in WEIGHTS:
            (folder / f"{name}.next").replace(folder / name)
        return _record(state)

    def finish(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> str:
        """Point to the run as the current one."""
        if not self.finished(plan, records):
            files.write_json(self._pointer, self._pointing(plan, records))
        return next(iter(records.values())).contents[PART]

    def finished(self, plan: Plan | Course, records: Mapping[str, Record]) -> bool:
        """Whether the pointer names the run."""
        return self._pointer.exists() and files.read_json(self._pointer) == self._pointing(plan, records)

    def _pointing(self, plan: Plan | Course, records: Mapping[str, Record]) -> dict[str, Any]:
        (run_id,) = records
        return {"format": "pointer", "version": VERSION, "run_id": run_id, "overrides": dict(plan.finish or {})}

    def _finished(self, item: Item) -> Record | None:
        folder = self.locate(item)
        if not (folder / STATE).exists():
            return None
        state = weights.read_versioned(folder / STATE, version=VERSION)
        if not state["finished"]:
            return None
        _verified(folder, "best.pt", state["sha256"]["best.pt"])
        return _record(state)


def current_run(pointer: Path, *, name: str) -> str:
    """The run that a pointer file names. Raises `NotMade` where there is none."""
    if not pointer.exists():
        raise NotMade(f"{name} has not been made yet: {pointer.name} is not there. Materialise {name} first.")
    return str(files.read_json(pointer)["run_id"])


def _record(state: Mapping[str, Any]) -> Record:
    if not state["finished"]:
        return Record({}, {})
    return Record({PART: state["provenance"]}, {PART: state["sha256"]["best.pt"]}, {"epochs": state["epoch"]})


def _verified(folder: Path, name: str, sha256: str) -> bytes:
    return weights.verified((folder / name, folder / f"{name}.next"), sha256, named_by=STATE)
