"""sanity_panels: image, mask, SAM's mask and logits, and the two maps, side by side, to be looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from pydantic import Field

from sam_laplace_assets.assets.pictures import contact_sheet, draw_panels
from sam_laplace_assets.domain.plan import Item, Plan, Report, digest
from sam_laplace_assets.overrides import FORCE, GO_ON, Overrides
from sam_laplace_assets.partitions import splits
from sam_laplace_assets.settings import load_settings
from sam_laplace_assets.storage.manifest import Manifest, Sample
from sam_laplace_assets.storage.panels import PART
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.sam import CachedSet, SamCache, read_array

PANELS_VERSION = "1"
DRAWN = 8
SHOWN = 6


class PanelConfig(Overrides):
    """Launchpad fields of sanity_panels."""

    force: bool = FORCE
    n: int | None = Field(None, ge=1, description=f"how many samples to draw; {DRAWN} if empty")


@dataclass(frozen=True)
class PanelSource:
    """One sample with one of its cached prompt sets."""

    sample: Sample
    cached: CachedSet
    folder: Path


@dg.asset(
    partitions_def=splits,
    io_manager_key="panels_io",
    retry_policy=GO_ON,
    group_name="features",
    code_version=PANELS_VERSION,
    kinds={"png"},
)
def sanity_panels(
    context: dg.AssetExecutionContext, config: PanelConfig, manifest: Manifest, sam_cache: SamCache
) -> Plan:
    """Six panels for a few samples of one split: what training will see, before hours are spent on it."""
    settings = load_settings()
    folder = Project.of(settings).panels(context.partition_key)
    return plan_panels(manifest, sam_cache, folder, n=config.n or DRAWN, force=config.force,
                       max_failed_fraction=settings.data.max_failed_fraction)  # fmt: skip


def plan_panels(manifest: Manifest, cache: SamCache, folder: Path, *, n: int, force: bool = False,
                max_failed_fraction: float = 0.0) -> Plan:  # fmt: skip
    """`n` samples spread over the split, a prompt set each, in turn."""
    cached = [sample for sample in manifest if sample.key in cache.records]
    chosen = [cached[at * len(cached) // min(n, len(cached))] for at in range(min(n, len(cached)))]
    items = [_item(sample, cache, at) for at, sample in enumerate(chosen)]
    return Plan(items, make=lambda item, parts: draw(item.source), unit="panels", force=force,
                report=lambda records: report([item for item in items if item.key in records], folder),
                max_failed_fraction=max_failed_fraction)  # fmt: skip


def _item(sample: Sample, cache: SamCache, at: int) -> Item:
    sets = list(cache.sets(sample.key))
    one = sets[at % len(sets)]
    made_from = digest([dict(one.sha256), sample.row["image_digest"], sample.row["mask_digest"], PANELS_VERSION])
    return Item(f"{sample.key}_{one.promptset_id:04d}", {PART: made_from}, PanelSource(sample, one, cache.folder))


def draw(source: PanelSource) -> bytes:
    """The six panels of one sample as PNG."""
    arrays = {name: read_array(source.folder / source.cached.path(name), sha256=sha256)
              for name, sha256 in source.cached.sha256.items()}  # fmt: skip
    title = f"{source.sample.sample_id}, prompt set {source.cached.promptset_id}, {source.cached.in_words}"
    return draw_panels(source.sample.image(), source.sample.mask(), arrays, title=title)


def report(items: Sequence[Item], folder: Path) -> Report:
    """The first panels as one picture."""
    shown = [(folder / f"{item.key}.png").read_bytes() for item in items[:SHOWN]]
    facts = {"folder": dg.MetadataValue.path(folder)}
    return Report(facts=facts, pictures={"panels": contact_sheet(shown)} if shown else {})
