import hashlib
import json

import dagster as dg
import pytest
import torch

from sam_laplace_assets.definitions import defs
from sam_laplace_assets.storage import weights
from sam_laplace_assets.storage.champion import read_champion, read_history
from sam_laplace_assets_tests.small_project import add_sample, failure
from sam_laplace_assets_tests.storage.fakes import unsealed


def title(project):
    return read_champion(project.paths.posteriors)


def pointer(project, kind):
    return json.loads(getattr(project.paths, f"{kind}_pointer")("train").read_text())


def test_the_first_posterior_wins(read_only):
    (decision,) = read_history(read_only.paths.posteriors)
    assert title(read_only).run_id == pointer(read_only, "posterior")["run_id"]
    assert "is the first champion" in decision["verdict"]
    assert decision["previous"] is None


def test_the_decision_names_its_pack_and_both_scores(read_only):
    (decision,) = read_history(read_only.paths.posteriors)
    assert decision["validation_pack"] == read_only.version("hdf5_pack", "val")
    (candidate,) = decision["candidates"]
    assert {"posterior_nll", "head_nll", "sam_nll", "head_iou", "sam_iou"} <= candidate.keys()
    assert read_only.metadata("champion")["verdict"] == decision["verdict"]
    assert read_only.metadata("champion")["validation NLL"] == pytest.approx(candidate["posterior_nll"], rel=1e-4)


def test_a_worse_candidate_does_not_move_the_title(project):
    holder = title(project)
    project.change(training={"lr": 1e-8, "num_epochs": 1})
    project.refresh()
    assert title(project).run_id == holder.run_id
    decision = read_history(project.paths.posteriors)[-1]
    assert "keeps the title" in decision["verdict"]
    assert len(decision["candidates"]) == 2
    assert project.metadata("champion")["against the holder"].startswith("| run_id | difference | low | high |")
    assert (project.paths.posteriors / f"run_{holder.run_id}" / "posterior_meta.json").exists()
    assert project.refresh() == []


def test_an_equal_candidate_does_not_move_the_title(project):
    holder = title(project)
    result = project.materialise("laplace_posterior", split="train", label="twin")
    assert result.success, failure(result)
    project.change(champion={"allow_overrides": True})
    assert project.materialise("champion").success
    decision = read_history(project.paths.posteriors)[-1]
    assert {one["run_id"] for one in decision["candidates"]} > {holder.run_id}
    assert title(project).run_id == holder.run_id


def test_a_better_candidate_takes_the_title_and_the_old_one_stays_on_disk(project):
    holder = title(project)
    project.change(training={"num_epochs": 3})
    project.refresh()
    winner, decision = title(project), read_history(project.paths.posteriors)[-1]
    scores = {one["run_id"]: one["posterior_nll"] for one in decision["candidates"]}
    assert winner.run_id == pointer(project, "posterior")["run_id"] != holder.run_id
    assert winner.nll == scores[winner.run_id] < scores[holder.run_id]
    assert decision["previous"] == holder.run_id
    assert "takes the title" in decision["verdict"]
    assert (project.paths.posteriors / f"run_{holder.run_id}" / "laplace_state.pt").exists()


@pytest.fixture
def twice_decided(project):
    """A project whose title has moved once; with it, the first holder and the second."""
    first = title(project).run_id
    project.change(training={"num_epochs": 3})
    project.refresh()
    return project, first, title(project).run_id


def test_rolling_back_gives_the_title_to_the_one_before_and_is_recorded(twice_decided):
    project, first, second = twice_decided
    result = project.materialise("champion", title_to="previous")
    assert result.success, failure(result)
    assert title(project).run_id == first
    told = read_history(project.paths.posteriors)[-1]
    assert told["previous"] == second
    assert told["rejected"] == [second]
    assert f"{first} (validation NLL" in told["verdict"]
    assert f"{second} (" in told["verdict"]
    assert "by hand" in told["verdict"]
    assert {one["run_id"] for one in told["candidates"]} == {first, second}


def test_the_one_that_lost_by_hand_does_not_win_again_by_itself(twice_decided):
    project, _, second = twice_decided
    assert project.materialise("champion", title_to="previous").success
    assert project.refresh() == ["evaluation[test]", "prompt_scores[test]"]
    assert project.refresh() == []
    assert project.materialise("champion").success
    add_sample(project.folder, "discs/90", 90)
    project.refresh()
    assert title(project).run_id != second
    assert second in read_history(project.paths.posteriors)[-1]["rejected"]


def test_a_title_given_by_hand_goes_to_the_one_that_is_named_and_lifts_its_rejection(twice_decided):
    project, first, second = twice_decided
    assert project.materialise("champion", title_to="previous").success
    assert project.materialise("champion", title_to=second).success
    assert title(project).run_id == second
    assert read_history(project.paths.posteriors)[-1]["rejected"] == [first]
    assert project.refresh() == []


@pytest.mark.parametrize(("title_to", "told"), [
    ("previous", "the only posterior that has held the title"),
    ("train-nobody", "There is no posterior train-nobody. Those that are there: train-"),
])  # fmt: skip
def test_a_title_that_cannot_be_given_is_refused_and_stays(project, title_to, told):
    before = title(project)
    assert told in failure(project.materialise("champion", title_to=title_to))
    assert title(project) == before
    assert len(read_history(project.paths.posteriors)) == 1


