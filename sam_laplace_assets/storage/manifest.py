"""Manifests: a row a sample, and which split it was given. version 1

manifests/all_samples        every file that was found, refused ones with their reason
manifests/<split>            the samples of one split
manifests/assignments        sample_id, split, image_digest: remembered for good, also for samples that are gone

Columns as in `SCHEMA`; `image_path` and `mask_path` are relative to the split's roots.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from sam_laplace_assets.domain.manifest import safe_id
from sam_laplace_assets.domain.plan import Course, Item, Plan, Record, digest_of_all
from sam_laplace_assets.storage import images, inside, tables
from sam_laplace_assets.storage.samples import Found
from sam_laplace_assets.storage.store import NotMade, RowStore

VERSION = 1
EVERYTHING = "all_samples"
SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()), ("safe_id", pa.string()), ("class", pa.string()), ("split", pa.string()),
        ("image_path", pa.string()), ("mask_path", pa.string()),
        ("image_h", pa.int64()), ("image_w", pa.int64()), ("mask_h", pa.int64()), ("mask_w", pa.int64()),
        ("foreground_fraction", pa.float64()), ("image_digest", pa.string()), ("mask_digest", pa.string()),
        ("valid", pa.bool_()), ("reason", pa.string()),
    ]
)  # fmt: skip
ASSIGNMENTS = pa.schema([(name, pa.string()) for name in ("sample_id", "split", "image_digest")])
Row = Mapping[str, Any]
NOTHING: Row = {}


class Rows(Sequence[Row]):
    """Rows of a manifest as its table holds them, made when they are asked for; dicts when they are gone through."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._columns = dict(zip(table.column_names, table.columns, strict=True))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return tables.TableRow(self._columns, range(len(self))[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return tables.rows_of(self.table)

    def valid(self, split: str | None = None) -> "Rows":
        """Those that are samples; of one split if it is named."""
        import pyarrow.compute as pc

        wanted = pc.equal(self.table["valid"], True)
        if split is not None:
            wanted = pc.and_(wanted, pc.equal(self.table["split"], split))
        return Rows(self.table.filter(wanted))


@dataclass(frozen=True, slots=True)
class RowOf:
    """One of many rows, not yet made."""

    rows: Rows
    at: int


@dataclass(frozen=True, slots=True)
class Passing:
    """A row that is not to be remembered: its files went away, or could not be read, and may come back as they were."""

    row: Row


@dataclass(frozen=True)
class Place:
    """The folder of all manifests, and the format of their tables."""

    folder: Path
    table_format: tables.Format = "parquet"

    def table(self, name: str) -> Path:
        """Where the manifest `name` lies."""
        return tables.path_of(self.folder / name, self.table_format)

    def ledger(self, name: str) -> Path:
        """Where its ledger lies."""
        return self.folder / f"{name}.ledger.parquet"

    @property
    def assignments(self) -> Path:
        """Where the splits are remembered."""
        return self.table("assignments")


@dataclass(frozen=True, slots=True)
class Sample:
    """One valid sample of a split, whose files can be opened.

    Attributes:
        row: its row of the manifest.
        images_root: folder that `image_path` is relative to.
        masks_root: folder that `mask_path` is relative to.
    """

    row: Row
    images_root: Path
    masks_root: Path

    @property
    def sample_id(self) -> str:
        """`<class>/<stem>`."""
        return str(self.row["sample_id"])

    @property
    def key(self) -> str:
        """The sample_id as a plain file name."""
        return inside.plain(str(self.row["safe_id"]))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image, pixels."""
        return int(self.row["image_h"]), int(self.row["image_w"])

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8. Raises `UnreadableFile` if its content is no longer that of the manifest."""
        image = images.read_image(inside.below(self.images_root, self.row["image_path"]))
        self._check("image", images.pixel_digest(image))
        return image

    def mask(self) -> np.ndarray:
        """(h, w) bool, of its own size. Raises `UnreadableFile` if its content is no longer that of the manifest."""
        mask = images.read_mask(inside.below(self.masks_root, self.row["mask_path"]))
        self._check("mask", images.mask_digest(mask))
        return mask

    def _check(self, kind: str, found: str) -> None:
        if found != self.row[f"{kind}_digest"]:
            raise images.UnreadableFile(
                f"The {kind} of {self.sample_id} has changed since the manifest was made: it held "
                f"{self.row[f'{kind}_digest'][:12]}, now {found[:12]}. Materialise all_samples and manifest again."
            )


