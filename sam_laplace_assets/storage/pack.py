"""Packs: the arrays of an index's rows in HDF5, as immutable shards and one file over them. version 1

<split>_shards/<digest>.h5   some samples, complete with all their rows
  logits_256, pos_map, neg_map  (R, 256, 256) float16, one row a chunk, uncompressed
  promptset_id, k_pairs         (R,) int64
  mask                          (S, 256, 256) uint8, 0 or 1, one sample a chunk
  safe_id, rows_digest          (S,) strings: which sample, and from what its rows were made
  first_row                     (S + 1,) int64: the rows of sample s are first_row[s]:first_row[s + 1]

<split>.h5                   the split, in the index's order
  logits_256, pos_map, neg_map  (N, 256, 256) virtual, over the shards
  mask                          (I, 256, 256) virtual;  mask_of_row (N,) int64: which mask a row has
  promptset_id, k_pairs (N,);   safe_id (I,)
  attributes: format, version, split, complete, data_version, shards (JSON, name -> bytes)

A shard is named by the digest of what it holds and never changes. HDF5 would read a missing shard as NaN: the reader
refuses a pack whose shards are not all there with the size that it names.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from sam_laplace_assets.domain.plan import Course, Item, Plan, Record, data_version, digest
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.shards import (
    ARRAYS,
    PART,
    SHAPE,
    VERSION,
    PackedSample,
    ShardSource,
    ShardWriter,
    Slot,
    read_slots,
    write_strings,
)
from sam_laplace_assets.storage.store import NotMade

if TYPE_CHECKING:
    from sam_laplace_assets.domain.pack import Rows

ROWS_PER_SHARD = 1024
GIB = 1 << 30
LIVE_FRACTION = 0.5


class PackRefused(ValueError):
    """A pack is not there, not whole, incomplete or of a newer version."""


class PackStore:
    """The pack of one split; an item is a sample with all its rows, its value a `PackedSample`."""

    def __init__(self, folder: Path, split: str) -> None:
        self._path, self._shards, self._split = folder / f"{split}.h5", folder / f"{split}_shards", split
        self._writer: ShardWriter | None = None

    def locate(self, item: Item) -> Path:
        """The file over the shards."""
        return self._path

    def records(self, items: Sequence[Item]) -> dict[str, Record]:
        """Which samples stand in a shard that is still worth reading from."""
        slots = self._slots(items)
        parts = {item.key: {PART: item.parts[PART]} for item in items if item.key in slots}
        return {key: Record(of, of) for key, of in parts.items()}

    def write(self, item: Item, parts: frozenset[str], value: PackedSample) -> Record:
        """Append a sample to the open shard; it is there once the shard is closed."""
        self._writer = self._writer or ShardWriter(self._shards)
        self._writer.add(item, value)
        if len(self._writer.promptset_id) >= ROWS_PER_SHARD:
            self._close()
        return Record(item.parts, {PART: item.parts[PART]})

    def finish(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> str:
        """Close the open shard, and put the file over the shards in place."""
        self._close()
        pack = self._layout(plan, records, complete=complete)
        if not self._is_there(pack):
            with files.replacing(self._path) as temporary:
                _write_pack(temporary, self._shards, pack)
        return pack.data_version

    def finished(self, plan: Plan | Course, records: Mapping[str, Record]) -> bool:
        """Whether the file over the shards holds just these samples, in this order."""
        return self._is_there(self._layout(plan, records, complete=plan.complete))

    def _layout(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> "Layout":
        there = [item for item in plan.items if item.key in records]
        slots = self._slots(there)
        placed = {item.key: slots[item.key] for item in there}
        return Layout(self._split, complete, data_version(plan, records), placed)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _is_there(self, pack: "Layout") -> bool:
        try:
            with open_pack(self._path) as file:
                return bool(file.attrs["layout"] == pack.digest)
        except (NotMade, PackRefused):
            return False

    def _slots(self, items: Sequence[Item]) -> dict[str, Slot]:
        wanted = {(item.key, item.parts[PART]) for item in items}
        slots: dict[str, Slot] = {}
        for path in sorted(self._shards.glob("*.h5")):
            there = read_slots(path)
            live = {key: slot for (key, made_from), slot in there.items() if (key, made_from) in wanted}
            rows = sum(slot.rows for slot in there.values())
            if sum(slot.rows for slot in live.values()) >= LIVE_FRACTION * rows:
                slots |= live
        return slots


@dataclass(frozen=True)
class Pack:
    """A pack as it was when it was opened: its name cards, and its rows when they are asked for.

    Attributes:
        path: the file over the shards.
        split: partition key.
        data_version: digest of its content.
        complete: whether it holds all rows of its split.
        safe_ids: (I,) samples, in order.
        images: (N,) int64, which sample a row belongs to.
    """

    path: Path
    split: str
    data_version: str
    complete: bool
    safe_ids: tuple[str, ...]
    images: np.ndarray

    @classmethod
    def open(cls, path: Path) -> "Pack":
        """Read what a pack says of itself. Raises `NotMade` or `PackRefused`."""
        with open_pack(path) as file:
            names = tuple(file["safe_id"].asstr()[:].tolist())
            attributes = {name: file.attrs[name] for name in ("split", "data_version")}
            return cls(path, **attributes, complete=bool(file.attrs["complete"]), safe_ids=names,
                       images=file["mask_of_row"][:])  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    @property
    def bytes(self) -> int:
        """Size of its arrays in memory."""
        return len(self) * (len(ARRAYS) * 2 + 1) * SHAPE[0] * SHAPE[1]

    def rows(self, *, memory_budget: float) -> "Rows":
        """Its rows, in memory when they fit into `memory_budget` GiB, else read from disk batch by batch."""
        from sam_laplace_assets.storage.rows import StreamedRows, load_rows

        return load_rows(self) if self.bytes <= memory_budget * GIB else StreamedRows(self)


@dataclass(frozen=True)
class Layout:
    """What the file over the shards says."""

    split: str
    complete: bool
    data_version: str
    slots: Mapping[str, Slot]

    @property
    def shards(self) -> list[str]:
        """Names of the shards that are needed."""
        return sorted({slot.shard for slot in self.slots.values()})

    @property
    def digest(self) -> str:
        """Digest of all that the file says."""
        places = [[key, slot.shard, slot.mask, slot.first, slot.last] for key, slot in self.slots.items()]
        return digest([self.split, self.complete, self.data_version, places])


def open_pack(path: Path) -> h5py.File:
    """The file over the shards, open for reading, all its shards there.

    Raises:
        NotMade: there is no pack.
        PackRefused: it cannot be read, or a shard is missing or cut; names it and says what to do.
    """
    if not path.exists():
        raise NotMade(f"{path.name} is not there. Materialise hdf5_pack[{path.stem}] first.")
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise PackRefused(f"{path} is not a readable HDF5 file ({error}). Materialise hdf5_pack again.") from error
    try:
        _check_pack(path, file)
    except BaseException:
        file.close()
        raise
    return file


def _check_pack(path: Path, file: h5py.File) -> None:
    if file.attrs.get("format") != "pack":
        raise PackRefused(f"{path} is not a pack of this project. Move it away and materialise hdf5_pack again.")
    if file.attrs["version"] > VERSION:
        raise PackRefused(f"{path} has format version {file.attrs['version']}, this package reads up to {VERSION}.")
    for name, size in json.loads(file.attrs["shards"]).items():
        shard = path.with_name(f"{path.stem}_shards") / name
        found = shard.stat().st_size if shard.exists() else None
        if found != size:
            raise PackRefused(
                f"{path} needs {shard.name} with {size} bytes, found {'none' if found is None else f'{found} bytes'}. "
                "Delete what is left of that shard and materialise hdf5_pack again."
            )


def _write_pack(path: Path, shards: Path, pack: Layout) -> None:
    slots = list(pack.slots.values())
    rows = sum(slot.rows for slot in slots)
    sources = {name: ShardSource.open(shards / name) for name in pack.shards}
    with h5py.File(path, "w", libver="v110", locking=False) as file:
        for name in ARRAYS:
            spans = [(slot.shard, slot.first, slot.last) for slot in slots]
            _virtual(file, name, "float16", rows, spans, sources, np.float16("nan"))
        masks = [(slot.shard, slot.mask, slot.mask + 1) for slot in slots]
        _virtual(file, "mask", "uint8", len(slots), masks, sources, np.uint8(255))
        file["mask_of_row"] = np.repeat(np.arange(len(slots)), [slot.rows for slot in slots])
        for name in ("promptset_id", "k_pairs"):
            values = [sources[slot.shard].columns[name][slot.first : slot.last] for slot in slots]
            file[name] = np.concatenate(values) if values else np.zeros(0, dtype=np.int64)
        write_strings(file, "safe_id", list(pack.slots))
        file.attrs.update(_pack_attributes(shards, pack))


def _pack_attributes(shards: Path, pack: Layout) -> dict[str, Any]:
    sizes = {name: (shards / name).stat().st_size for name in pack.shards}
    return {
        "format": "pack", "version": VERSION, "split": pack.split, "complete": pack.complete, "layout": pack.digest,
        "data_version": pack.data_version, "shards": json.dumps(sizes),
    }  # fmt: skip


Span = tuple[str, int, int]


def _virtual(
    file: h5py.File, name: str, dtype: str, length: int, spans: Sequence[Span], sources: Mapping[str, ShardSource],
    fill: Any,
) -> None:  # fmt: skip
    """A virtual dataset of (length, 256, 256), span after span."""
    layout = h5py.VirtualLayout((length, *SHAPE), dtype)
    start = 0
    for shard, first, last in _joined(spans):
        there = sources[shard].masks if name == "mask" else sources[shard].rows
        layout[start : start + last - first] = h5py.VirtualSource(sources[shard].name, name, (there, *SHAPE))[
            first:last
        ]
        start += last - first
    file.create_virtual_dataset(name, layout, fillvalue=fill)


def _joined(spans: Sequence[Span]) -> Iterator[Span]:
    """Neighbouring spans of one shard as one: fewer mappings, faster to open."""
    current: Span | None = None
    for shard, first, last in spans:
        if current is not None and (shard, first) == (current[0], current[2]):
            current = (shard, current[1], last)
            continue
        if current is not None:
            yield current
        current = (shard, first, last)
    if current is not None:
        yield current
