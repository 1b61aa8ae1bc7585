"""`sam-laplace rollback`: give the title back, by the job that the UI has for it."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import dagster as dg


def roll_back(instance: "dg.DagsterInstance", title_to: str) -> str:
    """Give the title to a posterior's run id, or to `previous`; the verdict as it is recorded."""
    from sam_laplace_assets.headless import RunFailed, run_job
    from sam_laplace_assets.jobs import roll_back_champion
    from sam_laplace_assets.settings import load_settings
    from sam_laplace_assets.storage.champion import read_history
    from sam_laplace_assets.storage.project import Project

    given = {"champion": {"config": {"title_to": title_to}}}
    try:
        run_job(roll_back_champion.name, instance, run_config={"ops": given})
    except RunFailed as error:
        raise click.ClickException(str(error)) from error
    return str(read_history(Project.of(load_settings()).posteriors)[-1]["verdict"])
