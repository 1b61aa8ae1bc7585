"""A lab's Dask: a scheduler and workers, real processes on loopback, started with the README's commands."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

DASK = Path(sys.executable).with_name("dask")


@dataclass
class Lab:
    """Processes that are gone when the block ends."""

    folder: Path
    processes: list = field(default_factory=list)
    address: str = ""
    file: Path | None = None

    def scheduler(self, port=0):
        """Start a scheduler and wait for its address; on the same port as one before if that is named."""
        said = self.folder / f"scheduler-{len(self.processes)}.json"
        process = self._start("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard",
                              "--scheduler-file", str(said))  # fmt: skip
        until(said.exists)
        self.file, self.address = said, json.loads(said.read_text())["address"]
        return process

    def worker(self, *options, code=None, **environment):
        """Start a worker, of the package in another folder if one is named."""
        beside = {"PYTHONPATH": str(code)} if code else {}
        return self._start("worker", self.address, "--nthreads", "1", "--no-dashboard", "--no-nanny", "--memory-limit",
                           "0", "--local-directory", str(self.folder), *options, **beside, **environment)  # fmt: skip

    def _start(self, *command, **environment):
        with (self.folder / f"{command[0]}-{len(self.processes)}.log").open("w") as log:
            process = subprocess.Popen([DASK, *command], stdout=log, stderr=log, cwd=self.folder,
                                       env={**os.environ, **environment})  # fmt: skip
        self.processes.append(process)
        return process

    def end(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


@contextlib.contextmanager
def lab_in(folder):
    lab = Lab(folder)
    try:
        yield lab
    finally:
        lab.end()


def until(true, seconds=90.0):
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"{true} did not become true"
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def meanwhile(action):
    """Do something in a thread while the block runs; what it raises is raised."""
    raised = []

    def act():
        try:
            action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    yield
    thread.join()
    assert not raised, raised


def kill(process):
    """SIGKILL, and wait until it is gone."""
    process.send_signal(signal.SIGKILL)
    process.wait()
