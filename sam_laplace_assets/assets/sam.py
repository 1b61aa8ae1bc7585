"""sam_cache: what frozen SAM says to every prompt set, and the maps of its points."""

from collections.abc import Iterable, Mapping
from functools import partial

import dagster as dg

from sam_laplace_assets.assets.sam_answers import SamRecipe, SamSource, SamWork
from sam_laplace_assets.domain.plan import Item, Parts, Plan, Record, Report, digest
from sam_laplace_assets.domain.prompts import MAPS_VERSION
from sam_laplace_assets.domain.sam import SAM_VERSION
from sam_laplace_assets.overrides import FORCE, GO_ON, LIMIT, Overrides
from sam_laplace_assets.partitions import splits
from sam_laplace_assets.resources.sam import SamModel, SamResource, model_here
from sam_laplace_assets.settings import Settings, load_settings
from sam_laplace_assets.storage.embeddings import EmbeddingCache
from sam_laplace_assets.storage.manifest import Manifest
from sam_laplace_assets.storage.project import Project, manifest_of
from sam_laplace_assets.storage.prompts import Prompts
from sam_laplace_assets.storage.sam import SamStore


class SamConfig(Overrides):
    """Launchpad fields of sam_cache."""

    force: bool = FORCE
    limit: int | None = LIMIT


@dg.asset(partitions_def=splits, io_manager_key="sam_io", retry_policy=GO_ON, group_name="features", pool="gpu",
          code_version=f"{SAM_VERSION}.{MAPS_VERSION}", kinds={"pytorch"})  # fmt: skip
def sam_cache(
    context: dg.AssetExecutionContext, config: SamConfig, sam: SamResource, manifest: Manifest, prompt_sets: Prompts
) -> Plan:
    """Logits of frozen SAM for every prompt set of one split, one pass of the encoder an image, and point maps."""
    settings = load_settings()
    model = sam.model(settings.sam, Project.of(settings).checkpoint_digests)
    return plan_sam_cache(manifest, prompt_sets, model, settings, force=config.force, limit=config.limit)


def plan_sam_cache(
    manifest: Manifest, prompts: Prompts, model: SamModel, settings: Settings, *, force: bool = False,
    limit: int | None = None,
) -> Plan:  # fmt: skip
    """One item a sample, with two parts a prompt set: another sigma makes the maps again, never the logits."""
    samples = manifest[:limit]
    recipe = recipe_of(model, settings)
    items = [item_of(SamSource(sample, prompts, recipe)) for sample in samples if sample.key in prompts.points]
    lacking = {sample.key: "it has no prompt sets; materialise prompt_sets again" for sample in samples
               if prompts.complete and sample.key not in prompts.points}  # fmt: skip
    work = SamWork(model, embedding_cache(settings, manifest.split))
    made_with = {**model.identity, "gaussian_sigma": recipe.gaussian_sigma}
    whole = manifest.complete and prompts.complete and len(samples) == len(manifest)
    return Plan(items, make=work.make, make_all=work.make_all, writers=model.io_threads, report=report,
                unit="prompt sets", weight=count_sets, failed=lacking, force=force, complete=whole,
                max_failed_fraction=settings.data.max_failed_fraction, made_with=made_with,
                elsewhere=partial(sam_cache_elsewhere, settings.without_secrets, manifest.split))  # fmt: skip


def sam_cache_elsewhere(settings: Settings, split: str) -> tuple[Plan, SamStore]:
    """The plan of one split and its store, for another process than the run's."""
    project, model = Project.of(settings), model_here(settings.sam)
    manifest, prompts = manifest_of(settings, split), Prompts.open(project.prompt_sets(split), split=split)
    return plan_sam_cache(manifest, prompts, model, settings), SamStore(project.sam_cache(split))


def item_of(source: SamSource) -> Item:
    """What the cache shall hold of one sample."""
    parts = {part: digest(made_from) for part, made_from in source.parts.items()}
    return Item(source.sample.key, Parts(parts), source)


def recipe_of(model: SamModel, settings: Settings) -> SamRecipe:
    """How answers and maps are made today."""
    return SamRecipe(model.identity, settings.prompt_generation.gaussian_sigma, settings.sam.cache_embeddings)


def embedding_cache(settings: Settings, split: str) -> EmbeddingCache | None:
    """Where the embeddings of a split's images are kept, if the settings say so."""
    kept_as = settings.sam.cache_embeddings
    return None if kept_as is None else EmbeddingCache(Project.of(settings).sam_cache(split), kept_as)


def count_sets(item: Item, parts: Iterable[str]) -> int:
    """How many prompt sets some parts belong to."""
    return len({part.split("/")[0] for part in parts})


def report(records: Mapping[str, Record]) -> Report:
    """How many prompt sets are cached, and which branches SAM chose."""
    branches = [facts["branch"] for record in records.values() for facts in record.summary.values()]
    rows = [{"branch": branch, "prompt sets": branches.count(branch)} for branch in sorted(set(branches))]
    return Report(facts={"prompt sets": len(branches)}, metrics={"prompt_sets": len(branches)},
                  tables={"chosen branches": rows})  # fmt: skip
