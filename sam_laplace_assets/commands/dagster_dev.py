"""Dagster's own command line, without two warnings of `dagster dev` that look like faults and are none."""

import logging
import runpy
import warnings

NOT_IN_USE = "Found a dagster instance configuration value"  # a clone's dagster.yaml is the one that homes are given
SUPERSEDED = "Function `dev_command` is superseded"  # by a tool for projects that it has laid out itself


def is_news(record: logging.LogRecord) -> bool:
    """Whether a reader should see this line."""
    return not record.getMessage().startswith(NOT_IN_USE)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=SUPERSEDED)
    logging.getLogger("dagster").addFilter(is_news)
    runpy.run_module("dagster", run_name="__main__", alter_sys=True)
