"""Who stops a run has it stop, at once, and the next one goes on."""

import signal
import time

import pytest

from sam_laplace_assets_tests.faults.concurrent import Rival, all_stopped
from sam_laplace_assets_tests.small_project import SmallProject

SETS = 60


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_by_hand_is_not_tried_again_by_itself(tmp_path, monkeypatch, number):
    project = SmallProject.new(tmp_path, classes={"discs": 15, "boxes": 15},
                               prompt_generation={"num_promptsets_train": SETS}).use(monkeypatch)  # fmt: skip
    run = Rival.running(project, "--split", "train", "--asset", "all_samples", "--asset", "manifest", "--asset",
                        "prompt_sets", "--asset", "sam_cache")  # fmt: skip
    cache = project.root / "sam_precompute" / "train"
    with all_stopped(run):
        while len(list(cache.rglob("meta.json"))) < SETS:
            assert run.process.poll() is None, run.ends()
            time.sleep(0.05)
        run.process.send_signal(number)
        said, _ = run.process.communicate(timeout=60)
    assert run.process.returncode == 130
    assert said.rstrip().endswith("Stopped. Run again to go on from here.")
    made = len(list(cache.rglob("meta.json")))
    assert SETS <= made < 24 * SETS
    assert project.materialise("sam_cache", split="train", limit=made // SETS).success
    assert project.metadata("sam_cache", "train")["prompt sets reused"] >= made - SETS
