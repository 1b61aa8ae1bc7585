"""Put the figures that the attacks kept into results.json, and a table of them into the README."""

import argparse
import datetime
import json
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from sam_laplace_assets_tests.benchmarks.__main__ import machine
from sam_laplace_assets_tests.faults.figures import Figure, kept

RESULTS = Path(__file__).with_name("results.json")
README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- what make test-faults counted -->", "<!-- so much for the faults -->"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True, help="how long the attacks took")
    given = parser.parse_args()
    figures = [asdict(one) for one in kept()]
    if not figures:
        parser.error("no attack kept a figure: run make test-faults")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    measured = {"machine": machine(), "measured": today, "seconds": given.seconds, "rows": figures}
    RESULTS.write_text(json.dumps(measured, indent=2) + "\n")
    before, _, rest = README.read_text().partition(f"{BEGIN}\n")
    README.write_text(f"{before}{BEGIN}\n{markdown(measured)}{END}{rest.partition(END)[2]}")
    print(markdown(measured))


def markdown(measured):
    """The figures as a table: a row for each group of attacks, and what its users get."""
    lines = ["| attack | tried | survived | what you get |", "|---|---|---|---|"]
    figures = [Figure(**{name: one[name] for name in one if name != "order"}) for one in measured["rows"]]
    for group, members in groupby(figures, key=lambda one: one.group):
        lines.append(f"| **{group}** | | | |")
        lines += [f"| {one.name} | {one.tried} | {one.survived} | {one.gets} |" for one in members]
    tried, survived = (sum(getattr(one, name) for one in figures) for name in ("tried", "survived"))
    took = f"in {measured['seconds'] / 60:.0f} minutes on {measured['machine']}; {measured['measured']}."
    ended = f"{tried} attacks, {survived} survived, {took}"
    return "\n".join([*lines, "", ended, ""])


if __name__ == "__main__":
    main()
