"""DAGSTER_HOME: where runs, partitions and, by default, MLflow's database lie."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sam_laplace_assets.settings import DEMO_FOLDER, Settings, load_settings
from sam_laplace_assets.storage import files

if TYPE_CHECKING:
    import dagster as dg

REPOSITORY = Path(__file__).parents[2]
# SHA-256 of each dagster.yaml that a version before this one has put into homes
SHIPPED_EARLIER = {"a49ec2e94a6edaea0f603ac3ce54ce01e39303a8792959ea2f285c6d9eb7945e"}


def prepare_home(settings: Settings) -> Path:
    """The absolute DAGSTER_HOME with a dagster.yaml, made if need be, and set for this process and its children.

    It is the one that the environment names, else `.demo/dagster_home` for the demo, `dagster_home` in the project root
    otherwise.
    """
    named = os.environ.get("DAGSTER_HOME")
    home = Path(named) if named else _default_home(settings)
    home = home.expanduser().resolve()
    if _is_ours(home / "dagster.yaml"):
        files.write_bytes(home / "dagster.yaml", shipped("dagster.yaml").read_bytes())
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def _is_ours(path: Path) -> bool:
    """Whether there is no file yet, or one that an earlier version of this package has put there and nobody changed."""
    return not path.exists() or files.file_sha256(path) in SHIPPED_EARLIER


def _default_home(settings: Settings) -> Path:
    return Path(DEMO_FOLDER) / "dagster_home" if settings.is_demo else settings.data.project_root / "dagster_home"


def shipped(name: str) -> Path:
    """A file of the repository: that beside the package, else that of the working directory."""
    for folder in (REPOSITORY, Path.cwd()):
        if (folder / name).exists():
            return folder / name
    raise click.ClickException(f"{name} is neither in {Path.cwd()} nor in {REPOSITORY}. Run this in a clone.")


def open_instance() -> "dg.DagsterInstance":
    """The Dagster instance of the settings in force."""
    import dagster as dg
    from filelock import FileLock

    settings = load_settings()
    if settings.is_demo and not settings.data.images_root.is_dir():
        raise click.ClickException(
            f"There is no config.yaml in {Path.cwd()}, and no demo either. Write one with `sam-laplace init`, or make "
            "the demo with `sam-laplace demo`."
        )
    home = prepare_home(settings)
    with FileLock(home / "instance.lock"):  # the first one makes Dagster's databases, which two at once cannot
        return dg.DagsterInstance.get()
