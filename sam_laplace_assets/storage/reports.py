"""A report on one partition, as a folder `reports/<asset>/<split>/`. version 1

<table>.parquet       its tables, each with the schema that its layout declares (or .csv)
<picture>.png         its pictures
summary.json          written last: format, version, asset, provenance, data_version, complete, facts (the figures, as
                      plain JSON), and the SHA-256 of the files above
samples/<key>.json    of a report that is made sample by sample: format, version, provenance, and what was found

A report whose files are not those that summary.json names is not there. Numbers that are not finite are null.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_laplace_assets.domain.plan import Course, Item, Plan, Record, digest
from sam_laplace_assets.storage import files, inside, tables
from sam_laplace_assets.storage.store import FileStore, NotMade, OneItemStore
from sam_laplace_assets.storage.tables import Format

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

VERSION = 1
PART = "report"
SUMMARY = "summary.json"
KEPT = "samples.ledger.parquet"


@dataclass(frozen=True)
class Layout:
    """What the reports of one asset hold.

    Attributes:
        asset: which one.
        tables: table name -> its schema.
        table_format: how tables are stored.
    """

    asset: str
    tables: "Mapping[str, pa.Schema]"
    table_format: Format = "parquet"


@dataclass(frozen=True)
class Findings:
    """What an asset found, as its reader will see it.

    Attributes:
        tables: table name -> frame, for every table of the layout.
        pictures: name -> PNG file.
        facts: figures and words, as plain JSON; those of summary.json.
        complete: whether they are of all that there is; of a trial they are not.
    """

    tables: "Mapping[str, pd.DataFrame]"
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True


Conclude = Callable[[Iterator[tuple[str, Any]]], Findings]
"""Where it has a `made_from` (JSON), what it concludes follows from that, too: another has it conclude anew."""


class ReportStore(OneItemStore):
    """A report that is made in one go: the item is the report, its value the `Findings`."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder, self._layout = folder, layout

    def locate(self, item: Item) -> Path:
        """The report's folder."""
        return self._folder

    def records(self, items: Sequence[Item]) -> dict[str, Record]:
        """The report, if it is whole."""
        summary = read_summary(self._folder, self._layout)
        if summary is None:
            return {}
        return {item.key: Record({PART: summary["provenance"]}, {PART: summary["data_version"]}) for item in items}

    def write(self, item: Item, parts: frozenset[str], value: Findings) -> Record:
        """Put a report in place."""
        version = write_report(self._folder, self._layout, value, provenance=item.parts[PART], complete=value.complete)
        return Record(item.parts, {PART: version})


