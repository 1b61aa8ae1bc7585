import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sam_laplace_assets.assets.evaluation import EvaluationConfig, groups_of, plan_evaluation
from sam_laplace_assets.assets.evaluation_findings import fit_scale, worst_rows
from sam_laplace_assets.assets.evaluation_pictures import WorstCase, draw_reliability, draw_risk_coverage, draw_worst
from sam_laplace_assets.assets.evaluation_report import read_evaluation
from sam_laplace_assets.domain.comparison import METHODS
from sam_laplace_assets.domain.metrics import binary_entropy
from sam_laplace_assets.domain.pack import MemoryRows
from sam_laplace_assets.storage.champion import read_champion, require_champion
from sam_laplace_assets.storage.evaluation import ASSET, TABLES, read_tables
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.posterior import open_predictor
from sam_laplace_assets.storage.reports import Findings, Layout, read_summary, write_report
from sam_laplace_assets.storage.rows import load_rows
from sam_laplace_assets_tests.small_project import copied, failure
from sam_laplace_assets_tests.storage.fakes import unsealed


def evaluate(project, split="test", **config):
    """Materialise it, and give the folder of the report."""
    result = project.materialise("evaluation", split=split, **{"resamples": 200} | config)
    assert result.success, failure(result)
    return project.paths.report("evaluation", split)


@pytest.fixture(scope="module")
def evaluated_once(made_project, tmp_path_factory):
    """A project of which each base split is evaluated; to be read only."""
    with copied(made_project, tmp_path_factory.mktemp("evaluated")) as project:
        for split in ("train", "val", "test"):
            evaluate(project, split)
    return project


@pytest.fixture
def evaluated(evaluated_once, monkeypatch):
    """The same, its settings in force."""
    return evaluated_once.use(monkeypatch)


def facts_of(project, split):
    return read_summary(project.paths.report("evaluation", split))["facts"]


def tables_of(project, split):
    return read_tables(project.paths.report("evaluation", split), "parquet")


def plan_of(project, split="test", **config):
    paths = project.paths
    packs = [Pack.open(paths.pack(name)) for name in (split, "val")]
    return plan_evaluation(
        split, require_champion(paths.posteriors), *packs, project.settings, EvaluationConfig(**config)
    )


def picked(frame, **wanted):
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    return frame


def test_an_evaluation_is_a_folder_of_tables_pictures_and_a_summary_whose_first_fact_is_the_verdict(evaluated):
    folder = evaluated.paths.report("evaluation", "test")
    names = {path.name for path in folder.iterdir()}
    assert names == {*(f"{name}.parquet" for name in TABLES), "reliability.png", "risk_coverage.png",
                     "worst_images.png", "summary.json"}  # fmt: skip
    told, facts = evaluated.metadata("evaluation", "test"), facts_of(evaluated, "test")
    assert next(iter(json.loads((folder / "summary.json").read_text())["facts"])) == "verdict"
    assert next(iter(told)) == "verdict"
    assert told["verdict"] == facts["verdict"]
    assert "scaled SAM logits" in facts["verdict"]
    assert facts["champion"] == read_champion(evaluated.paths.posteriors).run_id
    assert "too narrow" in told["warnings"]
    for title in ("reliability", "risk coverage", "worst images"):
        assert told[title].startswith("![")


def test_rows_hold_every_prompt_set_once_a_method_with_the_names_of_its_sample(evaluated):
    found = tables_of(evaluated, "test")
    rows, pack = found["rows"], Pack.open(evaluated.paths.pack("test"))
    methods = [name for name in METHODS if name in set(rows["method"])]
    assert methods[:4] == ["sam", "sam_scaled", "head", "laplace"]
    assert len(rows) == len(pack) * len(methods)
    assert set(rows["sample_id"]) == {key.replace("__", "/") for key in pack.safe_ids}
    assert set(rows["class"]) <= {"shapes/discs", "boxes"}
    for _, its in rows.groupby("method"):
        np.testing.assert_array_equal(its["n_pos"], pack.n_pos)
        np.testing.assert_array_equal(its["k_pairs"], pack.n_pos)  # prompt sets are balanced by default
        assert not its.duplicated(["safe_id", "promptset_id"]).any()
    assert rows[rows["method"] == "sam"]["auroc_variance"].isna().all()


