"""Dagster's own command line, for `dagster dev` with our webserver and without two warnings that are no faults."""

import importlib
import logging
import runpy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from sam_laplace_assets.commands import webserver

THEIRS = "dagster_webserver"
NOT_IN_USE = "Found a dagster instance configuration value"  # a clone's dagster.yaml is the one that homes are given
SUPERSEDED = "Function `dev_command` is superseded"  # by a tool for projects that it has laid out itself


def is_news(record: logging.LogRecord) -> bool:
    """Whether a reader should see this line."""
    return not record.getMessage().startswith(NOT_IN_USE)


def with_our_webserver(start: Callable[..., Any]) -> Callable[..., Any]:
    """What starts Dagster's processes, but for the webserver, of which it starts ours."""

    def start_ours(words: Sequence[str], **options: Any) -> Any:
        return start([webserver.__name__ if word == THEIRS else word for word in words], **options)

    return start_ours


if __name__ == "__main__":
    dagster_dev: Any = importlib.import_module("dagster._cli.dev")
    dagster_dev.open_ipc_subprocess = with_our_webserver(dagster_dev.open_ipc_subprocess)
    warnings.filterwarnings("ignore", message=SUPERSEDED)
    logging.getLogger("dagster").addFilter(is_news)
    runpy.run_module("dagster", run_name="__main__", alter_sys=True)
