import time

import pytest
from mlflow import MlflowClient

from sam_laplace_assets.domain.plan import Registered
from sam_laplace_assets.resources.tracking import Store, TrackedRun, crown, model_names
from sam_laplace_assets.settings import MlflowSettings
from sam_laplace_assets_tests.small_project import SmallProject, draw_plainly, hashes

TRACKED = {"enabled": True, "experiment": "corals"}


@pytest.fixture(scope="module")
def tracked_project(tmp_path_factory):
    """A project whose whole graph was tracked in an SQLite file beside its instance; to be read only."""
    project = SmallProject.new(tmp_path_factory.mktemp("tracked"), mlflow=TRACKED)
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_plainly(monkeypatch)
        project.use(monkeypatch).refresh()
    return project


@pytest.fixture
def tracked(tracked_project, monkeypatch):
    return tracked_project.use(monkeypatch)


@pytest.fixture
def client(tracked):
    return Store.of(tracked.settings).client()


def runs_of(client, name):
    experiment = client.get_experiment_by_name("corals")
    found = client.search_runs([experiment.experiment_id], f"tags.`mlflow.runName` = '{name}'")
    return [run for run in found if run.info.run_name == name]


def artifacts(client, run, folder):
    return {one.path.rpartition("/")[2] for one in client.list_artifacts(run.info.run_id, folder)}


def test_every_materialisation_has_one_run_with_dagsters_tags(tracked, client):
    experiment = client.get_experiment_by_name("corals")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == len(tracked.versions())
    assert {run.info.status for run in runs} == {"FINISHED"}
    (run,) = runs_of(client, "sam_cache[train]")
    assert run.data.tags["dagster.asset"] == "sam_cache"
    assert run.data.tags["dagster.partition"] == "train"
    with tracked.instance() as instance:
        assert instance.get_run_by_id(run.data.tags["dagster.run_id"]) is not None


def test_counts_are_tracked(client):
    (run,) = runs_of(client, "sam_cache[train]")
    assert {"made": 24, "reused": 0, "failed": 0, "prompt_sets": 24}.items() <= run.data.metrics.items()
    (scan,) = runs_of(client, "all_samples")
    assert {"valid": 16, "invalid": 0, "samples in train": 12}.items() <= scan.data.metrics.items()
    assert "by class.csv" in artifacts(client, scan, "tables")
    (index,) = runs_of(client, "training_index[val]")
    assert {"rows", "samples", "mean_k_pairs"} <= index.data.metrics.keys()


def test_each_epochs_metrics_are_tracked(client):
    (run,) = runs_of(client, "head_checkpoint[train]")
    for name in ("train_loss", "val_loss", "val_iou", "val_dice", "best_iou", "lr", "patience_left"):
        assert [point.step for point in client.get_metric_history(run.info.run_id, name)] == [1, 2], name
    assert run.data.params["seed"] == "0"


def test_figures_and_histograms_are_kept(client):
    (run,) = runs_of(client, "head_checkpoint[train]")
    assert artifacts(client, run, "pictures") >= {"curves.png", "histograms_0001.png", "histograms_0002.png"}
    assert artifacts(client, run, "model") == {"head.safetensors", "config.yaml", "epoch_state.json"}
    (posterior,) = runs_of(client, "laplace_posterior[train]")
    assert artifacts(client, posterior, "pictures") == {"prior search.png"}


def test_each_grid_point_is_tracked(client):
    (run,) = runs_of(client, "laplace_posterior[train]")
    assert {"val_nll_at_0.01", "val_nll_at_1", "val_nll_at_100", "prior_precision"} <= run.data.metrics.keys()


def test_head_and_posterior_are_versions_of_registered_models(tracked, client):
    for concept, asset in (("head", "head_checkpoint"), ("posterior", "laplace_posterior")):
        (version,) = client.search_model_versions(f"name = 'corals-{concept}'")
        assert version.tags["sam_laplace.run_id"] == tracked.metadata(asset, "train")["run"]


def test_the_alias_champion_names_the_champions_version(tracked, client):
    version = client.get_model_version_by_alias("corals-posterior", "champion")
    assert version.tags["sam_laplace.run_id"] == tracked.metadata("champion")["champion"]


def test_the_link_to_the_run_is_shown(tracked, client):
    (run,) = runs_of(client, "champion")
    shown = tracked.metadata("champion")["MLflow run"]
    page = f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert shown == f"[open this run]({page}?workflowType=machine_learning)"