def test_it_scores_as_the_champion_was_scored(evaluated):
    """The decision's own scoring, of SAM and the head exactly, of the posterior up to the probit approximation."""
    metrics = picked(tables_of(evaluated, "val")["metrics"], scope="per_image")
    (decision,) = [json.loads(line) for line in
                   (evaluated.paths.posteriors / "champion_history.jsonl").read_text().splitlines()]  # fmt: skip
    (candidate,) = decision["candidates"]
    for method, name, close in (("sam", "sam", 1e-6), ("head", "head", 1e-6), ("laplace", "posterior", 1e-3)):
        for metric in ("nll", "iou"):
            (row,) = picked(metrics, method=method, metric=metric).to_dict("records")
            assert row["value"] == pytest.approx(candidate[f"{name}_{metric}"], rel=close), (method, metric)


def test_the_validation_pack_is_told_to_be_fitted_on_itself_and_another_is_not(evaluated):
    assert any("Fitted on itself" in one for one in facts_of(evaluated, "val")["warnings"])
    facts = facts_of(evaluated, "test")
    assert not any("Fitted on itself" in one for one in facts["warnings"])
    assert facts["sam_scale"]["fitted_on"] == "val"
    trained = facts_of(evaluated, "train")["warnings"]
    assert any("trained on this very pack" in one for one in trained)


def test_a_posterior_that_is_worse_says_so_in_the_verdict_and_as_the_first_warning(evaluated):
    facts = facts_of(evaluated, "test")
    difference = read_tables(evaluated.paths.report("evaluation", "test"), "parquet")["differences"]
    (row,) = picked(difference, ours=facts["ours"], theirs="sam_scaled", scope="per_image", metric="nll").to_dict(
        "records"
    )
    assert row["ours_is"] == facts["ours_is"]
    assert (facts["ours_is"] == "worse") == (row["low"] > 0)
    assert (facts["ours_is"] == "worse") == (facts["warnings"][0] == facts["verdict"])
    assert f"difference {row['value']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}]" in facts["verdict"]


def test_nothing_is_made_again_until_something_changed(project):
    evaluate(project)
    version = project.version("evaluation", "test")
    evaluate(project)
    assert version == project.version("evaluation", "test")
    assert project.metadata("evaluation", "test")["reports reused"] == 1
    assert plan_of(project).items[0].parts != plan_of(project, band=2).items[0].parts
    assert plan_of(project).items[0].parts != plan_of(project, resamples=300).items[0].parts
    assert plan_of(project, "val").items[0].parts != plan_of(project).items[0].parts
    evaluate(project, force=True)
    assert project.metadata("evaluation", "test")["reports made"] == 1
    assert project.version("evaluation", "test") == version


def test_a_trial_is_evaluated_and_told_to_be_one(project):
    result = project.materialise("prompt_sets", "sam_cache", "training_index", "hdf5_pack", split="test", limit=1)
    assert result.success, failure(result)
    facts = read_summary(evaluate(project))["facts"]
    assert facts["complete"] is False
    assert any("A trial" in one for one in facts["warnings"])
    assert facts["ours_is"] is None
    assert facts["verdict"].startswith("One image cannot tell")
    assert "incomplete" in project.metadata("evaluation", "test")


def test_groups_of_the_settings_are_drawn_again_as_a_whole(project):
    ids = ["boxes/01", "boxes/02", "shapes/discs/01"]
    assert groups_of(ids, project.settings.data) is None
    project.change(data={"group_by": "^boxes"})
    assert groups_of(ids, project.settings.data) == ("group boxes", "group boxes", "sample shapes/discs/01")


def test_images_that_cannot_be_read_are_drawn_as_sams_logits(project):
    for path in (project.folder / "images").rglob("*.*"):
        path.unlink()
    facts = read_summary(evaluate(project))["facts"]
    assert {one["drawn_on"] for one in facts["worst"]} == {"SAM's logits"}


