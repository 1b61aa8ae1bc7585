"""all_samples and manifest: what was found on disk, and which split it belongs to."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from sam_laplace_assets.assets.splitting import assign_base_splits, refuse_content_of_other_splits, require_usable
from sam_laplace_assets.domain.manifest import PARTITION_ROLES
from sam_laplace_assets.domain.plan import Item, Parts, Plan, Report, digest
from sam_laplace_assets.overrides import FORCE, GO_ON, Overrides
from sam_laplace_assets.partitions import known_splits, register_splits, require_split, splits
from sam_laplace_assets.settings import DataSettings, Settings, load_settings
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.manifest import AllSamples, Passing, Row, RowOf, Rows, read_manifest, read_row
from sam_laplace_assets.storage.project import Project, SplitRoots, roots_of
from sam_laplace_assets.storage.samples import Found, list_samples

ROWS_VERSION = "1"
ROW = "row"
INVALID = "invalid"


class ScanConfig(Overrides):
    """Launchpad fields of all_samples."""

    force: bool = FORCE
    resplit: bool = Field(False, description="forget which split each sample was given, and draw all splits anew")


class ManifestConfig(Overrides):
    """Launchpad fields of manifest."""

    force: bool = FORCE


@dg.asset(
    io_manager_key="all_samples_io", retry_policy=GO_ON, group_name="data", code_version=ROWS_VERSION, kinds={"table"}
)
def all_samples(context: dg.AssetExecutionContext, config: ScanConfig) -> Plan:
    """Every file below the base roots: samples with their split, refused files with the reason."""
    settings = load_settings()
    register_splits(known_splits(settings.data), context.instance)
    return plan_all_samples(settings, force=config.force, resplit=config.resplit)


@dg.asset(
    partitions_def=splits,
    io_manager_key="manifest_io",
    retry_policy=GO_ON,
    group_name="data",
    code_version=ROWS_VERSION,
    kinds={"table"},
)
def manifest(context: dg.AssetExecutionContext, config: ManifestConfig, all_samples: AllSamples) -> Plan:
    """The samples of one split: its share of the base roots, or its own folder."""
    settings = load_settings()
    split = require_split(context.partition_key, settings.data)
    if split in PARTITION_ROLES:
        return plan_base_manifest(all_samples, split, force=config.force)
    return plan_named_manifest(settings, split, force=config.force)


def plan_all_samples(settings: Settings, *, force: bool = False, resplit: bool = False) -> Plan:
    """Read what was not read yet, then give new samples their splits."""
    roots = SplitRoots(settings.data.images_root, settings.data.masks_root)
    place = Project.of(settings).manifests

    def assign(rows: Sequence[Row], kept: Mapping[str, Any]) -> Any:
        return assign_base_splits(rows, {} if resplit else kept, settings.data, place)

    return plan_scan(roots, settings.data, force=force or resplit, finish=assign,
                     report=lambda records: report_rows(Rows(read_manifest(place, "all_samples"))))  # fmt: skip


def plan_named_manifest(settings: Settings, split: str, *, force: bool = False) -> Plan:
    """Scan a named split's own folder."""
    place, roots = Project.of(settings).manifests, roots_of(settings.data, split)

    def assign(rows: Sequence[Row], kept: Mapping[str, Any]) -> Any:
        named = [{**row, "split": split} for row in rows]
        judged = refuse_content_of_other_splits(named, split, settings.data, place)
        require_usable(judged, roots, asset=f"manifest[{split}]")
        return judged, kept

    return plan_scan(roots, settings.data, force=force, finish=assign,
                     report=lambda records: report_rows(Rows(read_manifest(place, split))))  # fmt: skip


