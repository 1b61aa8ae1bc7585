"""active_prompting: click strategies compete on the images of one split, with the champion answering."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from sam_laplace_assets.assets.click_pictures import Played, draw_clicks, draw_curves, draw_differences
from sam_laplace_assets.assets.splitting import grouping
from sam_laplace_assets.domain.bootstrap import too_narrow
from sam_laplace_assets.domain.experiment import (
    EXPERIMENT_VERSION,
    Design,
    Run,
    play,
    prompt_set_of,
    trace_from_json,
    trace_to_json,
)
from sam_laplace_assets.domain.interaction import Protocol, Trace
from sam_laplace_assets.domain.plan import Item, Plan, Report, digest
from sam_laplace_assets.domain.prompts import PromptMix
from sam_laplace_assets.domain.standings import Standings, curve_rows, difference_rows, in_words, summary_rows
from sam_laplace_assets.overrides import FORCE, GO_ON, LIMIT, Overrides
from sam_laplace_assets.partitions import splits
from sam_laplace_assets.resources.sam import SamModel, SamResource, model_here
from sam_laplace_assets.settings import ActivePromptingSettings, Settings, load_settings
from sam_laplace_assets.storage.active_prompting import ASSET, TABLES, ClickStore
from sam_laplace_assets.storage.champion import Champion, require_champion
from sam_laplace_assets.storage.manifest import Manifest, Sample
from sam_laplace_assets.storage.posterior import STATE, PosteriorRun, open_predictor
from sam_laplace_assets.storage.project import Project, manifest_of
from sam_laplace_assets.storage.reports import Findings, Layout, picture, require_facts

if TYPE_CHECKING:
    from sam_laplace_assets.domain.answering import Answerer

PICTURES = ("curves", "differences", "clicks")
SHEET_IMAGES = 4
SHEET_STRATEGIES = ("oracle", "", "bald", "random")
"""Columns of the contact sheet; the empty one is the strategy of the settings."""


class ActivePromptingConfig(Overrides):
    """Launchpad fields of active_prompting."""

    force: bool = FORCE
    limit: int | None = LIMIT
    strategies: list[str] | None = Field(None, description="what is tried; as in the settings if empty")
    clicks: int | None = Field(None, description="clicks of an interaction, with the first one; 20 at most")
    seeds: int | None = Field(None, ge=1, description="how many seeds, from 0")
    click_jitter: float | None = Field(None, ge=0, description="how far from the asked point clicks may fall, pixels")


@dg.asset(
    partitions_def=splits,
    io_manager_key="active_prompting_io",
    retry_policy=GO_ON,
    group_name="uncertainty",
    pool="gpu",
    code_version=EXPERIMENT_VERSION,
    kinds={"pytorch"},
)
def active_prompting(
    context: dg.AssetExecutionContext, config: ActivePromptingConfig, sam: SamResource, champion: Champion,
    manifest: Manifest,
) -> Plan:  # fmt: skip
    """Which click strategy gets good masks with few clicks: an experiment on one split, from one first click each."""
    settings = load_settings()
    tried = config.over(settings.active_prompting)
    model = sam.model(settings.sam, Project.of(settings).checkpoint_digests)
    return plan_active_prompting(manifest, champion, model, settings, tried, force=config.force, limit=config.limit)


@dataclass
class Player:
    """Plays runs on samples, and counts what that took.

    Attributes:
        model: the SAM that is asked.
        posterior: the champion.
        gaussian_sigma: of the point maps.
        design: how runs are played.
        clicks: that were answered so far.
        seconds: that took; the encoder's passes and the reading of files are not in it.
    """

    model: SamModel
    posterior: PosteriorRun
    gaussian_sigma: float
    design: Design
    clicks: int = 0
    seconds: float = 0.0

    @cached_property
    def answerer(self) -> "Answerer":
        """SAM and the champion, once a sample needs them."""
        from sam_laplace_assets.domain.answering import Answerer

        frozen = self.model.frozen
        predictor = open_predictor(self.posterior.folder, device=str(frozen.device))
        return Answerer(frozen, predictor, gaussian_sigma=self.gaussian_sigma)

    @cached_property
    def made_from(self) -> dict[str, Any]:
        """What traces depend on beside sample, strategy and seed."""
        return {"posterior": [self.posterior.run_id, self.posterior.meta["sha256"][STATE], self.posterior.logit_scale],
                "sam": self.model.identity, "gaussian_sigma": self.gaussian_sigma, "design": asdict(self.design),
                "version": EXPERIMENT_VERSION}  # fmt: skip

    def play(self, sample: Sample, names: Sequence[str]) -> dict[str, Any]:
        """What the runs of these names do on one sample, as JSON."""
        mask, embedding = sample.mask(), self.answerer.embed(sample.image())
        started = time.perf_counter()
        runs = [Run.of(name) for name in names]
        traces = play(self.answerer, embedding, mask, runs, sample_id=sample.sample_id, design=self.design)
        self.seconds += time.perf_counter() - started
        self.clicks += sum(len(trace.ious) for trace in traces.values())
        return {run.name: trace_to_json(trace) for run, trace in traces.items()}

    def last_masks(self, sample: Sample, traces: Sequence[Trace]) -> list[Any]:
        """(256, 256) bool each: the head's masks after the last click of traces on one sample."""
        embedding = self.answerer.embed(sample.image())
        size = embedding.original_size
        prompts = [prompt_set_of(trace.points, trace.labels, original_size=size) for trace in traces]
        return [answer.mask for answer in self.answerer.answer(embedding, prompts)]


