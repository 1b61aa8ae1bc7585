"""Whether a run's process is alive, told of real processes; test_daemon.py has the launcher at work."""

import socket
import subprocess
import sys
import time

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus

from sam_laplace_assets.launcher import PROCESS, WatchfulRunLauncher, is_gone, this_process

HERE = socket.gethostname()


@dg.job
def nothing():
    pass


@pytest.fixture
def instance(tmp_path):
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def started(instance, tags):
    return instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED, tags=tags)


def test_a_run_in_a_living_process_is_not_gone_and_in_a_dead_one_is(instance, process):
    run = started(instance, {PROCESS: f"{HERE}:{process.pid}"})
    assert not is_gone(run, instance)
    process.kill()
    time.sleep(0.2)  # a zombie now: nobody has waited for it
    assert is_gone(run, instance)
    process.wait()
    assert is_gone(run, instance)


def test_a_process_that_began_after_the_run_is_another_one(instance, process):
    run = started(instance, {PROCESS: f"{HERE}:{process.pid}"})
    time.sleep(1.5)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as later:
        instance.add_run_tags(run.run_id, {PROCESS: f"{HERE}:{later.pid}"})
        assert is_gone(instance.get_run_by_id(run.run_id), instance)
        later.kill()


@pytest.mark.parametrize("tags", [{}, {PROCESS: "elsewhere:1"}, {PROCESS: f"{HERE}:"}])
def test_of_a_run_elsewhere_or_of_unknown_process_nothing_is_said(instance, tags):
    assert not is_gone(started(instance, tags), instance)


def test_a_run_in_this_process_is_alive(instance):
    assert not is_gone(started(instance, this_process()), instance)


def test_the_launcher_answers_run_monitoring(instance, process):
    launcher = WatchfulRunLauncher()
    launcher.register_instance(instance)
    assert launcher.supports_check_run_worker_health
    run = started(instance, {PROCESS: f"{HERE}:{process.pid}"})
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    process.kill()
    time.sleep(0.2)
    assert launcher.check_run_worker_health(run).status is WorkerStatus.FAILED