class SampleReportStore(FileStore):
    """A report that is made sample by sample, each a JSON value; `plan.finish` concludes from all of them."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        super().__init__(folder / KEPT)
        self._folder, self._layout = folder, layout

    def locate(self, item: Item) -> Path:
        """The file of a sample."""
        return self._file(item.key)

    def signature(self, key: str) -> str:
        """Size and time of a sample's file."""
        return files.signature(self._file(key))

    def read_record(self, key: str) -> Record | None:
        """What is known of a sample's file, if it is whole."""
        found = read_sample(self._file(key))
        return None if found is None else _sample_record(found)

    def write_files(self, item: Item, parts: frozenset[str], value: Any) -> Record:
        """Write what was found of a sample."""
        content = {"format": f"{self._layout.asset}_sample", "version": VERSION, "provenance": item.parts[PART],
                   "digest": digest(value), "found": value}  # fmt: skip
        files.write_json(self._file(item.key), content)
        return _sample_record(content)

    def finish(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> str:
        """Conclude from the samples that are there, unless that was done."""
        version = super().finish(plan, records, complete=complete)
        conclude: Conclude = plan.finish
        summary, made_from = read_summary(self._folder, self._layout), _made_from(plan, version)
        if records and (summary is None or summary["provenance"] != made_from or summary["complete"] != complete):
            found = conclude((item.key, self._found(item.key)) for item in plan.items if item.key in records)
            write_report(self._folder, self._layout, found, provenance=made_from, complete=complete)
        return version

    def finished(self, plan: Plan | Course, records: Mapping[str, Record]) -> bool:
        """Whether the report says what follows from just these samples."""
        summary = read_summary(self._folder, self._layout)
        concluded = summary is not None and summary["provenance"] == _made_from(plan, self._ledger.data_version)
        return super().finished(plan, records) and (concluded or not records)

    def _file(self, key: str) -> Path:
        return self._folder / "samples" / f"{key}.json"

    def _found(self, key: str) -> Any:
        sample = read_sample(self._file(key))
        if sample is None:
            raise ValueError(
                f"{self._file(key)} was damaged while it was read. Materialise {self._layout.asset} again."
            )
        return sample["found"]


def _made_from(plan: Plan | Course, version: str) -> str:
    """What a report follows from: the samples, and what its conclusion names beside them."""
    beside = getattr(plan.finish, "made_from", None)
    return version if beside is None else digest([version, beside])


def write_report(folder: Path, layout: Layout, found: Findings, *, provenance: str, complete: bool = True) -> str:
    """Put a report in place, summary.json last, and remove what it has no more. Gives its data version."""
    if found.tables.keys() != layout.tables.keys():
        raise ValueError(
            f"A report of {layout.asset} has the tables {sorted(layout.tables)}, not {sorted(found.tables)}."
        )
    contents: dict[Path, bytes] = {}
    for name, frame in found.tables.items():
        path = tables.path_of(folder / name, layout.table_format)
        contents |= tables.table_files(path, frame, layout.tables[name], {"format": layout.asset, "version": VERSION})
    contents |= {folder / f"{name}.png": png for name, png in found.pictures.items()}
    facts = plain(found.facts)
    version = digest([facts, *(digest(plain(frame.to_dict("list"))) for frame in found.tables.values())])
    summary = {"format": "report", "version": VERSION, "asset": layout.asset, "provenance": provenance,
               "data_version": version, "complete": complete, "facts": facts,
               "sha256": {path.name: files.sha256(content) for path, content in contents.items()}}  # fmt: skip
    before = _named(folder)
    files.write_set({**contents, folder / SUMMARY: files.json_bytes(summary)})
    for path in before - contents.keys():
        path.unlink(missing_ok=True)
    return version


def _named(folder: Path) -> set[Path]:
    """The files that the report which is there now names: nothing else is ours to remove."""
    try:
        return {folder / inside.plain(name) for name in files.read_json(folder / SUMMARY)["sha256"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def read_summary(folder: Path, layout: Layout | None = None) -> dict[str, Any] | None:
    """summary.json of a report, or None where it is not whole, or not of this layout. Raises `NewerFormat`."""
    try:
        summary = dict(files.read_json(folder / SUMMARY))
        files.refuse_newer(folder / SUMMARY, summary["version"], version=VERSION)
        named = {folder / inside.plain(name): sha256 for name, sha256 in summary["sha256"].items()}
        whole = all(files.file_sha256(path) == sha256 for path, sha256 in named.items())
        needed = [summary[name] for name in ("provenance", "data_version", "complete", "facts")]
    except files.NewerFormat:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    names = [tables.path_of(folder / name, layout.table_format).name for name in layout.tables] if layout else []
    return summary if whole and needed and all(name in summary["sha256"] for name in names) else None


def require_facts(folder: Path, *, name: str) -> dict[str, Any]:
    """The facts of a report. Raises `NotMade`, naming the asset."""
    summary = read_summary(folder)
    if summary is None:
        raise NotMade(f"{name} has not been made yet, or lost a file: {folder}. Materialise {name} first.")
    return dict(summary["facts"])


def picture(folder: Path, name: str) -> bytes:
    """A picture of a report."""
    return (folder / f"{name}.png").read_bytes()


def plain(value: Any) -> Any:
    """A value as plain JSON: NumPy numbers as Python's, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_sample(path: Path) -> dict[str, Any] | None:
    """What a sample's file holds, or None where it is not whole. Raises `NewerFormat`."""
    try:
        sample = dict(files.read_json(path))
        files.refuse_newer(path, sample["version"], version=VERSION)
        return sample if sample["digest"] == digest(sample["found"]) and sample["provenance"] else None
    except files.NewerFormat:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sample_record(sample: Mapping[str, Any]) -> Record:
    return Record({PART: sample["provenance"]}, {PART: sample["digest"]})
