"""prompt_scores: where an annotator should click next, image by image, and which image needs it most."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
from pydantic import Field

from sam_laplace_assets.assets.score_pictures import Row, draw_scores
from sam_laplace_assets.domain.plan import Item, Plan, Report, digest
from sam_laplace_assets.domain.scores import (
    SCORES_VERSION,
    NextPoint,
    Rule,
    as_facts,
    maps_of,
    next_points,
    ranks_images,
    stream,
    summarise,
)
from sam_laplace_assets.overrides import FORCE, GO_ON, LIMIT, Overrides
from sam_laplace_assets.partitions import splits
from sam_laplace_assets.settings import Settings, load_settings
from sam_laplace_assets.storage.champion import Champion, require_champion
from sam_laplace_assets.storage.manifest import Manifest, Sample
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.posterior import STATE, PosteriorRun, open_predictor
from sam_laplace_assets.storage.project import Project, manifest_of
from sam_laplace_assets.storage.prompts import Prompts
from sam_laplace_assets.storage.reports import PART, Findings, Layout, SampleReportStore, picture, require_facts
from sam_laplace_assets.storage.scores import ASSET, TABLES, rows_digests

if TYPE_CHECKING:
    from sam_laplace_assets.domain.acquisition import Maps
    from sam_laplace_assets.domain.answering import Answer
    from sam_laplace_assets.domain.predictor import Predictor
    from sam_laplace_assets.domain.prompts import PromptSet
    from sam_laplace_assets.storage.rows import StreamedRows

DRAWN = 6
LISTED = 10
SHEET = "next_points"
MEANS = ("mean_mutual_information", "mean_entropy", "undecided_fraction", "expected_iou")
"""Columns of `maps` whose means over the split are told and tracked."""


class ScoreConfig(Overrides):
    """Launchpad fields of prompt_scores."""

    force: bool = FORCE
    limit: int | None = LIMIT
    strategy: str | None = Field(None, description="what scores a pixel; as in prompting.strategy if empty")
    suggestions: int | None = Field(None, ge=1, description="points a prompt set; as in prompting.suggestions if empty")


@dg.asset(
    partitions_def=splits,
    io_manager_key="scores_io",
    retry_policy=GO_ON,
    group_name="uncertainty",
    pool="gpu",
    code_version=SCORES_VERSION,
    kinds={"pytorch"},
)
def prompt_scores(
    context: dg.AssetExecutionContext, config: ScoreConfig, champion: Champion, hdf5_pack: Pack, manifest: Manifest,
    prompt_sets: Prompts,
) -> Plan:  # fmt: skip
    """The champion's next points for every prompt set of one split, and which of its images need a click most."""
    settings = load_settings()
    return plan_scores(context.partition_key, champion, hdf5_pack, manifest, prompt_sets, settings,
                       rule=config.over(settings.prompting).rule, force=config.force,
                       limit=config.limit)  # fmt: skip


@dataclass(frozen=True)
class ScoreSource:
    """One sample, and the rows of the pack that are its prompt sets."""

    sample: Sample
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Scorer:
    """The champion's posterior and a pack, opened when the first sample is scored."""

    pack: Pack
    prompts: Prompts
    posterior: Path
    device: str
    rule: Rule

    @cached_property
    def predictor(self) -> "Predictor":
        """The head and its posterior."""
        from sam_laplace_assets.resources.checkpoints import resolve_device

        return open_predictor(self.posterior, device=str(resolve_device(self.device)))

    @cached_property
    def rows(self) -> "StreamedRows":
        """The pack's rows."""
        from sam_laplace_assets.storage.rows import StreamedRows

        return StreamedRows(self.pack)

    def sets(self, source: ScoreSource) -> "list[PromptSet]":
        """The prompt sets of a sample, in the order of its rows."""
        known = {one.promptset_id: one for one in self.prompts.read(source.sample.key)}
        ids = self.rows.opened.file["promptset_id"][list(source.rows)].tolist()
        if unknown := [number for number in ids if number not in known]:
            raise ValueError(
                f"Prompt set {unknown[0]} of the pack is not among those drawn for {source.sample.sample_id} now. "
                "Materialise sam_cache and what follows again."
            )
        return [known[number] for number in ids]

    def answer(self, row: int) -> "Answer":
        """What SAM and the posterior say to one row of the pack."""
        from sam_laplace_assets.domain.answering import Answer

        inputs, _ = self.rows.read(np.array([row]))
        mean, variance = (one[0].cpu().numpy() for one in self.predictor.logits(inputs.to(self.predictor.device)))
        return Answer(inputs[0, 0].numpy(), mean, variance)

    def points(self, maps: "Maps", prompt_set: "PromptSet", sample: Sample) -> tuple[NextPoint, ...]:
        """Where to click next."""
        return next_points(maps, prompt_set, rule=self.rule, image_size=sample.size,
                           stream_name=stream_name(sample, prompt_set))  # fmt: skip


