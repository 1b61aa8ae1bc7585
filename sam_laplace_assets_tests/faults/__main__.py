"""Put the figures that the attacks kept into results.json, and a table of them into the README."""

import argparse
import datetime
import json
from collections import Counter
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from sam_laplace_assets_tests.benchmarks.__main__ import machine
from sam_laplace_assets_tests.faults.figures import Figure, kept

RESULTS = Path(__file__).with_name("results.json")
README = Path(__file__).parents[2] / "README.md"
LISTED = 5
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
        lines += [f"| {one.name} | {one.tried} | {one.survived} | {one.gets} |" for one in together(list(members))]
    tried, survived = (sum(getattr(one, name) for one in figures) for name in ("tried", "survived"))
    took = f"in {measured['seconds'] / 60:.0f} minutes on {measured['machine']}; {measured['measured']}."
    ended = f"{tried} attacks, {survived} survived, {took}"
    return "\n".join([*lines, "", ended, ""])


def together(figures):
    """One figure for those that say the same of several stages or files: `damaged: pack` and `damaged: logits`."""
    of = {figure.name: figure.name.partition(": ")[0] for figure in figures}
    members = {prefix: [one for one in figures if of[one.name] == prefix] for prefix in of.values()}
    return [ones[0] if len(ones) == 1 else _sum(prefix, ones) for prefix, ones in members.items()]


def _sum(prefix, figures):
    names = [one.name.partition(": ")[2] for one in figures]
    named = ", ".join(names) if len(names) <= LISTED else f"{len(names)} kinds"
    gets = {one.gets for one in figures}
    counted = Counter()
    for one in figures if len(gets) > 1 else ():
        for part in one.gets.split("; "):
            outcome, _, number = part.rpartition(": ")
            counted[outcome] += int(number)
    tried, survived = (sum(getattr(one, name) for one in figures) for name in ("tried", "survived"))
    told = "; ".join(f"{outcome}: {number}" for outcome, number in sorted(counted.items())) or gets.pop()
    return Figure(f"{prefix} ({named})", figures[0].group, tried, survived, told)


if __name__ == "__main__":
    main()
