"""hdf5_pack and validation_pack: the arrays of a split for fast reading, and the one that judges."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from sam_laplace_assets.domain.ahead import ahead
from sam_laplace_assets.domain.geometry import LOW_RES, resize_nearest
from sam_laplace_assets.domain.plan import Item, Made, Plan, Record, Report, Task, digest, one_by_one
from sam_laplace_assets.overrides import FORCE, GO_ON, Overrides
from sam_laplace_assets.partitions import splits
from sam_laplace_assets.settings import load_settings
from sam_laplace_assets.storage import images, inside, validation
from sam_laplace_assets.storage.index import TrainingIndex
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.sam import read_arrays
from sam_laplace_assets.storage.shards import ARRAYS, NUMBERS, PART, VERSION, PackedSample

if TYPE_CHECKING:
    import pandas as pd

MASKS_VERSION = "1"
READERS, READ_AHEAD = 2, 8
"""Threads that read and check samples, and how many samples they are ahead of the one that is written."""


class PackConfig(Overrides):
    """Launchpad fields of hdf5_pack."""

    force: bool = FORCE


@dg.asset(
    partitions_def=splits,
    io_manager_key="pack_io",
    retry_policy=GO_ON,
    group_name="features",
    code_version=f"{MASKS_VERSION}.{VERSION}",
    kinds={"hdf5"},
)
def hdf5_pack(context: dg.AssetExecutionContext, config: PackConfig, training_index: TrainingIndex) -> Plan:
    """The arrays of one split's rows in HDF5; only samples that changed are written, as new shards."""
    return plan_pack(training_index, force=config.force, max_failed_fraction=load_settings().data.max_failed_fraction)


@dg.asset(
    io_manager_key="validation_io",
    retry_policy=GO_ON,
    group_name="features",
    code_version=MASKS_VERSION,
    kinds={"hdf5"},
    ins={"hdf5_pack": dg.AssetIn(partition_mapping=dg.SpecificPartitionsPartitionMapping(["val"]))},
)
def validation_pack(hdf5_pack: Pack) -> Plan:
    """The pack of split `val`, on which every head and posterior is judged."""
    return plan_validation_pack(hdf5_pack)


def plan_pack(index: TrainingIndex, *, force: bool = False, max_failed_fraction: float = 0.0) -> Plan:
    """One item a sample, with all its rows; what a sample's rows are made of is its provenance."""
    columns = ["promptset_id", *(f"{name}_sha256" for name in ARRAYS), "mask_digest"]
    made_from, rows_of = index.frame[columns].values.tolist(), defaultdict(list)
    for row, key in enumerate(index.frame["safe_id"]):
        rows_of[key].append(row)
    items = [Item(key, {PART: digest([[made_from[row] for row in rows], MASKS_VERSION])}, rows)
             for key, rows in rows_of.items()]  # fmt: skip

    def make(item: Item, parts: frozenset[str]) -> PackedSample:
        return read_sample(index.frame.iloc[item.source], masks_root=index.masks_root, project_root=index.project_root)

    def make_all(tasks: Iterable[Task]) -> Iterator[Made]:
        return ahead(lambda task: next(one_by_one(make, [task])), tasks, depth=READ_AHEAD, threads=READERS)

    return Plan(items, make=make, make_all=make_all, writers=1, report=lambda records: report(index, records),
                force=force, complete=index.complete, max_failed_fraction=max_failed_fraction)  # fmt: skip


def read_sample(rows: "pd.DataFrame", *, masks_root: Path, project_root: Path) -> PackedSample:
    """The arrays of one sample's rows, checked against their SHA-256, and its mask at 256x256."""
    arrays = {name: read_arrays([inside.below(project_root, path) for path in rows[f"{name}_path"]],
                                sha256=rows[f"{name}_sha256"].tolist()) for name in ARRAYS}  # fmt: skip
    mask = images.read_mask(inside.below(masks_root, rows["mask_path"].iloc[0]))
    if images.mask_digest(mask) != rows["mask_digest"].iloc[0]:
        raise ValueError(
            f"The mask of {rows['sample_id'].iloc[0]} has changed since the index was made. Materialise all_samples, "
            "then this split, again."
        )
    numbers = {name: rows[name].tolist() for name in NUMBERS}
    return PackedSample(arrays, numbers, resize_nearest(mask, LOW_RES, LOW_RES))


def report(index: TrainingIndex, records: Mapping[str, Record]) -> Report:
    """Rows, samples and bytes of the arrays."""
    rows, samples = len(index.frame), len(records)
    size = rows * len(ARRAYS) * LOW_RES**2 * 2 + samples * LOW_RES**2
    facts: dict[str, Any] = {"rows": rows, "samples": samples, "bytes": size, "GiB": round(size / 2**30, 3)}
    return Report(facts=facts, metrics={"rows": rows, "samples": samples, "bytes": size})


def plan_validation_pack(pack: Pack) -> Plan:
    """Name the pack."""
    if not pack.complete:
        raise dg.Failure(
            f"{pack.path.name} is a trial (`limit`) or lacks failed samples: it cannot judge. Materialise its split "
            "without `limit` first.",
            allow_retries=False,
        )
    facts = {"pack": pack.path.name, "rows": len(pack), "images": len(pack.safe_ids)}
    item = Item("validation_pack", {validation.PART: pack.data_version}, pack)
    return Plan([item], make=lambda item, parts: pack, report=lambda records: Report(facts=facts), unit="packs")
