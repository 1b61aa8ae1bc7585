"""MLflow runs around materialisations. Tracking that is down or disabled never costs the data."""

import contextlib
import importlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg

from sam_laplace_assets.domain.plan import Registered, Report
from sam_laplace_assets.redaction import redact, without_user
from sam_laplace_assets.resources.postgres import Server
from sam_laplace_assets.settings import MlflowSettings, Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
UI_PORT = 5000
AS_TRAINING = "workflowType=machine_learning"  # else MLflow's UI opens in its view of language models
SQLITE = "sqlite:///"
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""By default MLflow waits minutes, at every asset, for a server that is down; what the environment says holds."""
SECONDS_TO_BEGIN = 30.0
SECONDS_IN_ALL = 60.0
SHARE_OF_TIME = 0.1
"""MLflow may hold up a run for so long before it begins, and in all for so long and a tenth of the run's time."""


@dataclass(frozen=True)
class Store:
    """Where runs are tracked: a database or server, and a folder for artifacts where it is a database of ours."""

    uri: str = field(repr=False)
    artifacts: Path | None
    server: Server | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Store":
        """The store that the settings name; else the instance's own.

        That is its PostgreSQL server, with artifacts in the project root, which all machines see; or SQLite in the
        Dagster home, or in the project root without one.
        """
        if (uri := settings.mlflow.tracking_uri) is not None:
            beside = Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts"
            return cls(uri, beside if uri.startswith(SQLITE) else None)
        if settings.instance.storage == "postgres":
            server = Server.of_environment()
            return cls(server.mlflow_address, settings.data.project_root / "mlartifacts", server)
        home = Path(os.environ.get("DAGSTER_HOME") or settings.data.project_root).resolve()
        return cls(f"{SQLITE}{home / 'mlflow.db'}", home / "mlartifacts")

    @property
    def ui(self) -> str:
        """Address of MLflow's UI."""
        return without_user(self.uri).rstrip("/") if self.uri.startswith("http") else f"http://127.0.0.1:{UI_PORT}"

    def client(self) -> "MlflowClient":
        """A client; the first one makes the database, one process at a time."""
        import logging

        from mlflow import MlflowClient

        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        if self.artifacts is None:
            return MlflowClient(self.uri)
        self.artifacts.mkdir(parents=True, exist_ok=True)
        with self._first_alone(self.artifacts.parent):
            client = MlflowClient(self.uri)
            client.search_experiments(max_results=1)
        return client

    @contextlib.contextmanager
    def _first_alone(self, folder: Path) -> Iterator[None]:
        """Let one process at a time make MLflow's tables: of a machine beside its file, of all on a server."""
        from filelock import FileLock

        if self.server is None:
            with FileLock(folder / "mlflow.db.lock"):
                yield
        else:
            with self.server.alone("MLflow's tables") as connection:
                self.server.make_mlflow_schema(connection)
                yield

    def experiment(self, client: "MlflowClient", name: str) -> str:
        """Id of the experiment, which is made if it is not there."""
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = None if self.artifacts is None else self.artifacts.as_uri()
        return str(client.create_experiment(name, artifact_location=location))


@dataclass
class TrackedRun:
    """One MLflow run. What cannot be tracked is kept in `problems`, and nothing more is tried after the first."""

    client: "MlflowClient | None" = None
    run_id: str = ""
    url: str = ""
    problems: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    waited: float = 0.0

    def log(self, report: Report, *, step: int | None = None) -> None:
        """Track a report's parameters, metrics, tables, pictures and files."""
        self.attempt(lambda client: self._log_numbers(client, report, step))
        if report.tables or report.pictures or report.files:
            self.attempt(lambda client: self._log_files(client, report, step))
        if (model := report.model) is not None:
            self.attempt(lambda client: register(client, model, self.run_id))
        if (champion := report.champion) is not None:
            self.attempt(lambda client: crown(client, champion))

    def attempt(self, call: Callable[["MlflowClient"], Any]) -> Any:
        """Call MLflow; an error is noted, not raised, and so is that it takes too long."""
        if self.client is None:
            return None
        client, started = self.client, time.monotonic()
        try:
            return within(self._patience(started), lambda: call(client))
        except TookTooLong:
            waited = self.waited + time.monotonic() - started
            self.problems.append(f"MLflow held up this run for {waited:.0f} s; nothing more was tracked")
            self.client = None
        except LookupError as error:  # something of ours was never tracked; the server is well
            self.problems.append(str(error))
        except Exception as error:
            said = str(error).splitlines()[0] if str(error) else ""
            self.problems.append(f"{type(error).__name__}: {redact(said)}")
            self.client = None
        finally:
            self.waited += time.monotonic() - started
        return None

    def _patience(self, now: float) -> float:
        """Seconds that MLflow may still hold up the run."""
        return SECONDS_IN_ALL + SHARE_OF_TIME * (now - self.began) - self.waited

    def _log_numbers(self, client: "MlflowClient", report: Report, step: int | None) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step or 0) for name, value in report.metrics.items()]
        params = [Param(name, str(value)) for name, value in report.params.items()]
        if metrics or params:
            client.log_batch(self.run_id, metrics=metrics, params=params)

    def _log_files(self, client: "MlflowClient", report: Report, step: int | None) -> None:
        import pandas as pd

        suffix = "" if step is None else f"_{step:04d}"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for title, rows in report.tables.items():
                _put(folder / "tables" / f"{title}{suffix}.csv", pd.DataFrame(list(rows)).to_csv(index=False).encode())
            for title, png in report.pictures.items():
                _put(folder / "pictures" / f"{title}{suffix}.png", png)
            for title, content in report.files.items():
                _put(folder / (MODEL if report.model else "files") / title, content)
            client.log_artifacts(self.run_id, str(folder))


