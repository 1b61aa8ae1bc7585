"""Prompt sets of one sample, as JSON. version 1

format, version   "prompt_sets", 1
sample_id         "<class>/<stem>"
image_h, image_w  size of the image that the points lie on, pixels
provenance        what the sets were drawn from: mask digest, image size, seed, counts, and the mode if interactive
                  (of adopted ones: mask digest, image size, and what adopted.py calls points_digest)
points_digest     of the points of all sets
prompt_sets       [{promptset_id, k_pairs, pos: [[x, y], ...], neg: [[x, y], ...]}], pixels of the original image
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_laplace_assets.domain.plan import Item, Record, digest
from sam_laplace_assets.domain.prompts import PromptSet
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.ledger import Summaries
from sam_laplace_assets.storage.store import FileStore, listing

VERSION = 1
PART = "prompts"
DELETE = "Delete it and materialise prompt_sets again."


@dataclass(frozen=True)
class Prompts:
    """The prompt sets of one split: what the ledger says of them, and the sets themselves when asked for."""

    folder: Path
    points: Mapping[str, Mapping[str, str]]
    complete: bool

    @classmethod
    def open(cls, folder: Path, *, split: str) -> "Prompts":
        """The prompt sets in `folder`. Raises `NotMade` if they were never drawn."""
        ledger = listing(ledger_path(folder), name=f"prompt_sets[{split}]")
        return cls(folder, Summaries(ledger.entries), ledger.complete)

    def read(self, key: str) -> tuple[PromptSet, ...]:
        """The prompt sets of one sample.

        Raises:
            ValueError: the file does not hold the points that it should; names it and says what to do.
        """
        path = self.folder / f"{key}.json"
        sets = read_prompt_sets(path)
        if _points(sets) != self.points[key]:
            raise ValueError(f"{path} holds other points than when it was listed. Materialise prompt_sets again.")
        return sets


class PromptStore(FileStore):
    """The prompt sets of one split; an item's value is its `PromptSet`s, its source says the rest."""

    def __init__(self, folder: Path) -> None:
        super().__init__(ledger_path(folder))
        self._folder = folder

    def locate(self, item: Item) -> Path:
        """The sample's JSON file."""
        return self._folder / f"{item.key}.json"

    def signature(self, key: str) -> str:
        """Size and time of the JSON file."""
        return files.signature(self._folder / f"{key}.json")

    def read_record(self, key: str) -> Record | None:
        """The record of a sample's JSON file; None if it is not a whole one. Raises `NewerFormat`."""
        path = self._folder / f"{key}.json"
        try:
            return _record(_read(path), read_prompt_sets(path))
        except files.NewerFormat:
            raise
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_files(self, item: Item, parts: frozenset[str], value: Sequence[PromptSet]) -> Record:
        """Write the sample's JSON file."""
        document = {"format": "prompt_sets", "version": VERSION, **item.source.header()}
        document["points_digest"] = digest(_points(value))
        document["prompt_sets"] = [_as_json(prompt_set) for prompt_set in value]
        files.write_json(self.locate(item), files.sealed(document))
        return _record(document, value)


def ledger_path(folder: Path) -> Path:
    """Where the ledger of a folder of prompt sets lies."""
    return folder.with_name(f"{folder.name}.ledger.parquet")


def read_prompt_sets(path: Path) -> tuple[PromptSet, ...]:
    """The prompt sets in a JSON file.

    Raises:
        ValueError: the file is damaged; names it and says what to do.
    """
    document = _read(path)
    sets = tuple(_from_json(value) for value in document["prompt_sets"])
    if digest(_points(sets)) != document["points_digest"]:
        raise ValueError(f"{path} is damaged: its points are not those that were drawn. {DELETE}")
    return sets


def points_digest(prompt_set: PromptSet) -> str:
    """Digest of the points of a prompt set: what SAM's answer depends on."""
    return digest([prompt_set.pos, prompt_set.neg])


def _read(path: Path) -> dict[str, Any]:
    return files.read_sealed(path, version=VERSION)


def _record(document: Mapping[str, Any], sets: Sequence[PromptSet]) -> Record:
    points = _points(sets)
    return Record({PART: digest(document["provenance"])}, {PART: digest(points)}, points)


def _points(sets: Sequence[PromptSet]) -> dict[str, str]:
    return {f"{one.promptset_id:04d}": points_digest(one) for one in sets}


def _as_json(one: PromptSet) -> dict[str, Any]:
    return {"promptset_id": one.promptset_id, "k_pairs": one.k_pairs, "pos": one.pos, "neg": one.neg}


def _from_json(value: dict[str, Any]) -> PromptSet:
    pos, neg = (tuple((int(x), int(y)) for x, y in value[name]) for name in ("pos", "neg"))
    return PromptSet(int(value["promptset_id"]), pos, neg)