@dataclass(frozen=True)
class Manifest(Sequence[Sample]):
    """The valid samples of one split, opened when they are asked for; they hold no more than where their row is."""

    split: str
    rows: Sequence[Row]
    images_root: Path
    masks_root: Path
    complete: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return Sample(self.rows[index], self.images_root, self.masks_root)


@dataclass(frozen=True)
class AllSamples:
    """Every file that was found below the base roots, as rows; valid ones have a split."""

    rows: Rows
    complete: bool

    @classmethod
    def open(cls, place: Place) -> "AllSamples":
        """The table. Raises `NotMade`."""
        return cls(*_rows_and_whether_all(place, EVERYTHING))


@dataclass(frozen=True)
class Assignment:
    """Where a sample was put, and what its image held then."""

    split: str
    image_digest: str


Assignments = Mapping[str, Assignment]
Assign = Callable[[Sequence[Row], Assignments], tuple[Sequence[Row], Assignments]]


class ManifestStore(RowStore):
    """One manifest; the plan's `finish` maps its rows and the remembered splits to those of today."""

    def __init__(self, place: Place, name: str) -> None:
        super().__init__(place.ledger(name))
        self._place, self._name = place, name

    def locate(self, item: Any) -> Path:
        """The table that an item is a row of."""
        return self._place.table(self._name)

    def write(self, item: Item, parts: frozenset[str], value: Row | RowOf | Passing) -> Record:
        """Take a row into the ledger; of one that the plan has anyway, only its digest."""
        if isinstance(value, RowOf):
            return self._enter(item.key, "", Record(item.parts, item.parts, NOTHING))
        if isinstance(value, Passing):
            return self._remember(item.key, "", Record(NOTHING, NOTHING, value.row))
        return super().write(item, parts, value)

    def finish(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> str:
        """Write the table, the remembered splits first. Raises `NewerFormat` rather than replace a newer one."""
        tables.read_note(self._place.table(self._name), version=VERSION)
        kept = self._remembered(plan)
        rows, splits = _assigned(plan, records, kept)
        whole = tables.read_note(self._place.assignments, version=VERSION) is not None
        if splits != kept or (kept and not whole):
            write_assignments(self._place, splits)
        version = digest_of_all(rows)
        note = {"format": "manifest", "version": VERSION, "complete": complete, "data_version": version}
        tables.write_table(self._place.table(self._name), rows.table, SCHEMA, note)
        super().finish(plan, records, complete=complete)
        return version

    def finished(self, plan: Plan | Course, records: Mapping[str, Record]) -> bool:
        """Whether the table holds what these rows come to with today's splits, groups and other manifests."""
        note = tables.read_note(self._place.table(self._name), version=VERSION)
        if note is None or not super().finished(plan, records):
            return False
        try:
            rows, splits = _assigned(plan, records, self._remembered(plan))
        except ValueError:  # a run will say what
            return False
        forgotten = self._name == EVERYTHING and splits and not self._place.assignments.exists()
        return bool(digest_of_all(rows) == note["data_version"]) and not forgotten

    def _remembered(self, plan: Plan | Course) -> Assignments:
        """The splits that a plan maps; none where it takes its rows from a manifest that did."""
        return {} if plan.finish is None else read_assignments(self._place)


def _assigned(plan: Plan | Course, records: Mapping[str, Record], kept: Assignments) -> tuple[Rows, Assignments]:
    """The table's rows in order, and the splits to be remembered."""
    there = [item for item in plan.items if item.key in records]
    if plan.finish is None:
        return _in_order(_taken([item.source for item in there])), kept
    rows, splits = plan.finish([records[item.key].summary for item in there], kept)
    return _in_order(tables.table_of(rows, SCHEMA)), splits


def _taken(sources: Sequence[RowOf]) -> pa.Table:
    """The rows that a plan has."""
    if not sources:
        return SCHEMA.empty_table()
    return _at(sources[0].rows.table, pa.array([source.at for source in sources]))


def _in_order(table: pa.Table) -> Rows:
    """Rows by their sample and files."""
    import pyarrow.compute as pc

    names = ("sample_id", "image_path", "mask_path")
    keys = pa.table({name: pc.fill_null(table[name], "None") for name in names})
    return Rows(_at(table, pc.sort_indices(keys, [(name, "ascending") for name in names])))


def _at(table: pa.Table, numbers: pa.Array) -> pa.Table:
    """Some rows of a table; the table itself where these are all, in order."""
    every = np.array_equal(numbers.to_numpy(), np.arange(len(table)))
    return table if every else table.take(numbers)


def read_assignments(place: Place) -> dict[str, Assignment]:
    """sample_id -> split, for all samples of the base roots that ever had one.

    Where that table was lost, the one of all samples still tells it of those that were there when it was made.

    Raises:
        TableRefused: the table is damaged; it cannot be made again as it was.
    """
    path = next((path for path in _places_of_assignments(place) if path.exists()), None)
    if path is None:
        return _told_by_all_samples(place)
    tables.read_note(path, version=VERSION)
    try:
        rows = list(tables.rows_of(tables.read_arrow(path, ASSIGNMENTS)))
    except tables.TableRefused as error:
        raise tables.TableRefused(
            f"{path} is damaged, and with it which split each sample was given. Put a copy of it back; without one, "
            f"delete it: samples that {EVERYTHING} lists keep their splits, others get new ones. ({error.__cause__})"
        ) from error
    return _assignments(rows)


def _told_by_all_samples(place: Place) -> dict[str, Assignment]:
    try:
        return _assignments(Rows(read_manifest(place, EVERYTHING)).valid())
    except NotMade:
        return {}


def _assignments(rows: Iterable[Row]) -> dict[str, Assignment]:
    return {row["sample_id"]: Assignment(row["split"], row["image_digest"]) for row in rows}


def write_assignments(place: Place, splits: Assignments) -> None:
    """Remember which sample stands in which split."""
    rows = [(key, one.split, one.image_digest) for key, one in sorted(splits.items())]
    table = pa.Table.from_batches(tables.batches_of(rows, ASSIGNMENTS), ASSIGNMENTS)
    tables.write_table(place.assignments, table, ASSIGNMENTS, {"format": "assignments", "version": VERSION})
    for path in _places_of_assignments(place)[1:]:
        path.unlink(missing_ok=True)


def _places_of_assignments(place: Place) -> list[Path]:
    """Where the splits may be remembered, first in today's format: another `table_format` must not forget them."""
    formats = sorted(get_args(tables.Format), key=lambda one: bool(one != place.table_format))
    return [Place(place.folder, one).assignments for one in formats]


def open_manifest(place: Place, split: str, *, images_root: Path, masks_root: Path) -> Manifest:
    """The valid samples of a split. Raises `NotMade`."""
    rows, complete = _rows_and_whether_all(place, split)
    return Manifest(split, rows.valid(), images_root, masks_root, complete)


def _rows_and_whether_all(place: Place, name: str) -> tuple[Rows, bool]:
    """The rows of a manifest, and whether it holds all its samples. Raises `NotMade`."""
    return tables.of_one_writing(
        place.table(name), lambda: (Rows(read_manifest(place, name)), is_complete(place, name))
    )


def read_rows(place: Place, name: str) -> list[dict[str, Any]]:
    """All rows of a manifest, refused ones too. Raises `NotMade`."""
    return list(tables.rows_of(read_manifest(place, name)))


def read_manifest(place: Place, name: str) -> pa.Table:
    """The table of a manifest.

    Raises:
        NotMade: the manifest was never made.
    """
    if tables.read_note(place.table(name), version=VERSION) is None:
        asset = EVERYTHING if name == EVERYTHING else f"manifest[{name}]"
        raise NotMade(f"{place.table(name).name} is not there. Materialise {asset} first.")
    return tables.read_arrow(place.table(name), SCHEMA)


def is_complete(place: Place, name: str) -> bool:
    """Whether the manifest holds all its samples."""
    note = tables.read_note(place.table(name), version=VERSION)
    return bool(note and note["complete"])


def read_row(found: Found, *, images_root: Path, masks_root: Path) -> dict[str, Any] | Passing:
    """The row of a found file pair: valid, or refused with a reason, which may be a passing one."""
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    row |= {"sample_id": found.sample_id, "safe_id": safe_id(found.sample_id), "class": found.class_name}
    row |= {"image_path": found.image_path, "mask_path": found.mask_path, "valid": False, "reason": found.reason}
    if found.reason is not None or found.image_path is None or found.mask_path is None:
        return row
    try:
        return row | _measure(images_root / found.image_path, masks_root / found.mask_path) | {"valid": True}
    except images.FileGone as error:
        return Passing(row | {"reason": str(error)})
    except (images.UnreadableFile, images.UnusableMask) as error:
        return row | {"reason": str(error)}


def _measure(image_path: Path, mask_path: Path) -> dict[str, Any]:
    image, mask = images.read_image(image_path), images.read_mask(mask_path)
    images.check_mask(mask)
    return {
        "image_h": image.shape[0], "image_w": image.shape[1], "mask_h": mask.shape[0], "mask_w": mask.shape[1],
        "foreground_fraction": float(mask.mean()),
        "image_digest": images.pixel_digest(image), "mask_digest": images.mask_digest(mask),
    }  # fmt: skip
