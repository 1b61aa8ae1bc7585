"""Packs: the arrays of an index's rows in HDF5, as immutable shards and one file over them. version 2

<split>_shards/<digest>.h5   some samples, complete with all their rows
  logits_256, pos_map, neg_map  (R, 256, 256) float16, one row a chunk with its checksum, uncompressed
  promptset_id                  (R,) int64
  k_pairs, n_pos, n_neg         (R,) int64: positive and negative points since version 2, and the smaller number of both
  mask                          (S, 256, 256) uint8, 0 or 1, one sample a chunk with its checksum
  safe_id, rows_digest          (S,) strings: which sample, and from what its rows were made
  first_row                     (S + 1,) int64: the rows of sample s are first_row[s]:first_row[s + 1]

<split>.h5                   the split, in the index's order
  logits_256, pos_map, neg_map  (N, 256, 256) virtual, over the shards
  mask                          (I, 256, 256) virtual;  mask_of_row (N,) int64: which mask a row has
  promptset_id, k_pairs, n_pos, n_neg (N,);   safe_id (I,)
  attributes: format, version, split, complete, data_version, layout (digest of it all), shards (JSON, name -> bytes),
  check (digest of the others)

The columns beside the arrays are one chunk each, with its checksum.

Uncompressed, as any HDF5 reader knows it: of the filters that all have, lzf writes and reads at a quarter of the speed,
gzip slower still; blosc-lz4 would be as fast in a third of the space, but is a plugin that every reader must install.

A shard is named by the digest of what it holds and never changes. HDF5 would read a missing shard as NaN and 255: the
reader refuses a pack whose shards are not all there with the size that it names. Shards that a complete pack
no longer needs stay until the one after it, for those who still read the pack before.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from sam_laplace_assets.domain.plan import Course, Item, Plan, Record, data_version
from sam_laplace_assets.storage import files, inside
from sam_laplace_assets.storage.enclosed import DataElsewhere, require_enclosed
from sam_laplace_assets.storage.layout import Layout, digest_of_attributes, write_layout
from sam_laplace_assets.storage.shards import (
    ARRAYS,
    PART,
    SHAPE,
    UNREADABLE,
    VERSION,
    PackedSample,
    ShardWriter,
    Slot,
    read_slots,
)
from sam_laplace_assets.storage.store import NotMade

ROWS_PER_SHARD = 1024
LIVE_FRACTION = 0.5
ANEW = "Delete it and materialise hdf5_pack again; SAM is not asked for it."
SHARD = re.compile(r"[0-9a-f]{24}\.h5")


class PackRefused(ValueError):
    """A pack is not there, not whole, or replaced by another."""


class PackStore:
    """The pack of one split; an item is a sample with all its rows, its value a `PackedSample`."""

    def __init__(self, folder: Path, split: str) -> None:
        self._path, self._shards, self._split = folder / f"{split}.h5", folder / f"{split}_shards", split
        self._writer: ShardWriter | None = None
        self._written: set[str] = set()
        self._read: dict[str, dict[tuple[str, str], Slot]] = {}

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
        try:
            self._writer.add(item, value)
        except BaseException:
            self._writer.abandon()
            raise
        if self._writer.rows >= ROWS_PER_SHARD:
            self._close()
        return Record(item.parts, {PART: item.parts[PART]})

    def finish(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> str:
        """Close the open shard, and put the file over the shards in place."""
        self._close()
        pack = self._layout(plan, records, complete=complete)
        if not self._is_there(pack):
            keep = {*pack.shards, *self._named()}
            with files.replacing(self._path) as temporary:
                write_layout(temporary, self._shards, pack)
            if complete:
                self._tidy(keep)
        return pack.data_version

    def finished(self, plan: Plan | Course, records: Mapping[str, Record]) -> bool:
        """Whether the file over the shards holds just these samples, in this order."""
        return self._is_there(self._layout(plan, records, complete=plan.complete))

    def _layout(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> Layout:
        there = [item for item in plan.items if item.key in records]
        slots = self._slots(there)
        if gone := [item.key for item in there if item.key not in slots]:
            raise PackRefused(f"The shard of {gone[0]} in {self._shards} was removed by another run. Run again.")
        placed = {item.key: slots[item.key] for item in there}
        return Layout(self._split, complete, data_version(plan, records), placed)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            self._written.add(writer.close())
        except BaseException:
            writer.abandon()
            raise

    def _tidy(self, keep: Collection[str]) -> None:
        """Remove old shards that neither this pack nor the one before needs, and what killed writers left."""
        for path in self._shards.glob("*.h5"):
            ours = SHARD.fullmatch(path.name) and path.name not in keep
            if ours and files.is_old(path):  # a young one may be another run's, or still be read
                path.unlink(missing_ok=True)
        for folder in (self._shards, self._path.parent):
            files.sweep(folder)

    def _is_there(self, pack: Layout) -> bool:
        try:
            with open_pack(self._path) as file:
                return bool(file.attrs.get("layout") == pack.digest)
        except (NotMade, PackRefused):
            return False

    def _named(self) -> set[str]:
        """Shards that the pack which is there now needs."""
        try:
            with h5py.File(self._path, "r", locking=False) as file:
                return set(json.loads(file.attrs["shards"]))
        except (*UNREADABLE, ValueError):
            return set()

    def _slots(self, items: Sequence[Item]) -> dict[str, Slot]:
        """item key -> its place: in a shard written just now, else in one that the pack names, else in any.

        Those two are opened whether the folder lists them or not: over a network its listing may be older than they.
        """
        wanted, named = {(item.key, item.parts[PART]) for item in items}, self._named()
        known = {self._shards / name for name in {*self._written, *named} if SHARD.fullmatch(name)}
        slots: dict[str, Slot] = {}
        shards = sorted(known.union(self._shards.glob("*.h5")))
        rank = {path: (path.name in self._written, path.name in named) for path in shards}
        for path in sorted(rank, key=rank.__getitem__):
            there = self._within(path)
            live = {key: slot for (key, made_from), slot in there.items() if (key, made_from) in wanted}
            rows = sum(slot.rows for slot in there.values())
            if sum(slot.rows for slot in live.values()) >= LIVE_FRACTION * rows:
                slots |= live
        return slots

    def _within(self, path: Path) -> dict[tuple[str, str], Slot]:
        """What a shard holds; it is read once, unless it changes."""
        signature = files.signature(path)
        if signature and signature not in self._read:
            self._read[signature] = read_slots(path)
        return self._read.get(signature, {})


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
        n_pos: (N,) int64, positive points of each row's prompt set.
        n_neg: (N,) int64, negative ones.
    """

    path: Path
    split: str
    data_version: str
    complete: bool
    safe_ids: tuple[str, ...]
    images: np.ndarray
    n_pos: np.ndarray
    n_neg: np.ndarray

    @classmethod
    def open(cls, path: Path) -> "Pack":
        """Read what a pack says of itself. Raises `NotMade` or `PackRefused`."""
        with open_pack(path) as file:
            attributes = {name: file.attrs[name] for name in ("split", "data_version")}
            try:
                names = tuple(file["safe_id"].asstr()[:].tolist())
                columns = {"images": file["mask_of_row"][:], "n_pos": file["n_pos"][:], "n_neg": file["n_neg"][:]}
            except (*UNREADABLE, ValueError) as error:
                raise PackRefused(f"{path} is damaged ({error}). {ANEW}") from error
            return cls(path, **attributes, complete=bool(file.attrs["complete"]), safe_ids=names, **columns)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def bytes(self) -> int:
        """Size of its arrays in memory."""
        return len(self) * (len(ARRAYS) * 2 + 1) * SHAPE[0] * SHAPE[1]


