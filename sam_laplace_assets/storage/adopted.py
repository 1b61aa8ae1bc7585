"""Prompt sets that were drawn elsewhere and are kept as they are, as one Parquet file a split. version 1

prompt_sets/<split>.adopted.parquet, a row a sample:
  key                       the sample
  mask_digest               of the mask that the points were held against
  image_h, image_w          of the image that they lie on, pixels
  points_digest             of all that `prompt_sets` holds
  prompt_sets               JSON, [{promptset_id, pos: [[x, y], ...], neg: [[x, y], ...]}], pixels of the original image

The note's `recipe` says what the settings would have drawn from when the sets were taken. They stand in for that, as
long as the settings ask for it and the mask is the same; otherwise prompt sets are drawn as ever. Without the file, all
are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from sam_laplace_assets.domain.plan import digest
from sam_laplace_assets.domain.prompts import PromptSet
from sam_laplace_assets.storage import tables

VERSION = 1
SCHEMA = pa.schema([("key", pa.string()), ("mask_digest", pa.string()), ("image_h", pa.int64()),
                    ("image_w", pa.int64()), ("points_digest", pa.string()), ("prompt_sets", pa.string())])  # fmt: skip


@dataclass(frozen=True)
class AdoptedSets:
    """The prompt sets of one sample, and the mask and image that they belong to."""

    mask_digest: str
    image_h: int
    image_w: int
    points_digest: str
    text: str

    @classmethod
    def of(cls, sets: Sequence[PromptSet], *, mask_digest: str, size: tuple[int, int]) -> "AdoptedSets":
        """Prompt sets on an image of this (H, W)."""
        listed = [{"promptset_id": one.promptset_id, "pos": one.pos, "neg": one.neg} for one in sets]
        return cls(mask_digest, *size, digest(listed), json.dumps(listed, separators=(",", ":")))

    @property
    def sets(self) -> tuple[PromptSet, ...]:
        """The sets themselves."""
        listed = [(one["promptset_id"], *(tuple(map(tuple, one[side])) for side in ("pos", "neg")))
                  for one in json.loads(self.text)]  # fmt: skip
        return tuple(PromptSet(*one) for one in listed)

    def fit(self, row: Mapping[str, Any]) -> bool:
        """Whether a sample, as its manifest's row says, still has that mask and that size."""
        here = (row["mask_digest"], row["image_h"], row["image_w"])
        return here == (self.mask_digest, self.image_h, self.image_w)


@dataclass(frozen=True)
class Adopted:
    """What was adopted of one split, and the recipe that it stands in for."""

    recipe: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, AdoptedSets] = field(default_factory=dict)

    def under(self, recipe: Mapping[str, Any]) -> "Adopted":
        """The same where this is the recipe, else nothing."""
        return self if self.recipe == recipe else Adopted(recipe)


def adopted_path(folder: Path) -> Path:
    """Where the adopted ones of a folder of prompt sets are remembered."""
    return folder.with_name(f"{folder.name}.adopted.parquet")


def read_adopted(folder: Path) -> Adopted:
    """What was adopted of a folder of prompt sets; nothing where nothing was.

    Raises:
        TableRefused: the file is damaged; without it all would be drawn anew.
        NewerFormat: it is of a newer version.
    """
    path = adopted_path(folder)
    if not path.exists():
        return Adopted()
    note = tables.read_note(path, version=VERSION)
    try:
        if note is None:
            raise tables.TableRefused("it has no note")
        rows = list(tables.rows_of(tables.read_arrow(path, SCHEMA)))
    except tables.TableRefused as error:
        raise tables.TableRefused(
            f"{path} is damaged ({error.__cause__ or error}). Run sam-laplace adopt again once it is deleted; without "
            "that, deleting it has the prompt sets of this split drawn anew."
        ) from error
    return Adopted(note["recipe"], {row.pop("key"): _sets_of(row) for row in rows})


def write_adopted(folder: Path, adopted: Adopted) -> None:
    """Remember what was adopted."""
    rows = [(key, one.mask_digest, one.image_h, one.image_w, one.points_digest, one.text)
            for key, one in sorted(adopted.samples.items())]  # fmt: skip
    note = {"format": "adopted_prompts", "version": VERSION, "recipe": dict(adopted.recipe)}
    path = adopted_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write_table(path, pa.Table.from_batches(tables.batches_of(rows, SCHEMA), SCHEMA), SCHEMA, note)


def _sets_of(row: Mapping[str, Any]) -> AdoptedSets:
    return AdoptedSets(row["mask_digest"], row["image_h"], row["image_w"], row["points_digest"], row["prompt_sets"])
