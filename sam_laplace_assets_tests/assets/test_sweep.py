"""The sweep as a reader of the UI sees it, and who launches it."""

import json

import pytest

from sam_laplace_assets.assets.sweep import verdict
from sam_laplace_assets.definitions import defs
from sam_laplace_assets.jobs import all_jobs
from sam_laplace_assets.stages import stages
from sam_laplace_assets.storage.reports import SUMMARY
from sam_laplace_assets.storage.sweep import SCHEMA
from sam_laplace_assets.storage.tables import read_table
from sam_laplace_assets_tests.small_project import failure

ENTRIES = [
    {"approx": "full", "likelihood_temperature": "image_cluster", "prior_precision": "marginal_likelihood"},
    {"approx": "diagonal", "likelihood_temperature": 10.0, "prior_precision": 1.0},
]


def run(project, **config):
    with project.instance() as instance:
        instance.add_dynamic_partitions("sam_training_split", ["train"])
        return defs.resolve_job_def("sweep_posteriors").execute_in_process(
            instance=instance, partition_key="train", raise_on_error=False,
            run_config={"ops": {"posterior_sweep": {"config": config}}} if config else None,
        )  # fmt: skip


def made(result):
    (event,) = result.get_asset_materialization_events()
    return {name: value.value for name, value in event.materialization.metadata.items()}


def table(project):
    return read_table(project.paths.report("posterior_sweep", "train") / "configurations.parquet", SCHEMA)


def test_all_combinations_are_compared_and_the_best_is_said_first(project):
    result = run(project)
    assert result.success
    frame, told = table(project), made(result)
    grid = project.settings.laplace.prior_precision_grid
    assert len(frame) == 2 * 4 * (len(grid) + 1)
    assert frame["val_nll"].is_monotonic_increasing
    assert frame["of_settings"].sum() == 1
    assert set(frame["likelihood_temperature"]) == {"1", "10", "100", "image_cluster"}
    assert next(iter(told)) == "result"
    assert told["result"].startswith(f"Best: {frame['approx'][0]}, T ")
    lowest = frame["scaled_val_nll"].min()
    assert told["when scaled"].endswith(f": {lowest:.6f} nats a pixel.")
    assert told["best configurations"].count("\n") == 11
    assert told["validation NLL"].startswith("![validation NLL](data:image/png")
    folder = project.paths.report("posterior_sweep", "train")
    assert {path.name for path in folder.iterdir()} == {"configurations.parquet", "nll_by_precision.png", SUMMARY}


def test_the_settings_own_row_is_the_posterior_that_was_fitted(project):
    run(project)
    frame = table(project)
    (own,) = frame[frame["of_settings"]].to_dict("records")
    (path,) = project.paths.posteriors.glob("run_*/posterior_meta.json")
    meta = json.loads(path.read_text())
    assert own["prior_precision"] == meta["prior_precision"]
    expected = [meta["logit_scale"]["nll_before"], meta["logit_scale"]["nll_after"], meta["logit_scale"]["value"],
                meta["log_marginal_likelihood"], meta["prior_search"]["map_nll"]]  # fmt: skip
    found = [own[name] for name in ("val_nll", "scaled_val_nll", "logit_scale", "log_marginal_likelihood", "map_nll")]
    assert found == pytest.approx(expected, rel=1e-6)


def test_it_is_made_once_and_again_for_other_configurations(project):
    assert made(run(project, sweep=ENTRIES))["sweeps made"] == 1
    assert len(table(project)) == 3
    assert made(run(project, sweep=ENTRIES))["sweeps made"] == 0
    assert made(run(project, sweep=ENTRIES, force=True))["sweeps made"] == 1
    project.change(laplace={"sweep": ENTRIES[:1]})
    assert made(run(project))["sweeps made"] == 1
    assert len(table(project)) == 2


def test_an_entry_that_cannot_be_is_refused(project):
    told = failure(run(project, sweep=[{"approx": "kron"}]))
    assert "'diagonal' or 'full'" in told


def test_nothing_launches_it_by_itself():
    assert "sweep_posteriors" not in {job.name for job in all_jobs}
    staged = {name for stage in stages(["train", "val", "test"]) for name in stage.assets}
    assert "posterior_sweep" not in staged


def test_the_sentence_says_how_far_the_best_is_from_the_head_and_from_the_settings():
    row = {"approx": "full", "likelihood_temperature": "image_cluster", "temperature": 123.456, "prior": "grid",
           "prior_precision": 1.0, "val_nll": 0.03, "map_nll": 0.032, "of_settings": False}  # fmt: skip
    own = row | {"approx": "diagonal", "likelihood_temperature": "1", "val_nll": 0.031, "of_settings": True}
    assert verdict(row, own) == (
        "Best: full, T image_cluster (123.5), prior precision 1, with validation NLL 0.030000 nats a pixel: "
        "0.002 below the head alone (0.032000), 0.001 below what the settings give (diagonal, T 1, prior precision 1)."
    )
    assert verdict(own, own).endswith("0.001 below the head alone (0.032000), it is what the settings give.")
