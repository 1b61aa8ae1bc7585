import json
import os
import shutil
import signal
import subprocess
import sys
import time

import dagster as dg
import numpy as np
import pytest
import torch
import yaml

from sam_laplace_assets.settings import SETTINGS_VARIABLE
from sam_laplace_assets.storage import images
from sam_laplace_assets_tests.small_project import SPLIT_ASSETS, failure
from sam_laplace_assets_tests.storage.fakes import unsealed

FILES = {"config.yaml", "last.pt", "best.pt", "optimizer_last.pt", "scaler_last.pt", "epoch_state.json"}
TRAIN = """
import torch; torch.set_num_threads(1)
import dagster as dg
from sam_laplace_assets.headless import refresh
with dg.DagsterInstance.local_temp({home!r}) as instance:
    refresh(instance, splits=["train"], assets=["head_checkpoint"], tell=print)
"""


def runs(project):
    return sorted((project.root / "checkpoints" / "no_image").glob("run_*"))


def state_of(run):
    return unsealed((run / "epoch_state.json").read_text())


def weights_of(run, name):
    return torch.load(run / name, weights_only=True)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_has_the_originals_files_and_a_name_of_its_own(made_project):
    (run,) = runs(made_project)
    assert {path.name for path in run.iterdir()} == FILES
    assert run.name.startswith("run_train-")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["training"]["seed"] == 0
    assert config["head"] == {"channels_in": 3, "hidden_channels": 4}
    assert not {"num_workers", "memory_budget"} & config["training"].keys()
    assert state_of(run)["epoch"] == 2


def test_a_label_stands_in_the_name(project):
    assert project.materialise("head_checkpoint", split="train", label="v1", num_epochs=1).success
    assert sorted(run.name.split("-")[:2] for run in runs(project))[1][1] == "v1"


def test_a_training_that_was_killed_goes_on_to_the_same_weights(made_project, tmp_path, monkeypatch):
    projects = {name: made_project.copy(tmp_path / name) for name in ("killed", "undisturbed")}
    for project in projects.values():
        project.change(training={"num_epochs": 6, "seed": 3, "early_stop_patience": 6})
    kill_in_the_middle(projects["killed"])
    (killed,) = [
        run for run in runs(projects["killed"]) if state_of(run)["epoch"] < 6 and not state_of(run)["finished"]
    ]
    done = state_of(killed)["epoch"]
    assert 2 <= done < 6
    for project in projects.values():
        project.use(monkeypatch).refresh("train", assets=["head_checkpoint"])
    assert projects["killed"].metadata("head_checkpoint", "train")["epochs made"] == 6 - done
    undisturbed = projects["undisturbed"].root / "checkpoints" / "no_image" / killed.name
    for name in ("best.pt", "last.pt"):
        assert same(weights_of(killed, name), weights_of(undisturbed, name))
    histories = [timeless(state_of(run)["history"]) for run in (killed, undisturbed)]
    assert histories[0] == histories[1]
    versions = [project.version("head_checkpoint", "train") for project in projects.values()]
    assert versions[0] == versions[1]
    with projects["killed"].instance() as instance:
        assert not instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        assert not instance.event_log_storage.get_concurrency_info("gpu").claimed_slots


def timeless(history):
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in history]


def kill_in_the_middle(project):
    """Train in a process of its own, and kill that when two of the epochs are saved."""
    environment = os.environ | {SETTINGS_VARIABLE: str(project.config)}
    known, home = set(runs(project)), str(project.folder / "dagster_home")
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN.format(home=home)], env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not any(epoch_of(run) >= 2 for run in set(runs(project)) - known):
            assert process.poll() is None, "the training ended before it could be killed"
            assert time.monotonic() < deadline, "the training did not get to its second epoch"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def epoch_of(run):
    try:
        return state_of(run)["epoch"]
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("name", ["last.pt", "optimizer_last.pt"])
def test_going_on_without_one_of_the_files_is_a_loud_error(project, name):
    project.materialise("head_checkpoint", split="train", seed=9, num_epochs=1)
    (run,) = [
        run for run in runs(project) if yaml.safe_load((run / "config.yaml").read_text())["training"]["seed"] == 9
    ]
    state = state_of(run) | {"finished": None}
    (run / "epoch_state.json").write_text(json.dumps(state))
    (run / name).unlink()
    result = project.materialise("head_checkpoint", split="train", seed=9, num_epochs=1)
    assert f"{name} is missing" in failure(result)


def test_the_sanity_check_passes_on_real_rows(project):
    result = project.materialise("head_checkpoint", split="train", sanity_check=True, num_epochs=1)
    assert result.success, failure(result)


def test_the_sanity_check_fails_on_masks_that_say_nothing_of_their_images(project):
    stream = np.random.default_rng(0)
    for path in (project.folder / "masks").rglob("*.*"):
        size = images.read_mask(path).shape
        path.unlink()
        np.save(path.with_suffix(".npy"), stream.random(size) < 0.5)
    project.refresh("train", "val", assets=["all_samples", *SPLIT_ASSETS, "validation_pack"])
    result = project.materialise("head_checkpoint", split="train", sanity_check=True)
    assert not result.success
    assert "Sanity check failed: on a tiny batch the loss went from" in failure(result)
    assert "Look at sanity_panels" in failure(result)
    assert len(runs(project)) == 1


def test_early_stopping_ends_a_training_that_does_not_get_better(project):
    project.change(training={"num_epochs": 12, "early_stop_patience": 1, "lr": 1e-9})
    project.refresh("train", assets=["head_checkpoint"])
    assert project.metadata("head_checkpoint", "train")["epochs made"] < 12
    assert project.refresh("train", assets=["head_checkpoint"]) == []


def test_a_training_that_diverges_says_what_to_do(project):
    project.change(training={"lr": 1e30})
    result = project.materialise("head_checkpoint", split="train")
    assert "Training diverged in epoch 1" in failure(result)
    assert "Lower training.lr" in failure(result)


def test_epochs_are_shown_and_the_best_is_named(made_project):
    shown = made_project.metadata("head_checkpoint", "train")
    (run,) = runs(made_project)
    history = state_of(run)["history"]
    best = max(history, key=lambda epoch: epoch["val_iou"])
    assert shown["best epoch"] == best["epoch"]
    assert shown["best validation IoU"] == pytest.approx(best["val_iou"], rel=1e-4)
    assert shown["run"] == run.name.removeprefix("run_")
    for key in ("train_loss", "val_loss", "val_iou", "val_dice", "best_iou", "lr", "patience_left"):
        assert key in history[0]


def test_a_finished_head_is_never_overwritten(project):
    (run,) = runs(project)
    times = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    assert project.materialise("head_checkpoint", split="train").success
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == times
    shutil.rmtree(project.root / "sam_precompute")
    assert project.materialise("head_checkpoint", split="train").success
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == times


def test_a_head_made_with_launchpad_values_leaves_the_ordinary_one_to_come_back(project):
    ordinary = project.version("head_checkpoint", "train")
    project.materialise("head_checkpoint", split="train", lr=0.5, num_epochs=1)
    assert project.version("head_checkpoint", "train") != ordinary
    assert project.refresh("train") == ["laplace_posterior[train]", "champion"]
    assert project.refresh("train", keep_overrides=False)[0] == "head_checkpoint[train]"
    assert project.version("head_checkpoint", "train") == ordinary
