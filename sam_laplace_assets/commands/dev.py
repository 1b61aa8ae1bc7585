"""`sam-laplace dev`: Dagster's UI with its daemon, and MLflow's UI, on this machine only unless told otherwise."""

import errno
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click

from sam_laplace_assets.commands import dagster_dev, webserver
from sam_laplace_assets.commands.demo import make_demo_files
from sam_laplace_assets.commands.home import prepare_home, shipped
from sam_laplace_assets.resources.tracking import UI_PORT, Store
from sam_laplace_assets.settings import Settings, load_settings

LOOPBACK = "127.0.0.1"
SECONDS_TO_STOP = 20.0
MLFLOW_STORE = "MLFLOW_BACKEND_STORE_URI"
"""Variable of MLflow's own, of its option --backend-store-uri."""


@dataclass(frozen=True)
class Reach:
    """Who may reach the Dagster UI; MLflow's stays on this machine.

    Attributes:
        port: that it listens on.
        host: address or name that it listens at.
        names: under which it is asked for, as by a proxy, beside addresses and localhost.
        read_only: whether nobody may launch or change anything by it.
    """

    port: int
    host: str = LOOPBACK
    names: Sequence[str] = ()
    read_only: bool = False

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    @property
    def is_here_only(self) -> bool:
        """Whether only this machine reaches it."""
        named = self.host == webserver.LOOPBACK_NAME
        return named or (webserver.is_address(self.host) and ipaddress.ip_address(self.host).is_loopback)

    def environment(self) -> dict[str, str]:
        """What tells the webserver so."""
        names = ",".join([self.host, *self.names])
        return {webserver.NAMES_VARIABLE: names} | ({webserver.READ_ONLY_VARIABLE: "1"} if self.read_only else {})


def serve(reach: Reach, tell: Callable[[str], None]) -> int:
    """Run both servers until one ends or this process is told to stop, and leave none behind."""
    settings = load_settings()
    if settings.is_demo:
        make_demo_files(settings)
    home = prepare_home(settings)
    _require_free(reach.host, reach.port, "the Dagster UI; choose another with --port")
    commands = [_dagster(reach)]
    told = [f"Dagster  {reach.url}   (instance {home}){'   read-only' if reach.read_only else ''}"]
    if not reach.is_here_only:
        told.append(f"It has no login: whoever reaches {reach.host} can {'see' if reach.read_only else 'launch'} "
                    "everything. Let a proxy ask for one, see the README.")  # fmt: skip
    if settings.mlflow.enabled and (command := _mlflow(settings)):
        purpose = "MLflow's UI; stop what listens there, or set mlflow.tracking_uri or mlflow.enabled: false"
        _require_free(LOOPBACK, UI_PORT, purpose)
        commands.append(command)
        told.append(f"MLflow   http://{LOOPBACK}:{UI_PORT}")
    servers: list[subprocess.Popen[bytes]] = []
    try:
        tell("\n".join(told))
        os.environ |= reach.environment()
        servers += [_start(command) for command in commands]
        return _wait(servers)
    finally:
        _stop(servers)


def _require_free(host: str, port: int, purpose: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise click.ClickException(f"Cannot listen at {host}: {error.strerror}. Change --host.") from error
            raise click.ClickException(f"Port {port} of this machine is taken. It is needed for {purpose}.") from error


def _dagster(reach: Reach) -> list[str]:
    os.environ.setdefault("DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS", "600")  # a look at a large project takes its time
    return [sys.executable, "-m", dagster_dev.__name__, "dev", "-w", str(shipped("workspace.yaml")),
            "-h", reach.host, "-p", str(reach.port)]  # fmt: skip


def _mlflow(settings: Settings) -> list[str]:
    """MLflow's server on our own database; nothing where a server is named in the settings."""
    store = Store.of(settings)
    if store.artifacts is None:
        return []
    store.client()
    os.environ[MLFLOW_STORE] = store.uri  # it may hold a password, and all who are on this machine see command lines
    return [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(UI_PORT), "--workers", "1",
            "--artifacts-destination", str(store.artifacts)]  # fmt: skip


def _start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start a server in a session of its own; `env` undoes an inherited "ignore", else a script could not stop it."""
    return subprocess.Popen(["env", "--default-signal=INT,TERM", *command], start_new_session=True, cwd=Path.cwd())


def _wait(servers: "Sequence[subprocess.Popen[bytes]]") -> int:
    told: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        told.append(number)

    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, stop)
    while not told and all(server.poll() is None for server in servers):
        time.sleep(0.2)
    ended = [server.returncode for server in servers if server.poll() is not None]
    return ended[0] if ended else 0


def _stop(servers: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Ask each server's whole session to end, and make it if it does not."""
    for server in servers:
        _signal(server, signal.SIGINT)
    deadline = time.monotonic() + SECONDS_TO_STOP
    while time.monotonic() < deadline and any(server.poll() is None for server in servers):
        time.sleep(0.1)
    for server in servers:
        _signal(server, signal.SIGKILL)
        server.wait()


def _signal(server: "subprocess.Popen[bytes]", number: int) -> None:
    try:
        os.killpg(server.pid, number)
    except ProcessLookupError:
        return
