"""The workers that a run sends chunks to: those of a scheduler that is there, or some that it starts itself."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_laplace_assets.settings import ComputeSettings
from sam_laplace_assets.storage import files

if TYPE_CHECKING:
    from distributed import Client, SpecCluster

LOCAL = "local"
SECONDS_TO_CONNECT = 30


class NoScheduler(RuntimeError):
    """The scheduler cannot be reached, or went away."""


@dataclass(frozen=True)
class Crew:
    """A scheduler's workers.

    Attributes:
        client: of the scheduler.
        address: of it, as the settings name it.
        resources: what a worker must offer.
    """

    client: "Client"
    address: str
    resources: Mapping[str, float]

    def workers(self) -> tuple[list[str], int]:
        """Addresses of those that offer what is needed, and how many there are in all. Raises `NoScheduler`."""
        try:
            known = self.client.scheduler_info(n_workers=-1)["workers"]
        except (OSError, KeyError, TimeoutError, RuntimeError) as error:
            raise gone(self.address) from error
        if self.client.status != "running":
            raise gone(self.address)
        return [address for address, worker in known.items() if self._offers(worker["resources"])], len(known)

    def _offers(self, resources: Mapping[str, float]) -> bool:
        return all(resources.get(name, 0) >= amount for name, amount in self.resources.items())


def gone(address: str) -> NoScheduler:
    """What to say of a scheduler that does not answer any more."""
    return NoScheduler(
        f"The Dask scheduler {address} does not answer any more. What its workers finished is kept: start it and them "
        "again, then materialise again."
    )


@contextmanager
def crew_of(compute: ComputeSettings) -> Iterator[Crew]:
    """The workers that the settings name.

    Raises:
        NoScheduler: nobody answers at that address, or Dask is not installed; says what to do.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise NoScheduler(
            f"compute.scheduler is {compute.scheduler}, which needs Dask: pip install "
            "'sam-laplace-assets[distributed]', or leave compute.scheduler out to work in this process."
        ) from error
    with _address(compute) as address:
        try:
            client = Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise NoScheduler(
                f"No Dask scheduler answers at {compute.scheduler} within {SECONDS_TO_CONNECT} s ({error}). Start one "
                "with `dask scheduler`, or leave compute.scheduler out to work in this process."
            ) from error
        try:
            yield Crew(client, str(compute.scheduler), compute.resources)
        finally:
            client.close(timeout=5)


@contextmanager
def _address(compute: ComputeSettings) -> Iterator[Any]:
    if compute.scheduler != LOCAL:
        yield _told_by(compute.scheduler) if str(compute.scheduler).endswith(".json") else compute.scheduler
        return
    cluster = start_local(compute)
    try:
        yield cluster
    finally:
        cluster.close(timeout=10)


def _told_by(path: Any) -> str:
    """The address in a scheduler file. Raises `NoScheduler`."""
    try:
        return str(files.read_json(Path(path))["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoScheduler(
            f"compute.scheduler names {path}, which tells no address of a Dask scheduler ({type(error).__name__}). "
            f"Start one with `dask scheduler --scheduler-file {path}`."
        ) from error


def start_local(compute: ComputeSettings) -> "SpecCluster":
    """Workers on this machine: one a GPU, each with its own, or as many as are asked for, sharing the cores."""
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = _gpus()
    count = compute.workers or max(1, gpus)
    options: dict[str, Any] = {"nthreads": max(1, len(os.sched_getaffinity(0)) // count), "memory_limit": 0,
                               "resources": dict(compute.resources), "host": "127.0.0.1",
                               "silence_logs": logging.ERROR}  # fmt: skip
    workers = {
        number: {"cls": Nanny, "options": {**options, "env": _sees_one(number, gpus)}} for number in range(count)
    }
    plain: dict[str, str] = {}  # Dask would have each worker compute with one thread, and give memory back at once
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}}
    with dask.config.set({"distributed.nanny.pre-spawn-environ": plain}):
        return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.ERROR)


def _sees_one(number: int, gpus: int) -> dict[str, str]:
    """The environment of a worker that has one GPU to itself, if there are any."""
    if gpus < 2:
        return {}
    ours = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return {"CUDA_VISIBLE_DEVICES": (ours or list(map(str, range(gpus))))[number % gpus]}


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
