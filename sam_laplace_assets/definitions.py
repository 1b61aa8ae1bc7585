"""The code location: assets, checks, jobs, sensors and resources."""

import gc

import dagster as dg

gc.freeze()  # Dagster stays: without this, each collection while the rest is imported walks through all of it

from sam_laplace_assets.alerting import send_alerts
from sam_laplace_assets.assets.graph import ASSETS
from sam_laplace_assets.automation import (
    carry_out_refresh,
    nightly_refresh,
    refresh_everything,
    register_split_partitions,
    retrain_on_change,
)
from sam_laplace_assets.checks import check_steps
from sam_laplace_assets.io_managers import IO_MANAGERS, TRACKING
from sam_laplace_assets.jobs import all_jobs, roll_back_champion, sweep_posteriors
from sam_laplace_assets.reporting import plain_logger
from sam_laplace_assets.resources.sam import SamResource

STEPS_ARE_FORKED = {"forkserver": {"preload_modules": [__name__, "sam_laplace_assets.forked"]}}
"""From one process a run that has imported this module; left to itself, Dagster has each step import it again."""

defs = dg.Definitions(
    assets=ASSETS,
    asset_checks=check_steps,
    jobs=[*all_jobs, roll_back_champion, sweep_posteriors, refresh_everything],
    schedules=[nightly_refresh],
    sensors=[register_split_partitions, retrain_on_change, carry_out_refresh, send_alerts],
    executor=dg.multiprocess_executor.configured({"start_method": STEPS_ARE_FORKED}),
    loggers={"console": dg.colored_console_logger, "plain": plain_logger},
    resources={**IO_MANAGERS, "sam": SamResource(), "tracking": TRACKING},
)
