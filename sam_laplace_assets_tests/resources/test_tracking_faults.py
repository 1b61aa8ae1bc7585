"""Tracking that is away, slow, locked, damaged or full: the data is stored, and the run says what was not tracked."""

import contextlib
import json
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from sam_laplace_assets.domain.plan import Report
from sam_laplace_assets.resources import tracking
from sam_laplace_assets.resources.tracking import Store, TookTooLong, TrackedRun, within
from sam_laplace_assets.settings import MlflowSettings
from sam_laplace_assets_tests.faults.figures import keep
from sam_laplace_assets_tests.faults.mounts import small_disk

TRACKED = {"enabled": True, "experiment": "corals"}
LOCKER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def slow_server(*, seconds=None, drip=False):
    """An HTTP server that accepts at once and answers after some seconds, never, or a byte at a time."""
    ended = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not drip:
                ended.wait(seconds)
            content = json.dumps(ANSWERS.get(self.path.split("?")[0].rpartition("/mlflow/")[2], {})).encode()
            with contextlib.suppress(OSError):
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content) + (10**6 if drip else 0)))
                self.end_headers()
                self.wfile.write(content)
                while drip and not ended.wait(0.2):
                    self.wfile.write(b" ")
                    self.wfile.flush()

        do_GET = do_POST = do_PATCH = answer  # noqa: N815

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


ANSWERS = {
    "experiments/get-by-name": {"experiment": {"experiment_id": "1", "name": "corals", "lifecycle_stage": "active"}},
    "runs/create": {"run": {"info": {"run_id": "abc", "experiment_id": "1", "status": "RUNNING",
                                     "lifecycle_stage": "active"}, "data": {}}},
}  # fmt: skip


