"""One base that joins what an asset wants with what its store has, and the stores of each concept."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg

from sam_laplace_assets.compute.chunk import Errand, code_here
from sam_laplace_assets.compute.spread import NoScheduler, Spread, WorkersFailed
from sam_laplace_assets.domain.plan import Course, Plan, Record, digest, lacks
from sam_laplace_assets.launcher import is_ours
from sam_laplace_assets.overrides import lasting
from sam_laplace_assets.partitions import require_split
from sam_laplace_assets.reporting import LoggedProgress, metadata_of
from sam_laplace_assets.resources.tracking import TrackedRun, TrackingResource
from sam_laplace_assets.settings import Settings, load_settings
from sam_laplace_assets.storage import active_prompting, evaluation, files, scores, sweep
from sam_laplace_assets.storage.active_prompting import ClickStore
from sam_laplace_assets.storage.champion import Champion, ChampionStore, require_champion
from sam_laplace_assets.storage.head import HeadRun, HeadStore
from sam_laplace_assets.storage.index import IndexStore, TrainingIndex, read_index
from sam_laplace_assets.storage.lease import held
from sam_laplace_assets.storage.manifest import AllSamples, Manifest, ManifestStore
from sam_laplace_assets.storage.materialise import Carry, Outcome, TooManyFailed, materialise, run_course
from sam_laplace_assets.storage.pack import Pack, PackStore
from sam_laplace_assets.storage.panels import PanelStore
from sam_laplace_assets.storage.posterior import PosteriorRun, PosteriorStore
from sam_laplace_assets.storage.project import Project, manifest_of, roots_of
from sam_laplace_assets.storage.prompts import Prompts, PromptStore
from sam_laplace_assets.storage.reports import Layout, ReportStore, SampleReportStore
from sam_laplace_assets.storage.runs import current_run
from sam_laplace_assets.storage.sam import SamCache, SamStore
from sam_laplace_assets.storage.store import NotMade, Store
from sam_laplace_assets.storage.validation import ValidationStore, open_validation_pack

LEFT_OUT = "left out"
OVERRIDES = "overrides"


class StoreIOManager(dg.ConfigurableIOManager):
    """Stores what a plan lacks, tells its progress, tracks it, and gives the next asset a lazy view of it."""

    tracking: dg.ResourceDependency[TrackingResource]

    @abstractmethod
    def store(self, project: Project, partition: str) -> Store:
        """The store of one partition."""

    @abstractmethod
    def view(self, settings: Settings, project: Project, partition: str) -> Any:
        """What the next asset gets to see of one partition. Raises `NotMade`."""

    def load_input(self, context: dg.InputContext) -> Any:
        """The view of the one partition that is asked for."""
        settings = load_settings()
        partition = _upstream_partition(context)
        if partition:
            require_split(partition, settings.data)
        try:
            return self.view(settings, Project.of(settings), partition)
        except (NotMade, ValueError) as error:
            raise dg.Failure(str(error), allow_retries=False) from error

    def handle_output(self, context: dg.OutputContext, obj: Plan | Course) -> None:
        """Make what is missing, and say what was done."""
        settings = load_settings()
        for warning in settings.warnings:
            context.log.warning(warning)
        partition = context.partition_key if context.has_partition_key else ""
        name, project = asset_name(context.asset_key, partition), Project.of(settings)
        with (
            _stopped_for_good(context, name),
            _disk_in_words(name, project),
            _alone(context, project, partition, name),
            self.tracking.run(settings, name, _tags(context, partition)) as run,
        ):
            outcome = _carry_out(context, obj, self.store(project, partition), run, name, settings)
            report = obj.report(outcome.records)
            run.log(replace(report, metrics=outcome.counts() | dict(report.metrics)))
        for warning in report.warnings:
            context.log.warning(f"{name}: {warning}")
        _tell_problems(context, run)
        remembered = _to_remember(context, obj, outcome)
        limit = remembered.get(OVERRIDES, {}).get("limit")
        context.add_output_metadata(metadata_of(outcome, report, run, limit=limit) | remembered)
        version = dg.DataVersion(outcome.data_version)
        context.step_context.set_data_version(context.asset_key, version)


def _to_remember(context: dg.OutputContext, plan: Plan | Course, outcome: Outcome) -> dict[str, Any]:
    """What whoever asks later whether this is current must know: items that were put up with, launchpad fields."""
    told = {LEFT_OUT: left_out(plan, outcome.records), OVERRIDES: lasting(context.step_context.op_config or {})}
    return {name: value for name, value in told.items() if value}


def left_out(plan: Plan | Course, records: Mapping[str, Record]) -> str:
    """Digest of the items that could not be made and of what they would be made from; empty where none is lacking."""
    unmade = [[item.key, dict(item.parts)] for item in plan.items if lacks(records.get(item.key), item)]
    unmade += sorted(getattr(plan, "failed", ()))
    return digest(unmade) if unmade else ""


def asset_name(key: dg.AssetKey, partition: str) -> str:
    """`sam_cache[train]`, or `champion`."""
    return f"{key.to_user_string()}[{partition}]" if partition else key.to_user_string()


def _upstream_partition(context: dg.InputContext) -> str:
    """The one partition that is asked for; a mapping onto several must not load."""
    keys = list(context.asset_partition_keys) if context.has_asset_partitions else [""]
    if len(keys) == 1:
        return str(keys[0])
    raise dg.Failure(f"{context.asset_key.to_user_string()} is read one partition at a time, asked for {keys}.")


def _alone(context: dg.OutputContext, project: Project, partition: str, name: str) -> AbstractContextManager[None]:
    """One run at a time writes a partition; a second one waits, and says for whom."""
    return held(
        project.lease(context.asset_key.to_user_string(), partition),
        holder=_holder(context),
        waiting=lambda holder: context.log.info(f"{name} is being written by {holder}; waiting until it is done."),
    )


@contextmanager
def _stopped_for_good(context: dg.OutputContext, name: str) -> Iterator[None]:
    """Let a run that was stopped by hand end, where Dagster would try its step again as after a worker's eviction."""
    try:
        yield
    except dg.DagsterExecutionInterruptedError as error:
        if not is_ours(context.step_context.dagster_run):
            raise
        raise dg.Failure(f"{name} was stopped. What is finished is kept.", allow_retries=False) from error


