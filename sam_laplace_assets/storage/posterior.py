"""A Laplace posterior, as a folder `run_<id>/`. version 1

laplace_state.pt       laplace-torch's own state, plain tensors and numbers, read with `weights_only=True`
laplace_config.yaml    the settings that it was fitted with
posterior_meta.json    written last: run, head and its SHA-256, packs, approximation, prior precision and its grid with
                       validation NLL, temperature, counts, versions, warnings, and the SHA-256 of the files above
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sam_laplace_assets.domain.plan import Course, Item, Plan, Record
from sam_laplace_assets.storage import files, weights
from sam_laplace_assets.storage.store import NotMade

VERSION = 1
PART = "run"
META = "posterior_meta.json"
STATE = "laplace_state.pt"
CONFIG = "laplace_config.yaml"


@dataclass(frozen=True)
class FittedPosterior:
    """What a fit gives to the store: laplace-torch's state, the settings, and what a reader needs to trust it."""

    state: Mapping[str, Any]
    config: Mapping[str, Any]
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class PosteriorRun:
    """A posterior on disk: its name, its folder, and what posterior_meta.json says."""

    run_id: str
    folder: Path
    meta: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "PosteriorRun":
        """The posterior in `folder`. Raises `NotMade` or `Damaged`."""
        meta = _read_meta(folder)
        if meta is None:
            raise NotMade(f"{folder.name} is not there. Materialise laplace_posterior first.")
        for name in (STATE, CONFIG):
            _verified(folder, name, meta)
        return cls(folder.name.removeprefix("run_"), folder, meta)

    def state(self) -> dict[str, Any]:
        """laplace-torch's state, checked against its SHA-256."""
        return dict(weights.load(_verified(self.folder, STATE, self.meta)))


class PosteriorStore:
    """The posteriors of one training split; the item is a run, its value a `FittedPosterior`."""

    def __init__(self, folder: Path, pointer: Path) -> None:
        self._folder, self._pointer = folder, pointer

    def locate(self, item: Item) -> Path:
        """The run's folder."""
        return self._folder / f"run_{item.key}"

    def records(self, items: Sequence[Item]) -> dict[str, Record]:
        """The posteriors that are there; a damaged one is an error, since it is never made over."""
        metas = {item.key: _read_meta(self.locate(item)) for item in items}
        for item in items:
            if metas[item.key] is not None:
                PosteriorRun.open(self.locate(item))
        return {key: _record(meta) for key, meta in metas.items() if meta is not None}

    def write(self, item: Item, parts: frozenset[str], value: FittedPosterior) -> Record:
        """Store a posterior."""
        folder = self.locate(item)
        config = yaml.safe_dump(dict(value.config), sort_keys=False)
        contents = {STATE: weights.dump(value.state), CONFIG: config.encode()}
        meta = {"format": "laplace_posterior", "version": VERSION, "run_id": item.key, **value.meta}
        meta |= {"provenance": item.parts[PART]}
        meta["sha256"] = {name: files.sha256(content) for name, content in contents.items()}
        named = {folder / name: content for name, content in contents.items()}
        files.write_set({**named, folder / META: files.json_bytes(meta)})
        return _record(meta)

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


def _record(meta: Mapping[str, Any]) -> Record:
    return Record({PART: meta["provenance"]}, {PART: meta["sha256"][STATE]}, {})


def _read_meta(folder: Path) -> dict[str, Any] | None:
    path = folder / META
    return weights.read_versioned(path, version=VERSION) if path.exists() else None


def _verified(folder: Path, name: str, meta: Mapping[str, Any]) -> bytes:
    return weights.verified((folder / name,), meta["sha256"][name], named_by=META)