def test_tracking_changes_nothing_else(tracked, made_project):
    assert tracked.versions() == made_project.versions()
    assert tracked.metadata("champion")["champion"] == made_project.metadata("champion")["champion"]
    assert set(hashes(tracked.root)) == set(hashes(made_project.root))


def test_a_version_is_registered_once_and_the_alias_moves_with_the_title(tracked_project, tmp_path, monkeypatch):
    project = tracked_project.copy(tmp_path).use(monkeypatch)
    client = Store.of(project.settings).client()
    first = client.get_model_version_by_alias("corals-posterior", "champion").version
    assert project.materialise("head_checkpoint", "laplace_posterior", split="train").success
    assert len(client.search_model_versions("name = 'corals-posterior'")) == 1
    project.change(training={"num_epochs": 3})
    project.refresh()
    moved = client.get_model_version_by_alias("corals-posterior", "champion")
    assert moved.version != first
    assert moved.tags["sam_laplace.run_id"] == project.metadata("champion")["champion"]


def test_a_server_that_is_down_costs_no_data_little_time_and_is_told(project, monkeypatch):
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    versions = project.versions()
    project.change(mlflow={"enabled": True, "tracking_uri": "http://127.0.0.1:9"})
    started = time.monotonic()
    result = project.materialise("champion")
    assert result.success
    assert time.monotonic() - started < 15
    with project.instance() as instance:
        logs = [record.user_message for record in instance.all_logs(result.run_id)]
    (warning,) = [message for message in logs if message.startswith("Not tracked with MLflow")]
    assert "the data is stored all the same" in warning
    assert project.versions() == versions
    assert "MLflow run" not in project.metadata("champion")


def test_a_failed_materialisation_is_a_failed_run(project):
    project.change(mlflow=TRACKED, training={"lr": 1e30})
    assert not project.materialise("head_checkpoint", split="train").success
    (run,) = runs_of(Store.of(project.settings).client(), "head_checkpoint[train]")
    assert run.info.status == "FAILED"


def test_a_champion_that_was_never_tracked_is_told_and_the_run_ends_well(project):
    project.change(mlflow=TRACKED)
    result = project.materialise("champion")
    assert result.success
    with project.instance() as instance:
        logs = [record.user_message for record in instance.all_logs(result.run_id)]
    assert any("no version of corals-posterior was registered for run train-" in message for message in logs)
    (run,) = runs_of(Store.of(project.settings).client(), "champion")
    assert run.info.status == "FINISHED"


def test_a_database_of_ones_own_keeps_its_artifacts_beside_it(read_only, tmp_path):
    settings = read_only.settings
    uri = f"sqlite:///{tmp_path / 'here' / 'runs.db'}"
    store = Store.of(settings.model_copy(update={"mlflow": MlflowSettings(tracking_uri=uri)}))
    assert store.artifacts == tmp_path / "here" / "mlartifacts"
    assert store.ui == "http://127.0.0.1:5000"


def test_a_server_keeps_its_own_artifacts_and_is_its_own_ui(read_only):
    named = MlflowSettings(tracking_uri="https://mlflow.example.org/")
    store = Store.of(read_only.settings.model_copy(update={"mlflow": named}))
    assert (store.uri, store.artifacts, store.ui) == (
        "https://mlflow.example.org/", None, "https://mlflow.example.org"
    )  # fmt: skip


@pytest.mark.parametrize("experiment", ["/Users/ada/corals", "lab: corals"])
def test_models_are_named_as_mlflow_allows(tmp_path, experiment):
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for name in model_names(MlflowSettings(experiment=experiment)).values():
        client.create_registered_model(name)


def test_after_a_first_problem_nothing_more_is_tried():
    calls = []

    class Broken:
        def log_batch(self, *arguments, **named):
            calls.append(arguments)
            raise ConnectionError("down\nand more")

    run = TrackedRun(Broken(), "run")
    for _ in range(2):
        run.attempt(lambda client: client.log_batch("run"))
    assert run.problems == ["ConnectionError: down"]
    assert len(calls) == 1


def test_who_was_never_registered_is_not_crowned():
    class Empty:
        def search_model_versions(self, query):
            return []

    with pytest.raises(LookupError, match="no version of corals-posterior was registered for run train-1"):
        crown(Empty(), Registered("corals-posterior", "train-1"))
