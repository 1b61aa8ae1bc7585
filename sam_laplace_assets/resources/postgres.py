"""The PostgreSQL server that a team's instance and MLflow share: its address, and one process at a time on it."""

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sam_laplace_assets.redaction import redact

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.engine import URL

URL_VARIABLE = "SAM_LAPLACE_POSTGRES_URL"
EXAMPLE = "postgresql://user:password@host/dagster"
EXTRA = "pip install 'sam-laplace-assets[postgres]'"
DRIVER = "postgresql+psycopg2"  # what dagster-postgres is written for; SQLAlchemy 2.1 would take another one
SCHEMES = {"postgresql", DRIVER}
MLFLOW_SCHEMA = "mlflow"
"""MLflow's tables and Dagster's both keep their version in `alembic_version`: they cannot lie in one schema."""

SECONDS_TO_CONNECT = 10
SECONDS_FOR_THE_LOCK = 120
LOCK_NOT_AVAILABLE = "55P03"
"""PostgreSQL's code of an error: a lock was waited for too long."""


class PostgresUnusable(ValueError):
    """The server of the instance cannot be used as it is."""


@dataclass(frozen=True)
class Server:
    """A database of a PostgreSQL server; its address, which may hold a password, is never shown.

    Raises:
        PostgresUnusable: the address is none of a database in PostgreSQL; names the variable, not the address.
    """

    url: str = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse an address that leads to no database."""
        if (wrong := _what_is_wrong(self.url)) is not None:
            raise PostgresUnusable(f"{URL_VARIABLE} {wrong}. Set it to an address such as {EXAMPLE}, in which signs "
                                   "of the password other than letters and digits are percent-encoded.")  # fmt: skip

    @classmethod
    def of_environment(cls) -> "Server":
        """The server that the environment names; nothing else does, since files are copied and shown."""
        require_extra()
        return cls(os.environ.get(URL_VARIABLE, ""))

    @property
    def address(self) -> str:
        """The address with its driver, as SQLAlchemy takes it. It may hold a password."""
        return _text(_parsed(self.url).set(drivername=DRIVER))

    @property
    def mlflow_address(self) -> str:
        """The same, leading into MLflow's schema."""
        url = _parsed(self.address)
        given = url.query.get("options", ())
        options = " ".join([*([given] if isinstance(given, str) else given), f"-csearch_path={MLFLOW_SCHEMA}"])
        return _text(url.update_query_dict({"options": options}))

    def require(self) -> None:
        """Check that the server answers, and takes this user to this database.

        Raises:
            PostgresUnusable: what the server or the network said, and what to look at.
        """
        self._connect().close()

    @contextlib.contextmanager
    def alone(self, purpose: str) -> Iterator["Connection"]:
        """A connection that no other process, on whatever machine, has for this purpose at the same time.

        It holds a lock of its session and no transaction: indexes that are made meanwhile would wait for one.

        Raises:
            PostgresUnusable: the server refused what was done meanwhile, or another process does not come to an end.
        """
        from sqlalchemy import text
        from sqlalchemy.exc import DBAPIError

        with self._connect() as connection:
            try:
                connection.execute(text(f"SET lock_timeout = '{SECONDS_FOR_THE_LOCK}s'"))
                connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _lock_key(purpose)})
                yield connection
            except DBAPIError as error:
                if getattr(error.orig, "pgcode", "") == LOCK_NOT_AVAILABLE:
                    raise PostgresUnusable(
                        f"Another process has held the database's lock for {purpose} for more than "
                        f"{SECONDS_FOR_THE_LOCK} s (lock timeout). Wait until it has ended, or end it: the view "
                        "pg_locks shows it, as advisory."
                    ) from None
                raise _unusable(error) from None

    def make_mlflow_schema(self, connection: "Connection") -> None:
        """Make the schema of MLflow's tables if it is not there."""
        from sqlalchemy import text

        there = text("SELECT 1 FROM pg_namespace WHERE nspname = :name")  # else a user who may make none is refused
        if connection.execute(there, {"name": MLFLOW_SCHEMA}).first() is None:
            connection.execute(text(f"CREATE SCHEMA {MLFLOW_SCHEMA}"))

    def _connect(self) -> "Connection":
        from sqlalchemy import create_engine
        from sqlalchemy.exc import DBAPIError
        from sqlalchemy.pool import NullPool

        patience = {} if "connect_timeout" in _parsed(self.url).query else {"connect_timeout": SECONDS_TO_CONNECT}
        engine = create_engine(self.address, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=patience)
        try:
            return engine.connect()
        except DBAPIError as error:
            raise _unusable(error) from None


def require_extra() -> None:
    """Check that what Dagster and MLflow need for PostgreSQL is installed.

    Raises:
        PostgresUnusable: says what to install.
    """
    if missing := [name for name in ("dagster_postgres", "psycopg2") if importlib.util.find_spec(name) is None]:
        raise PostgresUnusable(
            f"The instance is to be kept in PostgreSQL, and {missing[0]} is not installed. Install it: {EXTRA}"
        )


def _what_is_wrong(url: str) -> str | None:
    """What keeps an address from being that of a database, in words that show nothing of it; None if nothing does."""
    from sqlalchemy.exc import ArgumentError

    if not url:
        return "is not set"
    try:
        parsed = _parsed(url)
    except (ArgumentError, ValueError):
        return "cannot be read as an address"
    if "@" in (parsed.host or ""):  # the end of a password, which every error would show as the server's name
        return "has more than one @"
    if parsed.drivername not in SCHEMES:
        return "does not begin with postgresql://"
    return None if parsed.database else "names no database"


def _parsed(url: str) -> "URL":
    from sqlalchemy.engine import make_url

    return make_url(url)


def _text(url: "URL") -> str:
    return url.render_as_string(hide_password=False)


def _lock_key(purpose: str) -> int:
    """A signed number of 64 bits, the same on every machine."""
    told = hashlib.sha256(f"sam_laplace_assets {purpose}".encode()).digest()
    return int.from_bytes(told[:8], signed=True)


def _unusable(error: Exception) -> PostgresUnusable:
    """What the driver says, on one line, without what was asked."""
    said = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
    return PostgresUnusable(
        f"PostgreSQL cannot be used for the instance: {redact(said)}. Look whether the server is up, the database is "
        f"there (createdb), its owner is the user, and {URL_VARIABLE} is right."
    )
