import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from sam_laplace_assets.assets import active_prompting as asset
from sam_laplace_assets.domain.acquisition import STRATEGIES as ALL_STRATEGIES
from sam_laplace_assets.domain.interaction import area_under
from sam_laplace_assets.headless import end_killed_runs
from sam_laplace_assets.settings import SETTINGS_VARIABLE, SettingsError, load_settings
from sam_laplace_assets_tests.small_project import add_sample, count_calls, failure

STRATEGIES = ["entropy", "random", "oracle"]
CLICKS = 4


@pytest.fixture
def small(project):
    project.change(active_prompting={"strategies": STRATEGIES, "clicks": CLICKS, "seeds": 2, "click_jitter": 3})
    return project


def folder(project, split="test"):
    return project.root / "reports" / "active_prompting" / split


def table(project, name, split="test"):
    return pd.read_parquet(folder(project, split) / f"{name}.parquet")


def facts(project, split="test"):
    return json.loads((folder(project, split) / "summary.json").read_text())["facts"]


def samples(project, split="test"):
    return {path.name: path.read_bytes() for path in (folder(project, split) / "samples").glob("[!.]*.json")}


@pytest.fixture
def made(small):
    assert small.materialise("active_prompting", split="test").success
    return small


def test_the_tables_say_the_same_as_the_traces(made):
    clicks = table(made, "clicks")
    traces = {name.removesuffix(".json"): json.loads(content)["found"] for name, content in samples(made).items()}
    assert set(clicks["sample_id"].str.replace("/", "__")) == set(traces)
    for (sample_id, strategy, seed), rows in clicks.groupby(["sample_id", "strategy", "seed"]):
        found = traces[sample_id.replace("/", "__")][f"{strategy}/{seed}"]
        assert rows[["x", "y"]].to_numpy().tolist() == found["points"]
        assert rows["click"].tolist() == list(range(1, len(rows) + 1))
        for name in ("positive", "head_iou", "sam_iou"):
            assert rows[name].tolist() == found[name]
    assert set(clicks["strategy"]) == set(STRATEGIES)
    assert set(clicks["seed"]) == {0, 1}


def padded(clicks, source):
    """(I, S, N) curves of one strategy."""
    runs = clicks.sort_values("click").groupby(["sample_id", "seed"])[f"{source}_iou"].apply(list)
    curves = np.array([[*one, *[one[-1]] * (CLICKS - len(one))] for one in runs])
    return curves.reshape(-1, 2, CLICKS)


@pytest.mark.parametrize("source", ["head", "sam"])
def test_curves_areas_and_differences_follow_from_the_clicks(made, source):
    clicks, curves, summary, differences = (
        table(made, name) for name in ("clicks", "curves", "summary", "differences")
    )
    areas = {}
    for strategy in STRATEGIES:
        its = padded(clicks[clicks["strategy"] == strategy], source)
        told = curves[(curves["strategy"] == strategy) & (curves["source"] == source)]
        np.testing.assert_allclose(told["mean_iou"], its.mean(axis=(0, 1)))
        areas[strategy] = area_under(its.reshape(-1, CLICKS)).reshape(-1, 2).mean(axis=1)
        (row,) = summary[(summary["strategy"] == strategy) & (summary["source"] == source)].to_dict("records")
        assert row["area"] == pytest.approx(areas[strategy].mean())
        assert row["low"] <= row["area"] <= row["high"]
        assert row["reached85"] == pytest.approx((its >= 0.85).any(axis=-1).mean())
        assert row["final_iou"] == pytest.approx(its[..., -1].mean())
    its = differences[(differences["source"] == source) & (differences["metric"] == "area")]
    assert {*zip(its["strategy"], its["against"], strict=True)} == {
        ("random", "entropy"), ("oracle", "entropy"), ("entropy", "random"), ("oracle", "random"),
    }  # fmt: skip
    for row in its.to_dict("records"):
        assert row["difference"] == pytest.approx((areas[row["strategy"]] - areas[row["against"]]).mean())
        assert row["n_images"] == 2


