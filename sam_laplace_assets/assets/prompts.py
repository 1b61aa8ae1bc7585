"""prompt_sets: points on and beside the object of each sample."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import dagster as dg
from pydantic import Field

from sam_laplace_assets.domain.clicks import Mask
from sam_laplace_assets.domain.geometry import resize_nearest
from sam_laplace_assets.domain.interactive import INTERACTIVE_VERSION, draw_interactive_sets
from sam_laplace_assets.domain.manifest import check_split_key
from sam_laplace_assets.domain.plan import Item, Parts, Plan, Record, Report, digest
from sam_laplace_assets.domain.prompts import PROMPTS_VERSION, PromptSet, draw_prompt_sets
from sam_laplace_assets.overrides import FORCE, GO_ON, LIMIT, Overrides
from sam_laplace_assets.partitions import splits
from sam_laplace_assets.settings import PromptSettings, load_settings
from sam_laplace_assets.storage.adopted import Adopted, AdoptedSets, read_adopted
from sam_laplace_assets.storage.manifest import Manifest, Sample
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.prompts import PART


class PromptConfig(Overrides):
    """Launchpad fields of prompt_sets."""

    force: bool = FORCE
    limit: int | None = LIMIT
    num_promptsets: int | None = Field(None, ge=1, description="prompt sets a sample")
    mode: str | None = Field(None, description="how points are drawn: pairs or interactive")
    min_pairs: int | None = Field(None, ge=1, description="fewest pairs of a positive and a negative point")
    max_pairs: int | None = Field(None, ge=1, description="most pairs")
    max_clicks: int | None = Field(None, ge=1, le=20, description="most clicks of an interactive set")
    click_jitter: float | None = Field(None, ge=0, lt=1, description="how far clicks fall from the middle of an error")
    prompt_seed: int | None = Field(None, description="seed of all draws")


@dataclass(frozen=True)
class Pairs:
    """Prompt sets of as many points beside the object as on it."""

    count: int
    min_pairs: int
    max_pairs: int
    prompt_seed: int

    @property
    def provenance(self) -> dict[str, Any]:
        """What the prompt sets depend on beside the mask; it names no mode, as when there was no other."""
        return {**asdict(self), "version": PROMPTS_VERSION}

    def draw(self, mask: Mask, *, sample_id: str) -> tuple[PromptSet, ...]:
        """The prompt sets of one (H, W) mask."""
        return draw_prompt_sets(mask, sample_id=sample_id, **asdict(self))


@dataclass(frozen=True)
class Clicks:
    """Prompt sets like those of real work."""

    count: int
    max_clicks: int
    click_jitter: float
    prompt_seed: int

    @property
    def provenance(self) -> dict[str, Any]:
        """What the prompt sets depend on beside the mask."""
        return {"mode": "interactive", **asdict(self), "version": INTERACTIVE_VERSION}

    def draw(self, mask: Mask, *, sample_id: str) -> tuple[PromptSet, ...]:
        """The prompt sets of one (H, W) mask."""
        return draw_interactive_sets(mask, sample_id=sample_id, count=self.count, max_clicks=self.max_clicks,
                                     prompt_seed=self.prompt_seed, jitter=self.click_jitter)  # fmt: skip


@dataclass(frozen=True)
class TakenOver:
    """Prompt sets that were drawn elsewhere, as they are."""

    adopted: AdoptedSets

    @property
    def provenance(self) -> dict[str, Any]:
        """What they depend on beside the mask: nothing but themselves."""
        return {"adopted": self.adopted.points_digest}

    def draw(self, mask: Mask, *, sample_id: str) -> tuple[PromptSet, ...]:
        """The prompt sets of one (H, W) mask."""
        return self.adopted.sets


@dataclass(frozen=True, slots=True)
class PromptSource:
    """One sample, and how its prompt sets are drawn."""

    sample: Sample
    drawn: Pairs | Clicks | TakenOver

    @property
    def provenance(self) -> dict[str, Any]:
        """What the prompt sets depend on."""
        seen = {"mask_digest": self.sample.row["mask_digest"], "image_size": list(self.sample.size)}
        return seen | self.drawn.provenance

    def header(self) -> dict[str, Any]:
        """What their file says beside them."""
        height, width = self.sample.size
        return {"sample_id": self.sample.sample_id, "image_h": height, "image_w": width, "provenance": self.provenance}


@dg.asset(
    partitions_def=splits,
    io_manager_key="prompts_io",
    retry_policy=GO_ON,
    group_name="data",
    code_version=f"{PROMPTS_VERSION}.{INTERACTIVE_VERSION}",
    kinds={"json"},
)
def prompt_sets(context: dg.AssetExecutionContext, config: PromptConfig, manifest: Manifest) -> Plan:
    """Point prompts drawn from the masks of one split, the same on every machine."""
    settings = load_settings()
    prompting = config.over(settings.prompt_generation)
    count = config.num_promptsets or prompting.count(check_split_key(context.partition_key))
    adopted = read_adopted(Project.of(settings).prompt_sets(context.partition_key))
    return plan_prompt_sets(manifest, prompting, count=count, adopted=adopted, force=config.force, limit=config.limit,
                            max_failed_fraction=settings.data.max_failed_fraction)  # fmt: skip


def plan_prompt_sets(
    manifest: Manifest, prompting: PromptSettings, *, count: int, adopted: Adopted | None = None, force: bool = False,
    limit: int | None = None, max_failed_fraction: float = 0.0,
) -> Plan:  # fmt: skip
    """One item a sample; its provenance leaves the image's pixels out, since points depend on the mask alone."""
    samples = manifest[:limit]
    drawn, taken = drawing(prompting, count=count), adopted or Adopted()
    sources = [source_of(sample, drawn, taken) for sample in samples]
    items = [Item(source.sample.key, Parts({PART: digest(source.provenance)}), source) for source in sources]
    return Plan(items, make=lambda item, parts: draw(item.source), report=lambda records: report(items, records),
                max_failed_fraction=max_failed_fraction, force=force,
                complete=manifest.complete and len(samples) == len(manifest))  # fmt: skip


