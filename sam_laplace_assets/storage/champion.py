"""Which posterior holds the title. version 1

champion.json            run_id, training split, its score, on which validation pack, since which decision
champion_history.jsonl   every decision, a JSON object a line: candidates and holder with their scores, who won and why

The history is written first: champion.json names the decision that it follows from.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_laplace_assets.domain.plan import Course, Item, Plan, Record, digest
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.store import NotMade

VERSION = 1
PART = "decision"


@dataclass(frozen=True)
class Champion:
    """The posterior that holds the title."""

    run_id: str
    training_split: str
    nll: float
    validation_pack: str
    decision: str


class ChampionStore:
    """The title; the item is a decision, its value what the decision says."""

    def __init__(self, folder: Path) -> None:
        self._champion, self._history = folder / "champion.json", folder / "champion_history.jsonl"

    def locate(self, item: Item) -> Path:
        """The champion's file."""
        return self._champion

    def records(self, items: Sequence[Item]) -> dict[str, Record]:
        """The decision that is in force."""
        if not self._champion.exists():
            return {}
        record = _record(_read(self._champion))
        return {item.key: record for item in items}

    def write(self, item: Item, parts: frozenset[str], value: Mapping[str, Any]) -> Record:
        """Record a decision, then put it in force."""
        decision = {"format": "champion", "version": VERSION, "inputs": item.parts[PART], **value}
        decision["decision"] = digest({key: said for key, said in decision.items() if key != "made"})
        past = read_history(self._history.parent)
        if not past or past[-1]["decision"] != decision["decision"]:  # else a run that died here is gone on with
            lines = [json.dumps(one) for one in [*past, decision]]
            files.write_bytes(self._history, "".join(f"{line}\n" for line in lines).encode())
        files.write_json(self._champion, {key: decision[key] for key in decision if key != "candidates"})
        return _record(decision)

    def finish(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> str:
        """The digest of who holds the title."""
        return next(iter(records.values())).contents[PART]

    def finished(self, plan: Plan | Course, records: Mapping[str, Record]) -> bool:
        """Always: there is nothing beside the items."""
        return True


def read_champion(folder: Path) -> Champion | None:
    """The posterior that holds the title, if one does."""
    path = folder / "champion.json"
    if not path.exists():
        return None
    value = _read(path)
    return Champion(**{name: value[name] for name in Champion.__dataclass_fields__})


def require_champion(folder: Path) -> Champion:
    """The posterior that holds the title. Raises `NotMade` if none does."""
    champion = read_champion(folder)
    if champion is None:
        raise NotMade("There is no champion yet: champion.json is not there. Materialise champion first.")
    return champion


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Every decision, first to last."""
    path = folder / "champion_history.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _read(path: Path) -> dict[str, Any]:
    value = dict(files.read_json(path))
    if value["version"] > VERSION:
        raise ValueError(f"{path} has format version {value['version']}, this package reads up to {VERSION}. Upgrade.")
    return value


def _record(decision: Mapping[str, Any]) -> Record:
    holder = digest([decision["run_id"], decision["validation_pack"]])
    return Record({PART: decision["inputs"]}, {PART: holder}, {"run_id": decision["run_id"]})
