"""A real PostgreSQL server of Debian's package, on loopback, that is thrown away."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

PLACES = (*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/local/bin"), Path("/usr/bin"))
BINARIES = next((place for place in PLACES if (place / "initdb").exists() and (place / "postgres").exists()), None)
NEEDS_POSTGRES = pytest.mark.skipif(BINARIES is None, reason="needs PostgreSQL's server: apt-get install postgresql")
UNPRIVILEGED = "postgres"
SECONDS_TO_START = 30
ROLE = "ada"
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=32MB")


@dataclass(frozen=True)
class PostgresServer:
    """A server with a role that is no superuser; its password holds signs that an address must encode."""

    folder: Path
    port: int
    password: str

    def database(self, name):
        """Make a database that the role owns; its address."""
        self.ask("postgres", f"CREATE DATABASE {name} OWNER {ROLE}")
        return self.url(name)

    def url(self, name, *, user=ROLE):
        return f"postgresql://{user}:{quote(self.password, safe='')}@127.0.0.1:{self.port}/{name}"

    def ask(self, database, statement):
        """Rows that a statement gives the superuser, without a transaction around it."""
        import psycopg2

        with contextlib.closing(psycopg2.connect(self.url(database, user="postgres"))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []

    def contents(self, database):
        """All that a database holds, as text."""
        command = [str(BINARIES / "pg_dump"), "--inserts", self.url(database, user="postgres")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def serving_postgres():
    """Run a server, as an unprivileged user if this one is root, and remove all of it."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    server = PostgresServer(folder, _free_port(), f"p@ss:w/rd%#{secrets.token_hex(8)}")
    try:
        process = _start(server)
        try:
            _wait_for(server, process)
            server.ask("postgres", f"CREATE ROLE {ROLE} LOGIN PASSWORD '{server.password}'")
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # ends without waiting for its clients
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(server):
    word = server.folder / "password"
    word.write_text(server.password)
    for path in (server.folder, word):
        if os.geteuid() == 0:
            shutil.chown(path, UNPRIVILEGED, UNPRIVILEGED)
    data = str(server.folder / "data")
    subprocess.run([str(BINARIES / "initdb"), "-D", data, "-U", "postgres", "-A", "scram-sha-256", "--no-sync",
                    "-E", "UTF8", "--locale=C", "--pwfile", str(word)], check=True, capture_output=True,
                   **_as_unprivileged(server))  # fmt: skip
    settings = [word for one in FAST for word in ("-c", one)]
    command = [str(BINARIES / "postgres"), "-D", data, "-h", "127.0.0.1", "-p", str(server.port),
               "-k", str(server.folder), *settings]  # fmt: skip
    with (server.folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, **_as_unprivileged(server))


def _as_unprivileged(server):
    """PostgreSQL refuses to run as root."""
    drop = {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []} if os.geteuid() == 0 else {}
    return {"cwd": server.folder, **drop}


def _wait_for(server, process):
    import psycopg2

    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            return server.ask("postgres", "SELECT 1")
        except psycopg2.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((server.folder / "log").read_text()) from None
            time.sleep(0.1)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
