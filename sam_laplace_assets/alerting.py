"""What a hook has heard of, and what it should hear next: failed unattended runs and champion changes."""

import heapq
import json
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from sam_laplace_assets.jobs import STARTED_BY
from sam_laplace_assets.reporting import step_error
from sam_laplace_assets.resources.alerts import HOOKS, Alert, AlertNotDelivered, Fact, Hook, hooks_of
from sam_laplace_assets.settings import load_settings
from sam_laplace_assets.under_way import RETRIED_AS, SECONDS_UNTIL_RETRY, WILL_RETRY

CHAMPION = dg.AssetKey("champion")
RETRY_NUMBER = "dagster/retry_number"
FAILURES = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}

OVERLAP = 3600.0  # seconds that are looked at again for runs that were recorded late; more than SECONDS_UNTIL_RETRY
BUDGET = 15.0  # seconds after which a tick begins no further alert: with both hooks hanging it still ends within 60
DECISIONS_A_TICK = 100
ERROR_IN_TEXT, ERROR_IN_FACTS = 500, 4000

NOBODY = "Nobody is to hear of anything: set alerts.command or alerts.webhook in the settings."
SEE_UI = "see its events in the UI"


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells the hooks in the settings (alerts.command, alerts.webhook) of failed unattended runs and of new "
    "champions. Leave it on.",
)
def send_alerts(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Tells the hooks in the settings (alerts.command, alerts.webhook) of failed unattended runs and new champions.

    A run that Dagster tries again is told of once, after its last attempt. What a hook does not take is sent again by
    the next tick, before anything newer; the other hook does not wait. Resetting the cursor forgets what was not sent.
    """
    now, until = time.time(), time.monotonic() + BUDGET
    hooks = hooks_of(load_settings().alerts)
    past = read_cursor(context.cursor)
    told = dict.fromkeys(HOOKS, Told.everything(context.instance, now))
    told |= {name: past[name] for name in hooks if name in past}
    rounds = {name: tell(hook, told[name], context.instance, now=now, until=until) for name, hook in hooks.items()}
    cursor = write_cursor(told | {name: one.told for name, one in rounds.items()})
    return dg.SensorResult(skip_reason=_summary(list(rounds.values())), cursor=cursor)


@dataclass(frozen=True)
class Told:
    """What one hook has heard.

    Attributes:
        since: of every run that ended before this second; Unix time.
        runs: those that ended after it and were told, with the second.
        decision: storage id of the newest materialisation of champion that was looked at.
        champion: who held the title then; empty for nobody.
    """

    since: float
    runs: Mapping[str, float] = field(default_factory=dict)
    decision: int = 0
    champion: str = ""

    @classmethod
    def everything(cls, instance: dg.DagsterInstance, now: float) -> "Told":
        """Nothing of the past is to be told."""
        records = instance.fetch_materializations(CHAMPION, limit=1).records
        if not records:
            return cls(now)
        return cls(now, {}, records[0].storage_id, str(_said(records[0]).get("champion", "")))

    def up_to(self, since: float) -> "Told":
        """The same, when everything that ended before this second was told."""
        since = max(since, self.since)
        return replace(self, since=since, runs={name: ended for name, ended in self.runs.items() if ended > since})


def read_cursor(cursor: str | None) -> dict[str, Told]:
    """What each hook has heard. Raises `ValueError` if the cursor is not one of this sensor."""
    try:
        return {name: Told(**told) for name, told in json.loads(cursor or "{}").items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"The cursor of send_alerts cannot be read: {error}. Reset it in the UI; alerts then begin anew."
        ) from error


def write_cursor(told: Mapping[str, Told]) -> str:
    """The cursor that says so."""
    return json.dumps({name: asdict(one) for name, one in told.items()})


@dataclass(frozen=True)
class Round:
    """One tick of one hook: what it has heard now, how many alerts it took, why it did not take the rest."""

    told: Told
    sent: int
    rest: str = ""


def tell(hook: Hook, told: Told, instance: dg.DagsterInstance, *, now: float, until: float) -> Round:
    """Send a hook what it has not heard, oldest first, up to the first that it does not take.

    Args:
        now: Unix time before which everything is looked at.
        until: monotonic time after which no second alert is begun.
    """
    sent = 0
    for news in what_is_new(told, instance, now):
        if (alert := news.alert(told, instance)) is not None:
            if sent and time.monotonic() > until:
                return Round(told, sent, "The next tick goes on.")
            try:
                hook.send(alert)
            except AlertNotDelivered as error:
                return Round(told, sent, f"{error} The next tick tries again.")
            sent += 1
        told = news.remember(told)
    return Round(told.up_to(now - OVERLAP), sent)


def _summary(rounds: Sequence[Round]) -> str:
    """What the tick came to; raises if nothing was sent that should have been.

    A tick that raises keeps its old cursor: it would send again what another hook, or this one, has just taken.
    """
    sent, rest = sum(one.sent for one in rounds), [one.rest for one in rounds if one.rest]
    if rest and not sent:
        raise AlertNotDelivered("\n".join(rest))
    if not rounds:
        return NOBODY
    return "\n".join([f"Alerts sent: {sent}." if sent else "Nothing new.", *rest])


def what_is_new(told: Told, instance: dg.DagsterInstance, now: float) -> "Iterator[FailedRun | Decision]":
    """Failed runs and decisions that were not told, oldest first."""
    return heapq.merge(failed_runs(told, instance, now), decisions(told, instance), key=lambda news: news.when)


@dataclass(frozen=True)
class FailedRun:
    """An unattended run that failed for good."""

    run: dg.DagsterRun
    when: float

    def alert(self, told: Told, instance: dg.DagsterInstance) -> Alert:
        """Which job, partition and run, and the first error's own text."""
        tags, asset, error = self.run.tags, *first_error(self.run.run_id, instance)
        facts: dict[str, Fact] = {
            "job": self.run.job_name, "partition": tags.get("dagster/partition"), "run_id": self.run.run_id,
            "asset": asset, "error": error[:ERROR_IN_FACTS], "attempts": int(tags.get(RETRY_NUMBER, "0")) + 1,
            "started_by": tags[STARTED_BY], "made": _iso(self.when),
        }  # fmt: skip
        return Alert("run_failed", _failure_text(facts), facts)

    def remember(self, told: Told) -> Told:
        """What was told, with this run."""
        return replace(told, runs={**told.runs, self.run.run_id: self.when})


def failed_runs(told: Told, instance: dg.DagsterInstance, now: float) -> list[FailedRun]:
    """Those that were not told, by their end."""
    wanted = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.FAILURE], updated_after=datetime.fromtimestamp(told.since, UTC)
    )
    found = [FailedRun(one.dagster_run, one.end_time or 0.0) for one in instance.get_run_records(wanted)]
    new = [one for one in found if one.when > told.since and one.run.run_id not in told.runs]
    retries = instance.run_retries_enabled
    return sorted(
        (one for one in new if STARTED_BY in one.run.tags and is_final(one, now, retries=retries)),
        key=lambda one: one.when,
    )


