"""hdf5_pack and validation_pack: the arrays of a split for fast reading, and the one that judges."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd

from sam_laplace_assets.domain.geometry import LOW_RES, resize_nearest
from sam_laplace_assets.domain.plan import Item, Plan, Record, Report, digest
from sam_laplace_assets.overrides import FORCE, GO_ON, Overrides
from sam_laplace_assets.partitions import splits
from sam_laplace_assets.settings import load_settings
from sam_laplace_assets.storage import images, validation
from sam_laplace_assets.storage.index import TrainingIndex
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.sam import read_array
from sam_laplace_assets.storage.shards import ARRAYS, NUMBERS, PART, VERSION, PackedSample

MASKS_VERSION = "1"


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
    items = [Item(str(key), {PART: digest([rows[columns].values.tolist(), MASKS_VERSION])}, rows)
             for key, rows in index.frame.groupby("safe_id", sort=False)]  # fmt: skip

    def make(item: Item, parts: frozenset[str]) -> PackedSample:
        return read_sample(item.source, masks_root=index.masks_root, project_root=index.project_root)

    return Plan(items, make=make, report=lambda records: report(index, records), force=force, complete=index.complete,
                max_failed_fraction=max_failed_fraction)  # fmt: skip


def read_sample(rows: pd.DataFrame, *, masks_root: Path, project_root: Path) -> PackedSample:
    """The arrays of one sample's rows, checked against their SHA-256, and its mask at 256x256."""
    arrays = {name: np.stack([read_array(project_root / path, sha256=sha256) for path, sha256 in
                              zip(rows[f"{name}_path"], rows[f"{name}_sha256"], strict=True)])
              for name in ARRAYS}  # fmt: skip
    mask = images.read_mask(masks_root / rows["mask_path"].iloc[0])
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