class TookTooLong(RuntimeError):
    """MLflow did not answer in time."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """What a call gives. A thread makes it, since no setting of MLflow's bounds a slow drip, a lock or a dead disk.

    Raises:
        TookTooLong: there was no answer in time; the call is left to itself, and ends with the process.
    """
    answered: Future[T] = Future()

    def answer() -> None:
        try:
            answered.set_result(call())
        except BaseException as error:
            answered.set_exception(error)

    threading.Thread(target=answer, name="mlflow", daemon=True).start()
    try:
        return answered.result(max(seconds, 0.0))
    except TimeoutError:
        if answered.done():
            raise
        raise TookTooLong from None


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


RUN_TAG = "sam_laplace.run_id"
ALIAS = "champion"
MODEL = "model"
"""Folder of the files that are a model; others lie in `files`."""


def register(client: "MlflowClient", model: Registered, mlflow_run: str) -> None:
    """Make the files of an MLflow run a version of a registered model, once."""
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):  # it is there already
        client.create_registered_model(model.name)
    if _versions(client, model):
        return
    source = f"{client.get_run(mlflow_run).info.artifact_uri}/{MODEL}"
    client.create_model_version(model.name, source=source, run_id=mlflow_run, tags={RUN_TAG: model.run_id})


def crown(client: "MlflowClient", model: Registered) -> None:
    """Let the alias `champion` name this version."""
    versions = _versions(client, model)
    if not versions:
        raise LookupError(f"no version of {model.name} was registered for run {model.run_id}")
    client.set_registered_model_alias(model.name, ALIAS, versions[0])


def _versions(client: "MlflowClient", model: Registered) -> list[str]:
    found = client.search_model_versions(f"name = '{model.name}'")
    return [str(version.version) for version in found if version.tags.get(RUN_TAG) == model.run_id]


class TrackingResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Opens MLflow runs."""

    @contextlib.contextmanager
    def run(self, settings: Settings, name: str, tags: Mapping[str, str]) -> Iterator[TrackedRun]:
        """An MLflow run for the block's duration; failed if the block raises."""
        run = start(settings, name, tags) if settings.mlflow.enabled else TrackedRun()
        try:
            yield run
        except BaseException:
            run.attempt(lambda client: client.set_terminated(run.run_id, "FAILED"))
            raise
        run.attempt(lambda client: client.set_terminated(run.run_id))


def start(settings: Settings, name: str, tags: Mapping[str, str]) -> TrackedRun:
    """A run that has begun, or one that tracks nothing and says why."""
    importlib.import_module("mlflow")  # takes as long as this machine needs, which says nothing of the server
    try:
        return within(SECONDS_TO_BEGIN, lambda: _begin(Store.of(settings), settings.mlflow.experiment, name, tags))
    except TookTooLong:
        return TrackedRun(problems=[f"MLflow did not answer within {SECONDS_TO_BEGIN:.0f} s; nothing was tracked"])
    except Exception as error:
        return TrackedRun(problems=[f"{type(error).__name__}: {redact(str(error))}"])


def _begin(store: Store, experiment_name: str, name: str, tags: Mapping[str, str]) -> TrackedRun:
    client = store.client()
    experiment = store.experiment(client, experiment_name)
    run_id = client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id
    return TrackedRun(client, run_id, f"{store.ui}/#/experiments/{experiment}/runs/{run_id}?{AS_TRAINING}")


def model_names(settings: MlflowSettings) -> dict[str, str]:
    """Names of the registered models."""
    plain = re.sub(r"[/:'\"]", "-", settings.experiment).strip("-")  # what MLflow allows in an experiment's name only
    return {concept: f"{plain}-{concept}" for concept in ("head", "posterior")}
