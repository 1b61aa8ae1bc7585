"""DAGSTER_HOME: which instance there is, and where runs, partitions and MLflow's database lie by default."""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from sam_laplace_assets.resources.postgres import URL_VARIABLE, Server
from sam_laplace_assets.settings import DEMO_FOLDER, InstanceSettings, Settings, load_settings
from sam_laplace_assets.storage import files

if TYPE_CHECKING:
    import dagster as dg

REPOSITORY = Path(__file__).parents[2]
# SHA-256 of each dagster.yaml that a version before this one has put into homes
SHIPPED_EARLIER = {"a49ec2e94a6edaea0f603ac3ce54ce01e39303a8792959ea2f285c6d9eb7945e"}

STORAGES = ("storage", "run_storage", "event_log_storage", "schedule_storage")
IN_POSTGRES = f"""\
storage:
  custom:
    module: sam_laplace_assets.resources.instance_storage
    class: SharedStorage
    config:
      postgres_url: {{env: {URL_VARIABLE}}}   # never the address itself, which holds a password
"""
"""What the dagster.yaml of an instance in PostgreSQL ends with; the rest of it is the same."""


def prepare_home(settings: Settings) -> Path:
    """The absolute DAGSTER_HOME with a dagster.yaml, made if need be, and set for this process and its children.

    It is the one that the environment names, else `.demo/dagster_home` for the demo, `dagster_home` in the project root
    otherwise.

    Raises:
        PostgresUnusable: the instance is to be in PostgreSQL, and the server or its address is not as it should be.
        ClickException: the dagster.yaml there was changed by hand and says something else.
    """
    named = os.environ.get("DAGSTER_HOME")
    home = Path(named) if named else _default_home(settings)
    home = home.expanduser().resolve()
    if is_shared(settings.instance):
        Server.of_environment().require()
    _put_instance_file(home / "dagster.yaml", settings.instance)
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def is_shared(instance: InstanceSettings) -> bool:
    """Whether the instance is a team's, in PostgreSQL."""
    return instance.storage == "postgres"


def _put_instance_file(path: Path, instance: InstanceSettings) -> None:
    """Put the instance file of these settings in its place, unless somebody has changed the one that is there."""
    found = path.read_bytes() if path.exists() else None
    if found is None or _is_ours(found):
        wanted = shipped("dagster.yaml").read_bytes() + (IN_POSTGRES.encode() if is_shared(instance) else b"")
        if found != wanted:
            files.write_bytes(path, wanted)
    elif is_shared(instance) and not _names_postgres(path, found):
        raise click.ClickException(
            f"{path} was changed by hand and keeps Dagster's records elsewhere, but instance.storage is postgres. Put "
            f"these lines into it in place of its storage, or remove it, and it is written anew:\n{IN_POSTGRES}"
        )


def _is_ours(content: bytes) -> bool:
    """Whether this or an earlier version of this package has put this file there, and nobody changed it."""
    plain = content.removesuffix(IN_POSTGRES.encode())
    return hashlib.sha256(plain).hexdigest() in SHIPPED_EARLIER or any(
        plain == copy.read_bytes() for copy in _copies("dagster.yaml")
    )


def _names_postgres(path: Path, content: bytes) -> bool:
    """Whether an instance file that somebody wrote keeps its records in PostgreSQL, in whichever way."""
    try:
        sections = yaml.safe_load(content) or {}
        return "postgres" in str([sections.get(name) for name in STORAGES]).lower()
    except (yaml.YAMLError, AttributeError) as error:
        raise click.ClickException(
            f"{path} was changed by hand and is no instance file of Dagster's any more ({type(error).__name__}). Mend "
            "it, or remove it, and it is written anew."
        ) from None


def _default_home(settings: Settings) -> Path:
    return Path(DEMO_FOLDER) / "dagster_home" if settings.is_demo else settings.data.project_root / "dagster_home"


def shipped(name: str) -> Path:
    """A file of the repository: that beside the package, else that of the working directory."""
    if copies := _copies(name):
        return copies[0]
    raise click.ClickException(f"{name} is neither in {Path.cwd()} nor in {REPOSITORY}. Run this in a clone.")


def _copies(name: str) -> list[Path]:
    return [folder / name for folder in (REPOSITORY, Path.cwd()) if (folder / name).exists()]


def open_instance() -> "dg.DagsterInstance":
    """The Dagster instance of the settings in force."""
    import dagster as dg

    settings = load_settings()
    if settings.is_demo and not settings.data.images_root.is_dir():
        raise click.ClickException(
            f"There is no config.yaml in {Path.cwd()}, and no demo either. Write one with `sam-laplace init`, or make "
            "the demo with `sam-laplace demo`."
        )
    home = prepare_home(settings)
    with _first_alone(home, settings.instance):
        return dg.DagsterInstance.get()


def _first_alone(home: Path, instance: InstanceSettings) -> contextlib.AbstractContextManager[object]:
    """Let one process at a time make Dagster's databases, which two cannot; PostgreSQL sees to that itself."""
    from filelock import FileLock

    return contextlib.nullcontext() if is_shared(instance) else FileLock(home / "instance.lock")
