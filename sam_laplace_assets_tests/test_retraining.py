"""Ticks of the sensor in this process, with real runs between them; test_daemon.py has the real daemon."""

import shutil
import time
from collections import Counter

import dagster as dg
import numpy as np
import pytest

from sam_laplace_assets import retraining
from sam_laplace_assets.checks.findings import Finding
from sam_laplace_assets.definitions import defs
from sam_laplace_assets.domain.sam import FrozenSam
from sam_laplace_assets.jobs import OF_A_SPLIT, OF_THE_CHAMPION, STARTED_BY
from sam_laplace_assets.retraining import RUN_KEY, next_step
from sam_laplace_assets.storage.champion import read_champion, read_history
from sam_laplace_assets.storage.manifest import read_rows
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets_tests.small_project import add_sample, count_calls

NOTHING = "Nothing changed: everything is current."
PACKED = {f"{name}[{{}}]" for name in OF_A_SPLIT}


class Unattended:
    """A project that is left to the sensor; files count as settled."""

    def __init__(self, project):
        self.project, self.finding, self.now = project, retraining.Finding(), time.time() + 3600

    def tick(self, *, after=3600.0, now=None):
        self.now += after
        with self.project.instance() as instance:
            step = next_step(self.project.settings, instance, last=self.finding, now=now or self.now,
                             started_by="a test")  # fmt: skip
        self.finding = step.finding or self.finding
        return step

    def carry_out(self, step):
        """Start what is asked for, as the daemon would; the asset partitions that were made, in order."""
        return [name for request in step.requests for name in self._run(request)]

    def settle(self, *, steps=8):
        """Tick until nothing is asked for: what was made, step by step, and the last word."""
        made = []
        for _ in range(steps):
            step = self.tick()
            if not step.requests:
                return made, step.why
            made.append(self.carry_out(step))
        raise AssertionError(f"it does not come to an end: {step.why}")

    def _run(self, request):
        with self.project.instance() as instance:
            result = defs.resolve_job_def(request.job_name).execute_in_process(
                instance=instance, partition_key=request.partition_key, asset_selection=request.asset_selection,
                run_config=request.run_config, tags={**request.tags, RUN_KEY: request.run_key}, raise_on_error=False,
            )  # fmt: skip
            events = result.get_asset_materialization_events()
        suffix = f"[{request.partition_key}]" if request.partition_key else ""
        return [f"{event.asset_key.to_user_string()}{suffix}" for event in events]


@pytest.fixture
def unattended(project):
    return Unattended(project)


def of(split, *assets):
    return {f"{name}[{split}]" for name in assets or OF_A_SPLIT}


def uses(split):
    return [f"{name}[{split}]" for name in OF_THE_CHAMPION]


def to_the_title(made):
    """The steps before the champion is put to use."""
    return [step for step in made if not all(name.startswith(OF_THE_CHAMPION) for name in step)]


HEAD = ["head_checkpoint[train]", "laplace_posterior[train]"]


def test_a_first_fill_goes_stage_by_stage_and_trains_once(new_project):
    made, why = Unattended(new_project).settle()
    assert made[0] == ["all_samples"]
    assert set(made[1]) == of("train") | of("val") | of("test")
    assert made[2:] == [["validation_pack"], HEAD, ["champion"], [*uses("test")]]
    assert why == NOTHING


def test_when_nothing_changed_the_tick_says_so_and_the_next_one_does_not_look(unattended, monkeypatch):
    assert unattended.settle() == ([], NOTHING)
    looked = count_calls(monkeypatch, dg.DagsterInstance, "fetch_materializations")
    assert unattended.tick(after=20).why == NOTHING
    assert looked["fetch_materializations"] == 0
    assert unattended.tick().why == NOTHING
    assert looked["fetch_materializations"] > 0


