"""Shards of a pack: some samples with all their rows, in one immutable HDF5 file. The layout is in pack.py."""

import contextlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from sam_laplace_assets.domain.geometry import LOW_RES
from sam_laplace_assets.domain.plan import Item, digest
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.enclosed import DataElsewhere, require_enclosed

VERSION = 2
PART = "rows"
ARRAYS = ("logits_256", "pos_map", "neg_map")
NUMBERS = ("promptset_id", "k_pairs", "n_pos", "n_neg")
SHAPE = (LOW_RES, LOW_RES)
MARGIN = 1 << 20
"""Bytes that HDF5 writes of its own, at most. A disk that is full in the midst leaves it with a file that it can
neither close nor free, and may bring the process down: room is looked for before."""
UNREADABLE = (OSError, KeyError, RuntimeError, UnicodeError)
"""What HDF5 raises where a file is damaged."""


@dataclass(frozen=True)
class PackedSample:
    """All rows of one sample: arrays (R, 256, 256) float16, each of `NUMBERS` (R,), its mask (256, 256) bool."""

    arrays: Mapping[str, np.ndarray]
    numbers: Mapping[str, Sequence[int]]
    mask: np.ndarray


@dataclass(frozen=True)
class Slot:
    """Where a sample lies: rows `first` to `last` and mask `mask` of a shard."""

    shard: str
    mask: int
    first: int
    last: int

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.last - self.first


@dataclass
class ShardWriter:
    """One shard in the making; it takes its name when it is closed."""

    folder: Path
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    keys: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    first_row: list[int] = field(default_factory=lambda: [0])
    numbers: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in NUMBERS})
    bytes: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.temporary = self.folder / f"{files.TEMPORARY}{uuid.uuid4().hex}"
        files.require_room(self.folder, MARGIN)
        try:
            self.file = self.stack.enter_context(h5py.File(self.temporary, "w", libver="v110", locking=False))
            self.datasets = {name: self._create(name, dtype) for name, dtype in
                             {**dict.fromkeys(ARRAYS, "float16"), "mask": "uint8"}.items()}  # fmt: skip
        except BaseException:
            self.abandon()
            raise

    def _create(self, name: str, dtype: str) -> h5py.Dataset:
        """A dataset to append to; whole chunks are written as they come, so that a cache would only copy them."""
        return self.file.create_dataset(
            name, (0, *SHAPE), dtype, maxshape=(None, *SHAPE), chunks=(1, *SHAPE), fletcher32=True, rdcc_nbytes=0
        )

    def add(self, item: Item, sample: PackedSample) -> None:
        """Append a sample and its rows. Raises OSError where the disk has no room for them."""
        self.bytes += sum(sample.arrays[name].nbytes for name in ARRAYS) + sample.mask.nbytes
        waiting = self.bytes - self.temporary.stat().st_blocks * 512  # HDF5 may hold back what it was given
        files.require_room(self.folder, max(waiting, 0) + MARGIN)
        for name in ARRAYS:
            append(self.datasets[name], sample.arrays[name])
        append(self.datasets["mask"], sample.mask[None].astype(np.uint8))
        self.keys.append(item.key)
        self.digests.append(item.parts[PART])
        for name in NUMBERS:
            self.numbers[name].extend(sample.numbers[name])
        self.first_row.append(len(self.numbers["promptset_id"]))

    @property
    def rows(self) -> int:
        """How many rows were appended."""
        return self.first_row[-1]

    def close(self) -> str:
        """Complete the shard and put it in its place; its name there."""
        for name, values in {**self.numbers, "first_row": self.first_row}.items():
            write_column(self.file, name, np.asarray(values, dtype=np.int64))
        write_strings(self.file, "safe_id", self.keys)
        write_strings(self.file, "rows_digest", self.digests)
        self.file.attrs.update({"format": "pack_shard", "version": VERSION})
        self.stack.close()
        files.sync(self.temporary)
        name = name_of(self.keys, self.digests)
        self.temporary.replace(self.folder / name)
        files.sync(self.folder)
        return name

    def abandon(self) -> None:
        """Leave nothing behind."""
        try:
            self.stack.close()
        finally:
            self.temporary.unlink(missing_ok=True)


def name_of(keys: Sequence[str], digests: Sequence[str]) -> str:
    """The name of the shard that holds these samples."""
    return f"{digest([list(keys), list(digests), VERSION])[:24]}.h5"


def is_itself(path: Path, file: h5py.File) -> bool:
    """Whether a shard holds the samples that its name stands for. Raises OSError where it cannot be read."""
    return name_of(*(file[name].asstr()[:].tolist() for name in ("safe_id", "rows_digest"))) == path.name


@dataclass(frozen=True)
class ShardSource:
    """What the file over the shards needs to know of one."""

    name: str
    rows: int
    masks: int
    columns: Mapping[str, np.ndarray]

    @classmethod
    def open(cls, path: Path) -> "ShardSource":
        """Read the small datasets of a shard."""
        with h5py.File(path, "r", locking=False) as file:
            columns = {name: file[name][:] for name in NUMBERS}
            rows = len(columns["promptset_id"])
            return cls(f"{path.parent.name}/{path.name}", rows, len(file["safe_id"]), columns)


def read_slots(path: Path) -> dict[tuple[str, str], Slot]:
    """(safe_id, rows_digest) -> where that sample lies.

    Nothing if the shard cannot be read, has data elsewhere, or is of an older version: its samples are written again.
    Raises `NewerFormat`.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            files.refuse_newer(path, file.attrs["version"], version=VERSION)
            require_enclosed(path, file)
            if file.attrs["version"] < VERSION:
                return {}
            if not is_itself(path, file):
                return {}
            keys, digests = (file[name].asstr()[:] for name in ("safe_id", "rows_digest"))
            first, *_ = (file[name][:].tolist() for name in ("first_row", *NUMBERS))
    except (*UNREADABLE, DataElsewhere):
        return {}
    names = zip(keys, digests, strict=True)
    return {name: Slot(path.name, at, first[at], first[at + 1]) for at, name in enumerate(names)}


def append(dataset: h5py.Dataset, values: np.ndarray) -> None:
    """Put rows at the end of a resizable dataset."""
    before = len(dataset)
    dataset.resize(before + len(values), axis=0)
    dataset[before:] = values


def write_column(file: h5py.File, name: str, values: np.ndarray) -> None:
    """A column in one chunk, with its checksum."""
    file.create_dataset(name, data=values, **({"chunks": values.shape, "fletcher32": True} if len(values) else {}))


def write_strings(file: h5py.File, name: str, values: Sequence[str]) -> None:
    """A column of UTF-8 strings, all of the longest one's length: HDF5 keeps others where no checksum is."""
    encoded = [value.encode() for value in values]
    longest = max(map(len, encoded), default=1) or 1
    write_column(file, name, np.asarray(encoded, dtype=h5py.string_dtype("utf-8", longest)))
