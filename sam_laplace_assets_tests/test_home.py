"""The instance file in DAGSTER_HOME follows the settings, unless somebody has changed it."""

import hashlib
import socket

import click
import pytest
import yaml
from dagster._core.instance import InstanceRef

from sam_laplace_assets.commands import home
from sam_laplace_assets.commands.home import IN_POSTGRES, prepare_home
from sam_laplace_assets.resources.postgres import URL_VARIABLE, PostgresUnusable, Server
from sam_laplace_assets.settings import InstanceSettings, SettingsError, load_settings
from sam_laplace_assets_tests.small_project import REPOSITORY

SHIPPED = (REPOSITORY / "dagster.yaml").read_text()
WORD = "open-sesame"


@pytest.fixture
def prepare(read_only, tmp_path, monkeypatch):
    """Prepare a DAGSTER_HOME for this storage, on a server that is taken to answer; its instance file."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv(URL_VARIABLE, f"postgresql://ada:{WORD}@127.0.0.1/dagster")
    monkeypatch.setattr(Server, "require", lambda server: None)
    settings = read_only.settings

    def prepare(storage):
        instance = InstanceSettings(storage=storage)
        return prepare_home(settings.model_copy(update={"instance": instance})) / "dagster.yaml"

    return prepare


def test_the_instance_is_in_sqlite_unless_the_settings_say_otherwise(read_only, tmp_path):
    assert read_only.settings.instance.storage == "sqlite"
    file = tmp_path / "config.yaml"
    file.write_text(read_only.config.read_text() + "instance: {storage: mysql}\n")
    with pytest.raises(SettingsError, match=r"instance.storage: .*'sqlite' or 'postgres'"):
        load_settings(file)


def test_the_instance_file_of_a_team_is_the_shipped_one_with_another_storage(prepare):
    assert prepare("postgres").read_text() == SHIPPED + IN_POSTGRES
    assert yaml.safe_load(SHIPPED + IN_POSTGRES) == yaml.safe_load(SHIPPED) | yaml.safe_load(IN_POSTGRES)


def test_the_instance_file_of_a_team_is_taken_by_dagster_and_holds_no_password(prepare, tmp_path):
    assert WORD not in prepare("postgres").read_text()
    told = InstanceRef.from_dir(str(tmp_path)).storage_data
    assert (told.module_name, told.class_name) == ("sam_laplace_assets.resources.instance_storage", "SharedStorage")
    assert WORD not in told.config_yaml


def test_the_instance_file_follows_the_settings_there_and_back(prepare):
    for storage, section in (("sqlite", ""), ("postgres", IN_POSTGRES), ("postgres", IN_POSTGRES), ("sqlite", "")):
        assert prepare(storage).read_text() == SHIPPED + section


@pytest.mark.parametrize("section", ["", IN_POSTGRES])
def test_the_instance_file_of_an_earlier_version_is_replaced_for_teams_too(prepare, tmp_path, monkeypatch, section):
    earlier = "telemetry: {enabled: false}\n"
    monkeypatch.setattr(home, "SHIPPED_EARLIER", {hashlib.sha256(earlier.encode()).hexdigest()})
    (tmp_path / "dagster.yaml").write_text(earlier + section)
    assert prepare("postgres").read_text() == SHIPPED + IN_POSTGRES


def test_an_instance_file_that_was_changed_by_hand_is_left_and_refused_with_the_lines_that_it_lacks(prepare, tmp_path):
    changed = SHIPPED.replace("max_concurrent_runs: 4", "max_concurrent_runs: 9")
    (tmp_path / "dagster.yaml").write_text(changed)
    with pytest.raises(click.ClickException) as refused:
        prepare("postgres")
    assert str(tmp_path / "dagster.yaml") in refused.value.message
    assert refused.value.message.endswith(IN_POSTGRES)
    assert (tmp_path / "dagster.yaml").read_text() == changed
    (tmp_path / "dagster.yaml").write_text(changed + IN_POSTGRES)
    assert prepare("postgres").read_text() == changed + IN_POSTGRES


@pytest.mark.parametrize("storage", ["sqlite", "postgres"])
@pytest.mark.parametrize("section", [
    "storage: {postgres: {postgres_url: {env: THEIRS}}}\n",
    "run_storage: {module: dagster_postgres, class: PostgresRunStorage, config: {postgres_url: {env: THEIRS}}}\n",
])  # fmt: skip
def test_a_storage_in_postgres_that_somebody_has_written_is_left_alone(prepare, tmp_path, storage, section):
    (tmp_path / "dagster.yaml").write_text(section)
    assert prepare(storage).read_text() == section


@pytest.mark.parametrize("content", ["storage: [", "- storage\n", "just words\n"])
def test_what_is_no_instance_file_is_refused_by_its_name(prepare, tmp_path, content):
    (tmp_path / "dagster.yaml").write_text(content)
    with pytest.raises(click.ClickException, match=r"dagster\.yaml was changed by hand and is no instance file"):
        prepare("postgres")


def test_a_folder_of_that_name_is_no_storage_in_postgres(prepare, tmp_path):
    elsewhere = "local_artifact_storage: {module: dagster, class: L, config: {base_dir: /mnt/postgres}}\n"
    (tmp_path / "dagster.yaml").write_text(elsewhere)
    with pytest.raises(click.ClickException, match="keeps Dagster's records elsewhere"):
        prepare("postgres")


def test_a_server_that_cannot_be_used_is_told_before_anything_is_written(prepare, tmp_path, monkeypatch):
    monkeypatch.undo()
    with socket.socket() as probe, pytest.MonkeyPatch.context() as patch:
        probe.bind(("127.0.0.1", 0))
        patch.setenv("DAGSTER_HOME", str(tmp_path))
        patch.setenv(URL_VARIABLE, f"postgresql://ada:{WORD}@127.0.0.1:{probe.getsockname()[1]}/dagster")
        with pytest.raises(PostgresUnusable, match="Connection refused") as refused:
            prepare("postgres")
    assert WORD not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
