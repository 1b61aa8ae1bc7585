"""What twenty thousand samples cost when nothing changed, and a million rows in memory, each in its own process."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sam_laplace_assets_tests.benchmarks.harness import Benchmark, Row

SAMPLES, FEWER = 20_000, 2_000
SETS = 10
ROWS = (10_000, 100_000, 1_000_000)


def unchanged(rounds: int) -> list[Row]:
    """Every asset of a hollow project made again where nothing changed; a tenth of the samples tells what is flat."""
    from sam_laplace_assets_tests.benchmarks.preparing import SCAN, TO_THE_PACK

    assets = (SCAN[0], *TO_THE_PACK)
    found = {samples: _unchanged_of(samples, assets) for samples in (FEWER, SAMPLES)}
    return [_unchanged_row(asset, found[FEWER][asset], found[SAMPLES][asset]) for asset in assets]


def _unchanged_of(samples: int, assets: tuple[str, ...]) -> dict[str, dict[str, float]]:
    from sam_laplace_assets_tests.benchmarks.hollow import hollow_project

    with tempfile.TemporaryDirectory(dir=_room()) as name:
        config = hollow_project(Path(name), samples=samples, sets=SETS)
        return {asset: _in_child("again", asset, str(config)) for asset in assets}


def _room() -> str | None:
    """Where to put 800,000 files: in memory if there is room, since disks take minutes to make them."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > 8 << 30 else None


def _unchanged_row(asset: str, fewer: dict[str, float], found: dict[str, float]) -> Row:
    return Row(
        f"unchanged_{asset}",
        f"{asset} materialised again where nothing changed: {SAMPLES:,} samples, {SETS} prompt sets each, three splits",
        "-",
        found["seconds"],
        None,
        None,
        None,
        "lower",
        unit="s",
        notes={"peak_MiB": found["peak_MiB"], f"peak_MiB_at_{FEWER}": fewer["peak_MiB"],
               f"seconds_at_{FEWER}": fewer["seconds"], "items_made": found["made"]},
    )  # fmt: skip


def million_rows(rounds: int) -> list[Row]:
    """Peak memory of making a manifest and an index from nothing, imports included, at three sizes."""
    return [_memory_row(asset, count) for asset in ("manifest", "training_index") for count in ROWS]


def _memory_row(asset: str, count: int) -> Row:
    with tempfile.TemporaryDirectory() as name:
        config = _in_child("write", asset, name, str(count))["config"]
        made = _in_child("again", asset, str(config), "train")
        again = _in_child("again", asset, str(config), "train")
    return Row(
        f"{asset}_{count}_rows",
        f"peak memory of making a {asset} of {count:,} rows, imports included",
        "-",
        round(made["peak_MiB"] / 1024, 3),
        None,
        None,
        2.0 if count == max(ROWS) else None,
        "lower",
        unit="GiB",
        notes={"seconds": made["seconds"], "seconds_unchanged": again["seconds"],
               "GiB_unchanged": round(again["peak_MiB"] / 1024, 3)},
    )  # fmt: skip


def _in_child(*arguments: str) -> dict[str, Any]:
    """What one of this module's own commands prints, run in a fresh process."""
    command = [sys.executable, "-m", __name__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def again(asset: str, config: str, *splits: str) -> dict[str, float]:
    """Materialise one asset of all base splits; its seconds are those of the work, not of imports."""
    import dagster as dg

    from sam_laplace_assets.settings import SETTINGS_VARIABLE
    from sam_laplace_assets_tests.benchmarks.preparing import SPLITS, carry_out

    os.environ[SETTINGS_VARIABLE] = config
    made = 0
    with dg.DagsterInstance.ephemeral() as instance:
        started = time.perf_counter()
        for split in ("",) if asset == "all_samples" else splits or SPLITS:
            made += carry_out(asset, split, instance).made
        seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 3), "peak_MiB": _peak(), "made": made}


def _peak() -> float:
    """Largest resident memory of this process so far, MiB; `ru_maxrss` would count the parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024, 1)


def write(asset: str, folder: str, count: str) -> dict[str, Any]:
    """Put on disk what an asset with so many rows reads."""
    from sam_laplace_assets.storage.project import Project
    from sam_laplace_assets_tests.small_project import SmallProject

    project = SmallProject.new(Path(folder), classes={})
    place = Project.of(project.settings)
    if asset == "manifest":
        _write_manifest(place, "all_samples", int(count))
    else:
        _write_manifest(place, "train", int(count) // SETS)
        _write_cache(place, int(count) // SETS)
    return {"config": str(project.config)}


def _write_manifest(project: Any, name: str, samples: int) -> None:
    from sam_laplace_assets.storage import manifest, tables

    rows = ([row[name] for name in manifest.SCHEMA.names] for row in map(_row, range(samples)))
    note = {"format": "manifest", "version": manifest.VERSION, "complete": True, "data_version": "written"}
    tables.write_batches(project.manifests.table(name), tables.batches_of(rows, manifest.SCHEMA), manifest.SCHEMA, note)


def _row(number: int) -> dict[str, Any]:
    """A valid row of the training split."""
    from sam_laplace_assets.domain.plan import digest

    name = f"class{number % 20:02d}/{number:07d}"
    return {"sample_id": name, "safe_id": name.replace("/", "__"), "class": name[:7], "split": "train",
            "image_path": f"{name}.png", "mask_path": f"{name}.npy", "image_h": 1000, "image_w": 1500, "mask_h": 1000,
            "mask_w": 1500, "foreground_fraction": number % 97 / 97, "image_digest": digest([number, "image"]),
            "mask_digest": digest([number, "mask"]), "valid": True, "reason": None}  # fmt: skip


def _write_cache(project: Any, samples: int) -> None:
    """The ledger of a cache, a block at a time."""
    from sam_laplace_assets.storage import ledger, sam, tables

    note = {"format": "ledger", "version": ledger.VERSION, "complete": True, "data_version": "written"}
    batches = tables.batches_of(map(_cached, range(samples)), ledger.SCHEMA)
    tables.write_batches(sam.ledger_path(project.sam_cache("train")), batches, ledger.SCHEMA, note)


def _cached(number: int) -> tuple[str, ...]:
    """A sample's row of the cache's ledger."""
    row, names = _row(number), [f"{at:04d}" for at in range(SETS)]
    parts, contents = dict(_facts(row["safe_id"], names, 1)), dict(_facts(row["safe_id"], names, 2))
    facts = {"k_pairs": 5, "branch": 0, "n_pos": 5, "n_neg": 5, "image_digest": row["image_digest"]}
    texts = (json.dumps(one, separators=(",", ":")) for one in (parts, contents, dict.fromkeys(names, facts)))
    return row["safe_id"], f"signature of {row['safe_id']}", *texts


def _facts(key: str, names: list[str], maps: int) -> Iterator[tuple[str, str]]:
    """Part -> digests, of logits and of maps."""
    from sam_laplace_assets.domain.plan import digest

    for name in names:
        yield f"{name}/logits", digest([key, name])
        yield f"{name}/maps", "+".join([digest([key, name, "maps"])] * maps)


BENCHMARKS: dict[str, Benchmark] = {"unchanged": unchanged, "million_rows": million_rows}

if __name__ == "__main__":
    command = {"again": again, "write": write}[sys.argv[1]]
    print(json.dumps(command(*sys.argv[2:])))