def plan_active_prompting(
    manifest: Manifest, champion: Champion, model: SamModel, settings: Settings, tried: ActivePromptingSettings, *,
    force: bool = False, limit: int | None = None,
) -> Plan:  # fmt: skip
    """One item a sample, with a part for each strategy and seed: another one is played without the others."""
    project = Project.of(settings)
    posterior = PosteriorRun.open(project.posteriors / f"run_{champion.run_id}")
    refuse_other_sam(posterior, model, settings)
    player = Player(model, posterior, settings.prompt_generation.gaussian_sigma, design_of(tried))
    samples = manifest[:limit]
    names = [Run(strategy, seed).name for strategy in tried.strategies for seed in tried.seeds]
    items = [_item(sample, names, player.made_from) for sample in samples]
    group = grouping(settings.data)
    groups = {sample.key: group(sample.sample_id) or sample.sample_id for sample in samples}
    by_key = {sample.key: sample for sample in samples}
    folder, name = project.report(ASSET, manifest.split), f"{ASSET}[{manifest.split}]"
    return Plan(items, make=lambda item, parts: player.play(item.source, [name for name in names if name in parts]),
                finish=Conclusion(tried, settings.prompting.strategy, by_key, groups, player),
                report=lambda records: report(folder, player, tried, name=name),
                unit="interactions", weight=lambda item, parts: len(parts), force=force,
                max_failed_fraction=settings.data.max_failed_fraction, made_with=player.made_from,
                complete=manifest.complete and len(samples) == len(manifest),
                elsewhere=partial(prompting_elsewhere, settings.without_secrets, manifest.split, tried))  # fmt: skip


def prompting_elsewhere(
    settings: Settings, split: str, tried: ActivePromptingSettings
) -> tuple[Plan, ClickStore]:  # fmt: skip
    """The plan of one split and its store, for another process than the run's."""
    project, model = Project.of(settings), model_here(settings.sam)
    champion = require_champion(project.posteriors)
    plan = plan_active_prompting(manifest_of(settings, split), champion, model, settings, tried)
    return plan, ClickStore(project.report(ASSET, split), Layout(ASSET, TABLES, project.table_format))