@contextmanager
def _disk_in_words(name: str, project: Project) -> Iterator[None]:
    """A disk that takes nothing more, or a newer ledger, ends the run with what to do; another try would not help."""
    try:
        with files.writing(project.root):
            yield
    except (files.DiskRefused, files.NewerFormat) as error:
        raise dg.Failure(f"{name} failed: {error}", allow_retries=False) from error


def _tags(context: dg.OutputContext, partition: str) -> dict[str, str]:
    return {"dagster.run_id": context.run_id, "dagster.asset": context.asset_key.to_user_string(),
            "dagster.partition": partition}  # fmt: skip


def _holder(context: dg.OutputContext) -> str:
    """What a run is called in leases."""
    return f"run {context.run_id}"


def _carry_out(
    context: dg.OutputContext, plan: Plan | Course, store: Any, run: TrackedRun, name: str, settings: Settings
) -> Outcome:
    progress = LoggedProgress(context.log, name, run)
    try:
        if isinstance(plan, Plan):
            return materialise(plan, store, progress=progress, carry=_workers(context, plan, name, settings))
        return run_course(plan, store, progress=progress, step=lambda state: _follow(context, plan, run, state, name))
    except TooManyFailed as error:
        raise dg.Failure(f"{name}: {error}", allow_retries=False) from error
    except (ValueError, NotMade) as error:
        raise dg.Failure(f"{name} failed: {error}", allow_retries=False) from error
    except (NoScheduler, WorkersFailed) as error:
        raise dg.Failure(f"{name} failed: {error}", allow_retries=isinstance(error, WorkersFailed)) from error


