"""What must hold of manifests: how samples are split."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import dagster as dg

from sam_laplace_assets.assets.splitting import grouping, groups_in_two_splits
from sam_laplace_assets.checks.findings import WARN, Finding, by_partition, listed, whole
from sam_laplace_assets.domain.manifest import PARTITION_ROLES, Candidate, assign_splits, check_split_key
from sam_laplace_assets.partitions import known_splits
from sam_laplace_assets.reporting import markdown_table
from sam_laplace_assets.settings import DataSettings, load_settings
from sam_laplace_assets.storage.manifest import Row, read_rows
from sam_laplace_assets.storage.project import Project, named_splits
from sam_laplace_assets.storage.store import NotMade

NEAR = 0.02
"""Part of all samples by which a split may miss its share."""


@dg.asset_check(asset="all_samples", blocking=True)
def no_sample_in_two_splits() -> dg.AssetCheckResult:
    """No sample of the base roots stands in two splits."""
    return whole(lambda: Finding(_in_two_splits(_base_rows(), "sample_id")))


@dg.asset_check(asset="all_samples", blocking=True)
def no_image_in_two_splits() -> dg.AssetCheckResult:
    """No image content stands in two splits, base or named."""
    return whole(lambda: Finding(_in_two_splits(_all_rows(), "image_digest")))


@dg.asset_check(asset="manifest", blocking=True)
def no_image_of_it_in_another_split(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """No image content of a split stands in another one, base or named."""
    settings = load_settings()
    place = Project.of(settings).manifests
    made = [split for split in known_splits(settings.data) if place.table(split).exists()]
    return by_partition(context, made, _shared_with_others)


@dg.asset_check(asset="all_samples")
def every_group_in_one_split() -> dg.AssetCheckResult:
    """What `data.group_by` keeps together stands in one split; a rule that came later moves nothing."""
    return whole(lambda: Finding("; ".join(groups_in_two_splits(_base_rows(), load_settings().data)[:20]), WARN))


@dg.asset_check(asset="all_samples")
def every_class_is_judged() -> dg.AssetCheckResult:
    """Every class of split train has samples in split val."""
    return whole(lambda: _unjudged(_base_rows()))


@dg.asset_check(asset="all_samples")
def splits_have_their_share() -> dg.AssetCheckResult:
    """Train, val and test hold about the 80, 10 and 10 per cent that a new draw would give them."""
    return whole(_shares)


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


def _shared_with_others(split: str) -> Finding:
    """Which images of one split's manifest another split has as well."""
    check_split_key(split)
    own = [row for row in read_rows(Project.of(load_settings()).manifests, split) if row["valid"]]
    digests = {row["image_digest"] for row in own}
    others = [row for row in _all_rows() if row["split"] != split and row["image_digest"] in digests]
    return Finding(_in_two_splits([*own, *others], "image_digest"), facts={"samples": len(own)})


def _in_two_splits(rows: Sequence[Row], column: str) -> str:
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(str(row[column]), set()).add(str(row["split"]))
    found = [f"{column} {key} is in {', '.join(sorted(names))}" for key, names in splits.items() if len(names) > 1]
    return "; ".join(found[:20])


def _unjudged(rows: Sequence[Row]) -> Finding:
    counts = Counter((row["class"], row["split"]) for row in rows)
    found = {str(name) for name, split in counts if split == "train" and not counts[name, "val"]}
    return Finding(f"Classes in train, not in val: {listed(found)}." if found else "", WARN)


def _shares() -> Finding:
    data = load_settings().data
    if data.splits_file is not None:
        return Finding(facts={"not judged": "data.splits_file says where each sample stands."})
    rows = _base_rows()
    counts, drawn = Counter(str(row["split"]) for row in rows), _drawn_anew(rows, data)
    table = [{"split": role, "samples": counts[role], "share": f"{counts[role] / max(len(rows), 1):.1%}",
              "a new draw": drawn[role]} for role in PARTITION_ROLES]  # fmt: skip
    off = [f"{role} has {counts[role]} of {len(rows)} samples, a new draw would give it {drawn[role]}"
           for role in PARTITION_ROLES if abs(counts[role] - drawn[role]) > max(NEAR * len(rows), 1)]  # fmt: skip
    why = ". Nothing that was assigned moves when samples come and go; `resplit` of all_samples draws all splits anew."
    return Finding("; ".join(off) + why if off else "", WARN, {"splits": dg.MetadataValue.md(markdown_table(table))})


def _drawn_anew(rows: Sequence[Row], data: DataSettings) -> Counter[str]:
    """How many samples each split would have: rounding by class and groups that stay together are in it."""
    group = grouping(data)
    samples = [Candidate(row["sample_id"], row["class"], group(row["sample_id"]), row["image_digest"]) for row in rows]
    return Counter(assign_splits(samples, {}, split_seed=data.split_seed).values())
