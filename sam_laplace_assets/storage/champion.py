"""Which posterior holds the title. version 2

champion.json            run_id, training split, its score, on which validation pack, since which decision
champion_history.jsonl   every decision, a JSON object a line: candidates and holder with their scores, who won and why,
                         rejected: run ids that lost the title by hand and cannot win it again (none in version 1)
                         after: the decision that this one was made from, None for the first (none in version 1)
                         by_hand: the Dagster root run that was told who gets it, else None (none in version 1)

The history is written first, and its last line is what counts; champion.json says the same without the candidates.
Losing either does not cost the title: to begin anew, move both away.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_laplace_assets.domain.plan import Course, Item, Plan, Record, digest
from sam_laplace_assets.storage import files, inside, posterior
from sam_laplace_assets.storage.store import NotMade, OneItemStore

VERSION = 2
PART = "decision"


@dataclass(frozen=True)
class Champion:
    """The posterior that holds the title."""

    run_id: str
    training_split: str
    nll: float
    validation_pack: str
    decision: str


class ChampionStore(OneItemStore):
    """The title; the item is a decision, its value what the decision says."""

    def __init__(self, folder: Path) -> None:
        self._champion, self._history = folder / "champion.json", folder / "champion_history.jsonl"

    def locate(self, item: Item) -> Path:
        """The champion's file."""
        return self._champion

    def records(self, items: Sequence[Item]) -> dict[str, Record]:
        """The decision that is in force."""
        decision = in_force(self._history.parent)
        return {} if decision is None else {item.key: _record(decision) for item in items}

    def write(self, item: Item, parts: frozenset[str], value: Mapping[str, Any]) -> Record:
        """Record a decision, then put it in force.

        Raises:
            ValueError: it was made from a decision that is not in force any more.
        """
        decision = {"format": "champion", "version": VERSION, "inputs": item.parts[PART], **value}
        decision["decision"] = digest({key: said for key, said in decision.items() if key != "made"})
        past = read_history(self._history.parent)
        if not past or past[-1]["decision"] != decision["decision"]:
            if decision["after"] != last_decision(self._history.parent):
                raise ValueError("Another decision was taken meanwhile, so this one is not recorded. "
                                 "Materialise champion again.")  # fmt: skip
            lines = [json.dumps(files.sealed(one)) for one in [*past, decision]]
            files.write_bytes(self._history, "".join(f"{line}\n" for line in lines).encode())
        self._name(decision)
        return _record(decision)

    def finish(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> str:
        """Have champion.json say what the history ends with; the digest of who holds the title."""
        decision = in_force(self._history.parent)
        if decision is not None and not self.finished(plan, records):
            self._name(decision)
        return super().finish(plan, records, complete=complete)

    def finished(self, plan: Plan | Course, records: Mapping[str, Record]) -> bool:
        """Whether champion.json says what the history ends with."""
        decision = in_force(self._history.parent)
        if decision is None or not self._champion.exists():
            return False
        try:
            return bool(_read(self._champion) == _without_candidates(decision))
        except files.NewerFormat:
            raise
        except (ValueError, KeyError, TypeError):
            return False

    def _name(self, decision: Mapping[str, Any]) -> None:
        files.write_json(self._champion, files.sealed(_without_candidates(decision)))


def read_champion(folder: Path) -> Champion | None:
    """The posterior that holds the title, if one does."""
    decision = in_force(folder)
    return None if decision is None else Champion(**{name: decision[name] for name in Champion.__dataclass_fields__})


def require_champion(folder: Path) -> Champion:
    """The posterior that holds the title. Raises `NotMade` if none does."""
    champion = read_champion(folder)
    if champion is None:
        raise NotMade("There is no champion yet: champion.json is not there. Materialise champion first.")
    return champion


def read_rejected(folder: Path) -> frozenset[str]:
    """Run ids of the posteriors that lost the title by hand."""
    decision = in_force(folder)
    return frozenset(decision.get("rejected", ())) if decision else frozenset()


def previous_holder(folder: Path) -> str | None:
    """The last other holder of the title that was not rejected and is still there; None if there is none."""
    rejected = read_rejected(folder)
    return next((run_id for run_id in other_holders(folder) if run_id not in rejected and is_there(folder, run_id)),
                None)  # fmt: skip


def other_holders(folder: Path) -> list[str]:
    """Run ids that held the title before today's champion, each once, the last one first."""
    history = [one["run_id"] for one in reversed(read_history(folder))]
    return [run_id for run_id in dict.fromkeys(history) if run_id != history[0]]


def is_there(folder: Path, run_id: str) -> bool:
    """Whether the posterior of this id is on disk."""
    return (folder / f"run_{run_id}" / posterior.META).exists()


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Every decision, first to last.

    Raises:
        ValueError: a line is no JSON, or not what was written, or lines are gone; names the file and what to do.
    """
    path, named = folder / "champion_history.jsonl", _named(folder)  # first: the history is the one written before
    if not path.exists():
        return []
    try:
        history = [dict(json.loads(line)) for line in path.read_bytes().splitlines()]
        versions = [int(decision["version"]) for decision in history if inside.plain(decision.get("run_id", PART))]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} holds a line that is no decision: {error}. Mend or remove that line.") from error
    files.refuse_newer(path, max(versions, default=0), version=VERSION)
    if other := [at for at, decision in enumerate(history, start=1) if not files.says_what_was_written(decision)]:
        raise ValueError(
            f"{path} is damaged: line {other[0]} does not say what was decided. Put a copy of it back, or move it "
            "away: champion.json says who holds the title."
        )
    if not history or (named and named not in [decision.get("decision") for decision in history]):
        raise ValueError(
            f"{path} lacks the last decision. Put a copy of it back, or move it away: champion.json says who holds "
            "the title."
        )
    return history


def _named(folder: Path) -> str:
    """The decision that champion.json names; empty where it names none, or is damaged, and will be written again."""
    try:
        return str(_read(folder / "champion.json")["decision"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def last_decision(folder: Path) -> str | None:
    """Digest of the decision that is in force."""
    decision = in_force(folder)
    return None if decision is None else str(decision["decision"])


def in_force(folder: Path) -> dict[str, Any] | None:
    """The decision that the history ends with; without a history, what champion.json says, which has no candidates."""
    if history := read_history(folder):
        return history[-1]
    path = folder / "champion.json"
    return _read(path) if path.exists() else None


def _read(path: Path) -> dict[str, Any]:
    value = files.read_sealed(path, version=VERSION)
    return value | {"run_id": inside.plain(value["run_id"])}


def _without_candidates(decision: Mapping[str, Any]) -> dict[str, Any]:
    return {key: said for key, said in decision.items() if key != "candidates"}


def _record(decision: Mapping[str, Any]) -> Record:
    holder = digest([decision["run_id"], decision["validation_pack"]])
    return Record({PART: decision["inputs"]}, {PART: holder}, {"run_id": decision["run_id"]})