def plan_base_manifest(everything: AllSamples, split: str, *, force: bool = False) -> Plan:
    """Take a base split's rows from all samples."""
    rows = everything.rows.valid(split)
    if not rows:
        raise dg.Failure(
            f"Split {split!r} has no samples: {len(everything.rows.valid())} valid samples in all are too few for it, "
            "or data.splits_file gives it none. Add samples, then materialise all_samples again.",
            allow_retries=False,
        )
    items = [Item(row["safe_id"], Parts({ROW: digest(row)}), RowOf(rows, at)) for at, row in enumerate(rows)]
    return Plan(items, make=lambda item, parts: item.source, report=lambda records: report_rows(rows), force=force,
                complete=everything.complete)  # fmt: skip


def plan_scan(roots: SplitRoots, data: DataSettings, *, force: bool, finish: Any, report: Any) -> Plan:
    """A row for each file pair below two roots; files whose size and time are known are not read again."""
    found = _find(roots, data)
    items = [Item(_key(one), Parts({ROW: _looks(one, roots)}), one) for one in found]

    def make(item: Item, parts: frozenset[str]) -> Row | Passing:
        return read_row(item.source, images_root=roots.images_root, masks_root=roots.masks_root)

    return Plan(items, make=make, finish=finish, report=report, unit="files", force=force,
                max_failed_fraction=data.max_failed_fraction)  # fmt: skip


def _find(roots: SplitRoots, data: DataSettings) -> list[Found]:
    """What lies below two roots; trying again does not make a folder appear."""
    try:
        return list_samples(roots.images_root, roots.masks_root, images_key=roots.images_key,
                            masks_key=roots.masks_key, allow_links_out=data.allow_links_out)  # fmt: skip
    except FileNotFoundError as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def _key(found: Found) -> str:
    """Both paths in one text that no other two give, whatever they hold."""
    return "|".join(_in_key(path) for path in (found.image_path, found.mask_path))


def _in_key(path: str | None) -> str:
    return "./None" if path == "None" else str(path).replace("|", "\\|")


def _looks(found: Found, roots: SplitRoots) -> str:
    """What decides whether a pair is read again: names, sizes, times and what the listing says of it."""
    sides = ((roots.images_root, found.image_path), (roots.masks_root, found.mask_path))
    seen = [_seen(Path(root) / path) for root, path in sides if path is not None]
    return digest([seen, found.sample_id, found.reason, ROWS_VERSION])


def _seen(path: Path) -> str:
    """Name, size and time of a file, and whether it may not be read; empty where there is none to be seen."""
    try:
        signature = files.signature(path)
    except OSError:
        return ""
    return signature if not signature or os.access(path, os.R_OK) else f"{signature} closed"


def report_rows(rows: Iterable[Row]) -> Report:
    """Counts, split sizes, a table by class and a table of the refused."""
    found: Counter[tuple[str, str]] = Counter()
    invalid: list[dict[str, Any]] = []
    for row in rows:
        found[str(row["class"]), str(row["split"]) if row["valid"] else INVALID] += 1
        if not row["valid"]:
            invalid.append({"file": row["image_path"] or row["mask_path"], "reason": row["reason"]})
    sizes: Counter[str] = Counter()
    for (_, column), count in found.items():
        sizes[column] += count
    counts = {"valid": sizes.total() - len(invalid), "invalid": len(invalid)}
    counts |= {f"samples in {split}": sizes[split] for split in sorted(sizes) if split != INVALID}
    return Report(warnings=_refusals(invalid, sizes.total()), facts=counts, metrics=counts,
                  tables={"by class": _by_class(found), "invalid samples": invalid})  # fmt: skip


def _refusals(invalid: Sequence[Mapping[str, Any]], found: int) -> list[str]:
    if not invalid:
        return []
    shown = "; ".join(f"{row['file']}: {row['reason']}" for row in invalid[:3])
    more = f"; and {len(invalid) - 3} more, all in its table" if len(invalid) > 3 else ""
    return [f"{len(invalid)} of {found} found files or pairs cannot be used: {shown}{more}"]


def _by_class(found: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    """A row a class: how many samples each split has of it, and how many were refused."""
    columns = sorted({column for _, column in found})
    return [{"class": name} | {column: found[name, column] for column in columns}
            for name in sorted({name for name, _ in found})]  # fmt: skip
