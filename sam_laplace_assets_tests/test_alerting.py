import contextlib
import json
import shlex
import shutil
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._grpc.utils import default_sensor_grpc_timeout

from sam_laplace_assets import alerting
from sam_laplace_assets.alerting import FailedRun, is_final, send_alerts
from sam_laplace_assets.definitions import defs
from sam_laplace_assets.jobs import STARTED_BY
from sam_laplace_assets.resources.alerts import COMMAND_SECONDS, WEBHOOK_SECONDS, AlertNotDelivered
from sam_laplace_assets.settings import SETTINGS_VARIABLE
from sam_laplace_assets_tests.small_project import NO_LOGS, SETTINGS

UNATTENDED = {STARTED_BY: "retrain_on_change"}
LAST = UNATTENDED | {"dagster/max_retries": "0"}
RETRIES = {"run_retries": {"enabled": True, "max_retries": 2}}
TOO_SMALL = "Cannot draw 3 points on the object of cat/0017: its mask has 2 such pixels. Lower max_pairs."
SCRIPT = """#!/bin/sh
[ ! -e "$1/broken" ] || { echo 'the mail server is down' >&2; exit 7; }
cat >> "$1/heard" && echo >> "$1/heard"
[ "$(wc -l < "$1/heard")" != "$(cat "$1/breaks_after" 2> /dev/null)" ] || touch "$1/broken"
"""


class Trouble(dg.Config):
    error: str = TOO_SMALL
    expected: bool = True


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["train", "val"]))
def prompt_sets(config: Trouble) -> None:
    raise dg.Failure(config.error, allow_retries=False) if config.expected else RuntimeError(config.error)


@dg.asset(deps=[prompt_sets], partitions_def=prompt_sets.partitions_def)
def panels() -> None:
    pass


class Decided(dg.Config):
    name: str = ""


@dg.asset
def champion(config: Decided) -> dg.MaterializeResult:
    said = {
        "champion": config.name,
        "validation NLL": 0.1,
        "verdict": f"{config.name} it is.",
        "training split": "train",
    }
    return dg.MaterializeResult(metadata=said if config.name else {})


JOBS = dg.Definitions(
    assets=[prompt_sets, panels, champion],
    jobs=[
        dg.define_asset_job("prepare_split", selection=["prompt_sets", "panels"]),
        dg.define_asset_job("choose_champion", selection=["champion"]),
    ],
)


@dataclass
class Lab:
    """An instance, the settings, and a command that notes what it hears."""

    folder: Path
    instance: dg.DagsterInstance
    cursor: str | None = None

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder, **overrides):
        (folder / "tell").write_text(SCRIPT)
        (folder / "tell").chmod(0o755)
        with dg.DagsterInstance.local_temp(str(folder / "home"), overrides=overrides) as instance:
            lab = cls(folder, instance)
            lab.configure(command=lab.command)
            yield lab

    @property
    def command(self):
        return f"{shlex.quote(str(self.folder / 'tell'))} {shlex.quote(str(self.folder))}"

    def configure(self, **alerts):
        (self.folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS | {"alerts": alerts}))

    def tick(self):
        """What the sensor says; its cursor is kept as the daemon keeps it, not at all when it raises."""
        result = send_alerts.evaluate_tick(dg.build_sensor_context(instance=self.instance, cursor=self.cursor))
        self.cursor = result.cursor
        return result.skip_message

    @property
    def heard(self):
        file = self.folder / "heard"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []

    @property
    def heard_runs(self):
        return [alert["facts"]["run_id"] for alert in self.heard]

    def break_hook(self, *, after=None):
        """From now on, or once it has heard this many."""
        (self.folder / ("broken" if after is None else "breaks_after")).write_text(str(after))

    def mend_hook(self):
        for name in ("broken", "breaks_after"):
            (self.folder / name).unlink(missing_ok=True)

    def fail(self, *, split="train", tags=UNATTENDED, **config):
        """Id of a run that fails."""
        result = JOBS.resolve_job_def("prepare_split").execute_in_process(
            {"ops": {"prompt_sets": {"config": config}}},
            instance=self.instance, partition_key=split, tags=tags, raise_on_error=False,
        )  # fmt: skip
        assert not result.success
        return result.run_id

    def choose(self, name):
        """Id of a run that materialises champion."""
        config = {"ops": {"champion": {"config": {"name": name}}}}
        return JOBS.resolve_job_def("choose_champion").execute_in_process(config, instance=self.instance).run_id

    def tags(self, run_id):
        return self.instance.get_run_by_id(run_id).tags


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory):
    """A Dagster home with all its tables; making them takes longest."""
    home = tmp_path_factory.mktemp("empty_home")
    (home / "dagster.yaml").write_text(NO_LOGS)
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        instance.get_runs_count()
        instance.fetch_materializations(champion.key, limit=1)
    return home