def open_pack(path: Path) -> h5py.File:
    """The file over the shards, open for reading, all its shards there.

    Raises:
        NotMade: there is no pack.
        PackRefused: it cannot be read, is of an older version, or a shard is missing or cut; names it, says what to do.
        NewerFormat: it was written by a newer version.
    """
    if not path.exists():
        raise NotMade(f"{path.name} is not there. Materialise hdf5_pack[{path.stem}] first.")
    try:
        file = h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError) as error:
        raise PackRefused(f"{path} is not a readable HDF5 file ({error}). Materialise hdf5_pack again.") from error
    try:
        if file.attrs.get("format") != "pack":
            raise PackRefused(f"{path} is not a pack of this project. Move it away and materialise hdf5_pack again.")
        files.refuse_newer(path, file.attrs["version"], version=VERSION)
        if file.attrs["version"] < VERSION:
            raise PackRefused(
                f"{path} has format version {file.attrs['version']}, without numbers of positive and negative points. "
                "Materialise hdf5_pack again; SAM is not asked for it."
            )
        if file.attrs.get(files.CHECK, check := digest_of_attributes(file)) != check:
            raise PackRefused(f"{path} is damaged: it does not say of itself what was written. {ANEW}")
        check_shards(path, file)
        require_enclosed(path, file, sources=shards_of(path, file))
    except DataElsewhere as error:
        file.close()
        raise PackRefused(str(error)) from error
    except UNREADABLE as error:
        file.close()
        raise PackRefused(f"{path} is damaged ({error}). {ANEW}") from error
    except BaseException:
        file.close()
        raise
    return file


def shards_of(path: Path, file: h5py.File) -> dict[str, Path]:
    """The shards of a pack: as it names them, and where they lie. Raises `LeadsOut` if it names what is none."""
    folder = path.with_name(f"{path.stem}_shards")
    return {f"{folder.name}/{name}": folder / inside.plain(name) for name in json.loads(file.attrs["shards"])}


def check_shards(path: Path, file: h5py.File) -> None:
    """Whether all shards of a pack are there with the size that it names. Raises `PackRefused`."""
    for name, size in json.loads(file.attrs["shards"]).items():
        shard = path.with_name(f"{path.stem}_shards") / inside.plain(name)
        found = shard.stat().st_size if shard.exists() else None
        if found != size:
            raise PackRefused(
                f"{path} needs {shard.name} with {size} bytes, found {'none' if found is None else f'{found} bytes'}. "
                "Delete what is left of that shard and materialise hdf5_pack again."
            )
