"""What 1,000 to 1,000,000 images take, from what was measured: the tables of SCALE.md.

`python -m sam_laplace_assets_tests.benchmarks.scale` puts them between the marks of that page. All is linear in images
and in prompt sets; what is not measured here is named with its source.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sam_laplace_assets
from sam_laplace_assets_tests.benchmarks.__main__ import RESULTS
from sam_laplace_assets_tests.benchmarks.simulation import AGAIN, ASSETS, FIRST, KEPT, LOOKS

PAGE = Path(sam_laplace_assets.__file__).with_name("SCALE.md")
IMAGES = (1_000, 10_000, 100_000, 1_000_000)
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
SETS = {"train": 10, "val": 4, "test": 4}
SETS_AN_IMAGE = sum(SHARES[split] * SETS[split] for split in SHARES)
PACKED_ROWS = 600
"""Rows that `make bench ROWS=pack_writing` writes."""
SOURCE = "github.com/pytorch-labs/segment-anything-fast, experiments/results.csv, commit 00dc2cb"
RATES = {
    "vit_b": {"float32, one by one": 11.17, "bf16, compiled, 32 at once": 88.87},
    "vit_h": {"float32, one by one": 2.58, "bf16, compiled, 32 at once": 21.94},
}
"""Images a second of encoder and decoder on one A100 of 80 GB, as `SOURCE` has them; not measured here."""
PLACES = ("manifests", "prompt_sets", "sam_cache", "training_data")
"""What lies below the project root; the data roots are counted apart."""
TABLES = ("disk", "time", "gpu", "simulated")


@dataclass(frozen=True)
class Line:
    """A cost that grows evenly: `fixed`, `image` for each image, and `more` for each of its prompt sets but one."""

    fixed: float
    image: float
    more: float = 0.0

    def of(self, images: int, sets: float = SETS_AN_IMAGE) -> float:
        """The cost of so many images."""
        return self.fixed + images * (self.image + self.more * (sets - 1))


@dataclass(frozen=True)
class Measured:
    """The simulations that lines are drawn through.

    Attributes:
        small: the fewest samples, one prompt set each.
        large: the most samples, one prompt set each.
        many: as many samples as `small`, several prompt sets each.
        units: what a real photo and real arrays cost.
        packed_row: seconds of one row in a pack.
    """

    small: dict[str, Any]
    large: dict[str, Any]
    many: dict[str, Any]
    units: dict[str, float]
    packed_row: float

    @classmethod
    def read(cls, *, simulation: Path = KEPT, results: Path = RESULTS) -> "Measured":
        """What is kept."""
        kept = json.loads(simulation.read_text())
        plain = [run for run in kept["runs"] if not run["synced"]]
        single = sorted((run for run in plain if run["sets"] == 1), key=lambda run: int(run["samples"]))
        small = single[0]
        many = next(run for run in plain if run["sets"] > 1 and run["samples"] == small["samples"])
        rows = json.loads(results.read_text())["rows"]
        packing = next(row for row in rows if row["name"] == "pack_writing")["notes"]["ours_s"]
        return cls(small, single[-1], many, kept["units"], packing / PACKED_ROWS)

    def line(self, figure: Any) -> Line:
        """The line through what a function finds in each simulation."""
        small, large, many = (float(figure(run)) for run in (self.small, self.large, self.many))
        image = (large - small) / (self.large["samples"] - self.small["samples"])
        more = (many - small) / (self.small["samples"] * (self.many["sets"] - 1))
        return Line(small - image * self.small["samples"], image, more)

    def on_disk(self, what: str, *places: str) -> Line:
        """`bytes`, `files`... of some places."""
        return self.line(lambda run: sum(run["disk"][place][what] for place in places or PLACES))

    def stages(self, when: str, what: str, *names: str) -> Line:
        """`seconds` of some stages together, or the most `peak_MiB` of them."""
        gather = max if what == "peak_MiB" else sum
        return self.line(lambda run: gather(one[what] for one in stages_of(run, when, names)))


def stages_of(run: dict[str, Any], when: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Stages of a simulation; all assets if none are named."""
    return [one for one in run["stages"] if one["when"] == when and one["stage"] in (names or ASSETS)]


def disk(measured: Measured) -> Iterator[list[str]]:
    """What lies on the disk, as files say it; the same for vit_b and vit_h."""
    yield ["images", "rows", "files", "folders", "`prompt_sets`", "`sam_cache`", "packs and indices", "in all",
           "most entries in one folder"]  # fmt: skip
    files, folders = measured.on_disk("files"), measured.on_disk("folders")
    sizes = [measured.on_disk("bytes", name) for name in PLACES[1:]]
    everything = measured.on_disk("bytes")
    for images in IMAGES:
        rows = images * SETS_AN_IMAGE
        yield [f"{images:,}", f"{rows:,.0f}", short(files.of(images)), short(folders.of(images)),
               *(size(line.of(images)) for line in sizes), size(everything.of(images)),
               f"{images * SHARES['train']:,.0f}"]  # fmt: skip