@pytest.fixture(autouse=True)
def in_force(tmp_path, monkeypatch, empty_home):
    shutil.copytree(empty_home, tmp_path / "home")
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "config.yaml"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def lab(tmp_path):
    """It listens already."""
    with Lab.open(tmp_path) as lab:
        assert lab.tick() == "Nothing new."
        yield lab


@pytest.fixture
def retrying(tmp_path):
    """Its instance tries runs again by itself."""
    with Lab.open(tmp_path, **RETRIES) as lab:
        lab.tick()
        yield lab


@pytest.fixture
def webhook():
    """A server on loopback; `status` is what it answers."""

    class Post(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.server.status == 200:
                self.server.heard.append(json.loads(body))
            self.send_response(self.server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Post)
    server.status, server.heard, server.address = 200, [], f"http://127.0.0.1:{server.server_port}/s3cret"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_unattended_run_that_fails_is_told_once_in_its_own_words(lab):
    run = lab.fail()
    assert lab.tick() == "Alerts sent: 1."
    assert lab.tick() == "Nothing new."
    [alert] = lab.heard
    assert alert["event"] == "run_failed"
    assert alert["text"] == f"prepare_split of train failed in run {run}: {TOO_SMALL}"
    made = alert["facts"].pop("made")
    assert made.endswith("+00:00")
    assert alert["facts"] == {
        "job": "prepare_split", "partition": "train", "run_id": run, "asset": "prompt_sets", "error": TOO_SMALL,
        "attempts": 1, "started_by": "retrain_on_change",
    }  # fmt: skip


def test_an_error_that_nobody_expected_is_told_too(lab):
    lab.fail(expected=False, error="die Platte ist voll: 容量\nand more")
    lab.tick()
    assert lab.heard[0]["text"].endswith(": RuntimeError: die Platte ist voll: 容量 and more")


def test_a_long_error_is_told_in_short(lab):
    lab.fail(error="words " * 10_000)
    lab.tick()
    assert lab.heard[0]["text"].endswith(" words ...")
    assert len(lab.heard[0]["text"]) < 700
    assert len(lab.heard[0]["facts"]["error"]) == 4000


def test_a_run_that_dies_outside_of_its_steps_is_told(lab):
    run = lab.instance.create_run_for_job(JOBS.resolve_job_def("choose_champion"), tags=UNATTENDED)
    lab.instance.report_run_failed(run, "Detected run worker status UNKNOWN: the process is gone.")
    lab.tick()
    assert lab.heard[0]["text"].endswith(": Detected run worker status UNKNOWN: the process is gone.")
    assert lab.heard[0]["facts"]["asset"] is lab.heard[0]["facts"]["partition"] is None


def test_a_run_that_someone_launched_is_not_told(lab):
    lab.fail(tags={})
    assert lab.tick() == "Nothing new."


def test_a_run_that_was_cancelled_or_went_well_is_not_told(lab):
    run = lab.instance.create_run_for_job(JOBS.resolve_job_def("choose_champion"), tags=UNATTENDED)
    lab.instance.report_run_canceled(run)
    JOBS.resolve_job_def("choose_champion").execute_in_process(instance=lab.instance, tags=UNATTENDED)
    assert lab.tick() == "Nothing new."


def test_the_past_is_not_told_by_the_first_tick(tmp_path):
    with Lab.open(tmp_path) as lab:
        lab.fail()
        lab.choose("old")
        assert lab.tick() == "Nothing new."
        lab.choose("old")
        assert lab.tick() == "Nothing new."
        lab.choose("new")
        lab.tick()
        assert lab.heard[0]["facts"]["previous"] == "old"


def test_nobody_hears_the_past_when_a_hook_is_configured_later(lab):
    lab.configure()
    lab.fail()
    lab.choose("old")
    assert lab.tick() == "Nobody is to hear of anything: set alerts.command or alerts.webhook in the settings."
    lab.configure(command=lab.command)
    new = lab.fail()
    assert lab.tick() == "Alerts sent: 1."
    assert lab.heard_runs == [new]


def test_a_change_of_champion_is_told_with_both_and_the_verdict(lab):
    lab.choose("train-1")
    run = lab.choose("train-2")
    lab.tick()
    first, second = lab.heard
    assert first["text"] == "Champion is train-1 (validation NLL 0.10000). train-1 it is."
    assert second["event"] == "champion_changed"
    assert second["text"] == ("The champion changed from train-1 to train-2 (validation NLL 0.10000). train-2 it is.")
    assert second["facts"].pop("made")
    assert second["facts"] == {
        "champion": "train-2", "previous": "train-1", "nll": 0.1, "training_split": "train",
        "verdict": "train-2 it is.", "run_id": run,
    }  # fmt: skip


def test_a_champion_that_keeps_the_title_is_not_told_and_a_rollback_is(lab):
    for name in ("a", "a", "", "b", "b", "a"):
        lab.choose(name)
    lab.tick()
    assert [alert["facts"]["champion"] for alert in lab.heard] == ["a", "b", "a"]
    lab.choose("a")
    assert lab.tick() == "Nothing new."


def test_more_decisions_than_a_tick_reads_are_told_by_the_next(lab, monkeypatch):
    monkeypatch.setattr(alerting, "DECISIONS_A_TICK", 2)
    for name in ("a", "a", "b"):
        lab.choose(name)
    assert [lab.tick(), lab.tick(), lab.tick()] == ["Alerts sent: 1.", "Alerts sent: 1.", "Nothing new."]


def test_alerts_come_in_the_order_of_what_happened(lab):
    order = [lab.fail(), lab.choose("a"), lab.fail(split="val"), lab.choose("b"), lab.fail()]
    lab.tick()
    assert lab.heard_runs == order


def test_a_hook_that_fails_makes_the_tick_fail_and_hears_of_it_later(lab):
    run = lab.fail()
    lab.break_hook()
    for _ in range(2):
        with pytest.raises(
            AlertNotDelivered, match=r"command \(tell\) ended with exit status 7: the mail server is down"
        ):
            lab.tick()
    lab.mend_hook()
    assert lab.tick() == "Alerts sent: 1."
    assert lab.heard_runs == [run]


def test_a_hook_that_fails_half_way_hears_the_rest_later_and_nothing_twice(lab):
    runs = [lab.fail(), lab.choose("a"), lab.fail(), lab.choose("b")]
    lab.break_hook(after=2)
    assert lab.tick() == (
        "Alerts sent: 2.\nalerts.command (tell) ended with exit status 7: the mail server is down. "
        "The next tick tries again."
    )
    with pytest.raises(AlertNotDelivered):
        lab.tick()
    runs += [lab.fail()]
    lab.mend_hook()
    assert lab.tick() == "Alerts sent: 3."
    assert lab.tick() == "Nothing new."
    assert lab.heard_runs == runs


def test_a_webhook_that_is_down_does_not_keep_the_command_waiting_nor_repeats_it(lab, webhook):
    lab.configure(command=lab.command, webhook=webhook.address)
    lab.tick()
    webhook.status = 503
    runs = [lab.fail(), lab.choose("a")]
    assert "alerts.webhook (http://127.0.0.1:" in lab.tick()
    with pytest.raises(AlertNotDelivered, match="HTTP 503 Service Unavailable") as caught:
        lab.tick()
    assert "s3cret" not in str(caught.value)
    assert lab.heard_runs == runs
    webhook.status = 200
    assert lab.tick() == "Alerts sent: 2."
    assert [alert["facts"]["run_id"] for alert in webhook.heard] == lab.heard_runs == runs
    assert webhook.heard == lab.heard


def test_a_command_that_is_broken_does_not_keep_the_webhook_waiting(lab, webhook):
    lab.configure(command=lab.command, webhook=webhook.address)
    lab.break_hook()
    run = lab.fail()
    assert "the mail server is down" in lab.tick()
    assert [alert["facts"]["run_id"] for alert in webhook.heard] == [run]


def test_a_second_hook_begins_when_it_is_configured(lab, webhook):
    lab.fail()
    lab.tick()
    lab.configure(command=lab.command, webhook=webhook.address)
    run = lab.fail()
    lab.tick()
    assert [alert["facts"]["run_id"] for alert in webhook.heard] == [run]


def test_a_tick_that_takes_long_leaves_the_rest_to_the_next(lab, monkeypatch):
    monkeypatch.setattr(alerting, "BUDGET", 0.0)
    runs = [lab.fail(), lab.fail(split="val")]
    assert lab.tick() == "Alerts sent: 1.\nThe next tick goes on."
    assert lab.tick() == "Alerts sent: 1."
    assert lab.heard_runs == runs


def test_a_tick_with_hooks_that_hang_ends_before_dagster_gives_it_up():
    assert default_sensor_grpc_timeout() > alerting.BUDGET + COMMAND_SECONDS + WEBHOOK_SECONDS


def test_a_run_that_is_waited_for_is_looked_at_for_as_long():
    assert alerting.OVERLAP > alerting.SECONDS_UNTIL_RETRY


def test_of_a_run_that_is_tried_again_only_the_last_attempt_is_told(retrying):
    first = retrying.fail()
    assert retrying.tags(first)["dagster/will_retry"] == "true"
    assert retrying.tick() == "Nothing new."
    last = retrying.fail(tags=LAST | {"dagster/retry_number": "2"})
    assert retrying.tags(last)["dagster/will_retry"] == "false"
    retrying.instance.add_run_tags(first, {"dagster/auto_retry_run_id": last})
    assert retrying.tick() == "Alerts sent: 1."
    assert retrying.tick() == "Nothing new."
    [alert] = retrying.heard
    assert alert["text"].startswith(f"prepare_split of train failed after 3 attempts in run {last}: ")
    assert alert["facts"]["attempts"] == 3


def test_a_run_that_was_to_be_tried_again_and_never_was_is_told_after_a_while(retrying, monkeypatch):
    run = retrying.fail()
    assert retrying.tick() == "Nothing new."
    monkeypatch.setattr(alerting, "SECONDS_UNTIL_RETRY", 0.0)
    assert retrying.tick() == "Alerts sent: 1."
    assert retrying.heard_runs == [run]


def test_a_run_of_which_dagster_has_not_decided_yet_is_waited_for(tmp_path):
    with Lab.open(tmp_path) as lab:
        lab.tick()
        undecided = lab.fail()
        cursor = lab.cursor
    with Lab.open(tmp_path, **RETRIES) as lab:
        lab.cursor = cursor
        assert "dagster/will_retry" not in lab.tags(undecided)
        assert lab.tick() == "Nothing new."
        later = lab.fail(tags=LAST)
        assert lab.tick() == "Alerts sent: 1."
        lab.instance.add_run_tags(undecided, {"dagster/will_retry": "false"})
        assert lab.tick() == "Alerts sent: 1."
        assert lab.heard_runs == [later, undecided]


@pytest.mark.parametrize(
    ("tags", "retries", "at_once", "later"),
    [
        ({}, False, True, True),
        ({}, True, False, True),
        ({"dagster/will_retry": "false"}, True, True, True),
        ({"dagster/will_retry": "true"}, True, False, True),
        ({"dagster/will_retry": "true"}, False, False, True),
        ({"dagster/will_retry": "true", "dagster/auto_retry_run_id": "b"}, True, False, False),
        ({"dagster/will_retry": "false", "dagster/auto_retry_run_id": "b"}, True, True, True),
    ],
)
def test_when_a_failed_run_is_final(tags, retries, at_once, later):
    failed = FailedRun(dg.DagsterRun(job_name="prepare_split", tags=tags), when=1000.0)
    assert is_final(failed, 1000.0, retries=retries) is at_once
    assert is_final(failed, 1000.0 + alerting.SECONDS_UNTIL_RETRY + 1, retries=retries) is later


def test_what_was_told_long_ago_leaves_the_cursor_and_is_not_told_again(lab, monkeypatch):
    monkeypatch.setattr(alerting, "OVERLAP", -1000.0)
    runs = []
    for _ in range(3):
        runs.append(lab.fail())
        time.sleep(0.01)
        lab.tick()
    assert json.loads(lab.cursor)["command"]["runs"] == {}
    monkeypatch.setattr(alerting, "OVERLAP", 3600.0)
    lab.instance.add_run_tags(runs[0], {"note": "seen"})
    assert lab.tick() == "Nothing new."
    assert lab.heard_runs == runs[:1]


def test_a_cursor_of_something_else_is_refused(lab):
    for cursor in ("12", "{", '{"command": {"seen": 3}}', '{"command": 3}'):
        lab.cursor = cursor
        with pytest.raises(ValueError, match=r"The cursor of send_alerts cannot be read: .* Reset it in the UI"):
            lab.tick()


def test_the_sensor_is_on_from_the_start():
    sensor = defs.get_sensor_def("send_alerts")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds == 30
