"""What Dagster has begun and not ended: whoever starts or removes something by itself waits for it."""

import time

import dagster as dg
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
WILL_RETRY, RETRIED_AS = "dagster/will_retry", "dagster/auto_retry_run_id"
SECONDS_UNTIL_RETRY = 600.0  # that Dagster gets to start another attempt; the process that should may have died
RECENT = 20


def under_way(instance: dg.DagsterInstance) -> str | None:
    """In words, a run, another attempt of one, or a backfill that is not ended; None if there is none."""
    if runs := instance.get_runs(dg.RunsFilter(statuses=UNFINISHED), limit=1):
        return f"run {runs[0].run_id[:8]} of {runs[0].job_name}"
    failed = instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]), limit=RECENT)
    for record in failed:
        if awaits_retry(record.dagster_run, ended=record.end_time or 0.0, now=time.time()):
            return f"another attempt of run {record.dagster_run.run_id[:8]} of {record.dagster_run.job_name}"
    asked = BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING])
    backfills = instance.get_backfills(filters=asked, limit=1)
    return f"backfill {backfills[0].backfill_id}" if backfills else None


def awaits_retry(run: dg.DagsterRun, *, ended: float, now: float) -> bool:
    """Whether Dagster is about to start a failed run again."""
    announced = run.tags.get(WILL_RETRY) == "true" and RETRIED_AS not in run.tags
    return announced and now - ended < SECONDS_UNTIL_RETRY
