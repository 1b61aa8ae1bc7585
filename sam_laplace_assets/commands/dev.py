"""`sam-laplace dev`: Dagster's UI with its daemon, and MLflow's UI, on this machine only."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import click

from sam_laplace_assets.commands import dagster_dev
from sam_laplace_assets.commands.demo import make_demo_files
from sam_laplace_assets.commands.home import prepare_home, shipped
from sam_laplace_assets.resources.tracking import UI_PORT, Store
from sam_laplace_assets.settings import Settings, load_settings

LOOPBACK = "127.0.0.1"
SECONDS_TO_STOP = 20.0


def serve(port: int, tell: Callable[[str], None]) -> int:
    """Run both servers until one ends or this process is told to stop, and leave none behind."""
    settings = load_settings()
    if settings.is_demo:
        make_demo_files(settings)
    home = prepare_home(settings)
    _require_free(port, "the Dagster UI; choose another with --port")
    commands = [_dagster(port)]
    told = [f"Dagster  http://{LOOPBACK}:{port}   (instance {home})"]
    if settings.mlflow.enabled and (command := _mlflow(settings)):
        _require_free(
            UI_PORT, "MLflow's UI; stop what listens there, or set mlflow.tracking_uri or mlflow.enabled: false"
        )
        commands.append(command)
        told.append(f"MLflow   http://{LOOPBACK}:{UI_PORT}")
    servers: list[subprocess.Popen[bytes]] = []
    try:
        tell("\n".join(told))
        servers += [_start(command) for command in commands]
        return _wait(servers)
    finally:
        _stop(servers)


def _require_free(port: int, purpose: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise click.ClickException(f"Port {port} of this machine is taken. It is needed for {purpose}.") from error


def _dagster(port: int) -> list[str]:
    os.environ.setdefault("DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS", "600")  # a look at a large project takes its time
    return [sys.executable, "-m", dagster_dev.__name__, "dev", "-w", str(shipped("workspace.yaml")), "-h", LOOPBACK,
            "-p", str(port)]  # fmt: skip


def _mlflow(settings: Settings) -> list[str]:
    """MLflow's server on our own database; nothing where a server is named in the settings."""
    store = Store.of(settings)
    if store.artifacts is None:
        return []
    store.client()
    return [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri, "--host", LOOPBACK,
            "--port", str(UI_PORT), "--workers", "1",
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