def _workers(context: dg.OutputContext, plan: Plan, name: str, settings: Settings) -> Carry | None:
    """Dask's workers, if the settings name some and the plan can be sent to them."""
    if settings.compute.scheduler is None or plan.elsewhere is None:
        return None
    project, partition = Project.of(settings), context.partition_key if context.has_partition_key else ""
    lease = project.lease(context.asset_key.to_user_string(), partition)
    errand = Errand(name, plan.elsewhere, plan.made_with, code_here(), lease, _holder(context), project.root)
    return Spread(errand, settings.compute, context.log.info)


def _follow(context: dg.OutputContext, course: Course, run: TrackedRun, state: Any, name: str) -> None:
    """Track one state of a course, and say what it came to."""
    seen = course.follow(state)
    run.log(seen, step=course.step(state))
    context.log.info(f"{name}: " + ", ".join(f"{fact} {value}" for fact, value in seen.facts.items()))


def _tell_problems(context: dg.OutputContext, run: TrackedRun) -> None:
    for problem in run.problems:
        context.log.warning(f"Not tracked with MLflow, the data is stored all the same: {problem}")


class AllSamplesIO(StoreIOManager):
    """The table of all files that were found."""

    def store(self, project: Project, partition: str) -> ManifestStore:
        """manifests/all_samples"""
        return ManifestStore(project.manifests, "all_samples")

    def view(self, settings: Settings, project: Project, partition: str) -> AllSamples:
        """Its rows."""
        return AllSamples.open(project.manifests)


class ManifestIO(StoreIOManager):
    """Manifests of splits."""

    def store(self, project: Project, partition: str) -> ManifestStore:
        """manifests/<split>"""
        return ManifestStore(project.manifests, partition)

    def view(self, settings: Settings, project: Project, partition: str) -> Manifest:
        """The valid samples of a split."""
        return manifest_of(settings, partition)


class PromptsIO(StoreIOManager):
    """Prompt sets of splits."""

    def store(self, project: Project, partition: str) -> PromptStore:
        """prompt_sets/<split>/"""
        return PromptStore(project.prompt_sets(partition))

    def view(self, settings: Settings, project: Project, partition: str) -> Prompts:
        """The prompt sets of a split."""
        return Prompts.open(project.prompt_sets(partition), split=partition)


class SamIO(StoreIOManager):
    """What SAM says of splits."""

    def store(self, project: Project, partition: str) -> SamStore:
        """sam_precompute/<split>/"""
        return SamStore(project.sam_cache(partition))

    def view(self, settings: Settings, project: Project, partition: str) -> SamCache:
        """The cache of a split."""
        return SamCache.open(project.sam_cache(partition), split=partition)


class IndexIO(StoreIOManager):
    """Training indices."""

    def store(self, project: Project, partition: str) -> IndexStore:
        """training_data/no_image/<split>_index"""
        return IndexStore(project.training_index(partition), project.table_format)

    def view(self, settings: Settings, project: Project, partition: str) -> TrainingIndex:
        """The rows of a split."""
        frame, complete = read_index(project.training_index(partition), project.table_format, split=partition)
        masks_root = roots_of(settings.data, partition).masks_root
        return TrainingIndex(partition, frame, masks_root, project.root, complete)


class PackIO(StoreIOManager):
    """HDF5 packs."""

    def store(self, project: Project, partition: str) -> PackStore:
        """training_data/no_image/<split>.h5 and its shards"""
        return PackStore(project.packs, partition)

    def view(self, settings: Settings, project: Project, partition: str) -> Pack:
        """The pack of a split, as it is now."""
        return Pack.open(project.pack(partition))


class ValidationIO(StoreIOManager):
    """The pack that heads and posteriors are judged on."""

    def store(self, project: Project, partition: str) -> ValidationStore:
        """training_data/no_image/validation_pack.json"""
        return ValidationStore(project.validation_pack)

    def view(self, settings: Settings, project: Project, partition: str) -> Pack:
        """That pack."""
        return open_validation_pack(project.validation_pack)