def duration_table(measured: Measured) -> Iterator[list[str]]:
    """What the processor and the disk take, beside SAM: one process, one thread that writes."""
    yield ["images", "scan and manifests", "prompt sets", "files of the cache", "packs", "all of it, nothing changed",
           "one look at the data roots", "`gc` lists", "peak memory"]  # fmt: skip
    units, packs = measured.units, measured.stages(FIRST, "seconds", "training_index", "hdf5_pack")
    tables = measured.stages(FIRST, "seconds", "manifest")
    again, memory = measured.stages(AGAIN, "seconds"), measured.stages(FIRST, "peak_MiB")
    watch, gc = (measured.stages(LOOKS, "seconds", name) for name in ("watch", "gc"))
    for images in IMAGES:
        rows = images * SETS_AN_IMAGE
        seconds = [images * units["manifest_of_a_photo_s"] + tables.of(images),
                   images * units["prompt_sets_of_a_photo_s"], rows * units["cached_set_s"],
                   rows * measured.packed_row + packs.of(images), again.of(images), watch.of(images),
                   gc.of(images)]  # fmt: skip
        yield [f"{images:,}", *map(duration, seconds), size(memory.of(images) * 2**20)]


def gpu(measured: Measured) -> Iterator[list[str]]:
    """Hours of one GPU."""
    columns = [(model, how, rate) for model, rates in RATES.items() for how, rate in rates.items()]
    yield ["images", *(f"{model}, {how}" for model, how, _ in columns)]
    for images in IMAGES:
        yield [f"{images:,}", *(duration(images / rate) for *_, rate in columns)]


def simulated(measured: Measured) -> Iterator[list[str]]:
    """The largest simulation as it was measured."""
    run = measured.large
    yield ["stage", f"{run['samples']:,} samples, nothing there", "a second time, nothing changed", "peak memory",
           "files", "folders", "bytes", "on the disk"]  # fmt: skip
    places = {
        "manifest": "manifests",
        "prompt_sets": "prompt_sets",
        "sam_cache": "sam_cache",
        "hdf5_pack": "training_data",
    }
    for asset in ASSETS:
        (first,), (again,) = stages_of(run, FIRST, [asset]), stages_of(run, AGAIN, [asset])
        found = run["disk"].get(places.get(asset, ""))
        cells = ["-"] * 4 if found is None else [f"{found['files']:,}", f"{found['folders']:,}", size(found["bytes"]),
                                                 size(found["allocated"])]  # fmt: skip
        peak = size(max(first["peak_MiB"], again["peak_MiB"]) * 2**20)
        yield [f"`{asset}`", duration(first["seconds"]), duration(again["seconds"]), peak, *cells]
    for name, what in (("watch", "a look at the data roots"), ("gc", "`gc` lists")):
        (one,) = stages_of(run, LOOKS, [name])
        yield [what, "-", duration(one["seconds"]), size(one["peak_MiB"] * 2**20), *["-"] * 4]


def short(value: float) -> str:
    """`12,300`, or `4.5 million`."""
    return f"{figures(value / 1e6)} million" if value >= 1e6 else f"{round(value, -2):,.0f}"


def size(value: float) -> str:
    """Bytes for a reader."""
    for unit, least in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= least:
            return f"{figures(value / least)} {unit}"
    return f"{figures(value / 1e3)} kB"


def duration(seconds: float) -> str:
    """`12 s`, `3.4 min` or `56 h`."""
    for unit, least, until in (("s", 1.0, 120.0), ("min", 60.0, 7200.0)):
        if seconds < until:
            return f"{figures(seconds / least)} {unit}"
    return f"{figures(seconds / 3600)} h"


def figures(value: float) -> str:
    """Two figures, or all before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def markdown(rows: Iterator[list[str]]) -> str:
    """Rows as a table, the first one its head."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])


def page(text: str, measured: Measured) -> str:
    """The page with its tables made anew."""
    makers = dict(zip(TABLES, (disk, duration_table, gpu, simulated), strict=True))
    for name, make in makers.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{markdown(make(measured))}\n{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    """Put today's tables into the page."""
    PAGE.write_text(page(PAGE.read_text(), Measured.read()))


if __name__ == "__main__":
    main()
