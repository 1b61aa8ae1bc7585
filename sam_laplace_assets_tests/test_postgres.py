"""A team's instance in a real PostgreSQL: the whole graph, a backfill, the retraining sensor, and two first starts."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import psutil
import pytest

from sam_laplace_assets.commands.home import IN_POSTGRES
from sam_laplace_assets.jobs import OF_A_SPLIT, STARTED_BY
from sam_laplace_assets.resources.postgres import MLFLOW_SCHEMA, URL_VARIABLE, PostgresUnusable, Server
from sam_laplace_assets.resources.tracking import UI_PORT
from sam_laplace_assets.storage.champion import read_champion, read_history
from sam_laplace_assets_tests.browser import serving
from sam_laplace_assets_tests.postgres import NEEDS_POSTGRES, ROLE, serving_postgres
from sam_laplace_assets_tests.small_project import REPOSITORY, SmallProject, add_sample
from sam_laplace_assets_tests.test_daemon import HEAD, NOTHING, SENSOR, Daemon

pytestmark = [pytest.mark.live, pytest.mark.timeout(600), NEEDS_POSTGRES]
WORKSPACE = str(REPOSITORY / "workspace.yaml")
TRACKED = {"enabled": True, "experiment": "corals"}
SHARED = {"instance": {"storage": "postgres"}, "mlflow": TRACKED}
BACKFILLED = ("test-caves", "test-reefs", "test-wrecks")
FIRST_START = """
import sys, time
from pathlib import Path
import mlflow, dagster_postgres
from sam_laplace_assets.resources.instance_storage import SharedStorage
from sam_laplace_assets.resources.postgres import Server
from sam_laplace_assets.resources.tracking import Store

print("ready", flush=True)
sys.stdin.readline()
server = Server.of_environment()
SharedStorage.from_config_value(None, {"postgres_url": server.url})
Store(server.mlflow_address, Path(sys.argv[1]), server).client()
"""
HELD = """
import time
from sam_laplace_assets.resources.postgres import Server

with Server.of_environment().alone("a purpose"):
    print("held", flush=True)
    time.sleep(600)
"""


class SharedDaemon(Daemon):
    """The real daemon of an instance in PostgreSQL."""

    def __init__(self, project, log):
        super().__init__(project, log)
        with (project.folder / "dagster_home" / "dagster.yaml").open("a") as file:
            file.write(IN_POSTGRES)

    def wait(self, condition):
        """Look once a second: a look at this instance costs more than one at files."""

        def looked():
            time.sleep(0.8)
            return condition()

        return super().wait(looked)


@pytest.fixture(scope="module")
def server():
    with serving_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def in_use(server):
    """The environment names the database of a team."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv(URL_VARIABLE, server.database("team"))
        yield server


@pytest.fixture(scope="module")
def console():
    """What the console commands have said, all together."""
    return []


@pytest.fixture(scope="module")
def team(in_use, console, tmp_path_factory):
    """A project whose whole graph was made from the console."""
    project = without_instance_file(tmp_path_factory.mktemp("team"))
    console.append(run(project))
    return project


@pytest.fixture(scope="module")
def daemon(team):
    daemon = SharedDaemon(team, team.folder / "daemon.log")
    daemon.start()
    yield daemon
    daemon.stop()


def without_instance_file(folder):
    project = SmallProject.new(folder, **SHARED, automation={"debounce_seconds": 2}, champion={"confidence": 0.5})
    (folder / "dagster_home" / "dagster.yaml").unlink()
    return project


