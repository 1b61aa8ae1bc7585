"""Making what is missing or out of date without the UI: the same jobs, on the same instance, in this process."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from sam_laplace_assets.assets.graph import BY_NAME
from sam_laplace_assets.definitions import defs
from sam_laplace_assets.freshness import Freshness
from sam_laplace_assets.launcher import is_gone, this_process
from sam_laplace_assets.partitions import check_split, known_splits, register_splits
from sam_laplace_assets.reporting import step_error
from sam_laplace_assets.settings import load_settings
from sam_laplace_assets.stages import Stage, run_config, stages_now, stale_from

Tell = Callable[[str], None]
HERE = {"dagster/max_retries": "0"}  # the daemon has nothing to start such a run again with


class RunFailed(RuntimeError):
    """A Dagster run did not succeed."""


def refresh(
    instance: dg.DagsterInstance,
    *,
    splits: Sequence[str] = (),
    assets: Sequence[str] = (),
    keep_overrides: bool = True,
    tell: Tell,
) -> list[str]:
    """Make what is missing or stale, stage by stage.

    Args:
        instance: where runs are recorded.
        splits: only these; all that have data if none are named.
        assets: only these; if none are named, all but the experiments.
        keep_overrides: whether launchpad fields that something was made with last still hold.
        tell: hears of each run before it starts.

    Returns:
        Names of the asset partitions that were run; empty if everything was current.

    Raises:
        RunFailed: runs failed; names them and the first error of each. What does not need them was made all the same.
        ValueError: a split has no data, or an asset is unknown; names those that exist.
    """
    settings = load_settings()
    _require_known(assets)
    chosen = [check_split(key, settings.data) for key in splits] or known_splits(settings.data)
    register_splits(chosen, instance)
    end_killed_runs(instance)
    ran: list[str] = []
    failed: dict[Stage, str] = {}
    for stage in stages_now(chosen, settings, instance, asked=assets):
        selected = [name for name in stage.assets if not assets or name in assets]
        stale = stale_from(stage, selected, settings, instance, keep_overrides=keep_overrides)
        if not stale or any(stage.needs(earlier) for earlier in failed):
            continue
        tell(f"{_title(stage, stale)}: {stale[0].why}")
        tell_wait(stale, instance, tell)
        try:
            made = [one.asset for one in stale]
            run_job(stage.job, instance, partition=stage.partition, assets=made, run_config=run_config(stale))
        except RunFailed as error:
            failed[stage] = str(error)
        ran += [one.name for one in stale]
    if failed:
        raise RunFailed("\n".join(failed.values()))
    return ran


def end_killed_runs(instance: dg.DagsterInstance) -> None:
    """Fail the runs whose process on this machine is gone: the pool's slot that they hold would never be free again."""
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        if is_gone(run, instance):
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            instance.report_run_failed(run, "The process of this run was killed.")


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


def _title(stage: Stage, stale: Sequence[Freshness]) -> str:
    names = ", ".join(one.asset for one in stale)
    return f"{names} of {stage.partition}" if stage.partition else names


def run_job(
    job: str,
    instance: dg.DagsterInstance,
    *,
    partition: str = "",
    assets: Sequence[str] | None = None,
    run_config: Mapping[str, Any] | None = None,
) -> None:
    """Run a job in this process, all of its assets or some.

    Raises:
        RunFailed: names the run and its first error.
        KeyboardInterrupt: it was stopped.
    """
    result = defs.resolve_job_def(job).execute_in_process(
        instance=instance,
        partition_key=partition or None,
        asset_selection=None if assets is None else [dg.AssetKey(name) for name in assets],
        run_config={"loggers": {"plain": {}}, **(run_config or {})},
        tags=HERE | this_process(),
        raise_on_error=False,
    )
    if _was_interrupted(result):
        raise KeyboardInterrupt
    if not result.success:
        raise RunFailed(f"{job} failed in run {result.run_id}: {_first_error(result)}")


def _was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    errors = [event.step_failure_data.error for event in result.get_step_failure_events()]
    errors += [error.cause for error in errors if error is not None]
    return any(error is not None and error.cls_name == "DagsterExecutionInterruptedError" for error in errors)


def _first_error(result: dg.ExecuteInProcessResult) -> str:
    errors = map(step_error, result.get_step_failure_events())
    return next(filter(None, errors), "see its events in the UI")
