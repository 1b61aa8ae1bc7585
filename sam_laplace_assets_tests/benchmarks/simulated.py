"""What stands in for SAM where 200,000 samples are simulated, and the samples.

Manifests, prompt sets, ledgers, indices and the plans and files over packs are the platform's own, made from small
images and masks that are really there. Only these are not: `FakeSam` in place of Segment Anything, whose arrays are
holes of their full size, and `FakeRows` in place of the rows of packs, whose shards have room for every row and hold
none. What is written for each sample is synced only where that is asked for.
"""

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

CLASSES = 20
SIZE = (24, 32)
ARRAY_BYTES = 128 + 256 * 256 * 2
"""Of an array of the cache as a file."""


def draw_samples(folder: Path, samples: int) -> None:
    """Images (24, 32, 3) in a colour that is their number, and masks with a box on each."""
    for name in (f"class{number:02d}" for number in range(min(samples, CLASSES))):
        (folder / "images" / name).mkdir(parents=True)
        (folder / "masks" / name).mkdir(parents=True)
    for number in range(samples):
        name = f"class{number % CLASSES:02d}/{number:07d}"
        (folder / "images" / f"{name}.png").write_bytes(png(number))
        (folder / "masks" / f"{name}.npy").write_bytes(mask_file(number % 12, number % 17))


def png(number: int) -> bytes:
    """A PNG of one colour, written at once: Pillow would take most of a simulation's time."""
    colour = bytes((number & 255, number >> 8 & 255, number >> 16))
    lines = (b"\0" + colour * SIZE[1]) * SIZE[0]
    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*one) for one in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@cache
def mask_file(top: int, left: int) -> bytes:
    """A mask with a box, as the bytes of a .npy file."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[top : top + 10, left : left + 12] = True
    file = io.BytesIO()
    np.save(file, mask)
    return file.getvalue()


@dataclass(frozen=True)
class FakeSam:
    """Says the same of every prompt set, at once: arrays of one number, for which a hole is written."""

    def make(self, item: Any, parts: frozenset[str]) -> Any:
        """What is stored of one sample: real prompt sets and provenance, no arrays."""
        from sam_laplace_assets.storage.sam import ARRAYS, SampleOutput, SetOutput

        arrays = {name: np.zeros(1, dtype=np.float16) for part in ARRAYS.values() for name in part}
        sets = []
        for one in item.source.prompts.read(item.key):
            provenance = {part: item.source.provenance(f"{one.promptset_id:04d}/{part}") for part in ARRAYS}
            facts = {"sample_id": item.source.sample.sample_id, "k_pairs": one.k_pairs, "branch": 0, "sigma": 8.0,
                     "points": {"pos": one.pos, "neg": one.neg}, "points_256": {"pos": one.pos, "neg": one.neg},
                     "predicted_ious": [0.9, 0.8, 0.7]}  # fmt: skip
            sets.append(SetOutput(one.promptset_id, arrays, facts, provenance))
        return SampleOutput(sets)


@dataclass(frozen=True)
class FakeRows:
    """Rows of one sample, all of them one number, for which a shard only makes room."""

    def make(self, item: Any, parts: frozenset[str]) -> Any:
        """As many rows as the index has of the sample."""
        from sam_laplace_assets.storage.shards import ARRAYS, NUMBERS, PackedSample

        rows = len(item.source)
        arrays = {name: np.broadcast_to(np.float16(0), (rows, 256, 256)) for name in ARRAYS}
        numbers = {name: range(rows) if name == "promptset_id" else [5] * rows for name in NUMBERS}
        return PackedSample(arrays, numbers, np.broadcast_to(np.bool_(False), (256, 256)))


FAKES = {"sam_cache": FakeSam(), "hdf5_pack": FakeRows()}


def faked(plan: Any, asset: str) -> Any:
    """The plan with a fake that makes its items, if there is one."""
    fake = FAKES.get(asset)
    return plan if fake is None else replace(plan, make=fake.make, make_all=None, writers=0)


@contextmanager
def sparse_arrays(*, synced: bool) -> Iterator[None]:
    """Arrays are holes, rows of shards are room; what lies in a file of each sample's own is synced, or is not."""
    from sam_laplace_assets.storage import files, shards

    def write_set(contents: Mapping[Path, bytes]) -> None:
        write_with_holes(contents, sync=files.sync_all if synced else None)

    with ExitStack() as stack:
        stack.enter_context(patch.object(files, "_write_set", write_set))
        stack.enter_context(patch.object(shards, "append", make_room))
        stack.enter_context(patch.object(shards.ShardWriter, "_create", create_with_room))
        yield


def write_with_holes(contents: Mapping[Path, bytes], *, sync: Any = None) -> None:
    """What `files.write_set` does, in its order: all beside their places, synced if asked for, renamed."""
    from sam_laplace_assets.storage import files

    beside = {path: files._beside(path) for path in contents}
    for path, content in contents.items():
        if path.suffix == ".npy":
            with beside[path].open("wb") as file:
                file.truncate(ARRAY_BYTES)
        else:
            beside[path].write_bytes(content)
    if sync is not None:
        sync(list(beside.values()))
    for path, temporary in beside.items():
        temporary.replace(path)
    if sync is not None:
        sync({path.parent for path in contents})


def make_room(dataset: Any, values: Any) -> None:
    """What `shards.append` does, without the values."""
    dataset.resize(len(dataset) + len(values), axis=0)


def create_with_room(writer: Any, name: str, dtype: str) -> Any:
    """A dataset whose chunks get their place in the file when it grows, and no content: no checksums then."""
    import h5py

    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    created.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return writer.file.create_dataset(
        name, (0, 256, 256), dtype, maxshape=(None, 256, 256), chunks=(1, 256, 256), rdcc_nbytes=0, dcpl=created
    )