def test_a_posterior_that_is_used_with_a_factor_is_judged_with_it(project):
    champion = read_champion(project.paths.posteriors).run_id
    path = project.paths.posteriors / f"run_{champion}" / "posterior_meta.json"
    before = plan_of(project).items[0].parts
    scale = {"value": 0.7, "nll_before": 0.2, "nll_after": 0.1, "applied": True}
    path.write_text(json.dumps(unsealed(path.read_text()) | {"logit_scale": scale}))
    assert plan_of(project).items[0].parts != before
    facts = read_summary(evaluate(project))["facts"]
    assert facts["ours"] == "laplace_scaled"
    assert "he scaled Laplace predictive" in facts["verdict"]
    assert facts["laplace_scale"] == 0.7


def test_logits_without_a_best_factor_are_left_as_they_are():
    sure = MemoryRows(torch.full((1, 3, 4, 4), 5.0).half(), torch.ones(1, 4, 4, dtype=torch.bool), np.zeros(1, int))
    found = fit_scale(sure, logit_clip=20.0, batch_size=1)
    assert found["value"] == 1.0
    assert "wrong side" in found["failed"]


def test_the_worst_images_are_distinct_and_worst_first():
    iou, images = np.array([0.5, 0.1, 0.2, 0.9, 0.1, 0.3]), np.array([0, 0, 1, 1, 2, 3])
    assert worst_rows(iou, images, n=3) == [1, 4, 2]
    assert worst_rows(iou, images, n=10) == [1, 4, 2, 5]


def test_tables_as_csv_hold_the_same(evaluated, tmp_path):
    found = tables_of(evaluated, "test")
    write_report(tmp_path, Layout(ASSET, TABLES, "csv"), Findings(found), provenance="1")
    for name, frame in read_tables(tmp_path, "csv").items():
        pd.testing.assert_frame_equal(frame, found[name], check_dtype=False)


def test_the_report_holds_metrics_and_small_tables_for_tracking(evaluated):
    report = read_evaluation(evaluated.paths.report("evaluation", "test"), table_format="parquet")
    assert {
        "nll_laplace",
        "band_nll_sam",
        "pooled_ece_head",
        "auroc_mutual_information_laplace",
    } <= report.metrics.keys()
    assert {"metrics.parquet", "summary.json"} <= report.files.keys()
    assert {row["method"] for row in report.tables["scores, means over images"]} >= {"sam", "laplace"}


def test_pictures_are_drawn_without_values_too():
    maps = {
        name: np.zeros((256, 256))
        for name in (
            "mask",
            "predicted",
            "probability",
            "entropy",
            "mutual_information",
            "sam_logits",
            "pos_map",
            "neg_map",
        )
    }
    case = WorstCase("cat/1", 0, 1, 1, 0.0, None, maps)
    for png in (draw_worst(case), draw_reliability([{"method": "sam", "region": "image", "bin_low": 0.0,
                "bin_high": 1 / 15, "mean_probability": 0.01, "frequency": 0.0, "pixels": 9}]),
                draw_risk_coverage([])):  # fmt: skip
        with Image.open(io.BytesIO(png)) as picture:
            picture.load()


def test_sampled_and_quadrature_mutual_information_agree_on_a_row_of_the_pack(evaluated):
    predictor = open_predictor(
        evaluated.paths.posteriors / f"run_{require_champion(evaluated.paths.posteriors).run_id}"
    )
    x, _ = load_rows(Pack.open(evaluated.paths.pack("test"))).read(np.array([0]))
    draws = torch.Generator().manual_seed(0)
    sampled = torch.cat([predictor.sample(x, 200, draws)[:, 0, ::4, ::4].double() for _ in range(20)])
    p = torch.sigmoid(sampled).mean(0)
    predictive = -torch.special.xlogy(p, p) - torch.special.xlog1py(1 - p, -p)
    information = predictive - binary_entropy(sampled).mean(0)
    exact = predictor.quantities(x).mutual_information[0, ::4, ::4]
    assert float(information.mean()) == pytest.approx(float(exact.mean()), rel=0.1)  # 4,000 draws are 2 % off
    assert float(torch.corrcoef(torch.stack([information.flatten(), exact.flatten()]))[0, 1]) > 0.99