def refuse_other_sam(posterior: PosteriorRun, model: SamModel, settings: Settings) -> None:
    """Failure if the champion's head was trained on another SAM than would answer, or on other maps."""
    try:
        posterior.refuse_other_sam(checkpoint_sha256=model.identity["checkpoint_sha256"],
                                   gaussian_sigma=settings.prompt_generation.gaussian_sigma)  # fmt: skip
    except ValueError as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def design_of(tried: ActivePromptingSettings) -> Design:
    """How runs are played, as the settings say."""
    protocol = Protocol(clicks=tried.clicks, border=tried.border, earlier_radius=tried.earlier_radius,
                        jitter=tried.click_jitter)  # fmt: skip
    return Design(protocol, tried.first_click_jitter)


def _item(sample: Sample, names: Sequence[str], made_from: Mapping[str, Any]) -> Item:
    content = [sample.row["image_digest"], sample.row["mask_digest"], sample.sample_id]
    return Item(sample.key, {name: digest([name, content, made_from]) for name in names}, sample)


@dataclass(frozen=True)
class Conclusion:
    """How the report follows from what all runs did.

    Attributes:
        tried: what was wanted.
        default: the strategy that suggestions use.
        samples: those of the split, by key.
        groups: of each, what is drawn again with it.
        player: to see masks again.
    """

    tried: ActivePromptingSettings
    default: str
    samples: Mapping[str, Sample]
    groups: Mapping[str, str]
    player: Player

    @property
    def made_from(self) -> list[Any]:
        """What the report follows from beside the traces."""
        return [self.tried.strategies, self.tried.seeds, self.default, dict(self.groups), self.player.made_from]

    def __call__(self, found: Iterator[tuple[str, Any]]) -> Findings:
        """Tables, pictures and facts of the samples that were played."""
        played = {key: {run: trace_from_json(of_sample[run.name]) for run in self.runs} for key, of_sample in found}
        standings = self._standings(played)
        rows = {"clicks": self._clicks(played), "curves": curve_rows(standings), "summary": summary_rows(standings),
                "differences": difference_rows(standings)}  # fmt: skip
        tables = {name: list(each) for name, each in rows.items()}
        pictures = {"curves": draw_curves(tables["curves"], tables["summary"], default=self.default),
                    "differences": draw_differences(tables["differences"], default=self.default),
                    "clicks": draw_clicks(self._sheet(played))}  # fmt: skip
        return Findings(_frames(tables), pictures, self._facts(tables, images=len(played)))

    @property
    def runs(self) -> list[Run]:
        """Those that were wanted."""
        return [Run(strategy, seed) for strategy in self.tried.strategies for seed in self.tried.seeds]

    def _standings(self, played: Mapping[str, Mapping[Run, Trace]]) -> Standings:
        names = [self.samples[key].sample_id for key in played]
        return Standings(names, [self.groups[key] for key in played], self.tried.strategies, self.tried.seeds,
                         self.tried.clicks, list(played.values()))  # fmt: skip

    def _clicks(self, played: Mapping[str, Mapping[Run, Trace]]) -> Iterator[dict[str, Any]]:
        """A row a click."""
        for key, traces in played.items():
            row = self.samples[key].row
            for run, trace in traces.items():
                for at, (x, y) in enumerate(trace.points.tolist()):
                    yield {"sample_id": row["sample_id"], "class": row["class"], "strategy": run.strategy,
                           "seed": run.seed, "click": at + 1, "x": x, "y": y, "positive": bool(trace.labels[at]),
                           "head_iou": trace.ious[at], "sam_iou": trace.sam_ious[at]}  # fmt: skip

    def _sheet(self, played: Mapping[str, Mapping[Run, Trace]]) -> list[list[Played]]:
        """A few images, spread over the split, each with what a few strategies did with the first seed."""
        names = [name or self.default for name in SHEET_STRATEGIES]
        shown = [Run(name, self.tried.seeds[0]) for name in dict.fromkeys(names) if name in self.tried.strategies]
        keys, count = list(played), min(SHEET_IMAGES, len(played))
        return [self._sheet_row(self.samples[key], shown or self.runs[:1], played[key])
                for key in (keys[at * len(keys) // count] for at in range(count))]  # fmt: skip

    def _sheet_row(self, sample: Sample, shown: Sequence[Run], traces: Mapping[Run, Trace]) -> list[Played]:
        masks = self.player.last_masks(sample, [traces[run] for run in shown])
        return [Played(sample.sample_id, run.strategy, sample.image(), sample.mask(), mask, traces[run])
                for run, mask in zip(shown, masks, strict=True)]  # fmt: skip

    def _facts(self, tables: Mapping[str, Sequence[Mapping[str, Any]]], *, images: int) -> dict[str, Any]:
        summary = [row for row in tables["summary"] if row["source"] == "head"]
        compared = [row for row in tables["differences"] if (row["source"], row["metric"]) == ("head", "area")]
        told = [name for name in dict.fromkeys(("bald", self.default)) if name in self.tried.strategies]
        said = {name: f"{'; '.join(in_words(row) for row in compared if row['strategy'] == name)}."
                for name in told}  # fmt: skip
        prompts = self.player.posterior.meta.get("prompts")
        areas = {f"{row['source']}_area_{row['strategy']}": row["area"] for row in tables["summary"]}
        units = len(set(self.groups.values()))
        warnings = list(too_narrow(units, "images" if units == len(self.groups) else "groups"))
        return {"verdict": verdict(summary, images), "warnings": warnings, "compared": said, "summary": summary,
                "head trained on": PromptMix(**prompts).in_words if prompts else "not recorded",
                "champion": self.player.posterior.run_id, "images": images, "metrics": areas}  # fmt: skip


def verdict(summary: Sequence[Mapping[str, Any]], images: int) -> str:
    """Which strategy has the best area, in one sentence; the oracle, which knows the truth, is told beside."""
    from sam_laplace_assets.domain.acquisition import named

    able = [row for row in summary if not named(row["strategy"]).needs_truth] or summary
    best = max(able, key=lambda row: float(row["area"]))
    knowing = [f"; {row['strategy']}, which knows the truth, comes to {row['area']:.3f}"
               for row in summary if row not in able]  # fmt: skip
    interval = "" if best["low"] is None else f" [{best['low']:.3f}, {best['high']:.3f}]"
    return (f"{best['strategy']} has the largest area under the head's mean IoU over clicks: {best['area']:.3f}"
            f"{interval} on {images} images{''.join(knowing)}.")  # fmt: skip


def _frames(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    import pandas as pd

    return {name: pd.DataFrame(list(rows), columns=TABLES[name].names) for name, rows in tables.items()}


def report(folder: Path, player: Player, tried: ActivePromptingSettings, *, name: str) -> Report:
    """The verdict first, then how each strategy stands, and what a click took."""
    facts = require_facts(folder, name=name)
    rows = [{key: value for key, value in row.items() if key != "source"} for row in facts["summary"]]
    standing = sorted(rows, key=lambda row: -float(row["area"]))
    warned = {"warnings": " ".join(facts["warnings"])} if facts["warnings"] else {}
    told = {"verdict": facts["verdict"], **warned, **facts["compared"], "head trained on": facts["head trained on"],
            "champion": facts["champion"], "images": facts["images"]}  # fmt: skip
    metrics = dict(facts["metrics"])
    if player.clicks:
        metrics["seconds_a_click"] = told["seconds a click"] = player.seconds / player.clicks
    return Report(warnings=facts["warnings"], facts=told | {"folder": dg.MetadataValue.path(folder)}, metrics=metrics,
                  params=tried.model_dump(), tables={"strategies, by the head's masks": standing},
                  pictures={each: picture(folder, each) for each in PICTURES})  # fmt: skip
