"""The console command `sam-laplace`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import dagster as dg


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Calibrated masks from frozen SAM: images and masks in, a Laplace posterior out."""


@cli.command()
def demo() -> None:
    """Run the main job on the embedded demo, below .demo/ in the working directory."""
    from sam_laplace_assets.commands.demo import run_demo

    run_demo(click.echo)


@cli.command()
@click.option("--port", default=3000, show_default=True, help="port of the Dagster UI")
def dev(port: int) -> None:
    """Open the Dagster UI and MLflow's, both on this machine only."""
    from sam_laplace_assets.commands.dev import serve

    sys.exit(serve(port, click.echo))


@cli.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("config.yaml"))
def init(path: Path) -> None:
    """Write a commented settings file."""
    from sam_laplace_assets.commands.init import write_settings

    write_settings(path)
    click.echo(f"Wrote {path}. Edit its paths, then: sam-laplace plan")


@cli.command()
@click.option("--split", "splits", multiple=True, help="only this split; may be given again")
def plan(splits: tuple[str, ...]) -> None:
    """Say what would be made, how large it gets and how long it takes; refuse if the disk is too small."""
    from sam_laplace_assets.commands.plan import estimate, require_space

    with _instance() as instance:
        estimated = estimate(instance, splits)
    click.echo(estimated.table())
    require_space(estimated)


@cli.command()
@click.option("--split", "splits", multiple=True, help="only this split; may be given again")
@click.option("--asset", "assets", multiple=True, help="only this asset; may be given again")
def run(splits: tuple[str, ...], assets: tuple[str, ...]) -> None:
    """Make what is missing or out of date, without the UI."""
    from sam_laplace_assets.commands.run import make_missing

    with _instance() as instance:
        make_missing(instance, splits, assets, click.echo)


def _instance() -> "dg.DagsterInstance":
    from sam_laplace_assets.commands.home import open_instance

    return open_instance()


def main() -> None:
    """Run the command; an error that says what to do is shown without a traceback."""
    try:
        cli()
    except (ValueError, OSError) as error:  # settings, splits, folders and files that are not as they should be
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