def test_all_strategies_start_from_one_click(made):
    first = table(made, "clicks").query("click == 1")
    assert first["positive"].all()
    assert (first.groupby(["sample_id", "seed"])[["x", "y", "head_iou", "sam_iou"]].nunique() == 1).all(axis=None)


def test_the_reader_sees_the_verdict_first(made):
    told = made.metadata("active_prompting", "test")
    assert next(iter(told)) == "verdict"
    assert "has the largest area under the head's mean IoU over clicks" in told["verdict"]
    assert "oracle, which knows the truth, comes to" in told["verdict"]
    assert told["head trained on"] == facts(made)["head trained on"]
    assert told["seconds a click"] > 0
    assert {"curves", "differences", "clicks", "strategies, by the head's masks"} <= told.keys()
    assert {path.name for path in folder(made).glob("*.png")} == {"curves.png", "differences.png", "clicks.png"}


def test_a_second_materialisation_plays_nothing(made, monkeypatch):
    version, before = made.version("active_prompting", "test"), samples(made)
    calls = count_calls(monkeypatch, asset.Player, "play")
    assert made.materialise("active_prompting", split="test").success
    assert not calls
    assert made.version("active_prompting", "test") == version
    assert samples(made) == before
    assert "seconds a click" not in made.metadata("active_prompting", "test")


def test_making_all_again_gives_the_same_data_version_whatever_time_it_took(made):
    version = made.version("active_prompting", "test")
    assert made.materialise("active_prompting", split="test", force=True).success
    assert made.version("active_prompting", "test") == version


def test_another_strategy_or_seed_is_played_without_the_others(made, monkeypatch):
    before, played = table(made, "clicks"), []
    original = asset.play
    monkeypatch.setattr(asset, "play", lambda *args, **named: played.extend(args[3]) or original(*args, **named))
    assert made.materialise("active_prompting", split="test", strategies=[*STRATEGIES, "bald"], seeds=3).success
    assert {run.name for run in played} == {"bald/0", "bald/1", "bald/2", "entropy/2", "random/2", "oracle/2"}
    after = table(made, "clicks")
    kept = after[after["strategy"].isin(STRATEGIES) & (after["seed"] < 2)].reset_index(drop=True)
    order = ["sample_id", "strategy", "seed", "click"]
    pd.testing.assert_frame_equal(*(one.sort_values(order).reset_index(drop=True) for one in (kept, before)))
    assert "bald" in made.metadata("active_prompting", "test")


def test_what_is_not_wanted_any_more_leaves_the_report_and_comes_back_for_nothing(made, monkeypatch):
    assert made.materialise("active_prompting", split="test", strategies=["random"]).success
    assert set(table(made, "clicks")["strategy"]) == {"random"}
    calls = count_calls(monkeypatch, asset.Player, "play")
    assert made.materialise("active_prompting", split="test").success
    assert set(table(made, "clicks")["strategy"]) == set(STRATEGIES)
    assert not calls


def test_another_default_strategy_is_told_without_playing(made, monkeypatch):
    made.change(prompting={"strategy": "random"})
    calls = count_calls(monkeypatch, asset.Player, "play")
    assert made.materialise("active_prompting", split="test").success
    assert not calls
    assert "random" in facts(made)["compared"]


@pytest.mark.parametrize("change", [{"clicks": 3}, {"click_jitter": 1.0}])
def test_another_protocol_plays_everything_again(made, change, monkeypatch):
    calls = count_calls(monkeypatch, asset.Player, "play")
    assert made.materialise("active_prompting", split="test", **change).success
    assert calls["play"] == 2