def source_of(sample: Sample, drawn: Pairs | Clicks, adopted: Adopted) -> PromptSource:
    """A sample with the sets that were adopted for it in place of these, or else with how they are drawn."""
    taken = adopted.samples.get(sample.key)
    holds = taken is not None and taken.fit(sample.row) and adopted.recipe == drawn.provenance
    return PromptSource(sample, TakenOver(taken) if taken is not None and holds else drawn)


def drawing(prompting: PromptSettings, *, count: int) -> Pairs | Clicks:
    """How `count` prompt sets of a sample are drawn; the settings of the other mode do not matter."""
    if prompting.mode == "pairs":
        return Pairs(count, prompting.min_pairs, prompting.max_pairs, prompting.prompt_seed)
    return Clicks(count, prompting.max_clicks, prompting.click_jitter, prompting.prompt_seed)


def draw(source: PromptSource) -> tuple[PromptSet, ...]:
    """Draw the prompt sets of one sample."""
    mask = resize_nearest(source.sample.mask(), *source.sample.size)
    return source.drawn.draw(mask, sample_id=source.sample.sample_id)


def report(items: list[Item], records: Mapping[str, Record]) -> Report:
    """How many prompt sets there are, by class."""
    by_class: Counter[str] = Counter()
    for item in items:
        if item.key in records:
            by_class[item.source.sample.row["class"]] += len(records[item.key].summary)
    rows = [{"class": name, "prompt sets": by_class[name]} for name in sorted(by_class)]
    total = by_class.total()
    return Report(facts={"prompt sets": total}, metrics={"prompt_sets": total}, tables={"prompt sets by class": rows})