def run(project, *words):
    """What `sam-laplace run` says on a project."""
    environment = os.environ | {
        "SAM_LAPLACE_CONFIG": str(project.config), "DAGSTER_HOME": str(project.folder / "dagster_home"),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [str(Path(sys.executable).parent / "sam-laplace"), "run", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def materialised(project):
    """Asset partitions, each as often as it was made."""
    with project.instance() as instance:
        found = [record for key in instance.get_asset_keys()
                 for record in instance.fetch_materializations(key, limit=200).records]  # fmt: skip
    return Counter((record.asset_key.to_user_string(), record.partition_key) for record in found)


def test_the_whole_graph_is_made_and_recorded_in_the_database_alone(team, server):
    made = materialised(team)
    assert set(made.values()) == {1}
    assert {("sam_cache", "train"), ("champion", None), ("evaluation", "test")} <= set(made)
    kinds = "'ASSET_MATERIALIZATION'"
    assert server.ask("team", f"SELECT count(*) FROM event_logs WHERE dagster_event_type = {kinds}") == [(len(made),)]
    assert list(team.folder.rglob("*.db")) == []
    assert (team.folder / "dagster_home" / "dagster.yaml").read_text().endswith(IN_POSTGRES)


def test_every_materialisation_is_tracked_on_the_same_server(team, server):
    tracked = server.ask("team", f"SELECT status, count(*) FROM {MLFLOW_SCHEMA}.runs GROUP BY status")
    assert tracked == [("FINISHED", len(materialised(team)))]
    ((place,),) = server.ask("team", f"SELECT artifact_location FROM {MLFLOW_SCHEMA}.experiments WHERE name = 'corals'")
    assert place == (team.root / "mlartifacts").as_uri()
    assert list((team.root / "mlartifacts").rglob("*.png"))


def test_a_second_run_finds_nothing_to_do(team, console):
    console.append(run(team))
    assert "no step was launched" in console[-1]


def test_both_uis_answer_from_the_database_and_tell_no_password(team, server):
    with serving(team) as address:
        told = ask(f"{address}/graphql", {"query": "{ instance { info } runsOrError { ... on Runs { count } } }"})
        wait_for_port(UI_PORT)  # MLflow is there later than Dagster
        found = ask(f"http://127.0.0.1:{UI_PORT}/api/2.0/mlflow/experiments/search", {"max_results": 9})
        lines = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    with team.instance() as instance:
        assert told["data"]["runsOrError"]["count"] == instance.get_runs_count() > 0
    assert "corals" in [one["name"] for one in found["experiments"]]
    assert any("mlflow server" in line for line in lines)
    assert [text for text in (str(told), str(found), *lines) if any(word in text for word in words_of(server))] == []


def wait_for_port(port):
    """Wait until somebody listens on a port of this machine."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.5)


def ask(address, question):
    """What a server answers to a question in JSON."""
    asked = urllib.request.Request(address, json.dumps(question).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)


def words_of(server):
    """The password as it is meant and as an address writes it."""
    return server.password, quote(server.password, safe="")


@pytest.mark.long
def test_a_backfill_has_several_runs_at_once_and_makes_each_partition_once(team, daemon):
    for seed, split in enumerate(BACKFILLED, start=80):
        add_sample(team.folder / "splits" / split, "boxes/00", seed)
    with team.instance() as instance:
        instance.add_dynamic_partitions("sam_split", list(BACKFILLED))
    before = daemon.newest_event()
    daemon.call("dagster", "job", "backfill", "-w", WORKSPACE, "-j", "prepare_split", "--noprompt",
                "--partitions", ",".join(BACKFILLED))  # fmt: skip
    records = daemon.wait(lambda: ended(team, len(BACKFILLED)))
    assert {record.dagster_run.status for record in records} == {dg.DagsterRunStatus.SUCCESS}
    assert most_at_once(records) >= 2
    assert daemon.made(after=before) == Counter(f"{name}[{split}]" for split in BACKFILLED for name in OF_A_SPLIT)


def ended(project, count):
    """The runs of the backfill, once all have ended."""
    with project.instance() as instance:
        records = [one for one in instance.get_run_records() if "dagster/backfill" in one.dagster_run.tags]
    return records if len([one for one in records if one.end_time]) == count else None


def most_at_once(records):
    """How many runs were under way at the same moment, at most."""
    return max(sum(other.start_time <= one.start_time < other.end_time for other in records) for one in records)


@pytest.mark.long
def test_the_sensor_refreshes_what_changed_and_trains_once(team, daemon):
    team.change(automation={"use_champion_on": []}, mlflow={"enabled": False})  # which take their time
    daemon.call("dagster", "sensor", "start", SENSOR, "-w", WORKSPACE)
    daemon.wait(lambda: SENSOR in [one.instigator_name for one in states(team)])
    daemon.settle()
    before, decided = daemon.newest_event(), len(read_history(team.paths.posteriors))
    add_sample(team.folder, "stars/00", 70)  # the first of its class is for training
    assert NOTHING in daemon.settle()
    made = daemon.made(after=before)
    expected = {f"{name}[train]" for name in OF_A_SPLIT} | {"all_samples", *HEAD, "champion"}
    assert expected <= set(made)
    assert set(made.values()) == {1}
    assert len(read_history(team.paths.posteriors)) == decided + 1
    assert read_champion(team.paths.posteriors) is not None
    with team.instance() as instance:
        (trained, *_) = instance.get_runs(dg.RunsFilter(job_name="train_and_fit"))
    assert trained.tags[STARTED_BY] == SENSOR


def states(project):
    with project.instance() as instance:
        return instance.all_instigator_state()


def test_the_password_is_in_no_file_no_table_and_on_no_command_line(team, daemon, server, console):
    texts = [*console, server.contents("team"), daemon.log.read_text()]
    assert "event_logs" in texts[-2]
    texts += [path.read_bytes().decode("latin-1") for path in team.folder.rglob("*") if path.is_file()]
    texts += [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    assert [text[:200] for text in texts if any(word in text for word in words_of(server))] == []


def test_first_starts_at_once_make_one_schema(server, tmp_path, monkeypatch):
    monkeypatch.setenv(URL_VARIABLE, server.database("rivals"))
    rivals = [first_start(tmp_path / f"machine-{number}") for number in range(2)]
    for rival in rivals:
        assert rival.stdout.readline() == "ready\n"
    threads = [threading.Thread(target=rival.communicate, args=["\n"]) for rival in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [rival.returncode for rival in rivals] == [0, 0]
    for schema in ("public", MLFLOW_SCHEMA):
        assert len(server.ask("rivals", f"SELECT version_num FROM {schema}.alembic_version")) == 1


def first_start(machine):
    """A process that waits for a word to start; no lock of files below its TMPDIR holds on another machine."""
    machine.mkdir()
    return subprocess.Popen([sys.executable, "-c", FIRST_START, str(machine / "mlartifacts")], cwd=REPOSITORY,
                            env=os.environ | {"TMPDIR": str(machine)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


@pytest.mark.parametrize(("wrong", "said"), [
    (lambda server: server.url("nowhere"), 'database "nowhere" does not exist'),
    (lambda server: server.url("postgres", user="eve"), 'password authentication failed for user "eve"'),
    (lambda server: server.url("postgres").replace("%40", "x"), f'password authentication failed for user "{ROLE}"'),
])  # fmt: skip
def test_what_the_server_refuses_is_told_without_the_password(server, wrong, said):
    refusing = Server(wrong(server))
    with pytest.raises(PostgresUnusable, match=re.escape(said)) as refused:
        refusing.require()
    assert server.password not in str(refused.value)


def test_a_user_who_may_make_no_tables_is_told_so(server):
    server.ask("postgres", "CREATE DATABASE foreign_one")
    with pytest.raises(PostgresUnusable, match="permission denied for schema public"):
        from_config(server.url("foreign_one"))


def from_config(url):
    from sam_laplace_assets.resources.instance_storage import SharedStorage

    return SharedStorage.from_config_value(None, {"postgres_url": url})


def test_who_is_alone_keeps_others_waiting_and_who_was_killed_keeps_nobody(server, monkeypatch):
    monkeypatch.setenv(URL_VARIABLE, server.database("locked"))
    monkeypatch.setattr("sam_laplace_assets.resources.postgres.SECONDS_FOR_THE_LOCK", 1)
    this = Server.of_environment()
    with subprocess.Popen([sys.executable, "-c", HELD], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(PostgresUnusable, match="lock for a purpose for more"), this.alone("a purpose"):
            pass
        with this.alone("another purpose"):
            pass
        holder.kill()
    with this.alone("a purpose"):
        pass
