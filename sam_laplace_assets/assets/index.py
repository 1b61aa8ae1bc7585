"""training_index: a row a (sample, prompt set), pointing at everything that a row of training is made of."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from sam_laplace_assets.domain.plan import Item, Plan, Report, digest
from sam_laplace_assets.overrides import FORCE, GO_ON, Overrides
from sam_laplace_assets.partitions import splits
from sam_laplace_assets.settings import load_settings
from sam_laplace_assets.storage import tables
from sam_laplace_assets.storage.index import NUMBERS, PART, SCHEMA, summarise
from sam_laplace_assets.storage.manifest import Manifest, Sample
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.sam import CachedSet, SamCache

INDEX_VERSION = "2"


class IndexConfig(Overrides):
    """Launchpad fields of training_index."""

    force: bool = FORCE


@dg.asset(
    partitions_def=splits,
    io_manager_key="index_io",
    retry_policy=GO_ON,
    group_name="features",
    code_version=INDEX_VERSION,
    kinds={"table"},
)
def training_index(
    context: dg.AssetExecutionContext, config: IndexConfig, manifest: Manifest, sam_cache: SamCache
) -> Plan:
    """The rows of one split that a head can learn from, in the order of the pack."""
    project = Project.of(load_settings())
    return plan_training_index(manifest, sam_cache, project, force=config.force)


def plan_training_index(manifest: Manifest, cache: SamCache, project: Project, *, force: bool = False) -> Plan:
    """One table, made again when any of its rows differs."""
    table = tables.table_of(_rows(manifest, cache, project), SCHEMA)
    complete = manifest.complete and cache.complete
    rows_digest, summary = tables.columns_digest(table), summarise(table)
    item = Item(manifest.split, {PART: digest([rows_digest, complete])}, (rows_digest, complete))
    facts: dict[str, Any] = {name.replace("_", " "): value for name, value in summary.items()}
    shown = ["sample_id", "promptset_id", *NUMBERS, "image_h", "image_w"]
    reported = Report(facts=facts, metrics=summary, tables={"first rows": table.select(shown).slice(0, 5).to_pylist()})
    return Plan([item], make=lambda item, parts: table, report=lambda records: reported, unit="tables", force=force,
                complete=complete)  # fmt: skip


def _rows(manifest: Manifest, cache: SamCache, project: Project) -> Iterator[dict[str, Any]]:
    folder = project.relative(cache.folder)
    taken = ("sample_id", "safe_id", "image_path", "image_h", "image_w", "mask_path", "image_digest", "mask_digest")
    for sample in manifest:
        if sample.key not in cache.records:
            continue
        shared = {name: sample.row[name] for name in taken} | {"split": manifest.split}
        for one in cache.sets(sample.key):
            _refuse_other_image(sample, one, manifest.split)
            arrays = {f"{name}_path": f"{folder}/{one.path(name)}" for name in one.sha256}
            sums = {f"{name}_sha256": value for name, value in one.sha256.items()}
            numbers = {name: getattr(one, name) for name in ("promptset_id", *NUMBERS)}
            yield shared | arrays | sums | numbers


def _refuse_other_image(sample: Sample, cached: CachedSet, split: str) -> None:
    if cached.image_digest != sample.row["image_digest"]:
        raise dg.Failure(
            f"What SAM said of {sample.sample_id}, prompt set {cached.promptset_id}, is of another image: the manifest "
            f"has {sample.row['image_digest'][:12]}, the cache {cached.image_digest[:12]}. Materialise "
            f"sam_cache[{split}] again.",
            allow_retries=False,
        )
