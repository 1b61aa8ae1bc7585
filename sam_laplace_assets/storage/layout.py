"""The file over the shards of a pack: which rows of which shard, in which order. The format is in pack.py."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sam_laplace_assets.domain.plan import digest
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage import shards as shard_files
from sam_laplace_assets.storage.files import CHECK
from sam_laplace_assets.storage.shards import (
    ARRAYS,
    MARGIN,
    NUMBERS,
    SHAPE,
    ShardSource,
    Slot,
    write_column,
    write_strings,
)

BYTES_A_ROW = 512
"""Of the file over the shards, at most: its columns and the longest safe id."""
MISSING = np.uint8(255)
"""What HDF5 reads as a mask where a shard is gone."""


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


def write_layout(path: Path, shards: Path, pack: Layout) -> None:
    """Write the file over the shards in the folder `shards`."""
    slots = list(pack.slots.values())
    rows = sum(slot.rows for slot in slots)
    sources = {name: ShardSource.open(shards / name) for name in pack.shards}
    files.require_room(path.parent, MARGIN + BYTES_A_ROW * rows)
    with h5py.File(path, "w", libver="v110", locking=False) as file:
        for name in ARRAYS:
            spans = [(slot.shard, slot.first, slot.last) for slot in slots]
            _virtual(file, name, "float16", rows, spans, sources, np.float16("nan"))
        masks = [(slot.shard, slot.mask, slot.mask + 1) for slot in slots]
        _virtual(file, "mask", "uint8", len(slots), masks, sources, MISSING)
        write_column(file, "mask_of_row", np.repeat(np.arange(len(slots)), [slot.rows for slot in slots]))
        for name in NUMBERS:
            values = [sources[slot.shard].columns[name][slot.first : slot.last] for slot in slots]
            write_column(file, name, np.concatenate(values) if values else np.zeros(0, dtype=np.int64))
        write_strings(file, "safe_id", list(pack.slots))
        file.attrs.update(_pack_attributes(shards, pack))
        file.attrs[CHECK] = digest_of_attributes(file)


def digest_of_attributes(file: h5py.File) -> str:
    """Digest of what a pack says of itself: HDF5 keeps texts where no checksum is."""
    return digest({name: str(value) for name, value in file.attrs.items() if name != CHECK})


def _pack_attributes(shards: Path, pack: Layout) -> dict[str, Any]:
    sizes = {name: (shards / name).stat().st_size for name in pack.shards}
    return {
        "format": "pack", "version": shard_files.VERSION, "split": pack.split, "complete": pack.complete,
        "layout": pack.digest, "data_version": pack.data_version, "shards": json.dumps(sizes),
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
