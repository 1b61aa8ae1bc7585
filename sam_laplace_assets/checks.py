"""What must hold of the data."""

import contextlib
from collections import Counter
from typing import Any

import dagster as dg

from sam_laplace_assets.assets.champion import Candidate
from sam_laplace_assets.assets.splitting import groups_in_two_splits
from sam_laplace_assets.settings import load_settings
from sam_laplace_assets.storage.index import read_index
from sam_laplace_assets.storage.manifest import read_rows
from sam_laplace_assets.storage.pack import open_pack
from sam_laplace_assets.storage.project import Project, named_splits
from sam_laplace_assets.storage.runs import current_run
from sam_laplace_assets.storage.store import NotMade

PARTITION_TAG = "dagster/partition"


@dg.asset_check(asset="all_samples", blocking=True)
def no_sample_in_two_splits() -> dg.AssetCheckResult:
    """No sample of the base roots stands in two splits."""
    return _none_found(_in_two_splits(_base_rows(), "sample_id"))


@dg.asset_check(asset="all_samples", blocking=True)
def no_image_in_two_splits() -> dg.AssetCheckResult:
    """No image content stands in two splits, base or named."""
    return _none_found(_in_two_splits(_all_rows(), "image_digest"))


@dg.asset_check(asset="manifest", blocking=True)
def no_image_of_it_in_another_split() -> dg.AssetCheckResult:
    """No image content of a split stands in another one, base or named."""
    return _none_found(_in_two_splits(_all_rows(), "image_digest"))


@dg.asset_check(asset="all_samples")
def every_group_in_one_split() -> dg.AssetCheckResult:
    """What `data.group_by` keeps together stands in one split; a rule that came later moves nothing."""
    found = groups_in_two_splits(_base_rows(), load_settings().data)
    return _none_found(found, severity=dg.AssetCheckSeverity.WARN)


def _none_found(
    found: list[str], *, severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=not found, severity=severity, metadata={"found": "; ".join(found[:20]) or "none"})


def _base_rows() -> list[dict[str, Any]]:
    rows = read_rows(Project.of(load_settings()).manifests, "all_samples")
    return [row for row in rows if row["valid"]]


def _all_rows() -> list[dict[str, Any]]:
    """Valid rows of the base roots and of the named splits that were made."""
    settings = load_settings()
    rows = _base_rows()
    for split in named_splits(settings.data):
        with contextlib.suppress(NotMade):
            rows += [row for row in read_rows(Project.of(settings).manifests, split) if row["valid"]]
    return rows


def _in_two_splits(rows: list[dict[str, Any]], column: str) -> list[str]:
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(str(row[column]), set()).add(str(row["split"]))
    return [f"{column} {key} is in {', '.join(sorted(names))}" for key, names in splits.items() if len(names) > 1]


@dg.asset_check(asset="all_samples")
def every_class_is_judged() -> dg.AssetCheckResult:
    """Every class of split train has samples in split val."""
    counts = Counter((row["class"], row["split"]) for row in _base_rows())
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
    no_sample_in_two_splits,
    no_image_in_two_splits,
    no_image_of_it_in_another_split,
    every_group_in_one_split, every_class_is_judged, pack_holds_the_rows_of_its_index, posterior_reloads,
]  # fmt: skip
