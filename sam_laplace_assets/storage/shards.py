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

VERSION = 2
PART = "rows"
ARRAYS = ("logits_256", "pos_map", "neg_map")
NUMBERS = ("promptset_id", "k_pairs", "n_pos", "n_neg")
SHAPE = (LOW_RES, LOW_RES)


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

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.temporary = self.folder / f"{files.TEMPORARY}{uuid.uuid4().hex}"
        self.file = self.stack.enter_context(h5py.File(self.temporary, "w", libver="v110", locking=False))
        self.datasets = {name: self._create(name, dtype) for name, dtype in
                         {**dict.fromkeys(ARRAYS, "float16"), "mask": "uint8"}.items()}  # fmt: skip

    def _create(self, name: str, dtype: str) -> h5py.Dataset:
        """A dataset to append to; whole chunks are written as they come, so that a cache would only copy them."""
        return self.file.create_dataset(
            name, (0, *SHAPE), dtype, maxshape=(None, *SHAPE), chunks=(1, *SHAPE), fletcher32=True, rdcc_nbytes=0
        )

    def add(self, item: Item, sample: PackedSample) -> None:
        """Append a sample and its rows."""
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
            self.file.create_dataset(name, data=np.asarray(values, dtype=np.int64))
        write_strings(self.file, "safe_id", self.keys)
        write_strings(self.file, "rows_digest", self.digests)
        self.file.attrs.update({"format": "pack_shard", "version": VERSION})
        self.stack.close()
        files.sync(self.temporary)
        name = f"{digest([self.keys, self.digests, VERSION])[:24]}.h5"
        self.temporary.replace(self.folder / name)
        files.sync(self.folder)
        return name

    def abandon(self) -> None:
        """Leave nothing behind."""
        self.stack.close()
        self.temporary.unlink(missing_ok=True)


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

    Nothing if the shard cannot be read, or is of an older version: its samples are written again. Raises `NewerFormat`.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            files.refuse_newer(path, file.attrs["version"], version=VERSION)
            if file.attrs["version"] < VERSION:
                return {}
            keys, digests = (file[name].asstr()[:] for name in ("safe_id", "rows_digest"))
            first = file["first_row"][:].tolist()
    except (OSError, KeyError):
        return {}
    names = zip(keys, digests, strict=True)
    return {name: Slot(path.name, at, first[at], first[at + 1]) for at, name in enumerate(names)}


def append(dataset: h5py.Dataset, values: np.ndarray) -> None:
    """Put rows at the end of a resizable dataset."""
    before = len(dataset)
    dataset.resize(before + len(values), axis=0)
    dataset[before:] = values


def write_strings(file: h5py.File, name: str, values: Sequence[str]) -> None:
    """A dataset of variable-length UTF-8 strings."""
    file.create_dataset(name, data=np.asarray(values, dtype=object), dtype=h5py.string_dtype(), shape=(len(values),))
