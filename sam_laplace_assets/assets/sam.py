"""sam_cache: what frozen SAM says to every prompt set, and the maps of its points."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import dagster as dg
import numpy as np

from sam_laplace_assets.domain.geometry import to_low_res
from sam_laplace_assets.domain.plan import Item, Plan, Record, Report, digest
from sam_laplace_assets.domain.prompts import MAPS_VERSION, PromptSet, gaussian_map
from sam_laplace_assets.domain.sam import SAM_VERSION
from sam_laplace_assets.overrides import FORCE, GO_ON, LIMIT, Overrides
from sam_laplace_assets.partitions import splits
from sam_laplace_assets.resources.sam import SamModel, SamResource
from sam_laplace_assets.settings import Settings, load_settings
from sam_laplace_assets.storage.manifest import Manifest, Sample
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.prompts import Prompts
from sam_laplace_assets.storage.sam import SetOutput


class SamConfig(Overrides):
    """Launchpad fields of sam_cache."""

    force: bool = FORCE
    limit: int | None = LIMIT


@dataclass(frozen=True)
class SamSource:
    """One sample, the prompts view, and the provenance of each of its parts."""

    sample: Sample
    prompts: Prompts
    provenance: Mapping[str, Mapping[str, Any]]


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
    samples = list(manifest)[:limit]
    ready = [sample for sample in samples if sample.key in prompts.points]
    sources = [source_of(sample, prompts, model, settings.prompt_generation.gaussian_sigma) for sample in ready]
    items = [Item(source.sample.key, {part: digest(made_from) for part, made_from in source.provenance.items()}, source)
             for source in sources]  # fmt: skip
    lacking = {sample.key: "it has no prompt sets; materialise prompt_sets again" for sample in samples
               if prompts.complete and sample.key not in prompts.points}  # fmt: skip
    return Plan(items, make=partial(make, model=model), report=report, unit="prompt sets", weight=count_sets,
                failed=lacking, max_failed_fraction=settings.data.max_failed_fraction, force=force,
                complete=manifest.complete and prompts.complete and len(samples) == len(manifest))  # fmt: skip


def source_of(sample: Sample, prompts: Prompts, model: SamModel, sigma: float) -> SamSource:
    """A sample with what its logits and its maps depend on."""
    provenance: dict[str, Mapping[str, Any]] = {}
    for name, points in prompts.points[sample.key].items():
        provenance[f"{name}/logits"] = {"image_digest": sample.row["image_digest"], "points": points, **model.identity}
        provenance[f"{name}/maps"] = {"points": points, "image_size": list(sample.size), "gaussian_sigma": sigma,
                                      "version": MAPS_VERSION}  # fmt: skip
    return SamSource(sample, prompts, provenance)


def count_sets(item: Item, parts: Iterable[str]) -> int:
    """How many prompt sets some parts belong to."""
    return len({part.split("/")[0] for part in parts})


def make(item: Item, parts: frozenset[str], *, model: SamModel) -> list[SetOutput]:
    """Ask SAM what is missing of one sample, and draw the maps that are."""
    source: SamSource = item.source
    sets = {f"{one.promptset_id:04d}": one for one in source.prompts.read(item.key)}
    answered = sorted(part.split("/")[0] for part in parts if part.endswith("/logits"))
    answers = ask(model, source.sample, [sets[name] for name in answered]) if answered else []
    by_name = dict(zip(answered, answers, strict=True))
    names = sorted({part.split("/")[0] for part in parts})
    return [output(source, sets[name], by_name.get(name), maps=f"{name}/maps" in parts) for name in names]


def ask(model: SamModel, sample: Sample, prompt_sets: list[PromptSet]) -> list[Any]:
    """SAM's answers to prompt sets of one image."""
    embedding = model.frozen.embed(sample.image())
    return list(model.frozen.answer(embedding, prompt_sets))


def output(source: SamSource, prompt_set: PromptSet, answer: Any, *, maps: bool) -> SetOutput:
    """What is written for one prompt set: the arrays that were made, and the facts of its meta.json."""
    name, (height, width) = f"{prompt_set.promptset_id:04d}", source.sample.size
    low_res = {side: to_low_res(np.asarray(getattr(prompt_set, side)), image_h=height, image_w=width)
               for side in ("pos", "neg")}  # fmt: skip
    sigma = source.provenance[f"{name}/maps"]["gaussian_sigma"]
    facts: dict[str, Any] = {"sample_id": source.sample.sample_id, "k_pairs": prompt_set.k_pairs}
    arrays: dict[str, np.ndarray] = {}
    if maps:
        arrays |= {f"{side}_map": gaussian_map(points, sigma=sigma) for side, points in low_res.items()}
        facts |= {"sigma": sigma, "points": {"pos": prompt_set.pos, "neg": prompt_set.neg},
                  "points_256": {side: points.tolist() for side, points in low_res.items()}}  # fmt: skip
    if answer is not None:
        arrays["logits_256"] = answer.logits_256
        facts |= {"branch": answer.branch, "predicted_ious": list(answer.predicted_ious)}
    made = [part for part, there in (("logits", answer is not None), ("maps", maps)) if there]
    return SetOutput(
        prompt_set.promptset_id, arrays, facts, {part: source.provenance[f"{name}/{part}"] for part in made}
    )


def report(records: Mapping[str, Record]) -> Report:
    """How many prompt sets are cached, and which branches SAM chose."""
    branches = [facts["branch"] for record in records.values() for facts in record.summary.values()]
    rows = [{"branch": branch, "prompt sets": branches.count(branch)} for branch in sorted(set(branches))]
    return Report(facts={"prompt sets": len(branches)}, metrics={"prompt_sets": len(branches)},
                  tables={"chosen branches": rows})  # fmt: skip
