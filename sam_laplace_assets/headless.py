"""Making what is missing or out of date without the UI: the same jobs, on the same instance, in this process."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import dagster as dg

from sam_laplace_assets.assets.graph import ASSETS
from sam_laplace_assets.definitions import defs
from sam_laplace_assets.domain.manifest import PARTITION_ROLES
from sam_laplace_assets.freshness import Freshness, look
from sam_laplace_assets.partitions import check_split, is_training_split, known_splits, register_splits
from sam_laplace_assets.settings import Settings, load_settings
from sam_laplace_assets.storage.project import Project

Tell = Callable[[str], None]
SCAN = dg.AssetKey("all_samples")
HERE = {"dagster/max_retries": "0"}  # the daemon has nothing to start such a run again with
PROCESS = "sam_laplace/process"
BY_NAME = {asset.key.to_user_string(): asset for asset in ASSETS}


class RunFailed(RuntimeError):
    """A Dagster run did not succeed."""


@dataclass(frozen=True)
class Stage:
    """Assets that run together for one partition, each after those that it depends on."""

    job: str
    partition: str
    assets: tuple[str, ...]


def stages(splits: Sequence[str], *, scanned: bool = False, fitted: bool = False) -> Iterator[Stage]:
    """The way through the graph for some splits; named ones leave the base splits and what is judged on them alone.

    Args:
        splits: which.
        scanned: whether all_samples was made before.
        fitted: whether there are posteriors, which another validation pack would judge anew.
    """
    if not scanned or any(split in PARTITION_ROLES for split in splits):
        yield Stage("scan", "", ("all_samples",))
    chain = ("manifest", "prompt_sets", "sam_cache", "training_index", "hdf5_pack", "sanity_panels")
    for split in splits:
        yield Stage("prepare_split", split, chain)
    if "val" in splits:
        yield Stage("name_validation_pack", "", ("validation_pack",))
    trained = [split for split in splits if is_training_split(split)]
    for split in trained:
        yield Stage("train_and_fit", split, ("head_checkpoint", "laplace_posterior"))
    if trained or (fitted and "val" in splits):
        yield Stage("choose_champion", "", ("champion",))


def refresh(
    instance: dg.DagsterInstance, *, splits: Sequence[str] = (), assets: Sequence[str] = (), tell: Tell
) -> list[str]:
    """Make what is missing or stale, stage by stage.

    Args:
        instance: where runs are recorded.
        splits: only these; all that have data if none are named.
        assets: only these; all if none are named.
        tell: hears of each run before it starts.

    Returns:
        Names of the asset partitions that were run; empty if everything was current.

    Raises:
        RunFailed: a run failed; names it and the first error.
        ValueError: a split has no data, or an asset is unknown; names those that exist.
    """
    settings = load_settings()
    _require_known(assets)
    chosen = [check_split(key, settings.data) for key in splits] or known_splits(settings.data)
    register_splits(chosen, instance)
    end_killed_runs(instance)
    ran: list[str] = []
    scanned = instance.get_latest_materialization_event(SCAN) is not None
    fitted = bool(Project.of(settings).posterior_pointers())
    for stage in stages(chosen, scanned=scanned, fitted=fitted):
        selected = [name for name in stage.assets if not assets or name in assets]
        stale = stale_from(stage, selected, settings, instance)
        if stale:
            tell(f"{_title(stage, stale)}: {stale[0].why}")
            tell_wait(stale, instance, tell)
            _run(stage, [one.asset for one in stale], instance)
            ran += [one.name for one in stale]
    return ran


def end_killed_runs(instance: dg.DagsterInstance) -> None:
    """Fail the runs whose process on this machine is gone: the pool's slot that they hold would never be free again."""
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        host, _, process = run.tags.get(PROCESS, "").rpartition(":")
        if host == socket.gethostname() and not _is_alive(int(process)):
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            instance.report_run_failed(run, "The process of this run was killed.")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def tell_wait(stale: Sequence[Freshness], instance: dg.DagsterInstance, tell: Tell) -> None:
    """Name the runs that hold what the next one needs; it waits for them without a word."""
    pools = {pool for one in stale for pool in BY_NAME[one.asset].op.pools}
    for pool in sorted(pools):
        info = instance.event_log_storage.get_concurrency_info(pool)
        if info.claimed_slots and len(info.claimed_slots) >= info.slot_count:
            held = ", ".join(sorted(info.active_run_ids))
            tell(f"Waiting for pool {pool}, which run {held} holds. If that is dead, end it in the UI.")


def _require_known(assets: Sequence[str]) -> None:
    if unknown := [name for name in assets if name not in BY_NAME]:
        raise ValueError(f"There is no asset {', '.join(unknown)}. Known assets: {', '.join(BY_NAME)}.")


def stale_from(
    stage: Stage, selected: Sequence[str], settings: Settings, instance: dg.DagsterInstance
) -> list[Freshness]:
    """The first stale asset of a stage and those after it: what follows is only known once that is made."""
    for at, name in enumerate(selected):
        first = look(BY_NAME[name], stage.partition, settings, instance)
        if not first.current:
            after = (Freshness(later, stage.partition, why=f"follows {name}") for later in selected[at + 1 :])
            return [first, *after]
    return []


def _title(stage: Stage, stale: Sequence[Freshness]) -> str:
    names = ", ".join(one.asset for one in stale)
    return f"{names} of {stage.partition}" if stage.partition else names


def _run(stage: Stage, assets: Sequence[str], instance: dg.DagsterInstance) -> None:
    result = defs.resolve_job_def(stage.job).execute_in_process(
        instance=instance,
        partition_key=stage.partition or None,
        asset_selection=[dg.AssetKey(name) for name in assets],
        run_config={"loggers": {"plain": {}}},
        tags=HERE | {PROCESS: f"{socket.gethostname()}:{os.getpid()}"},
        raise_on_error=False,
    )
    if not result.success:
        raise RunFailed(f"{stage.job} failed in run {result.run_id}: {_first_error(result)}")


def _first_error(result: dg.ExecuteInProcessResult) -> str:
    for event in result.get_step_failure_events():
        failure = event.step_failure_data
        data = failure.user_failure_data
        if data is not None and data.description:
            return str(data.description)
        if failure.error is not None:
            cause = failure.error.cause or failure.error
            return str(cause.message).strip()
    return "see its events in the UI"
