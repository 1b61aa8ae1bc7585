"""Simulates many samples through the platform's own stages, SAM and its arrays faked, and keeps what they cost.

`python -m sam_laplace_assets_tests.benchmarks.simulation --samples 200000 --folder DIR`

Each asset is made in a process of its own, over the three base splits; then everything again, where nothing changed,
without any fake; then the looks at a project that a sensor and `gc` take. simulated.py says what is faked. DIR is made,
and removed at the end; simulation.json keeps the figures of each size, and SCALE.md is made from them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sam_laplace_assets_tests.benchmarks.bench_scale import _peak
from sam_laplace_assets_tests.benchmarks.preparing import SCAN, SPLITS, TO_THE_PACK

KEPT = Path(__file__).with_name("simulation.json")
ASSETS = (SCAN[0], *TO_THE_PACK)
FIRST, AGAIN, LOOKS = "nothing there", "nothing changed", "looking"
BLOCK = 512
"""Bytes that `st_blocks` counts in."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate one size, and keep its figures in the place of its earlier ones."""
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--sets", type=int, default=1, help="prompt sets a sample, in each split")
    parser.add_argument("--folder", type=Path, required=True, help="is made, and removed at the end")
    parser.add_argument("--synced", action="store_true", help="sync the files of each sample, as the platform does")
    parser.add_argument("--stage", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.stage is not None:
        print(json.dumps(_carry_out_stage(asked)))
        return
    keep(simulate(asked))


def simulate(asked: argparse.Namespace) -> dict[str, Any]:
    """The figures of one simulation."""
    from sam_laplace_assets_tests.benchmarks import __main__ as bench

    asked.folder.mkdir(parents=True)
    try:
        stages = [_in_child(asked, *stage) for stage in _stages()]
        disk = {name: count(asked.folder / place) for name, place in _places()}
    finally:
        shutil.rmtree(asked.folder)
    return {"samples": asked.samples, "sets": asked.sets, "synced": asked.synced, "measured_on": bench.machine(),
            "measured": datetime.now(UTC).date().isoformat(), "stages": stages, "disk": disk}  # fmt: skip


def _stages() -> Iterator[tuple[str, str]]:
    yield FIRST, "samples"
    yield from ((FIRST, asset) for asset in ASSETS)
    yield from ((AGAIN, asset) for asset in ASSETS)
    yield from ((LOOKS, name) for name in ("watch", "gc"))


def _places() -> Iterator[tuple[str, str]]:
    """What is counted apart, and where it lies."""
    yield from (("images", "images"), ("masks", "masks"), ("manifests", "project/manifests"))
    yield from (("prompt_sets", "project/prompt_sets"), ("sam_cache", "project/sam_precompute"))
    yield "training_data", "project/training_data"


def _in_child(asked: argparse.Namespace, when: str, name: str) -> dict[str, Any]:
    """What one stage cost, in a fresh process."""
    command = [sys.executable, "-m", __name__ if __name__ != "__main__" else __spec__.name]
    given = ["--samples", str(asked.samples), "--sets", str(asked.sets), "--folder", str(asked.folder)]
    flags = ["--synced"] if asked.synced else []
    done = subprocess.run(
        [*command, *given, *flags, "--stage", when, name], stdout=subprocess.PIPE, text=True, check=True
    )
    found = {"when": when, "stage": name, **json.loads(done.stdout.splitlines()[-1])}
    print(", ".join(f"{key} {value}" for key, value in found.items()), flush=True)
    return found


def _carry_out_stage(asked: argparse.Namespace) -> dict[str, Any]:
    """Carry out one stage in this process; imports are done before its time begins."""
    when, name = asked.stage
    work = _work(asked, when, name)
    started, used = time.perf_counter(), time.process_time()
    made = work()
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    return {"seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3), "peak_MiB": _peak(), "made": made}


def _work(asked: argparse.Namespace, when: str, name: str) -> Any:
    from sam_laplace_assets.settings import SETTINGS_VARIABLE
    from sam_laplace_assets_tests.benchmarks.simulated import draw_samples

    os.environ[SETTINGS_VARIABLE] = str(asked.folder / "config.yaml")
    _import()
    if name == "samples":
        _new_project(asked)
        return lambda: draw_samples(asked.folder, asked.samples)
    if when == LOOKS:
        return {"watch": _watch, "gc": _garbage}[name]
    return lambda: make(name, fake=when == FIRST, synced=asked.synced)


def _import() -> None:
    """What a worker has imported before its first stage."""
    import dagster as dg
    import h5py  # noqa: F401
    import PIL.Image  # noqa: F401
    import pyarrow.compute  # noqa: F401

    import sam_laplace_assets.freshness
    import sam_laplace_assets.storage.garbage  # noqa: F401

    dg.DagsterInstance.ephemeral().dispose()


def _new_project(asked: argparse.Namespace) -> None:
    from sam_laplace_assets_tests.small_project import SmallProject

    project = SmallProject.new(asked.folder, classes={})
    counts = {f"num_promptsets_{role}": asked.sets for role in SPLITS}
    project.change(prompt_generation={**counts, "max_pairs": 10})


def make(asset: str, *, fake: bool, synced: bool = True) -> int:
    """Make an asset of all base splits; how many units were made."""
    import dagster as dg

    from sam_laplace_assets_tests.benchmarks.preparing import carry_out
    from sam_laplace_assets_tests.benchmarks.simulated import sparse_arrays

    splits = ("",) if asset == SCAN[0] else SPLITS
    with dg.DagsterInstance.ephemeral() as instance:
        if not fake:
            return sum(carry_out(asset, split, instance).made for split in splits)
        with sparse_arrays(synced=synced):
            return sum(_carry_out_faked(asset, split, instance).made for split in splits)


def _carry_out_faked(asset: str, split: str, instance: Any) -> Any:
    from sam_laplace_assets.assets.graph import BY_NAME
    from sam_laplace_assets.freshness import wanted_plan
    from sam_laplace_assets.settings import load_settings
    from sam_laplace_assets.storage.materialise import materialise
    from sam_laplace_assets_tests.benchmarks.preparing import quiet, store_of
    from sam_laplace_assets_tests.benchmarks.simulated import faked

    plan = faked(wanted_plan(BY_NAME[asset], split, load_settings(), instance, {}), asset)
    outcome = materialise(plan, store_of(asset, split), progress=quiet)
    plan.report(outcome.records)
    return outcome


def _watch() -> int:
    """Look at names, sizes and times, as the retraining sensor does at each tick."""
    from sam_laplace_assets.settings import load_settings
    from sam_laplace_assets.storage.watch import watch

    watch(load_settings())
    return 0


def _garbage() -> int:
    """List what nothing points to."""
    from sam_laplace_assets.settings import load_settings
    from sam_laplace_assets.storage.garbage import garbage
    from sam_laplace_assets.storage.project import Project

    return len(garbage(Project.of(load_settings()), splits=SPLITS, keep_runs=2))


def count(folder: Path) -> dict[str, int]:
    """What lies below a folder: files, folders, their bytes as they say and as the disk gives them, the fullest folder.

    The folder itself is counted.
    """
    found = {"files": 0, "folders": 1, "bytes": 0, "allocated": folder.stat().st_blocks * BLOCK, "most_in_a_folder": 0}
    left = [folder]
    while left:
        with os.scandir(left.pop()) as entries:
            inside = list(entries)
        found["most_in_a_folder"] = max(found["most_in_a_folder"], len(inside))
        for entry in inside:
            state = entry.stat(follow_symlinks=False)
            found["allocated"] += state.st_blocks * BLOCK
            if entry.is_dir(follow_symlinks=False):
                found["folders"] += 1
                left.append(Path(entry.path))
            else:
                found["files"] += 1
                found["bytes"] += state.st_size
    return found


def keep(found: dict[str, Any], *, kept: Path = KEPT) -> None:
    """Put a simulation in the place of the one of its size."""
    before = json.loads(kept.read_text()) if kept.exists() else {"runs": []}
    runs = before["runs"]
    size = [found[name] for name in ("samples", "sets", "synced")]
    others = [run for run in runs if [run[name] for name in ("samples", "sets", "synced")] != size]
    ordered = sorted([*others, found], key=lambda run: (run["samples"], run["sets"], run["synced"]))
    kept.write_text(json.dumps({**before, "runs": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    main()
