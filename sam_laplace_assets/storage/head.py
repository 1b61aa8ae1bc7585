"""Checkpoints of a head, as a folder `run_<id>/`. version 1

config.yaml         what it was trained with; `prompts` (what prompt sets its rows are of) and `sam` (who answered them,
                    and the width of the maps) are not in those of before
last.pt             head weights after the last epoch; best.pt: after the best one (by validation IoU)
optimizer_last.pt, scaler_last.pt   what going on needs beside them
epoch_state.json    which epoch, the history, whether it is finished, and the SHA-256 of each file above

An epoch is saved in three steps: its files as `<name>.next`, then epoch_state.json, which names their digests and so
decides, then each file takes its name. A reader takes the file, or its `.next`, that has the digest; a writer first
lets the `.next` files that epoch_state.json names take their names.
All weights are plain state dicts, read with `weights_only=True`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sam_laplace_assets.domain.plan import Course, Item, Plan, Record
from sam_laplace_assets.domain.prompts import PromptMix
from sam_laplace_assets.storage import files, weights
from sam_laplace_assets.storage.runs import RunStore, refuse_finished
from sam_laplace_assets.storage.store import NotMade

VERSION = 1
PART = "run"
STATE = "epoch_state.json"
CONFIG = "config.yaml"
WEIGHTS = ("last.pt", "best.pt", "optimizer_last.pt", "scaler_last.pt")


@dataclass(frozen=True)
class HeadRun:
    """A finished head.

    Attributes:
        run_id: `<training split>-<label?>-<digest>`.
        folder: where its files lie.
        best_sha256: of best.pt.
        config: what it was trained with, packs and launchpad overrides included.
        history: a dict an epoch.
    """

    run_id: str
    folder: Path
    best_sha256: str
    config: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]

    @classmethod
    def open(cls, folder: Path) -> "HeadRun":
        """The finished run in `folder`, its files checked. Raises `NotMade` or `Damaged`."""
        state = weights.read_versioned(folder / STATE, version=VERSION)
        if not state["finished"]:
            raise NotMade(f"{folder.name} is not trained to its end. Materialise head_checkpoint to go on with it.")
        config = _config(folder, _read_all(folder, state)[CONFIG])
        name = folder.name.removeprefix("run_")
        return cls(name, folder, state["sha256"]["best.pt"], config, state["history"])

    @property
    def overrides(self) -> Mapping[str, Any]:
        """Launchpad fields that it was made with."""
        return dict(self.config["overrides"])

    @property
    def prompts(self) -> PromptMix | None:
        """What prompt sets it was trained on; None for a head of before this was recorded."""
        recorded = self.config.get("prompts")
        return None if recorded is None else PromptMix(**recorded)

    def weights(self) -> dict[str, Any]:
        """State dict of the best epoch, checked against its SHA-256."""
        return dict(weights.load(_verified(self.folder, "best.pt", self.best_sha256), path=self.folder / "best.pt"))


class HeadStore(RunStore):
    """The runs of one training split; the item is a run, its values `TrainingState`s, its source the config."""

    def records(self, items: Sequence[Item]) -> dict[str, Record]:
        """The runs that are finished; one that is not whole is an error, since it is never made over."""
        found = ((item, self._finished(item)) for item in items)
        return {item.key: record for item, record in found if record is not None}

    def resume(self, item: Item, restore: Callable[[Mapping[str, Any]], Any]) -> Any:
        """The saved state to go on from, or None. Raises `Damaged` if one of its files is not there, or foreign."""
        folder = self.locate(item)
        state = _state(folder)
        if state is None:
            return None
        if state["provenance"] != item.parts[PART]:
            raise weights.Damaged(f"{folder} was made from something else. Move it away, then materialise again.")
        contents = _read_all(folder, state)
        return restore({**state, **{name: weights.load(contents[name], path=folder / name) for name in WEIGHTS}})

    def write(self, item: Item, parts: frozenset[str], value: Mapping[str, Any]) -> Record:
        """Save an epoch; what was finished is never made over.

        Args:
            item: the run.
            parts: its one part.
            value: a state dict for each of `WEIGHTS`, and the JSON facts of the epoch.

        Raises:
            Damaged: the run was finished before.
        """
        folder = self.locate(item)
        if (before := _state(folder)) is not None and before["finished"]:
            refuse_finished(folder / STATE)
        _settle(folder)
        contents = {CONFIG: yaml.safe_dump(item.source, sort_keys=False).encode()}
        contents |= {name: weights.dump(value[name]) for name in WEIGHTS}
        facts = {key: fact for key, fact in value.items() if key not in WEIGHTS}
        state = {"format": "head_checkpoint", "version": VERSION, "provenance": item.parts[PART], **facts}
        state["sha256"] = {name: files.sha256(content) for name, content in contents.items()}
        files.write_set({folder / f"{name}.next": content for name, content in contents.items()})
        files.write_json(folder / STATE, files.sealed(state))
        _settle(folder)
        return _record(state)

    def finish(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> str:
        """Let the last files of the run take their names, then point to it as the current one."""
        for item in plan.items:
            _settle(self.locate(item))
        return super().finish(plan, records, complete=complete)

    def finished(self, plan: Plan | Course, records: Mapping[str, Record]) -> bool:
        """Whether all files of the run have their names, and the pointer names it."""
        settled = not any(path for item in plan.items for path in self.locate(item).glob("*.next"))
        return settled and super().finished(plan, records)

    def _finished(self, item: Item) -> Record | None:
        folder = self.locate(item)
        state = _state(folder)
        if state is None or not state["finished"]:
            return None
        _read_all(folder, state)
        return _record(state)


def _state(folder: Path) -> dict[str, Any] | None:
    return weights.read_versioned(folder / STATE, version=VERSION) if (folder / STATE).exists() else None


def _config(folder: Path, content: bytes) -> Mapping[str, Any]:
    """What a run was trained with. Raises `Damaged` where that is no plain YAML."""
    try:
        return dict(yaml.safe_load(content))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise weights.Damaged(f"{folder / CONFIG} holds no settings of a run. Put it back, or train again.") from error


def _settle(folder: Path) -> None:
    """Let the files that epoch_state.json names take their names, before others could take their place."""
    state = _state(folder)
    named = (state or {"sha256": {}})["sha256"]
    for name, sha256 in ((name, named[name]) for name in (CONFIG, *WEIGHTS) if name in named):
        pending = folder / f"{name}.next"
        if pending.exists() and files.file_sha256(pending) == sha256:
            pending.replace(folder / name)


def _record(state: Mapping[str, Any]) -> Record:
    if not state["finished"]:
        return Record({}, {})
    return Record({PART: state["provenance"]}, {PART: state["sha256"]["best.pt"]}, {"epochs": state["epoch"]})


def _read_all(folder: Path, state: Mapping[str, Any]) -> dict[str, bytes]:
    """Every file that epoch_state.json names, checked. Raises `Damaged`."""
    return {name: _verified(folder, name, state["sha256"].get(name, "none")) for name in (CONFIG, *WEIGHTS)}


def _verified(folder: Path, name: str, sha256: str) -> bytes:
    return weights.verified((folder / name, folder / f"{name}.next"), sha256, named_by=STATE)
