"""How long the code location takes to load and a step to start, held against those of Dagster with nothing in it."""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import yaml

from sam_laplace_assets_tests.benchmarks.harness import Benchmark, Row, median_interval, paired

OURS = "sam_laplace_assets.definitions"
LOAD = """
import sys
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._grpc.server import LoadedRepositories
origin = LoadableTargetOrigin(module_name=sys.argv[1], attribute="defs", working_directory=".")
LoadedRepositories(origin, None, entry_point=[], container_context=None)
"""
EMPTY = "import dagster as dg\n\ndefs = dg.Definitions()\n"
EMPTY_STEPS = """
import dagster as dg

@dg.asset
def first() -> None: ...

@dg.asset(deps=[first])
def second() -> None: ...

defs = dg.Definitions(
    assets=[first, second],
    jobs=[dg.define_asset_job("scan")],
    executor=dg.multiprocess_executor.configured({"start_method": {"forkserver": {}}}),
)
"""
STARTS = """
import json, sys
import dagster as dg
with dg.DagsterInstance.get() as instance:
    run_id = instance.get_runs(limit=1)[0].run_id
    seen = {}
    for entry in instance.all_logs(run_id):
        if entry.dagster_event is not None and entry.dagster_event.step_key:
            seen.setdefault(entry.dagster_event.step_key, {})[entry.dagster_event.event_type_value] = entry.timestamp
    steps = [one for one in seen.values() if "STEP_START" in one]
    print(json.dumps([one["STEP_START"] - one["STEP_WORKER_STARTING"] for one in steps]))
"""
MODULE_OF = {"ours": OURS, "theirs": "empty_steps"}


def load(rounds: int) -> list[Row]:
    """A process that loads the code location as Dagster's code server does, from its start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "empty_location.py").write_text(EMPTY)
        command = partial(_run, Path(folder), "-c", LOAD)
        return [
            paired(
                "code_location_load",
                partial(command, OURS),
                partial(command, "empty_location"),
                what="loading the code location in a new process, as Dagster's code server does",
                against="a code location without any definition",
                target=1.5,
                better="lower",
                rounds=rounds,
            )
        ]


def steps(rounds: int) -> list[Row]:
    """From the event that says a step's process is started to the one that says the step runs, in runs of two steps."""
    from sam_laplace_assets_tests.small_project import NO_LOGS

    with tempfile.TemporaryDirectory() as folder:
        homes = {side: _home(Path(folder) / side) for side in MODULE_OF}
        (homes["theirs"] / "empty_steps.py").write_text(EMPTY_STEPS)
        (homes["theirs"] / "dagster_home" / "dagster.yaml").write_text(NO_LOGS)
        for side in MODULE_OF:  # files are read from the disk once
            _starts(homes[side], MODULE_OF[side])
        turns = [[*MODULE_OF][:: 1 if turn % 2 else -1] for turn in range(rounds)]
        seconds = [{side: _starts(homes[side], MODULE_OF[side]) for side in turn} for turn in turns]
    return [
        _row("step_start", "the first step of a run, from the start of its process to its first line", seconds, 0),
        _row("next_step_start", "the second step of a run, likewise", seconds, 1),
    ]


def _row(name: str, what: str, seconds: list[dict[str, list[float]]], step: int) -> Row:
    ratios = [one["ours"][step] / one["theirs"][step] for one in seconds]
    low, high, confidence = median_interval(ratios)
    medians = {f"{side}_s": round(statistics.median(one[side][step] for one in seconds), 3) for side in MODULE_OF}
    return Row(name, what, "an empty step in an otherwise empty code location, forked by Dagster's defaults",
               statistics.median(ratios), (low, high), confidence, 1.5, "lower", rounds=len(ratios),
               notes=medians)  # fmt: skip


def _home(folder: Path) -> Path:
    """A project of two samples with a Dagster instance of its own."""
    from sam_laplace_assets_tests.small_project import SmallProject

    folder.mkdir()
    SmallProject.new(folder, classes={"discs": 2})
    (folder / "workspace.yaml").write_text(yaml.safe_dump({"load_from": []}))
    return folder


def _starts(home: Path, module: str) -> list[float]:
    """Seconds that each step of one run took to start, in their order."""
    _run(home, "-m", "dagster", "job", "execute", "-m", module, "-a", "defs", "-j", "scan")
    return list(map(float, yaml.safe_load(_run(home, "-c", STARTS))))


def _run(home: Path, *arguments: str) -> str:
    """What a Python process with these arguments prints; it works in a folder and with the settings there."""
    root = str(Path(__file__).parents[2])
    variables: Mapping[str, str] = {
        "PYTHONPATH": f"{root}{os.pathsep}{home}",
        "SAM_LAPLACE_CONFIG": str(home / "config.yaml"),
        "DAGSTER_HOME": str(home / "dagster_home"),
    }
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=home, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed in {home}:\n{done.stderr[-2000:]}")
    return done.stdout


BENCHMARKS: dict[str, Benchmark] = {"code_location_load": load, "step_start": steps}
