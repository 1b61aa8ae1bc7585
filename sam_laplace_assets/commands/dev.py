"""`sam-laplace dev`: Dagster's UI with its daemon, and MLflow's UI, on this machine only."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

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
    tell(f"Dagster  http://{LOOPBACK}:{port}   (instance {home})")
    servers = [_start(_dagster(port))]
    if settings.mlflow.enabled and (command := _mlflow(settings)):
        tell(f"MLflow   http://{LOOPBACK}:{UI_PORT}")
        servers.append(_start(command))
    return _wait(servers)


def _dagster(port: int) -> list[str]:
    return [sys.executable, "-m", "dagster", "dev", "-w", str(shipped("workspace.yaml")), "-h", LOOPBACK,
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

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, stop)
    while not told and all(server.poll() is None for server in servers):
        time.sleep(0.2)
    ended = [server.returncode for server in servers if server.poll() is not None]
    _stop(servers)
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
