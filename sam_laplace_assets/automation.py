"""What happens by itself: splits become partitions, and what is out of date is made again."""

import time

import dagster as dg

from sam_laplace_assets.jobs import STARTED_BY, all_jobs
from sam_laplace_assets.partitions import known_splits, partition_requests
from sam_laplace_assets.retraining import Finding, Step, next_step
from sam_laplace_assets.settings import load_settings
from sam_laplace_assets.stages import stock

EVERY_NIGHT_AT_TWO = "0 2 * * *"


@dg.sensor(
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Makes partitions of train, val, test and of every named split that has data. Leave it on.",
)
def register_split_partitions(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """All splits that have data as partitions, those with role train as training splits, too."""
    known = known_splits(load_settings().data)
    requests = partition_requests(known, context.instance)
    if not requests:
        return dg.SkipReason(f"All {len(known)} splits are partitions: {', '.join(known)}.")
    return dg.SensorResult(dynamic_partitions_requests=requests)


@dg.sensor(
    jobs=all_jobs,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Switch it on to have whatever changes refreshed: the splits it is in, then one training, then the "
    "champion. Its ticks say what is waited for.",
)
def retrain_on_change(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """The next step after a change of files or settings."""
    step = _next(context, last=Finding.read(context.cursor), started_by="retrain_on_change")
    return _result(step, context.cursor if step.finding is None else step.finding.write())


@dg.op(out=dg.Out(dg.Nothing))
def say_what_is_out_of_date(context: dg.OpExecutionContext) -> None:
    """Logs each asset partition that is not current, and why."""
    settings = load_settings()
    stale = [one for one in stock(known_splits(settings.data), settings, context.instance) if not one.current]
    for one in stale:
        context.log.info(f"{one.name}: {one.why}")
    context.log.info("carry_out_refresh starts what is needed." if stale else "Nothing changed: everything is current.")


@dg.job(executor_def=dg.in_process_executor)
def refresh_everything() -> None:
    """Make whatever is missing or out of date, over all splits: the sensor carry_out_refresh starts it step by step."""
    say_what_is_out_of_date()


@dg.schedule(
    job=refresh_everything,
    cron_schedule=EVERY_NIGHT_AT_TWO,
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Switch it on to have everything refreshed at two every night (UTC), in place of the sensor "
    "retrain_on_change.",
)
def nightly_refresh(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """One refresh a night."""
    return dg.RunRequest(tags={STARTED_BY: "nightly_refresh"})


@dg.sensor(
    jobs=all_jobs,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts, step by step, what a run of refresh_everything found out of date. Leave it on.",
)
def carry_out_refresh(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """The next step of a refresh that was asked for."""
    name = refresh_everything.name
    asked = context.instance.get_runs(dg.RunsFilter(job_name=name, statuses=[dg.DagsterRunStatus.SUCCESS]), limit=1)
    if not asked or asked[0].run_id == context.cursor:
        return dg.SkipReason(f"{name} has not run since the last refresh was carried out.")
    step = _next(context, last=Finding(), started_by=name)
    return _result(step, context.cursor if step.finding is None else asked[0].run_id)


def _next(context: dg.SensorEvaluationContext, *, last: Finding, started_by: str) -> Step:
    step = next_step(load_settings(), context.instance, last=last, now=time.time(), started_by=started_by)
    context.log.info(step.why)
    return step


def _result(step: Step, cursor: str | None) -> dg.SensorResult:
    why = None if step.requests else step.why
    return dg.SensorResult(run_requests=list(step.requests), skip_reason=why, cursor=cursor)
