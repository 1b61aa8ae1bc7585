"""Files of another project root that become ours where they are, or by a link: none is copied that need not be."""

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_laplace_assets.domain.geometry import LOW_RES
from sam_laplace_assets.domain.plan import Item, Record
from sam_laplace_assets.storage import files, sam
from sam_laplace_assets.storage.original import ASIDE
from sam_laplace_assets.storage.prompts import PromptStore
from sam_laplace_assets.storage.sam import ARRAYS, SamStore, set_name
from sam_laplace_assets.storage.store import FileStore


@dataclass(frozen=True)
class TakenSet:
    """What is taken over of one prompt set.

    Attributes:
        promptset_id: which one.
        sources: array name -> its file, of the parts that are taken.
        sha256: array name -> of that file.
        facts: what meta.json says beside them.
        provenance: part -> provenance, of the parts that are taken.
    """

    promptset_id: int
    sources: Mapping[str, Path]
    sha256: Mapping[str, str]
    facts: Mapping[str, Any]
    provenance: Mapping[str, Mapping[str, Any]]


class _Unfinished(FileStore):
    """A store that is left before its partition is complete."""

    def leave(self) -> None:
        """Save the ledger, as one in the making: a run completes it."""
        self._ledger.complete, self._ledger.data_version = False, ""
        self._ledger.save()


class PromptsToAdopt(_Unfinished, PromptStore):
    """The prompt sets of one split, some of which are taken over."""


class CacheToAdopt(_Unfinished, SamStore):
    """The cache of one split, some of whose arrays are taken over; an item's value is its `TakenSet`s."""

    def write_files(self, item: Item, parts: frozenset[str], value: Sequence[TakenSet]) -> Record:  # type: ignore[override]
        """Link the arrays into place, then write each set's meta.json; the record is read from what is there then.

        Raises:
            ValueError: what was written is not whole, since a file of the original changed meanwhile.
        """
        whole = self.read_record(item.key)
        folders = {self.locate(item) / set_name(taken.promptset_id): taken for taken in value}
        metas = {folder / "meta.json": files.json_bytes(_meta(folder, item.key, taken, whole))
                 for folder, taken in folders.items()}  # fmt: skip
        for folder, taken in folders.items():
            for name, source in taken.sources.items():
                link(source, folder / f"{name}.npy")
        files.write_set(metas)
        record = self.read_record(item.key)
        if record is None or not parts <= record.parts.keys():
            raise ValueError(f"the files of {item.key} changed while they were taken over; adopt again")
        return record


def _meta(folder: Path, key: str, taken: TakenSet, whole: Record | None) -> dict[str, Any]:
    """meta.json as the store of the cache writes it, with what an earlier one of ours says of parts that are whole."""
    kept = _ours(folder / "meta.json")
    name = f"{taken.promptset_id:04d}"
    there = {part for part in ARRAYS if whole is not None and f"{name}/{part}" in whole.parts}
    provenance = {part: made_from for part, made_from in kept.get("provenance", {}).items() if part in there}
    provenance |= dict(taken.provenance)
    sums = {array: value for array, value in kept.get("sha256", {}).items() if _part_of(array) in there}
    sums |= {f"{array}.npy": value for array, value in taken.sha256.items()}
    always = {
        "format": "sam_cache", "version": sam.VERSION, "safe_id": key, "promptset_id": taken.promptset_id,
        "logits_size": [LOW_RES, LOW_RES], "dtypes": dict.fromkeys(sum(ARRAYS.values(), ()), "float16"),
        "sha256": dict(sorted(sums.items())), "provenance": dict(sorted(provenance.items())),
    }  # fmt: skip
    facts = {fact: value for fact, value in sorted({**kept, **taken.facts}.items()) if fact not in always}
    return files.sealed(always | facts)


def _ours(path: Path) -> dict[str, Any]:
    """What a meta.json of this package says; empty where there is none, or none that is whole."""
    try:
        said = files.read_sealed(path, version=sam.VERSION)
        return said if said.get("format") == "sam_cache" else {}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _part_of(file: str) -> str:
    return next((part for part, arrays in ARRAYS.items() if file.removesuffix(".npy") in arrays), "")


def link(source: Path, target: Path) -> None:
    """Have the file at `source` at `target`, too: by a hard link, or where there can be none, as a copy.

    The folder is not synced: that is left to who writes the file that completes it.
    """
    source = source.resolve()
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{files.TEMPORARY}{uuid.uuid4().hex}"
    try:
        _link_or_copy(source, temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links, or a file of somebody else's
        shutil.copyfile(source, target)
        files.sync(target)


def keep_aside(root: Path, path: Path) -> None:
    """Have a file of the original below `original/` as well, before one of ours takes its place."""
    aside = root / ASIDE / path.relative_to(root)
    if path.is_file() and not aside.exists():
        link(path, aside)
        files.sync(aside.parent)
