"""State dicts as files: plain tensors and numbers, read with `weights_only=True`, checked against a SHA-256."""

import io
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from sam_laplace_assets.storage import files


class Damaged(ValueError):
    """A file of a finished run is missing or not the one that was stored."""


def dump(state: Mapping[str, Any]) -> bytes:
    """A state dict as the bytes of its file; equal states, equal bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def load(content: bytes, *, path: "Path | str" = "A file of weights") -> Any:
    """The state dict in the bytes of a file, on the CPU; no code in them is run.

    Raises:
        Damaged: they hold other objects, or would unpack to more than they are; names `path`, where they lie.
    """
    import torch

    try:
        require_unpacked(io.BytesIO(content), len(content), path=path)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise Damaged(
            f"{path} holds pickled objects, which could run code, or is damaged. Delete its folder and materialise "
            "again."
        ) from error


def require_unpacked(file: "IO[bytes] | Path", size: int, *, path: "Path | str" = "A file of weights") -> None:
    """Refuse an archive of PyTorch's that would unpack to more than its `size` in bytes: none of PyTorch's own does.

    Raises:
        Damaged: says what it claims.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            claimed = sum(record.file_size for record in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError):
        return  # of the older kind, or none at all
    if claimed > size:
        raise Damaged(f"{path}, of {size:,} bytes, would unpack to {claimed:,}: PyTorch writes no such file.")


def verified(places: Sequence[Path], sha256: str, *, named_by: str) -> bytes:
    """The bytes of the first file that has this SHA-256.

    Raises:
        Damaged: none has; names the first place, what was found and what to do.
    """
    for path in places:
        if path.exists() and files.sha256(content := path.read_bytes()) == sha256:
            return content
    found = "is not the one that was stored" if places[0].exists() else "is missing"
    raise Damaged(
        f"{places[0]} {found}: {named_by} names SHA-256 {sha256[:12]}. Put it back, or delete the folder "
        f"{places[0].parent.name} and materialise again."
    )


def read_versioned(path: Path, *, version: int) -> dict[str, Any]:
    """A JSON file that says its format version. Raises `NewerFormat`, or `Damaged` if it is not there as it was."""
    if not path.exists():
        raise Damaged(f"{path} is missing. Put it back, or materialise again.")
    try:
        return files.read_sealed(path, version=version)
    except files.NewerFormat:
        raise
    except ValueError as error:
        raise Damaged(str(error)) from error
