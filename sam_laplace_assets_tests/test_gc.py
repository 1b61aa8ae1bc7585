"""The command `sam-laplace gc`, on a real project and its Dagster instance."""

import os
import signal
import socket
import subprocess
import sys

import dagster as dg
import pytest
from click.testing import CliRunner
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin

from sam_laplace_assets.cli import cli, main
from sam_laplace_assets.definitions import defs
from sam_laplace_assets.headless import HERE
from sam_laplace_assets.launcher import PROCESS
from sam_laplace_assets.storage.garbage import CONDEMNED
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.rows import load_rows
from sam_laplace_assets_tests.small_project import BASE, hashes, with_fewer_sets

Status = dg.DagsterRunStatus
EVENTS = {
    Status.QUEUED: "PIPELINE_ENQUEUED", Status.STARTING: "PIPELINE_STARTING", Status.STARTED: "PIPELINE_START",
    Status.CANCELING: "PIPELINE_CANCELING", Status.CANCELED: "PIPELINE_CANCELED",
}  # fmt: skip
KILLED = """
import os, signal
from sam_laplace_assets.cli import cli

unlink, left = os.unlink, [{survives}]

def killed(*args, **kwargs):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    unlink(*args, **kwargs)

os.unlink = killed
cli(["gc", "--delete"])
"""


def gc(*arguments):
    """Exit code and output of the command."""
    result = CliRunner().invoke(cli, ["gc", *arguments])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def more_sets(made_project, tmp_path_factory):
    """A project whose split `test` was once given four prompt sets a sample, and is back at two."""
    return with_fewer_sets(made_project, tmp_path_factory.mktemp("littered"), once=4)


@pytest.fixture
def littered(more_sets, tmp_path, monkeypatch, plain_pictures):
    """A copy of it, its settings in force."""
    return more_sets.copy(tmp_path / "littered").use(monkeypatch)


def test_it_finds_nothing_where_all_is_in_use(read_only):
    code, output = gc("--delete")
    assert code == 0
    assert output == f"Nothing to remove: all below {read_only.root} is in use, or may be.\n"


def test_it_lists_by_kind_with_sizes_and_removes_nothing_unless_told_to(littered):
    (littered.root / "prompt_sets" / "test" / "notes.txt").write_text("mine")
    before = hashes(littered.root)
    code, output = gc()
    assert code == 0
    assert hashes(littered.root) == before
    lines = output.splitlines()
    assert lines[0].split() == ["SAM", "outputs", "4", "1.6", "MB"]
    first = lines[1].split()[0]
    assert first.startswith("sam_precompute/test/")
    kilobytes = sum(path.stat().st_size for path in (littered.root / first).iterdir()) / 1000
    assert lines[1] == f"  {first}   {kilobytes:.1f} kB, its prompt set is no longer wanted"
    assert lines[4] == "  and 1 more; --verbose lists them"
    assert lines[-4].startswith("in all ")
    assert lines[-3:] == ["Unknown, left alone: 1", "  prompt_sets/test/notes.txt",
                          "Nothing was removed. To remove it: sam-laplace gc --delete"]  # fmt: skip
    assert "--verbose" not in gc("--verbose")[1]
    assert gc("--verbose")[1].count("promptset_000") == 4


def test_it_removes_what_it_lists_and_leaves_nothing_to_do(littered):
    listed = gc()[1].splitlines()[:-1]
    code, output = gc("--delete")
    assert code == 0
    assert output.splitlines()[:-1] == listed
    assert output.splitlines()[-1].startswith("Removed 4.")
    assert gc()[1].startswith("Nothing to remove")
    assert_whole(littered)


def assert_whole(project):
    for split in BASE:
        load_rows(Pack.open(project.paths.pack(split)))
    assert project.refresh() == []


def test_the_newest_runs_that_it_keeps_are_those_of_the_settings(project):
    project.change(training={"seed": 1})
    project.refresh()
    project.change(training={"seed": 2})
    project.refresh()
    assert "heads" not in gc()[1]
    project.change(retention={"runs": 0})
    assert gc()[1].count("neither in use nor among the newest") >= 2
    assert gc("--delete")[0] == 0
    assert "Nothing to remove" in gc()[1]
    assert_whole(project)


def test_it_refuses_to_remove_while_a_run_is_not_finished(littered):
    before = hashes(littered.root)
    place = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "all")  # without it no run can be queued
    with littered.instance() as instance:
        scan = defs.resolve_job_def("scan")
        run = instance.create_run_for_job(scan, remote_job_origin=place.get_job_origin("scan"))
    refuses_for(run)
    for status in (Status.QUEUED, Status.STARTING, Status.STARTED, Status.CANCELING):
        report(littered, run, status)
        refuses_for(run)
        assert gc()[0] == 0
    assert hashes(littered.root) == before
    report(littered, run, Status.CANCELED)
    assert gc("--delete")[0] == 0


def report(project, run, status):
    with project.instance() as instance:
        instance.report_dagster_event(dg.DagsterEvent(EVENTS[status], job_name="scan"), run.run_id)


def refuses_for(run):
    code, output = gc("--delete")
    assert code == 1
    assert output.startswith(f"Error: Run {run.run_id[:8]} of scan is not finished. Let it end, or end it in the UI")


def test_a_run_whose_process_was_killed_does_not_stop_it(littered):
    ended = subprocess.Popen(["true"])
    ended.wait()
    with littered.instance() as instance:
        tags = HERE | {PROCESS: f"{socket.gethostname()}:{ended.pid}"}
        instance.create_run_for_job(defs.resolve_job_def("scan"), status=Status.STARTED, tags=tags)
    assert gc("--delete")[0] == 0
    assert gc()[1].startswith("Nothing to remove")


def test_a_run_that_begins_meanwhile_stops_it(littered, monkeypatch):
    monkeypatch.setattr("sam_laplace_assets.commands.gc.LOOK_EVERY", 1)
    removed = []

    def begin(one):
        removed.append(one)
        with littered.instance() as instance:
            instance.create_run_for_job(defs.resolve_job_def("scan"), status=Status.STARTED)

    monkeypatch.setattr("sam_laplace_assets.commands.gc.remove", begin)
    assert gc("--delete")[0] == 1
    assert len(removed) == 1


@pytest.mark.parametrize("arguments", [(), ("--delete",)])
def test_it_refuses_without_a_traceback_when_it_cannot_tell_what_is_in_use(project, monkeypatch, arguments):
    (project.paths.posteriors / "current-train.json").write_text("{")
    monkeypatch.setattr(sys, "argv", ["sam-laplace", "gc", *arguments])
    before = hashes(project.root)
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value.code).startswith("Error: ")
    assert "current-train.json is not JSON" in str(ended.value.code)
    assert hashes(project.root) == before


@pytest.mark.parametrize("survives", [0, 1, 6])
def test_a_kill_in_between_leaves_each_thing_whole_or_gone(littered, survives):
    before = contents(littered)
    done = subprocess.run([sys.executable, "-c", KILLED.format(survives=survives)], capture_output=True, check=False,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    after = contents(littered)
    assert any(CONDEMNED in name for name in after)
    kept = {name: held for name, held in after.items() if CONDEMNED not in name}
    assert kept.items() < before.items()  # a folder that has lost a file would differ
    assert "gc was stopped while it removed this" in gc()[1]
    assert gc("--delete")[0] == 0
    assert gc()[1].startswith("Nothing to remove")
    assert_whole(littered)


def contents(project):
    """Folder -> its files and what they hold, of all folders that have files."""
    folders = {}
    for name, digest in hashes(project.root).items():
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder, {})[file] = digest
    return folders
