"""Runs that stay, one a folder `run_<id>/`, and the pointer file that names the current one. version 1

current-<split>.json   format "pointer", version, run_id, overrides (launchpad fields that the run was made with)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_laplace_assets.domain.plan import Course, Item, Plan, Record
from sam_laplace_assets.storage import files, inside
from sam_laplace_assets.storage.store import NotMade, content_of_one
from sam_laplace_assets.storage.weights import Damaged

VERSION = 1


class RunStore:
    """The runs of one training split; the item is a run, which the pointer names once it is finished."""

    def __init__(self, folder: Path, pointer: Path) -> None:
        self._folder, self._pointer = folder, pointer

    def locate(self, item: Item) -> Path:
        """The run's folder."""
        return self._folder / f"run_{item.key}"

    def finish(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> str:
        """Point to the run as the current one; a run that could not be made leaves the pointer as it is."""
        content = content_of_one(records)
        if content and not self.finished(plan, records):
            files.write_json(self._pointer, files.sealed(_pointing(plan, records)))
        return content

    def finished(self, plan: Plan | Course, records: Mapping[str, Record]) -> bool:
        """Whether the pointer names the run."""
        try:
            return _read(self._pointer) == _pointing(plan, records)
        except files.NewerFormat:
            raise
        except (FileNotFoundError, ValueError):  # not there or damaged: it is written again
            return False


@dataclass(frozen=True)
class Pointer:
    """What a pointer file says: which run is current, and the launchpad fields that it was made with."""

    run_id: str
    overrides: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Pointer":
        """The pointer at `path`. Raises `NewerFormat`, or `LeadsOut` if it names what is no run."""
        value = _read(path)
        return cls(inside.plain(str(value["run_id"])), value["overrides"])


def current_run(pointer: Path, *, name: str) -> str:
    """The run that a pointer file names. Raises `NotMade` where there is none."""
    if not pointer.exists():
        raise NotMade(f"{name} has not been made yet: {pointer.name} is not there. Materialise {name} first.")
    return Pointer.read(pointer).run_id


def refuse_finished(path: Path) -> None:
    """Nothing that was finished is made over. Raises `Damaged` if the file that completes a run is there."""
    if path.exists():
        raise Damaged(f"{path.parent} holds a finished run already. Move it away, then materialise again.")


def _read(pointer: Path) -> dict[str, Any]:
    return files.read_sealed(pointer, version=VERSION)


def _pointing(plan: Plan | Course, records: Mapping[str, Record]) -> dict[str, Any]:
    run_id = next(iter(records), None)
    return {"format": "pointer", "version": VERSION, "run_id": run_id, "overrides": dict(plan.finish or {})}
