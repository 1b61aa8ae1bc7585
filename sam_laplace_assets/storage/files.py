"""Files that appear whole or not at all: written beside their place, synced, renamed."""

import contextlib
import hashlib
import io
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

TEMPORARY = ".tmp-"
SECONDS_A_WRITE_MAY_TAKE = 24 * 3600.0


class NewerFormat(ValueError):
    """A file was written by a newer version of this package."""


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


def read_json(path: Path) -> Any:
    """The JSON value at `path`.

    Raises:
        ValueError: the file is not JSON; names it.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Delete it to have it made again.") from error


def write_set(contents: Mapping[Path, bytes]) -> None:
    """Put several files in place, in order: the last one names the others and completes the set."""
    written: list[tuple[Path, Path]] = []
    try:
        for path, content in contents.items():
            temporary = _beside(path)
            written.append((temporary, path))
            temporary.write_bytes(content)
        for temporary, _ in written:
            sync(temporary)
        for temporary, path in written:
            temporary.replace(path)
    except BaseException:
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in contents}:
        sync(folder)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends without an error."""
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


def _beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"


def array_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
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
