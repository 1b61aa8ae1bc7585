"""The code location: assets, checks, jobs, sensors and resources."""

import dagster as dg

from sam_laplace_assets.assets.graph import ASSETS
from sam_laplace_assets.automation import register_split_partitions
from sam_laplace_assets.checks import all_checks
from sam_laplace_assets.io_managers import IO_MANAGERS, TRACKING
from sam_laplace_assets.jobs import all_jobs
from sam_laplace_assets.reporting import plain_logger
from sam_laplace_assets.resources.sam import SamResource

defs = dg.Definitions(
    assets=ASSETS,
    asset_checks=all_checks,
    jobs=all_jobs,
    sensors=[register_split_partitions],
    loggers={"console": dg.colored_console_logger, "plain": plain_logger},
    resources={**IO_MANAGERS, "sam": SamResource(), "tracking": TRACKING},
)