class HeadIO(StoreIOManager):
    """Heads of training splits."""

    def store(self, project: Project, partition: str) -> HeadStore:
        """checkpoints/no_image/"""
        return HeadStore(project.checkpoints, project.head_pointer(partition))

    def view(self, settings: Settings, project: Project, partition: str) -> HeadRun:
        """The current head of a training split."""
        run_id = current_run(project.head_pointer(partition), name=f"head_checkpoint[{partition}]")
        return HeadRun.open(project.checkpoints / f"run_{run_id}")


class PosteriorIO(StoreIOManager):
    """Posteriors of training splits."""

    def store(self, project: Project, partition: str) -> PosteriorStore:
        """laplace/no_image/"""
        return PosteriorStore(project.posteriors, project.posterior_pointer(partition))

    def view(self, settings: Settings, project: Project, partition: str) -> PosteriorRun:
        """The current posterior of a training split."""
        run_id = current_run(project.posterior_pointer(partition), name=f"laplace_posterior[{partition}]")
        return PosteriorRun.open(project.posteriors / f"run_{run_id}")


class ChampionIO(StoreIOManager):
    """The title."""

    def store(self, project: Project, partition: str) -> ChampionStore:
        """laplace/no_image/champion.json and its history"""
        return ChampionStore(project.posteriors)

    def view(self, settings: Settings, project: Project, partition: str) -> Champion:
        """Who holds it."""
        return require_champion(project.posteriors)


class ReportIO(StoreIOManager):
    """Base of what is made for a person to read: nothing in the graph reads it."""

    def view(self, settings: Settings, project: Project, partition: str) -> None:
        """Nothing."""


def _report(project: Project, partition: str, concept: Any) -> tuple[Path, Layout]:
    """The folder of a report, and what it holds."""
    layout = Layout(concept.ASSET, concept.TABLES, project.table_format)
    return project.report(concept.ASSET, partition), layout


class PanelsIO(ReportIO):
    """Debug panels."""

    def store(self, project: Project, partition: str) -> PanelStore:
        """reports/debug_panels/<split>/"""
        return PanelStore(project.panels(partition))


class SweepIO(ReportIO):
    """Comparisons of posteriors."""

    def store(self, project: Project, partition: str) -> ReportStore:
        """reports/posterior_sweep/<split>/"""
        return ReportStore(*_report(project, partition, sweep))


class EvaluationIO(ReportIO):
    """Evaluations of the champion."""

    def store(self, project: Project, partition: str) -> ReportStore:
        """reports/evaluation/<split>/"""
        return ReportStore(*_report(project, partition, evaluation))


class ScoresIO(ReportIO):
    """Next points to click."""

    def store(self, project: Project, partition: str) -> SampleReportStore:
        """reports/prompt_scores/<split>/"""
        return SampleReportStore(*_report(project, partition, scores))


class ActivePromptingIO(ReportIO):
    """Experiments with click strategies."""

    def store(self, project: Project, partition: str) -> ClickStore:
        """reports/active_prompting/<split>/"""
        return ClickStore(*_report(project, partition, active_prompting))


TRACKING = TrackingResource()
IO_MANAGERS: dict[str, StoreIOManager] = {
    "all_samples_io": AllSamplesIO(tracking=TRACKING),
    "manifest_io": ManifestIO(tracking=TRACKING),
    "prompts_io": PromptsIO(tracking=TRACKING),
    "sam_io": SamIO(tracking=TRACKING),
    "panels_io": PanelsIO(tracking=TRACKING),
    "index_io": IndexIO(tracking=TRACKING),
    "pack_io": PackIO(tracking=TRACKING),
    "validation_io": ValidationIO(tracking=TRACKING),
    "head_io": HeadIO(tracking=TRACKING),
    "posterior_io": PosteriorIO(tracking=TRACKING),
    "sweep_io": SweepIO(tracking=TRACKING),
    "champion_io": ChampionIO(tracking=TRACKING),
    "evaluation_io": EvaluationIO(tracking=TRACKING),
    "scores_io": ScoresIO(tracking=TRACKING),
    "active_prompting_io": ActivePromptingIO(tracking=TRACKING),
}