@contextlib.contextmanager
def locked(path):
    """A database that another process holds for itself."""
    process = subprocess.Popen([sys.executable, "-c", LOCKER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().strip() == "locked"
        yield
    finally:
        process.kill()
        process.wait()


def short(monkeypatch, *, to_begin=2.0, in_all=3.0):
    """Less patience than in life."""
    monkeypatch.setattr(tracking, "SECONDS_TO_BEGIN", to_begin)
    monkeypatch.setattr(tracking, "SECONDS_IN_ALL", in_all)


def materialised(project, asset="validation_pack", split=None):
    """A materialisation that must succeed: how long it took, and what the run says was not tracked."""
    started = time.monotonic()
    result = project.materialise(asset, split=split)
    seconds = time.monotonic() - started
    assert result.success
    with project.instance() as instance:
        logs = [record.user_message for record in instance.all_logs(result.run_id)]
    told = [message for message in logs if message.startswith("Not tracked with MLflow")]
    assert all("the data is stored all the same" in one for one in told)
    return seconds, told, str(project.metadata(asset, split).get("not tracked", ""))


def require_stored_and_told(project, said, *, at_most):
    """The data is as it was without MLflow, soon enough, and log and metadata say what was not tracked."""
    project.change(mlflow=TRACKED)
    before = project.versions()
    seconds, told, shown = materialised(project)
    assert project.versions() == before
    assert seconds < at_most
    assert told
    assert said in told[0]
    assert said in shown
    return told


@pytest.mark.parametrize("drip", [False, True], ids=["never answers", "drips"])
def test_a_server_that_does_not_come_to_an_end_holds_up_the_run_for_a_stated_time(project, monkeypatch, drip):
    plain, _, _ = materialised(project)
    short(monkeypatch)
    with slow_server(drip=drip) as uri:
        project.change(mlflow={"tracking_uri": uri})
        require_stored_and_told(project, "MLflow did not answer within 2 s; nothing was tracked", at_most=plain + 12)
    keep(f"server that {'drips' if drip else 'never answers'}", group="tracking", tried=1, survived=1,
         gets="data stored; 30 s lost; the run says that it is not tracked")  # fmt: skip


def test_a_slow_server_holds_up_a_run_for_a_stated_time_in_all(monkeypatch):
    monkeypatch.setattr(tracking, "SECONDS_IN_ALL", 0.5)
    calls = []

    def slowly(*arguments, **named):
        calls.append(arguments)
        time.sleep(0.2)

    run = TrackedRun(SimpleNamespace(log_batch=slowly), "run")
    started = time.monotonic()
    for step in range(20):
        run.log(Report(metrics={"loss": 1.0}), step=step)
    assert time.monotonic() - started < 2
    assert 2 <= len(calls) <= 4
    assert run.problems == ["MLflow held up this run for 1 s; nothing more was tracked"] or "held up" in run.problems[0]
    assert run.client is None


def test_a_run_that_takes_long_may_be_tracked_for_longer(monkeypatch):
    monkeypatch.setattr(tracking, "SECONDS_IN_ALL", 0.2)
    run = TrackedRun(SimpleNamespace(log_batch=lambda *arguments, **named: time.sleep(0.3)), "run")
    run.began -= 1000
    for step in range(3):
        run.log(Report(metrics={"loss": 1.0}), step=step)
    assert run.problems == []


def test_within_gives_what_the_call_gives_or_raises_what_it_raises():
    assert within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    with pytest.raises(TimeoutError):
        within(5, lambda: (_ for _ in ()).throw(TimeoutError("its own")))
    with pytest.raises(TookTooLong):
        within(0.05, lambda: time.sleep(1))


@pytest.fixture(scope="module")
def empty_database(made_project, tmp_path_factory):
    """What MLflow's SQLite file holds before the first run."""
    path = tmp_path_factory.mktemp("mlflow") / "runs.db"
    named = MlflowSettings(tracking_uri=f"sqlite:///{path}")
    store = Store.of(made_project.settings.model_copy(update={"mlflow": named}))
    store.experiment(store.client(), "corals")
    return path.read_bytes()


@pytest.fixture
def database(project, empty_database):
    """The SQLite file that runs of the project are tracked in, made beforehand."""
    project.change(mlflow=TRACKED)
    path = project.folder / "dagster_home" / "mlflow.db"
    path.write_bytes(empty_database)
    return path


def test_a_database_that_another_process_holds_costs_a_stated_time(project, database, monkeypatch):
    plain, _, _ = materialised(project)
    short(monkeypatch)
    with locked(database):
        require_stored_and_told(project, "MLflow", at_most=plain + 12)
    _, told, shown = materialised(project)
    assert (told, shown) == ([], "")
    keep("database locked", group="tracking", tried=1, survived=1,
         gets="data stored; 30 s lost; the run says that it is not tracked")  # fmt: skip


HARMS = {
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: b"\0" * len(content),
    "first page": lambda content: content[:100] + b"\xff" * 4000 + content[4100:],
    "text": lambda content: b"no database " * 1000,
}


@pytest.mark.parametrize("name", HARMS)
def test_a_damaged_database_costs_no_data(project, database, name, monkeypatch):
    short(monkeypatch, to_begin=20.0)
    versions = project.versions()
    database.write_bytes(HARMS[name](database.read_bytes()))
    _, told, shown = materialised(project)
    assert project.versions() == versions
    assert bool(told) == bool(shown)
    if not told:  # what is empty is begun anew
        with sqlite3.connect(database) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    keep(f"damaged database: {name}", group="tracking", tried=1, survived=1,
         gets="data stored; the run says that it is not tracked")  # fmt: skip


@pytest.fixture
def elsewhere(project, empty_database, tmp_path):
    """A small disk with the database and the artifacts on it."""
    with small_disk(tmp_path / "store", size="24M") as disk:
        project.change(mlflow={**TRACKED, "tracking_uri": f"sqlite:///{disk.folder / 'runs.db'}"})
        (disk.folder / "runs.db").write_bytes(empty_database)
        yield disk


def test_a_store_whose_disk_is_full_costs_no_data_and_tracks_again_when_there_is_room(project, elsewhere):
    versions = project.versions()
    for leave in (0, 1 << 14, 1 << 17):
        elsewhere.fill(leave=leave)
        _, told, shown = materialised(project)
        assert project.versions() == versions
        assert bool(told) == bool(shown)
        assert told or leave
    elsewhere.empty()
    assert materialised(project)[1] == []
    keep("disk of the store full", group="tracking", tried=3, survived=3,
         gets="data stored; the run says that it is not tracked; tracked again once there is room")  # fmt: skip


def test_a_store_that_may_only_be_read_costs_no_data(project, elsewhere):
    elsewhere.read_only()
    require_stored_and_told(project, "Read-only", at_most=60)
    elsewhere.writable()
    assert materialised(project)[1] == []
    keep("disk of the store read-only", group="tracking", tried=1, survived=1,
         gets="data stored; the run says that it is not tracked")  # fmt: skip


@pytest.mark.faults
def test_in_life_a_server_that_never_answers_holds_up_each_asset_for_half_a_minute(project):
    plain, _, _ = materialised(project)
    with slow_server() as uri:
        project.change(mlflow={"tracking_uri": uri})
        require_stored_and_told(project, "MLflow did not answer within 30 s", at_most=plain + 40)
    with slow_server(seconds=15) as uri:
        project.change(mlflow={"tracking_uri": uri})
        seconds, told, _ = materialised(project)
        assert seconds < 20 + 1.2 * (60 + plain) + 10
        assert told
    keep("server that answers after 15 s", group="tracking", tried=1, survived=1,
         gets="data stored; about a minute lost; the run says what is not tracked")  # fmt: skip
