"""`sam-laplace run`: make what is missing or out of date."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from sam_laplace_assets.commands.plan import estimate, require_space
from sam_laplace_assets.settings import load_settings

if TYPE_CHECKING:
    import dagster as dg


def make_missing(
    instance: "dg.DagsterInstance",
    splits: Sequence[str],
    assets: Sequence[str],
    tell: Callable[[str], None],
    *,
    keep_overrides: bool = True,
) -> list[str]:
    """Refresh some splits and assets, and say what was done."""
    from sam_laplace_assets.headless import RunFailed, refresh

    started = time.monotonic()
    try:
        require_space(estimate(instance, splits))
        ran = refresh(instance, splits=splits, assets=assets, keep_overrides=keep_overrides, tell=tell)
    except (RunFailed, ValueError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        tell("Stopped. Run again to go on from here.")
        raise SystemExit(130) from None
    seconds = time.monotonic() - started
    if ran:
        tell(f"Made {len(ran)} asset partitions in {seconds:.0f} s, below {load_settings().data.project_root}.")
    else:
        tell(f"Nothing is missing or out of date; no step was launched ({seconds:.1f} s).")
    return ran
