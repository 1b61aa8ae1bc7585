"""What should run next so that everything becomes current: one kind of stage at a time, decided anew at every look."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import dagster as dg

from sam_laplace_assets.domain.plan import digest
from sam_laplace_assets.freshness import Freshness, last_time
from sam_laplace_assets.jobs import OF_A_SPLIT, STARTED_BY
from sam_laplace_assets.partitions import known_splits, register_splits
from sam_laplace_assets.settings import Settings
from sam_laplace_assets.stages import Stage, run_config, stages_now, stale_from
from sam_laplace_assets.storage.watch import watch
from sam_laplace_assets.under_way import under_way

RUN_KEY, PARTITION = "dagster/run_key", "dagster/partition"
SECONDS_A_FINDING_HOLDS = 600.0  # then what was lost below the project root, or mended elsewhere, is seen, too


@dataclass(frozen=True)
class Finding:
    """That there was nothing to ask for, and why; it holds while files, settings and runs are the same, not for ever.

    Attributes:
        state: digest of all files and settings, and of the newest run; empty if nothing was found yet.
        why: what was found.
        made: when, seconds since the epoch.
    """

    state: str = ""
    why: str = ""
    made: float = 0.0

    def holds(self, state: str, now: float) -> bool:
        """Whether looking again is spared."""
        return self.state == state and now - self.made < SECONDS_A_FINDING_HOLDS

    @classmethod
    def read(cls, cursor: str | None) -> "Finding":
        """The finding in a sensor's cursor."""
        return cls(**json.loads(cursor)) if cursor else cls()

    def write(self) -> str:
        """As a sensor's cursor."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Step:
    """What to run now, or why nothing.

    Attributes:
        why: what is out of date, what is waited for, or that nothing is to be done.
        requests: runs to be started.
        finding: that there is nothing to ask for; None while something is waited for.
    """

    why: str
    requests: tuple[dg.RunRequest, ...] = ()
    finding: Finding | None = None


def next_step(settings: Settings, instance: dg.DagsterInstance, *, last: Finding, now: float, started_by: str) -> Step:
    """The next stages that are not current, once nothing is running and no file is being written.

    All splits are prepared before any head is trained, and all are trained before the champion is chosen, however many
    splits have changed. What failed is not asked for again until it, or what it is made from, has changed.

    Args:
        settings: those in force.
        instance: where runs are recorded; splits that have data become its partitions.
        last: what the last look found, which spares looking again.
        now: seconds since the epoch.
        started_by: tag of the runs that are asked for.
    """
    if (waits := under_way(instance)) is not None:
        return Step(f"Waits for {waits}.")
    seen = watch(settings)
    state = digest([seen.state, settings.model_dump(mode="json"), _newest_run(instance)])
    if last.holds(state, now):
        return Step(last.why, finding=last)
    if (quiet := now - seen.changed) < (wanted := settings.automation.debounce_seconds):
        when = f"{quiet:.0f} s ago" if quiet >= 0 else f"{-quiet:.0f} s ahead of this machine's clock"
        return Step(f"Files changed {when}: waits until nothing has been written for {wanted:g} s.")
    register_splits(known_splits(settings.data), instance)
    look = _Look(settings, instance, started_by, seen.changed)
    look.over(stages_now(known_splits(settings.data), settings, instance))
    why = "\n".join(look.told) or "Nothing changed: everything is current."
    return Step(why, tuple(look.requests)) if look.requests else Step(why, finding=Finding(state, why, now))


@dataclass
class _Look:
    """One look along the way through the graph."""

    settings: Settings
    instance: dg.DagsterInstance
    started_by: str
    changed: float
    requests: list[dg.RunRequest] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def over(self, stages: Iterator[Stage]) -> None:
        """Ask for the first stale stages that are of one kind, and need nothing that failed."""
        wanted_job, failed = "", list[Stage]()
        for stage in stages:
            if wanted_job and stage.job != wanted_job:
                return
            if any(stage.needs(earlier) for earlier in failed):
                continue
            stale = stale_from(stage, stage.assets, self.settings, self.instance)
            if (in_vain := self._in_vain(stage, stale)) is not None:
                self.told.append(in_vain)
                failed.append(stage)
            elif not stale:
                continue
            elif stale[0].waits and (trial := self._trial(stage)):
                self.told.append(f"{stale[0].name} is left alone while {trial} is a trial (`limit`).")
                failed.append(stage)
            elif self._ask(stage, stale):
                wanted_job = stage.job
            else:
                failed.append(stage)

    def _in_vain(self, stage: Stage, stale: Sequence[Freshness]) -> str | None:
        """That the newest run of a stage failed at what is stale, or at a check of what is current; None otherwise.

        It counts no more once a file, a setting or one of the stage's assets is newer.
        """
        tags = {PARTITION: stage.partition} if stage.partition else {}
        newest = self.instance.get_run_records(dg.RunsFilter(job_name=stage.job, tags=tags), limit=1)
        if not newest or newest[0].dagster_run.status is not dg.DagsterRunStatus.FAILURE:
            return None
        begun, ended = newest[0].start_time or 0.0, newest[0].end_time or 0.0
        made = (last_time(dg.AssetKey(name), stage.partition, self.instance).made for name in stage.assets)
        if begun < self.changed or any(one is not None and one.timestamp() > ended for one in made):
            return None
        run = newest[0].dagster_run
        if stale and (_was_asked_for(stale[0], run) or not _failed_at(stale[0].asset, run.run_id, self.instance)):
            return None
        what = f"{stale[0].name}: {stale[0].why.rstrip('.')}" if stale else f"{stage.job} {stage.partition}".strip()
        return (
            f"{what}. Not asked again: run {run.run_id[:8]} of it failed, see there. Mend its cause, then run it again."
        )

    def _trial(self, stage: Stage) -> str:
        """What this stage reads and somebody has made with `limit` in the launchpad; empty if there is nothing."""
        splits = {"val", stage.partition} if stage.partition else {"val"}
        made = ((name, split, last_time(dg.AssetKey(name), split, self.instance))
                for split in sorted(splits) for name in OF_A_SPLIT)  # fmt: skip
        return next((f"{name}[{split}]" for name, split, last in made if last.is_trial), "")

    def _ask(self, stage: Stage, stale: Sequence[Freshness]) -> bool:
        """Ask for a stage, unless that was done before and came to nothing."""
        request = _request(stage, stale, self.started_by)
        what = f"{stale[0].name}: {stale[0].why}"
        earlier = self.instance.get_runs(dg.RunsFilter(tags={RUN_KEY: str(request.run_key)}), limit=1)
        if earlier:
            ended = f"run {earlier[0].run_id[:8]} for it ended as {earlier[0].status.value}"
            self.told.append(f"{what.rstrip('.')}. Not asked again: {ended}. Mend its cause, then run it again.")
            return False
        self.requests.append(request)
        self.told.append(what)
        return True


def _was_asked_for(first: Freshness, run: dg.DagsterRun) -> bool:
    """Whether a run was to begin with this asset: what it was to make of it then is in its key."""
    return run.tags.get(RUN_KEY, "").startswith(f"{first.name} ")


def _failed_at(asset: str, run_id: str, instance: dg.DagsterInstance) -> bool:
    stats = instance.get_run_step_stats(run_id, step_keys=[asset])
    return any(one.status is not None and one.status.value == "FAILURE" for one in stats)


def _request(stage: Stage, stale: Sequence[Freshness], started_by: str) -> dg.RunRequest:
    """A run whose key holds what is wanted and what was made last: going back to earlier data is asked for, too."""
    first = stale[0]
    return dg.RunRequest(
        run_key=f"{first.name} {first.wants[:16]} after {first.last.number}",
        job_name=stage.job,
        partition_key=stage.partition or None,
        asset_selection=[dg.AssetKey(one.asset) for one in stale],
        run_config=run_config(stale),
        tags={STARTED_BY: started_by},
    )


def _newest_run(instance: dg.DagsterInstance) -> str:
    runs = instance.get_runs(limit=1)
    return f"{runs[0].run_id} {runs[0].status.value}" if runs else ""
