"""Dagster's own launcher of runs as local processes, which can also tell that the process of a run is gone.

Dagster's code server notices when a run's process dies. When both are killed at once, as when the machine loses power,
the run would stay "started" for ever, and whatever waits for it would wait for ever, too.
"""

import json
import socket

import dagster as dg
import psutil
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus

PROCESS = ".dagster/sam_laplace_process"  # `<host>:<process id>`; no id where the run's first event tells it
GRPC_INFO = ".dagster/grpc_info"
LOCAL = {"localhost", "127.0.0.1"}
SECONDS_OF_ROUNDING = 1.0


class WatchfulRunLauncher(dg.DefaultRunLauncher):
    """Starts runs as Dagster does, and answers Dagster's run monitoring whether they are alive."""

    def launch_run(self, context: LaunchRunContext) -> None:
        """Launch a run, and note the machine that it runs on if that is this one."""
        super().launch_run(context)
        run_id = context.dagster_run.run_id
        run = self._instance.get_run_by_id(run_id)
        if run is not None and json.loads(run.tags.get(GRPC_INFO, "{}")).get("host") in LOCAL:
            self._instance.add_run_tags(run_id, {PROCESS: f"{socket.gethostname()}:"})

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether a started run is alive, as far as can be told from this machine."""
        if is_gone(run, self._instance):
            return CheckRunHealthResult(WorkerStatus.FAILED, "The process of this run was killed.")
        return CheckRunHealthResult(WorkerStatus.RUNNING)


def this_process() -> dict[str, str]:
    """The tag of a run that is carried out in this process."""
    return {PROCESS: f"{socket.gethostname()}:{psutil.Process().pid}"}


def is_ours(run: dg.DagsterRun) -> bool:
    """Whether a run is carried out in this process, by whoever sits before it, and not by a worker of Dagster's."""
    return run.tags.get(PROCESS) == this_process()[PROCESS]


def is_gone(run: dg.DagsterRun, instance: dg.DagsterInstance) -> bool:
    """Whether a started run has lost its process; never of a run whose process is not known, or not on this machine."""
    host, _, process = run.tags.get(PROCESS, "").rpartition(":")
    record = instance.get_run_record_by_id(run.run_id)
    if host != socket.gethostname() or record is None:
        return False
    number = int(process) if process else _process_of_first_event(run.run_id, instance)
    since = record.start_time or record.create_timestamp.timestamp()
    return number is not None and not _is_alive(number, since=since)


def _process_of_first_event(run_id: str, instance: dg.DagsterInstance) -> int | None:
    begun = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.RUN_START, limit=1).records
    event = begun[0].event_log_entry.dagster_event if begun else None
    return None if event is None else event.pid


def _is_alive(number: int, *, since: float) -> bool:
    """Whether a process of this id was there then and still is; ids are given again."""
    try:
        process = psutil.Process(number)
        is_later = process.create_time() > since + SECONDS_OF_ROUNDING
        return not is_later and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
