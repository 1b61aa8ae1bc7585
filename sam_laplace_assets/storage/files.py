"""Files that appear whole or not at all: written beside their place, synced, renamed."""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sam_laplace_assets.domain.plan import digest

TEMPORARY = ".tmp-"
SECONDS_A_WRITE_MAY_TAKE = 24 * 3600.0
SYNCS_AT_ONCE = 8
"""Of a process."""
OPENINGS = 5
"""Of a file that goes stale each time before it is read."""
CHECK = "check"
MAKE_ROOM = "Make room there (`sam-laplace gc` lists what may go), then run again: what is finished is kept."
REFUSALS = {
    errno.ENOSPC: ("is full", MAKE_ROOM),
    errno.EDQUOT: ("has no more room for this user", MAKE_ROOM),
    errno.EROFS: ("may only be read", "Have it mounted for writing, then run again: what is finished is kept."),
}
"""Error numbers of a disk that takes nothing more: what it is, and what to do."""


class NewerFormat(ValueError):
    """A file was written by a newer version of this package."""


class DiskRefused(OSError):
    """A disk is full, or may only be read."""


def refuse_newer(path: Path, found: Any, *, version: int) -> None:
    """Refuse a file whose format version is above the one that is known here.

    Raises:
        NewerFormat: names the file and says what to do.
    """
    if int(found) > version:
        raise NewerFormat(
            f"{path} has format version {found}, this package reads up to {version}. Upgrade the package."
        )


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path`, whole or not at all."""
    write_set({path: content})


def write_json(path: Path, value: Any) -> None:
    """Put `value` at `path` as indented JSON."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """A JSON value as the bytes of its file."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def compact_json_bytes(value: Any) -> bytes:
    """A JSON value in one line, as the bytes of its file: ten times as fast, where there are many files."""
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def read_bytes(path: Path) -> bytes:
    """What the file at `path` holds; opened again where another machine replaced it just then.

    On one machine an open file can be read to its end when another takes its name; a network file system says that it
    is stale.
    """
    for _ in range(OPENINGS - 1):
        try:
            return path.read_bytes()
        except OSError as error:
            if not went_stale(error):
                raise
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """The JSON value at `path`.

    Raises:
        ValueError: the file is not JSON; names it.
    """
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}. Delete it to have it made again.") from error


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON document with `check`, the digest of all that it says: a bit that flips on the disk is found."""
    return {**document, CHECK: digest(dict(document))}


def read_sealed(path: Path, *, version: int) -> dict[str, Any]:
    """A JSON document that says its format version, without its `check`; those of before have none.

    Raises:
        NewerFormat: it is of a version above this one.
        ValueError: it is not what was written; names it and says what to do.
    """
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("version"), int):
        raise ValueError(f"{path} is damaged: it says no format version. Delete it to have it made again.")
    refuse_newer(path, document["version"], version=version)
    if not says_what_was_written(document):
        raise ValueError(f"{path} is damaged: it does not say what was written. Delete it to have it made again.")
    return document


def says_what_was_written(document: dict[str, Any]) -> bool:
    """Whether a document fits its `check`, which is taken out of it; one of before has none."""
    said = document.pop(CHECK, None)
    return said is None or bool(said == digest(document))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Have a disk that refuses what is to be written at or below `path` say so in words. Raises `DiskRefused`."""
    try:
        yield
    except DiskRefused:
        raise
    except (OSError, RuntimeError) as error:  # HDF5 raises both
        number = _refusal(error)
        if number is None:
            raise
        raise DiskRefused(_refused(path, number)) from error


def require_room(folder: Path, size: int) -> None:
    """Raises OSError, as a write would, if a disk has no room for so many bytes."""
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _refusal(error: BaseException | None) -> int | None:
    """The number in `REFUSALS` that an error, or the one that it came after, is about."""
    while error is not None:
        number = _number(error)
        if number in REFUSALS:
            return number
        error = error.__cause__ or error.__context__
    return None


def _number(error: BaseException) -> int | None:
    """The system's number of an error; HDF5 tells it in its text."""
    told = re.search(r"errno = (\d+)", str(error))
    return getattr(error, "errno", None) or (int(told.group(1)) if told else None)


def went_stale(error: BaseException) -> bool:
    """Whether a file was replaced or removed by another machine while it was open."""
    return _number(error) == errno.ESTALE


def _refused(path: Path, number: int) -> str:
    state, remedy = REFUSALS[number]
    there = next(one for one in (path, *path.parents) if one.is_dir())
    disk = os.statvfs(there)
    sizes = f"{disk.f_bavail * disk.f_frsize / 1e6:.1f} of {disk.f_blocks * disk.f_frsize / 1e6:.1f} MB"
    places = f" and {disk.f_favail} of {disk.f_files} places for files" if disk.f_files else ""
    return f"{path} cannot be written: its disk {state} ({os.strerror(number)}; {sizes}{places} are free). {remedy}"


def write_set(contents: Mapping[Path, bytes]) -> None:
    """Put several files in place, in order: the last one names the others and completes the set.

    Raises:
        DiskRefused: the disk is full or may only be read; what was there is as it was.
    """
    with writing(next(iter(contents), Path())):
        _write_set(contents)


def _write_set(contents: Mapping[Path, bytes]) -> None:
    written: list[tuple[Path, Path]] = []
    try:
        for path, content in contents.items():
            temporary = _beside(path)
            written.append((temporary, path))
            temporary.write_bytes(content)
        sync_all([temporary for temporary, _ in written])
        for temporary, path in written:
            temporary.replace(path)
    except BaseException:
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)
        raise
    sync_all({path.parent for path in contents})


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends without an error.

    Raises:
        DiskRefused: the disk is full or may only be read; what was there is as it was.
    """
    with writing(path):
        temporary = _beside(path)
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left in a folder; what is younger than a day may still be written."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if is_old(path):
            path.unlink(missing_ok=True)


def is_old(path: Path) -> bool:
    """Whether no run can still be writing this file: it was last written more than a day ago."""
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > SECONDS_A_WRITE_MAY_TAKE
    return False


def sync(path: Path) -> None:
    """Have the file or folder at `path` on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(paths: Collection[Path]) -> None:
    """Have many files on the disk, several asked for at once: a journal commits them together, six times as fast."""
    syncs = [_syncing().submit(sync, path) for path in paths]
    wait(syncs)
    for one in syncs:
        one.result()


@cache
def _syncing() -> ThreadPoolExecutor:
    """The threads that sync for all who write: to start them takes as long as to write some files."""
    return ThreadPoolExecutor(SYNCS_AT_ONCE, thread_name_prefix="sync")


os.register_at_fork(after_in_child=_syncing.cache_clear)  # a forked process has none of its parent's threads


def _beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"


def array_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file. Raises `ValueError` for Python objects, which nobody should read."""
    array = np.ascontiguousarray(array)
    if array.dtype.hasobject:
        raise ValueError("An array of Python objects is not written: give one of numbers.")
    return b"".join((npy_header(array.shape, array.dtype), array.data))


@lru_cache(maxsize=64)
def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What the .npy file of an array in rows begins with."""
    buffer, told = io.BytesIO(), {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, told)
    return buffer.getvalue()


def sha256(content: bytes | memoryview) -> str:
    """SHA-256 of bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def signature(*paths: Path) -> str:
    """Names, sizes and modification times: what decides whether files are read again. Empty if one is absent."""
    try:
        states = [(path, path.stat()) for path in paths]
    except FileNotFoundError:
        return ""
    return ";".join(f"{path.name}:{state.st_size}:{state.st_mtime_ns}" for path, state in states)