def stream_name(sample: Sample, prompt_set: "PromptSet") -> str:
    """What the random stream of one answer is named by."""
    return f"{sample.sample_id} {prompt_set.promptset_id}"


def plan_scores(
    split: str, champion: Champion, pack: Pack, manifest: Manifest, prompts: Prompts, settings: Settings, *,
    rule: Rule, force: bool = False, limit: int | None = None,
) -> Plan:  # fmt: skip
    """One item a sample of the pack: made again when the champion, its rows, its clicks or the rule are others."""
    project = Project.of(settings)
    posterior = PosteriorRun.open(project.posteriors / f"run_{champion.run_id}")
    made_by = {"posterior": [posterior.run_id, posterior.meta["sha256"][STATE], posterior.logit_scale],
               "rule": asdict(rule), "version": SCORES_VERSION}  # fmt: skip
    scorer = Scorer(pack, prompts, posterior.folder, settings.sam.device, rule)
    samples, rows, digests = {one.key: one for one in manifest}, _rows_of(pack), rows_digests(pack)
    chosen = pack.safe_ids[:limit]
    ready = [key for key in chosen if key in samples and key in prompts.points]
    items = [_item(ScoreSource(samples[key], rows[key]), digests[key], prompts, made_by) for key in ready]
    lacking = {key: "it is in the pack, not among today's samples and prompt sets; materialise hdf5_pack again"
               for key in chosen if key not in ready}  # fmt: skip
    folder = project.report(ASSET, split)
    return Plan(items, make=lambda item, parts: score(item.source, scorer), unit="samples", force=force,
                finish=Conclusion(scorer, {item.key: item.source for item in items}, made_by),
                report=lambda records: report(folder, f"{ASSET}[{split}]"), failed=lacking,
                max_failed_fraction=settings.data.max_failed_fraction,
                complete=pack.complete and len(chosen) == len(pack.safe_ids), made_with=made_by,
                elsewhere=partial(scores_elsewhere, settings.without_secrets, split, rule))  # fmt: skip


def scores_elsewhere(settings: Settings, split: str, rule: Rule) -> tuple[Plan, SampleReportStore]:
    """The plan of one split and its store, for another process than the run's."""
    project = Project.of(settings)
    champion, prompts = require_champion(project.posteriors), Prompts.open(project.prompt_sets(split), split=split)
    plan = plan_scores(split, champion, Pack.open(project.pack(split)), manifest_of(settings, split), prompts, settings,
                       rule=rule)  # fmt: skip
    return plan, SampleReportStore(project.report(ASSET, split), Layout(ASSET, TABLES, project.table_format))


def _rows_of(pack: Pack) -> dict[str, tuple[int, ...]]:
    """safe_id -> its rows of a pack."""
    rows: dict[str, list[int]] = {key: [] for key in pack.safe_ids}
    for row, image in enumerate(pack.images.tolist()):
        rows[pack.safe_ids[image]].append(row)
    return {key: tuple(of) for key, of in rows.items()}


def _item(source: ScoreSource, rows: str, prompts: Prompts, made_by: Mapping[str, Any]) -> Item:
    key = source.sample.key
    made_from = {"rows": rows, "points": prompts.points[key], "image_size": list(source.sample.size), **made_by}
    return Item(key, {PART: digest(made_from)}, source)


def score(source: ScoreSource, scorer: Scorer) -> list[dict[str, Any]]:
    """What is found of one sample: for each prompt set, the rows of both tables."""
    found = []
    for row, prompt_set in zip(source.rows, scorer.sets(source), strict=True):
        maps = maps_of(scorer.answer(row))
        points = scorer.points(maps, prompt_set, source.sample)
        named = {"sample_id": source.sample.sample_id, "safe_id": source.sample.key,
                 "promptset_id": prompt_set.promptset_id, "k_pairs": prompt_set.k_pairs}  # fmt: skip
        summary = {"n_pos": len(prompt_set.pos), "n_neg": len(prompt_set.neg), **as_facts(summarise(maps)),
                   "suggestions": len(points), "best_score": points[0].score if points else None}  # fmt: skip
        found.append({"maps": named | summary, "suggestions": [named | asdict(one) | _there(maps, one)
                                                               for one in points]})  # fmt: skip
    return found


