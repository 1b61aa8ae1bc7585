"""Measures how near the platform comes to the arithmetic it cannot avoid: `make bench`, or some rows by name.

Each row is a pair timed side by side in one process, ours and a plain reference of this folder, in turns over several
rounds. results.json, results.md and the README keep what was measured; a row that is not asked for keeps its figures.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sam_laplace_assets_tests.benchmarks.registry import BENCHMARKS

HERE = Path(__file__).parent
RESULTS, TABLE, README = HERE / "results.json", HERE / "results.md", HERE.parents[1] / "README.md"
BEGIN, END = "<!-- what make bench measured -->", "<!-- until here -->"
LIBRARIES = ("torch", "segment-anything", "laplace-torch", "numpy", "h5py", "dagster", "mlflow")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the rows that are asked for, each in a process of its own, and write all pages that show them."""
    asked = _parse(arguments)
    if asked.in_process:
        print(json.dumps([row.as_json() for row in BENCHMARKS[asked.names[0]](asked.rounds)]))
        return
    from sam_laplace_assets_tests.benchmarks import scale  # which reads what is kept here

    for name in asked.names or BENCHMARKS:
        print(f"{name} ...", flush=True)
        rows = _measure(name, asked.rounds)
        for row in rows:
            print(f"  {line(row)}", flush=True)
        if rows:
            keep(name, rows)
            scale.main()
        else:
            print("  nothing that this machine could measure; its rows stay as they are", flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="BENCHMARK", help=f"some of: {', '.join(BENCHMARKS)}; all if none")
    parser.add_argument("--rounds", type=int, default=7, help="pairs that are timed")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    return asked


def _measure(name: str, rounds: int) -> list[dict[str, Any]]:
    """The rows of one benchmark, measured in a fresh process, whose last line they are."""
    command = [sys.executable, "-m", "sam_laplace_assets_tests.benchmarks", name, "--in-process"]
    done = subprocess.run([*command, "--rounds", str(rounds)], stdout=subprocess.PIPE, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def keep(name: str, rows: Sequence[dict[str, Any]], *, results: Path = RESULTS, table: Path = TABLE,
         readme: Path = README) -> None:  # fmt: skip
    """Put a benchmark's rows in the place of its earlier ones, in all three files."""
    measured = {"machine": machine(), "versions": {one: version(one) for one in LIBRARIES},
                "measured": datetime.now(UTC).date().isoformat()}  # fmt: skip
    earlier = json.loads(results.read_text())["rows"] if results.exists() else []
    kept = [row for row in earlier if row["benchmark"] != name and row["benchmark"] in BENCHMARKS]
    added = [{"benchmark": name, **row, "measured_on": measured["machine"]} for row in rows]
    places = list(BENCHMARKS)
    ordered = sorted([*kept, *added], key=lambda row: places.index(row["benchmark"]))
    results.write_text(json.dumps({**measured, "rows": ordered}, indent=2) + "\n")
    table.write_text(markdown(ordered, measured))
    before, _, rest = readme.read_text().partition(f"{BEGIN}\n")
    readme.write_text(f"{before}{BEGIN}\n{table.read_text()}{END}{rest.partition(END)[2]}")


def machine() -> str:
    """The processor, how many cores of it this process has, and the accelerator if there is one."""
    cores = len(os.sched_getaffinity(0))
    accelerator = ""
    import torch

    if torch.cuda.is_available():
        accelerator = f", {torch.cuda.get_device_name()}"
    return f"{_processor()}, {cores} cores{accelerator}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [one for one in info.read_text().splitlines() if one.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def markdown(rows: Sequence[dict[str, Any]], measured: dict[str, Any]) -> str:
    """The rows as a table, with the machine under it, and others that some rows were measured on."""
    head = ["| what | against | ratio, median [interval] | to reach | reached |", "|---|---|---|---|---|"]
    here = measured["machine"]
    others = sorted({row["measured_on"] for row in rows if row["measured_on"] != here})
    marks = {machine: f" ({number})" for number, machine in enumerate(others, 1)} | {here: ""}
    body = [f"| {row['what']} | {row['against']} | {figure(row)}{marks[row['measured_on']]} | {target(row)} "
            f"| {verdict(row)} |" for row in rows]  # fmt: skip
    machines = "; ".join([here, *(f"({number}) on {machine}" for number, machine in enumerate(others, 1))])
    versions = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    return "\n".join([*head, *body, "", f"Measured on {machines}; {versions}; {measured['measured']}.", ""])


def line(row: dict[str, Any]) -> str:
    """One row for the terminal."""
    notes = ", ".join(f"{name} {value}" for name, value in row["notes"].items())
    return f"{row['name']}: {figure(row)} (to reach: {target(row)}; reached: {verdict(row)}) {notes}"


def figure(row: dict[str, Any]) -> str:
    """The ratio and its interval."""
    unit = "" if row["unit"] == "x" else f" {row['unit']}"
    if row["interval"] is None:
        return f"{row['ratio']:.3g}{unit}"
    low, high = row["interval"]
    return f"{row['ratio']:.3g} [{low:.3g}, {high:.3g}]{unit}"


def target(row: dict[str, Any]) -> str:
    """What was to be reached."""
    if row["target"] is None:
        return "-"
    return f"{'at most' if row['better'] == 'lower' else 'at least'} {row['target']:g}"


def verdict(row: dict[str, Any]) -> str:
    """Whether it was."""
    return {True: "yes", False: "no", None: "-"}[row["met"]]


if __name__ == "__main__":
    main()