def test_a_sample_whose_mask_is_empty_at_256_is_named_and_the_others_are_kept(small):
    speck = np.zeros((600, 600), dtype=bool)
    speck[0, 0] = True
    small.change(data={"splits_root": "splits", "max_failed_fraction": 0.0}, prompt_generation={"max_pairs": 1})
    split = small.folder / "splits" / "test-new"
    add_sample(split, "boxes/good", 1)
    add_sample(split, "boxes/speck", 2, image=np.full((600, 600, 3), 90, np.uint8), mask=speck)
    assert small.materialise("manifest", split="test-new").success
    result = small.materialise("active_prompting", split="test-new")
    assert "boxes__speck: The mask of boxes/speck is empty at 256x256" in failure(result)
    assert list(samples(small, "test-new")) == ["boxes__good.json"]
    small.change(data={"max_failed_fraction": 0.5})
    assert small.materialise("active_prompting", split="test-new").success


def test_a_trial_plays_the_first_samples_only(small):
    assert small.materialise("active_prompting", split="train", limit=1).success
    assert len(samples(small, "train")) == 1
    assert "trial" in small.metadata("active_prompting", "train")


def test_a_strategy_that_does_not_exist_is_refused_by_name(small):
    result = small.materialise("active_prompting", split="test", strategies=["bold"])
    assert "There is no strategy 'bold'" in failure(result)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"strategies": ["bold"]}, "active_prompting.strategies: There is no strategy 'bold'"),
        ({"strategies": ["random", "random"]}, "active_prompting.strategies: random is listed more than once"),
        ({"strategies": []}, "active_prompting.strategies: "),
        ({"clicks": 21}, "active_prompting.clicks: "),
        ({"seeds": 0}, "active_prompting.seeds: "),
        ({"seeds": [1, 1]}, "active_prompting.seeds: 1 is listed more than once"),
        ({"spacing": 1}, "active_prompting.spacing: unknown key"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_key(project, change, text):
    project.change(active_prompting=change)
    with pytest.raises(SettingsError, match=text.replace(".", r"\.")):
        load_settings(project.config)


def test_a_number_of_seeds_stands_for_as_many_from_zero(project):
    project.change(active_prompting={"seeds": 3})
    assert project.settings.active_prompting.seeds == [0, 1, 2]
    assert set(project.settings.active_prompting.strategies) == set(ALL_STRATEGIES)


PLAY = """
import dagster as dg
from sam_laplace_assets.headless import run_job
with dg.DagsterInstance.local_temp({home!r}) as instance:
    instance.add_dynamic_partitions("sam_split", ["train"])
    run_job("prompt_actively", instance, partition="train")
"""


def kill_in_the_middle(project):
    """Play in a process of its own, and kill that when three samples are stored; gives what it stored."""
    environment = os.environ | {SETTINGS_VARIABLE: str(project.config), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", PLAY.format(home=str(project.folder / "dagster_home"))], env=environment,
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while len(samples(project, "train")) < 3:
            assert process.poll() is None, "the experiment ended before it could be killed"
            assert time.monotonic() < deadline, "the experiment did not get to its third sample"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return samples(project, "train")


def test_an_experiment_that_was_killed_goes_on_to_the_same_data_version(small, tmp_path, monkeypatch):
    undisturbed = small.copy(tmp_path / "undisturbed")
    done = kill_in_the_middle(small)
    assert 3 <= len(done) < 12
    assert not (folder(small, "train") / "summary.json").exists()
    small.use(monkeypatch)
    with small.instance() as instance:
        end_killed_runs(instance)
    calls = count_calls(monkeypatch, asset.Player, "play")
    assert small.materialise("active_prompting", split="train").success
    assert calls["play"] == 12 - len(done)
    assert {name: samples(small, "train")[name] for name in done} == done
    assert undisturbed.use(monkeypatch).materialise("active_prompting", split="train").success
    versions = [one.version("active_prompting", "train") for one in (small, undisturbed)]
    assert versions[0] == versions[1]
    assert facts(small, "train") == facts(undisturbed, "train")
