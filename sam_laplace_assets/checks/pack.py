"""What must hold of packs: the rows of their index, and values that can be."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np

from sam_laplace_assets.checks.findings import Finding, by_partition
from sam_laplace_assets.settings import load_settings
from sam_laplace_assets.storage.index import read_index
from sam_laplace_assets.storage.pack import Pack, open_pack
from sam_laplace_assets.storage.project import Project

if TYPE_CHECKING:
    from sam_laplace_assets.storage.rows import OpenPack

REMEDY = "Look at this sample's image and mask, then materialise its split with `force`, from sam_cache on."
Pair = tuple[str, int]
"""safe_id and promptset_id: what names a row."""


@dg.asset_check(asset="hdf5_pack", blocking=True)
def pack_holds_the_rows_of_its_index(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """The samples of a split's pack have the index's prompt sets, row by row in its order."""
    project = Project.of(load_settings())
    return by_partition(context, project.packed_splits(), lambda split: Finding(_first_difference(split, project)))


@dg.asset_check(asset="hdf5_pack", blocking=True)
def arrays_are_finite_and_in_range(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Every value of a split's pack can be: logits are finite, maps from 0 to 1, masks 0 or 1."""
    project = Project.of(load_settings())
    return by_partition(context, project.packed_splits(), lambda split: _look_at_values(split, project))


def packed_rows(path: Path) -> list[Pair]:
    """What the rows of a pack are called, in order. Raises `NotMade` or `PackRefused`."""
    with open_pack(path) as pack:
        names = pack["safe_id"].asstr()[:][pack["mask_of_row"][:]].tolist()
        return list(zip(names, pack["promptset_id"][:].tolist(), strict=True))


def indexed_rows(split: str, project: Project) -> tuple[list[Pair], bool]:
    """What the rows of an index are called, in order, and whether they are all. Raises `NotMade`."""
    index, complete = read_index(project.training_index(split), project.table_format, split=split)
    return list(zip(index["safe_id"], index["promptset_id"].tolist(), strict=True)), complete


def _first_difference(split: str, project: Project) -> str:
    """Why a pack is not its index; samples that it lacks altogether are the matter of another check."""
    packed = packed_rows(project.pack(split))
    there = {name for name, _ in packed}
    wanted = [row for row in indexed_rows(split, project)[0] if row[0] in there]
    if len(wanted) != len(packed):
        return f"the index has {len(wanted)} rows of the pack's samples, the pack {len(packed)}"
    differing = (at for at, pair in enumerate(zip(wanted, packed, strict=True)) if pair[0] != pair[1])
    at = next(differing, None)
    return "" if at is None else f"row {at} is {packed[at]} in the pack, {wanted[at]} in the index"


@dataclass(frozen=True)
class Rule:
    """What the values of a dataset must be, in words, and which of them are."""

    must: str
    holds: Callable[[np.ndarray], np.ndarray]


FROM_0_TO_1 = Rule("from 0 to 1", lambda values: (values >= 0) & (values <= 1))
RULES = {
    "logits_256": Rule("finite", np.isfinite),
    "pos_map": FROM_0_TO_1,
    "neg_map": FROM_0_TO_1,
    "mask": Rule("0 or 1", lambda values: values <= 1),
}


def _look_at_values(split: str, project: Project) -> Finding:
    """The first row of each array, and the first mask, whose values break their rule."""
    from sam_laplace_assets.storage.rows import OpenPack

    pack = Pack.open(project.pack(split))
    opened = OpenPack(pack)
    with opened.file:
        firsts = {name: _first_broken(opened, name, rule) for name, rule in RULES.items()}
        broken = [f"{name} of {_called(pack, opened, name, at)} is not {RULES[name].must}"
                  for name, at in firsts.items() if at is not None]  # fmt: skip
    looked = {"rows": len(pack), "samples": len(pack.safe_ids)}
    return Finding(f"{'; '.join(broken)}. {REMEDY}" if broken else "", facts=looked)


def _first_broken(opened: "OpenPack", name: str, rule: Rule) -> int | None:
    """The first entry of a dataset that breaks a rule; a block of it is in memory at a time."""
    from sam_laplace_assets.storage.rows import BLOCK

    for start in range(0, opened.file[name].shape[0], BLOCK):
        holds = rule.holds(opened.array(name, slice(start, start + BLOCK))).all(axis=(1, 2))
        if not holds.all():
            return start + int(holds.argmin())
    return None


def _called(pack: Pack, opened: "OpenPack", name: str, at: int) -> str:
    """The sample of an entry, and the prompt set where it is a row."""
    if name == "mask":
        return pack.safe_ids[at]
    return f"{pack.safe_ids[pack.images[at]]}, prompt set {opened.file['promptset_id'][at]} (row {at}),"
