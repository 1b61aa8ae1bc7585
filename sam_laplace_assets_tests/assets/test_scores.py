import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from sam_laplace_assets.assets import scores
from sam_laplace_assets.domain.acquisition import Maps, suggest
from sam_laplace_assets.domain.geometry import to_low_res
from sam_laplace_assets.io_managers import IO_MANAGERS
from sam_laplace_assets.storage.champion import require_champion
from sam_laplace_assets.storage.ledger import Ledger
from sam_laplace_assets.storage.materialise import materialise
from sam_laplace_assets.storage.posterior import open_predictor
from sam_laplace_assets.storage.reports import read_summary
from sam_laplace_assets.storage.rows import load_rows
from sam_laplace_assets.storage.scores import MAPS, SUGGESTIONS
from sam_laplace_assets_tests.small_project import SETTINGS_VARIABLE, add_sample, count_calls, failure, hashes


def folder(project, split="test"):
    return project.paths.report("prompt_scores", split)


def table(project, name, split="test"):
    return pd.read_parquet(folder(project, split) / f"{name}.parquet")


def view(project, name, split="test"):
    return IO_MANAGERS[name].view(project.settings, project.paths, split)


@pytest.fixture(scope="module")
def scored(made_project, tmp_path_factory):
    """A project whose split test is scored; to be read only."""
    project = made_project.copy(tmp_path_factory.mktemp("scored"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        project.use(monkeypatch)
        result = project.materialise("prompt_scores", split="test")
        assert result.success, failure(result)
        yield project


def test_every_prompt_set_of_the_split_has_a_row_of_maps_and_its_suggestions(scored):
    pack, maps, suggestions = view(scored, "pack_io"), table(scored, "maps"), table(scored, "suggestions")
    assert list(maps) == MAPS.names
    assert list(suggestions) == SUGGESTIONS.names
    assert maps.groupby("safe_id", sort=False).size().to_dict() == dict.fromkeys(pack.safe_ids, 2)
    counts = suggestions.groupby(["safe_id", "promptset_id"], sort=False).size()
    assert counts.tolist() == maps["suggestions"].tolist() == [10] * len(maps)
    first = suggestions[suggestions["rank"] == 1]["score"]
    assert first.tolist() == maps["best_score"].tolist()


def test_suggestions_are_those_of_suggest_on_the_maps_of_the_packs_rows(scored):
    pack, prompts, manifest = (view(scored, name) for name in ("pack_io", "prompts_io", "manifest_io"))
    champion = require_champion(scored.paths.posteriors)
    predictor = open_predictor(scored.paths.posteriors / f"run_{champion.run_id}")
    rows, samples = load_rows(pack), {one.key: one for one in manifest}
    suggestions = table(scored, "suggestions")
    for row in range(len(pack)):
        sample = samples[pack.safe_ids[pack.images[row]]]
        prompt_set = prompts.read(sample.key)[row % 2]
        inputs, _ = rows.read(np.array([row]))
        (mean, variance), found = predictor.logits(inputs), predictor.quantities(inputs)
        maps = Maps(*(one[0].numpy() for one in (found.probability, found.predictive_entropy, found.mutual_information,
                                                 variance)))  # fmt: skip
        height, width = sample.size
        clicks = to_low_res(np.array([*prompt_set.pos, *prompt_set.neg]), image_h=height, image_w=width)
        plain = suggest("bald_local", maps, 10, spacing=16, earlier=clicks, earlier_radius=1)
        mine = suggestions[(suggestions["safe_id"] == sample.key)
                           & (suggestions["promptset_id"] == prompt_set.promptset_id)]  # fmt: skip
        assert mine[["x_256", "y_256", "positive"]].values.tolist() == [[one.x, one.y, one.positive] for one in plain]
        assert ((mine["x"] >= 0) & (mine["x"] < width) & (mine["y"] >= 0) & (mine["y"] < height)).all()
        at = (mine["y_256"].to_numpy(), mine["x_256"].to_numpy())
        np.testing.assert_allclose(mine["probability"], torch.sigmoid(mean)[0].numpy()[at], atol=0.05)
        np.testing.assert_allclose(mine["mutual_information"], maps.mutual_information[at], rtol=1e-5, atol=1e-12)


def test_the_report_ranks_images_by_the_mean_score_of_their_best_suggestions(scored):
    facts = read_summary(folder(scored))["facts"]
    means = table(scored, "maps").groupby("sample_id")["best_score"].mean().sort_values(ascending=False)
    assert [row["sample_id"] for row in facts["needs a click most"]] == means.index[:10].tolist()
    assert facts["needs a click most"][0]["score"] == pytest.approx(means.iloc[0])
    told = scored.metadata("prompt_scores", "test")
    assert told["rule"].startswith("bald_local: 10 points, 16 px apart")
    assert told["needs a click most"].startswith("| sample_id | score | expected_iou |")
    assert "data:image/png;base64" in told["next points"]


def test_nothing_is_scored_twice(scored, monkeypatch):
    before = hashes(folder(scored))
    calls = count_calls(monkeypatch, scores, "score")
    assert scored.materialise("prompt_scores", split="test").success
    assert calls["score"] == 0
    assert hashes(folder(scored)) == before


def test_a_launchpad_strategy_is_another_question_and_force_asks_again(project, monkeypatch):
    calls = count_calls(monkeypatch, scores, "score")
    samples = len(view(project, "pack_io").safe_ids)
    result = project.materialise("prompt_scores", split="test", strategy="random", suggestions=3)
    assert result.success, failure(result)
    assert calls["score"] == samples
    assert table(project, "maps")["suggestions"].tolist() == [3] * 2 * samples
    drawn = table(project, "suggestions")[["x", "y"]].values.tolist()
    told = project.metadata("prompt_scores", "test")
    assert "first samples, in no order: the strategy draws at random" in told
    assert project.materialise("prompt_scores", split="test", strategy="random", suggestions=3, force=True).success
    assert calls["score"] == 2 * samples
    assert table(project, "suggestions")[["x", "y"]].values.tolist() == drawn


def test_an_unknown_strategy_of_the_launchpad_is_refused_with_those_that_exist(read_only):
    result = read_only.materialise("prompt_scores", split="test", strategy="oracle")
    assert not result.success
    assert "choose one of bald, bald_region" in failure(result)


def test_a_trial_scores_the_first_samples_and_says_that_it_is_incomplete(project):
    assert project.materialise("prompt_scores", split="test", limit=1).success
    assert table(project, "maps")["sample_id"].nunique() == 1
    assert read_summary(folder(project))["complete"] is False


def test_a_new_sample_is_scored_and_the_others_are_not(project, monkeypatch):
    assert project.materialise("prompt_scores", split="train").success
    add_sample(project.folder, "boxes/new", 90)
    project.refresh("train", assets=["all_samples", "manifest", "prompt_sets", "sam_cache", "training_index",
                                     "hdf5_pack"])  # fmt: skip
    there = set(view(project, "pack_io", "train").safe_ids)
    calls = count_calls(monkeypatch, scores, "score")
    assert project.materialise("prompt_scores", split="train").success
    assert calls["score"] == 1
    assert set(table(project, "maps", "train")["safe_id"]) == there


def test_a_step_that_failed_halfway_goes_on_where_it_was(project, monkeypatch):
    score, seen = scores.score, []

    def dies_at_the_third(source, scorer):
        if len(seen) == 2:
            raise RuntimeError("the process is gone")
        seen.append(source.sample.key)
        return score(source, scorer)

    monkeypatch.setattr(scores, "score", dies_at_the_third)
    plan = plan_of(project, "train")
    store = IO_MANAGERS["scores_io"].store(project.paths, "train")
    with pytest.raises(RuntimeError, match="the process is gone"):
        scores_materialise(plan, store)
    assert read_summary(folder(project, "train")) is None
    monkeypatch.setattr(scores, "score", score)
    calls = count_calls(monkeypatch, scores, "score")
    outcome = scores_materialise(plan_of(project, "train"), IO_MANAGERS["scores_io"].store(project.paths, "train"))
    assert outcome.reused == 2
    assert calls["score"] == len(plan.items) - 2


def plan_of(project, split):
    settings = project.settings
    return scores.plan_scores(split, require_champion(project.paths.posteriors), view(project, "pack_io", split),
                              view(project, "manifest_io", split), view(project, "prompts_io", split), settings,
                              rule=settings.prompting.rule)  # fmt: skip


def scores_materialise(plan, store):
    return materialise(plan, store, progress=lambda *_: None)


KILLED = """
import sys
from pathlib import Path
from sam_laplace_assets_tests.assets.test_scores import plan_of, scores_materialise
from sam_laplace_assets_tests.small_project import SmallProject
from sam_laplace_assets.io_managers import IO_MANAGERS
project = SmallProject(Path(sys.argv[1]))
scores_materialise(plan_of(project, "train"), IO_MANAGERS["scores_io"].store(project.paths, "train"))
"""


def test_a_process_that_is_killed_leaves_whole_samples_that_are_not_computed_again(project, monkeypatch):
    environment = os.environ | {SETTINGS_VARIABLE: str(project.config), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(project.folder)], env=environment)
    there, deadline = folder(project, "train") / "samples", time.monotonic() + 120
    while len(list(there.glob("[!.]*.json"))) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name: path.read_bytes() for path in there.glob("[!.]*.json")}
    assert len(done) >= 3
    assert all(json.loads(content)["found"] for content in done.values())
    calls = count_calls(monkeypatch, scores, "score")
    assert project.materialise("prompt_scores", split="train").success
    assert calls["score"] == len(view(project, "pack_io", "train").safe_ids) - len(done)
    assert all((there / name).read_bytes() == content for name, content in done.items())


def test_another_champion_scores_anew(project):
    first = plan_of(project, "test")
    project.change(training={"num_epochs": 3})
    project.refresh()
    second = plan_of(project, "test")
    assert [one.key for one in first.items] == [one.key for one in second.items]
    assert all(a.parts != b.parts for a, b in zip(first.items, second.items, strict=True))


def test_a_sample_that_is_gone_from_the_prompts_is_listed_and_the_others_are_scored(project):
    ledger = Ledger.load(project.root / "prompt_sets" / "test.ledger.parquet")
    gone = next(iter(ledger.entries))
    ledger.entries.pop(gone)
    ledger.save()
    result = project.materialise("prompt_scores", split="test")
    assert not result.success
    assert f"{gone}: it is in the pack, not among today's samples and prompt sets" in failure(result)
    assert gone not in set(table(project, "maps")["safe_id"])
