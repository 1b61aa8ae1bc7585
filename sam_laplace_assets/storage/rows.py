"""Reading a pack's rows: as they lie on disk, or once into memory."""

import os
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from sam_laplace_assets.domain.pack import MemoryRows, Rows
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.enclosed import require_enclosed
from sam_laplace_assets.storage.layout import MISSING
from sam_laplace_assets.storage.pack import Pack, PackRefused, check_shards, open_pack, shards_of
from sam_laplace_assets.storage.shards import ARRAYS, SHAPE, UNREADABLE, is_itself

GIB = 1 << 30
BLOCK = 64
OTHER_FILES = 256
"""That a process may have open beside the shards of a pack."""


class OpenPack:
    """A pack, open for reading. Its datasets stay open: HDF5 looks for the shards of each one that is opened."""

    def __init__(self, pack: Pack) -> None:
        self._path, self.file = pack.path, _open_unchanged(pack)
        _require_enclosed_shards(self._path, self.file)
        _allow_open_files(self._path, len(shards_of(self._path, self.file)))
        self._datasets = {name: self.file[name] for name in (*ARRAYS, "mask")}

    def array(self, name: str, at: int | slice) -> np.ndarray:
        """Some rows of a dataset. Raises `PackRefused` where they are damaged."""
        try:
            return np.asarray(self._datasets[name][at])
        except UNREADABLE as error:
            check_shards(self._path, self.file)
            if files.went_stale(error):
                raise PackRefused(f"{self._path} was replaced elsewhere while it was read. Run again.") from error
            raise PackRefused(
                f"{name} at {at} of {self._path} is damaged in {_shards_of(self._datasets[name], at)} ({error}). "
                "Delete that shard and materialise hdf5_pack again."
            ) from error

    def masks(self, at: int | slice) -> np.ndarray:
        """Some masks, bool. Raises `PackRefused` where their shard is gone, and so all that its samples have."""
        masks = self.array("mask", at)
        if masks.max(initial=0) == MISSING:
            check_shards(self._path, self.file)
            raise PackRefused(f"{self._path} lost a shard while it was read. Run again.")
        return masks > 0


def read_rows(pack: Pack, *, memory_budget: float) -> Rows:
    """Its rows, in memory when they fit into `memory_budget` GiB, else read from disk batch by batch."""
    return load_rows(pack) if pack.bytes <= memory_budget * GIB else StreamedRows(pack)


def load_rows(pack: Pack) -> MemoryRows:
    """All rows of a pack, in memory. Raises `PackRefused`."""
    inputs = torch.empty((len(pack), len(ARRAYS), *SHAPE), dtype=torch.float16)
    masks = torch.empty((len(pack.safe_ids), *SHAPE), dtype=torch.bool)
    opened = OpenPack(pack)
    with opened.file:
        for block in _blocks(len(masks)):
            masks[block] = torch.from_numpy(opened.masks(block))
        for block in _blocks(len(pack)):
            for channel, name in enumerate(ARRAYS):
                inputs[block, channel] = torch.from_numpy(opened.array(name, block))
    return MemoryRows(inputs, masks[torch.from_numpy(pack.images)], pack.images)


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


class StreamedRows:
    """Rows read from the pack that was opened, one row a read; every process opens the file for itself."""

    def __init__(self, pack: Pack) -> None:
        self._pack, self.images = pack, pack.images
        self._opened: dict[int, OpenPack] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __reduce__(self) -> tuple[type, tuple[Pack]]:
        return type(self), (self._pack,)

    @property
    def opened(self) -> OpenPack:
        """The pack, open in this process. Raises `PackRefused` where another one has taken its place since."""
        process = os.getpid()
        if process not in self._opened:
            self._opened[process] = OpenPack(self._pack)
        return self._opened[process]

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """(B, 3, 256, 256) float16 inputs and (B, 256, 256) bool masks of some rows. Raises `PackRefused`."""
        opened = self.opened
        inputs = np.empty((len(rows), len(ARRAYS), *SHAPE), dtype=np.float16)
        masks = np.empty((len(rows), *SHAPE), dtype=bool)
        for at, row in enumerate(rows.tolist()):
            masks[at] = opened.masks(int(self.images[row]))
            for channel, name in enumerate(ARRAYS):
                inputs[at, channel] = opened.array(name, row)
        return torch.from_numpy(inputs), torch.from_numpy(masks)


def _open_unchanged(pack: Pack) -> h5py.File:
    """The file of the pack that was opened. Raises `PackRefused` where another one has taken its place since."""
    file = open_pack(pack.path)
    if file.attrs["data_version"] == pack.data_version:
        return file
    file.close()
    raise PackRefused(f"{pack.path} was replaced after it was opened by this run. Run again.")


def _allow_open_files(path: Path, shards: int) -> None:
    """Let this process open all shards of a pack, and those of another: HDF5 takes what it cannot open for gone.

    Raises:
        PackRefused: the machine does not let it have so many files open.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= 2 * shards + OTHER_FILES:
        return
    most = 2 * shards + OTHER_FILES if hard == resource.RLIM_INFINITY else hard
    if most < shards + OTHER_FILES:
        raise PackRefused(
            f"{path} has {shards:,} shards, and a process may have no more than {most:,} files open here. Raise that "
            f"limit (`ulimit -Hn`) above {shards + OTHER_FILES:,}, then run again."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _require_enclosed_shards(path: Path, file: h5py.File) -> None:
    """Refuse a pack of which a shard is damaged, another one's, or has data elsewhere: HDF5 would read through it."""
    for shard in shards_of(path, file).values():
        if problem := _problem_of(shard):
            file.close()
            raise PackRefused(
                f"{path} needs {shard.name}, which {problem}. Delete that shard and materialise hdf5_pack again."
            )


def _problem_of(shard: Path) -> str:
    try:
        with h5py.File(shard, "r", locking=False) as opened:
            require_enclosed(shard, opened)
            return "" if is_itself(shard, opened) else "holds other samples"
    except (*UNREADABLE, ValueError) as error:
        return f"cannot be read ({error})"


def _shards_of(dataset: h5py.Dataset, at: int | slice) -> str:
    """The shards that some rows of a virtual dataset lie in."""
    first, last = (at.start, at.stop - 1) if isinstance(at, slice) else (at, at)
    found = set()
    for source in dataset.virtual_sources():
        (start, *_), (stop, *_) = source.vspace.get_select_bounds()
        if start <= last and first <= stop:
            found.add(source.file_name)
    return ", ".join(sorted(found))