def test_files_in_two_splits_and_a_new_split_refresh_these_and_train_once(unattended, monkeypatch):
    project = unattended.project
    unattended.settle()
    kept = {split: project.version("hdf5_pack", split) for split in ("train", "val", "test")}
    add_sample(project.folder / "splits" / "test-caves", "caves/0", 50)
    add_sample(project.folder / "splits" / "test-caves", "caves/1", 51)
    for number in range(60, 63):
        add_sample(project.folder, f"discs/{number}", number)
    encoded = count_calls(monkeypatch, FrozenSam, "prepare")
    made, why = unattended.settle()
    assert encoded["prepare"] == 5
    refreshed = {split for split in kept if project.version("hdf5_pack", split) != kept[split]}
    assert made[0] == ["all_samples"]
    assert set(made[1]) == set().union(*(of(split) for split in {*refreshed, "test-caves"}))
    assert Counter(name for step in made for name in step if "[" not in name or name in HEAD) == Counter(
        ["all_samples", *(["validation_pack"] if "val" in refreshed else []), *HEAD, "champion"]
    )
    assert to_the_title(made)[-1] == ["champion"]
    assert {name for name in made[-1] if "caves" in name} == set(uses("test-caves"))
    assert why == NOTHING


def test_a_removed_sample_leaves_its_partition_and_is_trained_without(unattended):
    project = unattended.project
    sample = next(row for row in rows_of(project) if row["split"] == "train")
    for side in ("image", "mask"):
        (project.folder / f"{side}s" / sample[f"{side}_path"]).unlink()
    made, why = unattended.settle()
    assert made[0] == ["all_samples"]
    assert "hdf5_pack[train]" in made[1]
    assert set(made[1]) <= of("train")
    assert to_the_title(made)[2:] == [HEAD, ["champion"]]
    assert sample["safe_id"] not in Pack.open(project.paths.pack("train")).safe_ids
    assert why == NOTHING


def test_going_there_and_back_refreshes_each_time(unattended):
    project = unattended.project
    first = project.version("hdf5_pack", "train")
    for seed, again in ((5, False), (777, True)):
        project.change(prompt_generation={"prompt_seed": seed})
        made, why = unattended.settle()
        assert of("train") - {"manifest[train]"} <= set(made[0]), why
        assert why == NOTHING
        assert (project.version("hdf5_pack", "train") == first) is again


def test_files_that_are_still_being_written_are_waited_for(unattended):
    add_sample(unattended.project.folder, "discs/90", 90)
    step = unattended.tick(now=time.time())
    assert step.requests == ()
    assert "waits until nothing has been written for 60 s" in step.why
    unattended.project.change(automation={"debounce_seconds": 0})
    assert [request.job_name for request in unattended.tick(now=time.time()).requests] == ["scan"]


def test_a_run_under_way_is_waited_for(unattended):
    with unattended.project.instance() as instance:
        run = instance.create_run_for_job(defs.resolve_job_def("scan"), status=dg.DagsterRunStatus.STARTED)
        add_sample(unattended.project.folder, "discs/90", 90)
        assert unattended.tick().why == f"Waits for run {run.run_id[:8]} of scan."


def test_a_launchpad_override_is_kept_and_not_fought(unattended):
    project = unattended.project
    assert project.materialise("prompt_sets", split="train", prompt_seed=5).success
    made, why = unattended.settle()
    assert of("train") - of("train", "manifest", "prompt_sets") == set(made[0])
    assert why == NOTHING
    mine = project.version("prompt_sets", "train")
    assert project.metadata("prompt_sets", "train")["overrides"] == {"prompt_seed": 5}
    add_sample(project.folder, "discs/90", 90)
    unattended.settle()
    assert project.metadata("prompt_sets", "train")["overrides"] == {"prompt_seed": 5}
    assert project.version("prompt_sets", "train") != mine
    assert project.materialise("prompt_sets", split="train").success
    assert "overrides" not in project.metadata("prompt_sets", "train")


def test_a_sample_that_fails_and_is_put_up_with_does_not_keep_the_sensor_busy(unattended):
    project = unattended.project
    project.change(data={"max_failed_fraction": 0.5})
    sample = next(row for row in rows_of(project) if row["split"] == "train" and row["mask_path"].endswith(".npy"))
    mask = np.zeros((sample["mask_h"], sample["mask_w"]), bool)
    mask[0, :2] = True  # fewer pixels than points
    np.save(project.folder / "masks" / sample["mask_path"], mask)
    made, why = unattended.settle()
    assert to_the_title(made)[-1] == ["champion"]
    assert why == NOTHING