def is_final(failed: FailedRun, now: float, *, retries: bool) -> bool:
    """Whether no other attempt follows.

    Dagster marks a run a moment after it failed and starts the next attempt some seconds later. Both are waited for,
    but not for ever: the process that should do it may have died.
    """
    tags = failed.run.tags
    if tags.get(WILL_RETRY) == "true" and RETRIED_AS in tags:
        return False
    if tags.get(WILL_RETRY) == "false" or not (retries or WILL_RETRY in tags):
        return True
    return now - failed.when > SECONDS_UNTIL_RETRY


def first_error(run_id: str, instance: dg.DagsterInstance) -> tuple[str | None, str]:
    """The step that failed first, if one did, and what was said of the failure."""
    logs = [record.event_log_entry for record in instance.get_records_for_run(run_id, of_type=FAILURES).records]
    events = [log.dagster_event for log in logs if log.dagster_event is not None]
    for event in events:
        if event.is_step_failure and (said := step_error(event)):
            return event.step_key, said
    return None, next(filter(None, map(_run_error, events)), SEE_UI)


def _run_error(event: dg.DagsterEvent) -> str:
    """What is said of a run that failed outside of its steps."""
    error = getattr(event.event_specific_data, "error", None)  # the daemon fails runs without any data
    return str((error and error.message) or event.message or "").strip()


def _failure_text(facts: Mapping[str, Fact]) -> str:
    job = f"{facts['job']} of {facts['partition']}" if facts["partition"] else facts["job"]
    attempts = "" if facts["attempts"] == 1 else f" after {facts['attempts']} attempts"
    error = textwrap.shorten(str(facts["error"]), ERROR_IN_TEXT, placeholder=" ...")
    return f"{job} failed{attempts} in run {facts['run_id']}: {error}"


@dataclass(frozen=True)
class Decision:
    """A materialisation of champion; news if another one holds the title."""

    record: dg.EventLogRecord

    @property
    def when(self) -> float:
        """Unix time."""
        return float(self.record.timestamp)

    def alert(self, told: Told, instance: dg.DagsterInstance) -> Alert | None:
        """Who holds the title, who held it, and why; nothing if that is as it was."""
        said = _said(self.record)
        if said.get("champion", told.champion) == told.champion:
            return None
        facts: dict[str, Fact] = {
            "champion": said["champion"], "previous": told.champion or None, "nll": said.get("validation NLL"),
            "training_split": said.get("training split"), "verdict": said.get("verdict"), "run_id": self.record.run_id,
            "made": _iso(self.when),
        }  # fmt: skip
        return Alert("champion_changed", _champion_text(facts), facts)

    def remember(self, told: Told) -> Told:
        """What was told, with this decision."""
        champion = str(_said(self.record).get("champion", told.champion))
        return replace(told, decision=self.record.storage_id, champion=champion)


def decisions(told: Told, instance: dg.DagsterInstance) -> list[Decision]:
    """Those that were not looked at, in their order."""
    wanted = dg.AssetRecordsFilter(CHAMPION, after_storage_id=told.decision)
    records = instance.fetch_materializations(wanted, limit=DECISIONS_A_TICK, ascending=True).records
    return [Decision(record) for record in records]


def _champion_text(facts: Mapping[str, Fact]) -> str:
    nll = facts["nll"]
    now = f"{facts['champion']} (validation NLL {nll:.5f})" if isinstance(nll, float) else facts["champion"]
    change = f"The champion changed from {facts['previous']} to {now}." if facts["previous"] else f"Champion is {now}."
    return f"{change} {facts['verdict'] or ''}".strip()


def _said(record: dg.EventLogRecord) -> dict[str, Any]:
    materialisation = record.asset_materialization
    return {} if materialisation is None else {name: one.value for name, one in materialisation.metadata.items()}


def _iso(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")
