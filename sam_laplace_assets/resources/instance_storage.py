"""Dagster's storage of runs, events and schedules in PostgreSQL, as a team's `dagster.yaml` names it."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._config.config_schema import UserConfigSchema
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage

from sam_laplace_assets.resources.postgres import Server

MAKING_TABLES = "Dagster's tables"


class SharedStorage(DagsterPostgresStorage):
    """That of dagster-postgres, with the driver that it is written for, whatever SQLAlchemy prefers.

    One process at a time makes its tables. dagster-postgres alone looks for one, makes all, and after a clash tries
    again, a few times.
    """

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """The address, which `dagster.yaml` takes from the environment."""
        return {"postgres_url": dg.StringSource}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "SharedStorage":
        """The storage; its tables are made if they are not there.

        Raises:
            PostgresUnusable: says what is wrong with the server or its address.
        """
        server = Server(config_value["postgres_url"])
        with server.alone(MAKING_TABLES):
            return cls(server.address, inst_data=inst_data)