def test_a_pack_that_a_check_refuses_is_not_trained_on(unattended, monkeypatch):
    project = unattended.project
    project.change(prompt_generation={"num_promptsets_train": 3})
    monkeypatch.setattr("sam_laplace_assets.checks.pack._look_at_values", lambda split, project: Finding("NaN"))
    made, why = unattended.settle()
    assert set(made[0]) >= {"hdf5_pack[train]"}
    assert not set(HEAD) & {name for step in made for name in step}
    assert "prepare_split train. Not asked again" in why


def test_what_fails_late_in_a_stage_is_asked_for_once(unattended, monkeypatch):
    project = unattended.project
    project.change(prompt_generation={"prompt_seed": 5})
    monkeypatch.setattr(FrozenSam, "prepare", broken)
    made, why = unattended.settle()
    assert [sorted(step) for step in made] == [sorted(f"prompt_sets[{split}]" for split in ("train", "val", "test"))]
    assert "sam_cache[train]" in why


def broken(self, image):
    raise ValueError("the GPU has fallen off")


def test_another_attempt_that_dagster_has_announced_is_waited_for(unattended):
    project = unattended.project
    project.change(training={"num_epochs": 3})
    with project.instance() as instance:
        run = instance.create_run_for_job(defs.resolve_job_def("train_and_fit"), status=dg.DagsterRunStatus.STARTED)
        instance.report_run_failed(run, "killed")
        instance.add_run_tags(run.run_id, {"dagster/will_retry": "true"})
    assert unattended.tick().why == f"Waits for another attempt of run {run.run_id[:8]} of train_and_fit."


def test_a_trial_of_val_is_left_alone_and_told(unattended):
    project = unattended.project
    assert project.materialise("sam_cache", split="val", limit=1).success
    made, why = unattended.settle()
    assert "validation_pack is left alone while sam_cache[val] is a trial" in why
    assert "validation_pack" not in {name for step in made for name in step}


def rows_of(project):
    return read_rows(project.paths.manifests, "all_samples")


def test_a_trial_is_left_a_trial(unattended):
    project = unattended.project
    assert project.materialise("sam_cache", split="test", limit=1).success
    unattended.settle()
    assert "trial" in project.metadata("sam_cache", "test")
    assert unattended.settle() == ([], NOTHING)


def test_forcing_once_is_not_remembered(unattended):
    assert unattended.project.materialise("prompt_sets", split="test", force=True).success
    assert "overrides" not in unattended.project.metadata("prompt_sets", "test")


def test_what_failed_is_told_and_not_asked_again_until_something_changes(unattended):
    project = unattended.project
    (project.root / "training_data" / "no_image" / "validation_pack.json").write_text('{"version": 99}')
    _, why = unattended.settle()
    assert why.startswith("validation_pack: ")
    assert "Not asked again: run " in why
    assert "ended as FAILURE" in why
    assert unattended.settle() == ([], why)
    (project.root / "training_data" / "no_image" / "validation_pack.json").unlink()
    assert unattended.settle()[1] == NOTHING


def test_a_split_that_fails_does_not_keep_the_others_from_the_title(unattended):
    project = unattended.project
    folder = add_sample(project.folder / "splits" / "train-dark", "caves/0", 50)[1].parents[2]
    shutil.rmtree(folder / "masks")
    project.change(training={"num_epochs": 3})
    made, why = unattended.settle()
    assert to_the_title(made)[-1] == ["champion"]
    assert "manifest[train-dark]: " in why
    assert "Not asked again" in why


def test_a_worse_candidate_is_told_with_both_scores_and_does_not_win(unattended):
    project = unattended.project
    holder = read_champion(project.paths.posteriors)
    project.change(training={"lr": 1e-7, "num_epochs": 1})
    made, _ = unattended.settle()
    assert made == [HEAD, ["champion"]]
    told = read_history(project.paths.posteriors)[-1]
    assert told["run_id"] == holder.run_id
    assert "keeps the title" in told["verdict"]
    assert all(f"{one['posterior_nll']:.5f}" in told["verdict"] for one in told["candidates"])


def test_what_is_asked_for_says_who_asked(unattended):
    unattended.project.change(training={"num_epochs": 3})
    (request,) = unattended.tick().requests
    assert request.tags[STARTED_BY] == "a test"
    assert request.job_name == "train_and_fit"
    assert request.partition_key == "train"
