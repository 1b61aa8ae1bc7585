"""What must hold of the data."""

from collections import Counter

import dagster as dg

from sam_laplace_assets.assets.champion import Candidate
from sam_laplace_assets.settings import load_settings
from sam_laplace_assets.storage.index import read_index
from sam_laplace_assets.storage.manifest import read_rows
from sam_laplace_assets.storage.pack import open_pack
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.runs import current_run
from sam_laplace_assets.storage.store import NotMade

PARTITION_TAG = "dagster/partition"


@dg.asset_check(asset="all_samples", blocking=True)
def no_sample_or_image_in_two_splits() -> dg.AssetCheckResult:
    """No sample and no image content stands in two base splits."""
    rows = [row for row in read_rows(Project.of(load_settings()).manifests, "all_samples") if row["valid"]]
    found = [*_in_two_splits(rows, "sample_id"), *_in_two_splits(rows, "image_digest")]
    return dg.AssetCheckResult(passed=not found, metadata={"found": "; ".join(found[:20]) or "none"})


def _in_two_splits(rows: list[dict[str, object]], column: str) -> list[str]:
    splits: dict[object, set[object]] = {}
    for row in rows:
        splits.setdefault(row[column], set()).add(row["split"])
    return [f"{column} {key} is in {sorted(map(str, names))}" for key, names in splits.items() if len(names) > 1]


@dg.asset_check(asset="all_samples")
def every_class_is_judged() -> dg.AssetCheckResult:
    """Every class of split train has samples in split val."""
    rows = [row for row in read_rows(Project.of(load_settings()).manifests, "all_samples") if row["valid"]]
    counts = Counter((row["class"], row["split"]) for row in rows)
    found = sorted({str(name) for name, split in counts if split == "train" and not counts[name, "val"]})
    told = {"classes in train, not in val": ", ".join(found) or "none"}
    return dg.AssetCheckResult(passed=not found, severity=dg.AssetCheckSeverity.WARN, metadata=told)


@dg.asset_check(asset="hdf5_pack", blocking=True)
def pack_holds_the_rows_of_its_index(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """The pack of a split has the index's samples and prompt sets, row by row in its order."""
    project = Project.of(load_settings())
    found = {
        split: _first_difference(split, project) for split in _checked_partitions(context, project.packed_splits())
    }
    return _no_complaints(found)


@dg.asset_check(asset="laplace_posterior", blocking=True)
def posterior_reloads(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """The posterior loads from its files onto the head that it names, and is finite, positive and that head's."""
    project = Project.of(load_settings())
    checked = _checked_partitions(context, project.fitted_splits())
    return _no_complaints({split: _refusal(split, project) for split in checked})


def _checked_partitions(context: dg.AssetCheckExecutionContext, there: list[str]) -> list[str]:
    """The partition that the run is about; all that are there, where it is about none."""
    partition = context.run.tags.get(PARTITION_TAG)
    return [partition] if partition else there


def _no_complaints(found: dict[str, str]) -> dg.AssetCheckResult:
    told = {split: complaint or "holds" for split, complaint in found.items()}
    return dg.AssetCheckResult(passed=not any(found.values()), metadata=told)


def _first_difference(split: str, project: Project) -> str:
    try:
        return _compare_rows(split, project)
    except (ValueError, NotMade) as error:
        return str(error)


def _compare_rows(split: str, project: Project) -> str:
    index, _ = read_index(project.training_index(split), project.table_format, split=split)
    with open_pack(project.pack(split)) as pack:
        names = pack["safe_id"].asstr()[:][pack["mask_of_row"][:]].tolist()
        packed = list(zip(names, pack["promptset_id"][:].tolist(), strict=True))
    wanted = list(zip(index["safe_id"], index["promptset_id"].tolist(), strict=True))
    if len(wanted) != len(packed):
        return f"the index has {len(wanted)} rows, the pack {len(packed)}"
    differing = (at for at, pair in enumerate(zip(wanted, packed, strict=True)) if pair[0] != pair[1])
    at = next(differing, None)
    return "" if at is None else f"row {at} is {packed[at]} in the pack, {wanted[at]} in the index"


def _refusal(split: str, project: Project) -> str:
    try:
        run_id = current_run(project.posterior_pointer(split), name=f"laplace_posterior[{split}]")
        Candidate.open(run_id, project).restore()
    except (ValueError, NotMade) as error:
        return str(error)
    return ""


all_checks = [
    no_sample_or_image_in_two_splits, every_class_is_judged, pack_holds_the_rows_of_its_index, posterior_reloads,
]  # fmt: skip
