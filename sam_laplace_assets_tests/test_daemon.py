"""A project that is left to the real daemon: runs are started by nobody, and killed in the middle."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.scheduler.instigation import TickStatus

from sam_laplace_assets.jobs import OF_A_SPLIT, OF_THE_CHAMPION, STARTED_BY
from sam_laplace_assets.settings import SETTINGS_VARIABLE
from sam_laplace_assets.storage.champion import read_champion, read_history
from sam_laplace_assets_tests.small_project import REPOSITORY, SmallProject, add_sample

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]
SENSOR = "retrain_on_change"
NOTHING = "Nothing changed: everything is current."
HEAD = ("head_checkpoint[train]", "laplace_posterior[train]")
PATIENCE = 420.0


class Daemon:
    """The real daemon on a project, with the sensor switched on; runs and their steps are processes of their own."""

    def __init__(self, project, log):
        self.project, self.log = project, log
        self.process = None
        home = project.folder / "dagster_home"
        (home / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text())
        self.environment = os.environ | {
            SETTINGS_VARIABLE: str(project.config), "DAGSTER_HOME": str(home), "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def call(self, *command):
        """Carry out a console command on the project."""
        program = str(Path(sys.executable).parent / command[0])
        return subprocess.run([program, *command[1:]], env=self.environment, check=True, capture_output=True, text=True)

    def start(self):
        workspace = str(REPOSITORY / "workspace.yaml")
        program = str(Path(sys.executable).parent / "dagster-daemon")
        command = ["env", "--default-signal=INT,TERM", program, "run", "-w", workspace]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log,
                                            start_new_session=True)  # fmt: skip

    def stop(self, number=signal.SIGINT):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        self.process.wait(60)

    def made(self, *, after):
        """Asset partitions that were materialised after an event, each as often as it was."""
        with self.project.instance() as instance:
            found = [(key, record) for key in instance.get_asset_keys()
                     for record in instance.fetch_materializations(key, limit=200).records
                     if record.storage_id > after]  # fmt: skip
        names = ((key.to_user_string(), record.partition_key) for key, record in found)
        return Counter(f"{name}[{split}]" if split else name for name, split in names)

    def newest_event(self):
        with self.project.instance() as instance:
            return instance.event_log_storage.get_maximum_record_id() or 0

    def settle(self):
        """Wait until a tick that began later finds everything current; the reasons of all ticks since."""
        began = time.time()
        self.wait(lambda: any(tick.skip_reason == NOTHING for tick in self.ticks(began)))
        return [tick.skip_reason for tick in self.ticks(began)]

    def ticks(self, since):
        """The sensor's ticks that began since, without one that has not ended and so has no reason yet."""
        with self.project.instance() as instance:
            (state,) = [one for one in instance.all_instigator_state() if one.instigator_name == SENSOR]
            ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, after=since)
        return [tick for tick in ticks if tick.status is not TickStatus.STARTED]

    def wait(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {PATIENCE:.0f} s in vain.\n{self.log.read_text()[-4000:]}")
            time.sleep(0.2)
        return found

    def wait_for_step(self, name, *, not_in=None):
        """The processes of a run and of a step of it, once that has begun; of another run than that of `not_in`."""
        return self.wait(lambda: self._step(name, not_in))

    def _step(self, name, not_in):
        with self.project.instance() as instance:
            for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
                events = [log.dagster_event for log in instance.all_logs(run.run_id) if log.dagster_event]
                begun = [one for one in events if one.is_step_start and one.step_key == name]
                worker = next((one.pid for one in events if one.event_type is dg.DagsterEventType.RUN_START), None)
                if begun and worker != not_in:
                    return worker, begun[-1].pid
        return None


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """Data of three base splits, a daemon and a sensor that is on: nothing is made yet."""
    folder = tmp_path_factory.mktemp("left-alone")
    project = SmallProject.new(folder, automation={"debounce_seconds": 2}, champion={"confidence": 0.5})
    daemon = Daemon(project, folder / "daemon.log")
    daemon.call("dagster", "sensor", "start", SENSOR, "-w", str(REPOSITORY / "workspace.yaml"))
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture
def settled(daemon, monkeypatch):
    """The same, when everything is current."""
    daemon.project.use(monkeypatch)
    daemon.settle()
    return daemon


@pytest.fixture
def to_the_title(settled):
    """The same, from here on without what the champion is used for, which takes its time."""
    settled.project.change(automation={"use_champion_on": []})
    return settled


def of(*splits):
    return Counter(f"{name}[{split}]" for split in splits for name in OF_A_SPLIT)


def uses(*splits):
    return Counter(f"{name}[{split}]" for split in splits for name in OF_THE_CHAMPION)


def once(*names):
    return Counter(names)


def test_the_first_fill_makes_each_partition_once_and_trains_once(settled):
    expected = of("train", "val", "test") + once("all_samples", "validation_pack", *HEAD, "champion")
    assert settled.made(after=0) == expected + uses("test")
    with settled.project.instance() as instance:
        runs = instance.get_runs()
    assert {run.tags[STARTED_BY] for run in runs} == {SENSOR}
    assert Counter(run.job_name for run in runs) == once(
        "scan", "prepare_split", "prepare_split", "prepare_split", "name_validation_pack", "train_and_fit",
        "choose_champion", "evaluate",
    )  # fmt: skip


def test_nothing_changed_gives_skips_that_say_so_and_no_run(settled):
    before = settled.newest_event()
    began = time.time()
    settled.wait(lambda: len(settled.ticks(began)) >= 2)
    assert {tick.skip_reason for tick in settled.ticks(began)} == {NOTHING}
    assert settled.newest_event() == before


def test_files_in_two_splits_and_a_new_split_refresh_those_and_train_once(settled):
    project, before = settled.project, settled.newest_event()
    for number in range(60, 62):
        add_sample(project.folder / "splits" / "test-caves", f"caves/{number}", number)
    add_sample(project.folder, "stars/00", 70)  # the first of its class is for training
    add_sample(project.folder, "stars/01", 71)
    splits, holder = {"test-caves", "train"}, champion_of(project)
    settled.settle()
    second = next(row for row in manifest_rows(project) if row["sample_id"] == "stars/01")["split"]
    expected = of(*splits | {second}) + once("all_samples", *HEAD, "champion")
    expected += uses("test-caves") + (once("validation_pack") if second == "val" else Counter())
    made = settled.made(after=before)
    assert made - uses("test") == expected
    again = set(made & uses("test"))
    if champion_of(project) != holder or second == "test":
        assert again == set(uses("test"))
    else:
        assert again == ({"evaluation[test]"} if second == "val" else set())


def manifest_rows(project):
    from sam_laplace_assets.storage.manifest import read_rows

    return read_rows(project.paths.manifests, "all_samples")


@pytest.mark.long
def test_there_and_back_again_refreshes_twice(to_the_title):
    settled = to_the_title
    project = settled.project
    sample = next(row for row in manifest_rows(project) if row["split"] == "test")
    mask = project.folder / "masks" / sample["mask_path"]
    others = (path for path in sorted((project.folder / "masks").rglob(f"*{mask.suffix}")) if path != mask)
    first, content = project.version("hdf5_pack", "test"), mask.read_bytes()
    for change, same in ((next(others).read_bytes(), False), (content, True)):
        before = settled.newest_event()
        mask.write_bytes(change)
        settled.settle()
        assert settled.made(after=before) == of("test") + once("all_samples")
        assert (project.version("hdf5_pack", "test") == first) is same


@pytest.mark.long
def test_a_worse_candidate_is_tried_told_and_does_not_become_champion(to_the_title):
    settled = to_the_title
    project, before = settled.project, settled.newest_event()
    holder = read_champion(project.paths.posteriors)
    project.change(training={"num_epochs": 1, "lr": 1e-7})
    settled.settle()
    assert settled.made(after=before) == once(*HEAD, "champion")
    told = read_history(project.paths.posteriors)[-1]
    assert told["run_id"] == holder.run_id
    assert "keeps the title" in told["verdict"]
    assert all(f"{one['posterior_nll']:.5f}" in told["verdict"] for one in told["candidates"])


def test_a_rollback_is_recorded_and_the_sensor_lets_it_be(to_the_title):
    settled = to_the_title
    project, first = settled.project, read_champion(settled.project.paths.posteriors).run_id
    project.change(training={"num_epochs": 6, "lr": 0.01})
    settled.settle()
    second = read_champion(project.paths.posteriors).run_id
    assert second != first
    assert "given the title by hand" in settled.call("sam-laplace", "rollback").stdout
    settled.settle()
    assert read_champion(project.paths.posteriors).run_id == first
    assert read_history(project.paths.posteriors)[-1]["previous"] == second


@pytest.mark.long
def test_killed_in_the_middle_it_goes_on_to_the_same_end_and_does_nothing_twice(to_the_title, tmp_path, monkeypatch):
    settled = to_the_title
    project = settled.project
    undisturbed = project.copy(tmp_path / "undisturbed")
    for one in (undisturbed, project):
        one.change(prompt_generation={"num_promptsets_train": 24}, training={"num_epochs": 5, "lr": 0.01})
    kept = kill_a_step(settled)
    worker, packed = kill_a_run_worker(settled)
    kept |= packed
    kill_everything(settled, not_in=worker)
    settled.start()
    settled.settle()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    undisturbed.use(monkeypatch)
    undisturbed.refresh()
    assert {**project.versions(), ("champion", None): ""} == {**undisturbed.versions(), ("champion", None): ""}
    assert champion_of(project) == champion_of(undisturbed)


def champion_of(project):
    return read_champion(project.paths.posteriors).run_id


def kill_a_step(settled):
    """Kill sam_cache when a part of the new prompt sets is there; those, with their times."""
    folder = settled.project.paths.sam_cache("train")
    _, step = settled.wait_for_step("sam_cache")
    settled.wait(lambda: len(list(folder.glob("*/promptset_0023/meta.json"))) >= 2)
    os.kill(step, signal.SIGKILL)
    return times(folder.glob("*/promptset_002*/meta.json"))


def kill_a_run_worker(settled):
    """Kill the training and the run that it is a step of: that one, and what had been packed by then."""
    worker, step = settled.wait_for_step("head_checkpoint")
    os.kill(worker, signal.SIGKILL)
    os.kill(step, signal.SIGKILL)
    return worker, times(settled.project.paths.packs.glob("train_shards/*.h5"))


def kill_everything(settled, *, not_in):
    """Kill daemon, code server, run and step at once, while the run that took the killed one's place trains."""
    for process in (*settled.wait_for_step("head_checkpoint", not_in=not_in), settled.process.pid):
        os.kill(process, signal.SIGKILL)
    settled.stop(signal.SIGKILL)


def times(paths):
    return {path: path.stat().st_mtime_ns for path in paths}