def test_who_lost_the_title_by_hand_is_named_where_there_is_nobody_to_go_back_to(twice_decided):
    project, _, second = twice_decided
    assert project.materialise("champion", title_to="previous").success
    assert f"All others that held it lost it by hand: {second}. Name one to give it back." in failure(
        project.materialise("champion", title_to="previous")
    )


def test_a_rollback_that_is_retried_goes_back_once(twice_decided):
    project, first, second = twice_decided
    began = project.materialise("champion", title_to="previous")
    assert read_history(project.paths.posteriors)[-1]["by_hand"] == began.run_id
    assert retry(project, began, title_to="previous").success
    assert retry(project, began, title_to=first).success
    assert [one["run_id"] for one in read_history(project.paths.posteriors)] == [first, second, first]


def retry(project, began, **config):
    """The run again, as the UI re-executes it."""
    with project.instance() as instance:
        return defs.resolve_job_def("choose_champion").execute_in_process(
            instance=instance,
            asset_selection=[dg.AssetKey("champion")],
            run_config={"ops": {"champion": {"config": config}}},
            tags={"dagster/root_run_id": began.run_id},
            raise_on_error=False,
        )


def test_a_lost_history_does_not_cost_the_title(project):
    before = title(project)
    (project.paths.posteriors / "champion_history.jsonl").unlink()
    result = project.materialise("champion")
    assert result.success, failure(result)
    assert title(project) == before


def lose(project, run_id):
    folder = project.paths.posteriors / f"run_{run_id}"
    folder.rename(project.folder / folder.name)


def test_a_candidate_that_is_lost_is_left_out_and_named(project, capfd):
    holder = title(project).run_id
    project.change(training={"lr": 1e-8, "num_epochs": 1})
    project.refresh("train", "val", assets=["head_checkpoint", "laplace_posterior"])
    candidate = pointer(project, "posterior")["run_id"]
    assert candidate != holder
    lose(project, candidate)
    result = project.materialise("champion")
    assert result.success, failure(result)
    told = f"{candidate} was left out: run_{candidate} is not there."
    assert title(project).run_id == holder
    assert told in read_history(project.paths.posteriors)[-1]["verdict"]
    assert f"champion: {told}" in capfd.readouterr().err


def test_a_holder_that_is_lost_is_put_back_or_loses_by_hand(twice_decided):
    project, first, second = twice_decided
    lose(project, second)
    told = failure(project.materialise("champion"))
    assert f"{second} holds the title and cannot be opened: run_{second} is not there." in told
    assert "Put that run back, or give the title to another: sam-laplace rollback <run id>." in told
    result = project.materialise("champion", title_to=first)
    assert result.success, failure(result)
    assert title(project).run_id == first
    assert f"{second} (which cannot be opened) lost it" in read_history(project.paths.posteriors)[-1]["verdict"]


def test_the_holder_is_told_that_it_holds_the_title(project):
    assert "holds the title already" in failure(project.materialise("champion", title_to=title(project).run_id))


def test_a_history_from_before_there_were_rejections_is_read(project):
    path = project.paths.posteriors / "champion_history.jsonl"
    told = unsealed(path.read_text())
    del told["rejected"]
    path.write_text(json.dumps(told | {"version": 1}) + "\n")
    assert project.materialise("champion").success
    assert title(project).run_id == told["run_id"]


def test_a_head_made_with_launchpad_values_wins_only_if_asked_to(project):
    holder = title(project)
    result = project.materialise("head_checkpoint", "laplace_posterior", split="train", num_epochs=3)
    assert result.success, failure(result)
    assert project.materialise("champion").success
    assert title(project).run_id == holder.run_id
    project.change(champion={"allow_overrides": True})
    assert project.materialise("champion").success
    assert title(project).run_id == pointer(project, "posterior")["run_id"] != holder.run_id


def test_without_a_posterior_there_is_nothing_to_choose_from(new_project):
    new_project.refresh("val")
    assert "There is no posterior to choose from. Materialise laplace_posterior first." in failure(
        new_project.materialise("champion")
    )


def test_todays_validation_pack_judges(project):
    before = title(project)
    project.change(prompt_generation={"num_promptsets_val": 3})
    project.refresh()
    after = title(project)
    assert after.validation_pack == project.version("hdf5_pack", "val") != before.validation_pack
    assert read_history(project.paths.posteriors)[-1]["candidates"][0]["posterior_nll"] != pytest.approx(before.nll)


def test_a_posterior_of_another_head_is_refused(project):
    champion = title(project)
    folder = project.paths.posteriors / f"run_{champion.run_id}"
    state = torch.load(folder / "laplace_state.pt", weights_only=True)
    state["laplace"]["mean"] += 1
    content = weights.dump(state)
    (folder / "laplace_state.pt").write_bytes(content)
    meta = unsealed((folder / "posterior_meta.json").read_text())
    meta["sha256"]["laplace_state.pt"] = hashlib.sha256(content).hexdigest()
    (folder / "posterior_meta.json").write_text(json.dumps(meta))
    project.change(champion={"confidence": 0.5})
    assert "belongs to another head" in failure(project.materialise("champion"))
