"""Workers of a real Dask scheduler make what this process would make, and nothing is lost or made twice."""

import json
import os
import shutil
import signal
import time
import urllib.request

import pytest

from sam_laplace_assets.compute import cluster
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets_tests.browser import serving
from sam_laplace_assets_tests.compute.lab import kill, lab_in, meanwhile, until
from sam_laplace_assets_tests.faults.concurrent import Rival, all_stopped
from sam_laplace_assets_tests.small_project import REPOSITORY, SmallProject, draw_plainly, failure, hashes

pytestmark = pytest.mark.live
CLASSES = {"discs": 15, "boxes": 15}
SETS = {"num_promptsets_train": 6, "num_promptsets_val": 2, "num_promptsets_test": 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A project whose prompts are drawn."""
    project = SmallProject.new(tmp_path_factory.mktemp("prepared"), classes=CLASSES, prompt_generation=SETS)
    with pytest.MonkeyPatch.context() as patch:
        project.use(patch)
        assert project.materialise("all_samples").success
        for split in ("train", "val"):
            assert project.materialise("manifest", "prompt_sets", split=split).success
    return project


@pytest.fixture(scope="module")
def by_itself(prepared, tmp_path_factory):
    """The same, its cache made in one process."""
    project = prepared.copy(tmp_path_factory.mktemp("alone"))
    with pytest.MonkeyPatch.context() as patch:
        project.use(patch)
        for split in ("train", "val"):
            assert project.materialise("sam_cache", split=split).success
    return project


@pytest.fixture
def lab(tmp_path):
    with lab_in(tmp_path) as lab:
        yield lab


@pytest.fixture
def project(prepared, tmp_path, monkeypatch):
    """A copy that has not asked SAM yet."""
    return prepared.copy(tmp_path / "project").use(monkeypatch)


def over(lab, project, **compute):
    project.change(compute={"scheduler": lab.address, "chunk_seconds": 1.0, **compute})


def cached(project, split="train"):
    """Files of the cache -> when they were written."""
    folder = project.root / "sam_precompute" / split
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and ".tmp" not in path.name}


def same_as(project, alone, split="train"):
    """Whether both caches hold the same, byte by byte; what a killed worker was writing is for `gc`."""
    both = [hashes(one.root / "sam_precompute" / split) for one in (project, alone)]
    mine, other = ({path: sha for path, sha in found.items() if ".tmp-" not in path} for found in both)
    return mine == other


def test_two_workers_make_two_partitions_at_once_as_one_process_does(lab, project, by_itself):
    home = project.folder / "dagster_home" / "dagster.yaml"
    home.write_text(home.read_text().replace("default_limit: 1", "default_limit: 2"))
    lab.scheduler()
    lab.worker()
    lab.worker()
    over(lab, project)
    both = [Rival.running(project, "--split", split, "--asset", "sam_cache") for split in ("train", "val")]
    with all_stopped(*both):
        said = [one.ends() for one in both]
    assert "chunks, made by 2 workers" in said[0]
    for split in ("train", "val"):
        assert same_as(project, by_itself, split)
        assert project.version("sam_cache", split) == by_itself.version("sam_cache", split)
    before = cached(project)
    lab.end()  # nothing is to be made, so nobody is asked
    assert project.materialise("sam_cache", split="train").success
    assert cached(project) == before


def test_what_a_killed_worker_had_is_made_by_the_other_and_nothing_twice(lab, project, by_itself):
    lab.scheduler()
    victim = lab.worker()
    over(lab, project, chunk_seconds=60.0)
    seen = {}

    def attack():
        until(lambda: len(list((project.root / "sam_precompute" / "train").rglob("meta.json"))) > 30)
        kill(victim)
        finished = [path.parent.parent for path in cached(project) if path.name == "meta.json"]
        whole = {folder for folder in finished if finished.count(folder) == SETS["num_promptsets_train"]}
        seen.update({path: when for path, when in cached(project).items() if path.parent.parent in whole})
        lab.worker()

    with meanwhile(attack):
        result = project.materialise("sam_cache", split="train")
    assert result.success, failure(result)
    assert same_as(project, by_itself)
    assert len(seen) > 30
    assert seen.items() <= cached(project).items()


def test_a_scheduler_that_dies_fails_the_run_in_words_and_the_next_one_goes_on(lab, project, by_itself, monkeypatch):
    scheduler = lab.scheduler()
    lab.worker()
    over(lab, project)

    def attack():
        until(lambda: len(cached(project)) > 60)
        kill(scheduler)

    with meanwhile(attack):
        result = project.materialise("sam_cache", split="train")
    assert not result.success
    assert f"The Dask scheduler {lab.address} does not answer any more" in failure(result)
    monkeypatch.setattr(cluster, "SECONDS_TO_CONNECT", 2)
    time.sleep(3.0)  # the worker ends its item
    before = cached(project)
    again = project.materialise("sam_cache", split="train")
    assert not again.success
    assert f"No Dask scheduler answers at {lab.address}" in failure(again)
    monkeypatch.undo()
    project.use(monkeypatch)
    lab.scheduler()
    lab.worker()
    over(lab, project)
    assert project.materialise("sam_cache", split="train").success
    assert same_as(project, by_itself)
    kept = [path for path, when in cached(project).items() if before.get(path) == when]
    assert len(kept) > 50


def test_the_workers_of_a_run_that_is_stopped_stop_too(lab, project):
    lab.scheduler()
    lab.worker()
    over(lab, project, chunk_seconds=300.0)
    project.change(prompt_generation={"num_promptsets_train": 60})
    assert project.materialise("prompt_sets", split="train").success
    run = Rival.running(project, "--split", "train", "--asset", "sam_cache")
    with all_stopped(run):
        until(lambda: len(cached(project)) > 60)
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(timeout=60) == 130
        time.sleep(5.0)
        before = cached(project)
        time.sleep(5.0)
        assert cached(project) == before
        assert len(before) < 24 * 4 * 60


LAUNCH = """mutation Launch($run: ExecutionParams!) {
  launchRun(executionParams: $run) { __typename ... on LaunchRunSuccess { run { runId } } }
}"""
TERMINATE = "mutation Stop($id: String!) { terminateRun(runId: $id) { __typename } }"
STATUS = "query Status($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


@pytest.mark.timeout(400)
def test_a_run_that_is_cancelled_in_the_ui_stops_its_chunks(lab, project):
    lab.scheduler()
    lab.worker()
    over(lab, project, chunk_seconds=300.0)
    project.change(prompt_generation={"num_promptsets_train": 60})
    assert project.materialise("prompt_sets", split="train").success
    selector = {"repositoryLocationName": "sam_laplace", "repositoryName": "__repository__", "jobName": "prepare_split",
                "assetSelection": [{"path": ["sam_cache"]}]}  # fmt: skip
    tags = [{"key": "dagster/partition", "value": "train"}]
    run = {"selector": selector, "mode": "default", "runConfigData": "{}", "executionMetadata": {"tags": tags}}
    with serving(project) as address:
        launched = ask(address, LAUNCH, run=run)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        number = launched["run"]["runId"]
        until(lambda: len(cached(project)) > 60)
        ask(address, TERMINATE, id=number)
        until(lambda: ask(address, STATUS, id=number)["runOrError"]["status"] == "CANCELED")
        time.sleep(5.0)
        before = cached(project)
        time.sleep(5.0)
        assert cached(project) == before
        assert len(before) < 24 * 4 * 60


def ask(address, query, **variables):
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"]


def test_a_worker_with_other_code_is_refused_naming_both(lab, project, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(REPOSITORY / "sam_laplace_assets", other / "sam_laplace_assets")
    (other / "sam_laplace_assets" / "domain" / "addition.py").write_text("MORE = True\n")
    lab.scheduler()
    lab.worker(code=other)
    over(lab, project)
    result = project.materialise("sam_cache", split="train")
    assert not result.success
    assert failure(result).count("sam_laplace_assets 0.1.0 (code ") == 2
    assert "Install the same on both" in failure(result)
    assert not cached(project)


def test_a_worker_with_another_sam_is_refused_naming_both(lab, project, by_itself):
    lab.scheduler()
    lab.worker()
    over(lab, project)
    assert project.materialise("sam_cache", split="val").success  # the worker has loaded its SAM
    checkpoint = project.folder / "sam.pt"
    before = checkpoint.stat()
    changed = bytearray(checkpoint.read_bytes())
    changed[-1] ^= 1
    checkpoint.write_bytes(bytes(changed))
    os.utime(checkpoint, ns=(before.st_atime_ns, before.st_mtime_ns))  # the worker's is the old one, as a copy would be
    Project.of(project.settings).checkpoint_digests.unlink()
    result = project.materialise("sam_cache", split="train")
    assert not result.success
    assert "would make sam_cache[train] with another checkpoint_sha256" in failure(result)
    assert not cached(project)


def test_only_workers_that_offer_what_is_needed_are_asked(lab, project, capfd):
    lab.scheduler()
    lab.worker()
    over(lab, project, scheduler=str(lab.file), resources={"GPU": 1})

    def help_out():
        time.sleep(6.0)
        assert not cached(project, "val")
        lab.worker("--resources", "GPU=1")

    with meanwhile(help_out):
        result = project.materialise("sam_cache", split="val")
    assert result.success, failure(result)
    assert "1 workers are there, none of them offers GPU=1" in "".join(capfd.readouterr())


def test_scores_and_experiments_are_the_same_by_workers(made_project, lab, tmp_path, monkeypatch):
    draw_plainly(monkeypatch)
    tried = {"strategies": ["random", "entropy"], "clicks": 3}
    alone = made_project.copy(tmp_path / "alone").use(monkeypatch)
    lab.scheduler()
    lab.worker()
    wanted = {}
    for assets in ("prompt_scores", "active_prompting"):
        alone.change(active_prompting=tried)
        assert alone.materialise(assets, split="test", force=True).success
        wanted[assets] = alone.version(assets, "test")
    project = made_project.copy(tmp_path / "project").use(monkeypatch)
    project.change(active_prompting=tried)
    over(lab, project)
    for assets, version in wanted.items():
        result = project.materialise(assets, split="test", force=True)
        assert result.success, failure(result)
        assert project.version(assets, "test") == version
