"""Processes that work on one project at once, and what each of them says."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sam_laplace_assets.settings import SETTINGS_VARIABLE
from sam_laplace_assets_tests.small_project import BASE, SPLIT_ASSETS

SECONDS = 240
COMMAND = [sys.executable, "-m", "sam_laplace_assets.cli"]


@dataclass(frozen=True)
class Rival:
    """A process of its own, and what it was told."""

    process: subprocess.Popen

    @classmethod
    def start(cls, *command, project=None, **environment):
        """Start a command; on a project, with its settings and DAGSTER_HOME."""
        of_project = {} if project is None else {SETTINGS_VARIABLE: str(project.config),
                                                 "DAGSTER_HOME": str(project.folder / "dagster_home")}  # fmt: skip
        variables = os.environ | {"OMP_NUM_THREADS": "1"} | of_project | environment
        return cls(subprocess.Popen([str(one) for one in command], env=variables, text=True, stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT))  # fmt: skip

    @classmethod
    def running(cls, project, *arguments):
        """`sam-laplace run` on a project."""
        return cls.start(*COMMAND, "run", *arguments, project=project)

    @classmethod
    def of_script(cls, script, *arguments, **more):
        """A script of these tests."""
        return cls.start(sys.executable, "-c", script, *arguments, **more)

    def ends(self):
        """What it said; it must end well, and in time."""
        try:
            said, _ = self.process.communicate(timeout=SECONDS)
        finally:
            self.stop()
        if self.process.returncode:
            raise AssertionError(f"ended with {self.process.returncode}:\n{said}")
        return said

    def stop(self):
        """End it, however it is."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def all_stopped(*rivals):
    """Leave none running."""
    try:
        yield rivals
    finally:
        for one in rivals:
            one.stop()


def started_together(folder, count):
    """Wait until all of some processes are ready, then let them go at once."""
    deadline = time.monotonic() + SECONDS
    while len(list(folder.glob("ready-*"))) < count:
        if time.monotonic() > deadline:
            raise AssertionError(f"{len(list(folder.glob('ready-*')))} of {count} processes got ready")
        time.sleep(0.02)
    (folder / "go").touch()


READY = """
import os, sys, time
from pathlib import Path

def ready(folder, round=""):
    folder = Path(folder)
    (folder / f"ready-{round}-{os.getpid()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.005)
"""
"""What a script begins with that waits for others."""


def made_in_all(project):
    """Asset partition -> items that all of its materialisations together have made, and the Dagster runs of them."""
    import dagster as dg

    wanted = [(asset, split) for asset in SPLIT_ASSETS for split in BASE]
    wanted += [("head_checkpoint", "train"), ("laplace_posterior", "train"), ("all_samples", None),
               ("validation_pack", None), ("champion", None), ("evaluation", "test"),
               ("prompt_scores", "test")]  # fmt: skip
    found = Counter()
    with project.instance() as instance:
        for asset, split in wanted:
            filtered = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[split] if split else None)
            for record in instance.fetch_materializations(filtered, limit=100).records:
                told = record.asset_materialization.metadata
                found[asset, split] += int(next(one.value for name, one in told.items() if name.endswith(" made")))
    return dict(found)


def leases_of(project):
    """What is left in the folder of leases."""
    folder = project.root / "leases"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def report_of(text):
    """The JSON that a script ends with."""
    return json.loads(text.strip().splitlines()[-1])


def integrity(folder):
    """What SQLite says of every database below a folder: `ok`, or what is wrong."""
    import sqlite3

    found = {}
    for path in sorted(Path(folder).rglob("*.db")):
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
            found[path.relative_to(folder).as_posix()] = connection.execute("PRAGMA integrity_check").fetchone()[0]
    return found
