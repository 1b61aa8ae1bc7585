"""What must hold of the data."""

from collections import Counter

import dagster as dg

from sam_laplace_assets.settings import load_settings
from sam_laplace_assets.storage.manifest import read_rows
from sam_laplace_assets.storage.project import Project


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


all_checks = [no_sample_or_image_in_two_splits, every_class_is_judged]