def _there(maps: "Maps", point: NextPoint) -> dict[str, float]:
    """What the maps say of a point."""
    names = ("probability", "entropy", "mutual_information", "variance")
    return {name: float(getattr(maps, name)[point.y_256, point.x_256]) for name in names}


@dataclass(frozen=True)
class Conclusion:
    """How the report follows from what was found of the samples, and from what it was made by."""

    scorer: Scorer
    sources: Mapping[str, ScoreSource]
    made_from: Mapping[str, Any]

    def __call__(self, found: Iterator[tuple[str, Any]]) -> Findings:
        """The report."""
        return conclude(found, self.scorer, self.sources)


def conclude(found: Iterator[tuple[str, Any]], scorer: Scorer, sources: Mapping[str, ScoreSource]) -> Findings:
    """Tables, the images in the order in which they need a click, and six of them as a picture."""
    import pandas as pd

    answers = [answer for _, of_sample in found for answer in of_sample]
    suggested = pd.DataFrame([row for answer in answers for row in answer["suggestions"]],
                             columns=TABLES["suggestions"].names)  # fmt: skip
    maps = pd.DataFrame([answer["maps"] for answer in answers], columns=TABLES["maps"].names)
    ranking = rank(maps, scorer.rule.strategy)
    facts = {"posterior": scorer.posterior.name.removeprefix("run_"), "rule": scorer.rule.in_words,
             "samples": len(ranking), "prompt sets": len(maps), "suggestions": len(suggested),
             "means": {name: float(maps[name].mean()) for name in MEANS},
             "ranked": ranks_images(scorer.rule.strategy), "needs a click most": ranking[:LISTED]}  # fmt: skip
    return Findings({"suggestions": suggested, "maps": maps}, {SHEET: draw(ranking, scorer, sources)}, facts)


def rank(maps: Any, strategy: str) -> list[dict[str, Any]]:
    """Samples with the mean over their prompt sets of the best suggestion's score, the one that needs a click first.

    A strategy that draws at random ranks nothing: the samples are in the order of the pack then.
    """
    means = maps.assign(best_score=maps["best_score"].astype(float).fillna(0.0)).groupby("sample_id", sort=False)
    table = means.agg(safe_id=("safe_id", "first"), score=("best_score", "mean"), expected_iou=("expected_iou", "mean"),
                      mean_entropy=("mean_entropy", "mean"), undecided=("undecided_fraction", "mean"))  # fmt: skip
    if ranks_images(strategy):
        table = table.sort_values("score", ascending=False, kind="stable")
    return [dict(row) for row in table.reset_index().to_dict("records")]


def draw(ranking: Sequence[Mapping[str, Any]], scorer: Scorer, sources: Mapping[str, ScoreSource]) -> bytes:
    """Six samples spread evenly over the ranking, each with its first prompt set."""
    count = min(DRAWN, len(ranking))
    places = [round(at * (len(ranking) - 1) / max(count - 1, 1)) for at in range(count)]
    return draw_scores([_row(sources[ranking[at]["safe_id"]], scorer, f"{at + 1} of {len(ranking)}") for at in places],
                       strategy=scorer.rule.strategy)  # fmt: skip


def _row(source: ScoreSource, scorer: Scorer, place: str) -> Row:
    from sam_laplace_assets.domain.acquisition import score_map

    prompt_set = scorer.sets(source)[0]
    maps = maps_of(scorer.answer(source.rows[0]))
    scores = score_map(scorer.rule.strategy, maps, stream(scorer.rule.seed, stream_name(source.sample, prompt_set)))
    title = f"{place}: prompt set {prompt_set.promptset_id} of\n{source.sample.sample_id}"
    return Row(title, source.sample.image(), maps, scores, prompt_set, scorer.points(maps, prompt_set, source.sample))


def report(folder: Path, name: str) -> Report:
    """The rule, the images that need a click most, and the picture."""
    facts = require_facts(folder, name=name)
    told = {key: facts[key] for key in ("posterior", "rule", "samples", "prompt sets", "suggestions")}
    listed = [{key: value for key, value in row.items() if key != "safe_id"} for row in facts["needs a click most"]]
    title = "needs a click most" if facts["ranked"] else "first samples, in no order: the strategy draws at random"
    return Report(facts=told | {"folder": dg.MetadataValue.path(folder)}, metrics=facts["means"],
                  tables={title: listed}, pictures={SHEET.replace("_", " "): picture(folder, SHEET)})  # fmt: skip
