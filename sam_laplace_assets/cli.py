"""The console command `sam-laplace`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import dagster as dg

    from sam_laplace_assets.storage.predictions import MapFormat


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
@click.option("--host", default="127.0.0.1", show_default=True, help="where the Dagster UI listens; it has no login")
@click.option("--allowed-host", "names", multiple=True, metavar="NAME",
              help="name that the UI is reached under, as behind a proxy; may be given again")  # fmt: skip
@click.option("--read-only", is_flag=True, help="let nobody launch or change anything by the Dagster UI")
def dev(port: int, host: str, names: tuple[str, ...], read_only: bool) -> None:
    """Open the Dagster UI and MLflow's, both on this machine only."""
    from sam_laplace_assets.commands.dev import Reach, serve

    sys.exit(serve(Reach(port, host, names, read_only), click.echo))


@cli.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("config.yaml"))
def init(path: Path) -> None:
    """Write a commented settings file."""
    from sam_laplace_assets.commands.init import write_settings

    write_settings(path)
    click.echo(f"Wrote {path}. Edit its paths, then: sam-laplace plan")


@cli.command()
@click.option("--from", "old", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="the original's project_root; it may be that of the settings")  # fmt: skip
@click.option("--verify", default="8", show_default=True, metavar="N|all",
              help="prompt sets of each split that SAM is asked about again")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="write nothing")
@click.option("--verbose", is_flag=True, help="name all that is not adopted")
def adopt(old: Path, verify: str, dry_run: bool, verbose: bool) -> None:
    """Take over a project root of the original scripts, and say what could not be.

    Splits, prompt sets, logits and point maps are adopted without being made again; nothing of the original is changed.
    Points are held against today's masks, maps are computed again and compared. Logits are believed if those that SAM
    is asked about again come out the same.
    """
    from sam_laplace_assets.commands.adopt import adopt_project

    if verify != "all" and not (verify.isdecimal() and int(verify) > 0):
        raise click.BadParameter(f"{verify!r} is neither a number above 0 nor all", param_hint="--verify")
    ask = None if verify == "all" else int(verify)
    adopt_project(old, ask=ask, dry_run=dry_run, verbose=verbose, tell=click.echo)


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
@click.option("--forget-overrides", is_flag=True, help="make all as in the settings, whatever the launchpad had said")
def run(splits: tuple[str, ...], assets: tuple[str, ...], forget_overrides: bool) -> None:
    """Make what is missing or out of date, without the UI."""
    from sam_laplace_assets.commands.run import make_missing

    with _instance() as instance:
        make_missing(instance, splits, assets, click.echo, keep_overrides=not forget_overrides)


@cli.command()
@click.option("--delete", is_flag=True, help="remove what is listed")
@click.option("--verbose", is_flag=True, help="list every path")
def gc(delete: bool, verbose: bool) -> None:
    """List what nothing points to any more, with sizes; remove it with --delete."""
    from sam_laplace_assets.commands.gc import make_room

    with _instance() as instance:
        make_room(instance, delete=delete, verbose=verbose, tell=click.echo)


@cli.command()
@click.option("--split", "splits", multiple=True, help="only this split; may be given again")
def status(splits: tuple[str, ...]) -> None:
    """Show what is done, stale and missing, partition by partition, and why."""
    from sam_laplace_assets.commands.status import freshness_of, table

    with _instance() as instance:
        click.echo(table(freshness_of(instance, splits)))


@cli.command()
@click.argument("title_to", metavar="[RUN_ID]", default="previous")
def rollback(title_to: str) -> None:
    """Give the champion's title back to its previous holder, or to the posterior of RUN_ID."""
    from sam_laplace_assets.commands.rollback import roll_back

    with _instance() as instance:
        click.echo(roll_back(instance, title_to))


@cli.command()
@click.argument("images", nargs=-1, metavar="[IMAGES]...", type=click.Path(path_type=Path))
@click.option("--points", metavar="'X,Y,LABEL ...'", help="clicks on each image: '120,80,1 40,200,0'")
@click.option("--points-file", type=click.Path(path_type=Path), help="clicks for each image: CSV of image,x,y,label, "
              "or JSON of image -> [[x, y, label], ...]; paths are relative to the file")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("predictions"), show_default=True,
              help="folder to write to; files that are there are replaced")  # fmt: skip
@click.option("--posterior", metavar="RUN_ID|FOLDER", help="another posterior than the champion")
@click.option("--format", "map_format", type=click.Choice(["npy", "png"]), default="npy", show_default=True,
              help="of probability and mutual information: float32, or 16-bit PNG")  # fmt: skip
def predict(
    images: tuple[Path, ...], points: str | None, points_file: Path | None, out: Path, posterior: str | None,
    map_format: "MapFormat",
) -> None:  # fmt: skip
    """Predict images without masks from clicks: mask, probability, mutual information, and where to click next.

    IMAGES are JPEG or PNG files; without any, those of --points-file. X and Y are pixels of the image, from 0; LABEL is
    1 on the object and 0 beside it. Each image gets <stem>_mask.png, <stem>_probability.npy,
    <stem>_mutual_information.npy and <stem>_picture.png at its own size; predictions.json says what they were made
    with, and suggests the next clicks by the strategy of the settings (prompting.strategy: bald, bald_region,
    bald_interior, bald_local, entropy, entropy_interior, variance, random, foreground_random or balanced_random).
    """
    from sam_laplace_assets.commands.predict import predict_images

    failed = predict_images(images, points=points, points_file=points_file, out=out, posterior=posterior,
                            map_format=map_format, tell=click.echo)  # fmt: skip
    if failed:
        raise click.ClickException("\n  ".join([f"{len(failed)} could not be predicted:", *failed]))


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
