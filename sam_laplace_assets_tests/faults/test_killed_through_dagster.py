"""Every stage's own process is killed once while a real Dagster run has it write; the run's retry goes on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import psutil
import pytest

from sam_laplace_assets.settings import SETTINGS_VARIABLE
from sam_laplace_assets_tests.faults.crashing import ATTACKED, OF_A_SPLIT, WAY, Nursery, differing, tiny_project
from sam_laplace_assets_tests.faults.figures import keep

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
RUNS = [
    (("all_samples",), ""), ((*OF_A_SPLIT, "sanity_panels"), "train"),
    (("validation_pack",), ""), (("head_checkpoint", "laplace_posterior"), "train"), (("champion",), ""),
    (("posterior_sweep",), "train"), (("evaluation", "prompt_scores"), "test"), (("active_prompting",), "test"),
]  # fmt: skip
SECONDS_BETWEEN_LOOKS = 0.002
PATIENCE = 300.0


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A project of which each stage was killed once, and the ids of the processes that were."""
    project = tiny_project(tmp_path_factory.mktemp("killed"))
    deaths = run_and_kill(project, *RUNS[0])
    make_in_peace(project, [(asset, split) for asset, split in WAY if split and split != ATTACKED[asset]])
    for assets, partition in RUNS[1:]:
        deaths |= run_and_kill(project, assets, partition)
    return project, deaths


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a reader gets of each partition that was made in peace."""
    project = tiny_project(tmp_path_factory.mktemp("undisturbed"))
    make_in_peace(project, WAY)
    return read_all(project)


def make_in_peace(project, partitions):
    with Nursery(project.config) as nursery:
        for asset, partition in partitions:
            nursery.ask("carry_out", asset, partition)


def read_all(project):
    with Nursery(project.config) as nursery:
        return {one: nursery.ask("read", *one)["result"] for one in WAY}


def run_and_kill(project, assets, partition):
    """Carry out a run with steps of their own, and kill each of them once; asset -> process that was killed."""
    program = str(Path(sys.executable).parent / "dagster")
    command = [program, "asset", "materialize", "-m", "sam_laplace_assets.definitions", "--select", ",".join(assets)]
    environment = os.environ | {
        SETTINGS_VARIABLE: str(project.config), "DAGSTER_HOME": str(project.folder / "dagster_home"),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    log = project.folder / "run.log"
    with log.open("wb") as told:
        run = subprocess.Popen([*command, *(["--partition", partition] if partition else [])], env=environment,
                               stdout=told, stderr=told)  # fmt: skip
    deaths = {}
    deadline = time.monotonic() + PATIENCE
    while run.poll() is None and time.monotonic() < deadline:
        for asset in assets:
            if ATTACKED[asset] == partition and asset not in deaths:
                deaths |= kill_who_writes(run, asset, project.paths.lease(asset, partition))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if run.poll() is None:
        run.kill()
    assert run.wait() == 0, log.read_text()[-4000:]
    return deaths


def kill_who_writes(run, asset, lease):
    """Kill the step that holds a lease, if one does: a process of that run, and not the run's own."""
    with contextlib.suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
        step = json.loads(lease.read_text())["process"]
        assert step in {process.pid for process in psutil.Process(run.pid).children(recursive=True)}
        os.kill(step, signal.SIGKILL)
        return {asset: step}
    return {}


def test_a_run_whose_every_step_is_killed_ends_with_what_an_undisturbed_one_makes(killed, undisturbed):
    project, deaths = killed
    assert deaths.keys() == ATTACKED.keys()
    assert not differing(read_all(project), undisturbed)
    with project.instance() as instance:
        assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.SUCCESS}
    keep("each step killed once by SIGKILL, in real Dagster runs", group="killed anywhere", tried=len(deaths),
         survived=len(deaths), gets="the same run tries the step again, which goes on")  # fmt: skip
